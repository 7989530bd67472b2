// SPDX-License-Identifier: GPL-2.0-only
/*
 * Keeps what a kernel switches on for its first virtual machine, its first vCPU with and without a
 * local APIC, and its first perf event: each makes it patch its text, as does the last one that
 * goes, and under emulation by several threads a CPU may run into what is half patched. Started
 * while nothing else runs, and left running.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int vcpu(int kvm, int with_apic)
{
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	if (vm < 0 || (with_apic && ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0))
		return -1;
	return ioctl(vm, KVM_CREATE_VCPU, 0);
}

int main(void)
{
	struct perf_event_attr event;
	int kvm = open("/dev/kvm", O_RDWR);

	if (kvm < 0 || vcpu(kvm, 0) < 0 || vcpu(kvm, 1) < 0) {
		perror("kvmhold: /dev/kvm");
		return 1;
	}
	memset(&event, 0, sizeof(event));
	event.type = PERF_TYPE_SOFTWARE;
	event.size = sizeof(event);
	event.config = PERF_COUNT_SW_DUMMY;
	/* A kernel without perf events has nothing to patch for them. */
	if (syscall(SYS_perf_event_open, &event, 0, -1, -1, 0) < 0)
		perror("kvmhold: perf_event_open");
	printf("kvmhold: ready\n");
	fflush(stdout);
	for (;;)
		pause();
}
