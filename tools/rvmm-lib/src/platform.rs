// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The few legacy devices around the serial port: keyboard controller (reset only), CMOS clock and
//! the power-off port.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use vm_superio::{I8042Device, Trigger};

use crate::bus::Device;
use crate::exit::Exit;
use crate::snapshot::state::CmosState;
use crate::vcpu::Control;

/// First port of the keyboard controller; data here, status and command at +4.
pub const I8042_PORT: u64 = 0x60;
/// CMOS index and data ports.
pub const CMOS_PORT: u64 = 0x70;
/// PM1a control of an ACPI machine: writing SLP_EN powers off.
pub const POWER_PORT: u64 = 0x604;

/// What the end of the machine looks like from a device.
#[derive(Clone)]
pub(crate) struct ResetLine(pub(crate) Arc<Control>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.end(Exit::Reset);
        Ok(())
    }
}

/// Keyboard controller without a keyboard; command 0xfe resets the machine.
pub(crate) struct I8042 {
    inner: I8042Device<ResetLine>,
}

/// Offset of status and command from the data port.
const COMMAND: u64 = 4;
/// Status bit 0, output buffer full.
const OUTPUT_FULL: u8 = 1;

impl I8042 {
    pub(crate) fn new(line: ResetLine) -> Self {
        Self {
            inner: I8042Device::new(line),
        }
    }
}

impl Device for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // An output buffer that never drains tells a driver at once that there is no controller,
        // while the clear input-full bit lets `reboot=k` send its command without waiting.
        if let (COMMAND, [status]) = (offset, data) {
            *status = OUTPUT_FULL;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [value] = data {
            let Ok(()) = self.inner.write(offset as u8, *value);
        }
    }
}

/// Power management control (ACPI 6.5, 4.8.3.2.1): SLP_EN (bit 13) powers off, as one 16-bit write or as a write of its
/// upper byte. SCI_EN (bit 0) is always set: there is no mode without ACPI.
pub(crate) struct Power(pub(crate) Arc<Control>);

impl Device for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        const SCI_EN: u8 = 1;
        data.fill(0);
        if let (0, [low, ..]) = (offset, data) {
            *low = SCI_EN;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        const SLP_EN: u8 = 1 << 5;
        let upper = match (offset, data) {
            (0, [_, upper, ..]) | (1, [upper, ..]) => *upper,
            _ => 0,
        };
        if upper & SLP_EN != 0 {
            self.0.end(Exit::PowerOff);
        }
    }
}

/// CMOS clock showing the host's time in UTC; the other cells are plain memory.
pub(crate) struct Cmos {
    index: u8,
    cells: [u8; 128],
    now: fn() -> u64,
}

impl Cmos {
    pub(crate) fn new() -> Self {
        Self::with_clock(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs())
        })
    }

    pub(crate) fn state(&self) -> CmosState {
        CmosState {
            index: self.index,
            cells: self.cells.to_vec(),
        }
    }

    /// Cells that are not there stay as they are.
    pub(crate) fn restore(&mut self, state: &CmosState) {
        self.index = state.index & 0x7f;
        for (cell, value) in self.cells.iter_mut().zip(&state.cells) {
            *cell = *value;
        }
    }

    fn with_clock(now: fn() -> u64) -> Self {
        Self {
            index: 0,
            cells: [0; 128],
            now,
        }
    }

    fn cell(&self, index: u8) -> u8 {
        let time = Calendar::from_unix((self.now)());
        match index {
            0x00 => bcd(time.second),
            0x02 => bcd(time.minute),
            0x04 => bcd(time.hour),
            0x06 => bcd(time.weekday),
            0x07 => bcd(time.day),
            0x08 => bcd(time.month),
            0x09 => bcd((time.year % 100) as u8),
            0x32 => bcd((time.year / 100) as u8),
            // Register A: 32.768 kHz divider, no update in progress. B: 24 hours, BCD. D: valid.
            0x0a => 0x26,
            0x0b => 0x02,
            0x0c => 0,
            0x0d => 0x80,
            other => self.cells[usize::from(other & 0x7f)],
        }
    }
}

impl Device for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (1, [value]) = (offset, data) {
            *value = self.cell(self.index);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [value] = data {
            match offset {
                0 => self.index = value & 0x7f,
                _ => self.cells[usize::from(self.index)] = *value,
            }
        }
    }
}

fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}

#[derive(Debug, PartialEq, Eq)]
struct Calendar {
    year: u64,
    month: u8,
    day: u8,
    /// 1 is Sunday, as the clock chip counts.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Calendar {
    /// The UTC date and time of `seconds` since 1970.
    fn from_unix(seconds: u64) -> Self {
        let leap = |year: u64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let mut days = seconds / 86_400;
        // 1 January 1970 was a Thursday.
        let weekday = ((days + 4) % 7 + 1) as u8;
        let mut year = 1970;
        loop {
            let length = if leap(year) { 366 } else { 365 };
            if days < length {
                break;
            }
            days -= length;
            year += 1;
        }
        let february = if leap(year) { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Self {
            year,
            month,
            day: days as u8 + 1,
            weekday,
            hour: (seconds / 3600 % 24) as u8,
            minute: (seconds / 60 % 60) as u8,
            second: (seconds % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar() {
        let date = |seconds| {
            let c = Calendar::from_unix(seconds);
            (
                c.year, c.month, c.day, c.weekday, c.hour, c.minute, c.second,
            )
        };
        assert_eq!(date(0), (1970, 1, 1, 5, 0, 0, 0));
        assert_eq!(date(951_782_399), (2000, 2, 28, 2, 23, 59, 59));
        assert_eq!(date(951_782_400), (2000, 2, 29, 3, 0, 0, 0));
        assert_eq!(date(1_735_689_599), (2024, 12, 31, 3, 23, 59, 59));
        assert_eq!(date(1_735_689_600), (2025, 1, 1, 4, 0, 0, 0));
    }

    #[test]
    fn cmos_reads_as_a_clock() {
        let mut cmos = Cmos::with_clock(|| 951_782_399);
        let mut read = |index: u8| {
            let mut value = [0xff];
            cmos.write(0, &[index]);
            cmos.read(1, &mut value);
            value[0]
        };
        assert_eq!((read(4), read(2), read(0)), (0x23, 0x59, 0x59));
        assert_eq!(
            (read(7), read(8), read(9), read(0x32)),
            (0x28, 0x02, 0x00, 0x20)
        );
        assert_eq!((read(0x0a) & 0x80, read(0x0d)), (0, 0x80));
    }

    #[test]
    fn power_off_by_word_or_upper_byte() {
        let ended = |offset, data: &[u8]| {
            let control = Arc::new(Control::new(Arc::default(), Arc::default()).unwrap());
            Power(control.clone()).write(offset, data);
            control.take()
        };
        assert!(matches!(ended(0, &[0x00, 0x20]), Some(Exit::PowerOff)));
        assert!(matches!(ended(1, &[0x20]), Some(Exit::PowerOff)));
        assert!(ended(0, &[0x20]).is_none());
        assert!(ended(0, &[0x01, 0x00]).is_none());
    }

    #[test]
    fn events_of_power_management_are_interrupts_from_the_start() {
        let mut power = Power(Arc::new(
            Control::new(Arc::default(), Arc::default()).unwrap(),
        ));
        let mut read = |offset, length: usize| {
            let mut data = [0xff; 4];
            power.read(offset, &mut data[..length]);
            data
        };
        assert_eq!(read(0, 2), [1, 0, 0xff, 0xff]);
        assert_eq!(read(0, 1)[0], 1);
        assert_eq!(read(1, 1)[0], 0);
    }

    #[test]
    fn keyboard_controller_resets_on_pulse_only() {
        let control = Arc::new(Control::new(Arc::default(), Arc::default()).unwrap());
        let mut i8042 = I8042::new(ResetLine(control.clone()));
        i8042.write(0, &[0xfe]);
        i8042.write(COMMAND, &[0xaa]);
        assert!(control.take().is_none());
        i8042.write(COMMAND, &[0xfe]);
        assert!(matches!(control.take(), Some(Exit::Reset)));
    }
}
