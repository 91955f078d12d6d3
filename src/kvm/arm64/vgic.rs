// SPDX-License-Identifier: GPL-2.0
//! KVM_DEV_TYPE_ARM_VGIC_V3 and its attributes (kernel document virt/kvm/devices/arm-vgic-v3.rst).

use crate::abi::uapi::{self, k};
use crate::arch::{
    gic_kind, By, Frame, Gic, InMemory, Interface, Region, Setup, State, SysReg, Vcpu, Vgic, Vm,
    AFFINITY, BANK, FRAME, MAX_INTIDS, REDISTRIBUTOR,
};
use crate::bus::set::hold;
use crate::linux::anon_inode::{FileOperations, NewFile};
use crate::nospec::Nospec;
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// Regions of redistributors that user space may say.
const MAX_REGIONS: usize = 512;
/// KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO: VGIC_LEVEL_INFO_LINE_LEVEL.
const LINE_LEVEL: u64 = 0;

/// The device's file.
struct VgicDevice {
    vm: Arc<Vm>,
    vgic: Arc<Vgic>,
}

/// The device, of which a VM has one. EEXIST: there is one; EBUSY: a vCPU has run.
pub(super) fn create(vm: &Arc<Vm>) -> Result<NewFile> {
    if vm.vgic().is_some() {
        return Err(EEXIST);
    }
    if vm.has_run.load(core::sync::atomic::Ordering::Relaxed) {
        return Err(EBUSY);
    }
    let vgic = vm.make_vgic()?;
    let vm = vm.clone();
    NewFile::new(Arc::new(VgicDevice { vm, vgic }, GFP_KERNEL_ACCOUNT)?)
}

#[vtable]
impl FileOperations for VgicDevice {
    const NAME: &'static CStr = c"kvm-arm-vgic-v3";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.vm.check_mm()?;
        let attr = || uapi::get::<k::kvm_device_attr>(arg);
        match cmd {
            uapi::KVM_SET_DEVICE_ATTR => this.access(&attr()?, true)?,
            uapi::KVM_GET_DEVICE_ATTR => this.access(&attr()?, false)?,
            uapi::KVM_HAS_DEVICE_ATTR => this.has(&attr()?)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

impl VgicDevice {
    fn tables(&self) -> InMemory<'_> {
        InMemory {
            vgic: &self.vgic,
            memory: &self.vm.memory,
            ring: &None,
        }
    }

    /// KVM_HAS_DEVICE_ATTR. ENXIO: it has not.
    fn has(&self, a: &k::kvm_device_attr) -> Result {
        let there = match a.group {
            k::KVM_DEV_ARM_VGIC_GRP_ADDR => matches!(
                u32::try_from(a.attr).map_err(|_| ENXIO)?,
                k::KVM_VGIC_V3_ADDR_TYPE_DIST
                    | k::KVM_VGIC_V3_ADDR_TYPE_REDIST
                    | k::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION
            ),
            k::KVM_DEV_ARM_VGIC_GRP_NR_IRQS => true,
            k::KVM_DEV_ARM_VGIC_GRP_CTRL => matches!(
                u32::try_from(a.attr).map_err(|_| ENXIO)?,
                k::KVM_DEV_ARM_VGIC_CTRL_INIT | k::KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES
            ),
            k::KVM_DEV_ARM_VGIC_GRP_DIST_REGS => {
                Gic::exists(Frame::Distributor, a.attr & 0xffff_ffff)
            }
            k::KVM_DEV_ARM_VGIC_GRP_REDIST_REGS => {
                let (frame, at) = redistributor(0, a.attr);
                Gic::exists(frame, at)
            }
            k::KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS => {
                Interface::RESET.get(register(a.attr), gic_kind()).is_some()
            }
            k::KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO => level_of(a.attr).is_ok(),
            _ => false,
        };
        if there {
            Ok(())
        } else {
            Err(ENXIO)
        }
    }

    /// KVM_SET_DEVICE_ATTR (`write`) and KVM_GET_DEVICE_ATTR.
    fn access(&self, a: &k::kvm_device_attr, write: bool) -> Result {
        let addr = usize::try_from(a.addr)?;
        match a.group {
            k::KVM_DEV_ARM_VGIC_GRP_ADDR => self.address(u32::try_from(a.attr)?, addr, write),
            k::KVM_DEV_ARM_VGIC_GRP_NR_IRQS => self.count(addr, write),
            k::KVM_DEV_ARM_VGIC_GRP_CTRL
                if write && a.attr == u64::from(k::KVM_DEV_ARM_VGIC_CTRL_INIT) =>
            {
                // No vCPU comes meanwhile.
                let _setup = self.vm.setup.lock();
                self.vgic.init()
            }
            k::KVM_DEV_ARM_VGIC_GRP_CTRL
                if write && a.attr == u64::from(k::KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES) =>
            {
                let setup = self.vm.setup.lock();
                let _held = hold(&setup.vcpus, Vcpu::lock_now)?;
                if !self.vgic.is_ready() {
                    return Err(ENXIO);
                }
                self.tables().save_pending()
            }
            k::KVM_DEV_ARM_VGIC_GRP_DIST_REGS
            | k::KVM_DEV_ARM_VGIC_GRP_REDIST_REGS
            | k::KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS
            | k::KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO => self.registers(a, addr, write),
            _ => Err(ENXIO),
        }
    }

    /// How many numbers of interrupts there are. EINVAL; EBUSY: that has been said, or it has been initialised.
    fn count(&self, addr: usize, write: bool) -> Result {
        let mut config = self.vgic.config.lock();
        if !write {
            // KVM says 32 before that.
            return uapi::put(addr, &config.intids.max(BANK));
        }
        let wanted = uapi::get::<u32>(addr)?;
        if !(2 * BANK..MAX_INTIDS).contains(&wanted) || wanted % BANK != 0 {
            return Err(EINVAL);
        }
        if config.intids != 0 {
            return Err(EBUSY);
        }
        config.intids = wanted;
        Ok(())
    }

    /// Where it is in guest memory. EINVAL: not aligned, or past an overlap; E2BIG: past the end; EEXIST: said before;
    /// ENXIO: there is nothing like that; ENOENT: no such region.
    fn address(&self, what: u32, addr: usize, write: bool) -> Result {
        const UNDEFINED: u64 = u64::MAX;
        let mut config = self.vgic.config.lock();
        let is_region = what == k::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION;
        let given = if write || is_region {
            uapi::get::<u64>(addr)?
        } else {
            0
        };
        if !write {
            let first = config.regions.first().map(|r| r.base);
            let value = match what {
                k::KVM_VGIC_V3_ADDR_TYPE_DIST => config.distributor.unwrap_or(UNDEFINED),
                k::KVM_VGIC_V3_ADDR_TYPE_REDIST => first.unwrap_or(UNDEFINED),
                _ if is_region => {
                    let index = given & 0xfff;
                    let r = config.regions.get_nospec(index as usize).ok_or(ENOENT)?;
                    index | r.base | u64::from(r.count) << 52
                }
                _ => return Err(ENXIO),
            };
            return uapi::put(addr, &value);
        }
        if self.vgic.is_fixed() {
            return Err(EBUSY);
        }
        match what {
            k::KVM_VGIC_V3_ADDR_TYPE_DIST => {
                if config.distributor.is_some() {
                    return Err(EEXIST);
                }
                check_range(given, FRAME, self.vm.address_bits)?;
                config.distributor = Some(given);
            }
            k::KVM_VGIC_V3_ADDR_TYPE_REDIST => {
                match config.regions.first() {
                    Some(r) if r.count == 0 => return Err(EEXIST),
                    Some(_) => return Err(EINVAL),
                    None => {}
                }
                check_range(given, REDISTRIBUTOR, self.vm.address_bits)?;
                let region = Region {
                    base: given,
                    count: 0,
                };
                config.regions.push(region, GFP_KERNEL_ACCOUNT)?;
            }
            _ if is_region => {
                // Bits 11:0 index, 15:12 flags, 51:16 base, 63:52 count.
                let (index, flags, count) = (given & 0xfff, given >> 12 & 0xf, given >> 52);
                let base = given & 0xf_ffff_ffff_0000;
                let known = config.regions.len() as u64;
                // One that has no count has room for all.
                let open = config.regions.iter().any(|r| r.count == 0);
                if count == 0 || flags != 0 || open || index != known {
                    return Err(EINVAL);
                }
                if config.regions.len() >= MAX_REGIONS {
                    return Err(EINVAL);
                }
                let size = count.wrapping_mul(REDISTRIBUTOR);
                check_range(base, size, self.vm.address_bits)?;
                let overlaps = config.regions.iter().any(|r| {
                    let end = r
                        .base
                        .wrapping_add(u64::from(r.count).wrapping_mul(REDISTRIBUTOR));
                    base < end && r.base < base.wrapping_add(size)
                });
                let end = base.wrapping_add(size);
                let collides = config
                    .distributor
                    .is_some_and(|d| base < d.wrapping_add(FRAME) && d < end);
                if overlaps || collides {
                    return Err(EINVAL);
                }
                let count = count as u32;
                config
                    .regions
                    .push(Region { base, count }, GFP_KERNEL_ACCOUNT)?;
            }
            _ => return Err(ENXIO),
        }
        self.vgic.mark_last(&config);
        Ok(())
    }

    /// Registers. No vCPU may run meanwhile: EBUSY, also before it is initialised. EINVAL: no such vCPU. ENXIO: no such
    /// register.
    fn registers(&self, a: &k::kvm_device_attr, addr: usize, write: bool) -> Result {
        let setup = self.vm.setup.lock();
        let index = if a.group == k::KVM_DEV_ARM_VGIC_GRP_DIST_REGS {
            0
        } else {
            of_affinity(&setup, a.attr >> 32)?
        };
        // Nobody is in KVM_RUN until this is done.
        let mut held = hold(&setup.vcpus, Vcpu::lock_now)?;
        // What the implementation is can be asked before.
        const IIDR: u64 = 8;
        const TYPER2: u64 = 0xc;
        let at = a.attr & 0xffff_ffff;
        let early = a.group == k::KVM_DEV_ARM_VGIC_GRP_DIST_REGS && matches!(at, IIDR | TYPER2);
        if !self.vgic.is_ready() && !early {
            return Err(EBUSY);
        }
        let (frame, at) = match a.group {
            k::KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS => {
                let state = held.get_mut(index).ok_or(EINVAL)?;
                return system(state, a.attr, addr, write);
            }
            k::KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO => {
                let intid = level_of(a.attr)?;
                return self.levels(index, intid, addr, write);
            }
            k::KVM_DEV_ARM_VGIC_GRP_DIST_REGS => (Frame::Distributor, a.attr & 0xffff_ffff),
            _ => redistributor(index, a.attr),
        };
        if !Gic::exists(frame, at) {
            return Err(ENXIO);
        }
        if write {
            let value = uapi::get::<u32>(addr)?;
            // What says which implementation it is can only stay what it is.
            if early {
                let same = u64::from(value) == self.vgic.read(frame, at, 4, By::User);
                return match (same, at) {
                    (true, _) => Ok(()),
                    (false, TYPER2) if self.vgic.is_ready() => Err(EBUSY),
                    _ => Err(EINVAL),
                };
            }
            self.tables().write(frame, at, 4, value.into(), By::User);
            Ok(())
        } else {
            uapi::put(addr, &(self.vgic.read(frame, at, 4, By::User) as u32))
        }
    }

    fn levels(&self, index: usize, intid: u32, addr: usize, write: bool) -> Result {
        if write {
            let levels = uapi::get::<u32>(addr)?;
            self.vgic.with(|g| g.set_levels(index, intid, levels));
            return Ok(());
        }
        uapi::put(addr, &self.vgic.with(|g| g.levels(index, intid)))
    }
}

/// E2BIG: past the end of guest memory; EINVAL: not aligned.
pub(super) fn check_range(base: u64, size: u64, address_bits: u32) -> Result {
    if base % FRAME != 0 {
        return Err(EINVAL);
    }
    match base.checked_add(size) {
        Some(end) if end <= 1 << address_bits => Ok(()),
        _ => Err(E2BIG),
    }
}

/// The frame of a redistributor, and the place in it.
fn redistributor(index: usize, attr: u64) -> (Frame, u64) {
    let at = attr & 0xffff_ffff;
    if at < FRAME {
        (Frame::Control(index), at)
    } else {
        (Frame::Private(index), at.wrapping_sub(FRAME))
    }
}

/// The system register that an attribute names.
fn register(attr: u64) -> SysReg {
    SysReg(attr as u16)
}

/// The first of the 32 interrupts whose levels an attribute means. EINVAL.
fn level_of(attr: u64) -> Result<u32> {
    let (intid, what) = (attr & 0x3ff, attr >> 10 & 0x3f_ffff);
    if what != LINE_LEVEL || intid % u64::from(BANK) != 0 {
        return Err(EINVAL);
    }
    Ok(intid as u32)
}

/// Index of the vCPU with this affinity: 8 bits for each of levels 0 to 3. EINVAL.
fn of_affinity(setup: &Setup, affinity: u64) -> Result<usize> {
    let same = |v: &Arc<Vcpu>| v.shared.arch.mpidr() & AFFINITY == affinity;
    setup.vcpus.iter().position(same).ok_or(EINVAL)
}

/// ICC_*_EL1 of a vCPU: 64 bits each.
fn system(s: &mut State, attr: u64, addr: usize, write: bool) -> Result {
    let (reg, kind) = (register(attr), gic_kind());
    let interface = &mut s.guest.interface;
    if write {
        match interface.set(reg, uapi::get(addr)?, kind) {
            Some(true) => Ok(()),
            Some(false) => Err(EINVAL),
            None => Err(ENXIO),
        }
    } else {
        uapi::put(addr, &interface.get(reg, kind).ok_or(ENXIO)?)
    }
}
