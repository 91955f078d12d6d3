// SPDX-License-Identifier: GPL-2.0
//! Task switches in software (SDM 3A 9.3, APM 2 12.3): VMX leaves them to the hypervisor (SDM 3C 26.4.2).
//!
//! By the time of the exit the processor has checked gate, privilege and type of the new TSS's descriptor. [`switch`]
//! does the rest, on copies of the registers: the caller takes them over as [`Failed`] says.
#![forbid(unsafe_code)]

use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::{clean_rflags, cr0, rflags, Gpr, Mode, Regs, Seg, Segment, Sregs};
use crate::x86::emul::{linear_in_segment, Access, Stop};
use crate::x86::exit::{TaskSwitch, TaskSwitchBy};

/// Bits of a descriptor's type (SDM 3A tables 3-1 and 3-2).
mod typ {
    pub(super) const ACCESSED: u8 = 1;
    /// Of a TSS.
    pub(super) const BUSY: u8 = 2;
    /// Of a data segment; of code: readable.
    pub(super) const WRITABLE: u8 = 2;
    /// Of a code segment.
    pub(super) const CONFORMING: u8 = 4;
    pub(super) const CODE: u8 = 8;
    /// Of a TSS.
    pub(super) const BITS_32: u8 = 8;
    pub(super) const LDT: u8 = 2;
}

/// The guest's linear memory.
pub trait Memory {
    /// Reads at the privilege of the processor itself. Pages are those of the CR3 in force.
    fn read(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop>;

    /// Writes at the privilege of the processor itself, all or, on a fault, nothing.
    fn write(&mut self, la: u64, data: &[u8]) -> Result<(), Stop>;

    /// Writes to the stack at privilege level `cpl`.
    fn push(&mut self, la: u64, data: &[u8], cpl: u8) -> Result<(), Stop>;

    /// What follows uses the page tables of `cr3`. #GP(0) if it, or what it points to, cannot be loaded.
    fn set_cr3(&mut self, cr3: u64) -> Result<(), Stop>;
}

/// Why a switch was not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The old task is still the current one, and meets this: the registers that were given are to be dropped.
    Before(Stop),
    /// The new task meets this, an exception, before its first instruction: the registers are its own.
    After(Stop),
}

fn exception(vector: u8, code: u32) -> Stop {
    Stop::Exception {
        vector,
        error_code: Some(code),
        cr2: None,
    }
}

/// #TS with a selector.
fn ts(selector: u16) -> Stop {
    exception(vector::TS, u32::from(selector & !3))
}

/// A segment descriptor: where it is, and its eight bytes.
#[derive(Clone, Copy)]
struct Descriptor {
    la: u64,
    raw: u64,
}

impl Descriptor {
    /// Where the byte with the type is.
    const TYPE_AT: u64 = 5;

    /// The descriptor of `selector`. #TS if it is beyond its table.
    fn read<M: Memory + ?Sized>(m: &mut M, s: &Sregs, selector: u16) -> Result<Self, Stop> {
        let ldt = s.seg(Seg::Ldtr);
        let (base, limit) = match selector & 4 {
            0 => (s.gdt.base, u32::from(s.gdt.limit)),
            _ if ldt.unusable => return Err(ts(selector)),
            _ => (ldt.base, ldt.limit),
        };
        let at = u32::from(selector & !7);
        if at | 7 > limit {
            return Err(ts(selector));
        }
        let la = base.wrapping_add(at.into()) & 0xffff_ffff;
        let mut raw = [0; 8];
        m.read(la, &mut raw)?;
        let raw = u64::from_le_bytes(raw);
        Ok(Self { la, raw })
    }

    fn segment(&self, selector: u16) -> Segment {
        Segment::of_descriptor(selector, self.raw)
    }

    /// Sets `set` in the type and clears `clear`, in memory.
    fn change<M: Memory + ?Sized>(&self, m: &mut M, set: u8, clear: u8) -> Result<(), Stop> {
        let byte = (self.raw >> 40) as u8;
        let la = self.la.wrapping_add(Self::TYPE_AT) & 0xffff_ffff;
        m.write(la, &[byte & !clear | set])
    }
}

/// Where things are in a TSS of 32 or 16 bits (SDM 3A figures 9-2 and 9-10). Fields are `width` bytes wide; segments
/// lie one field apart.
struct Layout {
    size: usize,
    width: usize,
    /// CR3, or none.
    cr3: Option<usize>,
    /// EIP, EFLAGS, EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI follow each other.
    ip: usize,
    /// ES, CS, SS, DS, and with 32 bits FS and GS.
    segments: usize,
    segment_count: usize,
    ldt: usize,
}

const TSS32: Layout = Layout {
    size: 104,
    width: 4,
    cr3: Some(0x1c),
    ip: 0x20,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
};

const TSS16: Layout = Layout {
    size: 44,
    width: 2,
    cr3: None,
    ip: 0x0e,
    segments: 0x22,
    segment_count: 4,
    ldt: 0x2a,
};

/// A TSS's bytes.
struct Image {
    bytes: [u8; 104],
    layout: &'static Layout,
}

impl Image {
    fn read<M: Memory + ?Sized>(m: &mut M, base: u64, typ: u8) -> Result<Self, Stop> {
        let layout = if typ & typ::BITS_32 != 0 {
            &TSS32
        } else {
            &TSS16
        };
        let mut bytes = [0; 104];
        m.read(base, bytes.get_mut(..layout.size).unwrap_or_default())?;
        Ok(Self { bytes, layout })
    }

    fn get(&self, at: usize, width: usize) -> u64 {
        let bytes = self.bytes.get(at..).unwrap_or_default();
        let mut v = [0; 8];
        for (to, from) in v.iter_mut().zip(bytes).take(width) {
            *to = *from;
        }
        u64::from_le_bytes(v)
    }

    fn put(&mut self, at: usize, width: usize, value: u64) {
        let bytes = self.bytes.get_mut(at..).unwrap_or_default();
        for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()).take(width) {
            *to = from;
        }
    }

    /// Field `n` from the instruction pointer on.
    fn field(&self, n: usize) -> u64 {
        let l = self.layout;
        self.get(l.ip + n * l.width, l.width)
    }

    /// Selector of the segment register with encoding `n`.
    fn selector(&self, n: usize) -> u16 {
        self.get(self.layout.segments + n * self.layout.width, 2) as u16
    }

    /// Saves what a task leaves in its TSS: not CR3 and LDTR (SDM 3A 9.3).
    fn save(&mut self, regs: &Regs, flags: u64, s: &Sregs) {
        let l = self.layout;
        self.put(l.ip, l.width, regs.rip);
        self.put(l.ip + l.width, l.width, flags);
        for n in 0..8usize {
            let value = regs.get(Gpr::from_bits(n as u8));
            self.put(l.ip + (2 + n) * l.width, l.width, value);
        }
        for (n, seg) in SEGMENTS.iter().enumerate().take(l.segment_count) {
            self.put(l.segments + n * l.width, 2, s.seg(*seg).selector.into());
        }
    }
}

/// In the order of a TSS, and of their loading.
const SEGMENTS: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];

/// Carries out task switch `t`. `regs` and `sregs` are those of the old task, with RIP as it has to go on, and become
/// those of the new one; DR7's local enables are the caller's to clear. `error_code` is pushed on the new task's stack.
///
/// # Errors
///
/// See [`Failed`]. Only [`Stop::Exception`] comes after the switch; a switch that is repeated after any other gives the
/// same result.
pub fn switch<M: Memory + ?Sized>(
    t: &TaskSwitch,
    error_code: Option<u32>,
    regs: &mut Regs,
    sregs: &mut Sregs,
    m: &mut M,
) -> Result<(), Failed> {
    let (next, image) = leave(t, regs, sregs, m).map_err(Failed::Before)?;
    enter(t, error_code, &next, &image, regs, sregs, m).map_err(|stop| match stop {
        Stop::Exception { .. } => Failed::After(stop),
        _ => Failed::Before(stop),
    })
}

/// The old task's part: its state is saved. The new TSS's descriptor, and what the TSS holds.
fn leave<M: Memory + ?Sized>(
    t: &TaskSwitch,
    regs: &Regs,
    s: &Sregs,
    m: &mut M,
) -> Result<(Descriptor, Image), Stop> {
    if t.selector & 4 != 0 {
        return Err(ts(t.selector));
    }
    let next = Descriptor::read(m, s, t.selector)?;
    let tss = next.segment(t.selector);
    let least = if tss.typ & typ::BITS_32 != 0 {
        0x67
    } else {
        0x2b
    };
    if tss.s || tss.typ & 5 != 1 || !tss.present || tss.limit < least {
        return Err(ts(t.selector));
    }
    let tr = s.seg(Seg::Tr);
    // All that is read comes first: a page that is not there leaves nothing behind.
    let old = Descriptor::read(m, s, tr.selector)?;
    let mut own = Image::read(m, tr.base, tr.typ)?;
    let mut image = Image::read(m, tss.base, tss.typ)?;
    let returns = t.by == TaskSwitchBy::Iret;
    let flags = if returns {
        regs.rflags & !rflags::NT
    } else {
        regs.rflags
    };
    own.save(regs, flags, s);
    let l = own.layout;
    let saved = own.bytes.get(l.ip..l.ldt).unwrap_or_default();
    m.write(tr.base.wrapping_add(l.ip as u64), saved)?;
    if returns || t.by == TaskSwitchBy::Jump {
        old.change(m, 0, typ::BUSY)?;
    } else {
        image.put(0, 2, tr.selector.into());
        m.write(tss.base, &tr.selector.to_le_bytes())?;
    }
    if tr.selector & !7 == t.selector & !7 {
        // A task that goes to itself finds what it has left.
        image = Image::read(m, tss.base, tss.typ)?;
    }
    if !returns {
        next.change(m, typ::BUSY, 0)?;
    }
    Ok((next, image))
}

/// The new task's part.
fn enter<M: Memory + ?Sized>(
    t: &TaskSwitch,
    error_code: Option<u32>,
    next: &Descriptor,
    image: &Image,
    regs: &mut Regs,
    s: &mut Sregs,
    m: &mut M,
) -> Result<(), Stop> {
    let l = image.layout;
    let tr = s.seg_mut(Seg::Tr);
    *tr = next.segment(t.selector);
    tr.typ |= typ::BUSY;
    s.cr0 |= cr0::TS;
    regs.rip = image.field(0);
    regs.rflags = clean_rflags(image.field(1));
    if matches!(t.by, TaskSwitchBy::Call | TaskSwitchBy::Gate) {
        regs.rflags |= rflags::NT;
    }
    for n in 0..8usize {
        regs.set(Gpr::from_bits(n as u8), image.field(2 + n));
    }
    // Selectors come before what they select, which may fault.
    let ldt = image.get(l.ldt, 2) as u16;
    let null = |selector| Segment {
        selector,
        unusable: true,
        ..Segment::default()
    };
    *s.seg_mut(Seg::Ldtr) = null(ldt);
    let vm86 = regs.rflags & rflags::VM != 0;
    for (n, seg) in SEGMENTS.iter().enumerate() {
        let selector = match n < l.segment_count {
            true => image.selector(n),
            false => 0,
        };
        // What is in force has to remain a possible state.
        match seg {
            _ if vm86 => *s.seg_mut(*seg) = Segment::virtual_8086(selector),
            Seg::Cs | Seg::Ss => s.seg_mut(*seg).selector = selector,
            _ => *s.seg_mut(*seg) = null(selector),
        }
    }
    if let (Some(at), true) = (l.cr3, s.cr0 & cr0::PG != 0) {
        let cr3 = image.get(at, 4);
        m.set_cr3(cr3)?;
        s.cr3 = cr3;
    }
    load_ldt(ldt, s, m)?;
    let cpl = if vm86 { 3 } else { image.selector(1) as u8 & 3 };
    let loaded = if vm86 { 0 } else { l.segment_count };
    for (n, seg) in SEGMENTS.iter().enumerate().take(loaded) {
        *s.seg_mut(*seg) = load(*seg, image.selector(n), cpl, s, m)?;
        if *seg == Seg::Cs && s.seg(Seg::Ss).dpl != cpl {
            // SS, which comes next, has to be of this level even if it cannot be loaded.
            *s.seg_mut(Seg::Ss) = Segment {
                dpl: cpl,
                ..null(image.selector(2))
            };
        }
    }
    match error_code {
        Some(code) => push(code, l.width, cpl, regs, s, m),
        None => Ok(()),
    }
}

/// Loads LDTR.
fn load_ldt<M: Memory + ?Sized>(selector: u16, s: &mut Sregs, m: &mut M) -> Result<(), Stop> {
    if selector & !3 == 0 {
        return Ok(());
    }
    if selector & 4 != 0 {
        return Err(ts(selector));
    }
    let ldt = Descriptor::read(m, s, selector)?.segment(selector);
    if ldt.s || ldt.typ != typ::LDT || !ldt.present {
        return Err(ts(selector));
    }
    *s.seg_mut(Seg::Ldtr) = ldt;
    Ok(())
}

/// The segment that `selector` brings to `seg` in a task of privilege level `cpl` (SDM 3A table 9-1).
fn load<M: Memory + ?Sized>(
    seg: Seg,
    selector: u16,
    cpl: u8,
    s: &Sregs,
    m: &mut M,
) -> Result<Segment, Stop> {
    if selector & !3 == 0 {
        return match seg {
            Seg::Cs | Seg::Ss => Err(ts(selector)),
            _ => Ok(*s.seg(seg)),
        };
    }
    let descriptor = Descriptor::read(m, s, selector)?;
    let mut new = descriptor.segment(selector);
    let rpl = selector as u8 & 3;
    let (code, dpl) = (new.typ & typ::CODE != 0, new.dpl);
    let conforming = code && new.typ & typ::CONFORMING != 0;
    let fits = match seg {
        Seg::Cs => code && if conforming { dpl <= rpl } else { dpl == rpl },
        Seg::Ss => !code && new.typ & typ::WRITABLE != 0 && rpl == cpl && dpl == cpl,
        _ => (!code || new.typ & typ::WRITABLE != 0) && (conforming || dpl >= rpl.max(cpl)),
    };
    if !new.s || !fits {
        return Err(ts(selector));
    }
    if !new.present {
        let vector = if seg == Seg::Ss {
            vector::SS
        } else {
            vector::NP
        };
        return Err(exception(vector, u32::from(selector & !3)));
    }
    if new.typ & typ::ACCESSED == 0 {
        descriptor.change(m, typ::ACCESSED, 0)?;
        new.typ |= typ::ACCESSED;
    }
    // IA-32e mode has no task switches: L means nothing here.
    new.l = false;
    Ok(new)
}

/// Pushes an error code of `width` bytes.
fn push<M: Memory + ?Sized>(
    code: u32,
    width: usize,
    cpl: u8,
    regs: &mut Regs,
    s: &Sregs,
    m: &mut M,
) -> Result<(), Stop> {
    let ss = s.seg(Seg::Ss);
    let mask = if ss.db { 0xffff_ffff } else { 0xffff };
    let old = regs.get(Gpr::Rsp);
    let top = old.wrapping_sub(width as u64) & mask;
    let mode = if regs.rflags & rflags::VM != 0 {
        Mode::Vm86
    } else {
        Mode::Prot32
    };
    let la = linear_in_segment(Seg::Ss, ss, top, width as u32, Access::Write, mode)?;
    let bytes = code.to_le_bytes();
    m.push(la, bytes.get(..width).unwrap_or_default(), cpl)?;
    regs.set(Gpr::Rsp, old & !mask | top);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::cpu::regs::{cr4, DescTable};
    use std::vec;
    use std::vec::Vec;

    struct Flat {
        bytes: Vec<u8>,
        hole: Option<u64>,
        cr3: Vec<u64>,
    }

    fn pf(la: u64) -> Stop {
        Stop::Exception {
            vector: vector::PF,
            error_code: Some(0),
            cr2: Some(la),
        }
    }

    impl Memory for Flat {
        fn read(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
            if self.hole == Some(la & !0xfff) {
                return Err(pf(la));
            }
            buf.copy_from_slice(&self.bytes[la as usize..][..buf.len()]);
            Ok(())
        }
        fn write(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
            if self.hole == Some(la & !0xfff) {
                return Err(pf(la));
            }
            self.bytes[la as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }
        fn push(&mut self, la: u64, data: &[u8], _: u8) -> Result<(), Stop> {
            self.write(la, data)
        }
        fn set_cr3(&mut self, cr3: u64) -> Result<(), Stop> {
            self.cr3.push(cr3);
            Ok(())
        }
    }

    impl Flat {
        fn get(&self, la: u64, n: usize) -> u64 {
            let mut b = [0; 8];
            b[..n].copy_from_slice(&self.bytes[la as usize..][..n]);
            u64::from_le_bytes(b)
        }
        fn put(&mut self, la: u64, n: usize, v: u64) {
            self.bytes[la as usize..][..n].copy_from_slice(&v.to_le_bytes()[..n]);
        }
        fn typ(&self, selector: u64) -> u64 {
            self.get(GDT + selector + 5, 1) & 15
        }
    }

    const GDT: u64 = 0x1000;
    const OLD: u64 = 0x2000;
    const NEW: u64 = 0x3000;
    const SMALL: u64 = 0x4000;
    const STACK: u64 = 0x6000;
    const CODE: u16 = 0x08;
    const DATA: u16 = 0x10;
    const OLD_TSS: u16 = 0x18;
    const NEW_TSS: u16 = 0x20;
    const SMALL_TSS: u16 = 0x28;
    const USER_CODE: u16 = 0x33;
    const USER_DATA: u16 = 0x3b;
    const LDT: u16 = 0x40;
    const ABSENT: u16 = 0x48;

    /// Type with S, DPL and P; limit in pages where `flags` has G.
    fn descriptor(base: u64, limit: u64, typ: u64, flags: u64) -> u64 {
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | typ << 40
            | (limit >> 16 & 15) << 48
            | flags << 52
            | (base >> 24) << 56
    }

    fn board() -> (Regs, Sregs, Flat) {
        let mut m = Flat {
            bytes: vec![0; 0x8000],
            hole: None,
            cr3: Vec::new(),
        };
        for (selector, raw) in [
            (CODE, descriptor(0, 0xfffff, 0x9b, 0xc)),
            (DATA, descriptor(0, 0xfffff, 0x92, 0xc)),
            (OLD_TSS, descriptor(OLD, 0x67, 0x8b, 0)),
            (NEW_TSS, descriptor(NEW, 0x67, 0x89, 0)),
            (SMALL_TSS, descriptor(SMALL, 0x2b, 0x81, 0)),
            (USER_CODE, descriptor(0, 0xfffff, 0xfb, 0xc)),
            (USER_DATA, descriptor(0, 0xfffff, 0xf3, 0xc)),
            (LDT, descriptor(0x5000, 0xff, 0x82, 0)),
            (ABSENT, descriptor(0, 0xfffff, 0x12, 0xc)),
        ] {
            m.put(GDT + u64::from(selector & !7), 8, raw);
        }
        m.put(NEW + 0x1c, 4, 0x7000);
        m.put(NEW + 0x20, 4, 0x1234_5678);
        m.put(NEW + 0x24, 4, 0x202);
        for n in 0..8u64 {
            m.put(NEW + 0x28 + 4 * n, 4, 0xa000_0000 + n);
            m.put(SMALL + 0x12 + 2 * n, 2, 0xb000 + n);
        }
        m.put(NEW + 0x38, 4, STACK);
        m.put(SMALL + 0x0e, 2, 0x4321);
        m.put(SMALL + 0x1a, 2, STACK);
        for (n, selector) in [DATA, CODE, DATA, DATA].into_iter().enumerate() {
            m.put(NEW + 0x48 + 4 * n as u64, 2, selector.into());
            m.put(SMALL + 0x22 + 2 * n as u64, 2, selector.into());
        }
        m.put(NEW + 0x58, 2, DATA.into());
        m.put(NEW + 0x60, 2, LDT.into());
        let mut regs = Regs {
            rip: 0x100,
            rflags: rflags::FIXED | rflags::CF,
            ..Regs::default()
        };
        for n in 0..8u8 {
            regs.set(Gpr::from_bits(n), 0xc0 + u64::from(n));
        }
        let mut s = Sregs {
            cr0: cr0::PE | cr0::PG,
            cr4: cr4::PAE,
            cr3: 0x1000,
            gdt: DescTable {
                base: GDT,
                limit: 0x4f,
            },
            ..Sregs::default()
        };
        for (seg, selector) in [(Seg::Cs, CODE), (Seg::Ss, DATA), (Seg::Tr, OLD_TSS)] {
            *s.seg_mut(seg) = Descriptor::read(&mut m, &s, selector)
                .unwrap()
                .segment(selector);
        }
        (regs, s, m)
    }

    fn by(selector: u16, by: TaskSwitchBy) -> TaskSwitch {
        TaskSwitch { selector, by }
    }

    #[test]
    fn call_and_return() {
        let (mut r, mut s, mut m) = board();
        let t = by(NEW_TSS, TaskSwitchBy::Call);
        assert_eq!(switch(&t, None, &mut r, &mut s, &mut m), Ok(()));
        assert_eq!((r.rip, r.rflags), (0x1234_5678, 0x202 | rflags::NT));
        assert_eq!((r.get(Gpr::Rax), r.get(Gpr::Rsp)), (0xa000_0000, STACK));
        assert_eq!((s.cr3, m.cr3[0]), (0x7000, 0x7000));
        assert!(s.cr0 & cr0::TS != 0);
        assert_eq!((s.seg(Seg::Ss).selector, s.seg(Seg::Ss).typ), (DATA, 3));
        assert!(s.seg(Seg::Gs).unusable && !s.seg(Seg::Fs).unusable);
        assert_eq!(s.seg(Seg::Ldtr).base, 0x5000);
        assert_eq!((s.seg(Seg::Tr).base, s.seg(Seg::Tr).typ), (NEW, 11));
        // Both are busy, and the new one knows the way back; the data segment has been accessed.
        assert_eq!((m.typ(OLD_TSS.into()), m.typ(NEW_TSS.into())), (11, 11));
        assert_eq!(m.typ(DATA.into()), 3);
        assert_eq!(m.get(NEW, 2), u64::from(OLD_TSS));
        assert_eq!((m.get(OLD + 0x20, 4), m.get(OLD + 0x24, 4)), (0x100, 3));
        assert_eq!(m.get(OLD + 0x38, 4), 0xc4);
        assert_eq!(m.get(OLD + 0x4c, 2), u64::from(CODE));
        m.put(OLD + 0x48, 2, USER_DATA.into());
        m.put(OLD + 0x4c, 2, USER_CODE.into());
        m.put(OLD + 0x50, 2, USER_DATA.into());
        let t = by(OLD_TSS, TaskSwitchBy::Iret);
        assert_eq!(switch(&t, None, &mut r, &mut s, &mut m), Ok(()));
        assert_eq!((r.rip, r.rflags, r.get(Gpr::Rdi)), (0x100, 3, 0xc7));
        assert_eq!(s.cpl(r.rflags), 3);
        assert_eq!((m.typ(OLD_TSS.into()), m.typ(NEW_TSS.into())), (11, 9));
        assert_eq!(m.get(NEW + 0x24, 4), 0x202);
        assert!(s.seg(Seg::Ldtr).unusable);
    }

    #[test]
    fn sixteen_bits() {
        let (mut r, mut s, mut m) = board();
        r.set(Gpr::Rbx, 0x1_2345);
        let t = by(SMALL_TSS, TaskSwitchBy::Jump);
        assert_eq!(switch(&t, Some(0x77), &mut r, &mut s, &mut m), Ok(()));
        assert_eq!((r.rip, r.get(Gpr::Rax)), (0x4321, 0xb000));
        assert_eq!((s.seg(Seg::Tr).typ, m.typ(OLD_TSS.into())), (3, 9));
        // The error code has the width of the TSS; CR3 is the old one.
        assert_eq!(r.get(Gpr::Rsp), STACK - 2);
        assert_eq!(m.get(STACK - 2, 2), 0x77);
        assert_eq!((s.cr3, m.cr3.len()), (0x1000, 0));
        assert!(s.seg(Seg::Fs).unusable);
        // Back, from a TSS of 16 bits.
        let t = by(OLD_TSS, TaskSwitchBy::Jump);
        m.put(SMALL + 0x10, 2, 0xffff);
        assert_eq!(switch(&t, None, &mut r, &mut s, &mut m), Ok(()));
        assert_eq!(
            (m.get(SMALL + 0x0e, 2), m.get(SMALL + 0x10, 2)),
            (0x4321, 2)
        );
        assert_eq!((r.get(Gpr::Rbx), m.typ(SMALL_TSS.into())), (0x1_2345, 1));
    }

    #[test]
    fn error_code_and_virtual_8086_mode() {
        let (mut r, mut s, mut m) = board();
        let t = by(NEW_TSS, TaskSwitchBy::Gate);
        assert_eq!(switch(&t, Some(0x5678), &mut r, &mut s, &mut m), Ok(()));
        assert_eq!(r.get(Gpr::Rsp), STACK - 4);
        assert_eq!(m.get(STACK - 4, 4), 0x5678);
        let (mut r, mut s, mut m) = board();
        m.put(NEW + 0x24, 4, rflags::VM | 2);
        m.put(NEW + 0x4c, 2, 0x1234);
        assert_eq!(switch(&t, None, &mut r, &mut s, &mut m), Ok(()));
        assert_eq!(s.mode(r.rflags), Mode::Vm86);
        assert_eq!(s.seg(Seg::Cs).base, 0x12340);
        assert_eq!((s.seg(Seg::Gs).base, s.seg(Seg::Gs).dpl), (0, 3));
    }

    #[test]
    fn faults() {
        let t = by(NEW_TSS, TaskSwitchBy::Call);
        // Before: nothing has changed.
        let (mut r, mut s, mut m) = board();
        let before = m.bytes.clone();
        m.hole = Some(NEW);
        let result = switch(&t, None, &mut r, &mut s, &mut m);
        assert_eq!(result, Err(Failed::Before(pf(NEW))));
        assert!(m.bytes == before);
        let (mut r, mut s, mut m) = board();
        m.put(GDT + u64::from(NEW_TSS), 2, 0x66);
        let result = switch(&t, None, &mut r, &mut s, &mut m);
        assert_eq!(result, Err(Failed::Before(ts(NEW_TSS))));
        for selector in [DATA, 0x50, 0x24] {
            let t = by(selector, TaskSwitchBy::Call);
            let result = switch(&t, None, &mut r, &mut s, &mut m);
            assert_eq!(result, Err(Failed::Before(ts(selector))));
        }
        // After: (place in the TSS, selector, vector).
        for (at, selector, vector) in [
            (0x4c, 0, vector::TS),
            (0x4c, DATA, vector::TS),
            (0x50, CODE, vector::TS),
            (0x50, USER_DATA, vector::TS),
            (0x50, 0, vector::TS),
            (0x54, ABSENT, vector::NP),
            (0x50, ABSENT, vector::SS),
            (0x48, NEW_TSS, vector::TS),
            (0x48, 0x58, vector::TS),
            (0x48, 0x0107, vector::TS),
            (0x60, DATA, vector::TS),
        ] {
            let (mut r, mut s, mut m) = board();
            m.put(NEW + at, 2, selector.into());
            let result = switch(&t, None, &mut r, &mut s, &mut m);
            let code = u32::from(selector & !3);
            let want = Err(Failed::After(exception(vector, code)));
            assert_eq!(result, want, "{at:#x} {selector:#x}");
            assert_eq!((r.rip, s.seg(Seg::Tr).base), (0x1234_5678, NEW));
            assert_eq!(s.seg(Seg::Ss).dpl, s.seg(Seg::Cs).dpl);
        }
    }

    /// What faults leave is a state that can be entered: CS and SS of one level, or all of virtual-8086 mode.
    #[test]
    fn faults_leave_a_state() {
        let t = by(NEW_TSS, TaskSwitchBy::Call);
        let (mut r, mut s, mut m) = board();
        m.put(NEW + 0x48, 2, USER_DATA.into());
        m.put(NEW + 0x4c, 2, USER_CODE.into());
        let result = switch(&t, None, &mut r, &mut s, &mut m);
        assert_eq!(result, Err(Failed::After(ts(DATA))));
        assert_eq!((s.cpl(r.rflags), s.seg(Seg::Cs).dpl), (3, 3));
        let (mut r, mut s, mut m) = board();
        m.put(NEW + 0x24, 4, rflags::VM | 2);
        m.put(NEW + 0x60, 2, DATA.into());
        let result = switch(&t, None, &mut r, &mut s, &mut m);
        assert_eq!(result, Err(Failed::After(ts(DATA))));
        let cs = s.seg(Seg::Cs);
        assert_eq!(
            (s.mode(r.rflags), cs.base),
            (Mode::Vm86, u64::from(CODE) << 4)
        );
    }

    #[test]
    fn to_itself() {
        let (mut r, mut s, mut m) = board();
        let t = by(OLD_TSS, TaskSwitchBy::Jump);
        m.put(OLD + 0x1c, 4, 0x1000);
        for at in [0x48, 0x54] {
            m.put(OLD + at, 2, DATA.into());
        }
        *s.seg_mut(Seg::Es) = *s.seg(Seg::Ss);
        let before = r;
        assert_eq!(switch(&t, None, &mut r, &mut s, &mut m), Ok(()));
        assert_eq!((r, m.typ(OLD_TSS.into())), (before, 11));
    }
}
