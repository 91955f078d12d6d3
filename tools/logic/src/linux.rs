// SPDX-License-Identifier: GPL-2.0
//! What pure logic needs of the kernel's interfaces: functions that the module has as instructions.

/// Indices under speculation.
pub mod nospec {
    /// All ones if `index` is below `len`, else zero.
    pub fn index_mask(index: usize, len: usize) -> usize {
        usize::from(index < len).wrapping_neg()
    }
}
