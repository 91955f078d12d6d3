// SPDX-License-Identifier: GPL-2.0
//! The interrupt pin of an assigned device (PCI 3.0 2.2.6, 6.2.2): level-triggered, and silent from its interrupt to
//! the guest's EOI.
//!
//! The host cannot let the device assert its line until the guest has served it: the line may be others' as well. So
//! the first interrupt switches the pin off and raises the guest's GSI. The guest's EOI lowers the GSI and switches the
//! pin on again, unless the device still asserts it: then it stays off, and the GSI goes up once more.
#![forbid(unsafe_code)]

/// What can be done to the hardware's pin.
pub trait Switch {
    /// Off.
    fn silence(&self);

    /// Off if it is asserted. Whether it was. `sounding`: it has not been switched off since it was switched on.
    fn silence_if_asserted(&self, sounding: bool) -> bool;

    /// On unless it is asserted. Whether it is on now.
    fn sound_unless_asserted(&self) -> bool;
}

/// A pin between hardware and guest. By default it is off and goes nowhere.
#[derive(Debug, Default)]
pub struct Pin {
    /// Where it goes; `None` while the guest has it switched off.
    gsi: Option<u32>,
    /// The hardware's pin is on.
    sounding: bool,
    /// It stays off whatever happens.
    held: bool,
}

impl Pin {
    /// The line was asserted, by this device or another one. Whether it was this one, and the GSI to raise.
    pub fn interrupt(&mut self, switch: &impl Switch) -> (bool, Option<u32>) {
        // Looked at even when it should be off: somebody may have written back an older command register.
        let ours = switch.silence_if_asserted(self.sounding);
        let news = ours && self.sounding;
        if ours {
            self.sounding = false;
        }
        (ours, self.gsi.filter(|_| news))
    }

    /// The guest has ended the interrupt, and the GSI is down. The GSI to raise again.
    pub fn ended(&mut self, switch: &impl Switch) -> Option<u32> {
        let gsi = self.gsi?;
        if self.sounding || self.held {
            return None;
        }
        self.sounding = switch.sound_unless_asserted();
        (!self.sounding).then_some(gsi)
    }

    /// From now on it goes to this GSI, or nowhere: then what the device asserts waits. The GSI to raise.
    pub fn route(&mut self, switch: &impl Switch, gsi: Option<u32>) -> Option<u32> {
        self.gsi = gsi;
        if gsi.is_none() {
            self.silence(switch);
        }
        self.ended(switch)
    }

    /// It is off until [`Pin::release`].
    pub fn hold(&mut self, switch: &impl Switch) {
        self.held = true;
        self.silence(switch);
    }

    /// Ends [`Pin::hold`]. The GSI to raise; one that was up before has to be lowered first.
    pub fn release(&mut self, switch: &impl Switch) -> Option<u32> {
        self.held = false;
        self.ended(switch)
    }

    fn silence(&mut self, switch: &impl Switch) {
        if self.sounding {
            self.sounding = false;
            switch.silence();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// A device: whether it asserts, and its switch; how often it was switched off and on.
    #[derive(Default)]
    struct Device {
        asserts: Cell<bool>,
        on: Cell<bool>,
    }

    impl Switch for Device {
        fn silence(&self) {
            assert!(self.on.get(), "switched off twice");
            self.on.set(false);
        }

        fn silence_if_asserted(&self, sounding: bool) -> bool {
            assert_eq!(sounding, self.on.get());
            if self.asserts.get() {
                self.on.set(false);
            }
            self.asserts.get()
        }

        fn sound_unless_asserted(&self) -> bool {
            assert!(!self.on.get(), "switched on twice");
            self.on.set(!self.asserts.get());
            self.on.get()
        }
    }

    #[test]
    fn one_interrupt_until_its_end() {
        let (device, mut pin) = (Device::default(), Pin::default());
        assert_eq!(pin.route(&device, Some(5)), None);
        assert!(device.on.get());
        device.asserts.set(true);
        assert_eq!(pin.interrupt(&device), (true, Some(5)));
        assert!(!device.on.get());
        // Another device of the line, while this one waits.
        assert_eq!(pin.interrupt(&device), (true, None));
        // Not served yet: again.
        assert_eq!(pin.ended(&device), Some(5));
        assert!(!device.on.get());
        device.asserts.set(false);
        assert_eq!(pin.ended(&device), None);
        assert!(device.on.get());
        assert_eq!(pin.ended(&device), None);
        assert_eq!(pin.interrupt(&device), (false, None));
    }

    #[test]
    fn what_comes_while_it_goes_nowhere_waits() {
        let (device, mut pin) = (Device::default(), Pin::default());
        device.asserts.set(true);
        assert_eq!(pin.ended(&device), None);
        assert_eq!(pin.route(&device, None), None);
        assert_eq!(pin.route(&device, Some(9)), Some(9));
        assert_eq!(pin.route(&device, None), None);
        device.asserts.set(false);
        assert_eq!(pin.route(&device, Some(9)), None);
        assert!(device.on.get());
        assert_eq!(pin.route(&device, None), None);
        assert!(!device.on.get());
    }

    #[test]
    fn held_is_off() {
        let (device, mut pin) = (Device::default(), Pin::default());
        pin.route(&device, Some(1));
        pin.hold(&device);
        assert!(!device.on.get());
        assert_eq!(pin.ended(&device), None);
        assert_eq!(pin.route(&device, Some(2)), None);
        assert!(!device.on.get());
        device.asserts.set(true);
        assert_eq!(pin.interrupt(&device), (true, None));
        assert_eq!(pin.release(&device), Some(2));
        pin.hold(&device);
        device.asserts.set(false);
        assert_eq!(pin.release(&device), None);
        assert!(device.on.get());
    }
}
