// SPDX-License-Identifier: GPL-2.0-only
/*
 * To get to know a task takes most of a second. The kernel bypasses the scheduler
 * until it has been told of all tasks there are.
 */
#include "fail.h"
#include "slow.h"

u64 nr_known;

SELECT_PREVIOUS(bypass_select_cpu)

CALLBACK(bypass_enqueue)
{
	scx_bpf_dsq_insert(ARG(ctx, 0, struct task_struct *), SCX_DSQ_LOCAL, SCX_SLICE,
			   ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(bypass_init_task)
{
	work_for(700000000);
	__sync_fetch_and_add(&nr_known, 1);
	return 0;
}

SEC(".struct_ops.link")
struct sched_ext_ops bypass_ops = {
	.select_cpu = (void *)bypass_select_cpu,
	.enqueue = (void *)bypass_enqueue,
	.init_task = (void *)bypass_init_task,
	.timeout_ms = 20000,
	.name = "demo_bypass",
};

LICENSE;
