// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The clock: a PL031 that shows the host's time in UTC.

use vm_superio::rtc_pl031::NoEvents;
use vm_superio::Rtc;

use crate::bus::Device;

/// The device. Its registers are words of 32 bits.
pub(crate) struct Clock(Rtc<NoEvents>);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Rtc::new())
    }
}

impl Device for Clock {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Ok(word) = data.try_into() {
            self.0.read(offset as u16, word);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(word) = data.try_into() {
            self.0.write(offset as u16, word);
        }
    }
}
