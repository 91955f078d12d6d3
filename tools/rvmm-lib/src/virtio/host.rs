// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PCI bus 0 of a machine with virtio devices: a host bridge, configuration space by ports (PCI Local Bus Specification
//! 3.0, 3.2.2.3.2) and by memory (PCI Express 6.0, 7.2.2), and the window for devices' registers.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

use super::function::{Function, BAR_SIZE};
use super::saved::{FunctionState, VirtioState};
use super::Backend;
use crate::bus::Device;
use crate::error::{Error, Result};
use crate::pci::config::put32;
use crate::pci::{set_routes, FIRST_GSI, WINDOW, WINDOW_END};

pub(crate) use crate::pci::{PORT, PORTS};

/// Guest-physical address of configuration space of bus 0.
pub(crate) const ECAM: u64 = 0xd000_0000;
/// Bytes of configuration space of bus 0: 4 KiB for each function.
pub(crate) const ECAM_LENGTH: u64 = 1 << 20;

/// Offset of the data port.
const DATA: u64 = 4;
/// The bit of the address port that makes the data port configuration space.
const ENABLE: u32 = 1 << 31;
/// Devices beside the host bridge.
const MOST_DEVICES: usize = 31;

/// The bus: function `n` is device `n + 1`.
pub(crate) struct Host {
    vm: Arc<VmFd>,
    functions: Vec<Function>,
    selected: u32,
}

impl Host {
    /// A bus with these devices.
    pub(crate) fn new(
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        devices: Vec<Box<dyn Backend>>,
    ) -> Result<Self> {
        if devices.len() > MOST_DEVICES {
            return Err(Error::Os {
                what: "virtio devices: more than 31",
                source: std::io::ErrorKind::InvalidInput.into(),
            });
        }
        let (mut gsi, mut bar, mut functions) = (FIRST_GSI, WINDOW, Vec::new());
        for device in devices {
            let function = Function::new(vm, memory, device, bar, gsi)?;
            gsi += function.vectors();
            bar += u64::from(BAR_SIZE);
            functions.push(function);
        }
        Ok(Self {
            vm: vm.clone(),
            functions,
            selected: 0,
        })
    }

    /// Has all devices stand still.
    pub(crate) fn freeze(&mut self) {
        self.functions.iter_mut().for_each(Function::freeze);
    }

    /// Whether the kernel writes to the machine's memory for one of them.
    pub(crate) fn is_served_by_kernel(&self) -> bool {
        self.functions.iter().any(Function::is_served_by_kernel)
    }

    /// Has devices, which stand still, tell the hypervisor what they are going to write to.
    pub(crate) fn tell_writes(&mut self) {
        self.functions.iter_mut().for_each(Function::tell_writes);
    }

    /// Lets them go on.
    pub(crate) fn thaw(&mut self) {
        self.functions.iter_mut().for_each(Function::thaw);
    }

    /// What the bus and its devices are, which stand still.
    pub(crate) fn state(
        &self,
        parts: &mut Vec<File>,
    ) -> std::io::Result<(u32, Vec<FunctionState>)> {
        let functions = self.functions.iter().map(|function| function.state(parts));
        Ok((self.selected, functions.collect::<std::io::Result<_>>()?))
    }

    /// Makes the bus what it was, with the same devices, and lets them go on; false if they are not the same.
    pub(crate) fn restore(&mut self, state: &VirtioState) -> bool {
        let mut pairs = self.functions.iter_mut().zip(&state.functions);
        if !pairs.all(|(function, state)| function.restore(state)) {
            return false;
        }
        self.selected = state.selected;
        self.reroute();
        self.thaw();
        self.functions.iter().for_each(Function::remind);
        true
    }

    fn read_config(&mut self, device: usize, at: usize, data: &mut [u8]) {
        match device.checked_sub(1) {
            None => {
                let bridge = bridge();
                for (n, byte) in data.iter_mut().enumerate() {
                    *byte = bridge.get(at + n).copied().unwrap_or(0);
                }
            }
            Some(n) => {
                if let Some(function) = self.functions.get_mut(n) {
                    function.read_config(at, data);
                }
            }
        }
    }

    fn write_config(&mut self, device: usize, at: usize, data: &[u8]) {
        let function = device
            .checked_sub(1)
            .and_then(|n| self.functions.get_mut(n));
        if function.is_some_and(|function| function.write_config(at, data)) {
            self.reroute();
        }
    }

    /// Tells the hypervisor of all messages.
    fn reroute(&mut self) {
        set_routes(&self.vm, self.functions.iter().flat_map(Function::routes));
        for function in &mut self.functions {
            function.connect();
        }
    }

    /// What the data port shows: device and register.
    fn target(&self, offset: u64) -> Option<(usize, usize)> {
        let bus_and_function = self.selected & 0x00ff_0700;
        if self.selected & ENABLE == 0 || bus_and_function != 0 {
            return None;
        }
        let register = (self.selected & 0xfc) as usize + (offset - DATA) as usize;
        Some(((self.selected >> 11 & 31) as usize, register))
    }

    fn function_at(&mut self, address: u64) -> Option<(&mut Function, u64)> {
        self.functions.iter_mut().find_map(|function| {
            let offset = address.checked_sub(function.bar()?)?;
            (offset < BAR_SIZE.into()).then_some((function, offset))
        })
    }
}

/// The ports of configuration mechanism 1.
impl Device for Host {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset < DATA {
            if let (0, 4) = (offset, data.len()) {
                data.copy_from_slice(&self.selected.to_le_bytes());
            }
        } else if let Some((device, at)) = self.target(offset) {
            self.read_config(device, at, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset < DATA {
            if let (0, [a, b, c, d]) = (offset, data) {
                self.selected = u32::from_le_bytes([*a, *b, *c, *d]);
            }
        } else if let Some((device, at)) = self.target(offset) {
            self.write_config(device, at, data);
        }
    }
}

/// Configuration space of the host bridge: Red Hat's generic one.
fn bridge() -> [u8; 256] {
    let mut config = [0; 256];
    put32(&mut config, 0, 0x0008_1b36);
    put32(&mut config, 8, 0x0600_0000);
    config
}

/// Configuration space by memory, and the registers of devices: from [`ECAM`] to [`WINDOW_END`].
pub(crate) struct Window(pub(crate) Arc<Mutex<Host>>);

impl Window {
    /// Bytes of the window.
    pub(crate) const LENGTH: u64 = WINDOW_END - ECAM;

    /// Device and register of an offset in configuration space, of the first function alone.
    fn config(offset: u64) -> Option<(usize, usize)> {
        let (device, function) = ((offset >> 15) as usize, offset >> 12 & 7);
        (offset < ECAM_LENGTH && function == 0).then_some((device, (offset & 0xfff) as usize))
    }
}

impl Device for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut host = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((device, at)) = Self::config(offset) {
            host.read_config(device, at, data);
        } else if let Some((function, offset)) = host.function_at(ECAM + offset) {
            function.read(offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut host = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((device, at)) = Self::config(offset) {
            host.write_config(device, at, data);
        } else if let Some((function, offset)) = host.function_at(ECAM + offset) {
            if function.write(offset, data) {
                host.reroute();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_functions_of_the_bus_are_there() {
        assert_eq!(Window::config(0), Some((0, 0)));
        assert_eq!(Window::config(0x8000 + 0x40), Some((1, 0x40)));
        assert_eq!(Window::config(31 << 15 | 0xfff), Some((31, 0xfff)));
        assert_eq!(Window::config(0x1000), None);
        assert_eq!(Window::config(1 << 20), None);
    }
}
