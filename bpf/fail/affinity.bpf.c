// SPDX-License-Identifier: GPL-2.0-only
/*
 * A queue for each CPU, and tasks go to one by their pid. A task that may not run
 * on that CPU waits for ever, while others come and go.
 */
#include "fail.h"

#define QUEUE 0xaff00ULL

SELECT_PREVIOUS(affinity_select_cpu)

CALLBACK(affinity_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u32 cpu = (u32)p->pid % scx_bpf_nr_cpu_ids();

	if (is_kthread(p)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE, ARG(ctx, 1, u64));
		return 0;
	}
	/* The fault: p->cpus_ptr was not asked. */
	scx_bpf_dsq_insert(p, QUEUE + cpu, SCX_SLICE, ARG(ctx, 1, u64));
	scx_bpf_kick_cpu((s32)cpu, SCX_KICK_IDLE);
	return 0;
}

CALLBACK(affinity_dispatch)
{
	scx_bpf_dsq_move_to_local(QUEUE + ARG(ctx, 0, u32));
	return 0;
}

CALLBACK_SLEEPABLE(affinity_init)
{
	u32 cpus = scx_bpf_nr_cpu_ids(), i;
	s32 err = 0;

	for (i = 0; i < MAX_CPUS && !err; i++)
		if (i < cpus)
			err = scx_bpf_create_dsq(QUEUE + i, -1);
	return err;
}

SEC(".struct_ops.link")
struct sched_ext_ops affinity_ops = {
	.select_cpu = (void *)affinity_select_cpu,
	.enqueue = (void *)affinity_enqueue,
	.dispatch = (void *)affinity_dispatch,
	.init = (void *)affinity_init,
	.timeout_ms = 8000,
	.name = "demo_affinity",
};

LICENSE;
