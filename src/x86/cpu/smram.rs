// SPDX-License-Identifier: GPL-2.0
//! The state-save area of system management mode: what a processor writes to SMRAM when an SMI comes, and RSM loads
//! (SDM 3C 32.4.1, APM 2 10.2.3).
//!
//! Two formats, as in KVM: that of AMD64 for vCPUs with long mode, that of the P6 for others. What manuals leave open
//! is where KVM has it, so that firmware made for KVM finds it.
#![forbid(unsafe_code)]

use crate::x86::cpu::regs::{DescTable, Gpr, Regs, Seg, Segment, Sregs};

/// Offset of the area from SMBASE.
pub const OFFSET: u64 = 0xfe00;
/// Its size in bytes.
pub const BYTES: usize = 512;
/// Where the handler begins, from SMBASE.
pub const ENTRY: u64 = 0x8000;

/// Revision identifiers: bit 17 says that SMBASE can be moved (SDM 3C 32.9), the low byte which format it is.
const REVISION_32: u32 = 0x2_0000;
const REVISION_64: u32 = 0x2_0064;

/// Interrupt shadows in the field that KVM has for them.
const SHADOW_MOV_SS: u8 = 1 << 0;
const SHADOW_STI: u8 = 1 << 1;

/// What is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// General registers, RIP, RFLAGS.
    pub regs: Regs,
    /// System registers. CR2 is not saved; EFER only in the 64-bit format.
    pub sregs: Sregs,
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// SMBASE, which a handler may change.
    pub smbase: u32,
    /// The shadow of STI.
    pub sti: bool,
    /// The shadow of MOV SS.
    pub mov_ss: bool,
}

/// The area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area(pub [u8; BYTES]);

/// Offsets in the area of 64-bit format.
mod at64 {
    use crate::x86::cpu::regs::Seg;

    pub(super) const SEGMENTS: [(Seg, usize); 8] = [
        (Seg::Es, 0x00),
        (Seg::Cs, 0x10),
        (Seg::Ss, 0x20),
        (Seg::Ds, 0x30),
        (Seg::Fs, 0x40),
        (Seg::Gs, 0x50),
        (Seg::Ldtr, 0x70),
        (Seg::Tr, 0x90),
    ];
    pub(super) const GDTR: usize = 0x60;
    pub(super) const IDTR: usize = 0x80;
    pub(super) const SHADOW: usize = 0xcb;
    pub(super) const EFER: usize = 0xd0;
    pub(super) const REVISION: usize = 0xfc;
    pub(super) const SMBASE: usize = 0x100;
    pub(super) const CR4: usize = 0x148;
    pub(super) const CR3: usize = 0x150;
    pub(super) const CR0: usize = 0x158;
    pub(super) const DR7: usize = 0x160;
    pub(super) const DR6: usize = 0x168;
    pub(super) const RFLAGS: usize = 0x170;
    pub(super) const RIP: usize = 0x178;
    /// R15 first.
    pub(super) const GPRS: usize = 0x180;
}

/// Offsets in the area of 32-bit format.
mod at32 {
    use crate::x86::cpu::regs::Seg;

    /// Flags, limit and base; the selector.
    pub(super) const SEGMENTS: [(Seg, usize, usize); 8] = [
        (Seg::Ds, 0x12c, 0x1b4),
        (Seg::Fs, 0x138, 0x1b8),
        (Seg::Gs, 0x144, 0x1bc),
        (Seg::Tr, 0x15c, 0x1c4),
        (Seg::Ldtr, 0x178, 0x1c0),
        (Seg::Es, 0x184, 0x1a8),
        (Seg::Cs, 0x190, 0x1ac),
        (Seg::Ss, 0x19c, 0x1b0),
    ];
    pub(super) const SMBASE: usize = 0xf8;
    pub(super) const REVISION: usize = 0xfc;
    pub(super) const CR4: usize = 0x114;
    pub(super) const SHADOW: usize = 0x11a;
    pub(super) const IDTR: usize = 0x150;
    pub(super) const GDTR: usize = 0x16c;
    pub(super) const DR7: usize = 0x1c8;
    pub(super) const DR6: usize = 0x1cc;
    /// EAX first.
    pub(super) const GPRS: usize = 0x1d0;
    pub(super) const EIP: usize = 0x1f0;
    pub(super) const EFLAGS: usize = 0x1f4;
    pub(super) const CR3: usize = 0x1f8;
    pub(super) const CR0: usize = 0x1fc;
}

/// The attributes of `s` where a descriptor has them, from bit 8 of its upper half on (SDM 3A 3.4.5).
const fn attributes(s: &Segment) -> u16 {
    (s.typ & 15) as u16
        | (s.s as u16) << 4
        | ((s.dpl & 3) as u16) << 5
        | (s.present as u16) << 7
        | (s.avl as u16) << 12
        | (s.l as u16) << 13
        | (s.db as u16) << 14
        | (s.g as u16) << 15
}

/// The segment register with these attributes.
const fn segment(selector: u16, base: u64, limit: u32, a: u16) -> Segment {
    let present = a & 1 << 7 != 0;
    Segment {
        base,
        limit,
        selector,
        typ: a as u8 & 15,
        s: a & 1 << 4 != 0,
        dpl: (a >> 5) as u8 & 3,
        present,
        avl: a & 1 << 12 != 0,
        l: a & 1 << 13 != 0,
        db: a & 1 << 14 != 0,
        g: a & 1 << 15 != 0,
        unusable: !present,
    }
}

impl Saved {
    fn shadow(&self) -> u8 {
        u8::from(self.sti) * SHADOW_STI | u8::from(self.mov_ss) * SHADOW_MOV_SS
    }

    fn set_shadow(&mut self, shadow: u8) {
        self.sti = shadow & SHADOW_STI != 0;
        self.mov_ss = shadow & SHADOW_MOV_SS != 0;
    }
}

impl Area {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        if let Some(to) = self.0.get_mut(at..).and_then(|to| to.first_chunk_mut()) {
            *to = bytes;
        }
    }

    fn put32(&mut self, at: usize, value: u64) {
        self.put(at, (value as u32).to_le_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.put(at, value.to_le_bytes());
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let from = self.0.get(at..).and_then(|from| from.first_chunk());
        from.copied().unwrap_or([0; N])
    }

    fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }

    fn get64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }

    /// What an SMI writes for a vCPU with long mode, or (`long` false) without.
    pub fn save(s: &Saved, long: bool) -> Self {
        let mut area = Self([0; BYTES]);
        if long {
            area.save64(s);
        } else {
            area.save32(s);
        }
        area
    }

    /// What RSM loads, in the format of [`Area::save`], where `now` is what the registers hold that are not in it.
    pub fn load(&self, now: &Saved, long: bool) -> Saved {
        if long {
            self.load64(now)
        } else {
            self.load32(now)
        }
    }

    fn save64(&mut self, s: &Saved) {
        let x = &s.sregs;
        for (seg, at) in at64::SEGMENTS {
            let r = x.seg(seg);
            self.put(at, r.selector.to_le_bytes());
            self.put(at + 2, attributes(r).to_le_bytes());
            self.put32(at + 4, r.limit.into());
            self.put64(at + 8, r.base);
        }
        for (at, table) in [(at64::GDTR, &x.gdt), (at64::IDTR, &x.idt)] {
            self.put32(at + 4, table.limit.into());
            self.put64(at + 8, table.base);
        }
        for (n, value) in s.regs.gpr.iter().rev().enumerate() {
            self.put64(at64::GPRS + 8 * n, *value);
        }
        for (at, value) in [
            (at64::EFER, x.efer),
            (at64::CR4, x.cr4),
            (at64::CR3, x.cr3),
            (at64::CR0, x.cr0),
            (at64::DR7, s.dr7),
            (at64::DR6, s.dr6),
            (at64::RFLAGS, s.regs.rflags),
            (at64::RIP, s.regs.rip),
        ] {
            self.put64(at, value);
        }
        self.put32(at64::REVISION, REVISION_64.into());
        self.put32(at64::SMBASE, s.smbase.into());
        self.put(at64::SHADOW, [s.shadow()]);
    }

    fn load64(&self, now: &Saved) -> Saved {
        let mut s = *now;
        let x = &mut s.sregs;
        for (seg, at) in at64::SEGMENTS {
            let (base, limit) = (self.get64(at + 8), self.get32(at + 4));
            *x.seg_mut(seg) = segment(self.get16(at), base, limit, self.get16(at + 2));
        }
        for (at, table) in [(at64::GDTR, &mut x.gdt), (at64::IDTR, &mut x.idt)] {
            *table = DescTable {
                base: self.get64(at + 8),
                limit: self.get16(at + 4),
            };
        }
        x.efer = self.get64(at64::EFER);
        x.cr4 = self.get64(at64::CR4);
        x.cr3 = self.get64(at64::CR3);
        x.cr0 = self.get64(at64::CR0);
        for (n, value) in s.regs.gpr.iter_mut().rev().enumerate() {
            *value = self.get64(at64::GPRS + 8 * n);
        }
        s.dr7 = self.get64(at64::DR7);
        s.dr6 = self.get64(at64::DR6);
        s.regs.rflags = self.get64(at64::RFLAGS);
        s.regs.rip = self.get64(at64::RIP);
        s.smbase = self.get32(at64::SMBASE);
        s.set_shadow(self.get::<1>(at64::SHADOW)[0]);
        s
    }

    fn save32(&mut self, s: &Saved) {
        let x = &s.sregs;
        for (seg, at, selector) in at32::SEGMENTS {
            let r = x.seg(seg);
            self.put32(at, u64::from(attributes(r)) << 8);
            self.put32(at + 4, r.limit.into());
            self.put32(at + 8, r.base);
            self.put32(selector, r.selector.into());
        }
        for (at, table) in [(at32::GDTR, &x.gdt), (at32::IDTR, &x.idt)] {
            self.put32(at + 4, table.limit.into());
            self.put32(at + 8, table.base);
        }
        for (n, value) in s.regs.gpr.iter().take(8).enumerate() {
            self.put32(at32::GPRS + 4 * n, *value);
        }
        for (at, value) in [
            (at32::CR4, x.cr4),
            (at32::CR3, x.cr3),
            (at32::CR0, x.cr0),
            (at32::DR7, s.dr7),
            (at32::DR6, s.dr6),
            (at32::EFLAGS, s.regs.rflags),
            (at32::EIP, s.regs.rip),
            (at32::REVISION, REVISION_32.into()),
            (at32::SMBASE, s.smbase.into()),
        ] {
            self.put32(at, value);
        }
        self.put(at32::SHADOW, [s.shadow()]);
    }

    fn load32(&self, now: &Saved) -> Saved {
        let mut s = *now;
        let x = &mut s.sregs;
        for (seg, at, selector) in at32::SEGMENTS {
            let (base, limit) = (self.get32(at + 8).into(), self.get32(at + 4));
            let a = (self.get32(at) >> 8) as u16;
            *x.seg_mut(seg) = segment(self.get16(selector), base, limit, a);
        }
        for (at, table) in [(at32::GDTR, &mut x.gdt), (at32::IDTR, &mut x.idt)] {
            *table = DescTable {
                base: self.get32(at + 8).into(),
                limit: self.get16(at + 4),
            };
        }
        x.cr4 = self.get32(at32::CR4).into();
        x.cr3 = self.get32(at32::CR3).into();
        x.cr0 = self.get32(at32::CR0).into();
        for (n, value) in s.regs.gpr.iter_mut().take(8).enumerate() {
            *value = self.get32(at32::GPRS + 4 * n).into();
        }
        s.dr7 = self.get32(at32::DR7).into();
        s.dr6 = self.get32(at32::DR6).into();
        s.regs.rflags = self.get32(at32::EFLAGS).into();
        s.regs.rip = self.get32(at32::EIP).into();
        s.smbase = self.get32(at32::SMBASE);
        s.set_shadow(self.get::<1>(at32::SHADOW)[0]);
        s
    }
}

const _: () = {
    assert!(Gpr::Rax as usize == 0 && Gpr::Rdi as usize == 7 && Gpr::R15 as usize == 15);
    assert!(at64::GPRS + 16 * 8 == BYTES && at32::CR0 + 4 == BYTES);
    assert!(Seg::Tr as usize == 7);
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field with a value of its own, none of more than 32 bits if not `wide`.
    fn state(wide: bool) -> Saved {
        let mut n = 0x1000_0000_u64;
        let mut next = || {
            n += 0x0101_0101;
            if wide {
                n | n << 32
            } else {
                n
            }
        };
        let mut s = Saved::default();
        for g in s.regs.gpr.iter_mut().take(if wide { 16 } else { 8 }) {
            *g = next();
        }
        (s.regs.rip, s.regs.rflags) = (next(), next());
        (s.dr6, s.dr7) = (next(), next());
        for (i, seg) in s.sregs.seg.iter_mut().enumerate() {
            let i = i as u16;
            let a = (i | 1 << (4 + i % 4) | 0x8000 >> (i % 4)) & 0xf0ff | 0x80;
            *seg = segment(0x100 + i, next(), next() as u32, a);
            assert_eq!(attributes(seg), a);
        }
        for table in [&mut s.sregs.gdt, &mut s.sregs.idt] {
            (table.base, table.limit) = (next(), next() as u16);
        }
        (s.sregs.cr0, s.sregs.cr3, s.sregs.cr4) = (next(), next(), next());
        s.sregs.efer = if wide { next() } else { 0 };
        (s.smbase, s.sti) = (next() as u32, true);
        s
    }

    #[test]
    fn loads_what_was_saved() {
        for long in [false, true] {
            let mut s = state(long);
            for (sti, mov_ss) in [(false, false), (true, false), (false, true)] {
                (s.sti, s.mov_ss) = (sti, mov_ss);
                let area = Area::save(&s, long);
                assert_eq!(area.load(&Saved::default(), long), s, "{long}");
            }
            // What is not in the area stays.
            let mut now = Saved::default();
            (now.sregs.cr2, now.sregs.efer) = (0x1234, if long { 0 } else { 0x800 });
            let loaded = Area::save(&s, long).load(&now, long);
            assert_eq!(loaded.sregs.cr2, 0x1234);
            assert_eq!(loaded.sregs.efer, if long { s.sregs.efer } else { 0x800 });
        }
    }

    #[test]
    fn fields_are_where_manuals_have_them() {
        let s = state(true);
        let a = Area::save(&s, true);
        let at = |offset: usize| a.get64(offset - 0xfe00);
        // APM 2 table 10-1.
        assert_eq!(at(0xfe10) as u16, s.sregs.seg(Seg::Cs).selector);
        assert_eq!(at(0xfe18), s.sregs.seg(Seg::Cs).base);
        assert_eq!(at(0xfe68), s.sregs.gdt.base);
        assert_eq!(at(0xfe84) as u16, s.sregs.idt.limit);
        assert_eq!(at(0xfed0), s.sregs.efer);
        assert_eq!(at(0xfefc) as u32, 0x2_0064);
        assert_eq!(at(0xff00) as u32, s.smbase);
        assert_eq!(
            (at(0xff48), at(0xff50), at(0xff58)),
            (s.sregs.cr4, s.sregs.cr3, s.sregs.cr0)
        );
        assert_eq!((at(0xff70), at(0xff78)), (s.regs.rflags, s.regs.rip));
        assert_eq!((at(0xff80), at(0xfff8)), (s.regs.gpr[15], s.regs.gpr[0]));
        let s = state(false);
        let a = Area::save(&s, false);
        let at = |offset: usize| u64::from(a.get32(offset - 0xfe00));
        // SDM 3C table 32-1.
        assert_eq!((at(0xfffc), at(0xfff8)), (s.sregs.cr0, s.sregs.cr3));
        assert_eq!((at(0xfff4), at(0xfff0)), (s.regs.rflags, s.regs.rip));
        assert_eq!((at(0xffec), at(0xffd0)), (s.regs.gpr[7], s.regs.gpr[0]));
        assert_eq!((at(0xffcc), at(0xffc8)), (s.dr6, s.dr7));
        assert_eq!(at(0xffc4) as u16, s.sregs.seg(Seg::Tr).selector);
        assert_eq!(at(0xffac) as u16, s.sregs.seg(Seg::Cs).selector);
        assert_eq!((at(0xfefc), at(0xfef8)), (0x2_0000, s.smbase.into()));
    }
}
