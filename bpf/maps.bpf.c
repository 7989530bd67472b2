// SPDX-License-Identifier: GPL-2.0-only
/*
 * A plain scheduler whose mind is in its maps: a context for each task in the
 * arena, found through task storage, with pointers of which half are kept as
 * numbers. While `frozen` is set it schedules and writes nothing, so that what the
 * guest says about its maps and what is in the memory can be compared exactly.
 * zoo.bpf.c has the map types that a scheduler does not need.
 */
#include "scx_demo.h"

#define QUEUE 0x2007ULL
#define NR_TASKS 512

#define __kptr __attribute__((btf_type_tag("kptr")))

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct bpf_cpumask {
	int usage;
};
#pragma clang attribute pop

/* One for each task, in the arena. */
struct task_arena {
	u64 tid;
	u64 task_raw; /* really a struct task_struct * */
	u64 parent_raw; /* really a struct task_arena __arena * */
	struct task_arena __arena *next;
	u64 runs;
	u64 total_ns;
	s32 pid;
	u32 last_cpu;
	u32 magic;
	char comm[16];
};

/* What task storage says of a task. */
struct task_map_value {
	u64 tid;
	u64 taskc_raw; /* really a struct task_arena __arena * */
	struct task_arena __arena *taskc;
	u64 task_raw;
	struct bpf_cpumask __kptr *allowed;
	u64 started_ns;
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

struct {
	MAP_UINT(type, MAP_TASK_STORAGE);
	MAP_UINT(map_flags, MAP_F_NO_PREALLOC);
	MAP_TYPE(key, int);
	MAP_TYPE(value, struct task_map_value);
} task_map SEC(".maps");

struct {
	MAP_UINT(type, MAP_HASH);
	MAP_UINT(map_flags, MAP_F_NO_PREALLOC);
	MAP_UINT(max_entries, 256);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct pid_stat);
} by_pid SEC(".maps");

struct {
	MAP_UINT(type, MAP_LRU_HASH);
	MAP_UINT(max_entries, 64);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} recent SEC(".maps");

struct {
	MAP_UINT(type, MAP_PERCPU_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct cpu_stat);
} cpu_stats SEC(".maps");

struct {
	MAP_UINT(type, MAP_ARENA);
	MAP_UINT(map_flags, MAP_F_MMAPABLE);
	MAP_UINT(max_entries, 256); /* pages */
	/* guest/init repeats it. */
	MAP_ULONG(map_extra, 0x100000000000ULL);
} arena SEC(".maps");

/* Set by mapkit: the first word of a section of its own. */
volatile u32 frozen SEC(".data.control") = 0;

const volatile u32 slice_us SEC(".rodata.tunables") = 4000;
const volatile char scheduler_name[] = "demo_maps";
u64 last_task_raw, last_taskc_raw;
u64 nr_tasks, nr_wrong, checked;
s32 start_marker = -20;

struct task_arena __arena *__arena task_list;
u64 __arena nr_in_list;
struct task_arena __arena *pool;
u64 pool_raw;
u32 pool_used;

KFUNC struct bpf_cpumask *bpf_cpumask_create(void);
KFUNC void bpf_cpumask_release(struct bpf_cpumask *mask);
KFUNC void bpf_cpumask_set_cpu(u32 cpu, struct bpf_cpumask *mask);
static void *(*const kptr_xchg)(void *slot, void *object) = (void *)194;

/* A program may only follow arena pointers if its instructions name the arena. */
#define USE_ARENA() __asm__ volatile("" ::"r"(&arena))

INLINE struct cpu_stat *cpu_stat(void)
{
	u32 zero = 0;

	return frozen ? NULL : map_lookup(&cpu_stats, &zero);
}

INLINE struct task_arena __arena *task_context(struct task_struct *p)
{
	struct task_map_value *value = task_storage_get(&task_map, p, NULL, 0);

	USE_ARENA();
	return value ? (struct task_arena __arena *)value->taskc_raw : NULL;
}

CALLBACK(maps_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct cpu_stat *stat = cpu_stat();

	if (stat)
		stat->enqueued++;
	scx_bpf_dsq_insert(p, QUEUE, slice_us * 1000ULL, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(maps_dispatch)
{
	struct cpu_stat *stat = cpu_stat();

	if (scx_bpf_dsq_move_to_local(QUEUE) && stat)
		stat->dispatched++;
	return 0;
}

CALLBACK(maps_running)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct cpu_stat *stat = cpu_stat();
	struct task_map_value *value;
	struct task_arena __arena *taskc, *parent;
	u64 now = ktime_ns();
	u32 pid = p->pid;

	USE_ARENA();
	if (frozen)
		return 0;
	if (stat)
		stat->ran++;
	value = task_storage_get(&task_map, p, NULL, 0);
	if (!value)
		return 0;
	value->started_ns = now;
	taskc = (struct task_arena __arena *)value->taskc_raw;
	if (taskc) {
		taskc->runs++;
		taskc->last_cpu = this_cpu();
		last_taskc_raw = (u64)taskc;
		last_task_raw = (u64)p;
		parent = (struct task_arena __arena *)taskc->parent_raw;
		if (parent)
			checked += parent->magic == 0x7a5c;
		if (taskc->task_raw != (u64)p)
			nr_wrong++;
	}
	map_update(&recent, &pid, &now, 0);
	return 0;
}

CALLBACK(maps_stopping)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct task_map_value *value;
	struct task_arena __arena *taskc;
	struct pid_stat *stat;
	u32 pid = p->pid;
	u64 used;

	if (frozen)
		return 0;
	value = task_storage_get(&task_map, p, NULL, 0);
	if (!value || !value->started_ns)
		return 0;
	used = ktime_ns() - value->started_ns;
	taskc = task_context(p);
	if (taskc)
		taskc->total_ns += used;
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

CALLBACK(maps_init_task)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct task_arena __arena *taskc;
	struct task_map_value *value;
	struct bpf_cpumask *mask;
	u32 index, i;

	if (frozen)
		return 0;
	value = task_storage_get(&task_map, p, NULL, 1);
	if (!value)
		return -12; /* ENOMEM */
	index = __sync_fetch_and_add(&pool_used, 1);
	value->tid = index;
	value->task_raw = (u64)p;
	if (index < NR_TASKS && pool) {
		taskc = &pool[index];
		taskc->tid = index;
		taskc->task_raw = (u64)p;
		taskc->parent_raw = index ? (u64)&pool[index / 2] : 0;
		taskc->pid = p->pid;
		taskc->magic = 0x7a5c;
		for (i = 0; i < 16; i++)
			taskc->comm[i] = p->comm[i];
		/* Loses one when two tasks start at once; nobody depends on it. */
		taskc->next = task_list;
		task_list = taskc;
		nr_in_list++;
		value->taskc = taskc;
		value->taskc_raw = (u64)taskc;
	}
	mask = bpf_cpumask_create();
	if (mask) {
		bpf_cpumask_set_cpu(p->nr_cpus_allowed > 1, mask);
		mask = kptr_xchg(&value->allowed, mask);
		if (mask)
			bpf_cpumask_release(mask);
	}
	__sync_fetch_and_add(&nr_tasks, 1);
	return 0;
}

CALLBACK(maps_exit_task)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct task_arena __arena *taskc = task_context(p);
	u32 pid = p->pid;

	if (frozen)
		return 0;
	map_delete(&by_pid, &pid);
	if (taskc)
		taskc->magic = 0xdead;
	return 0;
}

CALLBACK_SLEEPABLE(maps_init)
{
	pool = bpf_arena_alloc_pages(&arena, NULL, (NR_TASKS * sizeof(struct task_arena) + 4095) / 4096, -1, 0);
	if (!pool)
		return -12;
	pool_raw = (u64)pool;
	return scx_bpf_create_dsq(QUEUE, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops maps_ops = {
	.enqueue = (void *)maps_enqueue,
	.dispatch = (void *)maps_dispatch,
	.running = (void *)maps_running,
	.stopping = (void *)maps_stopping,
	.init_task = (void *)maps_init_task,
	.exit_task = (void *)maps_exit_task,
	.init = (void *)maps_init,
	.timeout_ms = 30000,
	.name = "demo_maps",
};

char _license[] SEC("license") = "GPL";
