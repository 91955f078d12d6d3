// SPDX-License-Identifier: GPL-2.0
/*
 * Random sequences of ioctls and guests on one machine: a line for each, with the answer of every call, every exit and
 * what has become of the state, the same on KVM and on rvmm. tools/sequences runs this on both and compares. SEED,
 * COUNT and FIRST in the environment choose the cases. Nothing here depends on time.
 */
#define _GNU_SOURCE
#include "fuzz.h"
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <time.h>

/* The same addresses in each process. */
#define MEMORY ((void *)0x7e0000000000)

enum chips { NONE, FULL, SPLIT };

static struct { int vm, vcpu; struct kvm_run *run; enum chips chips; bool over; } m;
static char text[16384];
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

static void call(const char *name, int fd, unsigned long cmd, void *arg)
{
	int result = ioctl(fd, cmd, arg);

	if (result < 0)
		say(" %s:%s", name, strerrorname(errno));
	else
		say(" %s:%d", name, result);
}

/* --- state, word by word --- */

#define PART(name, file, cmd, type) { #name, file, cmd, sizeof(type) }

static const struct part { const char *name; bool vm; unsigned long cmd; unsigned int bytes; } parts[] = {
	PART(regs, false, KVM_GET_REGS, struct kvm_regs), PART(sregs, false, KVM_GET_SREGS, struct kvm_sregs),
	PART(events, false, KVM_GET_VCPU_EVENTS, struct kvm_vcpu_events),
	PART(debug, false, KVM_GET_DEBUGREGS, struct kvm_debugregs),
	PART(mp, false, KVM_GET_MP_STATE, struct kvm_mp_state), PART(fpu, false, KVM_GET_FPU, struct kvm_fpu),
	PART(xcrs, false, KVM_GET_XCRS, struct kvm_xcrs), PART(lapic, false, KVM_GET_LAPIC, struct kvm_lapic_state),
	PART(chip0, true, KVM_GET_IRQCHIP, struct kvm_irqchip), PART(chip1, true, KVM_GET_IRQCHIP, struct kvm_irqchip),
	PART(chip2, true, KVM_GET_IRQCHIP, struct kvm_irqchip),
};

static uint32_t before[ARRAY_SIZE(parts)][512];

static bool read_part(size_t i, uint32_t *words)
{
	memset(words, 0, parts[i].bytes);
	if (parts[i].vm)
		((struct kvm_irqchip *)words)->chip_id = parts[i].name[4] - '0';
	return ioctl(parts[i].vm ? m.vm : m.vcpu, parts[i].cmd, words) == 0;
}

/* MSRs that neither count nor name places of the kernel's. */
static const uint32_t msrs[] = {
	0x174, 0x175, 0x176, 0x1a0, 0x1d9, 0x200, 0x201, 0x20f, 0x250, 0x268, 0x26f, 0x277, 0x2ff, 0x3a, 0x48, 0x49,
	0x79, 0x8b, 0xce, 0x140, 0x17a, 0x17b, 0x345, 0x400, 0x401, 0x402, 0x480, 0xda0, 0x4b564d02, 0x4b564d04,
	0x4b564d05, 0x4b564d06, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101,
	0xc0000102, 0xc0000103, 0xc0010010, 0xc0010015, 0xc001001f, 0xc0010058, 0xc0010117, 0xc001011f, 0xc0011029,
	0x40000000, 0x40000001, 0x40000002, 0x40000073, 0x40000080, 0x40000090, 0x1b, 0x802, 0x808, 0x80f, 0x830,
};

static void state(bool first)
{
	static uint32_t now[512];
	struct { struct kvm_msrs h; struct kvm_msr_entry e[1]; } v = { .h.nmsrs = 1 };

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		uint32_t *words = first ? before[i] : now;

		if (!read_part(i, words) || first)
			continue;
		for (unsigned int k = 0; k < parts[i].bytes / 4; k++)
			if (now[k] != before[i][k])
				say(" %s.%x=%x", parts[i].name, k * 4, now[k]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(msrs) && !first; i++) {
		v.e[0] = (struct kvm_msr_entry){ .index = msrs[i] };
		if (ioctl(m.vcpu, KVM_GET_MSRS, &v) == 1 && v.e[0].data)
			say(" msr%x=%llx", msrs[i], v.e[0].data);
	}
}

/* --- what is done --- */

static void set_part(const char *name, unsigned long get, unsigned long set)
{
	uint8_t *p = scratch();
	uint32_t changes = below(4);

	if (ioctl(m.vcpu, get, p))
		memset(p, 0, _IOC_SIZE(set));
	for (uint32_t i = 0; i < changes; i++)
		mutate(p, _IOC_SIZE(set));
	if (set == KVM_SET_LAPIC) {
		/* Its timer does not run, and is no interrupt. */
		memset(p + 0x380, 0, 4);
		p[0x322] |= 1;
	}
	call(name, m.vcpu, set, p);
}

static void set_chip(void)
{
	struct kvm_irqchip c = { .chip_id = below(3) };
	uint32_t kept = c.chip_id;

	ioctl(m.vm, KVM_GET_IRQCHIP, &c);
	mutate(&c.chip, kept == 2 ? sizeof(struct kvm_ioapic_state) : sizeof(struct kvm_pic_state));
	call("chip", m.vm, KVM_SET_IRQCHIP, &c);
}

static void access_msr(void)
{
	struct { struct kvm_msrs h; struct kvm_msr_entry e[1]; } v = { .h.nmsrs = 1 };
	char name[32];

	v.e[0] = (struct kvm_msr_entry){ .index = msrs[below(ARRAY_SIZE(msrs))], .data = value() };
	/* Paravirtual pages in memory that is not there in one and the same way. */
	if (v.e[0].index >> 24 == 0x4b || v.e[0].index >> 24 == 0x40)
		v.e[0].data &= FUZZ_MEM - 1;
	snprintf(name, sizeof(name), "msr%x<%llx", v.e[0].index, v.e[0].data);
	call(name, m.vcpu, KVM_SET_MSRS, &v);
}

static void inject(void)
{
	struct kvm_interrupt irq = { below(257) };
	struct kvm_mp_state mp = { below(6) };
	struct kvm_x86_mce mce = { .status = value(), .bank = below(34), .mcg_status = below(8) };
	uint32_t which = below(4);

	if (which == 0)
		call("interrupt", m.vcpu, KVM_INTERRUPT, &irq);
	else if (which == 1)
		call("nmi", m.vcpu, KVM_NMI, 0);
	else if (which == 2)
		call("mp", m.vcpu, KVM_SET_MP_STATE, &mp);
	else
		call("mce", m.vcpu, KVM_X86_SET_MCE, &mce);
}

static void line(void)
{
	struct kvm_irq_level l = { { below(26) }, below(2) };
	struct kvm_msi msi = { .address_lo = 0xfee00000 | below(2) << 12, .data = 0x20 + below(0xe0) };

	if (below(2))
		call("line", m.vm, KVM_IRQ_LINE_STATUS, &l);
	else
		call("msi", m.vm, KVM_SIGNAL_MSI, &msi);
}

static void slot(void)
{
	uint64_t at = below(8) << 20;
	struct kvm_userspace_memory_region r = {
		.slot = 1 + below(3), .flags = below(4), .guest_phys_addr = 0x1000000 + ((uint64_t)below(32) << 16),
		.memory_size = below(5) * 0x10000, .userspace_addr = (uintptr_t)world.mem + at,
	};
	struct kvm_dirty_log d = { .slot = below(5), .dirty_bitmap = scratch() + 8192 };

	if (!below(4))
		mutate(&r, sizeof(r));
	if (below(3))
		call("slot", m.vm, KVM_SET_USER_MEMORY_REGION, &r);
	else
		call("log", m.vm, KVM_GET_DIRTY_LOG, &d);
}

static void translate(void)
{
	struct kvm_translation t = { .linear_address = below(2) ? below(FUZZ_MEM) : value() };

	call("translate", m.vcpu, KVM_TRANSLATE, &t);
	say("=%llx,%u", t.physical_address, t.valid);
}

static void enable(void)
{
	static const uint32_t caps[] = {
		KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_EXIT_HYPERCALL,
		KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_CAP_MSR_PLATFORM_INFO,
		KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
	};
	struct kvm_enable_cap c = { .cap = caps[below(ARRAY_SIZE(caps))], .args = { below(4) } };
	char name[32];

	snprintf(name, sizeof(name), "cap%u", c.cap);
	call(name, m.vm, KVM_ENABLE_CAP, &c);
}

static void say_exit(void)
{
	struct kvm_run *r = m.run;

	say(" %s", exit_name(r->exit_reason));
	switch (r->exit_reason) {
	case KVM_EXIT_IO:
		say("(%x,%u,%u)", r->io.port, r->io.direction, r->io.size);
		break;
	case KVM_EXIT_MMIO:
		say("(%llx,%u,%u)", r->mmio.phys_addr, r->mmio.len, r->mmio.is_write);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		say("(%u)", r->internal.suberror);
		break;
	case KVM_EXIT_DEBUG:
		say("(%u,%llx,%llx)", r->debug.arch.exception, r->debug.arch.pc, r->debug.arch.dr6);
		break;
	case KVM_EXIT_X86_RDMSR: case KVM_EXIT_X86_WRMSR:
		say("(%x,%llx,%u)", r->msr.index, r->msr.data, r->msr.reason);
		break;
	default:
		break;
	}
}

/* With -v: where the guest is, and what is there. */
static void say_where(void)
{
	char code[2 * 48 + 1] = "";
	struct kvm_sregs s;
	struct kvm_regs r;
	uint64_t at;

	OK(ioctl(m.vcpu, KVM_GET_REGS, &r));
	OK(ioctl(m.vcpu, KVM_GET_SREGS, &s));
	at = s.cs.base + r.rip;
	for (int i = 0; i < 48 && at < FUZZ_MEM - 48; i++)
		sprintf(code + 2 * i, "%02x", world.mem[at + i]);
	note("  %s at %llx:%llx rflags %llx cr0 %llx cr4 %llx efer %llx: %s", exit_name(m.run->exit_reason),
	     s.cs.base, r.rip, r.rflags, s.cr0, s.cr4, s.efer, code);
}

/* What a timer has to end is looked at no further. */
static void guest(timer_t timer)
{
	const struct itimerspec often = { { 0, 600000000 }, { 0, 600000000 } }, never = { 0 };

	if (below(4))
		guest_state(m.vcpu);
	if (verbose)
		say_where();
	for (uint32_t n = 1 + below(12); n; n--) {
		uint64_t answer = rnd();
		int result;

		memcpy((char *)m.run + 4096, &answer, 8);
		if (m.run->exit_reason == KVM_EXIT_MMIO)
			memcpy(m.run->mmio.data, &answer, 8);
		m.run->exit_reason = 0;
		OK(timer_settime(timer, 0, &often, NULL));
		result = ioctl(m.vcpu, KVM_RUN, 0);
		m.over = result < 0 && errno == EINTR;
		if (result < 0)
			say(" run:%s", strerrorname(errno));
		OK(timer_settime(timer, 0, &never, NULL));
		if (verbose)
			say_where();
		if (result < 0)
			return;
		say_exit();
		if (m.run->exit_reason == KVM_EXIT_SHUTDOWN || m.run->exit_reason == KVM_EXIT_FAIL_ENTRY ||
		    m.run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
			return;
	}
}

static void step(timer_t timer)
{
	switch (below(16)) {
	case 0: set_part("regs", KVM_GET_REGS, KVM_SET_REGS); break;
	case 1: set_part("sregs", KVM_GET_SREGS, KVM_SET_SREGS); break;
	case 2: set_part("events", KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS); break;
	case 3: set_part("debugregs", KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS); break;
	case 4: set_part("xcrs", KVM_GET_XCRS, KVM_SET_XCRS); break;
	case 5: set_part("lapic", KVM_GET_LAPIC, KVM_SET_LAPIC); break;
	case 6: set_chip(); break;
	case 7 ... 8: access_msr(); break;
	case 9: inject(); break;
	case 10: line(); break;
	case 11: slot(); break;
	case 12: translate(); break;
	case 13: enable(); break;
	default: guest(timer);
	}
}

static void machine(void)
{
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	struct kvm_userspace_memory_region r = { 0, 0, 0, FUZZ_MEM, (uintptr_t)world.mem };

	memset(world.mem, 0, FUZZ_MEM);
	m.over = false;
	m.chips = below(3);
	m.vm = OK(ioctl(world.kvm, KVM_CREATE_VM, 0));
	if (m.chips == FULL)
		OK(ioctl(m.vm, KVM_CREATE_IRQCHIP, 0));
	if (m.chips == SPLIT)
		OK(ioctl(m.vm, KVM_ENABLE_CAP, &split));
	OK(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &r));
	m.vcpu = OK(ioctl(m.vm, KVM_CREATE_VCPU, 0));
	m.run = mmap(NULL, 0x3000, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	REQUIRE(m.run != MAP_FAILED);
	set_supported_cpuid(world.kvm, m.vcpu);
	state(true);
}

static void end(void)
{
	munmap(m.run, 0x3000);
	close(m.vcpu);
	close(m.vm);
}

static uint64_t number_of(const char *name, uint64_t otherwise)
{
	const char *given = getenv(name);

	return given ? strtoull(given, NULL, 0) : otherwise;
}

TEST_NAMED(sequences)
{
	uint64_t seed = number_of("SEED", 1), first = number_of("FIRST", 0), count = number_of("COUNT", 300);
	struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct sigaction a = { .sa_handler = nothing, .sa_flags = SA_RESTART };
	static const char *const names[] = { "none", "full", "split" };
	timer_t timer;

	counts = calloc(1, sizeof(*counts));
	fuzz_tame = true;
	world.kvm = device_open();
	world.mem = mmap(MEMORY, FUZZ_MEM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			 -1, 0);
	REQUIRE(world.mem == MEMORY);
	OK(sigaction(SIGUSR1, &a, NULL));
	OK(timer_create(CLOCK_MONOTONIC, &e, &timer));
	for (uint64_t n = first; n < first + count; n++) {
		length = 0;
		rng_step(seed, 0, n << 8);
		machine();
		say("%s", names[m.chips]);
		for (uint32_t i = 0, steps = 2 + below(10); i < steps && !m.over; i++) {
			rng_step(seed, 0, n << 8 | (i + 1));
			step(timer);
		}
		say(" ;");
		if (!m.over)
			state(false);
		note("case %llu: %s", (unsigned long long)n, text);
		end();
	}
}
