// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How a machine on Arm64 is made.

use std::sync::{Arc, Mutex};

use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::eventfd::EventFd;

use super::{allocate, check_extensions, create_vm, map, open, stats_files, Builder, Vm};
use crate::arm64::{clock::Clock, cpu, gic, layout, Snapshot};
use crate::boot;
use crate::bus::Bus;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::hold;
use crate::pause::Pause;
use crate::serial::{self, SerialDevice, SerialPort};
use crate::vcpu::{Control, Vcpu};
use crate::virtio::{block, mmio::Mmio, Backend};

/// As many as there is room for redistributors.
const MOST_CPUS: usize = 512;
/// Fewer bytes cannot hold even the device tree and a small kernel.
const LEAST_MEMORY: u64 = 16 << 20;
/// Bits of addresses where the hypervisor does not say (api.rst, 4.2).
const USUAL_BITS: u32 = 40;

/// Whether a device wants what those in memory have not: a configuration that changes, or rings that others serve.
#[allow(clippy::borrowed_box)]
fn changes(device: &Box<dyn Backend>) -> bool {
    device.registers().is_some() || device.served_outside() > 0
}

impl Builder {
    /// There is no such snapshot.
    pub fn saved(self, snapshot: Snapshot) -> Self {
        match snapshot.0 {}
    }

    /// Makes the machine, ready to run.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; [`Error::remedy`] says what to do.
    pub fn build(self) -> Result<Vm> {
        let kvm = open(&self.device)?;
        let needed = [
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2"),
            (Cap::DeviceCtrl, "KVM_CAP_DEVICE_CTRL"),
            (Cap::Irqfd, "KVM_CAP_IRQFD"),
            (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        ];
        check_extensions(&kvm, &self.device, &needed)?;
        self.check(&kvm)?;
        let vm = Arc::new(create_vm(&kvm)?);
        let memory = Arc::new(allocate(self.memory, false)?);
        // SAFETY: the `Vm` owns the memory and joins every vCPU thread before it drops it.
        unsafe { map(&vm, &memory) }?;
        let cpus = cpu::create(&vm, self.cpus)?;
        let count = u8::try_from(cpus.len()).unwrap_or(u8::MAX);
        // From here on there are interrupts.
        let gic = gic::create(&vm, cpus.len())?;

        let Self {
            console,
            mut boot,
            cmdline,
            usual_cmdline,
            append,
            devices,
            virtio,
            disks,
            pausable,
            ..
        } = self;
        let mut console = console.unwrap_or_else(|| Console::output(std::io::sink()));
        let terminal = console.take_terminal();
        let control = Control::new(console.ended.clone(), console.held.clone())
            .map_err(Error::os("eventfd"))?;
        let control = Arc::new(control);
        let drained =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::os("eventfd"))?;
        let wake = drained.try_clone().map_err(Error::os("eventfd"))?;
        let serial = SerialPort::new(serial::irq_line(&vm)?, wake);
        let serial = Arc::new(Mutex::new(serial));
        let port = SerialDevice {
            port: serial.clone(),
            output: console.output,
            sent: Arc::default(),
        };
        let sent = port.sent.clone();
        let port = Arc::new(Mutex::new(port));
        // The guest has no ports; vCPUs that are held send what is left of output by way of this one.
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        ports.insert(serial::PORT, serial::PORTS, port.clone());
        mmio.insert(layout::SERIAL, serial::PORTS, port);
        let clock = Arc::new(Mutex::new(Clock::new()));
        mmio.insert(layout::CLOCK, layout::PAGE, clock);
        for placed in devices {
            mmio.insert(placed.first, placed.length, placed.device);
        }

        let virtio = block::with_disks(virtio, disks, count);
        let virtio_count = virtio.len() as u32;
        for (number, device) in (0..).zip(virtio) {
            let device = Arc::new(Mutex::new(Mmio::new(&vm, &memory, device, number)?));
            mmio.insert(layout::virtio(number), layout::VIRTIO_SIZE, device);
        }

        boot.cmdline = cmdline
            .or(usual_cmdline)
            .unwrap_or_else(|| boot::DEFAULT_CMDLINE.into());
        if let Some(more) = append {
            boot.cmdline.push(' ');
            boot.cmdline.push_str(&more);
        }
        let affinities = cpus.iter().map(cpu::affinity).collect::<Result<Vec<_>>>()?;
        let entry = boot::load(&memory, &boot, self.memory, &affinities, virtio_count)?;
        if let Some(first) = cpus.first() {
            cpu::set_entry(first, entry)?;
        }
        let (ports, mmio) = (Arc::new(ports), Arc::new(mmio));
        let vcpu = |(id, fd)| Vcpu {
            id,
            fd,
            ports: ports.clone(),
            memory: mmio.clone(),
            control: control.clone(),
            held: None,
        };
        let mut vcpus: Vec<Vcpu> = cpus.into_iter().enumerate().map(vcpu).collect();
        let pause = if pausable {
            let made = hold::new(vcpus.len(), false, control.clone());
            let (hold, ends) = made.map_err(Error::os("eventfd"))?;
            for (vcpu, end) in vcpus.iter_mut().zip(ends) {
                vcpu.held = Some(end);
            }
            Some(Pause::new(hold))
        } else {
            None
        };
        let stats = stats_files(&vm, &vcpus);
        Ok(Vm {
            input: console.input,
            escape: console.escape,
            serial,
            sent,
            drained,
            control,
            vcpus,
            debugger: None,
            stats,
            button: None,
            balloon: None,
            pause,
            _gic: gic,
            _vm: vm,
            _kvm: kvm,
            memory,
            terminal,
        })
    }

    /// Checks the numbers of CPUs and of bytes, and that nothing is wanted that is not there.
    fn check(&self, kvm: &Kvm) -> Result<()> {
        let absent = [
            (!self.assigned.is_empty(), "PCI devices", "leave out --pci"),
            (self.gdb.is_some(), "debuggers", "leave out --gdb"),
            (
                self.virtio.iter().any(changes),
                "balloons and sockets to the host",
                "leave out --balloon and --vsock",
            ),
            (
                self.devices.iter().any(|placed| placed.on_ports),
                "ports",
                "put the device into memory (Builder::mmio)",
            ),
        ];
        if let Some((_, what, remedy)) = absent.into_iter().find(|(wanted, ..)| *wanted) {
            return Err(Error::NotOnArm { what, remedy });
        }
        let most = kvm.get_max_vcpus().min(MOST_CPUS);
        if !(1..=most).contains(&self.cpus) {
            return Err(Error::Cpus {
                path: self.device.clone(),
                wanted: self.cpus,
                most,
            });
        }
        let bits = match kvm.get_host_ipa_limit() {
            bits @ 32..=52 => bits as u32,
            _ => USUAL_BITS,
        };
        let most = (1 << bits) - layout::RAM;
        if self.disks.len() + self.virtio.len() > layout::VIRTIO_MOST as usize {
            return Err(Error::Os {
                what: "virtio devices: more than 32",
                source: std::io::ErrorKind::InvalidInput.into(),
            });
        }
        if !(LEAST_MEMORY..=most).contains(&self.memory) || self.memory % 4096 != 0 {
            return Err(Error::MemorySize {
                wanted: self.memory,
                least: LEAST_MEMORY,
                most,
            });
        }
        Ok(())
    }
}
