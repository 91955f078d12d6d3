// SPDX-License-Identifier: GPL-2.0
//! When a vCPU's cached translations go: INVEPT and INVVPID (SDM 3C 29.4).
//!
//! With EPT every cached guest translation is a combined or guest-physical mapping, tagged with the root
//! of its EPT (and, combined, with VPID and PCID; SDM 3C 29.4.1). Each VM has a root of its own, so the VPID only has
//! to differ between the vCPUs of one VM: it is derived from the vCPU's id and needs no allocator. A clash with
//! kvm_intel's numbers is harmless for the same reason.
//!
//! - The core asks for a flush, the root changes, or the vCPU runs on another CPU than last time (where older
//!   translations may survive, even from an earlier owner of the root's page): INVEPT of the root.
//! - Control registers are written from outside the guest: INVVPID, because the guest's own MOV would have flushed.
//!
//! `vcpu` calls before an entry, in the stay (interrupts off).

use super::config::VmcsConfig;
use super::insn::{self, Current, InveptType, InvvpidType};
use crate::pr_err_ratelimited;

/// The flushes that the next entry owes.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) vpid: u16,
    /// Everything of the EPT root.
    pub(super) root: bool,
    /// Everything of the VPID.
    pub(super) linear: bool,
}

impl Flush {
    /// Of the vCPU with number `id`.
    pub(super) const fn new(id: u32) -> Self {
        Self {
            // 1 to 65535; ids of one VM are unique and far below.
            vpid: (id % 0xffff) as u16 + 1,
            root: true,
            linear: false,
        }
    }

    /// Carries out what is owed, in a stay, with the EPT pointer that the entry uses.
    pub(super) fn carry_out(&mut self, vm: Current<'_>, config: &VmcsConfig, eptp: u64) {
        if self.root {
            self.invalidate_root(vm, config, eptp);
        } else if self.linear {
            self.invalidate_vpid(vm, config);
        }
        self.root = false;
        self.linear = false;
    }

    /// INVEPT of this vCPU's root. It covers the combined mappings of every VPID too.
    fn invalidate_root(&self, _: Current<'_>, config: &VmcsConfig, eptp: u64) {
        let kind = if config.invept_single() {
            InveptType::SingleContext
        } else {
            InveptType::AllContexts
        };
        // SAFETY: A current VMCS means VMX root operation.
        if unsafe { insn::invept(kind, eptp) }.is_err() {
            pr_err_ratelimited!("INVEPT failed\n");
        }
    }

    /// INVVPID of this vCPU. Without VPIDs every entry flushes.
    fn invalidate_vpid(&self, _: Current<'_>, config: &VmcsConfig) {
        if !config.vpid() {
            return;
        }
        let kind = if config.invvpid_single() {
            InvvpidType::SingleContext
        } else {
            InvvpidType::AllContexts
        };
        // SAFETY: A current VMCS means VMX root operation.
        if unsafe { insn::invvpid(kind, self.vpid) }.is_err() {
            pr_err_ratelimited!("INVVPID failed\n");
        }
    }
}
