/* SPDX-License-Identifier: GPL-2.0 */
/* Dirty logs of every kind (api.rst 4.8, 4.117, 8.29): which one a VM has, and what a ring tells. */
#ifndef LOG_H
#define LOG_H

#include "vm.h"

enum way { BITMAP, MANUAL, INITIALLY_SET, RING, RING_AND_BITMAP };

/* Enough for the entries that are kept free where the processor logs writes by itself. */
#define RING_ENTRIES 1024u
#define RING_BYTES (RING_ENTRIES * sizeof(struct kvm_dirty_gfn))

/* A ring as user space sees it, and the next entry to read. */
struct ring {
	struct kvm_dirty_gfn *entries;
	uint32_t next;
};

static inline void *map(size_t bytes)
{
	void *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(m != MAP_FAILED);
	return m;
}

static inline void need_rings(struct vm *vm)
{
	if (!has_extension(vm->kvm, KVM_CAP_DIRTY_LOG_RING))
		skip("no dirty rings");
}

/* Has the log be of that kind; before there is a vCPU. With rings slot 0 is made anew. */
static inline void choose_log(struct vm *vm, enum way way)
{
	uint64_t manual = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;

	if (way >= RING) {
		need_rings(vm);
		OK(try_slot(vm->fd, 0, 0, 0, 0, NULL));
		OK(enable_cap(vm->fd, KVM_CAP_DIRTY_LOG_RING, RING_BYTES));
		if (way == RING_AND_BITMAP) {
			if (!has_extension(vm->kvm, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP))
				skip("no bitmap beside rings");
			OK(enable_cap(vm->fd, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0));
		}
		vm_slot(vm, 0, 0, 0, vm->bytes, vm->mem);
	} else if (way != BITMAP) {
		if (way == INITIALLY_SET)
			manual |= KVM_DIRTY_LOG_INITIALLY_SET;
		if ((OK(ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)) & manual) != manual)
			skip("no such log");
		OK(enable_cap(vm->fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, manual));
	}
}

static inline struct kvm_dirty_gfn *map_ring(const struct vm *vm)
{
	void *m = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu,
		       KVM_DIRTY_LOG_PAGE_OFFSET * 4096);

	REQUIRE(m != MAP_FAILED);
	return m;
}

/* The next entry, if there is one; it is marked for a reset. */
static inline bool harvest(struct ring *ring, struct kvm_dirty_gfn *entry)
{
	struct kvm_dirty_gfn *e = &ring->entries[ring->next % RING_ENTRIES];

	if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
		return false;
	*entry = *e;
	__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
	ring->next++;
	return true;
}

#endif
