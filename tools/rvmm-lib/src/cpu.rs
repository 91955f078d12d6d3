// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a virtual CPU is before its first instruction: CPUID, registers, MSRs, local APIC.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, CpuId, Msrs,
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use crate::boot::Entry;
use crate::error::{Error, Result};
use crate::paging::Mode;
use crate::{layout, paging};

/// CPUID leaf 1 EDX: more than one logical processor.
const HTT: u32 = 1 << 28;
/// CPUID leaf 1 ECX: local APIC timer in TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;

/// Which CPU of how many, as CPUID tells it: cores of one package, one thread each.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// APIC id of this CPU.
    pub id: u8,
    /// CPUs of the machine.
    pub cpus: u8,
}

impl Topology {
    /// Bits of the APIC id that tell cores apart.
    fn core_bits(self) -> u32 {
        u32::from(self.cpus).next_power_of_two().trailing_zeros()
    }
}

fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    // "AuthenticAMD" or "HygonGenuine": the first four letters are in EBX.
    entries.iter().any(|e| {
        e.function == 0
            && (e.ebx == u32::from_le_bytes(*b"Auth") || e.ebx == u32::from_le_bytes(*b"Hygo"))
    })
}

/// The hypervisor's supported CPUID, made this CPU's.
///
/// `tsc_deadline` says whether the LAPIC in the kernel has TSC-deadline mode, which
/// `KVM_GET_SUPPORTED_CPUID` leaves to the caller (api.rst 4.46).
pub fn cpuid(
    supported: &[kvm_cpuid_entry2],
    topology: Topology,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let Topology { id, cpus } = topology;
    let amd = is_amd(supported);
    let highest = supported
        .iter()
        .find(|e| e.function == 0)
        .map_or(0, |e| e.eax);
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|e| e.function != 0xb && e.function != 0x1f)
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0xffff | (u32::from(cpus) << 16) | (u32::from(id) << 24);
                if cpus > 1 {
                    entry.edx |= HTT;
                }
                if tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
            }
            // Intel's caches: levels 1 and 2 belong to one core, level 3 to all.
            0x4 if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let all = (1 << topology.core_bits()) - 1;
                let sharing = if level >= 3 { all } else { 0 };
                entry.eax = entry.eax & 0x3fff | (sharing << 14) | (all.min(63) << 26);
            }
            0x8000_0001 if amd && cpus > 1 => entry.ecx |= 1 << 1,
            0x8000_0008 if amd => {
                entry.ecx =
                    entry.ecx & !0xf0ff | (u32::from(cpus) - 1) | (topology.core_bits() << 12);
            }
            0x8000_001e => {
                entry.eax = u32::from(id);
                entry.ebx = u32::from(id);
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    if highest >= 0xb {
        let leaves: &[u32] = if highest >= 0x1f {
            &[0xb, 0x1f]
        } else {
            &[0xb]
        };
        for &function in leaves {
            entries.extend(extended_topology(function, topology));
        }
    }
    entries
}

/// Leaf 0xb or 0x1f: a thread level of one, a core level of all, the end (SDM 2A, CPUID).
fn extended_topology(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const SMT: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let level = |index, eax, ebx, kind| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind | index,
        edx: u32::from(topology.id),
        ..Default::default()
    };
    [
        level(0, 0, 1, SMT),
        level(1, topology.core_bits(), u32::from(topology.cpus), CORE),
        level(2, 0, 0, 0),
    ]
}

/// The most bytes of memory that a guest with this CPUID can address, around the hole below 4 GiB.
pub(crate) fn most_memory(supported: &[kvm_cpuid_entry2]) -> u64 {
    /// A slot has fewer than 2^31 pages (KVM_MEM_MAX_NR_PAGES).
    const SLOT: u64 = (1 << 43) - 4096;
    let leaf = supported.iter().find(|e| e.function == 0x8000_0008);
    // Without the leaf an address has 36 bits (SDM 2A, CPUID).
    let bits = leaf.map_or(36, |e| e.eax & 0xff).clamp(32, 52);
    ((1u64 << bits) - layout::HOLE_END).min(SLOT) + layout::HOLE_START
}

/// Words of CPUID of which each bit is an ability: leaf, subleaf, and the bits of EAX, EBX, ECX and EDX that are, all
/// but those that follow control registers, the TSC-deadline timer and what else [`cpuid`] sets by itself.
const ABILITIES: [(u32, u32, [u32; 4]); 11] = [
    (
        1,
        0,
        [
            0,
            0,
            !(1 << 3 | TSC_DEADLINE | 1 << 27 | 1 << 31),
            !(1 << 9 | HTT),
        ],
    ),
    (6, 0, [!0, 0, !0, 0]),
    (7, 0, [0, !0, !(1 << 4), !0]),
    (7, 1, [!0, !0, !0, !0]),
    (7, 2, [0, 0, 0, !0]),
    (0xd, 0, [!0, 0, 0, !0]),
    (0xd, 1, [!0, 0, !0, !0]),
    (0x4000_0001, 0, [!0, 0, 0, 0]),
    (0x8000_0001, 0, [0, 0, !(1 << 1), !0]),
    (0x8000_0007, 0, [0, !0, 0, !0]),
    (0x8000_0008, 0, [0, !0, 0, 0]),
];

/// What a CPU with this CPUID has that a hypervisor does not support, in words.
pub(crate) fn lacks(has: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Option<String> {
    let words = |of: &[kvm_cpuid_entry2], leaf, index| {
        let mut found = of.iter();
        let entry = found.find(|entry| (entry.function, entry.index) == (leaf, index));
        entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    };
    let vendor = |of| {
        let [_, ebx, ecx, edx] = words(of, 0, 0);
        let name = [ebx, edx, ecx].map(u32::to_le_bytes).concat();
        String::from_utf8_lossy(&name).into_owned()
    };
    let (was, is) = (vendor(has), vendor(supported));
    if was != is {
        return Some(format!("a processor of {was}, and not of {is}"));
    }
    let missing = |&(leaf, index, bits): &(u32, u32, [u32; 4])| {
        let (want, have) = (words(has, leaf, index), words(supported, leaf, index));
        let names = ["EAX", "EBX", "ECX", "EDX"];
        (0..4).find_map(|n| {
            let missing = want[n] & !have[n] & bits[n];
            let name = names[n];
            (missing != 0).then(|| format!("bits {missing:#x} of CPUID {leaf:#x}.{index} {name}"))
        })
    };
    ABILITIES.iter().find_map(missing)
}

/// Gives the CPU its CPUID.
///
/// # Errors
///
/// [`Error::Ioctl`].
pub fn set_cpuid(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<()> {
    let cpuid = CpuId::from_entries(entries).map_err(|_| Error::Ioctl {
        call: "KVM_SET_CPUID2",
        errno: libc::E2BIG,
    })?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(Error::ioctl("KVM_SET_CPUID2"))
}

/// Gives the CPU a reset x87/SSE state and memory that is cached by default.
///
/// # Errors
///
/// [`Error::Ioctl`] or [`Error::Msr`].
pub fn set_common(vcpu: &VcpuFd) -> Result<()> {
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(Error::ioctl("KVM_SET_FPU"))?;

    // MTRRs on, default type write-back (SDM 3A 13.11.2.1): a kernel that finds them off maps
    // all of its memory uncached.
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    // Fast strings on, no BTS, no PEBS, as firmware leaves it: without them a kernel copies slowly.
    const MISC_ENABLE: u32 = 0x1a0;
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = [
        entry(MTRR_DEF_TYPE, (1 << 11) | 6),
        entry(MISC_ENABLE, 1 | 1 << 11 | 1 << 12),
    ];
    let list = Msrs::from_entries(&msrs).map_err(|_| Error::Ioctl {
        call: "KVM_SET_MSRS",
        errno: libc::E2BIG,
    })?;
    let written = vcpu.set_msrs(&list).map_err(Error::ioctl("KVM_SET_MSRS"))?;
    if let Some(refused) = msrs.get(written) {
        return Err(Error::Msr {
            index: refused.index,
        });
    }

    Ok(())
}

/// A parameter that saves the guest a calibration against the PIT, where the hypervisor knows the frequency.
pub(crate) fn tsc_parameter(vm: &VmFd, first: &VcpuFd) -> String {
    match first.get_tsc_khz() {
        Ok(khz) if vm.check_extension(Cap::GetTscKhz) => format!(" tsc_early_khz={khz}"),
        _ => String::new(),
    }
}

/// Wires the CPU's local APIC in the kernel: PIC on LINT0 of the boot CPU, NMI on LINT1.
///
/// # Errors
///
/// [`Error::Ioctl`].
pub fn set_lapic_inputs(vcpu: &VcpuFd, boot: bool) -> Result<()> {
    let mut lapic = vcpu.get_lapic().map_err(Error::ioctl("KVM_GET_LAPIC"))?;
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MASKED: u32 = 1 << 16;
    const MODE_NMI: u32 = 4 << 8;
    const MODE_EXT_INT: u32 = 7 << 8;
    set_apic_register(
        &mut lapic,
        LVT_LINT0,
        if boot { MODE_EXT_INT } else { MASKED },
    );
    set_apic_register(&mut lapic, LVT_LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic)
        .map_err(Error::ioctl("KVM_SET_LAPIC"))
}

fn set_apic_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (byte, value) in lapic.regs[offset..offset + 4]
        .iter_mut()
        .zip(value.to_le_bytes())
    {
        *byte = value as _;
    }
}

fn segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Puts the boot CPU at `entry` as the boot protocol of its mode wants it: flat segments, interrupts
/// off, `rsi` at the zero page; in 64-bit mode paging on through the tables at
/// [`layout::PAGE_TABLES`].
///
/// # Errors
///
/// [`Error::Ioctl`].
pub fn set_entry(vcpu: &VcpuFd, entry: Entry, rsi: u64) -> Result<()> {
    const PE: u64 = 1;
    const ET: u64 = 1 << 4;
    const NE: u64 = 1 << 5;
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LME: u64 = 1 << 8;
    const LMA: u64 = 1 << 10;

    let mut sregs = vcpu.get_sregs().map_err(Error::ioctl("KVM_GET_SREGS"))?;
    let data = segment(paging::BOOT_DS, 0x3);
    let long = entry.mode == Mode::Long;
    sregs.cs = kvm_segment {
        l: long.into(),
        db: (!long).into(),
        ..segment(paging::BOOT_CS, 0xb)
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        s: 0,
        g: 0,
        db: 0,
        limit: 0x67,
        ..segment(paging::BOOT_TSS, 0xb)
    };
    sregs.ldt = kvm_segment {
        s: 0,
        g: 0,
        db: 0,
        limit: 0,
        unusable: 1,
        present: 0,
        ..segment(0, 2)
    };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (size_of_val(&paging::gdt(entry.mode)) - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = match entry.mode {
        Mode::Protected => (PE | ET | NE, 0, 0, 0),
        Mode::Long => (PE | ET | NE | PG, layout::PAGE_TABLES, PAE, LME | LMA),
    };
    vcpu.set_sregs(&sregs)
        .map_err(Error::ioctl("KVM_SET_SREGS"))?;

    let regs = kvm_regs {
        rip: entry.address,
        rsi,
        rsp: layout::STACK_TOP,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(Error::ioctl("KVM_SET_REGS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = entries
            .iter()
            .filter(|e| e.function == function && e.index == index);
        let entry = *found.next().expect("leaf");
        assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
        entry
    }

    #[test]
    fn leaf_one_names_the_cpu() {
        let supported = [leaf(0, 1, 0, 0, 0), leaf(1, 0x6a6, 0xff00_0800, 1, 2)];
        let entry = find(&cpuid(&supported, Topology { id: 3, cpus: 4 }, true), 1, 0);
        assert_eq!(entry.ebx, 0x0304_0800);
        assert_eq!(entry.ecx, 1 | TSC_DEADLINE);
        assert_eq!(entry.edx, 2 | HTT);
        let alone = find(&cpuid(&supported, Topology { id: 0, cpus: 1 }, false), 1, 0);
        assert_eq!((alone.ecx, alone.edx), (1, 2));
    }

    #[test]
    fn extended_topology_replaces_what_was_there() {
        let supported = [
            leaf(0, 0x1f, 0, 0, 0),
            leaf(0xb, 9, 9, 9, 9),
            leaf(0x1f, 9, 9, 9, 9),
        ];
        let entries = cpuid(&supported, Topology { id: 2, cpus: 3 }, false);
        for function in [0xb, 0x1f] {
            let core = find(&entries, function, 1);
            assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, 2));
            assert_eq!(find(&entries, function, 0).ecx, 0x100);
            assert_eq!(find(&entries, function, 2).ebx, 0);
        }
    }

    #[test]
    fn no_extended_topology_beyond_the_highest_leaf() {
        let entries = cpuid(&[leaf(0, 0xa, 0, 0, 0)], Topology { id: 0, cpus: 2 }, false);
        assert!(entries.iter().all(|e| e.function != 0xb));
    }

    #[test]
    fn amd_core_count() {
        let auth = u32::from_le_bytes(*b"Auth");
        let supported = [leaf(0, 0xd, auth, 0, 0), leaf(0x8000_0008, 0, 0, 0xff, 0)];
        let entries = cpuid(&supported, Topology { id: 0, cpus: 4 }, false);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0x2003);
        let intel = [leaf(0, 0xd, 0, 0, 0), leaf(0x8000_0008, 0, 0, 0, 0)];
        let entries = cpuid(&intel, Topology { id: 0, cpus: 4 }, false);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn a_saved_cpu_runs_where_everything_is_supported() {
        let amd = [
            u32::from_le_bytes(*b"Auth"),
            u32::from_le_bytes(*b"cAMD"),
            u32::from_le_bytes(*b"enti"),
        ];
        let first = leaf(0, 0x10, amd[0], amd[1], amd[2]);
        let supported = [
            first,
            leaf(1, 0xa20f12, 0x800, 0xfed8_3203, 0x178b_fbff),
            leaf(7, 0, 0x219c_97a9, 0, 0),
        ];
        let has = cpuid(&supported, Topology { id: 1, cpus: 2 }, true);
        assert_eq!(lacks(&has, &supported), None);
        let mut running = has.clone();
        for entry in running.iter_mut().filter(|entry| entry.function == 1) {
            (entry.ecx, entry.edx) = (entry.ecx | 1 << 27, entry.edx & !(1 << 9));
        }
        assert_eq!(
            lacks(&running, &supported),
            None,
            "what control registers do is no ability"
        );
        let mut older = supported;
        older[2].ebx &= !(1 << 5);
        assert_eq!(lacks(&has, &older).unwrap(), "bits 0x20 of CPUID 0x7.0 EBX");
        let intel = leaf(
            0,
            0x10,
            u32::from_le_bytes(*b"Genu"),
            u32::from_le_bytes(*b"ntel"),
            u32::from_le_bytes(*b"ineI"),
        );
        let cause = lacks(&has, &[intel]).unwrap();
        assert_eq!(
            cause,
            "a processor of AuthenticAMD, and not of GenuineIntel"
        );
    }

    #[test]
    fn memory_ends_with_addresses() {
        let most = |bits| most_memory(&[leaf(0x8000_0008, bits, 0, 0, 0)]);
        assert_eq!(most(40), (1 << 40) - (1 << 30));
        assert_eq!(most(32), 3 << 30);
        assert_eq!(most(52), (1 << 43) - 4096 + (3 << 30));
        assert_eq!(most_memory(&[]), (1 << 36) - (1 << 30));
    }

    #[test]
    fn apic_registers_are_little_endian() {
        let mut lapic = kvm_lapic_state::default();
        set_apic_register(&mut lapic, 0x350, 0x0001_0700);
        assert_eq!(&lapic.regs[0x350..0x354], &[0, 7, 1, 0]);
    }
}
