// SPDX-License-Identifier: GPL-2.0
//! The virtual machine control block (APM 2 appendix B).

use crate::linux::page::Pages;
use crate::mem::addr::Level;
use crate::x86::cpu::regs::{DescTable, Segment};
use core::mem::offset_of;
use core::ops::{Deref, DerefMut};
use kernel::prelude::*;

/// Clean bits: the groups of fields that a processor may keep between entries (APM 2 15.15.3).
mod group {
    /// Intercepts, PAUSE filter, TSC offset.
    pub(super) const INTERCEPTS: u32 = 0;
    pub(super) const MAPS: u32 = 1;
    pub(super) const ASID: u32 = 2;
    pub(super) const VINTR: u32 = 3;
    /// Nested paging, with the guest's PAT.
    pub(super) const NESTED: u32 = 4;
    /// CR0, CR3, CR4, EFER.
    pub(super) const CONTROL: u32 = 5;
    pub(super) const DEBUG: u32 = 6;
    /// GDTR and IDTR.
    pub(super) const TABLES: u32 = 7;
    /// ES, CS, SS, DS and the CPL.
    pub(super) const SEGMENTS: u32 = 8;
    pub(super) const CR2: u32 = 9;
    pub(super) const LBR: u32 = 10;
}

/// A field that the processor may keep from the last entry with this VMCB if the group's clean bit says that it has not
/// been written since. There is no other way to write it than [`Self::set`].
#[repr(transparent)]
pub(super) struct Cached<T, const GROUP: u32>(T);

impl<T: Copy + PartialEq, const GROUP: u32> Cached<T, GROUP> {
    /// The field's value.
    #[inline(always)]
    pub(super) const fn get(&self) -> T {
        self.0
    }

    /// Writes the field of the VMCB whose clean bits are `clean`.
    #[inline(always)]
    pub(super) fn set(&mut self, clean: &mut Clean, value: T) {
        if self.0 != value {
            self.0 = value;
            clean.0 &= !(1 << GROUP);
        }
    }
}

/// The clean bits of a VMCB; 0: everything is loaded.
#[repr(transparent)]
pub(super) struct Clean(u64);

impl Clean {
    /// All groups are as #VMEXIT has left them. AVIC's and shadow stacks' are among them, which are never written.
    #[inline(always)]
    pub(super) fn all(&mut self) {
        self.0 = (1 << 13) - 1;
    }

    /// The processor has nothing of this VMCB.
    pub(super) fn nothing(&mut self) {
        self.0 = 0;
    }

    /// The bits.
    pub(super) const fn bits(&self) -> u64 {
        self.0
    }
}

/// Control area, VMCB offset 0 (APM 2 table B-1).
#[repr(C)]
#[allow(missing_docs)]
pub(super) struct Control {
    /// Bit n: read of CRn; bit 16+n: write of CRn.
    pub(super) intercept_cr: Cached<u32, { group::INTERCEPTS }>,
    /// Bit n: read of DRn; bit 16+n: write of DRn.
    pub(super) intercept_dr: Cached<u32, { group::INTERCEPTS }>,
    /// Bit per exception vector.
    pub(super) intercept_exception: Cached<u32, { group::INTERCEPTS }>,
    pub(super) intercept_misc1: Cached<u32, { group::INTERCEPTS }>,
    pub(super) intercept_misc2: Cached<u32, { group::INTERCEPTS }>,
    pub(super) intercept_misc3: Cached<u32, { group::INTERCEPTS }>,
    _r0: [u8; 0x3c - 0x18],
    pub(super) pause_filter_threshold: Cached<u16, { group::INTERCEPTS }>,
    pub(super) pause_filter_count: Cached<u16, { group::INTERCEPTS }>,
    pub(super) iopm_base_pa: Cached<u64, { group::MAPS }>,
    pub(super) msrpm_base_pa: Cached<u64, { group::MAPS }>,
    pub(super) tsc_offset: Cached<u64, { group::INTERCEPTS }>,
    pub(super) asid: Cached<u32, { group::ASID }>,
    pub(super) tlb_control: u8,
    _r1: [u8; 3],
    /// V_TPR, V_IRQ, V_INTR_PRIO, V_IGN_TPR, V_INTR_MASKING, V_INTR_VECTOR.
    pub(super) vintr: Cached<u64, { group::VINTR }>,
    /// Bit 0: interrupt shadow.
    pub(super) interrupt_state: u64,
    pub(super) exit_code: u64,
    pub(super) exit_info1: u64,
    pub(super) exit_info2: u64,
    pub(super) exit_int_info: u64,
    /// Bit 0: NP_ENABLE.
    pub(super) nested_control: Cached<u64, { group::NESTED }>,
    _avic_bar: u64,
    _ghcb: u64,
    pub(super) event_inj: u64,
    pub(super) n_cr3: Cached<u64, { group::NESTED }>,
    pub(super) virt_ext: Cached<u64, { group::LBR }>,
    pub(super) clean: Clean,
    pub(super) next_rip: u64,
    pub(super) insn_len: u8,
    pub(super) insn_bytes: [u8; 15],
    _r2: [u8; 0x400 - 0xe0],
}

/// A segment register as saved in the VMCB.
#[derive(Clone, Copy, PartialEq)]
#[repr(C)]
pub(super) struct VmcbSegment {
    pub(super) selector: u16,
    /// Descriptor bits 55:52 and 47:40, concatenated to 12 bits.
    pub(super) attrib: u16,
    pub(super) limit: u32,
    pub(super) base: u64,
}

/// State-save area, VMCB offset 0x400 (APM 2 table B-2).
#[repr(C)]
#[allow(missing_docs)]
pub(super) struct Save {
    pub(super) es: Cached<VmcbSegment, { group::SEGMENTS }>,
    pub(super) cs: Cached<VmcbSegment, { group::SEGMENTS }>,
    pub(super) ss: Cached<VmcbSegment, { group::SEGMENTS }>,
    pub(super) ds: Cached<VmcbSegment, { group::SEGMENTS }>,
    pub(super) fs: VmcbSegment,
    pub(super) gs: VmcbSegment,
    pub(super) gdtr: Cached<VmcbSegment, { group::TABLES }>,
    pub(super) ldtr: VmcbSegment,
    pub(super) idtr: Cached<VmcbSegment, { group::TABLES }>,
    pub(super) tr: VmcbSegment,
    _r0: [u8; 0xcb - 0xa0],
    pub(super) cpl: Cached<u8, { group::SEGMENTS }>,
    _r1: u32,
    pub(super) efer: Cached<u64, { group::CONTROL }>,
    _r2: [u8; 0x148 - 0xd8],
    pub(super) cr4: Cached<u64, { group::CONTROL }>,
    pub(super) cr3: Cached<u64, { group::CONTROL }>,
    pub(super) cr0: Cached<u64, { group::CONTROL }>,
    pub(super) dr7: Cached<u64, { group::DEBUG }>,
    pub(super) dr6: Cached<u64, { group::DEBUG }>,
    pub(super) rflags: u64,
    pub(super) rip: u64,
    _r3: [u8; 0x1d8 - 0x180],
    pub(super) rsp: u64,
    _r4: [u8; 0x1f8 - 0x1e0],
    pub(super) rax: u64,
    pub(super) star: u64,
    pub(super) lstar: u64,
    pub(super) cstar: u64,
    pub(super) sfmask: u64,
    pub(super) kernel_gs_base: u64,
    pub(super) sysenter_cs: u64,
    pub(super) sysenter_esp: u64,
    pub(super) sysenter_eip: u64,
    pub(super) cr2: Cached<u64, { group::CR2 }>,
    _r5: [u8; 0x268 - 0x248],
    pub(super) g_pat: Cached<u64, { group::NESTED }>,
    _r6: [u8; 0x2e0 - 0x270],
    /// In force with the host's, where the processor virtualises it (APM 2 15.35.1).
    pub(super) spec_ctrl: u64,
    _r7: [u8; 0xc00 - 0x2e8],
}

/// One VMCB: a page.
#[repr(C, align(4096))]
pub(super) struct Vmcb {
    pub(super) control: Control,
    pub(super) save: Save,
}

impl Control {
    /// Has what `bits` of intercept vector 3 stand for exit, or not.
    #[inline]
    pub(super) fn intercept_misc1(&mut self, bits: u32, on: bool) {
        let others = self.intercept_misc1.get() & !bits;
        let bits = if on { bits } else { 0 };
        self.intercept_misc1.set(&mut self.clean, others | bits);
    }
}

impl Vmcb {
    /// Makes the guest's state zeroes.
    pub(super) fn clear_save(&mut self) {
        // SAFETY: `self.save` is ours alone, and zeroes are valid for its integers.
        unsafe { core::ptr::from_mut(&mut self.save).write_bytes(0, 1) };
        self.control.clean.nothing();
    }

    /// A digest of each group, for the entry checks.
    pub(super) fn groups(&self) -> [u64; 11] {
        // SAFETY: A VMCB has no padding, and every byte of its page has been written.
        let bytes =
            unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast::<u8>(), 4096) };
        let mut digests = [0xcbf2_9ce4_8422_2325_u64; 11];
        for (group, from, to) in GROUPS {
            let Some(digest) = digests.get_mut(group) else {
                continue;
            };
            for b in bytes.get(from..to).unwrap_or_default() {
                *digest = (*digest ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
            }
        }
        digests
    }
}

/// Clean bits, and which bytes they are for (from, to). This is said once more, by the manual and not by [`Cached`]
/// (APM 2 15.15.3, tables B-1 and B-2).
const GROUPS: [(usize, usize, usize); 18] = [
    (0, 0x00, 0x18),
    (0, 0x3c, 0x40),
    (0, 0x50, 0x58),
    (1, 0x40, 0x50),
    (2, 0x58, 0x5c),
    (3, 0x60, 0x68),
    (4, 0x90, 0x98),
    (4, 0xb0, 0xb8),
    (4, 0x668, 0x670),
    (5, 0x4d0, 0x4d8),
    (5, 0x548, 0x560),
    (6, 0x560, 0x570),
    (7, 0x460, 0x470),
    (7, 0x480, 0x490),
    (8, 0x400, 0x440),
    (8, 0x4cb, 0x4cc),
    (9, 0x640, 0x648),
    (10, 0x670, 0x698),
];

/// A page, zeroed at first, that the processor uses itself while guests run: a VMCB, or what VM_HSAVE_PA points to. It
/// is not aligned to 2 MiB: with SEV-SNP enabled the processor would take a huge page there for one of its own, and
/// faults on it (erratum; `snp_alloc_vmsa_page` of the kernel).
pub(super) struct HwPage(Pages);

impl HwPage {
    /// A page of zeroes. Errors: `ENOMEM`.
    pub(super) fn new() -> Result<Self> {
        // Those that are aligned so are held until there is another one, or else the next one would be the same.
        let mut aligned = [const { None }; 8];
        for held in &mut aligned {
            let page = Pages::new(0)?;
            if page.phys() % Level::L2.size() != 0 {
                return Ok(Self(page));
            }
            *held = Some(page);
        }
        Err(ENOMEM)
    }

    /// Physical address.
    #[inline(always)]
    pub(super) fn phys(&self) -> u64 {
        self.0.phys()
    }

    /// Address, as that of a `T`.
    #[inline(always)]
    fn as_ptr<T>(&self) -> *mut T {
        self.0.as_ptr()
    }
}

/// A VMCB and the page that it is.
pub(super) struct VmcbPage(HwPage);

impl VmcbPage {
    /// A VMCB of zeroes. Errors: `ENOMEM`.
    pub(super) fn new() -> Result<Self> {
        HwPage::new().map(Self)
    }

    /// Physical address, for VMRUN.
    #[inline(always)]
    pub(super) fn phys(&self) -> u64 {
        self.0.phys()
    }
}

impl Deref for VmcbPage {
    type Target = Vmcb;

    #[inline(always)]
    fn deref(&self) -> &Vmcb {
        // SAFETY: The page is ours, as large and as aligned as a VMCB, which any bytes are. It is written through
        // `deref_mut` only, and by VMRUN, whose caller has `&mut` of the vCPU and holds no reference into the VMCB
        // meanwhile.
        unsafe { &*self.0.as_ptr::<Vmcb>() }
    }
}

impl DerefMut for VmcbPage {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Vmcb {
        // SAFETY: The page is a VMCB as in `deref`, and `&mut self` says that there is no other reference.
        unsafe { &mut *self.0.as_ptr::<Vmcb>() }
    }
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(offset_of!(Control, pause_filter_threshold) == 0x3c);
    assert!(offset_of!(Control, iopm_base_pa) == 0x40);
    assert!(offset_of!(Control, tsc_offset) == 0x50);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, vintr) == 0x60);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, nested_control) == 0x90);
    assert!(offset_of!(Control, event_inj) == 0xa8);
    assert!(offset_of!(Control, n_cr3) == 0xb0);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Control, insn_len) == 0xd0);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, sysenter_eip) == 0x238);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, g_pat) == 0x268);
    assert!(offset_of!(Save, spec_ctrl) == 0x2e0);
};

/// Intercepts of CR4 reads and writes (APM 2 15.8.1).
pub(super) const CR4_ACCESS: u32 = 1 << 4 | 1 << (16 + 4);
/// Intercepts of CR0 reads and writes.
pub(super) const CR0_READ: u32 = 1 << 0;
#[allow(missing_docs)]
pub(super) const CR0_WRITE: u32 = 1 << 16;
/// Intercept of CR8 writes.
pub(super) const CR8_WRITE: u32 = 1 << (16 + 8);

/// TLB_CONTROL (APM 2 15.16.1).
pub(super) mod tlb_control {
    pub(in crate::x86::svm) const NOTHING: u8 = 0;
    pub(in crate::x86::svm) const FLUSH_ALL: u8 = 1;
    pub(in crate::x86::svm) const FLUSH_GUEST: u8 = 3;
}

/// Intercept bits of vector 3 (VMCB offset 0xc) that are no instruction's, or change.
pub(super) mod misc1 {
    pub(in crate::x86::svm) const INTR: u32 = 1 << 0;
    pub(in crate::x86::svm) const NMI: u32 = 1 << 1;
    pub(in crate::x86::svm) const SMI: u32 = 1 << 2;
    pub(in crate::x86::svm) const INIT: u32 = 1 << 3;
    pub(in crate::x86::svm) const VINTR: u32 = 1 << 4;
    /// CR0 writes that change other bits than TS and MP (APM 2 15.9).
    pub(in crate::x86::svm) const CR0_SEL_WRITE: u32 = 1 << 5;
    pub(in crate::x86::svm) const IRET: u32 = 1 << 20;
    pub(in crate::x86::svm) const PAUSE: u32 = 1 << 23;
    pub(in crate::x86::svm) const HLT: u32 = 1 << 24;
    pub(in crate::x86::svm) const IOIO_PROT: u32 = 1 << 27;
    pub(in crate::x86::svm) const MSR_PROT: u32 = 1 << 28;
    pub(in crate::x86::svm) const SHUTDOWN: u32 = 1 << 31;
}

/// Fields of `vintr` (VMCB offset 0x60).
pub(super) mod vintr {
    pub(in crate::x86::svm) const V_TPR: u64 = 0xf;
    pub(in crate::x86::svm) const V_IRQ: u64 = 1 << 8;
    const V_INTR_PRIO_MAX: u64 = 0xf << 16;
    const V_IGN_TPR: u64 = 1 << 20;
    /// A virtual interrupt as soon as the guest can take one, whatever its task priority (APM 2 15.21.4).
    pub(in crate::x86::svm) const PENDING: u64 = V_IRQ | V_INTR_PRIO_MAX | V_IGN_TPR;
    pub(in crate::x86::svm) const V_INTR_MASKING: u64 = 1 << 24;
    pub(in crate::x86::svm) const V_INTR_VECTOR_SHIFT: u32 = 32;
    pub(in crate::x86::svm) const V_INTR_VECTOR: u64 = 0xff << V_INTR_VECTOR_SHIFT;
}

/// Exit codes (APM 2 appendix C); those of mere instructions stand in `src/x86/exit.rs`.
pub(super) mod exit {
    pub(in crate::x86::svm) const CR_READ: u64 = 0x00;
    pub(in crate::x86::svm) const CR_READ_LAST: u64 = 0x0f;
    pub(in crate::x86::svm) const CR_WRITE: u64 = 0x10;
    pub(in crate::x86::svm) const CR_WRITE_LAST: u64 = 0x1f;
    pub(in crate::x86::svm) const DR_READ: u64 = 0x20;
    pub(in crate::x86::svm) const DR_WRITE_LAST: u64 = 0x3f;
    pub(in crate::x86::svm) const EXCEPTION: u64 = 0x40;
    pub(in crate::x86::svm) const EXCEPTION_LAST: u64 = 0x5f;
    /// Where the codes of intercept vector 3 begin; those of vector 4 follow.
    pub(in crate::x86::svm) const VECTOR_3: u64 = 0x60;
    pub(in crate::x86::svm) const INTR: u64 = 0x60;
    pub(in crate::x86::svm) const NMI: u64 = 0x61;
    pub(in crate::x86::svm) const SMI: u64 = 0x62;
    pub(in crate::x86::svm) const INIT: u64 = 0x63;
    pub(in crate::x86::svm) const VINTR: u64 = 0x64;
    pub(in crate::x86::svm) const CR0_SEL_WRITE: u64 = 0x65;
    pub(in crate::x86::svm) const CPUID: u64 = 0x72;
    pub(in crate::x86::svm) const IRET: u64 = 0x74;
    pub(in crate::x86::svm) const HLT: u64 = 0x78;
    pub(in crate::x86::svm) const IOIO: u64 = 0x7b;
    pub(in crate::x86::svm) const MSR: u64 = 0x7c;
    pub(in crate::x86::svm) const SHUTDOWN: u64 = 0x7f;
    pub(in crate::x86::svm) const VMMCALL: u64 = 0x81;
    pub(in crate::x86::svm) const NPF: u64 = 0x400;
    /// VMEXIT_INVALID, -1.
    pub(in crate::x86::svm) const INVALID: u64 = u64::MAX;
    /// The same from processors that write 32 bits only.
    pub(in crate::x86::svm) const INVALID32: u64 = u32::MAX as u64;
}

impl VmcbSegment {
    /// From the neutral form. SVM has no "unusable" bit: such a segment is stored as not present.
    pub(super) fn from_neutral(s: &Segment) -> Self {
        let attrib = u16::from(s.typ & 15)
            | u16::from(s.s) << 4
            | u16::from(s.dpl & 3) << 5
            | u16::from(s.present && !s.unusable) << 7
            | u16::from(s.avl) << 8
            | u16::from(s.l) << 9
            | u16::from(s.db) << 10
            | u16::from(s.g) << 11;
        Self {
            selector: s.selector,
            attrib,
            limit: s.limit,
            base: s.base,
        }
    }

    /// GDTR or IDTR from the neutral form.
    pub(super) fn from_table(t: &DescTable) -> Self {
        Self {
            selector: 0,
            attrib: 0,
            limit: t.limit.into(),
            base: t.base,
        }
    }

    /// GDTR or IDTR to the neutral form.
    pub(super) fn to_table(self) -> DescTable {
        DescTable {
            base: self.base,
            limit: self.limit as u16,
        }
    }

    /// To the neutral form.
    pub(super) fn to_neutral(self) -> Segment {
        let a = self.attrib;
        let present = a & 0x80 != 0;
        Segment {
            base: self.base,
            limit: self.limit,
            selector: self.selector,
            typ: (a & 15) as u8,
            s: a & 0x10 != 0,
            dpl: (a >> 5 & 3) as u8,
            present,
            avl: a & 0x100 != 0,
            l: a & 0x200 != 0,
            db: a & 0x400 != 0,
            g: a & 0x800 != 0,
            unusable: !present,
        }
    }
}
