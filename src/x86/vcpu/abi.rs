// SPDX-License-Identifier: GPL-2.0
//! The state of a vCPU as user space reads and writes it: by the ioctls, and by the shared page (api.rst 5,
//! KVM_CAP_SYNC_REGS).

use crate::abi::uapi;
use crate::abi::uapi::{k, Uapi};
use crate::linux::mmap::Shared;
use crate::mem::addr::Gva;
use crate::x86::cpu::control;
use crate::x86::cpu::cpuid;
use crate::x86::cpu::cpuid::CpuidEntry;
use crate::x86::cpu::events;
use crate::x86::cpu::mce::{MachineCheck, MachineCheckEffect};
use crate::x86::cpu::model;
use crate::x86::cpu::regs::{cr0, cr4, DescTable, Seg, Segment};
use crate::x86::cpu::xsave;
use crate::x86::exit::{Event, EventKind, Exception};
use crate::x86::irqchip::lapic::Action;
use crate::x86::paging::gwalk;
use crate::x86::run;
use crate::x86::run::off;
use crate::x86::shared::request;
use crate::x86::vcpu::state::{Completion, MpState, State};
use crate::x86::vcpu::{RunPages, Vcpu};
use crate::x86::vendor::{Groups, Interruptibility, VcpuBackend};
use crate::x86::vm::Vm;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

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

pub(crate) fn translate(vm: &Vm, s: &mut State, t: &mut k::kvm_translation) {
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
    // All ones are KVM's word for none, also without paging, where every other address is found.
    t.physical_address = if s.cpu.sregs.cr0 & cr0::PG == 0 {
        t.linear_address
    } else {
        let view = vm.memory.view();
        let access = gwalk::Access::implicit(false);
        let found = paging.probe(&mut Reader(&view), Gva(t.linear_address), access);
        found.map_or(u64::MAX, |x| x.gpa.0)
    };
    t.valid = (t.physical_address != u64::MAX).into();
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

pub(crate) fn get_msrs(vm: &Vm, s: &mut State, arg: usize) -> Result<isize> {
    each_msr(arg, true, |e| match s.read_msr(vm, e.index, true) {
        Some(v) => {
            e.data = v;
            true
        }
        // What is listed can be read, and zero written, also by a vCPU that does not have it (as in KVM).
        None if model::lists_msr(e.index) => {
            e.data = 0;
            true
        }
        None => false,
    })
}

pub(crate) fn set_msrs(vm: &Vm, vcpu: &Vcpu, s: &mut State, arg: usize) -> Result<isize> {
    each_msr(arg, false, |e| {
        match s.write_msr(vm, e.index, e.data, true) {
            Some(action) => {
                vcpu.act(vm, s, &action);
                true
            }
            None => e.data == 0 && model::lists_msr(e.index),
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

pub(crate) fn set_xsave(s: &mut State, arg: usize) -> Result {
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

pub(crate) fn set_xcrs(s: &mut State, x: &k::kvm_xcrs) -> Result {
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
pub(crate) fn read_cpuid(arg: usize, subleaves: bool) -> Result<KVec<CpuidEntry>> {
    /// `struct kvm_cpuid_entry`: function, EAX to EDX, padding.
    type Plain = [u32; 6];
    let n = uapi::get::<u64>(arg)? as u32 as usize;
    if n > cpuid::MAX_ENTRIES {
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

pub(crate) fn set_cpuid(vm: &Vm, s: &mut State, mut table: KVec<CpuidEntry>) -> Result {
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

pub(crate) fn set_mp_state(vcpu: &Vcpu, s: &mut State, value: u32) -> Result {
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
        .saturating_add(vcpu.shared.arch.nmi.load(Ordering::Relaxed).min(2) as u8)
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
        vcpu.shared.arch.nmi.store(0, Ordering::Relaxed);
        s.events.nmis = e.nmi.pending.min(2);
    }
    if e.flags & k::KVM_VCPUEVENT_VALID_SIPI_VECTOR != 0 && s.lapic.is_some() {
        vcpu.shared
            .arch
            .sipi
            .store(e.sipi_vector, Ordering::Relaxed);
    }
    Ok(())
}

/// KVM_GET_SREGS2 (api.rst 4.134).
#[inline(never)]
pub(crate) fn get_sregs2(vm: &Vm, s: &mut State, arg: usize) -> Result {
    let r = get_sregs(s);
    let mut out = uapi::zeroed::<k::kvm_sregs2>();
    copy_common(&r, &mut out);
    if s.cpu.sregs.pae_paging() {
        let pdptes = match s.hw.pdptes() {
            Some(p) => p,
            None => s.read_pdptes(vm, r.cr3, false).unwrap_or([0; 4]),
        };
        out.pdptrs = pdptes;
        out.flags = u64::from(k::KVM_SREGS2_FLAGS_PDPTRS_VALID);
    }
    uapi::put(arg, &out)
}

/// The fields from `cs` to `apic_base`, with which both structures begin.
const COMMON: usize = offset_of!(k::kvm_sregs, interrupt_bitmap);
const _: () = assert!(COMMON == offset_of!(k::kvm_sregs2, flags));

fn copy_common<F: Uapi, T: Uapi>(from: &F, to: &mut T) {
    let to = uapi::bytes_of_mut(to).iter_mut();
    for (to, from) in to.zip(uapi::bytes_of(from)).take(COMMON) {
        *to = *from;
    }
}

/// KVM_SET_SREGS2 (api.rst 4.135). EINVAL also for unknown flags, and for PDPTEs without PAE paging.
#[inline(never)]
pub(crate) fn set_sregs2(vm: &Vm, vcpu: &Vcpu, s: &mut State, arg: usize) -> Result {
    const VALID: u64 = k::KVM_SREGS2_FLAGS_PDPTRS_VALID as u64;
    let from = uapi::get::<k::kvm_sregs2>(arg)?;
    let mut r = uapi::zeroed::<k::kvm_sregs>();
    copy_common(&from, &mut r);
    let pae = from.cr0 & crate::x86::cpu::regs::cr0::PG != 0
        && from.cr4 & cr4::PAE != 0
        && from.efer & crate::x86::cpu::regs::efer::LMA == 0;
    let pdptes = (from.flags & VALID != 0).then_some(from.pdptrs);
    if from.flags & !VALID != 0 || pdptes.is_some() && !pae {
        return Err(EINVAL);
    }
    let action = set_sregs(vm, vcpu, s, &r, pdptes)?;
    vcpu.act(vm, s, &action);
    Ok(())
}

/// KVM_X86_SET_MCE (api.rst 4.107).
pub(crate) fn set_mce(s: &mut State, m: &k::kvm_x86_mce) -> Result {
    s.load(Groups::CTRL);
    let enabled = s.cpu.sregs.cr4 & cr4::MCE != 0;
    let m = MachineCheck {
        status: m.status,
        addr: m.addr,
        misc: m.misc,
        mcg_status: m.mcg_status,
        bank: m.bank,
    };
    match s.msrs.mce.report(&m, enabled).map_err(|_| EINVAL)? {
        MachineCheckEffect::Recorded => {}
        MachineCheckEffect::Exception => {
            if !s.raise(events::exception(events::vector::MC, None)) {
                s.events.triple_fault = true;
            }
        }
        MachineCheckEffect::Shutdown => s.events.triple_fault = true,
    }
    Ok(())
}

/// What registers the shared page may carry.
pub(crate) const SYNC_REGS: u32 =
    k::KVM_SYNC_X86_REGS | k::KVM_SYNC_X86_SREGS | k::KVM_SYNC_X86_EVENTS;

const REGS_AT: usize = off::SYNC_REGS + offset_of!(k::kvm_sync_regs, regs);
const SREGS_AT: usize = off::SYNC_REGS + offset_of!(k::kvm_sync_regs, sregs);
const EVENTS_AT: usize = off::SYNC_REGS + offset_of!(k::kvm_sync_regs, events);

fn read<T: Uapi>(run: &RunPages, at: usize) -> Result<T> {
    let mut v = uapi::zeroed::<T>();
    run.copy_out(at, uapi::bytes_of_mut(&mut v))?;
    Ok(v)
}

/// Before the guest runs: takes the registers that user space has marked dirty in the shared page, and takes the marks away.
/// `valid` and `dirty` are what the page says. EINVAL: unknown kinds, values that KVM_SET_SREGS or KVM_SET_VCPU_EVENTS would refuse.
#[cold]
#[inline(never)]
pub(crate) fn sync_from(vm: &Vm, vcpu: &Vcpu, s: &mut State, valid: u64, mut dirty: u64) -> Result {
    let run = &vcpu.run;
    if (valid | dirty) & !u64::from(SYNC_REGS) != 0 {
        return Err(EINVAL);
    }
    let marked = dirty;
    let mut done = |bit: u32| {
        dirty &= !u64::from(bit);
        run.write(off::DIRTY_REGS, dirty)
    };
    if has(marked, k::KVM_SYNC_X86_REGS) {
        set_regs(s, &read(run, REGS_AT)?);
        done(k::KVM_SYNC_X86_REGS)?;
    }
    if has(marked, k::KVM_SYNC_X86_SREGS) {
        let action = set_sregs(vm, vcpu, s, &read(run, SREGS_AT)?, None)?;
        vcpu.act(vm, s, &action);
        done(k::KVM_SYNC_X86_SREGS)?;
    }
    if has(marked, k::KVM_SYNC_X86_EVENTS) {
        set_events(vm, vcpu, s, &read(run, EVENTS_AT)?)?;
        done(k::KVM_SYNC_X86_EVENTS)?;
    }
    Ok(())
}

fn has(kinds: u64, bit: u32) -> bool {
    kinds & u64::from(bit) != 0
}

/// After the guest ran: puts the registers that user space wants into the shared page.
#[cold]
#[inline(never)]
pub(crate) fn sync_to(vm: &Vm, vcpu: &Vcpu, s: &mut State, valid: u64) {
    let run = &vcpu.run;
    if has(valid, k::KVM_SYNC_X86_REGS) {
        let _ = run.copy_in(REGS_AT, uapi::bytes_of(&get_regs(s)));
    }
    if has(valid, k::KVM_SYNC_X86_SREGS) {
        let _ = run.copy_in(SREGS_AT, uapi::bytes_of(&get_sregs(s)));
    }
    if has(valid, k::KVM_SYNC_X86_EVENTS) {
        let events = get_events(vm, vcpu, s);
        let _ = run.copy_in(EVENTS_AT, uapi::bytes_of(&events));
    }
}
