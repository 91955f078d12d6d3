// SPDX-License-Identifier: GPL-2.0
//! rvmm: a Type-2 hypervisor with KVM's interface.
//!
//! Three storeys, and arrows between them that only go down. The face: `kvm`, the files and ioctls of user space, and
//! `assign`, devices handed to guests. Below it the architecture, `x86` or `arm64`, which others call `arch`. Below
//! that the ground, which knows no registers: `abi`, `mem` and `bus`. `linux` wraps kernel interfaces and knows nothing
//! of hypervisors.
//!
//! Arm64 has not all of it yet: assigned devices are x86's alone.

#[path = "../rust/mod.rs"]
#[cfg_attr(CONFIG_ARM64, allow(dead_code, unused_macros, unused_imports))]
mod linux;

// Files below are shared with the host build of the pure logic, which sees them from another crate.
#[allow(unreachable_pub)]
#[cfg_attr(CONFIG_ARM64, allow(dead_code, unused_macros, unused_imports))]
mod abi;
#[cfg(CONFIG_ARM64)]
#[allow(unreachable_pub)]
mod arm64;
#[cfg(CONFIG_X86_64)]
mod assign;
#[cfg_attr(CONFIG_ARM64, allow(dead_code))]
mod bus;
mod kvm;
#[allow(unreachable_pub)]
#[cfg_attr(CONFIG_ARM64, allow(dead_code, unused_imports))]
mod mem;
#[allow(unreachable_pub)]
#[cfg_attr(CONFIG_ARM64, allow(dead_code))]
mod nospec;
mod params;
#[cfg(CONFIG_X86_64)]
#[allow(unreachable_pub)]
mod x86;

#[cfg(CONFIG_ARM64)]
use arm64 as arch;
#[cfg(CONFIG_X86_64)]
use x86 as arch;

use arch::load;
use kernel::miscdevice::MiscDeviceRegistration;
use kernel::prelude::*;
use kvm::device::{self, KvmNode, RvmmDevice};
use linux::cpuhp::{self, CpuHotplug};
use linux::page::FreedPages;
use linux::syscore::{self, SyscoreOps};

#[cfg(CONFIG_ARM64)]
module! {
    type: RvmmModule,
    name: "rvmm",
    authors: ["rvmm developers"],
    description: "Hypervisor with KVM's interface",
    license: "GPL",
    params: {
        check_flushes: u8 {
            default: 0,
            description: "1: keep what was flushed when, and refuse entries with translations that have gone",
        },
        eager_page_split: bool {
            default: true,
            description: "Y: huge pages are split when the log of their writes begins; N: at the first write to each",
        },
        oracle: bool {
            default: false,
            description: "Y: nested page tables are compared with the slots after each ioctl; slow, for tests",
        },
        kvm_node: u8 {
            default: 0,
            description: "1: also provide /dev/kvm, for programs that cannot be told another path",
        },
    },
}

#[cfg(CONFIG_X86_64)]
module! {
    type: RvmmModule,
    name: "rvmm",
    authors: ["rvmm developers"],
    description: "Hypervisor with KVM's interface",
    license: "GPL",
    params: {
        check_entry: u8 {
            default: 0,
            description: "1: re-run the manual's entry checks in software before every entry",
        },
        enable_apicv: u8 {
            default: 2,
            description: "let the processor virtualise local APICs (VMX): 0 no, 1 where it can, 2 not in an emulator",
        },
        pml: bool {
            default: true,
            description: "let the processor log writes to guest memory for user space (VMX, where it can)",
        },
        allow_unsafe_interrupts: u8 {
            default: 0,
            description: "1: assign devices also where no IOMMU keeps them from raising any interrupt of the host",
        },
        halt_poll_ns: u32 {
            default: 200_000,
            description: "longest time that a halted vCPU polls before it sleeps; 0: none polls",
        },
        halt_poll_ns_grow: u32 {
            default: 2,
            description: "factor by which polls of halted vCPUs get longer",
        },
        halt_poll_ns_grow_start: u32 {
            default: 10_000,
            description: "shortest time that a halted vCPU polls",
        },
        halt_poll_ns_shrink: u32 {
            default: 2,
            description: "divisor by which polls of halted vCPUs get shorter; 0: there are none at once",
        },
        eager_page_split: bool {
            default: true,
            description: "Y: huge pages are split when the log of their writes begins; N: at the first write to each",
        },
        ignore_msrs: bool {
            default: false,
            description: "Y: MSRs that are not there read as 0 and may be written, by guests and by user space",
        },
        nx_huge_pages: u8 {
            default: 2,
            description: "guests' huge pages are for data alone: 0 no, 1 yes, 2 where code in one endangers the host",
        },
        nx_huge_pages_recovery_period_ms: u32 {
            default: 0,
            description: "milliseconds between rounds that join huge pages split for code; 0: an hour by the ratio",
        },
        nx_huge_pages_recovery_ratio: u32 {
            default: 60,
            description: "each round joins one of so many; 0: there are none",
        },
        report_ignored_msrs: bool {
            default: true,
            description: "the log says what ignore_msrs has let pass",
        },
        oracle: bool {
            default: false,
            description: "Y: nested page tables are compared with the slots after each ioctl; slow, for tests",
        },
        kvm_node: u8 {
            default: 0,
            description: "1: also provide /dev/kvm, for programs that cannot be told another path",
        },
    },
}

/// CPUs come and go.
struct Hotplug;

impl CpuHotplug for Hotplug {
    fn online(&self, _cpu: u32) -> Result {
        load::cpu_up()
    }

    fn offline(&self, _cpu: u32) {
        load::cpu_down();
    }
}

/// Suspend, resume, reboot. At a suspend only the boot CPU is left, with interrupts off; the others went through
/// [`Hotplug`].
struct Power;

impl SyscoreOps for Power {
    fn suspend(&self) -> Result {
        load::suspend();
        Ok(())
    }

    fn resume(&self) {
        if load::resume().is_err() {
            pr_err!("virtualisation could not be switched on after resume; guests will not run\n");
        }
    }

    fn shutdown(&self) {
        load::shutdown();
    }
}

/// Everything that lives as long as the module. Dropped from first to last.
struct RvmmModule {
    _kvm_node: Option<Pin<KBox<MiscDeviceRegistration<KvmNode>>>>,
    _device: Pin<KBox<MiscDeviceRegistration<RvmmDevice>>>,
    #[cfg(CONFIG_X86_64)]
    _assign: Option<linux::global::Owner>,
    _power: syscore::Registration<Power>,
    _hotplug: cpuhp::State<Hotplug>,
    /// What VMs and vCPUs find, and CPUs that come and go, so it is last.
    _state: load::State,
    /// Of VMs that are gone.
    _freed: FreedPages,
}

impl kernel::Module for RvmmModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let state = load::init()?;
        let hotplug = cpuhp::State::register(c"virt/rvmm:online", Hotplug, true)?;
        let power = syscore::Registration::register(Power)?;
        let device = KBox::pin_init(
            MiscDeviceRegistration::register(device::options()),
            GFP_KERNEL,
        )?;
        let kvm_node = if module_parameters::kvm_node.value() != 0 {
            Some(KBox::pin_init(device::register_kvm_node(), GFP_KERNEL)?)
        } else {
            None
        };
        #[cfg(CONFIG_X86_64)]
        let assign = assign::init(_module);
        // From here on nothing fails: a VM would outlive a module that does not come to be.
        device::set_ready();
        load::announce();
        Ok(Self {
            _kvm_node: kvm_node,
            _device: device,
            #[cfg(CONFIG_X86_64)]
            _assign: assign,
            _power: power,
            _hotplug: hotplug,
            _state: state,
            _freed: FreedPages,
        })
    }
}
