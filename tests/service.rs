//! The daemon as a service: a socket that the service manager passes, and what
//! the manager is told.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, kill_process, pidfd_open};
use tempfile::TempDir;

use common::daemon::{Daemon, WAITING, default_binary};
use common::frontend::{Config, HIPRIO, REQUEST, Vmm};
use common::fuse_client::{Client, Lock};
use common::held_fs::HeldFs;
use common::wire::ROOT;
use common::{PATIENCE, wait_readable};

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
        fs::create_dir(folder.path().join("share")).unwrap();
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
            .args(["--rlimit-nofile=0", "--seccomp=trap", "--sandbox", sandbox])
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

fn signal(daemon: &Daemon, signal: Signal) {
    let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
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
        signal(&daemon, Signal::TERM);
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
    fs::remove_file(place.path("notify")).unwrap();
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

// One front end after the other

/// A guest that has mounted the share.
fn mount(daemon: &Daemon, socket: &Path) -> (Vmm, Client) {
    let before = daemon.log_count("Client connected");
    let mut vmm = Vmm::connect(socket, &Config::default());
    vmm.start_queue(HIPRIO);
    let mut client = Client::new(vmm.start_queue(REQUEST));
    client.init();
    daemon.expect_log_count("Client connected", before + 1);
    (vmm, client)
}

/// Several guests, none of which tidies up or knows anything of those before;
/// gives how many descriptors were open before each.
fn serves_one_after_the_other(place: &Place, socket: &Path, daemon: &Daemon) -> Vec<usize> {
    fs::write(place.path("share/file"), "content").unwrap();
    let mut descriptors = Vec::new();
    let mut left = None;
    for round in 1..=5 {
        daemon.expect_log_count(WAITING, round);
        descriptors.push(daemon.open_fds());
        let (vmm, mut client) = mount(daemon, socket);
        if let Some((node, handle)) = left {
            assert!(client.read(node, handle, 0, 100).is_err());
            assert!(client.getattr(node).is_err());
        }
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let handle = client.open(node, libc::O_RDWR).unwrap().fh;
        client.opendir(ROOT).unwrap();
        assert_eq!(client.read(node, handle, 0, 100).unwrap(), b"content");
        left = Some((node, handle));
        drop((vmm, client));
    }
    daemon.expect_log_count("Client disconnected", 5);
    assert_eq!(daemon.complaints(), [""; 0]);
    descriptors
}

#[test]
fn front_ends_are_served_one_after_the_other() {
    for sandbox in sandboxes() {
        for threads in [&[][..], &["--thread-pool-size=2"]] {
            let place = Place::new();
            let socket = place.path("socket");
            let mut command = place.command(&default_binary(), sandbox);
            command
                .args(["--keep-listening", "--socket-path"])
                .arg(&socket)
                .args(threads);
            let mut daemon = Daemon::spawn(command);
            let descriptors = serves_one_after_the_other(&place, &socket, &daemon);
            // A thread of the pool may not have let go of its last request yet.
            if threads.is_empty() {
                assert_eq!(descriptors[1..], [descriptors[1]; 4], "{sandbox}");
            }
            // One READY, whatever comes and goes, and one end.
            place.expect_state("READY=1");
            place.expect_silence();
            signal(&daemon, Signal::TERM);
            assert_eq!(daemon.wait().code(), Some(1), "{sandbox}");
            assert!(!socket.exists());
        }
    }
}

#[test]
fn front_ends_are_served_one_after_the_other_on_a_passed_socket() {
    for sandbox in sandboxes() {
        let place = Place::new();
        let socket = place.path("passed");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = place.with_passed_socket(listener, sandbox, &["--keep-listening"]);
        serves_one_after_the_other(&place, &socket, &daemon);
    }
}

#[test]
fn a_front_end_that_breaks_the_protocol_does_not_end_the_service() {
    let place = Place::new();
    let socket = place.path("socket");
    let mut command = place.command(&default_binary(), "none");
    command
        .args(["--keep-listening", "--socket-path"])
        .arg(&socket);
    let daemon = Daemon::spawn(command);
    daemon.expect_log(WAITING);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&[0xff; 64]).unwrap();
    let complaint = daemon.expect_complaint_after(0);
    assert!(
        complaint.contains("Waiting for daemon failed"),
        "{complaint}"
    );
    drop(stream);
    let (_vmm, mut client) = mount(&daemon, &socket);
    client.getattr(ROOT).unwrap();
}

#[test]
fn a_front_end_that_goes_while_a_lock_is_waited_for_leaves_no_lock() {
    let place = Place::new();
    let socket = place.path("socket");
    fs::write(place.path("share/file"), "content").unwrap();
    let mut command = place.command(&default_binary(), "none");
    command
        .args(["--keep-listening", "--posix-lock", "--socket-path"])
        .arg(&socket);
    let daemon = Daemon::spawn(command);
    daemon.expect_log(WAITING);
    let exclusive = |owner| Lock {
        owner,
        start: 0,
        end: i64::MAX as u64,
        kind: libc::F_WRLCK,
        pid: 1,
        flags: 0,
    };
    for _ in 0..2 {
        let (vmm, mut client) = mount(&daemon, &socket);
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let handle = client.open(node, libc::O_RDWR).unwrap().fh;
        client.setlk(node, handle, &exclusive(1)).unwrap();
        client.start_setlkw(node, handle, &exclusive(2));
        // In order: the other one was taken up before.
        client.getattr(ROOT).unwrap();
        drop((vmm, client));
    }
    daemon.expect_log_count("Client disconnected", 2);
    assert_eq!(daemon.complaints(), [""; 0]);
}

#[test]
fn a_signal_ends_a_daemon_that_waits_for_its_share_to_start() {
    if !geteuid().is_root() {
        return println!("mounting a file system needs root: skips itself");
    }
    for sandbox in ["namespace", "chroot"] {
        let dir = tempfile::tempdir().unwrap();
        let (share, socket) = (dir.path().join("share"), dir.path().join("socket"));
        fs::create_dir(&share).unwrap();
        let share_fs = HeldFs::mount_until(&share, &socket);
        let mut command = Command::new(default_binary());
        command
            .arg(format!("--sandbox={sandbox}"))
            .arg("--shared-dir")
            .arg(&share)
            .arg("--socket-path")
            .arg(&socket);
        let mut daemon = Daemon::spawn(command);
        share_fs.wait_for_reads(1);
        let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let ended = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert!(
            wait_readable(&ended, PATIENCE),
            "{sandbox}: it does not end"
        );
        daemon.expect_log("waits for a file system of this machine that does not answer");
        // The process inside cannot end before, and has the log open.
        share_fs.release();
        assert_eq!(daemon.wait().code(), Some(1), "{sandbox}");
        assert!(!socket.exists() && !dir.path().join("socket.pid").exists());
    }
}
