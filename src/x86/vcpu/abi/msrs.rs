// SPDX-License-Identifier: GPL-2.0
//! MSRs and machine checks (api.rst 4.18, 4.19, 4.107).
//!
//! The vCPU's ioctls call it under the vCPU's mutex, outside stays.

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::x86::cpu::events;
use crate::x86::cpu::mce::{MachineCheck, MachineCheckEffect};
use crate::x86::cpu::model;
use crate::x86::cpu::msr::MsrError;
use crate::x86::cpu::regs::cr4;
use crate::x86::vcpu::msr;
use crate::x86::vcpu::state::State;
use crate::x86::vcpu::Vcpu;
use crate::x86::vendor::Groups;
use crate::x86::vm::Vm;
use kernel::prelude::*;

/// Calls `f` for each entry of a `struct kvm_msrs` until it says false; how many were done.
pub(crate) fn each_msr(
    arg: usize,
    write_back: bool,
    mut f: impl FnMut(&mut k::kvm_msr_entry) -> bool,
) -> Result<isize> {
    const HEADER: usize = 8;
    /// KVM's MAX_IO_MSRS.
    const MAX: u32 = 256;
    let n = uapi::get::<u32>(arg)?;
    if n >= MAX {
        return Err(E2BIG);
    }
    for i in 0..n as usize {
        let at = uapi::element::<k::kvm_msr_entry>(arg, HEADER, i)?;
        let mut e = uapi::get::<k::kvm_msr_entry>(at)?;
        if !f(&mut e) {
            return Ok(i as isize);
        }
        if write_back {
            uapi::put(at, &e)?;
        }
    }
    Ok(n as isize)
}

/// KVM_GET_MSRS (api.rst 4.18): how many were read.
pub(crate) fn get_msrs(vm: &Vm, s: &mut State, arg: usize) -> Result<isize> {
    each_msr(arg, true, |e| {
        let value = get_msr(vm, s, e.index);
        e.data = value.unwrap_or(0);
        value.is_some()
    })
}

/// An MSR as user space reads it. What is listed can be read, and zero written, also by a vCPU that does not have it
/// (as in KVM).
fn get_msr(vm: &Vm, s: &mut State, index: u32) -> Option<u64> {
    match s.read_msr(vm, index, true) {
        Ok(v) => Some(v),
        Err(MsrError::Unknown) if model::lists_msr(index) => Some(0),
        Err(why) => msr::ignored("rdmsr", index, 0, why).then_some(0),
    }
}

/// KVM_SET_MSRS (api.rst 4.19): how many were written.
pub(crate) fn set_msrs(vm: &Vm, vcpu: &Vcpu, s: &mut State, arg: usize) -> Result<isize> {
    each_msr(arg, false, |e| {
        // What the vCPU is does not change any more, but may be said again.
        let fixed = s.has_run && model::is_fixed_msr(e.index);
        if fixed && get_msr(vm, s, e.index) != Some(e.data) {
            return false;
        }
        match s.write_msr(vm, e.index, e.data, true) {
            Ok(action) => {
                vcpu.apply_all(vm, s, &action);
                true
            }
            Err(why) => {
                e.data == 0 && why == MsrError::Unknown && model::lists_msr(e.index)
                    || msr::ignored("wrmsr", e.index, e.data, why)
            }
        }
    })
}

/// KVM_X86_SET_MCE (api.rst 4.107).
pub(crate) fn set_mce(s: &mut State, m: &k::kvm_x86_mce) -> Result {
    s.load(Groups::CTRL);
    let enabled = s.cpu.sregs.cr4 & cr4::MCE != 0;
    let m = MachineCheck {
        status: m.status,
        addr: m.addr,
        misc: m.misc,
        mcg_status: m.mcg_status,
        bank: m.bank,
    };
    match s.msrs.mce.report(&m, enabled).map_err(|_| EINVAL)? {
        MachineCheckEffect::Recorded => {}
        MachineCheckEffect::Exception => {
            if !s.raise(events::exception(events::vector::MC, None)) {
                s.events.triple_fault = true;
            }
        }
        MachineCheckEffect::Shutdown => s.events.triple_fault = true,
    }
    Ok(())
}
