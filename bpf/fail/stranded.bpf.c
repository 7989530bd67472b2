// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tasks are dealt out to the local queues of the CPUs, by pid, and stay there: when a
 * real-time task takes one of the CPUs, nobody fetches them back.
 */
#include "fail.h"

SELECT_PREVIOUS(stranded_select_cpu)

CALLBACK(stranded_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 dsq = SCX_DSQ_LOCAL;

	if (!is_kthread(p) && p->nr_cpus_allowed > 1)
		dsq = SCX_DSQ_LOCAL_ON | (u32)p->pid % scx_bpf_nr_cpu_ids();
	scx_bpf_dsq_insert(p, dsq, SCX_SLICE, ARG(ctx, 1, u64));
	/* The fault: no cpu_release, which would call scx_bpf_reenqueue_local(). */
	return 0;
}

SEC(".struct_ops.link")
struct sched_ext_ops stranded_ops = {
	.select_cpu = (void *)stranded_select_cpu,
	.enqueue = (void *)stranded_enqueue,
	.timeout_ms = 20000,
	.name = "demo_stranded",
};

LICENSE;
