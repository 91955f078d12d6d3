// SPDX-License-Identifier: GPL-2.0
//! The CPUID table (api.rst 4.20, 4.88).
//!
//! The vCPU's ioctls call it under the vCPU's mutex, outside stays.

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::x86::cpu::cpuid;
use crate::x86::cpu::cpuid::CpuidEntry;
use crate::x86::hyperv::cpuid::Granted;
use crate::x86::shared::request;
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;
use kernel::prelude::*;

/// Reads a CPUID table, of entries with sub-leaves (`struct kvm_cpuid2`) or without. EFAULT, E2BIG.
pub(crate) fn read_cpuid(arg: usize, subleaves: bool) -> Result<KVec<CpuidEntry>> {
    /// `struct kvm_cpuid_entry`: function, EAX to EDX, padding.
    type Plain = [u32; 6];
    let n = uapi::get::<u64>(arg)? as u32 as usize;
    if n > cpuid::MAX_ENTRIES {
        return Err(E2BIG);
    }
    let mut table = KVec::with_capacity(n, GFP_KERNEL_ACCOUNT)?;
    for i in 0..n {
        if !subleaves {
            let mut e: Plain = [0; 6];
            for (j, word) in e.iter_mut().enumerate() {
                *word = uapi::get(uapi::element::<u32>(arg, 8, 6 * i + j)?)?;
            }
            let entry = CpuidEntry {
                function: e[0],
                eax: e[1],
                ebx: e[2],
                ecx: e[3],
                edx: e[4],
                ..CpuidEntry::default()
            };
            table.push_within_capacity(entry).map_err(|_| ENOMEM)?;
            continue;
        }
        let e = uapi::get::<k::kvm_cpuid_entry2>(uapi::element::<k::kvm_cpuid_entry2>(arg, 8, i)?)?;
        let entry = CpuidEntry {
            function: e.function,
            index: e.index,
            flags: e.flags,
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            padding: [0; 3],
        };
        table.push_within_capacity(entry).map_err(|_| ENOMEM)?;
    }
    Ok(table)
}

/// KVM_SET_CPUID and KVM_SET_CPUID2 (api.rst 4.20, 4.88). EINVAL also where a vCPU that has run would see another
/// table.
pub(crate) fn set_cpuid(vm: &Vm, s: &mut State, mut table: KVec<CpuidEntry>) -> Result {
    cpuid::check_table(&table).map_err(|e| match e {
        cpuid::TableError::TooMany => E2BIG,
        cpuid::TableError::LinearWidth => EINVAL,
    })?;
    if s.has_run {
        // The table that is there may be set again, with the bits that follow registers as they were or as they are
        // now.
        let same = |(a, b): (&CpuidEntry, &CpuidEntry)| {
            (a.function, a.index, a.flags) == (b.function, b.index, b.flags)
                && s.cpuid.dynamic.apply(a) == s.cpuid.dynamic.apply(b)
        };
        if table.len() != s.cpuid.table.len() || !table.iter().zip(s.cpuid.table.iter()).all(same) {
            return Err(EINVAL);
        }
        return Ok(());
    }
    // Nobody can be woken from a HLT that does not exit.
    if vm.caps.disabled_exits() & u64::from(k::KVM_X86_DISABLE_EXITS_HLT) != 0 {
        cpuid::hide_pv_unhalt(&mut table);
    }
    if Granted::from_table(&table).enabled {
        let _ = s.hyperv()?;
        if let Some(v) = vm.vcpus.with_id(s.id) {
            // It may be set in the VM already.
            v.request_self(request::HYPERV);
        }
    }
    s.cpuid.mwait_follows = !vm.caps.quirk(k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT);
    s.set_cpuid(vm, table);
    Ok(())
}
