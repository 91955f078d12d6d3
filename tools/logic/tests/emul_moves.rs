// SPDX-License-Identifier: GPL-2.0
//! The short ways of plain moves against the general emulator: [`Move`], which keeps a move while user space completes
//! its access, and the end of a [`Replay`] whose only access is complete.

use rvmm_logic::tables::Rng;
use rvmm_logic::x86::cpu::regs::{cr0, cr4, efer, rflags, Mode, Regs, Seg, Segment, Sregs};
use rvmm_logic::x86::emul::decode::decode;
use rvmm_logic::x86::emul::env::Env;
use rvmm_logic::x86::emul::exec::execute;
use rvmm_logic::x86::emul::{
    effective_address, emulate, linear_in_segment, Access, Answer, Bus, Insn, Move, Outcome,
    PortRequest, Replay, Stop, Swap,
};

/// Memory that reads as `data` everywhere and keeps what is written last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Device {
    data: [u8; 8],
    written: Option<(u64, Vec<u8>)>,
    read: Option<(u64, usize)>,
}

impl Env for Device {
    fn read(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.read = Some((la, buf.len()));
        let n = buf.len();
        buf.copy_from_slice(&self.data[..n]);
        Ok(())
    }
    fn write(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
        self.written = Some((la, data.to_vec()));
        Ok(())
    }
    fn probe_write(&mut self, _: u64, _: u8) -> Result<(), Stop> {
        Ok(())
    }
    fn cmpxchg(&mut self, _: u64, _: u64, _: u64, _: u8) -> Result<bool, Stop> {
        Err(Stop::Unsupported)
    }
    fn check_port(&mut self, _: u16, _: u8) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }
    fn port_in(&mut self, _: &PortRequest) -> Result<u32, Stop> {
        Err(Stop::Unsupported)
    }
    fn port_out(&mut self, _: &PortRequest) -> Result<u32, Stop> {
        Err(Stop::Unsupported)
    }
    fn commit(&mut self) {}
}

/// The same device, below a [`Replay`].
struct Below(Device);

impl Bus for Below {
    fn translate(&mut self, la: u64, _: Access) -> Result<u64, Stop> {
        Ok(la)
    }
    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<Answer, Stop> {
        Ok(Answer::User)
    }
    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<Answer, Stop> {
        self.0.written = Some((gpa, data.to_vec()));
        Ok(Answer::User)
    }
    fn cmpxchg(&mut self, _: u64, _: u64, _: u64, _: u8) -> Result<Swap, Stop> {
        Err(Stop::Unsupported)
    }
    fn check_port(&mut self, _: u16, _: u8) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }
    fn port_in(&mut self, _: &PortRequest) -> Result<Answer, Stop> {
        Err(Stop::Unsupported)
    }
    fn port_in_finish(&mut self, _: &PortRequest) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }
    fn port_out(&mut self, _: &PortRequest) -> Result<Answer, Stop> {
        Err(Stop::Unsupported)
    }
}

/// A move in code of some mode, with registers for it.
struct Case {
    insn: Insn,
    m: Move,
    mode: Mode,
    regs: Regs,
    sregs: Sregs,
}

impl Case {
    /// Linear address of the operand as the short way finds it.
    fn linear(&self) -> Result<u64, Stop> {
        let (insn, m) = (&self.insn, &self.m);
        let (ea, s) = (
            effective_address(insn, &self.regs),
            self.sregs.seg(insn.mem.seg),
        );
        if self.mode == Mode::Long {
            let based = matches!(insn.mem.seg, Seg::Fs | Seg::Gs);
            return Ok(ea.wrapping_add(if based { s.base } else { 0 }));
        }
        let access = if m.is_store() {
            Access::Write
        } else {
            Access::Read
        };
        linear_in_segment(insn.mem.seg, s, ea, m.size().into(), access, self.mode)
    }
}

/// Calls `f` with moves in code of all modes that access one page, and with data for them. A third of the moves outside
/// 64-bit mode does not get past its segment.
fn moves(seed: u64, mut f: impl FnMut(&Case, Device)) {
    const OPCODES: [&[u8]; 14] = [
        &[0x88],
        &[0x89],
        &[0x8a],
        &[0x8b],
        &[0xc6],
        &[0xc7],
        &[0xa0],
        &[0xa1],
        &[0xa2],
        &[0xa3],
        &[0x0f, 0xb6],
        &[0x0f, 0xb7],
        &[0x0f, 0xbe],
        &[0x0f, 0xc3],
    ];
    const MODES: [Mode; 5] = [
        Mode::Real,
        Mode::Vm86,
        Mode::Prot16,
        Mode::Prot32,
        Mode::Long,
    ];
    let (mut random, mut found, mut refused) = (Rng(seed), [0; MODES.len()], 0);
    for n in 0..150_000 {
        let mode = MODES[n % MODES.len()];
        let mut bytes = Vec::new();
        if random.next() % 3 == 0 {
            bytes.push(0x66);
        }
        if random.next() % 8 == 0 {
            bytes.push(0x67);
        }
        if random.next() % 4 == 0 {
            bytes.push([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65][random.next() as usize % 6]);
        }
        if mode == Mode::Long && random.next() % 2 == 0 {
            bytes.push(0x40 | (random.next() & 15) as u8);
        }
        let extra: [&[u8]; 2] = [&[0x0f, 0xbf], &[0x63]];
        match random.next() % 16 {
            n @ 0..14 => bytes.extend(OPCODES[n as usize]),
            n => bytes.extend(extra[n as usize - 14]),
        }
        bytes.extend(random.next().to_le_bytes());
        bytes.truncate(15);
        let Ok(insn) = decode(&bytes, mode) else {
            continue;
        };
        let mut regs = Regs {
            // At the end of what 32 bits reach, sometimes.
            rip: 0xffff_fff0 | random.next() & 0x10_0000_000f,
            rflags: rflags::FIXED | rflags::RF | random.next() & rflags::CF,
            ..Regs::default()
        };
        for r in &mut regs.gpr {
            *r = random.next() & 0x3fff_ffff_ffff;
        }
        if mode != Mode::Long {
            regs.rip &= 0xffff_ffff;
        }
        let sregs = sregs(mode, &mut regs.rflags, &mut random);
        let Some(m) = Move::of(&insn, mode) else {
            continue;
        };
        let case = Case {
            insn,
            m,
            mode,
            regs,
            sregs,
        };
        match case.linear() {
            Ok(la) if la & 0xfff > 0xff8 || (la << 16) as i64 >> 16 != la as i64 => continue,
            Ok(_) => found[n % MODES.len()] += 1,
            Err(_) => refused += 1,
        }
        let device = Device {
            data: random.next().to_le_bytes(),
            ..Device::default()
        };
        f(&case, device);
    }
    assert!(found.iter().all(|n| *n > 3_000), "{found:?}");
    assert!(refused > 5_000, "{refused}");
}

/// System registers for `mode`, with segments of any kind outside 64-bit mode.
fn sregs(mode: Mode, flags: &mut u64, random: &mut Rng) -> Sregs {
    let mut s = Sregs::default();
    if mode != Mode::Real {
        s.cr0 = cr0::PE | cr0::PG;
    }
    if mode == Mode::Vm86 {
        *flags |= rflags::VM;
    } else if mode == Mode::Long || mode != Mode::Real && random.next() % 2 == 0 {
        // 64-bit or compatibility mode.
        s.cr4 = cr4::PAE;
        s.efer = efer::LME | efer::LMA;
    }
    for seg in &mut s.seg[..6] {
        let r = random.next();
        *seg = Segment {
            base: r >> 32,
            limit: if r & 2 == 0 {
                u32::MAX
            } else {
                random.next() as u32 >> (r & 15)
            },
            // Data or code, some read-only, some expand-down.
            typ: if r & 0x30 == 0 {
                (r >> 8) as u8 & 15
            } else {
                3
            },
            s: true,
            present: r & 0xc0 != 0,
            unusable: r & 0xc0 == 0,
            db: r & 0x1000 != 0,
            ..Segment::default()
        };
    }
    let cs = s.seg_mut(Seg::Cs);
    (cs.l, cs.db) = (mode == Mode::Long, mode == Mode::Prot32);
    s
}

#[test]
fn a_move_is_what_execute_does() {
    moves(0x9e37_79b9, |case, device| {
        let Case { insn, m, regs, .. } = case;
        let (mut want, mut env) = (*regs, device.clone());
        let result = execute(insn, &mut want, &case.sregs, 0, &mut env);
        let la = match case.linear() {
            Ok(la) => la,
            // The short way leaves it to `execute`, which finds the same.
            Err(stop) => return assert_eq!(result, Err(stop)),
        };
        assert_eq!(result, Ok(Outcome::Done));
        let mut got = *regs;
        let size = usize::from(m.size());
        if m.is_store() {
            let value = m.value(regs, insn.imm).to_le_bytes();
            assert_eq!(env.written, Some((la, value[..size].to_vec())), "{insn:?}");
            m.finish(&mut got, 0);
        } else {
            assert_eq!(env.read, Some((la, size)), "{insn:?}");
            m.finish(&mut got, u64::from_le_bytes(device.data));
        }
        assert_eq!(got, want, "{insn:?}");
    });
}

#[test]
fn a_completed_move_is_not_executed_again() {
    moves(0x2545_f491, |case, device| {
        let Case { insn, m, regs, .. } = case;
        let (mut want, mut env) = (*regs, device.clone());
        if execute(insn, &mut want, &case.sregs, 0, &mut env).is_err() {
            return;
        }
        let (mut got, mut bus, mut log) = (*regs, Below(Device::default()), Replay::new());
        let mut step =
            |got: &mut Regs, log: &mut Replay| emulate(insn, got, &case.sregs, 0, &mut bus, log);
        if m.is_store() {
            assert_eq!(step(&mut got, &mut log), Ok(Outcome::Done));
            assert!(log.next_posted());
            assert!(log.complete(&[]));
        } else {
            assert_eq!(step(&mut got, &mut log), Err(Stop::Suspend));
            assert_eq!(got, *regs);
            assert!(log.complete(&device.data));
            assert_eq!(step(&mut got, &mut log), Ok(Outcome::Done));
        }
        assert!(!log.next_posted());
        assert!(log.pending().is_none());
        assert_eq!(got, want, "{insn:?}");
        assert_eq!(bus.0.written, env.written, "{insn:?}");
    });
}
