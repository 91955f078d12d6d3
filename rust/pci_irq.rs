// SPDX-License-Identifier: GPL-2.0

//! Message-signalled interrupts of a PCI function.
//!
//! C headers: [`include/linux/pci.h`](srctree/include/linux/pci.h),
//! [`include/linux/interrupt.h`](srctree/include/linux/interrupt.h)

use kernel::error::to_result;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::sync::Arc;

use super::bindings;
use super::pci::{Device, Locked};

/// What an interrupt does. Runs in hard-interrupt context.
pub trait Handler: Send + Sync + 'static {
    /// The device has sent its message.
    fn handle(&self);
}

/// Which capability sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Up to 32 messages with consecutive numbers.
    Msi,
    /// A table of messages.
    MsiX,
}

struct Line<H> {
    irq: u32,
    handler: Arc<H>,
}

impl<H> Drop for Line<H> {
    fn drop(&mut self) {
        // SAFETY: Requested with this cookie by `Vectors::new`. When it returns the handler does not run any more.
        unsafe {
            bindings::free_irq(
                self.irq,
                Arc::as_ptr(&self.handler).cast_mut().cast::<c_void>(),
            )
        };
    }
}

/// Enabled messages, a handler for each. Dropping it disables them; sleeps.
pub struct Vectors<H: Handler> {
    lines: KVec<Line<H>>,
    device: Device,
}

impl<H: Handler> Vectors<H> {
    /// Enables as many messages as there are handlers.
    ///
    /// Errors: `ENOSPC` when the device or the host has fewer; `ENOMEM`, `EINVAL` for none.
    pub fn new(device: &Locked<'_>, kind: Kind, handlers: &[Arc<H>]) -> Result<Self> {
        let count = u32::try_from(handlers.len())?;
        let flags = match kind {
            Kind::Msi => bindings::PCI_IRQ_MSI,
            Kind::MsiX => bindings::PCI_IRQ_MSIX,
        };
        let device: Device = Device::clone(device);
        let lines = KVec::with_capacity(handlers.len(), GFP_KERNEL_ACCOUNT)?;
        // SAFETY: The device lives and its lock is held.
        let got = unsafe { bindings::pci_alloc_irq_vectors(device.as_ptr(), count, count, flags) };
        if got < 0 {
            return Err(Error::from_errno(got));
        }
        // From here on drop undoes it.
        let mut this = Self { lines, device };
        for (i, handler) in handlers.iter().enumerate() {
            // SAFETY: The vectors were allocated above.
            let irq = unsafe { bindings::pci_irq_vector(this.device.as_ptr(), i as u32) };
            let irq = u32::try_from(irq).map_err(|_| EINVAL)?;
            // SAFETY: The cookie is a reference that `Line` keeps until the handler is freed.
            to_result(unsafe {
                bindings::request_threaded_irq(
                    irq,
                    Some(interrupt::<H>),
                    None,
                    0,
                    c"rvmm".as_char_ptr(),
                    Arc::as_ptr(handler).cast_mut().cast::<c_void>(),
                )
            })?;
            this.lines
                .push_within_capacity(Line {
                    irq,
                    handler: handler.clone(),
                })
                .map_err(|_| ENOMEM)?;
        }
        Ok(this)
    }
}

impl<H: Handler> Drop for Vectors<H> {
    fn drop(&mut self) {
        self.lines.clear();
        // SAFETY: Allocated by `new`; no handler is left.
        unsafe { bindings::pci_free_irq_vectors(self.device.as_ptr()) };
    }
}

/// # Safety
///
/// Called by the kernel with the cookie of a live [`Line`].
unsafe extern "C" fn interrupt<H: Handler>(
    _irq: c_int,
    cookie: *mut c_void,
) -> bindings::irqreturn_t {
    // SAFETY: The `Line` holds a reference until `free_irq` has returned.
    unsafe { &*cookie.cast::<H>() }.handle();
    bindings::irqreturn::IRQ_HANDLED
}
