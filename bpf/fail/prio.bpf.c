// SPDX-License-Identifier: GPL-2.0-only
/* Two queues, one for niced tasks, and every CPU takes from both. */
#include "fail.h"

#define NICED_DSQ 0x9109ULL

SELECT_PREVIOUS(prio_select_cpu)

CALLBACK(prio_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 dsq = is_nice(p) ? NICED_DSQ : SHARED_DSQ;

	scx_bpf_dsq_insert(p, is_kthread(p) ? SCX_DSQ_LOCAL : dsq, SCX_SLICE, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(prio_dispatch)
{
	/* The fault: strict priority. The second is looked at when the first is empty. */
	if (!scx_bpf_dsq_move_to_local(SHARED_DSQ))
		scx_bpf_dsq_move_to_local(NICED_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(prio_init)
{
	s32 err = scx_bpf_create_dsq(SHARED_DSQ, -1);

	return err ?: scx_bpf_create_dsq(NICED_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops prio_ops = {
	.select_cpu = (void *)prio_select_cpu,
	.enqueue = (void *)prio_enqueue,
	.dispatch = (void *)prio_dispatch,
	.init = (void *)prio_init,
	.timeout_ms = 10000,
	.name = "demo_prio",
};

LICENSE;
