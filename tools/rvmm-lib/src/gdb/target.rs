// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The machine as gdb sees it: a thread for each vCPU, memory by the addresses that the vCPU at hand uses.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSingleStep,
    MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use gdbstub_arch::x86::X86_64_SSE;
use kvm_bindings::{
    kvm_fpu, kvm_guest_debug, kvm_regs, kvm_sregs, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::hold::{Ended, Hit, Hold};

/// `KVM_GUESTDBG_INJECT_BP`: the guest gets the exception that it made.
const INJECT_BP: u32 = 0x0008_0000;
/// Exceptions of debugging.
const DB: u32 = 1;
const BP: u32 = 3;
/// The instruction that makes #BP.
const INT3: u8 = 0xcc;
/// DR6: a single step.
const STEP: u64 = 1 << 14;
const PAGE: u64 = 4096;
/// Debug registers with addresses.
const MOST_HARDWARE: usize = 4;

/// The machine has ended, or does not answer: the debugger's session is over.
#[derive(Debug)]
pub(crate) struct Fatal;

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the machine has ended")
    }
}

impl From<Ended> for Fatal {
    fn from(_: Ended) -> Self {
        Fatal
    }
}

type Result<T> = std::result::Result<T, Fatal>;

/// gdb's number of a vCPU's thread: 0 would be any.
pub(super) fn tid(vcpu: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu)
}

fn vcpu_of(tid: Tid) -> usize {
    tid.get() - 1
}

/// A breakpoint or watchpoint in a debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hardware {
    address: u64,
    length: u64,
    /// `None`: the instruction there.
    watch: Option<WatchKind>,
}

/// A breakpoint in memory.
#[derive(Clone, Copy)]
struct Software {
    address: u64,
    /// Where that was in guest-physical memory.
    physical: u64,
    /// What was there.
    byte: u8,
}

/// The machine.
pub(super) struct Debugged {
    hold: Hold,
    memory: Arc<GuestMemoryMmap>,
    hardware: Vec<Hardware>,
    software: Vec<Software>,
    /// The vCPU that steps, if one does.
    steps: Option<usize>,
    /// The vCPU that stopped last: its addresses are those of breakpoints.
    current: usize,
}

/// DR7 for these (SDM 3B 19.2.4): each enabled, with its kind and length.
fn dr7(hardware: &[Hardware]) -> u64 {
    let mut value = 1 << 10;
    for (index, point) in hardware.iter().enumerate() {
        let kind = match point.watch {
            None => 0,
            Some(WatchKind::Write) => 1,
            Some(WatchKind::Read | WatchKind::ReadWrite) => 3,
        };
        let length = match (point.watch, point.length) {
            (None, _) | (_, 1) => 0,
            (_, 2) => 1,
            (_, 4) => 3,
            _ => 2,
        };
        value |= 1 << (2 * index) | (kind | length << 2) << (16 + 4 * index);
    }
    value
}

impl Debugged {
    pub(super) fn new(hold: Hold, memory: Arc<GuestMemoryMmap>) -> Self {
        Self {
            hold,
            memory,
            hardware: Vec::new(),
            software: Vec::new(),
            steps: None,
            current: 0,
        }
    }

    pub(super) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Takes all breakpoints out and lets the guest go on as if nobody had been there.
    pub(super) fn release(&mut self) -> Result<()> {
        self.hold.stop()?;
        self.hold.forget_hits(|_| true);
        for point in std::mem::take(&mut self.software) {
            self.take_out(&point);
        }
        self.hardware.clear();
        self.steps = None;
        for vcpu in 0..self.hold.vcpus() {
            self.hold
                .on(vcpu, |fd| fd.set_guest_debug(&kvm_guest_debug::default()))?
                .map_err(|_| Fatal)?;
        }
        self.hold.go();
        Ok(())
    }

    /// A vCPU has stopped: why, if the debugger is to know. Otherwise the guest goes on.
    pub(super) fn look(&mut self) -> Result<Option<MultiThreadStopReason<u64>>> {
        let Some(hit) = self.hold.next_hit() else {
            return Ok(None);
        };
        self.hold.stop()?;
        // Others come upon theirs again, but for data that has been accessed.
        let hardware = &self.hardware;
        self.hold
            .forget_hits(|other| watched(hardware, other).is_none());
        if let Some(reason) = self.reason(&hit) {
            self.current = hit.vcpu;
            return Ok(Some(reason));
        }
        // An exception of the guest's own.
        self.let_go(Some(hit.vcpu))?;
        Ok(None)
    }

    fn reason(&self, hit: &Hit) -> Option<MultiThreadStopReason<u64>> {
        let tid = tid(hit.vcpu);
        if hit.info.exception == BP {
            let ours = self.software.iter().any(|at| at.address == hit.info.pc);
            return ours.then_some(MultiThreadStopReason::SwBreak(tid));
        }
        if let Some(point) = watched(&self.hardware, hit) {
            return Some(match point.watch {
                Some(kind) => MultiThreadStopReason::Watch {
                    tid,
                    kind,
                    addr: point.address,
                },
                None => MultiThreadStopReason::HwBreak(tid),
            });
        }
        Some(MultiThreadStopReason::SignalWithThread {
            tid,
            signal: Signal::SIGTRAP,
        })
    }

    /// Lets all vCPUs go, with breakpoints; `own`: this one gets the #BP that it made.
    fn let_go(&mut self, own: Option<usize>) -> Result<()> {
        for vcpu in 0..self.hold.vcpus() {
            let mut debug = kvm_guest_debug {
                control: KVM_GUESTDBG_ENABLE,
                ..Default::default()
            };
            if !self.software.is_empty() {
                debug.control |= KVM_GUESTDBG_USE_SW_BP;
            }
            if !self.hardware.is_empty() {
                debug.control |= KVM_GUESTDBG_USE_HW_BP;
                for (register, point) in debug.arch.debugreg.iter_mut().zip(&self.hardware) {
                    *register = point.address;
                }
                debug.arch.debugreg[7] = dr7(&self.hardware);
            }
            if self.steps == Some(vcpu) {
                debug.control |= KVM_GUESTDBG_SINGLESTEP;
            }
            if own == Some(vcpu) {
                debug.control |= INJECT_BP;
            }
            self.hold
                .on(vcpu, move |fd| fd.set_guest_debug(&debug))?
                .map_err(|_| Fatal)?;
        }
        self.hold.go();
        Ok(())
    }

    /// The guest-physical address that is at `address` for a vCPU.
    fn translate(&self, vcpu: usize, address: u64) -> Result<Option<u64>> {
        let found = self
            .hold
            .on(vcpu, move |fd| fd.translate_gva(address))?
            .ok();
        Ok(found
            .filter(|found| found.valid != 0)
            .map(|found| found.physical_address))
    }

    /// Does something with each piece of the range that lies in one page, until it fails. How many bytes that were.
    fn pieces(
        &self,
        vcpu: usize,
        start: u64,
        length: usize,
        mut what: impl FnMut(&GuestMemoryMmap, u64, std::ops::Range<usize>) -> bool,
    ) -> Result<usize> {
        let mut done = 0;
        while done < length {
            let at = start.wrapping_add(done as u64);
            let count = (length - done).min((PAGE - at % PAGE) as usize);
            let Some(physical) = self.translate(vcpu, at)? else {
                break;
            };
            if !what(&self.memory, physical, done..done + count) {
                break;
            }
            done += count;
        }
        Ok(done)
    }

    /// Puts back what a breakpoint covers, unless the guest has.
    fn take_out(&self, point: &Software) {
        let at = GuestAddress(point.physical);
        if self
            .memory
            .read_obj::<u8>(at)
            .is_ok_and(|byte| byte == INT3)
        {
            let _ = self.memory.write_obj(point.byte, at);
        }
    }

    fn add_hardware(&mut self, point: Hardware) -> bool {
        let room = self.hardware.len() < MOST_HARDWARE;
        if room {
            self.hardware.push(point);
        }
        room
    }

    fn remove_hardware(&mut self, point: Hardware) -> bool {
        let found = self.hardware.iter().position(|have| *have == point);
        found.map(|index| self.hardware.remove(index)).is_some()
    }
}

/// Which debug register made the exit, if one did.
fn watched(hardware: &[Hardware], hit: &Hit) -> Option<Hardware> {
    if hit.info.exception != DB || hit.info.dr6 & STEP != 0 && hit.info.dr6 & 0xf == 0 {
        return None;
    }
    let points = hardware.iter().enumerate();
    points
        .filter(|(index, _)| hit.info.dr6 & 1 << index != 0)
        .map(|(_, point)| *point)
        .next()
}

impl Target for Debugged {
    type Arch = X86_64_SSE;
    type Error = Fatal;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debugged {
    fn read_registers(&mut self, out: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let read = self
            .hold
            .on(vcpu_of(tid), |fd| {
                Ok::<_, kvm_ioctls::Error>((fd.get_regs()?, fd.get_sregs()?, fd.get_fpu()?))
            })
            .map_err(|_| TargetError::Fatal(Fatal))?;
        let (regs, sregs, fpu) = read.map_err(|_| TargetError::NonFatal)?;
        *out = to_gdb(&regs, &sregs, &fpu);
        Ok(())
    }

    fn write_registers(&mut self, new: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let new = new.clone();
        let written = self
            .hold
            .on(vcpu_of(tid), move |fd| {
                let mut fpu = fd.get_fpu()?;
                from_gdb_fpu(&new, &mut fpu);
                fd.set_fpu(&fpu)?;
                fd.set_regs(&from_gdb(&new))
            })
            .map_err(|_| TargetError::Fatal(Fatal))?;
        written.map_err(|_| TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let length = data.len();
        let count = self
            .pieces(vcpu_of(tid), start, length, |memory, physical, range| {
                let piece = data.get_mut(range).unwrap_or_default();
                memory.read_slice(piece, GuestAddress(physical)).is_ok()
            })
            .map_err(TargetError::Fatal)?;
        if count == 0 && length != 0 {
            return Err(TargetError::NonFatal);
        }
        // What is under breakpoints.
        for point in &self.software {
            let at = point.address.wrapping_sub(start);
            if let Some(byte) = data.get_mut(at as usize).filter(|_| at < count as u64) {
                *byte = point.byte;
            }
        }
        Ok(count)
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let count = self
            .pieces(
                vcpu_of(tid),
                start,
                data.len(),
                |memory, physical, range| {
                    let piece = data.get(range).unwrap_or_default();
                    memory.write_slice(piece, GuestAddress(physical)).is_ok()
                },
            )
            .map_err(TargetError::Fatal)?;
        for point in &mut self.software {
            let at = point.address.wrapping_sub(start);
            if let Some(byte) = data.get(at as usize).filter(|_| at < count as u64) {
                point.byte = *byte;
                let _ = self.memory.write_obj(INT3, GuestAddress(point.physical));
            }
        }
        if count < data.len() {
            return Err(TargetError::NonFatal);
        }
        Ok(())
    }

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<()> {
        (0..self.hold.vcpus()).map(tid).for_each(each);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for Debugged {
    fn resume(&mut self) -> Result<()> {
        self.let_go(None)
    }

    fn clear_resume_actions(&mut self) -> Result<()> {
        self.steps = None;
        Ok(())
    }

    /// All go on that do not step. A guest has no signals.
    fn set_resume_action_continue(&mut self, _tid: Tid, _signal: Option<Signal>) -> Result<()> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debugged {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<()> {
        self.steps = Some(vcpu_of(tid));
        Ok(())
    }
}

impl Breakpoints for Debugged {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugged {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        let found = self
            .translate(self.current, address)
            .map_err(TargetError::Fatal)?;
        let Some(physical) = found else {
            return Ok(false);
        };
        let at = GuestAddress(physical);
        let Ok(byte) = self.memory.read_obj::<u8>(at) else {
            return Ok(false);
        };
        if self.memory.write_obj(INT3, at).is_err() {
            return Ok(false);
        }
        self.software.push(Software {
            address,
            physical,
            byte,
        });
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        let found = self.software.iter().position(|at| at.address == address);
        let Some(index) = found else {
            return Ok(false);
        };
        let point = self.software.remove(index);
        self.take_out(&point);
        Ok(true)
    }
}

impl HwBreakpoint for Debugged {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.add_hardware(Hardware {
            address,
            length: 1,
            watch: None,
        }))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_hardware(Hardware {
            address,
            length: 1,
            watch: None,
        }))
    }
}

impl HwWatchpoint for Debugged {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        if !matches!(length, 1 | 2 | 4 | 8) || address % length != 0 {
            return Ok(false);
        }
        Ok(self.add_hardware(Hardware {
            address,
            length,
            watch: Some(kind),
        }))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.remove_hardware(Hardware {
            address,
            length,
            watch: Some(kind),
        }))
    }
}

/// KVM's registers in gdb's order.
fn to_gdb(r: &kvm_regs, s: &kvm_sregs, fpu: &kvm_fpu) -> X86_64CoreRegs {
    let mut out = X86_64CoreRegs {
        regs: [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ],
        eflags: r.rflags as u32,
        rip: r.rip,
        ..Default::default()
    };
    let segments = &mut out.segments;
    (segments.cs, segments.ss, segments.ds) = (
        s.cs.selector.into(),
        s.ss.selector.into(),
        s.ds.selector.into(),
    );
    (segments.es, segments.fs, segments.gs) = (
        s.es.selector.into(),
        s.fs.selector.into(),
        s.gs.selector.into(),
    );
    for (to, from) in out.st.iter_mut().zip(&fpu.fpr) {
        to.copy_from_slice(&from[..10]);
    }
    for (to, from) in out.xmm.iter_mut().zip(&fpu.xmm) {
        *to = u128::from_le_bytes(*from);
    }
    out.fpu.fctrl = fpu.fcw.into();
    out.fpu.fstat = fpu.fsw.into();
    out.fpu.ftag = fpu.ftwx.into();
    out.fpu.fop = fpu.last_opcode.into();
    out.mxcsr = fpu.mxcsr;
    out
}

fn from_gdb(new: &X86_64CoreRegs) -> kvm_regs {
    let [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15] = new.regs;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: new.rip,
        rflags: new.eflags.into(),
    }
}

fn from_gdb_fpu(new: &X86_64CoreRegs, fpu: &mut kvm_fpu) {
    for (to, from) in fpu.fpr.iter_mut().zip(&new.st) {
        to[..10].copy_from_slice(from);
    }
    for (to, from) in fpu.xmm.iter_mut().zip(&new.xmm) {
        *to = from.to_le_bytes();
    }
    fpu.fcw = new.fpu.fctrl as u16;
    fpu.fsw = new.fpu.fstat as u16;
    fpu.ftwx = new.fpu.ftag as u8;
    fpu.last_opcode = new.fpu.fop as u16;
    fpu.mxcsr = new.mxcsr;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_registers() {
        let point = |length, watch| Hardware {
            address: 0x1000,
            length,
            watch,
        };
        assert_eq!(dr7(&[]), 0x400);
        assert_eq!(dr7(&[point(1, None)]), 0x401);
        assert_eq!(dr7(&[point(4, Some(WatchKind::Write))]), 0xd_0401);
        let two = [point(1, None), point(8, Some(WatchKind::ReadWrite))];
        assert_eq!(dr7(&two), 0xb0_0405);
    }

    #[test]
    fn registers_go_there_and_back() {
        let regs = kvm_regs {
            rax: 1,
            rbx: 2,
            rcx: 3,
            rdx: 4,
            rsi: 5,
            rdi: 6,
            rsp: 7,
            rbp: 8,
            r8: 9,
            r15: 16,
            rip: 17,
            rflags: 0x202,
            ..Default::default()
        };
        let fpu = kvm_fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            xmm: [[7; 16]; 16],
            ..Default::default()
        };
        let gdb = to_gdb(&regs, &kvm_sregs::default(), &fpu);
        assert_eq!((gdb.regs[6], gdb.regs[7]), (8, 7));
        assert_eq!(from_gdb(&gdb), regs);
        let mut back = kvm_fpu::default();
        from_gdb_fpu(&gdb, &mut back);
        assert_eq!(back, fpu);
    }
}
