// SPDX-License-Identifier: GPL-2.0
//! The files of the project, for tests that read them.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the project lies.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files at or below `path`, which begins at the repository, as such paths. Excepted are files that bindgen makes,
/// and what tools leave behind.
pub fn files(path: &str) -> Vec<String> {
    let mut found = Vec::new();
    add_files(path, &mut found);
    found
}

fn add_files(path: &str, found: &mut Vec<String>) {
    let full = repository().join(path);
    let name = full.file_name().unwrap_or_default().to_string_lossy();
    if full.is_dir() {
        if ["target", "__pycache__", "build"].contains(&&*name) {
            return;
        }
        for entry in fs::read_dir(&full).unwrap() {
            let name = entry.unwrap().file_name();
            add_files(&format!("{path}/{}", name.to_str().unwrap()), found);
        }
    } else if !name.ends_with("_generated.rs") {
        found.push(path.to_owned());
    }
}
