// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is known of each class of exits: one table, in the order of the classes' numbers (`ExitClass` in
//! `src/abi/stats.rs`). A test holds it against the tree.

use kvm_bindings as k;

use crate::trace::ring::Record;

/// One class.
pub struct Row {
    /// As in the statistic `exit_...`.
    pub class: &'static str,
    /// What the guest did, or what happened to it, as a verb.
    pub did: &'static str,
    /// What `rvmm_record.address` is; empty if it is nothing.
    pub address: &'static str,
    /// Why that is an exit on an Intel processor, with the section of SDM volume 3C (VMCS in chapter 25).
    pub intel: &'static str,
    /// On an AMD processor, with the section of APM volume 2.
    pub amd: &'static str,
    /// What the processor tells of it, besides RIP and the general registers.
    pub fields: &'static str,
    /// Who decides.
    pub file: &'static str,
    pub function: &'static str,
    /// What makes it slow, if it is.
    pub slow: &'static str,
}

const NO_FIELDS: &str = "no further field";
const NEVER_INTEL: &str = "no exit of this class on Intel";
const NEVER_AMD: &str = "no exit of this class on AMD";

/// All classes.
pub const ROWS: &[Row] = &[
    Row {
        class: "cpuid",
        did: "executed CPUID",
        address: "leaf",
        intel: "CPUID exits always (26.1.2)",
        amd: "CPUID is intercepted (15.9)",
        fields: "the instruction's length",
        file: "src/x86/run/cpuid.rs",
        function: "cpuid",
        slow: "nothing but the world switch: the answer is a look-up in the vCPU's table",
    },
    Row {
        class: "rdmsr",
        did: "executed RDMSR",
        address: "MSR",
        intel: "the MSR bitmap does not let it pass (26.1.3)",
        amd: "the MSR permissions map intercepts it (15.11)",
        fields: "the instruction's length",
        file: "src/x86/run/msr.rs",
        function: "rdmsr",
        slow: "an MSR that a filter or user space answers, which takes KVM_RUN's return",
    },
    Row {
        class: "wrmsr",
        did: "executed WRMSR",
        address: "MSR",
        intel: "the MSR bitmap does not let it pass (26.1.3)",
        amd: "the MSR permissions map intercepts it (15.11)",
        fields: "the instruction's length",
        file: "src/x86/run/msr.rs",
        function: "wrmsr",
        slow: "a write with effects elsewhere: an interrupt that is sent, a page of KVM's or Hyper-V's that is written",
    },
    Row {
        class: "io",
        did: "executed IN or OUT",
        address: "port",
        intel: "the control \"unconditional I/O exiting\" is set (26.1.3)",
        amd: "the I/O permissions map intercepts it (15.10)",
        fields: "port, width and direction (exit qualification or EXITINFO1)",
        file: "src/x86/run/port.rs",
        function: "io",
        slow: "a device in user space: the thread returns there and comes back; one in the kernel is answered at once",
    },
    Row {
        class: "io_string",
        did: "executed INS or OUTS",
        address: "port",
        intel: "the control \"unconditional I/O exiting\" is set (26.1.3)",
        amd: "the I/O permissions map intercepts it (15.10)",
        fields: "port, width and direction (exit qualification or EXITINFO1)",
        file: "src/x86/run/port.rs",
        function: "io",
        slow: "the instruction is fetched, decoded and emulated with its memory operand",
    },
    Row {
        class: "nested_fault",
        did: "accessed memory that its nested page table does not map",
        address: "guest-physical",
        intel: "an EPT violation (29.3.3.2), or the page-modification log was full (29.3.6)",
        amd: "a nested page fault (15.25.6)",
        fields: "the guest-physical address and what the access was (exit qualification or EXITINFO1 and 2)",
        file: "src/x86/run/nested_fault.rs",
        function: "short_fault",
        slow: "a page that the host has not mapped writable at this moment: the host's own fault comes first, in \
               `nested_fault`",
    },
    Row {
        class: "mmio",
        did: "accessed an address where no memory is, so a device",
        address: "guest-physical",
        intel: "an EPT violation (29.3.3.2)",
        amd: "a nested page fault (15.25.6)",
        fields: "the guest-physical address; on AMD the instruction's bytes where the processor has decode assists",
        file: "src/x86/run/nested_fault.rs",
        function: "short_fault",
        slow: "the instruction has to be found in guest memory and decoded, and a device in user space asked; other \
               than plain moves go the long way, by `decode_and_emulate` in src/x86/run/mmio.rs",
    },
    Row {
        class: "hlt",
        did: "executed HLT",
        address: "",
        intel: "the control \"HLT exiting\" is set (26.1.3)",
        amd: "HLT is intercepted (15.9)",
        fields: "the instruction's length",
        file: "src/x86/run/hlt.rs",
        function: "hlt",
        slow: "the sleep itself: the thread polls for a while and then gives its CPU away until an event comes",
    },
    Row {
        class: "hypercall",
        did: "executed VMCALL or VMMCALL",
        address: "RAX",
        intel: "VMCALL exits always (26.1.2)",
        amd: "VMMCALL is intercepted (15.9)",
        fields: "the instruction's length",
        file: "src/x86/run/hypercall.rs",
        function: "hypercall",
        slow: "calls that send interrupts to many, or that user space answers",
    },
    Row {
        class: "cr_access",
        did: "accessed a control register",
        address: "CR",
        intel: "the guest/host mask owns a bit that it changes, or the control for this register is set (26.1.3)",
        amd: "the access is intercepted (15.9)",
        fields: "which register, how, and by which general register (exit qualification, or decode assists: 15.8.1)",
        file: "src/x86/run/cr.rs",
        function: "cr_access",
        slow: "a change of paging: translations are flushed, and PDPTEs are read from memory",
    },
    Row {
        class: "dr_access",
        did: "accessed a debug register",
        address: "",
        intel: "the control \"MOV-DR exiting\" is set (26.1.3)",
        amd: "the access is intercepted (15.9)",
        fields: "the instruction's length",
        file: "src/x86/run/dr.rs",
        function: "dr_access",
        slow: "the instruction is fetched and decoded; after the first one the registers are the guest's for the stay",
    },
    Row {
        class: "external_interrupt",
        did: "was interrupted: an interrupt of the host's was pending",
        address: "",
        intel: "the control \"external-interrupt exiting\" is set (26.2)",
        amd: "INTR is intercepted (15.13.1)",
        fields: NO_FIELDS,
        file: "src/x86/run/handle.rs",
        function: "handle_frequent",
        slow: "the stay ends: FPU and host state are exchanged, interrupts come on, the host's handler runs, and \
               perhaps another task",
    },
    Row {
        class: "nmi",
        did: "was interrupted by an NMI or a machine check of the host's",
        address: "",
        intel: "the control \"NMI exiting\" is set, or #MC is in the exception bitmap (26.2)",
        amd: "NMI (15.13.2) or #MC (15.12) is intercepted",
        fields: "the interruption information",
        file: "src/x86/run/handle.rs",
        function: "handle",
        slow: "the host's handler",
    },
    Row {
        class: "irq_window",
        did: "became able to take an interrupt, which the entry before had asked to be told",
        address: "",
        intel: "the control \"interrupt-window exiting\" is set (26.2)",
        amd: "the virtual interrupt is intercepted (15.13.5)",
        fields: NO_FIELDS,
        file: "src/x86/run/event.rs",
        function: "irq_window",
        slow: "nothing: the interrupt is delivered by the next entry",
    },
    Row {
        class: "nmi_window",
        did: "became able to take an NMI, which the entry before had asked to be told",
        address: "",
        intel: "the control \"NMI-window exiting\" is set (26.2)",
        amd: "IRET is intercepted while NMIs are blocked (15.9)",
        fields: NO_FIELDS,
        file: "src/x86/run/handle.rs",
        function: "handle",
        slow: "nothing: the NMI is delivered by the next entry",
    },
    Row {
        class: "exception",
        did: "raised an exception that is intercepted",
        address: "vector",
        intel: "its bit in the exception bitmap is set (26.2)",
        amd: "the vector is intercepted (15.12)",
        fields: "vector, error code, and DR6 or CR2 (interruption information or EXITINFO1 and 2)",
        file: "src/x86/run/exception.rs",
        function: "exception",
        slow: "#UD, whose instruction is looked at in `undefined`; an exception that goes back to the guest costs an \
               injection",
    },
    Row {
        class: "triple_fault",
        did: "shut down: it could not deliver a double fault",
        address: "",
        intel: "a triple fault exits always (26.2)",
        amd: "shutdown is intercepted (15.14.3)",
        fields: NO_FIELDS,
        file: "src/x86/run/exception.rs",
        function: "processor_shutdown",
        slow: "it is the end of the machine, or its reset by user space",
    },
    Row {
        class: "pause",
        did: "executed PAUSE in a loop",
        address: "",
        intel: "the loop went on for longer than PLE_Window (26.1.3)",
        amd: "the PAUSE filter ran out (15.14.4)",
        fields: NO_FIELDS,
        file: "src/x86/run/hlt.rs",
        function: "pause",
        slow: "the thread gives its turn to a vCPU that waits for a CPU, if there is one",
    },
    Row {
        class: "wbinvd",
        did: "executed WBINVD, WBNOINVD or INVD",
        address: "",
        intel: "INVD exits always (26.1.2), the others by the control \"WBINVD exiting\" (26.1.3)",
        amd: "these are intercepted (15.9)",
        fields: "the instruction's length",
        file: "src/x86/run/handle.rs",
        function: "write_back_caches",
        slow: "a device of the guest's that reaches memory past the caches: all CPUs write back theirs",
    },
    Row {
        class: "xsetbv",
        did: "executed XSETBV",
        address: "XCR",
        intel: "XSETBV exits always (26.1.2)",
        amd: "XSETBV is intercepted (15.9)",
        fields: "the instruction's length",
        file: "src/x86/run/cr.rs",
        function: "xsetbv",
        slow: "nothing but the world switch and the exchange of XCR0",
    },
    Row {
        class: "invlpg",
        did: "executed INVLPG",
        address: "",
        intel: NEVER_INTEL,
        amd: NEVER_AMD,
        fields: NO_FIELDS,
        file: "src/x86/run/handle.rs",
        function: "handle",
        slow: "with nested paging INVLPG is the guest's own business",
    },
    Row {
        class: "task_switch",
        did: "switched to another hardware task",
        address: "selector",
        intel: "task switches exit always (26.2)",
        amd: "task switches are intercepted for this guest (15.14.1)",
        fields: "selector and source (exit qualification or EXITINFO1 and 2)",
        file: "src/x86/run/task.rs",
        function: "task_switch",
        slow: "two TSSs and the segments' descriptors are read and written in guest memory",
    },
    Row {
        class: "rdtsc",
        did: "executed RDPMC",
        address: "ECX",
        intel: "the control \"RDPMC exiting\" is set (26.1.3)",
        amd: "RDPMC is intercepted (15.9)",
        fields: NO_FIELDS,
        file: "src/x86/run/exception.rs",
        function: "raise_gp",
        slow: "guests have no PMU: it is #GP",
    },
    Row {
        class: "mwait",
        did: "executed MONITOR or MWAIT",
        address: "",
        intel: "the controls \"MONITOR exiting\" and \"MWAIT exiting\" are set (26.1.3)",
        amd: "both are intercepted (15.9)",
        fields: "the instruction's length",
        file: "src/x86/run/hlt.rs",
        function: "monitor_mwait",
        slow: "nothing: it is #UD, or does nothing where user space wants that",
    },
    Row {
        class: "apic",
        did: "used its local APIC in a way that the processor does not carry out by itself",
        address: "vector or offset",
        intel: "an EOI that somebody waits for (30.1.4), a write with effects (30.4.3.3), or a TPR below the threshold \
                (30.1.2)",
        amd: NEVER_AMD,
        fields: "vector or offset (exit qualification)",
        file: "src/x86/run/apic.rs",
        function: "apic_write",
        slow: "an interrupt that is sent to another vCPU, which may have to be woken",
    },
    Row {
        class: "entry_failure",
        did: "was not entered: the processor refused its state",
        address: "reason",
        intel: "a check of guest state failed (27.3.1, 27.8)",
        amd: "a consistency check of VMRUN failed (15.5.1)",
        fields: "the reason, then all fields that the checks in software look at",
        file: "src/x86/run/entry_failure.rs",
        function: "entry_failure",
        slow: "all entry checks are made in software, to name the rule that is broken",
    },
    Row {
        class: "other",
        did: "did something rare",
        address: "",
        intel: "an instruction of VMX (26.1.2), a descriptor-table access (26.1.3), or the preemption timer (26.5.1)",
        amd: "an instruction of SVM, or RSM, is intercepted (15.9)",
        fields: "what the kind has",
        file: "src/x86/run/handle.rs",
        function: "handle",
        slow: "what the kind does",
    },
];

/// A class's number.
pub fn number(class: &str) -> Option<u8> {
    let n = ROWS.iter().position(|row| row.class == class)?;
    u8::try_from(n).ok()
}

/// What was decided, in a few words.
pub fn decision(record: &Record) -> String {
    match record.decision {
        1 => "again".into(),
        2 => "resume".into(),
        3 => "leave".into(),
        4 => format!("user space, {}", reason(record.reason)),
        5 => format!("KVM_RUN fails, errno {}", record.reason),
        other => format!("decision {other}"),
    }
}

/// By which path, in a word.
pub fn path(path: u8) -> &'static str {
    match path {
        1 => "short",
        2 => "stay",
        3 => "outside",
        _ => "?",
    }
}

/// The name of a KVM_EXIT_*.
pub fn reason(reason: u32) -> String {
    let names = [
        (k::KVM_EXIT_UNKNOWN, "UNKNOWN"),
        (k::KVM_EXIT_IO, "IO"),
        (k::KVM_EXIT_HYPERCALL, "HYPERCALL"),
        (k::KVM_EXIT_DEBUG, "DEBUG"),
        (k::KVM_EXIT_HLT, "HLT"),
        (k::KVM_EXIT_MMIO, "MMIO"),
        (k::KVM_EXIT_IRQ_WINDOW_OPEN, "IRQ_WINDOW_OPEN"),
        (k::KVM_EXIT_SHUTDOWN, "SHUTDOWN"),
        (k::KVM_EXIT_FAIL_ENTRY, "FAIL_ENTRY"),
        (k::KVM_EXIT_INTR, "INTR"),
        (k::KVM_EXIT_SET_TPR, "SET_TPR"),
        (k::KVM_EXIT_TPR_ACCESS, "TPR_ACCESS"),
        (k::KVM_EXIT_INTERNAL_ERROR, "INTERNAL_ERROR"),
        (k::KVM_EXIT_SYSTEM_EVENT, "SYSTEM_EVENT"),
        (k::KVM_EXIT_IOAPIC_EOI, "IOAPIC_EOI"),
        (k::KVM_EXIT_HYPERV, "HYPERV"),
        (k::KVM_EXIT_X86_RDMSR, "X86_RDMSR"),
        (k::KVM_EXIT_X86_WRMSR, "X86_WRMSR"),
        (k::KVM_EXIT_DIRTY_RING_FULL, "DIRTY_RING_FULL"),
        (k::KVM_EXIT_MEMORY_FAULT, "MEMORY_FAULT"),
    ];
    match names.iter().find(|(number, _)| *number == reason) {
        Some((_, name)) => format!("KVM_EXIT_{name}"),
        None => format!("exit reason {reason}"),
    }
}

/// What an interruption-information field says (SDM 3C 25.8.3).
pub fn event(information: u32) -> String {
    let vector = information & 0xff;
    match information >> 8 & 7 {
        0 => format!("interrupt {vector}"),
        2 => "an NMI".into(),
        3 => format!("exception {vector}"),
        4 => format!("INT {vector}"),
        5 => "INT1".into(),
        6 => format!("exception {vector} of INT3 or INTO"),
        other => format!("event {vector} of type {other}"),
    }
}
