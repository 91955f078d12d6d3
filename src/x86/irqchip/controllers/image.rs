// SPDX-License-Identifier: GPL-2.0
//! All of the interrupt controllers outside local APICs, kept for later (`RVMM_RESET_POINT`).
//!
//! No vCPU runs when they are put back. Lines are what they were; who drives them from outside has to go back as well.

use super::{Config, Controllers, Core};
use crate::x86::irqchip::ioapic;
use crate::x86::irqchip::ioapic::{Ioapic, Pins};
use crate::x86::irqchip::pic::Pic;
use crate::x86::irqchip::pit::Pit;
use crate::x86::irqchip::routing::Table;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// The models as they were at some moment.
#[derive(Default)]
struct CoreImage {
    ioapic: Option<Ioapic>,
    pic: Option<Pic>,
    pit: Option<Pit>,
    ends: [u32; ioapic::PINS],
    rtc: (i32, u8),
}

impl CoreImage {
    fn take(&mut self, core: &Core) {
        *self = Self {
            ioapic: core.ioapic.as_deref().cloned(),
            pic: core.pic.as_deref().cloned(),
            pit: core.pit.as_deref().cloned(),
            ends: core.ends,
            rtc: core.rtc,
        };
    }

    fn give(&self, core: &mut Core, ns: u64) {
        if let (Some(to), Some(from)) = (&mut core.ioapic, &self.ioapic) {
            (**to).clone_from(from);
        }
        if let (Some(to), Some(from)) = (&mut core.pic, &self.pic) {
            (**to).clone_from(from);
        }
        if let (Some(to), Some(from)) = (&mut core.pit, &self.pit) {
            (**to).clone_from(from);
            to.delay(ns);
        }
        core.ends = self.ends;
        core.rtc = self.rtc;
    }
}

/// The interrupt controllers of a VM outside its local APICs as they were at some moment.
pub(crate) struct Image {
    core: KBox<CoreImage>,
    table: Arc<Table>,
}

impl Controllers {
    /// All of it as it is now.
    pub(in crate::x86::irqchip) fn image(&self) -> Result<Image> {
        let mut image = Image {
            core: KBox::new(CoreImage::default(), GFP_KERNEL_ACCOUNT)?,
            table: self.config.read().table.clone(),
        };
        self.with(|s| image.core.take(&s.core));
        Ok(image)
    }

    /// Whether the controllers are those of the image.
    pub(in crate::x86::irqchip) fn fits(&self, image: &Image) -> bool {
        let core = self.core.lock_irqsave();
        core.pit.is_some() == image.core.pit.is_some()
    }

    /// The routes become those of the image. As [`Controllers::set_table`].
    pub(in crate::x86::irqchip) fn put_routes_back(&self, image: &Image) -> Result {
        let table = image.table.clone();
        if Arc::ptr_eq(&self.config.read().table, &table) {
            return Ok(());
        }
        self.publish_user(&table);
        let resamplers = self.copy_resamplers(|_| true, 0)?;
        self.replace(Config { table, resamplers })
    }

    /// The controllers become what they were `ns` nanoseconds ago. The timer of the 8254 does not run. Returns whether
    /// an interrupt may have been held back ([`Controllers::resume`]).
    pub(in crate::x86::irqchip) fn put_back(&self, image: &Image, ns: u64) -> bool {
        self.with(|s| {
            image.core.give(&mut s.core, ns);
            if let Some(ioapic) = &s.core.ioapic {
                self.ioapic_base
                    .store(ioapic.base_address(), Ordering::Release);
            }
            s.publish();
            let held = |i: &Ioapic| Pins((1 << ioapic::PINS) - 1).any(|pin| i.waits(pin));
            s.core.ioapic.as_deref().is_some_and(held)
        })
    }
}
