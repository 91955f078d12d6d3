// SPDX-License-Identifier: GPL-2.0

//! Other CPUs: which there are, running code on them, and interrupting them.
//!
//! C header: [`include/linux/smp.h`](srctree/include/linux/smp.h)

use core::ptr::{addr_of_mut, null_mut};

use kernel::error::to_result;
use kernel::ffi::c_void;
use kernel::prelude::*;

use super::bindings;
use super::preempt::PreemptGuard;

/// One more than the highest CPU number that can exist.
#[inline]
pub fn nr_cpu_ids() -> u32 {
    // SAFETY: Constant after boot.
    unsafe { bindings::rvmm_nr_cpu_ids() }
}

/// Number of CPUs that are online; may change at once.
#[inline]
pub fn num_online() -> u32 {
    // SAFETY: Reads a counter.
    unsafe { bindings::rvmm_num_online_cpus() }
}

/// Whether CPU `cpu` is online; may change at once.
#[inline]
pub fn online(cpu: u32) -> bool {
    // SAFETY: The shim checks the number.
    unsafe { bindings::rvmm_cpu_online(cpu) }
}

/// Interrupts CPU `cpu` with the reschedule vector, which has no handler work of its own: what it does is
/// to bring the CPU into the kernel. Any context. Nothing happens when the CPU is not online.
#[inline]
pub fn send_reschedule(cpu: u32) {
    if online(cpu) {
        // SAFETY: The CPU exists; sending to one that just went offline is harmless.
        unsafe { bindings::rvmm_send_reschedule(cpu) };
    }
}

/// # Safety
///
/// `info` points to an `Option<F>` that nobody else uses meanwhile.
unsafe extern "C" fn call_once<F: FnOnce()>(info: *mut c_void) {
    // SAFETY: `call_on_cpu` passes an `Option<F>` and waits, so nobody else uses it now.
    if let Some(f) = unsafe { &mut *info.cast::<Option<F>>() }.take() {
        f();
    }
}

/// Runs `f` on CPU `cpu` in hard-interrupt context and waits for it.
///
/// Interrupts are on in the caller. `f` must not sleep. Errors: `ENXIO` when the CPU is not online.
pub fn call_on_cpu<R: Send>(cpu: u32, f: impl FnOnce() -> R + Send) -> Result<R> {
    fn run<G: FnOnce()>(cpu: u32, g: G) -> Result {
        let mut call = Some(g);
        // SAFETY: The call waits, so `call` outlives its use on the other CPU.
        to_result(unsafe {
            bindings::smp_call_function_single(
                cpu as i32,
                Some(call_once::<G>),
                addr_of_mut!(call).cast(),
                true,
            )
        })
    }
    if cpu >= nr_cpu_ids() {
        return Err(ENXIO);
    }
    let mut result = None;
    run(cpu, || result = Some(f()))?;
    result.ok_or(ENXIO)
}

/// Some of the CPUs.
pub struct CpuSet(KBox<bindings::cpumask>);

impl CpuSet {
    /// None. Sleeps. Errors: `ENOMEM`.
    pub fn new() -> Result<Self> {
        let zeros = pin_init::init_zeroed::<bindings::cpumask>();
        Ok(Self(KBox::init(zeros, GFP_KERNEL_ACCOUNT)?))
    }

    /// Adds CPU `cpu`, if there can be one of that number.
    #[inline]
    pub fn insert(&mut self, cpu: u32) {
        if let Some(word) = self.0.bits.get_mut((cpu / usize::BITS) as usize) {
            *word |= 1 << (cpu % usize::BITS);
        }
    }

    /// Interrupts all of them at once, but for the calling one and those that are not online, and returns when each has
    /// taken the interrupt. The set is empty then.
    ///
    /// Interrupts are on in the caller, which may hold spin locks that no interrupt handler takes.
    pub fn interrupt(&mut self) {
        extern "C" fn nothing(_info: *mut c_void) {}
        let pinned = PreemptGuard::new();
        // SAFETY: The mask has all bits that a mask can have; the function needs no argument; preemption is off.
        unsafe { bindings::smp_call_function_many(&*self.0, Some(nothing), null_mut(), true) };
        drop(pinned);
        let words = nr_cpu_ids().div_ceil(usize::BITS) as usize;
        self.0.bits.iter_mut().take(words).for_each(|w| *w = 0);
    }
}
