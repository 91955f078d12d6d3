// SPDX-License-Identifier: GPL-2.0
//! One vCPU under SVM: controls, entry, and what an exit means.

use super::check;
use super::entry;
use super::vmcb::{exit, misc1, misc2, vintr, Vmcb, VmcbSegment};
use super::{Cpu, State, STATE, TSC_RATIO_ONE};
use crate::linux::irqflags;
use crate::linux::page::Pages;
use crate::linux::{boot_cpu, cr, msr};
use crate::mem::addr::Gpa;
use crate::pr_warn_ratelimited;
use crate::x86::cpu::control;
use crate::x86::cpu::events::{interrupt_event, vector as exceptions};
use crate::x86::cpu::index;
use crate::x86::cpu::regs::dr6::RESET as DR6_RESET;
use crate::x86::cpu::regs::dr7::{ENABLES as DR7_ENABLES, RESET as DR7_RESET};
use crate::x86::cpu::regs::{cr0, cr4, efer, rflags, DescTable, Gpr, Seg};
use crate::x86::cpu::reset::PAT as PAT_RESET;
use crate::x86::exit::{CrAccess, CrOp, Event, EventKind, Exception, Exit, Io, NestedFault};
use crate::x86::mitigate;
use crate::x86::vendor::{
    CpuState, EntryParams, EntryViolation, Exits, Groups, Interruptibility, LongCode, VcpuBackend,
};
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Intercepts of CR0 and CR8 writes (APM 2 15.8.1).
const CR0_WRITE: u32 = 1 << 16;
const CR8_WRITE: u32 = 1 << (16 + 8);
/// A virtual interrupt as soon as the guest can take one, whatever its task priority (APM 2 15.21.4).
const VIRTUAL_IRQ: u64 = vintr::V_IRQ | vintr::V_INTR_PRIO_MAX | vintr::V_IGN_TPR;

/// EVENTINJ and EXITINTINFO (APM 2 15.20, 15.7.2).
mod event {
    pub(super) const VALID: u64 = 1 << 31;
    pub(super) const ERROR_CODE_VALID: u64 = 1 << 11;
    pub(super) const INTR: u64 = 0;
    pub(super) const NMI: u64 = 2;
    pub(super) const EXCEPTION: u64 = 3;
}

/// TLB_CONTROL (APM 2 15.16.1).
mod tlb_control {
    pub(super) const NOTHING: u8 = 0;
    pub(super) const FLUSH_ALL: u8 = 1;
    pub(super) const FLUSH_GUEST: u8 = 3;
}

/// NMI blocking, which SVM leaves to software: from injection to the completion of IRET.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NmiMask {
    Open,
    /// Blocked; IRET is intercepted.
    Blocked,
    /// An IRET at this RIP has been met and is about to run; open as soon as another instruction is reached.
    Iret(u64),
}

/// Guest and host debug registers, while the guest has breakpoints of its own.
struct HostDebug {
    dr7: u64,
    dr: Option<[u64; 4]>,
}

/// The SVM part of a vCPU.
pub(crate) struct SvmVcpu {
    page: Pages,
    vmcb: NonNull<Vmcb>,
    state: &'static State,
    /// CPU and ASID generation of `asid`.
    asid_cpu: u32,
    asid_generation: u64,
    /// The CPU of the current stay, and its number; none outside.
    stay: Option<(&'static Cpu, u32)>,
    /// Value of `host_extra` of this CPU for the current stay.
    host_extra: u64,
    nmi: NmiMask,
    /// RFLAGS.TF was set by us to find the end of an IRET.
    stepping: bool,
    /// Guest's TSC_AUX.
    tsc_aux: u64,
    /// By which the guest's TSC is scaled.
    tsc_ratio: u64,
    host_debug: HostDebug,
    /// CR4.MCE as the guest set it.
    guest_mce: u64,
    /// System registers were written since the last check, where that matters ([`State::tcg`]).
    unchecked: bool,
    /// EFER.LME while it is kept from the processor ([`State::tcg`]).
    hidden_lme: u64,
    extra_exceptions: u32,
    /// Vector of a virtual interrupt that the last exit came before.
    undelivered: Option<u8>,
    insn_len: u8,
    nested_exit: bool,
}

// SAFETY: `vmcb` points into `page`, which the struct owns; nothing is bound to a thread.
unsafe impl Send for SvmVcpu {}

impl SvmVcpu {
    /// The VMCB.
    fn vmcb(&self) -> &Vmcb {
        // SAFETY: Points to a page that `self` owns, zeroed at allocation and written only through `&mut self` and by
        // VMRUN, which runs inside a call that has `&mut self`.
        unsafe { self.vmcb.as_ref() }
    }

    /// The VMCB for writing.
    fn vmcb_mut(&mut self) -> &mut Vmcb {
        // SAFETY: As in `vmcb`.
        unsafe { self.vmcb.as_mut() }
    }

    /// Gives this vCPU an ASID that is valid on this CPU, fresh if `fresh` says so (APM 2 15.15.2, 15.16).
    fn assign_asid(&mut self, cpu: &Cpu, cpu_id: u32, flush: bool) {
        let generation = cpu.generation.load(Ordering::Relaxed);
        let known = self.asid_cpu == cpu_id && self.asid_generation == generation;
        if known && !flush {
            self.vmcb_mut().control.tlb_control = tlb_control::NOTHING;
            return;
        }
        if known && self.state.flush_by_asid {
            self.vmcb_mut().control.tlb_control = tlb_control::FLUSH_GUEST;
            return;
        }
        let mut tlb = tlb_control::NOTHING;
        let mut asid = cpu.next_asid.load(Ordering::Relaxed);
        let mut generation = generation;
        if asid >= self.state.asids {
            generation = generation.wrapping_add(1);
            cpu.generation.store(generation, Ordering::Relaxed);
            asid = 1;
            tlb = tlb_control::FLUSH_ALL;
        } else if asid == 1 {
            // First of a generation that began by `cpu_up`.
            tlb = tlb_control::FLUSH_ALL;
        }
        cpu.next_asid.store(asid + 1, Ordering::Relaxed);
        self.asid_cpu = cpu_id;
        self.asid_generation = generation;
        let c = &mut self.vmcb_mut().control;
        c.asid = asid;
        c.tlb_control = tlb;
    }

    /// An entry was refused. Nobody says whether the flush that it asked for was done before, so that none of the ASIDs of this
    /// generation is trusted.
    #[cold]
    fn drop_asids(&mut self, cpu: &Cpu) {
        cpu.generation.fetch_add(1, Ordering::Relaxed);
        cpu.next_asid.store(1, Ordering::Relaxed);
        self.asid_cpu = u32::MAX;
    }

    /// The vector of `params.inject` if it has to be delivered as a virtual interrupt (see [`State::virtual_injection`]). Where an
    /// exit is wanted as soon as another interrupt can be delivered, V_IRQ is taken.
    #[inline]
    fn virtual_irq(&self, params: &EntryParams) -> Option<u8> {
        match params.inject {
            Some(Event {
                kind: EventKind::ExternalInterrupt,
                vector,
                ..
            }) if self.state.virtual_injection && !params.irq_window => Some(vector),
            _ => None,
        }
    }

    /// Exits of loops of PAUSE (APM 2 15.14.4), as many PAUSEs apart as in KVM. Without a filter every PAUSE would exit: none does.
    fn set_pause_exits(&mut self, on: bool) {
        const COUNT: u16 = 3000;
        const THRESHOLD: u16 = 128;
        let on = on && self.state.caps.pause_exit;
        let threshold = if self.state.pause_threshold {
            THRESHOLD
        } else {
            0
        };
        let c = &mut self.vmcb_mut().control;
        if on {
            c.intercept_misc1 |= misc1::PAUSE;
            c.pause_filter_count = COUNT;
            c.pause_filter_threshold = threshold;
        } else {
            c.intercept_misc1 &= !misc1::PAUSE;
        }
    }

    fn set_iret_intercept(&mut self, on: bool) {
        let m = &mut self.vmcb_mut().control.intercept_misc1;
        if on {
            *m |= misc1::IRET;
        } else {
            *m &= !misc1::IRET;
        }
    }

    fn write_dirty(&mut self, cpu: &mut CpuState) {
        let dirty = cpu.dirty;
        let host_mce = cr::cr4() & cr4::MCE;
        if dirty.intersects(Groups::CTRL) {
            self.guest_mce = cpu.sregs.cr4 & cr4::MCE;
        }
        let s = &cpu.sregs;
        if self.state.tcg && dirty.intersects(Groups::CTRL) {
            let hide = s.efer & efer::LME != 0 && s.cr0 & cr0::PG == 0 && s.cr4 & cr4::PAE == 0;
            self.hidden_lme = if hide { efer::LME } else { 0 };
            let c = &mut self.vmcb_mut().control;
            // In this state paging may not be enabled (#GP, APM 2 14.6.1), which the processor no longer sees.
            c.intercept_cr = c.intercept_cr & !CR0_WRITE | if hide { CR0_WRITE } else { 0 };
        }
        let efer = (s.efer | efer::SVME) & !self.hidden_lme;
        let save = &mut self.vmcb_mut().save;
        if dirty.intersects(Groups::CODE) {
            save.cs = VmcbSegment::from_neutral(s.seg(Seg::Cs));
            save.ss = VmcbSegment::from_neutral(s.seg(Seg::Ss));
            // The CPL is kept apart from SS.DPL (APM 2 15.5.1).
            save.cpl = s.seg(Seg::Ss).dpl & 3;
        }
        if dirty.intersects(Groups::SEGS) {
            save.es = VmcbSegment::from_neutral(s.seg(Seg::Es));
            save.ds = VmcbSegment::from_neutral(s.seg(Seg::Ds));
            save.fs = VmcbSegment::from_neutral(s.seg(Seg::Fs));
            save.gs = VmcbSegment::from_neutral(s.seg(Seg::Gs));
            save.ldtr = VmcbSegment::from_neutral(s.seg(Seg::Ldtr));
            save.tr = VmcbSegment::from_neutral(s.seg(Seg::Tr));
        }
        if dirty.intersects(Groups::CTRL) {
            save.cr0 = s.cr0;
            save.cr3 = s.cr3;
            // With MCE clear a machine check would shut the processor down instead of exiting (APM 2 15.12.14). The guest does not
            // see the bit: reads of CR4 are intercepted.
            save.cr4 = s.cr4 | host_mce;
            save.efer = efer;
        }
        if dirty.intersects(Groups::TABLES) {
            save.gdtr.base = s.gdt.base;
            save.gdtr.limit = u32::from(s.gdt.limit);
            save.idtr.base = s.idt.base;
            save.idtr.limit = u32::from(s.idt.limit);
        }
        cpu.dirty = Groups::NONE;
    }

    fn encode_event(ev: &Event) -> u64 {
        let kind = match ev.kind {
            EventKind::ExternalInterrupt => event::INTR,
            EventKind::Nmi => event::NMI,
            // Software events are not re-injected (see `take_interrupted`); one from user space goes in as the
            // exception that it is.
            _ => event::EXCEPTION,
        };
        let mut v = event::VALID | kind << 8 | u64::from(ev.vector);
        if let Some(code) = ev.error_code {
            v |= event::ERROR_CODE_VALID | u64::from(code) << 32;
        }
        v
    }

    /// Exchanges the breakpoint registers, if the guest has breakpoints on (APM 2 13.1, 15.5.1).
    fn load_breakpoints(&mut self, cpu: &CpuState) {
        if cpu.dr7 & DR7_ENABLES == 0 || self.host_debug.dr.is_some() {
            return;
        }
        self.host_debug.dr = Some([cr::dr0(), cr::dr1(), cr::dr2(), cr::dr3()]);
        // SAFETY: In a stay. Host breakpoints are off (DR7 has no enables while the guest's are loaded: `enter` has cleared it),
        // so these registers take effect only through the guest's DR7 in the VMCB.
        unsafe { cr::write_dr0123(cpu.dr) };
    }

    /// The entry checks before an entry, with a line in the log. True when they refuse it.
    #[cold]
    #[inline(never)]
    fn refuses(&mut self, cpu: &mut CpuState, params: &EntryParams) -> bool {
        let Err(v) = self.check_entry(cpu, params) else {
            return false;
        };
        pr_warn_ratelimited!(
            "entry check: {} ({}), value {:#x}\n",
            v.rule,
            v.manual,
            v.value
        );
        true
    }

    /// What the exit means. The frequent ones are compared one by one, most frequent first: the kernel is built without jump tables,
    /// and a search in all codes costs more.
    #[inline]
    fn decode(&mut self) -> Exit {
        let c = &self.vmcb().control;
        let (code, info1, info2) = (c.exit_code, c.exit_info1, c.exit_info2);
        if code == exit::NPF {
            self.nested_exit = true;
            return Exit::NestedFault(NestedFault {
                gpa: Gpa(info2),
                present: info1 & 1 != 0,
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
            let next = info2.wrapping_sub(self.vmcb().save.rip);
            if info1 & 4 == 0 && (1..=15).contains(&next) {
                self.insn_len = next as u8;
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
        self.decode_rare(code, info1, info2)
    }

    #[inline(never)]
    fn decode_rare(&mut self, code: u64, info1: u64, info2: u64) -> Exit {
        match code {
            exit::NMI => Exit::HostNmi,
            exit::VINTR => {
                let c = &mut self.vmcb_mut().control;
                c.vintr &= !VIRTUAL_IRQ;
                c.intercept_misc1 &= !misc1::VINTR;
                Exit::IrqWindow
            }
            exit::IRET => {
                self.nmi = NmiMask::Iret(self.vmcb().save.rip);
                self.set_iret_intercept(false);
                // The core has nothing to do; a pending NMI asks for a window at the next entry.
                Exit::NmiWindow
            }
            exit::CR_READ..=exit::CR_READ_LAST => Exit::CrAccess(CrAccess {
                cr: (code - exit::CR_READ) as u8,
                write: false,
                gpr: self.cr_gpr(info1),
                op: self.cr_op(info1),
            }),
            exit::CR_WRITE..=exit::CR_WRITE_LAST => Exit::CrAccess(CrAccess {
                cr: (code - exit::CR_WRITE) as u8,
                write: true,
                gpr: self.cr_gpr(info1),
                op: self.cr_op(info1),
            }),
            exit::DR_READ..=exit::DR_WRITE_LAST => Exit::DrAccess,
            exit::EXCEPTION..=exit::EXCEPTION_LAST => {
                let vector = (code - exit::EXCEPTION) as u8;
                if vector == exceptions::MC {
                    // SAFETY: In `enter`, interrupts off, after a #MC intercept; FRED was refused by `probe`.
                    unsafe { entry::host_machine_check() };
                    return Exit::HostMachineCheck;
                }
                let error_code =
                    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30).then_some(info1 as u32);
                let payload = match vector {
                    1 => self.vmcb().save.dr6 ^ DR6_RESET,
                    14 => info2,
                    _ => 0,
                };
                Exit::Exception(Exception {
                    vector,
                    error_code,
                    payload,
                })
            }
            exit::SHUTDOWN => Exit::TripleFault,
            exit::INVD | exit::WBINVD => Exit::CacheInvalidate,
            exit::RDPMC => Exit::Rdpmc,
            exit::PAUSE => Exit::Pause,
            exit::XSETBV => Exit::Xsetbv,
            exit::MONITOR | 0x8b | exit::MWAIT_CONDITIONAL => Exit::MonitorMwait,
            exit::TASK_SWITCH => Exit::TaskSwitch,
            exit::RSM | exit::INVLPGA | exit::VMRUN | exit::VMLOAD..=exit::SKINIT | exit::RDPRU => {
                Exit::Undefined
            }
            exit::SMI | exit::INIT | exit::FERR_FREEZE => Exit::HostInterrupt,
            exit::INVALID | exit::INVALID32 => Exit::EntryFailure(exit::INVALID),
            other => Exit::Unknown(other),
        }
    }

    /// MOV CR with decode assists: bit 63 set, register number in bits 3:0 (APM 2 15.33.1).
    fn cr_gpr(&self, info1: u64) -> Option<Gpr> {
        (self.state.decode_assists && info1 >> 63 != 0).then(|| Gpr::from_bits(info1 as u8))
    }

    fn cr_op(&self, info1: u64) -> CrOp {
        if self.cr_gpr(info1).is_some() {
            CrOp::Mov
        } else {
            CrOp::Decode
        }
    }
}

impl VcpuBackend for SvmVcpu {
    fn new(_id: u32) -> Result<Self> {
        let state = STATE.get().ok_or(ENODEV)?;
        let page = Pages::new(0)?;
        let vmcb = NonNull::new(page.as_ptr::<Vmcb>()).ok_or(ENOMEM)?;
        let mut this = Self {
            page,
            vmcb,
            state,
            asid_cpu: u32::MAX,
            asid_generation: 0,
            stay: None,
            host_extra: 0,
            nmi: NmiMask::Open,
            stepping: false,
            tsc_aux: 0,
            tsc_ratio: TSC_RATIO_ONE,
            host_debug: HostDebug {
                dr7: DR7_RESET,
                dr: None,
            },
            guest_mce: 0,
            unchecked: false,
            hidden_lme: 0,
            extra_exceptions: 0,
            undelivered: None,
            insn_len: 0,
            nested_exit: false,
        };
        let (msrpm, iopm) = (state.msrpm.phys(), state.iopm.phys());
        let v = this.vmcb_mut();
        let c = &mut v.control;
        // CR4: writes are checked against the guest's features, reads do not show MCE. CR8 is the local APIC's TPR:
        // reads get V_TPR, and writes go there while no interrupt waits for a lower one (APM 2 15.21.1).
        c.intercept_cr = 1 << 4 | 1 << (16 + 4) | CR8_WRITE;
        c.intercept_dr = 0xffff_ffff;
        c.intercept_misc1 = misc1::INTR
            | misc1::NMI
            | misc1::SMI
            | misc1::INIT
            | misc1::RDPMC
            | misc1::CPUID
            | misc1::RSM
            | misc1::INVD
            | misc1::HLT
            | misc1::INVLPGA
            | misc1::IOIO_PROT
            | misc1::MSR_PROT
            | misc1::FERR_FREEZE
            | misc1::SHUTDOWN;
        c.intercept_misc2 = misc2::VMRUN
            | misc2::VMMCALL
            | misc2::VMLOAD
            | misc2::VMSAVE
            | misc2::STGI
            | misc2::CLGI
            | misc2::SKINIT
            | misc2::WBINVD
            | misc2::MONITOR
            | misc2::MWAIT
            | misc2::XSETBV
            | misc2::RDPRU;
        c.iopm_base_pa = iopm;
        c.msrpm_base_pa = msrpm;
        c.vintr = vintr::V_INTR_MASKING;
        c.nested_control = 1;
        let s = &mut v.save;
        s.g_pat = PAT_RESET;
        s.efer = efer::SVME;
        this.set_exception_intercepts(0);
        this.set_pause_exits(true);
        Ok(this)
    }

    fn begin_stay(&mut self, id: u32) -> Result {
        let cpu = self.state.cpus.of(id).ok_or(EINVAL)?;
        if cpu.enabled.load(Ordering::Relaxed) == 0 {
            return Err(EBUSY);
        }
        self.stay = Some((cpu, id));
        self.host_extra = cpu.host_extra.phys();
        // SAFETY: SVME is set on this CPU, and the page belongs to it; interrupts are off, so nobody else is using it.
        unsafe { entry::vmsave(self.host_extra) };
        self.host_debug.dr7 = cr::dr7();
        if self.host_debug.dr7 & DR7_ENABLES != 0 {
            // SAFETY: Put back by `end_stay`; a host breakpoint must not fire between the loading of guest addresses.
            unsafe { cr::write_dr7(DR7_RESET) };
        }
        if self.state.caps.rdtscp && self.tsc_aux != cpu.tsc_aux.load(Ordering::Relaxed) {
            // SAFETY: TSC_AUX is read by user-space RDTSCP and RDPID only; `end_stay` puts the host's value back.
            unsafe { msr::write(index::TSC_AUX, self.tsc_aux) };
        }
        if self.tsc_ratio != TSC_RATIO_ONE {
            // SAFETY: The core sets it only where CPUID has the MSR; in force in guests only, and `end_stay` puts it back.
            unsafe { msr::write(index::TSC_RATIO, self.tsc_ratio) };
        }
        Ok(())
    }

    fn end_stay(&mut self) {
        let Some((cpu, _)) = self.stay.take() else {
            return;
        };
        let aux = cpu.tsc_aux.load(Ordering::Relaxed);
        if self.state.caps.rdtscp && self.tsc_aux != aux {
            // SAFETY: The value that this CPU had before the stay.
            unsafe { msr::write(index::TSC_AUX, aux) };
        }
        if self.tsc_ratio != TSC_RATIO_ONE {
            // SAFETY: As in `begin_stay`.
            unsafe { msr::write(index::TSC_RATIO, TSC_RATIO_ONE) };
        }
        // SAFETY: The values that the registers had before the stay, addresses before enables.
        unsafe {
            if let Some(dr) = self.host_debug.dr.take() {
                cr::write_dr0123(dr);
            }
            if self.host_debug.dr7 != DR7_RESET {
                cr::write_dr7(self.host_debug.dr7);
            }
            // VMRUN loads DR6 and #VMEXIT keeps it; its bits stick, and the host's next #DB would take the guest's for its own.
            if self.vmcb().save.dr6 != DR6_RESET {
                cr::write_dr6(DR6_RESET);
            }
        }
    }

    #[inline(never)]
    fn enter(&mut self, cpu: &mut CpuState, params: Option<&EntryParams>) -> Exit {
        if !cpu.dirty.is_empty() {
            self.write_dirty(cpu);
            self.unchecked = self.state.tcg;
        }
        let Some((this_cpu, id)) = self.stay else {
            return Exit::EntryFailure(0);
        };
        let virtual_irq = match params {
            Some(params) => self.prepare(this_cpu, id, cpu, params),
            None => {
                self.vmcb_mut().control.tlb_control = tlb_control::NOTHING;
                None
            }
        };
        let stepping = self.stepping;
        let s = &mut self.vmcb_mut().save;
        s.rax = cpu.regs.get(Gpr::Rax);
        s.rsp = cpu.regs.get(Gpr::Rsp);
        s.rip = cpu.regs.rip;
        let guest_tf = cpu.regs.rflags & rflags::TF;
        s.rflags = cpu.regs.rflags | rflags::FIXED | if stepping { rflags::TF } else { 0 };
        s.cr2 = cpu.sregs.cr2;
        // Accesses to DR6 are intercepted: what is here after an exit by #DB are that one's conditions.
        s.dr6 = DR6_RESET;
        s.dr7 = cpu.dr7;

        if let Some(params) = params {
            if params.check || self.unchecked {
                if self.refuses(cpu, params) {
                    self.drop_asids(this_cpu);
                    return Exit::EntryFailure(exit::INVALID);
                }
                self.unchecked = false;
            }
        }
        let (vmcb, host) = (self.page.phys(), self.host_extra);
        mitigate::before_enter();
        // SAFETY: In a stay: SVME set, interrupts off, `host` filled by `begin_stay`. The intercepts set by `new` contain the
        // guest; the nested root comes from the VM's page tables.
        unsafe { entry::vmrun(vmcb, host, &mut cpu.regs) };
        mitigate::after_exit();

        if virtual_irq.is_some() {
            let c = &mut self.vmcb_mut().control;
            let waits = c.vintr & vintr::V_IRQ != 0;
            c.vintr &= !VIRTUAL_IRQ;
            self.undelivered = virtual_irq.filter(|_| waits);
        }
        let s = &self.vmcb().save;
        cpu.regs.gpr[Gpr::Rax as usize] = s.rax;
        cpu.regs.gpr[Gpr::Rsp as usize] = s.rsp;
        cpu.regs.rip = s.rip;
        cpu.regs.rflags = s.rflags;
        cpu.sregs.cr2 = s.cr2;
        let next_rip = self.vmcb().control.next_rip;
        cpu.avail = Groups::NONE;
        self.nested_exit = false;
        self.insn_len = if self.state.caps.insn_len {
            match next_rip.wrapping_sub(cpu.regs.rip) {
                n @ 1..=15 => n as u8,
                _ => 0,
            }
        } else {
            0
        };
        if let NmiMask::Iret(rip) = self.nmi {
            if cpu.regs.rip != rip {
                self.nmi = NmiMask::Open;
            }
        }
        let exit = self.decode();
        if stepping {
            self.stepping = false;
            cpu.regs.rflags = cpu.regs.rflags & !rflags::TF | guest_tf;
            if let Exit::Exception(Exception {
                vector: 1, payload, ..
            }) = exit
            {
                // Our single step, unless the guest had breakpoints or a step of its own in it.
                if payload & 0xf == 0 && guest_tf == 0 {
                    self.nmi = if self.nmi == NmiMask::Blocked {
                        NmiMask::Blocked
                    } else {
                        NmiMask::Open
                    };
                    return Exit::NmiWindow;
                }
            }
        }
        if matches!(exit, Exit::EntryFailure(_)) {
            self.drop_asids(this_cpu);
            // The VMCB still holds what was refused; the caller may want to look at it.
            cpu.avail = Groups::NONE;
        }
        exit
    }

    #[inline]
    fn was_interrupted(&self) -> bool {
        self.vmcb().control.exit_int_info & event::VALID != 0 || self.undelivered.is_some()
    }

    #[inline]
    fn end_shadow(&mut self) {
        self.vmcb_mut().control.interrupt_state = 0;
    }

    fn load(&mut self, cpu: &mut CpuState, groups: Groups) {
        let want = groups.without(cpu.avail);
        let save = &self.vmcb().save;
        let s = &mut cpu.sregs;
        if want.intersects(Groups::CODE) {
            *s.seg_mut(Seg::Cs) = save.cs.to_neutral();
            let ss = s.seg_mut(Seg::Ss);
            *ss = save.ss.to_neutral();
            // SYSRET sets the CPL but not SS.DPL (APM 2 15.5.1).
            ss.dpl = save.cpl & 3;
        }
        if want.intersects(Groups::SEGS) {
            *s.seg_mut(Seg::Es) = save.es.to_neutral();
            *s.seg_mut(Seg::Ds) = save.ds.to_neutral();
            *s.seg_mut(Seg::Fs) = save.fs.to_neutral();
            *s.seg_mut(Seg::Gs) = save.gs.to_neutral();
            *s.seg_mut(Seg::Ldtr) = save.ldtr.to_neutral();
            let tr = s.seg_mut(Seg::Tr);
            *tr = save.tr.to_neutral();
            // SVM does not look at the busy bit; VMX and user space want it set.
            tr.typ |= 2;
        }
        if want.intersects(Groups::CTRL) {
            s.cr0 = save.cr0;
            s.cr3 = save.cr3;
            s.cr4 = save.cr4 & !cr4::MCE | self.guest_mce;
            s.efer = save.efer & !efer::SVME | self.hidden_lme;
        }
        if want.intersects(Groups::TABLES) {
            s.gdt = DescTable {
                base: save.gdtr.base,
                limit: save.gdtr.limit as u16,
            };
            s.idt = DescTable {
                base: save.idtr.base,
                limit: save.idtr.limit as u16,
            };
        }
        cpu.avail = cpu.avail.union(groups);
    }

    #[inline]
    fn long_code(&self) -> Option<LongCode> {
        /// CS.L as the VMCB keeps attributes (APM 2 15.5.1).
        const LONG: u16 = 1 << 9;
        let s = &self.vmcb().save;
        (s.efer & efer::LMA != 0 && s.cs.attrib & LONG != 0).then_some(LongCode {
            cpl: s.cpl & 3,
            cr3: s.cr3,
            cr4: s.cr4,
        })
    }

    #[inline]
    fn cpl(&self) -> Option<u8> {
        Some(self.vmcb().save.cpl & 3)
    }

    #[inline]
    fn tpr(&self) -> Option<u8> {
        Some((self.vmcb().control.vintr & vintr::V_TPR) as u8)
    }

    #[inline]
    fn insn_len(&self) -> Option<u8> {
        (self.insn_len != 0).then_some(self.insn_len)
    }

    fn insn_bytes(&self) -> Option<([u8; 15], u8)> {
        let c = &self.vmcb().control;
        (self.nested_exit && self.state.decode_assists && (1..=15).contains(&c.insn_len))
            .then_some((c.insn_bytes, c.insn_len))
    }

    fn take_interrupted(&mut self) -> Option<Event> {
        if let Some(vector) = self.undelivered.take() {
            return Some(interrupt_event(vector));
        }
        let info = self.vmcb().control.exit_int_info;
        if info & event::VALID == 0 {
            return None;
        }
        let vector = info as u8;
        let kind = match info >> 8 & 7 {
            event::INTR => EventKind::ExternalInterrupt,
            event::NMI => {
                // Its delivery blocked NMIs; the injection at the next entry does so again.
                self.nmi = NmiMask::Open;
                self.set_iret_intercept(false);
                EventKind::Nmi
            }
            // RIP is still at the INT3, INTO or INT n, which simply runs again.
            event::EXCEPTION if vector != 3 && vector != 4 => EventKind::Exception,
            _ => return None,
        };
        let error_code = (info & event::ERROR_CODE_VALID != 0).then_some((info >> 32) as u32);
        Some(Event {
            kind,
            vector,
            error_code,
            insn_len: 0,
        })
    }

    fn interruptibility(&mut self) -> Interruptibility {
        let shadow = self.vmcb().control.interrupt_state & 1 != 0;
        // SVM does not tell STI from MOV SS; the stronger one would hide NMIs, so it is reported as STI.
        Interruptibility {
            sti: shadow,
            mov_ss: false,
            nmi: self.nmi != NmiMask::Open,
        }
    }

    fn set_interruptibility(&mut self, i: Interruptibility) {
        self.vmcb_mut().control.interrupt_state = u64::from(i.sti || i.mov_ss);
        if i.nmi != (self.nmi != NmiMask::Open) {
            self.nmi = if i.nmi {
                NmiMask::Blocked
            } else {
                NmiMask::Open
            };
            self.set_iret_intercept(i.nmi);
        }
    }

    fn msr(&mut self, index: u32) -> Option<u64> {
        let s = &self.vmcb().save;
        Some(match index {
            index::SYSENTER_CS => s.sysenter_cs,
            index::SYSENTER_ESP => s.sysenter_esp,
            index::SYSENTER_EIP => s.sysenter_eip,
            0x1d9 => s.debugctl,
            index::PAT => s.g_pat,
            index::STAR => s.star,
            index::LSTAR => s.lstar,
            index::CSTAR => s.cstar,
            index::FMASK => s.sfmask,
            index::FS_BASE => s.fs.base,
            index::GS_BASE => s.gs.base,
            index::KERNEL_GS_BASE => s.kernel_gs_base,
            index::TSC_AUX => self.tsc_aux,
            _ => return None,
        })
    }

    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        if index == index::TSC_AUX {
            let stay = !irqflags::enabled();
            self.tsc_aux = value;
            if stay && self.state.caps.rdtscp {
                // SAFETY: In a stay the register holds the guest's value; `end_stay` restores the host's.
                unsafe { msr::write(index::TSC_AUX, value) };
            }
            return true;
        }
        let s = &mut self.vmcb_mut().save;
        match index {
            index::SYSENTER_CS => s.sysenter_cs = value,
            index::SYSENTER_ESP => s.sysenter_esp = value,
            index::SYSENTER_EIP => s.sysenter_eip = value,
            0x1d9 => s.debugctl = value,
            index::PAT => s.g_pat = value,
            index::STAR => s.star = value,
            index::LSTAR => s.lstar = value,
            index::CSTAR => s.cstar = value,
            index::FMASK => s.sfmask = value,
            index::FS_BASE => s.fs.base = value,
            index::GS_BASE => s.gs.base = value,
            index::KERNEL_GS_BASE => s.kernel_gs_base = value,
            _ => return false,
        }
        true
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb_mut().control.tsc_offset = offset;
    }

    fn set_tsc_ratio(&mut self, ratio: u64) {
        self.tsc_ratio = ratio;
    }

    fn set_exception_intercepts(&mut self, vectors: u32) {
        self.extra_exceptions = vectors;
        // #DB and #AC against endless delivery (CVE-2015-8104, CVE-2015-5307), #MC for the host.
        self.vmcb_mut().control.intercept_exception =
            vectors | 1 << exceptions::DB | 1 << exceptions::AC | 1 << exceptions::MC;
    }

    fn set_exits(&mut self, exits: Exits) {
        let map = if exits.all_msrs {
            &self.state.msrpm_all
        } else {
            &self.state.msrpm
        };
        let map = map.phys();
        let c = &mut self.vmcb_mut().control;
        c.msrpm_base_pa = map;
        if exits.hlt {
            c.intercept_misc1 |= misc1::HLT;
        } else {
            c.intercept_misc1 &= !misc1::HLT;
        }
        self.set_pause_exits(exits.pause);
    }

    fn check_entry(
        &mut self,
        _cpu: &mut CpuState,
        params: &EntryParams,
    ) -> Result<(), EntryViolation> {
        let model = crate::x86::cpu::model::model().map_err(|_| EntryViolation {
            rule: "The CPU model must be known before a guest is entered",
            manual: "",
            value: 0,
        })?;
        let caps = check::SvmCaps {
            phys_bits: boot_cpu::phys_bits().min(52) as u8,
            asids: self.state.asids,
            flush_by_asid: self.state.flush_by_asid,
            nested_paging: true,
            lbr_virt: false,
            efer_mask: control::efer_allowed(&model.features) | efer::SVME,
            cr4_mask: control::cr4_allowed(&model.features),
        };
        let v = self.vmcb();
        let view = check::VmcbView {
            intercept_misc2: v.control.intercept_misc2,
            iopm_base_pa: v.control.iopm_base_pa,
            msrpm_base_pa: v.control.msrpm_base_pa,
            ioio_prot: v.control.intercept_misc1 & misc1::IOIO_PROT != 0,
            msr_prot: v.control.intercept_misc1 & misc1::MSR_PROT != 0,
            asid: v.control.asid,
            tlb_control: v.control.tlb_control,
            nested_control: v.control.nested_control,
            n_cr3: v.control.n_cr3,
            virt_ext: v.control.virt_ext,
            // The processor clears EVENTINJ on #VMEXIT, a refused entry included.
            event_inj: params.inject.as_ref().map_or(0, Self::encode_event),
            cr0: v.save.cr0,
            cr3: v.save.cr3,
            cr4: v.save.cr4,
            dr6: v.save.dr6,
            dr7: v.save.dr7,
            efer: v.save.efer,
            g_pat: v.save.g_pat,
            cs_attrib: v.save.cs.attrib,
        };
        check::check(&view, &caps)
    }
}

impl SvmVcpu {
    /// Brings the VMCB's controls in line with `params`. Returns the vector that goes in as a virtual interrupt.
    #[inline(always)]
    fn prepare(
        &mut self,
        this_cpu: &Cpu,
        id: u32,
        cpu: &CpuState,
        params: &EntryParams,
    ) -> Option<u8> {
        self.assign_asid(this_cpu, id, params.flush);
        self.load_breakpoints(cpu);

        if params.nmi_window {
            match self.nmi {
                NmiMask::Blocked => self.set_iret_intercept(true),
                // The IRET is the next instruction: a single step tells when it is done.
                NmiMask::Iret(_) => self.stepping = true,
                // The shadow of STI or MOV SS: likewise.
                NmiMask::Open => self.stepping = true,
            }
        }
        let virtual_irq = self.virtual_irq(params);
        let c = &mut self.vmcb_mut().control;
        c.n_cr3 = params.nested_root.0;
        c.event_inj = params.inject.as_ref().map_or(0, Self::encode_event);
        c.vintr = c.vintr & !vintr::V_TPR | u64::from(params.tpr) & vintr::V_TPR;
        // QEMU's TCG asserts when CR8 is written while V_IRQ is set (helper_write_crN, without its lock).
        let v_irq = params.irq_window || virtual_irq.is_some();
        c.intercept_cr = if params.tpr_threshold == 0 && !v_irq {
            c.intercept_cr & !CR8_WRITE
        } else {
            c.intercept_cr | CR8_WRITE
        };
        if let Some(vector) = virtual_irq {
            c.event_inj = 0;
            c.vintr &= !vintr::V_INTR_VECTOR;
            c.vintr |= VIRTUAL_IRQ | u64::from(vector) << vintr::V_INTR_VECTOR_SHIFT;
            c.intercept_misc1 &= !misc1::VINTR;
        } else if params.irq_window {
            c.vintr |= VIRTUAL_IRQ;
            c.intercept_misc1 |= misc1::VINTR;
        } else if c.intercept_misc1 & misc1::VINTR != 0 {
            c.vintr &= !VIRTUAL_IRQ;
            c.intercept_misc1 &= !misc1::VINTR;
        }
        if matches!(
            params.inject,
            Some(Event {
                kind: EventKind::Nmi,
                ..
            })
        ) {
            self.nmi = NmiMask::Blocked;
            self.set_iret_intercept(true);
        }
        virtual_irq
    }
}
