// SPDX-License-Identifier: GPL-2.0

//! PCI functions, and a driver that takes them over for somebody else.
//!
//! C header: [`include/linux/pci.h`](srctree/include/linux/pci.h)

use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::{null_mut, NonNull};

use kernel::error::to_result;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::{Arc, ArcBorrow};
use kernel::types::Opaque;

use super::bindings;

/// Standard base address registers of a function.
pub const BARS: usize = 6;

/// A counted reference to a PCI function. It may have left the bus.
pub struct Device(NonNull<bindings::pci_dev>);

// SAFETY: The reference is counted atomically and belongs to no task.
unsafe impl Send for Device {}
// SAFETY: What can be called with a shared reference locks by itself, or wants the device lock.
unsafe impl Sync for Device {}

impl Clone for Device {
    fn clone(&self) -> Self {
        // SAFETY: The reference keeps the device.
        unsafe { bindings::pci_dev_get(self.as_ptr()) };
        Self(self.0)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: The value owns one reference.
        unsafe { bindings::pci_dev_put(self.as_ptr()) };
    }
}

/// Where a base address register points.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bar {
    /// First host-physical address or port.
    pub start: u64,
    /// Bytes; 0 when there is none.
    pub len: u64,
    /// Memory, not ports.
    pub memory: bool,
    /// Reads have no side effects and writes may be merged.
    pub prefetchable: bool,
}

impl Device {
    /// The function at this address.
    pub fn find(segment: u32, bus: u8, devfn: u8) -> Option<Self> {
        let segment = c_int::try_from(segment).ok()?;
        // SAFETY: Any address may be asked for; the result is a reference.
        let raw =
            unsafe { bindings::pci_get_domain_bus_and_slot(segment, bus.into(), devfn.into()) };
        NonNull::new(raw).map(Self)
    }

    /// # Safety
    ///
    /// `raw` is live for the length of the call.
    unsafe fn from_raw(raw: *mut bindings::pci_dev) -> Result<Self> {
        // SAFETY: The caller promises a live device.
        unsafe { bindings::pci_dev_get(raw) };
        NonNull::new(raw).map(Self).ok_or(EINVAL)
    }

    #[inline]
    pub(super) fn as_ptr(&self) -> *mut bindings::pci_dev {
        self.0.as_ptr()
    }

    #[inline]
    pub(super) fn dev(&self) -> *mut bindings::device {
        // SAFETY: Within the same live object.
        unsafe { &raw mut (*self.as_ptr()).dev }
    }

    /// Its address: `0000:00:1f.2`.
    pub fn name(&self) -> &str {
        // SAFETY: The reference keeps the device, which has a name from before it could be found.
        let name = unsafe { CStr::from_char_ptr(bindings::rvmm_dev_name(self.dev())) };
        name.to_str().unwrap_or("?")
    }

    /// Takes the lock under which drivers come and go. Sleeps.
    pub fn lock(&self) -> Locked<'_> {
        // SAFETY: The reference keeps the device.
        unsafe { bindings::rvmm_device_lock(self.dev()) };
        Locked {
            device: self,
            unlock: true,
        }
    }

    /// Vendor and device, as in configuration space.
    pub fn ids(&self) -> (u16, u16) {
        // SAFETY: Fields that never change.
        unsafe { ((*self.as_ptr()).vendor, (*self.as_ptr()).device) }
    }

    /// Base class, sub-class, interface.
    pub fn class(&self) -> u32 {
        // SAFETY: A field that never changes.
        unsafe { (*self.as_ptr()).class }
    }

    /// Base address register `index`; empty if there is none.
    pub fn bar(&self, index: usize) -> Bar {
        let mut bar = Bar::default();
        if index < BARS {
            let mut flags = 0;
            // SAFETY: The index is in range and the results have room.
            unsafe {
                bindings::rvmm_pci_bar(
                    self.as_ptr(),
                    index as u32,
                    &mut bar.start,
                    &mut bar.len,
                    &mut flags,
                )
            };
            bar.memory = flags & u64::from(bindings::IORESOURCE_MEM) != 0;
            bar.prefetchable = flags & u64::from(bindings::IORESOURCE_PREFETCH) != 0;
        }
        bar
    }

    /// Messages that the MSI capability can send; 0 without one.
    pub fn msi_count(&self) -> u32 {
        // SAFETY: Reads configuration space.
        u32::try_from(unsafe { bindings::pci_msi_vec_count(self.as_ptr()) }).unwrap_or(0)
    }

    /// Entries of the MSI-X table; 0 without one.
    pub fn msix_count(&self) -> u32 {
        // SAFETY: Reads configuration space.
        u32::try_from(unsafe { bindings::pci_msix_vec_count(self.as_ptr()) }).unwrap_or(0)
    }

    /// Where the MSI-X table lies: base address register, offset, bytes.
    pub fn msix_table(&self) -> Option<(usize, u64, u64)> {
        let entries = u64::from(self.msix_count());
        // SAFETY: Reads a field that is set when the device is found.
        let at = unsafe { bindings::rvmm_pci_msix_cap(self.as_ptr()) };
        if entries == 0 || at == 0 {
            return None;
        }
        let table = self
            .config_read(
                u16::from(at).checked_add(bindings::PCI_MSIX_TABLE as u16)?,
                4,
            )
            .ok()?;
        Some((
            (table & bindings::PCI_MSIX_TABLE_BIR) as usize,
            u64::from(table & bindings::PCI_MSIX_TABLE_OFFSET),
            entries.checked_mul(16)?,
        ))
    }

    /// Bytes of configuration space.
    pub fn config_size(&self) -> u32 {
        // SAFETY: A field that is set when the device is found.
        u32::try_from(unsafe { (*self.as_ptr()).cfg_size }).unwrap_or(0)
    }

    /// Reads 1, 2 or 4 bytes of configuration space, not while the device is being reset.
    ///
    /// Errors: `EINVAL` for another size, a misaligned offset or one past the end; `ENODEV` when the device is gone.
    pub fn config_read(&self, offset: u16, size: u32) -> Result<u32> {
        let end = u32::from(offset).checked_add(size).ok_or(EINVAL)?;
        if end > self.config_size() || !matches!(size, 1 | 2 | 4) || u32::from(offset) % size != 0 {
            return Err(EINVAL);
        }
        let at = c_int::from(offset);
        let (mut byte, mut word, mut value) = (0u8, 0u16, 0u32);
        // SAFETY: The result has room; the range is in configuration space.
        let code = unsafe {
            match size {
                1 => bindings::pci_user_read_config_byte(self.as_ptr(), at, &mut byte),
                2 => bindings::pci_user_read_config_word(self.as_ptr(), at, &mut word),
                _ => bindings::pci_user_read_config_dword(self.as_ptr(), at, &mut value),
            }
        };
        to_result(code).map_err(|_| ENODEV)?;
        Ok(match size {
            1 => byte.into(),
            2 => word.into(),
            _ => value,
        })
    }

    /// Whether the kernel knows a way to reset this function alone.
    pub fn can_reset(&self) -> bool {
        // SAFETY: Reads fields that are set when the device is found.
        unsafe { bindings::rvmm_pci_reset_supported(self.as_ptr()) }
    }
}

/// The device lock, held: no driver binds or unbinds.
pub struct Locked<'a> {
    device: &'a Device,
    unlock: bool,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.unlock {
            // SAFETY: Taken by `Device::lock`.
            unsafe { bindings::rvmm_device_unlock(self.device.dev()) };
        }
    }
}

impl Deref for Locked<'_> {
    type Target = Device;

    fn deref(&self) -> &Device {
        self.device
    }
}

impl Locked<'_> {
    /// The name of the driver that the device is bound to.
    pub fn driver_name(&self) -> Option<&str> {
        // SAFETY: With the device lock held the driver stays; its name is static.
        let name = unsafe {
            let driver = (*self.dev()).driver;
            if driver.is_null() {
                return None;
            }
            CStr::from_char_ptr((*driver).name)
        };
        name.to_str().ok()
    }

    /// Switches memory and port decoding on, and lets the device's regions be ours.
    ///
    /// Errors: `EBUSY` when somebody else uses a region; what the bus says.
    pub fn enable(&self) -> Result<Enabled> {
        let mut mask = 0;
        for i in 0..BARS {
            if self.bar(i).len != 0 {
                mask |= 1 << i;
            }
        }
        // SAFETY: The device is bound to this module's driver, whoever has the lock; undone by `Enabled`.
        to_result(unsafe { bindings::pci_enable_device(self.as_ptr()) })?;
        // SAFETY: The device is bound to this module's driver and enabled; the name is static.
        let code = unsafe {
            bindings::pci_request_selected_regions(self.as_ptr(), mask, c"rvmm".as_char_ptr())
        };
        if code != 0 {
            // SAFETY: Enabled above.
            unsafe { bindings::pci_disable_device(self.as_ptr()) };
            return Err(EBUSY);
        }
        Ok(Enabled {
            device: self.device.clone(),
            mask,
        })
    }

    /// Lets the device start transactions, or not: without it neither DMA nor messages leave the device.
    pub fn set_master(&self, on: bool) {
        // SAFETY: The device lives; both are read-modify-write of the command register under the kernel's lock.
        unsafe {
            if on {
                bindings::pci_set_master(self.as_ptr());
            } else {
                bindings::pci_clear_master(self.as_ptr());
            }
        }
    }

    /// Whether [`Locked::silence_pin`] works, or is not needed.
    pub fn can_silence_pin(&self) -> bool {
        // SAFETY: Reads fields that are set when the device is found.
        unsafe { bindings::rvmm_pci_pin_can_be_off(self.as_ptr()) }
    }

    /// Switches the function's interrupt pin off, if that works. Its line may be others' as well, and nobody here
    /// would answer it.
    pub fn silence_pin(&self) {
        if self.can_silence_pin() {
            // SAFETY: The device lives; a read-modify-write of the command register.
            unsafe { bindings::pci_intx(self.as_ptr(), 0) };
        }
    }

    /// Takes the permission for transactions that ignore the caches away: DMA sees what the CPUs see.
    pub fn forbid_no_snoop(&self) {
        // SAFETY: The device lives; a device without the register is left alone.
        unsafe { bindings::rvmm_pci_forbid_no_snoop(self.as_ptr()) };
    }

    /// Waits until reads of the device that are under way have been answered.
    pub fn drain(&self) {
        // SAFETY: The device lives.
        unsafe { bindings::pci_wait_for_pending_transaction(self.as_ptr()) };
    }

    /// Resets the function and puts back what the kernel had configured. Bus mastering is off while it happens. Sleeps.
    ///
    /// Errors: `ENOTTY` when there is no way to do it.
    pub fn reset(&self) -> Result {
        if !self.can_reset() {
            return Err(ENOTTY);
        }
        // SAFETY: The device lock is held, and configuration space is ours until it is unlocked.
        to_result(unsafe {
            bindings::pci_cfg_access_lock(self.as_ptr());
            let _ = bindings::pci_save_state(self.as_ptr());
            bindings::rvmm_pci_quiesce(self.as_ptr());
            let code = bindings::__pci_reset_function_locked(self.as_ptr());
            bindings::pci_restore_state(self.as_ptr());
            bindings::pci_cfg_access_unlock(self.as_ptr());
            code
        })
    }

    /// Keeps configuration space as it is now.
    pub fn save(&self) -> Saved {
        // SAFETY: The device lives; the copy may be null, which loads nothing.
        unsafe {
            let _ = bindings::pci_save_state(self.as_ptr());
            Saved(bindings::pci_store_saved_state(self.as_ptr()))
        }
    }

    /// Puts back what `save` kept.
    pub fn restore(&self, mut saved: Saved) {
        // SAFETY: The copy is of this device's making and is given up here.
        unsafe {
            let _ = bindings::pci_load_and_free_saved_state(self.as_ptr(), &mut saved.0);
            bindings::pci_restore_state(self.as_ptr());
        }
    }

    /// What the driver `T` keeps for this device, if it is bound to it.
    pub fn driver_data<T: Driver>(&self, driver: &Registration<T>) -> Option<Arc<T>> {
        // SAFETY: With the device lock held neither the driver nor its data change.
        unsafe {
            if !core::ptr::eq((*self.dev()).driver, &raw const (*driver.raw()).driver) {
                return None;
            }
            let data = (*self.dev()).driver_data;
            if data.is_null() {
                return None;
            }
            Some(ArcBorrow::from_raw(data.cast::<T>()).into())
        }
    }
}

/// A device whose decoding is on and whose regions are reserved. Given up, decoding and bus mastering go off.
pub struct Enabled {
    device: Device,
    mask: c_int,
}

impl Drop for Enabled {
    fn drop(&mut self) {
        // SAFETY: Enabled and reserved by `Locked::enable`.
        unsafe {
            bindings::pci_release_selected_regions(self.device.as_ptr(), self.mask);
            bindings::pci_disable_device(self.device.as_ptr());
        }
    }
}

/// A copy of the registers that a reset loses; null when there was no memory for it.
pub struct Saved(*mut bindings::pci_saved_state);

// SAFETY: Plain memory.
unsafe impl Send for Saved {}
// SAFETY: Not reached through a shared reference.
unsafe impl Sync for Saved {}

impl Drop for Saved {
    fn drop(&mut self) {
        // SAFETY: Null, or memory that `pci_store_saved_state` allocated and nobody took.
        unsafe { bindings::kfree(self.0.cast()) };
    }
}

/// A driver without an identity table: it gets the devices whose `driver_override` names it, and no default DMA
/// domain is claimed for them.
pub trait Driver: Send + Sync + Sized + 'static {
    /// Name on the bus.
    const NAME: &'static CStr;

    /// A device was bound. Runs with the device lock held.
    fn probe(device: Device) -> Result<Arc<Self>>;

    /// The device is unbound, or gone. When this returns nothing uses it any more.
    fn remove(&self, device: &Locked<'_>);
}

/// A registered driver. Dropping it unbinds all its devices; sleeps.
pub struct Registration<T: Driver> {
    driver: Pin<KBox<Opaque<bindings::pci_driver>>>,
    _driver: PhantomData<T>,
}

// SAFETY: The kernel locks what it keeps in the driver.
unsafe impl<T: Driver> Send for Registration<T> {}
// SAFETY: Shared references read only the address of what the kernel locks.
unsafe impl<T: Driver> Sync for Registration<T> {}

impl<T: Driver> Registration<T> {
    /// Registers the driver. Devices that wait for it are bound at once.
    pub fn register(module: &'static ThisModule) -> Result<Self> {
        let raw = bindings::pci_driver {
            name: T::NAME.as_char_ptr(),
            probe: Some(probe::<T>),
            remove: Some(remove::<T>),
            driver_managed_dma: true,
            ..pin_init::zeroed()
        };
        let driver = KBox::pin(Opaque::new(raw), GFP_KERNEL)?;
        // SAFETY: The driver stays where it is until it is unregistered.
        to_result(unsafe {
            bindings::__pci_register_driver(driver.get(), module.as_ptr(), T::NAME.as_char_ptr())
        })?;
        Ok(Self {
            driver,
            _driver: PhantomData,
        })
    }

    fn raw(&self) -> *mut bindings::pci_driver {
        self.driver.get()
    }
}

impl<T: Driver> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: Registered by `register`.
        unsafe { bindings::pci_unregister_driver(self.raw()) };
    }
}

/// # Safety
///
/// Called by the bus with a live device, its lock held.
unsafe extern "C" fn probe<T: Driver>(
    raw: *mut bindings::pci_dev,
    _id: *const bindings::pci_device_id,
) -> c_int {
    // SAFETY: The bus calls with a live device.
    let data = unsafe { Device::from_raw(raw) }.and_then(T::probe);
    match data {
        Ok(data) => {
            // SAFETY: The data of a bound device is its driver's; `remove` takes the reference back.
            unsafe { (*raw).dev.driver_data = Arc::into_raw(data).cast_mut().cast::<c_void>() };
            0
        }
        Err(e) => e.to_errno(),
    }
}

/// # Safety
///
/// Called by the bus with a device that `probe` accepted, its lock held.
unsafe extern "C" fn remove<T: Driver>(raw: *mut bindings::pci_dev) {
    // SAFETY: The bus calls with a live device.
    let Ok(device) = (unsafe { Device::from_raw(raw) }) else {
        return;
    };
    // SAFETY: `probe` put the reference there; it is taken once.
    let data = unsafe {
        let data = Arc::from_raw((*raw).dev.driver_data.cast::<T>());
        (*raw).dev.driver_data = null_mut();
        data
    };
    // The bus holds the lock, and will unlock it.
    data.remove(&Locked {
        device: &device,
        unlock: false,
    });
}
