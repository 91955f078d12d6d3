// SPDX-License-Identifier: GPL-2.0
//! What the SVM instructions cost on this CPU (RVMM_MEASURE_ROOT): each in rounds of its own, in a stay.
//!
//! The vCPU's nested page table is empty and the guest has been stopped by it: no entry gets as far as an instruction,
//! so that registers which VMRUN does not switch keep the host's values across one.

use super::entry::vmsave;
use super::vcpu::SvmVcpu;
use super::vmcb::{exit, tlb_control};
use crate::linux::cost::{time, Samples};
use core::arch::asm;

/// An instruction, and how it is timed.
type Row = (&'static str, fn(&mut SvmVcpu, &mut Samples<'_>));

const ROWS: &[Row] = &[
    ("CLGI", |_, s| s.rounds(|| Some(gif().0))),
    ("STGI", |_, s| s.rounds(|| Some(gif().1))),
    ("VMSAVE", |v, s| {
        // SAFETY: SVME is set; the page is this CPU's, filled in this stay with the same.
        s.take(|| unsafe { vmsave(v.host_extra) });
    }),
    ("VMLOAD", |v, s| {
        let page = v.host_extra;
        // SAFETY: SVME is set; VMSAVE filled the page on this CPU in this stay, and what it holds is in force.
        s.take(|| unsafe { asm!("vmload rax", in("rax") page, options(nostack, preserves_flags)) });
    }),
    ("VMRUN and exit", |v, s| {
        // What the entry before had to flush is flushed, and nothing has been cached since.
        v.vmcb.control.tlb_control = tlb_control::NOTHING;
        s.rounds(|| round_trip(v));
    }),
    ("INVLPGA", |v, s| {
        let asid = v.vmcb.control.asid.get();
        // SAFETY: SVME is set; the address is the guest's, of whose translations one more has to be looked up again.
        s.take(|| unsafe {
            asm!("invlpga rax, ecx", in("rax") 0u64, in("ecx") asid, options(nostack))
        });
    }),
];

impl SvmVcpu {
    /// As [`Backend::measure`](crate::x86::vendor::choose::Backend::measure).
    pub(crate) fn measure(&mut self, n: usize, samples: &mut Samples<'_>) -> Option<&'static str> {
        let (name, row) = ROWS.get(n)?;
        if self.stay.is_some() {
            row(self, samples);
            // The entries above have not told what the processor keeps of the VMCB.
            self.vmcb.control.clean.nothing();
        }
        Some(name)
    }
}

/// CLGI and STGI: the ticks of each.
fn gif() -> (u64, u64) {
    // SAFETY: SVME is set. Between the two only this code runs: interrupts, NMIs and machine checks wait.
    let clear = time(|| unsafe { asm!("clgi", options(nostack, preserves_flags)) });
    // SAFETY: GIF is as it was before.
    let set = time(|| unsafe { asm!("stgi", options(nostack, preserves_flags)) });
    (clear, set)
}

/// An entry and the exit that stops the guest before its first instruction: the ticks. `None` when something else made
/// it exit.
fn round_trip(v: &mut SvmVcpu) -> Option<u64> {
    let vmcb = v.vmcb.phys();
    // SAFETY: The last entry of this stay has made the VMCB complete, and asked for no event and no window that is not
    // over. The guest executes nothing; VMRUN brings RAX, RSP, RIP and RFLAGS back itself. GIF is as it was at the end.
    let ticks = unsafe {
        asm!("clgi", options(nostack, preserves_flags));
        let ticks = time(|| asm!("vmrun rax", in("rax") vmcb));
        asm!("stgi", options(nostack, preserves_flags));
        ticks
    };
    (v.vmcb.control.exit_code == exit::NPF).then_some(ticks)
}
