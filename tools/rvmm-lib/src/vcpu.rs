// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One virtual CPU's loop, and how the machine's end travels between its threads.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{
    kvm_debug_exit_arch, kvm_run, KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH,
    KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
#[cfg(target_arch = "x86_64")]
use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

#[cfg(target_arch = "aarch64")]
use crate::arm64::cpu::registers;
use crate::bus::Bus;
use crate::exit::{Crash, EntryFailure, Exit};
use crate::hold::Held;
use crate::{sandbox, serial, sys};

/// The machine's end: set once, by whoever comes first, and seen by every thread.
pub struct Control {
    exit: Mutex<Option<Exit>>,
    ended: Arc<AtomicBool>,
    /// vCPUs shall stand still for a while.
    pub(crate) held: Arc<AtomicBool>,
    event: EventFd,
}

impl Control {
    /// `ended` is set with the end, `held` while vCPUs shall stand still.
    pub(crate) fn new(ended: Arc<AtomicBool>, held: Arc<AtomicBool>) -> io::Result<Self> {
        Ok(Self {
            exit: Mutex::new(None),
            ended,
            held,
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Ends the machine; later calls change nothing.
    pub(crate) fn end(&self, exit: Exit) {
        self.exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(exit);
        self.ended.store(true, Ordering::Release);
        // Only an overflow of the counter can fail, and then the event is readable already.
        let _ = self.event.write(1);
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Readable once the machine has ended.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    pub(crate) fn take(&self) -> Option<Exit> {
        self.exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

thread_local! {
    /// The run page of the vCPU that this thread runs, for the kick's signal handler.
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Signal that takes a vCPU thread out of the guest.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // A signal that comes between the loop's check and KVM_RUN would be lost without
    // immediate_exit (api.rst 5, `immediate_exit`).
    let _ = RUN_PAGE.try_with(|page| {
        let page = page.get();
        if !page.is_null() {
            // SAFETY: the pointer is non-null only while this thread's `Vcpu::run` owns the vCPU
            // and with it the mapping; the handler runs on that thread.
            unsafe { ptr::addr_of_mut!((*page).immediate_exit).write_volatile(1) };
        }
    });
}

/// Installs the kick's handler; to be called before any vCPU thread starts.
pub(crate) fn install_kick() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Takes the thread's vCPU out of the guest, so that it looks at [`Control::ended`].
pub(crate) fn kick(thread: &JoinHandle<()>) {
    if !thread.is_finished() {
        // ESRCH from a thread that ended just now is what was wanted.
        let _ = thread.kill(kick_signal());
    }
}

/// The same for a thread by its number, which lives.
pub(crate) fn kick_thread(thread: libc::pthread_t) {
    // SAFETY: by the caller's word the thread has not ended; the signal has a handler.
    unsafe { libc::pthread_kill(thread, kick_signal()) };
}

/// What a KVM_RUN led to, apart from accesses that were served.
enum Next {
    Run,
    /// A signal came.
    Interrupted,
    Debug(kvm_debug_exit_arch),
    End(Exit),
    Crash(String, Vec<String>),
    EntryFailure {
        reason: u64,
        cpu: u32,
    },
}

/// A virtual CPU ready to run on a thread of its own.
pub(crate) struct Vcpu {
    pub(crate) id: usize,
    pub(crate) fd: VcpuFd,
    pub(crate) ports: Arc<Bus>,
    pub(crate) memory: Arc<Bus>,
    pub(crate) control: Arc<Control>,
    pub(crate) held: Option<Held>,
}

impl Vcpu {
    /// Runs the guest until the machine ends.
    pub(crate) fn run(mut self) {
        sandbox::enter(sandbox::Kind::Cpu);
        RUN_PAGE.set(self.fd.get_kvm_run());
        if let Some(held) = &self.held {
            held.set_thread(true);
        }
        while !self.control.ended() {
            let next = match &self.held {
                Some(held) if held.is_wanted() => self.settle(),
                _ => self.step(),
            };
            match next {
                Next::Run => {}
                Next::Interrupted => {
                    if let Some(held) = self.held.as_ref().filter(|held| held.is_wanted()) {
                        held.serve(&mut self.fd);
                        // What of its output waited for that.
                        self.ports.write(serial::PORT, &[]);
                    }
                }
                Next::Debug(info) => match &self.held {
                    Some(held) => held.hit(info),
                    None => tracing::warn!("a debug exit that nobody has asked for"),
                },
                Next::End(exit) => self.control.end(exit),
                Next::Crash(what, detail) => {
                    let (regs, sregs) = registers(&self.fd);
                    let crash = Crash {
                        vcpu: self.id,
                        what,
                        detail,
                        regs,
                        sregs,
                    };
                    self.control.end(Exit::Crash(Box::new(crash)));
                }
                Next::EntryFailure { reason, cpu } => {
                    let (regs, sregs) = registers(&self.fd);
                    let failure = EntryFailure {
                        vcpu: self.id,
                        cpu,
                        reason,
                        rule: sys::entry_failure(&self.fd),
                        regs,
                        sregs,
                    };
                    self.control.end(Exit::EntryFailure(Box::new(failure)));
                }
            }
        }
        if let Some(held) = &self.held {
            held.set_thread(false);
        }
        RUN_PAGE.set(ptr::null_mut());
    }

    /// Finishes what the last exit left open, without entering the guest: then the registers tell the truth.
    fn settle(&mut self) -> Next {
        self.fd.set_kvm_immediate_exit(1);
        let next = self.step();
        self.fd.set_kvm_immediate_exit(0);
        next
    }

    fn step(&mut self) -> Next {
        let run: *const kvm_run = self.fd.get_kvm_run();
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                for access in data.chunks_mut(port_width(run)) {
                    self.ports.read(u64::from(port), access);
                }
                Next::Run
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                for access in data.chunks(port_width(run)) {
                    self.ports.write(u64::from(port), access);
                }
                Next::Run
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.memory.read(address, data);
                Next::Run
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.memory.write(address, data);
                Next::Run
            }
            Ok(VcpuExit::Intr) => Next::Interrupted,
            Ok(VcpuExit::Debug(info)) => Next::Debug(info),
            Ok(VcpuExit::Shutdown) => Next::Crash("triple fault".into(), Vec::new()),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Next::End(Exit::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, data)) => Next::End(reset(data)),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, data)) => Next::Crash(
                "the guest reported its own crash".into(),
                data.iter().map(|word| format!("{word:#x}")).collect(),
            ),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Next::EntryFailure { reason, cpu },
            Ok(VcpuExit::InternalError) => internal_error(run),
            Ok(VcpuExit::Hlt) => Next::Crash(
                "halted, but no interrupt controller in the kernel could wake it".into(),
                Vec::new(),
            ),
            Ok(other) => Next::Crash(format!("unexpected exit {other:?}"), Vec::new()),
            Err(error) => match error.errno() {
                libc::EINTR => {
                    self.fd.set_kvm_immediate_exit(0);
                    Next::Interrupted
                }
                // A CPU that just received INIT or SIPI.
                libc::EAGAIN => Next::Interrupted,
                libc::ENOSYS => Next::Crash(
                    "KVM_RUN: an access beside memory that the processor does not describe".into(),
                    Vec::new(),
                ),
                libc::EFAULT => Next::Crash(
                    "KVM_RUN: Bad address: the guest touched memory that the host cannot supply"
                        .into(),
                    Vec::new(),
                ),
                errno => Next::Crash(
                    format!("KVM_RUN: {}", io::Error::from_raw_os_error(errno)),
                    Vec::new(),
                ),
            },
        }
    }
}

/// What there is to say of a CPU whose guest has crashed.
#[cfg(target_arch = "x86_64")]
fn registers(fd: &VcpuFd) -> (Option<kvm_regs>, Option<Box<kvm_sregs>>) {
    (fd.get_regs().ok(), fd.get_sregs().ok().map(Box::new))
}

/// How a reset by a system event ends the machine, with what the hypervisor says of it: on Arm64 its kind
/// (KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2), a warm one where the kernel has panicked.
fn reset(data: &[u64]) -> Exit {
    let warm = data.first().is_some_and(|flags| flags & 1 != 0);
    if cfg!(target_arch = "aarch64") && warm {
        return Exit::Panic;
    }
    Exit::Reset
}

/// Bytes of one access of a port exit; a repeated one delivers several at once.
fn port_width(run: *const kvm_run) -> usize {
    // SAFETY: the run page is mapped as long as the vCPU lives, and the caller saw KVM_EXIT_IO, so
    // that `io` is the union's field. The data that a slice may borrow is in another page.
    let size = unsafe { (*run).__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

fn internal_error(run: *const kvm_run) -> Next {
    // SAFETY: as in `port_width`; the caller saw KVM_EXIT_INTERNAL_ERROR.
    let internal = unsafe { (*run).__bindgen_anon_1.internal };
    let mut detail = Vec::new();
    let words = internal
        .data
        .get(..internal.ndata as usize)
        .unwrap_or(&internal.data);
    if internal.suberror == KVM_INTERNAL_ERROR_EMULATION {
        detail.extend(instruction(words).map(|bytes| format!("instruction bytes: {bytes}")));
    }
    if !words.is_empty() {
        let words: Vec<String> = words.iter().map(|word| format!("{word:#x}")).collect();
        detail.push(format!("data: {}", words.join(" ")));
    }
    Next::Crash(
        format!(
            "internal error, suberror {} ({})",
            internal.suberror,
            match internal.suberror {
                KVM_INTERNAL_ERROR_EMULATION => "an instruction that cannot be emulated",
                2 => "two events at once",
                3 => "an exception while an event was delivered",
                4 => "an exit that nobody handles",
                _ => "unknown",
            }
        ),
        detail,
    )
}

/// Instruction bytes of an emulation failure: flags, then a length byte and up to 15 bytes
/// (`struct kvm_run`, `emulation_failure`).
fn instruction(words: &[u64]) -> Option<String> {
    const BYTES_VALID: u64 = 1;
    let (flags, rest) = words.split_first()?;
    let bytes: Vec<u8> = rest.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (length, bytes) = bytes.split_first()?;
    if flags & BYTES_VALID == 0 {
        return None;
    }
    let bytes = bytes.get(..usize::from(*length).min(15))?;
    Some(
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_bytes() {
        let words = [1, u64::from_le_bytes([3, 0x0f, 0x01, 0xc1, 0, 0, 0, 0]), 0];
        assert_eq!(instruction(&words).as_deref(), Some("0f 01 c1"));
        assert_eq!(instruction(&[0, 3, 0]), None);
        assert_eq!(instruction(&[1]), None);
        assert_eq!(instruction(&[]), None);
    }

    #[test]
    fn the_first_end_stays() {
        let control = Control::new(Arc::default(), Arc::default()).unwrap();
        assert!(!control.ended());
        control.end(Exit::Reset);
        control.end(Exit::Stopped);
        assert!(control.ended());
        assert!(matches!(control.take(), Some(Exit::Reset)));
        assert!(control.event().read().is_ok());
    }
}
