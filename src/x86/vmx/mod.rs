// SPDX-License-Identifier: GPL-2.0
//! The Intel backend: VMX with EPT, VPID and unrestricted guest (SDM 3C chapters 24 to 31).
//!
//! | file | what |
//! |---|---|
//! | `bits` | bits of fields and capability MSRs, exit reasons |
//! | `vmcs` | fields |
//! | `insn` | VMX instructions |
//! | `check` | the entry checks in software |
//! | `quirks` | what exists for emulators only |
//! | `config` | capability MSRs, the controls chosen |
//! | `msr` | MSRs of the guest |
//! | `active` | VMCSs that stay active between stays |
//! | `shared` | what all vCPUs share |
//! | `pause` | loops of PAUSE |
//! | `interruptibility` | blocking by STI, MOV SS and NMI |
//! | `written` | what the VMCS holds |
//! | `setup` | a VMCS's first use |
//! | `root` | private and shared root operation |
//! | `pebs` | the host's PEBS around a stay |
//! | `host` | host state around a stay |
//! | `entry` | world switch |
//! | `state` | guest state to and from the VMCS |
//! | `timer` | preemption timer |
//! | `split_lock` | the host's detection of split locks |
//! | `apic` | APIC virtualisation |
//! | `flush` | cached translations |
//! | `event` | injection and interrupted events |
//! | `decode` | exit reasons to [`crate::x86::exit::Exit`] |
//! | `exits` | the exits that need more than decoding |
//! | `view` | the VMCS as `check` looks at it |
//! | `vcpu` | all of it as [`crate::x86::vendor::VcpuBackend`] |
//! | `measure` | what the instructions cost |
//!
//! A file imports only from files above it in this table.

mod active;
mod apic;
mod bits;
mod check;
mod config;
mod decode;
mod entry;
mod event;
mod exits;
mod flush;
mod host;
mod insn;
mod interruptibility;
mod measure;
mod msr;
mod pause;
mod pebs;
mod quirks;
mod root;
mod setup;
mod shared;
mod split_lock;
mod state;
mod timer;
mod vcpu;
mod view;
mod vmcs;
mod write_log;
mod written;

use crate::abi::uapi;
use crate::linux::global::Owner;
use crate::linux::irqflags::IrqGuard;
use crate::linux::{cr, smp};
use crate::x86::cpu::regs::cr4;
use crate::x86::vendor::{HwCaps, Platform};
use config::VmcsConfig;
use kernel::prelude::*;
use shared::{Shared, SHARED};

pub(crate) use vcpu::VmxVcpu;

/// Intel VT-x as a platform.
pub(crate) struct Vmx;

impl Platform for Vmx {
    type Vcpu = VmxVcpu;

    fn probe() -> Result<(HwCaps, Owner)> {
        let config = VmcsConfig::of_this_cpu()?;
        let owner = SHARED.set(Shared::new(config)?)?;
        Ok((config.hw(), owner))
    }

    fn cpu_up() -> Result {
        let shared = SHARED.get().ok_or(ENODEV)?;
        if VmcsConfig::of_this_cpu()? != shared.config {
            pr_err!("this CPU's VMX differs from that of the CPU that loaded the module; guests cannot move \
                 between them\n");
            return Err(EIO);
        }
        // KVM's callback has come first, if KVM is there: while it is held, VMX is on until its callback's turn again.
        if shared.kvm.is_some() {
            let irq = IrqGuard::new();
            if let Some(cpu) = shared.cpus.this(&irq) {
                // SAFETY: This is the CPU, and by the above VMX is on until `cpu_down` or `shutdown`.
                unsafe { cpu.open(shared.kvm_guests, irq.token()) };
            }
        }
        Ok(())
    }

    fn cpu_down() {
        let Some(shared) = SHARED.get() else { return };
        let irq = IrqGuard::new();
        if let Some(cpu) = shared.cpus.this(&irq) {
            // SAFETY: This is the CPU.
            unsafe { cpu.close(irq.token()) };
        }
    }

    fn shutdown() {
        // KVM switches VMX off on all CPUs next.
        for cpu in 0..smp::nr_cpu_ids() {
            // One that is not online has nothing.
            let _ = smp::call_on_cpu(cpu, Self::cpu_down);
        }
    }

    fn root() -> u32 {
        if cr::cr4() & cr4::VMXE == 0 {
            uapi::RVMM_ROOT_PRIVATE
        } else if SHARED.get().is_some_and(|s| s.kvm.is_some()) {
            uapi::RVMM_ROOT_KEPT
        } else {
            uapi::RVMM_ROOT_SHARED
        }
    }
}
