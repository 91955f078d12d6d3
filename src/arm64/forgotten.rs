// SPDX-License-Identifier: GPL-2.0
//! What a CPU has forgotten of guests' translations, and whether it may enter one (`check_flushes=1`): it has forgotten
//! every removal that is settled, by itself or because all have, and what another vCPU has left there. An emulator
//! that forgets more than it must never shows that something was left out.
#![forbid(unsafe_code)]

use crate::mem::flushes::{Removals, Settled};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Why a CPU must not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Translations with numbers up to this one have been removed, and the CPU has not forgotten them.
    Removed(u64),
    /// It has not forgotten those of the vCPU with this token.
    Foreign(u64),
}

/// What one CPU has forgotten. Only the CPU itself uses it, with interrupts off.
#[derive(Default)]
pub struct Forgotten {
    /// Removals up to which.
    upto: AtomicU64,
    /// The token of the vCPU that has been entered since; 0: none.
    entered: AtomicU64,
}

impl Forgotten {
    /// A flush that is good for `last` is over.
    pub fn flushed(&self, last: u64) {
        self.upto.store(last, SeqCst);
        self.entered.store(0, SeqCst);
    }

    /// vCPU `token` of a VM enters. After a refusal its VM is never entered again.
    pub fn enters(&self, all: &Removals, vm: &Settled, token: u64) -> Result<(), Refusal> {
        let settled = vm.0.load(SeqCst);
        let upto = self.upto.load(SeqCst).max(all.everywhere.load(SeqCst));
        let entered = self.entered.load(SeqCst);
        let refusal = if upto < settled {
            Refusal::Removed(settled)
        } else if entered != 0 && entered != token {
            Refusal::Foreign(entered)
        } else {
            self.entered.store(token, SeqCst);
            return Ok(());
        };
        vm.settle(u64::MAX);
        Err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_forgets() {
        let (all, vm) = (Removals::new(), Settled::new());
        let cpus = [Forgotten::default(), Forgotten::default()];
        for c in &cpus {
            assert_eq!(c.enters(&all, &vm, 1), Ok(()));
        }
        let number = all.note();
        // Under way: who enters meanwhile is stopped before it ends.
        assert_eq!(cpus[0].enters(&all, &vm, 1), Ok(()));
        cpus[0].flushed(all.last());
        vm.settle(number);
        assert_eq!(cpus[0].enters(&all, &vm, 1), Ok(()));
        // Another VM's has nothing to do with it.
        assert_eq!(cpus[1].enters(&all, &Settled::new(), 1), Ok(()));
        assert_eq!(cpus[1].enters(&all, &vm, 1), Err(Refusal::Removed(1)));
        // It is refused for good.
        cpus[0].flushed(all.last());
        assert_eq!(
            cpus[0].enters(&all, &vm, 1),
            Err(Refusal::Removed(u64::MAX))
        );
    }

    #[test]
    fn all_forget() {
        let (all, vm, cpu) = (Removals::new(), Settled::new(), Forgotten::default());
        let (first, upto) = (all.note(), all.last());
        let second = all.note();
        all.forgotten_everywhere(upto);
        vm.settle(first);
        assert_eq!(cpu.enters(&all, &vm, 1), Ok(()));
        // It came after that flush had begun.
        vm.settle(second);
        assert_eq!(cpu.enters(&all, &vm, 1), Err(Refusal::Removed(second)));
    }

    #[test]
    fn one_vcpu_after_another() {
        let (all, vm, cpu) = (Removals::new(), Settled::new(), Forgotten::default());
        assert_eq!(cpu.enters(&all, &vm, 7), Ok(()));
        cpu.flushed(all.last());
        assert_eq!(cpu.enters(&all, &vm, 8), Ok(()));
        assert_eq!(cpu.enters(&all, &vm, 8), Ok(()));
        assert_eq!(cpu.enters(&all, &vm, 7), Err(Refusal::Foreign(8)));
    }
}
