// SPDX-License-Identifier: GPL-2.0
//! The recorder's lines of 64 bytes, as user space reads them: `struct rvmm_record` and `struct rvmm_record_header` of
//! uapi/rvmm.h. A line is eight words; here is what goes into which.
#![forbid(unsafe_code)]

use super::stats::ExitClass;
use core::sync::atomic::AtomicU64;

/// Words of a line.
pub const WORDS: usize = 8;
/// A line.
pub type Line = [AtomicU64; WORDS];
/// Lines of a page of 4 KiB. The header is alone on its page.
pub const LINES_PER_PAGE: usize = 64;
/// Fewest records of a ring.
pub const LEAST: u32 = LINES_PER_PAGE as u32;
/// Most records of a ring: 16 MiB.
pub const MOST: u32 = 1 << 18;

/// Flag of `RVMM_RECORD`: a full ring loses what comes, not what is there.
pub const STOP: u32 = 1 << 0;

/// Words of the header.
#[allow(missing_docs)]
pub mod header {
    /// "rvmmrec1".
    pub const MAGIC: u64 = u64::from_le_bytes(*b"rvmmrec1");
    pub const WORD_MAGIC: usize = 0;
    /// Bytes of a record, and above them the number of records in the ring.
    pub const WORD_SHAPE: usize = 1;
    pub const WORD_HEAD: usize = 2;
    pub const WORD_LOST: usize = 3;
    /// The vCPU's id, and above it the flags of `RVMM_RECORD`.
    pub const WORD_VCPU: usize = 4;
    pub const WORD_TSC_KHZ: usize = 5;
}

/// `rvmm_record.kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An exit, with what was decided, and the entry after it if that came in the same stay.
    Exit = 1,
    /// The first entry of a stay.
    Entry = 2,
}

/// `rvmm_record.decision`: what was decided about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Decision {
    /// The guest is entered again.
    Again = 1,
    /// The guest is entered again, and nothing has come up that could be delivered to it.
    Resume = 2,
    /// The guest is left for the host, or sleeps; KVM_RUN goes on.
    Leave = 3,
    /// KVM_RUN returns to user space.
    User = 4,
    /// KVM_RUN fails.
    Fail = 5,
}

/// `rvmm_record.path`: where an exit was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Path {
    /// In the stay, and the entry before was repeated as it was.
    Short = 1,
    /// In the stay: interrupts off, the guest's FPU loaded.
    Stay = 2,
    /// Outside the stay, where it may sleep.
    Outside = 3,
}

/// Bits of `rvmm_record.flags`.
#[allow(missing_docs)]
pub mod flags {
    /// The guest's translations were flushed by the entry.
    pub const FLUSH: u16 = 1 << 0;
    /// The entry asked for an exit as soon as an interrupt can be delivered.
    pub const IRQ_WINDOW: u16 = 1 << 1;
    /// The same for NMIs.
    pub const NMI_WINDOW: u16 = 1 << 2;
    /// The exit interrupted the delivery of an event.
    pub const INTERRUPTED: u16 = 1 << 3;
}

/// What an exit was about, in the numbers of its class: see uapi/rvmm.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// `rvmm_record.address`.
    pub address: u64,
    /// `rvmm_record.value`.
    pub value: u64,
    /// `rvmm_record.detail`.
    pub detail: u32,
}

/// What an entry was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// `rvmm_record.flags`.
    pub flags: u16,
    /// `rvmm_record.inject`, as an interruption-information field (SDM 3C 25.8.3).
    pub inject: u32,
    /// `rvmm_record.error_code`.
    pub error_code: u32,
}

/// How an exit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Class for statistics.
    pub class: ExitClass,
    /// What was decided.
    pub decision: Decision,
    /// Where.
    pub path: Path,
    /// KVM_EXIT_* of [`Decision::User`], the error number of [`Decision::Fail`].
    pub reason: u32,
}

/// Two numbers in a word.
#[inline(always)]
pub const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// A number of cycles in 32 bits.
#[inline(always)]
pub const fn narrow(cycles: u64) -> u32 {
    if cycles > u32::MAX as u64 {
        u32::MAX
    } else {
        cycles as u32
    }
}

/// The word with kind, CPU and flags.
#[inline(always)]
pub const fn about(kind: Kind, cpu: u32, flags: u16) -> u64 {
    kind as u64 | (cpu as u64 & 0xffff) << 32 | (flags as u64) << 48
}

/// What an exit's word has besides.
#[inline(always)]
pub const fn outcome(class: ExitClass, decision: Decision, path: Path) -> u64 {
    (class as u64) << 8 | (decision as u64) << 16 | (path as u64) << 24
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(pair(1, 2), 0x2_0000_0001);
        assert_eq!((narrow(7), narrow(1 << 40)), (7, u32::MAX));
        let known = about(Kind::Exit, 0x1_0003, flags::FLUSH);
        let word = known | outcome(ExitClass::Hlt, Decision::User, Path::Outside);
        let class = ExitClass::Hlt as u64;
        assert_eq!(word, 0x0001_0003_0304_0001 | class << 8);
        assert_eq!(about(Kind::Entry, 2, 0), 0x2_0000_0002);
        assert_eq!(MOST % LEAST, 0);
    }
}
