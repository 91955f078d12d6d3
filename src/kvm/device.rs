// SPDX-License-Identifier: GPL-2.0
//! The device: /dev/rvmm and, on request, /dev/kvm. System ioctls (api.rst 4, "system ioctls").

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::bus::set::{MAX_VCPUS, MAX_VCPU_ID};
use crate::kvm::vm::VmFile;
use crate::linux::anon_inode;
use crate::linux::misc;
use crate::mem::slots::MAX_SLOTS;
use crate::x86::cpu::cpuid;
use crate::x86::cpu::cpuid::CpuidEntry;
use crate::x86::cpu::model::{lists_msr, model};
use crate::x86::cpu::msr;
use crate::x86::enabled;
use crate::x86::irqchip::route::MAX_ROUTES;
use crate::x86::vendor::choose;
use crate::x86::vm::Vm;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::fs::File;
use kernel::miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration};
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

/// The module's init has succeeded.
static READY: AtomicBool = AtomicBool::new(false);

/// Lets files be opened.
pub(crate) fn set_ready() {
    READY.store(true, Ordering::Release);
}

/// KVM_CHECK_EXTENSION, the same on every file. What is not listed is not there.
pub(crate) fn check_extension(cap: usize) -> isize {
    let Ok(cap) = u32::try_from(cap) else {
        return 0;
    };
    match cap {
        k::KVM_CAP_IRQCHIP
        | k::KVM_CAP_HLT
        | k::KVM_CAP_USER_MEMORY
        | k::KVM_CAP_SET_TSS_ADDR
        | k::KVM_CAP_EXT_CPUID
        | k::KVM_CAP_EXT_EMUL_CPUID
        | k::KVM_CAP_NOP_IO_DELAY
        | k::KVM_CAP_MP_STATE
        | k::KVM_CAP_SYNC_MMU
        | k::KVM_CAP_DESTROY_MEMORY_REGION_WORKS
        | k::KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
        | k::KVM_CAP_USER_NMI
        | k::KVM_CAP_IRQ_INJECT_STATUS
        | k::KVM_CAP_IRQFD
        | k::KVM_CAP_IRQFD_RESAMPLE
        | k::KVM_CAP_REINJECT_CONTROL
        | k::KVM_CAP_PIT2
        | k::KVM_CAP_PIT_STATE2
        | k::KVM_CAP_IOEVENTFD
        | k::KVM_CAP_IOEVENTFD_NO_LENGTH
        | k::KVM_CAP_IOEVENTFD_ANY_LENGTH
        | k::KVM_CAP_SET_IDENTITY_MAP_ADDR
        | k::KVM_CAP_INTERNAL_ERROR_DATA
        | k::KVM_CAP_VCPU_EVENTS
        | k::KVM_CAP_DEBUGREGS
        | k::KVM_CAP_XSAVE
        | k::KVM_CAP_SIGNAL_MSI
        | k::KVM_CAP_GET_TSC_KHZ
        | k::KVM_CAP_TSC_DEADLINE_TIMER
        | k::KVM_CAP_READONLY_MEM
        | k::KVM_CAP_CHECK_EXTENSION_VM
        | k::KVM_CAP_ENABLE_CAP_VM
        | k::KVM_CAP_ENABLE_CAP
        | k::KVM_CAP_SPLIT_IRQCHIP
        | k::KVM_CAP_IMMEDIATE_EXIT
        | k::KVM_CAP_BINARY_STATS_FD
        | k::KVM_CAP_SET_BOOT_CPU_ID
        | k::KVM_CAP_CLOCKSOURCE
        | k::KVM_CAP_SREGS2
        | k::KVM_CAP_GET_MSR_FEATURES
        | k::KVM_CAP_SYS_ATTRIBUTES
        | k::KVM_CAP_EXCEPTION_PAYLOAD
        | k::KVM_CAP_X86_TRIPLE_FAULT_EVENT
        | k::KVM_CAP_STEAL_TIME
        | k::KVM_CAP_VCPU_ATTRIBUTES
        | k::KVM_CAP_KVMCLOCK_CTRL
        | k::KVM_CAP_ENFORCE_PV_FEATURE_CPUID
        | k::KVM_CAP_USER_MEMORY2
        | k::KVM_CAP_MEMORY_FAULT_INFO
        | k::KVM_CAP_PRE_FAULT_MEMORY
        | k::KVM_CAP_VM_TYPES
        | k::KVM_CAP_SET_GUEST_DEBUG
        | k::KVM_CAP_X86_ROBUST_SINGLESTEP
        | k::KVM_CAP_COALESCED_PIO
        | uapi::RVMM_CAP_ENTRY_FAILURE => 1,
        uapi::RVMM_CAP_ASSIGN_DEVICE | k::KVM_CAP_DEVICE_CTRL => 1,
        k::KVM_CAP_SET_GUEST_DEBUG2 => crate::x86::vcpu::debug::CONTROLS as isize,
        k::KVM_CAP_SYNC_REGS => crate::x86::vcpu::abi::SYNC_REGS as isize,
        k::KVM_CAP_XSAVE2 => 4096,
        k::KVM_CAP_TSC_CONTROL | k::KVM_CAP_VM_TSC_CONTROL => {
            choose::caps().is_some_and(|c| c.tsc_fraction != 0).into()
        }
        k::KVM_CAP_XCRS => model().is_ok_and(|m| m.has_xsave).into(),
        k::KVM_CAP_ADJUST_CLOCK => {
            (k::KVM_CLOCK_TSC_STABLE | k::KVM_CLOCK_REALTIME | k::KVM_CLOCK_HOST_TSC) as isize
        }
        k::KVM_CAP_NR_VCPUS => (crate::linux::smp::num_online() as usize).min(MAX_VCPUS) as isize,
        k::KVM_CAP_MAX_VCPUS => MAX_VCPUS as isize,
        k::KVM_CAP_MAX_VCPU_ID => MAX_VCPU_ID as isize,
        k::KVM_CAP_NR_MEMSLOTS => MAX_SLOTS as isize,
        k::KVM_CAP_IRQ_ROUTING => MAX_ROUTES as isize,
        k::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => {
            (k::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | k::KVM_DIRTY_LOG_INITIALLY_SET) as isize
        }
        k::KVM_CAP_MCE => msr::MCE_BANKS as isize,
        k::KVM_CAP_X2APIC_API => crate::x86::shared::x2apic_api::VALID as isize,
        k::KVM_CAP_COALESCED_MMIO => k::KVM_COALESCED_MMIO_PAGE_OFFSET as isize,
        other => enabled::check_extension(other).unwrap_or(0),
    }
}

/// Copies a `struct kvm_msr_list` out: the count is updated first, then E2BIG when there is no room (api.rst 4.3).
fn put_msr_list(arg: usize, list: &[u32]) -> Result<isize> {
    let room = uapi::get::<u32>(arg)? as usize;
    uapi::put(arg, &(list.len() as u32))?;
    if room < list.len() {
        return Err(E2BIG);
    }
    let at = arg.checked_add(4).ok_or(EFAULT)?;
    let mut out = UserSlice::new(UserPtr::from_addr(at), size_of_val(list)).writer();
    for v in list {
        out.write(v)?;
    }
    Ok(0)
}

/// KVM_GET_MSRS on the device: MSRs that tell features (api.rst 4.18).
fn get_feature_msrs(arg: usize) -> Result<isize> {
    let m = model()?;
    let mut file = KBox::new(msr::MsrFile::ZERO, GFP_KERNEL)?;
    file.reset(&m.msr_config());
    let access = msr::Access {
        guest: &m.features,
        host: &m.features,
        host_initiated: true,
        xss_allowed: 0,
        enforce_pv: false,
    };
    let listed = msr::feature_list(&m.features);
    crate::x86::vcpu::abi::each_msr(arg, true, |e| match file.get(e.index, &access) {
        Ok(msr::Read::Value(v)) if listed.contains(&e.index) => {
            e.data = v;
            true
        }
        // As vCPUs read those that they do not have; and the features that no vCPU has are none.
        _ if lists_msr(e.index) => {
            e.data = 0;
            true
        }
        _ => false,
    })
}

/// KVM_GET_DEVICE_ATTR and KVM_HAS_DEVICE_ATTR on the device (KVM_CAP_SYS_ATTRIBUTES).
fn device_attr(cmd: u32, a: &k::kvm_device_attr) -> Result<isize> {
    if a.group != 0 || a.attr != u64::from(k::KVM_X86_XCOMP_GUEST_SUPP) {
        return Err(ENXIO);
    }
    if cmd == uapi::KVM_GET_DEVICE_ATTR {
        uapi::put(a.addr as usize, &model()?.xcr0)?;
    }
    Ok(0)
}

fn get_supported_cpuid(arg: usize) -> Result<isize> {
    let model = model()?;
    let room = uapi::get::<u32>(arg)? as usize;
    let n = model.supported.len();
    if room < n {
        return Err(E2BIG);
    }
    uapi::put_cpuid(arg, &model.supported)?;
    Ok(0)
}

/// KVM_GET_EMULATED_CPUID (api.rst 4.88): features that only the instruction emulator has. There are none: the leaves
/// that KVM gives, without a bit.
fn get_emulated_cpuid(arg: usize) -> Result<isize> {
    let leaf = |function, eax, flags| CpuidEntry {
        function,
        eax,
        flags,
        ..CpuidEntry::default()
    };
    let table = [
        leaf(0, 7, 0),
        leaf(1, 0, 0),
        leaf(7, 0, cpuid::FLAG_SIGNIFICANT_INDEX),
    ];
    let room = (uapi::get::<u32>(arg)? as usize).min(cpuid::MAX_ENTRIES);
    if room == 0 {
        return Err(E2BIG);
    }
    for i in 0..room {
        let at = uapi::element::<k::kvm_cpuid_entry2>(arg, 8, i)?;
        let entry = uapi::get::<k::kvm_cpuid_entry2>(at).map_err(|_| EINVAL)?;
        if entry.padding != [0; 3] {
            return Err(EINVAL);
        }
    }
    // One more than there are, as KVM wants it.
    if room <= table.len() {
        return Err(E2BIG);
    }
    uapi::put_cpuid(arg, &table)?;
    Ok(0)
}

fn create_vm(kind: usize) -> Result<isize> {
    if kind != 0 {
        return Err(EINVAL);
    }
    let vm = Vm::new()?;
    Ok(anon_inode::install(VmFile::new(vm)?)? as isize)
}

/// System ioctls.
fn ioctl(cmd: u32, arg: usize) -> Result<isize> {
    match cmd {
        uapi::KVM_GET_API_VERSION if arg == 0 => Ok(k::KVM_API_VERSION as isize),
        uapi::KVM_CREATE_VM => create_vm(arg),
        uapi::KVM_CHECK_EXTENSION => Ok(check_extension(arg)),
        uapi::KVM_GET_VCPU_MMAP_SIZE if arg == 0 => Ok(crate::x86::vcpu::MMAP_BYTES as isize),
        uapi::KVM_GET_SUPPORTED_CPUID => get_supported_cpuid(arg),
        uapi::KVM_GET_EMULATED_CPUID => get_emulated_cpuid(arg),
        uapi::KVM_GET_MSR_INDEX_LIST => put_msr_list(arg, &model()?.msrs),
        uapi::KVM_GET_MSR_FEATURE_INDEX_LIST => {
            put_msr_list(arg, msr::feature_list(&model()?.features))
        }
        uapi::KVM_GET_MSRS => get_feature_msrs(arg),
        uapi::KVM_GET_DEVICE_ATTR | uapi::KVM_HAS_DEVICE_ATTR => device_attr(cmd, &uapi::get(arg)?),
        uapi::KVM_X86_GET_MCE_CAP_SUPPORTED => {
            uapi::put(arg, &(msr::MCE_CAP_SUPPORTED | msr::MCE_BANKS as u64)).map(|()| 0)
        }
        uapi::KVM_GET_API_VERSION | uapi::KVM_GET_VCPU_MMAP_SIZE => Err(EINVAL),
        // KVM's answer to a number that it does not know.
        _ => Err(EINVAL),
    }
}

/// /dev/rvmm.
#[derive(Clone, Copy)]
pub(crate) struct RvmmDevice;

/// /dev/kvm, the same under another name.
#[derive(Clone, Copy)]
pub(crate) struct KvmNode;

/// Registration of /dev/rvmm.
pub(crate) fn options() -> MiscDeviceOptions {
    MiscDeviceOptions { name: c"rvmm" }
}

/// Registration of /dev/kvm, free while no KVM vendor module is loaded.
pub(crate) fn register_kvm_node() -> impl PinInit<MiscDeviceRegistration<KvmNode>, Error> {
    // Under KVM's number, which static nodes and jails that make their own node use.
    misc::register_with_minor(MiscDeviceOptions { name: c"kvm" }, misc::KVM_MINOR)
}

macro_rules! misc_device {
    ($t:ty) => {
        #[vtable]
        impl MiscDevice for $t {
            // Nothing is kept per open file.
            type Ptr = KBox<Self>;

            fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
                if !READY.load(Ordering::Acquire) {
                    return Err(ENODEV);
                }
                Ok(KBox::new(Self, GFP_KERNEL)?)
            }

            fn ioctl(_device: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
                ioctl(cmd, arg)
            }

            #[cfg(CONFIG_COMPAT)]
            fn compat_ioctl(_device: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
                ioctl(cmd, arg)
            }
        }
    };
}

misc_device!(RvmmDevice);
misc_device!(KvmNode);
