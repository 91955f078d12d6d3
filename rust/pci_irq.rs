// SPDX-License-Identifier: GPL-2.0

//! Interrupts of a PCI function: messages, and its pin.
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
    /// The device has sent its message, or the line of its pin is asserted. False: not by this function, since the line
    /// may be others' as well.
    fn handle(&self) -> bool;
}

/// Which capability sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Up to 32 messages with consecutive numbers.
    Msi,
    /// A table of messages.
    MsiX,
}

/// A Linux interrupt with a handler. Dropping it frees the interrupt; sleeps.
pub struct Line<H: Handler> {
    irq: u32,
    handler: Arc<H>,
}

impl<H: Handler> Line<H> {
    /// Takes the interrupt, with `IRQF_*` in `flags`.
    fn request(irq: u32, handler: Arc<H>, flags: u32) -> Result<Self> {
        // SAFETY: The cookie is a reference that the value keeps until the handler is freed.
        to_result(unsafe {
            bindings::request_threaded_irq(
                irq,
                Some(interrupt::<H>),
                None,
                flags as usize,
                c"rvmm".as_char_ptr(),
                Arc::as_ptr(&handler).cast_mut().cast::<c_void>(),
            )
        })?;
        Ok(Self { irq, handler })
    }

    /// Takes the line of the function's pin, together with others or for this function alone; then it is masked, and
    /// [`PinSwitch`] unmasks it.
    ///
    /// Errors: `ENODEV` without a line; `EBUSY` when it cannot be shared.
    pub fn of_pin(device: &Locked<'_>, handler: Arc<H>, shared: bool) -> Result<Self> {
        let flags = if shared {
            bindings::IRQF_SHARED
        } else {
            bindings::IRQF_NO_AUTOEN
        };
        Self::request(irq_of(device).ok_or(ENODEV)?, handler, flags)
    }

    /// The handler.
    pub fn handler(&self) -> &Arc<H> {
        &self.handler
    }
}

impl<H: Handler> Drop for Line<H> {
    fn drop(&mut self) {
        // SAFETY: Requested with this cookie by `request`. When it returns the handler does not run any more.
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
            this.lines
                .push_within_capacity(Line::request(irq, handler.clone(), 0)?)
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
    if unsafe { &*cookie.cast::<H>() }.handle() {
        bindings::irqreturn::IRQ_HANDLED
    } else {
        bindings::irqreturn::IRQ_NONE
    }
}

/// The line that the function's pin is wired to. While messages are enabled the kernel may have their number there.
fn irq_of(device: &Device) -> Option<u32> {
    // SAFETY: Numbers that change with the functions of this file only.
    let (pin, irq) = unsafe { ((*device.as_ptr()).pin, (*device.as_ptr()).irq) };
    (pin != 0 && irq != 0 && irq != bindings::IRQ_NOTCONNECTED).then_some(irq)
}

/// Whether the function has a pin that is wired to something. Not while messages are enabled.
pub fn has_pin(device: &Device) -> bool {
    irq_of(device).is_some()
}

/// Switches a function's pin on and off: in the function, or where it cannot do that at the interrupt controller,
/// which is for lines of its own only. Any context.
///
/// In the second case whoever has the switch switches off what is on, and on what is off.
pub struct PinSwitch {
    device: Device,
    /// At the interrupt controller.
    line: Option<u32>,
}

impl PinSwitch {
    /// The switch of a device that is in the caller's hands. None without a pin.
    pub fn new(device: &Locked<'_>) -> Option<Self> {
        let irq = irq_of(device)?;
        Some(Self {
            line: (!device.can_silence_pin()).then_some(irq),
            device: Device::clone(device),
        })
    }

    /// Off.
    pub fn silence(&self) {
        // SAFETY: The device lives; the line is the caller's, and is on.
        unsafe {
            match self.line {
                None => bindings::pci_intx(self.device.as_ptr(), 0),
                Some(irq) => bindings::disable_irq_nosync(irq),
            }
        }
    }

    /// Off if the function asserts it (without a switch of its own: always). Whether it does. `on`: it is, as far as
    /// the caller knows.
    pub fn silence_if_asserted(&self, on: bool) -> bool {
        // SAFETY: The device lives; the line is the caller's, and is switched off once.
        unsafe {
            match self.line {
                None => bindings::pci_check_and_mask_intx(self.device.as_ptr()),
                Some(irq) => {
                    if on {
                        bindings::disable_irq_nosync(irq);
                    }
                    true
                }
            }
        }
    }

    /// On, unless the function asserts it and has a switch of its own. Whether it is on.
    pub fn sound_unless_asserted(&self) -> bool {
        // SAFETY: The device lives; the line is the caller's, and is off.
        unsafe {
            match self.line {
                None => bindings::pci_check_and_unmask_intx(self.device.as_ptr()),
                Some(irq) => {
                    bindings::enable_irq(irq);
                    true
                }
            }
        }
    }
}
