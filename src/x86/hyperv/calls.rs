// SPDX-License-Identifier: GPL-2.0
//! Hyper-V's hypercalls (TLFS 3, appendix A).
//!
//! The handler of VMCALL and VMMCALL calls, under the vCPU's mutex, outside stays: they read guest memory, wait for
//! other vCPUs, or let them run.

use crate::abi::uapi::k;
use crate::mem::addr::Gpa;
use crate::x86::cpu::regs::{Gpr, Mode};
use crate::x86::cpu::xsave;
use crate::x86::hyperv::defs::{call, debug, status};
use crate::x86::hyperv::input::{self, Block, Input, Registers, Status, VpSet};
use crate::x86::hyperv::partition::Debug;
use crate::x86::irqchip::deliver::deliver_vector;
use crate::x86::shared::{request, VcpuShared};
use crate::x86::vcpu::state::State;
use crate::x86::vm::Vm;

/// What a call comes to.
pub(crate) enum Outcome {
    /// This result.
    Done(u64),
    /// User space carries it out.
    ToUser(Input),
    /// #UD.
    Undefined,
}

/// Where a call's input is.
enum Source<'a> {
    Memory { vm: &'a Vm, s: &'a State, gpa: Gpa },
    Registers(Registers),
}

impl Block for Source<'_> {
    fn read(&self, first: usize, out: &mut [u64]) -> bool {
        let (vm, s, gpa) = match self {
            Self::Registers(r) => return r.read(first, out),
            Self::Memory { vm, s, gpa } => (vm, s, gpa),
        };
        let view = vm.memory.view_of(&s.ring);
        let mut gpa = gpa.wrapping_add((first as u64).wrapping_mul(8));
        for word in out {
            let mut bytes = [0; 8];
            if view.read(gpa, &mut bytes).is_err() {
                return false;
            }
            *word = u64::from_le_bytes(bytes);
            gpa = gpa.wrapping_add(8);
        }
        true
    }
}

/// The call that the registers hold. Code segment and control registers are loaded.
pub(crate) fn input_of(s: &State) -> Input {
    let r = &s.cpu.regs;
    if s.cpu.sregs.mode(r.rflags) == Mode::Long {
        let [control, first, second] = [Gpr::Rcx, Gpr::Rdx, Gpr::R8].map(|g| r.get(g));
        return Input {
            control,
            first,
            second,
        };
    }
    let pair = |high, low| r.get(high) << 32 | r.get(low) & 0xffff_ffff;
    Input {
        control: pair(Gpr::Rdx, Gpr::Rax),
        first: pair(Gpr::Rbx, Gpr::Rcx),
        second: pair(Gpr::Rdi, Gpr::Rsi),
    }
}

/// Makes a result readable for the guest.
pub(crate) fn set_result(s: &mut State, result: u64) {
    let long = s.cpu.sregs.mode(s.cpu.regs.rflags) == Mode::Long;
    let r = &mut s.cpu.regs;
    if long {
        r.set(Gpr::Rax, result);
    } else {
        r.set(Gpr::Rax, result & 0xffff_ffff);
        r.set(Gpr::Rdx, result >> 32);
    }
}

/// Carries out a call from CPL 0 in protected mode.
pub(crate) fn make(vm: &Vm, caller: &VcpuShared, s: &mut State, input: &Input) -> Outcome {
    let Some(hv) = &s.hv else {
        return Outcome::Undefined;
    };
    let (granted, enforce) = (hv.granted, hv.enforce);
    let synic = hv.registers.synic.active;
    let refused = |status: Status| Outcome::Done(status.into());
    let code = input.code();
    if enforce && !granted.has_call(code) {
        return refused(status::ACCESS_DENIED);
    }
    if input.malformed() {
        return refused(status::INVALID_INPUT);
    }
    if input.fast() && input.takes_xmm() && enforce && !granted.xmm_input() {
        return Outcome::Undefined;
    }
    let simple = !input.rep() && input.var() == 0;
    match code {
        call::LONG_SPIN_WAIT | call::SIGNAL_EVENT | call::POST_MESSAGE if !simple => {
            refused(status::INVALID_INPUT)
        }
        call::LONG_SPIN_WAIT => {
            let _ = vm.vcpus.yield_from(caller);
            Outcome::Done(0)
        }
        call::SIGNAL_EVENT => match connection(vm, s, input) {
            Err(e) => refused(e),
            Ok(id) => match signal(vm, id) {
                // Perhaps user space knows it.
                status::INVALID_PORT if synic => Outcome::ToUser(Input {
                    first: id,
                    ..*input
                }),
                status::INVALID_PORT => refused(status::INVALID_INPUT),
                other => refused(other),
            },
        },
        call::POST_MESSAGE if synic => Outcome::ToUser(*input),
        call::POST_MESSAGE => refused(status::INVALID_INPUT),
        call::FLUSH_SPACE | call::FLUSH_LIST | call::FLUSH_SPACE_EX | call::FLUSH_LIST_EX => {
            match with_block(vm, s, input, |i, b| input::flush(i, b)) {
                Err(e) => refused(e),
                Ok(whose) => {
                    if let Some(whose) = whose {
                        flush(vm, &whose);
                    }
                    Outcome::Done(input.done())
                }
            }
        }
        call::SEND_IPI | call::SEND_IPI_EX => {
            if s.apic.lapic.is_none() {
                return refused(status::INVALID_INPUT);
            }
            match with_block(vm, s, input, |i, b| input::interrupt(i, b)) {
                Err(e) => refused(e),
                Ok(what) => {
                    if let Some((to, vector)) = what {
                        send(vm, &to, vector);
                    }
                    Outcome::Done(0)
                }
            }
        }
        call::POST_DEBUG_DATA | call::RETRIEVE_DEBUG_DATA if input.fast() => {
            refused(status::INVALID_PARAMETER)
        }
        call::POST_DEBUG_DATA | call::RETRIEVE_DEBUG_DATA | call::RESET_DEBUG_SESSION => {
            if !granted.debugs() {
                refused(status::INVALID_CODE)
            } else if vm.hyperv.lock().registers.debug.options & debug::BY_HYPERCALLS == 0 {
                refused(status::OPERATION_DENIED)
            } else {
                Outcome::ToUser(*input)
            }
        }
        call::EXTENDED_FIRST..=call::EXTENDED_LAST if input.fast() => {
            refused(status::INVALID_PARAMETER)
        }
        call::EXTENDED_FIRST..=call::EXTENDED_LAST => Outcome::ToUser(*input),
        _ => refused(status::INVALID_CODE),
    }
}

/// Lets `parse` read the input, wherever it is.
fn with_block<R>(
    vm: &Vm,
    s: &mut State,
    input: &Input,
    parse: impl FnOnce(&Input, &Source<'_>) -> Result<R, Status>,
) -> Result<R, Status> {
    if !input.fast() {
        let gpa = Gpa(input.first);
        return parse(input, &Source::Memory { vm, s, gpa });
    }
    let mut words = [0; input::FAST_WORDS];
    xsave::materialize(
        s.xstate.area.as_mut_slice(),
        &s.model.layout,
        xsave::X87_SSE,
    );
    let xmm = xsave::xmm_words(s.xstate.area.as_slice());
    let all = [input.first, input.second].into_iter().chain(xmm);
    for (to, from) in words.iter_mut().zip(all) {
        *to = from;
    }
    parse(input, &Source::Registers(Registers(words)))
}

/// The vCPUs of a set will have flushed their translations before they run the next instruction, and those that run
/// have left the guest. All of a vCPU's go: what a call names is a part of them.
fn flush(vm: &Vm, whose: &VpSet) {
    let named = |v: &VcpuShared| whose.contains(v.vp_index());
    for v in vm.vcpus.iter().filter(|v| named(v)) {
        v.request_self(request::FLUSH);
    }
    vm.vcpus.stop(named);
}

/// Sends an interrupt to the vCPUs of a set.
fn send(vm: &Vm, to: &VpSet, vector: u8) {
    for v in vm.vcpus.iter() {
        if to.contains(v.vp_index()) {
            let _ = deliver_vector(&v, vector);
        }
    }
}

/// The connection that HvSignalEvent names.
fn connection(vm: &Vm, s: &State, input: &Input) -> Result<u64, Status> {
    if input.fast() {
        return Ok(input.first);
    }
    // Aligned, and so within a page.
    let bad = Err(status::INVALID_ALIGNMENT);
    if input.first & 7 != 0 {
        return bad;
    }
    let mut bytes = [0; 8];
    let view = vm.memory.view_of(&s.ring);
    match view.read(Gpa(input.first), &mut bytes) {
        Ok(()) => Ok(u64::from_le_bytes(bytes)),
        Err(_) => bad,
    }
}

/// HvSignalEvent (TLFS 11.11.2) of connection `id`, whose bits 47:32 are a flag that no eventfd has.
fn signal(vm: &Vm, id: u64) -> Status {
    if id & 0xffff_0000_0000 != 0 {
        return status::INVALID_PORT;
    }
    match u32::try_from(id) {
        Ok(id) if id & !k::KVM_HYPERV_CONN_ID_MASK == 0 => {
            if vm.hyperv.signal(id) {
                status::SUCCESS
            } else {
                status::INVALID_PORT
            }
        }
        _ => status::INVALID_INPUT,
    }
}

/// What KVM_EXIT_HYPERV_SYNIC tells: control, event page, message page.
pub(crate) fn synic_pages(s: &State) -> [u64; 3] {
    s.hv.as_ref().map_or([0; 3], |hv| {
        let synic = &hv.registers.synic;
        [synic.control(), synic.event_page, synic.message_page]
    })
}

/// What KVM_EXIT_HYPERV_SYNDBG tells: control, status and three pages. Sleeps.
pub(crate) fn debug_registers(vm: &Vm) -> [u64; 5] {
    let Debug {
        control,
        status,
        send_page,
        recv_page,
        pending_page,
        ..
    } = vm.hyperv.lock().registers.debug;
    [control, status, send_page, recv_page, pending_page]
}

/// User space has done what the guest asked for by SYNDBG_CONTROL. Sleeps.
pub(crate) fn debug_done(vm: &Vm, status: u64) {
    vm.hyperv.lock().registers.debug.status = status;
}
