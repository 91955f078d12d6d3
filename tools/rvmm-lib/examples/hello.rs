// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The smallest machine: 64-bit code that greets on the serial port and switches off.

use rvmm_vm::{Console, Exit, Vm};

/// `mov $0x100019, %esi; mov $6, %ecx; mov $0x3f8, %dx; rep outsb`, then `mov $0x605, %dx; mov $0x20, %al;
/// out %al, %dx; jmp .`, and at 0x100019 the text.
const CODE: &[u8] = b"\xbe\x19\x00\x10\x00\xb9\x06\x00\x00\x00\x66\xba\xf8\x03\xf3\x6e\
                      \x66\xba\x05\x06\xb0\x20\xee\xeb\xfehello\n";

fn main() -> Result<(), rvmm_vm::Error> {
    let vm = Vm::builder()
        .memory(16 << 20)
        .code(CODE)
        .console(Console::output(std::io::stdout()))
        .build()?;
    assert!(matches!(vm.run()?, Exit::PowerOff));
    Ok(())
}
