// SPDX-License-Identifier: GPL-2.0
//! The vcpu ioctls that only x86 has. Most hand on to [`abi`], which knows a vCPU's state as user space sees it.

use crate::abi::uapi::{self, k};
use crate::kvm::table::ioctls;
use crate::kvm::x86::system::{get_hyperv_cpuid, put_cpuid};
use crate::linux::hrtimer;
use crate::x86::{
    abi, guest_stopped, measure, request, vapic_is_place, wanted_tsc_khz, xsave, CpuidEntry,
    MpState, Runner, State, Vcpu, Vm,
};
use kernel::prelude::*;
use kernel::sync::Arc;

ioctls! {
    /// The vcpu ioctls of x86 (api.rst 4). EINVAL is KVM's answer to a number that it does not know.
    fn ioctl(vm: &Arc<Vm>, vcpu: &Arc<Vcpu>; cmd, arg) else Err(EINVAL);
    lock s = vcpu.lock()?;

    // Registers.
    KVM_GET_REGS:           held, get(Ok(abi::get_regs(s)));
    KVM_SET_REGS:           held, set(r => abi::set_regs(s, r));
    KVM_GET_SREGS:          held, get(Ok(abi::get_sregs(s)));
    KVM_SET_SREGS:          held, set(r => abi::set_sregs(vm, vcpu, s, r, None));
    KVM_GET_SREGS2:         held, call(abi::get_sregs2(vm, s, arg)), KVM_CAP_SREGS2;
    KVM_SET_SREGS2:         held, call(abi::set_sregs2(vm, vcpu, s, arg));
    KVM_GET_FPU:            held, get(get_fpu(s));
    KVM_SET_FPU:            held, set(r => set_fpu(s, r));
    KVM_GET_XSAVE:          held, call(abi::get_xsave(s, arg)), KVM_CAP_XSAVE;
    KVM_GET_XSAVE2:         held, call(abi::get_xsave(s, arg));
    KVM_SET_XSAVE:          held, call(abi::set_xsave(s, arg));
    KVM_GET_XCRS:           held, [s.model.has_xsave() => EINVAL] get(get_xcrs(s));
    KVM_SET_XCRS:           held, [s.model.has_xsave() => EINVAL] set(r => abi::set_xcrs(s, r));
    KVM_GET_DEBUGREGS:      held, get(Ok(abi::get_debugregs(s))), KVM_CAP_DEBUGREGS;
    KVM_SET_DEBUGREGS:      held, set(r => abi::set_debugregs(s, r));
    KVM_TRANSLATE:          held, swap(r => abi::translate(vm, s, r));
    KVM_SET_GUEST_DEBUG:    held, set(r => set_guest_debug(vm, vcpu, s, r)), KVM_CAP_SET_GUEST_DEBUG;

    // CPUID and MSRs.
    KVM_SET_CPUID:          held, call(set_cpuid(vm, s, arg, false));
    KVM_SET_CPUID2:         held, call(set_cpuid(vm, s, arg, true));
    KVM_GET_CPUID2:         held, call(get_cpuid(s, arg));
    KVM_GET_SUPPORTED_HV_CPUID: -, call(get_hyperv_cpuid(arg, vm.chip.has_lapic())), KVM_CAP_HYPERV_CPUID;
    KVM_GET_MSRS:           held, call(abi::get_msrs(vm, s, arg));
    KVM_SET_MSRS:           held, call(abi::set_msrs(vm, vcpu, s, arg));
    KVM_X86_SETUP_MCE:      held, set(r => setup_mce(s, r));
    KVM_X86_SET_MCE:        held, set(r => abi::set_mce(s, r));

    // Events and interrupts. What is on its way to the vCPU counts as arrived when user space looks.
    KVM_INTERRUPT:          -,    set(r => interrupt(vm, vcpu, r)), KVM_CAP_IRQCHIP;
    KVM_NMI:                held, call(nmi(s)), KVM_CAP_USER_NMI;
    KVM_SMI:                -,    call(vcpu.shared.request(request::SMI)), KVM_CAP_X86_SMM;
    KVM_GET_VCPU_EVENTS:    held, get(Ok(abi::get_events(vm, vcpu, up_to_date(vm, vcpu, s)?))), KVM_CAP_VCPU_EVENTS;
    KVM_SET_VCPU_EVENTS:    held, set(r => abi::set_events(vm, vcpu, s, r));
    KVM_GET_MP_STATE:       held, get(Ok(get_mp_state(up_to_date(vm, vcpu, s)?))), KVM_CAP_MP_STATE;
    KVM_SET_MP_STATE:       held, set(r => set_mp_state(vcpu, s, r));
    KVM_GET_LAPIC:          held, get(get_lapic(vm, up_to_date(vm, vcpu, s)?));
    KVM_SET_LAPIC:          held, [s.apic.lapic.is_some() => EINVAL] set(r => set_lapic(vm, vcpu, s, r));
    KVM_SET_VAPIC_ADDR:     held, [s.apic.lapic.is_some() => EINVAL] set(r => set_vapic_addr(vm, s, r));
    KVM_TPR_ACCESS_REPORTING: held, swap(r => report_tpr(s, r)), KVM_CAP_VAPIC;

    // Time and paravirtualisation.
    KVM_GET_TSC_KHZ:        held, call(s.tsc.khz as isize);
    KVM_SET_TSC_KHZ:        held, call(set_tsc_khz(vcpu, s, arg));
    KVM_KVMCLOCK_CTRL:      held, call(guest_stopped(s)), KVM_CAP_KVMCLOCK_CTRL;
    KVM_ENABLE_CAP:         held, set(r => enable_cap(vm, vcpu, s, r)), KVM_CAP_ENABLE_CAP,
        KVM_CAP_ENFORCE_PV_FEATURE_CPUID;
    KVM_HAS_DEVICE_ATTR:    held, set(r => device_attr(r)), KVM_CAP_VCPU_ATTRIBUTES;
    KVM_GET_DEVICE_ATTR:    held, set(r => get_device_attr(s, r));
    KVM_SET_DEVICE_ATTR:    held, set(r => set_device_attr(vm, vcpu, s, r));

    RVMM_GET_ENTRY_FAILURE: held, get(s.entry_failure.ok_or(ENODATA));
    RVMM_MEASURE_ROOT:      held, swap(r => measure(vm, s, r));
}

/// The state with all that has been sent to the vCPU taken in.
fn up_to_date<'a>(vm: &Arc<Vm>, vcpu: &Arc<Vcpu>, s: &'a mut State) -> Result<&'a mut State> {
    Runner::new(vm, vcpu, s)?.handle_requests();
    Ok(s)
}

/// KVM_GET_FPU (api.rst 4.22).
fn get_fpu(s: &mut State) -> Result<k::kvm_fpu> {
    let mut f = uapi::zeroed::<k::kvm_fpu>();
    let bytes: &mut [u8; xsave::KVM_FPU] =
        uapi::bytes_of_mut(&mut f).try_into().map_err(|_| EINVAL)?;
    xsave::materialize(
        s.xstate.area.as_mut_slice(),
        &s.model.layout,
        xsave::X87_SSE,
    );
    xsave::to_kvm_fpu(s.xstate.area.as_slice(), bytes);
    Ok(f)
}

/// KVM_SET_FPU (api.rst 4.23).
fn set_fpu(s: &mut State, f: &k::kvm_fpu) -> Result {
    let bytes: &[u8; xsave::KVM_FPU] = uapi::bytes_of(f).try_into().map_err(|_| EINVAL)?;
    xsave::materialize(
        s.xstate.area.as_mut_slice(),
        &s.model.layout,
        xsave::X87_SSE,
    );
    xsave::from_kvm_fpu(s.xstate.area.as_mut_slice(), bytes, s.model.mxcsr_mask);
    Ok(())
}

/// KVM_GET_XCRS (api.rst 4.43).
fn get_xcrs(s: &State) -> Result<k::kvm_xcrs> {
    let mut x = uapi::zeroed::<k::kvm_xcrs>();
    x.nr_xcrs = 1;
    x.xcrs[0].value = s.xstate.xcr0;
    Ok(x)
}

/// KVM_SET_GUEST_DEBUG (api.rst 4.87).
fn set_guest_debug(vm: &Vm, vcpu: &Vcpu, s: &mut State, d: &k::kvm_guest_debug) -> Result {
    s.set_guest_debug(vm, d)?;
    // The processor would deliver what is posted while the guest runs, held or not.
    vcpu.shared.set_direct(s.takes_direct());
    Ok(())
}

/// KVM_SET_CPUID and (`subleaves`) KVM_SET_CPUID2 (api.rst 4.20).
fn set_cpuid(vm: &Vm, s: &mut State, arg: usize, subleaves: bool) -> Result {
    let table = abi::read_cpuid(arg, subleaves)?;
    abi::set_cpuid(vm, s, table)
}

/// KVM_GET_CPUID2: the table, with the bits that follow registers as they are now. E2BIG.
fn get_cpuid(s: &State, arg: usize) -> Result {
    let room = uapi::get::<u32>(arg)? as usize;
    if room < s.cpuid.table.len() {
        return Err(E2BIG);
    }
    let mut live = KVec::with_capacity(s.cpuid.table.len(), GFP_KERNEL_ACCOUNT)?;
    for e in s.cpuid.table.iter() {
        let [eax, ebx, ecx, edx] = s.cpuid.dynamic.apply(e);
        let entry = CpuidEntry {
            eax,
            ebx,
            ecx,
            edx,
            ..*e
        };
        live.push_within_capacity(entry).map_err(|_| ENOMEM)?;
    }
    put_cpuid(arg, &live)
}

/// KVM_X86_SETUP_MCE (api.rst 4.105).
fn setup_mce(s: &mut State, capabilities: &u64) -> Result {
    s.msrs
        .mce
        .setup(*capabilities, s.model.vendor)
        .map_err(|_| EINVAL)
}

/// KVM_INTERRUPT (api.rst 4.16): a vector from an interrupt controller in user space.
fn interrupt(vm: &Vm, vcpu: &Vcpu, r: &k::kvm_interrupt) -> Result {
    let vector = u8::try_from(r.irq).map_err(|_| EINVAL)?;
    if vm.chip.has_pic() {
        return Err(ENXIO);
    }
    let mut s = vcpu.lock()?;
    if s.apic.lapic.is_some() && s.events.external.is_some() {
        return Err(EEXIST);
    }
    s.events.external = Some(vector);
    Ok(())
}

/// KVM_NMI (api.rst 4.64): at most two are kept.
fn nmi(s: &mut State) {
    s.events.nmis = s.events.nmis.saturating_add(1).min(2);
}

/// KVM_GET_MP_STATE (api.rst 4.38).
fn get_mp_state(s: &State) -> k::kvm_mp_state {
    let state = match s.mp_state {
        MpState::Halted if s.pv.unhalted => MpState::Runnable,
        state => state.visible(),
    };
    k::kvm_mp_state {
        mp_state: state as u32,
    }
}

/// KVM_SET_MP_STATE (api.rst 4.39).
fn set_mp_state(vcpu: &Vcpu, s: &mut State, r: &k::kvm_mp_state) -> Result {
    abi::set_mp_state(vcpu, s, r.mp_state)
}

/// KVM_GET_LAPIC (api.rst 4.57). EINVAL: it is in user space.
fn get_lapic(vm: &Vm, s: &State) -> Result<k::kvm_lapic_state> {
    let l = s.apic.lapic.as_ref().ok_or(EINVAL)?;
    let mut regs = l.get_state(vm.vcpus.msi_format().ids_32bit, hrtimer::ktime_get_ns());
    if let Some(hv) = &s.hv {
        // IRR is from register 20H on.
        for (word, held) in regs.iter_mut().skip(0x20).zip(hv.held()) {
            *word |= held;
        }
    }
    let mut state = uapi::zeroed::<k::kvm_lapic_state>();
    for (to, from) in uapi::bytes_of_mut(&mut state)
        .chunks_exact_mut(16)
        .zip(regs)
    {
        if let Some(word) = to.get_mut(..4) {
            word.copy_from_slice(&from.to_le_bytes());
        }
    }
    Ok(state)
}

/// KVM_SET_LAPIC (api.rst 4.58). EINVAL: it is in user space, or has another id.
fn set_lapic(vm: &Vm, vcpu: &Vcpu, s: &mut State, state: &k::kvm_lapic_state) -> Result {
    let mut regs = [0u32; 64];
    for (to, from) in regs.iter_mut().zip(uapi::bytes_of(state).chunks_exact(16)) {
        if let Some(Ok(w)) = from.get(..4).map(TryInto::try_into) {
            *to = u32::from_le_bytes(w);
        }
    }
    let ids_32bit = vm.vcpus.msi_format().ids_32bit;
    let l = s.apic.lapic.as_mut().ok_or(EINVAL)?;
    let before = l.unfinished();
    let action = l
        .set_state(&regs, ids_32bit, hrtimer::ktime_get_ns())
        .map_err(|_| EINVAL)?;
    vcpu.shared.set_level(&l.tmr());
    vm.chip.restore_rtc(&l.addr(), &before, &l.unfinished());
    let _ = s.hv.as_mut().map(|hv| hv.take_held());
    s.sort_held();
    let _ = vcpu.apply(vm, s, &action);
    Ok(())
}

/// KVM_SET_VAPIC_ADDR: where the guest has its task priority in memory; zero: nowhere. EINVAL: no memory there.
fn set_vapic_addr(vm: &Vm, s: &mut State, r: &k::kvm_vapic_addr) -> Result {
    if r.vapic_addr != 0 && !vapic_is_place(vm, r.vapic_addr) {
        return Err(EINVAL);
    }
    s.pv.set_vapic(r.vapic_addr);
    Ok(())
}

/// KVM_TPR_ACCESS_REPORTING: accesses to the TPR's register in memory end with KVM_EXIT_TPR_ACCESS, or do not. EINVAL:
/// flags.
fn report_tpr(s: &mut State, r: &k::kvm_tpr_access_ctl) -> Result {
    if r.flags != 0 {
        return Err(EINVAL);
    }
    s.apic.reports_tpr = r.enabled != 0;
    Ok(())
}

/// KVM_SET_TSC_KHZ (api.rst 4.55).
fn set_tsc_khz(vcpu: &Vcpu, s: &mut State, khz: usize) -> Result {
    s.set_tsc_khz(wanted_tsc_khz(khz)?)?;
    vcpu.timer.arm(s);
    Ok(())
}

/// KVM_ENABLE_CAP (api.rst 7.1).
fn enable_cap(vm: &Vm, vcpu: &Vcpu, s: &mut State, cap: &k::kvm_enable_cap) -> Result {
    if cap.flags != 0 {
        return Err(EINVAL);
    }
    match cap.cap {
        k::KVM_CAP_ENFORCE_PV_FEATURE_CPUID => s.pv.enforce = cap.args[0] != 0,
        k::KVM_CAP_HYPERV_SYNIC2 if cap.args[0] != 0 => return Err(EINVAL),
        k::KVM_CAP_HYPERV_SYNIC | k::KVM_CAP_HYPERV_SYNIC2 => {
            if !vm.chip.has_lapic() {
                return Err(EINVAL);
            }
            let keep_pages = cap.cap == k::KVM_CAP_HYPERV_SYNIC2;
            s.hyperv()?.activate_synic(&vcpu.shared, keep_pages)?;
        }
        k::KVM_CAP_HYPERV_ENFORCE_CPUID => s.hyperv()?.enforce = cap.args[0] != 0,
        // For hypervisors in the guest.
        k::KVM_CAP_HYPERV_ENLIGHTENED_VMCS | k::KVM_CAP_HYPERV_DIRECT_TLBFLUSH => {
            return Err(ENOTTY);
        }
        _ => return Err(EINVAL),
    }
    Ok(())
}

/// KVM_HAS_DEVICE_ATTR on a vCPU (kernel document virt/kvm/devices/vcpu.rst 4): it has the TSC's offset. ENXIO.
fn device_attr(a: &k::kvm_device_attr) -> Result {
    if a.group == k::KVM_VCPU_TSC_CTRL && a.attr == u64::from(k::KVM_VCPU_TSC_OFFSET) {
        Ok(())
    } else {
        Err(ENXIO)
    }
}

/// KVM_GET_DEVICE_ATTR.
fn get_device_attr(s: &State, a: &k::kvm_device_attr) -> Result {
    device_attr(a)?;
    uapi::put(a.addr as usize, &s.tsc.offset)
}

/// KVM_SET_DEVICE_ATTR.
fn set_device_attr(vm: &Vm, vcpu: &Vcpu, s: &mut State, a: &k::kvm_device_attr) -> Result {
    device_attr(a)?;
    s.restore_tsc_offset(vm, uapi::get(a.addr as usize)?);
    // The timer's deadline is in guest TSC.
    vcpu.timer.arm(s);
    Ok(())
}
