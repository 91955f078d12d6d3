// SPDX-License-Identifier: GPL-2.0
/*
 * The fuzzer's ioctls: the structures of the ABI, with what belongs into their fields, so that most calls get past the
 * first check.
 */
#define _GNU_SOURCE
#include "fuzz.h"
#include <poll.h>
#include <stddef.h>

enum file { DEVICE, VM, VCPU, FILES };

/* What a field is filled with; n bounds it. */
enum kind {
	NONE, ANY, BELOW, FLAGS, GPA, HVA, BYTES, BUS, EVENT, ANY_FILE, VCPU_FILE, FORK_FILE, BUFFER, MSR, MSI_ADDRESS,
};

struct field {
	uint16_t at;
	uint8_t bytes, kind;
	uint64_t n;
};

#define MAX_FIELDS 8

struct call {
	unsigned long cmd;
	enum file file;
	unsigned int bytes;		/* of the structure; 0: the argument is a number below n */
	uint64_t n;
	void (*make)(uint8_t *p);	/* in place of the fields */
	void (*mend)(uint8_t *p);	/* what must not be, after all changes */
	struct field fields[MAX_FIELDS];
	bool by_rvmm;
};

/* The rest of an entry is zero. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

#define F(type, member, kind, n) { offsetof(struct type, member), sizeof(((struct type *)0)->member), kind, n }
#define S(cmd, file, type, ...) { cmd, file, sizeof(struct type), .fields = { __VA_ARGS__ } }
#define N(cmd, file, limit) { cmd, file, .n = limit }
#define M(cmd, file, bytes, make) { cmd, file, bytes, 0, make }

static void make_msrs(uint8_t *p)
{
	struct kvm_msrs *m = (void *)p;

	m->nmsrs = 1 + below(8);
	for (int i = 0; i < 8; i++)
		m->entries[i] = (struct kvm_msr_entry){ .index = below(12) ? some_msr() : rnd(), .data = value() };
}

static void make_cpuid(uint8_t *p)
{
	struct kvm_cpuid2 *c = (void *)p;

	c->nent = 256;
	if (ioctl(world.kvm, below(4) ? KVM_GET_SUPPORTED_CPUID : KVM_GET_SUPPORTED_HV_CPUID, c))
		c->nent = below(8);
	else if (!below(3))
		mutate(c->entries, sizeof(c->entries[0]) * (c->nent ?: 1));
}

static void make_list(uint8_t *p)
{
	*(uint32_t *)p = below(2) ? 256 : below(300);
}

static void make_routing(uint8_t *p)
{
	struct kvm_irq_routing *r = (void *)p;

	r->nr = below(20);
	for (int i = 0; i < 20; i++) {
		struct kvm_irq_routing_entry *e = &r->entries[i];

		memset(e, 0, sizeof(*e));
		e->gsi = below(20) ? below(32) : value();
		switch (below(4)) {
		case 0:
			e->type = KVM_IRQ_ROUTING_MSI;
			e->u.msi.address_lo = 0xfee00000 | below(0x100000);
			e->u.msi.data = rnd() & 0xc7ff;
			break;
		case 1:
			e->type = KVM_IRQ_ROUTING_HV_SINT;
			e->u.hv_sint.vcpu = below(4);
			e->u.hv_sint.sint = below(16);
			break;
		default:
			e->type = KVM_IRQ_ROUTING_IRQCHIP;
			e->u.irqchip.irqchip = below(3);
			e->u.irqchip.pin = below(e->u.irqchip.irqchip == 2 ? 24 : 8);
		}
	}
}

static void make_filter(uint8_t *p)
{
	static uint8_t allow[64], none[64];
	struct kvm_msr_filter *f = (void *)p;

	memset(allow, 0xff, sizeof(allow));
	memset(f, 0, sizeof(*f));
	f->flags = below(2);
	for (int i = 0; i < 4; i++)
		f->ranges[i] = (struct kvm_msr_filter_range){
			.flags = 1 + below(3), .nmsrs = below(512), .base = some_msr(),
			.bitmap = below(2) ? allow : none,
		};
}

static void make_region(uint8_t *p)
{
	struct kvm_userspace_memory_region *r = (void *)p;
	static const uint32_t flags[] = { 0, 0, 1, 1, 2, 3, RVMM_MEM_MISSING, RVMM_MEM_MISSING | 1 };
	size_t at = below(FUZZ_MEM) & ~0xfffu;

	memset(p, 0, 160);	/* and of KVM_SET_USER_MEMORY_REGION2 */
	*r = (struct kvm_userspace_memory_region){
		.slot = below(5) | (below(12) ? 0 : 1 << 16), .flags = flags[below(ARRAY_SIZE(flags))],
		.guest_phys_addr = (uint64_t)below(64) << (below(2) ? 12 : 20),
		.memory_size = (1 + below(FUZZ_MEM - at)) & ~0xfffu, .userspace_addr = (uintptr_t)world.mem + at,
	};
	switch (below(8)) {
	case 0 ... 2:	/* the slot that guests live in: on, off, logged, elsewhere */
		*r = (struct kvm_userspace_memory_region){ 0, below(2), below(4) * 0x200000, below(4) ? FUZZ_MEM : 0,
							   (uintptr_t)world.mem };
		break;
	case 3:
		r->memory_size = 0;
		break;
	case 4:	/* a vCPU's shared pages as guest memory */
		r->userspace_addr = (uintptr_t)world.runs[below(FUZZ_VCPUS)];
		r->memory_size = 0x1000 * (1 + below(3));
		break;
	default:
		break;
	}
}

static void make_enable(uint8_t *p)
{
	static const uint32_t caps[] = {
		KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_EXIT_ON_EMULATION_FAILURE,
		KVM_CAP_MSR_PLATFORM_INFO, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_X2APIC_API,
		KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_CAP_DIRTY_LOG_RING,
		KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_DISABLE_EXITS,
		KVM_CAP_MAX_VCPU_ID, KVM_CAP_HALT_POLL, KVM_CAP_VM_DISABLE_NX_HUGE_PAGES, RVMM_CAP_MISSING,
		237 /* KVM_CAP_X86_APIC_BUS_CYCLES_NS */, KVM_CAP_HYPERV_SYNIC, KVM_CAP_HYPERV_SYNIC2,
		KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_HYPERV_ENFORCE_CPUID,
	};

	*(struct kvm_enable_cap *)p = (struct kvm_enable_cap){
		.cap = caps[below(ARRAY_SIZE(caps))], .args = { below(3) ? below(8) : value() },
	};
	if (!below(3))
		((struct kvm_enable_cap *)p)->args[0] = 0x1000u << below(6);
}

static void make_clear_log(uint8_t *p)
{
	static __thread uint8_t bits[2048];

	fill(bits, sizeof(bits));
	*(struct kvm_clear_dirty_log *)p = (struct kvm_clear_dirty_log){
		.slot = below(4), .num_pages = below(33) * 64, .first_page = below(8) * 64, .dirty_bitmap = bits,
	};
}

static void make_get_log(uint8_t *p)
{
	*(struct kvm_dirty_log *)p = (struct kvm_dirty_log){
		.slot = below(4), .dirty_bitmap = below(8) ? scratch() + 8192 : (void *)value(),
	};
}

static void make_mask(uint8_t *p)
{
	*(uint32_t *)p = 8;
	*(uint64_t *)(p + 4) = rnd();
}

/* The signal that ends guests is not blocked, nor are those for mistakes in memory. */
static void mend_mask(uint8_t *p)
{
	for (int i = 4; i < 12; i++)
		p[i] = i == 5 ? p[i] & ~6 : i == 4 ? p[i] & ~0x40 : p[i];
}

static void make_touches(uint8_t *p)
{
	*(struct rvmm_touches *)p = (struct rvmm_touches){ below(4), below(64), 0, (uintptr_t)scratch() + 8192 };
}

static void make_debug(uint8_t *p)
{
	struct kvm_guest_debug *d = (void *)p;

	memset(d, 0, sizeof(*d));
	d->control = below(4) | (rnd() & 0x3f) << 16;
	for (int i = 0; i < 8; i++)
		d->arch.debugreg[i] = i == 7 ? rnd() & 0xffff07ff : value();
}

static void make_attr(uint8_t *p)
{
	*(struct kvm_device_attr *)p = (struct kvm_device_attr){
		.group = below(3), .attr = below(3), .addr = below(4) ? (uintptr_t)scratch() + 8192 : value(),
	};
}

/* State of some kind as it is, or of another vCPU, with changes: what KVM_SET_… is given. */
#define AS_IT_IS(name, get, of)							\
static void name(uint8_t *p)							\
{										\
	int *all = (of) == VCPU ? world.vcpus : world.vms;			\
	unsigned int n = (of) == VCPU ? FUZZ_VCPUS : FUZZ_VMS;			\
	int fd = all[below(n)];							\
										\
	if (below(4))								\
		ioctl(fd, get, p);						\
	else									\
		fill(p, _IOC_SIZE(get));					\
	if (below(3))								\
		mutate(p, _IOC_SIZE(get));					\
}
AS_IT_IS(make_regs, KVM_GET_REGS, VCPU)
AS_IT_IS(make_sregs, KVM_GET_SREGS, VCPU)
AS_IT_IS(make_sregs2, KVM_GET_SREGS2, VCPU)
AS_IT_IS(make_fpu, KVM_GET_FPU, VCPU)
AS_IT_IS(make_xsave, KVM_GET_XSAVE, VCPU)
AS_IT_IS(make_xcrs, KVM_GET_XCRS, VCPU)
AS_IT_IS(make_lapic, KVM_GET_LAPIC, VCPU)
AS_IT_IS(make_events, KVM_GET_VCPU_EVENTS, VCPU)
AS_IT_IS(make_debugregs, KVM_GET_DEBUGREGS, VCPU)
AS_IT_IS(make_pit, KVM_GET_PIT2, VM)
AS_IT_IS(make_clock, KVM_GET_CLOCK, VM)

static void make_chip(uint8_t *p)
{
	struct kvm_irqchip *chip = (void *)p;

	memset(chip, 0, sizeof(*chip));
	chip->chip_id = below(3);
	if (below(4))
		ioctl(world.vms[below(FUZZ_VMS)], KVM_GET_IRQCHIP, chip);
	else
		fill(p + 8, sizeof(*chip) - 8);
	if (below(3))
		mutate(p + 8, below(2) ? 64 : sizeof(*chip) - 8);
}

#define STATE(set, make) { set, VCPU, _IOC_SIZE(set), 0, make }

static const struct call calls[] = {
	N(KVM_CREATE_VM, DEVICE, 2), N(KVM_CHECK_EXTENSION, DEVICE, 260),
	M(KVM_GET_SUPPORTED_CPUID, DEVICE, 8, make_list), M(KVM_GET_SUPPORTED_HV_CPUID, DEVICE, 8, make_list),
	M(KVM_GET_EMULATED_CPUID, DEVICE, 8, make_list), M(KVM_GET_MSR_INDEX_LIST, DEVICE, 4, make_list),
	M(KVM_GET_MSR_FEATURE_INDEX_LIST, DEVICE, 4, make_list), M(KVM_GET_MSRS, DEVICE, 136, make_msrs),
	M(KVM_GET_DEVICE_ATTR, DEVICE, 24, make_attr),

	M(KVM_SET_USER_MEMORY_REGION, VM, 32, make_region), M(KVM_SET_USER_MEMORY_REGION, VM, 32, make_region),
	M(KVM_SET_USER_MEMORY_REGION, VM, 32, make_region), M(_IOW(KVMIO, 0x49, uint8_t[160]), VM, 160, make_region),
	M(KVM_GET_DIRTY_LOG, VM, 16, make_get_log), M(KVM_GET_DIRTY_LOG, VM, 16, make_get_log),
	M(KVM_CLEAR_DIRTY_LOG, VM, 24, make_clear_log), N(KVM_RESET_DIRTY_RINGS, VM, 1),
	N(KVM_SET_TSS_ADDR, VM, ~0u), N(KVM_SET_NR_MMU_PAGES, VM, 200), N(KVM_SET_BOOT_CPU_ID, VM, 3),
	N(KVM_CREATE_IRQCHIP, VM, 1),
	S(KVM_CREATE_PIT2, VM, kvm_pit_config, F(kvm_pit_config, flags, FLAGS, 1)), N(KVM_CREATE_PIT, VM, 1),
	M(KVM_SET_PIT2, VM, sizeof(struct kvm_pit_state2), make_pit), S(KVM_GET_PIT2, VM, kvm_pit_state2),
	M(KVM_SET_IRQCHIP, VM, sizeof(struct kvm_irqchip), make_chip),
	M(KVM_GET_IRQCHIP, VM, sizeof(struct kvm_irqchip), make_chip),
	S(KVM_IRQ_LINE, VM, kvm_irq_level, F(kvm_irq_level, irq, BELOW, 24), F(kvm_irq_level, level, BELOW, 2)),
	S(KVM_IRQ_LINE_STATUS, VM, kvm_irq_level, F(kvm_irq_level, irq, BELOW, 26), F(kvm_irq_level, level, BELOW, 2)),
	M(KVM_SET_GSI_ROUTING, VM, 8 + 20 * 48, make_routing),
	S(KVM_REINJECT_CONTROL, VM, kvm_reinject_control, F(kvm_reinject_control, pit_reinject, BELOW, 2)),
	S(KVM_SIGNAL_MSI, VM, kvm_msi, F(kvm_msi, address_lo, MSI_ADDRESS, 0), F(kvm_msi, address_hi, BELOW, 2),
	  F(kvm_msi, data, FLAGS, 0xc7ff)),
	S(KVM_IRQFD, VM, kvm_irqfd, F(kvm_irqfd, fd, EVENT, 0), F(kvm_irqfd, gsi, BELOW, 26),
	  F(kvm_irqfd, flags, BELOW, 4), F(kvm_irqfd, resamplefd, EVENT, 0)),
	S(KVM_IOEVENTFD, VM, kvm_ioeventfd, F(kvm_ioeventfd, datamatch, BELOW, 4), F(kvm_ioeventfd, addr, BUS, 0),
	  F(kvm_ioeventfd, len, BELOW, 9), F(kvm_ioeventfd, fd, EVENT, 0), F(kvm_ioeventfd, flags, BELOW, 8)),
	S(KVM_REGISTER_COALESCED_MMIO, VM, kvm_coalesced_mmio_zone, F(kvm_coalesced_mmio_zone, addr, BUS, 0),
	  F(kvm_coalesced_mmio_zone, size, BELOW, 0x2000), F(kvm_coalesced_mmio_zone, pio, BELOW, 2)),
	S(KVM_UNREGISTER_COALESCED_MMIO, VM, kvm_coalesced_mmio_zone, F(kvm_coalesced_mmio_zone, addr, BUS, 0),
	  F(kvm_coalesced_mmio_zone, size, BELOW, 0x2000), F(kvm_coalesced_mmio_zone, pio, BELOW, 2)),
	M(KVM_SET_CLOCK, VM, sizeof(struct kvm_clock_data), make_clock), S(KVM_GET_CLOCK, VM, kvm_clock_data),
	N(KVM_SET_TSC_KHZ, VM, 5000000), N(KVM_GET_TSC_KHZ, VM, 1),
	M(KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), make_enable),
	M(KVM_ENABLE_CAP, VM, sizeof(struct kvm_enable_cap), make_enable),
	M(KVM_X86_SET_MSR_FILTER, VM, sizeof(struct kvm_msr_filter), make_filter),
	S(KVM_HYPERV_EVENTFD, VM, kvm_hyperv_eventfd, F(kvm_hyperv_eventfd, conn_id, BELOW, 8),
	  F(kvm_hyperv_eventfd, fd, EVENT, 0), F(kvm_hyperv_eventfd, flags, BELOW, 2)),
	N(KVM_GET_STATS_FD, VM, 1),
	S(KVM_CREATE_DEVICE, VM, kvm_create_device, F(kvm_create_device, type, BELOW, 9),
	  F(kvm_create_device, flags, FLAGS, 1)),
	S(RVMM_RESET_POINT, VM, rvmm_reset_point, F(rvmm_reset_point, pages, BELOW, 4096)),
	S(RVMM_RESET, VM, rvmm_reset),
	S(RVMM_TOUCH, VM, rvmm_touch, F(rvmm_touch, gpa, GPA, 0), F(rvmm_touch, size, BYTES, 0)),
	N(RVMM_FORK, VM, 1), N(RVMM_MISSING_QUEUE, VM, 1), N(RVMM_RECORD_TOUCHES, VM, 2000),
	M(RVMM_GET_TOUCHES, VM, sizeof(struct rvmm_touches), make_touches),
	S(RVMM_ASSIGN_DEVICE, VM, rvmm_assign_device, F(rvmm_assign_device, devfn, BELOW, 64)),

	N(KVM_GET_STATS_FD, VCPU, 1),
	STATE(KVM_SET_REGS, make_regs), STATE(KVM_SET_SREGS, make_sregs), STATE(KVM_SET_SREGS2, make_sregs2),
	STATE(KVM_SET_FPU, make_fpu), STATE(KVM_SET_XSAVE, make_xsave), STATE(KVM_SET_XCRS, make_xcrs),
	STATE(KVM_SET_LAPIC, make_lapic), STATE(KVM_SET_LAPIC, make_lapic), STATE(KVM_SET_VCPU_EVENTS, make_events),
	STATE(KVM_SET_VCPU_EVENTS, make_events), STATE(KVM_SET_DEBUGREGS, make_debugregs),
	S(KVM_GET_REGS, VCPU, kvm_regs), S(KVM_GET_SREGS, VCPU, kvm_sregs), S(KVM_GET_LAPIC, VCPU, kvm_lapic_state),
	S(KVM_GET_MP_STATE, VCPU, kvm_mp_state),
	S(KVM_SET_MP_STATE, VCPU, kvm_mp_state, F(kvm_mp_state, mp_state, BELOW, 6)),
	S(KVM_TRANSLATE, VCPU, kvm_translation, F(kvm_translation, linear_address, ANY, 0)),
	S(KVM_INTERRUPT, VCPU, kvm_interrupt, F(kvm_interrupt, irq, BELOW, 257)),
	M(KVM_GET_MSRS, VCPU, 136, make_msrs), M(KVM_SET_MSRS, VCPU, 136, make_msrs),
	M(KVM_SET_MSRS, VCPU, 136, make_msrs), M(KVM_SET_MSRS, VCPU, 136, make_msrs),
	{ KVM_SET_SIGNAL_MASK, VCPU, 12, 0, make_mask, mend_mask },
	M(KVM_SET_CPUID2, VCPU, 8, make_cpuid), M(KVM_GET_CPUID2, VCPU, 8, make_list),
	S(KVM_TPR_ACCESS_REPORTING, VCPU, kvm_tpr_access_ctl, F(kvm_tpr_access_ctl, enabled, BELOW, 2)),
	{ KVM_SET_VAPIC_ADDR, VCPU, 8, .fields = { { 0, 8, GPA } } },
	N(KVM_NMI, VCPU, 1), N(KVM_SMI, VCPU, 1), N(KVM_KVMCLOCK_CTRL, VCPU, 1), N(KVM_SET_TSC_KHZ, VCPU, 5000000),
	{ KVM_X86_SETUP_MCE, VCPU, 8, .fields = { { 0, 1, BELOW, 40 }, { 3, 1, FLAGS, 1 } } },
	S(KVM_X86_SET_MCE, VCPU, kvm_x86_mce, F(kvm_x86_mce, status, ANY, 0), F(kvm_x86_mce, mcg_status, BELOW, 8),
	  F(kvm_x86_mce, bank, BELOW, 34)),
	M(KVM_SET_GUEST_DEBUG, VCPU, sizeof(struct kvm_guest_debug), make_debug),
	M(KVM_ENABLE_CAP, VCPU, sizeof(struct kvm_enable_cap), make_enable),
	M(KVM_SET_DEVICE_ATTR, VCPU, 24, make_attr), M(KVM_GET_DEVICE_ATTR, VCPU, 24, make_attr),
	{ _IOWR(KVMIO, 0xd5, uint64_t[8]), VCPU, 64, .fields = { { 0, 8, GPA }, { 8, 8, BYTES } } },
	S(RVMM_GET_ENTRY_FAILURE, VCPU, rvmm_entry_failure),
	S(RVMM_RECORD, VCPU, rvmm_record_ring, F(rvmm_record_ring, records, BELOW, 4096),
	  F(rvmm_record_ring, flags, BELOW, 2)),
	S(RVMM_MEASURE_ROOT, VCPU, rvmm_root_cost, F(rvmm_root_cost, index, BELOW, 16)),

	/* Files that have come of others: a fork's, a record's, a queue's, a device's, statistics'. */
	N(RVMM_BECOME, VM, 0),
	{ RVMM_RECORD_CONSUMED, FILES, 8, .fields = { { 0, 8, BELOW, 10000 } } },
	S(RVMM_MISSING_RESOLVE, FILES, rvmm_missing_range, F(rvmm_missing_range, gpa, GPA, 0),
	  F(rvmm_missing_range, size, BYTES, 0)),
	M(KVM_SET_DEVICE_ATTR, FILES, 24, make_attr), M(KVM_HAS_DEVICE_ATTR, FILES, 24, make_attr),
};

int fuzz_ioctl(int fd, unsigned long cmd, void *arg)
{
	int result = ioctl(fd, cmd, arg);

	count(&counts->ioctls);
	if (result >= 0)
		count(&counts->done);
	return result;
}

static int some_file(void)
{
	return world.files[below(FUZZ_FILES)];
}

static uint64_t field_value(const struct field *f)
{
	switch (f->kind) {
	case BELOW: return below(f->n);
	case FLAGS: return rnd() & f->n;
	case GPA: return (uint64_t)below(FUZZ_MEM + 0x10000) & ~0xfffull;
	case HVA: return (uintptr_t)world.mem + (below(FUZZ_MEM) & ~0xfffu);
	case BYTES: return (1 + below(64)) << 12;
	case BUS: return below(3) ? below(64) : below(2) ? 0x10000000 + below(0x2000) : (uint64_t)below(FUZZ_MEM);
	case EVENT: return below(16) ? world.events[below(FUZZ_EVENTS)] : some_file();
	case ANY_FILE: return some_file();
	case VCPU_FILE: return world.vcpus[below(FUZZ_VCPUS)];
	case BUFFER: return (uintptr_t)scratch() + 8192;
	case MSR: return some_msr();
	case MSI_ADDRESS: return 0xfee00000 | below(0x100000);
	default: return value();
	}
}

static int target(enum file file)
{
	int fd;

	/* The wrong kind of file now and then. */
	if (!below(64))
		file = below(4);
	switch (file) {
	case DEVICE: fd = world.kvm; break;
	case VM: fd = world.vms[below(FUZZ_VMS)]; break;
	case VCPU: fd = world.vcpus[below(FUZZ_VCPUS)]; break;
	default: fd = some_file(); break;
	}
	return fd;
}

static void table_call(void)
{
	const struct call *c = &calls[below(ARRAY_SIZE(calls))];
	uint8_t *p = scratch();
	int fd = target(c->file), result;
	void *arg = p;

	if (!c->bytes) {
		arg = (void *)(uintptr_t)(c->cmd == RVMM_BECOME ? some_file() : below(16) ? below(c->n) : value());
	} else {
		memset(p, 0, c->bytes);
		if (c->make)
			c->make(p);
		for (const struct field *f = c->fields; !c->make && f < c->fields + MAX_FIELDS && f->kind; f++) {
			uint64_t v = field_value(f);

			memcpy(p + f->at, &v, f->bytes);
		}
		if (!below(4))
			mutate(p, c->bytes);
		if (c->mend)
			c->mend(p);
		if (!below(50) && !c->mend)
			arg = (void *)value();
	}
	result = fuzz_ioctl(fd, c->cmd, arg);
	if (result >= 0 && (c->cmd == KVM_CREATE_VM || c->cmd == KVM_GET_STATS_FD || c->cmd == RVMM_FORK ||
			    c->cmd == RVMM_MISSING_QUEUE || c->cmd == RVMM_RECORD))
		keep_file(result);
	if (result >= 0 && c->cmd == KVM_CREATE_DEVICE && arg == p)
		keep_file(((struct kvm_create_device *)p)->fd);
}

/* A number that may be an ioctl's. */
static void any_call(void)
{
	unsigned long cmd = (0xae00 + below(0x100)) | below(4) << 30 | below(0x400) << 16;
	int fd = target(below(4));
	void *arg;

	if (!below(4))
		cmd = (uint32_t)rnd();
	else if (!below(4))
		cmd = (RVMM_IOC << 8) | below(0x50) | below(4) << 30 | below(0x400) << 16;
	fill(scratch(), 8192);
	arg = below(4) ? scratch() : (void *)value();
	if (cmd != KVM_SET_SIGNAL_MASK)
		fuzz_ioctl(fd, cmd, arg);
}

/* read(), write(), poll() and mmap() of whatever file it is. */
static void file_call(void)
{
	int fd = below(2) ? some_file() : target(below(3));
	struct pollfd p = { .fd = fd, .events = POLLIN };
	size_t pages = 1 + below(4);
	void *m;

	switch (below(4)) {
	case 0:
		if (pread(fd, scratch(), below(8192), below(2) ? below(4096) : value() & INT64_MAX) < 0)
			errno = 0;
		break;
	case 1:
		poll(&p, 1, 0);
		break;
	case 2:
		if (read(fd, scratch(), below(4096)) < 0)
			errno = 0;
		break;
	default:
		m = mmap(NULL, pages << 12, below(8), below(2) ? MAP_SHARED : MAP_PRIVATE, fd,
			 below(2) ? (uintptr_t)world.mem + (below(FUZZ_MEM) & ~0xfffu) : below(80) << 12);
		if (m == MAP_FAILED)
			break;
		/* As guest memory, for as long as it is there. */
		if (below(2)) {
			struct kvm_userspace_memory_region r = { 3, below(2), 0x1000000, pages << 12, (uintptr_t)m };

			fuzz_ioctl(world.vms[below(FUZZ_VMS)], KVM_SET_USER_MEMORY_REGION, &r);
		}
		if (below(2))
			munmap(m, pages << 12);
	}
	count(&counts->host);
}

void ioctl_step(void)
{
	switch (below(16)) {
	case 0:
		any_call();
		break;
	case 1:
		file_call();
		break;
	default:
		table_call();
	}
}
