//! The Debian package: what lintian says of it, and a guest that is served by the
//! daemon from a clean root file system in which the package was installed.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::geteuid;
use tempfile::TempDir;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where tests/prepare keeps what is slow to make.
fn cache() -> PathBuf {
    let given = std::env::var_os("VIRTIOFSD_TEST_CACHE").map(PathBuf::from);
    given.unwrap_or_else(|| repository().join("target/vm"))
}

/// Runs a command, which must succeed; gives what it printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command
        .current_dir(repository())
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// The package of the daemon under test, made once.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, package) = PACKAGE.get_or_init(|| {
        run(&mut Command::new(repository().join("tests/prepare")));
        let folder = tempfile::tempdir().unwrap();
        let package = folder.path().join("virtiofsd.deb");
        let binary = std::env::var("VIRTIOFSD");
        let binary = binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_virtiofsd"));
        run(Command::new("make")
            .args(["--silent", "deb"])
            .arg(format!("BINARY={binary}"))
            .arg(format!("STAGE={}", "target/deb"))
            .arg(format!(
                "CARGO_DEB={}/tools/bin/cargo-deb",
                cache().display()
            ))
            .arg(format!("DEB_OPTIONS=--output={}", package.display())));
        (folder, package)
    });
    package
}

#[test]
fn lintian_has_nothing_to_complain_about() {
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on=error,warning", "--allow-root"]);
    // Nobody has asked Debian for this package.
    lintian.args(["--suppress-tags", "initial-upload-closes-no-bugs"]);
    run(lintian.arg(package()));
}

#[test]
fn the_package_has_the_version_of_the_daemon() {
    let field = run(Command::new("dpkg-deb")
        .arg("--field")
        .arg(package())
        .arg("Version"));
    assert_eq!(field.trim(), concat!(env!("CARGO_PKG_VERSION"), "-1"));
    let changelog = fs::read_to_string(repository().join("packaging/changelog")).unwrap();
    assert!(changelog.starts_with(&format!("virtiofsd ({})", field.trim())));
}

#[test]
fn a_guest_is_served_from_a_clean_root_with_the_package() {
    if !geteuid().is_root() {
        println!("skips itself: only root can install a package");
        return;
    }
    let package = package();
    let root = tempfile::tempdir().unwrap();
    // The guest's root file system was made with mmdebstrap: Debian 12 and a few
    // packages, none of which the daemon needs.
    let image = cache().join("root/image");
    let unpack = format!("rdump / {}", root.path().display());
    run(Command::new("debugfs").args(["-R", &unpack]).arg(image));
    let leave_nothing_out = root.path().join("etc/dpkg/dpkg.cfg.d/99mmdebstrap");
    let _ = fs::remove_file(leave_nothing_out);
    run(Command::new("dpkg")
        .arg(format!("--root={}", root.path().display()))
        .args(["--force-unsafe-io", "--install"])
        .arg(package));
    for file in [
        "usr/libexec/virtiofsd",
        "usr/share/man/man1/virtiofsd.1.gz",
        "usr/share/qemu/vhost-user/50-virtiofsd.json",
        "lib/systemd/system/virtiofsd@.socket",
        "usr/share/doc/virtiofsd/copyright",
    ] {
        assert!(root.path().join(file).exists(), "{file} is not installed");
    }

    let share = tempfile::tempdir().unwrap();
    fs::write(share.path().join("from-host"), "hello guest\n").unwrap();
    let said = run(Command::new(repository().join("tests/vm/run"))
        .env("VIRTIOFSD", repository().join("tests/package/daemon"))
        .env("PACKAGE_ROOT", root.path())
        .arg(share.path())
        .args(["bash", "-c", "cat from-host; echo hello host >from-guest"]));
    assert_eq!(said, "hello guest\n");
    let written = fs::read_to_string(share.path().join("from-guest")).unwrap();
    assert_eq!(written, "hello host\n");
}
