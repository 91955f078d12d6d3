// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A balloon (Virtual I/O Device 1.2, 5.5): memory that the guest does without as long as the host wants it.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use virtio_queue::Reader;

use super::saved::Saved;
use super::{drain, Backend, Broken, Guest, Registers, Ring, Tell};
use crate::sys;

/// Feature bit: the guest may take pages back by itself before it runs out of memory.
const DEFLATE_ON_OOM: u64 = 1 << 2;
/// Entries of each queue.
const ENTRIES: u16 = 64;
/// The queue of pages that the guest gives; the other one is of those that it takes back, which need nothing.
const INFLATE: usize = 0;
/// Bytes of a page, whatever the guest's are.
const PAGE: u64 = 4096;
/// The most pages in a request that are looked at: a driver gives 256.
const MOST: usize = 4096;

/// How large the balloon shall be and is, in pages, as driver and host see it.
#[derive(Default)]
struct Size {
    wanted: AtomicU32,
    actual: AtomicU32,
    tell: OnceLock<Tell>,
}

/// The host's end.
#[derive(Clone)]
pub struct Handle(Arc<Size>);

impl Handle {
    /// Asks the guest to do without so many bytes, in whole pages.
    pub fn want(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.0.wanted.store(pages, Ordering::Release);
        if let Some(tell) = self.0.tell.get() {
            tell();
        }
    }

    /// Bytes that the guest does without now, as it says.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::Acquire)) * PAGE
    }
}

/// `struct virtio_balloon_config` (5.5.4): what is wanted, and what the driver says.
impl Registers for Size {
    fn bytes(&self) -> Vec<u8> {
        let words = [&self.wanted, &self.actual].map(|word| word.load(Ordering::Acquire));
        words.map(u32::to_le_bytes).concat()
    }

    fn write(&self, at: u64, data: &[u8]) {
        if let (4, Ok(bytes)) = (at, data.try_into()) {
            self.actual
                .store(u32::from_le_bytes(bytes), Ordering::Release);
        }
    }

    fn connect(&self, tell: Tell) {
        let _ = self.tell.set(tell);
    }
}

/// The device.
pub struct Balloon(Arc<Size>);

impl Balloon {
    /// A balloon that is empty, and is to stay so until [`Handle::want`].
    pub fn new() -> Self {
        Self::with(0, 0)
    }

    /// One of so many pages, wanted and actual.
    pub(crate) fn with(wanted: u32, actual: u32) -> Self {
        let size = Size::default();
        size.wanted.store(wanted, Ordering::Release);
        size.actual.store(actual, Ordering::Release);
        Self(Arc::new(size))
    }
}

impl Default for Balloon {
    fn default() -> Self {
        Self::new()
    }
}

/// Gives the host the pages that a request names, as many at once as follow each other.
fn release(reader: &mut Reader, guest: &Guest) -> Result<(), Broken> {
    let mut run = 0..0;
    let mut word = [0; 4];
    for _ in 0..(reader.available_bytes() / 4).min(MOST) {
        reader.read_exact(&mut word)?;
        let page = u64::from(u32::from_le_bytes(word));
        if page == run.end {
            run.end += 1;
            continue;
        }
        let whole = std::mem::replace(&mut run, page..page + 1);
        discard(guest, whole)?;
    }
    discard(guest, run)
}

/// What is no memory is left alone.
fn discard(guest: &Guest, pages: std::ops::Range<u64>) -> Result<(), Broken> {
    let (start, length) = (pages.start * PAGE, (pages.end - pages.start) * PAGE);
    guest.before_write(start, length)?;
    if let Err(error) = sys::discard(&guest.memory, start, length) {
        tracing::debug!(%error, "balloon");
    }
    Ok(())
}

impl Backend for Balloon {
    fn kind(&self) -> (u16, u32) {
        (5, 0xff_00_00)
    }

    fn features(&self) -> u64 {
        DEFLATE_ON_OOM
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; 2]
    }

    fn config(&self) -> Vec<u8> {
        self.0.bytes()
    }

    fn registers(&self) -> Option<Arc<dyn Registers>> {
        Some(self.0.clone())
    }

    fn balloon(&self) -> Option<Handle> {
        Some(Handle(self.0.clone()))
    }

    fn saved(&self, _: &mut Vec<File>) -> io::Result<Saved> {
        let [wanted, actual] =
            [&self.0.wanted, &self.0.actual].map(|word| word.load(Ordering::Acquire));
        Ok(Saved::Balloon { wanted, actual })
    }

    fn serve(&mut self, index: usize, rings: &mut [Ring], guest: &Guest) -> Result<(), Broken> {
        let Some(ring) = rings.get_mut(index) else {
            return Ok(());
        };
        drain(ring, guest, |chain| {
            if index == INFLATE {
                release(&mut chain.reader(&*guest.memory)?, guest)?;
            }
            Ok(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::{Queue, QueueT};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::virtio::transport::Transport;

    #[test]
    fn pages_that_the_guest_gives_are_the_hosts() {
        let [table, available, used, list] = [0x1000u64, 0x2000, 0x3000, 0x4000];
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let mut queue = Queue::new(16).unwrap();
        queue.set_desc_table_address(Some(table as u32), None);
        queue.set_avail_ring_address(Some(available as u32), None);
        queue.set_used_ring_address(Some(used as u32), None);
        queue.set_ready(true);
        // Pages 0x20, 0x21 and 0x40 of those that have been written to, and one that there is not.
        for page in [0x20, 0x21, 0x22, 0x40] {
            put(page << 12, &[7; 4096]);
        }
        let pages = [0x20u32, 0x21, 0x40, 0x1000];
        put(list, &pages.map(u32::to_le_bytes).concat());
        put(table, &list.to_le_bytes());
        put(table + 8, &16u32.to_le_bytes());
        put(available + 2, &1u16.to_le_bytes());
        let mut rings = [Ring {
            queue,
            vector: Transport::new(0, &[16], 1).config_vector.clone(),
            events: Arc::new(vec![EventFd::new(0).unwrap()]),
        }];
        let guest = Guest {
            memory: Arc::new(memory),
            stop: Arc::default(),
            leave: Arc::default(),
            forked: None,
        };
        let served = Balloon::new().serve(INFLATE, &mut rings, &guest);
        served.unwrap();
        let read = |page: u64| {
            guest
                .memory
                .read_obj::<u8>(GuestAddress(page << 12))
                .unwrap()
        };
        assert_eq!([0x20, 0x21, 0x22, 0x40].map(read), [0, 0, 7, 0]);
    }
}
