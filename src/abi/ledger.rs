// SPDX-License-Identifier: GPL-2.0
//! Where a vCPU's counters are. KVM_RUN makes them and writes them; the statistics file reads them without a lock.

use crate::abi::stats::{Values, VcpuStats};
use crate::linux::once::Once;
use core::sync::atomic::AtomicU64;
use kernel::prelude::*;
use kernel::sync::Arc;
use pin_init::init_array_from_fn;

/// A vCPU's statistics, too large for the stack.
pub(crate) struct VcpuLedger {
    pub(crate) id: u32,
    /// There from the first KVM_RUN on, and zero until then.
    stats: Once<KVBox<VcpuStats>>,
}

impl VcpuLedger {
    /// All zeros.
    pub(crate) fn new(id: u32) -> Result<Arc<Self>> {
        let stats = Once::new();
        Ok(Arc::new(Self { id, stats }, GFP_KERNEL_ACCOUNT)?)
    }

    /// The counters, for the one who runs the vCPU. Errors: ENOMEM.
    #[inline]
    pub(crate) fn counters(&self) -> Result<&VcpuStats> {
        self.stats.get_or_make(Self::zeros)
    }

    /// Built in place: the stack is too small for it.
    #[cold]
    fn zeros() -> Result<KVBox<VcpuStats>> {
        let zero = |_| AtomicU64::new(0);
        let zeros = init!(VcpuStats {
            counters <- init_array_from_fn(zero),
            exits <- init_array_from_fn(zero),
            cycles <- init_array_from_fn(|_| init_array_from_fn(zero)),
            histograms <- init_array_from_fn(|_| init_array_from_fn(zero)),
        });
        KVBox::init(zeros, GFP_KERNEL_ACCOUNT)
    }
}

impl Values for VcpuLedger {
    fn value(&self, word: usize) -> u64 {
        self.stats.get().map_or(0, |s| s.value(word))
    }
}
