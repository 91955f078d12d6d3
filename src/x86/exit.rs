// SPDX-License-Identifier: GPL-2.0
//! The neutral exit: what a guest did that needs the hypervisor, in a form that both vendors produce.
//!
//! The run loop matches it exhaustively, so an exit that nobody handles does not compile.

use crate::abi::record::Subject;
use crate::abi::stats::ExitClass;
use crate::mem::addr::Gpa;
use crate::x86::cpu::regs::{Gpr, Regs};

/// Why the guest stopped running. The vendors' own reasons stop here, except inside [`Exit::Unknown`] and
/// [`Exit::EntryFailure`], which are reported to user space.
#[derive(Clone, Copy, Debug)]
pub enum Exit {
    /// A host interrupt is pending; it is delivered when the host enables interrupts.
    HostInterrupt,
    /// A host NMI arrived and has been delivered.
    HostNmi,
    /// A machine check arrived in the guest; the kernel handles it when the stay has ended.
    HostMachineCheck,
    /// A machine check made the entry fail: as above, and user space is told. The value is
    /// `hardware_entry_failure_reason`.
    EntryMachineCheck(u64),
    /// The guest can now take an external interrupt (a window had been requested).
    IrqWindow,
    /// The guest can now take an NMI.
    NmiWindow,
    /// CPUID.
    Cpuid,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// HLT.
    Hlt,
    /// PAUSE executed in a loop.
    Pause,
    /// WBINVD, WBNOINVD or INVD.
    CacheInvalidate,
    /// XSETBV.
    Xsetbv,
    /// RDPMC.
    Rdpmc,
    /// MONITOR or MWAIT.
    MonitorMwait,
    /// A port access.
    Io(Io),
    /// A nested-paging violation.
    NestedFault(NestedFault),
    /// A control-register access.
    CrAccess(CrAccess),
    /// A debug-register access; the instruction has to be decoded.
    DrAccess,
    /// An exception that is intercepted.
    Exception(Exception),
    /// A split lock met the host's detection of them, which is off for this vCPU from now on.
    SplitLock,
    /// An instruction that does not exist for this guest (VMX and SVM instructions): #UD.
    Undefined,
    /// SGDT, SIDT, SLDT, STR or one of their loads, of a guest whose CR4.UMIP the processor lacks.
    DescriptorTable,
    /// RSM, which the processor refuses or leaves to us: it is not in SMM itself.
    Rsm,
    /// A hardware task switch that the processor leaves to software.
    TaskSwitch(TaskSwitch),
    /// The guest went into the shutdown state (triple fault).
    TripleFault,
    /// The VMX preemption timer ran out.
    PreemptionTimer,
    /// APIC virtualisation: an EOI of a vector in the EOI-exit bitmap (SDM 3C 30.1.4).
    VirtualEoi(u8),
    /// APIC virtualisation: a trap-like write at this page offset (SDM 3C 30.4.3.3).
    ApicWrite(u16),
    /// The processor's log of written pages is full (SDM 3C 29.3.6).
    LogFull,
    /// The TPR shadow fell below the threshold.
    TprBelowThreshold,
    /// The processor refused the entry. The value is `hardware_entry_failure_reason`.
    EntryFailure(u64),
    /// A reason that is not known. The value is `hardware_exit_reason`.
    Unknown(u64),
}

impl Exit {
    /// Class for the statistics. The handler of a nested fault counts [`ExitClass::Mmio`] as well when it finds a
    /// device there.
    #[inline(always)]
    pub const fn class(&self) -> ExitClass {
        match self {
            Self::HostInterrupt => ExitClass::ExternalInterrupt,
            Self::HostNmi | Self::HostMachineCheck | Self::EntryMachineCheck(_) => ExitClass::Nmi,
            Self::IrqWindow => ExitClass::IrqWindow,
            Self::NmiWindow => ExitClass::NmiWindow,
            Self::Cpuid => ExitClass::Cpuid,
            Self::Rdmsr => ExitClass::Rdmsr,
            Self::Wrmsr => ExitClass::Wrmsr,
            Self::Hypercall => ExitClass::Hypercall,
            Self::Hlt => ExitClass::Hlt,
            Self::Pause => ExitClass::Pause,
            Self::CacheInvalidate => ExitClass::Wbinvd,
            Self::Xsetbv => ExitClass::Xsetbv,
            Self::Rdpmc => ExitClass::Rdtsc,
            Self::MonitorMwait => ExitClass::Mwait,
            Self::Io(io) => {
                if io.string {
                    ExitClass::IoString
                } else {
                    ExitClass::Io
                }
            }
            Self::NestedFault(_) | Self::LogFull => ExitClass::NestedFault,
            Self::CrAccess(_) => ExitClass::CrAccess,
            Self::DrAccess => ExitClass::DrAccess,
            Self::Exception(_) | Self::SplitLock => ExitClass::Exception,
            Self::TaskSwitch(_) => ExitClass::TaskSwitch,
            Self::TripleFault => ExitClass::TripleFault,
            Self::VirtualEoi(_) | Self::ApicWrite(_) | Self::TprBelowThreshold => ExitClass::Apic,
            Self::EntryFailure(_) => ExitClass::EntryFailure,
            Self::Undefined
            | Self::DescriptorTable
            | Self::Rsm
            | Self::PreemptionTimer
            | Self::Unknown(_) => ExitClass::Other,
        }
    }
}

/// [`Subject::detail`] of exits that have no other number for it.
mod detail {
    /// In [`ExitClass::Nmi`].
    pub(super) const NMI: u32 = 1;
    pub(super) const MACHINE_CHECK: u32 = 2;
    /// In [`ExitClass::Apic`].
    pub(super) const EOI: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const TPR: u32 = 3;
    /// In [`ExitClass::Other`].
    pub(super) const UNDEFINED: u32 = 1;
    pub(super) const DESCRIPTOR_TABLE: u32 = 2;
    pub(super) const RSM: u32 = 3;
    pub(super) const TIMER: u32 = 4;
    pub(super) const UNKNOWN: u32 = 5;
}

impl Exit {
    /// What the recorder says of it, in the numbers that uapi/rvmm.h has for its class. `regs`: as it left them.
    #[inline]
    pub fn subject(&self, regs: &Regs) -> Subject {
        let low = |r| regs.get(r) & 0xffff_ffff;
        let both = || low(Gpr::Rdx) << 32 | low(Gpr::Rax);
        let (address, value, detail) = match self {
            Self::Cpuid => (low(Gpr::Rax), low(Gpr::Rcx), 0),
            Self::Rdmsr | Self::Rdpmc => (low(Gpr::Rcx), 0, 0),
            Self::Wrmsr | Self::Xsetbv => (low(Gpr::Rcx), both(), 0),
            Self::Hypercall => (regs.get(Gpr::Rax), regs.get(Gpr::Rbx), 0),
            Self::Io(io) => {
                let kind = u32::from(io.input) << 8 | u32::from(io.string) << 9;
                let out = if io.input || io.string {
                    0
                } else {
                    low(Gpr::Rax)
                };
                (io.port.into(), out, kind | u32::from(io.width))
            }
            Self::NestedFault(f) => {
                let how = u32::from(f.write) | u32::from(f.fetch) << 1 | u32::from(f.walk) << 2;
                (f.gpa.0, 0, how)
            }
            Self::LogFull => (0, 0, 1 << 3),
            Self::CrAccess(c) => {
                let from = c.gpr.filter(|_| c.write).map_or(0, |r| regs.get(r));
                let (op, value) = match c.op {
                    CrOp::Mov => (0, from),
                    CrOp::Clts => (1, 0),
                    CrOp::Lmsw(source) => (2, source.into()),
                    CrOp::Decode => (3, 0),
                };
                (c.cr.into(), value, u32::from(c.write) | op << 8)
            }
            Self::Exception(e) => (e.vector.into(), e.payload, e.error_code.unwrap_or(0)),
            // #AC.
            Self::SplitLock => (17, 0, 0),
            Self::TaskSwitch(t) => (t.selector.into(), 0, t.by as u32),
            Self::HostNmi => (0, 0, detail::NMI),
            Self::HostMachineCheck => (0, 0, detail::MACHINE_CHECK),
            Self::EntryMachineCheck(reason) => (*reason, 0, detail::MACHINE_CHECK),
            Self::VirtualEoi(vector) => ((*vector).into(), 0, detail::EOI),
            Self::ApicWrite(offset) => ((*offset).into(), 0, detail::WRITE),
            Self::TprBelowThreshold => (0, 0, detail::TPR),
            Self::EntryFailure(reason) => (*reason, 0, 0),
            Self::Undefined => (0, 0, detail::UNDEFINED),
            Self::DescriptorTable => (0, 0, detail::DESCRIPTOR_TABLE),
            Self::Rsm => (0, 0, detail::RSM),
            Self::PreemptionTimer => (0, 0, detail::TIMER),
            Self::Unknown(reason) => (*reason, 0, detail::UNKNOWN),
            Self::HostInterrupt
            | Self::IrqWindow
            | Self::NmiWindow
            | Self::Hlt
            | Self::Pause
            | Self::CacheInvalidate
            | Self::MonitorMwait
            | Self::DrAccess
            | Self::TripleFault => (0, 0, 0),
        };
        Subject {
            address,
            value,
            detail,
        }
    }
}

/// A hardware task switch (SDM 3A 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the new task's TSS.
    pub selector: u16,
    /// What asked for it.
    pub by: TaskSwitchBy,
}

/// What asked for a task switch (SDM 3C table 28-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSwitchBy {
    /// CALL.
    Call,
    /// IRET.
    Iret,
    /// JMP.
    Jump,
    /// A task gate in the IDT.
    Gate,
}

/// A row of [`INSTRUCTIONS`]: the exit, its basic exit reasons on VMX, its exit codes on SVM.
pub type Instruction = (Exit, &'static [u32], &'static [u32]);

/// The exits that say no more than that one of certain instructions was met, with the numbers that the vendors have for
/// them (SDM 3D table C-1, APM 2 appendix C). Both vendors' `decode` make a table of their own numbers from it, by
/// [`by_number`].
///
/// On VMX the processor tells the instruction's length (SDM 3C 28.2.5), and many of these exits want a control in
/// `src/x86/vmx/config.rs`. On SVM a code from 60H to 9FH is intercepted because it stands here.
pub const INSTRUCTIONS: &[Instruction] = &[
    (Exit::Cpuid, &[10], &[0x72]),
    (Exit::Hlt, &[12], &[0x78]),
    // SVM has one code for both, which `decode` tells apart.
    (Exit::Rdmsr, &[31], &[]),
    (Exit::Wrmsr, &[32], &[]),
    (Exit::Hypercall, &[18], &[0x81]),
    (Exit::Rdpmc, &[15], &[0x6f]),
    (Exit::CacheInvalidate, &[13, 54], &[0x76, 0x89]),
    (Exit::Pause, &[40], &[0x77]),
    (Exit::MonitorMwait, &[39, 36], &[0x8a, 0x8b]),
    (Exit::Xsetbv, &[55], &[0x8d]),
    (Exit::Rsm, &[17], &[0x73]),
    (Exit::DescriptorTable, &[46, 47], &[]),
    // GETSEC, VMCLEAR to VMXON, INVEPT, INVVPID, INVPCID, VMFUNC, ENCLS, SEAMCALL, TDCALL; INVLPGA, VMRUN, VMLOAD to
    // SKINIT, RDPRU.
    (
        Exit::Undefined,
        &[
            11, 19, 20, 21, 22, 23, 24, 25, 26, 27, 50, 53, 58, 59, 60, 76, 77,
        ],
        &[0x7a, 0x80, 0x82, 0x83, 0x84, 0x85, 0x86, 0x8e],
    ),
];

/// Which numbers of [`INSTRUCTIONS`] are meant.
#[derive(Clone, Copy, Debug)]
pub enum Numbers {
    /// Basic exit reasons (VMX).
    Reasons,
    /// Exit codes (SVM).
    Codes,
}

/// The exits of [`INSTRUCTIONS`] by number: `N` of them, from `first` on. For constants: a number outside of these, or
/// one that two exits have, does not compile there.
pub const fn by_number<const N: usize>(numbers: Numbers, first: u32) -> [Option<Exit>; N] {
    let mut table = [None; N];
    let mut row = 0;
    while row < INSTRUCTIONS.len() {
        let (exit, reasons, codes) = INSTRUCTIONS[row];
        let list = match numbers {
            Numbers::Reasons => reasons,
            Numbers::Codes => codes,
        };
        let mut i = 0;
        while i < list.len() {
            let slot = &mut table[(list[i] - first) as usize];
            assert!(slot.is_none(), "two exits have this number");
            *slot = Some(exit);
            i += 1;
        }
        row += 1;
    }
    table
}

/// A port access (SDM 3C 28.2.1 table 28-5, APM 2 15.10.2).
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// Port number.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub width: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS: the instruction has to be decoded for its memory operand.
    pub string: bool,
}

/// What an access that failed in the nested page tables wanted to do.
#[derive(Clone, Copy, Debug)]
pub struct NestedFault {
    /// Guest-physical address that was accessed.
    pub gpa: Gpa,
    /// Data write (or a page walk setting accessed and dirty bits).
    pub write: bool,
    /// Instruction fetch.
    pub fetch: bool,
    /// The access was to a guest page table, in the course of a guest-linear walk.
    pub walk: bool,
}

/// A control-register access.
#[derive(Clone, Copy, Debug)]
pub struct CrAccess {
    /// 0, 3, 4 or 8.
    pub cr: u8,
    /// MOV to CR (or CLTS, LMSW), else MOV from CR.
    pub write: bool,
    /// General register involved, or `None` when the instruction has to be decoded.
    pub gpr: Option<Gpr>,
    /// CLTS, LMSW with the source value, or MOV.
    pub op: CrOp,
}

/// The instruction behind a [`CrAccess`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrOp {
    /// MOV to or from the register.
    Mov,
    /// CLTS.
    Clts,
    /// LMSW with this 16-bit source.
    Lmsw(u16),
    /// Not told by the processor: decode the instruction.
    Decode,
}

/// An intercepted exception.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, where the vector has one.
    pub error_code: Option<u32>,
    /// For #DB the bits that DR6 would get; for #PF the faulting address.
    pub payload: u64,
}

impl Exception {
    /// Whether the vector is one with a payload: DR6 bits of #DB, CR2 of #PF.
    pub const fn has_payload(&self) -> bool {
        matches!(self.vector, 1 | 14)
    }
}

/// An event to be delivered by the next entry, or one whose delivery an exit interrupted
/// (SDM 3C 25.8.3, 25.9.3; APM 2 15.20, 15.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Kind of event.
    pub kind: EventKind,
    /// Vector; 2 for an NMI.
    pub vector: u8,
    /// Error code to push.
    pub error_code: Option<u32>,
    /// Instruction length for software events, else 0.
    pub insn_len: u8,
}

impl Event {
    /// As an interruption-information field (SDM 3C table 25-18): vector, type, whether there is an error code, valid.
    pub const fn information(&self) -> u32 {
        let kind = self.kind as u32;
        self.vector as u32 | kind << 8 | (self.error_code.is_some() as u32) << 11 | 1 << 31
    }
}

/// Kind of an [`Event`], by its number in an interruption-information field (SDM 3C table 25-18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum EventKind {
    ExternalInterrupt = 0,
    Nmi = 2,
    /// Hardware exception.
    Exception = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1 (ICEBP).
    PrivilegedSoftwareException = 5,
    /// INT3 or INTO.
    SoftwareException = 6,
}
