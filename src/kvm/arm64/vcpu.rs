// SPDX-License-Identifier: GPL-2.0
//! The file of a vCPU on Arm64.

use crate::abi::uapi::{self, k};
use crate::arch::{get_one_reg, list_regs, set_one_reg, Runner, State, Vcpu, Vm};
use crate::kvm::signals;
use crate::kvm::table::ioctls;
use crate::linux::anon_inode::FileOperations;
use crate::linux::sched::SignalMaskGuard;
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
            ioctl(&this.vcpu, cmd, arg)
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
    Runner::new(vm, vcpu, &mut s).run()
}

ioctls! {
    /// The vcpu ioctls (api.rst 4) but KVM_RUN. What is about registers has to wait for KVM_ARM_VCPU_INIT: ENOEXEC.
    #[inline(never)]
    fn ioctl(vcpu: &Arc<Vcpu>; cmd, arg) else Err(EINVAL);
    lock s = vcpu.lock()?;

    KVM_ARM_VCPU_INIT:      held, set(r => s.init(r));
    KVM_GET_ONE_REG:        held, set(r => one_reg(s, r)), KVM_CAP_ONE_REG;
    KVM_SET_ONE_REG:        held, set(r => change_reg(s, r));
    KVM_GET_REG_LIST:       held, call(reg_list(s, arg));
    KVM_GET_MP_STATE:       held, get(mp_state(s)), KVM_CAP_MP_STATE;
    KVM_SET_MP_STATE:       held, set(r => set_mp_state(s, r));
    KVM_SET_SIGNAL_MASK:    held, call(signals::set_mask(&mut s.signal_mask, arg));
}

/// KVM_GET_ONE_REG (api.rst 4.69).
fn one_reg(s: &mut State, r: &k::kvm_one_reg) -> Result {
    s.check_initialized()?;
    get_one_reg(&mut s.guest, r)
}

/// KVM_SET_ONE_REG (api.rst 4.68).
fn change_reg(s: &mut State, r: &k::kvm_one_reg) -> Result {
    s.check_initialized()?;
    set_one_reg(&mut s.guest, r)
}

/// KVM_GET_REG_LIST (api.rst 4.83).
fn reg_list(s: &State, arg: usize) -> Result {
    s.check_initialized()?;
    list_regs(arg)
}

/// KVM_GET_MP_STATE (api.rst 4.38).
fn mp_state(s: &State) -> Result<k::kvm_mp_state> {
    let mp_state = if s.off {
        k::KVM_MP_STATE_STOPPED
    } else {
        k::KVM_MP_STATE_RUNNABLE
    };
    Ok(k::kvm_mp_state { mp_state })
}

/// KVM_SET_MP_STATE (api.rst 4.39). EINVAL.
fn set_mp_state(s: &mut State, r: &k::kvm_mp_state) -> Result {
    s.off = match r.mp_state {
        k::KVM_MP_STATE_STOPPED => true,
        k::KVM_MP_STATE_RUNNABLE => false,
        _ => return Err(EINVAL),
    };
    Ok(())
}
