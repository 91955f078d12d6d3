// SPDX-License-Identifier: GPL-2.0
//! System management mode: SMIs and RSM (SDM 3C 32; APM 2 10).
//!
//! The processor itself is never in it: an SMI exchanges the vCPU's registers for those that a handler starts with, and
//! the guest memory that it sees for the second address space; RSM goes back. The outer loop calls, with the vCPU's
//! mutex held and interrupts on, but for what takes a stay.

use super::{Runner, Step};
use crate::mem::addr::Gpa;
use crate::x86::cpu::control;
use crate::x86::cpu::regs::{
    clean_rflags, cr0, dr6, dr7, efer, rflags, DescTable, Seg, Segment, Sregs,
};
use crate::x86::cpu::smram::{self, Area, Saved};
use crate::x86::shared::request;
use crate::x86::vcpu::state::MpState;
use crate::x86::vendor::{Groups, Interruptibility, Stay, VcpuBackend};
use kernel::prelude::*;

/// System registers at the beginning of a handler, of those at an SMI (SDM 3C table 32-4): real mode, but with 4 GiB
/// behind each segment. `lm`: there is long mode to be left.
fn handler_sregs(before: &Sregs, smbase: u32, lm: bool) -> Sregs {
    let data = Segment {
        limit: u32::MAX,
        typ: 3,
        s: true,
        present: true,
        g: true,
        ..Segment::default()
    };
    let mut x = *before;
    for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs, Seg::Ss] {
        *x.seg_mut(seg) = data;
    }
    *x.seg_mut(Seg::Cs) = Segment {
        selector: (smbase >> 4) as u16,
        base: smbase.into(),
        ..data
    };
    x.cr0 &= !(cr0::PE | cr0::EM | cr0::TS | cr0::PG);
    x.cr4 = 0;
    if lm {
        x.efer = 0;
    }
    x.idt = DescTable::default();
    x
}

/// Makes the registers that RSM has found ones that can be loaded. False: the processor shuts down (SDM 3C 32.4.1.2).
fn complete(s: &mut Saved, lm: bool) -> bool {
    let x = &mut s.sregs;
    x.cr0 |= cr0::ET;
    if lm {
        let on = x.efer & efer::LME != 0 && x.cr0 & cr0::PG != 0;
        x.efer = x.efer & !efer::LMA | if on { efer::LMA } else { 0 };
    }
    let upper = (s.dr6 | s.dr7) >> 32;
    s.dr6 = dr6::loaded(s.dr6);
    s.dr7 = dr7::loaded(s.dr7);
    s.regs.rflags = clean_rflags(s.regs.rflags);
    upper == 0
}

impl Runner<'_> {
    /// An SMI is due: takes it, unless an event is to be delivered before. `Some`: KVM_RUN ends instead.
    #[cold]
    #[inline(never)]
    pub(super) fn take_smi(&mut self) -> Option<Step> {
        let events = &self.s.events;
        let started = matches!(
            self.s.mp_state,
            MpState::Runnable | MpState::Halted | MpState::AwaitsPage
        );
        if !started || events.interrupted.is_some() || events.exception.is_some() {
            return None;
        }
        let lm = self.s.cpuid.features.lm;
        let saved = self.registers();
        let area = Area::save(&saved, lm);
        let at = Gpa(u64::from(saved.smbase).wrapping_add(smram::OFFSET));
        // Without SMRAM there is nothing to come back to. KVM's answer is the same, for the whole VM and for good.
        let written = self.vm.smm_memory().map(|memory| {
            let view = memory.view_of(&self.s.ring);
            view.write(at, &area.0).is_ok()
        });
        if written != Some(true) {
            return Some(Step::Fail(EIO));
        }
        let s = &mut *self.s;
        s.smm.pending = false;
        s.msrs.smi_count = s.msrs.smi_count.wrapping_add(1);
        s.set_smm(true);
        let blocking = s.hw.interruptibility();
        s.smm.inside_nmi = blocking.nmi;
        s.hw.set_interruptibility(Interruptibility {
            sti: false,
            mov_ss: false,
            nmi: true,
        });
        s.cpu.regs.rip = smram::ENTRY;
        s.set_visible_rflags(rflags::FIXED);
        let (dr, _) = s.guest_breakpoints();
        s.set_guest_breakpoints(dr, dr7::RESET);
        s.cpu.sregs = handler_sregs(&saved.sregs, saved.smbase, lm);
        s.registers_replaced();
        s.mp_state = MpState::Runnable;
        s.pv.unhalted = false;
        None
    }

    /// What an SMI saves.
    fn registers(&mut self) -> Saved {
        let s = &mut *self.s;
        s.load(Groups::ALL);
        let blocking = s.hw.interruptibility();
        let mut regs = s.cpu.regs;
        regs.rflags = s.visible_rflags();
        Saved {
            regs,
            sregs: s.cpu.sregs,
            dr6: s.cpu.dr6,
            dr7: s.guest_breakpoints().1,
            smbase: s.msrs.smbase as u32,
            sti: blocking.sti,
            mov_ss: blocking.mov_ss,
        }
    }

    /// RSM: #UD outside SMM.
    #[cold]
    pub(super) fn rsm(&mut self, stay: Option<&Stay<'_>>) -> Step {
        if !self.s.smm.is_active() {
            return self.raise_ud();
        }
        if stay.is_some() {
            return Step::Slow;
        }
        if self.leave_smm() {
            Step::Again
        } else {
            self.shutdown()
        }
    }

    /// Goes back to what the SMI interrupted. False: the processor shuts down, and the vCPU is as it was.
    #[inline(never)]
    fn leave_smm(&mut self) -> bool {
        let lm = self.s.cpuid.features.lm;
        let now = self.registers();
        let mut area = Area([0; smram::BYTES]);
        let at = Gpa(u64::from(now.smbase).wrapping_add(smram::OFFSET));
        if self.memory().view().read(at, &mut area.0).is_err() {
            return false;
        }
        let mut saved = area.load(&now, lm);
        if !complete(&mut saved, lm) {
            return false;
        }
        let x = &saved.sregs;
        if !control::sregs_loadable(x, &self.s.cpuid.features) {
            return false;
        }
        let s = &mut *self.s;
        let inside_nmi = s.smm.inside_nmi;
        s.set_smm(false);
        if x.pae_paging() {
            match s.read_pdptes(self.vm, x.cr3, None) {
                Ok(pdptes) => s.hw.set_pdptes(pdptes),
                Err(_) => {
                    s.set_smm(true);
                    s.smm.inside_nmi = inside_nmi;
                    return false;
                }
            }
        }
        s.msrs.smbase = saved.smbase.into();
        s.cpu.sregs = *x;
        s.cpu.regs = saved.regs;
        s.set_visible_rflags(saved.regs.rflags);
        let (dr, _) = s.guest_breakpoints();
        s.set_guest_breakpoints(dr, saved.dr7);
        s.cpu.dr6 = saved.dr6;
        s.hw.set_interruptibility(Interruptibility {
            sti: saved.sti,
            mov_ss: saved.mov_ss,
            nmi: inside_nmi,
        });
        s.registers_replaced();
        if core::mem::take(&mut s.smm.latched_init) {
            self.vcpu.shared.request_self(request::INIT);
        }
        true
    }
}
