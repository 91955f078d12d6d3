// SPDX-License-Identifier: GPL-2.0
//! Tables are looked into by numbers from outside with the index masked (`src/nospec.rs`).

mod tree;

use std::fs;
use tree::{files, repository};

/// Look-ups by a converted number that need no mask: file, what is looked into, and why.
const EXEMPT: &[(&str, &str, &str)] = &[
    (
        "src/x86/vcpu/abi/regs.rs",
        "bitmap.get_mut(usize::from(n >> 6))",
        "bits 7:6 of a byte, four words",
    ),
    (
        "src/x86/cpu/xsave.rs",
        "self.components.get_mut(component as usize)",
        "the host's CPUID",
    ),
    (
        "src/mem/removing.rs",
        "leaf.level as usize",
        "the level of a walk, 1 to 3 for leaves",
    ),
    (
        "src/x86/hyperv/vcpu.rs",
        "held.get_mut(usize::from(vector >> 5))",
        "bits 7:5 of a byte, eight words",
    ),
    (
        "src/x86/hyperv/vcpu.rs",
        "host_timers.get(n as usize)",
        "a loop's own counter",
    ),
    (
        "src/x86/emul/replay.rs",
        "self.posted.trailing_zeros()",
        "a bit that is set by the length of the log",
    ),
    (
        "src/abi/stats.rs",
        "",
        "classes of exits, counters, and the logarithm of a duration",
    ),
];

/// Whether the index in `line` is converted from another type, as what guests and user space choose is. Those that
/// [`number!`] makes are masked when they are made; ranges cut a buffer, not a table.
fn converts(line: &str) -> bool {
    ["get(", "get_mut("]
        .iter()
        .filter_map(|call| line.split_once(&format!(".{call}")))
        .map(|(_, index)| index)
        .any(|index| {
            let converted = ["as usize", "usize::from(", "usize::try_from("];
            converted.iter().any(|c| index.contains(c))
                && !index.contains("..")
                && !["pin", "irq"]
                    .iter()
                    .any(|n| index.starts_with(&format!("{n}.number() as usize")))
        })
}

#[test]
fn outside_numbers_are_masked() {
    let (mut unmasked, mut masked) = (Vec::new(), 0);
    for file in files("src") {
        let text = fs::read_to_string(repository().join(&file)).unwrap();
        masked += text.matches("nospec").count();
        for (n, line) in text.lines().enumerate() {
            let exempt = EXEMPT
                .iter()
                .any(|(f, what, _)| *f == file && line.contains(what));
            if converts(line) && !exempt {
                unmasked.push(format!("{file}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    assert!(unmasked.is_empty(), "get_nospec?\n{}", unmasked.join("\n"));
    assert!(masked > 30, "only {masked} uses found");
}

#[test]
fn exemptions_are_used() {
    for (file, what, _) in EXEMPT {
        let text = fs::read_to_string(repository().join(file)).unwrap();
        assert!(
            text.lines().any(|l| l.contains(what) && converts(l)),
            "{file}: {what}"
        );
    }
}
