// SPDX-License-Identifier: GPL-2.0
//! Checks on the host-state area (SDM 3C 27.2.2 to 27.2.4).
#![forbid(unsafe_code)]

use super::fields::*;
use crate::x86::cpu::canonical::is_canonical;
use crate::x86::cpu::msr::pat_valid;
use crate::x86::cpu::regs::{cr0, cr4, efer};
use crate::x86::cpu::violation::{rules, Violation};
use crate::x86::vmx::bits::exit;

const HOST_CR: &str = "SDM 3C 27.2.2";
const HOST_SEG: &str = "SDM 3C 27.2.3";
const HOST_SIZE: &str = "SDM 3C 27.2.4";

/// Checks on the host-state area (27.2.2 to 27.2.4). A failure is VMfailValid(8) on a processor. The host is in 64-bit
/// mode.
///
/// # Errors
///
/// The first rule that is broken.
pub(super) fn check(h: &Host, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    host_registers(h, c, caps)?;
    host_segments(h, c, caps)?;
    rules! { HOST_SIZE;
        "\"host address-space size\" must be 1 when the processor is in IA-32e mode" =>
            c.exit & exit::HOST_64BIT != 0, c.exit;
        "host CR4.PAE must be set for a 64-bit host" => h.cr4 & cr4::PAE != 0, h.cr4;
        "host RIP must be canonical" => is_canonical(h.rip, caps.linear_bits), h.rip;
    }
    Ok(())
}

fn host_registers(h: &Host, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let canonical = |a: u64| is_canonical(a, caps.linear_bits);
    rules! { HOST_CR;
        "host CR0 must not set a bit to a value that VMX does not support" =>
            fixed(h.cr0, &caps.cr0_fixed, 0), h.cr0;
        "host CR4 must not set a bit to a value that VMX does not support" =>
            fixed(h.cr4, &caps.cr4_fixed, 0), h.cr4;
        "host CR0.WP must be set when host CR4.CET is set" =>
            h.cr4 & cr4::CET == 0 || h.cr0 & cr0::WP != 0, h.cr0;
        "host CR3 must lie within the physical-address width" =>
            h.cr3 & caps.phys_reserved() == 0, h.cr3;
        "host IA32_SYSENTER_ESP must be canonical" => canonical(h.sysenter_esp), h.sysenter_esp;
        "host IA32_SYSENTER_EIP must be canonical" => canonical(h.sysenter_eip), h.sysenter_eip;
        "host IA32_PAT must hold only defined memory types" =>
            c.exit & exit::LOAD_PAT == 0 || pat_valid(h.pat), h.pat;
    }
    let wide = c.exit & exit::HOST_64BIT != 0;
    if c.exit & exit::LOAD_EFER != 0 {
        rules! { HOST_CR;
            "reserved bits of host IA32_EFER must be zero" => h.efer & !caps.efer_mask == 0, h.efer;
            "host EFER.LMA and LME must equal \"host address-space size\"" =>
                (h.efer & efer::LMA != 0) == wide && (h.efer & efer::LME != 0) == wide, h.efer;
        }
    }
    Ok(())
}

fn host_segments(h: &Host, c: &Controls, caps: &VmxCaps) -> Result<(), Violation> {
    let wide = c.exit & exit::HOST_64BIT != 0;
    for s in [h.es, h.cs, h.ss, h.ds, h.fs, h.gs, h.tr] {
        rules! { HOST_SEG;
            "RPL and TI of host selectors must be zero" => s & 7 == 0, s;
        }
    }
    rules! { HOST_SEG;
        "host CS must not be null" => h.cs != 0, h.cs;
        "host TR must not be null" => h.tr != 0, h.tr;
        "host SS must not be null for a 32-bit host" => wide || h.ss != 0, h.ss;
    }
    for base in [h.fs_base, h.gs_base, h.gdtr_base, h.idtr_base, h.tr_base] {
        rules! { HOST_SEG;
            "host bases of FS, GS, GDTR, IDTR and TR must be canonical" =>
                is_canonical(base, caps.linear_bits), base;
        }
    }
    Ok(())
}
