// SPDX-License-Identifier: GPL-2.0
//! `struct kvm_run`: the page that a vCPU shares with user space (api.rst 5), with one type for each KVM_EXIT_*.
//!
//! A type holds what user space is asked; where it answers, a constant of the type says where the answer is. The run
//! loop writes and reads them with the vCPU's mutex held, while user space may write any byte of the page. Exits that
//! only x86 has stand in the files of `x86::run` that raise them.

use crate::abi::uapi::k;
use crate::linux::mmap::{Field, FirstPage};
use core::mem::offset_of;

/// The field of `S` at `offset`, `S` being `base` bytes into the page; `_check` gives it its type.
pub(crate) const fn field<S, F>(base: usize, offset: usize, _check: fn(&S) -> &F) -> Field<F> {
    Field::at(base + offset)
}

/// What the exits share.
pub(crate) const UNION: usize = offset_of!(k::kvm_run, __bindgen_anon_1);

/// Compiles only if `L` is the type of a member of [`UNION`]. The bindings count these nameless types, and the next
/// header may count otherwise.
pub(crate) const fn is_member<L>(
    _check: fn(&k::kvm_run__bindgen_ty_1) -> &k::__BindgenUnionField<L>,
) {
}

/// A field of a structure in [`UNION`].
macro_rules! union_field {
    ($layout:ident, $($path:ident).+) => {
        $crate::abi::exits::field(
            $crate::abi::exits::UNION,
            core::mem::offset_of!($crate::abi::uapi::k::$layout, $($path).+),
            |s: &$crate::abi::uapi::k::$layout| &s.$($path).+,
        )
    };
}
pub(crate) use union_field;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $t:ty = $field:ident;)*) => { $(
        $(#[$doc])*
        pub(crate) const $name: Field<$t> = field(0, offset_of!(k::kvm_run, $field), |s: &k::kvm_run| &s.$field);
    )* };
}

fields! {
    /// In: the guest shall be left as soon as it can be interrupted.
    REQUEST_INTERRUPT_WINDOW: u8 = request_interrupt_window;
    /// In: KVM_RUN returns before it enters the guest.
    IMMEDIATE_EXIT: u8 = immediate_exit__unsafe;
    /// Out: KVM_EXIT_*.
    EXIT_REASON: u32 = exit_reason;
    /// Out: KVM_INTERRUPT would be delivered at once.
    READY_FOR_INTERRUPT: u8 = ready_for_interrupt_injection;
    /// Out: RFLAGS.IF.
    IF_FLAG: u8 = if_flag;
    /// Out: KVM_RUN_X86_*.
    FLAGS: u16 = flags;
    /// In and out: the task priority, where the local APIC is user space's.
    CR8: u64 = cr8;
    /// Out: IA32_APIC_BASE.
    APIC_BASE: u64 = apic_base;
    /// In: the kinds of registers that KVM_RUN leaves in [`SYNC_REGS`].
    VALID_REGS: u64 = kvm_valid_regs;
    /// In: the kinds of registers that KVM_RUN takes from there.
    DIRTY_REGS: u64 = kvm_dirty_regs;
}

/// Offset of `struct kvm_sync_regs`.
pub(crate) const SYNC_REGS: usize = offset_of!(k::kvm_run, s);

/// A reason to return to user space, with what it has to know.
pub(crate) trait Ask {
    /// KVM_EXIT_*.
    const REASON: u32;
    /// Puts the rest into the page.
    fn put(&self, page: FirstPage<'_>);
}

/// Types that implement [`Ask`]: `Name = KVM_EXIT_NAME, member of the union: its type { fields }`.
macro_rules! exits {
    () => {};
    ($(#[$doc:meta])* $name:ident = $reason:ident; $($rest:tt)*) => {
        $(#[$doc])*
        pub(crate) struct $name;
        impl $crate::abi::exits::Ask for $name {
            const REASON: u32 = $crate::abi::uapi::k::$reason;
            #[inline(always)]
            fn put(&self, _page: $crate::linux::mmap::FirstPage<'_>) {}
        }
        $crate::abi::exits::exits! { $($rest)* }
    };
    ($(#[$doc:meta])* $name:ident = $reason:ident, $member:ident: $layout:ident {
        $($field:ident: $t:ty = $($path:ident).+,)*
    } $($rest:tt)*) => {
        $(#[$doc])*
        pub(crate) struct $name {
            $(pub(crate) $field: $t,)*
        }
        impl $crate::abi::exits::Ask for $name {
            const REASON: u32 = $crate::abi::uapi::k::$reason;
            #[inline(always)]
            fn put(&self, page: $crate::linux::mmap::FirstPage<'_>) {
                const { $crate::abi::exits::is_member::<$crate::abi::uapi::k::$layout>(|u| &u.$member) };
                $(page.put(const { $crate::abi::exits::union_field!($layout, $($path).+) }, self.$field);)*
            }
        }
        $crate::abi::exits::exits! { $($rest)* }
    };
}
pub(crate) use exits;

exits! {
    /// HLT, where the local APIC is user space's.
    Hlt = KVM_EXIT_HLT;
    /// The guest can take KVM_INTERRUPT, as user space wished to know.
    IrqWindowOpen = KVM_EXIT_IRQ_WINDOW_OPEN;
    /// The vCPU's dirty ring counts as full.
    DirtyRingFull = KVM_EXIT_DIRTY_RING_FULL;
    /// A signal waits.
    Intr = KVM_EXIT_INTR;
    /// The guest shut down.
    Shutdown = KVM_EXIT_SHUTDOWN;
    /// An exit that nobody knows.
    Unknown = KVM_EXIT_UNKNOWN, hw: kvm_run__bindgen_ty_1__bindgen_ty_1 {
        reason: u64 = hardware_exit_reason,
    }
    /// The processor refused the entry.
    FailEntry = KVM_EXIT_FAIL_ENTRY, fail_entry: kvm_run__bindgen_ty_1__bindgen_ty_2 {
        reason: u64 = hardware_entry_failure_reason,
        cpu: u32 = cpu,
    }
    /// A port access. The data is at `data_offset` of the mapping, in both directions.
    Io = KVM_EXIT_IO, io: kvm_run__bindgen_ty_1__bindgen_ty_4 {
        direction: u8 = direction,
        width: u8 = size,
        port: u16 = port,
        count: u32 = count,
        data_offset: u64 = data_offset,
    }
    /// An access to device memory.
    Mmio = KVM_EXIT_MMIO, mmio: kvm_run__bindgen_ty_1__bindgen_ty_6 {
        gpa: u64 = phys_addr,
        data: [u8; 8] = data,
        len: u32 = len,
        is_write: u8 = is_write,
    }
    /// A hypercall that user space answers.
    Hypercall = KVM_EXIT_HYPERCALL, hypercall: kvm_run__bindgen_ty_1__bindgen_ty_8 {
        nr: u64 = nr,
        args: [u64; 6] = args,
        ret: u64 = ret,
        flags: u64 = __bindgen_anon_1.bindgen_union_field,
    }
    /// Something that is not carried out, and why (KVM_INTERNAL_ERROR_*).
    InternalError = KVM_EXIT_INTERNAL_ERROR, internal: kvm_run__bindgen_ty_1__bindgen_ty_13 {
        suberror: u32 = suberror,
        ndata: u32 = ndata,
        data: [u64; 16] = data,
    }
    /// The same for an instruction, with its length and bytes.
    EmulationFailure = KVM_EXIT_INTERNAL_ERROR, emulation_failure: kvm_run__bindgen_ty_1__bindgen_ty_14 {
        suberror: u32 = suberror,
        ndata: u32 = ndata,
        flags: u64 = flags,
        insn: [u8; 16] = __bindgen_anon_1.bindgen_union_field,
    }
    /// The memory behind a slot cannot be had.
    MemoryFault = KVM_EXIT_MEMORY_FAULT, memory_fault: kvm_run__bindgen_ty_1__bindgen_ty_27 {
        flags: u64 = flags,
        gpa: u64 = gpa,
        size: u64 = size,
    }
}

impl Mmio {
    /// What a load gave.
    pub(crate) const DATA: Field<[u8; 8]> = union_field!(kvm_run__bindgen_ty_1__bindgen_ty_6, data);
}

impl Hypercall {
    /// The result.
    pub(crate) const RET: Field<u64> = union_field!(kvm_run__bindgen_ty_1__bindgen_ty_8, ret);
}

impl InternalError {
    /// `suberror` with what is known about it, at most as much as there is room for.
    pub(crate) fn new(suberror: u32, known: &[u64]) -> Self {
        let mut data = [0; 16];
        let mut ndata = 0;
        for (to, from) in data.iter_mut().zip(known) {
            *to = *from;
            ndata += 1;
        }
        Self {
            suberror,
            ndata,
            data,
        }
    }
}
