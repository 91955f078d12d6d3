// SPDX-License-Identifier: GPL-2.0
//! KVM_CREATE_DEVICE with KVM_DEV_TYPE_VFIO (kernel document virt/kvm/devices/vfio.rst): how a VMM tells which VFIO
//! groups or devices its guest has.
//!
//! VFIO does everything for such a device: translation by its container, registers and interrupts by its files, mmap
//! and eventfds. The files are kept and checked as KVM does, and asked whether the IOMMU makes DMA coherent. If it does
//! not for one of them, the guest writes caches back itself and chooses memory types ([`GuestMemory::set_incoherent`]).
//! A driver of a mediated device would ask for KVM's `struct kvm`, which there is none of here.
//!
//! [`GuestMemory::set_incoherent`]: crate::mem::memory::GuestMemory::set_incoherent

use crate::abi::uapi;
use crate::abi::uapi::k;
use crate::arch::Vm;
use crate::linux::anon_inode::{FileOperations, NewFile};
use crate::linux::file_ref::FileRef;
use core::sync::atomic::Ordering;
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, ArcBorrow, Mutex};

/// The VFIO device of a VM; there is one at most.
#[pin_data(PinnedDrop)]
struct VfioDevice {
    vm: Arc<Vm>,
    #[pin]
    files: Mutex<Files>,
}

/// Groups and devices.
struct Files {
    list: KVVec<FileRef>,
    /// The DMA of one of them may go past the caches.
    incoherent: bool,
}

#[pinned_drop]
impl PinnedDrop for VfioDevice {
    fn drop(self: Pin<&mut Self>) {
        if self.files.lock().incoherent {
            self.vm
                .for_each_memory(|memory| memory.set_incoherent(false));
        }
        self.vm.has_vfio.store(false, Ordering::Release);
    }
}

impl VfioDevice {
    fn set(&self, attr: &k::kvm_device_attr) -> Result {
        if !exists(attr) {
            return Err(ENXIO);
        }
        let file = FileRef::from_fd(uapi::get::<i32>(usize::try_from(attr.addr)?)?)?;
        let mut files = self.files.lock();
        let at = files.list.iter().position(|f| *f == file);
        if attr.attr == u64::from(k::KVM_DEV_VFIO_FILE_DEL) {
            // Another file may go with it: outside of the lock.
            let gone = files.list.remove(at.ok_or(ENOENT)?);
            self.update(&mut files);
            drop(files);
            drop(gone);
            return Ok(());
        }
        if !file.is_vfio() {
            return Err(EINVAL);
        }
        if at.is_some() {
            return Err(EEXIST);
        }
        files.list.push(file, GFP_KERNEL_ACCOUNT)?;
        self.update(&mut files);
        Ok(())
    }

    /// One that comes may change what holds for those that share its container: all are asked.
    fn update(&self, files: &mut Files) {
        let incoherent = files.list.iter().any(|f| !f.vfio_is_coherent());
        if incoherent != files.incoherent {
            files.incoherent = incoherent;
            self.vm
                .for_each_memory(|memory| memory.set_incoherent(incoherent));
        }
    }
}

fn exists(attr: &k::kvm_device_attr) -> bool {
    attr.group == k::KVM_DEV_VFIO_FILE
        && (attr.attr == u64::from(k::KVM_DEV_VFIO_FILE_ADD)
            || attr.attr == u64::from(k::KVM_DEV_VFIO_FILE_DEL))
}

#[vtable]
impl FileOperations for VfioDevice {
    const NAME: &'static CStr = c"kvm-vfio";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.vm.check_mm()?;
        match cmd {
            uapi::KVM_SET_DEVICE_ATTR => this.set(&uapi::get(arg)?)?,
            uapi::KVM_GET_DEVICE_ATTR => return Err(EPERM),
            uapi::KVM_HAS_DEVICE_ATTR if exists(&uapi::get(arg)?) => {}
            uapi::KVM_HAS_DEVICE_ATTR => return Err(ENXIO),
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

/// KVM_CREATE_DEVICE (api.rst 4.79) on a VM.
#[inline(never)]
pub(crate) fn create_device(vm: &Arc<Vm>, arg: usize) -> Result<isize> {
    let mut request = uapi::get::<k::kvm_create_device>(arg)?;
    if request.type_ != k::kvm_device_type_KVM_DEV_TYPE_VFIO {
        return Err(ENODEV);
    }
    if request.flags & k::KVM_CREATE_DEVICE_TEST != 0 {
        return Ok(0);
    }
    // What its devices write is not seen.
    vm.memory.lose_reset_point();
    if vm.has_vfio.swap(true, Ordering::AcqRel) {
        return Err(EBUSY);
    }
    if vm.memory.has_forks() {
        vm.has_vfio.store(false, Ordering::Release);
        return Err(EBUSY);
    }
    let device = Arc::pin_init(
        pin_init!(VfioDevice {
            vm: vm.clone(),
            files <- new_mutex!(Files {
                list: KVVec::new(),
                incoherent: false,
            }),
        }),
        GFP_KERNEL_ACCOUNT,
    );
    let device = device.inspect_err(|_| vm.has_vfio.store(false, Ordering::Release))?;
    let file = NewFile::new(device)?;
    request.fd = file.fd() as u32;
    uapi::put(arg, &request)?;
    file.install();
    Ok(0)
}
