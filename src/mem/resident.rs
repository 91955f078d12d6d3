// SPDX-License-Identifier: GPL-2.0
//! Touching the pages that guests share with the hypervisor. An address without memory is nobody's error: nothing is
//! written.

use crate::linux::gup;
use kernel::prelude::*;

/// Calls `f`, which touches user memory at `hva` without sleeping, until the page is there.
pub(crate) fn resident<T>(hva: usize, mut f: impl FnMut() -> Result<T>) -> Result<T> {
    // The page may go again at once, but hardly three times.
    for _ in 0..3 {
        if let Ok(v) = f() {
            return Ok(v);
        }
        gup::fault_in(hva, true)?;
    }
    f()
}
