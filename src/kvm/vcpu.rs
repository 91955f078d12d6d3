// SPDX-License-Identifier: GPL-2.0
//! The file of a vCPU (api.rst 4, "vcpu ioctls").

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::kvm::stats;
use crate::linux::anon_inode::FileOperations;
use crate::linux::hrtimer;
use crate::linux::sched::{self, SignalMask, SignalMaskGuard};
use crate::mem::memory::FaultOutcome;
use crate::x86::cpu::cpuid::CpuidEntry;
use crate::x86::cpu::xsave;
use crate::x86::run::Runner;
use crate::x86::vcpu::abi::*;
use crate::x86::vcpu::state;
use crate::x86::vcpu::state::{MpState, State};
use crate::x86::vcpu::Vcpu;
use crate::x86::vm::Vm;
use kernel::fs::File;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// The file of a vCPU.
pub(crate) struct VcpuFile {
    vm: Arc<Vm>,
    vcpu: Arc<Vcpu>,
}

impl VcpuFile {
    /// What a new file of `vcpu` refers to.
    pub(crate) fn new(vm: Arc<Vm>, vcpu: Arc<Vcpu>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { vm, vcpu }, GFP_KERNEL_ACCOUNT)?)
    }
}

#[vtable]
impl FileOperations for VcpuFile {
    const NAME: &'static CStr = c"kvm-vcpu";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
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
}

/// KVM_RUN.
fn run(vm: &Arc<Vm>, vcpu: &Arc<Vcpu>, arg: usize) -> Result<isize> {
    if arg != 0 {
        return Err(EINVAL);
    }
    let mut s = vcpu.state.lock()?;
    let _mask = s.signal_mask.map(SignalMaskGuard::new);
    Runner::new(vm, vcpu, &mut s)?.run()
}

/// The other vcpu ioctls. EINVAL is KVM's answer to a number that it does not know.
#[inline(never)]
fn ioctl(vm: &Arc<Vm>, vcpu: &Arc<Vcpu>, cmd: u32, arg: usize) -> Result<isize> {
    // Those that do not wait for a KVM_RUN under way.
    match cmd {
        uapi::KVM_INTERRUPT => {
            let irq = uapi::get::<k::kvm_interrupt>(arg)?;
            return interrupt(vm, vcpu, irq.irq);
        }
        uapi::KVM_GET_STATS_FD => return stats::vcpu_stats_fd(vm, &vcpu.stats),
        _ => {}
    }
    let mut guard = vcpu.state.lock()?;
    let s = &mut *guard;
    if matches!(
        cmd,
        uapi::KVM_GET_LAPIC | uapi::KVM_GET_VCPU_EVENTS | uapi::KVM_GET_MP_STATE
    ) {
        Runner::new(vm, vcpu, s)?.settle();
    }
    match cmd {
        uapi::KVM_GET_REGS => uapi::put(arg, &get_regs(s))?,
        uapi::KVM_SET_REGS => set_regs(s, &uapi::get(arg)?),
        uapi::KVM_GET_SREGS => uapi::put(arg, &get_sregs(s))?,
        uapi::KVM_SET_SREGS => {
            let action = set_sregs(vm, vcpu, s, &uapi::get(arg)?, None)?;
            vcpu.act(vm, s, &action);
        }
        uapi::KVM_TRANSLATE => {
            let mut t = uapi::get::<k::kvm_translation>(arg)?;
            translate(vm, s, &mut t);
            uapi::put(arg, &t)?;
        }
        uapi::KVM_GET_MSRS => return get_msrs(vm, s, arg),
        uapi::KVM_SET_MSRS => return set_msrs(vm, vcpu, s, arg),
        uapi::KVM_GET_FPU => {
            let mut f = uapi::zeroed::<k::kvm_fpu>();
            let bytes: &mut [u8; xsave::KVM_FPU] =
                uapi::bytes_of_mut(&mut f).try_into().map_err(|_| EINVAL)?;
            let model = s.model;
            xsave::materialize(s.fpu.as_mut_slice(), &model.layout, xsave::X87_SSE);
            xsave::to_kvm_fpu(s.fpu.as_slice(), bytes);
            uapi::put(arg, &f)?;
        }
        uapi::KVM_SET_FPU => {
            let f = uapi::get::<k::kvm_fpu>(arg)?;
            let bytes: &[u8; xsave::KVM_FPU] = uapi::bytes_of(&f).try_into().map_err(|_| EINVAL)?;
            let model = s.model;
            xsave::materialize(s.fpu.as_mut_slice(), &model.layout, xsave::X87_SSE);
            xsave::from_kvm_fpu(s.fpu.as_mut_slice(), bytes, model.mxcsr_mask);
        }
        uapi::KVM_GET_XSAVE | uapi::KVM_GET_XSAVE2 => get_xsave(s, arg)?,
        uapi::KVM_GET_SREGS2 => get_sregs2(vm, s, arg)?,
        uapi::KVM_SET_SREGS2 => set_sregs2(vm, vcpu, s, arg)?,
        uapi::KVM_SET_SIGNAL_MASK => set_signal_mask(s, arg)?,
        uapi::KVM_X86_SET_MCE => set_mce(s, &uapi::get(arg)?)?,
        uapi::KVM_SET_XSAVE => set_xsave(s, arg)?,
        uapi::KVM_GET_XCRS if s.model.has_xsave => {
            let mut x = uapi::zeroed::<k::kvm_xcrs>();
            x.nr_xcrs = 1;
            x.xcrs[0].value = s.xcr0;
            uapi::put(arg, &x)?;
        }
        uapi::KVM_SET_XCRS if s.model.has_xsave => set_xcrs(s, &uapi::get(arg)?)?,
        uapi::KVM_GET_LAPIC => {
            let Some(l) = &s.lapic else {
                return Err(EINVAL);
            };
            let regs = l.get_state(vm.vcpus.msi_format().ids_32bit, hrtimer::ktime_get_ns());
            let mut state = uapi::zeroed::<k::kvm_lapic_state>();
            let bytes = uapi::bytes_of_mut(&mut state);
            for (to, from) in bytes.chunks_exact_mut(16).zip(regs) {
                if let Some(word) = to.get_mut(..4) {
                    word.copy_from_slice(&from.to_le_bytes());
                }
            }
            uapi::put(arg, &state)?;
        }
        uapi::KVM_SET_LAPIC => {
            let Some(l) = &mut s.lapic else {
                return Err(EINVAL);
            };
            let state = uapi::get::<k::kvm_lapic_state>(arg)?;
            let mut regs = [0u32; 64];
            for (to, from) in regs.iter_mut().zip(uapi::bytes_of(&state).chunks_exact(16)) {
                if let Some(Ok(w)) = from.get(..4).map(TryInto::try_into) {
                    *to = u32::from_le_bytes(w);
                }
            }
            let action = l
                .set_state(
                    &regs,
                    vm.vcpus.msi_format().ids_32bit,
                    hrtimer::ktime_get_ns(),
                )
                .map_err(|_| EINVAL)?;
            vm.chip.forget_rtc();
            vcpu.act(vm, s, &action);
        }
        uapi::KVM_SET_CPUID => {
            let table = read_cpuid(arg, false)?;
            set_cpuid(vm, s, table)?;
        }
        uapi::KVM_SET_CPUID2 => {
            let table = read_cpuid(arg, true)?;
            set_cpuid(vm, s, table)?;
        }
        uapi::KVM_GET_CPUID2 => {
            let room = uapi::get::<u32>(arg)? as usize;
            if room < s.cpuid.len() {
                return Err(E2BIG);
            }
            let mut live = KVec::with_capacity(s.cpuid.len(), GFP_KERNEL_ACCOUNT)?;
            for e in s.cpuid.iter() {
                let [eax, ebx, ecx, edx] = s.dynamic.apply(e);
                live.push_within_capacity(CpuidEntry {
                    eax,
                    ebx,
                    ecx,
                    edx,
                    ..*e
                })
                .map_err(|_| ENOMEM)?;
            }
            uapi::put_cpuid(arg, &live)?;
        }
        uapi::KVM_SET_VAPIC_ADDR => {
            if s.lapic.is_none() {
                return Err(EINVAL);
            }
            let a = uapi::get::<k::kvm_vapic_addr>(arg)?;
            // A hint for CPUs without TPR shadow, not needed here; zero switches it off.
            if a.vapic_addr != 0 {
                let gpa = crate::mem::addr::Gpa(a.vapic_addr);
                vm.memory.view().hva(gpa, false).map_err(|_| EINVAL)?;
            }
        }
        uapi::KVM_GET_MP_STATE => {
            let mp_state = match s.mp_state {
                MpState::Halted if s.pv.unhalted => MpState::Runnable,
                state => state,
            };
            uapi::put(
                arg,
                &k::kvm_mp_state {
                    mp_state: mp_state as u32,
                },
            )?;
        }
        uapi::KVM_SET_MP_STATE => {
            set_mp_state(vcpu, s, uapi::get::<k::kvm_mp_state>(arg)?.mp_state)?
        }
        uapi::KVM_NMI => s.events.nmis = s.events.nmis.saturating_add(1).min(2),
        uapi::KVM_X86_SETUP_MCE => {
            let cap = uapi::get::<u64>(arg)?;
            s.msrs.setup_mce(cap, s.model.vendor).map_err(|_| EINVAL)?;
        }
        uapi::KVM_GET_VCPU_EVENTS => uapi::put(arg, &get_events(vm, vcpu, s))?,
        uapi::KVM_SET_VCPU_EVENTS => set_events(vm, vcpu, s, &uapi::get(arg)?)?,
        uapi::KVM_GET_DEBUGREGS => {
            let mut d = uapi::zeroed::<k::kvm_debugregs>();
            (d.db, d.dr7) = s.guest_breakpoints();
            d.dr6 = s.cpu.dr6;
            uapi::put(arg, &d)?;
        }
        uapi::KVM_SET_DEBUGREGS => {
            let d = uapi::get::<k::kvm_debugregs>(arg)?;
            if d.flags != 0 || d.dr6 >> 32 != 0 || d.dr7 >> 32 != 0 {
                return Err(EINVAL);
            }
            s.set_guest_breakpoints(d.db, d.dr7 & 0xffff_2bff | 0x400);
            s.cpu.dr6 = d.dr6 & 0x1e00f | 0xffff_0ff0;
        }
        uapi::KVM_KVMCLOCK_CTRL => crate::x86::pv::paravirt::guest_stopped(s)?,
        uapi::KVM_ENABLE_CAP => enable_cap(s, &uapi::get(arg)?)?,
        uapi::KVM_PRE_FAULT_MEMORY => return pre_fault(vm, arg),
        uapi::KVM_SET_DEVICE_ATTR | uapi::KVM_GET_DEVICE_ATTR | uapi::KVM_HAS_DEVICE_ATTR => {
            device_attr(vm, vcpu, s, cmd, &uapi::get(arg)?)?;
        }
        uapi::KVM_GET_TSC_KHZ => return Ok(s.tsc_khz as isize),
        uapi::KVM_SET_GUEST_DEBUG => {
            s.set_guest_debug(vm, &uapi::get(arg)?)?;
            // The processor would deliver what is posted while the guest runs, held or not.
            vcpu.shared
                .set_direct(s.posted && !s.debug.blocks_interrupts());
        }
        uapi::KVM_SET_TSC_KHZ => {
            s.set_tsc_khz(state::wanted_tsc_khz(arg)?)?;
            vcpu.arm_timer(s);
        }
        uapi::RVMM_GET_ENTRY_FAILURE => match &s.entry_failure {
            Some(f) => uapi::put(arg, f)?,
            None => return Err(ENODATA),
        },
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// KVM_INTERRUPT (api.rst 4.16): a vector from an interrupt controller in user space.
fn interrupt(vm: &Vm, vcpu: &Vcpu, irq: u32) -> Result<isize> {
    let vector = u8::try_from(irq).map_err(|_| EINVAL)?;
    if vm.chip.has_pic() {
        return Err(ENXIO);
    }
    let mut s = vcpu.state.lock()?;
    if s.lapic.is_some() && s.events.external.is_some() {
        return Err(EEXIST);
    }
    s.events.external = Some(vector);
    Ok(0)
}

/// KVM_ENABLE_CAP (api.rst 7.1).
fn enable_cap(s: &mut State, cap: &k::kvm_enable_cap) -> Result {
    if cap.flags != 0 {
        return Err(EINVAL);
    }
    match cap.cap {
        k::KVM_CAP_ENFORCE_PV_FEATURE_CPUID => s.pv.enforce = cap.args[0] != 0,
        _ => return Err(EINVAL),
    }
    Ok(())
}

/// KVM_PRE_FAULT_MEMORY (api.rst 4.143).
fn pre_fault(vm: &Vm, arg: usize) -> Result<isize> {
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
        let gpa = crate::mem::addr::Gpa(range.gpa);
        match vm.memory.fault(vm.mm(), gpa, false, false) {
            Ok(FaultOutcome::Resume) => {}
            Ok(FaultOutcome::Mmio) => result = Err(ENOENT),
            Ok(FaultOutcome::BadUserMemory) => result = Err(EFAULT),
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

/// KVM_SET_DEVICE_ATTR and its sisters on a vCPU (kernel document virt/kvm/devices/vcpu.rst 4): the TSC's offset.
fn device_attr(vm: &Vm, vcpu: &Vcpu, s: &mut State, cmd: u32, a: &k::kvm_device_attr) -> Result {
    if a.group != k::KVM_VCPU_TSC_CTRL || a.attr != u64::from(k::KVM_VCPU_TSC_OFFSET) {
        return Err(ENXIO);
    }
    match cmd {
        uapi::KVM_GET_DEVICE_ATTR => uapi::put(a.addr as usize, &s.tsc_offset)?,
        uapi::KVM_SET_DEVICE_ATTR => {
            s.restore_tsc_offset(vm, uapi::get(a.addr as usize)?);
            // The timer's deadline is in guest TSC.
            vcpu.arm_timer(s);
        }
        _ => {}
    }
    Ok(())
}

/// KVM_SET_SIGNAL_MASK (api.rst 4.18): the mask in force during KVM_RUN; a null pointer takes it back.
fn set_signal_mask(s: &mut State, arg: usize) -> Result {
    s.signal_mask = if arg == 0 {
        None
    } else {
        if uapi::get::<u32>(arg)? as usize != size_of::<u64>() {
            return Err(EINVAL);
        }
        let mask = arg.checked_add(size_of::<u32>()).ok_or(EFAULT)?;
        Some(SignalMask(uapi::get(mask)?))
    };
    Ok(())
}
