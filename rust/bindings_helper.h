/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Input of this module's own bindgen run, for the headers that the kernel's rust/bindings leave out.
 *
 * bindgen_flags lists what is taken from here. Types that `kernel::bindings` has already are blocked there
 * and come from that crate, so that both sets of functions agree on them.
 */
#ifndef RVMM_BINDINGS_HELPER_H
#define RVMM_BINDINGS_HELPER_H

/* Avoids forward references to enums, which bindgen gets wrong; see rust/bindings in the kernel. */
#include <linux/hrtimer_types.h>

#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/cpu_smt.h>
#include <linux/cpuhotplug.h>
#include <linux/entry-virt.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/ioctl.h>
#include <linux/iommu.h>
#include <linux/kvm.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/pci.h>
#include <linux/pgtable.h>
#include <linux/poll.h>
#include <linux/rcuwait.h>
#include <linux/reboot.h>
#include <linux/sched/cputime.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/swap.h>
#include <linux/syscore_ops.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <asm/cpufeature.h>
#include <asm/processor.h>
#include <asm/smp.h>

/* x86/arch.h or arm64/arch.h: Kbuild says where. */
#include <arch.h>

#ifdef __BINDGEN__
/* Constants that bindgen cannot evaluate from their macros. */
static const unsigned int RVMM_FMODE_PREAD = FMODE_PREAD;
static const unsigned int RVMM_FOLL_WRITE = FOLL_WRITE;
static const unsigned int RVMM_FOLL_LONGTERM = FOLL_LONGTERM;
static const gfp_t RVMM_GFP_KERNEL_ACCOUNT = GFP_KERNEL_ACCOUNT;
static const unsigned int RVMM_FOLL_HWPOISON = FOLL_HWPOISON;
static const unsigned int RVMM_FOLL_NOWAIT = FOLL_NOWAIT;
static const unsigned int RVMM_FOLL_INTERRUPTIBLE = FOLL_INTERRUPTIBLE;
static const unsigned int RVMM_VM_FAULT_SIGBUS = VM_FAULT_SIGBUS;
static const unsigned int RVMM_VM_FAULT_OOM = VM_FAULT_OOM;
static const unsigned int RVMM_EPOLLIN = EPOLLIN;
static const unsigned int RVMM_EPOLLHUP = EPOLLHUP;
#endif

/* shim/shim.c, and shim.c and the .S files of the architecture */
#define SHIM(type, name, args, expression) type rvmm_##name args;
#define SHIM_VOID(name, args, statement) void rvmm_##name args;
#include "shim/calls.h"
#include <calls.h>
#undef SHIM
#undef SHIM_VOID

/* shim/events.c */
extern unsigned int rvmm_listeners;
void rvmm_tell_exit(u32 vcpu, const char *class, const u64 *words);
void rvmm_tell_entry(u32 vcpu, const u64 *words);

int rvmm_yield_to_and_put(struct task_struct *task);
void rvmm_guest_enter(void);
void rvmm_guest_exit(void);
void rvmm_sigmask_set(const sigset_t *set, sigset_t *old);

void rvmm_raw_spin_lock_init(raw_spinlock_t *lock, const char *name, struct lock_class_key *key);
unsigned long rvmm_raw_spin_lock_irqsave(raw_spinlock_t *lock);

int rvmm_get_user_u8(u8 *dst, unsigned long addr);
int rvmm_get_user_u32(u32 *dst, unsigned long addr);
int rvmm_get_user_u64(u64 *dst, unsigned long addr);
int rvmm_put_user_u8(unsigned long addr, u8 val);
int rvmm_put_user_u32(unsigned long addr, u32 val);
int rvmm_put_user_u64(unsigned long addr, u64 val);
int rvmm_copy_from_user_nofault(void *dst, unsigned long src, size_t len);
int rvmm_copy_to_user_nofault(unsigned long dst, const void *src, size_t len);

void rvmm_page_free_rcu(struct page *page);

void rvmm_set_page_dirty(struct page *page);
void rvmm_fill_page(struct page *page, const void *from);
int rvmm_host_mapping_level(struct mm_struct *mm, unsigned long addr);
int rvmm_mapped_writable(unsigned long addr, unsigned long *pfn);
bool rvmm_is_absent(unsigned long addr);
int rvmm_follow_pfnmap(struct mm_struct *mm, unsigned long addr, bool write,
		       unsigned long *pfn, bool *writable);
int rvmm_fault_in(struct mm_struct *mm, unsigned long addr, bool write);

int rvmm_copy_user_page(void *to, struct mm_struct *mm, unsigned long addr,
			const struct vm_operations_struct *except);
bool rvmm_has_area_of(struct mm_struct *mm, unsigned long start, unsigned long end,
		      const struct vm_operations_struct *ops);

bool rvmm_vma_is_device(struct mm_struct *mm, unsigned long addr);
void rvmm_vma_set_device(struct vm_area_struct *vma);

bool rvmm_file_is_of_module(const struct file *file, const char *name);
bool rvmm_file_is_vfio(struct file *file);
bool rvmm_vfio_is_coherent(struct file *file);
void rvmm_pci_bar(struct pci_dev *pdev, unsigned int bar, u64 *start, u64 *len, u64 *flags);
void rvmm_iommu_aperture(struct iommu_domain *domain, u64 *start, u64 *end);

#endif /* RVMM_BINDINGS_HELPER_H */
