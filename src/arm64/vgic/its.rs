// SPDX-License-Identifier: GPL-2.0
//! What an interrupt translation service does: commands, and tables in guest memory (Arm IHI 0069 chapter 5; kernel
//! document virt/kvm/devices/arm-vgic-its.rst). As in KVM, commands that make no sense are passed over.
//!
//! All of this sleeps: guest memory is read where user space has it. Messages do not come here (`chip`).

use crate::arm64::vgic::chip::Vgic;
use crate::arm64::vgic::lpis::first_of;
use crate::arm64::vgic::mmio::{By, Frame, Then, PENDING_ZERO};
use crate::arm64::vgic::state::{bits, FIRST_LPI, NOBODY};
use crate::arm64::vgic::table::{self, Entry, Kind, Table, ENTRY, NUMBERS, PAGE};
use crate::arm64::vgic::tables::{Its, State};
use crate::arm64::vgic::translation::{
    self, Collection, Command, Device, Event, Refused, Registers, NONE,
};
use crate::linux::sched;
use crate::mem::addr::Gpa;
use crate::mem::memory::GuestMemory;
use crate::mem::ring::Ring;
use crate::nospec::Nospec;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Commands that a guest's write has carried out at most, before others get a turn.
const IN_ONE_GO: u32 = 256;

/// The controller, and the guest memory in which its tables are.
pub(crate) struct InMemory<'a> {
    pub(crate) vgic: &'a Vgic,
    pub(crate) memory: &'a GuestMemory,
    /// That of the vCPU for which it is written.
    pub(crate) ring: &'a Option<Arc<Ring>>,
}

impl InMemory<'_> {
    fn read<const N: usize>(&self, gpa: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.memory.view().read(Gpa(gpa), &mut bytes)?;
        Ok(bytes)
    }

    fn read_entry(&self, gpa: u64) -> Result<u64> {
        self.read(gpa).map(u64::from_le_bytes)
    }

    fn write_bytes(&self, gpa: u64, bytes: &[u8]) -> Result {
        Ok(self.memory.view_of(self.ring).write(Gpa(gpa), bytes)?)
    }

    fn write_entry(&self, gpa: u64, entry: u64) -> Result {
        self.write_bytes(gpa, &entry.to_le_bytes())
    }

    fn is_memory(&self, gpa: u64) -> bool {
        self.memory.view().memory_at(Gpa(gpa), false).is_some()
    }

    // --- redistributors: tables of LPIs ---

    /// A guest's or user space's write to the distributor or a redistributor.
    pub(crate) fn write(&self, frame: Frame, at: u64, len: usize, value: u64, by: By) {
        match self.vgic.write(frame, at, len, value, by) {
            Then::Nothing => {}
            Then::LpisOn(cpu) => self.load_pending(cpu),
            Then::LpisOff(cpu) => {
                for n in self.vgic.made_banks() {
                    self.vgic.with(|g| g.load_pending(n, cpu, 0));
                }
            }
            Then::Look(intid) => {
                if self.vgic.with(|g| g.lpi_state(intid)).is_some() {
                    let _ = self.look(intid);
                }
            }
            Then::LookAll(cpu) => self.look_all(cpu),
        }
    }

    /// Reads the configuration of an LPI.
    fn look(&self, intid: u32) -> Result {
        let at = table::properties_at(self.vgic.with(|g| g.lpis.properties));
        let offset = intid.wrapping_sub(FIRST_LPI);
        let [byte] = self.read(at.wrapping_add(offset.into()))?;
        self.vgic.with(|g| g.configure_lpi(intid, byte));
        Ok(())
    }

    /// Reads that of all LPIs of a vCPU.
    fn look_all(&self, cpu: usize) {
        for n in self.vgic.made_banks() {
            let (_, own) = self.vgic.with(|g| g.lpis_of(n, cpu));
            for bit in bits(own) {
                let _ = self.look(first_of(n).wrapping_add(bit));
            }
        }
    }

    /// Where the pending bits of vCPU `cpu` are.
    fn pending_table(&self, cpu: usize) -> Option<u64> {
        self.vgic
            .with(|g| g.cpus.get_nospec(cpu).map(|c| c.pending_table))
    }

    /// Reads which LPIs of a vCPU are pending.
    fn load_pending(&self, cpu: usize) {
        let table = self.pending_table(cpu).unwrap_or(PENDING_ZERO);
        if table & PENDING_ZERO != 0 {
            return;
        }
        for n in self.vgic.made_banks() {
            let (_, own) = self.vgic.with(|g| g.lpis_of(n, cpu));
            if own == 0 {
                continue;
            }
            let at = table::pending_at(table).wrapping_add(u64::from(first_of(n) / 8));
            let Ok(word) = self.read(at).map(u32::from_le_bytes) else {
                return;
            };
            self.vgic.with(|g| g.load_pending(n, cpu, word));
        }
    }

    /// The byte in which the pending bit of an LPI of vCPU `cpu` is.
    fn pending_byte(&self, intid: u32, cpu: u16) -> Option<u64> {
        let table = self.pending_table(cpu.into())?;
        Some(table::pending_at(table).wrapping_add(u64::from(intid / 8)))
    }

    /// An LPI that has just been mapped is pending if the table says so, where it is not any more then.
    fn take_pending(&self, intid: u32, cpu: u16) -> Result {
        let Some(at) = self.pending_byte(intid, cpu) else {
            return Ok(());
        };
        let [byte] = self.read(at)?;
        let bit = 1 << (intid % 8);
        self.vgic.with(|g| g.set_lpi(intid, byte & bit != 0));
        if byte & bit != 0 {
            self.write_bytes(at, &[byte & !bit])?;
        }
        Ok(())
    }

    /// KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES. No vCPU runs. EFAULT.
    pub(crate) fn save_pending(&self) -> Result {
        for n in self.vgic.made_banks() {
            let (mapped, _) = self.vgic.with(|g| g.lpis_of(n, 0));
            for bit in bits(mapped) {
                let intid = first_of(n).wrapping_add(bit);
                let Some((pending, cpu)) = self.vgic.with(|g| g.lpi_state(intid)) else {
                    continue;
                };
                let Some(at) = self.pending_byte(intid, cpu) else {
                    continue;
                };
                let [byte] = self.read(at)?;
                let bit = 1 << (intid % 8);
                let new = byte & !bit | if pending { bit } else { 0 };
                if new != byte {
                    self.write_bytes(at, &[new])?;
                }
            }
        }
        Ok(())
    }

    // --- an ITS: registers ---

    /// A read of an ITS's registers.
    pub(crate) fn read_its(&self, its: &Its, at: u64, len: usize) -> u64 {
        its.state.lock().registers.get(at, len)
    }

    /// User space's.
    pub(crate) fn read_its_for_user(&self, its: &Its, at: u64) -> u64 {
        self.read_its(its, at, Registers::width(at))
    }

    /// A guest's write to them. False: there is more to be done about it, for which the write has to be made again:
    /// something else has to be done first.
    pub(crate) fn write_its(&self, its: &Its, at: u64, len: usize, value: u64) -> bool {
        let mut state = its.state.lock();
        let then = state.registers.set(at, len, value);
        let stop = |done: u32| done >= IN_ONE_GO || sched::xfer_to_guest_pending();
        self.follow(its, &mut state, then, stop)
    }

    /// User space's write (KVM_DEV_ARM_VGIC_GRP_ITS_REGS). EBUSY, EINVAL; EINTR: it is killed.
    pub(crate) fn restore_its(&self, its: &Its, at: u64, value: u64) -> Result {
        let mut state = its.state.lock();
        let then = state.registers.restore(at, value).map_err(|e| match e {
            Refused::Busy => EBUSY,
            Refused::Invalid => EINVAL,
        })?;
        let done = self.follow(its, &mut state, then, |_| sched::fatal_signal_pending());
        done.then_some(()).ok_or(EINTR)
    }

    fn follow(
        &self,
        its: &Its,
        s: &mut State,
        then: translation::Then,
        stop: impl Fn(u32) -> bool,
    ) -> bool {
        its.set_enabled(s.registers.enabled);
        match then {
            translation::Then::Nothing => {}
            translation::Then::Gone(Kind::Devices) => self.remove_devices(its, s),
            translation::Then::Gone(Kind::Collections) => self.remove_collections(its, s),
            translation::Then::Commands => {
                let mut done = 0u32;
                while let Some(at) = s.registers.next() {
                    if let Some(c) = self.read(at).ok().and_then(|b| Command::decode(&b)) {
                        // What is wrong with a command is nobody's business but the guest's.
                        let _: Result = self.carry_out(its, s, c);
                    }
                    s.registers.advance();
                    done = done.saturating_add(1);
                    if stop(done) {
                        return s.registers.next().is_none();
                    }
                    sched::cond_resched();
                }
            }
        }
        true
    }

    // --- commands ---

    /// The index of the vCPU whose processor has this number, or [`NOBODY`].
    fn processor(&self, number: u32) -> u16 {
        self.vgic.vcpu_index(number).map_or(NOBODY, |n| n as u16)
    }

    /// The entry of a number in a table. `None`: there is none, or it is not in memory.
    fn entry(&self, table: Table, number: u32) -> Option<u64> {
        let at = match table.entry(number)? {
            Entry::At(at) => at,
            Entry::In(word, offset) => {
                let page = Table::page(self.read_entry(word).ok()?)?;
                page.wrapping_add(offset)
            }
        };
        self.is_memory(at).then_some(at)
    }

    /// That of an event.
    fn event_entry(&self, device: &Device, event: u32) -> Option<u64> {
        if u64::from(event) >= 1 << device.bits {
            return None;
        }
        let at = device.table.wrapping_add(u64::from(event) * ENTRY);
        self.is_memory(at).then_some(at)
    }

    /// The event of a device.
    fn find(its: &Its, device: u32, event: u32) -> Result<Event> {
        let key = Event::key(device, event).ok_or(ENOENT)?;
        its.event(key).ok_or(ENOENT)
    }

    /// A collection that has a processor.
    fn mapped(s: &State, number: u32) -> Result<Collection> {
        let c = s.collection(number).ok_or(ENOENT)?;
        (c.target != NONE).then_some(c).ok_or(ENOENT)
    }

    fn carry_out(&self, its: &Its, s: &mut State, command: Command) -> Result {
        match command {
            Command::Device { device, map } => self.map_device(its, s, device, map)?,
            Command::Collection { collection, target } => {
                self.map_collection(its, s, collection, target)?;
            }
            Command::Event {
                device,
                event,
                lpi,
                collection,
            } => {
                let device = s.device(device).ok_or(ENOENT)?;
                self.event_entry(&device, event).ok_or(EINVAL)?;
                let end = table::end_of_lpis(self.vgic.with(|g| g.lpis.properties));
                if lpi < FIRST_LPI || u64::from(lpi) >= end {
                    return Err(EINVAL);
                }
                self.map_event(its, s, device.number, event, lpi, collection)?;
            }
            Command::Move {
                device,
                event,
                collection,
            } => {
                let e = Self::find(its, device, event)?;
                Self::mapped(s, e.collection)?;
                let c = Self::mapped(s, collection)?;
                its.put(Event { collection, ..e })?;
                let target = self.processor(c.target);
                self.vgic.with(|g| g.aim_lpi(e.lpi, target));
            }
            Command::Discard(device, event) => {
                let e = Self::find(its, device, event)?;
                Self::mapped(s, e.collection)?;
                self.remove_events(its, e.key, e.key);
                let device = s.device(device).ok_or(ENOENT)?;
                self.write_entry(device.table.wrapping_add(u64::from(event) * ENTRY), 0)?;
            }
            Command::Clear(device, event) => {
                let e = Self::find(its, device, event)?;
                self.vgic.with(|g| g.set_lpi(e.lpi, false));
            }
            Command::Raise(device, event) => {
                self.vgic.translate(its, device, event)?;
            }
            Command::Look(device, event) => self.look(Self::find(its, device, event)?.lpi)?,
            Command::LookAll(collection) => {
                let target = self.processor(Self::mapped(s, collection)?.target);
                self.look_all(target.into());
            }
            Command::MoveAll(from, to) => {
                let (from, to) = (self.processor(from), self.processor(to));
                if from != NOBODY && to != NOBODY {
                    for n in self.vgic.made_banks() {
                        self.vgic.with(|g| g.move_lpis(n, from.into(), to));
                    }
                }
            }
            Command::Sync => {}
        }
        Ok(())
    }

    fn map_device(&self, its: &Its, s: &mut State, number: u32, map: Option<(u64, u32)>) -> Result {
        let entry = self.entry(s.registers.devices, number).ok_or(EINVAL)?;
        if map.is_some_and(|(_, bits)| 1 << bits > u64::from(NUMBERS)) {
            return Err(EINVAL);
        }
        self.remove_device(its, s, number);
        match map {
            Some((table, bits)) => s.add_device(Device {
                number,
                bits,
                table,
            }),
            None => self.write_entry(entry, 0),
        }
    }

    fn map_collection(&self, its: &Its, s: &mut State, number: u32, target: Option<u32>) -> Result {
        let (collection, index) = match target {
            None => {
                s.remove_collection(number);
                (NONE, NOBODY)
            }
            Some(target) => {
                let index = self.processor(target);
                if index == NOBODY {
                    return Err(EINVAL);
                }
                if s.collection(number).is_none() {
                    self.entry(s.registers.collections, number).ok_or(EINVAL)?;
                }
                s.put_collection(Collection { number, target })?;
                (number, index)
            }
        };
        its.for_each(0, u32::MAX, |e| {
            if e.collection == number {
                // It is there already: nothing fails.
                let _ = its.put(Event { collection, ..e });
                self.vgic.with(|g| g.aim_lpi(e.lpi, index));
            }
        });
        Ok(())
    }

    /// An event leads to an LPI from now on, if it leads nowhere yet. EINVAL; EEXIST: another one leads there; EFAULT,
    /// ENOMEM.
    fn map_event(
        &self,
        its: &Its,
        s: &mut State,
        device: u32,
        event: u32,
        lpi: u32,
        collection: u32,
    ) -> Result {
        let key = Event::key(device, event).ok_or(EINVAL)?;
        if its.event(key).is_some() {
            return Ok(());
        }
        let known = s.collection(collection);
        if known.is_none() {
            self.entry(s.registers.collections, collection)
                .ok_or(EINVAL)?;
        }
        let target = known.map_or(NONE, |c| c.target);
        let target = if target == NONE {
            NOBODY
        } else {
            self.processor(target)
        };
        self.vgic.make_room(lpi)?;
        if !self.vgic.with(|g| g.map_lpi(lpi, target)) {
            return Err(EEXIST);
        }
        let event = Event {
            key,
            lpi,
            collection,
        };
        let ready = self.begin_lpi(its, s, event, target);
        if ready.is_err() {
            self.vgic.with(|g| g.unmap_lpi(lpi));
        }
        ready
    }

    /// What the tables say of an LPI counts, and messages arrive for it. EFAULT, ENOMEM.
    fn begin_lpi(&self, its: &Its, s: &mut State, event: Event, target: u16) -> Result {
        self.look(event.lpi)?;
        if target != NOBODY {
            self.take_pending(event.lpi, target)?;
        }
        if s.collection(event.collection).is_none() {
            s.put_collection(Collection {
                number: event.collection,
                target: NONE,
            })?;
        }
        its.put(event)
    }

    // --- what is not mapped any more ---

    fn remove_events(&self, its: &Its, first: u32, last: u32) {
        its.for_each(first, last, |e| self.vgic.with(|g| g.unmap_lpi(e.lpi)));
        its.remove(first, last);
    }

    fn remove_device(&self, its: &Its, s: &mut State, number: u32) {
        if let (Some(_), Some(first)) = (s.device(number), Event::key(number, 0)) {
            self.remove_events(its, first, first | 0xffff);
            s.remove_device(number);
        }
    }

    fn remove_devices(&self, its: &Its, s: &mut State) {
        self.remove_events(its, 0, u32::MAX);
        s.devices = KVVec::new();
    }

    fn remove_collections(&self, its: &Its, s: &mut State) {
        s.collections = KVVec::new();
        its.for_each(0, u32::MAX, |e| {
            let _ = its.put(Event {
                collection: NONE,
                ..e
            });
            self.vgic.with(|g| g.aim_lpi(e.lpi, NOBODY));
        });
    }

    /// KVM_DEV_ARM_ITS_CTRL_RESET.
    pub(crate) fn reset(&self, its: &Its) {
        let mut state = its.state.lock();
        let s = &mut *state;
        s.registers.reset();
        its.set_enabled(false);
        self.remove_devices(its, s);
        self.remove_collections(its, s);
    }

    // --- tables, saved and restored ---

    /// KVM_DEV_ARM_ITS_SAVE_TABLES. No vCPU runs. EFAULT; EINTR: it is killed.
    pub(crate) fn save(&self, its: &Its) -> Result {
        let state = its.state.lock();
        let r = &state.registers;
        if r.devices.is_valid() {
            let place = |d: &Device| self.entry(r.devices, d.number);
            let mut devices = state.devices.iter().peekable();
            while let Some(d) = devices.next() {
                let Some(at) = place(d) else { continue };
                self.save_events(its, d)?;
                while devices.peek().is_some_and(|next| place(next).is_none()) {
                    devices.next();
                }
                let next = devices
                    .peek()
                    .map_or(0, |n| n.number.wrapping_sub(d.number));
                self.write_entry(at, d.entry(next))?;
                alive()?;
            }
        }
        if r.collections.is_valid() {
            let mut at = r.collections.base();
            let end = at.wrapping_add(r.collections.size());
            for c in state.collections.iter() {
                self.write_entry(at, c.entry())?;
                at = at.wrapping_add(ENTRY);
            }
            if at != end {
                self.write_entry(at, 0)?;
            }
        }
        Ok(())
    }

    fn save_events(&self, its: &Its, d: &Device) -> Result {
        let Some(first) = Event::key(d.number, 0) else {
            return Ok(());
        };
        let last = first | 0xffff;
        let at = |e: &Event| d.table.wrapping_add(u64::from(e.number()) * ENTRY);
        let after = |key: u32| {
            let next = key.checked_add(1).and_then(|key| its.event_from(key));
            next.filter(|e| e.key <= last)
        };
        let mut next = its.event_from(first).filter(|e| e.key <= last);
        // The last one that is written, whose distance to the next one is not known yet.
        let mut open: Option<Event> = None;
        while let Some(e) = next {
            if e.collection == NONE {
                self.write_entry(at(&e), 0)?;
            } else if let Some(before) = open.replace(e) {
                let distance = e.key.wrapping_sub(before.key);
                self.write_entry(at(&before), before.entry(distance))?;
            }
            alive()?;
            next = after(e.key);
        }
        open.map_or(Ok(()), |e| self.write_entry(at(&e), e.entry(0)))
    }

    /// KVM_DEV_ARM_ITS_RESTORE_TABLES, into an ITS that has nothing. No vCPU runs. EINVAL: they make no sense; EEXIST:
    /// a collection twice; EFAULT, ENOMEM; EINTR: it is killed. Nothing is restored then.
    pub(crate) fn restore(&self, its: &Its) -> Result {
        let mut state = its.state.lock();
        let s = &mut *state;
        let done = self
            .restore_collections(s)
            .and_then(|()| self.restore_devices(its, s));
        if done.is_err() {
            self.remove_devices(its, s);
            self.remove_collections(its, s);
        }
        done
    }

    fn restore_collections(&self, s: &mut State) -> Result {
        let table = s.registers.collections;
        if !table.is_valid() {
            return Ok(());
        }
        for n in 0..table.size() / ENTRY {
            let entry = self.read_entry(table.base().wrapping_add(n * ENTRY))?;
            let Some(c) = Collection::of_entry(entry) else {
                break;
            };
            if c.target != NONE && self.processor(c.target) == NOBODY {
                return Err(EINVAL);
            }
            if s.collection(c.number).is_some() {
                return Err(EEXIST);
            }
            self.entry(table, c.number).ok_or(EINVAL)?;
            s.put_collection(c)?;
            alive()?;
        }
        Ok(())
    }

    fn restore_devices(&self, its: &Its, s: &mut State) -> Result {
        let table = s.registers.devices;
        if !table.is_valid() {
            return Ok(());
        }
        if !table.is_indirect() {
            let count = (table.size() / ENTRY) as u32;
            return self.restore_row(its, s, table.base(), 0, count).map(|_| ());
        }
        let per_page = (PAGE / ENTRY) as u32;
        let pages = (table.size() / ENTRY).min(u64::from(NUMBERS / per_page)) as u32;
        for n in 0..pages {
            let word = self.read_entry(table.base().wrapping_add(u64::from(n) * ENTRY))?;
            let Some(page) = Table::page(word) else {
                continue;
            };
            if self.restore_row(its, s, page, n * per_page, per_page)? {
                break;
            }
        }
        Ok(())
    }

    /// Restores the devices of a row of entries, the first of which is that of number `first`. True: the last one of
    /// all was there.
    fn restore_row(
        &self,
        its: &Its,
        s: &mut State,
        base: u64,
        first: u32,
        count: u32,
    ) -> Result<bool> {
        let mut n = 0u32;
        while n < count && first.wrapping_add(n) < NUMBERS {
            let entry = self.read_entry(base.wrapping_add(u64::from(n) * ENTRY))?;
            let number = first.wrapping_add(n);
            let next = match Device::of_entry(number, entry) {
                None => 1,
                Some((device, next)) => {
                    if device.bits > 16 || s.device(number).is_some() {
                        return Err(EINVAL);
                    }
                    self.entry(s.registers.devices, number).ok_or(EINVAL)?;
                    s.add_device(device)?;
                    self.restore_events(its, s, &device)?;
                    if next == 0 {
                        return Ok(true);
                    }
                    next
                }
            };
            n = n.saturating_add(next);
            alive()?;
        }
        Ok(false)
    }

    fn restore_events(&self, its: &Its, s: &mut State, device: &Device) -> Result {
        let count = 1u32 << (device.bits & 0x1f);
        let mut n = 0u32;
        while n < count {
            let entry = self.read_entry(device.table.wrapping_add(u64::from(n) * ENTRY))?;
            let Some((lpi, collection, next)) = Event::of_entry(entry) else {
                n = n.wrapping_add(1);
                alive()?;
                continue;
            };
            if lpi < FIRST_LPI
                || n.saturating_add(next) >= count
                || s.collection(collection).is_none()
            {
                return Err(EINVAL);
            }
            self.event_entry(device, n).ok_or(EINVAL)?;
            match self.map_event(its, s, device.number, n, lpi, collection) {
                // Another one leads there, and keeps it.
                Ok(()) | Err(EEXIST) => {}
                Err(e) => return Err(e),
            }
            if next == 0 {
                break;
            }
            n = n.saturating_add(next);
            alive()?;
        }
        Ok(())
    }

    /// Whether user space finds a register there. EINVAL: not aligned; ENXIO: no.
    pub(crate) fn has_register(at: u64) -> Result {
        match Registers::exists(at) {
            Some(true) => Ok(()),
            Some(false) => Err(ENXIO),
            None => Err(EINVAL),
        }
    }
}

/// EINTR: the caller is killed. Gives way to others.
fn alive() -> Result {
    sched::cond_resched();
    if sched::fatal_signal_pending() {
        return Err(EINTR);
    }
    Ok(())
}
