// SPDX-License-Identifier: GPL-2.0
//! Hypercalls as the guest makes them: the input value, whom a call addresses, and what it comes to (TLFS 3, 9.4,
//! 10.4).
#![forbid(unsafe_code)]

use crate::nospec::{self, Nospec};
use crate::x86::hyperv::defs::{call, status};

/// A status other than success.
pub type Status = u16;

/// The hypercall input value (TLFS 3.7), and the two registers beside it: addresses of input and output, or the input
/// itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// The input value.
    pub control: u64,
    /// RDX, or EBX:ECX.
    pub first: u64,
    /// R8, or EDI:ESI.
    pub second: u64,
}

impl Input {
    /// Bits 31:27, 47:44 and 63:60, of which bit 31 is for nested hypervisors.
    const RESERVED: u64 = 0xf000_f000_f800_0000;

    /// The call code.
    pub const fn code(&self) -> u16 {
        self.control as u16
    }

    /// The input is in registers.
    pub const fn fast(&self) -> bool {
        self.control & 1 << 16 != 0
    }

    /// Quadwords of the variable header.
    pub const fn var(&self) -> u16 {
        (self.control >> 17) as u16 & 0x3ff
    }

    /// Number of repetitions.
    pub const fn reps(&self) -> u16 {
        (self.control >> 32) as u16 & 0xfff
    }

    /// The first of them.
    pub const fn rep_start(&self) -> u16 {
        (self.control >> 48) as u16 & 0xfff
    }

    /// A repetitive call.
    pub const fn rep(&self) -> bool {
        self.reps() != 0 || self.rep_start() != 0
    }

    /// Reserved bits are set.
    pub const fn malformed(&self) -> bool {
        self.control & Self::RESERVED != 0
    }

    /// The call's input may be in XMM registers as well.
    pub const fn takes_xmm(&self) -> bool {
        matches!(
            self.code(),
            call::FLUSH_LIST
                | call::FLUSH_SPACE
                | call::FLUSH_LIST_EX
                | call::FLUSH_SPACE_EX
                | call::SEND_IPI_EX
        )
    }

    /// Success, with all repetitions done.
    pub const fn done(&self) -> u64 {
        status::SUCCESS as u64 | (self.reps() as u64) << 32
    }
}

/// Quadwords of input in registers: two general ones and six of 128 bits (TLFS 3.8).
pub const FAST_WORDS: usize = 14;

/// Where a call's input is.
pub trait Block {
    /// Reads quadwords from number `first` on; false if they cannot be had.
    fn read(&self, first: usize, out: &mut [u64]) -> bool;
}

/// Input in registers.
pub struct Registers(pub [u64; FAST_WORDS]);

impl Block for Registers {
    fn read(&self, first: usize, out: &mut [u64]) -> bool {
        let Some(first) = nospec::below(first, FAST_WORDS) else {
            return false;
        };
        let Some(words) = self.0.get(first..).and_then(|w| w.get(..out.len())) else {
            return false;
        };
        out.copy_from_slice(words);
        true
    }
}

/// Banks of a set that can name a vCPU.
const BANKS: usize = 16;
/// Banks that a set may have.
const MAX_BANKS: u16 = 64;

/// A set of virtual processors (HV_VP_SET, TLFS 7.8.7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VpSet {
    all: bool,
    valid: u64,
    banks: [u64; BANKS],
}

impl VpSet {
    /// Every one.
    pub const ALL: Self = Self {
        all: true,
        valid: 0,
        banks: [0; BANKS],
    };

    /// Those below 64 whose bits are set.
    pub const fn below_64(mask: u64) -> Self {
        let mut banks = [0; BANKS];
        banks[0] = mask;
        Self {
            all: false,
            valid: 1,
            banks,
        }
    }

    /// Whether processor `vp` is in it.
    pub fn contains(&self, vp: u32) -> bool {
        if self.all {
            return true;
        }
        let bank = vp / 64;
        if bank >= 64 || self.valid >> bank & 1 == 0 {
            return false;
        }
        let below = self.valid & (1u64 << bank).wrapping_sub(1);
        let banks = self.banks.get_nospec(below.count_ones() as usize);
        banks.is_some_and(|b| b >> (vp % 64) & 1 != 0)
    }

    /// Reads the banks of a sparse set from quadword `first` on.
    fn sparse(input: &Input, block: &impl Block, first: usize, valid: u64) -> Result<Self, Status> {
        let count = input.var();
        let fits = !input.fast() || first.saturating_add(count.into()) <= FAST_WORDS;
        let mut banks = [0; BANKS];
        let part = banks.get_mut(..BANKS.min(count.into()));
        if count > MAX_BANKS || !fits || !part.is_some_and(|part| block.read(first, part)) {
            return Err(status::INVALID_INPUT);
        }
        Ok(Self {
            all: false,
            valid,
            banks,
        })
    }
}

/// HV_FLUSH_ALL_PROCESSORS.
const FLUSH_ALL: u64 = 1;
/// HV_GENERIC_SET_SPARSE_4K and HV_GENERIC_SET_ALL.
const SPARSE: u64 = 0;
const ALL: u64 = 1;

/// Whose translations a call of the four flushes. `None`: nobody's.
///
/// # Errors
///
/// The status of a call whose input is wrong.
pub fn flush(input: &Input, block: &impl Block) -> Result<Option<VpSet>, Status> {
    let bad = Err(status::INVALID_INPUT);
    let code = input.code();
    let list = matches!(code, call::FLUSH_LIST | call::FLUSH_LIST_EX);
    let ex = matches!(code, call::FLUSH_SPACE_EX | call::FLUSH_LIST_EX);
    let counted = if list {
        input.reps() != 0 && input.rep_start() == 0
    } else {
        !input.rep()
    };
    if !counted || !ex && input.var() != 0 {
        return bad;
    }
    let (set, next) = if ex {
        let mut head = [0; 4];
        if !block.read(0, &mut head) {
            return bad;
        }
        let [_space, _flags, format, valid] = head;
        if u32::from(input.var()) != valid.count_ones() {
            return bad;
        }
        let set = if format != SPARSE {
            VpSet::ALL
        } else if input.var() == 0 {
            return Ok(None);
        } else {
            VpSet::sparse(input, block, 4, valid)?
        };
        (set, 4usize.saturating_add(input.var().into()))
    } else {
        let mut head = [0; 3];
        if !block.read(0, &mut head) {
            return bad;
        }
        let [_space, flags, mask] = head;
        // Windows Server 2012 calls with no processor and no flag, and wants all.
        let all = flags & FLUSH_ALL != 0 || mask == 0;
        let set = if all {
            VpSet::ALL
        } else {
            VpSet::below_64(mask)
        };
        (set, 3)
    };
    // What is listed is not looked at: all goes. But it has to be there.
    let mut entry = [0];
    let last = next.saturating_add(usize::from(input.reps()));
    let there = match last.checked_sub(1) {
        Some(last) if list && input.reps() <= MOST_READ => block.read(last, &mut entry),
        _ => true,
    };
    if there {
        Ok(Some(set))
    } else {
        bad
    }
}

/// Longer lists than this KVM does not read either.
const MOST_READ: u16 = 15;

/// An interrupt that a call sends: to whom, and its vector. `None`: to nobody.
///
/// # Errors
///
/// The status of a call whose input is wrong.
pub fn interrupt(input: &Input, block: &impl Block) -> Result<Option<(VpSet, u8)>, Status> {
    let bad = Err(status::INVALID_INPUT);
    if input.rep() {
        return bad;
    }
    let (set, vector) = if input.code() == call::SEND_IPI {
        let mut head = [0; 2];
        if input.var() != 0 || !block.read(0, &mut head) {
            return bad;
        }
        let [vector, mask] = head;
        if input.fast() && vector >> 32 != 0 {
            return bad;
        }
        (VpSet::below_64(mask), vector)
    } else {
        let mut head = [0; 3];
        if !block.read(0, &mut head) {
            return bad;
        }
        let [vector, format, valid] = head;
        if u32::from(input.var()) != valid.count_ones() {
            return bad;
        }
        let set = if format == ALL {
            VpSet::ALL
        } else if input.var() == 0 {
            return Ok(None);
        } else {
            VpSet::sparse(input, block, 3, valid)?
        };
        (set, vector)
    };
    match u8::try_from(vector as u32) {
        Ok(vector) if vector >= 16 => Ok(Some((set, vector))),
        _ => bad,
    }
}
