// SPDX-License-Identifier: GPL-2.0
//! The exit ledger: statistics of VMs and vCPUs, read through KVM_GET_STATS_FD (api.rst 4.133).

use crate::abi::ledger::VcpuLedger;
use crate::abi::stats::{
    id_string, Desc, StatsFile, Values, VmStats, VmValues, NAME_SIZE, VCPU_DESCS, VM_DESCS,
};
use crate::arch::Vm;
use crate::linux::anon_inode::{self, FileOperations};
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use kernel::uaccess::UserSliceWriter;

/// A statistics file. It keeps the VM alive, as KVM's does.
struct StatsFd<V> {
    vm: Arc<Vm>,
    id: [u8; NAME_SIZE],
    descs: &'static [Desc],
    values: Arc<V>,
}

impl<V> StatsFd<V> {
    fn copy(
        &self,
        values: &impl Values,
        buf: &mut UserSliceWriter,
        pos: &mut i64,
    ) -> Result<usize> {
        let file = StatsFile {
            id: &self.id,
            descs: self.descs,
            values,
        };
        let mut chunk = [0u8; 256];
        let mut total = 0usize;
        while !buf.is_empty() {
            let at = u64::try_from(*pos).map_err(|_| EINVAL)?;
            let want = buf.len().min(chunk.len());
            let Some(part) = chunk.get_mut(..want) else {
                break;
            };
            let n = file.read(at, part);
            if n == 0 {
                break;
            }
            buf.write_slice(part.get(..n).ok_or(EINVAL)?)?;
            *pos += n as i64;
            total += n;
        }
        Ok(total)
    }
}

#[vtable]
impl FileOperations for StatsFd<VcpuLedger> {
    const NAME: &'static CStr = c"kvm-vcpu-stats";

    fn number(this: ArcBorrow<'_, Self>) -> Option<u32> {
        Some(this.values.id)
    }

    fn ioctl(_this: ArcBorrow<'_, Self>, _file: &File, _cmd: u32, _arg: usize) -> Result<isize> {
        Err(ENOTTY)
    }

    fn read(this: ArcBorrow<'_, Self>, buf: &mut UserSliceWriter, pos: &mut i64) -> Result<usize> {
        this.copy(&*this.values, buf, pos)
    }
}

#[vtable]
impl FileOperations for StatsFd<VmStats> {
    const NAME: &'static CStr = c"kvm-vm-stats";

    fn ioctl(_this: ArcBorrow<'_, Self>, _file: &File, _cmd: u32, _arg: usize) -> Result<isize> {
        Err(ENOTTY)
    }

    fn read(this: ArcBorrow<'_, Self>, buf: &mut UserSliceWriter, pos: &mut i64) -> Result<usize> {
        let values = VmValues::new(&this.values, || this.vm.mapped());
        this.copy(&values, buf, pos)
    }
}

fn pid() -> u32 {
    u32::try_from(kernel::current!().group_leader().pid()).unwrap_or(0)
}

/// KVM_GET_STATS_FD on a VM.
pub(crate) fn vm_stats_fd(vm: &Arc<Vm>) -> Result<isize> {
    let values = vm.stats.clone();
    let file = StatsFd {
        vm: vm.clone(),
        id: id_string(pid(), None),
        descs: &VM_DESCS,
        values,
    };
    Ok(anon_inode::install(Arc::new(file, GFP_KERNEL_ACCOUNT)?)? as isize)
}

/// KVM_GET_STATS_FD on a vCPU.
pub(crate) fn vcpu_stats_fd(vm: &Arc<Vm>, ledger: &Arc<VcpuLedger>) -> Result<isize> {
    let values = ledger.clone();
    let file = StatsFd {
        vm: vm.clone(),
        id: id_string(pid(), Some(ledger.id)),
        descs: &VCPU_DESCS,
        values,
    };
    Ok(anon_inode::install(Arc::new(file, GFP_KERNEL_ACCOUNT)?)? as isize)
}
