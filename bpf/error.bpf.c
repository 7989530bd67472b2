// SPDX-License-Identifier: GPL-2.0-only
/*
 * A scheduler that works until it meets a task whose name starts with "trip" for
 * the TRIP_LIMIT-th time, and then reports an error of its own.
 */
#include "scx_demo.h"

#define SHARED_DSQ 0x60d5ULL
#define TRIP_LIMIT 20

u64 nr_enqueued;
u64 nr_direct;
u64 nr_trips;

EXIT_RECORD;

CALLBACK(error_select_cpu)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	bool idle = 0;
	s32 cpu;

	cpu = scx_bpf_select_cpu_dfl(p, ARG(ctx, 1, s32), ARG(ctx, 2, u64), &idle);
	/* Tripping tasks always take the way through enqueue, where they are counted. */
	if (idle && !comm_is_trip(p)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE, 0);
		__sync_fetch_and_add(&nr_direct, 1);
	}
	return cpu;
}

CALLBACK(error_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);

	__sync_fetch_and_add(&nr_enqueued, 1);
	scx_bpf_dsq_insert(p, SHARED_DSQ, SCX_SLICE, ARG(ctx, 1, u64));
	if (comm_is_trip(p)) {
		u64 trips = __sync_fetch_and_add(&nr_trips, 1) + 1;

		if (trips == TRIP_LIMIT)
			SCX_ERROR("tripped over pid %d after %llu enqueues on cpu %d", p->pid,
				  trips, this_cpu());
	}
	return 0;
}

CALLBACK(error_dispatch)
{
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(error_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

CALLBACK(error_exit)
{
	struct scx_exit_info *ei = ARG(ctx, 0, struct scx_exit_info *);

	EXIT_RECORD_FILL(ei);
	return 0;
}

SEC(".struct_ops.link")
struct sched_ext_ops error_ops = {
	.select_cpu = (void *)error_select_cpu,
	.enqueue = (void *)error_enqueue,
	.dispatch = (void *)error_dispatch,
	.init = (void *)error_init,
	.exit = (void *)error_exit,
	.timeout_ms = 20000,
	.name = "demo_error",
};

char _license[] SEC("license") = "GPL";
