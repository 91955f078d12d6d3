// SPDX-License-Identifier: GPL-2.0
/* Snapshots: the state of one machine by all that reads it, mutated, put into another one, which runs. */
#define _GNU_SOURCE
#include "fuzz.h"

static const struct { unsigned long get, set; } of_vcpu[] = {
	{ KVM_GET_SREGS, KVM_SET_SREGS }, { KVM_GET_SREGS2, KVM_SET_SREGS2 }, { KVM_GET_XCRS, KVM_SET_XCRS },
	{ KVM_GET_XSAVE, KVM_SET_XSAVE }, { KVM_GET_FPU, KVM_SET_FPU }, { KVM_GET_LAPIC, KVM_SET_LAPIC },
	{ KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS }, { KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS },
	{ KVM_GET_MP_STATE, KVM_SET_MP_STATE }, { KVM_GET_REGS, KVM_SET_REGS },
}, of_vm[] = {
	{ KVM_GET_PIT2, KVM_SET_PIT2 }, { KVM_GET_CLOCK, KVM_SET_CLOCK },
};

static void carry(int from, int to, unsigned long get, unsigned long set, void *p, size_t bytes)
{
	if (fuzz_ioctl(from, get, p) < 0)
		memset(p, 0, bytes);
	if (!below(4))
		mutate(p, bytes);
	fuzz_ioctl(to, set, p);
}

static void carry_msrs(int from, int to)
{
	static __thread struct { struct kvm_msr_list h; uint32_t room[512]; } list;
	struct { struct kvm_msrs h; struct kvm_msr_entry e[64]; } m;
	uint32_t first;

	list.h.nmsrs = 512;
	if (ioctl(world.kvm, KVM_GET_MSR_INDEX_LIST, &list) || !list.h.nmsrs)
		return;
	first = below(list.h.nmsrs);
	for (m.h.nmsrs = 0; m.h.nmsrs < 64 && first + m.h.nmsrs < list.h.nmsrs; m.h.nmsrs++)
		m.e[m.h.nmsrs].index = list.h.indices[first + m.h.nmsrs];
	fuzz_ioctl(from, KVM_GET_MSRS, &m);
	if (!below(3))
		for (int k = 1 + below(4); k; k--)
			m.e[below(m.h.nmsrs)].data = value();
	/* It ends at the first one that is refused. */
	while (m.h.nmsrs) {
		int done = fuzz_ioctl(to, KVM_SET_MSRS, &m);

		if (done < 0 || (unsigned int)done >= m.h.nmsrs)
			break;
		m.h.nmsrs -= done + 1;
		memmove(m.e, m.e + done + 1, m.h.nmsrs * sizeof(m.e[0]));
	}
}

void snapshot_step(void)
{
	int a = below(FUZZ_VCPUS), b = below(4) ? (int)below(FUZZ_VCPUS) : a, n = 1 + below(3);
	int from = world.vcpus[a], to = world.vcpus[b];
	int from_vm = world.vms[below(FUZZ_VMS)], to_vm = world.vms[below(FUZZ_VMS)];
	struct kvm_run *run = world.runs[b];

	/* Any order. */
	for (int k = below(ARRAY_SIZE(of_vcpu)) + 4, i = below(ARRAY_SIZE(of_vcpu)); k; k--, i++) {
		i %= ARRAY_SIZE(of_vcpu);
		carry(from, to, of_vcpu[i].get, of_vcpu[i].set, scratch(), _IOC_SIZE(of_vcpu[i].set));
	}
	carry_msrs(from, to);
	for (uint32_t chip = 0; chip < 3; chip++) {
		struct kvm_irqchip c = { .chip_id = chip };

		fuzz_ioctl(from_vm, KVM_GET_IRQCHIP, &c);
		if (!below(3))
			mutate(&c.chip, chip == 2 ? sizeof(struct kvm_ioapic_state) : sizeof(struct kvm_pic_state));
		fuzz_ioctl(to_vm, KVM_SET_IRQCHIP, &c);
	}
	for (size_t i = 0; i < ARRAY_SIZE(of_vm); i++)
		carry(from_vm, to_vm, of_vm[i].get, of_vm[i].set, scratch(), _IOC_SIZE(of_vm[i].set));
	for (; n && run; n--) {
		run->immediate_exit = 0;
		count(&counts->entries);
		if (ioctl(to, KVM_RUN, 0) < 0 && errno != EAGAIN && errno != EINTR)
			break;
	}
}
