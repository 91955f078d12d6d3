// SPDX-License-Identifier: GPL-2.0
//! Execution: segmentation in every mode, faults, string instructions, port batches, what is committed when.

use rvmm_logic::x86::cpu::regs::{cr0, cr4, efer, rflags, Gpr, Mode, Regs, Seg, Segment, Sregs};
use rvmm_logic::x86::emul::decode::decode;
use rvmm_logic::x86::emul::env::Env;
use rvmm_logic::x86::emul::exec::{advance, execute};
use rvmm_logic::x86::emul::operand::{read_reg, write_reg};
use rvmm_logic::x86::emul::{Insn, Operand, Outcome, PortRequest, Stop};

const GP0: Stop = Stop::Exception {
    vector: 13,
    error_code: Some(0),
    cr2: None,
};
const SS0: Stop = Stop::Exception {
    vector: 12,
    error_code: Some(0),
    cr2: None,
};

/// Flat linear memory of 1 MiB, mirrored over the whole address space, with a log of accesses.
struct Flat {
    mem: Vec<u8>,
    log: Vec<(char, u64, usize)>,
    /// Writes at or above this address fault.
    write_fault: u64,
    race: bool,
    ports: Vec<PortRequest>,
    port_limit: u32,
    port_checks: u32,
    commits: u32,
    counts_zeros: bool,
}

const PF: Stop = Stop::Exception {
    vector: 14,
    error_code: Some(2),
    cr2: Some(0),
};

impl Flat {
    fn new() -> Self {
        Self {
            mem: (0..1 << 20).map(|i| (i * 7 + (i >> 8)) as u8).collect(),
            log: Vec::new(),
            write_fault: u64::MAX,
            race: false,
            ports: Vec::new(),
            port_limit: u32::MAX,
            port_checks: 0,
            commits: 0,
            counts_zeros: true,
        }
    }
    fn at(&self, la: u64) -> usize {
        (la & 0xf_ffff) as usize
    }
    fn get(&self, la: u64, n: usize) -> u64 {
        let mut b = [0; 8];
        for (i, x) in b[..n].iter_mut().enumerate() {
            *x = self.mem[self.at(la + i as u64)];
        }
        u64::from_le_bytes(b)
    }
    fn set(&mut self, la: u64, n: usize, v: u64) {
        for i in 0..n {
            let at = self.at(la + i as u64);
            self.mem[at] = (v >> (8 * i)) as u8;
        }
    }
}

impl Env for Flat {
    fn has_tzcnt(&self) -> bool {
        self.counts_zeros
    }
    fn has_lzcnt(&self) -> bool {
        self.counts_zeros
    }
    fn read(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.log.push(('r', la, buf.len()));
        let v = self.get(la, buf.len()).to_le_bytes();
        buf.copy_from_slice(&v[..buf.len()]);
        Ok(())
    }
    fn write(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
        self.probe_write(la, data.len() as u8)?;
        self.log.push(('w', la, data.len()));
        let mut b = [0; 8];
        b[..data.len()].copy_from_slice(data);
        self.set(la, data.len(), u64::from_le_bytes(b));
        Ok(())
    }
    fn probe_write(&mut self, la: u64, len: u8) -> Result<(), Stop> {
        if la + u64::from(len) > self.write_fault {
            return Err(PF);
        }
        Ok(())
    }
    fn cmpxchg(&mut self, la: u64, old: u64, new: u64, width: u8) -> Result<bool, Stop> {
        if self.race || self.get(la, width.into()) != old {
            return Ok(false);
        }
        self.log.push(('x', la, width.into()));
        self.set(la, width.into(), new);
        Ok(true)
    }
    fn check_port(&mut self, _: u16, _: u8) -> Result<(), Stop> {
        self.port_checks += 1;
        Err(GP0)
    }
    fn port_in(&mut self, req: &PortRequest) -> Result<u32, Stop> {
        self.ports.push(*req);
        Ok(req.count.min(self.port_limit))
    }
    fn port_out(&mut self, req: &PortRequest) -> Result<u32, Stop> {
        self.port_in(req)
    }
    fn commit(&mut self) {
        self.commits += 1;
    }
}

fn data(base: u64, limit: u32) -> Segment {
    Segment {
        base,
        limit,
        selector: 8,
        typ: 3,
        s: true,
        present: true,
        db: true,
        g: true,
        ..Default::default()
    }
}

/// Flat segments of the mode's usual kind.
fn sregs(mode: Mode) -> Sregs {
    let mut s = Sregs::default();
    let limit = if matches!(mode, Mode::Prot32 | Mode::Long) {
        u32::MAX
    } else {
        0xffff
    };
    for seg in &mut s.seg {
        *seg = data(0, limit);
        seg.db = mode == Mode::Prot32;
        if matches!(mode, Mode::Real | Mode::Vm86) {
            seg.dpl = if mode == Mode::Vm86 { 3 } else { 0 };
        }
    }
    s.seg_mut(Seg::Cs).typ = 11;
    if mode != Mode::Real {
        s.cr0 = cr0::PE;
    }
    if mode == Mode::Long {
        s.cr0 |= cr0::PG;
        s.cr4 = cr4::PAE;
        s.efer = efer::LME | efer::LMA;
        s.seg_mut(Seg::Cs).l = true;
        s.seg_mut(Seg::Cs).db = false;
    }
    s
}

fn insn(bytes: &[u8], mode: Mode) -> Insn {
    decode(bytes, mode).unwrap_or_else(|e| panic!("{bytes:02x?}: {e:?}"))
}

fn regs(mode: Mode) -> Regs {
    let mut r = Regs {
        rip: 0x100,
        rflags: rflags::FIXED,
        ..Default::default()
    };
    if mode == Mode::Vm86 {
        r.rflags |= rflags::VM;
    }
    r
}

fn run(bytes: &[u8], mode: Mode, r: &mut Regs, s: &Sregs, e: &mut Flat) -> Result<Outcome, Stop> {
    let cpl = s.cpl(r.rflags);
    execute(&insn(bytes, mode), r, s, cpl, e)
}

#[test]
fn segment_base_and_wrap() {
    // Real mode: MOV [BX+SI], AX wraps at 64 KiB, segment base added.
    let (mut r, mut s, mut e) = (regs(Mode::Real), sregs(Mode::Real), Flat::new());
    s.seg_mut(Seg::Ds).base = 0x12340;
    r.set(Gpr::Rbx, 0xfff0);
    r.set(Gpr::Rsi, 0x0012);
    r.set(Gpr::Rax, 0xdead_beef);
    assert_eq!(
        run(&[0x89, 0x00], Mode::Real, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!(e.log, [('w', 0x12342, 2)]);
    assert_eq!(e.get(0x12342, 2), 0xbeef);
    assert_eq!(r.rip, 0x102);
    // Address-size 32 in 64-bit mode: zero-extended, FS base added in 64 bits.
    let (mut r, mut s, mut e) = (regs(Mode::Long), sregs(Mode::Long), Flat::new());
    s.seg_mut(Seg::Fs).base = 0xffff_8000_0000_0000;
    s.seg_mut(Seg::Ds).base = 0x5555;
    r.set(Gpr::Rdi, 0xffff_ffff_ffff_fff0);
    assert_eq!(
        run(
            &[0x64, 0x67, 0x8b, 0x47, 0x20],
            Mode::Long,
            &mut r,
            &s,
            &mut e
        ),
        Ok(Outcome::Done)
    );
    assert_eq!(e.log, [('r', 0xffff_8000_0000_0010, 4)]);
    // DS has no base there.
    e.log.clear();
    r.set(Gpr::Rdi, 0x1000);
    assert_eq!(
        run(&[0x3e, 0x8b, 0x07], Mode::Long, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!(e.log, [('r', 0x1000, 4)]);
    // RIP-relative counts from the end, immediate included.
    e.log.clear();
    r.rip = 0x2000;
    assert_eq!(
        run(
            &[0xc6, 0x05, 0x10, 0, 0, 0, 0x7f],
            Mode::Long,
            &mut r,
            &s,
            &mut e
        ),
        Ok(Outcome::Done)
    );
    assert_eq!(e.log, [('w', 0x2017, 1)]);
    // Linear addresses wrap at 4 GiB outside 64-bit mode, inside an access, too.
    let (mut r, mut s, mut e) = (regs(Mode::Prot32), sregs(Mode::Prot32), Flat::new());
    s.seg_mut(Seg::Ds).base = 0xffff_f000;
    r.set(Gpr::Rdi, 0x2000);
    assert_eq!(
        run(&[0x8b, 0x07], Mode::Prot32, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    r.set(Gpr::Rdi, 0xffe);
    assert_eq!(
        run(&[0x89, 0x07], Mode::Prot32, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!(
        e.log,
        [('r', 0x1000, 4), ('w', 0xffff_fffe, 2), ('w', 0, 2)]
    );
}

#[test]
fn limits_and_types() {
    let mode = Mode::Prot32;
    let (mut e, load, store) = (Flat::new(), &[0x8b, 0x07][..], &[0x89, 0x07][..]);
    let mut try_ds = |seg: Segment, edi: u64, bytes: &[u8]| {
        let mut s = sregs(mode);
        *s.seg_mut(Seg::Ds) = seg;
        let mut r = regs(mode);
        r.set(Gpr::Rdi, edi);
        let before = r;
        let result = run(bytes, mode, &mut r, &s, &mut e);
        if result.is_err() {
            assert_eq!(r, before);
        }
        result
    };
    let done = Ok(Outcome::Done);
    let seg = data(0, 0xfff);
    assert_eq!(try_ds(seg, 0xffc, store), done);
    assert_eq!(try_ds(seg, 0xffd, store), Err(GP0));
    assert_eq!(try_ds(seg, 0xffff_fffe, load), Err(GP0));
    assert_eq!(try_ds(data(0, u32::MAX), 0xffff_fffc, load), done);
    assert_eq!(try_ds(data(0, u32::MAX), 0xffff_fffd, load), Err(GP0));
    // Read-only data, readable code, execute-only code.
    assert_eq!(try_ds(Segment { typ: 1, ..seg }, 0, load), done);
    assert_eq!(try_ds(Segment { typ: 1, ..seg }, 0, store), Err(GP0));
    assert_eq!(try_ds(Segment { typ: 11, ..seg }, 0, load), done);
    assert_eq!(try_ds(Segment { typ: 11, ..seg }, 0, store), Err(GP0));
    assert_eq!(try_ds(Segment { typ: 9, ..seg }, 0, load), Err(GP0));
    // A read-modify-write needs a writable segment although it reads first.
    assert_eq!(
        try_ds(Segment { typ: 1, ..seg }, 0, &[0x01, 0x07]),
        Err(GP0)
    );
    // BT does not write.
    assert_eq!(
        try_ds(Segment { typ: 1, ..seg }, 0, &[0x0f, 0xba, 0x27, 0]),
        done
    );
    // Null, not present, system.
    assert_eq!(
        try_ds(
            Segment {
                unusable: true,
                ..seg
            },
            0,
            load
        ),
        Err(GP0)
    );
    assert_eq!(
        try_ds(
            Segment {
                present: false,
                ..seg
            },
            0,
            load
        ),
        Err(GP0)
    );
    assert_eq!(try_ds(Segment { s: false, ..seg }, 0, load), Err(GP0));
    // Expand-down: above the limit, up to 64 KiB or 4 GiB.
    let down = Segment { typ: 7, ..seg };
    assert_eq!(try_ds(down, 0xfff, load), Err(GP0));
    assert_eq!(try_ds(down, 0x1000, load), done);
    assert_eq!(try_ds(down, 0xffff_fffc, load), done);
    assert_eq!(try_ds(Segment { db: false, ..down }, 0xfffc, load), done);
    assert_eq!(
        try_ds(Segment { db: false, ..down }, 0xfffd, load),
        Err(GP0)
    );
    // The stack segment faults with #SS(0).
    let (mut r, mut s) = (regs(mode), sregs(mode));
    s.seg_mut(Seg::Ss).limit = 0xfff;
    r.set(Gpr::Rbp, 0x1000);
    assert_eq!(run(&[0x8b, 0x45, 0x00], mode, &mut r, &s, &mut e), Err(SS0));
    // Real mode: no error code, no type checks; big real mode has a big limit.
    let (mut r, mut s) = (regs(Mode::Real), sregs(Mode::Real));
    r.set(Gpr::Rbx, 0xffff);
    let gp = Stop::Exception {
        vector: 13,
        error_code: None,
        cr2: None,
    };
    assert_eq!(run(&[0x8b, 0x07], Mode::Real, &mut r, &s, &mut e), Err(gp));
    assert_eq!(
        run(&[0x2e, 0x88, 0x07], Mode::Real, &mut r, &s, &mut e),
        done
    );
    r.set(Gpr::Rbx, 0xfee0_0000);
    assert_eq!(
        run(&[0x67, 0x8b, 0x03], Mode::Real, &mut r, &s, &mut e),
        Err(gp)
    );
    s.seg_mut(Seg::Ds).limit = u32::MAX;
    assert_eq!(
        run(&[0x67, 0x8b, 0x03], Mode::Real, &mut r, &s, &mut e),
        done
    );
    // Virtual-8086 mode has the error code.
    let (mut r, s) = (regs(Mode::Vm86), sregs(Mode::Vm86));
    r.set(Gpr::Rbx, 0xffff);
    assert_eq!(run(&[0x8b, 0x07], Mode::Vm86, &mut r, &s, &mut e), Err(GP0));
}

#[test]
fn canonical_addresses() {
    let (mut s, mut e) = (sregs(Mode::Long), Flat::new());
    let mut try_rdi = |s: &Sregs, reg: Gpr, bytes: &[u8], v: u64| {
        let mut r = regs(Mode::Long);
        r.set(reg, v);
        run(bytes, Mode::Long, &mut r, s, &mut e)
    };
    let load: &[u8] = &[0x48, 0x8b, 0x07];
    let done = Ok(Outcome::Done);
    assert_eq!(try_rdi(&s, Gpr::Rdi, load, 0x7fff_ffff_fff8), done);
    assert_eq!(try_rdi(&s, Gpr::Rdi, load, 0x7fff_ffff_fff9), Err(GP0));
    assert_eq!(try_rdi(&s, Gpr::Rdi, load, 0x8000_0000_0000), Err(GP0));
    assert_eq!(try_rdi(&s, Gpr::Rdi, load, 0xffff_8000_0000_0000), done);
    assert_eq!(try_rdi(&s, Gpr::Rdi, load, 0xffff_7fff_ffff_ffff), Err(GP0));
    assert_eq!(
        try_rdi(&s, Gpr::Rbp, &[0x8b, 0x45, 0], 0x8000_0000_0000),
        Err(SS0)
    );
    s.cr4 |= cr4::LA57;
    assert_eq!(try_rdi(&s, Gpr::Rdi, load, 0x8000_0000_0000), done);
    assert_eq!(try_rdi(&s, Gpr::Rdi, load, 0x0100_0000_0000_0000), Err(GP0));
}

#[test]
fn partial_registers() {
    let mut r = Regs::default();
    r.set(Gpr::Rax, 0x1122_3344_5566_7788);
    assert_eq!(read_reg(&r, Operand::High(Gpr::Rax), 1), Some(0x77));
    assert_eq!(read_reg(&r, Operand::Reg(Gpr::Rax), 2), Some(0x7788));
    assert_eq!(read_reg(&r, Operand::Mem, 2), None);
    assert!(write_reg(&mut r, Operand::High(Gpr::Rax), 1, 0xfaa));
    assert_eq!(r.get(Gpr::Rax), 0x1122_3344_5566_aa88);
    assert!(write_reg(&mut r, Operand::Reg(Gpr::Rax), 2, 0xf_0001));
    assert_eq!(r.get(Gpr::Rax), 0x1122_3344_5566_0001);
    assert!(write_reg(&mut r, Operand::Reg(Gpr::Rax), 4, u64::MAX));
    assert_eq!(r.get(Gpr::Rax), 0xffff_ffff);
    assert!(!write_reg(&mut r, Operand::Imm, 4, 0));
}

#[test]
fn nothing_changes_on_a_fault() {
    let mode = Mode::Long;
    let s = sregs(mode);
    for bytes in [
        &[0x01, 0x07][..],         // ADD
        &[0x87, 0x07],             // XCHG
        &[0xf0, 0x0f, 0xb1, 0x0f], // CMPXCHG
        &[0x0f, 0xc1, 0x07],       // XADD
        &[0x0f, 0xc7, 0x0f],       // CMPXCHG8B
        &[0x8f, 0x07],             // POP
        &[0xff, 0x30],             // PUSH [RAX]
        &[0xa5],                   // MOVS
        &[0x0f, 0xab, 0x07],       // BTS
    ] {
        let mut e = Flat::new();
        e.write_fault = 0x1000;
        let mut r = regs(mode);
        r.set(Gpr::Rdi, 0x2000);
        r.set(Gpr::Rsp, 0x3000);
        r.set(Gpr::Rax, 0x80);
        r.rflags |= rflags::RF;
        let (before, mem) = (r, e.mem.clone());
        assert_eq!(
            run(bytes, mode, &mut r, &s, &mut e),
            Err(PF),
            "{bytes:02x?}"
        );
        assert_eq!(r, before, "{bytes:02x?}");
        assert!(e.mem == mem, "{bytes:02x?}");
        // The write was probed before the read that may have side effects (POP reads the stack first).
        assert!(
            bytes[0] == 0x8f || e.log.is_empty(),
            "{bytes:02x?} {:?}",
            e.log
        );
        assert_eq!(e.commits, 0);
    }
}

#[test]
fn a_lost_race_is_tried_again() {
    let mode = Mode::Long;
    let (s, mut e, mut r) = (sregs(mode), Flat::new(), regs(mode));
    r.set(Gpr::Rdi, 0x2000);
    e.race = true;
    let before = r;
    for bytes in [&[0xf0, 0x01, 0x07][..], &[0x87, 0x07]] {
        assert_eq!(run(bytes, mode, &mut r, &s, &mut e), Ok(Outcome::Again));
        assert_eq!(r, before);
    }
    assert_eq!(e.commits, 2);
    // Without LOCK it is a plain write, except for XCHG.
    e.log.clear();
    e.race = false;
    for bytes in [&[0x01, 0x07][..], &[0x87, 0x07], &[0xf0, 0x01, 0x07]] {
        assert_eq!(run(bytes, mode, &mut r, &s, &mut e), Ok(Outcome::Done));
    }
    let kinds: String = e.log.iter().map(|l| l.0).collect();
    assert_eq!(kinds, "rwrxrx");
}

#[test]
fn resume_flag_and_rip() {
    for (mode, rip, next) in [
        (Mode::Long, u64::MAX, 1),
        (Mode::Long, 0xffff_ffff, 0x1_0000_0001),
        (Mode::Prot32, 0xffff_ffff, 1),
        (Mode::Real, 0xfffe, 0x1_0000),
    ] {
        let mut r = regs(mode);
        r.rip = rip;
        r.rflags |= rflags::RF | rflags::TF | rflags::CF;
        advance(&mut r, 2, mode);
        assert_eq!(
            (r.rip, r.rflags),
            (next, rflags::FIXED | rflags::TF | rflags::CF)
        );
    }
}

#[test]
fn push_and_pop() {
    // 64-bit: PUSH [RSP] uses the old RSP, POP [RSP] the new one.
    let mode = Mode::Long;
    let (s, mut e, mut r) = (sregs(mode), Flat::new(), regs(mode));
    r.set(Gpr::Rsp, 0x3000);
    let v = e.get(0x3000, 8);
    assert_eq!(
        run(&[0xff, 0x34, 0x24], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!((r.get(Gpr::Rsp), e.get(0x2ff8, 8)), (0x2ff8, v));
    e.set(0x2ff8, 8, 0x1234);
    assert_eq!(
        run(&[0x8f, 0x04, 0x24], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!((r.get(Gpr::Rsp), e.get(0x3000, 8)), (0x3000, 0x1234));
    // POP RSP ends with the popped value.
    assert_eq!(
        run(&[0x8f, 0xc4], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!(r.get(Gpr::Rsp), 0x1234);
    // 16-bit stack in a 32-bit code segment: SP wraps, the upper half stays.
    let mode = Mode::Prot32;
    let (mut s, mut e, mut r) = (sregs(mode), Flat::new(), regs(mode));
    s.seg_mut(Seg::Ss).db = false;
    r.set(Gpr::Rsp, 0x5_0000);
    r.set(Gpr::Rdi, 0x2000);
    assert_eq!(
        run(&[0xff, 0x37], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!(r.get(Gpr::Rsp), 0x5_fffc);
    assert_eq!(e.log.last(), Some(&('w', 0xfffc, 4)));
    // A 64-bit stack fault is #SS(0).
    let mode = Mode::Long;
    let (s, mut r) = (sregs(mode), regs(mode));
    r.set(Gpr::Rsp, 0x8000_0000_0000 + 8);
    r.set(Gpr::Rdi, 0x2000);
    assert_eq!(run(&[0xff, 0x37], mode, &mut r, &s, &mut e), Err(SS0));
}

#[test]
fn bit_strings() {
    let mode = Mode::Long;
    let (s, mut e, mut r) = (sregs(mode), Flat::new(), regs(mode));
    r.set(Gpr::Rdi, 0x2000);
    for (width_prefix, bit, la) in [
        (&[][..], 31u64, 0x2000),
        (&[], 32, 0x2004),
        (&[], u64::MAX, 0x1ffc), // EAX = -1
        (&[], 0x8000_0000, 0x2000u64.wrapping_sub(0x1000_0000)),
        (&[0x66], 0x8000, 0x1000),
        (&[0x66], 16, 0x2002),
        (&[0x48], 64, 0x2008),
        (&[0x48], (-65i64) as u64, 0x1ff0),
    ] {
        r.set(Gpr::Rax, bit);
        e.log.clear();
        let bytes = [width_prefix, &[0x0f, 0xa3, 0x07]].concat();
        assert_eq!(run(&bytes, mode, &mut r, &s, &mut e), Ok(Outcome::Done));
        assert_eq!(e.log[0].1, la, "{bytes:02x?} {bit:#x}");
    }
    // imm8 is taken modulo the width and moves nothing.
    e.log.clear();
    assert_eq!(
        run(&[0x0f, 0xba, 0x2f, 33], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!(e.log, [('r', 0x2000, 4), ('w', 0x2000, 4)]);
}

#[test]
fn repeated_moves() {
    let mode = Mode::Long;
    let (s, mut e, mut r) = (sregs(mode), Flat::new(), regs(mode));
    r.set(Gpr::Rcx, 150);
    r.set(Gpr::Rsi, 0x1000);
    r.set(Gpr::Rdi, 0x8000);
    r.rflags |= rflags::RF;
    let rep_movsb = &[0xf3, 0xa4];
    assert_eq!(run(rep_movsb, mode, &mut r, &s, &mut e), Ok(Outcome::Again));
    assert_eq!(
        (r.get(Gpr::Rcx), r.get(Gpr::Rsi), r.get(Gpr::Rdi), r.rip),
        (86, 0x1040, 0x8040, 0x100)
    );
    assert_ne!(r.rflags & rflags::RF, 0);
    assert_eq!(run(rep_movsb, mode, &mut r, &s, &mut e), Ok(Outcome::Again));
    assert_eq!(run(rep_movsb, mode, &mut r, &s, &mut e), Ok(Outcome::Done));
    assert_eq!(
        (r.get(Gpr::Rcx), r.get(Gpr::Rdi), r.rip),
        (0, 0x8096, 0x102)
    );
    assert_eq!(r.rflags & rflags::RF, 0);
    assert_eq!(e.commits, 150);
    let (a, b) = (e.mem[0x1000..0x1096].to_vec(), &e.mem[0x8000..0x8096]);
    assert_eq!(a, b);
    // Count 0 touches nothing.
    e.log.clear();
    assert_eq!(run(rep_movsb, mode, &mut r, &s, &mut e), Ok(Outcome::Done));
    assert!(e.log.is_empty());
    // A fault in the middle leaves the finished iterations.
    r = regs(mode);
    r.set(Gpr::Rcx, 10);
    r.set(Gpr::Rdi, 0x8ffc);
    e.write_fault = 0x9000;
    assert_eq!(run(&[0xf3, 0xaa], mode, &mut r, &s, &mut e), Err(PF));
    assert_eq!(
        (r.get(Gpr::Rcx), r.get(Gpr::Rdi), r.rip),
        (6, 0x9000, 0x100)
    );
    // One iteration at a time when single-stepping.
    e.write_fault = u64::MAX;
    r.rflags |= rflags::TF;
    assert_eq!(
        run(&[0xf3, 0xaa], mode, &mut r, &s, &mut e),
        Ok(Outcome::Again)
    );
    assert_eq!(r.get(Gpr::Rcx), 5);
}

#[test]
fn string_registers_wrap_to_the_address_size() {
    let mode = Mode::Real;
    let (mut s, mut e, mut r) = (sregs(mode), Flat::new(), regs(mode));
    s.seg_mut(Seg::Es).base = 0x10000;
    r.set(Gpr::Rcx, 0xabcd_0003);
    r.set(Gpr::Rsi, 0x1111_fffe);
    r.set(Gpr::Rdi, 0x2222_fffc);
    assert_eq!(
        run(&[0xf3, 0xa5], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!(r.get(Gpr::Rcx), 0xabcd_0000);
    assert_eq!(r.get(Gpr::Rsi), 0x1111_0004);
    assert_eq!(r.get(Gpr::Rdi), 0x2222_0002);
    let at: Vec<u64> = e.log.iter().map(|l| l.1).collect();
    assert_eq!(at, [0xfffe, 0x1fffc, 0, 0x1fffe, 2, 0x10000]);
    // In 64-bit mode a 32-bit address size clears the upper halves.
    let mode = Mode::Long;
    let (s, mut r) = (sregs(mode), regs(mode));
    r.set(Gpr::Rcx, 0x9_0000_0002);
    r.set(Gpr::Rdi, 0x9_0000_1000);
    assert_eq!(
        run(&[0x67, 0xf3, 0xaa], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!((r.get(Gpr::Rcx), r.get(Gpr::Rdi)), (0, 0x1002));
    // Downwards.
    r.rflags |= rflags::DF;
    r.set(Gpr::Rcx, 2);
    assert_eq!(
        run(&[0xf3, 0x48, 0xab], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!(r.get(Gpr::Rdi), 0x1002 - 16);
}

#[test]
fn scan_and_compare_end_on_the_flag() {
    let mode = Mode::Long;
    let (s, mut e, mut r) = (sregs(mode), Flat::new(), regs(mode));
    e.mem[0x1000..0x1010].copy_from_slice(b"abcdefghXjklmnop");
    e.mem[0x2000..0x2010].copy_from_slice(b"abcdefghijklmnop");
    // REPNE SCASB finds 'X'.
    r.set(Gpr::Rcx, 16);
    r.set(Gpr::Rdi, 0x1000);
    r.set(Gpr::Rax, b'X'.into());
    assert_eq!(
        run(&[0xf2, 0xae], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!((r.get(Gpr::Rcx), r.get(Gpr::Rdi)), (7, 0x1009));
    assert_ne!(r.rflags & rflags::ZF, 0);
    // REPE CMPSB stops behind the difference; 'X' - 'i' borrows.
    r.set(Gpr::Rcx, 16);
    r.set(Gpr::Rsi, 0x1000);
    r.set(Gpr::Rdi, 0x2000);
    assert_eq!(
        run(&[0xf3, 0xa6], mode, &mut r, &s, &mut e),
        Ok(Outcome::Done)
    );
    assert_eq!((r.get(Gpr::Rcx), r.get(Gpr::Rsi)), (7, 0x1009));
    assert_eq!(r.rflags & (rflags::ZF | rflags::CF), rflags::CF);
    assert_eq!(r.rip, 0x104);
}

#[test]
fn port_batches() {
    let mode = Mode::Long;
    let (s, mut e, mut r) = (sregs(mode), Flat::new(), regs(mode));
    let reset = |r: &mut Regs, rcx: u64, index: u64| {
        *r = regs(mode);
        r.set(Gpr::Rcx, rcx);
        r.set(Gpr::Rdx, 0x5_01f0);
        r.set(Gpr::Rdi, index);
        r.set(Gpr::Rsi, index);
    };
    let rep_insw = &[0x66, 0xf3, 0x6d];
    // 256 words in one request.
    reset(&mut r, 256, 0x1000);
    assert_eq!(run(rep_insw, mode, &mut r, &s, &mut e), Ok(Outcome::Done));
    assert_eq!(
        e.ports,
        [PortRequest {
            la: 0x1000,
            count: 256,
            port: 0x1f0,
            width: 2,
            down: false,
        }]
    );
    assert_eq!(
        (r.get(Gpr::Rcx), r.get(Gpr::Rdi), r.rip),
        (0, 0x1200, 0x103)
    );
    // Up to the end of the page, then the rest; the item that crosses goes alone.
    e.ports.clear();
    reset(&mut r, 5, 0x1ffb);
    assert_eq!(run(rep_insw, mode, &mut r, &s, &mut e), Ok(Outcome::Again));
    assert_eq!((r.get(Gpr::Rcx), r.rip), (3, 0x100));
    assert_eq!(run(rep_insw, mode, &mut r, &s, &mut e), Ok(Outcome::Again));
    assert_eq!(run(rep_insw, mode, &mut r, &s, &mut e), Ok(Outcome::Done));
    let spans: Vec<_> = e.ports.iter().map(|p| (p.la, p.count)).collect();
    assert_eq!(spans, [(0x1ffb, 2), (0x1fff, 1), (0x2001, 2)]);
    // An environment that did less than asked.
    e.ports.clear();
    e.port_limit = 3;
    reset(&mut r, 100, 0x1000);
    assert_eq!(
        run(&[0xf3, 0x6f], mode, &mut r, &s, &mut e),
        Ok(Outcome::Again)
    );
    assert_eq!(
        (e.ports[0].count, r.get(Gpr::Rcx), r.get(Gpr::Rsi)),
        (100, 97, 0x100c)
    );
    e.port_limit = u32::MAX;
    // Output downwards: one at a time.
    e.ports.clear();
    reset(&mut r, 3, 0x1000);
    r.rflags |= rflags::DF;
    assert_eq!(
        run(&[0xf3, 0x6e], mode, &mut r, &s, &mut e),
        Ok(Outcome::Again)
    );
    assert_eq!((e.ports[0].count, r.get(Gpr::Rsi)), (1, 0xfff));
    // Without REP, RCX does not matter.
    e.ports.clear();
    reset(&mut r, 7, 0x1000);
    assert_eq!(run(&[0x6c], mode, &mut r, &s, &mut e), Ok(Outcome::Done));
    assert_eq!(
        (e.ports[0].count, e.ports[0].width, r.get(Gpr::Rcx)),
        (1, 1, 7)
    );
    // The batch ends where a 16-bit index wraps or the segment ends.
    let mode = Mode::Real;
    let s = sregs(mode);
    let mut r = regs(mode);
    e.ports.clear();
    r.set(Gpr::Rcx, 100);
    r.set(Gpr::Rdi, 0xfff0);
    assert_eq!(
        run(&[0xf3, 0x6c], mode, &mut r, &s, &mut e),
        Ok(Outcome::Again)
    );
    assert!(e.ports[0].count <= 16);
    // The segment goes on, the index does not.
    let mut s = s;
    s.seg_mut(Seg::Es).limit = u32::MAX;
    s.seg_mut(Seg::Es).base = 0x800;
    r.set(Gpr::Rdi, 0xfff0);
    assert_eq!(
        run(&[0xf3, 0x6c], mode, &mut r, &s, &mut e),
        Ok(Outcome::Again)
    );
    assert!(e.ports[1].count <= 16, "{:?}", e.ports[1]);
    let mode = Mode::Prot32;
    let mut s = sregs(mode);
    s.seg_mut(Seg::Es).limit = 0x1003;
    let mut r = regs(mode);
    e.ports.clear();
    r.set(Gpr::Rcx, 100);
    r.set(Gpr::Rdi, 0x1000);
    for _ in 0..4 {
        assert_eq!(
            run(&[0xf3, 0x6c], mode, &mut r, &s, &mut e),
            Ok(Outcome::Again)
        );
    }
    assert_eq!(run(&[0xf3, 0x6c], mode, &mut r, &s, &mut e), Err(GP0));
    assert!(e.ports.iter().all(|p| p.count == 1));
}

#[test]
fn port_permission() {
    let mode = Mode::Prot32;
    let (mut s, mut e, mut r) = (sregs(mode), Flat::new(), regs(mode));
    s.seg_mut(Seg::Ss).dpl = 3;
    assert_eq!(run(&[0x6c], mode, &mut r, &s, &mut e), Err(GP0));
    assert_eq!((e.port_checks, e.ports.len()), (1, 0));
    r.rflags |= rflags::IOPL;
    assert_eq!(run(&[0x6c], mode, &mut r, &s, &mut e), Ok(Outcome::Done));
    // Virtual-8086 mode always asks the bitmap.
    let (s, mut r) = (sregs(Mode::Vm86), regs(Mode::Vm86));
    r.rflags |= rflags::IOPL;
    assert_eq!(run(&[0x6c], Mode::Vm86, &mut r, &s, &mut e), Err(GP0));
}

/// F3 0F BC and F3 0F BD of 0 and of 0x50, on processors with and without TZCNT and LZCNT.
#[test]
fn f3_before_bsf_counts_zeros_where_the_processor_has_that() {
    let mode = Mode::Prot32;
    let (s, mut e) = (sregs(mode), Flat::new());
    let mut of = |has: bool, op: u8, value: u64| {
        e.counts_zeros = has;
        e.set(0x1000, 4, value);
        let mut r = regs(mode);
        r.set(Gpr::Rax, 77);
        r.set(Gpr::Rbx, 0x1000);
        r.rflags &= !(rflags::CF | rflags::ZF);
        assert_eq!(
            run(&[0xf3, 0x0f, op, 0x03], mode, &mut r, &s, &mut e),
            Ok(Outcome::Done)
        );
        (r.get(Gpr::Rax), r.rflags & (rflags::CF | rflags::ZF))
    };
    assert_eq!(
        (of(true, 0xbc, 0), of(true, 0xbd, 0)),
        ((32, rflags::CF), (32, rflags::CF))
    );
    assert_eq!(
        (of(false, 0xbc, 0), of(false, 0xbd, 0)),
        ((77, rflags::ZF), (77, rflags::ZF))
    );
    assert_eq!(
        (of(true, 0xbc, 0x50), of(true, 0xbd, 0x50)),
        ((4, 0), (25, 0))
    );
    assert_eq!(
        (of(false, 0xbc, 0x50), of(false, 0xbd, 0x50)),
        ((4, 0), (6, 0))
    );
}

#[test]
fn decoded_only_is_unsupported() {
    let mode = Mode::Long;
    let (s, mut e) = (sregs(mode), Flat::new());
    for bytes in [
        &[0x0f, 0xa2][..],
        &[0x0f, 0x20, 0xc0],
        &[0x48, 0x0f, 0xc7, 0x0f],
        &[0xe4, 0],
    ] {
        let mut r = regs(mode);
        let before = r;
        assert_eq!(run(bytes, mode, &mut r, &s, &mut e), Err(Stop::Unsupported));
        assert_eq!(r, before);
        assert!(e.log.is_empty());
    }
}
