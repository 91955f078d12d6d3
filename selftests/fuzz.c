// SPDX-License-Identifier: GPL-2.0
/*
 * Random ioctls, guests, memory changes and closes from several threads at once: the host has to survive them.
 * Nothing else is checked.
 *
 * FUZZ_SEED=N chooses another walk (printed), FUZZ_STEPS=N its length per thread. Threads race, so a seed does not
 * repeat a run exactly.
 */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define THREADS 5
#define VMS 3
#define VCPUS 8
#define MEM (8u << 20)

static int kvm, vms[VMS], vcpus[VCPUS], events[8];
static struct kvm_run *runs[VCPUS];
static uint8_t *mem;
static unsigned long calls, entries, steps;
static int left;
/* Guests are not entered: Bochs never leaves one that masks interrupts, which random code does. */
static bool no_entry;
static __thread uint64_t rng;

static uint64_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

static uint32_t below(uint32_t n)
{
	return rnd() % n;
}

/* Values at which something happens. */
static uint64_t value(void)
{
	switch (below(12)) {
	case 0: return 0;
	case 1: return 1;
	case 2: return ~0ull;
	case 3: return 1ull << below(64);
	case 4: return (1ull << below(64)) - 1;
	case 5: return 0x7ffffffff000ull + (below(3) - 1) * 0x1000;
	case 6: return 0xffff800000000000ull;
	case 7: return (uint64_t)below(MEM) & ~0xfffull;
	case 8: return (below(2) ? 0xfee00000 : 0xfec00000) + below(0x1000);
	case 9: return below(256);
	case 10: return (uintptr_t)mem + below(MEM);
	default: return rnd();
	}
}

static void fill(void *p, size_t n)
{
	uint8_t *b = p;

	switch (below(3)) {
	case 0:
		for (size_t i = 0; i < n; i++)
			b[i] = rnd();
		break;
	case 1:
		memset(b, 0, n);
		for (int i = 0; i < 3; i++)
			b[below(n)] = rnd();
		break;
	default:
		for (size_t i = 0; i + 8 <= n; i += 8) {
			uint64_t v = value();

			memcpy(b + i, &v, 8);
		}
	}
}

static void mutate(void *p, size_t n)
{
	uint8_t *b = p;

	for (int k = 1 + below(4); k; k--) {
		size_t at = below(n);
		uint64_t v = value();

		switch (below(4)) {
		case 0:
			b[at] ^= 1 << below(8);
			break;
		case 1:
			b[at] = v;
			break;
		case 2:
			at &= ~7ul;
			if (at + 8 <= n)
				memcpy(b + at, &v, 8);
			break;
		default:
			at &= ~3ul;
			if (at + 4 <= n)
				memcpy(b + at, &v, 4);
		}
	}
}

static int try(int fd, unsigned long cmd, void *arg)
{
	__atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
	return ioctl(fd, cmd, arg);
}

static const struct { unsigned long get, set; unsigned int bytes; } pairs[] = {
	{ KVM_GET_REGS, KVM_SET_REGS, sizeof(struct kvm_regs) },
	{ KVM_GET_SREGS, KVM_SET_SREGS, sizeof(struct kvm_sregs) },
	{ KVM_GET_SREGS2, KVM_SET_SREGS2, sizeof(struct kvm_sregs2) },
	{ KVM_GET_FPU, KVM_SET_FPU, sizeof(struct kvm_fpu) },
	{ KVM_GET_XSAVE, KVM_SET_XSAVE, 4096 },
	{ KVM_GET_XCRS, KVM_SET_XCRS, sizeof(struct kvm_xcrs) },
	{ KVM_GET_LAPIC, KVM_SET_LAPIC, sizeof(struct kvm_lapic_state) },
	{ KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events) },
	{ KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, sizeof(struct kvm_debugregs) },
	{ KVM_GET_MP_STATE, KVM_SET_MP_STATE, sizeof(struct kvm_mp_state) },
};

static const uint32_t msrs[] = {
	0, 1, 0x10, 0x11, 0x12, 0x17, 0x1b, 0x2a, 0x3a, 0x3b, 0x48, 0x49, 0x79, 0x8b, 0xce, 0xfe, 0x10a, 0x140,
	0x174, 0x175, 0x176, 0x179, 0x17a, 0x17b, 0x1a0, 0x1d9, 0x1fc, 0x200, 0x201, 0x20f, 0x250, 0x268, 0x277,
	0x2ff, 0x400, 0x401, 0x403, 0x47f, 0x480, 0x6e0, 0x800, 0x802, 0x808, 0x80b, 0x80d, 0x80f, 0x828, 0x830,
	0x832, 0x838, 0x839, 0x83e, 0x83f, 0xda0, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03, 0x4b564d04,
	0x4b564d05, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102,
	0xc0000103, 0xc0000104, 0xc0010015, 0xc0010114, 0xc0010117, 0xc0011029,
};

/* Guest code: things that exit, in 16-bit code that decodes in other modes as well. */
static const uint8_t snippets[][8] = {
	{ 0x0f, 0xa2 }, { 0xf4 }, { 0xfb, 0xf4 }, { 0xe6, 0x20 }, { 0xe4, 0x40 }, { 0xec }, { 0xee }, { 0xed },
	{ 0xef }, { 0x6c }, { 0x6e }, { 0xf3, 0x6c }, { 0xf3, 0x6e }, { 0xf3, 0xa4 }, { 0xf3, 0xaa },
	{ 0xf3, 0xab }, { 0xf3, 0xac }, { 0xf2, 0xae }, { 0x0f, 0x32 }, { 0x0f, 0x30 }, { 0x0f, 0x01, 0xc1 },
	{ 0x0f, 0x01, 0xd9 }, { 0x0f, 0x01, 0xd8 }, { 0x0f, 0x01, 0xd1 }, { 0x0f, 0x22, 0xc0 },
	{ 0x0f, 0x20, 0xc0 }, { 0x0f, 0x22, 0xe0 }, { 0x0f, 0x20, 0xe0 }, { 0x0f, 0x22, 0xd8 },
	{ 0x0f, 0x23, 0xf8 }, { 0x0f, 0x21, 0xf0 }, { 0x0f, 0x23, 0xc0 }, { 0xcc }, { 0xcd, 0x21 }, { 0xf1 },
	{ 0x0f, 0x0b }, { 0x9d }, { 0x9c }, { 0x0f, 0x09 }, { 0x0f, 0x08 }, { 0x0f, 0x33 }, { 0x0f, 0x31 },
	{ 0x0f, 0x01, 0xc8 }, { 0x0f, 0x01, 0xc9 }, { 0x8b, 0x07 }, { 0x89, 0x07 }, { 0xf0, 0x87, 0x07 },
	{ 0x0f, 0xc7, 0x0f }, { 0xeb, 0xfe }, { 0xe2, 0xfe }, { 0x0f, 0x06 }, { 0x0f, 0x01, 0xf0 }, { 0xfa },
	{ 0xfb }, { 0x0f, 0xae, 0x2f }, { 0x0f, 0xae, 0x27 }, { 0x0f, 0xc7, 0x2f }, { 0x0f, 0x01, 0xd0 },
	{ 0x0f, 0x01, 0xef }, { 0x0f, 0x01, 0xee }, { 0x8e, 0xd0 }, { 0x17 },
};

static void plant(void)
{
	uint8_t *p = mem + (below(2) ? below(MEM - 256) : below(MEM - 4096) & ~0xfffu);

	for (int n = 0; n < 200 && below(30);) {
		const uint8_t *s = snippets[below(ARRAY_SIZE(snippets))];
		int bytes = 0;

		for (int i = 0; i < 8; i++)
			if (s[i])
				bytes = i + 1;
		memcpy(p + n, s, bytes);
		n += bytes;
	}
}

static void make_vm(int i)
{
	struct kvm_userspace_memory_region r = { 0, below(2), 0, MEM, (uintptr_t)mem };
	int old, fd = try(kvm, KVM_CREATE_VM, 0);

	if (fd < 0)
		return;
	if (below(4)) {
		struct kvm_enable_cap c = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
		struct kvm_pit_config pit = { .flags = below(2) };

		if (below(3))
			try(fd, KVM_CREATE_IRQCHIP, 0);
		else
			try(fd, KVM_ENABLE_CAP, &c);
		if (below(2))
			try(fd, KVM_CREATE_PIT2, &pit);
	}
	try(fd, KVM_SET_USER_MEMORY_REGION, &r);
	r = (struct kvm_userspace_memory_region){ 1, 0, 0xffff0000, 0x10000, (uintptr_t)mem };
	try(fd, KVM_SET_USER_MEMORY_REGION, &r);
	old = __atomic_exchange_n(&vms[i], fd, __ATOMIC_SEQ_CST);
	if (old >= 0)
		close(old);
}

static void make_vcpu(int i)
{
	static __thread struct { struct kvm_cpuid2 h; struct kvm_cpuid_entry2 e[256]; } c;
	uint64_t id = below(20) ? below(6) : value();
	int old, fd = try(vms[below(VMS)], KVM_CREATE_VCPU, (void *)(uintptr_t)id);
	struct kvm_run *run, *before;

	if (fd < 0)
		return;
	c.h.nent = 256;
	if (!ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &c) && below(8)) {
		if (!below(4))
			mutate(c.e, sizeof(c.e[0]) * c.h.nent);
		try(fd, KVM_SET_CPUID2, &c);
	}
	run = mmap(NULL, 0x3000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	old = __atomic_exchange_n(&vcpus[i], fd, __ATOMIC_SEQ_CST);
	before = __atomic_exchange_n(&runs[i], run == MAP_FAILED ? NULL : run, __ATOMIC_SEQ_CST);
	if (old >= 0)
		close(old);
	/* Another thread may be using its first pages. */
	if (before && !below(3))
		munmap((char *)before + 0x2000, 0x1000);
}

/* Sets up a mode by hand, with something wrong now and then. */
static void set_state(int fd)
{
	const struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .g = 1 };
	const struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1,
					  .db = 1, .g = 1 };
	struct kvm_sregs s;
	struct kvm_regs r;
	uint64_t *table;

	if (ioctl(fd, KVM_GET_SREGS, &s) || ioctl(fd, KVM_GET_REGS, &r))
		return;
	switch (below(4)) {
	case 0:
		s.cr0 = 0x10;
		s.efer = s.cr4 = 0;
		s.cs = (struct kvm_segment){ .selector = 0x100, .base = 0x1000 * below(256), .limit = 0xffff,
					     .type = 11, .s = 1, .present = 1 };
		r.rip = below(0xf000);
		break;
	case 1:
		s.cr0 = 0x11;
		s.efer = s.cr4 = 0;
		s.cs = code;
		s.cs.db = 1;
		s.ds = s.es = s.fs = s.gs = s.ss = data;
		r.rip = below(MEM);
		break;
	case 2:
		table = (uint64_t *)(mem + 0x1000);
		table[0] = table[256] = 0x2007;
		table = (uint64_t *)(mem + 0x2000);
		for (uint64_t i = 0; i < 4; i++)
			table[i] = i << 30 | 0x83;
		table[0] = 0x3007;
		table[3] = 0x4007;
		for (uint64_t i = 0; i < 512; i++) {
			((uint64_t *)(mem + 0x3000))[i] = i << 21 | 0x87;
			((uint64_t *)(mem + 0x4000))[i] = 3ull << 30 | i << 21 | 0x87;
		}
		s.cr3 = 0x1000;
		s.cr4 = 0x20 | (below(2) ? 0x40600 : 0);
		s.cr0 = 0x80000011;
		s.efer = 0xd01 & ~(below(2) ? 0x800 : 0);
		s.cs = code;
		s.cs.l = 1;
		s.ds = s.es = s.fs = s.gs = s.ss = data;
		r.rip = below(MEM);
		break;
	default:
		mutate(&s, sizeof(s));
	}
	if (!below(4))
		mutate(&s, sizeof(s));
	try(fd, KVM_SET_SREGS, &s);
	r.rax = value();
	r.rcx = below(2) ? msrs[below(ARRAY_SIZE(msrs))] : value();
	r.rdx = below(2) ? below(0x100) : value();
	r.rsi = below(2) ? 0xfee00000 + below(0x400) : value();
	r.rdi = below(2) ? value() : 0xfec00000;
	r.rbx = value();
	r.rsp = below(MEM);
	r.rflags = 2 | (below(2) ? 0x200 : 0) | (below(8) ? 0 : rnd());
	try(fd, KVM_SET_REGS, &r);
	if (!below(3)) {
		struct kvm_mp_state m = { below(8) ? 0 : below(6) };

		try(fd, KVM_SET_MP_STATE, &m);
	}
}

static void run_guest(int i, int fd)
{
	struct kvm_run *run = runs[i];

	set_state(fd);
	for (int n = 1 + below(6); n; n--) {
		if (!run)
			return;
		run->request_interrupt_window = !below(4);
		if (!below(10))
			mutate(run, sizeof(*run));
		run->immediate_exit = no_entry || !below(3);
		__atomic_fetch_add(&entries, 1, __ATOMIC_RELAXED);
		if (ioctl(fd, KVM_RUN, 0) < 0 && errno != EAGAIN && errno != EINTR)
			return;
		if (!below(3))
			((uint64_t *)((char *)run + 4096))[0] = rnd();
	}
}

/* A number that may be an ioctl's. */
static unsigned long any_command(unsigned int base, unsigned int count)
{
	return below(4) ? (base + below(count)) | below(4) << 30 | below(0x400) << 16 : (uint32_t)rnd();
}

/* Another thread may run the same vCPU meanwhile. */
static void vcpu_step(void)
{
	static __thread uint8_t buf[8192] __attribute__((aligned(16)));
	struct { struct kvm_msrs h; struct kvm_msr_entry e[8]; } m = { .h.nmsrs = below(8) + 1 };
	int i = below(VCPUS), fd = vcpus[i], k, how;
	struct kvm_interrupt irq = { below(260) };
	uint64_t v = value();
	unsigned long cmd;

	switch (below(17)) {
	case 0 ... 3:
		run_guest(i, fd);
		break;
	case 4 ... 7:
		k = below(ARRAY_SIZE(pairs));
		how = below(4);
		if (how == 0 || try(fd, pairs[k].get, buf) < 0)
			fill(buf, pairs[k].bytes);
		else if (how > 1)
			mutate(buf, pairs[k].bytes);
		try(fd, pairs[k].set, buf);
		break;
	case 8 ... 9:
		for (int j = 0; j < 8; j++) {
			m.e[j].index = below(10) ? msrs[below(ARRAY_SIZE(msrs))] : rnd();
			m.e[j].data = value();
		}
		try(fd, below(4) ? KVM_SET_MSRS : KVM_GET_MSRS, &m);
		break;
	case 10:
		try(fd, KVM_INTERRUPT, &irq);
		break;
	case 11:
		try(fd, KVM_NMI, 0);
		break;
	case 12:
		fill(buf, sizeof(struct kvm_translation));
		try(fd, KVM_TRANSLATE, buf);
		break;
	case 13:
		k = try(fd, KVM_GET_STATS_FD, 0);
		if (k >= 0) {
			for (int j = 0; j < 4; j++)
				if (pread(k, buf, below(sizeof(buf)), value() & INT64_MAX) < 0)
					break;
			close(k);
		}
		break;
	case 14:
		try(fd, below(2) ? KVM_X86_SETUP_MCE : KVM_SET_VAPIC_ADDR, &v);
		try(fd, KVM_SET_TSC_KHZ, (void *)value());
		break;
	case 15:
		fill(buf, sizeof(struct kvm_guest_debug));
		((struct kvm_guest_debug *)buf)->control = below(2) ? below(4) | below(32) << 16 : 0;
		try(fd, KVM_SET_GUEST_DEBUG, buf);
		break;
	default:
		fill(buf, sizeof(buf));
		cmd = any_command(0xae80, 0x60);
		if ((cmd & 0xffff) != (KVM_RUN & 0xffff) || !no_entry)
			try(fd, cmd, below(4) ? buf : (void *)value());
	}
}

static void memory_step(int fd)
{
	struct kvm_userspace_memory_region r = {
		.slot = below(12) ? below(5) : value(),
		.flags = below(8) ? below(2) : below(8),
		.guest_phys_addr = below(2) ? (uint64_t)below(64) << 20 : value(),
		.memory_size = below(2) ? (uint64_t)below(MEM) & ~0xfffull : below(3) ? 0 : value(),
		.userspace_addr = below(4) ? (uintptr_t)mem + (below(MEM) & ~0xfffu) : value(),
	};

	if (below(2))
		r = (struct kvm_userspace_memory_region){ 0, below(2), below(4) * 0x200000, below(3) ? MEM : 0,
							  (uintptr_t)mem };
	/* The shared page of a vCPU as guest memory. */
	if (!below(10) && runs[0])
		r = (struct kvm_userspace_memory_region){ 4, 0, 0x1000000, 0x1000, (uintptr_t)runs[0] };
	try(fd, KVM_SET_USER_MEMORY_REGION, &r);
}

static void enable_step(int fd)
{
	static const uint32_t caps[] = {
		KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_EXIT_ON_EMULATION_FAILURE,
		KVM_CAP_MSR_PLATFORM_INFO, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_X2APIC_API,
		KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_CAP_DIRTY_LOG_RING,
		KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
	};
	struct kvm_enable_cap c = { .cap = caps[below(ARRAY_SIZE(caps))], .args = { below(2) ? below(4) : value() } };
	static uint8_t allow[64], none[64];
	struct kvm_msr_filter f = { .flags = below(2) };

	try(fd, KVM_ENABLE_CAP, &c);
	memset(allow, 0xff, sizeof(allow));
	for (int i = 0; i < 4; i++)
		f.ranges[i] = (struct kvm_msr_filter_range){
			.flags = below(4), .nmsrs = below(512), .base = msrs[below(ARRAY_SIZE(msrs))],
			.bitmap = below(2) ? allow : none,
		};
	if (!below(3))
		try(fd, KVM_X86_SET_MSR_FILTER, &f);
}

static __thread uint8_t buf[8192] __attribute__((aligned(16)));

static void dirty_log_step(int fd)
{
	struct kvm_dirty_log d = { .slot = below(4), .dirty_bitmap = below(4) ? buf : (void *)value() };
	struct kvm_clear_dirty_log c = { .slot = below(4), .num_pages = below(40) * 64,
					 .first_page = below(8) * 64, .dirty_bitmap = buf };

	if (below(2)) {
		try(fd, KVM_GET_DIRTY_LOG, &d);
	} else {
		fill(buf, 512);
		try(fd, KVM_CLEAR_DIRTY_LOG, &c);
	}
}

/* State of the interrupt controllers or of the 8254, from the VM or random, with changes. */
static void chip_step(int fd)
{
	struct kvm_irqchip *chip = (void *)buf;

	memset(chip, 0, sizeof(*chip));
	chip->chip_id = below(4);
	if (below(3))
		try(fd, KVM_GET_IRQCHIP, chip);
	else
		fill(chip, sizeof(*chip));
	chip->chip_id = below(4);
	mutate(buf + 8, sizeof(*chip) - 8);
	try(fd, KVM_SET_IRQCHIP, chip);
}

static void pit_step(int fd)
{
	if (below(3))
		try(fd, KVM_GET_PIT2, buf);
	else
		fill(buf, sizeof(struct kvm_pit_state2));
	mutate(buf, sizeof(struct kvm_pit_state2));
	try(fd, KVM_SET_PIT2, buf);
}

static void irqfd_step(int fd)
{
	struct kvm_irqfd q = {
		.fd = events[below(8)], .gsi = below(24), .flags = below(3) ? below(2) : below(4),
		.resamplefd = events[below(8)],
	};

	try(fd, KVM_IRQFD, &q);
}

static void ioeventfd_step(int fd)
{
	struct kvm_ioeventfd q = {
		.datamatch = below(4), .addr = below(3) ? below(64) : value(),
		.len = below(2) ? 1 << below(4) : value(),
		.fd = events[below(8)], .flags = below(8),
	};

	try(fd, KVM_IOEVENTFD, &q);
}

static void irq_step(int fd)
{
	struct kvm_irq_level l = { { below(30) ? below(24) : value() }, below(2) };

	try(fd, below(2) ? KVM_IRQ_LINE : KVM_IRQ_LINE_STATUS, &l);
}

static void msi_step(int fd)
{
	struct kvm_msi m = { .address_lo = 0xfee00000 | below(0x100000), .data = value() };

	if (!below(4))
		fill(&m, sizeof(m));
	try(fd, KVM_SIGNAL_MSI, &m);
}

static void routing_step(int fd)
{
	struct kvm_irq_routing *routing = (void *)buf;

	fill(buf, 4096);
	routing->nr = below(3) ? below(20) : value();
	routing->flags = 0;
	for (int i = 0; i < 20; i++) {
		routing->entries[i].gsi = below(3) ? below(32) : value();
		routing->entries[i].type = 1 + below(2);
		routing->entries[i].flags = routing->entries[i].pad = 0;
		routing->entries[i].u.irqchip.irqchip = below(3);
		routing->entries[i].u.irqchip.pin = below(24);
	}
	try(fd, KVM_SET_GSI_ROUTING, routing);
}

static void stats_step(int fd)
{
	int k;

	k = try(fd, KVM_GET_STATS_FD, 0);
	if (k >= 0) {
		if (pread(k, buf, below(sizeof(buf)), value() & INT64_MAX) < 0)
			errno = 0;
		close(k);
	}
}

static void signal_step(int fd)
{
	if (write(events[below(8)], &(uint64_t){ 1 }, 8) < 0)
		errno = 0;
}

static void clock_step(int fd)
{
	struct kvm_clock_data c = { .clock = value() };

	try(fd, KVM_SET_CLOCK, &c);
	try(fd, KVM_GET_CLOCK, &c);
}

static void vm_step(void)
{
	static void (*const steps[])(int) = {
		memory_step, memory_step, memory_step, dirty_log_step, irq_step, chip_step, pit_step, irqfd_step,
		ioeventfd_step, msi_step, routing_step, clock_step, signal_step, stats_step, enable_step, enable_step,
	};
	int fd = vms[below(VMS)];
	uint32_t step = below(20);

	if (step == 0) {
		make_vm(below(VMS));
	} else if (step <= 2) {
		make_vcpu(below(VCPUS));
	} else if (step - 3 < ARRAY_SIZE(steps)) {
		steps[step - 3](fd);
	} else {
		fill(buf, sizeof(buf));
		try(below(3) ? fd : kvm, any_command(0xae00, 0xd0), below(4) ? buf : (void *)value());
	}
}

static void host_step(void)
{
	size_t at = below(MEM) & ~0xfffu, n = below(2) ? 4096 : 1 + below(MEM - at);
	int fd;

	n = (n + 4095) & ~4095ul;
	if (at + n > MEM)
		n = MEM - at;
	switch (below(8)) {
	case 0:
		madvise(mem + at, n, MADV_DONTNEED);
		break;
	case 1:
		mprotect(mem + at, n, PROT_READ);
		mprotect(mem + at, n, PROT_READ | PROT_WRITE | (below(2) ? PROT_EXEC : 0));
		break;
	case 2:
		if (mmap(mem + at, n, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1,
			 0) == MAP_FAILED)
			abort();
		break;
	case 3:
		madvise(mem + at, n, below(2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		break;
	case 4:
		madvise(mem + at, n, below(2) ? 25 /* MADV_COLLAPSE */ : MADV_FREE);
		break;
	case 5:
		if (!below(4)) {
			fd = __atomic_exchange_n(&vcpus[below(VCPUS)], -1, __ATOMIC_SEQ_CST);
			if (fd >= 0)
				close(fd);
		}
		break;
	case 6:
		if (!below(20)) {
			pid_t p = fork_child();

			if (!p) {
				for (size_t i = 0; i < MEM; i += 4096 * 7)
					*(volatile uint8_t *)(mem + i) = 1;
				ioctl(vcpus[0], KVM_GET_REGS, mem);
				_exit(0);
			}
			waitpid(p, NULL, 0);
		}
		break;
	default:
		plant();
	}
}

/* Memory that another thread has made read-only at this moment. */
static void writable(int signal, siginfo_t *info, void *context)
{
	mprotect((void *)((uintptr_t)info->si_addr & ~0xffful), 4096, PROT_READ | PROT_WRITE);
}

static void *work(void *argument)
{
	rng = (uintptr_t)argument;
	for (int i = 0; i < 10; i++)
		rnd();
	for (unsigned long i = 0; i < steps; i++) {
		switch (below(10)) {
		case 0 ... 4:
			vcpu_step();
			break;
		case 5 ... 7:
			vm_step();
			break;
		default:
			host_step();
		}
	}
	__atomic_fetch_sub(&left, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

TEST_SECONDS(fuzz, 250)
{
	uint64_t seed = strtoull(getenv("FUZZ_SEED") ?: "1", NULL, 0);
	pthread_t threads[THREADS];

	steps = strtoul(getenv("FUZZ_STEPS") ?: "2000", NULL, 0);
	note("seed %llu, %lu steps of %d threads", (unsigned long long)seed, steps, THREADS);
	no_entry = !is_amd();
	kvm = device_open();
	mem = mmap(NULL, MEM + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(mem != MAP_FAILED);
	mem = (uint8_t *)(((uintptr_t)mem + (2 << 20) - 1) & ~((2ul << 20) - 1));
	for (int i = 0; i < 8; i++)
		events[i] = eventfd(0, EFD_NONBLOCK);
	memset(vms, -1, sizeof(vms));
	memset(vcpus, -1, sizeof(vcpus));
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = nothing }, NULL);
	sigaction(SIGSEGV, &(struct sigaction){ .sa_sigaction = writable, .sa_flags = SA_SIGINFO }, NULL);
	rng = seed * 0x9e3779b97f4a7c15ull + 1;
	for (int i = 0; i < VMS; i++)
		make_vm(i);
	for (int i = 0; i < VCPUS; i++)
		make_vcpu(i);
	for (int i = 0; i < 300; i++)
		plant();
	left = THREADS;
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(seed * 1000003 + i * 7919 + 1));
	/* Guests do not end by themselves. */
	while (__atomic_load_n(&left, __ATOMIC_SEQ_CST)) {
		usleep(1000);
		for (int i = 0; i < THREADS; i++)
			pthread_kill(threads[i], SIGUSR1);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	note("%lu ioctls, %lu entries", calls, entries);
}
