// SPDX-License-Identifier: GPL-2.0
//! VMX root operation for the length of a stay, with the VMCS of a vCPU current: [`Region`] (SDM 3C 24.6 to 24.8).
//!
//! `VmxVcpu` enters it with interrupts off, which stay off until it has been left.
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
//!   (VMPTRLD), unless it is the invalid pointer or one of ours. Never VMXOFF.
//!
//! A processor that cannot trace in VMX operation (IA32_VMX_MISC, bit 14) has VMXON end the traces of Intel PT. KVM
//! tells the kernel (`intel_pt_handle_vmx`), which modules cannot: there a private root is refused.
//!
//! # What stays between stays
//!
//! In a shared root VMCSs of ours stay active between stays, and the last one current, so that the next stay of the
//! same vCPU on this CPU finds all as it was and enters by VMRESUME. VMXOFF would lose them. KVM executes it on a CPU
//!
//! - when it is unloaded, or its last VM goes with `enable_virt_at_load=0`: neither happens while
//!   [`super::shared`] holds its device open, and without that nothing stays active;
//! - when the CPU goes offline (`CPUHP_AP_KVM_ONLINE`), at suspend and at reboot (syscore): ours come first, and clear
//!   what is active ([`super::active::Cpu::close`]). CPU callbacks go by their number, which is higher; threads that
//!   still run on the CPU until KVM's turn leave nothing active. Syscore callbacks run last registered first, and ours
//!   are registered when KVM is there already and held;
//! - in a crash or an emergency reboot, after which no guest runs.
//!
//! # Why looking at CR4.VMXE per stay is enough
//!
//! Others change VMX operation of a CPU only from code that runs on that CPU: `x86_virt_get_ref` and `put_ref` in
//! hot-plug callbacks or IPIs. Both need this CPU to take interrupts or to schedule, which a stay
//! excludes. What CR4.VMXE says at the begin therefore holds until the end: with `enable_virt_at_load=0` VMX may come
//! and go between two stays, and each takes its way. CR4.VMXE without VMX operation (a broken third party) shows as a
//! fault of VMPTRST, which is caught and reported as EBUSY.
//!
//! Translations tagged with our VPIDs and EPT pointers may survive VMXOFF (SDM 3C 29.4.3.4); the
//! flush rules in `super::flush` do not depend on it.

use super::active::{Cpu, NO_VMCS};
use super::insn::{self, Current, VmxError};
use super::shared::{revision_page, Shared};
use crate::linux::irqflags::{IrqGuard, ThisCpu};
use crate::linux::page::Pages;
use crate::linux::{cr, smp};
use crate::pr_err_ratelimited;
use crate::x86::cpu::regs::cr4;
use crate::x86::mitigate;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Whether and how the CPU is in VMX root operation for a VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    /// It is not.
    Out,
    /// Our own VMXON has entered it.
    Private,
    /// The CPU was in it already; the VMCS has to be cleared at the end.
    Shared,
    /// As `Shared`, and the VMCS stays active.
    Kept,
}

/// No CPU.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The VMCS of a vCPU: the page, and where the processor has it.
///
/// # Invariants
///
/// Outside root operation the VMCS is active on no CPU but `home`, and there only if that has it in `place`. Unless
/// `root` is `Out`, interrupts have been off since [`Region::enter`] on a CPU in VMX root operation, and the VMCS is
/// current there.
pub(super) struct Region {
    shared: Arc<Shared>,
    _page: Pages,
    phys: u64,
    /// It has been cleared, which it has to be before the first use.
    cleared: bool,
    home: u32,
    place: usize,
    root: Root,
    /// The VMCS that has to be current again, another hypervisor's, or [`NO_VMCS`].
    back: u64,
    /// Another hypervisor's guest may run next on this CPU, which that one believes to be the last that ran there.
    others: bool,
    /// CR4 in force meanwhile, which VM exits have to bring back.
    cr4: u64,
}

impl Region {
    pub(super) fn new(shared: Arc<Shared>) -> Result<Self> {
        let page = revision_page(&shared.config)?;
        // INVARIANT: No processor knows it.
        Ok(Self {
            shared,
            phys: page.phys(),
            _page: page,
            cleared: false,
            home: NOWHERE,
            place: 0,
            root: Root::Out,
            back: NO_VMCS,
            others: false,
            cr4: 0,
        })
    }

    /// Access to the VMCS, between [`Region::enter`] and [`Region::leave`]. Nobody keeps the result for later.
    #[inline(always)]
    pub(super) fn current<'a>(&self) -> Option<Current<'a>> {
        // SAFETY: By the type invariant. `&self` makes the caller the VMCS's owner.
        (self.root != Root::Out).then(|| unsafe { Current::assume() })
    }

    /// The VMCS's physical address.
    pub(super) const fn phys(&self) -> u64 {
        self.phys
    }

    /// Root operation is our own.
    pub(super) fn is_private(&self) -> bool {
        self.root == Root::Private
    }

    /// CR4 that a VM exit has to load.
    #[inline(always)]
    pub(super) const fn cr4(&self) -> u64 {
        self.cr4
    }

    /// Whether another hypervisor's guest may run next on this CPU, without a barrier of that one's.
    #[inline(always)]
    pub(super) const fn others_follow(&self) -> bool {
        self.others
    }

    /// Turns interrupts off, which are on, with the VMCS active on no other CPU.
    #[inline(always)]
    pub(super) fn irqs_off(&mut self) -> IrqGuard {
        let irq = IrqGuard::new();
        if self.home == NOWHERE || self.home == irq.this_cpu().number() {
            return irq;
        }
        self.come_here(irq)
    }

    #[cold]
    #[inline(never)]
    fn come_here(&mut self, irq: IrqGuard) -> IrqGuard {
        if !irq.restores_enabled() {
            // The core never does that; `enter` will refuse.
            return irq;
        }
        drop(irq);
        self.leave_home();
        IrqGuard::new()
    }

    /// Clears the VMCS where it is active. Interrupts are on.
    fn leave_home(&mut self) {
        let (place, vmcs) = (self.place, self.phys);
        if let Some(cpu) = self
            .shared
            .cpus
            .of(self.home)
            .filter(|c| c.has(place, vmcs))
        {
            // A CPU that is not online any more has cleared it on its way.
            let _ = smp::call_on_cpu(self.home, || {
                let irq = IrqGuard::new();
                // SAFETY: `cpu` is that of `home`, which runs this.
                unsafe { cpu.clear(place, vmcs, irq.token()) };
            });
        }
        // INVARIANT: It is active nowhere.
        self.home = NOWHERE;
    }

    /// Enters VMX root operation and makes the VMCS current. Whether it has been active since it was last left, with
    /// its launch state.
    ///
    /// EBUSY when another owner holds VMX in a way that cannot be shared, or when nobody holds it and ours would do
    /// harm; EIO when the processor refuses.
    ///
    /// # Safety
    ///
    /// [`Region::leave`] follows before interrupts come on.
    #[inline(always)]
    pub(super) unsafe fn enter(&mut self, this_cpu: ThisCpu<'_>) -> Result<bool> {
        let old_cr4 = cr::cr4();
        self.cr4 = old_cr4 | cr4::VMXE;
        if old_cr4 & cr4::VMXE == 0 {
            return self.enter_private(this_cpu, old_cr4);
        }
        match insn::vmptrst() {
            Ok(old) if old == self.phys => {
                // INVARIANT: It is current, as a stay here has left it.
                self.root = Root::Kept;
                Ok(true)
            }
            Ok(old) => self.enter_shared(this_cpu, old),
            Err(_) => {
                complain("CR4.VMXE is set but the CPU is not in VMX operation: another hypervisor is half \
                     loaded; unload it");
                Err(EBUSY)
            }
        }
    }

    /// What this CPU has of ours; EBUSY while another one may have the VMCS.
    fn cpu_here(&self, this_cpu: ThisCpu<'_>) -> Result<&Cpu> {
        let here = this_cpu.number();
        let cpu = self.shared.cpus.of(here).ok_or(EIO)?;
        if self.home != NOWHERE && self.home != here {
            return Err(EBUSY);
        }
        Ok(cpu)
    }

    /// [`Region::enter`] where CR4, which is `old_cr4`, lacks VMXE.
    #[inline(never)]
    fn enter_private(&mut self, this_cpu: ThisCpu<'_>, old_cr4: u64) -> Result<bool> {
        if !self.shared.config.own_root {
            complain("VMX operation would stop Intel PT on this processor behind the kernel's back; load \
                 kvm_intel, which keeps VMX on and tells the kernel");
            return Err(EBUSY);
        }
        let cpu = self.cpu_here(this_cpu)?;
        // SAFETY: `of_this_cpu` found VMX, so CR4 has VMXE; by the promise of who called `enter` it is clear again
        // before interrupts are on.
        unsafe { cr::write_cr4(old_cr4 | cr4::VMXE) };
        // SAFETY: The region is this CPU's own, and `shared` keeps it.
        if let Err(e) = unsafe { insn::vmxon(cpu.vmxon_region()) } {
            // SAFETY: Not in VMX operation: the old value is fine.
            unsafe { cr::write_cr4(old_cr4) };
            vmxon_failed(e);
            return Err(EIO);
        }
        // Who switched VMX off has no guests.
        self.others = false;
        self.load(Root::Private)?;
        Ok(false)
    }

    /// [`Region::enter`] in VMX operation that is on already, where `old` is current.
    #[inline(never)]
    fn enter_shared(&mut self, this_cpu: ThisCpu<'_>, old: u64) -> Result<bool> {
        let cpu = self.cpu_here(this_cpu)?;
        let active = self.home == this_cpu.number() && cpu.has(self.place, self.phys);
        // Also where none is current any more, another hypervisor's guest may have run since our last stay here.
        let foreign = !cpu.is_ours(old);
        if foreign {
            cpu.note_others();
        }
        // It holds as long as `enter` finds this VMCS current.
        self.others = cpu.others_follow();
        self.load(if active { Root::Kept } else { Root::Shared })?;
        if foreign {
            mitigate::other_guests();
            self.back = old;
        }
        if !active {
            self.settle(this_cpu);
        }
        Ok(active)
    }

    /// Finds a place where the VMCS, which is current, may stay active.
    fn settle(&mut self, this_cpu: ThisCpu<'_>) {
        let here = this_cpu.number();
        let Some(cpu) = self.shared.cpus.of(here) else {
            return;
        };
        // SAFETY: This is the CPU, in VMX root operation, and the VMCS is current. `drop` has it cleared.
        match unsafe { cpu.place(self.phys, this_cpu.irqs_off()) } {
            Some(place) => (self.home, self.place, self.root) = (here, place, Root::Kept),
            None => self.home = NOWHERE,
        }
    }

    /// Makes the VMCS current, in VMX root operation of this kind.
    #[inline(always)]
    fn load(&mut self, root: Root) -> Result {
        // INVARIANT: The VMCS becomes current below, or root operation is left.
        self.root = root;
        if !self.cleared {
            self.clear_first();
        }
        // SAFETY: It is ours, and by the type's invariant active on no other CPU.
        if unsafe { insn::vmptrld(self.phys) }.is_err() {
            complain("VMPTRLD failed: wrong revision identifier or address");
            self.leave();
            return Err(EIO);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn clear_first(&mut self) {
        // SAFETY: It is ours, and no processor knows it.
        if unsafe { insn::vmclear(self.phys) }.is_err() {
            complain("VMCLEAR of a new VMCS failed");
        }
        self.cleared = true;
    }

    /// Leaves VMX root operation, or gives it back as it was found.
    #[inline(always)]
    pub(super) fn leave(&mut self) {
        let root = core::mem::replace(&mut self.root, Root::Out);
        if matches!(root, Root::Private | Root::Shared) {
            self.clear(root);
        }
        if self.back != NO_VMCS {
            self.give_back();
        }
    }

    /// Clears the VMCS, which is current: it is put into memory, so that another CPU can load it next time. Leaves our
    /// own root operation.
    fn clear(&self, root: Root) {
        // SAFETY: It is ours and active here only, and the CPU is in VMX root operation, by the type's invariant.
        if unsafe { insn::vmclear(self.phys) }.is_err() {
            complain("VMCLEAR failed at the end of a stay");
        }
        if root == Root::Private {
            // SAFETY: VMX operation is ours, and no VMCS of ours is active.
            if unsafe { insn::vmxoff() }.is_err() {
                complain("VMXOFF failed");
            }
            // SAFETY: The value that the kernel's shadow stands for.
            unsafe { cr::write_cr4(self.cr4 & !cr4::VMXE) };
        }
    }

    /// Makes the other hypervisor's VMCS current again.
    #[cold]
    fn give_back(&mut self) {
        let back = core::mem::replace(&mut self.back, NO_VMCS);
        // SAFETY: It was current on this CPU when the stay began, and its owner had no chance to run here or to move it
        // elsewhere: that takes an interrupt on this CPU.
        if unsafe { insn::vmptrld(back) }.is_err() {
            complain("VMPTRLD of the other hypervisor's VMCS failed");
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.leave_home();
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
