// SPDX-License-Identifier: GPL-2.0
//! KVM's paravirtual clock: a VM's time, and the pages by which guests read it (kernel document virt/kvm/x86/msr.rst,
//! api.rst 4.35).
//!
//! A VM's clock counts nanoseconds. When the host's clock is its TSC and all vCPUs' TSCs run together, it is a function
//! of the TSC from one common point, so that all vCPUs read the same time at the same moment. Else each page has a
//! point of its own, taken when it was written, and guests have to keep time from going back between vCPUs themselves.
#![forbid(unsafe_code)]

use crate::x86::cpu::tsc::Rate;

/// The pages of all vCPUs are one clock (PVCLOCK_TSC_STABLE_BIT).
pub const TSC_STABLE: u8 = 1 << 0;
/// The guest was stopped: its watchdogs should not complain (PVCLOCK_GUEST_STOPPED).
pub const GUEST_STOPPED: u8 = 1 << 1;

/// Size of `struct pvclock_vcpu_time_info`.
pub const TIME_INFO: usize = 32;
/// Offset of its `flags`.
pub const TIME_INFO_FLAGS: usize = 29;

/// The contents of a vCPU's page but for its version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeInfo {
    /// Guest's TSC at the point.
    pub tsc: u64,
    /// Nanoseconds at the point.
    pub system_time: u64,
    /// From ticks to nanoseconds.
    pub rate: Rate,
    /// [`TSC_STABLE`], [`GUEST_STOPPED`].
    pub flags: u8,
}

impl TimeInfo {
    /// `struct pvclock_vcpu_time_info` with this version.
    pub fn to_bytes(self, version: u32) -> [u8; TIME_INFO] {
        concatenated(&[
            &version.to_le_bytes(),
            &[0; 4],
            &self.tsc.to_le_bytes(),
            &self.system_time.to_le_bytes(),
            &self.rate.mul.to_le_bytes(),
            &self.rate.shift.to_le_bytes(),
            &[self.flags],
        ])
    }
}

/// The odd version that says "being written", after `old`.
pub const fn writing(old: u32) -> u32 {
    old.wrapping_add(1) | 1
}

/// A point where time and TSC are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// The host's nanoseconds.
    pub base_ns: u64,
    /// The host's TSC.
    pub tsc: u64,
}

/// A VM's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmClock {
    /// The VM's nanoseconds less the host's (mod 2^64).
    offset: u64,
    /// The common point, if there is one.
    common: Option<Point>,
}

impl VmClock {
    /// A clock that is zero at `now`.
    pub const fn new(now: Point) -> Self {
        Self {
            offset: now.base_ns.wrapping_neg(),
            common: None,
        }
    }

    /// Whether all pages are to have one point.
    pub const fn is_common(&self) -> bool {
        self.common.is_some()
    }

    /// The VM's time at `now`; `rate` is from the host's TSC to nanoseconds.
    pub fn at(&self, now: Point, rate: Rate) -> u64 {
        match self.common {
            Some(p) => p
                .base_ns
                .wrapping_add(rate.apply(now.tsc.wrapping_sub(p.tsc)))
                .wrapping_add(self.offset),
            None => now.base_ns.wrapping_add(self.offset),
        }
    }

    /// The point for a page that is written at `now`: (host's TSC, the VM's nanoseconds).
    pub fn point(&self, now: Point) -> (u64, u64) {
        let p = self.common.unwrap_or(now);
        (p.tsc, p.base_ns.wrapping_add(self.offset))
    }

    /// Goes over to a common point, or away from it, at `now`. The VM's time goes on without a step: TSC and host clock
    /// are not exactly of one rate.
    pub fn set_common(&mut self, common: bool, now: Point, rate: Rate) {
        if common != self.common.is_some() {
            let time = self.at(now, rate);
            self.common = common.then_some(now);
            self.offset = time.wrapping_sub(now.base_ns);
        }
    }

    /// The host has slept, and its TSC has lost `lost` ticks meanwhile: the common point is now. The time asleep
    /// counts, as on a host whose TSC goes on, and the VM's time does not go back.
    pub fn follow_host(&mut self, lost: u64, now: Point, rate: Rate) {
        if self.common.is_some() {
            let unslept = Point {
                tsc: now.tsc.wrapping_add(lost),
                ..now
            };
            let least = self.at(unslept, rate);
            let slept = now.base_ns.wrapping_add(self.offset);
            let ahead = slept.wrapping_sub(least) as i64 >= 0;
            self.set(if ahead { slept } else { least }, now);
        }
    }

    /// The time goes on as if it were `by` earlier.
    pub fn delay(&mut self, by: Point) {
        self.offset = self.offset.wrapping_sub(by.base_ns);
        if let Some(p) = &mut self.common {
            p.base_ns = p.base_ns.wrapping_add(by.base_ns);
            p.tsc = p.tsc.wrapping_add(by.tsc);
        }
    }

    /// Sets the VM's time at `now` (KVM_SET_CLOCK).
    pub fn set(&mut self, time: u64, now: Point) {
        if let Some(p) = &mut self.common {
            *p = now;
        }
        self.offset = time.wrapping_sub(now.base_ns);
    }
}

/// Fields one after the other, then zeros.
fn concatenated<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut b = [0; N];
    for (to, from) in b.iter_mut().zip(fields.iter().copied().flatten()) {
        *to = *from;
    }
    b
}

/// `struct kvm_clock_pairing`: a point in time in nanoseconds since 1970, and the guest's TSC then.
pub fn clock_pairing(real_ns: u64, tsc: u64) -> [u8; 64] {
    concatenated(&[
        &(real_ns / NS).to_le_bytes(),
        &(real_ns % NS).to_le_bytes(),
        &tsc.to_le_bytes(),
    ])
}

const NS: u64 = 1_000_000_000;

/// `sec` and `nsec` of `struct pvclock_wall_clock` for a point in time in nanoseconds since 1970. Seconds wrap in 2106.
pub fn wall_clock(epoch_ns: u64) -> (u32, u32) {
    ((epoch_ns / NS) as u32, (epoch_ns % NS) as u32)
}
