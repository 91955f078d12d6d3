// SPDX-License-Identifier: GPL-2.0
/* State beyond the registers: what QEMU saves and restores, and the ways that are seldom used. */
#define _GNU_SOURCE
#include "vm.h"
#include <signal.h>
#include <stddef.h>
#include <sys/time.h>

#define MC_STATUS_VAL	(1ull << 63)
#define MC_STATUS_OVER	(1ull << 62)
#define MC_STATUS_UC	(1ull << 61)
#define MC_STATUS_PCC	(1ull << 57)
#define MCG_STATUS_MCIP	(1ull << 2)
#define MCG_LMCE_P	(1ull << 27)

GUEST64(halt64, "1: hlt; jmp 1b\n");
GUEST64(out64, "1: out %eax, $0x10; jmp 1b\n");
GUEST64(spin64, "sti; 1: jmp 1b\n");

static void enable_vm_cap(struct vm *vm, unsigned int number)
{
	OK(enable_cap(vm->fd, number, 1));
}

/* Every listed MSR can be read, written back, and is the same afterwards; the TSC goes on. */
TEST(listed_msrs)
{
	struct {
		struct kvm_msr_list header;
		uint32_t index[512];
	} list = { .header.nmsrs = 512 };
	struct vm vm;
	uint64_t v, w;

	VM_NEW_LONG(&vm, halt64);
	OK(ioctl(vm.kvm, KVM_GET_MSR_INDEX_LIST, &list));
	for (int round = 0; round < 2; round++) {
		for (unsigned int i = 0; i < list.header.nmsrs; i++) {
			uint32_t index = list.index[i];

			/* Another clock of KVM's, and one that needs a local APIC. */
			if (index == 0x40000020 || index == 0x4b564d06)
				continue;
			if (!get_msr(&vm, index, &v))
				FAIL("MSR %#x is listed and cannot be read", index);
			else if (!set_msr(&vm, index, v))
				FAIL("MSR %#x: %#llx cannot be written back", index, (unsigned long long)v);
			else if (!get_msr(&vm, index, &w) || (index == 0x10 ? w < v : w != v))
				FAIL("MSR %#x: %#llx after %#llx", index, (unsigned long long)w, (unsigned long long)v);
			for (unsigned int j = 0; j < i; j++)
				if (list.index[j] == index)
					FAIL("MSR %#x is listed twice", index);
		}
		vm_expect(&vm, KVM_EXIT_HLT);
	}
	/* Without CPUID table, too: a listed MSR that the vCPU does not have reads as zero and takes zero. */
	struct vm bare = { .kvm = vm.kvm };
	bare.fd = OK(ioctl(vm.kvm, KVM_CREATE_VM, 0));
	bare.vcpu = OK(ioctl(bare.fd, KVM_CREATE_VCPU, 0));
	for (unsigned int i = 0; i < list.header.nmsrs; i++)
		/* KVM's VMX MSRs follow a rule of their own. */
		if ((list.index[i] < 0x480 || list.index[i] > 0x491) && !get_msr(&bare, list.index[i], &v))
			FAIL("MSR %#x cannot be read without CPUID", list.index[i]);
	CHECK(!get_msr(&bare, 0x12345, &v));
	CHECK(!set_msr(&bare, 0x12345, 0));
}

TEST(feature_msrs)
{
	struct {
		struct kvm_msr_list header;
		uint32_t index[512];
	} list = { .header.nmsrs = 0 };
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry[2];
	} m;
	unsigned int n;
	int kvm = device_open();
	struct vm vm;
	uint64_t v;

	VM_NEW_LONG(&vm, halt64);
	CHECK_EQ(OK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_GET_MSR_FEATURES)), 1);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, &list), E2BIG);
	n = list.header.nmsrs;
	CHECK(n > 0 && n < 512);
	OK(ioctl(kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, &list));
	CHECK_EQ(list.header.nmsrs, n);
	for (unsigned int i = 0; i < n; i++) {
		memset(&m, 0, sizeof(m));
		m.header.nmsrs = 1;
		m.entry[0].index = list.index[i];
		CHECK_EQ(OK(ioctl(kvm, KVM_GET_MSRS, &m)), 1);
		if (!get_msr(&vm, list.index[i], &v))
			FAIL("MSR %#x is a feature, and no vCPU has it", list.index[i]);
	}
	m.header.nmsrs = 2;
	m.entry[0].index = list.index[0];
	m.entry[1].index = 0x12345;
	CHECK_EQ(OK(ioctl(kvm, KVM_GET_MSRS, &m)), 1);
	m.entry[0].index = 0x12345;
	CHECK_EQ(OK(ioctl(kvm, KVM_GET_MSRS, &m)), 0);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_MSRS, (void *)8), EFAULT);
}

TEST(emulated_cpuid)
{
	struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entry[4];
	} c;
	int kvm = device_open();

	CHECK_EQ(OK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_EXT_EMUL_CPUID)), 1);
	memset(&c, 0, sizeof(c));
	CHECK_ERRNO(ioctl(kvm, KVM_GET_EMULATED_CPUID, &c), E2BIG);
	c.header.nent = 3;
	CHECK_ERRNO(ioctl(kvm, KVM_GET_EMULATED_CPUID, &c), E2BIG);
	c.header.nent = 4;
	c.entry[3].padding[1] = 1;
	CHECK_ERRNO(ioctl(kvm, KVM_GET_EMULATED_CPUID, &c), EINVAL);
	c.entry[3].padding[1] = 0;
	OK(ioctl(kvm, KVM_GET_EMULATED_CPUID, &c));
	CHECK_EQ(c.header.nent, 3);
	CHECK_EQ(c.entry[0].function, 0);
	CHECK_EQ(c.entry[0].eax, 7);
	CHECK_EQ(c.entry[1].function, 1);
	CHECK_EQ(c.entry[2].function, 7);
	CHECK_EQ(c.entry[2].flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_EMULATED_CPUID, (void *)8), EFAULT);
}

TEST(device_attributes)
{
	uint64_t xcr0 = 0;
	struct kvm_device_attr a = { .group = 0, .attr = KVM_X86_XCOMP_GUEST_SUPP, .addr = (uintptr_t)&xcr0 };
	int kvm = device_open();

	CHECK_EQ(OK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SYS_ATTRIBUTES)), 1);
	OK(ioctl(kvm, KVM_HAS_DEVICE_ATTR, &a));
	OK(ioctl(kvm, KVM_GET_DEVICE_ATTR, &a));
	struct kvm_cpuid_entry2 *e = cpuid_entry(supported_cpuid(kvm), 0xd, 0);
	CHECK_EQ(xcr0, e ? (uint64_t)e->edx << 32 | e->eax : 0);
	a.addr = 8;
	CHECK_ERRNO(ioctl(kvm, KVM_GET_DEVICE_ATTR, &a), EFAULT);
	a.attr = 99;
	CHECK_ERRNO(ioctl(kvm, KVM_HAS_DEVICE_ATTR, &a), ENXIO);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_DEVICE_ATTR, &a), ENXIO);
}

TEST(sregs2)
{
	struct kvm_sregs2 a, b;
	struct kvm_sregs s;
	struct vm vm;

	VM_NEW_LONG(&vm, halt64);
	CHECK_EQ(OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_SREGS2)), 1);
	OK(ioctl(vm.vcpu, KVM_GET_SREGS2, &a));
	s = vm_sregs(&vm);
	CHECK(!memcmp(&s, &a, offsetof(struct kvm_sregs, interrupt_bitmap)));
	CHECK_EQ(a.flags, 0);
	a.gs.base = 0x12345000;
	OK(ioctl(vm.vcpu, KVM_SET_SREGS2, &a));
	vm_expect(&vm, KVM_EXIT_HLT);
	OK(ioctl(vm.vcpu, KVM_GET_SREGS2, &b));
	CHECK_EQ(b.gs.base, 0x12345000);
	a.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_SREGS2, &a), EINVAL);
	a.flags = 2;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_SREGS2, &a), EINVAL);
	/* PAE paging: the four entries come along. */
	a.flags = 0;
	a.efer = 0;
	a.cs.l = 0;
	a.cs.db = 1;
	a.cr3 = G_DATA;
	*(uint64_t *)(vm.mem + G_DATA) = 0x5001;
	*(uint64_t *)(vm.mem + G_DATA + 24) = 0x6001;
	OK(ioctl(vm.vcpu, KVM_SET_SREGS2, &a));
	OK(ioctl(vm.vcpu, KVM_GET_SREGS2, &b));
	CHECK_EQ(b.flags, KVM_SREGS2_FLAGS_PDPTRS_VALID);
	CHECK_EQ(b.pdptrs[0], 0x5001);
	CHECK_EQ(b.pdptrs[1], 0);
	CHECK_EQ(b.pdptrs[3], 0x6001);
	OK(ioctl(vm.vcpu, KVM_SET_SREGS2, &b));
}

TEST(xsave2)
{
	uint8_t *a, *b;
	long bytes;
	struct vm vm;

	VM_NEW_LONG(&vm, halt64);
	bytes = OK(ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2));
	CHECK(bytes >= 4096);
	a = calloc(1, bytes);
	b = calloc(1, bytes);
	OK(ioctl(vm.vcpu, KVM_GET_XSAVE2, a));
	OK(ioctl(vm.vcpu, KVM_GET_XSAVE, b));
	CHECK(!memcmp(a, b, 4096));
	a[160] = 0x77;	/* XMM0 */
	*(uint64_t *)(a + 512) |= 3;
	OK(ioctl(vm.vcpu, KVM_SET_XSAVE, a));
	vm_expect(&vm, KVM_EXIT_HLT);
	OK(ioctl(vm.vcpu, KVM_GET_XSAVE2, b));
	CHECK_EQ(b[160], 0x77);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_GET_XSAVE2, (void *)8), EFAULT);
}

/* A signal that is blocked otherwise, let in by the mask, ends KVM_RUN. */
TEST(signal_mask)
{
	struct {
		struct kvm_signal_mask header;
		uint8_t set[8];
	} m = { .header.len = 8 };
	struct sigaction sa = { .sa_handler = nothing };
	struct itimerval timer = { .it_value.tv_usec = 50000, .it_interval.tv_usec = 50000 };
	sigset_t blocked, now;
	struct vm vm;

	VM_NEW_LONG(&vm, spin64);
	sigaction(SIGALRM, &sa, NULL);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGALRM);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	OK(ioctl(vm.vcpu, KVM_SET_SIGNAL_MASK, &m));
	setitimer(ITIMER_REAL, &timer, NULL);
	CHECK_EQ(vm_try_run(&vm), EINTR);
	CHECK_EQ(vm.run->exit_reason, KVM_EXIT_INTR);
	timer = (struct itimerval){ 0 };
	setitimer(ITIMER_REAL, &timer, NULL);
	/* Blocked again after it. */
	sigprocmask(SIG_SETMASK, NULL, &now);
	CHECK(sigismember(&now, SIGALRM));
	m.header.len = 4;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_SIGNAL_MASK, &m), EINVAL);
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_SIGNAL_MASK, (void *)8), EFAULT);
	OK(ioctl(vm.vcpu, KVM_SET_SIGNAL_MASK, NULL));
}

TEST(sync_regs)
{
	struct kvm_sync_regs *sync;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, out64);
	sync = &vm.run->s.regs;
	CHECK_EQ(OK(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS)), 7);
	vm.run->kvm_valid_regs = 8;
	CHECK_EQ(vm_try_run(&vm), EINVAL);
	vm.run->kvm_valid_regs = 0;
	vm.run->kvm_dirty_regs = 1ull << 40;
	CHECK_EQ(vm_try_run(&vm), EINVAL);
	vm.run->kvm_dirty_regs = 0;
	vm.run->kvm_valid_regs = 7;
	vm_expect_out(&vm, 0x10);
	r = vm_regs(&vm);
	CHECK(!memcmp(&sync->regs, &r, sizeof(r)));
	struct kvm_sregs s = vm_sregs(&vm);
	CHECK(!memcmp(&sync->sregs, &s, sizeof(s)));
	struct kvm_vcpu_events e = vm_events(&vm);
	CHECK(!memcmp(&sync->events, &e, sizeof(e)));
	/* What is not marked is not taken. */
	sync->regs.rax = 0x1111;
	CHECK(vm_expect_out(&vm, 0x10) != 0x1111);
	sync->regs.rax = 0x2222;
	sync->sregs.gs.base = 0x7000;
	sync->events.nmi.masked = 1;
	vm.run->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x2222);
	CHECK_EQ(vm.run->kvm_dirty_regs, 0);
	CHECK_EQ(vm_sregs(&vm).gs.base, 0x7000);
	CHECK_EQ(vm_events(&vm).nmi.masked, 1);
	/* Values that the ioctl would refuse. */
	sync->sregs.cr4 = 1ull << 40;
	vm.run->kvm_dirty_regs = KVM_SYNC_X86_SREGS;
	CHECK_EQ(vm_try_run(&vm), EINVAL);
	vm.run->kvm_dirty_regs = 0;
	vm.run->kvm_valid_regs = 0;
	memset(sync, 0xee, sizeof(*sync));
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(sync->regs.rax, 0xeeeeeeeeeeeeeeeeull);
}

static int set_mce(struct vm *vm, unsigned int bank, uint64_t status, uint64_t mcg_status)
{
	struct kvm_x86_mce m = { .status = status, .addr = 0x1234, .misc = 0x5678, .mcg_status = mcg_status,
				 .bank = bank };

	return ioctl(vm->vcpu, KVM_X86_SET_MCE, &m);
}

TEST(machine_checks)
{
	uint64_t cap = 10 | 1 << 8 | 1 << 24, v;
	struct kvm_sregs s;
	struct vm vm;

	VM_NEW_LONG(&vm, halt64);
	OK(ioctl(vm.vcpu, KVM_X86_SETUP_MCE, &cap));
	CHECK(get_msr(&vm, 0x179, &v) && v == (is_amd() ? cap & 0x1ff : cap));
	CHECK(get_msr(&vm, 0x17b, &v) && v == ~0ull);
	CHECK(get_msr(&vm, 0x400, &v) && v == ~0ull);
	CHECK_ERRNO(set_mce(&vm, 10, MC_STATUS_VAL, 0), EINVAL);
	CHECK_ERRNO(set_mce(&vm, 1, MC_STATUS_UC, 0), EINVAL);
	/* Corrected: recorded; again: overflow. */
	OK(set_mce(&vm, 1, MC_STATUS_VAL | 5, 0));
	CHECK(get_msr(&vm, 0x405, &v) && v == (MC_STATUS_VAL | 5));
	CHECK(get_msr(&vm, 0x406, &v) && v == 0x1234);
	CHECK(get_msr(&vm, 0x407, &v) && v == 0x5678);
	OK(set_mce(&vm, 1, MC_STATUS_VAL | 6, 0));
	CHECK(get_msr(&vm, 0x405, &v) && v == (MC_STATUS_VAL | MC_STATUS_OVER | 6));
	/* Uncorrected: #MC, if the guest can take it. */
	s = vm_sregs(&vm);
	s.cr4 |= 1 << 6;
	vm_set_sregs(&vm, &s);
	OK(set_mce(&vm, 2, MC_STATUS_VAL | MC_STATUS_UC | MC_STATUS_PCC, MCG_STATUS_MCIP));
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 18);
	CHECK(get_msr(&vm, 0x409, &v) && v == (MC_STATUS_VAL | MC_STATUS_UC | MC_STATUS_PCC));
	CHECK(get_msr(&vm, 0x17a, &v) && v == MCG_STATUS_MCIP);
	/* Another while the first is handled: shutdown. */
	OK(set_mce(&vm, 3, MC_STATUS_VAL | MC_STATUS_UC | MC_STATUS_PCC, MCG_STATUS_MCIP));
	vm_expect(&vm, KVM_EXIT_SHUTDOWN);
	/* Reporting switched off in the bank. */
	CHECK(set_msr(&vm, 0x40c, 0));
	OK(set_mce(&vm, 3, MC_STATUS_VAL | MC_STATUS_UC | MC_STATUS_PCC, MCG_STATUS_MCIP));
	CHECK(get_msr(&vm, 0x40d, &v) && v == 0);
}

/* Firmware allows local machine checks and locks; the kernel switches them on. */
GUEST64(lmce64,
	"mov $0x3a, %ecx; mov $0x100001, %eax; xor %edx, %edx; wrmsr\n"
	"mov $0x4d0, %ecx; mov $1, %eax; wrmsr\n"
	"1: hlt; jmp 1b\n");

TEST(local_machine_checks)
{
	uint64_t cap, v;
	struct vm vm;

	VM_NEW_LONG(&vm, lmce64);
	OK(ioctl(vm.kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, &cap));
	CHECK_EQ(!!(cap & MCG_LMCE_P), !is_amd());
	cap = 10 | MCG_LMCE_P;
	if (is_amd()) {
		CHECK_ERRNO(ioctl(vm.vcpu, KVM_X86_SETUP_MCE, &cap), EINVAL);
		return;
	}
	OK(ioctl(vm.vcpu, KVM_X86_SETUP_MCE, &cap));
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 0);
	CHECK(get_msr(&vm, 0x3a, &v) && v == 0x100001);
	CHECK(get_msr(&vm, 0x4d0, &v) && v == 1);
}

TEST(triple_fault_event)
{
	struct kvm_vcpu_events e;
	struct vm vm;

	VM_NEW_LONG(&vm, halt64);
	e = vm_events(&vm);
	CHECK(!(e.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT));
	e.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e), EINVAL);
	enable_vm_cap(&vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT);
	e = vm_events(&vm);
	CHECK(e.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT);
	CHECK_EQ(e.triple_fault.pending, 0);
	e.triple_fault.pending = 1;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	CHECK_EQ(vm_events(&vm).triple_fault.pending, 1);
	vm_expect(&vm, KVM_EXIT_SHUTDOWN);
	CHECK_EQ(vm_events(&vm).triple_fault.pending, 0);
	vm_expect(&vm, KVM_EXIT_HLT);
}

TEST(exception_payload)
{
	struct kvm_vcpu_events e;
	struct kvm_debugregs d;
	struct vm vm;

	VM_NEW_LONG(&vm, halt64);
	e = vm_events(&vm);
	CHECK(!(e.flags & KVM_VCPUEVENT_VALID_PAYLOAD));
	e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e), EINVAL);
	enable_vm_cap(&vm, KVM_CAP_EXCEPTION_PAYLOAD);
	e = vm_events(&vm);
	CHECK(e.flags & KVM_VCPUEVENT_VALID_PAYLOAD);
	e.exception.pending = 1;
	e.exception.nr = 1;
	e.exception_has_payload = 1;
	e.exception_payload = 1 << 2;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	e = vm_events(&vm);
	CHECK_EQ(e.exception.pending, 1);
	CHECK_EQ(e.exception.injected, 0);
	CHECK_EQ(e.exception.nr, 1);
	CHECK_EQ(e.exception_has_payload, 1);
	CHECK_EQ(e.exception_payload, 1 << 2);
	/* The payload is not in DR6 before the exception is delivered. */
	OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &d));
	CHECK_EQ(d.dr6 & 15, 0);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 1);
	OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &d));
	CHECK_EQ(d.dr6 & 15, 1 << 2);
	/* A page fault brings its address. */
	e = vm_events(&vm);
	e.exception.pending = 1;
	e.exception.nr = 14;
	e.exception.has_error_code = 1;
	e.exception.error_code = 4;
	e.exception_has_payload = 1;
	e.exception_payload = 0x123456789;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->event[1].vector, 14);
	CHECK_EQ(vm_log(&vm)->event[1].error, 4);
	CHECK_EQ(vm_log(&vm)->event[1].cr2, 0x123456789);
	e = vm_events(&vm);
	CHECK_EQ(e.exception.pending, 0);
	CHECK_EQ(e.exception.injected, 0);
}
