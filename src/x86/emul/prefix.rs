// SPDX-License-Identifier: GPL-2.0
//! Instruction bytes and prefixes (SDM 2A 2.1.1, 2.2.1).
#![forbid(unsafe_code)]

use super::insn::{DecodeError, Rep, MAX_LEN};
use crate::x86::cpu::regs::{Mode, Seg};

/// Reads instruction bytes one after the other, never past [`MAX_LEN`].
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    /// At the first byte.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pos: 0 }
    }

    /// Number of bytes consumed.
    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    /// The bytes consumed.
    pub(super) fn consumed(&self) -> &'a [u8] {
        self.bytes.get(..self.pos).unwrap_or(self.bytes)
    }

    /// The byte that comes next.
    pub(super) fn peek(&self) -> Result<u8, DecodeError> {
        if self.pos >= MAX_LEN {
            return Err(DecodeError::TooLong);
        }
        self.bytes
            .get(self.pos)
            .copied()
            .ok_or(DecodeError::Truncated)
    }

    /// The next byte.
    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        let b = self.peek()?;
        self.pos = self.pos.wrapping_add(1);
        Ok(b)
    }

    /// Little-endian value of `n` bytes (at most 8), zero-extended.
    pub(super) fn unsigned(&mut self, n: u8) -> Result<u64, DecodeError> {
        let mut v = 0u64;
        for i in 0..u32::from(n.min(8)) {
            v |= u64::from(self.u8()?) << (8 * i);
        }
        Ok(v)
    }

    /// Little-endian value of `n` bytes (1, 2, 4 or 8), sign-extended to 64 bits.
    pub(super) fn signed(&mut self, n: u8) -> Result<u64, DecodeError> {
        let v = self.unsigned(n)?;
        Ok(match n {
            1 => v as u8 as i8 as u64,
            2 => v as u16 as i16 as u64,
            4 => v as u32 as i32 as u64,
            _ => v,
        })
    }
}

/// Prefixes in force when the opcode is reached.
#[derive(Clone, Copy, Default)]
pub(super) struct Prefixes {
    /// 66 seen.
    pub(super) opsize: bool,
    /// 67 seen.
    pub(super) addrsize: bool,
    /// F0 seen.
    pub(super) lock: bool,
    /// The last of F2, F3.
    pub(super) rep: Rep,
    /// Segment override.
    pub(super) seg: Option<Seg>,
    /// The REX byte, 0 if there is none right before the opcode.
    pub(super) rex: u8,
}

impl Prefixes {
    /// Reads all prefixes and the first opcode byte.
    pub(super) fn read(cur: &mut Cursor<'_>, mode: Mode) -> Result<(Self, u8), DecodeError> {
        let long = mode == Mode::Long;
        let mut p = Self::default();
        loop {
            let b = cur.u8()?;
            match b {
                0x66 => p.opsize = true,
                0x67 => p.addrsize = true,
                0xf0 => p.lock = true,
                0xf2 => p.rep = Rep::Repne,
                0xf3 => p.rep = Rep::Rep,
                // In 64-bit mode these four are accepted and have no effect (SDM 2A 2.1.1).
                0x26 | 0x2e | 0x36 | 0x3e if long => {}
                0x26 => p.seg = Some(Seg::Es),
                0x2e => p.seg = Some(Seg::Cs),
                0x36 => p.seg = Some(Seg::Ss),
                0x3e => p.seg = Some(Seg::Ds),
                0x64 => p.seg = Some(Seg::Fs),
                0x65 => p.seg = Some(Seg::Gs),
                0x40..=0x4f if long => {
                    p.rex = b;
                    continue;
                }
                _ => return Ok((p, b)),
            }
            // A REX prefix that is not the last prefix is ignored (SDM 2A 2.2.1).
            p.rex = 0;
        }
    }

    /// REX.W: 64-bit operand.
    pub(super) fn rex_w(&self) -> bool {
        self.rex & 8 != 0
    }

    /// REX.R as bit 3 of a register number.
    pub(super) fn rex_r(&self) -> u8 {
        (self.rex & 4) << 1
    }

    /// REX.X likewise, for the index.
    pub(super) fn rex_x(&self) -> u8 {
        (self.rex & 2) << 2
    }

    /// REX.B likewise, for base, r/m or opcode register.
    pub(super) fn rex_b(&self) -> u8 {
        (self.rex & 1) << 3
    }

    /// No 66, F2 or F3: the condition "NP" of the opcode tables (SDM 2A 3.1.1.1).
    pub(super) fn none(&self) -> bool {
        !self.opsize && self.rep == Rep::None
    }

    /// F3 is the last of F2, F3.
    pub(super) fn rep_is_f3(&self) -> bool {
        self.rep == Rep::Rep
    }

    /// Which of the mandatory prefixes is there: 0 none, 1 66, 2 F3, 3 F2. F2 and F3 win over 66.
    pub(super) fn mandatory(&self) -> usize {
        match (self.rep, self.opsize) {
            (Rep::Repne, _) => 3,
            (Rep::Rep, _) => 2,
            (Rep::None, true) => 1,
            (Rep::None, false) => 0,
        }
    }

    /// Takes over the prefix that VEX.pp stands for (SDM 2A 2.3.6.1).
    pub(super) fn set_pp(&mut self, pp: u8) {
        match pp & 3 {
            1 => self.opsize = true,
            2 => self.rep = Rep::Rep,
            3 => self.rep = Rep::Repne,
            _ => {}
        }
    }
}
