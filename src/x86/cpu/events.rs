// SPDX-License-Identifier: GPL-2.0
//! Event policy: which exceptions combine to what, what is delivered first, and when a window has to be requested
//! (SDM 3A 7.3, 7.9, 7.15 and table 7-5; APM 2 8.2, 8.4, 8.5).
#![forbid(unsafe_code)]

use crate::x86::exit::{Event, EventKind, Exception};

/// Exception vectors (SDM 3A table 7-1).
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const VE: u8 = 20;
    pub const CP: u8 = 21;
    /// AMD: VMM communication.
    pub const VC: u8 = 29;
    /// AMD: security exception.
    pub const SX: u8 = 30;
}

/// Class of an exception for double-fault detection (SDM 3A table 7-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Never part of a double fault.
    Benign,
    /// #DE, #TS, #NP, #SS, #GP, #CP.
    Contributory,
    /// #PF, #VE.
    PageFault,
    /// #DF itself.
    DoubleFault,
}

/// Class of the exception `v`.
pub const fn class(v: u8) -> Class {
    match v {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP | vector::CP => {
            Class::Contributory
        }
        vector::PF | vector::VE => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// Whether delivery of exception `v` pushes an error code. In real mode none does (SDM 3B 21.1.4).
pub const fn has_error_code(v: u8, protected: bool) -> bool {
    protected
        && matches!(
            v,
            vector::DF
                | vector::TS
                | vector::NP
                | vector::SS
                | vector::GP
                | vector::PF
                | vector::AC
                | vector::CP
                | vector::VC
                | vector::SX
        )
}

/// How an exception is reported (SDM 3A 7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporting {
    /// The saved RIP points at the instruction; RFLAGS.RF is set in the saved image.
    Fault,
    /// The saved RIP points after the instruction.
    Trap,
    /// Either; DR6 tells.
    FaultOrTrap,
    /// No precise RIP.
    Abort,
}

/// Reporting class of the exception `v`.
pub const fn reporting(v: u8) -> Reporting {
    match v {
        vector::DB => Reporting::FaultOrTrap,
        vector::BP | vector::OF => Reporting::Trap,
        vector::DF | vector::MC => Reporting::Abort,
        _ => Reporting::Fault,
    }
}

/// An exception to deliver, without payload.
pub const fn exception(v: u8, error_code: Option<u32>) -> Exception {
    Exception {
        vector: v,
        error_code,
        payload: 0,
    }
}

/// The result of an exception that occurs while another is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combined {
    /// Deliver the second one; the first will come back when its instruction is executed again.
    Second,
    /// Deliver #DF with error code 0.
    DoubleFault,
    /// Shut down.
    TripleFault,
}

/// Combines the exception `second` with `first`, whose delivery it interrupted (SDM 3A table 7-5).
pub const fn combine(first: u8, second: u8) -> Combined {
    match (class(first), class(second)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => {
            Combined::TripleFault
        }
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => Combined::DoubleFault,
        _ => Combined::Second,
    }
}

/// The vCPU shuts down: a fault while delivering a double fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TripleFault;

/// Raises `new` when `pending` has been raised already and was not delivered.
///
/// # Errors
///
/// [`TripleFault`] when both together shut the vCPU down.
pub fn raise(pending: Option<Exception>, new: Exception) -> Result<Exception, TripleFault> {
    let Some(first) = pending else {
        return Ok(new);
    };
    match combine(first.vector, new.vector) {
        Combined::Second => Ok(new),
        Combined::DoubleFault => Ok(exception(vector::DF, Some(0))),
        Combined::TripleFault => Err(TripleFault),
    }
}

/// Raises `new`, which was intercepted while `interrupted` was being delivered.
///
/// Only a hardware exception combines: an interrupt, an NMI or a software event that was interrupted counts as benign.
///
/// # Errors
///
/// [`TripleFault`] as in [`raise`].
pub fn raise_during(interrupted: Option<Event>, new: Exception) -> Result<Exception, TripleFault> {
    match interrupted {
        Some(e) if e.kind == EventKind::Exception => {
            raise(Some(exception(e.vector, e.error_code)), new)
        }
        _ => Ok(new),
    }
}

/// An event without an instruction.
const fn event(kind: EventKind, vector: u8, error_code: Option<u32>) -> Event {
    Event {
        kind,
        vector,
        error_code,
        insn_len: 0,
    }
}

/// The event that delivers `e`: the error code is made to fit the vector and the mode, so that the entry checks accept
/// it.
pub const fn exception_event(e: Exception, protected: bool) -> Event {
    let error_code = match (has_error_code(e.vector, protected), e.error_code) {
        (false, _) => None,
        (true, Some(c)) => Some(c),
        (true, None) => Some(0),
    };
    event(EventKind::Exception, e.vector, error_code)
}

/// The event that delivers #BP of the INT3 at RIP, which is `insn_len` bytes long.
pub const fn breakpoint_event(insn_len: u8) -> Event {
    Event {
        kind: EventKind::SoftwareException,
        vector: vector::BP,
        error_code: None,
        insn_len,
    }
}

/// The event that delivers an external interrupt.
pub const fn interrupt_event(vector: u8) -> Event {
    event(EventKind::ExternalInterrupt, vector, None)
}

/// The event that delivers an NMI.
pub const fn nmi_event() -> Event {
    event(EventKind::Nmi, vector::NMI, None)
}

/// What holds events back (SDM 3A 7.8.1, 7.8.3, 7.7.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// RFLAGS.IF.
    pub if_flag: bool,
    /// The instruction after STI.
    pub sti: bool,
    /// The instruction after MOV SS or POP SS.
    pub mov_ss: bool,
    /// An NMI handler runs: NMIs wait for IRET.
    pub nmi: bool,
}

impl Gate {
    /// Whether an external interrupt can be delivered.
    #[inline]
    pub const fn interrupt_open(&self) -> bool {
        self.if_flag && !self.sti && !self.mov_ss
    }

    /// Whether an NMI can be delivered. A processor may refuse one after STI too (SDM 3C 27.3.1.5).
    #[inline]
    pub const fn nmi_open(&self) -> bool {
        !self.nmi && !self.sti && !self.mov_ss
    }
}

/// What waits for delivery.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pending {
    /// The event whose delivery the last exit interrupted.
    pub interrupted: Option<Event>,
    /// An exception raised by the hypervisor or re-raised after interception.
    pub exception: Option<Exception>,
    /// NMIs waiting, at most 2 (one latched while one is handled).
    pub nmis: u8,
    /// An external interrupt waits in the interrupt controller.
    pub interrupt: bool,
}

/// What to deliver with the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inject {
    /// Nothing.
    Nothing,
    /// The interrupted event again.
    Again(Event),
    /// The pending exception.
    Exception,
    /// One NMI.
    Nmi,
    /// The interrupt controller's highest interrupt: acknowledge it now.
    Interrupt,
}

/// What the next entry does about events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Delivered by the entry.
    pub inject: Inject,
    /// Request an exit as soon as an interrupt can be delivered.
    pub irq_window: bool,
    /// Request an exit as soon as an NMI can be delivered.
    pub nmi_window: bool,
}

/// Decides what the next entry delivers. At most one event fits into an entry; what has to wait gets a window.
///
/// Order: an event that was already on its way, then exceptions, NMI, external interrupts (SDM 3A table 7-2).
#[inline]
pub fn decide(gate: &Gate, p: &Pending) -> Decision {
    let inject = if let Some(e) = p.interrupted {
        Inject::Again(e)
    } else if p.exception.is_some() {
        Inject::Exception
    } else if p.nmis != 0 && gate.nmi_open() {
        Inject::Nmi
    } else if p.interrupt && gate.interrupt_open() {
        Inject::Interrupt
    } else {
        Inject::Nothing
    };
    Decision {
        inject,
        nmi_window: p.nmis > (inject == Inject::Nmi) as u8,
        irq_window: p.interrupt && inject != Inject::Interrupt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [u8; 24] = [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 28, 29, 30, 31,
    ];

    #[test]
    fn table_7_5() {
        let contributory = [0u8, 10, 11, 12, 13, 21];
        let page = [14u8, 20];
        for a in ALL {
            for b in ALL {
                let want = if a == 8 {
                    if contributory.contains(&b) || page.contains(&b) || b == 8 {
                        Combined::TripleFault
                    } else {
                        Combined::Second
                    }
                } else if contributory.contains(&a) && contributory.contains(&b)
                    || page.contains(&a) && (contributory.contains(&b) || page.contains(&b))
                {
                    Combined::DoubleFault
                } else {
                    Combined::Second
                };
                assert_eq!(combine(a, b), want, "{a} then {b}");
            }
        }
    }

    #[test]
    fn contributory_then_page_fault_is_serial() {
        assert_eq!(combine(vector::GP, vector::PF), Combined::Second);
        assert_eq!(combine(vector::PF, vector::GP), Combined::DoubleFault);
    }

    #[test]
    fn error_codes() {
        let with: [u8; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];
        for v in 0..32 {
            assert_eq!(has_error_code(v, true), with.contains(&v), "{v}");
            assert!(!has_error_code(v, false));
        }
        let e = exception_event(exception(vector::GP, None), true);
        assert_eq!(e.error_code, Some(0));
        let e = exception_event(exception(vector::GP, Some(8)), false);
        assert_eq!(e.error_code, None);
        let e = exception_event(exception(vector::UD, Some(8)), true);
        assert_eq!(e.error_code, None);
    }

    #[test]
    fn reporting_classes() {
        assert_eq!(reporting(vector::BP), Reporting::Trap);
        assert_eq!(reporting(vector::PF), Reporting::Fault);
        assert_eq!(reporting(vector::DB), Reporting::FaultOrTrap);
        assert_eq!(reporting(vector::DF), Reporting::Abort);
    }

    #[test]
    fn raising() {
        let gp = exception(vector::GP, Some(0));
        let pf = exception(vector::PF, Some(2));
        let df = exception(vector::DF, Some(0));
        let v = |r: Result<Exception, TripleFault>| r.map(|e| (e.vector, e.error_code));
        assert_eq!(v(raise(None, gp)), Ok((13, Some(0))));
        assert_eq!(v(raise(Some(gp), pf)), Ok((14, Some(2))));
        assert_eq!(v(raise(Some(pf), gp)), Ok((8, Some(0))));
        assert_eq!(v(raise(Some(df), gp)), Err(TripleFault));
        let db = exception(vector::DB, None);
        assert_eq!(v(raise(Some(df), db)), Ok((1, None)));
        assert_eq!(
            v(raise_during(Some(interrupt_event(14)), gp)),
            Ok((13, Some(0))),
            "an interrupt's vector is no exception"
        );
        assert_eq!(
            v(raise_during(Some(exception_event(pf, true)), gp)),
            Ok((8, Some(0)))
        );
    }

    const OPEN: Gate = Gate {
        if_flag: true,
        sti: false,
        mov_ss: false,
        nmi: false,
    };

    fn all_pending() -> Pending {
        Pending {
            interrupted: Some(interrupt_event(0x30)),
            exception: Some(exception(vector::GP, Some(0))),
            nmis: 1,
            interrupt: true,
        }
    }

    #[test]
    fn order() {
        let mut p = all_pending();
        let d = decide(&OPEN, &p);
        assert_eq!(d.inject, Inject::Again(interrupt_event(0x30)));
        assert!(d.irq_window && d.nmi_window);
        p.interrupted = None;
        let d = decide(&OPEN, &p);
        assert_eq!(d.inject, Inject::Exception);
        assert!(d.irq_window && d.nmi_window);
        p.exception = None;
        let d = decide(&OPEN, &p);
        assert_eq!(d.inject, Inject::Nmi);
        assert!(d.irq_window && !d.nmi_window);
        p.nmis = 2;
        assert!(decide(&OPEN, &p).nmi_window, "the second NMI waits");
        p.nmis = 0;
        let d = decide(&OPEN, &p);
        assert_eq!(d.inject, Inject::Interrupt);
        assert!(!d.irq_window && !d.nmi_window);
        p.interrupt = false;
        let d = decide(&OPEN, &p);
        assert_eq!(d.inject, Inject::Nothing);
        assert!(!d.irq_window && !d.nmi_window);
    }

    #[test]
    fn gates() {
        let p = Pending {
            nmis: 1,
            interrupt: true,
            ..Pending::default()
        };
        for g in [
            Gate { sti: true, ..OPEN },
            Gate {
                mov_ss: true,
                ..OPEN
            },
        ] {
            let d = decide(&g, &p);
            assert_eq!(d.inject, Inject::Nothing);
            assert!(d.irq_window && d.nmi_window);
        }
        let d = decide(&Gate { nmi: true, ..OPEN }, &p);
        assert_eq!(d.inject, Inject::Interrupt);
        assert!(d.nmi_window && !d.irq_window);
        let d = decide(
            &Gate {
                nmi: true,
                if_flag: false,
                ..OPEN
            },
            &p,
        );
        assert_eq!(d.inject, Inject::Nothing);
        assert!(d.nmi_window && d.irq_window);
        let e = Pending {
            exception: Some(exception(vector::UD, None)),
            ..p
        };
        let closed = Gate {
            if_flag: false,
            sti: true,
            mov_ss: true,
            nmi: true,
        };
        assert_eq!(decide(&closed, &e).inject, Inject::Exception);
    }
}
