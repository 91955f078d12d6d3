// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pausing a running machine, letting it go on, and saving it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

use crate::acpi::PowerEvents;
use crate::hold::{Ended, Hold};
use crate::platform::Cmos;
use crate::serial::{self, SerialPort};
use crate::snapshot;
use crate::snapshot::state::{Chips, State, VcpuState};
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
    /// The machine has ended.
    pub fn resume(&self) -> Result<(), Ended> {
        self.go(&self.hold())
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
        let mut parts = Vec::new();
        let saved = self.state(&hold, &mut parts).and_then(|state| {
            let ended = || hold.control().ended();
            snapshot::save(path, state, &self.0.parts.memory, &parts, &ended)
                .map_err(|error| format!("{}: {error}", path.display()))
        });
        acpi.inspect(|acpi| lock(&acpi.host).thaw());
        if !was_paused {
            self.go(&hold).map_err(|error| error.to_string())?;
        }
        saved
    }

    fn state(&self, hold: &Hold, files: &mut Vec<File>) -> Result<State, String> {
        let parts = &self.0.parts;
        let vcpu = |id| {
            let msrs = parts.msrs.clone();
            let saved = hold.on(id, move |fd| VcpuState::save(fd, &msrs));
            let saved = saved.map_err(|error| error.to_string())?;
            saved.map_err(|error| format!("vCPU {id}: {error}"))
        };
        // What raises interrupts before what takes them: time and input do not stand still, and an edge is rather there
        // twice than in nobody's state.
        let virtio = parts.acpi.as_ref().map(|acpi| acpi.state(files));
        let virtio = virtio.transpose().map_err(|error| error.to_string())?;
        let serial = serial::lock(&parts.serial).state();
        let chips = Chips::save(&parts.vm).map_err(|error| error.to_string())?;
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
