// SPDX-License-Identifier: GPL-2.0
//! Events: the VM-entry interruption-information field and what exits tell about interrupted deliveries
//! (SDM 3C 25.8.3, 25.9.2, 25.9.3, 27.6).
//!
//! `VmxVcpu::enter` calls this before an entry and after an exit, with interrupts off and the VMCS current.

use super::bits::intr;
use super::insn::Current;
use super::vmcs::*;
use crate::x86::exit::{Event, EventKind};

/// Writes an event for the next entry. `protected` is the guest's CR0.PE.
pub(super) fn inject(vm: Current<'_>, event: &Event, protected: bool) {
    let kind = match event.kind {
        // Without an instruction length the event comes from user space, with RIP as it is to be pushed.
        EventKind::SoftwareException if event.insn_len == 0 => intr::HARDWARE_EXCEPTION,
        kind => kind as u32,
    };
    let mut info = u32::from(event.vector) | kind << intr::TYPE_SHIFT | intr::VALID;
    // SAFETY: These fields only say what is delivered inside the guest.
    unsafe {
        // In real mode exceptions push no error code, and asking for it fails the entry (SDM 3C 27.2.1.3).
        if let (Some(code), true, EventKind::Exception) = (event.error_code, protected, event.kind)
        {
            info |= intr::ERROR_CODE;
            vm.write_control(ENTRY_EXCEPTION_ERROR_CODE, code & 0x7fff);
        }
        if matches!(
            event.kind,
            EventKind::SoftwareInterrupt
                | EventKind::PrivilegedSoftwareException
                | EventKind::SoftwareException
        ) {
            vm.write_control(ENTRY_INSTRUCTION_LEN, u32::from(event.insn_len & 15));
        }
        vm.write_control(ENTRY_INTR_INFO, info);
    }
}

/// Withdraws an event that an entry which failed has not delivered.
#[cold]
pub(super) fn withdraw(vm: Current<'_>) {
    // SAFETY: Nothing is delivered.
    unsafe { vm.write_control(ENTRY_INTR_INFO, 0) };
}

/// The event whose delivery the last exit interrupted, from the IDT-vectoring fields.
pub(super) fn interrupted(vm: Current<'_>) -> Option<Event> {
    let info = vm.read(IDT_VECTORING_INFO);
    if info & intr::VALID == 0 {
        return None;
    }
    let kind = match (info >> intr::TYPE_SHIFT) & 7 {
        intr::EXTERNAL => EventKind::ExternalInterrupt,
        intr::NMI => EventKind::Nmi,
        intr::SOFTWARE_INTERRUPT => EventKind::SoftwareInterrupt,
        intr::PRIVILEGED_SOFTWARE_EXCEPTION => EventKind::PrivilegedSoftwareException,
        intr::SOFTWARE_EXCEPTION => EventKind::SoftwareException,
        _ => EventKind::Exception,
    };
    let software = matches!(
        kind,
        EventKind::SoftwareInterrupt
            | EventKind::PrivilegedSoftwareException
            | EventKind::SoftwareException
    );
    Some(Event {
        kind,
        vector: info as u8,
        error_code: (info & intr::ERROR_CODE != 0).then(|| vm.read(IDT_VECTORING_ERROR_CODE)),
        // Valid for software events (SDM 3C 28.2.5).
        insn_len: if software {
            vm.read(EXIT_INSTRUCTION_LEN) as u8
        } else {
            0
        },
    })
}
