// SPDX-License-Identifier: GPL-2.0

//! Running code on other CPUs, and interrupting them.
//!
//! C header: [`include/linux/smp.h`](srctree/include/linux/smp.h)

use core::ptr::{addr_of_mut, null_mut};

use kernel::cpumask::Cpumask;
use kernel::error::to_result;
use kernel::ffi::c_void;
use kernel::prelude::*;

use super::bindings;
use super::preempt::PinsCpu;

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

/// Whether CPU `cpu` can exist.
#[inline]
pub fn possible(cpu: u32) -> bool {
    // SAFETY: The shim checks the number.
    unsafe { bindings::rvmm_cpu_possible(cpu) }
}

/// Whether CPU `cpu` is online; may change at once.
#[inline]
pub fn online(cpu: u32) -> bool {
    // SAFETY: The shim checks the number.
    unsafe { bindings::rvmm_cpu_online(cpu) }
}

/// The CPUs that can exist, in order.
pub fn possible_cpus() -> impl Iterator<Item = u32> {
    (0..nr_cpu_ids()).filter(|cpu| possible(*cpu))
}

/// The mask of online CPUs.
pub fn online_mask() -> &'static Cpumask {
    // SAFETY: The kernel's mask lives for ever; it is read with atomic bit operations.
    unsafe { Cpumask::from_raw(bindings::rvmm_cpu_online_mask()) }
}

/// The mask that holds CPU `cpu` alone, or `None` when it cannot exist.
pub fn mask_of(cpu: u32) -> Option<&'static Cpumask> {
    if cpu >= nr_cpu_ids() {
        return None;
    }
    // SAFETY: The number is in range; the masks live for ever.
    Some(unsafe { Cpumask::from_raw(bindings::rvmm_cpumask_of(cpu)) })
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

/// The interrupt vector that notifies a processor of posted interrupts, whose handler does nothing, if the kernel has one.
#[inline]
pub fn posted_vector() -> Option<u8> {
    // SAFETY: Returns a constant.
    match unsafe { bindings::rvmm_posted_vector() } {
        0 => None,
        n => u8::try_from(n).ok(),
    }
}

/// Interrupts CPU `cpu` with [`posted_vector`]. Any context. Nothing happens when the CPU is not online.
#[inline]
pub fn send_posted(cpu: u32) {
    if online(cpu) {
        // SAFETY: The CPU exists; sending to one that just went offline is harmless.
        unsafe { bindings::rvmm_send_posted(cpu) };
    }
}

/// Enables interrupts, and has interrupt `vector` arrive there and then.
///
/// # Safety
///
/// The processor has taken this interrupt from its local APIC and not delivered it; the kernel uses its IDT (not FRED).
/// Interrupts are off, and the caller is about to enable them.
#[inline]
pub unsafe fn host_interrupt(vector: u8) {
    // SAFETY: The caller's promise: the handler finds what it would find after the processor's own delivery, at a place where
    // interrupts may be on.
    unsafe { bindings::rvmm_host_interrupt(vector) };
}

struct Call<F> {
    f: Option<F>,
}

/// # Safety
///
/// `info` points to a `Call<F>` that nobody else uses meanwhile.
unsafe extern "C" fn call_once<F: FnOnce()>(info: *mut c_void) {
    // SAFETY: `call_on_cpu` passes a `Call<F>` and waits, so nobody else uses it now.
    let call = unsafe { &mut *info.cast::<Call<F>>() };
    if let Some(f) = call.f.take() {
        f();
    }
}

/// Runs `f` on CPU `cpu` in hard-interrupt context and waits for it.
///
/// Interrupts are on in the caller. `f` must not sleep. Errors: `ENXIO` when the CPU is not online.
pub fn call_on_cpu<R: Send>(cpu: u32, f: impl FnOnce() -> R + Send) -> Result<R> {
    fn run<G: FnOnce()>(cpu: u32, g: G) -> Result {
        let mut call = Call { f: Some(g) };
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

/// # Safety
///
/// `info` points to a live `F`.
unsafe extern "C" fn call_shared<F: Fn() + Sync>(info: *mut c_void) {
    // SAFETY: The caller waits, so the closure is live; it is `Sync`.
    unsafe { (*info.cast::<F>())() };
}

/// Runs `f` on every online CPU of `mask`, this one included, and waits. `f` runs with interrupts off and
/// must not sleep; interrupts are on in the caller.
pub fn call_on_mask<F: Fn() + Sync>(mask: &Cpumask, f: &F) {
    // SAFETY: The call waits, so `f` outlives its use; the function only reads `mask` and `f`.
    unsafe {
        bindings::on_each_cpu_cond_mask(
            None,
            Some(call_shared::<F>),
            core::ptr::from_ref(f).cast_mut().cast(),
            true,
            mask.as_raw(),
        )
    };
}

/// Runs `f` on every online CPU and waits; see [`call_on_mask`].
pub fn on_each_cpu<F: Fn() + Sync>(f: &F) {
    call_on_mask(online_mask(), f);
}

/// # Safety
///
/// None; the type is what the kernel calls.
unsafe extern "C" fn nothing(_info: *mut c_void) {}

/// Interrupts every online CPU of `mask` but this one. With `wait` it returns when each has taken the
/// interrupt, which is a full barrier; interrupts are on in the caller then.
pub fn kick_mask(_pinned: &impl PinsCpu, mask: &Cpumask, wait: bool) {
    // SAFETY: The function takes no argument; preemption is off as the guard shows.
    unsafe { bindings::smp_call_function_many(mask.as_raw(), Some(nothing), null_mut(), wait) };
}
