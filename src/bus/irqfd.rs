// SPDX-License-Identifier: GPL-2.0
//! Eventfds that raise interrupts (api.rst 4.75, KVM_IRQFD).

use crate::abi::uapi::k;
use crate::bus::line::Source;
use crate::bus::ports::{IrqLines, Resampler};
use crate::linux::eventfd::{EventFdCtx, EventFdHook, Hook};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// What a signal of the eventfd does.
struct Trigger<C> {
    controllers: Arc<C>,
    gsi: u32,
    /// The line stays up until the guest's EOI.
    resampled: bool,
    /// User space has closed the eventfd.
    closed: AtomicBool,
}

impl<C: IrqLines> EventFdHook for Trigger<C> {
    fn wake(&self) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        if self.resampled {
            self.controllers.set_irq(self.gsi, Source::RESAMPLE, true);
        } else {
            self.controllers.pulse(self.gsi, Source::USER);
        }
    }

    fn hangup(&self) {
        // Removed by the next KVM_IRQFD, or with the VM.
        self.closed.store(true, Ordering::Relaxed);
    }
}

struct Irqfd<C: IrqLines> {
    hook: Hook<Trigger<C>>,
    resampler: Option<Resampler<C>>,
}

/// The irqfds of a VM. They keep the controllers, which know nothing of them.
pub(crate) struct Irqfds<C: IrqLines> {
    list: KVVec<Irqfd<C>>,
}

impl<C: IrqLines> Irqfds<C> {
    /// None.
    pub(crate) fn new() -> Self {
        Self { list: KVVec::new() }
    }

    /// Takes down those that `unwanted` says, and those that user space has closed.
    fn remove(&mut self, controllers: &C, unwanted: impl Fn(&Irqfd<C>) -> bool) {
        self.list.retain(|i| {
            if !unwanted(i) && !i.hook.hook().closed.load(Ordering::Relaxed) {
                return true;
            }
            if let Some(r) = &i.resampler {
                // Without memory the listener stays: it signals in vain.
                let _ = controllers.remove_resampler(r);
            }
            false
        });
    }

    /// Connects an eventfd to a GSI. EBADF, EINVAL, EBUSY when the eventfd is connected already.
    pub(crate) fn assign(&mut self, controllers: &Arc<C>, args: &k::kvm_irqfd) -> Result {
        let fd = args.fd as i32;
        let eventfd = EventFdCtx::from_fd(fd)?;
        let resampler = if args.flags & k::KVM_IRQFD_FLAG_RESAMPLE != 0 {
            let listener = Arc::new(
                EventFdCtx::from_fd(args.resamplefd as i32)?,
                GFP_KERNEL_ACCOUNT,
            )?;
            Some(Resampler {
                gsi: args.gsi,
                listener,
            })
        } else {
            None
        };
        self.remove(controllers, |_| false);
        if self.list.iter().any(|i| *i.hook.eventfd() == eventfd) {
            return Err(EBUSY);
        }
        self.list.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let trigger = Trigger {
            controllers: controllers.clone(),
            gsi: args.gsi,
            resampled: resampler.is_some(),
            closed: AtomicBool::new(false),
        };
        let trigger = Arc::new(trigger, GFP_KERNEL_ACCOUNT)?;
        // Listen first: the first signal may be answered before registration returns.
        if let Some(r) = &resampler {
            controllers.add_resampler(r.clone())?;
        }
        match Hook::register(fd, trigger) {
            Ok(hook) => self
                .list
                .push_within_capacity(Irqfd { hook, resampler })
                .map_err(|_| ENOMEM),
            Err(e) => {
                if let Some(r) = &resampler {
                    let _ = controllers.remove_resampler(r);
                }
                Err(e)
            }
        }
    }

    /// Disconnects an eventfd from a GSI. When it returns no interrupt comes from it any more. EBADF, EINVAL.
    pub(crate) fn deassign(&mut self, controllers: &C, args: &k::kvm_irqfd) -> Result {
        let eventfd = EventFdCtx::from_fd(args.fd as i32)?;
        self.remove(controllers, |i| {
            *i.hook.eventfd() == eventfd && i.hook.hook().gsi == args.gsi
        });
        Ok(())
    }

    /// Takes all down.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }
}
