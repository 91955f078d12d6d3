// SPDX-License-Identifier: GPL-2.0
//! Command numbers that only Arm64 has.

use super::{k, K};
use kernel::ioctl::{_IOR, _IOW, _IOWR};
use kernel::prelude::*;
use zerocopy_derive::Immutable;

/// `struct reg_mask_range`, whose name does not begin with `kvm_`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct RegMasks {
    pub(crate) addr: u64,
    pub(crate) range: u32,
    pub(crate) reserved: [u32; 13],
}

pub(crate) const KVM_GET_ONE_REG: u32 = _IOW::<k::kvm_one_reg>(K, 0xab);
pub(crate) const KVM_SET_ONE_REG: u32 = _IOW::<k::kvm_one_reg>(K, 0xac);
pub(crate) const KVM_ARM_VCPU_INIT: u32 = _IOW::<k::kvm_vcpu_init>(K, 0xae);
pub(crate) const KVM_ARM_PREFERRED_TARGET: u32 = _IOR::<k::kvm_vcpu_init>(K, 0xaf);
pub(crate) const KVM_GET_REG_LIST: u32 = _IOWR::<k::kvm_reg_list>(K, 0xb0);
pub(crate) const KVM_ARM_SET_COUNTER_OFFSET: u32 = _IOW::<k::kvm_arm_counter_offset>(K, 0xb5);
pub(crate) const KVM_ARM_GET_REG_WRITABLE_MASKS: u32 = _IOR::<RegMasks>(K, 0xb6);

const _: () = {
    assert!(KVM_GET_ONE_REG == 0x4010_aeab);
    assert!(KVM_ARM_VCPU_INIT == 0x4020_aeae);
    assert!(KVM_GET_REG_LIST == 0xc008_aeb0);
};
