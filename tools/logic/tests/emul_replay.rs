// SPDX-License-Identifier: GPL-2.0
//! Instructions that wait for user space: every access happens once, in order, with the data of the first time.

use rvmm_logic::x86::cpu::regs::{cr0, cr4, efer, rflags, Gpr, Mode, Regs, Seg, Segment, Sregs};
use rvmm_logic::x86::emul::decode::decode;
use rvmm_logic::x86::emul::replay::{Fragment, Next};
use rvmm_logic::x86::emul::{
    emulate, Access, Answer, Bus, Insn, Kind, Outcome, Pending, PortRequest, Replay, Stop, Swap,
};

/// Nothing is completed, and nothing is pending.
fn is_empty(log: &Replay) -> bool {
    format!("{log:?}").contains(" done: 0,") && log.pending().is_none()
}

const MMIO: u64 = 0x8000;

/// 64 KiB of guest-physical space: RAM below [`MMIO`], above it registers that only user space knows. Linear pages are
/// mapped one to one except those in `holes` and, for writing, `read_only`.
struct Board {
    ram: Vec<u8>,
    /// Accesses to RAM, in order.
    log: Vec<(Kind, u64, usize)>,
    holes: Vec<u64>,
    read_only: Vec<u64>,
    /// RAM is changed by another processor after each attempt.
    racing: bool,
    swap_differs: bool,
    ports: Vec<(bool, PortRequest)>,
    port_answer: Answer,
    walks: u32,
}

impl Board {
    fn new() -> Self {
        Self {
            ram: (0..MMIO).map(|i| (i * 13 + (i >> 8)) as u8).collect(),
            log: Vec::new(),
            holes: Vec::new(),
            read_only: Vec::new(),
            racing: false,
            swap_differs: false,
            ports: Vec::new(),
            port_answer: Answer::User,
            walks: 0,
        }
    }
    fn get(&self, gpa: u64, n: usize) -> u64 {
        let mut b = [0; 8];
        b[..n].copy_from_slice(&self.ram[gpa as usize..gpa as usize + n]);
        u64::from_le_bytes(b)
    }
}

fn pf(la: u64) -> Stop {
    Stop::Exception {
        vector: 14,
        error_code: Some(0),
        cr2: Some(la),
    }
}

impl Bus for Board {
    fn translate(&mut self, la: u64, access: Access) -> Result<u64, Stop> {
        self.walks += 1;
        let page = la & !0xfff;
        if self.holes.contains(&page) || access == Access::Write && self.read_only.contains(&page) {
            return Err(pf(la));
        }
        Ok(la)
    }
    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> Result<Answer, Stop> {
        assert!((gpa & 0xfff) + buf.len() as u64 <= 4096);
        if gpa >= MMIO {
            return Ok(Answer::User);
        }
        self.log.push((Kind::Read, gpa, buf.len()));
        buf.copy_from_slice(&self.ram[gpa as usize..gpa as usize + buf.len()]);
        Ok(Answer::Done)
    }
    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<Answer, Stop> {
        assert!((gpa & 0xfff) + data.len() as u64 <= 4096);
        if gpa >= MMIO {
            return Ok(Answer::User);
        }
        self.log.push((Kind::Write, gpa, data.len()));
        self.ram[gpa as usize..gpa as usize + data.len()].copy_from_slice(data);
        Ok(Answer::Done)
    }
    fn cmpxchg(&mut self, gpa: u64, old: u64, new: u64, width: u8) -> Result<Swap, Stop> {
        if gpa >= MMIO {
            return Ok(Swap::NotRam);
        }
        if self.swap_differs || self.get(gpa, width.into()) != old {
            return Ok(Swap::Differs);
        }
        self.write(gpa, &new.to_le_bytes()[..width.into()])?;
        Ok(Swap::Done)
    }
    fn check_port(&mut self, _: u16, _: u8) -> Result<(), Stop> {
        Ok(())
    }
    fn port_memory_is_ram(&mut self, req: &PortRequest, access: Access) -> Result<bool, Stop> {
        self.translate(req.la, access).map(|gpa| gpa < MMIO)
    }
    fn port_answer(&mut self, _: &PortRequest, n: u32) -> Result<u32, Stop> {
        Ok(n + 1)
    }
    fn port_out_item(&mut self, port: u16, width: u8, item: u32) -> Result<Answer, Stop> {
        let la = item.into();
        self.ports.push((
            false,
            PortRequest {
                la,
                count: 1,
                port,
                width,
                down: false,
            },
        ));
        Ok(self.port_answer)
    }
    fn port_in(&mut self, req: &PortRequest) -> Result<Answer, Stop> {
        self.ports.push((true, *req));
        Ok(self.port_answer)
    }
    fn port_in_finish(&mut self, req: &PortRequest) -> Result<(), Stop> {
        let n = req.count as usize * req.width as usize;
        self.ram[req.la as usize..req.la as usize + n].fill(0x5a);
        Ok(())
    }
    fn port_out(&mut self, req: &PortRequest) -> Result<Answer, Stop> {
        self.ports.push((false, *req));
        Ok(self.port_answer)
    }
}

fn sregs() -> Sregs {
    let mut s = Sregs {
        cr0: cr0::PE | cr0::PG,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..Default::default()
    };
    *s.seg_mut(Seg::Cs) = Segment {
        l: true,
        s: true,
        present: true,
        typ: 11,
        ..Default::default()
    };
    s
}

fn regs() -> Regs {
    Regs {
        rip: 0x100,
        rflags: rflags::FIXED,
        ..Default::default()
    }
}

fn insn(bytes: &[u8]) -> Insn {
    decode(bytes, Mode::Long).unwrap()
}

/// What user space saw: direction, address, length, data written or given.
type Exit = (Kind, u64, u8, u64);

/// Runs to the end with a user space that answers reads with `answers` in turn.
fn complete(
    bytes: &[u8],
    r: &mut Regs,
    board: &mut Board,
    answers: &[u64],
) -> (Result<Outcome, Stop>, Vec<Exit>) {
    let (i, s) = (insn(bytes), sregs());
    let mut log = Replay::new();
    let mut exits = Vec::new();
    let mut answers = answers.iter();
    for _ in 0..100 {
        let result = emulate(&i, r, &s, 0, board, &mut log);
        let mut told = false;
        while if result == Err(Stop::Suspend) {
            !told
        } else {
            log.next_posted()
        } {
            let Some(Pending::Memory(f)) = log.pending().copied() else {
                panic!("suspended without a memory access");
            };
            assert!(f.len >= 1 && f.len <= 8);
            let data = match f.kind {
                Kind::Read => *answers.next().expect("one read too many"),
                Kind::Write => u64::from_le_bytes(f.data),
            };
            exits.push((f.kind, f.gpa, f.len, data));
            assert!(log.complete(&data.to_le_bytes()));
            assert!(log.pending().is_none());
            told = true;
        }
        // Where user space was told of an iteration the guest runs before the next.
        if result != Err(Stop::Suspend) && !(result == Ok(Outcome::Again) && told) {
            assert!(is_empty(&log));
            return (result, exits);
        }
        if board.racing {
            for b in &mut board.ram {
                *b = b.wrapping_add(1);
            }
        }
    }
    panic!("no end");
}

use Kind::{Read, Write};

#[test]
fn load_and_store() {
    let (mut r, mut b) = (regs(), Board::new());
    r.set(Gpr::Rdi, MMIO);
    r.set(Gpr::Rax, 0xffff_ffff_1234_5678);
    let (result, exits) = complete(&[0x89, 0x07], &mut r, &mut b, &[]);
    assert_eq!(result, Ok(Outcome::Done));
    assert_eq!(exits, [(Write, MMIO, 4, 0x1234_5678)]);
    assert_eq!(r.rip, 0x102);
    // Sign extension of a byte.
    let (_, exits) = complete(&[0x0f, 0xbe, 0x0f], &mut r, &mut b, &[0x80]);
    assert_eq!(exits, [(Read, MMIO, 1, 0x80)]);
    assert_eq!(r.get(Gpr::Rcx), 0xffff_ff80);
    // An answer that is too short or too long for the access.
    let mut log = Replay::new();
    let i = insn(&[0x8b, 0x0f]);
    for (answer, value) in [
        (&[1, 2][..], 0x201),
        (&[1, 2, 3, 4, 5, 6, 7, 8, 9], 0x0403_0201),
    ] {
        assert_eq!(
            emulate(&i, &mut r, &sregs(), 0, &mut b, &mut log),
            Err(Stop::Suspend)
        );
        assert!(log.complete(answer));
        assert_eq!(
            emulate(&i, &mut r, &sregs(), 0, &mut b, &mut log),
            Ok(Outcome::Done)
        );
        assert_eq!(r.get(Gpr::Rcx), value);
    }
    assert!(!log.complete(&[]));
}

/// Every move completes the same whether its one access was answered by user space or at once.
#[test]
fn moves_complete_alike() {
    for bytes in [
        &[0x8b, 0x0f][..],
        &[0x48, 0x8b, 0x0f],
        &[0x66, 0x8b, 0x0f],
        &[0x8a, 0x2f],
        &[0x48, 0x0f, 0xbe, 0x0f],
        &[0x66, 0x0f, 0xbe, 0x0f],
        &[0x0f, 0xb7, 0x0f],
        &[0x48, 0x63, 0x0f],
        &[0x48, 0xc7, 0x07, 1, 2, 3, 0x84],
        &[0x88, 0x2f],
        &[0x0f, 0xc3, 0x0f],
        &[0x0f, 0x38, 0xf0, 0x0f],
        // Across pages.
        &[0x48, 0x8b, 0x4f, 0xfc],
        &[0x48, 0x89, 0x4f, 0xfc],
    ] {
        let (mut a, mut b) = (regs(), regs());
        for (r, base) in [(&mut a, 0x1000), (&mut b, MMIO + 0x1000)] {
            r.set(Gpr::Rcx, 0x1122_3344_5566_7788);
            r.set(Gpr::Rdi, base);
            r.rflags |= rflags::RF | rflags::CF;
        }
        let mut board = Board::new();
        let near = board.get(0xffc, 4);
        let at = board.get(0x1000, 8);
        let (result, exits) = complete(bytes, &mut a, &mut board, &[]);
        assert_eq!((result, exits.len()), (Ok(Outcome::Done), 0));
        let answers = if bytes.ends_with(&[0xfc]) {
            [near, at & 0xffff_ffff]
        } else {
            [at, 0]
        };
        let (result, exits) = complete(bytes, &mut b, &mut board, &answers);
        assert_eq!(result, Ok(Outcome::Done));
        assert!(!exits.is_empty());
        for (kind, gpa, len, data) in exits {
            if kind == Write {
                assert_eq!(board.get(gpa - MMIO, len.into()), data, "{bytes:02x?}");
            }
        }
        b.set(Gpr::Rdi, 0x1000);
        assert_eq!(a, b, "{bytes:02x?}");
    }
}

#[test]
fn movs_from_mmio_to_mmio() {
    let (mut r, mut b) = (regs(), Board::new());
    r.set(Gpr::Rsi, MMIO + 0x10);
    r.set(Gpr::Rdi, MMIO + 0x1000);
    r.set(Gpr::Rcx, 3);
    let (result, exits) = complete(&[0xf3, 0xa5], &mut r, &mut b, &[11, 22, 33]);
    assert_eq!(result, Ok(Outcome::Done));
    assert_eq!(
        exits,
        [
            (Read, MMIO + 0x10, 4, 11),
            (Write, MMIO + 0x1000, 4, 11),
            (Read, MMIO + 0x14, 4, 22),
            (Write, MMIO + 0x1004, 4, 22),
            (Read, MMIO + 0x18, 4, 33),
            (Write, MMIO + 0x1008, 4, 33),
        ]
    );
    assert_eq!((r.get(Gpr::Rcx), r.rip), (0, 0x102));
    assert!(b.log.is_empty());
}

#[test]
fn finished_iterations_stay_finished() {
    let (mut r, mut b) = (regs(), Board::new());
    let (i, s) = (insn(&[0xf3, 0xa4]), sregs());
    let mut log = Replay::new();
    r.set(Gpr::Rsi, 0x1000);
    r.set(Gpr::Rdi, MMIO - 2);
    r.set(Gpr::Rcx, 4);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Again)
    );
    // Two bytes went to RAM; user space has to be told of the third, which is done.
    assert_eq!(
        (r.get(Gpr::Rcx), r.get(Gpr::Rdi), r.rip),
        (1, MMIO + 1, 0x100)
    );
    assert_eq!(b.log.len(), 5);
    assert!(log.next_posted());
    log.complete(&[]);
    assert!(!log.next_posted());
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Again)
    );
    assert_eq!((r.get(Gpr::Rcx), r.rip), (0, 0x100));
    // One more read, not a repetition of the third.
    assert_eq!(b.log.len(), 6);
    assert!(log.next_posted());
    log.complete(&[]);
    assert!(!log.next_posted());
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Done)
    );
    assert_eq!((r.get(Gpr::Rcx), r.rip), (0, 0x102));
    assert_eq!(b.log.len(), 6);
}

/// What has been posted is told before a read that comes after it, once, and not at all if the instruction faults.
#[test]
fn posted_writes_keep_their_order() {
    use rvmm_logic::x86::emul::env::Env;
    use rvmm_logic::x86::emul::replay::Replaying;

    let (mut b, mut log) = (Board::new(), Replay::new());
    let mut attempt = |log: &mut Replay, answer: &mut [u8; 2]| {
        let mut env = Replaying::new(&mut b, log);
        env.write(MMIO, &[1])?;
        env.write(MMIO + 0xfff, &[2, 3])?;
        env.read(MMIO + 8, answer)?;
        env.write(MMIO + 9, &[4])?;
        env.commit();
        Ok(())
    };
    let mut answer = [0; 2];
    let mut seen = Vec::new();
    for _ in 0..4 {
        assert_eq!(attempt(&mut log, &mut answer), Err(Stop::Suspend));
        let Some(Pending::Memory(f)) = log.pending().copied() else {
            panic!()
        };
        seen.push((f.kind, f.gpa, f.len));
        assert!(log.complete(&[7, 8]));
    }
    assert_eq!(attempt(&mut log, &mut answer), Ok(()));
    assert_eq!(answer, [7, 8]);
    while log.next_posted() {
        let Some(Pending::Memory(f)) = log.pending().copied() else {
            panic!()
        };
        seen.push((f.kind, f.gpa, f.len));
        assert!(log.complete(&[]));
    }
    assert_eq!(
        seen,
        [
            (Write, MMIO, 1),
            (Write, MMIO + 0xfff, 1),
            (Write, MMIO + 0x1000, 1),
            (Read, MMIO + 8, 2),
            (Write, MMIO + 9, 1)
        ]
    );
    assert!(is_empty(&log));
}

#[test]
fn write_across_ram_and_mmio() {
    let (mut r, mut b) = (regs(), Board::new());
    r.set(Gpr::Rdi, MMIO - 3);
    r.set(Gpr::Rax, 0x8877_6655_4433_2211);
    let (result, exits) = complete(&[0x48, 0x89, 0x07], &mut r, &mut b, &[]);
    assert_eq!(result, Ok(Outcome::Done));
    assert_eq!(exits, [(Write, MMIO, 5, 0x88_7766_5544)]);
    assert_eq!(b.get(MMIO - 3, 3), 0x33_2211);
    assert_eq!(b.log, [(Write, MMIO - 3, 3)]);
    // A read the same way, and between two MMIO pages.
    let (_, exits) = complete(&[0x48, 0x8b, 0x0f], &mut r, &mut b, &[0xaa_bbcc_ddee]);
    assert_eq!(exits, [(Read, MMIO, 5, 0xaa_bbcc_ddee)]);
    assert_eq!(r.get(Gpr::Rcx), 0xaabb_ccdd_ee33_2211);
    r.set(Gpr::Rdi, MMIO + 0xffe);
    let (_, exits) = complete(&[0x8b, 0x0f], &mut r, &mut b, &[0x2211, 0x4433]);
    assert_eq!(
        exits,
        [
            (Read, MMIO + 0xffe, 2, 0x2211),
            (Read, MMIO + 0x1000, 2, 0x4433)
        ]
    );
    assert_eq!(r.get(Gpr::Rcx), 0x4433_2211);
}

#[test]
fn a_fault_on_the_second_page_comes_before_any_effect() {
    for bytes in [
        &[0x48, 0x89, 0x07][..],
        &[0x48, 0x8b, 0x07],
        &[0x48, 0x01, 0x07],
        &[0x48, 0x87, 0x07],
    ] {
        let (mut r, mut b) = (regs(), Board::new());
        b.holes.push(MMIO + 0x1000);
        r.set(Gpr::Rdi, MMIO + 0xffc);
        let before = r;
        let (result, exits) = complete(bytes, &mut r, &mut b, &[]);
        assert_eq!(result, Err(pf(MMIO + 0x1000)));
        assert!(exits.is_empty() && b.log.is_empty());
        assert_eq!(r, before);
    }
    // A read-modify-write of a device behind a read-only page reads nothing.
    let (mut r, mut b) = (regs(), Board::new());
    b.read_only.push(MMIO);
    r.set(Gpr::Rdi, MMIO);
    let (result, exits) = complete(&[0x01, 0x07], &mut r, &mut b, &[]);
    assert_eq!((result, exits.len()), (Err(pf(MMIO)), 0));
}

#[test]
fn read_modify_write() {
    let (mut r, mut b) = (regs(), Board::new());
    r.set(Gpr::Rdi, MMIO + 8);
    r.set(Gpr::Rax, 0xffff_ffff);
    // ADD [mmio], EAX: carry and zero.
    let (result, exits) = complete(&[0x01, 0x07], &mut r, &mut b, &[1]);
    assert_eq!(result, Ok(Outcome::Done));
    assert_eq!(exits, [(Read, MMIO + 8, 4, 1), (Write, MMIO + 8, 4, 0)]);
    assert_eq!(
        r.rflags & (rflags::CF | rflags::ZF),
        rflags::CF | rflags::ZF
    );
    // One walk each for the probe, the read and the write; what is replayed needs none.
    assert_eq!(b.walks, 3);
    // ADC uses the carry of before, on every attempt.
    let (_, exits) = complete(&[0x11, 0x07], &mut r, &mut b, &[1]);
    assert_eq!(exits[1], (Write, MMIO + 8, 4, 1));
    // XCHG [mmio], EAX.
    let (_, exits) = complete(&[0x87, 0x07], &mut r, &mut b, &[0x77]);
    assert_eq!(
        exits,
        [(Read, MMIO + 8, 4, 0x77), (Write, MMIO + 8, 4, 0xffff_ffff)]
    );
    assert_eq!(r.get(Gpr::Rax), 0x77);
    // LOCK OR across two MMIO pages.
    r.set(Gpr::Rdi, MMIO + 0xfff);
    let (_, exits) = complete(&[0xf0, 0x66, 0x09, 0x07], &mut r, &mut b, &[0x88, 0x99]);
    assert_eq!(
        exits,
        [
            (Read, MMIO + 0xfff, 1, 0x88),
            (Read, MMIO + 0x1000, 1, 0x99),
            (Write, MMIO + 0xfff, 1, 0xff),
            (Write, MMIO + 0x1000, 1, 0x99),
        ]
    );
    // CMPXCHG that fails writes the old value back.
    r.set(Gpr::Rdi, MMIO);
    let (_, exits) = complete(&[0xf0, 0x0f, 0xb1, 0x0f], &mut r, &mut b, &[5]);
    assert_eq!(exits, [(Read, MMIO, 4, 5), (Write, MMIO, 4, 5)]);
    assert_eq!(r.get(Gpr::Rax), 5);
}

#[test]
fn attempts_see_the_same_memory() {
    // PUSH [mmio] and MOVS [mmio] <- RAM with another processor changing RAM and page tables between attempts.
    let (mut r, mut b) = (regs(), Board::new());
    b.racing = true;
    r.set(Gpr::Rsi, 0x1ffe);
    r.set(Gpr::Rdi, MMIO + 0xffe);
    let value = b.get(0x1ffe, 4);
    let (result, exits) = complete(&[0xa5], &mut r, &mut b, &[]);
    assert_eq!(result, Ok(Outcome::Done));
    assert_eq!(
        exits,
        [
            (Write, MMIO + 0xffe, 2, value & 0xffff),
            (Write, MMIO + 0x1000, 2, value >> 16)
        ]
    );
    // Each half was read once.
    assert_eq!(b.log, [(Read, 0x1ffe, 2), (Read, 0x2000, 2)]);
    // A page that goes away after its access was completed is not looked up again.
    let (i, s) = (insn(&[0xa5]), sregs());
    let (mut r, mut b, mut log) = (regs(), Board::new(), Replay::new());
    r.set(Gpr::Rsi, MMIO);
    r.set(Gpr::Rdi, MMIO + 0x1000);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Err(Stop::Suspend)
    );
    log.complete(&[1, 2, 3, 4]);
    b.holes.push(MMIO);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Done)
    );
    assert!(log.next_posted());
    assert!(matches!(log.pending(), Some(Pending::Memory(f)) if f.data[..4] == [1, 2, 3, 4]));
    log.complete(&[]);
    assert!(!log.next_posted());
}

#[test]
fn changed_registers_drop_the_rest() {
    let (i, s) = (insn(&[0xa5]), sregs());
    let (mut r, mut b, mut log) = (regs(), Board::new(), Replay::new());
    r.set(Gpr::Rsi, MMIO);
    r.set(Gpr::Rdi, MMIO + 0x1000);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Err(Stop::Suspend)
    );
    log.complete(&[9; 4]);
    r.set(Gpr::Rsi, MMIO + 4);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Err(Stop::Suspend)
    );
    let Some(Pending::Memory(f)) = log.pending() else {
        panic!()
    };
    assert_eq!((f.kind, f.gpa), (Read, MMIO + 4));
    // The dropped access does not come back.
    log.complete(&[8; 4]);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Done)
    );
    assert!(log.next_posted());
    assert!(
        matches!(log.pending(), Some(Pending::Memory(f)) if f.kind == Write && f.data[..4] == [8; 4])
    );
    // Giving up leaves nothing behind.
    log.clear();
    assert!(is_empty(&log));
}

#[test]
fn an_unanswered_access_is_issued_again() {
    let (i, s) = (insn(&[0x8b, 0x07]), sregs());
    let (mut r, mut b, mut log) = (regs(), Board::new(), Replay::new());
    r.set(Gpr::Rdi, MMIO);
    for _ in 0..20 {
        assert_eq!(
            emulate(&i, &mut r, &s, 0, &mut b, &mut log),
            Err(Stop::Suspend)
        );
        assert!(log.pending().is_some());
    }
    let before = r;
    log.complete(&[7]);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Done)
    );
    assert_eq!((before.rip, r.get(Gpr::Rax)), (0x100, 7));
}

#[test]
fn locked_ram_updates() {
    let (mut r, mut b) = (regs(), Board::new());
    r.set(Gpr::Rdi, 0x1000);
    r.set(Gpr::Rax, 1);
    b.swap_differs = true;
    let before = r;
    let (result, _) = complete(&[0xf0, 0x01, 0x07], &mut r, &mut b, &[]);
    assert_eq!((result, r), (Ok(Outcome::Again), before));
    b.swap_differs = false;
    let old = b.get(0x1000, 4);
    let (result, _) = complete(&[0xf0, 0x01, 0x07], &mut r, &mut b, &[]);
    assert_eq!(result, Ok(Outcome::Done));
    assert_eq!(b.get(0x1000, 4), old + 1);
}

#[test]
fn port_input_is_stored_once_answered() {
    let (i, s) = (insn(&[0xf3, 0x6c]), sregs());
    let (mut r, mut b, mut log) = (regs(), Board::new(), Replay::new());
    r.set(Gpr::Rcx, 100);
    r.set(Gpr::Rdx, 0x1f0);
    r.set(Gpr::Rdi, 0x1fe0);
    let first = PortRequest {
        la: 0x1fe0,
        count: 32,
        port: 0x1f0,
        width: 1,
        down: false,
    };
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Err(Stop::Suspend)
    );
    assert_eq!(log.pending(), Some(&Pending::PortIn(first)));
    assert_eq!(r.get(Gpr::Rcx), 100);
    assert!(log.complete(&[]));
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Again)
    );
    assert_eq!(
        (r.get(Gpr::Rcx), r.get(Gpr::Rdi), r.rip),
        (68, 0x2000, 0x100)
    );
    assert!(b.ram[0x1fe0..0x2000].iter().all(|&x| x == 0x5a));
    assert!(is_empty(&log));
    assert_eq!(b.ports.len(), 1);
    // The rest is done in the kernel.
    b.port_answer = Answer::Done;
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Done)
    );
    assert_eq!((r.get(Gpr::Rcx), r.rip), (0, 0x102));
}

/// What user space is told after an instruction, in order.
fn told(log: &mut Replay) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    while log.next_posted() {
        match log.pending() {
            Some(Pending::Memory(f)) => all.push((f.gpa, f.data[..f.len.into()].to_vec())),
            other => panic!("{other:?}"),
        }
        assert!(log.complete(&[]));
    }
    all
}

#[test]
fn port_input_goes_to_a_device() {
    let (i, s) = (insn(&[0xf3, 0x6c]), sregs());
    let (mut r, mut b, mut log) = (regs(), Board::new(), Replay::new());
    r.set(Gpr::Rcx, 11);
    r.set(Gpr::Rdi, MMIO + 0x10);
    // All items are input first, then eight bytes are a write.
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Err(Stop::Suspend)
    );
    assert!(matches!(log.pending(), Some(Pending::PortIn(q)) if q.count == 11));
    assert!(log.complete(&[]));
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Again)
    );
    assert_eq!((r.get(Gpr::Rcx), r.get(Gpr::Rdi)), (0, MMIO + 0x1b));
    let writes = [
        (MMIO + 0x10, (1..=8).collect::<Vec<u8>>()),
        (MMIO + 0x18, vec![9, 10, 11]),
    ];
    assert_eq!(told(&mut log), writes);
    assert!(is_empty(&log));
    // Downwards each item is one.
    let i = insn(&[0xf3, 0x66, 0x6d]);
    r = regs();
    r.set(Gpr::Rcx, 2);
    r.set(Gpr::Rdi, MMIO + 0x10);
    r.rflags |= rflags::DF;
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Err(Stop::Suspend)
    );
    assert!(matches!(log.pending(), Some(Pending::PortIn(q)) if q.count == 2 && q.down));
    assert!(log.complete(&[]));
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Again)
    );
    assert_eq!((r.get(Gpr::Rcx), r.get(Gpr::Rdi)), (0, MMIO + 0xc));
    let writes = [(MMIO + 0x10, vec![1, 0]), (MMIO + 0xe, vec![2, 0])];
    assert_eq!(told(&mut log), writes);
    // No more than fit the log.
    let i = insn(&[0xf3, 0x6c]);
    r = regs();
    r.set(Gpr::Rcx, 4000);
    r.set(Gpr::Rdi, MMIO);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Err(Stop::Suspend)
    );
    assert!(matches!(log.pending(), Some(Pending::PortIn(q)) if q.count == 64));
}

#[test]
fn port_output_comes_from_a_device() {
    let (i, s) = (insn(&[0xf3, 0x66, 0x6f]), sregs());
    let (mut r, mut b, mut log) = (regs(), Board::new(), Replay::new());
    r.set(Gpr::Rcx, 2);
    r.set(Gpr::Rsi, MMIO);
    for n in 0..2u64 {
        assert_eq!(
            emulate(&i, &mut r, &s, 0, &mut b, &mut log),
            Err(Stop::Suspend)
        );
        assert!(matches!(log.pending(), Some(Pending::Memory(f)) if f.len == 2));
        assert!(log.complete(&[n as u8 + 1, 2]));
        assert_eq!(
            emulate(&i, &mut r, &s, 0, &mut b, &mut log),
            Ok(Outcome::Again)
        );
        assert_eq!(
            (r.get(Gpr::Rcx), r.get(Gpr::Rsi)),
            (1 - n, MMIO + 2 + 2 * n)
        );
        assert!(log.next_posted());
        assert!(matches!(log.pending(), Some(Pending::PortOut(q)) if q.count == 1));
        assert_eq!(b.ports.last().unwrap().1.la, 0x201 + n);
        assert!(log.complete(&[]));
        assert!(!log.next_posted());
    }
}

#[test]
fn port_output_happens_once() {
    let (i, s) = (insn(&[0xf3, 0x6f]), sregs());
    let (mut r, mut b, mut log) = (regs(), Board::new(), Replay::new());
    r.set(Gpr::Rcx, 4);
    r.set(Gpr::Rsi, 0x1000);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Ok(Outcome::Again)
    );
    assert_eq!((b.ports.len(), r.get(Gpr::Rsi)), (1, 0x1010));
    assert_eq!((r.get(Gpr::Rcx), r.rip), (0, 0x100));
    assert!(log.next_posted());
    assert!(matches!(log.pending(), Some(Pending::PortOut(q)) if q.count == 4));
    assert!(log.complete(&[]));
    assert!(!log.next_posted());
    assert!(is_empty(&log));
    // An answer does not serve another request.
    let i = insn(&[0xf3, 0x6d]);
    r = regs();
    r.set(Gpr::Rcx, 4);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Err(Stop::Suspend)
    );
    log.complete(&[]);
    r.set(Gpr::Rcx, 5);
    assert_eq!(
        emulate(&i, &mut r, &s, 0, &mut b, &mut log),
        Err(Stop::Suspend)
    );
    assert_eq!(b.ports.last().unwrap().1.count, 5);
}

#[test]
fn the_log_is_bounded() {
    let mut log = Replay::new();
    log.begin_attempt();
    for la in 0..16 {
        assert_eq!(log.next(Read, la, 1), Next::Fresh);
        log.record(Fragment {
            la,
            len: 1,
            ..Default::default()
        });
    }
    assert_eq!(log.next(Read, 8, 1), Next::Full);
    log.record(Fragment::default());
    log.begin_attempt();
    assert_eq!(log.next(Read, 0, 1), Next::Replayed([0; 8]));
}
