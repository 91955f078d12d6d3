// SPDX-License-Identifier: GPL-2.0
//! What exists only for an emulator: QEMU's TCG. No processor needs anything of this file.
//!
//! - *Double injection.* TCG forgets to clear the event after VMRUN has delivered it, and delivers it again when it
//!   is asked to run another of its CPUs before the next exit (`helper_vmrun`: `exception_index`;
//!   `cpu_handle_interrupt`). Interrupts go in as V_IRQ with their vector instead of EVENTINJ. With one CPU nobody
//!   asks, unless instructions are counted (`tools/lib/emulators.py`).
//! - *CR8.* TCG asserts when CR8 is written while V_IRQ is set (`helper_write_crN`, without its lock): such writes
//!   exit.
//! - *EFER.LME.* A guest with EFER.LME and neither CR0.PG nor CR4.PAE runs without LME. TCG loads the host's CR0
//!   while the guest's EFER and CR4 are still there (`do_vmexit`: `cpu_x86_update_cr0` refuses), which ends the host.
//! - *PDPTEs.* TCG sets bit 5 as an accessed flag in each PDPTE that a guest with PAE paging uses.
//! - *CR2.* Accesses exit where those of CR0 are intercepted.
//! - *Refused entries.* System registers that were written are checked before the entry. TCG saves the registers of
//!   the moment, the host's, into a VMCB that it refuses: nobody could say what was wrong with it, and they would
//!   become the guest's.
//!
//! Called by `vcpu` before an entry and after an exit, with interrupts off.

use super::vmcb::{misc1, vintr, Control};
use crate::linux::{cpuid, smp};
use crate::x86::cpu::regs::{cr0, cr4, efer, Sregs};
use crate::x86::exit::{Event, EventKind};
use crate::x86::paging::gwalk::PDPTE_RESERVED;
use crate::x86::vendor::EntryParams;

/// What this machine needs, found at load.
#[derive(Clone, Copy)]
pub(super) struct Quirks {
    /// This CPU is QEMU's TCG.
    pub(super) tcg: bool,
    /// Interrupts go in as virtual ones.
    virtual_injection: bool,
}

impl Quirks {
    /// The quirks of this machine.
    pub(super) fn find() -> Self {
        let tcg = is_tcg();
        Self {
            tcg,
            // Possible CPUs are counted: they may come online later.
            virtual_injection: tcg && smp::nr_cpu_ids() > 1,
        }
    }

    /// The vector of `params.inject` if it has to be delivered as a virtual interrupt. Where an exit is wanted as
    /// soon as another interrupt can be delivered, V_IRQ is taken. Where one is wanted right behind the delivery, for
    /// an NMI, an interrupt of the host is there, which would go first.
    #[inline(always)]
    pub(super) fn virtual_irq(self, params: &EntryParams) -> Option<u8> {
        match params.inject {
            Some(Event {
                kind: EventKind::ExternalInterrupt,
                vector,
                ..
            }) if self.virtual_injection && !params.irq_window && !params.nmi_window => {
                Some(vector)
            }
            _ => None,
        }
    }

    /// Bits that are reserved in a PDPTE of a guest.
    pub(super) const fn pdpte_reserved(self) -> u64 {
        const ACCESSED: u64 = 1 << 5;
        if self.tcg {
            PDPTE_RESERVED & !ACCESSED
        } else {
            PDPTE_RESERVED
        }
    }

    /// EFER.LME of a guest with these registers if it has to be kept from the processor. Writes of CR0 have to exit
    /// meanwhile: in this state paging may not be enabled (#GP, APM 2 14.6.1), which the processor no longer sees.
    pub(super) fn hidden_lme(self, s: &Sregs) -> u64 {
        let hide =
            self.tcg && s.efer & efer::LME != 0 && s.cr0 & cr0::PG == 0 && s.cr4 & cr4::PAE == 0;
        if hide {
            efer::LME
        } else {
            0
        }
    }
}

/// Whether this CPU is QEMU's emulation (its CPUID signature is TCGTCGTCGTCG).
fn is_tcg() -> bool {
    const HYPERVISOR: u32 = 1 << 31;
    let l = cpuid::cpuid(0x4000_0000, 0);
    cpuid::cpuid(1, 0).ecx & HYPERVISOR != 0
        && [l.ebx, l.ecx, l.edx]
            == [
                u32::from_le_bytes(*b"TCGT"),
                u32::from_le_bytes(*b"CGTC"),
                u32::from_le_bytes(*b"GTCG"),
            ]
}

/// Delivers `vector` as a virtual interrupt by the next entry.
#[inline(always)]
pub(super) fn inject_virtually(c: &mut Control, vector: u8) {
    c.event_inj = 0;
    let vintr = c.vintr.get() & !vintr::V_INTR_VECTOR;
    let pending = vintr::PENDING | u64::from(vector) << vintr::V_INTR_VECTOR_SHIFT;
    c.vintr.set(&mut c.clean, vintr | pending);
    c.intercept_misc1(misc1::VINTR, false);
}

/// After the exit from an entry with virtual interrupt `vector`: returns it if it was not delivered.
#[inline(always)]
pub(super) fn undelivered(c: &mut Control, vector: u8) -> Option<u8> {
    let waits = c.vintr.get() & vintr::V_IRQ != 0;
    c.vintr.set(&mut c.clean, c.vintr.get() & !vintr::PENDING);
    waits.then_some(vector)
}
