// SPDX-License-Identifier: GPL-2.0
/*
 * Instructions on memory that is not there, in 16, 32 and 64 bits. Each is executed twice, by the processor on memory
 * and by the hypervisor on a device that behaves like memory: registers and memory must be the same afterwards.
 */
#define _GNU_SOURCE
#include "vm.h"

#define SLOT 24			/* bytes of code for each instruction, filled with HLT */
#define BYTES 0x2000		/* of the device */
#define XSAVE_BYTES 4096

enum {
	OF = 1 << 11, AF = 1 << 4, PF = 1 << 2, ZF = 1 << 6, SF = 1 << 7, CF = 1, STATUS = OF | AF | PF | ZF | SF | CF,
	/* Where memory starts with an address of code, near or far, a selector, a far pointer to data. */
	NEAR = 1 << 16, FAR = 1 << 17, SEL = 1 << 18, PTR = 1 << 19,
	/* It has to be aligned. It needs AVX. KVM gets several accesses wrong: of writes it
	   tells the last alone, reads move the stack pointer again. */
	ALIGN = 1 << 20, AVX = 1 << 21, SEVERAL = 1 << 22,
	/* A selector of 32 bits: some processors write 16 of them, some 32. */
	HALF = 1 << 23,
};

/* Flags below bit 16 are undefined. */
#define SHIFTS(X, b, s)								\
	X("rol" s " $1, (" b ")", 0) X("ror" s " $1, (" b ")", 0)		\
	X("rcl" s " $1, (" b ")", 0) X("rcr" s " $1, (" b ")", 0)		\
	X("shl" s " $1, (" b ")", AF) X("shr" s " $1, (" b ")", AF)		\
	X("sar" s " $1, (" b ")", AF)						\
	X("rol" s " $3, (" b ")", OF) X("ror" s " %cl, (" b ")", OF)		\
	X("rcl" s " $5, (" b ")", OF) X("rcr" s " %cl, (" b ")", OF)		\
	X("shl" s " $3, (" b ")", AF | OF) X("shr" s " %cl, (" b ")", AF | OF)	\
	X("sar" s " %cl, (" b ")", AF | OF)
#define UNARY(X, b, s)								\
	X("mul" s " (" b ")", SF | ZF | AF | PF) X("imul" s " (" b ")", SF | ZF | AF | PF)	\
	X("div" s " (" b ")", STATUS) X("idiv" s " (" b ")", STATUS)		\
	X("not" s " (" b ")", 0) X("neg" s " (" b ")", 0) X("inc" s " (" b ")", 0)
#define WIDE(X, b, r, c)							\
	X("shld $7, %" r ", (" b ")", AF | OF) X("shrd %cl, %" r ", (" b ")", AF | OF)	\
	X("imul (" b "), %" r, SF | ZF | AF | PF) X("imul $-77, (" b "), %" r, SF | ZF | AF | PF)	\
	X("imul $1000, (" b "), %" r, SF | ZF | AF | PF)			\
	X("bsf (" b "), %" r, STATUS & ~ZF) X("bsr (" b "), %" r, STATUS & ~ZF)	\
	X("cmovz (" b "), %" r, 0) X("cmovnz (" b "), %" r, 0)			\
	X("cmovl (" b "), %" r, 0) X("cmovge (" b "), %" r, 0)			\
	X("xadd %" r ", (" b ")", 0) X("cmpxchg %" r ", (" b ")", 0)
#define BASIC(X, b)								\
	SHIFTS(X, b, "b") SHIFTS(X, b, "w") SHIFTS(X, b, "l")			\
	UNARY(X, b, "b") UNARY(X, b, "w") UNARY(X, b, "l")			\
	WIDE(X, b, "si", "cx") WIDE(X, b, "esi", "ecx")				\
	X("setz (" b ")", 0) X("setnz (" b ")", 0) X("setbe (" b ")", 0) X("setg (" b ")", 0)	\
	X("seto 1(" b ")", 0) X("sets 3(" b ")", 0)				\
	X("lock cmpxchg8b (" b ")", 0) X("cmpxchg8b (" b ")", 0)		\
	X("movbe (" b "), %esi", 0) X("movbe %si, (" b ")", 0) X("movnti %esi, (" b ")", 0)	\
	X("xlat", 0)								\
	X("fnstcw (" b ")", 0) X("fnstsw (" b ")", 0) X("clflush (" b ")", 0)	\
	X("mov %ds, (" b ")", 0) X("mov %cs, (" b ")", 0) X("mov (" b "), %es", SEL)	\
	X("mov (" b "), %fs", SEL) X("lfs (" b "), %esi", PTR) X("lgs (" b "), %si", PTR)	\
	X("pushf", 0) X("popf", 0) X("leave", 0) X("enter $0x20, $0", 0)	\
	X("push $0x1234", 0) X("push $-5", 0) X("pushw $0x1234", 0) X("popw (" b ")", 0)	\
	X("jmp *(" b ")", NEAR) X("call *(" b ")", NEAR) X("ret", NEAR) X("ret $8", NEAR)	\
	X("ljmp *(" b ")", FAR) X("lcall *(" b ")", FAR | SEVERAL)	\
	X("push %fs", HALF) X("pop %gs", SEL) X("smsw (" b ")", 0) X("lmsw (" b ")", 0)	\
	X("movups (" b "), %xmm1", 0) X("movups %xmm2, (" b ")", 0)		\
	X("movupd (" b "), %xmm1", 0) X("movupd %xmm2, (" b ")", 0)		\
	X("movaps (" b "), %xmm3", ALIGN) X("movaps %xmm4, (" b ")", ALIGN)	\
	X("movapd (" b "), %xmm3", ALIGN) X("movapd %xmm4, (" b ")", ALIGN)	\
	X("movntps %xmm5, (" b ")", ALIGN) X("movntdq %xmm6, (" b ")", ALIGN)	\
	X("movdqa (" b "), %xmm7", ALIGN) X("movdqa %xmm0, (" b ")", ALIGN)	\
	X("movdqu (" b "), %xmm1", 0) X("movdqu %xmm2, (" b ")", 0)		\
	X("movntdqa (" b "), %xmm2", ALIGN)					\
	X("movq (" b "), %mm3", 0) X("movq %mm4, (" b ")", 0)
#define VEX(X, b)								\
	X("vmovups (" b "), %ymm1", AVX) X("vmovups %ymm2, (" b ")", AVX)	\
	X("vmovdqu (" b "), %xmm3", AVX) X("vmovdqu %xmm4, (" b ")", AVX)	\
	X("vmovdqu (" b "), %ymm3", AVX) X("vmovdqu %ymm4, (" b ")", AVX)	\
	X("vmovapd (" b "), %ymm5", AVX | ALIGN) X("vmovdqa %ymm6, (" b ")", AVX | ALIGN)	\
	X("vmovntdq %ymm7, (" b ")", AVX | ALIGN)
#define LEGACY(X, b)								\
	X("pusha", SEVERAL) X("pushal", SEVERAL) X("popa", SEVERAL) X("pushw %si", 0) X("pushl %esi", 0)	\
	X("push %ds", HALF) X("push %cs", HALF) X("pop %es", SEL) X("les (" b "), %esi", PTR)	\
	X("lds (" b "), %esi", PTR) X("lret", FAR | SEVERAL) X("lret $4", FAR | SEVERAL)
#define LONG(X, b)								\
	SHIFTS(X, b, "q") UNARY(X, b, "q") WIDE(X, b, "rsi", "rcx")		\
	X("movbe (" b "), %r9", 0) X("movnti %r9, (" b ")", 0) X("cmovz (" b "), %r10d", 0)	\
	X("push %r9", 0) X("pop %r10", 0) X("pushq (" b ")", 0)		\
	X("movups (" b "), %xmm11", 0) X("vmovdqu %ymm12, (" b ")", AVX) X("sldt (" b ")", 0)	\
	X("str (" b ")", 0) X("lretl", FAR | SEVERAL) X("lretl $4", FAR | SEVERAL)

#define CODE(i, f) "1: " i "\n2: .fill " STR(SLOT) "-(2b-1b), 1, 0xf4\n"
#define ROW(i, f) { i, f },

GUEST16(emul16, BASIC(CODE, "%bx") LEGACY(CODE, "%bx"));
GUEST32(emul32, BASIC(CODE, "%ebx") LEGACY(CODE, "%ebx") VEX(CODE, "%ebx"));
GUEST64(emul64, BASIC(CODE, "%rbx") LONG(CODE, "%rbx") VEX(CODE, "%rbx"));

struct row { const char *insn; unsigned int flags; };
static const struct row rows16[] = { BASIC(ROW, "%bx") LEGACY(ROW, "%bx") };
static const struct row rows32[] = { BASIC(ROW, "%ebx") LEGACY(ROW, "%ebx") VEX(ROW, "%ebx") };
static const struct row rows64[] = { BASIC(ROW, "%rbx") LONG(ROW, "%rbx") VEX(ROW, "%rbx") };

/* All that an instruction leaves behind. */
struct result {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	uint8_t xsave[XSAVE_BYTES], memory[BYTES];
};

struct machine {
	struct vm vm;
	uint8_t *memory;	/* of the device, or in a slot */
	struct kvm_sregs sregs;
};

static uint8_t start_xsave[XSAVE_BYTES];

static uint8_t pattern(unsigned int i)
{
	return i * 0x9d + (i >> 8) * 0x35 + 0x41;
}

static void prepare(struct machine *m, bool device, int bits)
{
	struct kvm_xcrs x = { .nr_xcrs = 1 };
	struct kvm_segment *s;

	vm_new(&m->vm, 4 * MIB);
	m->memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!device)
		vm_slot(&m->vm, 1, 0, G_MMIO, BYTES, m->memory);
	if (bits == 16)
		VM_REAL(&m->vm, emul16);
	else if (bits == 32)
		VM_PROT(&m->vm, emul32);
	else
		VM_LONG(&m->vm, emul64);
	m->sregs = vm_sregs(&m->vm);
	m->sregs.cr4 |= 0x600;
	if (cpuid_entry(supported_cpuid(m->vm.kvm), 1, 0)->ecx & 1u << 28) {
		m->sregs.cr4 |= 1 << 18;
		x.xcrs[0].value = 7;
	}
	if (bits != 64) {
		s = &m->sregs.ds;
		s->base = m->sregs.es.base = m->sregs.fs.base = m->sregs.gs.base = m->sregs.ss.base = G_MMIO;
	}
	vm_set_sregs(&m->vm, &m->sregs);
	if (x.xcrs[0].value)
		ioctl(m->vm.vcpu, KVM_SET_XCRS, &x);
}

/* Executes the instruction at `rip`; false if it ends otherwise than with the HLT after it. */
static bool execute(struct machine *m, uint64_t rip, uint64_t base, const uint8_t *memory, struct result *r)
{
	struct kvm_run *run = m->vm.run;
	uint64_t offset;

	memset(r, 0, sizeof(*r));
	memcpy(m->memory, memory, BYTES);
	vm_set_sregs(&m->vm, &m->sregs);
	if (ioctl(m->vm.vcpu, KVM_SET_XSAVE, start_xsave))
		DIE("KVM_SET_XSAVE");
	r->regs = (struct kvm_regs) { .rip = rip, .rflags = 2 | CF | SF, .rbx = base, .rsp = base, .rbp = base + 16,
		.rax = 0x0123456712340234, .rcx = 0xfedcba9876543203, .rsi = 0x8877665544332211,
		.rdi = 0x1122334455667788, .r8 = 8, .r9 = 0x99aabbccddeeff00, .r10 = -1ull };
	vm_set_regs(&m->vm, &r->regs);
	for (int n = 0; n < 40; n++) {
		if (vm_run(&m->vm) == KVM_EXIT_HLT) {
			r->regs = vm_regs(&m->vm);
			r->sregs = vm_sregs(&m->vm);
			if (ioctl(m->vm.vcpu, KVM_GET_XSAVE, r->xsave))
				DIE("KVM_GET_XSAVE");
			memcpy(r->memory, m->memory, BYTES);
			return true;
		}
		offset = run->mmio.phys_addr - G_MMIO;
		if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.len > 8 || offset > BYTES - run->mmio.len)
			break;
		if (run->mmio.is_write)
			memcpy(m->memory + offset, run->mmio.data, run->mmio.len);
		else
			memcpy(run->mmio.data, m->memory + offset, run->mmio.len);
	}
	return false;
}

/* What the FPU and the vectors hold: components that are not in use read as zero. */
static void normalize(uint8_t *x)
{
	uint64_t bv;

	memcpy(&bv, x + 512, 8);
	if (!(bv & 1))
		memset(x + 32, 0, 128);
	if (!(bv & 2))
		memset(x + 160, 0, 256);
	if (!(bv & 4))
		memset(x + 576, 0, 256);
	/* Addresses of the last x87 instruction, MXCSR_MASK, what is free. */
	memset(x + 6, 0, 26);
	memset(x + 416, 0, 160);
	memset(x + 832, 0, XSAVE_BYTES - 832);
	/* TCG leaves sign and exponent of MMX registers alone. */
	for (int i = 0; i < 8; i++)
		memset(x + 32 + 16 * i + 8, 0, 8);
}

static bool same_segment(const struct kvm_segment *a, const struct kvm_segment *b)
{
	return a->selector == b->selector && a->limit == b->limit && a->type == b->type && a->base == b->base;
}

/* Outside 64-bit mode the upper halves of registers are undefined. */
static void low_halves(struct kvm_regs *r)
{
	uint64_t words[sizeof(*r) / 8];

	memcpy(words, r, sizeof(words));
	for (unsigned int i = 0; i < sizeof(*r) / 8; i++)
		words[i] &= 0xffffffff;
	memcpy(r, words, sizeof(words));
}

static const char *difference(struct result *a, struct result *b, unsigned int undefined, int bits)
{
	if (bits != 64) {
		low_halves(&a->regs);
		low_halves(&b->regs);
	}
	a->regs.rflags &= ~(uint64_t)undefined;
	b->regs.rflags &= ~(uint64_t)undefined;
	normalize(a->xsave);
	normalize(b->xsave);
	if (a->regs.rflags != b->regs.rflags)
		return "flags";
	if (memcmp(&a->regs, &b->regs, sizeof(a->regs)))
		return "registers";
	if (memcmp(a->memory, b->memory, BYTES))
		return "memory";
	if (memcmp(a->xsave, b->xsave, XSAVE_BYTES))
		return "vectors";
	if (!same_segment(&a->sregs.cs, &b->sregs.cs) || !same_segment(&a->sregs.ds, &b->sregs.ds) ||
	    !same_segment(&a->sregs.es, &b->sregs.es) || !same_segment(&a->sregs.fs, &b->sregs.fs) ||
	    !same_segment(&a->sregs.gs, &b->sregs.gs) || !same_segment(&a->sregs.ss, &b->sregs.ss))
		return "segments";
	return NULL;
}

static void describe(const char *which, const struct result *r, unsigned int at)
{
	printf("# %s: rip %llx rflags %llx rax %llx rdx %llx rsi %llx rsp %llx rbp %llx, memory", which, r->regs.rip,
	       r->regs.rflags, r->regs.rax, r->regs.rdx, r->regs.rsi, r->regs.rsp, r->regs.rbp);
	for (unsigned int i = at - 8; i < at + 16; i++)
		printf(" %02x", r->memory[i]);
	printf("\n");
}

static void all(int bits, const struct row *rows, unsigned int count)
{
	static struct result on_memory, on_device;
	uint16_t code = bits == 16 ? G_CODE >> 4 : bits == 32 ? SEL_CODE32 : SEL_CODE64;
	static const unsigned int places[] = { 0x800, 0xffd };
	uint16_t data = bits == 16 ? 0x1234 : SEL_DATA;
	unsigned int width = bits == 16 ? 2 : 4, bad = 0;
	struct machine memory, device;
	uint8_t start[BYTES];
	uint64_t rip, bv = 7, base;
	const char *what;

	for (unsigned int i = 0; i < 512; i++)
		start_xsave[i] = i >= 32 && i < 416 ? pattern(i) : 0;
	memcpy(start_xsave, (uint16_t[]) { 0x37f, 3 << 11, 0xff }, 6);
	memcpy(start_xsave + 24, (uint32_t[]) { 0x1f80 }, 4);
	for (unsigned int i = 576; i < 832; i++)
		start_xsave[i] = pattern(i);
	prepare(&memory, false, bits);
	prepare(&device, true, bits);
	if (!(memory.sregs.cr4 & 1 << 18))
		bv = 3;
	memcpy(start_xsave + 512, &bv, 8);
	for (unsigned int i = 0; i < 2 * count; i++) {
		const struct row *row = &rows[i / 2];
		unsigned int at = places[i & 1], f = row->flags;

		if ((at & 15 && f & ALIGN) || (f & AVX && bv == 3) || (f & SEVERAL && !is_rvmm()) ||
		    (f & HALF && bits == 32))
			continue;
		for (unsigned int n = 0; n < BYTES; n++)
			start[n] = pattern(n);
		rip = (bits == 16 ? 0 : G_CODE) + SLOT * (i / 2);
		if (f & (NEAR | FAR)) {
			uint64_t target = rip + SLOT - 4;

			memcpy(start + at, &target, 8);
			if (f & FAR)
				memcpy(start + at + width, &code, 2);
		}
		if (f & SEL)
			memcpy(start + at, &data, 2);
		/* LGS with 16 bits has its selector after these. */
		if (f & PTR) {
			memcpy(start + at + 2, &data, 2);
			memcpy(start + at + 4, &data, 2);
		}
		base = bits == 64 ? G_MMIO + at : at;
		if (!execute(&memory, rip, base, start, &on_memory))
			DIE("%d bits: %s: not even on memory: exit %s", bits, row->insn,
			    exit_name(memory.vm.run->exit_reason));
		if (!execute(&device, rip, base, start, &on_device))
			what = exit_name(device.vm.run->exit_reason);
		else
			what = difference(&on_memory, &on_device, f & 0xffff, bits);
		if (!what)
			continue;
		printf("# %d bits, at %#x: %s: %s\n", bits, at, row->insn, what);
		describe("memory", &on_memory, at);
		describe("device", &on_device, at);
		bad++;
	}
	vm_free(&memory.vm);
	vm_free(&device.vm);
	if (bad)
		DIE("%u of %u differ", bad, 2 * count);
}

TEST(real_mode)
{
	all(16, rows16, ARRAY_SIZE(rows16));
}

TEST(protected_mode)
{
	all(32, rows32, ARRAY_SIZE(rows32));
}

TEST(long_mode)
{
	all(64, rows64, ARRAY_SIZE(rows64));
}

/* A division by what a device gives. */
GUEST64(divide_error, "mov $" STR(G_MMIO) ", %ebx; xor %edx, %edx; divl (%rbx); hlt\n");

TEST(divide)
{
	struct vm vm;

	VM_NEW_LONG(&vm, divide_error);
	vm_log(&vm)->resume = G_CODE + divide_error_end - divide_error - 1;
	vm_expect(&vm, KVM_EXIT_MMIO);
	memset(vm.run->mmio.data, 0, 8);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 0);
	vm_free(&vm);
}

/* INS and OUTS where a device is in memory's place. What is input comes at once, what is output item by item. */
GUEST64(port_strings,
	"mov $" STR(G_MMIO) ", %edi; mov $0x10, %edx; mov $5, %ecx; rep insb\n"
	"std; mov $2, %ecx; mov $" STR(G_MMIO) " + 0x10, %edi; rep insw; cld\n"
	"mov $" STR(G_MMIO) ", %esi; mov $2, %ecx; rep outsw; hlt\n");

static void expect_port(struct vm *vm, bool out, unsigned int size, unsigned int count)
{
	vm_expect(vm, KVM_EXIT_IO);
	CHECK_EQ(vm->run->io.port, 0x10);
	CHECK_EQ(vm->run->io.direction, out ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN);
	CHECK_EQ(vm->run->io.size, size);
	CHECK_EQ(vm->run->io.count, count);
}

static void expect_mmio(struct vm *vm, bool write, uint64_t at, unsigned int bytes)
{
	vm_expect(vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm->run->mmio.is_write, write);
	CHECK_EQ(vm->run->mmio.phys_addr, G_MMIO + at);
	CHECK_EQ(vm->run->mmio.len, bytes);
}

TEST(strings_of_ports_and_devices)
{
	struct vm vm;

	VM_NEW_LONG(&vm, port_strings);
	expect_port(&vm, false, 1, 5);
	memcpy(io_data(&vm), "abcde", 5);
	expect_mmio(&vm, true, 0, 5);
	CHECK(!memcmp(vm.run->mmio.data, "abcde", 5));
	expect_port(&vm, false, 2, 2);
	memcpy(io_data(&vm), "fghi", 4);
	expect_mmio(&vm, true, 0x10, 2);
	CHECK(!memcmp(vm.run->mmio.data, "fg", 2));
	/* KVM forgets the second item and inputs another one. */
	if (!is_rvmm()) {
		expect_port(&vm, false, 2, 1);
		memcpy(io_data(&vm), "hi", 2);
	}
	expect_mmio(&vm, true, 0xe, 2);
	CHECK(!memcmp(vm.run->mmio.data, "hi", 2));
	for (unsigned int i = 0; i < 2; i++) {
		expect_mmio(&vm, false, 2 * i, 2);
		memcpy(vm.run->mmio.data, "jklm" + 2 * i, 2);
		expect_port(&vm, true, 2, 1);
		CHECK(!memcmp(io_data(&vm), "jklm" + 2 * i, 2));
	}
	vm_expect(&vm, KVM_EXIT_HLT);
	vm_free(&vm);
}
