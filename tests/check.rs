//! `--check`: what it says of a good and of a bad command line, and that nothing
//! is made.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use tempfile::TempDir;

/// A folder with a folder `share` in it.
fn place() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("share")).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn check(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_virtiofsd"))
        .args(["--check", "--sandbox=none", "--shared-dir=share"])
        .args(["--socket-path=socket", "--rlimit-nofile=0"])
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

/// Lines that begin with `missing: `, without that.
fn missing(output: &Output) -> Vec<String> {
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    stdout
        .lines()
        .filter_map(|line| line.strip_prefix("missing: "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_good_command_line_is_good_in_every_sandbox_and_nothing_is_made() {
    let sandboxes: &[&str] = if geteuid().is_root() {
        &["none", "chroot", "namespace"]
    } else {
        &["none"]
    };
    for sandbox in sandboxes {
        let folder = place();
        let more = [
            "--sandbox",
            sandbox,
            "--seccomp=trap",
            "--metrics-socket=metrics",
            "--thread-pool-size=2",
        ];
        let output = check(folder.path(), &more);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        for line in [
            "ok: shared directory share",
            "ok: socket socket",
            "ok: socket for metrics metrics",
            "ok: sandbox",
            "ok: filter of system calls",
        ] {
            assert!(
                stdout.lines().any(|found| found == line),
                "{line}: {stdout}"
            );
        }
        assert!(
            String::from_utf8_lossy(&output.stderr).is_empty(),
            "{output:?}"
        );
        assert_eq!(names(folder.path()), ["share"], "{sandbox}");
        assert!(names(&folder.path().join("share")).is_empty());
    }
}

#[test]
fn everything_that_is_missing_is_said_at_once() {
    let folder = place();
    let output = check(
        folder.path(),
        &[
            "--shared-dir=elsewhere",
            "--socket-path=no/where/socket",
            "--modcaps=+bogus",
            "--rlimit-nofile=600",
        ],
    );
    assert_eq!(output.status.code(), Some(1));
    let missing = missing(&output);
    for (line, begin) in missing.iter().zip([
        "shared directory elsewhere: elsewhere does not exist; make it",
        "capabilities by name: --modcaps: there is no capability 'bogus'",
        "socket no/where/socket: no/where does not exist or is not a directory; make it",
        "descriptors: Maximum number of file descriptors too small",
    ]) {
        assert!(line.starts_with(begin), "{line}");
    }
    assert_eq!(missing.len(), 4, "{missing:?}");
    assert_eq!(names(folder.path()), ["share"]);
}

#[test]
fn one_socket_for_both_is_missing() {
    let folder = place();
    let output = check(folder.path(), &["--metrics-socket=socket"]);
    let missing = missing(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        missing[0].contains("socket is where the front end connects; choose another path"),
        "{missing:?}"
    );
}

#[test]
fn places_that_others_use_are_missing() {
    let folder = place();
    let path = |name| folder.path().join(name);
    let lock = fs::File::create(path("socket.pid")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let _listener = UnixListener::bind(path("metrics")).unwrap();
    let output = check(folder.path(), &["--metrics-socket=metrics"]);
    let missing = missing(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(
        missing
            .iter()
            .any(|line| line.contains("another daemon uses"))
    );
    assert!(
        missing
            .iter()
            .any(|line| line.contains("another process uses"))
    );

    // One that was left behind is no harm, and stays. It is unlocked, not only
    // closed: a program that another test is just starting may have a copy.
    flock(&lock, FlockOperation::Unlock).unwrap();
    assert_eq!(check(folder.path(), &[]).status.code(), Some(0));
    assert_eq!(names(folder.path()), ["metrics", "share", "socket.pid"]);
}

#[test]
fn options_that_do_not_go_together_are_missing() {
    let folder = place();
    let more = ["--migration-mode=file-handles", "--migration-confirm-paths"];
    let output = check(folder.path(), &more);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        missing(&output)
            .first()
            .unwrap()
            .starts_with("options: --migration-confirm-paths")
    );
}
