//! What the running daemon can and cannot do, and what it sees, by what the
//! kernel says of its processes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, kill_process, pidfd_open};
use tempfile::TempDir;

use common::PATIENCE;
use common::daemon::{Daemon, WAITING, default_binary};
use common::frontend::{Config, HIPRIO, REQUEST, Vmm};
use common::fuse_client::Client;
use common::session::Session;
use common::wait_readable;
use common::wire::ROOT;

/// What the usual command line leaves to a daemon that is root: what opening by
/// file handles takes is there if that can be done where the shares of the tests
/// lie.
fn usual() -> u64 {
    let search = u64::from(virtiofsd::passthrough::try_file_handles(&env::temp_dir()).is_ok());
    0x8800_00db | search << 2
}

/// Most tests here need a daemon that is root.
fn is_root(test: &str) -> bool {
    if !geteuid().is_root() {
        println!("{test} skips itself: it needs root");
        return false;
    }
    true
}

/// One line of the status of every thread.
fn of_all_threads(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| {
            let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(field));
            line.unwrap().trim_start_matches(':').trim().to_owned()
        })
        .collect()
}

/// Asserts that every thread has exactly these capabilities and no others.
#[track_caller]
fn assert_capabilities(pid: u32, expected: u64) {
    for (set, expected) in [
        ("CapInh", 0),
        ("CapPrm", expected),
        ("CapEff", expected),
        ("CapBnd", expected),
        ("CapAmb", 0),
    ] {
        let found = of_all_threads(pid, set);
        assert!(found.len() >= 3, "{found:?}");
        let expected = format!("{expected:016x}");
        assert!(
            found.iter().all(|found| *found == expected),
            "{set}: {found:?}, not {expected}"
        );
    }
}

// Capabilities

#[test]
fn root_keeps_what_files_need_on_every_thread() {
    if !is_root("root_keeps_what_files_need_on_every_thread") {
        return;
    }
    for pool in ["--thread-pool-size=0", "--thread-pool-size=3"] {
        let mut session = Session::new(&[pool]);
        session.client.mkdir(1, "folder", 0o755, 0).unwrap();
        assert_capabilities(session.daemon.pid(), usual());
        let groups = of_all_threads(session.daemon.pid(), "Groups");
        assert!(groups.iter().all(String::is_empty), "{groups:?}");
        session.finish();
    }
}

#[test]
fn without_file_handles_what_they_take_is_given_up() {
    if !is_root("without_file_handles_what_they_take_is_given_up") {
        return;
    }
    let session = Session::new(&["--inode-file-handles=never"]);
    assert_capabilities(session.daemon.pid(), 0x8800_00db);
    session.finish();
}

#[test]
fn a_request_as_an_ordinary_user_gives_back_what_it_had() {
    if !is_root("a_request_as_an_ordinary_user_gives_back_what_it_had") {
        return;
    }
    let mut session = Session::new(&[]);
    (session.client.uid, session.client.gid) = (1234, 2345);
    session.client.mkdir(1, "theirs", 0o755, 0).unwrap();
    assert_capabilities(session.daemon.pid(), usual());
    (session.client.uid, session.client.gid) = (0, 0);
    session.client.mkdir(1, "ours", 0o755, 0).unwrap();
    session.finish();
}

#[test]
fn modcaps_change_the_set() {
    if !is_root("modcaps_change_the_set") {
        return;
    }
    let session = Session::new(&["--modcaps=-mknod:+Dac_Read_Search:-net_raw"]);
    assert_capabilities(session.daemon.pid(), usual() & !(1 << 27) | 1 << 2);
    session.finish();
}

#[test]
fn new_privileges_are_forbidden_even_without_a_filter() {
    let session = Session::new(&["--seccomp=none"]);
    let found = of_all_threads(session.daemon.pid(), "NoNewPrivs");
    assert!(found.iter().all(|set| set == "1"), "{found:?}");
    session.finish();
}

// Sandboxes

const SANDBOXES: [&str; 2] = ["namespace", "chroot"];

/// A folder with a folder `share` in it, which has a file.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = TempDir::with_prefix("virtiofsd-sandbox-").unwrap();
        fs::create_dir(folder.path().join("share")).unwrap();
        let everyone = fs::Permissions::from_mode(0o777);
        fs::set_permissions(folder.path().join("share"), everyone).unwrap();
        fs::write(folder.path().join("share/file"), "content").unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(default_binary());
        command.current_dir(self.0.path());
        command
            .args(["--socket-path=socket", "--shared-dir=share"])
            .args(arguments);
        command
    }

    fn start(&self, arguments: &[&str]) -> Daemon {
        let daemon = Daemon::spawn(self.command(arguments));
        daemon.expect_log(WAITING);
        daemon
    }

    /// Asserts that what the daemon made is gone and nothing else.
    #[track_caller]
    fn assert_clean(&self) {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["secret", "share"]);
    }
}

/// The process inside, of which there is one.
fn inside(daemon: &Daemon) -> u32 {
    let pid = daemon.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("not one child: {children:?}"))
}

fn proc(pid: u32, name: &str) -> PathBuf {
    format!("/proc/{pid}/{name}").into()
}

fn pid_of(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).unwrap()
}

/// Connects and mounts as a guest does.
fn mount(socket: &Path) -> (Vmm, Client) {
    let mut vmm = Vmm::connect(socket, &Config::default());
    vmm.start_queue(HIPRIO);
    let mut client = Client::new(vmm.start_queue(REQUEST));
    client.init();
    (vmm, client)
}

#[test]
fn the_default_command_line_serves_a_session() {
    if !is_root("the_default_command_line_serves_a_session") {
        return;
    }
    let place = Place::new();
    let mut daemon = place.start(&[]);
    let pid = fs::read_to_string(place.path("socket.pid")).unwrap();
    assert_eq!(pid.trim(), daemon.pid().to_string());

    let (vmm, mut client) = mount(&place.path("socket"));
    let file = client.lookup(ROOT, "file").unwrap().nodeid;
    let open = client.open(file, libc::O_RDWR).unwrap();
    assert_eq!(client.read(file, open.fh, 0, 100).unwrap(), b"content");
    client.write(file, open.fh, 0, b"CONTENT").unwrap();
    assert_eq!(fs::read(place.path("share/file")).unwrap(), b"CONTENT");
    (client.uid, client.gid) = (1234, 2345);
    client.mkdir(ROOT, "mine", 0o755, 0).unwrap();
    assert_eq!(fs::metadata(place.path("share/mine")).unwrap().uid(), 1234);
    (client.uid, client.gid) = (0, 0);
    client.mkdir(ROOT, "folder", 0o755, 0).unwrap();
    assert!(place.path("share/folder").is_dir());

    let filters = of_all_threads(inside(&daemon), "Seccomp");
    assert!(filters.iter().all(|mode| mode == "2"), "{filters:?}");
    assert_capabilities(inside(&daemon), usual());

    drop((client, vmm));
    let status = daemon.wait();
    assert!(status.success(), "{status}");
    place.assert_clean();
}

#[test]
fn extended_attributes_and_pool_threads_work_inside() {
    if !is_root("extended_attributes_and_pool_threads_work_inside") {
        return;
    }
    for sandbox in SANDBOXES {
        for pool in ["--thread-pool-size=0", "--thread-pool-size=2"] {
            let mut session = Session::new(&["--sandbox", sandbox, "--xattr", pool]);
            session.put("file", "content");
            let file = session.client.lookup(ROOT, "file").unwrap().nodeid;
            session
                .client
                .setxattr(file, "trusted.x", b"1", 0, false)
                .unwrap_err();
            session
                .client
                .setxattr(file, "user.x", b"1", 0, false)
                .unwrap();
            assert_eq!(session.client.getxattr(file, "user.x", 10).unwrap(), b"1");
            session.finish();
        }
    }
}

#[test]
fn inside_there_is_the_share_and_nothing_else() {
    if !is_root("inside_there_is_the_share_and_nothing_else") {
        return;
    }
    for sandbox in SANDBOXES {
        let place = Place::new();
        let daemon = place.start(&["--sandbox", sandbox]);
        let (_vmm, mut client) = mount(&place.path("socket"));
        let inside = inside(&daemon);

        let root = fs::metadata(proc(inside, "root")).unwrap();
        let share = fs::metadata(place.path("share")).unwrap();
        assert_eq!(
            (root.dev(), root.ino()),
            (share.dev(), share.ino()),
            "{sandbox}"
        );
        client.lookup(ROOT, "proc").unwrap_err();
        client.lookup(ROOT, "socket").unwrap_err();

        // No descriptor leads out, but that of the list of descriptors itself.
        for entry in fs::read_dir(proc(inside, "fd")).unwrap() {
            let entry = entry.unwrap();
            let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
            let Ok(found) = fs::metadata(entry.path()) else {
                continue;
            };
            if number > 2 && found.is_dir() && found.ino() != root.ino() {
                let link = fs::read_link(entry.path()).unwrap();
                assert_eq!(
                    found.mode() & 0o7777,
                    0o500,
                    "{sandbox}: {number} is {link:?}"
                );
            }
        }

        let own = |name: &str| fs::read_link(proc(inside, name)).unwrap();
        let ours = |name: &str| fs::read_link(proc(std::process::id(), name)).unwrap();
        for name in ["ns/mnt", "ns/pid", "ns/net"] {
            assert_eq!(
                own(name) != ours(name),
                sandbox == "namespace",
                "{sandbox}: {name}"
            );
        }
        if sandbox == "namespace" {
            let mounts = fs::read_to_string(proc(inside, "mountinfo")).unwrap();
            assert_eq!(mounts.lines().count(), 1, "{mounts}");
            let pids = of_all_threads(inside, "NSpid");
            assert!(pids.iter().any(|pids| pids.ends_with("\t1")), "{pids:?}");
            let devices = fs::read_to_string(proc(inside, "net/dev")).unwrap();
            let devices = devices.lines().filter(|line| line.contains(':')).count();
            assert_eq!(devices, 1, "only the loopback device");
        }
    }
}

/// A mount on a folder, for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn on(folder: PathBuf, arguments: &[&str]) -> Self {
        let done = Command::new("mount")
            .args(arguments)
            .arg(&folder)
            .status()
            .unwrap();
        assert!(done.success());
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn mounts_reach_the_inside_from_the_outside_only() {
    if !is_root("mounts_reach_the_inside_from_the_outside_only") {
        return;
    }
    let place = Place::new();
    let share = place.path("share");
    let _shared = Mounted::on(
        share.clone(),
        &["--bind", "--make-shared", share.to_str().unwrap()],
    );
    fs::create_dir(share.join("early")).unwrap();
    fs::create_dir(share.join("late")).unwrap();
    let _early = Mounted::on(share.join("early"), &["-t", "tmpfs", "none"]);
    fs::write(share.join("early/file"), "").unwrap();

    let daemon = place.start(&[]);
    let (_vmm, mut client) = mount(&place.path("socket"));
    let _late = Mounted::on(share.join("late"), &["-t", "tmpfs", "none"]);
    fs::write(share.join("late/file"), "").unwrap();
    client.walk("early/file").unwrap();
    client.walk("late/file").unwrap();

    // One of the share and one of each folder in it, and none from inside.
    let below = |line: &&str| line.contains(place.0.path().to_str().unwrap());
    let outside = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(outside.lines().filter(below).count(), 3, "{outside}");
    drop(daemon);
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(after.lines().filter(below).count(), 3, "{after}");
}

#[test]
fn the_whole_tree_can_be_shared() {
    if !is_root("the_whole_tree_can_be_shared") {
        return;
    }
    for sandbox in SANDBOXES {
        let place = Place::new();
        let mut command = Command::new(default_binary());
        command.current_dir(place.0.path());
        command.args([
            "--socket-path=socket",
            "--shared-dir=/",
            "--sandbox",
            sandbox,
        ]);
        let daemon = Daemon::spawn(command);
        daemon.expect_log(WAITING);
        let (_vmm, mut client) = mount(&place.path("socket"));
        let path = place.path("secret");
        let path = path.to_str().unwrap().trim_start_matches('/');
        let file = client.walk(path).unwrap();
        assert_eq!(file.attr.size, 6, "{sandbox}");
        // The descriptors of the daemon are not what is found at /proc.
        client.walk("proc/version").unwrap();
    }
}

#[test]
fn signals_end_both_processes_and_nothing_is_left() {
    if !is_root("signals_end_both_processes_and_nothing_is_left") {
        return;
    }
    for sandbox in SANDBOXES {
        for served in [false, true] {
            for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
                let place = Place::new();
                let mut daemon = place.start(&["--sandbox", sandbox]);
                let _mounted = served.then(|| mount(&place.path("socket")));
                let inside = pidfd_open(pid_of(inside(&daemon)), PidfdFlags::empty()).unwrap();
                kill_process(pid_of(daemon.pid()), signal).unwrap();
                let status = daemon.wait();
                if signal == Signal::INT {
                    assert_eq!(status.signal(), Some(libc::SIGINT), "{sandbox}: {status}");
                } else {
                    assert_eq!(status.code(), Some(1), "{sandbox}: {status}");
                }
                assert!(
                    wait_readable(&inside, PATIENCE),
                    "the process inside goes on"
                );
                place.assert_clean();
            }
        }
    }
}

#[test]
fn the_end_of_either_process_is_that_of_the_other() {
    if !is_root("the_end_of_either_process_is_that_of_the_other") {
        return;
    }
    for sandbox in SANDBOXES {
        let place = Place::new();
        let daemon = place.start(&["--sandbox", sandbox]);
        let inside_pid = inside(&daemon);
        let (_vmm, mut client) = mount(&place.path("socket"));
        // Being another user for a request does not undo it.
        (client.uid, client.gid) = (1234, 2345);
        client.mkdir(ROOT, "mine", 0o755, 0).unwrap();
        let fd = pidfd_open(pid_of(inside_pid), PidfdFlags::empty()).unwrap();
        kill_process(pid_of(daemon.pid()), Signal::KILL).unwrap();
        assert!(
            wait_readable(&fd, PATIENCE),
            "{sandbox}: the process inside goes on"
        );

        let place = Place::new();
        let mut daemon = place.start(&["--sandbox", sandbox]);
        kill_process(pid_of(inside(&daemon)), Signal::KILL).unwrap();
        assert_eq!(daemon.wait().code(), Some(256 - libc::SIGKILL), "{sandbox}");
        assert_eq!(
            daemon.log_count("ended by signal 9"),
            1,
            "{:#?}",
            daemon.log()
        );
        place.assert_clean();
    }
}

#[test]
fn a_file_in_the_share_with_the_path_of_the_socket_is_left_alone() {
    if !is_root("a_file_in_the_share_with_the_path_of_the_socket_is_left_alone") {
        return;
    }
    for sandbox in SANDBOXES {
        let place = Place::new();
        let socket = place.path("socket");
        let twin = place.path("share").join(socket.strip_prefix("/").unwrap());
        fs::create_dir_all(twin.parent().unwrap()).unwrap();
        fs::write(&twin, "").unwrap();
        fs::write(twin.with_extension("pid"), "").unwrap();
        let mut command = Command::new(default_binary());
        command.arg("--socket-path").arg(&socket);
        command
            .arg("--shared-dir")
            .arg(place.path("share"))
            .args(["--sandbox", sandbox]);
        let mut daemon = Daemon::spawn(command);
        daemon.expect_log(WAITING);
        drop(mount(&socket));
        assert!(daemon.wait().success(), "{sandbox}");
        assert!(
            twin.exists() && twin.with_extension("pid").exists(),
            "{sandbox}"
        );
        place.assert_clean();
    }
}

#[test]
fn a_container_that_forbids_namespaces_is_named() {
    if !is_root("a_container_that_forbids_namespaces_is_named") {
        return;
    }
    let place = Place::new();
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", "--bounding-set=-sys_admin"]);
    if !Command::new("setpriv")
        .arg("--version")
        .output()
        .is_ok_and(|found| found.status.success())
    {
        println!("a_container_that_forbids_namespaces_is_named skips itself: there is no setpriv");
        return;
    }
    command
        .arg(default_binary())
        .args(["--socket-path=socket", "--shared-dir=share"]);
    command.current_dir(place.0.path());
    let mut daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait().code(), Some(1));
    let log = daemon.log();
    let line = log.last().unwrap();
    assert!(
        line.contains("cannot make a process in a new pid namespace"),
        "{line}"
    );
    assert!(
        line.contains("container") && line.contains("--sandbox=none"),
        "{line}"
    );
    place.assert_clean();
}
