// SPDX-License-Identifier: GPL-2.0

//! What the current task has to attend to.
//!
//! C headers: [`include/linux/sched.h`](srctree/include/linux/sched.h),
//! [`include/linux/entry-virt.h`](srctree/include/linux/entry-virt.h)

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use kernel::error::to_result;
use kernel::prelude::*;
use kernel::static_lock_class;

use kernel::mm::Mm;
use kernel::sync::aref::ARef;

use super::bindings;
use super::irqflags::IrqGuard;
use super::spin_irq::RawSpin;

/// The address space of the current task, or `None` for a kernel thread.
///
/// The reference keeps the `mm_struct`, not the mappings.
pub fn current_mm() -> Option<ARef<Mm>> {
    // SAFETY: The current task's address space lives at least as long as this call.
    let mm = unsafe { bindings::rvmm_current_mm() };
    if mm.is_null() {
        return None;
    }
    // SAFETY: The address space is live as said above, and the result takes its own reference.
    Some(unsafe { Mm::from_raw(mm) }.into())
}

/// Whether `mm` is the address space of the current task.
#[inline]
pub fn is_current_mm(mm: &Mm) -> bool {
    // SAFETY: Reads a pointer of the current task.
    core::ptr::eq(unsafe { bindings::rvmm_current_mm() }, mm.as_raw())
}

/// Whether the current task may use devices directly (CAP_SYS_RAWIO).
pub fn capable_rawio() -> bool {
    // SAFETY: Looks at the task's credentials.
    unsafe { bindings::capable(bindings::CAP_SYS_RAWIO as i32) }
}

/// Whether a signal waits for the current task.
#[inline]
pub fn signal_pending() -> bool {
    // SAFETY: Reads the task's flags.
    unsafe { bindings::rvmm_signal_pending() }
}

/// Whether the current task is being killed.
#[inline]
pub fn fatal_signal_pending() -> bool {
    // SAFETY: Reads the task's flags and pending set.
    unsafe { bindings::rvmm_fatal_signal_pending() }
}

/// Sends the current task SIGBUS with BUS_MCEERR_AR, as for an access of its own: the memory behind the page at user
/// address `hva` is broken.
#[cold]
pub fn signal_poisoned(hva: usize) {
    // SAFETY: Queues a signal; the address is only told.
    unsafe { bindings::rvmm_signal_poisoned(hva) };
}

/// How long the current task has waited for a CPU since it began, in nanoseconds.
#[inline]
pub fn run_delay() -> u64 {
    // SAFETY: Reads a word of the current task, which changes only when the task is switched.
    unsafe { bindings::rvmm_run_delay() }
}

/// How long the current task has run since it began, its guest included, in nanoseconds. Sleeps not, but not for
/// interrupts.
pub fn run_time() -> u64 {
    // SAFETY: Reads the current task's accounts, with locks that are free in process context.
    unsafe { bindings::rvmm_run_time() }
}

/// A reference to a thread's `struct pid`; null for none.
struct PidRef(*mut bindings::pid);

// SAFETY: Reference counts of `struct pid` may be used from any thread.
unsafe impl Send for PidRef {}

impl Drop for PidRef {
    fn drop(&mut self) {
        // SAFETY: Our own reference, or null, which is allowed.
        unsafe { bindings::put_pid(self.0) };
    }
}

/// The thread that does something now and then, for others that want to give it their turn.
#[pin_data]
pub struct Worker {
    /// The same pointer as in `pid`, for a comparison without the lock.
    current: AtomicPtr<bindings::pid>,
    #[pin]
    pid: RawSpin<PidRef>,
}

impl Worker {
    /// A worker that has no thread yet.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            current: AtomicPtr::new(null_mut()),
            pid <- RawSpin::new(PidRef(null_mut()), c"Worker.pid", static_lock_class!()),
        })
    }

    /// The worker is the calling thread from now on.
    #[inline]
    pub fn set_current(&self) {
        // SAFETY: A pointer of the current task. It is only compared; what `current` points to is kept by `pid`, so
        // the same address means the same thread.
        if self.current.load(Ordering::Relaxed) != unsafe { bindings::rvmm_current_pid() } {
            self.change();
        }
    }

    #[cold]
    fn change(&self) {
        // SAFETY: Takes a reference to a structure of the current task.
        let new = unsafe { bindings::rvmm_get_current_pid() };
        let old = {
            let mut pid = self.pid.lock();
            self.current.store(new, Ordering::Relaxed);
            core::mem::replace(&mut *pid, PidRef(new))
        };
        drop(old);
    }

    /// Has the thread run in place of the calling one, if it is runnable and does not run. Sleeps.
    ///
    /// `Some(true)`: it will. `Some(false)`: not now. `None`: there is no use in trying others (`ESRCH` of
    /// `yield_to()`: this CPU and that one have nothing else to do).
    pub fn yield_to(&self) -> Option<bool> {
        let task = {
            let Some(pid) = self.pid.try_lock() else {
                return Some(false);
            };
            if pid.0.is_null() {
                return Some(false);
            }
            // SAFETY: The reference is ours while the lock is held.
            unsafe { bindings::rvmm_get_pid_task(pid.0) }
        };
        if task.is_null() {
            return Some(false);
        }
        // SAFETY: The reference to the task goes to the callee; the caller may sleep.
        match unsafe { bindings::rvmm_yield_to_and_put(task) } {
            n if n < 0 => None,
            n => Some(n > 0),
        }
    }
}

/// Whether the current task may spin for a moment: no other one wants its CPU.
#[inline]
pub fn may_spin() -> bool {
    // SAFETY: Reads the CPU's run queue and the task's flags.
    unsafe { bindings::rvmm_may_spin() }
}

/// Lets another task run if one should. Sleeps.
#[inline]
pub fn cond_resched() {
    // SAFETY: The caller may sleep.
    unsafe { bindings::rvmm_cond_resched() };
}

/// Whether signals, rescheduling or task work wait, which have to be handled before a long stay away from
/// the kernel. The last look is with interrupts off: what comes later raises an interrupt.
#[inline]
pub fn xfer_to_guest_pending() -> bool {
    // SAFETY: Reads the task's flags.
    unsafe { bindings::rvmm_xfer_to_guest_pending() }
}

/// The current task's time is a guest's from now on, until [`guest_exit`] (`guest` and `guest_nice` of `/proc/stat`).
#[inline]
pub fn guest_enter(_irqs_off: &IrqGuard) {
    // SAFETY: Interrupts are off.
    unsafe { bindings::rvmm_guest_enter() };
}

/// Tells RCU that a guest ran, in which the CPU held on to nothing.
///
/// Like a function that sleeps, it ends read-side sections of RCU where the kernel is not preemptible: call it in none.
#[inline]
pub fn guest_quiescent(_irqs_off: &IrqGuard) {
    // SAFETY: Interrupts are off.
    unsafe { bindings::rvmm_guest_quiescent() };
}

/// The end of [`guest_enter`], after the interrupt that ended the guest's time.
#[inline]
pub fn guest_exit() {
    // SAFETY: Writes the current task's flags and times.
    unsafe { bindings::rvmm_guest_exit() };
}

/// Handles rescheduling and task work. Sleeps. Errors: `EINTR` when a signal is pending.
pub fn xfer_to_guest_handle() -> Result {
    // SAFETY: Called with interrupts on from a task that may sleep.
    to_result(unsafe { bindings::xfer_to_guest_mode_handle_work() })
}

/// A signal mask in the kernel's layout: bit `n` blocks signal `n + 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalMask(pub u64);

/// The current task's signal mask is another one while the guard lives.
pub struct SignalMaskGuard {
    old: bindings::sigset_t,
}

impl SignalMaskGuard {
    /// Sets the current task's mask to `mask`; SIGKILL and SIGSTOP stay deliverable.
    pub fn new(mask: SignalMask) -> Self {
        const SIGKILL: u64 = 1 << 8;
        const SIGSTOP: u64 = 1 << 18;
        let set = bindings::sigset_t {
            sig: [(mask.0 & !(SIGKILL | SIGSTOP)) as usize],
        };
        let mut old = bindings::sigset_t { sig: [0] };
        // SAFETY: Both sets are valid for the call.
        unsafe { bindings::rvmm_sigmask_set(&set, &mut old) };
        Self { old }
    }
}

impl Drop for SignalMaskGuard {
    fn drop(&mut self) {
        let mut ignored = bindings::sigset_t { sig: [0] };
        // SAFETY: Both sets are valid for the call.
        unsafe { bindings::rvmm_sigmask_set(&self.old, &mut ignored) };
    }
}
