// SPDX-License-Identifier: GPL-2.0
//! Hyper-V's interface: CPUID, hypercall input, timers, the reference TSC page.

use rvmm_logic::x86::cpu::cpuid::CpuidEntry;
use rvmm_logic::x86::cpu::index as ix;
use rvmm_logic::x86::cpu::tsc;
use rvmm_logic::x86::hyperv::cpuid::{supported, Granted};
use rvmm_logic::x86::hyperv::defs::{call, leaf, status};
use rvmm_logic::x86::hyperv::input::{flush, interrupt, Input, Registers, VpSet};
use rvmm_logic::x86::hyperv::stimer::{message, Stimer, Told, Wait};
use rvmm_logic::x86::hyperv::synic::{highest_above, vector_of, Synic, MASKED};
use rvmm_logic::x86::hyperv::tsc_page::{next_sequence, Reference};

#[test]
fn what_is_offered_is_granted() {
    let all = Granted::from_table(&supported(true, true, 1024));
    assert!(all.enabled && all.debugs() && all.xmm_input() && all.direct_timers());
    for index in [
        ix::HV_GUEST_OS_ID,
        ix::HV_VP_RUNTIME,
        ix::HV_SINT15,
        ix::HV_STIMER3_COUNT,
        ix::HV_EOI,
        ix::HV_VP_ASSIST_PAGE,
        ix::HV_CRASH_CTL,
        ix::HV_SYNDBG_OPTIONS,
        ix::HV_TSC_INVARIANT_CONTROL,
        ix::HV_TSC_EMULATION_STATUS,
    ] {
        assert!(all.has_msr(index), "{index:#x}");
        assert!(!Granted::default().has_msr(index));
    }
    for code in [
        call::FLUSH_LIST_EX,
        call::SEND_IPI_EX,
        call::LONG_SPIN_WAIT,
        0xbeef,
    ] {
        assert!(all.has_call(code));
    }
    assert!(!Granted::default().has_call(call::SEND_IPI));
    assert!(Granted::default().has_call(0xbeef));
    // Without local APICs in the kernel neither vectors nor interrupts to many.
    let none = Granted::from_table(&supported(false, false, 1024));
    assert!(!none.direct_timers() && !none.has_call(call::SEND_IPI));
    // The interface's name is what counts.
    let mut table = supported(true, true, 1024);
    for e in table.iter_mut().filter(|e| e.function == leaf::INTERFACE) {
        e.eax = 0;
    }
    assert_eq!(Granted::from_table(&table), Granted::default());
    assert_eq!(supported(true, true, 7).map(|e| e.padding), [[0; 3]; 10]);
    assert_eq!(CpuidEntry::default().flags, 0);
}

fn fast(control: u64, words: &[u64]) -> (Input, Registers) {
    let mut all = [0; 14];
    all[..words.len()].copy_from_slice(words);
    let input = Input {
        control: control | 1 << 16,
        first: all[0],
        second: all[1],
    };
    (input, Registers(all))
}

#[test]
fn fields_of_the_input_value() {
    let i = Input {
        control: 0x0123_0456_05fe_0003 & !(1 << 16) | 1 << 16,
        first: 0,
        second: 0,
    };
    assert_eq!((i.code(), i.fast(), i.var()), (3, true, 0x2ff));
    assert_eq!((i.reps(), i.rep_start()), (0x456, 0x123));
    assert!(!i.malformed() && i.rep());
    for bit in (27..32).chain(44..48).chain(60..64) {
        let control = 1 << bit;
        assert!(Input { control, ..i }.malformed(), "{bit}");
    }
    assert_eq!(i.done(), 0x456_0000_0000);
}

#[test]
fn whom_a_flush_names() {
    let whose = |control, words: &[u64]| {
        let (i, b) = fast(control, words);
        flush(&i, &b)
    };
    let bad = Err(status::INVALID_INPUT);
    let space = u64::from(call::FLUSH_SPACE);
    let set = whose(space, &[0, 0, 0b101]).unwrap().unwrap();
    assert!(set.contains(0) && !set.contains(1) && set.contains(2) && !set.contains(64));
    // No processor means all, as Windows Server 2012 wants it.
    assert_eq!(whose(space, &[0, 0, 0]), Ok(Some(VpSet::ALL)));
    assert_eq!(whose(space, &[0, 1, 1]), Ok(Some(VpSet::ALL)));
    assert_eq!(whose(space | 1 << 32, &[0, 0, 1]), bad);
    assert_eq!(whose(space | 1 << 17, &[0, 0, 1]), bad);
    let list = u64::from(call::FLUSH_LIST);
    assert_eq!(whose(list, &[0, 0, 1]), bad);
    assert!(whose(list | 11 << 32, &[0, 0, 1]).is_ok());
    // The twelfth would be past XMM5.
    assert_eq!(whose(list | 12 << 32, &[0, 0, 1]), bad);
    let ex = u64::from(call::FLUSH_SPACE_EX);
    let set = whose(ex | 2 << 17, &[0, 0, 0, 0b1001, 2, 1 << 63]);
    let set = set.unwrap().unwrap();
    assert!(set.contains(1) && set.contains(3 * 64 + 63) && !set.contains(64) && !set.contains(0));
    assert!(!set.contains(u32::MAX) && !set.contains(64 * 64));
    // As many banks as the mask has bits; none is nobody; format 1 is everybody.
    assert_eq!(whose(ex | 1 << 17, &[0, 0, 0, 0b1001, 2]), bad);
    assert_eq!(whose(ex, &[0, 0, 0, 0]), Ok(None));
    assert_eq!(whose(ex, &[0, 0, 1, 0]), Ok(Some(VpSet::ALL)));
    // Eleven banks are more than the registers hold.
    assert_eq!(whose(ex | 11 << 17, &[0, 0, 0, 0x7ff]), bad);
    assert_eq!(whose(ex | 65 << 17, &[0, 0, 0, u64::MAX]), bad);
}

#[test]
fn whom_an_interrupt_names() {
    let what = |control, words: &[u64]| {
        let (i, b) = fast(control, words);
        interrupt(&i, &b)
    };
    let bad = Err(status::INVALID_INPUT);
    let ipi = u64::from(call::SEND_IPI);
    assert_eq!(what(ipi, &[0x41, 6]), Ok(Some((VpSet::below_64(6), 0x41))));
    for vector in [0, 15, 256, 1 << 32 | 0x41] {
        assert_eq!(what(ipi, &[vector, 6]), bad);
    }
    let ex = u64::from(call::SEND_IPI_EX);
    assert_eq!(what(ex, &[0x41, 1, 0]), Ok(Some((VpSet::ALL, 0x41))));
    assert_eq!(what(ex, &[0x41, 0, 0]), Ok(None));
    assert_eq!(what(ex, &[0x41, 0, 1]), bad);
    let (set, vector) = what(ex | 1 << 17, &[0x41, 0, 1 << 15, 1]).unwrap().unwrap();
    assert!(vector == 0x41 && set.contains(15 * 64) && !set.contains(0));
}

#[test]
fn sints() {
    let mut s = Synic::default();
    assert_eq!(s.set(ix::HV_SINT0, 0x41, false), None);
    assert_eq!(s.set(ix::HV_SINT0, 0, true), Some(()));
    s.activate(true);
    assert_eq!(s.set(ix::HV_SINT0, 15, false), None);
    assert_eq!(s.set(ix::HV_SINT0, 15 | MASKED, false), Some(()));
    assert_eq!(s.set(ix::HV_SVERSION, 15, false), None);
    s.set(ix::HV_SINT0 + 3, 0x41 | 1 << 17, false).unwrap();
    s.set(ix::HV_SINT15, 0xff, false).unwrap();
    assert!(s.has_vector(0x41) && s.has_vector(0xff) && !s.has_vector(15));
    assert!(s.ends_at_once(0x41) && !s.ends_at_once(0xff) && s.uses_auto_eoi());
    s.set(ix::HV_SINT0 + 3, 0x41 | MASKED, false).unwrap();
    assert!(!s.has_vector(0x41) && !s.uses_auto_eoi());
    assert_eq!(vector_of(s.sint(15)), Some(0xff));
    assert_eq!(s.get(ix::HV_SINT15), Some(0xff));
    let mut set = [0; 8];
    assert_eq!(highest_above(&set, 0), None);
    set[2] = 1 << 1;
    set[3] = 1 << 31;
    assert_eq!(highest_above(&set, 6), Some(0x7f));
    assert_eq!(highest_above(&set, 7), None);
}

#[test]
fn one_shot_timer() {
    let mut t = Stimer::default();
    t.set_config(1 | 3 << 16);
    assert_eq!((t.due(10), t.start(10)), (None, Wait::Off));
    t.set_config(3 << 16);
    t.set_count(50, false);
    assert_eq!(t.start(10), Wait::Off);
    t.set_config(1 | 3 << 16);
    assert_eq!((t.due(10), t.start(10)), (None, Wait::Until(50)));
    assert_eq!(t.due(49), None);
    let told = Told::Message {
        sint: 3,
        expired: 50,
        once: false,
    };
    assert_eq!(t.due(51), Some(told));
    // The slot was full.
    assert!(t.waits_for(3) && !t.waits_for(2));
    assert_eq!((t.start(51), t.due(60)), (Wait::Off, Some(told)));
    t.told();
    assert!(!t.waits_for(3) && !t.enabled());
    // In the past: at once.
    t.set_config(1 | 3 << 16);
    assert_eq!((t.due(60), t.start(60)), (None, Wait::Over));
    assert_eq!(t.due(60), Some(told));
}

#[test]
fn periodic_timer() {
    let mut t = Stimer::default();
    t.set_count(100, false);
    t.set_config(3 | 1 << 12 | 0x41 << 4);
    assert_eq!(t.start(1000), Wait::Until(1100));
    assert_eq!(t.due(1330), Some(Told::Vector(0x41)));
    t.told();
    // Periods that were missed are left out.
    assert_eq!(t.start(1330), Wait::Until(1400));
    // Written again, by itself enabled or not.
    t.set_count(0, false);
    assert!(!t.enabled());
    t.set_config(0b1010 | 1 << 12);
    t.set_count(7, false);
    assert!(t.enabled());
    // An enabled timer without SINT is switched off, but only if it was on.
    t.set_config(1);
    assert!(!t.enabled());
    t.set_config(1);
    assert!(t.enabled());
}

#[test]
fn message_of_a_timer() {
    let m = message(2, 0x1111, 0x2222);
    assert_eq!(m[..8], [0x10, 0, 0, 0x80, 24, 0, 0, 0]);
    assert_eq!((m[16], m[24], m[32]), (2, 0x11, 0x22));
}

#[test]
fn reference_page() {
    for khz in [10_001, 999_999, 1_000_000, 2_593_906, 3_400_000, 10_000_000] {
        let rate = tsc::tsc_to_ns(khz);
        let r = Reference::new(rate, 1 << 40, 5_000_000_000).unwrap();
        assert_eq!(r.at(1 << 40), 50_000_000);
        // An hour later.
        let ticks = u64::from(khz) * 1000 * 3600;
        let units = r.at((1 << 40) + ticks) - 50_000_000;
        assert!(units.abs_diff(3600 * 10_000_000) < 40, "{khz}: {units}");
        // As the clock itself says.
        assert!(units.abs_diff(rate.apply(ticks) / 100) < 2, "{khz}");
        assert_eq!(Reference::parse(&r.bytes(77)), (77, r));
    }
    // A tick of more than 100 ns.
    assert_eq!(Reference::new(tsc::tsc_to_ns(9_000), 0, 0), None);
    assert_eq!(
        [0, 1, u32::MAX - 1, u32::MAX].map(next_sequence),
        [1, 2, 1, 1]
    );
}
