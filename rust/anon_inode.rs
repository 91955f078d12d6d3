// SPDX-License-Identifier: GPL-2.0

//! Files on the anonymous inode whose operations are a Rust trait.
//!
//! C headers: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use core::marker::PhantomData;
use core::ptr::NonNull;

use kernel::error::{from_err_ptr, from_result, VTABLE_DEFAULT_ERROR};
use kernel::ffi::{c_char, c_int, c_long, c_uint, c_ulong};
use kernel::fs::file::{flags, FileDescriptorReservation};
use kernel::fs::{File, LocalFile};
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::aref::ARef;
use kernel::sync::poll::PollTable;
use kernel::sync::{Arc, ArcBorrow};
use kernel::uaccess::{UserPtr, UserSlice, UserSliceWriter};

use super::bindings;

/// What a file of this type does. The file owns one reference to the object.
///
/// Operations that are not implemented answer as the kernel does for a missing table entry. The file pins
/// this module: it cannot be unloaded while a file exists. Positions and seeking mean nothing (`read` is
/// given its position; `llseek` does nothing).
///
/// Implement it with `#[vtable]`.
#[vtable]
pub trait FileOperations: Sized + Send + Sync + 'static {
    /// Name in `/proc/PID/fd`: `anon_inode:NAME`.
    const NAME: &'static CStr;

    /// The file has an inode to itself, so that its mappings can be told from those of other files.
    const OWN_INODE: bool = false;

    /// Number after the name, for files of which a process has several: `anon_inode:NAME:N`.
    fn number(_this: ArcBorrow<'_, Self>) -> Option<u32> {
        None
    }

    /// `ioctl(2)`; `cmd` is the full command. Runs in the caller's context and may sleep.
    fn ioctl(_this: ArcBorrow<'_, Self>, _file: &File, _cmd: u32, _arg: usize) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// `ioctl(2)` of a 32-bit caller. Without it `ioctl` is called with `arg` cut to 32 bits.
    fn compat_ioctl(
        _this: ArcBorrow<'_, Self>,
        _file: &File,
        _cmd: u32,
        _arg: usize,
    ) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// `mmap(2)`. Without it: `ENODEV`.
    fn mmap(_this: ArcBorrow<'_, Self>, _vma: &VmaNew) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// `read(2)`: writes at most `buf.len()` bytes and returns how many. Without it: `EINVAL`.
    ///
    /// `pos` is the file position; an implementation that uses it advances it.
    fn read(
        _this: ArcBorrow<'_, Self>,
        _buf: &mut UserSliceWriter,
        _pos: &mut i64,
    ) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// `poll(2)`: registers with `table` and returns the ready `EPOLL*` bits. Without it: always ready.
    fn poll(_this: ArcBorrow<'_, Self>, _file: &File, _table: PollTable<'_>) -> u32 {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The last descriptor and mapping of the file are gone. The default drops the reference.
    fn release(this: Arc<Self>) {
        drop(this);
    }
}

struct Operations<T: FileOperations>(PhantomData<T>);

impl<T: FileOperations> Operations<T> {
    /// # Safety
    ///
    /// `file` is a live file of this table.
    #[inline(always)]
    unsafe fn object<'a>(file: *mut bindings::file) -> ArcBorrow<'a, T> {
        // SAFETY: The file is live, so its private data is set and not yet released.
        let private = unsafe { (*file).private_data };
        // SAFETY: By the table's invariant this came from `Arc::into_raw` and the file holds the reference.
        unsafe { ArcBorrow::from_raw(private.cast::<T>()) }
    }

    /// # Safety
    ///
    /// Called by the kernel as its entry of `TABLE`, for a file of that table.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `release` is called once and takes the file's reference over.
        T::release(unsafe { Arc::from_raw((*file).private_data.cast::<T>()) });
        0
    }

    /// # Safety
    ///
    /// Called by the kernel as its entry of `TABLE`, for a file of that table.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: The caller holds the file for the length of the call.
        let (this, file) = unsafe { (Self::object(file), File::from_raw_file(file)) };
        from_result(|| T::ioctl(this, file, cmd, arg))
    }

    /// # Safety
    ///
    /// Called by the kernel as its entry of `TABLE`, for a file of that table.
    unsafe extern "C" fn compat_ioctl(
        file: *mut bindings::file,
        cmd: c_uint,
        arg: c_ulong,
    ) -> c_long {
        let arg = arg & 0xffff_ffff;
        // SAFETY: The caller holds the file for the length of the call.
        let (this, file) = unsafe { (Self::object(file), File::from_raw_file(file)) };
        from_result(|| {
            if T::HAS_COMPAT_IOCTL {
                T::compat_ioctl(this, file, cmd, arg)
            } else {
                T::ioctl(this, file, cmd, arg)
            }
        })
    }

    /// # Safety
    ///
    /// Called by the kernel as its entry of `TABLE`, for a file of that table.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The caller holds the file, and the area is being set up.
        let (this, vma) = unsafe { (Self::object(file), VmaNew::from_raw(vma)) };
        from_result(|| T::mmap(this, vma).map(|()| 0))
    }

    /// # Safety
    ///
    /// Called by the kernel as its entry of `TABLE`, for a file of that table.
    unsafe extern "C" fn read(
        file: *mut bindings::file,
        buf: *mut c_char,
        len: usize,
        pos: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The caller holds the file for the length of the call.
        let this = unsafe { Self::object(file) };
        let mut writer = UserSlice::new(UserPtr::from_ptr(buf.cast()), len).writer();
        let mut position = if pos.is_null() {
            0
        } else {
            // SAFETY: Not null (a stream), so it points to a position that this call owns.
            unsafe { *pos }
        };
        match T::read(this, &mut writer, &mut position) {
            Ok(count) => {
                if !pos.is_null() {
                    // SAFETY: `pos` is not null, and the position is this call's.
                    unsafe { *pos = position };
                }
                count as isize
            }
            Err(e) => e.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called by the kernel as its entry of `TABLE`, for a file of that table.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: The caller holds the file for the length of the call.
        let (this, file) = unsafe { (Self::object(file), File::from_raw_file(file)) };
        // SAFETY: `table` is null or valid for the length of the call.
        T::poll(this, file, unsafe { PollTable::from_raw(table) })
    }

    const TABLE: bindings::file_operations = bindings::file_operations {
        owner: kernel::module::this_module::<T::OwnerModule>().as_ptr(),
        release: Some(Self::release),
        llseek: Some(bindings::noop_llseek),
        unlocked_ioctl: if T::HAS_IOCTL {
            Some(Self::ioctl)
        } else {
            None
        },
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: if T::HAS_IOCTL || T::HAS_COMPAT_IOCTL {
            Some(Self::compat_ioctl)
        } else {
            None
        },
        mmap: if T::HAS_MMAP { Some(Self::mmap) } else { None },
        read: if T::HAS_READ { Some(Self::read) } else { None },
        poll: if T::HAS_POLL { Some(Self::poll) } else { None },
        ..pin_init::zeroed()
    };

    /// The table, in static memory: one for each type.
    #[inline(never)]
    fn table() -> &'static bindings::file_operations {
        &Self::TABLE
    }
}

/// Builds a file that owns `object`, without a descriptor.
///
/// On failure (`ENOMEM`, `ENFILE`) the reference is dropped and `release` does not run.
pub fn file<T: FileOperations>(object: Arc<T>) -> Result<ARef<File>> {
    let numbered = T::number(object.as_arc_borrow())
        .map(|number| CString::try_from_fmt(fmt!("{}:{number}", T::NAME)))
        .transpose()?;
    let name = numbered.as_deref().unwrap_or(T::NAME).as_char_ptr();
    let (private, table) = (Arc::into_raw(object), Operations::<T>::table());
    let (data, flags) = (private.cast_mut().cast(), flags::O_RDWR as c_int);
    // Without a position to seek, `pread` has to be asked for.
    let mode = if T::HAS_READ {
        bindings::RVMM_FMODE_PREAD
    } else {
        0
    };
    // SAFETY: The table is static and the name is copied; `data` is what the table's functions expect.
    let result = from_err_ptr(unsafe {
        if T::OWN_INODE {
            bindings::anon_inode_create_getfile(name, table, data, flags, core::ptr::null())
        } else {
            bindings::anon_inode_getfile_fmode(name, table, data, flags, mode)
        }
    });
    match result {
        Ok(file) => {
            // SAFETY: A successful call returns a file with one reference, which is ours; nobody else has
            // seen it, so no `fdget_pos` is active.
            Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) })
        }
        Err(e) => {
            // SAFETY: The failed call did not take the reference.
            drop(unsafe { Arc::from_raw(private) });
            Err(e)
        }
    }
}

/// The object behind descriptor `fd` of the current process, if the file is of this type. Errors: `EBADF`; `EINVAL` for
/// another type.
pub fn object<T: FileOperations>(fd: i32) -> Result<Arc<T>> {
    let fd = u32::try_from(fd).map_err(|_| EBADF)?;
    let file = LocalFile::fget(fd)?;
    let raw = file.as_ptr();
    // SAFETY: The reference keeps the file, whose operations do not change.
    if !core::ptr::eq(unsafe { (*raw).f_op }, Operations::<T>::table()) {
        return Err(EINVAL);
    }
    // SAFETY: The file is live for as long as `file`, and of this type.
    Ok(unsafe { Operations::<T>::object(raw) }.into())
}

/// A reserved descriptor and a finished file that user space cannot see yet.
///
/// Dropping it gives both back: the file's `release` runs, no descriptor ever existed.
pub struct NewFile {
    fd: FileDescriptorReservation,
    file: ARef<File>,
}

impl NewFile {
    /// Reserves a close-on-exec descriptor and builds the file.
    ///
    /// Errors: `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new<T: FileOperations>(object: Arc<T>) -> Result<Self> {
        let fd = FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)?;
        Ok(Self {
            fd,
            file: file(object)?,
        })
    }

    /// The descriptor that [`NewFile::install`] will make visible.
    pub fn fd(&self) -> i32 {
        self.fd.reserved_fd() as i32
    }

    /// Makes the file visible and returns its descriptor. The last step: it cannot be taken back.
    pub fn install(self) -> i32 {
        let fd = self.fd();
        self.fd.fd_install(self.file);
        fd
    }
}

/// [`NewFile::new`] and [`NewFile::install`] in one.
pub fn install<T: FileOperations>(object: Arc<T>) -> Result<i32> {
    Ok(NewFile::new(object)?.install())
}
