// SPDX-License-Identifier: GPL-2.0-only
/* A FIFO scheduler whose enqueue takes milliseconds, under the lock of a run queue. */
#include "fail.h"
#include "slow.h"

SELECT_PREVIOUS(slow_select_cpu)

CALLBACK(slow_enqueue)
{
	work_for(3000000);
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
