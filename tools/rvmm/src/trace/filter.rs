// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which records are wanted.

use super::ring::Record;
use super::Origin;
use crate::explain::rows::{number, ROWS};

/// Name of entries among classes.
pub const ENTRIES: &str = "entry";

/// What a record has to be.
pub struct Filter {
    /// Whether entries pass, and by number which classes; `None`: all.
    classes: Option<(bool, Vec<u8>)>,
    vcpus: Vec<u32>,
    address: Option<(u64, u64)>,
}

impl Filter {
    /// # Errors
    ///
    /// The name of a class that there is not.
    pub fn new(
        classes: &[String],
        vcpus: &[u32],
        address: Option<(u64, u64)>,
    ) -> Result<Self, String> {
        let mut numbers = Vec::new();
        for name in classes.iter().filter(|name| *name != ENTRIES) {
            numbers.push(number(name).ok_or(name.clone())?);
        }
        let entries = classes.iter().any(|name| name == ENTRIES);
        Ok(Self {
            classes: (!classes.is_empty()).then_some((entries, numbers)),
            vcpus: vcpus.to_vec(),
            address,
        })
    }

    /// Whether a record passes. An entry, and an exit without an address, is nowhere.
    pub fn passes(&self, from: &Origin, record: &Record) -> bool {
        let class = match &self.classes {
            None => true,
            Some((entries, _)) if !record.is_exit() => *entries,
            Some((_, classes)) => classes.contains(&record.class),
        };
        let vcpu = self.vcpus.is_empty() || self.vcpus.contains(&from.vcpu);
        let address = self.address.is_none_or(|(first, last)| {
            let row = ROWS.get(usize::from(record.class));
            let has = record.is_exit() && row.is_some_and(|row| !row.address.is_empty());
            has && (first..=last).contains(&record.address)
        });
        class && vcpu && address
    }
}

/// An address, or two with a dash between them; hexadecimal with 0x.
///
/// # Errors
///
/// A sentence.
pub fn range(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| {
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        }
        .map_err(|_| format!("{text:?} is no number"))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first)?, number(last)?) {
        (first, last) if first <= last => Ok((first, last)),
        _ => Err("it ends before it begins".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::{ENTRY, EXIT};
    use super::*;

    const FROM: Origin = Origin {
        pid: 1,
        vcpu: 2,
        tsc_khz: 1,
    };

    #[test]
    fn ranges() {
        assert_eq!(
            range("0xfee00000-0xfee00fff"),
            Ok((0xfee0_0000, 0xfee0_0fff))
        );
        assert_eq!(range("16"), Ok((16, 16)));
        assert!(range("x").is_err() && range("2-1").is_err() && range("").is_err());
    }

    #[test]
    fn classes_vcpus_and_addresses() {
        let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let io = Record {
            kind: EXIT,
            class: number("io").unwrap(),
            address: 0x3f8,
            ..Record::default()
        };
        let entry = Record {
            kind: ENTRY,
            ..Record::default()
        };
        let passes = |filter: &Filter| (filter.passes(&FROM, &io), filter.passes(&FROM, &entry));
        let all = Filter::new(&[], &[], None).unwrap();
        assert_eq!(passes(&all), (true, true));
        let ports = Filter::new(&names(&["io", "mmio"]), &[2], Some((0x3f8, 0x3ff))).unwrap();
        assert_eq!(passes(&ports), (true, false));
        let others = Filter::new(&names(&["hlt", ENTRIES]), &[], None).unwrap();
        assert_eq!(passes(&others), (false, true));
        assert_eq!(
            passes(&Filter::new(&[], &[3], None).unwrap()),
            (false, false)
        );
        assert_eq!(
            passes(&Filter::new(&[], &[], Some((0, 1))).unwrap()),
            (false, false)
        );
        assert!(Filter::new(&names(&["ioo"]), &[], None).is_err());
    }
}
