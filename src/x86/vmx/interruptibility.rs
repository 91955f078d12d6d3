// SPDX-License-Identifier: GPL-2.0
//! Guest interruptibility state: blocking by STI, by MOV SS and by NMI (SDM 3C 25.4.2, 27.3.1.5).
//!
//! The vCPU calls this under its mutex; a function that takes [`Current`] touches the VMCS, with interrupts off.

use super::bits::{blocking, PENDING_DEBUG_BS};
use super::insn::Current;
use super::vmcs::*;
use crate::x86::cpu::regs::rflags;
use crate::x86::vendor::Interruptibility;

/// The interruptibility state, read from the VMCS at most once per exit.
#[derive(Debug)]
pub(super) struct Blocking {
    /// The state when known since the last exit; always known outside stays.
    state: Option<u32>,
    /// `state` has been set from outside and has to be written.
    dirty: bool,
}

impl Blocking {
    /// Nothing blocks.
    pub(super) const NONE: Self = Self {
        state: Some(0),
        dirty: false,
    };

    /// An exit may have changed the state.
    #[inline(always)]
    pub(super) fn forget(&mut self) {
        self.state = None;
    }

    /// The state.
    #[inline(always)]
    pub(super) fn get(&mut self, vm: Current<'_>) -> u32 {
        match self.state {
            Some(b) => b,
            None => {
                let b = vm.read(GUEST_INTERRUPTIBILITY);
                self.state = Some(b);
                b
            }
        }
    }

    /// The state in a stay, whose VMCS is `stay`, or outside, where it is known at the latest since the end of the
    /// last.
    #[inline]
    fn known(&mut self, stay: Option<Current<'_>>) -> u32 {
        match (self.state, stay) {
            (Some(b), _) => b,
            (None, Some(vm)) => self.get(vm),
            (None, None) => 0,
        }
    }

    /// The state in neutral terms.
    #[inline]
    pub(super) fn neutral(&mut self, stay: Option<Current<'_>>) -> Interruptibility {
        let state = self.known(stay);
        Interruptibility {
            sti: state & blocking::STI != 0,
            mov_ss: state & blocking::MOV_SS != 0,
            nmi: state & blocking::NMI != 0,
        }
    }

    /// Sets the state for the next entry. Returns whether it differs, so that [`Blocking::write`] has to be called.
    pub(super) fn set(&mut self, i: Interruptibility) -> bool {
        let mut state = 0;
        // Both at once fail the entry (SDM 3C 27.3.1.5); MOV SS blocks more.
        if i.mov_ss {
            state |= blocking::MOV_SS;
        } else if i.sti {
            state |= blocking::STI;
        }
        if i.nmi {
            state |= blocking::NMI;
        }
        let differs = self.state != Some(state);
        self.state = Some(state);
        self.dirty |= differs;
        differs
    }

    /// Ends blocking by STI and MOV SS. Returns whether there was any, so that [`Blocking::write`] has to be called.
    #[inline]
    pub(super) fn end_shadow(&mut self, stay: Option<Current<'_>>) -> bool {
        let state = self.known(stay);
        let shadow = state & (blocking::STI | blocking::MOV_SS) != 0;
        if shadow {
            self.state = Some(state & !(blocking::STI | blocking::MOV_SS));
            self.dirty = true;
        }
        shadow
    }

    /// Sets blocking by NMI, after an exit that came with NMIs unblocked by an IRET that did not complete.
    #[cold]
    #[inline(never)]
    pub(super) fn block_nmi(&mut self, vm: Current<'_>) {
        let state = self.get(vm) | blocking::NMI;
        self.state = Some(state);
        vm.write(GUEST_INTERRUPTIBILITY, state);
    }

    /// Makes the injection of an NMI possible whose delivery was interrupted: blocking by NMI must be clear (SDM 3C
    /// 27.3.1.5). The delivery sets it again.
    pub(super) fn allow_nmi(&mut self, vm: Current<'_>) {
        let state = self.get(vm);
        if state & blocking::NMI != 0 {
            vm.write(GUEST_INTERRUPTIBILITY, state & !blocking::NMI);
        }
    }

    /// Writes a state set from outside.
    pub(super) fn write(&mut self, vm: Current<'_>, flags: u64) {
        if self.dirty {
            vm.write(GUEST_INTERRUPTIBILITY, self.state.unwrap_or(0));
            self.dirty = false;
            self.match_pending_step(vm, flags);
        }
    }

    /// While STI or MOV SS blocks, a single-step trap has to be pending exactly when RFLAGS.TF is set, because
    /// DEBUGCTL.BTF is clear in guests (SDM 3C 27.3.1.5). Exits leave it so, except those by #DB; state set from
    /// outside may break it.
    pub(super) fn match_pending_step(&mut self, vm: Current<'_>, flags: u64) {
        let blocked = self.get(vm) & (blocking::STI | blocking::MOV_SS) != 0;
        let pending = vm.read(GUEST_PENDING_DEBUG);
        let wanted = if blocked && flags & rflags::TF != 0 {
            pending | PENDING_DEBUG_BS
        } else {
            pending & !PENDING_DEBUG_BS
        };
        if wanted != pending {
            vm.write(GUEST_PENDING_DEBUG, wanted);
        }
    }
}
