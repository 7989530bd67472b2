/* SPDX-License-Identifier: GPL-2.0-only */
/* What the schedulers of this folder share: each has one fault, and else does what it should. */
#ifndef SCX_FAIL_H
#define SCX_FAIL_H

#include "../scx_demo.h"

#define SHARED_DSQ 0x60d5ULL
#define SCX_DSQ_LOCAL_ON 0xC000000000000000ULL
#define SCX_KICK_IDLE 1ULL
#define MAX_CPUS 64

/* Members that only these schedulers look at. What follows three underscores is not part of the name. */
struct task_struct___fail {
	u32 flags;
} __attribute__((preserve_access_index));

static long (*const loop)(u32 nr_loops, void *callback, void *ctx, u64 flags) = (void *)181;

/* The kernel's own threads must run, or more breaks than the scheduler. */
INLINE bool is_kthread(const struct task_struct *p)
{
	return ((const struct task_struct___fail *)p)->flags & 0x00200000;
}

/* The nice value's sign. */
INLINE bool is_nice(const struct task_struct *p)
{
	return p->static_prio > 120;
}

INLINE bool is_urgent(const struct task_struct *p)
{
	return p->static_prio < 120;
}

/* Nobody goes past enqueue: the CPU is the one that the task was on. */
#define SELECT_PREVIOUS(name)                         \
	CALLBACK(name)                                \
	{                                             \
		return ARG(ctx, 1, s32);              \
	}

#define LICENSE char _license[] SEC("license") = "GPL"

#endif
