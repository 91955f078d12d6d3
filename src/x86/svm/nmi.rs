// SPDX-License-Identifier: GPL-2.0
//! NMI blocking, which SVM without virtual NMIs leaves to software: from an NMI's injection to the completion of the
//! IRET that ends its handler (APM 2 15.20, 15.9 "IRET").
//!
//! IRET is intercepted while NMIs are blocked. The exit comes before the instruction has run, so blocking ends when
//! another instruction is reached; who cannot wait for that steps over it by RFLAGS.TF. `vcpu` calls this before
//! entries and after exits.

use super::vmcb::{misc1, Control};

/// How far the guest is with its last NMI.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mask {
    Open,
    /// NMIs are blocked; IRET is intercepted.
    Blocked,
    /// An IRET at this RIP has been met and is about to run; open as soon as another instruction is reached.
    Iret(u64),
}

/// NMI blocking of one vCPU.
pub(super) struct Nmi {
    mask: Mask,
    /// RFLAGS.TF has to be set at the next entry, to find the end of an IRET or of an interrupt shadow.
    stepping: bool,
}

impl Nmi {
    /// As after RESET.
    pub(super) const RESET: Self = Self {
        mask: Mask::Open,
        stepping: false,
    };

    /// Whether NMIs are blocked.
    pub(super) fn blocked(&self) -> bool {
        self.mask != Mask::Open
    }

    /// Whether the coming entry is a single step of ours.
    #[inline(always)]
    pub(super) const fn stepping(&self) -> bool {
        self.stepping
    }

    /// Has the guest exit when it can take an NMI. True: nothing tells when, so the entry has to end as soon as it has
    /// delivered its event; there is one if `delivers`, which [`Self::inject`] knows of.
    #[inline]
    #[must_use]
    pub(super) fn want_window(&mut self, c: &mut Control, delivers: bool) -> bool {
        match self.mask {
            Mask::Blocked => intercept_iret(c, true),
            // A single step would put its RFLAGS.TF into the event's frame.
            _ if delivers => return true,
            // The IRET is the next instruction, or there is the shadow of STI or MOV SS: a single step tells when it
            // is over.
            Mask::Iret(_) | Mask::Open => self.stepping = true,
        }
        false
    }

    /// An event is delivered by the next entry, an NMI if `nmi`. Another one comes before the IRET that was about to
    /// run: NMIs stay blocked until the next IRET, whichever that is.
    #[inline]
    pub(super) fn inject(&mut self, c: &mut Control, nmi: bool) {
        if nmi || matches!(self.mask, Mask::Iret(_)) {
            self.mask = Mask::Blocked;
            intercept_iret(c, true);
        }
    }

    /// The delivery of an NMI was interrupted. It had blocked NMIs; the injection at the next entry does so again.
    pub(super) fn interrupted(&mut self, c: &mut Control) {
        self.mask = Mask::Open;
        intercept_iret(c, false);
    }

    /// Blocks or opens from outside the guest.
    pub(super) fn set_blocked(&mut self, c: &mut Control, blocked: bool) {
        if blocked != self.blocked() {
            self.mask = if blocked { Mask::Blocked } else { Mask::Open };
            intercept_iret(c, blocked);
        }
    }

    /// The guest is about to run the IRET at `rip`.
    pub(super) fn iret(&mut self, c: &mut Control, rip: u64) {
        self.mask = Mask::Iret(rip);
        intercept_iret(c, false);
    }

    /// The guest has exited with this `rip`: an IRET at another address has run.
    #[inline(always)]
    pub(super) fn reached(&mut self, rip: u64) {
        if let Mask::Iret(iret) = self.mask {
            if rip != iret {
                self.mask = Mask::Open;
            }
        }
    }

    /// The entry that was a step is over, however it ended.
    pub(super) fn end_step(&mut self) {
        self.stepping = false;
    }

    /// The step has ended behind its instruction: an IRET there was has run.
    pub(super) fn stepped(&mut self) {
        if let Mask::Iret(_) = self.mask {
            self.mask = Mask::Open;
        }
    }
}

fn intercept_iret(c: &mut Control, on: bool) {
    c.intercept_misc1(misc1::IRET, on);
}
