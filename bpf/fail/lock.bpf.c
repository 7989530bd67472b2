// SPDX-License-Identifier: GPL-2.0-only
/*
 * Niced tasks run only when there is nothing else. One of them holds a lock of the
 * kernel when it is put back, and others, not nice at all, wait for that lock.
 */
#include "fail.h"

#define NICED_DSQ 0x10c4ULL

SELECT_PREVIOUS(lock_select_cpu)

CALLBACK(lock_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 dsq = is_nice(p) ? NICED_DSQ : SHARED_DSQ;

	scx_bpf_dsq_insert(p, is_kthread(p) ? SCX_DSQ_LOCAL : dsq, SCX_SLICE, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(lock_dispatch)
{
	/* The fault: strict priority. */
	if (!scx_bpf_dsq_move_to_local(SHARED_DSQ))
		scx_bpf_dsq_move_to_local(NICED_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(lock_init)
{
	s32 err = scx_bpf_create_dsq(SHARED_DSQ, -1);

	return err ?: scx_bpf_create_dsq(NICED_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops lock_ops = {
	.select_cpu = (void *)lock_select_cpu,
	.enqueue = (void *)lock_enqueue,
	.dispatch = (void *)lock_dispatch,
	.init = (void *)lock_init,
	.timeout_ms = 10000,
	.name = "demo_lock",
};

LICENSE;
