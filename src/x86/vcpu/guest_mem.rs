// SPDX-License-Identifier: GPL-2.0
//! Guest memory as an instruction of the guest sees it: through the guest's own page tables.
//!
//! This file adds [`State::paging`] to [`State`]. The vCPU's thread calls it under the vCPU's mutex; what is translated
//! with it walks the tables in guest memory (SDM 3A chapter 5, APM 2 chapter 5), which may sleep outside a stay.

use crate::linux::user_atomic;
use crate::mem::addr::{Gpa, Gva};
use crate::mem::memory::{MemError, MemoryView};
use crate::mem::missing::Absent;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::Segment;
use crate::x86::emul::Stop;
use crate::x86::exit::Exception;
use crate::x86::paging::gwalk;
use crate::x86::paging::gwalk::{GuestRead, Paging, WalkError};
use crate::x86::vcpu::state::State;
use crate::x86::vendor::{choose, Groups, Stay};
use kernel::prelude::*;

/// Guest page-table entries as the walker reads them.
pub(super) struct Tables<'a, 'b> {
    pub(super) view: &'a MemoryView<'b>,
    /// The stay that goes on, if one does: then nothing sleeps.
    pub(super) stay: Option<&'a Stay<'a>>,
}

impl Tables<'_, '_> {
    /// `tried` is what a read that must not sleep has come to: outside a stay one that may sleep follows.
    #[inline]
    fn or_sleep<const N: usize>(
        &self,
        gpa: Gpa,
        tried: Result<[u8; N], MemError>,
    ) -> Result<[u8; N], MemError> {
        match tried {
            Err(MemError::Fault) if self.stay.is_none() => {
                let mut b = [0; N];
                self.view.read(gpa, &mut b).map(|()| b)
            }
            tried => tried,
        }
    }
}

impl GuestRead for Tables<'_, '_> {
    type Error = MemError;

    #[inline]
    fn read_u32(&mut self, gpa: Gpa) -> Result<u32, MemError> {
        let tried = self.view.try_read_u32(gpa).map(u32::to_le_bytes);
        self.or_sleep(gpa, tried).map(u32::from_le_bytes)
    }

    #[inline]
    fn read_u64(&mut self, gpa: Gpa) -> Result<u64, MemError> {
        let tried = self.view.try_read_u64(gpa).map(u64::to_le_bytes);
        self.or_sleep(gpa, tried).map(u64::from_le_bytes)
    }

    fn set_ad(&mut self, gpa: Gpa, old: u64, new: u64, bytes: u8) -> Result<bool, MemError> {
        match exchange(self.view, gpa, old, new, bytes, self.stay) {
            // Tables in read-only memory stay as they are, as in KVM.
            Err(MemError::NotRam) => Ok(true),
            done => done,
        }
    }
}

/// Atomic compare-and-exchange of guest memory inside a page.
pub(super) fn exchange(
    view: &MemoryView<'_>,
    gpa: Gpa,
    old: u64,
    new: u64,
    bytes: u8,
    stay: Option<&Stay<'_>>,
) -> Result<bool, MemError> {
    let hva = view.hva_to_write(gpa, stay.is_none())?;
    let attempt = || -> Result<bool> {
        Ok(match bytes {
            1 => user_atomic::cmpxchg_u8(hva, old as u8, new as u8)?.is_ok(),
            2 => user_atomic::cmpxchg_u16(hva, old as u16, new as u16)?.is_ok(),
            4 => user_atomic::cmpxchg_u32(hva, old as u32, new as u32)?.is_ok(),
            _ => user_atomic::cmpxchg_u64(hva, old, new)?.is_ok(),
        })
    };
    let done = match attempt() {
        Ok(d) => d,
        Err(_) if stay.is_some() => return Err(MemError::Fault),
        Err(_) => {
            view.check_present(gpa)?;
            crate::linux::gup::fault_in(hva, true).map_err(|_| MemError::Fault)?;
            attempt().map_err(|_| MemError::Fault)?
        }
    };
    if done {
        view.mark_dirty(gpa);
    }
    Ok(done)
}

/// Why linear memory could not be accessed.
pub(crate) enum LinearError {
    /// The access raises this exception.
    Fault(Exception),
    /// The page is missing, and user space brings it.
    Missing(Absent),
    /// There is no memory that could be accessed so.
    Unusable,
}

impl LinearError {
    /// What it means that page tables do not translate `la` for `access`.
    pub(crate) fn of_walk(
        e: WalkError<MemError>,
        paging: &Paging,
        la: u64,
        access: gwalk::Access,
    ) -> Self {
        let (vector, error_code, payload) = match e {
            WalkError::PageFault { error_code } => (vector::PF, error_code, la),
            WalkError::NonCanonical => (vector::GP, 0, 0),
            WalkError::Access(MemError::NotRam) => (vector::PF, paging.no_table(access), la),
            WalkError::Access(e) => return e.into(),
            WalkError::Busy => return Self::Unusable,
        };
        Self::Fault(Exception {
            vector,
            error_code: Some(error_code),
            payload,
        })
    }

    /// How emulation ends with it: for a page that user space brings, kept in `missing`, it waits.
    pub(crate) fn into_stop(self, missing: &mut Option<Absent>) -> Stop {
        match self {
            Self::Fault(e) => Stop::Exception {
                vector: e.vector,
                error_code: e.error_code,
                cr2: (e.vector == vector::PF).then_some(e.payload),
            },
            Self::Missing(page) => {
                *missing = Some(page);
                Stop::Suspend
            }
            Self::Unusable => Stop::Unsupported,
        }
    }
}

impl From<MemError> for LinearError {
    fn from(e: MemError) -> Self {
        match e {
            MemError::Missing(page) => Self::Missing(page),
            _ => Self::Unusable,
        }
    }
}

/// Guest-physical address of linear address `la`. May sleep.
fn locate(
    view: &MemoryView<'_>,
    paging: &Paging,
    la: u64,
    access: gwalk::Access,
) -> Result<Gpa, LinearError> {
    let mut tables = Tables { view, stay: None };
    let gpa = paging
        .translate(&mut tables, Gva(la), access)
        .map_err(|e| LinearError::of_walk(e, paging, la, access))?;
    view.check_present(gpa)?;
    Ok(gpa)
}

/// How many of `len` bytes at `la` lie in its page, and where those after them begin.
fn first_part(la: u64, len: usize) -> (usize, u64) {
    let n = len.min(4096 - (la & 0xfff) as usize);
    (n, la.wrapping_add(n as u64))
}

/// Reads less than a page at linear address `la`. May sleep.
pub(crate) fn read_linear(
    view: &MemoryView<'_>,
    paging: &Paging,
    la: u64,
    access: gwalk::Access,
    buf: &mut [u8],
) -> Result<(), LinearError> {
    let (n, next) = first_part(la, buf.len());
    let (a, b) = buf.split_at_mut_checked(n).ok_or(LinearError::Unusable)?;
    let gpa = locate(view, paging, la, access)?;
    view.read(gpa, a)?;
    if !b.is_empty() {
        let gpa = locate(view, paging, next, access)?;
        view.read(gpa, b)?;
    }
    Ok(())
}

/// Writes less than a page at linear address `la`; nothing, if that faults. May sleep.
pub(crate) fn write_linear(
    view: &MemoryView<'_>,
    paging: &Paging,
    la: u64,
    access: gwalk::Access,
    data: &[u8],
) -> Result<(), LinearError> {
    let (n, next) = first_part(la, data.len());
    let (a, b) = data.split_at_checked(n).ok_or(LinearError::Unusable)?;
    let gpa = locate(view, paging, la, access)?;
    if !b.is_empty() {
        let gpa = locate(view, paging, next, access)?;
        view.write(gpa, b)?;
    }
    Ok(view.write(gpa, a)?)
}

/// Whether the I/O permission bitmap of the task whose TSS is `task` permits an access of `width` bytes (SDM 1 19.5.2).
/// A bitmap that cannot be read permits nothing, as in KVM. May sleep.
pub(crate) fn port_permitted(
    view: &MemoryView<'_>,
    paging: &Paging,
    task: &Segment,
    port: u16,
    width: u8,
) -> Result<bool, LinearError> {
    /// Where a TSS has the offset of its bitmap, and the least limit of one that has.
    const OFFSET: u64 = 102;
    const LIMIT: u32 = 103;
    if !task.present || task.limit < LIMIT {
        return Ok(false);
    }
    let word = |at: u64| {
        let mut bytes = [0u8; 2];
        let (la, access) = (
            task.base.wrapping_add(at),
            gwalk::Access::data(false, 0, false),
        );
        match read_linear(view, paging, la, access, &mut bytes) {
            Ok(()) => Ok(Some(u16::from_le_bytes(bytes))),
            Err(e @ LinearError::Missing(_)) => Err(e),
            Err(_) => Ok(None),
        }
    };
    let Some(bitmap) = word(OFFSET)? else {
        return Ok(false);
    };
    let at = u64::from(bitmap).wrapping_add(u64::from(port >> 3));
    if at > task.limit.into() {
        return Ok(false);
    }
    let Some(bits) = word(at)? else {
        return Ok(false);
    };
    let mask = (1u16 << (width & 7)).wrapping_sub(1);
    Ok(bits >> (port & 7) & mask == 0)
}

impl State {
    /// The paging in force.
    pub(crate) fn paging(&mut self) -> Paging {
        self.load(Groups::CTRL);
        self.paging_of(self.cpu.sregs.cr3)
    }

    /// The paging in force, with other page tables. Control registers are loaded.
    pub(crate) fn paging_of(&self, cr3: u64) -> Paging {
        let s = &self.cpu.sregs;
        let f = gwalk::Features {
            max_phys_bits: self.cpuid.features.maxphyaddr,
            pages_1g: self.cpuid.features.gbpages,
            pdpte_reserved: choose::pdpte_reserved(),
        };
        Paging::new(s.cr0, cr3, s.cr4, s.efer, self.xstate.pkru, f)
    }
}
