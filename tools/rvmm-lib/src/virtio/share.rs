// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A directory of the host's (Virtual I/O Device 1.2, 5.11): virtiofsd has it, and serves the device's queues
//! (vhost-user protocol). It sees all of the guest's memory.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempdir::TempDir;

use super::saved::Saved;
use super::vhost::{stopped_at, user_address};
use super::{Backend, Broken, Guest, Ring};
use crate::helper;

/// Entries of each queue.
const ENTRIES: u16 = 1024;
/// Queues: for what cannot wait, and for the rest.
const QUEUES: usize = 2;
/// Bytes of the configuration's tag.
const TAG: usize = 36;

impl From<vhost::Error> for Broken {
    fn from(error: vhost::Error) -> Self {
        Self(format!("virtiofsd: {error}"))
    }
}

/// A directory, which outlives the devices that it is served by one after the other.
#[derive(Clone)]
pub struct Directory {
    program: Frontend,
    features: u64,
    tag: String,
}

impl Directory {
    /// Starts virtiofsd for a directory, which a guest mounts by its tag.
    ///
    /// # Errors
    ///
    /// Those of the system; a sentence if the tag is not of 1 to 36 bytes, or virtiofsd is not installed or does not
    /// start.
    pub fn start(path: &Path, tag: &str) -> io::Result<Self> {
        if !(1..=TAG).contains(&tag.len()) {
            let cause = format!("its tag has to have 1 to {TAG} bytes, and {tag:?} has not");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
        }
        helper::may_start()?;
        std::fs::read_dir(path)?;
        // It takes a socket that it can accept a connection from: one that nobody else can connect to.
        let place = TempDir::new().map_err(io::Error::from)?;
        let name = place.as_path().join("socket");
        let listener = UnixListener::bind(&name)?;
        let socket = UnixStream::connect(&name)?;
        drop(place);
        let mut arguments = vec!["--log-level=warn".to_owned()];
        arguments.push(format!("--shared-dir={}", path.display()));
        let programs = ["virtiofsd", "/usr/libexec/virtiofsd"];
        helper::start(&programs, "virtiofsd", &arguments, &listener.into())?;
        Self::new(socket, tag).map_err(|error| io::Error::other(Broken::from(error)))
    }

    /// The directory at the other end of a socket.
    fn new(socket: UnixStream, tag: &str) -> vhost::Result<Self> {
        let mut program = Frontend::from_stream(socket, QUEUES as u64);
        program.set_owner()?;
        let features = program.get_features()?;
        let offered = program.get_protocol_features()?;
        // With it every message is answered.
        let answers = VhostUserProtocolFeatures::REPLY_ACK;
        program.set_protocol_features(offered & (answers | VhostUserProtocolFeatures::MQ))?;
        if offered.contains(answers) {
            program.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        Ok(Self {
            program,
            features,
            tag: tag.to_owned(),
        })
    }
}

/// The device.
pub struct Share {
    directory: Directory,
    /// What the driver has accepted.
    accepted: u64,
}

impl Share {
    /// A device with this directory, on which no other one is at work.
    pub fn new(directory: Directory) -> Self {
        Self {
            directory,
            accepted: 0,
        }
    }
}

impl Backend for Share {
    fn kind(&self) -> (u16, u32) {
        (26, 0x01_80_00)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; QUEUES]
    }

    /// `struct virtio_fs_config` (5.11.4): the tag, and the number of queues for requests.
    fn config(&self) -> Vec<u8> {
        let mut config = self.directory.tag.clone().into_bytes();
        config.resize(TAG, 0);
        config.extend((QUEUES as u32 - 1).to_le_bytes());
        config
    }

    fn start(&mut self, features: u64) {
        self.accepted = features;
    }

    fn served_outside(&self) -> usize {
        QUEUES
    }

    fn shares_memory(&self) -> bool {
        true
    }

    fn hand_over(
        &mut self,
        rings: &[Ring],
        kicks: &[EventFd],
        guest: &Guest,
    ) -> Result<(), Broken> {
        let program = &mut self.directory.program;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        program.set_features(self.accepted & self.directory.features | protocol)?;
        let regions = guest.memory.iter();
        let regions = regions.map(VhostUserMemoryRegionInfo::from_guest_region);
        program.set_mem_table(&regions.collect::<vhost::Result<Vec<_>>>()?)?;
        for (index, (ring, kick)) in rings.iter().zip(kicks).enumerate() {
            if !ring.enabled() {
                return Err(Broken("a queue is not enabled".into()));
            }
            let queue = &ring.queue;
            let address = |address| user_address(&guest.memory, address);
            let config = VringConfigData {
                queue_max_size: ENTRIES,
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: address(queue.desc_table())?,
                used_ring_addr: address(queue.used_ring())?,
                avail_ring_addr: address(queue.avail_ring())?,
                log_addr: None,
            };
            program.set_vring_num(index, queue.size())?;
            program.set_vring_base(index, queue.next_avail())?;
            program.set_vring_addr(index, &config)?;
            // Without a vector nobody is told.
            let call = match ring.event() {
                Some(event) => event.try_clone()?,
                None => EventFd::new(libc::EFD_NONBLOCK)?,
            };
            let (call, kick) = (call.into_raw_fd(), kick.try_clone()?.into_raw_fd());
            // SAFETY: both are descriptors of events that have just been made, and are nobody else's: the crate has
            // another version of the type.
            let (call, kick) =
                unsafe { (FromRawFd::from_raw_fd(call), FromRawFd::from_raw_fd(kick)) };
            program.set_vring_call(index, &call)?;
            program.set_vring_kick(index, &kick)?;
            program.set_vring_enable(index, true)?;
        }
        // What was there before has nobody to ring for it.
        for (kick, _) in kicks.iter().zip(rings) {
            let _ = kick.write(1);
        }
        Ok(())
    }

    fn take_back(&mut self, rings: &mut [Ring], memory: &GuestMemoryMmap) -> Result<(), Broken> {
        let program = &self.directory.program;
        for (index, ring) in rings.iter_mut().enumerate() {
            stopped_at(ring, program.get_vring_base(index)? as u16, memory)?;
        }
        Ok(())
    }

    fn serve(&mut self, _: usize, _: &mut [Ring], _: &Guest) -> Result<(), Broken> {
        Ok(())
    }

    fn saved(&self, _: &mut Vec<File>) -> io::Result<Saved> {
        let cause = "a machine with a shared directory cannot be saved";
        Err(io::Error::new(io::ErrorKind::Unsupported, cause))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryRegion};

    use super::*;

    #[test]
    fn memory_that_others_see_can_be_given_back() {
        let memory = crate::vm::allocate(16 << 20, true).unwrap();
        let at = vm_memory::GuestAddress(0x20_0000);
        let (file, start) = {
            let region = memory.iter().next().unwrap().file_offset().unwrap();
            (region.file().try_clone().unwrap(), region.start())
        };
        let seen = || {
            let mut bytes = [0; 3];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, start + at.0).unwrap();
            bytes
        };
        memory.write_slice(&[7, 8, 9], at).unwrap();
        assert_eq!(seen(), [7, 8, 9]);
        crate::sys::discard(&memory, at.0, 4096).unwrap();
        assert_eq!(seen(), [0; 3]);
        assert_eq!(memory.read_obj::<u8>(at).unwrap(), 0);
    }

    #[test]
    fn directories_and_tags_are_looked_at_before_anything_runs() {
        let start = |path: &str, tag: &str| {
            let started = Directory::start(Path::new(path), tag);
            started.err().unwrap().to_string()
        };
        assert!(start("/", "").contains("1 to 36 bytes"));
        assert!(start("/", &"x".repeat(37)).contains("1 to 36 bytes"));
        assert!(start("/proc/self/exe", "tag").contains("Not a directory"));
        assert!(start("/no/such", "tag").contains("No such file"));
    }
}
