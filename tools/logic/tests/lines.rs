// SPDX-License-Identifier: GPL-2.0
//! No line of the source is longer than 120 columns.

use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS: usize = 120;

/// What is looked at: folders, and files beside them.
const SOURCE: [&str; 7] = [
    "Kbuild",
    "Makefile",
    "rust",
    "selftests",
    "src",
    "tools",
    "uapi",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The source files at or below `path`. Excepted are files that bindgen makes, and what tools leave behind.
fn files(path: &Path, out: &mut Vec<PathBuf>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.is_dir() {
        if ["target", "__pycache__", "build"].contains(&&*name) {
            return;
        }
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), out);
        }
    } else if !name.ends_with("_generated.rs") {
        out.push(path.to_path_buf());
    }
}

/// Width of a line; a tab goes to the next column that is a multiple of 8.
fn width(line: &str) -> usize {
    line.chars().fold(0, |column, c| match c {
        '\t' => (column / 8 + 1) * 8,
        _ => column + 1,
    })
}

#[test]
fn lines_are_within_120_columns() {
    let root = repository();
    let mut list = Vec::new();
    for part in SOURCE {
        files(&root.join(part), &mut list);
    }
    assert!(list.len() > 300, "only {} files found", list.len());
    let mut long = Vec::new();
    for path in list {
        // Whatever is no text is no source.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
        for (i, line) in text.lines().enumerate() {
            if width(line) > COLUMNS {
                long.push(format!("{file}:{}: {} columns", i + 1, width(line)));
            }
        }
    }
    assert!(
        long.is_empty(),
        "longer than {COLUMNS} columns:\n{}",
        long.join("\n")
    );
}
