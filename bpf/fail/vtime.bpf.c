// SPDX-License-Identifier: GPL-2.0-only
/* One queue in the order of the tasks' virtual times, which every CPU takes from. */
#include "fail.h"

SELECT_PREVIOUS(vtime_select_cpu)

static u64 (*const now)(void) = (void *)5; /* bpf_ktime_get_ns() */

CALLBACK(vtime_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 vtime = now();

	if (is_kthread(p)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE, ARG(ctx, 1, u64));
		return 0;
	}
	/* The fault: a niced task is put behind all that come in the next minute. */
	if (is_nice(p))
		vtime += 60000000000ULL;
	scx_bpf_dsq_insert_vtime(p, SHARED_DSQ, SCX_SLICE, vtime, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(vtime_dispatch)
{
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(vtime_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops vtime_ops = {
	.select_cpu = (void *)vtime_select_cpu,
	.enqueue = (void *)vtime_enqueue,
	.dispatch = (void *)vtime_dispatch,
	.init = (void *)vtime_init,
	.timeout_ms = 10000,
	.name = "demo_vtime",
};

LICENSE;
