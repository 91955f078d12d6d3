// SPDX-License-Identifier: GPL-2.0

//! Descriptor tables, selectors and segment bases of the running CPU (SDM 3A 2.4, 3.4).

use core::arch::asm;

use crate::linux::bindings;

/// Operand of LGDT, LIDT, SGDT and SIDT in 64-bit mode (SDM 3A 3.5.1).
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescPtr {
    /// Offset of the last byte.
    pub limit: u16,
    /// Linear address of the table.
    pub base: u64,
}

const _: () = assert!(core::mem::size_of::<DescPtr>() == 10);

/// The GDT register.
///
/// The base is the read-only remapping that the kernel runs on, not the writable table.
#[inline(always)]
pub fn gdt() -> DescPtr {
    let mut p = DescPtr::default();
    // SAFETY: SGDT stores 10 bytes, the size of `p`.
    unsafe { asm!("sgdt [{}]", in(reg) &mut p, options(nostack, preserves_flags)) };
    p
}

/// The IDT register.
#[inline(always)]
pub fn idt() -> DescPtr {
    let mut p = DescPtr::default();
    // SAFETY: SIDT stores 10 bytes, the size of `p`.
    unsafe { asm!("sidt [{}]", in(reg) &mut p, options(nostack, preserves_flags)) };
    p
}

/// Loads the GDT register.
///
/// # Safety
///
/// `p` describes a GDT that holds the descriptors the kernel relies on, and stays mapped.
#[inline(always)]
pub unsafe fn load_gdt(p: &DescPtr) {
    // SAFETY: The caller answers for the table.
    unsafe { asm!("lgdt [{}]", in(reg) p, options(nostack, preserves_flags)) };
}

/// Loads the IDT register.
///
/// # Safety
///
/// `p` describes the kernel's IDT, and stays mapped.
#[inline(always)]
pub unsafe fn load_idt(p: &DescPtr) {
    // SAFETY: The caller answers for the table.
    unsafe { asm!("lidt [{}]", in(reg) p, options(nostack, preserves_flags)) };
}

/// The task register's selector.
#[inline(always)]
pub fn tr() -> u16 {
    let sel: u16;
    // SAFETY: STR only reads a selector.
    unsafe { asm!("str {:x}", out(reg) sel, options(nomem, nostack, preserves_flags)) };
    sel
}

/// The LDT register's selector.
#[inline(always)]
pub fn ldtr() -> u16 {
    let sel: u16;
    // SAFETY: SLDT only reads a selector.
    unsafe { asm!("sldt {:x}", out(reg) sel, options(nomem, nostack, preserves_flags)) };
    sel
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
    ($(#[$doc:meta])* $name:ident, $insn:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u16 {
            let sel: u32;
            // SAFETY: Reading a segment selector has no side effect.
            unsafe { asm!($insn, out(reg) sel, options(nomem, nostack, preserves_flags)) };
            sel as u16
        }
    };
}

selector!(
    /// CS.
    cs, "mov {:e}, cs");
selector!(
    /// DS.
    ds, "mov {:e}, ds");
selector!(
    /// ES.
    es, "mov {:e}, es");
selector!(
    /// FS.
    fs, "mov {:e}, fs");
selector!(
    /// GS.
    gs, "mov {:e}, gs");

macro_rules! load_selector {
    ($(#[$doc:meta])* $name:ident, $insn:literal) => {
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
    };
}

load_selector!(
    /// Loads DS.
    load_ds, "mov ds, {:e}");
load_selector!(
    /// Loads ES.
    load_es, "mov es, {:e}");
load_selector!(
    /// Loads FS, which clears or reloads its base.
    load_fs, "mov fs, {:e}");

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
