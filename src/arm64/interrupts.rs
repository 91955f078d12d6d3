// SPDX-License-Identifier: GPL-2.0
//! Interrupts of a vCPU around its entries: list registers, the virtual timer, WFI, registers that trap.
//!
//! **The virtual timer** is the processor's own while the guest runs. When it fires, the host's interrupt of it stops
//! the guest. It is not acknowledged: it is made to count as being handled (active) on this CPU, so that it does not
//! come again, and the guest gets its PPI in a list register that names the host's. The guest's end of the one is the
//! end of the other. It counts as being handled as long as the timer's output is up or the PPI is in a list register,
//! and at the end of each stay no more, when the timer is off.
//!
//! **The physical timer** is emulated: its registers trap, and a timer of the host's makes the vCPU look at it when it
//! is due. The counter is the processor's own, unless user space gives it an offset; then it traps as well.

use crate::abi::stats::{VcpuCounter, VcpuHistogram};
use crate::arm64::el2::{self, Stay};
use crate::arm64::esr::SysReg;
use crate::arm64::run::{Runner, Step};
use crate::arm64::vgic::registers::SRE;
use crate::arm64::vm::Vm;
use crate::linux::hrtimer::ktime_get_ns;
use crate::linux::irqflags::ThisCpu;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// ICH_VTR_EL2.TDS: that ICC_DIR_EL1 alone traps can be chosen.
const TRAPS_DIR: u64 = 1 << 19;

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
        self.s.irq.physical = physical;
        let host = self.s.host_irqs.timer.hardware_number();
        vgic.map_private(self.s.index, intid, host);
        self.s.irq.mapped = intid;
        self.s.guest.has_gic = true;
        Ok(())
    }

    /// A stay begins; the CPU may be another one, and somebody else may have used it meanwhile.
    pub(super) fn begin_interrupts(&mut self, vm: &Vm) {
        self.s.guest.counter_offset = vm.counter_offset.load(Ordering::Relaxed);
        self.s.guest.physical_offset = vm.physical_offset.load(Ordering::Relaxed);
        // KVM says what it is when it loads a vCPU, and leaves it when it puts one.
        let known = self.s.host_irqs.timer.is_own();
        self.s.irq.timer_active = known.then_some(false);
        self.s.irq.again = true;
    }

    /// The stay ends: the host's interrupt of the timer is as it was before the guest.
    pub(super) fn end_interrupts(&mut self, cpu: ThisCpu<'_>) {
        if self.s.guest.has_gic && self.s.irq.timer_active == Some(true) {
            self.s.host_irqs.timer.set_active(cpu, false);
            self.s.irq.timer_active = Some(false);
        }
    }

    /// Before an entry: the list registers get what is next.
    #[inline]
    pub(super) fn put_interrupts(&mut self, stay: &Stay<'_>, cpu: ThisCpu<'_>) {
        if !self.s.guest.has_gic {
            return;
        }
        let look = self.vcpu.shared.arch.take_look();
        if look {
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
        irq.again = irq.lists.used > 0 || irq.timer_up;
        let active = irq.timer_up || irq.lists.holds(irq.mapped);
        if irq.timer_active != Some(active) {
            s.host_irqs.timer.set_active(cpu, active);
            irq.timer_active = Some(active);
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
        let up = stay.timer_fires();
        if up != self.s.irq.timer_up {
            self.timer_line(up);
        }
    }

    fn fold(&mut self, stay: &Stay<'_>) {
        let Some(vgic) = self.vm.vgic() else { return };
        let irq = &mut self.s.irq;
        let had = irq.lists.holds(irq.mapped);
        let ends = stay.take_lists(&mut irq.lists);
        if had && !irq.lists.holds(irq.mapped) {
            // The guest's end was that of the host's interrupt.
            irq.timer_active = Some(false);
        }
        vgic.fold(self.s.index, &mut irq.lists, ends);
        irq.again = true;
    }

    /// The output of the virtual timer has changed.
    fn timer_line(&mut self, up: bool) {
        let Some(vgic) = self.vm.vgic() else { return };
        self.s.irq.timer_up = up;
        vgic.set_private(self.s.index, self.s.irq.mapped, up);
        self.s.irq.again = true;
    }

    /// The physical timer may have fired, or been changed.
    #[inline]
    pub(super) fn look_at_physical(&mut self) {
        if self.s.guest.physical.ctl != 0 || self.s.irq.physical_up {
            self.physical_line();
        }
    }

    /// Its output becomes what it is now, and the vCPU will look again when it goes up.
    fn physical_line(&mut self) {
        let now = self.physical_count();
        let due = self.s.guest.physical.due(now);
        let up = due == Some(0);
        if let Some(vgic) = self.vm.vgic().filter(|_| self.s.guest.has_gic) {
            if up != self.s.irq.physical_up {
                self.s.irq.physical_up = up;
                vgic.set_private(self.s.index, self.s.irq.physical, up);
                self.s.irq.again = true;
            }
        }
        match due.filter(|_| !up).and_then(el2::nanoseconds) {
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
        let irq = &mut self.s.irq;
        if irq.timer_up && irq.timer_active != Some(true) {
            self.s.host_irqs.timer.set_active(cpu, true);
            irq.timer_active = Some(true);
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
        // What comes from here on is seen below, or wakes.
        shared.arch.take_look();
        self.s.irq.again = true;
        self.look_at_physical();
        let offset = self.vm.counter_offset.load(Ordering::Relaxed);
        let due = el2::timer_due(&self.s.guest.context, offset);
        let up = due == Some(0);
        if up != self.s.irq.timer_up {
            self.timer_line(up);
            shared.arch.take_look();
        }
        if vgic.wakes(self.s.index, self.s.guest.interface.mask()) {
            self.s.halted = false;
            return Step::Leave;
        }
        if let Some(ns) = due.filter(|ns| *ns > 0) {
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
