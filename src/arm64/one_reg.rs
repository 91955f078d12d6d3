// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_ONE_REG and KVM_SET_ONE_REG (api.rst 4.68): a vCPU's registers by their numbers.

use crate::abi::uapi::{self, k};
use crate::arm64::context::{Reg, ENCODINGS};
use crate::arm64::debug::{self, Debug};
use crate::arm64::el2::{self, Guest};
use crate::arm64::esr::SysReg;
use crate::arm64::idreg;
use crate::arm64::ids::Identity;
use crate::arm64::shared::VcpuShared;
use crate::arm64::smccc::BITMAPS;
use crate::arm64::timer;
use crate::arm64::vm::Vm;
use crate::nospec::Nospec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;

/// What a number stands for.
enum Place<'a> {
    U32(&'a mut u32),
    U64(&'a mut u64),
    U128(&'a mut u128),
    /// An ID register, which is the VM's.
    Id(SysReg),
    /// One about the implementation, which is the VM's as well.
    Identity(usize),
    /// MPIDR_EL1.
    Affinity,
    /// A register for debugging.
    Debug(&'a mut Debug, SysReg),
    /// The VM's virtual counter.
    Counter,
    /// The VM's physical counter.
    PhysicalCounter,
    /// The version of PSCI, which is the VM's.
    PsciVersion,
    /// What is said of a workaround, from 0.
    Workaround(usize),
    /// Which optional calls the VM's guests have.
    Calls(usize),
}

const SIZE_U32: u64 = 2 << 52;
const SIZE_U64: u64 = 3 << 52;
const SIZE_U128: u64 = 4 << 52;
/// Architecture and size.
const KIND: u64 = 0xfff0_0000_0000_0000;
const ARM64: u64 = 0x6000_0000_0000_0000;
/// Groups.
const CORE: u64 = 0x10 << 16;
const SYSREG: u64 = 0x13 << 16;
const FIRMWARE: u64 = 0x14 << 16;
/// KVM_REG_ARM_FW_FEAT_BMAP: calls that user space may take away.
const FIRMWARE_CALLS: u64 = 0x16 << 16;

/// KVM_REG_ARM_PSCI_VERSION.
const PSCI_VERSION: u64 = 0;
/// KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1 to 3.
const WORKAROUNDS: core::ops::Range<u64> = 1..4;
/// KVM_REG_ARM_STD_BMAP, STD_HYP_BMAP, VENDOR_HYP_BMAP, VENDOR_HYP_BMAP_2.
const CALL_BITMAPS: u64 = BITMAPS as u64;

/// Word of `struct kvm_regs` at which a member is.
macro_rules! word {
    ($($member:ident).+) => {
        (offset_of!(k::kvm_regs, $($member).+) / 4) as u64
    };
}
const PC: u64 = word!(regs.pc);
const SP: u64 = word!(regs.sp);
const PSTATE: u64 = word!(regs.pstate);
const SP_EL1: u64 = word!(sp_el1);
const ELR_EL1: u64 = word!(elr_el1);
const SPSR_EL1: u64 = word!(spsr);
/// SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq.
const BANKED: u64 = SPSR_EL1 + 2;
const VECTORS: u64 = word!(fp_regs);
const FPSR: u64 = VECTORS + 128;
const FPCR: u64 = VECTORS + 129;
/// Words of `struct kvm_regs`.
const WORDS: u64 = size_of::<k::kvm_regs>() as u64 / 4;
const MPIDR: SysReg = SysReg::new(3, 0, 0, 0, 5);
/// KVM_REG_ARM_TIMER_CVAL and KVM_REG_ARM_TIMER_CNT: KVM has the numbers of CNTV_CVAL_EL0 and CNTVCT_EL0 the wrong way
/// around, for ever.
const TIMER_CVAL: SysReg = SysReg::new(3, 3, 14, 0, 2);
const TIMER_CNT: SysReg = SysReg::new(3, 3, 14, 3, 2);

/// Where the register with that number is. ENOENT: there is none; EINVAL: not of this architecture, or a part of one.
fn find(g: &mut Guest, id: u64) -> Result<Place<'_>> {
    const SIZE: u64 = 0xf << 52;
    let (kind, group, index) = (id & KIND, id & 0xffff_ffff_0000 & !KIND, id & 0xffff);
    if (id & !SIZE) >> 32 != ARM64 >> 32 {
        return Err(EINVAL);
    }
    let place = match group {
        CORE => match index {
            x if x < SP && x % 2 == 0 => {
                Place::U64(g.regs.x.get_nospec_mut(x as usize / 2).ok_or(ENOENT)?)
            }
            SP => Place::U64(&mut g.regs.sp),
            PC => Place::U64(&mut g.regs.pc),
            PSTATE => Place::U64(&mut g.regs.pstate),
            SP_EL1 => Place::U64(&mut g.context.0[Reg::Sp1 as usize]),
            ELR_EL1 => Place::U64(&mut g.context.0[Reg::Elr as usize]),
            SPSR_EL1 => Place::U64(&mut g.context.0[Reg::Spsr as usize]),
            x if (BANKED..VECTORS).contains(&x) && (x - BANKED) % 2 == 0 => {
                let n = (x - BANKED) as usize / 2;
                Place::U64(g.banked.get_nospec_mut(n).ok_or(EINVAL)?)
            }
            FPSR => Place::U32(&mut g.vectors.fpsr),
            FPCR => Place::U32(&mut g.vectors.fpcr),
            v if (VECTORS..FPSR).contains(&v) && (v - VECTORS) % 4 == 0 => {
                let n = (v - VECTORS) as usize / 4;
                Place::U128(g.vectors.v.get_nospec_mut(n).ok_or(ENOENT)?)
            }
            x if x < WORDS => return Err(EINVAL),
            _ => return Err(ENOENT),
        },
        FIRMWARE if index == PSCI_VERSION => Place::PsciVersion,
        FIRMWARE if WORKAROUNDS.contains(&index) => Place::Workaround(index as usize - 1),
        FIRMWARE_CALLS if index < CALL_BITMAPS => Place::Calls(index as usize),
        SYSREG => {
            let reg = SysReg(index as u16);
            if reg == MPIDR {
                Place::Affinity
            } else if let Some(n) = Identity::index(reg) {
                Place::Identity(n)
            } else if let Some(n) = el2::KEPT.iter().position(|r| *r == reg) {
                Place::U64(g.kept.get_nospec_mut(n).ok_or(ENOENT)?)
            } else if idreg::is_id(reg) {
                Place::Id(reg)
            } else if g.debug.get(reg).is_some() {
                Place::Debug(&mut g.debug, reg)
            } else if reg == TIMER_CNT {
                Place::Counter
            } else if reg == TIMER_CVAL {
                Place::U64(&mut g.context.0[Reg::CntvCval as usize])
            } else if reg == timer::COUNT {
                Place::PhysicalCounter
            } else if reg == timer::CTL {
                Place::U64(&mut g.physical.ctl)
            } else if reg == timer::CVAL {
                Place::U64(&mut g.physical.cval)
            } else if let Some(n) = key_index(reg).filter(|_| g.has_keys) {
                Place::U64(g.regs.keys.get_nospec_mut(n).ok_or(ENOENT)?)
            } else if is_core(reg) {
                return Err(ENOENT);
            } else {
                Place::U64(g.context.by_encoding(reg).ok_or(ENOENT)?)
            }
        }
        _ => return Err(ENOENT),
    };
    let size = match place {
        Place::U32(_) => SIZE_U32,
        Place::U64(_)
        | Place::Affinity
        | Place::Identity(_)
        | Place::Debug(..)
        | Place::Id(_)
        | Place::Counter
        | Place::PhysicalCounter
        | Place::PsciVersion
        | Place::Calls(_)
        | Place::Workaround(_) => SIZE_U64,
        Place::U128(_) => SIZE_U128,
    };
    match kind == ARM64 | size {
        true => Ok(place),
        false if group == CORE => Err(EINVAL),
        false => Err(ENOENT),
    }
}

/// Keys of pointer authentication, two words each: APIA, APIB; APDA, APDB; APGA.
fn keys() -> impl Iterator<Item = SysReg> {
    (0..10).map(|n| SysReg::new(3, 0, 2, 1 + n / 4, n % 4))
}

/// Which of them a register is.
fn key_index(reg: SysReg) -> Option<usize> {
    keys().position(|key| key == reg)
}

/// Registers of the context that are in `struct kvm_regs`, and so have no number as system registers.
fn is_core(reg: SysReg) -> bool {
    [Reg::Sp1, Reg::Elr, Reg::Spsr]
        .iter()
        .any(|r| ENCODINGS.get_nospec(*r as usize) == Some(&reg))
}

/// KVM_GET_ONE_REG.
pub(crate) fn get(g: &mut Guest, vm: &Vm, r: &k::kvm_one_reg) -> Result {
    let addr = r.addr as usize;
    match find(g, r.id)? {
        Place::U32(v) => uapi::put(addr, v),
        Place::U64(v) => uapi::put(addr, v),
        Place::U128(v) => uapi::put(addr, &v.to_le_bytes()),
        Place::Affinity => uapi::put(addr, &g.mpidr),
        Place::Identity(n) => uapi::put(addr, &vm.identity.get(n)),
        Place::Debug(debug, reg) => uapi::put(addr, &debug.get(reg).ok_or(ENOENT)?),
        Place::Id(reg) => uapi::put(addr, &vm.ids.get(reg)),
        Place::Counter => uapi::put(addr, &now(&vm.counter_offset)),
        Place::PhysicalCounter => uapi::put(addr, &now(&vm.physical_offset)),
        Place::Calls(n) => {
            let bitmaps = vm.calls.bitmaps();
            uapi::put(addr, bitmaps.get_nospec(n).ok_or(ENOENT)?)
        }
        Place::PsciVersion => uapi::put(addr, &u64::from(vm.psci_policy().version)),
        Place::Workaround(n) => {
            let level = el2::levels().0.get_nospec(n).copied().unwrap_or(0);
            uapi::put(addr, &u64::from(level))
        }
    }
}

/// A counter that is so far behind the host's.
fn now(offset: &AtomicU64) -> u64 {
    el2::counter().wrapping_sub(offset.load(Ordering::Relaxed))
}

/// A counter says this now, if user space has not fixed its offset.
fn set_now(vm: &Vm, offset: &AtomicU64, value: u64) {
    if !vm.offsets_fixed.load(Ordering::Relaxed) {
        offset.store(el2::counter().wrapping_sub(value), Ordering::Relaxed);
    }
}

/// PSTATE.M of EL0 and EL1 with their own and with EL0's stack pointer. A guest has no other.
fn is_mode(pstate: u64) -> bool {
    matches!(pstate & 0x1f, 0 | 4 | 5)
}

/// KVM_SET_ONE_REG. EINVAL: a value that the register cannot have.
pub(crate) fn set(g: &mut Guest, vm: &Vm, shared: &VcpuShared, r: &k::kvm_one_reg) -> Result {
    let addr = r.addr as usize;
    if r.id == ARM64 | SIZE_U64 | CORE | PSTATE && !is_mode(uapi::get(addr)?) {
        return Err(EINVAL);
    }
    match find(g, r.id)? {
        Place::U32(v) => *v = uapi::get(addr)?,
        Place::U64(v) => *v = uapi::get(addr)?,
        Place::U128(v) => *v = u128::from_le_bytes(uapi::get(addr)?),
        Place::Counter => set_now(vm, &vm.counter_offset, uapi::get(addr)?),
        Place::PhysicalCounter => set_now(vm, &vm.physical_offset, uapi::get(addr)?),
        Place::Id(reg) => {
            let has_run = vm.has_run.load(Ordering::Relaxed);
            vm.ids.set(reg, uapi::get(addr)?, has_run)?;
        }
        Place::Debug(debug, reg) => {
            if !debug.set(reg, uapi::get(addr)?) {
                return Err(EINVAL);
            }
        }
        Place::PsciVersion => vm.set_psci_version(uapi::get(addr)?)?,
        Place::Workaround(n) => {
            if !el2::levels().accepts(n, uapi::get(addr)?) {
                return Err(EINVAL);
            }
        }
        Place::Calls(n) => {
            let has_run = vm.has_run.load(Ordering::Relaxed);
            vm.calls.set_bitmap(n, uapi::get(addr)?, has_run)?;
        }
        Place::Affinity => {
            let value = uapi::get::<u64>(addr)?;
            if value != g.mpidr {
                if vm.has_run.load(Ordering::Relaxed) {
                    return Err(EBUSY);
                }
                g.mpidr = value;
                shared.arch.set_mpidr(value);
            }
        }
        Place::Identity(n) => {
            let has_run = vm.has_run.load(Ordering::Relaxed);
            vm.identity.set(n, uapi::get(addr)?, has_run)?;
        }
    }
    Ok(())
}

/// Calls `f` for the number of each register.
fn each(has_keys: bool, mut f: impl FnMut(u64) -> Result) -> Result {
    let core = |index: u64, size: u64| ARM64 | size | CORE | index;
    for x in 0..31 {
        f(core(2 * x, SIZE_U64))?;
    }
    for index in [SP, PC, PSTATE, SP_EL1, ELR_EL1, SPSR_EL1] {
        f(core(index, SIZE_U64))?;
    }
    for n in 0..4 {
        f(core(BANKED + 2 * n, SIZE_U64))?;
    }
    for v in 0..32 {
        f(core(VECTORS + 4 * v, SIZE_U128))?;
    }
    f(core(FPSR, SIZE_U32))?;
    f(core(FPCR, SIZE_U32))?;
    for n in Iterator::chain(core::iter::once(PSCI_VERSION), WORKAROUNDS) {
        f(ARM64 | SIZE_U64 | FIRMWARE | n)?;
    }
    for n in 0..CALL_BITMAPS {
        f(ARM64 | SIZE_U64 | FIRMWARE_CALLS | n)?;
    }
    // TIMER_CNT is among them by CNTV_CVAL_EL0's own number.
    let system = ENCODINGS.iter().copied().filter(|r| !is_core(*r));
    let others = [MPIDR, TIMER_CVAL, timer::COUNT, timer::CTL, timer::CVAL];
    let keys = keys().filter(|_| has_keys);
    let ids = Iterator::chain(idreg::space(), debug::listed());
    let fixed = Iterator::chain(idreg::IDENTITY.into_iter(), el2::KEPT);
    let system = Iterator::chain(system, Iterator::chain(ids, fixed));
    for reg in Iterator::chain(Iterator::chain(system, others), keys) {
        f(ARM64 | SIZE_U64 | SYSREG | u64::from(reg.0))?;
    }
    Ok(())
}

/// KVM_GET_REG_LIST (api.rst 4.83), with its header at `arg`, of a vCPU that has keys or not. E2BIG: there are more
/// than there is room for.
pub(crate) fn list(has_keys: bool, arg: usize) -> Result {
    let room = uapi::get::<u64>(arg)?;
    let mut count = 0u64;
    each(has_keys, |_| {
        count += 1;
        Ok(())
    })?;
    uapi::put(arg, &count)?;
    if room < count {
        return Err(E2BIG);
    }
    let mut i = 0;
    each(has_keys, |id| {
        uapi::put(uapi::element::<u64>(arg, size_of::<u64>(), i)?, &id)?;
        i += 1;
        Ok(())
    })
}
