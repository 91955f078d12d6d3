// SPDX-License-Identifier: GPL-2.0
//! A vCPU, and the file that stands for it (api.rst 4, "vcpu ioctls").
//!
//! All state is behind one mutex, which KVM_RUN holds for as long as it runs: an ioctl from another thread waits until it returns,
//! or until it is killed.

use crate::backend::{Groups, Interruptibility, VcpuBackend};
use crate::cpu::control;
use crate::cpu::cpuid::{self, CpuidEntry};
use crate::cpu::events;
use crate::cpu::regs::{cr0, DescTable, Seg, Segment};
use crate::cpu::xsave;
use crate::dev;
use crate::exit::{Event, EventKind, Exception};
use crate::irq::lapic::Action;
use crate::irq::lapic_timer::TimerArm;
use crate::ledger::{self, VcpuLedger};
use crate::linux::anon_inode::FileOperations;
use crate::linux::hrtimer::{self, Timer, TimerCallback};
use crate::linux::killable_mutex::KillableMutex;
use crate::linux::mmap::SharedPages;
use crate::linux::sched::{self, SignalMaskGuard};
use crate::mem::addr::Gva;
use crate::mem::gwalk;
use crate::mem::memory::FaultOutcome;
use crate::run::{self, Runner};
use crate::state::{self, Completion, MpState, State};
use crate::uapi::{self, k};
use crate::vcpu_more;
use crate::vcpu_set::{request, VcpuShared};
use crate::vm::Vm;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use kernel::fs::File;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::{Arc, ArcBorrow};
use kernel::uaccess::{UserPtr, UserSlice};

/// KVM_GET_VCPU_MMAP_SIZE: `kvm_run`, the port data page, the coalesced-MMIO ring.
pub(crate) const MMAP_BYTES: usize = (OWN_PAGES + 1) * 4096;
/// Of these the pages of one vCPU; the ring is the VM's.
const OWN_PAGES: usize = 2;
const _: () = assert!(k::KVM_COALESCED_MMIO_PAGE_OFFSET as usize == OWN_PAGES);

const _: () = {
    assert!(offset_of!(k::kvm_run, immediate_exit__unsafe) == run::off::IMMEDIATE_EXIT);
    assert!(offset_of!(k::kvm_run, exit_reason) == run::off::EXIT_REASON);
    assert!(offset_of!(k::kvm_run, ready_for_interrupt_injection) == run::off::READY_FOR_INTERRUPT);
    assert!(offset_of!(k::kvm_run, if_flag) == run::off::IF_FLAG);
    assert!(offset_of!(k::kvm_run, flags) == run::off::FLAGS);
    assert!(offset_of!(k::kvm_run, cr8) == run::off::CR8);
    assert!(offset_of!(k::kvm_run, apic_base) == run::off::APIC_BASE);
    assert!(offset_of!(k::kvm_run, __bindgen_anon_1) == run::off::UNION);
    assert!(offset_of!(k::kvm_run, kvm_valid_regs) == run::off::VALID_REGS);
    assert!(offset_of!(k::kvm_run, kvm_dirty_regs) == run::off::DIRTY_REGS);
    assert!(offset_of!(k::kvm_run, s) == run::off::SYNC_REGS);
};

/// The APIC timer of a vCPU: asks the vCPU to look at its local APIC.
pub(crate) struct ApicTimer(Arc<VcpuShared>);

impl TimerCallback for ApicTimer {
    fn expired(&self) -> Option<u64> {
        self.0.request(request::TIMER);
        None
    }
}

/// A vCPU.
#[pin_data]
pub(crate) struct Vcpu {
    /// What other CPUs may touch.
    pub(crate) shared: Arc<VcpuShared>,
    /// `kvm_run` and the other pages that user space maps.
    pub(crate) run: Arc<SharedPages>,
    /// Exit ledger.
    pub(crate) stats: Arc<VcpuLedger>,
    timer: Timer<ApicTimer>,
    #[pin]
    state: KillableMutex<State>,
}

impl Vcpu {
    /// A vCPU in RESET state.
    #[inline(never)]
    pub(crate) fn new(vm: &Vm, id: u32) -> Result<Arc<Self>> {
        let shared = VcpuShared::new(id)?;
        let run = SharedPages::with_tail(OWN_PAGES, Some(vm.chip.ring()))?;
        let stats = VcpuLedger::new(id)?;
        let timer = Timer::new(ApicTimer(shared.clone()))?;
        Arc::pin_init(
            try_pin_init!(Self {
                state <- KillableMutex::new(State::new(vm, &shared)?, static_lock_class!()),
                run,
                stats,
                timer,
                shared,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Sets a new vCPU's TSC going, together with the others'.
    pub(crate) fn start_tsc(&self, vm: &Vm) -> Result {
        let mut s = self.state.lock()?;
        // As in KVM not an error: the host may have lost the frequency since user space chose it.
        let _ = s.set_tsc_khz(vm.tsc_khz.load(Ordering::Relaxed));
        s.synchronize_tsc(vm, 0, false);
        Ok(())
    }

    /// Arms the APIC timer as the local APIC wants it.
    pub(crate) fn arm_timer(&self, s: &State) {
        let Some(l) = &s.lapic else { return };
        match l.timer_arm() {
            TimerArm::Off => {
                let _ = self.timer.try_cancel();
            }
            TimerArm::AtNs(ns) => self.timer.start_abs_ns(ns),
            TimerArm::AtTsc(deadline) => {
                // Early by what the way from the timer's interrupt to the guest takes.
                let left = deadline
                    .saturating_sub(s.tsc())
                    .saturating_sub(s.timer_advance);
                if left == 0 {
                    self.shared.request_self(request::TIMER);
                    return;
                }
                let khz = u64::from(s.tsc_rate_khz()).max(1);
                // left / khz milliseconds, without a product that overflows: the remainder is below 2^32.
                let ns = (left / khz)
                    .saturating_mul(1_000_000)
                    .saturating_add(left % khz * 1_000_000 / khz);
                self.timer
                    .start_abs_ns(hrtimer::ktime_get_ns().saturating_add(ns.min(u64::MAX / 4)));
            }
        }
    }

    /// Carries out what the local APIC asks for, but for EOIs.
    pub(crate) fn act(&self, vm: &Vm, s: &mut State, action: &Action) {
        if action.timer {
            self.arm_timer(s);
        }
        let Some(l) = &s.lapic else { return };
        if action.addr || action.base {
            self.shared.set_apic_addr(l.addr());
        }
        if action.lint0 {
            self.shared
                .set_lint0(l.lint0_accepts_extint(), l.lint0_is_nmi());
        }
        if let Some(message) = &action.ipi {
            let source = l.id();
            let _ = vm.chip.deliver(message, source);
        }
        if action.base {
            s.apic_moved(vm);
            s.refresh_dynamic();
        }
    }
}

/// The file of a vCPU.
pub(crate) struct VcpuFile {
    vm: Arc<Vm>,
    vcpu: Arc<Vcpu>,
}

impl VcpuFile {
    /// What a new file of `vcpu` refers to.
    pub(crate) fn new(vm: Arc<Vm>, vcpu: Arc<Vcpu>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { vm, vcpu }, GFP_KERNEL_ACCOUNT)?)
    }
}

#[vtable]
impl FileOperations for VcpuFile {
    const NAME: &'static CStr = c"kvm-vcpu";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.vm.check_mm()?;
        // KVM_RUN goes deep into the kernel (a nested fault may reclaim memory): not below the frame of all the others.
        if cmd == uapi::KVM_RUN {
            run(&this.vm, &this.vcpu, arg)
        } else {
            ioctl(&this.vm, &this.vcpu, cmd, arg)
        }
    }

    fn mmap(this: ArcBorrow<'_, Self>, vma: &VmaNew) -> Result {
        this.vcpu.run.map(vma)
    }
}

/// KVM_RUN.
fn run(vm: &Arc<Vm>, vcpu: &Arc<Vcpu>, arg: usize) -> Result<isize> {
    if arg != 0 {
        return Err(EINVAL);
    }
    let mut s = vcpu.state.lock()?;
    let _mask = s.signal_mask.map(SignalMaskGuard::new);
    Runner::new(vm, vcpu, &mut s).run()
}

/// The other vcpu ioctls. EINVAL is KVM's answer to a number that it does not know.
#[inline(never)]
fn ioctl(vm: &Arc<Vm>, vcpu: &Arc<Vcpu>, cmd: u32, arg: usize) -> Result<isize> {
    // Those that do not wait for a KVM_RUN under way.
    match cmd {
        uapi::KVM_INTERRUPT => {
            let irq = uapi::get::<k::kvm_interrupt>(arg)?;
            return interrupt(vm, vcpu, irq.irq);
        }
        uapi::KVM_GET_STATS_FD => return ledger::vcpu_stats_fd(vm, &vcpu.stats),
        _ => {}
    }
    let mut guard = vcpu.state.lock()?;
    let s = &mut *guard;
    if matches!(
        cmd,
        uapi::KVM_GET_LAPIC | uapi::KVM_GET_VCPU_EVENTS | uapi::KVM_GET_MP_STATE
    ) {
        Runner::new(vm, vcpu, s).settle();
    }
    match cmd {
        uapi::KVM_GET_REGS => uapi::put(arg, &get_regs(s))?,
        uapi::KVM_SET_REGS => set_regs(s, &uapi::get(arg)?),
        uapi::KVM_GET_SREGS => uapi::put(arg, &get_sregs(s))?,
        uapi::KVM_SET_SREGS => {
            let action = set_sregs(vm, vcpu, s, &uapi::get(arg)?, None)?;
            vcpu.act(vm, s, &action);
        }
        uapi::KVM_TRANSLATE => {
            let mut t = uapi::get::<k::kvm_translation>(arg)?;
            translate(vm, s, &mut t);
            uapi::put(arg, &t)?;
        }
        uapi::KVM_GET_MSRS => return get_msrs(vm, s, arg),
        uapi::KVM_SET_MSRS => return set_msrs(vm, vcpu, s, arg),
        uapi::KVM_GET_FPU => {
            let mut f = uapi::zeroed::<k::kvm_fpu>();
            let bytes: &mut [u8; xsave::KVM_FPU] =
                uapi::bytes_of_mut(&mut f).try_into().map_err(|_| EINVAL)?;
            let model = s.model;
            xsave::materialize(s.fpu.as_mut_slice(), &model.layout, xsave::X87_SSE);
            xsave::to_kvm_fpu(s.fpu.as_slice(), bytes);
            uapi::put(arg, &f)?;
        }
        uapi::KVM_SET_FPU => {
            let f = uapi::get::<k::kvm_fpu>(arg)?;
            let bytes: &[u8; xsave::KVM_FPU] = uapi::bytes_of(&f).try_into().map_err(|_| EINVAL)?;
            let model = s.model;
            xsave::materialize(s.fpu.as_mut_slice(), &model.layout, xsave::X87_SSE);
            xsave::from_kvm_fpu(s.fpu.as_mut_slice(), bytes, model.mxcsr_mask);
        }
        uapi::KVM_GET_XSAVE | uapi::KVM_GET_XSAVE2 => get_xsave(s, arg)?,
        uapi::KVM_GET_SREGS2 => vcpu_more::get_sregs2(vm, s, arg)?,
        uapi::KVM_SET_SREGS2 => vcpu_more::set_sregs2(vm, vcpu, s, arg)?,
        uapi::KVM_SET_SIGNAL_MASK => vcpu_more::set_signal_mask(s, arg)?,
        uapi::KVM_X86_SET_MCE => vcpu_more::set_mce(s, &uapi::get(arg)?)?,
        uapi::KVM_SET_XSAVE => set_xsave(s, arg)?,
        uapi::KVM_GET_XCRS if s.model.has_xsave => {
            let mut x = uapi::zeroed::<k::kvm_xcrs>();
            x.nr_xcrs = 1;
            x.xcrs[0].value = s.xcr0;
            uapi::put(arg, &x)?;
        }
        uapi::KVM_SET_XCRS if s.model.has_xsave => set_xcrs(s, &uapi::get(arg)?)?,
        uapi::KVM_GET_LAPIC => {
            let Some(l) = &s.lapic else {
                return Err(EINVAL);
            };
            let regs = l.get_state(
                vm.memory.vcpus.msi_format().ids_32bit,
                hrtimer::ktime_get_ns(),
            );
            let mut state = uapi::zeroed::<k::kvm_lapic_state>();
            let bytes = uapi::bytes_of_mut(&mut state);
            for (to, from) in bytes.chunks_exact_mut(16).zip(regs) {
                if let Some(word) = to.get_mut(..4) {
                    word.copy_from_slice(&from.to_le_bytes());
                }
            }
            uapi::put(arg, &state)?;
        }
        uapi::KVM_SET_LAPIC => {
            let Some(l) = &mut s.lapic else {
                return Err(EINVAL);
            };
            let state = uapi::get::<k::kvm_lapic_state>(arg)?;
            let mut regs = [0u32; 64];
            for (to, from) in regs.iter_mut().zip(uapi::bytes_of(&state).chunks_exact(16)) {
                if let Some(Ok(w)) = from.get(..4).map(TryInto::try_into) {
                    *to = u32::from_le_bytes(w);
                }
            }
            let action = l
                .set_state(
                    &regs,
                    vm.memory.vcpus.msi_format().ids_32bit,
                    hrtimer::ktime_get_ns(),
                )
                .map_err(|_| EINVAL)?;
            vcpu.act(vm, s, &action);
        }
        uapi::KVM_SET_CPUID => {
            let table = read_cpuid(arg, false)?;
            set_cpuid(vm, s, table)?;
        }
        uapi::KVM_SET_CPUID2 => {
            let table = read_cpuid(arg, true)?;
            set_cpuid(vm, s, table)?;
        }
        uapi::KVM_GET_CPUID2 => {
            let room = uapi::get::<u32>(arg)? as usize;
            if room < s.cpuid.len() {
                return Err(E2BIG);
            }
            let mut live = KVec::with_capacity(s.cpuid.len(), GFP_KERNEL_ACCOUNT)?;
            for e in s.cpuid.iter() {
                let [eax, ebx, ecx, edx] = s.dynamic.apply(e);
                live.push_within_capacity(CpuidEntry {
                    eax,
                    ebx,
                    ecx,
                    edx,
                    ..*e
                })
                .map_err(|_| ENOMEM)?;
            }
            uapi::put_cpuid(arg, &live)?;
        }
        uapi::KVM_SET_VAPIC_ADDR => {
            if s.lapic.is_none() {
                return Err(EINVAL);
            }
            let a = uapi::get::<k::kvm_vapic_addr>(arg)?;
            // A hint for CPUs without TPR shadow, not needed here; zero switches it off.
            if a.vapic_addr != 0 {
                let gpa = crate::mem::addr::Gpa(a.vapic_addr);
                vm.memory.view().hva(gpa, false).map_err(|_| EINVAL)?;
            }
        }
        uapi::KVM_GET_MP_STATE => {
            let mp_state = match s.mp_state {
                MpState::Halted if s.pv.unhalted => MpState::Runnable,
                state => state,
            };
            uapi::put(
                arg,
                &k::kvm_mp_state {
                    mp_state: mp_state as u32,
                },
            )?;
        }
        uapi::KVM_SET_MP_STATE => {
            set_mp_state(vcpu, s, uapi::get::<k::kvm_mp_state>(arg)?.mp_state)?
        }
        uapi::KVM_NMI => s.events.nmis = s.events.nmis.saturating_add(1).min(2),
        uapi::KVM_X86_SETUP_MCE => {
            let cap = uapi::get::<u64>(arg)?;
            s.msrs.setup_mce(cap, s.model.vendor).map_err(|_| EINVAL)?;
        }
        uapi::KVM_GET_VCPU_EVENTS => uapi::put(arg, &get_events(vm, vcpu, s))?,
        uapi::KVM_SET_VCPU_EVENTS => set_events(vm, vcpu, s, &uapi::get(arg)?)?,
        uapi::KVM_GET_DEBUGREGS => {
            let mut d = uapi::zeroed::<k::kvm_debugregs>();
            (d.db, d.dr7) = s.guest_breakpoints();
            d.dr6 = s.cpu.dr6;
            uapi::put(arg, &d)?;
        }
        uapi::KVM_SET_DEBUGREGS => {
            let d = uapi::get::<k::kvm_debugregs>(arg)?;
            if d.flags != 0 || d.dr6 >> 32 != 0 || d.dr7 >> 32 != 0 {
                return Err(EINVAL);
            }
            s.set_guest_breakpoints(d.db, d.dr7 & 0xffff_2bff | 0x400);
            s.cpu.dr6 = d.dr6 & 0x1e00f | 0xffff_0ff0;
        }
        uapi::KVM_KVMCLOCK_CTRL => crate::cpu::paravirt::guest_stopped(s)?,
        uapi::KVM_ENABLE_CAP => enable_cap(s, &uapi::get(arg)?)?,
        uapi::KVM_PRE_FAULT_MEMORY => return pre_fault(vm, arg),
        uapi::KVM_SET_DEVICE_ATTR | uapi::KVM_GET_DEVICE_ATTR | uapi::KVM_HAS_DEVICE_ATTR => {
            device_attr(vm, vcpu, s, cmd, &uapi::get(arg)?)?;
        }
        uapi::KVM_GET_TSC_KHZ => return Ok(s.tsc_khz as isize),
        uapi::KVM_SET_GUEST_DEBUG => s.set_guest_debug(vm, &uapi::get(arg)?)?,
        uapi::KVM_SET_TSC_KHZ => {
            s.set_tsc_khz(state::wanted_tsc_khz(arg)?)?;
            vcpu.arm_timer(s);
        }
        uapi::RVMM_GET_ENTRY_FAILURE => match &s.entry_failure {
            Some(f) => uapi::put(arg, f)?,
            None => return Err(ENODATA),
        },
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// KVM_INTERRUPT (api.rst 4.16): a vector from an interrupt controller in user space.
fn interrupt(vm: &Vm, vcpu: &Vcpu, irq: u32) -> Result<isize> {
    let vector = u8::try_from(irq).map_err(|_| EINVAL)?;
    if vm.chip.has_pic() {
        return Err(ENXIO);
    }
    let mut s = vcpu.state.lock()?;
    if s.lapic.is_some() && s.events.external.is_some() {
        return Err(EEXIST);
    }
    s.events.external = Some(vector);
    Ok(0)
}

/// KVM_ENABLE_CAP (api.rst 7.1).
fn enable_cap(s: &mut State, cap: &k::kvm_enable_cap) -> Result {
    if cap.flags != 0 {
        return Err(EINVAL);
    }
    match cap.cap {
        k::KVM_CAP_ENFORCE_PV_FEATURE_CPUID => s.pv.enforce = cap.args[0] != 0,
        _ => return Err(EINVAL),
    }
    Ok(())
}

/// KVM_PRE_FAULT_MEMORY (api.rst 4.143).
fn pre_fault(vm: &Vm, arg: usize) -> Result<isize> {
    let mut range = uapi::get::<k::kvm_pre_fault_memory>(arg)?;
    let aligned = (range.gpa | range.size) & 0xfff == 0;
    let ends = range.gpa.checked_add(range.size);
    if range.flags != 0 || !aligned || ends.is_none_or(|end| end <= range.gpa) {
        uapi::put(arg, &range)?;
        return Err(EINVAL);
    }
    let whole = range.size;
    let mut result = Ok(0);
    while range.size != 0 {
        if sched::signal_pending() {
            result = Err(EINTR);
            break;
        }
        let gpa = crate::mem::addr::Gpa(range.gpa);
        match vm.memory.fault(vm.mm(), gpa, false, false) {
            Ok(FaultOutcome::Resume) => {}
            Ok(FaultOutcome::Mmio) => result = Err(ENOENT),
            Ok(FaultOutcome::BadUserMemory) => result = Err(EFAULT),
            Err(e) => result = Err(e),
        }
        if result.is_err() {
            break;
        }
        range.gpa += 4096;
        range.size -= 4096;
        sched::cond_resched();
    }
    uapi::put(arg, &range)?;
    if range.size == whole {
        result
    } else {
        Ok(0)
    }
}

/// KVM_SET_DEVICE_ATTR and its sisters on a vCPU (kernel document virt/kvm/devices/vcpu.rst 4): the TSC's offset.
fn device_attr(vm: &Vm, vcpu: &Vcpu, s: &mut State, cmd: u32, a: &k::kvm_device_attr) -> Result {
    if a.group != k::KVM_VCPU_TSC_CTRL || a.attr != u64::from(k::KVM_VCPU_TSC_OFFSET) {
        return Err(ENXIO);
    }
    match cmd {
        uapi::KVM_GET_DEVICE_ATTR => uapi::put(a.addr as usize, &s.tsc_offset)?,
        uapi::KVM_SET_DEVICE_ATTR => {
            s.restore_tsc_offset(vm, uapi::get(a.addr as usize)?);
            // The timer's deadline is in guest TSC.
            vcpu.arm_timer(s);
        }
        _ => {}
    }
    Ok(())
}

pub(crate) fn get_regs(s: &State) -> k::kvm_regs {
    let g = &s.cpu.regs.gpr;
    k::kvm_regs {
        rax: g[0],
        rcx: g[1],
        rdx: g[2],
        rbx: g[3],
        rsp: g[4],
        rbp: g[5],
        rsi: g[6],
        rdi: g[7],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: s.cpu.regs.rip,
        rflags: s.visible_rflags(),
    }
}

/// User space moved the vCPU elsewhere: what its last exit left open belongs to an instruction that it is not at any more. A
/// reset that an OUT asked for comes this way. (KVM compares the linear address as well.)
fn moved(s: &mut State) {
    s.completion = Completion::Nothing;
    s.insn = None;
    s.replay.clear();
}

pub(crate) fn set_regs(s: &mut State, r: &k::kvm_regs) {
    if r.rip != s.cpu.regs.rip {
        moved(s);
    }
    s.cpu.regs.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    s.cpu.regs.rip = r.rip;
    s.set_visible_rflags(run::clean_rflags(r.rflags));
    // An exception that has not been delivered belongs to the state that is gone (as in KVM).
    s.events.exception = None;
}

fn to_kvm_segment(x: &Segment) -> k::kvm_segment {
    k::kvm_segment {
        base: x.base,
        limit: x.limit,
        selector: x.selector,
        type_: x.typ,
        present: x.present.into(),
        dpl: x.dpl,
        db: x.db.into(),
        s: x.s.into(),
        l: x.l.into(),
        g: x.g.into(),
        avl: x.avl.into(),
        unusable: x.unusable.into(),
        padding: 0,
    }
}

fn from_kvm_segment(x: &k::kvm_segment) -> Segment {
    Segment {
        base: x.base,
        limit: x.limit,
        selector: x.selector,
        typ: x.type_ & 15,
        s: x.s != 0,
        dpl: x.dpl & 3,
        present: x.present != 0,
        avl: x.avl != 0,
        l: x.l != 0,
        db: x.db != 0,
        g: x.g != 0,
        unusable: x.unusable != 0 || x.present == 0,
    }
}

pub(crate) fn get_sregs(s: &mut State) -> k::kvm_sregs {
    s.load(Groups::ALL);
    let x = &s.cpu.sregs;
    let mut r = uapi::zeroed::<k::kvm_sregs>();
    r.cs = to_kvm_segment(x.seg(Seg::Cs));
    r.ds = to_kvm_segment(x.seg(Seg::Ds));
    r.es = to_kvm_segment(x.seg(Seg::Es));
    r.fs = to_kvm_segment(x.seg(Seg::Fs));
    r.gs = to_kvm_segment(x.seg(Seg::Gs));
    r.ss = to_kvm_segment(x.seg(Seg::Ss));
    r.tr = to_kvm_segment(x.seg(Seg::Tr));
    r.ldt = to_kvm_segment(x.seg(Seg::Ldtr));
    r.gdt.base = x.gdt.base;
    r.gdt.limit = x.gdt.limit;
    r.idt.base = x.idt.base;
    r.idt.limit = x.idt.limit;
    r.cr0 = x.cr0;
    r.cr2 = x.cr2;
    r.cr3 = x.cr3;
    r.cr4 = x.cr4;
    r.efer = x.efer;
    r.cr8 = u64::from(s.cr8());
    r.apic_base = s.lapic.as_ref().map_or(s.apic_base, |l| l.apic_base());
    if let Some(Event {
        kind: EventKind::ExternalInterrupt,
        vector,
        ..
    }) = s.events.interrupted
    {
        set_bit(&mut r.interrupt_bitmap, vector);
    } else if let Some(v) = s.events.external {
        if s.lapic.is_none() {
            set_bit(&mut r.interrupt_bitmap, v);
        }
    }
    r
}

fn set_bit(bitmap: &mut [u64; 4], n: u8) {
    if let Some(w) = bitmap.get_mut(usize::from(n >> 6)) {
        *w |= 1 << (n & 63);
    }
}

pub(crate) fn set_sregs(
    vm: &Vm,
    vcpu: &Vcpu,
    s: &mut State,
    r: &k::kvm_sregs,
    pdptes: Option<[u64; 4]>,
) -> Result<Action> {
    s.load(Groups::CODE);
    if r.cs.base != s.cpu.sregs.seg(Seg::Cs).base {
        moved(s);
    }
    let mut x = s.cpu.sregs;
    for (seg, from) in [
        (Seg::Cs, &r.cs),
        (Seg::Ds, &r.ds),
        (Seg::Es, &r.es),
        (Seg::Fs, &r.fs),
        (Seg::Gs, &r.gs),
        (Seg::Ss, &r.ss),
        (Seg::Tr, &r.tr),
        (Seg::Ldtr, &r.ldt),
    ] {
        *x.seg_mut(seg) = from_kvm_segment(from);
    }
    x.gdt = DescTable {
        base: r.gdt.base,
        limit: r.gdt.limit,
    };
    x.idt = DescTable {
        base: r.idt.base,
        limit: r.idt.limit,
    };
    x.cr0 = r.cr0;
    x.cr2 = r.cr2;
    x.cr3 = r.cr3;
    x.cr4 = r.cr4;
    x.efer = r.efer;
    control::sregs_valid(&x, &s.features).map_err(|_| EINVAL)?;
    let mut action = Action::NONE;
    match &mut s.lapic {
        Some(l) => {
            action = l.set_apic_base(r.apic_base, true).map_err(|_| EINVAL)?;
            l.set_cr8(r.cr8 as u8 & 15);
        }
        None => {
            s.check_apic_base(r.apic_base).ok_or(EINVAL)?;
            s.apic_base = r.apic_base;
            s.cr8 = r.cr8 as u8 & 15;
        }
    }
    x.cr0 |= cr0::ET;
    s.cpu.sregs = x;
    s.cpu.avail = Groups::ALL;
    s.cpu.dirty = Groups::ALL;
    s.tlb_seen = 0;
    s.refresh_dynamic();
    if s.cpu.sregs.pae_paging() {
        // User space may set the registers before memory: what cannot be read now is taken as not present.
        let pdptes = pdptes
            .or_else(|| s.read_pdptes(vm, s.cpu.sregs.cr3, false).ok())
            .unwrap_or([0; 4]);
        s.hw.set_pdptes(pdptes);
    }
    let pending = r
        .interrupt_bitmap
        .iter()
        .zip(0u32..)
        .find(|(w, _)| **w != 0)
        .map(|(w, i)| i * 64 + w.trailing_zeros());
    if let Some(v) = pending {
        s.events.interrupted = Some(events::interrupt_event(v as u8));
    }
    // A vCPU put at the reset vector in real mode starts there (as in KVM), also an AP.
    if vcpu.shared.id == vm.boot_cpu()
        && s.cpu.regs.rip == 0xfff0
        && x.seg(Seg::Cs).selector == 0xf000
        && x.cr0 & cr0::PE == 0
    {
        s.mp_state = MpState::Runnable;
    }
    Ok(action)
}

fn translate(vm: &Vm, s: &mut State, t: &mut k::kvm_translation) {
    struct Reader<'a, 'b>(&'a crate::mem::memory::MemoryView<'b>);
    impl gwalk::GuestRead for Reader<'_, '_> {
        type Error = ();
        fn read_u32(&mut self, gpa: crate::mem::addr::Gpa) -> Result<u32, ()> {
            let mut b = [0; 4];
            self.0.read(gpa, &mut b).map_err(|_| ())?;
            Ok(u32::from_le_bytes(b))
        }
        fn read_u64(&mut self, gpa: crate::mem::addr::Gpa) -> Result<u64, ()> {
            let mut b = [0; 8];
            self.0.read(gpa, &mut b).map_err(|_| ())?;
            Ok(u64::from_le_bytes(b))
        }
        fn set_ad(&mut self, _: crate::mem::addr::Gpa, _: u64, _: u64, _: u8) -> Result<bool, ()> {
            Err(())
        }
    }
    let paging = s.paging();
    let view = vm.memory.view();
    let found = paging.probe(
        &mut Reader(&view),
        Gva(t.linear_address),
        gwalk::Access::implicit(false),
    );
    t.valid = found.is_ok().into();
    t.physical_address = found.map_or(u64::MAX, |x| x.gpa.0);
    t.writeable = 1;
    t.usermode = 0;
}

/// Calls `f` for each entry of a `struct kvm_msrs` until it says false; how many were done.
pub(crate) fn each_msr(
    arg: usize,
    write_back: bool,
    mut f: impl FnMut(&mut k::kvm_msr_entry) -> bool,
) -> Result<isize> {
    const HEADER: usize = 8;
    /// KVM's MAX_IO_MSRS.
    const MAX: u32 = 256;
    let n = uapi::get::<u32>(arg)?;
    if n >= MAX {
        return Err(E2BIG);
    }
    for i in 0..n as usize {
        let at = uapi::element::<k::kvm_msr_entry>(arg, HEADER, i)?;
        let mut e = uapi::get::<k::kvm_msr_entry>(at)?;
        if !f(&mut e) {
            return Ok(i as isize);
        }
        if write_back {
            uapi::put(at, &e)?;
        }
    }
    Ok(n as isize)
}

fn get_msrs(vm: &Vm, s: &mut State, arg: usize) -> Result<isize> {
    each_msr(arg, true, |e| match s.read_msr(vm, e.index, true) {
        Some(v) => {
            e.data = v;
            true
        }
        // What is listed can be read, and zero written, also by a vCPU that does not have it (as in KVM).
        None if dev::lists_msr(e.index) => {
            e.data = 0;
            true
        }
        None => false,
    })
}

fn set_msrs(vm: &Vm, vcpu: &Vcpu, s: &mut State, arg: usize) -> Result<isize> {
    each_msr(arg, false, |e| {
        match s.write_msr(vm, e.index, e.data, true) {
            Some(action) => {
                vcpu.act(vm, s, &action);
                true
            }
            None => e.data == 0 && dev::lists_msr(e.index),
        }
    })
}

/// Offset of XSAVE component 9 (PKRU) in the standard format.
fn pkru_offset(s: &State) -> Option<usize> {
    s.model
        .layout
        .component(9)
        .filter(|_| s.model.pku)
        .map(|(offset, _)| offset as usize)
}

pub(crate) fn get_xsave(s: &mut State, arg: usize) -> Result {
    let mut image = KVec::from_elem(0u8, 4096, GFP_KERNEL_ACCOUNT)?;
    let n = s.fpu.as_slice().len().min(4096);
    if let (Some(to), Some(from)) = (image.get_mut(..n), s.fpu.as_slice().get(..n)) {
        to.copy_from_slice(from);
    }
    // XSAVE of a processor may report components as in use that guests are not offered.
    let mut bv = xsave::xstate_bv(&image) & s.model.xcr0;
    // PKRU is kept apart from the area.
    if let Some(to) = pkru_offset(s).and_then(|o| image.get_mut(o..o + 4)) {
        to.copy_from_slice(&s.pkru.to_le_bytes());
        bv |= xsave::PKRU;
    }
    xsave::set_xstate_bv(&mut image, bv);
    UserSlice::new(UserPtr::from_addr(arg), 4096)
        .writer()
        .write_slice(&image)
}

fn set_xsave(s: &mut State, arg: usize) -> Result {
    let mut image = KVec::from_elem(0u8, 4096, GFP_KERNEL_ACCOUNT)?;
    UserSlice::new(UserPtr::from_addr(arg), 4096)
        .reader()
        .read_slice(&mut image)?;
    // MXCSR counts only with a component that it belongs to; XRSTOR would take it in any case.
    if xsave::xstate_bv(&image) & xsave::MXCSR_COMPONENTS == 0 {
        if let (Some(to), Some(from)) = (image.get_mut(24..28), s.fpu.as_slice().get(24..28)) {
            to.copy_from_slice(from);
        }
    }
    xsave::check_image(&image, &s.model.layout, s.model.xcr0, s.model.mxcsr_mask)
        .map_err(|_| EINVAL)?;
    let bv = xsave::xstate_bv(&image);
    if bv & xsave::PKRU != 0 {
        if let Some(Ok(b)) = pkru_offset(s)
            .and_then(|o| image.get(o..o + 4))
            .map(TryInto::try_into)
        {
            s.pkru = u32::from_le_bytes(b);
        }
    } else {
        s.pkru = 0;
    }
    xsave::set_xstate_bv(&mut image, bv & !xsave::PKRU);
    let n = s.fpu.as_slice().len().min(4096);
    if let (Some(to), Some(from)) = (s.fpu.as_mut_slice().get_mut(..n), image.get(..n)) {
        to.copy_from_slice(from);
    }
    Ok(())
}

fn set_xcrs(s: &mut State, x: &k::kvm_xcrs) -> Result {
    if x.nr_xcrs as usize > x.xcrs.len() || x.flags != 0 {
        return Err(EINVAL);
    }
    for e in x.xcrs.iter().take(x.nr_xcrs as usize) {
        if e.xcr == 0 {
            // x87 is there without XSAVE in the CPUID table, as on KVM.
            if !xsave::xcr0_valid(e.value, s.allowed_xcr0() | xsave::X87) {
                return Err(EINVAL);
            }
            s.xcr0 = e.value;
            s.refresh_dynamic();
            break;
        }
    }
    Ok(())
}

/// Reads a CPUID table, of entries with sub-leaves (`struct kvm_cpuid2`) or without. EFAULT, E2BIG.
fn read_cpuid(arg: usize, subleaves: bool) -> Result<KVec<CpuidEntry>> {
    /// `struct kvm_cpuid_entry`: function, EAX to EDX, padding.
    type Plain = [u32; 6];
    let n = uapi::get::<u64>(arg)? as u32 as usize;
    if n > dev::MAX_CPUID_ENTRIES {
        return Err(E2BIG);
    }
    let mut table = KVec::with_capacity(n, GFP_KERNEL_ACCOUNT)?;
    for i in 0..n {
        if !subleaves {
            let mut e: Plain = [0; 6];
            for (j, word) in e.iter_mut().enumerate() {
                *word = uapi::get(uapi::element::<u32>(arg, 8, 6 * i + j)?)?;
            }
            let entry = CpuidEntry {
                function: e[0],
                eax: e[1],
                ebx: e[2],
                ecx: e[3],
                edx: e[4],
                ..CpuidEntry::default()
            };
            table.push_within_capacity(entry).map_err(|_| ENOMEM)?;
            continue;
        }
        let e = uapi::get::<k::kvm_cpuid_entry2>(uapi::element::<k::kvm_cpuid_entry2>(arg, 8, i)?)?;
        let entry = CpuidEntry {
            function: e.function,
            index: e.index,
            flags: e.flags,
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            padding: [0; 3],
        };
        table.push_within_capacity(entry).map_err(|_| ENOMEM)?;
    }
    Ok(table)
}

fn set_cpuid(vm: &Vm, s: &mut State, mut table: KVec<CpuidEntry>) -> Result {
    cpuid::check_table(&table).map_err(|e| match e {
        cpuid::TableError::TooMany => E2BIG,
        cpuid::TableError::LinearWidth => EINVAL,
    })?;
    if s.has_run {
        // The same again is allowed, with the bits that follow registers as they were or as they are now.
        let same = |(a, b): (&CpuidEntry, &CpuidEntry)| {
            (a.function, a.index, a.flags) == (b.function, b.index, b.flags)
                && s.dynamic.apply(a) == s.dynamic.apply(b)
        };
        if table.len() != s.cpuid.len() || !table.iter().zip(s.cpuid.iter()).all(same) {
            return Err(EINVAL);
        }
        return Ok(());
    }
    // Nobody can be woken from a HLT that does not exit.
    if vm.caps.disabled_exits() & u64::from(k::KVM_X86_DISABLE_EXITS_HLT) != 0 {
        cpuid::hide_pv_unhalt(&mut table);
    }
    s.mwait_follows = !vm.caps.quirk(k::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT);
    s.set_cpuid(vm, table);
    Ok(())
}

fn set_mp_state(vcpu: &Vcpu, s: &mut State, value: u32) -> Result {
    let state = match value {
        k::KVM_MP_STATE_RUNNABLE => MpState::Runnable,
        // The others exist only with a local APIC in the kernel (api.rst 4.39).
        _ if s.lapic.is_none() => return Err(EINVAL),
        k::KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        k::KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        k::KVM_MP_STATE_HALTED => MpState::Halted,
        k::KVM_MP_STATE_SIPI_RECEIVED => {
            s.mp_state = MpState::InitReceived;
            vcpu.shared.request_self(request::SIPI);
            return Ok(());
        }
        _ => return Err(EINVAL),
    };
    s.mp_state = state;
    Ok(())
}

pub(crate) fn get_events(vm: &Vm, vcpu: &Vcpu, s: &mut State) -> k::kvm_vcpu_events {
    let i = s.hw.interruptibility();
    let mut e = uapi::zeroed::<k::kvm_vcpu_events>();
    let payloads = vm.exception_payload.load(Ordering::Relaxed);
    if !payloads {
        s.deliver_payload();
    }
    let exception = s.events.exception.map(|x| (x.vector, x.error_code));
    let (mut injected, mut interrupt) = (exception, None);
    match s.events.interrupted {
        Some(Event {
            kind: EventKind::ExternalInterrupt,
            vector,
            ..
        }) => interrupt = Some((vector, false)),
        Some(Event {
            kind: EventKind::SoftwareInterrupt,
            vector,
            ..
        }) => interrupt = Some((vector, true)),
        Some(Event {
            kind: EventKind::Nmi,
            ..
        }) => e.nmi.injected = 1,
        Some(Event {
            vector, error_code, ..
        }) => injected = Some((vector, error_code)),
        None => {}
    }
    if let Some((nr, code)) = injected {
        // Where payloads are asked for, an exception that is yet to be delivered is told apart from one whose delivery was
        // interrupted.
        let pending = payloads && s.events.interrupted.is_none();
        e.exception.injected = u8::from(!pending);
        e.exception.pending = pending.into();
        if let (true, Some(x)) = (pending, s.events.exception) {
            e.exception_has_payload = x.has_payload().into();
            e.exception_payload = x.payload;
        }
        e.exception.nr = nr;
        e.exception.has_error_code = code.is_some().into();
        e.exception.error_code = code.unwrap_or(0);
    }
    if let Some((nr, soft)) = interrupt {
        e.interrupt.injected = u8::from(!soft);
        e.interrupt.soft = soft.into();
        e.interrupt.nr = nr;
    }
    e.interrupt.shadow = u8::from(i.sti) * k::KVM_X86_SHADOW_INT_STI as u8
        | u8::from(i.mov_ss) * k::KVM_X86_SHADOW_INT_MOV_SS as u8;
    e.nmi.pending = s
        .events
        .nmis
        .saturating_add(vcpu.shared.nmi.load(Ordering::Relaxed).min(2) as u8)
        .min(2);
    e.nmi.masked = i.nmi.into();
    e.flags = k::KVM_VCPUEVENT_VALID_NMI_PENDING
        | k::KVM_VCPUEVENT_VALID_SHADOW
        | k::KVM_VCPUEVENT_VALID_SMM;
    if payloads {
        e.flags |= k::KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    if vm.triple_fault_event.load(Ordering::Relaxed) {
        e.flags |= k::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        e.triple_fault.pending = s.events.triple_fault.into();
    }
    e
}

pub(crate) fn set_events(vm: &Vm, vcpu: &Vcpu, s: &mut State, e: &k::kvm_vcpu_events) -> Result {
    const KNOWN: u32 = k::KVM_VCPUEVENT_VALID_NMI_PENDING
        | k::KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | k::KVM_VCPUEVENT_VALID_SHADOW
        | k::KVM_VCPUEVENT_VALID_SMM
        | k::KVM_VCPUEVENT_VALID_PAYLOAD
        | k::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    let flag = |f: u32| e.flags & f != 0;
    let smm = e.smi.smm | e.smi.pending | e.smi.smm_inside_nmi != 0;
    let with_payload = flag(k::KVM_VCPUEVENT_VALID_PAYLOAD);
    let with_triple_fault = flag(k::KVM_VCPUEVENT_VALID_TRIPLE_FAULT);
    if flag(!KNOWN)
        || with_payload && !vm.exception_payload.load(Ordering::Relaxed)
        || with_triple_fault && !vm.triple_fault_event.load(Ordering::Relaxed)
        || flag(k::KVM_VCPUEVENT_VALID_SMM) && smm
    {
        return Err(EINVAL);
    }
    let pending = with_payload && e.exception.pending != 0;
    let exception = e.exception.injected != 0 || pending;
    if exception && (e.exception.nr > 31 || e.exception.nr == events::vector::NMI) {
        return Err(EINVAL);
    }
    let mut i = s.hw.interruptibility();
    s.events.interrupted = if exception {
        None
    } else if e.interrupt.injected != 0 {
        Some(events::interrupt_event(e.interrupt.nr))
    } else if e.nmi.injected != 0 {
        Some(events::nmi_event())
    } else {
        None
    };
    s.events.exception = exception.then(|| Exception {
        vector: e.exception.nr,
        error_code: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
        payload: match e.exception.nr {
            _ if pending && e.exception_has_payload != 0 => e.exception_payload,
            events::vector::PF => s.cpu.sregs.cr2,
            _ => 0,
        },
    });
    if let Some(x) = s
        .events
        .exception
        .filter(|x| x.vector == events::vector::PF)
    {
        s.cpu.sregs.cr2 = x.payload;
    }
    if with_triple_fault {
        s.events.triple_fault = e.triple_fault.pending != 0;
    }
    if flag(k::KVM_VCPUEVENT_VALID_SMM) && s.lapic.is_some() {
        if e.smi.latched_init != 0 {
            vcpu.shared.request_self(request::INIT);
        } else {
            let _ = vcpu.shared.take_requests(request::INIT);
        }
    }
    if e.flags & k::KVM_VCPUEVENT_VALID_SHADOW != 0 {
        i.sti = u32::from(e.interrupt.shadow) & k::KVM_X86_SHADOW_INT_STI != 0;
        i.mov_ss = u32::from(e.interrupt.shadow) & k::KVM_X86_SHADOW_INT_MOV_SS != 0;
    }
    i.nmi = e.nmi.masked != 0;
    s.hw.set_interruptibility(Interruptibility {
        sti: i.sti,
        mov_ss: i.mov_ss,
        nmi: i.nmi,
    });
    if e.flags & k::KVM_VCPUEVENT_VALID_NMI_PENDING != 0 {
        vcpu.shared.nmi.store(0, Ordering::Relaxed);
        s.events.nmis = e.nmi.pending.min(2);
    }
    if e.flags & k::KVM_VCPUEVENT_VALID_SIPI_VECTOR != 0 && s.lapic.is_some() {
        vcpu.shared.sipi.store(e.sipi_vector, Ordering::Relaxed);
    }
    Ok(())
}
