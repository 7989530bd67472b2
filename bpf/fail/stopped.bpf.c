// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two queues: one for niced tasks, which every CPU looks at first so that nobody is
 * forgotten, for as long as there is credit for that, and one for all others.
 */
#include "fail.h"

#define NICED_DSQ 0x57099ULL

long long credit = 400;

SELECT_PREVIOUS(stopped_select_cpu)

CALLBACK(stopped_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 dsq = is_nice(p) ? NICED_DSQ : SHARED_DSQ;

	scx_bpf_dsq_insert(p, is_kthread(p) ? SCX_DSQ_LOCAL : dsq, SCX_SLICE, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(stopped_dispatch)
{
	/* The fault: nobody ever gives credit again. */
	if (credit > 0 && scx_bpf_dsq_move_to_local(NICED_DSQ)) {
		__sync_fetch_and_add(&credit, -1);
		return 0;
	}
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(stopped_init)
{
	s32 err = scx_bpf_create_dsq(SHARED_DSQ, -1);

	return err ?: scx_bpf_create_dsq(NICED_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops stopped_ops = {
	.select_cpu = (void *)stopped_select_cpu,
	.enqueue = (void *)stopped_enqueue,
	.dispatch = (void *)stopped_dispatch,
	.init = (void *)stopped_init,
	.timeout_ms = 10000,
	.name = "demo_stopped",
};

LICENSE;
