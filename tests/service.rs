//! The daemon as a service: a socket that the service manager passes, and what
//! the manager is told.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use common::PATIENCE;
use common::daemon::{Daemon, WAITING, default_binary};

/// What this user may lock the daemon into.
fn sandboxes() -> &'static [&'static str] {
    if geteuid().is_root() {
        &["none", "chroot", "namespace"]
    } else {
        &["none"]
    }
}

/// A folder with a share in it, and a service manager that listens.
struct Place {
    folder: TempDir,
    manager: UnixDatagram,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("share")).unwrap();
        let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { folder, manager }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn expect_state(&self, expected: &str) {
        let mut bytes = [0; 64];
        let length = self.manager.recv(&mut bytes).unwrap();
        assert_eq!(std::str::from_utf8(&bytes[..length]).unwrap(), expected);
    }

    /// That the daemon has said no more than what was expected.
    fn expect_silence(&self) {
        self.manager.set_nonblocking(true).unwrap();
        let error = self.manager.recv(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }

    /// The daemon in `sandbox`, with `more` for its socket.
    fn command(&self, program: &Path, sandbox: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--shared-dir")
            .arg(self.path("share"))
            .args(["--seccomp=trap", "--sandbox", sandbox])
            .env("NOTIFY_SOCKET", self.path("notify"));
        command
    }

    fn with_own_socket(&self, sandbox: &str) -> Daemon {
        let mut command = self.command(&default_binary(), sandbox);
        command.arg("--socket-path").arg(self.path("socket"));
        Daemon::spawn(command)
    }

    /// A daemon that finds `socket` as its descriptor 3, as systemd has it.
    fn with_passed_socket(&self, socket: UnixListener, sandbox: &str, more: &[&str]) -> Daemon {
        // The number of the process is known to the process alone.
        let script = r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@" 3<&0 </dev/null"#;
        let daemon = self.command(&default_binary(), sandbox);
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(daemon.get_program());
        command.args(daemon.get_args()).args(more);
        for (name, value) in daemon.get_envs() {
            command.env(name, value.unwrap());
        }
        Daemon::spawn_with_stdin(command, OwnedFd::from(socket))
    }
}

#[test]
fn the_manager_is_told_when_connections_are_taken_and_when_the_daemon_ends() {
    for sandbox in sandboxes() {
        let place = Place::new();
        let mut daemon = place.with_own_socket(sandbox);
        place.expect_state("READY=1");
        drop(UnixStream::connect(place.path("socket")).unwrap());
        place.expect_state("STOPPING=1");
        assert_eq!(daemon.wait().code(), Some(0), "{sandbox}");
        place.expect_silence();
    }
}

#[test]
fn the_manager_is_told_when_a_signal_ends_the_daemon() {
    for sandbox in sandboxes() {
        let place = Place::new();
        let mut daemon = place.with_own_socket(sandbox);
        place.expect_state("READY=1");
        let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        place.expect_state("STOPPING=1");
        assert_eq!(daemon.wait().code(), Some(1), "{sandbox}");
        assert!(!place.path("socket").exists());
    }
}

#[test]
fn the_manager_hears_no_ready_of_a_daemon_that_cannot_start() {
    let place = Place::new();
    let mut command = place.command(&default_binary(), "none");
    command.args(["--socket-path=/nowhere/at/all"]);
    let mut daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait().code(), Some(1));
    place.expect_silence();
}

#[test]
fn a_manager_that_is_not_there_is_a_warning() {
    let place = Place::new();
    std::fs::remove_file(place.path("notify")).unwrap();
    let mut daemon = place.with_own_socket("none");
    daemon.expect_log(WAITING);
    drop(UnixStream::connect(place.path("socket")).unwrap());
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(daemon.log_count("NOTIFY_SOCKET="), 1, "{:#?}", daemon.log());
}

#[test]
fn the_passed_socket_is_used_where_the_command_line_names_none() {
    for sandbox in sandboxes() {
        for more in [&[][..], &["--fd=3"]] {
            let place = Place::new();
            let listener = UnixListener::bind(place.path("passed")).unwrap();
            let mut daemon = place.with_passed_socket(listener, sandbox, more);
            place.expect_state("READY=1");
            drop(UnixStream::connect(place.path("passed")).unwrap());
            assert_eq!(daemon.wait().code(), Some(0), "{:#?}", daemon.log());
            // It is the manager's, to start the next daemon by.
            assert!(place.path("passed").exists());
        }
    }
}

#[test]
fn a_socket_on_the_command_line_goes_before_the_passed_one() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("passed")).unwrap();
    let socket = place.path("socket");
    let more = ["--socket-path", socket.to_str().unwrap()];
    let mut daemon = place.with_passed_socket(listener, "none", &more);
    place.expect_state("READY=1");
    drop(UnixStream::connect(socket).unwrap());
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_socket_that_was_passed_to_another_process_is_not_taken() {
    let place = Place::new();
    let mut command = place.command(&default_binary(), "none");
    command.envs([("LISTEN_FDS", "1"), ("LISTEN_PID", "1")]);
    let mut daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait().code(), Some(2), "{:#?}", daemon.log());
    let log = daemon.log().join("\n");
    assert!(
        log.starts_with("error: the following required arguments were not provided:\n  --socket-path <PATH>\n\nUsage: "),
        "{log}"
    );
}
