// SPDX-License-Identifier: GPL-2.0
//! EL2: a stay in a guest, and what it needs of the processor.
//!
//! With VHE the kernel is at EL2 itself (HCR_EL2.E2H and TGE). A stay ([`Stay::hold`]) loads what the guest has to
//! itself ([`Context`]) and what keeps it in its place, on one CPU with interrupts off, and puts back what was there.
//! Vectors and HCR_EL2 change only around each entry (`switch.S`). Interrupts of the host are never acknowledged: they
//! stop the guest, and are taken when the stay is over.
//!
//! **Translations.** All guests have VMID 0, which KVM gives to nobody. A CPU forgets what it has of it before it
//! enters another vCPU than the last time, or one that was elsewhere meanwhile, or whose memory has changed
//! ([`Stay::flush`]); nothing is broadcast but for break-before-make ([`forget_translations`]). TLBI of EL1&0 means the
//! host's own regime while TGE is set, so it is cleared around each.
//!
//! This folder and `rust/` have all of Arm64's unsafe code.

use crate::arm64::context::{registers, Context};
use crate::arm64::debug::{Debug, PSTATE_SS};
use crate::arm64::esr::{decode, Exit, Syndrome, SysReg};
use crate::arm64::mitigate::{self, Clearing, Known, Levels};
use crate::arm64::stage2;
use crate::arm64::timer::PhysicalTimer;
use crate::arm64::vgic::lists::Lists;
use crate::arm64::vgic::registers::Interface;
use crate::linux::el2;
use crate::linux::irqflags::{IrqGuard, ThisCpu};
use crate::linux::neon::Vectors;
use crate::mem::addr::Hpa;
use crate::mem::mmu::InOwnMm;
use crate::nospec::Nospec;
use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::ffi::c_void;
use kernel::prelude::*;

/// Reads a system register.
macro_rules! read {
    ($reg:expr) => {{
        let value: u64;
        // Also used where there is an unsafe block already.
        #[allow(unused_unsafe)]
        // SAFETY: Reading a register that this processor has, at EL2, changes nothing.
        unsafe { asm!(concat!("mrs {}, ", $reg), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// Writes a system register. Not `nomem`: memory accesses must not move across it.
macro_rules! write {
    ($reg:expr, $value:expr) => {{
        let value: u64 = $value;
        asm!(concat!("msr ", $reg, ", {}"), in(reg) value, options(nostack, preserves_flags))
    }};
}

mod cache;
pub(crate) mod debug;
mod gic;

pub(crate) use cache::{caches, init_caches, make_coherent};
pub(crate) use gic::{kind as gic_kind, list_count};

// HCR_EL2 (Arm ARM D24.2.49).
const HCR_VM: u64 = 1 << 0;
const HCR_SWIO: u64 = 1 << 1;
const HCR_PTW: u64 = 1 << 2;
const HCR_FMO: u64 = 1 << 3;
const HCR_IMO: u64 = 1 << 4;
const HCR_AMO: u64 = 1 << 5;
/// An SError waits for EL1; clear when it has been taken.
const HCR_VSE: u64 = 1 << 8;
const HCR_FB: u64 = 1 << 9;
const HCR_BSU_IS: u64 = 1 << 10;
const HCR_TWI: u64 = 1 << 13;
const HCR_TID1: u64 = 1 << 16;
const HCR_TID2: u64 = 1 << 17;
const HCR_TID3: u64 = 1 << 18;
const HCR_TSC: u64 = 1 << 19;
const HCR_TIDCP: u64 = 1 << 20;
const HCR_TACR: u64 = 1 << 21;
const HCR_TSW: u64 = 1 << 22;
const HCR_TVM: u64 = 1 << 26;
const HCR_RW: u64 = 1 << 31;
const HCR_E2H: u64 = 1 << 34;
const HCR_FWB: u64 = 1 << 46;
const HCR_APK: u64 = 1 << 40;
const HCR_API: u64 = 1 << 41;
/// In a guest: EL1 of 64 bits behind stage 2, physical interrupts and SError to us, and exits for what its handler
/// wants to see. Without API and APK, pointer authentication traps, for guests that have none; without ATA, so do tags.
const HCR_GUEST: u64 = HCR_VM
    | HCR_SWIO
    | HCR_PTW
    | HCR_FMO
    | HCR_IMO
    | HCR_AMO
    | HCR_FB
    | HCR_BSU_IS
    | HCR_TWI
    | HCR_TID3
    | HCR_TSC
    | HCR_TIDCP
    | HCR_TACR
    | HCR_TSW
    | HCR_RW
    | HCR_E2H;

/// CPTR_EL2 as it is with E2H: FP and vectors are the guest's; SVE, SME, trace and activity monitors trap.
const CPTR_GUEST: u64 = 3 << 20 | 1 << 28 | 1 << 30;

/// MDCR_EL2: TPM, TPMCR, TDA, TDOSA, TDRA: performance counters and debug registers trap. TDE: debug exceptions are
/// ours.
const MDCR_TRAPS: u64 = 1 << 6 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 11;
const MDCR_TDE: u64 = 1 << 8;
/// MDCR_EL2.HPMN, how many counters are EL1's, which stays.
const MDCR_HPMN: u64 = 0x1f;

/// CNTHCTL_EL2 as it is with E2H: the guest reads the physical counter (EL1PCTEN), unless it is to have another, and
/// has the physical timer (EL1PTEN), if it is its own; else they trap.
const CNTHCTL_EL1PCTEN: u64 = 1 << 10;
const CNTHCTL_EL1PTEN: u64 = 1 << 11;
/// All that is a guest's: also an offset of the physical counter (ECV, which KVM leaves on, with what its last guest
/// had in CNTPOFF_EL2), and traps of the virtual timer (EL1TVT, EL1TVCT, EL1NVPCT, EL1NVVCT).
const CNTHCTL_GUEST: u64 = 0x1f << 12 | CNTHCTL_EL1PCTEN | CNTHCTL_EL1PTEN;

/// ICH_HCR_EL2: TC, TALL0, TALL1, TDIR: all of the interrupt controller's registers trap.
const ICH_HCR_TRAPS: u64 = 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14;
/// ICC_SRE_EL2.Enable: EL1 reaches ICC_SRE_EL1.
const ICC_SRE_ENABLE: u64 = 1 << 3;

/// CNTV_CTL_EL0: ENABLE, IMASK, ISTATUS.
const TIMER_ENABLE: u64 = 1 << 0;
const TIMER_MASK: u64 = 1 << 1;
const TIMER_FIRED: u64 = 1 << 2;

/// TCR_EL1.EPD0 and EPD1: no walks of stage 1.
const TCR_EPD: u64 = 1 << 7 | 1 << 23;
/// SCTLR_EL1.M: stage 1 is on.
const SCTLR_M: u64 = 1;

/// Nanoseconds.
const NSEC_PER_SEC: u64 = 1_000_000_000;

/// PSTATE.BTYPE: an instruction was branched to.
const PSTATE_BTYPE: u64 = 3 << 10;

/// Registers that mean nothing to a guest of 64 bits, and which KVM keeps for user space: ACTLR_EL1, DISR_EL1,
/// DACR32_EL2, IFSR32_EL2, FPEXC32_EL2, DBGVCR32_EL2.
pub(crate) const KEPT: [SysReg; 6] = [
    SysReg::new(3, 0, 1, 0, 1),
    SysReg::new(3, 0, 12, 1, 1),
    SysReg::new(3, 4, 3, 0, 0),
    SysReg::new(3, 4, 5, 0, 1),
    SysReg::new(3, 4, 5, 3, 0),
    SysReg::new(2, 4, 0, 7, 0),
];
/// What they are after reset.
pub(crate) const KEPT_RESET: [u64; KEPT.len()] = [0, 0, 0, 0, 0x700, 0];

/// PAR_EL1.F: the translation failed.
const PAR_FAILED: u64 = 1;

/// General registers, what an exception brings, and why it came. `switch.S` knows the order.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct Regs {
    /// X0 to X30.
    pub(crate) x: [u64; 31],
    /// SP_EL0.
    pub(crate) sp: u64,
    /// The address of the next instruction.
    pub(crate) pc: u64,
    /// PSTATE as SPSR_EL2 has it.
    pub(crate) pstate: u64,
    esr: u64,
    far: u64,
    hpfar: u64,
    /// HCR_EL2, which tells whether an SError has been taken.
    hcr: u64,
    /// Keys of pointer authentication, if the guest has it: A and B of instructions, of data, and the generic one.
    pub(crate) keys: [u64; 10],
    /// Those of the host, while the guest runs.
    host_keys: [u64; 10],
}

const _: () = {
    assert!(core::mem::offset_of!(Regs, hcr) == 8 * 37);
    assert!(core::mem::offset_of!(Regs, keys) == 8 * 38);
    assert!(core::mem::offset_of!(Regs, host_keys) == 8 * 48);
};

impl Regs {
    /// After reset: at EL1 with its own stack pointer, all interrupts masked.
    pub(crate) const RESET: Self = Self {
        x: [0; 31],
        sp: 0,
        pc: 0,
        pstate: 0x3c5,
        esr: 0,
        far: 0,
        hpfar: 0,
        hcr: 0,
        keys: [0; 10],
        host_keys: [0; 10],
    };

    /// General register `n`; 31 reads as zero.
    #[inline]
    pub(crate) fn x(&self, n: u8) -> u64 {
        self.x.get_nospec(usize::from(n)).copied().unwrap_or(0)
    }

    /// Changes general register `n`; 31 is none.
    #[inline]
    pub(crate) fn set_x(&mut self, n: u8, value: u64) {
        if let Some(x) = self.x.get_nospec_mut(usize::from(n)) {
            *x = value;
        }
    }

    /// FAR_EL2 of the last exception.
    pub(crate) fn far(&self) -> u64 {
        self.far
    }

    /// ESR_EL2.ISS of the last exception.
    pub(crate) fn iss(&self) -> u64 {
        self.esr & 0x1ff_ffff
    }

    /// ESR_EL2 of the last exception.
    pub(crate) fn esr(&self) -> u64 {
        self.esr
    }

    /// Its class.
    pub(crate) fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// Past the instruction that has been dealt with. All are of 4 bytes. A step is taken before the next one.
    #[inline]
    pub(crate) fn skip(&mut self) {
        self.pc = self.pc.wrapping_add(4);
        self.pstate &= !(PSTATE_SS | PSTATE_BTYPE);
    }
}

extern "C" {
    /// How the processor forgets what a guest has taught it, after each exit: [`Clearing::words`].
    static rvmm_el2_clearing: [AtomicU32; 2];
    fn rvmm_el2_enter(regs: *mut Regs, hcr: u64) -> u64;
    fn rvmm_vectors_save(to: *mut c_void);
    fn rvmm_vectors_load(from: *const c_void);
}

/// What the processor has of a guest while it runs.
pub(crate) struct Guest {
    pub(crate) regs: Regs,
    pub(crate) context: Context,
    pub(crate) vectors: Vectors,
    /// SPSR_abt, SPSR_und, SPSR_irq and SPSR_fiq, of an EL1 of 32 bits: kept for user space alone.
    pub(crate) banked: [u64; 4],
    /// An SError that waits for EL1, with what ESR_EL1.ISS is to say of it.
    pub(crate) error: Option<u64>,
    /// MPIDR_EL1.
    pub(crate) mpidr: u64,
    /// MIDR_EL1.
    pub(crate) midr: u64,
    /// Reads of REVIDR_EL1 and AIDR_EL1 trap, and of those about caches.
    pub(crate) identity_traps: (bool, bool),
    /// Registers that are kept for user space alone ([`KEPT`]).
    pub(crate) kept: [u64; KEPT.len()],
    /// How far the guest's counter is behind the physical one (CNTVOFF_EL2).
    pub(crate) counter_offset: u64,
    /// How far the guest's physical counter is behind the host's.
    pub(crate) physical_offset: u64,
    /// The physical timer.
    pub(crate) physical: PhysicalTimer,
    /// It is the processor's in stays; else its registers trap.
    pub(crate) owns_physical: bool,
    /// Breakpoints, watchpoints and steps.
    pub(crate) debug: KBox<Debug>,
    /// Its interface to the interrupt controller, if there is one.
    pub(crate) interface: Interface,
    pub(crate) has_gic: bool,
    /// It has pointer authentication.
    pub(crate) has_keys: bool,
    /// Writes to registers trap by which it switches its caches on ([`is_watched`](crate::arm64::caches::is_watched)).
    pub(crate) watches_caches: bool,
}

macro_rules! load {
    ($($(#[$doc:meta])* $name:ident = $encoding:tt, $asm:literal;)*) => {
        /// Loads what the guest has to itself.
        ///
        /// # Safety
        ///
        /// In a stay that begins: what the host has in those of them that are its as well is saved.
        unsafe fn load(c: &Context) {
            use crate::arm64::context::Reg;
            $(
                // SAFETY: They are nobody's but the guest's while HCR_EL2.TGE is set, or saved by the caller.
                unsafe { write!($asm, c.get(Reg::$name)) };
            )*
        }

        /// Writes the one that is encoded so.
        ///
        /// # Safety
        ///
        /// In a stay: the guest's are loaded.
        unsafe fn write_one(reg: SysReg, value: u64) {
            $(
                if reg == const { SysReg::new $encoding } {
                    // SAFETY: The guest's register, as the caller promises.
                    unsafe { write!($asm, value) };
                }
            )*
        }

        /// Saves what the guest has to itself.
        fn save(c: &mut Context) {
            use crate::arm64::context::Reg;
            $(c.set(Reg::$name, read!($asm));)*
        }
    };
}
registers!(load);

/// Declares what of the host's a stay changes: `all` are there on every processor that the module takes, the others
/// where `has` says so.
macro_rules! host {
    (all: { $($all:ident = $all_asm:literal,)* }
     if hcx: { $hcx:ident = $hcx_asm:literal, }
     if fgt: { $($fgt:ident = $fgt_asm:literal,)* }
     if fgt2: { $($fgt2:ident = $fgt2_asm:literal,)* }) => {
        /// What a stay has to put back.
        struct Host {
            $($all: u64,)*
            $hcx: u64,
            $($fgt: u64,)*
            $($fgt2: u64,)*
        }

        impl Host {
            /// What is there now.
            fn save(has: &Has) -> Self {
                Self {
                    $($all: read!($all_asm),)*
                    $hcx: if has.hcx { read!($hcx_asm) } else { 0 },
                    $($fgt: if has.fgt { read!($fgt_asm) } else { 0 },)*
                    $($fgt2: if has.fgt2 { read!($fgt2_asm) } else { 0 },)*
                }
            }

            /// Puts it back.
            ///
            /// # Safety
            ///
            /// At the end of the stay at whose beginning it was saved, on the same CPU.
            unsafe fn restore(&self, has: &Has) {
                // SAFETY: The values that the kernel had there.
                unsafe {
                    $(write!($all_asm, self.$all);)*
                    if has.hcx {
                        write!($hcx_asm, self.$hcx);
                    }
                    if has.fgt {
                        $(write!($fgt_asm, self.$fgt);)*
                    }
                    if has.fgt2 {
                        $(write!($fgt2_asm, self.$fgt2);)*
                    }
                }
            }

            /// Nothing that is new to EL1 works there, and nothing else traps for it.
            ///
            /// # Safety
            ///
            /// In a stay, with what was there saved.
            unsafe fn close(has: &Has) {
                // SAFETY: Bits of the one kind trap when set, of the other when clear; they mean EL1 and EL0 of guests.
                unsafe {
                    if has.hcx {
                        write!($hcx_asm, 0);
                    }
                    if has.fgt {
                        $(write!($fgt_asm, 0);)*
                    }
                    if has.fgt2 {
                        $(write!($fgt2_asm, 0);)*
                    }
                }
            }
        }
    };
}

host! {
    all: {
        // At EL2 with E2H CPACR_EL1 is CPTR_EL2.
        cptr = "cpacr_el1",
        mdcr = "mdcr_el2",
        mdscr = "mdscr_el1",
        cnthctl = "cnthctl_el2",
        cntvoff = "s3_4_c14_c0_3",
        vtcr = "vtcr_el2",
        vttbr = "vttbr_el2",
        vpidr = "vpidr_el2",
        vmpidr = "vmpidr_el2",
        ich_hcr = "s3_4_c12_c11_0",
        icc_sre = "s3_4_c12_c9_5",
        // The task's and the guest's.
        tpidr_el0 = "tpidr_el0",
        tpidrro_el0 = "tpidrro_el0",
        csselr = "csselr_el1",
    }
    // HCRX_EL2.
    if hcx: { hcrx = "s3_4_c1_c2_2", }
    // HFGRTR, HFGWTR, HFGITR, HDFGRTR, HDFGWTR.
    if fgt: {
        hfgrtr = "s3_4_c1_c1_4",
        hfgwtr = "s3_4_c1_c1_5",
        hfgitr = "s3_4_c1_c1_6",
        hdfgrtr = "s3_4_c3_c1_4",
        hdfgwtr = "s3_4_c3_c1_5",
    }
    // HDFGRTR2, HDFGWTR2, HFGRTR2, HFGWTR2, HFGITR2.
    if fgt2: {
        hdfgrtr2 = "s3_4_c3_c1_0",
        hdfgwtr2 = "s3_4_c3_c1_1",
        hfgrtr2 = "s3_4_c3_c1_2",
        hfgwtr2 = "s3_4_c3_c1_3",
        hfgitr2 = "s3_4_c3_c1_7",
    }
}

/// What the processor has of that.
struct Has {
    hcx: bool,
    fgt: bool,
    fgt2: bool,
}

impl Has {
    /// By ID_AA64MMFR1_EL1.HCX and ID_AA64MMFR0_EL1.FGT.
    fn read() -> Self {
        let fgt = read!("id_aa64mmfr0_el1") >> 56 & 0xf;
        Self {
            hcx: read!("id_aa64mmfr1_el1") >> 40 & 0xf != 0,
            fgt: fgt != 0,
            fgt2: fgt >= 2,
        }
    }
}

/// A stay that goes on: until it is over, the task runs on one CPU with interrupts off and must not sleep, and the
/// processor has the state of one vCPU's guest.
pub(crate) struct Stay<'irq> {
    own_mm: InOwnMm<'irq>,
    loads_debug: bool,
    /// HCR_EL2 for its entries.
    hcr: u64,
}

impl<'irq> Stay<'irq> {
    /// Runs `body` in a stay of `guest`, whose nested page tables, for addresses of so many bits, begin
    /// at `root`, and who finds the guest in `owner`.
    /// The vector registers are free for it ([`KernelNeon`](crate::linux::neon::KernelNeon)).
    pub(crate) fn hold<O, R>(
        _this_cpu: ThisCpu<'irq>,
        own_mm: InOwnMm<'irq>,
        (root, address_bits): (Hpa, u32),
        owner: &mut O,
        guest: impl Fn(&mut O) -> &mut Guest,
        body: impl FnOnce(&mut O, &Self) -> R,
    ) -> R {
        let has = Has::read();
        let host = Host::save(&has);
        let g = guest(owner);
        let debug = debug::Loaded::begin(&g.debug);
        // SAFETY: Interrupts are off until the end, so that nobody meets what is loaded here; none of it means the
        // kernel, which runs with HCR_EL2.TGE, but for what `host` has and `restore` puts back. `root` is that of the
        // nested page tables of the guest's VM, which lives longer.
        unsafe {
            let range = read!("id_aa64mmfr0_el1") & 0xf;
            write!("vtcr_el2", stage2::control(address_bits, range));
            write!("vttbr_el2", root.0);
            write!("vpidr_el2", g.midr);
            write!("vmpidr_el2", g.mpidr);
            Host::close(&has);
            write!("cpacr_el1", CPTR_GUEST);
            let ours = if debug.is_ours() { MDCR_TDE } else { 0 };
            write!("mdcr_el2", host.mdcr & MDCR_HPMN | MDCR_TRAPS | ours);
            write!("mdscr_el1", debug.mdscr());
            let cnthctl = host.cnthctl & !CNTHCTL_GUEST;
            let counts = match (g.physical_offset, g.owns_physical) {
                (0, false) => CNTHCTL_EL1PCTEN,
                (0, true) => CNTHCTL_EL1PCTEN | CNTHCTL_EL1PTEN,
                _ => 0,
            };
            write!("cnthctl_el2", cnthctl | counts);
            if g.owns_physical {
                // CNTP_CVAL_EL02, CNTP_CTL_EL02.
                write!("s3_5_c14_c2_2", g.physical.cval);
                write!("s3_5_c14_c2_1", g.physical.ctl);
            }
            write!("s3_4_c14_c0_3", g.counter_offset);
            if g.has_gic {
                gic::load(&g.interface);
            } else {
                write!("s3_4_c12_c11_0", ICH_HCR_TRAPS);
            }
            write!("s3_4_c12_c9_5", host.icc_sre & !ICC_SRE_ENABLE);
            load(&g.context);
            rvmm_vectors_load(ptr::from_ref(&g.vectors).cast());
            asm!("isb", options(nostack, preserves_flags));
        }
        let stay = Self {
            own_mm,
            loads_debug: debug.is_on(),
            hcr: hcr_of(g),
        };
        let result = body(owner, &stay);
        let g = guest(owner);
        save(&mut g.context);
        if g.owns_physical {
            let (ctl, cval) = (read!("s3_5_c14_c2_1"), read!("s3_5_c14_c2_2"));
            g.physical = PhysicalTimer::of_registers(ctl, cval);
        }
        if g.has_gic {
            gic::save(&mut g.interface);
        }
        // SAFETY: As above. The timers are off before interrupts come on, so that theirs never reach the host.
        unsafe {
            rvmm_vectors_save(ptr::from_mut(&mut g.vectors).cast());
            write!("s3_5_c14_c3_1", 0);
            if g.owns_physical {
                write!("s3_5_c14_c2_1", 0);
            }
            host.restore(&has);
            asm!("isb", options(nostack, preserves_flags));
        }
        debug.end();
        result
    }

    /// Registers for debugging are loaded, as they were when the stay began.
    pub(crate) fn loads_debug(&self) -> bool {
        self.loads_debug
    }

    /// What says whose address space it is.
    pub(crate) fn own_mm(&self) -> InOwnMm<'irq> {
        self.own_mm
    }

    /// Enters the guest, and says why it stopped.
    pub(crate) fn enter(&self, guest: &mut Guest) -> Exit {
        // SAFETY: In a stay of this guest, by whoever has made it; the registers have the layout that the switch knows.
        // What is behind stage 2 is the guest's own, whatever it does there. The barrier has the walker find what has
        // been written to nested page tables on this CPU.
        let why = unsafe {
            let mut hcr = self.hcr;
            if let Some(iss) = guest.error {
                hcr |= HCR_VSE;
                if has_ras() {
                    // VSESR_EL2, which means nothing to anybody but a guest with HCR_EL2.VSE.
                    write!("s3_4_c5_c2_3", iss);
                }
            }
            asm!("dsb ishst", options(nostack, preserves_flags));
            rvmm_el2_enter(&mut guest.regs, hcr)
        };
        if guest.error.is_some() && guest.regs.hcr & HCR_VSE == 0 {
            guest.error = None;
        }
        let r = &guest.regs;
        let syndrome = Syndrome {
            esr: r.esr,
            far: r.far,
            hpfar: r.hpfar,
        };
        let exit = decode(why, &syndrome);
        if exit == Exit::HostError {
            el2::host_error(r.esr);
        }
        exit
    }

    /// Forgets all translations of guests' on this CPU.
    pub(crate) fn flush(&self) {
        // SAFETY: In a stay VTTBR_EL2 has VMID 0. Translations are looked up anew when they are needed.
        unsafe {
            in_guest_regime(|| {
                asm!(
                    "tlbi vmalls12e1",
                    "dsb nsh",
                    "isb",
                    options(nostack, preserves_flags)
                )
            })
        };
    }

    /// The processor has the interrupts of `lists` from now on.
    pub(crate) fn put_lists(&self, lists: &Lists) {
        // SAFETY: In a stay, of whose guest whoever has it has the lists.
        unsafe { gic::put_lists(lists) };
    }

    /// Reads back what has become of them; no list register is in use then. Returns how many ends of interrupts were
    /// found in none.
    pub(crate) fn take_lists(&self, lists: &mut Lists) -> u32 {
        // SAFETY: As above.
        unsafe { gic::take_lists(lists) }
    }

    /// MRS (`None`) or MSR of CSSELR_EL1, or MRS of CCSIDR_EL1 or CCSIDR2_EL1, on the guest's behalf. `None`: there is
    /// no such register.
    pub(crate) fn cache_register(&self, reg: SysReg, write: Option<u64>) -> Option<u64> {
        match (reg.parts(), write) {
            ((3, 2, 0, 0, 0), Some(value)) => {
                // SAFETY: The guest's register; the host's is put back when the stay ends.
                unsafe {
                    write!("csselr_el1", value & 0x1f);
                    asm!("isb", options(nostack, preserves_flags));
                }
                Some(value)
            }
            ((3, 2, 0, 0, 0), None) => Some(read!("csselr_el1")),
            ((3, 1, 0, 0, 0), None) => Some(read!("ccsidr_el1")),
            _ => None,
        }
    }

    /// MSR of a register of the guest's that [`is_watched`](crate::arm64::caches::is_watched), on its behalf. Returns
    /// SCTLR_EL1 as it was and as it is.
    pub(crate) fn write_watched(&self, reg: SysReg, value: u64) -> (u64, u64) {
        // SCTLR_EL12.
        let was = read!("s3_5_c1_c0_0");
        // SAFETY: In a stay of whose guest it is.
        unsafe { write_one(reg, value) };
        (was, read!("s3_5_c1_c0_0"))
    }

    /// An interrupt waits for the host.
    pub(crate) fn host_interrupt_waits(&self) -> bool {
        gic::host_interrupt_waits()
    }

    /// The guest's virtual timer has fired, and is not masked.
    #[inline]
    pub(crate) fn timer_fires(&self) -> bool {
        timer_fires(read!("s3_5_c14_c3_1"))
    }

    /// The same of its physical timer, if that is the processor's.
    #[inline]
    pub(crate) fn physical_timer_fires(&self) -> bool {
        timer_fires(read!("s3_5_c14_c2_1"))
    }

    /// The guest's virtual timer has fired, of which nobody can tell the guest: it is masked, or its interrupt would
    /// end each entry at once. Returns whether that was so.
    pub(crate) fn silence_timer(&self) -> bool {
        let ctl = read!("s3_5_c14_c3_1");
        let fired = timer_fires(ctl);
        if fired {
            // SAFETY: The guest's register.
            unsafe { write!("s3_5_c14_c3_1", ctl | TIMER_MASK) };
        }
        fired
    }

    /// The guest-physical address behind `address` of the guest that has just stopped there, which may be read.
    /// `None`: its own tables have changed meanwhile.
    pub(crate) fn translate(&self, address: u64) -> Option<u64> {
        let mut par = 0;
        let kept = read!("par_el1");
        // SAFETY: A look-up in the guest's stage 1 alone, whose registers are loaded; PAR_EL1, which has the answer, is
        // the guest's and put back.
        unsafe {
            in_guest_regime(|| {
                asm!("at s1e1r, {}", "isb", in(reg) address, options(nostack, preserves_flags));
                par = read!("par_el1");
            });
            write!("par_el1", kept);
        }
        (par & PAR_FAILED == 0).then_some(par & 0xf_ffff_ffff_f000 | address & 0xfff)
    }
}

/// Finds out what has to happen after each exit. Before there is a guest.
pub(crate) fn init_clearing() -> Clearing {
    let known = Known {
        predictor: el2::has_trainable_predictor(),
        history: el2::has_trainable_history(),
        bypass: el2::has_speculative_bypass(),
        own_history: read!("id_aa64mmfr1_el1") >> 60 & 0xf != 0,
        // ID_AA64ISAR2_EL1.
        instruction: read!("s3_0_c0_c6_2") >> 28 & 0xf != 0,
        workaround_1: el2::firmware_offers(mitigate::WORKAROUND_1),
        workaround_3: el2::firmware_offers(mitigate::WORKAROUND_3),
    };
    let clearing = Clearing::choose(&known);
    // SAFETY: `switch.S` has two aligned words there, which are written here alone.
    let place = unsafe { &rvmm_el2_clearing };
    for (to, from) in place.iter().zip(clearing.words()) {
        to.store(from, Ordering::Relaxed);
    }
    for (to, from) in LEVELS.iter().zip(Levels::of(&known, clearing).0) {
        to.store(from, Ordering::Relaxed);
    }
    clearing
}

/// What guests are told of workarounds ([`Levels`]).
static LEVELS: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

/// What guests are told of them.
#[inline]
pub(crate) fn levels() -> Levels {
    Levels(LEVELS.each_ref().map(|level| level.load(Ordering::Relaxed)))
}

/// The same with what this one has.
fn hcr_of(guest: &Guest) -> u64 {
    let mut hcr = hcr_guest();
    if guest.has_keys {
        hcr |= HCR_APK | HCR_API;
    }
    if guest.watches_caches {
        hcr |= HCR_TVM;
    }
    if guest.identity_traps.0 {
        hcr |= HCR_TID1;
    }
    if guest.identity_traps.1 {
        hcr |= HCR_TID2;
    }
    hcr
}

/// HCR_EL2 while a guest runs.
#[inline]
fn hcr_guest() -> u64 {
    match stage2::forces_write_back() {
        true => HCR_GUEST | HCR_FWB,
        false => HCR_GUEST,
    }
}

/// Runs `f`, an instruction that means EL1&0, where that is the guest's regime: with HCR_EL2.TGE clear.
///
/// # Safety
///
/// Interrupts are off, and VTTBR_EL2 is that of the guests.
unsafe fn in_guest_regime(f: impl FnOnce()) {
    let (host, masks) = (read!("hcr_el2"), read!("daif"));
    // SAFETY: For the instruction alone, at EL2, which goes on by its own tables meanwhile; no access to user memory is
    // in between. Debug exceptions and SError, which the kernel would take with its own HCR_EL2, are masked.
    unsafe {
        // Barriers around both writes, as AmpereOne needs them (`switch.S`): this is rare.
        asm!(
            "msr daifset, #0xc",
            "dsb nsh",
            options(nostack, preserves_flags)
        );
        write!("hcr_el2", hcr_guest());
        asm!("isb", options(nostack, preserves_flags));
        f();
        asm!("dsb nsh", options(nostack, preserves_flags));
        write!("hcr_el2", host);
        asm!("isb", options(nostack, preserves_flags));
        write!("daif", masks);
    }
}

/// Every CPU has forgotten all translations of guests' when this returns: an entry that was broken is in no TLB. Any
/// context.
pub(crate) fn forget_translations() {
    let irqs = IrqGuard::new();
    let kept = read!("vttbr_el2");
    // SAFETY: Interrupts are off. VMID 0 is that of our guests alone, and what is in VTTBR_EL2, KVM's perhaps, is put
    // back. The first barrier makes the broken entry visible to all walkers before TLBs are told.
    unsafe {
        // No walk begins in between, also not for an AT that is executed speculatively (Arm's errata 1165522, 1530923):
        // stage 1 is on, and has no tables.
        let (tcr, sctlr) = (read!("s3_5_c2_c0_2"), read!("s3_5_c1_c0_0"));
        write!("s3_5_c2_c0_2", tcr | TCR_EPD);
        write!("s3_5_c1_c0_0", sctlr | SCTLR_M);
        write!("vttbr_el2", 0);
        asm!("dsb ishst", "isb", options(nostack, preserves_flags));
        in_guest_regime(|| {
            asm!(
                "tlbi vmalls12e1is",
                "dsb ish",
                "isb",
                options(nostack, preserves_flags)
            )
        });
        write!("vttbr_el2", kept);
        write!("s3_5_c2_c0_2", tcr);
        write!("s3_5_c1_c0_0", sctlr);
        asm!("isb", options(nostack, preserves_flags));
    }
    drop(irqs);
}

impl Stay<'_> {
    /// Gives the guest's EL1 what an exception from `pc` and `pstate` gives it. Returns VBAR_EL1 and SCTLR_EL1.
    pub(crate) fn raise(&self, pc: u64, pstate: u64, esr: u64) -> (u64, u64) {
        // SAFETY: ELR_EL1, SPSR_EL1 and ESR_EL1 of the guest, which is loaded.
        unsafe {
            write!("s3_5_c4_c0_1", pc);
            write!("s3_5_c4_c0_0", pstate);
            write!("s3_5_c5_c2_0", esr);
        }
        (read!("s3_5_c12_c0_0"), read!("s3_5_c1_c0_0"))
    }
}

/// What CNTV_CTL_EL0 or CNTP_CTL_EL0 says when the timer has fired, and is not masked.
fn timer_fires(ctl: u64) -> bool {
    ctl & (TIMER_ENABLE | TIMER_MASK | TIMER_FIRED) == TIMER_ENABLE | TIMER_FIRED
}

/// Whether the virtual timer of a guest that is not in a stay will fire, and if so, in how many nanoseconds; 0: it has.
pub(crate) fn timer_due(c: &Context, counter_offset: u64) -> Option<u64> {
    use crate::arm64::context::Reg;
    if c.get(Reg::CntvCtl) & (TIMER_ENABLE | TIMER_MASK) != TIMER_ENABLE {
        return None;
    }
    let now = counter().wrapping_sub(counter_offset);
    nanoseconds(c.get(Reg::CntvCval).saturating_sub(now))
}

/// How long so many ticks of the counter take, and not less. `None`: the firmware has not said how fast it is.
pub(crate) fn nanoseconds(ticks: u64) -> Option<u64> {
    let frequency = read!("cntfrq_el0");
    let seconds = ticks.checked_div(frequency)?;
    let rest = ticks.checked_rem(frequency)?;
    let part = rest.saturating_mul(NSEC_PER_SEC).checked_div(frequency)?;
    let ns = seconds.saturating_mul(NSEC_PER_SEC).saturating_add(part);
    Some(if ticks == 0 { 0 } else { ns.saturating_add(1) })
}

/// The physical counter.
pub(crate) fn counter() -> u64 {
    // SAFETY: Instructions before it are finished first.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
    read!("cntpct_el0")
}

/// The physical counter, roughly: it may be read too early.
#[inline]
pub(crate) fn ticks() -> u64 {
    read!("cntpct_el0")
}

/// The processor says what an SError is about (FEAT_RAS).
pub(crate) fn has_ras() -> bool {
    read!("id_aa64pfr0_el1") >> 28 & 0xf != 0
}

/// Processors have pointer authentication, of addresses and generic, and the kernel knows it of all of them.
pub(crate) fn has_keys() -> bool {
    el2::has_pointer_authentication()
}

/// What this processor says of number `n` of [`idreg::IDENTITY`](crate::arm64::idreg::IDENTITY).
pub(crate) fn host_identity(n: usize) -> u64 {
    match n {
        0 => read!("midr_el1"),
        1 => read!("revidr_el1"),
        2 => read!("aidr_el1"),
        3 => read!("ctr_el0"),
        4 => read!("clidr_el1"),
        _ => 0,
    }
}

/// What the host reads of an ID register that guests are shown something of.
pub(crate) fn host_id(reg: crate::arm64::esr::SysReg) -> u64 {
    match reg.parts() {
        (3, 0, 0, 4, 0) => read!("id_aa64pfr0_el1"),
        (3, 0, 0, 4, 1) => read!("id_aa64pfr1_el1"),
        (3, 0, 0, 5, 0) => read!("id_aa64dfr0_el1"),
        (3, 0, 0, 6, 0) => read!("id_aa64isar0_el1"),
        (3, 0, 0, 6, 1) => read!("id_aa64isar1_el1"),
        // ID_AA64ISAR2_EL1.
        (3, 0, 0, 6, 2) => read!("s3_0_c0_c6_2"),
        (3, 0, 0, 7, 0) => read!("id_aa64mmfr0_el1"),
        (3, 0, 0, 7, 1) => read!("id_aa64mmfr1_el1"),
        (3, 0, 0, 7, 2) => read!("id_aa64mmfr2_el1"),
        _ => 0,
    }
}
