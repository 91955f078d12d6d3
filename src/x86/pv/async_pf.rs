// SPDX-License-Identifier: GPL-2.0
//! Asynchronous page faults: threads of the kernel that bring pages for vCPUs whose guests go on meanwhile.
//!
//! The run loop sends for pages outside stays, under the vCPU's mutex. Who was sent tells the vCPU by a request. Nobody
//! ever waits for one who was sent: a page may be user space's to bring (userfaultfd), which perhaps does so only when
//! the caller is gone. He who comes back to a vCPU that has forgotten him finds what he shared with it, and the module.

use crate::linux::global::{Global, Owner};
use crate::linux::gup;
use crate::linux::workqueue::WorkQueue;
use crate::x86::pv::asked::{Asked, Known};
use crate::x86::shared::{request, VcpuShared};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::Arc;

/// Pages that may be on their way for all guests together. Beyond that vCPUs wait for them.
const MOST: u16 = 1024;

static QUEUE: Global<WorkQueue> = Global::new();

/// At load. ENOMEM.
pub(crate) fn init() -> Result<Owner> {
    QUEUE.set(WorkQueue::new(c"rvmm_async_pf", MOST)?)
}

/// Who was sent and is back, for a vCPU.
struct Back {
    vcpu: Arc<VcpuShared>,
    /// Places of pages in [`Asked`].
    done: AtomicU64,
    failed: AtomicU64,
}

impl Back {
    fn came(&self, place: u32, found: bool) {
        let bit = 1 << (place & 63);
        if !found {
            self.failed.fetch_or(bit, Ordering::Relaxed);
        }
        self.done.fetch_or(bit, Ordering::Release);
        // After `done`: the vCPU takes the request first.
        self.vcpu.request(request::ASYNC_PF);
    }
}

/// A vCPU's part, of which there is nothing until its guest asks for it.
#[derive(Default)]
pub(crate) struct AsyncPf {
    asked: Option<KBox<Asked>>,
    /// Another one after [`AsyncPf::clear`]: places are used again.
    back: Option<Arc<Back>>,
}

impl AsyncPf {
    /// The guest has switched the feature on, or is another one.
    pub(crate) fn tell_all(&mut self) {
        if self.asked.is_none() {
            self.asked = KBox::new(Asked::new(), GFP_KERNEL_ACCOUNT).ok();
        }
        if let Some(asked) = &mut self.asked {
            asked.tell_all();
        }
    }

    /// Nothing is asked for any more.
    pub(crate) fn clear(&mut self) {
        self.back = None;
        if let Some(asked) = &mut self.asked {
            asked.clear();
        }
    }

    /// As [`Asked::look`].
    pub(crate) fn look(&mut self, frame: u64) -> Known {
        self.asked
            .as_mut()
            .map_or(Known::Unavailable, |asked| asked.look(frame))
    }

    /// Has somebody bring the page `frame`, which is at user address `hva` of `mm`, for `vcpu`. Its place and token;
    /// `None`: it cannot be done so.
    pub(crate) fn send(
        &mut self,
        vcpu: &Arc<VcpuShared>,
        frame: u64,
        (mm, hva): (&Mm, usize),
        write: bool,
    ) -> Option<(u32, u32)> {
        let asked = self.asked.as_mut()?;
        let back = match &self.back {
            Some(back) => back.clone(),
            None => {
                let new = Back {
                    vcpu: vcpu.clone(),
                    done: AtomicU64::new(0),
                    failed: AtomicU64::new(0),
                };
                let new = Arc::new(new, GFP_KERNEL_ACCOUNT).ok()?;
                self.back.insert(new).clone()
            }
        };
        let (place, token) = asked.add(frame, vcpu.id)?;
        let mm: ARef<Mm> = mm.into();
        let sent = QUEUE.get().is_some_and(|queue| {
            let bring = move || {
                let found = gup::fault_in_of(&mm, hva, write).is_ok();
                back.came(place, found);
            };
            queue.call(bring).is_ok()
        });
        if !sent {
            asked.remove(place);
            return None;
        }
        Some((place, token))
    }

    /// The guest has been told that the page at `place` is not present.
    pub(crate) fn tell(&mut self, place: u32) {
        if let Some(asked) = &mut self.asked {
            asked.tell(place);
        }
    }

    /// Takes what those have brought who are back. Returns whether the guest is to be told of something.
    pub(crate) fn collect(&mut self) -> bool {
        let Some(asked) = &mut self.asked else {
            return false;
        };
        if let Some(back) = &self.back {
            let done = back.done.swap(0, Ordering::Acquire);
            // Of others perhaps, who are not known to be back yet: theirs stay.
            let failed = back.failed.fetch_and(!done, Ordering::Relaxed);
            asked.came(done, failed);
        }
        asked.has_news()
    }

    /// As [`Asked::next_token`].
    pub(crate) fn next(&mut self) -> Option<u32> {
        self.asked.as_mut()?.next_token()
    }
}
