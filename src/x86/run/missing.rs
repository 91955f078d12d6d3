// SPDX-License-Identifier: GPL-2.0
//! Guest memory that user space brings when it is asked for (`RVMM_MEM_MISSING`, uapi/rvmm.h).
//!
//! Handlers call, with the vCPU's mutex held, outside of stays and of readers' sections of the slots: what is missing
//! may take user space a while, and that may want to change slots meanwhile.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::uapi;
use crate::mem::addr::Gpa;
use crate::mem::missing::{Absent, Event, Waited};
use kernel::prelude::*;

impl Runner<'_> {
    /// Before the page at `gpa` is accessed: reports it if it is missing, and waits for it where user space wants that.
    /// `Some`: KVM_RUN ends instead, and nothing has been done.
    #[inline]
    pub(super) fn bring_in(&mut self, gpa: Gpa, write: bool) -> Option<Step> {
        let page = self.vm.missing_at(gpa)?;
        self.report_missing(page, write)
    }

    /// As [`Runner::bring_in`], of a page that has been found missing.
    #[cold]
    #[inline(never)]
    pub(super) fn report_missing(&mut self, page: Absent, write: bool) -> Option<Step> {
        if self.run.get(exits::IMMEDIATE_EXIT) != 0 {
            return Some(self.interrupted());
        }
        let event = Event {
            page,
            vcpu: self.vcpu.shared.id,
            write,
        };
        match self.vm.missing.wait(event) {
            Ok(Waited::Answered) => None,
            // Who emulates would find it missing again, and ask without end.
            Ok(Waited::Failed) => Some(self.memory_fault(page.gpa, 0, EFAULT)),
            Ok(Waited::Nobody) => {
                let mut flags = uapi::RVMM_MEMORY_EXIT_MISSING;
                if write {
                    flags |= uapi::RVMM_MEMORY_EXIT_WRITE;
                }
                Some(self.memory_fault(page.gpa, flags, EFAULT))
            }
            Err(e) if e == EINTR => Some(self.interrupted()),
            Err(e) => Some(Step::Fail(e)),
        }
    }
}
