// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest that measures: 64-bit code without an operating system, one routine per row.
//!
//! A routine takes r10 = iterations (not zero), r9 = array of that many u64 for the ticks of each, and what
//! its row needs: rdi = an address without memory (or the local APIC, or the word that ends an echo, or a
//! device's registers), rbp = the next page to touch, r13 = timer delay in ticks. It ends with an `out` to
//! [`DONE`].

use std::ptr;

use super::nvme;

/// Port that nobody has: accesses go to user space and nothing happens.
pub const IDLE: u16 = 0x510;
/// Port that ends a routine.
pub const DONE: u16 = 0x511;
/// Port at which user space raises what a row is about.
pub const RAISE: u16 = 0x512;
/// Port at which user space takes it back.
pub const LOWER: u16 = 0x513;
/// Port at which an echo says that it listens.
pub const READY: u16 = 0x514;
/// Vector of the timer interrupt, its handler for xAPIC mode.
pub const VECTOR: u8 = 0x40;
/// Vector of all other interrupts, its handler for x2APIC mode.
pub const VECTOR_X2: u8 = 0x41;
/// Vector of the device whose own time does not count.
pub const VECTOR_DEVICE: u8 = 0x42;
/// IOAPIC pin that no 8259 has.
pub const PIN: u32 = 20;

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

    begin   touch_8k
    mov     byte ptr [rbp], 1
    add     rbp, 0x2000
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

    // The rest is in x2APIC mode (SDM 3A 11.12): IA32_APIC_BASE, then the spurious-vector register.
    .macro x2apic
    mov     ecx, 0x1b
    rdmsr
    or      eax, 0xc00
    wrmsr
    mov     ecx, 0x80f
    mov     eax, 0x1ff
    xor     edx, edx
    wrmsr
    .endm

    // Sends the vector to the APIC with id `to`, by the ICR.
    .macro send to
    mov     ecx, 0x830
    mov     eax, 0x4000 + {vector_x2}
    mov     edx, \to
    wrmsr
    .endm

    // Time of arrival in r14, ticks of the EOI in r12.
    .globl  rvmm_bench_on_interrupt
rvmm_bench_on_interrupt:
    stamp
    mov     r14, rax
    stamp
    mov     r11, rax
    mov     ecx, 0x80b
    xor     eax, eax
    xor     edx, edx
    wrmsr
    stamp
    sub     rax, r11
    mov     r12, rax
    iretq

    .macro self_ipi name, value
    .globl  rvmm_bench_\name
rvmm_bench_\name:
    x2apic
    sti
3:
    xor     r14d, r14d
    stamp
    mov     r8, rax
    mov     ecx, 0x83f
    mov     eax, {vector_x2}
    xor     edx, edx
    wrmsr
4:
    pause
    test    r14, r14
    jz      4b
    sub     r14, r8
    mov     [r9], \value
    add     r9, 8
    dec     r10
    jnz     3b
    jmp     rvmm_bench_done
    .endm

    self_ipi self_ipi, r14
    self_ipi x2apic_eoi, r12

    begin   tpr
    mov     eax, 3
    mov     cr8, rax
    mov     rax, cr8
    end

    .globl  rvmm_bench_deadline
rvmm_bench_deadline:
    x2apic
    mov     ecx, 0x832
    mov     eax, 0x40000 + {vector_x2}
    xor     edx, edx
    wrmsr
    mfence
3:
    stamp
    mov     r8, rax
    add     rax, r13
    mov     rdx, rax
    shr     rdx, 32
    mov     ecx, 0x6e0
    wrmsr
    stamp
    sub     rax, r8
    mov     [r9], rax
    add     r9, 8
    dec     r10
    jnz     3b
    xor     eax, eax
    xor     edx, edx
    wrmsr
    jmp     rvmm_bench_done

    // Has user space raise an interrupt; the pin is edge-triggered, for the APIC with id 0.
    .globl  rvmm_bench_raise
rvmm_bench_raise:
    x2apic
    mov     edi, 0xfec00000
    mov     dword ptr [rdi], 0x11 + 2 * {pin}
    mov     dword ptr [rdi + 0x10], 0
    mov     dword ptr [rdi], 0x10 + 2 * {pin}
    mov     dword ptr [rdi + 0x10], {vector_x2}
    sti
3:
    xor     r14d, r14d
    stamp
    mov     r8, rax
    mov     dx, {raise}
    out     dx, al
4:
    pause
    test    r14, r14
    jz      4b
    sub     r14, r8
    mov     [r9], r14
    mov     dx, {lower}
    out     dx, al
    add     r9, 8
    dec     r10
    jnz     3b
    jmp     rvmm_bench_done

    // A device with its registers at rdi (QEMU's edu): the register that raises its interrupt, and the one
    // that ends it.
    .globl  rvmm_bench_device_irq
rvmm_bench_device_irq:
    x2apic
    sti
3:
    xor     r14d, r14d
    stamp
    mov     r8, rax
    mov     dword ptr [rdi + 0x60], 1
4:
    pause
    test    r14, r14
    jz      4b
    sub     r14, r8
    mov     [r9], r14
    mov     dword ptr [rdi + 0x64], 1
    add     r9, 8
    dec     r10
    jnz     3b
    jmp     rvmm_bench_done

    // Reads of 4 KiB by NVMe at random: registers at rdi, submission queue at rsi, completion queue at rbp.
    // The time that the device takes is not counted: it is what passes between the doorbell and the last look
    // before the interrupt.
    .globl  rvmm_bench_nvme_read
rvmm_bench_nvme_read:
    x2apic
    xor     ebx, ebx
    mov     r12d, 0x10000
3:
    cli
    xor     r14d, r14d
    stamp
    mov     r8, rax
    imul    r13, r13, 1103515245
    add     r13, 12345
    mov     rax, r13
    shr     rax, 16
    and     eax, {nvme_blocks} - 1
    shl     eax, 3
    mov     edx, ebx
    shl     edx, 6
    mov     [rsi + rdx + 40], eax
    lea     eax, [rbx + 1]
    and     eax, {nvme_entries} - 1
    mov     [rdi + 0x1008], eax
    stamp
    mov     r15, rax
    mov     r11, rax
    sub     r11, r8
    sti
4:
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    mov     r15, rax
    test    r14, r14
    jz      4b
    // The completion: of this round (phase), without an error.
    mov     edx, ebx
    shl     edx, 4
    mov     eax, [rbp + rdx + 12]
    xor     eax, r12d
    shr     eax, 16
    jnz     5f
    inc     ebx
    and     ebx, {nvme_entries} - 1
    jnz     4f
    xor     r12d, 0x10000
4:
    mov     [rdi + 0x100c], ebx
    stamp
    sub     rax, r8
    add     rax, r14
    add     rax, r11
    mov     [r9], rax
    add     r9, 8
    dec     r10
    jnz     3b
    jmp     rvmm_bench_done
5:
    mov     qword ptr [r9], -1
    jmp     rvmm_bench_done

    // Time of arrival in r8, since the stamp in r15 in r14.
    .globl  rvmm_bench_on_device
rvmm_bench_on_device:
    push    rax
    push    rcx
    push    rdx
    stamp
    mov     r8, rax
    sub     rax, r15
    mov     r14, rax
    mov     ecx, 0x80b
    xor     eax, eax
    xor     edx, edx
    wrmsr
    pop     rdx
    pop     rcx
    pop     rax
    iretq

    // An IPI goes to APIC 1 and one comes back. There the echo runs, until the byte at rdi is set and one
    // more comes.
    .macro  wait_spinning
    pause
    test    r14, r14
    jz      4b
    .endm
    .macro  wait_halted
    sti
    hlt
    cli
    test    r14, r14
    jz      4b
    .endm
    .macro  ping name, wait, flag
    .globl  rvmm_bench_ipi_\name
rvmm_bench_ipi_\name:
    x2apic
    \flag
3:
    xor     r14d, r14d
    stamp
    mov     r8, rax
    send    1
4:
    \wait
    sub     r14, r8
    mov     [r9], r14
    add     r9, 8
    dec     r10
    jnz     3b
    mov     byte ptr [rdi], 1
    send    1
    jmp     rvmm_bench_done

    .globl  rvmm_bench_echo_\name
rvmm_bench_echo_\name:
    x2apic
    mov     dx, {ready}
    out     dx, al
    xor     r14d, r14d
    \flag
4:
    \wait
    cmp     byte ptr [rdi], 0
    jnz     rvmm_bench_done
    xor     r14d, r14d
    send    0
    jmp     4b
    .endm

    ping    running, wait_spinning, sti
    ping    halted, wait_halted, cli

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
    .purgem x2apic
    .purgem send
    .purgem self_ipi
    .purgem wait_spinning
    .purgem wait_halted
    .purgem ping
    .popsection
    "#,
    idle = const IDLE,
    done = const DONE,
    raise = const RAISE,
    lower = const LOWER,
    ready = const READY,
    vector = const VECTOR,
    vector_x2 = const VECTOR_X2,
    pin = const PIN,
    nvme_blocks = const nvme::BLOCKS,
    nvme_entries = const nvme::ENTRIES,
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
    Touch8k: rvmm_bench_touch_8k,
    Touch2m: rvmm_bench_touch_2m,
    HltWake: rvmm_bench_hlt_wake,
    OnTimer: rvmm_bench_on_timer,
    OnInterrupt: rvmm_bench_on_interrupt,
    SelfIpi: rvmm_bench_self_ipi,
    X2apicEoi: rvmm_bench_x2apic_eoi,
    Tpr: rvmm_bench_tpr,
    Deadline: rvmm_bench_deadline,
    Raise: rvmm_bench_raise,
    DeviceIrq: rvmm_bench_device_irq,
    NvmeRead: rvmm_bench_nvme_read,
    OnDevice: rvmm_bench_on_device,
    IpiRunning: rvmm_bench_ipi_running,
    EchoRunning: rvmm_bench_echo_running,
    IpiHalted: rvmm_bench_ipi_halted,
    EchoHalted: rvmm_bench_echo_halted,
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
            // LFENCE, `mov ecx, 0x1b` before x2APIC mode, the sleeper's store, or a handler's PUSHes.
            assert!(at + 3 < code.len());
            let begins = [
                [0x0f, 0xae, 0xe8],
                [0xb9, 0x1b, 0],
                [0xc7, 0x87, 0xf0],
                [0x50, 0x51, 0x52],
            ];
            assert!(
                begins.iter().any(|b| code[at..at + 3] == *b),
                "{routine:?}: {:x?}",
                &code[at..at + 3]
            );
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
