// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's tools, in one static program:
 *
 *   guestkit rt PRIO COMMAND...            run COMMAND as SCHED_FIFO, out of sched_ext's reach; 0: as SCHED_OTHER
 *   guestkit hold PRIO [CPU]               keep every CPU, or that one, busy as SCHED_FIFO: no task of a scheduler moves
 *                                          there; prints the pids
 *   guestkit task NAME [OPTION...] MODE    become a piece of the workload
 *       -c CPU   bind to one CPU           -n NICE      nice value
 *       -t N     N more threads, named NAME.1 ...
 *       MODE: spin | pulse RUN_US SLEEP_US | pingpong | sleep
 *   guestkit say TEXT                      one line to the host
 *   guestkit ask TEXT                      the same, then wait for a line from the host and print it
 *   guestkit send FILE NAME                a file to the host, with length and checksum
 *   guestkit snap FILE                     the kernel's view in /proc and /sys as a tar archive
 *   guestkit taskmap MAP_ID FILE           the values of a task storage map, a line for each thread
 *   guestkit cgroupmap MAP_ID FILE         the values of a cgroup storage map, a line for each cgroup
 *   guestkit btf BTF_ID FILE               the raw bytes of one BTF
 *   guestkit arena MAP_ID ADDRESS PAGES FILE   the first pages of a BPF arena
 *   guestkit arenapages MAP_ID FILE        every page that a BPF arena has, found through the kernel's page tables
 *   guestkit drain FROM TO                 what can be read without waiting
 *   guestkit locks FILE                    threads that wait for locks of each kind; who has which goes to FILE
 *   guestkit count TASKS                   that many tasks that work without end; four times a second the console gets
 *                                          what all of them have done by then, and the guest's time in ns
 *   guestkit sysrq KEY SECONDS COUNT       asks the kernel for a magic key that often, so many seconds apart
 *   guestkit sync                          sync(2): the host may have a breakpoint there
 *   guestkit lock SECONDS                  a niced thread, owner, holds the mutex of a pipe, asleep, while two others wait
 *                                          for it; it is woken after a while, with the lock still held
 *   guestkit consume RINGBUF_ID ARRAY_ID SECONDS   read records of a ring buffer, and count those of kind 1 in an array;
 *                                          after a while stop reading
 *
 * One program for all of them because the guest is small and every process that
 * starts while the load runs costs it tens of milliseconds under emulation.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/bpf.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define HOST "/dev/ttyS1"

static void die(const char *what)
{
	fprintf(stderr, "guestkit: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void bind_to(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
}

/* A thread in the scheduler's hands, whatever this one is. */
static void start_thread(void *(*function)(void *), void *argument)
{
	struct sched_param param = { 0 };
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attr, SCHED_OTHER);
	pthread_attr_setschedparam(&attr, &param);
	pthread_attr_setstacksize(&attr, 64 * 1024);
	errno = pthread_create(&thread, &attr, function, argument);
	if (errno)
		die("pthread_create");
}

/* --- the workload ------------------------------------------------------- */

struct work {
	char name[16];
	const char *mode;
	long run_us, sleep_us;
};

static long long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static volatile unsigned long burnt;

static void burn(long us)
{
	long long end = now_us() + us;

	while (now_us() < end)
		for (int i = 0; i < 1000; i++)
			burnt++;
}

/* Two threads that wake each other through a pipe pair: wake-ups in both directions. */
static int pipes[2][2];

static void *pong(void *arg)
{
	char byte;

	prctl(PR_SET_NAME, arg);
	for (;;)
		if (read(pipes[0][0], &byte, 1) != 1 || write(pipes[1][1], &byte, 1) != 1)
			return NULL;
}

static void *work(void *arg)
{
	struct work *w = arg;

	prctl(PR_SET_NAME, w->name);
	if (!strcmp(w->mode, "spin"))
		for (;;)
			burn(1000000);
	if (!strcmp(w->mode, "pulse"))
		for (;;) {
			burn(w->run_us);
			usleep(w->sleep_us);
		}
	if (!strcmp(w->mode, "pingpong")) {
		static char partner[16];
		pthread_t thread;
		char byte = 0;

		snprintf(partner, sizeof(partner), "%.10s.pong", w->name);
		if (pipe(pipes[0]) || pipe(pipes[1]))
			die("pipe");
		errno = pthread_create(&thread, NULL, pong, partner);
		if (errno)
			die("pthread_create");
		for (;;) {
			if (write(pipes[0][1], &byte, 1) != 1 || read(pipes[1][0], &byte, 1) != 1)
				die("pingpong");
			burn(200);
			usleep(2000);
		}
	}
	for (;;)
		pause();
	return NULL;
}

static int task(int argc, char **argv)
{
	struct sched_param param = { 0 };
	int opt, threads = 0, nice_value = 0;
	struct work w = { 0 };

	snprintf(w.name, sizeof(w.name), "%s", argv[0]);
	while ((opt = getopt(argc, argv, "+c:n:t:")) != -1)
		switch (opt) {
		case 'c':
			bind_to(atoi(optarg));
			break;
		case 'n':
			nice_value = atoi(optarg);
			break;
		case 't':
			threads = atoi(optarg);
			break;
		default:
			return 2;
		}
	if (optind >= argc)
		return 2;
	w.mode = argv[optind];
	if (optind + 2 < argc) {
		w.run_us = atol(argv[optind + 1]);
		w.sleep_us = atol(argv[optind + 2]);
	}
	/* Threads first: once this one is in the scheduler's hands it may never run again. */
	for (int i = 1; i <= threads; i++) {
		struct work *each = malloc(sizeof(*each));

		if (!each)
			die("malloc");
		*each = w;
		snprintf(each->name, sizeof(each->name), "%.10s.%d", w.name, i);
		start_thread(work, each);
	}
	if (nice_value)
		setpriority(PRIO_PROCESS, 0, nice_value);
	prctl(PR_SET_NAME, w.name);
	if (sched_setscheduler(0, SCHED_OTHER, &param))
		die("sched_setscheduler");
	work(&w);
	return 0;
}

/* --- locks -------------------------------------------------------------- */

/*
 * A thread that writes to a file has the file position's mutex and the inode's rwsem. Its data
 * are on a page that userfaultfd has and nobody ever gives, so it keeps both.
 */
static int lock_file, lock_file_again;
static char *lock_page;
static unsigned int lock_word, lock_pi_word;
static FILE *lock_truth;

struct waiter {
	const char *name;
	void (*wait)(void);
	unsigned int *word;
	int fifo;
	volatile long tid;
};

/* Whether a thread has gone to sleep. */
static int sleeps(long tid)
{
	char path[64], line[128] = "", *state;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%ld/stat", tid);
	file = fopen(path, "r");
	if (!file)
		return 0;
	state = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
	fclose(file);
	return state && strchr("SD", state[2]);
}

static void wait_write_page(void)
{
	if (write(lock_file, lock_page, 64) < 0)
		die("write");
}

static void wait_write(void)
{
	if (write(lock_file, "x", 1) < 0)
		die("write");
}

static void wait_write_again(void)
{
	if (write(lock_file_again, "x", 1) < 0)
		die("write");
}

static void wait_futex(void)
{
	syscall(SYS_futex, &lock_word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static void wait_pi(void)
{
	syscall(SYS_futex, &lock_pi_word, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0);
}

static void *waiter_thread(void *arg)
{
	struct waiter *w = arg;
	struct sched_param param = { .sched_priority = w->fifo };

	prctl(PR_SET_NAME, w->name);
	if (sched_setscheduler(0, w->fifo ? SCHED_FIFO : SCHED_OTHER, &param))
		die("sched_setscheduler");
	fprintf(lock_truth, "%s %ld %#lx\n", w->name, syscall(SYS_gettid), (unsigned long)w->word);
	w->tid = syscall(SYS_gettid);
	w->wait();
	for (;;)
		pause();
	return NULL;
}

static int locks(const char *path)
{
	static struct waiter waiters[] = {
		{ "lock-holder", wait_write_page, NULL, 0, 0 }, { "lock-mutex-1", wait_write, NULL, 0, 0 },
		{ "lock-mutex-2", wait_write, NULL, 0, 0 },     { "lock-rwsem", wait_write_again, NULL, 0, 0 },
		{ "lock-futex", wait_futex, &lock_word, 0, 0 }, { "lock-pi-owner", wait_pi, &lock_pi_word, 0, 0 },
		{ "lock-pi", wait_pi, &lock_pi_word, 5, 0 },
	};
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct sched_param param = { 0 };
	int fd;

	sched_setscheduler(0, SCHED_OTHER, &param);
	fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	lock_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	lock_file = open("/tmp/lockfile", O_RDWR | O_CREAT, 0600);
	lock_file_again = open("/tmp/lockfile", O_RDWR);
	lock_truth = fopen(path, "w");
	if (fd < 0 || lock_page == MAP_FAILED || lock_file < 0 || lock_file_again < 0 || !lock_truth)
		die("locks");
	reg.range.start = (unsigned long)lock_page;
	reg.range.len = 4096;
	if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		die("userfaultfd");
	for (size_t i = 0; i < sizeof(waiters) / sizeof(*waiters); i++) {
		pthread_t thread;

		errno = pthread_create(&thread, NULL, waiter_thread, &waiters[i]);
		if (errno)
			die("pthread_create");
		/* The next one finds the lock taken. */
		for (int tries = 0; tries < 500 && !(waiters[i].tid && sleeps(waiters[i].tid)); tries++)
			usleep(20000);
	}
	fclose(lock_truth);
	pause();
	return 0;
}

/* --- talking to the host ------------------------------------------------ */

static int host_open(void)
{
	int fd = open(HOST, O_RDWR | O_NOCTTY);
	struct termios t;

	if (fd < 0)
		die(HOST);
	if (tcgetattr(fd, &t))
		die("tcgetattr");
	cfmakeraw(&t);
	t.c_cflag |= CLOCAL;
	cfsetspeed(&t, B115200);
	tcsetattr(fd, TCSANOW, &t);
	return fd;
}

static void write_all(int fd, const void *data, size_t length)
{
	const char *at = data;

	while (length) {
		ssize_t done = write(fd, at, length);

		if (done < 0) {
			if (errno == EINTR)
				continue;
			die("write");
		}
		at += done;
		length -= (size_t)done;
	}
}

static int say(const char *text)
{
	int fd = host_open();

	write_all(fd, text, strlen(text));
	write_all(fd, "\n", 1);
	tcdrain(fd);
	return 0;
}

/* One process for both directions: what arrives while nobody has the port open is lost. */
static int ask(const char *text)
{
	int fd = host_open();
	char byte;

	write_all(fd, text, strlen(text));
	write_all(fd, "\n", 1);
	for (;;) {
		if (read(fd, &byte, 1) != 1)
			die("read from the host");
		if (byte == '\n')
			break;
		putchar(byte);
	}
	putchar('\n');
	return 0;
}

static unsigned int crc32_of(const unsigned char *data, size_t length)
{
	unsigned int crc = ~0u;

	for (size_t i = 0; i < length; i++) {
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (0xedb88320u & -(crc & 1));
	}
	return ~crc;
}

static int send_file(const char *path, const char *name)
{
	int in = open(path, O_RDONLY), out;
	struct stat st;
	char line[256];
	unsigned char *data;
	size_t at = 0;

	if (in < 0 || fstat(in, &st))
		die(path);
	data = malloc((size_t)st.st_size + 1);
	if (!data)
		die("malloc");
	while (at < (size_t)st.st_size) {
		ssize_t got = read(in, data + at, (size_t)st.st_size - at);

		if (got <= 0)
			die(path);
		at += (size_t)got;
	}
	out = host_open();
	snprintf(line, sizeof(line), "@FILE %s %zu %08x\n", name, at, crc32_of(data, at));
	write_all(out, line, strlen(line));
	write_all(out, data, at);
	tcdrain(out);
	return 0;
}

/* --- the kernel's view -------------------------------------------------- */

static int archive;
static char *content;
static const size_t content_max = 4 << 20;

/* ustar, because every host unpacks it without asking; /proc files have no size until read. */
static void put_file(const char *path)
{
	char header[512] = { 0 };
	unsigned int sum = 0;
	size_t length = 0;
	int fd = open(path, O_RDONLY | O_NONBLOCK);

	if (fd < 0)
		return;
	while (length < content_max) {
		ssize_t got = read(fd, content + length, content_max - length);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		length += (size_t)got;
	}
	close(fd);
	snprintf(header, 100, "%s", path + 1);
	memcpy(header + 100, "0000644", 8);
	memcpy(header + 108, "0000000", 8);
	memcpy(header + 116, "0000000", 8);
	snprintf(header + 124, 12, "%011o", (unsigned int)length);
	memcpy(header + 136, "00000000000", 12);
	memset(header + 148, ' ', 8);
	header[156] = '0';
	memcpy(header + 257, "ustar\00000", 8);
	for (int i = 0; i < 512; i++)
		sum += (unsigned char)header[i];
	snprintf(header + 148, 8, "%06o", sum);
	write_all(archive, header, sizeof(header));
	memset(content + length, 0, 512);
	write_all(archive, content, (length + 511) & ~(size_t)511);
}

static void put(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void put(const char *format, ...)
{
	char path[512];
	va_list args;

	va_start(args, format);
	vsnprintf(path, sizeof(path), format, args);
	va_end(args);
	put_file(path);
}

static void put_tree(const char *top)
{
	DIR *dir = opendir(top);
	struct dirent *entry;
	char path[512];
	struct stat st;

	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", top, entry->d_name);
		if (lstat(path, &st))
			continue;
		if (S_ISDIR(st.st_mode))
			put_tree(path);
		else if (S_ISREG(st.st_mode))
			put_file(path);
	}
	closedir(dir);
}

/* The pressure files of every cgroup; reading one brings its averages up to date. */
static void put_pressure(const char *top)
{
	DIR *dir = opendir(top);
	struct dirent *entry;
	char path[512];
	struct stat st;

	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		size_t length = strlen(entry->d_name);

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", top, entry->d_name);
		if (length > 9 && !strcmp(entry->d_name + length - 9, ".pressure"))
			put_file(path);
		else if (!lstat(path, &st) && S_ISDIR(st.st_mode))
			put_pressure(path);
	}
	closedir(dir);
}

static int snap(const char *path)
{
	static const char *const of_thread[] = { "stat",   "schedstat", "sched", "status",
						 "cgroup", "comm",	"stack", "wchan" };
	/* What moves fastest comes last, nearest to the stop. */
	static const char *const slow[] = { "version", "cmdline", "meminfo", "zoneinfo", "vmstat",
					    "buddyinfo", "slabinfo", "modules", "mounts" };
	static const char *const fast[] = { "pressure/cpu", "pressure/memory", "pressure/io",
					    "interrupts", "softirqs", "schedstat", "loadavg",
					    "timer_list", "stat", "uptime" };
	static const char *const cpu_masks[] = { "online", "possible", "present", "isolated", "nohz_full" };
	struct dirent *entry;
	DIR *proc;

	archive = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	content = malloc(content_max + 512);
	if (archive < 0 || !content)
		die(path);
	put("/proc/uptime");
	for (size_t i = 0; i < sizeof(slow) / sizeof(*slow); i++)
		put("/proc/%s", slow[i]);
	put_tree("/sys/devices/system/node/node0");
	put_tree("/sys/devices/system/node/node1");
	for (size_t i = 0; i < sizeof(cpu_masks) / sizeof(*cpu_masks); i++)
		put("/sys/devices/system/cpu/%s", cpu_masks[i]);
	for (int cpu = 0; cpu < 8; cpu++) {
		put("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
		put("/sys/devices/system/cpu/cpu%d/topology/physical_package_id", cpu);
		for (int index = 0; index < 4; index++) {
			put("/sys/devices/system/cpu/cpu%d/cache/index%d/level", cpu, index);
			put("/sys/devices/system/cpu/cpu%d/cache/index%d/shared_cpu_list", cpu, index);
		}
	}
	proc = opendir("/proc");
	if (!proc)
		die("/proc");
	while ((entry = readdir(proc))) {
		struct dirent *thread;
		char tasks[280];
		DIR *dir;

		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		put("/proc/%s/cmdline", entry->d_name);
		put("/proc/%s/stat", entry->d_name);
		snprintf(tasks, sizeof(tasks), "/proc/%s/task", entry->d_name);
		dir = opendir(tasks);
		while (dir && (thread = readdir(dir))) {
			if (thread->d_name[0] == '.')
				continue;
			for (size_t i = 0; i < sizeof(of_thread) / sizeof(*of_thread); i++)
				put("%s/%s/%s", tasks, thread->d_name, of_thread[i]);
		}
		if (dir)
			closedir(dir);
	}
	closedir(proc);
	put_tree("/sys/kernel/sched_ext");
	put_pressure("/sys/fs/cgroup");
	for (size_t i = 0; i < sizeof(fast) / sizeof(*fast); i++)
		put("/proc/%s", fast[i]);
	memset(content, 0, 1024);
	write_all(archive, content, 1024);
	return 0;
}

/* trace_pipe: `trace` would wait for RCU, and cat(1) for more to come. */
static int drain(const char *from, const char *to)
{
	int in = open(from, O_RDONLY | O_NONBLOCK), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	static char data[65536];
	ssize_t got;

	if (in < 0 || out < 0)
		die(in < 0 ? from : to);
	while ((got = read(in, data, sizeof(data))) > 0)
		write_all(out, data, (size_t)got);
	return close(out);
}

/* The map's descriptor, and what the kernel says about it. */
static int map_by_id(int id, struct bpf_map_info *info)
{
	union bpf_attr attr = { 0 };
	int map;

	attr.map_id = (unsigned int)id;
	map = (int)syscall(SYS_bpf, BPF_MAP_GET_FD_BY_ID, &attr, sizeof(attr));
	if (map < 0)
		die("map by id");
	memset(&attr, 0, sizeof(attr));
	memset(info, 0, sizeof(*info));
	attr.info.bpf_fd = (unsigned int)map;
	attr.info.info_len = sizeof(*info);
	attr.info.info = (unsigned long)info;
	if (syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)))
		die("map info");
	return map;
}

/* One look-up with a file descriptor as the key: what storage maps want. */
static int look_up(int map, int key, void *value)
{
	union bpf_attr attr = { 0 };

	attr.map_fd = (unsigned int)map;
	attr.key = (unsigned long)&key;
	attr.value = (unsigned long)value;
	return (int)syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr));
}

static void put_value(FILE *out, const char *key, const unsigned char *value, size_t size)
{
	fprintf(out, "%s ", key);
	for (size_t i = 0; i < size; i++)
		fprintf(out, "%02x", value[i]);
	fputc('\n', out);
}

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

/*
 * bpftool cannot list a task storage map, since the map has no list: it is asked for
 * each thread in turn. Threads other than the first have no pidfd before 6.9 and
 * are left out there.
 */
static int taskmap(int id, const char *path)
{
	struct bpf_map_info info;
	FILE *out = fopen(path, "w");
	struct dirent *entry;
	unsigned char *value;
	int map = map_by_id(id, &info);
	DIR *proc;

	if (!out)
		die(path);
	value = malloc(info.value_size);
	proc = opendir("/proc");
	if (!value || !proc)
		die("taskmap");
	while ((entry = readdir(proc))) {
		struct dirent *thread;
		char tasks[280];
		DIR *dir;

		if (atoi(entry->d_name) <= 0)
			continue;
		snprintf(tasks, sizeof(tasks), "/proc/%s/task", entry->d_name);
		dir = opendir(tasks);
		while (dir && (thread = readdir(dir))) {
			int tid = atoi(thread->d_name), pidfd;

			if (tid <= 0)
				continue;
			pidfd = (int)syscall(SYS_pidfd_open, tid, tid == atoi(entry->d_name) ? 0 : PIDFD_THREAD);
			if (pidfd < 0)
				continue;
			if (!look_up(map, pidfd, value))
				put_value(out, thread->d_name, value, info.value_size);
			close(pidfd);
		}
		if (dir)
			closedir(dir);
	}
	closedir(proc);
	return fclose(out);
}

/* The same for cgroups: the inode number, which is the cgroup's id, then its path and the value. */
static void cgroups_below(const char *path, int map, const struct bpf_map_info *info, FILE *out, unsigned char *value)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY);
	struct dirent *entry;
	char name[600];
	struct stat st;
	DIR *dir;

	if (fd < 0 || fstat(fd, &st))
		die(path);
	if (!look_up(map, fd, value)) {
		snprintf(name, sizeof(name), "%lu %s", (unsigned long)st.st_ino, path);
		put_value(out, name, value, info->value_size);
	}
	dir = fdopendir(fd);
	while (dir && (entry = readdir(dir))) {
		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
		cgroups_below(name, map, info, out, value);
	}
	if (dir)
		closedir(dir);
}

static int cgroupmap(int id, const char *path)
{
	struct bpf_map_info info;
	FILE *out = fopen(path, "w");
	int map = map_by_id(id, &info);
	unsigned char *value = malloc(info.value_size);

	if (!out || !value)
		die(path);
	cgroups_below("/sys/fs/cgroup", map, &info, out, value);
	return fclose(out);
}

/* The raw bytes of a BTF; bpftool prints it but does not hand it out. */
static int btf(int id, const char *path)
{
	int out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600), fd;
	struct bpf_btf_info info = { 0 };
	union bpf_attr attr = { 0 };

	if (out < 0)
		die(path);
	attr.btf_id = (unsigned int)id;
	fd = (int)syscall(SYS_bpf, BPF_BTF_GET_FD_BY_ID, &attr, sizeof(attr));
	if (fd < 0)
		die("btf by id");
	for (int pass = 0; pass < 2; pass++) {
		/* The first pass has no room and learns the size. */
		info.btf = (unsigned long)(pass ? malloc(info.btf_size) : NULL);
		if (!pass)
			info.btf_size = 0;
		memset(&attr, 0, sizeof(attr));
		attr.info.bpf_fd = (unsigned int)fd;
		attr.info.info_len = sizeof(info);
		attr.info.info = (unsigned long)&info;
		if (syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)))
			die("btf info");
	}
	write_all(out, (void *)(unsigned long)info.btf, info.btf_size);
	return close(out);
}

/*
 * bpftool does not dump arenas. Only pages that the scheduler has allocated may be
 * asked for: touching another one would allocate it and change what is measured.
 */
static int arena(int id, unsigned long address, size_t pages, const char *path)
{
	struct bpf_map_info info;
	int map = map_by_id(id, &info), out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	void *at;

	if (out < 0)
		die(path);
	/* The kernel takes no part of an arena, and no address but the scheduler's own. */
	at = mmap((void *)address, info.max_entries * 4096UL, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, map, 0);
	if (at == MAP_FAILED)
		die("mmap of the arena");
	write_all(out, at, pages * 4096);
	return 0;
}

/*
 * Every page of an arena. Reading one that is not there through a mapping would allocate
 * it, so the kernel's page tables say which there are: /proc/kcore has them, and
 * /proc/vmallocinfo the arena's kernel range (with `no_hash_pointers`; there must be one
 * arena only, since no name is given there).
 */
static int kcore;
static Elf64_Phdr segment[64];
static int segments;

static void kcore_read(unsigned long address, void *to, size_t size)
{
	for (int i = 0; i < segments; i++)
		if (address >= segment[i].p_vaddr && address - segment[i].p_vaddr < segment[i].p_memsz) {
			off_t at = (off_t)(segment[i].p_offset + (address - segment[i].p_vaddr));

			if (pread(kcore, to, size, at) != (ssize_t)size)
				die("/proc/kcore");
			return;
		}
	errno = ERANGE;
	die("no segment of /proc/kcore has that address");
}

/* Where the kernel sees physical memory: not the image's own mapping, which ends at 2 GB. */
static unsigned long kernel_address(unsigned long physical)
{
	for (int i = 0; i < segments; i++)
		if (segment[i].p_vaddr < 0xffffffff80000000UL && segment[i].p_paddr != ~0UL &&
		    physical >= segment[i].p_paddr && physical - segment[i].p_paddr < segment[i].p_memsz)
			return segment[i].p_vaddr + (physical - segment[i].p_paddr);
	errno = ERANGE;
	die("no segment of /proc/kcore has that page");
	return 0;
}

struct found {
	unsigned long first, last, kernel_base, user_base;
	FILE *list;
	int data, pages;
};

static void walk(struct found *found, unsigned long table, int level, unsigned long base)
{
	unsigned long entries[512], span = 1UL << (12 + 9 * (level - 1));

	kcore_read(table, entries, sizeof(entries));
	for (unsigned long i = 0; i < 512; i++) {
		unsigned long address = base + i * span;

		if (!(entries[i] & 1) || address > found->last || address + (span - 1) < found->first)
			continue;
		if (level > 1) {
			walk(found, kernel_address(entries[i] & 0x000ffffffffff000UL), level - 1, address);
			continue;
		}
		unsigned long offset = address - found->kernel_base, user;
		static unsigned char page[4096];

		/* The kernel uses the low half of the user's address as the offset. */
		user = (found->user_base & ~0xffffffffUL) + offset;
		if (user < found->user_base)
			user += 1UL << 32;
		kcore_read(kernel_address(entries[i] & 0x000ffffffffff000UL), page, sizeof(page));
		write_all(found->data, page, sizeof(page));
		fprintf(found->list, "%lx %lx %lx\n", user, address, entries[i] & 0x000ffffffffff000UL);
		found->pages++;
	}
}

static unsigned long symbol(const char *name)
{
	FILE *in = fopen("/proc/kallsyms", "r");
	unsigned long address;
	char line[256], each[128];

	while (in && fgets(line, sizeof(line), in))
		if (sscanf(line, "%lx %*c %127s", &address, each) == 2 && !strcmp(each, name)) {
			fclose(in);
			return address;
		}
	errno = ENOENT;
	die(name);
	return 0;
}

static int arenapages(int id, const char *path)
{
	unsigned long first, last, size, whole = (1UL << 32) + 0x10000, base = 0;
	struct found found = { 0 };
	struct bpf_map_info info;
	char line[512], name[512];
	int arenas = 0, levels;
	Elf64_Ehdr header;
	FILE *in;

	close(map_by_id(id, &info));
	in = fopen("/proc/vmallocinfo", "r");
	while (in && fgets(line, sizeof(line), in))
		if (sscanf(line, "0x%lx-0x%lx %lu", &first, &last, &size) == 3 && size >= whole && size <= whole + 8192) {
			base = first;
			arenas++;
		}
	if (arenas != 1 || base < 1UL << 63) {
		fprintf(stderr, "guestkit: %d arenas in /proc/vmallocinfo, the last at %#lx\n", arenas, base);
		return 1;
	}
	kcore = open("/proc/kcore", O_RDONLY);
	if (kcore < 0 || pread(kcore, &header, sizeof(header), 0) != sizeof(header))
		die("/proc/kcore");
	for (int i = 0; i < header.e_phnum && segments < 64; i++) {
		off_t at = (off_t)header.e_phoff + i * (off_t)sizeof(Elf64_Phdr);

		if (pread(kcore, &segment[segments], sizeof(Elf64_Phdr), at) != sizeof(Elf64_Phdr))
			die("/proc/kcore");
		if (segment[segments].p_type == PT_LOAD)
			segments++;
	}
	/* In front of the arena and behind it 32 KB are never mapped. */
	found.kernel_base = base + 0x8000;
	found.first = found.kernel_base;
	found.last = found.first + (1UL << 32) - 1;
	found.user_base = info.map_extra;
	snprintf(name, sizeof(name), "%s.bin", path);
	found.data = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	snprintf(name, sizeof(name), "%s.pages", path);
	found.list = fopen(name, "w");
	if (found.data < 0 || !found.list)
		die(path);
	/* With five levels the vmalloc range begins below what four can address. */
	levels = base < 0xffff800000000000UL ? 5 : 4;
	/* Sign-extended, so that the upper half of the top table has canonical addresses. */
	walk(&found, symbol("init_top_pgt"), levels, levels == 5 ? 0xfe00000000000000UL : 0xffff000000000000UL);
	close(found.data);
	return fclose(found.list);
}

/*
 * Work of the kernel goes on while the rest is held: without its workers the scheduler's
 * watchdog would strike after half its limit, and whoever waits for RCU would wait for ever.
 */
static void lift_workers(int priority)
{
	static const char *const lifted[] = { "kworker/", "ksoftirqd/", "rcu", "kthreadd" };
	struct sched_param param = { .sched_priority = priority };
	struct dirent *entry;
	DIR *proc = opendir("/proc");

	while (proc && (entry = readdir(proc))) {
		char path[280], name[32] = "";
		FILE *in;

		if (atoi(entry->d_name) < 2)
			continue;
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		in = fopen(path, "r");
		if (!in || !fgets(name, sizeof(name), in))
			*name = '\0';
		for (size_t i = 0; i < sizeof(lifted) / sizeof(*lifted); i++)
			if (!strncmp(name, lifted[i], strlen(lifted[i])))
				sched_setscheduler(atoi(entry->d_name), SCHED_FIFO, &param);
		if (in)
			fclose(in);
	}
	if (proc)
		closedir(proc);
}

/*
 * While every CPU has such a task, nothing of a scheduler runs: what was queued stays
 * queued, and what the kernel says about it stays true until the core is taken.
 */
static int hold(int priority, int only)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	pid_t child;

	lift_workers(priority + 1);
	/* Workers that are made later begin without a priority. */
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		prctl(PR_SET_NAME, "hold-lift");
		close(0), close(1), close(2);
		for (;;) {
			usleep(200000);
			lift_workers(priority + 1);
		}
	}
	printf("%d\n", child);
	fflush(stdout);
	for (int cpu = 0; cpu < cpus; cpu++) {
		struct sched_param param = { .sched_priority = priority };
		int ready[2];
		char byte = 0;

		if (only >= 0 && cpu != only)
			continue;
		if (pipe(ready))
			die("pipe");
		child = fork();
		if (child < 0)
			die("fork");
		if (!child) {
			char name[16];
			cpu_set_t set;

			CPU_ZERO(&set);
			CPU_SET(cpu, &set);
			snprintf(name, sizeof(name), "hold-%d", cpu);
			prctl(PR_SET_NAME, name);
			if (sched_setaffinity(0, sizeof(set), &set))
				die("sched_setaffinity");
			/* Says so while it still has the higher priority: it may not run for long afterwards. */
			if (write(ready[1], &byte, 1) != 1 || sched_setscheduler(0, SCHED_FIFO, &param))
				_exit(1);
			close(0), close(1), close(2);
			for (;;)
				burnt++;
		}
		close(ready[1]);
		if (read(ready[0], &byte, 1) != 1)
			die("hold");
		close(ready[0]);
		printf("%d\n", child);
	}
	return 0;
}

/* --- tasks of the schedulers that fail ---------------------------------- */

static int lock_pipe[2];
static char *lock_page;

static void *lock_owner(void *unused)
{
	(void)unused;
	prctl(PR_SET_NAME, "owner");
	if (setpriority(PRIO_PROCESS, 0, 5))
		die("setpriority");
	for (int i = 0; i < 20; i++)
		usleep(2000);
	/* pipe_write() copies with the pipe's mutex held; the page is not there. */
	if (write(lock_pipe[1], lock_page, 4096) != 4096)
		die("write to the pipe");
	for (;;)
		pause();
}

static void *lock_waiter(void *name)
{
	char byte = 0;

	prctl(PR_SET_NAME, name);
	if (write(lock_pipe[1], &byte, 1) != 1)
		die("write to the pipe");
	for (;;)
		pause();
}

static int lock(int seconds)
{
	static char names[2][16] = { "waiter-0", "waiter-1" };
	int fault = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register wanted = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy copy = { .len = 4096 };
	static char content[4096];

	lock_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (fault < 0 || ioctl(fault, UFFDIO_API, &api) || lock_page == MAP_FAILED)
		die("userfaultfd");
	wanted.range.start = (unsigned long)lock_page;
	wanted.range.len = 4096;
	if (ioctl(fault, UFFDIO_REGISTER, &wanted) || pipe(lock_pipe))
		die("userfaultfd range");
	start_thread(lock_owner, NULL);
	sleep(1);
	start_thread(lock_waiter, names[0]);
	start_thread(lock_waiter, names[1]);
	sleep((unsigned int)seconds);
	copy.dst = (unsigned long)lock_page;
	copy.src = (unsigned long)content;
	if (ioctl(fault, UFFDIO_COPY, &copy))
		die("UFFDIO_COPY");
	for (;;)
		pause();
}

static int consume(int ring_id, int array_id, int seconds)
{
	struct bpf_map_info info;
	int array = map_by_id(array_id, &info), ring = map_by_id(ring_id, &info);
	long long end = now_us() + seconds * 1000000LL;
	unsigned long size = info.max_entries, at = 0, granted = 0;
	volatile unsigned long *consumed = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
	volatile char *produced = mmap(NULL, 4096 + 2 * size, PROT_READ, MAP_SHARED, ring, 4096);
	union bpf_attr attr = { 0 };
	int zero = 0;

	if (consumed == MAP_FAILED || produced == MAP_FAILED)
		die("mmap of the ring buffer");
	prctl(PR_SET_NAME, "consumer");
	attr.map_fd = (unsigned int)array;
	attr.key = (unsigned long)&zero;
	attr.value = (unsigned long)&granted;
	while (now_us() < end) {
		unsigned long to = __atomic_load_n((volatile unsigned long *)produced, __ATOMIC_ACQUIRE), before = granted;

		while (at < to) {
			volatile unsigned int *record = (volatile unsigned int *)(produced + 4096 + (at & (size - 1)));
			unsigned int length = __atomic_load_n(record, __ATOMIC_ACQUIRE);

			if (length & BPF_RINGBUF_BUSY_BIT)
				break;
			/* u64 at_ns; u32 pid, kind; after a header of 8 bytes */
			if (!(length & BPF_RINGBUF_DISCARD_BIT) && record[5] == 1)
				granted++;
			at += ((length & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT)) + 15) & ~7ul;
		}
		__atomic_store_n(consumed, at, __ATOMIC_RELEASE);
		if (granted != before && syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof(attr)))
			die("map update");
		usleep(2000);
	}
	for (;;)
		pause();
}

/* --- */

/* A line of the cache for each, so that they do not slow each other down. */
struct done {
	volatile unsigned long count;
	char rest[56];
};

static void *count_task(void *arg)
{
	struct done *work = arg;

	for (;;)
		work->count++;
	return NULL;
}

static int count(int tasks)
{
	struct done *works = aligned_alloc(64, tasks * sizeof(*works));
	pthread_t thread;
	int i;

	if (!works)
		die("memory");
	memset(works, 0, tasks * sizeof(*works));
	for (i = 0; i < tasks; i++)
		if (pthread_create(&thread, NULL, count_task, &works[i]))
			die("pthread_create");
	for (;;) {
		struct timespec quarter = { .tv_nsec = 250000000 }, now;
		unsigned long sum = 0;

		nanosleep(&quarter, NULL);
		for (i = 0; i < tasks; i++)
			sum += works[i].count;
		clock_gettime(CLOCK_MONOTONIC, &now);
		printf("@count %lu %lu\n", sum, now.tv_sec * 1000000000UL + now.tv_nsec);
		fflush(stdout);
	}
}

static int sysrq(const char *key, int seconds, int count)
{
	int fd = open("/proc/sysrq-trigger", O_WRONLY);

	if (fd < 0)
		die("/proc/sysrq-trigger");
	while (count-- > 0) {
		sleep(seconds);
		if (write(fd, key, 1) != 1)
			die("/proc/sysrq-trigger");
	}
	return 0;
}

/* mapkit.c, in the guests that need it: one program, because each has a C library in it. */
int mapkit(int argc, char **argv) __attribute__((weak));

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "", *name = strrchr(argv[0], '/');

	if (mapkit && !strcmp(name ? name + 1 : argv[0], "mapkit"))
		return mapkit(argc, argv);
	if (!strcmp(what, "rt") && argc > 3) {
		struct sched_param param = { .sched_priority = atoi(argv[2]) };

		if (sched_setscheduler(0, param.sched_priority ? SCHED_FIFO : SCHED_OTHER, &param))
			die("sched_setscheduler");
		execvp(argv[3], argv + 3);
		die(argv[3]);
	}
	if (!strcmp(what, "task") && argc > 3)
		return task(argc - 2, argv + 2);
	if (!strcmp(what, "say") && argc > 2)
		return say(argv[2]);
	if (!strcmp(what, "ask") && argc > 2)
		return ask(argv[2]);
	if (!strcmp(what, "send") && argc > 3)
		return send_file(argv[2], argv[3]);
	if (!strcmp(what, "snap") && argc > 2)
		return snap(argv[2]);
	if (!strcmp(what, "taskmap") && argc > 3)
		return taskmap(atoi(argv[2]), argv[3]);
	if (!strcmp(what, "cgroupmap") && argc > 3)
		return cgroupmap(atoi(argv[2]), argv[3]);
	if (!strcmp(what, "btf") && argc > 3)
		return btf(atoi(argv[2]), argv[3]);
	if (!strcmp(what, "arenapages") && argc > 3)
		return arenapages(atoi(argv[2]), argv[3]);
	if (!strcmp(what, "drain") && argc > 3)
		return drain(argv[2], argv[3]);
	if (!strcmp(what, "hold") && argc > 2)
		return hold(atoi(argv[2]), argc > 3 ? atoi(argv[3]) : -1);
	if (!strcmp(what, "lock") && argc > 2)
		return lock(atoi(argv[2]));
	if (!strcmp(what, "consume") && argc > 4)
		return consume(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
	if (!strcmp(what, "arena") && argc > 5)
		return arena(atoi(argv[2]), strtoul(argv[3], NULL, 0), strtoul(argv[4], NULL, 0), argv[5]);
	if (!strcmp(what, "locks") && argc > 2)
		return locks(argv[2]);
	if (!strcmp(what, "count") && argc > 2)
		return count(atoi(argv[2]));
	if (!strcmp(what, "sysrq") && argc > 4)
		return sysrq(argv[2], atoi(argv[3]), atoi(argv[4]));
	if (!strcmp(what, "sync")) {
		sync();
		return 0;
	}
	fprintf(stderr, "guestkit: see the head of guestkit.c\n");
	return 2;
}
