// SPDX-License-Identifier: GPL-2.0
//! What both world switches do with general registers, as text for their [`asm!`](core::arch::asm): all but RAX and
//! RSP, for which each has a place of its own, and RDI, which points to [`Regs`].

use crate::x86::cpu::regs::Regs;

// The text addresses registers by their encoding.
const _: () = assert!(core::mem::offset_of!(Regs, gpr) == 0);

/// Loads the guest's.
macro_rules! load {
    () => {
        concat!(
            "mov rcx, [rdi + 8]\n",
            "mov rdx, [rdi + 16]\n",
            "mov rbx, [rdi + 24]\n",
            "mov rbp, [rdi + 40]\n",
            "mov rsi, [rdi + 48]\n",
            "mov r8, [rdi + 64]\n",
            "mov r9, [rdi + 72]\n",
            "mov r10, [rdi + 80]\n",
            "mov r11, [rdi + 88]\n",
            "mov r12, [rdi + 96]\n",
            "mov r13, [rdi + 104]\n",
            "mov r14, [rdi + 112]\n",
            "mov r15, [rdi + 120]\n",
        )
    };
}
pub(crate) use load;

/// Stores the guest's.
macro_rules! store {
    () => {
        concat!(
            "mov [rdi + 8], rcx\n",
            "mov [rdi + 16], rdx\n",
            "mov [rdi + 24], rbx\n",
            "mov [rdi + 40], rbp\n",
            "mov [rdi + 48], rsi\n",
            "mov [rdi + 64], r8\n",
            "mov [rdi + 72], r9\n",
            "mov [rdi + 80], r10\n",
            "mov [rdi + 88], r11\n",
            "mov [rdi + 96], r12\n",
            "mov [rdi + 104], r13\n",
            "mov [rdi + 112], r14\n",
            "mov [rdi + 120], r15\n",
        )
    };
}
pub(crate) use store;

/// Leaves no value of the guest's in a register that speculation could use as an address: those that are restored by no
/// POP.
macro_rules! clear {
    () => {
        concat!(
            "xor ecx, ecx\n",
            "xor edx, edx\n",
            "xor r8d, r8d\n",
            "xor r9d, r9d\n",
            "xor r10d, r10d\n",
            "xor r11d, r11d\n",
            "xor r12d, r12d\n",
            "xor r13d, r13d\n",
            "xor r14d, r14d\n",
            "xor r15d, r15d\n",
        )
    };
}
pub(crate) use clear;
