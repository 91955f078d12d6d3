// SPDX-License-Identifier: GPL-2.0
//! Why a guest stopped, from what the processor says in ESR_EL2, FAR_EL2 and HPFAR_EL2 (Arm ARM D24.2.40, D24.2.55,
//! D24.2.73).
#![forbid(unsafe_code)]

/// What the exception registers held.
#[derive(Clone, Copy, Debug, Default)]
pub struct Syndrome {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2.
    pub hpfar: u64,
}

/// An access to memory that the syndrome describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Number of the general register; 31: none, which reads as zero.
    pub register: u8,
    /// Bytes: 1, 2, 4 or 8.
    pub len: u8,
    /// What is loaded is sign-extended.
    pub signed: bool,
    /// The register is one of 64 bits.
    pub wide: bool,
}

impl Access {
    /// What the register holds after a load of `data`, whose bytes beyond the length do not count.
    pub fn loaded(&self, data: u64) -> u64 {
        let shift = 64 - 8 * u32::from(self.len.min(8));
        let value = if self.signed {
            ((data << shift) as i64 >> shift) as u64
        } else {
            data << shift >> shift
        };
        if self.wide {
            value
        } else {
            value & 0xffff_ffff
        }
    }
}

/// Where a stage-2 fault was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this guest-physical address.
    Known(u64),
    /// Not told: at what this virtual address of the guest's translates to.
    Virtual(u64),
}

/// A stage-2 fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// Where.
    pub place: Place,
    /// It was a write.
    pub write: bool,
    /// It was an instruction fetch.
    pub fetch: bool,
    /// It was for an instruction: a fetch, or a walk for one.
    pub instruction: bool,
    /// It was a walk of stage 1.
    pub walk: bool,
    /// It was cache maintenance.
    pub maintenance: bool,
    /// What the instruction does, if that is told.
    pub access: Option<Access>,
}

/// A system register, or what is encoded like one: `op0:op1:CRn:CRm:op2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SysReg(pub u16);

impl SysReg {
    /// By the parts of its encoding.
    pub const fn new(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> Self {
        Self((op0 & 3) << 14 | (op1 & 7) << 11 | (crn & 15) << 7 | (crm & 15) << 3 | op2 & 7)
    }

    /// `(op0, op1, CRn, CRm, op2)`.
    pub const fn parts(self) -> (u16, u16, u16, u16, u16) {
        let n = self.0;
        (n >> 14, n >> 11 & 7, n >> 7 & 15, n >> 3 & 15, n & 7)
    }

    /// Whether a write generates SGIs, perhaps for all vCPUs: ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1.
    pub const fn generates_interrupts(self) -> bool {
        matches!(self.parts(), (3, 0, 12, 11, 5..=7))
    }
}

/// Why a guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An interrupt of the host's, which has not been acknowledged.
    HostInterrupt,
    /// An SError: an error that nothing can be blamed for, or of the host's.
    HostError,
    /// HVC with this number.
    Hvc(u16),
    /// SMC with this number, which has not been executed.
    Smc(u16),
    /// WFI, or (true) WFE; not executed.
    Wait(bool),
    /// MRS (`read`) of or MSR to a system register, with this general register; not executed.
    SysReg {
        /// Which one.
        reg: SysReg,
        /// MRS.
        read: bool,
        /// The general register; 31: zero.
        register: u8,
    },
    /// A stage-2 fault.
    NestedFault(NestedFault),
    /// A breakpoint, watchpoint or step that is not the guest's own.
    Debug,
    /// An instruction or register of something that guests do not have.
    Absent,
    /// Anything else that is the guest's doing, with ESR_EL2.
    Unknown(u64),
}

// Exception classes.
const EC_WFX: u64 = 0x01;
const EC_FP: u64 = 0x07;
const EC_PAUTH: u64 = 0x09;
const EC_HVC64: u64 = 0x16;
const EC_SMC64: u64 = 0x17;
const EC_SYS64: u64 = 0x18;
const EC_SVE: u64 = 0x19;
const EC_ERET: u64 = 0x1a;
const EC_SME: u64 = 0x1d;
const EC_IABT_LOWER: u64 = 0x20;
const EC_DABT_LOWER: u64 = 0x24;
const EC_BREAKPOINT_LOWER: u64 = 0x30;
/// A software step.
pub const EC_STEP_LOWER: u64 = 0x32;
/// A watchpoint.
pub const EC_WATCHPOINT_LOWER: u64 = 0x34;
const EC_BKPT32: u64 = 0x38;
const EC_BRK64: u64 = 0x3c;

// Syndromes of aborts.
const ISV: u64 = 1 << 24;
const SSE: u64 = 1 << 21;
const SF: u64 = 1 << 15;
const S1PTW: u64 = 1 << 7;
const WNR: u64 = 1 << 6;
/// Cache maintenance, which says that it writes and does not.
const CM: u64 = 1 << 8;

/// Why the vector was entered: the numbers of `rvmm_el2_enter`.
pub const SYNCHRONOUS: u64 = 0;
/// An SError.
pub const SERROR: u64 = 3;

/// What `why`, the vector, and the registers say.
pub fn decode(why: u64, s: &Syndrome) -> Exit {
    match why {
        SYNCHRONOUS => {}
        SERROR => return Exit::HostError,
        _ => return Exit::HostInterrupt,
    }
    let iss = s.esr & 0x1ff_ffff;
    match s.esr >> 26 & 0x3f {
        EC_WFX => Exit::Wait(iss & 1 != 0),
        EC_HVC64 => Exit::Hvc(iss as u16),
        EC_SMC64 => Exit::Smc(iss as u16),
        EC_SYS64 => {
            let part = |at: u32, bits: u32| (iss >> at) as u16 & ((1 << bits) - 1);
            Exit::SysReg {
                reg: SysReg::new(
                    part(20, 2),
                    part(14, 3),
                    part(10, 4),
                    part(1, 4),
                    part(17, 3),
                ),
                read: iss & 1 != 0,
                register: part(5, 5) as u8,
            }
        }
        EC_FP | EC_PAUTH | EC_SVE | EC_ERET | EC_SME => Exit::Absent,
        EC_BREAKPOINT_LOWER | EC_STEP_LOWER | EC_WATCHPOINT_LOWER | EC_BKPT32 | EC_BRK64 => {
            Exit::Debug
        }
        EC_IABT_LOWER => fault(s, iss, true),
        EC_DABT_LOWER => fault(s, iss, false),
        _ => Exit::Unknown(s.esr),
    }
}

fn fault(s: &Syndrome, iss: u64, fetch: bool) -> Exit {
    // Translation faults, access flag faults and permission faults, of any level. Others are errors of the memory.
    let kind = iss >> 2 & 0xf;
    if !matches!(kind, 1..=3) {
        return Exit::Unknown(s.esr);
    }
    let walk = iss & S1PTW != 0;
    // HPFAR_EL2 is not told for a permission fault that is no walk's.
    let place = if kind == 3 && !walk {
        Place::Virtual(s.far)
    } else {
        let page = (s.hpfar & 0xfff_ffff_fff0) << 8;
        // What a walk was to read is in no register.
        Place::Known(if walk { page } else { page | s.far & 0xfff })
    };
    let described = !fetch && !walk && iss & (ISV | CM) == ISV;
    Exit::NestedFault(NestedFault {
        place,
        // A walk that may read and has no permission is one that writes, to update the descriptor. Before that it
        // reads, whatever is said: tables in memory that is only read are good for a walk.
        write: if walk {
            kind == 3
        } else {
            !fetch && iss & WNR != 0 && iss & CM == 0
        },
        fetch: fetch && !walk,
        instruction: fetch,
        walk,
        maintenance: !fetch && iss & CM != 0,
        access: described.then(|| Access {
            register: (iss >> 16 & 31) as u8,
            len: 1 << (iss >> 22 & 3),
            signed: iss & SSE != 0,
            wide: iss & SF != 0,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ec: u64, iss: u64) -> Syndrome {
        Syndrome {
            esr: ec << 26 | 1 << 25 | iss,
            far: 0xffff_8000_1234_5678,
            hpfar: 0x40_0120,
        }
    }

    #[test]
    fn vectors() {
        let s = at(EC_HVC64, 7);
        assert_eq!(decode(0, &s), Exit::Hvc(7));
        assert_eq!(decode(1, &s), Exit::HostInterrupt);
        assert_eq!(decode(2, &s), Exit::HostInterrupt);
        assert_eq!(decode(3, &s), Exit::HostError);
    }

    #[test]
    fn instructions() {
        assert_eq!(decode(0, &at(EC_WFX, 1)), Exit::Wait(true));
        assert_eq!(decode(0, &at(EC_WFX, 0)), Exit::Wait(false));
        assert_eq!(decode(0, &at(EC_SMC64, 0)), Exit::Smc(0));
        // MRS X3, ID_AA64ISAR0_EL1: S3_0_C0_C6_0.
        let iss = 3 << 20 | 6 << 1 | 3 << 5 | 1;
        let reg = SysReg::new(3, 0, 0, 6, 0);
        assert_eq!(
            decode(0, &at(EC_SYS64, iss)),
            Exit::SysReg {
                reg,
                read: true,
                register: 3
            }
        );
        assert_eq!(reg.parts(), (3, 0, 0, 6, 0));
        assert_eq!(SysReg::new(3, 5, 14, 11, 7).parts(), (3, 5, 14, 11, 7));
        assert_eq!(decode(0, &at(EC_BRK64, 1)), Exit::Debug);
        assert!(matches!(decode(0, &at(0x3f, 0)), Exit::Unknown(_)));
    }

    #[test]
    fn data_aborts() {
        // STRH W5: translation fault of level 3.
        let iss = ISV | 1 << 22 | 5 << 16 | WNR | 7;
        let Exit::NestedFault(f) = decode(0, &at(EC_DABT_LOWER, iss)) else {
            panic!()
        };
        assert_eq!(f.place, Place::Known(0x4001_2678));
        assert!(f.write && !f.fetch);
        let access = Access {
            register: 5,
            len: 2,
            signed: false,
            wide: false,
        };
        assert_eq!(f.access, Some(access));
        // The same as a permission fault: the address is the guest's own.
        let Exit::NestedFault(f) = decode(0, &at(EC_DABT_LOWER, iss & !0xf | 0xf)) else {
            panic!()
        };
        assert_eq!(f.place, Place::Virtual(0xffff_8000_1234_5678));
        // A walk: known again, and no access to be carried out.
        let Exit::NestedFault(f) = decode(0, &at(EC_DABT_LOWER, iss & !0xf | 0xf | S1PTW)) else {
            panic!()
        };
        assert_eq!((f.place, f.access), (Place::Known(0x4001_2000), None));
        assert!(f.walk && !f.instruction && f.write);
        let Exit::NestedFault(f) = decode(0, &at(EC_DABT_LOWER, iss | S1PTW)) else {
            panic!()
        };
        assert!(f.walk && !f.write);
        // Cache maintenance is no write, and there is nothing to be stored.
        let Exit::NestedFault(f) = decode(0, &at(EC_DABT_LOWER, iss | CM)) else {
            panic!()
        };
        assert_eq!((f.write, f.access), (false, None));
        assert!(f.maintenance);
        // Not described: a pair, or with write-back.
        let Exit::NestedFault(f) = decode(0, &at(EC_DABT_LOWER, WNR | 7)) else {
            panic!()
        };
        assert_eq!(f.access, None);
        // A synchronous external abort is no fault of translation.
        assert!(matches!(
            decode(0, &at(EC_DABT_LOWER, ISV | 0x10)),
            Exit::Unknown(_)
        ));
    }

    #[test]
    fn fetches() {
        let Exit::NestedFault(f) = decode(0, &at(EC_IABT_LOWER, ISV | WNR | 5)) else {
            panic!()
        };
        assert!(f.fetch && !f.write && f.access.is_none());
    }

    #[test]
    fn loads() {
        let a = |len, signed, wide| Access {
            register: 0,
            len,
            signed,
            wide,
        };
        let data = 0x8877_6655_8433_2281;
        assert_eq!(a(1, false, false).loaded(data), 0x81);
        assert_eq!(a(1, true, false).loaded(data), 0xffff_ff81);
        assert_eq!(a(1, true, true).loaded(data), 0xffff_ffff_ffff_ff81);
        assert_eq!(a(4, true, true).loaded(data), 0xffff_ffff_8433_2281);
        assert_eq!(a(4, false, true).loaded(data), 0x8433_2281);
        assert_eq!(a(8, false, true).loaded(data), data);
    }
}
