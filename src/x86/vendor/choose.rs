// SPDX-License-Identifier: GPL-2.0
//! The vendor that this machine has, chosen once at load.

use crate::linux::cost::Samples;
use crate::linux::global::Owner;
use crate::linux::irqflags::{IrqGuard, ThisCpu};
use crate::mem::addr::{Gpa, Hpa};
use crate::x86::cpu::cpuid::GuestFeatures;
use crate::x86::cpu::regs::{Seg, Segment};
use crate::x86::exit::{Event, Exit};
use crate::x86::paging::fetch::Code;
use crate::x86::paging::gwalk::PDPTE_RESERVED;
use crate::x86::svm::{Svm, SvmVcpu};
use crate::x86::vendor::{
    ApicMode, ApicPages, Begin, CpuState, EntryParams, EntryViolation, Exits, Groups, HwCaps,
    Interruptibility, Platform, Stay, VcpuBackend, VendorState,
};
use crate::x86::vmx::{Vmx, VmxVcpu};
use kernel::prelude::*;
use kernel::sync::SetOnce;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vmx,
    Svm,
}

static CHOSEN: SetOnce<(Kind, HwCaps)> = SetOnce::new();

/// Finds the vendor and probes it. What all vCPUs share is found as long as the owner lives. The errors are those of
/// [`Platform::probe`].
pub(crate) fn probe() -> Result<(HwCaps, Owner)> {
    let (kind, (caps, owner)) = if Svm::present() {
        (Kind::Svm, Svm::probe()?)
    } else {
        (Kind::Vmx, Vmx::probe()?)
    };
    if !CHOSEN.populate((kind, caps)) {
        return Err(EBUSY);
    }
    Ok((caps, owner))
}

/// Capabilities; `None` before `probe`.
pub(crate) fn caps() -> Option<&'static HwCaps> {
    CHOSEN.as_ref().map(|c| &c.1)
}

/// Bits that are reserved in a PDPTE of a guest, beside the address bits that do not exist.
pub(crate) fn pdpte_reserved() -> u64 {
    caps().map_or(PDPTE_RESERVED, |c| c.pdpte_reserved)
}

/// [`Platform::cpu_up`] of the vendor.
pub(crate) fn cpu_up() -> Result {
    match CHOSEN.as_ref().ok_or(ENODEV)?.0 {
        Kind::Vmx => Vmx::cpu_up(),
        Kind::Svm => Svm::cpu_up(),
    }
}

/// [`Platform::cpu_down`] of the vendor.
pub(crate) fn cpu_down() {
    match CHOSEN.as_ref().map(|c| c.0) {
        Some(Kind::Vmx) => Vmx::cpu_down(),
        Some(Kind::Svm) => Svm::cpu_down(),
        None => {}
    }
}

/// [`Platform::shutdown`] of the vendor. The other CPUs are still online, and keep SVME until INIT or the next kernel
/// resets it: that harms nobody, since GIF is set outside stays and the reboot stops them there.
pub(crate) fn shutdown() {
    match CHOSEN.as_ref().map(|c| c.0) {
        Some(Kind::Vmx) => Vmx::shutdown(),
        Some(Kind::Svm) => Svm::shutdown(),
        None => {}
    }
}

/// [`Platform::root`] of the vendor.
pub(crate) fn root() -> u32 {
    match CHOSEN.as_ref().map(|c| c.0) {
        Some(Kind::Vmx) => Vmx::root(),
        Some(Kind::Svm) => Svm::root(),
        None => 0,
    }
}

/// This machine's hypercall instruction: VMCALL or VMMCALL.
pub(crate) fn hypercall() -> [u8; 3] {
    match CHOSEN.as_ref() {
        Some((Kind::Vmx, _)) => [0x0f, 0x01, 0xc1],
        _ => [0x0f, 0x01, 0xd9],
    }
}

/// The vendor part of a vCPU.
pub(crate) enum Backend {
    /// Intel.
    Vmx(KBox<VmxVcpu>),
    /// AMD.
    Svm(KBox<SvmVcpu>),
}

macro_rules! dispatch {
    ($self:expr, $v:ident => $e:expr) => {
        match $self {
            Self::Vmx($v) => $e,
            Self::Svm($v) => $e,
        }
    };
}

impl Backend {
    /// In a stay whose last exit was a nested fault, since nothing is mapped at all: times the vendor's instruction
    /// number `n`. Its name; `None` when there are no more.
    pub(crate) fn measure(
        &mut self,
        n: usize,
        this_cpu: ThisCpu<'_>,
        samples: &mut Samples<'_>,
    ) -> Option<&'static str> {
        match self {
            Self::Vmx(v) => v.measure(n, this_cpu, samples),
            Self::Svm(v) => v.measure(n, samples),
        }
    }
}

impl VcpuBackend for Backend {
    fn new(id: u32, features: &GuestFeatures) -> Result<Self> {
        Ok(match CHOSEN.as_ref().ok_or(ENODEV)?.0 {
            Kind::Vmx => Self::Vmx(KBox::new(VmxVcpu::new(id, features)?, GFP_KERNEL_ACCOUNT)?),
            Kind::Svm => Self::Svm(KBox::new(SvmVcpu::new(id, features)?, GFP_KERNEL_ACCOUNT)?),
        })
    }

    #[inline]
    fn irqs_off(&mut self) -> IrqGuard {
        dispatch!(self, v => v.irqs_off())
    }

    #[inline]
    fn begin_stay(&mut self, begin: Begin<'_>) -> Result {
        dispatch!(self, v => v.begin_stay(begin))
    }

    #[inline]
    fn end_stay(&mut self, stay: Stay<'_>) {
        dispatch!(self, v => v.end_stay(stay))
    }

    #[inline]
    fn after_stay(&mut self, irqs: IrqGuard) {
        dispatch!(self, v => v.after_stay(irqs))
    }

    #[inline]
    fn enter(&mut self, stay: &Stay<'_>, cpu: &mut CpuState, params: Option<&EntryParams>) -> Exit {
        dispatch!(self, v => v.enter(stay, cpu, params))
    }

    #[inline]
    fn was_interrupted(&self) -> bool {
        dispatch!(self, v => v.was_interrupted())
    }

    fn lost_state(&mut self) -> bool {
        dispatch!(self, v => v.lost_state())
    }

    #[inline]
    fn end_shadow(&mut self) {
        dispatch!(self, v => v.end_shadow())
    }

    fn load(&mut self, cpu: &mut CpuState, groups: Groups) {
        dispatch!(self, v => v.load(cpu, groups))
    }

    #[inline]
    fn code(&self, rflags: u64) -> Option<Code> {
        dispatch!(self, v => v.code(rflags))
    }

    #[inline]
    fn segment(&mut self, seg: Seg) -> Option<Segment> {
        dispatch!(self, v => v.segment(seg))
    }

    #[inline]
    fn cpl(&self) -> Option<u8> {
        dispatch!(self, v => v.cpl())
    }

    #[inline]
    fn tpr(&self) -> Option<u8> {
        dispatch!(self, v => v.tpr())
    }

    #[inline]
    fn insn_len(&self) -> Option<u8> {
        dispatch!(self, v => v.insn_len())
    }

    fn insn_bytes(&self) -> Option<([u8; 16], u8)> {
        dispatch!(self, v => v.insn_bytes())
    }

    #[inline]
    fn take_interrupted(&mut self) -> Option<Event> {
        dispatch!(self, v => v.take_interrupted())
    }

    #[inline]
    fn interruptibility(&mut self) -> Interruptibility {
        dispatch!(self, v => v.interruptibility())
    }

    #[inline]
    fn wake(&mut self) {
        dispatch!(self, v => v.wake())
    }

    fn set_interruptibility(&mut self, i: Interruptibility) {
        dispatch!(self, v => v.set_interruptibility(i))
    }

    fn msr(&mut self, index: u32) -> Option<u64> {
        dispatch!(self, v => v.msr(index))
    }

    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        dispatch!(self, v => v.set_msr(index, value))
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        dispatch!(self, v => v.set_tsc_offset(offset))
    }

    fn set_tsc_ratio(&mut self, ratio: u64) {
        dispatch!(self, v => v.set_tsc_ratio(ratio))
    }

    fn set_deadline(&mut self, host_tsc: u64) {
        dispatch!(self, v => v.set_deadline(host_tsc))
    }

    fn set_exception_intercepts(&mut self, vectors: u32) {
        dispatch!(self, v => v.set_exception_intercepts(vectors))
    }

    fn virtualize_apic(&mut self, pages: &ApicPages) -> bool {
        dispatch!(self, v => v.virtualize_apic(pages))
    }

    fn shadow_tpr(&mut self, registers: Hpa) -> bool {
        dispatch!(self, v => v.shadow_tpr(registers))
    }

    fn set_apic_mode(&mut self, mode: ApicMode) {
        dispatch!(self, v => v.set_apic_mode(mode))
    }

    fn set_eoi_exits(&mut self, vectors: &[u32; 8]) {
        dispatch!(self, v => v.set_eoi_exits(vectors))
    }

    #[inline]
    fn set_spinning(&mut self, on: bool) {
        dispatch!(self, v => v.set_spinning(on))
    }

    fn set_write_log(&mut self, on: bool) -> Result {
        dispatch!(self, v => v.set_write_log(on))
    }

    fn take_write_log(&mut self, stay: &Stay<'_>, page: impl FnMut(Gpa)) {
        dispatch!(self, v => v.take_write_log(stay, page))
    }

    fn set_exits(&mut self, exits: Exits) {
        dispatch!(self, v => v.set_exits(exits))
    }

    fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        dispatch!(self, v => v.set_pdptes(pdptes))
    }

    fn pdptes(&mut self) -> Option<[u64; 4]> {
        dispatch!(self, v => v.pdptes())
    }

    fn save(&mut self) -> Result<VendorState> {
        dispatch!(self, v => v.save())
    }

    fn put_back(&mut self, saved: &VendorState) -> Result {
        dispatch!(self, v => v.put_back(saved))
    }

    fn check_entry(
        &mut self,
        cpu: &mut CpuState,
        params: &EntryParams,
    ) -> Result<(), EntryViolation> {
        dispatch!(self, v => v.check_entry(cpu, params))
    }
}
