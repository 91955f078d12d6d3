// SPDX-License-Identifier: GPL-2.0
//! Everything that belongs to one vCPU's thread: registers, FPU, MSRs, local APIC, pending events.
//!
//! All of it is behind the vCPU's mutex. Other CPUs reach a vCPU only through [`VcpuShared`].

use crate::abi::uapi::k;
use crate::linux::fpu::XsaveArea;
use crate::linux::sched::SignalMask;
use crate::linux::{boot_cpu, hrtimer};
use crate::mem::addr::{Gpa, Hpa};
use crate::mem::memory::MemError;
use crate::x86::cpu::control;
use crate::x86::cpu::cpuid::{CpuidEntry, CpuidIndex, Dynamic, GuestFeatures};
use crate::x86::cpu::events;
use crate::x86::cpu::events::Gate;
use crate::x86::cpu::index;
use crate::x86::cpu::model::{self, Model};
use crate::x86::cpu::msr as msrs;
use crate::x86::cpu::msr::{Access, Class, MsrFile, Read, Written};
use crate::x86::cpu::regs::{cr0, cr4, rflags, Gpr, Seg};
use crate::x86::cpu::reset;
use crate::x86::cpu::tsc;
use crate::x86::cpu::tsc::Scale;
use crate::x86::cpu::xsave;
use crate::x86::emul::Replay;
use crate::x86::emul::{DecodeCache, Insn, Move};
use crate::x86::enabled::MsrFilter;
use crate::x86::exit::{Event, Exception};
use crate::x86::irqchip::lapic::{base, Action, Features as LapicFeatures};
use crate::x86::irqchip::lapic_page::{LocalApic, RegisterPage};
use crate::x86::pv::paravirt::Paravirt;
use crate::x86::shared::VcpuShared;
use crate::x86::vcpu::debug;
use crate::x86::vcpu::debug::Debug;
use crate::x86::vendor::choose::Hw;
use crate::x86::vendor::{
    ApicMode, ApicPages, CpuState, Exits, Groups, Interruptibility, VcpuBackend,
};
use crate::x86::vm::Vm;
use kernel::prelude::*;
use kernel::sync::Arc;

/// KVM_MP_STATE_* (api.rst 4.38).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MpState {
    Runnable = 0,
    /// An AP before INIT.
    Uninitialized = 1,
    /// An AP between INIT and SIPI.
    InitReceived = 2,
    /// In HLT.
    Halted = 3,
}

/// What the next KVM_RUN has to finish first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    Nothing,
    /// OUT: only the instruction pointer is left.
    PortOut,
    /// IN of this width: the data page holds the value.
    PortIn(u8),
    /// A move of 64-bit code whose access is done.
    Move(Move),
    /// An emulated instruction that waits for memory or string port data.
    Emulate,
    /// RDMSR that user space answers.
    Rdmsr,
    /// WRMSR that user space judges.
    Wrmsr,
    /// A hypercall that user space answers.
    Hypercall,
}

/// Events on their way to the guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Events {
    /// Delivery was interrupted by an exit, or restored by KVM_SET_VCPU_EVENTS.
    pub(crate) interrupted: Option<Event>,
    /// To be delivered.
    pub(crate) exception: Option<Exception>,
    /// NMIs latched, at most 2.
    pub(crate) nmis: u8,
    /// KVM_INTERRUPT's vector, where user space has the interrupt controller or the 8259s.
    pub(crate) external: Option<u8>,
    /// KVM_EXIT_SHUTDOWN is due.
    pub(crate) triple_fault: bool,
}

/// First guess of [`State::timer_advance`], in nanoseconds.
const FIRST_ADVANCE_NS: u64 = 1000;
/// Its limit: the guest's CPU spins that long at most before an entry.
pub(crate) const MAX_ADVANCE_NS: u64 = 8000;

/// One vCPU's private state.
pub(crate) struct State {
    /// The vCPU's id.
    pub(crate) id: u32,
    /// The vendor's part.
    pub(crate) hw: Hw,
    /// Registers; system registers are cached by groups, see [`State::load`].
    pub(crate) cpu: CpuState,
    /// Extended state, but for PKRU, while the vCPU is not in a stay.
    pub(crate) fpu: XsaveArea,
    /// Guest's XCR0.
    pub(crate) xcr0: u64,
    /// Guest's PKRU, while the vCPU is not in a stay.
    pub(crate) pkru: u32,
    /// The table that user space set.
    pub(crate) cpuid: KVec<CpuidEntry>,
    /// Where its leaves are.
    pub(crate) cpuid_index: KBox<CpuidIndex>,
    /// What it offers and the host carries.
    pub(crate) features: GuestFeatures,
    /// What the host carries: the limit of user space's accesses.
    pub(crate) host_features: GuestFeatures,
    /// CPUID bits that follow registers.
    pub(crate) dynamic: Dynamic,
    /// IA32_MISC_ENABLE.MWAIT governs CPUID's bit.
    pub(crate) mwait_follows: bool,
    /// What the guest may do with MSRs, as last taken from the VM.
    pub(crate) msr_filter: Option<Arc<MsrFilter>>,
    /// MSRs that are plain storage.
    pub(crate) msrs: KBox<MsrFile>,
    /// Local APIC, if it is in the kernel.
    pub(crate) lapic: Option<KBox<LocalApic>>,
    /// The processor virtualises it: interrupts in its IRR need no injection, and its registers are the guest's own business
    /// but for what exits.
    pub(crate) apicv: bool,
    /// Vectors whose EOI exits then.
    eoi_exits: [u32; 8],
    /// IA32_APIC_BASE and CR8 where the local APIC is in user space.
    pub(crate) apic_base: u64,
    pub(crate) cr8: u8,
    /// KVM_SET_GUEST_DEBUG.
    pub(crate) debug: Debug,
    /// Events on their way to the guest.
    pub(crate) events: Events,
    /// Whether it runs, sleeps or waits to be started.
    pub(crate) mp_state: MpState,
    /// Accesses of an emulated instruction that are done.
    pub(crate) replay: KBox<Replay>,
    /// The instruction of `Completion::Emulate`.
    pub(crate) insn: Option<Insn>,
    /// Instructions decoded lately.
    pub(crate) insn_cache: KBox<DecodeCache>,
    /// Port and width of the I/O exit under emulation.
    pub(crate) io_port: Option<(u16, u8)>,
    /// What the next KVM_RUN finishes first.
    pub(crate) completion: Completion,
    /// Guest's TSC = host's TSC + this.
    pub(crate) tsc_offset: u64,
    /// The guest's TSC frequency, kHz.
    pub(crate) tsc_khz: u32,
    /// How the host's TSC is scaled for it.
    pub(crate) tsc_scale: Scale,
    /// Which generation of synchronised TSCs this one belongs to.
    pub(crate) tsc_member: u64,
    /// What KVM's paravirtual MSRs set up.
    pub(crate) pv: Paravirt,
    /// IA32_TSC_ADJUST.
    pub(crate) tsc_adjust: u64,
    /// TLB generation of the last flush, and the CPU of the last stay.
    pub(crate) tlb_seen: u64,
    pub(crate) last_cpu: u32,
    /// How much earlier than a TSC deadline the host's timer is set, in ticks: the time from its interrupt to the entry, as
    /// measured.
    pub(crate) timer_advance: u64,
    /// The same for the timer that ends the guest's turn, where there is one ([`VcpuBackend::set_deadline`]).
    pub(crate) exit_advance: u64,
    /// That one brought the interrupt that is due.
    pub(crate) timer_exited: bool,
    /// There is one. It counts TSC deadlines while the vCPU is not halted.
    pub(crate) guest_timer: bool,
    /// The processor can take interrupts from the vCPU's posted-interrupt descriptor.
    pub(crate) posted: bool,
    /// The host's timer may be set.
    pub(crate) host_timer: bool,
    /// The deadline of a timer interrupt that was posted, perhaps early: not to be reached by the guest before that.
    pub(crate) timer_due: Option<u64>,
    /// Identity for the mitigations.
    pub(crate) token: u64,
    /// KVM_RUN came as far as an entry: the CPUID table is fixed.
    pub(crate) has_run: bool,
    /// Module parameter `check_entry`.
    pub(crate) check_entry: bool,
    /// Signals that are blocked during KVM_RUN (KVM_SET_SIGNAL_MASK).
    pub(crate) signal_mask: Option<SignalMask>,
    /// RVMM_GET_ENTRY_FAILURE's answer.
    pub(crate) entry_failure: Option<crate::abi::uapi::EntryFailure>,
    /// What guests may see on this host.
    pub(crate) model: &'static Model,
}

/// The scale for a TSC of `khz`. EINVAL: not the host's frequency, or near to it, and the processor cannot scale so.
pub(crate) fn tsc_scale(khz: u32) -> Result<Scale> {
    let host = boot_cpu::tsc_khz();
    if tsc::within_tolerance(khz, host) {
        return Ok(Scale::ONE);
    }
    let caps = crate::x86::vendor::choose::caps().ok_or(ENODEV)?;
    Scale::new(khz, host, caps.tsc_fraction, caps.tsc_ratio_max).ok_or(EINVAL)
}

/// The frequency that KVM_SET_TSC_KHZ asks for, on a VM or a vCPU. EINVAL: not to be had.
pub(crate) fn wanted_tsc_khz(arg: usize) -> Result<u32> {
    let khz = match arg as u32 {
        0 => boot_cpu::tsc_khz(),
        khz => khz,
    };
    tsc_scale(khz).map(|_| khz)
}

impl State {
    /// A vCPU after RESET, to be made where it stays: it is large.
    pub(crate) fn new<'a>(vm: &'a Vm, shared: &'a VcpuShared) -> Result<impl Init<Self> + 'a> {
        let model = model::model()?;
        let id = shared.id;
        let bsp = id == vm.boot_cpu();
        let mut hw = Hw::new(id, &model.features)?;
        let mut msr_file = KBox::new(MsrFile::new(&model.msr_config()), GFP_KERNEL_ACCOUNT)?;
        if !vm.caps.quirk(k::KVM_X86_QUIRK_STUFF_FEATURE_MSRS) {
            // User space fills them in from what the device says.
            msr_file.arch_capabilities = 0;
            msr_file.platform_info = 0;
            msr_file.ucode_rev = 0;
            msr_file.de_cfg = 0;
        }
        let host_features = model.features;
        let features = GuestFeatures::from_table(&[], &CpuidIndex::empty());
        let in_kernel = vm.chip.has_lapic();
        let lapic = if in_kernel {
            let f = LapicFeatures {
                x2apic: false,
                tsc_deadline: false,
                suppress_eoi: false,
                honour_suppress_eoi: vm.chip.eoi_suppression().1,
                phys_bits: boot_cpu::phys_bits().min(52) as u8,
            };
            let regs = RegisterPage::new()?;
            Some(KBox::new(
                LocalApic::with_registers(
                    regs,
                    id,
                    bsp,
                    bsp && vm.caps.quirk(k::KVM_X86_QUIRK_LINT0_REENABLED),
                    f,
                    vm.caps.bus_cycle_ns(),
                ),
                GFP_KERNEL_ACCOUNT,
            )?)
        } else {
            None
        };
        let apicv = match &lapic {
            Some(l) if crate::x86::vendor::choose::caps().is_some_and(|c| c.apicv) => hw
                .virtualize_apic(&ApicPages {
                    registers: Hpa(l.registers().phys()),
                    access: vm.memory.apic_page()?,
                    descriptor: Hpa(shared.descriptor()),
                }),
            _ => false,
        };
        let posted = apicv && crate::x86::vendor::choose::caps().is_some_and(|c| c.posted);
        shared.set_direct(posted);
        let mut fpu = XsaveArea::new()?;
        // Fresh pages are zero.
        xsave::init_image(fpu.as_mut_slice(), model.mxcsr_mask);
        let cpuid_index = KBox::new(CpuidIndex::empty(), GFP_KERNEL_ACCOUNT)?;
        let replay = KBox::new(Replay::new(), GFP_KERNEL_ACCOUNT)?;
        let insn_cache = KBox::new(DecodeCache::new(), GFP_KERNEL_ACCOUNT)?;
        let fresh = init!(Self {
            id,
            hw,
            cpu: CpuState::default(),
            fpu,
            xcr0: xsave::X87,
            pkru: 0,
            cpuid: KVec::new(),
            cpuid_index,
            features,
            host_features,
            dynamic: Dynamic::default(),
            mwait_follows: !vm.caps.quirk(k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT),
            msr_filter: None,
            msrs: msr_file,
            lapic,
            apicv,
            eoi_exits: [0; 8],
            apic_base: 0xfee0_0000 | 1 << 11 | u64::from(bsp) << 8,
            cr8: 0,
            debug: Debug::default(),
            events: Events::default(),
            mp_state: if in_kernel && !bsp {
                MpState::Uninitialized
            } else {
                MpState::Runnable
            },
            replay,
            insn: None,
            insn_cache,
            io_port: None,
            completion: Completion::Nothing,
            tsc_offset: 0,
            tsc_khz: boot_cpu::tsc_khz(),
            tsc_scale: Scale::ONE,
            tsc_member: 0,
            pv: Paravirt::default(),
            tsc_adjust: 0,
            tlb_seen: 0,
            last_cpu: u32::MAX,
            timer_advance: FIRST_ADVANCE_NS * u64::from(boot_cpu::tsc_khz()) / 1_000_000,
            exit_advance: 0,
            timer_exited: false,
            posted,
            guest_timer: crate::x86::vendor::choose::caps().is_some_and(|c| c.guest_timer),
            host_timer: false,
            timer_due: None,
            token: crate::x86::mitigate::token(),
            has_run: false,
            check_entry: crate::params::check_entry(),
            signal_mask: None,
            entry_failure: None,
            model,
        });
        Ok(fresh.chain(move |this| {
            this.reset_registers(false);
            this.take_exits(vm);
            this.refresh_dynamic();
            if let Some(l) = &this.lapic {
                shared.set_apic_addr(l.addr());
                shared.set_lint0(l.lint0_accepts_extint(), l.lint0_is_nmi());
            }
            Ok(())
        }))
    }

    /// Takes over what the VM says about optional exits and MSR accesses.
    pub(crate) fn take_exits(&mut self, vm: &Vm) {
        self.msr_filter = vm.caps.msr_filter();
        self.hw.set_exits(Exits {
            all_msrs: self.msr_filter.is_some(),
            hlt: vm.caps.disabled_exits() & u64::from(k::KVM_X86_DISABLE_EXITS_HLT) == 0,
            pause: vm.caps.disabled_exits() & u64::from(k::KVM_X86_DISABLE_EXITS_PAUSE) == 0,
        });
    }

    /// Register state of RESET, or of INIT, which leaves FPU, MSRs and CR0.CD/NW alone (SDM 3A table 10-1).
    pub(crate) fn reset_registers(&mut self, init: bool) {
        let cr0_value = if init {
            self.load(Groups::CTRL);
            cr0::ET | self.cpu.sregs.cr0 & (cr0::CD | cr0::NW)
        } else {
            cr0::ET | cr0::CD | cr0::NW
        };
        self.cpu.regs = Default::default();
        self.cpu.regs.rip = 0xfff0;
        self.cpu.regs.rflags = rflags::FIXED;
        // Family, model, stepping in EDX.
        self.cpu.regs.gpr[Gpr::Rdx as usize] = 0x600;
        self.cpu.sregs = reset::sregs(cr0_value);
        self.cpu.avail = Groups::ALL;
        self.cpu.dirty = Groups::ALL;
        self.set_guest_breakpoints([0; 4], 0x400);
        self.cpu.dr6 = debug::DR6_NONE;
        self.events = Events::default();
        self.pv.reset();
        self.hw.set_interruptibility(Interruptibility::default());
        self.cr8 = 0;
        self.replay.clear();
        self.insn = None;
        self.completion = Completion::Nothing;
        if !init {
            self.xcr0 = xsave::X87;
        }
        self.refresh_dynamic();
    }

    /// Makes groups of system registers valid.
    #[inline]
    pub(crate) fn load(&mut self, groups: Groups) {
        if !self.cpu.avail.contains(groups) {
            self.hw.load(&mut self.cpu, groups);
        }
    }

    /// Marks groups as changed; they are valid.
    pub(crate) fn dirty(&mut self, groups: Groups) {
        self.cpu.dirty = self.cpu.dirty.union(groups);
    }

    /// What CPUID derives from registers.
    pub(crate) fn refresh_dynamic(&mut self) {
        self.load(Groups::CTRL);
        self.dynamic = Dynamic {
            cr4: self.cpu.sregs.cr4,
            apic_enabled: self.lapic.as_ref().map(|l| l.hw_enabled()),
            mwait: self.mwait_follows.then(|| self.msrs.mwait()),
            xsave_size: self.model.layout.standard_size(self.xcr0),
            xsave_compacted_size: self.model.layout.compacted_size(self.xcr0 | self.msrs.xss),
        };
    }

    /// Current privilege level.
    pub(crate) fn cpl(&mut self) -> u8 {
        if self.cpu.dirty.is_empty() {
            if let Some(cpl) = self.hw.cpl() {
                return cpl;
            }
        }
        self.load(Groups::CODE.union(Groups::CTRL));
        self.cpu.sregs.cpl(self.cpu.regs.rflags)
    }

    /// CR8: the priority class of the local APIC's TPR, wherever that is.
    #[inline]
    pub(crate) fn cr8(&self) -> u8 {
        self.lapic.as_ref().map_or(self.cr8, |l| l.cr8())
    }

    /// CR8 writes of less than this concern us: they let an interrupt in, or user space wants to know of all of them.
    #[inline]
    pub(crate) fn cr8_threshold(&self) -> u8 {
        if self.apicv {
            return 0;
        }
        self.lapic.as_ref().map_or(16, |l| l.cr8_threshold())
    }

    /// The guest wrote CR8, without consequences.
    #[inline(never)]
    pub(crate) fn set_cr8(&mut self, class: u8) {
        match &mut self.lapic {
            Some(l) => l.set_cr8(class),
            None => self.cr8 = class & 15,
        }
    }

    /// Whether exceptions push error codes.
    pub(crate) fn protected(&mut self) -> bool {
        self.load(Groups::CTRL);
        self.cpu.sregs.cr0 & cr0::PE != 0
    }

    /// What holds events back.
    pub(crate) fn gate(&mut self) -> Gate {
        let i = self.hw.interruptibility();
        Gate {
            if_flag: self.cpu.regs.rflags & rflags::IF != 0,
            sti: i.sti,
            mov_ss: i.mov_ss,
            nmi: i.nmi,
        }
    }

    /// Raises an exception in the guest. Returns false when it shuts the guest down.
    #[must_use]
    pub(crate) fn raise(&mut self, e: Exception) -> bool {
        match events::raise(self.events.exception, e) {
            Ok(e) => {
                if e.vector == events::vector::PF {
                    self.cpu.sregs.cr2 = e.payload;
                }
                if events::reporting(e.vector) == events::Reporting::Fault {
                    self.cpu.regs.rflags |= rflags::RF;
                }
                self.events.exception = Some(e);
                true
            }
            Err(events::TripleFault) => false,
        }
    }

    /// A #DB that waits changes DR6 now instead of at its delivery: for a user space that saves exceptions without payload.
    pub(crate) fn deliver_payload(&mut self) {
        if let Some(x) = &mut self.events.exception {
            if x.vector == events::vector::DB {
                self.cpu.dr6 |= core::mem::take(&mut x.payload);
            }
        }
    }

    /// Guest TSC now.
    pub(crate) fn tsc(&self) -> u64 {
        self.tsc_at(boot_cpu::rdtsc())
    }

    /// Guest TSC at this host TSC.
    pub(crate) fn tsc_at(&self, host: u64) -> u64 {
        self.tsc_scale.apply(host).wrapping_add(self.tsc_offset)
    }

    /// The frequency at which the guest's TSC really counts, kHz; [`State::tsc_khz`] is what it is taken for.
    pub(crate) fn tsc_rate_khz(&self) -> u32 {
        match self.tsc_scale.apply(boot_cpu::tsc_khz().into()) {
            0 => 1,
            khz => u32::try_from(khz).unwrap_or(u32::MAX),
        }
    }

    /// Sets the TSC's frequency (KVM_SET_TSC_KHZ). EINVAL: the processor cannot have it so.
    pub(crate) fn set_tsc_khz(&mut self, khz: u32) -> Result {
        let scale = tsc_scale(khz)?;
        self.tsc_khz = khz;
        if scale != self.tsc_scale {
            self.tsc_scale = scale;
            let fraction = crate::x86::vendor::choose::caps().map_or(0, |c| c.tsc_fraction);
            self.hw.set_tsc_ratio(scale.ratio(fraction));
        }
        self.pv.clock_stale = true;
        Ok(())
    }

    /// User space writes IA32_TSC, or the vCPU is new: the vCPU's TSC runs together with the others' if it seems meant to.
    pub(crate) fn synchronize_tsc(&mut self, vm: &Vm, value: u64, by_user: bool) {
        let vcpus = &vm.vcpus;
        let scale = self.tsc_scale;
        let offset = vm.clock.write_tsc(
            vcpus,
            &mut self.tsc_member,
            value,
            self.tsc_khz,
            by_user,
            |host| scale.apply(host),
        );
        self.set_tsc_offset(offset);
    }

    /// User space sets the TSC's offset as such (KVM_VCPU_TSC_OFFSET).
    pub(crate) fn restore_tsc_offset(&mut self, vm: &Vm, offset: u64) {
        let scale = self.tsc_scale;
        vm.clock.set_tsc_offset(
            &vm.vcpus,
            &mut self.tsc_member,
            offset,
            self.tsc_khz,
            |host| scale.apply(host),
        );
        self.set_tsc_offset(offset);
    }

    /// Changes the TSC offset.
    pub(crate) fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
        self.hw.set_tsc_offset(offset);
        // Its page says how time follows from the TSC.
        self.pv.clock_stale = true;
    }

    fn access<'a>(
        features: &'a GuestFeatures,
        host: &'a GuestFeatures,
        host_initiated: bool,
        enforce_pv: bool,
    ) -> Access<'a> {
        Access {
            guest: features,
            host,
            host_initiated,
            xss_allowed: 0,
            enforce_pv,
        }
    }

    /// RDMSR, or KVM_GET_MSRS with `by_host`. `None` raises #GP or ends the list.
    pub(crate) fn read_msr(&mut self, vm: &Vm, index: u32, by_host: bool) -> Option<u64> {
        let a = Self::access(
            &self.features,
            &self.host_features,
            by_host,
            self.pv.enforce,
        );
        let class = match self.msrs.get(index, &a).ok()? {
            Read::Value(v) => return Some(v),
            Read::Delegate(class) => class,
        };
        match class {
            Class::Efer => {
                self.load(Groups::CTRL);
                Some(self.cpu.sregs.efer)
            }
            Class::ApicBase => Some(
                self.lapic
                    .as_ref()
                    .map_or(self.apic_base, |l| l.apic_base()),
            ),
            // Listed, so user space has to be able to read it, also where the local APIC is elsewhere.
            Class::TscDeadline => Some(self.lapic.as_ref().map_or(0, |l| l.tsc_deadline())),
            Class::X2apic => {
                let now = hrtimer::ktime_get_ns();
                self.lapic.as_ref()?.rdmsr(index, now).ok()
            }
            Class::Tsc => Some(self.tsc()),
            Class::TscAdjust => Some(self.tsc_adjust),
            Class::Backend => self.backend_msr(index),
            Class::PredictionBarrier => None,
            Class::Paravirt => crate::x86::pv::paravirt::read(vm, self, index),
        }
    }

    fn backend_msr(&mut self, index: u32) -> Option<u64> {
        match index {
            index::FS_BASE => {
                self.load(Groups::SEGS);
                Some(self.cpu.sregs.seg(Seg::Fs).base)
            }
            index::GS_BASE => {
                self.load(Groups::SEGS);
                Some(self.cpu.sregs.seg(Seg::Gs).base)
            }
            _ => self.hw.msr(index),
        }
    }

    /// WRMSR, or KVM_SET_MSRS with `by_host`. `None` raises #GP or ends the list; an [`Action`] is to be carried out by the caller.
    pub(crate) fn write_msr(
        &mut self,
        vm: &Vm,
        index: u32,
        value: u64,
        by_host: bool,
    ) -> Option<Action> {
        if index == index::MISC_ENABLE && (self.msrs.misc_enable ^ value) & msrs::MISC_MWAIT != 0 {
            self.mwait_follows = !vm.caps.quirk(k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT);
            // KVM ties the bit to SSE3.
            if self.mwait_follows && self.cpuid_leaf1_ecx() & 1 == 0 {
                return None;
            }
        }
        let a = Self::access(
            &self.features,
            &self.host_features,
            by_host,
            self.pv.enforce,
        );
        let (class, value) = match self.msrs.set(index, value, &a).ok()? {
            Written::Stored => {
                if self.mwait_follows && index == index::MISC_ENABLE {
                    self.refresh_dynamic();
                }
                return Some(Action::NONE);
            }
            Written::StoredXss => {
                self.refresh_dynamic();
                return Some(Action::NONE);
            }
            Written::Delegate(class, value) => (class, value),
        };
        match class {
            Class::Efer => {
                self.load(Groups::CTRL);
                let s = &self.cpu.sregs;
                let allowed = control::efer_allowed(if by_host {
                    &self.host_features
                } else {
                    &self.features
                });
                let new = if by_host {
                    // LMA follows LME and PG, in whatever order user space restores them.
                    if value & !(allowed | crate::x86::cpu::regs::efer::LMA) != 0 {
                        return None;
                    }
                    value & !crate::x86::cpu::regs::efer::LMA
                        | s.efer & crate::x86::cpu::regs::efer::LMA
                } else {
                    control::efer_write_check(s.efer, value, s.cr0, allowed).ok()?
                };
                self.cpu.sregs.efer = new;
                self.dirty(Groups::CTRL);
                Some(Action::NONE)
            }
            Class::ApicBase => match &mut self.lapic {
                Some(l) => {
                    let action = l.set_apic_base(value, by_host).ok()?;
                    self.refresh_dynamic();
                    Some(action)
                }
                None => {
                    self.check_apic_base(value)?;
                    self.apic_base = value;
                    Some(Action::NONE)
                }
            },
            Class::TscDeadline => Some(
                self.lapic
                    .as_mut()
                    .map_or(Action::NONE, |l| l.set_tsc_deadline(value)),
            ),
            Class::X2apic => {
                let now = hrtimer::ktime_get_ns();
                self.lapic.as_mut()?.wrmsr(index, value, now).ok()
            }
            Class::Tsc => {
                if by_host {
                    self.synchronize_tsc(vm, value, true);
                } else {
                    // A guest's write shows in TSC_ADJUST (SDM 3B 19.17.3).
                    let by = value.wrapping_sub(self.tsc());
                    self.tsc_adjust = self.tsc_adjust.wrapping_add(by);
                    self.set_tsc_offset(self.tsc_offset.wrapping_add(by));
                }
                // The timer's deadline is in guest TSC.
                Some(Action {
                    timer: true,
                    ..Action::NONE
                })
            }
            Class::TscAdjust => {
                if !by_host {
                    let by = value.wrapping_sub(self.tsc_adjust);
                    self.set_tsc_offset(self.tsc_offset.wrapping_add(by));
                }
                self.tsc_adjust = value;
                Some(Action {
                    timer: true,
                    ..Action::NONE
                })
            }
            Class::Backend => {
                let seg = match index {
                    index::FS_BASE => Some(Seg::Fs),
                    index::GS_BASE => Some(Seg::Gs),
                    _ => None,
                };
                if let Some(seg) = seg {
                    self.load(Groups::SEGS);
                    self.cpu.sregs.seg_mut(seg).base = value;
                    self.dirty(Groups::SEGS);
                    return Some(Action::NONE);
                }
                self.hw.set_msr(index, value).then_some(Action::NONE)
            }
            Class::PredictionBarrier => {
                if value & 1 != 0 {
                    crate::x86::mitigate::guest_barrier();
                }
                Some(Action::NONE)
            }
            Class::Paravirt => crate::x86::pv::paravirt::write(vm, self, index, value, by_host)
                .then_some(Action::NONE),
        }
    }

    /// Whether an interrupt of the 8259s, wherever they are, can reach the vCPU.
    #[inline]
    pub(crate) fn accepts_external(&self) -> bool {
        self.lapic.as_ref().is_none_or(|l| l.lint0_accepts_extint())
    }

    /// Guest interrupt status that the next entry has to load.
    #[inline]
    pub(crate) fn take_apic_status(&mut self) -> Option<u16> {
        if !self.apicv {
            return None;
        }
        let lapic = self.lapic.as_mut()?;
        if self.debug.active() && self.debug.holds_interrupts(self.cpu.regs.rip) {
            return Some(lapic.hold_status());
        }
        lapic.take_status()
    }

    /// The guest ran.
    #[inline]
    pub(crate) fn guest_ran(&mut self) {
        if self.apicv {
            if let Some(l) = &mut self.lapic {
                l.guest_ran();
            }
        }
    }

    /// How the guest reaches its local APIC.
    fn apic_mode(&self) -> ApicMode {
        match &self.lapic {
            Some(l) if l.is_x2apic() => ApicMode::X2apic,
            Some(l) if l.page() == Some(base::DEFAULT_ADDRESS) => ApicMode::Xapic,
            _ => ApicMode::Other,
        }
    }

    /// IA32_APIC_BASE changed. Not in a stay.
    pub(crate) fn apic_moved(&mut self, vm: &Vm) {
        if !self.apicv {
            return;
        }
        let mode = self.apic_mode();
        if mode != ApicMode::Xapic {
            vm.memory.exclude_apic_page();
        }
        self.hw.set_apic_mode(mode);
        self.refresh_eoi_exits(vm, &[u32::MAX; 8]);
    }

    /// Whether the nested page tables should map the APIC-access page for this vCPU.
    #[inline]
    pub(crate) fn wants_apic_page(&self, vm: &Vm) -> bool {
        self.apicv && vm.memory.apic_page_missing() && self.apic_mode() == ApicMode::Xapic
    }

    /// Vectors in `irr` were accepted, or state was set: decides anew which of them exit at their end. Those do that are
    /// level-triggered, and those for whose end somebody waits.
    pub(crate) fn refresh_eoi_exits(&mut self, vm: &Vm, irr: &[u32; 8]) {
        let Some(l) = &self.lapic else { return };
        let tmr = l.tmr();
        let mut changed = false;
        for (n, (exits, (new, tmr))) in self
            .eoi_exits
            .iter_mut()
            .zip(irr.iter().zip(tmr))
            .enumerate()
        {
            if *new == 0 {
                continue;
            }
            let wanted = *exits & !new | (tmr | vm.chip.edge_eoi_vectors(n)) & new;
            changed |= wanted != *exits;
            *exits = wanted;
        }
        if changed {
            self.hw.set_eoi_exits(&self.eoi_exits);
        }
    }

    /// Whether something ends HLT, with interrupts let in: an interrupt, however it will be delivered.
    pub(crate) fn interrupt_pending(&self, vm: &Vm) -> bool {
        self.has_interrupt(vm)
            || self.apicv && self.lapic.as_ref().is_some_and(|l| l.pending().is_some())
    }

    /// Whether an interrupt (not an NMI) waits to be injected when the guest lets interrupts in.
    pub(crate) fn has_interrupt(&self, vm: &Vm) -> bool {
        if self.events.external.is_some() {
            return self.accepts_external();
        }
        match &self.lapic {
            Some(l) => {
                !self.apicv && l.pending().is_some()
                    || (vm.chip.pic_output() && l.lint0_accepts_extint())
            }
            None => false,
        }
    }

    /// Acknowledges the interrupt of [`State::has_interrupt`]; its vector.
    pub(crate) fn acknowledge(&mut self, vm: &Vm) -> Option<u8> {
        if self.accepts_external() {
            if let Some(v) = self.events.external.take() {
                return Some(v);
            }
            if self.lapic.is_some() && vm.chip.pic_output() {
                return vm.chip.pic_acknowledge();
            }
        }
        if self.apicv {
            return None;
        }
        let l = self.lapic.as_mut()?;
        let v = l.pending()?;
        l.ack(v);
        Some(v.0)
    }

    /// Installs a CPUID table that has been checked.
    pub(crate) fn set_cpuid(&mut self, vm: &Vm, table: KVec<CpuidEntry>) {
        *self.cpuid_index = CpuidIndex::new(&table);
        self.features =
            GuestFeatures::from_table(&table, &self.cpuid_index).restrict(&self.host_features);
        self.cpuid = table;
        if let Some(l) = &mut self.lapic {
            let (offered, honoured) = vm.chip.eoi_suppression();
            l.set_features(LapicFeatures {
                x2apic: self.features.x2apic,
                tsc_deadline: self.features.tsc_deadline,
                suppress_eoi: offered && self.features.x2apic,
                honour_suppress_eoi: honoured,
                phys_bits: self.features.maxphyaddr,
            });
        }
        self.refresh_dynamic();
    }

    /// Whether IA32_APIC_BASE may have this value.
    pub(crate) fn check_apic_base(&self, value: u64) -> Option<()> {
        let f = &self.features;
        crate::x86::irqchip::lapic::base::valid(value, f.maxphyaddr, f.x2apic).then_some(())
    }

    /// CPUID leaf 1, ECX, as the guest reads it.
    pub(crate) fn cpuid_leaf1_ecx(&self) -> u32 {
        crate::x86::cpu::cpuid::lookup(&self.cpuid, &self.cpuid_index, 1, 0, &self.dynamic)[2]
    }

    /// Why an access to this MSR failed (KVM_MSR_EXIT_REASON_*).
    pub(crate) fn msr_failure(&self, index: u32) -> u32 {
        let a = Self::access(&self.features, &self.host_features, false, self.pv.enforce);
        match self.msrs.get(index, &a) {
            Err(msrs::MsrError::Unknown) => k::KVM_MSR_EXIT_REASON_UNKNOWN,
            _ => k::KVM_MSR_EXIT_REASON_INVAL,
        }
    }

    /// XCR0 bits that the guest may set.
    pub(crate) fn allowed_xcr0(&self) -> u64 {
        // User space sets the x87 bit of a vCPU without XSAVE too (as KVM allows).
        crate::x86::cpu::cpuid::guest_xcr0(&self.cpuid, &self.cpuid_index, self.model.xcr0)
            | xsave::X87
    }

    /// Reads the PDPTEs at `cr3` (SDM 3A 4.4.1). `NotRam` also when reserved bits of a present one are set, which is #GP(0).
    pub(crate) fn read_pdptes(
        &self,
        vm: &Vm,
        cr3: u64,
        atomic: bool,
    ) -> Result<[u64; 4], MemError> {
        let view = vm.memory.view();
        let mut bytes = [0u8; 32];
        let gpa = Gpa(cr3 & 0xffff_ffe0);
        if atomic {
            view.try_read(gpa, &mut bytes)?;
        } else {
            view.read(gpa, &mut bytes)?;
        }
        let reserved = self.features.reserved_phys_bits() | 0x1e6;
        let mut pdptes = [0u64; 4];
        for (p, b) in pdptes.iter_mut().zip(bytes.chunks_exact(8)) {
            *p = b.try_into().map_or(0, u64::from_le_bytes);
            if *p & 1 != 0 && *p & reserved != 0 {
                return Err(MemError::NotRam);
            }
        }
        Ok(pdptes)
    }

    /// Whether CR4.OSXSAVE is on.
    pub(crate) fn osxsave(&self) -> bool {
        self.dynamic.cr4 & cr4::OSXSAVE != 0
    }
}
