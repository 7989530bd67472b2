// SPDX-License-Identifier: GPL-2.0-only
/*
 * A program in user space decides on niced tasks: it reads of them in a ring buffer
 * and grants one dispatch for each. When it reads no more, nobody grants anything.
 */
#include "fail.h"

#define WAITING_DSQ 0x41736ULL

enum event_kind { EVENT_RUNNING, EVENT_REQUEST };

struct event {
	u64 at_ns;
	u32 pid;
	enum event_kind kind;
};

struct {
	MAP_UINT(type, MAP_RINGBUF);
	MAP_UINT(max_entries, 8192);
} events SEC(".maps");

/* Written by user space: how many dispatches it has granted so far. */
struct {
	MAP_UINT(type, MAP_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} granted SEC(".maps");

u64 nr_used, nr_lost;

INLINE void tell(const struct task_struct *p, enum event_kind kind)
{
	struct event *event = ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		__sync_fetch_and_add(&nr_lost, 1);
		return;
	}
	event->at_ns = ktime_ns();
	event->pid = (u32)p->pid;
	event->kind = kind;
	ringbuf_submit(event, 0);
}

SELECT_PREVIOUS(ring_select_cpu)

CALLBACK(ring_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 dsq = SHARED_DSQ;

	if (is_kthread(p)) {
		dsq = SCX_DSQ_LOCAL;
	} else if (is_nice(p)) {
		tell(p, EVENT_REQUEST);
		dsq = WAITING_DSQ;
	}
	scx_bpf_dsq_insert(p, dsq, SCX_SLICE, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(ring_dispatch)
{
	u32 zero = 0;
	u64 *grants = map_lookup(&granted, &zero);

	if (grants && *grants > nr_used && scx_bpf_dsq_move_to_local(WAITING_DSQ))
		__sync_fetch_and_add(&nr_used, 1);
	else
		scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

CALLBACK(ring_running)
{
	tell(ARG(ctx, 0, struct task_struct *), EVENT_RUNNING);
	return 0;
}

CALLBACK_SLEEPABLE(ring_init)
{
	s32 err = scx_bpf_create_dsq(SHARED_DSQ, -1);

	return err ?: scx_bpf_create_dsq(WAITING_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops ring_ops = {
	.select_cpu = (void *)ring_select_cpu,
	.enqueue = (void *)ring_enqueue,
	.dispatch = (void *)ring_dispatch,
	.running = (void *)ring_running,
	.init = (void *)ring_init,
	.timeout_ms = 8000,
	.name = "demo_ring",
};

LICENSE;
