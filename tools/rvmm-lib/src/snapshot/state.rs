// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a machine is beside its memory: its CPUs, the hypervisor's devices and the launcher's.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave, Msrs,
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::cpu;
use crate::error::{Error, Result};
use crate::virtio::saved::VirtioState;

/// The machine.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Bytes of memory.
    pub(crate) memory: u64,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) chips: Chips,
    pub(crate) serial: SerialState,
    pub(crate) cmos: CmosState,
    /// Devices on its PCI bus, of a machine with ACPI.
    pub(crate) virtio: Option<VirtioState>,
    /// Parts of the file: place, length, checksum.
    pub(crate) parts: Vec<(u64, u64, u64)>,
}

/// The hypervisor's devices.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chips {
    /// 8259s and IOAPIC.
    irqchips: [kvm_irqchip; 3],
    pit: Option<kvm_pit_state2>,
    clock: Option<kvm_clock_data>,
}

/// The serial port.
#[derive(Clone, Default, Deserialize, Serialize, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct SerialState {
    /// Divisor, low and high; IER, IIR, LCR, LSR, MCR, MSR, scratch.
    pub(crate) registers: [u8; 9],
    pub(crate) received: Vec<u8>,
    pub(crate) listening: bool,
}

/// The CMOS clock.
#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CmosState {
    pub(crate) index: u8,
    pub(crate) cells: Vec<u8>,
}

/// A CPU.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VcpuState {
    /// Frequency of the TSC in kHz, where the hypervisor knows it.
    tsc_khz: Option<u32>,
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// MSRs that are set in this order, before and after others: the TSC, and the timer that it ends.
const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
/// MSRs that KVM_GET_MSR_INDEX_LIST may leave out although guests have them (SDM 4, table 2-2): memory types by range
/// and by default, and the banks of machine checks.
const MORE_MSRS: [std::ops::RangeInclusive<u32>; 7] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x277..=0x277,
    0x2ff..=0x2ff,
    0x400..=0x47f,
];

/// The MSRs of a CPU to be saved: those that the hypervisor lists, and those that it may have beside them.
pub(crate) fn saved_msrs(listed: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = MORE_MSRS.into_iter().flatten().collect();
    all.extend_from_slice(listed);
    all.sort_unstable();
    all.dedup();
    all
}

fn lists(_: impl Sized) -> Error {
    Error::Ioctl {
        call: "KVM_GET_MSRS",
        errno: libc::E2BIG,
    }
}

impl Chips {
    /// Reads them; the CPUs stand still.
    pub(crate) fn save(vm: &VmFd) -> Result<Self> {
        let pit = if vm.check_extension(Cap::PitState2) {
            Some(vm.get_pit2().map_err(Error::ioctl("KVM_GET_PIT2"))?)
        } else {
            None
        };
        let mut irqchips = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ]
        .map(|chip_id| kvm_irqchip {
            chip_id,
            ..Default::default()
        });
        for chip in &mut irqchips {
            vm.get_irqchip(chip)
                .map_err(Error::ioctl("KVM_GET_IRQCHIP"))?;
        }
        let clock = vm.get_clock().map_err(Error::ioctl("KVM_GET_CLOCK"))?;
        Ok(Self {
            irqchips,
            pit,
            clock: Some(clock),
        })
    }

    pub(crate) fn restore(&self, vm: &VmFd) -> Result<()> {
        for chip in &self.irqchips {
            vm.set_irqchip(chip)
                .map_err(Error::ioctl("KVM_SET_IRQCHIP"))?;
        }
        if let Some(pit) = &self.pit {
            vm.set_pit2(pit).map_err(Error::ioctl("KVM_SET_PIT2"))?;
        }
        if let Some(clock) = self.clock {
            // It goes on from where it stood: the time in between has not passed.
            let clock = kvm_clock_data {
                clock: clock.clock,
                ..Default::default()
            };
            vm.set_clock(&clock)
                .map_err(Error::ioctl("KVM_SET_CLOCK"))?;
        }
        Ok(())
    }
}

impl VcpuState {
    /// Reads a CPU that stands still; `msrs` are those that the hypervisor keeps.
    pub(crate) fn save(fd: &VcpuFd, msrs: &[u32]) -> Result<Self> {
        // First: it settles what others show (api.rst 4.38).
        let mp_state = fd
            .get_mp_state()
            .map_err(Error::ioctl("KVM_GET_MP_STATE"))?;
        let cpuid = fd
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::ioctl("KVM_GET_CPUID2"))?;
        Ok(Self {
            tsc_khz: fd.get_tsc_khz().ok(),
            cpuid: cpuid.as_slice().to_vec(),
            mp_state,
            regs: fd.get_regs().map_err(Error::ioctl("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(Error::ioctl("KVM_GET_SREGS"))?,
            xsave: fd.get_xsave().map_err(Error::ioctl("KVM_GET_XSAVE"))?,
            xcrs: fd.get_xcrs().map_err(Error::ioctl("KVM_GET_XCRS"))?,
            debug: fd
                .get_debug_regs()
                .map_err(Error::ioctl("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(Error::ioctl("KVM_GET_LAPIC"))?,
            msrs: read_msrs(fd, msrs)?,
            events: fd
                .get_vcpu_events()
                .map_err(Error::ioctl("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// What a CPU has that the hypervisor does not keep in a fork.
    pub(crate) fn configuration(fd: &VcpuFd) -> Result<Self> {
        let cpuid = fd
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::ioctl("KVM_GET_CPUID2"))?;
        Ok(Self {
            tsc_khz: fd.get_tsc_khz().ok(),
            cpuid: cpuid.as_slice().to_vec(),
            ..Self::empty()
        })
    }

    /// A CPU of which nothing is known.
    fn empty() -> Self {
        Self {
            tsc_khz: None,
            cpuid: Vec::new(),
            mp_state: Default::default(),
            regs: Default::default(),
            sregs: Default::default(),
            xsave: Default::default(),
            xcrs: Default::default(),
            debug: Default::default(),
            lapic: Default::default(),
            msrs: Vec::new(),
            events: Default::default(),
        }
    }

    /// What this CPU has that a hypervisor does not support, in words.
    pub(crate) fn lacks(&self, supported: &[kvm_cpuid_entry2]) -> Option<String> {
        cpu::lacks(&self.cpuid, supported)
    }

    /// Makes a new CPU one that can become what was saved.
    pub(crate) fn configure(&self, fd: &VcpuFd) -> Result<()> {
        cpu::set_cpuid(fd, &self.cpuid)?;
        if let Some(khz) = self
            .tsc_khz
            .filter(|khz| fd.get_tsc_khz().ok() != Some(*khz))
        {
            fd.set_tsc_khz(khz)
                .map_err(Error::ioctl("KVM_SET_TSC_KHZ"))?;
        }
        Ok(())
    }

    /// Makes a new CPU what was saved.
    pub(crate) fn restore(&self, fd: &VcpuFd) -> Result<()> {
        self.configure(fd)?;
        fd.set_mp_state(self.mp_state)
            .map_err(Error::ioctl("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs)
            .map_err(Error::ioctl("KVM_SET_REGS"))?;
        fd.set_sregs(&self.sregs)
            .map_err(Error::ioctl("KVM_SET_SREGS"))?;
        fd.set_xcrs(&self.xcrs)
            .map_err(Error::ioctl("KVM_SET_XCRS"))?;
        // SAFETY: nobody has asked for features whose state is larger than this structure (api.rst 4.43).
        unsafe { fd.set_xsave(&self.xsave) }.map_err(Error::ioctl("KVM_SET_XSAVE"))?;
        fd.set_debug_regs(&self.debug)
            .map_err(Error::ioctl("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&self.lapic)
            .map_err(Error::ioctl("KVM_SET_LAPIC"))?;
        write_msrs(fd, &self.msrs)?;
        fd.set_vcpu_events(&self.events)
            .map_err(Error::ioctl("KVM_SET_VCPU_EVENTS"))
    }
}

/// Those of these MSRs that the CPU has.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut found = Vec::new();
    for index in indices {
        let entry = kvm_msr_entry {
            index: *index,
            ..Default::default()
        };
        let mut list = Msrs::from_entries(&[entry]).map_err(lists)?;
        if fd
            .get_msrs(&mut list)
            .map_err(Error::ioctl("KVM_GET_MSRS"))?
            == 1
        {
            found.extend_from_slice(list.as_slice());
        }
    }
    found.sort_by_key(|entry| match entry.index {
        TSC => (0, 0),
        TSC_DEADLINE => (2, 0),
        other => (1, other),
    });
    Ok(found)
}

fn write_msrs(fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<()> {
    for entry in entries {
        let list = Msrs::from_entries(&[*entry]).map_err(lists)?;
        let written = fd.set_msrs(&list).map_err(Error::ioctl("KVM_SET_MSRS"))?;
        // One that cannot be written, and is what it was, has its value from the hypervisor.
        if written == 0
            && read_msrs(fd, &[entry.index])?.first().map(|now| now.data) != Some(entry.data)
        {
            return Err(Error::Msr { index: entry.index });
        }
    }
    Ok(())
}

#[cfg(test)]
impl State {
    pub(crate) fn empty(memory: u64) -> Self {
        Self {
            memory,
            vcpus: vec![VcpuState::empty()],
            chips: Chips::default(),
            serial: SerialState::default(),
            cmos: CmosState::default(),
            virtio: None,
            parts: Vec::new(),
        }
    }
}
