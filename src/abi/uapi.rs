// SPDX-License-Identifier: GPL-2.0
//! The ioctl interface: command numbers, structures, and copying them from and to user space.
//!
//! Numbers and layouts come from `<linux/kvm.h>`; each command is dispatched on all its 32 bits, because KVM re-uses
//! sequence numbers with other sizes.
#![allow(missing_docs)]

#[cfg(CONFIG_ARM64)]
mod arm64;
#[cfg(CONFIG_X86_64)]
mod x86;

pub(crate) use crate::linux::bindings as k;
#[cfg(CONFIG_ARM64)]
pub(crate) use arm64::*;
use core::mem::{offset_of, size_of};
use kernel::ioctl::{_IO, _IOR, _IOW, _IOWR};
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};
#[cfg(CONFIG_X86_64)]
pub(crate) use x86::*;
use zerocopy::Immutable;
use zerocopy_derive::Immutable;

/// A structure of the interface: integers, without padding that has no name, so that it may be taken for its bytes and
/// any bytes for it. The compiler checks that where the traits are derived: for the header's structures in
/// `rust/bindgen_flags`, for others below.
pub(crate) trait Uapi: FromBytes + IntoBytes + Immutable {}

impl<T: FromBytes + IntoBytes + Immutable> Uapi for T {}

/// `struct kvm_dirty_log`, whose union holds a pointer in the header.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct DirtyLog {
    pub(crate) slot: u32,
    pub(crate) padding: u32,
    pub(crate) bitmap: u64,
}

const _: () = assert!(size_of::<DirtyLog>() == size_of::<k::kvm_dirty_log>());

/// `struct kvm_clear_dirty_log`, likewise.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct ClearDirtyLog {
    pub(crate) slot: u32,
    pub(crate) num_pages: u32,
    pub(crate) first_page: u64,
    pub(crate) bitmap: u64,
}

const _: () = {
    assert!(size_of::<ClearDirtyLog>() == size_of::<k::kvm_clear_dirty_log>());
    assert!(
        offset_of!(ClearDirtyLog, first_page) == offset_of!(k::kvm_clear_dirty_log, first_page)
    );
};

/// `struct kvm_coalesced_mmio_zone`, whose union is the padding of an older interface.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct CoalescedZone {
    pub(crate) addr: u64,
    pub(crate) size: u32,
    pub(crate) pio: u32,
}

const _: () = {
    assert!(size_of::<CoalescedZone>() == size_of::<k::kvm_coalesced_mmio_zone>());
    assert!(offset_of!(CoalescedZone, size) == offset_of!(k::kvm_coalesced_mmio_zone, size));
};

/// `struct rvmm_reset_point`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct ResetPoint {
    /// Pages that may be written between two resets; 0: no point.
    pub(crate) pages: u64,
    /// 0.
    pub(crate) flags: u64,
}

/// `struct rvmm_reset`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct Reset {
    /// Pages that were put back.
    pub(crate) pages: u64,
}

/// `struct rvmm_touch`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct Touch {
    pub(crate) gpa: u64,
    pub(crate) size: u64,
}

/// `struct rvmm_entry_failure`.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct EntryFailure {
    /// As in `kvm_run`.
    pub(crate) reason: u64,
    /// The offending value.
    pub(crate) value: u64,
    /// The rule, zero-terminated.
    pub(crate) rule: [u8; 240],
}

const _: () = assert!(size_of::<EntryFailure>() == 256);

/// `struct rvmm_root_cost`.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct RootCost {
    /// Which instruction.
    pub(crate) index: u32,
    /// Rounds that were timed.
    pub(crate) count: u32,
    /// The instruction's name, zero-terminated.
    pub(crate) name: [u8; Self::NAME],
    /// What each round took.
    pub(crate) ticks: [u32; Self::ROUNDS],
}

impl RootCost {
    pub(crate) const NAME: usize = 24;
    pub(crate) const ROUNDS: usize = 56;
}

const _: () = assert!(size_of::<RootCost>() == 256);

/// A sentence for user space, zero-terminated and cut where it does not fit.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes)]
#[repr(transparent)]
pub(crate) struct Reason([u8; 240]);

impl Reason {
    /// No sentence.
    pub(crate) const fn empty() -> Self {
        Self([0; 240])
    }
}

impl core::fmt::Write for Reason {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let last = self.0.len() - 1;
        let at = self.0.iter().position(|b| *b == 0).unwrap_or(last);
        let room = self.0.get_mut(at..last).unwrap_or(&mut []);
        for (to, from) in room.iter_mut().zip(s.bytes()) {
            *to = from;
        }
        Ok(())
    }
}

/// `struct rvmm_assign_device`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct AssignDevice {
    pub(crate) segment: u32,
    pub(crate) bus: u8,
    pub(crate) devfn: u8,
    pub(crate) flags: u16,
    pub(crate) pinned: u64,
    pub(crate) reason: Reason,
}

const _: () = assert!(size_of::<AssignDevice>() == 256);

/// `struct rvmm_device_region`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct DeviceRegion {
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) flags: u32,
    pub(crate) reserved: u32,
}

/// `struct rvmm_device_info`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct DeviceInfo {
    pub(crate) flags: u32,
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) class: u32,
    pub(crate) config_size: u32,
    pub(crate) msi: u32,
    pub(crate) msix: u32,
    pub(crate) msix_bar: u32,
    pub(crate) intx: u32,
    pub(crate) msix_offset: u64,
    pub(crate) pinned: u64,
    pub(crate) dma_faults: u64,
    pub(crate) dma_fault_address: u64,
    pub(crate) dma_fault_flags: u32,
    pub(crate) reserved: u32,
    pub(crate) regions: [DeviceRegion; 6],
}

const _: () = assert!(size_of::<DeviceInfo>() == 216);

/// `struct rvmm_device_vector`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct DeviceVector {
    pub(crate) vector: u32,
    pub(crate) gsi: u32,
}

/// `struct rvmm_device_config`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct DeviceConfig {
    pub(crate) offset: u32,
    pub(crate) size: u32,
    pub(crate) value: u32,
    pub(crate) reserved: u32,
}

/// `struct rvmm_missing_event`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct MissingEvent {
    pub(crate) gpa: u64,
    pub(crate) hva: u64,
    pub(crate) vcpu: u32,
    pub(crate) flags: u32,
}

const _: () = assert!(size_of::<MissingEvent>() == 24);

/// `struct rvmm_missing_range`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct MissingRange {
    pub(crate) gpa: u64,
    pub(crate) size: u64,
    pub(crate) flags: u64,
}

/// `struct rvmm_record_ring`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct RecordRing {
    pub(crate) records: u32,
    pub(crate) flags: u32,
}

/// `struct rvmm_touches`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct TouchList {
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) total: u64,
    pub(crate) pages: u64,
}

/// A zeroed structure.
pub(crate) fn zeroed<T: Uapi>() -> T {
    T::new_zeroed()
}

/// The bytes of a structure.
pub(crate) fn bytes_of<T: Uapi>(v: &T) -> &[u8] {
    v.as_bytes()
}

/// The bytes of a structure, for writing.
pub(crate) fn bytes_of_mut<T: Uapi>(v: &mut T) -> &mut [u8] {
    v.as_mut_bytes()
}

/// Copies a structure in. EFAULT.
pub(crate) fn get<T: Uapi>(addr: usize) -> Result<T> {
    let mut v = zeroed::<T>();
    UserSlice::new(UserPtr::from_addr(addr), size_of::<T>())
        .reader()
        .read_slice(bytes_of_mut(&mut v))?;
    Ok(v)
}

/// Copies a structure out. EFAULT.
pub(crate) fn put<T: Uapi>(addr: usize, v: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(addr), size_of::<T>())
        .writer()
        .write_slice(bytes_of(v))
}

/// Address of element `i` of an array of `T` that follows a header of `header` bytes at `addr`.
pub(crate) fn element<T: Uapi>(addr: usize, header: usize, i: usize) -> Result<usize> {
    i.checked_mul(size_of::<T>())
        .and_then(|o| o.checked_add(header))
        .and_then(|o| o.checked_add(addr))
        .ok_or(EFAULT)
}

/// Words of `struct kvm_irq_routing_entry`: GSI, type, flags, padding, and a union.
pub(crate) const ROUTE_WORDS: usize = 12;

const _: () = assert!(size_of::<k::kvm_irq_routing_entry>() == 4 * ROUTE_WORDS);

/// The entries of a `struct kvm_irq_routing` at `arg`, of which `header` has been read: all, before any is judged.
/// EFAULT; EINVAL: more than `most`, or flags.
pub(crate) fn routing_entries(
    arg: usize,
    header: u64,
    most: u32,
) -> Result<KVVec<[u32; ROUTE_WORDS]>> {
    let (count, flags) = (header as u32, header >> 32);
    if count > most || flags != 0 {
        return Err(EINVAL);
    }
    let mut entries = KVVec::with_capacity(count as usize, GFP_KERNEL_ACCOUNT)?;
    entries.resize(count as usize, [0u32; ROUTE_WORDS], GFP_KERNEL_ACCOUNT)?;
    let from = element::<u64>(arg, size_of::<u64>(), 0)?;
    let bytes = entries.as_mut_slice().as_mut_bytes();
    UserSlice::new(UserPtr::from_addr(from), bytes.len())
        .reader()
        .read_slice(bytes)?;
    Ok(entries)
}

/// `KVMIO`.
const K: u32 = 0xae;
/// `RVMM_IOC`.
const R: u32 = 0xbb;

pub(crate) const KVM_GET_API_VERSION: u32 = _IO(K, 0x00);
pub(crate) const KVM_CREATE_VM: u32 = _IO(K, 0x01);
pub(crate) const KVM_CHECK_EXTENSION: u32 = _IO(K, 0x03);
pub(crate) const KVM_GET_VCPU_MMAP_SIZE: u32 = _IO(K, 0x04);

pub(crate) const KVM_CREATE_VCPU: u32 = _IO(K, 0x41);
pub(crate) const KVM_GET_DIRTY_LOG: u32 = _IOW::<DirtyLog>(K, 0x42);
pub(crate) const KVM_SET_USER_MEMORY_REGION: u32 = _IOW::<k::kvm_userspace_memory_region>(K, 0x46);
pub(crate) const KVM_SET_USER_MEMORY_REGION2: u32 =
    _IOW::<k::kvm_userspace_memory_region2>(K, 0x49);
pub(crate) const KVM_CREATE_IRQCHIP: u32 = _IO(K, 0x60);
pub(crate) const KVM_IRQ_LINE: u32 = _IOW::<k::kvm_irq_level>(K, 0x61);
pub(crate) const KVM_IRQ_LINE_STATUS: u32 = _IOWR::<k::kvm_irq_level>(K, 0x67);
pub(crate) const KVM_REGISTER_COALESCED_MMIO: u32 = _IOW::<CoalescedZone>(K, 0x67);
pub(crate) const KVM_UNREGISTER_COALESCED_MMIO: u32 = _IOW::<CoalescedZone>(K, 0x68);
pub(crate) const KVM_SET_GSI_ROUTING: u32 = _IOW::<k::kvm_irq_routing>(K, 0x6a);
pub(crate) const KVM_IRQFD: u32 = _IOW::<k::kvm_irqfd>(K, 0x76);
pub(crate) const KVM_IOEVENTFD: u32 = _IOW::<k::kvm_ioeventfd>(K, 0x79);
pub(crate) const KVM_ENABLE_CAP: u32 = _IOW::<k::kvm_enable_cap>(K, 0xa3);
pub(crate) const KVM_SIGNAL_MSI: u32 = _IOW::<k::kvm_msi>(K, 0xa5);
pub(crate) const KVM_CLEAR_DIRTY_LOG: u32 = _IOWR::<ClearDirtyLog>(K, 0xc0);
pub(crate) const KVM_RESET_DIRTY_RINGS: u32 = _IO(K, 0xc7);
pub(crate) const KVM_GET_STATS_FD: u32 = _IO(K, 0xce);

pub(crate) const KVM_RUN: u32 = _IO(K, 0x80);
pub(crate) const KVM_GET_MP_STATE: u32 = _IOR::<k::kvm_mp_state>(K, 0x98);
pub(crate) const KVM_SET_MP_STATE: u32 = _IOW::<k::kvm_mp_state>(K, 0x99);
pub(crate) const KVM_GET_VCPU_EVENTS: u32 = _IOR::<k::kvm_vcpu_events>(K, 0x9f);
pub(crate) const KVM_SET_VCPU_EVENTS: u32 = _IOW::<k::kvm_vcpu_events>(K, 0xa0);
pub(crate) const KVM_SET_GUEST_DEBUG: u32 = _IOW::<k::kvm_guest_debug>(K, 0x9b);
pub(crate) const KVM_PRE_FAULT_MEMORY: u32 = _IOWR::<k::kvm_pre_fault_memory>(K, 0xd5);
pub(crate) const KVM_CREATE_DEVICE: u32 = _IOWR::<k::kvm_create_device>(K, 0xe0);
pub(crate) const KVM_SET_DEVICE_ATTR: u32 = _IOW::<k::kvm_device_attr>(K, 0xe1);
pub(crate) const KVM_GET_DEVICE_ATTR: u32 = _IOW::<k::kvm_device_attr>(K, 0xe2);
pub(crate) const KVM_HAS_DEVICE_ATTR: u32 = _IOW::<k::kvm_device_attr>(K, 0xe3);
pub(crate) const KVM_SET_SIGNAL_MASK: u32 = _IOW::<k::kvm_signal_mask>(K, 0x8b);

pub(crate) const RVMM_GET_ENTRY_FAILURE: u32 = _IOR::<EntryFailure>(R, 0x01);
pub(crate) const RVMM_MEASURE_ROOT: u32 = _IOWR::<RootCost>(R, 0x02);
pub(crate) const RVMM_ASSIGN_DEVICE: u32 = _IOWR::<AssignDevice>(R, 0x10);
pub(crate) const RVMM_DEVICE_GET_INFO: u32 = _IOR::<DeviceInfo>(R, 0x11);
/// The header only: the GSIs follow.
pub(crate) const RVMM_DEVICE_SET_IRQS: u32 = _IOW::<DeviceVector>(R, 0x12);
pub(crate) const RVMM_DEVICE_SET_VECTOR: u32 = _IOW::<DeviceVector>(R, 0x13);
pub(crate) const RVMM_DEVICE_CONFIG_READ: u32 = _IOWR::<DeviceConfig>(R, 0x14);
pub(crate) const RVMM_DEVICE_CONFIG_WRITE: u32 = _IOW::<DeviceConfig>(R, 0x15);
pub(crate) const RVMM_DEVICE_RESET: u32 = _IO(R, 0x16);
pub(crate) const RVMM_DEVICE_DEASSIGN: u32 = _IO(R, 0x17);
pub(crate) const RVMM_DEVICE_RESAMPLE: u32 = _IO(R, 0x18);
pub(crate) const RVMM_RESET_POINT: u32 = _IOW::<ResetPoint>(R, 0x20);
pub(crate) const RVMM_RESET: u32 = _IOR::<Reset>(R, 0x21);
pub(crate) const RVMM_TOUCH: u32 = _IOW::<Touch>(R, 0x22);
pub(crate) const RVMM_FORK: u32 = _IO(R, 0x23);
pub(crate) const RVMM_BECOME: u32 = _IO(R, 0x24);
pub(crate) const RVMM_MISSING_QUEUE: u32 = _IO(R, 0x30);
pub(crate) const RVMM_MISSING_RESOLVE: u32 = _IOW::<MissingRange>(R, 0x31);
pub(crate) const RVMM_RECORD: u32 = _IOW::<RecordRing>(R, 0x40);
pub(crate) const RVMM_RECORD_CONSUMED: u32 = _IOW::<u64>(R, 0x41);
pub(crate) const RVMM_RECORD_TOUCHES: u32 = _IO(R, 0x32);
pub(crate) const RVMM_GET_TOUCHES: u32 = _IOWR::<TouchList>(R, 0x33);

/// `RVMM_CAP_MISSING`, and the flags of what it lets be reported.
pub(crate) const RVMM_CAP_MISSING: u32 = 0x5256_0010;
pub(crate) const RVMM_MEMORY_EXIT_MISSING: u64 = 1 << 32;
pub(crate) const RVMM_MEMORY_EXIT_WRITE: u64 = 1 << 33;
pub(crate) const RVMM_MISSING_WRITE: u32 = 1;
/// `RVMM_CAP_TOUCHES`.
pub(crate) const RVMM_CAP_TOUCHES: u32 = 0x5256_0011;
/// `RVMM_CAP_RECORD`.
pub(crate) const RVMM_CAP_RECORD: u32 = 0x5256_0022;
/// `RVMM_CAP_ENTRY_FAILURE`.
pub(crate) const RVMM_CAP_ENTRY_FAILURE: u32 = 0x5256_0000;
/// `RVMM_CAP_ASSIGN_DEVICE`.
pub(crate) const RVMM_CAP_ASSIGN_DEVICE: u32 = 0x5256_0001;
/// `RVMM_CAP_RESET_POINT`.
pub(crate) const RVMM_CAP_RESET_POINT: u32 = 0x5256_0020;
/// `RVMM_CAP_FORK`.
pub(crate) const RVMM_CAP_FORK: u32 = 0x5256_0021;
/// `RVMM_CAP_ROOT`, and what it can be.
pub(crate) const RVMM_CAP_ROOT: u32 = 0x5256_0002;
pub(crate) const RVMM_ROOT_PRIVATE: u32 = 1;
pub(crate) const RVMM_ROOT_SHARED: u32 = 2;
pub(crate) const RVMM_ROOT_KEPT: u32 = 3;

const _: () = {
    assert!(KVM_SET_USER_MEMORY_REGION == 0x4020_ae46);
    assert!(KVM_IRQ_LINE_STATUS == 0xc008_ae67);
    assert!(KVM_SET_SIGNAL_MASK == 0x4004_ae8b);
    assert!(KVM_ENABLE_CAP == 0x4068_aea3);
};
