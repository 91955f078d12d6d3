// SPDX-License-Identifier: GPL-2.0
//! MSRs of the guest: which it reaches without an exit (SDM 3C 25.6.9), and where the vCPU keeps those of the vendor.
//!
//! The bitmaps are filled at module load; the rest is called under the vCPU's mutex, in a stay or outside.

use super::insn::Current;
use super::vmcs::*;
use crate::linux::msr;
use crate::x86::cpu::index;
use crate::x86::cpu::reset::PAT as PAT_RESET;
use crate::x86::irqchip::lapic::reg;
use crate::x86::mitigate::SpecCtrl;

/// MSRs that are swapped at the ends of a stay. The guest reads them freely, its writes exit, so the guest's
/// values are known without reading them back.
pub(super) const SWAPPED: [u32; 4] = [index::STAR, index::LSTAR, index::FMASK, index::TSC_AUX];

/// Lets the guest reach `msr` for reading or writing.
fn pass(bitmap: &mut [u8], msr: u32, write: bool) {
    let (base, n) = if msr >= 0xc000_0000 {
        (0x400, msr & 0x1fff)
    } else {
        (0, msr & 0x1fff)
    };
    let offset = base + if write { 0x800 } else { 0 } + (n / 8) as usize;
    if let Some(byte) = bitmap.get_mut(offset) {
        *byte &= !(1 << (n % 8));
    }
}

/// Lets the guest reach SPEC_CTRL, which entries load and exits store.
pub(super) fn pass_spec_ctrl(bitmap: &mut [u8]) {
    pass(bitmap, index::SPEC_CTRL, false);
    pass(bitmap, index::SPEC_CTRL, true);
}

/// [`fill_bitmap`] for a guest whose local APIC is in x2APIC mode and virtualised.
pub(super) fn fill_x2apic_bitmap(bitmap: &mut [u8]) {
    fill_bitmap(bitmap);
    pass_x2apic(bitmap);
}

/// As [`fill_x2apic_bitmap`], but all other MSRs exit.
pub(super) fn fill_x2apic_only_bitmap(bitmap: &mut [u8]) {
    bitmap.fill(0xff);
    pass_x2apic(bitmap);
}

/// Lets the guest reach the registers of its local APIC that the processor virtualises (SDM 3C 30.5).
///
/// Reads come from the page of registers, so those pass that hold there what RDMSR has to give: not ID, LDR and ICR,
/// whose formats differ from xAPIC mode, and not the current count. Writes pass that the processor virtualises; all
/// others would reach the host's own APIC.
fn pass_x2apic(bitmap: &mut [u8]) {
    let msr = |offset: u32| 0x800 + (offset >> 4);
    for offset in [
        reg::VERSION,
        reg::TPR,
        reg::PPR,
        reg::SVR,
        reg::ESR,
        reg::INITIAL_COUNT,
        reg::DIVIDE,
    ] {
        pass(bitmap, msr(offset), false);
    }
    for index in
        (msr(reg::ISR)..msr(reg::ISR) + 24).chain(msr(reg::LVT_TIMER)..=msr(reg::LVT_ERROR))
    {
        pass(bitmap, index, false);
    }
    for offset in [reg::TPR, reg::EOI, reg::SELF_IPI] {
        pass(bitmap, msr(offset), true);
    }
}

/// Sets the bits of a 4 KiB MSR bitmap so that all MSRs exit but those the guest may reach directly
/// (SDM 3C 25.6.9).
pub(super) fn fill_bitmap(bitmap: &mut [u8]) {
    bitmap.fill(0xff);
    let mut pass = |msr: u32, write: bool| pass(bitmap, msr, write);
    for msr in [
        index::SYSENTER_CS,
        index::SYSENTER_ESP,
        index::SYSENTER_EIP,
        index::FS_BASE,
        index::GS_BASE,
        index::KERNEL_GS_BASE,
    ] {
        pass(msr, false);
        pass(msr, true);
    }
    for msr in [
        index::STAR,
        index::LSTAR,
        index::FMASK,
        index::PAT,
        index::EFER,
        // With the offset and the scale of the guest's TSC (SDM 3C 26.3).
        index::TSC,
    ] {
        pass(msr, false);
    }
}

/// Position of `index` in [`SWAPPED`].
pub(super) fn swapped_slot(index: u32) -> Option<usize> {
    SWAPPED.iter().position(|&i| i == index)
}

/// Guest values of the MSRs that do not, or not only, live in the VMCS.
pub(super) struct GuestMsrs {
    /// In the order of [`SWAPPED`].
    pub(super) swapped: [u64; SWAPPED.len()],
    /// Exact outside a stay; inside, the MSR itself holds it.
    pub(super) kernel_gs_base: u64,
    /// SYSCALL needs 64-bit mode on Intel, so that this one can be read back and does nothing.
    cstar: u64,
    pat: u64,
    pub(super) spec_ctrl: SpecCtrl,
}

impl GuestMsrs {
    /// The values after RESET.
    pub(super) fn new() -> Self {
        Self {
            swapped: [0; SWAPPED.len()],
            kernel_gs_base: 0,
            cstar: 0,
            pat: PAT_RESET,
            spec_ctrl: SpecCtrl::new(),
        }
    }

    /// An MSR of these. `stay` is the VMCS of the stay that goes on, if one does.
    pub(super) fn get(&self, index: u32, stay: Option<Current<'_>>) -> Option<u64> {
        if let Some(i) = swapped_slot(index) {
            return self.swapped.get(i).copied();
        }
        Some(match index {
            index::CSTAR => self.cstar,
            index::PAT => self.pat,
            index::SPEC_CTRL => self.spec_ctrl.get(),
            // SAFETY: The MSR exists with 64-bit mode, and holds the guest's value in a stay.
            index::KERNEL_GS_BASE if stay.is_some() => unsafe { msr::read(index) },
            index::KERNEL_GS_BASE => self.kernel_gs_base,
            _ => return None,
        })
    }

    /// Sets one of these but for the swapped ones; false for any other. The core has validated `value`.
    pub(super) fn set(&mut self, index: u32, value: u64, stay: Option<Current<'_>>) -> bool {
        match index {
            index::CSTAR => self.cstar = value,
            index::PAT => self.pat = value,
            index::SPEC_CTRL => self.spec_ctrl.set(value),
            index::KERNEL_GS_BASE => {
                if stay.is_some() {
                    // SAFETY: The value is canonical, and the MSR is the guest's in a stay.
                    unsafe { msr::write(index, value) };
                }
                self.kernel_gs_base = value;
            }
            _ => return false,
        }
        true
    }
}

/// Whether a field of the guest-state area stands for the MSR.
pub(super) const fn has_field(index: u32) -> bool {
    matches!(
        index,
        index::SYSENTER_CS
            | index::SYSENTER_ESP
            | index::SYSENTER_EIP
            | index::FS_BASE
            | index::GS_BASE
            | index::PAT
    )
}

/// Reads an MSR from its field in the guest-state area.
pub(super) fn read_field(vm: Current<'_>, index: u32) -> Option<u64> {
    Some(match index {
        index::SYSENTER_CS => u64::from(vm.read(GUEST_SYSENTER_CS)),
        index::SYSENTER_ESP => vm.read(GUEST_SYSENTER_ESP),
        index::SYSENTER_EIP => vm.read(GUEST_SYSENTER_EIP),
        index::FS_BASE => vm.read(GUEST_FS_BASE),
        index::GS_BASE => vm.read(GUEST_GS_BASE),
        index::PAT => vm.read(GUEST_PAT),
        _ => return None,
    })
}

/// Writes an MSR to its field in the guest-state area.
pub(super) fn write_field(vm: Current<'_>, index: u32, value: u64) {
    match index {
        index::SYSENTER_CS => vm.write(GUEST_SYSENTER_CS, value as u32),
        index::SYSENTER_ESP => vm.write(GUEST_SYSENTER_ESP, value),
        index::SYSENTER_EIP => vm.write(GUEST_SYSENTER_EIP, value),
        index::FS_BASE => vm.write(GUEST_FS_BASE, value),
        index::GS_BASE => vm.write(GUEST_GS_BASE, value),
        index::PAT => vm.write(GUEST_PAT, value),
        _ => {}
    }
}
