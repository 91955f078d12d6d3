// SPDX-License-Identifier: GPL-2.0
//! ModRM, SIB and displacement in their 16-, 32- and 64-bit forms (SDM 2A 2.1.3 to 2.1.5, 2.2.1).
#![forbid(unsafe_code)]

use super::insn::{DecodeError, Mem};
use super::prefix::{Cursor, Prefixes};
use crate::x86::cpu::regs::{Gpr, Seg};

/// A parsed ModRM byte with the memory form that follows it.
#[derive(Clone, Copy)]
pub(super) struct ModRm {
    /// The ModRM byte itself.
    pub(super) byte: u8,
    /// Memory form when `mod` is not 3.
    pub(super) mem: Option<Mem>,
}

impl ModRm {
    /// Reads ModRM, SIB and displacement. `addr_size` is 2, 4 or 8; `long` selects RIP-relative addressing.
    pub(super) fn read(
        cur: &mut Cursor<'_>,
        p: &Prefixes,
        addr_size: u8,
        long: bool,
    ) -> Result<Self, DecodeError> {
        let byte = cur.u8()?;
        let mem = match (byte >> 6, addr_size) {
            (3, _) => None,
            (_, 2) => Some(mem16(cur, byte)?),
            _ => Some(mem32(cur, byte, p, long)?),
        };
        let mem = mem.map(|mut m| {
            if let Some(seg) = p.seg {
                m.seg = seg;
            }
            m
        });
        Ok(Self { byte, mem })
    }

    /// The reg field without REX.R: opcode extension or segment register.
    pub(super) fn ext(&self) -> u8 {
        (self.byte >> 3) & 7
    }

    /// The r/m field without REX.B.
    pub(super) fn rm(&self) -> u8 {
        self.byte & 7
    }
}

/// SDM 2A table 2-1.
fn mem16(cur: &mut Cursor<'_>, byte: u8) -> Result<Mem, DecodeError> {
    let (mode, rm) = (byte >> 6, byte & 7);
    let (mut base, index) = match rm {
        0 => (Some(Gpr::Rbx), Some(Gpr::Rsi)),
        1 => (Some(Gpr::Rbx), Some(Gpr::Rdi)),
        2 => (Some(Gpr::Rbp), Some(Gpr::Rsi)),
        3 => (Some(Gpr::Rbp), Some(Gpr::Rdi)),
        4 => (Some(Gpr::Rsi), None),
        5 => (Some(Gpr::Rdi), None),
        6 => (Some(Gpr::Rbp), None),
        _ => (Some(Gpr::Rbx), None),
    };
    if mode == 0 && rm == 6 {
        base = None;
    }
    let disp = match mode {
        1 => cur.signed(1)?,
        2 => cur.signed(2)?,
        _ if base.is_none() => cur.signed(2)?,
        _ => 0,
    };
    Ok(Mem {
        disp,
        base,
        index,
        shift: 0,
        rip_relative: false,
        seg: default_segment(base),
    })
}

/// SDM 2A tables 2-2, 2-3 and 2-7.
fn mem32(cur: &mut Cursor<'_>, byte: u8, p: &Prefixes, long: bool) -> Result<Mem, DecodeError> {
    let (mode, rm) = (byte >> 6, byte & 7);
    let (mut index, mut shift) = (None, 0);
    let mut rip_relative = false;
    let base = if rm == 4 {
        let sib = cur.u8()?;
        let i = (sib >> 3) & 7 | p.rex_x();
        if i != 4 {
            index = Some(Gpr::from_bits(i));
            shift = sib >> 6;
        }
        // Base 5 (and 13) with mod 0 means disp32 without base.
        if sib & 7 == 5 && mode == 0 {
            None
        } else {
            Some(Gpr::from_bits(sib & 7 | p.rex_b()))
        }
    } else if rm == 5 && mode == 0 {
        rip_relative = long;
        None
    } else {
        Some(Gpr::from_bits(rm | p.rex_b()))
    };
    let disp = match mode {
        1 => cur.signed(1)?,
        2 => cur.signed(4)?,
        _ if base.is_none() => cur.signed(4)?,
        _ => 0,
    };
    Ok(Mem {
        disp,
        base,
        index,
        shift,
        rip_relative,
        seg: default_segment(base),
    })
}

/// SS when the base is rSP or rBP, else DS (SDM 1 table 3-5).
fn default_segment(base: Option<Gpr>) -> Seg {
    match base {
        Some(Gpr::Rsp | Gpr::Rbp) => Seg::Ss,
        _ => Seg::Ds,
    }
}
