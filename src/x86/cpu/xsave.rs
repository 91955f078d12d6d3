// SPDX-License-Identifier: GPL-2.0
//! The XSAVE area: layout, XCR0 rules, images that come from user space, the legacy `struct kvm_fpu`
//! (SDM 1 13, SDM 2A FXSAVE, APM 2 11.5, api.rst 4.42 KVM_GET_XSAVE and 4.22 KVM_GET_FPU).
#![forbid(unsafe_code)]

use crate::nospec::Nospec;
use crate::x86::cpu::host::HostCpuid;
use core::ops::Range;

/// x87 state.
pub const X87: u64 = 1 << 0;
/// XMM registers and MXCSR.
pub const SSE: u64 = 1 << 1;
/// Upper halves of YMM0-15.
pub const AVX: u64 = 1 << 2;
/// MPX bound registers and BNDCFGU, BNDSTATUS.
pub const MPX: u64 = 3 << 3;
/// Opmask, upper halves of ZMM0-15, ZMM16-31.
pub const AVX512: u64 = 7 << 5;
/// Protection keys for user pages.
pub const PKRU: u64 = 1 << 9;
/// AMX tile configuration and data.
pub const AMX: u64 = 3 << 17;
/// The part that every XSAVE user has.
pub const X87_SSE: u64 = X87 | SSE;

/// User components that the hypervisor knows how to switch and to show to guests.
pub const CARRIED: u64 = X87 | SSE | AVX | AVX512 | PKRU;

/// Components are numbered below this.
pub const MAX_COMPONENTS: u32 = 20;

/// Bytes of the legacy region (an FXSAVE image).
pub const LEGACY: usize = 512;
/// Bytes of the header that follows it.
pub const HEADER: usize = 64;
/// Legacy region and header, as CPUID reports it.
pub const LEGACY_AND_HEADER: u32 = (LEGACY + HEADER) as u32;

/// FCW after FINIT, and of a fresh vCPU (RESET would give 40H: SDM 3A table 11-1; KVM starts vCPUs after FINIT).
pub const FCW_INIT: u16 = 0x37f;
/// MXCSR after RESET.
pub const MXCSR_INIT: u32 = 0x1f80;
/// MXCSR bits that exist where MXCSR_MASK reads as zero (no DAZ).
pub const MXCSR_MASK_DEFAULT: u32 = 0xffbf;

const OFF_FCW: usize = 0;
const OFF_MXCSR: usize = 24;
const OFF_MXCSR_MASK: usize = 28;
const OFF_ST: usize = 32;
const OFF_XMM: usize = 160;
const OFF_XSTATE_BV: usize = 512;
const OFF_XCOMP_BV: usize = 520;

/// Whether XSETBV may load `value` into XCR0 when the vCPU has the components `supported` (SDM 1 13.3).
pub const fn xcr0_valid(value: u64, supported: u64) -> bool {
    if value & X87 == 0 || value & !supported != 0 || value & AMX != 0 {
        return false;
    }
    if value & AVX != 0 && value & SSE == 0 {
        return false;
    }
    let avx512 = value & AVX512;
    if avx512 != 0 && (avx512 != AVX512 || value & AVX == 0) {
        return false;
    }
    let mpx = value & MPX;
    mpx == 0 || mpx == MPX
}

/// Place of one component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Component {
    size: u32,
    /// Offset in the standard form.
    offset: u32,
    /// Aligned to 64 bytes in the compacted form.
    align64: bool,
}

/// Offsets and sizes of the components, from CPUID leaf 0DH.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    components: [Component; MAX_COMPONENTS as usize],
}

impl Layout {
    /// The layout of the host's CPU, for the components in `mask`.
    pub fn from_host<H: HostCpuid + ?Sized>(host: &H, mask: u64) -> Self {
        let mut l = Self::default();
        for i in 2..MAX_COMPONENTS {
            if mask & (1 << i) != 0 {
                let r = host.cpuid(0xd, i);
                l.set(i, r[0], r[1], r[2]);
            }
        }
        l
    }

    /// Records sub-leaf `component` of leaf 0DH: its EAX, EBX and ECX.
    pub fn set(&mut self, component: u32, eax: u32, ebx: u32, ecx: u32) {
        if let Some(c) = self.components.get_mut(component as usize) {
            *c = Component {
                size: eax,
                offset: ebx,
                align64: ecx & 2 != 0,
            };
        }
    }

    /// Bytes of an area in standard form that holds the components of `xcr0` (0DH.0:EBX).
    pub fn standard_size(&self, xcr0: u64) -> u32 {
        let mut end = LEGACY_AND_HEADER;
        for (i, c) in self.components.iter().enumerate().skip(2) {
            if xcr0 & (1 << i) != 0 {
                end = end.max(c.offset.saturating_add(c.size));
            }
        }
        end
    }

    /// Bytes of an area in compacted form that holds the components of `bv` (0DH.1:EBX).
    pub fn compacted_size(&self, bv: u64) -> u32 {
        let mut end = LEGACY_AND_HEADER;
        for (i, c) in self.components.iter().enumerate().skip(2) {
            if bv & (1 << i) != 0 {
                if c.align64 {
                    end = end.saturating_add(63) & !63;
                }
                end = end.saturating_add(c.size);
            }
        }
        end
    }

    /// Offset and size of a component in standard form; `None` when it is unknown.
    pub fn component(&self, n: u32) -> Option<(u32, u32)> {
        match self.components.get_nospec(n as usize) {
            Some(c) if c.size != 0 => Some((c.offset, c.size)),
            _ => None,
        }
    }
}

/// Why an XSAVE image from user space is refused (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Shorter than the legacy region and header, or than the components it claims to hold.
    Short,
    /// XSTATE_BV names a component that the vCPU lacks.
    Components,
    /// XCOMP_BV is not zero: only the standard form is accepted.
    Compacted,
    /// Reserved header bytes are not zero; XRSTOR would fault.
    Header,
    /// Reserved MXCSR bits are set; XRSTOR would fault.
    Mxcsr,
}

/// Checks an image in standard form before XRSTOR may load it (SDM 1 13.8.1): an image that passes cannot make XRSTOR
/// fault.
///
/// # Errors
///
/// See [`ImageError`]. `supported` is what XSTATE_BV may hold, `mxcsr_mask` the host's MXCSR_MASK (0 for the default).
pub fn check_image(
    image: &[u8],
    layout: &Layout,
    supported: u64,
    mxcsr_mask: u32,
) -> Result<(), ImageError> {
    let header = image
        .get(LEGACY..LEGACY + HEADER)
        .ok_or(ImageError::Short)?;
    let bv = read_u64(image, OFF_XSTATE_BV).ok_or(ImageError::Short)?;
    if bv & !supported != 0 {
        return Err(ImageError::Components);
    }
    if read_u64(image, OFF_XCOMP_BV).ok_or(ImageError::Short)? != 0 {
        return Err(ImageError::Compacted);
    }
    if header.iter().skip(16).any(|&b| b != 0) {
        return Err(ImageError::Header);
    }
    if read_u32(image, OFF_MXCSR).ok_or(ImageError::Short)? & !mxcsr_allowed(mxcsr_mask) != 0 {
        return Err(ImageError::Mxcsr);
    }
    if (layout.standard_size(bv) as usize) > image.len() {
        return Err(ImageError::Short);
    }
    Ok(())
}

/// MXCSR bits that exist where MXCSR_MASK is `mask`.
const fn mxcsr_allowed(mask: u32) -> u32 {
    match mask {
        0 => MXCSR_MASK_DEFAULT,
        mask => mask,
    }
}

/// Components with which user space's MXCSR is valid: x87, SSE, AVX.
pub const MXCSR_COMPONENTS: u64 = 7;

/// Writes the state of a fresh vCPU into `image`, which is all zeros: every component in its initial configuration.
///
/// XSTATE_BV is zero, so XRSTOR initialises all components; MXCSR is loaded from memory whatever XSTATE_BV says.
pub fn init_image(image: &mut [u8], mxcsr_mask: u32) {
    write(image, OFF_FCW, &FCW_INIT.to_le_bytes());
    write(image, OFF_MXCSR, &MXCSR_INIT.to_le_bytes());
    write(image, OFF_MXCSR_MASK, &mxcsr_mask.to_le_bytes());
}

/// The component bitmap of an image; 0 when it is too short.
pub fn xstate_bv(image: &[u8]) -> u64 {
    read_u64(image, OFF_XSTATE_BV).unwrap_or(0)
}

/// Replaces the component bitmap of an image.
pub fn set_xstate_bv(image: &mut [u8], bv: u64) {
    write(image, OFF_XSTATE_BV, &bv.to_le_bytes());
}

/// XMM0 to XMM5 as quadwords, the low ones first; those in use have been made so by [`materialize`].
pub fn xmm_words(image: &[u8]) -> [u64; 12] {
    let mut words = [0; 12];
    let bytes = image.get(OFF_XMM..).unwrap_or(&[]);
    for (to, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *to = from.try_into().map_or(0, u64::from_le_bytes);
    }
    words
}

/// Makes the bytes of components that XSTATE_BV calls initial hold those initial values.
///
/// XSAVEOPT and the init optimisation leave stale bytes there; user space and [`to_kvm_fpu`] must not see them.
pub fn materialize(image: &mut [u8], layout: &Layout, components: u64) {
    let bv = xstate_bv(image);
    if bv & X87 == 0 {
        zero(image, 0..OFF_MXCSR);
        zero(image, OFF_ST..OFF_XMM);
        write(image, OFF_FCW, &FCW_INIT.to_le_bytes());
    }
    if bv & SSE == 0 {
        zero(image, OFF_XMM..OFF_XMM + 256);
        // XSAVE writes MXCSR with SSE or AVX requested, so the field is exact only if one of them is in use.
        if bv & AVX == 0 {
            write(image, OFF_MXCSR, &MXCSR_INIT.to_le_bytes());
        }
    }
    for i in 2..MAX_COMPONENTS {
        if components & !bv & (1 << i) != 0 {
            if let Some((offset, size)) = layout.component(i) {
                let end = (offset as usize).saturating_add(size as usize);
                zero(image, offset as usize..end);
            }
        }
    }
}

fn zero(image: &mut [u8], bytes: Range<usize>) {
    if let Some(x) = image.get_mut(bytes) {
        x.fill(0);
    }
}

/// Bits 511:256 of the vector registers 0 to 15.
const ZMM_HIGH: u64 = 1 << 6;
const OFF_FSW: usize = 2;
const OFF_FTW: usize = 4;

/// Offset of 16 bytes of XMM register `n`, and of the upper half of YMM register `n`.
fn xmm_offset(n: u8) -> usize {
    OFF_XMM + 16 * usize::from(n & 15)
}

fn ymm_offset(layout: &Layout, n: u8) -> Option<usize> {
    let (offset, _) = layout.component(2)?;
    (offset as usize).checked_add(16 * usize::from(n & 15))
}

/// YMM register `n` (0 to 15) of an image.
pub fn vector(image: &[u8], layout: &Layout, n: u8) -> [u8; 32] {
    let mut value = [0u8; 32];
    let bv = xstate_bv(image);
    let high = ymm_offset(layout, n).filter(|_| bv & AVX != 0);
    let low = Some(xmm_offset(n)).filter(|_| bv & SSE != 0);
    for (to, at) in [(0, low), (16, high)] {
        if let Some(bytes) = at.and_then(|at| image.get(at..at.checked_add(16)?)) {
            write(&mut value, to, bytes);
        }
    }
    value
}

/// Replaces the low half of YMM register `n`; with `whole` all of it, and clears what is above.
pub fn set_vector(image: &mut [u8], layout: &Layout, n: u8, value: &[u8; 32], whole: bool) {
    materialize(image, layout, AVX | ZMM_HIGH);
    let mut bv = xstate_bv(image) | SSE;
    let (low, high) = value.split_at(16);
    write(image, xmm_offset(n), low);
    if whole {
        if let Some(at) = ymm_offset(layout, n) {
            write(image, at, high);
            bv |= AVX;
        }
        if let (true, Some((at, _))) = (bv & ZMM_HIGH != 0, layout.component(6)) {
            let at = (at as usize).saturating_add(32 * usize::from(n & 15));
            zero(image, at..at.saturating_add(32));
        }
    }
    set_xstate_bv(image, bv);
}

/// Control and status word of the FPU.
pub fn fpu_words(image: &[u8]) -> (u16, u16) {
    if xstate_bv(image) & X87 == 0 {
        return (FCW_INIT, 0);
    }
    let word = |at: usize| match image.get(at..at + 2) {
        Some(&[low, high]) => u16::from_le_bytes([low, high]),
        _ => 0,
    };
    (word(OFF_FCW), word(OFF_FSW))
}

/// Offset of MMX register `n` (0 to 7): images hold the stack from its top on.
fn mm_offset(image: &[u8], n: u8) -> usize {
    let top = fpu_words(image).1 >> 11;
    OFF_ST + 16 * usize::from(u16::from(n).wrapping_sub(top) & 7)
}

/// MMX register `n` of an image.
pub fn mmx(image: &[u8], n: u8) -> u64 {
    if xstate_bv(image) & X87 == 0 {
        return 0;
    }
    read_u64(image, mm_offset(image, n)).unwrap_or(0)
}

/// What every MMX instruction but EMMS does to the FPU (SDM 1 9.5.1): the top of the stack is register 0 and all
/// registers are valid. Register `n` gets a value, which sets sign and exponent to ones, if there is one.
pub fn enter_mmx(image: &mut [u8], layout: &Layout, set: Option<(u8, u64)>) {
    materialize(image, layout, 0);
    let (_, status) = fpu_words(image);
    if let Some(stack) = image.get_mut(OFF_ST..OFF_ST + 128) {
        stack.rotate_right(16 * usize::from(status >> 11 & 7));
    }
    write(image, OFF_FSW, &(status & !(7 << 11)).to_le_bytes());
    write(image, OFF_FTW, &[0xff]);
    let bv = xstate_bv(image) | X87;
    set_xstate_bv(image, bv);
    if let Some((n, value)) = set {
        let at = mm_offset(image, n);
        write(image, at, &value.to_le_bytes());
        write(image, at + 8, &[0xff; 2]);
    }
}

/// Bytes that FXSAVE stores.
pub const FXSAVE: usize = OFF_XMM + 256;

/// Bytes of an FXSAVE image with so many XMM registers, at most 16.
pub const fn fxsave_bytes(registers: usize) -> usize {
    OFF_XMM + 16 * if registers < 16 { registers } else { 16 }
}

/// Selectors of the FPU's pointers where FXSAVE has them, which is without REX.W. Processors of today store zeros
/// (CPUID.7:EBX\[13\]).
const FX_SELECTORS: [Range<usize>; 2] = [12..16, 20..24];

/// The image that FXSAVE stores (SDM 2A FXSAVE), `wide` with REX.W.
pub fn fxsave(image: &mut [u8], layout: &Layout, wide: bool) -> [u8; FXSAVE] {
    materialize(image, layout, 0);
    let mut fx = [0; FXSAVE];
    write(&mut fx, 0, image.get(..FXSAVE).unwrap_or(&[]));
    for bytes in FX_SELECTORS {
        if !wide {
            zero(&mut fx, bytes);
        }
    }
    fx
}

/// Loads an FXSAVE image, or its first bytes: x87 and MXCSR, and as many XMM registers as it holds. False, and nothing
/// is loaded, for bits of MXCSR that the processor does not have, and for what is too short.
pub fn fxrstor(image: &mut [u8], layout: &Layout, fx: &[u8], wide: bool) -> bool {
    materialize(image, layout, 0);
    let Some(mxcsr) = read_u32(fx, OFF_MXCSR) else {
        return false;
    };
    let mask = read_u32(image, OFF_MXCSR_MASK).unwrap_or(0);
    let (Some(words), Some(registers)) = (fx.get(..OFF_MXCSR_MASK), fx.get(OFF_ST..)) else {
        return false;
    };
    if mxcsr & !mxcsr_allowed(mask) != 0 || registers.len() > FXSAVE - OFF_ST {
        return false;
    }
    write(image, 0, words);
    for bytes in FX_SELECTORS {
        if !wide {
            zero(image, bytes);
        }
    }
    write(image, OFF_ST, registers);
    let bv = xstate_bv(image) | X87_SSE;
    set_xstate_bv(image, bv);
    true
}

/// Bytes of `struct kvm_fpu`.
pub const KVM_FPU: usize = 416;

/// (offset in `struct kvm_fpu`, offset in the FXSAVE image, bytes) of every field.
const FPU_FIELDS: [(usize, usize, usize); 9] = [
    (0, OFF_ST, 128),    // fpr
    (128, 0, 2),         // fcw
    (130, 2, 2),         // fsw
    (132, 4, 1),         // ftwx: the abridged tag word of FXSAVE
    (134, 6, 2),         // last_opcode
    (136, 8, 8),         // last_ip
    (144, 16, 8),        // last_dp
    (152, OFF_XMM, 256), // xmm
    (408, OFF_MXCSR, 4), // mxcsr
];

/// Fills a `struct kvm_fpu` from an image ([`materialize`]d). Padding becomes zero.
pub fn to_kvm_fpu(image: &[u8], fpu: &mut [u8; KVM_FPU]) {
    fpu.fill(0);
    for (to, from, len) in FPU_FIELDS {
        write(fpu, to, image.get(from..from + len).unwrap_or(&[]));
    }
}

/// Loads a `struct kvm_fpu` into an image and marks x87 and SSE as in use. Reserved MXCSR bits are dropped, since
/// XRSTOR would fault on them.
pub fn from_kvm_fpu(image: &mut [u8], fpu: &[u8; KVM_FPU], mxcsr_mask: u32) {
    for (from, to, len) in FPU_FIELDS {
        write(image, to, fpu.get(from..from + len).unwrap_or(&[]));
    }
    let mxcsr = read_u32(image, OFF_MXCSR).unwrap_or(MXCSR_INIT) & mxcsr_allowed(mxcsr_mask);
    write(image, OFF_MXCSR, &mxcsr.to_le_bytes());
    let bv = xstate_bv(image) | X87_SSE;
    set_xstate_bv(image, bv);
}

fn read_u64(image: &[u8], at: usize) -> Option<u64> {
    let b: [u8; 8] = image.get(at..at.checked_add(8)?)?.try_into().ok()?;
    Some(u64::from_le_bytes(b))
}

fn read_u32(image: &[u8], at: usize) -> Option<u32> {
    let b: [u8; 4] = image.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_le_bytes(b))
}

fn write(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(d) = image.get_mut(at..at.saturating_add(bytes.len())) {
        d.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of an Ice Lake client CPU.
    fn icl() -> Layout {
        let mut l = Layout::default();
        l.set(2, 256, 576, 0);
        l.set(5, 64, 1088, 0);
        l.set(6, 512, 1152, 0);
        l.set(7, 1024, 1664, 0);
        l.set(9, 8, 2688, 0);
        l
    }

    #[test]
    fn fxsave_and_back() {
        let l = icl();
        let mut image = [0u8; 1088];
        init_image(&mut image, 0xffff);
        image[8..24].fill(0x5a);
        image[OFF_XMM..OFF_XMM + 256].fill(0x77);
        // What is not in use is stored as it begins.
        let fx = fxsave(&mut image.clone(), &l, true);
        assert_eq!(u16::from_le_bytes([fx[0], fx[1]]), FCW_INIT);
        assert!(fx[8..24].iter().chain(&fx[160..]).all(|&b| b == 0));
        set_xstate_bv(&mut image, X87_SSE);
        assert_eq!(fxsave(&mut image, &l, true)[..], image[..FXSAVE]);
        let mut fx = fxsave(&mut image, &l, false);
        assert_eq!((fx[11], fx[12], fx[19], fx[20]), (0x5a, 0, 0x5a, 0));
        // As many registers as there are bytes, and all of them or none.
        fx[OFF_XMM..].fill(0x11);
        fx[0] = 0x7f;
        fx[OFF_MXCSR] = 0xa0;
        let before = image;
        fx[OFF_MXCSR + 2] = 1;
        assert!(!fxrstor(&mut image, &l, &fx, true));
        assert_eq!(image, before);
        fx[OFF_MXCSR + 2] = 0;
        set_xstate_bv(&mut image, X87_SSE | AVX);
        assert!(fxrstor(&mut image, &l, &fx[..fxsave_bytes(8)], false));
        assert_eq!((image[0], image[OFF_MXCSR], image[12]), (0x7f, 0xa0, 0));
        assert_eq!((image[OFF_XMM + 127], image[OFF_XMM + 128]), (0x11, 0x77));
        assert_eq!(read_u32(&image, OFF_MXCSR_MASK), Some(0xffff));
        assert_eq!(xstate_bv(&image), X87_SSE | AVX);
        assert!(!fxrstor(&mut image, &l, &[0; 20], false));
    }

    #[test]
    fn vectors() {
        let l = icl();
        let mut image = std::vec![0xa5u8; 2696];
        image[512..576].fill(0);
        let value = core::array::from_fn(|i| i as u8 + 1);
        // Initial components read as zero whatever is in memory.
        assert_eq!(vector(&image, &l, 3), [0; 32]);
        set_vector(&mut image, &l, 3, &value, false);
        assert_eq!(vector(&image, &l, 3)[..16], value[..16]);
        assert_eq!(vector(&image, &l, 3)[16..], [0; 16]);
        assert_eq!((vector(&image, &l, 2), xstate_bv(&image)), ([0; 32], SSE));
        set_vector(&mut image, &l, 15, &value, true);
        assert_eq!(
            (vector(&image, &l, 15), xstate_bv(&image)),
            (value, SSE | AVX)
        );
        // A move of 16 bytes leaves the upper half alone; one by VEX clears what is above.
        set_xstate_bv(&mut image, SSE | AVX | AVX512);
        image[1152..1664].fill(7);
        set_vector(&mut image, &l, 15, &[9; 32], false);
        assert_eq!(vector(&image, &l, 15)[16..], value[16..]);
        assert_eq!(image[1152 + 15 * 32], 7);
        set_vector(&mut image, &l, 15, &value, true);
        assert_eq!(image[1152 + 15 * 32..1664], [0; 32]);
        assert_eq!(image[1152 + 14 * 32], 7);
    }

    #[test]
    fn mmx_registers() {
        let l = icl();
        let mut image = std::vec![0u8; 2696];
        for i in 0..8u8 {
            image[32 + 16 * usize::from(i)] = i;
        }
        set_xstate_bv(&mut image, X87);
        // ST(0) is register 6.
        image[2..4].copy_from_slice(&(6u16 << 11 | 0x41).to_le_bytes());
        assert_eq!((mmx(&image, 6), mmx(&image, 7), mmx(&image, 0)), (0, 1, 2));
        enter_mmx(&mut image, &l, Some((2, 0x1122_3344_5566_7788)));
        let have: std::vec::Vec<u64> = (0..8).map(|n| mmx(&image, n)).collect();
        assert_eq!(have, [2, 3, 0x1122_3344_5566_7788, 5, 6, 7, 0, 1]);
        assert_eq!((fpu_words(&image).1, image[4]), (0x41, 0xff));
        assert_eq!(image[32 + 2 * 16 + 8..][..2], [0xff; 2]);
    }

    #[test]
    fn xcr0_rules() {
        let all = CARRIED | MPX | AMX;
        assert!(xcr0_valid(1, all));
        assert!(!xcr0_valid(0, all));
        assert!(!xcr0_valid(2, all), "x87 always");
        assert!(xcr0_valid(3, all));
        assert!(!xcr0_valid(5, all), "AVX needs SSE");
        assert!(xcr0_valid(7, all));
        assert!(!xcr0_valid(7, 3), "not supported");
        assert!(xcr0_valid(0xe7, all));
        assert!(!xcr0_valid(0x67, all), "all three of AVX-512");
        assert!(!xcr0_valid(0xe3, all), "AVX-512 needs AVX");
        assert!(xcr0_valid(0x1f, all));
        assert!(!xcr0_valid(0xf, all), "both of MPX");
        assert!(xcr0_valid(0x203, all));
        assert!(!xcr0_valid(0x60003, all), "AMX");
        assert!(!xcr0_valid((1 << 63) | 3, all));
    }

    #[test]
    fn sizes() {
        let l = icl();
        assert_eq!(l.standard_size(3), 576);
        assert_eq!(l.standard_size(7), 832);
        assert_eq!(l.standard_size(0x2e7), 2696);
        assert_eq!(l.standard_size(0x203), 2696, "standard offsets do not move");
        assert_eq!(l.compacted_size(0x203), 584);
        let mut l = l;
        l.set(9, 8, 2688, 2);
        l.set(2, 10, 576, 0);
        assert_eq!(l.compacted_size(0x207), 648, "586 rounded up to 640");
    }

    #[test]
    fn image_rules() {
        let l = icl();
        let mut img = [0u8; 4096];
        init_image(&mut img, 0);
        assert_eq!(check_image(&img, &l, 7, 0), Ok(()));
        assert_eq!(check_image(&img[..575], &l, 7, 0), Err(ImageError::Short));
        set_xstate_bv(&mut img, 0xe7);
        assert_eq!(check_image(&img, &l, 7, 0), Err(ImageError::Components));
        assert_eq!(check_image(&img, &l, 0xe7, 0), Ok(()));
        assert_eq!(
            check_image(&img[..2000], &l, 0xe7, 0),
            Err(ImageError::Short)
        );
        img[527] = 0x80;
        assert_eq!(check_image(&img, &l, 0xe7, 0), Err(ImageError::Compacted));
        img[527] = 0;
        for at in [528, 575] {
            img[at] = 1;
            assert_eq!(check_image(&img, &l, 0xe7, 0), Err(ImageError::Header));
            img[at] = 0;
        }
        img[24] = 0x40;
        assert_eq!(
            check_image(&img, &l, 0xe7, 0),
            Err(ImageError::Mxcsr),
            "DAZ absent"
        );
        assert_eq!(check_image(&img, &l, 0xe7, 0xffff), Ok(()));
        img[26] = 1;
        assert_eq!(check_image(&img, &l, 0xe7, 0xffff), Err(ImageError::Mxcsr));
    }

    #[test]
    fn kvm_fpu_round_trip() {
        let mut img = [0u8; 832];
        init_image(&mut img, 0xffff);
        let mut fpu = [0u8; KVM_FPU];
        to_kvm_fpu(&img, &mut fpu);
        assert_eq!(&fpu[128..130], &[0x7f, 3]);
        assert_eq!(&fpu[408..412], &[0x80, 0x1f, 0, 0]);
        for (i, b) in fpu.iter_mut().enumerate() {
            *b = i as u8;
        }
        fpu[408..412].copy_from_slice(&0x1fc0u32.to_le_bytes());
        from_kvm_fpu(&mut img, &fpu, 0xffff);
        assert_eq!(xstate_bv(&img), 3);
        assert_eq!(img[32], 0);
        assert_eq!(img[32 + 127], 127);
        assert_eq!(img[4], 132, "tag word");
        assert_eq!(img[5], 0, "padding is not copied");
        assert_eq!(img[160], 152);
        assert_eq!(img[28..30], [0xff, 0xff], "MXCSR_MASK stays");
        let mut back = [0u8; KVM_FPU];
        to_kvm_fpu(&img, &mut back);
        fpu[133] = 0;
        fpu[412..].fill(0);
        assert_eq!(back, fpu);
        fpu[410] = 0xff;
        from_kvm_fpu(&mut img, &fpu, 0xffff);
        assert_eq!(check_image(&img, &icl(), 7, 0xffff), Ok(()));
    }

    #[test]
    fn materialize_clears_stale_bytes() {
        let l = icl();
        let mut img = [0xaau8; 4096];
        img[512..576].fill(0);
        set_xstate_bv(&mut img, X87);
        materialize(&mut img, &l, 0xe7);
        assert_eq!(img[0], 0xaa, "x87 in use");
        assert_eq!(img[24..28], MXCSR_INIT.to_le_bytes());
        assert!(img[160..416].iter().all(|&b| b == 0));
        assert!(img[576..832].iter().all(|&b| b == 0));
        assert!(img[1088..2688].iter().all(|&b| b == 0));
        set_xstate_bv(&mut img, AVX);
        img[24] = 0;
        materialize(&mut img, &l, 7);
        assert_eq!(img[0..2], FCW_INIT.to_le_bytes());
        assert_eq!(img[24], 0, "MXCSR belongs to AVX too");
    }
}
