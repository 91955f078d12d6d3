// SPDX-License-Identifier: GPL-2.0
//! Interrupt messages and their destination matching (SDM 3A 11.6, 11.11, 11.12.9; api.rst 4.71, KVM_CAP_X2APIC_API).
#![forbid(unsafe_code)]

/// Makes a type of the numbers below a limit.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($t:ty), below $limit:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name($t);

        impl $name {
            /// The one with number `n`, if there is one; guests and user space choose it.
            #[inline]
            pub fn new(n: u32) -> Option<Self> {
                Some(Self($crate::nospec::below(n as usize, $limit as usize)? as $t))
            }

            /// Its number, which is an index also under speculation ([`new`](Self::new)).
            pub const fn number(self) -> u32 {
                self.0 as u32
            }
        }
    };
}
pub(super) use number;

/// Interrupt vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vector(pub u8);

impl Vector {
    /// Priority class, bits 7:4 (SDM 3A 11.8.3).
    #[inline]
    pub const fn class(self) -> u8 {
        self.0 >> 4
    }

    /// Index of the 32-bit word in a 256-bit register such as IRR, and the bit inside it.
    #[inline]
    pub const fn word_bit(self) -> (usize, u32) {
        ((self.0 >> 5) as usize, 1 << (self.0 & 31))
    }
}

/// Delivery mode (SDM 3A 11.6.1, figure 11-12). The discriminant is the 3-bit encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryMode {
    /// Deliver the vector to every destination.
    Fixed = 0,
    /// Deliver the vector to one of the destinations.
    LowestPriority = 1,
    /// System-management interrupt.
    Smi = 2,
    /// Reserved encoding; nothing is delivered.
    Reserved = 3,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi = 4,
    /// INIT request.
    Init = 5,
    /// Start-up IPI; the vector is the page number of the start address.
    StartUp = 6,
    /// Vector comes from an external 8259A.
    ExtInt = 7,
}

impl DeliveryMode {
    /// Decodes the low three bits of `n`.
    #[inline]
    pub const fn from_bits(n: u32) -> Self {
        match n & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => Self::Reserved,
        }
    }

    /// Whether the message carries a vector for IRR (fixed and lowest priority).
    #[inline]
    pub const fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// Trigger mode (SDM 3A 11.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TriggerMode {
    /// Edge; the EOI stays inside the local APIC.
    #[default]
    Edge,
    /// Level; the EOI is broadcast to the I/O APICs.
    Level,
}

impl TriggerMode {
    /// Level if `level`, else edge.
    #[inline]
    pub const fn from_bit(level: bool) -> Self {
        if level {
            Self::Level
        } else {
            Self::Edge
        }
    }
}

/// Destination mode (SDM 3A 11.6.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DestMode {
    /// Destination is an APIC ID.
    #[default]
    Physical,
    /// Destination is matched against LDR and DFR.
    Logical,
}

impl DestMode {
    /// Logical if `logical`, else physical.
    #[inline]
    pub const fn from_bit(logical: bool) -> Self {
        if logical {
            Self::Logical
        } else {
            Self::Physical
        }
    }
}

/// Destination shorthand of an IPI (SDM 3A 11.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shorthand {
    /// Use the destination field.
    #[default]
    None,
    /// The sender only.
    Myself,
    /// Everybody.
    All,
    /// Everybody but the sender.
    AllButSelf,
}

impl Shorthand {
    /// Decodes ICR bits 19:18, given as the low two bits of `n`.
    #[inline]
    pub const fn from_bits(n: u32) -> Self {
        match n & 3 {
            0 => Self::None,
            1 => Self::Myself,
            2 => Self::All,
            _ => Self::AllButSelf,
        }
    }
}

/// APIC ID that addresses every local APIC in xAPIC format.
pub const BROADCAST_XAPIC: u32 = 0xff;
/// APIC ID that addresses every local APIC in x2APIC format.
pub const BROADCAST_X2APIC: u32 = 0xffff_ffff;

/// An interrupt message on its way to local APICs, whatever its source (MSI, I/O APIC, IPI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// APIC ID or logical destination; ignored with a shorthand.
    pub dest: u32,
    /// How to read `dest`.
    pub dest_mode: DestMode,
    /// The destination came from an 8-bit field, so that 0xff addresses all (not only APIC 255).
    pub dest_is_8bit: bool,
    /// Destination shorthand (IPIs only).
    pub shorthand: Shorthand,
    /// What is delivered.
    pub delivery: DeliveryMode,
    /// Edge or level.
    pub trigger: TriggerMode,
    /// Assert (true) or de-assert.
    pub level: bool,
    /// Vector, or start page of a start-up IPI.
    pub vector: Vector,
    /// MSI redirection hint: deliver to one of the destinations (SDM 3A 11.11.1).
    pub redirection_hint: bool,
}

/// How the destination of an MSI is encoded, chosen by the virtual-machine monitor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiFormat {
    /// Address bits 63:40 hold destination bits 31:8 (KVM_X2APIC_API_USE_32BIT_IDS).
    pub ids_32bit: bool,
    /// Destination 0xff addresses APIC 255, not everybody (KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK).
    pub no_broadcast_quirk: bool,
    /// Address bits 11:5 hold destination bits 14:8 (guest feature KVM_FEATURE_MSI_EXT_DEST_ID).
    pub ext_dest_id: bool,
}

impl Message {
    /// A fixed, edge-triggered, physical message to one APIC.
    pub const fn fixed(dest: u32, vector: Vector) -> Self {
        Self {
            dest,
            dest_mode: DestMode::Physical,
            dest_is_8bit: false,
            shorthand: Shorthand::None,
            delivery: DeliveryMode::Fixed,
            trigger: TriggerMode::Edge,
            level: true,
            vector,
            redirection_hint: false,
        }
    }

    /// What MSI data, redirection entries and the ICR have in common: vector, delivery mode and trigger mode in `bits`.
    const fn decoded(dest: u32, logical: bool, bits: u32) -> Self {
        Self {
            dest_mode: DestMode::from_bit(logical),
            delivery: DeliveryMode::from_bits(bits >> 8),
            trigger: TriggerMode::from_bit(bits & (1 << 15) != 0),
            ..Self::fixed(dest, Vector(bits as u8))
        }
    }

    /// Decodes an MSI (SDM 3A 11.11.1, 11.11.2). `address_hi` is ignored unless `format` says otherwise.
    pub const fn from_msi(address_lo: u32, address_hi: u32, data: u32, format: MsiFormat) -> Self {
        let mut dest = (address_lo >> 12) & 0xff;
        if format.ext_dest_id {
            dest |= ((address_lo >> 5) & 0x7f) << 8;
        }
        if format.ids_32bit {
            dest |= address_hi & 0xffff_ff00;
        }
        // Devices signal an MSI by one write; level-triggered MSIs are asserts (the IOAPIC of a split irqchip sends
        // them that way, without setting bit 14).
        Self {
            dest_is_8bit: !format.no_broadcast_quirk,
            redirection_hint: address_lo & (1 << 3) != 0,
            ..Self::decoded(dest, address_lo & (1 << 2) != 0, data)
        }
    }

    /// Decodes an I/O APIC redirection table entry (82093AA 3.2.4).
    pub const fn from_rte(rte: u64) -> Self {
        let low = rte as u32;
        Self {
            dest_is_8bit: true,
            ..Self::decoded((rte >> 56) as u32, low & (1 << 11) != 0, low)
        }
    }

    /// Decodes the interrupt command register (SDM 3A 11.6.1, 11.12.9). `high` is ICR bits 63:32, whose top
    /// byte is the destination in xAPIC mode and which is the destination as a whole in x2APIC mode.
    pub const fn from_icr(low: u32, high: u32, x2apic: bool) -> Self {
        let dest = if x2apic { high } else { high >> 24 };
        Self {
            dest_is_8bit: !x2apic,
            shorthand: Shorthand::from_bits(low >> 18),
            level: low & (1 << 14) != 0,
            ..Self::decoded(dest, low & (1 << 11) != 0, low)
        }
    }

    /// Whether one destination is to be chosen among those that match. A physical broadcast with lowest priority, which
    /// is not defined (SDM 3A 11.6.2.1), goes to all, as by KVM.
    #[inline]
    pub const fn to_one_only(self) -> bool {
        let broadcast =
            self.dest == BROADCAST_XAPIC && matches!(self.dest_mode, DestMode::Physical);
        self.redirection_hint || matches!(self.delivery, DeliveryMode::LowestPriority) && !broadcast
    }

    /// INIT level de-assert, which processors since the Pentium 4 ignore (SDM 3A 11.6.1).
    #[inline]
    pub const fn is_init_deassert(&self) -> bool {
        matches!(self.delivery, DeliveryMode::Init)
            && matches!(self.trigger, TriggerMode::Level)
            && !self.level
    }

    /// The one APIC ID that this message addresses physically, if it does: the owner's short cut.
    #[inline]
    pub fn single_physical(&self) -> Option<u32> {
        let one = self.shorthand == Shorthand::None
            && self.dest_mode == DestMode::Physical
            && self.dest != BROADCAST_X2APIC
            && self.dest != BROADCAST_XAPIC;
        one.then_some(self.dest)
    }

    /// Whether the message addresses the APIC `to`. `source` is the x2APIC ID of the sending local APIC
    /// (for shorthands), `None` for other sources.
    pub fn matches(&self, source: Option<u32>, to: &ApicAddr) -> bool {
        if !to.hw_enabled {
            return false;
        }
        match self.shorthand {
            Shorthand::Myself => source == Some(to.id),
            Shorthand::All => true,
            Shorthand::AllButSelf => source != Some(to.id),
            Shorthand::None => self.is_broadcast(to) || self.matches_dest(to),
        }
    }

    fn is_broadcast(&self, to: &ApicAddr) -> bool {
        // An xAPIC never has ID 0xff of its own, so that 0xff can only mean all there.
        self.dest == BROADCAST_X2APIC
            || (self.dest == BROADCAST_XAPIC && (self.dest_is_8bit || !to.x2apic))
    }

    fn matches_dest(&self, to: &ApicAddr) -> bool {
        match self.dest_mode {
            // A destination beyond 8 bits cannot mean an xAPIC ID: the initial x2APIC ID counts, so that
            // processors not yet switched to x2APIC can be started.
            DestMode::Physical if to.x2apic || self.dest > 0xff => self.dest == to.id,
            DestMode::Physical => self.dest == u32::from(to.xapic_id),
            DestMode::Logical if to.x2apic => {
                let ldr = x2apic_ldr(to.id);
                ldr >> 16 == self.dest >> 16 && ldr & self.dest & 0xffff != 0
            }
            DestMode::Logical => {
                let Ok(mda) = u8::try_from(self.dest) else {
                    return false;
                };
                match to.dfr {
                    Dfr::FLAT => to.ldr & mda != 0,
                    Dfr::CLUSTER => to.ldr >> 4 == mda >> 4 && to.ldr & mda & 0xf != 0,
                    _ => false,
                }
            }
        }
    }
}

/// Logical ID that a local APIC in x2APIC mode derives from its ID (SDM 3A 11.12.10.2).
#[inline]
pub const fn x2apic_ldr(id: u32) -> u32 {
    ((id >> 4) << 16) | (1 << (id & 15))
}

/// Destination format register, bits 31:28 (SDM 3A 11.6.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dfr(pub u8);

impl Dfr {
    /// Eight destinations, one bit each.
    pub const FLAT: Self = Self(0xf);
    /// Fifteen clusters of four destinations.
    pub const CLUSTER: Self = Self(0);
}

/// All that a sender has to know of a local APIC; fits one atomic word (see [`ApicAddr::to_bits`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicAddr {
    /// x2APIC ID (equal to the vCPU id).
    pub id: u32,
    /// xAPIC ID, bits 31:24 of the ID register.
    pub xapic_id: u8,
    /// Logical ID in xAPIC mode, bits 31:24 of LDR.
    pub ldr: u8,
    /// Logical destination model in xAPIC mode.
    pub dfr: Dfr,
    /// In x2APIC mode.
    pub x2apic: bool,
    /// Enabled in IA32_APIC_BASE. A disabled APIC receives nothing.
    pub hw_enabled: bool,
    /// Enabled in SVR. If not, only NMI, INIT, SMI and start-up IPIs are accepted.
    pub sw_enabled: bool,
}

impl ApicAddr {
    /// Packs into 64 bits: ID 31:0, xAPIC ID 39:32, LDR 47:40, DFR 59:56, flags 62:60.
    pub const fn to_bits(self) -> u64 {
        self.id as u64
            | (self.xapic_id as u64) << 32
            | (self.ldr as u64) << 40
            | ((self.dfr.0 & 15) as u64) << 56
            | (self.x2apic as u64) << 60
            | (self.hw_enabled as u64) << 61
            | (self.sw_enabled as u64) << 62
    }

    /// Unpacks [`ApicAddr::to_bits`]. Zero is a disabled APIC.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            id: bits as u32,
            xapic_id: (bits >> 32) as u8,
            ldr: (bits >> 40) as u8,
            dfr: Dfr((bits >> 56) as u8 & 15),
            x2apic: bits & (1 << 60) != 0,
            hw_enabled: bits & (1 << 61) != 0,
            sw_enabled: bits & (1 << 62) != 0,
        }
    }

    /// Whether a message to the ID that the APIC began with addresses it.
    #[inline]
    pub const fn has_initial_id(&self) -> bool {
        self.x2apic || self.id > 0xff || self.xapic_id as u32 == self.id
    }

    /// Whether an addressed APIC takes a message of this delivery mode (SDM 3A 11.4.7.2).
    #[inline]
    pub fn accepts(&self, delivery: DeliveryMode) -> bool {
        self.hw_enabled && (self.sw_enabled || !delivery.has_vector())
    }
}
