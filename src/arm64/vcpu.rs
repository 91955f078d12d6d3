// SPDX-License-Identifier: GPL-2.0
//! A virtual CPU.
//!
//! All state is behind one mutex, which KVM_RUN holds for as long as it runs.

use crate::abi::ledger::VcpuLedger;
use crate::abi::uapi::k;
use crate::arm64::context::Context;
use crate::arm64::debug::Debug;
use crate::arm64::el2::{self, Guest, Regs};
use crate::arm64::esr::Access;
use crate::arm64::host_irqs::{self, HostIrqs};
use crate::arm64::ids::Ids;
use crate::arm64::last::{self, Last};
use crate::arm64::shared::{Others, VcpuShared, START, STOP};
use crate::arm64::smccc::Range;
use crate::arm64::stolen::Stolen;
use crate::arm64::timer::PhysicalTimer;
use crate::arm64::vgic::lists::Lists;
use crate::arm64::vgic::registers::Interface;
use crate::bus::EventBus;
use crate::linux::hrtimer::{Timer, TimerCallback};
use crate::linux::killable_mutex::{KillableBackend, KillableMutex};
use crate::linux::mmap::SharedPages;
use crate::linux::neon::Vectors;
use crate::linux::sched::SignalMask;
use crate::mem::fault::Faulting;
use crate::mem::mmu::TablePool;
use crate::mem::ring::{Ring, Rings};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::lock::Guard;
use kernel::sync::Arc;

/// KVM_GET_VCPU_MMAP_SIZE: `kvm_run`, and the ring of coalesced writes.
pub(crate) const MMAP_BYTES: usize = 2 * kernel::page::PAGE_SIZE;
/// The pages that user space maps.
pub(crate) type RunPages = SharedPages<0>;
const _: () = assert!(k::KVM_COALESCED_MMIO_PAGE_OFFSET == 1);

/// Source of [`State::token`].
static NEXT_TOKEN: AtomicU64 = AtomicU64::new(1);

/// What the next KVM_RUN finishes of the last exit.
#[derive(Clone, Copy)]
pub(crate) enum Pending {
    /// Nothing.
    Nothing,
    /// A load: the register gets what user space has put into `kvm_run`.
    Load(Access),
    /// A store, which user space has carried out.
    Store,
}

/// The virtual timer of a vCPU that sleeps has fired, or its physical one.
pub(crate) struct Wake(Arc<VcpuShared>);

impl TimerCallback for Wake {
    fn expired(&self) -> Option<u64> {
        self.0.arch.set_look();
        self.0.kick();
        None
    }
}

/// The PPI of one of a vCPU's timers.
#[derive(Default)]
pub(crate) struct TimerLine {
    /// Which one; 0: not known yet.
    pub(crate) intid: u32,
    /// Its level.
    pub(crate) up: bool,
    /// Whether the host's interrupt of the timer counts as being handled on this CPU, in a stay. `None`: not known.
    pub(crate) active: Option<bool>,
}

/// What a vCPU has of the interrupt controller.
pub(crate) struct Interrupts {
    /// Filled for entries only.
    pub(crate) lists: Lists,
    /// There was something at the last look, and may be again.
    pub(crate) again: bool,
    /// ICH_VTR_EL2.
    pub(crate) kind: u64,
    /// Of the virtual and the physical timer ([`VIRTUAL`](crate::arm64::timer::VIRTUAL)).
    pub(crate) timers: [TimerLine; 2],
    /// The alarm of the physical timer that is emulated is set, or was and has gone off.
    pub(crate) physical_set: bool,
}

/// One vCPU's private state.
pub(crate) struct State {
    pub(crate) guest: Guest,
    /// Where the thread's registers are while it is not running.
    pub(crate) room: Option<KBox<Vectors>>,
    /// KVM_ARM_VCPU_INIT has been called, with these features.
    pub(crate) features: Option<u32>,
    /// It does not run (KVM_MP_STATE_STOPPED).
    pub(crate) off: bool,
    /// It waits for an interrupt.
    pub(crate) halted: bool,
    /// User space wants to know of the next interrupt, before anything is executed (KVM_MP_STATE_SUSPENDED).
    pub(crate) suspended: bool,
    /// Number in order of creation.
    pub(crate) index: usize,
    pub(crate) irq: Interrupts,
    /// Wakes the vCPU when a timer that is the processor's would fire.
    pub(crate) alarm: Timer<Wake>,
    /// Makes it look when its physical timer fires, if that is emulated.
    pub(crate) physical_alarm: Timer<Wake>,
    /// Those of the host's that guests need.
    pub(crate) host_irqs: Arc<HostIrqs>,
    pub(crate) pending: Pending,
    /// What user space wants done with calls of the guest's; empty before the vCPU has run.
    pub(crate) filter: KVec<Range>,
    /// The vCPU has run.
    pub(crate) has_run: bool,
    /// Data caches are cleaned of all of the VM's memory before the guest goes on.
    pub(crate) cleans: bool,
    pub(crate) stolen: Stolen,
    /// Where the pages go that the vCPU writes, if the VM has dirty rings.
    pub(crate) ring: Option<Arc<Ring>>,
    /// Spare nested page tables, for faults of this vCPU.
    pub(crate) tables: TablePool,
    /// TLB generation of the last flush; zero wants another one.
    pub(crate) tlb_generation: u64,
    /// CPU of the last stay.
    pub(crate) cpu: u32,
    /// Who it is, among all that there ever were.
    pub(crate) token: u64,
    /// Who was last on each CPU.
    pub(crate) last: Arc<Last>,
    /// Signals that are blocked during KVM_RUN (KVM_SET_SIGNAL_MASK).
    pub(crate) signal_mask: Option<SignalMask>,
}

impl State {
    fn new(shared: &Arc<VcpuShared>, ring: Option<Arc<Ring>>) -> Result<Self> {
        Ok(Self {
            guest: Guest {
                regs: Regs::RESET,
                context: Context::RESET,
                vectors: Vectors::ZERO,
                banked: [0; 4],
                error: None,
                mpidr: shared.arch.mpidr(),
                midr: 0,
                identity_traps: (false, false),
                kept: el2::KEPT_RESET,
                counter_offset: 0,
                physical_offset: 0,
                physical: PhysicalTimer::default(),
                owns_physical: false,
                debug: KBox::new(Debug::OFF, GFP_KERNEL_ACCOUNT)?,
                interface: Interface::RESET,
                has_gic: false,
                has_keys: false,
                watches_caches: false,
            },
            room: Some(KBox::new(Vectors::ZERO, GFP_KERNEL_ACCOUNT)?),
            features: None,
            off: false,
            halted: false,
            suspended: false,
            index: shared.index as usize,
            irq: Interrupts {
                lists: Lists::EMPTY,
                again: true,
                kind: el2::gic_kind(),
                timers: Default::default(),
                physical_set: false,
            },
            alarm: Timer::new(Wake(shared.clone()))?,
            physical_alarm: Timer::new(Wake(shared.clone()))?,
            host_irqs: host_irqs::get()?,
            pending: Pending::Nothing,
            filter: KVec::new(),
            has_run: false,
            cleans: false,
            stolen: Stolen::default(),
            ring,
            tables: TablePool::new(),
            tlb_generation: 0,
            cpu: 0,
            token: NEXT_TOKEN.fetch_add(1, Ordering::Relaxed),
            last: last::get()?,
            signal_mask: None,
        })
    }

    /// KVM_ARM_VCPU_INIT (api.rst 4.82): all registers as after reset. EINVAL: another processor than this one, or
    /// features that are not there or differ from those of the first call, or, of pointer authentication, from another
    /// vCPU's.
    pub(crate) fn init(
        &mut self,
        ids: &Ids,
        shared: &VcpuShared,
        wanted: &k::kvm_vcpu_init,
    ) -> Result {
        const KNOWN: u32 = 1 << k::KVM_ARM_VCPU_POWER_OFF | 1 << k::KVM_ARM_VCPU_PSCI_0_2;
        const KEYS: u32 =
            1 << k::KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << k::KVM_ARM_VCPU_PTRAUTH_GENERIC;
        let [first, rest @ ..] = wanted.features;
        // Both of pointer authentication, or neither.
        let keys = match first & KEYS {
            0 => false,
            KEYS if el2::has_keys() => true,
            _ => return Err(EINVAL),
        };
        let unknown = first & !(KNOWN | KEYS) != 0 || rest.iter().any(|f| *f != 0);
        if wanted.target != k::KVM_ARM_TARGET_GENERIC_V8 || unknown {
            return Err(EINVAL);
        }
        // Whether it starts at once may change.
        let features = first & !(1 << k::KVM_ARM_VCPU_POWER_OFF);
        if self.features.is_some_and(|f| f != features) {
            return Err(EINVAL);
        }
        ids.set_keys(keys)?;
        self.guest.has_keys = keys;
        self.features = Some(features);
        shared.clear_requests(START);
        self.reset();
        self.set_off(shared, first & 1 << k::KVM_ARM_VCPU_POWER_OFF != 0);
        Ok(())
    }

    /// Does what other vCPUs have asked of this one (PSCI).
    pub(crate) fn take_requests(&mut self, shared: &VcpuShared) {
        let requests = shared.take_requests(START | STOP);
        if requests & STOP != 0 {
            self.off = true;
        }
        // A machine may have been switched off after that.
        if requests & START != 0 && shared.arch.is_on() {
            let (entry, context) = shared.arch.beginning();
            self.reset();
            self.guest.regs.pc = entry;
            self.guest.regs.set_x(0, context);
            self.off = false;
        }
    }

    /// Switches the vCPU off or on as user space wants it, whatever has been asked of it before. What has been switched
    /// on by another vCPU begins as that one said.
    pub(crate) fn set_off(&mut self, shared: &VcpuShared, off: bool) {
        shared.clear_requests(if off { START | STOP } else { STOP });
        self.off = off;
        self.suspended = false;
        shared.arch.set_on(!off);
    }

    /// All registers as after reset.
    pub(crate) fn reset(&mut self) {
        self.guest.regs = Regs::RESET;
        self.guest.context = Context::RESET;
        self.guest.vectors = Vectors::ZERO;
        self.guest.banked = [0; 4];
        self.guest.kept = el2::KEPT_RESET;
        self.guest.error = None;
        self.guest.physical = PhysicalTimer::default();
        self.guest.debug.reset();
        self.guest.watches_caches = !el2::caches().forced;
        self.guest.interface = Interface::RESET;
        self.pending = Pending::Nothing;
        self.halted = false;
        self.suspended = false;
        self.irq.again = true;
    }

    /// What a stage-2 fault needs of the vCPU, whose shared part is `shared`.
    #[inline]
    pub(crate) fn faulting<'a>(&'a mut self, shared: &'a VcpuShared) -> Faulting<'a> {
        Faulting {
            gate: &shared.gate,
            tables: &mut self.tables,
            ring: self.ring.as_deref(),
            may_wait: true,
        }
    }

    /// ENOEXEC before [`State::init`], as in KVM.
    pub(crate) fn check_initialized(&self) -> Result {
        self.features.map(|_| ()).ok_or(ENOEXEC)
    }

    /// Whether HVC is for PSCI of 0.2 or later.
    pub(crate) fn has_psci(&self) -> bool {
        self.features
            .is_some_and(|f| f & 1 << k::KVM_ARM_VCPU_PSCI_0_2 != 0)
    }
}

/// A vCPU.
#[pin_data]
pub(crate) struct Vcpu {
    /// What other CPUs may touch.
    pub(crate) shared: Arc<VcpuShared>,
    /// `kvm_run` and the other pages that user space maps.
    pub(crate) run: Arc<RunPages>,
    /// Exit ledger.
    pub(crate) stats: Arc<VcpuLedger>,
    #[pin]
    state: KillableMutex<State>,
}

impl Vcpu {
    /// vCPU number `index` of its VM, that KVM_ARM_VCPU_INIT has not been called for.
    #[inline(never)]
    pub(crate) fn new(index: u32, rings: &Rings, bus: &EventBus, id: u32) -> Result<Arc<Self>> {
        let shared = VcpuShared::new(id, index, false, Others::new(id))?;
        let ring = rings.create(shared.clone())?;
        let run = RunPages::new(bus.ring(), ring.as_ref().map(|r| r.pages()))?;
        let stats = VcpuLedger::new(id)?;
        Arc::pin_init(
            try_pin_init!(Self {
                state <- KillableMutex::new(State::new(&shared, ring)?, static_lock_class!()),
                run,
                stats,
                shared,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The state; waits for a KVM_RUN under way. EINTR when the task is killed meanwhile.
    pub(crate) fn lock(&self) -> Result<Guard<'_, State, KillableBackend>> {
        self.state.lock()
    }

    /// The state, unless a KVM_RUN is under way.
    pub(crate) fn lock_now(&self) -> Option<Guard<'_, State, KillableBackend>> {
        self.state.lock_now()
    }
}
