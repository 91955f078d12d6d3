// SPDX-License-Identifier: GPL-2.0
//! Architectural register state of one vCPU in a vendor-neutral form (SDM 1 3.4, SDM 3A 2.1).
#![forbid(unsafe_code)]

use crate::x86::cpu::canonical::{WIDTH_4LEVEL, WIDTH_5LEVEL};
use crate::x86::cpu::masks::bits;

/// Index of a general-purpose register, in the encoding of ModRM/REX (SDM 2A 2.1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsp = 4,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    R14 = 14,
    R15 = 15,
}

impl Gpr {
    /// The register with the given 4-bit encoding; higher bits are ignored.
    pub const fn from_bits(n: u8) -> Self {
        match n & 15 {
            0 => Self::Rax,
            1 => Self::Rcx,
            2 => Self::Rdx,
            3 => Self::Rbx,
            4 => Self::Rsp,
            5 => Self::Rbp,
            6 => Self::Rsi,
            7 => Self::Rdi,
            8 => Self::R8,
            9 => Self::R9,
            10 => Self::R10,
            11 => Self::R11,
            12 => Self::R12,
            13 => Self::R13,
            14 => Self::R14,
            _ => Self::R15,
        }
    }
}

/// General-purpose registers, instruction pointer and flags. `gpr` is indexed by [`Gpr`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 ... R15.
    pub gpr: [u64; 16],
    /// Instruction pointer (an offset into CS outside 64-bit mode).
    pub rip: u64,
    /// RFLAGS; bit 1 always reads as one.
    pub rflags: u64,
}

impl Regs {
    /// Value of register `r`.
    #[inline]
    pub fn get(&self, r: Gpr) -> u64 {
        self.gpr[r as usize]
    }

    /// Replaces all 64 bits of register `r`.
    #[inline]
    pub fn set(&mut self, r: Gpr, value: u64) {
        self.gpr[r as usize] = value;
    }
}

/// RFLAGS bits (SDM 1 3.4.3).
#[allow(missing_docs)]
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const ID: u64 = 1 << 21;
}

/// RFLAGS as a guest may have them, of what user space sets.
pub const fn clean_rflags(v: u64) -> u64 {
    const DEFINED: u64 = 0x003f_7fd5;
    v & DEFINED | rflags::FIXED
}

/// CR0 bits (SDM 3A 2.5).
#[allow(missing_docs)]
pub mod cr0 {
    super::bits! { u64;
        /// The bits that exist; writes to others of the low 32 are ignored.
        DEFINED {
            PE = 0;
            MP = 1;
            EM = 2;
            TS = 3;
            ET = 4;
            NE = 5;
            WP = 16;
            AM = 18;
            NW = 29;
            CD = 30;
            PG = 31;
        }
    }
}

/// CR4 bits (SDM 3A 2.5).
#[allow(missing_docs)]
pub mod cr4 {
    super::bits! { u64;
        /// Bits that every 64-bit CPU has.
        BASE {
            VME = 0;
            PVI = 1;
            TSD = 2;
            DE = 3;
            PSE = 4;
            PAE = 5;
            MCE = 6;
            PGE = 7;
            PCE = 8;
            OSFXSR = 9;
            OSXMMEXCPT = 10;
        }
        {
            UMIP = 11;
            LA57 = 12;
            VMXE = 13;
            FSGSBASE = 16;
            PCIDE = 17;
            OSXSAVE = 18;
            SMEP = 20;
            SMAP = 21;
            PKE = 22;
            CET = 23;
            FRED = 32;
        }
    }
}

/// IA32_EFER bits (SDM 3A 2.2.1, APM 2 3.1.7).
#[allow(missing_docs)]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NX: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
    pub const FFXSR: u64 = 1 << 14;
    pub const AUTOIBRS: u64 = 1 << 21;
}

/// DR6 bits, and what a load leaves there (SDM 3B 19.2.3).
#[allow(missing_docs)]
pub mod dr6 {
    /// Bits that read as one; no condition is reported. The value after RESET.
    pub const RESET: u64 = 0xffff_0ff0;
    /// Debug-register access detected.
    pub const BD: u64 = 1 << 13;
    /// Single step.
    pub const BS: u64 = 1 << 14;
    /// B0 to B3, BD, BS, BT, RTM.
    const WRITABLE: u64 = 0x1e00f;

    /// DR6 after `value` is loaded.
    pub const fn loaded(value: u64) -> u64 {
        value & WRITABLE | RESET
    }
}

/// DR7 bits, and what a load leaves there (SDM 3B 19.2.4).
#[allow(missing_docs)]
pub mod dr7 {
    /// The bit that reads as one: no breakpoint is enabled. The value after RESET.
    pub const RESET: u64 = 1 << 10;
    /// Bits 12, 14 and 15 read as zero.
    const WRITABLE: u64 = 0xffff_2bff;

    /// DR7 after `value` is loaded.
    pub const fn loaded(value: u64) -> u64 {
        value & WRITABLE | RESET
    }
}

/// A segment register with its hidden part (SDM 3A 3.4.3). Field meaning as in `struct kvm_segment`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Segment {
    pub base: u64,
    /// Limit in bytes (already scaled by G).
    pub limit: u32,
    pub selector: u16,
    /// Type, 4 bits.
    pub typ: u8,
    /// Code/data (true) or system (false): the S bit.
    pub s: bool,
    pub dpl: u8,
    pub present: bool,
    pub avl: bool,
    pub l: bool,
    pub db: bool,
    pub g: bool,
    /// Not usable (null selector loaded); VMX's "unusable" bit.
    pub unusable: bool,
}

impl Segment {
    /// The segment register once it holds `selector`, whose descriptor is `raw` (SDM 3A 3.4.5): the first eight bytes
    /// of one of 16.
    pub const fn of_descriptor(selector: u16, raw: u64) -> Self {
        let g = raw >> 55 & 1 != 0;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        Self {
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: if g { limit << 12 | 0xfff } else { limit },
            selector,
            typ: (raw >> 40 & 15) as u8,
            s: raw >> 44 & 1 != 0,
            dpl: (raw >> 45 & 3) as u8,
            present: raw >> 47 & 1 != 0,
            avl: raw >> 52 & 1 != 0,
            l: raw >> 53 & 1 != 0,
            db: raw >> 54 & 1 != 0,
            g,
            unusable: false,
        }
    }

    /// The segment register once it holds `selector` in virtual-8086 mode (SDM 3B 22.2).
    pub fn virtual_8086(selector: u16) -> Self {
        Self {
            base: u64::from(selector) << 4,
            limit: 0xffff,
            selector,
            typ: 3,
            s: true,
            dpl: 3,
            present: true,
            ..Self::default()
        }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DescTable {
    pub base: u64,
    pub limit: u16,
}

/// Index of a segment register, in the encoding of the Sreg field (SDM 2D B.1.4), then TR and LDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Seg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
    Ldtr = 6,
    Tr = 7,
}

/// System state: control registers, EFER, segments, descriptor tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Sregs {
    /// Indexed by [`Seg`].
    pub seg: [Segment; 8],
    pub gdt: DescTable,
    pub idt: DescTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

impl Sregs {
    /// Segment register `s`.
    #[inline]
    pub fn seg(&self, s: Seg) -> &Segment {
        &self.seg[s as usize]
    }

    /// Mutable segment register `s`.
    #[inline]
    pub fn seg_mut(&mut self, s: Seg) -> &mut Segment {
        &mut self.seg[s as usize]
    }

    /// CPU mode given by CR0.PE, RFLAGS.VM, EFER.LMA and CS.L/CS.D.
    pub fn mode(&self, flags: u64) -> Mode {
        let cs = self.seg(Seg::Cs);
        Mode::of(self.cr0, self.efer, flags, cs.l, cs.db)
    }

    /// Bits of a canonical linear address: CR4.LA57 chooses.
    pub const fn linear_width(&self) -> u8 {
        if self.cr4 & cr4::LA57 != 0 {
            WIDTH_5LEVEL
        } else {
            WIDTH_4LEVEL
        }
    }

    /// PAE paging, where CR3 points to four PDPTEs that the processor keeps (SDM 3A 4.4.1).
    pub fn pae_paging(&self) -> bool {
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && self.efer & efer::LMA == 0
    }

    /// Current privilege level: DPL of SS (SDM 3C 24.4.1, APM 2 15.5.1); 3 in virtual-8086 mode, 0 in real mode.
    pub fn cpl(&self, flags: u64) -> u8 {
        if self.cr0 & cr0::PE == 0 {
            0
        } else if flags & rflags::VM != 0 {
            3
        } else {
            self.seg(Seg::Ss).dpl & 3
        }
    }
}

impl Seg {
    /// The segment register in a Sreg field; `None` for 6 and 7.
    pub const fn segment(n: u8) -> Option<Self> {
        Some(match n {
            0 => Self::Es,
            1 => Self::Cs,
            2 => Self::Ss,
            3 => Self::Ds,
            4 => Self::Fs,
            5 => Self::Gs,
            _ => return None,
        })
    }
}

/// Operating mode of the instruction stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real-address mode (16-bit defaults, segment base from the hidden part).
    Real,
    /// Virtual-8086 mode.
    Vm86,
    /// Protected or compatibility mode, 16-bit code segment.
    Prot16,
    /// Protected or compatibility mode, 32-bit code segment.
    Prot32,
    /// 64-bit mode.
    Long,
}

impl Mode {
    /// The mode under these values of CR0, EFER, RFLAGS, CS.L and CS.D.
    #[inline(always)]
    pub const fn of(cr0: u64, efer: u64, flags: u64, l: bool, d: bool) -> Self {
        if efer & efer::LMA != 0 && l {
            Self::Long
        } else if cr0 & cr0::PE == 0 {
            Self::Real
        } else if flags & rflags::VM != 0 {
            Self::Vm86
        } else if d {
            Self::Prot32
        } else {
            Self::Prot16
        }
    }
}
