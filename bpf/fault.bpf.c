// SPDX-License-Identifier: GPL-2.0-only
/*
 * error.bpf.c with no queue of its own: it calls only kfuncs that do without
 * implicit arguments in every kernel, so it also loads on builds whose BTF
 * describes those wrongly (docs/kernels.md).
 */
#include "scx_demo.h"

#define SCX_DSQ_GLOBAL 0x8000000000000001ULL
#define TRIP_LIMIT 20

u64 nr_enqueued;
u64 nr_trips;

EXIT_RECORD;

CALLBACK(fault_select_cpu)
{
	/* All take the way through enqueue. */
	return ARG(ctx, 1, s32);
}

CALLBACK(fault_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);

	__sync_fetch_and_add(&nr_enqueued, 1);
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE, ARG(ctx, 1, u64));
	if (comm_is_trip(p)) {
		u64 trips = __sync_fetch_and_add(&nr_trips, 1) + 1;

		if (trips == TRIP_LIMIT)
			SCX_ERROR("tripped over pid %d after %llu enqueues on cpu %d", p->pid,
				  trips, this_cpu());
	}
	return 0;
}

CALLBACK(fault_exit)
{
	struct scx_exit_info *ei = ARG(ctx, 0, struct scx_exit_info *);

	EXIT_RECORD_FILL(ei);
	return 0;
}

SEC(".struct_ops.link")
struct sched_ext_ops fault_ops = {
	.select_cpu = (void *)fault_select_cpu,
	.enqueue = (void *)fault_enqueue,
	.exit = (void *)fault_exit,
	.timeout_ms = 20000,
	.name = "demo_fault",
};

char _license[] SEC("license") = "GPL";
