// SPDX-License-Identifier: GPL-2.0
//! The interrupt controllers of a VM and the ways into them.

use crate::irq::msg::Message;
use crate::mem::memory::GuestMemory;
use crate::uapi::k;
use kernel::prelude::*;
use kernel::sync::Arc;

/// IOAPIC, 8259s, 8254, GSI routing, irqfds and ioeventfds of one VM.
pub(crate) struct IrqChip {
    memory: Arc<GuestMemory>,
}

impl IrqChip {
    /// A VM without any interrupt controller in the kernel.
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { memory }, GFP_KERNEL_ACCOUNT)?)
    }

    /// Local APICs are in the kernel (full or split irqchip). Fixed before the first vCPU.
    pub(crate) fn has_lapic(&self) -> bool {
        false
    }

    /// 8259s and IOAPIC are in the kernel (full irqchip).
    pub(crate) fn has_pic(&self) -> bool {
        false
    }

    /// KVM_CREATE_IRQCHIP.
    pub(crate) fn create_kernel(&self, _vcpus_exist: bool) -> Result {
        Err(ENOTTY)
    }

    /// KVM_CAP_SPLIT_IRQCHIP with this many pins.
    pub(crate) fn create_split(&self, _pins: u64, _vcpus_exist: bool) -> Result {
        Err(EINVAL)
    }

    /// KVM_CREATE_PIT2.
    pub(crate) fn create_pit(&self, _config: k::kvm_pit_config) -> Result {
        Err(ENOENT)
    }

    /// The 8259s' INTR line. Any context.
    pub(crate) fn pic_output(&self) -> bool {
        false
    }

    /// INTA cycle: the vector. Any context.
    pub(crate) fn pic_acknowledge(&self) -> Option<u8> {
        None
    }

    /// An EOI message of a level-triggered vector. True if user space has to be told (split irqchip). Any context.
    pub(crate) fn eoi(&self, _vector: u8) -> bool {
        false
    }

    /// Sends an interrupt message; `source` is the sender's APIC id for shorthands. Number of vCPUs that got it. Any context.
    pub(crate) fn deliver(&self, _message: &Message, _source: u32) -> u32 {
        let _ = &self.memory;
        0
    }

    /// Reads a device in the kernel. False if there is none.
    pub(crate) fn mmio_read(&self, _gpa: u64, _buf: &mut [u8]) -> bool {
        false
    }

    /// Writes a device in the kernel or signals an ioeventfd. False if there is none.
    pub(crate) fn mmio_write(&self, _gpa: u64, _data: &[u8]) -> bool {
        false
    }

    /// Reads a port of a device in the kernel. Any context.
    pub(crate) fn pio_read(&self, _port: u16, _width: u8) -> Option<u32> {
        None
    }

    /// Whether a device in the kernel owns this port. Any context.
    pub(crate) fn claims_port(&self, _port: u16, _width: u8) -> bool {
        false
    }

    /// Signals an ioeventfd that matches. Any context.
    pub(crate) fn pio_event(&self, _port: u16, _width: u8, _value: u32) -> bool {
        false
    }

    /// Writes a port of a device in the kernel, or signals an ioeventfd. False if there is none. Any context.
    pub(crate) fn pio_write(&self, port: u16, width: u8, value: u32) -> bool {
        self.pio_event(port, width, value)
    }

    /// The remaining vm ioctls: ENOTTY for those that are not known.
    pub(crate) fn ioctl(&self, _cmd: u32, _arg: usize) -> Result<isize> {
        Err(ENOTTY)
    }

    /// The VM's file was closed: irqfds are taken down.
    pub(crate) fn close_irqfds(&self) {}

    /// The VM is going: stop timers.
    pub(crate) fn shutdown(&self) {}
}
