// SPDX-License-Identifier: GPL-2.0
//! Speculative-execution mitigations at the boundary between host and guest
//! (Documentation/admin-guide/hw-vuln of the kernel).
//!
//! What is needed on this CPU has been decided by the kernel, from the CPU's bugs and the command line; it left its
//! decision in feature bits, which are read once at load. On a CPU that needs nothing each function costs one test.
//!
//! `main` calls [`init`]; the run loop and the vendors call the rest, in a stay (interrupts off). What has to happen
//! between an entry and the code around it stands in the vendors' world switches (`switch.S`), where the kernel's
//! alternatives decide.

use crate::linux::bindings as b;
use crate::linux::global::{Global, Owner};
use crate::linux::irqflags::{IrqsOff, ThisCpu};
use crate::linux::nospec::{self, L1dFiller};
use crate::linux::percpu::PerCpu;
use crate::linux::{boot_cpu, msr};
use crate::x86::cpu::index;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// L1D flush, or filling, before an entry: L1TF.
const L1D_FLUSH: u32 = 1 << 0;
/// IBPB when a CPU turns to another vCPU, or a vCPU to another CPU: Spectre v2 between guests, and within one.
const IBPB_SWITCH: u32 = 1 << 1;
/// IBPB before user space runs on this CPU again: VMSCAPE.
const IBPB_USER: u32 = 1 << 2;

// Each has a bit of its own.
const _: () = assert!(L1D_FLUSH | IBPB_SWITCH | IBPB_USER == 7);

static NEEDED: AtomicU32 = AtomicU32::new(0);
/// Source of the identities in [`Token`].
static NEXT_TOKEN: AtomicU64 = AtomicU64::new(1);

/// What all vCPUs share.
struct Shared {
    /// The vCPU that each CPU ran last. Only that CPU writes it, with interrupts off.
    last: PerCpu<AtomicU64>,
    /// For processors without the command that flushes the L1 data cache.
    filler: Option<L1dFiller>,
}

static SHARED: Global<Shared> = Global::new();

/// Reads the kernel's decisions. New vCPUs find who ran last as long as the owner lives.
pub(crate) fn init() -> Result<Owner> {
    let has = boot_cpu::has;
    let mut needed = 0;
    let mut filler = None;
    if leaks_l1d() {
        needed |= L1D_FLUSH;
        if !has(b::X86_FEATURE_FLUSH_L1D) {
            filler = Some(L1dFiller::new()?);
        }
    }
    if has(b::X86_FEATURE_IBPB) && boot_cpu::bug(boot_cpu::Bug::SpectreV2) {
        needed |= IBPB_SWITCH;
    }
    if has(b::X86_FEATURE_IBPB_EXIT_TO_USER) {
        needed |= IBPB_USER;
    }
    let last = PerCpu::new(|_| Ok(AtomicU64::new(0)))?;
    let owner = SHARED.set(Shared { last, filler })?;
    NEEDED.store(needed, Ordering::Relaxed);
    Ok(owner)
}

/// Whether a guest could read what the L1 data cache holds (L1TF). For `l1tf=off` the kernel leaves no feature bit.
fn leaks_l1d() -> bool {
    // IA32_ARCH_CAPABILITIES.SKIP_L1DFL_VMENTRY: the hypervisor below does it (SDM 4 table 2-2).
    const SKIP: u64 = 1 << 3;
    boot_cpu::bug(boot_cpu::Bug::L1tf)
        && !boot_cpu::mitigations_off()
        && msr::read_safe(index::ARCH_CAPABILITIES).unwrap_or(0) & SKIP == 0
}

/// A vCPU, for [`begin_stay`] to know it from others.
pub(crate) struct Token {
    /// Never used again.
    id: u64,
    /// The CPU of the last stay.
    cpu: u32,
    shared: Arc<Shared>,
}

/// A token for a new vCPU.
pub(crate) fn token() -> Result<Token> {
    Ok(Token {
        id: NEXT_TOKEN.fetch_add(1, Ordering::Relaxed),
        cpu: u32::MAX,
        shared: SHARED.get().ok_or(ENODEV)?,
    })
}

/// Does what the start of a stay of the vCPU `token` on this CPU needs. True if that took an IBPB.
#[inline]
pub(crate) fn begin_stay(token: &mut Token, this_cpu: ThisCpu<'_>) -> bool {
    let needed = NEEDED.load(Ordering::Relaxed);
    if needed & (IBPB_SWITCH | L1D_FLUSH) == 0 {
        return false;
    }
    let shared = &token.shared;
    let last = shared.last.of(this_cpu.number());
    // A vCPU that has been elsewhere may have given barriers of its own there, which this CPU has not seen (XSA-479).
    let mut turned = token.cpu != this_cpu.number();
    token.cpu = this_cpu.number();
    if last.is_none_or(|l| l.load(Ordering::Relaxed) != token.id) {
        if let Some(last) = last {
            last.store(token.id, Ordering::Relaxed);
        }
        turned = true;
    }
    let barrier = turned && needed & IBPB_SWITCH != 0;
    if barrier {
        nospec::ibpb();
    }
    if needed & L1D_FLUSH != 0 {
        flush_l1d(token);
    }
    barrier
}

/// Does what the next entry of a stay needs after an exit whose handling has read more than the vCPU's own state: page
/// tables, other memory of the guest's, what devices and other vCPUs share.
#[inline(always)]
pub(crate) fn handled_exit(token: &Token) {
    if NEEDED.load(Ordering::Relaxed) & L1D_FLUSH != 0 {
        flush_l1d(token);
    }
}

#[cold]
#[inline(never)]
fn flush_l1d(token: &Token) {
    match &token.shared.filler {
        Some(filler) => filler.fill_l1d(),
        None => nospec::flush_l1d(),
    }
}

/// Does what is needed where this CPU comes from a guest of another hypervisor's to one of ours, or may go the other
/// way: that hypervisor does not know of our guests.
#[cold]
#[inline(never)]
pub(crate) fn other_guests() {
    if NEEDED.load(Ordering::Relaxed) & IBPB_SWITCH != 0 {
        nospec::ibpb();
    }
}

/// Does what the end of a stay in which a guest ran needs: what it has taught the branch predictors must not steer the
/// VMM.
#[inline]
pub(crate) fn end_stay(irqs_off: IrqsOff<'_>) {
    if NEEDED.load(Ordering::Relaxed) & IBPB_USER != 0 {
        nospec::ibpb_exit_to_user(irqs_off);
    }
}

/// Whether the CPU has SPEC_CTRL and PRED_CMD, and the kernel believes in them.
pub(crate) fn has_spec_ctrl() -> bool {
    boot_cpu::has(b::X86_FEATURE_MSR_SPEC_CTRL) && boot_cpu::has(b::X86_FEATURE_IBPB)
}

/// A guest's prediction barrier (IA32_PRED_CMD.IBPB), on this CPU.
pub(crate) fn guest_barrier() {
    if boot_cpu::has(b::X86_FEATURE_IBPB) {
        nospec::ibpb();
    }
}

/// A guest's flush of the L1 data cache (IA32_FLUSH_CMD), on this CPU.
pub(crate) fn guest_l1d_flush() {
    if boot_cpu::has(b::X86_FEATURE_FLUSH_L1D) {
        nospec::flush_l1d();
    }
}

/// After so many writes the MSR is the guest's to reach: an exit each costs more than to read it after every exit.
const WRITES_TO_PASS: u8 = 8;

/// A vCPU's IA32_SPEC_CTRL (SDM 4 table 2-2; APM 2 3.2.9), which world switches exchange with the host's where the two
/// differ (SPEC_CTRL_TO_GUEST and SPEC_CTRL_TO_HOST of `rust/x86/speculation.h`).
#[repr(C)]
pub(crate) struct SpecCtrl {
    /// What is in force in the guest.
    in_guest: u64,
    /// The guest may be able to write the MSR without an exit.
    passed: bool,
    /// The guest has chosen a value. Before that the host's value stays in force, which protects at least as well as
    /// the 0 that the guest sees.
    chosen: bool,
    writes: u8,
}

const _: () = {
    assert!(core::mem::offset_of!(SpecCtrl, in_guest) == 0);
    assert!(core::mem::offset_of!(SpecCtrl, passed) == 8);
};

impl SpecCtrl {
    /// Of a CPU after RESET.
    pub(crate) fn new() -> Self {
        Self {
            in_guest: 0,
            passed: false,
            // Legacy IBRS in force slows a guest down that has not asked for it, and is written after exits anyway.
            chosen: boot_cpu::has(b::X86_FEATURE_KERNEL_IBRS),
            writes: 0,
        }
    }

    /// The guest's value.
    pub(crate) fn get(&self) -> u64 {
        if self.chosen {
            self.in_guest
        } else {
            0
        }
    }

    /// Sets the guest's value, which the processor takes: the MSR policy has checked it. The next entry loads it.
    pub(crate) fn set(&mut self, value: u64) {
        self.chosen |= value != 0;
        if self.chosen {
            self.in_guest = value;
            self.writes = self.writes.saturating_add(1);
            self.passed |= self.writes >= WRITES_TO_PASS;
        }
    }

    /// Whether the MSR need not be intercepted any more.
    #[inline]
    pub(crate) fn is_passed(&self) -> bool {
        self.passed
    }

    /// At the start of a stay, in which the host's value stays as it is.
    #[inline]
    pub(crate) fn begin_stay(&mut self, irqs_off: IrqsOff<'_>) {
        if !self.chosen {
            self.in_guest = nospec::spec_ctrl_current(irqs_off);
        }
    }
}
