// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A machine in a file: what it is, and its memory, of which only what is not zero takes space.
//!
//! The file has a header, the memory, page by page at its place, holes where pages are zero, the parts (files that the
//! machine has written to), and the state as JSON. Numbers are little-endian. Checksums tell a file that was cut short
//! or damaged; they are no signature.

pub(crate) mod state;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc::{Digest, Table};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use vmm_sys_util::tempfile::TempFile;

use self::state::State;
use crate::disk::CRC;
use crate::error::Result;
use crate::fork::Kept;
use crate::hold::Ended;
use crate::layout;
use crate::virtio::saved::{FunctionState, Saved};
use crate::virtio::user::{Forward, Network};
use crate::virtio::{net, Backend};

/// The file's first bytes, and the version of its format.
const MAGIC: [u8; 8] = *b"RVMMSNAP";
const VERSION: u64 = 2;
/// Bytes of the header: magic, version, bytes of state, place of state, bytes of memory, checksums of state, memory and
/// header. Memory is at the second page.
const HEADER: usize = 64;
/// The most bytes of state: a CPU has some 40,000.
const MOST_STATE: u64 = 16 << 20;
const PAGE: usize = 4096;

fn wrong(sentence: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, sentence.into())
}

/// A checksum of the pages that are not zero, and of where they are.
struct Pages(Digest<'static, u64, Table<16>>);

impl Pages {
    fn new() -> Self {
        Self(CRC.digest())
    }

    fn add(&mut self, at: u64, page: &[u8]) {
        self.0.update(&at.to_le_bytes());
        self.0.update(page);
    }
}

fn is_zero(page: &[u8; PAGE]) -> bool {
    *page == [0; PAGE]
}

/// Writes a machine to a file, which is there as a whole or not at all.
/// It gives up when the machine has `ended`.
pub(crate) fn save(
    path: &Path,
    state: State,
    memory: &GuestMemoryMmap,
    parts: &[File],
    ended: &dyn Fn() -> bool,
) -> io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|about| !about.is_file()) {
        let cause = "is there, and is no regular file";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, cause));
    }
    // One machine saves itself once at a time; another launcher has another number.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let result =
        write(&new, state, memory, parts, ended).and_then(|()| std::fs::rename(&new, path));
    // One that was there before is somebody else's.
    if result
        .as_ref()
        .is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists)
    {
        let _ = std::fs::remove_file(&new);
    }
    result
}

fn write(
    path: &Path,
    state: State,
    memory: &GuestMemoryMmap,
    parts: &[File],
    ended: &dyn Fn() -> bool,
) -> io::Result<()> {
    // What a guest has in its memory is its owner's.
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.write(true).create_new(true).open(path)?;
    write_to(&mut file, state, memory, parts, ended)?;
    file.sync_all()
}

/// Writes a machine to an empty file.
pub(crate) fn write_to(
    file: &mut File,
    mut state: State,
    memory: &GuestMemoryMmap,
    parts: &[File],
    ended: &dyn Fn() -> bool,
) -> io::Result<()> {
    let start = PAGE as u64;
    let (mut pages, mut at) = (Pages::new(), 0);
    let mut page = [0; PAGE];
    for region in memory.iter() {
        let first = region.start_addr().0;
        for offset in (0..region.len()).step_by(PAGE) {
            if ended() {
                return Err(io::Error::other(Ended));
            }
            let read = memory.read_slice(&mut page, GuestAddress(first + offset));
            read.map_err(io::Error::other)?;
            if !is_zero(&page) {
                pages.add(at, &page);
                file.write_all_at(&page, start + at)?;
            }
            at += PAGE as u64;
        }
    }
    let mut end = start + at;
    for part in parts {
        let length = part.metadata()?.len();
        let mut pages = Pages::new();
        walk(part, 0, length, |at, page| {
            if ended() {
                return Err(io::Error::other(Ended));
            }
            pages.add(at, page);
            file.write_all_at(page, end + at)
        })?;
        let sum = pages.0.finalize();
        state.parts.push((end, length, sum));
        end += length.next_multiple_of(PAGE as u64);
    }
    let state = serde_json::to_vec(&state)?;
    if state.len() as u64 > MOST_STATE {
        return Err(wrong(format!("its state has more than {MOST_STATE} bytes")));
    }
    let words = [
        u64::from_le_bytes(MAGIC),
        VERSION,
        state.len() as u64,
        end,
        at,
        CRC.checksum(&state),
        pages.0.finalize(),
    ];
    let mut header: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    header.extend(CRC.checksum(&header).to_le_bytes());
    file.write_all(&header)?;
    file.write_all_at(&state, end)
}

/// Calls `found` for each page of a part of a file that is not zero, with its place in that part; the last one is
/// filled up with zeroes.
fn walk(
    file: &File,
    start: u64,
    length: u64,
    mut found: impl FnMut(u64, &[u8; PAGE]) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while let Some(next) = next_data(file, start + at)?.filter(|next| *next < start + length) {
        // To the page's beginning.
        at = (next - start) / PAGE as u64 * PAGE as u64;
        let mut page = [0; PAGE];
        let count = (length - at).min(PAGE as u64) as usize;
        file.read_exact_at(&mut page[..count], start + at)
            .map_err(cut)?;
        if !is_zero(&page) {
            found(at, &page)?;
        }
        at += PAGE as u64;
        if at >= length {
            break;
        }
    }
    Ok(())
}

/// Copies a part of a file to one without a name below `directory`.
pub(crate) fn copy(file: &File, start: u64, length: u64, directory: &Path) -> io::Result<File> {
    let copy = TempFile::new_in(directory)?.into_file();
    copy.set_len(length)?;
    walk(file, start, length, |at, page| {
        let count = (length - at).min(PAGE as u64) as usize;
        copy.write_all_at(&page[..count], at)
    })?;
    Ok(copy)
}

fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => wrong("it is cut short"),
        _ => error,
    }
}

/// A machine that was saved: a file with it, looked at from its first byte to its last, or what rvmm keeps of it.
pub struct Snapshot {
    from: From,
    pub(crate) state: State,
    /// Networks in user mode that have been started, a place for each device.
    networks: Vec<Option<Network>>,
}

/// Where memory and parts are.
enum From {
    File(File),
    Kept(Arc<Kept>),
}

impl Snapshot {
    /// Opens a file. It has to stay as it is while machines run from it.
    ///
    /// # Errors
    ///
    /// Those of the system; [`io::ErrorKind::InvalidData`] with a sentence if it is none, of another version, cut short
    /// or damaged.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::read(File::open(path)?)
    }

    /// Looks at a file.
    pub(crate) fn read(file: File) -> io::Result<Self> {
        if !file.metadata()?.is_file() {
            return Err(wrong("it is no regular file"));
        }
        let mut header = [0; HEADER];
        let read = match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            read => read.map_err(cut),
        };
        if header[..8] != MAGIC {
            return Err(wrong("it is no machine that rvmm has saved"));
        }
        read?;
        let mut words = [0; HEADER / 8];
        for (word, bytes) in words.iter_mut().zip(header.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        let [_, version, length, end, size, state_sum, memory_sum, sum] = words;
        if version != VERSION {
            return Err(wrong(format!(
                "it has version {version} of the format, and {VERSION} is what can be read"
            )));
        }
        if CRC.checksum(&header[..HEADER - 8]) != sum
            || length > MOST_STATE
            || size
                .checked_add(PAGE as u64)
                .is_none_or(|least| end < least)
        {
            return Err(wrong("it is damaged: its header is not what was written"));
        }
        let whole = end.checked_add(length);
        if whole.is_none_or(|whole| file.metadata().is_ok_and(|about| about.len() < whole)) {
            return Err(wrong("it is cut short"));
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, end).map_err(cut)?;
        if CRC.checksum(&bytes) != state_sum {
            return Err(wrong("it is damaged: its state is not what was written"));
        }
        let state: State =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("its state: {error}")))?;
        let ranges: u64 = layout::ram_ranges(state.memory)
            .iter()
            .map(|range| range.1)
            .sum();
        if state.vcpus.is_empty() || ranges != size || size % PAGE as u64 != 0 {
            return Err(wrong("its state and its memory do not fit"));
        }
        let memory = [(PAGE as u64, size, memory_sum, "memory")];
        let parts = state.parts.iter();
        let parts = parts.map(|(at, length, sum)| (*at, *length, *sum, "disk"));
        for (at, length, sum, what) in memory.into_iter().chain(parts) {
            if at.checked_add(length).is_none_or(|after| after > end) {
                return Err(wrong("its parts do not fit"));
            }
            let mut pages = Pages::new();
            walk(&file, at, length, |at, page| {
                pages.add(at, page);
                Ok(())
            })?;
            if pages.0.finalize() != sum {
                let cause = format!("it is damaged: its {what} is not what was written");
                return Err(wrong(cause));
            }
        }
        Ok(Self::new(From::File(file), state))
    }

    /// Copies a part to a file without a name below `directory`.
    fn part(&self, number: usize, directory: &Path) -> io::Result<File> {
        let found = match &self.from {
            From::File(file) => {
                let part = self.state.parts.get(number);
                part.map(|(start, length, _)| (file, *start, *length))
            }
            From::Kept(kept) => kept.part(number)?.map(|(file, length)| (file, 0, length)),
        };
        let (file, start, length) = found.ok_or_else(|| wrong("a part of it is not there"))?;
        copy(file, start, length, directory)
    }

    /// What rvmm keeps of a machine of this process, if it is that.
    pub(crate) fn fork(&self) -> Option<&Arc<Kept>> {
        match &self.from {
            From::File(_) => None,
            From::Kept(kept) => Some(kept),
        }
    }

    /// One that goes on from a machine of this process.
    pub(crate) fn kept(kept: Arc<Kept>, state: State) -> Self {
        Self::new(From::Kept(kept), state)
    }

    fn new(from: From, state: State) -> Self {
        Self {
            from,
            state,
            networks: Vec::new(),
        }
    }

    /// Starts the programs that its networks in user mode take, before the [sandbox](crate::sandbox) lets no more be
    /// started.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Device`].
    pub fn start_networks(&mut self) -> Result<()> {
        self.networks = self.started()?;
        Ok(())
    }

    fn started(&self) -> Result<Vec<Option<Network>>> {
        self.functions()
            .map(|state| state.device.network())
            .collect()
    }

    fn functions(&self) -> impl Iterator<Item = &FunctionState> {
        self.state.virtio.iter().flat_map(|state| &state.functions)
    }

    /// Makes the machine's devices, with disks that are copies below the directory for temporary files.
    pub(crate) fn devices(&self) -> Result<Vec<Box<dyn Backend>>> {
        let directory = std::env::temp_dir();
        let parts = |number| self.part(number, &directory);
        let networks = match self.networks.is_empty() {
            true => self.started()?,
            false => self.networks.clone(),
        };
        let devices = self.functions().zip(networks);
        let devices = devices.map(|(state, network)| state.device.make(network, &parts));
        devices.collect()
    }

    /// Tap interfaces and addresses of its network cards.
    fn cards(&mut self) -> impl Iterator<Item = (&mut String, &mut [u8; 6])> {
        let functions = self.state.virtio.iter_mut().flat_map(|s| &mut s.functions);
        functions.filter_map(|state| match &mut state.device {
            Saved::Net { tap, mac } => Some((tap, mac)),
            _ => None,
        })
    }

    /// Puts the network cards that are on tap interfaces on others, in their order.
    ///
    /// # Errors
    ///
    /// A sentence if there are not so many.
    pub fn set_taps(&mut self, names: &[String]) -> std::result::Result<(), String> {
        let mut cards = self.cards();
        for name in names {
            let (tap, _) = cards
                .next()
                .ok_or("it has fewer network cards on tap interfaces")?;
            tap.clone_from(name);
        }
        Ok(())
    }

    /// Gives it another CID.
    ///
    /// # Errors
    ///
    /// A sentence if it has no sockets.
    pub fn set_cid(&mut self, other: u32) -> std::result::Result<(), String> {
        let functions = self.state.virtio.iter_mut().flat_map(|s| &mut s.functions);
        let mut cids = functions.filter_map(|state| match &mut state.device {
            Saved::Vsock { cid } => Some(cid),
            _ => None,
        });
        *cids.next().ok_or("it has no sockets")? = other;
        Ok(())
    }

    /// Number of the machine's CPUs.
    pub fn cpus(&self) -> usize {
        self.state.vcpus.len()
    }

    /// Bytes of the machine's memory.
    pub fn memory_size(&self) -> u64 {
        self.state.memory
    }

    /// Makes it one of several: its tap interfaces and consoles get this number behind their names, its network cards
    /// addresses of their own, and its sockets the CID, its networks the ports of the host that are so many after the
    /// machine's, and one.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn make_clone(&mut self, number: u32) -> io::Result<()> {
        let functions = self.state.virtio.iter_mut().flat_map(|s| &mut s.functions);
        for function in functions {
            match &mut function.device {
                Saved::Net { tap, mac } => {
                    *tap = format!("{tap}{number}");
                    *mac = net::random_address()?;
                }
                Saved::UserNet { forwards, mac } => {
                    for Forward { host, .. } in forwards {
                        let number = u16::try_from(number).unwrap_or(u16::MAX);
                        *host = host.saturating_add(number).saturating_add(1);
                    }
                    *mac = net::random_address()?;
                }
                Saved::Console { path } => path.as_mut_os_string().push(number.to_string()),
                // The machine that was saved may still run.
                Saved::Vsock { cid } => *cid = cid.saturating_add(number).saturating_add(1),
                _ => {}
            }
        }
        Ok(())
    }

    /// Directories in which its devices make something.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.functions()
            .filter_map(|state| state.device.directory())
    }

    /// Files that its disks are on, and whether they are written to.
    pub fn files(&self) -> impl Iterator<Item = (&Path, bool)> {
        self.functions().filter_map(|state| state.device.file())
    }

    /// The machine's memory, shared with all that come from this file, until written to.
    pub(crate) fn memory(&self) -> std::result::Result<GuestMemoryMmap, String> {
        let file = match &self.from {
            From::File(file) => file,
            From::Kept(kept) => return kept.memory(),
        };
        let (mut regions, mut at) = (Vec::new(), PAGE as u64);
        for (first, length) in layout::ram_ranges(self.state.memory) {
            let file = file.try_clone().map_err(|error| error.to_string())?;
            let region = MmapRegionBuilder::new(length as usize)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::new(file, at))
                .build()
                .map_err(|error| error.to_string())?;
            let region = GuestRegionMmap::new(region, GuestAddress(first));
            regions.push(region.map_err(|error| error.to_string())?);
            at += length;
        }
        GuestMemoryMmap::from_regions(regions).map_err(|error| error.to_string())
    }
}

/// Where the next bytes are that may not be zero, from an offset on.
fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    use std::os::fd::AsRawFd;
    // SAFETY: a call about a descriptor that is open; its position is used by nobody.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, libc::SEEK_DATA) };
    match u64::try_from(at) {
        Ok(at) => Ok(Some(at)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        crate::sys::memory_file(bytes).unwrap().0
    }

    fn file(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("rvmm-snapshot-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_was_saved_comes_back_and_is_private() {
        let path = file("whole");
        let size = 16 << 20;
        let memory = crate::vm::allocate(size, false).unwrap();
        let at = GuestAddress(0x12_3000);
        memory.write_slice(&[7; 5000], at).unwrap();
        let parts = [file_of(&[3; 5000]), file_of(&[])];
        save(&path, State::empty(size), &memory, &parts, &|| false).unwrap();
        let about = path.metadata().unwrap();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&about);
        assert!(blocks * 512 < 1 << 20, "sparse: {blocks} blocks");
        let read = |memory: &GuestMemoryMmap| {
            let mut bytes = vec![0; 8192];
            memory.read_slice(&mut bytes, at).unwrap();
            bytes
        };
        let snapshot = Snapshot::open(&path).unwrap();
        let (one, other) = (snapshot.memory().unwrap(), snapshot.memory().unwrap());
        assert_eq!(read(&one), read(&memory));
        for (number, wanted) in [&[3; 5000][..], &[]].iter().enumerate() {
            let part = snapshot.part(number, &std::env::temp_dir()).unwrap();
            assert_eq!(part.metadata().unwrap().len(), wanted.len() as u64);
            let mut bytes = vec![0; wanted.len()];
            part.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, wanted);
        }
        assert!(snapshot.part(2, &std::env::temp_dir()).is_err());
        one.write_slice(&[8; 100], at).unwrap();
        assert_eq!(read(&other), read(&memory));
        Snapshot::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn nothing_is_left_of_a_machine_that_ends_meanwhile() {
        let path = file("ended");
        let memory = crate::vm::allocate(16 << 20, false).unwrap();
        let pages = std::cell::Cell::new(0);
        let ended = || pages.replace(pages.get() + 1) == 100;
        let error = save(&path, State::empty(16 << 20), &memory, &[], &ended).unwrap_err();
        assert_eq!(error.to_string(), "the machine has ended");
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let left = std::fs::read_dir(std::env::temp_dir()).unwrap();
        let mut left = left.map(|entry| entry.unwrap().file_name());
        assert!(!left.any(|other| other.to_string_lossy().starts_with(&name)));
    }

    #[test]
    fn other_files_are_refused() {
        let path = file("other");
        let size = 16 << 20;
        let memory = crate::vm::allocate(size, false).unwrap();
        memory.write_slice(&[7; 5000], GuestAddress(0)).unwrap();
        let part = [file_of(&[5; 100])];
        save(&path, State::empty(size), &memory, &part, &|| false).unwrap();
        let good = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], sentence: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = Snapshot::open(&path).err().unwrap().to_string();
            assert!(error.contains(sentence), "{error}: {sentence}");
        };
        refused(b"", "no machine");
        refused(&[0; 9000], "no machine");
        refused(&good[..30], "cut short");
        refused(&good[..good.len() - 1], "cut short");
        for (at, sentence) in [
            (8, "version"),
            (17, "header"),
            (60, "header"),
            (4096 + 100, "memory is not"),
            (4096 + size as usize - 1, "memory is not"),
            (4096 + size as usize + 99, "disk is not"),
            (good.len() - 1, "state is not"),
        ] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            refused(&bad, sentence);
        }
        std::fs::remove_file(&path).unwrap();
    }
}
