// SPDX-License-Identifier: GPL-2.0
//! Register access to a local APIC: xAPIC page, x2APIC MSRs, saved state (SDM 3A 11.4.1, 11.12.1; api.rst 4.57, 4.58).
#![forbid(unsafe_code)]

use crate::nospec;
use crate::x86::irqchip::lapic::defs::{
    reg, LVTS, LVT_LEVEL, LVT_MASKED, LVT_REMOTE_IRR, SVR_ENABLE, SVR_SUPPRESS_EOI,
};
use crate::x86::irqchip::lapic::timer::{TimerArm, TimerMode};
use crate::x86::irqchip::lapic::{idx, Action, Gp, Lapic, Registers};
use crate::x86::irqchip::msg::{x2apic_ldr, Message, Shorthand, TriggerMode};

/// First x2APIC MSR.
pub const X2APIC_MSR_FIRST: u32 = 0x800;
/// What the LVT timer register holds where the CPU model has all of its modes.
const LVT_TIMER_BITS: u32 = 0x0007_00ff;
/// ICR bits that are not reserved in x2APIC mode, but for bit 12.
const ICR_VALID: u32 = 0x000c_cfff;
/// ICR delivery status: read-only, always idle here.
const ICR_STATUS: u32 = 1 << 12;

/// A saved state that cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState;

impl<R: Registers> Lapic<R> {
    /// Writable bits of LVT register `offset`.
    pub(super) fn lvt_mask(&self, offset: u32) -> u32 {
        match offset {
            reg::LVT_TIMER if self.features.tsc_deadline => LVT_TIMER_BITS,
            reg::LVT_TIMER => 0x0003_00ff,
            reg::LVT_ERROR => 0x0001_00ff,
            reg::LVT_THERMAL | reg::LVT_PERF => 0x0001_07ff,
            // LINT0, LINT1: also polarity and trigger mode.
            _ => 0x0001_a7ff,
        }
    }

    /// Writable bits of SVR: vector, enable, focus checking, and suppression where offered.
    fn svr_mask(&self) -> u32 {
        if self.features.suppress_eoi {
            0x3ff | SVR_SUPPRESS_EOI
        } else {
            0x3ff
        }
    }

    /// Reads a register that both modes have. `None`: reserved or write-only.
    fn read_common(&self, offset: u32, now: u64) -> Option<u32> {
        match offset {
            reg::VERSION
            | reg::TPR
            | reg::PPR
            | reg::LDR
            | reg::SVR
            | reg::ESR
            | reg::ICR
            | reg::DIVIDE
            | reg::INITIAL_COUNT
            | reg::ISR..=0x270
            | reg::LVT_TIMER..=reg::LVT_ERROR => Some(self.reg(offset)),
            reg::CURRENT_COUNT => Some(self.timer.count(now)),
            _ => None,
        }
    }

    /// Writes a register that both modes have; bits that it does not hold are dropped. ESR, of which nothing is made,
    /// stays what it is.
    fn write_common(&mut self, offset: u32, value: u32, now: u64) -> Action {
        match offset {
            reg::TPR => {
                self.set_tpr(value);
                Action::PENDING
            }
            reg::EOI => self.eoi(),
            reg::SVR => self.write_svr(value, now),
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt(offset, value, now),
            reg::INITIAL_COUNT => {
                let taken = self.timer.set_initial(value, now);
                if taken {
                    self.set_reg(reg::INITIAL_COUNT, value);
                }
                Action {
                    timer: taken,
                    ..Action::NONE
                }
            }
            reg::DIVIDE => {
                let dcr = value & 0xb;
                if dcr == self.reg(reg::DIVIDE) {
                    return Action::NONE;
                }
                self.set_reg(reg::DIVIDE, dcr);
                self.timer.set_divide(dcr, now);
                Action::TIMER
            }
            _ => Action::NONE,
        }
    }

    fn write_svr(&mut self, value: u32, now: u64) -> Action {
        let old = self.reg(reg::SVR);
        self.set_reg(reg::SVR, value & self.svr_mask());
        if value & SVR_ENABLE == 0 {
            // Disabling masks the LVT; the mask bits stay set until software clears them (SDM 3A 11.4.7.2).
            self.timer.skip_past(now);
            for lvt in LVTS {
                self.set_reg(lvt, self.reg(lvt) | LVT_MASKED);
            }
        }
        let toggled = (old ^ value) & SVR_ENABLE != 0;
        Action {
            addr: toggled,
            timer: toggled,
            lint0: value & SVR_ENABLE == 0,
            pending: toggled,
            ..Action::NONE
        }
    }

    fn write_lvt(&mut self, offset: u32, value: u32, now: u64) -> Action {
        let old = self.reg(offset);
        let mut lvt = value & self.lvt_mask(offset) | old & LVT_REMOTE_IRR;
        if self.reg(reg::SVR) & SVR_ENABLE == 0 {
            lvt |= LVT_MASKED;
        }
        if offset == reg::LVT_TIMER {
            // Expiries that fell into a masked time are lost.
            if old & LVT_MASKED != 0 {
                self.timer.skip_past(now);
            }
            if self.timer.set_mode(TimerMode::from_lvt(lvt), now) {
                self.set_reg(reg::INITIAL_COUNT, 0);
            }
        }
        if lvt & LVT_LEVEL == 0 {
            lvt &= !LVT_REMOTE_IRR;
        }
        self.set_reg(offset, lvt);
        Action {
            timer: offset == reg::LVT_TIMER,
            lint0: offset == reg::LVT_LINT0,
            ..Action::NONE
        }
    }

    /// Carries out a command in ICR format.
    fn send(&mut self, low: u32, high: u32) -> Action {
        let message = Message::from_icr(low, high, self.is_x2apic());
        if message.is_init_deassert() {
            return Action::NONE;
        }
        // One that is level-triggered may have to be waited for at its end, and takes the long way.
        let edge = message.trigger == TriggerMode::Edge;
        if edge && message.shorthand == Shorthand::Myself && message.delivery.has_vector() {
            return Action {
                pending: self.accept(message.vector, TriggerMode::Edge),
                ..Action::NONE
            };
        }
        Action {
            ipi: Some(message),
            ..Action::NONE
        }
    }

    /// Writes both halves of the ICR at once, as x2APIC's MSR does, in any mode; who is addressed goes by the mode.
    pub fn write_icr(&mut self, value: u64) -> Result<Action, Gp> {
        let (low, high) = (value as u32, (value >> 32) as u32);
        if low & !(ICR_VALID | ICR_STATUS) != 0 {
            return Err(Gp);
        }
        let low = low & !ICR_STATUS;
        self.set_reg(reg::ICR, low);
        self.set_reg(reg::ICR2, high);
        Ok(self.send(low, high))
    }

    /// Reads the register at `offset` (0 to 0xff0, a multiple of 16) of the xAPIC page. Reserved registers read
    /// as zero; `now` is the time in nanoseconds. Outside xAPIC mode (see [`Lapic::page`]) there is no page: all ones.
    pub fn read(&self, offset: u32, now: u64) -> u32 {
        if self.page().is_none() {
            return u32::MAX;
        }
        match offset {
            reg::ID | reg::DFR | reg::ICR2 => self.reg(offset),
            _ if offset & 15 != 0 => 0,
            _ => self.read_common(offset, now).unwrap_or(0),
        }
    }

    /// Reads the xAPIC page from `offset` (0 to 0xfff) on. Bytes and words of a register's 32 bits can be had, which
    /// the SDM does not promise (3A 11.4.1) and processors give; what goes beyond them reads as zero.
    pub fn read_bytes(&self, offset: u32, buf: &mut [u8], now: u64) {
        let within = offset as usize & 15;
        if self.page().is_none() {
            buf.fill(0xff);
            return;
        }
        buf.fill(0);
        if within.saturating_add(buf.len()) <= 4 {
            let value = self.read(offset & !15, now);
            for (to, from) in buf.iter_mut().zip(value.to_le_bytes().iter().skip(within)) {
                *to = *from;
            }
        }
    }

    /// Writes the register at `offset` of the xAPIC page. Reserved bits and registers are ignored, and so is all of it
    /// outside xAPIC mode.
    pub fn write(&mut self, offset: u32, value: u32, now: u64) -> Action {
        if self.page().is_none() {
            return Action::NONE;
        }
        match offset {
            reg::ID | reg::LDR => {
                self.set_reg(offset, value & 0xff00_0000);
                Action::ADDR
            }
            reg::DFR => {
                self.set_reg(reg::DFR, value | 0x0fff_ffff);
                Action::ADDR
            }
            reg::ICR2 => {
                self.set_reg(reg::ICR2, value & 0xff00_0000);
                Action::NONE
            }
            reg::ICR => {
                let low = value & !ICR_STATUS;
                self.set_reg(reg::ICR, low);
                self.send(low, self.reg(reg::ICR2))
            }
            reg::EOI
            | reg::TPR
            | reg::SVR
            | reg::INITIAL_COUNT
            | reg::DIVIDE
            | reg::LVT_TIMER..=reg::LVT_ERROR
                if offset & 15 == 0 =>
            {
                self.write_common(offset, value, now)
            }
            _ => Action::NONE,
        }
    }

    /// A processor that virtualises this APIC stored what the guest wrote to the register at `offset`, and exited after
    /// the instruction (SDM 3C 30.4.3.2, 30.5): the effects of the write.
    pub fn write_stored(&mut self, offset: u32, now: u64) -> Action {
        let offset = offset & 0xff0;
        let value = self.reg(offset);
        if offset == reg::ICR {
            // The half with the destination was stored without an exit.
            let high = self.reg(reg::ICR2);
            self.set_reg(reg::ICR2, high & 0xff00_0000);
        }
        self.set_reg(offset, self.stored[idx(offset)]);
        if self.is_x2apic() {
            let msr = X2APIC_MSR_FIRST + (offset >> 4);
            return self.wrmsr(msr, value.into(), now).unwrap_or(Action::NONE);
        }
        self.write(offset, value, now)
    }

    /// Page offset of x2APIC MSR `index`.
    fn msr_offset(&self, index: u32) -> Result<u32, Gp> {
        match index.checked_sub(X2APIC_MSR_FIRST) {
            Some(n) if self.is_x2apic() => {
                Ok((nospec::below(n as usize, 0x40).ok_or(Gp)? as u32) << 4)
            }
            _ => Err(Gp),
        }
    }

    /// Reads an x2APIC MSR, 0x800 to 0x8ff (SDM 3A table 11-6).
    ///
    /// # Errors
    /// [`Gp`] outside x2APIC mode and for reserved and write-only registers.
    pub fn rdmsr(&self, index: u32, now: u64) -> Result<u64, Gp> {
        let offset = self.msr_offset(index)?;
        match offset {
            reg::ID => Ok(u64::from(self.id)),
            reg::LDR => Ok(u64::from(x2apic_ldr(self.id))),
            reg::ICR => Ok(u64::from(self.reg(reg::ICR)) | u64::from(self.reg(reg::ICR2)) << 32),
            _ => self.read_common(offset, now).map(u64::from).ok_or(Gp),
        }
    }

    /// Writes an x2APIC MSR.
    ///
    /// # Errors
    /// [`Gp`] outside x2APIC mode, for reserved and read-only registers and for some reserved bits.
    pub fn wrmsr(&mut self, index: u32, value: u64, now: u64) -> Result<Action, Gp> {
        let offset = self.msr_offset(index)?;
        let low = value as u32;
        if offset == reg::ICR {
            return self.write_icr(value);
        }
        // Reserved bits of the lower half fault in ESR and the self-IPI register only; elsewhere they are dropped, as
        // by KVM.
        let allowed = match offset {
            reg::ESR => 0,
            reg::SELF_IPI => 0xff,
            reg::TPR | reg::EOI | reg::SVR | reg::INITIAL_COUNT | reg::DIVIDE => u32::MAX,
            reg::LVT_TIMER..=reg::LVT_ERROR => u32::MAX,
            _ => return Err(Gp),
        };
        if value & !u64::from(allowed) != 0 {
            return Err(Gp);
        }
        if offset == reg::SELF_IPI {
            return Ok(self.send(1 << 18 | low, 0));
        }
        Ok(self.write_common(offset, low, now))
    }

    /// Register image for KVM_GET_LAPIC; word `n` goes to byte offset `16 n` of `kvm_lapic_state.regs`.
    /// `ids_32bit`: the ID register of an APIC in x2APIC mode is in x2APIC format
    /// (KVM_X2APIC_API_USE_32BIT_IDS), else bits 31:24 hold the low byte.
    pub fn get_state(&self, ids_32bit: bool, now: u64) -> [u32; 64] {
        let mut regs = [0; 64];
        for (n, value) in regs.iter_mut().enumerate() {
            *value = self.regs.get(n);
        }
        // A count of which nobody has taken notice yet is not over: its interrupt is not in IRR, and where the image
        // goes has to come then.
        let due = matches!(self.timer_arm(), TimerArm::AtNs(_));
        regs[idx(reg::CURRENT_COUNT)] = self.timer.count(now).max(u32::from(due));
        if self.is_x2apic() {
            regs[idx(reg::ID)] = if ids_32bit { self.id } else { self.id << 24 };
            regs[idx(reg::LDR)] = x2apic_ldr(self.id);
        }
        regs
    }

    /// Loads a register image (KVM_SET_LAPIC) in the present mode. Bits that no register holds are dropped. The
    /// timer continues from the image's current count; IA32_APIC_BASE is not part of it, nor is an armed TSC deadline,
    /// which stays unless the timer gets another mode.
    ///
    /// # Errors
    /// [`BadState`] if the ID of an APIC in x2APIC mode would change.
    pub fn set_state(
        &mut self,
        image: &[u32; 64],
        ids_32bit: bool,
        now: u64,
    ) -> Result<Action, BadState> {
        let get = |offset: u32| image[idx(offset)];
        let x2apic = self.is_x2apic();
        if x2apic && ids_32bit && get(reg::ID) != self.id {
            return Err(BadState);
        }
        // While in x2APIC mode the stored ID and LDR are not used; keep what RESET would give.
        let (id, ldr) = if x2apic {
            (self.id << 24, 0)
        } else {
            (get(reg::ID) & 0xff00_0000, get(reg::LDR) & 0xff00_0000)
        };
        self.clear();
        self.set_reg(reg::ID, id);
        self.set_reg(reg::LDR, ldr);
        self.set_reg(reg::DFR, get(reg::DFR) | 0x0fff_ffff);
        self.set_reg(reg::VERSION, self.version());
        self.set_reg(reg::TPR, get(reg::TPR) & 0xff);
        self.set_reg(reg::SVR, get(reg::SVR) & self.svr_mask());
        self.set_reg(reg::ESR, get(reg::ESR) & 0xff);
        self.set_reg(reg::ICR, get(reg::ICR) & !ICR_STATUS);
        let icr2 = if x2apic { u32::MAX } else { 0xff00_0000 };
        self.set_reg(reg::ICR2, get(reg::ICR2) & icr2);
        for word in 0..8 {
            // Vectors below 16 included: nothing delivers them, and user space gets back what it wrote.
            for first in [reg::ISR, reg::TMR, reg::IRR] {
                let offset = first + word * 16;
                self.set_reg(offset, get(offset));
            }
        }
        for lvt in LVTS {
            let remote = match lvt {
                reg::LVT_LINT0 | reg::LVT_LINT1 => get(lvt) & LVT_REMOTE_IRR,
                _ => 0,
            };
            // A software-disabled APIC keeps unmasked entries here: clients set LINT0 to ExtINT that way
            // before the guest has enabled anything.
            let bits = match lvt {
                // The CPU model may come later.
                reg::LVT_TIMER => LVT_TIMER_BITS,
                _ => self.lvt_mask(lvt),
            };
            self.set_reg(lvt, get(lvt) & bits | remote);
        }
        self.set_reg(reg::DIVIDE, get(reg::DIVIDE) & 0xb);
        let deadline = self.timer.tsc_deadline();
        self.timer.reset();
        self.timer.set_divide(self.reg(reg::DIVIDE), now);
        self.timer.set_mode(self.timer_mode(), now);
        self.timer.set_tsc_deadline(deadline);
        let (initial, left) = (get(reg::INITIAL_COUNT), get(reg::CURRENT_COUNT));
        if self.timer.restore(initial, left, now) {
            self.set_reg(reg::INITIAL_COUNT, initial);
        }
        self.refresh();
        Ok(Action::ALL)
    }
}
