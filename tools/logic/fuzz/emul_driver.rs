// SPDX-License-Identifier: GPL-2.0
//! Decodes and executes whatever a byte string says, against a hostile environment, and checks what must always hold.
//!
//! Shared by the libFuzzer target and by the bounded random test.

use rvmm_logic::x86::cpu::regs::{DescTable, Mode, Regs, Seg, Segment, Sregs};
use rvmm_logic::x86::cpu::xsave::FXSAVE;
use rvmm_logic::x86::emul::decode::decode;
use rvmm_logic::x86::emul::insn::{Rep, MAX_LEN};
use rvmm_logic::x86::emul::{
    effective_address, emulate, Access, Answer, Bus, DecodeError, Insn, Machine, Op, Outcome,
    Pending, PortRequest, Replay, Stop, Swap,
};

/// Values drawn from the input; zeroes when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }
    fn u64(&mut self) -> u64 {
        // Small and extreme values are more interesting than uniform ones.
        let n = self.u8();
        let v = (0..n % 9).fold(0u64, |v, _| (v << 8) | u64::from(self.u8()));
        match n >> 6 {
            0 => v,
            1 => v.wrapping_neg(),
            2 => v ^ 0x7fff_ffff_ffff,
            _ => v ^ 0xffff_f000,
        }
    }
    fn bool(&mut self) -> bool {
        self.u8() & 1 != 0
    }
}

struct Hostile<'a> {
    input: Input<'a>,
    /// Accesses since the last check.
    accesses: u32,
}

impl Hostile<'_> {
    fn answer(&mut self) -> Result<Answer, Stop> {
        self.accesses += 1;
        match self.input.u8() % 16 {
            0 => Err(Stop::Exception {
                vector: 14,
                error_code: Some(0),
                cr2: Some(0),
            }),
            1 => Err(Stop::Unsupported),
            2..=5 => Ok(Answer::User),
            _ => Ok(Answer::Done),
        }
    }
    fn port(&mut self, req: &PortRequest) -> Result<Answer, Stop> {
        assert!(req.count >= 1);
        assert!(matches!(req.width, 1 | 2 | 4));
        let (first, last) = (req.item(0), req.item(req.count - 1));
        let end = first.max(last).wrapping_add(req.width.into());
        assert!(req.count == 1 || (first.min(last) ^ end.wrapping_sub(1)) & !0xfff == 0);
        self.answer()
    }
}

impl Machine for Hostile<'_> {
    fn set_segment(&mut self, _: Seg, _: &Segment) {}
    fn set_table(&mut self, _: bool, _: &DescTable) {}
    fn set_machine_status(&mut self, _: u16) {}
    fn hold_interrupts(&mut self, _: bool) {}
    fn unblock_nmis(&mut self) {}
    fn forget_translations(&mut self) {}
    fn xcr0(&self) -> u64 {
        7
    }
    fn vector(&mut self, n: u8) -> [u8; 32] {
        assert!(n < 16);
        [n; 32]
    }
    fn set_vector(&mut self, n: u8, _: &[u8; 32], _: bool) {
        assert!(n < 16);
    }
    fn mmx(&mut self, n: u8) -> u64 {
        assert!(n < 8);
        n.into()
    }
    fn enter_mmx(&mut self, set: Option<(u8, u64)>) {
        assert!(set.is_none_or(|(n, _)| n < 8));
    }
    fn fpu_words(&mut self) -> (u16, u16) {
        (0x37f, self.input.u8().into())
    }
    fn fxsave(&mut self, _: bool) -> [u8; FXSAVE] {
        [self.input.u8(); FXSAVE]
    }
    fn fxrstor(&mut self, image: &[u8], _: bool) -> bool {
        assert!(matches!(image.len(), 160 | 288 | FXSAVE));
        self.input.u8() & 1 != 0
    }
}

impl Bus for Hostile<'_> {
    fn machine(&mut self) -> Option<&mut dyn Machine> {
        Some(self)
    }
    fn read_area(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
        assert!(la & 15 == 0);
        buf.fill(self.input.u8());
        self.translate(la, Access::Read).map(|_| ())
    }
    fn write_area(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
        assert!(la & 15 == 0 && matches!(data.len(), 160 | 288 | FXSAVE));
        self.translate(la, Access::Write).map(|_| ())
    }
    fn translate(&mut self, la: u64, _: Access) -> Result<u64, Stop> {
        match self.input.u8() {
            0..=7 => Err(Stop::Exception {
                vector: 14,
                error_code: Some(2),
                cr2: Some(la),
            }),
            n => Ok((u64::from(n) << 12) | la & 0xfff),
        }
    }
    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> Result<Answer, Stop> {
        assert!(matches!(buf.len(), 1..=8) && (gpa & 0xfff) + buf.len() as u64 <= 4096);
        for b in buf {
            *b = self.input.u8();
        }
        self.answer()
    }
    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<Answer, Stop> {
        assert!(matches!(data.len(), 1..=8) && (gpa & 0xfff) + data.len() as u64 <= 4096);
        self.answer()
    }
    fn cmpxchg(&mut self, gpa: u64, _: u64, _: u64, width: u8) -> Result<Swap, Stop> {
        assert!(matches!(width, 1 | 2 | 4 | 8) && (gpa & 0xfff) + u64::from(width) <= 4096);
        Ok(match self.input.u8() % 4 {
            0 => Swap::Differs,
            1 => Swap::NotRam,
            _ => Swap::Done,
        })
    }
    fn check_port(&mut self, _: u16, _: u8) -> Result<(), Stop> {
        if self.input.u8() % 4 == 0 {
            return Err(Stop::Exception {
                vector: 13,
                error_code: Some(0),
                cr2: None,
            });
        }
        Ok(())
    }
    fn port_memory_is_ram(&mut self, req: &PortRequest, _: Access) -> Result<bool, Stop> {
        self.port(req).map(|answer| answer == Answer::Done)
    }
    fn port_in_item(&mut self, port: u16, _: u8) -> Option<u32> {
        (port & 1 != 0).then_some(0xa5a5_a5a5)
    }
    fn port_answer(&mut self, _: &PortRequest, n: u32) -> Result<u32, Stop> {
        self.answer().map(|_| n)
    }
    fn port_out_item(&mut self, _: u16, _: u8, _: u32) -> Result<Answer, Stop> {
        self.answer()
    }
    fn port_in(&mut self, req: &PortRequest) -> Result<Answer, Stop> {
        self.port(req)
    }
    fn port_in_finish(&mut self, req: &PortRequest) -> Result<(), Stop> {
        self.port(req).map(|_| ())
    }
    fn port_out(&mut self, req: &PortRequest) -> Result<Answer, Stop> {
        self.port(req)
    }
}

fn segment(i: &mut Input<'_>) -> Segment {
    let n = i.u8();
    Segment {
        base: i.u64(),
        limit: i.u64() as u32,
        typ: n & 15,
        s: n & 16 != 0,
        db: n & 32 != 0,
        present: n & 64 != 0,
        unusable: n & 128 != 0,
        ..Default::default()
    }
}

/// Registers of a vCPU in `mode`, and its CPL.
fn state(i: &mut Input<'_>, mode: Mode) -> (Regs, Sregs, u8) {
    let mut sregs = Sregs::default();
    // Half of the runs have flat segments, so that most accesses get through.
    let flat = i.bool();
    for s in &mut sregs.seg {
        *s = if flat {
            Segment {
                limit: u32::MAX,
                typ: 3,
                s: true,
                present: true,
                ..Default::default()
            }
        } else {
            segment(i)
        };
    }
    sregs.cr0 = u64::from(mode != Mode::Real);
    sregs.cr4 = i.u64();
    sregs.efer = if mode == Mode::Long { 1 << 10 } else { 0 };
    sregs.seg[1].l = mode == Mode::Long;
    sregs.seg[1].db = mode == Mode::Prot32;
    let mut regs = Regs::default();
    for r in &mut regs.gpr {
        *r = i.u64();
    }
    regs.rip = i.u64();
    regs.rflags = i.u64() & !(1 << 17) | if mode == Mode::Vm86 { 1 << 17 } else { 0 } | 2;
    assert_eq!(sregs.mode(regs.rflags), mode);
    (regs, sregs, i.u8() & 3)
}

/// Holds the registers after an instruction of `n` bytes, executed to its end, against those before.
fn check_done(mode: Mode, insn: &Insn, before: &Regs, regs: &Regs) {
    assert_eq!(regs.rflags & (1 << 16), 0);
    if insn.op >= Op::Jcc && insn.op <= Op::Loop {
        return;
    }
    let next = before.rip.wrapping_add(u64::from(insn.len()));
    let next = if mode == Mode::Long {
        next
    } else {
        next & 0xffff_ffff
    };
    assert_eq!(regs.rip, next);
    let status = match insn.op {
        Op::Popf => 0x3f_7fd5,
        Op::Cli | Op::Sti => 1 << 9 | 1 << 16,
        Op::Cld | Op::Std => 1 << 10 | 1 << 16,
        _ => 0x8d5 | (1 << 16),
    };
    assert_eq!((regs.rflags ^ before.rflags) & !status, 0, "flags");
}

/// One run: the first byte chooses the mode, up to 15 the instruction, the rest state and answers. Panics when a rule
/// is broken; returns whether an instruction was executed to its end.
pub fn drive(data: &[u8]) -> bool {
    let Some((&select, data)) = data.split_first() else {
        return false;
    };
    let mode = match select % 5 {
        0 => Mode::Real,
        1 => Mode::Vm86,
        2 => Mode::Prot16,
        3 => Mode::Prot32,
        _ => Mode::Long,
    };
    let insn = match decode(data, mode) {
        Ok(insn) => insn,
        Err(e) => {
            assert!(e != DecodeError::Truncated || data.len() < MAX_LEN);
            return false;
        }
    };
    let n = usize::from(insn.len());
    assert!((1..=MAX_LEN).contains(&n) && insn.bytes() == &data[..n]);
    assert_eq!(decode(&data[..n], mode), Ok(insn));
    assert_eq!(decode(&data[..n - 1], mode), Err(DecodeError::Truncated));

    let mut i = Input(&data[n..]);
    let (mut regs, sregs, cpl) = state(&mut i, mode);
    let width_mask = match insn.addr_size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    assert_eq!(effective_address(&insn, &regs) & !width_mask, 0);

    let mut bus = Hostile {
        input: i,
        accesses: 0,
    };
    let mut log = Replay::new();
    for _ in 0..40 {
        let before = regs;
        bus.accesses = 0;
        let result = emulate(&insn, &mut regs, &sregs, cpl, &mut bus, &mut log);
        assert!(
            bus.accesses <= 64 * 8,
            "{} accesses in one call",
            bus.accesses
        );
        let repeated = insn.op.is_string() && insn.rep != Rep::None;
        match result {
            Ok(Outcome::Done) => {
                check_done(mode, &insn, &before, &regs);
                return true;
            }
            Ok(Outcome::Again) => assert!(repeated && regs.rip == before.rip || regs == before),
            Err(Stop::Suspend) => {
                assert!(repeated && regs.rip == before.rip || regs == before);
                let pending = *log.pending().expect("suspended for nothing");
                match pending {
                    Pending::Memory(f) => assert!(matches!(f.len, 1..=8)),
                    Pending::PortIn(_) => assert_eq!(insn.op, Op::Ins),
                    Pending::PortOut(_) => assert_eq!(insn.op, Op::Outs),
                }
                if bus.input.u8() % 16 != 0 {
                    let answer = bus.input.u64().to_le_bytes();
                    let n = usize::from(bus.input.u8() % 9);
                    assert!(log.complete(&answer[..n]));
                }
            }
            Err(Stop::Exception { .. } | Stop::Unsupported) => {
                assert!(repeated && regs.rip == before.rip || regs == before);
                assert!(log.pending().is_none());
                return false;
            }
        }
    }
    false
}
