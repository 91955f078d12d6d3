// SPDX-License-Identifier: GPL-2.0
//! Command numbers that only x86 has.

use super::{k, K};
use kernel::ioctl::{_IO, _IOR, _IOW, _IOWR};

pub(crate) const KVM_GET_MSR_INDEX_LIST: u32 = _IOWR::<k::kvm_msr_list>(K, 0x02);
pub(crate) const KVM_GET_SUPPORTED_CPUID: u32 = _IOWR::<k::kvm_cpuid2>(K, 0x05);
pub(crate) const KVM_GET_EMULATED_CPUID: u32 = _IOWR::<k::kvm_cpuid2>(K, 0x09);
pub(crate) const KVM_GET_MSR_FEATURE_INDEX_LIST: u32 = _IOWR::<k::kvm_msr_list>(K, 0x0a);
pub(crate) const KVM_GET_SUPPORTED_HV_CPUID: u32 = _IOWR::<k::kvm_cpuid2>(K, 0xc1);
pub(crate) const KVM_X86_GET_MCE_CAP_SUPPORTED: u32 = _IOR::<u64>(K, 0x9d);
pub(crate) const KVM_SET_NR_MMU_PAGES: u32 = _IO(K, 0x44);
pub(crate) const KVM_SET_TSS_ADDR: u32 = _IO(K, 0x47);
pub(crate) const KVM_SET_IDENTITY_MAP_ADDR: u32 = _IOW::<u64>(K, 0x48);
pub(crate) const KVM_GET_IRQCHIP: u32 = _IOWR::<k::kvm_irqchip>(K, 0x62);
pub(crate) const KVM_SET_IRQCHIP: u32 = _IOR::<k::kvm_irqchip>(K, 0x63);
pub(crate) const KVM_CREATE_PIT: u32 = _IO(K, 0x64);
pub(crate) const KVM_GET_PIT: u32 = _IOWR::<k::kvm_pit_state>(K, 0x65);
pub(crate) const KVM_SET_PIT: u32 = _IOR::<k::kvm_pit_state>(K, 0x66);
pub(crate) const KVM_REINJECT_CONTROL: u32 = _IO(K, 0x71);
pub(crate) const KVM_CREATE_PIT2: u32 = _IOW::<k::kvm_pit_config>(K, 0x77);
pub(crate) const KVM_SET_BOOT_CPU_ID: u32 = _IO(K, 0x78);
pub(crate) const KVM_SET_CLOCK: u32 = _IOW::<k::kvm_clock_data>(K, 0x7b);
pub(crate) const KVM_GET_CLOCK: u32 = _IOR::<k::kvm_clock_data>(K, 0x7c);
pub(crate) const KVM_GET_PIT2: u32 = _IOR::<k::kvm_pit_state2>(K, 0x9f);
pub(crate) const KVM_SET_PIT2: u32 = _IOW::<k::kvm_pit_state2>(K, 0xa0);
pub(crate) const KVM_SET_TSC_KHZ: u32 = _IO(K, 0xa2);
pub(crate) const KVM_GET_TSC_KHZ: u32 = _IO(K, 0xa3);
pub(crate) const KVM_HYPERV_EVENTFD: u32 = _IOW::<k::kvm_hyperv_eventfd>(K, 0xbd);
pub(crate) const KVM_X86_SET_MSR_FILTER: u32 = _IOW::<k::kvm_msr_filter>(K, 0xc6);
pub(crate) const KVM_GET_REGS: u32 = _IOR::<k::kvm_regs>(K, 0x81);
pub(crate) const KVM_SET_REGS: u32 = _IOW::<k::kvm_regs>(K, 0x82);
pub(crate) const KVM_GET_SREGS: u32 = _IOR::<k::kvm_sregs>(K, 0x83);
pub(crate) const KVM_SET_SREGS: u32 = _IOW::<k::kvm_sregs>(K, 0x84);
pub(crate) const KVM_TRANSLATE: u32 = _IOWR::<k::kvm_translation>(K, 0x85);
pub(crate) const KVM_INTERRUPT: u32 = _IOW::<k::kvm_interrupt>(K, 0x86);
pub(crate) const KVM_GET_MSRS: u32 = _IOWR::<k::kvm_msrs>(K, 0x88);
pub(crate) const KVM_SET_MSRS: u32 = _IOW::<k::kvm_msrs>(K, 0x89);
pub(crate) const KVM_GET_FPU: u32 = _IOR::<k::kvm_fpu>(K, 0x8c);
pub(crate) const KVM_SET_FPU: u32 = _IOW::<k::kvm_fpu>(K, 0x8d);
pub(crate) const KVM_GET_LAPIC: u32 = _IOR::<k::kvm_lapic_state>(K, 0x8e);
pub(crate) const KVM_SET_LAPIC: u32 = _IOW::<k::kvm_lapic_state>(K, 0x8f);
pub(crate) const KVM_SET_CPUID: u32 = _IOW::<k::kvm_cpuid>(K, 0x8a);
pub(crate) const KVM_SET_CPUID2: u32 = _IOW::<k::kvm_cpuid2>(K, 0x90);
pub(crate) const KVM_GET_CPUID2: u32 = _IOWR::<k::kvm_cpuid2>(K, 0x91);
pub(crate) const KVM_TPR_ACCESS_REPORTING: u32 = _IOWR::<k::kvm_tpr_access_ctl>(K, 0x92);
pub(crate) const KVM_SET_VAPIC_ADDR: u32 = _IOW::<k::kvm_vapic_addr>(K, 0x93);
pub(crate) const KVM_NMI: u32 = _IO(K, 0x9a);
pub(crate) const KVM_X86_SETUP_MCE: u32 = _IOW::<u64>(K, 0x9c);
pub(crate) const KVM_SMI: u32 = _IO(K, 0xb7);
pub(crate) const KVM_KVMCLOCK_CTRL: u32 = _IO(K, 0xad);
pub(crate) const KVM_GET_DEBUGREGS: u32 = _IOR::<k::kvm_debugregs>(K, 0xa1);
pub(crate) const KVM_SET_DEBUGREGS: u32 = _IOW::<k::kvm_debugregs>(K, 0xa2);
pub(crate) const KVM_X86_SET_MCE: u32 = _IOW::<k::kvm_x86_mce>(K, 0x9e);
pub(crate) const KVM_GET_SREGS2: u32 = _IOR::<k::kvm_sregs2>(K, 0xcc);
pub(crate) const KVM_SET_SREGS2: u32 = _IOW::<k::kvm_sregs2>(K, 0xcd);
pub(crate) const KVM_GET_XCRS: u32 = _IOR::<k::kvm_xcrs>(K, 0xa6);
pub(crate) const KVM_SET_XCRS: u32 = _IOW::<k::kvm_xcrs>(K, 0xa7);
pub(crate) const KVM_GET_XSAVE: u32 = _IOR::<[u8; 4096]>(K, 0xa4);
pub(crate) const KVM_SET_XSAVE: u32 = _IOW::<[u8; 4096]>(K, 0xa5);
pub(crate) const KVM_GET_XSAVE2: u32 = _IOR::<[u8; 4096]>(K, 0xcf);

/// Offset of the port data page in the vCPU's mapping.
pub(crate) const PIO_PAGE: usize = k::KVM_PIO_PAGE_OFFSET as usize * kernel::page::PAGE_SIZE;

const _: () = {
    assert!(KVM_GET_XSAVE == 0x9000_aea4);
    assert!(KVM_GET_XSAVE2 == 0x9000_aecf);
    assert!(KVM_GET_SREGS == 0x8138_ae83);
    assert!(KVM_GET_SUPPORTED_CPUID == 0xc008_ae05);
    assert!(KVM_SET_IRQCHIP == 0x8208_ae63);
    assert!(KVM_SET_MSRS == 0x4008_ae89);
    assert!(KVM_X86_SET_MCE == 0x4040_ae9e);
    assert!(KVM_GET_SREGS2 == 0x8140_aecc);
    assert!(KVM_GET_SUPPORTED_HV_CPUID == 0xc008_aec1);
    assert!(KVM_HYPERV_EVENTFD == 0x4018_aebd);
};
