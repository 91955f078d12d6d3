// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm explain`: recorded exits as sentences.

pub mod rows;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

use crate::trace::ring::Record;
use crate::trace::{Origin, Sink};
use rows::{decision, event, Row, ROWS};

/// What is known of all classes, without a guest.
pub fn table() -> String {
    let mut text = String::new();
    for row in ROWS {
        let _ = writeln!(
            text,
            "{}: the guest {}.\n  Intel: {} (SDM 3C).\n  AMD: {} (APM 2).\n  Read: {}.\n  Decided: {} in {}.\n  \
             Slow: {}.",
            row.class, row.did, row.intel, row.amd, row.fields, row.function, row.file, row.slow
        );
    }
    text
}

/// How many exits of one kind there were.
#[derive(Default)]
struct Kind {
    count: u64,
    /// Cycles of handling them: all, and the least and the most of one.
    cycles: u64,
    least: u32,
    most: u32,
    /// The first one.
    first: Record,
}

/// Writes a sentence for each exit, or for each kind of exits at the end.
pub struct Sentences<W> {
    out: W,
    each: bool,
    amd: bool,
    kinds: BTreeMap<(u8, u8, u8), Kind>,
}

impl<W: Write> Sentences<W> {
    pub fn new(out: W, each: bool) -> Self {
        Self {
            out,
            each,
            amd: is_amd(),
            kinds: BTreeMap::new(),
        }
    }
}

impl<W: Write> Sink for Sentences<W> {
    fn record(&mut self, from: &Origin, record: &Record, since: f64) -> io::Result<()> {
        if self.each {
            let text = sentence(record, self.amd);
            return writeln!(self.out, "{since:.3} us, vCPU {}: {text}", from.vcpu);
        }
        if record.is_exit() {
            let key = (record.class, record.path, record.decision);
            let kind = self.kinds.entry(key).or_insert(Kind {
                least: u32::MAX,
                first: *record,
                ..Kind::default()
            });
            kind.count += 1;
            kind.cycles += u64::from(record.cycles);
            kind.least = kind.least.min(record.cycles);
            kind.most = kind.most.max(record.cycles);
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let mut kinds: Vec<&Kind> = self.kinds.values().collect();
        // What cost most comes first.
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.cycles));
        for kind in kinds {
            let Kind {
                count,
                cycles,
                least,
                most,
                first,
            } = kind;
            let mean = cycles / count;
            writeln!(
                self.out,
                "{count} x {} cycles ({least} to {most}), {cycles} in all. The first one: {}\n",
                mean,
                sentence(first, self.amd)
            )?;
        }
        self.out.flush()
    }
}

/// One exit, or one entry.
pub fn sentence(record: &Record, amd: bool) -> String {
    let mut text = String::new();
    if record.is_exit() {
        match ROWS.get(usize::from(record.class)) {
            Some(row) => exit(&mut text, record, row, amd),
            None => {
                let _ = write!(
                    text,
                    "An exit of class {}, which is not known here.",
                    record.class
                );
            }
        }
    } else {
        let _ = write!(
            text,
            "The guest is entered at {:#x}, {} cycles after the last exit was done with.",
            record.rip, record.cycles
        );
    }
    entry(&mut text, record);
    text
}

fn exit(text: &mut String, record: &Record, row: &Row, amd: bool) {
    let _ = write!(
        text,
        "At {:#x} the guest {}{}.",
        record.rip,
        row.did,
        subject(record, row)
    );
    let why = if amd {
        row.amd.replace("(15.", "(APM 2 15.")
    } else {
        row.intel
            .replace("(2", "(SDM 3C 2")
            .replace("(30.", "(SDM 3C 30.")
    };
    let _ = write!(text, " It is an exit because: {why}.");
    let _ = write!(text, " Read: {}.", row.fields);
    let _ = write!(
        text,
        " {} in {} decided: {}.",
        row.function,
        row.file,
        decided(record)
    );
    let _ = write!(
        text,
        " That took {} cycles; the guest had run for {}.",
        record.cycles, record.guest
    );
    if record.path != 1 || record.decision > 2 {
        let _ = write!(text, " What makes these slow: {}.", row.slow);
    }
}

/// With what the exit had to do.
fn subject(record: &Record, row: &Row) -> String {
    let (address, value, detail) = (record.address, record.value, record.detail);
    match row.class {
        "cpuid" => format!(", leaf {address:#x}, subleaf {value:#x}"),
        "wrmsr" => format!(" of {value:#x} to MSR {address:#x}"),
        "rdmsr" => format!(" of MSR {address:#x}"),
        "io" | "io_string" => {
            let width = (detail & 0xff) * 8;
            match detail & 0x100 {
                0 => format!(": {width} bits to port {address:#x}"),
                _ => format!(": {width} bits from port {address:#x}"),
            }
        }
        "nested_fault" | "mmio" => {
            let how = match detail & 7 {
                how if how & 4 != 0 => "a walk of its page tables",
                how if how & 2 != 0 => "a fetch",
                how if how & 1 != 0 => "a write",
                _ => "a read",
            };
            format!(", by {how} at guest-physical {address:#x}")
        }
        "cr_access" => {
            let how = match (detail >> 8 & 3, detail & 1) {
                (1, _) => "CLTS",
                (2, _) => "LMSW",
                (3, _) => "an instruction that was still to be decoded",
                (_, 0) => "a read",
                _ => "a write",
            };
            format!(", CR{address}, by {how}")
        }
        "exception" => format!(", vector {address}"),
        "hypercall" => format!(", RAX {address:#x}"),
        "other" => match detail {
            1 => ": an instruction that does not exist for it",
            2 => ": an access to a descriptor-table register",
            3 => ": RSM",
            4 => ": its TSC deadline came, by the preemption timer",
            _ => "",
        }
        .into(),
        _ if row.address.is_empty() => String::new(),
        _ => format!(", {} {address:#x}", row.address),
    }
}

fn decided(record: &Record) -> String {
    let how = match record.path {
        1 => "in the stay, by the entry before as it was",
        2 => "in the stay, with interrupts off and the guest's FPU loaded",
        _ => "outside the stay, where it may sleep: FPU and host state had been exchanged before",
    };
    match record.decision {
        1 => format!("the guest goes on ({how})"),
        2 => format!("the guest goes on, and nothing new is to be delivered to it ({how})"),
        3 => format!("the stay ends for the host's work or a sleep, KVM_RUN goes on ({how})"),
        _ => format!("{} ({how})", decision(record)),
    }
}

/// What the entry did that the record has.
fn entry(text: &mut String, record: &Record) {
    if record.inject != 0 {
        let _ = write!(text, " The entry delivers {}", event(record.inject));
        if record.inject & 1 << 11 != 0 {
            let _ = write!(text, " with error code {:#x}", record.error_code);
        }
        text.push('.');
    }
    for (bit, what) in [
        (1, " It flushes the guest's translations."),
        (
            2,
            " It asks for an exit as soon as an interrupt can be delivered.",
        ),
        (
            4,
            " It asks for an exit as soon as an NMI can be delivered.",
        ),
        (
            8,
            " The exit came while an event was being delivered, which is delivered again.",
        ),
    ] {
        if record.flags & bit != 0 {
            text.push_str(what);
        }
    }
}

/// Whether the processor is AMD's.
fn is_amd() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| {
        let vendor = info.lines().find(|line| line.starts_with("vendor_id"));
        vendor.is_some_and(|line| line.contains("AMD") || line.contains("Hygon"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::ring::{ENTRY, EXIT};
    use rows::number;
    use std::fs;
    use std::path::PathBuf;

    fn repository() -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "..", ".."].iter().collect()
    }

    /// The classes of the module on x86, in order.
    fn classes() -> Vec<String> {
        let text = fs::read_to_string(repository().join("src/abi/stats.rs")).unwrap();
        let list = text
            .split("\nexit_classes! {\n")
            .find(|list| list.contains("= \"cpuid\""))
            .unwrap();
        let (list, _) = list.split_once("\n}\n").unwrap();
        list.lines()
            .filter_map(|line| Some(line.split_once(" = \"")?.1.split_once('"')?.0.to_owned()))
            .collect()
    }

    #[test]
    fn every_class_is_explained() {
        let explained: Vec<&str> = ROWS.iter().map(|row| row.class).collect();
        assert_eq!(classes(), explained);
    }

    #[test]
    fn files_and_functions_exist() {
        for row in ROWS {
            let text = fs::read_to_string(repository().join(row.file))
                .unwrap_or_else(|error| panic!("{}: {}: {error}", row.class, row.file));
            assert!(
                text.contains(&format!("fn {}(", row.function)),
                "{}: {} has no {}",
                row.class,
                row.file,
                row.function
            );
        }
        // What the table names in passing.
        let words = ROWS.iter().flat_map(|row| row.slow.split([' ', ',']));
        for file in words.filter(|word| word.starts_with("src/")) {
            assert!(repository().join(file).exists(), "{file}");
        }
    }

    #[test]
    fn no_field_is_empty() {
        for row in ROWS {
            for field in [row.did, row.intel, row.amd, row.fields, row.slow] {
                assert!(
                    !field.is_empty() && !field.contains("  "),
                    "{}: {field:?}",
                    row.class
                );
            }
        }
    }

    #[test]
    fn sentences() {
        let cpuid = Record {
            kind: EXIT,
            class: number("cpuid").unwrap(),
            rip: 0x1000,
            address: 7,
            decision: 2,
            path: 1,
            cycles: 500,
            guest: 100,
            ..Record::default()
        };
        let text = sentence(&cpuid, false);
        assert!(text.contains("executed CPUID, leaf 0x7"), "{text}");
        assert!(
            text.contains("(SDM 3C 26.1.2)") && text.contains("src/x86/run/cpuid.rs"),
            "{text}"
        );
        assert!(
            text.contains("took 500 cycles") && !text.contains("slow"),
            "{text}"
        );
        let entry = Record {
            kind: ENTRY,
            inject: 0x8000_0b0e,
            error_code: 2,
            flags: 3,
            ..Record::default()
        };
        let text = sentence(&entry, true);
        assert!(text.contains("exception 14 with error code 0x2"), "{text}");
        for class in 0..=ROWS.len() as u8 {
            for decision in 0..7 {
                let record = Record {
                    class,
                    decision,
                    ..cpuid
                };
                assert!(sentence(&record, true).ends_with('.'));
            }
        }
    }

    #[test]
    fn kinds_are_summed_up() {
        let mut out = Vec::new();
        let mut sentences = Sentences::new(&mut out, false);
        let from = Origin {
            pid: 1,
            vcpu: 0,
            tsc_khz: 1,
        };
        for cycles in [10, 30] {
            let record = Record {
                kind: EXIT,
                cycles,
                ..Record::default()
            };
            sentences.record(&from, &record, 0.0).unwrap();
        }
        sentences.end().unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("2 x 20 cycles (10 to 30), 40 in all."),
            "{text}"
        );
    }
}
