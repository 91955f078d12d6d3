// SPDX-License-Identifier: GPL-2.0
//! An assigned device's pin, wired to a GSI of its VM: [`crate::assign::intx`] with a lock, a line and listeners.
//!
//! # Locks
//!
//! `Shared.pin` > `Controllers.core`: whoever decides to raise the GSI raises it before the next one decides. Listeners
//! are called without `core`.

use crate::arch::{Controllers, IrqChip, Resampler};
use crate::assign::intx::{self, Switch};
use crate::bus::line::Source;
use crate::bus::ports::{AckListener, IrqLines};
use crate::linux::once::Once;
use crate::linux::pci::Locked;
use crate::linux::pci_irq::{self, Line, PinSwitch};
use crate::linux::spin_irq::RawSpin;
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::Arc;

impl Switch for PinSwitch {
    fn silence(&self) {
        Self::silence(self);
    }

    fn silence_if_asserted(&self, sounding: bool) -> bool {
        Self::silence_if_asserted(self, sounding)
    }

    fn sound_unless_asserted(&self) -> bool {
        Self::sound_unless_asserted(self)
    }
}

/// The pin, for the line's handler and for the ends of its interrupts.
#[pin_data]
struct Shared {
    switch: PinSwitch,
    #[pin]
    pin: RawSpin<intx::Pin>,
}

impl Shared {
    /// Does something with the pin, and raises what came of it.
    fn with<R>(
        &self,
        controllers: &Controllers,
        f: impl FnOnce(&mut intx::Pin, &PinSwitch) -> (R, Option<u32>),
    ) -> R {
        let mut pin = self.pin.lock_irqsave();
        let (result, raise) = f(&mut pin, &self.switch);
        if let Some(gsi) = raise {
            controllers.set_irq(gsi, Source::RESAMPLE, true);
        }
        result
    }
}

impl AckListener<Controllers> for Shared {
    fn ended(&self, controllers: &Controllers) {
        self.with(controllers, |pin, switch| ((), pin.ended(switch)));
    }
}

/// The line's handler. It keeps the controllers, which may keep the pin: not the other way round.
struct Handler {
    shared: Arc<Shared>,
    /// Set before the pin is first switched on.
    controllers: Once<Arc<Controllers>>,
}

impl pci_irq::Handler for Handler {
    fn handle(&self) -> bool {
        self.controllers
            .get()
            .is_some_and(|c| self.shared.with(&c, |pin, switch| pin.interrupt(switch)))
    }
}

/// A pin with its line. Before it is dropped it has to be [`Wire::cut`].
pub(crate) struct Wire {
    line: Line<Handler>,
    /// The listener of the GSI that it goes to, or went to when it last went somewhere.
    listener: Option<Resampler>,
}

impl Wire {
    /// Takes the line of the device's pin, which is off. ENODEV: no pin; EBUSY: the pin cannot be switched off, and the
    /// line is not its own.
    pub(crate) fn new(device: &Locked<'_>) -> Result<Self> {
        let switch = PinSwitch::new(device).ok_or(ENODEV)?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                switch,
                pin <- RawSpin::new(intx::Pin::default(), c"Wire.pin", static_lock_class!()),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let handler = Handler {
            shared,
            controllers: Once::new(),
        };
        let handler = Arc::new(handler, GFP_KERNEL_ACCOUNT)?;
        Ok(Self {
            line: Line::of_pin(device, handler, device.can_silence_pin())?,
            listener: None,
        })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.line.handler().shared
    }

    /// To this GSI from now on; `None`: off. EINVAL: no interrupt controllers in the kernel.
    pub(crate) fn route(&mut self, chip: &IrqChip, gsi: Option<u32>) -> Result {
        let controllers = chip.target().ok_or(EINVAL)?;
        self.line.handler().controllers.set(controllers.clone());
        let known = self.listener.as_ref().map(|l| l.gsi);
        if gsi != known {
            // Off, and its GSI is lowered, before it goes elsewhere.
            self.shared()
                .with(&controllers, |pin, switch| ((), pin.route(switch, None)));
            if let Some(old) = known {
                controllers.resample(old);
            }
        }
        let Some(gsi) = gsi else { return Ok(()) };
        if known != Some(gsi) {
            self.unlisten(chip);
            let new = Resampler {
                gsi,
                listener: self.shared().clone(),
            };
            chip.listen(new.clone())?;
            self.listener = Some(new);
        }
        self.shared().with(&controllers, |pin, switch| {
            ((), pin.route(switch, Some(gsi)))
        });
        Ok(())
    }

    /// The GSI down, and up again if the device still asserts its pin. ENODATA when it goes nowhere.
    pub(crate) fn resample(&self, chip: &IrqChip) -> Result {
        let listener = self.listener.as_ref().ok_or(ENODATA)?;
        chip.target().ok_or(EINVAL)?.resample(listener.gsi);
        Ok(())
    }

    /// Runs `f` with the pin off. An interrupt that was under way is gone if the device has given it up meanwhile.
    pub(crate) fn held<R>(&self, f: impl FnOnce() -> R) -> R {
        let hold = |held: bool| {
            let mut pin = self.shared().pin.lock_irqsave();
            if held {
                pin.hold(&self.shared().switch);
                return;
            }
            let raise = pin.release(&self.shared().switch);
            if let (Some(gsi), Some(c)) = (raise, self.line.handler().controllers.get()) {
                c.set_irq(gsi, Source::RESAMPLE, true);
            }
        };
        hold(true);
        let result = f();
        hold(false);
        result
    }

    fn unlisten(&mut self, chip: &IrqChip) {
        if let Some(old) = self.listener.take() {
            chip.unlisten(&old);
        }
    }

    /// Off for good, and its GSI down.
    pub(crate) fn cut(&mut self, chip: &IrqChip) {
        if self.route(chip, None).is_ok() {
            self.unlisten(chip);
        }
    }
}
