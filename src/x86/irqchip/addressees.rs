// SPDX-License-Identifier: GPL-2.0
//! Which vCPUs of a large VM a message may address, without asking all of them (SDM 3A 11.6.2, 11.12.10).
//!
//! x2APIC ids, and the logical ids that follow from them, are fixed: who has one is known without a map. What a guest
//! chooses, logical ids in xAPIC mode and xAPIC ids other than the initial ones, is noted in [`Noted`] whenever a vCPU
//! publishes its address. Notes of these are never taken back, so whoever reads them while they change misses nobody
//! who is addressed before and after. What is found this way is too much at times, never too little;
//! [`Message::matches`] has the last word.
#![forbid(unsafe_code)]

use crate::nospec::Nospec;
use crate::x86::irqchip::msg::{ApicAddr, DestMode, Message, Shorthand, Vector};
use crate::x86::irqchip::msg::{BROADCAST_X2APIC, BROADCAST_XAPIC};
use core::sync::atomic::{AtomicU64, Ordering};

/// vCPUs have indices below this.
pub const INDICES: usize = 1024;
/// APIC ids are below this.
pub const IDS: u32 = 4096;

const WORDS: usize = INDICES / 64;

/// Some of the vCPUs, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressees([u64; WORDS]);

impl Addressees {
    /// Nobody.
    pub const NONE: Self = Self([0; WORDS]);

    /// Adds the vCPU with this index.
    pub fn insert(&mut self, index: u32) {
        if let Some(word) = self.0.get_nospec_mut((index / 64) as usize) {
            *word |= 1 << (index % 64);
        }
    }

    fn insert_all(&mut self, of: &Shared) {
        for (to, from) in self.0.iter_mut().zip(&of.0) {
            *to |= from.load(Ordering::Acquire);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    /// The one that gets an interrupt of which one of them is to have `vector` (SDM 3A 11.6.2.4). Priorities are not
    /// asked for, as KVM does not: each vector keeps to one vCPU, whatever that is busy with, and different vectors go
    /// to different ones.
    pub fn chosen(&self, vector: Vector) -> Option<u32> {
        let mut turn = u32::from(vector.0).checked_rem(self.count())?;
        for (first, word) in (0u32..).step_by(64).zip(&self.0) {
            let mut rest = *word;
            if let Some(left) = turn.checked_sub(rest.count_ones()) {
                turn = left;
                continue;
            }
            for _ in 0..turn {
                rest &= rest.wrapping_sub(1);
            }
            return Some(first | rest.trailing_zeros());
        }
        None
    }

    /// Their indices, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).step_by(64).zip(&self.0).flat_map(|(first, word)| {
            let mut rest = *word;
            core::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest.wrapping_sub(1);
                Some(first | bit)
            })
        })
    }
}

/// A set that several threads change.
#[derive(Debug)]
struct Shared([AtomicU64; WORDS]);

impl Shared {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    fn set(&self, index: u32, member: bool) {
        let Some(word) = self.0.get_nospec((index / 64) as usize) else {
            return;
        };
        let bit = 1 << (index % 64);
        // Most of the time nothing is new, and the line may stay with its readers.
        if (word.load(Ordering::Relaxed) & bit != 0) == member {
            return;
        }
        if member {
            word.fetch_or(bit, Ordering::SeqCst);
        } else {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }
}

/// What is known of the addresses that guests choose.
#[derive(Debug)]
pub struct Noted {
    /// vCPUs in xAPIC mode.
    xapic: Shared,
    /// For each bit of an xAPIC's logical id the vCPUs that have had it set.
    logical: [Shared; 8],
    /// vCPUs that have had an xAPIC id other than the initial one.
    moved: Shared,
}

impl Default for Noted {
    fn default() -> Self {
        Self::new()
    }
}

impl Noted {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            xapic: Shared::new(),
            logical: [const { Shared::new() }; 8],
            moved: Shared::new(),
        }
    }

    /// The vCPU with this index has published `addr`.
    pub fn note(&self, index: u32, addr: &ApicAddr) {
        self.add(index, addr);
        if addr.x2apic {
            self.xapic.set(index, false);
        }
    }

    /// The vCPU with this index had published `addr`, and may have published another one since.
    pub fn add(&self, index: u32, addr: &ApicAddr) {
        if addr.x2apic {
            return;
        }
        for (bit, set) in self.logical.iter().enumerate() {
            if addr.ldr.wrapping_shr(bit as u32) & 1 != 0 {
                set.set(index, true);
            }
        }
        if addr.xapic_id != addr.id as u8 {
            self.moved.set(index, true);
        }
        self.xapic.set(index, true);
    }

    /// Those among which all are that `message` addresses. `None`: all are, or have to be asked. `index_of` gives the
    /// index of the vCPU with an id.
    pub fn find(
        &self,
        message: &Message,
        index_of: impl Fn(u32) -> Option<u32>,
    ) -> Option<Addressees> {
        let dest = message.dest;
        if message.shorthand != Shorthand::None
            || dest == BROADCAST_X2APIC
            || dest == BROADCAST_XAPIC && message.dest_is_8bit
        {
            return None;
        }
        let mut found = Addressees::NONE;
        let mut insert = |id| {
            if let Some(index) = index_of(id) {
                found.insert(index);
            }
        };
        match message.dest_mode {
            DestMode::Physical if dest > 0xff => insert(dest),
            DestMode::Physical => {
                // Initial xAPIC ids are the low 8 bits of ids.
                (dest..IDS).step_by(256).for_each(insert);
                found.insert_all(&self.moved);
            }
            DestMode::Logical => {
                let cluster = dest >> 16;
                for bit in (0..16).filter(|bit| dest.wrapping_shr(*bit) & 1 != 0) {
                    insert(cluster << 4 | bit);
                }
                if dest <= 0xff {
                    for (bit, set) in self.logical.iter().enumerate() {
                        if dest.wrapping_shr(bit as u32) & 1 != 0 {
                            found.insert_all(set);
                        }
                    }
                }
            }
        }
        if dest == BROADCAST_XAPIC {
            found.insert_all(&self.xapic);
        }
        Some(found)
    }
}
