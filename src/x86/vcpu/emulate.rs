// SPDX-License-Identifier: GPL-2.0
//! Instructions in software: fetching them, stepping over them, and the accesses of the few that are emulated.
//!
//! An instruction's bytes are fetched once per exit; what is decoded is what is executed, whatever another vCPU does to the
//! code meanwhile.

use crate::bus::ioeventfd::Bus as EventSpace;
use crate::linux::mmap::Shared;
use crate::linux::{hrtimer, uaccess};
use crate::mem::addr::{Gpa, Gva};
use crate::mem::memory::{MemError, MemoryView};
use crate::x86::cpu::events;
use crate::x86::cpu::regs::{rflags, Gpr, Mode, Regs, Seg};
use crate::x86::emul;
use crate::x86::emul::{
    Access, Answer, Bus, DecodeError, Insn, Move, Op, Outcome, PortRequest, Stop, Swap,
};
use crate::x86::exit::{Exception, NestedFault};
use crate::x86::irqchip::lapic::Action;
use crate::x86::irqchip::lapic_page::LocalApic;
use crate::x86::paging::fetch::Fetch;
use crate::x86::paging::gwalk;
use crate::x86::paging::gwalk::{GuestRead, Paging, WalkError};
use crate::x86::vcpu::debug;
use crate::x86::vcpu::state::State;
use crate::x86::vcpu::RunPages;
use crate::x86::vendor::{Groups, LongCode, VcpuBackend};
use crate::x86::vm::Vm;
use core::ops::{Deref, DerefMut};
use kernel::prelude::*;

/// Offset of the port data page in the vCPU's mapping (KVM_PIO_PAGE_OFFSET).
pub(crate) const PIO_PAGE: usize = 4096;

/// Guest page-table entries as the walker reads them.
struct Tables<'a, 'b> {
    view: &'a MemoryView<'b>,
    /// Never sleep: interrupts may be off.
    atomic: bool,
}

impl Tables<'_, '_> {
    fn read<const N: usize>(&self, gpa: Gpa) -> Result<[u8; N], MemError> {
        let mut b = [0; N];
        if self.atomic {
            self.view.try_read(gpa, &mut b)?;
        } else {
            self.view.read(gpa, &mut b)?;
        }
        Ok(b)
    }
}

impl GuestRead for Tables<'_, '_> {
    type Error = MemError;

    #[inline]
    fn read_u32(&mut self, gpa: Gpa) -> Result<u32, MemError> {
        self.read(gpa).map(u32::from_le_bytes)
    }

    #[inline]
    fn read_u64(&mut self, gpa: Gpa) -> Result<u64, MemError> {
        if self.atomic {
            return self.view.try_read_u64(gpa);
        }
        self.read(gpa).map(u64::from_le_bytes)
    }

    fn set_ad(&mut self, gpa: Gpa, old: u64, new: u64, bytes: u8) -> Result<bool, MemError> {
        let done = exchange(self.view, gpa, old, new, bytes, self.atomic)?;
        Ok(done)
    }
}

/// Atomic compare-and-exchange of guest memory inside a page.
fn exchange(
    view: &MemoryView<'_>,
    gpa: Gpa,
    old: u64,
    new: u64,
    bytes: u8,
    atomic: bool,
) -> Result<bool, MemError> {
    let hva = view.hva(gpa, true)?;
    let attempt = || -> Result<bool> {
        Ok(match bytes {
            1 => uaccess::cmpxchg_u8(hva, old as u8, new as u8)?.is_ok(),
            2 => uaccess::cmpxchg_u16(hva, old as u16, new as u16)?.is_ok(),
            4 => uaccess::cmpxchg_u32(hva, old as u32, new as u32)?.is_ok(),
            _ => uaccess::cmpxchg_u64(hva, old, new)?.is_ok(),
        })
    };
    let done = match attempt() {
        Ok(d) => d,
        Err(_) if atomic => return Err(MemError::Fault),
        Err(_) => {
            crate::linux::gup::fault_in(hva, true).map_err(|_| MemError::Fault)?;
            attempt().map_err(|_| MemError::Fault)?
        }
    };
    if done {
        view.mark_dirty(gpa);
    }
    Ok(done)
}

/// Why the current instruction could not be fetched or stepped over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FetchError {
    /// It needs memory that is not resident: try again outside the stay.
    Sleep,
    /// The guest has to meet the fault, or a changed instruction, itself.
    Reenter,
    /// It is not one that the emulator knows.
    Unsupported([u8; 15], u8),
}

/// An instruction that exits: how to recognise it.
pub(crate) struct Known {
    /// Without prefixes: mask and value of the first four bytes, and the length. Not for instructions whose length depends on more.
    plain: &'static [(u32, u32, u8)],
    /// As the decoder sees it.
    ops: &'static [Op],
}

macro_rules! known {
    ($($name:ident: [$($plain:expr),*], $ops:expr;)*) => {
        $(pub(crate) const $name: Known = Known { plain: &[$($plain),*], ops: &$ops };)*
    };
}

#[allow(missing_docs)]
impl Known {
    known! {
        CPUID: [(0xffff, 0xa20f, 2)], [Op::Cpuid];
        RDMSR: [(0xffff, 0x320f, 2)], [Op::Rdmsr];
        WRMSR: [(0xffff, 0x300f, 2)], [Op::Wrmsr];
        HLT: [(0xff, 0xf4, 1)], [Op::Hlt];
        MWAIT: [], [Op::Monitor, Op::Mwait];
        PAUSE: [(0xffff, 0x90f3, 2)], [Op::Pause];
        // C1 and D9 differ in two bits; both are hypercalls.
        HYPERCALL: [(0xff_ffff, 0xd9_010f, 3), (0xff_ffff, 0xc1_010f, 3)], [Op::Vmcall, Op::Vmmcall];
        INVALIDATE: [(0xffff, 0x090f, 2), (0xffff, 0x080f, 2)], [Op::Invd, Op::Wbinvd];
        XSETBV: [(0xff_ffff, 0xd1_010f, 3)], [Op::Xsetbv];
        IN: [(0xfe, 0xec, 1), (0xfe, 0xe4, 2)], [Op::In];
        OUT: [(0xfe, 0xee, 1), (0xfe, 0xe6, 2)], [Op::Out];
        CR: [], [Op::MovCr, Op::Clts, Op::Lmsw, Op::Smsw];
    }

    /// Length of the instruction that begins with `bytes`, if it is this one without prefixes.
    #[inline(always)]
    fn length(&self, bytes: u32) -> Option<u8> {
        for &(mask, value, len) in self.plain {
            if bytes & mask == value {
                return Some(len);
            }
        }
        None
    }
}

/// What a device access by a plain move came to.
pub(crate) enum Accessed {
    /// Done; the local APIC may ask for something.
    Done(Action),
    /// Done: it signalled an ioeventfd.
    Signalled,
    /// User space has to do it.
    User(DeviceAccess),
    /// Not such an access, or not recognised in a hurry: nothing has been done.
    Other,
}

/// A device access for user space.
pub(crate) struct DeviceAccess {
    /// What is left to do after it.
    pub(crate) completion: Move,
    /// What a store writes.
    pub(crate) value: u64,
}

/// The first `n` bytes.
fn head(bytes: &[u8; 16], n: usize) -> &[u8] {
    bytes.get(..n).unwrap_or(bytes)
}

impl State {
    /// The paging in force.
    pub(crate) fn paging(&mut self) -> Paging {
        self.load(Groups::CTRL);
        let s = &self.cpu.sregs;
        let f = gwalk::Features {
            max_phys_bits: self.features.maxphyaddr,
            pages_1g: self.features.gbpages,
        };
        Paging::new(s.cr0, s.cr3, s.cr4, s.efer, self.pkru, f)
    }

    /// What decides about fetches, if the guest runs 64-bit code.
    #[inline]
    pub(crate) fn long_code(&mut self) -> Option<LongCode> {
        if self.cpu.dirty.is_empty() {
            if let Some(c) = self.hw.long_code() {
                return Some(c);
            }
        }
        self.load(Groups::CODE.union(Groups::CTRL));
        let flags = self.cpu.regs.rflags;
        let s = &self.cpu.sregs;
        (s.mode(flags) == Mode::Long).then(|| LongCode {
            cpl: s.cpl(flags),
            cr3: s.cr3,
            cr4: s.cr4,
        })
    }

    /// User address of the code at linear address `la`, in the common case of [`Fetch::translate`]. Never sleeps.
    #[inline]
    fn code_hva(&self, view: &MemoryView<'_>, c: &LongCode, la: u64) -> Option<usize> {
        let fetch = Fetch {
            cpl: c.cpl,
            cr3: c.cr3,
            cr4: c.cr4,
            reserved: self.features.reserved_phys_bits(),
        };
        let mut near = view.near();
        let gpa = fetch.translate(la, |at| uaccess::get_u64(near.hva(at)?).ok())?;
        near.hva(gpa)
    }

    /// The first four bytes of the current instruction, if they can be had in a hurry.
    #[inline]
    fn peek(&mut self, view: &MemoryView<'_>) -> Option<u32> {
        let code = self.long_code()?;
        let rip = self.cpu.regs.rip;
        if rip & 0xfff > 0xffc {
            return None;
        }
        let hva = self.code_hva(view, &code, rip)?;
        uaccess::get_u32(hva).ok()
    }

    /// Carries out the device access that caused nested fault `f` if it is a plain move by 64-bit code, which is all but all of them.
    ///
    /// The operand's guest-physical address is the fault's: the processor has translated it, for this kind of access at this privilege.
    /// That the instruction fetched now has the same kind and the same place in the page guards against one that was put there
    /// meanwhile. Never sleeps.
    pub(crate) fn access_device(
        &mut self,
        vm: &Vm,
        view: &MemoryView<'_>,
        f: &NestedFault,
    ) -> Accessed {
        self.try_access_device(vm, view, f)
            .unwrap_or(Accessed::Other)
    }

    #[inline]
    fn try_access_device(
        &mut self,
        vm: &Vm,
        view: &MemoryView<'_>,
        f: &NestedFault,
    ) -> Option<Accessed> {
        if f.walk || f.fetch {
            return None;
        }
        let code = self.long_code()?;
        let rip = self.cpu.regs.rip;
        if rip & 0xfff > 0xff0 {
            return None;
        }
        let hva = self.code_hva(view, &code, rip)?;
        let low = uaccess::get_u64(hva).ok()?;
        let high = uaccess::get_u64(hva.wrapping_add(8)).ok()?;
        let bytes = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
        let insn = self
            .insn_cache
            .decode(rip, head(&bytes, 15), Mode::Long)
            .ok()?;
        let m = Move::of(insn)?;
        if matches!(insn.mem.seg, Seg::Fs | Seg::Gs) {
            return None;
        }
        let la = emul::effective_address(insn, &self.cpu.regs);
        let size = usize::from(m.size());
        let offset = la & 0xfff;
        if m.is_store() != f.write
            || offset != f.gpa.0 & 0xfff
            || offset + size as u64 > 0x1000
            || (la << 16) as i64 >> 16 != la as i64
        {
            return None;
        }
        let gpa = f.gpa.0;
        let mut action = Action::NONE;
        if m.is_store() {
            let value = m.value(&self.cpu.regs, insn.imm);
            let bytes = value.to_le_bytes();
            let data = bytes.get(..size)?;
            match lapic_offset(&self.lapic, gpa) {
                Some(offset) => action = lapic_write(&mut self.lapic, offset, data),
                None if vm.bus.signal(EventSpace::Mmio, gpa, data) => {
                    self.finish_move(&m, 0);
                    return Some(Accessed::Signalled);
                }
                None if vm.mmio_write(gpa, data) => {}
                None => {
                    return Some(Accessed::User(DeviceAccess {
                        completion: m,
                        value,
                    }));
                }
            }
            self.finish_move(&m, 0);
        } else {
            let mut bytes = [0u8; 8];
            let data = bytes.get_mut(..size)?;
            match lapic_offset(&self.lapic, gpa) {
                Some(offset) => lapic_read(&mut self.lapic, offset, data),
                None if vm.chip.mmio_read(gpa, data) => {}
                None => {
                    return Some(Accessed::User(DeviceAccess {
                        completion: m,
                        value: 0,
                    }));
                }
            }
            self.finish_move(&m, u64::from_le_bytes(bytes));
        }
        Some(Accessed::Done(action))
    }

    /// Completes a move of 64-bit code.
    pub(crate) fn finish_move(&mut self, m: &Move, data: u64) {
        m.finish(&mut self.cpu.regs, Mode::Long, data);
        self.completed();
    }

    /// Reads code bytes at linear address `la`, up to the end of its page, into `bytes`; how many.
    fn read_code(
        &self,
        view: &MemoryView<'_>,
        paging: &Paging,
        cpl: u8,
        la: u64,
        bytes: &mut [u8],
        atomic: bool,
    ) -> Result<usize, FetchError> {
        let mut tables = Tables { view, atomic };
        let gpa = match paging.translate(&mut tables, Gva(la), gwalk::Access::fetch(cpl)) {
            Ok(t) => t.gpa,
            Err(WalkError::Access(MemError::Fault)) if atomic => return Err(FetchError::Sleep),
            Err(_) => return Err(FetchError::Reenter),
        };
        let room = (4096 - (la & 0xfff)) as usize;
        if let (true, Ok(whole)) = (room >= 16, <&mut [u8; 16]>::try_from(&mut *bytes)) {
            if let Ok(b) = view.try_read_16(gpa) {
                *whole = b;
                return Ok(16);
            }
        }
        let n = room.min(bytes.len());
        let part = bytes.get_mut(..n).ok_or(FetchError::Reenter)?;
        let read = if atomic {
            view.try_read(gpa, part)
        } else {
            view.read(gpa, part)
        };
        match read {
            Ok(()) => Ok(n),
            Err(MemError::Fault) if atomic => Err(FetchError::Sleep),
            // Code in a device: nothing that could be fetched.
            Err(_) => Err(FetchError::Unsupported([0; 15], 0)),
        }
    }

    /// The byte at CS:RIP. May sleep.
    pub(crate) fn code_byte(&mut self, view: &MemoryView<'_>) -> Option<u8> {
        let la = self.linear_rip();
        let cpl = self.cpl();
        let paging = self.paging();
        let mut byte = [0u8; 1];
        self.read_code(view, &paging, cpl, la, &mut byte, false)
            .ok()?;
        Some(byte[0])
    }

    /// Fetches and decodes the instruction at CS:RIP.
    pub(crate) fn fetch(
        &mut self,
        view: &MemoryView<'_>,
        atomic: bool,
    ) -> Result<&Insn, FetchError> {
        self.load(Groups::CODE.union(Groups::CTRL));
        let mode = self.cpu.sregs.mode(self.cpu.regs.rflags);
        let rip = self.cpu.regs.rip;
        let mut bytes = [0u8; 16];
        let mut have = 0usize;
        if let Some((given, len)) = self.hw.insn_bytes() {
            for (to, from) in bytes.iter_mut().zip(given) {
                *to = from;
            }
            have = usize::from(len).min(15);
        }
        if have == 0
            || matches!(
                self.insn_cache.decode(rip, head(&bytes, have), mode),
                Err(DecodeError::Truncated)
            )
        {
            let cpl = self.cpu.sregs.cpl(self.cpu.regs.rflags);
            let paging = self.paging();
            let base = emul::segment_base(Seg::Cs, mode, &self.cpu.sregs);
            let limit = if mode == Mode::Long {
                u64::MAX
            } else {
                0xffff_ffff
            };
            let start = base.wrapping_add(rip) & limit;
            have = self
                .read_code(view, &paging, cpl, start, &mut bytes, atomic)?
                .min(15);
            if have < 15
                && matches!(
                    self.insn_cache.decode(rip, head(&bytes, have), mode),
                    Err(DecodeError::Truncated)
                )
            {
                let next = start.wrapping_add(have as u64) & limit;
                let Some(rest) = bytes.get_mut(have..15) else {
                    return Err(FetchError::Reenter);
                };
                have += self.read_code(view, &paging, cpl, next, rest, atomic)?;
            }
        }
        match self.insn_cache.decode(rip, head(&bytes, have), mode) {
            Ok(i) => Ok(i),
            Err(DecodeError::Unsupported) => {
                let mut out = [0u8; 15];
                for (to, from) in out.iter_mut().zip(bytes) {
                    *to = from;
                }
                Err(FetchError::Unsupported(out, have as u8))
            }
            // The processor got past decoding, so the code has been changed since: let it run again.
            Err(_) => Err(FetchError::Reenter),
        }
    }

    /// Steps over the instruction that caused the exit, whose length the processor did not give. Where the bytes are not the
    /// instruction that `known` describes they have been changed since, and the guest runs them.
    pub(crate) fn skip(
        &mut self,
        view: &MemoryView<'_>,
        atomic: bool,
        known: &Known,
    ) -> Result<(), FetchError> {
        if let Some(len) = self.peek(view).and_then(|b| known.length(b)) {
            self.advance(len);
            return Ok(());
        }
        let insn = self.fetch(view, atomic)?;
        if !known.ops.contains(&insn.op) {
            return Err(FetchError::Reenter);
        }
        let len = insn.len();
        self.advance(len);
        Ok(())
    }

    /// RIP past an instruction of `len` bytes that has completed: shadow and RF end, a single step is due.
    #[inline]
    pub(crate) fn advance(&mut self, len: u8) {
        let old = self.cpu.regs.rip;
        self.cpu.regs.rip = old.wrapping_add(u64::from(len));
        // Only 64-bit mode has an instruction pointer wider than 32 bits: the mode matters where it becomes so.
        if (old ^ self.cpu.regs.rip) >> 32 != 0 {
            self.crossed(old);
        }
        self.completed();
    }

    /// RIP came from `old` across a multiple of 4 GiB.
    #[cold]
    #[inline(never)]
    fn crossed(&mut self, old: u64) {
        if old >> 32 == 0 && self.long_code().is_none() {
            self.cpu.regs.rip &= 0xffff_ffff;
        }
    }

    /// What the completion of any instruction entails.
    #[inline]
    pub(crate) fn completed(&mut self) {
        self.hw.end_shadow();
        self.cpu.regs.rflags &= !rflags::RF;
        if self.cpu.regs.rflags & rflags::TF != 0 {
            self.stepped();
        }
    }

    /// The instruction was single-stepped.
    #[cold]
    #[inline(never)]
    fn stepped(&mut self) {
        if self.debug.takes_debug() {
            self.debug.stepped();
            return;
        }
        // Single-step trap: DR6.BS (SDM 3B 19.2.3).
        let db = Exception {
            vector: events::vector::DB,
            error_code: None,
            payload: debug::SINGLE_STEP,
        };
        // #DB is benign: it cannot shut the guest down.
        let _ = self.raise(db);
    }
}

/// How emulation ended.
pub(crate) enum Emulated {
    /// Done, or an exception is pending: on with the guest.
    Done,
    /// User space has to complete an access; it is in the replay log.
    User,
    /// Not emulated.
    Unsupported,
    /// The exception shut the guest down.
    TripleFault,
}

/// Guest-physical memory and ports for the emulator.
struct GuestBus<'a, 'b> {
    vm: &'a Vm,
    view: &'a MemoryView<'b>,
    paging: Paging,
    cpl: u8,
    ac: bool,
    lapic: Option<&'a mut LocalApic>,
    run: &'a RunPages,
    /// Port and width of the I/O exit under emulation.
    port: Option<(u16, u8)>,
    /// What accesses to the local APIC ask for.
    actions: [Action; 2],
}

/// Offset of `gpa` in the local APIC's page.
#[inline]
fn lapic_offset(lapic: &Option<impl Deref<Target = LocalApic>>, gpa: u64) -> Option<u32> {
    let page = lapic.as_ref()?.page()?;
    (gpa & !0xfff == page).then_some((gpa & 0xfff) as u32)
}

/// Reads the local APIC by MMIO. Registers are 32 bits wide on 16-byte boundaries; other accesses are undefined and read as zero.
fn lapic_read(lapic: &mut Option<impl DerefMut<Target = LocalApic>>, offset: u32, buf: &mut [u8]) {
    let value = match lapic {
        Some(l) if offset & 3 == 0 && buf.len() <= 4 => l.read(offset, hrtimer::ktime_get_ns()),
        _ => 0,
    };
    for (to, from) in buf.iter_mut().zip(u64::from(value).to_le_bytes()) {
        *to = from;
    }
}

/// Writes the local APIC by MMIO; undefined accesses are ignored.
fn lapic_write(
    lapic: &mut Option<impl DerefMut<Target = LocalApic>>,
    offset: u32,
    data: &[u8],
) -> Action {
    match (lapic, data.try_into().map(u32::from_le_bytes)) {
        (Some(l), Ok(v)) if offset & 15 == 0 => l.write(offset, v, hrtimer::ktime_get_ns()),
        _ => Action::NONE,
    }
}

impl GuestBus<'_, '_> {
    fn act(&mut self, a: Action) {
        if !a.is_none() {
            if let Some(free) = self.actions.iter_mut().find(|x| x.is_none()) {
                *free = a;
            }
        }
    }
}

impl Bus for GuestBus<'_, '_> {
    fn translate(&mut self, la: u64, access: Access) -> Result<u64, Stop> {
        let mut tables = Tables {
            view: self.view,
            atomic: false,
        };
        let a = gwalk::Access::data(access == Access::Write, self.cpl, self.ac);
        match self.paging.translate(&mut tables, Gva(la), a) {
            Ok(t) => Ok(t.gpa.0),
            Err(WalkError::PageFault { error_code }) => Err(Stop::Exception {
                vector: events::vector::PF,
                error_code: Some(error_code),
                cr2: Some(la),
            }),
            Err(WalkError::NonCanonical) => Err(Stop::Exception {
                vector: events::vector::GP,
                error_code: Some(0),
                cr2: None,
            }),
            Err(WalkError::Access(_) | WalkError::Busy) => Err(Stop::Unsupported),
        }
    }

    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> Result<Answer, Stop> {
        if let Some(offset) = lapic_offset(&self.lapic, gpa) {
            lapic_read(&mut self.lapic, offset, buf);
            return Ok(Answer::Done);
        }
        match self.view.read(Gpa(gpa), buf) {
            Ok(()) => Ok(Answer::Done),
            Err(MemError::Fault) => Err(Stop::Unsupported),
            Err(MemError::NotRam) if self.vm.chip.mmio_read(gpa, buf) => Ok(Answer::Done),
            Err(MemError::NotRam) => Ok(Answer::User),
        }
    }

    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<Answer, Stop> {
        if let Some(offset) = lapic_offset(&self.lapic, gpa) {
            let action = lapic_write(&mut self.lapic, offset, data);
            self.act(action);
            return Ok(Answer::Done);
        }
        match self.view.write(Gpa(gpa), data) {
            Ok(()) => Ok(Answer::Done),
            Err(MemError::Fault) => Err(Stop::Unsupported),
            Err(MemError::NotRam) if self.vm.mmio_write(gpa, data) => Ok(Answer::Done),
            Err(MemError::NotRam) => Ok(Answer::User),
        }
    }

    fn cmpxchg(&mut self, gpa: u64, old: u64, new: u64, width: u8) -> Result<Swap, Stop> {
        if lapic_offset(&self.lapic, gpa).is_some() {
            return Ok(Swap::NotRam);
        }
        match exchange(self.view, Gpa(gpa), old, new, width, false) {
            Ok(true) => Ok(Swap::Done),
            Ok(false) => Ok(Swap::Differs),
            Err(MemError::NotRam) => Ok(Swap::NotRam),
            Err(MemError::Fault) => Err(Stop::Unsupported),
        }
    }

    fn check_port(&mut self, port: u16, width: u8) -> Result<(), Stop> {
        // The exit came after the processor's own check (SDM 3C 26.1.1, APM 2 15.10.2), but only for the port of the exit: other
        // code may have been put there meanwhile.
        if self.port == Some((port, width)) {
            Ok(())
        } else {
            Err(Stop::Unsupported)
        }
    }

    fn port_in(&mut self, req: &PortRequest) -> Result<Answer, Stop> {
        self.translate(req.la, Access::Write)?;
        let mut bytes = [0u8; 4];
        let width = usize::from(req.width).min(4);
        let Some(value) = self.vm.chip.pio_read(req.port, req.width) else {
            return Ok(Answer::User);
        };
        bytes.copy_from_slice(&value.to_le_bytes());
        let mut done = 0u64;
        let mut item = bytes;
        loop {
            let gpa = self.translate(
                req.la.wrapping_add(done * u64::from(req.width)),
                Access::Write,
            )?;
            self.view
                .write(Gpa(gpa), item.get(..width).unwrap_or(&[]))
                .map_err(|_| Stop::Unsupported)?;
            done += 1;
            if done >= u64::from(req.count) {
                return Ok(Answer::Done);
            }
            item = self
                .vm
                .chip
                .pio_read(req.port, req.width)
                .unwrap_or(u32::MAX)
                .to_le_bytes();
        }
    }

    fn port_in_finish(&mut self, req: &PortRequest) -> Result<(), Stop> {
        let total = (req.count as usize)
            .saturating_mul(usize::from(req.width))
            .min(4096);
        let mut at = 0usize;
        let mut item = [0u8; 64];
        while at < total {
            let la = req.la.wrapping_add(at as u64);
            let n = (total - at)
                .min(item.len())
                .min((4096 - (la & 0xfff)) as usize);
            let part = item.get_mut(..n).ok_or(Stop::Unsupported)?;
            self.run
                .copy_out(PIO_PAGE + at, part)
                .map_err(|_| Stop::Unsupported)?;
            let mut tables = Tables {
                view: self.view,
                atomic: false,
            };
            let a = gwalk::Access::data(true, self.cpl, self.ac);
            let gpa = self
                .paging
                .translate(&mut tables, Gva(la), a)
                .map_err(|_| Stop::Unsupported)?
                .gpa;
            self.view.write(gpa, part).map_err(|_| Stop::Unsupported)?;
            at += n;
        }
        Ok(())
    }

    fn port_out(&mut self, req: &PortRequest) -> Result<Answer, Stop> {
        let total = (req.count as usize)
            .saturating_mul(usize::from(req.width))
            .min(4096);
        let mut at = 0usize;
        let mut item = [0u8; 64];
        while at < total {
            let la = req.la.wrapping_add(at as u64);
            let n = (total - at)
                .min(item.len())
                .min((4096 - (la & 0xfff)) as usize);
            let gpa = self.translate(la, Access::Read)?;
            let part = item.get_mut(..n).ok_or(Stop::Unsupported)?;
            self.view
                .read(Gpa(gpa), part)
                .map_err(|_| Stop::Unsupported)?;
            self.run
                .copy_in(PIO_PAGE + at, part)
                .map_err(|_| Stop::Unsupported)?;
            at += n;
        }
        // Devices in the kernel take the items one by one; the first answer speaks for all.
        let width = usize::from(req.width).clamp(1, 4);
        let mut i = 0usize;
        while i < total {
            let mut b = [0u8; 4];
            let part = b.get_mut(..width).ok_or(Stop::Unsupported)?;
            self.run
                .copy_out(PIO_PAGE + i, part)
                .map_err(|_| Stop::Unsupported)?;
            if !self
                .vm
                .pio_write(req.port, req.width, u32::from_le_bytes(b))
            {
                return Ok(Answer::User);
            }
            i += width;
        }
        Ok(Answer::Done)
    }
}

impl State {
    /// Emulates `insn`, continuing where the replay log says. Returns actions of the local APIC too.
    pub(crate) fn emulate(
        &mut self,
        vm: &Vm,
        view: &MemoryView<'_>,
        run: &RunPages,
        insn: &Insn,
    ) -> (Emulated, [Action; 2]) {
        self.load(Groups::ALL);
        let cpl = self.cpu.sregs.cpl(self.cpu.regs.rflags);
        let paging = self.paging();
        let mut bus = GuestBus {
            vm,
            view,
            paging,
            cpl,
            ac: self.cpu.regs.rflags & rflags::AC != 0,
            lapic: self.lapic.as_deref_mut(),
            run,
            port: self.io_port,
            actions: [Action::NONE; 2],
        };
        let tf = self.cpu.regs.rflags & rflags::TF != 0;
        let counters = |r: &Regs| (r.get(Gpr::Rcx), r.get(Gpr::Rsi), r.get(Gpr::Rdi));
        let before = counters(&self.cpu.regs);
        let result = emul::emulate(
            insn,
            &mut self.cpu.regs,
            &self.cpu.sregs,
            cpl,
            &mut bus,
            &mut self.replay,
        );
        let actions = bus.actions;
        let outcome = match result {
            Ok(Outcome::Done) => {
                self.completed();
                Emulated::Done
            }
            Ok(Outcome::Again) => {
                if tf && counters(&self.cpu.regs) != before {
                    self.completed();
                }
                Emulated::Done
            }
            Err(Stop::Suspend) => Emulated::User,
            Err(Stop::Unsupported) => Emulated::Unsupported,
            Err(Stop::Exception {
                vector,
                error_code,
                cr2,
            }) => {
                let e = Exception {
                    vector,
                    error_code,
                    payload: cr2.unwrap_or(0),
                };
                if self.raise(e) {
                    Emulated::Done
                } else {
                    Emulated::TripleFault
                }
            }
        };
        (outcome, actions)
    }
}
