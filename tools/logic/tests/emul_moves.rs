// SPDX-License-Identifier: GPL-2.0
//! The short ways of plain moves against the general emulator: [`Move`], which keeps a move while user space completes
//! its access, and the end of a [`Replay`] whose only access is complete.

use rvmm_logic::tables::Rng;
use rvmm_logic::x86::cpu::regs::{cr0, cr4, efer, rflags, Mode, Regs, Seg, Segment, Sregs};
use rvmm_logic::x86::emul::decode::decode;
use rvmm_logic::x86::emul::env::Env;
use rvmm_logic::x86::emul::exec::execute;
use rvmm_logic::x86::emul::{
    effective_address, emulate, Access, Answer, Bus, Insn, Move, Outcome, PortRequest, Replay,
    Stop, Swap,
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

/// Calls `f` with moves in 64-bit code that access one page, and with registers and data for them.
fn moves(seed: u64, mut f: impl FnMut(&Insn, &Move, &Regs, Device)) {
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
    let (mut random, mut found) = (Rng(seed), 0);
    for _ in 0..60_000 {
        let mut bytes = Vec::new();
        if random.next() % 3 == 0 {
            bytes.push(0x66);
        }
        if random.next() % 8 == 0 {
            bytes.push(0x67);
        }
        if random.next() % 2 == 0 {
            bytes.push(0x40 | (random.next() & 15) as u8);
        }
        let extra: [&[u8]; 2] = [&[0x0f, 0xbf], &[0x63]];
        match random.next() % 16 {
            n @ 0..14 => bytes.extend(OPCODES[n as usize]),
            n => bytes.extend(extra[n as usize - 14]),
        }
        bytes.extend(random.next().to_le_bytes());
        bytes.truncate(15);
        let Ok(insn) = decode(&bytes, Mode::Long) else {
            continue;
        };
        let mut regs = Regs {
            rip: 0x1000,
            rflags: rflags::FIXED | rflags::RF | random.next() & rflags::CF,
            ..Regs::default()
        };
        for r in &mut regs.gpr {
            *r = random.next() & 0x3fff_ffff_ffff;
        }
        let Some(m) = Move::of(&insn) else { continue };
        let la = effective_address(&insn, &regs);
        if la & 0xfff > 0xff8 || (la << 16) as i64 >> 16 != la as i64 {
            continue;
        }
        found += 1;
        let device = Device {
            data: random.next().to_le_bytes(),
            ..Device::default()
        };
        f(&insn, &m, &regs, device);
    }
    assert!(found > 5_000, "{found}");
}

fn long() -> Sregs {
    let mut s = Sregs {
        cr0: cr0::PE | cr0::PG,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..Sregs::default()
    };
    *s.seg_mut(Seg::Cs) = Segment {
        l: true,
        present: true,
        ..Segment::default()
    };
    s
}

#[test]
fn a_move_is_what_execute_does() {
    let sregs = long();
    moves(0x9e37_79b9, |insn, m, regs, device| {
        let (mut want, mut env) = (*regs, device.clone());
        assert_eq!(
            execute(insn, &mut want, &sregs, 0, &mut env),
            Ok(Outcome::Done)
        );
        let mut got = *regs;
        let la = effective_address(insn, regs);
        let size = usize::from(m.size());
        if m.is_store() {
            let value = m.value(regs, insn.imm).to_le_bytes();
            assert_eq!(env.written, Some((la, value[..size].to_vec())), "{insn:?}");
            m.finish(&mut got, Mode::Long, 0);
        } else {
            assert_eq!(env.read, Some((la, size)), "{insn:?}");
            m.finish(&mut got, Mode::Long, u64::from_le_bytes(device.data));
        }
        assert_eq!(got, want, "{insn:?}");
    });
}

#[test]
fn a_completed_move_is_not_executed_again() {
    let sregs = long();
    moves(0x2545_f491, |insn, m, regs, device| {
        let (mut want, mut env) = (*regs, device.clone());
        execute(insn, &mut want, &sregs, 0, &mut env).unwrap();
        let (mut got, mut bus, mut log) = (*regs, Below(Device::default()), Replay::new());
        let mut step =
            |got: &mut Regs, log: &mut Replay| emulate(insn, got, &sregs, 0, &mut bus, log);
        assert_eq!(step(&mut got, &mut log), Err(Stop::Suspend));
        assert_eq!(got, *regs);
        let data = if m.is_store() { [0; 8] } else { device.data };
        assert!(log.complete(&data));
        assert_eq!(step(&mut got, &mut log), Ok(Outcome::Done));
        assert!(log.pending().is_none());
        assert_eq!(got, want, "{insn:?}");
        assert_eq!(bus.0.written, env.written, "{insn:?}");
    });
}
