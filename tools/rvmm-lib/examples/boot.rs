// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boots a kernel with its console on standard output:
//! `cargo run -p rvmm-vm --example boot -- KERNEL [INITRD [DEVICE]]`.

use rvmm_vm::{Console, Vm, DEFAULT_DEVICE};

fn main() -> Result<(), rvmm_vm::Error> {
    let mut arguments = std::env::args().skip(1);
    let kernel = arguments
        .next()
        .expect("a kernel image as the first argument");
    let mut builder = Vm::builder()
        .kernel(kernel)
        .console(Console::output(std::io::stdout()));
    if let Some(initrd) = arguments.next() {
        builder = builder.initrd(initrd);
    }
    let device = arguments.next().unwrap_or_else(|| DEFAULT_DEVICE.into());
    let exit = builder
        .device(device)
        .append("rvmm.cmd=poweroff")
        .build()?
        .run()?;
    eprintln!("{exit}");
    Ok(())
}
