// SPDX-License-Identifier: GPL-2.0
//! Accesses of emulated instructions to memory, to devices and to ports.
//!
//! This file adds to [`State`] the plain move that a nested fault on a device asks for ([`State::access_device`]) and
//! the general emulation of an instruction ([`State::emulate`]), whose accesses go through a [`Bus`] and are kept in a
//! replay log while user space completes them. The run loop calls both under the vCPU's mutex; only the first one in a
//! stay.

use crate::abi::uapi::{k, PIO_PAGE};
use crate::bus::ioeventfd::Bus as EventSpace;
use crate::linux::mmap::Shared;
use crate::linux::{cpuid, hrtimer, uaccess};
use crate::mem::addr::{Gpa, Gva};
use crate::mem::memory::{MemError, MemoryView};
use crate::mem::missing::Absent;
use crate::x86::cpu::cpuid::Vendor;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::{rflags, DescTable, Gpr, Mode, Regs, Seg, Segment};
use crate::x86::cpu::xsave::{Layout, FXSAVE};
use crate::x86::cpu::{control, xsave};
use crate::x86::emul;
use crate::x86::emul::{
    Access, Answer, Bus, Insn, Machine, Move, Op, Outcome, PortRequest, Stop, Swap,
};
use crate::x86::exit::{Exception, NestedFault};
use crate::x86::irqchip::lapic::{reg::TPR, Action};
use crate::x86::irqchip::lapic_page::LocalApic;
use crate::x86::paging::fetch::Code;
use crate::x86::paging::gwalk;
use crate::x86::paging::gwalk::Paging;
use crate::x86::vcpu::fetch::first_bytes;
use crate::x86::vcpu::guest_mem::{
    exchange, port_permitted, read_linear, write_linear, LinearError, Tables,
};
use crate::x86::vcpu::state::{State, Xstate};
use crate::x86::vcpu::RunPages;
use crate::x86::vendor::{Groups, VcpuBackend};
use crate::x86::vm::Vm;
use core::ops::{Deref, DerefMut};
use kernel::prelude::*;

/// What a device access by a plain move came to.
pub(crate) enum Accessed {
    /// Done; the local APIC may ask for something.
    Done(Action),
    /// Done: it signalled an ioeventfd.
    Signalled,
    /// User space has to do it.
    User(DeviceAccess),
    /// It is no such access, or was not recognised in a hurry: nothing has been done.
    Other,
}

/// A device access for user space.
pub(crate) struct DeviceAccess {
    /// The move: a load is left to be completed, a store is complete.
    pub(crate) completion: Move,
    /// What a store writes.
    pub(crate) value: u64,
}

impl State {
    /// Carries out the device access that caused nested fault `f` if it is a plain move, which is all but all of them.
    ///
    /// The operand's guest-physical address is the fault's: the processor has translated it, for this kind of access at
    /// this privilege. That the instruction fetched now has the same kind and the same place in the page guards against
    /// one that was put there meanwhile. Never sleeps.
    pub(crate) fn access_device(
        &mut self,
        vm: &Vm,
        view: &MemoryView<'_>,
        f: &NestedFault,
    ) -> Accessed {
        self.try_access_device(vm, view, f)
            .unwrap_or(Accessed::Other)
    }

    /// The bytes of the code at `rip`, if they are in one page.
    #[inline]
    fn bytes_at(&mut self, view: &MemoryView<'_>, code: &Code, rip: u64) -> Option<[u8; 16]> {
        let la = code.linear(rip);
        if la & 0xfff > 0xff0 {
            return None;
        }
        let hva = self.code_hva(view, code, la)?;
        let low = uaccess::get_u64(hva).ok()?;
        let high = uaccess::get_u64(hva.wrapping_add(8)).ok()?;
        Some((u128::from(high) << 64 | u128::from(low)).to_le_bytes())
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
        let code = self.code();
        let (mode, rip) = (code.mode, self.cpu.regs.rip);
        let (bytes, len) = match self.hw.insn_bytes() {
            Some((given, len)) => (given, len.into()),
            None => (self.bytes_at(view, &code, rip)?, 15),
        };
        let insn = self
            .insn_cache
            .decode(rip, first_bytes(&bytes, len), mode)
            .ok()?;
        let Some(m) = Move::of(insn, mode) else {
            if !matches!(insn.op, Op::Ins | Op::Outs) {
                // Whoever emulates it outside the stay needs neither a fetch nor, to read registers, another stay.
                self.pending.insn = Some(*insn);
                self.pending.fetched = true;
                self.load(Groups::ALL);
            }
            return None;
        };
        let (seg, imm) = (insn.mem.seg, insn.imm);
        let mut la = emul::effective_address(insn, &self.cpu.regs);
        if mode != Mode::Long || matches!(seg, Seg::Fs | Seg::Gs) {
            la = self.in_segment(seg, la, &m, mode)?;
        }
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
            let value = m.value(&self.cpu.regs, imm);
            let bytes = value.to_le_bytes();
            let data = bytes.get(..size)?;
            match lapic_offset(&self.apic.lapic, gpa) {
                Some(TPR) if self.apic.reports_tpr => return None,
                Some(offset) => action = lapic_write(&mut self.apic.lapic, offset, data),
                None if vm.bus.signal(EventSpace::Mmio, gpa, data) => {
                    self.finish_move(&m, 0);
                    return Some(Accessed::Signalled);
                }
                None if vm.mmio_write(gpa, data) => {}
                None if is_lapic_hole(vm, &self.apic.lapic, gpa) => {}
                None => {
                    self.finish_move(&m, 0);
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
            match lapic_offset(&self.apic.lapic, gpa) {
                Some(TPR) if self.apic.reports_tpr => return None,
                Some(offset) => lapic_read(&self.apic.lapic, offset, data),
                None if vm.chip.mmio_read(gpa, data) => {}
                None if is_lapic_hole(vm, &self.apic.lapic, gpa) => data.fill(0xff),
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

    /// Linear address of `m` at offset `ea` of `seg`, if the segment permits it.
    #[inline]
    fn in_segment(&mut self, seg: Seg, ea: u64, m: &Move, mode: Mode) -> Option<u64> {
        if !self.cpu.dirty.is_empty() {
            return None;
        }
        let s = self.hw.segment(seg)?;
        if mode == Mode::Long {
            return Some(s.base.wrapping_add(ea));
        }
        let access = if m.is_store() {
            Access::Write
        } else {
            Access::Read
        };
        emul::linear_in_segment(seg, &s, ea, m.size().into(), access, mode).ok()
    }

    /// Completes a move.
    pub(crate) fn finish_move(&mut self, m: &Move, data: u64) {
        m.finish(&mut self.cpu.regs, data);
        self.completed();
    }
}

impl State {
    /// Takes over what an instruction has changed, beyond the registers that it was given. All groups are loaded.
    fn take_changed(&mut self, changed: &Changed) {
        let sregs = &mut self.cpu.sregs;
        let mut dirty = Groups::NONE;
        if let Some((seg, value)) = changed.segment {
            *sregs.seg_mut(seg) = value;
            dirty = match seg {
                Seg::Cs | Seg::Ss => Groups::CODE,
                _ => Groups::SEGS,
            };
        }
        if changed.gdt.is_some() || changed.idt.is_some() {
            sregs.gdt = changed.gdt.unwrap_or(sregs.gdt);
            sregs.idt = changed.idt.unwrap_or(sregs.idt);
            dirty = dirty.union(Groups::TABLES);
        }
        if let Some(word) = changed.status {
            sregs.cr0 = control::with_machine_status(sregs.cr0, word);
            dirty = dirty.union(Groups::CTRL);
        }
        self.dirty(dirty);
        if changed.forgotten {
            self.last_stay.tlb_generation = 0;
        }
        if changed.held.is_some() || changed.nmis_open {
            let mut i = self.hw.interruptibility();
            i.mov_ss |= changed.held == Some(true);
            i.sti |= changed.held == Some(false);
            i.nmi &= !changed.nmis_open;
            self.hw.set_interruptibility(i);
        }
    }
}

/// How emulation ended.
pub(crate) enum Emulated {
    /// Done, or an exception is pending: on with the guest.
    Done,
    /// User space has to complete an access; it is in the replay log.
    User,
    /// Memory is missing that user space brings; nothing that has been done will be done again.
    Missing(Absent),
    /// The instruction is not emulated.
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
    /// The guest believes in a processor of Intel's.
    intel: bool,
    /// Port and width of the I/O exit under emulation.
    port: Option<(u16, u8)>,
    /// TR.
    task: Segment,
    /// What the nested fault under emulation tells.
    told: Option<Told>,
    /// Memory that is missing, for which the emulation has been suspended.
    missing: Option<Absent>,
    /// What accesses to the local APIC ask for.
    actions: [Action; 2],
    /// The TPR was written, or read.
    tpr: Option<bool>,
    /// Vector registers and FPU.
    xstate: &'a mut Xstate,
    /// Where they are.
    layout: &'a Layout,
    /// Other registers that the instruction has changed.
    changed: Changed,
}

/// Registers that an instruction has changed, but for the general ones, the vectors and the FPU.
#[derive(Default)]
struct Changed {
    segment: Option<(Seg, Segment)>,
    gdt: Option<DescTable>,
    idt: Option<DescTable>,
    /// What LMSW loads.
    status: Option<u16>,
    /// Interrupts are held back after it: by MOV SS, else by STI.
    held: Option<bool>,
    nmis_open: bool,
    /// Translations.
    forgotten: bool,
}

impl Machine for GuestBus<'_, '_> {
    fn set_segment(&mut self, seg: Seg, value: &Segment) {
        self.changed.segment = Some((seg, *value));
    }

    fn set_table(&mut self, idt: bool, value: &DescTable) {
        let changed = &mut self.changed;
        *(if idt {
            &mut changed.idt
        } else {
            &mut changed.gdt
        }) = Some(*value);
    }

    fn set_machine_status(&mut self, word: u16) {
        self.changed.status = Some(word);
    }

    fn hold_interrupts(&mut self, mov_ss: bool) {
        self.changed.held = Some(mov_ss);
    }

    fn unblock_nmis(&mut self) {
        self.changed.nmis_open = true;
    }

    fn forget_translations(&mut self) {
        self.changed.forgotten = true;
    }

    fn xcr0(&self) -> u64 {
        self.xstate.xcr0
    }

    fn vector(&mut self, n: u8) -> [u8; 32] {
        xsave::vector(self.xstate.area.as_slice(), self.layout, n)
    }

    fn set_vector(&mut self, n: u8, value: &[u8; 32], whole: bool) {
        xsave::set_vector(
            self.xstate.area.as_mut_slice(),
            self.layout,
            n,
            value,
            whole,
        );
    }

    fn mmx(&mut self, n: u8) -> u64 {
        xsave::mmx(self.xstate.area.as_slice(), n)
    }

    fn enter_mmx(&mut self, set: Option<(u8, u64)>) {
        xsave::enter_mmx(self.xstate.area.as_mut_slice(), self.layout, set);
    }

    fn fpu_words(&mut self) -> (u16, u16) {
        xsave::fpu_words(self.xstate.area.as_slice())
    }

    fn fxsave(&mut self, wide: bool) -> [u8; FXSAVE] {
        xsave::fxsave(self.xstate.area.as_mut_slice(), self.layout, wide)
    }

    fn fxrstor(&mut self, image: &[u8], wide: bool) -> bool {
        xsave::fxrstor(self.xstate.area.as_mut_slice(), self.layout, image, wide)
    }
}

/// The translation that a nested fault on a device tells: the processor has made it, for this kind of access.
struct Told {
    gpa: u64,
    write: bool,
    /// A write is to what the instruction reads, if it reads memory: it has one operand there.
    single: bool,
    /// The linear address, once an access has come by that has it.
    la: Option<u64>,
}

impl Told {
    /// `None` where an operand of the same kind could lie at the same place of another page.
    fn of(f: &NestedFault, insn: &Insn) -> Option<Self> {
        let known = insn.op.has_one_place() || insn.op.is_string();
        (!f.walk && insn.op != Op::Cmps && known).then_some(Self {
            gpa: f.gpa.0,
            write: f.write,
            single: insn.op.has_one_place(),
            la: None,
        })
    }

    /// Whether it is the translation of `la` for `access`.
    fn is_of(&mut self, la: u64, access: Access) -> bool {
        let kind = if self.write {
            access == Access::Write || self.single
        } else {
            access == Access::Read
        };
        let place = match self.la {
            Some(known) => known == la,
            None => (la ^ self.gpa) & 0xfff == 0,
        };
        if kind && place {
            self.la = Some(la);
        }
        kind && place
    }
}

/// Offset of `gpa` in the local APIC's page.
#[inline]
fn lapic_offset(lapic: &Option<impl Deref<Target = LocalApic>>, gpa: u64) -> Option<u32> {
    let page = lapic.as_ref()?.page()?;
    (gpa & !0xfff == page).then_some((gpa & 0xfff) as u32)
}

/// Reads the local APIC by MMIO.
fn lapic_read(lapic: &Option<impl Deref<Target = LocalApic>>, offset: u32, buf: &mut [u8]) {
    if let Some(l) = lapic {
        l.read_bytes(offset, buf, hrtimer::ktime_get_ns());
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

/// Whether nobody is at `gpa`, where the local APIC's page would be in xAPIC mode: reads give ones and writes are lost,
/// as by KVM (KVM_X86_QUIRK_LAPIC_MMIO_HOLE), if user space does not want to see them.
fn is_lapic_hole(vm: &Vm, lapic: &Option<impl Deref<Target = LocalApic>>, gpa: u64) -> bool {
    let at = |l: &LocalApic| l.page().is_none() && l.apic_base() & !0xfff == gpa & !0xfff;
    lapic.as_deref().is_some_and(at) && vm.caps.quirk(k::KVM_X86_QUIRK_LAPIC_MMIO_HOLE)
}

impl GuestBus<'_, '_> {
    /// How emulation ends when memory could not be accessed: for some that user space brings it waits.
    fn stop(&mut self, e: MemError) -> Stop {
        LinearError::from(e).into_stop(&mut self.missing)
    }

    /// Before anything is done with memory or ports: the memory is there.
    fn check_present(&mut self, gpa: Gpa) -> Result<(), Stop> {
        if self.vm.missing.is_enabled() {
            self.view.check_present(gpa).map_err(|e| self.stop(e))?;
        }
        Ok(())
    }

    /// Guest-physical address of `la`, by the guest's page tables.
    fn walk(&mut self, la: u64, a: gwalk::Access) -> Result<u64, Stop> {
        let mut tables = Tables {
            view: self.view,
            stay: None,
        };
        match self.paging.translate(&mut tables, Gva(la), a) {
            Ok(gpa) => self.check_present(gpa).map(|()| gpa.0),
            Err(e) => {
                Err(LinearError::of_walk(e, &self.paging, la, a).into_stop(&mut self.missing))
            }
        }
    }

    /// Keeps what an access to the local APIC asks for, until the emulator is done.
    fn keep(&mut self, a: Action) {
        if !a.is_none() {
            if let Some(free) = self.actions.iter_mut().find(|x| x.is_none()) {
                *free = a;
            }
        }
    }
}

/// Most bytes in a piece of [`pieces`].
const PIECE: usize = 64;

/// Bytes of INS or OUTS that the port data page takes.
fn data_bytes(req: &PortRequest) -> usize {
    (req.count as usize)
        .saturating_mul(usize::from(req.width))
        .min(4096)
}

/// The data of INS or OUTS in pieces that lie in one page each: offset in the port data page, linear address, length.
/// What descends lies in one page, or is one item.
fn pieces(req: &PortRequest) -> impl Iterator<Item = (usize, u64, usize)> {
    let total = data_bytes(req);
    let (first, down) = (req.la, req.down && req.count > 1);
    let most = if down { req.width.into() } else { PIECE };
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = done;
        let la = if down {
            first.wrapping_sub(at as u64)
        } else {
            first.wrapping_add(at as u64)
        };
        let n = (total - at).min(most).min((4096 - (la & 0xfff)) as usize);
        done += n;
        (n != 0).then_some((at, la, n))
    })
}

impl Bus for GuestBus<'_, '_> {
    fn extends_idle_strings(&self) -> bool {
        self.intel
    }

    // What the processor does, not what the guest's CPUID says: outside of the emulator it does not look there either.
    fn has_tzcnt(&self) -> bool {
        cpuid::cpuid_checked(7, 0).ebx & 1 << 3 != 0
    }

    fn has_lzcnt(&self) -> bool {
        cpuid::cpuid_checked(0x8000_0001, 0).ecx & 1 << 5 != 0
    }

    fn translate(&mut self, la: u64, access: Access) -> Result<u64, Stop> {
        if let Some(told) = &mut self.told {
            if told.is_of(la, access) {
                return Ok(told.gpa);
            }
        }
        self.walk(
            la,
            gwalk::Access::data(access == Access::Write, self.cpl, self.ac),
        )
    }

    fn translate_system(&mut self, la: u64, access: Access) -> Result<u64, Stop> {
        self.walk(la, gwalk::Access::data(access == Access::Write, 0, false))
    }

    fn machine(&mut self) -> Option<&mut dyn Machine> {
        Some(self)
    }

    fn read_area(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let a = gwalk::Access::data(false, self.cpl, self.ac);
        read_linear(self.view, &self.paging, la, a, buf).map_err(|e| e.into_stop(&mut self.missing))
    }

    fn write_area(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
        let a = gwalk::Access::data(true, self.cpl, self.ac);
        write_linear(self.view, &self.paging, la, a, data)
            .map_err(|e| e.into_stop(&mut self.missing))
    }

    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> Result<Answer, Stop> {
        if let Some(offset) = lapic_offset(&self.lapic, gpa) {
            if offset == TPR {
                self.tpr = self.tpr.or(Some(false));
            }
            lapic_read(&self.lapic, offset, buf);
            return Ok(Answer::Done);
        }
        match self.view.read(Gpa(gpa), buf) {
            Ok(()) => Ok(Answer::Done),
            Err(MemError::NotRam) if self.vm.chip.mmio_read(gpa, buf) => Ok(Answer::Done),
            Err(MemError::NotRam) if is_lapic_hole(self.vm, &self.lapic, gpa) => {
                buf.fill(0xff);
                Ok(Answer::Done)
            }
            Err(MemError::NotRam) => Ok(Answer::User),
            Err(e) => Err(self.stop(e)),
        }
    }

    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<Answer, Stop> {
        if let Some(offset) = lapic_offset(&self.lapic, gpa) {
            if offset == TPR {
                self.tpr = Some(true);
            }
            let action = lapic_write(&mut self.lapic, offset, data);
            self.keep(action);
            return Ok(Answer::Done);
        }
        // Memory that user space itself may not write is a device for a write, as in KVM.
        match self.view.write(Gpa(gpa), data) {
            Ok(()) => Ok(Answer::Done),
            Err(e @ MemError::Missing(_)) => Err(self.stop(e)),
            Err(_) if self.vm.mmio_write(gpa, data) => Ok(Answer::Done),
            Err(MemError::NotRam) if is_lapic_hole(self.vm, &self.lapic, gpa) => Ok(Answer::Done),
            Err(_) => Ok(Answer::User),
        }
    }

    fn cmpxchg(&mut self, gpa: u64, old: u64, new: u64, width: u8) -> Result<Swap, Stop> {
        if lapic_offset(&self.lapic, gpa).is_some() {
            return Ok(Swap::NotRam);
        }
        match exchange(self.view, Gpa(gpa), old, new, width, None) {
            Ok(true) => Ok(Swap::Done),
            Ok(false) => Ok(Swap::Differs),
            Err(e @ MemError::Missing(_)) => Err(self.stop(e)),
            Err(_) => Ok(Swap::NotRam),
        }
    }

    fn check_port(&mut self, port: u16, width: u8) -> Result<(), Stop> {
        // The exit came after the processor's own check (SDM 3C 26.1.1, APM 2 15.10.2), but only for the port of the
        // exit: other code may have been put there meanwhile.
        if self.port == Some((port, width)) {
            return Ok(());
        }
        match port_permitted(self.view, &self.paging, &self.task, port, width) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Stop::Exception {
                vector: vector::GP,
                error_code: Some(0),
                cr2: None,
            }),
            Err(e) => Err(e.into_stop(&mut self.missing)),
        }
    }

    fn port_memory_is_ram(&mut self, req: &PortRequest, access: Access) -> Result<bool, Stop> {
        let write = access == Access::Write;
        let mut is_ram = |la| {
            let gpa = self.translate(la, access)?;
            Ok(lapic_offset(&self.lapic, gpa).is_none() && !self.view.is_device(Gpa(gpa), write))
        };
        let ram = is_ram(req.la)?;
        let last = req.la.wrapping_add(u64::from(req.width)).wrapping_sub(1);
        // The second page is looked at in any case: it may fault.
        Ok(if (req.la ^ last) & !0xfff != 0 {
            is_ram(last & !0xfff)? && ram
        } else {
            ram
        })
    }

    fn port_in_item(&mut self, port: u16, width: u8) -> Option<u32> {
        self.vm.chip.pio_read(port, width)
    }

    fn port_answer(&mut self, req: &PortRequest, n: u32) -> Result<u32, Stop> {
        let width = usize::from(req.width).clamp(1, 4);
        let mut item = [0u8; 4];
        let part = item.get_mut(..width).ok_or(Stop::Unsupported)?;
        let at = (n as usize).wrapping_mul(width) & 0xfff;
        self.run
            .copy_out(PIO_PAGE.wrapping_add(at), part)
            .map_err(|_| Stop::Unsupported)?;
        Ok(u32::from_le_bytes(item))
    }

    fn port_out_item(&mut self, port: u16, width: u8, item: u32) -> Result<Answer, Stop> {
        if self.vm.pio_write(port, width, item) {
            return Ok(Answer::Done);
        }
        self.run
            .write(PIO_PAGE, item)
            .map_err(|_| Stop::Unsupported)?;
        Ok(Answer::User)
    }

    fn port_in(&mut self, req: &PortRequest) -> Result<Answer, Stop> {
        self.translate(req.la, Access::Write)?;
        if (req.la & 0xfff) + u64::from(req.width) > 0x1000 {
            // One item across the border.
            self.translate(req.la.wrapping_add(4), Access::Write)?;
        }
        let mut bytes = [0u8; 4];
        let width = usize::from(req.width).min(4);
        let Some(value) = self.vm.chip.pio_read(req.port, req.width) else {
            return Ok(Answer::User);
        };
        bytes.copy_from_slice(&value.to_le_bytes());
        let mut done = 0u32;
        let mut item = bytes;
        loop {
            let gpa = self.translate(req.item(done), Access::Write)?;
            self.view
                .write(Gpa(gpa), item.get(..width).unwrap_or(&[]))
                .map_err(|_| Stop::Unsupported)?;
            done = done.wrapping_add(1);
            if done >= req.count {
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
        let mut item = [0u8; PIECE];
        for (at, la, n) in pieces(req) {
            let part = item.get_mut(..n).ok_or(Stop::Unsupported)?;
            self.run
                .copy_out(PIO_PAGE + at, part)
                .map_err(|_| Stop::Unsupported)?;
            let mut tables = Tables {
                view: self.view,
                stay: None,
            };
            let a = gwalk::Access::data(true, self.cpl, self.ac);
            let gpa = self
                .paging
                .translate(&mut tables, Gva(la), a)
                .map_err(|_| Stop::Unsupported)?;
            self.view.write(gpa, part).map_err(|_| Stop::Unsupported)?;
        }
        Ok(())
    }

    fn port_out(&mut self, req: &PortRequest) -> Result<Answer, Stop> {
        let mut item = [0u8; PIECE];
        for (at, la, n) in pieces(req) {
            let gpa = self.translate(la, Access::Read)?;
            let part = item.get_mut(..n).ok_or(Stop::Unsupported)?;
            self.view.read(Gpa(gpa), part).map_err(|e| self.stop(e))?;
            self.run
                .copy_in(PIO_PAGE + at, part)
                .map_err(|_| Stop::Unsupported)?;
        }
        // Devices in the kernel take the items one by one; the first answer speaks for all.
        let width = usize::from(req.width).clamp(1, 4);
        let mut i = 0usize;
        while i < data_bytes(req) {
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
    /// Emulates `insn`, which has met nested fault `fault` on a device, or continues where the replay log says. Returns
    /// actions of the local APIC too.
    pub(crate) fn emulate(
        &mut self,
        vm: &Vm,
        view: &MemoryView<'_>,
        run: &RunPages,
        insn: &Insn,
        fault: Option<&NestedFault>,
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
            lapic: self.apic.lapic.as_deref_mut(),
            run,
            intel: self.cpuid.features.vendor == Vendor::Intel,
            port: self.pending.io_port,
            task: *self.cpu.sregs.seg(Seg::Tr),
            told: fault.and_then(|f| Told::of(f, insn)),
            missing: None,
            actions: [Action::NONE; 2],
            tpr: None,
            xstate: &mut self.xstate,
            layout: &self.model.layout,
            changed: Changed::default(),
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
            &mut self.pending.replay,
        );
        let (actions, missing, tpr) = (bus.actions, bus.missing, bus.tpr);
        let changed = bus.changed;
        if self.apic.reports_tpr && tpr.is_some() {
            self.apic.tpr_access = tpr;
        }
        let outcome = match result {
            Ok(Outcome::Done) => {
                // A software interrupt clears TF, and is not followed by the trap.
                let cleared = self.cpu.regs.rflags & rflags::TF == 0;
                let interrupt = cleared && matches!(insn.op, Op::Int | Op::Into);
                self.completed_under(tf && !interrupt);
                self.take_changed(&changed);
                Emulated::Done
            }
            Ok(Outcome::Again) => {
                if tf && counters(&self.cpu.regs) != before {
                    self.completed();
                }
                Emulated::Done
            }
            Err(Stop::Suspend) => missing.map_or(Emulated::User, Emulated::Missing),
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
