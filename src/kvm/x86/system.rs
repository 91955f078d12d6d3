// SPDX-License-Identifier: GPL-2.0
//! The system ioctls that only x86 has: what its guests may see.

use crate::abi::uapi::{self, k};
use crate::bus::set::MAX_VCPUS;
use crate::kvm::table::ioctls;
use crate::linux::boot_cpu;
use crate::x86::{abi, cpuid, hyperv_leaves, lists, lists_msr, mce_cap, model, msr, CpuidEntry};
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

ioctls! {
    /// The system ioctls of x86 (api.rst 4). EINVAL is KVM's answer to a number that it does not know.
    fn ioctl(; cmd, arg) else Err(EINVAL);
    lock _none = ();

    KVM_GET_SUPPORTED_CPUID:        -, call(get_supported_cpuid(arg)), KVM_CAP_EXT_CPUID;
    KVM_GET_EMULATED_CPUID:         -, call(get_emulated_cpuid(arg)), KVM_CAP_EXT_EMUL_CPUID;
    KVM_GET_SUPPORTED_HV_CPUID:     -, call(get_hyperv_cpuid(arg, true)), KVM_CAP_SYS_HYPERV_CPUID;
    KVM_GET_MSR_INDEX_LIST:         -, call(put_msr_list(arg, &lists()?.msrs));
    KVM_GET_MSR_FEATURE_INDEX_LIST: -, call(put_msr_list(arg, msr::feature_list(&model()?.features)));
    KVM_GET_MSRS:                   -, call(get_feature_msrs(arg)), KVM_CAP_GET_MSR_FEATURES;
    KVM_HAS_DEVICE_ATTR:            -, set(r => device_attr(r)), KVM_CAP_SYS_ATTRIBUTES;
    KVM_GET_DEVICE_ATTR:            -, set(r => get_device_attr(r));
    KVM_X86_GET_MCE_CAP_SUPPORTED:  -, get(Ok(mce_cap(model()?.vendor)));
}

/// Copies a `struct kvm_msr_list` out: the count is updated first, then E2BIG when there is no room (api.rst 4.3).
fn put_msr_list(arg: usize, list: &[u32]) -> Result<isize> {
    let room = uapi::get::<u32>(arg)? as usize;
    uapi::put(arg, &(list.len() as u32))?;
    if room < list.len() {
        return Err(E2BIG);
    }
    let at = arg.checked_add(4).ok_or(EFAULT)?;
    let mut out = UserSlice::new(UserPtr::from_addr(at), size_of_val(list)).writer();
    for v in list {
        out.write(v)?;
    }
    Ok(0)
}

/// KVM_GET_MSRS on the device: MSRs that tell features (api.rst 4.18).
fn get_feature_msrs(arg: usize) -> Result<isize> {
    let m = model()?;
    let file = KBox::new(msr::MsrFile::new(&m.msr_config()), GFP_KERNEL)?;
    let access = msr::Access {
        guest: &m.features,
        host: &m.features,
        host_initiated: true,
        enforce_pv: false,
    };
    let listed = msr::feature_list(&m.features);
    abi::each_msr(arg, true, |e| match file.get(e.index, &access) {
        Ok(msr::Read::Value(v)) if listed.contains(&e.index) => {
            e.data = m.device_msr(e.index, v);
            true
        }
        // As vCPUs read those that they do not have; and the features that no vCPU has are none.
        _ if lists_msr(e.index) => {
            e.data = 0;
            true
        }
        _ => abi::ignored_msr("rdmsr", e.index, 0, msr::MsrError::Unknown),
    })
}

/// KVM_HAS_DEVICE_ATTR on the device: the XSAVE components that guests may use. ENXIO.
fn device_attr(a: &k::kvm_device_attr) -> Result {
    if a.group == 0 && a.attr == u64::from(k::KVM_X86_XCOMP_GUEST_SUPP) {
        Ok(())
    } else {
        Err(ENXIO)
    }
}

/// KVM_GET_DEVICE_ATTR on the device.
fn get_device_attr(a: &k::kvm_device_attr) -> Result {
    device_attr(a)?;
    uapi::put(a.addr as usize, &model()?.xcr0)
}

/// KVM_GET_SUPPORTED_CPUID (api.rst 4.46). E2BIG.
fn get_supported_cpuid(arg: usize) -> Result<isize> {
    let lists = lists()?;
    let room = uapi::get::<u32>(arg)? as usize;
    if room < lists.supported.len() {
        return Err(E2BIG);
    }
    put_cpuid(arg, &lists.supported)?;
    Ok(0)
}

/// Copies CPUID entries out behind their count (`struct kvm_cpuid2`).
pub(super) fn put_cpuid(addr: usize, table: &[CpuidEntry]) -> Result {
    uapi::put(addr, &(table.len() as u32))?;
    for (i, e) in table.iter().enumerate() {
        let mut out = uapi::zeroed::<k::kvm_cpuid_entry2>();
        out.function = e.function;
        out.index = e.index;
        out.flags = e.flags;
        out.eax = e.eax;
        out.ebx = e.ebx;
        out.ecx = e.ecx;
        out.edx = e.edx;
        uapi::put(uapi::element::<k::kvm_cpuid_entry2>(addr, 8, i)?, &out)?;
    }
    Ok(())
}

/// KVM_GET_SUPPORTED_HV_CPUID (api.rst 4.118), on the device or a vCPU. `lapic`: local APICs are in the kernel. E2BIG.
pub(super) fn get_hyperv_cpuid(arg: usize, lapic: bool) -> Result {
    let leaves = hyperv_leaves(lapic, boot_cpu::smt_possible(), MAX_VCPUS as u32);
    if (uapi::get::<u32>(arg)? as usize) < leaves.len() {
        return Err(E2BIG);
    }
    put_cpuid(arg, &leaves)
}

/// KVM_GET_EMULATED_CPUID (api.rst 4.88): features that only the instruction emulator has. There are none: the leaves
/// that KVM gives, without a bit.
fn get_emulated_cpuid(arg: usize) -> Result<isize> {
    let leaf = |function, eax, flags| CpuidEntry {
        function,
        eax,
        flags,
        ..CpuidEntry::default()
    };
    let table = [
        leaf(0, 7, 0),
        leaf(1, 0, 0),
        leaf(7, 0, cpuid::FLAG_SIGNIFICANT_INDEX),
    ];
    let room = (uapi::get::<u32>(arg)? as usize).min(cpuid::MAX_ENTRIES);
    if room == 0 {
        return Err(E2BIG);
    }
    for i in 0..room {
        let at = uapi::element::<k::kvm_cpuid_entry2>(arg, 8, i)?;
        let entry = uapi::get::<k::kvm_cpuid_entry2>(at).map_err(|_| EINVAL)?;
        if entry.padding != [0; 3] {
            return Err(EINVAL);
        }
    }
    // One more than there are, as KVM wants it.
    if room <= table.len() {
        return Err(E2BIG);
    }
    put_cpuid(arg, &table)?;
    Ok(0)
}
