// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the kernel offers only as inline function or macro.
 *
 * Each is one call or a few lines; policy lives in the Rust files beside this folder. Every function is
 * declared in ../bindings_helper.h, which is where bindgen reads the prototypes.
 */

#include "../bindings_helper.h"
#include <linux/mm_inline.h>
#include <linux/vtime.h>

/* --- preemption, interrupts, scheduling ------------------------------------------------------- */

void rvmm_preempt_disable(void)
{
	preempt_disable();
}

void rvmm_preempt_enable(void)
{
	preempt_enable();
}

unsigned int rvmm_raw_cpu(void)
{
	return raw_smp_processor_id();
}

#ifdef CONFIG_TRACE_IRQFLAGS
void rvmm_trace_hardirqs_on(void)
{
	trace_hardirqs_on();
}

void rvmm_trace_hardirqs_off(void)
{
	trace_hardirqs_off();
}
#endif

struct mm_struct *rvmm_current_mm(void)
{
	return current->mm;
}

bool rvmm_signal_pending(void)
{
	return signal_pending(current);
}

bool rvmm_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

unsigned long long rvmm_run_delay(void)
{
	return current->sched_info.run_delay;
}

struct pid *rvmm_current_pid(void)
{
	return task_pid(current);
}

struct pid *rvmm_get_current_pid(void)
{
	return get_task_pid(current, PIDTYPE_PID);
}

struct task_struct *rvmm_get_pid_task(struct pid *pid)
{
	return get_pid_task(pid, PIDTYPE_PID);
}

int rvmm_yield_to_and_put(struct task_struct *task)
{
	int yielded = yield_to(task, true);

	put_task_struct(task);
	return yielded;
}

void rvmm_cond_resched(void)
{
	cond_resched();
}

bool rvmm_xfer_to_guest_pending(void)
{
	return __xfer_to_guest_mode_work_pending();
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

/* A guest ran: this CPU holds no reference to anything under RCU. Interrupts are off. */
void rvmm_guest_quiescent(void)
{
	rcu_virt_note_context_switch();
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

void rvmm_set_task_interruptible(void)
{
	set_current_state(TASK_INTERRUPTIBLE);
}

void rvmm_rcuwait_prepare(struct rcuwait *w)
{
	prepare_to_rcuwait(w);
}

void rvmm_sigmask_set(const sigset_t *set, sigset_t *old)
{
	sigset_t tmp = *set;

	sigprocmask(SIG_SETMASK, &tmp, old);
}

/* --- locks ------------------------------------------------------------------------------------ */

int rvmm_mutex_lock_killable(struct mutex *lock)
{
	return mutex_lock_killable(lock);
}

void rvmm_raw_spin_lock_init(raw_spinlock_t *lock)
{
	raw_spin_lock_init(lock);
}

void rvmm_raw_spin_lock(raw_spinlock_t *lock)
{
	raw_spin_lock(lock);
}

bool rvmm_raw_spin_trylock(raw_spinlock_t *lock)
{
	return raw_spin_trylock(lock);
}

void rvmm_raw_spin_unlock(raw_spinlock_t *lock)
{
	raw_spin_unlock(lock);
}

unsigned long rvmm_raw_spin_lock_irqsave(raw_spinlock_t *lock)
{
	unsigned long flags;

	raw_spin_lock_irqsave(lock, flags);
	return flags;
}

void rvmm_raw_spin_unlock_irqrestore(raw_spinlock_t *lock, unsigned long flags)
{
	raw_spin_unlock_irqrestore(lock, flags);
}

/* --- other CPUs ------------------------------------------------------------------------------- */

void rvmm_send_reschedule(unsigned int cpu)
{
	arch_smp_send_reschedule(cpu);
}

unsigned int rvmm_nr_cpu_ids(void)
{
	return nr_cpu_ids;
}

unsigned int rvmm_num_online_cpus(void)
{
	return num_online_cpus();
}

bool rvmm_cpu_online(unsigned int cpu)
{
	return cpu < nr_cpu_ids && cpu_online(cpu);
}

/* --- files ------------------------------------------------------------------------------------ */

/*
 * Never called: inodes of anonymous files cannot be opened again. Its address in file_operations.open
 * marks the tables that anon_inode.rs made, whatever their type.
 */
int rvmm_anon_open(struct inode *inode, struct file *file)
{
	return -ENXIO;
}

__poll_t rvmm_vfs_poll(struct file *file, poll_table *pt)
{
	return vfs_poll(file, pt);
}

void rvmm_init_poll_funcptr(poll_table *pt, poll_queue_proc proc)
{
	init_poll_funcptr(pt, proc);
}

void rvmm_init_waitqueue_func(wait_queue_entry_t *entry, wait_queue_func_t func)
{
	init_waitqueue_func_entry(entry, func);
}

bool rvmm_file_is_of_module(const struct file *file, const char *name)
{
	const struct module *owner = file->f_op->owner;

	return owner && !strcmp(owner->name, name);
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

/* 0: exchanged, 1: *old differed and now holds what was found, -EFAULT: not accessible. */
#define RVMM_CMPXCHG_USER(bits)							\
int rvmm_cmpxchg_user_u##bits(unsigned long addr, u##bits *old, u##bits new)	\
{										\
	u##bits __user *p = (u##bits __user *)addr;				\
	bool done = false;							\
										\
	if (!access_ok(p, sizeof(*p)))						\
		return -EFAULT;							\
	pagefault_disable();							\
	__uaccess_begin_nospec();						\
	done = unsafe_try_cmpxchg_user(p, old, new, efault);			\
	__uaccess_end();							\
	pagefault_enable();							\
	return done ? 0 : 1;							\
efault:										\
	__uaccess_end();							\
	pagefault_enable();							\
	return -EFAULT;								\
}

RVMM_CMPXCHG_USER(8)
RVMM_CMPXCHG_USER(16)
RVMM_CMPXCHG_USER(32)
RVMM_CMPXCHG_USER(64)

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

void *rvmm_page_address(struct page *page)
{
	return page_address(page);
}

unsigned long rvmm_page_to_pfn(struct page *page)
{
	return page_to_pfn(page);
}

size_t rvmm_pages_contiguous(struct page **pages, size_t count)
{
	return num_pages_contiguous(pages, count);
}

struct page *rvmm_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

bool rvmm_pfn_is_ram(unsigned long pfn)
{
	return pfn_valid(pfn) && !PageReserved(pfn_to_page(pfn));
}

void rvmm_get_page(struct page *page)
{
	get_page(page);
}

void rvmm_put_page(struct page *page)
{
	put_page(page);
}

void rvmm_set_page_dirty(struct page *page)
{
	if (!PageReserved(page))
		SetPageDirty(page);
}

/*
 * Level of the leaf that maps @addr in @mm: 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB, 0 = none.
 *
 * Lockless, as in GUP-fast: with interrupts off a page table cannot be freed, since its freeing waits
 * for an IPI or an RCU grace period. The answer can be stale when it arrives.
 */
int rvmm_host_mapping_level(struct mm_struct *mm, unsigned long addr)
{
	unsigned long flags;
	int level = 0;
	pgd_t *pgdp, pgd;
	p4d_t *p4dp, p4d;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;

	local_irq_save(flags);
	pgdp = pgd_offset(mm, addr);
	pgd = READ_ONCE(*pgdp);
	if (pgd_none(pgd))
		goto out;
	p4dp = p4d_offset_lockless(pgdp, pgd, addr);
	p4d = READ_ONCE(*p4dp);
	if (p4d_none(p4d) || !p4d_present(p4d))
		goto out;
	pudp = pud_offset_lockless(p4dp, p4d, addr);
	pud = READ_ONCE(*pudp);
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
 * Frame of anonymous memory that the current address space maps writable at @addr; returns the level
 * as above, 0 for anything else, which is GUP's business (file pages, protection keys, copy-on-write).
 *
 * No reference is taken. The caller holds the lock that the MMU notifier's callbacks take, and no
 * invalidation of @addr is under way: what is mapped stays so, and allocated, until the lock is released.
 * Interrupts are off.
 */
int rvmm_mapped_anon(unsigned long addr, unsigned long *pfn)
{
	const pteval_t need = _PAGE_PRESENT | _PAGE_RW | _PAGE_USER;
	const pteval_t seen = need | _PAGE_SPECIAL | _PAGE_PKEY_MASK;
	struct page *page;
	int level;
	pgd_t *pgdp, pgd;
	p4d_t *p4dp, p4d;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;
	pte_t pte;

	pgdp = pgd_offset(current->mm, addr);
	pgd = READ_ONCE(*pgdp);
	if (pgd_none(pgd))
		return 0;
	p4dp = p4d_offset_lockless(pgdp, pgd, addr);
	p4d = READ_ONCE(*p4dp);
	if (p4d_none(p4d) || !p4d_present(p4d))
		return 0;
	pudp = pud_offset_lockless(p4dp, p4d, addr);
	pud = READ_ONCE(*pudp);
	if (pud_none(pud) || !pud_present(pud) || pud_leaf(pud))
		return 0;
	pmdp = pmd_offset_lockless(pudp, pud, addr);
	pmd = pmdp_get_lockless(pmdp);
	/* As GUP-fast: an entry that is only halfway a leaf (PMD migration, protnone) has no present bit. */
	if (!(pmd_flags(pmd) & _PAGE_PRESENT))
		return 0;
	if (pmd_leaf(pmd)) {
		if ((pmd_flags(pmd) & seen) != need)
			return 0;
		*pfn = pmd_pfn(pmd) + ((addr & ~PMD_MASK) >> PAGE_SHIFT);
		level = 2;
	} else {
		pte = READ_ONCE(*pte_offset_kernel(&pmd, addr));
		if ((pte_flags(pte) & seen) != need)
			return 0;
		*pfn = pte_pfn(pte);
		level = 1;
	}
	page = pfn_to_page(*pfn);
	if (!PageAnon(page))
		return 0;
	if (!PageDirty(page))
		SetPageDirty(page);
	return level;
}

/* Frame behind @addr in a VM_IO or VM_PFNMAP area, faulting it in when needed. Sleeps. */
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
		if (write && !(vma->vm_flags & VM_WRITE))
			break;

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

/* Makes @addr resident and, with @write, writable in the current address space. Sleeps. */
int rvmm_fault_in(unsigned long addr, bool write)
{
	struct mm_struct *mm = current->mm;
	bool unlocked = false;
	int r;

	if (!mm)
		return -EFAULT;
	mmap_read_lock(mm);
	r = fixup_user_fault(mm, addr, write ? FAULT_FLAG_WRITE : 0, &unlocked);
	mmap_read_unlock(mm);
	return r;
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

const char *rvmm_dev_name(const struct device *dev)
{
	return dev_name(dev);
}

void rvmm_device_lock(struct device *dev)
{
	device_lock(dev);
}

void rvmm_device_unlock(struct device *dev)
{
	device_unlock(dev);
}

void rvmm_pci_bar(struct pci_dev *pdev, unsigned int bar, u64 *start, u64 *len, u64 *flags)
{
	*start = pci_resource_start(pdev, bar);
	*len = pci_resource_len(pdev, bar);
	*flags = pci_resource_flags(pdev, bar);
	/* Firmware left it without an address. */
	if (*flags & IORESOURCE_UNSET)
		*len = 0;
}

u8 rvmm_pci_msix_cap(struct pci_dev *pdev)
{
	return pdev->msix_cap;
}

bool rvmm_pci_reset_supported(struct pci_dev *pdev)
{
	return pdev->reset_methods[0] != 0;
}

/* Neither decoding, nor bus mastering, nor a pin. */
void rvmm_pci_quiesce(struct pci_dev *pdev)
{
	pci_write_config_word(pdev, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE);
}

/* Whether the function has no interrupt pin, or one that can be switched off (PCI 2.3, 6.2.2). */
bool rvmm_pci_pin_can_be_off(struct pci_dev *pdev)
{
	return !pdev->pin || !pdev->broken_intx_masking;
}

void rvmm_pci_forbid_no_snoop(struct pci_dev *pdev)
{
	pcie_capability_clear_word(pdev, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_NOSNOOP_EN);
}

void rvmm_iommu_aperture(struct iommu_domain *domain, u64 *start, u64 *end)
{
	*start = domain->geometry.aperture_start;
	*end = domain->geometry.aperture_end;
}
