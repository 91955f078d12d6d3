// SPDX-License-Identifier: GPL-2.0
//! Interrupts of a vCPU around its entries: list registers, the virtual timer, WFI, registers that trap.
//!
//! **Timers** are the processor's own while the guest runs. When one fires, the host's interrupt of it stops
//! the guest. It is not acknowledged: it is made to count as being handled (active) on this CPU, so that it does not
//! come again, and the guest gets its PPI in a list register that names the host's. The guest's end of the one is the
//! end of the other. It counts as being handled as long as the timer's output is up or the PPI is in a list register,
//! and at the end of each stay no more, when the timer is off.
//!
//! **The physical timer** is so from the first stay on in which the guest switches it on; most guests never do. Until
//! then its registers trap. Where user space gives the physical counter an offset, counter and timer trap always, and a
//! timer of the host's makes the vCPU look at it when it is due.

use crate::abi::stats::{VcpuCounter, VcpuHistogram};
use crate::arm64::el2::{self, Guest, Stay};
use crate::arm64::esr::SysReg;
use crate::arm64::host_irqs::HostIrqs;
use crate::arm64::run::{Runner, Step};
use crate::arm64::timer::{PHYSICAL, VIRTUAL};
use crate::arm64::vcpu::TimerLine;
use crate::arm64::vgic::registers::SRE;
use crate::arm64::vm::Vm;
use crate::linux::hrtimer::ktime_get_ns;
use crate::linux::irqflags::ThisCpu;
use crate::linux::percpu_irq::PerCpuIrq;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// ICH_VTR_EL2.TDS: that ICC_DIR_EL1 alone traps can be chosen.
const TRAPS_DIR: u64 = 1 << 19;

/// Those of a guest's timers that are the processor's own, and the host's interrupts of them.
#[inline]
fn own<'a>(
    guest: &Guest,
    lines: &'a mut [TimerLine; 2],
    host: &'a HostIrqs,
) -> impl Iterator<Item = (&'a mut TimerLine, &'a PerCpuIrq)> {
    let count = 1 + usize::from(guest.owns_physical);
    Iterator::zip(lines.iter_mut(), host.timers.iter()).take(count)
}

impl Runner<'_> {
    /// The first KVM_RUN fixes what the controller has said. The errors are KVM's.
    pub(super) fn first_run(&mut self) -> Result {
        if self.s.has_run {
            return Ok(());
        }
        self.begin_interrupt_controller()?;
        self.s.filter = self.vm.calls.filter()?;
        self.s.guest.identity_traps = self.vm.identity.traps();
        self.s.has_run = true;
        Ok(())
    }

    fn begin_interrupt_controller(&mut self) -> Result {
        let Some(vgic) = self.vm.vgic() else {
            self.vm.ids.set_gic(false);
            self.vm.has_run.store(true, Ordering::Release);
            return Ok(());
        };
        vgic.fix_places(self.vm.address_bits)?;
        self.vm.has_run.store(true, Ordering::Release);
        let intid = self.vm.timer_intid.load(Ordering::Relaxed);
        let physical = self.vm.physical_intid.load(Ordering::Relaxed);
        if intid == physical {
            return Err(EINVAL);
        }
        let s = &mut *self.s;
        (s.irq.timers[VIRTUAL].intid, s.irq.timers[PHYSICAL].intid) = (intid, physical);
        let host = s.host_irqs.timers[VIRTUAL].hardware_number();
        vgic.map_private(s.index, intid, Some(host));
        s.guest.has_gic = true;
        Ok(())
    }

    /// A stay begins; the CPU may be another one, and somebody else may have used it meanwhile.
    pub(super) fn begin_interrupts(&mut self, vm: &Vm) {
        self.s.guest.counter_offset = vm.counter_offset.load(Ordering::Relaxed);
        self.s.guest.physical_offset = vm.physical_offset.load(Ordering::Relaxed);
        if self.wants_physical() != self.s.guest.owns_physical {
            self.change_physical();
        }
        let s = &mut *self.s;
        for (line, host) in own(&s.guest, &mut s.irq.timers, &s.host_irqs) {
            // KVM says what it is when it loads a vCPU, and leaves it when it puts one.
            line.active = host.is_own().then_some(false);
        }
        s.irq.again = true;
    }

    /// The stay ends: the host's interrupts of the timers are as they were before the guest.
    pub(super) fn end_interrupts(&mut self, cpu: ThisCpu<'_>) {
        let s = &mut *self.s;
        if !s.guest.has_gic {
            return;
        }
        for (line, host) in own(&s.guest, &mut s.irq.timers, &s.host_irqs) {
            if line.active == Some(true) {
                host.set_active(cpu, false);
                line.active = Some(false);
            }
        }
    }

    /// The physical timer is to be the processor's own. It stays so.
    #[inline]
    pub(super) fn wants_physical(&self) -> bool {
        let g = &self.s.guest;
        (g.owns_physical || g.physical.is_on()) && g.has_gic && g.physical_offset == 0
    }

    /// It becomes the processor's own, or is emulated from now on. Before a stay.
    #[cold]
    fn change_physical(&mut self) {
        let s = &mut *self.s;
        s.guest.owns_physical = !s.guest.owns_physical;
        let host = s.host_irqs.timers[PHYSICAL].hardware_number();
        if let Some(vgic) = self.vm.vgic() {
            let host = s.guest.owns_physical.then_some(host);
            vgic.map_private(s.index, s.irq.timers[PHYSICAL].intid, host);
        }
        if core::mem::take(&mut s.irq.physical_set) {
            let _ = s.physical_alarm.try_cancel();
        }
        self.look_at_physical();
    }

    /// Before an entry: the list registers get what is next.
    #[inline]
    pub(super) fn put_interrupts(&mut self, stay: &Stay<'_>, cpu: ThisCpu<'_>) {
        if !self.s.guest.has_gic {
            return;
        }
        let look = self.vcpu.shared.arch.take_look();
        if look && !self.s.guest.owns_physical {
            self.look_at_physical();
        }
        if look || self.s.irq.again {
            self.fill(stay, cpu);
        }
    }

    fn fill(&mut self, stay: &Stay<'_>, cpu: ThisCpu<'_>) {
        let Some(vgic) = self.vm.vgic() else { return };
        let index = self.s.index;
        let s = &mut *self.s;
        let irq = &mut s.irq;
        let count = el2::list_count(irq.kind);
        vgic.fill(index, count, &mut irq.lists, irq.kind & TRAPS_DIR != 0);
        irq.again = irq.lists.used > 0;
        for (line, host) in own(&s.guest, &mut irq.timers, &s.host_irqs) {
            irq.again |= line.up;
            let active = line.up || irq.lists.holds(line.intid);
            if line.active != Some(active) {
                host.set_active(cpu, active);
                line.active = Some(active);
            }
        }
        stay.put_lists(&irq.lists);
    }

    /// After an exit: what has become of them, and of the timer.
    #[inline]
    pub(super) fn take_interrupts(&mut self, stay: &Stay<'_>) {
        if !self.s.guest.has_gic {
            return;
        }
        if self.s.irq.lists.used > 0 {
            self.fold(stay);
        }
        self.timer_line(VIRTUAL, stay.timer_fires());
        if self.s.guest.owns_physical {
            self.timer_line(PHYSICAL, stay.physical_timer_fires());
        }
    }

    fn fold(&mut self, stay: &Stay<'_>) {
        let Some(vgic) = self.vm.vgic() else { return };
        let s = &mut *self.s;
        let irq = &mut s.irq;
        let ends = stay.take_lists(&mut irq.lists);
        for (line, _) in own(&s.guest, &mut irq.timers, &s.host_irqs) {
            if irq.lists.has_ended(line.intid) {
                // The guest's end was that of the host's interrupt.
                line.active = Some(false);
            }
        }
        vgic.fold(s.index, &mut irq.lists, ends);
        irq.again = true;
    }

    /// The output of a timer is this now.
    #[inline]
    fn timer_line(&mut self, which: usize, up: bool) {
        if self.s.irq.timers.get(which).is_some_and(|t| t.up != up) {
            self.timer_has_changed(which, up);
        }
    }

    fn timer_has_changed(&mut self, which: usize, up: bool) {
        let Some(vgic) = self.vm.vgic().filter(|_| self.s.guest.has_gic) else {
            return;
        };
        let Some(line) = self.s.irq.timers.get_mut(which) else {
            return;
        };
        line.up = up;
        vgic.set_private(self.s.index, line.intid, up);
        self.s.irq.again = true;
    }

    /// The physical timer may have fired, or been changed. Its registers are not in the processor. Returns in how many
    /// ticks it will fire, if nobody but the caller sees to that: if it is the processor's own in stays.
    #[inline]
    pub(super) fn look_at_physical(&mut self) -> Option<u64> {
        if self.s.guest.physical.ctl == 0 && !self.s.irq.timers[PHYSICAL].up {
            return None;
        }
        self.physical_line()
    }

    /// Its output becomes what it is now. If it is emulated, the vCPU will look again when it goes up; else returns in
    /// how many ticks that is.
    fn physical_line(&mut self) -> Option<u64> {
        let due = self.s.guest.physical.due(self.physical_count());
        self.timer_line(PHYSICAL, due == Some(0));
        let due = due.filter(|ticks| *ticks > 0);
        if self.s.guest.owns_physical {
            return due;
        }
        match due.and_then(el2::nanoseconds) {
            Some(ns) => {
                let when = ktime_get_ns().saturating_add(ns);
                self.s.physical_alarm.start_abs_ns(when);
                self.s.irq.physical_set = true;
            }
            None if self.s.irq.physical_set => {
                let _ = self.s.physical_alarm.try_cancel();
                self.s.irq.physical_set = false;
            }
            None => {}
        }
        None
    }

    /// The guest's physical counter.
    fn physical_count(&self) -> u64 {
        el2::counter().wrapping_sub(self.vm.physical_offset.load(Ordering::Relaxed))
    }

    /// MRS or MSR of a register of the physical timer, or of its counter. False: it is none.
    pub(super) fn physical_register(&mut self, reg: SysReg, read: bool, register: u8) -> bool {
        let now = self.physical_count();
        let g = &mut self.s.guest;
        if read {
            let Some(value) = g.physical.read(reg, now) else {
                return false;
            };
            g.regs.set_x(register, value);
            return true;
        }
        if !g.physical.write(reg, g.regs.x(register), now) {
            return false;
        }
        self.physical_line();
        true
    }

    /// An interrupt of the host has stopped the guest. If it was the guest's timer or its list registers, that is over
    /// when they are filled.
    pub(super) fn host_interrupt(&mut self, stay: &Stay<'_>, cpu: ThisCpu<'_>) -> Step {
        if !self.s.guest.has_gic {
            stay.silence_timer();
            return Step::Leave;
        }
        let s = &mut *self.s;
        for (line, host) in own(&s.guest, &mut s.irq.timers, &s.host_irqs) {
            if line.up && line.active != Some(true) {
                host.set_active(cpu, true);
                line.active = Some(true);
            }
        }
        if stay.host_interrupt_waits() {
            Step::Leave
        } else {
            Step::Again
        }
    }

    /// MRS or MSR of a register of the interrupt controller that traps. False: it is none.
    pub(super) fn interrupt_register(&mut self, reg: SysReg, read: bool, register: u8) -> bool {
        let Some(vgic) = self.vm.vgic() else {
            return false;
        };
        let value = self.s.guest.regs.x(register);
        match (reg.parts(), read) {
            // ICC_SGI1R_EL1, ICC_SGI0R_EL1; ICC_ASGI1R_EL1 is for the other security state, which is the same.
            ((3, 0, 12, 11, 5), false) => vgic.with(|g| g.generate(self.s.index, value, true)),
            ((3, 0, 12, 11, 6 | 7), false) => vgic.with(|g| g.generate(self.s.index, value, false)),
            // ICC_DIR_EL1.
            ((3, 0, 12, 11, 1), false) => {
                vgic.with(|g| g.deactivate(self.s.index, value as u32 & 0xff_ffff));
            }
            // ICC_SRE_EL1.
            ((3, 0, 12, 12, 5), true) => self.s.guest.regs.set_x(register, SRE),
            ((3, 0, 12, 12, 5), false) => {}
            _ => return false,
        }
        true
    }

    /// WFI: sleeps until there is an interrupt, or a request, or a signal.
    pub(super) fn wait_for_interrupt(&mut self) -> Step {
        let shared = &self.vcpu.shared;
        if self.s.guest.error.is_some() {
            self.s.halted = false;
            return Step::Leave;
        }
        let Some(vgic) = self.vm.vgic().filter(|_| self.s.guest.has_gic) else {
            // There is nobody to wake it.
            self.s.halted = false;
            return match shared.wait.wait_interruptible(|| shared.requests() != 0) {
                Ok(_) => Step::Leave,
                Err(_) => Step::Fail(self.interrupted()),
            };
        };
        // What comes from here on is seen below, or wakes: also an alarm that is set below.
        shared.arch.take_look();
        self.s.irq.again = true;
        let physical = self.look_at_physical().and_then(el2::nanoseconds);
        let offset = self.vm.counter_offset.load(Ordering::Relaxed);
        let due = el2::timer_due(&self.s.guest.context, offset);
        self.timer_line(VIRTUAL, due == Some(0));
        if vgic.wakes(self.s.index, self.s.guest.interface.mask()) {
            self.s.halted = false;
            return Step::Leave;
        }
        let due = due.filter(|ns| *ns > 0);
        if let Some(ns) = Iterator::chain(due.into_iter(), physical).min() {
            let when = ktime_get_ns().saturating_add(ns);
            self.s.alarm.start_abs_ns(when);
        }
        self.stats.set(VcpuCounter::Blocking, true);
        let since = ktime_get_ns();
        let woken = shared
            .wait
            .wait_interruptible(|| shared.requests() != 0 || shared.arch.looks());
        let slept = ktime_get_ns().saturating_sub(since);
        self.stats.set(VcpuCounter::Blocking, false);
        self.stats
            .time(VcpuCounter::HaltWaitNs, VcpuHistogram::Sleep, slept);
        let _ = self.s.alarm.try_cancel();
        match woken {
            Ok(_) => {
                self.stats.add(VcpuCounter::HaltWakeups, 1);
                Step::Leave
            }
            Err(_) => {
                // An interrupt is what WFI may also return for without one.
                self.s.halted = false;
                Step::Fail(self.interrupted())
            }
        }
    }
}
