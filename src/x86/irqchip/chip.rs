// SPDX-License-Identifier: GPL-2.0
//! The interrupt controllers of a VM and the ways into them: ports and memory, irqfds, ioeventfds, ioctls.
//!
//! The controllers come into being with KVM_CREATE_IRQCHIP (all of them) or KVM_CAP_SPLIT_IRQCHIP (local APICs only,
//! the rest is in user space), before the first vCPU. `config` serialises changes of what user space configures.

use crate::abi::uapi::k;
use crate::bus::ioeventfd::Bus;
use crate::bus::irqfd::Irqfds;
use crate::bus::ports::IrqLines;
use crate::linux::hrtimer::{ktime_get_ns, Timer, TimerCallback};
use crate::linux::once::Once;
pub(crate) use crate::x86::irqchip::controllers::Image;
use crate::x86::irqchip::controllers::{Controllers, Resampler};
use crate::x86::irqchip::deliver::{deliver, deliver_quickly};
use crate::x86::irqchip::msg::{ApicAddr, Message};
use crate::x86::irqchip::pic;
use crate::x86::irqchip::pit_timer::PitTimer;
use crate::x86::irqchip::route::MAX_ROUTES;
use crate::x86::shared::VcpuSet;
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, ArcBorrow, Mutex};

/// No interrupt controller in the kernel.
const NONE: u32 = 0;
/// Local APICs only.
const SPLIT: u32 = 1;
/// Everything.
const FULL: u32 = 2;

/// How long an interrupt storm is held back (KVM: a hundredth of a second).
const STORM_DELAY_NS: u64 = 10_000_000;

/// Ends the holding back of an interrupt storm.
struct Resume(Arc<Controllers>);

impl TimerCallback for Resume {
    fn expired(&self) -> Option<u64> {
        self.0.resume();
        None
    }
}

/// IOAPIC, 8259s, 8254, GSI routing, irqfds and ioeventfds of one VM.
#[pin_data]
pub(crate) struct IrqChip {
    pub(super) vcpus: Arc<VcpuSet>,
    mode: AtomicU32,
    /// Set before `mode` says that they are there.
    controllers: Once<Arc<Controllers>>,
    pub(super) pit: Once<KBox<PitTimer>>,
    /// Runs while an interrupt storm is held back.
    storm: Once<KBox<Timer<Resume>>>,
    #[pin]
    pub(super) config: Mutex<Irqfds<Controllers>>,
}

impl IrqChip {
    /// A VM without any interrupt controller in the kernel.
    pub(crate) fn new(vcpus: Arc<VcpuSet>) -> impl PinInit<Self> {
        pin_init!(Self {
            vcpus,
            mode: AtomicU32::new(NONE),
            controllers: Once::new(),
            pit: Once::new(),
            storm: Once::new(),
            config <- new_mutex!(Irqfds::new()),
        })
    }

    #[inline]
    fn mode(&self) -> u32 {
        self.mode.load(Ordering::Acquire)
    }

    /// Local APICs are in the kernel (full or split irqchip). Fixed before the first vCPU.
    #[inline]
    pub(crate) fn has_lapic(&self) -> bool {
        self.mode() != NONE
    }

    /// 8259s and IOAPIC are in the kernel (full irqchip).
    #[inline]
    pub(crate) fn has_pic(&self) -> bool {
        self.mode() == FULL
    }

    /// Where interrupts of assigned devices go, if there are controllers in the kernel.
    pub(crate) fn target(&self) -> Option<Arc<Controllers>> {
        self.controllers().map(Into::into)
    }

    /// Adds somebody who is told of the ends of interrupts. Sleeps.
    pub(crate) fn listen(&self, new: Resampler) -> Result {
        let controllers = self.controllers().ok_or(EINVAL)?;
        let _config = self.config.lock();
        controllers.add_resampler(new)
    }

    /// Undoes [`IrqChip::listen`]; without memory the listener stays.
    pub(crate) fn unlisten(&self, old: &Resampler) {
        if let Some(controllers) = self.controllers() {
            let _config = self.config.lock();
            let _ = controllers.remove_resampler(old);
        }
    }

    /// The controllers, if any are in the kernel.
    #[inline]
    pub(super) fn controllers(&self) -> Option<ArcBorrow<'_, Controllers>> {
        self.controllers.get()
    }

    /// KVM_CAP_X2APIC_API (api.rst 7.7). EINVAL: unknown flags, suppression on and off, or on with an IOAPIC in the
    /// kernel, which has no EOI register.
    pub(crate) fn enable_x2apic_api(&self, flags: u64) -> Result {
        use crate::x86::shared::x2apic_api as api;
        const EOI: u32 = api::SUPPRESS_EOI | api::NO_SUPPRESS_EOI;
        let flags = u32::try_from(flags)
            .ok()
            .filter(|f| f & !api::VALID == 0 && f & EOI != EOI)
            .ok_or(EINVAL)?;
        if flags & api::SUPPRESS_EOI != 0 && self.mode() != SPLIT {
            return Err(EINVAL);
        }
        let clear = if flags & EOI != 0 { EOI } else { 0 };
        self.vcpus.set_x2apic_api(clear, flags);
        Ok(())
    }

    /// The flags that [`IrqChip::enable_x2apic_api`] takes now.
    pub(crate) fn x2apic_api_flags(&self) -> u32 {
        use crate::x86::shared::x2apic_api as api;
        if self.mode() == SPLIT {
            api::VALID
        } else {
            api::VALID & !api::SUPPRESS_EOI
        }
    }

    /// EOI broadcast suppression of local APICs: whether it is offered, and whether it takes effect. Without a word
    /// from user space it is offered where the IOAPIC is not in the kernel, but has no effect, as in KVM, whose clients
    /// count on every EOI.
    pub(crate) fn eoi_suppression(&self) -> (bool, bool) {
        use crate::x86::shared::x2apic_api as api;
        match self.vcpus.x2apic_api() & (api::SUPPRESS_EOI | api::NO_SUPPRESS_EOI) {
            api::SUPPRESS_EOI => (true, true),
            0 => (self.mode() == SPLIT, self.mode() == FULL),
            _ => (false, false),
        }
    }

    /// IOAPIC and 8259s, if they are in the kernel.
    #[inline]
    pub(super) fn full(&self) -> Option<ArcBorrow<'_, Controllers>> {
        if self.has_pic() {
            self.controllers()
        } else {
            None
        }
    }

    fn install(&self, controllers: Arc<Controllers>, mode: u32) -> Result {
        if !self.controllers.set(controllers) {
            return Err(EEXIST);
        }
        self.mode.store(mode, Ordering::Release);
        Ok(())
    }

    /// KVM_CREATE_IRQCHIP. EEXIST, EINVAL. The caller excludes the creation of vCPUs.
    pub(crate) fn create_kernel(&self, vcpus_exist: bool) -> Result {
        if self.has_lapic() {
            return Err(EEXIST);
        }
        if vcpus_exist {
            return Err(EINVAL);
        }
        let controllers = Controllers::new_full(self.vcpus.clone())?;
        let timer = KBox::new(Timer::new(Resume(controllers.clone()))?, GFP_KERNEL_ACCOUNT)?;
        self.install(controllers, FULL)?;
        self.storm.set(timer);
        Ok(())
    }

    /// KVM_CAP_SPLIT_IRQCHIP with this many pins. EEXIST, EINVAL. The caller excludes the creation of vCPUs.
    pub(crate) fn create_split(&self, pins: u64, vcpus_exist: bool) -> Result {
        let pins = u32::try_from(pins)
            .ok()
            .filter(|n| *n <= MAX_ROUTES)
            .ok_or(EINVAL)?;
        if self.has_lapic() || vcpus_exist {
            return Err(EEXIST);
        }
        self.install(Controllers::new_split(self.vcpus.clone(), pins)?, SPLIT)
    }

    /// KVM_CREATE_PIT2. EEXIST, ENOENT. The caller excludes other creations.
    pub(crate) fn create_pit(&self, config: &k::kvm_pit_config) -> Result {
        if self.pit.get().is_some() {
            return Err(EEXIST);
        }
        let controllers = self.full().ok_or(ENOENT)?;
        let speaker = config.flags & k::KVM_PIT_SPEAKER_DUMMY != 0;
        let pit = PitTimer::new(controllers.into(), speaker)?;
        self.pit.set(KBox::new(pit, GFP_KERNEL_ACCOUNT)?);
        Ok(())
    }

    /// The 8259s' INTR line. Any context.
    #[inline]
    pub(crate) fn pic_output(&self) -> bool {
        self.controllers().is_some_and(|c| c.intr())
    }

    /// INTA cycle: the vector. Any context.
    pub(crate) fn pic_acknowledge(&self) -> Option<u8> {
        let controllers = self.full()?;
        let vector = controllers.acknowledge();
        self.settle(&controllers);
        vector
    }

    /// An EOI message of a level-triggered vector. True if user space has to be told (split irqchip). Any context.
    #[inline]
    pub(crate) fn eoi(&self, vector: u8) -> bool {
        let Some(c) = self.controllers() else {
            return false;
        };
        let user = c.eoi(vector, true);
        self.settle(&c);
        user
    }

    /// Sets the timers of what has come of the end of an interrupt.
    #[inline]
    fn settle(&self, controllers: &Controllers) {
        if controllers.take_storm() {
            self.delay();
        }
        if let (Some(when), Some(pit)) = (controllers.take_again(), self.pit.get()) {
            pit.tick_again(when);
        }
    }

    /// Lets what an interrupt storm has held back go on after a while.
    #[cold]
    fn delay(&self) {
        if let Some(timer) = self.storm.get() {
            timer.start_abs_ns(ktime_get_ns().saturating_add(STORM_DELAY_NS));
        }
    }

    /// The end of an edge-triggered interrupt, which no message tells: for who waits to raise it again. True if user
    /// space has to be told, whose IOAPIC has a level-triggered pin of the same vector. Any context.
    #[inline]
    pub(crate) fn edge_eoi(&self, vector: u8) -> bool {
        let Some(c) = self.controllers() else {
            return false;
        };
        let user = c.eoi(vector, false);
        self.settle(&c);
        user
    }

    /// A local APIC has been given another state, as for [`Controllers::restore_rtc`].
    pub(crate) fn restore_rtc(&self, addr: &ApicAddr, before: &[u32; 8], after: &[u32; 8]) {
        if let Some(c) = self.controllers() {
            c.restore_rtc(addr, before, after);
        }
    }

    /// The guest has done with what SINT number `sint` of Hyper-V's processor `vp` told it. Any context.
    pub(crate) fn sint_ended(&self, vp: u32, sint: u32) {
        if let Some(c) = self.controllers() {
            c.sint_ended(vp, sint);
        }
    }

    /// A local APIC begins anew: what was in service there will never end.
    pub(crate) fn forget_rtc(&self) {
        if let Some(c) = self.controllers() {
            c.forget_rtc();
        }
    }

    /// Vectors `32 * word` to `32 * word + 31` whose edge-triggered end somebody waits for ([`IrqChip::edge_eoi`]).
    pub(crate) fn edge_eoi_vectors(&self, word: usize) -> u32 {
        self.controllers().map_or(0, |c| c.eoi_vectors(word))
    }

    /// Sends an interrupt message; `source` is the sender's APIC id for shorthands. Number of vCPUs that got it. Any
    /// context.
    pub(crate) fn deliver(&self, message: &Message, source: u32) -> u32 {
        deliver(&self.vcpus, message, Some(source), false)
    }

    /// As [`IrqChip::deliver`], but does nothing, and returns `None`, if that would take long.
    #[inline]
    pub(crate) fn deliver_quickly(&self, message: &Message, source: u32) -> Option<u32> {
        deliver_quickly(&self.vcpus, message, source)
    }

    /// Reads a device in the kernel. False if there is none.
    pub(crate) fn mmio_read(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.full().is_some_and(|c| c.ioapic_read(gpa, buf))
    }

    /// Writes a device in the kernel. False if there is none.
    pub(crate) fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.full().is_some_and(|c| c.ioapic_write(gpa, data))
    }

    /// Whether an access is to the 8259s or their edge/level registers.
    #[inline]
    fn is_pic_port(port: u16, width: u8) -> bool {
        // Pairs of ports. A wider access that fits is the controller's as well, to no effect.
        match port & !1 {
            pic::port::MASTER_COMMAND | pic::port::SLAVE_COMMAND | pic::port::MASTER_ELCR => {
                u16::from(width) <= 2 - (port & 1)
            }
            _ => false,
        }
    }

    /// Reads a port of a device in the kernel. Any context.
    pub(crate) fn pio_read(&self, port: u16, width: u8) -> Option<u32> {
        let controllers = self.full()?;
        if Self::is_pic_port(port, width) {
            if width != 1 {
                return Some(0);
            }
            let value = controllers.pic_read(port);
            self.settle(&controllers);
            return Some(value.into());
        }
        let pit = self.pit.get()?;
        pit.claims(port, width).then(|| pit.read(port).into())
    }

    /// Whether a device in the kernel owns this port. Any context.
    pub(crate) fn claims_port(&self, port: u16, width: u8) -> bool {
        self.has_pic()
            && (Self::is_pic_port(port, width)
                || self.pit.get().is_some_and(|p| p.claims(port, width)))
    }

    /// How many devices in the kernel are on a bus.
    pub(crate) fn devices(&self, bus: Bus) -> u32 {
        match bus {
            Bus::Mmio => u32::from(self.has_pic()),
            // Two 8259s, their ELCRs, the 8254 and port 61h.
            _ if self.has_pic() => 3 + self.pit.get().map_or(0, |p| p.devices()),
            _ => 0,
        }
    }

    /// Writes a port of a device in the kernel. False if there is none. Any context.
    pub(crate) fn pio_write(&self, port: u16, width: u8, value: u32) -> bool {
        if let Some(controllers) = self.full() {
            if Self::is_pic_port(port, width) {
                if width == 1 {
                    controllers.pic_write(port, value as u8);
                    self.settle(&controllers);
                }
                return true;
            }
            if let Some(pit) = self.pit.get().filter(|p| p.claims(port, width)) {
                pit.write(port, value as u8);
                return true;
            }
        }
        false
    }

    /// Everything as it is now; `None` without controllers in the kernel.
    pub(crate) fn image(&self) -> Result<Option<Image>> {
        self.controllers().map(|c| c.image()).transpose()
    }

    /// What of [`IrqChip::put_back`] may fail: the routes. ESTALE: there were no such controllers.
    pub(crate) fn put_routes_back(&self, image: Option<&Image>) -> Result {
        match (self.controllers(), image) {
            (Some(c), Some(image)) if c.fits(image) => {
                let _config = self.config.lock();
                c.put_routes_back(image)
            }
            (None, None) => Ok(()),
            _ => Err(ESTALE),
        }
    }

    /// Everything becomes what it was `ns` nanoseconds ago, but for the routes. No vCPU runs. Sleeps.
    pub(crate) fn put_back(&self, image: Option<&Image>, ns: u64) {
        let (Some(c), Some(image)) = (self.controllers(), image) else {
            return;
        };
        if let Some(pit) = self.pit.get() {
            pit.stop();
        }
        if let Some(timer) = self.storm.get() {
            timer.cancel();
        }
        let held = c.put_back(image, ns);
        if held {
            self.delay();
        }
        if let Some(pit) = self.pit.get() {
            pit.rearm();
        }
    }

    /// The VM's file was closed: irqfds are taken down.
    pub(crate) fn close_irqfds(&self) {
        self.config.lock().clear();
    }

    /// The VM is going: stop timers.
    pub(crate) fn shutdown(&self) {
        if let Some(pit) = self.pit.get() {
            pit.stop();
        }
        if let Some(timer) = self.storm.get() {
            timer.cancel();
        }
    }
}
