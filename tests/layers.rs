//! Imports point down: each directory of `src` uses only the layers below it, no files
//! import each other in a circle, and `unsafe` stands only where it may.
//! `doc/architecture.md` shows the layers.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic
)]

use std::collections::{BTreeMap, BTreeSet};
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

/// The source files below a directory.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Every source file with the name of its top module.
fn sources() -> Vec<(String, PathBuf)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    rust_files(&src)
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

/// The code of a source text: no comments, and no unit tests, which stand at its end.
fn code_of(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
    code.lines()
        .map(|line| line.split("//").next().unwrap())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The paths that a text names behind `crate`, `super` and `self`, those in braces one
/// by one, from the root on; `at` is the module of the text.
fn named_paths(code: &str, at: &[String]) -> Vec<Vec<String>> {
    let is_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut paths = Vec::new();
    for first in ["crate", "super", "self"] {
        for (begin, _) in code.match_indices(&format!("{first}::")) {
            if code[..begin].ends_with(|c| is_of_word(c) || c == ':') {
                continue;
            }
            let rest = &code[begin..];
            let end = rest
                .find(|c| !is_of_word(c) && c != ':')
                .unwrap_or(rest.len());
            let (path, rest) = rest.split_at(end);
            let inner = match rest.strip_prefix('{') {
                Some(list) if path.ends_with("::") => list.split('}').next().unwrap(),
                _ => "",
            };
            for item in inner.split(',') {
                let mut of = at.to_vec();
                let words = path.split("::").chain(item.trim().split("::"));
                for word in words.filter(|word| !word.is_empty()) {
                    match word {
                        "crate" => of.clear(),
                        "super" => _ = of.pop(),
                        "self" => {}
                        word => of.push(word.to_owned()),
                    }
                }
                paths.push(of);
            }
        }
    }
    paths
}

/// For each file below a directory those that it imports. The file of a directory
/// itself (`mod.rs`) is left out: it declares what lies beside it.
fn imports(root: &Path) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
    let mut modules = BTreeMap::new();
    for path in rust_files(root) {
        let module = path.strip_prefix(root).unwrap().with_extension("");
        let module: Vec<_> = module
            .components()
            .map(|part| part.as_os_str().to_str().unwrap().to_owned())
            .collect();
        if !matches!(module.last().unwrap().as_str(), "mod" | "lib" | "main") {
            modules.insert(module, path);
        }
    }
    let mut imports = BTreeMap::new();
    for (module, path) in &modules {
        let code = code_of(&fs::read_to_string(path).unwrap());
        let used = named_paths(&code, module).into_iter().filter_map(|mut of| {
            while !of.is_empty() {
                if let Some(file) = modules.get(&of) {
                    return Some(file.clone());
                }
                of.pop();
            }
            None
        });
        let used = used.filter(|file| file != path).collect();
        imports.insert(path.clone(), used);
    }
    imports
}

/// Files that import each other in a circle: what is left when those that import
/// nothing of the rest are taken away again and again.
fn circles(mut imports: BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> Vec<PathBuf> {
    loop {
        let left: BTreeSet<_> = imports.keys().cloned().collect();
        let before = imports.len();
        imports.retain(|_, used| used.iter().any(|file| left.contains(file)));
        if imports.len() == before {
            return imports.into_keys().collect();
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    for root in ["src", "benches/compare", "tests/common"] {
        let imports = imports(&top.join(root));
        let count: usize = imports.values().map(BTreeSet::len).sum();
        assert!(count > 10, "{root}: only {count} imports were seen");
        let circles = circles(imports);
        // Also those that only import files of one.
        assert!(circles.is_empty(), "in or above a circle: {circles:#?}");
    }
}

#[test]
fn a_circle_would_be_found() {
    let at = ["device".to_owned(), "queue".to_owned()];
    let code = "use super::{helpers::Helpers, relief}; use crate::fs::Wait; super::state::X";
    let seen: BTreeSet<_> = named_paths(code, &at)
        .into_iter()
        .map(|path| path.join("::"))
        .collect();
    let expected = [
        "device::helpers::Helpers",
        "device::relief",
        "device::state::X",
        "fs::Wait",
    ];
    assert_eq!(seen, expected.map(str::to_owned).into());
    let file = |name: &str| PathBuf::from(name);
    let imports = [("a", "b"), ("b", "c"), ("c", "b"), ("d", "e")]
        .map(|(from, to)| (file(from), [file(to)].into()));
    assert_eq!(circles(imports.into()), ["a", "b", "c"].map(file));
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
