// SPDX-License-Identifier: GPL-2.0
//! SVM on the CPUs of this machine, and what all vCPUs share (APM 2 15.4, 15.30).
//!
//! EFER.SVME is set on every CPU while the module is loaded. Unlike CR4.VMXE it has no shadow in the kernel that
//! could write it back. A CPU on which SVME is set already belongs to somebody else (KVM): ASIDs would be
//! shared without either side knowing, so the module refuses with EBUSY.
//!
//! The functions run at load and unload, and on a CPU that comes or goes with interrupts off.

use super::asid::Pool;
use super::msr::{
    fill_map, fill_map_spec_ctrl, MAP_ORDER, TSC_FRACTION, TSC_RATIO_MAX, TSC_RATIO_ONE,
};
use super::quirks::Quirks;
use super::vmcb::HwPage;
use crate::linux::bindings;
use crate::linux::global::{Global, Owner};
use crate::linux::irqflags::IrqGuard;
use crate::linux::page::Pages;
use crate::linux::percpu::PerCpu;
use crate::linux::{boot_cpu, cpuid, msr};
use crate::x86::cpu::index;
use crate::x86::cpu::regs::efer;
use crate::x86::paging::fmt_npt::HOST_PAT;
use crate::x86::vendor::{HwCaps, NestedFormat};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// VM_CR.SVMDIS (APM 2 15.30.1).
const VM_CR_SVMDIS: u64 = 1 << 4;

/// CPUID 8000_000A EDX (APM 3 E.4.9).
mod feature {
    pub(super) const NP: u32 = 1 << 0;
    pub(super) const NRIPS: u32 = 1 << 3;
    pub(super) const TSC_RATE_MSR: u32 = 1 << 4;
    pub(super) const FLUSH_BY_ASID: u32 = 1 << 6;
    pub(super) const DECODE_ASSISTS: u32 = 1 << 7;
    pub(super) const PAUSE_FILTER: u32 = 1 << 10;
    pub(super) const PAUSE_FILTER_THRESHOLD: u32 = 1 << 12;
}

/// Pages of the I/O-permission map, 12 KiB: one bit per port, and three more (APM 2 15.10.1).
const IOPM_ORDER: u32 = 2;

/// State of one CPU.
pub(super) struct Cpu {
    /// VM_HSAVE_PA: where VMRUN keeps the host's state. Opaque.
    hsave: HwPage,
    /// Where VMSAVE keeps the rest of it.
    pub(super) host_extra: Pages,
    /// The host's TSC_AUX, constant per CPU.
    pub(super) tsc_aux: AtomicU64,
    /// Set while SVME on this CPU is ours.
    pub(super) enabled: AtomicU32,
    /// The ASIDs that this CPU gives out.
    pub(super) asids: Pool,
}

/// What all vCPUs share. They hold it; new ones, and CPUs that come and go, find it from `probe` to the module's exit.
pub(super) struct Shared {
    pub(super) caps: HwCaps,
    pub(super) cpus: PerCpu<Cpu>,
    /// Number of ASIDs; valid are 1 to `asids - 1`.
    pub(super) asids: u32,
    pub(super) flush_by_asid: bool,
    pub(super) decode_assists: bool,
    /// PAUSE exits only after so many within a short time (APM 2 15.14.4).
    pub(super) pause_threshold: bool,
    /// What is done for an emulator only.
    pub(super) quirks: Quirks,
    /// The processor switches SPEC_CTRL itself.
    pub(super) v_spec_ctrl: bool,
    /// The second one lets the guest reach SPEC_CTRL.
    pub(super) msrpms: [Pages; 2],
    /// Every MSR exits.
    pub(super) msrpm_all: Pages,
    pub(super) iopm: Pages,
}

static SHARED: Global<Shared> = Global::new();

/// What all vCPUs share. Errors: `ENODEV` before `probe`.
pub(super) fn shared() -> Result<Arc<Shared>> {
    SHARED.get().ok_or(ENODEV)
}

/// Whether this CPU claims SVM.
pub(super) fn present() -> bool {
    cpuid::cpuid(0x8000_0000, 0).eax >= 0x8000_000a && cpuid::cpuid(0x8000_0001, 0).ecx & 4 != 0
}

/// As [`crate::x86::vendor::Platform::probe`].
pub(super) fn probe() -> Result<(HwCaps, Owner)> {
    if !present() {
        pr_err!("this CPU has no AMD SVM\n");
        return Err(ENODEV);
    }
    let svm = cpuid::cpuid(0x8000_000a, 0);
    refuse(&svm)?;
    let quirks = Quirks::find();
    let caps = caps(&svm, quirks);
    let owner = SHARED.set(Shared {
        caps,
        cpus: PerCpu::new(|_| {
            Ok(Cpu {
                hsave: HwPage::new()?,
                host_extra: Pages::new(0)?,
                tsc_aux: AtomicU64::new(0),
                enabled: AtomicU32::new(0),
                asids: Pool::new(svm.ebx, svm.edx & feature::FLUSH_BY_ASID != 0),
            })
        })?,
        asids: svm.ebx,
        flush_by_asid: svm.edx & feature::FLUSH_BY_ASID != 0,
        decode_assists: svm.edx & feature::DECODE_ASSISTS != 0,
        pause_threshold: svm.edx & feature::PAUSE_FILTER_THRESHOLD != 0,
        quirks,
        v_spec_ctrl: boot_cpu::has(bindings::X86_FEATURE_V_SPEC_CTRL),
        msrpms: [
            Pages::filled(MAP_ORDER, fill_map)?,
            Pages::filled(MAP_ORDER, fill_map_spec_ctrl)?,
        ],
        msrpm_all: Pages::filled(MAP_ORDER, |map| map.fill(0xff))?,
        iopm: Pages::filled(IOPM_ORDER, |map| map.fill(0xff))?,
    })?;
    Ok((caps, owner))
}

/// Refuses a machine that cannot run guests, with a line in the log. `svm` is CPUID 8000_000A.
fn refuse(svm: &cpuid::Leaf) -> Result {
    if let Ok(v) = msr::read_safe(index::VM_CR) {
        if v & VM_CR_SVMDIS != 0 {
            pr_err!("SVM is switched off by the firmware (VM_CR.SVMDIS): enable SVM or AMD-V in the firmware set-up\n");
            return Err(ENODEV);
        }
    }
    if boot_cpu::fred_enabled() {
        pr_err!("FRED event delivery is on, which is not supported: boot with fred=off\n");
        return Err(EOPNOTSUPP);
    }
    if boot_cpu::memory_encrypted() {
        pr_err!("memory encryption (SME or SEV) is on, which is not supported: boot with mem_encrypt=off\n");
        return Err(EOPNOTSUPP);
    }
    if svm.edx & feature::NP == 0 {
        pr_err!("this CPU's SVM lacks nested paging\n");
        return Err(EOPNOTSUPP);
    }
    if svm.ebx < 2 {
        pr_err!("this CPU's SVM has no ASIDs for guests\n");
        return Err(EOPNOTSUPP);
    }
    if msr::read_safe(index::PAT) != Ok(HOST_PAT) {
        pr_err!("IA32_PAT of this host is not Linux's usual one, by which nested pages choose memory types\n");
        return Err(EOPNOTSUPP);
    }
    Ok(())
}

/// What this CPU offers; `svm` is CPUID 8000_000A.
fn caps(svm: &cpuid::Leaf, quirks: Quirks) -> HwCaps {
    let ext = cpuid::cpuid(0x8000_0001, 0);
    let l7 = cpuid::cpuid_checked(7, 0);
    HwCaps {
        name: "svm",
        nested_format: NestedFormat::Npt,
        nested_2m: true,
        // Page1GB: nested tables have them where the host's do (APM 2 5.3.3, 15.25.6).
        nested_1g: ext.edx & 1 << 26 != 0,
        nx_huge: false,
        nested_ad: true,
        write_log: false,
        insn_len: svm.edx & feature::NRIPS != 0,
        rdtscp: ext.edx & 1 << 27 != 0,
        invpcid: l7.ebx & 1 << 10 != 0,
        umip_exits: false,
        xsaves: cpuid::cpuid_checked(0xd, 1).eax & 8 != 0,
        tsc_fraction: if svm.edx & feature::TSC_RATE_MSR != 0 {
            TSC_FRACTION
        } else {
            0
        },
        tsc_ratio_max: TSC_RATIO_MAX,
        pause_exit: svm.edx & feature::PAUSE_FILTER != 0,
        apicv: false,
        posted: false,
        guest_timer: false,
        nested_levels: if boot_cpu::la57() { 5 } else { 4 },
        phys_bits: cpuid::phys_bits(),
        pdpte_reserved: quirks.pdpte_reserved(),
        cr2_exits: quirks.tcg,
    }
}

/// As [`crate::x86::vendor::Platform::cpu_up`].
pub(super) fn cpu_up() -> Result {
    let shared = shared()?;
    let guard = IrqGuard::new();
    let cpu = shared.cpus.this(&guard).ok_or(ENODEV)?;
    // SAFETY: EFER exists on every 64-bit CPU.
    let old = unsafe { msr::read(index::EFER) };
    if old & efer::SVME != 0 {
        pr_err!("EFER.SVME is already set: another hypervisor (kvm_amd?) owns SVM on this machine; unload it first\n");
        return Err(EBUSY);
    }
    if shared.caps.rdtscp {
        // SAFETY: RDTSCP implies TSC_AUX.
        let aux = unsafe { msr::read(index::TSC_AUX) };
        cpu.tsc_aux.store(aux, Ordering::Relaxed);
    }
    // Whatever this CPU's TLB held before it went down is not trusted.
    cpu.asids.renew();
    // SAFETY: The CPU has SVM and SVMDIS is clear; setting SVME changes nothing until VMRUN. The save area is
    // written by VMRUN only, for a vCPU, which holds `Shared` and with it the page.
    unsafe {
        msr::write(index::EFER, old | efer::SVME);
        msr::write(index::VM_HSAVE_PA, cpu.hsave.phys());
    }
    if shared.caps.tsc_fraction != 0 {
        // SAFETY: CPUID has the MSR. Stays begin with no scaling; who had SVM before may have left another value.
        unsafe { msr::write(index::TSC_RATIO, TSC_RATIO_ONE) };
    }
    reduce_speculation(true);
    cpu.enabled.store(1, Ordering::Relaxed);
    Ok(())
}

/// Sets or clears BP_CFG.BpSpecReduce on this CPU where the kernel's answer to SRSO is that a hypervisor does so:
/// guests then cannot steer the host's return predictions.
fn reduce_speculation(on: bool) {
    const BP_SPEC_REDUCE: u64 = 1 << 4;
    if boot_cpu::has(bindings::X86_FEATURE_SRSO_BP_SPEC_REDUCE) {
        // SAFETY: The feature says that there is such a bit. It restricts what is predicted, not what is computed, and
        // it is a hypervisor's: the kernel alone sets others of the MSR, before modules run.
        unsafe {
            let old = msr::read(index::BP_CFG) & !BP_SPEC_REDUCE;
            msr::write(index::BP_CFG, old | if on { BP_SPEC_REDUCE } else { 0 });
        }
    }
}

/// As [`crate::x86::vendor::Platform::cpu_down`].
pub(super) fn cpu_down() {
    let Ok(shared) = shared() else { return };
    let guard = IrqGuard::new();
    let Some(cpu) = shared.cpus.this(&guard) else {
        return;
    };
    if cpu.enabled.swap(0, Ordering::Relaxed) == 0 {
        return;
    }
    // SAFETY: `cpu_up` set these; no stay is open on this CPU, since interrupts were on before.
    unsafe {
        msr::write(index::VM_HSAVE_PA, 0);
        msr::write(index::EFER, msr::read(index::EFER) & !efer::SVME);
    }
    reduce_speculation(false);
}
