// SPDX-License-Identifier: GPL-2.0-only
/*
 * The choice of a CPU is a search among as many as a loop may count, squared. It is
 * called with interrupts off.
 */
#include "fail.h"

u64 places_seen;

static long look(u32 index, void *ctx)
{
	__sync_fetch_and_add(&places_seen, 1);
	return 0;
}

static long look_in_each(u32 index, void *ctx)
{
	loop(1 << 23, look, NULL, 0);
	return 0;
}

CALLBACK(stuck_select_cpu)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);

	/* The fault: no end in sight. */
	if (p->comm[0] == 'l' && p->comm[1] == 'o' && p->comm[2] == 'o' && p->comm[3] == 'p')
		loop(1 << 23, look_in_each, NULL, 0);
	return ARG(ctx, 1, s32);
}

CALLBACK(stuck_enqueue)
{
	scx_bpf_dsq_insert(ARG(ctx, 0, struct task_struct *), SCX_DSQ_LOCAL, SCX_SLICE,
			   ARG(ctx, 1, u64));
	return 0;
}

SEC(".struct_ops.link")
struct sched_ext_ops stuck_ops = {
	.select_cpu = (void *)stuck_select_cpu,
	.enqueue = (void *)stuck_enqueue,
	.timeout_ms = 20000,
	.name = "demo_stuck",
};

LICENSE;
