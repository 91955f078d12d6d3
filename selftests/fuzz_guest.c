// SPDX-License-Identifier: GPL-2.0
/* The fuzzer's guests: every mode, tables with mistakes, code that programs the machine or is none. */
#define _GNU_SOURCE
#include "fuzz.h"

/* Places of guest memory; eight sets of page tables, because threads share them. */
#define TABLES(n) (0x1000u + (n) * 0x8000u)
#define GDT 0x42000u
#define IDT 0x43000u
#define TSS 0x45000u
#define CODE 0x100000u
#define CODE_PAGES 256u

enum mode { REAL, PROTECTED16, FLAT32, PAGED32, PAE, COMPATIBILITY, LONG, VIRTUAL86, MODES };

static int bits_of(enum mode mode)
{
	switch (mode) {
	case REAL: case PROTECTED16: case VIRTUAL86: return 16;
	case LONG: return 64;
	default: return 32;
	}
}

/* --- code --- */

bool fuzz_tame;

struct emit {
	uint8_t *p, *end;
	int bits;
};

enum { EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI };

static void put(struct emit *e, const void *bytes, size_t n)
{
	if (n > (size_t)(e->end - e->p))
		n = e->end - e->p;
	memcpy(e->p, bytes, n);
	e->p += n;
}

#define PUT(e, ...) put(e, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

static void mov(struct emit *e, int reg, uint32_t v)
{
	if (e->bits == 16)
		PUT(e, 0x66);
	PUT(e, 0xb8 + reg);
	put(e, &v, 4);
}

static void mov64(struct emit *e, int reg, uint64_t v)
{
	if (e->bits != 64) {
		mov(e, reg, v);
		return;
	}
	PUT(e, 0x48, 0xb8 + reg);
	put(e, &v, 8);
}

static uint32_t device_address(void)
{
	switch (below(6)) {
	case 0: return 0xfec00000 + below(3) * 0x10;
	case 1: return 0xfed00000 + below(0x400);
	case 2: return 0x10000000 + below(0x2000);
	case 3: return 0xa0000 + below(0x20000);
	default: return 0xfee00000 + below(0x40) * 0x10;
	}
}

/* What local APIC registers are written with that does something. */
static uint32_t device_value(void)
{
	switch (below(6)) {
	case 0: return (rnd() & 0xcffff);			/* ICR, LVTs */
	case 1: return 0x500 | below(4) << 18 | 0x4000;		/* INIT */
	case 2: return 0x600 | below(256) | below(4) << 18;	/* SIPI */
	case 3: return 0x1ff;
	case 4: return below(0x1000);
	default: return value();
	}
}

/* Without a prefix that would make it one of 16-bit addresses. */
static void access_device(struct emit *e)
{
	static const uint8_t forms[][4] = {
		{ 0x89, 0x07 }, { 0x8b, 0x07 }, { 0x88, 0x07 }, { 0x8a, 0x07 }, { 0x87, 0x07 }, { 0x01, 0x07 },
		{ 0xf0, 0x0f, 0xb1, 0x0f }, { 0x0f, 0xb6, 0x07 }, { 0xff, 0x07 }, { 0xa5 }, { 0xa4 }, { 0xab },
		{ 0x0f, 0xc7, 0x0f }, { 0xff, 0x37 }, { 0x8f, 0x07 }, { 0x0f, 0x11, 0x07 }, { 0xa7 }, { 0xf7, 0x1f },
	};
	const uint8_t *form = forms[below(ARRAY_SIZE(forms))];
	int n = form[2] ? 4 : form[1] ? 2 : 1;

	mov(e, EDI, below(3) ? device_address() : below(FUZZ_MEM));
	mov(e, EAX, device_value());
	if (!below(3))
		mov(e, ESI, below(2) ? device_address() : below(FUZZ_MEM));
	if (e->bits == 16)
		PUT(e, 0x67, 0x66);
	if (!below(8)) {
		mov(e, ECX, below(64));
		PUT(e, 0xf3);
	}
	if (e->bits == 64 && below(2))
		PUT(e, 0x48);
	put(e, form, form[0] == 0x0f && form[1] == 0xb6 ? 3 : n);
}

static void access_port(struct emit *e)
{
	static const uint16_t ports[] = {
		0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0x7e, 0x80, 0x92, 0xcf8,
		0xcf9, 0xcfc, 0x3f8, 0x510, 0x5658, 0x10, 0xffff,
	};
	static const uint8_t forms[] = { 0xec, 0xed, 0xee, 0xef, 0x6c, 0x6d, 0x6e, 0x6f };

	mov(e, EAX, below(2) ? below(256) : device_value());
	mov(e, EDX, below(8) ? ports[below(ARRAY_SIZE(ports))] : below(0x10000));
	mov(e, ECX, below(4000));
	if (!below(4))
		mov(e, EDI, below(2) ? device_address() : below(FUZZ_MEM));
	if (!below(4))
		PUT(e, fuzz_tame || below(2) ? 0x66 : 0xf3);
	PUT(e, forms[below(fuzz_tame ? 4 : ARRAY_SIZE(forms))]);
}

static void access_msr(struct emit *e)
{
	mov(e, ECX, below(12) ? some_msr() : rnd());
	mov(e, EAX, below(2) ? value() : ((uint32_t)below(FUZZ_MEM) & ~0xfffu) | below(16));
	mov(e, EDX, below(3) ? 0 : value());
	PUT(e, 0x0f, below(3) ? 0x30 : 0x32);
}

static void control_register(struct emit *e)
{
	static const uint8_t which[] = { 0, 0, 2, 3, 3, 4, 4, 8, 1 };
	int n = which[below(ARRAY_SIZE(which))];

	mov64(e, EAX, n == 3 ? TABLES(below(8)) : below(2) ? rnd() & 0xe005003f : value());
	if (n == 8)
		PUT(e, e->bits == 64 ? 0x44 : 0xf0, 0x0f, below(3) ? 0x22 : 0x20, 0xc0);
	else
		PUT(e, 0x0f, below(3) ? 0x22 : 0x20, 0xc0 | n << 3);
}

static void debug_register(struct emit *e)
{
	mov64(e, EAX, below(2) ? CODE + below(0x4000) : value());
	PUT(e, 0x0f, below(3) ? 0x23 : 0x21, 0xc0 | below(8) << 3);
}

static void hypercall(struct emit *e)
{
	mov(e, EAX, below(2) ? below(16) : value());
	mov64(e, EBX, value());
	mov64(e, ECX, below(2) ? below(0x100) : value());
	mov64(e, EDX, below(2) ? below(FUZZ_MEM) : value());
	PUT(e, 0x0f, 0x01, (fuzz_tame ? !is_amd() : below(2)) ? 0xc1 : 0xd9);
}

static void far_transfer(struct emit *e)
{
	uint16_t selector = below(12) * 8 | below(4);

	if (e->bits == 64) {
		PUT(e, 0x6a, selector, 0x68);
		put(e, &(uint32_t){ CODE + below(CODE_PAGES) * 4096 }, 4);
		PUT(e, 0x48, 0xcb);
		return;
	}
	PUT(e, below(2) ? 0xea : 0x9a);
	put(e, &(uint32_t){ CODE + below(CODE_PAGES) * 4096 }, e->bits / 8);
	put(e, &selector, 2);
}

static void system_instruction(struct emit *e)
{
	/* At first what loops, halts with interrupts on, or tells the time or what chance gives. */
	static const uint8_t bytes[][5] = {
		{ 2, 0xeb, 0xfe }, { 2, 0xe2, 0xfe }, { 2, 0xfb, 0xf4 }, { 2, 0x0f, 0x31 }, { 3, 0x0f, 0x01, 0xf9 },
		{ 4, 0xf3, 0x0f, 0xc7, 0x37 }, { 3, 0x0f, 0xc7, 0x37 }, { 3, 0x0f, 0xc7, 0xf0 },
		{ 2, 0x0f, 0xa2 }, { 1, 0xf4 }, { 1, 0xfa }, { 1, 0xfb }, { 2, 0x0f, 0x0b },
		{ 1, 0xcc }, { 2, 0xcd, 0x21 }, { 2, 0xcd, 0x80 }, { 1, 0xf1 }, { 1, 0xce }, { 1, 0xcf },
		{ 1, 0x9d }, { 1, 0x9c }, { 2, 0x0f, 0x09 }, { 2, 0x0f, 0x08 }, { 2, 0x0f, 0x33 },
		{ 3, 0x0f, 0x01, 0xc8 }, { 3, 0x0f, 0x01, 0xc9 }, { 3, 0x0f, 0x01, 0xd1 },
		{ 3, 0x0f, 0x01, 0xd0 }, { 3, 0x0f, 0x01, 0xd8 }, { 3, 0x0f, 0x01, 0xda }, { 3, 0x0f, 0x01, 0xdd },
		{ 3, 0x0f, 0x01, 0xc2 }, { 3, 0x0f, 0x01, 0xc4 }, { 3, 0x0f, 0x01, 0xef }, { 3, 0x0f, 0x01, 0xee },
		{ 3, 0x0f, 0x01, 0xf8 }, { 2, 0x0f, 0x06 }, { 2, 0x0f, 0x05 }, { 2, 0x0f, 0x07 }, { 2, 0x0f, 0x34 },
		{ 2, 0x0f, 0x35 }, { 2, 0x0f, 0xaa }, { 3, 0x0f, 0x01, 0x17 }, { 3, 0x0f, 0x01, 0x1f },
		{ 3, 0x0f, 0x01, 0x07 }, { 3, 0x0f, 0x01, 0x3f }, { 3, 0x0f, 0x01, 0xf0 }, { 3, 0x0f, 0x00, 0xd8 },
		{ 3, 0x0f, 0x00, 0xd0 }, { 3, 0x0f, 0xae, 0x2f }, { 3, 0x0f, 0xae, 0x27 }, { 3, 0x0f, 0xc7, 0x2f },
		{ 3, 0x0f, 0xae, 0x07 }, { 3, 0x0f, 0xae, 0x0f }, { 2, 0x8e, 0xd0 }, { 1, 0x17 }, { 2, 0x8e, 0xd8 },
		{ 2, 0xf3, 0x90 }, { 4, 0x66, 0x0f, 0xc7, 0x37 }, { 3, 0x0f, 0x78, 0xc0 }, { 3, 0x0f, 0x79, 0xc0 },
		{ 2, 0xdb, 0xe3 }, { 1, 0x9b }, { 4, 0x66, 0x0f, 0x38, 0x82 },
	};
	const uint32_t untame = fuzz_tame ? 8 : 0;
	const uint8_t *b = bytes[untame + below(ARRAY_SIZE(bytes) - untame)];

	mov(e, EAX, below(2) ? below(32) : value());
	if (below(2))
		mov(e, ECX, below(4) ? below(16) : value());
	if (below(2))
		mov(e, EDI, below(FUZZ_MEM));
	put(e, b + 1, b[0]);
}

static void raw_bytes(struct emit *e)
{
	for (int n = 1 + below(12); n; n--)
		PUT(e, rnd());
}

static void program(struct emit *e)
{
	static void (*const parts[])(struct emit *) = {
		access_device, access_device, raw_bytes, access_msr, access_msr, access_port, access_port,
		control_register, debug_register, hypercall, far_transfer, system_instruction, system_instruction,
		system_instruction,
	};
	const uint32_t untame = fuzz_tame ? 5 : 0;

	while (e->p < e->end && below(24))
		parts[untame + below(ARRAY_SIZE(parts) - untame)](e);
	if (fuzz_tame || below(4))
		PUT(e, 0xf4);
}

void plant(void)
{
	static const int bits[] = { 16, 32, 64 };
	struct emit e = { .p = world.mem + CODE + below(CODE_PAGES) * 4096, .bits = bits[below(3)] };

	if (!below(8))
		e.p += 4096 - below(24);
	e.end = e.p + 600;
	program(&e);
}

/* --- tables --- */

static uint64_t table_target(uint32_t tables)
{
	switch (below(8)) {
	case 0: return 0xfee00000;
	case 1: return 0xfec00000;
	case 2: return 0x10000000;
	case 3: return (uint64_t)below(FUZZ_MEM) & ~0xfffull;
	case 4: return tables + below(6) * 0x1000;
	case 5: return 1ull << (20 + below(32));
	case 6: return rnd() & 0x000ffffffffff000;
	default: return CODE + below(CODE_PAGES) * 4096;
	}
}

/* The first and the fourth GiB as they are, in the format of the mode, then changes. */
static uint32_t page_tables(enum mode mode)
{
	uint32_t at = TABLES(below(8)), pages = 5;
	uint64_t *t = (uint64_t *)(world.mem + at);
	uint32_t *t32 = (uint32_t *)t;

	if (mode == PAGED32) {
		for (uint32_t i = 0; i < 1024; i++)
			t32[i] = i << 22 | 0x87;
		t32[0] = (at + 0x1000) | 7;
		for (uint32_t i = 0; i < 1024; i++)
			t32[1024 + i] = i << 12 | 7;
		pages = 2;
		for (int k = fuzz_tame ? 0 : below(6); k; k--)
			t32[below(1024 * pages)] = (uint32_t)table_target(at) | (rnd() & 0xfff);
		return at;
	}
	memset(t, 0, 0x5000);
	if (mode == PAE) {
		/* 32 bytes of it are looked at. */
		t[0] = (at + 0x2000) | 1;
		t[1] = (at + 0x3000) | 1;
		t[3] = (at + 0x4000) | 1;
	} else {
		t[0] = t[256] = t[511] = (at + 0x1000) | 7;
		t[512] = (at + 0x2000) | 7;
		t[513] = 1ull << 30 | 0x87;
		t[514] = (at + 0x3000) | 7;
		t[515] = (at + 0x4000) | 7;
	}
	for (uint64_t i = 0; i < 512; i++) {
		t[1024 + i] = i << 21 | 0x87;
		t[1536 + i] = 1ull << 30 | i << 21 | 0x87;
		t[2048 + i] = 3ull << 30 | i << 21 | 0x87;
	}
	for (int k = fuzz_tame ? 0 : below(8); k; k--)
		t[below(2) ? below(512 * pages) : below(8) * 512 % (512 * pages)] =
			table_target(at) | (rnd() & (below(3) ? 0x87 : 0x8000000000000fff));
	return at;
}

static void descriptors(enum mode mode)
{
	static const uint64_t known[] = {
		0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff, 0x008f9b000000ffff, 0x00cff3000000ffff,
		0x00affb000000ffff, 0x0000890450000067, 0, 0x008f93000000ffff, 0x0000e90450000067, 0x0000840430000010,
	};
	uint64_t *g = (uint64_t *)(world.mem + GDT), *idt = (uint64_t *)(world.mem + IDT);

	memcpy(g, known, sizeof(known));
	for (int k = below(4); k; k--)
		g[below(ARRAY_SIZE(known))] ^= 1ull << below(64);
	for (int i = 0; i < 256; i++) {
		uint64_t offset = CODE + below(CODE_PAGES) * 4096, selector = mode == LONG ? 8 : 0x18;
		uint64_t gate = (offset & 0xffff) | selector << 16 | 0x8e00ull << 32 | (offset & 0xffff0000) << 32;

		if (!below(32))
			gate ^= 1ull << below(64);
		if (mode == REAL)
			((uint32_t *)idt)[i] = CODE >> 4 << 16 | below(0x1000);
		else if (mode == LONG || mode == COMPATIBILITY)
			idt[2 * i] = gate, idt[2 * i + 1] = 0;
		else
			idt[i] = gate;
	}
	fill(world.mem + TSS, 0x68);
}

/* --- state --- */

static void segments(struct kvm_sregs *s, enum mode mode)
{
	const struct kvm_segment code = { .limit = ~0u, .selector = 0x18, .type = 11, .present = 1, .s = 1, .g = 1 };
	const struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1,
					  .db = mode != PROTECTED16, .g = 1 };
	const struct kvm_segment real = { .limit = 0xffff, .type = 3, .present = 1, .s = 1 };
	struct kvm_segment v86 = real;

	v86.dpl = 3;
	s->ds = s->es = s->fs = s->gs = s->ss = mode == REAL ? real : mode == VIRTUAL86 ? v86 : data;
	s->cs = code;
	s->cs.db = bits_of(mode) == 32;
	s->cs.l = mode == LONG;
	if (mode == REAL || mode == VIRTUAL86) {
		s->cs = mode == REAL ? real : v86;
		s->cs.type = mode == REAL ? 11 : 3;
		/* Big real mode, so that devices can be reached. */
		if (mode == REAL && below(2))
			s->ds.limit = s->es.limit = ~0u, s->ds.g = s->es.g = 1;
	}
	s->tr = (struct kvm_segment){ .base = TSS, .limit = 0x67, .selector = 0x38, .type = 11, .present = 1 };
	s->ldt = (struct kvm_segment){ .unusable = 1 };
	s->gdt = (struct kvm_dtable){ .base = GDT, .limit = 0x7f };
	s->idt = (struct kvm_dtable){ .base = IDT, .limit = mode == REAL ? 0x3ff : below(8) ? 0xfff : below(0x1000) };
	if (!below(3) && mode != REAL && mode != VIRTUAL86)
		s->cs.dpl = s->ss.dpl = 3, s->cs.selector |= 3, s->ss.selector |= 3;
}

void guest_state(int vcpu)
{
	enum mode mode = below(MODES);
	uint32_t at = CODE + below(CODE_PAGES) * 4096, cr3 = 0;
	struct emit e = { .p = world.mem + at, .end = world.mem + at + 600, .bits = bits_of(mode) };
	struct kvm_sregs s = { 0 };
	struct kvm_regs r = { 0 };

	ioctl(vcpu, KVM_GET_SREGS, &s);
	program(&e);
	if (!below(4))
		descriptors(mode);
	if (mode >= PAGED32)
		cr3 = page_tables(mode == VIRTUAL86 ? PAGED32 : mode);
	segments(&s, mode);
	s.cr0 = 0x10 | (mode != REAL) | (mode >= PAGED32 ? 0x80000000 : 0) | (below(4) ? 0 : rnd() & 0x5002e);
	s.cr3 = cr3;
	s.cr4 = (mode == PAE || mode == LONG || mode == COMPATIBILITY ? 0x20 : 0x10) | (below(2) ? 0x600 : 0) |
		(below(4) ? 0 : rnd() & 0x370fdf);
	s.efer = mode == LONG || mode == COMPATIBILITY ? 0xd01 & ~(below(2) * 0x800) : 0;
	r.rip = at;
	if (mode == REAL || mode == VIRTUAL86) {
		/* What is there of code is above the first MiB. */
		s.cs.base = at & 0xff000;
		s.cs.selector = s.cs.base >> 4;
		r.rip = 0;
		memcpy(world.mem + s.cs.base, world.mem + at, 600);
	}
	if (mode == VIRTUAL86)
		s.ds.base = s.es.base = s.ss.base = s.fs.base = s.gs.base = 0;
	if (!below(8))
		mutate(&s, sizeof(s));
	fuzz_ioctl(vcpu, KVM_SET_SREGS, &s);
	r.rax = value();
	r.rcx = below(2) ? some_msr() : value();
	r.rdx = below(2) ? below(0x100) : value();
	r.rsi = below(2) ? device_address() : value();
	r.rdi = below(2) ? device_address() : value();
	r.rbx = value();
	r.rsp = below(FUZZ_MEM) & (bits_of(mode) == 16 ? 0xfffe : ~7u);
	r.rflags = 2 | (below(2) ? 0x200 : 0) | (mode == VIRTUAL86 ? 0x20000 : 0) | (below(8) ? 0 : rnd() & 0x3f7fd5);
	fuzz_ioctl(vcpu, KVM_SET_REGS, &r);
	if (!below(3)) {
		struct kvm_mp_state m = { below(8) ? 0 : below(6) };

		fuzz_ioctl(vcpu, KVM_SET_MP_STATE, &m);
	}
}

void guest_step(void)
{
	int place = below(FUZZ_VCPUS), vcpu = world.vcpus[place];
	struct kvm_run *run = world.runs[place];

	if (below(6))
		guest_state(vcpu);
	for (int n = 1 + below(8); n && run; n--) {
		run->request_interrupt_window = !below(4);
		if (!below(12))
			mutate(run, 2048);
		run->immediate_exit = !below(8);
		/* What a device answers. */
		((uint64_t *)((char *)run + 4096))[0] = rnd();
		if (below(2))
			memcpy(run->mmio.data, &(uint64_t){ rnd() }, 8);
		count(&counts->entries);
		if (ioctl(vcpu, KVM_RUN, 0) < 0 && errno != EAGAIN && errno != EINTR)
			return;
	}
}
