// SPDX-License-Identifier: Apache-2.0 OR MIT
//! DMA that the IOMMU has refused, as far as the kernel's log tells: whose, how often, and the last one. The
//! log holds back what comes in quick succession, so that the counts are the least there was.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// What the log says about one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Lines.
    pub lines: u64,
    /// The last DMA address.
    pub address: u64,
    /// The last one was a write.
    pub write: bool,
}

fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &line[line.find(before)? + before.len()..];
    Some(&rest[..rest.find(after).unwrap_or(rest.len())])
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Device, address and direction of a line: Intel's driver's, AMD's, or rvmm's own.
fn parse(line: &str) -> Option<(&str, u64, bool)> {
    if let Some(kind) = between(line, "DMAR: [DMA ", " ") {
        let device = between(line, "Request device [", "]")?;
        let address = hex(between(line, "fault addr ", " ")?)?;
        return Some((device, address, kind == "Write"));
    }
    if let Some(event) = between(line, "AMD-Vi: Event logged [IO_PAGE_FAULT ", "]") {
        // The driver's name and the device's, or the device among the event's fields.
        let device = between(event, "device=", " ")
            .or_else(|| line.split(": AMD-Vi").next()?.split_whitespace().last())?;
        let address = hex(between(event, "address=", " ")?)?;
        const WRITE: u64 = 0x20;
        let flags = hex(between(event, "flags=", " ")?)?;
        return Some((device, address, flags & WRITE != 0));
    }
    let (device, rest) = between(line, "rvmm: ", "\n")?.split_once(": DMA to ")?;
    let (address, rest) = rest.split_once(" refused ")?;
    Some((device, hex(address)?, rest.starts_with("(write")))
}

/// What `lines` say, by device.
fn count<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<String, Refused> {
    let mut found: BTreeMap<String, Refused> = BTreeMap::new();
    for (device, address, write) in lines.filter_map(parse) {
        let lines = found.get(device).map_or(0, |r| r.lines) + 1;
        let refused = Refused {
            lines,
            address,
            write,
        };
        found.insert(device.to_owned(), refused);
    }
    found
}

/// What the kernel's log says now.
///
/// # Errors
///
/// EPERM where only root may read it.
pub fn by_device() -> io::Result<BTreeMap<String, Refused>> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    log.seek(SeekFrom::Start(0))?;
    let mut records = Vec::new();
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => records.push(String::from_utf8_lossy(&record[..length]).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // Overwritten meanwhile: it goes on with the oldest one.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
    // Prefix; text, and continuation lines with values.
    let texts = records.iter().filter_map(|r| r.split_once(';'));
    Ok(count(
        texts.map(|(_, text)| text.lines().next().unwrap_or_default()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_each_driver() {
        let log = "\
DMAR: DRHD: handling fault status reg 2
DMAR: [DMA Write NO_PASID] Request device [0000:00:01.0] fault addr 0x8000 \
[fault reason 0x05] PTE Write access is not set
DMAR: [DMA Read NO_PASID] Request device [0000:00:01.0] fault addr 0x41234000 \
[fault reason 0x06] PTE Read access is not set
rvmm 0000:00:02.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0012 address=0x5000 flags=0x0020]
AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:03.0 domain=0x0012 address=0x6000 flags=0x0000]
rvmm: 0000:00:04.0: DMA to 0x7000 refused (write)
rvmm: 0000:00:04.0: assigned; 4096 KiB of guest memory pinned
DMAR: [DMA Write broken";
        let found = count(log.lines());
        let want = [
            ("0000:00:01.0", 2, 0x4123_4000, false),
            ("0000:00:02.0", 1, 0x5000, true),
            ("0000:00:03.0", 1, 0x6000, false),
            ("0000:00:04.0", 1, 0x7000, true),
        ];
        assert_eq!(found.len(), want.len());
        for (device, lines, address, write) in want {
            let refused = Refused {
                lines,
                address,
                write,
            };
            assert_eq!(found.get(device), Some(&refused), "{device}");
        }
    }
}
