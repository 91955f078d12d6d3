// SPDX-License-Identifier: GPL-2.0
//! Canonical linear addresses (SDM 1 3.3.7.1, APM 2 1.1.3).
#![forbid(unsafe_code)]

/// Linear-address width with 4-level paging.
pub const WIDTH_4LEVEL: u8 = 48;
/// Linear-address width with 5-level paging (CR4.LA57).
pub const WIDTH_5LEVEL: u8 = 57;

/// Sign-extends `va` from bit `width - 1`: what AMD does to addresses that it does not check. Widths outside 1 to 64
/// count as 64.
#[inline]
pub const fn sign_extend(va: u64, width: u8) -> u64 {
    if width == 0 || width >= 64 {
        return va;
    }
    let shift = 64 - width as u32;
    (((va << shift) as i64) >> shift) as u64
}

/// Whether bits 63 to `width - 1` of `va` are all equal.
#[inline]
pub const fn is_canonical(va: u64, width: u8) -> bool {
    sign_extend(va, width) == va
}

/// Whether `va` is canonical with 4-level paging.
#[inline]
pub const fn is_canonical48(va: u64) -> bool {
    is_canonical(va, WIDTH_4LEVEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders() {
        assert!(is_canonical48(0));
        assert!(is_canonical48(0x0000_7fff_ffff_ffff));
        assert!(!is_canonical48(0x0000_8000_0000_0000));
        assert!(!is_canonical48(0xffff_7fff_ffff_ffff));
        assert!(is_canonical48(0xffff_8000_0000_0000));
        assert!(is_canonical(0x00ff_ffff_ffff_ffff, WIDTH_5LEVEL));
        assert!(!is_canonical(0x0100_0000_0000_0000, WIDTH_5LEVEL));
        assert!(is_canonical(0x1234_5678_9abc_def0, 64));
        assert!(is_canonical(0x1234_5678_9abc_def0, 0));
        assert_eq!(sign_extend(1 << 47, 48), 0xffff_8000_0000_0000);
    }
}
