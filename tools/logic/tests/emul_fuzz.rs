// SPDX-License-Identifier: GPL-2.0
//! Bounded random run of the fuzz driver: no input may panic or break its rules.

#[path = "../fuzz/emul_driver.rs"]
mod emul_driver;

#[test]
fn random_inputs() {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 24
    };
    let favourites = [
        0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x48, 0x0f, 0xa4, 0xa5, 0xa6, 0xaa, 0xae, 0x6c, 0x6d, 0x6e,
        0x6f, 0x87, 0x89, 0x01, 0x0f, 0xb1, 0xab, 0xc7, 0xff, 0x8f,
    ];
    let mut executed = 0;
    for _ in 0..300_000 {
        let mut data = [0u8; 192];
        for b in &mut data {
            *b = next() as u8;
        }
        for b in &mut data[1..4] {
            if next() % 2 == 0 {
                *b = favourites[next() as usize % favourites.len()];
            }
        }
        let len = if next() % 8 == 0 {
            next() as usize % 192
        } else {
            192
        };
        executed += u32::from(emul_driver::drive(&data[..len]));
    }
    assert!(
        executed > 10_000,
        "only {executed} instructions came to their end"
    );
}
