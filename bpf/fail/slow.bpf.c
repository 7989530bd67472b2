// SPDX-License-Identifier: GPL-2.0-only
/* A FIFO scheduler that takes milliseconds to choose a CPU for a task that wakes up. */
#include "fail.h"
#include "slow.h"

CALLBACK(slow_select_cpu)
{
	work_for(3000000);
	return ARG(ctx, 1, s32);
}

CALLBACK(slow_enqueue)
{
	scx_bpf_dsq_insert(ARG(ctx, 0, struct task_struct *), SHARED_DSQ, SCX_SLICE,
			   ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(slow_dispatch)
{
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(slow_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops slow_ops = {
	.select_cpu = (void *)slow_select_cpu,
	.enqueue = (void *)slow_enqueue,
	.dispatch = (void *)slow_dispatch,
	.init = (void *)slow_init,
	.timeout_ms = 20000,
	.name = "demo_slow",
};

LICENSE;
