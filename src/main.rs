// SPDX-License-Identifier: GPL-2.0
//! rvmm: a Type-2 hypervisor with KVM's interface.
//!
//! `dev`, `vm` and `vcpu` are the three kinds of file; `run` is the loop; `vmx` and `svm` are the vendors behind
//! `backend`; `mem`, `irq`, `cpu` and `emul` are what a guest sees. `linux` wraps kernel interfaces.

#[path = "../rust/mod.rs"]
mod linux;

mod assign;
// The vendors state more than the core acts on.
#[allow(dead_code)]
#[path = "x86/vendor/mod.rs"]
mod backend;
#[path = "x86/enabled.rs"]
mod caps;
#[path = "x86/pv/clock.rs"]
mod clock;
#[path = "x86/vcpu/debug.rs"]
mod debug;
#[path = "kvm/device.rs"]
mod dev;
#[path = "x86/vcpu/emulate.rs"]
mod emulate;
#[allow(dead_code)]
#[path = "x86/exit.rs"]
mod exit;
#[path = "x86/vendor/choose.rs"]
mod hw;
#[path = "kvm/stats.rs"]
mod ledger;
#[path = "x86/mitigate.rs"]
mod mitigate;
#[path = "x86/run/mod.rs"]
mod run;
#[path = "x86/vcpu/state.rs"]
mod state;
#[path = "x86/svm/mod.rs"]
mod svm;
#[path = "abi/uapi.rs"]
mod uapi;
#[path = "kvm/vcpu.rs"]
mod vcpu;
#[path = "bus/set.rs"]
mod vcpu_set;
#[path = "x86/vcpu/abi.rs"]
mod vcpu_state;
#[path = "kvm/vm.rs"]
mod vm;
#[path = "x86/vmx/mod.rs"]
mod vmx;

// Shared with the host build of the pure logic, which uses more of it and sees it from another crate.
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "x86/cpu/mod.rs"]
mod cpu;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "x86/emul/mod.rs"]
mod emul;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "x86/irqchip/mod.rs"]
mod irq;
#[allow(dead_code, unreachable_pub)]
mod mem;
#[allow(dead_code, unreachable_pub)]
#[path = "abi/stats.rs"]
mod stats;

use dev::{KvmNode, RvmmDevice};
use kernel::miscdevice::MiscDeviceRegistration;
use kernel::prelude::*;
use linux::cpuhp::{self, CpuHotplug};
use linux::syscore::{self, SyscoreOps};

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
            description: "let the processor virtualise local APICs where it can (VMX): 0 no, 1 yes, 2 unless it is an emulator",
        },
        allow_unsafe_interrupts: u8 {
            default: 0,
            description: "1: assign devices also where no IOMMU keeps them from raising any interrupt of the host",
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
        hw::cpu_up()
    }

    fn offline(&self, _cpu: u32) {
        hw::cpu_down();
    }
}

/// Suspend, resume, reboot. At a suspend only the boot CPU is left, with interrupts off; the others went through [`Hotplug`].
/// At a reboot they are still online and keep SVME until INIT or the next kernel resets it: that harms nobody, since
/// GIF is set outside stays and the reboot stops them there.
struct Power;

impl SyscoreOps for Power {
    fn suspend(&self) -> Result {
        hw::cpu_down();
        Ok(())
    }

    fn resume(&self) {
        if hw::cpu_up().is_err() {
            pr_err!("virtualisation could not be switched on after resume; guests will not run\n");
        }
    }

    fn shutdown(&self) {
        hw::cpu_down();
    }
}

/// The vendor's state; dropped after everything that uses it.
struct HwOwner;

impl Drop for HwOwner {
    fn drop(&mut self) {
        linux::mmu_notifier::synchronize();
        // SAFETY: The module's fields are dropped in order: devices are gone, so no VM is left (each pins the module),
        // and the hotplug state's removal has run `cpu_down` on every CPU.
        unsafe {
            dev::exit();
            mitigate::exit();
            hw::exit();
        }
    }
}

/// Everything that lives as long as the module. Dropped from first to last.
struct RvmmModule {
    _kvm_node: Option<Pin<KBox<MiscDeviceRegistration<KvmNode>>>>,
    _device: Pin<KBox<MiscDeviceRegistration<RvmmDevice>>>,
    _assign: assign::Owner,
    _power: syscore::Registration<Power>,
    _hotplug: cpuhp::State<Hotplug>,
    _hw: HwOwner,
}

impl kernel::Module for RvmmModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let caps = hw::probe()?;
        let hw = HwOwner;
        mitigate::init()?;
        dev::init()?;
        let hotplug = cpuhp::State::register(c"virt/rvmm:online", Hotplug, true)?;
        let power = syscore::Registration::register(Power)?;
        let device = KBox::pin_init(MiscDeviceRegistration::register(dev::options()), GFP_KERNEL)?;
        let kvm_node = if module_parameters::kvm_node.value() != 0 {
            Some(KBox::pin_init(dev::register_kvm_node(), GFP_KERNEL)?)
        } else {
            None
        };
        let assign = assign::init(module);
        // From here on nothing fails: a VM would outlive a module that does not come to be.
        dev::set_ready();
        pr_info!(
            "ready on {}, nested pages of {}\n",
            caps.name,
            if caps.nested_2m {
                "4 KiB and 2 MiB"
            } else {
                "4 KiB"
            }
        );
        Ok(Self {
            _kvm_node: kvm_node,
            _device: device,
            _assign: assign,
            _power: power,
            _hotplug: hotplug,
            _hw: hw,
        })
    }
}

/// `enable_apicv`: whether the processor virtualises local APICs; `None` where that depends on the processor.
pub(crate) fn enable_apicv() -> Option<bool> {
    match module_parameters::enable_apicv.value() {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Whether `check_entry` is on.
pub(crate) fn check_entry() -> bool {
    module_parameters::check_entry.value() != 0
}

/// Whether devices may be assigned without interrupt remapping.
pub(crate) fn allow_unsafe_interrupts() -> bool {
    module_parameters::allow_unsafe_interrupts.value() != 0
}
