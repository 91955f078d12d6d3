// SPDX-License-Identifier: GPL-2.0
//! Debug registers: the host's are kept while a guest has breakpoints of its own (APM 2 13.1, 15.5.1).
//!
//! VMRUN switches DR6 and DR7; DR0 to DR3 are exchanged here. Called by `vcpu` at the ends of a stay and before an
//! entry, with interrupts off.

use crate::linux::cr;

/// DR7 after RESET, and after every #VMEXIT: no breakpoint is enabled.
const DR7_RESET: u64 = 0x400;
/// DR6 after RESET.
pub(super) const DR6_RESET: u64 = 0xffff_0ff0;
/// DR7 L0-3 and G0-3.
const DR7_ENABLES: u64 = 0xff;

/// The host's debug registers during a stay.
pub(super) struct HostDebug {
    dr7: u64,
    /// DR0 to DR3, while the guest's are loaded, and those.
    dr: Option<([u64; 4], [u64; 4])>,
}

impl HostDebug {
    /// Nothing is kept.
    pub(super) const NONE: Self = Self {
        dr7: DR7_RESET,
        dr: None,
    };

    /// Keeps the host's DR7 and switches its breakpoints off.
    #[inline]
    pub(super) fn begin_stay(&mut self) {
        self.dr7 = cr::dr7();
        if self.dr7 & DR7_ENABLES != 0 {
            // SAFETY: `end_stay` puts the value back; a host breakpoint must not fire between the loading of guest
            // addresses.
            unsafe { cr::write_dr7(DR7_RESET) };
        }
    }

    /// Loads the guest's breakpoint addresses `dr`, if its `dr7` enables any and they are not there yet.
    #[inline]
    pub(super) fn load(&mut self, dr7: u64, dr: [u64; 4]) {
        if dr7 & DR7_ENABLES == 0 || self.dr.is_some_and(|d| d.1 == dr) {
            return;
        }
        let own = self.dr.map_or_else(cr::dr0123, |d| d.0);
        self.dr = Some((own, dr));
        // SAFETY: Host breakpoints are off (`begin_stay` and every #VMEXIT have left DR7 without enables), so these
        // registers take effect only through the guest's DR7 in the VMCB.
        unsafe { cr::write_dr0123(dr) };
    }

    /// Puts the host's registers back. `dr6` is the guest's, as the last #VMEXIT saved it.
    #[inline]
    pub(super) fn end_stay(&mut self, dr6: u64) {
        // SAFETY: The registers get the values that they had before the stay, addresses before enables.
        unsafe {
            if let Some((own, _)) = self.dr.take() {
                cr::write_dr0123(own);
            }
            if self.dr7 != DR7_RESET {
                cr::write_dr7(self.dr7);
            }
            // VMRUN loads DR6 and #VMEXIT keeps it; its bits stick, and the host's next #DB would take the guest's
            // for its own.
            if dr6 != DR6_RESET {
                cr::write_dr6(DR6_RESET);
            }
        }
    }
}
