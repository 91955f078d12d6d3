// SPDX-License-Identifier: GPL-2.0
//! What user space may write to the configuration space of a device that it has been given (PCI 3.0 6.2).
//!
//! The guest's configuration space is an emulation in user space; the hardware's is read through it. Of the hardware's
//! registers only bus mastering changes at the guest's wish. Everything else is the kernel's business: base addresses
//! would let the device answer for others' memory, MSI and MSI-X are set up by RVMM_DEVICE_SET_IRQS, decoding stays on
//! so that an access to mapped registers cannot end in a bus error, power and link states are shared with what is
//! around the device.
#![forbid(unsafe_code)]

/// Offset of the command register.
const COMMAND: u32 = 0x04;
/// Its bit for bus mastering.
const MASTER: u32 = 1 << 2;

/// A permitted write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The command register: only this bit of it counts.
    Command {
        /// Bus mastering.
        master: bool,
    },
}

/// What a write of `size` bytes at `offset` means; `None` when it is not permitted.
pub fn write(offset: u32, size: u32, value: u32) -> Option<Write> {
    match (offset, size) {
        (COMMAND, 1 | 2) => Some(Write::Command {
            master: value & MASTER != 0,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_command_register() {
        for size in 0..9 {
            for offset in 0..4200 {
                let want = (offset == 4 && (size == 1 || size == 2)).then_some(true);
                let got = write(offset, size, !0).map(|Write::Command { master }| master);
                assert_eq!(got, want, "{offset} {size}");
            }
        }
        assert_eq!(write(4, 2, !4), Some(Write::Command { master: false }));
    }
}
