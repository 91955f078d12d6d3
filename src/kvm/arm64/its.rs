// SPDX-License-Identifier: GPL-2.0
//! KVM_DEV_TYPE_ARM_VGIC_ITS and its attributes (kernel document virt/kvm/devices/arm-vgic-its.rst).

use crate::abi::uapi::{self, k};
use crate::arch::{InMemory, Its, Vcpu, Vgic, Vm, ITS_FRAMES};
use crate::bus::set::hold;
use crate::kvm::arm64::vgic::check_range;
use crate::linux::anon_inode::{FileOperations, NewFile};
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// The device's file.
struct ItsDevice {
    vm: Arc<Vm>,
    vgic: Arc<Vgic>,
    its: Arc<Its>,
}

/// An ITS, which stays until the VM goes. ENODEV: no interrupt controller; ENOSPC: there are too many.
pub(super) fn create(vm: &Arc<Vm>) -> Result<NewFile> {
    let vgic = Arc::<Vgic>::from(vm.vgic().ok_or(ENODEV)?);
    let its = vgic.add_its()?;
    let vm = vm.clone();
    NewFile::new(Arc::new(ItsDevice { vm, vgic, its }, GFP_KERNEL_ACCOUNT)?)
}

#[vtable]
impl FileOperations for ItsDevice {
    const NAME: &'static CStr = c"kvm-arm-vgic-its";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.vm.check_mm()?;
        let attr = || uapi::get::<k::kvm_device_attr>(arg);
        match cmd {
            uapi::KVM_SET_DEVICE_ATTR => this.set(&attr()?)?,
            uapi::KVM_GET_DEVICE_ATTR => this.get(&attr()?)?,
            uapi::KVM_HAS_DEVICE_ATTR => Self::has(&attr()?)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

impl ItsDevice {
    fn tables(&self) -> InMemory<'_> {
        InMemory {
            vgic: &self.vgic,
            memory: &self.vm.memory,
            ring: &None,
        }
    }

    /// KVM_HAS_DEVICE_ATTR. ENXIO: it has not; EINVAL: a register that is not aligned.
    fn has(a: &k::kvm_device_attr) -> Result {
        let there = match a.group {
            k::KVM_DEV_ARM_VGIC_GRP_ADDR => a.attr == u64::from(k::KVM_VGIC_ITS_ADDR_TYPE),
            k::KVM_DEV_ARM_VGIC_GRP_CTRL => matches!(
                u32::try_from(a.attr)?,
                k::KVM_DEV_ARM_VGIC_CTRL_INIT
                    | k::KVM_DEV_ARM_ITS_CTRL_RESET
                    | k::KVM_DEV_ARM_ITS_SAVE_TABLES
                    | k::KVM_DEV_ARM_ITS_RESTORE_TABLES
            ),
            k::KVM_DEV_ARM_VGIC_GRP_ITS_REGS => return InMemory::has_register(a.attr),
            _ => false,
        };
        there.then_some(()).ok_or(ENXIO)
    }

    /// KVM_GET_DEVICE_ATTR. ENXIO, ENODEV: there is nothing like that.
    fn get(&self, a: &k::kvm_device_attr) -> Result {
        let addr = usize::try_from(a.addr)?;
        match a.group {
            k::KVM_DEV_ARM_VGIC_GRP_ADDR if a.attr != u64::from(k::KVM_VGIC_ITS_ADDR_TYPE) => {
                Err(ENODEV)
            }
            k::KVM_DEV_ARM_VGIC_GRP_ADDR => uapi::put(addr, &self.its.base()),
            k::KVM_DEV_ARM_VGIC_GRP_ITS_REGS => {
                let value = self.register(a.attr, None)?;
                uapi::put(addr, &value)
            }
            _ => Err(ENXIO),
        }
    }

    /// KVM_SET_DEVICE_ATTR. Besides: EEXIST: it has a place already; E2BIG, EINVAL: it cannot have that one; EBUSY: a
    /// vCPU runs.
    fn set(&self, a: &k::kvm_device_attr) -> Result {
        let addr = usize::try_from(a.addr)?;
        match a.group {
            k::KVM_DEV_ARM_VGIC_GRP_ADDR if a.attr != u64::from(k::KVM_VGIC_ITS_ADDR_TYPE) => {
                Err(ENODEV)
            }
            k::KVM_DEV_ARM_VGIC_GRP_ADDR => {
                let base = uapi::get::<u64>(addr)?;
                if self.its.base() != Its::UNDEFINED {
                    return Err(EEXIST);
                }
                check_range(base, ITS_FRAMES, self.vm.address_bits)?;
                self.its.set_base(base)
            }
            k::KVM_DEV_ARM_VGIC_GRP_CTRL => self.control(u32::try_from(a.attr)?),
            k::KVM_DEV_ARM_VGIC_GRP_ITS_REGS => {
                let value = uapi::get::<u64>(addr)?;
                self.register(a.attr, Some(value)).map(|_| ())
            }
            _ => Err(ENXIO),
        }
    }

    fn control(&self, what: u32) -> Result {
        if what == k::KVM_DEV_ARM_VGIC_CTRL_INIT {
            return Ok(());
        }
        let setup = self.vm.setup.lock();
        let _held = hold(&setup.vcpus, Vcpu::lock_now)?;
        let tables = self.tables();
        match what {
            k::KVM_DEV_ARM_ITS_CTRL_RESET => {
                tables.reset(&self.its);
                Ok(())
            }
            k::KVM_DEV_ARM_ITS_SAVE_TABLES => tables.save(&self.its),
            k::KVM_DEV_ARM_ITS_RESTORE_TABLES => tables.restore(&self.its),
            _ => Err(ENXIO),
        }
    }

    /// Reads a register, or writes it. EINVAL: not aligned; EBUSY: a vCPU runs; ENXIO: it is nowhere yet, or there is
    /// no such register.
    fn register(&self, at: u64, value: Option<u64>) -> Result<u64> {
        let there = InMemory::has_register(at);
        if there == Err(EINVAL) {
            there?;
        }
        let setup = self.vm.setup.lock();
        let _held = hold(&setup.vcpus, Vcpu::lock_now)?;
        if self.its.base() == Its::UNDEFINED {
            return Err(ENXIO);
        }
        there?;
        let tables = self.tables();
        match value {
            Some(value) => tables.restore_its(&self.its, at, value).map(|()| value),
            None => Ok(tables.read_its_for_user(&self.its, at)),
        }
    }
}
