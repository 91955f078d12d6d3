// SPDX-License-Identifier: GPL-2.0
//! SYSCALL, SYSENTER and SYSEXIT (SDM 2B and APM 3, under their names).
//!
//! Executed where the processor does not have them and the one that the guest believes in does: AMD's have no SYSENTER
//! and no SYSEXIT in long mode, Intel's no SYSCALL outside 64-bit mode. And where it cannot walk the guest's tables.
#![forbid(unsafe_code)]

use crate::x86::cpu::canonical::is_canonical;
use crate::x86::cpu::regs::{efer, rflags, Gpr, Mode, Regs, Seg, Segment, Sregs};
use crate::x86::emul::{Insn, Op};

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// 0F 05.
    Syscall,
    /// 0F 34.
    Sysenter,
    /// 0F 35.
    Sysexit {
        /// To 64-bit code, by REX.W.
        long: bool,
    },
}

impl Call {
    /// The instruction, if it is one of them.
    pub fn of(insn: &Insn) -> Option<Self> {
        match insn.op {
            Op::Syscall => Some(Self::Syscall),
            Op::Sysenter => Some(Self::Sysenter),
            Op::Sysexit => Some(Self::Sysexit {
                long: matches!(insn.bytes(), [.., rex, 0x0f, 0x35] if rex & 0xf8 == 0x48),
            }),
            _ => None,
        }
    }
}

/// The MSRs that say where it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
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

/// Executes `call`, of `len` bytes, as the processor does that the guest believes in, of Intel's or not. `regs` and
/// `sregs` are not changed on an error.
pub fn execute(
    (call, len): (Call, u8),
    intel: bool,
    m: &Msrs,
    regs: &mut Regs,
    s: &mut Sregs,
) -> Result<(), Fault> {
    let mode = s.mode(regs.rflags);
    let long = s.efer & efer::LMA != 0;
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    match call {
        Call::Syscall if matches!(mode, Mode::Real | Mode::Vm86) => Err(Fault::Undefined),
        Call::Syscall if intel && mode != Mode::Long || s.efer & efer::SCE == 0 => {
            Err(Fault::Undefined)
        }
        Call::Syscall => {
            let next = regs.rip.wrapping_add(u64::from(len));
            flat((m.star >> 32) as u16 & 0xfffc, long, s);
            if long {
                let code64 = mode == Mode::Long;
                regs.set(Gpr::Rcx, if code64 { next } else { next & 0xffff_ffff });
                regs.set(Gpr::R11, regs.rflags & !rflags::RF);
                regs.rip = if code64 { m.lstar } else { m.cstar };
                regs.rflags = regs.rflags & !m.fmask & !rflags::RF | rflags::FIXED;
            } else {
                regs.set(Gpr::Rcx, next & 0xffff_ffff);
                regs.rip = m.star & 0xffff_ffff;
                regs.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
            }
            Ok(())
        }
        Call::Sysenter | Call::Sysexit { .. } if mode == Mode::Real => Err(Fault::Protection),
        Call::Sysenter | Call::Sysexit { .. } if long && !intel => Err(Fault::Undefined),
        Call::Sysenter if m.sysenter_cs & 0xfffc == 0 => Err(Fault::Protection),
        Call::Sysenter => {
            flat(m.sysenter_cs as u16 & 0xfffc, long, s);
            regs.rip = m.sysenter_eip & mask;
            regs.set(Gpr::Rsp, m.sysenter_esp & mask);
            regs.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
            Ok(())
        }
        Call::Sysexit { .. } if s.cpl(regs.rflags) != 0 || m.sysenter_cs & 0xfffc == 0 => {
            Err(Fault::Protection)
        }
        Call::Sysexit { long: to64 } => {
            let (rip, rsp) = (regs.get(Gpr::Rdx), regs.get(Gpr::Rcx));
            let width = s.linear_width();
            if to64 && !(is_canonical(rip, width) && is_canonical(rsp, width)) {
                return Err(Fault::Protection);
            }
            let mask = if to64 { u64::MAX } else { 0xffff_ffff };
            let above = if to64 { 32 } else { 16 };
            flat((m.sysenter_cs as u16).wrapping_add(above) | 3, to64, s);
            regs.rip = rip & mask;
            regs.set(Gpr::Rsp, rsp & mask);
            regs.rflags &= !rflags::RF;
            Ok(())
        }
    }
}

/// Flat segments: `selector`, whose low bits are the privilege level, and the one after it.
fn flat(selector: u16, long: bool, s: &mut Sregs) {
    let flat = Segment {
        limit: 0xffff_ffff,
        s: true,
        dpl: (selector & 3) as u8,
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
        lstar: 0xffff_8000_0000_4000,
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

    fn decoded(bytes: &[u8], mode: Mode) -> Option<Call> {
        Call::of(&crate::x86::emul::decode::decode(bytes, mode).ok()?)
    }

    #[test]
    fn names() {
        let all = [Mode::Real, Mode::Prot32, Mode::Long];
        for mode in all {
            assert_eq!(decoded(&[0x0f, 0x05, 0], mode), Some(Call::Syscall));
            assert_eq!(decoded(&[0x66, 0x0f, 0x34], mode), Some(Call::Sysenter));
            let exit = Call::Sysexit { long: false };
            assert_eq!(decoded(&[0x0f, 0x35], mode), Some(exit));
            assert_eq!(decoded(&[0x0f, 0x0b], mode), None);
            assert_eq!(decoded(&[0xf0, 0x0f, 0x05], mode), None);
        }
        let exit = Call::Sysexit { long: true };
        assert_eq!(decoded(&[0x48, 0x0f, 0x35], Mode::Long), Some(exit));
        assert_eq!(decoded(&[0x48, 0x0f, 0x35], Mode::Prot32), None);
    }

    #[test]
    fn sysenter() {
        for long in [true, false] {
            let (mut r, mut s) = application(long);
            let mask = if long { u64::MAX } else { 0xffff_ffff };
            let call = (Call::Sysenter, 2);
            assert_eq!(execute(call, true, &MSRS, &mut r, &mut s), Ok(()));
            assert_eq!(r.rip, MSRS.sysenter_eip & mask);
            assert_eq!(r.get(Gpr::Rsp), MSRS.sysenter_esp & mask);
            assert_eq!(r.rflags, rflags::FIXED | rflags::CF | rflags::DF);
            assert_eq!((s.cpl(r.rflags), s.seg(Seg::Cs).selector), (0, 0x10));
            assert_eq!((s.seg(Seg::Cs).l, s.seg(Seg::Cs).db), (long, !long));
            assert_eq!(s.seg(Seg::Ss).selector, 0x18);
        }
    }

    #[test]
    fn sysexit() {
        for (long, code, stack) in [(false, 0x23, 0x2b), (true, 0x33, 0x3b)] {
            let (mut r, mut s) = application(true);
            s.seg_mut(Seg::Cs).l = true;
            (s.seg_mut(Seg::Cs).dpl, s.seg_mut(Seg::Ss).dpl) = (0, 0);
            r.set(Gpr::Rdx, 0x7fff_0000_1000);
            r.set(Gpr::Rcx, 0x7fff_0000_2000);
            let call = (Call::Sysexit { long }, 3);
            let wild = (Gpr::Rcx, 1 << 60);
            let (mut to, mut state) = (r, s);
            to.set(wild.0, wild.1);
            let expected = if long { Err(Fault::Protection) } else { Ok(()) };
            assert_eq!(execute(call, true, &MSRS, &mut to, &mut state), expected);
            assert_eq!(execute(call, true, &MSRS, &mut r, &mut s), Ok(()));
            let mask = if long { u64::MAX } else { 0xffff_ffff };
            assert_eq!(r.rip, 0x7fff_0000_1000 & mask);
            assert_eq!(r.get(Gpr::Rsp), 0x7fff_0000_2000 & mask);
            assert_eq!((s.cpl(r.rflags), s.seg(Seg::Cs).selector), (3, code));
            assert_eq!((s.seg(Seg::Cs).l, s.seg(Seg::Cs).db), (long, !long));
            assert_eq!((s.seg(Seg::Ss).selector, s.seg(Seg::Ss).dpl), (stack, 3));
        }
    }

    #[test]
    fn syscall() {
        let call = (Call::Syscall, 2);
        let (mut r, mut s) = application(true);
        assert_eq!(execute(call, false, &MSRS, &mut r, &mut s), Ok(()));
        assert_eq!((r.rip, r.get(Gpr::Rcx)), (MSRS.cstar, 0x1002));
        assert_eq!(
            r.get(Gpr::R11),
            rflags::FIXED | rflags::IF | rflags::CF | rflags::DF
        );
        assert_eq!(r.rflags, rflags::FIXED | rflags::CF);
        assert_eq!((s.seg(Seg::Cs).selector, s.seg(Seg::Cs).l), (0x10, true));
        let (mut r, mut s) = application(false);
        assert_eq!(execute(call, false, &MSRS, &mut r, &mut s), Ok(()));
        assert_eq!((r.rip, r.get(Gpr::R11)), (0x1234_5678, 0));
        assert_eq!(r.rflags, rflags::FIXED | rflags::CF | rflags::DF);
        // 64-bit code has it from both.
        for intel in [true, false] {
            let (mut r, mut s) = application(true);
            s.seg_mut(Seg::Cs).l = true;
            r.rip = 0x7fff_ffff_f000;
            assert_eq!(execute(call, intel, &MSRS, &mut r, &mut s), Ok(()));
            assert_eq!((r.rip, r.get(Gpr::Rcx)), (MSRS.lstar, 0x7fff_ffff_f002));
        }
    }

    #[test]
    fn refused() {
        use Call::{Syscall, Sysenter};
        use Fault::{Protection, Undefined};
        let exit = Call::Sysexit { long: false };
        type Change = fn(&mut Regs, &mut Sregs, &mut Msrs);
        let table: [(Call, bool, Change, Fault); 9] = [
            (Syscall, true, |_, _, _| (), Undefined),
            (Sysenter, false, |_, _, _| (), Undefined),
            (exit, false, |_, _, _| (), Undefined),
            // An application's.
            (exit, true, |_, _, _| (), Protection),
            (Syscall, false, |_, s, _| s.efer &= !efer::SCE, Undefined),
            (Syscall, false, |_, s, _| s.cr0 = 0, Undefined),
            (
                Sysenter,
                true,
                |_, s, _| (s.cr0, s.efer) = (0, 0),
                Protection,
            ),
            (exit, true, |_, s, _| (s.cr0, s.efer) = (0, 0), Protection),
            (Sysenter, true, |_, _, m| m.sysenter_cs = 3, Protection),
        ];
        for (i, (call, intel, change, fault)) in table.into_iter().enumerate() {
            let ((mut r, mut s), mut m) = (application(true), MSRS);
            change(&mut r, &mut s, &mut m);
            let before = (r, s);
            assert_eq!(
                execute((call, 2), intel, &m, &mut r, &mut s),
                Err(fault),
                "{i}"
            );
            assert_eq!((r, s), before);
        }
    }
}
