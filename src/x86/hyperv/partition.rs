// SPDX-License-Identifier: GPL-2.0
//! What a VM's vCPUs have in common of Hyper-V's interface: a "partition" (TLFS 1).
//!
//! The lock is taken below a vCPU's mutex, in process context, and may be held while guest memory is written.

use crate::abi::uapi::k;
use crate::linux::eventfd::EventFdCtx;
use crate::x86::hyperv::tsc_page::{PageState, Reference};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::prelude::*;
use kernel::sync::lock::{mutex::MutexBackend, Guard};
use kernel::sync::{new_mutex, Mutex};

/// Registers of synthetic debugging (TLFS does not name them; user space has the debugger).
#[derive(Clone, Copy, Default)]
#[allow(missing_docs)]
pub(super) struct Debug {
    pub(super) control: u64,
    pub(super) status: u64,
    pub(super) send_page: u64,
    pub(super) recv_page: u64,
    pub(super) pending_page: u64,
    pub(super) options: u64,
}

/// Registers that all vCPUs share.
#[derive(Clone, Copy, Default)]
pub(super) struct Registers {
    /// GUEST_OS_ID.
    pub(super) guest_os_id: u64,
    /// HYPERCALL.
    pub(super) hypercall: u64,
    /// REFERENCE_TSC.
    pub(super) tsc_page: u64,
    /// Whether that page is valid.
    pub(super) page_state: PageState,
    /// What it says.
    pub(super) reference: Reference,
    /// CRASH_P0 to CRASH_P4.
    pub(super) crash: [u64; 5],
    /// CRASH_CTL.
    pub(super) crash_control: u64,
    /// REENLIGHTENMENT_CONTROL: kept; nobody is told of a change of the TSC's frequency.
    pub(super) reenlightenment: u64,
    /// TSC_EMULATION_CONTROL: not zero, the reference TSC page stays as it is. The TSC is never emulated.
    pub(super) emulation_control: u64,
    /// TSC_EMULATION_STATUS.
    pub(super) emulation_status: u64,
    /// TSC_INVARIANT_CONTROL.
    pub(super) invariant_control: u64,
    /// Synthetic debugging.
    pub(super) debug: Debug,
}

/// What the lock protects.
pub(super) struct Inner {
    pub(super) registers: Registers,
    /// Eventfds by connection id (KVM_HYPERV_EVENTFD), sorted.
    ports: KVVec<(u32, EventFdCtx)>,
}

/// The VM's part.
#[pin_data]
pub(crate) struct Partition {
    #[pin]
    inner: Mutex<Inner>,
    /// The guest has said who it is: it makes Hyper-V's hypercalls.
    identified: AtomicBool,
    /// There is a reference TSC page.
    has_page: AtomicBool,
}

/// All of it but for what user space has configured.
#[derive(Clone, Copy)]
pub(crate) struct Image(Registers);

impl Partition {
    /// As after RESET.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_mutex!(Inner {
                registers: Registers::default(),
                ports: KVVec::new(),
            }),
            identified: AtomicBool::new(false),
            has_page: AtomicBool::new(false),
        })
    }

    /// The registers. Sleeps.
    pub(super) fn lock(&self) -> Guard<'_, Inner, MutexBackend> {
        self.inner.lock()
    }

    /// The registers have changed: what is looked at without the lock follows.
    pub(super) fn publish(&self, r: &Registers) {
        self.identified.store(r.guest_os_id != 0, Ordering::Relaxed);
        self.has_page
            .store(r.page_state != PageState::Off, Ordering::Relaxed);
    }

    /// The guest makes Hyper-V's hypercalls.
    #[inline]
    pub(crate) fn is_identified(&self) -> bool {
        self.identified.load(Ordering::Relaxed)
    }

    /// There is a reference TSC page.
    #[inline]
    pub(super) fn has_page(&self) -> bool {
        self.has_page.load(Ordering::Relaxed)
    }

    /// User space is about to set the VM's clock: until a vCPU has written the page again the page's time is another
    /// one. Sleeps.
    pub(crate) fn clock_changes(&self) {
        if self.has_page() {
            let r = &mut self.lock().registers;
            if r.page_state == PageState::Set && r.emulation_control == 0 {
                r.page_state = PageState::Stale;
            }
        }
    }

    /// KVM_HYPERV_EVENTFD (api.rst 4.112). EINVAL, EBADF; EEXIST, ENOENT; ENOMEM.
    pub(crate) fn eventfd(&self, r: &k::kvm_hyperv_eventfd) -> Result {
        if r.flags & !k::KVM_HYPERV_EVENTFD_DEASSIGN != 0
            || r.conn_id & !k::KVM_HYPERV_CONN_ID_MASK != 0
        {
            return Err(EINVAL);
        }
        if r.flags != 0 {
            let ports = &mut self.lock().ports;
            let at = ports.binary_search_by_key(&r.conn_id, |p| p.0);
            let old = ports.remove(at.map_err(|_| ENOENT)?);
            return old.map(drop).map_err(|_| ENOENT);
        }
        let eventfd = EventFdCtx::from_fd(r.fd)?;
        let ports = &mut self.lock().ports;
        let at = match ports.binary_search_by_key(&r.conn_id, |p| p.0) {
            Ok(_) => return Err(EEXIST),
            Err(at) => at,
        };
        ports.reserve(1, GFP_KERNEL_ACCOUNT)?;
        ports
            .insert_within_capacity(at, (r.conn_id, eventfd))
            .map_err(|_| ENOMEM)
    }

    /// Signals the eventfd of a connection. False if there is none. Sleeps.
    pub(super) fn signal(&self, connection: u32) -> bool {
        let inner = self.lock();
        let at = inner.ports.binary_search_by_key(&connection, |p| p.0);
        let port = at.ok().and_then(|at| inner.ports.get(at));
        if let Some((_, eventfd)) = port {
            eventfd.signal();
        }
        port.is_some()
    }

    /// All of it as it is now.
    pub(crate) fn image(&self) -> Image {
        Image(self.lock().registers)
    }

    /// Becomes what it was. No vCPU runs.
    pub(crate) fn put_back(&self, image: &Image) {
        let inner = &mut *self.lock();
        inner.registers = image.0;
        self.publish(&inner.registers);
    }
}
