// SPDX-License-Identifier: GPL-2.0
//! The registers of a vCPU's interface, ICC_*_EL1, as user space reads and writes them: the processor keeps most of
//! them in ICH_VMCR_EL2 (Arm IHI 0069 12.4.8).
#![forbid(unsafe_code)]

use crate::arm64::esr::SysReg;
use crate::nospec::Nospec;

/// What the processor keeps of the interface between stays.
#[derive(Clone, Debug)]
pub struct Interface {
    /// ICH_VMCR_EL2.
    pub control: u64,
    /// ICH_AP0R<n>_EL2 and ICH_AP1R<n>_EL2.
    pub active: [[u64; 4]; 2],
}

/// ICC_SRE_EL1: the registers are in the processor, and nothing goes past them.
pub const SRE: u64 = 7;

impl Interface {
    /// After reset.
    pub const RESET: Self = Self {
        control: 0,
        active: [[0; 4]; 2],
    };

    /// The priority mask.
    pub fn mask(&self) -> u8 {
        (self.control >> 24) as u8
    }

    fn field(&self, at: u32, bits: u32) -> u64 {
        self.control >> at & ((1 << bits) - 1)
    }

    fn set_field(&mut self, at: u32, bits: u32, value: u64) {
        let mask = (1 << bits) - 1;
        self.control = self.control & !(mask << at) | (value & mask) << at;
    }

    /// What `reg` reads as on a processor whose ICH_VTR_EL2 is `vtr`. `None`: it is not one of these.
    pub fn get(&self, reg: SysReg, vtr: u64) -> Option<u64> {
        Some(match reg.parts() {
            // ICC_PMR_EL1.
            (3, 0, 4, 6, 0) => self.field(24, 8),
            // ICC_BPR0_EL1.
            (3, 0, 12, 8, 3) => self.field(21, 3),
            // ICC_BPR1_EL1, which with CBPR is the other one.
            (3, 0, 12, 12, 3) => match self.field(4, 1) {
                0 => self.field(18, 3),
                _ => (self.field(21, 3) + 1).min(7),
            },
            // ICC_AP0R<n>_EL1, ICC_AP1R<n>_EL1.
            (3, 0, 12, 8, op2 @ 4..=7) => *self.active[0].get_nospec(usize::from(op2 & 3))?,
            (3, 0, 12, 9, op2 @ 0..=3) => *self.active[1].get_nospec(usize::from(op2 & 3))?,
            (3, 0, 12, 12, 4) => {
                Self::fixed_control(vtr) | self.field(4, 1) | self.field(9, 1) << 1
            }
            (3, 0, 12, 12, 5) => SRE,
            // ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1.
            (3, 0, 12, 12, 6) => self.field(0, 1),
            (3, 0, 12, 12, 7) => self.field(1, 1),
            _ => return None,
        })
    }

    /// Bits of ICC_CTLR_EL1 that the processor says: of priorities, of numbers, SEIS, A3V.
    fn fixed_control(vtr: u64) -> u64 {
        (vtr >> 29 & 7) << 8 | (vtr >> 23 & 7) << 11 | (vtr >> 22 & 1) << 14 | (vtr >> 21 & 1) << 15
    }

    /// Writes it. `Some(false)`: it cannot have that value.
    pub fn set(&mut self, reg: SysReg, value: u64, vtr: u64) -> Option<bool> {
        match reg.parts() {
            (3, 0, 4, 6, 0) => self.set_field(24, 8, value),
            (3, 0, 12, 8, 3) => self.set_field(21, 3, value),
            (3, 0, 12, 12, 3) => {
                if self.field(4, 1) == 0 {
                    self.set_field(18, 3, value);
                }
            }
            (3, 0, 12, 8, op2 @ 4..=7) => {
                *self.active[0].get_nospec_mut(usize::from(op2 & 3))? = value
            }
            (3, 0, 12, 9, op2 @ 0..=3) => {
                *self.active[1].get_nospec_mut(usize::from(op2 & 3))? = value
            }
            (3, 0, 12, 12, 4) => {
                if (value ^ Self::fixed_control(vtr)) & 0xff00 != 0 {
                    return Some(false);
                }
                self.set_field(4, 1, value);
                self.set_field(9, 1, value >> 1);
            }
            (3, 0, 12, 12, 5) => return Some(value & 1 != 0),
            (3, 0, 12, 12, 6) => self.set_field(0, 1, value),
            (3, 0, 12, 12, 7) => self.set_field(1, 1, value),
            _ => return None,
        }
        Some(true)
    }

    /// How many registers each of the two rows of active priorities has.
    pub fn rows(vtr: u64) -> usize {
        match vtr >> 26 & 7 {
            0..=4 => 1,
            5 => 2,
            _ => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five bits of priority, four list registers.
    const VTR: u64 = 4 << 29 | 4 << 26 | 1 << 23 | 3;

    #[test]
    fn they_are_what_was_written() {
        let regs = [
            (SysReg::new(3, 0, 4, 6, 0), 0xf8),
            (SysReg::new(3, 0, 12, 8, 3), 3),
            (SysReg::new(3, 0, 12, 12, 3), 4),
            (SysReg::new(3, 0, 12, 8, 4), 0x55),
            (SysReg::new(3, 0, 12, 9, 0), 0x77),
            (SysReg::new(3, 0, 12, 12, 4), 0x0c02),
            (SysReg::new(3, 0, 12, 12, 5), 7),
            (SysReg::new(3, 0, 12, 12, 6), 1),
            (SysReg::new(3, 0, 12, 12, 7), 1),
        ];
        let mut i = Interface::RESET;
        for (reg, value) in regs {
            assert_eq!(i.set(reg, value, VTR), Some(true), "{reg:?}");
        }
        for (reg, value) in regs {
            assert_eq!(i.get(reg, VTR), Some(value), "{reg:?}");
        }
        assert_eq!(i.control, 0xf870_0203 | 4 << 18);
        assert_eq!(i.mask(), 0xf8);
        // One binary point for both groups.
        assert_eq!(i.set(SysReg::new(3, 0, 12, 12, 4), 0x0c01, VTR), Some(true));
        assert_eq!(i.get(SysReg::new(3, 0, 12, 12, 3), VTR), Some(4));
    }

    #[test]
    fn refused() {
        let mut i = Interface::RESET;
        assert_eq!(
            i.set(SysReg::new(3, 0, 12, 12, 4), 0x0d00, VTR),
            Some(false)
        );
        assert_eq!(i.set(SysReg::new(3, 0, 12, 12, 5), 6, VTR), Some(false));
        assert_eq!(i.set(SysReg::new(3, 0, 12, 11, 5), 0, VTR), None);
        assert_eq!(i.get(SysReg::new(3, 0, 12, 8, 1), VTR), None);
        assert_eq!(Interface::rows(VTR), 1);
        assert_eq!(Interface::rows(5 << 26), 2);
    }
}
