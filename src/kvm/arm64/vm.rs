// SPDX-License-Identifier: GPL-2.0
//! The file of a virtual machine on Arm64.

use crate::abi::uapi::{self, k};
use crate::arch::{all_ids, writable_id, CallRange, Setup, Vcpu, Vm, ADDRESS_BITS, MAX_VCPUS};
use crate::bus::set::hold;
use crate::kvm::arm64::device;
use crate::kvm::arm64::extensions;
use crate::kvm::arm64::routing;
use crate::kvm::arm64::vcpu::{self, VcpuFile};
use crate::kvm::memory::{clear_dirty_log, dirty_log, set_memory, set_memory2};
use crate::kvm::stats;
use crate::kvm::table::ioctls;
use crate::linux::anon_inode::{self, FileOperations, NewFile};
use crate::linux::sched;
use crate::nospec::Nospec;
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// KVM_CREATE_VM (api.rst 4.2), with the number of address bits, or 0 for 40. EINVAL: it cannot be.
pub(in crate::kvm) fn create_vm(kind: usize) -> Result<isize> {
    let bits = match u32::try_from(kind)? {
        0 => ADDRESS_BITS,
        bits => bits,
    };
    let mm = sched::current_mm().ok_or(ESRCH)?;
    let file = Arc::new(VmFile(Vm::new(mm, bits)?), GFP_KERNEL_ACCOUNT)?;
    Ok(anon_inode::install(file)? as isize)
}

/// The file of a VM.
struct VmFile(Arc<Vm>);

#[vtable]
impl FileOperations for VmFile {
    const NAME: &'static CStr = c"kvm-vm";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.0.check_mm()?;
        let result = ioctl(&this.0, cmd, arg);
        this.0.audit();
        result
    }

    fn release(this: Arc<Self>) {
        // irqfds hold wait-queue entries on other files; KVM takes them down with the VM's file as well.
        this.0.irqfds.lock().clear();
    }
}

ioctls! {
    /// The vm ioctls (api.rst 4). EINVAL is KVM's answer to a number that it does not know.
    fn ioctl(vm: &Arc<Vm>; cmd, arg) else Err(EINVAL);
    lock setup = vm.setup.lock();

    KVM_CREATE_VCPU:                held, call(create_vcpu(vm, setup, arg));
    KVM_CHECK_EXTENSION:            -,    call(check_extension(Some(vm), arg));
    KVM_ENABLE_CAP:                 held, set(r => enable_cap(vm, setup, r)), KVM_CAP_ENABLE_CAP_VM;
    KVM_ARM_PREFERRED_TARGET:       -,    get(preferred_target());
    KVM_ARM_SET_COUNTER_OFFSET:     held, set(r => set_offset(vm, setup, r)), KVM_CAP_COUNTER_OFFSET;
    KVM_ARM_GET_REG_WRITABLE_MASKS: -,    set(r => writable_masks(r));
    KVM_SET_USER_MEMORY_REGION:     -,    set(r => set_memory(vm, r)), KVM_CAP_USER_MEMORY;
    KVM_SET_USER_MEMORY_REGION2:    -,    set(r => set_memory2(vm, r)), KVM_CAP_USER_MEMORY2;
    KVM_GET_DIRTY_LOG:              -,    set(r => dirty_log(vm, r));
    KVM_CLEAR_DIRTY_LOG:            -,    set(r => clear_dirty_log(vm, r));
    KVM_RESET_DIRTY_RINGS:          -,    call(vm.memory.reset_rings(None));
    KVM_GET_STATS_FD:               -,    call(stats::vm_stats_fd(vm)), KVM_CAP_BINARY_STATS_FD;
    KVM_CREATE_DEVICE:              held, call(device::create(vm, setup, arg)), KVM_CAP_DEVICE_CTRL;
    KVM_SET_DEVICE_ATTR:            -,    set(r => set_attr(vm, r));
    KVM_HAS_DEVICE_ATTR:            -,    set(r => has_attr(r));
    KVM_GET_DEVICE_ATTR:            -,    set(r => get_attr(r));
    KVM_IRQ_LINE:                   -,    call(irq_line(vm, arg)), KVM_CAP_IRQCHIP;
    KVM_IRQFD:                      -,    set(r => routing::irqfd(vm, r)), KVM_CAP_IRQFD, KVM_CAP_IRQFD_RESAMPLE;
    KVM_SIGNAL_MSI:                 -,    set(r => routing::signal_msi(vm, r)), KVM_CAP_SIGNAL_MSI;
    KVM_SET_GSI_ROUTING:            -,    call(routing::set_gsi_routing(vm, arg));
    KVM_IOEVENTFD:                  -,    set(r => vm.bus.ioeventfd(r)), KVM_CAP_IOEVENTFD;
    KVM_REGISTER_COALESCED_MMIO:    -,    set(r => vm.bus.coalesce(r, |_| devices(vm)));
    KVM_UNREGISTER_COALESCED_MMIO:  -,    set(r => vm.bus.uncoalesce(r));
}

/// KVM_CHECK_EXTENSION (api.rst 4.4), on the device and (`vm`) on a VM.
pub(in crate::kvm) fn check_extension(vm: Option<&Vm>, capability: usize) -> isize {
    match u32::try_from(capability) {
        Ok(c) if PROMISED.contains(&c) || vcpu::PROMISED.contains(&c) => 1,
        Ok(c) => extensions::check(vm, c),
        Err(_) => 0,
    }
}

/// KVM_ENABLE_CAP (api.rst 4.37).
fn enable_cap(vm: &Vm, setup: &mut Setup, r: &k::kvm_enable_cap) -> Result {
    if r.flags != 0 {
        return Err(EINVAL);
    }
    extensions::enable(vm, setup, r.cap, r.args[0])
}

/// KVM_ARM_PREFERRED_TARGET (api.rst 4.82).
fn preferred_target() -> Result<k::kvm_vcpu_init> {
    let mut init = uapi::zeroed::<k::kvm_vcpu_init>();
    init.target = k::KVM_ARM_TARGET_GENERIC_V8;
    Ok(init)
}

/// The filter of calls. ENXIO: no such attribute.
fn has_attr(r: &k::kvm_device_attr) -> Result {
    match (r.group, u32::try_from(r.attr)) {
        (k::KVM_ARM_VM_SMCCC_CTRL, Ok(k::KVM_ARM_VM_SMCCC_FILTER)) => Ok(()),
        _ => Err(ENXIO),
    }
}

/// There is none that could be read, as in KVM. ENXIO.
fn get_attr(_r: &k::kvm_device_attr) -> Result {
    Err(ENXIO)
}

/// KVM_ARM_VM_SMCCC_FILTER (kernel document virt/kvm/devices/vm.rst). EINVAL: no such calls or action; EEXIST, EBUSY,
/// ENOSPC.
fn set_attr(vm: &Vm, r: &k::kvm_device_attr) -> Result {
    has_attr(r)?;
    let f = uapi::get::<k::kvm_smccc_filter>(usize::try_from(r.addr)?)?;
    if f.pad.iter().any(|b| *b != 0) {
        return Err(EINVAL);
    }
    let range = CallRange::new(f.base, f.nr_functions, f.action).ok_or(EINVAL)?;
    vm.calls.add_filter(range, &vm.has_run)
}

/// KVM_ARM_SET_COUNTER_OFFSET (api.rst 4.138): of both counters, for good. EBUSY: a vCPU runs.
fn set_offset(vm: &Vm, setup: &Setup, r: &k::kvm_arm_counter_offset) -> Result {
    if r.reserved != 0 {
        return Err(EINVAL);
    }
    let _held = hold(&setup.vcpus, Vcpu::lock_now)?;
    vm.offsets_fixed.store(true, Ordering::Relaxed);
    for offset in [&vm.counter_offset, &vm.physical_offset] {
        offset.store(r.counter_offset, Ordering::Relaxed);
    }
    Ok(())
}

/// KVM_ARM_GET_REG_WRITABLE_MASKS (api.rst 4.139): bits of ID registers that user space may change. EINVAL: another
/// range than that of ID registers.
fn writable_masks(r: &uapi::RegMasks) -> Result {
    if r.range != k::KVM_ARM_FEATURE_ID_RANGE || r.reserved != [0; 13] {
        return Err(EINVAL);
    }
    let mut masks = KVec::from_elem(0u64, k::KVM_ARM_FEATURE_ID_RANGE_SIZE as usize, GFP_KERNEL)?;
    for reg in all_ids() {
        // Those of op1 0 come first, 64 of them.
        let (_, _, _, crm, op2) = reg.parts();
        if let Some(mask) = masks.get_nospec_mut(usize::from((crm & 7) << 3 | op2)) {
            *mask = writable_id(reg);
        }
    }
    let addr = usize::try_from(r.addr)?;
    for (n, mask) in masks.iter().enumerate() {
        uapi::put(uapi::element::<u64>(addr, 0, n)?, mask)?;
    }
    Ok(())
}

/// How many devices are on the bus in the kernel: the distributor, a redistributor for each vCPU, and ITSs.
fn devices(vm: &Vm) -> u32 {
    vm.vgic().map_or(0, |vgic| {
        let its = vgic.all_its().count() as u32;
        vm.vcpus.len().saturating_add(1).saturating_add(its)
    })
}

/// KVM_IRQ_LINE (api.rst 4.25). ENXIO: no interrupt controller.
fn irq_line(vm: &Vm, arg: usize) -> Result<isize> {
    let [number, level] = uapi::get::<[u32; 2]>(arg)?;
    let vgic = vm.vgic().ok_or(ENXIO)?;
    let bit = |intid: &AtomicU32| 1u32 << (intid.load(Ordering::Relaxed) & 31);
    let timers = bit(&vm.timer_intid) | bit(&vm.physical_intid);
    vgic.irq_line(number, level != 0, timers)
}

/// KVM_CREATE_VCPU (api.rst 4.7). EINVAL: too large an id, or too many; EEXIST; EBUSY: the interrupt controller has
/// been initialised without it.
#[inline(never)]
fn create_vcpu(vm: &Arc<Vm>, setup: &mut Setup, id: usize) -> Result<isize> {
    let id = u32::try_from(id).map_err(|_| EINVAL)?;
    if id >= MAX_VCPUS || setup.vcpus.len() >= MAX_VCPUS as usize {
        return Err(EINVAL);
    }
    if vm.vgic().is_some_and(|v| v.is_ready()) {
        return Err(EBUSY);
    }
    if vm.vcpus.with_id(id).is_some() {
        return Err(EEXIST);
    }
    // Build, install last: nobody can use the vCPU before it is complete.
    setup.vcpus.reserve(1, GFP_KERNEL_ACCOUNT)?;
    let vcpu = Vcpu::new(vm.vcpus.len(), &vm.memory.rings, &vm.bus, id)?;
    let shared = vcpu.shared.clone();
    let file = NewFile::new(VcpuFile::new(vm.clone(), vcpu.clone())?)?;
    if let Some(ring) = vcpu.lock()?.ring.clone() {
        vm.memory.rings.add(ring)?;
    }
    vm.vcpus.push(shared)?;
    let _ = setup.vcpus.push_within_capacity(vcpu);
    Ok(file.install() as isize)
}
