// SPDX-License-Identifier: GPL-2.0

//! The vector registers, for the kernel's own use for a while.
//!
//! C header: [`arch/arm64/include/asm/neon.h`](srctree/arch/arm64/include/asm/neon.h)

use core::mem::ManuallyDrop;

use kernel::prelude::*;

use crate::linux::bindings;

/// V0 to V31, FPSR and FPCR (`struct user_fpsimd_state`).
#[derive(Clone)]
#[repr(C, align(16))]
pub struct Vectors {
    /// V0 to V31.
    pub v: [u128; 32],
    /// FPSR.
    pub fpsr: u32,
    /// FPCR.
    pub fpcr: u32,
    reserved: [u32; 2],
}

const _: () = {
    assert!(size_of::<Vectors>() == size_of::<bindings::user_fpsimd_state>());
    assert!(align_of::<Vectors>() >= align_of::<bindings::user_fpsimd_state>());
};

impl Vectors {
    /// All zero.
    pub const ZERO: Self = Self {
        v: [0; 32],
        fpsr: 0,
        fpcr: 0,
        reserved: [0; 2],
    };
}

/// The vector registers are not the task's until [`KernelNeon::end`]: they can be changed at will.
#[must_use = "the registers have to become the task's again"]
pub struct KernelNeon(ManuallyDrop<KBox<Vectors>>);

impl KernelNeon {
    /// Saves what the task has in them. `room` is for the registers while the task is not running. Process context,
    /// interrupts on; not where the task has such a value already.
    pub fn begin(mut room: KBox<Vectors>) -> Self {
        let state: *mut Vectors = &mut *room;
        // SAFETY: Of the same layout, and nobody else's until the end.
        unsafe { bindings::kernel_neon_begin(state.cast()) };
        Self(ManuallyDrop::new(room))
    }

    /// The registers are the task's again; gives the room back. Interrupts are on.
    pub fn end(mut self) -> KBox<Vectors> {
        let state: *mut Vectors = &mut **self.0;
        // SAFETY: Ends what `begin` began, with the same room.
        unsafe { bindings::kernel_neon_end(state.cast()) };
        // SAFETY: Taken out once: `self` is gone, and dropping it does nothing.
        unsafe { ManuallyDrop::take(&mut self.0) }
    }
}
