// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pausing a running machine, letting it go on, and saving it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

use crate::acpi::PowerEvents;
use crate::fork::{Fork, Kept};
use crate::hold::{Ended, Hold};
use crate::platform::Cmos;
use crate::serial::{self, SerialPort};
use crate::snapshot;
use crate::snapshot::state::{Chips, State, VcpuState};
use crate::sys::{self, CAP_FORK};
use crate::virtio::saved::VirtioState;
use crate::virtio::{balloon, Host};

/// What a machine is made of, to save it.
pub(crate) struct Parts {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    /// Bytes of memory.
    pub(crate) size: u64,
    pub(crate) serial: Arc<Mutex<SerialPort>>,
    pub(crate) cmos: Arc<Mutex<Cmos>>,
    /// MSRs that the hypervisor keeps.
    pub(crate) msrs: Vec<u32>,
    /// It has devices whose state would be lost.
    pub(crate) more: bool,
    /// The bus and the power management events of a machine with ACPI.
    pub(crate) acpi: Option<Acpi>,
    /// What its memory comes from, after those who have it.
    pub(crate) fork: Option<Arc<Kept>>,
}

/// What a machine with virtio devices has.
#[derive(Clone)]
pub(crate) struct Acpi {
    pub(crate) host: Arc<Mutex<Host>>,
    pub(crate) events: Arc<Mutex<PowerEvents>>,
    pub(crate) balloon: Option<balloon::Handle>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Acpi {
    fn state(&self, parts: &mut Vec<File>) -> std::io::Result<VirtioState> {
        let (selected, functions) = lock(&self.host).state(parts)?;
        Ok(VirtioState {
            selected,
            functions,
            events: lock(&self.events).state(),
        })
    }

    /// Makes the devices what they were; false if they are others.
    pub(crate) fn restore(&self, state: &VirtioState) -> bool {
        lock(&self.events).restore(state.events);
        lock(&self.host).restore(state)
    }
}

struct Shared {
    hold: Mutex<Hold>,
    paused: AtomicBool,
    parts: Parts,
    /// What was kept of it while it has devices that the kernel serves.
    forks: Mutex<Vec<Weak<Kept>>>,
}

/// Pauses a running machine from another thread: its CPUs stand still. Devices finish what they have been asked for.
#[derive(Clone)]
pub struct Pause(Arc<Shared>);

impl Pause {
    pub(crate) fn new(hold: Hold, parts: Parts) -> Self {
        Self(Arc::new(Shared {
            hold: Mutex::new(hold),
            paused: AtomicBool::new(false),
            parts,
            forks: Mutex::default(),
        }))
    }

    /// Stops the CPUs, and comes back when all have stopped. A machine that is paused stays so.
    ///
    /// # Errors
    ///
    /// The machine has ended.
    pub fn pause(&self) -> Result<(), Ended> {
        self.stop(&self.hold())
    }

    /// Lets the CPUs go on. A guest with kvmclock learns that it has stood still, so that it does not take that for a
    /// fault of its own. A machine that is not paused is left alone.
    ///
    /// # Errors
    ///
    /// A sentence: the machine has ended, or there are machines that come from it, and it has sockets.
    pub fn resume(&self) -> Result<(), String> {
        let hold = self.hold();
        if self.has_to_stand() {
            return Err("it stands still as long as there are machines that come from it".into());
        }
        if let Some(acpi) = &self.0.parts.acpi {
            lock(&acpi.host).thaw();
        }
        self.go(&hold).map_err(|error| error.to_string())
    }

    /// Whether its devices must not go on, because machines that come from it would see what they do.
    fn has_to_stand(&self) -> bool {
        lock(&self.0.forks)
            .iter()
            .any(|fork| fork.strong_count() > 0)
    }

    /// Waits for who is at it.
    pub(crate) fn wait(&self) {
        drop(self.hold());
    }

    fn hold(&self) -> MutexGuard<'_, Hold> {
        lock(&self.0.hold)
    }

    fn stop(&self, hold: &Hold) -> Result<(), Ended> {
        hold.stop()?;
        self.0.paused.store(true, Ordering::Release);
        Ok(())
    }

    fn go(&self, hold: &Hold) -> Result<(), Ended> {
        if !self.is_paused() {
            return Ok(());
        }
        for id in 0..hold.vcpus() {
            // EINVAL: the guest has no such clock.
            hold.on(id, |fd| fd.kvmclock_ctrl().ok())?;
        }
        self.0.paused.store(false, Ordering::Release);
        hold.go();
        Ok(())
    }

    /// Saves the machine to a file, pausing it meanwhile.
    ///
    /// # Errors
    ///
    /// A sentence: it has devices that cannot be saved, has ended, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), String> {
        self.at_rest(|hold| {
            let mut parts = Vec::new();
            let state = self.state(hold, &mut parts, false)?;
            let ended = || hold.control().ended();
            snapshot::save(path, state, &self.0.parts.memory, &parts, &ended)
                .map_err(|error| format!("{}: {error}", path.display()))
        })
    }

    /// Has other machines of this process go on from where this one is, pausing it meanwhile; copies of its disks, and
    /// its memory where the hypervisor does not keep it, go to files without names below `directory`.
    ///
    /// # Errors
    ///
    /// As [`Self::save`]; it comes from a fork itself, or has 16 whose machines have not all ended.
    pub fn fork(&self, directory: &Path) -> Result<Fork, String> {
        let machine = &self.0.parts;
        let cannot = |error: io::Error| format!("a fork cannot be made: {error}");
        let keeps = machine.vm.check_extension_raw(CAP_FORK.into()) > 0;
        if keeps && machine.fork.is_some() {
            return Err("a machine that comes from a fork cannot be forked: save it".into());
        }
        let acpi = machine.acpi.as_ref();
        let kernel = acpi.is_some_and(|acpi| lock(&acpi.host).is_served_by_kernel());
        if keeps && kernel && !self.is_paused() {
            return Err(
                "pause it first: a machine with sockets (--vsock) stands still as long as \
                        there are machines that come from it"
                    .into(),
            );
        }
        self.at_rest(|hold| {
            let mut parts = Vec::new();
            let state = self.state(hold, &mut parts, keeps)?;
            let devices = state.virtio.iter().flat_map(|state| &state.functions);
            let mut disks = devices.filter_map(|state| state.device.file());
            if let Some((path, _)) = disks.find(|(_, written)| *written) {
                return Err(format!(
                    "{} is one machine's disk (--disk): save it, or boot it as IMAGE, of which each machine has a copy",
                    path.display()
                ));
            }
            if !keeps {
                let ended = || hold.control().ended();
                let fork = Fork::written(state, &machine.memory, &parts, &ended, directory);
                return fork.map_err(cannot);
            }
            let file = sys::fork(&*machine.vm);
            let file = file.map_err(|error| match error.raw_os_error() {
                Some(libc::ENOSPC) => "it has 16 forks whose machines run".into(),
                _ => cannot(error),
            })?;
            // From now on its devices have to tell of what they write.
            acpi.inspect(|acpi| lock(&acpi.host).tell_writes());
            let (memory, parts) = (&machine.memory, &parts);
            let (fork, kept) =
                Fork::kept(file, memory, &state, parts, directory).map_err(cannot)?;
            // The kernel does not tell.
            if kernel {
                let mut forks = lock(&self.0.forks);
                forks.retain(|fork| fork.strong_count() > 0);
                forks.push(Arc::downgrade(&kept));
            }
            Ok(fork)
        })
    }

    /// Does something while CPUs and devices stand still.
    fn at_rest<R>(&self, work: impl FnOnce(&Hold) -> Result<R, String>) -> Result<R, String> {
        if self.0.parts.more {
            return Err(
                "a machine with devices of the host or of its own kind cannot be saved".into(),
            );
        }
        let hold = self.hold();
        let was_paused = self.is_paused();
        self.stop(&hold).map_err(|error| error.to_string())?;
        let acpi = self.0.parts.acpi.as_ref();
        // They would write to the memory as well.
        acpi.inspect(|acpi| lock(&acpi.host).freeze());
        let done = work(&hold);
        if !self.has_to_stand() {
            acpi.inspect(|acpi| lock(&acpi.host).thaw());
            if !was_paused {
                self.go(&hold).map_err(|error| error.to_string())?;
            }
        }
        done
    }

    /// Its state, with that of what is in the hypervisor unless a fork `keeps` that.
    fn state(&self, hold: &Hold, files: &mut Vec<File>, keeps: bool) -> Result<State, String> {
        let parts = &self.0.parts;
        let vcpu = |id| {
            let msrs = parts.msrs.clone();
            let saved = hold.on(id, move |fd| match keeps {
                true => VcpuState::configuration(fd),
                false => VcpuState::save(fd, &msrs),
            });
            let saved = saved.map_err(|error| error.to_string())?;
            saved.map_err(|error| format!("vCPU {id}: {error}"))
        };
        // What raises interrupts before what takes them: time and input do not stand still, and an edge is rather there
        // twice than in nobody's state.
        let virtio = parts.acpi.as_ref().map(|acpi| acpi.state(files));
        let virtio = virtio.transpose().map_err(|error| error.to_string())?;
        let serial = serial::lock(&parts.serial).state();
        let chips = match keeps {
            true => Chips::default(),
            false => Chips::save(&parts.vm).map_err(|error| error.to_string())?,
        };
        Ok(State {
            memory: parts.size,
            vcpus: (0..hold.vcpus()).map(vcpu).collect::<Result<_, _>>()?,
            chips,
            serial,
            cmos: lock(&parts.cmos).state(),
            virtio,
            parts: Vec::new(),
        })
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Acquire)
    }
}
