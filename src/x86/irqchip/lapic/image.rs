// SPDX-License-Identifier: GPL-2.0
//! All of a local APIC, kept for later.
#![forbid(unsafe_code)]

use super::timer::Timer;
use super::{Lapic, Registers, Summary};

/// A local APIC as it was at some moment.
#[derive(Clone, Debug)]
pub struct Image {
    regs: [u32; 64],
    stored: [u32; 64],
    base: u64,
    id: u32,
    timer: Timer,
}

impl<R: Registers> Lapic<R> {
    /// What it is now, but for what the CPU model offers.
    pub fn image(&self) -> Image {
        let mut regs = [0; 64];
        for (n, to) in regs.iter_mut().enumerate() {
            *to = self.regs.get(n);
        }
        Image {
            regs,
            stored: self.stored,
            base: self.base,
            id: self.id,
            timer: self.timer.clone(),
        }
    }

    /// Becomes what it was `ns` nanoseconds ago. Everything may have changed for the owner ([`super::Action::ALL`]).
    pub fn put_back(&mut self, image: &Image, ns: u64) {
        for (n, value) in image.regs.iter().enumerate() {
            self.regs.set(n, *value);
        }
        self.stored = image.stored;
        self.base = image.base;
        self.id = image.id;
        self.timer = image.timer.clone();
        self.timer.delay(ns);
        self.irr_words = Summary::UNKNOWN;
        self.isr_words = Summary::UNKNOWN;
        self.moved = true;
    }
}
