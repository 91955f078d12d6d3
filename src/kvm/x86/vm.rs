// SPDX-License-Identifier: GPL-2.0
//! The vm ioctls that only x86 has.

use crate::abi::uapi::{self, k};
use crate::kvm::table::ioctls;
use crate::x86::{request, wanted_vm_tsc_khz, Setup, Vm};
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

ioctls! {
    /// The vm ioctls of x86 (api.rst 4). ENOTTY is KVM's answer to a number that it does not know.
    fn ioctl(vm: &Arc<Vm>; cmd, arg) else Err(ENOTTY);
    lock setup = vm.setup.lock();

    // The pages that these two place matter only to a CPU without unrestricted guest. The address is checked, and
    // otherwise ignored.
    KVM_SET_TSS_ADDR:           -,    [arg <= 0xffff_d000 => EINVAL] call(()), KVM_CAP_SET_TSS_ADDR;
    KVM_SET_IDENTITY_MAP_ADDR:  held, [!setup.has_vcpus() => EINVAL] set(r => ignore(r)),
        KVM_CAP_SET_IDENTITY_MAP_ADDR;
    KVM_HYPERV_EVENTFD:         -,    set(r => vm.hyperv.eventfd(r)), KVM_CAP_HYPERV_EVENTFD;
    KVM_SET_NR_MMU_PAGES:       -,    [arg >= 64 => EINVAL] call(());
    KVM_SET_BOOT_CPU_ID:        held, [!setup.has_vcpus() => EBUSY] call(set_boot_cpu(vm, arg)),
        KVM_CAP_SET_BOOT_CPU_ID;
    KVM_X86_SET_MSR_FILTER:     -,    call(set_msr_filter(vm, arg)), KVM_CAP_X86_MSR_FILTER;

    // Interrupt controllers.
    KVM_CREATE_IRQCHIP:         held, call(vm.chip.create_kernel(setup.has_vcpus())), KVM_CAP_IRQCHIP;
    KVM_GET_IRQCHIP:            -,    call(vm.chip.get_irqchip(arg));
    KVM_SET_IRQCHIP:            -,    call(vm.chip.set_irqchip(arg));
    KVM_CREATE_PIT:             held, call(create_old_pit(vm, setup));
    KVM_CREATE_PIT2:            held, set(r => create_pit(vm, setup, r)), KVM_CAP_PIT2;
    KVM_GET_PIT:                -,    swap(r => vm.chip.get_old_pit(r));
    KVM_SET_PIT:                -,    call(vm.chip.set_old_pit(arg));
    KVM_GET_PIT2:               -,    get(vm.chip.get_pit()), KVM_CAP_PIT_STATE2;
    KVM_SET_PIT2:               -,    set(r => vm.chip.set_pit(r));
    KVM_REINJECT_CONTROL:       -,    set(r => vm.chip.reinject_control(r)), KVM_CAP_REINJECT_CONTROL;

    // Time.
    KVM_GET_CLOCK:              -,    get(get_clock(vm));
    KVM_SET_CLOCK:              -,    set(r => set_clock(vm, r));
    KVM_GET_TSC_KHZ:            -,    call(vm.tsc_khz.load(Ordering::Relaxed) as isize), KVM_CAP_GET_TSC_KHZ;
    KVM_SET_TSC_KHZ:            held, call(set_tsc_khz(vm, setup, arg));
}

/// A value that has only to be readable.
fn ignore(_value: &u64) {}

/// KVM_SET_BOOT_CPU_ID (api.rst 4.41).
fn set_boot_cpu(vm: &Vm, id: usize) -> Result {
    let id = u32::try_from(id).map_err(|_| EINVAL)?;
    if !vm.caps.may_boot(id) {
        return Err(EINVAL);
    }
    vm.boot_cpu.store(id, Ordering::Relaxed);
    Ok(())
}

/// KVM_X86_SET_MSR_FILTER (api.rst 4.97).
fn set_msr_filter(vm: &Vm, arg: usize) -> Result {
    vm.caps.set_msr_filter(arg)?;
    vm.vcpus.request_all(request::EXITS);
    Ok(())
}

/// KVM_CREATE_PIT2 (api.rst 4.71); `_setup`: nothing else is being created.
fn create_pit(vm: &Vm, _setup: &Setup, config: &k::kvm_pit_config) -> Result {
    vm.chip.create_pit(config)
}

/// KVM_CREATE_PIT: with a speaker.
fn create_old_pit(vm: &Vm, setup: &Setup) -> Result {
    let mut config = uapi::zeroed::<k::kvm_pit_config>();
    config.flags = k::KVM_PIT_SPEAKER_DUMMY;
    create_pit(vm, setup, &config)
}

/// KVM_GET_CLOCK (api.rst 4.29).
fn get_clock(vm: &Vm) -> Result<k::kvm_clock_data> {
    let mut d = uapi::zeroed::<k::kvm_clock_data>();
    let now = vm.clock.now();
    d.clock = now.ns;
    if let Some((real_ns, tsc)) = now.host {
        d.flags = k::KVM_CLOCK_TSC_STABLE | k::KVM_CLOCK_REALTIME | k::KVM_CLOCK_HOST_TSC;
        d.realtime = real_ns;
        d.host_tsc = tsc;
    }
    Ok(d)
}

/// KVM_SET_CLOCK (api.rst 4.30).
fn set_clock(vm: &Vm, d: &k::kvm_clock_data) -> Result {
    if d.flags & !(k::KVM_CLOCK_REALTIME | k::KVM_CLOCK_TSC_STABLE | k::KVM_CLOCK_HOST_TSC) != 0 {
        return Err(EINVAL);
    }
    let real_ns = (d.flags & k::KVM_CLOCK_REALTIME != 0).then_some(d.realtime);
    vm.hyperv.clock_changes();
    vm.clock.set(&vm.vcpus, d.clock, real_ns);
    Ok(())
}

/// KVM_SET_TSC_KHZ (api.rst 4.55): the frequency of vCPUs that are created from now on.
fn set_tsc_khz(vm: &Vm, setup: &Setup, khz: usize) -> Result {
    let khz = wanted_vm_tsc_khz(khz)?;
    if setup.has_vcpus() {
        return Err(EINVAL);
    }
    vm.tsc_khz.store(khz, Ordering::Relaxed);
    Ok(())
}
