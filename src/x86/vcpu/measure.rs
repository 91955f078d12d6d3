// SPDX-License-Identifier: GPL-2.0
//! RVMM_MEASURE_ROOT: what the instructions cost of which stays are made, on the CPU that runs this.
//!
//! The ioctl calls, with the vCPU's mutex held and interrupts on. One call times one instruction, with interrupts off
//! for a millisecond at most.

use crate::abi::uapi::RootCost;
use crate::linux::cost::{Samples, PRIMITIVES};
use crate::linux::fpu::KernelFpu;
use crate::linux::irqflags::IrqGuard;
use crate::linux::page::Pages;
use crate::linux::{cred, mce};
use crate::mem::addr::Hpa;
use crate::mem::mmu::InOwnMm;
use crate::x86::exit::Exit;
use crate::x86::vcpu::state::State;
use crate::x86::vendor::{EntryParams, Stay, VcpuBackend};
use crate::x86::vm::Vm;
use kernel::prelude::*;

/// Times instruction `cost.index`. EPERM; EINVAL: the vCPU has a local APIC; ENOENT: there are no more; EAGAIN: an
/// interrupt came first; EBUSY, EIO: those of KVM_RUN.
pub(crate) fn measure(vm: &Vm, s: &mut State, cost: &mut RootCost) -> Result {
    if !cred::is_admin() {
        return Err(EPERM);
    }
    if s.apic.lapic.is_some() {
        return Err(EINVAL);
    }
    // With nothing mapped no guest gets as far as an instruction.
    let nowhere = Pages::new(0)?;
    let mut ticks = [0; RootCost::ROUNDS];
    let irq = s.hw.irqs_off();
    let mut samples = Samples::new(&mut ticks);
    let index = cost.index as usize;
    let name = match index.checked_sub(PRIMITIVES.len()) {
        None => PRIMITIVES.get(index).map(|(name, time)| {
            time(&mut samples);
            *name
        }),
        Some(n @ 0..=1) => Some(extended_state(s, &irq, n == 0, &mut samples)?),
        Some(n) => {
            let own_mm = InOwnMm::new(vm.mm(), irq.token()).ok_or(EIO)?;
            let params = nothing_mapped(&nowhere, s.check_entry);
            s.hw.wake();
            let measured = Stay::hold(
                irq.this_cpu(),
                own_mm,
                s,
                |s| &mut s.hw,
                |s, stay| match s.hw.enter(stay, &mut s.cpu, Some(&params)) {
                    Exit::NestedFault { .. } => {
                        Ok(s.hw.measure(n - 2, irq.this_cpu(), &mut samples))
                    }
                    other => Err(other),
                },
            );
            if matches!(measured, Ok(Err(Exit::HostMachineCheck))) {
                mce::from_user(&irq);
            }
            measured?.map_err(|_| EAGAIN)?
        }
    };
    cost.count = samples.count() as u32;
    drop(irq);
    cost.ticks = ticks;
    cost.name = [0; RootCost::NAME];
    // The last byte stays zero.
    let name = name.ok_or(ENOENT)?.bytes();
    for (to, from) in cost.name.iter_mut().take(RootCost::NAME - 1).zip(name) {
        *to = from;
    }
    Ok(())
}

/// XRSTOR or XSAVE of the vCPU's own state.
fn extended_state(
    s: &mut State,
    irq: &IrqGuard,
    restore: bool,
    samples: &mut Samples<'_>,
) -> Result<&'static str> {
    let xcr0 = s.model.host.xcr0();
    let area = &mut s.xstate.area;
    let fpu = KernelFpu::begin_irqs_off(irq);
    fpu.restore(area, xcr0)?;
    if restore {
        samples.take(|| {
            let _ = fpu.restore(area, xcr0);
        });
        return Ok("XRSTOR");
    }
    samples.take(|| fpu.save(area, xcr0));
    Ok("XSAVE")
}

/// An entry that delivers nothing, into an address space in which nothing is.
fn nothing_mapped(table: &Pages, check: bool) -> EntryParams {
    EntryParams {
        nested_root: Hpa(table.phys()),
        flush: true,
        irq_window: false,
        nmi_window: false,
        tpr: 0,
        tpr_threshold: 0,
        apic_status: None,
        inject: None,
        check,
    }
}
