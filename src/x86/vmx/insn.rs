// SPDX-License-Identifier: GPL-2.0
//! The VMX instructions (SDM 3C chapter 31) with their error results.
//!
//! Whoever calls has interrupts off, in a stay or where one begins and ends; [`Current`] stands for a VMCS that is
//! current.

use super::vmcs::{Area, Control, Field, Guest, Host, Width};
use core::arch::asm;
use core::marker::PhantomData;

/// How a VMX instruction can fail (SDM 3C 31.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VmxError {
    /// #UD or #GP: not in VMX operation, or the processor forbids it.
    Fault,
    /// VMfailInvalid: RFLAGS.CF, no current VMCS to hold an error number.
    Invalid,
    /// VMfailValid: RFLAGS.ZF, the error number is in the current VMCS.
    Valid,
}

/// An [`asm!`] of one VMX instruction with an exception-table entry.
///
/// LAHF, which every processor with EPT has in 64-bit mode, takes the flags into AH: CF is bit 8 of EAX, ZF bit 14,
/// and bit 9 is always 1 (SDM 1 3.4.3), so that a fault, after which EAX has CF alone, differs. The table entry's type
/// is `EX_TYPE_DEFAULT` (1) of `asm/extable_fixup_types.h`: continue at the fixup and do nothing else.
macro_rules! vmx_insn {
    ($insn:literal, $($operand:tt)*) => {{
        let flags: u32;
        asm!(
            "mov eax, 0x100",
            concat!("2: ", $insn),
            "lahf",
            "3:",
            ".pushsection __ex_table, \"a\"",
            ".balign 4",
            ".long 2b - .",
            ".long 3b - .",
            ".long 1",
            ".popsection",
            out("eax") flags,
            $($operand)*
        );
        if flags & 0x4100 == 0 {
            Ok(())
        } else {
            Err(match (flags & 0x200 != 0, flags & 0x100 != 0) {
                (false, _) => VmxError::Fault,
                (true, true) => VmxError::Invalid,
                (true, false) => VmxError::Valid,
            })
        }
    }};
}

/// VMXON: enters VMX root operation with the region at `region`.
///
/// # Safety
///
/// `region` is the physical address of a page of this CPU's own that starts with the revision identifier
/// and stays untouched until VMXOFF; interrupts stay off until VMXOFF.
pub(super) unsafe fn vmxon(region: u64) -> Result<(), VmxError> {
    // SAFETY: The caller answers for the region; a fault ends at the fixup. The label before the fixup is
    // reached with unchanged registers except EAX, as the operands tell the compiler.
    unsafe { vmx_insn!("vmxon qword ptr [{p}]", p = in(reg) &region) }
}

/// VMXOFF: leaves VMX operation.
///
/// # Safety
///
/// This CPU is in VMX root operation by a [`vmxon`] of ours, and no VMCS of ours is active on it.
pub(super) unsafe fn vmxoff() -> Result<(), VmxError> {
    // SAFETY: The caller promises that VMX operation is ours to leave.
    unsafe { vmx_insn!("vmxoff",) }
}

/// VMCLEAR: writes the VMCS at `vmcs` back to memory and makes it clear, not active and not current.
///
/// # Safety
///
/// `vmcs` is the physical address of a VMCS region of ours that is active on no other CPU.
pub(super) unsafe fn vmclear(vmcs: u64) -> Result<(), VmxError> {
    // SAFETY: The caller answers for the region.
    unsafe { vmx_insn!("vmclear qword ptr [{p}]", p = in(reg) &vmcs) }
}

/// VMPTRLD: makes the VMCS at `vmcs` active and current.
///
/// # Safety
///
/// `vmcs` is the physical address of an initialised VMCS region that is active on no other CPU.
pub(super) unsafe fn vmptrld(vmcs: u64) -> Result<(), VmxError> {
    // SAFETY: The caller answers for the region.
    unsafe { vmx_insn!("vmptrld qword ptr [{p}]", p = in(reg) &vmcs) }
}

/// VMPTRST: the current VMCS pointer, all ones when there is none.
///
/// [`VmxError::Fault`] when this CPU is not in VMX root operation.
pub(super) fn vmptrst() -> Result<u64, VmxError> {
    let mut vmcs = 0u64;
    // SAFETY: VMPTRST stores eight bytes into `vmcs`, or faults into the fixup.
    unsafe { vmx_insn!("vmptrst qword ptr [{p}]", p = in(reg) &mut vmcs) }?;
    Ok(vmcs)
}

/// INVEPT types (SDM 3C 29.4.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum InveptType {
    /// Everything tagged with the root in the given EPTP.
    SingleContext = 1,
    /// Everything of every EPTP.
    AllContexts = 2,
}

/// INVEPT: invalidates guest-physical and combined mappings.
///
/// # Safety
///
/// This CPU is in VMX root operation.
pub(super) unsafe fn invept(kind: InveptType, eptp: u64) -> Result<(), VmxError> {
    let descriptor = [eptp, 0u64];
    // SAFETY: The descriptor is 16 bytes with the upper half zero (SDM 2C "INVEPT"). Flushing is always
    // allowed.
    unsafe {
        vmx_insn!("invept {k}, xmmword ptr [{p}]", k = in(reg) kind as u64, p = in(reg) &descriptor)
    }
}

/// INVVPID types (SDM 3C 29.4.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum InvvpidType {
    /// Everything tagged with the given VPID.
    SingleContext = 1,
    /// Everything of every VPID but 0.
    AllContexts = 2,
}

/// INVVPID: invalidates linear and combined mappings.
///
/// # Safety
///
/// This CPU is in VMX root operation.
pub(super) unsafe fn invvpid(kind: InvvpidType, vpid: u16) -> Result<(), VmxError> {
    let descriptor = [u64::from(vpid), 0u64];
    // SAFETY: The descriptor is 16 bytes: VPID, reserved zeroes, linear address (SDM 2C "INVVPID").
    // Flushing is always allowed.
    unsafe {
        vmx_insn!("invvpid {k}, xmmword ptr [{p}]", k = in(reg) kind as u64, p = in(reg) &descriptor)
    }
}

/// Proof that, for `'a`, a VMCS of ours is current on this CPU.
///
/// # Invariants
///
/// For `'a` interrupts are off, the CPU is in VMX root operation and its current VMCS is one of ours whose owner is the
/// one using the value.
#[derive(Clone, Copy)]
pub(super) struct Current<'a>(PhantomData<&'a ()>);

impl Current<'_> {
    /// Asserts it.
    ///
    /// # Safety
    ///
    /// The invariants hold for the lifetime of the result.
    #[inline(always)]
    pub(super) const unsafe fn assume() -> Self {
        // INVARIANT: The caller promises it.
        Self(PhantomData)
    }

    /// Reads a field. A field that the processor lacks reads as an unspecified value; which ones it has
    /// follows from the capability MSRs, and setting up the VMCS touches every field in use.
    #[inline(always)]
    pub(super) fn read<A: Area, W: Width>(self, field: Field<A, W>) -> W::Value {
        let value: u64;
        // SAFETY: By the type invariant VMREAD works here. It has no side effect.
        unsafe {
            asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field.encoding()),
                 options(nostack))
        };
        W::narrow(value)
    }

    /// Writes a guest-state field.
    #[inline(always)]
    pub(super) fn write<W: Width>(self, field: Field<Guest, W>, value: W::Value) {
        // SAFETY: By the type invariant VMWRITE works here; guest state acts inside the guest only.
        unsafe { self.put(field, value) };
    }

    /// Writes a control field.
    ///
    /// # Safety
    ///
    /// The value keeps the guest confined: every control of `super::config` that the host depends on
    /// stays set and every address is that of a structure of ours.
    #[inline(always)]
    pub(super) unsafe fn write_control<W: Width>(self, field: Field<Control, W>, value: W::Value) {
        // SAFETY: By the type invariant VMWRITE works here; the caller answers for the value.
        unsafe { self.put(field, value) };
    }

    /// Writes a host-state field.
    ///
    /// # Safety
    ///
    /// The value is what the kernel needs on this CPU after a VM exit.
    #[inline(always)]
    pub(super) unsafe fn write_host<W: Width>(self, field: Field<Host, W>, value: W::Value) {
        // SAFETY: By the type invariant VMWRITE works here; the caller answers for the value.
        unsafe { self.put(field, value) };
    }

    /// Writes any field.
    ///
    /// # Safety
    ///
    /// As for the method of the field's area.
    #[inline(always)]
    unsafe fn put<A: Area, W: Width>(self, field: Field<A, W>, value: W::Value) {
        // SAFETY: The caller answers for the value.
        unsafe {
            asm!("vmwrite {}, {}", in(reg) u64::from(field.encoding()), in(reg) W::widen(value),
                 options(nostack))
        };
    }
}
