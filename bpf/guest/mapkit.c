// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fills the maps of zoo.bpf.c in the guest, writes down what it has put where
 * bpftool cannot look, and stays: much of it lives only as long as its process does.
 *
 *   mapkit fill MAPS PROGRAMS DIRECTORY    where the maps and programs are pinned, where the notes go
 *   mapkit dump DIRECTORY                  every map's keys and values as hexadecimal bytes
 *   mapkit pages MAP_ID ADDRESS FILE       the pages that an arena has (BPF_F_SEGV_ON_FAULT): number and bytes
 *   mapkit freeze NAME                     sets the word of the scheduler's map NAME
 *
 * A step that a kernel refuses is written to DIRECTORY/skipped.txt, with the reason.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/bpf.h>
#include <linux/if_xdp.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include "zoo.h"

#define MAX_CPUS 64
#define INSN_ARRAY 34
#define RHASH 35

static const char *maps, *programs, *directory;
static int cpus;

static void die(const char *what)
{
	fprintf(stderr, "mapkit: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The possible ones, as per-CPU maps count; in these guests all of them are configured. */
static void count_cpus(void)
{
	cpus = (int)sysconf(_SC_NPROCESSORS_CONF);
	if (cpus < 1 || cpus > MAX_CPUS) {
		fprintf(stderr, "mapkit: %d CPUs\n", cpus);
		exit(1);
	}
}

static void line(const char *file, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void line(const char *file, const char *format, ...)
{
	char path[256];
	va_list args;
	FILE *out;

	snprintf(path, sizeof(path), "%s/%s", directory, file);
	out = fopen(path, "a");
	if (!out)
		die(path);
	va_start(args, format);
	vfprintf(out, format, args);
	va_end(args);
	fputc('\n', out);
	fclose(out);
}

/* One line, with what bpf(2) said, for whatever is not there in the end. */
static void skipped(const char *what)
{
	line("skipped.txt", "%s: %s", what, strerror(errno));
}

static void hex(const char *file, const char *label, const void *data, size_t length)
{
	char *text = malloc(2 * length + 1);

	text[0] = 0;
	for (size_t i = 0; i < length; i++)
		sprintf(text + 2 * i, "%02x", ((const u8 *)data)[i]);
	line(file, "%s %s", label, text);
	free(text);
}

/* --- bpf(2) */

static int bpf(int command, void *attr, size_t size)
{
	return (int)syscall(SYS_bpf, command, attr, size);
}

static int pinned(const char *top, const char *name)
{
	union bpf_attr attr = { 0 };
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", top, name);
	attr.pathname = (unsigned long)path;
	fd = bpf(BPF_OBJ_GET, &attr, sizeof(attr));
	if (fd < 0)
		skipped(path);
	return fd;
}

static int map(const char *name)
{
	return pinned(maps, name);
}

static int update(int fd, const void *key, const void *value, u64 flags)
{
	union bpf_attr attr = { 0 };

	attr.map_fd = (u32)fd;
	attr.key = (unsigned long)key;
	attr.value = (unsigned long)value;
	attr.flags = flags;
	return bpf(BPF_MAP_UPDATE_ELEM, &attr, sizeof(attr));
}

static void put(const char *name, int fd, const void *key, const void *value)
{
	if (update(fd, key, value, 0))
		skipped(name);
}

static void put_u32(const char *name, int fd, u32 key, const void *value)
{
	put(name, fd, &key, value);
}

static void drop(const char *name, int fd, const void *key)
{
	union bpf_attr attr = { 0 };

	attr.map_fd = (u32)fd;
	attr.key = (unsigned long)key;
	if (bpf(BPF_MAP_DELETE_ELEM, &attr, sizeof(attr)))
		skipped(name);
}

static u32 map_info(int fd, struct bpf_map_info *info)
{
	union bpf_attr attr = { 0 };

	memset(info, 0, sizeof(*info));
	attr.info.bpf_fd = (u32)fd;
	attr.info.info_len = sizeof(*info);
	attr.info.info = (unsigned long)info;
	if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)))
		die("map info");
	return info->id;
}

static int run(const char *name, struct order *order)
{
	static const u8 packet[64];
	union bpf_attr attr = { 0 };
	int fd = pinned(programs, name);

	if (fd < 0)
		return -1;
	attr.test.prog_fd = (u32)fd;
	if (order) {
		attr.test.ctx_in = (unsigned long)order;
		attr.test.ctx_size_in = sizeof(*order);
	} else {
		attr.test.data_in = (unsigned long)packet;
		attr.test.data_size_in = sizeof(packet);
	}
	if (bpf(BPF_PROG_TEST_RUN, &attr, sizeof(attr))) {
		skipped(name);
		return -1;
	}
	close(fd);
	if (!order)
		line("runs.txt", "%s(a packet) = %u", name, attr.test.retval);
	else
		line("runs.txt", "%s(what %llu, argument %llu) = %u, answer %lld", name, order->what, order->argument,
		     attr.test.retval, order->answer);
	return (int)attr.test.retval;
}

/* Read once: it is long, and the guest slow. */
static u64 banner, init_task, schedule_function;

static void kernel_symbols(void)
{
	char text[512], name[256];
	unsigned long long address;
	FILE *in = fopen("/proc/kallsyms", "r");

	if (!in)
		die("/proc/kallsyms");
	while (fgets(text, sizeof(text), in)) {
		if (!strstr(text, " linux_banner") && !strstr(text, " init_task") && !strstr(text, " schedule"))
			continue;
		if (sscanf(text, "%llx %*c %255s", &address, name) != 2)
			continue;
		if (!strcmp(name, "linux_banner"))
			banner = address;
		else if (!strcmp(name, "init_task"))
			init_task = address;
		else if (!strcmp(name, "schedule"))
			schedule_function = address;
	}
	fclose(in);
}

/* --- values */

static struct rich rich(u32 n)
{
	static const enum color colors[] = { COLOR_RED, COLOR_GREEN, COLOR_BLUE, (enum color)77 };
	static const enum huge huges[] = { HUGE_ONE, HUGE_TERA, HUGE_TOP, (enum huge)0x123456789abcULL };
	struct rich r;

	memset(&r, 0, sizeof(r));
	r.number = n;
	r.low = (int)(n % 32) - 16;
	r.mid = n * 37 % 512;
	r.cross = -(int)(n * 401 % 8000);
	r.wide = 0x1500000000ULL + n;
	r.signed_wide = -(long long)n * 1000;
	r.yes = n & 1;
	r.tiny = (s8)-n;
	r.half = (u16)(n * 257);
	r.color = colors[n % 4];
	r.huge = huges[n % 4];
	r.far = n % 2 ? FAR_NEGATIVE : FAR_ZERO;
	r.flags = (enum flag)(n % 8 | (n % 3 ? 0 : FLAG_HIGH));
	r.word = 0x01020304u * n;
	for (int i = 0; i < 3; i++) {
		r.point[i].x = (s16)(100 * i + (int)n);
		r.point[i].y = (s16)(-100 * i - (int)n);
	}
	for (int i = 0; i < 6; i++)
		r.matrix[i / 3][i % 3] = (u8)(n + i);
	snprintf(r.text, sizeof(r.text), "text \"%u\"\t<&>", n);
	for (int i = 0; i < 8; i++)
		r.binary[i] = (char)(0xf8 + i + n);
	memcpy((void *)&r.fixed, &(u32){ 0xf1f00000u + n }, 4);
	r.callback = (callback_t)schedule_function;
	r.banner = (const char *)banner;
	r.task = (struct task_struct *)init_task;
	r.opaque = n % 2 ? (void *)init_task : NULL;
	r.link.raw = n;
	r.wide_int = (unsigned __int128)0xfedcba9876543210ULL << 64 | n;
	return r;
}

static struct small small(u32 n)
{
	struct small s;

	memset(&s, 0, sizeof(s));
	s.square = (u64)n * n;
	s.parts[0] = n;
	s.parts[1] = ~n;
	snprintf(s.label, sizeof(s.label), "s%u", n);
	return s;
}

static struct odd odd(u32 n)
{
	return (struct odd){ (u8)n, { (u8)(n + 1), (u8)(n * n), 0xee, 'z' } };
}

static struct note note(u32 n, const char *tag)
{
	struct note v;

	memset(&v, 0, sizeof(v));
	v.number = n;
	v.pid = getpid();
	snprintf(v.tag, sizeof(v.tag), "%s", tag);
	v.cookie = 0xc00c1e0000000000ULL + n;
	return v;
}

/* What bpf(2) wants for a per-CPU map: each CPU's value, rounded up to eight bytes. */
static void put_counters(const char *name, int fd, u32 key)
{
	u8 values[MAX_CPUS][(sizeof(struct counter) + 7) & ~7ul];

	memset(values, 0, sizeof(values));
	for (int cpu = 0; cpu < cpus; cpu++) {
		struct counter c;

		memset(&c, 0, sizeof(c));
		c.hits = 1000ULL * key + (u32)cpu;
		c.cpu = (u32)cpu;
		snprintf(c.tag, sizeof(c.tag), "c%d", cpu);
		memcpy(values[cpu], &c, sizeof(c));
	}
	put_u32(name, fd, key, values);
}

/* --- one kind of map after the other */

static void fill_arrays(void)
{
	int fd = map("rich_array");

	for (u32 i = 0; i < 6; i++)
		put_u32("rich_array", fd, i, &(struct rich[]){ rich(i) });
	fd = map("float_array");
	for (u32 i = 0; i < 3; i++) {
		struct measure m = { .real = 3.5f * (float)i, .precise = -0.125 * i };

		m.as_real = i == 2 ? 0x1p-130f : 1e30f;
		m.several[0] = i ? -1.0f / 0.0f : 0.1f;
		m.several[1] = -0.0f;
		put_u32("float_array", fd, i, &m);
	}
	fd = map("newer_array");
	for (u32 i = 0; i < 2; i++)
		put_u32("newer_array", fd, i, &(struct { u32 n, lock; u64 work, behind; }){ i + 1, 0, 0, i + 2 });
	fd = map("odd_array");
	for (u32 i = 0; i < 7; i++)
		put_u32("odd_array", fd, i, &(struct odd[]){ odd(i) });
	fd = map("mmap_array");
	for (u32 i = 0; i < 10; i++)
		put_u32("mmap_array", fd, i, &(struct small[]){ small(i + 500) });
	fd = map("pc_array");
	for (u32 i = 0; i < 3; i++)
		put_counters("pc_array", fd, i);
}

static void fill_hashes(void)
{
	int fd = map("hash_pre");
	char key[16];

	for (u32 i = 0; i < 50; i++)
		put_u32("hash_pre", fd, i * 7919, &(struct rich[]){ rich(i) });
	for (u32 i = 0; i < 50; i += 4)
		drop("hash_pre", fd, &(u32){ i * 7919 });
	for (u32 i = 0; i < 12; i += 2) /* three come back out of the free lists, three are replaced */
		put_u32("hash_pre", fd, i * 7919, &(struct rich[]){ rich(i + 1000) });
	fd = map("hash_dyn");
	for (u32 i = 0; i < 40; i++) {
		memset(key, 0, sizeof(key));
		snprintf(key, sizeof(key), "name %u", i);
		put("hash_dyn", fd, key, &(struct small[]){ small(i) });
	}
	for (u32 i = 0; i < 40; i += 5) {
		memset(key, 0, sizeof(key));
		snprintf(key, sizeof(key), "name %u", i);
		drop("hash_dyn", fd, key);
	}
	fd = map("hash_tiny");
	for (u32 i = 0; i < 4; i++) {
		struct flow flow;

		memset(&flow, 0, sizeof(flow));
		flow.port = (u16)(8000 + i);
		flow.address = 0x0a000001 + i;
		flow.protocol = i % 2 ? 6 : 17;
		put("hash_tiny", fd, &flow, (u8[]){ (u8)i, 0x55, 0xaa });
	}
	fd = map("lru");
	for (u64 i = 0; i < 90; i++) /* more than there is room for */
		put("lru", fd, &(u64){ i << 33 | i }, &(struct small[]){ small((u32)i) });
	fd = map("lru_own");
	for (u32 i = 0; i < 20; i++)
		put_u32("lru_own", fd, i + 300, &(u64){ (u64)i << 40 | i });
	for (u32 i = 0; i < 20; i += 3)
		drop("lru_own", fd, &(u32){ i + 300 });
	fd = map("pc_hash");
	for (u32 i = 0; i < 9; i++)
		put_counters("pc_hash", fd, i + 40);
	drop("pc_hash", fd, &(u32){ 44 });
	fd = map("pc_hash_dyn");
	for (u32 i = 0; i < 9; i++) {
		u8 values[MAX_CPUS][8];

		memset(values, 0, sizeof(values));
		for (int cpu = 0; cpu < cpus; cpu++) {
			values[cpu][0] = (u8)i;
			values[cpu][1] = (u8)cpu;
			values[cpu][2] = 0x77;
		}
		put_u32("pc_hash_dyn", fd, i * 3, values);
	}
	drop("pc_hash_dyn", fd, &(u32){ 6 });
	fd = map("lru_pc_hash");
	for (u32 i = 0; i < 12; i++)
		put_counters("lru_pc_hash", fd, i + 70);
	fd = map("special_hash");
	if (fd >= 0) {
		struct bpf_map_info info;
		u8 *value;

		map_info(fd, &info);
		value = calloc(1, info.value_size);
		put_u32("special_hash", fd, 77, value);
		put_u32("special_hash", fd, 78, value);
		free(value);
	}
}

static int create(u32 type, const char *name, u32 key, u32 value, u32 entries, u32 flags, int like)
{
	union bpf_attr attr = { 0 };
	int fd, btf = -1;

	if (like >= 0) {
		struct bpf_map_info info;
		union bpf_attr by_id = { 0 };

		map_info(like, &info);
		by_id.btf_id = info.btf_id;
		btf = bpf(BPF_BTF_GET_FD_BY_ID, &by_id, sizeof(by_id));
		attr.btf_fd = (u32)btf;
		attr.btf_key_type_id = info.btf_key_type_id;
		attr.btf_value_type_id = info.btf_value_type_id;
	}
	attr.map_type = type;
	attr.key_size = key;
	attr.value_size = value;
	attr.max_entries = entries;
	attr.map_flags = flags;
	snprintf(attr.map_name, sizeof(attr.map_name), "%s", name);
	fd = bpf(BPF_MAP_CREATE, &attr, sizeof(attr));
	if (btf >= 0)
		close(btf);
	return fd;
}

static void fill_nested(void)
{
	static const char *const arrays[] = { "inner_array_a", "inner_array_b" };
	static const char *const hashes[] = { "inner_hash_a", "inner_hash_b" };
	int outer, inner;

	for (u32 which = 0; which < 2; which++) {
		inner = map(arrays[which]);
		for (u32 i = 0; i < 3; i++)
			put_u32(arrays[which], inner, i, &(struct odd[]){ odd(which * 16 + i) });
		inner = map(hashes[which]);
		for (u32 i = 0; i < 3 + which; i++)
			put_u32(hashes[which], inner, which * 100 + i, &(struct small[]){ small(which * 100 + i) });
	}
	outer = map("array_of_maps");
	put_u32("array_of_maps", outer, 3, (int[]){ map("inner_array_a") }); /* the same map twice */
	outer = map("hash_of_maps");
	put_u32("hash_of_maps", outer, 11, (int[]){ map("inner_hash_a") });
	put_u32("hash_of_maps", outer, 22, (int[]){ map("inner_hash_b") });
	/* One that no object names, held by the outer map alone. */
	inner = create(BPF_MAP_TYPE_HASH, "inner_made", 4, sizeof(struct small), 8, 0, map("inner_hash_a"));
	if (inner < 0)
		skipped("inner_made");
	put_u32("inner_made", inner, 1234, &(struct small[]){ small(1234) });
	put_u32("hash_of_maps", outer, 33, &inner);
	put_u32("hash_of_maps", outer, 44, &inner);
	drop("hash_of_maps", outer, &(u32){ 44 });
	close(inner);
}

static int tcp[3], udp[2];

static void make_sockets(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(4242) };
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int one = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo))
		skipped("lo up");
	close(fd);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	tcp[0] = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(tcp[0], SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(tcp[0], (void *)&at, sizeof(at)) || listen(tcp[0], 4))
		skipped("listen on lo");
	tcp[1] = socket(AF_INET, SOCK_STREAM, 0);
	/* The kernel fills 256 KB with random numbers before it first chooses a port itself: much in a small core. */
	at.sin_port = htons(4343);
	if (bind(tcp[1], (void *)&at, sizeof(at)))
		skipped("bind the client");
	at.sin_port = htons(4242);
	if (connect(tcp[1], (void *)&at, sizeof(at)))
		skipped("connect over lo");
	tcp[2] = accept(tcp[0], NULL, NULL);
	for (int i = 0; i < 2; i++) {
		at.sin_port = htons(5353);
		udp[i] = socket(AF_INET, SOCK_DGRAM, 0);
		setsockopt(udp[i], SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
		if (bind(udp[i], (void *)&at, sizeof(at)))
			skipped("bind on lo");
	}
}

static u64 inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

/* A process with nothing to do but to own a storage. */
static pid_t owner(const char *name)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_NAME, name);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

static void fill_storages(void)
{
	int fd = map("task_store"), file;
	struct { void *shared; u32 number; } with_user;
	struct note v;
	char path[64];

	for (u32 i = 0; i < 5; i++) {
		char name[16];
		pid_t pid;
		int pidfd;

		snprintf(name, sizeof(name), "owner-%u", i);
		pid = owner(name);
		pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		v = note(i, name);
		v.pid = pid;
		put("task_store", fd, &pidfd, &v);
		if (i == 4) {
			drop("task_store", fd, &pidfd);
		} else {
			snprintf(path, sizeof(path), "task_store pid %d comm %s value", pid, name);
			hex("owners.txt", path, &v, sizeof(v));
		}
		close(pidfd);
	}
	/* A task, and one page of it, that the kernel must not let go. */
	fd = map("uptr_store");
	if (fd >= 0) {
		struct { u64 magic; char text[24]; } *shared;
		int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);

		shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		shared = (void *)((char *)shared + 256);
		shared->magic = 0x05e4ace5ULL;
		snprintf(shared->text, sizeof(shared->text), "in a user's page");
		memset(&with_user, 0, sizeof(with_user));
		with_user.shared = shared;
		with_user.number = 5;
		put("uptr_store", fd, &pidfd, &with_user);
		snprintf(path, sizeof(path), "uptr_store pid %d comm mapkit value", getpid());
		hex("owners.txt", path, &with_user, sizeof(with_user));
		hex("owners.txt", "uptr_store pointed-to", shared, sizeof(*shared));
		close(pidfd);
	}
	fd = map("cgrp_store");
	for (u32 i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), i ? "/sys/fs/cgroup/zoo/cage-%u" : "/sys/fs/cgroup/zoo", i);
		mkdir(path, 0755);
		file = open(path, O_RDONLY | O_DIRECTORY);
		v = note(i + 50, path + 14);
		put("cgrp_store", fd, &file, &v);
		line("owners.txt", "cgroup %s inode %llu", path + 14, inode_of(file));
		snprintf(path, sizeof(path), "cgrp_store inode %llu value", inode_of(file));
		hex("owners.txt", path, &v, sizeof(v));
		close(file);
	}
	fd = map("inode_store");
	for (u32 i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "/tmp/inode-%u", i);
		file = open(path, O_RDWR | O_CREAT, 0600);
		v = note(i + 60, path + 5);
		put("inode_store", fd, &file, &v);
		snprintf(path, sizeof(path), "inode_store tmpfs /tmp/inode-%u inode %llu value", i, inode_of(file));
		hex("owners.txt", path, &v, sizeof(v));
		/* The file stays open: a tmpfs inode lives on anyway. */
	}
	fd = map("sk_store");
	for (u32 i = 0; i < 3; i++) {
		static const char *const what[] = { "listener", "client", "server" };

		v = note(i + 70, what[i]);
		put("sk_store", fd, &tcp[i], &v);
		snprintf(path, sizeof(path), "sk_store tcp %s socket inode %llu value", what[i], inode_of(tcp[i]));
		hex("owners.txt", path, &v, sizeof(v));
	}
}

static int link_create(const char *program, int target, u32 type)
{
	union bpf_attr attr = { 0 };
	int fd = pinned(programs, program), link;

	attr.link_create.prog_fd = (u32)fd;
	attr.link_create.target_fd = (u32)target;
	attr.link_create.attach_type = type;
	link = bpf(BPF_LINK_CREATE, &attr, sizeof(attr));
	if (link < 0)
		skipped(program);
	return link;
}

static int raw_tracepoint(const char *program, const char *name)
{
	union bpf_attr attr = { 0 };
	int link;

	attr.raw_tracepoint.name = (unsigned long)name;
	attr.raw_tracepoint.prog_fd = (u32)pinned(programs, program);
	link = bpf(BPF_RAW_TRACEPOINT_OPEN, &attr, sizeof(attr));
	if (link < 0)
		skipped(name);
	return link;
}

/* The old storages come into being with the attachment, one for each cgroup and program. */
static void fill_cgroup_storages(void)
{
	struct { u64 inode; u32 type, padding; } key = { 0 };
	int fd;

	for (u32 i = 1; i < 3; i++) {
		char path[64];
		struct note v;
		int dir;

		snprintf(path, sizeof(path), "/sys/fs/cgroup/zoo/cage-%u", i);
		dir = open(path, O_RDONLY | O_DIRECTORY);
		link_create("on_sock", dir, BPF_CGROUP_INET_SOCK_CREATE);
		key.inode = inode_of(dir);
		key.type = BPF_CGROUP_INET_SOCK_CREATE;
		fd = map("cg_store");
		v = note(i + 80, path + 19);
		put("cg_store", fd, &key, &v);
		fd = map("pc_cg_store");
		u8 values[MAX_CPUS][16];
		memset(values, 0, sizeof(values));
		for (int cpu = 0; cpu < cpus; cpu++) {
			struct counter c;

			memset(&c, 0, sizeof(c));
			c.hits = 100ULL * i + (u32)cpu;
			c.cpu = (u32)cpu;
			memcpy(c.tag, "pcg", 3);
			memcpy(values[cpu], &c, sizeof(c));
		}
		put("pc_cg_store", fd, &key, values);
		if (i == 1) {
			link_create("on_sock_gone", dir, BPF_CGROUP_INET_SOCK_RELEASE);
			fd = map("cg_shared");
			v = note(i + 90, "shared");
			put("cg_shared", fd, &key.inode, &v);
		}
		close(dir);
	}
}

/* --- rings */

#define BUSY 0x80000000u
#define DISCARDED 0x40000000u

/* What lies between the two positions, as the guest itself sees it. */
static void describe_ring(const char *name, u64 mask, u64 consumer, u64 producer, const u8 *data)
{
	u64 at = consumer;

	line("rings.txt", "%s consumer_pos %llu producer_pos %llu size %llu", name, consumer, producer, mask + 1);
	while (at < producer) {
		u32 header = *(const volatile u32 *)(data + (at & mask)), length = header & ~(BUSY | DISCARDED);
		char label[96];

		snprintf(label, sizeof(label), "%s record at %llu length %u %s data", name, at, length,
			 header & BUSY ? "busy" : header & DISCARDED ? "discarded" : "ready");
		hex("rings.txt", label, data + (at & mask) + 8, length);
		at += (length + 8 + 7) & ~7ull;
	}
}

static void ring(const char *name, u64 size, u32 skip)
{
	int fd = map(name);
	volatile u64 *consumer = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	u8 *producer = mmap(NULL, 4096 + 2 * size, PROT_READ, MAP_SHARED, fd, 4096);
	u64 at;

	if (consumer == MAP_FAILED || producer == MAP_FAILED)
		return skipped(name);
	at = *consumer;
	for (; skip; skip--) {
		u32 header = *(u32 *)(producer + 4096 + (at & (size - 1)));

		at += ((header & ~(BUSY | DISCARDED)) + 8 + 7) & ~7ull;
	}
	*consumer = at;
	describe_ring(name, size - 1, at, *(volatile u64 *)producer, producer + 4096);
	munmap((void *)consumer, 4096);
	munmap(producer, 4096 + 2 * size);
}

static void fill_rings(void)
{
	char path[256];

	run("fill_ring", &(struct order){ .what = 90, .argument = 1 });
	ring("ring", 4096, 65);
	/* With what is left over, these go past the end of the data area. */
	run("fill_ring", &(struct order){ .what = 70, .argument = 101 });
	snprintf(path, sizeof(path), "%s/rings.txt", directory);
	unlink(path);
	ring("ring", 4096, 0);
}

static void fill_user_ring(void)
{
	const u64 size = 4096;
	int fd = map("user_ring");
	u8 *consumer = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	u8 *producer = mmap(NULL, 4096 + 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096);
	u64 at = 0, last = 0;

	if (consumer == MAP_FAILED || producer == MAP_FAILED)
		return skipped("user_ring");
	for (u32 round = 0; round < 2; round++) {
		for (u32 i = 0; i < 70; i++) {
			u32 number = round * 1000 + i;
			struct record *record = (void *)(producer + 4096 + (at & (size - 1)) + 8);
			u32 *header = (void *)(producer + 4096 + (at & (size - 1)));

			u32 length = sizeof(*record) + (number % 4 ? 0 : 11);

			if (at + 48 - *(volatile u64 *)consumer > size)
				break;
			last = at;
			memset(record, 0, length);
			record->number = number;
			record->kind = 9;
			snprintf(record->text, sizeof(record->text), "from user %u", number);
			header[1] = 0;
			header[0] = length | (number % 6 == 5 ? DISCARDED : 0);
			at += (length + 8 + 7) & ~7ull;
		}
		/* The last one of all is not finished. */
		if (round == 1)
			*(u32 *)(producer + 4096 + (last & (size - 1))) |= BUSY;
		*(volatile u64 *)producer = at;
		if (!round)
			run("drain_user_ring", &(struct order){ 0 });
	}
	describe_ring("user_ring", size - 1, *(volatile u64 *)consumer, at, producer + 4096);
	munmap(producer, 4096 + 2 * size);
	munmap(consumer, 4096);
}

static void *hold(void *page)
{
	prctl(PR_SET_NAME, "ring-holder");
	run("hold_ring", &(struct order){ .user_address = (unsigned long)page });
	return NULL;
}

/* A program that has a record reserved, and waits in a page fault that nobody will answer. */
static void fill_busy_ring(void)
{
	int fault = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;

	range.range.start = (unsigned long)page;
	range.range.len = 4096;
	if (fault < 0 || ioctl(fault, UFFDIO_API, &api) || ioctl(fault, UFFDIO_REGISTER, &range))
		return skipped("ring_busy (userfaultfd)");
	errno = pthread_create(&thread, NULL, hold, page);
	if (errno)
		return skipped("ring_busy");
	usleep(300000);
	ring("ring_busy", 8192, 0);
}

/* --- what holds descriptors */

/* Fills a slot, and says with what. */
static void slot(const char *name, u64 key, const void *value, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
static void slot(const char *name, u64 key, const void *value, const char *format, ...)
{
	char text[128];
	va_list args;
	int fd = map(name);

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (update(fd, &key, value, 0))
		skipped(name);
	else
		line("slots.txt", "%s[%llu] = %s", name, key, text);
	/* fd stays open: with the file that put them in, events leave a PERF_EVENT_ARRAY. */
}

static u64 cookie(int fd)
{
	u64 value = 0;
	socklen_t length = sizeof(value);

	getsockopt(fd, SOL_SOCKET, 57 /* SO_COOKIE */, &value, &length);
	return value;
}

/* An AF_XDP socket has to be bound before it may go into a map. */
static int xdp_socket(void)
{
	struct xdp_umem_reg umem = { .len = 16 * 4096, .chunk_size = 4096 };
	struct sockaddr_xdp at = { .sxdp_family = AF_XDP, .sxdp_ifindex = 1, .sxdp_flags = XDP_COPY };
	int fd = socket(AF_XDP, SOCK_RAW, 0), entries = 16;
	void *area = mmap(NULL, umem.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	umem.addr = (unsigned long)area;
	if (fd < 0 || setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof(umem)) ||
	    setsockopt(fd, SOL_XDP, XDP_UMEM_FILL_RING, &entries, sizeof(entries)) ||
	    setsockopt(fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &entries, sizeof(entries)) ||
	    setsockopt(fd, SOL_XDP, XDP_RX_RING, &entries, sizeof(entries)) ||
	    bind(fd, (void *)&at, sizeof(at)))
		skipped("an AF_XDP socket on lo");
	return fd;
}

static void fill_slots(void)
{
	struct { u32 ifindex; int program; } device = { 1, -1 };
	struct { u32 queue; int program; } cpu = { 192, -1 };
	struct perf_event_attr perf = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(perf),
					.config = PERF_COUNT_SW_BPF_OUTPUT, .sample_type = PERF_SAMPLE_RAW };
	int each;

	slot("prog_array", 0, (int[]){ pinned(programs, "tail_root") }, "program tail_root");
	slot("prog_array", 2, (int[]){ pinned(programs, "tail_leaf") }, "program tail_leaf");
	run("tail_root", NULL);
	for (int i = 0; i < cpus; i++) {
		each = (int)syscall(SYS_perf_event_open, &perf, -1, i, -1, 0);
		if (each < 0)
			skipped("perf_event_open");
		else
			slot("perf_events", (u64)i, &each, "software event BPF_OUTPUT of cpu %d", i);
	}
	slot("cgroup_array", 0, (int[]){ open("/sys/fs/cgroup/zoo", O_RDONLY) }, "cgroup /zoo");
	slot("cgroup_array", 2, (int[]){ open("/sys/fs/cgroup/zoo/cage-2", O_RDONLY) }, "cgroup /zoo/cage-2");
	slot("devmap", 2, &device, "device lo, ifindex 1");
	device.program = pinned(programs, "at_device");
	slot("devmap", 3, &device, "device lo, ifindex 1, program at_device");
	slot("devmap_hash", 1001, &device.ifindex, "device lo, ifindex 1");
	slot("devmap_hash", 1005, &device.ifindex, "device lo, ifindex 1");
	slot("cpumap", 0, &cpu, "cpu 0, queue of 192");
	cpu.queue = 64;
	cpu.program = pinned(programs, "at_cpu");
	slot("cpumap", 1, &cpu, "cpu 1, queue of 64, program at_cpu");
	each = xdp_socket();
	slot("xskmap", 3, &each, "AF_XDP socket inode %llu on lo queue 0", inode_of(each));
	slot("sockmap", 1, &(u64){ (u64)tcp[2] }, "tcp server socket inode %llu cookie %llu", inode_of(tcp[2]), cookie(tcp[2]));
	slot("sockmap", 3, &(u64){ (u64)udp[1] }, "udp socket inode %llu cookie %llu", inode_of(udp[1]), cookie(udp[1]));
	slot("sockhash", 0xabcdef0123ULL, &(u64){ (u64)tcp[1] }, "tcp client socket inode %llu cookie %llu",
	     inode_of(tcp[1]), cookie(tcp[1]));
	slot("reuseport", 0, &(u64){ (u64)udp[0] }, "udp socket inode %llu cookie %llu", inode_of(udp[0]), cookie(udp[0]));
	line("owners.txt", "sockets: listener %llu client %llu server %llu udp-a %llu udp-b %llu (inodes)",
	     inode_of(tcp[0]), inode_of(tcp[1]), inode_of(tcp[2]), inode_of(udp[0]), inode_of(udp[1]));
}

static void fill_queues(void)
{
	int fd = map("queue");
	union bpf_attr attr = { 0 };
	struct small value;

	for (u32 i = 0; i < 7; i++) {
		value = small(i + 600);
		if (update(fd, NULL, &value, 0))
			skipped("queue");
	}
	attr.map_fd = (u32)fd;
	attr.value = (unsigned long)&value;
	for (u32 i = 0; i < 3; i++)
		if (bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attr, sizeof(attr)))
			skipped("queue pop");
	for (u32 i = 7; i < 11; i++) { /* past the end of the ring */
		value = small(i + 600);
		if (update(fd, NULL, &value, 0))
			skipped("queue");
	}
	for (u32 i = 3; i < 11; i++) {
		value = small(i + 600);
		hex("queues.txt", "queue, next to pop first:", &value, sizeof(value));
	}
	fd = map("stack");
	for (u32 i = 0; i < 5; i++) {
		value = small(i + 700);
		if (update(fd, NULL, &value, 0))
			skipped("stack");
	}
	attr.map_fd = (u32)fd;
	if (bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attr, sizeof(attr)))
		skipped("stack pop");
	for (u32 i = 4; i-- > 0;) {
		value = small(i + 700);
		hex("queues.txt", "stack, next to pop first:", &value, sizeof(value));
	}
	fd = map("bloom");
	for (u64 i = 0; i < 10; i++) {
		if (update(fd, NULL, &(u64){ i * 1000003 }, 0))
			skipped("bloom");
		line("queues.txt", "bloom holds %llu", i * 1000003);
	}
}

static void fill_trie(void)
{
	static const struct { u8 address[4]; u32 prefix; const char *name; } routes[] = {
		{ { 0, 0, 0, 0 }, 0, "default" },      { { 10, 0, 0, 0 }, 8, "ten" },
		{ { 10, 1, 0, 0 }, 16, "ten-one" },    { { 10, 1, 2, 0 }, 24, "ten-one-two" },
		{ { 10, 1, 2, 3 }, 32, "a host" },     { { 192, 168, 0, 0 }, 24, "left" },
		{ { 192, 168, 1, 0 }, 24, "right" },   { { 192, 168, 128, 0 }, 17, "deleted" },
		{ { 172, 16, 0, 0 }, 12, "private" },
	};
	int fd = map("lpm");

	for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++) {
		struct lpm4 key = { .prefixlen = routes[i].prefix };
		struct route route = { .metric = (u32)(100 + i) };

		memcpy(key.address, routes[i].address, 4);
		snprintf(route.name, sizeof(route.name), "%s", routes[i].name);
		put("lpm", fd, &key, &route);
		if (!strcmp(routes[i].name, "deleted"))
			drop("lpm", fd, &key);
	}
}

static void fill_new_types(void)
{
	int fd = create(RHASH, "rhash", 4, sizeof(struct small), 64, 1, map("like_rhash"));

	if (fd < 0) {
		skipped("rhash: map type 35, in Linux 7.2 and later");
	} else {
		for (u32 i = 0; i < 30; i++)
			put_u32("rhash", fd, i * 13, &(struct small[]){ small(i) });
		for (u32 i = 0; i < 30; i += 6)
			drop("rhash", fd, &(u32){ i * 13 });
	}
	fd = create(INSN_ARRAY, "insn_array", 4, 16, 3, 0, -1);
	if (fd < 0) {
		skipped("insn_array: map type 34, in Linux 6.19 and later");
	} else {
		/* struct bpf_insn_array_value: orig_off, xlated_off, jitted_off, unused */
		u32 value[4] = { 0 };
		const struct bpf_insn program[] = {
			{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 7 },
			{ .code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = 0, .imm = 9, .off = 1 },
			{ .code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 0, .imm = 1 },
			{ .code = BPF_JMP | BPF_EXIT },
		};
		struct { union bpf_attr attr; u8 room[256]; } load;
		union bpf_attr attr = { 0 };
		static const u32 offsets[] = { 0, 2, 3 };

		for (u32 i = 0; i < 3; i++) {
			value[0] = offsets[i];
			put_u32("insn_array", fd, i, value);
		}
		attr.map_fd = (u32)fd;
		if (bpf(BPF_MAP_FREEZE, &attr, sizeof(attr)))
			skipped("insn_array freeze");
		memset(&load, 0, sizeof(load));
		load.attr.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
		load.attr.insns = (unsigned long)program;
		load.attr.insn_cnt = 4;
		load.attr.license = (unsigned long)"GPL";
		memcpy(load.attr.prog_name, "insn_user", 10);
		load.attr.fd_array = (unsigned long)&fd;
		/* fd_array_cnt (6.14): behind prog_token_fd, which newer headers than the builder's name */
		*(u32 *)((u8 *)&load + 148) = 1;
		if (bpf(BPF_PROG_LOAD, &load, 152) < 0)
			skipped("insn_array's program");
	}
}

/* A ring that gives up its oldest records (6.19), with a program of four words for it. */
static void fill_overwrite_ring(void)
{
	int fd = create(BPF_MAP_TYPE_RINGBUF, "ring_over", 0, 0, 4096, 1u << 19, -1), program;
	union bpf_attr attr = { 0 };

	if (fd < 0)
		return skipped("ring_over: a ring buffer that overwrites, in Linux 6.19 and later");
	const struct bpf_insn code[] = {
		{ .code = BPF_LDX | BPF_MEM | BPF_DW, .dst_reg = 2, .src_reg = 1, .off = 0 },
		{ .code = BPF_STX | BPF_MEM | BPF_DW, .dst_reg = 10, .src_reg = 2, .off = -16 },
		{ .code = BPF_ST | BPF_MEM | BPF_DW, .dst_reg = 10, .off = -8, .imm = 0x0be0 },
		{ .code = BPF_LD | BPF_IMM | BPF_DW, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = fd },
		{ 0 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 2, .src_reg = 10 },
		{ .code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 2, .imm = -16 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = 16 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 4, .imm = 0 },
		{ .code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_ringbuf_output },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	attr.prog_type = BPF_PROG_TYPE_SYSCALL;
	attr.prog_flags = BPF_F_SLEEPABLE;
	attr.insns = (unsigned long)code;
	attr.insn_cnt = sizeof(code) / sizeof(*code);
	attr.license = (unsigned long)"GPL";
	memcpy(attr.prog_name, "overwriter", 11);
	program = bpf(BPF_PROG_LOAD, &attr, sizeof(attr));
	if (program < 0)
		return skipped("ring_over's program");
	for (u64 i = 0; i < 250; i++) { /* 24 bytes each: the first ones are lost */
		memset(&attr, 0, sizeof(attr));
		attr.test.prog_fd = (u32)program;
		attr.test.ctx_in = (unsigned long)&i;
		attr.test.ctx_size_in = sizeof(i);
		if (bpf(BPF_PROG_TEST_RUN, &attr, sizeof(attr)))
			return skipped("ring_over run");
	}
	line("rings.txt", "ring_over: 250 records of 16 bytes (u64 number from 0, u64 0xbe0) written, none consumed");
	const u64 *words = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 4096);
	if (words != MAP_FAILED) {
		line("rings.txt", "ring_over consumer_pos 0 producer_pos %llu pending_pos %llu overwrite_pos %llu size 4096",
		     words[0], words[1], words[2]);
		munmap((void *)words, 4096);
	}
}

/* --- stacks */

static void __attribute__((noinline)) innermost(void)
{
	syscall(SYS_getppid);
	__asm__ volatile("");
}

static void __attribute__((noinline)) middle(int depth)
{
	if (depth)
		middle(depth - 1);
	else
		innermost();
	__asm__ volatile("");
}

static void fill_stacks(void)
{
	raw_tracepoint("on_syscall", "sys_enter");
	raw_tracepoint("on_switch", "sched_switch");
	run("want_stacks", &(struct order){ .argument = (u64)getpid(), .user_address = schedule_function });
	middle(3);
	run("want_stacks", &(struct order){ .argument = (u64)getpid(), .what = 1,
					    .user_address = schedule_function });
	usleep(20000);
	run("want_stacks", &(struct order){ .user_address = schedule_function });
	line("owners.txt", "mapkit pid %d: innermost %p middle %p fill_stacks %p", getpid(), (void *)innermost,
	     (void *)middle, (void *)fill_stacks);
}

static void fill(void)
{
	char path[256];
	FILE *done;

	prctl(PR_SET_NAME, "mapkit");
	count_cpus();
	mkdir("/sys/fs/cgroup/zoo", 0755);
	kernel_symbols();
	make_sockets();
	fill_arrays();
	fill_hashes();
	fill_nested();
	fill_storages();
	fill_cgroup_storages();
	fill_queues();
	fill_trie();
	fill_slots();
	fill_new_types();
	run("fill_arena", &(struct order){ .argument = (u64)getpid() });
	run("walk_arena", &(struct order){ 0 });
	run("fill_special", &(struct order){ .argument = (u64)getpid() });
	run("fill_graph", &(struct order){ 0 });
	run("look_around", &(struct order){ 0 });
	fill_stacks();
	fill_rings();
	fill_user_ring();
	fill_overwrite_ring();
	fill_busy_ring();
	snprintf(path, sizeof(path), "%s/done", directory);
	done = fopen(path, "w");
	if (!done)
		die(path);
	fprintf(done, "%d\n", getpid());
	fclose(done);
	for (;;)
		pause();
}

/* --- after the fact */

static int map_by_id(u32 id)
{
	union bpf_attr attr = { 0 };
	int fd;

	attr.map_id = id;
	fd = bpf(BPF_MAP_GET_FD_BY_ID, &attr, sizeof(attr));
	if (fd < 0)
		die("map by id");
	return fd;
}

static void put_hex(FILE *out, const u8 *data, size_t length)
{
	for (size_t i = 0; i < length; i++)
		fprintf(out, "%02x", data[i]);
}

/* Every thread in turn; threads have pidfds since 6.9. */
static void dump_tasks(FILE *out, int fd, const struct bpf_map_info *info, u8 *value)
{
	DIR *proc = opendir("/proc");
	struct dirent *process, *thread;

	while (proc && (process = readdir(proc))) {
		char path[300];
		DIR *threads;

		if (atoi(process->d_name) <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%s/task", process->d_name);
		threads = opendir(path);
		while (threads && (thread = readdir(threads))) {
			int tid = atoi(thread->d_name), pidfd;
			union bpf_attr attr = { 0 };

			if (tid <= 0)
				continue;
			pidfd = (int)syscall(SYS_pidfd_open, tid, O_EXCL /* PIDFD_THREAD */);
			if (pidfd < 0)
				continue;
			attr.map_fd = (u32)fd;
			attr.key = (unsigned long)&pidfd;
			attr.value = (unsigned long)value;
			if (!bpf(BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr))) {
				fprintf(out, "tid:%d ", tid);
				put_hex(out, value, info->value_size);
				fputc('\n', out);
			}
			close(pidfd);
		}
		if (threads)
			closedir(threads);
	}
	if (proc)
		closedir(proc);
}

/*
 * Every map as bytes: bpftool's JSON leaves them out for some types and is no JSON
 * at all for others. A line for each entry: key, then the value or one for each CPU.
 */
static int dump(const char *top)
{
	union bpf_attr next = { 0 };

	count_cpus();
	mkdir(top, 0755);
	while (!bpf(BPF_MAP_GET_NEXT_ID, &next, sizeof(next))) {
		u32 id = next.start_id = next.next_id;
		int fd = map_by_id(id), percpu, first = 1;
		struct bpf_map_info info;
		union bpf_attr attr;
		char path[256];
		u8 *key, *value;
		size_t stride;
		FILE *out;

		map_info(fd, &info);
		snprintf(path, sizeof(path), "%s/%u", top, id);
		out = fopen(path, "w");
		if (!out)
			die(path);
		fprintf(out, "# id %u name %s type %u key %u value %u max %u flags %#x btf %u key type %u value type %u\n", id,
			info.name, info.type, info.key_size, info.value_size, info.max_entries, info.map_flags, info.btf_id,
			info.btf_key_type_id, info.btf_value_type_id);
		percpu = info.type == BPF_MAP_TYPE_PERCPU_ARRAY || info.type == BPF_MAP_TYPE_PERCPU_HASH ||
			 info.type == BPF_MAP_TYPE_LRU_PERCPU_HASH || info.type == BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE;
		stride = percpu ? (info.value_size + 7) & ~7ul : info.value_size;
		key = calloc(2, info.key_size + 1);
		value = calloc((size_t)cpus, stride + 8);
		if (info.type == BPF_MAP_TYPE_TASK_STORAGE)
			dump_tasks(out, fd, &info, value);
		for (;;) {
			u8 *after = key + info.key_size;

			memset(&attr, 0, sizeof(attr));
			attr.map_fd = (u32)fd;
			attr.key = first ? 0 : (unsigned long)key;
			attr.next_key = (unsigned long)after;
			if (!info.key_size || bpf(BPF_MAP_GET_NEXT_KEY, &attr, sizeof(attr)))
				break;
			first = 0;
			memcpy(key, after, info.key_size);
			put_hex(out, key, info.key_size);
			memset(&attr, 0, sizeof(attr));
			attr.map_fd = (u32)fd;
			attr.key = (unsigned long)key;
			attr.value = (unsigned long)value;
			if (bpf(BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr)))
				fprintf(out, " error: %s", strerror(errno));
			else
				for (int cpu = 0; cpu < (percpu ? cpus : 1); cpu++) {
					fputc(' ', out);
					put_hex(out, value + (size_t)cpu * stride, info.value_size);
				}
			fputc('\n', out);
		}
		fclose(out);
		free(key);
		free(value);
		close(fd);
	}
	return 0;
}

static sigjmp_buf away;

static void not_there(int number)
{
	(void)number;
	siglongjmp(away, 1);
}

/* Each page that is there: its number as eight bytes, then the page. */
static int pages(u32 id, unsigned long address, const char *path)
{
	int fd = map_by_id(id);
	struct bpf_map_info info;
	FILE *out = fopen(path, "w");
	char copy[4096];
	u8 *at;

	if (!out)
		die(path);
	map_info(fd, &info);
	at = mmap((void *)address, info.max_entries * 4096UL, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (at == MAP_FAILED)
		die("mmap of the arena");
	signal(SIGSEGV, not_there);
	for (u64 page = 0; page < info.max_entries; page++) {
		if (sigsetjmp(away, 1))
			continue;
		memcpy(copy, at + page * 4096, 4096);
		fwrite(&page, sizeof(page), 1, out);
		fwrite(copy, 4096, 1, out);
	}
	return fclose(out);
}

/* The scheduler looks at the first word of one of its sections and then writes no more. */
static int freeze(const char *name)
{
	union bpf_attr attr = { 0 };

	while (!bpf(BPF_MAP_GET_NEXT_ID, &attr, sizeof(attr))) {
		struct bpf_map_info info;
		int fd = map_by_id(attr.next_id);
		u8 *value;
		u32 zero = 0;

		map_info(fd, &info);
		if (!strcmp(info.name, name)) {
			value = calloc(1, info.value_size);
			*(u32 *)value = 1;
			if (update(fd, &zero, value, 0))
				die("update");
			return 0;
		}
		close(fd);
		attr.start_id = attr.next_id;
	}
	fprintf(stderr, "mapkit: no map %s\n", name);
	return 1;
}

int mapkit(int argc, char **argv);

/* The main function of guestkit.c gives way to it under this name. */
int mapkit(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "fill") && argc > 4) {
		maps = argv[2];
		programs = argv[3];
		directory = argv[4];
		fill();
	}
	if (!strcmp(what, "dump") && argc > 2)
		return dump(argv[2]);
	if (!strcmp(what, "pages") && argc > 4)
		return pages((u32)atoi(argv[2]), strtoul(argv[3], NULL, 0), argv[4]);
	if (!strcmp(what, "freeze") && argc > 2)
		return freeze(argv[2]);
	fprintf(stderr, "mapkit: see the head of mapkit.c\n");
	return 2;
}
