// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Records as lines, as JSON, as values between commas, as a trace of Chrome's.

use std::collections::HashSet;
use std::io::{self, Write};

use serde_json::json;

use super::filter::ENTRIES;
use super::ring::Record;
use super::{Origin, Sink};
use crate::explain::rows::{decision, event, path, ROWS};

/// What a record is called: its class, or an entry.
pub fn name(record: &Record) -> &'static str {
    if !record.is_exit() {
        return ENTRIES;
    }
    ROWS.get(usize::from(record.class))
        .map_or("unknown", |row| row.class)
}

/// A line for each record, for people.
pub struct Text<W>(pub W);

impl<W: Write> Sink for Text<W> {
    fn record(&mut self, from: &Origin, record: &Record, since: f64) -> io::Result<()> {
        let out = &mut self.0;
        let (vcpu, rip) = (from.vcpu, record.rip);
        write!(
            out,
            "{since:>14.3} us  vcpu {vcpu:<3} {:<18} rip {rip:#018x}",
            name(record)
        )?;
        if record.is_exit() {
            let row = ROWS.get(usize::from(record.class));
            if let Some(row) = row.filter(|row| !row.address.is_empty()) {
                write!(out, "  {} {:#x}", row.address, record.address)?;
            }
            write!(out, "  {} ({})", decision(record), path(record.path))?;
            write!(
                out,
                "  {} cycles after {} in the guest",
                record.cycles, record.guest
            )?;
        } else {
            write!(
                out,
                "  {} cycles after the last exit was done with",
                record.cycles
            )?;
        }
        if record.inject != 0 {
            write!(out, "  delivers {}", event(record.inject))?;
        }
        writeln!(out)
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// An object for each record, one on each line.
pub struct Json<W>(pub W);

impl<W: Write> Sink for Json<W> {
    fn record(&mut self, from: &Origin, record: &Record, since: f64) -> io::Result<()> {
        let object = json!({
            "us": since,
            "pid": from.pid,
            "vcpu": from.vcpu,
            "class": name(record),
            "rip": record.rip,
            "address": record.address,
            "value": record.value,
            "detail": record.detail,
            "decision": record.decision,
            "path": record.path,
            "reason": record.reason,
            "cycles": record.cycles,
            "guest_cycles": record.guest,
            "cpu": record.cpu,
            "flags": record.flags,
            "inject": record.inject,
            "error_code": record.error_code,
            "tsc": record.tsc,
        });
        writeln!(self.0, "{object}")
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Values between commas, with a line of names first.
pub struct Csv<W> {
    out: W,
    begun: bool,
}

impl<W: Write> Csv<W> {
    pub fn new(out: W) -> Self {
        Self { out, begun: false }
    }
}

impl<W: Write> Sink for Csv<W> {
    fn record(&mut self, from: &Origin, record: &Record, since: f64) -> io::Result<()> {
        let out = &mut self.out;
        if !self.begun {
            self.begun = true;
            writeln!(
                out,
                "us,pid,vcpu,class,rip,address,value,detail,decision,path,reason,cycles,guest_cycles,cpu,flags,\
                 inject,error_code,tsc"
            )?;
        }
        let r = record;
        write!(out, "{since:.3},{},{},{}", from.pid, from.vcpu, name(r))?;
        write!(
            out,
            ",{:#x},{:#x},{:#x},{:#x}",
            r.rip, r.address, r.value, r.detail
        )?;
        write!(
            out,
            ",{},{},{},{},{}",
            r.decision, r.path, r.reason, r.cycles, r.guest
        )?;
        writeln!(
            out,
            ",{},{:#x},{:#x},{:#x},{}",
            r.cpu, r.flags, r.inject, r.error_code, r.tsc
        )
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Chrome's trace format: a row for each vCPU, on which guest and handling of exits take turns.
pub struct Perfetto<W> {
    out: W,
    begun: bool,
    named: HashSet<(u32, u32)>,
}

impl<W: Write> Perfetto<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            begun: false,
            named: HashSet::new(),
        }
    }

    fn event(&mut self, event: &serde_json::Value) -> io::Result<()> {
        let separator = if self.begun { ",\n" } else { "[\n" };
        self.begun = true;
        write!(self.out, "{separator}{event}")
    }
}

impl<W: Write> Sink for Perfetto<W> {
    fn record(&mut self, from: &Origin, record: &Record, since: f64) -> io::Result<()> {
        let (pid, tid) = (from.pid, from.vcpu);
        if self.named.insert((pid, tid)) {
            let args = json!({ "name": format!("vCPU {tid}") });
            let named =
                json!({ "ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": args });
            self.event(&named)?;
        }
        let us = |cycles: u32| f64::from(cycles) * 1000.0 / from.tsc_khz.max(1) as f64;
        if record.is_exit() {
            let (ran, took) = (us(record.guest), us(record.cycles));
            let guest = json!({ "ph": "X", "name": "guest", "cat": "guest", "pid": pid, "tid": tid,
                "ts": since - ran, "dur": ran });
            self.event(&guest)?;
            let args = json!({ "rip": format!("{:#x}", record.rip), "address": format!("{:#x}", record.address),
                "value": format!("{:#x}", record.value), "decision": decision(record), "path": path(record.path),
                "cpu": record.cpu });
            let exit = json!({ "ph": "X", "name": name(record), "cat": "exit", "pid": pid, "tid": tid,
                "ts": since, "dur": took, "args": args });
            self.event(&exit)?;
        }
        if record.inject != 0 {
            let at = if record.is_exit() {
                since + us(record.cycles)
            } else {
                since
            };
            let event = json!({ "ph": "i", "s": "t", "name": event(record.inject), "cat": "event", "pid": pid,
                "tid": tid, "ts": at });
            self.event(&event)?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let end = if self.begun { "\n]\n" } else { "[]\n" };
        self.out.write_all(end.as_bytes())?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::{ENTRY, EXIT};
    use super::*;
    use crate::explain::rows::number;

    const FROM: Origin = Origin {
        pid: 10,
        vcpu: 1,
        tsc_khz: 2_000_000,
    };

    fn records() -> [Record; 2] {
        let exit = Record {
            kind: EXIT,
            class: number("io").unwrap(),
            rip: 0x1234,
            address: 0x3f8,
            decision: 4,
            path: 2,
            reason: 2,
            cycles: 2000,
            guest: 4000,
            ..Record::default()
        };
        let entry = Record {
            kind: ENTRY,
            inject: 0x8000_0030,
            ..Record::default()
        };
        [exit, entry]
    }

    fn written<'a>(out: &'a mut Vec<u8>, make: impl FnOnce(&'a mut Vec<u8>) -> Box<dyn Sink + 'a>) {
        let mut sink = make(out);
        for (n, record) in records().iter().enumerate() {
            sink.record(&FROM, record, n as f64 * 10.0).unwrap();
        }
        sink.end().unwrap();
    }

    #[test]
    fn lines_for_people() {
        let mut out = Vec::new();
        written(&mut out, |out| Box::new(Text(out)));
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("io ") && text.contains("port 0x3f8") && text.contains("KVM_EXIT_IO"),
            "{text}"
        );
        assert!(text.contains("delivers interrupt 48"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn json_and_values() {
        let mut out = Vec::new();
        written(&mut out, |out| Box::new(Json(out)));
        let text = String::from_utf8(out).unwrap();
        let objects: Vec<serde_json::Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(
            (&objects[0]["class"], &objects[1]["class"]),
            (&json!("io"), &json!("entry"))
        );
        assert_eq!(objects[0]["address"], json!(0x3f8));
        let mut out = Vec::new();
        written(&mut out, |out| Box::new(Csv::new(out)));
        let text = String::from_utf8(out).unwrap();
        let fields: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(fields, [18; 3], "{text}");
    }

    #[test]
    fn chromes_trace_is_json() {
        let mut out = Vec::new();
        written(&mut out, |out| Box::new(Perfetto::new(out)));
        let events: Vec<serde_json::Value> = serde_json::from_slice(&out).unwrap();
        let names: Vec<&str> = events.iter().map(|e| e["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["thread_name", "guest", "io", "interrupt 48"]);
        assert_eq!(events[1]["dur"], json!(2.0));
        assert_eq!(
            (&events[2]["ts"], &events[2]["dur"]),
            (&json!(0.0), &json!(1.0))
        );
    }
}
