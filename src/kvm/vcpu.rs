// SPDX-License-Identifier: GPL-2.0
//! The file of a vCPU (api.rst 4, "vcpu ioctls").

use crate::abi::uapi::{self, k};
use crate::arch::{ResetPoint, Runner, State, Vcpu, Vm};
use crate::kvm::table::ioctls;
use crate::kvm::{arch, record, signals, stats};
use crate::linux::anon_inode::FileOperations;
use crate::linux::sched::{self, SignalMaskGuard};
use crate::mem::addr::Gpa;
use crate::mem::fault::FaultOutcome;
use crate::mem::missing::{Event, Waited};
use kernel::fs::File;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// The file of a vCPU.
pub(crate) struct VcpuFile {
    vm: Arc<Vm>,
    vcpu: Arc<Vcpu>,
    reset_point: Arc<ResetPoint>,
}

impl VcpuFile {
    /// What a new file of `vcpu` refers to.
    pub(crate) fn new(
        vm: Arc<Vm>,
        vcpu: Arc<Vcpu>,
        reset_point: Arc<ResetPoint>,
    ) -> Result<Arc<Self>> {
        let file = Self {
            vm,
            vcpu,
            reset_point,
        };
        Ok(Arc::new(file, GFP_KERNEL_ACCOUNT)?)
    }
}

#[vtable]
impl FileOperations for VcpuFile {
    const NAME: &'static CStr = c"kvm-vcpu";

    fn number(this: ArcBorrow<'_, Self>) -> Option<u32> {
        Some(this.vcpu.stats.id)
    }

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        if cmd == uapi::RVMM_RECORD {
            return record::open(&this.vcpu, &uapi::get(arg)?);
        }
        this.vm.check_mm()?;
        // KVM_RUN goes deep into the kernel (a nested fault may reclaim memory): not below the frame of all the others.
        if cmd == uapi::KVM_RUN {
            run(&this.vm, &this.vcpu, arg)
        } else {
            ioctl(&this.vm, &this.vcpu, cmd, arg)
        }
    }

    fn mmap(this: ArcBorrow<'_, Self>, vma: &VmaNew) -> Result {
        this.vcpu.run.map(vma)
    }

    fn release(this: Arc<Self>) {
        this.reset_point.remove(&this.vm, &this.vcpu);
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
    /// The vcpu ioctls of every architecture (api.rst 4) but KVM_RUN, then those of this one. What holds the vCPU's
    /// lock waits until a KVM_RUN under way has returned.
    #[inline(never)]
    fn ioctl(vm: &Arc<Vm>, vcpu: &Arc<Vcpu>; cmd, arg) else arch::vcpu::ioctl(vm, vcpu, cmd, arg);
    lock s = vcpu.lock()?;

    KVM_GET_STATS_FD:       -,    call(stats::vcpu_stats_fd(vm, &vcpu.stats));
    KVM_SET_SIGNAL_MASK:    held, call(signals::set_mask(&mut s.signal_mask, arg));
    KVM_PRE_FAULT_MEMORY:   held, call(pre_fault(vm, vcpu, s, arg)), KVM_CAP_PRE_FAULT_MEMORY;
}

/// KVM_PRE_FAULT_MEMORY (api.rst 4.143).
fn pre_fault(vm: &Vm, vcpu: &Vcpu, s: &mut State, arg: usize) -> Result<isize> {
    let mut range = uapi::get::<k::kvm_pre_fault_memory>(arg)?;
    let aligned = (range.gpa | range.size) & 0xfff == 0;
    let ends = range.gpa.checked_add(range.size);
    if range.flags != 0 || !aligned || ends.is_none_or(|end| end <= range.gpa) {
        uapi::put(arg, &range)?;
        return Err(EINVAL);
    }
    let whole = range.size;
    let mut result = Ok(0);
    while range.size != 0 {
        if sched::signal_pending() {
            result = Err(EINTR);
            break;
        }
        if s.ring.as_ref().is_some_and(|r| r.is_full()) {
            result = Err(EAGAIN);
            break;
        }
        let gpa = Gpa(range.gpa);
        // What SMM sees besides reports nothing.
        if !s.smm.is_active() {
            result = bring_in(vm, vcpu, gpa);
        }
        if result.is_err() {
            break;
        }
        let memory = s.memory(vm);
        let by = &mut s.faulting(&vcpu.shared);
        match memory.fault(vm.mm(), by, gpa, false, false) {
            Ok(FaultOutcome::Mapped) => {}
            Ok(FaultOutcome::Retry | FaultOutcome::Awaited(_)) => {
                sched::cond_resched();
                continue;
            }
            Ok(FaultOutcome::Mmio) => result = Err(ENOENT),
            Ok(FaultOutcome::BadUserMemory) => result = Err(EFAULT),
            Ok(FaultOutcome::Poisoned) => result = Err(EINTR),
            Ok(FaultOutcome::Unsaved) => result = Err(ENOSPC),
            Err(e) => result = Err(e),
        }
        if result.is_err() {
            break;
        }
        range.gpa += 4096;
        range.size -= 4096;
        sched::cond_resched();
    }
    uapi::put(arg, &range)?;
    if range.size == whole {
        result
    } else {
        Ok(0)
    }
}

/// Waits for the page at `gpa` if it is missing and user space brings it. EFAULT: it does not.
fn bring_in(vm: &Vm, vcpu: &Vcpu, gpa: Gpa) -> Result<isize> {
    if let Some(page) = vm.missing_at(gpa) {
        let event = Event {
            page,
            vcpu: vcpu.shared.id,
            write: false,
        };
        if vm.missing.wait(event)? != Waited::Answered {
            return Err(EFAULT);
        }
    }
    Ok(0)
}
