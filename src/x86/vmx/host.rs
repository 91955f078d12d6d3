// SPDX-License-Identifier: GPL-2.0
//! The host's own state around a stay: host-state area, MSRs that VMX does not switch, debug registers.
//!
//! `VmxVcpu::begin_stay` and `end_stay` call this, with interrupts off from the one to the other; each vCPU has a
//! [`HostState`] of its own under its mutex. What a VM exit changes (SDM 3C 28.5) and who repairs it:
//!
//! | state | repaired by |
//! |---|---|
//! | CR0, CR3, CR4, segments, bases, SYSENTER, EFER, PAT | the processor, from the host-state area |
//! | DR7, DEBUGCTL (cleared), DR0-DR3 | [`HostState::leave`] |
//! | limits of GDTR (FFFFH) and TR (67H), LDTR (null) | [`HostState::leave`] |
//! | limit of IDTR (FFFFH) | nobody: no vector reaches beyond the table's 4 KiB, and KVM leaves the limit so too |
//! | DS, ES, FS, GS selectors (null here; compatibility tasks have others) | [`HostState::leave`] |
//! | IA32_PEBS_ENABLE, IA32_PERF_GLOBAL_CTRL | [`HostPebs`] |
//! | STAR, LSTAR, FMASK, KERNEL_GS_BASE, TSC_AUX (loaded by [`HostState::enter`]) | [`HostState::leave`] |
//!
//! Between two exits of one stay all these are the guest's or cleared: the kernel does not need them
//! with interrupts off. NMI and machine-check handlers run on the GS base, which every exit loads.

use super::bits::dr7;
use super::config::VmcsConfig;
use super::entry;
use super::insn::Current;
use super::msr::{GuestMsrs, SWAPPED};
use super::pebs::HostPebs;
use super::vmcs::*;
use crate::linux::bindings::X86_FEATURE_FSGSBASE;
use crate::linux::desc::{self, DescPtr};
use crate::linux::irqflags::IrqsOff;
use crate::linux::{boot_cpu, cr, msr};
use crate::x86::cpu::index;

/// The kernel's data segment selector (`__KERNEL_DS`). SS itself may hold a null selector in kernel mode.
const KERNEL_DS: u16 = 0x18;

/// What was written to the host-state area, and what has to come back at the end of a stay.
#[derive(Debug, Default)]
pub(super) struct HostState {
    cr3: u64,
    cr4: u64,
    fs_base: u64,
    gdt: DescPtr,
    swapped: [u64; SWAPPED.len()],
    /// `swapped` may not be what the MSRs hold now.
    swapped_stale: bool,
    tsc_aux: bool,
    /// The FS base can be read without RDMSR.
    fsgsbase: bool,
    pub(super) pebs: HostPebs,
    kernel_gs_base: u64,
    debugctl: u64,
    dr7: u64,
    /// The host's DR0 to DR3, while the guest's are loaded.
    dr: Option<[u64; 4]>,
    ds: u16,
    es: u16,
    fs: u16,
    gs: u16,
    ldtr: u16,
}

impl HostState {
    /// Writes the fields that are the same on every CPU. Once per VMCS.
    ///
    /// # Safety
    ///
    /// Called by the kernel in process context of any kind, with the kernel's own selectors in CS and TR.
    pub(super) unsafe fn set_up(&mut self, vm: Current<'_>) {
        // SAFETY: The selectors that the kernel runs on. DS, ES, FS and GS selectors are null: the
        // processor demands RPL 0 (SDM 3C 27.2.3), and 64-bit kernel code does not use them.
        unsafe {
            vm.write_host(HOST_CS_SELECTOR, desc::cs());
            vm.write_host(HOST_SS_SELECTOR, KERNEL_DS);
            vm.write_host(HOST_DS_SELECTOR, 0);
            vm.write_host(HOST_ES_SELECTOR, 0);
            vm.write_host(HOST_FS_SELECTOR, 0);
            vm.write_host(HOST_GS_SELECTOR, 0);
            vm.write_host(HOST_TR_SELECTOR, desc::tr());
            vm.write_host(HOST_PAT, msr::read(index::PAT));
            vm.write_host(HOST_EFER, msr::read(index::EFER));
            vm.write_host(HOST_FS_BASE, self.fs_base);
            vm.write_host(HOST_RIP, entry::host_rip());
        }
    }

    /// Writes the fields that depend on the CPU only. When a stay begins on another CPU than the last.
    pub(super) fn move_to_this_cpu(&mut self, vm: Current<'_>, config: &VmcsConfig) {
        self.gdt = desc::gdt();
        self.tsc_aux = config.hw().rdtscp;
        self.fsgsbase = boot_cpu::has(X86_FEATURE_FSGSBASE);
        self.pebs.move_to_this_cpu(config.pebs);
        self.swapped_stale = true;
        // SAFETY: The values in force on this CPU, which stay the same as long as the kernel runs; by `vm` interrupts
        // are off. All the MSRs exist with VMX.
        unsafe {
            vm.write_host(HOST_CR0, cr::cr0());
            vm.write_host(HOST_GS_BASE, msr::read(index::GS_BASE));
            vm.write_host(HOST_TR_BASE, desc::tss_base_from_gdt());
            vm.write_host(HOST_GDTR_BASE, self.gdt.base);
            vm.write_host(HOST_IDTR_BASE, desc::idt().base);
            vm.write_host(HOST_SYSENTER_CS, msr::read(index::SYSENTER_CS) as u32);
            vm.write_host(HOST_SYSENTER_ESP, msr::read(index::SYSENTER_ESP));
            vm.write_host(HOST_SYSENTER_EIP, msr::read(index::SYSENTER_EIP));
        }
    }

    /// Reads what the swapped MSRs hold on this CPU, to put it back at the end of the stay.
    #[cold]
    #[inline(never)]
    fn read_swapped(&mut self) {
        for (value, index) in self.swapped.iter_mut().zip(SWAPPED) {
            if index != index::TSC_AUX || self.tsc_aux {
                // SAFETY: SYSCALL MSRs exist with 64-bit mode, TSC_AUX with RDTSCP.
                *value = unsafe { msr::read(index) };
            }
        }
    }

    /// Saves what exits destroy, brings the host-state area up to date and loads the guest's MSRs.
    ///
    /// # Safety
    ///
    /// [`HostState::leave`] follows before root operation is left. `cr4` is in force until then.
    #[inline]
    pub(super) unsafe fn enter(
        &mut self,
        vm: Current<'_>,
        cr4: u64,
        guest: &GuestMsrs,
        irqs_off: IrqsOff<'_>,
    ) {
        let cr3 = cr::cr3();
        if cr3 != self.cr3 {
            // SAFETY: The address space in force, which stays while interrupts are off, as they are by `vm`.
            unsafe { vm.write_host(HOST_CR3, cr3) };
            self.cr3 = cr3;
        }
        if cr4 != self.cr4 {
            // SAFETY: The value in force during the stay.
            unsafe { vm.write_host(HOST_CR4, cr4) };
            self.cr4 = cr4;
        }
        // SAFETY: FS_BASE, KERNEL_GS_BASE exist with 64-bit mode, DEBUGCTL with VMX. The kernel has set CR4.FSGSBASE
        // where it believes in the feature.
        let fs_base = unsafe {
            if self.fsgsbase {
                cr::fs_base()
            } else {
                msr::read(index::FS_BASE)
            }
        };
        if fs_base != self.fs_base {
            // SAFETY: The current task's own.
            unsafe { vm.write_host(HOST_FS_BASE, fs_base) };
            self.fs_base = fs_base;
        }
        self.ds = desc::ds();
        self.es = desc::es();
        self.fs = desc::fs();
        self.gs = desc::gs();
        self.ldtr = desc::ldtr();
        self.dr7 = cr::kernel_dr7();
        // SAFETY: As above.
        self.debugctl = unsafe { msr::read(index::DEBUGCTL) };
        self.pebs.begin_stay(vm);
        // SAFETY: As above.
        self.kernel_gs_base = unsafe { msr::read(index::KERNEL_GS_BASE) };
        // SAFETY: Guest values were validated when set (canonical), and the kernel uses none of these MSRs
        // with interrupts off.
        unsafe { msr::write(index::KERNEL_GS_BASE, guest.kernel_gs_base) };
        // The kernel never changes these. KVM does: it leaves its guest's values there until the CPU returns to user
        // mode, and remembers what it has left, so that its guest would run with the kernel's after a stay that put
        // those back. While there is such a return to come, the kernel's own flag says so.
        let foreign = msr::user_return_pending(irqs_off);
        if foreign | self.swapped_stale {
            self.read_swapped();
            self.swapped_stale = foreign;
        }
        for i in 0..SWAPPED.len() {
            self.load(i, self.swapped[i], guest.swapped[i]);
        }
    }

    /// Writes one of [`SWAPPED`] when it changes.
    #[inline(always)]
    fn load(&self, i: usize, from: u64, to: u64) {
        if from != to && (SWAPPED[i] != index::TSC_AUX || self.tsc_aux) {
            // SAFETY: Either the host's own value or a guest's that was validated when set. The kernel uses
            // none of these with interrupts off.
            unsafe { msr::write(SWAPPED[i], to) };
        }
    }

    /// Puts a new guest value of one of [`SWAPPED`] into the MSR, in a stay.
    pub(super) fn reload(&self, i: usize, old: u64, new: u64) {
        self.load(i, old, new);
    }

    /// Loads the guest's breakpoint addresses, in a stay, keeping the host's for its end.
    pub(super) fn load_breakpoints(&mut self, dr: &[u64; 4]) {
        if self.dr.is_none() {
            self.dr = Some(cr::dr0123());
        }
        // SAFETY: DR7 is clear in root operation after the first exit, and before it the host's own
        // breakpoints are off from here on, so that no host access can hit a guest's address.
        unsafe {
            cr::write_dr7(dr7::FIXED);
            cr::write_dr0123(*dr);
        }
    }

    /// Undoes [`HostState::enter`] and what exits destroyed.
    ///
    /// # Safety
    ///
    /// Interrupts have been off since [`HostState::enter`] on the same CPU. `entered` tells whether a guest ran.
    #[inline]
    pub(super) unsafe fn leave(&mut self, guest: &mut GuestMsrs, entered: bool) {
        for i in 0..SWAPPED.len() {
            self.load(i, guest.swapped[i], self.swapped[i]);
        }
        // SAFETY: KERNEL_GS_BASE exists with 64-bit mode.
        guest.kernel_gs_base = unsafe { msr::read(index::KERNEL_GS_BASE) };
        // SAFETY: The value found at the begin.
        unsafe { msr::write(index::KERNEL_GS_BASE, self.kernel_gs_base) };
        self.pebs.end_stay();
        if let Some(dr) = self.dr.take() {
            // SAFETY: The values found at the begin, addresses before enables.
            unsafe {
                cr::write_dr0123(dr);
                cr::write_dr7(self.dr7);
            }
        } else if entered && self.dr7 & dr7::ENABLES != 0 {
            // SAFETY: The value found at the begin.
            unsafe { cr::write_dr7(self.dr7) };
        }
        if !entered {
            return;
        }
        if self.debugctl != 0 {
            // SAFETY: The value found at the begin.
            unsafe { msr::write(index::DEBUGCTL, self.debugctl) };
        }
        // SAFETY: The table that was in force, with its own limit. Interrupts are off as
        // `invalidate_tss_limit` wants.
        unsafe {
            desc::load_gdt(&self.gdt);
            desc::invalidate_tss_limit();
        }
        if self.ldtr != 0 {
            // SAFETY: The selector that was loaded, of the same GDT.
            unsafe { desc::load_ldtr(self.ldtr) };
        }
        if (self.ds | self.es | self.fs | self.gs) != 0 {
            // SAFETY: See the function.
            unsafe { self.reload_selectors() };
        }
    }

    /// Loads the user selectors of a task in compatibility mode, or of one with segments of its own.
    ///
    /// # Safety
    ///
    /// The selectors were loaded on this CPU when the stay began, and GDT and LDT are those of then.
    #[cold]
    unsafe fn reload_selectors(&self) {
        // SAFETY: Selectors that were loaded under the same tables load again; their descriptors change
        // only by code that runs on this CPU. Loading FS replaces its base, so that follows.
        unsafe {
            desc::load_ds(self.ds);
            desc::load_es(self.es);
            if self.fs != 0 {
                desc::load_fs(self.fs);
                msr::write(index::FS_BASE, self.fs_base);
            }
            if self.gs != 0 {
                // Loads the hidden base too, which is KERNEL_GS_BASE while the kernel runs.
                desc::load_gs_index(self.gs);
                msr::write(index::KERNEL_GS_BASE, self.kernel_gs_base);
            }
        }
    }
}
