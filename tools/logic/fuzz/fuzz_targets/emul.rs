// SPDX-License-Identifier: GPL-2.0
//! libFuzzer target: decode and execute in a hostile environment.
#![no_main]

#[path = "../emul_driver.rs"]
mod emul_driver;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    emul_driver::drive(data);
});
