// SPDX-License-Identifier: GPL-2.0
//! Whether a vCPU is in system management mode, and what waits for its beginning or its end (SDM 3C 32.2, 32.3; APM 2
//! 10.3). This is data; what is done with it stands in `vcpu::smm` and `run::smm`.
#![forbid(unsafe_code)]

/// System management mode of one vCPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Smm {
    /// The vCPU is in it.
    pub(crate) active: bool,
    /// NMIs were blocked when it began, and are when it ends.
    pub(crate) inside_nmi: bool,
    /// An SMI waits.
    pub(crate) pending: bool,
    /// INIT came in SMM, and waits for its end.
    pub(crate) latched_init: bool,
}

impl Smm {
    /// The vCPU is in it.
    #[inline(always)]
    pub(crate) const fn is_active(&self) -> bool {
        self.active
    }

    /// An SMI can be taken, as soon as the vCPU is between two instructions.
    #[inline(always)]
    pub(crate) const fn is_due(&self) -> bool {
        self.pending && !self.active
    }
}
