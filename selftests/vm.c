// SPDX-License-Identifier: GPL-2.0
/* Virtual machines for the tests, on the bare ioctls. */
#define _GNU_SOURCE
#include "vm.h"
#include <cpuid.h>

int device_open(void)
{
	int fd = open(device, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		DIE("%s: %s", device, strerror(errno));
	return fd;
}

bool has_extension(int kvm, unsigned int cap)
{
	return OK(ioctl(kvm, KVM_CHECK_EXTENSION, cap)) != 0;
}

bool is_rvmm(void)
{
	int kvm = device_open();
	bool yes = has_extension(kvm, RVMM_CAP_ENTRY_FAILURE);

	close(kvm);
	return yes;
}

bool is_amd(void)
{
	unsigned int a, b, c, d;

	__cpuid(0, a, b, c, d);
	return c == 0x444d4163;
}

bool is_tcg(void)
{
	unsigned int a, b, c, d;

	__cpuid(1, a, b, c, d);
	if (!(c & 1u << 31))
		return false;
	__cpuid(0x40000000, a, b, c, d);
	return b == 0x54474354;	/* TCGT */
}

bool is_bochs(void)
{
	/* The machine has no hypervisor bit, but its BIOS names itself. */
	char text[64] = "";
	int fd = open("/sys/class/dmi/id/bios_vendor", O_RDONLY);

	if (fd >= 0) {
		if (read(fd, text, sizeof(text) - 1) < 0)
			text[0] = 0;
		close(fd);
	}
	return strstr(text, "Bochs") || (!is_amd() && getenv("BED_BOCHS"));
}

int enable_cap(int fd, unsigned int cap, uint64_t value)
{
	struct kvm_enable_cap c = { .cap = cap, .args = { value } };

	return ioctl(fd, KVM_ENABLE_CAP, &c);
}

int try_slot(int fd, unsigned int slot, unsigned int flags, uint64_t gpa, uint64_t bytes, void *memory)
{
	struct kvm_userspace_memory_region r = {
		.slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = bytes,
		.userspace_addr = (uintptr_t)memory,
	};

	return ioctl(fd, KVM_SET_USER_MEMORY_REGION, &r);
}

void vm_slot(struct vm *vm, unsigned int slot, unsigned int flags, uint64_t gpa, uint64_t bytes, void *memory)
{
	if (try_slot(vm->fd, slot, flags, gpa, bytes, memory))
		DIE("memory slot %u at %#llx, %llu bytes, flags %u: %s", slot, (unsigned long long)gpa,
		    (unsigned long long)bytes, flags, strerror(errno));
}

void vm_init(struct vm *vm, uint64_t bytes)
{
	memset(vm, 0, sizeof(*vm));
	vm->vcpu = -1;
	vm->kvm = device_open();
	vm->fd = OK(ioctl(vm->kvm, KVM_CREATE_VM, 0));
	vm->bytes = bytes;
	vm->run_bytes = OK(ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	if (!bytes)
		return;
	vm->mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	REQUIRE(vm->mem != MAP_FAILED);
	vm_slot(vm, 0, 0, 0, bytes, vm->mem);
}

void vm_init_irqchip(struct vm *vm, uint64_t bytes)
{
	vm_init(vm, bytes);
	OK(ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0));
}

struct kvm_cpuid2 *supported_cpuid(int kvm)
{
	struct kvm_cpuid2 *table = calloc(1, sizeof(*table) + 256 * sizeof(table->entries[0]));

	table->nent = 256;
	OK(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, table));
	return table;
}

struct kvm_cpuid_entry2 *cpuid_entry(struct kvm_cpuid2 *table, uint32_t function, uint32_t index)
{
	for (unsigned int i = 0; i < table->nent; i++) {
		struct kvm_cpuid_entry2 *e = &table->entries[i];

		if (e->function == function && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == index))
			return e;
	}
	return NULL;
}

struct kvm_cpuid2 *hyperv_cpuid(int fd)
{
	struct kvm_cpuid2 *table = calloc(1, sizeof(*table) + 32 * sizeof(table->entries[0]));

	table->nent = 32;
	OK(ioctl(fd, KVM_GET_SUPPORTED_HV_CPUID, table));
	return table;
}

void set_hyperv_cpuid(int kvm, int vcpu)
{
	struct kvm_cpuid2 *from = supported_cpuid(kvm), *hv = hyperv_cpuid(kvm);
	struct kvm_cpuid2 *table = calloc(1, sizeof(*table) + 256 * sizeof(table->entries[0]));

	for (unsigned int i = 0; i < from->nent; i++)
		if (from->entries[i].function >> 30 != 1)
			table->entries[table->nent++] = from->entries[i];
	for (unsigned int i = 0; i < hv->nent; i++)
		table->entries[table->nent++] = hv->entries[i];
	OK(ioctl(vcpu, KVM_SET_CPUID2, table));
	free(table);
	free(hv);
	free(from);
}

void set_supported_cpuid(int kvm, int vcpu)
{
	struct kvm_cpuid2 *table = supported_cpuid(kvm);

	OK(ioctl(vcpu, KVM_SET_CPUID2, table));
	free(table);
}

void set_vendor(struct vm *vm, const char *vendor)
{
	struct kvm_cpuid2 *table = supported_cpuid(vm->kvm);

	for (unsigned int i = 0; i < table->nent; i++) {
		struct kvm_cpuid_entry2 *e = &table->entries[i];

		if (e->function == 0 || e->function == 0x80000000) {
			memcpy(&e->ebx, vendor, 4);
			memcpy(&e->edx, vendor + 4, 4);
			memcpy(&e->ecx, vendor + 8, 4);
		}
	}
	OK(ioctl(vm->vcpu, KVM_SET_CPUID2, table));
	free(table);
}

void vm_add_vcpu(struct vm *vm, unsigned int id)
{
	vm->vcpu = OK(ioctl(vm->fd, KVM_CREATE_VCPU, id));
	vm->run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	REQUIRE(vm->run != MAP_FAILED);
	set_supported_cpuid(vm->kvm, vm->vcpu);
}

void vm_new(struct vm *vm, uint64_t bytes)
{
	vm_init(vm, bytes);
	vm_add_vcpu(vm, 0);
}

void vm_new_irqchip(struct vm *vm, uint64_t bytes)
{
	vm_init_irqchip(vm, bytes);
	vm_add_vcpu(vm, 0);
}

void vm_hypercalls(struct vm *vm, size_t bytes)
{
	if (!is_amd())
		return;
	for (uint8_t *p = vm->mem + G_CODE; p < vm->mem + G_CODE + bytes; p++)
		if (p[0] == 0x0f && p[1] == 0x01 && p[2] == 0xc1)
			p[2] = 0xd9;
}

void vm_enable_lapic(struct vm *vm)
{
	struct kvm_lapic_state s;

	OK(ioctl(vm->vcpu, KVM_GET_LAPIC, &s));
	*(uint32_t *)(s.regs + LAPIC_SVR) = 0x1ff;
	OK(ioctl(vm->vcpu, KVM_SET_LAPIC, &s));
}

struct vm vm_second_vcpu(const struct vm *vm, unsigned int id)
{
	struct vm copy = *vm;

	vm_add_vcpu(&copy, id);
	return copy;
}

void vm_free(struct vm *vm)
{
	if (vm->run)
		munmap(vm->run, vm->run_bytes);
	if (vm->vcpu >= 0)
		close(vm->vcpu);
	close(vm->fd);
	close(vm->kvm);
	if (vm->mem)
		munmap(vm->mem, vm->bytes);
}

struct kvm_regs vm_regs(struct vm *vm)
{
	struct kvm_regs r;

	OK(ioctl(vm->vcpu, KVM_GET_REGS, &r));
	return r;
}

void vm_set_regs(struct vm *vm, const struct kvm_regs *regs)
{
	OK(ioctl(vm->vcpu, KVM_SET_REGS, regs));
}

struct kvm_sregs vm_sregs(struct vm *vm)
{
	struct kvm_sregs s;

	OK(ioctl(vm->vcpu, KVM_GET_SREGS, &s));
	return s;
}

void vm_set_sregs(struct vm *vm, const struct kvm_sregs *sregs)
{
	OK(ioctl(vm->vcpu, KVM_SET_SREGS, sregs));
}

struct kvm_vcpu_events vm_events(struct vm *vm)
{
	struct kvm_vcpu_events e;

	OK(ioctl(vm->vcpu, KVM_GET_VCPU_EVENTS, &e));
	return e;
}

struct one_msr {
	struct kvm_msrs header;
	struct kvm_msr_entry entry;
};

bool get_msr(struct vm *vm, uint32_t index, uint64_t *value)
{
	struct one_msr m = { .header.nmsrs = 1, .entry.index = index };
	bool found = OK(ioctl(vm->vcpu, KVM_GET_MSRS, &m)) == 1;

	*value = m.entry.data;
	return found;
}

bool set_msr(struct vm *vm, uint32_t index, uint64_t value)
{
	struct one_msr m = { .header.nmsrs = 1, .entry = { .index = index, .data = value } };

	return OK(ioctl(vm->vcpu, KVM_SET_MSRS, &m)) == 1;
}

static void load(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	REQUIRE(G_CODE + (end - code) <= G_DATA);
	memcpy(vm->mem + G_CODE, code, end - code);
}

void vm_real(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	struct kvm_sregs s = vm_sregs(vm);
	struct kvm_regs r = { .rip = 0, .rflags = 2, .rsp = G_STACK };

	load(vm, code, end);
	s.cs.selector = G_CODE >> 4;
	s.cs.base = G_CODE;
	vm_set_sregs(vm, &s);
	vm_set_regs(vm, &r);
}

static struct kvm_segment flat(uint16_t selector, uint8_t type, bool is_long, bool is_32)
{
	return (struct kvm_segment) {
		.base = 0, .limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .dpl = 0,
		.db = is_32, .s = 1, .l = is_long, .g = 1,
	};
}

void write_gdt(uint8_t *memory)
{
	uint64_t *gdt = (uint64_t *)(memory + G_GDT);

	memset(gdt, 0, 0x100);
	gdt[SEL_CODE64 >> 3] = 0x00af9b000000ffff;
	gdt[SEL_DATA >> 3] = 0x00cf93000000ffff;
	gdt[SEL_CODE32 >> 3] = 0x00cf9b000000ffff;
	gdt[SEL_CODE16 >> 3] = 0x00009b000000ffff;
	gdt[SEL_TSS >> 3] = 0x00008b0000000067 | (uint64_t)G_TSS << 16;
	gdt[SEL_USER_DATA >> 3] = 0x00cff3000000ffff;
	gdt[SEL_USER_CODE64 >> 3] = 0x00affb000000ffff;
	gdt[SEL_DATA16 >> 3] = 0x000093000000ffff;
}

void vm_prot(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	struct kvm_sregs s = vm_sregs(vm);
	struct kvm_regs r = { .rip = G_CODE, .rflags = 2, .rsp = G_STACK };

	load(vm, code, end);
	write_gdt(vm->mem);
	s.cs = flat(SEL_CODE32, 11, false, true);
	s.ds = s.es = s.fs = s.gs = s.ss = flat(SEL_DATA, 3, false, true);
	s.gdt.base = G_GDT;
	s.gdt.limit = 0xff;
	s.cr0 = 0x11;
	vm_set_sregs(vm, &s);
	vm_set_regs(vm, &r);
}

/* Common part of the handlers: writes a struct guest_event, handles `resume`. */
GUEST64(guest_handler,
	"push %rax; push %rbx; push %rcx\n"
	"mov $" STR(G_LOG) ", %ebx\n"
	"mov (%rbx), %rax\n"
	"incq (%rbx)\n"
	"cmp $100, %rax; jb 1f; mov $99, %eax\n"
	"1: shl $6, %eax; lea 64(%rbx,%rax), %rbx\n"
	"mov 24(%rsp), %rcx; mov %rcx, (%rbx)\n"
	"mov 32(%rsp), %rcx; mov %rcx, 8(%rbx)\n"
	"mov 40(%rsp), %rcx; mov %rcx, 16(%rbx)\n"
	"mov 48(%rsp), %rcx; mov %rcx, 24(%rbx)\n"
	"mov 56(%rsp), %rcx; mov %rcx, 32(%rbx)\n"
	"mov 64(%rsp), %rcx; mov %rcx, 40(%rbx)\n"
	"mov %cr2, %rcx; mov %rcx, 48(%rbx)\n"
	"movq $0, 56(%rbx)\n"
	"cmpb $1, 24(%rsp); jne 2f\n"
	"mov %dr6, %rcx; mov %rcx, 56(%rbx)\n"
	"2: mov $" STR(G_LOG) ", %ebx\n"
	"cmpq $32, 24(%rsp); jae 3f\n"
	"mov 8(%rbx), %rcx; test %rcx, %rcx; jz 4f\n"
	"mov %rcx, 40(%rsp); movq $0, 8(%rbx)\n"
	"jmp 4f\n"
	"3: mov 16(%rbx), %rcx; test %rcx, %rcx; jz 4f\n"
	"movl $0, (%rcx)\n"
	"4: pop %rcx; pop %rbx; pop %rax\n"
	"add $16, %rsp\n"
	"iretq\n");

static bool pushes_error(unsigned int vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 ||
	vector == 29 || vector == 30;
}

void vm_gate(struct vm *vm, unsigned int vector, unsigned int dpl, uint64_t address)
{
	uint64_t *gate = (uint64_t *)(vm->mem + G_IDT) + 2 * vector;

	gate[0] = (address & 0xffff) | (uint64_t)SEL_CODE64 << 16 | (0x8e00ull | dpl << 13) << 32 |
		  (address >> 16) << 48;
	gate[1] = 0;
}

void vm_long_memory(struct vm *vm)
{
	uint64_t *pml4 = (uint64_t *)(vm->mem + G_PML4), *pdpt = (uint64_t *)(vm->mem + G_PDPT);
	uint64_t *pd0 = (uint64_t *)(vm->mem + G_PD0), *pd3 = (uint64_t *)(vm->mem + G_PD3);
	uint8_t *tss = vm->mem + G_TSS;

	memset(pml4, 0, 4096);
	memset(pdpt, 0, 4096);
	pml4[0] = G_PDPT | 0x67;
	pdpt[0] = G_PD0 | 0x67;
	pdpt[3] = G_PD3 | 0x67;
	for (uint64_t i = 0; i < 512; i++) {
		pd0[i] = i << 21 | 0xe7;
		pd3[i] = (3ull << 30 | i << 21) | 0xe7;
	}
	write_gdt(vm->mem);
	memset(tss, 0, 0x68);
	*(uint64_t *)(tss + 4) = G_STACK - 0x1000;	/* RSP0 */
	*(uint64_t *)(tss + 0x24) = G_IST;		/* IST1 */
	*(uint16_t *)(tss + 0x66) = 0x68;
	for (unsigned int v = 0; v < 256; v++) {
		uint8_t *stub = vm->mem + G_STUBS + 16 * v, *p = stub;
		uint64_t address = G_STUBS + 16 * v;

		if (!pushes_error(v)) {
			*p++ = 0x6a;	/* push $0 */
			*p++ = 0;
		}
		*p++ = 0x68;		/* push $vector */
		*(uint32_t *)p = v;
		p += 4;
		*p++ = 0xe9;		/* jmp handler */
		*(uint32_t *)p = G_HANDLER - (address + (p - stub) + 4);
		vm_gate(vm, v, 3, address);
	}
	memcpy(vm->mem + G_HANDLER, guest_handler, guest_handler_end - guest_handler);
	memset(vm->mem + G_LOG, 0, sizeof(struct guest_log));
}

void vm_long_state(struct vm *vm)
{
	struct kvm_sregs s = vm_sregs(vm);
	struct kvm_regs r = { .rip = G_CODE, .rflags = 2, .rsp = G_STACK };

	s.cs = flat(SEL_CODE64, 11, true, false);
	s.ds = s.es = s.fs = s.gs = s.ss = flat(SEL_DATA, 3, false, true);
	s.tr = (struct kvm_segment) { .base = G_TSS, .limit = 0x67, .selector = SEL_TSS, .type = 11, .present = 1 };
	s.gdt.base = G_GDT;
	s.gdt.limit = 0xff;
	s.idt.base = G_IDT;
	s.idt.limit = 0xfff;
	s.cr3 = G_PML4;
	s.cr4 = 0x220;		/* PAE, OSFXSR */
	s.cr0 = 0x80010033;	/* PG, WP, NE, ET, MP, PE */
	s.efer = 0x501;		/* LMA, LME, SCE */
	vm_set_sregs(vm, &s);
	vm_set_regs(vm, &r);
}

void vm_long(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	load(vm, code, end);
	vm_long_memory(vm);
	vm_long_state(vm);
}

int vm_try_run(struct vm *vm)
{
	return ioctl(vm->vcpu, KVM_RUN, 0) ? errno : 0;
}

int vm_complete(struct vm *vm)
{
	int error;

	vm->run->immediate_exit = 1;
	error = vm_try_run(vm);
	vm->run->immediate_exit = 0;
	return error;
}

unsigned int vm_run(struct vm *vm)
{
	int error = vm_try_run(vm);

	if (error)
		DIE("KVM_RUN: %s", strerrorname(error));
	return vm->run->exit_reason;
}

const char *exit_name(unsigned int reason)
{
	static const char *const names[] = {
		"UNKNOWN", "EXCEPTION", "IO", "HYPERCALL", "DEBUG", "HLT", "MMIO", "IRQ_WINDOW_OPEN",
		"SHUTDOWN", "FAIL_ENTRY",
		"INTR", "SET_TPR", "TPR_ACCESS", "?", "?", "?", "NMI", "INTERNAL_ERROR", "?", "?", "?", "?", "?", "?",
		"SYSTEM_EVENT", "?", "IOAPIC_EOI",
	};

	return reason < ARRAY_SIZE(names) ? names[reason] : "?";
}

static void describe(struct vm *vm)
{
	struct kvm_run *run = vm->run;
	struct kvm_regs r = vm_regs(vm);
	struct guest_log *log = vm_log(vm);

	note("exit %s, rip %#llx rax %#llx rsp %#llx rflags %#llx", exit_name(run->exit_reason), r.rip, r.rax,
	     r.rsp, r.rflags);
	switch (run->exit_reason) {
	case KVM_EXIT_UNKNOWN:
		note("hardware exit reason %#llx", run->hw.hardware_exit_reason);
		break;
	case KVM_EXIT_IO:
		note("port %#x, %s, size %u, count %u, data %#x", run->io.port,
		     run->io.direction ? "out" : "in", run->io.size,
		     run->io.count, *(uint32_t *)io_data(vm));
		break;
	case KVM_EXIT_MMIO:
		note("%s %#llx, %u bytes, data %#llx", run->mmio.is_write ? "write" : "read",
		     run->mmio.phys_addr, run->mmio.len,
		     *(unsigned long long *)run->mmio.data);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		note("reason %#llx", run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		note("suberror %u, %u words, %#llx %#llx %#llx", run->internal.suberror, run->internal.ndata,
		     run->internal.data[0], run->internal.data[1], run->internal.data[2]);
		break;
	}
	if (vm->mem && vm->bytes >= G_LOG + sizeof(*log) && log->count && log->count < 100) {
		struct guest_event *e = &log->event[log->count - 1];

		note("guest's last event: vector %llu error %#llx rip %#llx cr2 %#llx", (unsigned long long)e->vector,
		     (unsigned long long)e->error, (unsigned long long)e->rip, (unsigned long long)e->cr2);
	}
}

void vm_expect(struct vm *vm, unsigned int reason)
{
	unsigned int have = vm_run(vm);

	if (have == reason)
		return;
	describe(vm);
	DIE("KVM_RUN ended with %s (%u), %s expected", exit_name(have), have, exit_name(reason));
}

/* What the guest wrote to a port. */
static uint32_t io_value(struct vm *vm)
{
	switch (vm->run->io.size) {
	case 1:
		return *(uint8_t *)io_data(vm);
	case 2:
		return *(uint16_t *)io_data(vm);
	default:
		return *(uint32_t *)io_data(vm);
	}
}

uint32_t vm_expect_out(struct vm *vm, unsigned int port)
{
	struct kvm_run *run = vm->run;

	vm_expect(vm, KVM_EXIT_IO);
	if (run->io.direction != KVM_EXIT_IO_OUT || run->io.port != port || run->io.count != 1) {
		describe(vm);
		DIE("an OUT to port %#x was expected", port);
	}
	return io_value(vm);
}

void vm_expect_bytes(struct vm *vm, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t have = vm_expect_out(vm, 0x10) & 0xff;

		if (have != bytes[i])
			DIE("byte %zu is %#x, %#x expected", i, have, bytes[i]);
	}
}

unsigned int vm_collect(struct vm *vm, uint32_t *values, size_t max, size_t *count)
{
	struct kvm_run *run = vm->run;

	*count = 0;
	for (;;) {
		unsigned int reason = vm_run(vm);

		if (reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT || run->io.port != 0x10)
			return reason;
		if (*count == max)
			DIE("the guest writes more than %zu values", max);
		values[(*count)++] = io_value(vm);
	}
}
