// SPDX-License-Identifier: GPL-2.0
//! MSRs and machine checks (api.rst 4.18, 4.19, 4.107).
//!
//! The vCPU's ioctls call it under the vCPU's mutex, outside stays.

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::x86::cpu::events;
use crate::x86::cpu::mce::{MachineCheck, MachineCheckEffect};
use crate::x86::cpu::model;
use crate::x86::cpu::regs::cr4;
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
    each_msr(arg, true, |e| match s.read_msr(vm, e.index, true) {
        Some(v) => {
            e.data = v;
            true
        }
        // What is listed can be read, and zero written, also by a vCPU that does not have it (as in KVM).
        None if model::lists_msr(e.index) => {
            e.data = 0;
            true
        }
        None => false,
    })
}

/// KVM_SET_MSRS (api.rst 4.19): how many were written.
pub(crate) fn set_msrs(vm: &Vm, vcpu: &Vcpu, s: &mut State, arg: usize) -> Result<isize> {
    each_msr(arg, false, |e| {
        match s.write_msr(vm, e.index, e.data, true) {
            Some(action) => {
                vcpu.apply_all(vm, s, &action);
                true
            }
            None => e.data == 0 && model::lists_msr(e.index),
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
