// SPDX-License-Identifier: GPL-2.0
/* System management mode: SMIs, the state that they save, RSM, and the second address space. */
#define _GNU_SOURCE
#include "vm.h"

/* Slots of the second address space have bit 16 set in their numbers. */
#define AS1 (1u << 16)
#define SMBASE 0x30000ull
#define SMRAM_BYTES 0x20000	/* room for a second SMBASE */
#define MOVED 0x40000ull	/* that one */
#define HANDLER 0x8000
#define AREA 0xfe00
#define MSR_SMBASE 0x9e
#define MSR_SMI_COUNT 0x34

/* Only the vCPU in SMM sees it. */
static uint8_t *smram;

/* Handlers. AL of the interrupted code comes back with RSM. */
GUEST16(handler, "mov $0x5a, %al; out %al, $0x12; rsm\n");
/* Moves SMBASE by the field in the area. */
GUEST16(handler_moves, "mov $0x40000, %eax; addr32 mov %eax, 0x3ff00; out %al, $0x12; rsm\n");
/* Says which page of address 0x30000 it sees, and writes to it. */
GUEST16(handler_looks, "addr32 mov 0x30000, %al; out %al, $0x12; addr32 movb $0x77, 0x30001; rsm\n");
/* Two exits, between which something may come. */
GUEST16(handler_waits, "out %al, $0x12; nop; out %al, $0x13; rsm\n");

static void put_handler(uint64_t base, const unsigned char *code, const unsigned char *end)
{
	memcpy(smram + (base - SMBASE) + HANDLER, code, end - code);
}
#define PUT_HANDLER(base, name) put_handler(base, name, name##_end)

static void add_smram(struct vm *vm, unsigned int flags)
{
	if (!has_extension(vm->kvm, KVM_CAP_X86_SMM))
		skip("no SMM");
	smram = mmap(NULL, SMRAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(smram != MAP_FAILED);
	vm_slot(vm, AS1, flags, SMBASE, SMRAM_BYTES, smram);
}

static void smi(struct vm *vm)
{
	OK(ioctl(vm->vcpu, KVM_SMI, 0));
}

static uint64_t saved64(uint64_t base, unsigned int offset)
{
	uint64_t value;

	memcpy(&value, smram + (base - SMBASE) + offset, sizeof(value));
	return value;
}

static uint32_t saved32(unsigned int offset)
{
	return (uint32_t)saved64(SMBASE, offset);
}

static bool in_smm(struct vm *vm)
{
	bool smm = vm_events(vm).smi.smm;

	CHECK_EQ(!!(vm->run->flags & KVM_RUN_X86_SMM), smm);
	return smm;
}

/* A message for the local APIC with id 0. */
static void send(struct vm *vm, unsigned int mode)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = mode << 8 | 1 << 14 };

	OK(ioctl(vm->fd, KVM_SIGNAL_MSI, &msi));
}
#define MODE_SMI 2
#define MODE_INIT 5

TEST(extensions)
{
	int kvm = device_open(), vm = OK(ioctl(kvm, KVM_CREATE_VM, 0));

	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM), 1);
	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE), 2);
	CHECK_EQ(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE), 2);
}

/* The guest: 64-bit code. */
GUEST64(two_outs, "out %al, $0x10; out %al, $0x11; hlt\n");

TEST(state64)
{
	struct kvm_regs before, after;
	struct kvm_sregs sregs, smm;
	struct vm vm;
	uint64_t value;

	VM_NEW_LONG(&vm, two_outs);
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler);
	before = vm_regs(&vm);
	before.rax = 0x1122334455667788;
	before.r15 = 0xfedcba9876543210;
	before.rdi = 0x0123456789abcdef;
	vm_set_regs(&vm, &before);
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x88);
	CHECK(!in_smm(&vm));
	sregs = vm_sregs(&vm);
	smi(&vm);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 0x5a);
	CHECK(in_smm(&vm));
	smm = vm_sregs(&vm);
	CHECK_EQ(smm.cs.selector, SMBASE >> 4);
	CHECK_EQ(smm.cs.base, SMBASE);
	CHECK_EQ(smm.ds.base, 0);
	CHECK_EQ(smm.ds.limit, 0xffffffff);
	CHECK_EQ(smm.cr0, sregs.cr0 & ~0x8000000dull);
	CHECK_EQ(smm.cr4, 0);
	CHECK_EQ(smm.efer, 0);
	CHECK_EQ(smm.idt.limit, 0);
	CHECK_EQ(smm.gdt.base, sregs.gdt.base);
	after = vm_regs(&vm);
	CHECK_EQ(after.rflags, 2);
	CHECK_EQ(after.rdi, before.rdi);
	/* The area (APM 2 table 10-1), where KVM has it. */
	CHECK_EQ(saved64(SMBASE, 0xff78), G_CODE + 2);
	CHECK_EQ(saved64(SMBASE, 0xff70), before.rflags);
	CHECK_EQ(saved64(SMBASE, 0xfff8), before.rax);
	CHECK_EQ(saved64(SMBASE, 0xff80), before.r15);
	CHECK_EQ(saved64(SMBASE, 0xffc0), before.rdi);
	CHECK_EQ(saved64(SMBASE, 0xff58), sregs.cr0);
	CHECK_EQ(saved64(SMBASE, 0xff50), sregs.cr3);
	CHECK_EQ(saved64(SMBASE, 0xff48), sregs.cr4);
	CHECK_EQ(saved64(SMBASE, 0xfed0), sregs.efer);
	CHECK_EQ(saved64(SMBASE, 0xfe68), sregs.gdt.base);
	CHECK_EQ(saved64(SMBASE, 0xfe88), sregs.idt.base);
	CHECK_EQ((uint16_t)saved64(SMBASE, 0xfe10), sregs.cs.selector);
	CHECK_EQ((uint32_t)saved64(SMBASE, 0xfefc), 0x20064);
	CHECK_EQ((uint32_t)saved64(SMBASE, 0xff00), SMBASE);
	/* Not in the memory that the guest sees. */
	CHECK_EQ(*(uint64_t *)(vm.mem + SMBASE + 0xff78), 0);
	CHECK(get_msr(&vm, MSR_SMI_COUNT, &value) && value == 1);
	/* All comes back. */
	CHECK_EQ(vm_expect_out(&vm, 0x11), 0x88);
	CHECK(!in_smm(&vm));
	after = vm_regs(&vm);
	before.rip += 2;
	CHECK(!memcmp(&before, &after, sizeof(before)));
	smm = vm_sregs(&vm);
	CHECK(!memcmp(&sregs, &smm, sizeof(sregs)));
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* A handler's changes of the area count. */
GUEST64(loop_outs, "1: out %al, $0x10; jmp 1b\n");

TEST(rsm_loads_the_area)
{
	struct kvm_regs r;
	struct vm vm;
	uint64_t value = G_CODE + 0x100;

	VM_NEW_LONG(&vm, two_outs);
	vm.mem[G_CODE + 0x100] = 0xf4;
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler);
	vm_expect_out(&vm, 0x10);
	smi(&vm);
	vm_expect_out(&vm, 0x12);
	memcpy(smram + 0xff78, &value, sizeof(value));
	value = 0x4321;
	memcpy(smram + 0xffe8, &value, sizeof(value));	/* RDX */
	vm_expect(&vm, KVM_EXIT_HLT);
	r = vm_regs(&vm);
	CHECK_EQ(r.rip, G_CODE + 0x101);
	CHECK_EQ(r.rdx, 0x4321);
	vm_free(&vm);
	/* What no processor takes shuts it down. */
	for (int i = 0; i < 3; i++) {
		VM_NEW_LONG(&vm, two_outs);
		add_smram(&vm, 0);
		PUT_HANDLER(SMBASE, handler);
		vm_expect_out(&vm, 0x10);
		smi(&vm);
		vm_expect_out(&vm, 0x12);
		switch (i) {
		case 0:
			smram[0xff5b] = 0x20;	/* CR0.NW without CD, without PG */
			break;
		case 2:
			smram[0xff5b] = 0;	/* CR0.PG: CR3 counts as well where it is not in use */
			/* fall through */
		case 1:
			smram[0xff57] = 0x40;	/* CR3 with bit 62 */
		}
		vm_expect(&vm, KVM_EXIT_SHUTDOWN);
		vm_free(&vm);
	}
}

/* Without long mode in CPUID: the other format. */
GUEST32(two_outs32, "out %al, $0x10; out %al, $0x11; hlt\n");

TEST(state32)
{
	struct kvm_cpuid2 *table;
	struct kvm_regs before, after;
	struct kvm_sregs sregs, again;
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	vm_add_vcpu(&vm, 0);
	table = supported_cpuid(vm.kvm);
	cpuid_entry(table, 0x80000001, 0)->edx &= ~(1u << 29);
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	VM_PROT(&vm, two_outs32);
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler);
	before = vm_regs(&vm);
	before.rax = 0x11223344;
	before.rsi = 0x89abcdef;
	vm_set_regs(&vm, &before);
	vm_expect_out(&vm, 0x10);
	sregs = vm_sregs(&vm);
	smi(&vm);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 0x5a);
	CHECK(in_smm(&vm));
	CHECK_EQ(saved32(0xfff0), G_CODE + 2);
	CHECK_EQ(saved32(0xffd0), before.rax);
	CHECK_EQ(saved32(0xffe8), before.rsi);
	CHECK_EQ(saved32(0xfffc), sregs.cr0);
	CHECK_EQ(saved32(0xffac), sregs.cs.selector);
	CHECK_EQ(saved32(0xfefc), 0x20000);
	CHECK_EQ(saved32(0xfef8), SMBASE);
	vm_expect_out(&vm, 0x11);
	after = vm_regs(&vm);
	before.rip += 2;
	CHECK(!memcmp(&before, &after, sizeof(before)));
	again = vm_sregs(&vm);
	CHECK(!memcmp(&sregs, &again, sizeof(sregs)));
	vm_expect(&vm, KVM_EXIT_HLT);
}

TEST(memory)
{
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, two_outs);
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler_looks);
	vm.mem[SMBASE] = 1;
	smram[0] = 2;
	vm_expect_out(&vm, 0x10);
	smi(&vm);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 2);
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(smram[1], 0x77);
	CHECK_EQ(vm.mem[SMBASE + 1], 0);
	/* Slots of the two do not know of each other. */
	CHECK_ERRNO(try_slot(vm.fd, AS1 | 1, 0, SMBASE, 0x1000, vm.mem), EEXIST);
	CHECK_EQ(try_slot(vm.fd, AS1 | 1, 0, 0, SMBASE, vm.mem), 0);
	CHECK_ERRNO(try_slot(vm.fd, 2 << 16, 0, 0, 0x1000, vm.mem), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, AS1 | 2, 0, 0, 0, vm.mem), EINVAL);
	/* A slot that goes and comes while the vCPU is in SMM. */
	r = vm_regs(&vm);
	r.rip = G_CODE;
	vm_set_regs(&vm, &r);
	vm_expect_out(&vm, 0x10);
	smi(&vm);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 2);
	vm_slot(&vm, AS1, 0, SMBASE, 0, NULL);
	vm_slot(&vm, AS1, 0, SMBASE, SMRAM_BYTES, smram);
	smram[1] = 0;
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(smram[1], 0x77);
}

TEST(dirty_log)
{
	uint64_t first[16] = { 0 }, second[16] = { 0 };
	struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = first };
	struct vm vm;

	VM_NEW_LONG(&vm, two_outs);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &(struct kvm_dirty_log){ .slot = AS1, .dirty_bitmap = first }),
		    ENOENT);
	CHECK_ERRNO(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &(struct kvm_dirty_log){ .slot = 2 << 16, .dirty_bitmap = first }),
		    EINVAL);
	add_smram(&vm, KVM_MEM_LOG_DIRTY_PAGES);
	PUT_HANDLER(SMBASE, handler_looks);
	vm_slot(&vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, 4 * MIB, vm.mem);
	vm_expect_out(&vm, 0x10);
	OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
	for (int round = 0; round < 2; round++) {
		struct kvm_regs r = vm_regs(&vm);

		log = (struct kvm_dirty_log){ .slot = AS1, .dirty_bitmap = second };
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		if (round == 1)
			CHECK_EQ(second[0], 0);
		if (round == 1) {
			r.rip = G_CODE;
			vm_set_regs(&vm, &r);
			vm_expect_out(&vm, 0x10);
		}
		smi(&vm);
		vm_expect_out(&vm, 0x12);
		vm_expect_out(&vm, 0x11);
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		/* The area, and the page that the handler writes. */
		CHECK_EQ(second[0] & 0x8001, 0x8001);
		log = (struct kvm_dirty_log){ .slot = 0, .dirty_bitmap = first };
		OK(ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
		CHECK_EQ(first[0] >> (SMBASE >> 12), 0);
	}
}

TEST(smbase)
{
	uint64_t value;
	struct vm vm;

	VM_NEW_LONG(&vm, loop_outs);
	add_smram(&vm, 0);
	CHECK(get_msr(&vm, MSR_SMBASE, &value) && value == SMBASE);
	PUT_HANDLER(SMBASE, handler_moves);
	PUT_HANDLER(MOVED, handler);
	vm_expect_out(&vm, 0x10);
	smi(&vm);
	vm_expect_out(&vm, 0x12);
	CHECK(get_msr(&vm, MSR_SMBASE, &value) && value == SMBASE);
	vm_expect_out(&vm, 0x10);
	CHECK(get_msr(&vm, MSR_SMBASE, &value) && value == MOVED);
	smi(&vm);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 0x5a);
	CHECK_EQ(vm_sregs(&vm).cs.base, MOVED);
	CHECK_EQ(saved64(MOVED, 0xff78), G_CODE + 2);
	vm_expect_out(&vm, 0x10);
	CHECK(get_msr(&vm, MSR_SMI_COUNT, &value) && value == 2);
	/* User space may move it as well. */
	CHECK(set_msr(&vm, MSR_SMBASE, SMBASE));
	PUT_HANDLER(SMBASE, handler);
	smi(&vm);
	vm_expect_out(&vm, 0x12);
	CHECK_EQ(vm_sregs(&vm).cs.base, SMBASE);
}

/* The guest knows neither the instruction nor the MSR. */
GUEST64(undefined, "rsm; out %al, $0x10; mov $0x9e, %ecx; rdmsr; out %al, $0x11; hlt\n");

TEST(outside)
{
	struct vm vm;

	VM_NEW_LONG(&vm, undefined);
	add_smram(&vm, 0);
	vm_log(&vm)->resume = G_CODE + 2;
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 6);
	vm_log(&vm)->resume = G_CODE + 2 + 2 + 5 + 2;
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(vm_log(&vm)->event[1].vector, 13);
}

/* SMIs and NMIs wait for the end of SMM. */
TEST(held_back)
{
	struct kvm_vcpu_events e;
	struct vm vm;

	VM_NEW_LONG(&vm, loop_outs);
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler_waits);
	vm_expect_out(&vm, 0x10);
	smi(&vm);
	vm_expect_out(&vm, 0x12);
	smi(&vm);
	OK(ioctl(vm.vcpu, KVM_NMI, 0));
	e = vm_events(&vm);
	CHECK_EQ(e.smi.smm, 1);
	CHECK_EQ(e.nmi.masked, 1);
	CHECK_EQ(e.nmi.pending, 1);
	vm_expect_out(&vm, 0x13);
	CHECK_EQ(vm_log(&vm)->count, 0);
	/* The second SMI comes before anything of the guest, and before the NMI. */
	vm_expect_out(&vm, 0x12);
	CHECK(in_smm(&vm));
	CHECK_EQ(vm_log(&vm)->count, 0);
	vm_expect_out(&vm, 0x13);
	vm_expect_out(&vm, 0x10);
	CHECK(!in_smm(&vm));
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 2);
}

/* In SMM since an NMI's handler was interrupted: NMIs are blocked after it as well. */
TEST(inside_nmi)
{
	struct kvm_vcpu_events e;
	struct vm vm;

	VM_NEW_LONG(&vm, loop_outs);
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler);
	vm_expect_out(&vm, 0x10);
	e = vm_events(&vm);
	e.nmi.masked = 1;
	e.flags &= ~KVM_VCPUEVENT_VALID_SMM;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	smi(&vm);
	vm_expect_out(&vm, 0x12);
	CHECK_EQ(vm_events(&vm).smi.smm_inside_nmi, 1);
	vm_expect_out(&vm, 0x10);
	e = vm_events(&vm);
	CHECK_EQ(e.nmi.masked, 1);
	CHECK_EQ(e.smi.smm_inside_nmi, 0);
}

/* INIT waits as well; start-up messages are lost. */
GUEST16(after_init, "out %al, $0x14; jmp .\n");

TEST(init)
{
	uint8_t *rom = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_vcpu_events e;
	struct vm vm;
	uint64_t value;

	REQUIRE(rom != MAP_FAILED);
	VM_NEW_LONG_IRQCHIP(&vm, loop_outs);
	vm_enable_lapic(&vm);
	add_smram(&vm, 0);
	memcpy(rom + 0xff0, after_init, after_init_end - after_init);
	vm_slot(&vm, 1, 0, 0xfffff000, 0x1000, rom);
	PUT_HANDLER(SMBASE, handler_waits);
	vm_expect_out(&vm, 0x10);
	CHECK(set_msr(&vm, MSR_SMBASE, SMBASE));
	smi(&vm);
	vm_expect_out(&vm, 0x12);
	send(&vm, MODE_INIT);
	e = vm_events(&vm);
	CHECK_EQ(e.smi.latched_init, 1);
	vm_expect_out(&vm, 0x13);
	CHECK(in_smm(&vm));
	CHECK_EQ(vm_events(&vm).smi.latched_init, 1);
	vm_expect_out(&vm, 0x14);
	CHECK(!in_smm(&vm));
	CHECK_EQ(vm_events(&vm).smi.latched_init, 0);
	CHECK(get_msr(&vm, MSR_SMBASE, &value) && value == SMBASE);
}

/* A message of delivery mode SMI, taken between two instructions; a halted vCPU is woken and goes on behind its HLT. */
TEST(message)
{
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, loop_outs);
	vm_enable_lapic(&vm);
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler);
	vm_expect_out(&vm, 0x10);
	send(&vm, MODE_SMI);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 0x5a);
	CHECK_EQ(saved64(SMBASE, 0xff78), G_CODE + 2);
	vm_expect_out(&vm, 0x10);
}

static void *send_later(void *vm)
{
	usleep(20000);
	send(vm, MODE_SMI);
	return NULL;
}

GUEST64(halts, "hlt; out %al, $0x11\n");

TEST(halted)
{
	pthread_t thread;
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, halts);
	vm_enable_lapic(&vm);
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler);
	REQUIRE(!pthread_create(&thread, NULL, send_later, &vm));
	CHECK_EQ(vm_expect_out(&vm, 0x12), 0x5a);
	CHECK_EQ(saved64(SMBASE, 0xff78), G_CODE + 1);
	vm_expect_out(&vm, 0x11);
	pthread_join(thread, NULL);
}

/* A guest that sends it to itself, by the local APIC's command register. */
GUEST64(self, "mov $0xfee00300, %edi; movl $0x44200, (%rdi); out %al, $0x10; hlt\n");

TEST(self_message)
{
	struct vm vm;

	VM_NEW_LONG_IRQCHIP(&vm, self);
	vm_enable_lapic(&vm);
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 0x5a);
	vm_expect_out(&vm, 0x10);
	CHECK(!in_smm(&vm));
}

/* Saved in SMM by user space, and restored into another VM. */
TEST(restored)
{
	struct kvm_vcpu_events e;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	struct vm a, b;

	VM_NEW_LONG(&a, two_outs);
	add_smram(&a, 0);
	PUT_HANDLER(SMBASE, handler);
	vm_expect_out(&a, 0x10);
	smi(&a);
	vm_expect_out(&a, 0x12);
	/* The OUT of the handler ends. */
	CHECK_EQ(vm_complete(&a), EINTR);
	regs = vm_regs(&a);
	sregs = vm_sregs(&a);
	e = vm_events(&a);
	VM_NEW_LONG(&b, two_outs);
	vm_slot(&b, AS1, 0, SMBASE, SMRAM_BYTES, smram);
	vm_set_sregs(&b, &sregs);
	vm_set_regs(&b, &regs);
	OK(ioctl(b.vcpu, KVM_SET_VCPU_EVENTS, &e));
	CHECK_EQ(vm_events(&b).smi.smm, 1);
	vm_expect_out(&b, 0x11);
	CHECK(!in_smm(&b));
	/* User space may end it as well, and make an SMI wait. */
	e = vm_events(&b);
	e.smi.pending = 1;
	OK(ioctl(b.vcpu, KVM_SET_VCPU_EVENTS, &e));
	CHECK_EQ(vm_events(&b).smi.pending, 1);
	CHECK_EQ(vm_expect_out(&b, 0x12), 0x5a);
	e = vm_events(&b);
	CHECK_EQ(e.smi.smm, 1);
	e.smi.smm = 0;
	OK(ioctl(b.vcpu, KVM_SET_VCPU_EVENTS, &e));
	CHECK_EQ(vm_events(&b).smi.smm, 0);
}

/* An exception that waits is delivered first. */
TEST(exception_first)
{
	struct kvm_vcpu_events e;
	struct vm vm;

	VM_NEW_LONG(&vm, two_outs);
	add_smram(&vm, 0);
	PUT_HANDLER(SMBASE, handler);
	vm_expect_out(&vm, 0x10);
	e = vm_events(&vm);
	CHECK_EQ(vm_complete(&vm), EINTR);
	e.exception.injected = 1;
	e.exception.nr = 0;
	e.smi.pending = 1;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	vm_log(&vm)->resume = G_CODE + 2;
	vm_expect_out(&vm, 0x12);
	CHECK(in_smm(&vm));
	/* In the handler of the exception, before its first instruction. */
	CHECK_EQ(vm_log(&vm)->count, 0);
	CHECK_EQ(saved64(SMBASE, 0xff78), G_STUBS);
	vm_expect_out(&vm, 0x11);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 0);
}

/* Nowhere to save the state. */
TEST(no_smram)
{
	struct vm vm;

	VM_NEW_LONG(&vm, loop_outs);
	if (!has_extension(vm.kvm, KVM_CAP_X86_SMM))
		skip("no SMM");
	vm_expect_out(&vm, 0x10);
	smi(&vm);
	CHECK_EQ(vm_try_run(&vm), EIO);
}

/* A reset point is one of a single address space. */
TEST(reset_point)
{
	struct rvmm_reset_point point = { .pages = 16 };
	struct rvmm_reset reset;
	struct vm vm;

	if (!is_rvmm())
		skip("rvmm's own");
	VM_NEW_LONG(&vm, two_outs);
	OK(ioctl(vm.fd, RVMM_RESET_POINT, &point));
	add_smram(&vm, 0);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_RESET, &reset), ESTALE);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_RESET_POINT, &point), EINVAL);
}
