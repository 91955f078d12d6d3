// SPDX-License-Identifier: GPL-2.0
//! What the bus asks of the interrupt controllers. It names none; they come in through these traits.

use crate::bus::line::Source;
use crate::linux::eventfd::EventFdCtx;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Interrupt controllers with numbered inputs (GSIs).
pub(crate) trait IrqLines: Send + Sync + Sized + 'static {
    /// `source` drives `gsi` to `level`. Any context.
    fn set_irq(&self, gsi: u32, source: Source, level: bool) -> i32;
    /// `source` drives `gsi` up and down again. Any context.
    fn pulse(&self, gsi: u32, source: Source);
    /// Adds somebody who is told of the ends of interrupts. Sleeps.
    fn add_resampler(&self, new: Resampler<Self>) -> Result;
    /// Undoes [`IrqLines::add_resampler`]; without memory the listener stays, and is told in vain.
    fn remove_resampler(&self, old: &Resampler<Self>) -> Result;
}

/// Somebody who asserts a GSI until its interrupt ends, and then looks whether to do it again.
pub(crate) trait AckListener<C>: Send + Sync {
    /// The interrupt has ended, and the GSI is down. Any context; no lock of the controllers is held.
    fn ended(&self, controllers: &C);
}

impl<C> AckListener<C> for EventFdCtx {
    fn ended(&self, _controllers: &C) {
        self.signal();
    }
}

/// Who is told when the interrupt of a GSI ends.
pub(crate) struct Resampler<C> {
    /// The GSI.
    pub(crate) gsi: u32,
    /// An eventfd, or the pin of an assigned device.
    pub(crate) listener: Arc<dyn AckListener<C>>,
}

impl<C> Clone for Resampler<C> {
    fn clone(&self) -> Self {
        Self {
            gsi: self.gsi,
            listener: self.listener.clone(),
        }
    }
}

/// Those of `list` that `keep` says, in their order, with room for `more`. ENOMEM.
pub(crate) fn copy_resamplers<C>(
    list: &[Resampler<C>],
    keep: impl Fn(&Resampler<C>) -> bool,
    more: usize,
) -> Result<KVVec<Resampler<C>>> {
    let room = list.len().saturating_add(more);
    let mut copy = KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?;
    for r in list.iter().filter(|r| keep(r)) {
        copy.push_within_capacity(r.clone()).map_err(|_| ENOMEM)?;
    }
    Ok(copy)
}
