// SPDX-License-Identifier: GPL-2.0
/*
 * Wrong input: every ioctl on every file, with bad pointers, with every field wrong, in every state of a VM. With -v
 * it prints what came of it, one line per field; tools/badinput runs that on KVM and on rvmm and compares. By itself
 * it only finds out whether all of it is survived.
 */
#define _GNU_SOURCE
#include "vm.h"
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

enum file { DEVICE, VM, VCPU };

/* How a VM has been set up. */
enum state { BARE, FULL, SPLIT, USER };
static const char *const state_name[] = { "bare", "full", "split", "user" };

/* The rest of an entry is zero. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

#define BYTES 8192

static struct {
	int kvm, vm, vcpu, event, timer;
	struct kvm_run *run;
	uint8_t *memory;
	enum state state;
} t;

struct call {
	const char *name;
	unsigned long cmd;
	enum file file;
	unsigned int bytes;			/* of the structure; 0: the argument is a number */
	void (*fill)(uint8_t *p);		/* a good one; NULL: zeros */
	unsigned int words;			/* 32-bit words to spoil; 0: all */
	unsigned int cap;			/* only where this extension is there on the device */
	bool get;				/* only writes the structure: its fields do not matter */
};

static int fd_of(enum file file)
{
	return file == DEVICE ? t.kvm : file == VM ? t.vm : t.vcpu;
}

/* New files are closed again. */
static const char *try_call(int fd, unsigned long cmd, unsigned long arg)
{
	long r;

	errno = 0;
	r = ioctl(fd, cmd, arg);
	if (r < 0)
		return strerrorname(errno);
	if (cmd == KVM_CREATE_VM || cmd == KVM_CREATE_VCPU || cmd == KVM_GET_STATS_FD)
		close(r);
	return "ok";
}

static void read_from(unsigned long cmd, uint8_t *p)
{
	if (ioctl(t.vcpu, cmd, p))
		DIE("%#lx: %s", cmd, strerrorname(errno));
}

static void fill_regs(uint8_t *p) { read_from(KVM_GET_REGS, p); }
static void fill_sregs(uint8_t *p) { read_from(KVM_GET_SREGS, p); }
static void fill_fpu(uint8_t *p) { read_from(KVM_GET_FPU, p); }
static void fill_xsave(uint8_t *p) { read_from(KVM_GET_XSAVE, p); }
static void fill_xcrs(uint8_t *p) { read_from(KVM_GET_XCRS, p); }
static void fill_events(uint8_t *p) { read_from(KVM_GET_VCPU_EVENTS, p); }
static void fill_debugregs(uint8_t *p) { read_from(KVM_GET_DEBUGREGS, p); }

static void fill_lapic(uint8_t *p)
{
	if (t.state == FULL || t.state == SPLIT)
		read_from(KVM_GET_LAPIC, p);
}

static void fill_cpuid(uint8_t *p)
{
	struct kvm_cpuid2 *c = (void *)p;

	c->nent = 2;
	c->entries[0] = (struct kvm_cpuid_entry2){ .function = 0, .eax = 1 };
	c->entries[1] = (struct kvm_cpuid_entry2){ .function = 1, .eax = 0x600f00 };
}

static void fill_cpuid_get(uint8_t *p) { ((struct kvm_cpuid2 *)p)->nent = 256; }

static void fill_msr_list(uint8_t *p) { ((struct kvm_msr_list *)p)->nmsrs = 1024; }

static void fill_msrs(uint8_t *p)
{
	struct kvm_msrs *m = (void *)p;

	m->nmsrs = 1;
	m->entries[0] = (struct kvm_msr_entry){ .index = 0x174, .data = 0x10 };
}

static void fill_region(uint8_t *p)
{
	*(struct kvm_userspace_memory_region *)p = (struct kvm_userspace_memory_region){
		.slot = 5, .guest_phys_addr = 0x1000000, .memory_size = 0x10000, .userspace_addr = (uintptr_t)t.memory,
	};
}

static void fill_dirty(uint8_t *p)
{
	*(struct kvm_dirty_log *)p = (struct kvm_dirty_log){ .slot = 1, .dirty_bitmap = t.memory };
}

static void fill_clear(uint8_t *p)
{
	*(struct kvm_clear_dirty_log *)p = (struct kvm_clear_dirty_log){ .slot = 1, .num_pages = 64,
									 .dirty_bitmap = t.memory };
}

static void fill_irqchip(uint8_t *p)
{
	((struct kvm_irqchip *)p)->chip_id = 2;
	if (t.state == FULL)
		ioctl(t.vm, KVM_GET_IRQCHIP, p);
}

static void fill_pit(uint8_t *p)
{
	if (t.state == FULL)
		ioctl(t.vm, KVM_GET_PIT2, p);
}

static void fill_line(uint8_t *p) { *(struct kvm_irq_level *)p = (struct kvm_irq_level){ .irq = 3, .level = 1 }; }

static void fill_routing(uint8_t *p)
{
	struct kvm_irq_routing *r = (void *)p;

	r->nr = 1;
	r->entries[0] = (struct kvm_irq_routing_entry){ .gsi = 24, .type = KVM_IRQ_ROUTING_MSI };
	r->entries[0].u.msi.address_lo = 0xfee00000;
	r->entries[0].u.msi.data = 0x31;
}

static void fill_routing_chip(uint8_t *p)
{
	struct kvm_irq_routing *r = (void *)p;

	r->nr = 1;
	r->entries[0] = (struct kvm_irq_routing_entry){ .gsi = 3, .type = KVM_IRQ_ROUTING_IRQCHIP };
	r->entries[0].u.irqchip.irqchip = 2;
	r->entries[0].u.irqchip.pin = 3;
}

static void fill_msi(uint8_t *p)
{
	*(struct kvm_msi *)p = (struct kvm_msi){ .address_lo = 0xfee00000, .data = 0x31 };
}

static void fill_irqfd(uint8_t *p) { *(struct kvm_irqfd *)p = (struct kvm_irqfd){ .fd = t.event, .gsi = 5 }; }

static void fill_irqfd_resample(uint8_t *p)
{
	*(struct kvm_irqfd *)p = (struct kvm_irqfd){ .fd = t.event, .gsi = 6, .flags = KVM_IRQFD_FLAG_RESAMPLE,
						     .resamplefd = t.timer };
}

static void fill_ioeventfd(uint8_t *p)
{
	*(struct kvm_ioeventfd *)p = (struct kvm_ioeventfd){ .addr = 0x5000000, .len = 4, .fd = t.event };
}

static void fill_ioeventfd_pio(uint8_t *p)
{
	*(struct kvm_ioeventfd *)p = (struct kvm_ioeventfd){
		.addr = 0x510, .len = 2, .fd = t.event,
		.flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH, .datamatch = 7,
	};
}

static void fill_enable(uint8_t *p) { ((struct kvm_enable_cap *)p)->cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE; }
static void fill_enable_quirks(uint8_t *p) { ((struct kvm_enable_cap *)p)->cap = KVM_CAP_DISABLE_QUIRKS2; }
static void fill_enable_split(uint8_t *p) { ((struct kvm_enable_cap *)p)->cap = KVM_CAP_SPLIT_IRQCHIP; }
static void fill_enable_msr(uint8_t *p) { ((struct kvm_enable_cap *)p)->cap = KVM_CAP_X86_USER_SPACE_MSR; }
static void fill_enable_log(uint8_t *p) { ((struct kvm_enable_cap *)p)->cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; }
static void fill_enable_ids(uint8_t *p) { ((struct kvm_enable_cap *)p)->cap = KVM_CAP_MAX_VCPU_ID; }
static void fill_enable_poll(uint8_t *p) { ((struct kvm_enable_cap *)p)->cap = KVM_CAP_HALT_POLL; }
static void fill_enable_hypercall(uint8_t *p) { ((struct kvm_enable_cap *)p)->cap = KVM_CAP_EXIT_HYPERCALL; }
#ifndef KVM_CAP_X86_APIC_BUS_CYCLES_NS
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237
#endif
static void fill_enable_bus(uint8_t *p) { ((struct kvm_enable_cap *)p)->cap = KVM_CAP_X86_APIC_BUS_CYCLES_NS; }

static void fill_enable_pv(uint8_t *p)
{
	*(struct kvm_enable_cap *)p = (struct kvm_enable_cap){ .cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = { 1 } };
}

static void fill_filter(uint8_t *p)
{
	struct kvm_msr_filter *f = (void *)p;

	f->ranges[0] = (struct kvm_msr_filter_range){ .flags = KVM_MSR_FILTER_READ, .nmsrs = 8, .base = 0x174,
						      .bitmap = t.memory };
}

static void fill_interrupt(uint8_t *p) { ((struct kvm_interrupt *)p)->irq = 0x31; }
static void fill_mce(uint8_t *p) { *(uint64_t *)p = 10; }
static void fill_vapic(uint8_t *p) { *(uint64_t *)p = 0x1000; }
static void fill_clock(uint8_t *p) { ((struct kvm_clock_data *)p)->clock = 1000000000; }
static void fill_attr(uint8_t *p) { ((struct kvm_device_attr *)p)->addr = (uintptr_t)t.memory; }
static void fill_zone(uint8_t *p)
{
	*(struct kvm_coalesced_mmio_zone *)p = (struct kvm_coalesced_mmio_zone){ .addr = 0x6000000, .size = 0x1000 };
}
static void fill_mask(uint8_t *p) { *(uint32_t *)p = 8; }

#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236
#endif
/* gpa, size, flags, padding[5] */
static void fill_pre_fault(uint8_t *p) { ((uint64_t *)p)[1] = 0x2000; }
static void fill_device_attr(uint8_t *p) { ((struct kvm_device_attr *)p)->addr = (uintptr_t)t.memory; }

#define V(name, type, ...) { #name, name, __VA_ARGS__, .bytes = sizeof(type) }

static const struct call calls[] = {
	{ "KVM_GET_API_VERSION", KVM_GET_API_VERSION, DEVICE },
	{ "KVM_CREATE_VM", KVM_CREATE_VM, DEVICE },
	{ "KVM_GET_VCPU_MMAP_SIZE", KVM_GET_VCPU_MMAP_SIZE, DEVICE },
	{ "KVM_GET_SUPPORTED_CPUID", KVM_GET_SUPPORTED_CPUID, DEVICE, 8 + 256 * 40, fill_cpuid_get, 2 },
	{ "KVM_GET_EMULATED_CPUID", KVM_GET_EMULATED_CPUID, DEVICE, 8 + 256 * 40, fill_cpuid_get, 2,
	  KVM_CAP_EXT_EMUL_CPUID },
	{ "KVM_GET_MSR_INDEX_LIST", KVM_GET_MSR_INDEX_LIST, DEVICE, 4 + 1024 * 4, fill_msr_list, 1 },
	{ "KVM_GET_MSR_FEATURE_INDEX_LIST", KVM_GET_MSR_FEATURE_INDEX_LIST, DEVICE, 4 + 1024 * 4, fill_msr_list, 1,
	  KVM_CAP_GET_MSR_FEATURES },
	{ "KVM_GET_MSRS (device)", KVM_GET_MSRS, DEVICE, 24, fill_msrs, 3, KVM_CAP_GET_MSR_FEATURES },
	{ "KVM_X86_GET_MCE_CAP_SUPPORTED", KVM_X86_GET_MCE_CAP_SUPPORTED, DEVICE, 8, .get = true },
	{ "KVM_GET_DEVICE_ATTR (device)", KVM_GET_DEVICE_ATTR, DEVICE, 24, fill_device_attr, 6,
	  KVM_CAP_SYS_ATTRIBUTES },
	{ "KVM_HAS_DEVICE_ATTR (device)", KVM_HAS_DEVICE_ATTR, DEVICE, 24, fill_device_attr, 6,
	  KVM_CAP_SYS_ATTRIBUTES },

	V(KVM_SET_USER_MEMORY_REGION, struct kvm_userspace_memory_region, VM, .fill = fill_region),
	{ "KVM_SET_USER_MEMORY_REGION2", _IOW(KVMIO, 0x49, uint8_t[160]), VM, 160, fill_region, 14 },
	V(KVM_GET_DIRTY_LOG, struct kvm_dirty_log, VM, .fill = fill_dirty),
	V(KVM_CLEAR_DIRTY_LOG, struct kvm_clear_dirty_log, VM, .fill = fill_clear,
	  .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
	{ "KVM_RESET_DIRTY_RINGS", KVM_RESET_DIRTY_RINGS, VM },
	{ "KVM_SET_TSS_ADDR", KVM_SET_TSS_ADDR, VM },
	V(KVM_SET_IDENTITY_MAP_ADDR, uint64_t, VM),
	{ "KVM_SET_NR_MMU_PAGES", KVM_SET_NR_MMU_PAGES, VM },
	{ "KVM_GET_NR_MMU_PAGES", KVM_GET_NR_MMU_PAGES, VM },
	{ "KVM_SET_BOOT_CPU_ID", KVM_SET_BOOT_CPU_ID, VM },
	{ "KVM_CREATE_IRQCHIP", KVM_CREATE_IRQCHIP, VM },
	V(KVM_CREATE_PIT2, struct kvm_pit_config, VM),
	V(KVM_GET_PIT2, struct kvm_pit_state2, VM, .get = true),
	V(KVM_SET_PIT2, struct kvm_pit_state2, VM, .fill = fill_pit),
	V(KVM_GET_IRQCHIP, struct kvm_irqchip, VM, .fill = fill_irqchip, .words = 2),
	V(KVM_SET_IRQCHIP, struct kvm_irqchip, VM, .fill = fill_irqchip, .words = 12),
	V(KVM_IRQ_LINE, struct kvm_irq_level, VM, .fill = fill_line),
	V(KVM_IRQ_LINE_STATUS, struct kvm_irq_level, VM, .fill = fill_line),
	{ "KVM_SET_GSI_ROUTING (MSI)", KVM_SET_GSI_ROUTING, VM, 8 + 48, fill_routing },
	{ "KVM_SET_GSI_ROUTING (pin)", KVM_SET_GSI_ROUTING, VM, 8 + 48, fill_routing_chip },
	V(KVM_REINJECT_CONTROL, struct kvm_reinject_control, VM),
	V(KVM_SIGNAL_MSI, struct kvm_msi, VM, .fill = fill_msi),
	V(KVM_IRQFD, struct kvm_irqfd, VM, .fill = fill_irqfd),
	{ "KVM_IRQFD (resample)", KVM_IRQFD, VM, sizeof(struct kvm_irqfd), fill_irqfd_resample },
	V(KVM_IOEVENTFD, struct kvm_ioeventfd, VM, .fill = fill_ioeventfd),
	{ "KVM_IOEVENTFD (port)", KVM_IOEVENTFD, VM, sizeof(struct kvm_ioeventfd), fill_ioeventfd_pio },
	V(KVM_GET_CLOCK, struct kvm_clock_data, VM, .get = true),
	V(KVM_SET_CLOCK, struct kvm_clock_data, VM, .fill = fill_clock),
	{ "KVM_GET_TSC_KHZ (VM)", KVM_GET_TSC_KHZ, VM },
	V(KVM_ENABLE_CAP, struct kvm_enable_cap, VM, .fill = fill_enable, .words = 8),
	{ "KVM_ENABLE_CAP (quirks)", KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), fill_enable_quirks, 8,
	  KVM_CAP_DISABLE_QUIRKS2 },
	{ "KVM_ENABLE_CAP (split)", KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), fill_enable_split, 8 },
	{ "KVM_ENABLE_CAP (MSR)", KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), fill_enable_msr, 8,
	  KVM_CAP_X86_USER_SPACE_MSR },
	{ "KVM_ENABLE_CAP (log)", KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), fill_enable_log, 8,
	  KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 },
	{ "KVM_ENABLE_CAP (ids)", KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), fill_enable_ids, 8 },
	{ "KVM_ENABLE_CAP (poll)", KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), fill_enable_poll, 8,
	  KVM_CAP_HALT_POLL },
	{ "KVM_ENABLE_CAP (hypercall)", KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), fill_enable_hypercall, 8,
	  KVM_CAP_EXIT_HYPERCALL },
	{ "KVM_ENABLE_CAP (bus)", KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), fill_enable_bus, 8,
	  KVM_CAP_X86_APIC_BUS_CYCLES_NS },
	V(KVM_X86_SET_MSR_FILTER, struct kvm_msr_filter, VM, .fill = fill_filter, .words = 14,
	  .cap = KVM_CAP_X86_MSR_FILTER),
	V(KVM_REGISTER_COALESCED_MMIO, struct kvm_coalesced_mmio_zone, VM, .fill = fill_zone,
	  .cap = KVM_CAP_COALESCED_MMIO),
	V(KVM_UNREGISTER_COALESCED_MMIO, struct kvm_coalesced_mmio_zone, VM, .fill = fill_zone,
	  .cap = KVM_CAP_COALESCED_MMIO),
	{ "KVM_GET_STATS_FD (VM)", KVM_GET_STATS_FD, VM },
	{ "KVM_CREATE_VCPU", KVM_CREATE_VCPU, VM },

	{ "KVM_GET_STATS_FD (vCPU)", KVM_GET_STATS_FD, VCPU },
	V(KVM_GET_REGS, struct kvm_regs, VCPU, .get = true),
	V(KVM_SET_REGS, struct kvm_regs, VCPU, .fill = fill_regs, .words = 2),
	V(KVM_GET_SREGS, struct kvm_sregs, VCPU, .get = true),
	V(KVM_SET_SREGS, struct kvm_sregs, VCPU, .fill = fill_sregs),
	V(KVM_TRANSLATE, struct kvm_translation, VCPU),
	V(KVM_INTERRUPT, struct kvm_interrupt, VCPU, .fill = fill_interrupt),
	{ "KVM_GET_MSRS", KVM_GET_MSRS, VCPU, 24, fill_msrs, 3 },
	{ "KVM_SET_MSRS", KVM_SET_MSRS, VCPU, 24, fill_msrs, 3 },
	{ "KVM_SET_SIGNAL_MASK", KVM_SET_SIGNAL_MASK, VCPU, 12, fill_mask },
	V(KVM_GET_FPU, struct kvm_fpu, VCPU, .get = true),
	V(KVM_SET_FPU, struct kvm_fpu, VCPU, .fill = fill_fpu, .words = 4),
	V(KVM_GET_LAPIC, struct kvm_lapic_state, VCPU, .get = true),
	V(KVM_SET_LAPIC, struct kvm_lapic_state, VCPU, .fill = fill_lapic),
	{ "KVM_SET_CPUID", KVM_SET_CPUID, VCPU, 8, .words = 1 },
	{ "KVM_SET_CPUID2", KVM_SET_CPUID2, VCPU, 8 + 2 * 40, fill_cpuid, 12 },
	{ "KVM_GET_CPUID2", KVM_GET_CPUID2, VCPU, 8 + 256 * 40, fill_cpuid_get, 2 },
	V(KVM_TPR_ACCESS_REPORTING, struct kvm_tpr_access_ctl, VCPU, .cap = KVM_CAP_VAPIC),
	V(KVM_SET_VAPIC_ADDR, uint64_t, VCPU, .fill = fill_vapic),
	V(KVM_GET_MP_STATE, struct kvm_mp_state, VCPU, .get = true),
	V(KVM_SET_MP_STATE, struct kvm_mp_state, VCPU),
	{ "KVM_NMI", KVM_NMI, VCPU },
	V(KVM_X86_SETUP_MCE, uint64_t, VCPU, .fill = fill_mce),
	V(KVM_X86_SET_MCE, struct kvm_x86_mce, VCPU),
	V(KVM_GET_VCPU_EVENTS, struct kvm_vcpu_events, VCPU, .get = true),
	V(KVM_SET_VCPU_EVENTS, struct kvm_vcpu_events, VCPU, .fill = fill_events),
	V(KVM_GET_DEBUGREGS, struct kvm_debugregs, VCPU, .get = true),
	V(KVM_SET_DEBUGREGS, struct kvm_debugregs, VCPU, .fill = fill_debugregs),
	V(KVM_SET_GUEST_DEBUG, struct kvm_guest_debug, VCPU),
	{ "KVM_GET_XSAVE", KVM_GET_XSAVE, VCPU, 4096, .get = true },
	{ "KVM_SET_XSAVE", KVM_SET_XSAVE, VCPU, 4096, fill_xsave, 144 },
	V(KVM_GET_XCRS, struct kvm_xcrs, VCPU, .get = true),
	V(KVM_SET_XCRS, struct kvm_xcrs, VCPU, .fill = fill_xcrs, .words = 12),
	{ "KVM_KVMCLOCK_CTRL", KVM_KVMCLOCK_CTRL, VCPU },
	V(KVM_ENABLE_CAP, struct kvm_enable_cap, VCPU, .fill = fill_enable_pv, .words = 8),
	V(KVM_GET_DEVICE_ATTR, struct kvm_device_attr, VCPU, .fill = fill_attr, .cap = KVM_CAP_VCPU_ATTRIBUTES),
	V(KVM_SET_DEVICE_ATTR, struct kvm_device_attr, VCPU, .fill = fill_attr, .cap = KVM_CAP_VCPU_ATTRIBUTES),
	V(KVM_HAS_DEVICE_ATTR, struct kvm_device_attr, VCPU, .fill = fill_attr, .cap = KVM_CAP_VCPU_ATTRIBUTES),
	{ "KVM_GET_TSC_KHZ", KVM_GET_TSC_KHZ, VCPU },
	{ "KVM_PRE_FAULT_MEMORY", _IOWR(KVMIO, 0xd5, uint64_t[8]), VCPU, 64, fill_pre_fault, 8,
	  KVM_CAP_PRE_FAULT_MEMORY },
};

/* Numbers of a VM or a vCPU that are given as the argument itself. */
static const unsigned long numbers[] = {
	0, 1, 2, 63, 64, 1000, 4096, 0xffffc000, 0xffffd000, 0xffffe000, 0x7fffffff, 0x80000000, 0xffffffff,
	1ul << 32, ~0ul,
};

/* What a field is spoilt with. */
static const uint32_t values[] = { 0, 1, 2, 0x800, 0x1000, 0x7fffffff, 0x80000000, 0xffffffff };

static void set_up(enum state state)
{
	struct kvm_userspace_memory_region r = { .slot = 1, .flags = KVM_MEM_LOG_DIRTY_PAGES, .memory_size = 0x40000 };
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	struct kvm_pit_config pit = { 0 };

	t.state = state;
	t.kvm = device_open();
	t.vm = OK(ioctl(t.kvm, KVM_CREATE_VM, 0));
	t.event = eventfd(0, 0);
	t.timer = eventfd(0, 0);
	t.memory = mmap(NULL, 0x40000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(t.memory != MAP_FAILED);
	r.userspace_addr = (uintptr_t)t.memory;
	OK(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &r));
	if (state == FULL) {
		OK(ioctl(t.vm, KVM_CREATE_IRQCHIP, 0));
		OK(ioctl(t.vm, KVM_CREATE_PIT2, &pit));
	}
	if (state == SPLIT)
		OK(ioctl(t.vm, KVM_ENABLE_CAP, &split));
	t.vcpu = -1;
	if (state != BARE) {
		t.vcpu = OK(ioctl(t.vm, KVM_CREATE_VCPU, 0));
		t.run = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, t.vcpu, 0);
		REQUIRE(t.run != MAP_FAILED);
		set_supported_cpuid(t.kvm, t.vcpu);
	}
}

static void tear_down(void)
{
	if (t.vcpu >= 0) {
		munmap(t.run, 4096);
		close(t.vcpu);
	}
	munmap(t.memory, 0x40000);
	close(t.timer);
	close(t.event);
	close(t.vm);
	close(t.kvm);
}

static char line[4096];
static size_t used;

static void begin(const char *name, const char *what)
{
	used = snprintf(line, sizeof(line), "%s %s %s:", state_name[t.state], name, what);
}

static void add(const char *text)
{
	if (used < sizeof(line) - 32)
		used += snprintf(line + used, sizeof(line) - used, " %s", text);
}

/* What follows repeats what has been said. */
static bool quiet;

static void say(void)
{
	if (verbose && !quiet)
		note("%s", line);
}

/* One call in every wrong way, on a VM of its own. */
static void abuse(const struct call *c, enum state state)
{
	uint8_t *page, *p;
	char what[32];
	int fd;

	set_up(state);
	if (c->cap && !has_extension(t.kvm, c->cap)) {
		begin(c->name, "-");
		add("absent");
		say();
		tear_down();
		return;
	}
	fd = fd_of(c->file);
	if (!c->bytes) {
		begin(c->name, "argument");
		for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
			add(try_call(fd, c->cmd, numbers[i]));
		say();
		tear_down();
		return;
	}
	/* The structure at the end of what is mapped. */
	page = mmap(NULL, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(page != MAP_FAILED);
	munmap(page + 4 * 4096, 4096);
	p = page + 4 * 4096 - c->bytes;
	memset(page, 0, 4 * 4096);
	if (c->fill)
		c->fill(p);

	begin(c->name, "pointer");
	add(try_call(fd, c->cmd, 0));
	add(try_call(fd, c->cmd, 0x1000));
	add(try_call(fd, c->cmd, 0xffff888000000000));
	add(try_call(fd, c->cmd, (unsigned long)p + 4));
	add(try_call(fd, c->cmd, (unsigned long)p + c->bytes));
	mprotect(page, 4 * 4096, PROT_READ);
	add(try_call(fd, c->cmd, (unsigned long)p));
	mprotect(page, 4 * 4096, PROT_READ | PROT_WRITE);
	say();

	begin(c->name, "wrong file, command");
	for (enum file f = DEVICE; f <= VCPU; f++)
		if (f != c->file && fd_of(f) >= 0 && c->cmd != KVM_GET_MSRS && c->cmd != KVM_ENABLE_CAP)
			add(try_call(fd_of(f), c->cmd, (unsigned long)p));
	add(try_call(fd, c->cmd ^ _IOC(0, 0, 0, 8), (unsigned long)p));
	add(try_call(fd, c->cmd ^ _IOC(_IOC_READ, 0, 0, 0), (unsigned long)p));
	add(try_call(-1, c->cmd, (unsigned long)p));
	say();

	memset(page, 0, 4 * 4096);
	if (c->fill)
		c->fill(p);
	begin(c->name, "good");
	add(try_call(fd, c->cmd, (unsigned long)p));
	add(try_call(fd, c->cmd, (unsigned long)p));
	say();

	for (unsigned int w = 0; !c->get && w < (c->words ?: c->bytes / 4); w++) {
		snprintf(what, sizeof(what), "word %u", w);
		begin(c->name, what);
		for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
			memset(page, 0, 4 * 4096);
			if (c->fill)
				c->fill(p);
			((uint32_t *)p)[w] = values[i];
			add(try_call(fd, c->cmd, (unsigned long)p));
		}
		say();
	}
	munmap(page, 4 * 4096);
	tear_down();
}

static void all(enum state state, enum file from, enum file to)
{
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		if (calls[i].file >= from && calls[i].file <= to)
			abuse(&calls[i], state);
}

TEST_SECONDS(bare, 300)
{
	all(BARE, DEVICE, VM);
}

TEST_SECONDS(full, 300)
{
	all(FULL, VM, VCPU);
}

TEST_SECONDS(split, 300)
{
	all(SPLIT, VM, VCPU);
}

TEST_SECONDS(user, 300)
{
	all(USER, VM, VCPU);
}

/* Nothing of it stays: after a first round the next ones, or one of them, take no memory. */
TEST_SECONDS(leak, 300)
{
	static const char *const kinds[] = { "SUnreclaim", "VmallocUsed", "SecPageTables", "PageTables",
					     "KernelStack" };
	long grown = 0;

	if (!is_rvmm())
		skip("looks for leaks of rvmm");
	quiet = true;
	all(FULL, VM, VCPU);
	for (int round = 0; round < 4; round++) {
		grown = 0;
		for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
			grown -= meminfo(kinds[i]);
		all(FULL, VM, VCPU);
		for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
			grown += meminfo(kinds[i]);
		/* A round makes some ninety VMs. */
		if (grown < 90)
			return;
	}
	FAIL("%ld KiB more after a round", grown);
}

/* KVM_RUN's own input is in the shared page. */
TEST(run)
{
	for (enum state state = FULL; state <= USER; state++) {
		set_up(state);
		t.run->immediate_exit = 1;
		begin("KVM_RUN", "argument");
		add(try_call(t.vcpu, KVM_RUN, 1));
		add(try_call(t.vcpu, KVM_RUN, ~0ul));
		add(try_call(t.vcpu, KVM_RUN, 0));
		say();
		begin("KVM_RUN", "cr8");
		t.run->cr8 = 15;
		add(try_call(t.vcpu, KVM_RUN, 0));
		t.run->cr8 = 16;
		add(try_call(t.vcpu, KVM_RUN, 0));
		t.run->cr8 = 1ull << 63;
		add(try_call(t.vcpu, KVM_RUN, 0));
		t.run->cr8 = 0;
		say();
		begin("KVM_RUN", "valid, dirty");
		for (int bit = 0; bit < 64; bit += 3) {
			t.run->kvm_valid_regs = 1ull << bit;
			add(try_call(t.vcpu, KVM_RUN, 0));
			t.run->kvm_valid_regs = 0;
		}
		say();
		tear_down();
	}
}

TEST(files)
{
	void *p;

	set_up(FULL);
	begin("files", "read, write, seek");
	add(read(t.kvm, line, 0) < 0 ? strerrorname(errno) : "ok");
	add(read(t.vm, &p, 1) < 0 ? strerrorname(errno) : "ok");
	add(write(t.vcpu, &p, 1) < 0 ? strerrorname(errno) : "ok");
	add(lseek(t.vm, 1, SEEK_SET) < 0 ? strerrorname(errno) : "ok");
	add(ftruncate(t.vcpu, 1) < 0 ? strerrorname(errno) : "ok");
	say();
	begin("files", "mmap");
	static const struct { int pages, offset, prot, flags; } maps[] = {
		{ 1, 0, PROT_READ, MAP_SHARED }, { 3, 0, PROT_READ | PROT_WRITE, MAP_SHARED },
		{ 1, 2, PROT_READ, MAP_SHARED }, { 1, 0, PROT_READ | PROT_WRITE, MAP_PRIVATE },
		{ 1, 0, PROT_READ, MAP_PRIVATE },
	};
	for (size_t i = 0; i < ARRAY_SIZE(maps); i++) {
		p = mmap(NULL, maps[i].pages * 4096, maps[i].prot, maps[i].flags, t.vcpu, maps[i].offset * 4096l);
		add(p == MAP_FAILED ? strerrorname(errno) : "ok");
		if (p != MAP_FAILED)
			munmap(p, maps[i].pages * 4096);
	}
	p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, t.vm, 0);
	add(p == MAP_FAILED ? strerrorname(errno) : "ok");
	p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, t.kvm, 0);
	add(p == MAP_FAILED ? strerrorname(errno) : "ok");
	say();
	tear_down();
}

/* Another process's address space. */
TEST(foreign)
{
	static uint8_t p[BYTES];
	int status;
	pid_t child;

	set_up(FULL);
	child = fork_child();
	if (!child) {
		for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
			if (calls[i].file == DEVICE)
				continue;
			begin(calls[i].name, "foreign");
			add(try_call(fd_of(calls[i].file), calls[i].cmd, (unsigned long)p));
			say();
		}
		begin("KVM_RUN", "foreign");
		add(try_call(t.vcpu, KVM_RUN, 0));
		say();
		_exit(0);
	}
	REQUIRE(waitpid(child, &status, 0) == child);
	CHECK_EQ(status, 0);
	tear_down();
}

/* Calls come in the wrong order, or twice. */
TEST(order)
{
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	struct kvm_enable_cap exits = { .cap = KVM_CAP_X86_DISABLE_EXITS, .args = { 2 } };
	struct kvm_enable_cap ids = { .cap = KVM_CAP_MAX_VCPU_ID, .args = { 8 } };
	uint64_t identity = 0xfeffc000;
	struct kvm_pit_config pit = { 0 };
	static const char *const what[] = { "new", "with vCPU" };

	for (int vcpu = 0; vcpu < 2; vcpu++) {
		for (enum state first = BARE; first <= SPLIT; first++) {
			set_up(BARE);
			t.state = first;
			begin("order", what[vcpu]);
			if (vcpu)
				add(try_call(t.vm, KVM_CREATE_VCPU, 0));
			if (first == FULL)
				add(try_call(t.vm, KVM_CREATE_IRQCHIP, 0));
			if (first == SPLIT)
				add(try_call(t.vm, KVM_ENABLE_CAP, (unsigned long)&split));
			add(try_call(t.vm, KVM_CREATE_IRQCHIP, 0));
			add(try_call(t.vm, KVM_ENABLE_CAP, (unsigned long)&split));
			add(try_call(t.vm, KVM_CREATE_PIT2, (unsigned long)&pit));
			add(try_call(t.vm, KVM_CREATE_PIT2, (unsigned long)&pit));
			add(try_call(t.vm, KVM_SET_BOOT_CPU_ID, 0));
			add(try_call(t.vm, KVM_SET_IDENTITY_MAP_ADDR, (unsigned long)&identity));
			add(try_call(t.vm, KVM_SET_TSS_ADDR, 0xfffbd000));
			add(try_call(t.vm, KVM_ENABLE_CAP, (unsigned long)&exits));
			add(try_call(t.vm, KVM_ENABLE_CAP, (unsigned long)&ids));
			add(try_call(t.vm, KVM_CREATE_VCPU, 0));
			add(try_call(t.vm, KVM_CREATE_VCPU, 0));
			add(try_call(t.vm, KVM_CREATE_VCPU, 7));
			add(try_call(t.vm, KVM_CREATE_VCPU, 8));
			add(try_call(t.vm, KVM_SET_BOOT_CPU_ID, 0));
			add(try_call(t.vm, KVM_SET_IDENTITY_MAP_ADDR, (unsigned long)&identity));
			say();
			tear_down();
		}
	}
}
