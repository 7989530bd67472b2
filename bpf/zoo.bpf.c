// SPDX-License-Identifier: GPL-2.0-only
/*
 * One map of every type, and nothing that runs by itself: guest/mapkit.c fills the
 * maps from user space, and calls the programs here for what only BPF can write
 * (an arena, ring buffers, kptrs, lists, trees, timers, stack traces). Once filled
 * nothing changes any more, so that a core and `bpftool map dump` can be compared
 * exactly. docs/maps.md lists what is in each.
 */
#include "zoo.h"

#define __kptr __attribute__((btf_type_tag("kptr")))
#define __kptr_untrusted __attribute__((btf_type_tag("kptr_untrusted")))
#define __percpu_kptr __attribute__((btf_type_tag("percpu_kptr")))
#define __uptr __attribute__((btf_type_tag("uptr")))
#define __contains(type, node) __attribute__((btf_decl_tag("contains:" #type ":" #node)))
#define local_type_id(type) __builtin_btf_type_id(*(type *)0, 0)
#define kernel_type_id(type) __builtin_btf_type_id(*(type *)0, 1)
#define container_of(pointer, type, member) ((type *)((void *)(pointer) - __builtin_offsetof(type, member)))

/* An inner map, or a program, as the initial value of a slot. */
#define MAP_VALUES(kind) typeof(kind) *values[]

/* --- what the kernel recognises by name in a value */

struct bpf_spin_lock { u32 val; };
struct bpf_timer { u64 __opaque[2]; } __attribute__((aligned(8)));
struct bpf_wq { u64 __opaque[2]; } __attribute__((aligned(8)));
struct bpf_list_head { u64 __opaque[2]; } __attribute__((aligned(8)));
struct bpf_list_node { u64 __opaque[3]; } __attribute__((aligned(8)));
struct bpf_rb_root { u64 __opaque[2]; } __attribute__((aligned(8)));
struct bpf_rb_node { u64 __opaque[4]; } __attribute__((aligned(8)));
struct bpf_refcount { u32 __opaque[1]; } __attribute__((aligned(4)));
struct bpf_res_spin_lock { u32 val; };
struct bpf_task_work { u64 __opaque; } __attribute__((aligned(8)));
struct bpf_dynptr { u64 __opaque[2]; } __attribute__((aligned(8)));
struct bpf_raw_tracepoint_args { u64 args[0]; };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct bpf_cpumask { int usage; };
struct pt_regs { unsigned long orig_ax; };
#pragma clang attribute pop

/* --- the maps */

#define PLAIN_MAP(name, number, entries, key_type, value_type) \
	struct {                                               \
		MAP_UINT(type, number);                        \
		MAP_UINT(max_entries, entries);                \
		MAP_TYPE(key, key_type);                       \
		MAP_TYPE(value, value_type);                   \
	} name SEC(".maps")
#define FLAG_MAP(name, number, flags, entries, key_type, value_type) \
	struct {                                                     \
		MAP_UINT(type, number);                              \
		MAP_UINT(map_flags, flags);                          \
		MAP_UINT(max_entries, entries);                      \
		MAP_TYPE(key, key_type);                             \
		MAP_TYPE(value, value_type);                         \
	} name SEC(".maps")
#define SIZE_MAP(name, number, flags, entries, key_bytes, value_bytes) \
	struct {                                                       \
		MAP_UINT(type, number);                                \
		MAP_UINT(map_flags, flags);                            \
		MAP_UINT(max_entries, entries);                        \
		MAP_UINT(key_size, key_bytes);                         \
		MAP_UINT(value_size, value_bytes);                     \
	} name SEC(".maps")

typedef char name_t[16];
typedef u8 three_t[3];

PLAIN_MAP(rich_array, 2, 6, u32, struct rich);
PLAIN_MAP(float_array, 2, 3, u32, struct measure);
PLAIN_MAP(odd_array, 2, 7, u32, struct odd);
FLAG_MAP(mmap_array, 2, 1 << 10, 10, u32, struct small);
PLAIN_MAP(pc_array, 6, 3, u32, struct counter);
PLAIN_MAP(hash_pre, 1, 64, u32, struct rich);
FLAG_MAP(hash_dyn, 1, 1, 64, name_t, struct small);
FLAG_MAP(hash_tiny, 1, 1, 4, struct flow, three_t);
PLAIN_MAP(lru, 9, 64, u64, struct small);
FLAG_MAP(lru_own, 9, 1 << 1, 64, u32, u64);
PLAIN_MAP(pc_hash, 5, 16, u32, struct counter);
FLAG_MAP(pc_hash_dyn, 5, 1, 16, u32, three_t);
PLAIN_MAP(lru_pc_hash, 10, 16, u32, struct counter);
/* Only their types are used: mapkit makes maps of newer types with them. */
PLAIN_MAP(like_rhash, 1, 64, u32, struct small);

PLAIN_MAP(inner_hash_a, 1, 8, u32, struct small);
PLAIN_MAP(inner_hash_b, 1, 8, u32, struct small);
PLAIN_MAP(inner_array_a, 2, 3, u32, struct odd);
PLAIN_MAP(inner_array_b, 2, 3, u32, struct odd);

struct {
	MAP_UINT(type, 13);
	MAP_UINT(max_entries, 8);
	MAP_TYPE(key, u32);
	MAP_VALUES(inner_hash_a);
} hash_of_maps SEC(".maps");

struct {
	MAP_UINT(type, 12);
	MAP_UINT(max_entries, 4);
	MAP_TYPE(key, u32);
	MAP_VALUES(inner_array_a);
} array_of_maps SEC(".maps") = {
	.values = { [0] = (void *)&inner_array_a, [2] = (void *)&inner_array_b },
};

struct shared { /* lives in a user page that the kernel has pinned */
	u64 magic;
	char text[24];
};

struct uptr_value {
	struct shared __uptr *shared;
	u32 number;
};

FLAG_MAP(task_store, 29, 1, 0, int, struct note);
FLAG_MAP(uptr_store, 29, 1, 0, int, struct uptr_value);
FLAG_MAP(cgrp_store, 32, 1, 0, int, struct note);
FLAG_MAP(inode_store, 28, 1, 0, int, struct note);
FLAG_MAP(sk_store, 24, 1, 0, int, struct note);

struct bpf_cgroup_storage_key {
	u64 cgroup_inode_id;
	u32 attach_type;
};
PLAIN_MAP(cg_store, 19, 0, struct bpf_cgroup_storage_key, struct note);
PLAIN_MAP(pc_cg_store, 21, 0, struct bpf_cgroup_storage_key, struct counter);
/* The other form: one storage for a cgroup, whatever is attached to it. */
PLAIN_MAP(cg_shared, 19, 0, u64, struct note);

struct {
	MAP_UINT(type, MAP_ARENA);
	MAP_UINT(map_flags, MAP_F_MMAPABLE | 1 << 17); /* a touch allocates nothing, it faults */
	MAP_UINT(max_entries, ZOO_ARENA_PAGES);
	MAP_ULONG(map_extra, ZOO_ARENA);
} zoo_arena SEC(".maps");

struct {
	MAP_UINT(type, 27);
	MAP_UINT(max_entries, 4096);
} ring SEC(".maps");
struct {
	MAP_UINT(type, 27);
	MAP_UINT(max_entries, 8192);
} ring_busy SEC(".maps");
struct {
	MAP_UINT(type, 31);
	MAP_UINT(max_entries, 4096);
} user_ring SEC(".maps");

#define DEPTH 24
SIZE_MAP(stacks, 7, 0, 64, 4, DEPTH * 8);
SIZE_MAP(stacks_build, 7, 1 << 5, 16, 4, DEPTH * 32);

SIZE_MAP(prog_array, 3, 0, 4, 4, 4);
SIZE_MAP(perf_events, 4, 0, 8, 4, 4);
SIZE_MAP(cgroup_array, 8, 0, 4, 4, 4);

struct {
	MAP_UINT(type, 22);
	MAP_UINT(max_entries, 8);
	MAP_TYPE(value, struct small);
} queue SEC(".maps");
struct {
	MAP_UINT(type, 23);
	MAP_UINT(max_entries, 8);
	MAP_TYPE(value, struct small);
} stack SEC(".maps");
struct {
	MAP_UINT(type, 30);
	MAP_UINT(max_entries, 32);
	enum { bloom_functions = 4 } map_extra;
	MAP_TYPE(value, u64);
} bloom SEC(".maps");
FLAG_MAP(lpm, 11, 1, 32, struct lpm4, struct route);

SIZE_MAP(devmap, 14, 0, 4, 4, 8);
SIZE_MAP(devmap_hash, 25, 0, 4, 4, 4);
SIZE_MAP(cpumap, 16, 0, 4, 4, 8);
SIZE_MAP(xskmap, 17, 0, 4, 4, 4);
SIZE_MAP(sockmap, 15, 0, 4, 4, 8);
SIZE_MAP(sockhash, 18, 0, 4, 8, 8);
SIZE_MAP(reuseport, 20, 0, 4, 4, 8);

struct percpu_part {
	u64 total;
	u32 cpu;
};

struct own {
	u64 number;
	struct bpf_refcount references;
	char text[8];
};

/* Everything that a look-up from user space hides, but for lists and trees. */
struct special {
	u32 number;
	struct bpf_spin_lock lock;
	struct bpf_timer timer;
	struct bpf_wq wq;
	struct task_struct __kptr *task;
	struct task_struct __kptr_untrusted *task_untrusted;
	struct bpf_cpumask __kptr *mask;
	struct own __kptr *own;
	struct percpu_part __percpu_kptr *parts;
	u32 behind;
};

PLAIN_MAP(special_array, 2, 2, u32, struct special);
PLAIN_MAP(special_hash, 1, 4, u32, struct special);

/* What newer kernels know by name too (a lock 6.15, task work 6.18); to older ones these are plain structs. */
struct newer {
	u32 number;
	struct bpf_res_spin_lock lock;
	struct bpf_task_work work;
	u64 behind;
};

PLAIN_MAP(newer_array, 2, 2, u32, struct newer);

struct list_item {
	u64 number;
	struct bpf_list_node node;
	char text[8];
};

struct tree_item {
	struct bpf_rb_node node;
	u64 key;
	u32 square;
};

struct graph {
	u32 number;
	struct bpf_spin_lock lock;
	struct bpf_list_head list __contains(list_item, node);
	struct bpf_rb_root tree __contains(tree_item, node);
};

PLAIN_MAP(graph_array, 2, 2, u32, struct graph);

/* --- global variables, in the usual sections and in others */

struct thing {
	u64 id;
	struct thing __arena *next;
	u64 peer_raw; /* really a struct thing __arena * */
	u64 task_raw; /* really a struct task_struct * */
	u64 value_raw; /* really a struct small * in mmap_array */
	u64 plain; /* really a number */
	s32 squares[3];
	u32 magic;
	char label[16];
};

const volatile u32 depth = DEPTH;
const volatile char title[] = "the zoo";
const volatile u64 primes[5] SEC(".rodata.baz") = { 2, 3, 5, 7, 11 };
s32 below_zero = -7;
struct small first_small = { .square = 81, .parts = { 9, 10 }, .label = "nine" };
u32 answer_value SEC(".data.foo") = 42;
struct small *small_pointer SEC(".data.foo") = NULL;
u64 bar_count SEC(".bss.bar");
/* Hidden, or the loader would make the section mappable, which what holds a lock cannot be. */
#define HIDDEN __attribute__((visibility("hidden")))
HIDDEN struct bpf_spin_lock global_lock SEC(".bss.private");
HIDDEN struct bpf_list_head global_list SEC(".bss.private") __contains(list_item, node);
struct rich *rich_pointer;
struct thing __arena *thing_head;
u64 thing_head_raw;
u64 task_raw;
s32 kernel_stack, user_stack, build_stack, switch_stack;
u64 want_pid;
u32 want_switch;
/* A variable of the type, or the object has no more of it than its name: no pinned page then. */
struct shared last_shared;
u64 nr_drained, visits, pid_sum;
callback_t some_function;
static u32 hidden_counter;

/* --- kfuncs and helpers beyond scx_demo.h */

KFUNC struct task_struct *bpf_task_from_pid(s32 pid);
KFUNC void bpf_task_release(struct task_struct *p);
KFUNC struct bpf_cpumask *bpf_cpumask_create(void);
KFUNC void bpf_cpumask_release(struct bpf_cpumask *mask);
KFUNC void bpf_cpumask_set_cpu(u32 cpu, struct bpf_cpumask *mask);
KFUNC void *bpf_obj_new_impl(u64 type, void *meta);
KFUNC void bpf_obj_drop_impl(void *object, void *meta);
KFUNC void *bpf_percpu_obj_new_impl(u64 type, void *meta);
KFUNC void bpf_percpu_obj_drop_impl(void *object, void *meta);
KFUNC int bpf_list_push_back_impl(struct bpf_list_head *head, struct bpf_list_node *node, void *meta,
				  u64 offset);
KFUNC int bpf_rbtree_add_impl(struct bpf_rb_root *root, struct bpf_rb_node *node,
			      bool(less)(struct bpf_rb_node *a, const struct bpf_rb_node *b), void *meta,
			      u64 offset);
KFUNC void bpf_rcu_read_lock(void);
KFUNC void bpf_rcu_read_unlock(void);
KFUNC void *bpf_rdonly_cast(const void *object, u32 type);
KFUNC int bpf_wq_init(struct bpf_wq *wq, void *map, u32 flags);

static long (*const tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static u64 (*const pid_tgid)(void) = (void *)14;
static s32 (*const get_stackid)(void *ctx, void *map, u64 flags) = (void *)27;
static void *(*const cgroup_storage)(void *map, u64 flags) = (void *)81;
static long (*const spin_lock)(struct bpf_spin_lock *lock) = (void *)93;
static long (*const spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;
static void (*const ringbuf_discard)(void *record, u64 flags) = (void *)133;
static struct task_struct *(*const current_task)(void) = (void *)158;
static long (*const copy_from_user)(void *dst, u32 size, const void *src) = (void *)148;
static void *(*const per_cpu)(const void *percpu, u32 cpu) = (void *)153;
static long (*const timer_init)(struct bpf_timer *timer, void *map, u64 flags) = (void *)169;
static long (*const timer_callback)(struct bpf_timer *timer, void *callback) = (void *)170;
static long (*const timer_start)(struct bpf_timer *timer, u64 ns, u64 flags) = (void *)171;
static void *(*const kptr_xchg)(void *slot, void *object) = (void *)194;
static long (*const user_ring_drain)(void *map, void *callback, void *ctx, u64 flags) = (void *)209;
static void *(*const dynptr_data)(const struct bpf_dynptr *from, u32 offset, u32 length) = (void *)203;
static long (*const dynptr_read)(void *dst, u32 length, const struct bpf_dynptr *from, u32 offset,
				 u64 flags) = (void *)201;

/* --- what fills */

/* Four allocations with gaps between, at addresses that are known. */
INLINE struct thing __arena *place(u32 page, u32 pages)
{
	return bpf_arena_alloc_pages(&zoo_arena, (void __arena *)(ZOO_ARENA + page * 4096ULL), pages, -1, 0);
}

SEC("syscall")
int fill_arena(struct order *order)
{
	struct thing __arena *block[4], *thing, *before = NULL;
	struct task_struct *task;
	struct small *value;
	u64 task_address = 0;
	u32 i, zero = 3;

	block[0] = place(3, 1);
	block[1] = place(17, 2);
	block[2] = place(600, 1);
	block[3] = place(1023, 1);
	if (!block[0] || !block[1] || !block[2] || !block[3])
		return 1;
	value = map_lookup(&mmap_array, &zero);
	task = bpf_task_from_pid(order->argument);
	if (task) {
		task_address = (u64)task;
		bpf_task_release(task);
	}
	for (i = 0; i < NR_THINGS; i++) {
		switch (i % 4) {
		case 0: thing = block[0]; break;
		case 1: thing = block[1]; break;
		case 2: thing = block[2]; break;
		default: thing = block[3]; break;
		}
		thing = &thing[i / 4];
		thing->id = i;
		thing->next = before;
		thing->peer_raw = (u64)before;
		thing->task_raw = i % 3 ? task_address : 0;
		thing->value_raw = (u64)value;
		thing->plain = 0x1111111111111111ULL * (i % 16);
		thing->squares[0] = i * i;
		thing->squares[1] = -(s32)i;
		thing->squares[2] = 0;
		thing->magic = 0xa5e4a000 + i;
		thing->label[0] = 't';
		thing->label[1] = '0' + i / 10;
		thing->label[2] = '0' + i % 10;
		before = thing;
	}
	/* In the second page of the block of two. */
	block[1][40].id = 999;
	thing_head = before;
	thing_head_raw = (u64)before;
	task_raw = task_address;
	small_pointer = value;
	zero = 2;
	rich_pointer = map_lookup(&rich_array, &zero);
	order->answer = (s64)task_address;
	return 0;
}

/* Follows the pointers that are kept as numbers: the evidence of what they are. */
SEC("syscall")
int walk_arena(struct order *order)
{
	struct thing __arena *thing = (struct thing __arena *)thing_head_raw;
	struct task_struct *task;
	u32 i;

	/* The loader must see that the program belongs to the arena. */
	__asm__ volatile("" ::"r"(&zoo_arena));
	for (i = 0; i < NR_THINGS && thing; i++) {
		visits++;
		if (thing->task_raw) {
			task = bpf_rdonly_cast((void *)thing->task_raw, kernel_type_id(struct task_struct));
			pid_sum += task->pid;
		}
		thing = (struct thing __arena *)thing->peer_raw;
	}
	order->answer = i;
	return 0;
}

/* what: how many; argument: number of the first; every seventh is discarded */
SEC("syscall")
int fill_ring(struct order *order)
{
	struct record *record;
	u64 count = order->what;
	u32 i, lost = 0;

	for (i = 0; i < 200 && i < count; i++) {
		u32 number = order->argument + i;

		/* Two lengths, so that one record lies across the end of the data. */
		record = number % 3 ? ringbuf_reserve(&ring, sizeof(*record), 0) :
				      ringbuf_reserve(&ring, sizeof(*record) + 13, 0);
		if (!record) {
			lost++;
			continue;
		}
		record->number = number;
		record->kind = number % 5;
		record->length = sizeof(*record) + (number % 3 ? 0 : 13);
		__builtin_memcpy(record->text, "record of a ring", 16);
		if (number % 7 == 0)
			ringbuf_discard(record, 0);
		else
			ringbuf_submit(record, 0);
	}
	order->answer = lost;
	return 0;
}

/* Never comes back: the address is one whose page user space does not deliver. */
SEC("syscall")
int hold_ring(struct order *order)
{
	struct record *held, *after;
	u32 i, word = 0;

	for (i = 0; i < 3; i++) {
		after = ringbuf_reserve(&ring_busy, sizeof(*after), 0);
		if (!after)
			return 1;
		after->number = i;
		after->kind = 1;
		ringbuf_submit(after, 1 /* no wake-up */);
	}
	held = ringbuf_reserve(&ring_busy, 100, 0);
	if (!held)
		return 1;
	held->number = 0xb5b5;
	__builtin_memcpy(held->text, "not finished    ", 16);
	after = ringbuf_reserve(&ring_busy, sizeof(*after), 0);
	if (after) {
		after->number = 4;
		after->kind = 2;
		ringbuf_submit(after, 1);
	}
	copy_from_user(&word, sizeof(word), (void *)order->user_address);
	ringbuf_submit(held, 0);
	return 0;
}

static long drained(struct bpf_dynptr *from, void *ctx)
{
	nr_drained++;
	return nr_drained >= 10; /* the rest stays */
}

SEC("syscall")
int drain_user_ring(struct order *order)
{
	order->answer = user_ring_drain(&user_ring, drained, NULL, 0);
	return 0;
}

static int on_timer(void *map, u32 *key, struct special *value)
{
	value->behind++;
	return 0;
}

INLINE int fill_one_special(struct special *value, void *map, u32 number, s32 pid)
{
	struct task_struct *task;
	struct bpf_cpumask *mask;
	struct percpu_part *parts, *part;
	struct own *own;
	u32 cpu;

	value->number = number;
	value->behind = number + 1;
	task = bpf_task_from_pid(pid);
	if (!task)
		return 2;
	value->task_untrusted = task;
	task = kptr_xchg(&value->task, task);
	if (task)
		bpf_task_release(task);
	mask = bpf_cpumask_create();
	if (!mask)
		return 3;
	bpf_cpumask_set_cpu(1, mask);
	mask = kptr_xchg(&value->mask, mask);
	if (mask)
		bpf_cpumask_release(mask);
	own = bpf_obj_new_impl(local_type_id(struct own), NULL);
	if (!own)
		return 4;
	own->number = 0x600d + number;
	own->text[0] = 'o';
	own->text[1] = 'w';
	own->text[2] = 'n';
	own = kptr_xchg(&value->own, own);
	if (own)
		bpf_obj_drop_impl(own, NULL);
	parts = bpf_percpu_obj_new_impl(local_type_id(struct percpu_part), NULL);
	if (!parts)
		return 5;
	parts = kptr_xchg(&value->parts, parts);
	if (parts)
		bpf_percpu_obj_drop_impl(parts, NULL);
	bpf_rcu_read_lock();
	parts = value->parts;
	if (parts)
		for (cpu = 0; cpu < 2; cpu++) {
			part = per_cpu(parts, cpu);
			if (part) {
				part->total = 1000 * number + cpu;
				part->cpu = cpu;
			}
		}
	bpf_rcu_read_unlock();
	return 0;
}

SEC("syscall")
int fill_special(struct order *order)
{
	struct special *value;
	u32 key = 1;
	int err;

	value = map_lookup(&special_array, &key);
	if (!value)
		return 1;
	err = fill_one_special(value, &special_array, 1, order->argument);
	if (err)
		return err;
	if (timer_init(&value->timer, &special_array, 1 /* CLOCK_MONOTONIC */))
		return 6;
	timer_callback(&value->timer, on_timer);
	timer_start(&value->timer, 3600ULL * 1000000000, 0);
	bpf_wq_init(&value->wq, &special_array, 0);
	key = 77;
	value = map_lookup(&special_hash, &key);
	if (!value)
		return 7;
	err = fill_one_special(value, &special_hash, 77, order->argument);
	if (err)
		return err;
	if (timer_init(&value->timer, &special_hash, 1))
		return 8;
	return 0;
}

static bool by_key(struct bpf_rb_node *a, const struct bpf_rb_node *b)
{
	return container_of(a, struct tree_item, node)->key < container_of(b, struct tree_item, node)->key;
}

SEC("syscall")
int fill_graph(struct order *order)
{
	struct list_item *item;
	struct tree_item *leaf;
	struct graph *graph;
	u32 key = 1, i;

	graph = map_lookup(&graph_array, &key);
	if (!graph)
		return 1;
	graph->number = 0x9a9a;
	for (i = 0; i < 5; i++) {
		item = bpf_obj_new_impl(local_type_id(struct list_item), NULL);
		if (!item)
			return 2;
		item->number = 100 + i;
		item->text[0] = 'L';
		item->text[1] = '0' + i;
		spin_lock(&graph->lock);
		bpf_list_push_back_impl(&graph->list, &item->node, NULL, 0);
		spin_unlock(&graph->lock);
		leaf = bpf_obj_new_impl(local_type_id(struct tree_item), NULL);
		if (!leaf)
			return 3;
		leaf->key = (i * 7 + 3) % 11;
		leaf->square = leaf->key * leaf->key;
		spin_lock(&graph->lock);
		bpf_rbtree_add_impl(&graph->tree, &leaf->node, by_key, NULL, 0);
		spin_unlock(&graph->lock);
	}
	for (i = 0; i < 2; i++) {
		item = bpf_obj_new_impl(local_type_id(struct list_item), NULL);
		if (!item)
			return 4;
		item->number = 200 + i;
		spin_lock(&global_lock);
		bpf_list_push_back_impl(&global_list, &item->node, NULL, 0);
		spin_unlock(&global_lock);
	}
	return 0;
}

/* argument: the process whose stacks are wanted, 0 for none; what: 1 for its next switch as well */
SEC("syscall")
int want_stacks(struct order *order)
{
	want_pid = order->argument;
	want_switch = order->what;
	some_function = (callback_t)order->user_address;
	bar_count = 3 + hidden_counter++;
	answer_value = 4242 + depth + primes[4] + title[0];
	below_zero--;
	first_small.parts[1]++;
	return 0;
}

SEC("raw_tp/sys_enter")
int on_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	if (!want_pid || pid_tgid() >> 32 != want_pid || ctx->args[1] != 110 /* getppid */)
		return 0;
	kernel_stack = get_stackid(ctx, &stacks, 0);
	user_stack = get_stackid(ctx, &stacks, 1 << 8);
	build_stack = get_stackid(ctx, &stacks_build, 1 << 8);
	return 0;
}

SEC("raw_tp/sched_switch")
int on_switch(struct bpf_raw_tracepoint_args *ctx)
{
	if (!want_switch || pid_tgid() >> 32 != want_pid)
		return 0;
	want_switch = 0;
	switch_stack = get_stackid(ctx, &stacks, 0);
	return 0;
}

u64 nr_leaves;

SEC("tc")
int tail_leaf(void *ctx)
{
	nr_leaves++;
	return 5;
}

/* Before 7.0 or so a program that may sleep cannot use this map. */
SEC("tc")
int tail_root(void *ctx)
{
	tail_call(ctx, &prog_array, 2);
	return 6;
}

SEC("xdp/devmap")
int at_device(void *ctx)
{
	return 2; /* XDP_PASS */
}

SEC("xdp/cpumap")
int at_cpu(void *ctx)
{
	return 2;
}

SEC("cgroup/sock_create")
int on_sock(void *ctx)
{
	struct note *note = cgroup_storage(&cg_store, 0);
	struct counter *counter = cgroup_storage(&pc_cg_store, 0);

	note->number++;
	counter->hits++;
	return 1;
}

SEC("cgroup/sock_release")
int on_sock_gone(void *ctx)
{
	struct note *note = cgroup_storage(&cg_shared, 0);

	note->number++;
	return 1;
}

/* So that each of the other maps belongs to a program too. */
#define TOUCH(map)                              \
	do {                                    \
		u32 key__ = 0;                  \
		if (map_lookup(&(map), &key__)) \
			sum++;                  \
	} while (0)

SEC("syscall")
int look_around(struct order *order)
{
	u32 sum = 0;
	struct uptr_value *mine = task_storage_get(&uptr_store, current_task(), NULL, 0);

	if (mine && mine->shared)
		last_shared.magic = mine->shared->magic;
	TOUCH(odd_array);
	TOUCH(pc_array);
	TOUCH(hash_pre);
	TOUCH(pc_hash);
	TOUCH(lru_own);
	order->answer = sum;
	return 0;
}

char _license[] SEC("license") = "GPL";
