// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest that measures: 64-bit code without an operating system, one routine per row.
//!
//! A routine takes r10 = iterations (not zero), r9 = array of that many u64 for the ticks of each,
//! and what its row needs: rdi = an address without memory (or the local APIC), rbp = the next page
//! to touch, r13 = timer delay in ticks. It ends with an `out` to [`DONE`].

use std::ptr;

/// Port that nobody has: accesses go to user space and nothing happens.
pub const IDLE: u16 = 0x510;
/// Port that ends a routine.
pub const DONE: u16 = 0x511;
/// Vector of the timer interrupt.
pub const VECTOR: u8 = 0x40;

std::arch::global_asm!(
    r#"
    .pushsection .rodata.rvmm_bench_guest, "a", @progbits
    .balign 16
rvmm_bench_start:

    .macro stamp
    lfence
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    .endm

    .macro begin name
    .globl  rvmm_bench_\name
rvmm_bench_\name:
2:
    stamp
    mov     r8, rax
    .endm

    .macro end
    stamp
    sub     rax, r8
    mov     [r9], rax
    add     r9, 8
    dec     r10
    jnz     2b
    jmp     rvmm_bench_done
    .endm

    .globl  rvmm_bench_start
    .globl  rvmm_bench_end

    begin   nothing
    end

    begin   cpuid
    xor     eax, eax
    xor     ecx, ecx
    cpuid
    end

    // KVM_HC_VAPIC_POLL_IRQ: the hypercall that does nothing (hypercalls.rst).
    begin   vmcall
    mov     eax, 1
    vmcall
    end

    begin   vmmcall
    mov     eax, 1
    vmmcall
    end

    begin   rdmsr
    mov     ecx, 0x2ff
    rdmsr
    end

    begin   port_in
    mov     dx, {idle}
    in      al, dx
    end

    begin   port_out
    mov     dx, {idle}
    out     dx, al
    end

    begin   mmio_read
    mov     eax, [rdi]
    end

    begin   mmio_write
    mov     [rdi], eax
    end

    begin   touch_4k
    mov     byte ptr [rbp], 1
    add     rbp, 0x1000
    end

    begin   touch_2m
    mov     byte ptr [rbp], 1
    add     rbp, 0x200000
    end

    // Deadline in r8; the handler leaves its time in r14.
    .globl  rvmm_bench_hlt_wake
rvmm_bench_hlt_wake:
    mov     dword ptr [rdi + 0xf0], 0x1ff
    mov     dword ptr [rdi + 0x320], 0x40000 + {vector}
    mfence
3:
    stamp
    add     rax, r13
    mov     r8, rax
    mov     rdx, rax
    shr     rdx, 32
    mov     ecx, 0x6e0
    xor     r14d, r14d
    wrmsr
4:
    sti
    hlt
    cli
    test    r14, r14
    jz      4b
    sub     r14, r8
    mov     [r9], r14
    add     r9, 8
    dec     r10
    jnz     3b
    jmp     rvmm_bench_done

    .globl  rvmm_bench_on_timer
rvmm_bench_on_timer:
    stamp
    mov     r14, rax
    mov     dword ptr [rdi + 0xb0], 0
    iretq

rvmm_bench_done:
    mov     dx, {done}
    out     dx, al
5:
    hlt
    jmp     5b

rvmm_bench_end:
    .purgem stamp
    .purgem begin
    .purgem end
    .popsection
    "#,
    idle = const IDLE,
    done = const DONE,
    vector = const VECTOR,
);

macro_rules! entries {
    ($($name:ident: $symbol:ident,)*) => {
        extern "C" {
            static rvmm_bench_start: u8;
            static rvmm_bench_end: u8;
            $(static $symbol: u8;)*
        }

        /// A routine of the guest.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Routine {
            $($name,)*
        }

        impl Routine {
            /// Where the routine starts, in bytes from the start of [`code`].
            pub fn offset(self) -> u64 {
                let entry = match self {
                    $(Routine::$name => &raw const $symbol,)*
                };
                entry as u64 - &raw const rvmm_bench_start as u64
            }

            #[cfg(test)]
            const ALL: &[Routine] = &[$(Routine::$name,)*];
        }
    };
}

entries! {
    Nothing: rvmm_bench_nothing,
    Cpuid: rvmm_bench_cpuid,
    Vmcall: rvmm_bench_vmcall,
    Vmmcall: rvmm_bench_vmmcall,
    Rdmsr: rvmm_bench_rdmsr,
    PortIn: rvmm_bench_port_in,
    PortOut: rvmm_bench_port_out,
    MmioRead: rvmm_bench_mmio_read,
    MmioWrite: rvmm_bench_mmio_write,
    Touch4k: rvmm_bench_touch_4k,
    Touch2m: rvmm_bench_touch_2m,
    HltWake: rvmm_bench_hlt_wake,
    OnTimer: rvmm_bench_on_timer,
}

/// The guest's code, which runs at any address.
pub fn code() -> &'static [u8] {
    let start = &raw const rvmm_bench_start;
    let length = &raw const rvmm_bench_end as usize - start as usize;
    // SAFETY: the two symbols enclose the read-only bytes that the assembler emitted above, in one
    // section without gaps.
    unsafe { &*ptr::slice_from_raw_parts(start, length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_routine_lies_in_the_code() {
        let code = code();
        assert!((100..4096).contains(&code.len()), "{}", code.len());
        for routine in Routine::ALL {
            let at = routine.offset() as usize;
            // All but the sleeper begin with LFENCE.
            assert!(at + 3 < code.len());
            if *routine != Routine::HltWake {
                assert_eq!(code[at..at + 3], [0x0f, 0xae, 0xe8], "{routine:?}");
            }
        }
    }

    #[test]
    fn the_code_holds_no_address_of_this_process() {
        let start = code().as_ptr() as u64;
        for window in code().windows(8) {
            let word = u64::from_le_bytes(window.try_into().unwrap());
            assert!(word.abs_diff(start) > 1 << 20);
        }
    }
}
