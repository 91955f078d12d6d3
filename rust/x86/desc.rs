// SPDX-License-Identifier: GPL-2.0

//! Descriptor tables, selectors and segment bases of the running CPU (SDM 3A 2.4, 3.4).

use core::arch::asm;

use crate::linux::bindings;

/// Operand of LGDT, SGDT and SIDT in 64-bit mode (SDM 3A 3.5.1).
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescPtr {
    /// Offset of the last byte.
    pub limit: u16,
    /// Linear address of the table.
    pub base: u64,
}

const _: () = assert!(core::mem::size_of::<DescPtr>() == 10);

macro_rules! table {
    ($($(#[$doc:meta])* $get:ident, $sgdt:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $get() -> DescPtr {
            let mut p = DescPtr::default();
            // SAFETY: The instruction stores 10 bytes, the size of `p`.
            unsafe { asm!($sgdt, in(reg) &mut p, options(nostack, preserves_flags)) };
            p
        }
    )*};
}

table! {
    /// The GDT register.
    ///
    /// The base is the read-only remapping that the kernel runs on, not the writable table.
    gdt, "sgdt [{}]";
    /// The IDT register.
    idt, "sidt [{}]";
}

/// Loads the GDT register.
///
/// # Safety
///
/// `p` describes a table that holds the descriptors the kernel relies on, and stays mapped.
#[inline(always)]
pub unsafe fn load_gdt(p: &DescPtr) {
    // SAFETY: The caller answers for the table.
    unsafe { asm!("lgdt [{}]", in(reg) p, options(nostack, preserves_flags)) };
}

/// Loads the LDT register.
///
/// # Safety
///
/// `sel` is null or selects an LDT descriptor in the current GDT.
#[inline(always)]
pub unsafe fn load_ldtr(sel: u16) {
    // SAFETY: The caller answers for the selector.
    unsafe { asm!("lldt {:x}", in(reg) sel, options(nostack, preserves_flags)) };
}

macro_rules! selector {
    ($($(#[$doc:meta])* $name:ident, $insn:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u16 {
            let sel: u32;
            // SAFETY: Reading a selector has no side effect.
            unsafe { asm!($insn, out(reg) sel, options(nomem, nostack, preserves_flags)) };
            sel as u16
        }
    )*};
}

selector! {
    /// CS.
    cs, "mov {:e}, cs";
    /// DS.
    ds, "mov {:e}, ds";
    /// ES.
    es, "mov {:e}, es";
    /// FS.
    fs, "mov {:e}, fs";
    /// GS.
    gs, "mov {:e}, gs";
    /// The task register's selector.
    tr, "str {:e}";
    /// The LDT register's selector.
    ldtr, "sldt {:e}";
}

macro_rules! load_selector {
    ($($(#[$doc:meta])* $name:ident, $insn:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// `sel` is null or selects a valid data segment, and nothing relies on the old hidden base.
        #[inline(always)]
        pub unsafe fn $name(sel: u16) {
            // SAFETY: The caller answers for the selector.
            unsafe { asm!($insn, in(reg) u32::from(sel), options(nostack, preserves_flags)) };
        }
    )*};
}

load_selector! {
    /// Loads DS.
    load_ds, "mov ds, {:e}";
    /// Loads ES.
    load_es, "mov es, {:e}";
    /// Loads FS, which clears or reloads its base.
    load_fs, "mov fs, {:e}";
}

/// The TSS as the CPU sees it: the base held in the GDT's descriptor that TR selects, i.e. the alias in
/// the CPU entry area (SDM 3A 7.2.3).
pub fn tss_base_from_gdt() -> u64 {
    // SAFETY: The shim reads the running CPU's own GDT.
    unsafe { bindings::rvmm_tss_from_gdt(tr()) as u64 }
}

/// Loads the selector that user space sees in GS, together with the hidden base that SWAPGS exchanges; the
/// kernel's own GS base stays. A bad selector is loaded as null.
///
/// # Safety
///
/// Nothing relies on the old hidden base (`IA32_KERNEL_GS_BASE`).
pub unsafe fn load_gs_index(sel: u16) {
    // SAFETY: The shim keeps the kernel's GS base; the caller answers for the other.
    unsafe { bindings::rvmm_load_gs_index(sel) };
}

/// Tells the kernel that TR's limit no longer covers the I/O bitmap (a VM exit loads 67H, SDM 3C 28.5.2),
/// so that it reloads TR before a task needs the bitmap.
///
/// # Safety
///
/// Preemption is off and TR holds the kernel's own selector.
#[inline]
pub unsafe fn invalidate_tss_limit() {
    // SAFETY: The caller promises the context.
    unsafe { bindings::rvmm_invalidate_tss_limit() };
}
