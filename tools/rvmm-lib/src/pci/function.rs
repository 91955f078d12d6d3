// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One function of the host in the guest's hands: what the guest's writes to the copy of configuration space mean.

use std::fs::File;

use kvm_ioctls::VmFd;

use super::bars::{Bar, Room, PAGE};
use super::config::{cap, put32, reg, Config, INTERRUPT_DISABLE, MASTER, MEMORY};
use super::messages::{Msi, MsiX};
use crate::address::Address;
use crate::error::{Error, Result};
use crate::sys::{self, DeviceInfo, DeviceVector};

/// The interrupt pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pin {
    /// The pin is not in use: there is none, the device is not in use, or it sends messages.
    Unused,
    /// Switched off by the command register.
    Off,
    On,
}

/// A function of the host that the guest has.
pub struct Function {
    /// The hypervisor's file of the device.
    pub file: File,
    /// What the guest reads of configuration space.
    pub config: Config,
    bars: Vec<Bar>,
    /// The MSI-X capability, if there is one.
    pub msix: Option<MsiX>,
    msi: Option<Msi>,
    /// GSI of the first message.
    pub gsi: u32,
    /// GSI of the pin, if there is one.
    pub pin_gsi: Option<u32>,
    pin: Pin,
    master: bool,
}

impl Function {
    /// Takes over the device, whose registers get what is free in `room`.
    pub fn new(
        vm: &VmFd,
        address: Address,
        gsi: u32,
        pin_gsi: u32,
        room: &mut Room,
    ) -> Result<Self> {
        let file = sys::assign_device(vm, address).map_err(|(errno, reason)| Error::Assign {
            address: address.to_string(),
            reason,
            errno,
        })?;
        let info = sys::device_info(&file).map_err(Error::os("RVMM_DEVICE_GET_INFO"))?;
        let mut bytes = [0; 256];
        for at in (0..256).step_by(4) {
            let value =
                sys::config_read(&file, at as u32).map_err(Error::os("RVMM_DEVICE_CONFIG_READ"))?;
            put32(&mut bytes, at, value);
        }
        let mut this = Self {
            file,
            config: Config::new(bytes),
            bars: Vec::new(),
            msix: None,
            msi: None,
            gsi,
            pin_gsi: (info.intx != 0).then_some(pin_gsi),
            pin: Pin::Unused,
            master: false,
        };
        this.prepare_header();
        this.prepare_capabilities(&info);
        this.prepare_bars(&info, room)?;
        Ok(this)
    }

    /// Undoes what the host had configured: nothing is decoded, and the pin leads to the IOAPIC.
    fn prepare_header(&mut self) {
        let config = &mut self.config;
        config.bytes[reg::COMMAND..reg::COMMAND + 2].fill(0);
        config.allow(reg::COMMAND, 0x0547);
        config.allow(reg::CACHE_LINE, 0xffff);
        config.set(reg::ROM, 0);
        // The IOAPIC's pin, which the MP table has as well; and which of the function's pins: INTA#.
        config.bytes[reg::IRQ_LINE] = self.pin_gsi.map_or(0, |gsi| gsi as u8);
        config.allow(reg::IRQ_LINE, 0xff);
        config.bytes[reg::IRQ_LINE + 1] = u8::from(self.pin_gsi.is_some());
    }

    /// Finds the capabilities, and switches off what the host had switched on.
    fn prepare_capabilities(&mut self, info: &DeviceInfo) {
        let config = &mut self.config;
        let mut at = usize::from(config.bytes[reg::CAPABILITIES]) & !3;
        // A list of a broken device may have a loop.
        for _ in 0..48 {
            if !(0x40..0xfc).contains(&at) {
                break;
            }
            match config.bytes[at] {
                cap::PM => config.allow(at + 4, 0x3),
                cap::PCIE => config.allow(at + 8, 0x7fff),
                cap::MSIX if info.msix != 0 && self.msix.is_none() => {
                    self.msix = Some(MsiX::new(config, at, info));
                }
                cap::MSI if info.msi != 0 && self.msi.is_none() => {
                    self.msi = Some(Msi::new(config, at));
                }
                _ => {}
            }
            at = usize::from(config.bytes[at + 1]) & !3;
        }
    }

    /// Gives the guest the regions that are memory, but the pages of the MSI-X table.
    fn prepare_bars(&mut self, info: &DeviceInfo, room: &mut Room) -> Result<()> {
        let mut index = 0;
        while let Some(region) = info.regions.get(index) {
            let memory = region.size != 0 && region.flags & sys::REGION_MEMORY != 0;
            if !memory || region.size < PAGE {
                if region.size != 0 {
                    let size = region.size;
                    tracing::warn!(index, size, "a region that the guest does not get");
                }
                self.config.set(reg::BAR0 + 4 * index, 0);
                index += 1;
                continue;
            }
            let hole = match &self.msix {
                Some(m) if m.bar == index => m.pages(),
                _ => region.size..region.size,
            };
            let bar = Bar::new(&self.file, &mut self.config, index, region, hole, room)?;
            index += if bar.wide { 2 } else { 1 };
            self.bars.push(bar);
        }
        Ok(())
    }

    /// Applies what the copy says. True when routes have changed.
    pub fn apply(&mut self, vm: &VmFd) -> bool {
        let decoding = self.config.bytes[reg::COMMAND] & MEMORY != 0;
        for bar in &mut self.bars {
            let want = decoding.then(|| bar.address(&self.config));
            bar.place(vm, want);
        }
        let master = self.config.bytes[reg::COMMAND] & MASTER != 0;
        if master != self.master {
            self.master = master;
            if let Err(error) = sys::set_master(&self.file, master) {
                tracing::warn!(%error, "bus mastering");
            }
        }
        let mut changed = false;
        if let Some(msix) = &mut self.msix {
            let on = self.config.bytes[msix.cap + 3] & 0xc0 == 0x80;
            if on != msix.active {
                msix.active = on;
                let gsis = if on { msix.gsis(self.gsi) } else { Vec::new() };
                changed = true;
                if let Err(error) = sys::set_irqs(&self.file, sys::IRQ_MSIX, &gsis) {
                    tracing::warn!(%error, "MSI-X");
                }
            }
        }
        if let Some(msi) = &mut self.msi {
            let on = self.config.bytes[msi.cap + 2] & 1 != 0;
            if on != msi.active {
                msi.active = on;
                let gsi = [self.gsi];
                let gsis = if on { &gsi[..] } else { &[] };
                if let Err(error) = sys::set_irqs(&self.file, sys::IRQ_MSI, gsis) {
                    tracing::warn!(%error, "MSI");
                }
            }
            changed |= on;
        }
        self.apply_pin();
        changed
    }

    /// Whether messages have taken the place of the pin.
    fn sends_messages(&self) -> bool {
        self.msix.as_ref().is_some_and(|m| m.active) || self.msi.as_ref().is_some_and(|m| m.active)
    }

    /// What the pin should be. Messages take its place (PCI 3.0 6.8.1.3).
    fn wanted_pin(&self) -> Pin {
        // A guest that has not switched the device on listens to no pin.
        let used = self.config.bytes[reg::COMMAND] & (MEMORY | MASTER) != 0;
        if self.sends_messages() || !used || self.pin_gsi.is_none() {
            Pin::Unused
        } else if self.config.bytes[reg::COMMAND + 1] & INTERRUPT_DISABLE != 0 {
            Pin::Off
        } else {
            Pin::On
        }
    }

    /// Tells the hypervisor what the pin should be now.
    fn apply_pin(&mut self) {
        let (Some(gsi), want) = (self.pin_gsi, self.wanted_pin()) else {
            return;
        };
        let before = std::mem::replace(&mut self.pin, want);
        let gsi = if want == Pin::On { gsi } else { sys::GSI_NONE };
        let done = match (before, want) {
            _ if before == want => Ok(()),
            // Messages have switched it off already.
            (_, Pin::Unused) if self.sends_messages() => Ok(()),
            (_, Pin::Unused) => sys::set_irqs(&self.file, sys::IRQ_INTX, &[]),
            (Pin::Unused, _) => sys::set_irqs(&self.file, sys::IRQ_INTX, &[gsi]),
            _ => sys::set_vector(&self.file, DeviceVector { vector: 0, gsi }),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "interrupt pin");
        }
    }

    /// Messages that may come: GSI, address, data.
    pub fn routes(&self) -> Vec<(u32, u64, u32)> {
        let msix = self.msix.iter().flat_map(|m| m.routes(self.gsi));
        let msi = self.msi.iter().filter_map(|m| m.message(&self.config));
        msix.chain(msi.map(|(address, data)| (self.gsi, address, data)))
            .collect()
    }

    /// The word of the MSI-X table at a guest-physical address.
    pub fn table_word(&self, address: u64) -> Option<(usize, usize)> {
        let msix = self.msix.as_ref()?;
        let bar = self.bars.iter().find(|b| b.index == msix.bar)?;
        let offset = address.checked_sub(bar.at? + msix.offset)?;
        let entry = usize::try_from(offset / 16).ok()?;
        (address < bar.at? + bar.size && entry < msix.entries.len())
            .then_some((entry, (offset % 16 / 4) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::le32;
    use super::super::messages::gsi_of;
    use super::*;

    fn function(msi: bool) -> Function {
        let mut config = [0; 256];
        put32(&mut config, 0, 0x11e8_1234);
        config[reg::COMMAND] = 7;
        put32(&mut config, reg::BAR0, 0xfe00_0000);
        config[reg::CAPABILITIES] = 0x40;
        // Enabled by the host, 64 bits, capable of 4, mask bits.
        put32(
            &mut config,
            0x40,
            if msi { 0x0185_0005 } else { 0x8041_0011 },
        );
        let mut this = Function {
            file: File::open("/dev/null").unwrap(),
            config: Config::new(config),
            bars: Vec::new(),
            msix: None,
            msi: None,
            gsi: 64,
            pin_gsi: Some(17),
            pin: Pin::Unused,
            master: false,
        };
        let mut info = DeviceInfo::default();
        (info.msi, info.msix, info.msix_offset) = (1, 65, 0x2000);
        this.prepare_header();
        this.prepare_capabilities(&info);
        this
    }

    #[test]
    fn the_copy_starts_switched_off() {
        let f = function(true);
        assert_eq!(f.config.bytes[reg::COMMAND], 0);
        assert_eq!(le32(&f.config.bytes, 0x40), 0x0080_0005);
        let f = function(false);
        assert_eq!(le32(&f.config.bytes, 0x40), 0x0041_0011);
        assert_eq!(f.msix.unwrap().entries.len(), 65);
    }

    #[test]
    fn only_what_may_be_written() {
        let mut f = function(true);
        let before = f.config.bytes;
        f.config.write(0, &[0xff; 4]);
        f.config.write(0x40, &[0xff; 2]);
        f.config.write(0x34, &[0xff; 1]);
        f.config.write(0x30, &[0xff; 4]);
        f.config.write(0xfe, &[0xff; 4]);
        assert_eq!(f.config.bytes, before);
        f.config.write(4, &[0xff; 2]);
        assert_eq!(f.config.bytes[4..6], [0x47, 0x05]);
        f.config.write(0x42, &[0x01, 0x00]);
        f.config.write(0x44, &[0x0c, 0x10, 0xe0, 0xfe]);
        f.config.write(0x4c, &[0x41, 0x00]);
        f.msi.as_mut().unwrap().active = true;
        assert_eq!(f.routes(), [(64, 0xfee0_100c, 0x41)]);
    }

    #[test]
    fn the_pin_gives_way_to_messages() {
        let mut f = function(true);
        assert_eq!((f.config.bytes[0x3c], f.config.bytes[0x3d]), (17, 1));
        assert_eq!(f.wanted_pin(), Pin::Unused);
        f.config.write(4, &[2, 0]);
        assert_eq!(f.wanted_pin(), Pin::On);
        f.config.write(4, &[2, 4]);
        assert_eq!(f.wanted_pin(), Pin::Off);
        f.msi.as_mut().unwrap().active = true;
        assert_eq!(f.wanted_pin(), Pin::Unused);
        f.msi.as_mut().unwrap().active = false;
        f.pin_gsi = None;
        assert_eq!(f.wanted_pin(), Pin::Unused);
        f.prepare_header();
        assert_eq!((f.config.bytes[0x3c], f.config.bytes[0x3d]), (0, 0));
    }

    #[test]
    fn table_of_msix() {
        let mut f = function(false);
        f.bars.push(Bar {
            index: 0,
            size: 0x4000,
            wide: true,
            parts: Vec::new(),
            at: Some(0xe000_0000),
        });
        assert_eq!(f.table_word(0xe000_1ffc), None);
        assert_eq!(f.table_word(0xe000_2000), Some((0, 0)));
        assert_eq!(f.table_word(0xe000_201c), Some((1, 3)));
        assert_eq!(f.table_word(0xe000_2000 + 65 * 16), None);
        assert!(f.routes().is_empty());
        let msix = f.msix.as_mut().unwrap();
        msix.active = true;
        msix.entries[2] = [0xfee0_0000, 1, 0x31, 0];
        assert_eq!(f.routes(), [(66, 0x1_fee0_0000, 0x31)]);
        assert_eq!(gsi_of(64, 3, &[0, 0, 0, 1]), sys::GSI_NONE);
    }
}
