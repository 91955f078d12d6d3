// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm report`: one file about this machine and how rvmm does on it, for somebody to send back.
//!
//! What may crash comes last, and each part is on the disk before the next one begins.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::bench;
use crate::status::Status;

/// Options of `rvmm report`.
#[derive(clap::Args)]
pub struct Args {
    /// File to write; - is the standard output.
    #[arg(short, long, value_name = "FILE", default_value = "rvmm-report.txt")]
    output: PathBuf,
    /// Directory of the selftests' programs, which are run; else the one that is next to this program, if there is one.
    #[arg(long, value_name = "DIR")]
    selftests: Option<PathBuf>,
    /// Device nodes to measure; those that do not exist are passed over.
    #[arg(
        long,
        value_name = "NODE,...",
        value_delimiter = ',',
        default_value = "/dev/kvm,/dev/rvmm"
    )]
    devices: Vec<PathBuf>,
    /// Rounds of the benchmark.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    rounds: u32,
    /// Only these rows of it.
    #[arg(long, value_name = "ROW,...", value_delimiter = ',')]
    rows: Vec<String>,
}

/// The head of the file.
const HEAD: &str = "\
# rvmm report, format 1: sections in brackets, `name: value` or a command's own output below.
# In it: the machine's and firmware's names, the processor with its features and microcode, the kernel's version and
# command line, its mitigations, the parameters of the modules rvmm, kvm, kvm_intel and kvm_amd, the output of
# `rvmm check` and `rvmm check --root`, the selftests' results, and ticks per operation on the devices measured.
# Nothing else: no serial numbers, no names of hosts or users, no addresses. Of words of the command line that name
# disks or addresses the value is left out. Read it before you send it.
";

/// What is told of the machine; the folder has serial numbers too.
const DMI: &[&str] = &[
    "sys_vendor",
    "product_name",
    "product_version",
    "board_vendor",
    "board_name",
    "bios_vendor",
    "bios_version",
    "bios_date",
];

/// What is told of /proc/cpuinfo's first processor.
const CPU: &[&str] = &[
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "microcode",
    "flags",
    "vmx flags",
    "bugs",
    "address sizes",
];

/// Beginnings of words of the command line whose values are nobody's business.
const PRIVATE: &[&str] = &[
    "root=",
    "resume",
    "rd.",
    "crypt",
    "ip=",
    "nfs",
    "BOOT_IMAGE=",
    "initrd=",
    "systemd.",
    "netconsole",
    "luks",
];

/// Runs the command.
pub fn main(args: &Args) -> Status {
    match write(args) {
        Ok(()) => Status::Done,
        Err(error) => {
            eprintln!("rvmm: {error:#}");
            Status::Other
        }
    }
}

/// The file.
struct Out(Box<dyn Write>, Option<File>);

impl Out {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self(Box::new(std::io::stdout()), None));
        }
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let to_sync = file.try_clone()?;
        Ok(Self(Box::new(file), Some(to_sync)))
    }

    /// Appends `text`, and has it on the disk.
    fn put(&mut self, text: &str) -> anyhow::Result<()> {
        self.0.write_all(text.as_bytes())?;
        self.0.flush()?;
        if let Some(file) = &self.1 {
            file.sync_data()?;
        }
        Ok(())
    }

    fn section(&mut self, name: &str) -> anyhow::Result<()> {
        self.put(&format!("\n[{name}]\n"))
    }
}

fn write(args: &Args) -> anyhow::Result<()> {
    let mut out = Out::open(&args.output)?;
    out.put(HEAD)?;
    out.section("machine")?;
    for name in DMI {
        out.put(&value(name, &Path::new("/sys/class/dmi/id").join(name)))?;
    }
    out.section("cpu")?;
    out.put(&cpu(&read(Path::new("/proc/cpuinfo"))))?;
    for name in ["online", "smt/active"] {
        out.put(&value(
            name,
            &Path::new("/sys/devices/system/cpu").join(name),
        ))?;
    }
    out.section("kernel")?;
    for name in ["osrelease", "version", "tainted"] {
        out.put(&value(name, &Path::new("/proc/sys/kernel").join(name)))?;
    }
    let words = public(&read(Path::new("/proc/cmdline")));
    out.put(&format!("cmdline: {words}\n"))?;
    out.section("vulnerabilities")?;
    out.put(&folder(Path::new(
        "/sys/devices/system/cpu/vulnerabilities",
    )))?;
    for module in ["rvmm", "kvm", "kvm_intel", "kvm_amd"] {
        let path = Path::new("/sys/module").join(module);
        if path.exists() {
            out.section(&format!("module {module}"))?;
            out.put(&value("srcversion", &path.join("srcversion")))?;
            out.put(&folder(&path.join("parameters")))?;
        }
    }
    let me = std::env::current_exe().context("cannot find myself")?;
    out.section("check")?;
    out.put(&output(Command::new(&me).arg("check")))?;
    out.section("check --root")?;
    out.put(&output(Command::new(&me).args(["check", "--root"])))?;
    for device in args.devices.iter().filter(|device| device.exists()) {
        out.section(&format!("bench {}", device.display()))?;
        out.put(&benchmark(&me, device, args))?;
    }
    let beside = me.parent().map(|folder| folder.join("selftests"));
    let folder = args.selftests.clone().or(beside.filter(|f| f.is_dir()));
    if let Some(folder) = folder {
        out.section("selftests")?;
        for program in programs(&folder)? {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            // Should it be the machine's last word, the reader knows whose it was.
            out.put(&format!("# {name}\n"))?;
            out.put(&results(&name, &output(&mut Command::new(&program))))?;
        }
    }
    out.put("\n[end]\n")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A line about a small file, if it can be read.
fn value(name: &str, path: &Path) -> String {
    fs::read_to_string(path).map_or(String::new(), |text| format!("{name}: {}\n", text.trim()))
}

/// A line about each small file of a folder.
fn folder(path: &Path) -> String {
    let mut paths: Vec<_> = fs::read_dir(path)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    paths.sort();
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    paths.iter().map(|path| value(&name(path), path)).collect()
}

/// The first processor's lines.
fn cpu(cpuinfo: &str) -> String {
    let mut text = String::new();
    for line in cpuinfo.lines().take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':') {
            if CPU.contains(&name.trim()) {
                text.push_str(&format!("{}: {}\n", name.trim(), value.trim()));
            }
        }
    }
    text
}

/// The command line without what is private.
fn public(cmdline: &str) -> String {
    let words = cmdline.split_whitespace().map(|word| {
        let private = PRIVATE.iter().any(|start| word.starts_with(start));
        match word.split_once('=') {
            Some((name, _)) if private => format!("{name}=..."),
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// What a command says, and how it ends.
fn output(command: &mut Command) -> String {
    match command.stdin(Stdio::null()).output() {
        Ok(done) => {
            let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&done.stderr));
            if !done.status.success() {
                text.push_str(&format!("ended with {}\n", done.status));
            }
            text
        }
        Err(error) => format!("cannot be run: {error}\n"),
    }
}

/// The programs of a folder, in the order of their names.
fn programs(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
                && path.extension().is_none()
        })
        .collect();
    found.sort();
    Ok(found)
}

/// What a program of KTAP has found: its counts, and the lines of what failed or was skipped.
fn results(name: &str, ktap: &str) -> String {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut told = String::new();
    for line in ktap.lines() {
        if line.starts_with("not ok ") {
            failed += 1;
        } else if line.starts_with("ok ") && line.contains("# SKIP") {
            skipped += 1;
        } else if line.starts_with("ok ") {
            passed += 1;
            continue;
        } else if !line.starts_with("ended with ") && !line.starts_with("cannot be run") {
            continue;
        }
        told.push_str(&format!("{name}: {line}\n"));
    }
    format!("{name}: {passed} passed, {failed} failed, {skipped} skipped\n{told}")
}

/// Rounds of `rvmm bench`: of each row's means the least, the middle and the greatest.
fn benchmark(me: &Path, device: &Path, args: &Args) -> String {
    let mut means: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut told = String::new();
    for _ in 0..args.rounds {
        let mut command = Command::new(me);
        command.args(["bench", "--json", "--device"]).arg(device);
        if !args.rows.is_empty() {
            command.arg("--rows").arg(args.rows.join(","));
        }
        let said = output(&mut command);
        match bench::means(&said) {
            Some(rows) => rows
                .into_iter()
                .for_each(|(row, mean)| means.entry(row).or_default().push(mean)),
            None => told.push_str(&said),
        }
    }
    let mut text = format!(
        "{:<16} {:>10} {:>10} {:>10}  ticks, means of {} rounds\n",
        "row", "minimum", "median", "maximum", args.rounds
    );
    for (row, mut of) in means {
        of.sort_unstable();
        if let (Some(min), Some(median), Some(max)) = (of.first(), of.get(of.len() / 2), of.last())
        {
            text.push_str(&format!("{row:<16} {min:>10} {median:>10} {max:>10}\n"));
        }
    }
    text + &told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_words_lose_their_values() {
        let text =
            "BOOT_IMAGE=/vmlinuz root=UUID=1-2 ro quiet mitigations=off rd.luks.uuid=3 ip=10.0.0.1";
        assert_eq!(
            public(text),
            "BOOT_IMAGE=... root=... ro quiet mitigations=off rd.luks.uuid=... ip=..."
        );
    }

    #[test]
    fn first_processor_only() {
        let text =
            "processor\t: 0\nmodel name\t: X\nbugs\t\t: a b\nserial\t: 7\n\nmodel name\t: Y\n";
        assert_eq!(cpu(text), "model name: X\nbugs: a b\n");
    }

    #[test]
    fn ktap_is_counted() {
        let ktap = "KTAP version 1\n1..3\n# a\nok 1 a\nnot ok 2 b\nok 3 c # SKIP no such thing\n";
        let text = results("p", ktap);
        assert!(text.starts_with("p: 1 passed, 1 failed, 1 skipped\n"));
        assert!(text.contains("p: not ok 2 b\n") && text.contains("no such thing"));
        assert!(!text.contains("ok 1 a"));
        assert!(results("q", "ended with signal: 9\n").contains("q: ended with signal: 9"));
    }
}
