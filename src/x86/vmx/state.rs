// SPDX-License-Identifier: GPL-2.0
//! Guest state between `Sregs` and the VMCS (SDM 3C 25.4, 27.3.1).
//!
//! The vCPU calls this under its mutex, with interrupts off and the VMCS current, for the groups of registers that an
//! entry or the core asks for.

use super::bits::rights;
use super::config::VmcsConfig;
use super::insn::Current;
use super::msr;
use super::vmcs::*;
use crate::linux::cr;
use crate::x86::cpu::regs::{cr0, cr4, efer, DescTable, Mode, Seg, Segment, Sregs};
use crate::x86::paging::fetch::Code;
use crate::x86::vendor::{Groups, VendorState, KEPT_MSRS};

/// CR0 bits that the guest changes without an exit; all others are the host's, with the guest's view in the
/// read shadow (SDM 3C 25.6.6). PE and PG change the mode, CD and NW must not reach the caches.
const CR0_GUEST_OWNED: u64 = cr0::MP | cr0::EM | cr0::TS | cr0::WP | cr0::AM;

/// CR4 bits that the guest changes without an exit: those whose only effect is inside the guest and that every
/// guest's CPUID shows.
const CR4_GUEST_OWNED: u64 = cr4::TSD | cr4::DE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT;

/// CR0 bits that VM entry does not load (SDM 3C 27.3.2.1); kept out of the field.
const CR0_NOT_LOADED: u64 = cr0::CD | cr0::NW;

/// Type of a busy 64-bit TSS, of a busy 16-bit TSS, and the bit that makes a TSS busy.
const TSS_BUSY_64: u8 = 11;
const TSS_BUSY: u8 = 2;

/// What of the guest's control state is known without reading the VMCS, because its changes exit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ControlState {
    /// CR0 as the guest sees it, in the bits that are the host's.
    pub(super) cr0_shadow: u64,
    /// CR4 as the guest sees it, in the bits that are the host's.
    pub(super) cr4_shadow: u64,
    /// IA32_EFER.
    pub(super) efer: u64,
}

impl ControlState {
    /// Whether the guest is in protected mode.
    #[inline]
    pub(super) const fn protected(&self) -> bool {
        self.cr0_shadow & cr0::PE != 0
    }
}

/// Access rights in the VMCS's format (SDM 3C table 25-2).
///
/// An unusable segment keeps its other bits: SS.DPL is the CPL in any case.
fn access_rights(s: &Segment) -> u32 {
    u32::from(s.typ & 15)
        | u32::from(s.s) << 4
        | u32::from(s.dpl & 3) << 5
        | u32::from(s.present) << 7
        | u32::from(s.avl) << 12
        | u32::from(s.l) << 13
        | u32::from(s.db) << 14
        | u32::from(s.g) << 15
        | if s.unusable || !s.present {
            rights::UNUSABLE
        } else {
            0
        }
}

/// The inverse of [`access_rights`]; base, limit and selector are left to the caller.
fn from_access_rights(ar: u32) -> Segment {
    let unusable = ar & rights::UNUSABLE != 0;
    Segment {
        typ: (ar & rights::TYPE) as u8,
        s: ar & rights::S != 0,
        dpl: ((ar >> 5) & 3) as u8,
        // KVM's view: an unusable segment is not present, however the processor left the bit.
        present: ar & rights::P != 0 && !unusable,
        avl: ar & rights::AVL != 0,
        l: ar & rights::L != 0,
        db: ar & rights::DB != 0,
        g: ar & rights::G != 0,
        unusable,
        ..Segment::default()
    }
}

/// A segment as the entry checks want it (SDM 3C 27.3.1.2): usable code and data segments are accessed, and
/// TR holds a busy TSS, a 64-bit one in IA-32e mode. Loading the register would have set the same bits.
fn entry_segment(seg: Seg, s: &Segment, long: bool) -> Segment {
    let mut out = *s;
    match seg {
        Seg::Ldtr => {}
        Seg::Tr => {
            out.typ |= TSS_BUSY;
            if long {
                out.typ = TSS_BUSY_64;
            }
        }
        _ if !s.unusable && s.present && s.s => out.typ |= 1,
        _ => {}
    }
    out
}

const CODE_SEGS: [Seg; 2] = [Seg::Cs, Seg::Ss];
const OTHER_SEGS: [Seg; 6] = [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs, Seg::Ldtr, Seg::Tr];

fn write_segment(vm: Current<'_>, seg: Seg, sregs: &Sregs, long: bool) {
    let n = seg as u32;
    let s = entry_segment(seg, sregs.seg(seg), long);
    vm.write(GUEST_ES_SELECTOR.nth(n), s.selector);
    vm.write(GUEST_ES_BASE.nth(n), s.base);
    vm.write(GUEST_ES_LIMIT.nth(n), s.limit);
    vm.write(GUEST_ES_ACCESS_RIGHTS.nth(n), access_rights(&s));
}

/// Access rights as last read, with their decoded form: they rarely change between two exits.
pub(super) type RightsCache = [(u32, Segment); 8];

/// One segment register.
#[inline]
pub(super) fn segment(vm: Current<'_>, seg: Seg, cache: &mut RightsCache) -> Segment {
    let n = seg as u32;
    let cached = &mut cache[seg as usize];
    let rights = vm.read(GUEST_ES_ACCESS_RIGHTS.nth(n));
    if rights != cached.0 {
        *cached = (rights, from_access_rights(rights));
    }
    Segment {
        selector: vm.read(GUEST_ES_SELECTOR.nth(n)),
        base: vm.read(GUEST_ES_BASE.nth(n)),
        limit: vm.read(GUEST_ES_LIMIT.nth(n)),
        ..cached.1
    }
}

/// What decides about fetches, at privilege level `cpl`. CR0.PE and PG, EFER, and the bits of CR4 in question are the
/// host's.
#[inline]
pub(super) fn code(vm: Current<'_>, control: &ControlState, rflags: u64, cpl: u8) -> Code {
    let cs = Seg::Cs as u32;
    let ar = vm.read(GUEST_ES_ACCESS_RIGHTS.nth(cs));
    let (cr0, efer) = (control.cr0_shadow, control.efer);
    let mode = Mode::of(cr0, efer, rflags, ar & rights::L != 0, ar & rights::DB != 0);
    Code {
        mode,
        cpl,
        cr0,
        cr3: vm.read(GUEST_CR3),
        cr4: control.cr4_shadow,
        efer,
        base: match mode {
            Mode::Long => 0,
            _ => vm.read(GUEST_ES_BASE.nth(cs)),
        },
    }
}

/// CR0 as the processor gets it for the guest's `value`.
const fn real_cr0(config: &VmcsConfig, value: u64) -> u64 {
    // With unrestricted guest PE and PG may be clear (SDM 3C 27.3.1.1).
    let fixed = config.cr0_fixed0 & !(cr0::PE | cr0::PG);
    (value & !CR0_NOT_LOADED) | fixed | cr0::ET
}

/// CR4 as the processor gets it for the guest's `value`. Machine checks stay enabled as on the host: with
/// CR4.MCE clear one would shut the processor down instead of exiting.
fn real_cr4(config: &VmcsConfig, value: u64) -> u64 {
    let value = if config.umip_exits {
        value & !cr4::UMIP
    } else {
        value
    };
    value | config.cr4_fixed0 | (cr::cr4() & cr4::MCE)
}

/// Writes the groups in `groups` to the VMCS.
///
/// With [`Groups::CTRL`] the entry control "IA-32e mode guest" has to follow EFER.LMA: the caller writes it.
pub(super) fn write(
    vm: Current<'_>,
    config: &VmcsConfig,
    control: &mut ControlState,
    sregs: &Sregs,
    groups: Groups,
) {
    if groups.contains(Groups::CTRL) {
        *control = ControlState {
            cr0_shadow: sregs.cr0,
            cr4_shadow: sregs.cr4,
            efer: sregs.efer,
        };
        vm.write(GUEST_CR0, real_cr0(config, sregs.cr0));
        vm.write(GUEST_CR4, real_cr4(config, sregs.cr4));
        vm.write(GUEST_CR3, sregs.cr3);
        vm.write(GUEST_EFER, sregs.efer);
        // SAFETY: Read shadows only decide what the guest reads and which of its writes exit.
        unsafe {
            vm.write_control(CR0_SHADOW, sregs.cr0);
            vm.write_control(CR4_SHADOW, sregs.cr4);
        }
    }
    let long = control.efer & efer::LMA != 0;
    if groups.contains(Groups::CODE) {
        for seg in CODE_SEGS {
            write_segment(vm, seg, sregs, long);
        }
    }
    if groups.contains(Groups::SEGS) {
        for seg in OTHER_SEGS {
            write_segment(vm, seg, sregs, long);
        }
    } else if groups.contains(Groups::CTRL) && long {
        // A guest may enter IA-32e mode with the TSS of before still in TR.
        let tr = Seg::Tr as u32;
        let ar = vm.read(GUEST_ES_ACCESS_RIGHTS.nth(tr));
        let fixed = (ar & !rights::TYPE) | u32::from(TSS_BUSY_64);
        if ar != fixed {
            vm.write(GUEST_ES_ACCESS_RIGHTS.nth(tr), fixed);
        }
    }
    if groups.contains(Groups::TABLES) {
        vm.write(GUEST_GDTR_BASE, sregs.gdt.base);
        vm.write(GUEST_GDTR_LIMIT, u32::from(sregs.gdt.limit));
        vm.write(GUEST_IDTR_BASE, sregs.idt.base);
        vm.write(GUEST_IDTR_LIMIT, u32::from(sregs.idt.limit));
    }
}

/// Reads the groups in `groups` from the VMCS.
pub(super) fn load(
    vm: Current<'_>,
    control: &ControlState,
    rights: &mut RightsCache,
    sregs: &mut Sregs,
    groups: Groups,
) {
    if groups.contains(Groups::CTRL) {
        sregs.cr0 =
            (vm.read(GUEST_CR0) & CR0_GUEST_OWNED) | (control.cr0_shadow & !CR0_GUEST_OWNED);
        sregs.cr4 =
            (vm.read(GUEST_CR4) & CR4_GUEST_OWNED) | (control.cr4_shadow & !CR4_GUEST_OWNED);
        sregs.cr3 = vm.read(GUEST_CR3);
        sregs.efer = control.efer;
    }
    if groups.contains(Groups::CODE) {
        for seg in CODE_SEGS {
            *sregs.seg_mut(seg) = segment(vm, seg, rights);
        }
    }
    if groups.contains(Groups::SEGS) {
        for seg in OTHER_SEGS {
            *sregs.seg_mut(seg) = segment(vm, seg, rights);
        }
    }
    if groups.contains(Groups::TABLES) {
        sregs.gdt = DescTable {
            base: vm.read(GUEST_GDTR_BASE),
            limit: vm.read(GUEST_GDTR_LIMIT) as u16,
        };
        sregs.idt = DescTable {
            base: vm.read(GUEST_IDTR_BASE),
            limit: vm.read(GUEST_IDTR_LIMIT) as u16,
        };
    }
}

/// Writes the guest/host masks, once per VMCS.
pub(super) fn set_up(vm: Current<'_>) {
    // SAFETY: More bits of the host's are never less confining; the bits left to the guest have no effect
    // outside it.
    unsafe {
        vm.write_control(CR0_MASK, !CR0_GUEST_OWNED);
        vm.write_control(CR4_MASK, !CR4_GUEST_OWNED);
    }
}

/// Reads the PDPTEs.
pub(super) fn pdptes(vm: Current<'_>) -> [u64; 4] {
    [0, 1, 2, 3].map(|n| vm.read(GUEST_PDPTE0.nth(n)))
}

/// Reads what [`VendorState`] has of the VMCS.
pub(super) fn save(vm: Current<'_>, to: &mut VendorState) {
    for (to, index) in to.msrs.iter_mut().zip(KEPT_MSRS) {
        if msr::has_field(index) {
            *to = msr::read_field(vm, index);
        }
    }
    to.pdptes = Some(pdptes(vm));
    to.pending_debug = vm.read(GUEST_PENDING_DEBUG);
    to.activity = vm.read(GUEST_ACTIVITY_STATE);
}

/// Writes it.
pub(super) fn put_back(vm: Current<'_>, from: &VendorState) {
    for (index, value) in KEPT_MSRS.iter().zip(from.msrs) {
        if let Some(value) = value.filter(|_| msr::has_field(*index)) {
            msr::write_field(vm, *index, value);
        }
    }
    vm.write(GUEST_PENDING_DEBUG, from.pending_debug);
    vm.write(GUEST_ACTIVITY_STATE, from.activity);
}
