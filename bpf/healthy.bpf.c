// SPDX-License-Identifier: GPL-2.0-only
/*
 * A scheduler without a fault, for what a report says about one: maps of many
 * types, an arena, and several DSQs of which one is ordered by virtual time.
 * What init writes into `still_*` and `table` never changes afterwards, so that
 * values read from memory can be compared exactly; the rest moves.
 */
#include "scx_demo.h"

#define VTIME_DSQ 0x7e57ULL
#define NICED_DSQ 0xf1f0ULL
#define CPU_DSQ 0x1000ULL

#define NR_STILL 40
#define NR_NODES 64
#define MAX_CPUS 64

struct still_value {
	u64 square;
	u32 parts[3];
	char label[12];
};

struct pid_stat {
	u64 runs;
	u64 total_ns;
	u32 last_cpu;
	char comm[16];
};

struct cpu_stat {
	u64 enqueued;
	u64 dispatched;
	u64 ran;
};

struct task_ctx {
	u64 vtime;
	u64 started_ns;
	u64 runs;
	s32 pid;
	u32 created_cpu;
	s32 marker;
};

struct event {
	u64 at_ns;
	u32 pid;
	u32 cpu;
};

enum shape { SHAPE_NONE, SHAPE_ROUND, SHAPE_SQUARE };

struct table_entry {
	enum shape shape;
	_Bool active;
	union {
		u32 word;
		u8 bytes[4];
	} value;
	s32 below_zero;
	u64 low : 12;
	u64 high : 20;
};

struct node {
	u64 index;
	u64 runs;
	u32 last_pid;
	u32 magic;
	struct node __arena *next;
};

struct {
	MAP_UINT(type, MAP_HASH);
	MAP_UINT(max_entries, 64);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct still_value);
} still_hash SEC(".maps");

struct {
	MAP_UINT(type, MAP_ARRAY);
	MAP_UINT(max_entries, 8);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct table_entry);
} table SEC(".maps");

struct {
	MAP_UINT(type, MAP_HASH);
	MAP_UINT(map_flags, MAP_F_NO_PREALLOC);
	MAP_UINT(max_entries, 256);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct pid_stat);
} by_pid SEC(".maps");

struct {
	MAP_UINT(type, MAP_LRU_HASH);
	MAP_UINT(max_entries, 32);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} recent SEC(".maps");

struct {
	MAP_UINT(type, MAP_PERCPU_ARRAY);
	MAP_UINT(max_entries, 2);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct cpu_stat);
} cpu_stats SEC(".maps");

struct {
	MAP_UINT(type, MAP_PERCPU_HASH);
	MAP_UINT(max_entries, 16);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} by_affinity SEC(".maps");

struct {
	MAP_UINT(type, MAP_TASK_STORAGE);
	MAP_UINT(map_flags, MAP_F_NO_PREALLOC);
	MAP_TYPE(key, int);
	MAP_TYPE(value, struct task_ctx);
} task_ctxs SEC(".maps");

/* Nobody reads it: it fills up and stays full. */
struct {
	MAP_UINT(type, MAP_RINGBUF);
	MAP_UINT(max_entries, 16384);
} events SEC(".maps");

struct {
	MAP_UINT(type, MAP_ARENA);
	MAP_UINT(map_flags, MAP_F_MMAPABLE);
	MAP_UINT(max_entries, 64); /* pages */
	/* The address at which user space maps it; guest/init repeats it. */
	MAP_ULONG(map_extra, 0x100000000000ULL);
} arena SEC(".maps");

const volatile u32 slice_us = 5000;
u64 vtime_now;
u64 nr_direct, nr_niced, nr_bound, nr_timed, nr_lost_events;
u32 turn;
s32 start_marker = -20;

/* Globals in the arena: the loader puts them behind the first arena address. */
struct node __arena *__arena list_head;
struct node __arena *__arena nodes[NR_NODES];
u64 __arena nr_arena_hits;

INLINE struct cpu_stat *cpu_stat(void)
{
	u32 zero = 0;

	return map_lookup(&cpu_stats, &zero);
}

CALLBACK(healthy_select_cpu)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	bool idle = 0;
	s32 cpu;

	cpu = scx_bpf_select_cpu_dfl(p, ARG(ctx, 1, s32), ARG(ctx, 2, u64), &idle);
	if (idle) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_us * 1000ULL, 0);
		__sync_fetch_and_add(&nr_direct, 1);
	}
	return cpu;
}

CALLBACK(healthy_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u64 enq_flags = ARG(ctx, 1, u64), slice = slice_us * 1000ULL, vtime = vtime_now;
	struct cpu_stat *stat = cpu_stat();
	struct task_ctx *task;
	u32 allowed = p->nr_cpus_allowed;
	u64 *count;

	if (stat)
		stat->enqueued++;
	count = map_lookup(&by_affinity, &allowed);
	if (count) {
		(*count)++;
	} else {
		u64 one = 1;

		map_update(&by_affinity, &allowed, &one, 0);
	}
	if (allowed == 1) {
		__sync_fetch_and_add(&nr_bound, 1);
		scx_bpf_dsq_insert(p, CPU_DSQ + scx_bpf_task_cpu(p), slice, enq_flags);
		return 0;
	}
	if (p->static_prio > 120) {
		__sync_fetch_and_add(&nr_niced, 1);
		scx_bpf_dsq_insert(p, NICED_DSQ, slice, enq_flags);
		return 0;
	}
	__sync_fetch_and_add(&nr_timed, 1);
	task = task_storage_get(&task_ctxs, p, NULL, 0);
	if (task) {
		/* A long sleep earns at most one slice of advance. */
		if ((long long)(task->vtime - (vtime_now - slice)) < 0)
			task->vtime = vtime_now - slice;
		vtime = task->vtime;
	}
	scx_bpf_dsq_insert_vtime(p, VTIME_DSQ, slice, vtime, enq_flags);
	return 0;
}

CALLBACK(healthy_dispatch)
{
	u64 own = CPU_DSQ + ARG(ctx, 0, s32);
	struct cpu_stat *stat = cpu_stat();
	bool found;

	/* The three kinds of queue take turns, and each stands in for an empty one. */
	switch (__sync_fetch_and_add(&turn, 1) % 3) {
	case 0:
		found = scx_bpf_dsq_move_to_local(own) || scx_bpf_dsq_move_to_local(VTIME_DSQ) ||
			scx_bpf_dsq_move_to_local(NICED_DSQ);
		break;
	case 1:
		found = scx_bpf_dsq_move_to_local(VTIME_DSQ) ||
			scx_bpf_dsq_move_to_local(NICED_DSQ) || scx_bpf_dsq_move_to_local(own);
		break;
	default:
		found = scx_bpf_dsq_move_to_local(NICED_DSQ) || scx_bpf_dsq_move_to_local(own) ||
			scx_bpf_dsq_move_to_local(VTIME_DSQ);
		break;
	}
	if (found && stat)
		stat->dispatched++;
	return 0;
}

INLINE void note_event(u32 pid)
{
	struct event *event = ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		__sync_fetch_and_add(&nr_lost_events, 1);
		return;
	}
	event->at_ns = ktime_ns();
	event->pid = pid;
	event->cpu = this_cpu();
	ringbuf_submit(event, 0);
}

CALLBACK(healthy_running)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct task_ctx *task = task_storage_get(&task_ctxs, p, NULL, 0);
	struct cpu_stat *stat = cpu_stat();
	struct node __arena *node;
	u32 pid = p->pid;
	u64 now = ktime_ns();

	if (stat)
		stat->ran++;
	if (task) {
		task->started_ns = now;
		task->runs++;
		if ((long long)(task->vtime - vtime_now) > 0)
			vtime_now = task->vtime;
	}
	node = nodes[pid % NR_NODES];
	if (node) {
		node->runs++;
		node->last_pid = pid;
		nr_arena_hits++;
	}
	map_update(&recent, &pid, &now, 0);
	note_event(pid);
	return 0;
}

CALLBACK(healthy_stopping)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct task_ctx *task = task_storage_get(&task_ctxs, p, NULL, 0);
	struct pid_stat *stat;
	u32 pid = p->pid;
	u64 used;

	if (!task)
		return 0;
	used = ktime_ns() - task->started_ns;
	task->vtime += used;
	stat = map_lookup(&by_pid, &pid);
	if (stat) {
		stat->runs++;
		stat->total_ns += used;
		stat->last_cpu = this_cpu();
	} else {
		struct pid_stat first = { .runs = 1, .total_ns = used, .last_cpu = this_cpu() };

		read_kernel_str(first.comm, sizeof(first.comm), p->comm);
		map_update(&by_pid, &pid, &first, 0);
	}
	return 0;
}

CALLBACK(healthy_init_task)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct task_ctx *task = task_storage_get(&task_ctxs, p, NULL, 1);

	if (!task)
		return -12; /* ENOMEM */
	task->vtime = vtime_now;
	task->pid = p->pid;
	task->created_cpu = this_cpu();
	task->marker = start_marker;
	return 0;
}

CALLBACK(healthy_exit_task)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	u32 pid = p->pid;

	map_delete(&by_pid, &pid);
	return 0;
}

INLINE s32 fill_arena(void)
{
	struct node __arena *page, *node, *next = NULL;
	u32 half, i;

	/* Two separate allocations, so that the list crosses from one to the other. */
	for (half = 0; half < 2; half++) {
		page = bpf_arena_alloc_pages(&arena, NULL, 1, -1, 0);
		if (!page)
			return -12;
		for (i = 0; i < NR_NODES / 2; i++) {
			node = &page[i];
			node->index = half * (NR_NODES / 2) + i;
			node->magic = 0x5cedca5e;
			node->next = next;
			nodes[half * (NR_NODES / 2) + i] = node;
			next = node;
		}
	}
	list_head = next;
	return 0;
}

CALLBACK_SLEEPABLE(healthy_init)
{
	u32 cpus = scx_bpf_nr_cpu_ids(), i;
	s32 err;

	err = scx_bpf_create_dsq(VTIME_DSQ, -1);
	if (!err)
		err = scx_bpf_create_dsq(NICED_DSQ, -1);
	for (i = 0; i < MAX_CPUS && !err; i++)
		if (i < cpus)
			err = scx_bpf_create_dsq(CPU_DSQ + i, -1);
	if (err)
		return err;

	for (i = 0; i < NR_STILL; i++) {
		struct still_value value = {
			.square = (u64)i * i,
			.parts = { i, i + 1000, ~i },
			.label = { 'n', '0' + i / 10, '0' + i % 10 },
		};
		u32 key = i * 7919;

		map_update(&still_hash, &key, &value, 0);
	}
	for (i = 0; i < 8; i++) {
		/* A copy: of a variable whose address is taken the verifier forgets the value. */
		u32 key = i;
		struct table_entry entry = {
			.shape = i % 3,
			.active = i & 1,
			.value.word = 0x01020304 * i,
			.below_zero = -(s32)i,
			.low = 0xabc + i,
			.high = 0x12345 + i,
		};

		map_update(&table, &key, &entry, 0);
	}
	return fill_arena();
}

SEC(".struct_ops.link")
struct sched_ext_ops healthy_ops = {
	.select_cpu = (void *)healthy_select_cpu,
	.enqueue = (void *)healthy_enqueue,
	.dispatch = (void *)healthy_dispatch,
	.running = (void *)healthy_running,
	.stopping = (void *)healthy_stopping,
	.init_task = (void *)healthy_init_task,
	.exit_task = (void *)healthy_exit_task,
	.init = (void *)healthy_init,
	.timeout_ms = 20000,
	.name = "demo_healthy",
};

char _license[] SEC("license") = "GPL";
