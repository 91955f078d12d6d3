// SPDX-License-Identifier: GPL-2.0
//! The physical timer of EL1 (Arm ARM D12.2, D24.10): between stays, and while it is emulated by traps.
#![forbid(unsafe_code)]

use crate::arm64::esr::SysReg;

/// CNTP_CTL_EL0, CNTP_CVAL_EL0.
pub const CTL: SysReg = SysReg::new(3, 3, 14, 2, 1);
/// See above.
pub const CVAL: SysReg = SysReg::new(3, 3, 14, 2, 2);
/// CNTP_TVAL_EL0.
pub const TVAL: SysReg = SysReg::new(3, 3, 14, 2, 0);
/// CNTPCT_EL0, and what is ordered by itself, CNTPCTSS_EL0.
pub const COUNT: SysReg = SysReg::new(3, 3, 14, 0, 1);
/// See above.
pub const ORDERED_COUNT: SysReg = SysReg::new(3, 3, 14, 0, 5);

/// Places of a vCPU's timers where there is one of each.
pub const VIRTUAL: usize = 0;
/// See above.
pub const PHYSICAL: usize = 1;

const ENABLE: u64 = 1 << 0;
const MASK: u64 = 1 << 1;
const FIRED: u64 = 1 << 2;

/// Its registers. `now` is the guest's physical counter.
#[derive(Clone, Copy, Debug, Default)]
pub struct PhysicalTimer {
    /// CNTP_CTL_EL0, of which FIRED does not count.
    pub ctl: u64,
    /// CNTP_CVAL_EL0.
    pub cval: u64,
}

impl PhysicalTimer {
    /// In how many ticks its output goes up; 0: it is up. `None`: it does not.
    pub fn due(&self, now: u64) -> Option<u64> {
        (self.ctl & (ENABLE | MASK) == ENABLE).then(|| self.cval.saturating_sub(now))
    }

    /// The guest has switched it on.
    pub fn is_on(&self) -> bool {
        self.ctl & ENABLE != 0
    }

    /// As the processor has it.
    pub fn of_registers(ctl: u64, cval: u64) -> Self {
        Self {
            ctl: ctl & (ENABLE | MASK),
            cval,
        }
    }

    /// MRS. `None`: it is no register of this timer, or of its counter.
    pub fn read(&self, reg: SysReg, now: u64) -> Option<u64> {
        Some(match reg {
            TVAL => self.cval.wrapping_sub(now) & 0xffff_ffff,
            CTL if self.cval <= now => self.ctl & (ENABLE | MASK) | FIRED,
            CTL => self.ctl & (ENABLE | MASK),
            CVAL => self.cval,
            COUNT | ORDERED_COUNT => now,
            _ => return None,
        })
    }

    /// MSR. False: none that can be written.
    pub fn write(&mut self, reg: SysReg, value: u64, now: u64) -> bool {
        match reg {
            TVAL => self.cval = now.wrapping_add(value as u32 as i32 as u64),
            CTL => self.ctl = value & (ENABLE | MASK),
            CVAL => self.cval = value,
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires() {
        let mut t = PhysicalTimer::default();
        assert_eq!(t.due(5), None);
        assert!(t.write(TVAL, 10, 100) && t.write(CTL, 7, 100));
        assert_eq!((t.cval, t.ctl), (110, 3));
        assert_eq!(t.due(100), None);
        assert!(t.write(CTL, 1, 100));
        assert_eq!(t.due(100), Some(10));
        assert_eq!(t.due(111), Some(0));
        assert_eq!((t.read(CTL, 109), t.read(CTL, 110)), (Some(1), Some(5)));
        assert_eq!(t.read(TVAL, 111), Some(0xffff_ffff));
        // In the past.
        assert!(t.write(TVAL, 0xffff_fff0, 100));
        assert_eq!(t.cval, 84);
        assert_eq!(t.read(COUNT, 7), Some(7));
        assert!(!t.write(COUNT, 7, 7));
        assert_eq!(t.read(SysReg::new(3, 3, 14, 3, 1), 7), None);
        // From the processor, which says that it has fired.
        let t = PhysicalTimer::of_registers(7, 9);
        assert_eq!((t.ctl, t.cval, t.is_on()), (3, 9, true));
        assert!(!PhysicalTimer::of_registers(6, 9).is_on());
    }
}
