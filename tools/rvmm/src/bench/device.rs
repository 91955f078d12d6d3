// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A device of the host in the hands of the benchmark's guest: by RVMM_ASSIGN_DEVICE where the
//! hypervisor has it, else by VFIO (type 1 IOMMU, one container; Documentation/driver-api/vfio.rst).

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr;

use anyhow::Context as _;
use kvm_bindings::{
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, KvmIrqRouting, KVM_DEV_VFIO_FILE,
    KVM_DEV_VFIO_FILE_ADD, KVM_IRQ_ROUTING_MSI,
};
use kvm_ioctls::{DeviceFd, Kvm, VmFd};
use rvmm_vm::pci::Address;
use rvmm_vm::sys;
use vfio_bindings::bindings::vfio::{
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_irq_set, vfio_region_info,
    VFIO_TYPE1v2_IOMMU, VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_TYPE,
};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val};

use super::region::Region;

#[allow(missing_docs)]
mod numbers {
    use super::{VFIO_BASE, VFIO_TYPE};

    vmm_sys_util::ioctl_io_nr!(VFIO_SET_IOMMU, VFIO_TYPE as u32, VFIO_BASE + 2);
    vmm_sys_util::ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 4);
    vmm_sys_util::ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, VFIO_TYPE as u32, VFIO_BASE + 6);
    vmm_sys_util::ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, VFIO_TYPE as u32, VFIO_BASE + 8);
    vmm_sys_util::ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO_TYPE as u32, VFIO_BASE + 10);
    vmm_sys_util::ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 13);
    vmm_sys_util::ioctl_io_nr!(VFIO_IOMMU_UNMAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 14);
}
use numbers::*;

/// The capability of /dev/rvmm that says that it hands devices over itself (uapi/rvmm.h).
const RVMM_CAP_ASSIGN_DEVICE: u64 = 0x5256_0001;
/// GSI of the device's message.
const GSI: u32 = 24;

/// Whether the hypervisor hands devices over itself.
pub fn is_own(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(RVMM_CAP_ASSIGN_DEVICE) > 0
}

/// The driver that a device has to have for this hypervisor.
pub fn driver(kvm: &Kvm) -> &'static str {
    if is_own(kvm) {
        "rvmm"
    } else {
        "vfio-pci"
    }
}

/// Which messages a device sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Messages {
    /// MSI, message 0.
    Msi,
    /// MSI-X, message 1 of two.
    MsiX,
}

enum Way {
    Own,
    Vfio(Vfio),
}

struct Vfio {
    _group: File,
    container: File,
    _kvm: DeviceFd,
    bell: EventFd,
}

/// A device that a VM has. Registers mapped from it have to be dropped first.
pub struct Device {
    file: File,
    way: Way,
}

fn check(result: i32, call: &'static str) -> anyhow::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error()).context(call);
    }
    Ok(result)
}

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

impl Device {
    /// Hands the device at `address` to `vm`. With VFIO it reaches no memory yet: see [`Device::map`].
    pub fn take(kvm: &Kvm, vm: &VmFd, address: Address) -> anyhow::Result<Self> {
        if is_own(kvm) {
            let file = sys::assign_device(vm, address).map_err(|(errno, reason)| {
                let error = io::Error::from_raw_os_error(errno);
                anyhow::anyhow!("{address}: {error}: {reason}")
            })?;
            let way = Way::Own;
            return Ok(Self { file, way });
        }
        let link = format!("/sys/bus/pci/devices/{address}/iommu_group");
        let link = std::fs::read_link(link).context("the device has no IOMMU group")?;
        let number = link.file_name().context("IOMMU group")?;
        let container = open(Path::new("/dev/vfio/vfio"))?;
        let group = open(&Path::new("/dev/vfio").join(number))?;
        let fd = container.as_raw_fd();
        // SAFETY: the ioctl reads an int.
        let result = unsafe { ioctl_with_ref(&group, VFIO_GROUP_SET_CONTAINER(), &fd) };
        check(result, "VFIO_GROUP_SET_CONTAINER")?;
        // SAFETY: the ioctl takes a number.
        let result =
            unsafe { ioctl_with_val(&container, VFIO_SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into()) };
        check(result, "VFIO_SET_IOMMU")?;
        let name = std::ffi::CString::new(address.to_string())?;
        // SAFETY: the ioctl reads a zero-terminated string.
        let fd = unsafe { ioctl_with_ptr(&group, VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr()) };
        let fd = check(fd, "VFIO_GROUP_GET_DEVICE_FD")?;
        // SAFETY: a new descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut request = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            fd: 0,
            flags: 0,
        };
        let known = vm
            .create_device(&mut request)
            .context("KVM_CREATE_DEVICE")?;
        let fd = group.as_raw_fd();
        known
            .set_device_attr(&kvm_device_attr {
                flags: 0,
                group: KVM_DEV_VFIO_FILE,
                attr: KVM_DEV_VFIO_FILE_ADD.into(),
                addr: &raw const fd as u64,
            })
            .context("KVM_DEV_VFIO_FILE_ADD")?;
        let way = Way::Vfio(Vfio {
            _group: group,
            container,
            _kvm: known,
            bell: EventFd::new(EFD_NONBLOCK).context("eventfd")?,
        });
        Ok(Self { file, way })
    }

    /// Whether memory has to be mapped for the device, besides being a slot of the VM.
    pub fn needs_mapping(&self) -> bool {
        matches!(self.way, Way::Vfio(_))
    }

    /// Lets the device reach the region at `iova`; on the own path the slots are what it reaches.
    pub fn map(&self, iova: u64, region: &Region) -> anyhow::Result<()> {
        let Way::Vfio(vfio) = &self.way else {
            return Ok(());
        };
        let request = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: region.address(),
            iova,
            size: region.length() as u64,
        };
        // SAFETY: the ioctl reads the structure; the region belongs to this process, and is accessed by
        // volatile reads and copies only.
        let result = unsafe { ioctl_with_ref(&vfio.container, VFIO_IOMMU_MAP_DMA(), &request) };
        check(result, "VFIO_IOMMU_MAP_DMA").map(drop)
    }

    /// Undoes [`Device::map`].
    pub fn unmap(&self, iova: u64, region: &Region) -> anyhow::Result<()> {
        let Way::Vfio(vfio) = &self.way else {
            return Ok(());
        };
        let mut request = vfio_iommu_type1_dma_unmap {
            argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
            iova,
            size: region.length() as u64,
            ..Default::default()
        };
        // SAFETY: the ioctl reads and writes the structure.
        let result =
            unsafe { ioctl_with_mut_ref(&vfio.container, VFIO_IOMMU_UNMAP_DMA(), &mut request) };
        check(result, "VFIO_IOMMU_UNMAP_DMA")?;
        anyhow::ensure!(
            request.size == region.length() as u64,
            "not all was unmapped"
        );
        Ok(())
    }

    fn vfio_region(&self, index: u32) -> anyhow::Result<vfio_region_info> {
        let mut info = vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            index,
            ..Default::default()
        };
        // SAFETY: the ioctl reads and writes the structure.
        let result =
            unsafe { ioctl_with_mut_ref(&self.file, VFIO_DEVICE_GET_REGION_INFO(), &mut info) };
        check(result, "VFIO_DEVICE_GET_REGION_INFO")?;
        Ok(info)
    }

    /// The first bytes of base address register 0, mapped into this process.
    pub fn registers(&self, length: usize) -> anyhow::Result<Registers> {
        let (size, offset) = match &self.way {
            Way::Own => {
                let region = sys::device_info(&self.file)?.regions[0];
                (region.size, region.offset)
            }
            Way::Vfio(_) => {
                let region = self.vfio_region(0)?;
                (region.size, region.offset)
            }
        };
        anyhow::ensure!(
            size >= length as u64,
            "base address register 0 is too small"
        );
        Registers::map(&self.file, offset, length).context("mapping the device's registers")
    }

    /// Lets the device speak.
    pub fn set_master(&self) -> anyhow::Result<()> {
        const COMMAND: u64 = 4;
        const MEMORY_AND_MASTER: u16 = 6;
        match &self.way {
            Way::Own => sys::set_master(&self.file, true)?,
            Way::Vfio(_) => {
                let config = self.vfio_region(VFIO_PCI_CONFIG_REGION_INDEX)?;
                self.file
                    .write_all_at(&MEMORY_AND_MASTER.to_le_bytes(), config.offset + COMMAND)?;
            }
        }
        Ok(())
    }

    /// Makes the device's message raise `vector` on the vCPU with APIC id 0.
    pub fn set_message(&self, vm: &VmFd, messages: Messages, vector: u8) -> anyhow::Result<()> {
        let route = kvm_irq_routing_entry {
            gsi: GSI,
            type_: KVM_IRQ_ROUTING_MSI,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                // Physical destination 0, edge (SDM 3A 11.11).
                msi: kvm_irq_routing_msi {
                    address_lo: 0xfee0_0000,
                    data: vector.into(),
                    ..Default::default()
                },
            },
            ..Default::default()
        };
        let routes =
            KvmIrqRouting::from_entries(&[route]).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        vm.set_gsi_routing(&routes).context("KVM_SET_GSI_ROUTING")?;
        match (&self.way, messages) {
            (Way::Own, Messages::Msi) => sys::set_irqs(&self.file, sys::IRQ_MSI, &[GSI])?,
            (Way::Own, Messages::MsiX) => {
                sys::set_irqs(&self.file, sys::IRQ_MSIX, &[sys::GSI_NONE, GSI])?;
            }
            (Way::Vfio(vfio), messages) => {
                vm.register_irqfd(&vfio.bell, GSI).context("KVM_IRQFD")?;
                let bell = vfio.bell.as_raw_fd();
                let (index, bells) = match messages {
                    Messages::Msi => (VFIO_PCI_MSI_IRQ_INDEX, &[bell][..]),
                    Messages::MsiX => (VFIO_PCI_MSIX_IRQ_INDEX, &[-1, bell][..]),
                };
                let header = size_of::<vfio_irq_set>();
                // argsz, flags, index, start, count; the descriptors follow.
                let mut words = vec![
                    (header + 4 * bells.len()) as u32,
                    VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                    index,
                    0,
                    bells.len() as u32,
                ];
                words.extend(bells.iter().map(|fd| *fd as u32));
                // SAFETY: the ioctl reads the header and as many descriptors as it says, which is what `words` holds.
                let result =
                    unsafe { ioctl_with_ptr(&self.file, VFIO_DEVICE_SET_IRQS(), words.as_ptr()) };
                check(result, "VFIO_DEVICE_SET_IRQS")?;
            }
        }
        Ok(())
    }
}

/// Registers of a device, mapped.
pub struct Registers {
    at: *mut u8,
    length: usize,
}

impl Registers {
    fn map(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = at.cast();
        Ok(Self { at, length })
    }

    /// Where the registers are mapped in this process.
    pub fn address(&self) -> u64 {
        self.at as u64
    }

    /// Bytes mapped.
    pub fn length(&self) -> usize {
        self.length
    }

    fn register(&self, at: usize) -> *mut u32 {
        assert!(at % 4 == 0 && at + 4 <= self.length, "beyond the registers");
        // SAFETY: within the mapping by the check.
        unsafe { self.at.add(at).cast() }
    }

    /// Reads the register at this offset.
    pub fn read(&self, at: usize) -> u32 {
        // SAFETY: `register` gives an aligned address within the mapping.
        unsafe { self.register(at).read_volatile() }
    }

    /// Writes the register at this offset.
    pub fn write(&self, at: usize, value: u32) {
        // SAFETY: as above.
        unsafe { self.register(at).write_volatile(value) }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; a VM that has it as memory is closed before.
        unsafe { libc::munmap(self.at.cast(), self.length) };
    }
}
