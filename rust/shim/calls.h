/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shims that are one expression, SHIM(type, name, arguments, expression), or one statement without a value. There is
 * no guard: ../bindings_helper.h makes the prototypes of it, shim.c the functions. Their names begin with rvmm_.
 */

/* preemption, interrupts, scheduling */
SHIM_VOID(preempt_disable, (void), preempt_disable())
SHIM_VOID(preempt_enable, (void), preempt_enable())
SHIM(unsigned int, raw_cpu, (void), raw_smp_processor_id())
#ifdef CONFIG_TRACE_IRQFLAGS
SHIM_VOID(trace_hardirqs_on, (void), trace_hardirqs_on())
SHIM_VOID(trace_hardirqs_off, (void), trace_hardirqs_off())
#endif
SHIM(unsigned long, user_end, (void), TASK_SIZE_MAX)
SHIM(struct mm_struct *, current_mm, (void), current->mm)
SHIM(bool, signal_pending, (void), signal_pending(current))
SHIM(bool, fatal_signal_pending, (void), fatal_signal_pending(current))
/* As an access of the task's own to memory that is broken. */
SHIM_VOID(signal_poisoned, (unsigned long address),
      send_sig_mceerr(BUS_MCEERR_AR, (void __user *)address, PAGE_SHIFT, current))
SHIM(unsigned long long, run_delay, (void), current->sched_info.run_delay)
/* Time that the task has run, of itself and of its guest. */
SHIM(unsigned long long, run_time, (void),
     ({ u64 user, system; task_cputime_adjusted(current, &user, &system); user + system; }))
SHIM(struct pid *, current_pid, (void), task_pid(current))
SHIM(struct pid *, get_current_pid, (void), get_task_pid(current, PIDTYPE_PID))
SHIM(struct task_struct *, get_pid_task, (struct pid *pid), get_pid_task(pid, PIDTYPE_PID))
SHIM(bool, may_spin, (void), single_task_running() && !need_resched())
SHIM_VOID(cond_resched, (void), cond_resched())
SHIM(bool, xfer_to_guest_pending, (void), __xfer_to_guest_mode_work_pending())
/* A guest ran: this CPU holds no reference to anything under RCU. Interrupts are off. */
SHIM_VOID(guest_quiescent, (void), rcu_virt_note_context_switch())
SHIM_VOID(set_task_interruptible, (void), set_current_state(TASK_INTERRUPTIBLE))
SHIM_VOID(rcuwait_prepare, (struct rcuwait *w), prepare_to_rcuwait(w))

/* work */
SHIM(struct workqueue_struct *, alloc_workqueue, (const char *name, int most),
     alloc_workqueue("%s", WQ_PERCPU, most, name))
SHIM_VOID(module_get, (void), __module_get(THIS_MODULE))
SHIM_VOID(module_put, (void), module_put(THIS_MODULE))

/* locks */
SHIM(int, mutex_lock_killable, (struct mutex *lock), mutex_lock_killable(lock))
SHIM_VOID(raw_spin_lock, (raw_spinlock_t *lock), raw_spin_lock(lock))
SHIM(bool, raw_spin_trylock, (raw_spinlock_t *lock), raw_spin_trylock(lock))
SHIM_VOID(raw_spin_unlock, (raw_spinlock_t *lock), raw_spin_unlock(lock))
SHIM_VOID(raw_spin_unlock_irqrestore, (raw_spinlock_t *lock, unsigned long flags),
      raw_spin_unlock_irqrestore(lock, flags))

/* other CPUs */
SHIM(unsigned int, nr_cpu_ids, (void), nr_cpu_ids)
SHIM(unsigned int, num_online_cpus, (void), num_online_cpus())
SHIM(bool, cpu_online, (unsigned int cpu), cpu < nr_cpu_ids && cpu_online(cpu))

/* files */
SHIM(__poll_t, vfs_poll, (struct file *file, poll_table *pt), vfs_poll(file, pt))
SHIM_VOID(init_poll_funcptr, (poll_table *pt, poll_queue_proc proc), init_poll_funcptr(pt, proc))
SHIM_VOID(init_waitqueue_func, (wait_queue_entry_t *entry, wait_queue_func_t func),
      init_waitqueue_func_entry(entry, func))

/* pages and address spaces */
SHIM(void *, page_address, (struct page *page), page_address(page))
SHIM(unsigned long, page_to_pfn, (struct page *page), page_to_pfn(page))
/* Pages from the first one on that lie one behind the other; count is not 0. */
SHIM(size_t, pages_contiguous, (struct page **pages, size_t count),
      num_pages_contiguous(pages, count))
SHIM(struct page *, pfn_to_page, (unsigned long pfn), pfn_to_page(pfn))
SHIM(bool, pfn_is_ram, (unsigned long pfn), pfn_valid(pfn) && !PageReserved(pfn_to_page(pfn)))
SHIM_VOID(page_set_next, (struct page *page, struct page *next), page->rcu_head.next = (void *)next)
SHIM(struct page *, page_next, (struct page *page), (struct page *)page->rcu_head.next)
SHIM_VOID(get_page, (struct page *page), get_page(page))
SHIM_VOID(put_page, (struct page *page), put_page(page))

/* PCI and IOMMU */
SHIM(const char *, dev_name, (const struct device *dev), dev_name(dev))
SHIM_VOID(device_lock, (struct device *dev), device_lock(dev))
SHIM_VOID(device_unlock, (struct device *dev), device_unlock(dev))
SHIM(u8, pci_msix_cap, (struct pci_dev *pdev), pdev->msix_cap)
SHIM(bool, pci_reset_supported, (struct pci_dev *pdev), pdev->reset_methods[0] != 0)
/* Neither decoding, nor bus mastering, nor a pin. */
SHIM_VOID(pci_quiesce, (struct pci_dev *pdev),
      pci_write_config_word(pdev, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE))
/* Whether the function has no interrupt pin, or one that can be switched off (PCI 2.3, 6.2.2). */
SHIM(bool, pci_pin_can_be_off, (struct pci_dev *pdev), !pdev->pin || !pdev->broken_intx_masking)
SHIM_VOID(pci_forbid_no_snoop, (struct pci_dev *pdev),
      pcie_capability_clear_word(pdev, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_NOSNOOP_EN))
