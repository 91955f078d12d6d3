// SPDX-License-Identifier: GPL-2.0
//! Events on their way to the guest (SDM 3A 7, 12; SDM 3C 27.6; APM 2 15.20).
//!
//! The outer loop calls with interrupts on, [`Runner::enter_loop`] with interrupts off; both hold the vCPU's mutex.
//! Nothing here sleeps but the requests that [`Runner::handle_requests`] alone takes.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::stats::VcpuCounter;
use crate::linux::hrtimer;
use crate::x86::cpu::events;
use crate::x86::cpu::events::Inject;
use crate::x86::exit::EventKind;
use crate::x86::hyperv;
use crate::x86::pv::{clock_page, eoi};
use crate::x86::shared::request;
use crate::x86::vcpu::state::MAX_ADVANCE_NS;
use crate::x86::vendor::{Interruptibility, VcpuBackend};

impl Runner<'_> {
    /// The VMX preemption timer ran out: the guest's own timer is due.
    pub(super) fn preemption_timer(&mut self) -> Step {
        self.s.timer.exited = true;
        self.take_interrupts(request::TIMER);
        Step::Again
    }

    /// The guest can be interrupted, as [`Runner::choose_event`] wished to know, perhaps for user space.
    pub(super) fn irq_window(&mut self) -> Step {
        if self.vm.chip.has_pic() {
            Step::Again
        } else {
            Step::Leave
        }
    }

    /// Takes what others asked for; also outside KVM_RUN, before user space reads the state.
    pub(crate) fn handle_requests(&mut self) {
        let shared = &self.vcpu.shared;
        let mut r = shared.take_requests(!request::AT_ENTRY);
        if r == 0 {
            return;
        }
        if r & (request::INIT | request::SIPI) != 0 {
            self.start_up(r);
            r &= !(request::INIT | request::SIPI);
        }
        self.take_interrupts(r);
        if r & request::EXITS != 0 {
            self.s.take_exits(self.vm);
        }
        if r & request::RECORD != 0 {
            self.follow_recorder();
        }
        if r & request::CLOCK != 0 {
            clock_page::update(self.vm, self.s);
            hyperv::time::refresh(self.vm, self.s);
        }
        if r & request::HYPERV != 0 {
            hyperv::messages::process(self.vm, shared, self.s);
            // Timers have sent interrupts perhaps, which whoever reads the state next has to find in it.
            let sent = shared.take_requests(request::NOTIFIED | request::POSTED);
            self.take_interrupts(sent);
        }
    }

    /// Interrupt requests; also inside a stay.
    pub(super) fn take_interrupts(&mut self, r: u32) {
        let shared = &self.vcpu.shared;
        if r & request::NOTIFIED != 0 {
            let mut irr = shared.take_direct();
            if let Some(hv) = &mut self.s.hv {
                hv.hold(&mut irr);
            }
            if let Some(l) = &mut self.s.apic.lapic {
                l.accept_bitmap(&irr, &[0; 8]);
            }
        }
        if r & request::POSTED != 0 {
            let (mut irr, level) = shared.take_posted();
            if let (true, Some(hv)) = (self.s.apic.virtualized, &mut self.s.hv) {
                hv.hold(&mut irr);
            }
            if let Some(l) = &mut self.s.apic.lapic {
                l.accept_bitmap(&irr, &level);
            }
            if self.s.apic.virtualized {
                self.s.refresh_eoi_exits(self.vm, &irr);
            }
        }
        if r & request::FLUSH != 0 {
            self.s.last_stay.tlb_generation = 0;
        }
        if r & request::UNHALT != 0 {
            self.s.pv.unhalted = true;
        }
        if r & request::NMI != 0 {
            let n = shared
                .arch
                .nmi
                .swap(0, core::sync::atomic::Ordering::Relaxed);
            self.s.events.nmis = self.s.events.nmis.saturating_add(n.min(2) as u8).min(2);
        }
        if r & request::SMI != 0 {
            self.s.smm.pending = true;
        }
        if r & request::TIMER != 0 {
            let tsc = self.s.tsc();
            let advance = self.s.timer.advance.max(self.s.timer.exit_advance);
            if let Some(l) = &mut self.s.apic.lapic {
                let now = hrtimer::ktime_get_ns();
                let deadline = l.tsc_deadline();
                if deadline == 0 {
                    let _ = l.timer_expired(now, tsc);
                } else if deadline.wrapping_sub(tsc) <= advance {
                    // Early on purpose: the entry waits for the rest.
                    let _ = l.timer_expired(now, deadline);
                    self.s.timer.due = Some(deadline);
                } else if l.timer_expired(now, tsc) {
                    self.s.timer.due = Some(deadline);
                }
                self.vcpu.timer.arm(self.s);
            }
        }
    }

    /// Holds the entry until `deadline`, whose interrupt has been posted already, and learns how early the next timer
    /// has to be. Short: the timer was early by [`State::timer_advance`] at most.
    #[cold]
    #[inline(never)]
    pub(super) fn await_deadline(&mut self, deadline: u64) {
        let s = &mut *self.s;
        let limit = MAX_ADVANCE_NS * u64::from(s.tsc.khz) / 1_000_000;
        let exited = core::mem::take(&mut s.timer.exited);
        let early = deadline.wrapping_sub(s.tsc()) as i64;
        let by = early.unsigned_abs();
        // Later than any advance could make up for: the host was busy, which says nothing about the way here.
        if by > limit {
            return;
        }
        let advance = if exited {
            &mut s.timer.exit_advance
        } else {
            &mut s.timer.advance
        };
        if early <= 0 {
            *advance = advance.saturating_add(by / 2).min(limit);
            return;
        }
        *advance = advance.saturating_sub(by / 8);
        while (deadline.wrapping_sub(s.tsc()) as i64) > 0 {
            core::hint::spin_loop();
        }
    }

    /// What the entry delivers, and the windows it asks for.
    pub(super) fn choose_event(&mut self) -> (Option<crate::x86::exit::Event>, bool, bool) {
        let interrupt = self.s.has_interrupt(self.vm);
        // A window of no use to user space would open at every entry.
        let user_window = !self.vm.chip.has_pic()
            && self.s.accepts_external()
            && self.run.get(exits::REQUEST_INTERRUPT_WINDOW) != 0;
        let e = &self.s.events;
        if !interrupt
            && !user_window
            && e.nmis == 0
            && e.exception.is_none()
            && e.interrupted.is_none()
        {
            return (None, false, false);
        }
        if self.s.smm.is_due() {
            // It waits for what this entry delivers.
            self.end_entry_at_once();
        }
        let gate = self.s.gate();
        if gate.nmi {
            // Only one more is latched while NMIs are blocked (SDM 3A 7.7.1).
            self.s.events.nmis = self.s.events.nmis.min(1);
        }
        let held = self.s.debug.holds_interrupts(self.s.cpu.regs.rip);
        let p = events::Pending {
            interrupted: self.s.events.interrupted,
            exception: self.s.events.exception,
            nmis: if held { 0 } else { self.s.events.nmis },
            interrupt: interrupt && !held,
        };
        let d = events::decide(&gate, &p);
        let event = match d.inject {
            Inject::Nothing => None,
            Inject::Again(ev) => {
                self.s.events.interrupted = None;
                if ev.kind == EventKind::Nmi {
                    // Its own injection blocks NMIs again.
                    self.s.hw.set_interruptibility(Interruptibility {
                        nmi: false,
                        sti: gate.sti,
                        mov_ss: gate.mov_ss,
                    });
                }
                self.stats.add(VcpuCounter::Reinjections, 1);
                Some(ev)
            }
            Inject::Exception => {
                self.stats.add(VcpuCounter::ExceptionInjections, 1);
                let protected = self.s.protected();
                self.s.events.exception.take().map(|x| {
                    match x.vector {
                        events::vector::DB => self.s.deliver_debug(x.payload),
                        events::vector::BP => {
                            if let Some(len) = self.s.take_breakpoint() {
                                return events::breakpoint_event(len);
                            }
                        }
                        _ => {}
                    }
                    events::exception_event(x, protected)
                })
            }
            Inject::Nmi => {
                self.stats.add(VcpuCounter::NmiInjections, 1);
                self.s.events.nmis -= 1;
                self.s.events.held_nmi = false;
                Some(events::nmi_event())
            }
            Inject::Interrupt => {
                self.stats.add(VcpuCounter::IrqInjections, 1);
                let vector = self.s.acknowledge(self.vm);
                if let (true, Some(v)) = (self.s.pv.eoi_wanted(), vector) {
                    eoi::offer(self.vm, self.s, v);
                }
                vector.map(events::interrupt_event)
            }
        };
        let more = d.irq_window || user_window || !held && self.s.has_interrupt(self.vm);
        (event, more, d.nmi_window)
    }
}
