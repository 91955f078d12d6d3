/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The contract of /dev/rvmm with user space.
 *
 * /dev/rvmm speaks the ioctl interface of /dev/kvm: same numbers, same structures, same meaning (Documentation/virt/kvm/api.rst),
 * for what KVM_CHECK_EXTENSION claims. What rvmm adds lives here, under an ioctl type of its own.
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

#endif /* _UAPI_RVMM_H */
