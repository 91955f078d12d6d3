// SPDX-License-Identifier: GPL-2.0
//! Exit reasons and qualifications to the neutral [`Exit`] (SDM 3C 28.2, SDM 3D appendix C).
//!
//! `VmxVcpu::enter` calls this right after the exit, with interrupts off and the VMCS current; nothing here changes
//! state.

use super::bits::{intr, reason};
use super::insn::Current;
use super::vmcs::*;
use crate::mem::addr::Gpa;
use crate::nospec::Nospec;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::Gpr;
use crate::x86::exit::{
    by_number, CrAccess, CrOp, Exception, Exit, Io, NestedFault, Numbers, TaskSwitch, TaskSwitchBy,
};

/// What else an exit tells, besides [`Exit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Caused by an instruction: its length is valid, and no event was being delivered (SDM 3C 28.2.4, 28.2.5).
    Instruction,
    /// May have interrupted the delivery of an event.
    Delivery,
    /// Was part of the delivery of an event, or caused by an instruction.
    Transfer,
    /// Neither.
    Other,
}

/// Whether an EPT violation or a full log came in the course of an IRET that had already unblocked NMIs: bit 12 of its
/// exit qualification (SDM 3C 28.2.3).
pub(super) const QUAL_NMI_UNBLOCKED: u64 = 1 << 12;

/// The exits by basic exit reason.
const BY_REASON: [Option<Exit>; 128] = by_number(Numbers::Reasons, 0);

/// The neutral form of exit reason `code` when an instruction is all there is to say; its length is valid then.
#[inline(always)]
pub(super) fn instruction(code: u32) -> Option<Exit> {
    static TABLE: [Option<Exit>; 128] = BY_REASON;
    TABLE.get_nospec(code as usize).copied().flatten()
}

/// Decodes basic exit reason `code`, but for those of [`nested_fault`], [`io`] and [`exception`] (reason 0).
#[inline]
pub(super) fn decode(vm: Current<'_>, code: u32) -> (Exit, Class) {
    let insn = |exit| (exit, Class::Instruction);
    let other = |exit| (exit, Class::Other);
    match code {
        reason::EXTERNAL_INTERRUPT => other(Exit::HostInterrupt),
        // Blocked in VMX operation, an INIT goes on waiting until that ends (SDM 3C 24.8).
        reason::INIT => other(Exit::HostInterrupt),
        reason::CR_ACCESS => insn(cr_access(vm.read(EXIT_QUALIFICATION))),
        reason::INTERRUPT_WINDOW => other(Exit::IrqWindow),
        reason::NMI_WINDOW => other(Exit::NmiWindow),
        reason::DR_ACCESS => insn(Exit::DrAccess),
        reason::TRIPLE_FAULT => other(Exit::TripleFault),
        reason::TASK_SWITCH => {
            let t = task_switch(vm.read(EXIT_QUALIFICATION));
            (Exit::TaskSwitch(t), Class::Transfer)
        }
        reason::PREEMPTION_TIMER => other(Exit::PreemptionTimer),
        // Behind the instruction.
        reason::TPR_BELOW_THRESHOLD => other(Exit::TprBelowThreshold),
        reason::APIC_ACCESS => (apic_access(vm.read(EXIT_QUALIFICATION)), Class::Delivery),
        reason::VIRTUAL_EOI => other(Exit::VirtualEoi(vm.read(EXIT_QUALIFICATION) as u8)),
        reason::APIC_WRITE => other(Exit::ApicWrite(
            (vm.read(EXIT_QUALIFICATION) & 0xfff) as u16,
        )),
        reason::EPT_MISCONFIG => (Exit::Unknown(u64::from(code)), Class::Delivery),
        // The exit reason had bits beside its number.
        _ => instruction(code).map_or(other(Exit::Unknown(u64::from(code))), insn),
    }
}

/// The fault behind an EPT violation with exit qualification `q` (SDM 3C table 28-7).
#[inline(always)]
pub(super) fn nested_fault(vm: Current<'_>, q: u64) -> Exit {
    Exit::NestedFault(NestedFault {
        gpa: Gpa(vm.read(GUEST_PHYSICAL_ADDRESS)),
        write: q & (1 << 1) != 0,
        fetch: q & (1 << 2) != 0,
        // Bit 8 tells the access of a linear address from one to its page tables; valid with bit 7.
        walk: q & (3 << 7) == 1 << 7,
    })
}

/// An access to the APIC-access page that the processor did not virtualise: an access to the device at that address
/// (SDM 3C table 28-6). The page is at the APIC's default address only.
const fn apic_access(q: u64) -> Exit {
    let kind = (q >> 12) & 15;
    Exit::NestedFault(NestedFault {
        gpa: Gpa(crate::x86::irqchip::lapic::base::DEFAULT_ADDRESS | q & 0xfff),
        write: kind == 1,
        fetch: kind == 2,
        // Guest-physical accesses: page walks, and fetches or deliveries that needed one.
        walk: kind == 10 || kind == 15,
    })
}

/// Port access with exit qualification `q` (SDM 3C table 28-5). An instruction's, like those of [`instruction`].
#[inline(always)]
pub(super) const fn io(q: u64) -> Exit {
    Exit::Io(Io {
        port: (q >> 16) as u16,
        width: (q & 7) as u8 + 1,
        input: q & (1 << 3) != 0,
        string: q & (1 << 4) != 0,
    })
}

/// Control-register access (SDM 3C table 28-3).
const fn cr_access(q: u64) -> Exit {
    let gpr = Gpr::from_bits((q >> 8) as u8 & 15);
    let cr = (q & 15) as u8;
    Exit::CrAccess(match (q >> 4) & 3 {
        0 => CrAccess {
            cr,
            write: true,
            gpr: Some(gpr),
            op: CrOp::Mov,
        },
        1 => CrAccess {
            cr,
            write: false,
            gpr: Some(gpr),
            op: CrOp::Mov,
        },
        2 => CrAccess {
            cr: 0,
            write: true,
            gpr: None,
            op: CrOp::Clts,
        },
        _ => CrAccess {
            cr: 0,
            write: true,
            gpr: None,
            op: CrOp::Lmsw((q >> 16) as u16),
        },
    })
}

/// Task switch with exit qualification `q` (SDM 3C table 28-2).
const fn task_switch(q: u64) -> TaskSwitch {
    TaskSwitch {
        selector: q as u16,
        by: match (q >> 30) & 3 {
            0 => TaskSwitchBy::Call,
            1 => TaskSwitchBy::Iret,
            2 => TaskSwitchBy::Jump,
            _ => TaskSwitchBy::Gate,
        },
    }
}

/// What exit reason 0 was.
pub(super) enum Exceptional {
    /// An NMI of the host.
    Nmi,
    /// A machine check.
    MachineCheck,
    /// An exception of the guest. `trap_len` is the instruction to skip before a trap-like one (INT1).
    Guest {
        exception: Exception,
        trap_len: u8,
        /// INT3 and INTO: the instruction length is valid.
        software: bool,
        nmi_unblocked: bool,
    },
}

/// Decodes exit reason 0 (SDM 3C table 25-20).
pub(super) fn exception(vm: Current<'_>) -> Exceptional {
    let info = vm.read(EXIT_INTR_INFO);
    let kind = (info >> intr::TYPE_SHIFT) & 7;
    let vector = info as u8;
    if kind == intr::NMI {
        return Exceptional::Nmi;
    }
    if vector == vector::MC && kind == intr::HARDWARE_EXCEPTION {
        return Exceptional::MachineCheck;
    }
    Exceptional::Guest {
        exception: Exception {
            vector,
            error_code: (info & intr::ERROR_CODE != 0).then(|| vm.read(EXIT_INTR_ERROR_CODE)),
            // DR6 bits for #DB, the linear address for #PF, else 0 (SDM 3C table 28-1).
            payload: vm.read(EXIT_QUALIFICATION),
        },
        trap_len: if kind == intr::PRIVILEGED_SOFTWARE_EXCEPTION {
            vm.read(EXIT_INSTRUCTION_LEN) as u8
        } else {
            0
        },
        software: kind == intr::SOFTWARE_EXCEPTION,
        nmi_unblocked: info & intr::NMI_UNBLOCKED != 0 && vector != vector::DF,
    }
}

/// What VM-instruction error `n` means for an entry (SDM 3C 31.4).
#[cold]
pub(super) const fn instruction_error(n: u32) -> &'static str {
    match n {
        4 => "VMLAUNCH with non-clear VMCS",
        5 => "VMRESUME with non-launched VMCS",
        7 => "invalid control field",
        8 => "invalid host-state field",
        12 => "unsupported VMCS component",
        25 => "invalid VM-execution control fields",
        26 => "events blocked by MOV SS",
        _ => "see SDM 3C 31.4",
    }
}
