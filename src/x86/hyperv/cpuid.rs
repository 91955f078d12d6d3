// SPDX-License-Identifier: GPL-2.0
//! Hyper-V's CPUID leaves: which can be offered, and what those of a vCPU allow (TLFS 2, 4.2; api.rst 4.118
//! KVM_GET_SUPPORTED_HV_CPUID).
#![forbid(unsafe_code)]

use crate::x86::cpu::cpuid::CpuidEntry;
use crate::x86::cpu::index as ix;
use crate::x86::hyperv::defs::{
    access, call, debug, feature, hint, leaf, nested, privilege, INTERFACE,
};

/// Number of leaves.
pub const LEAVES: usize = 10;

/// "Linux KVM Hv", by which guests know that it is not Hyper-V itself.
const VENDOR: [u32; 3] = [0x756e_694c, 0x564b_2078, 0x7648_204d];

/// What leaves can hold. `lapic`: the local APICs are in the kernel. `smt`: hyper-threads may share a core with other
/// guests'. `vcpus`: most vCPUs of a VM.
pub fn supported(lapic: bool, smt: bool, vcpus: u32) -> [CpuidEntry; LEAVES] {
    let [b, c, d] = VENDOR;
    let when = |on: bool, bit: u32| if on { bit } else { 0 };
    let entry = |function, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..CpuidEntry::default()
    };
    [
        entry(leaf::VENDOR, [leaf::DEBUG_CAPABILITIES, b, c, d]),
        entry(leaf::INTERFACE, [INTERFACE, 0, 0, 0]),
        // Of Windows Server 2016, like the rest.
        entry(leaf::VERSION, [0x3839, 0xa_0000, 0, 0]),
        entry(
            leaf::FEATURES,
            [
                access::VP_RUNTIME
                    | access::TIME_REF_COUNT
                    | access::SYNIC
                    | access::TIMERS
                    | access::APIC
                    | access::HYPERCALL
                    | access::VP_INDEX
                    | access::RESET
                    | access::REFERENCE_TSC
                    | access::FREQUENCIES
                    | access::REENLIGHTENMENT
                    | access::TSC_INVARIANT,
                privilege::POST_MESSAGES
                    | privilege::SIGNAL_EVENTS
                    | privilege::DEBUGGING
                    | privilege::EXTENDED_HYPERCALLS,
                0,
                feature::GUEST_DEBUGGING
                    | feature::XMM_INPUT
                    | feature::FREQUENCIES
                    | feature::CRASH
                    | feature::DEBUG
                    | feature::EXTENDED_FLUSH
                    | when(lapic, feature::DIRECT_TIMERS),
            ],
        ),
        entry(
            leaf::HINTS,
            [
                hint::REMOTE_FLUSH
                    | hint::APIC
                    | hint::RELAXED_TIMING
                    | hint::NO_AUTO_EOI
                    | when(lapic, hint::CLUSTER_IPI)
                    | hint::EX_PROCESSOR_MASKS
                    | when(!smt, hint::NO_CORE_SHARING),
                // Rounds of a spin lock before it asks for help: Windows Server 2016's.
                0xfff,
                0,
                0,
            ],
        ),
        // Logical processors as in Windows Server 2016.
        entry(leaf::LIMITS, [vcpus, 64, 0, 0]),
        // For a hypervisor in the guest, which there is none of here. KVM always has the bit.
        entry(leaf::NESTED, [nested::MSR_BITMAP, 0, 0, 0]),
        entry(leaf::DEBUG_VENDOR, [0, b, c, d]),
        // "VS#1".
        entry(leaf::DEBUG_INTERFACE, [0x3123_5356, 0, 0, 0]),
        entry(leaf::DEBUG_CAPABILITIES, [debug::KERNEL_DEBUGGING, 0, 0, 0]),
    ]
}

/// What a vCPU's CPUID says of Hyper-V.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// The interface is there at all.
    pub enabled: bool,
    access: u32,
    privileges: u32,
    features: u32,
    hints: u32,
    /// Rounds of a spin lock, 0 or all ones for never.
    spins: u32,
    debug: u32,
}

impl Granted {
    /// What `table` says.
    pub fn from_table(table: &[CpuidEntry]) -> Self {
        let get = |leaf| {
            let entry = table.iter().find(|e| e.answers(leaf, 0));
            entry.map_or([0; 4], CpuidEntry::values)
        };
        if get(leaf::INTERFACE)[0] != INTERFACE {
            return Self::default();
        }
        let (features, hints) = (get(leaf::FEATURES), get(leaf::HINTS));
        Self {
            enabled: true,
            access: features[0],
            privileges: features[1],
            features: features[3],
            hints: hints[0],
            spins: hints[1],
            debug: get(leaf::DEBUG_CAPABILITIES)[0],
        }
    }

    /// HV_X64_MSR_TSC_INVARIANT_CONTROL decides whether CPUID tells of an invariant TSC.
    pub const fn controls_invariant_tsc(&self) -> bool {
        self.access & access::TSC_INVARIANT != 0
    }

    /// Synthetic debugging is on.
    pub const fn debugs(&self) -> bool {
        self.debug & debug::KERNEL_DEBUGGING != 0
    }

    /// Hypercalls may have their input in XMM registers.
    pub const fn xmm_input(&self) -> bool {
        self.features & feature::XMM_INPUT != 0
    }

    /// Timers may post a vector instead of a message.
    pub const fn direct_timers(&self) -> bool {
        self.features & feature::DIRECT_TIMERS != 0
    }

    /// Whether the leaves name an MSR.
    pub const fn has_msr(&self, index: u32) -> bool {
        let bit = match index {
            ix::HV_GUEST_OS_ID | ix::HV_HYPERCALL => access::HYPERCALL,
            ix::HV_VP_RUNTIME => access::VP_RUNTIME,
            ix::HV_TIME_REF_COUNT => access::TIME_REF_COUNT,
            ix::HV_VP_INDEX => access::VP_INDEX,
            ix::HV_RESET => access::RESET,
            ix::HV_REFERENCE_TSC => access::REFERENCE_TSC,
            ix::HV_SCONTROL..=ix::HV_EOM | ix::HV_SINT0..=ix::HV_SINT15 => access::SYNIC,
            ix::HV_STIMER0_CONFIG..=ix::HV_STIMER3_COUNT => access::TIMERS,
            ix::HV_EOI..=ix::HV_VP_ASSIST_PAGE => access::APIC,
            ix::HV_TSC_FREQUENCY | ix::HV_APIC_FREQUENCY => access::FREQUENCIES,
            ix::HV_REENLIGHTENMENT_CONTROL..=ix::HV_TSC_EMULATION_STATUS => access::REENLIGHTENMENT,
            ix::HV_TSC_INVARIANT_CONTROL => access::TSC_INVARIANT,
            ix::HV_CRASH_P0..=ix::HV_CRASH_CTL => return self.features & feature::CRASH != 0,
            ix::HV_SYNDBG_CONTROL..=ix::HV_SYNDBG_OPTIONS => {
                return self.features & feature::DEBUG != 0;
            }
            _ => return false,
        };
        self.access & bit != 0
    }

    /// Whether the leaves name a call. One that nobody knows is not theirs to forbid.
    pub const fn has_call(&self, code: u16) -> bool {
        let ex = self.hints & hint::EX_PROCESSOR_MASKS != 0;
        let flush = self.hints & hint::REMOTE_FLUSH != 0;
        let ipi = self.hints & hint::CLUSTER_IPI != 0;
        match code {
            call::LONG_SPIN_WAIT => self.spins != 0 && self.spins != u32::MAX,
            call::POST_MESSAGE => self.privileges & privilege::POST_MESSAGES != 0,
            call::SIGNAL_EVENT => self.privileges & privilege::SIGNAL_EVENTS != 0,
            // Without debugging there is no such call.
            call::POST_DEBUG_DATA | call::RETRIEVE_DEBUG_DATA | call::RESET_DEBUG_SESSION => {
                !self.debugs() || self.privileges & privilege::DEBUGGING != 0
            }
            call::FLUSH_LIST | call::FLUSH_SPACE => flush,
            call::FLUSH_LIST_EX | call::FLUSH_SPACE_EX => flush && ex,
            call::SEND_IPI => ipi,
            call::SEND_IPI_EX => ipi && ex,
            call::EXTENDED_FIRST..=call::EXTENDED_LAST => {
                self.privileges & privilege::EXTENDED_HYPERCALLS != 0
            }
            _ => true,
        }
    }
}
