// SPDX-License-Identifier: GPL-2.0
//! The interrupt controllers of a VM and the ways into them: ports and memory, irqfds, ioeventfds, ioctls.
//!
//! The controllers come into being with KVM_CREATE_IRQCHIP (all of them) or KVM_CAP_SPLIT_IRQCHIP (local APICs only, the rest is in
//! user space), before the first vCPU. `config` serialises changes of what user space configures.

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::bus::coalesced::Coalesced;
use crate::bus::ioeventfd::{Bus, IoEventFds};
use crate::bus::irqfd::Irqfds;
use crate::bus::line::Source;
use crate::linux::eventfd::EventFdCtx;
use crate::linux::hrtimer::{ktime_get_ns, Timer, TimerCallback};
use crate::linux::once::Once;
use crate::linux::page::LazyPage;
use crate::x86::irqchip::controllers::{Controllers, Resampler};
use crate::x86::irqchip::deliver::deliver;
use crate::x86::irqchip::ioapic;
use crate::x86::irqchip::msg::Message;
use crate::x86::irqchip::pic;
use crate::x86::irqchip::pic::Chip;
use crate::x86::irqchip::pit_timer::PitTimer;
use crate::x86::irqchip::route::{Chips, Route, MAX_ROUTES};
use crate::x86::irqchip::routing::Table;
use crate::x86::shared::VcpuSet;
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, ArcBorrow, Mutex};
use kernel::uaccess::{UserPtr, UserSlice};

/// No interrupt controller in the kernel.
const NONE: u32 = 0;
/// Local APICs only.
const SPLIT: u32 = 1;
/// Everything.
const FULL: u32 = 2;

/// Offset of the chip's state in `struct kvm_irqchip`.
const IRQCHIP_STATE: usize = 8;

const _: () = {
    assert!(core::mem::offset_of!(k::kvm_irqchip, chip) == IRQCHIP_STATE);
    assert!(size_of::<k::kvm_pic_state>() == 16);
    assert!(size_of::<k::kvm_ioapic_state>() == 8 * IOAPIC_WORDS);
};

/// Size of `struct kvm_ioapic_state` in 64-bit words: base address; register select and ID; IRR; redirection table.
const IOAPIC_WORDS: usize = 3 + ioapic::PINS;

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
    vcpus: Arc<VcpuSet>,
    mode: AtomicU32,
    /// Set before `mode` says that they are there.
    controllers: Once<Arc<Controllers>>,
    pit: Once<KBox<PitTimer>>,
    /// Runs while an interrupt storm is held back.
    storm: Once<KBox<Timer<Resume>>>,
    events: IoEventFds,
    #[pin]
    coalesced: Coalesced,
    #[pin]
    config: Mutex<Irqfds>,
}

impl IrqChip {
    /// A VM without any interrupt controller in the kernel.
    pub(crate) fn new(vcpus: Arc<VcpuSet>) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                vcpus,
                mode: AtomicU32::new(NONE),
                controllers: Once::new(),
                pit: Once::new(),
                storm: Once::new(),
                events: IoEventFds::new(),
                coalesced <- Coalesced::new(),
                config <- new_mutex!(Irqfds::new()),
            }),
            GFP_KERNEL_ACCOUNT,
        )
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
    fn controllers(&self) -> Option<ArcBorrow<'_, Controllers>> {
        self.controllers.get()
    }

    /// KVM_CAP_X2APIC_API (api.rst 7.7). EINVAL: unknown flags, suppression on and off, or on with an IOAPIC in the kernel, which has no
    /// EOI register.
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

    /// EOI broadcast suppression of local APICs: whether it is offered, and whether it takes effect. Without a word from user space it is
    /// offered where the IOAPIC is not in the kernel, but has no effect, as in KVM, whose clients count on every EOI.
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
    fn full(&self) -> Option<ArcBorrow<'_, Controllers>> {
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
        self.full()?.acknowledge()
    }

    /// An EOI message of a level-triggered vector. True if user space has to be told (split irqchip). Any context.
    #[inline]
    pub(crate) fn eoi(&self, vector: u8) -> bool {
        let Some(c) = self.controllers() else {
            return false;
        };
        let user = c.eoi(vector, true);
        if c.take_storm() {
            self.delay();
        }
        user
    }

    /// Lets what an interrupt storm has held back go on after a while.
    #[cold]
    fn delay(&self) {
        if let Some(timer) = self.storm.get() {
            timer.start_abs_ns(ktime_get_ns().saturating_add(STORM_DELAY_NS));
        }
    }

    /// The end of an edge-triggered interrupt, which no message tells: for who waits to raise it again. Any context.
    #[inline]
    pub(crate) fn edge_eoi(&self, vector: u8) {
        if let Some(c) = self.controllers() {
            let _ = c.eoi(vector, false);
        }
    }

    /// A local APIC has another state: what was in service there may never end.
    pub(crate) fn forget_rtc(&self) {
        if let Some(c) = self.controllers() {
            c.forget_rtc();
        }
    }

    /// Vectors `32 * word` to `32 * word + 31` whose edge-triggered end somebody waits for ([`IrqChip::edge_eoi`]).
    pub(crate) fn edge_eoi_vectors(&self, word: usize) -> u32 {
        self.controllers().map_or(0, |c| c.eoi_vectors(word))
    }

    /// Sends an interrupt message; `source` is the sender's APIC id for shorthands. Number of vCPUs that got it. Any context.
    pub(crate) fn deliver(&self, message: &Message, source: u32) -> u32 {
        deliver(&self.vcpus, message, Some(source), false)
    }

    /// Reads a device in the kernel. False if there is none.
    pub(crate) fn mmio_read(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.full().is_some_and(|c| c.ioapic_read(gpa, buf))
    }

    /// Writes a device in the kernel or signals an ioeventfd. False if there is none.
    pub(crate) fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.full().is_some_and(|c| c.ioapic_write(gpa, data))
            || self.events.signal(Bus::Mmio, gpa, data)
            || self.coalesced.write(Bus::Mmio, gpa, data)
    }

    /// Signals the ioeventfd of a write, if it has one. Any context.
    #[inline]
    pub(crate) fn mmio_signal(&self, gpa: u64, data: &[u8]) -> bool {
        self.events.signal(Bus::Mmio, gpa, data)
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
            return Some(if width == 1 {
                controllers.pic_read(port).into()
            } else {
                0
            });
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

    /// Signals an ioeventfd that matches, or puts the write into the ring. Any context.
    #[inline]
    pub(crate) fn pio_event(&self, port: u16, width: u8, value: u32) -> bool {
        let data = value.to_le_bytes();
        let data = data.get(..width.into()).unwrap_or(&data);
        self.events.signal(Bus::Pio, port.into(), data)
            || self.coalesced.write(Bus::Pio, port.into(), data)
    }

    /// Writes a port of a device in the kernel, or signals an ioeventfd. False if there is none. Any context.
    pub(crate) fn pio_write(&self, port: u16, width: u8, value: u32) -> bool {
        if let Some(controllers) = self.full() {
            if Self::is_pic_port(port, width) {
                if width == 1 {
                    controllers.pic_write(port, value as u8);
                }
                return true;
            }
            if let Some(pit) = self.pit.get().filter(|p| p.claims(port, width)) {
                pit.write(port, value as u8);
                return true;
            }
        }
        self.pio_event(port, width, value)
    }

    /// KVM_IRQ_LINE (api.rst 4.25); KVM_IRQ_LINE_STATUS tells what came of it.
    pub(crate) fn irq_line(&self, arg: usize, tell: bool) -> Result {
        // `struct kvm_irq_level`: the GSI, which the status replaces, and the level.
        let request = uapi::get::<u64>(arg)?;
        let controllers = self.controllers().ok_or(ENXIO)?;
        let (gsi, level) = (request as u32, request >> 32 != 0);
        if tell {
            uapi::put(arg, &controllers.set_irq_status(gsi, level))?;
        } else {
            let _ = controllers.set_irq(gsi, Source::USER, level);
        }
        Ok(())
    }

    /// KVM_SET_GSI_ROUTING (api.rst 4.52).
    #[inline(never)]
    pub(crate) fn set_gsi_routing(&self, arg: usize) -> Result {
        let header = uapi::get::<u64>(arg)?;
        let controllers = self.controllers().ok_or(EINVAL)?;
        let chips = Chips {
            full: self.has_pic(),
            ids_32bit: self.vcpus.msi_format().ids_32bit,
        };
        let table = Table::from_user(arg, header, chips)?;
        let _config = self.config.lock();
        controllers.set_table(table)
    }

    /// KVM_GET_PIT2 (api.rst 4.72).
    pub(crate) fn get_pit(&self) -> Result<k::kvm_pit_state2> {
        self.pit.get().ok_or(ENXIO)?.get()
    }

    /// KVM_GET_PIT: without flags.
    pub(crate) fn get_old_pit(&self, state: &mut k::kvm_pit_state) -> Result {
        state.channels = self.pit.get().ok_or(ENXIO)?.get()?.channels;
        Ok(())
    }

    /// KVM_SET_PIT: the flags stay.
    #[inline(never)]
    pub(crate) fn set_old_pit(&self, arg: usize) -> Result {
        let old = uapi::get::<k::kvm_pit_state>(arg)?;
        let _config = self.config.lock();
        let pit = self.pit.get().ok_or(ENXIO)?;
        let mut state = pit.get()?;
        state.channels = old.channels;
        pit.set(&state);
        Ok(())
    }

    /// KVM_SET_PIT2 (api.rst 4.73).
    pub(crate) fn set_pit(&self, state: &k::kvm_pit_state2) -> Result {
        let _config = self.config.lock();
        self.pit.get().ok_or(ENXIO)?.set(state);
        Ok(())
    }

    /// KVM_REINJECT_CONTROL (`struct kvm_reinject_control`).
    pub(crate) fn reinject_control(&self, control: &k::kvm_reinject_control) -> Result {
        let reinject = control.pit_reinject != 0;
        self.pit.get().ok_or(ENXIO)?.set_reinject(reinject);
        Ok(())
    }

    /// KVM_IOEVENTFD (api.rst 4.59).
    pub(crate) fn ioeventfd(&self, args: &k::kvm_ioeventfd) -> Result {
        let _config = self.config.lock();
        self.events.ioctl(args)
    }

    /// KVM_REGISTER_COALESCED_MMIO and KVM_UNREGISTER_COALESCED_MMIO (api.rst 4.116).
    pub(crate) fn coalesce(&self, zone: &k::kvm_coalesced_mmio_zone, add: bool) -> Result {
        let _config = self.config.lock();
        if !add {
            return self.coalesced.unregister(zone);
        }
        self.coalesced.register(zone, |bus| match bus {
            Bus::Mmio => u32::from(self.has_pic()),
            // Two 8259s, their ELCRs, the 8254 and port 61h.
            _ if self.has_pic() => 3 + self.pit.get().map_or(0, |p| p.devices()),
            _ => 0,
        })
    }

    /// The ring that user space maps behind every vCPU's pages.
    pub(crate) fn ring(&self) -> Arc<LazyPage> {
        self.coalesced.page().clone()
    }

    /// KVM_SIGNAL_MSI (api.rst 4.71): the number of vCPUs that accepted it.
    pub(crate) fn signal_msi(&self, msi: &k::kvm_msi) -> Result<isize> {
        let controllers = self.controllers().ok_or(EINVAL)?;
        if msi.flags & !k::KVM_MSI_VALID_DEVID != 0 {
            return Err(EINVAL);
        }
        let route = Route::Msi {
            address_lo: msi.address_lo,
            address_hi: msi.address_hi,
            data: msi.data,
        };
        let format = self.vcpus.msi_format();
        if format.ids_32bit && msi.address_hi & 0xff != 0 {
            return Err(EINVAL);
        }
        let message = route.message(format).ok_or(EINVAL)?;
        Ok(controllers.send(&message) as isize)
    }

    /// KVM_GET_IRQCHIP (api.rst 4.26).
    #[inline(never)]
    pub(crate) fn get_irqchip(&self, arg: usize) -> Result {
        let mut whole = irqchip_from_user(arg)?;
        let id = chip_id(&whole);
        let controllers = self.full().ok_or(ENXIO)?;
        let state = whole.get_mut(IRQCHIP_STATE..).ok_or(EINVAL)?;
        if id != k::KVM_IRQCHIP_IOAPIC {
            let s = controllers.pic_state(pic_of(id)?).ok_or(ENXIO)?;
            for (to, from) in state.iter_mut().zip(s) {
                *to = from;
            }
            return irqchip_to_user(arg, &whole);
        }
        let s = controllers.ioapic_state().ok_or(ENXIO)?;
        let head = [
            s.base_address,
            u64::from(s.id) << 32 | u64::from(s.ioregsel),
            s.irr.into(),
        ];
        let words = Iterator::chain(head.into_iter(), s.redirtbl);
        for (to, word) in state.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        irqchip_to_user(arg, &whole)
    }

    /// KVM_SET_IRQCHIP (api.rst 4.27).
    #[inline(never)]
    pub(crate) fn set_irqchip(&self, arg: usize) -> Result {
        let whole = irqchip_from_user(arg)?;
        let id = chip_id(&whole);
        let controllers = self.full().ok_or(ENXIO)?;
        let state = whole.get(IRQCHIP_STATE..).ok_or(EINVAL)?;
        if id != k::KVM_IRQCHIP_IOAPIC {
            let chip = pic_of(id)?;
            let pic = state.get(..16).and_then(|b| b.try_into().ok());
            controllers.set_pic_state(chip, pic.ok_or(EINVAL)?);
            return Ok(());
        }
        let mut words = [0u64; IOAPIC_WORDS];
        for (word, from) in words.iter_mut().zip(state.chunks_exact(8)) {
            *word = from.try_into().map_or(0, u64::from_ne_bytes);
        }
        let [base_address, select, irr, redirtbl @ ..] = words;
        controllers.set_ioapic_state(&ioapic::State {
            base_address,
            ioregsel: select as u32,
            id: (select >> 32) as u32,
            irr: irr as u32,
            redirtbl,
        });
        Ok(())
    }

    /// KVM_IRQFD (api.rst 4.75).
    pub(crate) fn irqfd(&self, args: &k::kvm_irqfd) -> Result {
        if args.flags & !(k::KVM_IRQFD_FLAG_DEASSIGN | k::KVM_IRQFD_FLAG_RESAMPLE) != 0 {
            return Err(EINVAL);
        }
        let deassign = args.flags & k::KVM_IRQFD_FLAG_DEASSIGN != 0;
        let Some(controllers) = self.controllers() else {
            if deassign {
                // Nothing to take down; the file descriptor is looked at all the same.
                return EventFdCtx::from_fd(args.fd as i32).map(drop);
            }
            return Err(EINVAL);
        };
        let mut irqfds = self.config.lock();
        if deassign {
            return irqfds.deassign(&controllers, args);
        }
        if args.flags & k::KVM_IRQFD_FLAG_RESAMPLE != 0 && !self.has_pic() {
            return Err(EINVAL);
        }
        irqfds.assign(&controllers.into(), args)
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

/// A whole `struct kvm_irqchip`, which is large. EFAULT.
fn irqchip_from_user(arg: usize) -> Result<KVec<u8>> {
    let mut bytes = KVec::from_elem(0, size_of::<k::kvm_irqchip>(), GFP_KERNEL_ACCOUNT)?;
    UserSlice::new(UserPtr::from_addr(arg), bytes.len())
        .reader()
        .read_slice(&mut bytes)?;
    Ok(bytes)
}

fn irqchip_to_user(arg: usize, bytes: &[u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(arg), bytes.len())
        .writer()
        .write_slice(bytes)
}

fn chip_id(irqchip: &[u8]) -> u32 {
    irqchip
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(u32::MAX, u32::from_ne_bytes)
}

/// The 8259 with a number of `KVM_IRQCHIP_*`. EINVAL.
fn pic_of(id: u32) -> Result<Chip> {
    match id {
        k::KVM_IRQCHIP_PIC_MASTER => Ok(Chip::Master),
        k::KVM_IRQCHIP_PIC_SLAVE => Ok(Chip::Slave),
        _ => Err(EINVAL),
    }
}
