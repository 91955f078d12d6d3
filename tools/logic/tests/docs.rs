// SPDX-License-Identifier: GPL-2.0
//! The documents against the source: every ioctl and capability is described, every link and make target exists, and
//! what `hacking.md` shows of the tree is there.

mod tree;

use std::collections::BTreeSet;
use std::fs;
use tree::{files, repository};

/// The documents: the README, SECURITY.md, and what is in docs/.
fn documents() -> Vec<String> {
    let mut documents = files("docs");
    documents.retain(|d| d.ends_with(".md"));
    documents.extend(["README.md", "SECURITY.md"].map(str::to_owned));
    assert!(documents.len() >= 8, "only {documents:?} found");
    documents
}

fn text(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn rust_files(folder: &str) -> impl Iterator<Item = String> {
    files(folder).into_iter().filter(|f| f.ends_with(".rs"))
}

/// The words of `text` that begin with `prefix` and go on in capitals, digits and underscores.
fn names(text: &str, prefix: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|w| w.starts_with(prefix) && w.len() > prefix.len())
        .filter(|w| !w.contains(|c: char| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

/// What stands in `text` behind the first `start`, up to `end` or to the end of it all.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text
        .split_once(start)
        .unwrap_or_else(|| panic!("no {start:?}"));
    rest.split(end).next().unwrap()
}

/// The files that have the numbers of ioctls.
fn uapi() -> String {
    rust_files("src/abi")
        .filter(|f| f.starts_with("src/abi/uapi"))
        .map(|f| text(&f))
        .collect()
}

/// `abi.md` without what it says is not there.
fn abi() -> String {
    let abi = text("docs/abi.md");
    abi.split("\n## Not there").next().unwrap().to_owned()
}

#[test]
fn every_ioctl_is_described() {
    let described = names(&abi(), "");
    let missing: Vec<_> = uapi()
        .lines()
        .filter_map(|l| {
            let (name, value) = l
                .trim()
                .strip_prefix("pub(crate) const ")?
                .split_once(": u32 =")?;
            (value.trim().starts_with("_IO") || value.trim().is_empty()).then(|| name.to_owned())
        })
        .filter(|name| !described.contains(name))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/abi.md says nothing about {missing:?}: add a row with errors and what differs from KVM"
    );
}

#[test]
fn capabilities_are_those_of_the_source() {
    let mut offered = BTreeSet::new();
    for file in rust_files("src/kvm") {
        for line in text(&file).lines() {
            let code = line.split("//").next().unwrap();
            offered.extend(names(code, "KVM_CAP_"));
            offered.extend(names(code, "RVMM_CAP_"));
        }
    }
    let abi = abi();
    let table = between(&abi, "\n## Capabilities", "\n## ");
    let described: BTreeSet<_> = names(table, "KVM_CAP_")
        .union(&names(table, "RVMM_CAP_"))
        .cloned()
        .collect();
    assert_eq!(
        offered, described,
        "the tables of src/kvm (left) and docs/abi.md (right) name other capabilities"
    );
}

#[test]
fn what_is_not_there_is_not_in_the_source() {
    let abi = text("docs/abi.md");
    let absent = abi.split("\n## Not there").nth(1).unwrap();
    let source = uapi();
    let known = names(&source, "KVM_");
    // Commands that exist on another file than the one meant.
    let elsewhere = ["KVM_GET_MSRS"];
    for name in names(absent, "KVM_") {
        assert!(
            !known.contains(&name) || elsewhere.contains(&name.as_str()),
            "docs/abi.md says that {name} is not there, but src/abi/uapi.rs has it"
        );
    }
}

#[test]
fn links_lead_somewhere() {
    for document in documents() {
        let folder = repository().join(&document).parent().unwrap().to_path_buf();
        for part in text(&document).split("](").skip(1) {
            let link = part.split(')').next().unwrap();
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let file = link.split('#').next().unwrap();
            assert!(
                folder.join(file).exists(),
                "{document} links to {file}, which does not exist"
            );
        }
    }
}

#[test]
fn make_targets_and_tools_exist() {
    let makefile = text("Makefile");
    let readme = text("README.md");
    for part in readme.split("make ").skip(1) {
        let target: String = part.chars().take_while(char::is_ascii_lowercase).collect();
        // Prose ("make it"), options and assignments are no targets; code is in backquotes or blocks.
        if target.is_empty()
            || !readme.contains(&format!("`make {target}"))
                && !readme.contains(&format!("sudo make {target}"))
        {
            continue;
        }
        let exists = makefile
            .lines()
            .any(|l| l.split(':').next().unwrap().split(' ').any(|w| w == target));
        assert!(
            exists,
            "README.md names `make {target}`, which the Makefile does not have"
        );
    }
    for document in documents() {
        let text = text(&document);
        for part in text.split('`').skip(1).step_by(2) {
            let word = part.split([' ', ':', '(', '{', ',']).next().unwrap();
            let ours = ["src/", "rust/", "tools/", "selftests/", "uapi/", "docs/"];
            if ours.iter().any(|o| word.starts_with(o)) && !word.contains(['*', '|']) {
                assert!(
                    repository().join(word).exists(),
                    "{document} names {word}, which does not exist"
                );
            }
        }
    }
}

#[test]
fn selftests_that_security_names_exist() {
    let programs: Vec<_> = files("selftests")
        .into_iter()
        .filter(|f| f.ends_with(".c"))
        .collect();
    let source: String = programs.iter().map(|f| text(f)).collect();
    let security = text("SECURITY.md");
    let rows = between(&security, "\n| class |", "\n\n");
    let mut tests = 0;
    for row in rows.lines().skip(2) {
        let shown = row.trim_end_matches(" |").rsplit('|').next().unwrap();
        for word in shown.split('`').skip(1).step_by(2) {
            if word.contains('/') || programs.contains(&format!("selftests/{word}.c")) {
                continue;
            }
            let exists = ["", "_NAMED", "_SECONDS"]
                .iter()
                .flat_map(|kind| [format!("TEST{kind}({word})"), format!("TEST{kind}({word},")])
                .any(|test| source.contains(&test));
            assert!(
                exists,
                "SECURITY.md names a test {word}, which does not exist"
            );
            tests += 1;
        }
    }
    assert!(tests > 50, "only {tests} tests found in the table");
}

/// Whether a line has the keyword `unsafe` outside of a comment.
fn has_unsafe(line: &str) -> bool {
    line.split("//")
        .next()
        .unwrap()
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .any(|word| word == "unsafe")
}

#[test]
fn unsafe_code_is_where_the_design_says() {
    const FOLDERS: [&str; 3] = ["src/x86/vmx", "src/x86/svm", "src/arm64/el2"];
    const FILES: [&str; 1] = ["src/mem/mmu.rs"];
    let design = text("docs/design.md");
    let said = between(&design, "\n*Unsafe code* is in", "\n\n");
    for place in FOLDERS.iter().chain(&FILES) {
        assert!(
            said.contains(&format!("`{place}`")),
            "docs/design.md does not name {place}"
        );
    }
    let found: BTreeSet<_> = rust_files("src")
        .filter(|f| !FOLDERS.iter().any(|d| f.starts_with(&format!("{d}/"))))
        .filter(|f| text(f).lines().any(has_unsafe))
        .collect();
    let allowed: BTreeSet<_> = FILES.iter().map(|f| f.to_string()).collect();
    assert_eq!(
        found, allowed,
        "files of src/ with unsafe code (left) and those that may have it (right)"
    );
}

/// The runs of consecutive lines that the hunks of a diff add.
fn added(hunks: &str) -> Vec<Vec<&str>> {
    let mut runs = vec![Vec::new()];
    for line in hunks.lines() {
        match line.strip_prefix('+') {
            Some(line) => runs.last_mut().unwrap().push(line),
            None => runs.push(Vec::new()),
        }
    }
    runs.retain(|r| !r.is_empty());
    runs
}

#[test]
fn examples_of_how_to_add_stand_in_the_tree() {
    let hacking = text("docs/hacking.md");
    let how = between(
        &hacking,
        "\n## How to add an ioctl, an exit or an MSR\n",
        "\n## ",
    );
    let sections: Vec<_> = how.split("\n### ").skip(1).collect();
    assert_eq!(sections.len(), 3, "an ioctl, an exit, an MSR");
    for section in sections {
        let title = section.lines().next().unwrap();
        let mut files = BTreeSet::new();
        for diff in section.split("\n```diff\n").skip(1) {
            let diff = diff.split("\n```").next().unwrap();
            let (file, hunks) = diff
                .strip_prefix("+++ b/")
                .and_then(|d| d.split_once('\n'))
                .unwrap_or_else(|| panic!("{title}: a diff that names no file"));
            files.insert(file);
            let source = text(file);
            let lines: Vec<_> = source.lines().collect();
            for run in added(hunks) {
                assert!(
                    lines.windows(run.len()).any(|w| w == run),
                    "docs/hacking.md, {title}: {file} has no longer\n{}",
                    run.join("\n")
                );
            }
        }
        assert!(
            (1..=3).contains(&files.len()),
            "docs/hacking.md, {title}: {} files, three are promised",
            files.len()
        );
    }
}
