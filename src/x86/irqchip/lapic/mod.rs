// SPDX-License-Identifier: GPL-2.0
//! One local APIC: interrupt acceptance, priorities, EOI, local vector table, reset and modes (SDM 3A ch. 11).
//!
//! A pure state machine without locks or clocks: the owner (the vCPU's thread) passes the time in and carries
//! out the returned [`Action`]. Register access is in [`crate::x86::irqchip::lapic::regs`], the timer in
//! [`crate::x86::irqchip::lapic::timer`].
//!
//! Deviations from the SDM, as in KVM, for guests that have been tried there alone: the ID register is writable in
//! xAPIC mode; no error is detected, so ESR stays what it is; a vector below 16 is accepted, and waits for ever; an IPI
//! may be level-triggered; registers survive while the APIC is disabled in IA32_APIC_BASE.
#![forbid(unsafe_code)]

pub use crate::x86::irqchip::lapic::defs::{base, reg};
pub mod defs;
pub mod image;
pub mod regs;
pub mod timer;

use crate::x86::irqchip::lapic::defs::{
    LVTS, LVT_MASKED, LVT_REMOTE_IRR, SVR_ENABLE, SVR_SUPPRESS_EOI, VERSION, VERSION_SUPPRESS_EOI,
};
use crate::x86::irqchip::lapic::timer::{Timer, TimerArm, TimerMode};
use crate::x86::irqchip::msg::{ApicAddr, DeliveryMode, Dfr, Message, TriggerMode, Vector};

/// The access raises #GP(0) in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// What the virtual CPU model offers; the owner sets it from CPUID and enabled capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// CPUID.1:ECX bit 21: x2APIC mode may be entered.
    pub x2apic: bool,
    /// CPUID.1:ECX bit 24: TSC-deadline timer.
    pub tsc_deadline: bool,
    /// EOI-broadcast suppression is offered (version register bit 24).
    pub suppress_eoi: bool,
    /// EOI-broadcast suppression takes effect: an EOI goes nowhere while SVR asks for that.
    pub honour_suppress_eoi: bool,
    /// MAXPHYADDR, for reserved bits of IA32_APIC_BASE.
    pub phys_bits: u8,
}

/// An EOI that the owner may have to pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eoi {
    /// The vector that ended.
    pub vector: Vector,
    /// The interrupt was level-triggered.
    pub level: bool,
    /// An EOI message goes to the I/O APICs (level-triggered and not suppressed).
    pub broadcast: bool,
    /// Software has asked that EOIs go nowhere, and is heard.
    pub suppressed: bool,
}

/// What the owner has to do after an access. Empty in the common case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Action {
    /// Re-arm the timer from [`Lapic::timer_arm`].
    pub timer: bool,
    /// Publish [`Lapic::addr`] again.
    pub addr: bool,
    /// IA32_APIC_BASE changed: the page moved, appeared or went away.
    pub base: bool,
    /// [`Lapic::lint0_accepts_extint`] or LINT0's mode may have changed.
    pub lint0: bool,
    /// Look at [`Lapic::pending`] again before the guest continues.
    pub pending: bool,
    /// Send this interprocessor interrupt; `source` for [`Message::matches`] is this APIC's ID.
    pub ipi: Option<Message>,
    /// An interrupt ended.
    pub eoi: Option<Eoi>,
}

impl Action {
    /// Nothing to do.
    pub const NONE: Self = Self {
        timer: false,
        addr: false,
        base: false,
        lint0: false,
        pending: false,
        ipi: None,
        eoi: None,
    };

    /// The timer alone.
    pub const TIMER: Self = Self {
        timer: true,
        ..Self::NONE
    };

    /// The address alone.
    pub(super) const ADDR: Self = Self {
        addr: true,
        ..Self::NONE
    };

    /// The pending interrupt alone.
    pub(super) const PENDING: Self = Self {
        pending: true,
        ..Self::NONE
    };

    /// Everything may have changed.
    pub const ALL: Self = Self {
        timer: true,
        addr: true,
        base: true,
        lint0: true,
        pending: true,
        ..Self::NONE
    };

    /// Whether there is nothing to do.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// Where the registers are kept: the register at page offset `o` is number `o / 16`, as in `struct kvm_lapic_state`.
///
/// Numbers are below 64. Where a processor virtualises the APIC the registers lie in a page that it changes while the
/// guest runs ([`Lapic::guest_ran`]).
pub trait Registers {
    /// Register number `n`.
    fn get(&self, n: usize) -> u32;
    /// Stores register number `n`.
    fn set(&mut self, n: usize, value: u32);
}

/// What is known of a 256-bit register: bit `w` is clear only if word `w` is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary(u8);

/// A local APIC.
#[derive(Clone, Debug)]
pub struct Lapic<R> {
    pub(super) regs: R,
    /// The registers as the model stored them last: what a write that the processor carried out has replaced.
    pub(super) stored: [u32; 64],
    pub(super) base: u64,
    pub(super) id: u32,
    pub(super) features: Features,
    pub(super) timer: Timer,
    pub(super) irr_words: Summary,
    pub(super) isr_words: Summary,
    /// The model changed IRR or ISR since [`Lapic::take_status`].
    pub(super) moved: bool,
}

impl Summary {
    /// Nothing is known.
    pub(super) const UNKNOWN: Self = Self(0xff);

    /// What the words are.
    fn of(words: [u32; 8]) -> Self {
        let mut summary = 0;
        let mut bit = 1u8;
        for word in words {
            if word != 0 {
                summary |= bit;
            }
            bit = bit.wrapping_shl(1);
        }
        Self(summary)
    }

    /// Highest word that may not be zero.
    #[inline]
    fn top(self) -> Option<usize> {
        (self.0 != 0).then(|| 7 ^ self.0.leading_zeros() as usize & 7)
    }
}

/// Index of the register at `offset` in the image.
#[inline]
pub(super) const fn idx(offset: u32) -> usize {
    (offset >> 4) as usize & 63
}

impl<R: Registers> Lapic<R> {
    /// A local APIC in RESET state with x2APIC ID `id`; `bus_ns` is the period of the timer's input clock.
    ///
    /// See [`Lapic::reset`] for the other parameters.
    pub fn with_registers(
        regs: R,
        id: u32,
        bsp: bool,
        lint0_extint: bool,
        features: Features,
        bus_ns: u32,
    ) -> Self {
        let mut apic = Self {
            regs,
            stored: [0; 64],
            base: 0,
            id,
            features,
            timer: Timer::new(bus_ns),
            irr_words: Summary(0),
            isr_words: Summary(0),
            moved: true,
        };
        let _ = apic.reset(bsp, lint0_extint);
        apic
    }

    /// Power-up or RESET (SDM 3A 11.4.7.1). `lint0_extint`: LINT0 starts as unmasked ExtINT, which stands in for
    /// the virtual-wire set-up of firmware (KVM_X86_QUIRK_LINT0_REENABLED, default for the BSP).
    pub fn reset(&mut self, bsp: bool, lint0_extint: bool) -> Action {
        self.base = base::DEFAULT_ADDRESS | base::ENABLE | if bsp { base::BSP } else { 0 };
        let _ = self.init(lint0_extint);
        self.set_reg(reg::ID, self.id << 24);
        Action::ALL
    }

    /// INIT (SDM 3A 11.4.7.3): as RESET, but the ID and IA32_APIC_BASE stay.
    pub fn init(&mut self, lint0_extint: bool) -> Action {
        let id = self.reg(reg::ID);
        self.clear();
        self.set_reg(reg::ID, id);
        self.set_reg(reg::VERSION, self.version());
        self.set_reg(reg::DFR, 0xffff_ffff);
        self.set_reg(reg::SVR, 0xff);
        for lvt in LVTS {
            self.set_reg(lvt, LVT_MASKED);
        }
        if lint0_extint {
            self.set_reg(reg::LVT_LINT0, (DeliveryMode::ExtInt as u32) << 8);
        }
        self.timer.reset();
        Action::ALL
    }

    /// All registers become zero.
    pub(super) fn clear(&mut self) {
        for n in 0..64 {
            self.put(n, 0);
        }
        self.irr_words = Summary(0);
        self.isr_words = Summary(0);
        self.moved = true;
    }

    /// Value of the version register.
    pub(super) fn version(&self) -> u32 {
        if self.features.suppress_eoi {
            VERSION | VERSION_SUPPRESS_EOI
        } else {
            VERSION
        }
    }

    /// Replaces the CPU model's features, for instance after KVM_SET_CPUID2.
    pub fn set_features(&mut self, features: Features) {
        self.features = features;
        self.set_reg(reg::VERSION, self.version());
        // A state may have come before the model that has its timer mode. Nothing counts then, so no time is needed.
        if self.timer_mode() == TimerMode::TscDeadline
            && self.timer.set_mode(TimerMode::TscDeadline, 0)
        {
            self.set_reg(reg::INITIAL_COUNT, 0);
        }
    }

    /// Register at page offset `offset` as stored.
    #[inline]
    pub(super) fn reg(&self, offset: u32) -> u32 {
        self.regs.get(idx(offset))
    }

    /// Stores a register without side effects.
    #[inline]
    pub(super) fn set_reg(&mut self, offset: u32, value: u32) {
        self.put(idx(offset), value);
    }

    #[inline]
    fn put(&mut self, n: usize, value: u32) {
        self.regs.set(n, value);
        self.stored[n & 63] = value;
    }

    /// Number of word `word` of the 256-bit register that begins at `first`.
    #[inline]
    const fn word(first: u32, word: usize) -> usize {
        (idx(first) + (word & 7)) & 63
    }

    /// Where the registers are kept.
    pub fn registers(&self) -> &R {
        &self.regs
    }

    /// A processor that virtualises this APIC ran the guest, and may have changed the registers that it keeps by
    /// itself: IRR, ISR, TPR, PPR, and what the guest wrote without an exit.
    #[inline]
    pub fn guest_ran(&mut self) {
        self.irr_words = Summary::UNKNOWN;
        self.isr_words = Summary::UNKNOWN;
    }

    /// The guest interrupt status for a processor that virtualises this APIC (SDM 3C 25.4.2), if the model changed it:
    /// the highest vector requested (RVI) in the low byte, the highest in service (SVI) in the high byte.
    #[inline]
    pub fn take_status(&mut self) -> Option<u16> {
        if !core::mem::replace(&mut self.moved, false) {
            return None;
        }
        let of = |v: Option<Vector>| v.map_or(0, |v| u16::from(v.0));
        Some(of(self.highest_irr()) | of(self.highest_isr()) << 8)
    }

    /// [`Lapic::take_status`] for a guest that is to get no interrupt in its next run, whatever is requested. What it
    /// did not get is in the status after that.
    #[cold]
    pub fn hold_status(&mut self) -> u16 {
        self.moved = true;
        self.highest_isr().map_or(0, |v| u16::from(v.0)) << 8
    }

    /// x2APIC ID.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// IA32_APIC_BASE.
    pub const fn apic_base(&self) -> u64 {
        self.base
    }

    /// Guest-physical address of the xAPIC page, if the page is there (xAPIC mode).
    pub fn page(&self) -> Option<u64> {
        (self.hw_enabled() && !self.is_x2apic()).then_some(self.base & !0xfff)
    }

    /// Enabled in IA32_APIC_BASE.
    #[inline]
    pub const fn hw_enabled(&self) -> bool {
        self.base & base::ENABLE != 0
    }

    /// Enabled in IA32_APIC_BASE and in SVR.
    #[inline]
    pub fn sw_enabled(&self) -> bool {
        self.hw_enabled() && self.reg(reg::SVR) & SVR_ENABLE != 0
    }

    /// In x2APIC mode.
    #[inline]
    pub const fn is_x2apic(&self) -> bool {
        self.base & (base::ENABLE | base::EXTD) == base::ENABLE | base::EXTD
    }

    /// Address and state as senders see them.
    pub fn addr(&self) -> ApicAddr {
        ApicAddr {
            id: self.id,
            xapic_id: (self.reg(reg::ID) >> 24) as u8,
            ldr: (self.reg(reg::LDR) >> 24) as u8,
            dfr: Dfr((self.reg(reg::DFR) >> 28) as u8),
            x2apic: self.is_x2apic(),
            hw_enabled: self.hw_enabled(),
            sw_enabled: self.sw_enabled(),
        }
    }

    /// Writes IA32_APIC_BASE (SDM 3A 11.12.1, 11.12.5). `by_host`: the monitor restores state, any valid
    /// mode may follow any other.
    ///
    /// # Errors
    /// [`Gp`] on reserved bits, on EXTD without EN or without x2APIC, and on a guest's illegal transition
    /// (disabled to x2APIC, x2APIC to xAPIC).
    pub fn set_apic_base(&mut self, value: u64, by_host: bool) -> Result<Action, Gp> {
        let old = self.base;
        if value == old {
            return Ok(Action::NONE);
        }
        let mode = |v: u64| v & (base::ENABLE | base::EXTD);
        let x2apic = base::ENABLE | base::EXTD;
        if !base::valid(value, self.features.phys_bits, self.features.x2apic) {
            return Err(Gp);
        }
        let illegal = matches!((mode(old), mode(value)), (o, n)
            if (o == 0 && n == x2apic) || (o == x2apic && n == base::ENABLE));
        if illegal && !by_host {
            return Err(Gp);
        }
        self.base = value;
        if mode(old) != mode(value) && mode(value) != 0 {
            // IDs start over in the new mode (SDM 3A 11.12.5).
            self.set_reg(reg::ID, self.id << 24);
            if mode(value) == x2apic {
                self.set_reg(reg::LDR, 0);
            }
        }
        Ok(Action::ALL)
    }

    fn words(&self, first: u32) -> [u32; 8] {
        let mut words = [0; 8];
        for (n, word) in words.iter_mut().enumerate() {
            *word = self.regs.get(Self::word(first, n));
        }
        words
    }

    /// The 256-bit interrupt request register.
    pub fn irr(&self) -> [u32; 8] {
        self.words(reg::IRR)
    }

    /// The 256-bit in-service register.
    pub fn isr(&self) -> [u32; 8] {
        self.words(reg::ISR)
    }

    /// Vectors that are requested or in service: there will be an end of each.
    pub fn unfinished(&self) -> [u32; 8] {
        let (mut words, isr) = (self.irr(), self.isr());
        for (word, isr) in words.iter_mut().zip(isr) {
            *word |= isr;
        }
        words
    }

    /// The 256-bit trigger mode register: vectors whose EOI leaves the local APIC.
    pub fn tmr(&self) -> [u32; 8] {
        self.words(reg::TMR)
    }

    /// Recomputes what is derived from the register image.
    pub(super) fn refresh(&mut self) {
        self.irr_words = Summary::of(self.irr());
        self.isr_words = Summary::of(self.isr());
        self.moved = true;
        self.update_ppr();
    }

    #[inline]
    fn highest(&self, first: u32, mut summary: Summary) -> Option<Vector> {
        loop {
            let word = summary.top()?;
            let bits = self.regs.get(Self::word(first, word));
            if bits != 0 {
                let bit = 31 ^ bits.leading_zeros() & 31;
                return Some(Vector((word as u32 * 32 + bit) as u8));
            }
            summary.0 &= !(1 << word);
        }
    }

    /// Highest vector in IRR, regardless of priority.
    #[inline]
    pub fn highest_irr(&self) -> Option<Vector> {
        self.highest(reg::IRR, self.irr_words)
    }

    /// Highest vector in ISR.
    #[inline]
    pub fn highest_isr(&self) -> Option<Vector> {
        self.highest(reg::ISR, self.isr_words)
    }

    /// Processor priority (SDM 3A 11.8.3.1), kept in PPR.
    pub(super) fn update_ppr(&mut self) {
        let tpr = self.reg(reg::TPR) & 0xff;
        let isr = self.highest_isr().map_or(0, |v| u32::from(v.0));
        let ppr = if tpr & 0xf0 >= isr & 0xf0 {
            tpr
        } else {
            isr & 0xf0
        };
        self.set_reg(reg::PPR, ppr);
    }

    /// Processor priority register.
    #[inline]
    pub fn ppr(&self) -> u8 {
        self.reg(reg::PPR) as u8
    }

    /// Task priority register.
    #[inline]
    pub fn tpr(&self) -> u8 {
        self.reg(reg::TPR) as u8
    }

    /// CR8: priority class of the task priority (SDM 3A 11.8.6).
    #[inline]
    pub fn cr8(&self) -> u8 {
        self.tpr() >> 4
    }

    /// Writes CR8 (the owner has checked bits 63:4).
    pub fn set_cr8(&mut self, class: u8) {
        self.set_tpr(u32::from(class & 15) << 4);
    }

    /// The guest has changed its TPR without an access to the register.
    pub fn set_guest_tpr(&mut self, tpr: u8) {
        if tpr != self.tpr() {
            self.set_tpr(tpr.into());
        }
    }

    pub(super) fn set_tpr(&mut self, tpr: u32) {
        self.set_reg(reg::TPR, tpr & 0xff);
        self.update_ppr();
    }

    /// Lowest CR8 value whose removal could let a pending interrupt through: the TPR threshold of VMX, and the
    /// reason to intercept CR8 writes on SVM. 0 if CR8 does not hold back anything.
    pub fn cr8_threshold(&self) -> u8 {
        match self.highest_irr() {
            Some(v) if v.class() <= self.cr8() => v.class(),
            _ => 0,
        }
    }

    /// The interrupt that the processor would take now (SDM 3A 11.8.3): highest in IRR with a priority class
    /// above PPR's. Requests accepted before software disabled the APIC stay deliverable (SDM 3A 11.4.7.2).
    #[inline]
    pub fn pending(&self) -> Option<Vector> {
        let vector = self.highest_irr()?;
        (self.hw_enabled() && vector.class() > self.ppr() >> 4).then_some(vector)
    }

    /// The processor takes `vector`, which [`Lapic::pending`] returned: from IRR to ISR.
    pub fn ack(&mut self, vector: Vector) {
        let (word, bit) = vector.word_bit();
        if self.change(reg::IRR, word, bit, 0) == 0 {
            self.irr_words.0 &= !(1 << word);
        }
        self.change(reg::ISR, word, 0, bit);
        self.isr_words.0 |= 1 << word;
        self.moved = true;
        self.update_ppr();
    }

    /// End of interrupt: clears the highest in-service vector (SDM 3A 11.8.5).
    pub fn eoi(&mut self) -> Action {
        let Some(vector) = self.highest_isr() else {
            return Action::NONE;
        };
        let (word, bit) = vector.word_bit();
        if self.change(reg::ISR, word, bit, 0) == 0 {
            self.isr_words.0 &= !(1 << word);
        }
        self.moved = true;
        self.update_ppr();
        self.ended(vector)
    }

    /// The processor ended the interrupt of `vector` by itself (SDM 3C 30.1.4); what is left to do.
    pub fn ended(&mut self, vector: Vector) -> Action {
        let (word, bit) = vector.word_bit();
        let level = self.regs.get(Self::word(reg::TMR, word)) & bit != 0;
        if level {
            for lvt in [reg::LVT_LINT0, reg::LVT_LINT1] {
                let value = self.reg(lvt);
                if value & LVT_REMOTE_IRR != 0 && value as u8 == vector.0 {
                    self.set_reg(lvt, value & !LVT_REMOTE_IRR);
                }
            }
        }
        let suppressed =
            self.features.honour_suppress_eoi && self.reg(reg::SVR) & SVR_SUPPRESS_EOI != 0;
        Action {
            pending: true,
            eoi: Some(Eoi {
                vector,
                level,
                broadcast: level && !suppressed,
                suppressed,
            }),
            ..Action::NONE
        }
    }

    /// Accepts a fixed or lowest-priority interrupt. Returns whether it is in IRR now: a disabled APIC ignores it.
    pub fn accept(&mut self, vector: Vector, trigger: TriggerMode) -> bool {
        if !self.sw_enabled() {
            return false;
        }
        let (word, bit) = vector.word_bit();
        self.change(reg::IRR, word, 0, bit);
        self.irr_words.0 |= 1 << word;
        self.moved = true;
        match trigger {
            TriggerMode::Edge => self.change(reg::TMR, word, bit, 0),
            TriggerMode::Level => self.change(reg::TMR, word, 0, bit),
        };
        true
    }

    /// Clears and sets bits in word `word` of the 256-bit register that begins at `first`; the new value.
    #[inline]
    fn change(&mut self, first: u32, word: usize, clear: u32, set: u32) -> u32 {
        let n = Self::word(first, word);
        let value = self.regs.get(n) & !clear | set;
        self.regs.set(n, value);
        value
    }

    /// Accepts all vectors of a posted bitmap at once; `level` marks those that are level-triggered.
    ///
    /// Whoever posted them knew whether the APIC was enabled, and has counted them as accepted: they are, also if it
    /// has been disabled since.
    pub fn accept_bitmap(&mut self, irr: &[u32; 8], level: &[u32; 8]) {
        for (word, (&new, &level)) in (0..8usize).zip(irr.iter().zip(level)) {
            if new != 0 {
                self.change(reg::IRR, word, 0, new);
                self.change(reg::TMR, word, new, level & new);
                self.irr_words.0 |= 1 << (word & 7);
                self.moved = true;
            }
        }
    }

    /// Takes the requests of these vectors back; those that there were.
    pub fn withdraw(&mut self, vectors: &[u32; 8]) -> [u32; 8] {
        let mut irr = self.irr();
        for (word, (irr, vectors)) in (0..8usize).zip(irr.iter_mut().zip(vectors)) {
            *irr &= vectors;
            if *irr != 0 {
                self.change(reg::IRR, word, *irr, 0);
                self.moved = true;
            }
        }
        irr
    }

    /// Whether an interrupt of the 8259A reaches the processor: the APIC is disabled globally, or LINT0 is
    /// unmasked with delivery mode ExtINT.
    pub fn lint0_accepts_extint(&self) -> bool {
        let lvt = self.reg(reg::LVT_LINT0);
        !self.hw_enabled()
            || lvt & LVT_MASKED == 0 && DeliveryMode::from_bits(lvt >> 8) == DeliveryMode::ExtInt
    }

    /// Whether LINT0 is unmasked with delivery mode NMI: PIT ticks are NMIs then (watchdog).
    pub fn lint0_is_nmi(&self) -> bool {
        let lvt = self.reg(reg::LVT_LINT0);
        self.hw_enabled()
            && lvt & LVT_MASKED == 0
            && DeliveryMode::from_bits(lvt >> 8) == DeliveryMode::Nmi
    }

    /// When to call [`Lapic::timer_expired`].
    pub fn timer_arm(&self) -> TimerArm {
        if !self.hw_enabled() {
            return TimerArm::Off;
        }
        self.timer.arm(self.reg(reg::LVT_TIMER) & LVT_MASKED != 0)
    }

    /// The time of [`Lapic::timer_arm`] was reached (an early call does no harm). Posts the timer's vector
    /// unless masked and returns whether it did; re-arm from [`Lapic::timer_arm`] afterwards.
    pub fn timer_expired(&mut self, now: u64, tsc: u64) -> bool {
        let lvt = self.reg(reg::LVT_TIMER);
        self.timer.expired(now, tsc)
            && lvt & LVT_MASKED == 0
            && self.accept(Vector(lvt as u8), TriggerMode::Edge)
    }

    /// IA32_TSC_DEADLINE (SDM 3A 11.5.4.1); 0 unless armed, and while the APIC is disabled in IA32_APIC_BASE.
    pub const fn tsc_deadline(&self) -> u64 {
        if self.hw_enabled() {
            self.timer.tsc_deadline()
        } else {
            0
        }
    }

    /// The timer's mode by its LVT entry, as far as the CPU model has it.
    pub(super) fn timer_mode(&self) -> TimerMode {
        TimerMode::from_lvt(self.reg(reg::LVT_TIMER) & self.lvt_mask(reg::LVT_TIMER))
    }

    /// Writes IA32_TSC_DEADLINE; ignored unless the timer is in TSC-deadline mode. Whether CPUID has the
    /// MSR at all is for the owner to check.
    pub fn set_tsc_deadline(&mut self, tsc: u64) -> Action {
        let timer = self.hw_enabled() && self.timer.set_tsc_deadline(tsc);
        Action {
            timer,
            ..Action::NONE
        }
    }
}
