// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Address ranges and the devices that answer in them; used once for ports, once for memory.

use std::sync::{Arc, Mutex, PoisonError};

/// A device on a bus.
pub trait Device: Send {
    /// The guest reads `data.len()` bytes at `offset` from the start of the device's range.
    ///
    /// `data` arrives filled with ones, which is what an empty bus reads as.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset` from the start of the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device of the caller's and where it goes.
pub(crate) struct Placed {
    pub(crate) on_ports: bool,
    pub(crate) first: u64,
    pub(crate) length: u64,
    pub(crate) device: Arc<Mutex<dyn Device>>,
}

struct Range {
    start: u64,
    length: u64,
    device: Arc<Mutex<dyn Device>>,
}

/// Devices by address; reads as ones and ignores writes where there is none.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

impl Bus {
    /// Puts `device` at `start..start + length`. An earlier device wins where ranges overlap.
    pub fn insert(&mut self, start: u64, length: u64, device: Arc<Mutex<dyn Device>>) {
        self.ranges.push(Range {
            start,
            length,
            device,
        });
    }

    fn find(&self, address: u64) -> Option<(u64, &Mutex<dyn Device>)> {
        self.ranges.iter().find_map(|range| {
            let offset = address.checked_sub(range.start)?;
            (offset < range.length).then_some((offset, &*range.device))
        })
    }

    /// The guest reads at `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address) {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read(offset, data);
        }
    }

    /// The guest writes at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Latch(Vec<(u64, u8)>);

    impl Device for Latch {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data[0]));
        }
    }

    #[test]
    fn routes_by_range() {
        let latch = Arc::new(Mutex::new(Latch::default()));
        let mut bus = Bus::default();
        bus.insert(0x3f8, 8, latch.clone());
        let mut byte = [0];
        bus.read(0x3fd, &mut byte);
        assert_eq!(byte, [5]);
        for empty in [0x3f7, 0x400, 0] {
            bus.read(empty, &mut byte);
            assert_eq!(byte, [0xff]);
            bus.write(empty, &[1]);
        }
        bus.write(0x3f8, &[7]);
        assert_eq!(latch.lock().unwrap().0, [(0, 7)]);
    }
}
