// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Machines of one process: the one that it was started for, and those that go on from it (`rvmm ctl SOCKET fork`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use rvmm_vm::{Console, Fork, Vm};

use crate::api::Machine;
use crate::run::{about, said, Start};
use crate::status::say;

/// The machines, as signals and the socket have them.
#[derive(Default)]
pub struct Reach {
    machines: Mutex<Machines>,
    fewer: Condvar,
    maker: OnceLock<SyncSender<Order>>,
}

/// The machines that run.
#[derive(Default)]
pub struct Machines {
    /// The one that the process was started for.
    pub first: Option<Arc<Machine>>,
    /// Those that come from it, by number.
    pub clones: BTreeMap<u32, Arc<Machine>>,
    next: u32,
}

/// The machines, shared.
pub type Running = Arc<Reach>;

struct Order {
    fork: Fork,
    count: u32,
    device: PathBuf,
    made: SyncSender<Result<Vec<u32>, String>>,
}

impl Reach {
    /// The machines that run.
    pub fn machines(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread that makes machines: with the limits of the caller's, which those of commands do not have.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn start_maker(self: &Arc<Self>) -> io::Result<()> {
        let (orders, taken) = sync_channel(0);
        let reach = self.clone();
        std::thread::Builder::new()
            .name("maker".into())
            .spawn(move || make(&taken, &reach))?;
        let _ = self.maker.set(orders);
        Ok(())
    }

    /// Has so many machines go on from this moment of the first one's, and gives their numbers.
    ///
    /// # Errors
    ///
    /// A sentence; machines that have been made until then run.
    pub fn make(&self, fork: Fork, count: u32, device: &Path) -> Result<Vec<u32>, String> {
        let (made, numbers) = sync_channel(1);
        let order = Order {
            fork,
            count,
            device: device.into(),
            made,
        };
        let nobody = "nobody makes machines here";
        let maker = self.maker.get().ok_or(nobody)?;
        maker.send(order).map_err(|_| nobody)?;
        numbers.recv().map_err(|_| nobody)?
    }

    /// Waits until all machines but the first have ended.
    pub fn wait_for_clones(&self) {
        let mut machines = self.machines();
        if !machines.clones.is_empty() {
            say!("rvmm: machines that come from this one run on");
        }
        while !machines.clones.is_empty() {
            let waited = self.fewer.wait(machines);
            machines = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends all machines; false if there are none.
    pub fn stop(&self) -> bool {
        let mut machines = self.machines();
        let first = machines.first.take();
        for machine in machines.clones.values().chain(&first) {
            machine.stop.stop();
        }
        first.is_some() || !machines.clones.is_empty()
    }
}

fn make(orders: &Receiver<Order>, reach: &Arc<Reach>) {
    for order in orders {
        let made = (0..order.count).map(|_| one(&order, reach)).collect();
        let _ = order.made.send(made);
    }
}

/// Makes one machine, and starts it.
fn one(order: &Order, reach: &Arc<Reach>) -> Result<u32, String> {
    let number = {
        let mut machines = reach.machines();
        machines.next += 1;
        machines.next - 1
    };
    let failed = |cause: String| format!("machine {number}: {cause}");
    let snapshot = order.fork.machine(number);
    let snapshot = snapshot.map_err(|error| failed(error.to_string()))?;
    let start = Start {
        api: true,
        stats: false,
        about: about(&order.device, snapshot.cpus(), snapshot.memory_size()),
    };
    let console = Console::lines(&format!("{number}: "));
    let console = console.map_err(|error| failed(error.to_string()))?;
    let builder = Vm::builder().device(&order.device).saved(snapshot);
    let made = start.build(builder.console(console));
    let (vm, machine) = made.map_err(|error| failed(error.to_string()))?;
    let all = reach.clone();
    let run = move || {
        match vm.run() {
            Ok(exit) => say!("rvmm: machine {number}: {}", said(&exit)),
            Err(error) => say!("rvmm: machine {number}: {error}"),
        }
        all.machines().clones.remove(&number);
        all.fewer.notify_all();
    };
    reach.machines().clones.insert(number, machine);
    let thread = std::thread::Builder::new().name(format!("clone{number}"));
    if let Err(error) = thread.spawn(run) {
        reach.machines().clones.remove(&number);
        return Err(failed(error.to_string()));
    }
    Ok(number)
}
