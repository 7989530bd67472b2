// SPDX-License-Identifier: GPL-2.0-only
/*
 * One queue, served in order by every CPU, but a task named hog* keeps the CPU that it
 * gets for as long as it likes.
 */
#include "fail.h"

#define SLICE_INF (~0ULL)

SELECT_PREVIOUS(slice_select_cpu)

CALLBACK(slice_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 slice = SCX_SLICE;

	/* The fault: a slice without end. */
	if (p->comm[0] == 'h' && p->comm[1] == 'o' && p->comm[2] == 'g')
		slice = SLICE_INF;
	scx_bpf_dsq_insert(p, SHARED_DSQ, slice, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(slice_dispatch)
{
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(slice_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops slice_ops = {
	.select_cpu = (void *)slice_select_cpu,
	.enqueue = (void *)slice_enqueue,
	.dispatch = (void *)slice_dispatch,
	.init = (void *)slice_init,
	.timeout_ms = 20000,
	.name = "demo_slice",
};

LICENSE;
