// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What figures were taken on: processor, microcode, kernel, mitigations.

use std::collections::BTreeMap;
use std::fs;

/// Where the kernel says which holes the processor has, and what it does about them.
const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";

/// This machine, as far as the kernel tells.
pub fn of_host() -> BTreeMap<String, String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut all = BTreeMap::new();
    let mut put = |name: &str, value: Option<&str>| {
        if let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) {
            all.insert(name.to_owned(), value.to_owned());
        }
    };
    for (name, field) in [("processor", "model name"), ("microcode", "microcode")] {
        put(name, field_of(&cpuinfo, field));
    }
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    put("processors", Some(&count.to_string()));
    for (name, file) in [
        ("kernel", "/proc/sys/kernel/osrelease"),
        ("kernel build", "/proc/sys/kernel/version"),
        ("kernel command line", "/proc/cmdline"),
        (
            "clock source",
            "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        ),
        ("rvmm module", "/sys/module/rvmm/srcversion"),
    ] {
        put(name, fs::read_to_string(file).ok().as_deref());
    }
    put("launcher", Some(env!("CARGO_PKG_VERSION")));
    put("mitigations", Some(&mitigations()));
    all
}

/// The value of a field of the first processor.
fn field_of<'a>(cpuinfo: &'a str, field: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == field).then_some(value)
    })
}

fn mitigations() -> String {
    let mut found: Vec<String> = fs::read_dir(VULNERABILITIES)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let says = fs::read_to_string(entry.path()).ok()?;
            let says = says.trim();
            (says != "Not affected").then(|| format!("{name}: {says}"))
        })
        .collect();
    found.sort();
    if found.is_empty() {
        "none needed".into()
    } else {
        found.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_named() {
        assert!(of_host().contains_key("kernel"));
        let text = "processor\t: 0\nmodel name\t: A B\n";
        assert_eq!(field_of(text, "model name").map(str::trim), Some("A B"));
        assert_eq!(field_of(text, "microcode"), None);
    }
}
