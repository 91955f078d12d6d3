// SPDX-License-Identifier: GPL-2.0
//! What reaches a VM from outside its vCPUs: eventfds, lines, coalesced writes, wake-ups.

pub(crate) mod coalesced;
pub(crate) mod ioeventfd;
pub(crate) mod irqfd;
pub(crate) mod line;
pub(crate) mod set;
