// SPDX-License-Identifier: GPL-2.0

//! One value for each CPU that can exist, by number.
//!
//! An array, not the kernel's per-CPU sections: those are reached by inline assembler on symbols that a
//! Rust static cannot be.

use kernel::prelude::*;

use super::preempt::PinsCpu;
use super::smp;

/// A value on cache lines of its own.
#[repr(align(128))]
struct Padded<T>(T);

/// One `T` for each possible CPU.
pub struct PerCpu<T> {
    /// Indexed by CPU number; numbers that cannot exist have a value too, which nobody uses.
    values: KVec<KBox<Padded<T>>>,
}

impl<T> PerCpu<T> {
    /// Makes a value for every CPU number below `nr_cpu_ids`. Sleeps. Errors: `ENOMEM`, those of `make`.
    pub fn new(mut make: impl FnMut(u32) -> Result<T>) -> Result<Self> {
        let count = smp::nr_cpu_ids();
        let mut values = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for cpu in 0..count {
            values.push(KBox::new(Padded(make(cpu)?), GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(Self { values })
    }

    /// The value of CPU `cpu`, from any CPU.
    #[inline]
    pub fn of(&self, cpu: u32) -> Option<&T>
    where
        T: Sync,
    {
        self.values.get(cpu as usize).map(|v| &v.0)
    }

    /// This CPU's value, for as long as the task is pinned here. `None` never happens on a sane kernel.
    ///
    /// Others may reach it too ([`PerCpu::of`]), or an interrupt on this CPU: `T` is `Sync` or the guard
    /// is an [`IrqGuard`](super::irqflags::IrqGuard).
    #[inline]
    pub fn this<'a>(&'a self, pinned: &'a impl PinsCpu) -> Option<&'a T>
    where
        T: Sync,
    {
        self.of(pinned.cpu())
    }
}
