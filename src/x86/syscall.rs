// SPDX-License-Identifier: GPL-2.0
//! SYSENTER and SYSCALL where the processor does not have them and the one that the guest believes in does: AMD's have
//! no SYSENTER in long mode, Intel's no SYSCALL outside 64-bit mode (SDM 2B and APM 3, under their names).
//!
//! Called after a #UD; what is not one of these gets it.
#![forbid(unsafe_code)]

use crate::x86::cpu::regs::{efer, rflags, Gpr, Mode, Regs, Seg, Segment, Sregs};

/// Bytes of either instruction.
pub const LEN: usize = 2;

/// Which of the two, from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// 0F 05.
    Syscall,
    /// 0F 34.
    Sysenter,
}

impl Call {
    /// The instruction that begins with `bytes`.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x0f, 0x05, ..] => Some(Self::Syscall),
            [0x0f, 0x34, ..] => Some(Self::Sysenter),
            _ => None,
        }
    }
}

/// The MSRs that say where it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Msrs {
    pub star: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
}

/// What it comes to instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// #UD.
    Undefined,
    /// #GP(0).
    Protection,
}

/// Executes `call` as the processor does that the guest believes in, of Intel's or not. `regs` and `sregs` are not
/// changed on an error.
pub fn execute(
    call: Call,
    intel: bool,
    m: &Msrs,
    regs: &mut Regs,
    s: &mut Sregs,
) -> Result<(), Fault> {
    let mode = s.mode(regs.rflags);
    let long = s.efer & efer::LMA != 0;
    match call {
        // In 64-bit mode the processor has it, or the guest has switched it off.
        Call::Syscall if intel || matches!(mode, Mode::Real | Mode::Vm86 | Mode::Long) => {
            Err(Fault::Undefined)
        }
        Call::Syscall if s.efer & efer::SCE == 0 => Err(Fault::Undefined),
        Call::Syscall => {
            enter((m.star >> 32) as u16 & 0xfffc, long, s);
            let next = regs.rip.wrapping_add(LEN as u64) & 0xffff_ffff;
            regs.set(Gpr::Rcx, next);
            if long {
                regs.set(Gpr::R11, regs.rflags & !rflags::RF);
                regs.rip = m.cstar;
                regs.rflags = regs.rflags & !m.fmask & !rflags::RF | rflags::FIXED;
            } else {
                regs.rip = m.star & 0xffff_ffff;
                regs.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
            }
            Ok(())
        }
        Call::Sysenter if mode == Mode::Real => Err(Fault::Protection),
        Call::Sysenter if mode == Mode::Long || long && !intel => Err(Fault::Undefined),
        Call::Sysenter if m.sysenter_cs & 0xfffc == 0 => Err(Fault::Protection),
        Call::Sysenter => {
            let mask = if long { u64::MAX } else { 0xffff_ffff };
            enter(m.sysenter_cs as u16 & 0xfffc, long, s);
            regs.rip = m.sysenter_eip & mask;
            regs.set(Gpr::Rsp, m.sysenter_esp & mask);
            regs.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
            Ok(())
        }
    }
}

/// Flat segments of privilege level 0: `selector` and the one after it.
fn enter(selector: u16, long: bool, s: &mut Sregs) {
    let flat = Segment {
        limit: 0xffff_ffff,
        s: true,
        present: true,
        g: true,
        ..Segment::default()
    };
    *s.seg_mut(Seg::Cs) = Segment {
        selector,
        typ: 11,
        l: long,
        db: !long,
        ..flat
    };
    *s.seg_mut(Seg::Ss) = Segment {
        selector: selector.wrapping_add(8),
        typ: 3,
        db: true,
        ..flat
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::cpu::regs::cr0;

    const MSRS: Msrs = Msrs {
        star: 0x0023_0013_1234_5678,
        cstar: 0xffff_8000_0000_1000,
        fmask: rflags::IF | rflags::DF,
        sysenter_cs: 0x10,
        sysenter_esp: 0xffff_8000_0000_2000,
        sysenter_eip: 0xffff_8000_0000_3000,
    };

    /// An application: 32-bit code, in long mode or not.
    fn application(long: bool) -> (Regs, Sregs) {
        let mut s = Sregs {
            cr0: cr0::PE | cr0::PG,
            efer: efer::SCE | if long { efer::LMA | efer::LME } else { 0 },
            ..Sregs::default()
        };
        *s.seg_mut(Seg::Cs) = Segment {
            db: true,
            dpl: 3,
            ..Segment::default()
        };
        s.seg_mut(Seg::Ss).dpl = 3;
        let regs = Regs {
            rip: 0x1000,
            rflags: rflags::FIXED | rflags::IF | rflags::CF | rflags::DF | rflags::RF,
            ..Regs::default()
        };
        (regs, s)
    }

    #[test]
    fn names() {
        assert_eq!(Call::of(&[0x0f, 0x05, 0]), Some(Call::Syscall));
        assert_eq!(Call::of(&[0x0f, 0x34]), Some(Call::Sysenter));
        assert_eq!(Call::of(&[0x0f, 0x0b]), None);
        assert_eq!(Call::of(&[0x0f]), None);
    }

    #[test]
    fn sysenter() {
        for long in [true, false] {
            let (mut r, mut s) = application(long);
            let mask = if long { u64::MAX } else { 0xffff_ffff };
            assert_eq!(execute(Call::Sysenter, true, &MSRS, &mut r, &mut s), Ok(()));
            assert_eq!(r.rip, MSRS.sysenter_eip & mask);
            assert_eq!(r.get(Gpr::Rsp), MSRS.sysenter_esp & mask);
            assert_eq!(r.rflags, rflags::FIXED | rflags::CF | rflags::DF);
            assert_eq!((s.cpl(r.rflags), s.seg(Seg::Cs).selector), (0, 0x10));
            assert_eq!((s.seg(Seg::Cs).l, s.seg(Seg::Cs).db), (long, !long));
            assert_eq!(s.seg(Seg::Ss).selector, 0x18);
        }
    }

    #[test]
    fn syscall() {
        let (mut r, mut s) = application(true);
        assert_eq!(execute(Call::Syscall, false, &MSRS, &mut r, &mut s), Ok(()));
        assert_eq!((r.rip, r.get(Gpr::Rcx)), (MSRS.cstar, 0x1002));
        assert_eq!(
            r.get(Gpr::R11),
            rflags::FIXED | rflags::IF | rflags::CF | rflags::DF
        );
        assert_eq!(r.rflags, rflags::FIXED | rflags::CF);
        assert_eq!((s.seg(Seg::Cs).selector, s.seg(Seg::Cs).l), (0x10, true));
        let (mut r, mut s) = application(false);
        assert_eq!(execute(Call::Syscall, false, &MSRS, &mut r, &mut s), Ok(()));
        assert_eq!((r.rip, r.get(Gpr::R11)), (0x1234_5678, 0));
        assert_eq!(r.rflags, rflags::FIXED | rflags::CF | rflags::DF);
    }

    #[test]
    fn refused() {
        use Call::{Syscall, Sysenter};
        use Fault::{Protection, Undefined};
        type Change = fn(&mut Regs, &mut Sregs, &mut Msrs);
        let table: [(Call, bool, Change, Fault); 8] = [
            (Syscall, true, |_, _, _| (), Undefined),
            (Sysenter, false, |_, _, _| (), Undefined),
            (Syscall, false, |_, s, _| s.efer &= !efer::SCE, Undefined),
            (Syscall, false, |_, s, _| s.seg[1].l = true, Undefined),
            (Sysenter, true, |_, s, _| s.seg[1].l = true, Undefined),
            (Syscall, false, |_, s, _| s.cr0 = 0, Undefined),
            (
                Sysenter,
                true,
                |_, s, _| (s.cr0, s.efer) = (0, 0),
                Protection,
            ),
            (Sysenter, true, |_, _, m| m.sysenter_cs = 3, Protection),
        ];
        for (i, (call, intel, change, fault)) in table.into_iter().enumerate() {
            let ((mut r, mut s), mut m) = (application(true), MSRS);
            change(&mut r, &mut s, &mut m);
            let before = (r, s);
            assert_eq!(execute(call, intel, &m, &mut r, &mut s), Err(fault), "{i}");
            assert_eq!((r, s), before);
        }
    }
}
