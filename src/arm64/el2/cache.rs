// SPDX-License-Identifier: GPL-2.0
//! Caches of pages that a guest gets: instructions by address, in the kernel's direct map.

use crate::arm64::caches::{Caches, Invalidate};
use crate::arm64::stage2;
use crate::linux::{direct_map, el2};
use crate::mem::addr::Hpa;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

/// [`Caches::to_bits`].
static CACHES: AtomicU32 = AtomicU32::new(0);

/// Finds out what is needed. Before there is a guest.
pub(crate) fn init_caches() -> Caches {
    let caches = Caches::of(
        el2::cache_type(),
        el2::has_forced_write_back(),
        el2::has_coherent_data(),
        el2::has_coherent_fetches(),
    );
    if caches.forced {
        stage2::force_write_back();
    }
    CACHES.store(caches.to_bits(), Ordering::Relaxed);
    caches
}

/// What is needed.
#[inline]
pub(crate) fn caches() -> Caches {
    Caches::from_bits(CACHES.load(Ordering::Relaxed))
}

/// A guest is going to get `bytes` of memory at `hpa`, a page's or a huge page's, and may fetch from there. Any
/// context.
#[inline]
pub(crate) fn make_coherent(hpa: Hpa, bytes: u64, fetch: bool) {
    let caches = caches();
    if caches.clean || fetch && caches.invalidate != Invalidate::Nothing {
        make_coherent_with(&caches, hpa, bytes, fetch);
    }
}

#[cold]
fn make_coherent_with(caches: &Caches, hpa: Hpa, bytes: u64, fetch: bool) {
    let begin = direct_map::phys_to_virt(hpa.0) as u64;
    let lines =
        |line: u64| (0..bytes / line.max(4)).map(move |n| begin.wrapping_add(n.wrapping_mul(line)));
    if caches.clean {
        for at in lines(caches.data_line) {
            // SAFETY: RAM, which is in the direct map. Its contents stay as they are.
            unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        }
        // SAFETY: A barrier: the lines are written before what follows.
        unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    }
    match caches.invalidate(bytes) {
        _ if !fetch => return,
        Invalidate::Nothing => return,
        Invalidate::Lines => {
            for at in lines(caches.fetch_line) {
                // SAFETY: As above.
                unsafe { asm!("ic ivau, {}", in(reg) at, options(nostack, preserves_flags)) };
            }
        }
        // SAFETY: What is fetched comes from memory again, on all CPUs.
        Invalidate::All => unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) },
    }
    // SAFETY: Barriers: all CPUs have done it when this is over.
    unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}
