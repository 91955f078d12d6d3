// SPDX-License-Identifier: GPL-2.0
//! What KVM_ENABLE_CAP and KVM_X86_SET_MSR_FILTER have set for a VM (api.rst 4.37, 4.97, 7, 8).

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::bus::set::MAX_VCPU_ID;
use crate::linux::boot_cpu;
use crate::nospec::Nospec;
use crate::params;
use crate::pr_warn_ratelimited;
use crate::x86::adapt::PollLimits;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, Mutex};
use kernel::uaccess::{UserPtr, UserSlice};

/// Causes for which a guest's RDMSR or WRMSR may go to user space (KVM_CAP_X86_USER_SPACE_MSR).
const USER_SPACE_MSR: u64 = (k::KVM_MSR_EXIT_REASON_INVAL
    | k::KVM_MSR_EXIT_REASON_UNKNOWN
    | k::KVM_MSR_EXIT_REASON_FILTER) as u64;

/// Direction of an MSR access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Direction {
    /// RDMSR.
    Read = k::KVM_MSR_FILTER_READ,
    /// WRMSR.
    Write = k::KVM_MSR_FILTER_WRITE,
}

struct Range {
    flags: u32,
    base: u32,
    count: u32,
    bitmap: KVec<u8>,
}

/// What KVM_X86_SET_MSR_FILTER allows.
pub(crate) struct MsrFilter {
    default_allow: bool,
    ranges: KVec<Range>,
}

impl MsrFilter {
    /// Whether the guest may do that without asking user space. The x2APIC's registers are never filtered (api.rst
    /// 4.97).
    pub(crate) fn allows(&self, msr: u32, direction: Direction) -> bool {
        if (0x800..=0x8ff).contains(&msr) {
            return true;
        }
        for r in self.ranges.iter() {
            let n = msr.wrapping_sub(r.base);
            if r.flags & direction as u32 != 0 && n < r.count {
                return r
                    .bitmap
                    .get_nospec((n / 8) as usize)
                    .is_some_and(|b| b & 1 << (n % 8) != 0);
            }
        }
        self.default_allow
    }

    /// Reads `struct kvm_msr_filter`. EINVAL, EFAULT.
    fn from_user(arg: usize) -> Result<Self> {
        /// `struct kvm_msr_filter_range`, and where the array of them begins.
        const RANGE: usize = size_of::<k::kvm_msr_filter_range>();
        const FIRST: usize = core::mem::offset_of!(k::kvm_msr_filter, ranges);
        let mut raw = KVec::from_elem(0u8, size_of::<k::kvm_msr_filter>(), GFP_KERNEL_ACCOUNT)?;
        UserSlice::new(UserPtr::from_addr(arg), raw.len())
            .reader()
            .read_slice(&mut raw)?;
        let word = |at: usize| {
            raw.get(at..at.saturating_add(4))
                .and_then(|b| b.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        let flags = word(0);
        if flags & !k::KVM_MSR_FILTER_DEFAULT_DENY != 0 {
            return Err(EINVAL);
        }
        let default_allow = flags & k::KVM_MSR_FILTER_DEFAULT_DENY == 0;
        let places = (0..k::KVM_MSR_FILTER_MAX_RANGES as usize).map(|i| FIRST + i * RANGE);
        // Denying everything would be a mistake.
        if !default_allow && places.clone().all(|at| word(at + 4) == 0) {
            return Err(EINVAL);
        }
        let mut ranges = KVec::new();
        for at in places {
            let (flags, count, base) = (word(at), word(at + 4), word(at + 8));
            if count == 0 {
                continue;
            }
            const VALID: u32 = k::KVM_MSR_FILTER_READ | k::KVM_MSR_FILTER_WRITE;
            let bytes = count.div_ceil(64) as usize * 8;
            if flags & !VALID != 0
                || flags == 0
                || bytes > k::KVM_MSR_FILTER_MAX_BITMAP_SIZE as usize
            {
                return Err(EINVAL);
            }
            let address = u64::from(word(at + 16)) | u64::from(word(at + 20)) << 32;
            let mut bitmap = KVec::from_elem(0u8, bytes, GFP_KERNEL_ACCOUNT)?;
            UserSlice::new(UserPtr::from_addr(usize::try_from(address)?), bytes)
                .reader()
                .read_slice(&mut bitmap)?;
            ranges.push(
                Range {
                    flags,
                    base,
                    count,
                    bitmap,
                },
                GFP_KERNEL_ACCOUNT,
            )?;
        }
        Ok(Self {
            default_allow,
            ranges,
        })
    }
}

/// What is enabled, or switched off, on one VM.
#[pin_data]
pub(crate) struct VmCaps {
    quirks_off: AtomicU64,
    user_space_msr: AtomicU32,
    #[pin]
    msr_filter: Mutex<Option<Arc<MsrFilter>>>,
    exit_on_emulation_failure: AtomicBool,
    hide_platform_info: AtomicBool,
    disabled_exits: AtomicU64,
    hypercall_exits: AtomicU64,
    /// Ids of vCPUs are below this; 0 until it is fixed.
    max_vcpu_ids: AtomicU32,
    bus_cycle_ns: AtomicU32,
    halt_poll_ns: AtomicU32,
}

impl VmCaps {
    /// Quirks that user space may switch off (KVM_CAP_DISABLE_QUIRKS2). SLOT_ZAP_ALL makes no difference here, and
    /// CD_NW_CLEARED none on Intel.
    pub(crate) const QUIRKS: u64 = (k::KVM_X86_QUIRK_LINT0_REENABLED
        | k::KVM_X86_QUIRK_CD_NW_CLEARED
        | k::KVM_X86_QUIRK_LAPIC_MMIO_HOLE
        | k::KVM_X86_QUIRK_OUT_7E_INC_RIP
        | k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
        | k::KVM_X86_QUIRK_FIX_HYPERCALL_INSN
        | k::KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
        | k::KVM_X86_QUIRK_SLOT_ZAP_ALL
        | k::KVM_X86_QUIRK_STUFF_FEATURE_MSRS) as u64;

    /// Exits that user space may switch off (KVM_CAP_X86_DISABLE_EXITS).
    pub(crate) const EXITS: u64 =
        (k::KVM_X86_DISABLE_EXITS_HLT | k::KVM_X86_DISABLE_EXITS_PAUSE) as u64;

    /// Hypercalls that can go to user space (KVM_CAP_EXIT_HYPERCALL).
    pub(crate) const HYPERCALLS: u64 = 1 << HC_MAP_GPA_RANGE;

    /// Nothing is enabled.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            quirks_off: AtomicU64::new(0),
            user_space_msr: AtomicU32::new(0),
            msr_filter <- new_mutex!(None),
            exit_on_emulation_failure: AtomicBool::new(false),
            hide_platform_info: AtomicBool::new(false),
            disabled_exits: AtomicU64::new(0),
            hypercall_exits: AtomicU64::new(0),
            max_vcpu_ids: AtomicU32::new(0),
            bus_cycle_ns: AtomicU32::new(1),
            halt_poll_ns: AtomicU32::new(params::halt_poll_ns()),
        })
    }

    /// Whether KVM's historical behaviour is wanted, one of `KVM_X86_QUIRK_*`.
    pub(crate) fn quirk(&self, quirk: u32) -> bool {
        self.quirks_off.load(Ordering::Relaxed) & u64::from(quirk) == 0
    }

    /// Whether a failed MSR access goes to user space, by cause (KVM_MSR_EXIT_REASON_*).
    pub(crate) fn user_space_msr(&self, reason: u32) -> bool {
        self.user_space_msr.load(Ordering::Relaxed) & reason != 0
    }

    /// The filter of MSR accesses, if there is one.
    pub(crate) fn msr_filter(&self) -> Option<Arc<MsrFilter>> {
        self.msr_filter.lock().clone()
    }

    /// KVM_X86_SET_MSR_FILTER. The vCPUs have to be told.
    pub(crate) fn set_msr_filter(&self, arg: usize) -> Result {
        let new = MsrFilter::from_user(arg)?;
        // Nothing denied and no range: the same as none.
        let new = if new.default_allow && new.ranges.is_empty() {
            None
        } else {
            Some(Arc::new(new, GFP_KERNEL_ACCOUNT)?)
        };
        let old = core::mem::replace(&mut *self.msr_filter.lock(), new);
        drop(old);
        Ok(())
    }

    /// KVM_CAP_EXIT_ON_EMULATION_FAILURE.
    pub(crate) fn exit_on_emulation_failure(&self) -> bool {
        self.exit_on_emulation_failure.load(Ordering::Relaxed)
    }

    /// Whether a guest may read MSR_PLATFORM_INFO (KVM_CAP_MSR_PLATFORM_INFO).
    pub(crate) fn platform_info_readable(&self) -> bool {
        !self.hide_platform_info.load(Ordering::Relaxed)
    }

    /// KVM_X86_DISABLE_EXITS_* of all vCPUs.
    pub(crate) fn disabled_exits(&self) -> u64 {
        self.disabled_exits.load(Ordering::Relaxed)
    }

    /// Whether this hypercall goes to user space (KVM_CAP_EXIT_HYPERCALL).
    pub(crate) fn hypercall_exits(&self, number: u64) -> bool {
        number < 64 && self.hypercall_exits.load(Ordering::Relaxed) & 1 << number != 0
    }

    /// One cycle of the APIC timer's clock.
    pub(crate) fn bus_cycle_ns(&self) -> u32 {
        self.bus_cycle_ns.load(Ordering::Relaxed)
    }

    /// How long a halted vCPU may poll, and how that adapts.
    pub(crate) fn poll_limits(&self) -> PollLimits {
        let [grow, grow_start, shrink] = params::halt_poll_steps();
        PollLimits {
            max: self.halt_poll_ns.load(Ordering::Relaxed),
            grow,
            grow_start,
            shrink,
        }
    }

    /// KVM_CAP_HALT_POLL. EINVAL: more than 32 bits.
    pub(crate) fn set_halt_poll(&self, ns: u64) -> Result {
        let ns = u32::try_from(ns).map_err(|_| EINVAL)?;
        self.halt_poll_ns.store(ns, Ordering::Relaxed);
        Ok(())
    }

    /// A vCPU is about to get this id. EINVAL when it is too high. From then on the limit is fixed.
    pub(crate) fn check_vcpu_id(&self, id: u32) -> Result {
        let limit = match self.max_vcpu_ids.load(Ordering::Relaxed) {
            0 => MAX_VCPU_ID,
            n => n,
        };
        self.max_vcpu_ids.store(limit, Ordering::Relaxed);
        if id < limit {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// Whether KVM_SET_BOOT_CPU_ID may name this id.
    pub(crate) fn may_boot(&self, id: u32) -> bool {
        let limit = self.max_vcpu_ids.load(Ordering::Relaxed);
        id <= MAX_VCPU_ID && (limit == 0 || id <= limit)
    }

    /// KVM_CAP_DISABLE_QUIRKS; unknown ones are passed over.
    pub(crate) fn disable_quirks(&self, quirks: u64) {
        self.quirks_off
            .fetch_or(quirks & Self::QUIRKS, Ordering::Relaxed);
    }

    /// KVM_CAP_DISABLE_QUIRKS2. EINVAL: unknown ones.
    pub(crate) fn disable_known_quirks(&self, quirks: u64) -> Result {
        within(quirks, Self::QUIRKS)?;
        self.disable_quirks(quirks);
        Ok(())
    }

    /// KVM_CAP_X86_USER_SPACE_MSR. EINVAL: unknown causes.
    pub(crate) fn set_user_space_msr(&self, causes: u64) -> Result {
        within(causes, USER_SPACE_MSR)?;
        self.user_space_msr.store(causes as u32, Ordering::Relaxed);
        Ok(())
    }

    /// KVM_CAP_EXIT_ON_EMULATION_FAILURE. EINVAL: neither 0 nor 1.
    pub(crate) fn set_exit_on_emulation_failure(&self, on: u64) -> Result {
        within(on, 1)?;
        self.exit_on_emulation_failure
            .store(on != 0, Ordering::Relaxed);
        Ok(())
    }

    /// KVM_CAP_MSR_PLATFORM_INFO.
    pub(crate) fn set_platform_info(&self, readable: u64) -> Result {
        self.hide_platform_info
            .store(readable == 0, Ordering::Relaxed);
        Ok(())
    }

    /// KVM_CAP_EXIT_HYPERCALL. EINVAL: one that cannot go to user space.
    pub(crate) fn set_hypercall_exits(&self, numbers: u64) -> Result {
        within(numbers, Self::HYPERCALLS)?;
        self.hypercall_exits.store(numbers, Ordering::Relaxed);
        Ok(())
    }

    /// KVM_CAP_X86_DISABLE_EXITS. EINVAL: unknown exits, or there are vCPUs.
    pub(crate) fn disable_exits(&self, exits: u64, has_vcpus: bool) -> Result {
        within(exits, Self::EXITS)?;
        if has_vcpus {
            return Err(EINVAL);
        }
        let idle = exits & !u64::from(k::KVM_X86_DISABLE_EXITS_PAUSE) != 0;
        if idle && boot_cpu::bug(boot_cpu::Bug::SmtRsb) && boot_cpu::smt_possible() {
            // A thread that goes idle leaves its return predictions to its sibling.
            pr_warn_ratelimited!(
                "KVM_CAP_X86_DISABLE_EXITS on a CPU with cross-thread return predictions: \
                 only with SMT off (nosmt) or trusted guests\n"
            );
        }
        self.disabled_exits.fetch_or(exits, Ordering::Relaxed);
        Ok(())
    }

    /// KVM_CAP_MAX_VCPU_ID. EINVAL: too many, not enough for the BSP, or fixed before.
    pub(crate) fn limit_vcpu_ids(&self, limit: u64, boot_cpu: u32) -> Result {
        if limit > u64::from(MAX_VCPU_ID) || u64::from(boot_cpu) > limit {
            return Err(EINVAL);
        }
        match u64::from(self.max_vcpu_ids.load(Ordering::Relaxed)) {
            0 => self.max_vcpu_ids.store(limit as u32, Ordering::Relaxed),
            n if n == limit => {}
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    /// KVM_CAP_X86_APIC_BUS_CYCLES_NS. EINVAL: 0, so long that the longest programmable time (2^32 - 1 counts, divided
    /// by 128) overflows, or there are vCPUs. ENXIO: no local APICs in the kernel.
    pub(crate) fn set_bus_cycle(&self, ns: u64, has_vcpus: bool, has_lapic: bool) -> Result {
        if ns == 0 || (u64::from(u32::MAX) * 128).checked_mul(ns).is_none() {
            return Err(EINVAL);
        }
        if !has_lapic {
            return Err(ENXIO);
        }
        if has_vcpus {
            return Err(EINVAL);
        }
        self.bus_cycle_ns.store(ns as u32, Ordering::Relaxed);
        Ok(())
    }
}

/// EINVAL unless all bits of `value` are in `valid`.
fn within(value: u64, valid: u64) -> Result {
    if value & !valid == 0 {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// KVM_HC_MAP_GPA_RANGE (Documentation/virt/kvm/x86/hypercalls.rst).
pub(crate) const HC_MAP_GPA_RANGE: u64 = 12;

const _: () = assert!(uapi::KVM_X86_SET_MSR_FILTER == 0x4188_aec6);
