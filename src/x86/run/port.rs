// SPDX-License-Identifier: GPL-2.0
//! IN and OUT (SDM 1 19, SDM 3C 28.2.1 table 28-5; APM 2 15.10.2), and KVM_EXIT_IO.
//!
//! Dispatch calls, with the vCPU's mutex held, inside a stay or outside.

use super::{Runner, Step};
use crate::abi::exits;
use crate::abi::uapi::k;
use crate::abi::uapi::PIO_PAGE;
use crate::linux::mmap::Shared;
use crate::x86::cpu::regs::Gpr;
use crate::x86::emul::{mask, Op};
use crate::x86::exit::Io;
use crate::x86::vcpu::fetch::Known;
use crate::x86::vcpu::state::Completion;
use crate::x86::vendor::Stay;
use kernel::prelude::*;

impl Runner<'_> {
    /// IN, OUT, INS, OUTS.
    pub(super) fn io(&mut self, io: &Io, stay: Option<&Stay<'_>>) -> Step {
        if io.string {
            if stay.is_some() {
                return Step::Slow;
            }
            self.s.pending.io_port = Some((io.port, io.width));
            return self.decode_and_emulate(None, None, |op| matches!(op, Op::Ins | Op::Outs));
        }
        self.port(io, stay, false)
    }

    /// IN and OUT. `early`: an OUT is over when user space sees it, as in KVM that of an instruction that has not
    /// exited by itself.
    #[inline]
    pub(super) fn port(&mut self, io: &Io, stay: Option<&Stay<'_>>, early: bool) -> Step {
        if io.input {
            if let Some(value) = self.vm.chip.pio_read(io.port, io.width) {
                let step = self.skip(&Known::IN, stay);
                if matches!(step, Step::Again) {
                    self.set_accumulator(io.width, value);
                }
                return step;
            }
        } else {
            let value = (self.s.cpu.regs.get(Gpr::Rax) & mask(io.width)) as u32;
            // RIP moves only after the write, but the fetch that may have to sleep comes first.
            let claimed = self.vm.chip.claims_port(io.port, io.width);
            if claimed {
                let step = self.skip(&Known::OUT, stay);
                if matches!(step, Step::Again) {
                    let _ = self.vm.pio_write(io.port, io.width, value);
                }
                return step;
            }
            if self.vm.pio_event(io.port, io.width, value) {
                return self.skip(&Known::OUT, stay);
            }
            // In one piece: user space looks at the first `width` bytes only, and the rest is zero. KVM_RUN has
            // allocated the page.
            let _ = self.run.write(PIO_PAGE, value);
        }
        if io.input {
            self.s.pending.completion = Completion::PortIn(io.width);
        } else if early
            // The BIOS's port.
            || io.port == 0x7e && self.vm.caps.quirk(k::KVM_X86_QUIRK_OUT_7E_INC_RIP)
        {
            let step = self.skip(&Known::OUT, stay);
            if !matches!(step, Step::Again) {
                return step;
            }
        } else {
            self.s.pending.completion = Completion::PortOut;
        }
        self.ask_io(io.input, io.width, io.port, 1)
    }

    /// KVM_EXIT_IO.
    #[inline]
    pub(super) fn ask_io(&mut self, input: bool, width: u8, port: u16, count: u32) -> Step {
        let direction = if input {
            k::KVM_EXIT_IO_IN
        } else {
            k::KVM_EXIT_IO_OUT
        };
        self.ask(&exits::Io {
            direction: direction as u8,
            width,
            port,
            count,
            data_offset: PIO_PAGE as u64,
        })
    }

    /// User space has answered an IN of `width` bytes.
    pub(super) fn port_in_done(&mut self, width: u8) -> Step {
        let step = self.skip(&Known::IN, None);
        if matches!(step, Step::Again) {
            let Ok(value) = self.run.read::<u32>(PIO_PAGE) else {
                return Step::Fail(EFAULT);
            };
            self.set_accumulator(width, value);
        }
        step
    }

    fn set_accumulator(&mut self, width: u8, value: u32) {
        let rax = &mut self.s.cpu.regs.gpr[Gpr::Rax as usize];
        *rax = match width {
            1 => *rax & !0xff | u64::from(value & 0xff),
            2 => *rax & !0xffff | u64::from(value & 0xffff),
            _ => u64::from(value),
        };
    }
}
