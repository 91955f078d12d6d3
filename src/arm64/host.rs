// SPDX-License-Identifier: GPL-2.0
//! Which hosts guests can run on.
#![forbid(unsafe_code)]

/// What the host is like.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Exception level that the kernel runs at.
    pub level: u8,
    /// The interrupt controller is a GICv3 or GICv4 whose registers in the processor the kernel uses.
    pub gicv3: bool,
    /// The kernel masks interrupts by their priority (pseudo-NMI).
    pub masks_by_priority: bool,
    /// Size of the kernel's pages in bytes.
    pub page_size: usize,
    /// Bits of a physical address that the processor has.
    pub address_bits: u32,
}

impl Host {
    /// Why guests cannot run there; `None`: they can.
    pub fn refusal(&self) -> Option<&'static str> {
        // Below EL2 nothing of what the others are about could be used.
        if self.level != 2 {
            return Some(
                "the kernel does not run at EL2: the processor lacks VHE (Armv8.1), or does not start in EL2, or \
                 kvm-arm.mode=nvhe or protected is on the command line",
            );
        }
        if self.page_size != 4096 {
            return Some("the kernel's pages are larger than 4 KiB");
        }
        if self.masks_by_priority {
            return Some(
                "the kernel masks interrupts by their priority (irqchip.gicv3_pseudo_nmi=1 on the command line), and \
                 an NMI could interrupt a world switch",
            );
        }
        if !self.gicv3 {
            return Some("the interrupt controller is no GICv3 with registers in the processor");
        }
        if self.address_bits < 40 {
            return Some("physical addresses have fewer than 40 bits, which is what guests have");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Host = Host {
        level: 2,
        gicv3: true,
        masks_by_priority: false,
        page_size: 4096,
        address_bits: 40,
    };

    #[test]
    fn one_reason_each() {
        assert_eq!(GOOD.refusal(), None);
        let bad = [
            (Host { level: 1, ..GOOD }, "EL2"),
            (
                Host {
                    gicv3: false,
                    ..GOOD
                },
                "GICv3",
            ),
            (
                Host {
                    masks_by_priority: true,
                    ..GOOD
                },
                "priority",
            ),
            (
                Host {
                    page_size: 16384,
                    ..GOOD
                },
                "4 KiB",
            ),
            (
                Host {
                    address_bits: 36,
                    ..GOOD
                },
                "40 bits",
            ),
            (
                Host {
                    page_size: 65536,
                    ..GOOD
                },
                "4 KiB",
            ),
        ];
        for (host, word) in bad {
            assert!(host.refusal().is_some_and(|r| r.contains(word)), "{host:?}");
        }
        // At EL1 that is what is said, whatever else there is.
        let worst = Host {
            level: 1,
            gicv3: false,
            masks_by_priority: true,
            page_size: 16384,
            address_bits: 32,
        };
        assert!(worst.refusal().is_some_and(|r| r.contains("EL2")));
    }
}
