// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Virtual CPUs: made, set to where they begin, and read where a guest has crashed (api.rst, 4.68 and 4.82).

use std::fmt;

use kvm_bindings::{
    kvm_regs, kvm_sregs, kvm_vcpu_init, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_ARM_CORE, KVM_REG_SIZE_U64,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::boot::Entry;
use crate::error::{Error, Result};

/// Registers of `struct kvm_regs`, by their place in words of 32 bits.
const X0: u64 = 0;
const SP: u64 = 62;
const PC: u64 = 64;
const PSTATE: u64 = 66;
const SP_EL1: u64 = 68;
const ELR_EL1: u64 = 70;
/// MPIDR_EL1: op0 3, op1 0, CRn 0, CRm 0, op2 5.
const MPIDR_EL1: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | 3 << 14 | 5;
/// Affinity fields of MPIDR_EL1.
const AFFINITY: u64 = 0xff_00ff_ffff;

const fn core(register: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | register
}

fn get(fd: &VcpuFd, register: u64) -> std::result::Result<u64, kvm_ioctls::Error> {
    let mut bytes = [0; 8];
    fd.get_one_reg(register, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Makes `count` CPUs. The first one runs, the others wait for PSCI's CPU_ON.
pub(crate) fn create(vm: &VmFd, count: usize) -> Result<Vec<VcpuFd>> {
    let create = |id: usize| {
        let fd = vm
            .create_vcpu(id as u64)
            .map_err(Error::ioctl("KVM_CREATE_VCPU"))?;
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init)
            .map_err(Error::ioctl("KVM_ARM_PREFERRED_TARGET"))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        if id != 0 {
            init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        fd.vcpu_init(&init)
            .map_err(Error::ioctl("KVM_ARM_VCPU_INIT"))?;
        Ok(fd)
    };
    (0..count).map(create).collect()
}

/// By what other CPUs and the device tree name a CPU.
pub(crate) fn affinity(fd: &VcpuFd) -> Result<u64> {
    let mpidr = get(fd, MPIDR_EL1).map_err(Error::ioctl("KVM_GET_ONE_REG"))?;
    Ok(mpidr & AFFINITY)
}

/// Has a CPU begin there, with the device tree's address in X0.
pub(crate) fn set_entry(fd: &VcpuFd, entry: Entry) -> Result<()> {
    for (register, value) in [
        (PC, entry.address),
        (X0, entry.tree),
        // Of no matter to a kernel.
        (SP_EL1, entry.address),
    ] {
        fd.set_one_reg(core(register), &value.to_le_bytes())
            .map_err(Error::ioctl("KVM_SET_ONE_REG"))?;
    }
    Ok(())
}

/// What there is to say of a CPU whose guest has crashed.
pub(crate) fn registers(fd: &VcpuFd) -> (Option<kvm_regs>, Option<Box<kvm_sregs>>) {
    let read = || -> std::result::Result<kvm_regs, kvm_ioctls::Error> {
        let mut all = kvm_regs::default();
        for (n, register) in (0..).zip(&mut all.regs.regs) {
            *register = get(fd, core(X0 + 2 * n))?;
        }
        all.regs.sp = get(fd, core(SP))?;
        all.regs.pc = get(fd, core(PC))?;
        all.regs.pstate = get(fd, core(PSTATE))?;
        all.sp_el1 = get(fd, core(SP_EL1))?;
        all.elr_el1 = get(fd, core(ELR_EL1))?;
        Ok(all)
    };
    (read().ok(), None)
}

/// Writes them, each line after a line break.
pub(crate) fn write_registers(
    f: &mut fmt::Formatter<'_>,
    regs: Option<&kvm_regs>,
    _: Option<&kvm_sregs>,
) -> fmt::Result {
    let Some(all) = regs else {
        return Ok(());
    };
    write!(
        f,
        "\n  pc  {:016x} pstate {:08x} sp_el0 {:016x} sp_el1 {:016x} elr_el1 {:016x}",
        all.regs.pc, all.regs.pstate, all.regs.sp, all.sp_el1, all.elr_el1
    )?;
    for (n, value) in all.regs.regs.iter().enumerate() {
        let name = format!("x{n}");
        let before = if n % 4 == 0 { "\n  " } else { " " };
        write!(f, "{before}{name:<3} {value:016x}")?;
    }
    Ok(())
}
