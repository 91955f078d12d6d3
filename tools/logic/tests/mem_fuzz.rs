// SPDX-License-Identifier: GPL-2.0
//! The fuzz driver of the page-table walkers on a bounded number of pseudo-random inputs.

#[path = "../fuzz/walk_driver.rs"]
mod walk_driver;

#[test]
fn random_inputs() {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut data = [0u8; 200];
    for n in 0..1500usize {
        for b in &mut data {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *b = (x >> 24) as u8;
        }
        walk_driver::drive(&data[..n % 200]);
    }
}
