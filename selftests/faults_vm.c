// SPDX-License-Identifier: GPL-2.0
/* Machines, their vCPUs and memory, what user space reads and writes of them. */
#define _GNU_SOURCE
#include "faults.h"
#include <sys/wait.h>

GUEST64(hello, "mov $0x77, %eax; out %eax, $0x11; hlt\n");

ENTERS(hello)

static long add_pit(void)
{
	struct kvm_pit_config pit = { 0 };

	return ioctl(w.vm.fd, KVM_CREATE_PIT2, &pit);
}

/* Not an index: ids have a table of their own then. */
static long add_distant_vcpu(void)
{
	return w.vcpu2 = ioctl(w.vm.fd, KVM_CREATE_VCPU, 700);
}

static long msr_lists(void)
{
	static struct {
		struct kvm_msr_list header;
		uint32_t index[1024];
	} list;

	list.header.nmsrs = 1024;
	if (ioctl(w.vm.kvm, KVM_GET_MSR_INDEX_LIST, &list))
		return -1;
	list.header.nmsrs = 1024;
	return ioctl(w.vm.kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, &list);
}

static long cpuid_lists(void)
{
	static struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entry[256];
	} list;

	list.header.nent = 256;
	if (ioctl(w.vm.kvm, KVM_GET_SUPPORTED_CPUID, &list))
		return -1;
	list.header.nent = 256;
	if (ioctl(w.vm.kvm, KVM_GET_SUPPORTED_HV_CPUID, &list))
		return -1;
	list.header.nent = 256;
	return ioctl(w.vm.vcpu, KVM_GET_CPUID2, &list);
}

static long statistics(void)
{
	static char text[65536];

	if (w.fd[0] < 0)
		w.fd[0] = ioctl(w.vm.fd, KVM_GET_STATS_FD, 0);
	if (w.fd[0] >= 0 && w.fd[1] < 0)
		w.fd[1] = ioctl(w.vm.vcpu, KVM_GET_STATS_FD, 0);
	if (w.fd[0] < 0 || w.fd[1] < 0)
		return -1;
	if (pread(w.fd[0], text, sizeof(text), 0) < 0)
		return -1;
	return pread(w.fd[1], text, sizeof(text), 0);
}

static long vfio_device(void)
{
	struct kvm_create_device d = { .type = KVM_DEV_TYPE_VFIO };
	long result = ioctl(w.vm.fd, KVM_CREATE_DEVICE, &d);

	if (!result)
		w.fd[2] = d.fd;
	return result;
}

static long fork_process(void)
{
	pid_t child = fork();

	if (child < 0)
		return -1;
	if (!child)
		_exit(0);
	return waitpid(child, NULL, 0);
}

TEST_SECONDS(machines, 1200)
{
	EACH_FAILS(STEP(open_device), STEP(create_vm), STEP(add_slot), STEP(add_irqchip), STEP(add_pit),
		   STEP(add_vcpu), STEP(map_vcpu), STEP(put_cpuid), STEP(add_distant_vcpu), STEP(msr_lists),
		   STEP(cpuid_lists), STEP(statistics), STEP(vfio_device), STEP(fork_process), SPARED(enter_hello),
		   STEP(run));
	check_said(0x77);
}

static long get_and_set(int fd, unsigned long get, unsigned long set, void *buffer)
{
	return ioctl(fd, get, buffer) < 0 ? -1 : ioctl(fd, set, buffer);
}

static union {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_sregs2 sregs2;
	struct kvm_fpu fpu;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct kvm_lapic_state lapic;
	struct kvm_irqchip irqchip;
	struct kvm_pit_state2 pit;
	struct kvm_clock_data clock;
	uint8_t bytes[65536];
} u;

#define BOTH(name, fd, get, set) static long name(void) { return get_and_set(fd, get, set, &u); }

BOTH(regs, w.vm.vcpu, KVM_GET_REGS, KVM_SET_REGS)
BOTH(sregs, w.vm.vcpu, KVM_GET_SREGS, KVM_SET_SREGS)
BOTH(sregs2, w.vm.vcpu, KVM_GET_SREGS2, KVM_SET_SREGS2)
BOTH(fpu, w.vm.vcpu, KVM_GET_FPU, KVM_SET_FPU)
BOTH(xsave, w.vm.vcpu, KVM_GET_XSAVE, KVM_SET_XSAVE)
BOTH(xsave2, w.vm.vcpu, KVM_GET_XSAVE2, KVM_SET_XSAVE)
BOTH(xcrs, w.vm.vcpu, KVM_GET_XCRS, KVM_SET_XCRS)
BOTH(debugregs, w.vm.vcpu, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS)
BOTH(events, w.vm.vcpu, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS)
BOTH(mp_state, w.vm.vcpu, KVM_GET_MP_STATE, KVM_SET_MP_STATE)
BOTH(lapic, w.vm.vcpu, KVM_GET_LAPIC, KVM_SET_LAPIC)
BOTH(pit, w.vm.fd, KVM_GET_PIT2, KVM_SET_PIT2)

static long irqchips(void)
{
	for (int i = 0; i < 3; i++) {
		u.irqchip.chip_id = i;
		if (get_and_set(w.vm.fd, KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, &u))
			return -1;
	}
	return 0;
}

static long clock_of_vm(void)
{
	if (ioctl(w.vm.fd, KVM_GET_CLOCK, &u))
		return -1;
	u.clock.flags = 0;
	return ioctl(w.vm.fd, KVM_SET_CLOCK, &u);
}

/* Of paravirtual pages, Hyper-V's among them. */
static long msrs(void)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry[12];
	} m = {
		.header.nmsrs = 8,
		.entry = {
			{ .index = 0x10, .data = 1000 }, { .index = 0x277, .data = 0x0007040600070406 },
			{ .index = 0x4b564d00, .data = 0x200000 }, { .index = 0x4b564d01, .data = 0x201001 },
			{ .index = 0x4b564d03, .data = 0x202001 }, { .index = 0x4b564d04, .data = 0x203001 },
			{ .index = 0x40000000, .data = 1 }, { .index = 0x40000001, .data = 0x204001 },
		},
	};
	long set = ioctl(w.vm.vcpu, KVM_SET_MSRS, &m);

	if (set < 0 || ioctl(w.vm.vcpu, KVM_GET_MSRS, &m) < 0)
		return -1;
	return in_full(set, 8);
}

static long filter(void)
{
	static uint8_t all[64] = { [0 ... 63] = 0xff };
	struct kvm_msr_filter f = {
		.ranges = {
			{ .flags = 3, .nmsrs = 64, .base = 0xc0010200, .bitmap = all },
			{ .flags = 3, .nmsrs = 64, .base = 0x10000, .bitmap = all },
		},
	};

	return ioctl(w.vm.fd, KVM_X86_SET_MSR_FILTER, &f);
}

static long signal_mask(void)
{
	struct {
		struct kvm_signal_mask header;
		uint64_t mask;
	} __attribute__((packed)) m = { .header.len = 8 };

	return ioctl(w.vm.vcpu, KVM_SET_SIGNAL_MASK, &m);
}

static long breakpoints(void)
{
	struct kvm_guest_debug d = {
		.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, .arch.debugreg = { [0] = 0x5000, [7] = 0x401 },
	};

	return ioctl(w.vm.vcpu, KVM_SET_GUEST_DEBUG, &d);
}

static long translation(void)
{
	struct kvm_translation t = { .linear_address = G_CODE };

	return ioctl(w.vm.vcpu, KVM_TRANSLATE, &t);
}

static long words(void)
{
	uint64_t map = 0xfffbc000, mce = 0x10a;

	if (ioctl(w.vm.fd, KVM_SET_TSS_ADDR, 0xfffbd000) || ioctl(w.vm.vcpu, KVM_SET_TSC_KHZ, 0) ||
	    ioctl(w.vm.vcpu, KVM_X86_SETUP_MCE, &mce))
		return -1;
	/* Before the first vCPU only. */
	if (!ioctl(w.vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &map) || errno != EINVAL)
		return -1;
	return 0;
}

TEST_SECONDS(state, 1200)
{
	EACH_FAILS(SPARED(open_device), SPARED(create_vm), SPARED(add_slot), SPARED(add_irqchip), SPARED(add_pit),
		   SPARED(add_vcpu), SPARED(map_vcpu), SPARED(put_cpuid), SPARED(enter_hello), STEP(regs),
		   STEP(sregs), STEP(sregs2), STEP(fpu), STEP(xsave), STEP(xsave2), STEP(xcrs), STEP(debugregs),
		   STEP(events), STEP(mp_state), STEP(lapic), STEP(pit), STEP(irqchips), STEP(clock_of_vm),
		   STEP(msrs), STEP(filter), STEP(signal_mask), STEP(breakpoints), STEP(translation), STEP(words),
		   SPARED(enter_hello), STEP(run));
	check_said(0x77);
}

/* --- memory ------------------------------------------------------------------------------------------------- */

#define TEST_GPA	0x8000000
#define TEST_BYTES	(8 * MIB)

/* Adds up the words of its memory, two pages of each 2 MiB, and adds to them. */
GUEST64(adds,
	"xor %ebp, %ebp; mov $" STR(TEST_GPA) ", %edi; mov $4, %ecx\n"
	"1: incq (%rdi); add (%rdi), %rbp; incq 0x5000(%rdi); add 0x5000(%rdi), %rbp; add $0x200000, %rdi; loop 1b\n"
	"mov %ebp, %eax; out %eax, $0x11; hlt\n");

ENTERS(adds)

static uint8_t *test_memory(void)
{
	return w.vm.mem + 8 * MIB;
}

static long test_slot(void)
{
	return try_slot(w.vm.fd, 1, 0, TEST_GPA, TEST_BYTES, test_memory());
}

static long logged_slot(void)
{
	return try_slot(w.vm.fd, 1, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA, TEST_BYTES, test_memory());
}

static long moved_slot(void)
{
	return try_slot(w.vm.fd, 1, KVM_MEM_LOG_DIRTY_PAGES, TEST_GPA + TEST_BYTES, TEST_BYTES, test_memory());
}

static long no_slot(void)
{
	return try_slot(w.vm.fd, 1, 0, 0, 0, NULL);
}

static uint64_t bits[TEST_BYTES / 4096 / 64];

static long get_log(void)
{
	struct kvm_dirty_log log = { .slot = 1, .dirty_bitmap = bits };

	return ioctl(w.vm.fd, KVM_GET_DIRTY_LOG, &log);
}

static long clear_log(void)
{
	struct kvm_clear_dirty_log log = { .slot = 1, .num_pages = TEST_BYTES / 4096, .dirty_bitmap = bits };

	return ioctl(w.vm.fd, KVM_CLEAR_DIRTY_LOG, &log);
}

static long manual_log(void)
{
	return enable_cap(w.vm.fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			  KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
}

static long pre_fault(void)
{
	struct kvm_pre_fault_memory p = { .gpa = TEST_GPA, .size = TEST_BYTES };
	long result;

	/* It says how far it has come. */
	do
		result = ioctl(w.vm.vcpu, KVM_PRE_FAULT_MEMORY, &p);
	while (!result && p.size);
	return result;
}

static long drop_memory(void)
{
	return madvise(test_memory(), TEST_BYTES, MADV_DONTNEED);
}

TEST_SECONDS(slots, 1800)
{
	EACH_FAILS(MACHINE, STEP(test_slot), SPARED(enter_adds), STEP(run), STEP(drop_memory), STEP(pre_fault),
		   SPARED(enter_adds), STEP(run), STEP(logged_slot), SPARED(enter_adds), STEP(run), STEP(get_log),
		   SPARED(enter_adds), STEP(run), STEP(moved_slot), STEP(no_slot), STEP(test_slot),
		   SPARED(enter_adds), STEP(run));
}

TEST_SECONDS(manual_logs, 1800)
{
	EACH_FAILS(MACHINE, STEP(manual_log), STEP(logged_slot), SPARED(enter_adds), STEP(run), STEP(get_log),
		   STEP(clear_log), SPARED(enter_adds), STEP(run), STEP(get_log), STEP(no_slot));
}

static long ring(void)
{
	return enable_cap(w.vm.fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 65536);
}

static long map_ring(void)
{
	return map_file(w.vm.vcpu, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
}

/* All entries that have been written have been seen. */
static long harvest(void)
{
	struct kvm_dirty_gfn *entry = w.map;

	for (int i = 0; i < 65536 / sizeof(*entry); i++)
		if (__atomic_load_n(&entry[i].flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY)
			__atomic_store_n(&entry[i].flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
	return ioctl(w.vm.fd, KVM_RESET_DIRTY_RINGS, 0);
}

TEST_SECONDS(rings, 1800)
{
	EACH_FAILS(SPARED(open_device), SPARED(create_vm), STEP(ring), SPARED(small_slot), STEP(logged_slot),
		   STEP(add_vcpu), SPARED(map_vcpu), STEP(map_ring), SPARED(put_cpuid), SPARED(enter_adds), STEP(run),
		   STEP(harvest), SPARED(enter_adds), STEP(run), STEP(harvest));
}
