// SPDX-License-Identifier: GPL-2.0
//! Execution against the host's processor: the same random instruction on the same registers, flags and memory.
//!
//! The instruction runs from an executable page in 64-bit mode; registers, RFLAGS and the data buffer afterwards must
//! equal what the emulator left behind.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::arch::asm;

use rvmm_logic::x86::cpu::regs::{cr0, cr4, efer, rflags, Gpr, Mode, Regs, Seg, Segment, Sregs};
use rvmm_logic::x86::emul::decode::decode;
use rvmm_logic::x86::emul::env::Env;
use rvmm_logic::x86::emul::exec::execute;
use rvmm_logic::x86::emul::insn::Rep;
use rvmm_logic::x86::emul::operand::read_reg;
use rvmm_logic::x86::emul::{
    effective_address, mask, Insn, Op, Operand, Outcome, PortRequest, Stop,
};

const STATUS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;
const SIZE: usize = 16384;

/// `len` bytes of zeroed memory below 2 GiB, executable if asked for.
fn map(len: usize, exec: bool) -> *mut u8 {
    let prot = if exec { 7 } else { 3 };
    let ret: isize;
    // SAFETY: mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0) creates a mapping and touches no
    // existing memory; the syscall instruction changes RAX, RCX and R11 only, all declared.
    unsafe {
        asm!("syscall", inlateout("rax") 9isize => ret, in("rdi") 0, in("rsi") len, in("rdx") prot,
             in("r10") 0x62, in("r8") -1isize, in("r9") 0, out("rcx") _, out("r11") _);
    }
    assert!(ret > 0, "mmap: {ret}");
    ret as *mut u8
}

/// Runs the code at `code` (one instruction, then RET) with `ctx` as registers and flags.
///
/// # Safety
/// The instruction must leave RSP and system state alone and touch no memory other than the test's buffer.
unsafe fn run(ctx: &mut [u64; 17], code: *const u8) {
    // SAFETY: all registers but RSP are saved or declared as clobbered, RSP is balanced, DF is cleared at the end; the
    // caller vouches for the instruction.
    unsafe {
        asm!(
            "push rbx", "push rbp", "push rsi", "push rdi",
            "push qword ptr [rdi + 128]", "popfq",
            "mov rax, [rdi]", "mov rcx, [rdi + 8]", "mov rdx, [rdi + 16]", "mov rbx, [rdi + 24]",
            "mov rbp, [rdi + 40]", "mov rsi, [rdi + 48]",
            "mov r8, [rdi + 64]", "mov r9, [rdi + 72]", "mov r10, [rdi + 80]", "mov r11, [rdi + 88]",
            "mov r12, [rdi + 96]", "mov r13, [rdi + 104]", "mov r14, [rdi + 112]", "mov r15, [rdi + 120]",
            "mov rdi, [rdi + 56]",
            "call qword ptr [rsp + 8]",
            "pushfq", "push rdi", "mov rdi, [rsp + 16]",
            "mov [rdi], rax", "mov [rdi + 8], rcx", "mov [rdi + 16], rdx", "mov [rdi + 24], rbx",
            "mov [rdi + 40], rbp", "mov [rdi + 48], rsi",
            "mov [rdi + 64], r8", "mov [rdi + 72], r9", "mov [rdi + 80], r10", "mov [rdi + 88], r11",
            "mov [rdi + 96], r12", "mov [rdi + 104], r13", "mov [rdi + 112], r14", "mov [rdi + 120], r15",
            "pop qword ptr [rdi + 56]", "pop qword ptr [rdi + 128]",
            "add rsp, 16", "pop rbp", "pop rbx", "cld",
            inout("rdi") ctx.as_mut_ptr() => _, inout("rsi") code => _,
            out("rax") _, out("rcx") _, out("rdx") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}

/// Memory of the emulated side.
struct Model {
    base: u64,
    mem: Vec<u8>,
}

impl Model {
    fn slice(&mut self, la: u64, len: usize) -> &mut [u8] {
        let o = (la - self.base) as usize;
        &mut self.mem[o..o + len]
    }
}

impl Env for Model {
    fn extends_idle_strings(&self) -> bool {
        // SAFETY: CPUID has a leaf 0.
        let vendor = unsafe { core::arch::x86_64::__cpuid(0) };
        vendor.ebx.to_le_bytes() == *b"Genu"
    }
    fn read(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
        buf.copy_from_slice(self.slice(la, buf.len()));
        Ok(())
    }
    fn write(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
        self.slice(la, data.len()).copy_from_slice(data);
        Ok(())
    }
    fn probe_write(&mut self, la: u64, len: u8) -> Result<(), Stop> {
        self.slice(la, len.into());
        Ok(())
    }
    fn cmpxchg(&mut self, la: u64, old: u64, new: u64, width: u8) -> Result<bool, Stop> {
        let mut buf = [0; 8];
        buf[..width as usize].copy_from_slice(self.slice(la, width.into()));
        assert_eq!(u64::from_le_bytes(buf), old);
        self.write(la, &new.to_le_bytes()[..width as usize])?;
        Ok(true)
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

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    /// A value that is likely to set flags: near 0, near a sign boundary, all ones, or anything.
    fn value(&mut self) -> u64 {
        let r = self.next();
        match self.below(6) {
            0 => r & 3,
            1 => (1u64 << [7, 15, 31, 63][self.below(4) as usize])
                .wrapping_add((r & 3).wrapping_sub(2)),
            2 => (r & 3).wrapping_neg(),
            3 => r & 0xff,
            _ => r,
        }
    }
}

fn long_mode() -> Sregs {
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

/// A random instruction of the executable set, as bytes.
fn generate(r: &mut Random) -> Vec<u8> {
    const ONE: &[u8] = &[
        0x00, 0x01, 0x02, 0x03, 0x08, 0x09, 0x0a, 0x0b, 0x10, 0x11, 0x12, 0x13, 0x18, 0x19, 0x1a,
        0x1b, 0x20, 0x21, 0x22, 0x23, 0x28, 0x29, 0x2a, 0x2b, 0x30, 0x31, 0x32, 0x33, 0x38, 0x39,
        0x3a, 0x3b, 0x63, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0xc6,
        0xc7, 0xf6, 0xf7, 0xfe, 0xff, 0xc0, 0xc1, 0xd0, 0xd1, 0xd2, 0xd3, 0x69, 0x6b, 0x8d, 0xa4,
        0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf,
    ];
    const TWO: &[u8] = &[
        0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e,
        0x4f, 0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d,
        0x9e, 0x9f, 0xa4, 0xa5, 0xac, 0xad, 0xa4, 0xa5, 0xac, 0xad, 0xaf, 0xaf, 0xbc, 0xbd, 0xc8,
        0xa3, 0xab, 0xb3, 0xbb, 0xba, 0xb0, 0xb1, 0xb6, 0xb7, 0xbe, 0xbf, 0xc0, 0xc1, 0xc3, 0xc7,
        0xc7,
    ];
    const PLAIN: &[u8] = &[
        0x04, 0x05, 0x0d, 0x15, 0x1c, 0x25, 0x2d, 0x35, 0x3d, 0x90, 0x91, 0x92, 0x97, 0x98, 0x99,
        0x9e, 0x9f, 0xa8, 0xa9, 0xb0, 0xb7, 0xb8, 0xbf, 0xd7, 0xf5, 0xf8, 0xf9, 0xfc, 0xfd,
    ];
    let mut b = Vec::new();
    if r.below(4) == 0 {
        b.push(0x66);
    }
    if r.below(8) == 0 {
        b.push(0x67);
    }
    if r.below(6) == 0 {
        b.push(0xf0);
    }
    match r.below(8) {
        0 => b.push(0xf2),
        1 | 2 => b.push(0xf3),
        _ => {}
    }
    if r.below(2) == 0 {
        b.push(0x40 | r.below(16) as u8);
    }
    match r.below(11) {
        0 => b.push(PLAIN[r.below(PLAIN.len() as u64) as usize]),
        1..=5 => b.push(ONE[r.below(ONE.len() as u64) as usize]),
        6..=8 => b.extend([0x0f, TWO[r.below(TWO.len() as u64) as usize]]),
        _ => b.extend([0x0f, 0x38, 0xf0 | r.below(2) as u8]),
    }
    for _ in 0..12 {
        b.push(r.next() as u8);
    }
    b
}

/// Flags that the manual leaves undefined.
fn undefined_flags(insn: &Insn, start: &Regs) -> u64 {
    let limit = if insn.width == 8 { 63 } else { 31 };
    let count = limit
        & match (insn.op, insn.src, insn.third) {
            (Op::Shld | Op::Shrd, _, Operand::Imm) | (_, Operand::Imm, _) => insn.imm,
            _ => start.get(Gpr::Rcx),
        };
    let one = if count == 1 { 0 } else { rflags::OF };
    match insn.op {
        Op::Mul | Op::ImulAcc | Op::Imul => STATUS & !(rflags::CF | rflags::OF),
        Op::Div | Op::Idiv => STATUS,
        Op::Bsf | Op::Bsr => STATUS & !rflags::ZF,
        Op::Tzcnt | Op::Lzcnt => STATUS & !(rflags::ZF | rflags::CF),
        Op::Rol | Op::Ror | Op::Rcl | Op::Rcr => one,
        Op::Shl | Op::Shr if count >= 8 * u64::from(insn.width) => rflags::AF | rflags::CF | one,
        _ if count == 0 => 0,
        Op::Shl | Op::Shr | Op::Sar | Op::Shld | Op::Shrd => rflags::AF | one,
        _ => 0,
    }
}

/// Whether the result is defined: what divides traps, what is shifted by more than its width does not.
fn defined(insn: &Insn, start: &Regs, memory: &[u8]) -> bool {
    let count = match insn.third {
        Operand::Imm => insn.imm,
        _ => start.get(Gpr::Rcx),
    };
    let value = |o: Operand| match o {
        Operand::Mem => {
            let mut b = [0; 8];
            b.copy_from_slice(memory);
            u64::from_le_bytes(b)
        }
        o => read_reg(start, o, insn.width).unwrap_or(0),
    } & mask(insn.width);
    match insn.op {
        Op::Shld | Op::Shrd => insn.width != 2 || count & 31 <= 16,
        Op::Bswap => insn.width != 2,
        // Sign extensions of small numbers, else it hardly ever fits.
        Op::Div => {
            let high = match insn.width {
                1 => start.get(Gpr::Rax) >> 8 & 0xff,
                w => start.get(Gpr::Rdx) & mask(w),
            };
            value(insn.src) > high
        }
        Op::Idiv => {
            let w = u32::from(insn.width) * 8;
            let extend = |v: u64| (i128::from(v) << (128 - w)) >> (128 - w);
            let a = match insn.width {
                1 => i128::from(start.get(Gpr::Rax) as i16),
                w2 => {
                    extend(start.get(Gpr::Rdx) & mask(w2)) << w
                        | i128::from(start.get(Gpr::Rax) & mask(w2))
                }
            };
            let b = extend(value(insn.src));
            b != 0
                && a.checked_div(b)
                    .is_some_and(|q| q == extend(q as u64 & mask(insn.width)))
        }
        _ => true,
    }
}

/// Registers that bring all of the instruction's accesses into the buffer at `base`; `None` if that is impossible.
fn has_memory(insn: &Insn) -> bool {
    [insn.dst, insn.src].contains(&Operand::Mem)
}

fn registers(r: &mut Random, insn: &Insn, base: u64) -> Option<Regs> {
    let mut regs = Regs::default();
    for g in &mut regs.gpr {
        *g = r.value();
    }
    // The accumulator often equals memory (CMPXCHG).
    regs.rflags = rflags::FIXED | r.next() & STATUS;
    let middle = base + SIZE as u64 / 2 + r.below(64);
    if insn.op.is_string() {
        if r.below(2) == 0 {
            regs.rflags |= rflags::DF;
        }
        if insn.addr_size == 8 || r.below(2) == 0 {
            regs.set(Gpr::Rcx, r.below(200));
        } else {
            // Only the low half counts.
            regs.set(Gpr::Rcx, (r.next() << 32) | r.below(200));
        }
        let high = if insn.addr_size == 4 {
            r.next() << 32
        } else {
            0
        };
        regs.set(Gpr::Rsi, middle | high);
        // Overlapping moves, too.
        let delta = r.below(600).wrapping_sub(300);
        regs.set(Gpr::Rdi, middle.wrapping_add(delta));
        return Some(regs);
    }
    for o in [insn.dst, insn.src, insn.third] {
        if o == Operand::Reg(Gpr::Rsp) {
            return None;
        }
    }
    if !has_memory(insn) {
        return None;
    }
    let m = &insn.mem;
    let b = m.base?;
    if m.rip_relative || m.seg == Seg::Fs || m.seg == Seg::Gs || b == Gpr::Rsp || m.index == Some(b)
    {
        return None;
    }
    if matches!(insn.op, Op::Bt | Op::Bts | Op::Btr | Op::Btc) {
        if let Operand::Reg(o) = insn.src {
            if o == b {
                return None;
            }
            let offset = r.below(8000).wrapping_sub(4000);
            regs.set(o, offset);
        }
    }
    let mut v = middle.wrapping_sub(m.disp);
    if let Some(i) = m.index {
        v = v.wrapping_sub(regs.get(i) << m.shift);
    }
    if insn.addr_size == 4 {
        v = v & 0xffff_ffff | (r.next() << 32);
    }
    regs.set(b, v);
    Some(regs)
}

#[test]
fn same_as_the_processor() {
    let movbe = is_x86_feature_detected!("movbe");
    let code = map(4096, true);
    let data = map(SIZE, false);
    let sregs = long_mode();
    let mut r = Random(0x0123_4567_89ab_cdef);
    let mut seen = std::collections::BTreeMap::<Op, u32>::new();
    let mut model = Model {
        base: data as u64,
        mem: vec![0; SIZE],
    };
    let rounds = 600_000;
    for _ in 0..rounds {
        let bytes = generate(&mut r);
        let Ok(insn) = decode(&bytes, Mode::Long) else {
            continue;
        };
        let stack = insn.op >= Op::Pusha && insn.op <= Op::Clflush;
        if matches!(insn.op, Op::Push | Op::Pop | Op::Xlat)
            || stack
            || insn.op == Op::Movbe && !movbe
            || insn.op > Op::Outs
            || insn.op == Op::Lea && (insn.mem.rip_relative || insn.mem.base == Some(Gpr::Rsp))
            || insn.op == Op::Cmpxchg8b && insn.width == 16
        {
            continue;
        }
        let register_form = !has_memory(&insn) && !insn.op.is_string() || insn.op == Op::Lea;
        let Some(start) = (if register_form {
            let ok = ![insn.dst, insn.src].contains(&Operand::Reg(Gpr::Rsp));
            ok.then(|| {
                let mut regs = Regs::default();
                regs.gpr.fill_with(|| r.value());
                regs.rflags = rflags::FIXED | r.next() & STATUS;
                regs
            })
        } else {
            registers(&mut r, &insn, data as u64)
        }) else {
            continue;
        };
        let mut regs = start;
        // Values near the access that flags depend on.
        for k in 0..24 {
            let at = SIZE / 2 - 64 + k * 8;
            let v = match r.below(4) {
                0 => start.get(Gpr::Rax),
                1 => (start.get(Gpr::Rdx) << 32) | start.get(Gpr::Rax) & 0xffff_ffff,
                _ => r.value(),
            };
            model.mem[at..at + 8].copy_from_slice(&v.to_le_bytes());
        }
        let at = effective_address(&insn, &start).wrapping_sub(data as u64) as usize;
        let there = model
            .mem
            .get(at..at.wrapping_add(8))
            .filter(|_| has_memory(&insn));
        if !defined(&insn, &start, there.unwrap_or(&[0; 8])) {
            continue;
        }
        // SAFETY: both mappings exist for the whole test, are that long and private to this thread; the instruction
        // only uses memory around the middle of the buffer, see `registers`.
        let (ctx, after) = unsafe {
            std::ptr::copy_nonoverlapping(model.mem.as_ptr(), data, SIZE);
            let n = insn.len() as usize;
            std::ptr::copy_nonoverlapping(insn.bytes().as_ptr(), code, n);
            *code.add(n) = 0xc3;
            let mut ctx = [0u64; 17];
            ctx[..16].copy_from_slice(&regs.gpr);
            ctx[16] = 0x202 | regs.rflags;
            run(&mut ctx, code);
            (ctx, std::slice::from_raw_parts(data, SIZE))
        };
        let before = model.mem.clone();
        loop {
            match execute(&insn, &mut regs, &sregs, 3, &mut model) {
                Ok(Outcome::Done) => break,
                Ok(Outcome::Again) => assert!(insn.rep != Rep::None),
                Err(e) => panic!("{insn:x?}: {e:?}"),
            }
        }
        let fail = |what: &str| -> ! {
            panic!("{what}: {insn:x?}\nbefore {start:x?}\nhost   {ctx:x?}\nours   {regs:x?}")
        };
        // RSP is the host's own.
        let same = |(n, (a, b))| n == Gpr::Rsp as usize || a == b;
        if !ctx.iter().zip(&regs.gpr).enumerate().all(same) {
            fail("registers");
        }
        let undefined = undefined_flags(&insn, &start);
        if (ctx[16] ^ regs.rflags) & (STATUS | rflags::DF) & !undefined != 0 {
            fail("flags");
        }
        if regs.rip != u64::from(insn.len()) {
            fail("RIP");
        }
        if after != &model.mem[..] {
            let at = (0..SIZE).find(|&i| after[i] != model.mem[i]).unwrap();
            println!("at {at:#x}: was {:x}", before[at]);
            fail("memory");
        }
        *seen.entry(insn.op).or_default() += 1;
    }
    println!("{seen:?}");
    let expected = [
        Op::Mov,
        Op::Movzx,
        Op::Movsx,
        Op::Movnti,
        Op::Xchg,
        Op::Add,
        Op::Or,
        Op::Adc,
        Op::Sbb,
        Op::And,
        Op::Sub,
        Op::Xor,
        Op::Cmp,
        Op::Test,
        Op::Inc,
        Op::Dec,
        Op::Not,
        Op::Neg,
        Op::Bt,
        Op::Bts,
        Op::Btr,
        Op::Btc,
        Op::Cmpxchg,
        Op::Cmpxchg8b,
        Op::Xadd,
        Op::Rol,
        Op::Ror,
        Op::Rcl,
        Op::Rcr,
        Op::Shl,
        Op::Shr,
        Op::Sar,
        Op::Shld,
        Op::Shrd,
        Op::Mul,
        Op::ImulAcc,
        Op::Imul,
        Op::Div,
        Op::Idiv,
        Op::Bsf,
        Op::Bsr,
        Op::Cmov,
        Op::Setcc,
        Op::Lea,
        Op::Cbw,
        Op::Cwd,
        Op::Bswap,
        Op::Sahf,
        Op::Lahf,
        Op::Cmc,
        Op::Movs,
        Op::Cmps,
        Op::Stos,
        Op::Lods,
        Op::Scas,
    ];
    for op in expected {
        let n = seen.get(&op).copied().unwrap_or(0);
        assert!(n > 100, "{op:?} was tried {n} times only");
    }
}
