// SPDX-License-Identifier: GPL-2.0
//! The exits that need more than decoding (SDM 3C 25.9, 28.2): interrupted events, host NMIs and machine checks,
//! entries that failed. `VmxVcpu::enter` calls this right after the exit, with interrupts off and the VMCS current.

use super::bits::{intr, reason};
use super::decode::{self, Class, Exceptional};
use super::entry::{self, Outcome};
use super::event;
use super::insn::Current;
use super::interruptibility::Blocking;
use super::vmcs::*;
use crate::pr_err_ratelimited;
use crate::x86::cpu::events::vector;
use crate::x86::exit::{Event, Exit};
use crate::x86::vendor::{CpuState, EntryViolation};

/// What the last exit left besides its reason.
#[derive(Debug, Default)]
pub(super) struct LastExit {
    /// Length of the instruction that caused it; 0: none did, or it is not known.
    pub(super) insn_len: u8,
    /// The event whose delivery it interrupted.
    pub(super) interrupted: Option<Event>,
    /// The host interrupt that it acknowledged.
    pub(super) host_vector: Option<u8>,
}

impl LastExit {
    /// Turns the exit that just happened into its neutral form, but for what `decode` does alone.
    #[inline(always)]
    pub(super) fn decode(
        &mut self,
        vm: Current<'_>,
        cpu: &mut CpuState,
        reason: u32,
        blocking: &mut Blocking,
    ) -> Exit {
        if reason == reason::EXCEPTION_OR_NMI {
            return self.exceptional(vm, cpu, blocking);
        }
        if reason == reason::EXTERNAL_INTERRUPT {
            let info = vm.read(EXIT_INTR_INFO);
            // Valid where the exit acknowledges (SDM 3C 25.9.2).
            self.host_vector = (info & intr::VALID != 0).then_some(info as u8);
            return Exit::HostInterrupt;
        }
        if reason == reason::PML_FULL {
            self.interrupted_access(vm, blocking);
            return Exit::LogFull;
        }
        let (exit, class) = decode::decode(vm, reason & 0xffff);
        match class {
            Class::Instruction => self.insn_len = vm.read(EXIT_INSTRUCTION_LEN) as u8,
            Class::Delivery => self.interrupted = event::interrupted(vm),
            Class::Transfer => {
                self.interrupted = event::interrupted(vm);
                if self.interrupted.is_none() {
                    self.insn_len = vm.read(EXIT_INSTRUCTION_LEN) as u8;
                }
            }
            Class::Other => {}
        }
        exit
    }

    /// Exit reason 0.
    #[inline(never)]
    fn exceptional(
        &mut self,
        vm: Current<'_>,
        cpu: &mut CpuState,
        blocking: &mut Blocking,
    ) -> Exit {
        match decode::exception(vm) {
            Exceptional::Nmi => {
                // SAFETY: This was an NMI exit; `probe` refused FRED.
                unsafe { entry::deliver_nmi(vm) };
                self.interrupted = event::interrupted(vm);
                Exit::HostNmi
            }
            Exceptional::MachineCheck => {
                self.interrupted = event::interrupted(vm);
                Exit::HostMachineCheck
            }
            Exceptional::Guest {
                exception,
                trap_len,
                software,
                nmi_unblocked,
            } => {
                self.interrupted = event::interrupted(vm);
                if nmi_unblocked && self.interrupted.is_none() {
                    blocking.block_nmi(vm);
                }
                // INT1 exits with RIP at itself, but its #DB is a trap.
                cpu.regs.rip = cpu.regs.rip.wrapping_add(u64::from(trap_len));
                if exception.vector == vector::DB {
                    blocking.match_pending_step(vm, cpu.regs.rflags);
                }
                if software {
                    self.insn_len = vm.read(EXIT_INSTRUCTION_LEN) as u8;
                }
                Exit::Exception(exception)
            }
        }
    }

    /// EPT violation.
    #[inline(never)]
    pub(super) fn nested_fault(&mut self, vm: Current<'_>, blocking: &mut Blocking) -> Exit {
        let q = self.interrupted_access(vm, blocking);
        decode::nested_fault(vm, q)
    }

    /// What an access by guest-physical address was part of, when it exits. Gives the exit qualification.
    #[inline(always)]
    fn interrupted_access(&mut self, vm: Current<'_>, blocking: &mut Blocking) -> u64 {
        let q = vm.read(EXIT_QUALIFICATION);
        let info = vm.read(IDT_VECTORING_INFO);
        if info & intr::VALID != 0 {
            self.interrupted = event::interrupted(vm);
        } else if q & decode::QUAL_NMI_UNBLOCKED != 0 {
            blocking.block_nmi(vm);
        }
        q
    }
}

/// The entry checks have found `violation`: an exit as the processor would report it.
#[cold]
#[inline(never)]
pub(super) fn refused(vm: Current<'_>, violation: &EntryViolation) -> Exit {
    event::withdraw(vm);
    pr_err_ratelimited!(
        "entry refused: {} ({}), value {:#x}\n",
        violation.rule,
        violation.manual,
        violation.value
    );
    Exit::EntryFailure(u64::from(
        reason::ENTRY_FAILURE | reason::INVALID_GUEST_STATE,
    ))
}

/// The entry did not happen.
#[cold]
#[inline(never)]
pub(super) fn entry_failed(vm: Current<'_>, outcome: Outcome) -> Exit {
    event::withdraw(vm);
    // The code after a failed entry runs with the stack as written, but nothing else is certain.
    match outcome {
        Outcome::FailValid => {
            let n = vm.read(INSTRUCTION_ERROR);
            pr_err_ratelimited!(
                "VM entry failed: VM-instruction error {n}, {}\n",
                decode::instruction_error(n)
            );
            Exit::EntryFailure(u64::from(n))
        }
        _ => {
            pr_err_ratelimited!("VM entry failed: no current VMCS\n");
            Exit::EntryFailure(0)
        }
    }
}

/// The entry failed after the processor had begun to load guest state (SDM 3C 27.8). The host state is
/// loaded as by an exit, but the guest's is as before, and the launch state too.
#[cold]
#[inline(never)]
pub(super) fn failed_late(vm: Current<'_>, reason: u32) -> Exit {
    event::withdraw(vm);
    if reason & 0xffff == reason::MACHINE_CHECK_ENTRY {
        return Exit::EntryMachineCheck(reason.into());
    }
    pr_err_ratelimited!(
        "VM entry failed: reason {:#x}, qualification {:#x}\n",
        reason,
        vm.read(EXIT_QUALIFICATION)
    );
    Exit::EntryFailure(u64::from(reason))
}
