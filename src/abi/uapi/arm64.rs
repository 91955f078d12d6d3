// SPDX-License-Identifier: GPL-2.0
//! Command numbers that only Arm64 has.

use super::{k, K};
use kernel::ioctl::{_IOR, _IOW, _IOWR};

pub(crate) const KVM_GET_ONE_REG: u32 = _IOW::<k::kvm_one_reg>(K, 0xab);
pub(crate) const KVM_SET_ONE_REG: u32 = _IOW::<k::kvm_one_reg>(K, 0xac);
pub(crate) const KVM_ARM_VCPU_INIT: u32 = _IOW::<k::kvm_vcpu_init>(K, 0xae);
pub(crate) const KVM_ARM_PREFERRED_TARGET: u32 = _IOR::<k::kvm_vcpu_init>(K, 0xaf);
pub(crate) const KVM_GET_REG_LIST: u32 = _IOWR::<k::kvm_reg_list>(K, 0xb0);

const _: () = {
    assert!(KVM_GET_ONE_REG == 0x4010_aeab);
    assert!(KVM_ARM_VCPU_INIT == 0x4020_aeae);
    assert!(KVM_GET_REG_LIST == 0xc008_aeb0);
};
