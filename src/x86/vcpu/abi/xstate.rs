// SPDX-License-Identifier: GPL-2.0
//! Extended state: XSAVE areas and XCR0 (api.rst 4.42 to 4.45, SDM 1 13).
//!
//! The vCPU's ioctls call it under the vCPU's mutex, outside stays.

use crate::abi::uapi::k;
use crate::x86::cpu::xsave;
use crate::x86::vcpu::state::State;
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

/// Offset of XSAVE component 9 (PKRU) in the standard format.
fn pkru_offset(s: &State) -> Option<usize> {
    s.model
        .layout
        .component(9)
        .filter(|_| s.model.host.pku())
        .map(|(offset, _)| offset as usize)
}

/// KVM_GET_XSAVE and KVM_GET_XSAVE2 (api.rst 4.42, 4.134).
pub(crate) fn get_xsave(s: &mut State, arg: usize) -> Result {
    let mut image = KVec::from_elem(0u8, 4096, GFP_KERNEL_ACCOUNT)?;
    let n = s.xstate.area.as_slice().len().min(4096);
    if let (Some(to), Some(from)) = (image.get_mut(..n), s.xstate.area.as_slice().get(..n)) {
        to.copy_from_slice(from);
    }
    // XSAVE of a processor may report components as in use that guests are not offered.
    let mut bv = xsave::xstate_bv(&image) & s.model.xcr0;
    // PKRU is kept apart from the area.
    if let Some(to) = pkru_offset(s).and_then(|o| image.get_mut(o..o + 4)) {
        to.copy_from_slice(&s.xstate.pkru.to_le_bytes());
        bv |= xsave::PKRU;
    }
    xsave::set_xstate_bv(&mut image, bv);
    UserSlice::new(UserPtr::from_addr(arg), 4096)
        .writer()
        .write_slice(&image)
}

/// KVM_SET_XSAVE (api.rst 4.43). EINVAL: reserved bits, or components that guests are not offered.
pub(crate) fn set_xsave(s: &mut State, arg: usize) -> Result {
    let mut image = KVec::from_elem(0u8, 4096, GFP_KERNEL_ACCOUNT)?;
    UserSlice::new(UserPtr::from_addr(arg), 4096)
        .reader()
        .read_slice(&mut image)?;
    // MXCSR counts only with a component that it belongs to; XRSTOR would take it in any case.
    if xsave::xstate_bv(&image) & xsave::MXCSR_COMPONENTS == 0 {
        if let (Some(to), Some(from)) =
            (image.get_mut(24..28), s.xstate.area.as_slice().get(24..28))
        {
            to.copy_from_slice(from);
        }
    }
    xsave::check_image(&image, &s.model.layout, s.model.xcr0, s.model.mxcsr_mask)
        .map_err(|_| EINVAL)?;
    let bv = xsave::xstate_bv(&image);
    if bv & xsave::PKRU != 0 {
        if let Some(Ok(b)) = pkru_offset(s)
            .and_then(|o| image.get(o..o + 4))
            .map(TryInto::try_into)
        {
            s.xstate.pkru = u32::from_le_bytes(b);
        }
    } else {
        s.xstate.pkru = 0;
    }
    xsave::set_xstate_bv(&mut image, bv & !xsave::PKRU);
    let n = s.xstate.area.as_slice().len().min(4096);
    if let (Some(to), Some(from)) = (s.xstate.area.as_mut_slice().get_mut(..n), image.get(..n)) {
        to.copy_from_slice(from);
    }
    Ok(())
}

/// KVM_SET_XCRS (api.rst 4.45). EINVAL: a value that CPUID does not allow.
pub(crate) fn set_xcrs(s: &mut State, x: &k::kvm_xcrs) -> Result {
    if x.nr_xcrs as usize > x.xcrs.len() || x.flags != 0 {
        return Err(EINVAL);
    }
    for e in x.xcrs.iter().take(x.nr_xcrs as usize) {
        if e.xcr == 0 {
            // x87 is there without XSAVE in the CPUID table, as on KVM.
            if !xsave::xcr0_valid(e.value, s.allowed_xcr0() | xsave::X87) {
                return Err(EINVAL);
            }
            s.xstate.xcr0 = e.value;
            s.refresh_dynamic();
            break;
        }
    }
    Ok(())
}
