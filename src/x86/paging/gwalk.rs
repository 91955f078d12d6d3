// SPDX-License-Identifier: GPL-2.0
//! The guest's own page tables: linear to guest-physical addresses (SDM 3A chapter 4, APM 2 chapter 5).
//!
//! Used where the hypervisor acts for the guest: to fetch and emulate instructions, for KVM_TRANSLATE. All
//! paging modes, access rights with WP, NX, SMEP, SMAP and PKU, reserved bits, accessed and dirty bits. The
//! tables are guest memory: each entry is read once, and a bit is only set in an entry that still has the
//! value that was checked.
#![forbid(unsafe_code)]

use crate::mem::addr::{Gpa, Gva, Level, MAX_PHYS_BITS, PAGE_OFFSET_MASK};
use crate::x86::cpu::regs::{cr0, cr4, efer};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE: u64 = 1 << 7;
/// Address bit 12 of a large leaf is its PAT bit.
const PAT_LARGE: u64 = 1 << 12;
const NO_EXEC: u64 = 1 << 63;
const ADDR: u64 = ((1 << MAX_PHYS_BITS) - 1) & !PAGE_OFFSET_MASK;
/// Reserved in a PDPTE of PAE paging, beside the address bits that do not exist (SDM 3A table 4-8).
pub const PDPTE_RESERVED: u64 = 0x1e6;
/// Position of the protection key in a leaf.
const KEY_SHIFT: u32 = 59;

/// Page-fault error code (SDM 3A 4.7).
#[allow(missing_docs)]
pub mod pfec {
    /// The fault was not for a missing entry.
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
    pub const PK: u32 = 1 << 5;
}

/// Guest memory as the walk sees it.
pub trait GuestRead {
    /// Why memory cannot be accessed, for example no slot there.
    type Error;

    /// Reads an aligned 4-byte entry, once.
    fn read_u32(&mut self, gpa: Gpa) -> Result<u32, Self::Error>;

    /// Reads an aligned 8-byte entry, once.
    fn read_u64(&mut self, gpa: Gpa) -> Result<u64, Self::Error>;

    /// Replaces the entry of `bytes` (4 or 8) at `gpa` by `new` if it still is `old`, atomically towards the
    /// guest's processors; says whether it was. Called only to set accessed and dirty bits.
    fn set_ad(&mut self, gpa: Gpa, old: u64, new: u64, bytes: u8) -> Result<bool, Self::Error>;
}

/// Kind of an access to a linear address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A write (or a read that will be followed by one).
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// A user-mode access: CPL 3 and not implicit (SDM 3A 4.6.1).
    pub user: bool,
    /// EFLAGS.AC, which lifts SMAP; false for implicit supervisor accesses.
    pub ac: bool,
}

impl Access {
    /// Instruction fetch at `cpl`.
    #[inline]
    pub const fn fetch(cpl: u8) -> Self {
        Self {
            write: false,
            fetch: true,
            user: cpl == 3,
            ac: false,
        }
    }

    /// Explicit data access at `cpl` with the given EFLAGS.AC.
    #[inline]
    pub const fn data(write: bool, cpl: u8, ac: bool) -> Self {
        Self {
            write,
            fetch: false,
            user: cpl == 3,
            ac,
        }
    }

    /// Implicit supervisor access: descriptor tables, TSS, interrupt delivery, whatever the CPL.
    #[inline]
    pub const fn implicit(write: bool) -> Self {
        Self {
            write,
            fetch: false,
            user: false,
            ac: false,
        }
    }
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError<E> {
    /// #PF with this error code; CR2 is the address asked for.
    PageFault {
        /// See [`pfec`].
        error_code: u32,
    },
    /// The address is not canonical: #GP or #SS, by the segment.
    NonCanonical,
    /// An entry cannot be read, or its accessed bit not be written.
    Access(E),
    /// Another processor changed the entries again and again: run the guest and come back.
    Busy,
}

/// Paging mode (SDM 3A 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    Bits32,
    Pae,
    Long4,
    Long5,
}

/// Processor features that change the meaning of page tables, from the guest's CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// MAXPHYADDR: CPUID 8000_0008h EAX bits 7:0.
    pub max_phys_bits: u8,
    /// 1 GiB pages: CPUID 8000_0001h EDX bit 26.
    pub pages_1g: bool,
    /// [`PDPTE_RESERVED`], unless the processor has other ideas.
    pub pdpte_reserved: u64,
}

/// All that a walk depends on, worked out from the control registers; valid until one of them changes.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    mode: Mode,
    /// CR0.WP.
    wp: bool,
    /// CR4.SMEP.
    smep: bool,
    /// CR4.SMAP.
    smap: bool,
    /// CR4.PSE, for 32-bit paging.
    pse: bool,
    /// A fetch is told in the error code.
    tell_fetch: bool,
    pages_1g: bool,
    max_phys_bits: u8,
    /// PKRU, or 0 (all allowed) with protection keys off.
    pkru: u32,
    /// Address of the root table.
    root: u64,
    /// Bits reserved in every entry of 8 bytes.
    reserved: u64,
    /// Bits reserved in PDPTEs beside those.
    pdpte_reserved: u64,
}

/// Result of one pass over the tables.
struct Pass {
    gpa: Gpa,
    /// An accessed bit, or the dirty bit for a write, is not set yet.
    stale: bool,
}

/// How a pass ends without a translation.
enum Stop<E> {
    Error(WalkError<E>),
    /// An entry changed between check and update.
    Changed,
}

impl<E> From<WalkError<E>> for Stop<E> {
    #[inline]
    fn from(e: WalkError<E>) -> Self {
        Self::Error(e)
    }
}

/// Passes before [`WalkError::Busy`].
const PASSES: u32 = 8;

impl Paging {
    /// Paging under these control registers. `pkru` counts only if CR4.PKE is set.
    #[inline]
    pub const fn new(cr0: u64, cr3: u64, cr4: u64, efer: u64, pkru: u32, f: Features) -> Self {
        let long = efer & efer::LMA != 0;
        let nxe = efer & efer::NX != 0;
        let mode = if cr0 & cr0::PG == 0 {
            Mode::Off
        } else if long {
            if cr4 & cr4::LA57 != 0 {
                Mode::Long5
            } else {
                Mode::Long4
            }
        } else if cr4 & cr4::PAE != 0 {
            Mode::Pae
        } else {
            Mode::Bits32
        };
        let phys = if f.max_phys_bits as u32 >= MAX_PHYS_BITS {
            ADDR | PAGE_OFFSET_MASK
        } else {
            1u64.wrapping_shl(f.max_phys_bits as u32).wrapping_sub(1)
        };
        // Bits 62:52 are ignored (and hold the protection key) in long mode only.
        let reserved = match mode {
            Mode::Pae => !(phys | NO_EXEC),
            _ => ADDR & !phys,
        };
        let root = match mode {
            Mode::Bits32 => cr3 & 0xffff_f000,
            Mode::Pae => cr3 & 0xffff_ffe0,
            _ => cr3 & ADDR,
        };
        Self {
            mode,
            wp: cr0 & cr0::WP != 0,
            smep: cr4 & cr4::SMEP != 0,
            smap: cr4 & cr4::SMAP != 0,
            pse: cr4 & cr4::PSE != 0,
            tell_fetch: cr4 & cr4::SMEP != 0 || (cr4 & cr4::PAE != 0 && nxe),
            pages_1g: f.pages_1g,
            max_phys_bits: f.max_phys_bits,
            pkru: if cr4 & cr4::PKE != 0 && long { pkru } else { 0 },
            root,
            reserved: reserved | if nxe { 0 } else { NO_EXEC },
            pdpte_reserved: f.pdpte_reserved,
        }
    }

    /// Whether `gva` is canonical in this mode; without 64-bit paging every address is (its upper half is not
    /// looked at).
    #[inline]
    pub const fn is_canonical(&self, gva: Gva) -> bool {
        let unused: u32 = match self.mode {
            Mode::Long4 => 16,
            Mode::Long5 => 7,
            _ => return true,
        };
        (gva.0.wrapping_shl(unused) as i64).wrapping_shr(unused) as u64 == gva.0
    }

    /// Translates `gva` for `access` and sets accessed and dirty bits as the processor would.
    ///
    /// # Errors
    ///
    /// See [`WalkError`].
    #[inline]
    pub fn translate<R: GuestRead>(
        &self,
        r: &mut R,
        gva: Gva,
        access: Access,
    ) -> Result<Gpa, WalkError<R::Error>> {
        if let Some(t) = self.translate_long4(r, gva, access) {
            return Ok(t);
        }
        self.translate_and_mark(r, gva, access)
    }

    /// The common case in a straight line: 4-level paging, a page of 4 KiB or 2 MiB, access allowed, nothing to
    /// be marked. `None` says no more than that it is not this case. That it agrees with the general walk is the test
    /// `straight_line_is_the_general_walk` in tools/logic/tests/mem_gwalk.rs.
    #[inline]
    fn translate_long4<R: GuestRead>(&self, r: &mut R, gva: Gva, access: Access) -> Option<Gpa> {
        const WANT: u64 = PRESENT | ACCESSED;
        if self.mode != Mode::Long4 || !self.is_canonical(gva) {
            return None;
        }
        let a = gva.0;
        let bad = self.reserved | WANT;
        // Address of the entry of `level` in the table that `entry` points to.
        let at = |entry: u64, level: Level| Gpa((entry & ADDR) | (level.index(a) as u64) << 3);
        let e4 = r.read_u64(at(self.root, Level::L4)).ok()?;
        if (e4 ^ WANT) & (bad | PAGE) != 0 {
            return None;
        }
        let e3 = r.read_u64(at(e4, Level::L3)).ok()?;
        if (e3 ^ WANT) & (bad | PAGE) != 0 {
            return None;
        }
        let e2 = r.read_u64(at(e3, Level::L2)).ok()?;
        if (e2 ^ WANT) & bad != 0 {
            return None;
        }
        let mut all = e4 & e3 & e2;
        let mut any = e4 | e3 | e2;
        let leaf;
        let level;
        if e2 & PAGE != 0 {
            if e2 & Level::L2.offset_mask() & ADDR & !PAT_LARGE != 0 {
                return None;
            }
            leaf = e2;
            level = Level::L2;
        } else {
            let e1 = r.read_u64(at(e2, Level::L1)).ok()?;
            if (e1 ^ WANT) & bad != 0 {
                return None;
            }
            all &= e1;
            any |= e1;
            leaf = e1;
            level = Level::L1;
        }
        if self.denied(all, any, access)
            || (self.pkru != 0 && all & USER != 0 && !access.fetch)
            || (access.write && leaf & DIRTY == 0)
        {
            return None;
        }
        let mask = level.offset_mask();
        Some(Gpa((leaf & ADDR & !mask) | (a & mask)))
    }

    /// Translates `gva` for `access` and leaves the tables alone (KVM_TRANSLATE, debuggers).
    ///
    /// # Errors
    ///
    /// See [`WalkError`].
    #[cold]
    pub fn probe<R: GuestRead>(
        &self,
        r: &mut R,
        gva: Gva,
        access: Access,
    ) -> Result<Gpa, WalkError<R::Error>> {
        match self.pass::<R, false>(r, gva, access) {
            Ok(p) => Ok(p.gpa),
            Err(Stop::Changed) => Err(WalkError::Busy),
            Err(Stop::Error(e)) => Err(e),
        }
    }

    /// All other cases of [`Paging::translate`].
    #[cold]
    fn translate_and_mark<R: GuestRead>(
        &self,
        r: &mut R,
        gva: Gva,
        access: Access,
    ) -> Result<Gpa, WalkError<R::Error>> {
        match self.pass::<R, false>(r, gva, access) {
            Ok(p) if !p.stale => return Ok(p.gpa),
            Ok(_) | Err(Stop::Changed) => {}
            Err(Stop::Error(e)) => return Err(e),
        }
        for _ in 0..PASSES {
            match self.pass::<R, true>(r, gva, access) {
                Ok(p) => return Ok(p.gpa),
                Err(Stop::Changed) => {}
                Err(Stop::Error(e)) => return Err(e),
            }
        }
        Err(WalkError::Busy)
    }

    /// One pass over the tables; with `MARK` it sets accessed and dirty bits.
    fn pass<R: GuestRead, const MARK: bool>(
        &self,
        r: &mut R,
        gva: Gva,
        access: Access,
    ) -> Result<Pass, Stop<R::Error>> {
        match self.mode {
            Mode::Long4 | Mode::Long5 => {
                if !self.is_canonical(gva) {
                    return Err(WalkError::NonCanonical.into());
                }
                let top = if matches!(self.mode, Mode::Long4) {
                    Level::L4
                } else {
                    Level::L5
                };
                self.pass_64::<R, MARK>(r, gva.0, access, self.root, top)
            }
            Mode::Pae => self.pass_pae::<R, MARK>(r, gva.0 & 0xffff_ffff, access),
            Mode::Bits32 => self.pass_32::<R, MARK>(r, gva.0 & 0xffff_ffff, access),
            Mode::Off => Ok(Pass {
                gpa: Gpa(gva.0 & 0xffff_ffff),
                stale: false,
            }),
        }
    }

    /// Entries of 8 bytes from `table`, whose entries are of level `level` (SDM 3A 4.4.2, 4.5.4).
    fn pass_64<R: GuestRead, const MARK: bool>(
        &self,
        r: &mut R,
        gva: u64,
        access: Access,
        mut table: u64,
        mut level: Level,
    ) -> Result<Pass, Stop<R::Error>> {
        // Rights are those that all entries give; fetch is disabled by any.
        let mut all = u64::MAX;
        let mut any = 0;
        loop {
            let at = Gpa(table | (level.index(gva) as u64).wrapping_shl(3));
            let entry = r.read_u64(at).map_err(WalkError::Access)?;
            if (entry ^ PRESENT) & (self.reserved | PRESENT) != 0 {
                return Err(self.bad_entry(entry, access).into());
            }
            all &= entry;
            any |= entry;
            let leaf = match level {
                Level::L1 => true,
                Level::L2 | Level::L3 => entry & PAGE != 0,
                Level::L4 | Level::L5 => {
                    if entry & PAGE != 0 {
                        return Err(self.fault(pfec::P | pfec::RSVD, access).into());
                    }
                    false
                }
            };
            if leaf {
                if level > Level::L1 {
                    let low = level.offset_mask() & ADDR & !PAT_LARGE;
                    if entry & low != 0 || (level == Level::L3 && !self.pages_1g) {
                        return Err(self.fault(pfec::P | pfec::RSVD, access).into());
                    }
                }
                let key = entry.wrapping_shr(KEY_SHIFT) as u32 & 15;
                self.check(all, any, key, access)?;
                let mask = level.offset_mask();
                let gpa = Gpa((entry & ADDR & !mask) | (gva & mask));
                return Self::leaf::<R, MARK>(r, at, entry, 8, all, access, gpa);
            }
            if MARK && entry & ACCESSED == 0 {
                Self::mark(r, at, entry, entry | ACCESSED, 8)?;
            }
            table = entry & ADDR;
            let Some(down) = level.down() else {
                return Err(WalkError::Busy.into());
            };
            level = down;
        }
    }

    /// PAE paging: four PDPTEs, then entries of 8 bytes. The PDPTEs are read from memory on each walk, as with
    /// nested paging on AMD (APM 2 15.25.10); a malformed one is a page fault then.
    #[inline(never)]
    fn pass_pae<R: GuestRead, const MARK: bool>(
        &self,
        r: &mut R,
        gva: u64,
        access: Access,
    ) -> Result<Pass, Stop<R::Error>> {
        let at = Gpa(self.root | (gva >> 30).wrapping_shl(3));
        let pdpte = r.read_u64(at).map_err(WalkError::Access)?;
        let reserved = self.reserved | NO_EXEC | self.pdpte_reserved;
        if pdpte & PRESENT == 0 {
            return Err(self.fault(0, access).into());
        }
        if pdpte & reserved != 0 {
            return Err(self.fault(pfec::P | pfec::RSVD, access).into());
        }
        self.pass_64::<R, MARK>(r, gva, access, pdpte & ADDR, Level::L2)
    }

    /// 32-bit paging, with 4 MiB pages if CR4.PSE (SDM 3A 4.3).
    #[inline(never)]
    fn pass_32<R: GuestRead, const MARK: bool>(
        &self,
        r: &mut R,
        gva: u64,
        access: Access,
    ) -> Result<Pass, Stop<R::Error>> {
        let at = Gpa(self.root | (gva >> 22).wrapping_shl(2));
        let pde = r.read_u32(at).map_err(WalkError::Access)? as u64;
        if pde & PRESENT == 0 {
            return Err(self.fault(0, access).into());
        }
        if self.pse && pde & PAGE != 0 {
            // PSE-36: bits 20:13 are address bits 39:32, as far as they exist; bit 21 is reserved.
            let high = (pde >> 13 & 0xff).wrapping_shl(32);
            let exists = 1u64
                .wrapping_shl((self.max_phys_bits as u32).min(40))
                .wrapping_sub(1);
            if pde & (1 << 21) != 0 || high & !exists != 0 {
                return Err(self.fault(pfec::P | pfec::RSVD, access).into());
            }
            self.check(pde, 0, 0, access)?;
            let gpa = Gpa(high | (pde & 0xffc0_0000) | (gva & 0x3f_ffff));
            return Self::leaf::<R, MARK>(r, at, pde, 4, pde, access, gpa);
        }
        if MARK && pde & ACCESSED == 0 {
            Self::mark(r, at, pde, pde | ACCESSED, 4)?;
        }
        let at = Gpa((pde & 0xffff_f000) | (gva >> 12 & 0x3ff).wrapping_shl(2));
        let pte = r.read_u32(at).map_err(WalkError::Access)? as u64;
        if pte & PRESENT == 0 {
            return Err(self.fault(0, access).into());
        }
        let all = pde & pte;
        self.check(all, 0, 0, access)?;
        let gpa = Gpa((pte & 0xffff_f000) | (gva & PAGE_OFFSET_MASK));
        Self::leaf::<R, MARK>(r, at, pte, 4, all, access, gpa)
    }

    /// The end of a pass: bits of the leaf, and the result.
    #[inline(always)]
    fn leaf<R: GuestRead, const MARK: bool>(
        r: &mut R,
        at: Gpa,
        entry: u64,
        bytes: u8,
        all: u64,
        access: Access,
        gpa: Gpa,
    ) -> Result<Pass, Stop<R::Error>> {
        let dirty = if access.write { DIRTY } else { 0 };
        if MARK {
            let new = entry | ACCESSED | dirty;
            if new != entry {
                Self::mark(r, at, entry, new, bytes)?;
            }
        }
        Ok(Pass {
            gpa,
            stale: all & ACCESSED == 0 || dirty & !entry != 0,
        })
    }

    /// Sets bits in an entry that has not changed.
    #[inline]
    fn mark<R: GuestRead>(
        r: &mut R,
        at: Gpa,
        old: u64,
        new: u64,
        bytes: u8,
    ) -> Result<(), Stop<R::Error>> {
        match r.set_ad(at, old, new, bytes) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Stop::Changed),
            Err(e) => Err(WalkError::Access(e).into()),
        }
    }

    /// Whether access rights forbid the access (SDM 3A 4.6.1). `all` and `any`: conjunction and disjunction of
    /// the entries.
    #[inline(always)]
    const fn denied(&self, all: u64, any: u64, access: Access) -> bool {
        let user_page = all & USER != 0;
        let read_only = all & WRITE == 0;
        if access.fetch {
            any & NO_EXEC != 0
                || if access.user {
                    !user_page
                } else {
                    user_page && self.smep
                }
        } else if access.user {
            !user_page || (access.write && read_only)
        } else {
            (access.write && read_only && self.wp) || (user_page && self.smap && !access.ac)
        }
    }

    /// Access rights and protection keys.
    #[inline(always)]
    fn check<E>(&self, all: u64, any: u64, key: u32, access: Access) -> Result<(), Stop<E>> {
        let denied = self.denied(all, any, access);
        // Protection keys (4.6.2) guard data of user-mode pages against both modes.
        let mut key_denied = false;
        if self.pkru != 0 && all & USER != 0 && !access.fetch {
            let rights = self.pkru.wrapping_shr(key.wrapping_mul(2));
            key_denied =
                rights & 1 != 0 || (rights & 2 != 0 && access.write && (access.user || self.wp));
        }
        if denied || key_denied {
            let pk = if key_denied { pfec::PK } else { 0 };
            return Err(self.fault(pfec::P | pk, access).into());
        }
        Ok(())
    }

    /// #PF for an 8-byte entry that is not present or has a reserved bit set.
    #[cold]
    fn bad_entry<E>(&self, entry: u64, access: Access) -> WalkError<E> {
        let code = if entry & PRESENT == 0 {
            0
        } else {
            pfec::P | pfec::RSVD
        };
        self.fault(code, access)
    }

    /// #PF with the bits that say what the access was.
    #[cold]
    fn fault<E>(&self, code: u32, access: Access) -> WalkError<E> {
        let error_code = self.error_code(code, access);
        WalkError::PageFault { error_code }
    }

    /// Error code of the #PF where a table is in no memory: as if the entry that leads there were not present, as in
    /// KVM.
    #[cold]
    pub fn no_table(&self, access: Access) -> u32 {
        self.error_code(0, access)
    }

    fn error_code(&self, code: u32, access: Access) -> u32 {
        let mut error_code = code;
        if access.write {
            error_code |= pfec::W;
        }
        if access.user {
            error_code |= pfec::U;
        }
        if access.fetch && self.tell_fetch {
            error_code |= pfec::I;
        }
        error_code
    }
}

const _: () = {
    assert!(ADDR == 0x000f_ffff_ffff_f000);
    // PAE PDPTE: bits 2:1 and 8:5.
    assert!(PDPTE_RESERVED == (0b11 << 1 | 0b1111 << 5));
    assert!(Level::L1.shift() == 12 && Level::L3.shift() == 30);
};
