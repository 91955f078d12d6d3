// SPDX-License-Identifier: GPL-2.0
//! The file of a virtual machine (api.rst 4, "vm ioctls").

use crate::abi::uapi::{self, k};
use crate::arch::{ResetPoint, Setup, Vcpu, Vm};
use crate::assign::{self, space::Space};
use crate::bus::set::{MAX_VCPUS, MAX_VCPU_ID};
use crate::kvm::extensions;
use crate::kvm::fork;
use crate::kvm::memory::{clear_dirty_log, dirty_log, set_memory, set_memory2};
use crate::kvm::missing;
use crate::kvm::table::ioctls;
use crate::kvm::vcpu::{self, VcpuFile};
use crate::kvm::{arch, stats};
use crate::linux::anon_inode::{self, FileOperations, NewFile};
use crate::linux::once::Once;
use crate::linux::sched;
use crate::mem::addr::{Gpa, GpaRange, PAGE_OFFSET_MASK};
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// KVM_CREATE_VM (api.rst 4.2); there is one type of VMs, 0.
pub(super) fn create_vm(kind: usize) -> Result<isize> {
    if kind != 0 {
        return Err(EINVAL);
    }
    let mm = sched::current_mm().ok_or(ESRCH)?;
    Ok(anon_inode::install(VmFile::new(Vm::new(mm)?)?)? as isize)
}

/// The file of a VM.
struct VmFile {
    vm: Arc<Vm>,
    /// What its devices see of its memory; made for the first one.
    space: Once<Arc<Space>>,
    reset_point: Arc<ResetPoint>,
}

impl VmFile {
    /// What a new file of `vm` refers to.
    fn new(vm: Arc<Vm>) -> Result<Arc<Self>> {
        let file = Self {
            vm,
            space: Once::new(),
            reset_point: ResetPoint::new()?,
        };
        Ok(Arc::new(file, GFP_KERNEL_ACCOUNT)?)
    }
}

#[vtable]
impl FileOperations for VmFile {
    const NAME: &'static CStr = c"kvm-vm";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.vm.check_mm()?;
        let result = ioctl(&this.vm, &this.space, &this.reset_point, cmd, arg);
        this.vm.audit();
        result
    }

    fn release(this: Arc<Self>) {
        // irqfds hold wait-queue entries on other files; KVM takes them down with the VM's file as well.
        this.vm.chip.close_irqfds();
    }
}

ioctls! {
    /// The vm ioctls of every architecture (api.rst 4), then those of this one.
    fn ioctl(vm: &Arc<Vm>, space: &Once<Arc<Space>>, point: &Arc<ResetPoint>; cmd, arg)
        else arch::vm::ioctl(vm, cmd, arg);
    lock setup = vm.setup.lock();

    KVM_CREATE_VCPU:                held, call(create_vcpu(vm, setup, point, arg));
    KVM_CHECK_EXTENSION:            -,    call(check_extension(Some(vm), arg));
    KVM_ENABLE_CAP:                 held, set(r => enable_cap(vm, setup, r)), KVM_CAP_ENABLE_CAP_VM;
    KVM_GET_STATS_FD:               -,    call(stats::vm_stats_fd(vm)), KVM_CAP_BINARY_STATS_FD;
    KVM_CREATE_DEVICE:              -,    call(assign::vfio::create_device(vm, arg)), KVM_CAP_DEVICE_CTRL;
    RVMM_ASSIGN_DEVICE:             -,    call(assign::assign(vm, space, arg));

    // Putting it back.
    RVMM_RESET_POINT:               held, set(r => set_reset_point(vm, point, r));
    RVMM_RESET:                     held, get(reset(vm, point));
    RVMM_TOUCH:                     -,    set(r => touch(vm, r));
    RVMM_FORK:                      held, call(fork::fork(vm, point, arg));
    RVMM_BECOME:                    held, call(fork::become_fork(vm, point, arg));

    // Memory.
    KVM_SET_USER_MEMORY_REGION:     -,    set(r => set_memory(vm, r)), KVM_CAP_USER_MEMORY;
    KVM_SET_USER_MEMORY_REGION2:    -,    set(r => set_memory2(vm, r)), KVM_CAP_USER_MEMORY2;
    KVM_GET_DIRTY_LOG:              -,    set(r => dirty_log(vm, r));
    KVM_CLEAR_DIRTY_LOG:            -,    set(r => clear_dirty_log(vm, r));
    KVM_RESET_DIRTY_RINGS:          -,    call(vm.memory.reset_rings(vm.smm_memory()));
    RVMM_MISSING_QUEUE:             -,    call(missing::open(vm));
    RVMM_RECORD_TOUCHES:            -,    call(missing::record_touches(vm, arg));
    RVMM_GET_TOUCHES:               -,    swap(r => missing::touches(vm, r));

    // Interrupts and events from outside.
    KVM_IRQ_LINE:                   -,    call(vm.chip.irq_line(arg, false)), KVM_CAP_IRQCHIP;
    KVM_IRQ_LINE_STATUS:            -,    call(vm.chip.irq_line(arg, true)), KVM_CAP_IRQ_INJECT_STATUS;
    KVM_SIGNAL_MSI:                 -,    set(r => vm.chip.signal_msi(r)), KVM_CAP_SIGNAL_MSI;
    KVM_SET_GSI_ROUTING:            -,    call(vm.chip.set_gsi_routing(arg));
    KVM_IRQFD:                      -,    set(r => vm.chip.irqfd(r)), KVM_CAP_IRQFD;
    KVM_IOEVENTFD:                  -,    set(r => vm.bus.ioeventfd(r)), KVM_CAP_IOEVENTFD;
    KVM_REGISTER_COALESCED_MMIO:    -,    set(r => vm.bus.coalesce(r, |bus| vm.chip.devices(bus)));
    KVM_UNREGISTER_COALESCED_MMIO:  -,    set(r => vm.bus.uncoalesce(r));
}

/// KVM_CHECK_EXTENSION (api.rst 4.4), on the device and (`vm`) on a VM: the extensions that ioctls are, then the
/// others.
pub(super) fn check_extension(vm: Option<&Vm>, capability: usize) -> isize {
    const TABLES: [&[u32]; 5] = [
        PROMISED,
        vcpu::PROMISED,
        arch::system::PROMISED,
        arch::vm::PROMISED,
        arch::vcpu::PROMISED,
    ];
    match u32::try_from(capability) {
        Ok(c) if TABLES.iter().any(|list| list.contains(&c)) => 1,
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

/// RVMM_RESET_POINT.
fn set_reset_point(vm: &Vm, point: &ResetPoint, r: &uapi::ResetPoint) -> Result {
    if r.flags != 0 {
        return Err(EINVAL);
    }
    point.set(vm, r.pages)
}

/// RVMM_RESET.
fn reset(vm: &Vm, point: &ResetPoint) -> Result<uapi::Reset> {
    Ok(uapi::Reset {
        pages: point.put_back(vm)?,
    })
}

/// RVMM_TOUCH.
fn touch(vm: &Vm, r: &uapi::Touch) -> Result {
    if (r.gpa | r.size) & PAGE_OFFSET_MASK != 0 {
        return Err(EINVAL);
    }
    vm.memory
        .touch(GpaRange::new(Gpa(r.gpa), r.size).ok_or(EINVAL)?)
}

/// KVM_CREATE_VCPU (api.rst 4.7).
#[inline(never)]
fn create_vcpu(
    vm: &Arc<Vm>,
    setup: &mut Setup,
    point: &Arc<ResetPoint>,
    id: usize,
) -> Result<isize> {
    let id = u32::try_from(id).map_err(|_| EINVAL)?;
    if id >= MAX_VCPU_ID || setup.ids.len() >= MAX_VCPUS {
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
    let file = NewFile::new(VcpuFile::new(vm.clone(), vcpu.clone(), point.clone())?)?;
    point.add(vm, &vcpu)?;
    if let Some(ring) = vcpu.lock()?.ring.clone() {
        vm.memory.rings.add(ring)?;
    }
    vm.vcpus.add(shared)?;
    // Counts the vCPUs, so it comes after.
    vcpu.start_tsc(vm)?;
    let _ = setup.ids.push_within_capacity(id);
    Ok(file.install() as isize)
}
