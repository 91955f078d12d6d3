// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether a file is a kernel for Arm64, and is there to its end (Documentation/arch/arm64/booting.rst).
#![forbid(unsafe_code)]

use std::io::{Read, Seek};

use crate::kernel::{at_end, number, part};

/// Bytes of the header.
const HEADER: u64 = 64;
/// `ARM\x64`, at 56.
const MAGIC: &[u8] = b"ARM\x64";
/// Flags: the kernel is big-endian.
const BIG_ENDIAN: u64 = 1;

/// What a kernel says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Where it begins, from a multiple of 2 MiB on.
    pub(crate) offset: u64,
    /// Bytes of memory that it uses before it knows which there is, more than the file has.
    pub(crate) memory: u64,
}

/// Says what a file of `size` bytes has to say, or in a sentence why it is no kernel that can be started.
pub(crate) fn image(file: &mut (impl Read + Seek), size: u64) -> Result<Image, String> {
    let head = part(file, 0, size.min(HEADER))?;
    let packed = |by: &str| Err(format!("it is packed by {by}: unpack it first"));
    match head.get(..8) {
        Some([0x1f, 0x8b, ..]) => return packed("gzip"),
        Some([0x28, 0xb5, 0x2f, 0xfd, ..]) => return packed("zstd"),
        Some(b"MZ\0\0zimg") => return packed("its EFI stub"),
        _ => {}
    }
    let field = |at| number(&head, at, 8);
    let (Some(offset), Some(memory), Some(flags)) = (field(8), field(16), field(24)) else {
        return Err(format!("{size} bytes are too few for an Image"));
    };
    if head.get(56..60) != Some(MAGIC) {
        return Err("it is no Image of Arm64".into());
    }
    if flags & BIG_ENDIAN != 0 {
        return Err("it is a big-endian kernel".into());
    }
    // A kernel before 3.17 does not say.
    if memory == 0 {
        return Err("it does not say how much memory it takes: it is too old".into());
    }
    if head.starts_with(b"MZ") {
        at_end(size, end_of_sections(file, &head)?)?;
    }
    Ok(Image { offset, memory })
}

/// The end of an EFI application's last section in its file (PE Format, 3.3 and 4).
fn end_of_sections(file: &mut (impl Read + Seek), head: &[u8]) -> Result<u64, String> {
    const FILE_HEADER: u64 = 24;
    const SECTION: usize = 40;
    let short = "it ends inside its headers";
    let at = number(head, 60, 4).ok_or(short)?;
    let header = part(file, at, FILE_HEADER)?;
    if !header.starts_with(b"PE\0\0") {
        return Err("it begins like an EFI application, but is none".into());
    }
    let sections = number(&header, 6, 2).ok_or(short)?;
    let optional = number(&header, 20, 2).ok_or(short)?;
    let bytes = sections * SECTION as u64;
    let table = part(file, at + FILE_HEADER + optional, bytes)?;
    if (table.len() as u64) < bytes {
        return Err(short.into());
    }
    let end = |section: &[u8]| Some(number(section, 20, 4)? + number(section, 16, 4)?);
    let ends = table.chunks_exact(SECTION).filter_map(end);
    Ok(ends.max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// One that is an EFI application with two sections, of 1 KiB in all.
    fn kernel() -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"MZ");
        put(16, &0x10_0000u64.to_le_bytes());
        put(24, &0b1010u64.to_le_bytes());
        put(56, MAGIC);
        put(60, &64u32.to_le_bytes());
        put(64, b"PE\0\0");
        put(64 + 6, &2u16.to_le_bytes());
        put(64 + 20, &16u16.to_le_bytes());
        for (section, at, length) in [(0, 512u32, 512u32), (1, 256, 256)] {
            let entry = 64 + 24 + 16 + 40 * section;
            put(entry + 16, &length.to_le_bytes());
            put(entry + 20, &at.to_le_bytes());
        }
        bytes
    }

    fn of(bytes: &[u8]) -> Result<Image, String> {
        image(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    #[test]
    fn kernels() {
        let expected = Image {
            offset: 0,
            memory: 0x10_0000,
        };
        assert_eq!(of(&kernel()), Ok(expected));
        // One without an EFI stub begins with an instruction.
        let mut plain = kernel();
        plain[..2].fill(0);
        plain.truncate(64);
        assert_eq!(of(&plain), Ok(expected));
    }

    #[test]
    fn half_of_one() {
        let whole = kernel();
        for length in 0..whole.len() {
            let text = of(&whole[..length]).unwrap_err();
            assert!(!text.is_empty(), "{length}");
            if length > 256 {
                assert!(text.contains("cut short"), "{length}: {text}");
            }
        }
    }

    #[test]
    fn what_is_none() {
        let with = |at: usize, value: &[u8]| {
            let mut bytes = kernel();
            bytes[at..at + value.len()].copy_from_slice(value);
            of(&bytes).unwrap_err()
        };
        assert!(with(0, b"\x1f\x8b\x08\0").contains("gzip"));
        assert!(with(0, b"MZ\0\0zimg").contains("unpack"));
        assert!(with(56, b"ARM\0").contains("no Image"));
        assert!(with(24, &[1]).contains("big-endian"));
        assert!(with(16, &[0; 8]).contains("too old"));
        assert!(with(64, b"NE").contains("EFI"));
        assert!(with(60, &[0xff; 4]).contains("EFI"));
        assert!(with(64 + 6, &[0xff; 2]).contains("ends inside"));
        assert!(of(&[b'x'; 4096]).unwrap_err().contains("no Image"));
    }
}
