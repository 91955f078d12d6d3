// SPDX-License-Identifier: GPL-2.0
//! Arithmetic of clocks: rates, TSC scaling (SDM 3C 26.3, APM 2 15.30.5), and which vCPUs' TSCs run together (api.rst
//! 4.35 KVM_GET_CLOCK; kernel document virt/kvm/devices/vcpu.rst 4).
#![forbid(unsafe_code)]

/// Conversion of a count from one rate to another, as guests do it with a pvclock page: shift, then multiply by `mul`
/// / 2^32 (kernel document virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Fraction, times 2^32; from 2^31 on.
    pub mul: u32,
    /// To the left if positive.
    pub shift: i8,
}

impl Rate {
    /// Ticks of `to_hz` per tick of `from_hz`. Both are below 2^62; zero counts as one.
    pub fn new(to_hz: u64, from_hz: u64) -> Self {
        const LIMIT: u64 = 1 << 62;
        let mut to = to_hz.clamp(1, LIMIT);
        let mut from = from_hz.clamp(1, LIMIT);
        let mut shift = 0i8;
        // Into from / 2 <= to < from, where the fraction has all its bits. At most 62 steps either way.
        while to >= from {
            if from < LIMIT {
                from <<= 1;
            } else {
                to >>= 1;
            }
            shift = shift.saturating_add(1);
        }
        while to << 1 < from {
            to <<= 1;
            shift = shift.saturating_sub(1);
        }
        while from >> 32 != 0 {
            from >>= 1;
            to >>= 1;
        }
        let mul = (to << 32) / from.max(1);
        Self {
            mul: u32::try_from(mul).unwrap_or(u32::MAX),
            shift,
        }
    }

    /// `count` at the other rate (mod 2^64).
    pub const fn apply(self, count: u64) -> u64 {
        let shifted = if self.shift < 0 {
            count.wrapping_shr(self.shift.unsigned_abs() as u32)
        } else {
            count.wrapping_shl(self.shift as u32)
        };
        (shifted as u128 * self.mul as u128 >> 32) as u64
    }
}

/// Nanoseconds in a second.
const NS: u64 = 1_000_000_000;

/// From nanoseconds to ticks of a TSC of `khz`.
pub fn ns_to_tsc(khz: u32) -> Rate {
    Rate::new(u64::from(khz) * 1000, NS)
}

/// From ticks of a TSC of `khz` to nanoseconds.
pub fn tsc_to_ns(khz: u32) -> Rate {
    Rate::new(NS, u64::from(khz) * 1000)
}

/// `tsc` times a fixed-point ratio with `fraction` bits behind the point (mod 2^64).
#[inline]
pub const fn scale(tsc: u64, ratio: u64, fraction: u32) -> u64 {
    (tsc as u128 * ratio as u128).wrapping_shr(fraction) as u64
}

/// How a vCPU's TSC follows the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Fixed point.
    ratio: u64,
    /// Bits behind the point; 0 for [`Scale::ONE`] alone.
    fraction: u32,
}

impl Scale {
    /// As the host's.
    pub const ONE: Self = Self {
        ratio: 1,
        fraction: 0,
    };

    /// For a TSC of `khz` on a host of `host_khz`, where the processor has `fraction` bits behind the point and ratios
    /// up to `max`. `None`: it cannot.
    pub fn new(khz: u32, host_khz: u32, fraction: u32, max: u64) -> Option<Self> {
        let ratio = ratio(khz, host_khz, fraction).filter(|r| *r < max)?;
        // KVM_SET_TSC_KHZ takes no more.
        (khz < 0x7fff_ffff).then_some(Self { ratio, fraction })
    }

    /// The ratio for a processor with `fraction` bits behind the point.
    pub const fn ratio(self, fraction: u32) -> u64 {
        if self.fraction == 0 {
            1u64.wrapping_shl(fraction)
        } else {
            self.ratio
        }
    }

    /// The vCPU's ticks, but for its offset, when the host's TSC is `host`.
    #[inline]
    pub const fn apply(self, host: u64) -> u64 {
        if self.fraction == 0 {
            host
        } else {
            scale(host, self.ratio, self.fraction)
        }
    }
}

/// The ratio that makes a TSC of `host_khz` count at `khz`, with 32 to 48 bits behind the point. `None` when it is
/// zero or does not fit.
pub fn ratio(khz: u32, host_khz: u32, fraction: u32) -> Option<u64> {
    let host = u64::from(host_khz);
    let more = fraction.checked_sub(32).filter(|m| *m <= 16)?;
    let high = u64::from(khz) << 32;
    let quotient = high.checked_div(host)?;
    let rest = high.checked_rem(host)?;
    if quotient >> (64 - more.max(1)) != 0 && more != 0 {
        return None;
    }
    let ratio = (quotient << more) + (rest << more) / host.max(1);
    (ratio != 0).then_some(ratio)
}

/// Whether `khz` is so near to the host's frequency that nothing needs scaling (250 ppm, as KVM).
pub const fn within_tolerance(khz: u32, host_khz: u32) -> bool {
    const PPM: u64 = 250;
    let host = host_khz as u64;
    let low = host * (1_000_000 - PPM) / 1_000_000;
    let high = host * (1_000_000 + PPM) / 1_000_000;
    low <= khz as u64 && khz as u64 <= high
}

/// A write of IA32_TSC in the name of user space, or the creation of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct TscWrite {
    /// The value; 0 asks for the others' time.
    pub value: u64,
    /// Nanoseconds now.
    pub now_ns: u64,
    /// Host's TSC now, scaled to this vCPU's rate.
    pub host: u64,
    /// Ticks that the host's TSC has lost by restarts so far, scaled likewise.
    pub lost: u64,
    /// The vCPU's TSC frequency.
    pub khz: u32,
    /// The host's TSC can be trusted.
    pub stable: bool,
    /// By user space.
    pub by_user: bool,
}

/// Which vCPUs' TSCs are one. vCPUs belong to *generations*: those of one generation have the same offset. By default
/// there is no vCPU yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscGroup {
    last_ns: u64,
    last_value: u64,
    last_khz: u32,
    last_offset: u64,
    generation: u64,
    offset: u64,
    /// Members of the generation besides its first.
    matched: u32,
    user_set: bool,
    /// [`TscWrite::lost`] as of which the offsets are right.
    lost: u64,
}

impl TscGroup {
    /// A host's TSC that has started anew takes other offsets for the same guest's TSC.
    fn follow_host(&mut self, w: &TscWrite) {
        let by = w.lost.wrapping_sub(self.lost);
        self.lost = w.lost;
        self.offset = self.offset.wrapping_add(by);
        self.last_offset = self.last_offset.wrapping_add(by);
    }

    /// Offset for a vCPU that belongs to generation `member` (0: none), which is updated.
    ///
    /// User space restores vCPUs one after the other, each with the value that it read a while ago: one within a
    /// second of where the TSC that was written last stands now is meant to be the same TSC.
    pub fn write(&mut self, member: &mut u64, w: &TscWrite) -> u64 {
        self.follow_host(w);
        let elapsed = ns_to_tsc(w.khz).apply(w.now_ns.wrapping_sub(self.last_ns));
        let together = w.khz == self.last_khz
            && w.khz != 0
            && (w.value == 0
                || self.user_set && {
                    let expected = self.last_value.wrapping_add(elapsed);
                    let second = u64::from(w.khz) * 1000;
                    w.value < expected.wrapping_add(second)
                        && w.value.wrapping_add(second) > expected
                });
        let (value, offset) = match (together, w.stable) {
            (true, true) => (w.value, self.offset),
            (true, false) => {
                let v = w.value.wrapping_add(elapsed);
                (v, v.wrapping_sub(w.host))
            }
            (false, _) => (w.value, w.value.wrapping_sub(w.host)),
        };
        self.join(member, offset, value, together, w);
        offset
    }

    /// The vCPU's offset was set as such (KVM_VCPU_TSC_OFFSET).
    pub fn set_offset(&mut self, member: &mut u64, offset: u64, w: &TscWrite) {
        self.follow_host(w);
        let together = w.khz != 0 && self.last_khz == w.khz && self.last_offset == offset;
        let value = w.host.wrapping_add(offset);
        self.join(member, offset, value, together, w);
    }

    fn join(&mut self, member: &mut u64, offset: u64, value: u64, together: bool, w: &TscWrite) {
        self.user_set |= w.by_user;
        self.last_ns = w.now_ns;
        self.last_value = value;
        self.last_khz = w.khz;
        self.last_offset = offset;
        if !together {
            self.generation = self.generation.wrapping_add(1);
            self.offset = offset;
            self.matched = 0;
        } else if *member != self.generation {
            self.matched = self.matched.saturating_add(1);
        }
        *member = self.generation;
    }

    /// The TSCs go on as if it were `ns` nanoseconds earlier, which are `ticks` of the host's TSC, scaled; `lost` as in
    /// [`TscWrite::lost`].
    pub fn delay(&mut self, ns: u64, ticks: u64, lost: u64) {
        self.last_ns = self.last_ns.wrapping_add(ns);
        self.offset = self.offset.wrapping_sub(ticks);
        self.last_offset = self.last_offset.wrapping_sub(ticks);
        self.lost = lost;
    }

    /// Whether all of `vcpus` vCPUs run together.
    pub const fn all(&self, vcpus: u32) -> bool {
        self.matched.wrapping_add(1) == vcpus
    }
}
