// SPDX-License-Identifier: GPL-2.0
//! rvmm: a Type-2 hypervisor with KVM's interface.
//!
//! Three storeys, and arrows between them that only go down. The face: `kvm`, the files and ioctls of user space, and
//! `assign`, devices handed to guests. Below it the architecture, `x86`. Below that the ground, which knows no
//! registers: `abi`, `mem` and `bus`. `linux` wraps kernel interfaces and knows nothing of hypervisors.

#[path = "../rust/mod.rs"]
mod linux;

// Files below are shared with the host build of the pure logic, which sees them from another crate.
#[allow(unreachable_pub)]
mod abi;
mod assign;
mod bus;
mod kvm;
#[allow(unreachable_pub)]
mod mem;
#[allow(unreachable_pub)]
mod nospec;
mod params;
#[allow(unreachable_pub)]
mod x86;

use kernel::miscdevice::MiscDeviceRegistration;
use kernel::prelude::*;
use kvm::device::{self, KvmNode, RvmmDevice};
use linux::cpuhp::{self, CpuHotplug};
use linux::global::Owner;
use linux::page::FreedPages;
use linux::syscore::{self, SyscoreOps};
use x86 as arch;
use x86::{async_pf_init, choose, cpu_model as model, host_tsc, mitigate};

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
        kvm_node: u8 {
            default: 0,
            description: "1: also provide /dev/kvm, for programs that cannot be told another path",
        },
    },
}

/// modprobe loads kvm_intel first, where there is one: in root operation that it keeps on, guests cost less than in our
/// own (`x86::vmx::root`). This is MODULE_SOFTDEP of `linux/module.h`.
#[link_section = ".modinfo"]
#[used]
static SOFT_DEPENDENCY: [u8; 23] = *b"softdep=pre: kvm_intel\0";

/// CPUs come and go.
struct Hotplug;

impl CpuHotplug for Hotplug {
    fn online(&self, _cpu: u32) -> Result {
        choose::cpu_up()
    }

    fn offline(&self, _cpu: u32) {
        choose::cpu_down();
    }
}

/// Suspend, resume, reboot. At a suspend only the boot CPU is left, with interrupts off; the others went through
/// [`Hotplug`]. At a reboot they are still online and keep SVME until INIT or the next kernel resets it: that harms
/// nobody, since GIF is set outside stays and the reboot stops them there.
struct Power;

impl SyscoreOps for Power {
    fn suspend(&self) -> Result {
        choose::cpu_down();
        host_tsc::suspend();
        Ok(())
    }

    fn resume(&self) {
        host_tsc::resume();
        if choose::cpu_up().is_err() {
            pr_err!("virtualisation could not be switched on after resume; guests will not run\n");
        }
    }

    fn shutdown(&self) {
        choose::shutdown();
    }
}

/// Everything that lives as long as the module. Dropped from first to last.
struct RvmmModule {
    _kvm_node: Option<Pin<KBox<MiscDeviceRegistration<KvmNode>>>>,
    _device: Pin<KBox<MiscDeviceRegistration<RvmmDevice>>>,
    _assign: Option<Owner>,
    _power: syscore::Registration<Power>,
    _hotplug: cpuhp::State<Hotplug>,
    /// What VMs and vCPUs find; the vendor's part also CPUs that come and go, so it is last.
    _state: [Owner; 4],
    /// Of VMs that are gone.
    _freed: FreedPages,
}

impl kernel::Module for RvmmModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let (caps, vendor) = choose::probe()?;
        let state = [model::init()?, mitigate::init()?, async_pf_init()?, vendor];
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
        let assign = assign::init(module);
        // From here on nothing fails: a VM would outlive a module that does not come to be.
        device::set_ready();
        pr_info!(
            "ready on {}, nested pages of {}\n",
            caps.name,
            match (caps.nested_2m, caps.nested_1g) {
                (false, _) => "4 KiB",
                (true, false) => "4 KiB and 2 MiB",
                (true, true) => "4 KiB, 2 MiB and 1 GiB",
            }
        );
        Ok(Self {
            _kvm_node: kvm_node,
            _device: device,
            _assign: assign,
            _power: power,
            _hotplug: hotplug,
            _state: state,
            _freed: FreedPages,
        })
    }
}
