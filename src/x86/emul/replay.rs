// SPDX-License-Identifier: GPL-2.0
//! Repetition of a suspended instruction without repeating its completed accesses (api.rst 5, KVM_EXIT_MMIO).
//!
//! An instruction may need several accesses that only user space can complete: MOVS from MMIO to MMIO, a write that
//! crosses from RAM into MMIO, the read and the write of `ADD [mmio], reg`. [`execute()`](super::exec::execute) is
//! therefore called again from the start after each answer. [`Replay`] keeps every completed access of the attempt, to
//! RAM as well, in order: a repeated attempt gets the same data although other processors may have changed memory or
//! page tables meanwhile, and writes happen once.
//!
//! What the instruction needs no answer for does not suspend it: writes to devices of user space and OUTS are posted.
//! User space is told of them when the instruction, or an iteration of it, is complete, so that the registers it finds
//! then are those after it ([`Replay::next_posted`]). Only a read of a device that comes after a posted write waits for
//! user space to have been told of that.
#![forbid(unsafe_code)]

use super::addr::Access;
use super::env::{Env, Machine, Outcome, PortRequest, Stop};
use super::exec::execute;
use super::insn::Insn;
use super::moves::Move;
use crate::x86::cpu::regs::{Mode, Regs, Sregs};

/// Accesses one iteration of one instruction can need. PUSHA and POPA have most: eight, of which one can be split at a
/// page boundary. Next come two operands, each read or written once in up to five parts.
const CAPACITY: usize = 16;

const PAGE: u64 = 4096;

/// Most bytes of a [`Fragment`].
const FRAGMENT: usize = 8;

/// Direction of a memory fragment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Memory to processor.
    #[default]
    Read,
    /// Processor to memory.
    Write,
}

/// A memory access, or the part of one inside a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Linear address.
    pub la: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// The bytes read or to write, little-endian; those after `len` are 0.
    pub data: [u8; 8],
    /// Length in bytes, 1 to 8.
    pub len: u8,
    /// Direction.
    pub kind: Kind,
}

/// What user space has to complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// KVM_EXIT_MMIO.
    Memory(Fragment),
    /// KVM_EXIT_IO, input.
    PortIn(PortRequest),
    /// KVM_EXIT_IO, output.
    PortOut(PortRequest),
}

/// Answer of [`Replay::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Completed earlier in this instruction, with this data.
    Replayed([u8; 8]),
    /// To be carried out now, then [`Replay::record`] or [`Replay::suspend`].
    Fresh,
    /// More accesses than an instruction can have.
    Full,
}

/// Log of the completed accesses of the instruction (or REP iteration) under way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replay {
    log: [Fragment; CAPACITY],
    /// Completed accesses.
    done: usize,
    /// Accesses that the current attempt has come past.
    cursor: usize,
    pending: Option<Pending>,
    /// The pending port request has been answered.
    answered: bool,
    /// Which of the log's accesses are writes that user space has not been told of yet, a bit for each.
    posted: u32,
    /// The instruction, or an iteration of it, is complete, and there is something that user space has to be told.
    over: bool,
}

const _: () = assert!(CAPACITY <= u32::BITS as usize);

impl Replay {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts an attempt. An access still pending is forgotten and will be issued again.
    pub fn begin_attempt(&mut self) {
        self.cursor = 0;
        if !self.answered {
            self.pending = None;
        }
    }

    /// Forgets everything: the instruction is complete or given up.
    pub fn clear(&mut self) {
        self.done = 0;
        self.cursor = 0;
        self.pending = None;
        self.answered = false;
        self.posted = 0;
        self.over = false;
    }

    /// The attempt's next memory access. An access that differs from the logged one (registers were changed meanwhile)
    /// drops the log from here on.
    pub fn next(&mut self, kind: Kind, la: u64, len: usize) -> Next {
        if self.cursor < self.done {
            if let Some(f) = self.log.get(self.cursor) {
                if f.kind == kind && f.la == la && usize::from(f.len) == len {
                    self.cursor = self.cursor.wrapping_add(1);
                    return Next::Replayed(f.data);
                }
            }
            self.done = self.cursor;
            self.posted &= below(self.done);
        }
        if self.done >= CAPACITY {
            Next::Full
        } else {
            Next::Fresh
        }
    }

    /// Logs an access that was completed at once.
    pub fn record(&mut self, fragment: Fragment) {
        if let Some(slot) = self.log.get_mut(self.done) {
            *slot = fragment;
            self.done = self.done.wrapping_add(1);
            self.cursor = self.done;
        }
    }

    /// Logs a write that user space is told of later.
    fn post(&mut self, fragment: Fragment) {
        let at = self.done;
        self.record(fragment);
        self.posted |= below(self.done) & !below(at);
    }

    /// Makes the first of the posted writes wait for user space, and says how the attempt has to end.
    fn suspend_posted(&mut self) -> Stop {
        match self.log.get(self.posted.trailing_zeros() as usize) {
            Some(f) => self.suspend(Pending::Memory(*f)),
            None => Stop::Unsupported,
        }
    }

    /// The instruction, or an iteration of it, is complete: nothing of it will be repeated.
    fn commit(&mut self) {
        if self.posted != 0 || matches!(self.pending, Some(Pending::PortOut(_))) {
            self.over = true;
        } else {
            self.clear();
        }
    }

    /// After [`emulate()`] has completed an instruction, or some iterations of it: whether there is something, now
    /// [`Replay::pending`], that user space has to be told before the guest runs. To be asked again after
    /// [`Replay::complete`], and no attempt may begin before it says no.
    pub fn next_posted(&mut self) -> bool {
        if self.pending().is_some() {
            return true;
        }
        if self.posted == 0 {
            self.clear();
            return false;
        }
        matches!(self.suspend_posted(), Stop::Suspend)
    }

    /// Makes an access wait for user space, and says how the attempt has to end.
    #[must_use]
    pub fn suspend(&mut self, pending: Pending) -> Stop {
        self.pending = Some(pending);
        self.answered = false;
        Stop::Suspend
    }

    /// What user space has to complete, if anything.
    pub fn pending(&self) -> Option<&Pending> {
        if self.answered {
            None
        } else {
            self.pending.as_ref()
        }
    }

    /// Takes user space's answer: for a memory read the data, whose missing bytes read as 0; ignored otherwise. False
    /// if nothing is pending.
    pub fn complete(&mut self, data: &[u8]) -> bool {
        match self.pending {
            Some(Pending::Memory(mut f)) => {
                self.pending = None;
                if f.kind == Kind::Write {
                    // It is in the log: the first posted one.
                    self.posted &= self.posted.wrapping_sub(1);
                    return true;
                }
                f.data = [0; 8];
                let n = usize::from(f.len);
                for (to, from) in f.data.iter_mut().zip(data).take(n) {
                    *to = *from;
                }
                self.record(f);
                true
            }
            Some(_) => {
                self.answered = true;
                true
            }
            None => false,
        }
    }

    /// A plain move, and the data of the only access that it makes, once user space has completed all of it. That the
    /// move then ends as [`execute()`] would end it is the test `a_completed_move_is_not_executed_again` in
    /// tools/logic/tests/emul_moves.rs.
    fn whole(&self, insn: &Insn, mode: Mode) -> Option<(Move, u64)> {
        if self.done != 1 || self.pending.is_some() || self.posted != 0 {
            return None;
        }
        let (m, f) = (Move::of(insn, mode)?, self.log.first()?);
        let kind = if m.is_store() {
            Kind::Write
        } else {
            Kind::Read
        };
        (f.kind == kind && f.len == m.size()).then(|| (m, u64::from_le_bytes(f.data)))
    }

    /// True, once, if `request` is the port request that user space has answered.
    fn take_answer(&mut self, request: Pending) -> bool {
        let hit = self.answered && self.pending == Some(request);
        self.answered = false;
        self.pending = None;
        hit
    }
}

/// The bits of the log's first `n` accesses.
fn below(n: usize) -> u32 {
    (1u64 << n.min(CAPACITY)).wrapping_sub(1) as u32
}

/// Who completes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The access is done.
    Done,
    /// User space has to do it.
    User,
}

/// Result of an atomic update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Memory held the old value and holds the new one.
    Done,
    /// Memory holds another value.
    Differs,
    /// The address is not RAM: the update has to be done as a plain write.
    NotRam,
}

/// Guest-physical memory and ports, below [`Replaying`].
pub trait Bus {
    /// Guest-physical address of `la`, or the page fault that the access raises.
    fn translate(&mut self, la: u64, access: Access) -> Result<u64, Stop>;

    /// [`Bus::translate`] of an access by the processor itself, at privilege level 0.
    fn translate_system(&mut self, la: u64, access: Access) -> Result<u64, Stop> {
        self.translate(la, access)
    }

    /// As [`Env::machine`].
    fn machine(&mut self) -> Option<&mut dyn Machine> {
        None
    }

    /// As [`Env::read_area`].
    fn read_area(&mut self, _la: u64, _buf: &mut [u8]) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    /// As [`Env::write_area`].
    fn write_area(&mut self, _la: u64, _data: &[u8]) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    /// Reads RAM or a device; `buf` is 1 to 8 bytes inside one page.
    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> Result<Answer, Stop>;

    /// As [`Env::extends_idle_strings`].
    fn extends_idle_strings(&self) -> bool {
        false
    }

    /// As [`Env::has_tzcnt`].
    fn has_tzcnt(&self) -> bool {
        true
    }

    /// As [`Env::has_lzcnt`].
    fn has_lzcnt(&self) -> bool {
        true
    }

    /// Writes RAM or a device; `data` is 1 to 8 bytes inside one page.
    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<Answer, Stop>;

    /// Compares and exchanges `width` bytes (1, 2, 4 or 8, possibly misaligned, inside one page).
    fn cmpxchg(&mut self, gpa: u64, old: u64, new: u64, width: u8) -> Result<Swap, Stop>;

    /// See [`Env::check_port`].
    fn check_port(&mut self, port: u16, width: u8) -> Result<(), Stop>;

    /// Whether all of the items' memory is RAM for the access; else each of them is an access of its own, as
    /// [`Bus::read`] and [`Bus::write`] have it. Faults as the access to the first one does.
    fn port_memory_is_ram(&mut self, req: &PortRequest, access: Access) -> Result<bool, Stop> {
        self.translate(req.la, access).map(|_| true)
    }

    /// Inputs an item from a port that user space does not have.
    fn port_in_item(&mut self, _port: u16, _width: u8) -> Option<u32> {
        None
    }

    /// Item `n` of those that user space has input.
    fn port_answer(&mut self, _req: &PortRequest, _n: u32) -> Result<u32, Stop> {
        Err(Stop::Unsupported)
    }

    /// Outputs an item, or leaves it where user space finds it.
    fn port_out_item(&mut self, _port: u16, _width: u8, _item: u32) -> Result<Answer, Stop> {
        Err(Stop::Unsupported)
    }

    /// Checks that the items' memory is writable, then inputs them: [`Answer::Done`] with the items in memory, or
    /// [`Answer::User`].
    fn port_in(&mut self, req: &PortRequest) -> Result<Answer, Stop>;

    /// Stores to memory the items that user space has input.
    fn port_in_finish(&mut self, req: &PortRequest) -> Result<(), Stop>;

    /// Loads the items from memory and outputs them or, with [`Answer::User`], leaves them where user space finds them.
    fn port_out(&mut self, req: &PortRequest) -> Result<Answer, Stop>;
}

/// [`Env`] over a [`Bus`] with page crossing and replay.
pub struct Replaying<'a, B: ?Sized> {
    bus: &'a mut B,
    log: &'a mut Replay,
    /// The access under way is the processor's own.
    system: bool,
}

/// Executes `insn` on `bus`, continuing the attempts recorded in `log`.
///
/// After [`Stop::Suspend`], [`Replay::pending`] tells what user space has to do; hand its answer to
/// [`Replay::complete`] and call again with the same `insn` and registers. After any error the log is empty, otherwise
/// once [`Replay::next_posted`] says so.
pub fn emulate<B: Bus + ?Sized>(
    insn: &Insn,
    regs: &mut Regs,
    sregs: &Sregs,
    cpl: u8,
    bus: &mut B,
    log: &mut Replay,
) -> Result<Outcome, Stop> {
    if let Some((m, data)) = log.whole(insn, sregs.mode(regs.rflags)) {
        m.finish(regs, data);
        log.clear();
        return Ok(Outcome::Done);
    }
    let mut env = Replaying::new(bus, log);
    let result = execute(insn, regs, sregs, cpl, &mut env);
    if !matches!(result, Err(Stop::Suspend)) && !log.over {
        log.clear();
    }
    result
}

impl<'a, B: Bus + ?Sized> Replaying<'a, B> {
    /// Begins an attempt.
    pub fn new(bus: &'a mut B, log: &'a mut Replay) -> Self {
        log.begin_attempt();
        Self {
            bus,
            log,
            system: false,
        }
    }

    /// Guest-physical address of the fragment at `la`. `rest` is the part of the access on the next page, whose fault
    /// has to come before any side effect.
    fn locate(&mut self, la: u64, rest: Option<u64>, access: Access) -> Result<u64, Stop> {
        let gpa = self.translate(la, access)?;
        if let Some(rest) = rest {
            self.translate(rest, access)?;
        }
        Ok(gpa)
    }

    #[inline]
    fn translate(&mut self, la: u64, access: Access) -> Result<u64, Stop> {
        if self.system {
            self.bus.translate_system(la, access)
        } else {
            self.bus.translate(la, access)
        }
    }

    /// Reads what lies on one page, eight bytes at a time as KVM does.
    fn read_part(
        &mut self,
        mut la: u64,
        buf: &mut [u8],
        mut rest: Option<u64>,
    ) -> Result<(), Stop> {
        for piece in buf.chunks_mut(FRAGMENT) {
            self.read_fragment(la, piece, rest.take())?;
            la = la.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Writes likewise.
    fn write_part(&mut self, mut la: u64, data: &[u8], mut rest: Option<u64>) -> Result<(), Stop> {
        for piece in data.chunks(FRAGMENT) {
            self.write_fragment(la, piece, rest.take())?;
            la = la.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    fn read_fragment(&mut self, la: u64, buf: &mut [u8], rest: Option<u64>) -> Result<(), Stop> {
        let len = buf.len();
        match self.log.next(Kind::Read, la, len) {
            Next::Replayed(data) => {
                for (to, from) in buf.iter_mut().zip(data) {
                    *to = from;
                }
                return Ok(());
            }
            Next::Full => return Err(Stop::Unsupported),
            Next::Fresh => {}
        }
        let gpa = self.locate(la, rest, Access::Read)?;
        let mut fragment = Fragment {
            la,
            gpa,
            data: [0; 8],
            len: len.min(8) as u8,
            kind: Kind::Read,
        };
        match self.bus.read(gpa, buf)? {
            Answer::Done => {
                for (to, from) in fragment.data.iter_mut().zip(buf) {
                    *to = *from;
                }
                self.log.record(fragment);
                Ok(())
            }
            // In order: writes that come before it first.
            Answer::User if self.log.posted != 0 => Err(self.log.suspend_posted()),
            Answer::User => Err(self.log.suspend(Pending::Memory(fragment))),
        }
    }

    fn write_fragment(&mut self, la: u64, data: &[u8], rest: Option<u64>) -> Result<(), Stop> {
        match self.log.next(Kind::Write, la, data.len()) {
            Next::Replayed(_) => return Ok(()),
            Next::Full => return Err(Stop::Unsupported),
            Next::Fresh => {}
        }
        let gpa = self.locate(la, rest, Access::Write)?;
        let fragment = fragment_of(la, gpa, data);
        match self.bus.write(gpa, data)? {
            Answer::Done => {
                self.log.record(fragment);
                Ok(())
            }
            Answer::User => {
                self.log.post(fragment);
                Ok(())
            }
        }
    }
}

/// Most writes to a device that one request inputs the items of: they are posted at once, and one may cross a page.
const DEVICE_WRITES: u32 = 8;

const _: () = assert!((DEVICE_WRITES as usize) < CAPACITY && FRAGMENT == 8);

/// INS and OUTS where a device is in memory's place.
impl<B: Bus + ?Sized> Replaying<'_, B> {
    /// Items from a port. They are input before anything is written, and what ascends is written eight bytes at a time.
    fn port_to_device(&mut self, req: &PortRequest) -> Result<u32, Stop> {
        let width = usize::from(req.width).clamp(1, 4);
        let together: u32 = match req.width {
            _ if req.down => 1,
            1 => 8,
            2 => 4,
            _ => 2,
        };
        let req = PortRequest {
            count: req.count.min(DEVICE_WRITES.wrapping_mul(together)).max(1),
            ..*req
        };
        let pending = Pending::PortIn(req);
        if !self.log.take_answer(pending) {
            let Some(item) = self.bus.port_in_item(req.port, req.width) else {
                return Err(self.log.suspend(pending));
            };
            let bytes = item.to_le_bytes();
            self.write(req.la, bytes.get(..width).unwrap_or(&bytes))?;
            return Ok(1);
        }
        let mut n = 0;
        while n < req.count {
            let (first, mut data, mut len) = (n, [0u8; FRAGMENT], 0usize);
            while n < req.count && n.wrapping_sub(first) < together {
                let item = self.bus.port_answer(&req, n)?.to_le_bytes();
                for (to, from) in data.iter_mut().skip(len).zip(item).take(width) {
                    *to = from;
                }
                len = len.wrapping_add(width);
                n = n.wrapping_add(1);
            }
            self.write(req.item(first), data.get(..len).unwrap_or(&data))?;
        }
        Ok(req.count)
    }

    /// An item for a port.
    fn port_from_device(&mut self, req: &PortRequest) -> Result<u32, Stop> {
        let one = PortRequest { count: 1, ..*req };
        let mut bytes = [0u8; 4];
        let width = usize::from(req.width).clamp(1, 4);
        self.read(req.la, bytes.get_mut(..width).ok_or(Stop::Unsupported)?)?;
        let item = u32::from_le_bytes(bytes);
        if self.bus.port_out_item(req.port, req.width, item)? == Answer::User {
            let _ = self.log.suspend(Pending::PortOut(one));
        }
        Ok(1)
    }
}

fn fragment_of(la: u64, gpa: u64, data: &[u8]) -> Fragment {
    let mut f = Fragment {
        la,
        gpa,
        data: [0; 8],
        len: data.len().min(8) as u8,
        kind: Kind::Write,
    };
    for (to, from) in f.data.iter_mut().zip(data) {
        *to = *from;
    }
    f
}

/// Bytes of a `len`-byte access at `la` that lie on its first page.
fn on_first_page(la: u64, len: usize) -> usize {
    let room = PAGE - (la & (PAGE - 1));
    len.min(room as usize)
}

impl<B: Bus + ?Sized> Env for Replaying<'_, B> {
    fn extends_idle_strings(&self) -> bool {
        self.bus.extends_idle_strings()
    }

    fn has_tzcnt(&self) -> bool {
        self.bus.has_tzcnt()
    }

    fn has_lzcnt(&self) -> bool {
        self.bus.has_lzcnt()
    }

    fn read(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let n = on_first_page(la, buf.len());
        let (a, b) = buf.split_at_mut_checked(n).ok_or(Stop::Unsupported)?;
        if b.is_empty() && a.len() <= FRAGMENT {
            return self.read_fragment(la, a, None);
        }
        let rest = la.wrapping_add(n as u64);
        self.read_part(la, a, (!b.is_empty()).then_some(rest))?;
        self.read_part(rest, b, None)
    }

    fn write(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
        let n = on_first_page(la, data.len());
        let (a, b) = data.split_at_checked(n).ok_or(Stop::Unsupported)?;
        if b.is_empty() && a.len() <= FRAGMENT {
            return self.write_fragment(la, a, None);
        }
        let rest = la.wrapping_add(n as u64);
        self.write_part(la, a, (!b.is_empty()).then_some(rest))?;
        self.write_part(rest, b, None)
    }

    fn read_system(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.system = true;
        let result = self.read(la, buf);
        self.system = false;
        result
    }

    fn write_system(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
        self.system = true;
        let result = self.write(la, data);
        self.system = false;
        result
    }

    fn machine(&mut self) -> Option<&mut dyn Machine> {
        self.bus.machine()
    }

    fn read_area(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.bus.read_area(la, buf)
    }

    fn write_area(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
        self.bus.write_area(la, data)
    }

    fn probe_write(&mut self, la: u64, len: u8) -> Result<(), Stop> {
        // A repeated attempt came past this point before: spare the walk, the write checks by itself.
        if self.log.cursor < self.log.done {
            return Ok(());
        }
        self.bus.translate(la, Access::Write)?;
        let n = on_first_page(la, usize::from(len));
        if n < usize::from(len) {
            self.bus
                .translate(la.wrapping_add(n as u64), Access::Write)?;
        }
        Ok(())
    }

    fn cmpxchg(&mut self, la: u64, old: u64, new: u64, width: u8) -> Result<bool, Stop> {
        let bytes = new.to_le_bytes();
        let data = bytes.get(..usize::from(width)).ok_or(Stop::Unsupported)?;
        if on_first_page(la, data.len()) < data.len() {
            // A locked access across pages is not atomic here.
            return self.write(la, data).map(|()| true);
        }
        match self.log.next(Kind::Write, la, data.len()) {
            Next::Replayed(_) => return Ok(true),
            Next::Full => return Err(Stop::Unsupported),
            Next::Fresh => {}
        }
        let gpa = self.bus.translate(la, Access::Write)?;
        match self.bus.cmpxchg(gpa, old, new, width)? {
            Swap::Done => {
                self.log.record(fragment_of(la, gpa, data));
                Ok(true)
            }
            Swap::Differs => Ok(false),
            Swap::NotRam => self.write_fragment(la, data, None).map(|()| true),
        }
    }

    fn check_port(&mut self, port: u16, width: u8) -> Result<(), Stop> {
        self.bus.check_port(port, width)
    }

    fn port_in(&mut self, req: &PortRequest) -> Result<u32, Stop> {
        if !self.bus.port_memory_is_ram(req, Access::Write)? {
            return self.port_to_device(req);
        }
        let pending = Pending::PortIn(*req);
        if self.log.take_answer(pending) {
            self.bus.port_in_finish(req)?;
            return Ok(req.count);
        }
        match self.bus.port_in(req)? {
            Answer::Done => Ok(req.count),
            Answer::User => Err(self.log.suspend(pending)),
        }
    }

    fn port_out(&mut self, req: &PortRequest) -> Result<u32, Stop> {
        if !self.bus.port_memory_is_ram(req, Access::Read)? {
            return self.port_from_device(req);
        }
        if self.bus.port_out(req)? == Answer::User {
            let _ = self.log.suspend(Pending::PortOut(*req));
        }
        Ok(req.count)
    }

    fn commit(&mut self) {
        self.log.commit();
    }

    fn has_posted(&self) -> bool {
        self.log.over
    }
}
