// SPDX-License-Identifier: GPL-2.0
//! The file of a fork (uapi/rvmm.h): what a VM was, and its memory by mmap().

use crate::arch::{Fork, ResetPoint, Vm};
use crate::linux::anon_inode::{self, FileOperations};
use crate::linux::sched;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// The file of a fork.
struct ForkFile {
    fork: Fork,
}

#[vtable]
impl FileOperations for ForkFile {
    const NAME: &'static CStr = c"rvmm-fork";

    fn mmap(this: ArcBorrow<'_, Self>, vma: &VmaNew) -> Result {
        let memory = this.fork.memory();
        let own = sched::current_mm().is_some_and(|mm| memory.origin().is_of(&mm));
        if !own {
            return Err(EIO);
        }
        memory.map(vma)
    }
}

/// RVMM_FORK. `flags` are none yet.
pub(super) fn fork(vm: &Arc<Vm>, point: &ResetPoint, flags: usize) -> Result<isize> {
    if flags != 0 {
        return Err(EINVAL);
    }
    let fork = point.fork(vm)?;
    let file = Arc::new(ForkFile { fork }, GFP_KERNEL_ACCOUNT)?;
    Ok(anon_inode::install(file)? as isize)
}

/// RVMM_BECOME, with the descriptor of a fork.
pub(super) fn become_fork(vm: &Arc<Vm>, point: &ResetPoint, fd: usize) -> Result<isize> {
    let fd = i32::try_from(fd).map_err(|_| EBADF)?;
    let file = anon_inode::object::<ForkFile>(fd)?;
    if !file.fork.memory().origin().is_of(vm.mm()) {
        return Err(EIO);
    }
    point.become_fork(vm, &file.fork)?;
    Ok(0)
}
