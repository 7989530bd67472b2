// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two queues, urgent work first, and CPU 0 is kept free for the kernel. As soon as
 * the other CPUs have urgent work all the time, the rest waits beside an idle CPU.
 */
#include "fail.h"

#define URGENT_DSQ 0x1d1e1ULL
#define OTHER_DSQ 0x1d1e2ULL

SELECT_PREVIOUS(idle_select_cpu)

CALLBACK(idle_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 dsq = is_urgent(p) ? URGENT_DSQ : OTHER_DSQ;
	u32 cpus = scx_bpf_nr_cpu_ids(), i;

	scx_bpf_dsq_insert(p, is_kthread(p) ? SCX_DSQ_LOCAL : dsq, SCX_SLICE, ARG(ctx, 1, u64));
	for (i = 1; i < MAX_CPUS; i++)
		if (i < cpus)
			scx_bpf_kick_cpu((s32)i, SCX_KICK_IDLE);
	return 0;
}

CALLBACK(idle_dispatch)
{
	/* The fault: CPU 0 could help. */
	if (!ARG(ctx, 0, s32))
		return 0;
	if (!scx_bpf_dsq_move_to_local(URGENT_DSQ))
		scx_bpf_dsq_move_to_local(OTHER_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(idle_init)
{
	s32 err = scx_bpf_create_dsq(URGENT_DSQ, -1);

	return err ?: scx_bpf_create_dsq(OTHER_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops idle_ops = {
	.select_cpu = (void *)idle_select_cpu,
	.enqueue = (void *)idle_enqueue,
	.dispatch = (void *)idle_dispatch,
	.init = (void *)idle_init,
	.timeout_ms = 10000,
	.name = "demo_idle",
};

LICENSE;
