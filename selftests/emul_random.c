// SPDX-License-Identifier: GPL-2.0
/*
 * Random instructions on memory, on a device and between: what each leaves behind and which exits it takes, a line for
 * each, the same on KVM and on rvmm. tools/emulation runs this on both and compares. SEED, COUNT and FIRST in the
 * environment choose the cases.
 */
#define _GNU_SOURCE
#include "emul_random.h"
#include "vm.h"
#include <signal.h>
#include <stdarg.h>
#include <time.h>

#define RAM_BYTES	0x20000
#define TABLES		0x40000
#define TABLE_BYTES	0x3000
#define XSAVE_BYTES	4096
#define MOST_EXITS	48

struct machine {
	struct vm vm;
	bool there;
	uint8_t *window, *tables;
	/* What memory and the window are reset to. */
	uint8_t ram[RAM_BYTES], table[TABLE_BYTES];
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	uint8_t xsave[XSAVE_BYTES];
};

/* What ends a guest where instructions are emulated one by one: KVM's emulator passes over HLT. */
static const uint8_t out_end[] = { 0xe6, 0xfe };

/* By mode; with page tables that cannot be written, and those that say nothing of accesses to anything. */
static struct machine machines[MODES + 4];

/* What is said of a case. */
static char text[8192];
static size_t length;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	length += vsnprintf(text + length, sizeof(text) - length, format, args);
	va_end(args);
	if (length >= sizeof(text))
		length = sizeof(text) - 1;
}

static uint64_t fnv(uint64_t hash, const void *data, size_t bytes)
{
	for (const uint8_t *p = data; bytes; bytes--, p++)
		hash = (hash ^ *p) * 0x100000001b3;
	return hash;
}

static struct kvm_segment segment(uint64_t base, uint32_t limit, uint16_t selector, uint8_t type, bool is_long, bool db)
{
	return (struct kvm_segment) { .base = base, .limit = limit, .selector = selector, .type = type, .present = 1,
		.dpl = selector & 3, .db = db, .s = 1, .l = is_long, .g = limit > 0xfffff };
}

static void vectors(struct machine *m, enum random_mode mode)
{
	uint64_t *idt = (uint64_t *)(m->ram + G_IDT);

	for (uint64_t v = 0; v < 256; v++) {
		uint64_t at = G_HANDLER + 16 * v;

		if (mode == REAL)
			((uint32_t *)m->ram)[v] = at >> 4 << 16;
		else if (mode < LONG)
			idt[v] = (at & 0xffff) | SEL_CODE32 << 16 | 0xee00ull << 32 | at >> 16 << 48;
		else
			idt[2 * v] = (at & 0xffff) | SEL_CODE64 << 16 | 0xee01ull << 32 | at >> 16 << 48;
		if (mode >= LONG)
			idt[2 * v + 1] = 0;
	}
}

static void state(struct machine *m, enum random_mode mode)
{
	struct kvm_sregs *s = &m->sregs;
	struct kvm_segment data;

	*s = vm_sregs(&m->vm);
	s->gdt.base = G_GDT;
	s->gdt.limit = 0xff;
	s->idt.base = mode == REAL ? 0 : G_IDT;
	s->idt.limit = mode == REAL ? 0x3ff : mode < LONG ? 0x7ff : 0xfff;
	if (mode == REAL)
		data = segment(WINDOW, 0xffff, 0x1234, 3, false, false);
	else if (mode == PROT16)
		data = segment(WINDOW, 0xffff, SEL_DATA16, 3, false, false);
	else
		data = segment(0, 0xffffffff, mode == USER ? SEL_USER_DATA : SEL_DATA, 3, false, true);
	s->ds = s->es = s->fs = s->gs = s->ss = data;
	s->fs.base += 0x100;
	s->gs.base += 0x80;
	if (mode == REAL)
		s->cs = segment(G_CODE, 0xffff, G_CODE >> 4, 11, false, false);
	else if (mode == PROT16)
		s->cs = segment(G_CODE, 0xffff, SEL_CODE16, 11, false, false);
	else if (mode == PROT32)
		s->cs = segment(0, 0xffffffff, SEL_CODE32, 11, false, true);
	else
		s->cs = segment(0, 0xffffffff, mode == USER ? SEL_USER_CODE64 : SEL_CODE64, 11, true, false);
	s->cr4 |= 0x600;
	if (mode != REAL) {
		s->cr0 = 0x31;
		s->tr = (struct kvm_segment) { .base = G_TSS, .limit = 0x67, .selector = SEL_TSS, .type = 11,
			.present = 1 };
	}
	if (mode >= LONG) {
		s->cr3 = TABLES;
		s->cr4 |= 0x20;
		s->cr0 = 0x80010031;
		s->efer = 0x501;
	}
	m->xcrs.nr_xcrs = 1;
	if (cpuid_entry(supported_cpuid(m->vm.kvm), 1, 0)->ecx & 1u << 28) {
		s->cr4 |= 1 << 18;
		m->xcrs.xcrs[0].value = 7;
	}
}

static void tables(struct machine *m, bool window_accessed, bool all_accessed)
{
	uint64_t *table = (uint64_t *)m->table, accessed = all_accessed ? 0x60 : 0;

	table[0] = (TABLES + 0x1000) | 7 | accessed;
	table[512] = (TABLES + 0x2000) | 7 | accessed;
	for (uint64_t i = 0; i < 512; i++)
		table[1024 + i] = i << 21 | 0x87 | accessed;
	if (!window_accessed)
		table[1024 + (WINDOW >> 21)] &= ~0x60ull;
}

static void prepare(struct machine *m, enum random_mode mode, bool read_only, bool all)
{
	uint64_t *gdt = (uint64_t *)(m->ram + G_GDT);
	uint64_t bv;

	vm_new(&m->vm, RAM_BYTES);
	m->window = mmap(NULL, WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	vm_slot(&m->vm, 1, 0, WINDOW, 0x1000, m->window);
	vm_slot(&m->vm, 2, 0, WINDOW + 0x2000, 0x1000, m->window + 0x2000);
	/* HLT where nothing else is. */
	memset(m->ram, 0xf4, RAM_BYTES);
	memset(m->ram + G_GDT, 0, 0x1000);
	memset(m->ram + G_IDT, 0, 0x1000);
	write_gdt(m->ram);
	gdt[SEL_CODE16 >> 3] |= (uint64_t)G_CODE << 16;
	gdt[SEL_DATA16 >> 3] |= (uint64_t)WINDOW << 32;
	memset(m->ram + G_TSS, 0, 0x68);
	if (mode >= LONG) {
		*(uint64_t *)(m->ram + G_TSS + 4) = G_STACK;
		*(uint64_t *)(m->ram + G_TSS + 0x24) = G_IST;
	}
	*(uint16_t *)(m->ram + G_TSS + 0x66) = 0x68;
	vectors(m, mode);
	state(m, mode);
	for (unsigned int v = 0; v < 256 && read_only; v++)
		memcpy(m->ram + G_HANDLER + 16 * v, out_end, sizeof(out_end));
	if (mode >= LONG) {
		tables(m, !read_only, !all);
		m->tables = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memcpy(m->tables, m->table, TABLE_BYTES);
		vm_slot(&m->vm, 3, read_only ? KVM_MEM_READONLY : 0, TABLES, TABLE_BYTES, m->tables);
	}
	memcpy(m->vm.mem, m->ram, RAM_BYTES);
	for (unsigned int i = 32; i < 832; i++)
		m->xsave[i] = i < 416 || i >= 576 ? random_byte(i) : 0;
	memcpy(m->xsave, (uint16_t[]) { 0x37f, 3 << 11, 0xff }, 6);
	memcpy(m->xsave + 24, (uint32_t[]) { 0x1f80 }, 4);
	bv = m->xcrs.xcrs[0].value ? 7 : 3;
	memcpy(m->xsave + 512, &bv, 8);
	if (m->xcrs.xcrs[0].value) {
		vm_set_sregs(&m->vm, &m->sregs);
		OK(ioctl(m->vm.vcpu, KVM_SET_XCRS, &m->xcrs));
	}
	OK(ioctl(m->vm.vcpu, KVM_GET_DEBUGREGS, &m->debugregs));
	m->there = true;
}

static struct machine *machine(const struct random_insn *insn)
{
	unsigned int which = insn->mode;

	if (insn->tables)
		which = MODES + 2 * (insn->mode == USER) + insn->all_tables;
	if (!machines[which].there)
		prepare(&machines[which], insn->mode, insn->tables, insn->all_tables);
	return &machines[which];
}

/* The window as it is before the instruction. */
static uint8_t window[WINDOW_BYTES];

static void fill_window(const struct random_insn *insn)
{
	static uint8_t empty[WINDOW_BYTES];

	if (!empty[0] && !empty[1])
		for (uint64_t i = 0; i < WINDOW_BYTES; i++)
			empty[i] = random_byte(i);
	memcpy(window, empty, WINDOW_BYTES);
	memcpy(window + insn->target, insn->content, sizeof(insn->content));
}

static void put_code(struct machine *m, const struct random_insn *insn, uint8_t *ram)
{
	uint64_t at = insn->mode == REAL || insn->mode == PROT16 ? G_CODE + insn->rip : insn->rip;

	memcpy(ram + at, insn->bytes, insn->length);
	if (insn->tables)
		memcpy(ram + at + insn->length, out_end, sizeof(out_end));
}

static void start(struct machine *m, const struct random_insn *insn)
{
	struct kvm_vcpu_events none = { .flags = KVM_VCPUEVENT_VALID_SHADOW };
	struct kvm_sregs s = m->sregs;
	int vcpu = m->vm.vcpu;

	fill_window(insn);
	memcpy(m->window, window, 0x1000);
	memcpy(m->window + 0x2000, window + 0x2000, 0x1000);
	put_code(m, insn, m->vm.mem);
	s.cr0 |= insn->cr0_set;
	s.cr4 &= ~insn->cr4_clear;
	OK(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &none));
	vm_set_sregs(&m->vm, &s);
	OK(ioctl(vcpu, KVM_SET_XSAVE, m->xsave));
	vm_set_regs(&m->vm, &insn->regs);
}

static void access_device(struct machine *m)
{
	struct kvm_run *run = m->vm.run;
	uint8_t *data = run->mmio.data;
	uint64_t at = run->mmio.phys_addr;
	unsigned int bytes = run->mmio.len < 8 ? run->mmio.len : 8;

	say(" %c%llx/%u", run->mmio.is_write ? 'W' : 'R', (unsigned long long)at, run->mmio.len);
	for (unsigned int i = 0; i < bytes && !run->mmio.is_write; i++)
		data[i] = at - WINDOW < WINDOW_BYTES - 8 ? window[at - WINDOW + i] : random_byte(at + i);
	say("=");
	for (unsigned int i = 0; i < bytes; i++)
		say("%02x", data[i]);
}

/* Bytes that the case has had from ports. */
static unsigned int input;

static void access_port(struct machine *m)
{
	struct kvm_run *run = m->vm.run;
	size_t bytes = run->io.size * (run->io.count < 64 ? run->io.count : 64);
	uint8_t *data = io_data(&m->vm);

	say(" %c%x/%u*%u", run->io.direction ? 'O' : 'I', run->io.port, run->io.size, run->io.count);
	if (run->io.direction)
		say("=");
	for (size_t i = 0; i < bytes; i++)
		if (run->io.direction)
			say("%02x", data[i]);
		else
			data[i] = random_byte(run->io.port + input++);
}

/* Signals that the case has been interrupted by. */
static unsigned int ticks;

/* Runs until the guest stops; how it does is said. */
static void run(struct machine *m, const struct random_insn *insn)
{
	struct kvm_run *run = m->vm.run;
	for (unsigned int n = 0; n < MOST_EXITS; n++) {
		int error = vm_try_run(&m->vm);

		while (error == EINTR && ++ticks < 4)
			error = vm_try_run(&m->vm);
		if (error) {
			say(" %s", error == EINTR ? "ENDLESS" : strerrorname(error));
			return;
		}
		switch (run->exit_reason) {
		case KVM_EXIT_MMIO:
			access_device(m);
			break;
		case KVM_EXIT_IO:
			if (run->io.direction && run->io.port == out_end[1] && insn->tables) {
				say(" END");
				vm_complete(&m->vm);
				return;
			}
			access_port(m);
			break;
		case KVM_EXIT_INTERNAL_ERROR:
			say(" INTERNAL_ERROR %u", run->internal.suberror);
			return;
		case KVM_EXIT_SET_TPR:
			say(" SET_TPR");
			break;
		default:
			say(" %s", exit_name(run->exit_reason));
			return;
		}
		if (run->exit_reason == KVM_EXIT_MMIO || run->exit_reason == KVM_EXIT_IO)
			say("@%llx", (unsigned long long)(vm_regs(&m->vm).rip - insn->rip));
	}
	say(" LIMIT");
	while (vm_complete(&m->vm) == 0)
		;
}

static void say_registers(const struct random_insn *insn, const struct kvm_regs *r)
{
	static const char *const names[] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10",
		"r11", "r12", "r13", "r14", "r15", "rip", "rflags" };
	uint64_t old[18], new[18];

	_Static_assert(sizeof(*r) == sizeof(old), "kvm_regs");
	memcpy(old, &insn->regs, sizeof(old));
	memcpy(new, r, sizeof(new));
	for (unsigned int i = 0; i < 18; i++) {
		/* Outside 64-bit mode the upper halves are undefined. */
		uint64_t x = insn->mode < LONG ? (uint32_t)new[i] : new[i];

		/* Flags always: some are undefined. */
		if (x != old[i] || i == 17)
			say(" %s=%llx", names[i], (unsigned long long)x);
	}
}

static void say_segment(const char *name, const struct kvm_segment *old, const struct kvm_segment *new)
{
	/* What is kept of a segment that cannot be used is nobody's business. */
	if (new->selector < 4 && new->selector != old->selector && *name != 'c')
		say(" %s=%x:%llx", name, new->selector, *name == 'f' || *name == 'g' ? new->base : 0);
	else if (old->selector != new->selector || old->base != new->base || old->limit != new->limit ||
	    old->type != new->type || old->dpl != new->dpl || old->l != new->l || old->db != new->db ||
	    old->unusable != new->unusable)
		say(" %s=%x:%llx:%x:%x%s%s%s", name, new->selector, new->base, new->limit, new->type | new->dpl << 5,
		    new->l ? "l" : "", new->db ? "d" : "", new->unusable ? "u" : "");
}

static void say_state(const struct kvm_sregs *old, const struct kvm_sregs *new)
{
#define SEGMENT(x) say_segment(#x, &old->x, &new->x)
#define VALUE(x) do {								\
	if (old->x != new->x)							\
		say(" " #x "=%llx", (unsigned long long)new->x);		\
} while (0)
	SEGMENT(cs); SEGMENT(ds); SEGMENT(es); SEGMENT(fs); SEGMENT(gs); SEGMENT(ss); SEGMENT(tr); SEGMENT(ldt);
	VALUE(gdt.base); VALUE(gdt.limit); VALUE(idt.base); VALUE(idt.limit);
	VALUE(cr0); VALUE(cr2); VALUE(cr3); VALUE(cr4); VALUE(cr8); VALUE(efer);
}

/* Differences of memory, which is reset. */
static void say_memory(const char *name, uint8_t *have, const uint8_t *want, size_t bytes)
{
	unsigned int said = 0;

	for (size_t page = 0; page < bytes; page += 4096) {
		if (!memcmp(have + page, want + page, 4096))
			continue;
		for (size_t i = page; i < page + 4096; i += 8) {
			uint64_t a;

			if (!memcmp(have + i, want + i, 8))
				continue;
			memcpy(&a, have + i, 8);
			if (++said <= 24)
				say(" %s+%zx=%llx", name, i, (unsigned long long)a);
		}
		memcpy(have + page, want + page, 4096);
	}
}

static void normalize(uint8_t *x)
{
	uint64_t bv;

	memcpy(&bv, x + 512, 8);
	if (!(bv & 1)) {
		memset(x, 0, 24);
		memcpy(x, (uint16_t[]) { 0x37f }, 2);
		memset(x + 32, 0, 128);
	}
	if (!(bv & 2))
		memset(x + 160, 0, 256);
	if (!(bv & 4))
		memset(x + 576, 0, 256);
	/* Opcode and addresses of the last x87 instruction, MXCSR_MASK, which components are in use, what is free. */
	memset(x + 6, 0, 18);
	memset(x + 28, 0, 4);
	memset(x + 416, 0, 160);
	memset(x + 832, 0, XSAVE_BYTES - 832);
	for (int i = 0; i < 8; i++)
		memset(x + 32 + 16 * i + 8, 0, 8);
}

static void say_vectors(struct machine *m)
{
	static uint8_t old[XSAVE_BYTES], new[XSAVE_BYTES];

	OK(ioctl(m->vm.vcpu, KVM_GET_XSAVE, new));
	memcpy(old, m->xsave, XSAVE_BYTES);
	normalize(old);
	normalize(new);
	for (unsigned int i = 0, n = 0; i < 832; i += 16)
		if (memcmp(old + i, new + i, 16) && n++ < 2)
			say(" xsave+%u=%016llx%016llx", i, *(unsigned long long *)(new + i + 8),
			    *(unsigned long long *)(new + i));
	if (memcmp(old, new, XSAVE_BYTES))
		say(" xsave=%llx", (unsigned long long)fnv(0, new, XSAVE_BYTES));
}

static void result(struct machine *m, const struct random_insn *insn)
{
	struct kvm_vcpu_events e = vm_events(&m->vm);
	struct kvm_regs r = vm_regs(&m->vm);
	struct kvm_sregs s = vm_sregs(&m->vm);
	struct kvm_debugregs d;

	say(";");
	if (e.exception.injected || e.exception.pending)
		r.rflags &= ~0x10000ull;
	say_registers(insn, &r);
	say_state(&m->sregs, &s);
	/* KVM keeps pending and injected exceptions apart, and sets RFLAGS.RF on the way from one to the other. */
	if (e.exception.injected || e.exception.pending)
		say(" exception %u:%x", e.exception.nr, e.exception.error_code);
	/* KVM's emulator leaves one behind MOV SS that faults. */
	else if (e.interrupt.shadow)
		say(" shadow=%u", e.interrupt.shadow);
	OK(ioctl(m->vm.vcpu, KVM_GET_DEBUGREGS, &d));
	if (memcmp(&d, &m->debugregs, sizeof(d))) {
		say(" dr=%llx,%llx,%llx,%llx,%llx,%llx", d.db[0], d.db[1], d.db[2], d.db[3], d.dr6, d.dr7);
		OK(ioctl(m->vm.vcpu, KVM_SET_DEBUGREGS, &m->debugregs));
	}
	say_vectors(m);
	memset(window + WINDOW_DEVICE, 0, 0x1000);
	say_memory("window", m->window, window, WINDOW_BYTES);
	put_code(m, insn, m->ram);
	say_memory("ram", m->vm.mem, m->ram, RAM_BYTES);
	if (m->tables)
		say_memory("tables", m->tables, m->table, TABLE_BYTES);
}

/* The code's place is filled with HLT again. */
static void clean(struct machine *m, const struct random_insn *insn)
{
	struct random_insn none = *insn;

	memset(none.bytes, 0xf4, sizeof(none.bytes));
	none.length = sizeof(none.bytes);
	none.tables = false;
	put_code(m, &none, m->ram);
	put_code(m, &none, m->vm.mem);
}

static uint64_t number_of(const char *name, uint64_t otherwise)
{
	const char *value = getenv(name);

	return value ? strtoull(value, NULL, 0) : otherwise;
}

/* What a hanging guest is ended by. */
static timer_t timer;

static void make_timer(void)
{
	struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	/* What is printed is not cut short. */
	struct sigaction a = { .sa_handler = nothing, .sa_flags = SA_RESTART };

	OK(sigaction(SIGUSR1, &a, NULL));
	OK(timer_create(CLOCK_MONOTONIC, &e, &timer));
}

/* Each case has the whole time: none is interrupted because others have taken long. */
static void start_timer(void)
{
	struct itimerspec often = { { 0, 300000000 }, { 0, 300000000 } };

	ticks = 0;
	OK(timer_settime(timer, 0, &often, NULL));
}

TEST_NAMED(random)
{
	static const char *const modes[] = { "real", "prot16", "prot32", "long", "user" };
	uint64_t seed = number_of("SEED", 1), first = number_of("FIRST", 0), count = number_of("COUNT", 1000);
	struct random_insn insn;

	make_timer();
	for (uint64_t n = first; n < first + count; n++) {
		struct machine *m;

		random_insn(&insn, seed, n);
		m = machine(&insn);
		length = input = 0;
		say("%s%s%s ", modes[insn.mode], insn.tables ? ",tables" : "", insn.all_tables ? ",all" : "");
		for (unsigned int i = 0; i < insn.length; i++)
			say("%02x", insn.bytes[i]);
		say(" %x:", insn.target);
		start(m, &insn);
		start_timer();
		run(m, &insn);
		result(m, &insn);
		clean(m, &insn);
		note("case %llu: %s", (unsigned long long)n, text);
		if (ticks)
			note("case %llu was interrupted", (unsigned long long)n);
	}
}
