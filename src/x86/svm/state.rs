// SPDX-License-Identifier: GPL-2.0
//! Guest state between `CpuState` and the VMCB (APM 2 15.5.1).
//!
//! `vcpu` calls [`enter`] and [`exit`] around each VMRUN in a stay (interrupts off), [`write`] before one if
//! something was changed, and [`load`] at any time under the vCPU's mutex.

use super::breakpoints::DR6_RESET;
use super::vmcb::{Save, Vmcb, VmcbSegment};
use crate::linux::cr;
use crate::x86::cpu::regs::{cr4, efer, rflags, Gpr, Mode, Seg, Segment};
use crate::x86::paging::fetch::Code;
use crate::x86::vendor::{CpuState, Groups};

/// Bits of the guest's control registers for which the VMCB holds the host's choice.
#[derive(Default)]
pub(super) struct Shadow {
    /// CR4.MCE. With the bit clear a machine check would shut the processor down instead of exiting (APM 2 15.12.14),
    /// so the VMCB has the host's. The guest does not see it: reads of CR4 are intercepted.
    mce: u64,
    /// CR0.CD and NW, as far as they are [`Shadow::hidden`]; then accesses to CR0 are intercepted.
    pub(super) cr0: u64,
    /// The bits of CR0 that are kept from the processor.
    pub(super) hidden: u64,
    /// EFER.LME while it is kept from the processor (`quirks`).
    pub(super) lme: u64,
}

/// Writes what changes from entry to entry. A `step` sets RFLAGS.TF.
#[inline(always)]
pub(super) fn enter(s: &mut Save, cpu: &CpuState, step: bool) {
    s.rax = cpu.regs.get(Gpr::Rax);
    s.rsp = cpu.regs.get(Gpr::Rsp);
    s.rip = cpu.regs.rip;
    s.rflags = cpu.regs.rflags | rflags::FIXED | if step { rflags::TF } else { 0 };
}

/// Writes what else VMRUN loads and may differ from what is there since the last exit.
#[inline(always)]
pub(super) fn prepare(v: &mut Vmcb, cpu: &CpuState) {
    let (s, clean) = (&mut v.save, &mut v.control.clean);
    s.cr2.set(clean, cpu.sregs.cr2);
    // Accesses to DR6 are intercepted: what is here after an exit by #DB are that one's conditions.
    s.dr6.set(clean, DR6_RESET);
    s.dr7.set(clean, cpu.dr7);
}

/// Reads what #VMEXIT saves at every exit; the rest waits for [`load`].
#[inline(always)]
pub(super) fn exit(s: &Save, cpu: &mut CpuState) {
    cpu.regs.gpr[Gpr::Rax as usize] = s.rax;
    cpu.regs.gpr[Gpr::Rsp as usize] = s.rsp;
    cpu.regs.rip = s.rip;
    cpu.regs.rflags = s.rflags;
    cpu.sregs.cr2 = s.cr2.get();
    cpu.avail = Groups::NONE;
}

/// Writes the system registers of `cpu.dirty`. `shadow.cr0` and `shadow.lme` are up to date.
pub(super) fn write(v: &mut Vmcb, cpu: &mut CpuState, shadow: &mut Shadow) {
    let (save, clean) = (&mut v.save, &mut v.control.clean);
    let dirty = cpu.dirty;
    let s = &cpu.sregs;
    if dirty.intersects(Groups::CODE) {
        save.cs
            .set(clean, VmcbSegment::from_neutral(s.seg(Seg::Cs)));
        save.ss
            .set(clean, VmcbSegment::from_neutral(s.seg(Seg::Ss)));
        // The CPL is kept apart from SS.DPL (APM 2 15.5.1).
        save.cpl.set(clean, s.seg(Seg::Ss).dpl & 3);
    }
    if dirty.intersects(Groups::SEGS) {
        save.es
            .set(clean, VmcbSegment::from_neutral(s.seg(Seg::Es)));
        save.ds
            .set(clean, VmcbSegment::from_neutral(s.seg(Seg::Ds)));
        save.fs = VmcbSegment::from_neutral(s.seg(Seg::Fs));
        save.gs = VmcbSegment::from_neutral(s.seg(Seg::Gs));
        save.ldtr = VmcbSegment::from_neutral(s.seg(Seg::Ldtr));
        // One that is there but for the busy bit stays as it is: QEMU ends at an interrupt of a 32-bit program where
        // the TSS that it has loaded itself becomes busy.
        if task_register(save) != *s.seg(Seg::Tr) {
            save.tr = VmcbSegment::from_neutral(s.seg(Seg::Tr));
        }
    }
    if dirty.intersects(Groups::CTRL) {
        shadow.mce = s.cr4 & cr4::MCE;
        save.cr0.set(clean, s.cr0 & !shadow.cr0);
        save.cr3.set(clean, s.cr3);
        save.cr4.set(clean, s.cr4 | cr::cr4() & cr4::MCE);
        save.efer.set(clean, (s.efer | efer::SVME) & !shadow.lme);
    }
    if dirty.intersects(Groups::TABLES) {
        save.gdtr.set(clean, VmcbSegment::from_table(&s.gdt));
        save.idtr.set(clean, VmcbSegment::from_table(&s.idt));
    }
    cpu.dirty = Groups::NONE;
}

/// TR. SVM does not look at the busy bit; VMX and user space want it set.
fn task_register(save: &Save) -> Segment {
    let mut tr = save.tr.to_neutral();
    tr.typ |= 2;
    tr
}

/// Fetches those system registers of `groups` that are not there yet.
pub(super) fn load(save: &Save, cpu: &mut CpuState, groups: Groups, shadow: &Shadow) {
    let want = groups.without(cpu.avail);
    let s = &mut cpu.sregs;
    if want.intersects(Groups::CODE) {
        *s.seg_mut(Seg::Cs) = save.cs.get().to_neutral();
        let ss = s.seg_mut(Seg::Ss);
        *ss = save.ss.get().to_neutral();
        // SYSRET sets the CPL but not SS.DPL (APM 2 15.5.1).
        ss.dpl = save.cpl.get() & 3;
    }
    if want.intersects(Groups::SEGS) {
        *s.seg_mut(Seg::Es) = save.es.get().to_neutral();
        *s.seg_mut(Seg::Ds) = save.ds.get().to_neutral();
        *s.seg_mut(Seg::Fs) = save.fs.to_neutral();
        *s.seg_mut(Seg::Gs) = save.gs.to_neutral();
        *s.seg_mut(Seg::Ldtr) = save.ldtr.to_neutral();
        *s.seg_mut(Seg::Tr) = task_register(save);
    }
    if want.intersects(Groups::CTRL) {
        s.cr0 = save.cr0.get() | shadow.cr0;
        s.cr3 = save.cr3.get();
        s.cr4 = save.cr4.get() & !cr4::MCE | shadow.mce;
        s.efer = save.efer.get() & !efer::SVME | shadow.lme;
    }
    if want.intersects(Groups::TABLES) {
        s.gdt = save.gdtr.get().to_table();
        s.idt = save.idtr.get().to_table();
    }
    cpu.avail = cpu.avail.union(groups);
}

/// What decides about fetches. CR0.PG, the bits of CR4 in question and EFER.LMA are never the host's choice.
#[inline(always)]
pub(super) fn code(s: &Save, rflags: u64) -> Code {
    /// CS.L and CS.D as the VMCB keeps attributes (APM 2 15.5.1).
    const LONG: u16 = 1 << 9;
    const BIG: u16 = 1 << 10;
    let attrib = s.cs.get().attrib;
    Code {
        mode: Mode::of(
            s.cr0.get(),
            s.efer.get(),
            rflags,
            attrib & LONG != 0,
            attrib & BIG != 0,
        ),
        cpl: s.cpl.get() & 3,
        cr0: s.cr0.get(),
        cr3: s.cr3.get(),
        cr4: s.cr4.get(),
        efer: s.efer.get(),
        base: s.cs.get().base,
    }
}

/// One segment register, as [`load`] gives it.
#[inline]
pub(super) fn segment(s: &Save, seg: Seg) -> Segment {
    let segment = match seg {
        Seg::Es => s.es.get(),
        Seg::Cs => s.cs.get(),
        Seg::Ss => s.ss.get(),
        Seg::Ds => s.ds.get(),
        Seg::Fs => s.fs,
        Seg::Gs => s.gs,
        Seg::Ldtr => s.ldtr,
        Seg::Tr => s.tr,
    };
    segment.to_neutral()
}
