// SPDX-License-Identifier: GPL-2.0
//! The file of a vCPU's recorder (uapi/rvmm.h).

use crate::abi::uapi::{self, RecordRing};
use crate::arch::{request, Vcpu, VcpuShared};
use crate::bus::recorder::Ring;
use crate::linux::anon_inode::{FileOperations, NewFile};
use crate::linux::boot_cpu;
use crate::linux::lines::Lines;
use kernel::fs::File;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// The file. It keeps neither the VM nor the vCPU, only what others see of that.
struct RecordFile {
    vcpu: Arc<VcpuShared>,
    ring: Arc<Ring>,
}

#[vtable]
impl FileOperations for RecordFile {
    const NAME: &'static CStr = c"rvmm-record";

    fn number(this: ArcBorrow<'_, Self>) -> Option<u32> {
        Some(this.vcpu.id)
    }

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            uapi::RVMM_RECORD_CONSUMED => {
                this.ring.consume(uapi::get(arg)?);
                Ok(0)
            }
            _ => Err(ENOTTY),
        }
    }

    fn mmap(this: ArcBorrow<'_, Self>, vma: &VmaNew) -> Result {
        Lines::map(this.ring.lines(), vma)
    }

    fn release(this: Arc<Self>) {
        this.vcpu.recording.clear();
        this.vcpu.request(request::RECORD);
    }
}

/// RVMM_RECORD, on a vCPU, from any process that has its file.
pub(super) fn open(vcpu: &Vcpu, r: &RecordRing) -> Result<isize> {
    let shared = &vcpu.shared;
    let ring = Ring::new(shared.id, r.records, r.flags, boot_cpu::tsc_khz())?;
    let file = Arc::new(
        RecordFile {
            vcpu: shared.clone(),
            ring: ring.clone(),
        },
        GFP_KERNEL_ACCOUNT,
    )?;
    shared.recording.set(ring)?;
    let file = match NewFile::new(file) {
        Ok(file) => file,
        Err(e) => {
            shared.recording.clear();
            return Err(e);
        }
    };
    shared.request(request::RECORD);
    Ok(file.install() as isize)
}
