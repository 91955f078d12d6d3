// SPDX-License-Identifier: GPL-2.0
//! DMA of a VM's devices that the IOMMU has refused: counted, per device and in the VM's ledger, and logged once per
//! burst. Intel's driver does not tell of it, but logs it by itself (docs/design.md, 15).

use crate::abi::stats::{VmCounter, VmStats};
use crate::assign::burst::Burst;
use crate::linux::hrtimer::ktime_get_ns;
use crate::linux::iommu::{Refusal, Refusals, Source};
use crate::linux::pci::Device;
use kernel::prelude::*;
use kernel::sync::{new_spinlock, Arc, SpinLock};

struct Record {
    source: Source,
    burst: Burst,
    last: Refusal,
}

/// What was refused to a VM's devices.
#[pin_data]
pub(crate) struct Refused {
    stats: Arc<VmStats>,
    /// One for each device. Taken in the interrupt threads of IOMMU drivers, never in hard-interrupt context.
    #[pin]
    records: SpinLock<KVec<Record>>,
}

impl Refused {
    pub(crate) fn new(stats: Arc<VmStats>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                stats,
                records <- new_spinlock!(KVec::new()),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The device is going to be attached.
    pub(crate) fn begin(&self, device: &Device) -> Result {
        let count = self.records.lock().len();
        // Only the caller adds devices. Nothing is allocated or freed under the lock.
        let mut more = KVec::with_capacity(count.saturating_add(1), GFP_KERNEL_ACCOUNT)?;
        let mut records = self.records.lock();
        while let Some(record) = records.pop() {
            let _ = more.push_within_capacity(record);
        }
        let _ = more.push_within_capacity(Record {
            source: device.into(),
            burst: Burst::default(),
            last: Refusal::default(),
        });
        core::mem::swap(&mut *records, &mut more);
        drop(records);
        Ok(())
    }

    /// The device has been detached, or was not attached.
    pub(crate) fn end(&self, device: &Device) {
        let source = device.into();
        self.records.lock().retain(|r| r.source != source);
    }

    /// How often the device was refused, and what was the last time.
    pub(crate) fn of(&self, device: &Device) -> (u64, Refusal) {
        let source = device.into();
        let records = self.records.lock();
        records
            .iter()
            .find(|r| r.source == source)
            .map_or((0, Refusal::default()), |r| (r.burst.count(), r.last))
    }
}

impl Refusals for Refused {
    fn refused(&self, source: Source, name: &CStr, what: Refusal) {
        self.stats.add(VmCounter::DmaFaults, 1);
        let begins = {
            let mut records = self.records.lock();
            match records.iter_mut().find(|r| r.source == source) {
                Some(record) => {
                    record.last = what;
                    record.burst.another(ktime_get_ns())
                }
                None => false,
            }
        };
        if begins {
            pr_warn!(
                "{}: DMA to {:#x} refused ({})\n",
                name.to_str().unwrap_or("?"),
                what.iova,
                if what.write { "write" } else { "read" }
            );
        }
    }
}
