// SPDX-License-Identifier: GPL-2.0
//! A VM's time: the clock of KVM_GET_CLOCK and of guests' pvclock pages, and whether its vCPUs' TSCs run together.
//!
//! All of it is used in process context with interrupts on.

use crate::linux::boot_cpu;
use crate::linux::clock::{self, Snapshot};
use crate::mem::ports::StopRunning;
use crate::x86::cpu::tsc;
use crate::x86::cpu::tsc::{TscGroup, TscWrite};
use crate::x86::elapsed::Elapsed;
use crate::x86::host_tsc;
use crate::x86::pv::kvmclock::{Point, VmClock};
use crate::x86::shared::{request, VcpuSet};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kernel::new_spinlock;
use kernel::prelude::*;
use kernel::sync::{SpinLock, SpinLockGuard};

/// What the lock protects.
struct Inner {
    clock: VmClock,
    tscs: TscGroup,
    /// The boot vCPU uses MSR_KVM_SYSTEM_TIME: its kernel is too old for clocks of one point.
    old_msr: bool,
    /// [`host_tsc::lost`] as of which the clock is right.
    lost: u64,
}

/// A VM's time.
#[pin_data]
pub(crate) struct Clock {
    #[pin]
    inner: SpinLock<Inner>,
    /// `inner.clock` has a common point: a copy for looks without the lock.
    common: AtomicBool,
    /// MSR_KVM_WALL_CLOCK.
    pub(crate) wall_clock: AtomicU64,
}

/// A VM's time as it was at some moment.
pub(crate) struct Image {
    clock: VmClock,
    tscs: TscGroup,
    old_msr: bool,
    wall_clock: u64,
}

/// KVM_GET_CLOCK's answer.
pub(crate) struct Now {
    /// The VM's nanoseconds.
    pub(crate) ns: u64,
    /// CLOCK_REALTIME and host TSC at the same moment, when the clock is a function of the TSC.
    pub(crate) host: Option<(u64, u64)>,
}

/// What a vCPU's page is to say.
pub(crate) struct Reference {
    /// Host's TSC.
    pub(crate) host_tsc: u64,
    /// The VM's nanoseconds at that TSC.
    pub(crate) ns: u64,
    /// All pages have the same.
    pub(crate) common: bool,
}

fn point(s: &Snapshot) -> Point {
    Point {
        base_ns: s.base_ns,
        tsc: s.tsc,
    }
}

fn host_rate() -> tsc::Rate {
    tsc::tsc_to_ns(boot_cpu::tsc_khz())
}

impl Clock {
    /// Zero is now.
    pub(crate) fn new() -> impl PinInit<Self> {
        let now = clock::snapshot();
        pin_init!(Self {
            inner <- new_spinlock!(Inner {
                clock: VmClock::new(point(&now)),
                tscs: TscGroup::default(),
                old_msr: false,
                lost: host_tsc::lost(),
            }),
            common: AtomicBool::new(false),
            wall_clock: AtomicU64::new(0),
        })
    }

    /// What the lock protects, as it has to be for the host's TSC of today.
    fn lock(&self) -> SpinLockGuard<'_, Inner> {
        let mut inner = self.inner.lock();
        let lost = host_tsc::lost();
        if lost != inner.lost {
            let by = lost.wrapping_sub(inner.lost);
            inner.lost = lost;
            inner
                .clock
                .follow_host(by, point(&clock::snapshot()), host_rate());
        }
        inner
    }

    /// The VM's time.
    pub(crate) fn now(&self) -> Now {
        let inner = self.lock();
        let s = clock::snapshot();
        Now {
            ns: inner.clock.at(point(&s), host_rate()),
            host: (inner.clock.is_common() && s.tsc_based).then_some((s.real_ns, s.tsc)),
        }
    }

    /// CLOCK_REALTIME less the VM's time: nanoseconds since 1970 of its zero.
    pub(crate) fn epoch_ns(&self) -> u64 {
        let inner = self.lock();
        let s = clock::snapshot();
        s.real_ns
            .wrapping_sub(inner.clock.at(point(&s), host_rate()))
    }

    /// Whether all pages have one point.
    pub(crate) fn is_common(&self) -> bool {
        self.common.load(Ordering::Relaxed)
    }

    /// For a page that is written now.
    pub(crate) fn reference(&self) -> Reference {
        let inner = self.lock();
        let now = point(&clock::snapshot());
        let (host_tsc, ns) = inner.clock.point(now);
        Reference {
            host_tsc,
            ns,
            common: inner.clock.is_common(),
        }
    }

    /// KVM_SET_CLOCK: the VM's time is `ns`, or was it when CLOCK_REALTIME was `real_ns`.
    pub(crate) fn set(&self, vcpus: &VcpuSet, mut ns: u64, real_ns: Option<u64>) {
        let mut inner = self.lock();
        Self::stop(vcpus);
        let common = Self::wants_common(&inner, vcpus);
        self.choose(&mut inner, common);
        let s = clock::snapshot();
        if let Some(then) = real_ns {
            // Never back.
            ns = ns.wrapping_add(s.real_ns.saturating_sub(then));
        }
        inner.clock.set(ns, point(&s));
    }

    /// The number of vCPUs, their TSCs or the host's clock may have changed.
    pub(crate) fn update(&self, vcpus: &VcpuSet) {
        let mut inner = self.lock();
        self.change(&mut inner, vcpus);
    }

    /// The boot vCPU wrote the old or the new MSR.
    pub(crate) fn set_old_msr(&self, vcpus: &VcpuSet, old: bool) {
        let mut inner = self.lock();
        inner.old_msr = old;
        self.change(&mut inner, vcpus);
    }

    /// A vCPU's TSC is written by user space, or it is new; its offset. `member` as for [`TscGroup::write`].
    pub(crate) fn write_tsc(
        &self,
        vcpus: &VcpuSet,
        member: &mut u64,
        value: u64,
        khz: u32,
        by_user: bool,
        scaled: impl Fn(u64) -> u64,
    ) -> u64 {
        let mut inner = self.lock();
        let w = Self::tsc_write(value, khz, by_user, scaled);
        let offset = inner.tscs.write(member, &w);
        self.change(&mut inner, vcpus);
        offset
    }

    /// A vCPU's TSC offset is set by user space.
    pub(crate) fn set_tsc_offset(
        &self,
        vcpus: &VcpuSet,
        member: &mut u64,
        offset: u64,
        khz: u32,
        scaled: impl Fn(u64) -> u64,
    ) {
        let mut inner = self.lock();
        let w = Self::tsc_write(0, khz, true, scaled);
        inner.tscs.set_offset(member, offset, &w);
        self.change(&mut inner, vcpus);
    }

    /// All of it as it is now.
    pub(crate) fn image(&self) -> Image {
        let inner = self.lock();
        Image {
            clock: inner.clock,
            tscs: inner.tscs,
            old_msr: inner.old_msr,
            wall_clock: self.wall_clock.load(Ordering::Relaxed),
        }
    }

    /// Becomes what it was before `elapsed`, in which the vCPUs' TSCs made `ticks`. No vCPU runs.
    pub(crate) fn put_back(
        &self,
        image: &Image,
        elapsed: &Elapsed,
        ticks: u64,
        scaled: impl Fn(u64) -> u64,
    ) {
        let mut inner = self.lock();
        let by = elapsed.point();
        inner.clock = image.clock;
        inner.clock.delay(by);
        inner.tscs = image.tscs;
        let lost = scaled(inner.lost);
        inner.tscs.delay(by.base_ns, ticks, lost);
        inner.old_msr = image.old_msr;
        self.wall_clock.store(image.wall_clock, Ordering::Relaxed);
        self.common
            .store(inner.clock.is_common(), Ordering::Relaxed);
    }

    fn tsc_write(value: u64, khz: u32, by_user: bool, scaled: impl Fn(u64) -> u64) -> TscWrite {
        let s = clock::snapshot();
        TscWrite {
            value,
            now_ns: s.base_ns,
            host: scaled(boot_cpu::rdtsc()),
            lost: scaled(host_tsc::lost()),
            khz,
            stable: boot_cpu::tsc_stable(),
            by_user,
        }
    }

    /// Goes over to a common point or away from it, if that is to be.
    fn change(&self, inner: &mut Inner, vcpus: &VcpuSet) {
        let common = Self::wants_common(inner, vcpus);
        if common != inner.clock.is_common() {
            Self::stop(vcpus);
            self.choose(inner, common);
        }
    }

    fn choose(&self, inner: &mut Inner, common: bool) {
        inner
            .clock
            .set_common(common, point(&clock::snapshot()), host_rate());
        self.common.store(common, Ordering::Relaxed);
    }

    fn wants_common(inner: &Inner, vcpus: &VcpuSet) -> bool {
        inner.tscs.all(vcpus.len())
            && !inner.old_msr
            && boot_cpu::tsc_stable()
            && clock::snapshot().tsc_based
    }

    /// No vCPU shall see the new time while another still sees the old one. All are stopped, and before they enter
    /// again they have to take the lock, which the caller holds, to write their pages.
    fn stop(vcpus: &VcpuSet) {
        vcpus.request_all(request::CLOCK);
        vcpus.stop_running();
    }
}
