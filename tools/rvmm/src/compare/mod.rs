// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm compare`: two runs of `rvmm bench --json --samples` side by side, by their samples.

mod html;
mod stats;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::bench::report::{self, Report};
use crate::status::{say, Status};
use stats::{Spread, Verdict};

/// Options of `rvmm compare`.
#[derive(clap::Args)]
pub struct Args {
    /// What is compared with: a file of `rvmm bench --json --samples`.
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// What is compared: another one.
    #[arg(value_name = "OTHER")]
    other: PathBuf,
    /// Also write everything as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write the rows as comma-separated values.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Also write a page that needs nothing else, with the distributions.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Only these rows.
    #[arg(long, value_name = "ROW,...", value_delimiter = ',')]
    rows: Vec<String>,
}

/// One row of both runs.
#[derive(Serialize)]
struct Row {
    row: String,
    meaning: String,
    base: Spread,
    other: Spread,
    #[serde(flatten)]
    verdict: Verdict,
    #[serde(skip)]
    samples: [Vec<u64>; 2],
}

/// One of the runs.
#[derive(Serialize)]
struct Run {
    device: String,
    environment: BTreeMap<String, String>,
}

/// Both runs.
#[derive(Serialize)]
struct Comparison {
    base: Run,
    other: Run,
    rows: Vec<Row>,
    /// Rows that one of them has not, or not by samples.
    left_out: Vec<String>,
}

/// Runs the command.
pub fn main(args: &Args) -> Status {
    match run(args) {
        Ok(()) => Status::Done,
        Err(error) => {
            say!("rvmm: {error:#}");
            Status::Other
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let (base, other) = (load(&args.base)?, load(&args.other)?);
    let all = Comparison::of(&base, &other, &args.rows);
    anyhow::ensure!(
        !all.rows.is_empty(),
        "the files have no row in common with samples: `rvmm bench --json --samples`"
    );
    let write = |path: &Option<PathBuf>, text: String| match path {
        Some(path) => {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        }
        None => Ok(()),
    };
    write(&args.json, serde_json::to_string(&all)? + "\n")?;
    write(&args.csv, all.csv())?;
    write(&args.html, html::page(&all))?;
    print!("{}", all.text());
    Ok(())
}

fn load(path: &Path) -> anyhow::Result<Report> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    crate::bench::parse(&text)
        .with_context(|| format!("{} is not a report of `rvmm bench --json`", path.display()))
}

impl Comparison {
    fn of(base: &Report, other: &Report, wanted: &[String]) -> Self {
        let mut rows = Vec::new();
        let mut left_out = Vec::new();
        let names = report::rows().filter(|(row, _)| wanted.is_empty() || wanted.contains(row));
        for (row, meaning) in names {
            let (a, b) = (base.rows.get(&row), other.rows.get(&row));
            let samples = [a, b].map(|ticks| ticks.map_or(Vec::new(), |t| t.samples.clone()));
            let [under, over] = &samples;
            match (Spread::of(under), Spread::of(over)) {
                (Some(from), Some(to)) => rows.push(Row {
                    row,
                    meaning,
                    base: from,
                    other: to,
                    verdict: stats::compare(under, over),
                    samples,
                }),
                _ if a.is_some() || b.is_some() => left_out.push(row),
                _ => {}
            }
        }
        let run = |report: &Report| Run {
            device: report.device.clone(),
            environment: report.environment.clone(),
        };
        Self {
            base: run(base),
            other: run(other),
            rows,
            left_out,
        }
    }

    /// A table for people.
    fn text(&self) -> String {
        let mut text = format!(
            "{:<38} {:>26}   {:>26}   ratio of medians\n\
             {:<38} {:>8} {:>8} {:>8}   {:>8} {:>8} {:>8}   (95 % interval)\n",
            "ticks",
            self.base.device,
            self.other.device,
            "",
            "p50",
            "p90",
            "p99",
            "p50",
            "p90",
            "p99"
        );
        for row in &self.rows {
            let (a, b) = (&row.base, &row.other);
            let _ = writeln!(
                text,
                "{:<38} {:>8} {:>8} {:>8}   {:>8} {:>8} {:>8}   {}",
                row.meaning,
                a.p50,
                a.p90,
                a.p99,
                b.p50,
                b.p90,
                b.p99,
                verdict(&row.verdict)
            );
        }
        if !self.left_out.is_empty() {
            let _ = writeln!(
                text,
                "left out, without samples on both sides: {}",
                self.left_out.join(", ")
            );
        }
        for line in self.differences() {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// In what the environments differ.
    fn differences(&self) -> Vec<String> {
        let (a, b) = (&self.base.environment, &self.other.environment);
        let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let of = |run: &BTreeMap<String, String>, name| run.get(name).map_or("?", |v| v).to_owned();
        names
            .into_iter()
            .filter(|name| a.get(*name) != b.get(*name))
            .map(|name| format!("other {name}: {} / {}", of(a, name), of(b, name)))
            .collect()
    }

    fn csv(&self) -> String {
        let mut text = String::from(
            "row,base_samples,base_min,base_p50,base_p90,base_p99,base_max,other_samples,other_min,other_p50,other_p90,\
             other_p99,other_max,ratio,low,high\n",
        );
        for row in &self.rows {
            let _ = write!(text, "{}", row.row);
            for s in [&row.base, &row.other] {
                let _ = write!(
                    text,
                    ",{},{},{},{},{},{}",
                    s.samples, s.min, s.p50, s.p90, s.p99, s.max
                );
            }
            let _ = match row.verdict {
                Verdict::Differs { ratio, low, high } => {
                    writeln!(text, ",{ratio:.4},{low:.4},{high:.4}")
                }
                Verdict::NoDifference { low, high } => writeln!(text, ",,{low:.4},{high:.4}"),
                Verdict::Unknown => writeln!(text, ",,,"),
            };
        }
        text
    }
}

/// A verdict in words.
fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Differs { ratio, low, high } => format!("{ratio:.3} ({low:.3} to {high:.3})"),
        Verdict::NoDifference { low, high } => format!("no difference ({low:.3} to {high:.3})"),
        Verdict::Unknown => "too few samples".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Ticks;

    fn report(device: &str, cpuid: &[u64], boot: &[u64]) -> Report {
        let ticks = |samples: &[u64]| Ticks::of(samples, 0).unwrap();
        Report {
            device: device.into(),
            rows: [("cpuid".into(), ticks(cpuid)), ("boot".into(), ticks(boot))].into(),
            environment: [("kernel".into(), device.into())].into(),
            ..Report::default()
        }
    }

    fn comparison() -> Comparison {
        let base = report("/dev/kvm", &[1000; 50], &[7]);
        let mut other = report("/dev/<rvmm>", &[250; 50], &[7]);
        other.rows.get_mut("boot").unwrap().samples.clear();
        other
            .rows
            .insert("rdmsr".into(), Ticks::of(&[1], 0).unwrap());
        Comparison::of(&base, &other, &[])
    }

    #[test]
    fn rows_of_both_runs() {
        let all = comparison();
        let names: Vec<&str> = all.rows.iter().map(|row| row.row.as_str()).collect();
        assert_eq!(names, ["cpuid"]);
        assert_eq!(all.left_out, ["rdmsr", "boot"]);
        let text = all.text();
        assert!(text.contains("0.250 (0.250 to 0.250)"), "{text}");
        assert!(
            text.contains("other kernel: /dev/kvm / /dev/<rvmm>"),
            "{text}"
        );
        assert!(all
            .csv()
            .contains("\ncpuid,50,1000,1000,1000,1000,1000,50,250,"));
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(json["rows"][0]["verdict"], "differs");
        assert_eq!(json["rows"][0]["other"]["p50"], 250);
    }

    #[test]
    fn no_ratio_where_chance_would_do() {
        let base = report("/dev/kvm", &[1000; 50], &[7]);
        let text = Comparison::of(&base, &base, &["cpuid".into()]).text();
        assert!(
            text.contains("no difference (1.000 to 1.000)") && !text.contains("boot"),
            "{text}"
        );
    }

    #[test]
    fn the_page_stands_alone() {
        let page = html::page(&comparison());
        assert!(page.contains("<svg") && page.contains("/dev/&lt;rvmm&gt;"));
        for outside in [
            "http:", "https:", "src=", "href=", "url(", "@import", "<script",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }
}
