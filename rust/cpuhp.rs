// SPDX-License-Identifier: GPL-2.0

//! Callbacks for CPUs that come online and go offline.
//!
//! C header: [`include/linux/cpuhotplug.h`](srctree/include/linux/cpuhotplug.h)

use core::marker::PhantomData;

use kernel::error::from_result;
use kernel::ffi::{c_int, c_uint};
use kernel::prelude::*;

use super::bindings;

/// What to do on a CPU that comes or goes. Both run on that CPU, in a task that is bound to it and may
/// sleep, with interrupts on.
pub trait CpuHotplug: 'static {
    /// The CPU is coming online; an error keeps it offline.
    fn online(cpu: u32) -> Result;

    /// The CPU is going offline, or the registration is dropped.
    fn offline(cpu: u32);
}

/// A registered pair of callbacks (`CPUHP_AP_ONLINE_DYN`).
///
/// Dropping it calls [`CpuHotplug::offline`] on every online CPU.
pub struct Registration<T: CpuHotplug> {
    state: bindings::cpuhp_state,
    _ops: PhantomData<fn() -> T>,
}

impl<T: CpuHotplug> Registration<T> {
    /// Registers the callbacks under `name` and calls [`CpuHotplug::online`] on every online CPU.
    ///
    /// When one of them fails, the others are called off again and its error is returned. Sleeps.
    pub fn new(name: &'static CStr) -> Result<Self> {
        // SAFETY: The name is static and the callbacks live in this module, which outlives `self`: the
        // registration is dropped before the module goes.
        let state = unsafe {
            bindings::__cpuhp_setup_state(
                bindings::cpuhp_state_CPUHP_AP_ONLINE_DYN,
                name.as_char_ptr(),
                true,
                Some(online::<T>),
                Some(offline::<T>),
                false,
            )
        };
        if state < 0 {
            return Err(Error::from_errno(state));
        }
        Ok(Self {
            state: state as bindings::cpuhp_state,
            _ops: PhantomData,
        })
    }
}

impl<T: CpuHotplug> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: The state is ours.
        unsafe { bindings::__cpuhp_remove_state(self.state, true) };
    }
}

unsafe extern "C" fn online<T: CpuHotplug>(cpu: c_uint) -> c_int {
    from_result(|| T::online(cpu).map(|()| 0))
}

unsafe extern "C" fn offline<T: CpuHotplug>(cpu: c_uint) -> c_int {
    T::offline(cpu);
    0
}
