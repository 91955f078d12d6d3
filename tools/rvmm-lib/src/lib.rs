// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtual machine in a few lines, on `/dev/rvmm` or any device with KVM's ABI.
//!
//! 64-bit code that greets and switches the machine off:
//!
//! ```no_run
//! use rvmm_vm::{Console, Exit, Vm};
//!
//! let code = b"\xbe\x19\x00\x10\x00\xb9\x06\x00\x00\x00\x66\xba\xf8\x03\xf3\x6e\
//!              \x66\xba\x05\x06\xb0\x20\xee\xeb\xfehello\n";
//! let vm = Vm::builder()
//!     .code(*code)
//!     .console(Console::output(std::io::stdout()))
//!     .build()?;
//! assert!(matches!(vm.run()?, Exit::PowerOff));
//! # Ok::<(), rvmm_vm::Error>(())
//! ```
//!
//! A Linux kernel:
//!
//! ```no_run
//! use rvmm_vm::{Console, Exit, Vm};
//!
//! let vm = Vm::builder()
//!     .memory(512 << 20)
//!     .kernel("/boot/vmlinuz")
//!     .initrd("initrd")
//!     .console(Console::output(std::io::stdout()))
//!     .build()?;
//! match vm.run()? {
//!     Exit::PowerOff | Exit::Reset => {}
//!     other => eprintln!("{other}"),
//! }
//! # Ok::<(), rvmm_vm::Error>(())
//! ```
//!
//! The machine has a local APIC per CPU, IOAPIC, PIC and PIT in the kernel, one serial port, a CMOS
//! clock, and a keyboard controller that can only reset. With disks or other virtio devices ([`Builder::disk`],
//! [`Builder::virtio`]) it has PCI, and ACPI describes it; without, an MP table describes the CPUs, and there is PCI
//! only for devices of the host ([`Builder::pci`]).
//!
//! - Power off: bit 13 written to port 0x604 (as 16 bits, or bit 5 of a byte to port 0x605).
//! - Reset: 0xfe written to port 0x64.

//!
//! On Arm64 the same words make a machine with GICv3, timers and PSCI in the hypervisor, one serial port and a clock,
//! which a device tree describes; PSCI powers it off and resets it.

#![warn(missing_docs)]
// What only machines of x86 use.
#![cfg_attr(target_arch = "aarch64", allow(dead_code))]

#[cfg(target_arch = "x86_64")]
pub mod acpi;
mod address;
#[cfg(any(target_arch = "aarch64", test))]
pub mod arm64;
#[cfg(target_arch = "x86_64")]
pub mod boot;
pub mod bus;
mod console;
#[cfg(target_arch = "x86_64")]
pub mod cpu;
pub mod disk;
#[cfg(target_arch = "x86_64")]
pub mod e820;
mod error;
mod exit;
#[cfg(target_arch = "x86_64")]
mod fork;
#[cfg(target_arch = "x86_64")]
pub mod gdb;
mod helper;
mod hold;
mod input;
mod kernel;
#[cfg(target_arch = "x86_64")]
pub mod layout;
#[cfg(target_arch = "x86_64")]
pub mod mptable;
#[cfg(target_arch = "x86_64")]
pub mod paging;
#[cfg(target_arch = "x86_64")]
mod parts;
#[cfg(target_arch = "x86_64")]
mod pause;
#[cfg(target_arch = "x86_64")]
pub mod pci;
#[cfg(target_arch = "x86_64")]
pub mod platform;
pub mod sandbox;
pub mod serial;
pub mod size;
#[cfg(target_arch = "x86_64")]
pub mod snapshot;
pub mod stats;
pub mod sys;
mod vcpu;
pub mod virtio;
pub mod vm;

#[cfg(target_arch = "x86_64")]
pub use acpi::PowerButton;
#[cfg(target_arch = "aarch64")]
use arm64::pause;
#[cfg(target_arch = "aarch64")]
pub use arm64::{boot, gdb, layout, pci, Fork, PowerButton};
pub use console::{restore_terminal, Console, ESCAPE_HELP};
pub use error::{Error, Result};
pub use exit::{Crash, EntryFailure, Exit};
#[cfg(target_arch = "x86_64")]
pub use fork::Fork;
pub use hold::Ended;
pub use pause::Pause;
pub use vm::{Builder, StopHandle, Vm, DEFAULT_DEVICE};
