// SPDX-License-Identifier: GPL-2.0
//! What user space does with the interrupt controllers (api.rst 4). `kvm` has the table that leads here.

use crate::abi::uapi::{self, k};
use crate::bus::line::Source;
use crate::bus::ports::IrqLines;
use crate::linux::eventfd::EventFdCtx;
use crate::x86::irqchip::chip::IrqChip;
use crate::x86::irqchip::ioapic;
use crate::x86::irqchip::pic::Chip;
use crate::x86::irqchip::route::{Chips, Route};
use crate::x86::irqchip::routing::Table;
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

/// Offset of the chip's state in `struct kvm_irqchip`.
const IRQCHIP_STATE: usize = 8;

const _: () = {
    assert!(core::mem::offset_of!(k::kvm_irqchip, chip) == IRQCHIP_STATE);
    assert!(size_of::<k::kvm_pic_state>() == 16);
    assert!(size_of::<k::kvm_ioapic_state>() == 8 * IOAPIC_WORDS);
};

/// Size of `struct kvm_ioapic_state` in 64-bit words: base address; register select and ID; IRR; redirection table.
const IOAPIC_WORDS: usize = 3 + ioapic::PINS;

impl IrqChip {
    /// KVM_IRQ_LINE (api.rst 4.25); KVM_IRQ_LINE_STATUS tells what came of it.
    pub(crate) fn irq_line(&self, arg: usize, tell: bool) -> Result {
        // `struct kvm_irq_level`: the GSI, which the status replaces, and the level.
        let request = uapi::get::<u64>(arg)?;
        let controllers = self.controllers().ok_or(ENXIO)?;
        let (gsi, level) = (request as u32, request >> 32 != 0);
        if tell {
            uapi::put(arg, &controllers.set_irq_status(gsi, level))?;
        } else {
            let _ = controllers.set_irq(gsi, Source::USER, level);
        }
        Ok(())
    }

    /// KVM_SET_GSI_ROUTING (api.rst 4.52).
    #[inline(never)]
    pub(crate) fn set_gsi_routing(&self, arg: usize) -> Result {
        let header = uapi::get::<u64>(arg)?;
        let controllers = self.controllers().ok_or(EINVAL)?;
        let chips = Chips {
            full: self.has_pic(),
            ids_32bit: self.vcpus.msi_format().ids_32bit,
        };
        let table = Table::from_user(arg, header, chips)?;
        let _config = self.config.lock();
        controllers.set_table(table)
    }

    /// KVM_GET_PIT2 (api.rst 4.72).
    pub(crate) fn get_pit(&self) -> Result<k::kvm_pit_state2> {
        self.pit.get().ok_or(ENXIO)?.get()
    }

    /// KVM_GET_PIT: without flags.
    pub(crate) fn get_old_pit(&self, state: &mut k::kvm_pit_state) -> Result {
        state.channels = self.pit.get().ok_or(ENXIO)?.get()?.channels;
        Ok(())
    }

    /// KVM_SET_PIT: the flags stay.
    #[inline(never)]
    pub(crate) fn set_old_pit(&self, arg: usize) -> Result {
        let old = uapi::get::<k::kvm_pit_state>(arg)?;
        let _config = self.config.lock();
        let pit = self.pit.get().ok_or(ENXIO)?;
        let mut state = pit.get()?;
        state.channels = old.channels;
        pit.set(&state);
        Ok(())
    }

    /// KVM_SET_PIT2 (api.rst 4.73).
    pub(crate) fn set_pit(&self, state: &k::kvm_pit_state2) -> Result {
        let _config = self.config.lock();
        self.pit.get().ok_or(ENXIO)?.set(state);
        Ok(())
    }

    /// KVM_REINJECT_CONTROL (`struct kvm_reinject_control`).
    pub(crate) fn reinject_control(&self, control: &k::kvm_reinject_control) -> Result {
        let reinject = control.pit_reinject != 0;
        self.pit.get().ok_or(ENXIO)?.set_reinject(reinject);
        Ok(())
    }

    /// KVM_SIGNAL_MSI (api.rst 4.71): the number of vCPUs that accepted it.
    pub(crate) fn signal_msi(&self, msi: &k::kvm_msi) -> Result<isize> {
        let controllers = self.controllers().ok_or(EINVAL)?;
        if msi.flags & !k::KVM_MSI_VALID_DEVID != 0 {
            return Err(EINVAL);
        }
        let route = Route::Msi {
            address_lo: msi.address_lo,
            address_hi: msi.address_hi,
            data: msi.data,
        };
        let format = self.vcpus.msi_format();
        if format.ids_32bit && msi.address_hi & 0xff != 0 {
            return Err(EINVAL);
        }
        let message = route.message(format).ok_or(EINVAL)?;
        Ok(controllers.send(&message) as isize)
    }

    /// KVM_GET_IRQCHIP (api.rst 4.26).
    #[inline(never)]
    pub(crate) fn get_irqchip(&self, arg: usize) -> Result {
        let mut whole = irqchip_from_user(arg)?;
        let id = chip_id(&whole);
        let controllers = self.full().ok_or(ENXIO)?;
        let state = whole.get_mut(IRQCHIP_STATE..).ok_or(EINVAL)?;
        if id != k::KVM_IRQCHIP_IOAPIC {
            let s = controllers.pic_state(pic_of(id)?).ok_or(ENXIO)?;
            for (to, from) in state.iter_mut().zip(s) {
                *to = from;
            }
            return irqchip_to_user(arg, &whole);
        }
        let s = controllers.ioapic_state().ok_or(ENXIO)?;
        let head = [
            s.base_address,
            u64::from(s.id) << 32 | u64::from(s.ioregsel),
            s.irr.into(),
        ];
        let words = Iterator::chain(head.into_iter(), s.redirtbl);
        for (to, word) in state.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        irqchip_to_user(arg, &whole)
    }

    /// KVM_SET_IRQCHIP (api.rst 4.27).
    #[inline(never)]
    pub(crate) fn set_irqchip(&self, arg: usize) -> Result {
        let whole = irqchip_from_user(arg)?;
        let id = chip_id(&whole);
        let controllers = self.full().ok_or(ENXIO)?;
        let state = whole.get(IRQCHIP_STATE..).ok_or(EINVAL)?;
        if id != k::KVM_IRQCHIP_IOAPIC {
            let chip = pic_of(id)?;
            let pic = state.get(..16).and_then(|b| b.try_into().ok());
            controllers.set_pic_state(chip, pic.ok_or(EINVAL)?);
            return Ok(());
        }
        let mut words = [0u64; IOAPIC_WORDS];
        for (word, from) in words.iter_mut().zip(state.chunks_exact(8)) {
            *word = from.try_into().map_or(0, u64::from_ne_bytes);
        }
        let [base_address, select, irr, redirtbl @ ..] = words;
        controllers.set_ioapic_state(&ioapic::State {
            base_address,
            ioregsel: select as u32,
            id: (select >> 32) as u32,
            irr: irr as u32,
            redirtbl,
        });
        Ok(())
    }

    /// KVM_IRQFD (api.rst 4.75).
    pub(crate) fn irqfd(&self, args: &k::kvm_irqfd) -> Result {
        if args.flags & !(k::KVM_IRQFD_FLAG_DEASSIGN | k::KVM_IRQFD_FLAG_RESAMPLE) != 0 {
            return Err(EINVAL);
        }
        let deassign = args.flags & k::KVM_IRQFD_FLAG_DEASSIGN != 0;
        let Some(controllers) = self.controllers() else {
            if deassign {
                // Nothing to take down; the file descriptor is looked at all the same.
                return EventFdCtx::from_fd(args.fd as i32).map(drop);
            }
            return Err(EINVAL);
        };
        let mut irqfds = self.config.lock();
        if deassign {
            return irqfds.deassign(&controllers, args);
        }
        if args.flags & k::KVM_IRQFD_FLAG_RESAMPLE != 0 && !self.has_pic() {
            return Err(EINVAL);
        }
        irqfds.assign(&controllers.into(), args)
    }
}

/// A whole `struct kvm_irqchip`, which is large. EFAULT.
fn irqchip_from_user(arg: usize) -> Result<KVec<u8>> {
    let mut bytes = KVec::from_elem(0, size_of::<k::kvm_irqchip>(), GFP_KERNEL_ACCOUNT)?;
    UserSlice::new(UserPtr::from_addr(arg), bytes.len())
        .reader()
        .read_slice(&mut bytes)?;
    Ok(bytes)
}

fn irqchip_to_user(arg: usize, bytes: &[u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(arg), bytes.len())
        .writer()
        .write_slice(bytes)
}

fn chip_id(irqchip: &[u8]) -> u32 {
    irqchip
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(u32::MAX, u32::from_ne_bytes)
}

/// The 8259 with a number of `KVM_IRQCHIP_*`. EINVAL.
fn pic_of(id: u32) -> Result<Chip> {
    match id {
        k::KVM_IRQCHIP_PIC_MASTER => Ok(Chip::Master),
        k::KVM_IRQCHIP_PIC_SLAVE => Ok(Chip::Slave),
        _ => Err(EINVAL),
    }
}
