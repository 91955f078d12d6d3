// SPDX-License-Identifier: GPL-2.0
//! All interleavings of a few threads, up to a number of preemptions.
//!
//! Threads call [`step`] before each access to something that they share, and [`wait`] where they spin. One runs at a
//! time. [`explore`] repeats the run with every choice of who goes on, depth first: at a step another thread may take
//! over as long as preemptions are left, at a wait or at an end one has to. Memory is sequentially consistent: what
//! weaker orders would allow is not tried.

extern crate std;

use std::boxed::Box;
use std::cell::RefCell;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::string::{String, ToString};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::{format, thread, vec, vec::Vec};

/// Steps of one run, beyond which threads wait for each other in a circle.
const MOST_STEPS: u32 = 20_000;

/// What a run's thread does.
pub type Body = Box<dyn FnOnce() + Send>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Ready,
    /// Until another thread makes a step that is not the look of one that waits.
    Waits,
    Done,
}

struct State {
    current: usize,
    threads: Vec<Status>,
    /// The thread has waited, and its next step looks whether it may go on.
    looks: Vec<bool>,
    /// Choices of this run: which one was taken, of how many.
    trail: Vec<(usize, usize)>,
    depth: usize,
    preemptions: u32,
    steps: u32,
    failure: Option<String>,
}

struct Run {
    state: Mutex<State>,
    turn: Vec<Condvar>,
}

std::thread_local! {
    static SELF: RefCell<Option<(Arc<Run>, usize)>> = const { RefCell::new(None) };
}

/// Unwinds a thread whose run is over.
struct Over;

impl State {
    /// The next choice among `n`, as the trail says, or the first.
    fn choose(&mut self, n: usize) -> usize {
        if n == 1 {
            return 0;
        }
        if self.depth == self.trail.len() {
            self.trail.push((0, n));
        }
        let taken = self.trail[self.depth].0;
        self.depth += 1;
        taken
    }

    fn others(&self, me: usize) -> Vec<usize> {
        let ready = |&t: &usize| t != me && self.threads[t] == Status::Ready;
        (0..self.threads.len()).filter(ready).collect()
    }
}

impl Run {
    fn fail(&self, mut state: MutexGuard<'_, State>, why: &str) {
        state.failure.get_or_insert_with(|| why.to_string());
        drop(state);
        self.turn.iter().for_each(|c| c.notify_all());
    }

    fn await_turn<'a>(&'a self, mut state: MutexGuard<'a, State>, me: usize) {
        while state.current != me && state.failure.is_none() {
            state = self.turn[me].wait(state).unwrap();
        }
        let over = state.failure.is_some();
        drop(state);
        if over && !thread::panicking() {
            resume_unwind(Box::new(Over));
        }
    }

    /// Thread `me` is at a step, waits, or is done.
    fn at(&self, me: usize, status: Status) {
        let mut state = self.state.lock().unwrap();
        if state.failure.is_some() {
            return self.await_turn(state, me);
        }
        state.steps += 1;
        if state.steps > MOST_STEPS {
            self.fail(state, "the threads wait for each other");
            return self.await_turn(self.state.lock().unwrap(), me);
        }
        state.threads[me] = status;
        let waits = status == Status::Waits;
        let looks = std::mem::replace(&mut state.looks[me], waits);
        if !waits && !looks {
            for t in &mut state.threads {
                if *t == Status::Waits {
                    *t = Status::Ready;
                }
            }
        }
        let others = state.others(me);
        let next = match status {
            Status::Ready if state.preemptions == 0 || others.is_empty() => return,
            Status::Ready => match state.choose(1 + others.len()) {
                0 => return,
                n => {
                    state.preemptions -= 1;
                    others[n - 1]
                }
            },
            _ if others.is_empty() => {
                if status == Status::Waits {
                    self.fail(state, "the threads wait for each other");
                    return self.await_turn(self.state.lock().unwrap(), me);
                }
                // What waits for somebody who is done waits for ever.
                match state.threads.iter().position(|t| *t == Status::Waits) {
                    Some(t) => t,
                    None => return,
                }
            }
            _ => others[state.choose(others.len())],
        };
        state.current = next;
        state.threads[next] = Status::Ready;
        self.turn[next].notify_all();
        if status != Status::Done {
            self.await_turn(state, me);
        }
    }
}

fn here(status: Status) {
    let me = SELF.with(|s| s.borrow().clone());
    if let Some((run, me)) = me {
        run.at(me, status);
    }
}

/// Another thread may come in between here.
pub fn step() {
    here(Status::Ready);
}

/// Nothing to do until another thread has made a step. The next step looks whether that is enough.
pub fn wait() {
    here(Status::Waits);
}

/// Ends the run as failed.
pub fn fail(why: &str) -> ! {
    if let Some((run, _)) = SELF.with(|s| s.borrow().clone()) {
        run.fail(run.state.lock().unwrap(), why);
    }
    resume_unwind(Box::new(Over));
}

/// One run; its trail and what failed.
fn run(bodies: Vec<Body>, preemptions: u32, trail: Vec<(usize, usize)>) -> State {
    let n = bodies.len();
    let run = Arc::new(Run {
        state: Mutex::new(State {
            current: 0,
            threads: vec![Status::Ready; n],
            looks: vec![false; n],
            trail,
            depth: 0,
            preemptions,
            steps: 0,
            failure: None,
        }),
        turn: (0..n).map(|_| Condvar::new()).collect(),
    });
    let threads: Vec<_> = bodies
        .into_iter()
        .enumerate()
        .map(|(me, body)| {
            let run = run.clone();
            thread::spawn(move || {
                SELF.with(|s| *s.borrow_mut() = Some((run.clone(), me)));
                let ended = catch_unwind(AssertUnwindSafe(|| {
                    run.await_turn(run.state.lock().unwrap(), me);
                    body();
                }));
                match ended {
                    Ok(()) => run.at(me, Status::Done),
                    Err(e) if e.is::<Over>() => {}
                    Err(e) => {
                        let why = e.downcast_ref::<String>().cloned();
                        let why = why.or(e.downcast_ref::<&str>().map(|s| s.to_string()));
                        let state = run.state.lock().unwrap();
                        run.fail(state, &why.unwrap_or_default());
                    }
                }
                SELF.with(|s| *s.borrow_mut() = None);
            })
        })
        .collect();
    for t in threads {
        let _ = t.join();
    }
    let Ok(run) = Arc::try_unwrap(run) else {
        panic!("a thread of the run is left");
    };
    run.state.into_inner().unwrap()
}

/// Tries every run of the threads that `start` makes, with up to `preemptions` preemptions, and has `after` look at
/// what each has left. Gives the number of runs, or what failed.
pub fn explore<W>(
    preemptions: u32,
    mut start: impl FnMut() -> (W, Vec<Body>),
    mut after: impl FnMut(W) -> Result<(), String>,
) -> Result<u32, String> {
    let mut trail = Vec::new();
    let mut runs = 0;
    loop {
        let (world, bodies) = start();
        let state = run(bodies, preemptions, trail);
        runs += 1;
        let end = match state.failure {
            Some(why) => Err(why),
            None => after(world),
        };
        end.map_err(|why| format!("run {runs}: {why}"))?;
        trail = state.trail;
        while trail.last().is_some_and(|&(taken, n)| taken + 1 == n) {
            trail.pop();
        }
        match trail.last_mut() {
            Some(choice) => choice.0 += 1,
            None => return Ok(runs),
        }
    }
}
