// SPDX-License-Identifier: GPL-2.0
//! One vCPU on VMX: its VMCS, stays, entries and exits (SDM 3C 25 to 28).
//!
//! `vendor::choose` calls this for the vCPU's own thread, which holds the vCPU's mutex. `begin_stay`, `end_stay` and
//! `enter` run in a stay, whose value they take; all else may be called in a stay or outside, where reaching the
//! VMCS takes a short stay of its own. What the next entry has to write is kept here; `enter` writes only what
//! differs.

mod write;

use super::apic::{Apic, TprShadow};
use super::bits::{activity, proc, reason};
use super::config::{VmcsConfig, TSC_FRACTION};
use super::entry::{self as world, Outcome};
use super::exits::{self, LastExit};
use super::flush::Flush;
use super::host::HostState;
use super::insn::Current;
use super::interruptibility::Blocking;
use super::msr::{self, GuestMsrs};
use super::pause::PauseWindow;
use super::root::{Region, NOWHERE};
use super::setup;
use super::shared::{Shared, SHARED};
use super::split_lock::{self, SplitLock};
use super::state::{self, ControlState, RightsCache};
use super::timer::Timer;
use super::vmcs::*;
use super::write_log::WriteLog;
use super::written::Written;
use super::{decode, event, view};
use crate::linux::irqflags::{IrqGuard, ThisCpu};
use crate::linux::{cr, vectors};
use crate::mem::addr::{Gpa, Hpa};
use crate::x86::cpu::cpuid::GuestFeatures;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::index;
use crate::x86::cpu::regs::{Seg, Segment};
use crate::x86::exit::{Event, EventKind, Exit};
use crate::x86::mitigate;
use crate::x86::paging::fetch::Code;
use crate::x86::vendor::{
    ApicMode, ApicPages, Begin, CpuState, EntryParams, EntryViolation, Exits, Groups,
    Interruptibility, Stay, VcpuBackend, VendorState, KEPT_MSRS,
};
use kernel::prelude::*;
use kernel::sync::Arc;

/// The vendor part of a vCPU.
pub(crate) struct VmxVcpu {
    pub(super) shared: Arc<Shared>,
    pub(super) region: Region,
    /// A stay goes on.
    in_stay: bool,
    /// The VMCS has been set up, in the first stay.
    ready: bool,
    /// The launch state is "launched".
    pub(super) launched: bool,
    /// A guest ran in this stay.
    entered: bool,
    /// CPU of the last stay.
    last_cpu: u32,
    /// HOST_RSP as written; see [`world::switch`].
    host_rsp: u64,
    host: HostState,
    msrs: GuestMsrs,
    control: ControlState,
    written: Written,
    rights: RightsCache,
    exceptions: u32,
    /// Optional exits.
    exits: Exits,
    pause: PauseWindow,
    /// Processor-based controls that are not wanted for their sake.
    proc_off: u32,
    tsc_offset: u64,
    tsc_ratio: u64,
    /// The virtualised local APIC, if it is.
    apic: Option<Apic>,
    /// The TPR, if the processor keeps that and no more.
    tpr: Option<TprShadow>,
    /// Primary processor-based controls, without windows.
    proc: u32,
    /// [`VmxVcpu::write_stale`] has something to do.
    stale: bool,
    /// PDPTEs to write at the next entry.
    pdptes: Option<[u64; 4]>,
    /// Flushes at the next entry.
    flush: Flush,
    blocking: Blocking,
    /// The activity state may not be "active".
    activity_dirty: bool,
    last_exit: LastExit,
    /// Pin-based controls but for the preemption timer.
    pin: u32,
    timer: Timer,
    split_lock: SplitLock,
    log: WriteLog,
}

impl VmxVcpu {
    #[inline(always)]
    pub(super) fn config(&self) -> &VmcsConfig {
        &self.shared.config
    }

    /// Access to the VMCS during a stay.
    #[inline(always)]
    pub(super) fn current<'a>(&self) -> Option<Current<'a>> {
        self.region.current()
    }

    /// Runs `f` with the VMCS current: at once in a stay, else in a short one of its own. `None` when root
    /// operation cannot be had, which has been logged.
    fn with_current<R>(&mut self, f: impl FnOnce(&mut Self, Current<'_>) -> R) -> Option<R> {
        if let Some(vm) = self.current() {
            return Some(f(self, vm));
        }
        let irq = self.region.irqs_off();
        let vm = self.enter_short(irq.this_cpu()).ok()?;
        let result = f(self, vm);
        self.region.leave();
        Some(result)
    }

    /// [`VmxVcpu::enter_root`] for a short stay.
    #[inline(never)]
    fn enter_short<'irq>(&mut self, this_cpu: ThisCpu<'irq>) -> Result<Current<'irq>> {
        self.enter_root(this_cpu)
    }

    /// Root operation with this VMCS current, which has been set up. After success [`Region::leave`] has to follow.
    #[inline(always)]
    fn enter_root<'irq>(&mut self, this_cpu: ThisCpu<'irq>) -> Result<Current<'irq>> {
        // SAFETY: Both callers have `leave` called: `with_current`, and `begin_stay`, after which `Stay::hold` calls
        // `end_stay`.
        self.launched &= unsafe { self.region.enter(this_cpu) }?;
        let vm = self.current().ok_or(EIO)?;
        if let Err(e) = self.set_up(vm) {
            self.region.leave();
            return Err(e);
        }
        Ok(vm)
    }

    /// Sets up the VMCS in its first use.
    #[inline(always)]
    fn set_up(&mut self, vm: Current<'_>) -> Result {
        if self.ready {
            return Ok(());
        }
        self.set_up_first(vm)
    }

    #[cold]
    #[inline(never)]
    fn set_up_first(&mut self, vm: Current<'_>) -> Result {
        let config = &self.shared.config;
        setup::controls(
            vm,
            &self.shared,
            self.proc,
            self.flush.vpid,
            self.exits.pause,
        );
        // SAFETY: The kernel calls this.
        unsafe { self.host.set_up(vm) };
        state::set_up(vm);
        setup::guest(vm);
        self.written = Written::RESET;
        let mut proc2 = config.proc2;
        if let Some(apic) = &mut self.apic {
            self.pin = apic.set_up(vm, config);
            // The log's own fields are written with the first entry.
            proc2 = apic.write(vm, &self.shared, 0);
        }
        if let Some(tpr) = &self.tpr {
            tpr.set_up(vm);
        }
        setup::verify(vm, proc2)?;
        self.ready = true;
        Ok(())
    }

    /// Brings the VMCS up to date for an entry.
    #[inline(always)]
    fn prepare(&mut self, vm: Current<'_>, cpu: &CpuState, params: &EntryParams) {
        if !cpu.dirty.is_empty() {
            self.write_dirty(vm, cpu);
        }
        self.write_params(vm, cpu, params);
        self.written.write_regs(vm, &cpu.regs, &mut self.blocking);
        if let Some(e) = &params.inject {
            if !self.exits.hlt {
                // In the state HLT an entry takes interrupts, NMIs, #DB and #MC only (SDM 3C 27.3.1.5).
                vm.write(GUEST_ACTIVITY_STATE, activity::ACTIVE);
            }
            if e.kind == EventKind::Nmi {
                self.blocking.allow_nmi(vm);
            }
            event::inject(vm, e, self.control.protected());
        }
    }

    /// Runs the entry checks over the VMCS as it is; `tpr` is CR8.
    fn check(&self, vm: Current<'_>, tpr: u8) -> Result<(), EntryViolation> {
        // Outside a stay the host's part is that of the last one.
        view::check(vm, &self.shared.rules, tpr, self.in_stay)
    }

    /// The failure that the entry checks find, as the processor would report it.
    #[cold]
    fn refuse(&self, vm: Current<'_>, tpr: u8) -> Option<Exit> {
        let violation = self.check(vm, tpr).err()?;
        Some(exits::refused(vm, &violation))
    }

    /// Turns the exit that just happened into its neutral form.
    #[inline(never)]
    fn decode(&mut self, vm: Current<'_>, cpu: &mut CpuState, reason: u32) -> Exit {
        let paused = reason == reason::EXCEPTION_OR_NMI && self.host.pebs.resume();
        let exit = self.last_exit.decode(vm, cpu, reason, &mut self.blocking);
        if paused {
            self.host.pebs.pause();
        }
        match exit {
            Exit::TripleFault => {
                self.activity_dirty = true;
                self.stale = true;
            }
            Exit::Exception(e) if e.vector == vector::AC => {
                let cpl = self.cpl().unwrap_or(0);
                if split_lock::is_cause(vm, cpu.regs.rflags, cpl) {
                    self.split_lock.allow();
                    return Exit::SplitLock;
                }
            }
            _ => {}
        }
        exit
    }

    /// The local APIC is virtualised, in x2APIC mode.
    fn x2apic(&self) -> bool {
        matches!(&self.apic, Some(a) if a.mode == ApicMode::X2apic)
    }

    /// Controls that the optional exits take away.
    fn choose_controls(&mut self) {
        self.proc_off = 0;
        // Without bitmaps all of them exit (SDM 3C 26.1.3). A virtualised x2APIC needs one.
        if self.exits.all_msrs && !self.x2apic() {
            self.proc_off |= proc::MSR_BITMAPS;
        }
        if !self.exits.hlt {
            self.proc_off |= proc::HLT_EXITING;
        }
    }
}

impl VcpuBackend for VmxVcpu {
    fn new(id: u32, _features: &GuestFeatures) -> Result<Self> {
        let shared = SHARED.get().ok_or(ENODEV)?;
        Ok(Self {
            region: Region::new(shared.clone())?,
            in_stay: false,
            ready: false,
            launched: false,
            entered: false,
            last_cpu: NOWHERE,
            host_rsp: 0,
            host: HostState::default(),
            msrs: GuestMsrs::new(),
            control: ControlState::default(),
            written: Written::RESET,
            rights: RightsCache::default(),
            exceptions: 0,
            exits: Exits::default(),
            pause: PauseWindow::NEW,
            proc_off: 0,
            tsc_offset: 0,
            tsc_ratio: 1 << TSC_FRACTION,
            apic: None,
            tpr: None,
            proc: shared.config.proc,
            stale: true,
            pdptes: None,
            flush: Flush::new(id),
            blocking: Blocking::NONE,
            activity_dirty: false,
            last_exit: LastExit::default(),
            pin: shared.config.pin,
            timer: Timer::OFF,
            split_lock: SplitLock::default(),
            log: WriteLog::default(),
            shared,
        })
    }

    #[inline]
    fn irqs_off(&mut self) -> IrqGuard {
        self.region.irqs_off()
    }

    fn begin_stay(&mut self, begin: Begin<'_>) -> Result {
        let this_cpu = begin.this_cpu();
        let vm = self.enter_root(this_cpu)?;
        if this_cpu.number() != self.last_cpu {
            self.host.move_to_this_cpu(vm, &self.shared.config);
            self.last_cpu = this_cpu.number();
            self.flush.root = true;
            self.stale = true;
        }
        let (cr4, irqs_off) = (self.region.cr4(), this_cpu.irqs_off());
        // SAFETY: Nothing fails from here on, so that `end_stay` follows, which calls `leave` first and leaves root
        // operation then.
        unsafe { self.host.enter(vm, cr4, &self.msrs, irqs_off) };
        self.msrs.spec_ctrl.begin_stay(irqs_off);
        self.split_lock.begin_stay();
        self.entered = false;
        self.written.dr = None;
        self.in_stay = true;
        Ok(())
    }

    fn end_stay(&mut self, _stay: Stay<'_>) {
        let Some(vm) = self.current() else {
            return;
        };
        // For callers after the stay, which would have to open one to ask.
        self.blocking.get(vm);
        self.in_stay = false;
        self.split_lock.end_stay();
        if self.entered && self.region.others_follow() {
            mitigate::other_guests();
        }
        // SAFETY: A stay has one CPU, with interrupts off all along; its beginning called `enter`.
        unsafe { self.host.leave(&mut self.msrs, self.entered) };
        self.region.leave();
    }

    #[inline]
    fn after_stay(&mut self, irqs: IrqGuard) {
        if let Some(vector) = self.last_exit.host_vector.take() {
            // SAFETY: An exit of the stay acknowledged it, and nobody else has delivered it; FRED was refused by
            // `probe`. KVM_RUN, which sleeps, made `irqs` with interrupts on.
            unsafe { vectors::host_interrupt(vector, irqs) };
        }
    }

    #[inline(never)]
    fn enter(
        &mut self,
        _stay: &Stay<'_>,
        cpu: &mut CpuState,
        params: Option<&EntryParams>,
    ) -> Exit {
        let Some(vm) = self.current() else {
            // The core never does that.
            return Exit::EntryFailure(u64::MAX);
        };
        match params {
            Some(params) => {
                self.prepare(vm, cpu, params);
                if params.check {
                    if let Some(exit) = self.refuse(vm, params.tpr) {
                        return exit;
                    }
                }
            }
            None => {
                if !cpu.dirty.is_empty() {
                    self.write_dirty(vm, cpu);
                }
                if self.stale {
                    self.write_stale(vm, cpu);
                }
                self.written.write_regs(vm, &cpu.regs, &mut self.blocking);
            }
        }
        if self.timer.is_needed() {
            if let Some(rate) = self.config().timer_rate {
                self.timer.write(vm, rate, self.pin);
            }
        }
        if cr::cr2() != cpu.sregs.cr2 {
            // SAFETY: The kernel reads CR2 only at the begin of its page-fault handler.
            unsafe { cr::write_cr2(cpu.sregs.cr2) };
        }

        let (regs, spec_ctrl) = (&mut cpu.regs, &mut self.msrs.spec_ctrl);
        // SAFETY: In a stay host state and MSRs are set; `launched` follows the processor's
        // launch state; the VMCS was set up and its controls are those of `config`.
        let outcome =
            unsafe { world::switch(vm, regs, spec_ctrl, &mut self.host_rsp, self.launched) };

        cpu.sregs.cr2 = cr::cr2();
        self.last_exit.insn_len = 0;
        self.last_exit.interrupted = None;
        if outcome != Outcome::Exit {
            return exits::entry_failed(vm, outcome);
        }
        self.entered = true;
        self.blocking.forget();
        let reason = vm.read(EXIT_REASON);
        if reason & reason::ENTRY_FAILURE != 0 {
            return exits::failed_late(vm, reason);
        }
        self.launched = true;
        cpu.avail = Groups::NONE;
        cpu.dirty = Groups::NONE;
        self.written.read_regs(vm, &mut cpu.regs);
        if let Some(exit) = decode::instruction(reason) {
            self.last_exit.insn_len = vm.read(EXIT_INSTRUCTION_LEN) as u8;
            return exit;
        }
        if reason == reason::EPT_VIOLATION {
            return self.last_exit.nested_fault(vm, &mut self.blocking);
        }
        if reason == reason::IO {
            self.last_exit.insn_len = vm.read(EXIT_INSTRUCTION_LEN) as u8;
            return decode::io(vm.read(EXIT_QUALIFICATION));
        }
        self.decode(vm, cpu, reason)
    }

    #[inline]
    fn was_interrupted(&self) -> bool {
        self.last_exit.interrupted.is_some()
    }

    #[inline]
    fn end_shadow(&mut self) {
        let stay = self.current();
        self.stale |= self.blocking.end_shadow(stay);
    }

    fn load(&mut self, cpu: &mut CpuState, groups: Groups) {
        // A short stay costs more than the reads: what else may be asked for comes along.
        let wanted = if self.in_stay {
            groups
        } else if cpu.avail.contains(groups) {
            return;
        } else {
            Groups::ALL
        };
        let missing = wanted.without(cpu.avail);
        if missing.is_empty() {
            return;
        }
        self.with_current(|v, vm| {
            state::load(vm, &v.control, &mut v.rights, &mut cpu.sregs, missing);
        });
        cpu.avail = cpu.avail.union(missing);
    }

    #[inline]
    fn code(&self, rflags: u64) -> Option<Code> {
        let vm = self.current()?;
        Some(state::code(vm, &self.control, rflags, self.cpl()?))
    }

    #[inline]
    fn segment(&mut self, seg: Seg) -> Option<Segment> {
        let vm = self.current()?;
        Some(state::segment(vm, seg, &mut self.rights))
    }

    /// The DPL of SS in every mode (SDM 3C 25.4.1).
    #[inline]
    fn cpl(&self) -> Option<u8> {
        let vm = self.current()?;
        Some((vm.read(GUEST_ES_ACCESS_RIGHTS.nth(Seg::Ss as u32)) >> 5) as u8 & 3)
    }

    #[inline]
    fn insn_len(&self) -> Option<u8> {
        match self.last_exit.insn_len {
            0 => None,
            n => Some(n),
        }
    }

    fn insn_bytes(&self) -> Option<([u8; 16], u8)> {
        None
    }

    #[inline]
    fn take_interrupted(&mut self) -> Option<Event> {
        self.last_exit.interrupted.take()
    }

    #[inline]
    fn interruptibility(&mut self) -> Interruptibility {
        let stay = self.current();
        self.blocking.neutral(stay)
    }

    fn set_interruptibility(&mut self, i: Interruptibility) {
        if i.sti | i.mov_ss {
            // An entry refuses both with the state HLT (SDM 3C 27.3.1.5).
            self.wake();
        }
        self.stale |= self.blocking.set(i);
    }

    fn msr(&mut self, index: u32) -> Option<u64> {
        let kept = self.msrs.get(index, self.current());
        if kept.is_some() || !msr::has_field(index) {
            return kept;
        }
        self.with_current(|_, vm| msr::read_field(vm, index))?
    }

    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        if let Some(i) = msr::swapped_slot(index) {
            if let Some(slot) = self.msrs.swapped.get_mut(i) {
                let old = core::mem::replace(slot, value);
                if self.in_stay {
                    self.host.reload(i, old, value);
                }
            }
            return true;
        }
        self.stale |= index == index::SPEC_CTRL;
        let stay = self.current();
        let kept = self.msrs.set(index, value, stay);
        if !msr::has_field(index) {
            return kept;
        }
        self.with_current(|_, vm| msr::write_field(vm, index, value))
            .is_some()
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
        self.stale = true;
    }

    #[inline]
    fn set_deadline(&mut self, host_tsc: u64) {
        self.timer.deadline = host_tsc;
    }

    fn set_tsc_ratio(&mut self, ratio: u64) {
        self.tsc_ratio = ratio;
        self.stale = true;
    }

    fn set_exception_intercepts(&mut self, vectors: u32) {
        self.exceptions = vectors;
        self.stale = true;
    }

    fn virtualize_apic(&mut self, pages: &ApicPages) -> bool {
        if !self.config().apicv || self.ready {
            return false;
        }
        self.proc = self.config().tpr_controls();
        self.apic = Some(Apic::new(*pages));
        true
    }

    fn shadow_tpr(&mut self, registers: Hpa) -> bool {
        if !self.config().tpr_shadow || self.ready {
            return false;
        }
        self.proc = self.config().tpr_controls();
        self.tpr = Some(TprShadow::new(registers));
        true
    }

    fn set_apic_mode(&mut self, mode: ApicMode) {
        if let Some(apic) = self.apic.as_mut().filter(|a| a.mode != mode) {
            apic.mode = mode;
            apic.dirty = true;
            // What was cached may tell of the APIC-access page as of the mode before.
            self.flush.root = true;
            self.stale = true;
            self.choose_controls();
        }
    }

    fn set_eoi_exits(&mut self, vectors: &[u32; 8]) {
        if let Some(apic) = &mut self.apic {
            apic.eoi_exits = *vectors;
            apic.dirty = true;
            self.stale = true;
        }
    }

    fn set_spinning(&mut self, on: bool) {
        self.stale |= self.pause.adapt(on);
    }

    fn set_write_log(&mut self, on: bool) -> Result {
        self.log.set(on)?;
        self.stale |= self.log.stale;
        Ok(())
    }

    #[inline]
    fn take_write_log(&mut self, _stay: &Stay<'_>, page: impl FnMut(Gpa)) {
        if let Some(vm) = self.current() {
            self.log.take(vm, page);
        }
    }

    fn set_exits(&mut self, exits: Exits) {
        self.exits = exits;
        if let Some(apic) = &mut self.apic {
            apic.dirty = true;
            self.stale = true;
        }
        self.choose_controls();
    }

    fn wake(&mut self) {
        if !self.exits.hlt {
            self.activity_dirty = true;
            self.stale = true;
        }
    }

    fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        self.pdptes = Some(pdptes);
        self.stale = true;
    }

    fn pdptes(&mut self) -> Option<[u64; 4]> {
        if self.pdptes.is_none() {
            return self
                .with_current(|_, vm| state::pdptes(vm))
                .or(Some([0; 4]));
        }
        self.pdptes
    }

    fn save(&mut self) -> Result<VendorState> {
        let mut saved = VendorState {
            msrs: KEPT_MSRS.map(|index| self.msrs.get(index, None)),
            blocking: self.interruptibility(),
            insn_len: self.last_exit.insn_len,
            ..VendorState::default()
        };
        self.with_current(|_, vm| state::save(vm, &mut saved))
            .ok_or(EIO)?;
        saved.pdptes = self.pdptes.or(saved.pdptes);
        if self.activity_dirty {
            saved.activity = activity::ACTIVE;
        }
        Ok(saved)
    }

    fn put_back(&mut self, saved: &VendorState) -> Result {
        for (index, value) in KEPT_MSRS.iter().zip(saved.msrs) {
            if let Some(value) = value.filter(|_| !msr::has_field(*index)) {
                self.set_msr(*index, value);
            }
        }
        self.with_current(|v, vm| {
            state::put_back(vm, saved);
            v.msrs.set(index::PAT, vm.read(GUEST_PAT), None);
        })
        .ok_or(EIO)?;
        self.activity_dirty = false;
        self.pdptes = saved.pdptes;
        self.last_exit = LastExit {
            insn_len: saved.insn_len,
            ..LastExit::default()
        };
        let _ = self.blocking.set(saved.blocking);
        self.stale = true;
        Ok(())
    }

    fn check_entry(
        &mut self,
        cpu: &mut CpuState,
        params: &EntryParams,
    ) -> Result<(), EntryViolation> {
        let result = self.with_current(|v, vm| {
            v.prepare(vm, cpu, params);
            let result = v.check(vm, params.tpr);
            event::withdraw(vm);
            result
        });
        result.unwrap_or(Ok(()))
    }
}
