//! What the daemon tells those who watch it: metrics over a socket, a summary by
//! signal, slow requests in the log.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, kill_process, prlimit};
use tempfile::TempDir;

use common::daemon::{Daemon, WAITING, default_binary};
use common::frontend::{Config, REQUEST, Vmm};
use common::fuse_client::Client;
use common::session::Session;
use common::wire::ROOT;

/// What `curl` gets from the socket.
fn scrape(socket: &Path) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--unix-socket"])
        .arg(socket)
        .arg("http://localhost/metrics")
        .output()
        .expect("tests/prepare installs curl");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The value of a line, which must be there.
#[track_caller]
fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(' '))
    });
    let line = line.unwrap_or_else(|| panic!("{name} is not in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// A guest, and the folder with the socket of its daemon's metrics.
fn watched(more: &[&str]) -> (Session, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("metrics");
    let mut args = vec!["--metrics-socket", socket.to_str().unwrap()];
    args.extend(more);
    (Session::with_config(&args, &Config::default()), folder)
}

#[test]
fn a_scraper_sees_what_the_guest_did() {
    let sandboxes = ["none", "chroot", "namespace"];
    let usable = if geteuid().is_root() { 3 } else { 1 };
    for sandbox in &sandboxes[..usable] {
        for threads in ["--thread-pool-size=0", "--thread-pool-size=2"] {
            let (mut session, folder) = watched(&["--sandbox", sandbox, threads]);
            let socket = folder.path().join("metrics");
            let mode = fs::metadata(&socket).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);

            session.put("file", vec![b'x'; 5000]);
            let node = session.client.lookup(ROOT, "file").unwrap().nodeid;
            for _ in 0..3 {
                session.client.lookup(ROOT, "missing").unwrap_err();
            }
            let handle = session.client.open(node, libc::O_RDWR).unwrap().fh;
            session.client.read(node, handle, 0, 5000).unwrap();
            session.client.write(node, handle, 0, &[0; 3000]).unwrap();

            let text = scrape(&socket);
            for (name, expected) in [
                (r#"request_duration_seconds_count{operation="lookup"}"#, 4.0),
                (
                    r#"request_duration_seconds_bucket{operation="lookup",le="+Inf"}"#,
                    4.0,
                ),
                (
                    r#"request_errors_total{operation="lookup",errno="ENOENT"}"#,
                    3.0,
                ),
                (r#"request_duration_seconds_count{operation="init"}"#, 1.0),
                (r#"reply_bytes_total{operation="read"}"#, 5016.0),
                (r#"request_bytes_total{operation="write"}"#, 3080.0),
                ("inodes", 2.0),
                ("handles", 1.0),
                (r#"queue_depth{queue="1"}"#, 0.0),
                ("requests_in_service", 0.0),
            ] {
                let name = format!("virtiofsd_{name}");
                assert_eq!(value(&text, &name), expected, "{name} in\n{text}");
            }
            let sum = "virtiofsd_request_duration_seconds_sum{operation=\"lookup\"}";
            assert!(value(&text, sum) > 0.0);
            assert!(value(&text, "virtiofsd_descriptors") >= 1.0);
            assert!(value(&text, "virtiofsd_serving_threads") >= 1.0);
            assert!(value(&text, "virtiofsd_descriptors_limit") > 100.0);
            let version = concat!(
                "virtiofsd_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"}"
            );
            assert_eq!(value(&text, version), 1.0);

            session.finish();
            assert!(!socket.exists(), "{sandbox}");
        }
    }
}

#[test]
fn a_signal_has_the_summary_logged() {
    let (mut session, _folder) = watched(&[]);
    session.put("file", "");
    session.client.lookup(ROOT, "file").unwrap();
    let pid = Pid::from_raw(session.daemon.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::USR1).unwrap();
    let line = session.daemon.expect_log("inodes: 2");
    assert!(line.contains("requests: 2"), "{line}");
    assert!(line.contains("lookup: 1"), "{line}");
    // It goes on.
    session.client.getattr(ROOT).unwrap();
    session.finish();
}

#[test]
fn without_the_option_the_signal_is_no_harm_and_nothing_is_counted() {
    let mut session = Session::new(&[]);
    let pid = Pid::from_raw(session.daemon.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::USR1).unwrap();
    let line = session.daemon.expect_log("inodes: 1");
    assert!(line.contains("requests: 0"), "{line}");
    session.client.getattr(ROOT).unwrap();
    session.finish();
}

#[test]
fn slow_requests_are_logged_with_their_file_and_not_without_end() {
    // Whatever takes no time at all is slow here.
    let mut session = Session::new(&["--slow-request-ms=0"]);
    session.put("file", "");
    let node = session.client.lookup(ROOT, "file").unwrap().nodeid;
    session.client.getattr(node).unwrap();
    let line = session.daemon.expect_log("slow request: getattr on ");
    assert!(line.contains("/file took "), "{line}");
    let error = session.client.lookup(ROOT, "missing").unwrap_err();
    let line = session.daemon.expect_log("No such file");
    assert!(line.contains("slow request: lookup"), "{error:?} {line}");
    for _ in 0..10_000 {
        session.client.getattr(node).unwrap();
    }
    let daemon = session.finish();
    // Ten for each second that it took, and one second has begun already.
    let lines = daemon.log_count("slow request: ");
    assert!(lines < 2000, "{lines}");
}

#[test]
fn a_name_cannot_command_the_terminal_that_shows_the_log() {
    let mut session = Session::new(&["--slow-request-ms=0"]);
    let name = "a\nb\u{1b}[31mc";
    session.put(name, "");
    let node = session.client.lookup(ROOT, name).unwrap().nodeid;
    session.client.getattr(node).unwrap();
    let line = session.daemon.expect_log("slow request: getattr on ");
    assert!(line.contains(r"/a\nb\u{1b}[31mc took "), "{line}");
    session.finish();
}

#[test]
fn a_launcher_that_does_not_read_the_log_stops_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let (share, socket) = (dir.path().join("share"), dir.path().join("socket"));
    fs::create_dir(&share).unwrap();
    let mut command = Command::new(default_binary());
    command
        .args(["--sandbox=none", "--seccomp=trap", "--log-level=trace"])
        .arg("--shared-dir")
        .arg(&share)
        .arg("--socket-path")
        .arg(&socket)
        .stderr(Stdio::piped());
    let mut daemon = command.spawn().unwrap();
    let mut log = BufReader::new(daemon.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(WAITING) {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    let mut vmm = Vmm::connect(&socket, &Config::default());
    let mut client = Client::new(vmm.start_queue(REQUEST));
    client.init();
    // Each is worth a line; a pipe holds some hundreds.
    for _ in 0..5000 {
        client.getattr(ROOT).unwrap();
    }
    drop((client, vmm));
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(daemon.wait().unwrap().success());
    assert!(rest.len() < 1 << 20, "{} bytes", rest.len());
}

#[test]
fn the_metrics_can_be_read_again_after_descriptors_were_short() {
    let (mut session, folder) = watched(&[]);
    let socket = folder.path().join("metrics");
    let pid = Pid::from_raw(session.daemon.pid().cast_signed()).unwrap();
    let before = set_descriptor_limit(pid, Some(0));
    let _waits = UnixStream::connect(&socket).unwrap();
    let said = session
        .daemon
        .expect_log("the metrics cannot be read for now");
    assert!(said.contains("os error 24"), "{said}");
    set_descriptor_limit(pid, before);
    assert_eq!(value(&scrape(&socket), "virtiofsd_inodes"), 1.0);
    session.client.getattr(ROOT).unwrap();
    session.finish();
}

/// Sets the soft limit of descriptors of a process; gives the one before.
fn set_descriptor_limit(pid: Pid, limit: Option<u64>) -> Option<u64> {
    let now = fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_pid())).unwrap();
    let line = now.lines().find(|line| line.starts_with("Max open files"));
    let maximum = line
        .unwrap()
        .split_whitespace()
        .nth(4)
        .unwrap()
        .parse()
        .ok();
    let new = Rlimit {
        current: limit,
        maximum,
    };
    prlimit(Some(pid), Resource::Nofile, new).unwrap().current
}

#[test]
fn what_is_not_slow_is_not_logged() {
    let mut session = Session::new(&["--slow-request-ms=60000"]);
    session.client.getattr(ROOT).unwrap();
    assert_eq!(session.finish().log_count("slow request"), 0);
}

#[test]
fn the_socket_of_another_process_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("metrics");
    let _listener = UnixListener::bind(&socket).unwrap();
    let mut command = Command::new(default_binary());
    command
        .args(["--sandbox=none", "--rlimit-nofile=0", "--shared-dir"])
        .arg(folder.path())
        .arg("--socket-path")
        .arg(folder.path().join("socket"))
        .arg("--metrics-socket")
        .arg(&socket);
    let mut daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait().code(), Some(1));
    let line = daemon.expect_log("another process uses this socket");
    assert!(line.contains("--metrics-socket"), "{line}");
    assert!(socket.exists() && !folder.path().join("socket").exists());
}

#[test]
fn the_documents_and_the_dashboard_name_what_there_is() {
    let (mut session, folder) = watched(&[]);
    session.client.lookup(ROOT, "missing").unwrap_err();
    let text = scrape(&folder.path().join("metrics"));
    let there: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE virtiofsd_"))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let document = include_str!("../doc/observing.md");
    for name in &there {
        assert!(document.contains(&format!("`{name}`")), "{name}");
    }
    let dashboard = include_str!("../doc/grafana-dashboard.json");
    for (at, prefix) in dashboard.match_indices("virtiofsd_") {
        let name: String = dashboard[at + prefix.len()..]
            .chars()
            .take_while(|c| c.is_ascii_lowercase() || *c == '_')
            .collect();
        let of_histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        let name = of_histogram.unwrap_or(&name);
        assert!(there.contains(&name), "the dashboard asks for {name}");
    }
    session.finish();
}
