// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where things lie in guest-physical memory: devices below 1 GiB, RAM from there on.

/// GICv3's distributor, 64 KiB.
pub const DISTRIBUTOR: u64 = 0x0800_0000;
/// Bytes of the distributor.
pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// The serial port, a 16550 whose registers are bytes.
pub const SERIAL: u64 = 0x0900_0000;
/// The clock, a PL031.
pub const CLOCK: u64 = 0x0901_0000;
/// Bytes of a page with the registers of a device.
pub const PAGE: u64 = 0x1000;
/// Virtio devices, one behind the other.
pub const VIRTIO: u64 = 0x0a00_0000;
/// Bytes from one of them to the next.
pub const VIRTIO_SIZE: u64 = 0x200;
/// The most of them.
pub const VIRTIO_MOST: u32 = 32;
/// The shared interrupt (SPI) of the first one, and the hypervisor's GSI.
pub const VIRTIO_SPI: u32 = 16;
/// GICv3's redistributors, one after the other: room for 512.
pub const REDISTRIBUTORS: u64 = 0x1000_0000;
/// Bytes of one of them.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// First byte of RAM.
pub const RAM: u64 = 0x4000_0000;
/// Where a kernel is loaded, at a multiple of 2 MiB, and code that is none starts; below it lies that code's stack.
pub const KERNEL: u64 = RAM + 0x20_0000;
/// Room for the device tree, at the end of the memory that kernel and initrd are in.
pub const TREE_SIZE: u64 = 0x20_0000;
/// A kernel finds its initrd in the same 1 GiB as itself.
pub const LOW_SIZE: u64 = 1 << 30;

/// Interrupts that the GIC has, the first 32 of which are each CPU's own.
pub const INTERRUPTS: u32 = 128;

/// Where the registers of a virtio device are.
pub const fn virtio(number: u32) -> u64 {
    VIRTIO + VIRTIO_SIZE * number as u64
}

/// `size` bytes of RAM: `(start, length)` pairs.
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    vec![(RAM, size)]
}
