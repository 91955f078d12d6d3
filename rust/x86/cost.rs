// SPDX-License-Identifier: GPL-2.0

//! What instructions cost on the running CPU, in ticks of its TSC.

use super::{boot_cpu, cr, desc, msr, nospec};
use crate::linux::bindings as b;
use core::arch::asm;

/// What each round took, in room that the caller has.
pub struct Samples<'a> {
    ticks: &'a mut [u32],
    count: usize,
    end: u64,
}

impl<'a> Samples<'a> {
    /// No round yet. The rounds end when there is no room left, or after half a millisecond.
    pub fn new(ticks: &'a mut [u32]) -> Self {
        Self {
            ticks,
            count: 0,
            end: cr::rdtsc().saturating_add(u64::from(boot_cpu::tsc_khz()) / 2),
        }
    }

    /// How many rounds there have been.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Times `what`, again and again.
    #[inline(always)]
    pub fn take(&mut self, mut what: impl FnMut()) {
        self.rounds(|| Some(time(&mut what)));
    }

    /// Keeps what each `round` says it took. The first `None` ends the rounds.
    #[inline(always)]
    pub fn rounds(&mut self, mut round: impl FnMut() -> Option<u64>) {
        for to in self.ticks.iter_mut() {
            let Some(ticks) = round() else { return };
            *to = u32::try_from(ticks).unwrap_or(u32::MAX);
            self.count += 1;
            if cr::rdtsc() >= self.end {
                return;
            }
        }
    }
}

/// Ticks that `what` takes, with those of looking at the clock: LFENCE waits for what is under way.
#[inline(always)]
pub fn time(what: impl FnOnce()) -> u64 {
    nospec::speculation_barrier();
    let start = cr::rdtsc();
    nospec::speculation_barrier();
    what();
    nospec::speculation_barrier();
    cr::rdtsc().wrapping_sub(start)
}

/// Name of an instruction, and how it is timed with interrupts off. No round where this CPU does not have it.
pub type Primitive = (&'static str, fn(&mut Samples<'_>));

// SDM 4 table 2-2; APM 2 A.
const SPEC_CTRL: u32 = 0x48;
const DEBUGCTL: u32 = 0x1d9;
const LSTAR: u32 = 0xc000_0082;
const FS_BASE: u32 = 0xc000_0100;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// Those that any hypervisor uses. Each leaves all as it was.
pub const PRIMITIVES: &[Primitive] = &[
    ("nothing", |s| s.take(|| ())),
    ("RDTSC", |s| {
        s.take(|| {
            cr::rdtsc();
        });
    }),
    ("MOV to CR4", |s| {
        let value = cr::cr4();
        // SAFETY: The value that it has.
        s.take(|| unsafe { cr::write_cr4(value) });
    }),
    ("MOV from DR7", |s| {
        s.take(|| {
            cr::dr7();
        });
    }),
    ("LGDT", |s| {
        let table = desc::gdt();
        // SAFETY: The table that is in force.
        s.take(|| unsafe { desc::load_gdt(&table) });
    }),
    ("LIDT", |s| {
        let table = desc::idt();
        // SAFETY: LIDT of the table that is in force.
        s.take(|| unsafe { asm!("lidt [{}]", in(reg) &table, options(nostack, preserves_flags)) });
    }),
    ("RDMSR FS_BASE", |s| read(s, FS_BASE, true)),
    ("RDMSR KERNEL_GS_BASE", |s| read(s, KERNEL_GS_BASE, true)),
    ("WRMSR KERNEL_GS_BASE", |s| write(s, KERNEL_GS_BASE, true)),
    ("RDMSR LSTAR", |s| read(s, LSTAR, true)),
    ("WRMSR LSTAR", |s| write(s, LSTAR, true)),
    ("RDMSR TSC_AUX", |s| {
        read(s, TSC_AUX, boot_cpu::has(b::X86_FEATURE_RDTSCP))
    }),
    ("WRMSR TSC_AUX", |s| {
        write(s, TSC_AUX, boot_cpu::has(b::X86_FEATURE_RDTSCP))
    }),
    ("RDMSR DEBUGCTL", |s| read(s, DEBUGCTL, true)),
    ("RDMSR SPEC_CTRL", |s| {
        read(s, SPEC_CTRL, boot_cpu::has(b::X86_FEATURE_MSR_SPEC_CTRL))
    }),
    ("WRMSR SPEC_CTRL", |s| {
        write(s, SPEC_CTRL, boot_cpu::has(b::X86_FEATURE_MSR_SPEC_CTRL))
    }),
    ("IBPB", |s| {
        if boot_cpu::has(b::X86_FEATURE_IBPB) {
            s.take(nospec::ibpb);
        }
    }),
    ("VERW", |s| s.take(clear_cpu_buffers)),
    ("L1D flush", |s| {
        if boot_cpu::has(b::X86_FEATURE_FLUSH_L1D) {
            s.take(nospec::flush_l1d);
        }
    }),
];

/// RDMSR, if this CPU `has` it.
fn read(samples: &mut Samples<'_>, index: u32, has: bool) {
    if has {
        samples.take(|| {
            // SAFETY: The CPU has it, and reading it has no side effect.
            unsafe { msr::read(index) };
        });
    }
}

/// WRMSR of the value that it has, if this CPU `has` it.
fn write(samples: &mut Samples<'_>, index: u32, has: bool) {
    if has {
        // SAFETY: The CPU has it, and reading it has no side effect.
        let value = unsafe { msr::read(index) };
        // SAFETY: The value that it has.
        samples.take(|| unsafe { msr::write(index, value) });
    }
}

/// Overwrites the CPU's buffers where VERW does so (X86_FEATURE_CLEAR_CPU_BUF).
fn clear_cpu_buffers() {
    extern "C" {
        /// Of speculation.S.
        static rvmm_verw_selector: u16;
    }
    // SAFETY: VERW reads the selector and changes ZF, which is not declared preserved.
    unsafe {
        asm!("verw word ptr [rip + {}]", sym rvmm_verw_selector, options(nostack, readonly));
    }
}
