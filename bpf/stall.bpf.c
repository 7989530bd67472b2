// SPDX-License-Identifier: GPL-2.0-only
/*
 * A scheduler that forgets a queue: tasks whose name starts with "starve" are
 * parked on a DSQ that dispatch never looks at. Everything else runs. After
 * timeout_ms the kernel's watchdog finds the starved tasks and throws it out.
 */
#include "scx_demo.h"

#define PARKED_DSQ 0xdead5ULL
#define SHARED_DSQ 0x60d5ULL

u64 nr_parked;
u64 nr_shared;
u64 nr_direct;
u64 nr_dispatched;
u32 last_parked_pid;
u64 first_parked_ns;

EXIT_RECORD;

CALLBACK(stall_select_cpu)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	s32 prev_cpu = ARG(ctx, 1, s32);
	bool idle = 0;
	s32 cpu;

	/* An idle CPU would take the task straight from here, past the parking queue. */
	if (comm_is_starve(p))
		return prev_cpu;
	cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, ARG(ctx, 2, u64), &idle);
	if (idle) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE, 0);
		__sync_fetch_and_add(&nr_direct, 1);
	}
	return cpu;
}

CALLBACK(stall_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 enq_flags = ARG(ctx, 1, u64);

	if (comm_is_starve(p)) {
		if (!first_parked_ns)
			first_parked_ns = ktime_ns();
		last_parked_pid = p->pid;
		__sync_fetch_and_add(&nr_parked, 1);
		scx_bpf_dsq_insert(p, PARKED_DSQ, SCX_SLICE, enq_flags);
		return 0;
	}
	__sync_fetch_and_add(&nr_shared, 1);
	scx_bpf_dsq_insert(p, SHARED_DSQ, SCX_SLICE, enq_flags);
	return 0;
}

CALLBACK(stall_dispatch)
{
	if (scx_bpf_dsq_move_to_local(SHARED_DSQ))
		__sync_fetch_and_add(&nr_dispatched, 1);
	return 0;
}

CALLBACK_SLEEPABLE(stall_init)
{
	s32 err = scx_bpf_create_dsq(SHARED_DSQ, -1);

	if (err)
		return err;
	return scx_bpf_create_dsq(PARKED_DSQ, -1);
}

CALLBACK(stall_exit)
{
	struct scx_exit_info *ei = ARG(ctx, 0, struct scx_exit_info *);

	EXIT_RECORD_FILL(ei);
	return 0;
}

SEC(".struct_ops.link")
struct sched_ext_ops stall_ops = {
	.select_cpu = (void *)stall_select_cpu,
	.enqueue = (void *)stall_enqueue,
	.dispatch = (void *)stall_dispatch,
	.init = (void *)stall_init,
	.exit = (void *)stall_exit,
	.timeout_ms = 16000,
	.name = "demo_stall",
};

char _license[] SEC("license") = "GPL";
