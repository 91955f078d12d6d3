// SPDX-License-Identifier: GPL-2.0
//! IOAPIC, 8259s and 8254 of one VM, connected: interrupt lines in, messages and INTR out, acknowledgements back.
//!
//! Everything works in any context: hard interrupts (the 8254's timer), wake-ups of eventfds, and a vCPU's stay.
//!
//! # Lock order
//!
//! Reading `config` > `core` > scheduler and timer locks. No [`ports::AckListener`] is called under
//! `core`: it may raise the GSI again, itself or as an eventfd that an irqfd of this VM waits for.

mod image;
mod pit;
mod rtc;

use crate::bus::line::Source;
use crate::bus::ports::{self, IrqLines};
use crate::linux::hrtimer::ktime_get_ns;
use crate::linux::spin_irq::{Guard, RawSpin};
use crate::linux::version_cell::VersionCell;
use crate::x86::irqchip::deliver::{deliver, deliver_to_sint};
use crate::x86::irqchip::ioapic;
use crate::x86::irqchip::ioapic::{Ioapic, Pin, Pins, Written};
use crate::x86::irqchip::msg::{Message, TriggerMode, Vector};
use crate::x86::irqchip::pic;
use crate::x86::irqchip::pic::{Chip, Irq, Pic};
use crate::x86::irqchip::pit::Pit;
use crate::x86::irqchip::route::{Entry, Gsi, Route};
use crate::x86::irqchip::routing::Table;
use crate::x86::shared::VcpuSet;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::Arc;

pub(crate) use image::Image;

/// The GSI that the 8254 drives.
const PIT_GSI: Gsi = Gsi::FIRST;

/// No IOAPIC window begins here.
const NO_IOAPIC: u64 = u64::MAX - 0xfff;

/// Resampling irqfds that a GSI may have: an EOI signals them all within the stay.
const MAX_RESAMPLERS: usize = 256;

/// Who is told when the interrupt of a GSI ends.
pub(crate) type Resampler = ports::Resampler<Controllers>;

/// What user space configures; replaced as a whole.
struct Config {
    table: Arc<Table>,
    /// Sorted by GSI.
    resamplers: KVVec<Resampler>,
}

impl Config {
    fn resamplers_of(&self, gsi: Gsi) -> &[Resampler] {
        let gsi = gsi.number();
        let start = self.resamplers.partition_point(|r| r.gsi < gsi);
        let rest = self.resamplers.get(start..).unwrap_or(&[]);
        let len = rest.iter().take_while(|r| r.gsi == gsi).count();
        rest.get(..len).unwrap_or(&[])
    }

    fn signal(&self, controllers: &Controllers, gsi: Option<Gsi>) {
        for r in gsi.map_or(&[][..], |gsi| self.resamplers_of(gsi)) {
            r.listener.ended(controllers);
        }
    }

    fn is_resampled(&self, gsi: Option<Gsi>) -> bool {
        gsi.is_some_and(|gsi| !self.resamplers_of(gsi).is_empty())
    }
}

/// Ends of a level-triggered interrupt, each with the line still up, after which the next one has to wait (KVM's
/// IOAPIC_SUCCESSIVE_IRQ_MAX_COUNT): a guest that does not silence its device makes progress between them.
const STORM: u32 = 10_000;

/// The models. IOAPIC and 8259s exist together, or not at all (split irqchip).
#[derive(Default)]
struct Core {
    ioapic: Option<KBox<Ioapic>>,
    pic: Option<KBox<Pic>>,
    pit: Option<KBox<Pit>>,
    /// For each pin the ends of interrupts in a row that left its line up.
    ends: [u32; ioapic::PINS],
    /// How many vCPUs have not ended the last interrupt of [`RTC_PIN`] that user space wanted to hear of, and its
    /// vector.
    rtc: (i32, u8),
}

/// The IOAPIC's pin of the real-time clock. Though it is edge-triggered, user space is told whether the last interrupt
/// has been ended (as by KVM): one that comes before that is made up for later.
const RTC_PIN: u32 = 8;

/// The interrupt controllers of one VM outside its local APICs.
#[pin_data]
pub(crate) struct Controllers {
    vcpus: Arc<VcpuSet>,
    /// GSIs below this belong to an IOAPIC in user space (split irqchip).
    user_pins: u32,
    config: VersionCell<Config>,
    #[pin]
    core: RawSpin<Core>,
    /// Level of the 8259s' INTR line, as of the last change.
    intr: AtomicBool,
    /// A pin waits for [`Controllers::resume`].
    storm: AtomicBool,
    /// When a missed tick of the 8254 is due; 0: nobody has to be told.
    again: AtomicU64,
    /// Base address of the IOAPIC's window.
    ioapic_base: AtomicU64,
    /// Vectors whose EOI the IOAPIC or an ack listener wants.
    eoi_vectors: [AtomicU32; 8],
    /// Vectors of the level-triggered pins of user space's IOAPIC: it is told of their ends, whatever the trigger mode
    /// was that time, since a device may share one.
    user_vectors: [AtomicU32; 8],
    /// These, and those of earlier tables, of which one may be in flight: user space is told if that was a level. Only
    /// grows: an EOI too many is harmless to an IOAPIC in user space, one too few blocks the line.
    past_vectors: [AtomicU32; 8],
}

/// The lines of a bitmap.
fn irqs_in(mut bits: u32) -> impl Iterator<Item = Irq> {
    core::iter::from_fn(move || {
        let irq = Irq::new(bits.trailing_zeros())?;
        bits &= bits.wrapping_sub(1);
        Some(irq)
    })
}

fn contains(set: &[AtomicU32; 8], vector: u8) -> bool {
    let (word, bit) = Vector(vector).word_bit();
    set.get(word)
        .is_some_and(|w| w.load(Ordering::Acquire) & bit != 0)
}

impl IrqLines for Controllers {
    /// `source` drives `gsi` to `level`. Returns as KVM_IRQ_LINE_STATUS reports: the number of vCPUs reached, 0 when
    /// a request was pending already, negative when the interrupt is masked or has no route.
    fn set_irq(&self, gsi: u32, source: Source, level: bool) -> i32 {
        let Some(gsi) = Gsi::new(gsi) else { return -1 };
        match self.set_msi(gsi, level) {
            Some(result) => result,
            None => self.with(|s| s.drive(gsi, source, level)),
        }
    }

    /// `source` drives `gsi` up and down again.
    fn pulse(&self, gsi: u32, source: Source) {
        let Some(gsi) = Gsi::new(gsi) else { return };
        if self.set_msi(gsi, true).is_none() {
            self.with(|s| s.pulse(gsi, source));
        }
    }

    /// Adds a listener to the end of interrupts of its GSI. As [`Controllers::set_table`].
    fn add_resampler(&self, new: Resampler) -> Result {
        let gsi = Gsi::new(new.gsi).ok_or(EINVAL)?;
        if self.config.read().resamplers_of(gsi).len() >= MAX_RESAMPLERS {
            return Err(ENOSPC);
        }
        let mut resamplers = self.copy_resamplers(|_| true, 1)?;
        let at = resamplers.partition_point(|r| r.gsi <= new.gsi);
        resamplers
            .insert_within_capacity(at, new)
            .map_err(|_| ENOMEM)?;
        let table = self.config.read().table.clone();
        self.replace(Config { table, resamplers })
    }

    /// Removes what [`Controllers::add_resampler`] added. The line goes down if it was the last one of its GSI.
    fn remove_resampler(&self, old: &Resampler) -> Result {
        let resamplers = self.copy_resamplers(
            |r| r.gsi != old.gsi || !Arc::ptr_eq(&r.listener, &old.listener),
            0,
        )?;
        let last = !resamplers.iter().any(|r| r.gsi == old.gsi);
        let table = self.config.read().table.clone();
        self.replace(Config { table, resamplers })?;
        if last {
            self.set_irq(old.gsi, Source::RESAMPLE, false);
        }
        Ok(())
    }
}

impl Controllers {
    /// IOAPIC and 8259s in reset state, with the default routes.
    pub(crate) fn new_full(vcpus: Arc<VcpuSet>) -> Result<Arc<Self>> {
        let core = Core {
            ioapic: Some(KBox::new(Ioapic::default(), GFP_KERNEL_ACCOUNT)?),
            pic: Some(KBox::new(Pic::new(), GFP_KERNEL_ACCOUNT)?),
            ..Core::default()
        };
        Self::new(vcpus, 0, Table::new_default()?, core)
    }

    /// No controllers and no routes; user space has an IOAPIC with `user_pins` pins, which are the first GSIs.
    pub(crate) fn new_split(vcpus: Arc<VcpuSet>, user_pins: u32) -> Result<Arc<Self>> {
        Self::new(vcpus, user_pins, Table::empty(), Core::default())
    }

    fn new(vcpus: Arc<VcpuSet>, user_pins: u32, table: Table, core: Core) -> Result<Arc<Self>> {
        let table = Arc::new(table, GFP_KERNEL_ACCOUNT)?;
        let base = core.ioapic.as_ref().map_or(NO_IOAPIC, |i| i.base_address());
        Arc::pin_init(
            try_pin_init!(Self {
                vcpus,
                user_pins,
                config: VersionCell::new(Config { table, resamplers: KVVec::new() })?,
                core <- RawSpin::new(core, c"Controllers.core", static_lock_class!()),
                intr: AtomicBool::new(false),
                storm: AtomicBool::new(false),
                again: AtomicU64::new(0),
                ioapic_base: AtomicU64::new(base),
                eoi_vectors: [const { AtomicU32::new(0) }; 8],
                user_vectors: [const { AtomicU32::new(0) }; 8],
                past_vectors: [const { AtomicU32::new(0) }; 8],
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Runs `f` with the models locked, then passes on what came of it.
    fn with<R>(&self, f: impl FnOnce(&mut Session<'_>) -> R) -> R {
        let config = self.config.read();
        let mut s = Session {
            owner: self,
            config: &config,
            core: self.core.lock_irqsave(),
            pins: 0,
            irqs: 0,
            tells: false,
        };
        let result = f(&mut s);
        s.update_intr();
        let Session {
            core, pins, irqs, ..
        } = s;
        drop(core);
        for pin in Pins(pins) {
            config.signal(self, config.table.gsi_of_pin(pin));
        }
        for irq in irqs_in(irqs) {
            config.signal(self, config.table.gsi_of_irq(irq));
        }
        result
    }

    /// Sends a message that no local APIC sends. Returns how many vCPUs accepted it.
    pub(crate) fn send(&self, message: &Message) -> i32 {
        let vector = message.vector.0;
        let watched = contains(&self.eoi_vectors, vector) || contains(&self.user_vectors, vector);
        deliver(&self.vcpus, message, None, watched) as i32
    }

    /// As [`Controllers::set_irq`] for user space that wants the result (KVM_IRQ_LINE_STATUS).
    pub(crate) fn set_irq_status(&self, gsi: u32, level: bool) -> i32 {
        let Some(gsi) = Gsi::new(gsi) else { return -1 };
        match self.set_msi(gsi, level) {
            Some(result) => result,
            None => self.with(|s| {
                s.tells = true;
                s.drive(gsi, Source::USER, level)
            }),
        }
    }

    /// As [`Controllers::set_irq`] if `gsi` is an MSI or goes nowhere; `None` if it goes to controllers.
    fn set_msi(&self, gsi: Gsi, level: bool) -> Option<i32> {
        let config = self.config.read();
        match config.table.routes(gsi) {
            [] => Some(-1),
            [Entry { route, .. }] => {
                if let Route::Sint { vp, sint } = *route {
                    return Some(if level { self.send_sint(vp, sint) } else { -1 });
                }
                let message = route.message(self.vcpus.msi_format())?;
                Some(if level { self.send(&message) } else { -1 })
            }
            _ => None,
        }
    }

    /// Sends the interrupt of a SINT. As [`Controllers::set_irq`].
    fn send_sint(&self, vp: u32, sint: u32) -> i32 {
        deliver_to_sint(&self.vcpus, vp, sint).map_or(-1, i32::from)
    }

    /// The guest has done with what a SINT told it.
    pub(crate) fn sint_ended(&self, vp: u32, sint: u32) {
        let config = self.config.read();
        for gsi in config.table.gsis_of_sint(vp, sint) {
            config.signal(self, Some(gsi));
        }
    }

    /// Somebody who drives `gsi` as [`Source::RESAMPLE`] gives up, or user space has seen its interrupt's end: the GSI
    /// goes down, and up again if one of the listeners still wants it.
    pub(crate) fn resample(&self, gsi: u32) {
        self.set_irq(gsi, Source::RESAMPLE, false);
        self.config.read().signal(self, Gsi::new(gsi));
    }

    /// A local APIC ended an interrupt of this vector. Returns whether user space has to be told.
    pub(crate) fn eoi(&self, vector: u8, level: bool) -> bool {
        if contains(&self.eoi_vectors, vector) {
            self.with(|s| s.eoi(Vector(vector), level));
        }
        contains(&self.user_vectors, vector) || level && contains(&self.past_vectors, vector)
    }

    /// A word of the set of vectors whose EOI the IOAPIC, wherever it is, or an ack listener wants.
    pub(crate) fn eoi_vectors(&self, word: usize) -> u32 {
        [&self.eoi_vectors, &self.user_vectors]
            .iter()
            .filter_map(|set| set.get(word))
            .fold(0, |all, w| all | w.load(Ordering::Acquire))
    }

    /// Whether an interrupt storm was stopped since the last call: [`Controllers::resume`] has to be called after a
    /// while.
    #[inline]
    pub(crate) fn take_storm(&self) -> bool {
        self.storm.load(Ordering::Relaxed) && self.storm.swap(false, Ordering::Relaxed)
    }

    /// Delivers the interrupts of level-triggered pins that wait.
    pub(crate) fn resume(&self) {
        self.with(|s| {
            for pin in Pins((1 << ioapic::PINS) - 1) {
                s.service(pin);
            }
        });
    }

    /// Level of the 8259s' INTR line.
    #[inline]
    pub(crate) fn intr(&self) -> bool {
        self.intr.load(Ordering::Acquire)
    }

    /// INTA cycle: the vector, `None` without 8259s.
    pub(crate) fn acknowledge(&self) -> Option<u8> {
        self.with(|s| {
            let vector = s.core.pic.as_mut()?.ack();
            s.pic_acked();
            Some(vector.0)
        })
    }

    /// Reads a port of the 8259s.
    pub(crate) fn pic_read(&self, port: u16) -> u8 {
        self.with(|s| {
            let value = s.core.pic.as_mut().map_or(0xff, |p| p.read(port));
            s.pic_acked();
            value
        })
    }

    /// Writes a port of the 8259s.
    pub(crate) fn pic_write(&self, port: u16, value: u8) {
        self.with(|s| {
            let irq = s.pit_irq();
            let masked = |s: &Session<'_>| match (irq, &s.core.pic) {
                (Some(irq), Some(pic)) => pic.is_masked(irq),
                _ => true,
            };
            let was_masked = masked(s);
            if let Some(pic) = &mut s.core.pic {
                pic.write(port, value);
            }
            s.pic_acked();
            if was_masked && !masked(s) {
                s.pit_unmasked();
            }
        });
    }

    /// State of one 8259 (`struct kvm_pic_state`).
    pub(crate) fn pic_state(&self, chip: Chip) -> Option<[u8; 16]> {
        self.with(|s| s.core.pic.as_ref().map(|p| p.get_state(chip)))
    }

    /// Loads the state of one 8259.
    pub(crate) fn set_pic_state(&self, chip: Chip, state: &[u8; 16]) {
        self.with(|s| {
            if let Some(pic) = &mut s.core.pic {
                pic.set_state(chip, state);
            }
        });
    }

    /// State of the IOAPIC.
    pub(crate) fn ioapic_state(&self) -> Option<ioapic::State> {
        self.with(|s| s.core.ioapic.as_ref().map(|i| i.get_state()))
    }

    /// Loads the state of the IOAPIC.
    pub(crate) fn set_ioapic_state(&self, state: &ioapic::State) {
        self.with(|s| {
            let Some(ioapic) = &mut s.core.ioapic else {
                return;
            };
            let up = ioapic.set_state(state);
            let rtc = Pin::new(RTC_PIN).map(|pin| ioapic.message(pin).vector.0);
            if rtc != Some(s.core.rtc.1) {
                s.core.rtc = (0, 0);
            }
            self.ioapic_base
                .store(state.base_address, Ordering::Release);
            s.publish();
            for pin in up {
                let message = s.core.ioapic.as_mut().and_then(|i| i.reassert(pin));
                if let Some(m) = message {
                    let _ = s.fire(pin, &m);
                }
            }
        });
    }

    fn ioapic_offset(&self, gpa: u64) -> Option<u32> {
        let offset = gpa.wrapping_sub(self.ioapic_base.load(Ordering::Acquire));
        (offset < ioapic::WINDOW).then_some(offset as u32)
    }

    /// Reads from the IOAPIC's window. False if it is not there.
    pub(crate) fn ioapic_read(&self, gpa: u64, buf: &mut [u8]) -> bool {
        let Some(offset) = self.ioapic_offset(gpa) else {
            return false;
        };
        let value = self
            .core
            .lock_irqsave()
            .ioapic
            .as_ref()
            .map_or(0, |i| i.read(offset));
        // Registers have 32 bits: narrower accesses see the low part, wider ones zeros above.
        for (to, from) in buf.iter_mut().zip(u64::from(value).to_le_bytes()) {
            *to = from;
        }
        true
    }

    /// Writes into the IOAPIC's window. False if it is not there.
    pub(crate) fn ioapic_write(&self, gpa: u64, data: &[u8]) -> bool {
        let Some(offset) = self.ioapic_offset(gpa) else {
            return false;
        };
        if !matches!(data.len(), 1 | 2 | 4 | 8) {
            return true;
        }
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        self.with(|s| s.ioapic_write(offset, u32::from_le_bytes(bytes)));
        true
    }

    /// Puts a routing table in force. When it returns nobody uses the old one. The caller excludes other changes of
    /// the configuration; sleeps.
    pub(crate) fn set_table(&self, table: Table) -> Result {
        self.publish_user(&table);
        let table = Arc::new(table, GFP_KERNEL_ACCOUNT)?;
        let resamplers = self.copy_resamplers(|_| true, 0)?;
        self.replace(Config { table, resamplers })
    }

    /// Tells EOIs which vectors matter to user space.
    fn publish_user(&self, table: &Table) {
        let now = table.level_vectors(self.user_pins);
        for ((now, past), from) in self.user_vectors.iter().zip(&self.past_vectors).zip(now) {
            past.fetch_or(from, Ordering::AcqRel);
            now.store(from, Ordering::Release);
        }
    }

    fn copy_resamplers(
        &self,
        keep: impl Fn(&Resampler) -> bool,
        more: usize,
    ) -> Result<KVVec<Resampler>> {
        ports::copy_resamplers(&self.config.read().resamplers, keep, more)
    }

    fn replace(&self, config: Config) -> Result {
        let config = KBox::new(config, GFP_KERNEL_ACCOUNT)?;
        drop(self.config.replace(config));
        self.with(|s| s.publish());
        Ok(())
    }
}

/// One operation on the models.
struct Session<'a> {
    owner: &'a Controllers,
    config: &'a Config,
    core: Guard<'a, Core>,
    /// IOAPIC pins whose resampling eventfds are to be signalled.
    pins: u32,
    /// 8259 lines whose resampling eventfds are to be signalled.
    irqs: u32,
    /// User space asks what comes of it.
    tells: bool,
}

impl Session<'_> {
    /// Drives a GSI that goes to controllers; as [`Controllers::set_irq`].
    fn drive(&mut self, gsi: Gsi, source: Source, level: bool) -> i32 {
        let config = self.config;
        let mut total = -1i32;
        for e in config.table.routes(gsi) {
            let n = match e.route {
                Route::Pic(irq) => self.drive_irq(irq, source, level),
                Route::Ioapic(pin) => self.drive_pin(pin, source, level),
                // In these two the route has changed since the caller looked.
                Route::Sint { vp, sint } if level => self.owner.send_sint(vp, sint),
                Route::Sint { .. } => -1,
                Route::Msi { .. } => match e.route.message(self.owner.vcpus.msi_format()) {
                    Some(m) if level => self.owner.send(&m),
                    _ => -1,
                },
            };
            if n >= 0 {
                total = total.max(0).saturating_add(n);
            }
        }
        total
    }

    fn pulse(&mut self, gsi: Gsi, source: Source) {
        self.drive(gsi, source, true);
        self.drive(gsi, source, false);
    }

    fn drive_irq(&mut self, irq: Irq, source: Source, level: bool) -> i32 {
        let Some(pic) = &mut self.core.pic else {
            return -1;
        };
        let raised = pic.set_irq(irq, source, level);
        if pic.is_masked(irq) {
            return -1;
        }
        match raised {
            // No edge is no news; KVM reports it as delivered.
            pic::Raised::Lowered | pic::Raised::Pending | pic::Raised::NoEdge => 1,
            pic::Raised::Coalesced => 0,
            pic::Raised::Masked => -1,
        }
    }

    fn drive_pin(&mut self, pin: Pin, source: Source, level: bool) -> i32 {
        let rtc = self.tells && level && pin.number() == RTC_PIN;
        if rtc && self.core.rtc.0 > 0 {
            return 0;
        }
        let Some(ioapic) = &mut self.core.ioapic else {
            return -1;
        };
        match ioapic.set_irq(pin, source, level) {
            ioapic::Raised::Lowered => 1,
            // A level-triggered interrupt in service counts as masked (as in KVM).
            ioapic::Raised::Coalesced if ioapic.trigger(pin) == TriggerMode::Level => -1,
            ioapic::Raised::Coalesced => 0,
            ioapic::Raised::Masked => -1,
            ioapic::Raised::Message(m) => {
                let accepted = self.fire(pin, &m);
                if rtc {
                    self.core.rtc = (accepted, m.vector.0);
                }
                accepted
            }
        }
    }

    /// Sends the message of `pin`.
    fn fire(&mut self, pin: Pin, message: &Message) -> i32 {
        let message = Message {
            // The destination has 8 bits; whether 0xff means everybody is for user space to say.
            dest_is_8bit: !self.owner.vcpus.msi_format().no_broadcast_quirk,
            ..*message
        };
        let accepted = self.owner.send(&message);
        if accepted == 0 {
            if let Some(ioapic) = &mut self.core.ioapic {
                ioapic.not_accepted(pin);
            }
        }
        accepted
    }

    /// Sends the message of a level-triggered pin that is still up.
    fn service(&mut self, pin: Pin) {
        let message = self.core.ioapic.as_mut().and_then(|i| i.service(pin));
        if let Some(m) = message {
            let _ = self.fire(pin, &m);
        }
    }

    /// The interrupt of `gsi` ended. Returns whether resampling eventfds are to be signalled.
    fn acked(&mut self, gsi: Option<Gsi>) -> bool {
        let Some(number) = gsi else { return false };
        if let (Some(PIT_GSI), Some(pit)) = (gsi, &mut self.core.pit) {
            if let Some(at) = pit.irq_acked(ktime_get_ns()) {
                self.owner.again.store(at, Ordering::Relaxed);
            }
        }
        let resampled = self.config.is_resampled(gsi);
        if resampled {
            // Down once for all of them, before anyone asserts anew.
            self.drive(number, Source::RESAMPLE, false);
        }
        resampled
    }

    fn eoi(&mut self, vector: Vector, level: bool) {
        let rtc = &mut self.core.rtc;
        if rtc.0 > 0 && rtc.1 == vector.0 {
            rtc.0 -= 1;
        }
        let pins = self
            .core
            .ioapic
            .as_mut()
            .map_or(Pins(0), |i| i.eoi(vector, level));
        for pin in pins {
            if self.acked(self.config.table.gsi_of_pin(pin)) {
                self.pins |= 1 << (pin.number() & 31);
            }
        }
        for pin in pins {
            self.service_again(pin);
        }
    }

    /// [`Session::service`] after the end of an interrupt, unless that happens too often with the line still up.
    fn service_again(&mut self, pin: Pin) {
        let waits = self.core.ioapic.as_ref().is_some_and(|i| i.waits(pin));
        let Some(ends) = self.core.ends.get_mut(pin.number() as usize) else {
            return;
        };
        *ends = if waits { *ends + 1 } else { 0 };
        if *ends < STORM {
            self.service(pin);
        } else {
            *ends = 0;
            self.owner.storm.store(true, Ordering::Relaxed);
        }
    }

    fn pic_acked(&mut self) {
        let Some(pic) = &mut self.core.pic else {
            return;
        };
        let lines = pic.take_acked();
        if lines == 0 {
            return;
        }
        for irq in irqs_in(lines.into()) {
            if self.acked(self.config.table.gsi_of_irq(irq)) {
                self.irqs |= 1 << (irq.number() & 31);
            }
        }
    }

    /// Line of the 8259s that the 8254 is routed to.
    fn pit_irq(&self) -> Option<Irq> {
        self.core.pit.as_ref()?;
        self.config
            .table
            .routes(PIT_GSI)
            .iter()
            .find_map(|e| match e.route {
                Route::Pic(irq) => Some(irq),
                _ => None,
            })
    }

    /// The 8254's line was unmasked in a controller: what it missed before does not count.
    fn pit_unmasked(&mut self) {
        if let Some(pit) = &mut self.core.pit {
            pit.reset_reinject();
        }
    }

    fn ioapic_write(&mut self, offset: u32, value: u32) {
        let Some(ioapic) = &mut self.core.ioapic else {
            return;
        };
        match ioapic.write(offset, value) {
            Written::Nothing => {}
            Written::Entry {
                pin,
                mask_changed,
                waiting,
            } => {
                let unmasked = mask_changed && !ioapic.is_masked(pin);
                self.publish();
                let gsi = self.config.table.gsi_of_pin(pin);
                if unmasked && gsi == Some(PIT_GSI) {
                    self.pit_unmasked();
                }
                if waiting {
                    // The device may have lowered the line while it was masked, and nobody asked it (a one-shot
                    // interrupt whose handler ran after the EOI). Ask it now; if it still wants the interrupt it
                    // asserts.
                    if let (Some(gsi), true) = (gsi, self.config.is_resampled(gsi)) {
                        self.drive(gsi, Source::RESAMPLE, false);
                        self.pins |= 1 << (pin.number() & 31);
                    }
                    self.service(pin);
                }
            }
        }
    }

    /// Tells EOIs which vectors matter.
    fn publish(&mut self) {
        let Some(ioapic) = &self.core.ioapic else {
            return;
        };
        let has_pit = self.core.pit.is_some();
        let mut listened = 0u32;
        for pin in (0..ioapic::PINS as u32).filter_map(Pin::new) {
            let gsi = self.config.table.gsi_of_pin(pin);
            if has_pit && gsi == Some(PIT_GSI)
                || self.config.is_resampled(gsi)
                || pin.number() == RTC_PIN
            {
                listened |= 1 << (pin.number() & 31);
            }
        }
        let mut vectors = ioapic.vectors(Pins(listened));
        // The end that is waited for may be of a vector that the pin has had.
        if self.core.rtc.0 > 0 {
            let (word, bit) = Vector(self.core.rtc.1).word_bit();
            vectors[word & 7] |= bit;
        }
        for (to, from) in self.owner.eoi_vectors.iter().zip(vectors) {
            to.store(from, Ordering::Release);
        }
    }

    /// Publishes the level of INTR, and tells who is wired to it when it rises.
    fn update_intr(&mut self) {
        let Some(pic) = &self.core.pic else { return };
        let now = pic.output();
        let before = self.owner.intr.load(Ordering::Relaxed);
        if now != before {
            self.owner.intr.store(now, Ordering::SeqCst);
        }
        if now && !before {
            self.owner.vcpus.intr_rises();
        }
    }
}
