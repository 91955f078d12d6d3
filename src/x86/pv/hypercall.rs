// SPDX-License-Identifier: GPL-2.0
//! KVM's hypercalls (kernel document virt/kvm/x86/hypercalls.rst).

use crate::bus::set::IN_ONE_GO;
use crate::linux::clock;
use crate::mem::addr::Gpa;
use crate::x86::cpu::cpuid::kvm_feature;
use crate::x86::cpu::regs::{Gpr, Mode, Regs};
use crate::x86::irqchip::deliver::{addresses_many, deliver_to_id, for_each_addressed};
use crate::x86::irqchip::msg::{DeliveryMode, Message, TriggerMode, Vector, BROADCAST_XAPIC};
use crate::x86::pv::kvmclock;
use crate::x86::shared::{request, VcpuShared};
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;

/// Numbers, in RAX.
const VAPIC_POLL_IRQ: u32 = 1;
const KICK_CPU: u32 = 5;
const CLOCK_PAIRING: u32 = 9;
const SEND_IPI: u32 = 10;
const SCHED_YIELD: u32 = 11;

/// Whether a hypercall has to be made outside stays: it writes guest memory, lets another thread run, or concerns many
/// vCPUs.
#[inline]
pub(crate) fn may_take_long(vm: &Vm, regs: &Regs) -> bool {
    let number = regs.get(Gpr::Rax) as u32;
    (KICK_CPU..=SCHED_YIELD).contains(&number) && takes_long(vm, regs, number)
}

#[inline(never)]
fn takes_long(vm: &Vm, regs: &Regs, number: u32) -> bool {
    let [b, c] = [Gpr::Rbx, Gpr::Rcx].map(|g| regs.get(g));
    match number {
        SEND_IPI => b.count_ones() + c.count_ones() > IN_ONE_GO,
        KICK_CPU => addresses_many(&vm.vcpus, &Message::fixed(c as u32, Vector(0))),
        CLOCK_PAIRING | SCHED_YIELD => true,
        _ => false,
    }
}

/// The page that the hypercall writes, if one.
pub(crate) fn page_of(s: &State, number: u64) -> Option<Gpa> {
    (number as u32 == CLOCK_PAIRING).then(|| Gpa(s.cpu.regs.get(Gpr::Rbx)))
}

/// Results, in RAX.
pub(crate) mod error {
    pub(crate) const PERM: i64 = -1;
    pub(crate) const FAULT: i64 = -14;
    pub(crate) const INVAL: i64 = -22;
    pub(crate) const OPNOTSUPP: i64 = -95;
    pub(crate) const NOSYS: i64 = -1000;
}

/// Hypercall `number` from CPL 0; the value for RAX.
pub(crate) fn call(vm: &Vm, caller: &VcpuShared, s: &mut State, number: u64) -> i64 {
    match number as u32 {
        VAPIC_POLL_IRQ => 0,
        KICK_CPU | CLOCK_PAIRING | SEND_IPI | SCHED_YIELD => serve(vm, caller, s, number),
        _ => error::NOSYS,
    }
}

/// A call that is offered, unless CPUID hides it; its arguments are in RBX, RCX, RDX and RSI.
fn serve(vm: &Vm, caller: &VcpuShared, s: &mut State, number: u64) -> i64 {
    use crate::x86::vendor::Groups;
    s.load(Groups::CTRL.union(Groups::CODE));
    let long = s.cpu.sregs.mode(s.cpu.regs.rflags) == Mode::Long;
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    let argument = |g| s.cpu.regs.get(g) & mask;
    let [a, b, c, d] = [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].map(argument);
    if (number & mask) >> 32 != 0 {
        return error::NOSYS;
    }
    match number as u32 {
        KICK_CPU if s.pv.has(&s.cpuid.features, kvm_feature::PV_UNHALT) => {
            kick(vm, b as u32);
            0
        }
        CLOCK_PAIRING => clock_pairing(vm, s, a, b),
        SEND_IPI if s.pv.has(&s.cpuid.features, kvm_feature::PV_SEND_IPI) => {
            send_ipi(vm, caller, [a, b], c as u32, d, if long { 64 } else { 32 })
        }
        SCHED_YIELD if s.pv.has(&s.cpuid.features, kvm_feature::PV_SCHED_YIELD) => {
            sched_yield(vm, caller, a as u32);
            0
        }
        _ => error::NOSYS,
    }
}

/// The caller has sent an interrupt to the vCPU with this APIC ID, which has no CPU, and waits for what it does: that
/// one may go first.
fn sched_yield(vm: &Vm, caller: &VcpuShared, apic_id: u32) {
    let to = Message::fixed(apic_id, Vector(0));
    let target = vm.vcpus.with_id(apic_id);
    if let Some(v) = target.filter(|v| to.matches(None, &v.apic_addr()) && v.id != caller.id) {
        let _ = v.take_turn();
    }
}

/// Ends the HLT of the vCPU with this APIC ID, or its next one.
fn kick(vm: &Vm, apic_id: u32) {
    let to = Message::fixed(apic_id, Vector(0));
    for_each_addressed(&vm.vcpus, &to, |v| v.request(request::UNHALT));
}

/// Sends an interrupt to the APIC IDs `first`, `first + 1` ... whose bits are set; `icr` gives vector and delivery
/// mode. The number of vCPUs that accepted it.
fn send_ipi(
    vm: &Vm,
    caller: &VcpuShared,
    bitmaps: [u64; 2],
    first: u32,
    icr: u64,
    width: u32,
) -> i64 {
    const LOGICAL: u64 = 1 << 11;
    const SHORTHAND: u64 = 3 << 18;
    if icr & (LOGICAL | SHORTHAND) != 0 {
        return error::INVAL;
    }
    if !vm.chip.has_lapic() {
        return error::OPNOTSUPP;
    }
    let low = icr as u32;
    let mut sent = 0i64;
    for (bitmap, base) in bitmaps.into_iter().zip([0, width]) {
        let mut rest = bitmap;
        while rest != 0 {
            let bit = rest.trailing_zeros();
            rest &= rest.wrapping_sub(1);
            let Some(dest) = first
                .wrapping_add(base)
                .checked_add(bit)
                .filter(|n| *n < crate::bus::set::MAX_VCPU_ID)
            else {
                continue;
            };
            let message = Message {
                delivery: DeliveryMode::from_bits(low >> 8),
                trigger: TriggerMode::from_bit(low & 1 << 15 != 0),
                level: low & 1 << 14 != 0,
                ..Message::fixed(dest, Vector(low as u8))
            };
            // Never a broadcast.
            let accepted = if dest == BROADCAST_XAPIC {
                deliver_to_id(&vm.vcpus, dest, &message)
            } else {
                vm.chip.deliver(&message, caller.id)
            };
            sent = sent.saturating_add(accepted.into());
        }
    }
    sent
}

/// Writes `struct kvm_clock_pairing`: CLOCK_REALTIME and the guest's TSC at one moment.
fn clock_pairing(vm: &Vm, s: &State, gpa: u64, kind: u64) -> i64 {
    const WALLCLOCK: u64 = 0;
    let now = clock::snapshot();
    if kind != WALLCLOCK || !now.tsc_based {
        return error::OPNOTSUPP;
    }
    let bytes = kvmclock::clock_pairing(now.real_ns, s.tsc_at(now.tsc));
    match vm.memory.view_of(&s.ring).write(Gpa(gpa), &bytes) {
        Ok(()) => 0,
        Err(_) => error::FAULT,
    }
}
