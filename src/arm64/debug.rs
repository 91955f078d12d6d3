// SPDX-License-Identifier: GPL-2.0
//! Debugging: the guest's own breakpoints, watchpoints and steps (Arm ARM D2), and those of user space
//! (KVM_SET_GUEST_DEBUG, api.rst 4.87).
//!
//! A guest's accesses to debug registers always trap, and what it has written is kept here. The processor gets it for a
//! stay, if the guest has switched debug exceptions on, or something of user space's instead.
#![forbid(unsafe_code)]

use crate::arm64::esr::SysReg;
use crate::nospec::Nospec;

/// Breakpoints, and watchpoints, that there can be.
pub const POINTS: usize = 16;

/// MDSCR_EL1.SS: software step.
const SS: u64 = 1 << 0;
/// MDSCR_EL1.KDE: also for EL1 itself.
const KDE: u64 = 1 << 13;
/// MDSCR_EL1.MDE: breakpoints and watchpoints.
const MDE: u64 = 1 << 15;
/// PSTATE.SS: the next instruction is executed before the step is taken.
pub const PSTATE_SS: u64 = 1 << 21;
/// OSLSR_EL1: OSLM says that there is an OS lock, OSLK that it is locked.
const OSLM: u64 = 1 << 3;
const OSLK: u64 = 1 << 1;
/// DBGBCR_EL1 and DBGWCR_EL1: HMC and SSC, which would have them match at EL2.
const ABOVE_EL1: u64 = 7 << 13;

/// KVM_GUESTDBG_*.
pub const ENABLE: u32 = 1 << 0;
/// Software step.
pub const SINGLESTEP: u32 = 1 << 1;
/// BRK is user space's.
pub const USE_SW_BP: u32 = 1 << 16;
/// Breakpoints and watchpoints are user space's.
pub const USE_HW: u32 = 1 << 17;
/// All of them.
pub const VALID: u32 = ENABLE | SINGLESTEP | USE_SW_BP | USE_HW;

/// MDSCR_EL1, as a trap and KVM_GET_ONE_REG name it.
pub const MDSCR: SysReg = SysReg::new(2, 0, 0, 2, 2);
/// MDCCINT_EL1.
pub const MDCCINT: SysReg = SysReg::new(2, 0, 0, 2, 0);
/// OSLSR_EL1.
pub const OSLSR: SysReg = SysReg::new(2, 0, 1, 1, 4);
/// OSLAR_EL1, which is only written.
const OSLAR: SysReg = SysReg::new(2, 0, 1, 0, 4);

/// Registers of breakpoints and watchpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Points {
    /// DBGBVRn_EL1.
    pub bvr: [u64; POINTS],
    /// DBGBCRn_EL1.
    pub bcr: [u64; POINTS],
    /// DBGWVRn_EL1.
    pub wvr: [u64; POINTS],
    /// DBGWCRn_EL1.
    pub wcr: [u64; POINTS],
}

impl Points {
    /// None is on.
    pub const NONE: Self = Self {
        bvr: [0; POINTS],
        bcr: [0; POINTS],
        wvr: [0; POINTS],
        wcr: [0; POINTS],
    };

    /// The register that is encoded as `reg`.
    fn get_mut(&mut self, reg: SysReg) -> Option<&mut u64> {
        let (2, 0, 0, n, kind) = reg.parts() else {
            return None;
        };
        let bank = match kind {
            4 => &mut self.bvr,
            5 => &mut self.bcr,
            6 => &mut self.wvr,
            7 => &mut self.wcr,
            _ => return None,
        };
        bank.get_nospec_mut(usize::from(n))
    }
}

/// Those of a vCPU.
#[derive(Clone, Debug)]
pub struct Debug {
    mdscr: u64,
    mdccint: u64,
    locked: bool,
    points: Points,
    /// What user space wants: KVM_GUESTDBG_*.
    control: u32,
    users: Points,
    /// The guest's PSTATE.SS, while user space's is in its place.
    guest_steps: bool,
    /// User space's step is to be taken before another instruction.
    step_is_due: bool,
}

/// What the processor gets for a stay.
pub struct Loaded<'a> {
    /// MDSCR_EL1.
    pub mdscr: u64,
    /// Breakpoints and watchpoints, if they are on.
    pub points: Option<&'a Points>,
    /// Debug exceptions are ours (MDCR_EL2.TDE).
    pub ours: bool,
}

impl Debug {
    /// Nothing is on.
    pub const OFF: Self = Self {
        mdscr: 0,
        mdccint: 0,
        locked: false,
        points: Points::NONE,
        control: 0,
        users: Points::NONE,
        guest_steps: false,
        step_is_due: false,
    };

    /// The guest's registers as after reset. What user space wants stays.
    pub fn reset(&mut self) {
        self.mdscr = 0;
        self.mdccint = 0;
        self.locked = false;
        self.points = Points::NONE;
    }

    /// What a stay has to load. `None`: debug exceptions are off.
    #[inline]
    pub fn loaded(&self) -> Option<Loaded<'_>> {
        if self.control == 0 && self.mdscr & (SS | KDE | MDE) == 0 {
            None
        } else {
            Some(self.loaded_in_full())
        }
    }

    #[cold]
    fn loaded_in_full(&self) -> Loaded<'_> {
        let users = self.control & USE_HW != 0;
        let mut mdscr = self.mdscr;
        if self.control != 0 || self.locked {
            mdscr &= !(SS | KDE | MDE);
        }
        if self.control & SINGLESTEP != 0 {
            mdscr |= SS;
        }
        if users {
            mdscr |= KDE | MDE;
        }
        let points = if users { &self.users } else { &self.points };
        Loaded {
            mdscr,
            points: (mdscr & MDE != 0).then_some(points),
            ours: self.control != 0,
        }
    }

    /// What the processor is given as a control register: never one that matches at EL2.
    pub fn control_register(value: u64) -> u64 {
        value & !ABOVE_EL1
    }

    /// MRS by the guest. `None`: there is no such register.
    pub fn read(&mut self, reg: SysReg) -> Option<u64> {
        match reg {
            OSLAR => None,
            _ => self.get(reg).or(reads_as_zero(reg).then_some(0)),
        }
    }

    /// MSR by the guest. False: there is no such register.
    pub fn write(&mut self, reg: SysReg, value: u64) -> bool {
        match reg {
            OSLAR => self.locked = value & 1 != 0,
            // Read only, and the write is undefined; KVM ignores it.
            OSLSR => {}
            MDSCR => self.mdscr = value,
            MDCCINT => self.mdccint = value,
            _ => match self.points.get_mut(reg) {
                Some(place) => *place = value,
                None => return reads_as_zero(reg),
            },
        }
        true
    }

    /// What user space reads of one that KVM_GET_REG_LIST lists.
    pub fn get(&mut self, reg: SysReg) -> Option<u64> {
        match reg {
            MDSCR => Some(self.mdscr),
            MDCCINT => Some(self.mdccint),
            OSLSR => Some(OSLM | if self.locked { OSLK } else { 0 }),
            _ => self.points.get_mut(reg).copied(),
        }
    }

    /// User space writes it. False: it cannot have that value.
    pub fn set(&mut self, reg: SysReg, value: u64) -> bool {
        if reg == OSLSR {
            let known = value & !OSLK == OSLM;
            if known {
                self.locked = value & OSLK != 0;
            }
            return known;
        }
        self.write(reg, value)
    }

    /// KVM_SET_GUEST_DEBUG.
    pub fn set_user(&mut self, control: u32, users: Points) {
        if control & ENABLE == 0 {
            self.control = 0;
            self.step_is_due = false;
            return;
        }
        self.control = control;
        if control & USE_HW != 0 {
            self.users = users;
        }
    }

    /// KVM_RUN begins: PSTATE for it. The guest's own step waits while user space steps.
    pub fn begin(&mut self, pstate: u64) -> u64 {
        if self.control & SINGLESTEP == 0 {
            return pstate;
        }
        self.guest_steps = pstate & PSTATE_SS != 0;
        with_step(pstate, !self.step_is_due)
    }

    /// KVM_RUN ends.
    pub fn end(&mut self, pstate: u64) -> u64 {
        if self.control & SINGLESTEP == 0 {
            return pstate;
        }
        self.step_is_due = pstate & PSTATE_SS == 0;
        with_step(pstate, self.guest_steps)
    }
}

fn with_step(pstate: u64, steps: bool) -> u64 {
    if steps {
        pstate | PSTATE_SS
    } else {
        pstate & !PSTATE_SS
    }
}

/// Registers of the external debugger, its channel and its claims: they read as zero, and writes are ignored.
fn reads_as_zero(reg: SysReg) -> bool {
    matches!(
        reg.parts(),
        // OSDTRRX_EL1, OSDTRTX_EL1, OSECCR_EL1.
        (2, 0, 0, 0 | 3 | 6, 2)
            // MDRAR_EL1, OSDLR_EL1, DBGPRCR_EL1.
            | (2, 0, 1, 0, 0)
            | (2, 0, 1, 3 | 4, 4)
            // DBGCLAIMSET_EL1, DBGCLAIMCLR_EL1, DBGAUTHSTATUS_EL1.
            | (2, 0, 7, 8 | 9 | 14, 6)
            // MDCCSR_EL0, DBGDTR_EL0, DBGDTRTX_EL0.
            | (2, 3, 0, 1 | 4 | 5, 0)
    )
}

/// Those that KVM_GET_REG_LIST lists.
pub fn listed() -> impl Iterator<Item = SysReg> {
    let points = (0..POINTS as u16).flat_map(|n| (4..8).map(move |k| SysReg::new(2, 0, 0, n, k)));
    points.chain([MDCCINT, MDSCR, OSLSR])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BVR3: SysReg = SysReg::new(2, 0, 0, 3, 4);
    const WCR15: SysReg = SysReg::new(2, 0, 0, 15, 7);

    #[test]
    fn registers() {
        let mut d = Debug::OFF;
        assert!(d.write(BVR3, 0x1234) && d.write(WCR15, 0x1e7) && d.write(MDSCR, MDE));
        assert_eq!(d.read(BVR3), Some(0x1234));
        assert_eq!((d.points.bvr[3], d.points.wcr[15]), (0x1234, 0x1e7));
        assert_eq!(d.read(OSLAR), None);
        assert_eq!(d.read(OSLSR), Some(8));
        assert!(d.write(OSLAR, 1));
        assert_eq!(d.read(OSLSR), Some(10));
        assert!(d.set(OSLSR, 8) && !d.set(OSLSR, 9) && !d.set(OSLSR, 2));
        assert_eq!(d.read(OSLSR), Some(8));
        // Trace, which there is not.
        assert_eq!(d.read(SysReg::new(2, 1, 0, 1, 0)), None);
        assert!(!d.write(SysReg::new(2, 1, 0, 1, 0), 1));
        assert_eq!(d.read(SysReg::new(2, 0, 7, 8, 6)), Some(0));
        d.reset();
        assert_eq!((d.read(BVR3), d.read(MDSCR)), (Some(0), Some(0)));
        for reg in listed() {
            assert!(d.get(reg).is_some());
        }
    }

    #[test]
    fn what_is_loaded() {
        let mut d = Debug::OFF;
        assert!(d.loaded().is_none());
        d.write(MDSCR, MDE | KDE | SS | 1 << 12);
        let l = d.loaded().unwrap();
        assert_eq!((l.mdscr, l.ours), (MDE | KDE | SS | 1 << 12, false));
        assert_eq!(l.points, Some(&Points::NONE));
        // The lock keeps all but BRK away.
        d.write(OSLAR, 1);
        let l = d.loaded().unwrap();
        assert!(l.mdscr == 1 << 12 && l.points.is_none());
        // User space comes first.
        let mut users = Points::NONE;
        users.bvr[1] = 7;
        d.set_user(ENABLE | USE_HW, users.clone());
        let l = d.loaded().unwrap();
        assert_eq!((l.mdscr, l.ours), (MDE | KDE | 1 << 12, true));
        assert_eq!(l.points, Some(&users));
        d.set_user(ENABLE | SINGLESTEP, Points::NONE);
        let l = d.loaded().unwrap();
        assert!(l.mdscr == SS | 1 << 12 && l.points.is_none() && l.ours);
        d.set_user(0, Points::NONE);
        assert_eq!(d.control, 0);
        assert_eq!(Debug::control_register(u64::MAX) >> 13 & 7, 0);
    }

    #[test]
    fn steps() {
        let mut d = Debug::OFF;
        assert_eq!((d.begin(0), d.end(PSTATE_SS)), (0, PSTATE_SS));
        d.set_user(ENABLE | SINGLESTEP, Points::NONE);
        // One instruction, then the step; the guest's bit is back afterwards.
        assert_eq!(d.begin(5), 5 | PSTATE_SS);
        assert_eq!(d.end(5 | PSTATE_SS), 5);
        assert_eq!(d.begin(5 | PSTATE_SS), 5 | PSTATE_SS);
        assert_eq!(d.end(5), 5 | PSTATE_SS);
        // An instruction is done, and its step is due.
        assert_eq!(d.begin(5), 5);
    }
}
