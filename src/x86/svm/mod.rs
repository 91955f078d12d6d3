// SPDX-License-Identifier: GPL-2.0
//! AMD SVM (APM 2 chapter 15).
//!
//! EFER.SVME is set on every CPU while the module is loaded. Unlike CR4.VMXE it has no shadow in the kernel that
//! could write it back. A CPU on which SVME is set already belongs to somebody else (KVM): ASIDs would be
//! shared without either side knowing, so the module refuses with EBUSY.

pub(crate) mod check;
mod entry;
mod vcpu;
mod vmcb;

use crate::linux::global::Global;
use crate::linux::irqflags::IrqGuard;
use crate::linux::page::Pages;
use crate::linux::percpu::PerCpu;
use crate::linux::{boot_cpu, cpuid, msr, smp};
use crate::x86::cpu::index;
use crate::x86::cpu::regs::efer;
use crate::x86::paging::fmt_npt::HOST_PAT;
use crate::x86::vendor::{HwCaps, Platform};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;

pub(crate) use vcpu::SvmVcpu;

const TSC_FRACTION: u32 = 32;
const TSC_RATIO_MAX: u64 = (1 << 40) - 1;
/// No scaling; the value of RESET.
const TSC_RATIO_ONE: u64 = 1 << TSC_FRACTION;
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

/// Bits of an MSR-permission map: two per MSR, read then write (APM 2 15.11).
const MSRPM_ORDER: u32 = 1;
/// Bits of the I/O-permission map: one per port, and three more (APM 2 15.10.1).
const IOPM_ORDER: u32 = 2;

/// MSRs that VMLOAD and VMSAVE switch, which the guest may therefore access directly (APM 2 15.5.2).
const SWITCHED_MSRS: [u32; 10] = [
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::FMASK,
    index::FS_BASE,
    index::GS_BASE,
    index::KERNEL_GS_BASE,
];

/// State of one CPU.
struct Cpu {
    /// VM_HSAVE_PA: where VMRUN keeps the host's state. Opaque.
    hsave: Pages,
    /// Where VMSAVE keeps the rest of it.
    host_extra: Pages,
    /// The host's TSC_AUX, constant per CPU.
    tsc_aux: AtomicU64,
    /// Set while SVME on this CPU is ours.
    enabled: AtomicU32,
    /// ASID generation; changes when all ASIDs have been given out (APM 2 15.15.2).
    generation: AtomicU64,
    /// Next ASID to give out.
    next_asid: AtomicU32,
}

/// Module-wide state, there from `probe` to `exit`.
struct State {
    caps: HwCaps,
    cpus: PerCpu<Cpu>,
    /// Number of ASIDs; valid are 1 to `asids - 1`.
    asids: u32,
    flush_by_asid: bool,
    decode_assists: bool,
    /// PAUSE exits only after so many within a short time (APM 2 15.14.4).
    pause_threshold: bool,
    /// Interrupts go in as V_IRQ with their vector instead of EVENTINJ. QEMU's TCG forgets to clear the event after
    /// VMRUN has delivered it, and delivers it again when it is asked to run another of its CPUs before the next exit
    /// (`helper_vmrun`: `exception_index`; `cpu_handle_interrupt`). With one CPU nobody asks, unless instructions are counted
    /// (`tools/emulators.py`).
    virtual_injection: bool,
    /// This CPU is QEMU's TCG:
    ///
    /// - A guest with EFER.LME and neither CR0.PG nor CR4.PAE runs without LME. TCG loads the host's CR0 while the guest's
    ///   EFER and CR4 are still there (`do_vmexit`: `cpu_x86_update_cr0` refuses), which ends the host.
    /// - System registers that were written are checked before the entry. TCG saves the registers of the moment, the
    ///   host's, into a VMCB that it refuses: nobody could say what was wrong with it, and they would become the guest's.
    tcg: bool,
    msrpm: Pages,
    /// Every MSR exits.
    msrpm_all: Pages,
    iopm: Pages,
}

static STATE: Global<State> = Global::new();

/// AMD SVM as a platform.
pub(crate) struct Svm;

impl Svm {
    /// Whether this CPU claims SVM.
    pub(crate) fn present() -> bool {
        cpuid::cpuid(0x8000_0000, 0).eax >= 0x8000_000a && cpuid::cpuid(0x8000_0001, 0).ecx & 4 != 0
    }

    /// Frees the module-wide state.
    ///
    /// # Safety
    ///
    /// `cpu_down` has run everywhere and no vCPU is left.
    pub(crate) unsafe fn exit() {
        // SAFETY: By the contract no reference is left.
        unsafe { STATE.clear() };
    }
}

/// Whether this CPU is QEMU's emulation (its CPUID signature is TCGTCGTCGTCG).
fn is_tcg() -> bool {
    const HYPERVISOR: u32 = 1 << 31;
    let l = cpuid::cpuid(0x4000_0000, 0);
    cpuid::cpuid(1, 0).ecx & HYPERVISOR != 0
        && [l.ebx, l.ecx, l.edx]
            == [
                u32::from_le_bytes(*b"TCGT"),
                u32::from_le_bytes(*b"CGTC"),
                u32::from_le_bytes(*b"GTCG"),
            ]
}

/// MSR-permission map that intercepts everything but [`SWITCHED_MSRS`].
fn fill_msrpm(map: &mut [u8]) {
    map.fill(0xff);
    for msr in SWITCHED_MSRS {
        let (base, first) = match msr {
            0..=0x1fff => (0usize, 0u32),
            0xc000_0000..=0xc000_1fff => (0x800, 0xc000_0000),
            _ => (0x1000, 0xc001_0000),
        };
        let bit = (msr - first) as usize * 2;
        if let Some(b) = map.get_mut(base + bit / 8) {
            *b &= !(3 << (bit % 8));
        }
    }
}

impl Platform for Svm {
    type Vcpu = SvmVcpu;

    fn probe() -> Result<HwCaps> {
        if !Self::present() {
            pr_err!("this CPU has no AMD SVM\n");
            return Err(ENODEV);
        }
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
        let l = cpuid::cpuid(0x8000_000a, 0);
        if l.edx & feature::NP == 0 {
            pr_err!("this CPU's SVM lacks nested paging\n");
            return Err(EOPNOTSUPP);
        }
        if l.ebx < 2 {
            pr_err!("this CPU's SVM has no ASIDs for guests\n");
            return Err(EOPNOTSUPP);
        }
        if msr::read_safe(index::PAT) != Ok(HOST_PAT) {
            pr_err!("IA32_PAT of this host is not Linux's usual one, by which nested pages choose memory types\n");
            return Err(EOPNOTSUPP);
        }
        let ext = cpuid::cpuid(0x8000_0001, 0);
        let l7 = if cpuid::cpuid(0, 0).eax >= 7 {
            cpuid::cpuid(7, 0)
        } else {
            Default::default()
        };
        let xsave = if cpuid::cpuid(0, 0).eax >= 0xd {
            cpuid::cpuid(0xd, 1).eax
        } else {
            0
        };
        let caps = HwCaps {
            name: "svm",
            nested_2m: true,
            nested_1g: ext.edx & 1 << 26 != 0,
            nested_ad: true,
            nested_exec_only: false,
            insn_len: l.edx & feature::NRIPS != 0,
            rdtscp: ext.edx & 1 << 27 != 0,
            invpcid: l7.ebx & 1 << 10 != 0,
            xsaves: xsave & 8 != 0,
            umip: l7.ecx & 4 != 0,
            tsc_fraction: if l.edx & feature::TSC_RATE_MSR != 0 {
                TSC_FRACTION
            } else {
                0
            },
            tsc_ratio_max: TSC_RATIO_MAX,
            pause_exit: l.edx & feature::PAUSE_FILTER != 0,
            apicv: false,
            posted: false,
            guest_timer: false,
            nested_levels: if boot_cpu::la57() { 5 } else { 4 },
        };
        let cpus = PerCpu::new(|_| {
            Ok(Cpu {
                hsave: Pages::new(0)?,
                host_extra: Pages::new(0)?,
                tsc_aux: AtomicU64::new(0),
                enabled: AtomicU32::new(0),
                generation: AtomicU64::new(1),
                next_asid: AtomicU32::new(1),
            })
        })?;
        STATE.set(State {
            caps,
            cpus,
            asids: l.ebx,
            flush_by_asid: l.edx & feature::FLUSH_BY_ASID != 0,
            decode_assists: l.edx & feature::DECODE_ASSISTS != 0,
            pause_threshold: l.edx & feature::PAUSE_FILTER_THRESHOLD != 0,
            // Possible ones: they may come online later.
            virtual_injection: is_tcg() && smp::nr_cpu_ids() > 1,
            tcg: is_tcg(),
            msrpm: Pages::filled(MSRPM_ORDER, fill_msrpm)?,
            msrpm_all: Pages::filled(MSRPM_ORDER, |map| map.fill(0xff))?,
            iopm: Pages::filled(IOPM_ORDER, |map| map.fill(0xff))?,
        })?;
        Ok(caps)
    }

    fn cpu_up() -> Result {
        let state = STATE.get().ok_or(ENODEV)?;
        let guard = IrqGuard::new();
        let cpu = state.cpus.this(&guard).ok_or(ENODEV)?;
        // SAFETY: EFER exists on every 64-bit CPU.
        let old = unsafe { msr::read(index::EFER) };
        if old & efer::SVME != 0 {
            pr_err!("EFER.SVME is already set: another hypervisor (kvm_amd?) owns SVM on this machine; unload it first\n");
            return Err(EBUSY);
        }
        if state.caps.rdtscp {
            // SAFETY: RDTSCP implies TSC_AUX.
            let aux = unsafe { msr::read(index::TSC_AUX) };
            cpu.tsc_aux.store(aux, Ordering::Relaxed);
        }
        // A new generation: whatever this CPU's TLB held before it went down is not trusted.
        cpu.generation.fetch_add(1, Ordering::Relaxed);
        cpu.next_asid.store(1, Ordering::Relaxed);
        // SAFETY: The CPU has SVM and SVMDIS is clear; setting SVME changes nothing until VMRUN. The save area is a page
        // of ours that lives until `exit`.
        unsafe {
            msr::write(index::EFER, old | efer::SVME);
            msr::write(index::VM_HSAVE_PA, cpu.hsave.phys());
        }
        cpu.enabled.store(1, Ordering::Relaxed);
        Ok(())
    }

    fn cpu_down() {
        let Some(state) = STATE.get() else { return };
        let guard = IrqGuard::new();
        let Some(cpu) = state.cpus.this(&guard) else {
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
    }
}
