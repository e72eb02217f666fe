//! `make install` and `make uninstall`, and the units that come with them.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

#[path = "../examples/generate.rs"]
#[allow(dead_code)]
mod generate;

/// What is installed, below the prefix, and its mode.
const FILES: &[(&str, u32)] = &[
    ("lib/systemd/system/virtiofsd@.service", 0o644),
    ("lib/systemd/system/virtiofsd@.socket", 0o644),
    ("libexec/virtiofsd", 0o755),
    ("share/bash-completion/completions/virtiofsd", 0o644),
    ("share/doc/virtiofsd/CHANGELOG.md", 0o644),
    ("share/doc/virtiofsd/LICENSE-APACHE", 0o644),
    ("share/doc/virtiofsd/LICENSE-BSD-3-Clause", 0o644),
    ("share/doc/virtiofsd/README.md", 0o644),
    ("share/fish/vendor_completions.d/virtiofsd.fish", 0o644),
    ("share/man/man1/virtiofsd.1", 0o644),
    ("share/qemu/vhost-user/50-virtiofsd.json", 0o644),
    ("share/zsh/vendor-completions/_virtiofsd", 0o644),
];

/// A folder with the generated pages, to install into.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        generate::write_all(&folder.path().join("pages")).unwrap();
        Self(folder)
    }

    #[track_caller]
    fn make(&self, target: &str, variables: &[String]) {
        let pages = self.0.path().join("pages");
        let output = Command::new("make")
            .args(["--silent", target])
            .arg(format!("PAGES={}", pages.display()))
            .arg(concat!("BINARY=", env!("CARGO_BIN_EXE_virtiofsd")))
            .args(variables)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("tests/prepare installs make");
        said_nothing(&output);
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
}

#[track_caller]
fn said_nothing(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// Files below `folder`, with their modes; the documents but for one left out.
fn files_below(folder: &Path) -> Vec<(String, u32)> {
    fn walk(base: &Path, folder: &Path, found: &mut Vec<(String, u32)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(base, &path, found);
                continue;
            }
            let name = path.strip_prefix(base).unwrap().to_str().unwrap();
            let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
            found.push((name.to_owned(), mode));
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

#[test]
fn everything_is_installed_below_the_prefix_and_removed_again() {
    let place = Place::new();
    let variables = [
        format!("DESTDIR={}", place.path("root")),
        "PREFIX=/opt/here".to_owned(),
    ];
    place.make("install", &variables);
    let prefix = place.path("root/opt/here");
    let (documents, files): (Vec<_>, Vec<_>) = files_below(Path::new(&prefix))
        .into_iter()
        .partition(|(name, _)| name.starts_with("share/doc/virtiofsd/doc/"));
    let expected: Vec<_> = FILES.iter().map(|(n, m)| ((*n).to_owned(), *m)).collect();
    assert_eq!(files, expected);
    assert_eq!(documents.len(), fs::read_dir("doc").unwrap().count());
    for (file, line) in [
        (
            "share/qemu/vhost-user/50-virtiofsd.json",
            r#"  "binary": "/opt/here/libexec/virtiofsd""#,
        ),
        (
            "lib/systemd/system/virtiofsd@.service",
            "ExecStart=/opt/here/libexec/virtiofsd --shared-dir ${SHARED_DIR} $OPTIONS",
        ),
    ] {
        let text = fs::read_to_string(Path::new(&prefix).join(file)).unwrap();
        assert!(text.lines().any(|found| found == line), "{text}");
        assert!(!text.contains('@') || !text.contains("BINARY"), "{text}");
    }

    place.make("uninstall", &variables);
    assert_eq!(files_below(Path::new(&place.path("root"))), []);
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    let place = Place::new();
    let prefix = place.path("usr");
    place.make("install", &[format!("PREFIX={prefix}")]);
    let units = format!("{prefix}/lib/systemd/system");
    let verify = || {
        Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(format!("{units}/virtiofsd@.service"))
            .arg(format!("{units}/virtiofsd@.socket"))
            .output()
            .expect("tests/prepare installs systemd-analyze")
    };
    said_nothing(&verify());

    // It does look: what is wrong is named.
    let service = format!("{units}/virtiofsd@.service");
    let text = fs::read_to_string(&service).unwrap();
    fs::write(&service, text.replace("ProtectClock=", "ProtectTime=")).unwrap();
    let said = String::from_utf8(verify().stderr).unwrap();
    assert!(said.contains("ProtectTime"), "{said}");
}
