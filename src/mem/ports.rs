// SPDX-License-Identifier: GPL-2.0
//! What guest memory asks of others. It names none of them; they come in through these traits.

/// The vCPUs whose translations guest memory changes.
pub(crate) trait StopRunning: Send + Sync {
    /// Returns after every vCPU that was in the guest has left it. Interrupts are on; may be called under a spin lock.
    fn stop_running(&self);
}
