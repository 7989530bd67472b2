// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every task has a context of one page in an arena, which is not given back when the
 * task ends. When the arena is full, new tasks have none and are put aside.
 */
#include "fail.h"

#define ASIDE_DSQ 0xa51deULL
#define PAGES 128

struct context {
	s32 pid;
	u64 runs;
};

struct context_ref {
	struct context __arena *context;
};

struct {
	MAP_UINT(type, MAP_ARENA);
	MAP_UINT(map_flags, MAP_F_MMAPABLE);
	MAP_UINT(max_entries, PAGES);
	MAP_ULONG(map_extra, 0x100000000000ULL);
} arena SEC(".maps");

struct {
	MAP_UINT(type, MAP_TASK_STORAGE);
	MAP_UINT(map_flags, MAP_F_NO_PREALLOC);
	MAP_TYPE(key, int);
	MAP_TYPE(value, struct context_ref);
} contexts SEC(".maps");

u64 nr_failed, nr_aside;

SELECT_PREVIOUS(arena_select_cpu)

CALLBACK(arena_enqueue)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct context_ref *ref = task_storage_get(&contexts, p, NULL, 0);
	u64 dsq = SHARED_DSQ;

	/* The verifier knows of the arena by a reference to the map. */
	asm volatile("" ::"r"(&arena));
	if (ref && ref->context) {
		ref->context->runs++;
	} else {
		dsq = ASIDE_DSQ;
		__sync_fetch_and_add(&nr_aside, 1);
	}
	scx_bpf_dsq_insert(p, is_kthread(p) ? SCX_DSQ_LOCAL : dsq, SCX_SLICE, ARG(ctx, 1, u64));
	return 0;
}

CALLBACK(arena_dispatch)
{
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

CALLBACK_SLEEPABLE(arena_init_task)
{
	struct task_struct *p = ARG(ctx, 0, struct task_struct *);
	struct context __arena *context = bpf_arena_alloc_pages(&arena, NULL, 1, -1, 0);
	struct context_ref *ref;

	if (!context) {
		__sync_fetch_and_add(&nr_failed, 1);
		return 0;
	}
	context->pid = p->pid;
	ref = task_storage_get(&contexts, p, NULL, 1);
	if (ref)
		ref->context = context;
	/* The fault: there is no exit_task that would free it. */
	return 0;
}

CALLBACK_SLEEPABLE(arena_init)
{
	s32 err = scx_bpf_create_dsq(SHARED_DSQ, -1);

	return err ?: scx_bpf_create_dsq(ASIDE_DSQ, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops arena_ops = {
	.select_cpu = (void *)arena_select_cpu,
	.enqueue = (void *)arena_enqueue,
	.dispatch = (void *)arena_dispatch,
	.init_task = (void *)arena_init_task,
	.init = (void *)arena_init,
	.timeout_ms = 8000,
	.name = "demo_arena",
};

LICENSE;
