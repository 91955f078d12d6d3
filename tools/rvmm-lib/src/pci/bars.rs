// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Base address registers over memory: the guest reaches the device's registers without an exit, as memory slots.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use super::config::{reg, Config};
use crate::error::{Error, Result};
use crate::sys::DeviceRegion;

/// Guest-physical addresses for registers of devices.
pub const WINDOW: u64 = 0xe000_0000;
/// End of the guest-physical addresses for registers of devices.
pub const WINDOW_END: u64 = 0xfe00_0000;

/// First memory slot of registers, above those of RAM.
const FIRST_SLOT: u32 = 64;
/// Smallest piece of registers that can be a slot.
pub const PAGE: u64 = 4096;

/// What is free for the registers of the next device.
pub struct Room {
    window: u64,
    slot: u32,
}

impl Room {
    /// The whole window, and all slots above those of RAM.
    pub fn new() -> Self {
        Self {
            window: WINDOW,
            slot: FIRST_SLOT,
        }
    }

    /// Takes `size` bytes of the window, aligned to their size.
    fn take(&mut self, size: u64) -> Result<u64> {
        let base = self.window.next_multiple_of(size);
        if base + size > WINDOW_END {
            return Err(Error::Os {
                what: "addresses for the device's registers",
                source: std::io::ErrorKind::OutOfMemory.into(),
            });
        }
        self.window = base + size;
        Ok(base)
    }
}

/// Part of a base address register that the guest reaches without an exit.
pub struct Part {
    offset: u64,
    length: u64,
    /// Where the part is mapped in this process.
    host: *mut libc::c_void,
    slot: u32,
}

// SAFETY: the pointer is only mapped and unmapped.
unsafe impl Send for Part {}

impl Part {
    /// Maps `length` bytes at `offset` of a region of the device into this process.
    fn map(file: &File, region: u64, offset: u64, length: u64, slot: u32) -> Result<Self> {
        // SAFETY: a new mapping at an address of the system's choice; nothing is replaced.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                (region + offset) as libc::off_t,
            )
        };
        if host == libc::MAP_FAILED {
            return Err(Error::Os {
                what: "mapping the device's registers",
                source: std::io::Error::last_os_error(),
            });
        }
        Ok(Self {
            offset,
            length,
            host,
            slot,
        })
    }

    /// The slot for a register at `address`; without a length it goes.
    fn region(&self, address: u64, length: u64) -> kvm_userspace_memory_region {
        kvm_userspace_memory_region {
            slot: self.slot,
            guest_phys_addr: address + self.offset,
            memory_size: length,
            userspace_addr: self.host as u64,
            flags: 0,
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // SAFETY: `Part::map` has mapped it with this length; the slot that used it is gone or dies with the
        // VM, whose vCPUs do not run any more.
        unsafe { libc::munmap(self.host, self.length as usize) };
    }
}

/// A base address register over memory.
pub struct Bar {
    /// The register's number, 0 to 5.
    pub index: usize,
    /// Bytes of registers behind it.
    pub size: u64,
    /// Takes the next register as upper half.
    pub wide: bool,
    /// What of it the guest reaches without an exit.
    pub parts: Vec<Part>,
    /// Guest-physical address of the registers now, if the guest decodes them.
    pub at: Option<u64>,
}

impl Bar {
    /// Puts register `index` at a free address of the window, and maps all of the region but the pages of `hole`.
    pub fn new(
        file: &File,
        config: &mut Config,
        index: usize,
        region: &DeviceRegion,
        hole: Range<u64>,
        room: &mut Room,
    ) -> Result<Self> {
        let at = reg::BAR0 + 4 * index;
        let kind = config.get(at) & 0xf;
        let wide = kind & 6 == 4;
        let base = room.take(region.size)?;
        config.set(at, base as u32 | kind);
        config.allow(at, !(region.size as u32 - 1) & !0xf);
        if wide {
            config.set(at + 4, 0);
            config.allow(at + 4, (!(region.size - 1) >> 32) as u32);
        }
        let mut parts = Vec::new();
        for (from, to) in [(0, hole.start), (hole.end, region.size)] {
            if from < to {
                parts.push(Part::map(file, region.offset, from, to - from, room.slot)?);
                room.slot += 1;
            }
        }
        Ok(Self {
            index,
            size: region.size,
            wide,
            parts,
            at: None,
        })
    }

    /// What the register holds.
    pub fn address(&self, config: &Config) -> u64 {
        let at = reg::BAR0 + 4 * self.index;
        let low = u64::from(config.get(at) & !0xf);
        if self.wide {
            low | u64::from(config.get(at + 4)) << 32
        } else {
            low
        }
    }

    /// Moves the parts to where the guest wants them, or nowhere.
    pub fn place(&mut self, vm: &VmFd, want: Option<u64>) {
        if self.at == want {
            return;
        }
        for part in &self.parts {
            if let Some(old) = self.at {
                // SAFETY: takes a slot away.
                if let Err(error) = unsafe { vm.set_user_memory_region(part.region(old, 0)) } {
                    tracing::debug!(%error, "registers were not mapped");
                }
            }
            if let Some(new) = want {
                let new = part.region(new, part.length);
                // SAFETY: the part is mapped as long as `self` lives, which outlives the vCPUs' running.
                let done = unsafe { vm.set_user_memory_region(new) };
                if let Err(error) = done {
                    let address = new.guest_phys_addr;
                    tracing::warn!(%error, address, "registers cannot be mapped there");
                }
            }
        }
        self.at = want;
    }
}
