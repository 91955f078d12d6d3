// SPDX-License-Identifier: GPL-2.0
//! Speculative-execution mitigations at the boundary between host and guest
//! (Documentation/admin-guide/hw-vuln of the kernel).
//!
//! What is needed on this CPU has been decided by the kernel, from the CPU's bugs and the command line; it left its
//! decision in feature bits, which are read once at load. On a CPU that needs nothing an entry costs one test.
//!
//! `main` calls [`init`]; the run loop and the vendors call the rest, in a stay (interrupts off).
//!
//! SPEC_CTRL: the host's value stays in force in a guest until the guest sets its own, which is then exchanged around
//! every entry ([`SpecCtrl`]). For the untraining of return instructions on AMD (retbleed, SRSO) an IBPB after each
//! exit stands in, which is slower and comes after a return: docs/silicon.md lists what is open.

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

/// VERW before entry: MDS, TAA, MMIO stale data, RFDS, TSA.
const VERW: u32 = 1 << 0;
/// L1D flush, or filling, before the first entry of a stay: L1TF.
const L1D_FLUSH: u32 = 1 << 1;
/// IBPB when a CPU turns to another vCPU: Spectre v2 between guests.
const IBPB_SWITCH: u32 = 1 << 2;
/// IBPB after each exit.
const IBPB_EXIT: u32 = 1 << 3;
/// Return-stack filling after each exit.
const RSB_FILL: u32 = 1 << 4;
/// One entry on the return stack after each exit: enough for post-barrier return-stack predictions.
const RSB_ONE: u32 = 1 << 5;
/// IBPB before user space runs on this CPU again: VMSCAPE.
const IBPB_USER: u32 = 1 << 6;
/// A division before entry: DIV0, the divider keeps the last quotient.
const DIVIDE: u32 = 1 << 7;

// Each has a bit of its own.
const _: () = assert!(
    VERW | L1D_FLUSH | IBPB_SWITCH | IBPB_EXIT | RSB_FILL | RSB_ONE | IBPB_USER | DIVIDE == 0xff
);

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
    if has(b::X86_FEATURE_CLEAR_CPU_BUF_VM) || has(b::X86_FEATURE_CLEAR_CPU_BUF_VM_MMIO) {
        needed |= VERW;
    }
    let mut filler = None;
    if leaks_l1d() {
        needed |= L1D_FLUSH;
        if !has(b::X86_FEATURE_FLUSH_L1D) {
            filler = Some(L1dFiller::new()?);
        }
    }
    if boot_cpu::bug(boot_cpu::Bug::Div0) {
        needed |= DIVIDE;
    }
    let ibpb = has(b::X86_FEATURE_IBPB);
    if ibpb && boot_cpu::bug(boot_cpu::Bug::SpectreV2) {
        needed |= IBPB_SWITCH;
    }
    if ibpb
        && (has(b::X86_FEATURE_IBPB_ON_VMEXIT)
            || has(b::X86_FEATURE_UNRET)
            || has(b::X86_FEATURE_SRSO)
            || has(b::X86_FEATURE_SRSO_ALIAS))
    {
        needed |= IBPB_EXIT;
    }
    if has(b::X86_FEATURE_IBPB_EXIT_TO_USER) {
        needed |= IBPB_USER;
    }
    if has(b::X86_FEATURE_RSB_VMEXIT) {
        needed |= RSB_FILL;
    } else if has(b::X86_FEATURE_RSB_VMEXIT_LITE) {
        needed |= RSB_ONE;
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
    shared: Arc<Shared>,
}

/// A token for a new vCPU.
pub(crate) fn token() -> Result<Token> {
    Ok(Token {
        id: NEXT_TOKEN.fetch_add(1, Ordering::Relaxed),
        shared: SHARED.get().ok_or(ENODEV)?,
    })
}

/// Does what the start of a stay of the vCPU `token` on this CPU needs.
#[inline]
pub(crate) fn begin_stay(token: &Token, this_cpu: ThisCpu<'_>) {
    let needed = NEEDED.load(Ordering::Relaxed);
    if needed & (IBPB_SWITCH | L1D_FLUSH) == 0 {
        return;
    }
    let shared = &token.shared;
    let last = shared.last.of(this_cpu.number());
    if last.is_none_or(|l| l.load(Ordering::Relaxed) != token.id) {
        if let Some(last) = last {
            last.store(token.id, Ordering::Relaxed);
        }
        if needed & IBPB_SWITCH != 0 {
            nospec::ibpb();
        }
    }
    if needed & L1D_FLUSH != 0 {
        match &shared.filler {
            Some(filler) => filler.fill_l1d(),
            None => nospec::flush_l1d(),
        }
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

/// Clears the CPU's buffers and its divider right before an entry, where that is needed.
#[inline(always)]
pub(crate) fn before_enter() {
    let needed = NEEDED.load(Ordering::Relaxed);
    if needed & (VERW | DIVIDE) == 0 {
        return;
    }
    if needed & DIVIDE != 0 {
        nospec::clear_divider();
    }
    if needed & VERW != 0 {
        nospec::clear_cpu_buffers();
    }
}

/// Mends the branch predictors right after an exit, before a RET that is not paired with a call made since: inlined
/// into the function that enters.
#[inline(always)]
pub(crate) fn after_exit() {
    let needed = NEEDED.load(Ordering::Relaxed);
    if needed & (RSB_FILL | RSB_ONE | IBPB_EXIT) == 0 {
        return;
    }
    if needed & RSB_ONE != 0 {
        boot_cpu::fill_rsb_one();
    }
    if needed & RSB_FILL != 0 {
        boot_cpu::fill_rsb();
    }
    if needed & IBPB_EXIT != 0 {
        nospec::ibpb();
    }
}

/// Whether the CPU has SPEC_CTRL and PRED_CMD, and the kernel believes in them.
pub(crate) fn has_spec_ctrl() -> bool {
    boot_cpu::has(b::X86_FEATURE_MSR_SPEC_CTRL) && boot_cpu::has(b::X86_FEATURE_IBPB)
}

/// A guest's prediction barrier (IA32_PRED_CMD.IBPB), on this CPU.
pub(crate) fn guest_barrier() {
    if has_spec_ctrl() {
        nospec::ibpb();
    }
}

/// A vCPU's IA32_SPEC_CTRL (SDM 4 table 2-2). The MSR's writes are intercepted, so what the guest has is known.
pub(crate) struct SpecCtrl {
    guest: u64,
    /// What the host has during this stay; it follows the thread.
    host: u64,
    /// The guest has set it.
    used: bool,
}

impl SpecCtrl {
    /// Of a CPU after RESET.
    pub(crate) const RESET: Self = Self {
        guest: 0,
        host: 0,
        used: false,
    };

    /// The guest's value.
    pub(crate) fn get(&self) -> u64 {
        self.guest
    }

    /// Sets the guest's value, which the processor takes: the MSR policy has checked it.
    pub(crate) fn set(&mut self, value: u64) {
        self.guest = value;
        // The host's value protects at least as well as the 0 of a guest that has never chosen.
        self.used |= value != 0;
        self.begin_stay();
    }

    /// Reads the host's value at the start of a stay. Interrupts are off.
    #[inline]
    pub(crate) fn begin_stay(&mut self) {
        if self.used {
            self.host = nospec::spec_ctrl();
        }
    }

    /// Loads the guest's value right before an entry.
    #[inline(always)]
    pub(crate) fn before_enter(&self) {
        if self.used && self.guest != self.host {
            nospec::set_spec_ctrl(self.guest);
        }
    }

    /// Loads the host's value right after an exit: inlined, like [`after_exit`], and after it.
    #[inline(always)]
    pub(crate) fn after_exit(&self) {
        if self.used {
            if self.guest != self.host {
                nospec::set_spec_ctrl(self.host);
            }
            // Nothing is predicted past a comparison that went the wrong way.
            nospec::speculation_barrier();
        }
    }
}
