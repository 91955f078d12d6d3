// SPDX-License-Identifier: GPL-2.0
//! Fetching the instruction that caused an exit, and stepping over it.
//!
//! This file adds to [`State`] what finds code bytes and moves RIP. The run loop calls it for exits without an
//! instruction length and for instructions to emulate, under the vCPU's mutex, in a stay or outside. An instruction's
//! bytes are fetched once per exit; what is decoded is what is executed, whatever another vCPU does to the code
//! meanwhile.

use crate::linux::uaccess;
use crate::mem::addr::Gva;
use crate::mem::memory::{MemError, MemoryView};
use crate::x86::cpu::events;
use crate::x86::cpu::regs::{rflags, Mode, Seg};
use crate::x86::emul::{DecodeError, Insn, Op};
use crate::x86::exit::Exception;
use crate::x86::paging::fetch::Code;
use crate::x86::paging::gwalk;
use crate::x86::paging::gwalk::{Paging, WalkError};
use crate::x86::vcpu::debug;
use crate::x86::vcpu::guest_mem::Tables;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::choose;
use crate::x86::vendor::{Groups, Stay, VcpuBackend};
use kernel::prelude::*;

/// Why the current instruction could not be fetched or stepped over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FetchError {
    /// The fetch needs memory that is not resident: try again outside the stay.
    Sleep,
    /// The guest has to meet a changed instruction, or memory that is missing, itself.
    Reenter,
    /// The fetch faults like this; unless the processor cannot walk the page tables, the guest meets that itself.
    Fault(Exception),
    /// The emulator does not know the instruction.
    Unsupported([u8; 15], u8),
}

/// An instruction that exits: how to recognise it.
pub(crate) struct Known {
    /// Without prefixes: mask and value of the first four bytes, and the length. Not for instructions whose length
    /// depends on more.
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

/// The first `n` bytes.
pub(super) fn first_bytes(bytes: &[u8; 16], n: usize) -> &[u8] {
    bytes.get(..n).unwrap_or(bytes)
}

impl State {
    /// What decides about fetches.
    #[inline]
    pub(super) fn code(&mut self) -> Code {
        let flags = self.cpu.regs.rflags;
        if self.cpu.dirty.is_empty() {
            if let Some(c) = self.hw.code(flags) {
                return c;
            }
        }
        self.load(Groups::CODE.union(Groups::CTRL));
        let s = &self.cpu.sregs;
        Code {
            mode: s.mode(flags),
            cpl: s.cpl(flags),
            cr0: s.cr0,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.efer,
            base: s.seg(Seg::Cs).base,
        }
    }

    /// User address of the code at linear address `la`, in the common case of [`Code::translate`]. Never sleeps.
    #[inline]
    pub(super) fn code_hva(&self, view: &MemoryView<'_>, code: &Code, la: u64) -> Option<usize> {
        if !code.ia32e() {
            return self.legacy_code_hva(view, code, la);
        }
        let reserved = self.cpuid.features.reserved_phys_bits();
        let mut near = view.near();
        let gpa = code.translate(la, reserved, |at| uaccess::get_u64(near.hva(at)?).ok())?;
        near.hva(gpa)
    }

    /// [`State::code_hva`] outside IA-32e mode.
    #[inline(never)]
    fn legacy_code_hva(&self, view: &MemoryView<'_>, code: &Code, la: u64) -> Option<usize> {
        let reserved = self.cpuid.features.reserved_phys_bits();
        let mut near = view.near();
        let read = |at| uaccess::get_u64(near.hva(at)?).ok();
        let gpa = code.translate_legacy(la, reserved, choose::pdpte_reserved(), read)?;
        near.hva(gpa)
    }

    /// The first four bytes of the current instruction, if they can be had in a hurry.
    #[inline]
    fn peek(&mut self, view: &MemoryView<'_>) -> Option<u32> {
        let code = self.code();
        let la = code.linear(self.cpu.regs.rip);
        if la & 0xfff > 0xffc {
            return None;
        }
        let hva = self.code_hva(view, &code, la)?;
        uaccess::get_u32(hva).ok()
    }

    /// Reads code bytes at linear address `la`, up to the end of its page, into `bytes`; how many.
    pub(super) fn read_code(
        &self,
        view: &MemoryView<'_>,
        paging: &Paging,
        cpl: u8,
        la: u64,
        bytes: &mut [u8],
        stay: Option<&Stay<'_>>,
    ) -> Result<usize, FetchError> {
        let mut tables = Tables { view, stay };
        let access = gwalk::Access::fetch(cpl);
        let code = match paging.translate(&mut tables, Gva(la), access) {
            Ok(gpa) => Ok(gpa),
            Err(WalkError::Access(MemError::Fault)) if stay.is_some() => {
                return Err(FetchError::Sleep)
            }
            Err(WalkError::PageFault { error_code }) => Err(error_code),
            Err(WalkError::Access(MemError::NotRam)) => Err(paging.no_table(access)),
            Err(_) => return Err(FetchError::Reenter),
        };
        let gpa = code.map_err(|error_code| {
            FetchError::Fault(Exception {
                vector: events::vector::PF,
                error_code: Some(error_code),
                payload: la,
            })
        })?;
        let room = (4096 - (la & 0xfff)) as usize;
        if let (true, Ok(whole)) = (room >= 16, <&mut [u8; 16]>::try_from(&mut *bytes)) {
            if let Ok(b) = view.try_read_16(gpa) {
                *whole = b;
                return Ok(16);
            }
        }
        let n = room.min(bytes.len());
        let part = bytes.get_mut(..n).ok_or(FetchError::Reenter)?;
        let read = if stay.is_some() {
            view.try_read(gpa, part)
        } else {
            view.read(gpa, part)
        };
        match read {
            Ok(()) => Ok(n),
            Err(MemError::Fault) if stay.is_some() => Err(FetchError::Sleep),
            // The guest fetches it itself, which reports the page.
            Err(MemError::Missing(_)) => Err(FetchError::Reenter),
            // Code in a device: nothing that could be fetched.
            Err(_) => Err(FetchError::Unsupported([0; 15], 0)),
        }
    }

    /// The byte at CS:RIP. May sleep.
    pub(crate) fn code_byte(&mut self, view: &MemoryView<'_>) -> Option<u8> {
        let code = self.code();
        let la = code.linear(self.cpu.regs.rip);
        let paging = self.paging();
        let mut byte = [0u8; 1];
        self.read_code(view, &paging, code.cpl, la, &mut byte, None)
            .ok()?;
        Some(byte[0])
    }

    /// Fetches and decodes the instruction at CS:RIP.
    pub(crate) fn fetch(
        &mut self,
        view: &MemoryView<'_>,
        stay: Option<&Stay<'_>>,
    ) -> Result<&Insn, FetchError> {
        let code = self.code();
        let (mode, rip) = (code.mode, self.cpu.regs.rip);
        let mut bytes = [0u8; 16];
        let mut have = 0usize;
        if let Some((given, len)) = self.hw.insn_bytes() {
            bytes = given;
            have = usize::from(len).min(15);
        }
        if have == 0
            || matches!(
                self.insn_cache.decode(rip, first_bytes(&bytes, have), mode),
                Err(DecodeError::Truncated)
            )
        {
            let paging = self.paging();
            let start = code.linear(rip);
            have = self
                .read_code(view, &paging, code.cpl, start, &mut bytes, stay)?
                .min(15);
            if have < 15
                && matches!(
                    self.insn_cache.decode(rip, first_bytes(&bytes, have), mode),
                    Err(DecodeError::Truncated)
                )
            {
                let next = code.linear(rip.wrapping_add(have as u64));
                let Some(rest) = bytes.get_mut(have..15) else {
                    return Err(FetchError::Reenter);
                };
                have += self.read_code(view, &paging, code.cpl, next, rest, stay)?;
            }
        }
        match self.insn_cache.decode(rip, first_bytes(&bytes, have), mode) {
            Ok(i) => Ok(i),
            Err(DecodeError::Unsupported) => {
                let mut out = [0u8; 15];
                for (to, from) in out.iter_mut().zip(bytes) {
                    *to = from;
                }
                Err(FetchError::Unsupported(out, have as u8))
            }
            // If the processor got past decoding the code has been changed since: let it run again.
            Err(DecodeError::Undefined) => Err(FetchError::Fault(events::exception(
                events::vector::UD,
                None,
            ))),
            Err(DecodeError::TooLong) => Err(FetchError::Fault(events::exception(
                events::vector::GP,
                Some(0),
            ))),
            Err(DecodeError::Truncated) => Err(FetchError::Reenter),
        }
    }

    /// [`State::skip`] in the common case: the instruction has no prefix, and its code is resident. False, and nothing
    /// done, if it is not that.
    #[inline]
    pub(crate) fn skip_known(&mut self, view: &MemoryView<'_>, known: &Known) -> bool {
        let len = self.peek(view).and_then(|b| known.length(b));
        if let Some(len) = len {
            self.advance(len);
        }
        len.is_some()
    }

    /// Steps over the instruction that caused the exit, whose length the processor did not give. Where the bytes are
    /// not the instruction that `known` describes they have been changed since, and the guest runs them.
    pub(crate) fn skip(
        &mut self,
        view: &MemoryView<'_>,
        stay: Option<&Stay<'_>>,
        known: &Known,
    ) -> Result<(), FetchError> {
        let insn = self.fetch(view, stay)?;
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
        if old >> 32 == 0 && self.code().mode != Mode::Long {
            self.cpu.regs.rip &= 0xffff_ffff;
        }
    }

    /// What the completion of any instruction entails.
    #[inline]
    pub(crate) fn completed(&mut self) {
        self.completed_under(self.cpu.regs.rflags & rflags::TF != 0);
    }

    /// [`State::completed`] of an instruction that began with RFLAGS.TF set (`tf`) or clear, and may have changed it.
    #[inline]
    pub(super) fn completed_under(&mut self, tf: bool) {
        self.hw.end_shadow();
        self.cpu.regs.rflags &= !rflags::RF;
        if tf {
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
