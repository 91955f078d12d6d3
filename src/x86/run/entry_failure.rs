// SPDX-License-Identifier: GPL-2.0
//! Entries that the processor refused (SDM 3C 28.8; APM 2 15.5.1), and KVM_EXIT_FAIL_ENTRY.
//!
//! Dispatch calls, with the vCPU's mutex held and interrupts on.

use super::{Runner, Step};
use crate::abi::exits;
use crate::pr_warn_ratelimited;
use crate::x86::vendor::{EntryParams, Stay, VcpuBackend};

impl Runner<'_> {
    /// KVM_EXIT_FAIL_ENTRY, with the rule that the state breaks, if the manual has one.
    pub(super) fn entry_failure(&mut self, reason: u64, stay: Option<&Stay<'_>>) -> Step {
        if stay.is_some() {
            return Step::Slow;
        }
        let params = EntryParams {
            nested_root: self.memory().root(),
            flush: false,
            irq_window: false,
            nmi_window: false,
            tpr: 0,
            tpr_threshold: 0,
            apic_status: None,
            inject: self.refused,
            check: true,
        };
        let mut f = crate::abi::uapi::EntryFailure {
            reason,
            value: 0,
            rule: [0; 240],
        };
        let text = match self.s.hw.check_entry(&mut self.s.cpu, &params) {
            Err(v) => {
                f.value = v.value;
                pr_warn_ratelimited!(
                    "vCPU {}: entry refused: {} ({}), value {:#x}\n",
                    self.vcpu.shared.id,
                    v.rule,
                    v.manual,
                    v.value
                );
                (v.rule, v.manual)
            }
            Ok(()) => {
                pr_warn_ratelimited!(
                    "vCPU {}: entry refused, reason {:#x}\n",
                    self.vcpu.shared.id,
                    reason
                );
                ("The processor refused the entry for a reason that the entry checks do not know", "")
            }
        };
        let parts = [
            text.0.as_bytes(),
            if text.1.is_empty() { b"" } else { b" (" },
            text.1.as_bytes(),
            if text.1.is_empty() { b"" } else { b")" },
        ];
        // The last byte stays zero.
        for (to, from) in f.rule.iter_mut().take(239).zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        self.s.entry_failure = Some(f);
        let cpu = self.s.last_stay.cpu;
        self.ask(&exits::FailEntry { reason, cpu })
    }
}
