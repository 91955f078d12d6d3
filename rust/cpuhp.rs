// SPDX-License-Identifier: GPL-2.0

//! Callbacks for CPUs that come online and go offline.
//!
//! C header: [`include/linux/cpuhotplug.h`](srctree/include/linux/cpuhotplug.h)

use kernel::error::{from_result, to_result};
use kernel::ffi::{c_int, c_uint, c_void};
use kernel::prelude::*;
use kernel::types::Opaque;

use super::bindings;

/// What to do on a CPU that comes or goes. Both run on that CPU, in a task that is bound to it and may
/// sleep, with interrupts on.
pub trait CpuHotplug: Send + Sync + 'static {
    /// The CPU is coming online; an error keeps it offline.
    fn online(&self, cpu: u32) -> Result;

    /// The CPU is going offline, or the registration is dropped.
    fn offline(&self, cpu: u32);
}

#[repr(C)]
#[pin_data]
struct Inner<T> {
    /// First, so that the C pointer is also the pointer to `Inner`.
    #[pin]
    node: Opaque<bindings::hlist_node>,
    data: T,
}

/// A registered pair of callbacks (`CPUHP_AP_ONLINE_DYN`).
///
/// Dropping it calls [`CpuHotplug::offline`] on every online CPU.
///
/// # Invariants
///
/// The node of `inner` is an instance of `state`.
pub struct State<T: CpuHotplug> {
    state: bindings::cpuhp_state,
    inner: Pin<KBox<Inner<T>>>,
}

// SAFETY: Nothing of it belongs to a task; the data is `Send`.
unsafe impl<T: CpuHotplug> Send for State<T> {}
// SAFETY: Shared references reach nothing.
unsafe impl<T: CpuHotplug> Sync for State<T> {}

impl<T: CpuHotplug> State<T> {
    /// Registers the callbacks of `data` under `name`; with `invoke` it calls [`CpuHotplug::online`] on
    /// every CPU that is online now.
    ///
    /// When one of them fails, the others are called off again and its error is returned. Sleeps.
    /// Without `invoke` nothing is called on drop either.
    pub fn register(name: &'static CStr, data: T, invoke: bool) -> Result<Self> {
        let inner = KBox::pin_init(
            pin_init!(Inner {
                node: Opaque::zeroed(),
                data,
            }),
            GFP_KERNEL,
        )?;
        let state = Self::add(name, &inner, invoke)?;
        Ok(Self { state, inner })
    }

    fn add(name: &'static CStr, inner: &Inner<T>, invoke: bool) -> Result<bindings::cpuhp_state> {
        type Single = unsafe extern "C" fn(c_uint) -> c_int;
        type Multi = unsafe extern "C" fn(c_uint, *mut bindings::hlist_node) -> c_int;

        let (up, down): (Multi, Multi) = (online::<T>, offline::<T>);
        // SAFETY: A multi-instance state takes callbacks of this other type through the same parameter, as
        // `cpuhp_setup_state_multi` does.
        let (up, down) = unsafe {
            (
                core::mem::transmute::<Multi, Single>(up),
                core::mem::transmute::<Multi, Single>(down),
            )
        };
        // SAFETY: The name is static, and the state is removed before the module goes.
        let state = unsafe {
            bindings::__cpuhp_setup_state(
                bindings::cpuhp_state_CPUHP_AP_ONLINE_DYN,
                name.as_char_ptr(),
                false,
                Some(up),
                Some(down),
                true,
            )
        };
        if state < 0 {
            return Err(Error::from_errno(state));
        }
        let state = state as bindings::cpuhp_state;
        // SAFETY: The node is zeroed memory that stays where it is until it is removed.
        let added = to_result(unsafe {
            bindings::__cpuhp_state_add_instance(state, inner.node.get(), invoke)
        });
        if let Err(e) = added {
            // SAFETY: The state is ours and has no instance.
            unsafe { bindings::__cpuhp_remove_state(state, false) };
            return Err(e);
        }
        Ok(state)
    }
}

impl<T: CpuHotplug> Drop for State<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant the node is an instance of the state, which is ours. No callback runs after this.
        unsafe {
            bindings::__cpuhp_state_remove_instance(self.state, self.inner.node.get(), true);
            bindings::__cpuhp_remove_state(self.state, false);
        }
    }
}

/// # Safety
///
/// Called by the kernel with the node of a registered `Inner<T>`.
unsafe extern "C" fn online<T: CpuHotplug>(cpu: c_uint, node: *mut bindings::hlist_node) -> c_int {
    // SAFETY: `Inner` starts with the node and lives while it is an instance.
    let inner = unsafe { &*node.cast::<c_void>().cast::<Inner<T>>() };
    from_result(|| inner.data.online(cpu).map(|()| 0))
}

/// # Safety
///
/// Called by the kernel with the node of a registered `Inner<T>`.
unsafe extern "C" fn offline<T: CpuHotplug>(cpu: c_uint, node: *mut bindings::hlist_node) -> c_int {
    // SAFETY: `Inner` starts with the node and lives while it is an instance.
    unsafe { &*node.cast::<c_void>().cast::<Inner<T>>() }
        .data
        .offline(cpu);
    0
}
