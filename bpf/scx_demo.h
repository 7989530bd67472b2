/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the demo schedulers need to know of the kernel, and nothing more.
 *
 * Kernel types are declared with only the members that are used. The attribute
 * makes the loader look up each member by name in the running kernel's BTF, so
 * one object fits every kernel that has the names (6.16 to 7.3 at this time).
 */
#ifndef SCX_DEMO_H
#define SCX_DEMO_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef signed int s32;
typedef unsigned long long u64;
typedef _Bool bool;

#define NULL ((void *)0)
#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define KFUNC extern __attribute__((section(".ksyms")))

#define __arena __attribute__((address_space(1)))

/* The loader reads these out of the object's BTF: a number is an array length, a type a pointer. */
#define MAP_UINT(name, value) int (*name)[value]
#define MAP_TYPE(name, kind) kind *name
/* A number too wide for an array length is the value of an enumerator. */
#define MAP_ULONG(name, number) enum { map_ulong_##name = number } name

enum {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_HASH = 5,
	MAP_PERCPU_ARRAY = 6,
	MAP_LRU_HASH = 9,
	MAP_RINGBUF = 27,
	MAP_TASK_STORAGE = 29,
	MAP_ARENA = 33,
};

#define MAP_F_NO_PREALLOC (1 << 0)
#define MAP_F_MMAPABLE (1 << 10)

#define SCX_DSQ_LOCAL 0x8000000000000002ULL
#define SCX_SLICE 5000000ULL

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct cpumask;
struct cgroup;

struct task_struct {
	int pid;
	int tgid;
	int static_prio;
	int nr_cpus_allowed;
	char comm[16];
};

enum scx_exit_kind {
	SCX_EXIT_NONE = 0,
};

struct scx_exit_info {
	enum scx_exit_kind kind;
	long long exit_code;
	const char *reason;
	char *msg;
	char *dump;
};

struct scx_init_task_args {
	bool fork;
};

/* The loader matches members by name and leaves out what a kernel does not have only if it is zero. */
struct sched_ext_ops {
	s32 (*select_cpu)(struct task_struct *p, s32 prev_cpu, u64 wake_flags);
	void (*enqueue)(struct task_struct *p, u64 enq_flags);
	void (*dispatch)(s32 cpu, struct task_struct *prev);
	void (*running)(struct task_struct *p);
	void (*stopping)(struct task_struct *p, bool runnable);
	s32 (*init_task)(struct task_struct *p, struct scx_init_task_args *args);
	void (*exit_task)(struct task_struct *p, void *args);
	s32 (*init)(void);
	void (*exit)(struct scx_exit_info *ei);
	u64 flags;
	u32 timeout_ms;
	char name[128];
};

#pragma clang attribute pop

/* kfuncs whose names are the same in every supported kernel */
KFUNC s32 scx_bpf_create_dsq(u64 dsq_id, s32 node);
KFUNC void scx_bpf_dsq_insert(struct task_struct *p, u64 dsq_id, u64 slice, u64 enq_flags);
KFUNC void scx_bpf_dsq_insert_vtime(struct task_struct *p, u64 dsq_id, u64 slice, u64 vtime,
				    u64 enq_flags);
KFUNC bool scx_bpf_dsq_move_to_local(u64 dsq_id);
KFUNC s32 scx_bpf_dsq_nr_queued(u64 dsq_id);
KFUNC s32 scx_bpf_select_cpu_dfl(struct task_struct *p, s32 prev_cpu, u64 wake_flags,
				 bool *is_idle);
KFUNC s32 scx_bpf_task_cpu(const struct task_struct *p);
KFUNC void scx_bpf_kick_cpu(s32 cpu, u64 flags);
KFUNC void scx_bpf_error_bstr(char *fmt, unsigned long long *data, u32 data__sz);

KFUNC u32 scx_bpf_nr_cpu_ids(void);
KFUNC void __arena *bpf_arena_alloc_pages(void *map, void __arena *addr__ign, u32 page_cnt,
					  int node_id, u64 flags);

/* BPF helpers, by their number in the kernel's stable interface */
static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const map_update)(void *map, const void *key, const void *value,
				u64 flags) = (void *)2;
static long (*const map_delete)(void *map, const void *key) = (void *)3;
static u64 (*const ktime_ns)(void) = (void *)5;
static u32 (*const this_cpu)(void) = (void *)8;
static long (*const read_kernel_str)(void *dst, u32 size, const void *src) = (void *)115;
static void *(*const ringbuf_reserve)(void *ringbuf, u64 size, u64 flags) = (void *)131;
static void (*const ringbuf_submit)(void *record, u64 flags) = (void *)132;
static void *(*const task_storage_get)(void *map, struct task_struct *p, void *value,
				       u64 flags) = (void *)156;
static long (*const task_storage_delete)(void *map, struct task_struct *p) = (void *)157;

/* A callback gets its arguments as an array of u64. */
#define ARG(ctx, index, kind) ((kind)(ctx)[index])
#define CALLBACK(name) SEC("struct_ops/" #name) int name(unsigned long long *ctx)
#define CALLBACK_SLEEPABLE(name) SEC("struct_ops.s/" #name) int name(unsigned long long *ctx)

/*
 * Tells the kernel to throw the scheduler out. The arguments travel as an array of
 * u64. The format is not const: the verifier asks for writable memory there.
 */
#define SCX_ERROR(format, ...)                                                     \
	do {                                                                       \
		static char fmt__[] = format;                                      \
		unsigned long long args__[] = { __VA_ARGS__ };                     \
		scx_bpf_error_bstr(fmt__, args__, sizeof(args__));         \
	} while (0)

/*
 * The comparisons are spelt out: a comm is read through a trusted pointer, which a
 * helper that takes a string could not do without copying it first.
 */
INLINE bool comm_is_starve(const struct task_struct *p)
{
	return p->comm[0] == 's' && p->comm[1] == 't' && p->comm[2] == 'a' && p->comm[3] == 'r' &&
	       p->comm[4] == 'v' && p->comm[5] == 'e';
}

INLINE bool comm_is_trip(const struct task_struct *p)
{
	return p->comm[0] == 't' && p->comm[1] == 'r' && p->comm[2] == 'i' && p->comm[3] == 'p';
}

/*
 * The kernel's own account of an ejection, kept in a map of its own (.bss.exit):
 * read in the guest after the ejection it is the truth that a report's exit
 * section is compared with.
 */
struct exit_record {
	s32 kind;
	s32 filled;
	long long exit_code;
	char reason[128];
	char msg[1024];
	char dump[32768];
};

#define EXIT_RECORD struct exit_record exit_record SEC(".bss.exit")

#define EXIT_RECORD_FILL(ei)                                                                \
	do {                                                                                \
		exit_record.kind = (ei)->kind;                                              \
		exit_record.exit_code = (ei)->exit_code;                                    \
		read_kernel_str(exit_record.reason, sizeof(exit_record.reason), (ei)->reason); \
		read_kernel_str(exit_record.msg, sizeof(exit_record.msg), (ei)->msg);       \
		read_kernel_str(exit_record.dump, sizeof(exit_record.dump), (ei)->dump);    \
		exit_record.filled = 1;                                                     \
	} while (0)

#endif
