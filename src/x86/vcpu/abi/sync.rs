// SPDX-License-Identifier: GPL-2.0
//! Registers in the shared page `kvm_run` (api.rst 5, KVM_CAP_SYNC_REGS).
//!
//! KVM_RUN calls these under the vCPU's mutex, before its first stay and after its last one.

use crate::abi::exits;
use crate::abi::uapi;
use crate::abi::uapi::{k, Uapi};
use crate::linux::mmap::Shared;
use crate::x86::vcpu::abi::events::{get_events, set_events};
use crate::x86::vcpu::abi::regs::{get_regs, get_sregs, set_regs, set_sregs};
use crate::x86::vcpu::state::State;
use crate::x86::vcpu::{RunPages, Vcpu};
use crate::x86::vm::Vm;
use core::mem::offset_of;
use kernel::prelude::*;

/// What registers the shared page may carry.
pub(crate) const SYNC_REGS: u32 =
    k::KVM_SYNC_X86_REGS | k::KVM_SYNC_X86_SREGS | k::KVM_SYNC_X86_EVENTS;

const REGS_AT: usize = exits::SYNC_REGS + offset_of!(k::kvm_sync_regs, regs);

const SREGS_AT: usize = exits::SYNC_REGS + offset_of!(k::kvm_sync_regs, sregs);

const EVENTS_AT: usize = exits::SYNC_REGS + offset_of!(k::kvm_sync_regs, events);

/// One structure of the shared page.
fn read<T: Uapi>(run: &RunPages, at: usize) -> Result<T> {
    let mut v = uapi::zeroed::<T>();
    run.copy_out(at, uapi::bytes_of_mut(&mut v))?;
    Ok(v)
}

/// Before the guest runs: takes the registers that user space has marked dirty in the shared page, and takes the marks
/// away. `valid` and `dirty` are what the page says. EINVAL: unknown kinds, values that KVM_SET_SREGS or
/// KVM_SET_VCPU_EVENTS would refuse.
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
        run.put(exits::DIRTY_REGS, dirty);
    };
    if has(marked, k::KVM_SYNC_X86_REGS) {
        set_regs(s, &read(run, REGS_AT)?);
        done(k::KVM_SYNC_X86_REGS);
    }
    if has(marked, k::KVM_SYNC_X86_SREGS) {
        set_sregs(vm, vcpu, s, &read(run, SREGS_AT)?, None)?;
        done(k::KVM_SYNC_X86_SREGS);
    }
    if has(marked, k::KVM_SYNC_X86_EVENTS) {
        set_events(vm, vcpu, s, &read(run, EVENTS_AT)?)?;
        done(k::KVM_SYNC_X86_EVENTS);
    }
    Ok(())
}

/// Whether `kinds` has KVM_SYNC_X86_* `bit`.
fn has(kinds: u64, bit: u32) -> bool {
    kinds & u64::from(bit) != 0
}

/// After the guest ran: puts the registers that user space wants into the shared page.
#[cold]
#[inline(never)]
pub(crate) fn sync_to(vm: &Vm, vcpu: &Vcpu, s: &mut State, valid: u64) {
    let run = &vcpu.run;
    if has(valid, k::KVM_SYNC_X86_REGS) {
        let _ = run.copy_in(REGS_AT, uapi::bytes_of(&get_regs(s)));
    }
    if has(valid, k::KVM_SYNC_X86_SREGS) {
        let _ = run.copy_in(SREGS_AT, uapi::bytes_of(&get_sregs(s)));
    }
    if has(valid, k::KVM_SYNC_X86_EVENTS) {
        let events = get_events(vm, vcpu, s);
        let _ = run.copy_in(EVENTS_AT, uapi::bytes_of(&events));
    }
}
