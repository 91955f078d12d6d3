// SPDX-License-Identifier: GPL-2.0
//! libFuzzer target: nested page tables and guest page walks.
#![no_main]

#[path = "../walk_driver.rs"]
mod walk_driver;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    walk_driver::drive(data);
});
