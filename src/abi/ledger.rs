// SPDX-License-Identifier: GPL-2.0
//! Where a vCPU's counters are.

use crate::abi::stats::{Values, VcpuStats};
use crate::linux::once::Once;
use kernel::prelude::*;
use kernel::sync::Arc;

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

    #[cold]
    fn zeros() -> Result<KVBox<VcpuStats>> {
        let stats = KVBox::<VcpuStats>::new_uninit(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
        // SAFETY: The memory is zeroed, and the type consists of atomic integers, for which zero is a value.
        Ok(unsafe { stats.assume_init() })
    }
}

impl Values for VcpuLedger {
    fn value(&self, word: usize) -> u64 {
        self.stats.get().map_or(0, |s| s.value(word))
    }
}
