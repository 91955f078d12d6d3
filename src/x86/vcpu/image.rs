// SPDX-License-Identifier: GPL-2.0
//! All of a vCPU, kept for later (`RVMM_RESET_POINT`): what a guest can find out about it, and what user space has been
//! told and not answered yet.
//!
//! Not part of it is how user space has configured the vCPU or the VM (CPUID, capabilities, MSR filter, signal mask),
//! and what the host has found out for itself. `snapshot` calls this under the vCPU's mutex, outside stays.

use crate::abi::exits;
use crate::linux::page::DataPage;
use crate::x86::cpu::msr::MsrFile;
use crate::x86::cpu::smm::Smm;
use crate::x86::elapsed::Elapsed;
use crate::x86::emul::{Insn, Replay};
use crate::x86::hyperv::vcpu::Image as HypervImage;
use crate::x86::irqchip::lapic::image::Image as LapicImage;
use crate::x86::irqchip::lapic::Action;
use crate::x86::pv::paravirt::Paravirt;
use crate::x86::shared::request;
use crate::x86::vcpu::debug::Debug;
use crate::x86::vcpu::state::{Completion, Events, MpState, State};
use crate::x86::vcpu::Vcpu;
use crate::x86::vendor::{CpuState, Groups, VcpuBackend, VendorState};
use crate::x86::vm::Vm;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// A page of those that user space maps.
struct RunPage {
    number: usize,
    bytes: DataPage,
}

/// A vCPU as it was at some moment.
pub(crate) struct Image {
    /// The vCPU's id.
    pub(crate) id: u32,
    cpu: CpuState,
    vendor: VendorState,
    xsave: KVec<u8>,
    xcr0: u64,
    pkru: u32,
    msrs: KBox<MsrFile>,
    lapic: Option<KBox<LapicImage>>,
    apic_base: u64,
    cr8: u8,
    due: Option<u64>,
    tsc_offset: u64,
    tsc_khz: u32,
    tsc_member: u64,
    tsc_adjust: u64,
    pv: Paravirt,
    hv: Option<HypervImage>,
    debug: Debug,
    events: Events,
    smm: Smm,
    mp_state: MpState,
    completion: Completion,
    insn: Option<Insn>,
    fetched: bool,
    replay: KBox<Replay>,
    io_port: Option<(u16, u8)>,
    came_from: Option<u64>,
    run: KVec<RunPage>,
}

impl Image {
    /// The vCPU as it is now; all requests to it have been handled. EIO: the processor's virtualisation cannot be had.
    #[inline(never)]
    pub(crate) fn of(vcpu: &Vcpu, s: &mut State) -> Result<KBox<Self>> {
        s.load(Groups::ALL);
        let vendor = s.hw.save()?;
        let mut xsave = KVec::new();
        xsave.extend_from_slice(s.xstate.area.as_slice(), GFP_KERNEL_ACCOUNT)?;
        let mut run = KVec::new();
        for page in vcpu.run.pages() {
            let mut bytes = DataPage::new()?;
            page.save(&mut bytes);
            let number = page.number();
            run.push(RunPage { number, bytes }, GFP_KERNEL_ACCOUNT)?;
        }
        let lapic = match &s.apic.lapic {
            Some(l) => Some(KBox::new(l.image(), GFP_KERNEL_ACCOUNT)?),
            None => None,
        };
        let image = Self {
            id: vcpu.shared.id,
            cpu: s.cpu.clone(),
            vendor,
            xsave,
            xcr0: s.xstate.xcr0,
            pkru: s.xstate.pkru,
            msrs: KBox::new((*s.msrs).clone(), GFP_KERNEL_ACCOUNT)?,
            lapic,
            apic_base: s.apic.base,
            cr8: s.apic.cr8,
            due: s.timer.due,
            tsc_offset: s.tsc.offset,
            tsc_khz: s.tsc.khz,
            tsc_member: s.tsc.member,
            tsc_adjust: s.tsc.adjust,
            pv: s.pv.clone(),
            hv: s.hv.as_ref().map(|hv| hv.image(&vcpu.shared)),
            debug: s.debug,
            events: s.events,
            smm: s.smm,
            mp_state: s.mp_state.visible(),
            completion: s.pending.completion,
            insn: s.pending.insn,
            fetched: s.pending.fetched,
            replay: KBox::new(*s.pending.replay, GFP_KERNEL_ACCOUNT)?,
            io_port: s.pending.io_port,
            came_from: s.pending.came_from,
            run,
        };
        Ok(KBox::new(image, GFP_KERNEL_ACCOUNT)?)
    }

    /// The vCPU becomes what it was before `elapsed`. EIO: the processor's virtualisation cannot be had; then it may be
    /// called again.
    #[inline(never)]
    pub(crate) fn put_back(
        &self,
        vm: &Vm,
        vcpu: &Vcpu,
        s: &mut State,
        elapsed: &Elapsed,
    ) -> Result {
        s.hw.put_back(&self.vendor)?;
        s.cpu.clone_from(&self.cpu);
        s.cpu.avail = Groups::ALL;
        s.cpu.dirty = Groups::ALL;
        for (to, from) in s
            .xstate
            .area
            .as_mut_slice()
            .chunks_mut(64)
            .zip(self.xsave.chunks(64))
        {
            to.copy_from_slice(from);
        }
        s.xstate.xcr0 = self.xcr0;
        s.xstate.pkru = self.pkru;
        (*s.msrs).clone_from(&self.msrs);
        s.apic.base = self.apic_base;
        s.apic.cr8 = self.cr8;
        s.debug = self.debug;
        // There is no second address space where there is a point, so the vCPU is not in SMM.
        s.smm = self.smm;
        s.choose_exceptions();
        s.events = self.events;
        s.mp_state = self.mp_state;
        s.pending.completion = self.completion;
        s.pending.insn = self.insn;
        s.pending.fetched = self.fetched;
        *s.pending.replay = *self.replay;
        s.pending.io_port = self.io_port;
        s.pending.came_from = self.came_from;
        self.put_time_back(s, elapsed);
        if let (Some(to), Some(from)) = (&mut s.apic.lapic, &self.lapic) {
            to.put_back(from, elapsed.timer_ns());
            vcpu.shared.set_level(&to.tmr());
        }
        if let Some(hv) = &mut s.hv {
            hv.put_back(&vcpu.shared, self.hv.as_ref());
        }
        if s.pv.async_pf_is_on() {
            // Pages that were on their way then.
            s.apf.tell_all();
            vcpu.shared.request_self(request::ASYNC_PF);
        }
        s.last_stay.tlb_generation = 0;
        s.refresh_dynamic();
        vcpu.apply_all(vm, s, &Action::ALL);
        vcpu.shared.set_direct(s.takes_direct());
        // Who wants the vCPU not to run has perhaps said so since.
        let kick = vcpu.run.get(exits::IMMEDIATE_EXIT);
        for page in vcpu.run.pages() {
            if let Some(saved) = self.run.iter().find(|p| p.number == page.number()) {
                page.load(&saved.bytes);
            }
        }
        vcpu.run.put(exits::IMMEDIATE_EXIT, kick);
        Ok(())
    }

    /// Whether a vCPU, which perhaps is another one, can become this.
    pub(crate) fn fits(&self, s: &State) -> bool {
        self.lapic.is_some() == s.apic.lapic.is_some()
            && self.xsave.len() == s.xstate.area.as_slice().len()
            // SynIC's registers come with its capability; others are made when they are needed.
            && self.hv.as_ref().is_none_or(|of| match &s.hv {
                Some(hv) => hv.fits(of),
                None => !of.has_synic(),
            })
    }

    /// The vCPU, which perhaps is another one, counts as fast as that of the image, and has Hyper-V's registers if that
    /// had them: they come with the CPUID that grants them, or when user space reads or writes one. ENOMEM, and what
    /// [`State::set_tsc_khz`] fails with.
    pub(crate) fn make_alike(&self, s: &mut State) -> Result {
        if self.hv.is_some() {
            s.hyperv()?;
        }
        if s.tsc.khz == self.tsc_khz {
            return Ok(());
        }
        s.set_tsc_khz(self.tsc_khz)
    }

    /// What was sent to the vCPU has not been sent.
    pub(crate) fn forget_requests(vm: &Vm, vcpu: &Vcpu, s: &mut State) {
        let shared = &vcpu.shared;
        // A ring that is full stays so.
        let requests = shared.take_requests(!request::RING_FULL);
        s.apf.clear();
        let _ = shared.take_direct();
        let _ = shared.take_posted();
        shared.arch.nmi.store(0, Ordering::Relaxed);
        if requests & request::EXITS != 0 {
            s.take_exits(vm);
        }
    }

    /// TSC and paravirtual clocks.
    fn put_time_back(&self, s: &mut State, elapsed: &Elapsed) {
        if s.tsc.khz != self.tsc_khz {
            // The vCPU has had this frequency already.
            let _ = s.set_tsc_khz(self.tsc_khz);
        }
        s.set_tsc_offset(self.tsc_offset.wrapping_sub(elapsed.ticks(s.tsc.scale)));
        s.tsc.member = self.tsc_member;
        s.tsc.adjust = self.tsc_adjust;
        s.timer.due = self.due;
        s.timer.exited = false;
        s.pv.put_back(&self.pv);
    }
}
