// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Results of a benchmark as JSON, and the table that sets two of them side by side.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::modes;

/// Rows in the order in which tables show them, with what they mean.
const ROWS: &[(&str, &str)] = &[
    ("cpuid", "CPUID"),
    ("hypercall", "hypercall that does nothing"),
    ("rdmsr", "RDMSR (MTRR default type)"),
    ("port_in", "port in, to user space"),
    ("port_out", "port out, to user space"),
    ("mmio_read", "MMIO read, to user space"),
    ("mmio_write", "MMIO write, to user space"),
    ("hlt_wake", "HLT: timer deadline to handler"),
    ("deadline", "TSC deadline set anew"),
    ("tpr", "CR8 written and read"),
    ("self_ipi", "x2APIC self-IPI to handler"),
    ("x2apic_eoi", "x2APIC EOI"),
    ("ipi_running", "IPI to a running vCPU and back"),
    ("ipi_halted", "IPI to a halted vCPU and back"),
    ("irq_line", "KVM_IRQ_LINE, IOAPIC, handler"),
    ("irqfd", "irqfd, MSI, handler"),
    ("ioeventfd_port", "ioeventfd, port"),
    ("ioeventfd_mmio", "ioeventfd, MMIO"),
    ("fault_4k", "nested fault, resident 4 KiB page"),
    ("fault_2m", "nested fault, resident 2 MiB page"),
    ("fault_1g", "nested fault, resident 1 GiB page"),
    ("faults_1", "nested fault, 1 vCPU on 4 CPUs"),
    ("faults_4", "nested fault, 4 vCPUs on 4 CPUs"),
    ("faults_16", "nested fault, 16 vCPUs on 4 CPUs"),
    ("faults_64", "nested fault, 64 vCPUs on 4 CPUs"),
    ("waits_1", "WAITS of 1000 host changes, 1 vCPU"),
    ("waits_4", "WAITS of 1000 host changes, 4 vCPUs"),
    ("waits_16", "WAITS of 1000 host changes, 16 vCPUs"),
    ("waits_64", "WAITS of 1000 host changes, 64 vCPUs"),
    ("log_write_4k", "write to a logged 4 KiB page"),
    ("log_start_2m", "logging started, per 2 MiB page"),
    ("log_write_2m", "first write to a 2 MiB page then"),
    ("log_get", "log read, per page, 8192 dirty"),
    ("log_get_half", "log read, per page, every 2nd dirty"),
    ("log_clear", "log cleared, per page, 8192 dirty"),
    ("dontneed_4k", "MADV_DONTNEED, per mapped 4 KiB page"),
    ("slot_add", "slot added to 8000"),
    ("slot_delete", "slot deleted, 8000 stay"),
    ("notify_slots", "MADV_DONTNEED beside 8000 slots"),
    ("slots_all", "32762 slots added to one"),
    ("vm_bytes", "BYTES of an idle VM with a vCPU"),
    ("vcpu_bytes", "BYTES of each further vCPU"),
    ("create", "create VM + vCPU"),
    ("create_full", "create VM + memory + irqchip + vCPU"),
    ("close_full", "close them"),
    ("boot", "guest boot to userland"),
    ("fork", "running machine forked"),
    ("fork_first", "fork to first instruction"),
    ("fork_100", "100 machines of a fork, all run"),
    ("fork_bytes", "BYTES of each of the 100"),
    ("save", "running machine saved, 8 MiB"),
    ("restore_first", "file to first instruction"),
    ("dma_map_4k", "DMA map, 4 KiB pages, per GiB"),
    ("dma_unmap_4k", "DMA unmap, 4 KiB pages, per GiB"),
    ("dma_map_2m", "DMA map, 2 MiB pages, per GiB"),
    ("dma_unmap_2m", "DMA unmap, 2 MiB pages, per GiB"),
    ("device_read", "device register read, no exit"),
    ("device_irq", "device interrupt to guest's handler"),
    ("nvme_read", "NVMe 4 KiB random read"),
];

/// All rows: those of [`ROWS`], then those of modes.
pub fn rows() -> impl Iterator<Item = (String, String)> {
    let usual = ROWS
        .iter()
        .map(|(row, meaning)| (row.to_string(), meaning.to_string()));
    usual.chain(modes::names())
}

/// Ticks of one row.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Ticks {
    /// Mean over the iterations.
    pub mean: u64,
    /// The quickest iteration.
    pub min: u64,
    /// All iterations after those to warm up, in order, if they are wanted (`--samples`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<u64>,
}

impl Ticks {
    /// Sums up `samples`, each without the `overhead` of measuring; `None` if there are none.
    pub fn of(samples: &[u64], overhead: u64) -> Option<Self> {
        let min = *samples.iter().min()?;
        let sum: u128 = samples.iter().map(|sample| u128::from(*sample)).sum();
        let mean = (sum / samples.len() as u128) as u64;
        Some(Self {
            mean: mean.saturating_sub(overhead),
            min: min.saturating_sub(overhead),
            samples: samples
                .iter()
                .map(|sample| sample.saturating_sub(overhead))
                .collect(),
        })
    }
}

/// One run of the benchmark.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Report {
    /// Device node measured.
    pub device: String,
    /// Ticks per row.
    pub rows: BTreeMap<String, Ticks>,
    /// Rows that could not be measured, and why.
    #[serde(default)]
    pub skipped: BTreeMap<String, String>,
    /// What the figures were taken on.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// The table of one run.
pub fn table(report: &Report) -> String {
    let mut text = format!(
        "{:<38} {:>14} {:>14}\n",
        report.device, "mean ticks", "minimum"
    );
    for (row, meaning) in rows() {
        if let Some(ticks) = report.rows.get(&row) {
            let _ = writeln!(text, "{meaning:<38} {:>14} {:>14}", ticks.mean, ticks.min);
        } else if let Some(why) = report.skipped.get(&row) {
            let _ = writeln!(text, "{meaning:<38} {why}");
        }
    }
    text
}

/// The table of two runs with the ratio of their means, and the worst ratio: infinite if `other` lacks
/// a row that `base` has.
pub fn compare(base: &Report, other: &Report) -> (String, f64) {
    let mut worst = 0f64;
    let mut text = format!(
        "{:<38} {:>14} {:>14} {:>7}\n",
        "ticks", base.device, other.device, "ratio"
    );
    for (row, meaning) in rows() {
        let (a, b) = (base.rows.get(&row), other.rows.get(&row));
        if a.is_none() && b.is_none() {
            continue;
        }
        let number = |ticks: Option<&Ticks>| ticks.map_or("-".into(), |t| t.mean.to_string());
        let ratio = match (a, b) {
            (Some(a), Some(b)) if a.mean != 0 => {
                let ratio = b.mean as f64 / a.mean as f64;
                worst = worst.max(ratio);
                format!("{ratio:.2}")
            }
            (Some(_), None) => {
                worst = f64::INFINITY;
                "-".into()
            }
            _ => "-".into(),
        };
        let _ = writeln!(
            text,
            "{meaning:<38} {:>14} {:>14} {ratio:>7}",
            number(a),
            number(b)
        );
    }
    (text, worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(device: &str, cpuid: u64) -> Report {
        let ticks = Ticks {
            mean: cpuid,
            min: cpuid - 1,
            samples: Vec::new(),
        };
        Report {
            device: device.into(),
            rows: [("cpuid".into(), ticks)].into(),
            ..Report::default()
        }
    }

    #[test]
    fn mean_and_minimum_without_overhead() {
        assert_eq!(
            Ticks::of(&[30, 10, 20], 5),
            Some(Ticks {
                mean: 15,
                min: 5,
                samples: vec![25, 5, 15]
            })
        );
        let few = Ticks::of(&[3], 5).unwrap();
        assert_eq!((few.mean, few.min), (0, 0));
        assert_eq!(Ticks::of(&[], 5), None);
        assert_eq!(Ticks::of(&[u64::MAX, u64::MAX], 0).unwrap().mean, u64::MAX);
    }

    #[test]
    fn ratio_is_other_over_base() {
        let (text, worst) = compare(&report("/dev/kvm", 2000), &report("/dev/rvmm", 700));
        assert!(text.contains("0.35"), "{text}");
        assert!((worst - 0.35).abs() < 1e-9);
        assert!(!text.contains("RDMSR"));
    }

    #[test]
    fn a_row_that_the_other_lacks_is_the_worst() {
        let base = report("/dev/kvm", 2000);
        let other = Report::default();
        assert_eq!(compare(&base, &other).1, f64::INFINITY);
        assert_eq!(compare(&other, &base).1, 0.0);
    }

    #[test]
    fn json_round_trip() {
        let report = report("/dev/kvm", 2319);
        let text = serde_json::to_string(&report).unwrap();
        assert!(
            text.contains(r#""cpuid":{"mean":2319,"min":2318}"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
