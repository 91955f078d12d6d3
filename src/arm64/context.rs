// SPDX-License-Identifier: GPL-2.0
//! The system registers that a guest has to itself and that nothing traps: loaded for a stay, saved at its end.
//!
//! At EL2 with E2H the names that end in _EL12 and _EL02 reach those of EL1 and EL0 (Arm ARM D19.3).
#![forbid(unsafe_code)]

use crate::arm64::esr::SysReg;

/// Calls the macro `$then` with the rows: name, encoding, what the assembler calls it at EL2, doc.
macro_rules! registers {
    ($then:ident) => {
        $then! {
            /// SCTLR_EL1.
            Sctlr = (3, 0, 1, 0, 0), "s3_5_c1_c0_0";
            /// CPACR_EL1.
            Cpacr = (3, 0, 1, 0, 2), "s3_5_c1_c0_2";
            /// TTBR0_EL1.
            Ttbr0 = (3, 0, 2, 0, 0), "s3_5_c2_c0_0";
            /// TTBR1_EL1.
            Ttbr1 = (3, 0, 2, 0, 1), "s3_5_c2_c0_1";
            /// TCR_EL1.
            Tcr = (3, 0, 2, 0, 2), "s3_5_c2_c0_2";
            /// AFSR0_EL1.
            Afsr0 = (3, 0, 5, 1, 0), "s3_5_c5_c1_0";
            /// AFSR1_EL1.
            Afsr1 = (3, 0, 5, 1, 1), "s3_5_c5_c1_1";
            /// ESR_EL1.
            Esr = (3, 0, 5, 2, 0), "s3_5_c5_c2_0";
            /// FAR_EL1.
            Far = (3, 0, 6, 0, 0), "s3_5_c6_c0_0";
            /// PAR_EL1.
            Par = (3, 0, 7, 4, 0), "s3_0_c7_c4_0";
            /// MAIR_EL1.
            Mair = (3, 0, 10, 2, 0), "s3_5_c10_c2_0";
            /// AMAIR_EL1.
            Amair = (3, 0, 10, 3, 0), "s3_5_c10_c3_0";
            /// VBAR_EL1.
            Vbar = (3, 0, 12, 0, 0), "s3_5_c12_c0_0";
            /// CONTEXTIDR_EL1.
            Contextidr = (3, 0, 13, 0, 1), "s3_5_c13_c0_1";
            /// TPIDR_EL1.
            Tpidr1 = (3, 0, 13, 0, 4), "s3_0_c13_c0_4";
            /// CNTKCTL_EL1.
            Cntkctl = (3, 0, 14, 1, 0), "s3_5_c14_c1_0";
            /// CSSELR_EL1.
            Csselr = (3, 2, 0, 0, 0), "s3_2_c0_c0_0";
            /// TPIDR_EL0.
            Tpidr0 = (3, 3, 13, 0, 2), "s3_3_c13_c0_2";
            /// TPIDRRO_EL0.
            Tpidrro0 = (3, 3, 13, 0, 3), "s3_3_c13_c0_3";
            /// ELR_EL1.
            Elr = (3, 0, 4, 0, 1), "s3_5_c4_c0_1";
            /// SPSR_EL1.
            Spsr = (3, 0, 4, 0, 0), "s3_5_c4_c0_0";
            /// SP_EL1.
            Sp1 = (3, 4, 4, 1, 0), "s3_4_c4_c1_0";
            /// CNTV_CVAL_EL0.
            CntvCval = (3, 3, 14, 3, 2), "s3_5_c14_c3_2";
            /// CNTV_CTL_EL0.
            CntvCtl = (3, 3, 14, 3, 1), "s3_5_c14_c3_1";
        }
    };
}
pub(crate) use registers;

macro_rules! declare {
    ($($(#[$doc:meta])* $name:ident = ($($part:literal),*), $asm:literal;)*) => {
        /// One of them, as an index.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reg {
            $($(#[$doc])* $name,)*
        }

        /// Their encodings at EL1, in order.
        pub const ENCODINGS: &[SysReg] = &[$(SysReg::new($($part),*)),*];
    };
}
registers!(declare);

/// How many there are.
pub const COUNT: usize = ENCODINGS.len();

/// The values of all.
#[derive(Clone)]
pub struct Context(pub [u64; COUNT]);

impl Context {
    /// After reset: the MMU, caches and timer are off (as in KVM, whose SCTLR_EL1 this is).
    pub const RESET: Self = {
        let mut values = [0; COUNT];
        values[Reg::Sctlr as usize] = 0x00c5_0078;
        Self(values)
    };

    /// One of them.
    #[inline]
    pub fn get(&self, reg: Reg) -> u64 {
        self.0[reg as usize]
    }

    /// Changes one of them.
    #[inline]
    pub fn set(&mut self, reg: Reg, value: u64) {
        self.0[reg as usize] = value;
    }

    /// The one that is encoded so.
    pub fn by_encoding(&mut self, encoding: SysReg) -> Option<&mut u64> {
        let index = ENCODINGS.iter().position(|e| *e == encoding)?;
        self.0.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_there_once() {
        for (i, e) in ENCODINGS.iter().enumerate() {
            assert_eq!(ENCODINGS.iter().position(|x| x == e), Some(i));
        }
        let mut c = Context::RESET;
        assert_eq!(
            c.by_encoding(SysReg::new(3, 0, 1, 0, 0)),
            Some(&mut 0x00c5_0078)
        );
        assert_eq!(c.by_encoding(SysReg::new(3, 0, 1, 0, 1)), None);
    }
}
