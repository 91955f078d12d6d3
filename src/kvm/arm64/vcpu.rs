// SPDX-License-Identifier: GPL-2.0
//! The file of a vCPU on Arm64.

use crate::abi::uapi::{self, k};
use crate::arch::{
    get_events, get_one_reg, list_regs, set_events, set_one_reg, Points, Runner, State, Vcpu, Vm,
    GUEST_DEBUG,
};
use crate::kvm::signals;
use crate::kvm::stats;
use crate::kvm::table::ioctls;
use crate::linux::anon_inode::FileOperations;
use crate::linux::sched::SignalMaskGuard;
use crate::mem::addr::Gpa;
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::fs::File;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// The file of a vCPU.
pub(super) struct VcpuFile {
    vm: Arc<Vm>,
    vcpu: Arc<Vcpu>,
}

impl VcpuFile {
    /// What a new file of `vcpu` refers to.
    pub(super) fn new(vm: Arc<Vm>, vcpu: Arc<Vcpu>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { vm, vcpu }, GFP_KERNEL_ACCOUNT)?)
    }
}

#[vtable]
impl FileOperations for VcpuFile {
    const NAME: &'static CStr = c"kvm-vcpu";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.vm.check_mm()?;
        if cmd == uapi::KVM_RUN {
            run(&this.vm, &this.vcpu, arg)
        } else {
            ioctl(&this.vm, &this.vcpu, cmd, arg)
        }
    }

    fn mmap(this: ArcBorrow<'_, Self>, vma: &VmaNew) -> Result {
        this.vcpu.run.map(vma)
    }
}

/// KVM_RUN.
fn run(vm: &Arc<Vm>, vcpu: &Arc<Vcpu>, arg: usize) -> Result<isize> {
    if arg != 0 {
        return Err(EINVAL);
    }
    let mut s = vcpu.lock()?;
    let _mask = s.signal_mask.map(SignalMaskGuard::new);
    Runner::new(vm, vcpu, &mut s)?.run()
}

ioctls! {
    /// The vcpu ioctls (api.rst 4) but KVM_RUN. What is about registers has to wait for KVM_ARM_VCPU_INIT: ENOEXEC.
    #[inline(never)]
    fn ioctl(vm: &Arc<Vm>, vcpu: &Arc<Vcpu>; cmd, arg) else Err(EINVAL);
    lock s = vcpu.lock()?;

    KVM_ARM_VCPU_INIT:      held, set(r => s.init(&vm.ids, &vcpu.shared, r));
    KVM_GET_ONE_REG:        held, set(r => one_reg(vm, vcpu, s, r)), KVM_CAP_ONE_REG;
    KVM_SET_ONE_REG:        held, set(r => change_reg(vm, vcpu, s, r));
    KVM_GET_REG_LIST:       held, call(reg_list(s, arg));
    KVM_GET_MP_STATE:       held, get(mp_state(vcpu, s)), KVM_CAP_MP_STATE;
    KVM_SET_MP_STATE:       held, set(r => set_mp_state(vcpu, s, r));
    KVM_GET_VCPU_EVENTS:    held, get(events(vcpu, s)), KVM_CAP_VCPU_EVENTS, KVM_CAP_ARM_INJECT_EXT_DABT;
    KVM_SET_VCPU_EVENTS:    held, set(r => change_events(vcpu, s, r));
    KVM_SET_GUEST_DEBUG:    held, set(r => set_guest_debug(s, r)), KVM_CAP_SET_GUEST_DEBUG;
    KVM_SET_DEVICE_ATTR:    held, set(r => set_attr(vm, s, r)), KVM_CAP_VCPU_ATTRIBUTES;
    KVM_GET_DEVICE_ATTR:    held, set(r => get_attr(vm, s, r));
    KVM_HAS_DEVICE_ATTR:    -,    set(r => if is_stolen(r) { Ok(()) } else { timer(vm, r).map(|_| ()) });
    KVM_GET_STATS_FD:       -,    call(stats::vcpu_stats_fd(vm, &vcpu.stats));
    KVM_SET_SIGNAL_MASK:    held, call(signals::set_mask(&mut s.signal_mask, arg));
}

/// KVM_GET_ONE_REG (api.rst 4.69).
fn one_reg(vm: &Vm, vcpu: &Vcpu, s: &mut State, r: &k::kvm_one_reg) -> Result {
    s.check_initialized()?;
    // One that another vCPU has switched on has the registers that it begins with.
    s.take_requests(&vcpu.shared);
    get_one_reg(&mut s.guest, vm, r)
}

/// KVM_SET_ONE_REG (api.rst 4.68).
fn change_reg(vm: &Vm, vcpu: &Vcpu, s: &mut State, r: &k::kvm_one_reg) -> Result {
    s.check_initialized()?;
    s.take_requests(&vcpu.shared);
    set_one_reg(&mut s.guest, vm, &vcpu.shared, r)
}

/// KVM_GET_REG_LIST (api.rst 4.83).
fn reg_list(s: &State, arg: usize) -> Result {
    s.check_initialized()?;
    list_regs(s.guest.has_keys, arg)
}

/// KVM_GET_VCPU_EVENTS (api.rst 4.31).
fn events(vcpu: &Vcpu, s: &mut State) -> Result<k::kvm_vcpu_events> {
    s.check_initialized()?;
    s.take_requests(&vcpu.shared);
    Ok(get_events(s))
}

/// KVM_SET_VCPU_EVENTS (api.rst 4.32).
fn change_events(vcpu: &Vcpu, s: &mut State, r: &k::kvm_vcpu_events) -> Result {
    s.check_initialized()?;
    s.take_requests(&vcpu.shared);
    set_events(s, r)
}

/// KVM_SET_GUEST_DEBUG (api.rst 4.87). EINVAL: a flag that there is not.
fn set_guest_debug(s: &mut State, d: &k::kvm_guest_debug) -> Result {
    if d.control & !GUEST_DEBUG != 0 {
        return Err(EINVAL);
    }
    let a = &d.arch;
    let points = Points {
        bvr: a.dbg_bvr,
        bcr: a.dbg_bcr,
        wvr: a.dbg_wvr,
        wcr: a.dbg_wcr,
    };
    s.guest.debug.set_user(d.control, points);
    Ok(())
}

/// KVM_GET_MP_STATE (api.rst 4.38).
fn mp_state(vcpu: &Vcpu, s: &State) -> Result<k::kvm_mp_state> {
    let mp_state = if !vcpu.shared.arch.is_on() {
        k::KVM_MP_STATE_STOPPED
    } else if s.suspended {
        k::KVM_MP_STATE_SUSPENDED
    } else {
        k::KVM_MP_STATE_RUNNABLE
    };
    Ok(k::kvm_mp_state { mp_state })
}

/// KVM_SET_MP_STATE (api.rst 4.39). EINVAL.
fn set_mp_state(vcpu: &Vcpu, s: &mut State, r: &k::kvm_mp_state) -> Result {
    let off = match r.mp_state {
        k::KVM_MP_STATE_STOPPED => true,
        k::KVM_MP_STATE_RUNNABLE | k::KVM_MP_STATE_SUSPENDED => false,
        _ => return Err(EINVAL),
    };
    s.set_off(&vcpu.shared, off);
    s.suspended = r.mp_state == k::KVM_MP_STATE_SUSPENDED;
    Ok(())
}

/// The PPI of a timer (kernel document virt/kvm/devices/vcpu.rst). ENXIO: no such attribute.
fn timer<'a>(vm: &'a Vm, r: &k::kvm_device_attr) -> Result<&'a AtomicU32> {
    match (r.group, u32::try_from(r.attr)?) {
        (k::KVM_ARM_VCPU_TIMER_CTRL, k::KVM_ARM_VCPU_TIMER_IRQ_VTIMER) => Ok(&vm.timer_intid),
        (k::KVM_ARM_VCPU_TIMER_CTRL, k::KVM_ARM_VCPU_TIMER_IRQ_PTIMER) => Ok(&vm.physical_intid),
        _ => Err(ENXIO),
    }
}

/// Where stolen time is told: KVM_ARM_VCPU_PVTIME_IPA.
fn is_stolen(r: &k::kvm_device_attr) -> bool {
    r.group == k::KVM_ARM_VCPU_PVTIME_CTRL && r.attr == u64::from(k::KVM_ARM_VCPU_PVTIME_IPA)
}

/// The PPI of all vCPUs' timers. EINVAL: not the number of a PPI, or nobody to have it; EBUSY: a vCPU has run. Or where
/// stolen time is told. EINVAL: no place in memory; EEXIST: it has been said.
fn set_attr(vm: &Vm, s: &mut State, r: &k::kvm_device_attr) -> Result {
    if is_stolen(r) {
        let at = uapi::get::<u64>(r.addr as usize)?;
        if vm.memory.view().hva(Gpa(at), false).is_err() {
            return Err(EINVAL);
        }
        return s.stolen.set_place(at);
    }
    let place = timer(vm, r)?;
    let intid = u32::try_from(uapi::get::<i32>(r.addr as usize)?).map_err(|_| EINVAL)?;
    if vm.vgic().is_none() || !(16..32).contains(&intid) {
        return Err(EINVAL);
    }
    if vm.has_run.load(Ordering::Relaxed) {
        return Err(EBUSY);
    }
    place.store(intid, Ordering::Relaxed);
    Ok(())
}

fn get_attr(vm: &Vm, s: &State, r: &k::kvm_device_attr) -> Result {
    if is_stolen(r) {
        return uapi::put(r.addr as usize, &s.stolen.place().unwrap_or(u64::MAX));
    }
    let intid = timer(vm, r)?.load(Ordering::Relaxed);
    uapi::put(r.addr as usize, &intid)
}
