// SPDX-License-Identifier: GPL-2.0-only
/*
 * Watches a scheduler end, from inside the guest. At the instant of an error exit, before the
 * kernel writes its dump and long before it takes the scheduler apart, it keeps the scheduler's
 * state, and sets a latch that the host can see in the guest's memory.
 *
 * Names, types and layout of the variables are those that readers of failure dumps know
 * (docs/report-format.md); what is not theirs is named probe_*. They find the variables by name
 * through the types of the map `probe_bp.bss`.
 *
 * Both hooks are functions that the kernel calls through a pointer with one argument, so they
 * exist under their names in every build, 6.16 to 7.3:
 *   scx_error_irq_workfn (to 7.0), scx_disable_irq_workfn (7.1 and later): interrupt work that
 *     is raised right behind the store of the exit kind, on the same CPU; to 7.0 only by errors
 *   scx_disable_workfn: the work that takes a scheduler apart, for whatever reason
 */
#include "scx_demo.h"

typedef signed long long s64;

#define MAX_CPUS 256
#define SLOT_BYTES 128

/* SCX_EXIT_ERROR, the same in every kernel: this kind and all above it are failures. */
#define FIRST_ERROR 1024

enum slot {
	PROBE_COUNT,
	KPROBE_RETURNS,
	META_MISS,
	RINGBUF_DROPS,
	TIMELINE_COUNT,
	TIMELINE_DROPS,
	PI_COUNT,
	PI_ORPHAN_FEXITS,
	PI_CLASS_CHANGE_COUNT,
	PI_DROPS,
	LOCK_CONTEND_COUNT,
	LOCK_CONTEND_DROPS,
	PREEMPT_DISABLE_COUNT,
	PREEMPT_ENABLE_COUNT,
	TRIGGER_COUNT,
	NR_SLOTS,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

struct irq_work {
	void *func;
};

struct kthread_work {
	void *func;
};

struct scx_event_stats {
	s64 SCX_EV_SELECT_CPU_FALLBACK;
	s64 SCX_EV_DISPATCH_LOCAL_DSQ_OFFLINE;
	s64 SCX_EV_DISPATCH_KEEP_LAST;
	s64 SCX_EV_ENQ_SKIP_EXITING;
	s64 SCX_EV_ENQ_SKIP_MIGRATION_DISABLED;
	s64 SCX_EV_REENQ_IMMED;
	s64 SCX_EV_REENQ_LOCAL_REPEAT; /* 7.1 and 7.2 */
	s64 SCX_EV_REENQ_REPEAT; /* 7.3 */
	s64 SCX_EV_REFILL_SLICE_DFL;
	s64 SCX_EV_BYPASS_DURATION;
	s64 SCX_EV_BYPASS_DISPATCH;
	s64 SCX_EV_BYPASS_ACTIVATE;
	s64 SCX_EV_INSERT_NOT_OWNED;
	s64 SCX_EV_SUB_BYPASS_DISPATCH;
};

struct scx_sched_pcpu {
	struct scx_event_stats event_stats;
};

struct scx_sched {
	struct scx_sched_pcpu *pcpu; /* 6.17 and later */
	struct scx_event_stats *event_stats_cpu; /* 6.16 */
	atomic_t exit_kind;
	s32 bypass_depth; /* 7.1 and later, as the next two */
	bool aborting;
	unsigned long watchdog_timeout;
	struct irq_work error_irq_work; /* to 7.0 */
	struct irq_work disable_irq_work; /* 7.1 and later */
	struct kthread_work disable_work;
};

#pragma clang attribute pop

static long (*const read_kernel)(void *dst, u32 size, const void *src) = (void *)113;
static u64 (*const pid_tgid)(void) = (void *)14;

#define FIELD_OFFSET 0
#define FIELD_EXISTS 2
#define HAS(type, member) __builtin_preserve_field_info(((struct type *)0)->member, FIELD_EXISTS)
#define OFFSET(type, member) __builtin_preserve_field_info(((struct type *)0)->member, FIELD_OFFSET)
#define READ(to, from, member)                                                             \
	read_kernel(&(to), sizeof(to), __builtin_preserve_access_index(&(from)->member))

/*
 * What the loader fills in: kernel variables that BTF does not have, by address. 0 where this
 * kernel has no such variable, because struct scx_sched has it.
 */
const volatile bool ktstr_enabled = 1;
const volatile u32 probe_nr_cpus = 0;
const volatile u64 probe_at_per_cpu_offset = 0;
const volatile u64 probe_at_bypass_depth = 0;
const volatile u64 probe_at_aborting = 0;
const volatile u64 probe_at_watchdog_timeout = 0;

/* Each cell on cache lines of its own. */
struct counter {
	s64 value;
	char pad[SLOT_BYTES - sizeof(s64)];
} __attribute__((aligned(SLOT_BYTES)));

struct counter ktstr_pcpu_counters[MAX_CPUS][NR_SLOTS];

/* Set once an error exit was seen, and never reset. Written last. */
u32 ktstr_err_exit_detected;
/* Of the last exit of any kind, ktime. */
u64 ktstr_last_trigger_ts;

/* The first error exit. A kind of 0: there was none. */
bool ktstr_exit_aborting;
s32 ktstr_exit_bypass_depth;
u32 ktstr_exit_kind_snap;
u64 ktstr_exit_sched_kva;
u64 ktstr_exit_watchdog_timeout;

struct ktstr_event_stats {
	s64 select_cpu_fallback;
	s64 dispatch_local_dsq_offline;
	s64 dispatch_keep_last;
	s64 enq_skip_exiting;
	s64 enq_skip_migration_disabled;
	s64 reenq_immed;
	s64 reenq_local_repeat;
	s64 refill_slice_dfl;
	s64 bypass_duration;
	s64 bypass_dispatch;
	s64 bypass_activate;
	s64 insert_not_owned;
	s64 sub_bypass_dispatch;
} ktstr_exit_event_stats;

/* Ours: when, on which CPU, and in whose context the first error exit was seen. */
u64 probe_exit_ns;
u32 probe_exit_cpu;
s32 probe_exit_pid;
/* The scheduler whose exit was counted already, until its work runs. */
u64 probe_counted;
/* Whoever set it first keeps the state. */
u32 probe_kept;

INLINE void count(enum slot slot)
{
	u32 cpu = this_cpu();

	if (cpu < MAX_CPUS)
		__sync_fetch_and_add(&ktstr_pcpu_counters[cpu][slot].value, 1);
}

#define ADD(field, name)                                                                   \
	do {                                                                               \
		s64 value__ = 0;                                                           \
		if (HAS(scx_event_stats, name) && !READ(value__, stats, name))             \
			ktstr_exit_event_stats.field += value__;                           \
	} while (0)

/* The sums over the CPUs, as scx_read_events() makes them. */
INLINE void keep_events(struct scx_sched *sch)
{
	u64 base = 0;

	if (HAS(scx_sched, pcpu)) {
		READ(base, sch, pcpu);
		if (base)
			base += OFFSET(scx_sched_pcpu, event_stats);
	} else if (HAS(scx_sched, event_stats_cpu)) {
		READ(base, sch, event_stats_cpu);
	}
	if (!base || !probe_at_per_cpu_offset)
		return;
	for (u32 cpu = 0; cpu < MAX_CPUS; cpu++) {
		struct scx_event_stats *stats;
		u64 offset;

		if (cpu >= probe_nr_cpus)
			break;
		if (read_kernel(&offset, sizeof(offset),
				(void *)(probe_at_per_cpu_offset + cpu * sizeof(offset))))
			continue;
		stats = (void *)(base + offset);
		ADD(select_cpu_fallback, SCX_EV_SELECT_CPU_FALLBACK);
		ADD(dispatch_local_dsq_offline, SCX_EV_DISPATCH_LOCAL_DSQ_OFFLINE);
		ADD(dispatch_keep_last, SCX_EV_DISPATCH_KEEP_LAST);
		ADD(enq_skip_exiting, SCX_EV_ENQ_SKIP_EXITING);
		ADD(enq_skip_migration_disabled, SCX_EV_ENQ_SKIP_MIGRATION_DISABLED);
		ADD(reenq_immed, SCX_EV_REENQ_IMMED);
		ADD(reenq_local_repeat, SCX_EV_REENQ_LOCAL_REPEAT);
		ADD(reenq_local_repeat, SCX_EV_REENQ_REPEAT);
		ADD(refill_slice_dfl, SCX_EV_REFILL_SLICE_DFL);
		ADD(bypass_duration, SCX_EV_BYPASS_DURATION);
		ADD(bypass_dispatch, SCX_EV_BYPASS_DISPATCH);
		ADD(bypass_activate, SCX_EV_BYPASS_ACTIVATE);
		ADD(insert_not_owned, SCX_EV_INSERT_NOT_OWNED);
		ADD(sub_bypass_dispatch, SCX_EV_SUB_BYPASS_DISPATCH);
	}
}

INLINE void keep(struct scx_sched *sch, u32 kind)
{
	if (HAS(scx_sched, bypass_depth))
		READ(ktstr_exit_bypass_depth, sch, bypass_depth);
	else if (probe_at_bypass_depth)
		read_kernel(&ktstr_exit_bypass_depth, sizeof(ktstr_exit_bypass_depth),
			    (void *)probe_at_bypass_depth);
	if (HAS(scx_sched, aborting))
		READ(ktstr_exit_aborting, sch, aborting);
	else if (probe_at_aborting)
		read_kernel(&ktstr_exit_aborting, sizeof(ktstr_exit_aborting),
			    (void *)probe_at_aborting);
	if (HAS(scx_sched, watchdog_timeout))
		READ(ktstr_exit_watchdog_timeout, sch, watchdog_timeout);
	else if (probe_at_watchdog_timeout)
		read_kernel(&ktstr_exit_watchdog_timeout, sizeof(ktstr_exit_watchdog_timeout),
			    (void *)probe_at_watchdog_timeout);
	keep_events(sch);
	ktstr_exit_sched_kva = (u64)sch;
	probe_exit_ns = ktime_ns();
	probe_exit_cpu = this_cpu();
	probe_exit_pid = (s32)pid_tgid();
	count(KPROBE_RETURNS);
	ktstr_exit_kind_snap = kind;
}

INLINE void ended(struct scx_sched *sch, bool by_irq_work)
{
	u32 kind = 0;
	bool counted = probe_counted == (u64)sch;

	if (!ktstr_enabled)
		return;
	count(PROBE_COUNT);
	if (READ(kind, sch, exit_kind.counter))
		return;
	/* Once for each scheduler: the work that takes it apart comes after the interrupt work. */
	if (!counted) {
		count(TRIGGER_COUNT);
		ktstr_last_trigger_ts = ktime_ns();
	}
	probe_counted = by_irq_work ? (u64)sch : 0;
	if (kind < FIRST_ERROR || __sync_lock_test_and_set(&probe_kept, 1))
		return;
	keep(sch, kind);
	__sync_fetch_and_add(&ktstr_err_exit_detected, 1); /* a full barrier, unlike a store */
}

SEC("fentry/scx_disable_irq_workfn")
int probe_irq_work(unsigned long long *ctx)
{
	u64 work = ctx[0];

	if (HAS(scx_sched, disable_irq_work))
		ended((void *)(work - OFFSET(scx_sched, disable_irq_work)), 1);
	else if (HAS(scx_sched, error_irq_work))
		ended((void *)(work - OFFSET(scx_sched, error_irq_work)), 1);
	return 0;
}

SEC("fentry/scx_disable_workfn")
int probe_disable(unsigned long long *ctx)
{
	ended((void *)(ctx[0] - OFFSET(scx_sched, disable_work)), 0);
	return 0;
}

/* contention_begin(void *lock, unsigned int flags): a lock was not free. */
SEC("tp_btf/contention_begin")
int probe_contention(unsigned long long *ctx)
{
	count(LOCK_CONTEND_COUNT);
	return 0;
}

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct task_struct___prio {
	int prio;
	int normal_prio;
};
#pragma clang attribute pop

/* The classes that a priority belongs to: deadline, real time, and what is left. */
INLINE int class_of(int prio)
{
	return prio < 0 ? 0 : prio < 100 ? 1 : 2;
}

/* sched_pi_setprio(task, pi_task): a task gets the priority of one that waits for it, or its own back. */
SEC("tp_btf/sched_pi_setprio")
int probe_pi(unsigned long long *ctx)
{
	struct task_struct___prio *task = (void *)ctx[0], *donor = (void *)ctx[1];
	int prio = 0, own = 0, theirs = 0;

	count(PI_COUNT);
	if (READ(prio, task, prio) || READ(own, task, normal_prio))
		return 0;
	if (donor && !READ(theirs, donor, prio) && theirs < own)
		own = theirs;
	if (class_of(prio) != class_of(own))
		count(PI_CLASS_CHANGE_COUNT);
	return 0;
}

char _license[] SEC("license") = "GPL";
