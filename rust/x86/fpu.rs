// SPDX-License-Identifier: GPL-2.0

//! Extended processor state: use of the FPU in the kernel, and XSAVE areas (SDM 1 13).
//!
//! C header: [`arch/x86/include/asm/fpu/api.h`](srctree/arch/x86/include/asm/fpu/api.h)

use core::arch::asm;
use core::marker::PhantomData;

use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

use super::boot_cpu;
use super::cpuid::cpuid;
use super::cr;
use super::msr;
use crate::linux::bindings;
use crate::linux::irqflags::{self, IrqGuard};
use crate::linux::page::Pages;
use crate::linux::preempt::{PinsCpu, PreemptGuard};

/// The FPU belongs to the kernel while the guard lives (`kernel_fpu_begin_mask` … `kernel_fpu_end`).
///
/// The user's state was saved and comes back before the task returns to user space, so every register that
/// XSAVE manages may change, except PKRU, which the kernel leaves loaded: neither [`KernelFpu::restore`] nor
/// [`KernelFpu::save`] touches it, but [`KernelFpu::with_controls`] does. Preemption is
/// off. Not in hard-interrupt context.
///
/// # Invariants
///
/// `kernel_fpu_begin_mask` was called on this CPU and not yet ended.
#[must_use = "the guard gives the FPU back when dropped"]
pub struct KernelFpu<'a> {
    /// Only when interrupts were off: then the kernel leaves the preemption count alone.
    _preempt: Option<PreemptGuard>,
    _not_send: PhantomData<(*mut (), &'a IrqGuard)>,
}

impl<'a> KernelFpu<'a> {
    /// Takes the FPU, leaving the registers as they are: for those who load their own state anyway.
    ///
    /// Interrupts are on or off, and are so again when the guard is dropped: with interrupts on the kernel
    /// turns softirqs off until then. Off is the cheaper way.
    #[inline]
    pub fn begin() -> Self {
        let preempt = (!irqflags::enabled()).then(PreemptGuard::new);
        // SAFETY: The context is a task's, where the FPU is usable; `drop` ends it.
        unsafe { bindings::kernel_fpu_begin_mask(0) };
        // INVARIANT: Just begun.
        Self {
            _preempt: preempt,
            _not_send: PhantomData,
        }
    }

    /// As [`KernelFpu::begin`], without asking and without counting.
    #[inline]
    pub fn begin_irqs_off(_irqs_off: &'a IrqGuard) -> Self {
        // SAFETY: The context is a task's, where the FPU is usable; `drop` ends it.
        unsafe { bindings::kernel_fpu_begin_mask(0) };
        // INVARIANT: Just begun. With interrupts off there is no preemption.
        Self {
            _preempt: None,
            _not_send: PhantomData,
        }
    }

    /// Loads the components in `mask` (and XCR0) from `area`.
    ///
    /// Errors: `EINVAL` when the CPU refuses the image (#GP: reserved bits in the header or MXCSR, or
    /// components that XCR0 lacks). The registers are unchanged then or, for a torn image, undefined.
    #[inline]
    pub fn restore(&self, area: &XsaveArea, mask: u64) -> Result {
        let ptr = area.pages.as_ptr::<u8>().cast();
        // SAFETY: The area is aligned and large enough for all of the host's XCR0; the shim catches the
        // fault. By the invariant of `self` the registers may change.
        let code = unsafe {
            match area.method {
                Method::Fxsave => bindings::rvmm_fxrstor64(ptr),
                _ => bindings::rvmm_xrstor64(ptr, mask & !PKRU),
            }
        };
        match code {
            0 => Ok(()),
            _ => Err(EINVAL),
        }
    }

    /// Stores the components in `mask` (and XCR0) to `area`, in standard form.
    #[inline]
    pub fn save(&self, area: &mut XsaveArea, mask: u64) {
        let ptr = area.pages.as_ptr::<u8>();
        let mask = mask & !PKRU;
        let (low, high) = (mask as u32, (mask >> 32) as u32);
        // SAFETY: The area is aligned and large enough for all of the host's XCR0, and borrowed exclusively;
        // the CPU has the instruction.
        unsafe {
            match area.method {
                Method::Xsaveopt => {
                    asm!("xsaveopt64 [{}]", in(reg) ptr, in("eax") low, in("edx") high,
                         options(nostack, preserves_flags))
                }
                Method::Xsave => {
                    asm!("xsave64 [{}]", in(reg) ptr, in("eax") low, in("edx") high,
                         options(nostack, preserves_flags))
                }
                Method::Fxsave => {
                    asm!("fxsave64 [{}]", in(reg) ptr, options(nostack, preserves_flags))
                }
            }
        };
    }
}

impl KernelFpu<'_> {
    /// Runs `body` with `own` in force in place of what the host has. What `body` leaves in PKRU is in `own`
    /// afterwards.
    ///
    /// `body` accesses user memory only where it may fail: PKRU can forbid it. The CPU has to accept the values: one
    /// that it refuses is a fault (#GP) of the kernel.
    #[inline(always)]
    pub fn with_controls<R>(
        &self,
        host: &HostControls,
        own: &mut Controls,
        body: impl FnOnce() -> R,
    ) -> R {
        let swap_xcr0 = host.xcr0 != 0 && own.xcr0 != host.xcr0;
        let swap_xss = own.xss != host.xss;
        if swap_xcr0 {
            // SAFETY: The host's XCR0 is not zero, so CR4.OSXSAVE is set. The kernel does not use extended state while
            // `self` lives but by `restore` and `save`, which cannot be called before the host's value is back.
            unsafe { cr::xsetbv(0, own.xcr0) };
        }
        if swap_xss {
            // SAFETY: As for XCR0: only XSAVES and XRSTORS of the kernel look at it.
            unsafe { msr::write(MSR_XSS, own.xss) };
        }
        let pkru = if host.pku {
            // SAFETY: `pku` says that CR4.PKE is set.
            unsafe { rdpkru() }
        } else {
            0
        };
        if host.pku && own.pkru != pkru {
            // SAFETY: CR4.PKE is set, and the task's value comes back below.
            unsafe { wrpkru(own.pkru) };
        }
        let result = body();
        if host.pku {
            // SAFETY: CR4.PKE is set.
            own.pkru = unsafe { rdpkru() };
            if own.pkru != pkru {
                // SAFETY: The value that the task had.
                unsafe { wrpkru(pkru) };
            }
        }
        if swap_xcr0 {
            // SAFETY: The host's value.
            unsafe { cr::xsetbv(0, host.xcr0) };
        }
        if swap_xss {
            // SAFETY: The host's value.
            unsafe { msr::write(MSR_XSS, host.xss) };
        }
        result
    }
}

/// IA32_XSS (SDM 4 2.1).
const MSR_XSS: u32 = 0xda0;

/// The registers that XSAVE obeys, and PKRU, which the kernel leaves loaded.
#[derive(Clone, Copy)]
pub struct Controls {
    /// XCR0; not looked at where the host does not use XSAVE.
    pub xcr0: u64,
    /// IA32_XSS; the host's where there is no such MSR.
    pub xss: u64,
    /// PKRU; not looked at where the host does not use protection keys.
    pub pkru: u32,
}

/// What the host has in [`Controls`], on all CPUs and for as long as it runs.
#[derive(Clone, Copy)]
pub struct HostControls {
    /// Zero without XSAVE.
    xcr0: u64,
    /// Zero without the MSR.
    xss: u64,
    pku: bool,
}

impl HostControls {
    /// Asks the running CPU.
    pub fn probe() -> Self {
        /// CPUID.(EAX=0DH,ECX=1):EAX bit 3: XSAVES and IA32_XSS.
        const XSAVES: u32 = 1 << 3;

        let xcr0 = host_xcr0();
        // The kernel sets it once, from CPUID, and never changes it.
        let xss = if xcr0 != 0 && boot_cpu::cpuid_in_use(0xd, 1)[0] & XSAVES != 0 {
            msr::read_safe(MSR_XSS).unwrap_or(0)
        } else {
            0
        };
        let pku = pku_enabled() && xcr0 & PKRU != 0;
        Self { xcr0, xss, pku }
    }

    /// XCR0, or 0 when the host does not use XSAVE.
    #[inline(always)]
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Whether the host uses protection keys.
    pub fn pku(&self) -> bool {
        self.pku
    }
}

impl Drop for KernelFpu<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the invariant it was begun on this CPU.
        unsafe { bindings::kernel_fpu_end() };
    }
}

// SAFETY: Preemption is off, by `kernel_fpu_begin_mask` with interrupts on, else by `_preempt` or the guard
// that `begin_irqs_off` was given.
unsafe impl PinsCpu for KernelFpu<'_> {}

/// Memory for one image of extended state in standard (not compacted) form, large enough for every
/// component that the host's XCR0 enables, page-aligned.
pub struct XsaveArea {
    pages: Pages,
    len: usize,
    method: Method,
}

/// How the CPU stores its state.
#[derive(Clone, Copy)]
enum Method {
    /// Without components in their initial configuration or unchanged since the last XRSTOR of the same area.
    Xsaveopt,
    /// All that is asked for.
    Xsave,
    /// x87 and SSE only.
    Fxsave,
}

/// The component PKRU in XCR0 (SDM 1 13.1).
const PKRU: u64 = 1 << 9;

/// Byte offset of MXCSR in the legacy region (SDM 1 10.5.1).
const MXCSR: usize = 24;
/// Byte offset of the FCW in the legacy region.
const FCW: usize = 0;
impl XsaveArea {
    /// Allocates an area in the initial configuration: FCW 037FH, MXCSR 1F80H, all else zero, no component
    /// marked in use (SDM 1 13.6).
    pub fn new() -> Result<Self> {
        /// CPUID.(EAX=0DH,ECX=1):EAX bit 0.
        const XSAVEOPT: u32 = 1 << 0;

        let (method, len) = if host_xcr0() == 0 {
            (Method::Fxsave, 512)
        } else if cpuid(0xd, 1).eax & XSAVEOPT != 0 {
            (Method::Xsaveopt, (cpuid(0xd, 0).ebx as usize).max(576))
        } else {
            (Method::Xsave, (cpuid(0xd, 0).ebx as usize).max(576))
        };
        let mut order = 0;
        while PAGE_SIZE << order < len {
            order += 1;
        }
        let mut area = Self {
            pages: Pages::new(order)?,
            len,
            method,
        };
        area.set_defaults();
        Ok(area)
    }

    /// The registers whose initial value is not zero.
    fn set_defaults(&mut self) {
        let bytes = self.as_mut_slice();
        if let Some(fcw) = bytes.get_mut(FCW..FCW + 2) {
            fcw.copy_from_slice(&0x037fu16.to_le_bytes());
        }
        if let Some(mxcsr) = bytes.get_mut(MXCSR..MXCSR + 4) {
            mxcsr.copy_from_slice(&0x1f80u32.to_le_bytes());
        }
    }

    /// The image. Its length is what CPUID.(EAX=0DH,ECX=0):EBX reports for the host's XCR0 (512 without
    /// XSAVE).
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: The pages are owned, initialised and `len` bytes at least; what else uses them has `&mut` too.
        unsafe { core::slice::from_raw_parts_mut(self.pages.as_ptr::<u8>(), self.len) }
    }

    /// As [`XsaveArea::as_mut_slice`], to read.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: The pages are owned, initialised and `len` bytes at least; `save` wants `&mut`.
        unsafe { core::slice::from_raw_parts(self.pages.as_ptr::<u8>(), self.len) }
    }
}

/// The host's XCR0, or 0 when the host does not use XSAVE.
fn host_xcr0() -> u64 {
    /// CPUID.1:ECX.OSXSAVE (SDM 2A CPUID).
    const OSXSAVE: u32 = 1 << 27;
    if cpuid(1, 0).ecx & OSXSAVE == 0 {
        return 0;
    }
    cr::xgetbv(0)
}

/// Whether the host uses protection keys, so that PKRU is live (CPUID.7:ECX.OSPKE).
fn pku_enabled() -> bool {
    const OSPKE: u32 = 1 << 4;
    super::cpuid::cpuid_checked(7, 0).ecx & OSPKE != 0
}

/// MXCSR_MASK of a CPU that reports none (SDM 1 11.6.6).
const MXCSR_MASK_DEFAULT: u32 = 0xffbf;
/// Word of MXCSR_MASK in the legacy region (SDM 1 10.5.1).
const MXCSR_MASK_WORD: usize = 7;

/// The MXCSR bits that the CPU implements. Sleeps.
///
/// Errors: `ENOMEM`.
fn probe_mxcsr_mask() -> Result<u32> {
    // The image cannot be on the stack: the kernel aligns it to 8 bytes only, which Rust does not know, so that a local
    // with a larger alignment is misaligned.
    let image = Pages::new(0)?;
    let ptr = image.as_ptr::<u32>();
    let fpu = KernelFpu::begin();
    // SAFETY: The image is a page, more than the 512 bytes that are written and aligned to 16; the FPU is
    // the kernel's.
    unsafe { asm!("fxsave64 [{}]", in(reg) ptr, options(nostack, preserves_flags)) };
    drop(fpu);
    // SAFETY: Within the page.
    Ok(match unsafe { ptr.add(MXCSR_MASK_WORD).read() } {
        0 => MXCSR_MASK_DEFAULT,
        mask => mask,
    })
}

/// The MXCSR bits that the CPU implements (FXSAVE's MXCSR_MASK); without memory to ask it, those that every
/// CPU has. Sleeps.
pub fn mxcsr_mask() -> u32 {
    probe_mxcsr_mask().unwrap_or(MXCSR_MASK_DEFAULT)
}

/// Reads PKRU.
///
/// # Safety
///
/// CR4.PKE is set (see [`pku_enabled`]).
#[inline(always)]
unsafe fn rdpkru() -> u32 {
    let value: u32;
    // SAFETY: The caller promises CR4.PKE.
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _,
             options(nomem, nostack, preserves_flags))
    };
    value
}

/// Writes PKRU.
///
/// # Safety
///
/// CR4.PKE is set, and the user's value is put back before user memory is accessed or the task returns.
#[inline(always)]
unsafe fn wrpkru(value: u32) {
    // SAFETY: The caller promises CR4.PKE.
    unsafe {
        asm!("wrpkru", in("ecx") 0, in("eax") value, in("edx") 0, options(nostack, preserves_flags))
    };
}
