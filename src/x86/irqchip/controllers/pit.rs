// SPDX-License-Identifier: GPL-2.0
//! The 8254 among the other controllers: its ticks, and those that were missed and come later.

use super::{Controllers, PIT_GSI};
use crate::bus::line::Source;
use crate::x86::irqchip::pit::Pit;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

impl Controllers {
    /// Adds an 8254 in reset state.
    pub(crate) fn add_pit(&self) -> Result {
        let pit = KBox::new(Pit::new(), GFP_KERNEL_ACCOUNT)?;
        self.with(|s| {
            s.core.pit = Some(pit);
            s.publish();
        });
        Ok(())
    }

    /// Does something with the 8254. `None` if there is none.
    pub(crate) fn with_pit<R>(&self, f: impl FnOnce(&mut Pit) -> R) -> Option<R> {
        self.core.lock_irqsave().pit.as_deref_mut().map(f)
    }

    /// The 8254's time has come. Returns when to call again.
    pub(crate) fn pit_tick(&self, now: u64) -> Option<u64> {
        self.with(|s| {
            if s.core.pit.as_mut()?.timer_fired(now) {
                s.pulse(PIT_GSI, Source::PIT);
                self.vcpus.watchdog_tick();
            }
            s.core.pit.as_ref()?.next_irq()
        })
    }

    /// The time for a tick that was missed has come. Returns when to call again: two that set the timer may have done
    /// so in the wrong order.
    pub(crate) fn pit_again(&self, now: u64) -> Option<u64> {
        self.with(|s| {
            if s.core.pit.as_mut()?.again_fired(now) {
                s.pulse(PIT_GSI, Source::PIT);
                self.vcpus.watchdog_tick();
            }
            s.core.pit.as_ref()?.next_again()
        })
    }

    /// When to call [`Controllers::pit_again`], if that is new since the last call.
    #[inline]
    pub(crate) fn take_again(&self) -> Option<u64> {
        if self.again.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.again.swap(0, Ordering::Relaxed)).filter(|at| *at != 0)
    }
}
