// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Reader of the binary statistics that `KVM_GET_STATS_FD` gives (api.rst 4.133): a header,
//! descriptors that name and shape each value, and the values.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Shape and meaning of a value (`KVM_STATS_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Cumulative,
    /// Goes up and down.
    Instant,
    /// Highest value seen.
    Peak,
    /// Counts per range of `bucket` units; the last bucket takes the rest.
    Linear {
        /// Width of a range.
        bucket: u32,
    },
    /// Counts per power of two: bucket 0 is value 0, bucket n is 2^(n-1) to 2^n - 1; the last
    /// bucket takes the rest.
    Log,
}

/// What a value counts (`KVM_STATS_UNIT_*`), with the exponent that scales it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Events.
    None,
    /// Bytes.
    Bytes,
    /// Seconds, scaled by a power of ten.
    Seconds,
    /// Clock cycles.
    Cycles,
    /// Zero or one.
    Boolean,
}

/// One statistic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The statistic's name.
    pub name: String,
    /// Shape.
    pub kind: Kind,
    /// Unit.
    pub unit: Unit,
    /// Base of the scale, 10 or 2.
    pub base: u32,
    /// Exponent of the scale: the value is multiplied by `base` to this power.
    pub exponent: i16,
    /// One value, or one per bucket.
    pub values: Vec<u64>,
}

/// All statistics of one VM or vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The hypervisor's name for it, such as `kvm-1234/vcpu-0`.
    pub id: String,
    /// The statistics, in the hypervisor's order.
    pub stats: Vec<Stat>,
}

const HEADER: usize = 24;
/// Bytes of a descriptor before its name.
const DESCRIPTOR: usize = 16;
/// More than any hypervisor has; guards against nonsense in a file that is none.
const MOST_DESCRIPTORS: u32 = 1 << 16;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

fn text(bytes: &[u8], at: usize, most: usize) -> Option<String> {
    let field = bytes.get(at..at.checked_add(most)?)?;
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    Some(String::from_utf8_lossy(&field[..end]).into_owned())
}

fn descriptor(bytes: &[u8], at: usize, name_size: usize, data: usize) -> Option<Stat> {
    let flags = u32_at(bytes, at)?;
    let exponent = u16_at(bytes, at.checked_add(4)?)? as i16;
    let size = u16_at(bytes, at.checked_add(6)?)?;
    let offset = u32_at(bytes, at.checked_add(8)?)? as usize;
    let bucket = u32_at(bytes, at.checked_add(12)?)?;
    let kind = match flags & 0xf {
        0 => Kind::Cumulative,
        1 => Kind::Instant,
        2 => Kind::Peak,
        3 => Kind::Linear { bucket },
        4 => Kind::Log,
        _ => return None,
    };
    let unit = match (flags >> 4) & 0xf {
        1 => Unit::Bytes,
        2 => Unit::Seconds,
        3 => Unit::Cycles,
        4 => Unit::Boolean,
        _ => Unit::None,
    };
    let first = data.checked_add(offset)?;
    let values = (0..usize::from(size))
        .map(|index| u64_at(bytes, first.checked_add(index * 8)?))
        .collect::<Option<_>>()?;
    Some(Stat {
        name: text(bytes, at.checked_add(DESCRIPTOR)?, name_size)?,
        kind,
        unit,
        base: if (flags >> 8) & 0xf == 1 { 2 } else { 10 },
        exponent,
        values,
    })
}

/// Takes the file's contents apart.
///
/// # Errors
///
/// A sentence naming what is malformed.
pub fn parse(bytes: &[u8]) -> Result<Stats, String> {
    let field = |at| u32_at(bytes, at).ok_or("statistics end inside their header");
    let name_size = field(4)? as usize;
    let count = field(8)?;
    let id_at = field(12)? as usize;
    let descriptors = field(16)? as usize;
    let data = field(20)? as usize;
    if id_at < HEADER || name_size == 0 || count > MOST_DESCRIPTORS {
        return Err("this is not a statistics file".into());
    }
    let id = text(bytes, id_at, name_size).ok_or("statistics end inside their name")?;
    let step = DESCRIPTOR + name_size;
    let stats = (0..count as usize)
        .map(|index| {
            descriptors
                .checked_add(index * step)
                .and_then(|at| descriptor(bytes, at, name_size, data))
                .ok_or_else(|| format!("descriptor {index} of {count} is malformed"))
        })
        .collect::<Result<_, _>>()?;
    Ok(Stats { id, stats })
}

/// Reads and parses a statistics descriptor. The values are those of this moment.
///
/// # Errors
///
/// The error of reading, or `InvalidData`.
pub fn read(file: &File) -> io::Result<Stats> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match file.read_at(&mut chunk, bytes.len() as u64) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    parse(&bytes).map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))
}

impl Stat {
    /// All counts of a histogram, or the value.
    pub fn total(&self) -> u64 {
        self.values
            .iter()
            .fold(0, |sum, value| sum.saturating_add(*value))
    }

    /// Whether this is a histogram.
    pub fn is_histogram(&self) -> bool {
        matches!(self.kind, Kind::Linear { .. } | Kind::Log)
    }

    /// The end (exclusive) of the bucket in which the histogram reaches `percent` of its counts;
    /// `None` for an empty histogram, a plain value, or the last, open bucket.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let total = self.total();
        if total == 0 || !self.is_histogram() {
            return None;
        }
        let wanted = (u128::from(total) * u128::from(percent)).div_ceil(100);
        let mut seen = 0u128;
        let bucket = self.values.iter().position(|value| {
            seen += u128::from(*value);
            seen >= wanted
        })?;
        if bucket + 1 == self.values.len() {
            return None;
        }
        match self.kind {
            Kind::Linear { bucket: width } => Some((bucket as u64 + 1) * u64::from(width)),
            _ => 1u64.checked_shl(bucket as u32),
        }
    }

    fn unit_text(&self) -> String {
        let unit = match self.unit {
            Unit::None => return String::new(),
            Unit::Boolean => return "yes/no".into(),
            Unit::Bytes => "B",
            Unit::Seconds => "s",
            Unit::Cycles => "cycles",
        };
        match (self.unit, self.base, self.exponent) {
            (_, _, 0) => unit.into(),
            (Unit::Seconds, 10, -9) => "ns".into(),
            (Unit::Seconds, 10, -6) => "us".into(),
            (Unit::Seconds, 10, -3) => "ms".into(),
            (_, base, exponent) => format!("x {base}^{exponent} {unit}"),
        }
    }
}

/// A table for people: values that are not zero, then histograms that are not empty.
pub fn table(stats: &Stats) -> String {
    let mut text = format!("{}\n", stats.id);
    let live = |histogram: bool| {
        stats
            .stats
            .iter()
            .filter(move |s| s.is_histogram() == histogram && s.total() != 0)
    };
    let width = live(true)
        .chain(live(false))
        .map(|s| s.name.len())
        .max()
        .unwrap_or(0);
    for stat in live(false) {
        let unit = stat.unit_text();
        let _ = writeln!(text, "  {:width$}  {:>14} {unit}", stat.name, stat.total());
    }
    if live(true).next().is_some() {
        let _ = writeln!(
            text,
            "  {:width$}  {:>14} {:>10} {:>10}",
            "", "count", "50% <", "99% <"
        );
    }
    for stat in live(true) {
        let bound = |percent| {
            stat.percentile(percent)
                .map_or("open".into(), |v| v.to_string())
        };
        let _ = writeln!(
            text,
            "  {:width$}  {:>14} {:>10} {:>10} {}",
            stat.name,
            stat.total(),
            bound(50),
            bound(99),
            stat.unit_text()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: usize = 16;

    /// A file with the given (flags, exponent, bucket size, name, values).
    fn file(stats: &[(u32, i16, u32, &str, &[u64])]) -> Vec<u8> {
        let name = |text: &str| {
            let mut field = text.as_bytes().to_vec();
            field.resize(NAME, 0);
            field
        };
        let descriptors = HEADER + NAME;
        let data = descriptors + stats.len() * (DESCRIPTOR + NAME);
        let mut bytes = Vec::new();
        for word in [0, NAME, stats.len(), HEADER, descriptors, data] {
            bytes.extend_from_slice(&(word as u32).to_le_bytes());
        }
        bytes.extend(name("kvm-7/vcpu-0"));
        let mut offset = 0u32;
        for (flags, exponent, bucket, text, values) in stats {
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&exponent.to_le_bytes());
            bytes.extend_from_slice(&(values.len() as u16).to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&bucket.to_le_bytes());
            bytes.extend(name(text));
            offset += values.len() as u32 * 8;
        }
        for value in stats.iter().flat_map(|stat| stat.4) {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn counters_and_units() {
        let bytes = file(&[
            (0, 0, 0, "exits", &[42]),
            (1 | (2 << 4), -9, 0, "halt", &[7]),
            (2 | (1 << 4) | (1 << 8), 12, 0, "pages", &[3]),
        ]);
        let stats = parse(&bytes).unwrap();
        assert_eq!(stats.id, "kvm-7/vcpu-0");
        let shape: Vec<_> = stats
            .stats
            .iter()
            .map(|s| (s.name.as_str(), s.kind, s.unit, s.total()))
            .collect();
        assert_eq!(
            shape,
            [
                ("exits", Kind::Cumulative, Unit::None, 42),
                ("halt", Kind::Instant, Unit::Seconds, 7),
                ("pages", Kind::Peak, Unit::Bytes, 3),
            ]
        );
        assert_eq!(stats.stats[1].unit_text(), "ns");
        assert_eq!(stats.stats[2].unit_text(), "x 2^12 B");
    }

    #[test]
    fn log_histogram_percentiles() {
        // 10 zeros, 80 values in 4..8, 9 in 8..16, 1 in the open bucket.
        let bytes = file(&[(4 | (3 << 4), 0, 0, "cpuid", &[10, 0, 0, 80, 9, 1])]);
        let stat = &parse(&bytes).unwrap().stats[0];
        assert_eq!(
            (stat.kind, stat.unit, stat.total()),
            (Kind::Log, Unit::Cycles, 100)
        );
        assert_eq!(stat.percentile(10), Some(1));
        assert_eq!(stat.percentile(11), Some(8));
        assert_eq!(stat.percentile(50), Some(8));
        assert_eq!(stat.percentile(99), Some(16));
        assert_eq!(stat.percentile(100), None);
    }

    #[test]
    fn linear_histogram() {
        let bytes = file(&[(3, 0, 100, "wait", &[1, 3, 0])]);
        let stat = &parse(&bytes).unwrap().stats[0];
        assert_eq!(stat.kind, Kind::Linear { bucket: 100 });
        assert_eq!(stat.percentile(25), Some(100));
        assert_eq!(stat.percentile(50), Some(200));
    }

    #[test]
    fn every_cut_is_an_error_not_a_panic() {
        let bytes = file(&[(0, 0, 0, "exits", &[42]), (4, 0, 0, "cpuid", &[1, 2, 3])]);
        assert!(parse(&bytes).is_ok());
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length}");
        }
        assert!(parse(&[0xff; 64]).is_err());
        assert!(parse(&[0; 64]).is_err());
    }

    #[test]
    fn table_shows_what_is_not_zero() {
        let bytes = file(&[
            (0, 0, 0, "exits", &[42]),
            (0, 0, 0, "never", &[0]),
            (4, 0, 0, "c", &[0, 5, 0]),
        ]);
        let text = table(&parse(&bytes).unwrap());
        assert!(text.contains("exits") && text.contains("42") && !text.contains("never"));
        assert!(text.contains("99% <"));
    }
}
