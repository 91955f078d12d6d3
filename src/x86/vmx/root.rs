// SPDX-License-Identifier: GPL-2.0
//! VMX root operation for the length of a stay: [`RootStay`] (SDM 3C 24.6 to 24.8).
//!
//! `VmxVcpu` enters it with interrupts off, which stay off until it has been left: a [`RootStay`] cannot
//! outlive the guard that keeps them off.
//!
//! # Private and shared root
//!
//! The kernel rewrites CR4 from a shadow that does not know of VMXE when nobody in the kernel proper has
//! turned VMX on (`cr4_update_pce_mm`, TSD toggling, global TLB flush), and clearing VMXE in VMX operation is
//! a #GP. So VMX operation of our own must not outlive an interrupts-off section:
//!
//! - *Private root*, when CR4.VMXE is clear: set CR4.VMXE, VMXON, VMPTRLD; at the end VMCLEAR, VMXOFF, and
//!   CR4 as it was. In between nothing but NMI and machine-check handlers can run on this CPU, and neither
//!   writes CR4. INIT is blocked in VMX root operation (SDM 3C 24.8), so a CPU is never left in it; should a
//!   crash NMI hit inside a stay, the kernel's emergency path executes VMXOFF because it looks at CR4.VMXE.
//! - *Shared root*, when CR4.VMXE is set: somebody else, as a rule kvm_intel, keeps VMX on. Its owner keeps
//!   in memory which VMCS it believes to be current, so the pointer found (VMPTRST) is loaded again at the end
//!   (VMPTRLD), unless it was the invalid pointer. Never VMXOFF.
//!
//! A processor that cannot trace in VMX operation (IA32_VMX_MISC, bit 14) has VMXON end the traces of Intel PT. KVM
//! tells the kernel (`intel_pt_handle_vmx`), which modules cannot: there a private root is refused.
//!
//! # Why looking at CR4.VMXE per stay is enough
//!
//! Others change VMX operation of a CPU only from code that runs on that CPU: `x86_virt_get_ref` and `put_ref` in
//! hot-plug callbacks or IPIs. Both need this CPU to take interrupts or to schedule, which a stay
//! excludes. What CR4.VMXE says at the begin therefore holds until the end, and neither the vendor module nor
//! an open `/dev/kvm` has to be pinned: with `enable_virt_at_load=0` VMX may come and go between two
//! stays, and each takes its way. A VMCS of ours never stays active between stays, so VMXOFF by another
//! loses nothing. CR4.VMXE without VMX operation (a broken third party) shows as a fault of VMPTRST, which is caught
//! and reported as EBUSY.
//!
//! Translations tagged with our VPIDs and EPT pointers may survive VMXOFF (SDM 3C 29.4.3.4); the
//! flush rules in `super::flush` do not depend on it.

use super::insn::{self, Current, VmxError};
use crate::linux::cr;
use crate::linux::irqflags::IrqsOff;
use crate::pr_err_ratelimited;
use crate::x86::cpu::regs::cr4;
use kernel::prelude::*;

/// How the CPU came into VMX root operation.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Our own VMXON entered it; CR4 was this.
    Private(u64),
    /// The CPU was in it already; this VMCS was current (all ones: none).
    Shared(u64),
}

/// "No VMCS is current" in VMPTRST's words.
const NO_VMCS: u64 = u64::MAX;

/// VMX root operation as a CPU was brought into it, and what it takes to leave it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    kind: Kind,
    vmcs: u64,
    /// CR4 in force meanwhile, which VM exits have to bring back.
    cr4: u64,
}

/// The calling CPU in VMX root operation with one VMCS of ours current; dropping it ends both.
///
/// # Invariants
///
/// Interrupts are off for `'irq`. The CPU is in VMX root operation and the VMCS is current.
pub(super) struct RootStay<'irq> {
    root: Root,
    _irqs_off: IrqsOff<'irq>,
}

impl<'irq> RootStay<'irq> {
    /// Enters VMX root operation and makes the VMCS at `vmcs` current.
    ///
    /// `clear` asks for a VMCLEAR first, which a VMCS needs once before its first use.
    ///
    /// EBUSY when another owner holds VMX in a way that cannot be shared, or when nobody holds it and `own` is false;
    /// EIO when the processor refuses.
    ///
    /// # Safety
    ///
    /// `region` is this CPU's VMXON region and `vmcs` a VMCS of ours that is active on no other CPU, both as physical
    /// addresses with the revision identifier in place. They live, and nobody else uses them, until the value has been
    /// dropped or [`Root::leave`] been called.
    #[inline(always)]
    pub(super) unsafe fn enter(
        irqs_off: IrqsOff<'irq>,
        region: u64,
        vmcs: u64,
        clear: bool,
        own: bool,
    ) -> Result<Self> {
        let old_cr4 = cr::cr4();
        let kind = if old_cr4 & cr4::VMXE == 0 {
            if !own {
                complain("VMX operation would stop Intel PT on this processor behind the kernel's back; load \
                     kvm_intel, which keeps VMX on and tells the kernel");
                return Err(EBUSY);
            }
            // SAFETY: `of_this_cpu` found VMX, so CR4 has VMXE; it is clear again before interrupts are on.
            unsafe { cr::write_cr4(old_cr4 | cr4::VMXE) };
            // SAFETY: The caller answers for the region.
            if let Err(e) = unsafe { insn::vmxon(region) } {
                // SAFETY: Not in VMX operation: the old value is fine.
                unsafe { cr::write_cr4(old_cr4) };
                vmxon_failed(e);
                return Err(EIO);
            }
            Kind::Private(old_cr4)
        } else {
            match insn::vmptrst() {
                Ok(old) => Kind::Shared(old),
                Err(_) => {
                    complain("CR4.VMXE is set but the CPU is not in VMX operation: another hypervisor is half \
                         loaded; unload it");
                    return Err(EBUSY);
                }
            }
        };
        // INVARIANT: The CPU is in VMX root operation; `vmcs` becomes current below, or the value is dropped.
        let stay = Self {
            root: Root {
                kind,
                vmcs,
                cr4: old_cr4 | cr4::VMXE,
            },
            _irqs_off: irqs_off,
        };
        if clear {
            // SAFETY: The caller answers for the VMCS.
            if unsafe { insn::vmclear(vmcs) }.is_err() {
                complain("VMCLEAR of a new VMCS failed");
                return Err(EIO);
            }
        }
        // SAFETY: The caller answers for the VMCS.
        if unsafe { insn::vmptrld(vmcs) }.is_err() {
            complain("VMPTRLD failed: wrong revision identifier or address");
            return Err(EIO);
        }
        Ok(stay)
    }

    /// VMX is another's, who runs guests of its own on this CPU.
    #[inline(always)]
    pub(super) const fn is_shared(&self) -> bool {
        matches!(self.root.kind, Kind::Shared(_))
    }

    /// CR4 that a VM exit has to load.
    #[inline(always)]
    pub(super) const fn cr4(&self) -> u64 {
        self.root.cr4
    }

    /// Access to the VMCS.
    #[inline(always)]
    pub(super) fn current(&self) -> Current<'_> {
        // SAFETY: By the type invariant, which holds as long as the value lives.
        unsafe { Current::assume() }
    }

    /// Leaves it to the caller to call [`Root::leave`].
    #[inline(always)]
    pub(super) fn keep(self) -> Root {
        let root = self.root;
        core::mem::forget(self);
        root
    }
}

/// Logs what cannot happen unless something else meddles with VMX.
#[cold]
#[inline(never)]
fn complain(what: &str) {
    pr_err_ratelimited!("{what}\n");
}

/// VMXON's failure in the words of its causes (SDM 3C 31.3 "VMXON").
#[cold]
#[inline(never)]
fn vmxon_failed(e: VmxError) {
    match e {
        VmxError::Fault => pr_err_ratelimited!("VMXON faulted: locked by the firmware\n"),
        _ => pr_err_ratelimited!("VMXON failed ({e:?}): the VMXON region was refused\n"),
    }
}

impl Drop for RootStay<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: By the type invariant; `keep`, which gives `root` away, does not come by here.
        unsafe { self.root.leave() };
    }
}

impl Root {
    /// Leaves VMX root operation, or gives it back.
    ///
    /// # Safety
    ///
    /// It comes from [`RootStay::keep`] on this CPU, interrupts have been off since [`RootStay::enter`], and it has not
    /// been left yet.
    #[inline(always)]
    pub(super) unsafe fn leave(self) {
        // VMCLEAR puts the VMCS into memory, so that another CPU can load it next time, and leaves this
        // CPU without a current VMCS.
        //
        // SAFETY: `vmcs` is ours and active here only, and the CPU is in VMX root, since `enter`.
        if unsafe { insn::vmclear(self.vmcs) }.is_err() {
            complain("VMCLEAR failed at the end of a stay");
        }
        match self.kind {
            Kind::Private(old_cr4) => {
                // SAFETY: VMX operation is ours, and no VMCS of ours is active.
                if unsafe { insn::vmxoff() }.is_err() {
                    complain("VMXOFF failed");
                }
                // SAFETY: The value that the kernel's shadow stands for.
                unsafe { cr::write_cr4(old_cr4) };
            }
            Kind::Shared(NO_VMCS) => {}
            Kind::Shared(old) => {
                // SAFETY: It was current on this CPU when the stay began, and its owner had no chance to
                // run here or to move it elsewhere: that takes an interrupt on this CPU.
                if unsafe { insn::vmptrld(old) }.is_err() {
                    complain("VMPTRLD of the other hypervisor's VMCS failed");
                }
            }
        }
    }
}
