//! Imports point down: each folder of `src` uses only the layers below it, and
//! `unsafe` stands only where it may. `doc/architecture.md` shows the layers.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may use; itself is always allowed.
const MAY_USE: &[(&str, &[&str])] = &[
    ("id", &[]),
    ("config", &[]),
    ("sys", &[]),
    ("fuse", &["id"]),
    ("guest", &["sys"]),
    ("metrics", &["sys", "fuse"]),
    ("fs", &["id", "fuse", "guest"]),
    ("server", &["id", "fuse", "guest", "fs", "metrics"]),
    (
        "passthrough",
        &["id", "config", "sys", "fuse", "guest", "fs"],
    ),
    (
        "migration",
        &["id", "config", "sys", "fuse", "fs", "passthrough"],
    ),
    ("device", &["sys", "guest", "fs", "server", "metrics"]),
    ("process", &["sys"]),
    ("logging", &["sys"]),
    ("cli", &["config"]),
    (
        "app",
        &[
            "cli",
            "config",
            "device",
            "logging",
            "metrics",
            "migration",
            "passthrough",
            "process",
            "sys",
        ],
    ),
];

/// Every source file with the name of its top module.
fn sources() -> Vec<(String, PathBuf)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&src, &mut found);
    found
        .into_iter()
        .map(|path| {
            let first = path
                .strip_prefix(&src)
                .unwrap()
                .components()
                .next()
                .unwrap();
            let name = first
                .as_os_str()
                .to_str()
                .unwrap()
                .trim_end_matches(".rs")
                .to_owned();
            (name, path)
        })
        .filter(|(name, _)| !matches!(name.as_str(), "lib" | "main"))
        .collect()
}

/// The top modules that a source text names behind `crate::`.
fn used_modules(text: &str) -> Vec<String> {
    text.match_indices("crate::")
        .map(|(at, prefix)| {
            let rest = &text[at + prefix.len()..];
            rest.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        })
        .collect()
}

#[test]
fn every_module_uses_only_what_is_below_it() {
    let may_use: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for (module, path) in sources() {
        let allowed = may_use.get(module.as_str());
        let allowed = allowed.unwrap_or_else(|| panic!("{module} has no line in MAY_USE"));
        for used in used_modules(&fs::read_to_string(&path).unwrap()) {
            if used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: {module} uses {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_stands_in_sys_and_guest_only() {
    let mut wrong = Vec::new();
    for (module, path) in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let has_unsafe = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("unsafe ") && !code.contains('"')
        });
        if has_unsafe && !matches!(module.as_str(), "sys" | "guest") {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_check_itself_finds_what_it_looks_for() {
    assert_eq!(
        used_modules("use crate::fs::Entry; crate::sys::close(x)"),
        ["fs", "sys"]
    );
}
