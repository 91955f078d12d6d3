// SPDX-License-Identifier: GPL-2.0
//! Everything that belongs to one vCPU's thread: registers, FPU, MSRs, local APIC, pending events.
//!
//! All of it is behind the vCPU's mutex. Other CPUs reach a vCPU only through [`VcpuShared`].

use crate::abi::uapi::k;
use crate::bus::recorder::Recorder;
use crate::linux::boot_cpu;
use crate::linux::fpu::XsaveArea;
use crate::linux::sched::SignalMask;
use crate::mem::addr::Hpa;
use crate::mem::fault::Faulting;
use crate::mem::mmu::TablePool;
use crate::mem::ring::Ring;
use crate::x86::adapt::HaltPoll;
use crate::x86::cpu::cpuid::{CpuidEntry, CpuidIndex, Dynamic, GuestFeatures};
use crate::x86::cpu::model::{self, Model};
use crate::x86::cpu::msr::{Access, MsrFile};
use crate::x86::cpu::regs::{cr0, rflags, Gpr};
use crate::x86::cpu::reset;
use crate::x86::cpu::smm::Smm;
use crate::x86::cpu::tsc::Scale;
use crate::x86::cpu::xsave;
use crate::x86::emul::Replay;
use crate::x86::emul::{DecodeCache, Insn, Move};
use crate::x86::exit::{Event, Exception};
use crate::x86::host_tsc;
use crate::x86::hyperv::vcpu::HypervVcpu;
use crate::x86::irqchip::lapic::Features as LapicFeatures;
use crate::x86::irqchip::lapic_page::{LocalApic, RegisterPage};
use crate::x86::mitigate;
use crate::x86::pv::async_pf::AsyncPf;
use crate::x86::pv::paravirt::Paravirt;
use crate::x86::shared::VcpuShared;
use crate::x86::vcpu::debug;
use crate::x86::vcpu::debug::Debug;
use crate::x86::vendor::choose::{self, Backend};
use crate::x86::vendor::{ApicPages, CpuState, Exits, Groups, Interruptibility, VcpuBackend};
use crate::x86::vm::Vm;
use crate::x86::vm_caps::MsrFilter;
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
    /// Runnable, as far as anybody knows, at an instruction that needs a page which is on its way.
    AwaitsPage = u32::MAX,
}

impl MpState {
    /// As user space sees it.
    pub(crate) fn visible(self) -> Self {
        match self {
            Self::AwaitsPage => Self::Runnable,
            state => state,
        }
    }
}

/// What the next KVM_RUN has to finish first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    Nothing,
    /// OUT: only the instruction pointer is left.
    PortOut,
    /// IN of this width: the data page holds the value.
    PortIn(u8),
    /// A load whose access is done.
    Move(Move),
    /// An emulated instruction that waits for what it reads from a device, or for the data of INS.
    Emulate,
    /// An emulated instruction is complete; user space may have to be told of more writes.
    Posted,
    /// An emulated instruction that goes on when memory is there.
    Resume,
    /// RDMSR that user space answers.
    Rdmsr,
    /// WRMSR that user space judges.
    Wrmsr,
    /// A hypercall of Hyper-V's that user space answers.
    HypervCall,
    /// SYNDBG_CONTROL of Hyper-V's, whose status user space tells.
    HypervDebug,
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
    /// An interrupt that has been acknowledged and comes after the exception beside it (KVM_SET_VCPU_EVENTS).
    pub(crate) held: Option<u8>,
    /// One of `nmis` is on its way already, and comes after what was given beside it; it will block the others.
    pub(crate) held_nmi: bool,
    /// KVM_INTERRUPT's vector, where user space has the interrupt controller or the 8259s.
    pub(crate) external: Option<u8>,
    /// KVM_EXIT_SHUTDOWN is due.
    pub(crate) triple_fault: bool,
}

/// First guess of [`Timer::advance`], in nanoseconds.
const FIRST_ADVANCE_NS: u64 = 1000;
/// Its limit: the guest's CPU spins that long at most before an entry.
pub(crate) const MAX_ADVANCE_NS: u64 = 8000;

/// Extended state, of which the processor has the guest's during a stay.
pub(crate) struct Xstate {
    /// The XSAVE area, but for PKRU.
    pub(crate) area: XsaveArea,
    /// Guest's XCR0.
    pub(crate) xcr0: u64,
    /// Guest's PKRU.
    pub(crate) pkru: u32,
}

/// CPUID, and what it offers.
pub(crate) struct Cpuid {
    /// The table that user space set.
    pub(crate) table: KVec<CpuidEntry>,
    /// Where its leaves are.
    pub(crate) index: KBox<CpuidIndex>,
    /// What it offers and the host carries.
    pub(crate) features: GuestFeatures,
    /// What the host carries: the limit of user space's accesses.
    pub(crate) host_features: GuestFeatures,
    /// Bits that follow registers.
    pub(crate) dynamic: Dynamic,
    /// IA32_MISC_ENABLE.MWAIT governs its bit.
    pub(crate) mwait_follows: bool,
}

/// The local APIC, in the kernel or in user space.
pub(crate) struct Apic {
    /// The model, if it is in the kernel.
    pub(crate) lapic: Option<KBox<LocalApic>>,
    /// The processor virtualises it: interrupts in its IRR need no injection, and its registers are the guest's own
    /// business but for what exits.
    pub(crate) virtualized: bool,
    /// The processor keeps the TPR alone in the registers.
    pub(super) tpr_shadowed: bool,
    /// Vectors whose EOI exits then.
    pub(super) eoi_exits: [u32; 8],
    /// The processor can take interrupts from the vCPU's posted-interrupt descriptor.
    pub(crate) posted: bool,
    /// IA32_APIC_BASE where the local APIC is in user space.
    pub(crate) base: u64,
    /// CR8 where the local APIC is in user space.
    pub(crate) cr8: u8,
    /// KVM_TPR_ACCESS_REPORTING: user space wants to know of accesses to the TPR's register in memory.
    pub(crate) reports_tpr: bool,
    /// There was one, a write or a read.
    pub(crate) tpr_access: Option<bool>,
}

/// What an exit has left for the next KVM_RUN, or the next round, to finish.
pub(crate) struct Pending {
    /// What the next KVM_RUN finishes first.
    pub(crate) completion: Completion,
    /// The instruction of [`Completion::Emulate`].
    pub(crate) insn: Option<Insn>,
    /// `insn` is the one that has met the nested fault to be handled next, outside the stay.
    pub(crate) fetched: bool,
    /// Accesses of an emulated instruction that are done.
    pub(crate) replay: KBox<Replay>,
    /// Port and width of the I/O exit under emulation.
    pub(crate) io_port: Option<(u16, u8)>,
    /// The linear address of the instruction of `completion`, if user space has moved the vCPU since.
    pub(crate) came_from: Option<u64>,
}

/// The time stamp counter.
pub(crate) struct Tsc {
    /// Guest's TSC = host's TSC, scaled, + this.
    pub(crate) offset: u64,
    /// The guest's TSC frequency, kHz.
    pub(crate) khz: u32,
    /// How the host's TSC is scaled for it.
    pub(crate) scale: Scale,
    /// The processor does not scale: [`State::catch_up_tsc`].
    pub(crate) catch_up: bool,
    /// Which generation of synchronised TSCs this one belongs to.
    pub(crate) member: u64,
    /// IA32_TSC_ADJUST.
    pub(crate) adjust: u64,
    /// [`host_tsc::lost`] as of which the offset is right.
    pub(crate) lost: u64,
}

/// The local APIC's timer, as far as the vCPU's thread has to know of it.
pub(crate) struct Timer {
    /// How much earlier than a TSC deadline the host's timer is set, in ticks: the time from its interrupt to the
    /// entry, as measured.
    pub(crate) advance: u64,
    /// How much earlier the timer is set that ends the guest's turn, where there is one
    /// ([`VcpuBackend::set_deadline`]).
    pub(crate) exit_advance: u64,
    /// The timer that ends the guest's turn brought the interrupt that is due.
    pub(crate) exited: bool,
    /// There is a timer that ends the guest's turn. It counts TSC deadlines while the vCPU is not halted.
    pub(crate) in_guest: bool,
    /// The host's timer may be set.
    pub(crate) host_armed: bool,
    /// The deadline of a timer interrupt that was posted, perhaps early: not to be reached by the guest before that.
    pub(crate) due: Option<u64>,
}

/// The vCPU's last stay.
pub(crate) struct LastStay {
    /// TLB generation of the last flush; zero wants another one.
    pub(crate) tlb_generation: u64,
    /// The CPU.
    pub(crate) cpu: u32,
}

/// One vCPU's private state.
pub(crate) struct State {
    /// The vCPU's id.
    pub(crate) id: u32,
    /// The vendor's part.
    pub(crate) hw: Backend,
    /// Registers; system registers are cached by groups, see [`State::load`].
    pub(crate) cpu: CpuState,
    /// FPU, vector registers and what else XSAVE saves.
    pub(crate) xstate: Xstate,
    /// CPUID, and what it offers.
    pub(crate) cpuid: Cpuid,
    /// MSRs that are plain storage.
    pub(crate) msrs: KBox<MsrFile>,
    /// What the guest may do with MSRs, as last taken from the VM.
    pub(crate) msr_filter: Option<Arc<MsrFilter>>,
    /// The local APIC.
    pub(crate) apic: Apic,
    /// Its timer.
    pub(crate) timer: Timer,
    /// The time stamp counter.
    pub(crate) tsc: Tsc,
    /// What KVM's paravirtual MSRs set up.
    pub(crate) pv: Paravirt,
    /// Pages that are brought while the guest goes on.
    pub(crate) apf: AsyncPf,
    /// Hyper-V's interface, where CPUID or user space asks for it.
    pub(crate) hv: Option<KBox<HypervVcpu>>,
    /// KVM_SET_GUEST_DEBUG.
    pub(crate) debug: Debug,
    /// Events on their way to the guest.
    pub(crate) events: Events,
    /// System management mode.
    pub(crate) smm: Smm,
    /// Whether it runs, sleeps or waits to be started.
    pub(crate) mp_state: MpState,
    /// How long it polls when it halts.
    pub(crate) halt_poll: HaltPoll,
    /// What is left to finish of the last exit.
    pub(crate) pending: Pending,
    /// Instructions decoded lately.
    pub(crate) insn_cache: KBox<DecodeCache>,
    /// Spare nested page tables, for faults of this vCPU.
    pub(crate) tables: TablePool,
    /// The last stay.
    pub(crate) last_stay: LastStay,
    /// Identity for the mitigations.
    pub(crate) token: mitigate::Token,
    /// Where the pages go that the vCPU writes, if the VM has dirty rings.
    pub(crate) ring: Option<Arc<Ring>>,
    /// What is written down of exits and entries, while somebody wants it.
    pub(crate) recorder: Option<Recorder>,
    /// Somebody listens to the tracepoints, as far as the vCPU knows.
    pub(crate) heard: bool,
    /// The processor logs the pages that the guest writes.
    pub(crate) write_log: bool,
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

/// The MSRs of a new vCPU.
fn new_msrs(vm: &Vm, model: &Model) -> Result<KBox<MsrFile>> {
    let mut file = KBox::new(MsrFile::new(&model.msr_config()), GFP_KERNEL_ACCOUNT)?;
    // User space says what it wants of this one, which the device names.
    file.de_cfg = 0;
    if !vm.caps.quirk(k::KVM_X86_QUIRK_STUFF_FEATURE_MSRS) {
        // User space fills them in from what the device says.
        file.arch_capabilities = 0;
        file.platform_info = 0;
        file.ucode_rev = 0;
    }
    Ok(file)
}

impl Apic {
    /// The local APIC of a new vCPU. `hw` learns of it if the processor can virtualise it.
    fn new(vm: &Vm, shared: &VcpuShared, hw: &mut Backend, bsp: bool) -> Result<Self> {
        let lapic = if vm.chip.has_lapic() {
            let f = LapicFeatures {
                x2apic: false,
                tsc_deadline: false,
                suppress_eoi: false,
                honour_suppress_eoi: vm.chip.eoi_suppression().1,
                phys_bits: boot_cpu::phys_bits().min(52) as u8,
            };
            let lint0 = bsp && vm.caps.quirk(k::KVM_X86_QUIRK_LINT0_REENABLED);
            let (regs, cycle) = (RegisterPage::new()?, vm.caps.bus_cycle_ns());
            let l = LocalApic::with_registers(regs, shared.id, bsp, lint0, f, cycle);
            Some(KBox::new(l, GFP_KERNEL_ACCOUNT)?)
        } else {
            None
        };
        let caps = choose::caps();
        let virtualized = match &lapic {
            Some(l) if caps.is_some_and(|c| c.apicv) => hw.virtualize_apic(&ApicPages {
                registers: Hpa(l.registers().phys()),
                access: vm.memory.own_page()?,
                descriptor: Hpa(shared.descriptor()),
            }),
            _ => false,
        };
        let tpr_shadowed = !virtualized
            && lapic
                .as_ref()
                .is_some_and(|l| hw.shadow_tpr(Hpa(l.registers().phys())));
        let posted = virtualized && caps.is_some_and(|c| c.posted);
        shared.set_direct(posted);
        Ok(Self {
            lapic,
            virtualized,
            tpr_shadowed,
            eoi_exits: [0; 8],
            posted,
            base: 0xfee0_0000 | 1 << 11 | u64::from(bsp) << 8,
            cr8: 0,
            reports_tpr: false,
            tpr_access: None,
        })
    }
}

impl Timer {
    /// One that is not set.
    fn new() -> Self {
        Self {
            advance: FIRST_ADVANCE_NS * u64::from(boot_cpu::tsc_khz()) / 1_000_000,
            exit_advance: 0,
            exited: false,
            in_guest: choose::caps().is_some_and(|c| c.guest_timer),
            host_armed: false,
            due: None,
        }
    }
}

impl Tsc {
    /// The host's.
    fn new() -> Self {
        Self {
            offset: 0,
            khz: boot_cpu::tsc_khz(),
            scale: Scale::ONE,
            catch_up: false,
            member: 0,
            adjust: 0,
            lost: host_tsc::lost(),
        }
    }
}

impl Cpuid {
    /// An empty table.
    fn new(vm: &Vm, model: &Model) -> Result<Self> {
        Ok(Self {
            table: KVec::new(),
            index: KBox::new(CpuidIndex::empty(), GFP_KERNEL_ACCOUNT)?,
            features: GuestFeatures::from_table(&[], &CpuidIndex::empty()),
            host_features: model.features,
            dynamic: Dynamic::default(),
            mwait_follows: !vm.caps.quirk(k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT),
        })
    }

    /// Who accesses an MSR, and what it may see.
    pub(super) fn access(&self, host_initiated: bool, enforce_pv: bool) -> Access<'_> {
        Access {
            guest: &self.features,
            host: &self.host_features,
            host_initiated,
            enforce_pv,
        }
    }
}

impl Xstate {
    /// The state after RESET.
    fn new(model: &Model) -> Result<Self> {
        let mut area = XsaveArea::new()?;
        // Fresh pages are zero.
        xsave::init_image(area.as_mut_slice(), model.mxcsr_mask);
        Ok(Self {
            area,
            xcr0: xsave::X87,
            pkru: 0,
        })
    }
}

impl Pending {
    /// Nothing.
    fn new() -> Result<Self> {
        Ok(Self {
            completion: Completion::Nothing,
            insn: None,
            replay: KBox::new(Replay::new(), GFP_KERNEL_ACCOUNT)?,
            fetched: false,
            io_port: None,
            came_from: None,
        })
    }

    /// Forgets an instruction that is half done.
    pub(crate) fn clear(&mut self) {
        self.completion = Completion::Nothing;
        self.insn = None;
        self.came_from = None;
        self.replay.clear();
    }
}

impl State {
    /// What a nested fault needs of the vCPU, whose shared part is `shared`.
    #[inline]
    pub(crate) fn faulting<'a>(&'a mut self, shared: &'a VcpuShared) -> Faulting<'a> {
        Faulting {
            gate: &shared.gate,
            tables: &mut self.tables,
            ring: self.ring.as_deref(),
            may_wait: true,
        }
    }

    /// A vCPU after RESET, to be made where it stays: it is large.
    pub(crate) fn new<'a>(
        vm: &'a Vm,
        shared: &'a VcpuShared,
        ring: Option<Arc<Ring>>,
    ) -> Result<impl Init<Self> + 'a> {
        let model = model::model()?;
        let id = shared.id;
        let bsp = id == vm.boot_cpu();
        let mut hw = Backend::new(id, &model.features)?;
        let msrs = new_msrs(vm, model)?;
        let apic = Apic::new(vm, shared, &mut hw, bsp)?;
        let waits = apic.lapic.is_some() && !bsp;
        let xstate = Xstate::new(model)?;
        let cpuid = Cpuid::new(vm, model)?;
        let pending = Pending::new()?;
        let token = mitigate::token()?;
        let insn_cache = KBox::new(DecodeCache::new(), GFP_KERNEL_ACCOUNT)?;
        let fresh = init!(Self {
            id,
            hw,
            cpu: CpuState::default(),
            xstate,
            cpuid,
            msrs,
            msr_filter: None,
            apic,
            timer: Timer::new(),
            tsc: Tsc::new(),
            pv: Paravirt::default(),
            apf: AsyncPf::default(),
            hv: None,
            debug: Debug::default(),
            events: Events::default(),
            smm: Smm::default(),
            halt_poll: HaltPoll::default(),
            mp_state: if waits {
                MpState::Uninitialized
            } else {
                MpState::Runnable
            },
            pending,
            insn_cache,
            tables: TablePool::new(),
            last_stay: LastStay {
                tlb_generation: 0,
                cpu: u32::MAX,
            },
            token,
            ring,
            recorder: None,
            heard: false,
            write_log: false,
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
            if let Some(l) = &this.apic.lapic {
                shared.set_initial(&l.addr(), l.lint0_accepts_extint(), l.lint0_is_nmi());
            }
            Ok(())
        }))
    }

    /// Takes over what the VM says about optional exits, MSR accesses and CR0.CD.
    pub(crate) fn take_exits(&mut self, vm: &Vm) {
        self.msr_filter = vm.caps.msr_filter();
        self.hw.set_exits(Exits {
            all_msrs: self.msr_filter.is_some(),
            hlt: vm.caps.disabled_exits() & u64::from(k::KVM_X86_DISABLE_EXITS_HLT) == 0,
            pause: vm.caps.disabled_exits() & u64::from(k::KVM_X86_DISABLE_EXITS_PAUSE) == 0,
            caches_on: vm.caps.quirk(k::KVM_X86_QUIRK_CD_NW_CLEARED),
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
        self.cpu.regs.gpr[Gpr::Rdx as usize] = self.signature().into();
        self.cpu.sregs = reset::sregs(cr0_value);
        self.cpu.avail = Groups::ALL;
        self.cpu.dirty = Groups::ALL;
        self.set_guest_breakpoints([0; 4], 0x400);
        self.cpu.dr6 = debug::DR6_NONE;
        self.events = Events::default();
        self.reset_smm();
        self.pv.reset();
        self.apf.clear();
        self.hw.set_interruptibility(Interruptibility::default());
        self.hw.wake();
        self.apic.cr8 = 0;
        self.pending.clear();
        if !init {
            self.xstate.xcr0 = xsave::X87;
        }
        self.refresh_dynamic();
    }
}
