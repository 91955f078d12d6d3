// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a machine is made of beside memory: the hypervisor's own devices, the launcher's on their buses, vCPUs.

use std::sync::{Arc, Mutex};

use kvm_bindings::{kvm_cpuid_entry2, kvm_pit_config, KVM_PIT_SPEAKER_DUMMY};
use kvm_ioctls::{Cap, VmFd};
use vm_memory::GuestMemoryMmap;

use crate::acpi;
use crate::bus::{Bus, Placed};
use crate::cpu::{self, Topology};
use crate::error::{Error, Result};
use crate::hold::{self, Hold};
use crate::pause::Acpi;
use crate::pci;
use crate::platform::{self, Cmos, Power, ResetLine};
use crate::serial::{self, SerialDevice};
use crate::vcpu::{Control, Vcpu};
use crate::{layout, virtio};

/// Adds to an empty VM what the hypervisor emulates: the pages that VMX wants, interrupt controllers, and PIT.
pub(crate) fn add_platform(vm: &VmFd) -> Result<()> {
    if vm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(layout::TSS as usize)
            .map_err(Error::ioctl("KVM_SET_TSS_ADDR"))?;
    }
    if vm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(Error::ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
    }
    vm.create_irq_chip()
        .map_err(Error::ioctl("KVM_CREATE_IRQCHIP"))?;
    // A guest with a TSC-deadline timer and a known TSC frequency does without a PIT.
    if vm.check_extension(Cap::Pit2) {
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit)
            .map_err(Error::ioctl("KVM_CREATE_PIT2"))?;
    }
    Ok(())
}

/// What the launcher answers to accesses of the guest.
pub(crate) struct Buses {
    ports: Bus,
    mmio: Bus,
}

impl Buses {
    /// Puts the launcher's own devices on their ports, and those of the caller where it wants them.
    pub(crate) fn new(
        serial: SerialDevice,
        cmos: Arc<Mutex<Cmos>>,
        control: &Arc<Control>,
        devices: Vec<Placed>,
    ) -> Self {
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        ports.insert(serial::PORT, serial::PORTS, Arc::new(Mutex::new(serial)));
        let reset = platform::I8042::new(ResetLine(control.clone()));
        ports.insert(platform::I8042_PORT, 5, Arc::new(Mutex::new(reset)));
        ports.insert(platform::CMOS_PORT, 2, cmos);
        let power = Arc::new(Mutex::new(Power(control.clone())));
        ports.insert(platform::POWER_PORT, 2, power);
        for placed in devices {
            let bus = if placed.on_ports {
                &mut ports
            } else {
                &mut mmio
            };
            bus.insert(placed.first, placed.length, placed.device);
        }
        Self { ports, mmio }
    }

    /// Puts virtio devices, if there are any, on a bus with ACPI's registers.
    pub(crate) fn add_virtio(
        &mut self,
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        devices: Vec<Box<dyn virtio::Backend>>,
    ) -> Result<Option<Acpi>> {
        if devices.is_empty() {
            return Ok(None);
        }
        let balloon = devices.iter().find_map(|device| device.balloon());
        let host = Arc::new(Mutex::new(virtio::Host::new(vm, memory, devices)?));
        self.ports.insert(virtio::PORT, virtio::PORTS, host.clone());
        let window = Arc::new(Mutex::new(virtio::Window(host.clone())));
        self.mmio
            .insert(virtio::ECAM, virtio::Window::LENGTH, window);
        let events = Arc::new(Mutex::new(acpi::PowerEvents::new(vm)));
        self.ports
            .insert(acpi::EVENT_PORT, acpi::EVENT_PORTS, events.clone());
        Ok(Some(Acpi {
            host,
            events,
            balloon,
        }))
    }

    /// Hands devices of the host to the VM, if there are any, behind a host bridge.
    pub(crate) fn add_pci(&mut self, vm: &Arc<VmFd>, assigned: &[pci::Address]) -> Result<()> {
        if assigned.is_empty() {
            return Ok(());
        }
        let host = Arc::new(Mutex::new(pci::Host::new(vm.clone(), assigned)?));
        self.ports.insert(pci::PORT, pci::PORTS, host.clone());
        let window = Arc::new(Mutex::new(pci::Window(host)));
        let length = pci::WINDOW_END - layout::HOLE_START;
        self.mmio.insert(layout::HOLE_START, length, window);
        Ok(())
    }
}

/// Creates the vCPUs, whose accesses go to `buses`.
pub(crate) fn create_vcpus(
    vm: &VmFd,
    cpus: u8,
    supported: &[kvm_cpuid_entry2],
    buses: Buses,
    control: &Arc<Control>,
) -> Result<Vec<Vcpu>> {
    let (ports, mmio) = (Arc::new(buses.ports), Arc::new(buses.mmio));
    let tsc_deadline = vm.check_extension(Cap::TscDeadlineTimer);
    let create = |id: u8| {
        let fd = vm
            .create_vcpu(id.into())
            .map_err(Error::ioctl("KVM_CREATE_VCPU"))?;
        let topology = Topology { id, cpus };
        cpu::set_cpuid(&fd, &cpu::cpuid(supported, topology, tsc_deadline))?;
        cpu::set_common(&fd)?;
        cpu::set_lapic_inputs(&fd, id == 0)?;
        Ok(Vcpu {
            id: id.into(),
            fd,
            ports: ports.clone(),
            memory: mmio.clone(),
            control: control.clone(),
            held: None,
        })
    };
    (0..cpus).map(create).collect()
}

/// Has the vCPUs hold when that is wanted: by a debugger, which does from the start, or for a while.
pub(crate) fn hold(vcpus: &mut [Vcpu], held: bool, control: &Arc<Control>) -> Result<Hold> {
    let made = hold::new(vcpus.len(), held, control.clone());
    let (hold, ends) = made.map_err(Error::os("eventfd"))?;
    for (vcpu, end) in vcpus.iter_mut().zip(ends) {
        vcpu.held = Some(end);
    }
    Ok(hold)
}
