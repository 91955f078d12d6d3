// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual machine: made by a builder, run once.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
#[cfg(target_arch = "x86_64")]
use std::sync::PoisonError;
use std::sync::{Arc, Mutex};

#[cfg(target_arch = "x86_64")]
use kvm_bindings::{kvm_cpuid_entry2, KVM_MAX_CPUID_ENTRIES};
use kvm_bindings::{kvm_userspace_memory_region, KVM_API_VERSION, KVM_CAP_BINARY_STATS_FD};
use kvm_ioctls::{Cap, Kvm, VmFd};
#[cfg(target_arch = "x86_64")]
use vm_memory::Bytes;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::Boot;
use crate::bus::{Device, Placed};
use crate::console::{Console, Terminal};
use crate::disk::Storage;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::hold::Hold;
use crate::input::{self, Supervisor};
use crate::pause::Pause;
use crate::serial::SerialPort;
use crate::vcpu::{self, Control, Vcpu};
use crate::virtio::balloon;
use crate::PowerButton;
#[cfg(target_arch = "x86_64")]
use crate::{
    acpi,
    boot::{self, Tables},
    cpu,
    fork::Kept,
    parts::{add_platform, create_vcpus, hold, Buses},
    pause::Parts,
    platform::Cmos,
    serial::{self, SerialDevice},
    snapshot::{state::saved_msrs, Snapshot},
    virtio::block,
};
use crate::{gdb, layout, pci, sys, virtio};

#[cfg(target_arch = "aarch64")]
#[path = "arm64/machine.rs"]
mod machine;

/// Node of rvmm.
pub const DEFAULT_DEVICE: &str = "/dev/rvmm";
/// APIC ids of an xAPIC machine end before the broadcast id, and the IOAPIC takes one.
#[cfg(target_arch = "x86_64")]
const MOST_CPUS: usize = 254;
/// Fewer bytes cannot hold even the tables and a small kernel.
#[cfg(target_arch = "x86_64")]
const LEAST_MEMORY: u64 = 16 << 20;

/// What a virtual machine shall be; see [`Vm::builder`].
pub struct Builder {
    device: PathBuf,
    memory: u64,
    cpus: usize,
    boot: Boot,
    cmdline: Option<String>,
    usual_cmdline: Option<String>,
    append: Option<String>,
    console: Option<Console>,
    devices: Vec<Placed>,
    assigned: Vec<pci::Address>,
    virtio: Vec<Box<dyn virtio::Backend>>,
    disks: Vec<Arc<Mutex<dyn Storage>>>,
    gdb: Option<gdb::Listener>,
    pausable: bool,
    #[cfg(target_arch = "x86_64")]
    saved: Option<Snapshot>,
}

impl Builder {
    /// Hypervisor to use: [`DEFAULT_DEVICE`] unless told otherwise.
    pub fn device(mut self, path: impl Into<PathBuf>) -> Self {
        self.device = path.into();
        self
    }

    /// Guest memory in bytes, a multiple of 4096; 512 MiB unless told otherwise.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Number of virtual CPUs; one unless told otherwise.
    pub fn cpus(mut self, count: usize) -> Self {
        self.cpus = count;
        self
    }

    /// Linux kernel: a bzImage, or an ELF vmlinux; on Arm64 an Image.
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.boot.kernel = path.into();
        self
    }

    /// 64-bit code instead of a kernel. It starts with its first byte, at 1 MiB
    /// ([`layout::HIGH_RAM`]), in ring 0, with the first 4 GiB mapped one to one, interrupts off and no IDT, and with
    /// 4 KiB of stack. On Arm64 it starts 2 MiB into RAM (`layout::KERNEL`), at EL1 without an MMU, with interrupts
    /// off, the device tree in X0, and 2 MiB of stack.
    pub fn code(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.boot.code = Some(bytes.into());
        self
    }

    /// Initial ramdisk.
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.boot.initrd = Some(path.into());
        self
    }

    /// Kernel command line instead of [`boot::DEFAULT_CMDLINE`].
    pub fn cmdline(mut self, text: impl Into<String>) -> Self {
        self.cmdline = Some(text.into());
        self
    }

    /// Kernel command line where none is given with [`Self::cmdline`], such as an image's own.
    pub fn usual_cmdline(mut self, text: impl Into<String>) -> Self {
        self.usual_cmdline = Some(text.into());
        self
    }

    /// Words added to the command line.
    pub fn append(mut self, text: impl Into<String>) -> Self {
        self.append = Some(text.into());
        self
    }

    /// Where the serial port leads; output that nobody sees unless told otherwise.
    pub fn console(mut self, console: Console) -> Self {
        self.console = Some(console);
        self
    }

    /// Puts a device of the caller's on `length` I/O ports from `first`.
    pub fn ports(mut self, first: u16, length: u16, device: Arc<Mutex<dyn Device>>) -> Self {
        self.devices.push(Placed {
            on_ports: true,
            first: first.into(),
            length: length.into(),
            device,
        });
        self
    }

    /// Puts a device of the caller's on `length` bytes of guest-physical memory from `first`, where
    /// there is no RAM.
    pub fn mmio(mut self, first: u64, length: u64, device: Arc<Mutex<dyn Device>>) -> Self {
        self.devices.push(Placed {
            on_ports: false,
            first,
            length,
            device,
        });
        self
    }

    /// Gives the guest a PCI function of the host, which is bound to the driver `rvmm`. Its memory is pinned then.
    pub fn pci(mut self, address: pci::Address) -> Self {
        self.assigned.push(address);
        self
    }

    /// Gives the guest a disk, as a virtio device. A machine with one has PCI and ACPI.
    pub fn disk(mut self, storage: Arc<Mutex<dyn Storage>>) -> Self {
        self.disks.push(storage);
        self
    }

    /// Gives the guest a virtio device. A machine with one has PCI and ACPI.
    pub fn virtio(mut self, device: Box<dyn virtio::Backend>) -> Self {
        self.virtio.push(device);
        self
    }

    /// Lets debuggers connect there. The machine waits for the first one before it runs an instruction.
    pub fn gdb(mut self, listener: gdb::Listener) -> Self {
        self.gdb = Some(listener);
        self
    }

    /// Lets the machine be paused ([`Vm::pause`]). A machine for debuggers ([`Self::gdb`]) is theirs to stop, and
    /// cannot.
    pub fn pausable(mut self) -> Self {
        self.pausable = true;
        self
    }

    /// Makes the machine what it was when it was saved: memory and CPUs are those of the file, and no kernel is needed.
    #[cfg(target_arch = "x86_64")]
    pub fn saved(mut self, snapshot: Snapshot) -> Self {
        (self.memory, self.cpus) = (snapshot.memory_size(), snapshot.cpus());
        self.saved = Some(snapshot);
        self
    }

    /// Makes the machine, ready to run.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; [`Error::remedy`] says what to do.
    #[cfg(target_arch = "x86_64")]
    pub fn build(self) -> Result<Vm> {
        let kvm = open(&self.device)?;
        check_abilities(&kvm, &self.device)?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        let supported = supported.as_slice();
        let cpus = self.check(&kvm, supported)?;
        let saved_cpus = self.saved.iter().flat_map(|saved| &saved.state.vcpus);
        if let Some(what) = saved_cpus.into_iter().find_map(|was| was.lacks(supported)) {
            return Err(Error::OtherCpu { what });
        }
        let vm = Arc::new(create_vm(&kvm)?);
        add_platform(&vm)?;
        let memory = match &self.saved {
            Some(saved) => saved.memory().map_err(|cause| Error::Memory {
                size: self.memory,
                cause,
            })?,
            None => {
                let shared = self.virtio.iter().any(|device| device.shares_memory());
                allocate(self.memory, shared)?
            }
        };
        let memory = Arc::new(memory);
        // SAFETY: the `Vm` owns the memory and joins every vCPU thread before it drops it.
        unsafe { map(&vm, &memory) }?;

        let Self {
            console,
            mut boot,
            cmdline,
            usual_cmdline,
            append,
            devices,
            assigned,
            virtio,
            disks,
            gdb,
            pausable,
            saved,
            ..
        } = self;
        let mut console = console.unwrap_or_else(|| Console::output(std::io::sink()));
        let terminal = console.take_terminal();
        let control = Control::new(console.ended.clone(), console.held.clone())
            .map_err(Error::os("eventfd"))?;
        let control = Arc::new(control);
        let drained =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::os("eventfd"))?;
        let ends = || -> Result<_> {
            let wake = drained.try_clone().map_err(Error::os("eventfd"))?;
            Ok((serial::irq_line(&vm)?, wake))
        };
        let (irq, wake) = ends()?;
        let serial = Arc::new(Mutex::new(SerialPort::new(irq, wake)));
        let cmos = Arc::new(Mutex::new(Cmos::new()));
        let port = SerialDevice {
            port: serial.clone(),
            output: console.output,
            sent: Arc::default(),
        };
        let sent = port.sent.clone();
        let more = !assigned.is_empty() || !devices.is_empty();
        let mut buses = Buses::new(port, cmos.clone(), &control, devices);
        buses.add_pci(&vm, &assigned)?;
        let virtio = match &saved {
            Some(saved) => saved.devices()?,
            None => block::with_disks(virtio, disks, cpus),
        };
        let has_acpi = !virtio.is_empty();
        let acpi = buses.add_virtio(&vm, &memory, virtio)?;
        if has_acpi {
            acpi::set_generation(&memory)
                .map_err(Error::os("number of the machine's generation"))?;
        }

        let mut vcpus = create_vcpus(&vm, cpus, supported, buses, &control)?;
        let first = &vcpus[0].fd;
        boot.cmdline = cmdline.unwrap_or_else(|| {
            let tsc = cpu::tsc_parameter(&vm, first);
            if let Some(text) = usual_cmdline {
                text + &tsc
            } else if has_acpi {
                boot::ACPI_CMDLINE.to_owned() + &tsc
            } else if assigned.is_empty() {
                boot::DEFAULT_CMDLINE.to_owned() + &tsc
            } else {
                boot::DEFAULT_CMDLINE.replace("pci=off", "pci=conf1") + &tsc
            }
        });
        if let Some(more) = append {
            boot.cmdline.push(' ');
            boot.cmdline.push_str(&more);
        }
        let leaf1 = supported.iter().find(|entry| entry.function == 1);
        let pins = pci::wiring(assigned.len());
        let tables = if has_acpi {
            Tables::Acpi
        } else {
            Tables::Mp {
                cpu: leaf1.map_or((0, 0), |entry| (entry.eax, entry.edx)),
                pci: &pins,
            }
        };
        let mut fork = None;
        if let Some(saved) = saved {
            let cpus = || vcpus.iter().zip(&saved.state.vcpus);
            if let Some(kept) = saved.fork() {
                cpus().try_for_each(|(vcpu, was)| was.configure(&vcpu.fd))?;
                sys::become_fork(&*vm, &kept.file).map_err(Error::os("RVMM_BECOME"))?;
                fork = Some(kept.clone());
            } else {
                cpus().try_for_each(|(vcpu, was)| was.restore(&vcpu.fd))?;
                saved.state.chips.restore(&vm)?;
            }
            // It raises its interrupt, which is for the chips as they are now.
            let (irq, wake) = ends()?;
            *serial::lock(&serial) = SerialPort::restore(irq, wake, &saved.state.serial)
                .map_err(Error::os("serial port"))?;
            for vcpu in &vcpus {
                // The time since has not passed for the guest. EINVAL: it has no such clock.
                let _ = vcpu.fd.kvmclock_ctrl();
            }
            let mut cmos = cmos.lock().unwrap_or_else(PoisonError::into_inner);
            cmos.restore(&saved.state.cmos);
            if let (Some(acpi), Some(state)) = (&acpi, &saved.state.virtio) {
                if !acpi.restore(state) {
                    return Err(Error::OtherDevices);
                }
                acpi::tell_generation(&vm);
            }
        } else {
            let entry = boot::load(&memory, &boot, self.memory, cpus, tables)?;
            cpu::set_entry(first, entry, layout::ZERO_PAGE)?;
        }

        let debugger = match gdb {
            Some(listener) => Some((listener, hold(&mut vcpus, true, &control)?)),
            None => None,
        };
        let pause = if pausable && debugger.is_none() {
            let msrs = kvm
                .get_msr_index_list()
                .map_err(Error::ioctl("KVM_GET_MSR_INDEX_LIST"))?;
            let parts = Parts {
                vm: vm.clone(),
                memory: memory.clone(),
                size: self.memory,
                serial: serial.clone(),
                cmos,
                msrs: saved_msrs(msrs.as_slice()),
                more,
                acpi: acpi.clone(),
                fork: fork.clone(),
            };
            Some(Pause::new(hold(&mut vcpus, false, &control)?, parts))
        } else {
            None
        };
        let stats = stats_files(&vm, &vcpus);
        Ok(Vm {
            input: console.input,
            escape: console.escape,
            serial,
            sent,
            drained,
            control,
            vcpus,
            debugger,
            stats,
            balloon: acpi.as_ref().and_then(|acpi| acpi.balloon.clone()),
            button: acpi.map(|acpi| PowerButton(acpi.events)),
            pause,
            _vm: vm,
            _kvm: kvm,
            memory,
            _fork: fork,
            terminal,
        })
    }

    /// Checks the numbers of CPUs and of bytes, and gives that of CPUs.
    #[cfg(target_arch = "x86_64")]
    fn check(&self, kvm: &Kvm, supported: &[kvm_cpuid_entry2]) -> Result<u8> {
        let saved = self
            .saved
            .as_ref()
            .is_some_and(|saved| saved.state.virtio.is_some());
        let virtio = saved || !self.disks.is_empty() || !self.virtio.is_empty();
        match (virtio, self.assigned.is_empty()) {
            (true, false) => return Err(Error::OneBus),
            (true, true) => virtio::check(kvm, &self.device)?,
            (false, _) => {}
        }
        let most = kvm.get_max_vcpus().min(MOST_CPUS);
        if !(1..=most).contains(&self.cpus) {
            return Err(Error::Cpus {
                path: self.device.clone(),
                wanted: self.cpus,
                most,
            });
        }
        let most = cpu::most_memory(supported);
        if !(LEAST_MEMORY..=most).contains(&self.memory) || self.memory % 4096 != 0 {
            return Err(Error::MemorySize {
                wanted: self.memory,
                least: LEAST_MEMORY,
                most,
            });
        }
        Ok(self.cpus as u8)
    }
}

/// Checks that a hypervisor has what [`Vm`] needs.
#[cfg(target_arch = "x86_64")]
fn check_abilities(kvm: &Kvm, path: &Path) -> Result<()> {
    let needed = [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ];
    check_extensions(kvm, path, &needed)
}

/// Checks that a hypervisor has these, each with its name.
pub(crate) fn check_extensions(
    kvm: &Kvm,
    path: &Path,
    needed: &[(Cap, &'static str)],
) -> Result<()> {
    for &(cap, what) in needed {
        if !kvm.check_extension(cap) {
            return Err(Error::Missing {
                path: path.into(),
                what,
            });
        }
    }
    Ok(())
}

/// Opens a hypervisor's device node and checks that it speaks KVM's ABI.
///
/// # Errors
///
/// [`Error::Open`] or [`Error::Version`].
pub fn open(path: &Path) -> Result<Kvm> {
    let name =
        std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Error::Open {
            path: path.into(),
            source: std::io::ErrorKind::InvalidInput.into(),
        })?;
    let kvm = Kvm::new_with_path(name).map_err(|error| Error::Open {
        path: path.into(),
        source: std::io::Error::from_raw_os_error(error.errno()),
    })?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(Error::Version {
            path: path.into(),
            version,
        });
    }
    Ok(kvm)
}

/// Creates an empty VM.
///
/// # Errors
///
/// [`Error::Ioctl`].
pub fn create_vm(kvm: &Kvm) -> Result<VmFd> {
    loop {
        match kvm.create_vm() {
            // A signal while the host synchronises its CPUs.
            Err(error) if error.errno() == libc::EINTR => {}
            made => return made.map_err(Error::ioctl("KVM_CREATE_VM")),
        }
    }
}

/// Reserves guest memory of `size` bytes, laid out around the hole below 4 GiB; `shared` so that another program can be
/// given it.
///
/// # Errors
///
/// [`Error::Memory`].
pub fn allocate(size: u64, shared: bool) -> Result<GuestMemoryMmap> {
    let cannot = |cause: String| Error::Memory { size, cause };
    let file = shared.then(|| sys::memory_file(&[])).transpose();
    let file = file.map_err(|error| cannot(error.to_string()))?;
    let (mut ranges, mut at) = (Vec::new(), 0);
    for (start, length) in layout::ram_ranges(size) {
        let place = file.as_ref().map(|(file, _)| -> std::io::Result<_> {
            file.set_len(at + length)?;
            Ok(FileOffset::new(file.try_clone()?, at))
        });
        let place = place.transpose().map_err(|e| cannot(e.to_string()))?;
        ranges.push((GuestAddress(start), length as usize, place));
        at += length;
    }
    GuestMemoryMmap::from_ranges_with_files(&ranges).map_err(|error| cannot(error.to_string()))
}

/// Makes `memory` the VM's, slot by slot from 0.
///
/// # Errors
///
/// [`Error::Ioctl`].
///
/// # Safety
///
/// `memory` has to stay mapped as long as a vCPU of the VM may run: the guest writes to whatever
/// is at its addresses.
pub unsafe fn map(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<()> {
    for (slot, region) in memory.iter().enumerate() {
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|error| Error::Memory {
                size: region.len(),
                cause: error.to_string(),
            })?;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
            flags: 0,
        };
        // SAFETY: the range is an anonymous mapping of exactly this length, which by the caller's
        // promise outlives the guest; the guest may change it at will because all access goes
        // through vm-memory's volatile functions.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(Error::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// Descriptors stay open while the machine runs, so that another process can copy them: the
/// statistics of a VM are reachable only through its owner.
fn stats_files(vm: &VmFd, vcpus: &[Vcpu]) -> Vec<(String, File)> {
    if vm.check_extension_raw(KVM_CAP_BINARY_STATS_FD.into()) <= 0 {
        return Vec::new();
    }
    let mut files = Vec::new();
    match sys::stats_fd(vm) {
        Ok(file) => files.push(("vm".to_owned(), file)),
        Err(error) => tracing::warn!(%error, "no statistics of the VM"),
    }
    for vcpu in vcpus {
        match sys::stats_fd(&vcpu.fd) {
            Ok(file) => files.push((format!("vcpu{}", vcpu.id), file)),
            Err(error) => tracing::warn!(%error, vcpu = vcpu.id, "no statistics"),
        }
    }
    files
}

/// A virtual machine.
pub struct Vm {
    input: Option<File>,
    escape: bool,
    serial: Arc<Mutex<SerialPort>>,
    sent: Arc<AtomicU64>,
    drained: EventFd,
    control: Arc<Control>,
    vcpus: Vec<Vcpu>,
    debugger: Option<(gdb::Listener, Hold)>,
    stats: Vec<(String, File)>,
    button: Option<PowerButton>,
    balloon: Option<balloon::Handle>,
    pause: Option<Pause>,
    #[cfg(target_arch = "aarch64")]
    _gic: kvm_ioctls::DeviceFd,
    _vm: Arc<VmFd>,
    // Tells others (`rvmm list`) whose machine it is.
    _kvm: Kvm,
    // After the VM: the hypervisor lets go of the memory before it is unmapped.
    memory: Arc<GuestMemoryMmap>,
    // What its memory comes from, and whose that was.
    #[cfg(target_arch = "x86_64")]
    _fork: Option<Arc<Kept>>,
    // Last: the terminal comes back when everything else is gone.
    terminal: Option<Terminal>,
}

/// Ends a running machine from another thread.
#[derive(Clone)]
pub struct StopHandle(Arc<Control>);

impl StopHandle {
    /// Ends the machine with [`Exit::Stopped`], at once if it is not running yet.
    pub fn stop(&self) {
        self.0.end(Exit::Stopped);
    }
}

impl Vm {
    /// Starts the description of a machine.
    pub fn builder() -> Builder {
        Builder {
            device: DEFAULT_DEVICE.into(),
            memory: 512 << 20,
            cpus: 1,
            boot: Boot::default(),
            cmdline: None,
            usual_cmdline: None,
            append: None,
            console: None,
            devices: Vec::new(),
            assigned: Vec::new(),
            virtio: Vec::new(),
            disks: Vec::new(),
            gdb: None,
            pausable: false,
            #[cfg(target_arch = "x86_64")]
            saved: None,
        }
    }

    /// A way to end the machine from another thread.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.control.clone())
    }

    /// The power button of a machine with ACPI.
    pub fn power_button(&self) -> Option<PowerButton> {
        self.button.clone()
    }

    /// The machine's balloon, if it has one.
    pub fn balloon(&self) -> Option<balloon::Handle> {
        self.balloon.clone()
    }

    /// A way to pause a machine that was made [`Builder::pausable`].
    pub fn pause(&self) -> Option<Pause> {
        self.pause.clone()
    }

    /// The machine's statistics descriptors (api.rst 4.133) by name, none where the hypervisor has
    /// none. They stay readable after the machine's end.
    pub fn stats_files(&self) -> std::io::Result<Vec<(String, File)>> {
        self.stats
            .iter()
            .map(|(name, file)| Ok((name.clone(), file.try_clone()?)))
            .collect()
    }

    /// Runs the machine to its end: one thread per CPU, the calling thread serves the console.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if threads or events cannot be made. A guest that crashes is not an error but
    /// an [`Exit`].
    pub fn run(mut self) -> Result<Exit> {
        vcpu::install_kick().map_err(Error::os("signal handler"))?;
        let mut threads = Vec::with_capacity(self.vcpus.len());
        let mut failed = None;
        for vcpu in self.vcpus.drain(..) {
            let name = format!("vcpu{}", vcpu.id);
            match std::thread::Builder::new()
                .name(name)
                .spawn(move || vcpu.run())
            {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    failed = Some(Error::Os {
                        what: "vCPU thread",
                        source: error,
                    });
                    self.control.end(Exit::Stopped);
                    break;
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        let debugger = self.debugger.take().map(|(listener, hold)| {
            let memory = self.memory.clone();
            std::thread::spawn(move || gdb::serve(&listener, hold, memory))
        });
        let served = match failed {
            None => self.serve(),
            Some(error) => Err(error),
        };
        self.control.end(Exit::Stopped);
        for thread in threads {
            // A thread that was about to wait for something of the host's did not notice; it will the next time.
            while !thread.is_finished() {
                vcpu::kick(&thread);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
        #[cfg(target_arch = "x86_64")]
        if debugger.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the debugger's thread panicked");
        }
        if let Some(pause) = &self.pause {
            // Who saves it is told by the end, and takes away what there is of the file.
            pause.wait();
        }
        drop(self.terminal.take());
        served?;
        Ok(match self.control.take() {
            #[cfg(target_arch = "x86_64")]
            Some(Exit::Reset) if self.reset_is_warm() => Exit::Panic,
            exit => exit.unwrap_or(Exit::Stopped),
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn reset_is_warm(&self) -> bool {
        let kind = self
            .memory
            .read_obj::<u16>(GuestAddress(layout::RESET_KIND));
        kind.is_ok_and(|kind| kind == layout::RESET_WARM)
    }

    fn serve(&mut self) -> Result<()> {
        let drained = self.drained.try_clone().map_err(Error::os("eventfd"))?;
        let (control, serial) = (self.control.clone(), self.serial.clone());
        let input = self.input.take();
        let supervisor = Supervisor::new(control, drained, serial, input, self.escape);
        input::serve(supervisor, &self.sent)
    }
}
