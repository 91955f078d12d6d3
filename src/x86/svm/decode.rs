// SPDX-License-Identifier: GPL-2.0
//! Exit codes to the neutral [`Exit`] (APM 2 appendix C, 15.7 to 15.14).
//!
//! `vcpu` calls this after each exit, in the stay (interrupts off) and under the vCPU's mutex.

use super::breakpoints::DR6_RESET;
use super::nmi::Nmi;
use super::vmcb::{exit, misc1, vintr, Control, Vmcb};
use crate::mem::addr::Gpa;
use crate::nospec::Nospec;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::Gpr;
use crate::x86::exit::{by_number, CrAccess, CrOp, Exception, Exit, Io, NestedFault, Numbers};

/// What else an exit tells, besides [`Exit`].
pub(super) struct Told {
    /// Length of the instruction that caused the exit; 0 where it is not known.
    pub(super) insn_len: u8,
    /// The exit was a nested fault, for which decode assists give the instruction's bytes.
    pub(super) nested: bool,
}

impl Told {
    /// Nothing.
    pub(super) const NOTHING: Self = Self {
        insn_len: 0,
        nested: false,
    };

    /// What NRIP tells on a processor that saves it (`nrips`); the guest is at `rip` (APM 2 15.7.1).
    #[inline(always)]
    pub(super) const fn by_nrip(c: &Control, nrips: bool, rip: u64) -> Self {
        Self {
            insn_len: if nrips { insn_len(c.next_rip, rip) } else { 0 },
            nested: false,
        }
    }
}

/// Length of the instruction between `rip` and `next`, or 0 if there cannot be one.
#[inline(always)]
const fn insn_len(next: u64, rip: u64) -> u8 {
    match next.wrapping_sub(rip) {
        n @ 1..=15 => n as u8,
        _ => 0,
    }
}

/// What the exit means. The frequent ones are compared one by one, most frequent first: the kernel is built without
/// jump tables, and a search in all codes costs more. `assists` says that the processor has decode assists.
#[inline(always)]
pub(super) fn decode(v: &mut Vmcb, told: &mut Told, nmi: &mut Nmi, assists: bool) -> Exit {
    let c = &v.control;
    let (code, info1, info2) = (c.exit_code, c.exit_info1, c.exit_info2);
    if code == exit::NPF {
        told.nested = true;
        return Exit::NestedFault(NestedFault {
            gpa: Gpa(info2),
            write: info1 & 2 != 0,
            fetch: info1 & 0x10 != 0,
            walk: info1 & (1 << 33) != 0,
        });
    }
    if code == exit::MSR {
        return if info1 & 1 != 0 {
            Exit::Wrmsr
        } else {
            Exit::Rdmsr
        };
    }
    if code == exit::INTR {
        return Exit::HostInterrupt;
    }
    if code == exit::CPUID {
        return Exit::Cpuid;
    }
    if code == exit::HLT {
        return Exit::Hlt;
    }
    if code == exit::IOIO {
        // APM 2 figure 15-2. EXITINFO2 is the RIP of the next instruction.
        let len = insn_len(info2, v.save.rip);
        if info1 & 4 == 0 && len != 0 {
            told.insn_len = len;
        }
        // One bit per width: 1, 2 or 4 bytes.
        let width = match info1 >> 4 & 7 {
            w @ (1 | 2) => w as u8,
            _ => 4,
        };
        return Exit::Io(Io {
            port: (info1 >> 16) as u16,
            width,
            input: info1 & 1 != 0,
            string: info1 & 4 != 0,
        });
    }
    if code == exit::VMMCALL {
        return Exit::Hypercall;
    }
    rare(v, nmi, assists)
}

/// The exits that are not in [`decode`].
#[inline(never)]
fn rare(v: &mut Vmcb, nmi: &mut Nmi, assists: bool) -> Exit {
    let c = &mut v.control;
    let (code, info1, info2) = (c.exit_code, c.exit_info1, c.exit_info2);
    match code {
        exit::NMI => Exit::HostNmi,
        exit::VINTR => {
            c.vintr.set(&mut c.clean, c.vintr.get() & !vintr::PENDING);
            c.intercept_misc1(misc1::VINTR, false);
            Exit::IrqWindow
        }
        exit::IRET => {
            nmi.iret(c, v.save.rip);
            // The core has nothing to do; a pending NMI asks for a window at the next entry.
            Exit::NmiWindow
        }
        exit::CR_READ..=exit::CR_READ_LAST => {
            cr_access(code - exit::CR_READ, false, info1, assists)
        }
        exit::CR_WRITE..=exit::CR_WRITE_LAST => {
            cr_access(code - exit::CR_WRITE, true, info1, assists)
        }
        exit::CR0_SEL_WRITE => cr_access(0, true, info1, assists),
        exit::DR_READ..=exit::DR_WRITE_LAST => Exit::DrAccess,
        exit::EXCEPTION..=exit::EXCEPTION_LAST => {
            let vector = (code - exit::EXCEPTION) as u8;
            exception(vector, info1, info2, v.save.dr6.get())
        }
        exit::SHUTDOWN => Exit::TripleFault,
        exit::SMI | exit::INIT => Exit::HostInterrupt,
        exit::INVALID | exit::INVALID32 => Exit::EntryFailure(exit::INVALID),
        other => instruction(other).unwrap_or(Exit::Unknown(other)),
    }
}

/// The exits by exit code, for the intercepts of vectors 3 and 4: codes 60H to 9FH.
const BY_CODE: [Option<Exit>; 64] = by_number(Numbers::Codes, exit::VECTOR_3 as u32);

/// What exit code `code` means when an instruction is all there is to say.
fn instruction(code: u64) -> Option<Exit> {
    static TABLE: [Option<Exit>; 64] = BY_CODE;
    let i = code.wrapping_sub(exit::VECTOR_3) as usize;
    TABLE.get_nospec(i).copied().flatten()
}

/// The bits of intercept vectors 3 and 4 that these exits ask for: the bits of a vector have consecutive codes.
pub(super) const INTERCEPTS: [u32; 2] = {
    let mut vectors = [0; 2];
    let mut i = 0;
    while i < BY_CODE.len() {
        vectors[i / 32] |= (BY_CODE[i].is_some() as u32) << (i % 32);
        i += 1;
    }
    vectors
};

/// An access of control register `cr`. With decode assists bit 63 says that it was a MOV, whose general register is
/// in bits 3:0 (APM 2 15.33.1).
fn cr_access(cr: u64, write: bool, info1: u64, assists: bool) -> Exit {
    let mov = assists && info1 >> 63 != 0;
    Exit::CrAccess(CrAccess {
        cr: cr as u8,
        write,
        gpr: mov.then(|| Gpr::from_bits(info1 as u8)),
        op: if mov { CrOp::Mov } else { CrOp::Decode },
    })
}

/// An intercepted exception; a machine check is the host's. `dr6` is the guest's: accesses are intercepted and
/// each entry loads the value of RESET, so that it tells this exception's conditions.
fn exception(vector: u8, info1: u64, info2: u64, dr6: u64) -> Exit {
    if vector == vector::MC {
        return Exit::HostMachineCheck;
    }
    Exit::Exception(Exception {
        vector,
        error_code: matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30).then_some(info1 as u32),
        payload: match vector {
            1 => dr6 ^ DR6_RESET,
            14 => info2,
            _ => 0,
        },
    })
}
