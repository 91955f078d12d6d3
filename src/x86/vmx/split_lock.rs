// SPDX-License-Identifier: GPL-2.0
//! Split locks: locked accesses to two cache lines. A host that detects them (MSR_TEST_CTRL, SDM 4 table 2-2) has #AC
//! raised in guests as well, which do not know of it and would take it for a bug of theirs.
//!
//! The vCPU calls this under its mutex, in a stay.

use super::insn::Current;
use super::vmcs::*;
use crate::linux::bindings::X86_FEATURE_SPLIT_LOCK_DETECT;
use crate::linux::{boot_cpu, msr};
use crate::pr_warn_ratelimited;
use crate::x86::cpu::index;
use crate::x86::cpu::regs::{cr0, rflags};

/// MSR_TEST_CTRL: split locks raise #AC.
const DETECT: u64 = 1 << 29;

/// Whether #AC in a guest with these RFLAGS and CPL comes from the host's detection: the guest has not asked for
/// alignment checks (SDM 3A 7.15, interrupt 17).
#[cold]
pub(super) fn is_cause(vm: Current<'_>, flags: u64, cpl: u8) -> bool {
    let asked = cpl == 3 && flags & rflags::AC != 0 && vm.read(GUEST_CR0) & cr0::AM != 0;
    !asked && boot_cpu::has(X86_FEATURE_SPLIT_LOCK_DETECT)
}

/// The host's detection, which a vCPU goes without once it has met it.
#[derive(Debug, Default)]
pub(super) struct SplitLock {
    met: bool,
    /// MSR_TEST_CTRL, to put back at the end of the stay.
    host: Option<u64>,
}

impl SplitLock {
    /// Switches detection off for a vCPU that has met it.
    #[inline]
    pub(super) fn begin_stay(&mut self) {
        if self.met {
            self.switch_off();
        }
    }

    /// The vCPU has met the detection: none from now on.
    #[cold]
    pub(super) fn allow(&mut self) {
        if !core::mem::replace(&mut self.met, true) {
            pr_warn_ratelimited!(
                "a guest locks memory across cache lines; where it runs, the core does not detect split locks\n"
            );
        }
        self.switch_off();
    }

    /// The register is the core's: another hardware thread's kernel may switch the detection on again, and the guest
    /// then meets it once more.
    #[cold]
    fn switch_off(&mut self) {
        // SAFETY: The register exists where the kernel detects split locks, and reading it has no side effect.
        let value = unsafe { msr::read(index::TEST_CTRL) };
        if value & DETECT != 0 {
            self.host = Some(value);
            // SAFETY: Without detection a split lock locks the bus, as on processors that lack it. The kernel makes
            // none, and `end_stay` puts the value back.
            unsafe { msr::write(index::TEST_CTRL, value & !DETECT) };
        }
    }

    /// Puts the host's value back.
    #[inline]
    pub(super) fn end_stay(&mut self) {
        if let Some(value) = self.host.take() {
            // SAFETY: The value was found in this stay.
            unsafe { msr::write(index::TEST_CTRL, value) };
        }
    }
}
