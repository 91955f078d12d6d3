// SPDX-License-Identifier: GPL-2.0
/* A vCPU's state from outside: after RESET, there and back, and what is refused (api.rst 4, SDM 3A table 10-1). */
#define _GNU_SOURCE
#include "vm.h"

GUEST16(halt, "1: hlt; jmp 1b\n");
GUEST64(halt64, "1: hlt; jmp 1b\n");

TEST(reset_state)
{
	struct kvm_debugregs d;
	struct kvm_xcrs x;
	struct kvm_fpu f;
	struct kvm_mp_state mp;
	struct kvm_sregs s;
	struct kvm_regs r;
	uint64_t v;
	struct vm vm;

	vm_new(&vm, MIB);
	r = vm_regs(&vm);
	CHECK_EQ(r.rip, 0xfff0);
	CHECK_EQ(r.rflags, 2);
	CHECK_EQ(r.rax | r.rbx | r.rcx | r.rsi | r.rdi | r.rbp | r.rsp, 0);
	CHECK_EQ(r.rdx & ~0xff0ffful, 0);	/* family, model, stepping */
	CHECK((r.rdx & 0xf00) != 0);
	s = vm_sregs(&vm);
	CHECK_EQ(s.cs.selector, 0xf000);
	CHECK_EQ(s.cs.base, 0xffff0000);
	CHECK_EQ(s.cs.limit, 0xffff);
	/* "Accessed" as after RESET; KVM on SVM starts without. */
	CHECK_EQ(s.cs.type | !is_rvmm(), 11);
	CHECK(s.cs.present && s.cs.s && !s.cs.l && !s.cs.db && !s.cs.g && !s.cs.dpl && !s.cs.unusable);
	const struct kvm_segment *data[] = { &s.ds, &s.es, &s.fs, &s.gs, &s.ss };
	for (int i = 0; i < 5; i++) {
		CHECK_EQ(data[i]->selector, 0);
		CHECK_EQ(data[i]->base, 0);
		CHECK_EQ(data[i]->limit, 0xffff);
		CHECK_EQ(data[i]->type | !is_rvmm(), 3);
		CHECK(data[i]->present && data[i]->s && !data[i]->dpl && !data[i]->unusable);
	}
	CHECK_EQ(s.tr.limit, 0xffff);
	CHECK(s.tr.type == 11 || s.tr.type == 3);
	CHECK(s.tr.present && !s.tr.s);
	CHECK_EQ(s.ldt.limit, 0xffff);
	CHECK_EQ(s.ldt.type, 2);
	CHECK_EQ(s.gdt.base | s.idt.base, 0);
	CHECK_EQ(s.gdt.limit, 0xffff);
	CHECK_EQ(s.idt.limit, 0xffff);
	CHECK_EQ(s.cr0, 0x60000010);
	CHECK_EQ(s.cr2 | s.cr3 | s.cr4 | s.cr8 | s.efer, 0);
	CHECK_EQ(s.apic_base & ~0x800ull, 0xfee00100);
	CHECK_EQ(s.interrupt_bitmap[0] | s.interrupt_bitmap[1] | s.interrupt_bitmap[2] | s.interrupt_bitmap[3], 0);
	OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &d));
	CHECK_EQ(d.db[0] | d.db[1] | d.db[2] | d.db[3], 0);
	CHECK_EQ(d.dr6, 0xffff0ff0);
	CHECK_EQ(d.dr7, 0x400);
	OK(ioctl(vm.vcpu, KVM_GET_FPU, &f));
	/* KVM starts with the values of FNINIT. */
	CHECK(f.fcw == 0x37f || f.fcw == 0x40);
	if (is_rvmm())	/* KVM does not fill it in */
		CHECK_EQ(f.mxcsr, 0x1f80);
	if (has_extension(vm.kvm, KVM_CAP_XCRS)) {
		OK(ioctl(vm.vcpu, KVM_GET_XCRS, &x));
		CHECK_EQ(x.nr_xcrs, 1);
		CHECK_EQ(x.xcrs[0].xcr, 0);
		CHECK_EQ(x.xcrs[0].value, 1);
	}
	OK(ioctl(vm.vcpu, KVM_GET_MP_STATE, &mp));
	CHECK_EQ(mp.mp_state, KVM_MP_STATE_RUNNABLE);
	CHECK(get_msr(&vm, 0x277, &v) && v == 0x0007040600070406);
	CHECK(get_msr(&vm, 0x174, &v) && v == 0);
	CHECK(get_msr(&vm, 0xc0000080, &v) && v == 0);
}

TEST(regs)
{
	struct kvm_regs in, out;
	struct vm vm;

	vm_new(&vm, MIB);
	for (size_t i = 0; i < sizeof(in) / 8; i++)
		((uint64_t *)&in)[i] = 0x1122334455660000 + i;
	in.rflags = 0x246;
	vm_set_regs(&vm, &in);
	out = vm_regs(&vm);
	CHECK(!memcmp(&in, &out, sizeof(in)));
	/* Bit 1 is fixed. */
	in.rflags = 0;
	vm_set_regs(&vm, &in);
	CHECK_EQ(vm_regs(&vm).rflags, 2);
}

/* The guest sees what was set, and the other way around. */
GUEST64(exchange,
	"xor %rax, %rbx; add %rcx, %rdx; xchg %rsi, %rdi; not %rbp\n"
	"bswap %r8; bswap %r9; inc %r10; dec %r11; xchg %r12, %r13; xchg %r14, %r15\n"
	"lea 8(%rsp), %rsp\n"
	"stc\n"
	"hlt\n");

TEST(regs_in_guest)
{
	struct kvm_regs r, o;
	struct vm vm;

	VM_NEW_LONG(&vm, exchange);
	r = (struct kvm_regs) {
		.rax = 0x1111111122222222, .rbx = 0x3333333344444444, .rcx = 5, .rdx = 0x8000000000000000,
		.rsi = 1, .rdi = 2,
		.rbp = 0xff, .r8 = 0x0102030405060708, .r9 = 1, .r10 = ~0ull, .r11 = 0, .r12 = 12, .r13 = 13,
		.r14 = 14, .r15 = 15,
		.rsp = 0x7000, .rip = G_CODE, .rflags = 0xad6,	/* everything but CF, DF clear */
	};
	r.rflags &= ~0x300ull;
	vm_set_regs(&vm, &r);
	vm_expect(&vm, KVM_EXIT_HLT);
	o = vm_regs(&vm);
	CHECK_EQ(o.rbx, 0x1111111122222222 ^ 0x3333333344444444);
	CHECK_EQ(o.rax, r.rax);
	CHECK_EQ(o.rdx, 0x8000000000000005);
	CHECK_EQ(o.rsi, 2);
	CHECK_EQ(o.rdi, 1);
	CHECK_EQ(o.rbp, ~0xffull);
	CHECK_EQ(o.r8, 0x0807060504030201);
	CHECK_EQ(o.r9, 1ull << 56);
	CHECK_EQ(o.r10, 0);
	CHECK_EQ(o.r11, ~0ull);
	CHECK_EQ(o.r12, 13);
	CHECK_EQ(o.r13, 12);
	CHECK_EQ(o.r14, 15);
	CHECK_EQ(o.r15, 14);
	CHECK_EQ(o.rsp, 0x7008);
	CHECK_EQ(o.rip, G_CODE + (exchange_end - exchange));
	CHECK_EQ(o.rflags & 1, 1);
}

TEST(sregs)
{
	struct kvm_sregs in, out;
	struct vm vm;

	vm_new(&vm, 4 * MIB);
	VM_LONG(&vm, halt64);
	in = vm_sregs(&vm);
	in.fs.base = 0x123456789000;
	in.gs.base = 0xffff800000001000;
	in.ds.dpl = 3;
	in.ds.selector = 0x13;
	in.ds.avl = 1;
	in.ss.limit = 0xfffff;
	in.ss.g = 0;
	in.ldt = (struct kvm_segment) { .base = 0x9000, .limit = 0x7f, .selector = 0x50, .type = 2, .present = 1 };
	in.gdt.base = 0xffff800000002000;
	in.gdt.limit = 0x1234;
	in.idt.limit = 0x234;
	in.cr2 = 0xdeadbeef0000;
	in.cr8 = 9;
	in.efer |= 0x800;
	in.cr4 |= 0x80;
	vm_set_sregs(&vm, &in);
	out = vm_sregs(&vm);
	for (int i = 0; i < 8; i++) {
		struct kvm_segment *a = &in.cs + i, *b = &out.cs + i;

		CHECK_EQ(b->base, a->base);
		CHECK_EQ(b->limit, a->limit);
		CHECK_EQ(b->selector, a->selector);
		CHECK_EQ(b->type, a->type);
		if (b->present != a->present || b->dpl != a->dpl || b->db != a->db || b->s != a->s || b->l != a->l ||
		    b->g != a->g || b->avl != a->avl)
			FAIL("attributes of segment %d", i);
	}
	CHECK_EQ(out.gdt.base, in.gdt.base);
	CHECK_EQ(out.gdt.limit, in.gdt.limit);
	CHECK_EQ(out.idt.base, in.idt.base);
	CHECK_EQ(out.idt.limit, in.idt.limit);
	CHECK_EQ(out.cr0, in.cr0);
	CHECK_EQ(out.cr2, in.cr2);
	CHECK_EQ(out.cr3, in.cr3);
	CHECK_EQ(out.cr4, in.cr4);
	CHECK_EQ(out.cr8, in.cr8);
	CHECK_EQ(out.efer, in.efer);
	CHECK_EQ(out.apic_base, in.apic_base);
	/* An unusable segment stays one. */
	in.fs.unusable = 1;
	in.fs.present = 0;
	vm_set_sregs(&vm, &in);
	out = vm_sregs(&vm);
	CHECK(out.fs.unusable && !out.fs.present);
	CHECK_EQ(out.fs.base, in.fs.base);
	/* The registers are still the same after a run, which loads and stores all of them. */
	in.gdt.limit = 0xff;
	in.gdt.base = G_GDT;
	vm_set_sregs(&vm, &in);
	vm_expect(&vm, KVM_EXIT_HLT);
	out = vm_sregs(&vm);
	CHECK_EQ(out.fs.base, in.fs.base);
	CHECK_EQ(out.gs.base, in.gs.base);
	CHECK_EQ(out.ldt.base, in.ldt.base);
	CHECK_EQ(out.ldt.limit, in.ldt.limit);
	CHECK_EQ(out.cr2, in.cr2);
	CHECK_EQ(out.cr3, in.cr3);
	CHECK_EQ(out.cr4, in.cr4);
	CHECK_EQ(out.efer, in.efer);
	CHECK_EQ(out.tr.base, G_TSS);
	CHECK_EQ(out.idt.limit, in.idt.limit);
}

TEST(sregs_refused)
{
	struct kvm_sregs good, s;
	struct vm vm;

	vm_new(&vm, 4 * MIB);
	VM_LONG(&vm, halt64);
	good = vm_sregs(&vm);
#define REFUSED(change) do {									\
	s = good;										\
	change;											\
	if (ioctl(vm.vcpu, KVM_SET_SREGS, &s) != -1 || errno != EINVAL)				\
		FAIL("KVM_SET_SREGS accepts %s (%s)", #change, strerrorname(errno));		\
	errno = 0;										\
} while (0)
	REFUSED(s.cr4 &= ~0x20ull);				/* long mode without PAE */
	REFUSED(s.efer &= ~0x400ull);				/* LME and PG, but not LMA */
	REFUSED((s.efer &= ~0x100ull, s.cs.l = 1));		/* CS.L or LMA without LME */
	REFUSED((s.cr0 &= ~0x80000000ull, s.cs.l = 1));		/* LMA without PG */
	REFUSED(s.cr4 |= 1ull << 31);
	REFUSED(s.cr0 = 0x80000030);				/* PG without PE */
	REFUSED(s.cr0 |= 0x20000000);				/* NW without CD */
	REFUSED(s.efer |= 1ull << 40);
	REFUSED(s.cr0 |= 1ull << 40);
	REFUSED(s.cr3 |= 1ull << 60);
	/* Nothing of it has stuck. */
	s = vm_sregs(&vm);
	CHECK(s.cr0 == good.cr0 && s.cr3 == good.cr3 && s.cr4 == good.cr4 && s.efer == good.efer);
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* CR4 bits come from the guest's CPUID, not the host's. */
TEST(cr4_follows_cpuid)
{
	struct kvm_cpuid2 *table;
	struct kvm_cpuid_entry2 *e;
	struct kvm_sregs s;
	struct vm vm;

	vm_new(&vm, MIB);
	table = supported_cpuid(vm.kvm);
	e = cpuid_entry(table, 7, 0);
	REQUIRE(e);
	if (!(e->ebx & 1 << 7))
		skip("no SMEP");
	s = vm_sregs(&vm);
	s.cr4 |= 1 << 20;
	OK(ioctl(vm.vcpu, KVM_SET_SREGS, &s));
	s.cr4 = 0;
	OK(ioctl(vm.vcpu, KVM_SET_SREGS, &s));
	e->ebx &= ~(1u << 7);
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	s.cr4 |= 1 << 20;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_SREGS, &s), EINVAL);
}

TEST(cpuid_after_run)
{
	struct kvm_cpuid2 *table;
	struct vm vm;

	vm_new(&vm, MIB);
	VM_REAL(&vm, halt);
	table = supported_cpuid(vm.kvm);
	vm_expect(&vm, KVM_EXIT_HLT);
	/* After the first run the table that is there is accepted, another one is not. */
	OK(ioctl(vm.vcpu, KVM_SET_CPUID2, table));
	cpuid_entry(table, 1, 0)->ecx ^= 1 << 19;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_CPUID2, table), EINVAL);
	table->nent--;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_CPUID2, table), EINVAL);
	vm_expect(&vm, KVM_EXIT_HLT);
}

/* What the guest's CPUID says: the table, with OSXSAVE and the XSAVE sizes as registers have them. */
GUEST64(cpuid_guest,
	"1: mov %r8d, %eax; mov %r9d, %ecx; cpuid; hlt; jmp 1b\n");

static struct kvm_regs guest_cpuid(struct vm *vm, uint32_t leaf, uint32_t sub)
{
	struct kvm_regs r = vm_regs(vm);

	r.r8 = leaf;
	r.r9 = sub;
	r.rip = G_CODE;
	r.rax = r.rbx = r.rcx = r.rdx = ~0ull;
	vm_set_regs(vm, &r);
	vm_expect(vm, KVM_EXIT_HLT);
	return vm_regs(vm);
}

TEST(cpuid_in_guest)
{
	struct kvm_cpuid2 *table;
	struct kvm_sregs s;
	struct kvm_regs r;
	struct vm vm;

	VM_NEW_LONG(&vm, cpuid_guest);
	table = supported_cpuid(vm.kvm);
	for (unsigned int i = 0; i < table->nent; i++) {
		struct kvm_cpuid_entry2 *e = &table->entries[i];
		uint32_t osxsave = e->function == 1 ? 1u << 27 : 0, apic = e->function == 1 ? 1u << 9 : 0;

		r = guest_cpuid(&vm, e->function, e->index);
		/* Upper halves are cleared. */
		CHECK_EQ((r.rax | r.rbx | r.rcx | r.rdx) >> 32, 0);
		if (e->function == 0xd || e->function == 7 || e->function == 0x80000001 || e->function >= 0x40000000)
			continue;	/* depends on registers, or on the hypervisor */
		if ((uint32_t)r.rax != e->eax || (uint32_t)r.rbx != e->ebx ||
		    ((r.rcx ^ e->ecx) & ~osxsave & 0xffffffff) ||
		    ((r.rdx ^ e->edx) & ~apic & 0xffffffff))
			FAIL("leaf %#x.%u: %#llx %#llx %#llx %#llx in the guest, %#x %#x %#x %#x set",
			     e->function, e->index,
			     r.rax, r.rbx, r.rcx, r.rdx, e->eax, e->ebx, e->ecx, e->edx);
	}
	/* A leaf is in neither range. */
	r = guest_cpuid(&vm, 0x20000000, 0);
	if (!is_amd()) {
		/* The highest basic leaf answers on Intel. */
		struct kvm_cpuid_entry2 *e = cpuid_entry(table, cpuid_entry(table, 0, 0)->eax, 0);

		if (e && (e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) == 0)
			CHECK_EQ(r.rax, e->eax);
	} else {
		CHECK_EQ(r.rax | r.rbx | r.rcx | r.rdx, 0);
	}
	if (!(cpuid_entry(table, 1, 0)->ecx & 1 << 26))
		return;
	r = guest_cpuid(&vm, 1, 0);
	CHECK_EQ(r.rcx >> 27 & 1, 0);
	s = vm_sregs(&vm);
	s.cr4 |= 1 << 18;
	vm_set_sregs(&vm, &s);
	r = guest_cpuid(&vm, 1, 0);
	CHECK_EQ(r.rcx >> 27 & 1, 1);
	/* 0xd.0: EBX follows XCR0. */
	r = guest_cpuid(&vm, 0xd, 0);
	CHECK_EQ(r.rbx, 576);
	struct kvm_xcrs x = { .nr_xcrs = 1, .xcrs[0].value = 7 };

	if ((cpuid_entry(table, 0xd, 0)->eax & 7) == 7) {
		OK(ioctl(vm.vcpu, KVM_SET_XCRS, &x));
		r = guest_cpuid(&vm, 0xd, 0);
		CHECK_EQ(r.rbx, 576 + 256);
	}
}

TEST(fpu)
{
	struct kvm_fpu in, out;
	struct vm vm;

	vm_new(&vm, MIB);
	memset(&in, 0, sizeof(in));
	for (int i = 0; i < 8; i++)
		memset(in.fpr[i], 0x10 + i, 10);
	for (int i = 0; i < 16; i++)
		memset(in.xmm[i], 0xa0 + i, 16);
	in.fcw = 0x27f;
	in.fsw = 0x3800;
	in.ftwx = 0xff;
	in.last_opcode = 0x123;
	in.last_ip = 0x112233445566;
	in.last_dp = 0x665544332211;
	in.mxcsr = 0x1fa0;
	OK(ioctl(vm.vcpu, KVM_SET_FPU, &in));
	OK(ioctl(vm.vcpu, KVM_GET_FPU, &out));
	CHECK(!memcmp(in.fpr, out.fpr, sizeof(in.fpr)));
	CHECK(!memcmp(in.xmm, out.xmm, sizeof(in.xmm)));
	CHECK_EQ(out.fcw, in.fcw);
	CHECK_EQ(out.fsw, in.fsw);
	CHECK_EQ(out.ftwx, in.ftwx);
	CHECK_EQ(out.last_opcode, in.last_opcode);
	CHECK_EQ(out.last_ip, in.last_ip);
	CHECK_EQ(out.last_dp, in.last_dp);
	if (!is_rvmm())
		return;	/* KVM leaves out MXCSR, and loses all of it when the vCPU has not run before */
	CHECK_EQ(out.mxcsr, in.mxcsr);
	VM_REAL(&vm, halt);
	vm_expect(&vm, KVM_EXIT_HLT);
	OK(ioctl(vm.vcpu, KVM_GET_FPU, &out));
	CHECK(!memcmp(in.fpr, out.fpr, sizeof(in.fpr)));
	CHECK(!memcmp(in.xmm, out.xmm, sizeof(in.xmm)));
	CHECK_EQ(out.fcw, in.fcw);
	CHECK_EQ(out.mxcsr, in.mxcsr);
}

TEST(xsave)
{
	struct kvm_xsave *in = calloc(1, 8192), *out = calloc(1, 8192), *again = calloc(1, 8192);
	struct kvm_xcrs x = { .nr_xcrs = 1 };
	struct kvm_cpuid_entry2 *e;
	struct kvm_sregs s;
	struct vm vm;
	uint64_t all;

	vm_new(&vm, MIB);
	VM_REAL(&vm, halt);
	e = cpuid_entry(supported_cpuid(vm.kvm), 0xd, 0);
	if (!e)
		skip("no XSAVE");
	all = e->eax | (uint64_t)e->edx << 32;
	s = vm_sregs(&vm);
	s.cr4 |= 1 << 18;
	vm_set_sregs(&vm, &s);
	x.xcrs[0].value = all;
	OK(ioctl(vm.vcpu, KVM_SET_XCRS, &x));
	OK(ioctl(vm.vcpu, KVM_GET_XSAVE, in));
	/* x87 control words, all XMM, all YMM halves. */
	*(uint16_t *)in->region = 0x27f;
	in->region[6] = 0x1f80;
	for (int i = 40; i < 104; i++)
		in->region[i] = 0x01010101 * i;
	*(uint64_t *)&in->region[128] = 3 | (all & 4);
	if (all & 4)
		for (int i = 144; i < 208; i++)
			in->region[i] = 0x01000001 * i;
	OK(ioctl(vm.vcpu, KVM_SET_XSAVE, in));
	OK(ioctl(vm.vcpu, KVM_GET_XSAVE, out));
	CHECK(!memcmp(&in->region[40], &out->region[40], 64 * 4));
	CHECK_EQ(out->region[128] & 6, 2 | (all & 4));
	if (all & 4)
		CHECK(!memcmp(&in->region[144], &out->region[144], 64 * 4));
	vm_expect(&vm, KVM_EXIT_HLT);
	OK(ioctl(vm.vcpu, KVM_GET_XSAVE, again));
	CHECK(!memcmp(&in->region[40], &again->region[40], 64 * 4));
	if (all & 4)
		CHECK(!memcmp(&in->region[144], &again->region[144], 64 * 4));
	/* A state is refused that no CPU could load. */
	in->region[6] = 0xffff0000;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_XSAVE, in), EINVAL);
	in->region[6] = 0x1f80;
	in->region[129] = 0x40000000;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_XSAVE, in), EINVAL);
	in->region[129] = 0;
	in->region[132] = 1;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_XSAVE, in), EINVAL);
}

TEST(xcrs)
{
	struct kvm_xcrs x = { .nr_xcrs = 1 };
	struct vm vm;

	vm_new(&vm, MIB);
	if (!has_extension(vm.kvm, KVM_CAP_XCRS))
		skip("no XSAVE");
	static const struct {
		uint64_t value;
		int error;
	} table[] = {
		{ 0, EINVAL }, { 2, EINVAL }, { 5, EINVAL }, { 1ull << 62 | 1, EINVAL }, { 0x21, EINVAL },
		{ 9, EINVAL }, { 1, 0 }, { 3, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		x.xcrs[0].value = table[i].value;
		if (table[i].error) {
			CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_XCRS, &x), table[i].error);
		} else {
			OK(ioctl(vm.vcpu, KVM_SET_XCRS, &x));
			memset(&x, 0, sizeof(x));
			OK(ioctl(vm.vcpu, KVM_GET_XCRS, &x));
			CHECK_EQ(x.xcrs[0].value, table[i].value);
		}
	}
	x.nr_xcrs = 100;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_XCRS, &x), EINVAL);
	x.nr_xcrs = 1;
	x.flags = 1;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_XCRS, &x), EINVAL);
}

TEST(msrs)
{
	static const struct {
		uint32_t index;
		uint64_t value;
		bool long_mode;
	} table[] = {
		{ 0x174, 0x10, false }, { 0x175, 0x7ffff000, false }, { 0x176, 0x12345678, false },
		{ 0xc0000081, 0x0023001000000000, true }, { 0xc0000082, 0xffffffff81000000, true },
		{ 0xc0000083, 0xffffffff81001000, true }, { 0xc0000084, 0x47700, true },
		{ 0xc0000100, 0x7f1234567000, true }, { 0xc0000101, 0xffff888000000000, true },
		{ 0xc0000102, 0x7f7654321000, true }, { 0x277, 0x0007010600070106, false },
		{ 0x277, 0x0000000000000006, false }, { 0x1a0, 1, false }, { 0x3b, 0, false },
		{ 0x2ff, 0xc06, false }, { 0x250, 0x0606060606060606, false }, { 0x258, 0x0505050505050505, false },
		{ 0x26f, 0x0404040404040404, false }, { 0x200, 0x80000006, false }, { 0x201, 0xff80000800, false },
		{ 0x20e, 0x6, false }, { 0x17a, 0, false }, { 0xc0000103, 0x1234, true },
	};
	struct vm vm;
	uint64_t v;

	VM_NEW_LONG(&vm, halt64);
	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
			if (table[i].index == 0xc0000103 &&
			    !(cpuid_entry(supported_cpuid(vm.kvm), 0x80000001, 0)->edx & 1 << 27))
				continue;
			if (!set_msr(&vm, table[i].index, table[i].value))
				FAIL("MSR %#x cannot be set to %#llx", table[i].index,
				     (unsigned long long)table[i].value);
			else if (!get_msr(&vm, table[i].index, &v) || v != table[i].value)
				FAIL("MSR %#x is %#llx after %#llx", table[i].index, (unsigned long long)v,
				     (unsigned long long)table[i].value);
		}
		vm_expect(&vm, KVM_EXIT_HLT);
	}
	/* All MSRs are read together after a run. */
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		if (i == 10 || table[i].index == 0xc0000103)
			continue;
		if (!get_msr(&vm, table[i].index, &v) || v != table[i].value)
			FAIL("MSR %#x is %#llx after a run, %#llx expected", table[i].index, (unsigned long long)v,
			     (unsigned long long)table[i].value);
	}
	/* Values that do not exist. */
	CHECK(!set_msr(&vm, 0x277, 0x0202020202020202));
	CHECK(!set_msr(&vm, 0x277, 8));
	CHECK(!set_msr(&vm, 0x2ff, 0x802));
	CHECK(!set_msr(&vm, 0x250, 0x0202020202020202));
	CHECK(!set_msr(&vm, 0xc0000080, 1ull << 50));
}

/* The TSC of a guest starts near 0, follows a write, and runs. */
TEST(tsc)
{
	struct vm vm;
	uint64_t a, b;

	vm_new(&vm, MIB);
	CHECK(get_msr(&vm, 0x10, &a) && get_msr(&vm, 0x10, &b));
	CHECK(b > a);
	CHECK(a < 100ull * 1000 * 1000 * 1000);
	CHECK(set_msr(&vm, 0x10, 1ull << 50));
	CHECK(get_msr(&vm, 0x10, &a));
	CHECK(a >= 1ull << 50 && a < (1ull << 50) + 1000ull * 1000 * 1000 * 100);
}

TEST(debugregs)
{
	struct kvm_debugregs in = { .db = { 0x1000, 0x2000, 0xffff800000000000, 4 }, .dr6 = 0xffff4ff1,
				    .dr7 = 0x455 }, out;
	struct vm vm;

	vm_new(&vm, MIB);
	VM_REAL(&vm, halt);
	OK(ioctl(vm.vcpu, KVM_SET_DEBUGREGS, &in));
	for (int i = 0; i < 2; i++) {
		OK(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &out));
		CHECK(!memcmp(in.db, out.db, sizeof(in.db)));
		CHECK_EQ(out.dr6, in.dr6);
		CHECK_EQ(out.dr7, in.dr7);
		vm_expect(&vm, KVM_EXIT_HLT);
	}
	in.flags = 1;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_DEBUGREGS, &in), EINVAL);
	in.flags = 0;
	in.dr7 = 1ull << 32;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_DEBUGREGS, &in), EINVAL);
	in.dr7 = 0x400;
	in.dr6 = 1ull << 40;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_DEBUGREGS, &in), EINVAL);
}

TEST(vcpu_events)
{
	struct kvm_vcpu_events e, o;
	struct vm vm;

	vm_new(&vm, MIB);
	VM_REAL(&vm, halt);
	e = vm_events(&vm);
	CHECK(!e.exception.injected && !e.interrupt.injected && !e.nmi.injected && !e.nmi.pending && !e.nmi.masked);
	e.interrupt.injected = 1;
	e.interrupt.nr = 0x33;
	e.nmi.pending = 1;
	e.nmi.masked = 1;
	e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	o = vm_events(&vm);
	CHECK_EQ(o.interrupt.injected, 1);
	CHECK_EQ(o.interrupt.nr, 0x33);
	CHECK_EQ(o.nmi.pending, 1);
	CHECK_EQ(o.nmi.masked, 1);
	memset(&e, 0, sizeof(e));
	e.exception.injected = 1;
	e.exception.nr = 14;
	e.exception.has_error_code = 1;
	e.exception.error_code = 7;
	e.interrupt.shadow = KVM_X86_SHADOW_INT_STI;
	e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
	OK(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e));
	o = vm_events(&vm);
	CHECK_EQ(o.exception.injected, 1);
	CHECK_EQ(o.exception.nr, 14);
	CHECK_EQ(o.exception.has_error_code, 1);
	CHECK_EQ(o.exception.error_code, 7);
	CHECK_EQ(o.interrupt.injected, 0);
	CHECK_EQ(o.nmi.pending, 0);
	CHECK(o.interrupt.shadow != 0);
	e.exception.nr = 40;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e), EINVAL);
	e.exception.nr = 2;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e), EINVAL);
	memset(&e, 0, sizeof(e));
	e.flags = 1 << 30;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_VCPU_EVENTS, &e), EINVAL);
}

/* interrupt_bitmap of KVM_SET_SREGS is an interrupt on its way. */
TEST(interrupt_bitmap)
{
	struct kvm_sregs s;
	struct vm vm;

	vm_new(&vm, MIB);
	s = vm_sregs(&vm);
	s.interrupt_bitmap[1] = 1ull << 5;
	vm_set_sregs(&vm, &s);
	CHECK_EQ(vm_sregs(&vm).interrupt_bitmap[1], 1ull << 5);
	CHECK_EQ(vm_events(&vm).interrupt.nr, 69);
}

TEST(lapic)
{
	struct kvm_lapic_state in, out;
	struct kvm_mp_state mp;
	struct kvm_sregs s;
	struct vm vm, ap;

	vm_new_irqchip(&vm, MIB);
	ap = vm_second_vcpu(&vm, 3);
	OK(ioctl(ap.vcpu, KVM_GET_LAPIC, &in));
	CHECK_EQ(*(uint32_t *)(in.regs + 0x20), 3u << 24);	/* id */
	CHECK_EQ(*(uint32_t *)(in.regs + 0xf0), 0xff);		/* spurious: off */
	CHECK_EQ(*(uint32_t *)(in.regs + 0xe0), 0xffffffff);	/* DFR */
	CHECK_EQ(*(uint32_t *)(in.regs + 0x320), 0x10000);	/* LVT masked */
	OK(ioctl(ap.vcpu, KVM_GET_MP_STATE, &mp));
	CHECK_EQ(mp.mp_state, KVM_MP_STATE_UNINITIALIZED);
	CHECK_EQ(vm_sregs(&ap).apic_base, 0xfee00800);
	CHECK_EQ(vm_sregs(&vm).apic_base, 0xfee00900);
	OK(ioctl(vm.vcpu, KVM_GET_MP_STATE, &mp));
	CHECK_EQ(mp.mp_state, KVM_MP_STATE_RUNNABLE);
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &in));
	*(uint32_t *)(in.regs + 0xf0) = 0x1ff;
	*(uint32_t *)(in.regs + 0x80) = 0x20;		/* TPR */
	*(uint32_t *)(in.regs + 0x350) = 0x700;		/* LINT0: ExtINT */
	*(uint32_t *)(in.regs + 0x360) = 0x400;		/* LINT1: NMI */
	*(uint32_t *)(in.regs + 0x210) = 1 << 5;	/* IRR: vector 0x25 */
	OK(ioctl(vm.vcpu, KVM_SET_LAPIC, &in));
	OK(ioctl(vm.vcpu, KVM_GET_LAPIC, &out));
	CHECK_EQ(*(uint32_t *)(out.regs + 0xf0), 0x1ff);
	CHECK_EQ(*(uint32_t *)(out.regs + 0x80), 0x20);
	CHECK_EQ(*(uint32_t *)(out.regs + 0x350), 0x700);
	CHECK_EQ(*(uint32_t *)(out.regs + 0x360), 0x400);
	CHECK_EQ(*(uint32_t *)(out.regs + 0x210), 1 << 5);
	s = vm_sregs(&vm);
	CHECK_EQ(s.cr8, 2);
	/* With a reserved bit nothing is taken of it. */
	s.cr8 = 0x1b;
	OK(ioctl(vm.vcpu, KVM_SET_SREGS, &s));
	s = vm_sregs(&vm);
	CHECK_EQ(s.cr8, 2);
	s.apic_base |= 1ull << 60;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_SREGS, &s), EINVAL);
	mp.mp_state = KVM_MP_STATE_HALTED;
	OK(ioctl(vm.vcpu, KVM_SET_MP_STATE, &mp));
	OK(ioctl(vm.vcpu, KVM_GET_MP_STATE, &mp));
	CHECK_EQ(mp.mp_state, KVM_MP_STATE_HALTED);
	mp.mp_state = 77;
	CHECK_ERRNO(ioctl(vm.vcpu, KVM_SET_MP_STATE, &mp), EINVAL);
}

TEST(translate)
{
	struct kvm_translation t = { .linear_address = 0x123456 };
	struct vm vm;

	VM_NEW_LONG(&vm, halt64);
	OK(ioctl(vm.vcpu, KVM_TRANSLATE, &t));
	CHECK(t.valid && t.physical_address == 0x123456);
	t.linear_address = 0x8000000000;	/* second PML4 entry: not present */
	OK(ioctl(vm.vcpu, KVM_TRANSLATE, &t));
	CHECK(!t.valid);
	/* Without paging: every address but the last one. */
	vm_new(&vm, 4 * MIB);
	t.linear_address = 0x123456789abc;
	OK(ioctl(vm.vcpu, KVM_TRANSLATE, &t));
	CHECK(t.valid && t.physical_address == 0x123456789abc);
	t.linear_address = UINT64_MAX;
	OK(ioctl(vm.vcpu, KVM_TRANSLATE, &t));
	CHECK(!t.valid);
}
