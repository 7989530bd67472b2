// SPDX-License-Identifier: GPL-2.0-only
/*
 * A scheduler that loses tasks: those whose name starts with "starve" are taken
 * from the kernel and put on no queue. Everything else goes through the queues
 * that every scheduler has. After timeout_ms the watchdog throws it out.
 *
 * It calls only kfuncs that do without implicit arguments in every kernel, so it
 * also loads on builds whose BTF describes those wrongly (docs/kernels.md).
 */
#include "scx_demo.h"

#define SCX_DSQ_GLOBAL 0x8000000000000001ULL

u64 nr_lost;
u64 nr_shared;
u64 nr_direct;
u32 last_lost_pid;

EXIT_RECORD;

CALLBACK(lost_select_cpu)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	s32 prev_cpu = ARG(ctx, 1, s32);
	bool idle = 0;
	s32 cpu;

	if (comm_is_starve(p))
		return prev_cpu;
	cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, ARG(ctx, 2, u64), &idle);
	if (idle) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE, 0);
		__sync_fetch_and_add(&nr_direct, 1);
	}
	return cpu;
}

CALLBACK(lost_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);

	if (comm_is_starve(p)) {
		last_lost_pid = p->pid;
		__sync_fetch_and_add(&nr_lost, 1);
		return 0;
	}
	__sync_fetch_and_add(&nr_shared, 1);
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(lost_exit)
{
	struct scx_exit_info *ei = ARG(ctx, 0, struct scx_exit_info *);

	EXIT_RECORD_FILL(ei);
	return 0;
}

SEC(".struct_ops.link")
struct sched_ext_ops lost_ops = {
	.select_cpu = (void *)lost_select_cpu,
	.enqueue = (void *)lost_enqueue,
	.exit = (void *)lost_exit,
	.timeout_ms = 16000,
	.name = "demo_lost",
};

char _license[] SEC("license") = "GPL";
