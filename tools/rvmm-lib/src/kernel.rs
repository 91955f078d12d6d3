// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Files on their way into guest memory, and whether a file can be a kernel at all and is there to its end.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::error::{Error, Result};

/// A file's content: the file, or what has come out of a FIFO or a device, which can be read but once.
pub(crate) enum Source {
    File(File),
    Bytes(Cursor<Vec<u8>>),
}

impl Source {
    /// Opens a file and gives its size; of what is no plain file it takes up to `most` bytes, and one more tells that
    /// there are more.
    pub(crate) fn open(path: &Path, most: u64) -> Result<(Self, u64)> {
        let read = || {
            let file = File::open(path)?;
            let about = file.metadata()?;
            if about.is_file() {
                return Ok((Self::File(file), about.len()));
            }
            let mut bytes = Vec::new();
            file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
            let size = bytes.len() as u64;
            Ok((Self::Bytes(Cursor::new(bytes)), size))
        };
        let failed = |source| Error::File {
            path: path.into(),
            source,
        };
        let (source, size) = read().map_err(failed)?;
        if size == 0 {
            return Err(failed(io::Error::other("it is empty")));
        }
        Ok((source, size))
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Bytes(bytes) => bytes.read(buffer),
        }
    }
}

impl Seek for Source {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Bytes(bytes) => bytes.seek(to),
        }
    }
}

impl ReadVolatile for Source {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> std::result::Result<usize, VolatileMemoryError> {
        match self {
            Self::File(file) => file.read_volatile(buffer),
            Self::Bytes(bytes) => bytes.read_volatile(buffer),
        }
    }
}

/// What a kernel comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    BzImage,
    Elf,
}

/// Says what a kernel file of `size` bytes is, or in a sentence why it cannot be one.
pub(crate) fn format(
    file: &mut (impl Read + Seek),
    size: u64,
) -> std::result::Result<Format, String> {
    // boot.rst: the header begins at 0x1f1; the end of what is looked at here is at 0x208.
    let head = part(file, 0, size.min(0x208))?;
    if head.starts_with(b"\x7fELF") {
        return elf(file, size).map(|()| Format::Elf);
    }
    let (Some(sectors), Some(paragraphs)) = (head.get(0x1f1), number(&head, 0x1f4, 4)) else {
        return Err(format!(
            "{size} bytes are too few for a bzImage, and it is no ELF file"
        ));
    };
    if head.get(0x1fe..0x200) != Some(&[0x55, 0xaa]) || head.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it is neither a bzImage nor an ELF file".into());
    }
    // `setup_sects`, where 0 means 4, in sectors of 512 bytes without the boot sector; `syssize` in units of 16 bytes.
    let sectors = if *sectors == 0 { 4 } else { *sectors };
    let whole = (u64::from(sectors) + 1) * 512 + paragraphs * 16;
    at_end(size, whole)?;
    Ok(Format::BzImage)
}

/// The file is cut short, if it is.
pub(crate) fn at_end(size: u64, whole: u64) -> std::result::Result<(), String> {
    if size < whole {
        return Err(format!(
            "it is cut short: {size} bytes of at least {whole} are there"
        ));
    }
    Ok(())
}

/// A kernel in ELF is linked for physical addresses, and nothing of it is a program's of the user.
fn elf(file: &mut (impl Read + Seek), size: u64) -> std::result::Result<(), String> {
    const CLASS_64: u8 = 2;
    const EXECUTABLE: u64 = 2;
    const X86_64: u64 = 62;
    const ENTRY: usize = 56;
    const LOAD: u64 = 1;
    // Interpreter, thread-local storage, and what the dynamic linker protects after its work.
    const OF_PROGRAMS: [u64; 3] = [3, 7, 0x6474_e552];

    let head = part(file, 0, size.min(64))?;
    let field = |at, bytes| number(&head, at, bytes).ok_or("it ends inside its ELF header");
    if head.get(4) != Some(&CLASS_64) || field(18, 2)? != X86_64 {
        return Err("it is an ELF file, but not of 64-bit x86".into());
    }
    if field(16, 2)? != EXECUTABLE {
        return Err("it is an ELF file, but a program or a part of one, and no kernel".into());
    }
    let (entry, table, count) = (field(24, 8)?, field(32, 8)?, field(56, 2)?);
    if field(54, 2)? != ENTRY as u64 {
        return Err("its program headers have a size that ELF does not know".into());
    }
    let bytes = count * ENTRY as u64;
    at_end(size, table.saturating_add(bytes))?;
    let mut entered = false;
    for header in part(file, table, bytes)?.chunks_exact(ENTRY) {
        let field = |at| number(header, at, 8).unwrap_or(0);
        let kind = number(header, 0, 4).unwrap_or(0);
        let (offset, address, in_file, in_memory) = (field(8), field(24), field(32), field(40));
        if OF_PROGRAMS.contains(&kind) {
            return Err("it is a program of user space and no kernel".into());
        }
        if kind == LOAD {
            at_end(size, offset.saturating_add(in_file))?;
            entered |= (address..address.saturating_add(in_memory)).contains(&entry);
        }
    }
    if !entered {
        return Err("its entry point is outside of what it loads".into());
    }
    Ok(())
}

pub(crate) fn part(
    file: &mut (impl Read + Seek),
    at: u64,
    bytes: u64,
) -> std::result::Result<Vec<u8>, String> {
    let mut read = || {
        file.seek(SeekFrom::Start(at))?;
        let mut part = Vec::new();
        file.by_ref().take(bytes).read_to_end(&mut part)?;
        Ok(part)
    };
    read().map_err(|error: io::Error| format!("it cannot be read: {error}"))
}

/// A number of up to eight bytes, the lowest first.
pub(crate) fn number(bytes: &[u8], at: usize, count: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(count)?)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> std::result::Result<Format, String> {
        format(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    /// A bzImage of two sectors of setup and 64 bytes.
    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 2 * 512 + 64];
        bytes[0x1f1] = 1;
        bytes[0x1f4] = 4;
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes
    }

    /// An ELF file with 16 bytes at 1 MiB, entered at the first, and a header of `kind`.
    fn elf_with(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 2 * 56 + 16];
        let mut put = |at: usize, value: u64, count: usize| {
            bytes[at..at + count].copy_from_slice(&value.to_le_bytes()[..count]);
        };
        put(0, 0x0002_464c_457f, 6);
        put(16, 2, 2);
        put(18, 62, 2);
        put(24, 1 << 20, 8);
        put(32, 64, 8);
        put(54, 56, 2);
        put(56, 2, 2);
        put(64, 1, 4);
        put(64 + 8, 64 + 2 * 56, 8);
        put(64 + 24, 1 << 20, 8);
        put(64 + 32, 16, 8);
        put(64 + 40, 16, 8);
        put(64 + 56, kind.into(), 4);
        bytes
    }

    #[test]
    fn kernels() {
        assert_eq!(of(&bzimage()), Ok(Format::BzImage));
        // A note.
        assert_eq!(of(&elf_with(4)), Ok(Format::Elf));
    }

    #[test]
    fn half_of_one() {
        for whole in [bzimage(), elf_with(4)] {
            for length in 1..whole.len() {
                let text = of(&whole[..length]).unwrap_err();
                assert!(!text.is_empty(), "{length}");
                if length > 0x208 {
                    assert!(text.contains("cut short"), "{length}: {text}");
                }
            }
        }
    }

    #[test]
    fn what_is_none() {
        assert!(of(&[b'x'; 8192]).unwrap_err().contains("neither"));
        for kind in [3, 7, 0x6474_e552] {
            assert!(of(&elf_with(kind)).unwrap_err().contains("user space"));
        }
        let mut other = elf_with(4);
        other[16] = 3;
        assert!(of(&other).unwrap_err().contains("no kernel"));
        other[18] = 3;
        assert!(of(&other).unwrap_err().contains("64-bit x86"));
        let mut elsewhere = elf_with(4);
        elsewhere[26] = 0xff;
        assert!(of(&elsewhere).unwrap_err().contains("entry point"));
    }

    #[test]
    fn a_fifo_is_read_once_and_whole() {
        let path = std::env::temp_dir().join(format!("rvmm-fifo-{}", std::process::id()));
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the path is zero-terminated.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let give = |bytes: &'static [u8]| {
            let path = path.clone();
            std::thread::spawn(move || std::fs::write(path, bytes).unwrap())
        };
        let writer = give(b"initrd");
        let (mut source, size) = Source::open(&path, 100).unwrap();
        writer.join().unwrap();
        assert_eq!(size, 6);
        let mut text = String::new();
        source.read_to_string(&mut text).unwrap();
        assert_eq!(text, "initrd");
        let writer = give(b"");
        let error = Source::open(&path, 100).err().unwrap();
        writer.join().unwrap();
        assert!(error.to_string().contains("empty"), "{error}");
        let writer = give(b"initrd");
        assert_eq!(
            Source::open(&path, 3).unwrap().1,
            4,
            "more than there is room for"
        );
        writer.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
