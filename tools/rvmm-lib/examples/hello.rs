// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The smallest machine: 64-bit code that greets on the serial port and switches off.

use rvmm_vm::{Console, Exit, Vm};

/// `mov $0x100019, %esi; mov $6, %ecx; mov $0x3f8, %dx; rep outsb`, then `mov $0x605, %dx; mov $0x20, %al;
/// out %al, %dx; jmp .`, and at 0x100019 the text.
#[cfg(target_arch = "x86_64")]
const CODE: &[u8] = b"\xbe\x19\x00\x10\x00\xb9\x06\x00\x00\x00\x66\xba\xf8\x03\xf3\x6e\
                      \x66\xba\x05\x06\xb0\x20\xee\xeb\xfehello\n";

/// The same on Arm64: bytes to the port at 0x900_0000 up to a zero, then PSCI's SYSTEM_OFF.
#[cfg(target_arch = "aarch64")]
const CODE: &[u8] = b"\x01\x20\xa1\xd2\x22\x01\x00\x10\x43\x14\x40\x38\x63\x00\x00\x34\x23\x00\x00\x39\
                      \xfd\xff\xff\x17\x00\x01\x80\x52\x00\x80\xb0\x72\x02\x00\x00\xd4\x00\x00\x00\x14\
                      hello\n\0";

fn main() -> Result<(), rvmm_vm::Error> {
    let vm = Vm::builder()
        .memory(16 << 20)
        .code(CODE)
        .console(Console::output(std::io::stdout()))
        .build()?;
    assert!(matches!(vm.run()?, Exit::PowerOff));
    Ok(())
}
