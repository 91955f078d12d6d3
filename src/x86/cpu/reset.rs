// SPDX-License-Identifier: GPL-2.0
//! What registers hold after RESET and INIT (SDM 3A table 11-1, APM 2 14.1.3).
#![forbid(unsafe_code)]

use crate::x86::cpu::regs::{DescTable, Seg, Segment, Sregs};

/// IA32_PAT after RESET (SDM 3A 12.12.4).
pub const PAT: u64 = 0x0007_0406_0007_0406;

/// A segment that begins at zero and has 64 KiB.
fn segment(typ: u8, s: bool) -> Segment {
    Segment {
        limit: 0xffff,
        typ,
        s,
        present: true,
        ..Segment::default()
    }
}

/// System registers after RESET or INIT. `cr0` keeps CD and NW on INIT.
pub fn sregs(cr0: u64) -> Sregs {
    let table = DescTable {
        base: 0,
        limit: 0xffff,
    };
    let mut s = Sregs {
        seg: [segment(3, true); 8],
        gdt: table,
        idt: table,
        cr0,
        ..Sregs::default()
    };
    *s.seg_mut(Seg::Cs) = Segment {
        base: 0xffff_0000,
        selector: 0xf000,
        ..segment(11, true)
    };
    *s.seg_mut(Seg::Ldtr) = segment(2, false);
    *s.seg_mut(Seg::Tr) = segment(11, false);
    s
}
