// SPDX-License-Identifier: GPL-2.0
//! Effective and linear addresses, segment checks (SDM 1 3.7.5, SDM 3A 3.4 and 5.3-5.5, APM 2 4.12).
#![forbid(unsafe_code)]

use super::env::Stop;
use super::insn::Insn;
use super::operand::{mask, sign_extend};
use crate::x86::cpu::canonical::is_canonical;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::{Mode, Regs, Seg, Segment, Sregs};

/// Kind of memory access, for segment checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write, or read-modify-write.
    Write,
}

/// Offset of the memory operand inside its segment, wrapped to the address size.
pub fn effective_address(insn: &Insn, regs: &Regs) -> u64 {
    let m = &insn.mem;
    let mut ea = m.disp;
    if m.rip_relative {
        ea = ea
            .wrapping_add(regs.rip)
            .wrapping_add(u64::from(insn.len()));
    }
    if let Some(base) = m.base {
        ea = ea.wrapping_add(regs.get(base));
    }
    if let Some(index) = m.index {
        ea = ea.wrapping_add(regs.get(index) << (m.shift & 3));
    }
    ea & mask(insn.addr_size)
}

/// Effective address of a bit-string operand: displaced by the operand-size units that the signed bit offset `bit` (of
/// `insn.width` bytes) selects (SDM 2A BT, SDM 1 3.1.1.9).
pub(super) fn bit_string_address(insn: &Insn, regs: &Regs, bit: u64) -> u64 {
    let width = insn.width;
    let bits = sign_extend(bit, width) as i64;
    let units = bits >> (u32::from(width).trailing_zeros() & 7).wrapping_add(3);
    effective_address(insn, regs).wrapping_add((units as u64).wrapping_mul(u64::from(width)))
        & mask(insn.addr_size)
}

/// Linear address of a `len`-byte access (`len` at least 1) at offset `ea` of `seg`.
///
/// Checks canonical form in 64-bit mode and type, presence and limit of the segment elsewhere. Errors: #SS(0) for SS,
/// else #GP(0), without error code in real mode.
pub fn linear_address(
    seg: Seg,
    ea: u64,
    len: u32,
    access: Access,
    mode: Mode,
    sregs: &Sregs,
) -> Result<u64, Stop> {
    if mode == Mode::Long {
        let last = u64::from(len.max(1)) - 1;
        // Only FS and GS have a base here (SDM 3A 3.4.4).
        let base = match seg {
            Seg::Fs | Seg::Gs => sregs.seg(seg).base,
            _ => 0,
        };
        let la = base.wrapping_add(ea);
        let width = sregs.linear_width();
        if is_canonical(la, width) && is_canonical(la.wrapping_add(last), width) {
            return Ok(la);
        }
        return Err(fault(seg, mode));
    }
    linear_in_segment(seg, sregs.seg(seg), ea, len, access, mode)
}

/// [`linear_address`] outside 64-bit mode, where segment register `seg` holds `s`.
pub fn linear_in_segment(
    seg: Seg,
    s: &Segment,
    ea: u64,
    len: u32,
    access: Access,
    mode: Mode,
) -> Result<u64, Stop> {
    let protected = !matches!(mode, Mode::Real | Mode::Vm86);
    if protected && !accessible(s, access) {
        return Err(fault(seg, mode));
    }
    let end = ea.wrapping_add(u64::from(len.max(1)) - 1);
    let limit = u64::from(s.limit);
    // Data segment that expands down: offsets above the limit are the valid ones (SDM 3A 5.3).
    let inside = if s.s && s.typ & 0b1100 == 0b0100 {
        ea > limit && end <= if s.db { 0xffff_ffff } else { 0xffff }
    } else {
        end <= limit
    };
    if inside && end >= ea {
        Ok(s.base.wrapping_add(ea) & 0xffff_ffff)
    } else {
        Err(fault(seg, mode))
    }
}

/// Whether a usable code or data segment permits the access (SDM 3A 3.4.5.1).
fn accessible(s: &Segment, access: Access) -> bool {
    let code = s.typ & 8 != 0;
    let rw = s.typ & 2 != 0;
    !s.unusable
        && s.present
        && s.s
        && match access {
            Access::Read => !code || rw,
            Access::Write => !code && rw,
        }
}

fn fault(seg: Seg, mode: Mode) -> Stop {
    Stop::Exception {
        vector: if seg == Seg::Ss {
            vector::SS
        } else {
            vector::GP
        },
        error_code: if mode == Mode::Real { None } else { Some(0) },
        cr2: None,
    }
}
