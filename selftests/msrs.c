// SPDX-License-Identifier: GPL-2.0
/*
 * All MSR numbers that a processor of either vendor, KVM or Hyper-V has: what a guest's RDMSR and WRMSR do, what
 * KVM_GET_MSRS and KVM_SET_MSRS do, and what KVM_GET_SUPPORTED_CPUID shows. With -v everything is printed, one line per
 * MSR and leaf; tools/msrs runs all tests so on KVM and on rvmm, and compares. By itself it finds out whether guest and
 * user space see the same values, and whether what is listed can be read and written back.
 */
#define _GNU_SOURCE
#include "vm.h"

static const struct range {
	uint32_t first, last;
} ranges[] = {
	{ 0, 0x1fff }, { 0x40000000, 0x400001ff }, { 0x4b564d00, 0x4b564d0f }, { 0xc0000000, 0xc0001fff },
	{ 0xc0010000, 0xc0011fff },
};

#define COUNT (0x2000 + 0x200 + 0x10 + 0x2000 + 0x2000)

/* What came of one MSR. */
struct entry {
	uint32_t msr, flags;
	uint64_t value;		/* as found */
	uint64_t zeroed;	/* after a write of 0 */
	uint64_t accepted;	/* bits that could be flipped */
	uint64_t kept;		/* bits that were flipped afterwards */
};

enum { READ = 1, WRITE_0 = 2, WRITE_BACK = 4, READ_ONLY = 8 };

/* Nothing else lies at a power of two: MSRs that hold addresses get them, and KVM writes there. */
#define G_TABLE 0x210000
#define G_FAULT 0xb010
#define BYTES (8 * MIB)

_Static_assert(G_TABLE + COUNT * sizeof(struct entry) < 0x400000, "the table fits");

/*
 * EDI: entry. Faults are counted in EBP; the handler goes on behind the instruction.
 * 0: msr 4: flags 8: value 16: zeroed 24: accepted 32: kept
 */
GUEST32(every_msr,
	"jmp 1f; .skip 30\n"
	"1: mov $" STR(G_TABLE) ", %edi\n"
	"next: mov (%edi), %ecx\n"
	"cmp $0xffffffff, %ecx; je 9f\n"
	"xor %ebp, %ebp; rdmsr\n"
	"test %ebp, %ebp; jnz 2f\n"
	"orl $1, 4(%edi); mov %eax, 8(%edi); mov %edx, 12(%edi)\n"
	"2: testl $8, 4(%edi); jnz 8f\n"
	"xor %ebp, %ebp; xor %eax, %eax; xor %edx, %edx; wrmsr\n"
	"test %ebp, %ebp; jnz 3f\n"
	"orl $2, 4(%edi)\n"
	"rdmsr; test %ebp, %ebp; jnz 3f\n"
	"mov %eax, 16(%edi); mov %edx, 20(%edi)\n"
	"3: xor %ebp, %ebp; mov 8(%edi), %eax; mov 12(%edi), %edx; wrmsr\n"
	"test %ebp, %ebp; jnz 4f\n"
	"orl $4, 4(%edi)\n"
	"4: testl $7, 4(%edi); jz 8f\n"
	"mov $1, %esi; xor %ebx, %ebx\n"		/* EBX:ESI: the bit */
	"5: xor %ebp, %ebp\n"
	"mov 8(%edi), %eax; mov 12(%edi), %edx; xor %esi, %eax; xor %ebx, %edx; wrmsr\n"
	"test %ebp, %ebp; jnz 7f\n"
	"or %esi, 24(%edi); or %ebx, 28(%edi)\n"
	"rdmsr; test %ebp, %ebp; jnz 6f\n"
	"xor 8(%edi), %eax; xor 12(%edi), %edx; and %esi, %eax; and %ebx, %edx\n"
	"or %eax, 32(%edi); or %edx, 36(%edi)\n"
	"6: mov 8(%edi), %eax; mov 12(%edi), %edx; wrmsr\n"
	"7: shld $1, %esi, %ebx; shl $1, %esi\n"
	"mov %esi, %eax; or %ebx, %eax; jnz 5b\n"
	"8: add $40, %edi; jmp next\n"
	"9: out %al, $0x10; hlt\n"
	".balign 16\n"
	"fault: inc %ebp; add $4, %esp; addl $2, (%esp); iret\n");

/* Guests change what they stand on by these, or time, or what comes of them is tested elsewhere. */
static bool only_read(uint32_t msr)
{
	return msr == 0x1b || (msr >= 0x800 && msr <= 0x8ff);
}

/*
 * Bits that stay what they are: QEMU takes addresses that are not canonical for FS, GS and the kernel's GS, and makes
 * them canonical at a VMLOAD (APM 2 15.5.2), which comes between if an interrupt does.
 */
static uint64_t stays(uint32_t msr)
{
	return msr >= 0xc0000100 && msr <= 0xc0000102 ? (1ull << 47) - 1 : ~0ull;
}

/* Values are those of a clock. */
static bool runs(uint32_t msr)
{
	return msr == 0x10 || msr == 0x3b;
}

static void say(const char *who, const struct entry *e)
{
	char value[20] = "-", zeroed[20] = "-";

	if (!verbose || (!(e->flags & ~READ_ONLY) && !e->accepted))
		return;
	if (e->flags & READ)
		snprintf(value, sizeof(value), "%llx", (unsigned long long)e->value);
	if (e->flags & WRITE_0)
		snprintf(zeroed, sizeof(zeroed), "%llx", (unsigned long long)e->zeroed);
	if (runs(e->msr)) {
		strcpy(value, e->flags & READ ? "time" : "-");
		strcpy(zeroed, e->flags & WRITE_0 ? "time" : "-");
	}
	note("%s %08x: read %s, zeroed %s, %s, accepts %llx, keeps %llx", who, e->msr, value, zeroed,
	     e->flags & WRITE_BACK ? "written back" : "-", (unsigned long long)e->accepted,
	     runs(e->msr) ? 0ull : (unsigned long long)(e->kept & stays(e->msr)));
}

static void gate(struct vm *vm, unsigned int vector, uint32_t target)
{
	uint64_t *idt = (uint64_t *)(vm->mem + G_IDT);

	idt[vector] = (target & 0xffff) | (uint64_t)SEL_CODE32 << 16 | 0x8eull << 40 |
		      (uint64_t)(target & 0xffff0000) << 32;
}

/* Bytes from the start of the guest to its handler, which is 16 bytes at its end. */
static uint32_t handler(const unsigned char *code, const unsigned char *end)
{
	static const unsigned char first[] = { 0x45, 0x83, 0xc4, 0x04 };	/* inc %ebp; add $4, %esp */

	for (const unsigned char *p = code; p + 4 <= end; p++)
		if (!memcmp(p, first, 4))
			return G_CODE + (p - code);
	DIE("no handler");
}

static void in_guest(struct vm *vm, const unsigned char *code, const unsigned char *end)
{
	struct kvm_sregs s;

	vm_prot(vm, code, end);
	gate(vm, 13, handler(code, end));
	s = vm_sregs(vm);
	s.idt.base = G_IDT;
	s.idt.limit = 0x7ff;
	/* QEMU's interpreter does not survive an exit with EFER.LME and without CR4.PAE. */
	s.cr4 |= 0x20;
	vm_set_sregs(vm, &s);
}

TEST_SECONDS(guest, 300)
{
	struct vm vm, other;
	struct entry *table;
	/* With nested virtualisation KVM offers EFER.LMSLE, which QEMU's SVM does not enter with. */
	bool efer = verbose || is_rvmm();
	unsigned int n = 0;
	uint64_t v;

	vm_new_irqchip(&vm, BYTES);
	table = (struct entry *)(vm.mem + G_TABLE);
	for (unsigned int i = 0; i < ARRAY_SIZE(ranges); i++)
		for (uint32_t msr = ranges[i].first; msr <= ranges[i].last; msr++)
			table[n++] = (struct entry){
				.msr = msr,
				.flags = only_read(msr) || (msr == 0xc0000080 && !efer) ? READ_ONLY : 0,
			};
	REQUIRE_EQ(n, COUNT);
	table[n].msr = ~0u;
	in_guest(&vm, every_msr, every_msr_end);
	vm_expect(&vm, KVM_EXIT_IO);
	vm_new_irqchip(&other, MIB);
	for (unsigned int i = 0; i < n; i++) {
		struct entry *e = &table[i];

		say("guest", e);
		/* The device is the same, so a fresh vCPU has what this one had. */
		if (!(e->flags & READ) || runs(e->msr))
			continue;
		if (!get_msr(&other, e->msr, &v))
			FAIL("MSR %#x: the guest reads it, user space cannot", e->msr);
		else if (v != e->value)
			FAIL("MSR %#x is %#llx to the guest, %#llx to user space", e->msr, (unsigned long long)e->value,
			     (unsigned long long)v);
	}
}

/* The same accesses by user space, on a vCPU that never runs. */
TEST_NAMED(user)
{
	struct vm vm;
	uint64_t v;

	vm_new_irqchip(&vm, MIB);
	for (unsigned int i = 0; i < ARRAY_SIZE(ranges); i++)
		for (uint32_t msr = ranges[i].first; msr <= ranges[i].last; msr++) {
			struct entry e = { .msr = msr };

			if (get_msr(&vm, msr, &e.value))
				e.flags |= READ;
			if (set_msr(&vm, msr, 0)) {
				e.flags |= WRITE_0;
				get_msr(&vm, msr, &e.zeroed);
			}
			if (set_msr(&vm, msr, e.value))
				e.flags |= WRITE_BACK;
			for (unsigned int bit = 0; e.flags && bit < 64; bit++) {
				if (!set_msr(&vm, msr, e.value ^ 1ull << bit))
					continue;
				e.accepted |= 1ull << bit;
				if (get_msr(&vm, msr, &v))
					e.kept |= (v ^ e.value) & 1ull << bit;
				set_msr(&vm, msr, e.value);
			}
			say("user", &e);
		}
}

static struct kvm_msr_list *msr_list(int kvm, unsigned long cmd)
{
	struct kvm_msr_list *list = calloc(1, sizeof(*list) + 1024 * sizeof(list->indices[0]));

	list->nmsrs = 1024;
	OK(ioctl(kvm, cmd, list));
	return list;
}

/* What is listed can be read and written back; features also on the device. */
TEST(lists)
{
	struct vm vm;
	struct kvm_msr_list *list;
	uint64_t v;

	vm_new_irqchip(&vm, MIB);
	list = msr_list(vm.kvm, KVM_GET_MSR_INDEX_LIST);
	for (unsigned int i = 0; i < list->nmsrs; i++) {
		uint32_t msr = list->indices[i];

		if (verbose)
			note("listed %08x: yes", msr);
		if (!get_msr(&vm, msr, &v))
			FAIL("MSR %#x is listed and cannot be read", msr);
		else if (!set_msr(&vm, msr, v))
			FAIL("MSR %#x is listed and cannot be written back", msr);
	}
	free(list);
	list = msr_list(vm.kvm, KVM_GET_MSR_FEATURE_INDEX_LIST);
	for (unsigned int i = 0; i < list->nmsrs; i++) {
		struct { struct kvm_msrs h; struct kvm_msr_entry e; } m = { .h.nmsrs = 1, .e.index = list->indices[i] };

		if (OK(ioctl(vm.kvm, KVM_GET_MSRS, &m)) != 1)
			FAIL("MSR %#x is a feature and cannot be read", m.e.index);
		if (verbose)
			note("feature %08x: %llx", m.e.index, m.e.data);
	}
	free(list);
}

/* What tells features is fixed once the vCPU has run, but for the microcode's revision; before, it is as wanted. */
TEST(fixed)
{
	static const uint64_t wanted = 1ull << 7 | 1ull << 12 | 1;	/* TSX_CTRL, DOITM, RDCL_NO */
	struct vm vm;
	uint64_t v;

	vm_new_irqchip(&vm, BYTES);
	CHECK(set_msr(&vm, 0x10a, wanted));
	((struct entry *)(vm.mem + G_TABLE))->msr = ~0u;
	in_guest(&vm, every_msr, every_msr_end);
	vm_expect(&vm, KVM_EXIT_IO);
	CHECK(get_msr(&vm, 0x10a, &v) && v == wanted);
	CHECK(set_msr(&vm, 0x10a, wanted));
	CHECK(!set_msr(&vm, 0x10a, 1));
	CHECK(!set_msr(&vm, 0xce, 0));
	CHECK(set_msr(&vm, 0x345, 0));
	CHECK(set_msr(&vm, 0x8b, 77));
	CHECK(get_msr(&vm, 0x8b, &v) && v == 77);
}

/* One RDMSR and one WRMSR of 0, of the MSR in ESI, again and again. */
GUEST32(ask_user_space,
	"1: mov $0x11, %al; out %al, $0x10; mov %esi, %ecx; xor %eax, %eax; xor %edx, %edx\n"
	"rdmsr; mov %esi, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr; jmp 1b\n"
	".balign 16\n"
	"inc %ebp; add $4, %esp; addl $2, (%esp); iret\n");

/* Why an access fails: the MSR is not there, or not so. */
TEST_NAMED(reasons)
{
	static const struct range some[] = {
		{ 0, 0x5ff }, { 0x600, 0x7ff }, { 0xd80, 0xdaf }, { 0x4b564d00, 0x4b564d0f },
		{ 0xc0000080, 0xc000010f },
		{ 0xc0010000, 0xc001021f }, { 0xc0011000, 0xc001103f },
	};
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR,
				      .args = { KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL } };
	struct vm vm;

	vm_init_irqchip(&vm, BYTES);
	OK(ioctl(vm.fd, KVM_ENABLE_CAP, &cap));
	vm_add_vcpu(&vm, 0);
	in_guest(&vm, ask_user_space, ask_user_space_end);
	vm_expect(&vm, KVM_EXIT_IO);
	for (unsigned int i = 0; i < ARRAY_SIZE(some); i++)
		for (uint32_t msr = some[i].first; msr <= some[i].last; msr++) {
			struct kvm_regs r = vm_regs(&vm);
			unsigned int why[2] = { 0, 0 };

			r.rsi = msr;
			vm_set_regs(&vm, &r);
			for (;;) {
				unsigned int reason = vm_run(&vm);

				if (reason == KVM_EXIT_IO)
					break;
				REQUIRE(reason == KVM_EXIT_X86_RDMSR || reason == KVM_EXIT_X86_WRMSR);
				REQUIRE_EQ(vm.run->msr.index, msr);
				why[reason == KVM_EXIT_X86_WRMSR] = vm.run->msr.reason;
				vm.run->msr.error = 1;
			}
			if (verbose && (why[0] != KVM_MSR_EXIT_REASON_UNKNOWN || why[1] != KVM_MSR_EXIT_REASON_UNKNOWN))
				note("reason %08x: read %u, write of 0 %u", msr, why[0], why[1]);
		}
}

/* Module parameter ignore_msrs=1: what is not there reads as 0 and may be written; what is there keeps its rules. */
TEST_NAMED(ignored)
{
	static const struct entry want[] = {
		{ .msr = 0x1300, .flags = READ | WRITE_0 | WRITE_BACK, .accepted = ~0ull },
		{ .msr = 0x0, .flags = READ | WRITE_0 | WRITE_BACK, .accepted = ~0ull }, /* nothing there */
		{ .msr = 0x210, .flags = 0 },
		{ .msr = 0xc0010058, .flags = READ | WRITE_0 | WRITE_BACK },
	};
	struct entry *table;
	struct vm vm;
	uint64_t v;

	vm_new_irqchip(&vm, BYTES);
	table = (struct entry *)(vm.mem + G_TABLE);
	for (unsigned int i = 0; i < ARRAY_SIZE(want); i++)
		table[i].msr = want[i].msr;
	table[ARRAY_SIZE(want)].msr = ~0u;
	in_guest(&vm, every_msr, every_msr_end);
	vm_expect(&vm, KVM_EXIT_IO);
	for (unsigned int i = 0; i < ARRAY_SIZE(want); i++) {
		CHECK_EQ(table[i].flags, want[i].flags);
		CHECK_EQ(table[i].accepted, want[i].accepted);
		CHECK_EQ(table[i].value | table[i].kept, 0);
	}
	CHECK(get_msr(&vm, 0x12345, &v) && v == 0);
	CHECK(set_msr(&vm, 0x12345, 5));
	CHECK(get_msr(&vm, 0x12345, &v) && v == 0);
	CHECK(!set_msr(&vm, 0x210, 0));
}

TEST_NAMED(cpuid)
{
	int kvm = device_open();
	struct kvm_cpuid2 *table = supported_cpuid(kvm);

	for (unsigned int i = 0; verbose && i < table->nent; i++) {
		struct kvm_cpuid_entry2 *e = &table->entries[i];

		note("cpuid %08x.%x: %08x %08x %08x %08x", e->function, e->index, e->eax, e->ebx, e->ecx, e->edx);
	}
	free(table);
	close(kvm);
}
