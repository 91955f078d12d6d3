// SPDX-License-Identifier: GPL-2.0
//! The decoder against iced-x86: length, operation, operands and memory form, over opcode sweeps and random bytes.

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic,
    OpKind, Register,
};
use rvmm_logic::x86::cpu::regs::{Gpr, Mode, Seg};
use rvmm_logic::x86::emul::decode::decode;
use rvmm_logic::x86::emul::insn::Rep;
use rvmm_logic::x86::emul::{DecodeError, Insn, Op, Operand};

const IP: u64 = 0x1000;

fn bitness(mode: Mode) -> u32 {
    match mode {
        Mode::Real | Mode::Vm86 | Mode::Prot16 => 16,
        Mode::Prot32 => 32,
        Mode::Long => 64,
    }
}

/// The operation that an iced mnemonic stands for, if it is in the supported set.
fn op_of(i: &Instruction) -> Option<Op> {
    use Mnemonic as M;
    Some(match i.mnemonic() {
        M::Mov => match i.op_kind(0) {
            OpKind::Register if i.op0_register().is_cr() => Op::MovCr,
            OpKind::Register if i.op0_register().is_dr() => Op::MovDr,
            _ if i.op1_kind() == OpKind::Register && i.op1_register().is_cr() => Op::MovCr,
            _ if i.op1_kind() == OpKind::Register && i.op1_register().is_dr() => Op::MovDr,
            OpKind::Register if i.op0_register().is_segment_register() => Op::Load,
            _ if i.op1_kind() == OpKind::Register && i.op1_register().is_segment_register() => {
                Op::Store
            }
            _ => Op::Mov,
        },
        M::Movzx => Op::Movzx,
        M::Movsx | M::Movsxd => Op::Movsx,
        M::Movbe => Op::Movbe,
        M::Movnti => Op::Movnti,
        M::Xchg => Op::Xchg,
        M::Add => Op::Add,
        M::Or => Op::Or,
        M::Adc => Op::Adc,
        M::Sbb => Op::Sbb,
        M::And => Op::And,
        M::Sub => Op::Sub,
        M::Xor => Op::Xor,
        M::Cmp => Op::Cmp,
        M::Test => Op::Test,
        M::Inc => Op::Inc,
        M::Dec => Op::Dec,
        M::Not => Op::Not,
        M::Neg => Op::Neg,
        M::Bt => Op::Bt,
        M::Bts => Op::Bts,
        M::Btr => Op::Btr,
        M::Btc => Op::Btc,
        M::Cmpxchg => Op::Cmpxchg,
        M::Cmpxchg8b | M::Cmpxchg16b => Op::Cmpxchg8b,
        M::Xadd => Op::Xadd,
        M::Push if i.op0_register().is_segment_register() => Op::PushSeg,
        M::Pop if i.op0_register().is_segment_register() => Op::PopSeg,
        M::Push => Op::Push,
        M::Pop => Op::Pop,
        M::Rol => Op::Rol,
        M::Ror => Op::Ror,
        M::Rcl => Op::Rcl,
        M::Rcr => Op::Rcr,
        M::Shl | M::Sal => Op::Shl,
        M::Shr => Op::Shr,
        M::Sar => Op::Sar,
        M::Shld => Op::Shld,
        M::Shrd => Op::Shrd,
        M::Mul => Op::Mul,
        M::Imul if i.op_count() == 1 => Op::ImulAcc,
        M::Imul => Op::Imul,
        M::Div => Op::Div,
        M::Idiv => Op::Idiv,
        M::Bsf => Op::Bsf,
        M::Bsr => Op::Bsr,
        M::Tzcnt => Op::Tzcnt,
        M::Lzcnt => Op::Lzcnt,
        M::Xlatb => Op::Xlat,
        M::Pusha | M::Pushad => Op::Pusha,
        M::Popa | M::Popad => Op::Popa,
        M::Pushf | M::Pushfd | M::Pushfq => Op::Pushf,
        M::Popf | M::Popfd | M::Popfq => Op::Popf,
        M::Enter => Op::Enter,
        M::Leave => Op::Leave,
        M::Call if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) => Op::CallFar,
        M::Jmp if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) => Op::JmpFar,
        M::Call if i.is_call_far_indirect() => Op::CallFar,
        M::Jmp if i.is_jmp_far_indirect() => Op::JmpFar,
        M::Call => Op::Call,
        M::Jmp => Op::Jmp,
        M::Ret => Op::Ret,
        M::Retf => Op::RetFar,
        M::Int3 | M::Int => Op::Int,
        M::Into => Op::Into,
        M::Iret | M::Iretd | M::Iretq => Op::Iret,
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => Op::Loop,
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => Op::LoadFar,
        M::Sldt => Op::Sldt,
        M::Str => Op::Str,
        M::Lldt => Op::Lldt,
        M::Ltr => Op::Ltr,
        M::Sgdt => Op::Sgdt,
        M::Sidt => Op::Sidt,
        M::Lgdt => Op::Lgdt,
        M::Lidt => Op::Lidt,
        M::Movups | M::Movupd | M::Movaps | M::Movapd | M::Movntps | M::Movntpd => Op::Movv,
        M::Movdqa | M::Movdqu | M::Movntdq | M::Movntdqa => Op::Movv,
        M::Vmovups | M::Vmovupd | M::Vmovaps | M::Vmovapd | M::Vmovntps | M::Vmovntpd => Op::Movv,
        M::Vmovdqa | M::Vmovdqu | M::Vmovntdq | M::Vmovntdqa => Op::Movv,
        M::Movq if matches!(i.op_code().op_code(), 0x6f | 0x7f) => Op::Movq,
        M::Fnstcw => Op::Fnstcw,
        M::Fnstsw if i.op0_kind() == OpKind::Memory => Op::Fnstsw,
        M::Clflush | M::Clflushopt => Op::Clflush,
        M::Invlpg => Op::Invlpg,
        M::Fxsave | M::Fxsave64 => Op::Fxsave,
        M::Fxrstor | M::Fxrstor64 => Op::Fxrstor,
        M::Nop if i.op_code().op_code() == 0x90 => Op::Nop,
        M::Lea => Op::Lea,
        M::Cbw | M::Cwde | M::Cdqe => Op::Cbw,
        M::Cwd | M::Cdq | M::Cqo => Op::Cwd,
        M::Bswap => Op::Bswap,
        M::Sahf => Op::Sahf,
        M::Lahf => Op::Lahf,
        M::Das => Op::Das,
        M::Aam => Op::Aam,
        M::Aad => Op::Aad,
        M::Salc => Op::Salc,
        M::Cmc => Op::Cmc,
        M::Clc => Op::Clc,
        M::Stc => Op::Stc,
        M::Cli => Op::Cli,
        M::Sti => Op::Sti,
        M::Cld => Op::Cld,
        M::Std => Op::Std,
        M::Movsb | M::Movsw | M::Movsd | M::Movsq if i.is_string_instruction() => Op::Movs,
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if i.is_string_instruction() => Op::Cmps,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => Op::Stos,
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Op::Lods,
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => Op::Scas,
        M::Insb | M::Insw | M::Insd => Op::Ins,
        M::Outsb | M::Outsw | M::Outsd => Op::Outs,
        M::In => Op::In,
        M::Out => Op::Out,
        M::Cpuid => Op::Cpuid,
        M::Rdmsr => Op::Rdmsr,
        M::Syscall => Op::Syscall,
        M::Sysenter => Op::Sysenter,
        M::Sysexit | M::Sysexitq => Op::Sysexit,
        M::Wrmsr => Op::Wrmsr,
        M::Hlt => Op::Hlt,
        M::Pause => Op::Pause,
        M::Invd => Op::Invd,
        M::Wbinvd | M::Wbnoinvd => Op::Wbinvd,
        M::Clts => Op::Clts,
        M::Lmsw => Op::Lmsw,
        M::Smsw => Op::Smsw,
        M::Xsetbv => Op::Xsetbv,
        M::Rsm => Op::Rsm,
        M::Monitor => Op::Monitor,
        M::Mwait => Op::Mwait,
        M::Vmcall => Op::Vmcall,
        // VMGEXIT is VMMCALL outside SEV-ES.
        M::Vmmcall | M::Vmgexit => Op::Vmmcall,
        _ if i.is_jcc_short_or_near() => Op::Jcc,
        _ if i.condition_code() != ConditionCode::None => match i.op_code().op_code() {
            0x40..=0x4f => Op::Cmov,
            0x90..=0x9f => Op::Setcc,
            _ => return None,
        },
        _ => return None,
    })
}

/// Forms of supported operations that are left out on purpose: EVEX, three operands, MOV TR.
fn left_out(i: &Instruction) -> bool {
    let two_byte = i.op_code().table() == iced_x86::OpCodeTableKind::T0F;
    let legacy = i.op_code().encoding() == EncodingKind::Legacy;
    let vex = i.op_code().encoding() == EncodingKind::VEX;
    !legacy && !vex || legacy && two_byte && matches!(i.op_code().op_code(), 0x24 | 0x26)
}

/// Operations whose operands are implied, or checked elsewhere.
fn implied(op: Op) -> bool {
    matches!(
        op,
        Op::Nop
            | Op::Pusha
            | Op::Popa
            | Op::Pushf
            | Op::Popf
            | Op::Enter
            | Op::Xlat
            | Op::Cbw
            | Op::Cwd
            | Op::Int
            | Op::Jcc
            | Op::Loop
    )
}

/// The target of a branch, or a far pointer.
fn check_branch(ours: &Insn, i: &Instruction) -> Result<(), String> {
    let target = IP.wrapping_add(ours.len().into()).wrapping_add(ours.imm);
    let far = |selector: u16, offset: u64| u64::from(selector) << 32 | offset;
    let (want, have) = match i.op0_kind() {
        OpKind::FarBranch16 => (
            far(i.far_branch_selector(), i.far_branch16().into()),
            ours.imm,
        ),
        OpKind::FarBranch32 => (
            far(i.far_branch_selector(), i.far_branch32().into()),
            ours.imm,
        ),
        _ => (i.near_branch_target(), target & mask(ours.width.into())),
    };
    if want == have {
        Ok(())
    } else {
        Err(format!("target {want:#x} {have:#x}"))
    }
}

fn seg_of(r: Register) -> Option<Seg> {
    Some(match r {
        Register::ES => Seg::Es,
        Register::CS => Seg::Cs,
        Register::SS => Seg::Ss,
        Register::DS => Seg::Ds,
        Register::FS => Seg::Fs,
        Register::GS => Seg::Gs,
        _ => return None,
    })
}

/// In 64-bit mode only FS and GS can be told from the rest.
fn same_segment(mode: Mode, a: Seg, b: Seg) -> bool {
    let flat = |s| !matches!(s, Seg::Fs | Seg::Gs);
    a == b || mode == Mode::Long && flat(a) && flat(b)
}

fn mask(width: usize) -> u64 {
    if width >= 8 {
        u64::MAX
    } else {
        (1u64 << (8 * width)) - 1
    }
}

fn check_register(op: Operand, r: Register, width: u8) -> Result<(), String> {
    let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    let ok = match op {
        Operand::Reg(g) => {
            r.is_gpr()
                && !high
                && r.full_register().number() == g as usize
                && r.size() == width as usize
        }
        Operand::High(g) => high && r.number() == g as usize + 4 && width == 1,
        Operand::Cr(n) => r.is_cr() && r.number() == n as usize,
        Operand::Dr(n) => r.is_dr() && r.number() == n as usize,
        Operand::Dx => r == Register::DX,
        Operand::Seg(s) => seg_of(r) == Some(s),
        Operand::Vec(n) => {
            r.is_vector_register() && r.number() == n.into() && r.size() == width.into()
        }
        Operand::Mm(n) => r.is_mm() && r.number() == n.into(),
        _ => false,
    };
    if ok {
        Ok(())
    } else {
        Err(format!("register {r:?} but {op:?} of {width}"))
    }
}

fn check_memory(mode: Mode, ours: &Insn, i: &Instruction, width: u8) -> Result<(), String> {
    let m = &ours.mem;
    let seg = seg_of(i.memory_segment()).unwrap();
    if !same_segment(mode, seg, m.seg) {
        return Err(format!("segment {seg:?}"));
    }
    let (base, index) = (i.memory_base(), i.memory_index());
    let a = ours.addr_size as usize;
    if m.rip_relative {
        if !i.is_ip_rel_memory_operand() || m.base.is_some() || m.index.is_some() {
            return Err("not RIP-relative".into());
        }
        let target = m.disp.wrapping_add(IP + u64::from(ours.len())) & mask(a);
        if target != i.ip_rel_memory_address() {
            return Err(format!("RIP-relative {:#x}", i.ip_rel_memory_address()));
        }
        if (base == Register::EIP) != (a == 4) {
            return Err("address size".into());
        }
    } else {
        for (r, g) in [(base, m.base), (index, m.index)] {
            let ok = match g {
                None => r == Register::None,
                Some(g) => r.is_gpr() && r.number() == g as usize && r.size() == a,
            };
            if !ok {
                return Err(format!("base or index {r:?}"));
            }
        }
        if (m.disp ^ i.memory_displacement64()) & mask(a) != 0 {
            return Err(format!("displacement {:#x}", i.memory_displacement64()));
        }
        if base == Register::None
            && index == Register::None
            && i.memory_displ_size() != ours.addr_size.into()
        {
            return Err("address size of an absolute address".into());
        }
        if m.index.is_some() && 1 << m.shift != i.memory_index_scale() {
            return Err(format!("scale {}", i.memory_index_scale()));
        }
    }
    let size = i.memory_size().size();
    if width != 0 && size != 0 && size != width as usize {
        return Err(format!("memory size {size} but {width}"));
    }
    Ok(())
}

fn check_operands(mode: Mode, ours: &Insn, i: &Instruction) -> Result<(), String> {
    if implied(ours.op) {
        return Ok(());
    }
    let target = matches!(
        i.op0_kind(),
        OpKind::NearBranch16
            | OpKind::NearBranch32
            | OpKind::NearBranch64
            | OpKind::FarBranch16
            | OpKind::FarBranch32
    );
    if i.op_count() != 0 && target {
        return check_branch(ours, i);
    }
    let pointer = matches!(
        ours.op,
        Op::LoadFar
            | Op::JmpFar
            | Op::CallFar
            | Op::Sgdt
            | Op::Sidt
            | Op::Lgdt
            | Op::Lidt
            | Op::Fxsave
            | Op::Fxrstor
    );
    let mut n = 0;
    for (k, op) in [ours.dst, ours.src, ours.third].into_iter().enumerate() {
        if op == Operand::None || k == 2 && ours.op == Op::LoadFar {
            continue;
        }
        let width = match k {
            0 => ours.width,
            2 if op == Operand::Reg(Gpr::Rcx) => 1,
            _ => ours.src_width,
        };
        let kind = i.op_kind(n);
        match (op, kind) {
            // 16 bits of the register count; iced names the register by operand size.
            (Operand::Reg(g), OpKind::Register)
                if matches!(ours.op, Op::Lmsw | Op::Lldt | Op::Ltr | Op::Load) =>
            {
                if i.op_register(n).number() != g as usize {
                    return Err("register".into());
                }
            }
            (_, OpKind::Register) => check_register(op, i.op_register(n), width)?,
            (Operand::Mem, OpKind::Memory) if pointer || ours.op == Op::Lea => {
                check_memory(mode, ours, i, 0)?
            }
            (Operand::Mem, OpKind::Memory) => check_memory(mode, ours, i, width)?,
            (
                Operand::StrSrc,
                OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI,
            ) => {
                let seg = seg_of(i.memory_segment()).unwrap();
                let a = match kind {
                    OpKind::MemorySegSI => 2,
                    OpKind::MemorySegESI => 4,
                    _ => 8,
                };
                let size = i.memory_size().size();
                if !same_segment(mode, seg, ours.mem.seg)
                    || a != ours.addr_size
                    || size != width as usize
                {
                    return Err(format!("string source {seg:?} {a} {size}"));
                }
            }
            (Operand::StrDst, OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI) => {
                let a = match kind {
                    OpKind::MemoryESDI => 2,
                    OpKind::MemoryESEDI => 4,
                    _ => 8,
                };
                let size = i.memory_size().size();
                if a != ours.addr_size || size != width as usize {
                    return Err(format!("string destination {a} {size}"));
                }
            }
            (Operand::Imm, _)
                if kind == OpKind::Immediate8
                    || kind == OpKind::Immediate16
                    || kind == OpKind::Immediate32
                    || kind == OpKind::Immediate64
                    || kind == OpKind::Immediate8to16
                    || kind == OpKind::Immediate8to32
                    || kind == OpKind::Immediate8to64
                    || kind == OpKind::Immediate32to64 =>
            {
                let m = mask(if width == 0 { 1 } else { width as usize });
                if (i.immediate(n) ^ ours.imm) & m != 0 {
                    return Err(format!("immediate {:#x}", i.immediate(n)));
                }
            }
            _ => return Err(format!("operand {n}: {op:?} against {kind:?}")),
        }
        n += 1;
    }
    if n != 0 && n != i.op_count() {
        return Err(format!("{} operands", i.op_count()));
    }
    Ok(())
}

fn check_ok(mode: Mode, ours: &Insn, i: &Instruction, bytes: &[u8]) -> Result<(), String> {
    if i.is_invalid() {
        return Err("iced: invalid".into());
    }
    if ours.len() as usize != i.len() {
        return Err(format!("length {}", i.len()));
    }
    if ours.bytes() != &bytes[..i.len()] {
        return Err("raw bytes".into());
    }
    if op_of(i) != Some(ours.op) && ours.op != Op::Nop {
        return Err(format!("mnemonic {:?}", i.mnemonic()));
    }
    if ours.op.is_string() {
        let rep = (
            i.has_rep_prefix() || i.has_repe_prefix(),
            i.has_repne_prefix(),
        );
        let want = (ours.rep == Rep::Rep, ours.rep == Rep::Repne);
        if rep != want {
            return Err(format!("repeat {rep:?}"));
        }
    }
    if ours.lock != i.has_lock_prefix() {
        return Err("lock".into());
    }
    check_operands(mode, ours, i)
}

/// Decodes both ways; returns whether we decoded it.
fn check(bytes: &[u8], mode: Mode) -> bool {
    let mut decoder = Decoder::with_ip(bitness(mode), bytes, IP, DecoderOptions::AMD);
    let mut i = decoder.decode();
    if mode == Mode::Long
        && (i.flow_control() != FlowControl::Next || op_of(&i) == Some(Op::LoadFar))
    {
        // 66 does not make branches shorter on Intel's, nor here; REX.W makes far pointers longer.
        i = Decoder::with_ip(64, bytes, IP, DecoderOptions::NONE).decode();
    }
    let ours = decode(bytes, mode);
    let verdict = match &ours {
        Ok(insn) => check_ok(mode, insn, &i, bytes),
        Err(DecodeError::Unsupported) => match op_of(&i) {
            Some(op) if !i.is_invalid() && !left_out(&i) => Err(format!("supported: {op:?}")),
            _ => Ok(()),
        },
        Err(DecodeError::Undefined) => match op_of(&i) {
            // Control registers that do not exist are #UD; iced names them.
            Some(Op::MovCr | Op::MovDr) => Ok(()),
            Some(op) if !i.is_invalid() => Err(format!("defined: {op:?}")),
            _ => Ok(()),
        },
        // Which of several reasons comes first is a matter of taste.
        Err(_) if i.is_invalid() => Ok(()),
        Err(_) => Err("iced has enough bytes".into()),
    };
    if let Err(why) = verdict {
        panic!(
            "{bytes:02x?} {mode:?}: {why}\nours {ours:x?}\niced {i:?} {:?}",
            i.code()
        );
    }
    ours.is_ok()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, buf: &mut [u8]) {
        for b in buf {
            *b = (self.next() >> 32) as u8;
        }
    }
}

const MODES: [Mode; 3] = [Mode::Prot16, Mode::Prot32, Mode::Long];

/// Every one- and two-byte opcode with every ModRM under a set of prefixes.
#[test]
fn opcode_sweep() {
    let prefixes: [&[u8]; 20] = [
        &[],
        &[0x66],
        &[0x67],
        &[0xf2],
        &[0xf3],
        &[0xf0],
        &[0x66, 0x67],
        &[0x64],
        &[0x65, 0x2e],
        &[0x36, 0x67],
        &[0xf0, 0x66],
        &[0xf3, 0x66],
        &[0xf2, 0xf3, 0x26],
        // In 64-bit mode REX, elsewhere INC and DEC.
        &[0x40],
        &[0x45],
        &[0x48],
        &[0x66, 0x4f],
        &[0x4a, 0x66],
        &[0xf0, 0x49],
        &[0xf3, 0x67, 0x44],
    ];
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut decoded = 0u64;
    for mode in MODES {
        for (n, prefix) in prefixes.into_iter().enumerate() {
            // Every ModRM under the first prefixes, under the others a sample that moves with the opcode.
            let stride = if n < 6 { 1 } else { 5 };
            for escape in [&[][..], &[0x0f][..]] {
                for opcode in 0..=255u8 {
                    for modrm in (opcode % stride..=255).step_by(stride.into()) {
                        let mut bytes = [0u8; 18];
                        random.fill(&mut bytes);
                        let head = [prefix, escape, &[opcode, modrm]].concat();
                        bytes[..head.len()].copy_from_slice(&head);
                        decoded += u64::from(check(&bytes, mode));
                    }
                }
            }
        }
    }
    assert!(decoded > 500_000, "only {decoded} decoded");
}

/// The supported part of the 0F 38 map.
#[test]
fn three_byte_sweep() {
    let mut random = Random(7);
    for mode in MODES {
        for prefix in [
            &[][..],
            &[0x66],
            &[0xf2],
            &[0xf3],
            &[0x67],
            &[0x48],
            &[0x66, 0x45],
        ] {
            for opcode in 0..=255u8 {
                for modrm in (0..=255u8).step_by(5) {
                    let mut bytes = [0u8; 18];
                    random.fill(&mut bytes);
                    let head = [prefix, &[0x0f, 0x38, opcode, modrm]].concat();
                    bytes[..head.len()].copy_from_slice(&head);
                    check(&bytes, mode);
                }
            }
        }
    }
}

/// Every SIB byte.
#[test]
fn sib_sweep() {
    let mut random = Random(99);
    for prefix in [&[][..], &[0x67], &[0x41], &[0x42], &[0x4f], &[0x43, 0x67]] {
        for mode in MODES {
            for sib in 0..=255u8 {
                for modrm in [0x04, 0x44, 0x84, 0x05, 0x45, 0x06, 0x46, 0x86] {
                    let mut bytes = [0u8; 18];
                    random.fill(&mut bytes);
                    let head = [prefix, &[0x8b, modrm, sib]].concat();
                    bytes[..head.len()].copy_from_slice(&head);
                    check(&bytes, mode);
                }
            }
        }
    }
}

/// Random strings, whole and cut short.
#[test]
fn random_bytes() {
    let mut random = Random(0xfeed_beef_0bad_cafe);
    let common = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x64, 0x48, 0x0f, 0x41];
    for n in 0..300_000u32 {
        let mut bytes = [0u8; 18];
        random.fill(&mut bytes);
        // Prefixes are rare in random bytes: put some in front.
        let k = (random.next() % 17) as usize;
        if n % 2 == 0 {
            for b in &mut bytes[..k.min(14)] {
                if random.next() % 3 != 0 {
                    *b = common[(random.next() % common.len() as u64) as usize];
                }
            }
        }
        let mode = MODES[(n % 3) as usize];
        check(&bytes, mode);
        check(&bytes[..k], mode);
    }
}
