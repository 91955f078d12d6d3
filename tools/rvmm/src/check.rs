// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm check`: whether this machine can run rvmm, and what is missing.

use std::arch::x86_64::__cpuid_count;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rvmm_vm::{vm, DEFAULT_DEVICE};

use crate::costs;
use crate::status::Status;

/// The kernel that rvmm is tested with, as `uname -r` says it.
const TESTED_KERNEL: &str = "7.3.4+deb13-amd64";

/// Options of `rvmm check`.
#[derive(clap::Args)]
pub struct Args {
    /// Hypervisor's device node.
    #[arg(long, value_name = "NODE", default_value = DEFAULT_DEVICE)]
    device: PathBuf,
    /// Measure instead what the instructions cost of which entering a guest is made (root only).
    #[arg(long)]
    root: bool,
}

/// What a look at one thing found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All is as it should be.
    Good,
    /// Works without, or cannot be known from here.
    Note,
    /// rvmm does not run like this.
    Missing,
}

/// One line of the screen.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    verdict: Verdict,
    topic: &'static str,
    finding: String,
    remedy: Option<String>,
}

fn line(verdict: Verdict, topic: &'static str, finding: impl Into<String>) -> Line {
    Line {
        verdict,
        topic,
        finding: finding.into(),
        remedy: None,
    }
}

impl Line {
    fn remedy(mut self, text: impl Into<String>) -> Self {
        self.remedy = Some(text.into());
        self
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Good => "OK",
            Verdict::Note => "note",
            Verdict::Missing => "MISSING",
        };
        write!(f, "{verdict:<8} {:<15} {}", self.topic, self.finding)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "\n{:<24} -> {remedy}", "")?;
        }
        Ok(())
    }
}

/// Runs the command.
pub fn main(args: &Args) -> Status {
    if args.root {
        return costs::main(&args.device);
    }
    let cpu = Cpu::read();
    let mut lines = vec![virtualization(&cpu)];
    lines.extend(features(&cpu, &read_msr));
    lines.extend(fred(&read("/proc/cpuinfo")));
    lines.extend(kernel(
        &read("/proc/sys/kernel/osrelease"),
        kernel_config().as_deref(),
    ));
    lines.extend(lockdown(
        &read("/sys/kernel/security/lockdown"),
        &read("/sys/module/module/parameters/sig_enforce"),
    ));
    lines.extend(other_hypervisors(&cpu, &read("/proc/modules")));
    if args.device == Path::new(DEFAULT_DEVICE) {
        lines.push(module());
    }
    lines.push(node(&args.device));
    lines.extend(root(&args.device));
    lines.push(iommu());

    let missing = lines
        .iter()
        .filter(|line| line.verdict == Verdict::Missing)
        .count();
    for line in &lines {
        println!("{line}");
    }
    if missing == 0 {
        println!("This machine can run rvmm.");
        Status::Done
    } else {
        println!("Not ready: {missing} missing.");
        Status::Other
    }
}

/// A small file's text without the end of its line; empty if it cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}

fn read_msr(index: u32) -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/cpu/0/msr")?.read_exact_at(&mut bytes, index.into())?;
    Ok(u64::from_le_bytes(bytes))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
    Other,
}

/// What CPUID says without any privilege.
#[derive(Clone, Debug)]
struct Cpu {
    vendor: Vendor,
    name: String,
    /// Itself virtual.
    guest: bool,
    vmx: bool,
    svm: bool,
    /// Leaf 0x8000000a EDX, zero without SVM.
    svm_features: u32,
}

impl Cpu {
    fn read() -> Self {
        let leaf = |function| {
            // SAFETY: every x86-64 CPU has CPUID; leaves above the highest return noise, which the
            // callers below exclude by asking for the highest first.
            #[allow(unused_unsafe)]
            unsafe {
                __cpuid_count(function, 0)
            }
        };
        let zero = leaf(0);
        let bytes = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let vendor = match bytes(&[zero.ebx, zero.edx, zero.ecx]).as_slice() {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        };
        let highest = leaf(0x8000_0000).eax;
        let name = if highest >= 0x8000_0004 {
            let words: Vec<u32> = (0x8000_0002..=0x8000_0004u32)
                .map(leaf)
                .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
                .collect();
            String::from_utf8_lossy(&bytes(&words))
                .trim_matches(['\0', ' '])
                .to_owned()
        } else {
            String::new()
        };
        let one = leaf(1);
        let svm = highest >= 0x8000_0001 && (leaf(0x8000_0001).ecx >> 2) & 1 == 1;
        Self {
            vendor,
            name,
            guest: (one.ecx >> 31) & 1 == 1,
            vmx: (one.ecx >> 5) & 1 == 1,
            svm,
            svm_features: if svm && highest >= 0x8000_000a {
                leaf(0x8000_000a).edx
            } else {
                0
            },
        }
    }
}

fn virtualization(cpu: &Cpu) -> Line {
    const TOPIC: &str = "CPU";
    let name = &cpu.name;
    match (cpu.vendor, cpu.vmx, cpu.svm) {
        (Vendor::Other, ..) => line(
            Verdict::Missing,
            TOPIC,
            format!("{name}: an unknown vendor"),
        )
        .remedy("rvmm runs on CPUs by Intel and AMD"),
        (Vendor::Intel, true, _) => line(Verdict::Good, TOPIC, format!("{name}: VT-x")),
        (Vendor::Amd, _, true) => line(Verdict::Good, TOPIC, format!("{name}: AMD-V")),
        (vendor, ..) => {
            let what = if vendor == Vendor::Intel {
                "VT-x"
            } else {
                "AMD-V"
            };
            line(Verdict::Missing, TOPIC, format!("{name}: no {what}")).remedy(if cpu.guest {
                "this is a virtual machine: switch on nested virtualisation in its hypervisor"
            } else {
                "switch on virtualisation (VT-x, AMD-V, SVM mode) in the firmware's set-up"
            })
        }
    }
}

/// The parts of VT-x or AMD-V that rvmm needs, as far as they can be read from here.
fn features(cpu: &Cpu, msr: &dyn Fn(u32) -> io::Result<u64>) -> Vec<Line> {
    const TOPIC: &str = "CPU features";
    let need = |has: bool, what: &str| {
        if has {
            line(Verdict::Good, TOPIC, what)
        } else {
            line(Verdict::Missing, TOPIC, format!("no {what}")).remedy("rvmm needs a newer CPU")
        }
    };
    if cpu.svm {
        const NESTED_PAGING: u32 = 1;
        const VM_CR: u32 = 0xc001_0114;
        const SVMDIS: u64 = 1 << 4;
        let mut lines = vec![need(cpu.svm_features & NESTED_PAGING != 0, "nested paging")];
        if matches!(msr(VM_CR), Ok(value) if value & SVMDIS != 0) {
            lines.push(
                line(Verdict::Missing, TOPIC, "SVM is disabled (VM_CR.SVMDIS)")
                    .remedy("switch on SVM mode in the firmware's set-up"),
            );
        }
        return lines;
    }
    if !cpu.vmx {
        return Vec::new();
    }
    const FEATURE_CONTROL: u32 = 0x3a;
    const LOCKED: u64 = 1;
    const VMX_OUTSIDE_SMX: u64 = 1 << 2;
    const SECONDARY_CONTROLS: u32 = 0x48b;
    let (Ok(control), Ok(controls)) = (msr(FEATURE_CONTROL), msr(SECONDARY_CONTROLS)) else {
        return vec![line(
            Verdict::Note,
            TOPIC,
            "EPT, unrestricted guest: only the module can tell (or root, after `modprobe msr`)",
        )];
    };
    let mut lines = Vec::new();
    if control & LOCKED != 0 && control & VMX_OUTSIDE_SMX == 0 {
        lines.push(
            line(
                Verdict::Missing,
                TOPIC,
                "VT-x is locked off (IA32_FEATURE_CONTROL)",
            )
            .remedy("switch on VT-x in the firmware's set-up"),
        );
    }
    // SDM 3D A.3.3: the upper half holds the controls that may be one.
    let allowed = controls >> 32;
    lines.push(need((allowed >> 1) & 1 == 1, "EPT"));
    lines.push(need((allowed >> 7) & 1 == 1, "unrestricted guest"));
    lines
}

fn fred(cpuinfo: &str) -> Option<Line> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    flags
        .split_whitespace()
        .any(|flag| flag == "fred")
        .then(|| {
            line(
                Verdict::Missing,
                "CPU features",
                "the host uses FRED event delivery",
            )
            .remedy("boot the host with fred=off")
        })
}

/// The running kernel's configuration, if it is kept anywhere.
fn kernel_config() -> Option<String> {
    let release = read("/proc/sys/kernel/osrelease");
    let kept = [
        format!("/boot/config-{release}"),
        format!("/lib/modules/{release}/config"),
        format!("/usr/lib/modules/{release}/config"),
    ];
    if let Some(text) = kept.iter().find_map(|path| fs::read_to_string(path).ok()) {
        return Some(text);
    }
    let unpacked = std::process::Command::new("zcat")
        .arg("/proc/config.gz")
        .output()
        .ok()?;
    unpacked
        .status
        .success()
        .then(|| String::from_utf8_lossy(&unpacked.stdout).into_owned())
}

fn kernel(release: &str, config: Option<&str>) -> Vec<Line> {
    let mut lines = vec![if release == TESTED_KERNEL {
        line(Verdict::Good, "kernel", release)
    } else {
        line(
            Verdict::Note,
            "kernel",
            format!("{release}; tested is {TESTED_KERNEL}"),
        )
        .remedy("build the module against this kernel: `make modules` says whether it can be")
    }];
    lines.push(
        match config.map(|text| text.lines().any(|line| line == "CONFIG_RUST=y")) {
            Some(true) => line(Verdict::Good, "CONFIG_RUST", "set"),
            Some(false) => line(Verdict::Missing, "CONFIG_RUST", "not set in this kernel").remedy(
                "use a kernel with Rust support, such as Debian's linux-image-amd64 from backports",
            ),
            None => line(
                Verdict::Note,
                "CONFIG_RUST",
                "this kernel's configuration is not kept here",
            ),
        },
    );
    lines
}

fn lockdown(lockdown: &str, enforced: &str) -> Option<Line> {
    let locked = lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]");
    (locked || enforced == "Y").then(|| {
        line(
            Verdict::Missing,
            "module signing",
            "this kernel takes signed modules only",
        )
        .remedy("sign rvmm.ko with an enrolled key (mokutil), or switch off Secure Boot")
    })
}

fn other_hypervisors(cpu: &Cpu, modules: &str) -> Option<Line> {
    const TOPIC: &str = "stock KVM";
    let used = |name: &str| {
        let found = modules
            .lines()
            .find(|line| line.split(' ').next() == Some(name))?;
        found.split(' ').nth(2)?.parse::<u32>().ok()
    };
    if cpu.vendor == Vendor::Amd {
        let users = used("kvm_amd")?;
        let (verdict, finding) = if users == 0 {
            (
                Verdict::Note,
                "kvm_amd is loaded; rvmm refuses to start while it uses SVM",
            )
        } else {
            (
                Verdict::Missing,
                "kvm_amd is in use: rvmm refuses to share SVM with it",
            )
        };
        return Some(line(verdict, TOPIC, finding).remedy("sudo rmmod kvm_amd"));
    }
    used("kvm_intel")?;
    Some(line(
        Verdict::Good,
        TOPIC,
        "kvm_intel is loaded; rvmm shares VMX with it",
    ))
}

fn module() -> Line {
    if Path::new("/sys/module/rvmm").exists() {
        let users = read("/sys/module/rvmm/refcnt");
        line(
            Verdict::Good,
            "module",
            format!("rvmm is loaded, {users} users"),
        )
    } else {
        line(Verdict::Missing, "module", "rvmm is not loaded").remedy(
            "make modules && sudo insmod rvmm.ko; `sudo dmesg | tail` says why if it refuses",
        )
    }
}

fn node(path: &Path) -> Line {
    const TOPIC: &str = "device";
    let shown = path.display();
    if let Ok(found) = fs::metadata(path) {
        if !found.file_type().is_char_device() {
            return line(Verdict::Missing, TOPIC, format!("{shown} is not a device"))
                .remedy(format!("sudo rm {shown}, then load the module again"));
        }
    }
    match vm::open(path) {
        Ok(kvm) => {
            let mode = fs::metadata(path).map_or(0, |found| found.mode() & 0o777);
            let most = kvm.get_max_vcpus();
            line(
                Verdict::Good,
                TOPIC,
                format!("{shown}, mode {mode:04o}, up to {most} CPUs"),
            )
        }
        Err(error) => {
            let found = line(Verdict::Missing, TOPIC, error.to_string());
            match error.remedy() {
                Some(remedy) => found.remedy(remedy),
                None => found,
            }
        }
    }
}

/// How a processor comes into VMX root operation, which the module alone knows.
fn root(device: &Path) -> Option<Line> {
    /// `RVMM_CAP_ROOT` of `rvmm.h`.
    const RVMM_CAP_ROOT: u64 = 0x5256_0002;
    root_line(vm::open(device).ok()?.check_extension_raw(RVMM_CAP_ROOT))
}

fn root_line(root: i32) -> Option<Line> {
    const TOPIC: &str = "VMX";
    match root {
        1 => Some(
            line(
                Verdict::Note,
                TOPIC,
                "rvmm's own: VMXON, VMCLEAR and VMXOFF for every turn of a guest, dearest in a virtual machine",
            )
            .remedy("sudo modprobe kvm_intel, then load rvmm again: shared VMX costs less"),
        ),
        2 => Some(
            line(
                Verdict::Note,
                TOPIC,
                "shared with a hypervisor that may switch it off: VMPTRLD and VMCLEAR for every turn of a guest",
            )
            .remedy("load rvmm after kvm_intel, and that without enable_virt_at_load=0"),
        ),
        3 => Some(line(
            Verdict::Good,
            TOPIC,
            "shared with kvm_intel, which rvmm keeps loaded: a vCPU stays in the processor between turns",
        )),
        _ => None,
    }
}

fn iommu() -> Line {
    let groups = fs::read_dir("/sys/kernel/iommu_groups").map_or(0, |entries| entries.count());
    if groups > 0 {
        line(Verdict::Good, "IOMMU", format!("{groups} groups"))
    } else {
        line(
            Verdict::Note,
            "IOMMU",
            "none active; needed only to give devices to guests",
        )
        .remedy("switch on VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(vendor: Vendor, vmx: bool, svm: bool) -> Cpu {
        Cpu {
            vendor,
            name: "CPU".into(),
            guest: false,
            vmx,
            svm,
            svm_features: 1,
        }
    }

    fn no_msr(_: u32) -> io::Result<u64> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    #[test]
    fn a_cpu_without_virtualisation() {
        let found = virtualization(&cpu(Vendor::Intel, false, false));
        assert_eq!(found.verdict, Verdict::Missing);
        assert!(found.remedy.unwrap().contains("firmware"));
        let guest = Cpu {
            guest: true,
            ..cpu(Vendor::Amd, false, false)
        };
        assert!(virtualization(&guest).remedy.unwrap().contains("nested"));
        assert_eq!(
            virtualization(&cpu(Vendor::Amd, false, true)).verdict,
            Verdict::Good
        );
    }

    #[test]
    fn vmx_features_by_msr() {
        let intel = cpu(Vendor::Intel, true, false);
        assert_eq!(features(&intel, &no_msr)[0].verdict, Verdict::Note);
        let full = |index| Ok(if index == 0x3a { 5 } else { 0x82 << 32 });
        assert!(features(&intel, &full)
            .iter()
            .all(|line| line.verdict == Verdict::Good));
        let off = |index| Ok(if index == 0x3a { 1 } else { 0x02 << 32 });
        let found = features(&intel, &off);
        assert_eq!(found[0].verdict, Verdict::Missing);
        assert_eq!(found[1].verdict, Verdict::Good);
        assert_eq!(found[2].finding, "no unrestricted guest");
    }

    #[test]
    fn svm_features_by_cpuid_and_msr() {
        let amd = cpu(Vendor::Amd, false, true);
        assert_eq!(features(&amd, &no_msr).len(), 1);
        let off = |_| Ok(1 << 4);
        assert_eq!(features(&amd, &off)[1].verdict, Verdict::Missing);
        let old = Cpu {
            svm_features: 0,
            ..amd
        };
        assert_eq!(features(&old, &no_msr)[0].verdict, Verdict::Missing);
    }

    #[test]
    fn kernels() {
        let found = kernel(TESTED_KERNEL, Some("# c\nCONFIG_RUST=y\n"));
        assert!(found.iter().all(|line| line.verdict == Verdict::Good));
        let found = kernel("6.12.0", Some("# CONFIG_RUST is not set\n"));
        assert_eq!(
            (found[0].verdict, found[1].verdict),
            (Verdict::Note, Verdict::Missing)
        );
        assert_eq!(kernel("6.12.0", None)[1].verdict, Verdict::Note);
    }

    #[test]
    fn stock_kvm() {
        let intel = cpu(Vendor::Intel, true, false);
        let amd = cpu(Vendor::Amd, false, true);
        let loaded = "kvm_amd 200 0 - Live 0\nkvm_intel 1 0 - Live 0\nkvm 3 2 kvm_amd, Live 0\n";
        assert_eq!(other_hypervisors(&amd, ""), None);
        assert_eq!(
            other_hypervisors(&amd, loaded).unwrap().verdict,
            Verdict::Note
        );
        let busy = loaded.replace("kvm_amd 200 0", "kvm_amd 200 4");
        assert_eq!(
            other_hypervisors(&amd, &busy).unwrap().verdict,
            Verdict::Missing
        );
        assert_eq!(
            other_hypervisors(&intel, loaded).unwrap().verdict,
            Verdict::Good
        );
    }

    #[test]
    fn roots() {
        let verdict = |root| root_line(root).map(|line| line.verdict);
        assert_eq!(verdict(0), None);
        assert_eq!(verdict(1), Some(Verdict::Note));
        assert_eq!(verdict(2), Some(Verdict::Note));
        assert_eq!(verdict(3), Some(Verdict::Good));
    }

    #[test]
    fn signing_and_fred() {
        assert_eq!(lockdown("[none] integrity confidentiality", "N"), None);
        assert!(lockdown("none [integrity] confidentiality", "N").is_some());
        assert!(lockdown("", "Y").is_some());
        assert_eq!(fred("flags\t\t: fpu vme\n"), None);
        assert!(fred("flags\t\t: fpu fred\n").is_some());
    }

    #[test]
    fn a_node_that_is_missing_or_no_device() {
        assert!(node(Path::new("/nonexistent/rvmm"))
            .remedy
            .unwrap()
            .contains("insmod"));
        assert_eq!(node(Path::new("/etc/passwd")).verdict, Verdict::Missing);
    }
}
