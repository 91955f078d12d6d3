// SPDX-License-Identifier: GPL-2.0
//! vCPU ioctls that programs seldom use, and registers by the shared page (api.rst 5, KVM_CAP_SYNC_REGS).

use crate::backend::{Groups, VcpuBackend};
use crate::cpu::events;
use crate::cpu::msr::{MachineCheck, MachineCheckEffect};
use crate::cpu::regs::cr4;
use crate::linux::mmap::SharedPages;
use crate::linux::sched::SignalMask;
use crate::run::off;
use crate::state::State;
use crate::uapi::{self, k, Uapi};
use crate::vcpu::{self, Vcpu};
use crate::vm::Vm;
use core::mem::offset_of;
use kernel::prelude::*;

/// KVM_GET_SREGS2 (api.rst 4.134).
#[inline(never)]
pub(crate) fn get_sregs2(vm: &Vm, s: &mut State, arg: usize) -> Result {
    let r = vcpu::get_sregs(s);
    let mut out = uapi::zeroed::<k::kvm_sregs2>();
    copy_common(&r, &mut out);
    if s.cpu.sregs.pae_paging() {
        let pdptes = match s.hw.pdptes() {
            Some(p) => p,
            None => s.read_pdptes(vm, r.cr3, false).unwrap_or([0; 4]),
        };
        out.pdptrs = pdptes;
        out.flags = u64::from(k::KVM_SREGS2_FLAGS_PDPTRS_VALID);
    }
    uapi::put(arg, &out)
}

/// The fields from `cs` to `apic_base`, with which both structures begin.
const COMMON: usize = offset_of!(k::kvm_sregs, interrupt_bitmap);
const _: () = assert!(COMMON == offset_of!(k::kvm_sregs2, flags));

fn copy_common<F: Uapi, T: Uapi>(from: &F, to: &mut T) {
    let to = uapi::bytes_of_mut(to).iter_mut();
    for (to, from) in to.zip(uapi::bytes_of(from)).take(COMMON) {
        *to = *from;
    }
}

/// KVM_SET_SREGS2 (api.rst 4.135). EINVAL also for unknown flags, and for PDPTEs without PAE paging.
#[inline(never)]
pub(crate) fn set_sregs2(vm: &Vm, vcpu: &Vcpu, s: &mut State, arg: usize) -> Result {
    const VALID: u64 = k::KVM_SREGS2_FLAGS_PDPTRS_VALID as u64;
    let from = uapi::get::<k::kvm_sregs2>(arg)?;
    let mut r = uapi::zeroed::<k::kvm_sregs>();
    copy_common(&from, &mut r);
    let pae = from.cr0 & crate::cpu::regs::cr0::PG != 0
        && from.cr4 & cr4::PAE != 0
        && from.efer & crate::cpu::regs::efer::LMA == 0;
    let pdptes = (from.flags & VALID != 0).then_some(from.pdptrs);
    if from.flags & !VALID != 0 || pdptes.is_some() && !pae {
        return Err(EINVAL);
    }
    let action = vcpu::set_sregs(vm, vcpu, s, &r, pdptes)?;
    vcpu.act(vm, s, &action);
    Ok(())
}

/// KVM_SET_SIGNAL_MASK (api.rst 4.18): the mask in force during KVM_RUN; a null pointer takes it back.
pub(crate) fn set_signal_mask(s: &mut State, arg: usize) -> Result {
    s.signal_mask = if arg == 0 {
        None
    } else {
        if uapi::get::<u32>(arg)? as usize != size_of::<u64>() {
            return Err(EINVAL);
        }
        let mask = arg.checked_add(size_of::<u32>()).ok_or(EFAULT)?;
        Some(SignalMask(uapi::get(mask)?))
    };
    Ok(())
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
    match s.msrs.machine_check(&m, enabled).map_err(|_| EINVAL)? {
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

/// What registers the shared page may carry.
pub(crate) const SYNC_REGS: u32 =
    k::KVM_SYNC_X86_REGS | k::KVM_SYNC_X86_SREGS | k::KVM_SYNC_X86_EVENTS;

const REGS_AT: usize = off::SYNC_REGS + offset_of!(k::kvm_sync_regs, regs);
const SREGS_AT: usize = off::SYNC_REGS + offset_of!(k::kvm_sync_regs, sregs);
const EVENTS_AT: usize = off::SYNC_REGS + offset_of!(k::kvm_sync_regs, events);

fn read<T: Uapi>(run: &SharedPages, at: usize) -> Result<T> {
    let mut v = uapi::zeroed::<T>();
    run.copy_out(at, uapi::bytes_of_mut(&mut v))?;
    Ok(v)
}

/// Before the guest runs: takes the registers that user space has marked dirty in the shared page, and takes the marks away.
/// `valid` and `dirty` are what the page says. EINVAL: unknown kinds, values that KVM_SET_SREGS or KVM_SET_VCPU_EVENTS would refuse.
#[cold]
#[inline(never)]
pub(crate) fn sync_from(vm: &Vm, vcpu: &Vcpu, s: &mut State, valid: u64, mut dirty: u64) -> Result {
    let run = &vcpu.run;
    if (valid | dirty) & !u64::from(SYNC_REGS) != 0 {
        return Err(EINVAL);
    }
    let marked = dirty;
    let mut done = |bit: u32| {
        dirty &= !u64::from(bit);
        run.write(off::DIRTY_REGS, dirty)
    };
    if has(marked, k::KVM_SYNC_X86_REGS) {
        vcpu::set_regs(s, &read(run, REGS_AT)?);
        done(k::KVM_SYNC_X86_REGS)?;
    }
    if has(marked, k::KVM_SYNC_X86_SREGS) {
        let action = vcpu::set_sregs(vm, vcpu, s, &read(run, SREGS_AT)?, None)?;
        vcpu.act(vm, s, &action);
        done(k::KVM_SYNC_X86_SREGS)?;
    }
    if has(marked, k::KVM_SYNC_X86_EVENTS) {
        vcpu::set_events(vm, vcpu, s, &read(run, EVENTS_AT)?)?;
        done(k::KVM_SYNC_X86_EVENTS)?;
    }
    Ok(())
}

fn has(kinds: u64, bit: u32) -> bool {
    kinds & u64::from(bit) != 0
}

/// After the guest ran: puts the registers that user space wants into the shared page.
#[cold]
#[inline(never)]
pub(crate) fn sync_to(vm: &Vm, vcpu: &Vcpu, s: &mut State, valid: u64) {
    let run = &vcpu.run;
    if has(valid, k::KVM_SYNC_X86_REGS) {
        let _ = run.copy_in(REGS_AT, uapi::bytes_of(&vcpu::get_regs(s)));
    }
    if has(valid, k::KVM_SYNC_X86_SREGS) {
        let _ = run.copy_in(SREGS_AT, uapi::bytes_of(&vcpu::get_sregs(s)));
    }
    if has(valid, k::KVM_SYNC_X86_EVENTS) {
        let events = vcpu::get_events(vm, vcpu, s);
        let _ = run.copy_in(EVENTS_AT, uapi::bytes_of(&events));
    }
}
