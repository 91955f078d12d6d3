// SPDX-License-Identifier: GPL-2.0
//! Address-space identifiers, and the flushes that stand behind them (APM 2 15.15.2, 15.16).
//!
//! Each CPU gives out its ASIDs one after the other; when all are out, a new generation begins with a flush of
//! everything. Called by `vcpu` before an entry, in a stay (interrupts off): a pool is used on its own CPU only. Its
//! words are atomic because `platform` shares them by reference.

use super::vmcb::{tlb_control, Control};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The ASIDs of one CPU.
pub(super) struct Pool {
    /// Number of ASIDs; valid are 1 to `count - 1`.
    count: u32,
    /// The processor can flush one ASID.
    flush_by_asid: bool,
    /// ASID generation; changes when all ASIDs have been given out.
    generation: AtomicU64,
    /// Next ASID to give out.
    next: AtomicU32,
}

impl Pool {
    /// A pool whose first user flushes everything.
    pub(super) const fn new(count: u32, flush_by_asid: bool) -> Self {
        Self {
            count,
            flush_by_asid,
            generation: AtomicU64::new(1),
            next: AtomicU32::new(1),
        }
    }

    /// Begins a new generation: what this CPU's TLB holds is not trusted.
    pub(super) fn renew(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.next.store(1, Ordering::Relaxed);
    }
}

/// The ASID of a vCPU: where and when it was given out.
pub(super) struct Tag {
    cpu: u32,
    generation: u64,
}

impl Tag {
    /// No ASID yet.
    pub(super) const NONE: Self = Self {
        cpu: u32::MAX,
        generation: 0,
    };

    /// Gives the vCPU of VMCB `c` an ASID that is valid on CPU `cpu_id`, with its translations gone if `flush` says so.
    #[inline]
    pub(super) fn assign(&mut self, c: &mut Control, pool: &Pool, cpu_id: u32, flush: bool) {
        let generation = pool.generation.load(Ordering::Relaxed);
        let known = self.cpu == cpu_id && self.generation == generation;
        if known && !flush {
            c.tlb_control = tlb_control::NOTHING;
            return;
        }
        if known && pool.flush_by_asid {
            c.tlb_control = tlb_control::FLUSH_GUEST;
            return;
        }
        if !known {
            // Another CPU, or one that was off meanwhile, or the first entry of a VMCB where another has been.
            c.clean.nothing();
        }
        self.renew(c, pool, cpu_id, generation);
    }

    /// Gives the vCPU the CPU's next ASID.
    fn renew(&mut self, c: &mut Control, pool: &Pool, cpu_id: u32, mut generation: u64) {
        let mut tlb = tlb_control::NOTHING;
        let mut asid = pool.next.load(Ordering::Relaxed);
        if asid >= pool.count {
            generation = generation.wrapping_add(1);
            pool.generation.store(generation, Ordering::Relaxed);
            asid = 1;
            tlb = tlb_control::FLUSH_ALL;
        } else if asid == 1 {
            // This is the first of a generation that `Pool::renew` began.
            tlb = tlb_control::FLUSH_ALL;
        }
        pool.next.store(asid + 1, Ordering::Relaxed);
        self.cpu = cpu_id;
        self.generation = generation;
        c.asid.set(&mut c.clean, asid);
        c.tlb_control = tlb;
    }

    /// Takes back all ASIDs after an entry that was refused: nobody says whether the flush that it asked for was done
    /// before, so that none of this generation is trusted.
    #[cold]
    pub(super) fn distrust(&mut self, pool: &Pool) {
        pool.renew();
        self.cpu = u32::MAX;
    }
}
