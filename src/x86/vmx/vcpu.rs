// SPDX-License-Identifier: GPL-2.0
//! One vCPU on VMX: its VMCS, stays, entries and exits.
//!
//! # Translations
//!
//! With EPT every cached guest translation is a combined or guest-physical mapping, tagged with the root
//! of its EPT (and, combined, with VPID and PCID; SDM 3C 29.4.1). Each VM has a root of its own, so the VPID only has
//! to differ between the vCPUs of one VM: it is derived from the vCPU's id and needs no allocator. A clash with
//! kvm_intel's numbers is harmless for the same reason.
//!
//! - The core asks for a flush, the root changes, or the vCPU runs on another CPU than last time (where older
//!   translations may survive, even from an earlier owner of the root's page): INVEPT of the root.
//! - Control registers are written from outside the guest: INVVPID, because the guest's own MOV would have flushed.

use super::caps::{Caps, TSC_FRACTION};
use super::decode::{self, Class, Exceptional};
use super::entry::{self as world, Outcome};
use super::host::{GuestMsrs, HostState, SWAPPED};
use super::insn::{self, Current, InveptType, InvvpidType};
use super::root::RootStay;
use super::state::{self, ControlState, RightsCache};
use super::vmcs::*;
use super::{check, event, revision_page, view, Shared, SHARED};
use crate::linux::boot_cpu;
use crate::linux::irqflags::IrqGuard;
use crate::linux::page::Pages;
use crate::linux::{cr, msr, preempt, smp};
use crate::pr_err_ratelimited;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::cpuid::GuestFeatures;
use crate::x86::cpu::index;
use crate::x86::cpu::regs::dr7::ENABLES as DR7_ENABLES;
use crate::x86::cpu::regs::{cr0, efer, rflags, Gpr};
use crate::x86::cpu::reset;
use crate::x86::cpu::reset::PAT as PAT_RESET;
use crate::x86::exit::{Event, EventKind, Exit};
use crate::x86::mitigate;
use crate::x86::mitigate::SpecCtrl;
use crate::x86::vendor::{
    ApicMode, ApicPages, CpuState, EntryParams, EntryViolation, Exits, Groups, Interruptibility,
    VcpuBackend,
};
use kernel::prelude::*;

/// Exceptions that are always intercepted: #DB, #AC (endless loops in microcode otherwise), #MC.
const ALWAYS_INTERCEPTED: u32 = 1 << vector::DB | 1 << vector::AC | 1 << vector::MC;

/// Vector of #DB.
const DEBUG_EXCEPTION: u8 = 1;

/// IA32_DEBUGCTL: single-step on branches.
const DEBUGCTL_BTF: u64 = 1 << 1;

/// RFLAGS bits that may be set; bit 1 has to be (SDM 3C 27.3.1.4).
const RFLAGS_ALLOWED: u64 = 0x3f_7fd5;

/// No CPU.
const NOWHERE: u32 = u32::MAX;

/// VMCS values as last written, to write only what changes. `None`: unknown, write.
#[derive(Debug, Default)]
struct Written {
    rip: u64,
    rsp: u64,
    rflags: u64,
    proc: u32,
    exceptions: u32,
    tsc_offset: u64,
    tsc_ratio: u64,
    eptp: u64,
    dr7: u64,
    /// Breakpoint addresses in the processor, in this stay.
    dr: Option<[u64; 4]>,
}

/// How a local APIC is virtualised.
struct Apic {
    pages: ApicPages,
    mode: ApicMode,
    eoi_exits: [u32; 8],
    /// `mode` or `eoi_exits` has to be written.
    dirty: bool,
}

/// The vendor part of a vCPU.
pub(crate) struct VmxVcpu {
    shared: &'static Shared,
    /// The VMCS region; its physical address is in `vmcs_phys`.
    _vmcs: Pages,
    vmcs_phys: u64,
    vpid: u16,
    /// Present during a stay.
    stay: Option<RootStay>,
    /// The VMCS has been set up, in the first stay.
    ready: bool,
    /// The launch state is "launched".
    launched: bool,
    /// The last stay was in shared root.
    root_was_shared: bool,
    /// A guest ran in this stay.
    entered: bool,
    /// CPU of the last stay.
    last_cpu: u32,
    /// HOST_RSP as written; see [`world::switch`].
    host_rsp: u64,
    host: HostState,
    msrs: GuestMsrs,
    cstar: u64,
    pat: u64,
    debugctl: u64,
    spec_ctrl: SpecCtrl,
    control: ControlState,
    written: Written,
    rights: RightsCache,
    exceptions: u32,
    /// Optional exits.
    exits: Exits,
    /// Processor-based controls that are not wanted for their sake.
    proc_off: u32,
    tsc_offset: u64,
    tsc_ratio: u64,
    /// The virtualised local APIC, if it is.
    apic: Option<Apic>,
    /// Primary processor-based controls, without windows.
    proc: u32,
    /// The host interrupt that the last exit acknowledged.
    host_vector: Option<u8>,
    /// One of the fields from here to `activity_dirty` asks for work at the next entry.
    stale: bool,
    /// PDPTEs to write at the next entry.
    pdptes: Option<[u64; 4]>,
    /// Flush the EPT root at the next entry.
    flush_root: bool,
    /// Flush the VPID at the next entry.
    flush_linear: bool,
    /// Guest interruptibility state, when known since the last exit; always known outside stays.
    blocking: Option<u32>,
    /// `blocking` has to be written.
    blocking_dirty: bool,
    /// The activity state may not be "active".
    activity_dirty: bool,
    insn_len: u8,
    /// Pin-based controls but for the preemption timer.
    pin: u32,
    /// Host TSC at which the preemption timer is to end the guest's turn; `u64::MAX`: none.
    deadline: u64,
    /// The timer has been switched on at some time; it has a deadline in the VMCS.
    timer_used: bool,
    timer_set: bool,
    interrupted: Option<Event>,
}

impl VmxVcpu {
    #[inline(always)]
    fn caps(&self) -> &'static Caps {
        &self.shared.caps
    }

    /// Access to the VMCS during a stay.
    #[inline(always)]
    fn current(&self) -> Option<Current> {
        // SAFETY: While `stay` is present the VMCS is current on this CPU with interrupts off, and `&self`
        // makes the caller its owner.
        self.stay.as_ref().map(|_| unsafe { Current::assume() })
    }

    /// Runs `f` with the VMCS current: at once in a stay, else in a short one of its own. `None` when root
    /// operation cannot be had, which has been logged.
    fn with_current<R>(&mut self, f: impl FnOnce(&mut Self, Current) -> R) -> Option<R> {
        if let Some(vm) = self.current() {
            return Some(f(self, vm));
        }
        let _irq = IrqGuard::new();
        // SAFETY: Interrupts are off until after `root` is dropped (reverse order of declaration).
        let root = unsafe { self.enter_short() }.ok()?;
        // SAFETY: `root` makes the VMCS current, and lives until the end of the function.
        let vm = unsafe { Current::assume() };
        let result = f(self, vm);
        drop(root);
        Some(result)
    }

    /// Root operation for a moment, with a VMCS that has been set up.
    ///
    /// # Safety
    ///
    /// As for [`RootStay::enter`].
    #[inline(never)]
    unsafe fn enter_short(&mut self) -> Result<RootStay> {
        // SAFETY: The caller answers for the interrupts.
        let root = unsafe { self.enter_root(preempt::raw_cpu()) }?;
        // SAFETY: `root` makes the VMCS current.
        self.set_up(unsafe { Current::assume() })?;
        Ok(root)
    }

    /// Root operation with this VMCS current.
    ///
    /// # Safety
    ///
    /// As for [`RootStay::enter`]; `cpu` is the CPU that runs this.
    #[inline(always)]
    unsafe fn enter_root(&self, cpu: u32) -> Result<RootStay> {
        let region = self.shared.vmxon_region(cpu).ok_or(EIO)?;
        // SAFETY: The region is that CPU's own; the VMCS is ours, and `&mut` vCPUs plus VMCLEAR at the end of every
        // stay make sure that it is active nowhere. The caller answers for the interrupts.
        unsafe { RootStay::enter(region, self.vmcs_phys, !self.ready) }
    }

    /// Sets up the VMCS in its first use.
    #[inline(always)]
    fn set_up(&mut self, vm: Current) -> Result {
        if self.ready {
            return Ok(());
        }
        self.set_up_first(vm)
    }

    #[cold]
    #[inline(never)]
    fn set_up_first(&mut self, vm: Current) -> Result {
        let caps = self.caps();
        // SAFETY: The controls are those of `caps`, computed to confine the guest; the addresses are of a page
        // of ours; zero counts and the all-ones link pointer refer to nothing.
        unsafe {
            vm.write_control(PIN_CONTROLS, caps.pin);
            vm.write_control(PROC_CONTROLS, self.proc);
            vm.write_control(PROC2_CONTROLS, caps.proc2);
            vm.write_control(EXIT_CONTROLS, caps.exit);
            vm.write_control(ENTRY_CONTROLS, caps.entry);
            vm.write_control(EXCEPTION_BITMAP, ALWAYS_INTERCEPTED);
            if caps.proc2 & proc2::PAUSE_LOOP_EXITING != 0 {
                // As in KVM: PAUSEs this close together, for this many ticks (SDM 3C 26.6.13).
                vm.write_control(PLE_GAP, 128);
                let window = if self.exits.pause { 4096 } else { u32::MAX };
                vm.write_control(PLE_WINDOW, window);
            }
            vm.write_control(PF_ERROR_CODE_MASK, 0);
            vm.write_control(PF_ERROR_CODE_MATCH, 0);
            vm.write_control(CR3_TARGET_COUNT, 0);
            vm.write_control(EXIT_MSR_STORE_COUNT, 0);
            vm.write_control(EXIT_MSR_LOAD_COUNT, 0);
            vm.write_control(ENTRY_MSR_LOAD_COUNT, 0);
            vm.write_control(EXIT_MSR_STORE_ADDR, 0);
            vm.write_control(EXIT_MSR_LOAD_ADDR, 0);
            vm.write_control(ENTRY_MSR_LOAD_ADDR, 0);
            vm.write_control(ENTRY_INTR_INFO, 0);
            vm.write_control(MSR_BITMAP, self.shared.msr_bitmap.phys());
            vm.write_control(TSC_OFFSET, 0);
            if caps.proc2 & proc2::TSC_SCALING != 0 {
                self.written.tsc_ratio = 1 << TSC_FRACTION;
                vm.write_control(TSC_MULTIPLIER, self.written.tsc_ratio);
            }
            if caps.vpid() {
                vm.write_control(VPID, self.vpid);
            }
            if caps.hw().xsaves {
                vm.write_control(XSS_EXITING_BITMAP, 0);
            }
            if caps.proc2 & proc2::ENCLS_EXITING != 0 {
                // SGX is not offered: every leaf exits and becomes #UD.
                vm.write_control(ENCLS_EXITING_BITMAP, u64::MAX);
            }
        }
        // SAFETY: The kernel calls this.
        unsafe { self.host.set_up(vm) };
        state::set_up(vm);
        vm.write(VMCS_LINK_POINTER, u64::MAX);
        vm.write(GUEST_DEBUGCTL, 0);
        vm.write(GUEST_PAT, PAT_RESET);
        vm.write(GUEST_INTERRUPTIBILITY, 0);
        vm.write(GUEST_ACTIVITY_STATE, 0);
        vm.write(GUEST_PENDING_DEBUG, 0);
        vm.write(GUEST_SYSENTER_CS, 0);
        vm.write(GUEST_SYSENTER_ESP, 0);
        vm.write(GUEST_SYSENTER_EIP, 0);
        for n in 0..4 {
            vm.write(GUEST_PDPTE0.nth(n), 0);
        }
        self.written = Written {
            rip: 0xfff0,
            rflags: rflags::FIXED,
            proc: self.proc,
            exceptions: ALWAYS_INTERCEPTED,
            dr7: 0x400,
            ..Written::default()
        };
        vm.write(GUEST_RIP, self.written.rip);
        vm.write(GUEST_RSP, 0);
        vm.write(GUEST_RFLAGS, rflags::FIXED);
        vm.write(GUEST_DR7, self.written.dr7);
        state::write(
            vm,
            caps,
            &mut self.control,
            &reset::sregs(cr0::CD | cr0::NW | cr0::ET),
            Groups::ALL,
        );
        let mut proc2 = caps.proc2;
        if let Some(apic) = &mut self.apic {
            // SAFETY: The pages are the vCPU's and the VM's, and live as long as they do. No exit depends on the TPR.
            unsafe {
                vm.write_control(VIRTUAL_APIC_ADDR, apic.pages.registers.as_u64());
                vm.write_control(APIC_ACCESS_ADDR, apic.pages.access.as_u64());
                vm.write_control(TPR_THRESHOLD, 0);
            }
            vm.write(GUEST_INTERRUPT_STATUS, 0);
            if let Some(vector) = caps.posted {
                // SAFETY: The descriptor is the vCPU's and lives as long. Exits by interrupts acknowledge them now, and
                // `after_stay` hands them on.
                unsafe {
                    vm.write_control(POSTED_VECTOR, vector.into());
                    vm.write_control(POSTED_DESCRIPTOR, apic.pages.descriptor.as_u64());
                    self.pin = caps.pin | pin::POSTED_INTERRUPTS;
                    vm.write_control(PIN_CONTROLS, self.pin);
                    vm.write_control(EXIT_CONTROLS, caps.exit | exit::ACK_INTERRUPT);
                }
            }
            proc2 = write_apic(vm, self.shared, apic, self.exits.all_msrs);
        }
        // A VMCS field that the processor refused would read back wrong; the last one of each kind stands
        // for all.
        if vm.read(PROC2_CONTROLS) != proc2 || vm.read(VMCS_LINK_POINTER) != u64::MAX {
            pr_err_ratelimited!(
                "the processor does not take the VMCS fields that its capability MSRs promise\n"
            );
            return Err(EIO);
        }
        self.ready = true;
        Ok(())
    }

    /// Brings the VMCS up to date for an entry.
    #[inline(always)]
    fn prepare(&mut self, vm: Current, cpu: &CpuState, params: &EntryParams) {
        if !cpu.dirty.is_empty() {
            self.write_dirty(vm, cpu);
        }
        self.write_params(vm, cpu, params);
        self.write_regs(vm, cpu);
        if let Some(e) = &params.inject {
            if e.kind == EventKind::Nmi && self.blocking_state(vm) & blocking::NMI != 0 {
                // An NMI whose delivery was interrupted: blocking by NMI must be clear (SDM 3C 27.3.1.5).
                vm.write(
                    GUEST_INTERRUPTIBILITY,
                    self.blocking_state(vm) & !blocking::NMI,
                );
            }
            event::inject(vm, e, self.control.protected());
        }
    }

    /// Runs the entry checks over the VMCS as it is.
    #[inline(never)]
    fn check(&self, vm: Current) -> Result<(), EntryViolation> {
        let rules = &self.shared.rules;
        let mut v = check::VmcsView::default();
        view::read(vm, rules, &mut v);
        check::check_controls(&v.controls, &v.guest, rules)
            .and_then(|()| match self.stay {
                Some(_) => check::check_host(&v.host, &v.controls, rules),
                // Outside a stay the host's part is that of the last one.
                None => Ok(()),
            })
            .and_then(|()| check::check_guest(&v.guest, &v.controls, rules))
    }

    /// The failure that the entry checks find, as the processor would report it.
    #[cold]
    #[inline(never)]
    fn refuse(&self, vm: Current) -> Option<Exit> {
        let v = self.check(vm).err()?;
        pr_err_ratelimited!(
            "entry refused: {} ({}), value {:#x}\n",
            v.rule,
            v.manual,
            v.value
        );
        event::withdraw(vm);
        Some(Exit::EntryFailure(u64::from(
            reason::ENTRY_FAILURE | reason::INVALID_GUEST_STATE,
        )))
    }

    /// Writes dirty system registers.
    #[inline(never)]
    fn write_dirty(&mut self, vm: Current, cpu: &CpuState) {
        let caps = self.caps();
        state::write(vm, caps, &mut self.control, &cpu.sregs, cpu.dirty);
        if cpu.dirty.contains(Groups::CTRL) {
            let mode = if self.control.efer & efer::LMA != 0 {
                entry::IA32E_GUEST
            } else {
                0
            };
            // SAFETY: The controls of `caps` and the guest's mode.
            unsafe { vm.write_control(ENTRY_CONTROLS, caps.entry | mode) };
            // The guest's own write would have flushed what depends on the changed bits.
            self.flush_linear = true;
            self.stale = true;
        }
    }

    /// Writes what the parameters of an entry ask for, where it differs from the last one.
    #[inline(always)]
    fn write_params(&mut self, vm: Current, cpu: &CpuState, params: &EntryParams) {
        let mut proc = self.proc & !self.proc_off;
        if params.irq_window {
            proc |= proc::INTERRUPT_WINDOW;
        }
        if params.nmi_window {
            proc |= proc::NMI_WINDOW;
        }
        if proc != self.written.proc {
            // SAFETY: The controls of `caps`, and windows, which only add exits.
            unsafe { vm.write_control(PROC_CONTROLS, proc) };
            self.written.proc = proc;
        }
        if let Some(status) = params.apic_status {
            vm.write(GUEST_INTERRUPT_STATUS, status);
        }
        let eptp = params.nested_root.as_u64() | self.caps().eptp_flags;
        if eptp != self.written.eptp {
            // SAFETY: The core's nested page table with the flags of `caps`.
            unsafe { vm.write_control(EPT_POINTER, eptp) };
            self.written.eptp = eptp;
            self.flush_root = true;
            self.stale = true;
        }
        if cpu.dr7 != self.written.dr7 || cpu.dr7 & DR7_ENABLES != 0 {
            self.write_debug(vm, cpu);
        }
        if self.stale | params.flush {
            self.flush_root |= params.flush;
            self.write_stale(vm, cpu);
        }
    }

    /// Writes DR7, and the breakpoint addresses when it enables some.
    #[cold]
    #[inline(never)]
    fn write_debug(&mut self, vm: Current, cpu: &CpuState) {
        if cpu.dr7 != self.written.dr7 {
            vm.write(GUEST_DR7, dr7_for_entry(cpu.dr7));
            self.written.dr7 = cpu.dr7;
        }
        if self.stay.is_some() && cpu.dr7 & DR7_ENABLES != 0 && self.written.dr != Some(cpu.dr) {
            self.host.load_breakpoints(&cpu.dr);
            self.written.dr = Some(cpu.dr);
        }
    }

    /// Writes what has been set since the last entry, and flushes translations.
    #[cold]
    #[inline(never)]
    fn write_stale(&mut self, vm: Current, cpu: &CpuState) {
        self.stale = false;
        let exceptions = self.exceptions | ALWAYS_INTERCEPTED;
        if exceptions != self.written.exceptions {
            // SAFETY: Intercepts beyond the fixed ones only add exits.
            unsafe { vm.write_control(EXCEPTION_BITMAP, exceptions) };
            self.written.exceptions = exceptions;
        }
        if self.tsc_offset != self.written.tsc_offset {
            // SAFETY: Only the guest sees its TSC.
            unsafe { vm.write_control(TSC_OFFSET, self.tsc_offset) };
            self.written.tsc_offset = self.tsc_offset;
        }
        if self.tsc_ratio != self.written.tsc_ratio {
            // SAFETY: As above; the core sets it only where the control is on, and never to zero.
            unsafe { vm.write_control(TSC_MULTIPLIER, self.tsc_ratio) };
            self.written.tsc_ratio = self.tsc_ratio;
        }
        if let Some(apic) = self.apic.as_mut().filter(|a| a.dirty) {
            write_apic(vm, self.shared, apic, self.exits.all_msrs);
        }
        if self.blocking_dirty {
            self.write_blocking(vm, cpu);
        }
        if let Some(pdptes) = self.pdptes.take() {
            for (n, value) in (0..).zip(pdptes) {
                vm.write(GUEST_PDPTE0.nth(n), value);
            }
        }
        if self.activity_dirty {
            vm.write(GUEST_ACTIVITY_STATE, 0);
            self.activity_dirty = false;
        }
        if self.stay.is_none() {
            // Only checking: the entry may come on another CPU, and that one has to flush.
            self.stale |= self.flush_root | self.flush_linear;
        } else if self.flush_root {
            self.invalidate_root();
        } else if self.flush_linear {
            self.invalidate_vpid();
        }
    }

    /// Writes a guest interruptibility state set from outside.
    fn write_blocking(&mut self, vm: Current, cpu: &CpuState) {
        vm.write(GUEST_INTERRUPTIBILITY, self.blocking.unwrap_or(0));
        self.blocking_dirty = false;
        self.match_pending_step(vm, cpu.regs.rflags);
    }

    /// While STI or MOV SS blocks, a single-step trap has to be pending exactly when RFLAGS.TF is set and
    /// DEBUGCTL.BTF is not (SDM 3C 27.3.1.5). Exits leave it so, except those by #DB; state set from outside
    /// may break it.
    fn match_pending_step(&mut self, vm: Current, flags: u64) {
        let blocked = self.blocking_state(vm) & (blocking::STI | blocking::MOV_SS) != 0;
        let pending = vm.read(GUEST_PENDING_DEBUG);
        let wanted = if blocked && flags & rflags::TF != 0 && self.debugctl & DEBUGCTL_BTF == 0 {
            pending | PENDING_DEBUG_BS
        } else {
            pending & !PENDING_DEBUG_BS
        };
        if wanted != pending {
            vm.write(GUEST_PENDING_DEBUG, wanted);
        }
    }

    /// INVEPT of this vCPU's root. It covers the combined mappings of every VPID too.
    fn invalidate_root(&mut self) {
        let kind = if self.caps().invept_single() {
            InveptType::SingleContext
        } else {
            InveptType::AllContexts
        };
        // SAFETY: Called in a stay.
        if unsafe { insn::invept(kind, self.written.eptp) }.is_err() {
            pr_err_ratelimited!("INVEPT failed\n");
        }
        self.flush_root = false;
        self.flush_linear = false;
    }

    /// INVVPID of this vCPU. Without VPIDs every entry flushes.
    fn invalidate_vpid(&mut self) {
        self.flush_linear = false;
        if !self.caps().vpid() {
            return;
        }
        let kind = if self.caps().invvpid_single() {
            InvvpidType::SingleContext
        } else {
            InvvpidType::AllContexts
        };
        // SAFETY: Called in a stay.
        if unsafe { insn::invvpid(kind, self.vpid) }.is_err() {
            pr_err_ratelimited!("INVVPID failed\n");
        }
    }

    /// Writes the instruction pointer, stack pointer and flags that changed since the last exit.
    #[inline(always)]
    fn write_regs(&mut self, vm: Current, cpu: &CpuState) {
        let regs = &cpu.regs;
        if regs.rip != self.written.rip {
            vm.write(GUEST_RIP, regs.rip);
            self.written.rip = regs.rip;
        }
        let rsp = regs.gpr[Gpr::Rsp as usize];
        if rsp != self.written.rsp {
            vm.write(GUEST_RSP, rsp);
            self.written.rsp = rsp;
        }
        if regs.rflags != self.written.rflags {
            vm.write(GUEST_RFLAGS, (regs.rflags & RFLAGS_ALLOWED) | rflags::FIXED);
            if (regs.rflags ^ self.written.rflags) & rflags::TF != 0 {
                self.match_pending_step(vm, regs.rflags);
            }
            self.written.rflags = regs.rflags;
        }
    }

    /// Sets the preemption timer (SDM 3C 26.5.1, 27.7.4) to what is left until the deadline. Later than that rather than earlier, by
    /// less than one count; a value that is too large for it ends in an exit on the way.
    #[inline]
    fn write_timer(&mut self, vm: Current) {
        let Some(rate) = self.caps().timer_rate else {
            return;
        };
        self.timer_set = self.deadline != u64::MAX;
        let mut counts = u32::MAX;
        if self.timer_set {
            let left = self.deadline.saturating_sub(boot_cpu::rdtsc());
            let whole = left.wrapping_shr(rate);
            let more = u64::from(whole.wrapping_shl(rate) != left);
            counts = u32::try_from(whole.saturating_add(more)).unwrap_or(u32::MAX);
        }
        if !self.timer_used {
            self.timer_used = true;
            // SAFETY: One more reason to exit.
            unsafe { vm.write_control(PIN_CONTROLS, self.pin | pin::PREEMPTION_TIMER) };
        }
        vm.write(PREEMPTION_TIMER_VALUE, counts);
    }

    /// Reads them after an exit.
    #[inline(always)]
    fn read_regs(&mut self, vm: Current, cpu: &mut CpuState) {
        let (rip, rsp, flags) = (
            vm.read(GUEST_RIP),
            vm.read(GUEST_RSP),
            vm.read(GUEST_RFLAGS),
        );
        cpu.regs.rip = rip;
        cpu.regs.gpr[Gpr::Rsp as usize] = rsp;
        cpu.regs.rflags = flags;
        self.written.rip = rip;
        self.written.rsp = rsp;
        self.written.rflags = flags;
    }

    /// Sets the guest's blocking by NMI, after an exit that came with NMIs unblocked by an IRET that did not complete.
    #[cold]
    #[inline(never)]
    fn block_nmi(&mut self, vm: Current) {
        let blocking = self.blocking_state(vm) | blocking::NMI;
        self.blocking = Some(blocking);
        vm.write(GUEST_INTERRUPTIBILITY, blocking);
    }

    /// The interruptibility state, read at most once per exit.
    #[inline(always)]
    fn blocking_state(&mut self, vm: Current) -> u32 {
        match self.blocking {
            Some(b) => b,
            None => {
                let b = vm.read(GUEST_INTERRUPTIBILITY);
                self.blocking = Some(b);
                b
            }
        }
    }

    /// The entry did not happen.
    #[cold]
    #[inline(never)]
    fn entry_failed(&mut self, vm: Current, outcome: Outcome) -> Exit {
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

    /// Exit reason 0.
    #[inline(never)]
    fn exceptional(&mut self, vm: Current, cpu: &mut CpuState) -> Exit {
        match decode::exception(vm) {
            Exceptional::Nmi => {
                // SAFETY: This was an NMI exit; interrupts are off; `probe` refused FRED.
                unsafe { world::deliver_nmi() };
                self.interrupted = event::interrupted(vm);
                Exit::HostNmi
            }
            Exceptional::MachineCheck => {
                // SAFETY: This was a machine-check exit; interrupts are off; `probe` refused FRED.
                unsafe { world::deliver_machine_check() };
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
                    self.block_nmi(vm);
                }
                // INT1 exits with RIP at itself, but its #DB is a trap.
                cpu.regs.rip = cpu.regs.rip.wrapping_add(u64::from(trap_len));
                if exception.vector == DEBUG_EXCEPTION {
                    self.match_pending_step(vm, cpu.regs.rflags);
                }
                if software {
                    self.insn_len = vm.read(EXIT_INSTRUCTION_LEN) as u8;
                }
                Exit::Exception(exception)
            }
        }
    }

    /// Turns the exit that just happened into its neutral form.
    #[inline(never)]
    fn decode(&mut self, vm: Current, cpu: &mut CpuState, reason: u32) -> Exit {
        if reason == reason::EXCEPTION_OR_NMI {
            return self.exceptional(vm, cpu);
        }
        if reason == reason::EXTERNAL_INTERRUPT {
            let info = vm.read(EXIT_INTR_INFO);
            // Valid where the exit acknowledges (SDM 3C 25.9.2).
            self.host_vector = (info & intr::VALID != 0).then_some(info as u8);
            return Exit::HostInterrupt;
        }
        let (exit, class) = decode::decode(vm, reason & 0xffff);
        match class {
            Class::Instruction => self.insn_len = vm.read(EXIT_INSTRUCTION_LEN) as u8,
            Class::Delivery => self.interrupted = event::interrupted(vm),
            Class::Other => {
                if matches!(exit, Exit::TripleFault) {
                    self.activity_dirty = true;
                    self.stale = true;
                }
            }
        }
        exit
    }

    /// EPT violation.
    #[inline(never)]
    fn nested_fault(&mut self, vm: Current) -> Exit {
        let q = vm.read(EXIT_QUALIFICATION);
        let info = vm.read(IDT_VECTORING_INFO);
        if info & intr::VALID != 0 {
            self.interrupted = event::interrupted(vm);
        } else if q & decode::QUAL_NMI_UNBLOCKED != 0 {
            self.block_nmi(vm);
        }
        decode::nested_fault(vm, q)
    }

    /// Controls that the optional exits take away.
    fn choose_controls(&mut self) {
        let x2apic = self
            .apic
            .as_ref()
            .is_some_and(|a| a.mode == ApicMode::X2apic);
        self.proc_off = 0;
        // Without bitmaps all of them exit (SDM 3C 26.1.3). A virtualised x2APIC needs one.
        if self.exits.all_msrs && !x2apic {
            self.proc_off |= proc::MSR_BITMAPS;
        }
        if !self.exits.hlt {
            self.proc_off |= proc::HLT_EXITING;
        }
    }

    /// Position of `index` in [`SWAPPED`].
    fn swapped_slot(index: u32) -> Option<usize> {
        SWAPPED.iter().position(|&i| i == index)
    }
}

/// Writes the controls of a virtualised local APIC; the secondary ones it needs.
fn write_apic(vm: Current, shared: &Shared, apic: &mut Apic, all_msrs: bool) -> u32 {
    apic.dirty = false;
    let (_, proc2) = shared.caps.apicv_controls(apic.mode);
    let bitmap = match apic.mode {
        ApicMode::X2apic if all_msrs => &shared.x2apic_only_bitmap,
        ApicMode::X2apic => &shared.x2apic_bitmap,
        _ => &shared.msr_bitmap,
    };
    let [a, b, c, d, e, f, g, h] = apic.eoi_exits.map(u64::from);
    // SAFETY: The controls of `caps`; with them the guest reaches its own registers only. The APIC-access page is mapped only
    // while every vCPU of the VM virtualises accesses to it: the core's promise. More exits by EOI do no harm.
    unsafe {
        vm.write_control(PROC2_CONTROLS, proc2);
        vm.write_control(MSR_BITMAP, bitmap.phys());
        vm.write_control(EOI_EXIT_BITMAP0, a | b << 32);
        vm.write_control(EOI_EXIT_BITMAP1, c | d << 32);
        vm.write_control(EOI_EXIT_BITMAP2, e | f << 32);
        vm.write_control(EOI_EXIT_BITMAP3, g | h << 32);
    }
    proc2
}

/// DR7 as VM entry accepts it: bits 63:32 clear (SDM 3C 27.3.1.1), bit 10 set, general detect clear because
/// debug-register accesses exit anyway.
const fn dr7_for_entry(dr7: u64) -> u64 {
    (dr7 & 0xffff_0bff & !(1 << 13)) | 0x400
}

impl VcpuBackend for VmxVcpu {
    fn new(id: u32, _features: &GuestFeatures) -> Result<Self> {
        let shared = SHARED.get().ok_or(ENODEV)?;
        let vmcs = revision_page(&shared.caps)?;
        Ok(Self {
            shared,
            vmcs_phys: vmcs.phys(),
            _vmcs: vmcs,
            // 1 to 65535; ids of one VM are unique and far below.
            vpid: (id % 0xffff) as u16 + 1,
            stay: None,
            ready: false,
            launched: false,
            root_was_shared: false,
            entered: false,
            last_cpu: NOWHERE,
            host_rsp: 0,
            host: HostState::default(),
            msrs: GuestMsrs::default(),
            cstar: 0,
            pat: PAT_RESET,
            debugctl: 0,
            spec_ctrl: SpecCtrl::RESET,
            control: ControlState::default(),
            written: Written::default(),
            rights: RightsCache::default(),
            exceptions: 0,
            exits: Exits::default(),
            proc_off: 0,
            tsc_offset: 0,
            tsc_ratio: 1 << TSC_FRACTION,
            apic: None,
            proc: shared.caps.proc,
            host_vector: None,
            stale: true,
            pdptes: None,
            flush_root: true,
            flush_linear: false,
            blocking: Some(0),
            blocking_dirty: false,
            activity_dirty: false,
            insn_len: 0,
            pin: shared.caps.pin,
            deadline: u64::MAX,
            timer_used: false,
            timer_set: false,
            interrupted: None,
        })
    }

    fn begin_stay(&mut self, cpu: u32) -> Result {
        // SAFETY: Interrupts are off until `end_stay`, by the contract of this method.
        let root = unsafe { self.enter_root(cpu) }?;
        // SAFETY: `root` has just made the VMCS current; when it moves into `stay` below that stays true.
        let vm = unsafe { Current::assume() };
        self.set_up(vm)?;
        if cpu != self.last_cpu {
            // SAFETY: Interrupts are off.
            unsafe { self.host.move_to_this_cpu(vm, self.caps()) };
            self.last_cpu = cpu;
            self.flush_root = true;
            self.stale = true;
        } else if root.is_shared() | self.root_was_shared {
            self.host.read_swapped();
        }
        self.root_was_shared = root.is_shared();
        // SAFETY: Interrupts are off until `end_stay` has called `leave`.
        unsafe { self.host.enter(vm, root.cr4(), &self.msrs) };
        self.spec_ctrl.begin_stay();
        self.launched = false;
        self.entered = false;
        self.written.dr = None;
        self.stay = Some(root);
        Ok(())
    }

    fn end_stay(&mut self) {
        let Some(vm) = self.current() else { return };
        // For callers after the stay, which would have to open one to ask.
        self.blocking_state(vm);
        // SAFETY: Same CPU as `begin_stay`, interrupts off all along, by the contract of the two.
        unsafe { self.host.leave(&mut self.msrs, self.entered) };
        self.stay = None;
    }

    #[inline]
    fn after_stay(&mut self) {
        if let Some(vector) = self.host_vector.take() {
            // SAFETY: An exit acknowledged it, nobody else has delivered it, and interrupts have been off since then; FRED was
            // refused by `probe`; the stay is over, and the caller is about to enable interrupts.
            unsafe { smp::host_interrupt(vector) };
        }
    }

    #[inline(never)] // See `world::switch`.
    fn enter(&mut self, cpu: &mut CpuState, params: Option<&EntryParams>) -> Exit {
        let Some(vm) = self.current() else {
            // The core never does that.
            return Exit::EntryFailure(u64::MAX);
        };
        match params {
            Some(params) => {
                self.prepare(vm, cpu, params);
                if params.check {
                    if let Some(exit) = self.refuse(vm) {
                        return exit;
                    }
                }
            }
            None => {
                if !cpu.dirty.is_empty() {
                    self.write_dirty(vm, cpu);
                }
                if self.stale {
                    self.write_stale(vm, cpu);
                }
                self.write_regs(vm, cpu);
            }
        }
        if self.timer_set | (self.deadline != u64::MAX) {
            self.write_timer(vm);
        }
        if cr::cr2() != cpu.sregs.cr2 {
            // SAFETY: The kernel reads CR2 only at the begin of its page-fault handler.
            unsafe { cr::write_cr2(cpu.sregs.cr2) };
        }

        self.spec_ctrl.before_enter();
        mitigate::before_enter();
        // SAFETY: In a stay interrupts are off and host state and MSRs are set; `launched` follows the processor's
        // launch state; the VMCS was set up and its controls are those of `caps`.
        let outcome = unsafe { world::switch(&mut cpu.regs, &mut self.host_rsp, self.launched) };
        mitigate::after_exit();
        self.spec_ctrl.after_exit();

        cpu.sregs.cr2 = cr::cr2();
        self.insn_len = 0;
        self.interrupted = None;
        if outcome != Outcome::Exit {
            return self.entry_failed(vm, outcome);
        }
        self.entered = true;
        self.blocking = None;
        let reason = vm.read(EXIT_REASON);
        if reason & reason::ENTRY_FAILURE != 0 {
            return self.failed_late(vm, reason);
        }
        self.launched = true;
        cpu.avail = Groups::NONE;
        cpu.dirty = Groups::NONE;
        self.read_regs(vm, cpu);
        if let Some(exit) = decode::frequent(reason) {
            self.insn_len = vm.read(EXIT_INSTRUCTION_LEN) as u8;
            return exit;
        }
        if reason == reason::EPT_VIOLATION {
            return self.nested_fault(vm);
        }
        if reason == reason::IO {
            self.insn_len = vm.read(EXIT_INSTRUCTION_LEN) as u8;
            return decode::io(vm.read(EXIT_QUALIFICATION));
        }
        self.decode(vm, cpu, reason)
    }

    #[inline]
    fn was_interrupted(&self) -> bool {
        self.interrupted.is_some()
    }

    #[inline]
    fn end_shadow(&mut self) {
        let state = match (self.blocking, self.current()) {
            (Some(b), _) => b,
            (None, Some(vm)) => self.blocking_state(vm),
            (None, None) => 0,
        };
        if state & (blocking::STI | blocking::MOV_SS) != 0 {
            self.blocking = Some(state & !(blocking::STI | blocking::MOV_SS));
            self.blocking_dirty = true;
            self.stale = true;
        }
    }

    fn load(&mut self, cpu: &mut CpuState, groups: Groups) {
        // A short stay costs more than the reads: what else may be asked for comes along.
        let wanted = match self.stay {
            Some(_) => groups,
            None if cpu.avail.contains(groups) => return,
            None => Groups::ALL,
        };
        let missing = wanted.without(cpu.avail);
        if missing.is_empty() {
            return;
        }
        self.with_current(|v, vm| {
            state::load(vm, &v.control, &mut v.rights, &mut cpu.sregs, missing);
        });
        cpu.avail = cpu.avail.union(missing);
    }

    /// The DPL of SS in every mode (SDM 3C 25.4.1).
    #[inline]
    fn cpl(&self) -> Option<u8> {
        let vm = self.current()?;
        Some(
            (vm.read(GUEST_ES_ACCESS_RIGHTS.nth(crate::x86::cpu::regs::Seg::Ss as u32)) >> 5) as u8
                & 3,
        )
    }

    #[inline]
    fn insn_len(&self) -> Option<u8> {
        match self.insn_len {
            0 => None,
            n => Some(n),
        }
    }

    fn insn_bytes(&self) -> Option<([u8; 15], u8)> {
        None
    }

    #[inline]
    fn take_interrupted(&mut self) -> Option<Event> {
        self.interrupted.take()
    }

    #[inline]
    fn interruptibility(&mut self) -> Interruptibility {
        // Known at the latest at the end of each stay.
        let state = match (self.blocking, self.current()) {
            (Some(b), _) => b,
            (None, Some(vm)) => self.blocking_state(vm),
            (None, None) => 0,
        };
        Interruptibility {
            sti: state & blocking::STI != 0,
            mov_ss: state & blocking::MOV_SS != 0,
            nmi: state & blocking::NMI != 0,
        }
    }

    fn set_interruptibility(&mut self, i: Interruptibility) {
        let mut state = 0;
        // Both at once fail the entry (SDM 3C 27.3.1.5); MOV SS blocks more.
        if i.mov_ss {
            state |= blocking::MOV_SS;
        } else if i.sti {
            state |= blocking::STI;
        }
        if i.nmi {
            state |= blocking::NMI;
        }
        if self.blocking != Some(state) {
            self.blocking = Some(state);
            self.blocking_dirty = true;
            self.stale = true;
        }
    }

    fn msr(&mut self, index: u32) -> Option<u64> {
        if let Some(i) = Self::swapped_slot(index) {
            return self.msrs.swapped.get(i).copied();
        }
        match index {
            index::CSTAR => Some(self.cstar),
            index::PAT => Some(self.pat),
            index::DEBUGCTL => Some(self.debugctl),
            index::SPEC_CTRL => Some(self.spec_ctrl.get()),
            index::KERNEL_GS_BASE if self.stay.is_some() => {
                // SAFETY: The MSR exists with 64-bit mode, and holds the guest's value in a stay.
                Some(unsafe { msr::read(index) })
            }
            index::KERNEL_GS_BASE => Some(self.msrs.kernel_gs_base),
            index::SYSENTER_CS => self.with_current(|_, vm| u64::from(vm.read(GUEST_SYSENTER_CS))),
            index::SYSENTER_ESP => self.with_current(|_, vm| vm.read(GUEST_SYSENTER_ESP)),
            index::SYSENTER_EIP => self.with_current(|_, vm| vm.read(GUEST_SYSENTER_EIP)),
            index::FS_BASE => self.with_current(|_, vm| vm.read(GUEST_FS_BASE)),
            index::GS_BASE => self.with_current(|_, vm| vm.read(GUEST_GS_BASE)),
            _ => None,
        }
    }

    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        if let Some(i) = Self::swapped_slot(index) {
            if let Some(slot) = self.msrs.swapped.get_mut(i) {
                let old = core::mem::replace(slot, value);
                if self.stay.is_some() {
                    self.host.reload(i, old, value);
                }
            }
            return true;
        }
        let done = match index {
            index::CSTAR => {
                // No effect on Intel, where SYSCALL needs 64-bit mode; but it can be read back.
                self.cstar = value;
                Some(())
            }
            index::PAT => {
                self.pat = value;
                self.with_current(|_, vm| vm.write(GUEST_PAT, value))
            }
            index::DEBUGCTL => {
                self.debugctl = value;
                self.with_current(|_, vm| vm.write(GUEST_DEBUGCTL, value))
            }
            index::SPEC_CTRL => {
                self.spec_ctrl.set(value);
                Some(())
            }
            index::KERNEL_GS_BASE => {
                if self.stay.is_some() {
                    // SAFETY: The core has checked that the value is canonical, and the MSR is the guest's in a
                    // stay.
                    unsafe { msr::write(index, value) };
                }
                self.msrs.kernel_gs_base = value;
                Some(())
            }
            index::SYSENTER_CS => {
                self.with_current(|_, vm| vm.write(GUEST_SYSENTER_CS, value as u32))
            }
            index::SYSENTER_ESP => self.with_current(|_, vm| vm.write(GUEST_SYSENTER_ESP, value)),
            index::SYSENTER_EIP => self.with_current(|_, vm| vm.write(GUEST_SYSENTER_EIP, value)),
            index::FS_BASE => self.with_current(|_, vm| vm.write(GUEST_FS_BASE, value)),
            index::GS_BASE => self.with_current(|_, vm| vm.write(GUEST_GS_BASE, value)),
            _ => return false,
        };
        done.is_some()
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
        self.stale = true;
    }

    #[inline]
    fn set_deadline(&mut self, host_tsc: u64) {
        self.deadline = host_tsc;
    }

    fn set_tsc_ratio(&mut self, ratio: u64) {
        self.tsc_ratio = ratio;
        self.stale = true;
    }

    fn set_exception_intercepts(&mut self, vectors: u32) {
        self.exceptions = vectors;
        self.stale = true;
    }

    fn virtualize_apic(&mut self, pages: &ApicPages) -> bool {
        if !self.caps().apicv || self.ready {
            return false;
        }
        let mode = ApicMode::Xapic;
        self.proc = self.caps().apicv_controls(mode).0;
        self.apic = Some(Apic {
            pages: *pages,
            mode,
            eoi_exits: [0; 8],
            dirty: true,
        });
        true
    }

    fn set_apic_mode(&mut self, mode: ApicMode) {
        if let Some(apic) = self.apic.as_mut().filter(|a| a.mode != mode) {
            apic.mode = mode;
            apic.dirty = true;
            // What was cached may tell of the APIC-access page as of the mode before.
            self.flush_root = true;
            self.stale = true;
            self.choose_controls();
        }
    }

    fn set_eoi_exits(&mut self, vectors: &[u32; 8]) {
        if let Some(apic) = &mut self.apic {
            apic.eoi_exits = *vectors;
            apic.dirty = true;
            self.stale = true;
        }
    }

    fn set_exits(&mut self, exits: Exits) {
        self.exits = exits;
        if let Some(apic) = &mut self.apic {
            apic.dirty = true;
            self.stale = true;
        }
        self.choose_controls();
    }

    fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        self.pdptes = Some(pdptes);
        self.stale = true;
    }

    fn pdptes(&mut self) -> Option<[u64; 4]> {
        if self.pdptes.is_none() {
            let mut read = [0; 4];
            self.with_current(|_, vm| {
                for (n, value) in (0..).zip(&mut read) {
                    *value = vm.read(GUEST_PDPTE0.nth(n));
                }
            });
            return Some(read);
        }
        self.pdptes
    }

    fn check_entry(
        &mut self,
        cpu: &mut CpuState,
        params: &EntryParams,
    ) -> Result<(), EntryViolation> {
        let result = self.with_current(|v, vm| {
            v.prepare(vm, cpu, params);
            let result = v.check(vm);
            event::withdraw(vm);
            result
        });
        result.unwrap_or(Ok(()))
    }
}

impl VmxVcpu {
    /// The entry failed after the processor had begun to load guest state (SDM 3C 27.8). The host state is
    /// loaded as by an exit, but the guest's is as before, and the launch state too.
    #[cold]
    #[inline(never)]
    fn failed_late(&mut self, vm: Current, reason: u32) -> Exit {
        event::withdraw(vm);
        if reason & 0xffff == reason::MACHINE_CHECK_ENTRY {
            // SAFETY: A machine check during the entry; interrupts are off; `probe` refused FRED.
            unsafe { world::deliver_machine_check() };
            return Exit::HostMachineCheck;
        }
        pr_err_ratelimited!(
            "VM entry failed: reason {:#x}, qualification {:#x}\n",
            reason,
            vm.read(EXIT_QUALIFICATION)
        );
        Exit::EntryFailure(u64::from(reason))
    }
}

impl VmxVcpu {}
