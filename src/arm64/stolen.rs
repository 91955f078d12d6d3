// SPDX-License-Identifier: GPL-2.0
//! Stolen time: how long a vCPU's thread has waited for a CPU (Arm DEN 0057; KVM_ARM_VCPU_PVTIME_CTRL, kernel document
//! virt/kvm/devices/vcpu.rst).

use crate::linux::{sched, uaccess};
use crate::mem::addr::Gpa;
use crate::mem::memory::{GuestMemory, MemoryView};
use crate::mem::resident::resident;
use crate::mem::ring::Ring;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Offset of the time in the guest's structure, whose revision and attributes, before it, are zero.
const TIME: usize = 8;

/// Where it is told, and what has been.
#[derive(Default)]
pub(crate) struct Stolen {
    /// Guest-physical, a multiple of 64.
    at: Option<u64>,
    /// The guest has asked for it: it begins at zero.
    begins: bool,
    /// The thread's wait when it was told last.
    told: u64,
}

impl Stolen {
    /// Where the guest finds it, if user space has said so.
    pub(crate) fn place(&self) -> Option<u64> {
        self.at
    }

    /// User space says where. EEXIST: it has; EINVAL: no multiple of 64.
    pub(crate) fn set_place(&mut self, at: u64) -> Result {
        if at % 64 != 0 {
            return Err(EINVAL);
        }
        if self.at.is_some() {
            return Err(EEXIST);
        }
        self.at = Some(at);
        Ok(())
    }

    /// The guest asks for it.
    pub(crate) fn begin(&mut self) {
        self.begins = true;
    }

    /// Outside of a stay: the guest is told what has become of it. What cannot be written is not told, as in KVM. May
    /// sleep.
    #[inline]
    pub(crate) fn tell(&mut self, memory: &GuestMemory, ring: &Option<Arc<Ring>>) {
        if let Some(at) = self.at {
            let now = sched::run_delay();
            if self.begins || now != self.told {
                let _ = self.write(&memory.view_of(ring), Gpa(at), now);
            }
        }
    }

    #[cold]
    fn write(&mut self, view: &MemoryView<'_>, at: Gpa, now: u64) -> Result {
        let begins = core::mem::take(&mut self.begins);
        // Another thread may run the vCPU now: it has no common past with the last one.
        let more = now.saturating_sub(core::mem::replace(&mut self.told, now));
        // A multiple of 64: in one page.
        let hva = view.hva_to_write(at, true)?;
        let time_at = hva.checked_add(TIME).ok_or(EFAULT)?;
        let time = if begins {
            resident(hva, || uaccess::put_u64(hva, 0))?;
            0
        } else {
            resident(hva, || uaccess::get_u64(time_at))?.wrapping_add(more)
        };
        resident(hva, || uaccess::put_u64(time_at, time))?;
        view.mark_dirty(at);
        Ok(())
    }
}
