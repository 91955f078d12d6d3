// SPDX-License-Identifier: GPL-2.0
//! Task switches (SDM 3A 9.3): guest memory and registers for [`task::switch`].
//!
//! This file adds [`State::switch_task`] to [`State`]. The run loop calls it under the vCPU's mutex, outside stays:
//! guest memory may have to be faulted in.

use crate::mem::memory::{MemError, MemoryView};
use crate::mem::missing::Absent;
use crate::x86::cpu::control;
use crate::x86::cpu::events::vector;
use crate::x86::cpu::regs::{dr7, rflags};
use crate::x86::emul::Stop;
use crate::x86::exit::TaskSwitch;
use crate::x86::paging::gwalk::{Access, Paging};
use crate::x86::task::{self, Failed};
use crate::x86::vcpu::guest_mem::{read_linear, write_linear, LinearError};
use crate::x86::vcpu::state::State;
use crate::x86::vendor::{Groups, VcpuBackend};
use crate::x86::vm::Vm;

/// Bits of DR7 that belong to a task: L0 to L3 and LE (SDM 3B 19.2.4).
const LOCAL_BREAKPOINTS: u64 = 0x155;

/// The guest's linear memory.
struct GuestMemory<'a, 'b> {
    vm: &'a Vm,
    s: &'a State,
    view: &'a MemoryView<'b>,
    paging: Paging,
    /// What a new CR3 has brought.
    pdptes: Option<[u64; 4]>,
    missing: Option<Absent>,
}

impl GuestMemory<'_, '_> {
    fn stop(&mut self, e: LinearError) -> Stop {
        e.into_stop(&mut self.missing)
    }
}

impl task::Memory for GuestMemory<'_, '_> {
    fn read(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop> {
        read_linear(self.view, &self.paging, la, Access::implicit(false), buf)
            .map_err(|e| self.stop(e))
    }

    fn write(&mut self, la: u64, data: &[u8]) -> Result<(), Stop> {
        write_linear(self.view, &self.paging, la, Access::implicit(true), data)
            .map_err(|e| self.stop(e))
    }

    fn push(&mut self, la: u64, data: &[u8], cpl: u8) -> Result<(), Stop> {
        let access = Access::data(true, cpl, self.s.cpu.regs.rflags & rflags::AC != 0);
        write_linear(self.view, &self.paging, la, access, data).map_err(|e| self.stop(e))
    }

    fn set_cr3(&mut self, cr3: u64) -> Result<(), Stop> {
        const GP: Stop = Stop::Exception {
            vector: vector::GP,
            error_code: Some(0),
            cr2: None,
        };
        let x = &self.s.cpu.sregs;
        let cr3 =
            control::cr3_write_check(cr3, x.cr4, x.efer, &self.s.cpuid.features).map_err(|_| GP)?;
        if x.pae_paging() {
            match self.s.read_pdptes(self.vm, cr3, None) {
                Ok(p) => self.pdptes = Some(p),
                Err(MemError::Missing(page)) => return Err(self.stop(LinearError::Missing(page))),
                Err(_) => return Err(GP),
            }
        }
        self.paging = self.s.paging_of(cr3);
        Ok(())
    }
}

/// How a task switch ended.
pub(crate) enum Switched {
    /// The new task runs.
    Done,
    /// As [`Failed`] says.
    Failed(Failed),
    /// Memory is missing that user space brings; nothing that has been done matters.
    Missing(Absent),
}

impl State {
    /// Switches to another task. The old one goes on `skip` bytes further, which its instruction is long.
    pub(crate) fn switch_task(
        &mut self,
        vm: &Vm,
        view: &MemoryView<'_>,
        t: &TaskSwitch,
        skip: u8,
        error_code: Option<u32>,
    ) -> Switched {
        self.load(Groups::ALL);
        let (mut regs, mut sregs) = (self.cpu.regs, self.cpu.sregs);
        regs.rip = regs.rip.wrapping_add(skip.into()) & 0xffff_ffff;
        let mut memory = GuestMemory {
            vm,
            paging: self.paging_of(sregs.cr3),
            s: self,
            view,
            pdptes: None,
            missing: None,
        };
        let result = task::switch(t, error_code, &mut regs, &mut sregs, &mut memory);
        let (pdptes, missing) = (memory.pdptes, memory.missing);
        if let Err(Failed::Before(stop)) = result {
            return match missing {
                Some(page) if stop == Stop::Suspend => Switched::Missing(page),
                _ => Switched::Failed(Failed::Before(stop)),
            };
        }
        self.cpu.regs = regs;
        self.cpu.sregs = sregs;
        self.cpu.avail = Groups::ALL;
        self.cpu.dirty = Groups::ALL;
        self.last_stay.tlb_generation = 0;
        if let Some(p) = pdptes {
            self.hw.set_pdptes(p);
        }
        let (addresses, control) = self.guest_breakpoints();
        self.set_guest_breakpoints(addresses, dr7::loaded(control & !LOCAL_BREAKPOINTS));
        self.hw.end_shadow();
        self.refresh_dynamic();
        match result {
            Ok(()) => Switched::Done,
            Err(e) => Switched::Failed(e),
        }
    }
}
