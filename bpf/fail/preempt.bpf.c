// SPDX-License-Identifier: GPL-2.0-only
/*
 * One queue, served in order by every CPU. A new task is looked up among as many as a
 * loop may count, squared, with preemption off so that the place stays true.
 */
#include "fail.h"

/* Of kernel/bpf/helpers.c */
KFUNC void bpf_preempt_disable(void);
KFUNC void bpf_preempt_enable(void);

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

SELECT_PREVIOUS(preempt_select_cpu)

CALLBACK(preempt_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);

	scx_bpf_dsq_insert(p, is_kthread(p) ? SCX_DSQ_LOCAL : SHARED_DSQ, SCX_SLICE, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(preempt_dispatch)
{
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

/* Called by the task that forks, with interrupts on. */
CALLBACK_SLEEPABLE(preempt_init_task)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);

	if (p->comm[0] != 'l' || p->comm[1] != 'o' || p->comm[2] != 'o' || p->comm[3] != 'p')
		return 0;
	bpf_preempt_disable();
	/* The fault: no end in sight. */
	loop(1 << 23, look_in_each, NULL, 0);
	bpf_preempt_enable();
	return 0;
}

CALLBACK_SLEEPABLE(preempt_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops preempt_ops = {
	.select_cpu = (void *)preempt_select_cpu,
	.enqueue = (void *)preempt_enqueue,
	.dispatch = (void *)preempt_dispatch,
	.init_task = (void *)preempt_init_task,
	.init = (void *)preempt_init,
	.timeout_ms = 28000,
	.name = "demo_preempt",
};

LICENSE;
