// SPDX-License-Identifier: GPL-2.0
//! Asynchronous page faults: which pages a vCPU's guest waits for, and what it is told of them (MSR_KVM_ASYNC_PF_EN,
//! `struct kvm_vcpu_pv_apf_data`; kernel document virt/kvm/x86/msr.rst).
//!
//! This is bookkeeping without guest memory. The run loop drives it, outside stays, under the vCPU's mutex.
#![forbid(unsafe_code)]

use crate::nospec::Nospec;

/// Bits of MSR_KVM_ASYNC_PF_EN. Bits 63:6 are the address of the shared structure.
pub mod enable {
    /// Faults may be asynchronous.
    pub const ON: u64 = 1 << 0;
    /// Also those at CPL 0.
    pub const SEND_ALWAYS: u64 = 1 << 1;
    /// For a guest that has guests: they exit with a page fault.
    pub const AS_VMEXIT: u64 = 1 << 2;
    /// That a page is ready is told by an interrupt. There is no other way any more.
    pub const INTERRUPT: u64 = 1 << 3;
    /// Reserved.
    pub const RESERVED: u64 = 3 << 4;

    /// Whether MSR_KVM_ASYNC_PF_EN switches the feature on.
    pub const fn is_on(value: u64) -> bool {
        value & (ON | INTERRUPT) == ON | INTERRUPT
    }
}

/// The shared structure.
pub mod area {
    /// Why the page fault came, 32 bits: zero for one of the guest's own.
    pub const FLAGS: u64 = 0;
    /// The page that is ready, 32 bits: zero if the guest has seen to it.
    pub const TOKEN: u64 = 4;
    /// The flag: the page is not present, and CR2 holds its token.
    pub const NOT_PRESENT: u32 = 1;
}

/// The token that stands for every page.
pub const ALL: u32 = !0;

/// Pages that a vCPU may wait for.
pub const MOST: usize = 64;

/// What decides how a fault on a page that is not there goes on.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// MSR_KVM_ASYNC_PF_EN.
    pub enable: u64,
    /// An interrupt would be delivered now. Without one nothing can come of the time that is won.
    pub interruptible: bool,
    /// Another event is on its way.
    pub busy: bool,
    /// The guest pages.
    pub paging: bool,
    /// Current privilege level.
    pub cpl: u8,
    /// HLT does not exit: the vCPU is not to halt where the guest does not.
    pub never_halts: bool,
}

/// How it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The vCPU waits.
    Synchronous,
    /// The vCPU halts until the page is there or an event comes.
    Halt,
    /// The guest is told.
    Tell,
}

impl Fault {
    /// How the fault goes on.
    pub fn way(&self) -> Way {
        if !enable::is_on(self.enable) || self.busy || !self.interruptible {
            return Way::Synchronous;
        }
        if self.paging && (self.cpl != 0 || self.enable & enable::SEND_ALWAYS != 0) {
            Way::Tell
        } else if self.never_halts {
            Way::Synchronous
        } else {
            Way::Halt
        }
    }
}

/// A page that somebody brings.
#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// Its number in guest-physical memory.
    frame: u64,
    token: u32,
}

/// What is known of a page at a fault on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing: somebody may be sent for it.
    Nothing,
    /// It is on its way.
    Coming,
    /// It cannot be brought in this way, or not now.
    Unavailable,
}

/// The pages that a vCPU waits for. Each has a place, below [`MOST`]; sets of places are bitmaps.
#[derive(Clone, Debug)]
pub struct Asked {
    pages: [Page; MOST],
    /// Places in use.
    used: u64,
    /// Those of pages whose absence the guest has been told of.
    told: u64,
    /// Those of them that are there now, which the guest has not been told yet.
    ready: u64,
    /// The place of the page of which it was told last: the others come first.
    last: u32,
    /// Number of the last token.
    number: u32,
    /// The guest is to be told that all pages are there, of which somebody else may have said that they are not.
    all: bool,
    /// The page that somebody was sent for in vain.
    failed: Option<u64>,
}

/// Numbers of tokens are below; with all bits set, and a vCPU's number that is so, one would be [`ALL`].
const NUMBERS: u32 = (1 << 20) - 1;

impl Asked {
    /// None.
    pub const fn new() -> Self {
        Self {
            pages: [Page { frame: 0, token: 0 }; MOST],
            used: 0,
            told: 0,
            ready: 0,
            last: 0,
            number: 0,
            all: false,
            failed: None,
        }
    }

    /// What is known of the page `frame`, on which there is a fault. That it failed is known once.
    pub fn look(&mut self, frame: u64) -> Known {
        if self.failed == Some(frame) {
            self.failed = None;
            return Known::Unavailable;
        }
        let place = |(i, p): (usize, &Page)| (p.frame == frame).then_some(1 << i);
        let all: u64 = self.pages.iter().enumerate().filter_map(place).sum();
        if self.used & all == 0 {
            Known::Nothing
        } else if self.used & !self.ready & all != 0 {
            Known::Coming
        } else {
            // It was there, and is gone again before the guest has heard of it.
            Known::Unavailable
        }
    }

    /// Somebody is to be sent for the page `frame`, for the vCPU number `vcpu`, below 4096. Its place and its token, if
    /// there is room.
    pub fn add(&mut self, frame: u64, vcpu: u32) -> Option<(u32, u32)> {
        let place = self.used.trailing_ones();
        let page = self.pages.get_nospec_mut(place as usize)?;
        self.number = self.number % (NUMBERS - 1) + 1;
        let token = self.number << 12 | vcpu & 0xfff;
        *page = Page { frame, token };
        self.used |= 1 << place;
        Some((place, token))
    }

    /// Nobody could be sent.
    pub fn remove(&mut self, place: u32) {
        self.keep(!(1 << (place & 63)));
    }

    /// The guest has been told that the page at `place` is not present.
    pub fn tell(&mut self, place: u32) {
        self.told |= 1 << (place & 63) & self.used;
    }

    /// Who was sent for the pages at the places `done` is back, for those of them at `failed` without it. Pages of
    /// whose absence the guest does not know are forgotten.
    pub fn came(&mut self, done: u64, failed: u64) {
        let done = done & self.used;
        let lost = self.pages.iter().enumerate();
        let lost = lost.filter(|(i, _)| done & failed & 1 << i != 0);
        if let Some((_, page)) = lost.last() {
            self.failed = Some(page.frame);
        }
        self.ready |= done & self.told;
        self.keep(!done | self.told);
    }

    fn keep(&mut self, places: u64) {
        self.used &= places;
        self.told &= self.used;
        self.ready &= self.told;
    }

    /// Whether the guest is to be told of a page that is there.
    pub fn has_news(&self) -> bool {
        self.all || self.ready != 0
    }

    /// The token that the guest is to be told next, which is done with it.
    pub fn next_token(&mut self) -> Option<u32> {
        if core::mem::take(&mut self.all) {
            return Some(ALL);
        }
        if self.ready == 0 {
            return None;
        }
        // The first one behind the last.
        let start = self.last.wrapping_add(1) & 63;
        let distance = self.ready.rotate_right(start).trailing_zeros();
        self.last = start.wrapping_add(distance) & 63;
        let token = self.pages.get_nospec(self.last as usize)?.token;
        self.keep(!(1 << self.last));
        Some(token)
    }

    /// The guest has switched the feature on, or comes from elsewhere: whatever was not present there is said to be
    /// there, unless something is to be told anyway.
    pub fn tell_all(&mut self) {
        self.all |= self.ready == 0;
    }

    /// Nothing is asked for any more, and nothing to be told. Numbers of tokens go on.
    pub fn clear(&mut self) {
        self.keep(0);
        self.all = false;
        self.failed = None;
    }
}

impl Default for Asked {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EN: u64 = enable::ON | enable::INTERRUPT;

    fn fault() -> Fault {
        Fault {
            enable: EN,
            interruptible: true,
            busy: false,
            paging: true,
            cpl: 3,
            never_halts: false,
        }
    }

    #[test]
    fn ways() {
        let f = fault();
        assert_eq!(f.way(), Way::Tell);
        assert_eq!(Fault { cpl: 0, ..f }.way(), Way::Halt);
        let always = EN | enable::SEND_ALWAYS;
        let kernel = Fault {
            cpl: 0,
            enable: always,
            ..f
        };
        assert_eq!(kernel.way(), Way::Tell);
        let real = Fault {
            paging: false,
            ..kernel
        };
        assert_eq!(real.way(), Way::Halt);
        for enable in [0, enable::ON, enable::INTERRUPT, !EN] {
            assert_eq!(Fault { enable, ..f }.way(), Way::Synchronous);
        }
        assert_eq!(Fault { busy: true, ..f }.way(), Way::Synchronous);
        let closed = Fault {
            interruptible: false,
            ..f
        };
        assert_eq!(closed.way(), Way::Synchronous);
        let runs = Fault {
            never_halts: true,
            ..f
        };
        assert_eq!(runs.way(), Way::Tell);
        assert_eq!(Fault { cpl: 0, ..runs }.way(), Way::Synchronous);
    }

    #[test]
    fn one_page() {
        let mut a = Asked::new();
        assert_eq!(a.look(7), Known::Nothing);
        let (place, token) = a.add(7, 5).unwrap();
        assert_eq!((place, token), (0, 1 << 12 | 5));
        assert_eq!(a.look(7), Known::Coming);
        assert_eq!(a.look(0), Known::Nothing);
        a.tell(place);
        assert!(!a.has_news() && a.next_token().is_none());
        a.came(1, 0);
        assert_eq!(a.look(7), Known::Unavailable);
        assert!(a.has_news());
        assert_eq!(a.next_token(), Some(token));
        assert_eq!(a.next_token(), None);
        assert_eq!(a.look(7), Known::Nothing);
        // Another token.
        assert_eq!(a.add(7, 5), Some((0, 2 << 12 | 5)));
    }

    #[test]
    fn untold() {
        let mut a = Asked::new();
        a.add(7, 0).unwrap();
        a.came(1, 0);
        assert!(!a.has_news());
        assert_eq!(a.look(7), Known::Nothing);
        // Nobody was sent.
        let (place, _) = a.add(8, 0).unwrap();
        a.remove(place);
        assert_eq!(a.look(8), Known::Nothing);
        // One whose page is known no more says nothing.
        a.came(!0, !0);
        assert!(!a.has_news());
        assert_eq!(a.look(8), Known::Nothing);
    }

    #[test]
    fn failed() {
        let mut a = Asked::new();
        for (frame, told) in [(7, false), (8, true)] {
            let (place, token) = a.add(frame, 0).unwrap();
            if told {
                a.tell(place);
            }
            a.came(1 << place, 1 << place);
            // The guest is told all the same, to try again.
            assert_eq!(a.next_token(), told.then_some(token));
            assert_eq!(a.look(frame), Known::Unavailable);
            assert_eq!(a.look(frame), Known::Nothing);
        }
    }

    #[test]
    fn full() {
        let mut a = Asked::new();
        let mut tokens = std::vec::Vec::new();
        for frame in 0..MOST as u64 {
            let (place, token) = a.add(frame, 0xfff).unwrap();
            assert_eq!(u64::from(place), frame);
            a.tell(place);
            tokens.push(token);
        }
        assert_eq!(a.add(64, 0), None);
        a.came(1 << 40, 0);
        assert_eq!(a.next_token(), Some(tokens[40]));
        // The first ones, used again and again, do not hold up the others.
        a.came(1 << 2 | 1 << 63 | 1 << 41, 0);
        assert_eq!(a.next_token(), Some(tokens[41]));
        assert_eq!(a.next_token(), Some(tokens[63]));
        a.came(1 << 1, 0);
        assert_eq!(a.next_token(), Some(tokens[1]));
        assert_eq!(a.next_token(), Some(tokens[2]));
        a.came(!0, 0);
        let mut rest = 0;
        while let Some(token) = a.next_token() {
            assert!(tokens.contains(&token));
            rest += 1;
        }
        assert_eq!(rest, MOST - 5);
        assert!(a.add(64, 0).is_some());
    }

    #[test]
    fn everything() {
        let mut a = Asked::new();
        a.tell_all();
        assert!(a.has_news());
        assert_eq!((a.next_token(), a.next_token()), (Some(ALL), None));
        let (place, token) = a.add(1, 0).unwrap();
        a.tell(place);
        a.came(1, 0);
        // Who waits is woken anyway.
        a.tell_all();
        assert_eq!((a.next_token(), a.next_token()), (Some(token), None));
        a.tell_all();
        a.add(2, 0).unwrap();
        a.clear();
        assert!(!a.has_news());
        assert_eq!(a.look(2), Known::Nothing);
    }

    #[test]
    fn tokens() {
        let mut a = Asked::new();
        for _ in 0..2 * NUMBERS {
            let (place, token) = a.add(1, 0xfff).unwrap();
            assert!(token >> 12 != 0 && token != ALL && token & 0xfff == 0xfff);
            a.remove(place);
        }
    }
}
