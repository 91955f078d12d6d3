// SPDX-License-Identifier: GPL-2.0
/*
 * Who writes to a guest's memory, beside the guest's plain stores, one by one: after each write every page that has
 * changed is in the log, whatever kind of log that is. Nobody else writes to these pages.
 */
#define _GNU_SOURCE
#include "log.h"

#define SLOT 5
#define SMM_SLOT (1u << 16 | 5)		/* of the second address space */
#define ADDRESS 0x8000000		/* identity-mapped, away from slot 0 */
#define SMM_ADDRESS 0x30000
#define PAGES 16
#define PAGE 4096

#define PAGE_AT(n) (ADDRESS + (n) * 0x1000)
#define ALIAS 0x8000000000		/* mapped by a table that is page 3, to page 4 */
#define ALIAS_TABLES 0x30000		/* the two above it, in slot 0 */

#define MSR_WALL_CLOCK 0x4b564d00
#define MSR_SYSTEM_TIME 0x4b564d01
#define MSR_STEAL_TIME 0x4b564d03
#define MSR_PV_EOI_EN 0x4b564d04
#define HV_GUEST_OS_ID 0x40000000
#define HV_HYPERCALL 0x40000001
#define HV_REFERENCE_TSC 0x40000021
#define HV_ASSIST_PAGE 0x40000073
#define HV_SCONTROL 0x40000080
#define HV_SIEFP 0x40000082
#define HV_SIMP 0x40000083
#define HV_SINT2 0x40000092
#define HV_CONFIG0 0x400000b0
#define HV_COUNT0 0x400000b1

#define VECTOR 0x50
#define HANDLER 0x20000

static const char *const way_names[] = { "bitmap", "cleared bitmap", "all set at first", "ring", "ring and bitmap" };

struct log {
	struct vm vm;
	enum way way;
	uint32_t slot;
	uint8_t *memory;
	uint8_t shadow[PAGES * PAGE];
	struct ring ring;
};

struct writer {
	const char *name;
	const unsigned char *code, *end;
	/* Before the log is looked at first; then, once or twice, what makes the kernel write. */
	void (*prepare)(struct log *log);
	void (*write)(struct log *log, unsigned int step);
	unsigned int steps;
	/* Hyper-V's interface, with the first or the second version of its interrupt controller. */
	unsigned int hyperv;
	/* It may be that nothing is written: in which bed. */
	bool (*optional)(void);
	bool protected, smm;
};

static const char *now;		/* the writer's name */

/* Runs until the guest writes to the port, and answers what it reads. */
static void run_until(struct vm *vm, unsigned int port)
{
	for (;;) {
		struct kvm_run *run = vm->run;
		unsigned int reason = vm_run(vm);

		if (reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT && run->io.port == port)
			return;
		if (reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_IN)
			memset(io_data(vm), 'a', run->io.size * run->io.count);
		else if (reason == KVM_EXIT_MMIO && !run->mmio.is_write)
			memset(run->mmio.data, 'b', sizeof(run->mmio.data));
		else if (reason != KVM_EXIT_HYPERV)
			DIE("%s: exit %s, port %#x expected", now, exit_name(reason), port);
	}
}

/* A WRMSR, and entries into the guest. */
GUEST64(wrmsrs, "out %al, $0x0f; wrmsr; out %al, $0x10; 1: out %al, $0x11; jmp 1b\n");

static void wrmsr(struct log *log, uint32_t index, uint64_t value)
{
	struct kvm_regs r;

	vm_complete(&log->vm);
	r = vm_regs(&log->vm);
	r.rip = G_CODE + 2;
	r.rcx = index;
	r.rax = (uint32_t)value;
	r.rdx = value >> 32;
	vm_set_regs(&log->vm, &r);
	run_until(&log->vm, 0x10);
	run_until(&log->vm, 0x11);
}

/* The vCPU runs, without a write to a register. */
static void enter(struct log *log)
{
	run_until(&log->vm, 0x11);
}

static void write_wall_clock(struct log *log, unsigned int step)
{
	if (step)
		CHECK(set_msr(&log->vm, MSR_WALL_CLOCK, PAGE_AT(2)));
	else
		wrmsr(log, MSR_WALL_CLOCK, PAGE_AT(1));
}

/* By the guest; by user space; because the clock is set. */
static void write_system_time(struct log *log, unsigned int step)
{
	struct kvm_clock_data clock = { .clock = 1000000000000ull };

	if (step == 0) {
		wrmsr(log, MSR_SYSTEM_TIME, PAGE_AT(1) | 1);
		return;
	}
	if (step == 1)
		CHECK(set_msr(&log->vm, MSR_SYSTEM_TIME, PAGE_AT(2) | 1));
	else
		OK(ioctl(log->vm.fd, KVM_SET_CLOCK, &clock));
	enter(log);
}

static void write_steal_time(struct log *log, unsigned int step)
{
	if (step) {
		CHECK(set_msr(&log->vm, MSR_STEAL_TIME, PAGE_AT(2) | 1));
		enter(log);
	} else {
		wrmsr(log, MSR_STEAL_TIME, PAGE_AT(1) | 1);
	}
}

/* The handler leaves the word alone. */
GUEST64(eoi,
	"mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr\n"	/* x2APIC */
	"mov $0x80f, %ecx; mov $0x1ff, %eax; xor %edx, %edx; wrmsr\n"
	"mov $" STR(MSR_PV_EOI_EN) ", %ecx; mov $" STR(ADDRESS) "+0x1001, %eax; wrmsr\n"
	"out %al, $0x0f; sti\n"
	"1: mov $0x83f, %ecx; mov $" STR(VECTOR) ", %eax; xor %edx, %edx; wrmsr; nop; out %al, $0x11; jmp 1b\n");
GUEST64(eoi_handler,
	"out %al, $0x10; mov $0x80b, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr; iretq\n");

static void prepare_eoi(struct log *log)
{
	vm_gate(&log->vm, VECTOR, 0, HANDLER);
	memcpy(log->vm.mem + HANDLER, eoi_handler, eoi_handler_end - eoi_handler);
}

static void write_eoi(struct log *log, unsigned int step)
{
	if (step)
		run_until(&log->vm, 0x11);
	/* Afterwards it is 0, as it has been taken back at the exit. */
	log->memory[PAGE] = log->shadow[PAGE] = 0xa4;
	run_until(&log->vm, 0x10);
}

/* Processors that virtualise the local APIC do without. */
static bool not_amd(void)
{
	return !is_amd();
}

static void begin_synic(struct log *log)
{
	wrmsr(log, HV_SCONTROL, 1);
}

static void write_synic(struct log *log, unsigned int step)
{
	wrmsr(log, step ? HV_SIEFP : HV_SIMP, PAGE_AT(1 + step) | 1);
}

static void prepare_message(struct log *log)
{
	memset(log->memory + PAGE, 0, PAGE);
	wrmsr(log, HV_SCONTROL, 1);
	wrmsr(log, HV_SIMP, PAGE_AT(1) | 1);
	wrmsr(log, HV_SINT2, VECTOR);
}

/* The second one finds no room, and says so where the first one is. */
static void write_message(struct log *log, unsigned int step)
{
	wrmsr(log, HV_CONFIG0 + 2 * step, 2 << 16);
	wrmsr(log, HV_COUNT0 + 2 * step, 1);
	wrmsr(log, HV_CONFIG0 + 2 * step, 2 << 16 | 1);
}

static void prepare_hypercall_page(struct log *log)
{
	wrmsr(log, HV_GUEST_OS_ID, 1);
}

static void write_hyperv_pages(struct log *log, unsigned int step)
{
	static const uint32_t msr[] = { HV_HYPERCALL, HV_ASSIST_PAGE, HV_REFERENCE_TSC };

	wrmsr(log, msr[step], PAGE_AT(1 + step) | 1);
}

GUEST64(ins_user,
	"out %al, $0x0f; cld; mov $0x22, %edx\n"
	"mov $" STR(ADDRESS) "+0x1800, %edi; mov $9, %ecx; rep insb; out %al, $0x10\n"
	"mov $" STR(ADDRESS) "+0x2ffe, %edi; insl; out %al, $0x10; hlt\n");
/* From an interrupt controller in the kernel. */
GUEST64(ins_kernel,
	"out %al, $0x0f; cld; mov $0x21, %edx\n"
	"mov $" STR(ADDRESS) "+0x1ffe, %edi; mov $4, %ecx; rep insb; out %al, $0x10; hlt\n");

static void write_next(struct log *log, unsigned int step)
{
	run_until(&log->vm, 0x10);
}

GUEST64(from_device,
	"out %al, $0x0f; mov $" STR(G_MMIO) ", %esi; mov $" STR(ADDRESS) "+0x1ffc, %edi; movsq; out %al, $0x10\n"
	"mov $" STR(ADDRESS) "+0x3ff8, %esp; push (" STR(G_MMIO) "); out %al, $0x10; hlt\n");

/* A store to a page that the host has mapped, and to one that it has to bring. */
GUEST64(stores,
	"out %al, $0x0f; movl $1, " STR(ADDRESS) "+0x1000; out %al, $0x10\n"
	"movl $1, " STR(ADDRESS) "+0x2000; out %al, $0x10; hlt\n");

static void write_store(struct log *log, unsigned int step)
{
	if (step) {
		OK(madvise(log->memory + 2 * PAGE, PAGE, MADV_DONTNEED));
		memset(log->shadow + 2 * PAGE, 0, PAGE);
	}
	run_until(&log->vm, 0x10);
}

/* The dirty and accessed bits of a page table: by the processor, by the emulator. */
GUEST64(store_by_table, "out %al, $0x0f; mov $" STR(ALIAS) ", %rdi; mov %rax, (%rdi); out %al, $0x10; hlt\n");
GUEST64(read_by_table, "out %al, $0x0f; mov $" STR(ALIAS) ", %rdi; mov (%rdi), %rax; out %al, $0x10; hlt\n");
GUEST64(emulated_by_table,
	"out %al, $0x0f; mov $" STR(ALIAS) ", %rdi; mov $" STR(G_MMIO) ", %esi; movsq; out %al, $0x10; hlt\n");

static void prepare_table(struct log *log)
{
	((uint64_t *)(log->vm.mem + G_PML4))[1] = ALIAS_TABLES | 0x23;
	*(uint64_t *)(log->vm.mem + ALIAS_TABLES) = (ALIAS_TABLES + PAGE) | 0x23;
	*(uint64_t *)(log->vm.mem + ALIAS_TABLES + PAGE) = PAGE_AT(3) | 0x23;
	*(uint64_t *)(log->memory + 3 * PAGE) = PAGE_AT(4) | 3;
}

/* The other vendor's hypercall becomes this one's, in a page that has been fetched from before. */
GUEST64(patched, "mov $" STR(ADDRESS) "+0x1000, %ebx; jmp *%rbx\n");

static void prepare_patched(struct log *log)
{
	const uint8_t code[] = { 0xe6, 0x0f, 0x0f, 0x01, is_amd() ? 0xc1 : 0xd9, 0xe6, 0x10, 0xf4 };

	memcpy(log->memory + PAGE, code, sizeof(code));
}

GUEST64(pairing,
	"out %al, $0x0f; mov $9, %eax; mov $" STR(ADDRESS) "+0x1000, %ebx; xor %ecx, %ecx\n"
	".byte 0x0f, 0x01, 0xc1; out %al, $0x10; hlt\n");

static void prepare_pairing(struct log *log)
{
	vm_hypercalls(&log->vm, pairing_end - pairing);
}

static bool always(void)
{
	return true;
}

/* An interrupt that waits is in the word. */
GUEST64(three_outs, "out %al, $0x0f; out %al, $0x10; out %al, $0x10; hlt\n");

static void prepare_vapic(struct log *log)
{
	struct kvm_vapic_addr address = { .vapic_addr = PAGE_AT(1) };

	*(uint32_t *)(log->memory + PAGE) = 0;
	vm_enable_lapic(&log->vm);
	OK(ioctl(log->vm.vcpu, KVM_SET_VAPIC_ADDR, &address));
}

static void write_vapic(struct log *log, unsigned int step)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x45 + 0x10 * step };

	OK(ioctl(log->vm.fd, KVM_SIGNAL_MSI, &msi));
	run_until(&log->vm, 0x10);
}

/* A task calls another: TSSs in pages 1 and 2, descriptors in page 3. */
#define TASK_A 0x50
#define TASK_B 0x58
GUEST32(task,
	"out %al, $0x0f; lcall $" STR(TASK_B) ", $0; out %al, $0x10; hlt\n"
	".org task + 0x100\n"
	"out %al, $0x10; iret\n");

static uint64_t tss(uint64_t base, uint64_t type)
{
	return 0x67 | (base & 0xffffff) << 16 | type << 40 | (base >> 24) << 56;
}

static void prepare_task(struct log *log)
{
	uint32_t *b = (uint32_t *)(log->memory + 2 * PAGE);
	uint64_t *gdt = (uint64_t *)(log->memory + 3 * PAGE);
	struct kvm_sregs s = vm_sregs(&log->vm);

	memcpy(gdt, log->vm.mem + G_GDT, 0x50);
	gdt[TASK_A / 8] = tss(PAGE_AT(1), 0x8b);
	gdt[TASK_B / 8] = tss(PAGE_AT(2), 0x89);
	memset(log->memory + PAGE, 0, 0x68);
	memset(b, 0, 0x68);
	b[0x20 / 4] = G_CODE + 0x100;
	b[0x24 / 4] = 2;
	b[0x38 / 4] = G_STACK - 0x100;
	for (int segment = 0; segment < 6; segment++)
		b[0x48 / 4 + segment] = segment == 1 ? SEL_CODE32 : SEL_DATA;
	s.gdt.base = PAGE_AT(3);
	s.gdt.limit = 0x5f;
	s.tr = (struct kvm_segment) { .base = PAGE_AT(1), .limit = 0x67, .selector = TASK_A, .type = 11, .present = 1 };
	vm_set_sregs(&log->vm, &s);
}

/* What an SMI saves is in page 15 of SMRAM. */
static void prepare_smi(struct log *log)
{
	memcpy(log->memory + 0x8000, (uint8_t[]) { 0xe6, 0x10, 0x0f, 0xaa }, 4);
}

static void write_smi(struct log *log, unsigned int step)
{
	OK(ioctl(log->vm.vcpu, KVM_SMI, 0));
	run_until(&log->vm, 0x10);
}

#define WRITER(text, program, ...) { .name = text, .code = program, .end = program##_end, __VA_ARGS__ }
static const struct writer writers[] = {
	WRITER("wall clock", wrmsrs, .write = write_wall_clock, .steps = 2),
	WRITER("kvmclock", wrmsrs, .write = write_system_time, .steps = 3),
	WRITER("steal time", wrmsrs, .write = write_steal_time, .steps = 2),
	WRITER("EOI in memory", eoi, .prepare = prepare_eoi, .write = write_eoi, .steps = 2, .optional = not_amd),
	WRITER("SynIC's pages", wrmsrs, .prepare = begin_synic, .write = write_synic, .steps = 2, .hyperv = 1),
	WRITER("timer message", wrmsrs, .prepare = prepare_message, .write = write_message, .steps = 2, .hyperv = 2),
	WRITER("Hyper-V's pages", wrmsrs, .prepare = prepare_hypercall_page, .write = write_hyperv_pages, .steps = 3,
	       .hyperv = 2),
	WRITER("store", stores, .write = write_store, .steps = 2),
	WRITER("INS, user space", ins_user, .write = write_next, .steps = 2),
	WRITER("INS, kernel", ins_kernel, .write = write_next, .steps = 1),
	WRITER("from device memory", from_device, .write = write_next, .steps = 2),
	WRITER("table, store", store_by_table, .prepare = prepare_table, .write = write_next, .steps = 1),
	WRITER("table, read", read_by_table, .prepare = prepare_table, .write = write_next, .steps = 1),
	WRITER("table, emulated", emulated_by_table, .prepare = prepare_table, .write = write_next, .steps = 1),
	WRITER("hypercall patched", patched, .prepare = prepare_patched, .write = write_next, .steps = 1),
	WRITER("clock pairing", pairing, .prepare = prepare_pairing, .write = write_next, .steps = 1,
	       .optional = always),
	WRITER("task priority", three_outs, .prepare = prepare_vapic, .write = write_vapic, .steps = 2),
	WRITER("task switch", task, .prepare = prepare_task, .write = write_next, .steps = 2, .protected = true),
	WRITER("SMI", three_outs, .prepare = prepare_smi, .write = write_smi, .steps = 1, .smm = true),
};

static bool can(int kvm, enum way way, const struct writer *w)
{
	if (way >= RING && !has_extension(kvm, KVM_CAP_DIRTY_LOG_RING))
		return false;
	if (way == RING_AND_BITMAP && !has_extension(kvm, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP))
		return false;
	if (w->hyperv && !has_extension(kvm, KVM_CAP_SYS_HYPERV_CPUID))
		return false;
	return !w->smm || has_extension(kvm, KVM_CAP_X86_SMM);
}

static void make(struct log *log, const struct writer *w)
{
	struct vm *vm = &log->vm;

	vm_init_irqchip(vm, 4 * MIB);
	choose_log(vm, log->way);
	vm_add_vcpu(vm, 0);
	if (w->hyperv) {
		set_hyperv_cpuid(vm->kvm, vm->vcpu);
		OK(enable_cap(vm->vcpu, w->hyperv == 1 ? KVM_CAP_HYPERV_SYNIC : KVM_CAP_HYPERV_SYNIC2, 0));
	}
	if (w->protected)
		vm_prot(vm, w->code, w->end);
	else
		vm_long(vm, w->code, w->end);
	log->memory = map(PAGES * PAGE);
	memset(log->memory, 0xa5, PAGES * PAGE);
	log->slot = w->smm ? SMM_SLOT : SLOT;
	vm_slot(vm, log->slot, KVM_MEM_LOG_DIRTY_PAGES, w->smm ? SMM_ADDRESS : ADDRESS, PAGES * PAGE, log->memory);
	if (log->way >= RING)
		log->ring.entries = map_ring(vm);
}

/* The pages that the log has, one bit each. */
static uint64_t take(struct log *log)
{
	uint64_t bits = 0, pages = 0;
	struct kvm_dirty_log get = { .slot = log->slot, .dirty_bitmap = &bits };
	struct kvm_clear_dirty_log clear = { .slot = log->slot, .num_pages = PAGES, .dirty_bitmap = &bits };
	struct kvm_dirty_gfn entry;

	if (log->way != RING) {
		OK(ioctl(log->vm.fd, KVM_GET_DIRTY_LOG, &get));
		pages |= bits;
	}
	if (log->way == MANUAL || log->way == INITIALLY_SET)
		OK(ioctl(log->vm.fd, KVM_CLEAR_DIRTY_LOG, &clear));
	if (log->way < RING)
		return pages;
	while (harvest(&log->ring, &entry)) {
		REQUIRE(entry.slot == log->slot && entry.offset < PAGES);
		pages |= 1ull << entry.offset;
	}
	OK(ioctl(log->vm.fd, KVM_RESET_DIRTY_RINGS, 0));
	return pages;
}

/* The pages that have changed since the last time. */
static uint64_t changes(struct log *log)
{
	uint64_t pages = 0;

	for (unsigned int page = 0; page < PAGES; page++)
		if (memcmp(log->shadow + page * PAGE, log->memory + page * PAGE, PAGE))
			pages |= 1ull << page;
	memcpy(log->shadow, log->memory, sizeof(log->shadow));
	return pages;
}

static void check(enum way way, const struct writer *w)
{
	static struct log log;

	log = (struct log){ .way = way };
	now = w->name;
	make(&log, w);
	/* Registers are set by the guest; other things are before it runs. */
	if (w->code == wrmsrs)
		run_until(&log.vm, 0x0f);
	if (w->prepare)
		w->prepare(&log);
	if (w->code != wrmsrs)
		run_until(&log.vm, 0x0f);
	take(&log);
	changes(&log);
	for (unsigned int step = 0; step < w->steps; step++) {
		uint64_t changed, logged;

		w->write(&log, step);
		changed = changes(&log);
		logged = take(&log);
		if (!changed && !(w->optional && w->optional()))
			FAIL("%s, %s, step %u: nothing has been written", way_names[way], w->name, step);
		if (changed & ~logged)
			FAIL("%s, %s, step %u: pages %#llx have been written, the log has %#llx", way_names[way],
			     w->name, step, (unsigned long long)changed, (unsigned long long)logged);
		if (verbose)
			note("%s, %s: %#llx of %#llx", way_names[way], w->name, (unsigned long long)changed,
			     (unsigned long long)logged);
	}
	munmap(log.memory, PAGES * PAGE);
	vm_free(&log.vm);
}

static void check_all(enum way way)
{
	int kvm = device_open();

	for (unsigned int i = 0; i < ARRAY_SIZE(writers); i++)
		if (can(kvm, way, &writers[i]))
			check(way, &writers[i]);
	close(kvm);
}

TEST_SECONDS(writers_to_bitmap, 120)
{
	check_all(BITMAP);
}

TEST_SECONDS(writers_to_cleared_bitmap, 120)
{
	check_all(MANUAL);
}

TEST_SECONDS(writers_all_set_at_first, 120)
{
	check_all(INITIALLY_SET);
}

TEST_SECONDS(writers_to_ring, 120)
{
	check_all(RING);
}

TEST_SECONDS(writers_to_ring_and_bitmap, 120)
{
	check_all(RING_AND_BITMAP);
}
