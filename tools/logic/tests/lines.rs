// SPDX-License-Identifier: GPL-2.0
//! No line of the source is longer than 120 columns.

mod tree;

use std::fs;
use tree::{files, repository};

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

/// Width of a line; a tab goes to the next column that is a multiple of 8.
fn width(line: &str) -> usize {
    line.chars().fold(0, |column, c| match c {
        '\t' => (column / 8 + 1) * 8,
        _ => column + 1,
    })
}

#[test]
fn lines_are_within_120_columns() {
    let list: Vec<_> = SOURCE.into_iter().flat_map(files).collect();
    assert!(list.len() > 300, "only {} files found", list.len());
    let mut long = Vec::new();
    for file in list {
        // Whatever is no text is no source.
        let Ok(text) = fs::read_to_string(repository().join(&file)) else {
            continue;
        };
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
