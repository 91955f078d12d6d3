// SPDX-License-Identifier: GPL-2.0
//! The file of a virtual machine (api.rst 4, "vm ioctls").

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::bus::set::{MAX_VCPUS, MAX_VCPU_ID};
use crate::kvm::device;
use crate::kvm::vcpu::VcpuFile;
use crate::linux::anon_inode::{self, FileOperations, NewFile};
use crate::mem::addr::{Gpa, Hva};
use crate::mem::slots::Slot;
use crate::mem::slots::MAX_SLOTS;
use crate::x86::vcpu::Vcpu;
use crate::x86::vm::Vm;
use core::sync::atomic::Ordering;
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use kernel::uaccess::UserPtr;

/// The file of a VM.
pub(crate) struct VmFile {
    vm: Arc<Vm>,
}

impl VmFile {
    /// What a new file of `vm` refers to.
    pub(crate) fn new(vm: Arc<Vm>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { vm }, GFP_KERNEL_ACCOUNT)?)
    }
}

#[vtable]
impl FileOperations for VmFile {
    const NAME: &'static CStr = c"kvm-vm";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.vm.check_mm()?;
        ioctl(&this.vm, cmd, arg)
    }

    fn release(this: Arc<Self>) {
        // irqfds hold wait-queue entries on other files; KVM takes them down with the VM's file as well.
        this.vm.chip.close_irqfds();
    }
}

/// vm ioctls. ENOTTY is KVM's answer to a number that it does not know.
fn ioctl(vm: &Arc<Vm>, cmd: u32, arg: usize) -> Result<isize> {
    match cmd {
        uapi::KVM_CREATE_VCPU => create_vcpu(vm, arg),
        uapi::KVM_CHECK_EXTENSION if arg == k::KVM_CAP_X86_APIC_BUS_CYCLES_NS as usize => {
            Ok(vm.caps.bus_cycle_ns() as isize)
        }
        uapi::KVM_CHECK_EXTENSION if arg == k::KVM_CAP_X2APIC_API as usize => {
            Ok(vm.chip.x2apic_api_flags() as isize)
        }
        uapi::KVM_CHECK_EXTENSION => Ok(device::check_extension(arg)),
        uapi::KVM_SET_USER_MEMORY_REGION => {
            let r = uapi::get::<k::kvm_userspace_memory_region>(arg)?;
            set_memory(
                vm,
                r.slot,
                r.flags,
                r.guest_phys_addr,
                r.memory_size,
                r.userspace_addr,
            )
        }
        uapi::KVM_SET_USER_MEMORY_REGION2 => {
            let r = uapi::get::<k::kvm_userspace_memory_region2>(arg)?;
            set_memory(
                vm,
                r.slot,
                r.flags,
                r.guest_phys_addr,
                r.memory_size,
                r.userspace_addr,
            )
        }
        uapi::KVM_GET_DIRTY_LOG => {
            let log = uapi::get::<k::kvm_dirty_log>(arg)?;
            if log.slot >= MAX_SLOTS {
                return Err(EINVAL);
            }
            // The user address is in the last eight bytes, in a union.
            let bitmap = uapi::get::<u64>(uapi::element::<u64>(arg, 0, 1)?)? as usize;
            vm.memory.dirty_log(log.slot, UserPtr::from_addr(bitmap))?;
            Ok(0)
        }
        uapi::KVM_CLEAR_DIRTY_LOG => {
            let log = uapi::get::<k::kvm_clear_dirty_log>(arg)?;
            if log.slot >= MAX_SLOTS {
                return Err(EINVAL);
            }
            // As above.
            let bitmap = uapi::get::<u64>(uapi::element::<u64>(arg, 0, 2)?)? as usize;
            vm.memory.clear_dirty_log(
                log.slot,
                log.first_page,
                log.num_pages,
                UserPtr::from_addr(bitmap),
            )?;
            Ok(0)
        }
        // Both matter only to a CPU without unrestricted guest; checked, and otherwise ignored.
        uapi::KVM_SET_TSS_ADDR if arg > 0xffff_d000 => Err(EINVAL),
        uapi::KVM_SET_TSS_ADDR => Ok(0),
        uapi::KVM_SET_IDENTITY_MAP_ADDR => {
            if !vm.setup.lock().ids.is_empty() {
                return Err(EINVAL);
            }
            let _addr = uapi::get::<u64>(arg)?;
            Ok(0)
        }
        uapi::KVM_SET_NR_MMU_PAGES if arg < 64 => Err(EINVAL),
        uapi::KVM_SET_NR_MMU_PAGES => Ok(0),
        uapi::KVM_SET_BOOT_CPU_ID => {
            let setup = vm.setup.lock();
            if !setup.ids.is_empty() {
                return Err(EBUSY);
            }
            let id = u32::try_from(arg).map_err(|_| EINVAL)?;
            if !vm.caps.may_boot(id) {
                return Err(EINVAL);
            }
            vm.boot_cpu.store(id, Ordering::Relaxed);
            Ok(0)
        }
        uapi::KVM_CREATE_IRQCHIP => {
            let setup = vm.setup.lock();
            vm.chip.create_kernel(!setup.ids.is_empty())?;
            Ok(0)
        }
        uapi::KVM_ENABLE_CAP => enable_cap(vm, &uapi::get::<k::kvm_enable_cap>(arg)?),
        uapi::KVM_CREATE_PIT => {
            let _setup = vm.setup.lock();
            let mut config = uapi::zeroed::<k::kvm_pit_config>();
            config.flags = k::KVM_PIT_SPEAKER_DUMMY;
            vm.chip.create_pit(config)?;
            Ok(0)
        }
        uapi::KVM_CREATE_PIT2 => {
            let _setup = vm.setup.lock();
            vm.chip.create_pit(uapi::get::<k::kvm_pit_config>(arg)?)?;
            Ok(0)
        }
        uapi::KVM_GET_CLOCK => {
            let mut d = uapi::zeroed::<k::kvm_clock_data>();
            let now = vm.clock.now();
            d.clock = now.ns;
            if let Some((real_ns, tsc)) = now.host {
                d.flags = k::KVM_CLOCK_TSC_STABLE | k::KVM_CLOCK_REALTIME | k::KVM_CLOCK_HOST_TSC;
                d.realtime = real_ns;
                d.host_tsc = tsc;
            }
            uapi::put(arg, &d)?;
            Ok(0)
        }
        uapi::KVM_SET_CLOCK => {
            let d = uapi::get::<k::kvm_clock_data>(arg)?;
            if d.flags & !(k::KVM_CLOCK_REALTIME | k::KVM_CLOCK_TSC_STABLE | k::KVM_CLOCK_HOST_TSC)
                != 0
            {
                return Err(EINVAL);
            }
            let real_ns = (d.flags & k::KVM_CLOCK_REALTIME != 0).then_some(d.realtime);
            vm.clock.set(&vm.vcpus, d.clock, real_ns);
            Ok(0)
        }
        uapi::KVM_GET_TSC_KHZ => Ok(vm.tsc_khz.load(Ordering::Relaxed) as isize),
        uapi::KVM_SET_TSC_KHZ => {
            let khz = crate::x86::vcpu::state::wanted_tsc_khz(arg)?;
            let setup = vm.setup.lock();
            if !setup.ids.is_empty() {
                return Err(EINVAL);
            }
            vm.tsc_khz.store(khz, Ordering::Relaxed);
            Ok(0)
        }
        uapi::KVM_CREATE_DEVICE => crate::assign::vfio::create_device(vm, arg),
        uapi::RVMM_ASSIGN_DEVICE => crate::assign::assign(vm, arg),
        uapi::KVM_X86_SET_MSR_FILTER => {
            vm.caps.set_msr_filter(arg)?;
            vm.vcpus
                .request_all(crate::x86::shared::request::MSR_FILTER);
            Ok(0)
        }
        uapi::KVM_GET_STATS_FD => crate::kvm::stats::vm_stats_fd(vm),
        _ => vm.chip.ioctl(cmd, arg),
    }
}

fn enable_cap(vm: &Vm, cap: &k::kvm_enable_cap) -> Result<isize> {
    if cap.flags != 0 {
        return Err(EINVAL);
    }
    match cap.cap {
        k::KVM_CAP_SPLIT_IRQCHIP => {
            let setup = vm.setup.lock();
            vm.chip.create_split(cap.args[0], !setup.ids.is_empty())?;
            Ok(0)
        }
        k::KVM_CAP_X2APIC_API => vm.chip.enable_x2apic_api(cap.args[0]).map(|()| 0),
        k::KVM_CAP_EXCEPTION_PAYLOAD => {
            vm.exception_payload
                .store(cap.args[0] != 0, Ordering::Relaxed);
            Ok(0)
        }
        k::KVM_CAP_X86_TRIPLE_FAULT_EVENT => {
            vm.triple_fault_event
                .store(cap.args[0] != 0, Ordering::Relaxed);
            Ok(0)
        }
        k::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => {
            let enable = u64::from(k::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
            let initially_set = u64::from(k::KVM_DIRTY_LOG_INITIALLY_SET);
            let allowed = if cap.args[0] & enable != 0 {
                enable | initially_set
            } else {
                enable
            };
            if cap.args[0] & !allowed != 0 {
                return Err(EINVAL);
            }
            vm.memory
                .set_manual_protect(cap.args[0] & enable != 0, cap.args[0] & initially_set != 0);
            Ok(0)
        }
        _ => {
            let setup = vm.setup.lock();
            vm.caps.enable(
                cap,
                !setup.ids.is_empty(),
                vm.chip.has_lapic(),
                vm.boot_cpu(),
            )?;
            if cap.cap == k::KVM_CAP_VM_DISABLE_NX_HUGE_PAGES {
                vm.memory.allow_executable_huge_pages();
            }
            Ok(0)
        }
    }
}

#[inline(never)]
fn set_memory(vm: &Vm, slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Result<isize> {
    // Address space in the upper half: there is one.
    if slot >> 16 != 0 || slot >= MAX_SLOTS {
        return Err(EINVAL);
    }
    if size & 0xfff != 0 {
        return Err(EINVAL);
    }
    vm.memory.set_slot(Slot {
        id: slot,
        gpa: Gpa(gpa),
        npages: size >> 12,
        hva: Hva(hva),
        flags,
    })?;
    Ok(0)
}

#[inline(never)]
fn create_vcpu(vm: &Arc<Vm>, id: usize) -> Result<isize> {
    let id = u32::try_from(id).map_err(|_| EINVAL)?;
    if id >= MAX_VCPU_ID {
        return Err(EINVAL);
    }
    let mut setup = vm.setup.lock();
    if setup.ids.len() >= MAX_VCPUS {
        return Err(EINVAL);
    }
    vm.caps.check_vcpu_id(id)?;
    if setup.ids.contains(&id) {
        return Err(EEXIST);
    }
    // Reserve, build, install last: nobody can use the vCPU before it is complete.
    setup.ids.reserve(1, GFP_KERNEL_ACCOUNT)?;
    let vcpu = Vcpu::new(vm, id)?;
    let shared = vcpu.shared.clone();
    let file = NewFile::new(VcpuFile::new(vm.clone(), vcpu.clone())?)?;
    vm.vcpus.push(shared)?;
    // Counts the vCPUs, so it comes after.
    vcpu.start_tsc(vm)?;
    let _ = setup.ids.push_within_capacity(id);
    Ok(file.install() as isize)
}

/// An anonymous file of the VM, for other modules of this crate.
pub(crate) fn install<T: FileOperations>(data: Arc<T>) -> Result<isize> {
    Ok(anon_inode::install(data)? as isize)
}
