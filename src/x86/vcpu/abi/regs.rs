// SPDX-License-Identifier: GPL-2.0
//! General and system registers, and addresses by them (api.rst 4.11 to 4.15, 4.134, 4.135).
//!
//! The vCPU's ioctls call it under the vCPU's mutex, outside stays.

use crate::abi::uapi;
use crate::abi::uapi::{k, Uapi};
use crate::mem::addr::Gva;
use crate::x86::cpu::control;
use crate::x86::cpu::events;
use crate::x86::cpu::regs::{
    clean_rflags, cr0, cr4, dr6, dr7, efer, DescTable, Seg, Segment, Sregs,
};
use crate::x86::exit::{Event, EventKind};
use crate::x86::irqchip::lapic::Action;
use crate::x86::paging::gwalk;
use crate::x86::vcpu::guest_mem::Tables;
use crate::x86::vcpu::state::{Completion, MpState, State};
use crate::x86::vcpu::Vcpu;
use crate::x86::vendor::{Groups, VcpuBackend};
use crate::x86::vm::Vm;
use core::mem::offset_of;
use kernel::prelude::*;

/// KVM_GET_REGS (api.rst 4.11).
pub(crate) fn get_regs(s: &State) -> k::kvm_regs {
    let g = &s.cpu.regs.gpr;
    k::kvm_regs {
        rax: g[0],
        rcx: g[1],
        rdx: g[2],
        rbx: g[3],
        rsp: g[4],
        rbp: g[5],
        rsi: g[6],
        rdi: g[7],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: s.cpu.regs.rip,
        rflags: s.visible_rflags(),
    }
}

/// User space moves the vCPU. What its last exit left open belongs to an instruction that it may not be at any more
/// when it runs again (`Runner::complete` finds out): a reset that an OUT asked for comes this way.
fn leave_instruction(s: &mut State) {
    if s.pending.completion != Completion::Nothing && s.pending.came_from.is_none() {
        s.pending.came_from = Some(s.linear_rip());
    }
}

/// KVM_SET_REGS (api.rst 4.12).
pub(crate) fn set_regs(s: &mut State, r: &k::kvm_regs) {
    if r.rip != s.cpu.regs.rip {
        leave_instruction(s);
    }
    s.cpu.regs.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    s.cpu.regs.rip = r.rip;
    s.set_visible_rflags(clean_rflags(r.rflags));
    // An exception that has not been delivered belongs to the state that is gone (as in KVM).
    s.events.exception = None;
    s.hw.wake();
}

/// A segment as `struct kvm_segment` has it.
fn to_kvm_segment(x: &Segment) -> k::kvm_segment {
    k::kvm_segment {
        base: x.base,
        limit: x.limit,
        selector: x.selector,
        type_: x.typ,
        present: x.present.into(),
        dpl: x.dpl,
        db: x.db.into(),
        s: x.s.into(),
        l: x.l.into(),
        g: x.g.into(),
        avl: x.avl.into(),
        unusable: x.unusable.into(),
        padding: 0,
    }
}

/// A segment of `struct kvm_segment`. Without its present bit it is unusable.
fn from_kvm_segment(x: &k::kvm_segment) -> Segment {
    Segment {
        base: x.base,
        limit: x.limit,
        selector: x.selector,
        typ: x.type_ & 15,
        s: x.s != 0,
        dpl: x.dpl & 3,
        present: x.present != 0,
        avl: x.avl != 0,
        l: x.l != 0,
        db: x.db != 0,
        g: x.g != 0,
        unusable: x.unusable != 0 || x.present == 0,
    }
}

/// KVM_GET_SREGS (api.rst 4.13).
pub(crate) fn get_sregs(s: &mut State) -> k::kvm_sregs {
    s.load(Groups::ALL);
    let x = &s.cpu.sregs;
    let mut r = uapi::zeroed::<k::kvm_sregs>();
    r.cs = to_kvm_segment(x.seg(Seg::Cs));
    r.ds = to_kvm_segment(x.seg(Seg::Ds));
    r.es = to_kvm_segment(x.seg(Seg::Es));
    r.fs = to_kvm_segment(x.seg(Seg::Fs));
    r.gs = to_kvm_segment(x.seg(Seg::Gs));
    r.ss = to_kvm_segment(x.seg(Seg::Ss));
    r.tr = to_kvm_segment(x.seg(Seg::Tr));
    r.ldt = to_kvm_segment(x.seg(Seg::Ldtr));
    r.gdt.base = x.gdt.base;
    r.gdt.limit = x.gdt.limit;
    r.idt.base = x.idt.base;
    r.idt.limit = x.idt.limit;
    r.cr0 = x.cr0;
    r.cr2 = x.cr2;
    r.cr3 = x.cr3;
    r.cr4 = x.cr4;
    r.efer = x.efer;
    r.cr8 = u64::from(s.cr8());
    r.apic_base = s.apic.lapic.as_ref().map_or(s.apic.base, |l| l.apic_base());
    if let Some(Event {
        kind: EventKind::ExternalInterrupt,
        vector,
        ..
    }) = s.events.interrupted
    {
        set_bit(&mut r.interrupt_bitmap, vector);
    } else if let Some(v) = s.events.external {
        if s.apic.lapic.is_none() {
            set_bit(&mut r.interrupt_bitmap, v);
        }
    }
    r
}

/// Sets bit `n` of `kvm_sregs.interrupt_bitmap`.
fn set_bit(bitmap: &mut [u64; 4], n: u8) {
    if let Some(w) = bitmap.get_mut(usize::from(n >> 6)) {
        *w |= 1 << (n & 63);
    }
}

/// The system registers in force, with what `r` says of them.
fn merged(s: &State, r: &k::kvm_sregs) -> Sregs {
    let mut x = s.cpu.sregs;
    for (seg, from) in [
        (Seg::Cs, &r.cs),
        (Seg::Ds, &r.ds),
        (Seg::Es, &r.es),
        (Seg::Fs, &r.fs),
        (Seg::Gs, &r.gs),
        (Seg::Ss, &r.ss),
        (Seg::Tr, &r.tr),
        (Seg::Ldtr, &r.ldt),
    ] {
        *x.seg_mut(seg) = from_kvm_segment(from);
    }
    x.gdt = DescTable {
        base: r.gdt.base,
        limit: r.gdt.limit,
    };
    x.idt = DescTable {
        base: r.idt.base,
        limit: r.idt.limit,
    };
    x.cr0 = r.cr0;
    x.cr2 = r.cr2;
    x.cr3 = r.cr3;
    x.cr4 = r.cr4;
    x.efer = r.efer;
    x
}

/// Sets IA32_APIC_BASE and CR8, which belong to the local APIC if that is in the kernel. CR8 stays what it is where
/// reserved bits are set, as in KVM.
fn set_apic(s: &mut State, r: &k::kvm_sregs) -> Result<Action> {
    let cr8 = u8::try_from(r.cr8).ok().filter(|cr8| *cr8 < 16);
    match &mut s.apic.lapic {
        Some(l) => {
            let action = l.set_apic_base(r.apic_base, true).map_err(|_| EINVAL)?;
            if let Some(cr8) = cr8 {
                l.set_cr8(cr8);
            }
            Ok(action)
        }
        None => {
            s.check_apic_base(r.apic_base).ok_or(EINVAL)?;
            s.apic.base = r.apic_base;
            s.apic.cr8 = cr8.unwrap_or(s.apic.cr8);
            Ok(Action::NONE)
        }
    }
}

/// The interrupt in `kvm_sregs.interrupt_bitmap`: the first one.
fn pending_interrupt(r: &k::kvm_sregs) -> Option<u8> {
    let words = r.interrupt_bitmap.iter().zip(0u32..);
    let (w, i) = words.into_iter().find(|(w, _)| **w != 0)?;
    Some((i * 64 + w.trailing_zeros()) as u8)
}

/// KVM_SET_SREGS (api.rst 4.14), with the PDPTEs of KVM_SET_SREGS2 if user space gave any. EINVAL: values that no
/// processor takes.
pub(crate) fn set_sregs(
    vm: &Vm,
    vcpu: &Vcpu,
    s: &mut State,
    r: &k::kvm_sregs,
    pdptes: Option<[u64; 4]>,
) -> Result {
    s.load(Groups::CODE);
    let mut x = merged(s, r);
    control::sregs_valid(&x, &s.cpuid.features).map_err(|_| EINVAL)?;
    let action = set_apic(s, r)?;
    leave_instruction(s);
    x.cr0 |= cr0::ET;
    s.cpu.sregs = x;
    s.cpu.avail = Groups::ALL;
    s.cpu.dirty = Groups::ALL;
    s.last_stay.tlb_generation = 0;
    s.hw.wake();
    s.refresh_dynamic();
    if s.cpu.sregs.pae_paging() {
        // User space may set the registers before memory: what cannot be read now is taken as not present.
        let pdptes = pdptes
            .or_else(|| s.read_pdptes(vm, s.cpu.sregs.cr3, None).ok())
            .unwrap_or([0; 4]);
        s.hw.set_pdptes(pdptes);
    }
    if let Some(v) = pending_interrupt(r) {
        s.events.interrupted = Some(events::interrupt_event(v));
    }
    // A vCPU put at the reset vector in real mode starts there (as in KVM), also an AP.
    if vcpu.shared.id == vm.boot_cpu()
        && s.cpu.regs.rip == 0xfff0
        && x.seg(Seg::Cs).selector == 0xf000
        && x.cr0 & cr0::PE == 0
    {
        s.mp_state = MpState::Runnable;
    }
    let _ = vcpu.apply(vm, s, &action);
    Ok(())
}

/// KVM_GET_SREGS2 (api.rst 4.134).
#[inline(never)]
pub(crate) fn get_sregs2(vm: &Vm, s: &mut State, arg: usize) -> Result {
    let r = get_sregs(s);
    let mut out = uapi::zeroed::<k::kvm_sregs2>();
    copy_common(&r, &mut out);
    if s.cpu.sregs.pae_paging() {
        let pdptes = match s.hw.pdptes() {
            Some(p) => p,
            None => s.read_pdptes(vm, r.cr3, None).unwrap_or([0; 4]),
        };
        out.pdptrs = pdptes;
        out.flags = u64::from(k::KVM_SREGS2_FLAGS_PDPTRS_VALID);
    }
    uapi::put(arg, &out)
}

/// The fields from `cs` to `apic_base`, with which both structures begin.
const COMMON: usize = offset_of!(k::kvm_sregs, interrupt_bitmap);

const _: () = assert!(COMMON == offset_of!(k::kvm_sregs2, flags));

/// Copies the fields that both structures begin with.
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
    let pae = from.cr0 & cr0::PG != 0 && from.cr4 & cr4::PAE != 0 && from.efer & efer::LMA == 0;
    let pdptes = (from.flags & VALID != 0).then_some(from.pdptrs);
    if from.flags & !VALID != 0 || pdptes.is_some() && !pae {
        return Err(EINVAL);
    }
    set_sregs(vm, vcpu, s, &r, pdptes)
}

/// KVM_GET_DEBUGREGS (api.rst 4.33).
pub(crate) fn get_debugregs(s: &State) -> k::kvm_debugregs {
    let mut d = uapi::zeroed::<k::kvm_debugregs>();
    (d.db, d.dr7) = s.guest_breakpoints();
    d.dr6 = s.cpu.dr6;
    d
}

/// KVM_SET_DEBUGREGS (api.rst 4.34). EINVAL: flags, or upper halves.
pub(crate) fn set_debugregs(s: &mut State, d: &k::kvm_debugregs) -> Result {
    if d.flags != 0 || d.dr6 >> 32 != 0 || d.dr7 >> 32 != 0 {
        return Err(EINVAL);
    }
    s.set_guest_breakpoints(d.db, dr7::loaded(d.dr7));
    s.cpu.dr6 = dr6::loaded(d.dr6);
    Ok(())
}

/// KVM_TRANSLATE (api.rst 4.15).
pub(crate) fn translate(vm: &Vm, s: &mut State, t: &mut k::kvm_translation) {
    let paging = s.paging();
    // All ones are KVM's word for none, also without paging, where every other address is found.
    t.physical_address = if s.cpu.sregs.cr0 & cr0::PG == 0 {
        t.linear_address
    } else {
        let mut tables = Tables {
            view: &s.memory(vm).view(),
            stay: None,
        };
        let access = gwalk::Access::implicit(false);
        let found = paging.probe(&mut tables, Gva(t.linear_address), access);
        found.map_or(u64::MAX, |gpa| gpa.0)
    };
    t.valid = (t.physical_address != u64::MAX).into();
    t.writeable = 1;
    t.usermode = 0;
}
