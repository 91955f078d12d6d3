// SPDX-License-Identifier: GPL-2.0
//! One vCPU under SVM: its controls, stays and entries.
//!
//! `run` and `vcpu` call this through `vendor::choose`, always under the vCPU's mutex (`&mut self`); from
//! `begin_stay` to `end_stay` on one CPU with interrupts off. APM 2 15.5 is the entry, 15.6 the exit.

use super::asid::Tag;
use super::breakpoints::HostDebug;
use super::check::{check, SvmCaps};
use super::decode::{decode, Told, INTERCEPTS};
use super::msr::{field, Stayed};
use super::nmi::Nmi;
use super::platform::{shared, Cpu, Shared};
use super::state::{self, Shadow};
use super::view::{self, Kept};
use super::vmcb::{
    exit, misc1, tlb_control, vintr, Vmcb, VmcbPage, CR0_READ, CR0_WRITE, CR4_ACCESS, CR8_WRITE,
};
use super::{entry, event, quirks};
use crate::linux::smp;
use crate::pr_warn_ratelimited;
use crate::x86::cpu::cpuid::GuestFeatures;
use crate::x86::cpu::events::{interrupt_event, vector};
use crate::x86::cpu::index;
use crate::x86::cpu::regs::{cr0, efer, rflags, Seg, Segment};
use crate::x86::cpu::reset::PAT as PAT_RESET;
use crate::x86::exit::{Event, EventKind, Exception, Exit};
use crate::x86::mitigate::SpecCtrl;
use crate::x86::paging::fetch::Code;
use crate::x86::vendor::{
    Begin, CpuState, EntryParams, EntryViolation, Exits, Groups, Interruptibility, Stay,
    VcpuBackend, VendorState, KEPT_MSRS,
};
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// PAUSEs of a loop before one exits, at first; as in KVM.
const PAUSES: u16 = 3000;

/// The SVM part of a vCPU.
pub(crate) struct SvmVcpu {
    pub(super) vmcb: VmcbPage,
    shared: Arc<Shared>,
    /// What the software entry checks go by.
    rules: SvmCaps,
    asid: Tag,
    /// The number of the current stay's CPU; none outside.
    pub(super) stay: Option<u32>,
    /// Value of `host_extra` of this CPU for the current stay.
    pub(super) host_extra: u64,
    nmi: Nmi,
    /// The #BP or #OF that the last entry was to deliver, as another one would have to, and RIP at that entry.
    trap: Option<(Event, u64)>,
    msrs: Stayed,
    /// Where the processor does not virtualise it; else the VMCB has the value.
    spec_ctrl: SpecCtrl,
    /// SYSENTER_ESP and SYSENTER_EIP, of which the processor may keep 32 bits.
    sysenter: (u64, u64),
    /// Every MSR access exits.
    all_msrs: bool,
    host_debug: HostDebug,
    shadow: Shadow,
    /// System registers were written since the last check, where that matters (`quirks`).
    unchecked: bool,
    /// Vector of a virtual interrupt that the last exit came before (`quirks`).
    undelivered: Option<u8>,
    told: Told,
    /// For the entry checks.
    kept: Kept,
}

impl SvmVcpu {
    /// Brings the VMCB's controls in line with `params`, for an entry on `this_cpu`. Returns the vector that goes in as
    /// a virtual interrupt.
    #[inline(always)]
    fn prepare(&mut self, this_cpu: u32, cpu: &mut CpuState, params: &EntryParams) -> Option<u8> {
        let virtual_irq = self.shared.quirks.virtual_irq(params);
        self.trap = match &params.inject {
            Some(event) => self.prepare_event(cpu, event),
            None => None,
        };
        state::prepare(&mut self.vmcb, cpu);
        let c = &mut self.vmcb.control;
        self.host_debug.load(cpu.dr7, cpu.dr);
        if params.nmi_window && self.nmi.want_window(c, params.inject.is_some()) {
            // The entry delivers its event and then meets this interrupt: until VMRUN there is none.
            smp::send_reschedule(this_cpu);
        }
        c.n_cr3.set(&mut c.clean, params.nested_root.0);
        c.event_inj = event::inject(params.inject.as_ref());
        let mut vintr = c.vintr.get() & !vintr::V_TPR | u64::from(params.tpr) & vintr::V_TPR;
        // A V_IRQ makes writes exit for the emulator's sake (`quirks`).
        let v_irq = params.irq_window || virtual_irq.is_some();
        let exits = if params.tpr_threshold == 0 && !v_irq {
            c.intercept_cr.get() & !CR8_WRITE
        } else {
            c.intercept_cr.get() | CR8_WRITE
        };
        c.intercept_cr.set(&mut c.clean, exits);
        if params.irq_window {
            vintr |= vintr::PENDING;
            c.intercept_misc1(misc1::VINTR, true);
        } else if c.intercept_misc1.get() & misc1::VINTR != 0 {
            vintr &= !vintr::PENDING;
            c.intercept_misc1(misc1::VINTR, false);
        }
        c.vintr.set(&mut c.clean, vintr);
        if let Some(vector) = virtual_irq {
            quirks::inject_virtually(c, vector);
        }
        virtual_irq
    }

    /// Prepares for the delivery of `event`. Returns it as [`SvmVcpu::trap`] wants it.
    #[inline]
    fn prepare_event(&mut self, cpu: &mut CpuState, event: &Event) -> Option<(Event, u64)> {
        let c = &mut self.vmcb.control;
        self.nmi.inject(c, event.kind == EventKind::Nmi);
        if !event::is_trap(event) {
            return None;
        }
        let next = cpu.regs.rip.wrapping_add(event.insn_len.into());
        if self.shared.caps.insn_len {
            // What is pushed is this field, and not RIP, to which a fault in the delivery returns.
            c.next_rip = next;
            return Some((*event, cpu.regs.rip));
        }
        cpu.regs.rip = next;
        let behind = Event {
            insn_len: 0,
            ..*event
        };
        Some((behind, next))
    }

    /// Writes the system registers that the core has changed.
    fn write_dirty(&mut self, cpu: &mut CpuState) {
        if cpu.dirty.intersects(Groups::CTRL) {
            let shadow = &mut self.shadow;
            shadow.lme = self.shared.quirks.hidden_lme(&cpu.sregs);
            shadow.cr0 = cpu.sregs.cr0 & shadow.hidden;
            let mut exits = 0;
            if shadow.cr0 != 0 {
                exits |= CR0_READ | CR0_WRITE;
            }
            if shadow.lme != 0 {
                exits |= CR0_WRITE;
            }
            let c = &mut self.vmcb.control;
            let others = c.intercept_cr.get() & !(CR0_READ | CR0_WRITE);
            c.intercept_cr.set(&mut c.clean, others | exits);
        }
        state::write(&mut self.vmcb, cpu, &mut self.shadow);
        self.unchecked = self.shared.quirks.tcg;
    }

    /// The entry checks before an entry on `this_cpu`, with a line in the log. True when they refuse it.
    #[cold]
    #[inline(never)]
    fn refuses(&mut self, this_cpu: u32, cpu: &mut CpuState, params: &EntryParams) -> bool {
        self.kept.wanted = params.check;
        let Err(v) = self.check_entry(cpu, params) else {
            self.unchecked = false;
            return false;
        };
        self.distrust_asids(this_cpu);
        pr_warn_ratelimited!(
            "entry check: {} ({}), value {:#x}\n",
            v.rule,
            v.manual,
            v.value
        );
        true
    }

    /// Ends an entry that was a single step; `tf` is the guest's own RFLAGS.TF.
    #[cold]
    fn end_step(&mut self, cpu: &mut CpuState, tf: u64, exit: Exit) -> Exit {
        self.nmi.end_step();
        cpu.regs.rflags = cpu.regs.rflags & !rflags::TF | tf;
        match exit {
            // The step is ours, unless the guest had breakpoints or a step of its own in it.
            Exit::Exception(Exception {
                vector: 1, payload, ..
            }) if payload & 0xf == 0 && tf == 0 => {
                self.nmi.stepped();
                Exit::NmiWindow
            }
            _ => exit,
        }
    }

    /// Takes back the ASIDs of CPU `id`.
    #[cold]
    fn distrust_asids(&mut self, id: u32) {
        if let Some(cpu) = self.shared.cpus.of(id) {
            self.asid.distrust(&cpu.asids);
        }
        self.vmcb.control.clean.nothing();
    }

    /// The host's TSC_AUX on `cpu`, if it has one.
    fn host_tsc_aux(&self, cpu: &Cpu) -> Option<u64> {
        let has = self.shared.caps.rdtscp;
        has.then(|| cpu.tsc_aux.load(Ordering::Relaxed))
    }

    /// Sets which MSRs exit.
    fn choose_msr_map(&mut self) {
        let map = if self.all_msrs {
            &self.shared.msrpm_all
        } else {
            &self.shared.msrpms[usize::from(self.spec_ctrl.is_passed())]
        };
        let c = &mut self.vmcb.control;
        c.msrpm_base_pa.set(&mut c.clean, map.phys());
    }

    /// Exits of loops of PAUSE (APM 2 15.14.4), as many PAUSEs apart as in KVM. Without a filter every PAUSE would
    /// exit: none does.
    fn set_pause_exits(&mut self, on: bool) {
        const THRESHOLD: u16 = 128;
        let threshold = if self.shared.pause_threshold {
            THRESHOLD
        } else {
            0
        };
        let c = &mut self.vmcb.control;
        c.intercept_misc1(misc1::PAUSE, on && self.shared.caps.pause_exit);
        c.pause_filter_count.set(&mut c.clean, PAUSES);
        c.pause_filter_threshold.set(&mut c.clean, threshold);
    }
}

/// Sets the controls that never change and the state of RESET that is not zero.
fn set_up(v: &mut Vmcb, shared: &Shared) {
    let c = &mut v.control;
    // CR4: writes are checked against the guest's features, reads do not show MCE. CR8 is the local APIC's TPR:
    // reads get V_TPR, and writes go there while no interrupt waits for a lower one (APM 2 15.21.1).
    let clean = &mut c.clean;
    c.intercept_cr.set(clean, CR4_ACCESS | CR8_WRITE);
    c.intercept_dr.set(clean, 0xffff_ffff);
    // Whether PAUSE exits is `set_pause_exits`' to say.
    let [vector_3, vector_4] = INTERCEPTS;
    let exits = vector_3 & !misc1::PAUSE
        | misc1::INTR
        | misc1::NMI
        | misc1::SMI
        | misc1::INIT
        | misc1::IOIO_PROT
        | misc1::MSR_PROT
        | misc1::SHUTDOWN;
    c.intercept_misc1.set(clean, exits);
    c.intercept_misc2.set(clean, vector_4);
    c.iopm_base_pa.set(clean, shared.iopm.phys());
    c.msrpm_base_pa.set(clean, shared.msrpms[0].phys());
    c.vintr.set(clean, vintr::V_INTR_MASKING);
    c.nested_control.set(clean, 1);
    set_up_save(v);
}

/// Sets the state of RESET that is not zero.
fn set_up_save(v: &mut Vmcb) {
    let (s, clean) = (&mut v.save, &mut v.control.clean);
    s.g_pat.set(clean, PAT_RESET);
    s.efer.set(clean, efer::SVME);
}

impl VcpuBackend for SvmVcpu {
    fn new(_id: u32, features: &GuestFeatures) -> Result<Self> {
        let shared = shared()?;
        let mut vmcb = VmcbPage::new()?;
        set_up(&mut vmcb, &shared);
        let mut this = Self {
            vmcb,
            rules: view::rules(shared.asids, shared.flush_by_asid, features),
            shared,
            asid: Tag::NONE,
            stay: None,
            host_extra: 0,
            nmi: Nmi::RESET,
            trap: None,
            msrs: Stayed::RESET,
            spec_ctrl: SpecCtrl::new(),
            sysenter: (0, 0),
            all_msrs: false,
            host_debug: HostDebug::NONE,
            shadow: Shadow::default(),
            unchecked: false,
            undelivered: None,
            told: Told::NOTHING,
            kept: Kept::NOTHING,
        };
        this.set_exception_intercepts(0);
        this.set_pause_exits(true);
        Ok(this)
    }

    fn begin_stay(&mut self, begin: Begin<'_>) -> Result {
        let id = begin.this_cpu().number();
        let cpu = self.shared.cpus.of(id).ok_or(EINVAL)?;
        if cpu.enabled.load(Ordering::Relaxed) == 0 {
            return Err(EBUSY);
        }
        self.stay = Some(id);
        self.host_extra = cpu.host_extra.phys();
        // SAFETY: SVME is set on this CPU, and the page belongs to it; by `begin` interrupts are off here until the
        // stay is over, so nobody else is using it.
        unsafe { entry::vmsave(self.host_extra) };
        self.host_debug.begin_stay();
        let tsc_aux = self.host_tsc_aux(cpu);
        self.msrs.begin_stay(tsc_aux);
        self.spec_ctrl.begin_stay(begin.this_cpu().irqs_off());
        Ok(())
    }

    fn end_stay(&mut self, _stay: Stay<'_>) {
        let cpus = &self.shared.cpus;
        let Some(cpu) = self.stay.take().and_then(|id| cpus.of(id)) else {
            return;
        };
        let tsc_aux = self.host_tsc_aux(cpu);
        self.msrs.end_stay(tsc_aux);
        self.host_debug.end_stay(self.vmcb.save.dr6.get());
    }

    #[inline(never)]
    fn enter(&mut self, stay: &Stay<'_>, cpu: &mut CpuState, params: Option<&EntryParams>) -> Exit {
        if !cpu.dirty.is_empty() {
            self.write_dirty(cpu);
        }
        let Some(this_cpu) = self.stay else {
            return Exit::EntryFailure(0);
        };
        let virtual_irq = match params {
            Some(params) => {
                let Some(Cpu { asids, .. }) = self.shared.cpus.of(this_cpu) else {
                    return Exit::EntryFailure(0);
                };
                let c = &mut self.vmcb.control;
                self.asid.assign(c, asids, this_cpu, params.flush);
                self.prepare(this_cpu, cpu, params)
            }
            None => {
                self.vmcb.control.tlb_control = tlb_control::NOTHING;
                None
            }
        };
        let (stepping, guest_tf) = (self.nmi.stepping(), cpu.regs.rflags & rflags::TF);
        state::enter(&mut self.vmcb.save, cpu, stepping);
        if let Some(params) = params {
            if (params.check || self.unchecked) && self.refuses(this_cpu, cpu, params) {
                return Exit::EntryFailure(exit::INVALID);
            }
        }
        let (vmcb, host) = (self.vmcb.phys(), self.host_extra);
        // SAFETY: `self.stay` is what `begin_stay` found on the CPU of the stay: SVME is set there, and `host` filled.
        // The intercepts that `set_up` sets contain the guest; the nested root comes from the VM's page tables.
        unsafe {
            entry::vmrun(
                stay.irqs_off(),
                vmcb,
                host,
                &mut cpu.regs,
                &mut self.spec_ctrl,
            )
        };

        let v = &mut *self.vmcb;
        v.control.clean.all();
        if self.kept.wanted {
            self.kept = Kept::of(v, this_cpu);
        }
        if let Some(vector) = virtual_irq {
            self.undelivered = quirks::undelivered(&mut v.control, vector);
        }
        state::exit(&v.save, cpu);
        let caps = &self.shared.caps;
        self.told = Told::by_nrip(&v.control, caps.insn_len, cpu.regs.rip);
        self.nmi.reached(cpu.regs.rip);
        let assists = self.shared.decode_assists;
        let mut exit = decode(v, &mut self.told, &mut self.nmi, assists);
        if stepping {
            exit = self.end_step(cpu, guest_tf, exit);
        }
        if matches!(exit, Exit::EntryFailure(_)) {
            // The VMCB still holds what was refused; the caller may want to look at it.
            self.distrust_asids(this_cpu);
        }
        exit
    }

    #[inline]
    fn was_interrupted(&self) -> bool {
        event::valid(self.vmcb.control.exit_int_info) || self.undelivered.is_some()
    }

    fn lost_state(&mut self) -> bool {
        // What #VMEXIT saves on shutdown is undefined (APM 2 15.14.3).
        self.vmcb.clear_save();
        set_up_save(&mut self.vmcb);
        self.sysenter = (0, 0);
        true
    }

    #[inline]
    fn end_shadow(&mut self) {
        self.vmcb.control.interrupt_state = 0;
    }

    fn load(&mut self, cpu: &mut CpuState, groups: Groups) {
        state::load(&self.vmcb.save, cpu, groups, &self.shadow);
    }

    #[inline]
    fn code(&self, rflags: u64) -> Option<Code> {
        Some(state::code(&self.vmcb.save, rflags))
    }

    #[inline]
    fn segment(&mut self, seg: Seg) -> Option<Segment> {
        Some(state::segment(&self.vmcb.save, seg))
    }

    #[inline]
    fn cpl(&self) -> Option<u8> {
        Some(self.vmcb.save.cpl.get() & 3)
    }

    #[inline]
    fn tpr(&self) -> Option<u8> {
        Some((self.vmcb.control.vintr.get() & vintr::V_TPR) as u8)
    }

    #[inline]
    fn insn_len(&self) -> Option<u8> {
        (self.told.insn_len != 0).then_some(self.told.insn_len)
    }

    #[inline]
    fn insn_bytes(&self) -> Option<([u8; 16], u8)> {
        let c = &self.vmcb.control;
        // An exit that could not fetch them says 0 (erratum 1096).
        if !self.told.nested || !self.shared.decode_assists || !(1..=15).contains(&c.insn_len) {
            return None;
        }
        let mut bytes = [0; 16];
        bytes
            .iter_mut()
            .zip(c.insn_bytes)
            .for_each(|(to, from)| *to = from);
        Some((bytes, c.insn_len))
    }

    fn take_interrupted(&mut self) -> Option<Event> {
        if let Some(vector) = self.undelivered.take() {
            return Some(interrupt_event(vector));
        }
        let rip = self.vmcb.save.rip;
        let trap = self.trap.take().filter(|t| t.1 == rip).map(|t| t.0);
        let event = event::interrupted(self.vmcb.control.exit_int_info, trap)?;
        if event.kind == EventKind::Nmi {
            self.nmi.interrupted(&mut self.vmcb.control);
        }
        Some(event)
    }

    fn interruptibility(&mut self) -> Interruptibility {
        // SVM does not tell STI from MOV SS; the stronger one would hide NMIs, so it is reported as STI.
        Interruptibility {
            sti: self.vmcb.control.interrupt_state & 1 != 0,
            mov_ss: false,
            nmi: self.nmi.blocked(),
        }
    }

    fn set_interruptibility(&mut self, i: Interruptibility) {
        let c = &mut self.vmcb.control;
        c.interrupt_state = u64::from(i.sti || i.mov_ss);
        self.nmi.set_blocked(c, i.nmi);
    }

    fn msr(&mut self, index: u32) -> Option<u64> {
        let save = &mut self.vmcb.save;
        match index {
            index::TSC_AUX => Some(self.msrs.tsc_aux),
            index::SYSENTER_ESP => Some(self.sysenter.0),
            index::SYSENTER_EIP => Some(self.sysenter.1),
            index::SPEC_CTRL if !self.shared.v_spec_ctrl => Some(self.spec_ctrl.get()),
            index::PAT => Some(save.g_pat.get()),
            _ => field(save, index).copied(),
        }
    }

    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        let live = self.stay.is_some() && self.shared.caps.rdtscp;
        if index == index::SPEC_CTRL {
            self.spec_ctrl.set(value);
            self.choose_msr_map();
        }
        match index {
            index::SYSENTER_ESP => self.sysenter.0 = value,
            index::SYSENTER_EIP => self.sysenter.1 = value,
            _ => {}
        }
        let v = &mut *self.vmcb;
        match index {
            index::TSC_AUX => self.msrs.set_tsc_aux(value, live),
            index::SPEC_CTRL if !self.shared.v_spec_ctrl => {}
            index::PAT => v.save.g_pat.set(&mut v.control.clean, value),
            _ => return field(&mut v.save, index).map(|f| *f = value).is_some(),
        }
        true
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        let c = &mut self.vmcb.control;
        c.tsc_offset.set(&mut c.clean, offset);
    }

    fn set_tsc_ratio(&mut self, ratio: u64) {
        self.msrs.tsc_ratio = ratio;
    }

    fn set_exception_intercepts(&mut self, vectors: u32) {
        // #DB and #AC against endless delivery (CVE-2015-8104, CVE-2015-5307), #UD for hypercalls, #MC for the host.
        let always = 1 << vector::DB | 1 << vector::UD | 1 << vector::AC | 1 << vector::MC;
        let c = &mut self.vmcb.control;
        c.intercept_exception.set(&mut c.clean, vectors | always);
    }

    fn set_spinning(&mut self, on: bool) {
        let c = &mut self.vmcb.control;
        let grown = c.pause_filter_count.get().saturating_mul(2);
        c.pause_filter_count
            .set(&mut c.clean, if on { grown } else { PAUSES });
    }

    fn set_exits(&mut self, exits: Exits) {
        self.all_msrs = exits.all_msrs;
        self.choose_msr_map();
        let c = &mut self.vmcb.control;
        c.intercept_misc1(misc1::HLT, exits.hlt);
        // What the VMCB has now stays until the next write of CR0, as in KVM.
        let hidden = cr0::CD | cr0::NW;
        self.shadow.hidden = if exits.caches_on { hidden } else { 0 };
        c.intercept_misc1(misc1::CR0_SEL_WRITE, exits.caches_on);
        self.set_pause_exits(exits.pause);
    }

    fn save(&mut self) -> Result<VendorState> {
        Ok(VendorState {
            msrs: KEPT_MSRS.map(|index| self.msr(index)),
            blocking: self.interruptibility(),
            insn_len: self.told.insn_len,
            ..VendorState::default()
        })
    }

    fn put_back(&mut self, saved: &VendorState) -> Result {
        for (index, value) in KEPT_MSRS.iter().zip(saved.msrs) {
            if let Some(value) = value {
                self.set_msr(*index, value);
            }
        }
        self.nmi.end_step();
        self.set_interruptibility(saved.blocking);
        self.told = Told {
            insn_len: saved.insn_len,
            ..Told::NOTHING
        };
        self.trap = None;
        self.undelivered = None;
        self.vmcb.control.exit_int_info = 0;
        Ok(())
    }

    fn check_entry(
        &mut self,
        _cpu: &mut CpuState,
        params: &EntryParams,
    ) -> Result<(), EntryViolation> {
        let event = event::inject(params.inject.as_ref());
        // Outside a stay, after a refused entry, there are no clean bits.
        let cpu = self.stay.unwrap_or(u32::MAX);
        check(&view::read(&self.vmcb, event, &self.kept, cpu), &self.rules)
    }
}
