/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The contract of /dev/rvmm with user space.
 *
 * /dev/rvmm speaks the ioctl interface of /dev/kvm: same numbers, same structures, same meaning
 * (Documentation/virt/kvm/api.rst), for what KVM_CHECK_EXTENSION claims. What rvmm adds lives here, under an ioctl type
 * of its own.
 */
#ifndef _UAPI_RVMM_H
#define _UAPI_RVMM_H

#include <linux/ioctl.h>
#include <linux/kvm.h>
#include <linux/types.h>

/* Type of rvmm's own ioctls, and the range of its own KVM_CHECK_EXTENSION numbers. */
#define RVMM_IOC		0xBB
#define RVMM_CAP_BASE		0x52560000

/* KVM_CHECK_EXTENSION: RVMM_GET_ENTRY_FAILURE exists. Zero on KVM. */
#define RVMM_CAP_ENTRY_FAILURE	(RVMM_CAP_BASE + 0)

/*
 * The rule of the manual that the vCPU's state broke when KVM_RUN last returned KVM_EXIT_FAIL_ENTRY.
 * rule is a zero-terminated sentence with the manual's section; value is the offending field.
 */
struct rvmm_entry_failure {
	__u64 reason;	/* as kvm_run.fail_entry.hardware_entry_failure_reason */
	__u64 value;
	char rule[240];
};

/* On a vCPU. ENODATA when no entry has failed since the vCPU was created. */
#define RVMM_GET_ENTRY_FAILURE	_IOR(RVMM_IOC, 0x01, struct rvmm_entry_failure)

/*
 * KVM_CHECK_EXTENSION: how an Intel processor comes into VMX root operation when a vCPU runs, in the order of what it
 * costs, the dearest first. Zero on AMD processors, and on KVM.
 */
#define RVMM_CAP_ROOT		(RVMM_CAP_BASE + 2)
/* VMX is off between two entries by KVM_RUN. */
#define RVMM_ROOT_PRIVATE	1
/* Another hypervisor keeps VMX on, for how long is not known: nothing of a vCPU stays in the processor. */
#define RVMM_ROOT_SHARED	2
/* kvm_intel keeps VMX on, and rvmm keeps kvm_intel loaded: a vCPU stays in the processor until it moves to another. */
#define RVMM_ROOT_KEPT		3

/*
 * What one instruction costs of which entering a guest is made, on the CPU that runs the call: in rounds with
 * interrupts off, for a millisecond at most. index counts from 0; ENOENT: there are no more. count is 0 where this CPU
 * does not have the instruction, or another hypervisor has VMX on and rvmm does not execute it.
 *
 * On a vCPU of a VM without interrupt controllers in the kernel (else EINVAL), best one that serves for nothing else.
 * EPERM without CAP_SYS_ADMIN. EAGAIN: an interrupt came first; call again. EBUSY, EIO: as KVM_RUN, the processor's
 * virtualisation cannot be had, and the kernel's log says why.
 */
struct rvmm_root_cost {
	__u32 index;
	__u32 count;		/* out */
	char name[24];		/* out: the instruction, zero-terminated */
	__u32 ticks[56];	/* out: of the TSC, for each of count rounds, with those of "nothing" */
};

#define RVMM_MEASURE_ROOT	_IOWR(RVMM_IOC, 0x02, struct rvmm_root_cost)

/* --- putting a VM back to what it was ------------------------------------------------------------ */

/* KVM_CHECK_EXTENSION: RVMM_RESET_POINT, RVMM_RESET and RVMM_TOUCH exist. Zero on KVM. */
#define RVMM_CAP_RESET_POINT	(RVMM_CAP_BASE + 0x20)

/*
 * On a VM: from now on RVMM_RESET puts it back to what it is now; the point before this one is gone. pages: how many
 * pages of guest memory may be written between two resets; what each held is kept in kernel memory, charged to the
 * caller's control group, and 32 bytes for each of pages at once. When one more is to be written, KVM_RUN fails with
 * ENOSPC and exit_reason KVM_EXIT_MEMORY_FAULT, whose gpa names the page if the guest was to write it; nothing is lost,
 * and KVM_RUN goes on after RVMM_RESET or another point. pages 0: no point any more.
 *
 * Not seen is what user space writes to the memory by its own mapping, or does to it otherwise (read(2), madvise): tell
 * it before with RVMM_TOUCH, or it stays where a reset finds it. Devices of the VMM that reach guest memory (vhost) are
 * user space in this.
 *
 * Put back is what a guest can find out about its machine, and what user space had to answer: memory in slots, but for
 * device memory; all of the vCPUs, their local APICs, TSCs and timers; IOAPIC, 8259s, 8254, GSI routes; the VM's clock;
 * exits in flight with the pages that user space maps of the vCPUs (kvm_run, port data, coalesced writes), which are as
 * they were as well. No time has passed for the guest. Not put back is configuration: CPUID, capabilities, filters,
 * irqfds, ioeventfds. Dirty logs have the pages that were put back.
 *
 * A page that is missing (RVMM_MEM_MISSING) is reported before it is saved, and not by RVMM_TOUCH: what user space
 * brings then is what the page was at the point.
 *
 * EBUSY: a vCPU runs or is in an ioctl, or the VM has a device (RVMM_ASSIGN_DEVICE, VFIO). EINVAL: flags, more than
 * 2^25 pages, a second address space (KVM_CAP_MULTI_ADDRESS_SPACE), or dirty rings without bitmaps
 * (KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP), as no vCPU writes what is put back. ENOMEM, EIO. After an error the point is
 * what it was.
 */
struct rvmm_reset_point {
	__u64 pages;
	__u64 flags;		/* 0 */
};

#define RVMM_RESET_POINT	_IOW(RVMM_IOC, 0x20, struct rvmm_reset_point)

struct rvmm_reset {
	__u64 pages;		/* out: pages that had been written */
};

/*
 * On a VM. ENODATA: there is no point. ESTALE: there is none any more, because a slot, a vCPU, an interrupt controller
 * or a device has come or gone since, or dirty rings were enabled (a slot's flags may change). EBUSY: as above. EFAULT:
 * the user memory of a page is not there; EINTR, ENOMEM, EIO: after these the VM is between the two states, and the
 * call is to be made again before a vCPU runs.
 */
#define RVMM_RESET		_IOR(RVMM_IOC, 0x21, struct rvmm_reset)

/*
 * On a VM: user space is going to write to this guest memory, until the next reset; or the memory is not to be shared
 * with forks any more. ENODATA, ESTALE: as above, where there are no forks. EFAULT: no slot, or no user memory. ENOSPC:
 * more pages than the point allows. EINVAL: not whole pages of 4096 bytes. ENOMEM, EINTR.
 */
struct rvmm_touch {
	__u64 gpa;
	__u64 size;
};

#define RVMM_TOUCH		_IOW(RVMM_IOC, 0x22, struct rvmm_touch)

/* --- VMs that begin as another one is ------------------------------------------------------------- */

/* KVM_CHECK_EXTENSION: RVMM_FORK and RVMM_BECOME exist. Zero on KVM. */
#define RVMM_CAP_FORK		(RVMM_CAP_BASE + 0x21)

/*
 * On a VM, argument 0: a file descriptor, close-on-exec, for what the VM is now: a fork. The VM goes on; how long the
 * call takes does not depend on its memory. What is kept of the machine is that of a reset point. Memory is shared with
 * the VM until the VM writes, when a page is copied into the fork before (kernel memory, charged to whom does so).
 *
 * mmap(), MAP_PRIVATE, in the process of the VM: the memory. File offsets are user addresses: what was in the slot over
 * userspace_addr is at offset userspace_addr. Who writes gets a copy, as with every private mapping. So any number of
 * VMs can have slots over mappings of one fork; what one of them reads for the first time is copied into the fork,
 * once for all. The VM's own memory has to stay mapped as long as there are pages that have not been copied (SIGBUS,
 * and EFAULT of KVM_RUN); the VM itself, its slots, and its file may go. The fork goes with its file and all mappings.
 * A child of the process (fork(2)) sees only what its parent has touched.
 *
 * Not seen is what user space writes to the VM's memory by its own mapping, or does to it otherwise (read(2), madvise):
 * tell it before with RVMM_TOUCH, or the fork has it as well. Device memory in slots is in no fork (SIGBUS).
 *
 * A VM that writes while memory is short: KVM_RUN fails with ENOMEM, nothing is lost, and it goes on when called again.
 *
 * EBUSY: a vCPU runs or is in an ioctl, there is a reset point (and there can be none as long as there are forks), or
 * the VM has a device (RVMM_ASSIGN_DEVICE, VFIO). EINVAL: argument, RVMM_CAP_MISSING is enabled, there is a second
 * address space (EBUSY for either as long as there are forks), or a slot lies over memory of a fork: a fork cannot be
 * forked. ENOSPC: the VM has 16 forks. ENOMEM, EMFILE, ENFILE, EIO.
 */
#define RVMM_FORK		_IO(RVMM_IOC, 0x23)

/*
 * On a VM, argument the descriptor of a fork: the VM becomes what the fork's VM was, but for memory, which comes by its
 * slots. It has been made as that one: with the same interrupt controllers, vCPUs with the same ids, and the same
 * configuration (CPUID, capabilities, filters, irqfds, ioeventfds), which is not part of a fork. kvm_run and the other
 * pages that user space maps of the vCPUs are as they were, with exits that were in flight. No time has passed for the
 * guest. It may be called again, as it may for other VMs.
 *
 * EINVAL: other vCPUs or other controllers, or no fork. EBUSY: a vCPU runs or is in an ioctl. EIO: another process than
 * that of the fork. EBADF, ENOMEM. After EIO or ENOMEM it is to be called again before a vCPU runs.
 */
#define RVMM_BECOME		_IO(RVMM_IOC, 0x24)

/* --- memory that comes when the guest asks for it --------------------------------------------------- */

/*
 * KVM_CHECK_EXTENSION: slots may report pages that are missing, once KVM_ENABLE_CAP on the VM has enabled it with
 * args[0] = 1. Zero on KVM.
 */
#define RVMM_CAP_MISSING	(RVMM_CAP_BASE + 16)

/*
 * A flag of KVM_SET_USER_MEMORY_REGION, which may be changed later like KVM_MEM_LOG_DIRTY_PAGES (EINVAL as long as
 * RVMM_CAP_MISSING is not enabled, and in the second address space; EBUSY with assigned devices). A page of such a slot
 * is missing when the page tables of the VM's process have nothing at its user address: neither a page, nor one that is
 * swapped out or write-protected.
 * When the guest accesses it, or the kernel does for the guest (emulated instructions, page tables, the pages of
 * paravirtual MSRs), it is not filled with zeroes or from a file, but reported:
 *
 * - Without a queue KVM_RUN ends with KVM_EXIT_MEMORY_FAULT and EFAULT, as for memory that is not there, with
 *   RVMM_MEMORY_EXIT_MISSING in memory_fault.flags. KVM_RUN called again goes on where it was. User space may have
 *   brought the page by then, or have touched it, if what is there anyway is right.
 * - With a queue the vCPU's thread waits until the page has been resolved, or a signal ends KVM_RUN (EINTR; the next
 *   one reports the page again). KVM_PRE_FAULT_MEMORY waits as well; without a queue it is EFAULT.
 *
 * A page may be reported again after it has been brought: shared memory whose mapping the host has reclaimed, a wait
 * that a signal ended, another vCPU that was on its way. So user space has to remember what it has brought, and
 * resolves such a page without writing to it. An access to a page at the moment in which it is removed
 * (MADV_DONTNEED) may find it empty, and is not reported; nor are accesses by other ioctls.
 */
#define RVMM_MEM_MISSING	(1u << 24)

/* kvm_run.memory_fault.flags: the page is missing; it is to be written. */
#define RVMM_MEMORY_EXIT_MISSING	(1ull << 32)
#define RVMM_MEMORY_EXIT_WRITE		(1ull << 33)

/*
 * On a VM: a file descriptor, close-on-exec, from which any process reads whole struct rvmm_missing_event. read() never
 * waits (EAGAIN: nothing is missing; EINVAL: no room for one), poll() does. Each thread that waits is told once; there
 * is no buffer that could be full. Closing it lets the threads that wait end as without a queue. EBUSY: there is one
 * already. EINVAL: RVMM_CAP_MISSING is not enabled.
 */
#define RVMM_MISSING_QUEUE	_IO(RVMM_IOC, 0x30)

/* rvmm_missing_event.flags */
#define RVMM_MISSING_WRITE	1	/* it is to be written, as far as is known */

struct rvmm_missing_event {
	__u64 gpa;		/* of the page of 4 KiB */
	__u64 hva;		/* in the VM's process */
	__u32 vcpu;
	__u32 flags;
};

/*
 * On the queue, from any process: the pages of the range are there now, as far as they will ever be. They are mapped in
 * the VM's process as if it had read them (so memory that has nothing is empty from then on), and the threads that
 * wait for one of them go on. For private memory somebody in the VM's process has written them before, for shared
 * memory anybody. EINTR: a signal came; call again. EFAULT: one of them is in no slot, or cannot be had; who waits
 * finds the same. EINVAL: size 0, not whole pages, flags.
 */
struct rvmm_missing_range {
	__u64 gpa;
	__u64 size;
	__u64 flags;		/* 0 */
};

#define RVMM_MISSING_RESOLVE	_IOW(RVMM_IOC, 0x31, struct rvmm_missing_range)

/* KVM_CHECK_EXTENSION: the next two exist. Zero on KVM. */
#define RVMM_CAP_TOUCHES	(RVMM_CAP_BASE + 17)

/*
 * On a VM: records in which order the guest touches its pages from now on, for as many touches as the argument says
 * (16777216 at most; EINVAL), once in a VM's life (EEXIST). What has been mapped is unmapped for that, and memory is
 * mapped in pages of 4 KiB until the argument 0 ends the recording. A page whose mapping the host has taken away may
 * come again. What the kernel accesses for the guest is not recorded.
 */
#define RVMM_RECORD_TOUCHES	_IO(RVMM_IOC, 0x32)

struct rvmm_touches {
	__u64 first;		/* number of the touch to begin with, from 0 */
	__u64 count;		/* in: room; out: how many have been copied */
	__u64 total;		/* out: touches so far, also those for which there was no room */
	__u64 pages;		/* address of an array of __u64: guest-physical address >> 12 */
};

/* On a VM. ENODATA: nothing has ever been recorded. */
#define RVMM_GET_TOUCHES	_IOWR(RVMM_IOC, 0x33, struct rvmm_touches)

/* --- what a vCPU did, one record for each exit --------------------------------------------------------- */

/* KVM_CHECK_EXTENSION: RVMM_RECORD exists. Zero on KVM. */
#define RVMM_CAP_RECORD		(RVMM_CAP_BASE + 0x22)

/* rvmm_record_ring.flags: a full ring loses what comes; otherwise the oldest records give way. */
#define RVMM_RECORD_STOP	1

struct rvmm_record_ring {
	__u32 records;		/* a power of two from 64 to 262144 */
	__u32 flags;
};

/*
 * On a vCPU, from any process that has its descriptor, also while the vCPU runs: a file descriptor, close-on-exec,
 * whose mapping is the ring. What the vCPU does from its next entry on is written there until the file and its mappings
 * are closed, which the vCPU notices between two entries as well. mmap(), MAP_SHARED and for reading only (EINVAL): a
 * page with struct rvmm_record_header, then `records` of struct rvmm_record. Record number n is in place n % records.
 *
 * Record n is complete when head is above n. Who has copied it reads head again: if that is n + records or more by
 * now, the copy may be of another one. There is nothing to wait for: look at head from time to time.
 *
 * EBUSY: another file records the vCPU. EINVAL: records, flags. ENOMEM (64 bytes for each record, and a page, are
 * charged to the caller), EMFILE, ENFILE.
 */
#define RVMM_RECORD		_IOW(RVMM_IOC, 0x40, struct rvmm_record_ring)

/*
 * On the recorder's file, with RVMM_RECORD_STOP: the reader has no use any more for records below this number. Without
 * it nothing is overwritten, and a ring that has been filled once stays so.
 */
#define RVMM_RECORD_CONSUMED	_IOW(RVMM_IOC, 0x41, __u64)

#define RVMM_RECORD_MAGIC	0x316365726d6d7672ull	/* "rvmmrec1" */

struct rvmm_record_header {
	__u64 magic;
	__u32 record_size;	/* 64 */
	__u32 records;
	__u64 head;		/* records written so far */
	__u64 lost;		/* records lost because the ring was full */
	__u32 vcpu;		/* id */
	__u32 flags;		/* as asked for */
	__u64 tsc_khz;		/* of the host */
	__u64 reserved[2];
};

/* rvmm_record.kind */
#define RVMM_RECORD_EXIT	1	/* an exit, what was decided, and the entry after it in the same stay */
#define RVMM_RECORD_ENTRY	2	/* the first entry of a stay: address, value, class, decision, path are 0 */

/* rvmm_record.decision */
#define RVMM_DECIDED_AGAIN	1	/* the guest goes on */
#define RVMM_DECIDED_RESUME	2	/* the same, and nothing has come up that could be delivered to it */
#define RVMM_DECIDED_LEAVE	3	/* it is left for the host's work, or sleeps, within KVM_RUN */
#define RVMM_DECIDED_USER	4	/* KVM_RUN returns; reason: exit_reason as the page has it */
#define RVMM_DECIDED_FAIL	5	/* KVM_RUN fails; reason: errno */

/* rvmm_record.path */
#define RVMM_PATH_SHORT		1	/* the entry before it was repeated as it was */
#define RVMM_PATH_STAY		2	/* with interrupts off and the guest's FPU loaded */
#define RVMM_PATH_OUTSIDE	3	/* with interrupts on, where it may sleep; the guest's state was unloaded */

/* rvmm_record.flags */
#define RVMM_ENTRY_FLUSH	1	/* the entry flushed the guest's translations */
#define RVMM_ENTRY_IRQ_WINDOW	2	/* and asked for an exit as soon as an interrupt can be delivered */
#define RVMM_ENTRY_NMI_WINDOW	4	/* the same for NMIs */
#define RVMM_EXIT_INTERRUPTED	8	/* the exit came while an event was being delivered */

/*
 * class is the number of the exit's statistic "exit_..." among those in KVM_GET_STATS_FD's file, from 0. What it was
 * about (x86; registers as the exit left them):
 *
 *   cpuid			address EAX, value ECX
 *   rdmsr, rdtsc (RDPMC)	address ECX
 *   wrmsr, xsetbv		address ECX, value EDX:EAX
 *   io, io_string		address port, value EAX of OUT; detail: width, 0x100 input, 0x200 string
 *   nested_fault, mmio		address guest-physical; detail: 1 write, 2 fetch, 4 walk of tables, 8 the log was full
 *   hypercall			address RAX, value RBX
 *   cr_access			address number, value if known; detail: 1 write, 0 MOV, 0x100 CLTS, 0x200 LMSW, 0x300 ?
 *   exception			address vector, value payload (DR6 of #DB, CR2 of #PF), detail error code
 *   task_switch		address selector; detail: 0 CALL, 1 IRET, 2 JMP, 3 task gate
 *   apic			address vector or offset; detail: 1 EOI, 2 write, 3 TPR
 *   nmi			detail: 1 NMI, 2 machine check
 *   entry_failure		address hardware_entry_failure_reason
 *   other			detail: 1 #UD, 2 descriptor table, 3 RSM, 4 timer, 5 unknown (address reason)
 */
struct rvmm_record {
	__u64 tsc;		/* the host's TSC at the exit; of an entry, at it */
	__u64 rip;
	__u64 address;
	__u64 value;
	__u32 cycles;		/* from the exit until the guest is entered or left; of an entry, since then */
	__u32 guest;		/* in the guest before the exit, modulo 2^32 */
	__u8 kind;
	__u8 class;
	__u8 decision;
	__u8 path;
	__u16 cpu;
	__u16 flags;
	__u32 inject;		/* what the entry delivered, as an interruption-information field (SDM 3C 25.8.3) */
	__u32 error_code;
	__u32 reason;
	__u32 detail;
};

/* --- devices handed to a guest ------------------------------------------------------------------ */

/* KVM_CHECK_EXTENSION: RVMM_ASSIGN_DEVICE exists. Zero on KVM. */
#define RVMM_CAP_ASSIGN_DEVICE	(RVMM_CAP_BASE + 1)

/*
 * A PCI function, bound to the driver "rvmm" (driver_override), for this VM. Its IOMMU group becomes the VM's, the
 * writable memory slots are pinned (charged to RLIMIT_MEMLOCK) and are from now on what the device reaches, at
 * guest-physical addresses. Slots over device memory and read-only slots are not reached by DMA; slots at addresses
 * that the IOMMU reserves (0xfee00000 to 0xfeefffff) are refused.
 *
 * Dirty logs: what is written is not observed, so as long as the device is there KVM_GET_DIRTY_LOG reports all pages of
 * the slots that it reaches, and once more after it has gone (RVMM_DEVICE_DEASSIGN, close, unbinding, removal); from
 * then on only what others write. Dirty rings alone have no place for this: without KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
 * they and assigned devices exclude each other (EBUSY, also for KVM_CAP_DIRTY_LOG_RING). For a device of VFIO's VFIO
 * tells what it has written (VFIO_IOMMU_DIRTY_PAGES, VFIO_DEVICE_FEATURE_DMA_LOGGING_START), as on KVM.
 * RVMM_RESET_POINT and RVMM_FORK are refused with either.
 */
struct rvmm_assign_device {
	__u32 segment;
	__u8 bus;
	__u8 devfn;		/* slot << 3 | function */
	__u16 flags;		/* 0 */
	__u64 pinned;		/* out: bytes of the VM's memory that are pinned */
	char reason[240];	/* out: why it was refused; may be empty */
};

/*
 * On a VM: a file descriptor for the device, close-on-exec. Closing it (and unmapping what was mapped by it) gives the
 * device back. The driver's unbinding, or the device's removal, does the same at once: then everything below is ENODEV,
 * and an access to mapped registers is SIGBUS.
 */
#define RVMM_ASSIGN_DEVICE	_IOWR(RVMM_IOC, 0x10, struct rvmm_assign_device)

/* rvmm_device_region.flags */
#define RVMM_REGION_MEMORY	1	/* not ports */
#define RVMM_REGION_PREFETCH	2

/*
 * A base address register. Memory is mapped by mmap() of the device file at offset; not the pages of the MSI-X table.
 */
struct rvmm_device_region {
	__u64 size;		/* 0: there is none */
	__u64 offset;		/* the register's number << 40 */
	__u32 flags;
	__u32 reserved;
};

/* rvmm_device_info.flags */
#define RVMM_DEVICE_CAN_RESET	1	/* else it keeps its state from one owner to the next */

/* rvmm_device_info.dma_fault_flags */
#define RVMM_DMA_FAULT_WRITE	1	/* else a read */

struct rvmm_device_info {
	__u32 flags;
	__u16 vendor;
	__u16 device;
	__u32 class_code;
	__u32 config_size;
	__u32 msi;		/* messages; 0 without the capability */
	__u32 msix;
	__u32 msix_bar;		/* where the MSI-X table lies */
	__u32 intx;		/* 1: it has an interrupt pin */
	__u64 msix_offset;
	__u64 pinned;		/* as above */
	__u64 dma_faults;	/* DMA that was refused, as far as the IOMMU's driver tells: Intel's only logs it */
	__u64 dma_fault_address;	/* the last one's DMA address */
	__u32 dma_fault_flags;		/* of the last one */
	__u32 reserved;
	struct rvmm_device_region regions[6];
};

#define RVMM_DEVICE_GET_INFO	_IOR(RVMM_IOC, 0x11, struct rvmm_device_info)

/*
 * Messages 0 to count - 1 of the capability raise these GSIs, which KVM_SET_GSI_ROUTING routes; all others are off. One
 * that comes while its GSI is RVMM_GSI_NONE is kept, and delivered when it gets one. count 0 switches them off: none
 * comes after that.
 *
 * The pin (INTx; count 0 or 1) holds its GSI up until the guest's EOI at the IOAPIC or the 8259s, and longer if the
 * device still asserts it then. While its GSI is RVMM_GSI_NONE (the guest has set Interrupt Disable) it waits. With an
 * IOAPIC in user space, RVMM_DEVICE_RESAMPLE tells the EOI, after KVM_EXIT_IOAPIC_EOI; while the pin is masked there,
 * it has to have RVMM_GSI_NONE.
 *
 * One kind at a time: the others are switched off.
 */
#define RVMM_IRQ_MSI		1
#define RVMM_IRQ_MSIX		2
#define RVMM_IRQ_INTX		3
#define RVMM_GSI_NONE		0xffffffffu

struct rvmm_device_irqs {
	__u32 kind;
	__u32 count;
	__u32 gsi[];
};

#define RVMM_DEVICE_SET_IRQS	_IOW(RVMM_IOC, 0x12, struct rvmm_device_irqs)

/* Another GSI for one message, or for the pin, which is number 0. */
struct rvmm_device_vector {
	__u32 vector;
	__u32 gsi;
};

#define RVMM_DEVICE_SET_VECTOR	_IOW(RVMM_IOC, 0x13, struct rvmm_device_vector)

/* The hardware's configuration space: 1, 2 or 4 bytes. */
struct rvmm_device_config {
	__u32 offset;
	__u32 size;
	__u32 value;
	__u32 reserved;
};

#define RVMM_DEVICE_CONFIG_READ		_IOWR(RVMM_IOC, 0x14, struct rvmm_device_config)
/* Only bus mastering, in the command register, can be changed: EPERM for every other register. */
#define RVMM_DEVICE_CONFIG_WRITE	_IOW(RVMM_IOC, 0x15, struct rvmm_device_config)

/* ENOTTY: there is no way to reset it alone. Registers that the kernel configures are put back. */
#define RVMM_DEVICE_RESET	_IO(RVMM_IOC, 0x16)
/* Gives the device back before its file is closed. */
#define RVMM_DEVICE_DEASSIGN	_IO(RVMM_IOC, 0x17)
/* The pin's GSI goes down, and up again if the device still asserts it. EINVAL: RVMM_IRQ_INTX is not set up. */
#define RVMM_DEVICE_RESAMPLE	_IO(RVMM_IOC, 0x18)

#endif /* _UAPI_RVMM_H */
