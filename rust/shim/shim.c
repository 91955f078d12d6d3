// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the kernel offers only as inline function or macro.
 *
 * Each is one call (calls.h) or a few lines; policy lives in the Rust files beside this folder. Every function is
 * declared in ../bindings_helper.h, which is where bindgen reads the prototypes.
 */

#include "../bindings_helper.h"
#include <linux/mm_inline.h>
#include <linux/shmem_fs.h>
#include <linux/vfio.h>
#include <linux/vtime.h>

#define SHIM(type, name, args, expression) type rvmm_##name args { return expression; }
#define SHIM_VOID(name, args, statement) void rvmm_##name args { statement; }
#include "calls.h"

/* --- preemption, interrupts, scheduling ------------------------------------------------------- */

int rvmm_yield_to_and_put(struct task_struct *task)
{
	int yielded = yield_to(task, true);

	put_task_struct(task);
	return yielded;
}

/*
 * The time from here on is the guest's. On a CPU without a tick deferred RCU work is sent on its way first.
 * Interrupts are off.
 */
void rvmm_guest_enter(void)
{
	xfer_to_guest_mode_prepare();
	vtime_account_guest_enter();
}

/* The time from here on is the task's again: after the interrupt that ended the guest's time has seen whose it was. */
void rvmm_guest_exit(void)
{
	unsigned long flags;

	if (!vtime_accounting_enabled()) {
		current->flags &= ~PF_VCPU;
		return;
	}
	local_irq_save(flags);
	vtime_account_guest_exit();
	local_irq_restore(flags);
}

void rvmm_sigmask_set(const sigset_t *set, sigset_t *old)
{
	sigset_t tmp = *set;

	sigprocmask(SIG_SETMASK, &tmp, old);
}

/* --- locks ------------------------------------------------------------------------------------ */

/* raw_spin_lock_init() with the caller's class, as its own would be that of all locks. */
void rvmm_raw_spin_lock_init(raw_spinlock_t *lock, const char *name, struct lock_class_key *key)
{
#ifdef CONFIG_DEBUG_SPINLOCK
	__raw_spin_lock_init(lock, name, key, LD_WAIT_SPIN);
#else
	raw_spin_lock_init(lock);
#endif
}

unsigned long rvmm_raw_spin_lock_irqsave(raw_spinlock_t *lock)
{
	unsigned long flags;

	raw_spin_lock_irqsave(lock, flags);
	return flags;
}

/* --- files ------------------------------------------------------------------------------------ */

bool rvmm_file_is_of_module(const struct file *file, const char *name)
{
	const struct module *owner = file->f_op->owner;

	return owner && !strcmp(owner->name, name);
}

/* Asks VFIO, which is loaded if the file is its own. */
#define rvmm_ask_vfio(question, file)						\
({										\
	bool (*fn)(struct file *file) = symbol_get(question);			\
	bool answer = fn && fn(file);						\
										\
	if (fn)									\
		symbol_put(question);						\
	answer;									\
})

bool rvmm_file_is_vfio(struct file *file)
{
	return rvmm_ask_vfio(vfio_file_is_valid, file);
}

bool rvmm_vfio_is_coherent(struct file *file)
{
	return rvmm_ask_vfio(vfio_file_enforced_coherent, file);
}

/* --- pages ------------------------------------------------------------------------------------ */

static void rvmm_free_page_rcu(struct rcu_head *head)
{
	__free_page(container_of(head, struct page, rcu_head));
}

/* Frees a page that is the caller's own after the read sections of RCU that have begun. Any context. */
void rvmm_page_free_rcu(struct page *page)
{
	call_rcu(&page->rcu_head, rvmm_free_page_rcu);
}

/* --- user memory without faults --------------------------------------------------------------- */

/*
 * Page faults are off around each access, so that a missing page ends in the fixup at once; that is what
 * makes these usable with interrupts off. The address is masked, not fenced (see scoped_user_access()).
 */
#define RVMM_GET_USER(bits)							\
int rvmm_get_user_u##bits(u##bits *dst, unsigned long addr)			\
{										\
	const u##bits __user *p = (const u##bits __user *)addr;			\
	u##bits val;								\
										\
	pagefault_disable();							\
	scoped_user_read_access(p, efault)					\
		unsafe_get_user(val, p, efault);				\
	pagefault_enable();							\
	*dst = val;								\
	return 0;								\
efault:										\
	pagefault_enable();							\
	return -EFAULT;								\
}

RVMM_GET_USER(8)
RVMM_GET_USER(32)
RVMM_GET_USER(64)

#define RVMM_PUT_USER(bits)							\
int rvmm_put_user_u##bits(unsigned long addr, u##bits val)			\
{										\
	u##bits __user *p = (u##bits __user *)addr;				\
										\
	pagefault_disable();							\
	scoped_user_write_access(p, efault)					\
		unsafe_put_user(val, p, efault);				\
	pagefault_enable();							\
	return 0;								\
efault:										\
	pagefault_enable();							\
	return -EFAULT;								\
}

RVMM_PUT_USER(8)
RVMM_PUT_USER(32)
RVMM_PUT_USER(64)

int rvmm_copy_from_user_nofault(void *dst, unsigned long src, size_t len)
{
	unsigned long left;

	if (!access_ok((const void __user *)src, len))
		return -EFAULT;
	pagefault_disable();
	left = __copy_from_user_inatomic(dst, (const void __user *)src, len);
	pagefault_enable();
	return left ? -EFAULT : 0;
}

int rvmm_copy_to_user_nofault(unsigned long dst, const void *src, size_t len)
{
	unsigned long left;

	if (!access_ok((void __user *)dst, len))
		return -EFAULT;
	pagefault_disable();
	left = __copy_to_user_inatomic((void __user *)dst, src, len);
	pagefault_enable();
	return left ? -EFAULT : 0;
}

/* --- pages and address spaces ----------------------------------------------------------------- */

void rvmm_set_page_dirty(struct page *page)
{
	if (!PageReserved(page))
		SetPageDirty(page);
}

/* By copy_page(), which moves whole words: memcpy() may move bytes. */
void rvmm_fill_page(struct page *page, const void *from)
{
	copy_page(page_address(page), (void *)from);
}

/*
 * The host's entry of 1 GiB for @addr in @mm, or an empty one where tables end before; *@pudp is where it is.
 *
 * Lockless, as in GUP-fast: with interrupts off a page table cannot be freed, since its freeing waits
 * for an IPI or an RCU grace period. The answer can be stale when it arrives.
 */
static __always_inline pud_t rvmm_host_pud(struct mm_struct *mm, unsigned long addr, pud_t **pudp)
{
	pgd_t *pgdp = pgd_offset(mm, addr), pgd = READ_ONCE(*pgdp);
	p4d_t *p4dp, p4d;

	if (pgd_none(pgd))
		return __pud(0);
	p4dp = p4d_offset_lockless(pgdp, pgd, addr);
	p4d = READ_ONCE(*p4dp);
	if (p4d_none(p4d) || !p4d_present(p4d))
		return __pud(0);
	*pudp = pud_offset_lockless(p4dp, p4d, addr);
	return READ_ONCE(**pudp);
}

/*
 * Level of the leaf that maps @addr in @mm: 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB, 0 = none.
 * Stale as in rvmm_host_pud().
 */
int rvmm_host_mapping_level(struct mm_struct *mm, unsigned long addr)
{
	unsigned long flags;
	int level = 0;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;

	local_irq_save(flags);
	pud = rvmm_host_pud(mm, addr, &pudp);
	if (pud_none(pud) || !pud_present(pud))
		goto out;
	if (pud_leaf(pud)) {
		level = 3;
		goto out;
	}
	pmdp = pmd_offset_lockless(pudp, pud, addr);
	pmd = pmdp_get_lockless(pmdp);
	if (pmd_none(pmd) || !pmd_present(pmd))
		goto out;
	level = pmd_leaf(pmd) ? 2 : 1;
out:
	local_irq_restore(flags);
	return level;
}

/*
 * Whether @page, which a writable entry that is not special maps, is memory that needs no more for a write than to be
 * marked dirty, which is a flag: anonymous memory, hugetlb, shmem (its dirty_folio and hugetlbfs's are
 * noop_dirty_folio). Others have to be told of a write, and may sleep for it; secretmem is not to be reached at all.
 *
 * The entry holds the folio, and the folio its mapping: truncation and hole punching zap all entries, each zapping
 * behind the MMU notifier, before they take a folio out of its mapping. With interrupts off the inode's freeing, by
 * RCU, waits as well.
 */
static bool rvmm_is_plain_memory(struct page *page)
{
	struct folio *folio = page_folio(page);
	struct address_space *mapping;

	if (folio_test_anon(folio) || folio_test_hugetlb(folio))
		return true;
	mapping = READ_ONCE(folio->mapping);
	if (!mapping || (unsigned long)mapping & FOLIO_MAPPING_FLAGS)
		return false;
	return shmem_mapping(mapping);
}

/*
 * Frame of the memory that the current address space maps writable at @addr, if that is anonymous, shmem or hugetlb;
 * returns the level as above, 0 for anything else, which is GUP's business (other file pages, protection keys,
 * copy-on-write, what userfaultfd or an mprotect() write-protects).
 *
 * No reference is taken. No invalidation of @addr is under way, and the MMU notifier's callback for one that begins
 * waits until the caller is done: what is mapped stays so, and allocated, until then. Interrupts are off.
 *
 * Nobody takes away the right to write, nor cleans a page, without telling the notifier: write-protection in all its
 * forms (mprotect, fork, KSM, soft-dirty, userfaultfd, folio_mkclean()) is an invalidation of the range. Neither shmem
 * nor hugetlbfs counts dirty pages (mapping_can_writeback() is false), so that a writable entry of theirs need not be
 * dirty for a write to be noticed; shmem unmaps a folio before it looks at the flag to swap it out.
 *
 * A table of PMDs that hugetlb shares between processes (huge_pmd_share()) is taken from this address space by an
 * invalidation of it, whoever asks for that.
 */
int rvmm_mapped_writable(unsigned long addr, unsigned long *pfn)
{
	const pteval_t need = RVMM_ENTRY_WRITABLE, seen = RVMM_ENTRY_SEEN;
	struct page *page;
	int level;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;
	pte_t pte;

	/* Beyond, and in the kernel's half, the tables would be walked as well. */
	if (addr >= TASK_SIZE_MAX)
		return 0;
	pud = rvmm_host_pud(current->mm, addr, &pudp);
	/* As GUP-fast: an entry that is only halfway a leaf (migration, protnone) has no present bit. */
	if (!(rvmm_pud_flags(pud) & RVMM_ENTRY_PRESENT))
		return 0;
	if (pud_leaf(pud)) {
		if ((rvmm_pud_flags(pud) & seen) != need)
			return 0;
		*pfn = pud_pfn(pud) + ((addr & ~PUD_MASK) >> PAGE_SHIFT);
		level = 3;
		goto found;
	}
	pmdp = pmd_offset_lockless(pudp, pud, addr);
	pmd = pmdp_get_lockless(pmdp);
	if (!(rvmm_pmd_flags(pmd) & RVMM_ENTRY_PRESENT))
		return 0;
	if (pmd_leaf(pmd)) {
		if ((rvmm_pmd_flags(pmd) & seen) != need)
			return 0;
		*pfn = pmd_pfn(pmd) + ((addr & ~PMD_MASK) >> PAGE_SHIFT);
		level = 2;
	} else {
		pte = READ_ONCE(*pte_offset_kernel(&pmd, addr));
		if ((rvmm_pte_flags(pte) & seen) != need)
			return 0;
		*pfn = pte_pfn(pte);
		level = 1;
	}
found:
	page = pfn_to_page(*pfn);
	if (!rvmm_is_plain_memory(page))
		return 0;
	if (!PageDirty(page))
		SetPageDirty(page);
	return level;
}

/*
 * Whether the current address space has nothing at @addr: no page, none that is swapped out or moving, no marker. Only
 * a hint: it can change at once. Interrupts need not be off.
 */
bool rvmm_is_absent(unsigned long addr)
{
	unsigned long flags;
	bool absent = true;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;

	if (!current->mm || addr >= TASK_SIZE_MAX)
		return false;
	local_irq_save(flags);
	pud = rvmm_host_pud(current->mm, addr, &pudp);
	if (pud_none(pud))
		goto out;
	absent = false;
	if (pud_leaf(pud) || !pud_present(pud))
		goto out;
	pmdp = pmd_offset_lockless(pudp, pud, addr);
	pmd = pmdp_get_lockless(pmdp);
	if (pmd_none(pmd))
		absent = true;
	else if (!pmd_leaf(pmd) && pmd_present(pmd))
		absent = pte_none(READ_ONCE(*pte_offset_kernel(&pmd, addr)));
out:
	local_irq_restore(flags);
	return absent;
}

/*
 * Frame behind @addr in a VM_IO or VM_PFNMAP area, faulting it in when needed. Sleeps. EROFS: a write, to an area that
 * may only be read.
 */
int rvmm_follow_pfnmap(struct mm_struct *mm, unsigned long addr, bool write,
		       unsigned long *pfn, bool *writable)
{
	struct follow_pfnmap_args args = {};
	struct vm_area_struct *vma;
	bool faulted = false;
	int r;

	mmap_read_lock(mm);
	for (;;) {
		bool unlocked = false;

		r = -EFAULT;
		vma = vma_lookup(mm, addr);
		if (!vma || !(vma->vm_flags & (VM_IO | VM_PFNMAP)))
			break;
		if (write && !(vma->vm_flags & VM_WRITE)) {
			if (vma->vm_flags & VM_READ)
				r = -EROFS;
			break;
		}

		args.vma = vma;
		args.address = addr;
		r = follow_pfnmap_start(&args);
		if (!r) {
			if (!write || args.writable) {
				*pfn = args.pfn;
				*writable = args.writable;
				follow_pfnmap_end(&args);
				break;
			}
			follow_pfnmap_end(&args);
			r = -EFAULT;
		}
		/* Without the lock having been dropped a second fault would change nothing. */
		if (faulted)
			break;
		r = fixup_user_fault(mm, addr, write ? FAULT_FLAG_WRITE : 0, &unlocked);
		if (r)
			break;
		faulted = !unlocked;
		if (fatal_signal_pending(current)) {
			r = -EINTR;
			break;
		}
	}
	mmap_read_unlock(mm);
	return r;
}

/* Makes @addr of @mm, which has users, resident and, with @write, writable. Sleeps. */
int rvmm_fault_in(struct mm_struct *mm, unsigned long addr, bool write)
{
	bool unlocked = false;
	int r;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	r = fixup_user_fault(mm, addr, write ? FAULT_FLAG_WRITE : 0, &unlocked);
	mmap_read_unlock(mm);
	return r;
}

/*
 * Copies the page at @addr of @mm, whose mmap lock the caller holds, faulted in where needed. EFAULT also for areas
 * with the operations @except. Sleeps, and does not let go of the lock.
 */
int rvmm_copy_user_page(void *to, struct mm_struct *mm, unsigned long addr,
			const struct vm_operations_struct *except)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);
	struct page *page;
	long got;
	int r = 0;

	if (!vma || vma->vm_ops == except)
		return -EFAULT;
	got = get_user_pages_remote(mm, addr, 1, 0, &page, NULL);
	if (got != 1)
		return got < 0 ? got : -EFAULT;
	if (copy_mc_to_kernel(to, page_address(page), PAGE_SIZE))
		r = -EHWPOISON;
	put_page(page);
	return r;
}

/* Whether an area of @mm between @start and @end has the operations @ops. Sleeps. */
bool rvmm_has_area_of(struct mm_struct *mm, unsigned long start, unsigned long end,
		      const struct vm_operations_struct *ops)
{
	struct vm_area_struct *vma;
	bool found = false;

	mmap_read_lock(mm);
	while (!found && start < end) {
		vma = find_vma_intersection(mm, start, end);
		if (!vma)
			break;
		found = vma->vm_ops == ops;
		start = vma->vm_end;
	}
	mmap_read_unlock(mm);
	return found;
}

/* Whether @addr of @mm is device memory, or anything else without page structures. */
bool rvmm_vma_is_device(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma;
	bool device;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, addr);
	device = vma && vma->vm_flags & (VM_IO | VM_PFNMAP);
	mmap_read_unlock(mm);
	return device;
}

/* @vma, which is being set up, is going to hold frames of device memory. */
void rvmm_vma_set_device(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY);
	vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
}

/* --- PCI and IOMMU ---------------------------------------------------------------------------- */

void rvmm_pci_bar(struct pci_dev *pdev, unsigned int bar, u64 *start, u64 *len, u64 *flags)
{
	*start = pci_resource_start(pdev, bar);
	*len = pci_resource_len(pdev, bar);
	*flags = pci_resource_flags(pdev, bar);
	/* Firmware left it without an address. */
	if (*flags & IORESOURCE_UNSET)
		*len = 0;
}

void rvmm_iommu_aperture(struct iommu_domain *domain, u64 *start, u64 *end)
{
	*start = domain->geometry.aperture_start;
	*end = domain->geometry.aperture_end;
}
