// SPDX-License-Identifier: GPL-2.0
//! The virtual interface of the interrupt controller, ICH_*_EL2, in a stay (Arm IHI 0069 12.4).
//!
//! Only what the guest's interface needs is written, and ICH_HCR_EL2 put back at the end: KVM, which has the registers
//! between its vCPUs' loads for nothing, loads all of its own with each of them.

use crate::arm64::vgic::lists::{Lists, ENABLE, MAX_LISTS, NOT_PRESENT, TRAP_DIR};
use crate::arm64::vgic::registers::Interface;
use core::arch::asm;

/// ICH_HCR_EL2.EOIcount.
const COUNT_AT: u32 = 27;
/// ISR_EL1.I and F.
const ISR_IF: u64 = 3 << 6;

/// Calls the macro `$then` with the numbers and names of the list registers.
macro_rules! list_registers {
    ($then:ident, $($args:tt)*) => {
        $then! { [$($args)*]
            0 = "s3_4_c12_c12_0", 1 = "s3_4_c12_c12_1", 2 = "s3_4_c12_c12_2", 3 = "s3_4_c12_c12_3",
            4 = "s3_4_c12_c12_4", 5 = "s3_4_c12_c12_5", 6 = "s3_4_c12_c12_6", 7 = "s3_4_c12_c12_7",
            8 = "s3_4_c12_c13_0", 9 = "s3_4_c12_c13_1", 10 = "s3_4_c12_c13_2", 11 = "s3_4_c12_c13_3",
            12 = "s3_4_c12_c13_4", 13 = "s3_4_c12_c13_5", 14 = "s3_4_c12_c13_6", 15 = "s3_4_c12_c13_7"
        }
    };
}

macro_rules! put {
    ([$n:expr, $value:expr] $($at:literal = $asm:literal),*) => {
        match $n {
            $($at => write!($asm, $value),)*
            _ => {}
        }
    };
}

macro_rules! take {
    ([$n:expr] $($at:literal = $asm:literal),*) => {
        match $n {
            $($at => read!($asm),)*
            _ => 0,
        }
    };
}

/// ICH_VTR_EL2: what the virtual interface has.
pub(crate) fn kind() -> u64 {
    read!("s3_4_c12_c11_1")
}

/// How many list registers there are.
pub(crate) fn list_count(kind: u64) -> usize {
    (kind & 0x1f) as usize + 1
}

/// Loads the guest's interface, with no interrupt in it.
///
/// # Safety
///
/// In a stay that begins, with ICH_HCR_EL2 saved.
pub(super) unsafe fn load(i: &Interface) {
    let kind = kind();
    let rows = Interface::rows(kind);
    // After power-up they are anything, also interrupts of the host's that the guest could end (IHI 0069 12.4.7).
    for n in 0..list_count(kind) {
        // SAFETY: A list register that this processor has.
        unsafe { list_registers!(put, n, 0) };
    }
    // SAFETY: Registers of the virtual interface, which nobody else uses now; those that this processor has.
    unsafe {
        write!("s3_4_c12_c11_7", i.control);
        write!("s3_4_c12_c8_0", i.active[0][0]);
        write!("s3_4_c12_c9_0", i.active[1][0]);
        if rows > 1 {
            write!("s3_4_c12_c8_1", i.active[0][1]);
            write!("s3_4_c12_c9_1", i.active[1][1]);
        }
        if rows > 2 {
            write!("s3_4_c12_c8_2", i.active[0][2]);
            write!("s3_4_c12_c9_2", i.active[1][2]);
            write!("s3_4_c12_c8_3", i.active[0][3]);
            write!("s3_4_c12_c9_3", i.active[1][3]);
        }
        write!("s3_4_c12_c11_0", idle(kind));
    }
}

/// ICH_HCR_EL2 where no list register is in use. ICC_DIR_EL1 traps if it can by itself: a guest that ends interrupts in
/// two steps may take the second one on another vCPU, and the processor looks in its own list registers alone. Others
/// do not write there.
fn idle(kind: u64) -> u64 {
    const TRAPS_DIR: u64 = 1 << 19;
    ENABLE | if kind & TRAPS_DIR != 0 { TRAP_DIR } else { 0 }
}

/// Saves the guest's interface. The list registers are empty.
pub(super) fn save(i: &mut Interface) {
    let rows = Interface::rows(kind());
    i.control = read!("s3_4_c12_c11_7");
    i.active[0][0] = read!("s3_4_c12_c8_0");
    i.active[1][0] = read!("s3_4_c12_c9_0");
    if rows > 1 {
        i.active[0][1] = read!("s3_4_c12_c8_1");
        i.active[1][1] = read!("s3_4_c12_c9_1");
    }
    if rows > 2 {
        i.active[0][2] = read!("s3_4_c12_c8_2");
        i.active[1][2] = read!("s3_4_c12_c9_2");
        i.active[0][3] = read!("s3_4_c12_c8_3");
        i.active[1][3] = read!("s3_4_c12_c9_3");
    }
}

/// The processor has the interrupts of `lists` from now on.
///
/// # Safety
///
/// In a stay of the guest whose interrupts they are.
pub(super) unsafe fn put_lists(lists: &Lists) {
    for (n, register) in lists.registers.iter().take(lists.used).enumerate() {
        // SAFETY: A list register that this processor has: no more are used than it has. Physical interrupts in
        // them are those that the host lets this guest end.
        unsafe { list_registers!(put, n, *register) };
    }
    if lists.used > 0 {
        // SAFETY: The virtual interface's own control register.
        unsafe { write!("s3_4_c12_c11_0", lists.control | idle(kind())) };
    }
}

/// Reads back what has become of them; no list register is in use then. Returns how many ends of interrupts were
/// found in none.
///
/// # Safety
///
/// As [`put_lists`].
pub(super) unsafe fn take_lists(lists: &mut Lists) -> u32 {
    for (n, register) in lists.registers.iter_mut().take(lists.used).enumerate() {
        *register = list_registers!(take, n);
        // SAFETY: As above.
        unsafe { list_registers!(put, n, 0) };
    }
    let ends = if lists.control & NOT_PRESENT != 0 {
        (read!("s3_4_c12_c11_0") >> COUNT_AT) as u32 & 0x1f
    } else {
        0
    };
    if lists.control != ENABLE {
        // SAFETY: The virtual interface's own control register.
        unsafe { write!("s3_4_c12_c11_0", idle(kind())) };
    }
    // Underflow and ends make an interrupt no longer.
    // SAFETY: A barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
    ends
}

/// An interrupt waits for the host.
pub(super) fn host_interrupt_waits() -> bool {
    read!("isr_el1") & ISR_IF != 0
}

const _: () = assert!(MAX_LISTS == 16);
