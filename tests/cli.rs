//! The command line as a launcher meets it: options, messages, exit codes,
//! the socket and the pid file, and what is left behind, which is nothing.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_virtiofsd");
const WAITING: &str = "Waiting for vhost-user socket connection...";

/// What a start as any user needs, besides the share and the socket;
/// `tests/sandbox.rs` has the tests of the sandboxes.
const UNLOCKED: [&str; 1] = ["--sandbox=none"];

/// An empty folder with a folder `share` in it, where the daemon is started.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("share")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names in the folder, sorted.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("RUST_LOG");
        command.stdin(Stdio::null());
        command
    }

    /// A command that starts the daemon on `socket`.
    fn good_command(&self, more: &[&str]) -> Command {
        let mut command = self.command(&UNLOCKED);
        command
            .args(["--shared-dir=share", "--socket-path=socket"])
            .args(more);
        command
    }

    fn start(&self, more: &[&str]) -> Daemon {
        Daemon::start(self.good_command(more))
    }

    /// Runs the daemon with `more` besides what is good, until it refuses.
    fn refused(&self, more: &[&str]) -> Refusal {
        Refusal::of(self.good_command(more))
    }
}

/// A daemon that has started and waits for its front end.
struct Daemon {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// What it has logged up to "Waiting", that line included.
    lines: Vec<String>,
}

impl Daemon {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Vec::new();
        let mut daemon = Self {
            child,
            stderr,
            lines,
        };
        while !daemon
            .lines
            .last()
            .is_some_and(|line| line.contains(WAITING))
        {
            daemon.read_line();
        }
        daemon
    }

    /// Waits for one more line of its log.
    fn read_line(&mut self) {
        let mut line = String::new();
        let length = self.stderr.read_line(&mut line).unwrap();
        assert!(length > 0, "it ended after {:#?}", self.lines);
        self.lines.push(line.trim_end().to_owned());
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the daemon as a front end does, by going away.
    fn disconnect_from(self, socket: &Path) -> (ExitStatus, Vec<String>) {
        drop(UnixStream::connect(socket).unwrap());
        self.wait()
    }

    fn signal(self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.wait().0
    }

    fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.extend(self.stderr.by_ref().lines().map(Result::unwrap));
        (self.child.wait().unwrap(), lines)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail where a test has waited for its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command printed that did not start to serve.
struct Refusal {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Refusal {
    fn of(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = String::new();
        let mut reader = BufReader::new(child.stderr.take().unwrap());
        while reader.read_line(&mut stderr).unwrap() > 0 {
            if stderr.contains(WAITING) {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("it serves, but should have refused {command:?}: {stderr}");
            }
        }
        let stdout = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
        Self {
            code: child.wait().unwrap().code(),
            stdout,
            stderr,
        }
    }

    /// Asserts a usage error that contains `text`.
    #[track_caller]
    fn is_usage_error(&self, text: &str) {
        assert_eq!(self.code, Some(2), "{}", self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        assert!(
            self.stderr.contains(text),
            "{text:?} is not in {}",
            self.stderr
        );
        assert_eq!(self.stdout, "");
    }

    /// Asserts one ERROR line, the only one but for warnings, with `text`.
    #[track_caller]
    fn is_failure(&self, text: &str) {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        assert!(
            self.stderr.contains(text),
            "{text:?} is not in {}",
            self.stderr
        );
        let lines: Vec<_> = self
            .stderr
            .lines()
            .filter(|line| !line.contains(" WARN  "))
            .collect();
        assert_eq!(lines.len(), 1, "{}", self.stderr);
        assert!(lines[0].contains(" ERROR virtiofsd] "), "{}", self.stderr);
        assert_eq!(self.stdout, "");
    }
}

// Help, version, capabilities

#[test]
fn without_arguments_the_short_help_goes_to_stderr_with_status_2() {
    let place = Place::new();
    let refusal = Refusal::of(place.command(&[]));
    assert_eq!((refusal.code, refusal.stdout.as_str()), (Some(2), ""));
    assert!(refusal.stderr.contains("Usage: virtiofsd"));
}

#[test]
fn help_fits_80_columns_and_ends_with_examples() {
    let place = Place::new();
    for option in ["-h", "--help"] {
        let help = Refusal::of(place.command(&[option]));
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
        for line in help.stdout.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(help.stdout.contains("\nExamples:\n"));
    }
}

#[test]
fn version_is_one_line() {
    let place = Place::new();
    for option in ["-V", "--version"] {
        let version = Refusal::of(place.command(&[option]));
        assert_eq!(version.code, Some(0));
        assert_eq!(
            version.stdout,
            concat!("virtiofsd ", env!("CARGO_PKG_VERSION"), "\n")
        );
    }
}

#[test]
fn capabilities_are_printed_before_anything_is_looked_at() {
    let expected = r#"{
  "type": "fs",
  "features": [
    "migrate-precopy",
    "posix-acl-negotiation-mode",
    "security-label-negotiation-mode",
    "separate-options"
  ]
}
"#;
    let place = Place::new();
    for more in [
        &[][..],
        &["--shared-dir=missing", "--fd=77"],
        &["-o", "source=missing"],
    ] {
        let mut command = place.command(&["--print-capabilities"]);
        command.args(more);
        let printed = Refusal::of(command);
        assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""));
        assert_eq!(printed.stdout, expected);
    }
    Refusal::of(place.command(&["--print-capabilities", "--bogus"])).is_usage_error("--bogus");
    Refusal::of(place.command(&["--print-capabilities", "-o", "bogus"])).is_usage_error("bogus");
    Refusal::of(place.command(&["--print-capabilities", "--socket-group=root"]))
        .is_usage_error("cannot be used with");
}

// Usage errors

#[test]
fn what_does_not_parse_is_a_usage_error() {
    let place = Place::new();
    let long_tag = format!("--tag={}", "a".repeat(37));
    for (arguments, text) in [
        (&["--bogus"][..], "unexpected argument '--bogus'"),
        (&["extra"], "unexpected argument 'extra'"),
        (
            &["--thread-pool=1"],
            "a similar argument exists: '--thread-pool-size'",
        ),
        (&["--thread-pool-size", "-1"], "unexpected argument '-1'"),
        (&["--thread-pool-size=x"], "--thread-pool-size"),
        (&["--tag="], "--tag"),
        (&["--tag"], "--tag"),
        (&[&long_tag], "at most 36"),
        (
            &["--cache=bogus"],
            "[possible values: auto, always, never, metadata]",
        ),
        (&["--cache="], "--cache"),
        (&["--shared-dir="], "--shared-dir"),
        (&["--socket-path="], "--socket-path"),
        (&["--sandbox=bogus"], "--sandbox"),
        (&["--seccomp=KILL"], "--seccomp"),
        (&["--inode-file-handles", "prefer"], "equal sign is needed"),
        (&["--inode-file-handles"], "equal sign is needed"),
        (&["--inode-file-handles=PREFER"], "--inode-file-handles"),
        (&["--inode-file-handles="], "--inode-file-handles"),
        (&["--posix-acl", "auto"], "unexpected argument 'auto'"),
        (
            &["--posix-acl=bogus"],
            "[possible values: never, auto, always]",
        ),
        (
            &["--security-label", "never"],
            "unexpected argument 'never'",
        ),
        (&["--log-level=bogus"], "--log-level"),
        (&["--rlimit-nofile=x"], "--rlimit-nofile"),
        (&["--rlimit-nofile", "-1"], "unexpected argument '-1'"),
        (&["--num-request-queues=0"], "1..=62"),
        (&["--num-request-queues=63"], "1..=62"),
        (&["--uid-map=1:2:3"], "--uid-map"),
        (&["--gid-map=:1:2:"], "--gid-map"),
        (&["--translate-uid=bogus:1:2:3"], "--translate-uid"),
        (&["--translate-gid=guest:1:2"], "guest:FROM:TO:COUNT"),
        (&["--xattrmap=:ok:all:x:"], "rule 1"),
        (&["--xattrmap=:bad:all:x::"], "can pass by all rules"),
        (&["--migration-mode=bogus"], "--migration-mode"),
        (&["--migration-on-error=bogus"], "--migration-on-error"),
        (&["--socket-group=root", "--fd=0"], "cannot be used with"),
        (&["--fd=0"], "cannot be used with"),
        (
            &["--posix-acl", "--translate-uid=guest:1:2:3"],
            "cannot be used with",
        ),
        (
            &["-o", "posix_acl", "--translate-gid=guest:1:2:3"],
            "cannot be used with",
        ),
        (&["-o", "bogus"], "unknown word 'bogus'"),
        (
            &["-o", "cache=never"],
            "invalid value 'never' for '-o cache'",
        ),
        (&["-o", "locks"], "unknown word 'locks'"),
    ] {
        place.refused(arguments).is_usage_error(text);
    }
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn the_share_and_a_socket_are_required() {
    let place = Place::new();
    Refusal::of(place.command(&["--shared-dir=share"])).is_usage_error("--socket-path <PATH>");
    Refusal::of(place.command(&["-o", "source=share"])).is_usage_error("--socket-path <PATH>");
    Refusal::of(place.command(&["--socket-path=socket"])).is_usage_error("--shared-dir <DIR>");
    Refusal::of(place.command(&["--socket-path=socket", "-o", "xattr"]))
        .is_failure(r#"missing "--shared-dir" or "-o source" option"#);
    let both = ["--shared-dir=share", "--fd=0", "--socket=socket"];
    Refusal::of(place.command(&both)).is_usage_error("cannot be used with");
}

// What is accepted

#[test]
fn every_option_of_this_version_starts_the_daemon() {
    let place = Place::new();
    let tag = format!("--tag={}", "a".repeat(36));
    for arguments in [
        &["--tag", "x"][..],
        &[&tag],
        &["--cache=auto"],
        &["--cache", "ALWAYS"],
        &["--cache=never", "--allow-mmap"],
        &["--cache=Metadata"],
        &["--writeback", "--allow-direct-io", "--no-readdirplus"],
        &["--xattr", "--xattr", "--preserve-noatime"],
        &["--announce-submounts", "--no-announce-submounts"],
        &["--no-killpriv-v2"],
        &["--killpriv-v2", "--no-killpriv-v2"],
        &["--no-killpriv-v2", "--killpriv-v2"],
        &["--inode-file-handles=never"],
        &["--inode-file-handles=prefer"],
        &["--posix-acl=never", "--security-label=never"],
        &["--posix-acl", "--posix-acl=never"],
        &["--sandbox=namespace", "--sandbox=NONE"],
        &["--modcaps=-chown:+dac_read_search"],
        &["-o", "modcaps=-mknod"],
        &["--inode-file-handles=never", "--modcaps=-dac_read_search"],
        &["--seccomp=kill"],
        &["--seccomp=trap"],
        &["--seccomp=log"],
        &["--seccomp=none"],
        &["--thread-pool-size=4"],
        &["--thread-pool-size=4", "--thread-pool-size=0"],
        &["--num-request-queues=1"],
        &["--num-request-queues=62"],
        &["--rlimit-nofile=0"],
        &["--log-level=INFO"],
        &[
            "-o",
            "xattr,no_readdirplus,announce_submounts",
            "-o",
            "no_flock,no_posix_lock,flock,posix_lock",
        ],
        &["-f", "-d"],
    ] {
        let daemon = place.start(arguments);
        let (status, lines) = daemon.disconnect_from(&place.path("socket"));
        assert_eq!(status.code(), Some(0), "{arguments:?}: {lines:#?}");
        assert_eq!(place.names(), ["share"], "{arguments:?}");
    }
}

#[test]
fn the_milestones_are_logged_in_the_usual_format() {
    let place = Place::new();
    let daemon = place.start(&["--rlimit-nofile=0"]);
    let (status, lines) = daemon.disconnect_from(&place.path("socket"));
    assert_eq!(status.code(), Some(0));
    let milestones: Vec<_> = lines
        .iter()
        .filter_map(|line| line.split_once(" INFO  virtiofsd] "))
        .collect();
    let texts: Vec<_> = milestones.iter().map(|(_, text)| *text).collect();
    let expected = [
        WAITING,
        "Client connected, servicing requests",
        "Client disconnected, shutting down",
    ];
    assert_eq!(texts, expected, "{lines:#?}");
    // [2026-11-22T11:35:32Z
    let (time, _) = milestones[0];
    let form: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '9' } else { c })
        .collect();
    assert_eq!(form, "[9999-99-99T99:99:99Z");
}

#[test]
fn deprecated_options_work_and_say_what_to_use() {
    let place = Place::new();
    for (arguments, text) in [
        (
            &["--shared-dir=share", "--socket=socket"][..],
            "--socket is deprecated",
        ),
        (
            &["--socket=socket", "-o", "source=share"],
            "-o is deprecated",
        ),
        (
            &["--shared-dir=share", "--socket-path=socket", "-f"],
            "-f is deprecated",
        ),
        (
            &["--shared-dir=share", "--socket-path=socket", "-d"],
            "-d is deprecated",
        ),
        (
            &[
                "--shared-dir=share",
                "--socket-path=socket",
                "--inode-file-handles=fallback",
            ],
            "--inode-file-handles=fallback is deprecated",
        ),
    ] {
        let mut command = place.command(&UNLOCKED);
        command.args(arguments);
        let daemon = Daemon::start(command);
        let warned = |line: &String| line.contains(" WARN  virtiofsd] ") && line.contains(text);
        assert!(
            daemon.lines.iter().any(warned),
            "{text}: {:#?}",
            daemon.lines
        );
        daemon.disconnect_from(&place.path("socket"));
    }
}

#[test]
fn socket_path_wins_over_socket_without_a_word() {
    let place = Place::new();
    let daemon = place.start(&["--socket=other"]);
    assert!(!daemon.lines.iter().any(|line| line.contains("deprecated")));
    assert_eq!(place.names(), ["share", "socket", "socket.pid"]);
}

#[test]
fn rust_log_replaces_the_level() {
    let place = Place::new();
    let mut command = place.good_command(&["--log-level=off"]);
    command.env("RUST_LOG", "info");
    Daemon::start(command).disconnect_from(&place.path("socket"));
}

#[test]
fn nothing_is_logged_with_level_off() {
    let place = Place::new();
    let refusal = place.refused(&["--log-level=off", "--shared-dir=missing"]);
    assert_eq!((refusal.code, refusal.stderr.as_str()), (Some(1), ""));
}

#[test]
fn without_a_syslog_the_log_goes_to_stderr() {
    let places = ["/dev/log", "/var/run/syslog", "/var/run/log"];
    if places.iter().any(|place| Path::new(place).exists()) {
        eprintln!("skipped: there is a syslog here");
        return;
    }
    let place = Place::new();
    let daemon = place.start(&["--syslog"]);
    assert!(
        daemon
            .lines
            .iter()
            .any(|line| line.contains("cannot log to syslog"))
    );
}

// Options whose part is still to come

#[test]
fn translations_that_overlap_are_both_named_before_anything_is_made() {
    let place = Place::new();
    let arguments = ["--translate-gid=map:0:10:5", "--translate-gid=host:12:9:1"];
    place.refused(&arguments).is_failure(
        "--translate-gid: map:0:10:5 and host:12:9:1 overlap: each says what becomes of the \
         host's id 12",
    );
    place
        .refused(&["--translate-uid=guest:4294967295:0:2"])
        .is_failure("goes beyond the last id");
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn values_are_checked_even_where_the_part_is_still_to_come() {
    let place = Place::new();
    place
        .refused(&["--modcaps=+bogus"])
        .is_failure("no capability 'bogus'");
    place
        .refused(&["--modcaps=-dac_read_search"])
        .is_failure("--inode-file-handles=never");
    place
        .refused(&["--modcaps=bogus"])
        .is_failure("does not begin with + or -");
    place
        .refused(&["--modcaps="])
        .is_failure("does not begin with + or -");
    for option in ["--migration-confirm-paths", "--migration-verify-handles"] {
        place
            .refused(&["--migration-mode=file-handles", option])
            .is_failure(&format!(
                "{option} is of no use with --migration-mode=file-handles"
            ));
    }
    for others in [&[][..], &["--readonly"], &["--cache=always"]] {
        place
            .refused(&[&["--no-opendir"], others].concat())
            .is_failure("--no-opendir needs --readonly and --cache=always");
    }
}

// Bad input: one line with cause and remedy, nothing left behind

#[test]
fn a_share_that_is_no_directory_is_refused() {
    let place = Place::new();
    place
        .refused(&["--shared-dir=missing"])
        .is_failure("missing does not exist; make it");
    let empty = ["--socket-path=socket", "-o", "source="];
    Refusal::of(place.command(&empty)).is_failure("the path of the shared directory is empty");
    place
        .refused(&["--shared-dir=/dev/null"])
        .is_failure("/dev/null is not a directory");
    fs::write(place.path("file"), "").unwrap();
    place
        .refused(&["--shared-dir=file"])
        .is_failure("file is not a directory; only");
    place.refused(&["--shared-dir=file/x"]).is_failure("file/x");
    assert_eq!(place.names(), ["file", "share"]);
}

#[test]
fn a_socket_path_that_cannot_be_is_refused() {
    let place = Place::new();
    fs::write(place.path("file"), "content").unwrap();
    for (path, text) in [
        (
            "missing/socket",
            "missing does not exist or is not a directory; make it",
        ),
        (
            "file/socket",
            "file does not exist or is not a directory; make it",
        ),
        ("share", "there is a directory, which is not replaced"),
        (
            "file",
            "there is a file with content, which is not replaced",
        ),
        ("..", "a file name is needed"),
    ] {
        place.refused(&["--socket-path", path]).is_failure(text);
    }
    let long = "a".repeat(120);
    place
        .refused(&["--socket-path", &long])
        .is_failure("120 bytes are too long");
    assert_eq!(place.names(), ["file", "share"]);
    assert_eq!(fs::read_to_string(place.path("file")).unwrap(), "content");
}

#[test]
fn a_pid_file_that_cannot_be_leaves_no_socket() {
    let place = Place::new();
    fs::create_dir(place.path("socket.pid")).unwrap();
    place
        .refused(&[])
        .is_failure("Error creating pid file 'socket.pid': ");
    assert_eq!(place.names(), ["share", "socket.pid"]);
}

#[test]
fn an_unknown_group_is_refused() {
    let place = Place::new();
    let refusal = place.refused(&["--socket-group=no-such-group"]);
    refusal.is_failure("Couldn't resolve the group name specified for the socket path");
    refusal.is_failure("no-such-group");
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn a_limit_that_cannot_be_leaves_nothing_behind() {
    let place = Place::new();
    place.refused(&["--rlimit-nofile=609"]).is_failure(
        "Maximum number of file descriptors too small: Limit is 609, must be at least 610",
    );
    place
        .refused(&["--rlimit-nofile=700", "--thread-pool-size=100"])
        .is_failure("Limit is 700, must be at least 709");
    let text = fs::read_to_string("/proc/sys/fs/nr_open").unwrap();
    let most: u64 = text.trim().parse().unwrap();
    place
        .refused(&[&format!("--rlimit-nofile={}", most + 1)])
        .is_failure(&format!(
            "Error increasing number of open files: It cannot be increased above {most}"
        ));
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn a_low_limit_is_warned_about() {
    let place = Place::new();
    let daemon = place.start(&["--rlimit-nofile=700", "--num-request-queues=1"]);
    let warned = |line: &String| line.contains("only 90 file descriptors are left for the guest");
    assert!(daemon.lines.iter().any(warned), "{:#?}", daemon.lines);
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let open_files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let numbers: Vec<_> = open_files.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["700", "700"]);
}

// The socket and the pid file

#[test]
fn the_socket_is_for_its_owner_and_the_pid_file_names_the_process() {
    let place = Place::new();
    let daemon = place.start(&[]);
    assert_eq!(place.names(), ["share", "socket", "socket.pid"]);
    let socket = fs::symlink_metadata(place.path("socket")).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.mode() & 0o7777, 0o700);
    assert_eq!(
        fs::metadata(place.path("socket.pid")).unwrap().mode() & 0o7777,
        0o600
    );
    let pid = fs::read_to_string(place.path("socket.pid")).unwrap();
    assert_eq!(pid, format!("{}\n", daemon.pid()));
    let (status, _) = daemon.disconnect_from(&place.path("socket"));
    assert_eq!(status.code(), Some(0));
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn with_a_group_its_members_may_connect() {
    // Root may give a file to any group, others to one of their own.
    let gid = if rustix::process::geteuid().is_root() {
        1
    } else {
        rustix::process::getegid().as_raw()
    };
    let Ok(Some(group)) = nix::unistd::Group::from_gid(gid.into()) else {
        eprintln!("skipped: the group {gid} has no name here");
        return;
    };
    let place = Place::new();
    let daemon = place.start(&["--socket-group", &group.name]);
    let socket = fs::symlink_metadata(place.path("socket")).unwrap();
    assert_eq!(socket.mode() & 0o7777, 0o770);
    assert_eq!(socket.gid(), gid);
    let pid_file = fs::metadata(place.path("socket.pid")).unwrap();
    assert_eq!(pid_file.mode() & 0o7777, 0o600);
    assert_eq!(pid_file.gid(), rustix::process::getegid().as_raw());
    daemon.disconnect_from(&place.path("socket"));
}

#[test]
fn the_socket_may_have_an_absolute_path() {
    let place = Place::new();
    let socket = place.path("socket");
    let daemon = place.start(&["--socket-path", socket.to_str().unwrap()]);
    daemon.disconnect_from(&socket);
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn what_an_earlier_daemon_left_is_replaced() {
    let place = Place::new();
    drop(UnixListener::bind(place.path("socket")).unwrap());
    fs::write(place.path("socket.pid"), "99999999999999999999\n").unwrap();
    let daemon = place.start(&[]);
    let pid = fs::read_to_string(place.path("socket.pid")).unwrap();
    assert_eq!(pid, format!("{}\n", daemon.pid()));
    daemon.disconnect_from(&place.path("socket"));
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn an_empty_file_that_holds_the_name_is_replaced() {
    let place = Place::new();
    fs::write(place.path("socket"), "").unwrap();
    place.start(&[]).disconnect_from(&place.path("socket"));
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn a_second_daemon_on_the_socket_is_refused_and_the_first_goes_on() {
    let place = Place::new();
    let first = place.start(&[]);
    let inode = |name: &str| fs::symlink_metadata(place.path(name)).unwrap().ino();
    let before = (inode("socket"), inode("socket.pid"));

    let second = place.refused(&[]);
    second.is_failure(
        "Error creating pid file 'socket.pid': Resource temporarily unavailable (os error 11)",
    );
    second.is_failure("another daemon uses this socket; stop it");

    assert_eq!((inode("socket"), inode("socket.pid")), before);
    let pid = fs::read_to_string(place.path("socket.pid")).unwrap();
    assert_eq!(pid, format!("{}\n", first.pid()));
    let (status, _) = first.disconnect_from(&place.path("socket"));
    assert_eq!(status.code(), Some(0));
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn files_that_took_our_names_are_left_alone() {
    let place = Place::new();
    let daemon = place.start(&[]);
    fs::rename(place.path("socket"), place.path("moved")).unwrap();
    fs::remove_file(place.path("socket.pid")).unwrap();
    fs::write(place.path("socket"), "another's").unwrap();
    fs::write(place.path("socket.pid"), "another's").unwrap();
    daemon.disconnect_from(&place.path("moved"));
    assert_eq!(place.names(), ["moved", "share", "socket", "socket.pid"]);
    for name in ["socket", "socket.pid"] {
        assert_eq!(fs::read_to_string(place.path(name)).unwrap(), "another's");
    }
}

#[test]
fn a_renamed_folder_is_cleaned_all_the_same() {
    let place = Place::new();
    fs::create_dir(place.path("before")).unwrap();
    let daemon = place.start(&["--socket-path=before/socket"]);
    fs::rename(place.path("before"), place.path("after")).unwrap();
    daemon.disconnect_from(&place.path("after/socket"));
    assert_eq!(fs::read_dir(place.path("after")).unwrap().count(), 0);
}

#[test]
fn signals_end_the_daemon_and_nothing_is_left() {
    for (signal, expected) in [
        (Signal::TERM, (Some(1), None)),
        (Signal::HUP, (Some(1), None)),
        (Signal::INT, (None, Some(2))),
    ] {
        let place = Place::new();
        let status = place.start(&[]).signal(signal);
        assert_eq!((status.code(), status.signal()), expected);
        assert_eq!(place.names(), ["share"]);
    }
}

#[test]
fn a_signal_while_a_front_end_is_served_leaves_nothing_either() {
    let place = Place::new();
    let mut daemon = place.start(&[]);
    let _front_end = UnixStream::connect(place.path("socket")).unwrap();
    daemon.read_line();
    assert!(daemon.lines.last().unwrap().contains("Client connected"));
    assert_eq!(daemon.signal(Signal::TERM).code(), Some(1));
    assert_eq!(place.names(), ["share"]);
}

// A passed descriptor

fn with_fd_0(place: &Place, fd: impl Into<OwnedFd>) -> Command {
    let mut command = place.command(&UNLOCKED);
    command
        .args(["--shared-dir=share", "--fd=0"])
        .stdin(fd.into());
    command
}

#[test]
fn a_listening_socket_may_be_passed() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("passed")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let daemon = Daemon::start(with_fd_0(&place, listener));
    let (status, lines) = daemon.disconnect_from(&place.path("passed"));
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    // The socket is its maker's to remove, and there is no pid file.
    assert_eq!(place.names(), ["passed", "share"]);
}

#[test]
fn a_passed_descriptor_may_have_any_number() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("passed")).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec "$0" "$@" 8<&0 0</dev/null"#, BINARY])
        .args(UNLOCKED);
    command
        .args(["--shared-dir=share", "--fd=8"])
        .current_dir(place.0.path());
    command
        .env_remove("RUST_LOG")
        .stdin(OwnedFd::from(listener));
    let (status, _) = Daemon::start(command).disconnect_from(&place.path("passed"));
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_descriptor_that_is_no_listening_socket_is_refused() {
    let place = Place::new();
    let file = fs::File::open(place.path("share")).unwrap();
    Refusal::of(with_fd_0(&place, file)).is_failure("this is not a socket");

    let (connected, _other) = UnixStream::pair().unwrap();
    Refusal::of(with_fd_0(&place, connected)).is_failure("this socket does not listen");

    let (datagram, _other) = UnixDatagram::pair().unwrap();
    Refusal::of(with_fd_0(&place, datagram)).is_failure("this is not a stream socket");

    let internet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Refusal::of(with_fd_0(&place, internet)).is_failure("this is not a Unix socket");
}

#[test]
fn a_number_that_is_no_descriptor_is_refused() {
    let place = Place::new();
    // These are closed; whatever the daemon opens for itself comes after the
    // look at them, and must not be taken for what was passed.
    for number in ["3", "4", "5", "99", "2147483647"] {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"exec "$0" "$@" 3<&- 4<&- 5<&-"#, BINARY])
            .args(UNLOCKED);
        command
            .args(["--shared-dir=share", "--fd", number])
            .current_dir(place.0.path());
        command.env_remove("RUST_LOG").stdin(Stdio::null());
        let refusal = Refusal::of(command);
        refusal.is_failure(&format!("--fd {number}: no such descriptor was passed"));
        refusal.is_failure("Bad file descriptor");
    }
    Refusal::of(place.command(&["--shared-dir=share", "--fd=-1"])).is_usage_error("--fd");
    assert_eq!(place.names(), ["share"]);
}
