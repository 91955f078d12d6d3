// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a running machine is at a moment, for others of this process to go on from.
//!
//! rvmm keeps it ([`sys::fork`]): memory is shared with the machine until that writes, and no file is written. Of other
//! hypervisors' machines it is a file without a name, as [`crate::Pause::save`] would write it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};
use vmm_sys_util::tempfile::TempFile;

use crate::snapshot::state::State;
use crate::snapshot::{self, Snapshot};
use crate::sys;

/// What rvmm keeps of a machine.
pub(crate) struct Kept {
    /// The descriptor of RVMM_FORK.
    pub(crate) file: File,
    /// The machine's memory: the hypervisor copies from it what nobody has looked at yet.
    memory: Arc<GuestMemoryMmap>,
    /// What the machine had written to files of its own.
    parts: Vec<File>,
}

impl Kept {
    /// The memory, shared until written to.
    pub(crate) fn memory(&self) -> Result<GuestMemoryMmap, String> {
        let region = |of: &GuestRegionMmap| -> Result<GuestRegionMmap, String> {
            let host = of.get_host_address(MemoryRegionAddress(0));
            let host = host.map_err(|error| error.to_string())? as u64;
            // vm-memory maps no file whose length it cannot ask for: so there is memory first, and then the fork.
            let region = MmapRegionBuilder::new(of.len() as usize)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
                .build()
                .map_err(|error| error.to_string())?;
            // SAFETY: the range is a mapping that was made just now, and is nobody else's yet.
            unsafe { sys::map_over(region.as_ptr(), region.size(), &self.file, host) }
                .map_err(|error| error.to_string())?;
            GuestRegionMmap::new(region, of.start_addr()).map_err(|error| error.to_string())
        };
        let regions = self.memory.iter().map(region);
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        GuestMemoryMmap::from_regions(regions).map_err(|error| error.to_string())
    }

    /// A part, and its length.
    pub(crate) fn part(&self, number: usize) -> io::Result<Option<(&File, u64)>> {
        let part = self.parts.get(number);
        part.map(|part| Ok((part, part.metadata()?.len())))
            .transpose()
    }
}

/// A moment of a machine.
pub struct Fork {
    /// JSON of the state.
    state: Vec<u8>,
    of: Of,
}

enum Of {
    Kept(Arc<Kept>),
    File(File),
}

impl Fork {
    /// Of a machine that rvmm has kept; the parts are copied, because the machine goes on with them.
    pub(crate) fn kept(
        file: File,
        memory: &Arc<GuestMemoryMmap>,
        state: &State,
        parts: &[File],
        directory: &Path,
    ) -> io::Result<(Self, Arc<Kept>)> {
        let copies = parts.iter().map(|part| {
            let length = part.metadata()?.len();
            snapshot::copy(part, 0, length, directory)
        });
        let kept = Arc::new(Kept {
            file,
            memory: memory.clone(),
            parts: copies.collect::<io::Result<_>>()?,
        });
        let fork = Self {
            state: serde_json::to_vec(state)?,
            of: Of::Kept(kept.clone()),
        };
        Ok((fork, kept))
    }

    /// Of a machine that is written to a file without a name below `directory`.
    pub(crate) fn written(
        state: State,
        memory: &GuestMemoryMmap,
        parts: &[File],
        ended: &dyn Fn() -> bool,
        directory: &Path,
    ) -> io::Result<Self> {
        let mut file = TempFile::new_in(directory)?.into_file();
        snapshot::write_to(&mut file, state, memory, parts, ended)?;
        Ok(Self {
            state: Vec::new(),
            of: Of::File(file),
        })
    }

    /// One of the machines that go on from it, with names and addresses of its own by this number
    /// ([`Snapshot::make_clone`]).
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn machine(&self, number: u32) -> io::Result<Snapshot> {
        let mut machine = match &self.of {
            Of::Kept(kept) => Snapshot::kept(kept.clone(), serde_json::from_slice(&self.state)?),
            Of::File(file) => Snapshot::read(file.try_clone()?)?,
        };
        machine.make_clone(number)?;
        Ok(machine)
    }
}
