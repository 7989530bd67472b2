/* SPDX-License-Identifier: GPL-2.0-only */
/* Work that takes its time, whatever the machine. */
static long until(u32 index, void *ctx)
{
	return ktime_ns() >= *(u64 *)ctx;
}

INLINE void work_for(u64 ns)
{
	u64 end = ktime_ns() + ns;

	loop(1 << 23, until, &end, 0);
}
