// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The ioctls that kvm-ioctls does not wrap: the statistics descriptors and rvmm's own extensions.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};

use crate::address::Address;

pub use numbers::*;

#[allow(missing_docs)]
mod numbers {
    use kvm_bindings::KVMIO;

    use super::{
        AssignDevice, DeviceConfig, DeviceInfo, DeviceVector, MissingRange, ResetPoint,
        RvmmEntryFailure, RvmmRootCost, Touch, TouchList, RVMM_IOC,
    };

    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
    vmm_sys_util::ioctl_ior_nr!(RVMM_GET_ENTRY_FAILURE, RVMM_IOC, 0x01, RvmmEntryFailure);
    vmm_sys_util::ioctl_iowr_nr!(RVMM_MEASURE_ROOT, RVMM_IOC, 0x02, RvmmRootCost);
    vmm_sys_util::ioctl_iowr_nr!(RVMM_ASSIGN_DEVICE, RVMM_IOC, 0x10, AssignDevice);
    vmm_sys_util::ioctl_ior_nr!(RVMM_DEVICE_GET_INFO, RVMM_IOC, 0x11, DeviceInfo);
    // The number has the header's size; the GSIs follow the header.
    vmm_sys_util::ioctl_iow_nr!(RVMM_DEVICE_SET_IRQS, RVMM_IOC, 0x12, DeviceVector);
    vmm_sys_util::ioctl_iow_nr!(RVMM_DEVICE_SET_VECTOR, RVMM_IOC, 0x13, DeviceVector);
    vmm_sys_util::ioctl_iowr_nr!(RVMM_DEVICE_CONFIG_READ, RVMM_IOC, 0x14, DeviceConfig);
    vmm_sys_util::ioctl_iow_nr!(RVMM_DEVICE_CONFIG_WRITE, RVMM_IOC, 0x15, DeviceConfig);
    vmm_sys_util::ioctl_io_nr!(RVMM_DEVICE_RESET, RVMM_IOC, 0x16);
    vmm_sys_util::ioctl_io_nr!(RVMM_DEVICE_DEASSIGN, RVMM_IOC, 0x17);
    vmm_sys_util::ioctl_iow_nr!(RVMM_RESET_POINT, RVMM_IOC, 0x20, ResetPoint);
    vmm_sys_util::ioctl_ior_nr!(RVMM_RESET, RVMM_IOC, 0x21, u64);
    vmm_sys_util::ioctl_iow_nr!(RVMM_TOUCH, RVMM_IOC, 0x22, Touch);
    vmm_sys_util::ioctl_io_nr!(RVMM_FORK, RVMM_IOC, 0x23);
    vmm_sys_util::ioctl_io_nr!(RVMM_BECOME, RVMM_IOC, 0x24);
    vmm_sys_util::ioctl_io_nr!(RVMM_MISSING_QUEUE, RVMM_IOC, 0x30);
    vmm_sys_util::ioctl_iow_nr!(RVMM_MISSING_RESOLVE, RVMM_IOC, 0x31, MissingRange);
    vmm_sys_util::ioctl_io_nr!(RVMM_RECORD_TOUCHES, RVMM_IOC, 0x32);
    vmm_sys_util::ioctl_iowr_nr!(RVMM_GET_TOUCHES, RVMM_IOC, 0x33, TouchList);
}

/// ioctl magic of rvmm's extensions (`RVMM_IOC` in uapi/rvmm.h).
const RVMM_IOC: u32 = 0xbb;

/// `struct rvmm_reset_point` of uapi/rvmm.h.
#[repr(C)]
pub struct ResetPoint {
    /// Pages that may be written between two resets.
    pub pages: u64,
    /// 0.
    pub flags: u64,
}

/// `struct rvmm_touch` of uapi/rvmm.h.
#[repr(C)]
pub struct Touch {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
}

/// `struct rvmm_entry_failure` of uapi/rvmm.h.
#[repr(C)]
pub struct RvmmEntryFailure {
    /// `hardware_entry_failure_reason` of the exit that this explains.
    pub reason: u64,
    /// The offending value.
    pub value: u64,
    /// The rule that was broken, zero-terminated ASCII with the manual's section.
    pub rule: [u8; 240],
}

/// `struct rvmm_root_cost` of uapi/rvmm.h.
#[repr(C)]
pub struct RvmmRootCost {
    /// Which instruction.
    pub index: u32,
    /// Rounds that were timed.
    pub count: u32,
    /// The instruction's name, zero-terminated.
    pub name: [u8; 24],
    /// TSC ticks of each round.
    pub ticks: [u32; 56],
}

/// An instruction, and the ticks of the rounds in which it was timed.
pub struct RootCost {
    /// The instruction's name.
    pub name: String,
    /// TSC ticks of each round; none where the CPU does not have the instruction.
    pub ticks: Vec<u32>,
}

/// `struct rvmm_assign_device` of uapi/rvmm.h.
#[repr(C)]
pub struct AssignDevice {
    /// PCI segment.
    pub segment: u32,
    /// Bus.
    pub bus: u8,
    /// Device << 3 | function.
    pub devfn: u8,
    /// Reserved: zero.
    pub flags: u16,
    /// Bytes of guest memory that are pinned.
    pub pinned: u64,
    /// Why it was refused, zero-terminated.
    pub reason: [u8; 240],
}

/// `struct rvmm_device_region` of uapi/rvmm.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceRegion {
    /// Bytes; 0 when there is none.
    pub size: u64,
    /// Offset in the device file.
    pub offset: u64,
    /// [`REGION_MEMORY`] and others.
    pub flags: u32,
    /// Reserved: zero.
    pub reserved: u32,
}

/// `RVMM_REGION_MEMORY`: the region is memory, not ports.
pub const REGION_MEMORY: u32 = 1;

/// `struct rvmm_device_info` of uapi/rvmm.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceInfo {
    /// Bit 0: it can be reset.
    pub flags: u32,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, sub-class, interface.
    pub class: u32,
    /// Bytes of configuration space.
    pub config_size: u32,
    /// Messages of MSI.
    pub msi: u32,
    /// Messages of MSI-X.
    pub msix: u32,
    /// Base address register with the MSI-X table.
    pub msix_bar: u32,
    /// 1: it has an interrupt pin.
    pub intx: u32,
    /// Offset of the MSI-X table in that register's region.
    pub msix_offset: u64,
    /// Bytes of guest memory that are pinned.
    pub pinned: u64,
    /// Refused DMA, as far as known.
    pub dma_faults: u64,
    /// Address of the last refused DMA.
    pub dma_fault_address: u64,
    /// Flags of the last refused DMA; bit 0 says that it was a write.
    pub dma_fault_flags: u32,
    /// Reserved: zero.
    pub reserved: u32,
    /// Base address registers.
    pub regions: [DeviceRegion; 6],
}

/// `struct rvmm_device_vector` of uapi/rvmm.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DeviceVector {
    /// Number of the message.
    pub vector: u32,
    /// GSI of the message, or [`GSI_NONE`].
    pub gsi: u32,
}

/// `RVMM_GSI_NONE`: the message is masked.
pub const GSI_NONE: u32 = u32::MAX;
/// `RVMM_IRQ_MSI`: the messages of the MSI capability.
pub const IRQ_MSI: u32 = 1;
/// `RVMM_IRQ_MSIX`: the messages of the MSI-X capability.
pub const IRQ_MSIX: u32 = 2;
/// `RVMM_IRQ_INTX`: the interrupt pin.
pub const IRQ_INTX: u32 = 3;

/// `struct rvmm_device_config` of uapi/rvmm.h.
#[repr(C)]
pub struct DeviceConfig {
    /// Offset in configuration space.
    pub offset: u32,
    /// 1, 2 or 4 bytes.
    pub size: u32,
    /// Read or to be written.
    pub value: u32,
    /// Reserved: zero.
    pub reserved: u32,
}

/// `RVMM_CAP_MISSING`: slots may report pages that are missing.
pub const CAP_MISSING: u32 = 0x5256_0010;
/// `RVMM_MEM_MISSING`: a slot that does.
pub const MEM_MISSING: u32 = 1 << 24;
/// `RVMM_MISSING_WRITE`: the page is to be written.
pub const MISSING_WRITE: u32 = 1;

/// `struct rvmm_missing_event` of uapi/rvmm.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MissingEvent {
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// Its address in the VM's process.
    pub hva: u64,
    /// The vCPU that waits for it.
    pub vcpu: u32,
    /// [`MISSING_WRITE`].
    pub flags: u32,
}

/// `struct rvmm_missing_range` of uapi/rvmm.h.
#[repr(C)]
pub struct MissingRange {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes, whole pages.
    pub size: u64,
    /// Reserved: zero.
    pub flags: u64,
}

/// `struct rvmm_touches` of uapi/rvmm.h.
#[repr(C)]
pub struct TouchList {
    /// Number of the touch to begin with.
    pub first: u64,
    /// Room, then how many have been copied.
    pub count: u64,
    /// Touches so far.
    pub total: u64,
    /// Address of an array of page numbers.
    pub pages: u64,
}

/// Opens the queue of a VM's missing pages.
///
/// # Errors
///
/// The error of the ioctl; EBUSY when it is open.
pub fn missing_queue(vm: &impl AsRawFd) -> std::io::Result<File> {
    // SAFETY: the ioctl takes no argument and returns a new descriptor or -1.
    let fd = unsafe { ioctl(vm, RVMM_MISSING_QUEUE()) };
    done(fd)?;
    Ok(file_of(fd))
}

/// The next event of a queue of missing pages; `None`: there is none, `poll` tells when there is.
///
/// # Errors
///
/// The error of reading.
pub fn next_missing(mut queue: &File) -> std::io::Result<Option<MissingEvent>> {
    let mut b = [0u8; 24];
    match queue.read_exact(&mut b) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
        result => result?,
    }
    let word = |at: usize| {
        b[at..at + 4]
            .iter()
            .rev()
            .fold(0, |w, b| w << 8 | u32::from(*b))
    };
    let long = |at: usize| u64::from(word(at + 4)) << 32 | u64::from(word(at));
    Ok(Some(MissingEvent {
        gpa: long(0),
        hva: long(8),
        vcpu: word(16),
        flags: word(20),
    }))
}

/// Lets those go on who wait for a page in `size` bytes at `gpa`: what they wait for is there.
///
/// # Errors
///
/// The error of the ioctl; EINTR: a signal came, call again.
pub fn resolve_missing(queue: &File, gpa: u64, size: u64) -> std::io::Result<()> {
    let range = MissingRange {
        gpa,
        size,
        flags: 0,
    };
    // SAFETY: as in `set_master`.
    done(unsafe { ioctl_with_ref(queue, RVMM_MISSING_RESOLVE(), &range) })
}

/// Records in which order the guest touches its pages, `room` touches at most; 0 ends it.
///
/// # Errors
///
/// The error of the ioctl; EEXIST when there has been a record.
pub fn record_touches(vm: &impl AsRawFd, room: u64) -> std::io::Result<()> {
    // SAFETY: the ioctl takes a number.
    done(unsafe { vmm_sys_util::ioctl::ioctl_with_val(vm, RVMM_RECORD_TOUCHES(), room) })
}

/// The numbers of pages that the guest has touched, `room` at most, from the touch numbered `first` on.
///
/// # Errors
///
/// The error of the ioctl; ENODATA when nothing is recorded.
pub fn touches(vm: &impl AsRawFd, first: u64, room: usize) -> std::io::Result<Vec<u64>> {
    let mut pages = vec![0; room];
    let mut list = TouchList {
        first,
        count: room as u64,
        total: 0,
        pages: pages.as_mut_ptr() as u64,
    };
    // SAFETY: the ioctl reads and writes `list`, and writes as many pages as that has room for.
    done(unsafe { ioctl_with_mut_ref(vm, RVMM_GET_TOUCHES(), &mut list) })?;
    pages.truncate(list.count as usize);
    Ok(pages)
}

/// Hands a device to the VM.
///
/// # Errors
///
/// The error number and the hypervisor's sentence, empty where it has none.
pub fn assign_device(vm: &impl AsRawFd, address: Address) -> Result<File, (i32, String)> {
    let mut request = AssignDevice {
        segment: address.segment.into(),
        bus: address.bus,
        devfn: address.slot << 3 | address.function,
        flags: 0,
        pinned: 0,
        reason: [0; 240],
    };
    // SAFETY: the ioctl reads and writes at most the size encoded in its number, which is that of `request`.
    let fd = unsafe { ioctl_with_mut_ref(vm, RVMM_ASSIGN_DEVICE(), &mut request) };
    if fd < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let text = request.reason.split(|byte| *byte == 0).next();
        let text = String::from_utf8_lossy(text.unwrap_or_default()).into_owned();
        return Err((errno, text));
    }
    Ok(file_of(fd))
}

/// A file from a descriptor that an ioctl has made.
fn file_of(fd: libc::c_int) -> File {
    // SAFETY: the ioctl returned a new descriptor that nobody else owns.
    unsafe { File::from_raw_fd(fd) }
}

/// The error of a call that failed.
fn done(result: libc::c_int) -> std::io::Result<()> {
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What an assigned device has.
///
/// # Errors
///
/// The error of the ioctl; ENODEV when the device was taken away.
pub fn device_info(device: &File) -> std::io::Result<DeviceInfo> {
    let mut info = DeviceInfo::default();
    // SAFETY: as in `assign_device`.
    done(unsafe { ioctl_with_mut_ref(device, RVMM_DEVICE_GET_INFO(), &mut info) })?;
    Ok(info)
}

/// Four bytes of the hardware's configuration space.
///
/// # Errors
///
/// The errors are those of [`device_info`].
pub fn config_read(device: &File, offset: u32) -> std::io::Result<u32> {
    let mut request = DeviceConfig {
        offset,
        size: 4,
        value: 0,
        reserved: 0,
    };
    // SAFETY: as in `assign_device`.
    done(unsafe { ioctl_with_mut_ref(device, RVMM_DEVICE_CONFIG_READ(), &mut request) })?;
    Ok(request.value)
}

/// Bus mastering on or off.
///
/// # Errors
///
/// The errors are those of [`device_info`].
pub fn set_master(device: &File, on: bool) -> std::io::Result<()> {
    let request = DeviceConfig {
        offset: 4,
        size: 2,
        value: u32::from(on) << 2,
        reserved: 0,
    };
    // SAFETY: the ioctl reads at most the size encoded in its number, which is that of `request`.
    done(unsafe { ioctl_with_ref(device, RVMM_DEVICE_CONFIG_WRITE(), &request) })
}

/// Messages, or the pin, and their GSIs; none switches them off.
///
/// # Errors
///
/// The errors are those of [`device_info`]; ENOSPC when there are not as many.
pub fn set_irqs(device: &File, kind: u32, gsis: &[u32]) -> std::io::Result<()> {
    let mut words = vec![kind, gsis.len() as u32];
    words.extend_from_slice(gsis);
    // SAFETY: the ioctl reads the header and as many GSIs as it says, which is what `words` holds.
    done(unsafe { ioctl_with_ptr(device, RVMM_DEVICE_SET_IRQS(), words.as_ptr()) })
}

/// Another GSI for a message or the pin.
///
/// # Errors
///
/// The errors are those of [`device_info`].
pub fn set_vector(device: &File, vector: DeviceVector) -> std::io::Result<()> {
    // SAFETY: as in `set_master`.
    done(unsafe { ioctl_with_ref(device, RVMM_DEVICE_SET_VECTOR(), &vector) })
}

/// Opens the binary statistics of a VM or vCPU (api.rst 4.133).
///
/// # Errors
///
/// The error of the ioctl; ENOTTY where the hypervisor keeps no statistics.
pub fn stats_fd(fd: &impl AsRawFd) -> std::io::Result<File> {
    // SAFETY: the ioctl takes no argument and returns a new descriptor or -1.
    let raw = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(file_of(raw))
}

/// Times instruction `index` of those of which entering a guest is made, on a vCPU that serves for nothing else.
///
/// # Errors
///
/// The error of the ioctl; ENOENT when there are no more.
pub fn root_cost(vcpu: &impl AsRawFd, index: u32) -> std::io::Result<RootCost> {
    let mut cost = RvmmRootCost {
        index,
        count: 0,
        name: [0; 24],
        ticks: [0; 56],
    };
    // EAGAIN: an interrupt came first.
    for left in (0..100).rev() {
        // SAFETY: the ioctl reads and writes at most the size encoded in its number, which is that of `cost`.
        match done(unsafe { ioctl_with_mut_ref(vcpu, RVMM_MEASURE_ROOT(), &mut cost) }) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && left > 0 => {}
            result => {
                result?;
                break;
            }
        }
    }
    let name = cost.name.split(|byte| *byte == 0).next();
    let count = cost.ticks.len().min(cost.count as usize);
    Ok(RootCost {
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        ticks: cost.ticks[..count].to_vec(),
    })
}

/// The sentence for the vCPU's last failed entry, if the hypervisor is rvmm and has one.
pub fn entry_failure(vcpu: &impl AsRawFd) -> Option<(String, u64)> {
    let mut failure = RvmmEntryFailure {
        reason: 0,
        value: 0,
        rule: [0; 240],
    };
    // SAFETY: the ioctl writes at most the size encoded in its number, which is that of `failure`.
    let done = unsafe { ioctl_with_mut_ref(vcpu, RVMM_GET_ENTRY_FAILURE(), &mut failure) };
    if done != 0 {
        return None;
    }
    let text = failure
        .rule
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    (!text.is_empty()).then(|| (String::from_utf8_lossy(text).into_owned(), failure.value))
}

/// From now on [`reset`] puts the VM back to what it is now; `pages` may be written between two resets. 0: not any
/// more.
pub fn reset_point(vm: &impl AsRawFd, pages: u64) -> std::io::Result<()> {
    let point = ResetPoint { pages, flags: 0 };
    // SAFETY: the ioctl reads `point`, whose size its number has.
    done(unsafe { ioctl_with_ref(vm, RVMM_RESET_POINT(), &point) }).map(drop)
}

/// Puts the VM back; the number of pages that had been written.
pub fn reset(vm: &impl AsRawFd) -> std::io::Result<u64> {
    let mut pages = 0u64;
    // SAFETY: the ioctl writes the one word that `struct rvmm_reset` is.
    done(unsafe { ioctl_with_mut_ref(vm, RVMM_RESET(), &mut pages) })?;
    Ok(pages)
}

/// Tells that this process is going to write to guest memory by itself, until the next [`reset`].
pub fn touch(vm: &impl AsRawFd, gpa: u64, size: u64) -> std::io::Result<()> {
    let range = Touch { gpa, size };
    // SAFETY: the ioctl reads `range`, whose size its number has.
    done(unsafe { ioctl_with_ref(vm, RVMM_TOUCH(), &range) }).map(drop)
}

/// `RVMM_CAP_FORK`: VMs can be forked.
pub const CAP_FORK: u32 = 0x5256_0021;

/// What a VM is now, to be mapped (RVMM_FORK).
///
/// # Errors
///
/// Those of the ioctl (uapi/rvmm.h).
pub fn fork(vm: &impl AsRawFd) -> std::io::Result<File> {
    // SAFETY: the ioctl takes no argument and gives a descriptor.
    let fd = unsafe { ioctl_with_val(vm, RVMM_FORK(), 0) };
    done(fd)?;
    Ok(file_of(fd))
}

/// Makes a VM what the VM of a fork was, but for memory (RVMM_BECOME).
///
/// # Errors
///
/// Those of the ioctl (uapi/rvmm.h).
pub fn become_fork(vm: &impl AsRawFd, fork: &File) -> std::io::Result<()> {
    // SAFETY: the ioctl takes a descriptor, which is open.
    done(unsafe { ioctl_with_val(vm, RVMM_BECOME(), fork.as_raw_fd() as libc::c_ulong) })
}

/// Maps a file, from an offset on and private, where something else was mapped.
///
/// # Errors
///
/// Those of `mmap(2)`.
///
/// # Safety
///
/// The range is a mapping of the caller's that nobody has a reference into.
pub unsafe fn map_over(at: *mut u8, length: usize, file: &File, from: u64) -> std::io::Result<()> {
    // SAFETY: by the caller's word, the range is free to be another mapping.
    let mapped = unsafe {
        libc::mmap(
            at.cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED,
            file.as_raw_fd(),
            from as libc::off_t,
        )
    };
    done(if mapped == libc::MAP_FAILED { -1 } else { 0 })
}

/// Has a descriptor stay open in the program that this process is about to become.
///
/// # Errors
///
/// Those of the system.
pub(crate) fn keep_open(fd: libc::c_int) -> std::io::Result<()> {
    // SAFETY: a call with numbers.
    done(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })
}

/// Takes a file for this process to write to, as long as it is open.
///
/// # Errors
///
/// A sentence where another one has it; those of the system.
pub fn lock_file(file: &File) -> std::io::Result<()> {
    // SAFETY: a call about a descriptor that is open.
    match done(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(std::io::Error::other("another program uses it"))
        }
        result => result,
    }
}

/// Listens at a socket that its owner alone can connect to; takes the place of one that nobody listens at any more.
///
/// # Errors
///
/// Those of `bind(2)`.
pub fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    // SAFETY: the call takes and gives a number. Files that another thread makes meanwhile are its owner's alone.
    let mask = unsafe { libc::umask(0o177) };
    let listener = bind_anew(path);
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    listener
}

fn bind_anew(path: &Path) -> std::io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let left = UnixStream::connect(path).err().map(|error| error.kind());
            // What is no socket refuses connections as well.
            let about = std::fs::symlink_metadata(path)?.file_type();
            let is_socket = std::os::unix::fs::FileTypeExt::is_socket(&about);
            if !is_socket || left != Some(std::io::ErrorKind::ConnectionRefused) {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// Opens the tap interface of that name, for whole frames without a header, and without waiting.
///
/// # Errors
///
/// A name that is too long; those of the system.
pub fn open_tap(name: &str) -> std::io::Result<File> {
    // SAFETY: zeroes are a value of this structure of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(std::io::Error::other("a name of 1 to 15 bytes is wanted"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    let mut options = File::options();
    let options = std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let tap = options.read(true).write(true).open("/dev/net/tun")?;
    // _IOW('T', 202, int) of linux/if_tun.h, which takes a structure all the same.
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    // SAFETY: the request is alive, of the type that this ioctl reads and writes.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &mut request) })?;
    Ok(tap)
}

/// Gives the host what is in a range of a guest's memory, which the guest does without: what is there from then on is
/// what was there at the machine's beginning.
///
/// # Errors
///
/// A range that is not of one region of the memory; those of the system.
pub fn discard(memory: &GuestMemoryMmap, at: u64, length: u64) -> std::io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let slice = memory.get_slice(GuestAddress(at), length as usize);
    let slice = slice.map_err(std::io::Error::other)?;
    let start = slice.ptr_guard_mut();
    // Memory that is shared is a file's: it would be read from there again.
    let region = memory.find_region(GuestAddress(at));
    let advice = match region.is_some_and(|region| region.flags() & libc::MAP_SHARED != 0) {
        true => libc::MADV_REMOVE,
        false => libc::MADV_DONTNEED,
    };
    // SAFETY: the range is of memory that lives and that is the guest's: everybody expects it to change.
    done(unsafe { libc::madvise(start.as_ptr().cast(), length as usize, advice) })
}

/// A new terminal without line editing and without waiting: the host's end, the other end, and its name.
///
/// # Errors
///
/// Those of the system.
pub fn open_terminal() -> std::io::Result<(File, File, std::path::PathBuf)> {
    let (mut ours, mut theirs) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both numbers are alive; nothing else is asked for.
    done(unsafe { libc::openpty(&mut ours, &mut theirs, none, none.cast(), none.cast()) })?;
    let (ours, theirs) = (file_of(ours), file_of(theirs));
    let mut name = [0; 64];
    // SAFETY: zeroes are a value of this structure; it, the name and the descriptors are alive, and each call gets the
    // length of what it writes to.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        let fd = theirs.as_raw_fd();
        done(libc::tcgetattr(fd, &mut settings))?;
        libc::cfmakeraw(&mut settings);
        done(libc::tcsetattr(fd, libc::TCSANOW, &settings))?;
        done(libc::ttyname_r(fd, name.as_mut_ptr(), name.len()))?;
        for fd in [fd, ours.as_raw_fd()] {
            done(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC))?;
        }
        done(libc::fcntl(
            ours.as_raw_fd(),
            libc::F_SETFL,
            libc::O_RDWR | libc::O_NONBLOCK,
        ))?;
    }
    // The letters are signed on some processors.
    #[allow(clippy::unnecessary_cast)]
    let name = name.map(|letter| letter as u8);
    let name = std::ffi::CStr::from_bytes_until_nul(&name).unwrap_or_default();
    Ok((ours, theirs, name.to_string_lossy().into_owned().into()))
}

/// Bytes by chance.
///
/// # Errors
///
/// Those of the system.
pub(crate) fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

/// A file in memory with these bytes, and the path by which this process can open it.
///
/// # Errors
///
/// Those of the system.
pub fn memory_file(bytes: &[u8]) -> std::io::Result<(File, std::path::PathBuf)> {
    // SAFETY: the name is a string that ends with a zero.
    let fd = unsafe { libc::memfd_create(c"rvmm".as_ptr(), libc::MFD_CLOEXEC) };
    done(fd)?;
    let mut file = file_of(fd);
    std::io::Write::write_all(&mut file, bytes)?;
    let path = format!("/proc/self/fd/{fd}").into();
    Ok((file, path))
}
