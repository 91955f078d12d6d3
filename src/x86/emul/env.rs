// SPDX-License-Identifier: GPL-2.0
//! What an instruction under emulation needs from the outside, and how its execution can end.
#![forbid(unsafe_code)]

use crate::x86::cpu::regs::{DescTable, Seg, Segment};
use crate::x86::cpu::xsave::FXSAVE;

/// Why an instruction was not completed. Registers hold the state of the last completed iteration (REP) or are
/// unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The instruction faults; RIP points at it.
    Exception {
        /// Vector number.
        vector: u8,
        /// Error code, if the vector pushes one in the current mode.
        error_code: Option<u32>,
        /// New CR2 (#PF only).
        cr2: Option<u64>,
    },
    /// User space has to complete an access first. Call again with the same instruction and unchanged registers.
    Suspend,
    /// The instruction is not emulated.
    Unsupported,
}

/// How a call that raised nothing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The instruction is completed: RIP is advanced, RFLAGS.RF is clear. The interrupt shadow ends here, and a
    /// single-step trap is due if RFLAGS.TF was set when the instruction began.
    Done,
    /// The instruction is not completed: the iteration budget is used up, or a locked update lost a race. RIP is
    /// unchanged; call again or let the guest execute it again. With RFLAGS.TF set a single-step trap is due after each
    /// iteration of a repeated string instruction, so one call executes one iteration and an `Again` with changed
    /// registers is a trap boundary.
    Again,
}

/// A port access of a string instruction: `count` items of `width` bytes between `port` and linear address `la`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRequest {
    /// Linear address of the first item. Unless `count` is 1 all items lie inside one 4 KiB page.
    pub la: u64,
    /// Number of items, at least 1.
    pub count: u32,
    /// Port number.
    pub port: u16,
    /// Item width in bytes: 1, 2 or 4.
    pub width: u8,
    /// Addresses descend (RFLAGS.DF).
    pub down: bool,
}

impl PortRequest {
    /// Linear address of item `n`, from 0 on.
    pub fn item(&self, n: u32) -> u64 {
        let bytes = u64::from(n).wrapping_mul(u64::from(self.width));
        if self.down {
            self.la.wrapping_sub(bytes)
        } else {
            self.la.wrapping_add(bytes)
        }
    }
}

/// Registers beyond the general ones.
///
/// What is set here takes effect: an instruction does so after its last access.
pub trait Machine {
    /// Loads a segment register, LDTR or TR.
    fn set_segment(&mut self, seg: Seg, value: &Segment);

    /// Loads GDTR or, if `idt`, IDTR.
    fn set_table(&mut self, idt: bool, value: &DescTable);

    /// Loads the low four bits of CR0, of which PE is not cleared.
    fn set_machine_status(&mut self, word: u16);

    /// No interrupt comes before the end of the next instruction: after MOV SS or POP SS, else after STI.
    fn hold_interrupts(&mut self, mov_ss: bool);

    /// NMIs are no longer blocked.
    fn unblock_nmis(&mut self);

    /// No translation is used that the processor has made.
    fn forget_translations(&mut self);

    /// XCR0.
    fn xcr0(&self) -> u64;

    /// YMM register `n` (0 to 15).
    fn vector(&mut self, n: u8) -> [u8; 32];

    /// Replaces the low half of YMM register `n`; with `whole` all of it, and zeroes what else the register has.
    fn set_vector(&mut self, n: u8, value: &[u8; 32], whole: bool);

    /// MMX register `n` (0 to 7).
    fn mmx(&mut self, n: u8) -> u64;

    /// The FPU's registers become MMX registers (SDM 1 9.5.1), of which `n` gets a value.
    fn enter_mmx(&mut self, set: Option<(u8, u64)>);

    /// Control word and status word of the FPU.
    fn fpu_words(&mut self) -> (u16, u16);

    /// The image that FXSAVE stores, `wide` with REX.W.
    fn fxsave(&mut self, wide: bool) -> [u8; FXSAVE];

    /// Loads an image, or as many registers as it holds; false, and nothing is loaded, for reserved bits of MXCSR.
    fn fxrstor(&mut self, image: &[u8], wide: bool) -> bool;
}

/// Memory and ports seen by an instruction.
///
/// `la` is a linear address after segmentation checks; paging and page crossing are the implementation's business.
/// Accesses are at most 32 bytes. Outside 64-bit mode no access reaches beyond 4 GiB.
pub trait Env {
    /// Reads `buf.len()` bytes.
    fn read(&mut self, la: u64, buf: &mut [u8]) -> Result<(), Stop>;

    /// Writes `data`, all of it or (on a fault) nothing.
    fn write(&mut self, la: u64, data: &[u8]) -> Result<(), Stop>;

    /// Raises the fault that a write of `len` bytes would raise. Called before a read with side effects that a write
    /// follows.
    fn probe_write(&mut self, la: u64, len: u8) -> Result<(), Stop>;

    /// [`Env::read`] of a descriptor table or the interrupt table of real mode: at privilege level 0 whatever the
    /// code's.
    fn read_system(&mut self, _la: u64, _buf: &mut [u8]) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    /// [`Env::write`] likewise.
    fn write_system(&mut self, _la: u64, _data: &[u8]) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    /// Reads less than a page of memory, of which no part is a device. The instruction has no other access.
    fn read_area(&mut self, _la: u64, _buf: &mut [u8]) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    /// Writes less than a page of memory likewise, all of it or nothing.
    fn write_area(&mut self, _la: u64, _data: &[u8]) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    /// Further registers; instructions that need them are not emulated where there are none.
    fn machine(&mut self) -> Option<&mut dyn Machine> {
        None
    }

    /// Atomically replaces `old` by `new`; false when memory no longer holds `old`. For MMIO, where `old` was just
    /// read, this is a plain write.
    fn cmpxchg(&mut self, la: u64, old: u64, new: u64, width: u8) -> Result<bool, Stop>;

    /// Called for INS and OUTS when CPL is above IOPL or in virtual-8086 mode: raises #GP(0) unless the I/O permission
    /// bitmap allows the access (SDM 1 19.5.2). A processor that exits for I/O has already checked this for the port
    /// of the exit.
    fn check_port(&mut self, port: u16, width: u8) -> Result<(), Stop>;

    /// Reads items from the port and stores them to memory, or to a device in its place; returns how many were done, 1
    /// to `count`. Memory has to be checked for writability before the port is read.
    fn port_in(&mut self, req: &PortRequest) -> Result<u32, Stop>;

    /// Loads items from memory and writes them to the port; returns how many were done, 1 to `count`.
    fn port_out(&mut self, req: &PortRequest) -> Result<u32, Stop>;

    /// Whether the processor that the guest believes in extends RCX, and the indices of MOVS and STOS, to 64 bits even
    /// where a count of 32 bits says that there is nothing to do: Intel's do.
    fn extends_idle_strings(&self) -> bool {
        false
    }

    /// Whether the processor has TZCNT; else it takes F3 0F BC as BSF (SDM 2D TZCNT).
    fn has_tzcnt(&self) -> bool {
        true
    }

    /// Whether the processor has LZCNT; else it takes F3 0F BD as BSR (SDM 2A LZCNT).
    fn has_lzcnt(&self) -> bool {
        true
    }

    /// The instruction or one iteration of it is over, its results are in the registers: whatever was recorded for a
    /// repetition of the attempt is obsolete.
    fn commit(&mut self);

    /// After [`Env::commit`]: whether something has been posted that has to be carried out before anything else is done
    /// with memory or ports.
    fn has_posted(&self) -> bool {
        false
    }
}
