// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How a virtual machine ended.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};

#[cfg(target_arch = "aarch64")]
use crate::arm64::cpu::write_registers;

/// How a virtual machine ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Exit {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset (i8042 pulse, PSCI's call or another system event).
    Reset,
    /// The guest's kernel panicked and then reset: a reset that the kernel noted to be a warm one, as
    /// [`DEFAULT_CMDLINE`](crate::boot::DEFAULT_CMDLINE) makes it do after a panic.
    Panic,
    /// Somebody outside the guest asked for the end: the console's escape or a [`StopHandle`].
    ///
    /// [`StopHandle`]: crate::StopHandle
    Stopped,
    /// The guest cannot go on.
    Crash(Box<Crash>),
    /// The CPU refused to enter the guest.
    EntryFailure(Box<EntryFailure>),
}

/// Why a guest cannot go on, with the state of the CPU that met it.
#[derive(Clone, Debug)]
pub struct Crash {
    /// The CPU.
    pub vcpu: usize,
    /// One line: what happened.
    pub what: String,
    /// Further lines, such as the suberror and the instruction's bytes.
    pub detail: Vec<String>,
    /// General registers, if they could be read.
    pub regs: Option<kvm_regs>,
    /// Control and segment registers, if they could be read.
    pub sregs: Option<Box<kvm_sregs>>,
}

/// A VM entry that the CPU refused (`KVM_EXIT_FAIL_ENTRY`).
#[derive(Clone, Debug)]
pub struct EntryFailure {
    /// The virtual CPU.
    pub vcpu: usize,
    /// The physical CPU.
    pub cpu: u32,
    /// `hardware_entry_failure_reason`: exit reason (VMX) or exit code (SVM).
    pub reason: u64,
    /// The rule that was broken, where the hypervisor can name it, and the offending value.
    pub rule: Option<(String, u64)>,
    /// General registers, if they could be read.
    pub regs: Option<kvm_regs>,
    /// Control and segment registers, if they could be read.
    pub sregs: Option<Box<kvm_sregs>>,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::PowerOff => f.write_str("guest power-off"),
            Exit::Reset => f.write_str("guest reset"),
            Exit::Panic => f.write_str("the guest's kernel panicked"),
            Exit::Stopped => f.write_str("stopped"),
            Exit::Crash(crash) => crash.fmt(f),
            Exit::EntryFailure(failure) => failure.fmt(f),
        }
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest crashed: vCPU {}: {}", self.vcpu, self.what)?;
        for line in &self.detail {
            write!(f, "\n  {line}")?;
        }
        write_registers(f, self.regs.as_ref(), self.sregs.as_deref())
    }
}

impl fmt::Display for EntryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "VM entry failed: vCPU {} on CPU {}: hardware_entry_failure_reason {:#x}",
            self.vcpu, self.cpu, self.reason
        )?;
        match &self.rule {
            Some((rule, value)) => write!(f, "\n  {rule} (value {value:#x})")?,
            None => f.write_str("\n  (the host's kernel log may say more)")?,
        }
        write_registers(f, self.regs.as_ref(), self.sregs.as_deref())
    }
}

#[cfg(target_arch = "x86_64")]
fn write_registers(
    f: &mut fmt::Formatter<'_>,
    regs: Option<&kvm_regs>,
    sregs: Option<&kvm_sregs>,
) -> fmt::Result {
    if let Some(r) = regs {
        write!(
            f,
            "\n  rip {:016x} rflags {:08x} rsp {:016x} rbp {:016x}\
             \n  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\
             \n  rsi {:016x} rdi {:016x} r8  {:016x} r9  {:016x}\
             \n  r10 {:016x} r11 {:016x} r12 {:016x} r13 {:016x}\
             \n  r14 {:016x} r15 {:016x}",
            r.rip,
            r.rflags,
            r.rsp,
            r.rbp,
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15
        )?;
    }
    if let Some(s) = sregs {
        write!(
            f,
            "\n  cr0 {:08x} cr2 {:016x} cr3 {:016x} cr4 {:08x} efer {:x}\
             \n  cs {:04x} base {:x} ss {:04x} ds {:04x} tr {:04x} gdt {:x}+{:x} idt {:x}+{:x}",
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.efer,
            s.cs.selector,
            s.cs.base,
            s.ss.selector,
            s.ds.selector,
            s.tr.selector,
            s.gdt.base,
            s.gdt.limit,
            s.idt.base,
            s.idt.limit
        )?;
    }
    Ok(())
}
