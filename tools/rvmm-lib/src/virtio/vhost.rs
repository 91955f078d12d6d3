// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rings that the host's kernel serves (linux/vhost.h).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use virtio_queue::QueueT;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};

use super::{Broken, Guest, Ring};

/// `VHOST_VIRTIO`.
const VHOST: u32 = 0xaf;
/// The most regions of memory that a machine has.
const REGIONS: usize = 2;

/// `struct vhost_vring_state`, and `struct vhost_vring_file`: a queue, and a number or a descriptor.
#[repr(C)]
struct Value {
    index: u32,
    value: i32,
}

/// `struct vhost_vring_addr`: user addresses.
#[repr(C)]
struct Addresses {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Default)]
struct Region {
    gpa: u64,
    size: u64,
    user: u64,
    flags: u64,
}

/// `struct vhost_memory`, with room for its regions.
#[repr(C)]
struct Memory {
    count: u32,
    padding: u32,
    regions: [Region; REGIONS],
}

vmm_sys_util::ioctl_ior_nr!(GET_FEATURES, VHOST, 0x00, u64);
vmm_sys_util::ioctl_iow_nr!(SET_FEATURES, VHOST, 0x00, u64);
vmm_sys_util::ioctl_io_nr!(SET_OWNER, VHOST, 0x01);
// The number has the header's size; the regions follow the header.
vmm_sys_util::ioctl_iow_nr!(SET_MEM_TABLE, VHOST, 0x03, u64);
vmm_sys_util::ioctl_iow_nr!(SET_VRING_NUM, VHOST, 0x10, Value);
vmm_sys_util::ioctl_iow_nr!(SET_VRING_ADDR, VHOST, 0x11, Addresses);
vmm_sys_util::ioctl_iow_nr!(SET_VRING_BASE, VHOST, 0x12, Value);
vmm_sys_util::ioctl_iowr_nr!(GET_VRING_BASE, VHOST, 0x12, Value);
vmm_sys_util::ioctl_iow_nr!(SET_VRING_KICK, VHOST, 0x20, Value);
vmm_sys_util::ioctl_iow_nr!(SET_VRING_CALL, VHOST, 0x21, Value);
vmm_sys_util::ioctl_iow_nr!(VSOCK_SET_GUEST_CID, VHOST, 0x60, u64);
vmm_sys_util::ioctl_iow_nr!(VSOCK_SET_RUNNING, VHOST, 0x61, i32);

fn done(result: i32) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where this process has a guest's address.
pub(super) fn user_address(memory: &GuestMemoryMmap, address: u64) -> Result<u64, Broken> {
    let address = memory.get_host_address(GuestAddress(address));
    address
        .map(|address| address as u64)
        .map_err(|error| Broken(error.to_string()))
}

/// A queue has been served elsewhere up to this place.
pub(super) fn stopped_at(
    ring: &mut Ring,
    available: u16,
    memory: &GuestMemoryMmap,
) -> Result<(), Broken> {
    ring.queue.set_next_avail(available);
    // Nobody keeps another number of what has been used than the ring's own.
    let used = GuestAddress(ring.queue.used_ring() + 2);
    let used = memory.read_obj::<u16>(used);
    let used = used.map_err(|error| Broken(error.to_string()))?;
    ring.queue.set_next_used(used);
    Ok(())
}

/// The kernel's end of a device for sockets.
pub(super) struct Vhost {
    file: File,
    /// What the kernel writes to, until the file is closed.
    memory: Option<Arc<GuestMemoryMmap>>,
}

impl Vhost {
    /// The one behind this file, for the sockets of a CID.
    pub(super) fn vsock(file: File, cid: u32) -> io::Result<Self> {
        let cid = u64::from(cid);
        // SAFETY: neither takes anything but a number, which lives.
        unsafe {
            done(ioctl(&file, SET_OWNER()))?;
            done(ioctl_with_ref(&file, VSOCK_SET_GUEST_CID(), &cid))?;
        }
        Ok(Self { file, memory: None })
    }

    /// The features that it has.
    pub(super) fn features(&self) -> io::Result<u64> {
        let mut features = 0u64;
        // SAFETY: the ioctl writes one number.
        done(unsafe { ioctl_with_mut_ref(&self.file, GET_FEATURES(), &mut features) })?;
        Ok(features)
    }

    /// Has it serve these rings, whose doorbells are `kicks`, and which the driver has enabled, from where they are.
    pub(super) fn start(
        &mut self,
        features: u64,
        rings: &[Ring],
        kicks: &[EventFd],
        guest: &Guest,
    ) -> Result<(), Broken> {
        let memory = &*guest.memory;
        let mut table = Memory {
            count: memory.num_regions() as u32,
            padding: 0,
            regions: Default::default(),
        };
        for (slot, region) in table.regions.iter_mut().zip(memory.iter()) {
            let user = region.get_host_address(MemoryRegionAddress(0));
            *slot = Region {
                gpa: region.start_addr().0,
                size: region.len(),
                user: user.map_err(|error| Broken(error.to_string()))? as u64,
                flags: 0,
            };
        }
        if table.count as usize > REGIONS {
            return Err(Broken("more regions of memory than are known here".into()));
        }
        let offered = self.features()?;
        self.memory = Some(guest.memory.clone());
        // SAFETY: all are of the types that their numbers have, and live. The kernel reaches the memory by the tables
        // of this process, and the memory stays as long as the file: it is kept here, and goes after it.
        unsafe {
            done(ioctl_with_ref(
                &self.file,
                SET_FEATURES(),
                &(features & offered),
            ))?;
            done(ioctl_with_ref(&self.file, SET_MEM_TABLE(), &table))?;
        }
        for ((index, ring), kick) in (0..).zip(rings).zip(kicks) {
            if !ring.enabled() {
                return Err(Broken("a queue is not enabled".into()));
            }
            let queue = &ring.queue;
            let value = |value: i32| Value { index, value };
            let addresses = Addresses {
                index,
                flags: 0,
                descriptors: user_address(memory, queue.desc_table())?,
                used: user_address(memory, queue.used_ring())?,
                available: user_address(memory, queue.avail_ring())?,
                log: 0,
            };
            let size = value(queue.size().into());
            let base = value(queue.next_avail().into());
            let kick = value(kick.as_raw_fd());
            // -1: nobody is told.
            let call = value(ring.event().map_or(-1, EventFd::as_raw_fd));
            // SAFETY: as above.
            unsafe {
                done(ioctl_with_ref(&self.file, SET_VRING_NUM(), &size))?;
                done(ioctl_with_ref(&self.file, SET_VRING_BASE(), &base))?;
                done(ioctl_with_ref(&self.file, SET_VRING_ADDR(), &addresses))?;
                done(ioctl_with_ref(&self.file, SET_VRING_KICK(), &kick))?;
                done(ioctl_with_ref(&self.file, SET_VRING_CALL(), &call))?;
            }
        }
        self.run(true)?;
        // What was there before has nobody to ring for it.
        for (kick, _) in kicks.iter().zip(rings) {
            let _ = kick.write(1);
        }
        Ok(())
    }

    fn run(&self, running: bool) -> io::Result<()> {
        // SAFETY: the ioctl reads one number.
        done(unsafe { ioctl_with_ref(&self.file, VSOCK_SET_RUNNING(), &i32::from(running)) })
    }

    /// Has it leave the rings alone, which then are where it has left them.
    pub(super) fn stop(&self, rings: &mut [Ring], memory: &GuestMemoryMmap) -> Result<(), Broken> {
        self.run(false)?;
        for (index, ring) in (0..).zip(rings) {
            let mut base = Value { index, value: 0 };
            // SAFETY: the ioctl reads and writes this one.
            done(unsafe { ioctl_with_mut_ref(&self.file, GET_VRING_BASE(), &mut base) })?;
            stopped_at(ring, base.value as u16, memory)?;
        }
        Ok(())
    }
}
