// SPDX-License-Identifier: GPL-2.0
//! Devices handed to a guest (`uapi/rvmm.h`, RVMM_ASSIGN_DEVICE).
//!
//! A PCI function is bound to the driver `rvmm` by its `driver_override`, then assigned to a VM: a file stands for it.
//! The file's end, the function's removal from the driver or from the bus, and RVMM_DEVICE_DEASSIGN all end the
//! assignment by [`Assigned::end`].
//!
//! # Order
//!
//! Begin: bus mastering off; the group is claimed, which blocks its DMA; the VM's memory is pinned and mapped; reset;
//! attach; only now may user space switch bus mastering on. End: user mappings of the device go, bus mastering off,
//! interrupts freed, reset, the registers as they were, detach, ownership back, and with the VM's last device the
//! memory is unmapped and unpinned. While a device is attached memory slots follow: see `space`.
//!
//! # Locks
//!
//! The device lock (the kernel's) > `current` > `live` > `GuestMemory.update` > `Space.mapped`, `IoWindow.open`,
//! `IrqChip.config`. Every change of an assignment is made under the device lock, so it excludes binding and unbinding.

#[allow(unreachable_pub)]
pub(crate) mod burst;
#[allow(unreachable_pub)]
pub(crate) mod config;
#[allow(unreachable_pub)]
pub(crate) mod intx;
pub(crate) mod refused;
pub(crate) mod space;
pub(crate) mod vfio;
mod wire;

use crate::abi::uapi;
use crate::abi::uapi::{AssignDevice, DeviceConfig, DeviceInfo, DeviceVector, Reason};
use crate::arch::{Controllers, Vm};
use crate::bus::line::Source;
use crate::bus::ports::IrqLines;
use crate::linux::anon_inode::{FileOperations, NewFile};
use crate::linux::global::{Global, Owner};
use crate::linux::io_window::{IoWindow, Part};
use crate::linux::iommu::{self, Group};
use crate::linux::once::Once;
use crate::linux::pci::{self, Device, Enabled, Locked, Registration, Saved, BARS};
use crate::linux::pci_irq::{self, Handler, Kind, Vectors};
use crate::linux::sched;
use crate::mem::addr::PAGE_SIZE;
use crate::mem::slots::Slot;
use crate::nospec::Nospec;
use config::Write;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel::fs::File;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, ArcBorrow, Mutex};
use space::Space;
use wire::Wire;

/// The driver, while the module is loaded, if there is a PCI bus.
static DRIVER: Global<Registration<Bound>> = Global::new();

/// Messages that a device can have (the table of MSI-X is not longer).
const MAX_VECTORS: u32 = 2048;

/// Part `i` of the file is base address register `i`, from this many bytes times `i` on (`RVMM_DEVICE_REGION_SHIFT`).
const REGION_SHIFT: u32 = 40;

/// Registers the driver. Without a PCI bus devices cannot be assigned, and nothing else changes.
pub(crate) fn init(module: &'static ThisModule) -> Option<Owner> {
    Registration::register(module)
        .and_then(|r| DRIVER.set(r))
        .inspect_err(|e| {
            pr_info!("no devices can be assigned: PCI driver not registered ({e:?})\n");
        })
        .ok()
}

/// A function that is bound to the driver.
#[pin_data]
pub(crate) struct Bound {
    #[pin]
    current: Mutex<Option<Arc<Assigned>>>,
}

impl pci::Driver for Bound {
    const NAME: &'static CStr = c"rvmm";

    fn probe(_device: Device) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                current <- new_mutex!(None),
            }),
            GFP_KERNEL,
        )
    }

    fn remove(&self, device: &Locked<'_>) {
        let current = self.current.lock().take();
        if let Some(assigned) = current {
            pr_info!("{}: taken away from its guest\n", device.name());
            assigned.end(device);
        }
    }
}

/// One message of a device on its way to the guest.
struct Vector {
    controllers: Arc<Controllers>,
    /// [`Vector::NONE`]: masked.
    gsi: AtomicU32,
    /// Came while masked.
    pending: AtomicBool,
}

impl Vector {
    const NONE: u32 = u32::MAX;

    fn set(&self, gsi: u32) {
        self.gsi.store(gsi, Ordering::SeqCst);
        self.deliver_pending();
    }

    /// Either the masked interrupt sees the GSI, or this sees the interrupt.
    fn deliver_pending(&self) {
        let gsi = self.gsi.load(Ordering::SeqCst);
        if gsi != Self::NONE && self.pending.swap(false, Ordering::SeqCst) {
            self.controllers.pulse(gsi, Source::USER);
        }
    }
}

impl Handler for Vector {
    fn handle(&self) -> bool {
        let gsi = self.gsi.load(Ordering::SeqCst);
        if gsi == Self::NONE {
            self.pending.store(true, Ordering::SeqCst);
            self.deliver_pending();
        } else {
            self.controllers.pulse(gsi, Source::USER);
        }
        true
    }
}

/// What an assignment holds. Fields in the order in which they are given up, after bus mastering has been switched off.
struct Live {
    vectors: Option<Vectors<Vector>>,
    handlers: KVec<Arc<Vector>>,
    /// The pin while it is in use, and one that can only be switched off at the host's interrupt controller: that needs
    /// its line.
    wire: Option<Wire>,
    /// The pin is in use.
    pin: bool,
    saved: Saved,
    enabled: Enabled,
}

impl Live {
    /// Runs `f`, which writes the command register, with the pin off: its handler writes it as well.
    fn quietly<R>(&self, f: impl FnOnce() -> R) -> R {
        match &self.wire {
            Some(wire) => wire.held(f),
            None => f(),
        }
    }
}

/// A function in the hands of a VM, or once so.
#[pin_data]
pub(crate) struct Assigned {
    device: Device,
    vm: Arc<Vm>,
    space: Arc<Space>,
    window: Arc<IoWindow>,
    /// None before the beginning and after the end.
    #[pin]
    live: Mutex<Option<Live>>,
}

/// The pages of a base address register that user space may map: whole pages, without the MSI-X table's.
fn parts(device: &Device) -> Result<KVec<Part>> {
    let mut parts = KVec::new();
    let table = device.msix_table();
    for i in 0..BARS {
        let bar = device.bar(i);
        if !bar.memory || bar.start & (PAGE_SIZE - 1) != 0 {
            continue;
        }
        let pages = bar.len / PAGE_SIZE;
        let hole = match table {
            Some((at, offset, len)) if at == i => (
                offset / PAGE_SIZE,
                offset.saturating_add(len).div_ceil(PAGE_SIZE),
            ),
            _ => (pages, pages),
        };
        for (first, end) in [(0, hole.0.min(pages)), (hole.1, pages)] {
            if first < end {
                parts.push(
                    Part {
                        file_page: (i << (REGION_SHIFT - 12)) + first as usize,
                        pages: (end - first) as usize,
                        pfn: (bar.start / PAGE_SIZE).wrapping_add(first),
                    },
                    GFP_KERNEL_ACCOUNT,
                )?;
            }
        }
    }
    Ok(parts)
}

/// The device's group, if an IOMMU confines what the device does.
fn confined_group(device: &Locked<'_>, reason: &mut Reason) -> Result<Group> {
    let Some(group) = Group::of(device) else {
        return Err(reason.refuse(
            ENODEV,
            format_args!("no IOMMU translates its DMA (intel_iommu=on, amd_iommu=on)"),
        ));
    };
    if !iommu::is_coherent(device) {
        return Err(reason.refuse(EOPNOTSUPP, format_args!("its DMA bypasses the caches")));
    }
    if !group.has_isolated_msi() && !crate::params::allow_unsafe_interrupts() {
        return Err(reason.refuse(
            EPERM,
            format_args!(
                "the IOMMU does not remap interrupts, so a guest could raise any interrupt of the host; \
                 the module parameter allow_unsafe_interrupts=1 accepts that"
            ),
        ));
    }
    Ok(group)
}

/// Claims the device's registers and, if its pin cannot be switched off at the device, the pin's line. The device
/// masters the bus neither before nor after: no DMA and no messages come from an earlier use.
fn take_hold(device: &Locked<'_>, reason: &mut Reason) -> Result<(Enabled, Option<Wire>)> {
    device.set_master(false);
    let enabled = device
        .enable()
        .map_err(|e| reason.refuse(e, format_args!("its memory or ports cannot be claimed")))?;
    device.set_master(false);
    if device.can_silence_pin() {
        return Ok((enabled, None));
    }
    let text = "its interrupt pin cannot be switched off, and its line is not its own";
    let wire = Wire::new(device).map_err(|e| reason.refuse(e, format_args!("{text}")))?;
    Ok((enabled, Some(wire)))
}

/// Resets the device, whose group's DMA is blocked, and returns its registers as they are then.
fn make_quiet(device: &Locked<'_>) -> Result<Saved> {
    device.forbid_no_snoop();
    device.silence_pin();
    if let Err(e) = device.reset() {
        if e != ENOTTY {
            return Err(e);
        }
    }
    device.set_master(false);
    device.silence_pin();
    Ok(device.save())
}

impl Assigned {
    fn new(device: Device, vm: Arc<Vm>, space: Arc<Space>) -> Result<Arc<Self>> {
        let window = IoWindow::new(parts(&device)?)?;
        Arc::pin_init(
            try_pin_init!(Self {
                device,
                vm,
                space,
                window,
                live <- new_mutex!(None),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Hands the device over. The VM's mm is the caller's.
    fn begin(this: &Arc<Self>, device: &Locked<'_>, reason: &mut Reason) -> Result<u64> {
        let driver = DRIVER.get().ok_or(ENODEV)?;
        let Some(bound) = device.driver_data(&driver) else {
            return Err(match device.driver_name() {
                Some(name) => reason.refuse(EBUSY, format_args!("it belongs to the driver {name}")),
                None => reason.refuse(ENODEV, format_args!("it is not bound to the driver rvmm")),
            });
        };
        let mut current = bound.current.lock();
        if current.is_some() {
            return Err(reason.refuse(EBUSY, format_args!("it is assigned already")));
        }
        let group = confined_group(device, reason)?;
        let (enabled, wire) = take_hold(device, reason)?;
        let mut saved = None;
        let pinned = this.vm.memory.with_slots(|slots| {
            let quiet = |s: &Slot| if s.reports_missing() { Err(()) } else { Ok(()) };
            if slots.try_each(quiet).is_err() {
                let why = format_args!(
                    "user space brings pages of the VM's memory when they are asked for"
                );
                return Err(reason.refuse(EBUSY, why));
            }
            // Nor do rings come as long as there is a device.
            if !this.vm.memory.rings.have_bitmaps() {
                let why = format_args!(
                    "the VM's dirty rings have no place for what devices write: \
                     KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP is needed"
                );
                return Err(reason.refuse(EBUSY, why));
            }
            // No fork comes as long as the slots stay.
            if this.vm.memory.has_forks() {
                return Err(reason.refuse(EBUSY, format_args!("the VM has forks")));
            }
            this.space.attach(device, &group, slots, reason, || {
                saved = Some(make_quiet(device)?);
                Ok(())
            })
        })?;
        *this.live.lock() = Some(Live {
            vectors: None,
            handlers: KVec::new(),
            wire,
            pin: false,
            saved: saved.ok_or(EIO)?,
            enabled,
        });
        *current = Some(this.clone());
        pr_info!(
            "{}: assigned; {} KiB of guest memory pinned{}\n",
            device.name(),
            pinned >> 10,
            if device.can_reset() {
                ""
            } else {
                "; it cannot be reset and keeps its state"
            }
        );
        Ok(pinned)
    }

    /// Takes the device back; does nothing the second time. Its file is not released yet.
    fn end(&self, device: &Locked<'_>) {
        self.window.shut();
        let Some(live) = self.live.lock().take() else {
            return;
        };
        device.set_master(false);
        device.drain();
        let Live {
            vectors,
            handlers,
            mut wire,
            pin: _,
            saved,
            enabled,
        } = live;
        drop(vectors);
        if let Some(wire) = &mut wire {
            wire.cut(&self.vm.chip);
        }
        // Switching messages off has switched it on.
        device.silence_pin();
        drop(handlers);
        // One that cannot be reset is quiet all the same: it masters the bus no more.
        let _ = device.reset();
        device.restore(saved);
        device.set_master(false);
        drop(wire);
        drop(enabled);
        self.vm.memory.detach_device(|| self.space.detach(device));
    }

    /// Runs `f` on the assignment, with the device locked. ENODEV when it has ended.
    fn with<R>(&self, f: impl FnOnce(&Locked<'_>, &mut Live) -> Result<R>) -> Result<R> {
        let device = self.device.lock();
        let mut live = self.live.lock();
        f(&device, (*live).as_mut().ok_or(ENODEV)?)
    }

    /// Ends the assignment, by its own wish or because its file goes.
    fn give_back(&self) {
        let device = self.device.lock();
        if let Some(bound) = DRIVER.get().and_then(|d| device.driver_data(&d)) {
            let mut current = bound.current.lock();
            if current
                .as_ref()
                .is_some_and(|c| core::ptr::eq::<Self>(&**c, self))
            {
                // Not the last reference: the file has one.
                *current = None;
            }
        }
        self.end(&device);
    }

    #[inline(never)]
    fn info(&self, arg: usize) -> Result {
        let mut info = KBox::new(uapi::zeroed::<DeviceInfo>(), GFP_KERNEL)?;
        let device = &self.device;
        if self.live.lock().is_none() {
            return Err(ENODEV);
        }
        (info.vendor, info.device) = device.ids();
        info.class = device.class();
        info.flags = u32::from(device.can_reset());
        info.config_size = device.config_size();
        info.msi = device.msi_count();
        info.msix = device.msix_count();
        info.intx = u32::from(pci_irq::has_pin(device));
        if let Some((bar, offset, _)) = device.msix_table() {
            info.msix_bar = bar as u32;
            info.msix_offset = offset;
        }
        if let Some((pinned, refused, last)) = self.space.state_of(device) {
            info.pinned = pinned;
            info.dma_faults = refused;
            info.dma_fault_address = last.iova;
            info.dma_fault_flags = u32::from(last.write);
        }
        for (i, region) in info.regions.iter_mut().enumerate() {
            let bar = device.bar(i);
            region.size = bar.len;
            region.offset = (i as u64) << REGION_SHIFT;
            region.flags = u32::from(bar.memory) | u32::from(bar.prefetchable) << 1;
        }
        uapi::put(arg, &*info)
    }

    /// RVMM_DEVICE_SET_IRQS: the header and, for each message, its GSI.
    #[inline(never)]
    fn set_irqs(&self, arg: usize) -> Result {
        let kind = uapi::get::<u32>(arg)?;
        let count = uapi::get::<u32>(uapi::element::<u32>(arg, 0, 1)?)?;
        if count > MAX_VECTORS {
            return Err(EINVAL);
        }
        let kind = match kind {
            1 => Kind::Msi,
            2 => Kind::MsiX,
            3 => return self.set_pin(arg, count),
            _ => return Err(EINVAL),
        };
        let controllers = self.vm.chip.target().ok_or(EINVAL)?;
        let mut handlers = KVec::with_capacity(count as usize, GFP_KERNEL_ACCOUNT)?;
        for i in 0..count as usize {
            let gsi = uapi::get::<u32>(uapi::element::<u32>(arg, 8, i)?)?;
            check_gsi(gsi)?;
            let vector = Arc::new(
                Vector {
                    controllers: controllers.clone(),
                    gsi: AtomicU32::new(gsi),
                    pending: AtomicBool::new(false),
                },
                GFP_KERNEL_ACCOUNT,
            )?;
            handlers.push(vector, GFP_KERNEL_ACCOUNT)?;
        }
        self.with(|device, live| {
            self.switch_off(device, live);
            if count != 0 {
                let vectors = Vectors::new(device, kind, &handlers);
                device.silence_pin();
                live.vectors = Some(vectors?);
                live.handlers = handlers;
            }
            Ok(())
        })
    }

    /// No interrupt comes from the device when it returns.
    fn switch_off(&self, device: &Locked<'_>, live: &mut Live) {
        live.vectors = None;
        if let Some(wire) = &mut live.wire {
            wire.cut(&self.vm.chip);
        }
        live.pin = false;
        if device.can_silence_pin() {
            live.wire = None;
        }
        // Switching messages off has switched it on.
        device.silence_pin();
        live.handlers = KVec::new();
    }

    /// RVMM_DEVICE_SET_IRQS for the pin.
    fn set_pin(&self, arg: usize, count: u32) -> Result {
        self.vm.chip.target().ok_or(EINVAL)?;
        let gsi = match count {
            0 => None,
            1 => Some(uapi::get::<u32>(uapi::element::<u32>(arg, 8, 0)?)?),
            _ => return Err(EINVAL),
        };
        check_gsi(gsi.unwrap_or(Vector::NONE))?;
        self.with(|device, live| {
            self.switch_off(device, live);
            let Some(gsi) = gsi else { return Ok(()) };
            let wire = match &mut live.wire {
                Some(wire) => wire,
                none => none.insert(Wire::new(device)?),
            };
            live.pin = true;
            wire.route(&self.vm.chip, (gsi != Vector::NONE).then_some(gsi))
        })
    }

    /// RVMM_DEVICE_RESAMPLE.
    fn resample(&self) -> Result {
        let live = self.live.lock();
        let live = live.as_ref().ok_or(ENODEV)?;
        live.wire
            .as_ref()
            .filter(|_| live.pin)
            .ok_or(EINVAL)?
            .resample(&self.vm.chip)
    }

    fn set_vector(&self, arg: usize) -> Result {
        let request = uapi::get::<DeviceVector>(arg)?;
        check_gsi(request.gsi)?;
        let mut live = self.live.lock();
        let live = (*live).as_mut().ok_or(ENODEV)?;
        if let (Some(wire), true, 0) = (&mut live.wire, live.pin, request.vector) {
            return wire.route(
                &self.vm.chip,
                (request.gsi != Vector::NONE).then_some(request.gsi),
            );
        }
        live.handlers
            .get_nospec(request.vector as usize)
            .ok_or(EINVAL)?
            .set(request.gsi);
        Ok(())
    }

    fn config_read(&self, arg: usize) -> Result {
        let mut request = uapi::get::<DeviceConfig>(arg)?;
        let offset = u16::try_from(request.offset).map_err(|_| EINVAL)?;
        {
            let live = self.live.lock();
            live.as_ref().ok_or(ENODEV)?;
            request.value = self.device.config_read(offset, request.size)?;
        }
        uapi::put(arg, &request)
    }

    fn config_write(&self, arg: usize) -> Result {
        let request = uapi::get::<DeviceConfig>(arg)?;
        match config::write(request.offset, request.size, request.value) {
            None => Err(EPERM),
            Some(Write::Command { master }) => self.with(|device, live| {
                live.quietly(|| device.set_master(master));
                Ok(())
            }),
        }
    }

    fn reset(&self) -> Result {
        self.with(|device, live| {
            let done = live.quietly(|| self.window.without(|| device.reset()));
            if let (Some(wire), true) = (&live.wire, live.pin) {
                // What it asserted before is gone.
                let _ = wire.resample(&self.vm.chip);
            }
            done
        })
    }
}

fn check_gsi(gsi: u32) -> Result {
    if gsi == Vector::NONE || gsi < crate::arch::MAX_ROUTES {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

#[vtable]
impl FileOperations for Assigned {
    const NAME: &'static CStr = c"rvmm-device";
    const OWN_INODE: bool = true;

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.vm.check_mm()?;
        match cmd {
            uapi::RVMM_DEVICE_GET_INFO => this.info(arg)?,
            uapi::RVMM_DEVICE_SET_IRQS => this.set_irqs(arg)?,
            uapi::RVMM_DEVICE_SET_VECTOR => this.set_vector(arg)?,
            uapi::RVMM_DEVICE_CONFIG_READ => this.config_read(arg)?,
            uapi::RVMM_DEVICE_CONFIG_WRITE => this.config_write(arg)?,
            uapi::RVMM_DEVICE_RESET => this.reset()?,
            uapi::RVMM_DEVICE_RESAMPLE => this.resample()?,
            uapi::RVMM_DEVICE_DEASSIGN => this.give_back(),
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn mmap(this: ArcBorrow<'_, Self>, vma: &VmaNew) -> Result {
        this.vm.check_mm()?;
        this.window.map(vma)
    }

    fn release(this: Arc<Self>) {
        this.give_back();
    }
}

/// RVMM_ASSIGN_DEVICE on a VM: a file for the device. When it fails, `reason` says why.
pub(crate) fn assign(vm: &Arc<Vm>, space: &Once<Arc<Space>>, arg: usize) -> Result<isize> {
    let mut request = KBox::new(uapi::get::<AssignDevice>(arg)?, GFP_KERNEL)?;
    request.reason = Reason::empty();
    let result = prepare(vm, space, &mut request);
    uapi::put(arg, &*request)?;
    Ok(result?.install() as isize)
}

#[inline(never)]
fn prepare(vm: &Arc<Vm>, space: &Once<Arc<Space>>, request: &mut AssignDevice) -> Result<NewFile> {
    if request.flags != 0 {
        return Err(EINVAL);
    }
    let reason = &mut request.reason;
    // Whoever programs a device without a guest in between can do harm with it (power, other functions).
    if !sched::capable_rawio() {
        return Err(reason.refuse(EPERM, format_args!("CAP_SYS_RAWIO is needed")));
    }
    let Some(device) = Device::find(request.segment, request.bus, request.devfn) else {
        return Err(reason.refuse(ENODEV, format_args!("there is no such PCI function")));
    };
    let space: Arc<Space> = space
        .get_or_make(|| Space::new(vm.mm().into(), vm.stats.clone()))?
        .into();
    // Before a device is attached: what the slots are by then the space learns with that.
    vm.memory.set_dma_view(space.clone());
    let assigned = Assigned::new(device.clone(), vm.clone(), space)?;
    let file = NewFile::new(assigned.clone())?;
    let result = {
        let locked = device.lock();
        Assigned::begin(&assigned, &locked, reason)
    };
    // Set since, while there was no device yet.
    vm.memory.lose_reset_point();
    // The file is dropped outside of the device lock, which its release takes.
    request.pinned = result?;
    Ok(file)
}

impl Reason {
    /// Writes the sentence and gives the error back.
    pub(super) fn refuse(&mut self, error: Error, text: core::fmt::Arguments<'_>) -> Error {
        let _ = self.write_fmt(text);
        error
    }
}
