// SPDX-License-Identifier: GPL-2.0
//! RVMM_RESET_POINT and RVMM_RESET: a VM goes back to what it was, any number of times. RVMM_FORK and RVMM_BECOME: what
//! a VM is at a moment is kept beside it, and other VMs become that.
//!
//! Memory is [`GuestMemory`]'s, which keeps what pages held before they were written. Everything else is small: it is
//! copied at the point, and copied back. Both calls hold the mutexes of all vCPUs, which they do not wait for.
//!
//! Lock order: `Vm.setup` > `ResetPoint.inner` > a vCPU's `state` > `GuestMemory.update`.
//!
//! # Time
//!
//! A guest finds no time passed. What counts by a clock of the host (TSC, APIC timer, 8254, the VM's clock) goes on
//! from where it was at the point: all of it is moved by the time since then, measured once.
//!
//! # What may fail
//!
//! The fallible steps of a reset come first: routes, then memory. When memory cannot be put back the point is still
//! there, and so is all that has been saved; a call after that begins anew. The rest allocates nothing, and fails only
//! where KVM_RUN would for the same reason (EIO).
//!
//! [`GuestMemory`]: crate::mem::memory::GuestMemory

use crate::bus::set::hold;
use crate::linux::killable_mutex::KillableBackend;
use crate::mem::forks::ForkMemory;
use crate::x86::cpu::tsc::Scale;
use crate::x86::elapsed::Moment;
use crate::x86::hyperv::partition;
use crate::x86::irqchip::chip;
use crate::x86::pv::clock;
use crate::x86::run::Runner;
use crate::x86::vcpu::image::Image;
use crate::x86::vcpu::state::State;
use crate::x86::vcpu::Vcpu;
use crate::x86::vm::Vm;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::lock::Guard;
use kernel::sync::{new_mutex, Arc, Mutex};

/// A VM as it was at some moment, but for its memory.
struct Point {
    then: Moment,
    /// As [`Inner::vcpus`].
    vcpus: KVec<KBox<Image>>,
    chip: Option<chip::Image>,
    clock: clock::Image,
    hyperv: partition::Image,
}

struct Inner {
    /// The vCPUs whose files are open.
    vcpus: KVec<Arc<Vcpu>>,
    point: Option<KBox<Point>>,
}

/// The reset point of a VM, and the vCPUs that go back with it.
#[pin_data]
pub(crate) struct ResetPoint {
    #[pin]
    inner: Mutex<Inner>,
}

type Held<'a> = Guard<'a, State, KillableBackend>;

impl ResetPoint {
    /// No point, and no vCPU.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let inner = Inner {
            vcpus: KVec::new(),
            point: None,
        };
        Arc::pin_init(
            pin_init!(Self { inner <- new_mutex!(inner) }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// A vCPU comes: the point is void. [`ResetPoint::remove`] has to follow.
    pub(crate) fn add(&self, vm: &Vm, vcpu: &Arc<Vcpu>) -> Result {
        let mut inner = self.inner.lock();
        inner.vcpus.push(vcpu.clone(), GFP_KERNEL_ACCOUNT)?;
        lose(vm, &mut inner);
        Ok(())
    }

    /// The file of `vcpu` is gone: the point is void.
    pub(crate) fn remove(&self, vm: &Vm, vcpu: &Arc<Vcpu>) {
        let mut inner = self.inner.lock();
        let found = inner.vcpus.iter().position(|v| Arc::ptr_eq(v, vcpu));
        let Some(n) = found else { return };
        let _ = inner.vcpus.remove(n);
        lose(vm, &mut inner);
    }

    /// RVMM_RESET_POINT: the VM can be put back to what it is now, as long as no more than `limit` pages are written in
    /// between; 0: not any more. EBUSY: a vCPU runs, or a device reaches the memory; EINVAL: also where there is memory
    /// for SMM; ENOMEM, EIO. After an error the point is what it was.
    pub(crate) fn set(&self, vm: &Vm, limit: u64) -> Result {
        let inner = &mut *self.inner.lock();
        if limit == 0 {
            inner.point = None;
            vm.memory.drop_reset_point(vm.mm());
            return Ok(());
        }
        if vm.has_vfio.load(Ordering::Acquire) {
            return Err(EBUSY);
        }
        if vm.smm_memory().is_some() {
            return Err(EINVAL);
        }
        let mut held = hold(&inner.vcpus, Vcpu::lock_now)?;
        let point = Point::of(vm, &inner.vcpus, &mut held)?;
        vm.with_one_memory(|memory| memory.set_reset_point(limit))?;
        inner.point = Some(point);
        Ok(())
    }

    /// RVMM_RESET: the number of pages that had been written since the point or the last reset. ENODATA: there is no
    /// point. ESTALE: slots, vCPUs, interrupt controllers or devices are not those of the point. EBUSY: a vCPU runs.
    /// EFAULT: user memory of a page is not there. EINTR, ENOMEM, EIO. But for ENODATA and ESTALE it may be called
    /// again.
    pub(crate) fn put_back(&self, vm: &Vm) -> Result<u64> {
        let inner = self.inner.lock();
        let mut held = hold(&inner.vcpus, Vcpu::lock_now)?;
        vm.memory.check_reset_point()?;
        let point = inner.point.as_ref().ok_or(ESTALE)?;
        vm.chip.put_routes_back(point.chip.as_ref())?;
        let pages = vm.memory.put_back()?;
        let images = point.vcpus.iter().map(|image| &**image);
        point.put_back(vm, &inner.vcpus, &mut held, images)?;
        Ok(pages)
    }

    /// RVMM_FORK: what the VM is now. EBUSY: a vCPU runs, there is a reset point, or a device reaches the memory.
    /// EINVAL: also where there is memory for SMM. As
    /// [`GuestMemory::fork`](crate::mem::memory::GuestMemory::fork); EIO.
    pub(crate) fn fork(&self, vm: &Vm) -> Result<Fork> {
        let inner = &mut *self.inner.lock();
        // A page that is missing has nothing that could be shared; nor is there a second mapping for memory for SMM.
        if vm.missing.is_enabled() || vm.smm_memory().is_some() {
            return Err(EINVAL);
        }
        if vm.has_vfio.load(Ordering::Acquire) {
            return Err(EBUSY);
        }
        let mut held = hold(&inner.vcpus, Vcpu::lock_now)?;
        let point = Point::of(vm, &inner.vcpus, &mut held)?;
        let memory = vm.with_one_memory(|memory| {
            // From here on they are not enabled any more.
            if vm.missing.is_enabled() {
                return Err(EINVAL);
            }
            memory.fork(vm.mm())
        })?;
        // Who makes one looks for forks after it has said so.
        if vm.has_vfio.load(Ordering::Acquire) {
            return Err(EBUSY);
        }
        Ok(Fork { point, memory })
    }

    /// RVMM_BECOME: the VM becomes what the VM of `fork` was, but for memory. EINVAL: other vCPUs, or other interrupt
    /// controllers. EBUSY: a vCPU runs. EIO. After EIO it is to be called again before a vCPU runs.
    pub(crate) fn become_fork(&self, vm: &Vm, fork: &Fork) -> Result {
        let inner = self.inner.lock();
        let point = &*fork.point;
        let mut held = hold(&inner.vcpus, Vcpu::lock_now)?;
        if held.len() != point.vcpus.len() {
            return Err(EINVAL);
        }
        let mut images = KVec::with_capacity(held.len(), GFP_KERNEL_ACCOUNT)?;
        for (vcpu, s) in inner.vcpus.iter().zip(held.iter()) {
            let of_it = |i: &&KBox<Image>| i.id == vcpu.shared.id && i.fits(s);
            let image = point.vcpus.iter().find(of_it).ok_or(EINVAL)?;
            images.push_within_capacity(&**image).map_err(|_| ENOMEM)?;
        }
        let routes = vm.chip.put_routes_back(point.chip.as_ref());
        routes.map_err(|e| if e == ESTALE { EINVAL } else { e })?;
        for (s, image) in held.iter_mut().zip(&images) {
            image.make_alike(s)?;
        }
        point.put_back(vm, &inner.vcpus, &mut held, images.iter().copied())
    }
}

/// What a VM was when it was forked.
pub(crate) struct Fork {
    point: KBox<Point>,
    memory: Arc<ForkMemory>,
}

impl Fork {
    /// Its memory.
    pub(crate) fn memory(&self) -> &Arc<ForkMemory> {
        &self.memory
    }
}

impl Point {
    /// The VM as it is now, but for its memory. `held` are the vCPUs.
    fn of(vm: &Vm, vcpus: &[Arc<Vcpu>], held: &mut [Held<'_>]) -> Result<KBox<Self>> {
        // Before what vCPUs have been sent: an interrupt that comes meanwhile is in both, not in neither.
        let chip = vm.chip.image()?;
        for (vcpu, s) in vcpus.iter().zip(held.iter_mut()) {
            Runner::new(vm, vcpu, s)?.handle_requests();
        }
        let then = Moment::now();
        let mut images = KVec::with_capacity(held.len(), GFP_KERNEL_ACCOUNT)?;
        for (vcpu, s) in vcpus.iter().zip(held.iter_mut()) {
            images
                .push_within_capacity(Image::of(vcpu, s)?)
                .map_err(|_| ENOMEM)?;
        }
        let point = Self {
            then,
            vcpus: images,
            chip,
            clock: vm.clock.image(),
            hyperv: vm.hyperv.image(),
        };
        Ok(KBox::new(point, GFP_KERNEL_ACCOUNT)?)
    }

    /// What cannot fail, and what only fails where KVM_RUN would: all but memory and routes. Each vCPU becomes what the
    /// image at its place says.
    fn put_back<'a>(
        &self,
        vm: &Vm,
        vcpus: &[Arc<Vcpu>],
        held: &mut [Held<'_>],
        images: impl Iterator<Item = &'a Image>,
    ) -> Result {
        let elapsed = self.then.elapsed();
        let scale = held.first().map_or(Scale::ONE, |s| s.tsc.scale);
        let ticks = elapsed.ticks(scale);
        vm.clock
            .put_back(&self.clock, &elapsed, ticks, |lost| scale.apply(lost));
        vm.hyperv.put_back(&self.hyperv);
        // What comes once the controllers are back is not forgotten.
        for (vcpu, s) in vcpus.iter().zip(held.iter_mut()) {
            Image::forget_requests(vm, vcpu, s);
        }
        vm.chip.put_back(self.chip.as_ref(), elapsed.timer_ns());
        for ((vcpu, s), image) in vcpus.iter().zip(held.iter_mut()).zip(images) {
            image.put_back(vm, vcpu, s, &elapsed)?;
        }
        Ok(())
    }
}

/// The vCPUs are not those of the point any more.
fn lose(vm: &Vm, inner: &mut Inner) {
    if inner.point.take().is_some() {
        vm.memory.lose_reset_point();
    }
}
