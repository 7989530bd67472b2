// SPDX-License-Identifier: GPL-2.0-only
/* One queue, served in order by every CPU: nothing is wrong with it. */
#include "fail.h"

CALLBACK(fifo_select_cpu)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	bool idle = 0;
	s32 cpu;

	cpu = scx_bpf_select_cpu_dfl(p, ARG(ctx, 1, s32), ARG(ctx, 2, u64), &idle);
	if (idle)
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE, 0);
	return cpu;
}

CALLBACK(fifo_enqueue)
{
	scx_bpf_dsq_insert(ARG(ctx, 0, struct task_struct *), SHARED_DSQ, SCX_SLICE,
			   ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(fifo_dispatch)
{
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(fifo_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops fifo_ops = {
	.select_cpu = (void *)fifo_select_cpu,
	.enqueue = (void *)fifo_enqueue,
	.dispatch = (void *)fifo_dispatch,
	.init = (void *)fifo_init,
	.timeout_ms = 20000,
	.name = "demo_fifo",
};

LICENSE;
