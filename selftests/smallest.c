// SPDX-License-Identifier: GPL-2.0
/* The smallest guest: it writes one letter to one port. docs/hacking.md walks through this program. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* The value of a system call, which has to succeed. */
#define CHECK(call) ({ long result_ = (long)(call); if (result_ == -1) die(#call); result_; })

/* The guest, in 16-bit code: AL becomes a letter, port 0x10 gets it, and the CPU halts. */
static const unsigned char code[] = { 0xb0, 'A', /* mov $'A', %al */ 0xe6, 0x10, /* out %al, $0x10 */ 0xf4 /* hlt */ };

static void die(const char *call)
{
	printf("# %s: %m\nnot ok 1 smallest\n", call);
	exit(1);
}

int main(int argc, char **argv)
{
	const char *device = argc > 2 ? argv[2] : getenv("DEVICE") ? getenv("DEVICE") : "/dev/rvmm";

	printf("TAP version 13\n1..1\n");

	/* The hypervisor is a file, and so is each virtual machine, and each virtual CPU. */
	int kvm = CHECK(open(device, O_RDWR | O_CLOEXEC));
	int vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
	int vcpu = CHECK(ioctl(vm, KVM_CREATE_VCPU, 0));

	/* A page of this process is the guest's memory from address 0x1000 on. */
	void *page = (void *)CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	struct kvm_userspace_memory_region slot = { 0, 0, 0x1000, 4096, (unsigned long)page };
	memcpy(page, code, sizeof(code));
	CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));

	/* The CPU comes out of RESET in real mode; the code segment's base becomes 0 and RIP the address. */
	struct kvm_sregs sregs;
	CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs));
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	CHECK(ioctl(vcpu, KVM_SET_REGS, &regs));

	/* KVM_RUN returns when the guest does what user space has to answer; the shared page says what. */
	struct kvm_run *run = (void *)CHECK(mmap(NULL, CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)),
						PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0));
	CHECK(ioctl(vcpu, KVM_RUN, 0));
	const char *data = (const char *)run + run->io.data_offset;
	int good = run->exit_reason == KVM_EXIT_IO && run->io.port == 0x10 && *data == 'A';
	printf("# exit %u, port %#x, '%c'\n%s 1 smallest\n", run->exit_reason, run->io.port, *data,
	       good ? "ok" : "not ok");
	return !good;
}
