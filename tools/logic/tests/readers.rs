// SPDX-License-Identifier: GPL-2.0
//! Readers and a writer that replaces what they read, as `version_cell` has them, between threads that come in between
//! at every access.
//!
//! `Broken` leaves one rule out; the same scenario has to fail then.

use std::sync::atomic::{AtomicU32 as Plain, Ordering::SeqCst};
use std::sync::Arc;

use rvmm_logic::interleave::{explore, fail, step, Body};
use rvmm_logic::linux::atomic::{spin_loop, AtomicU32};
use rvmm_logic::linux::readers::{Counts, Readers};

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// The writer does not wait.
    Wait,
    /// The writer waits before it publishes.
    Order,
    /// A reader loads the version before it counts itself.
    Late,
}

struct World {
    broken: Broken,
    readers: Readers<Vec<Counts>>,
    /// Which version there is.
    current: AtomicU32,
    /// Bit n: version n has been dropped.
    dropped: Plain,
}

impl World {
    fn read(&self, cpu: u32) {
        let early = (self.broken == Broken::Late).then(|| self.current.load(SeqCst));
        let reading = self.readers.enter(cpu);
        let version = early.unwrap_or_else(|| self.current.load(SeqCst));
        for _ in 0..2 {
            step();
            if self.dropped.load(SeqCst) & 1 << version != 0 {
                fail("a reader has a version that was dropped");
            }
        }
        drop(reading);
    }

    fn replace(&self, next: u32) {
        if self.broken == Broken::Order {
            self.readers.wait(spin_loop);
        }
        let old = self.current.swap(next, SeqCst);
        if !matches!(self.broken, Broken::Wait | Broken::Order) {
            self.readers.wait(spin_loop);
        }
        step();
        self.dropped.fetch_or(1 << old, SeqCst);
    }
}

fn scenario(broken: Broken, preemptions: u32, cpus: &'static [u32]) -> Result<u32, String> {
    let start = || {
        let world = Arc::new(World {
            broken,
            readers: Readers::new(vec![Counts::new()]),
            current: AtomicU32::new(0),
            dropped: Plain::new(0),
        });
        let mut bodies: Vec<Body> = Vec::new();
        for &cpu in cpus {
            let w = world.clone();
            bodies.push(Box::new(move || {
                w.read(cpu);
                w.read(cpu);
            }));
        }
        let w = world.clone();
        bodies.push(Box::new(move || {
            w.replace(1);
            w.replace(2);
        }));
        (world, bodies)
    };
    explore(preemptions, start, |w| {
        match (w.current.load(SeqCst), w.dropped.load(SeqCst)) {
            (2, 0b011) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

#[test]
fn nothing_is_dropped_that_is_read() {
    // Two readers by one CPU, and one of a CPU that has no count of its own.
    for (preemptions, cpus) in [(3, &[0][..]), (2, &[0, 0]), (2, &[0, 7])] {
        let runs = scenario(Broken::Nothing, preemptions, cpus).unwrap();
        assert!(runs > 300, "{runs}");
    }
}

#[test]
fn each_rule_is_needed() {
    for broken in [Broken::Wait, Broken::Order, Broken::Late] {
        let found = scenario(broken, 2, &[0, 7]);
        assert!(found.is_err(), "{broken:?}");
    }
}

/// Readers that follow each other without a gap do not keep a writer: those who come later count elsewhere.
#[test]
fn newcomers_do_not_keep_a_writer() {
    let readers = Readers::new(vec![Counts::new(), Counts::new()]);
    let mut reading = Some(readers.enter(0));
    let mut pauses = 0;
    readers.wait(|| {
        pauses += 1;
        assert!(pauses < 4, "the writer waits for newcomers");
        // The next one comes before the one before it goes.
        reading = Some(readers.enter(pauses & 1));
    });
    assert_eq!(pauses, 1);
    drop(reading);
    readers.wait(|| panic!("nobody reads"));
}
