// SPDX-License-Identifier: GPL-2.0
//! Faults, writes, reset points and resets at once: the handshake of `mem::rounds`, as the module has it, between
//! threads that come in between at every access. The walker is in `mem_parallel`; here a page has one leaf.
//!
//! `Broken` leaves one rule out; the same scenario has to fail then.

use std::sync::{Arc, Mutex, MutexGuard};

use rvmm_logic::interleave::{explore, step, Body};
use rvmm_logic::mem::invalidations::Gate;
use rvmm_logic::mem::rounds::Rounds;

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// Points do not wait for faults.
    GateWait,
    /// Faults do not look in their section whether the round is over.
    Section,
    /// A reset begins no round of its own.
    EachReset,
    /// Pages may be saved before the write rights are gone.
    Taken,
    /// A copy of one round is entered in another.
    Copy,
}

/// What has been saved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    Never,
    /// A point or a reset is on its way.
    Taken,
    There(Option<u32>),
}

struct State {
    /// The leaf has the write right.
    writable: bool,
    content: u32,
    /// What it was at the point.
    then: Option<u32>,
    store: Store,
    /// How many points and resets have begun.
    round: u32,
}

struct World {
    broken: Broken,
    rounds: Rounds,
    gates: [Gate; 2],
    state: Mutex<State>,
}

impl World {
    fn at(&self) -> MutexGuard<'_, State> {
        step();
        self.state.lock().unwrap()
    }

    /// The page is saved, or need not be. False: not now.
    fn save(&self) -> bool {
        // Both change under one lock.
        let (store, round) = {
            let s = self.at();
            (s.store, s.round)
        };
        match store {
            Store::Never | Store::There(Some(_)) => return true,
            Store::Taken => return false,
            Store::There(None) => {}
        }
        let copy = self.at().content;
        let mut s = self.at();
        let same = s.round == round || self.broken == Broken::Copy;
        match &mut s.store {
            Store::There(saved) if same => {
                saved.get_or_insert(copy);
                true
            }
            Store::There(_) | Store::Taken => false,
            Store::Never => true,
        }
    }

    /// `GuestMemory::fault`, of a write.
    fn fault(&self, me: usize) {
        let round = self.rounds.now();
        if round.is_armed() && !self.save() {
            return;
        }
        let _section = self.gates[me].enter();
        if self.broken != Broken::Section && self.rounds.now() != round {
            return;
        }
        self.at().writable = true;
    }

    /// `GuestMemory::fault_resident`.
    fn fault_resident(&self, me: usize) {
        let _section = self.gates[me].enter();
        if self.broken == Broken::Section || !self.rounds.now().is_armed() {
            self.at().writable = true;
        }
    }

    /// The guest writes, as soon as it may.
    fn write(&self, me: usize, resident: bool) {
        for _ in 0..3 {
            {
                let mut s = self.at();
                if s.writable {
                    s.content += 1;
                    return;
                }
            }
            if resident {
                self.fault_resident(me);
            }
            self.fault(me);
        }
    }

    fn wait_for_faults(&self) {
        if self.broken != Broken::GateWait {
            self.gates.iter().for_each(|g| {
                g.wait();
            });
        }
    }

    /// `GuestMemory::set_reset_point`.
    fn point(&self) {
        {
            let mut s = self.at();
            s.round += 1;
            s.store = match self.broken {
                Broken::Taken => Store::There(None),
                _ => Store::Taken,
            };
        }
        self.rounds.begin(true);
        self.wait_for_faults();
        // With a flush.
        self.at().writable = false;
        // What a guest writes until here is in the point.
        let mut s = self.at();
        s.then = Some(s.content);
        if self.broken != Broken::Taken {
            s.store = Store::There(None);
        }
    }

    /// `GuestMemory::put_back`.
    fn reset(&self) {
        let saved = {
            let mut s = self.at();
            s.round += 1;
            std::mem::replace(&mut s.store, Store::Taken)
        };
        if self.broken != Broken::EachReset {
            self.rounds.begin(true);
        }
        self.wait_for_faults();
        self.at().writable = false;
        let mut s = self.at();
        if let Store::There(Some(saved)) = saved {
            s.content = saved;
        }
        s.store = Store::There(None);
    }
}

/// At the end a reset would find what there was.
fn kept(w: &World) -> Result<(), String> {
    let s = w.state.lock().unwrap();
    let found = match s.store {
        Store::There(Some(saved)) => saved,
        _ => s.content,
    };
    match s.then {
        Some(then) if found != then => Err(format!("{found} comes back, it was {then}")),
        _ => Ok(()),
    }
}

type Act = fn(&World);

fn try_all(broken: Broken, prepare: Act, acts: &[Act]) -> Result<u32, String> {
    explore(
        3,
        || {
            let world = Arc::new(World {
                broken,
                rounds: Rounds::new(),
                gates: [Gate::new(), Gate::new()],
                state: Mutex::new(State {
                    writable: false,
                    content: 0,
                    then: None,
                    store: Store::Never,
                    round: 0,
                }),
            });
            prepare(&world);
            let body = |act: &Act| -> Body {
                let (world, act) = (world.clone(), *act);
                Box::new(move || act(&world))
            };
            let bodies = acts.iter().map(body).collect();
            (world, bodies)
        },
        |w| kept(&w),
    )
}

fn holds(prepare: Act, acts: &[Act], rules: &[Broken]) {
    println!("{} runs", try_all(Broken::Nothing, prepare, acts).unwrap());
    for rule in rules {
        let why = try_all(*rule, prepare, acts);
        println!("without {rule:?}: {why:?}");
        assert!(why.is_err(), "nothing is missed without {rule:?}");
    }
}

/// A point while vCPUs fault on the long way.
#[test]
fn fault_against_point() {
    let acts: [Act; 3] = [|w| w.write(0, false), |w| w.write(1, false), |w| w.point()];
    let rules = [Broken::GateWait, Broken::Section, Broken::Taken];
    holds(|_| {}, &acts, &rules);
}

/// And on the short one.
#[test]
fn resident_fault_against_point() {
    let acts: [Act; 2] = [|w| w.write(0, true), |w| w.point()];
    holds(|_| {}, &acts, &[Broken::GateWait, Broken::Section]);
}

/// A page that was saved before a reset is not writable after it.
#[test]
fn fault_against_reset() {
    let acts: [Act; 3] = [|w| w.write(0, false), |w| w.write(1, false), |w| w.reset()];
    let rules = [
        Broken::GateWait,
        Broken::Section,
        Broken::EachReset,
        Broken::Copy,
    ];
    holds(|w| w.point(), &acts, &rules);
}

/// Rounds differ, whatever there is a point or none.
#[test]
fn each_is_another() {
    let rounds = Rounds::new();
    let mut seen = vec![rounds.now()];
    for armed in [false, true, true, false, false, true] {
        rounds.begin(armed);
        assert_eq!(rounds.now().is_armed(), armed);
        assert!(!seen.contains(&rounds.now()));
        seen.push(rounds.now());
    }
}
