// SPDX-License-Identifier: GPL-2.0
//! Registers of a local APIC and their bits (SDM 3A 11.4.1, 11.4.4, 11.5).
#![forbid(unsafe_code)]

/// Register offsets in the xAPIC page (SDM 3A table 11-1). The x2APIC MSR is `0x800 + offset / 16`.
#[allow(missing_docs)]
pub mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR2: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PERF: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// IA32_APIC_BASE bits (SDM 3A 11.4.4, 11.12.1).
#[allow(missing_docs)]
pub mod base {
    pub const BSP: u64 = 1 << 8;
    pub const EXTD: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    /// Page address after reset.
    pub const DEFAULT_ADDRESS: u64 = 0xfee0_0000;

    /// Whether the register may hold `value`, whatever it held before.
    pub fn valid(value: u64, phys_bits: u8, x2apic: bool) -> bool {
        let top = phys_bits.clamp(32, 52);
        let reserved = !((1u64 << top) - 1) | 0x2ff | if x2apic { 0 } else { EXTD };
        value & reserved == 0 && value & (ENABLE | EXTD) != EXTD
    }
}

/// LVT mask bit.
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// LVT remote IRR (LINT0, LINT1).
pub(super) const LVT_REMOTE_IRR: u32 = 1 << 14;
/// LVT trigger mode: level.
pub(super) const LVT_LEVEL: u32 = 1 << 15;
/// SVR: APIC software enable.
pub(super) const SVR_ENABLE: u32 = 1 << 8;
/// SVR: EOI-broadcast suppression.
pub(super) const SVR_SUPPRESS_EOI: u32 = 1 << 12;
/// Version register: EOI-broadcast suppression is supported.
pub(super) const VERSION_SUPPRESS_EOI: u32 = 1 << 24;
/// Integrated APIC, version 14h, highest LVT index 5 (no CMCI).
pub(super) const VERSION: u32 = 0x0005_0014;

/// The six LVT registers.
pub(super) const LVTS: [u32; 6] = [
    reg::LVT_TIMER,
    reg::LVT_THERMAL,
    reg::LVT_PERF,
    reg::LVT_LINT0,
    reg::LVT_LINT1,
    reg::LVT_ERROR,
];
