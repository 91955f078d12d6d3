// SPDX-License-Identifier: GPL-2.0
//! Interval timer against the 8254 data sheet.
#![forbid(unsafe_code)]

use rvmm_logic::x86::irqchip::pit::channel::HZ;
use rvmm_logic::x86::irqchip::pit::*;

/// First nanosecond at which `ticks` ticks are complete.
fn ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(HZ)) as u64
}

/// Control word, then a 16-bit count, at time `at`.
fn program(p: &mut Pit, channel: u16, mode: u8, bcd: u8, count: u16, at: u64) {
    let _ = p.write(0x43, (channel as u8) << 6 | 0x30 | mode << 1 | bcd, at);
    let _ = p.write(0x40 + channel, count as u8, at);
    let _ = p.write(0x40 + channel, (count >> 8) as u8, at);
}

fn count(p: &mut Pit, channel: u16, at: u64) -> u16 {
    let _ = p.write(0x43, (channel as u8) << 6, at);
    let low = p.read(0x40 + channel, at);
    u16::from_le_bytes([low, p.read(0x40 + channel, at)])
}

fn status(p: &mut Pit, channel: u16, at: u64) -> u8 {
    let _ = p.write(0x43, 0xe0 | 2 << channel, at);
    p.read(0x40 + channel, at)
}

/// OUT of channel 2, through port 61h.
fn out2(p: &mut Pit, at: u64) -> bool {
    p.read(0x61, at) & 0x20 != 0
}

#[test]
fn time_conversion() {
    let mut p = Pit::new();
    // A year later the phase is still exact.
    program(&mut p, 0, 2, 0, 1000, 0);
    for periods in [1u64, 7, 1_000_003, 37_000_000_000] {
        let edge = ns(periods * 1000);
        assert_eq!(count(&mut p, 0, edge), 1000);
        assert_eq!(count(&mut p, 0, edge - 1), 1);
    }
    let mut p = Pit::new();
    program(&mut p, 0, 2, 0, 0, u64::MAX - 5);
    let _ = p.next_irq();
    let _ = count(&mut p, 0, u64::MAX);
}

#[test]
fn mode0_terminal_count() {
    let mut p = Pit::new();
    let _ = p.write(0x61, 1, 0);
    let _ = p.write(0x43, 0xb0, 0);
    assert!(!out2(&mut p, 0), "low after the control word");
    let _ = p.write(0x42, 100, 0);
    let _ = p.write(0x42, 0, 0);
    assert_eq!(count(&mut p, 2, ns(40)), 60);
    assert!(!out2(&mut p, ns(100) - 1));
    assert!(out2(&mut p, ns(100)));
    assert!(out2(&mut p, ns(100_000)));
    assert_eq!(count(&mut p, 2, ns(101)), 0xffff, "goes on below zero");
    // A low gate stops the count.
    program(&mut p, 2, 0, 0, 100, 0);
    let _ = p.write(0x61, 0, ns(30));
    assert_eq!(count(&mut p, 2, ns(5000)), 70);
    assert!(!out2(&mut p, ns(5000)));
    let _ = p.write(0x61, 1, ns(5000));
    assert_eq!(count(&mut p, 2, ns(5050)), 20);
    assert!(out2(&mut p, ns(5000) + ns(70)));
}

#[test]
fn mode1_one_shot() {
    let mut p = Pit::new();
    program(&mut p, 2, 1, 0, 50, 0);
    assert!(out2(&mut p, ns(1000)), "waits for the gate");
    let _ = p.write(0x61, 1, ns(1000));
    assert!(!out2(&mut p, ns(1001)));
    assert!(!out2(&mut p, ns(1049)));
    assert!(out2(&mut p, ns(1000) + ns(50)));
    // Retriggerable.
    let _ = p.write(0x61, 0, ns(2000));
    let _ = p.write(0x61, 1, ns(2000));
    let _ = p.write(0x61, 0, ns(2020));
    let _ = p.write(0x61, 1, ns(2020));
    assert!(!out2(&mut p, ns(2060)));
    assert!(out2(&mut p, ns(2071)));
}

#[test]
fn mode2_rate_generator() {
    let mut p = Pit::new();
    let _ = p.write(0x61, 1, 0);
    program(&mut p, 2, 2, 0, 10, 0);
    let levels: Vec<bool> = (0..20).map(|t| out2(&mut p, ns(t))).collect();
    let expected: Vec<bool> = (0..20).map(|t| t % 10 != 9).collect();
    assert_eq!(levels, expected);
    let counts: Vec<u16> = (0..12).map(|t| count(&mut p, 2, ns(t))).collect();
    assert_eq!(counts, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 9]);
    // A low gate sets OUT high, a rising one reloads.
    let _ = p.write(0x61, 0, ns(9));
    assert!(out2(&mut p, ns(9)));
    let _ = p.write(0x61, 1, ns(15));
    assert_eq!(count(&mut p, 2, ns(15) + ns(1)), 9);
}

#[test]
fn mode3_square_wave() {
    let mut p = Pit::new();
    let _ = p.write(0x61, 1, 0);
    program(&mut p, 2, 3, 0, 6, 0);
    let levels: Vec<bool> = (0..9).map(|t| out2(&mut p, ns(t))).collect();
    assert_eq!(
        levels,
        [true, true, true, false, false, false, true, true, true]
    );
    let counts: Vec<u16> = (0..7).map(|t| count(&mut p, 2, ns(t))).collect();
    assert_eq!(counts, [6, 4, 2, 6, 4, 2, 6]);
    // Odd: high one tick longer than low.
    program(&mut p, 2, 7, 0, 5, 0);
    let levels: Vec<bool> = (0..6).map(|t| out2(&mut p, ns(t))).collect();
    assert_eq!(levels, [true, true, true, false, false, true]);
    let counts: Vec<u16> = (0..6).map(|t| count(&mut p, 2, ns(t))).collect();
    assert_eq!(counts, [4, 2, 0, 4, 2, 4]);
}

#[test]
fn modes_4_and_5_strobe() {
    let mut p = Pit::new();
    let _ = p.write(0x61, 1, 0);
    program(&mut p, 2, 4, 0, 3, 0);
    let levels: Vec<bool> = (0..6).map(|t| out2(&mut p, ns(t))).collect();
    assert_eq!(levels, [true, true, true, false, true, true]);
    program(&mut p, 2, 5, 0, 3, 0);
    assert!((0..6).all(|t| out2(&mut p, ns(t))), "not triggered");
    let _ = p.write(0x61, 0, 0);
    let _ = p.write(0x61, 1, 0);
    let levels: Vec<bool> = (0..6).map(|t| out2(&mut p, ns(t))).collect();
    assert_eq!(levels, [true, true, true, false, true, true]);
}

#[test]
fn bcd() {
    let mut p = Pit::new();
    program(&mut p, 0, 0, 1, 0x1234, 0);
    assert_eq!(count(&mut p, 0, 0), 0x1234);
    assert_eq!(count(&mut p, 0, ns(35)), 0x1199);
    assert_eq!(count(&mut p, 0, ns(1235)), 0x9999);
    program(&mut p, 0, 2, 1, 0, 0);
    assert_eq!(count(&mut p, 0, 0), 0, "10000");
    assert_eq!(count(&mut p, 0, ns(1)), 0x9999);
    assert_eq!(p.next_irq(), Some(ns(10_000)));
    program(&mut p, 0, 2, 1, 0xffff, 0);
    let _ = count(&mut p, 0, 5);
}

#[test]
fn byte_access_modes() {
    let mut p = Pit::new();
    let _ = p.write(0x43, 0x14, 0);
    assert_eq!(
        status(&mut p, 0, 0),
        0xd4,
        "OUT high, null count, LSB, mode 2"
    );
    assert!(p.write(0x40, 0x80, 0));
    assert_eq!(status(&mut p, 0, 0), 0x94);
    assert_eq!(p.read(0x40, 0), 0x80);
    assert_eq!(p.read(0x40, ns(1)), 0x7f);
    let _ = p.write(0x43, 0x24, 0);
    assert!(p.write(0x40, 0x12, 0));
    assert_eq!(p.next_irq(), Some(ns(0x1200)));
    assert_eq!(p.read(0x40, 0), 0x12);
    // Word: only the second byte loads; reads alternate.
    let _ = p.write(0x43, 0x34, 0);
    assert_eq!(p.next_irq(), None, "stops until the count");
    assert!(!p.write(0x40, 0x34, 0));
    assert!(p.write(0x40, 0x12, 0));
    assert_eq!(
        (p.read(0x40, 0), p.read(0x40, 0), p.read(0x40, 0)),
        (0x34, 0x12, 0x34)
    );
}

#[test]
fn latches() {
    let mut p = Pit::new();
    program(&mut p, 0, 2, 0, 0x1000, 0);
    let _ = p.write(0x43, 0x00, ns(1));
    // A second latch is ignored until the first is read.
    let _ = p.write(0x43, 0x00, ns(100));
    assert_eq!((p.read(0x40, ns(200)), p.read(0x40, ns(300))), (0xff, 0x0f));
    // Read-back of count and status: status comes first.
    let _ = p.write(0x43, 0xc2, ns(16));
    assert_eq!(p.read(0x40, ns(99)), 0xb4);
    assert_eq!((p.read(0x40, ns(99)), p.read(0x40, ns(99))), (0xf0, 0x0f));
    // A latched status keeps until it is read.
    let _ = p.write(0x43, 0xe2, 0);
    let _ = p.write(0x43, 0xe2, ns(0xfff));
    assert_eq!(p.read(0x40, ns(0xfff)), 0xb4);
    assert_eq!(status(&mut p, 0, ns(0xfff)), 0x34);
    // Only the selected counters.
    let _ = p.write(0x43, 0xd8, ns(16));
    assert_eq!(p.read(0x40, ns(0x20)), 0xe0);
    // Control word of another counter changes nothing here.
    let _ = p.write(0x43, 0xb6, 0);
    assert_eq!(p.next_irq(), Some(ns(0x1000)));
    assert_eq!(p.read(0x43, 0), 0);
}

#[test]
fn periodic_interrupts() {
    let mut p = Pit::new();
    p.set_reinject(false);
    // 100 Hz, as Linux programs it.
    program(&mut p, 0, 2, 0, 11932, 1000);
    let due = p.next_irq().unwrap();
    assert_eq!(due, 1000 + ns(11932));
    assert!(!p.timer_fired(due - 1));
    assert!(p.timer_fired(due));
    assert_eq!(p.next_irq(), Some(1000 + ns(2 * 11932)));
    // Late by five periods: one pulse, the phase stays.
    assert!(p.timer_fired(1000 + ns(7 * 11932) + 55));
    assert_eq!(p.next_irq(), Some(1000 + ns(8 * 11932)));
    // Storm protection.
    program(&mut p, 0, 2, 0, 1, 0);
    assert_eq!(p.next_irq(), Some(MIN_INTERVAL_NS));
    let mut t = 0;
    for _ in 0..100 {
        let next = p.next_irq().unwrap();
        assert!(next >= t + MIN_INTERVAL_NS);
        t = next;
        assert!(p.timer_fired(t));
    }
}

#[test]
fn one_shot_interrupts() {
    let mut p = Pit::new();
    p.set_reinject(false);
    program(&mut p, 0, 0, 0, 1000, 5);
    assert_eq!(p.next_irq(), Some(5 + ns(1000)));
    assert!(p.timer_fired(5 + ns(1000)));
    assert_eq!(p.next_irq(), None);
    assert!(!p.timer_fired(u64::MAX));
    program(&mut p, 0, 4, 0, 1000, 5);
    assert_eq!(p.next_irq(), Some(5 + ns(1001)));
    assert!(p.timer_fired(5 + ns(1001)));
    assert_eq!(p.next_irq(), None);
    // Channel 0's gate is always high: nothing ever triggers modes 1 and 5.
    program(&mut p, 0, 1, 0, 1000, 5);
    assert_eq!(p.next_irq(), None);
    program(&mut p, 0, 5, 0, 1000, 5);
    assert_eq!(p.next_irq(), None);
}

/// The guest ends the interrupt of line 0; whether another one comes, which is after a while.
fn again(p: &mut Pit) -> bool {
    let Some(at) = p.irq_acked(7000) else {
        return false;
    };
    assert_eq!((at, p.next_again()), (7000 + REINJECT_NS, Some(at)));
    assert!(!p.again_fired(at - 1));
    assert!(p.again_fired(at));
    assert!(!p.again_fired(at) && p.next_again().is_none());
    true
}

#[test]
fn reinjection() {
    let mut p = Pit::new();
    program(&mut p, 0, 2, 0, 11932, 0);
    let edge = |n: u64| ns(n * 11932);
    assert!(p.timer_fired(edge(1)));
    assert!(!p.timer_fired(edge(2)), "the first is not acknowledged yet");
    assert!(!p.timer_fired(edge(3)));
    assert!(again(&mut p));
    assert!(again(&mut p));
    assert!(!again(&mut p));
    assert!(p.timer_fired(edge(4)));
    assert!(!again(&mut p));
    // A late timer makes up for all periods.
    assert!(p.timer_fired(edge(7)));
    assert!(again(&mut p));
    assert!(again(&mut p));
    assert!(!again(&mut p));
    // Unmasking forgets.
    assert!(p.timer_fired(edge(8)));
    assert!(!p.timer_fired(edge(9)));
    p.reset_reinject();
    assert!(p.timer_fired(edge(10)));
    assert!(!again(&mut p));
    p.set_reinject(false);
    assert!(p.timer_fired(edge(11)) && p.timer_fired(edge(12)));
    assert!(!again(&mut p));
}

#[test]
fn port_61() {
    let mut p = Pit::new();
    assert_eq!(p.read(0x61, 0) & 0x0f, 0);
    let _ = p.write(0x61, 0xff, 0);
    assert_eq!(p.read(0x61, 0) & 0xcf, 3);
    assert_eq!(p.read(0x61, 0) & 0x10, 0);
    assert_eq!(p.read(0x61, 1 << 14) & 0x10, 0x10);
    assert_eq!(p.get_state().flags, FLAG_SPEAKER_DATA_ON);
    // The way Linux measures its TSC: mode 0 on channel 2, wait for OUT.
    program(&mut p, 2, 0, 0, 59659, 0);
    assert!(!out2(&mut p, 49_999_000));
    assert!(out2(&mut p, 50_001_000));
}

#[test]
fn state() {
    let mut p = Pit::new();
    program(&mut p, 0, 2, 0, 11932, 100);
    let _ = p.write(0x61, 3, 0);
    program(&mut p, 2, 3, 1, 0x500, 200);
    let _ = p.write(0x43, 0xc4, 300);
    let saved = p.get_state();
    assert_eq!(saved.channels[0].count, 11932);
    assert_eq!(
        (
            saved.channels[0].mode,
            saved.channels[0].rw_mode,
            saved.channels[0].gate
        ),
        (2, 3, 1)
    );
    assert_eq!(saved.channels[0].count_load_time, 100);
    assert_eq!((saved.channels[2].count, saved.channels[2].bcd), (500, 1));
    assert_eq!(saved.channels[1].mode, 0xff);
    assert_eq!(saved.channels[1].count, 0x10000);
    let mut q = Pit::new();
    q.set_state(&saved, 5000);
    assert_eq!(q.next_irq(), Some(5000 + ns(11932)));
    let mut again = q.get_state();
    assert_eq!(again.channels[0].count_load_time, 5000);
    again.channels[0].count_load_time = 100;
    assert_eq!(again, saved);
    assert_eq!(out2(&mut q, 9000), out2(&mut p, 9000));
    // The HPET takes the line over and gives it back.
    let mut legacy = saved;
    legacy.flags |= FLAG_HPET_LEGACY;
    q.set_state(&legacy, 6000);
    assert_eq!(q.next_irq(), None);
    assert!(!q.timer_fired(u64::MAX));
    assert_eq!(q.get_state().flags, FLAG_HPET_LEGACY | FLAG_SPEAKER_DATA_ON);
    q.set_state(&saved, 7000);
    assert_eq!(q.next_irq(), Some(7000 + ns(11932)));
}

#[test]
fn hostile() {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut p = Pit::new();
    let mut now = 0u64;
    for _ in 0..300_000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        now = if x & 0x3ff == 0 {
            x
        } else {
            now.wrapping_add(x >> 44)
        };
        let v = (x >> 24) as u8;
        let port = [0x40, 0x41, 0x42, 0x43, 0x43, 0x61, 0x40, 0x99][(x >> 32) as usize & 7];
        match x >> 60 {
            0..=5 => drop(p.write(port, v, now)),
            6..=9 => drop(p.read(port, now)),
            10 => drop(p.timer_fired(now)),
            11 => drop(p.irq_acked(now)),
            12 if x & 0xf00 == 0 => {
                let c = ChannelState {
                    count: x as u32 >> (x >> 50 & 31),
                    latched_count: x as u16,
                    count_latched: v,
                    status_latched: v >> 3,
                    status: v,
                    read_state: v >> 1,
                    write_state: v >> 2,
                    write_latch: v,
                    rw_mode: v,
                    mode: v & 7,
                    bcd: v & 1,
                    gate: v >> 4 & 1,
                    count_load_time: x as i64,
                };
                p.set_state(
                    &State {
                        channels: [c; 3],
                        flags: x as u32,
                    },
                    now,
                );
            }
            13 => p.set_reinject(v & 1 != 0),
            _ => {
                if let Some(due) = p.next_irq() {
                    let _ = p.timer_fired(due);
                    assert!(p
                        .next_irq()
                        .is_none_or(|next| next > due || due == u64::MAX));
                }
            }
        }
        for c in p.get_state().channels {
            assert!(c.count >= 1 && c.count <= 0x10000);
        }
    }
}

#[test]
fn delayed() {
    const LATER: u64 = 777_777;
    let mut p = Pit::new();
    program(&mut p, 0, 2, 0, 11932, 100);
    let _ = p.write(0x61, 3, 0);
    program(&mut p, 2, 3, 1, 0x500, 200);
    let mut q = p.clone();
    q.delay(LATER);
    assert_eq!(q.next_irq(), p.next_irq().map(|at| at + LATER));
    for at in [300, 9000, 1_000_000] {
        assert_eq!(count(&mut q, 0, at + LATER), count(&mut p, 0, at));
        assert_eq!(out2(&mut q, at + LATER), out2(&mut p, at));
    }
    let mut stopped = Pit::new();
    stopped.delay(LATER);
    assert_eq!(stopped.next_irq(), None);
}
