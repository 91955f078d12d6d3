// SPDX-License-Identifier: GPL-2.0
//! Pages that user space brings when the guest asks for them, and the record of first touches (uapi/rvmm.h).

use crate::abi::uapi::{self, MissingEvent, MissingRange, TouchList};
use crate::arch::Vm;
use crate::linux::anon_inode::{self, FileOperations};
use crate::linux::bindings::RVMM_EPOLLIN;
use crate::linux::{gup, sched};
use crate::mem::addr::{Gpa, PAGE_OFFSET_MASK, PAGE_SIZE};
use crate::mem::missing::{Event, Queue};
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::poll::PollTable;
use kernel::sync::{Arc, ArcBorrow};
use kernel::uaccess::UserSliceWriter;

/// The file by which user space learns of missing pages and answers. Any process may use it.
struct MissingFile {
    vm: Arc<Vm>,
    queue: Arc<Queue>,
}

/// RVMM_MISSING_QUEUE.
pub(super) fn open(vm: &Arc<Vm>) -> Result<isize> {
    let queue = vm.missing.open()?;
    let vm_of_file = vm.clone();
    let file = Arc::new(
        MissingFile {
            vm: vm_of_file,
            queue: queue.clone(),
        },
        GFP_KERNEL_ACCOUNT,
    );
    let opened = file.map_err(Error::from).and_then(anon_inode::install);
    if opened.is_err() {
        vm.missing.close(&queue);
    }
    Ok(opened? as isize)
}

#[vtable]
impl FileOperations for MissingFile {
    const NAME: &'static CStr = c"rvmm-missing";

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            uapi::RVMM_MISSING_RESOLVE => this.resolve(&uapi::get(arg)?).map(|()| 0),
            _ => Err(ENOTTY),
        }
    }

    fn read(this: ArcBorrow<'_, Self>, buf: &mut UserSliceWriter, _pos: &mut i64) -> Result<usize> {
        if buf.len() < size_of::<MissingEvent>() {
            return Err(EINVAL);
        }
        let mut done = 0;
        while buf.len() >= size_of::<MissingEvent>() {
            let Some((number, event)) = this.queue.take() else {
                break;
            };
            if let Err(e) = buf.write_slice(uapi::bytes_of(&wire(&event))) {
                this.queue.put_back(number);
                return if done == 0 { Err(e) } else { Ok(done) };
            }
            done += size_of::<MissingEvent>();
        }
        if done == 0 {
            return Err(EAGAIN);
        }
        Ok(done)
    }

    fn poll(this: ArcBorrow<'_, Self>, file: &File, table: PollTable<'_>) -> u32 {
        if this.queue.poll(file, table) {
            RVMM_EPOLLIN
        } else {
            0
        }
    }

    fn release(this: Arc<Self>) {
        this.vm.missing.close(&this.queue);
    }
}

/// `event` as user space reads it.
fn wire(event: &Event) -> MissingEvent {
    MissingEvent {
        gpa: event.page.gpa.0,
        hva: event.page.hva.0,
        vcpu: event.vcpu,
        flags: if event.write {
            uapi::RVMM_MISSING_WRITE
        } else {
            0
        },
    }
}

impl MissingFile {
    /// RVMM_MISSING_RESOLVE: what the user memory of the range has is mapped in the VM's address space, as by a read,
    /// and who waits for it goes on, to find it or the same error.
    fn resolve(&self, r: &MissingRange) -> Result {
        let end = r.gpa.checked_add(r.size).ok_or(EINVAL)?;
        if (r.gpa | r.size) & PAGE_OFFSET_MASK != 0 || r.size == 0 || r.flags != 0 {
            return Err(EINVAL);
        }
        let mut at = Gpa(r.gpa);
        let mut failed = None;
        let result = loop {
            if at.0 >= end {
                break Ok(());
            }
            if let Err(e) = self.bring_in(at) {
                // Without a slot there is nothing that would be missing.
                let memory = !self.vm.memory.view().is_device(at, false);
                failed = Some(at).filter(|_| e == EFAULT && memory);
                break Err(e);
            }
            at = at.wrapping_add(PAGE_SIZE);
            sched::cond_resched();
        };
        // Whoever calls again after a signal begins with the page at which it ended.
        let upto = if result == Err(EINTR) { at } else { Gpa(end) };
        self.queue.answer(Gpa(r.gpa), upto, failed);
        result
    }

    /// Maps what there is for one page.
    fn bring_in(&self, gpa: Gpa) -> Result {
        if sched::signal_pending() {
            return Err(EINTR);
        }
        let hva = self.vm.memory.view().hva(gpa, false)?;
        gup::fault_in_of(self.vm.mm(), hva, false)
    }
}

/// RVMM_RECORD_TOUCHES.
pub(super) fn record_touches(vm: &Vm, room: usize) -> Result {
    vm.memory.record_touches(room)
}

/// RVMM_GET_TOUCHES.
pub(super) fn touches(vm: &Vm, list: &mut TouchList) -> Result {
    let mut at = usize::try_from(list.pages)?;
    let put = |page: u64| {
        uapi::put(at, &page)?;
        at = at.checked_add(size_of::<u64>()).ok_or(EFAULT)?;
        Ok(())
    };
    (list.count, list.total) = vm.memory.touches.read(list.first, list.count, put)?;
    Ok(())
}
