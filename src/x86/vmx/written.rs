// SPDX-License-Identifier: GPL-2.0
//! What the VMCS holds as last written or read: only what differs is written.
//!
//! The vCPU keeps it under its mutex; a function that takes [`Current`] touches the VMCS, with interrupts off.

use super::bits::dr7;
use super::config::TSC_FRACTION;
use super::insn::Current;
use super::interruptibility::Blocking;
use super::vmcs::*;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::{rflags, Gpr, Regs};

/// Exceptions that are always intercepted: #DB and #AC (endless loops in microcode otherwise), #UD (RSM, and hypercalls
/// of the other vendor), #MC.
pub(super) const ALWAYS_INTERCEPTED: u32 =
    1 << vector::DB | 1 << vector::UD | 1 << vector::AC | 1 << vector::MC;

/// RFLAGS bits that may be set; bit 1 has to be (SDM 3C 27.3.1.4).
const RFLAGS_ALLOWED: u64 = 0x3f_7fd5;

/// VMCS values as last written, to write only what changes.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) rip: u64,
    pub(super) rsp: u64,
    pub(super) rflags: u64,
    pub(super) proc: u32,
    pub(super) exceptions: u32,
    pub(super) tsc_offset: u64,
    pub(super) tsc_ratio: u64,
    pub(super) eptp: u64,
    pub(super) dr7: u64,
    pub(super) msr_bitmap: u64,
    /// Secondary controls beside those of the configuration and of the local APIC.
    pub(super) more_proc2: u32,
    /// Breakpoint addresses in the processor, in this stay.
    pub(super) dr: Option<[u64; 4]>,
}

impl Written {
    /// After [`super::setup`]; `proc` is zero, which no control word is, and `msr_bitmap`, where none is.
    pub(super) const RESET: Self = Self {
        rip: 0xfff0,
        rsp: 0,
        rflags: rflags::FIXED,
        proc: 0,
        exceptions: ALWAYS_INTERCEPTED,
        tsc_offset: 0,
        tsc_ratio: 1 << TSC_FRACTION,
        eptp: 0,
        dr7: dr7::FIXED,
        msr_bitmap: 0,
        more_proc2: 0,
        dr: None,
    };

    /// Writes the instruction pointer, stack pointer and flags that changed since the last exit.
    #[inline(always)]
    pub(super) fn write_regs(&mut self, vm: Current<'_>, regs: &Regs, blocking: &mut Blocking) {
        if regs.rip != self.rip {
            vm.write(GUEST_RIP, regs.rip);
            self.rip = regs.rip;
        }
        let rsp = regs.gpr[Gpr::Rsp as usize];
        if rsp != self.rsp {
            vm.write(GUEST_RSP, rsp);
            self.rsp = rsp;
        }
        if regs.rflags != self.rflags {
            vm.write(GUEST_RFLAGS, (regs.rflags & RFLAGS_ALLOWED) | rflags::FIXED);
            if (regs.rflags ^ self.rflags) & rflags::TF != 0 {
                blocking.match_pending_step(vm, regs.rflags);
            }
            self.rflags = regs.rflags;
        }
    }

    /// Reads instruction pointer, stack pointer and flags after an exit.
    #[inline(always)]
    pub(super) fn read_regs(&mut self, vm: Current<'_>, regs: &mut Regs) {
        let (rip, rsp, flags) = (
            vm.read(GUEST_RIP),
            vm.read(GUEST_RSP),
            vm.read(GUEST_RFLAGS),
        );
        regs.rip = rip;
        regs.gpr[Gpr::Rsp as usize] = rsp;
        regs.rflags = flags;
        self.rip = rip;
        self.rsp = rsp;
        self.rflags = flags;
    }
}
