// SPDX-License-Identifier: GPL-2.0
//! RDMSR and WRMSR, by the guest and by KVM_GET_MSRS and KVM_SET_MSRS (SDM 4, APM 2 appendix A).
//!
//! This file adds to [`State`] the two accesses and what each class of MSRs does on them. Handlers of exits and the
//! vCPU's ioctls call them under the vCPU's mutex; [`crate::x86::pv::msrs::may_sleep`] names those that a stay has to
//! be left for.

use crate::abi::uapi::k;
use crate::linux::hrtimer;
use crate::params;
use crate::pr_warn_ratelimited;
use crate::x86::cpu::control;
use crate::x86::cpu::index;
use crate::x86::cpu::msr as msrs;
use crate::x86::cpu::msr::{Class, MsrError, Read, Written};
use crate::x86::cpu::regs::{efer, Seg};
use crate::x86::hyperv;
use crate::x86::irqchip::lapic::Action;
use crate::x86::mitigate;
use crate::x86::pv;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::{Groups, VcpuBackend};
use crate::x86::vm::Vm;

impl State {
    /// RDMSR, or KVM_GET_MSRS with `by_host`. An error raises #GP or ends the list.
    pub(crate) fn read_msr(&mut self, vm: &Vm, index: u32, by_host: bool) -> Result<u64, MsrError> {
        let a = self.cpuid.access(by_host, self.pv.enforce);
        match self.msrs.get(index, &a)? {
            Read::Value(v) => Ok(v),
            Read::Delegate(class) => self
                .read_kept_msr(vm, class, index, by_host)
                .ok_or(MsrError::Invalid),
        }
    }

    /// An MSR that is kept elsewhere.
    fn read_kept_msr(&mut self, vm: &Vm, class: Class, index: u32, by_host: bool) -> Option<u64> {
        match class {
            Class::Efer => {
                self.load(Groups::CTRL);
                Some(self.cpu.sregs.efer)
            }
            Class::ApicBase => Some(
                self.apic
                    .lapic
                    .as_ref()
                    .map_or(self.apic.base, |l| l.apic_base()),
            ),
            // Listed, so user space has to be able to read it, also where the local APIC is elsewhere.
            Class::TscDeadline => Some(self.apic.lapic.as_ref().map_or(0, |l| l.tsc_deadline())),
            Class::X2apic => {
                let now = hrtimer::ktime_get_ns();
                self.apic.lapic.as_ref()?.rdmsr(index, now).ok()
            }
            Class::Tsc => Some(self.tsc()),
            Class::TscAdjust => Some(self.tsc.adjust),
            Class::Backend => self.read_backend_msr(index),
            Class::PredictionBarrier | Class::L1dFlush => None,
            Class::Paravirt => pv::msrs::read(vm, self, index),
            Class::HyperV => hyperv::msrs::read(vm, self, index, by_host),
        }
    }

    /// One of the MSRs that the vendor keeps, or a base in the segment registers.
    fn read_backend_msr(&mut self, index: u32) -> Option<u64> {
        match index {
            index::FS_BASE => {
                self.load(Groups::SEGS);
                Some(self.cpu.sregs.seg(Seg::Fs).base)
            }
            index::GS_BASE => {
                self.load(Groups::SEGS);
                Some(self.cpu.sregs.seg(Seg::Gs).base)
            }
            _ => self.hw.msr(index),
        }
    }

    /// WRMSR, or KVM_SET_MSRS with `by_host`. An error raises #GP or ends the list; an [`Action`] is to be carried out
    /// by the caller.
    pub(crate) fn write_msr(
        &mut self,
        vm: &Vm,
        index: u32,
        value: u64,
        by_host: bool,
    ) -> Result<Action, MsrError> {
        if index == index::MISC_ENABLE && (self.msrs.misc_enable ^ value) & msrs::MISC_MWAIT != 0 {
            self.cpuid.mwait_follows = !vm.caps.quirk(k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT);
            // KVM ties the bit to SSE3.
            if self.cpuid.mwait_follows && self.cpuid_leaf1_ecx() & 1 == 0 {
                return Err(MsrError::Invalid);
            }
        }
        let a = self.cpuid.access(by_host, self.pv.enforce);
        match self.msrs.set(index, value, &a)? {
            Written::Stored => {
                if self.cpuid.mwait_follows && index == index::MISC_ENABLE {
                    self.refresh_dynamic();
                }
                Ok(Action::NONE)
            }
            Written::Delegate(class, value) => self
                .write_kept_msr(vm, class, index, value, by_host)
                .ok_or(MsrError::Invalid),
        }
    }

    /// An MSR that is kept elsewhere, or a command.
    fn write_kept_msr(
        &mut self,
        vm: &Vm,
        class: Class,
        index: u32,
        value: u64,
        by_host: bool,
    ) -> Option<Action> {
        match class {
            Class::Efer => self.write_efer(value, by_host)?,
            Class::ApicBase => return self.write_apic_base(value, by_host),
            Class::TscDeadline => {
                let l = self.apic.lapic.as_mut();
                return Some(l.map_or(Action::NONE, |l| l.set_tsc_deadline(value)));
            }
            Class::X2apic => {
                let now = hrtimer::ktime_get_ns();
                return self.apic.lapic.as_mut()?.wrmsr(index, value, now).ok();
            }
            // The timer's deadline is in guest TSC.
            Class::Tsc => {
                self.write_tsc(vm, value, by_host);
                return Some(Action::TIMER);
            }
            Class::TscAdjust => {
                self.write_tsc_adjust(value, by_host);
                return Some(Action::TIMER);
            }
            Class::Backend => self.write_backend_msr(index, value)?,
            Class::PredictionBarrier => {
                // The selective barrier (SBPB) is a weaker one.
                if value != 0 {
                    mitigate::guest_barrier();
                }
            }
            Class::L1dFlush => {
                if value != 0 {
                    mitigate::guest_l1d_flush();
                }
            }
            Class::HyperV => return hyperv::msrs::write(vm, self, index, value, by_host),
            Class::Paravirt => pv::msrs::write(vm, self, index, value, by_host).then_some(())?,
        }
        Some(Action::NONE)
    }

    fn write_efer(&mut self, value: u64, by_host: bool) -> Option<()> {
        self.load(Groups::CTRL);
        let s = &self.cpu.sregs;
        let allowed = control::efer_allowed(if by_host {
            &self.cpuid.host_features
        } else {
            &self.cpuid.features
        });
        let new = if by_host {
            // LMA follows LME and PG, in whatever order user space restores them.
            if value & !(allowed | efer::LMA) != 0 {
                return None;
            }
            value & !efer::LMA | s.efer & efer::LMA
        } else {
            control::efer_write_check(s.efer, value, s.cr0, allowed).ok()?
        };
        self.cpu.sregs.efer = new;
        self.dirty(Groups::CTRL);
        Some(())
    }

    fn write_apic_base(&mut self, value: u64, by_host: bool) -> Option<Action> {
        let Some(l) = &mut self.apic.lapic else {
            self.check_apic_base(value)?;
            self.apic.base = value;
            return Some(Action::NONE);
        };
        let action = l.set_apic_base(value, by_host).ok()?;
        self.refresh_dynamic();
        Some(action)
    }

    fn write_backend_msr(&mut self, index: u32, value: u64) -> Option<()> {
        let seg = match index {
            index::FS_BASE => Seg::Fs,
            index::GS_BASE => Seg::Gs,
            _ => return self.hw.set_msr(index, value).then_some(()),
        };
        self.load(Groups::SEGS);
        self.cpu.sregs.seg_mut(seg).base = value;
        self.dirty(Groups::SEGS);
        Some(())
    }
}

/// What a guest or user space gets instead of an error for an MSR that is not there, if the module parameter
/// `ignore_msrs` says so: reads as 0, writes are dropped.
pub(crate) fn ignored(op: &str, index: u32, value: u64, e: MsrError) -> bool {
    if e != MsrError::Unknown || !params::ignore_msrs() {
        return false;
    }
    if params::report_ignored_msrs() {
        pr_warn_ratelimited!("ignored {op}: {index:#x} data {value:#x}\n");
    }
    true
}

/// KVM_MSR_EXIT_REASON_* of an access that failed.
pub(crate) fn exit_reason(e: MsrError) -> u32 {
    match e {
        MsrError::Unknown => k::KVM_MSR_EXIT_REASON_UNKNOWN,
        MsrError::Invalid => k::KVM_MSR_EXIT_REASON_INVAL,
    }
}
