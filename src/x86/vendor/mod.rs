// SPDX-License-Identifier: GPL-2.0
//! What a processor vendor has to provide: the operations between the neutral core and VMX or SVM.
//!
//! # Stays
//!
//! The guest runs only inside a *stay*: from [`VcpuBackend::begin_stay`] to [`VcpuBackend::end_stay`] on one CPU with
//! interrupts off. VMX is in root operation only there (private root) or borrows it (shared root), so nothing
//! of the vendor's state survives outside a stay that the host could disturb. (What the processor holds of a VMCS may
//! stay there: [`VcpuBackend::irqs_off`].)
//! A [`Stay`] is a value: whoever has a reference to one is inside, and [`Stay::hold`] alone begins and ends one.
//! Operations marked *any* may be called outside a stay too; the backend opens a short one where it must.
//!
//! # Register caching
//!
//! `CpuState::regs` is exact after every [`VcpuBackend::enter`]. `CpuState::sregs` is cached by [`Groups`]: a group not
//! in `avail` must be fetched by [`VcpuBackend::load`]; a group in `dirty` is written back by the next `enter`.

pub(crate) mod choose;

use crate::linux::global::Owner;
use crate::linux::irqflags::{IrqGuard, IrqsOff, ThisCpu};
use crate::mem::addr::{Gpa, Hpa};
use crate::mem::mmu::InOwnMm;
use crate::x86::cpu::cpuid::GuestFeatures;
use crate::x86::cpu::index;
use crate::x86::cpu::regs::{Regs, Seg, Segment, Sregs};
pub use crate::x86::cpu::violation::Violation as EntryViolation;
use crate::x86::exit::{Event, Exit};
use crate::x86::paging::fetch::Code;
use kernel::prelude::*;

/// Sets of system registers that are cached together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Groups(u32);

#[allow(missing_docs)]
impl Groups {
    pub const NONE: Self = Self(0);
    /// CS and SS: enough for mode and CPL, with `CTRL`.
    pub const CODE: Self = Self(1);
    /// DS, ES, FS, GS, LDTR, TR.
    pub const SEGS: Self = Self(2);
    /// CR0, CR3, CR4, EFER. (CR2 is exact after every entry, like `regs`.)
    pub const CTRL: Self = Self(4);
    /// GDTR and IDTR.
    pub const TABLES: Self = Self(8);
    pub const ALL: Self = Self(15);

    /// All of `o` are in.
    #[inline]
    pub const fn contains(self, o: Self) -> bool {
        self.0 & o.0 == o.0
    }
    /// Some of `o` are in.
    #[inline]
    pub const fn intersects(self, o: Self) -> bool {
        self.0 & o.0 != 0
    }
    /// Both together.
    #[inline]
    pub const fn union(self, o: Self) -> Self {
        Self(self.0 | o.0)
    }
    /// These groups less those of `o`.
    #[inline]
    pub const fn without(self, o: Self) -> Self {
        Self(self.0 & !o.0)
    }
    /// Whether no group is in.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Architectural state of a vCPU outside the vendor's structure.
#[derive(Clone, Debug, Default)]
pub struct CpuState {
    /// General registers, RIP, RFLAGS.
    pub regs: Regs,
    /// System registers; valid as far as `avail` says. `cr2` is always valid.
    pub sregs: Sregs,
    /// Groups of `sregs` that are up to date.
    pub avail: Groups,
    /// Groups of `sregs` (subset of `avail`) that the next entry has to write.
    pub dirty: Groups,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6 as the guest sees it.
    pub dr6: u64,
    /// DR7 as the guest sees it.
    pub dr7: u64,
}

/// STI or MOV SS blocking (SDM 3A 7.8.3), NMI blocking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interruptibility {
    /// Interrupts blocked for one instruction by STI.
    pub sti: bool,
    /// Interrupts and debug exceptions blocked for one instruction by MOV SS or POP SS.
    pub mov_ss: bool,
    /// NMIs blocked until IRET.
    pub nmi: bool,
}

/// MSRs that the vendor keeps: those of [`VcpuBackend::msr`] that are not part of [`Sregs`].
pub const KEPT_MSRS: [u32; 11] = [
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::FMASK,
    index::KERNEL_GS_BASE,
    index::PAT,
    index::TSC_AUX,
    index::SPEC_CTRL,
];

/// What a vendor keeps of a guest beside [`CpuState`], at some moment between two stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct VendorState {
    /// [`KEPT_MSRS`]; `None` for one that it does not keep.
    pub msrs: [Option<u64>; KEPT_MSRS.len()],
    /// Interrupt shadow and NMI blocking.
    pub blocking: Interruptibility,
    /// As [`VcpuBackend::insn_len`].
    pub insn_len: u8,
    /// As [`VcpuBackend::pdptes`].
    pub pdptes: Option<[u64; 4]>,
    /// VMX: pending debug exceptions and activity state.
    pub pending_debug: u64,
    #[allow(missing_docs)]
    pub activity: u32,
}

/// Which of the optional exits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exits {
    /// Every RDMSR and WRMSR, also of MSRs that the guest may otherwise reach directly.
    pub all_msrs: bool,
    /// HLT.
    pub hlt: bool,
    /// Loops of PAUSE, where the processor can tell them.
    pub pause: bool,
    /// CR0.CD and CR0.NW of the guest are kept from the processor. (VMX entries never load them, SDM 3C 27.3.2.1.)
    pub caches_on: bool,
}

impl Default for Exits {
    fn default() -> Self {
        Self {
            all_msrs: false,
            hlt: true,
            pause: true,
            caches_on: true,
        }
    }
}

/// What a processor needs to virtualise a local APIC (SDM 3C 30).
#[derive(Clone, Copy, Debug)]
pub struct ApicPages {
    /// The page that holds the vCPU's APIC registers; it stays where it is as long as the vCPU lives.
    pub registers: Hpa,
    /// The page that the nested page tables may map at the APIC's default address to have accesses virtualised; one per
    /// VM.
    pub access: Hpa,
    /// The vCPU's posted-interrupt descriptor, on a page of its own.
    pub descriptor: Hpa,
}

/// How the guest reaches its local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// By memory at the default address.
    Xapic,
    /// By MSRs.
    X2apic,
    /// Disabled, or at another address.
    Other,
}

/// What the next entry has to use besides the registers.
#[derive(Clone, Copy, Debug)]
pub struct EntryParams {
    /// Root of the nested page tables.
    pub nested_root: Hpa,
    /// Guest translations of this vCPU must go before the guest runs.
    pub flush: bool,
    /// Exit as soon as an external interrupt can be taken.
    pub irq_window: bool,
    /// Exit as soon as an NMI can be taken.
    pub nmi_window: bool,
    /// CR8 as the guest reads it, where reads do not exit.
    pub tpr: u8,
    /// CR8 writes of less than this have to exit: an interrupt waits for a lower priority. 0: none waits; 16: all
    /// writes.
    pub tpr_threshold: u8,
    /// Guest interrupt status to load where the local APIC is virtualised: highest vector requested in the low byte,
    /// highest in service in the high byte (SDM 3C 25.4.2).
    pub apic_status: Option<u16>,
    /// Event to deliver.
    pub inject: Option<Event>,
    /// Run the vendor's entry checks in software before entering.
    pub check: bool,
}

/// Format of nested page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedFormat {
    /// SDM 3C 29.3.
    Ept,
    /// APM 2 15.25.
    Npt,
}

/// What the processor and the backend offer, found at load.
#[derive(Clone, Copy, Debug)]
pub struct HwCaps {
    /// "vmx" or "svm".
    pub name: &'static str,
    /// Entries of nested page tables.
    pub nested_format: NestedFormat,
    /// Nested page tables may have 2 MiB leaves.
    pub nested_2m: bool,
    /// Nested page tables may have 1 GiB leaves.
    pub nested_1g: bool,
    /// A huge leaf that code runs from can machine-check the host when the guest changes it (CVE-2018-12207).
    pub nx_huge: bool,
    /// Nested page tables have accessed and dirty flags.
    pub nested_ad: bool,
    /// The processor can log the pages whose dirty flags it sets there ([`VcpuBackend::set_write_log`]).
    pub write_log: bool,
    /// The processor gives instruction lengths for instruction exits.
    pub insn_len: bool,
    /// RDTSCP and RDPID may be shown to guests.
    pub rdtscp: bool,
    /// INVPCID may be shown to guests.
    pub invpcid: bool,
    /// The processor lacks CR4.UMIP, and SGDT, SIDT, SLDT and STR of guests that set it exit.
    pub umip_exits: bool,
    /// XSAVES may be shown to guests.
    pub xsaves: bool,
    /// The guest's TSC can be scaled: bits behind the point of the ratio, and the highest ratio. 0: it cannot.
    pub tsc_fraction: u32,
    #[allow(missing_docs)]
    pub tsc_ratio_max: u64,
    /// PAUSE loops exit.
    pub pause_exit: bool,
    /// Local APICs are virtualised ([`VcpuBackend::virtualize_apic`]).
    pub apicv: bool,
    /// A running guest takes interrupts from its posted-interrupt descriptor when its CPU is notified.
    pub posted: bool,
    /// A deadline can end a stay ([`VcpuBackend::set_deadline`]).
    pub guest_timer: bool,
    /// Guest-physical address width of the nested page tables' root level (4 levels: 48).
    pub nested_levels: u8,
    /// Width of physical addresses as CPUID gives it. Where firmware has set memory encryption up, the kernel takes
    /// fewer bits for the host's addresses.
    pub phys_bits: u8,
    /// Bits that are reserved in a PDPTE of a guest, beside the address bits that do not exist.
    pub pdpte_reserved: u64,
    /// Accesses to CR2 may exit, which they do on no processor.
    pub cr2_exits: bool,
}

/// A stay that goes on: until it is over, the task runs on one CPU with interrupts off and must not sleep, and the
/// processor has the state of one vCPU's guest. It is nothing at run time.
///
/// Handlers of exits take an `Option<&Stay<'_>>`, which is `None` outside.
pub struct Stay<'irq> {
    irqs_off: IrqsOff<'irq>,
    own_mm: InOwnMm<'irq>,
}

/// The right to begin a stay on this CPU, once: [`Stay::hold`] ends it before interrupts come on.
pub struct Begin<'irq>(ThisCpu<'irq>);

impl<'irq> Stay<'irq> {
    /// Runs `body` in a stay of the vCPU whose vendor part `hw` finds in `owner`. The current address space is that of
    /// the vCPU's VM. Errors: those of [`VcpuBackend::begin_stay`].
    #[inline(always)]
    pub(crate) fn hold<O, V: VcpuBackend, R>(
        this_cpu: ThisCpu<'irq>,
        own_mm: InOwnMm<'irq>,
        owner: &mut O,
        hw: impl Fn(&mut O) -> &mut V,
        body: impl FnOnce(&mut O, &Self) -> R,
    ) -> Result<R> {
        hw(owner).begin_stay(Begin(this_cpu))?;
        let stay = Self {
            irqs_off: this_cpu.irqs_off(),
            own_mm,
        };
        let result = body(owner, &stay);
        hw(owner).end_stay(stay);
        Ok(result)
    }

    /// What says that interrupts are off.
    #[inline(always)]
    pub fn irqs_off(&self) -> IrqsOff<'_> {
        self.irqs_off
    }

    /// What says whose address space it is.
    #[inline(always)]
    pub(crate) fn own_mm(&self) -> InOwnMm<'_> {
        self.own_mm
    }
}

impl<'irq> Begin<'irq> {
    /// The CPU of the stay.
    #[inline(always)]
    pub fn this_cpu(&self) -> ThisCpu<'irq> {
        self.0
    }
}

/// One vCPU's vendor part. Everything here runs under the vCPU's mutex; `&mut` makes it impossible to enter twice.
pub trait VcpuBackend: Sized {
    /// Allocates the vendor's structures with controls set and guest state as after RESET.
    ///
    /// Called in process context. `id` is the vCPU's id, for messages and VPID choice; `features` is the most that a
    /// guest's CPUID may show on this host.
    fn new(id: u32, features: &GuestFeatures) -> Result<Self>;

    /// Turns interrupts off on a CPU where a stay can begin: what another CPU's processor may still hold of this vCPU
    /// has been written back there. Interrupts are on.
    #[inline(always)]
    fn irqs_off(&mut self) -> IrqGuard {
        IrqGuard::new()
    }

    /// Starts a stay. Fails with a clear log line when root mode cannot be had.
    fn begin_stay(&mut self, begin: Begin<'_>) -> Result;

    /// Ends the stay; host state of this vendor is as before.
    fn end_stay(&mut self, stay: Stay<'_>);

    /// Carries out what a stay left for when the host's state is complete, and enables interrupts, which have been off
    /// since before the stay.
    fn after_stay(&mut self, irqs: IrqGuard) {
        drop(irqs);
    }

    /// Writes dirty state, enters the guest, and brings back `regs` and `cr2`.
    /// On return `avail` and `dirty` are both empty, except after [`Exit::EntryFailure`].
    ///
    /// Without `params`: with those of the last entry of this stay, which delivered nothing, asked for no window and no
    /// flush, and was not checked.
    fn enter(&mut self, stay: &Stay<'_>, cpu: &mut CpuState, params: Option<&EntryParams>) -> Exit;

    /// Fetches groups of system registers into `cpu.sregs` and adds them to `avail`. *Any*.
    fn load(&mut self, cpu: &mut CpuState, groups: Groups);

    /// What decides about fetches, in a stay. Of the state that the last exit left: nothing is dirty.
    fn code(&self, rflags: u64) -> Option<Code>;

    /// One segment register, where it can be had in a stay for less than [`VcpuBackend::load`]. Of the state that the
    /// last exit left: nothing is dirty.
    fn segment(&mut self, seg: Seg) -> Option<Segment>;

    /// Current privilege level, where it can be had in a stay for less than [`VcpuBackend::load`]. Of the state that
    /// the last exit left: nothing is dirty.
    fn cpl(&self) -> Option<u8> {
        None
    }

    /// CR8 as the guest left it, where writes that are above [`EntryParams::tpr_threshold`] do not exit.
    fn tpr(&self) -> Option<u8> {
        None
    }

    /// Length of the instruction that caused the last exit, where the processor told it.
    fn insn_len(&self) -> Option<u8>;

    /// Instruction bytes of the last nested fault, where the processor gave them (decode assists).
    fn insn_bytes(&self) -> Option<([u8; 16], u8)>;

    /// Takes the event whose delivery the last exit interrupted. To be called once after every exit.
    fn take_interrupted(&mut self) -> Option<Event>;

    /// Whether [`VcpuBackend::take_interrupted`] has something to take.
    fn was_interrupted(&self) -> bool;

    /// After [`Exit::TripleFault`]: true if the processor has not kept the guest's state. Then MSRs are those of RESET,
    /// and all else has to be written anew. *Any*.
    fn lost_state(&mut self) -> bool {
        false
    }

    /// An instruction was completed in software: the shadow of the one before it is over. *Any*.
    fn end_shadow(&mut self);

    /// Interrupt shadow and NMI blocking after the last exit. *Any*.
    fn interruptibility(&mut self) -> Interruptibility;

    /// Sets interrupt shadow and NMI blocking for the next entry. *Any*.
    fn set_interruptibility(&mut self, i: Interruptibility);

    /// Reads an MSR that lives in the vendor's structure or is swapped by it (SYSENTER, STAR, LSTAR, CSTAR, FMASK,
    /// FS/GS/KERNEL_GS base, PAT, TSC_AUX, SPEC_CTRL); `None` for one it does not keep. *Any*.
    fn msr(&mut self, index: u32) -> Option<u64>;

    /// Writes such an MSR; the value has been validated. False for one it does not keep. *Any*.
    fn set_msr(&mut self, index: u32, value: u64) -> bool;

    /// Guest TSC = host TSC, scaled, + `offset` (mod 2^64). *Any*.
    fn set_tsc_offset(&mut self, offset: u64);

    /// The ratio by which the host's TSC is scaled; only where [`HwCaps::tsc_fraction`] is not 0. *Any*.
    fn set_tsc_ratio(&mut self, _ratio: u64) {}

    /// Exit with [`Exit::PreemptionTimer`] when the host's TSC comes to this value while the guest runs, and at every
    /// entry after that; `u64::MAX`: never. Only where [`HwCaps::guest_timer`]. *Any*.
    fn set_deadline(&mut self, _host_tsc: u64) {}

    /// Exceptions to intercept besides #DB, #UD, #AC and #MC: bit per vector. *Any*.
    fn set_exception_intercepts(&mut self, vectors: u32);

    /// Has the processor virtualise the local APIC from now on: it delivers what IRR holds and carries out the guest's
    /// plain register accesses and EOIs. Before the first stay. False where it cannot.
    fn virtualize_apic(&mut self, _pages: &ApicPages) -> bool {
        false
    }

    /// Has the processor keep the TPR alone in the page of APIC registers: CR8 accesses reach it there, and exit as
    /// [`EntryParams::tpr_threshold`] says. Before the first stay, in place of [`VcpuBackend::virtualize_apic`]. False
    /// where it cannot.
    fn shadow_tpr(&mut self, _registers: Hpa) -> bool {
        false
    }

    /// How the guest reaches its virtualised local APIC from the next entry on. *Any*.
    fn set_apic_mode(&mut self, _mode: ApicMode) {}

    /// Vectors whose EOI has to exit, where the local APIC is virtualised. *Any*.
    fn set_eoi_exits(&mut self, _vectors: &[u32; 8]) {}

    /// Has the processor log the pages whose dirty bits it sets in the nested page tables, from the next entry on, or
    /// no more. Only where [`HwCaps::write_log`]. Outside stays; sleeps. Errors: ENOMEM.
    fn set_write_log(&mut self, _on: bool) -> Result {
        Ok(())
    }

    /// Calls `page` for each page that the processor has logged, and empties its log. To be called after
    /// [`Exit::LogFull`], and at the end of each stay with the log on.
    fn take_write_log(&mut self, _stay: &Stay<'_>, _page: impl FnMut(Gpa)) {}

    /// Chooses the optional exits. *Any*.
    fn set_exits(&mut self, exits: Exits);

    /// The guest spins, and nobody needs its CPU: loops of PAUSE may last twice as long from now on before they exit.
    /// False: as long as at first. *Any*.
    fn set_spinning(&mut self, on: bool);

    /// The guest runs after the next entry, also where it has executed a HLT that does not exit ([`Exits::hlt`]) and
    /// its processor waits. *Any*.
    fn wake(&mut self) {}

    /// Page-directory-pointer-table entries of a guest in PAE paging (CR0.PG, CR4.PAE, not EFER.LMA). The core reads
    /// them from guest memory at CR3 and calls this after it changed CR0, CR3, CR4 or EFER to end in that mode; the
    /// processor does not load them at entry (SDM 3C 27.3.2.4). SVM needs nothing: NPT guests load them on
    /// demand (APM 2 15.25.10).
    fn set_pdptes(&mut self, _pdptes: [u64; 4]) {}

    /// Those entries as the processor has them, where it keeps them between entries. *Any*.
    fn pdptes(&mut self) -> Option<[u64; 4]> {
        None
    }

    /// All that it keeps. Not in a stay. EIO: root operation cannot be had.
    fn save(&mut self) -> Result<VendorState>;

    /// Becomes what was saved. Not in a stay. EIO: root operation cannot be had.
    fn put_back(&mut self, saved: &VendorState) -> Result;

    /// Runs the manual's entry checks over the state that the next entry would use. *Any*.
    fn check_entry(
        &mut self,
        cpu: &mut CpuState,
        params: &EntryParams,
    ) -> Result<(), EntryViolation>;
}

/// The processor-wide part of a vendor.
pub trait Platform {
    /// Vendor part of a vCPU.
    type Vcpu: VcpuBackend;

    /// Finds out whether this machine can run guests. On failure logs a sentence that names what is missing and how
    /// to get it, and returns ENODEV (no such feature), EOPNOTSUPP (feature lacks a part), or EBUSY (taken).
    ///
    /// What all vCPUs share is found as long as the owner lives.
    fn probe() -> Result<(HwCaps, Owner)>;

    /// Prepares the calling CPU (per-CPU areas, SVME …). Runs on each CPU at load and when a CPU comes up. Interrupts
    /// off.
    fn cpu_up() -> Result;

    /// Undoes [`Platform::cpu_up`] on the calling CPU. Interrupts off.
    fn cpu_down();

    /// The machine is going to halt or start anew. On one CPU, interrupts on.
    fn shutdown() {
        Self::cpu_down();
    }

    /// The answer to `RVMM_CAP_ROOT`.
    fn root() -> u32 {
        0
    }
}
