// SPDX-License-Identifier: GPL-2.0
//! The interrupt controller of a VM, its inputs, and where it is in guest memory.
//!
//! One lock, which any context takes. A vCPU whose next interrupt may be another one now has its `look` set and is
//! kicked after the lock is free. It fills its list registers before an entry and takes back what they hold after the
//! exit, so that between exits all state is here.

use crate::arm64::shared::VcpuSet;
use crate::arm64::vgic::lists::Lists;
use crate::arm64::vgic::lpis::Sent;
use crate::arm64::vgic::mmio::{By, Frame, Then, FRAME, REDISTRIBUTOR};
use crate::arm64::vgic::state::{
    bits, Cpu, CpuMask, Gic, LpiBanks, Lpis, Shared, AFFINITY, BANK, FIRST_LPI, LPI_BANKS,
    MAX_CPUS, MAX_INTIDS, NOBODY, SGIS, TABLE_RESET,
};
use crate::arm64::vgic::tables::Its;
use crate::arm64::vgic::translation::{Event, FRAMES};
use crate::bus::line::Source;
use crate::bus::ports::{self, IrqLines, Resampler};
use crate::linux::once::Once;
use crate::linux::spin_irq::RawSpin;
use crate::linux::version_cell::VersionCell;
use crate::nospec::Nospec;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::{new_mutex, Arc, ArcBorrow, Mutex};

/// Interrupts where user space does not say how many (KVM: those of older kernels).
const DEFAULT_INTIDS: u32 = 256;

/// Redistributors in a row.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) base: u64,
    /// How many; 0: as many as there are vCPUs left.
    pub(crate) count: u32,
}

/// What user space has said so far.
pub(crate) struct Config {
    /// Numbers of interrupts; 0: nothing said.
    pub(crate) intids: u32,
    pub(crate) distributor: Option<u64>,
    pub(crate) regions: KVec<Region>,
    /// KVM_DEV_ARM_VGIC_CTRL_INIT has been called.
    pub(crate) is_initialized: bool,
}

impl Config {
    /// Base, index of the first vCPU, and how many, of each region, if there are `all` vCPUs.
    fn rows(&self, all: u32) -> impl Iterator<Item = (u64, u32, u32)> + '_ {
        let mut first = 0u32;
        self.regions.iter().map(move |r| {
            let left = all.saturating_sub(first);
            let count = if r.count == 0 {
                left
            } else {
                left.min(r.count)
            };
            let row = (r.base, first, count);
            first = first.saturating_add(count);
            row
        })
    }
}

/// Where everything is in guest memory, fixed with the first KVM_RUN.
struct Places {
    distributor: u64,
    /// Base and index of the first vCPU, and how many.
    regions: KVec<(u64, u32, u32)>,
}

/// What GSIs are numbers of.
pub(crate) const MAX_GSIS: u32 = 4096;
/// SPIs that a GSI can lead to (KVM_IRQCHIP_NUM_PINS).
pub(crate) const PINS: u32 = 1020 - BANK;
/// A GSI that leads nowhere.
pub(crate) const NOWHERE: u16 = u16::MAX;
/// Interrupt translation services that a VM may have.
const MAX_ITS: usize = 16;
/// Banks of LPIs that are made together.
const CHUNK: usize = 32;

/// A message of a device: an event, where it writes it.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    pub(crate) gsi: u32,
    pub(crate) address: u64,
    pub(crate) device: u32,
    pub(crate) event: u32,
}

/// Banks of LPIs, [`CHUNK`] of them together.
struct Banks(KVVec<KVVec<Shared>>);

impl LpiBanks for Banks {
    #[inline]
    fn bank(&self, n: usize) -> Option<&Shared> {
        self.0.get_nospec(n / CHUNK)?.get_nospec(n % CHUNK)
    }

    #[inline]
    fn bank_mut(&mut self, n: usize) -> Option<&mut Shared> {
        let chunk = self.0.get_nospec_mut(n / CHUNK)?;
        chunk.get_nospec_mut(n % CHUNK)
    }
}

/// Irqfds with resampling that a VM may have.
const MAX_RESAMPLERS: usize = 512;

/// Where inputs lead, and who is told of ends.
struct Wires {
    /// By GSI: the SPI, counted from 32, or [`NOWHERE`]. `None`: GSI n is SPI n.
    routes: Option<KVVec<u16>>,
    /// GSIs of messages, in their order.
    messages: KVVec<Message>,
    resamplers: KVVec<Resampler<Vgic>>,
}

impl Wires {
    /// The SPI, counted from 32, that `gsi` leads to.
    fn pin(&self, gsi: u32) -> Option<u32> {
        match &self.routes {
            None => Some(gsi),
            Some(table) => match *table.get_nospec(gsi as usize)? {
                NOWHERE => None,
                pin => Some(pin.into()),
            },
        }
    }

    /// The message that `gsi` is.
    fn message(&self, gsi: u32) -> Option<Message> {
        let at = self.messages.binary_search_by_key(&gsi, |m| m.gsi);
        self.messages.get(at.ok()?).copied()
    }
}

struct Inner {
    enabled: bool,
    cpus: KVVec<Cpu>,
    shared: KVVec<Shared>,
    lpis: Lpis,
    banks: Banks,
    look: CpuMask,
    ended: bool,
}

/// The interrupt controller.
#[pin_data]
pub(crate) struct Vgic {
    vcpus: Arc<VcpuSet>,
    #[pin]
    pub(crate) config: Mutex<Config>,
    places: Once<KBox<Places>>,
    /// Changed under `config`.
    wires: VersionCell<Wires>,
    /// The first ones are there.
    its: [Once<Arc<Its>>; MAX_ITS],
    #[pin]
    inner: RawSpin<Inner>,
    ready: AtomicBool,
}

impl Vgic {
    /// One that user space has said nothing about yet.
    pub(crate) fn new(vcpus: Arc<VcpuSet>) -> Result<Arc<Self>> {
        let inner = Inner {
            enabled: false,
            cpus: KVVec::new(),
            shared: KVVec::new(),
            lpis: Lpis::RESET,
            banks: Banks(KVVec::new()),
            look: CpuMask::default(),
            ended: false,
        };
        let wires = VersionCell::new(Wires {
            routes: None,
            messages: KVVec::new(),
            resamplers: KVVec::new(),
        })?;
        Arc::pin_init(
            pin_init!(Self {
                vcpus,
                config <- new_mutex!(Config {
                    intids: 0,
                    distributor: None,
                    regions: KVec::new(),
                    is_initialized: false,
                }),
                places: Once::new(),
                wires,
                its: [const { Once::new() }; MAX_ITS],
                inner <- RawSpin::new(inner, c"Chip.inner", static_lock_class!()),
                ready: AtomicBool::new(false),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// It has been initialised: its state is there.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// KVM_DEV_ARM_VGIC_CTRL_INIT: from now on there are the interrupts of the vCPUs that are there, and no more. The
    /// caller excludes new vCPUs.
    pub(crate) fn init(&self) -> Result {
        let mut config = self.config.lock();
        if config.is_initialized {
            return Ok(());
        }
        if config.intids == 0 {
            config.intids = DEFAULT_INTIDS;
        }
        let banks = (config.intids / BANK).saturating_sub(1) as usize;
        let count = self.vcpus.len() as usize;
        if count > MAX_CPUS {
            return Err(E2BIG);
        }
        let mut cpus = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for v in self.vcpus.iter() {
            let affinity = (v.arch.mpidr() & AFFINITY) as u32;
            let _ = cpus.push_within_capacity(Cpu::new(affinity, v.id));
        }
        let zero = cpus.iter().position(|c: &Cpu| c.affinity == 0);
        let zero = zero.map_or(NOBODY, |n| n as u16);
        let mut shared = KVVec::with_capacity(banks, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..banks {
            let _ = shared.push_within_capacity(Shared::new(zero));
        }
        let mut inner = self.inner.lock_irqsave();
        (inner.cpus, inner.shared) = (cpus, shared);
        drop(inner);
        self.mark_last(&config);
        config.is_initialized = true;
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Redistributors know which of them are the last ones of their regions, after either has changed.
    pub(crate) fn mark_last(&self, config: &Config) {
        let all = self.vcpus.len();
        let mut inner = self.inner.lock_irqsave();
        inner.cpus.iter_mut().for_each(|c| c.last = false);
        for (region, (base, first, count)) in config.regions.iter().zip(config.rows(all)) {
            let end = base.wrapping_add(u64::from(count).wrapping_mul(REDISTRIBUTOR));
            // It goes on in another region.
            let goes_on =
                count == region.count && config.rows(all).any(|(base, _, n)| base == end && n > 0);
            // One without any has no last one.
            let last = count.checked_sub(1).and_then(|n| first.checked_add(n));
            if let Some(c) = last.and_then(|n| inner.cpus.get_nospec_mut(n as usize)) {
                c.last = !goes_on;
            }
        }
    }

    /// Before a vCPU runs for the first time: places are fixed. ENXIO: user space has not said them all; EINVAL: they
    /// collide, or are past the end of guest memory; EBUSY: not initialised (KVM's answers).
    pub(crate) fn fix_places(&self, address_bits: u32) -> Result {
        if self.places.get().is_some() {
            return Ok(());
        }
        let config = self.config.lock();
        let distributor = config.distributor.ok_or(ENXIO)?;
        if config.regions.is_empty() {
            return Err(ENXIO);
        }
        let bad = |base: u64, count: u32| {
            let end = base.saturating_add(u64::from(count).saturating_mul(REDISTRIBUTOR));
            let collides = base < distributor.saturating_add(FRAME) && distributor < end;
            collides || end > 1 << address_bits
        };
        let mut regions = KVec::with_capacity(config.regions.len(), GFP_KERNEL_ACCOUNT)?;
        let mut next = 0u32;
        for (base, first, count) in config.rows(self.vcpus.len()) {
            let _ = regions.push_within_capacity((base, first, count));
            next = first.saturating_add(count);
        }
        if next < self.vcpus.len() {
            return Err(ENXIO);
        }
        if regions.iter().any(|r| bad(r.0, r.2)) {
            return Err(EINVAL);
        }
        if !self.is_ready() {
            return Err(EBUSY);
        }
        let places = Places {
            distributor,
            regions,
        };
        self.places.set(KBox::new(places, GFP_KERNEL_ACCOUNT)?);
        Ok(())
    }

    /// Whether vCPUs have run.
    pub(crate) fn is_fixed(&self) -> bool {
        self.places.get().is_some()
    }

    /// What is at `gpa`, and how far from its beginning.
    #[inline]
    pub(crate) fn at(&self, gpa: u64) -> Option<(Frame, u64)> {
        let places = self.places.get()?;
        let offset = gpa.wrapping_sub(places.distributor);
        if offset < FRAME {
            return Some((Frame::Distributor, offset));
        }
        places.regions.iter().find_map(|(base, first, count)| {
            let offset = gpa.wrapping_sub(*base);
            if offset >= u64::from(*count).wrapping_mul(REDISTRIBUTOR) {
                return None;
            }
            let cpu = (*first as usize).wrapping_add((offset / REDISTRIBUTOR) as usize);
            let within = offset % REDISTRIBUTOR;
            Some(if within < FRAME {
                (Frame::Control(cpu), within)
            } else {
                (Frame::Private(cpu), within - FRAME)
            })
        })
    }

    /// Whether what an access there wants may sleep: it is one to an ITS, or to where LPIs are switched on.
    pub(crate) fn needs_sleep(&self, gpa: u64, write: bool) -> bool {
        let Some(first) = self.its.first() else {
            return false;
        };
        first.get().is_some()
            && (self.its_at(gpa).is_some()
                || write
                    && self
                        .at(gpa)
                        .is_some_and(|(frame, at)| Gic::needs_sleep(frame, at)))
    }

    /// The ITS that is at `gpa`, and how far from its beginning. Any context.
    #[inline]
    pub(crate) fn its_at(&self, gpa: u64) -> Option<(ArcBorrow<'_, Its>, u64)> {
        self.all_its().find_map(|its| {
            let base = its.base();
            let offset = gpa.wrapping_sub(base);
            (base != Its::UNDEFINED && offset < FRAMES).then_some((its, offset))
        })
    }

    /// All that there are.
    pub(crate) fn all_its(&self) -> impl Iterator<Item = ArcBorrow<'_, Its>> {
        self.its.iter().map_while(|its| its.get())
    }

    /// Makes one. From then on there are LPIs. ENOSPC: there are too many.
    pub(crate) fn add_its(&self) -> Result<Arc<Its>> {
        let _config = self.config.lock();
        let place = self.its.iter().find(|its| its.get().is_none());
        let place = place.ok_or(ENOSPC)?;
        let mut chunks = KVVec::with_capacity(LPI_BANKS / CHUNK, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..LPI_BANKS / CHUNK {
            let _ = chunks.push_within_capacity(KVVec::new());
        }
        let its = Its::new()?;
        let mut inner = self.inner.lock_irqsave();
        if inner.banks.0.is_empty() {
            core::mem::swap(&mut inner.banks.0, &mut chunks);
        }
        inner.lpis.offered = true;
        inner.lpis.properties = TABLE_RESET;
        drop(inner);
        place.set(its.clone());
        Ok(its)
    }

    /// There are banks for this LPI from now on. EINVAL: there is no such LPI.
    pub(crate) fn make_room(&self, lpi: u32) -> Result {
        let n = (lpi.checked_sub(FIRST_LPI).ok_or(EINVAL)? / BANK) as usize;
        if n >= LPI_BANKS {
            return Err(EINVAL);
        }
        let is_there = |banks: &Banks| banks.bank(n).is_some();
        if is_there(&self.inner.lock_irqsave().banks) {
            return Ok(());
        }
        let mut chunk = KVVec::from_elem(Shared::new(NOBODY), CHUNK, GFP_KERNEL_ACCOUNT)?;
        let mut inner = self.inner.lock_irqsave();
        // Another ITS may have been faster.
        if let Some(place) = inner.banks.0.get_nospec_mut(n / CHUNK) {
            if place.is_empty() {
                core::mem::swap(place, &mut chunk);
            }
        }
        drop(inner);
        Ok(())
    }

    /// The banks of LPIs that there are, looked for as they are taken.
    pub(crate) fn made_banks(&self) -> impl Iterator<Item = usize> + '_ {
        let made = |first: &usize| self.inner.lock_irqsave().banks.bank(*first).is_some();
        let chunks = (0..LPI_BANKS).step_by(CHUNK).filter(made);
        chunks.flat_map(|first| first..first.wrapping_add(CHUNK))
    }

    /// The index of the vCPU whose processor has this number.
    pub(crate) fn vcpu_index(&self, number: u32) -> Option<u32> {
        self.vcpus.with_id(number).map(|v| v.index)
    }

    /// An event of an ITS. Any context. False: it leads nowhere. EBUSY: the ITS is off, or the vCPU takes no LPIs.
    pub(crate) fn translate(&self, its: &Its, device: u32, event: u32) -> Result<bool> {
        if !its.is_enabled() {
            return Err(EBUSY);
        }
        let found = Event::key(device, event).and_then(|key| its.event(key));
        let Some(found) = found else {
            return Ok(false);
        };
        match self.with(|g| g.message(found.lpi)) {
            Sent::Pending => Ok(true),
            Sent::Nowhere => Ok(false),
            Sent::Off => Err(EBUSY),
        }
    }

    /// A device writes a message. Any context. False: it leads nowhere. EINVAL: no ITS is there; EBUSY: as above.
    pub(crate) fn signal(&self, m: &Message) -> Result<bool> {
        let (its, _) = self.its_at(m.address).ok_or(EINVAL)?;
        self.translate(&its, m.device, m.event)
    }

    /// Runs `f` under the lock, and tells those who have to know. Any context.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Gic<'_>) -> R) -> R {
        let mut inner = self.inner.lock_irqsave();
        let i = &mut *inner;
        let gic = &mut Gic {
            enabled: &mut i.enabled,
            cpus: &mut i.cpus,
            shared: &mut i.shared,
            lpis: &mut i.lpis,
            lpi_banks: &mut i.banks,
            look: &mut i.look,
            ended: &mut i.ended,
        };
        let result = f(gic);
        let look = core::mem::take(&mut i.look);
        let ended = core::mem::take(&mut i.ended);
        drop(inner);
        if ended {
            self.tell_ends();
        }
        if look != CpuMask::default() {
            for index in look.iter() {
                if let Some(v) = self.vcpus.get(index) {
                    v.arch.set_look();
                    v.kick();
                }
            }
        }
        result
    }

    /// A guest's or user space's read.
    pub(crate) fn read(&self, frame: Frame, at: u64, len: usize, by: By) -> u64 {
        self.with(|g| g.read(frame, at, len, by))
    }

    /// A guest's or user space's write.
    pub(crate) fn write(&self, frame: Frame, at: u64, len: usize, value: u64, by: By) -> Then {
        self.with(|g| g.write(frame, at, len, value, by))
    }

    /// Fills the list registers of vCPU `cpu`.
    pub(crate) fn fill(&self, cpu: usize, count: usize, lists: &mut Lists, traps_dir: bool) {
        self.with(|g| g.fill(cpu, count, lists, traps_dir));
    }

    /// Takes back what they hold.
    pub(crate) fn fold(&self, cpu: usize, lists: &mut Lists, ends: u32) {
        self.with(|g| g.fold(cpu, lists, ends));
    }

    /// Whether vCPU `cpu` with this priority mask has something to wake up for.
    pub(crate) fn wakes(&self, cpu: usize, mask: u8) -> bool {
        self.with(|g| g.wakes(cpu, mask))
    }

    /// PPI `intid` of vCPU `cpu` gets `level`.
    pub(crate) fn set_private(&self, cpu: usize, intid: u32, level: bool) {
        self.with(|g| g.set_line(cpu, intid, level));
    }

    /// PPI `intid` of vCPU `cpu` is the one of the host's with number `host` from now on, or none of the host's.
    pub(crate) fn map_private(&self, cpu: usize, intid: u32, host: Option<u32>) {
        self.with(|g| {
            let Some(c) = g.cpus.get_nospec_mut(cpu) else {
                return;
            };
            c.mapped &= !(1 << (intid % BANK));
            if let Some((host, to)) = host.zip(c.host_intids.get_nospec_mut(intid as usize)) {
                *to = host as u16;
                c.mapped |= 1 << (intid % BANK);
            }
        });
    }

    /// Resampled lines whose interrupts have ended go down, and those are told who may assert them again.
    #[cold]
    fn tell_ends(&self) {
        let wires = self.wires.read();
        for index in 0..MAX_INTIDS / BANK {
            let mut inner = self.inner.lock_irqsave();
            let bank = inner.shared.get_nospec_mut(index as usize);
            let ended = bank.map_or(0, |s| core::mem::take(&mut s.ended));
            drop(inner);
            for pin in bits(ended).map(|bit| index.wrapping_mul(BANK).wrapping_add(bit)) {
                self.set_pin(pin, false);
                for r in wires.resamplers.iter() {
                    if wires.pin(r.gsi) == Some(pin) {
                        r.listener.ended(self);
                    }
                }
            }
        }
    }

    /// The input of an SPI, counted from 32, gets `level`, whoever has driven it before, as on KVM. Negative: there is
    /// no such.
    fn set_pin(&self, pin: u32, level: bool) -> i32 {
        if self.with(|gic| gic.set_line(0, pin.wrapping_add(BANK), level)) {
            1
        } else {
            -1
        }
    }

    /// KVM_SET_GSI_ROUTING: where GSIs lead; those of messages are in order. Before the controller is initialised it is
    /// forgotten, as in KVM.
    pub(crate) fn set_routes(&self, routes: KVVec<u16>, messages: KVVec<Message>) -> Result {
        let config = self.config.lock();
        if !config.is_initialized {
            return Ok(());
        }
        let resamplers = self.copy_resamplers(|_| true, 0)?;
        self.rewire(Wires {
            routes: Some(routes),
            messages,
            resamplers,
        })
    }

    /// Those of the resamplers that `keep` says, with room for `more`.
    fn copy_resamplers(
        &self,
        keep: impl Fn(&Resampler<Self>) -> bool,
        more: usize,
    ) -> Result<KVVec<Resampler<Self>>> {
        ports::copy_resamplers(&self.wires.read().resamplers, keep, more)
    }

    /// The table as it is, once more.
    fn copy_routes(&self) -> Result<(Option<KVVec<u16>>, KVVec<Message>)> {
        let wires = self.wires.read();
        let routes = match &wires.routes {
            Some(table) => Some(copy(table)?),
            None => None,
        };
        Ok((routes, copy(&wires.messages)?))
    }

    /// New wires, under `config`.
    fn rewire(&self, wires: Wires) -> Result {
        let mut watched = [0u32; (MAX_INTIDS / BANK) as usize];
        for pin in wires.resamplers.iter().filter_map(|r| wires.pin(r.gsi)) {
            if let Some(w) = watched.get_nospec_mut((pin / BANK) as usize) {
                *w |= 1 << (pin % BANK);
            }
        }
        drop(self.wires.replace(KBox::new(wires, GFP_KERNEL_ACCOUNT)?));
        let mut inner = self.inner.lock_irqsave();
        for (s, w) in inner.shared.iter_mut().zip(watched) {
            s.watched = w;
        }
        Ok(())
    }

    /// KVM_IRQ_LINE (api.rst 4.25): `number` says what and whose. EINVAL: there is no such input. EBUSY: the controller
    /// is not ready. ENXIO: inputs of vCPUs themselves are not there.
    pub(crate) fn irq_line(&self, number: u32, level: bool, timers: u32) -> Result<isize> {
        let (kind, intid) = (number >> 24 & 0xf, number & 0xffff);
        let vcpu = (number >> 28)
            .wrapping_mul(256)
            .wrapping_add(number >> 16 & 0xff);
        match kind {
            0 => return Err(ENXIO),
            1 | 2 if !self.is_ready() => return Err(EBUSY),
            _ => {}
        }
        match kind {
            2 if (SGIS..BANK).contains(&intid) => {
                let v = self.vcpus.with_id(vcpu).ok_or(EINVAL)?;
                // The timers' own nobody else drives.
                if timers >> intid & 1 == 0 {
                    self.set_private(v.index as usize, intid, level);
                }
                Ok(0)
            }
            1 if (BANK..MAX_INTIDS).contains(&intid) => match self.set_pin(intid - BANK, level) {
                n if n < 0 => Err(EINVAL),
                _ => Ok(0),
            },
            _ => Err(EINVAL),
        }
    }
}

fn copy<T: Copy>(list: &[T]) -> Result<KVVec<T>> {
    let mut copy = KVVec::with_capacity(list.len(), GFP_KERNEL_ACCOUNT)?;
    copy.extend_from_slice(list, GFP_KERNEL_ACCOUNT)?;
    Ok(copy)
}

impl IrqLines for Vgic {
    fn set_irq(&self, gsi: u32, _source: Source, level: bool) -> i32 {
        let wires = self.wires.read();
        if let Some(pin) = wires.pin(gsi) {
            drop(wires);
            return self.set_pin(pin, level);
        }
        let message = wires.message(gsi).filter(|_| level);
        drop(wires);
        match message.map(|m| self.signal(&m)) {
            Some(Ok(true)) => 1,
            Some(Ok(false)) => 0,
            _ => -1,
        }
    }

    fn pulse(&self, gsi: u32, source: Source) {
        // Each 1 is an edge; a level stays up until somebody else drives the input down, as on KVM.
        self.set_irq(gsi, source, true);
    }

    fn add_resampler(&self, new: Resampler<Self>) -> Result {
        let _config = self.config.lock();
        if self.wires.read().resamplers.len() >= MAX_RESAMPLERS {
            return Err(ENOSPC);
        }
        let mut resamplers = self.copy_resamplers(|_| true, 1)?;
        resamplers.push(new, GFP_KERNEL_ACCOUNT)?;
        let (routes, messages) = self.copy_routes()?;
        self.rewire(Wires {
            routes,
            messages,
            resamplers,
        })
    }

    /// The line goes down if it was the last one of its GSI.
    fn remove_resampler(&self, old: &Resampler<Self>) -> Result {
        let _config = self.config.lock();
        let is = |r: &Resampler<Self>| r.gsi == old.gsi && Arc::ptr_eq(&r.listener, &old.listener);
        let resamplers = self.copy_resamplers(|r| !is(r), 0)?;
        let last = !resamplers.iter().any(|r| r.gsi == old.gsi);
        let (routes, messages) = self.copy_routes()?;
        self.rewire(Wires {
            routes,
            messages,
            resamplers,
        })?;
        if last {
            self.set_irq(old.gsi, Source::RESAMPLE, false);
        }
        Ok(())
    }
}
