//! The daemon of an ordinary user: in its own user namespace, in one that
//! `unshare` made, without a sandbox, and where namespaces are forbidden.
//!
//! Run by root, the daemons here are those of the user `nobody`; run by anybody
//! else, they are that user's, and what takes root to set up is left out.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, PidfdFlags, Signal, getegid, geteuid, kill_process, pidfd_open};
use tempfile::TempDir;

use common::daemon::{Daemon, WAITING, copy_binary};
use common::frontend::{Config, HIPRIO, REQUEST, Vmm};
use common::fuse_client::{Client, Lock, Request, SetAttr, groups_extension};
use common::wire::{Encoder, FOPEN_DIRECT_IO, ROOT, op};
use common::{PATIENCE, wait_readable};

/// What the usual command line leaves to a daemon that has capabilities.
const USUAL: u64 = 0x8800_00db;

/// The user and group that the daemons run as.
fn user() -> (u32, u32) {
    if geteuid().is_root() {
        (65534, 65534)
    } else {
        (geteuid().as_raw(), getegid().as_raw())
    }
}

fn is_root(test: &str) -> bool {
    if !geteuid().is_root() {
        println!("{test} skips itself: it needs root");
        return false;
    }
    true
}

/// A folder with a daemon, a share and a place for the socket that the user may
/// reach.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = TempDir::with_prefix("virtiofsd-user-").unwrap();
        let everyone = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), everyone).unwrap();
        let (uid, gid) = user();
        for name in ["share", "run"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            chown(folder.path().join(name), Some(uid), Some(gid)).unwrap();
        }
        // The folder where it was built may not be open to others.
        copy_binary(&folder.path().join("virtiofsd"));
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A command that runs as the user.
    fn user_command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path());
        if geteuid().is_root() {
            let (uid, gid) = user();
            command.uid(uid).gid(gid);
        }
        command
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let always = ["--socket-path=run/socket", "--shared-dir=share"];
        let all = always.iter().chain(more);
        all.map(|&argument| argument.to_owned()).collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.user_command(self.path("virtiofsd").to_str().unwrap());
        command.args(self.arguments(arguments));
        command
    }

    fn start(&self, arguments: &[&str]) -> Daemon {
        Self::wait_for(self.command(arguments))
    }

    fn wait_for(command: Command) -> Daemon {
        let daemon = Daemon::spawn(command);
        daemon.expect_log(WAITING);
        daemon
    }

    fn mount(&self) -> (Vmm, Client) {
        let mut vmm = Vmm::connect(&self.path("run/socket"), &Config::default());
        vmm.start_queue(HIPRIO);
        let mut client = Client::new(vmm.start_queue(REQUEST));
        client.init();
        (vmm, client)
    }

    /// The last line of the log of a daemon that does not start, and that leaves
    /// nothing behind.
    #[track_caller]
    fn refusal(&self, command: Command) -> String {
        let mut daemon = Daemon::spawn(command);
        assert_eq!(daemon.wait().code(), Some(1), "{:#?}", daemon.log());
        self.assert_clean();
        daemon.log().last().unwrap().clone()
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(fs::read_dir(self.path("run")).unwrap().count(), 0);
    }

    /// Owner and group on the host of a name in the share.
    fn owner(&self, name: &str) -> (u32, u32) {
        let stat = fs::symlink_metadata(self.path("share").join(name)).unwrap();
        (stat.uid(), stat.gid())
    }

    /// A shell command that runs as root where the user may have the ids from
    /// 100000 to 165535, in a mount namespace of its own.
    fn with_more_ids(&self, more: &str, arguments: &[&str]) -> Command {
        let etc = self.path("etc");
        fs::create_dir(&etc).unwrap();
        for file in [
            "passwd",
            "group",
            "nsswitch.conf",
            "login.defs",
            "ld.so.cache",
        ] {
            // Not every system has all of them.
            let _ = fs::copy(Path::new("/etc").join(file), etc.join(file));
        }
        let (uid, gid) = user();
        for file in ["subuid", "subgid"] {
            fs::write(etc.join(file), format!("{uid}:100000:65536\n")).unwrap();
        }
        let mut command = Command::new("unshare");
        command.current_dir(self.0.path());
        command.args(["--mount", "sh", "-c"]);
        command.arg(format!(
            "mount --bind etc /etc && \
             exec setpriv --reuid={uid} --regid={gid} --clear-groups {more} ./virtiofsd \"$@\""
        ));
        command.arg("sh").args(self.arguments(arguments));
        command
    }
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

#[track_caller]
fn assert_capabilities(pid: u32, expected: u64) {
    for (set, expected) in [
        ("CapInh", 0),
        ("CapPrm", expected),
        ("CapEff", expected),
        ("CapAmb", 0),
    ] {
        let expected = format!("{expected:016x}");
        let found = of_all_threads(pid, set);
        assert!(found.len() >= 3, "{found:?}");
        assert!(
            found.iter().all(|found| *found == expected),
            "{set}: {found:?}"
        );
    }
}

#[track_caller]
fn assert_every_thread_is_locked(pid: u32) {
    for (field, value) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
        let found = of_all_threads(pid, field);
        assert!(
            found.iter().all(|found| found == value),
            "{field}: {found:?}"
        );
    }
}

fn proc(pid: u32, name: &str) -> PathBuf {
    format!("/proc/{pid}/{name}").into()
}

fn map_of(pid: u32, file: &str) -> Vec<Vec<u32>> {
    let text = fs::read_to_string(proc(pid, file)).unwrap();
    let numbers = |line: &str| {
        line.split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect()
    };
    text.lines().map(numbers).collect()
}

/// `MKDIR` by a user of the guest.
fn mkdir_as(client: &mut Client, (uid, gid): (u32, u32), name: &str) -> Result<(), i32> {
    (client.uid, client.gid) = (uid, gid);
    let made = client.mkdir(ROOT, name, 0o755, 0);
    (client.uid, client.gid) = (0, 0);
    made.map(drop)
}

// Its own namespaces

#[test]
fn the_default_command_line_makes_a_user_namespace_of_one_user() {
    let place = Place::new();
    let (uid, gid) = user();
    fs::write(place.path("share/file"), "content").unwrap();
    chown(place.path("share/file"), Some(uid), Some(gid)).unwrap();
    let mut daemon = place.start(&["--xattr"]);
    let (vmm, mut client) = place.mount();
    let inside = daemon.serving_pid();
    assert_ne!(inside, daemon.pid());

    assert_eq!(map_of(inside, "uid_map"), [[uid, uid, 1]]);
    assert_eq!(map_of(inside, "gid_map"), [[gid, gid, 1]]);
    let groups = fs::read_to_string(proc(inside, "setgroups")).unwrap();
    assert_eq!(groups.trim(), "deny");
    assert_capabilities(inside, USUAL);
    assert_capabilities_are_bounded(inside);
    assert_every_thread_is_locked(inside);
    let pids = of_all_threads(inside, "NSpid");
    assert!(pids.iter().any(|pids| pids.ends_with("\t1")), "{pids:?}");

    // What belongs to the user works, and nobody else is there.
    let file = client.walk("file").unwrap();
    assert_eq!((file.attr.uid, file.attr.gid), (uid, gid));
    let open = client.open(file.nodeid, libc::O_RDWR).unwrap();
    assert_eq!(
        client.read(file.nodeid, open.fh, 0, 10).unwrap(),
        b"content"
    );
    client.write(file.nodeid, open.fh, 0, b"CONTENT").unwrap();
    client
        .setxattr(file.nodeid, "user.x", b"1", 0, false)
        .unwrap();
    mkdir_as(&mut client, (uid, gid), "mine").unwrap();
    assert_eq!(place.owner("mine"), (uid, gid));
    assert_eq!(mkdir_as(&mut client, (0, 0), "roots"), Err(libc::EPERM));
    let other = (uid + 1, gid);
    assert_eq!(mkdir_as(&mut client, other, "others"), Err(libc::EPERM));
    assert!(client.walk("roots").is_err() && client.walk("others").is_err());

    drop((client, vmm));
    assert!(daemon.wait().success(), "{:#?}", daemon.log());
    place.assert_clean();
}

#[track_caller]
fn assert_capabilities_are_bounded(pid: u32) {
    let found = of_all_threads(pid, "CapBnd");
    let expected = format!("{USUAL:016x}");
    assert!(found.iter().all(|found| *found == expected), "{found:?}");
}

#[test]
fn inside_there_is_the_share_and_nothing_else() {
    if !is_root("inside_there_is_the_share_and_nothing_else") {
        return;
    }
    let place = Place::new();
    let daemon = place.start(&[]);
    let (_vmm, _client) = place.mount();
    let inside = daemon.serving_pid();
    let root = fs::metadata(proc(inside, "root")).unwrap();
    let share = fs::metadata(place.path("share")).unwrap();
    assert_eq!((root.dev(), root.ino()), (share.dev(), share.ino()));
    let mounts = fs::read_to_string(proc(inside, "mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    for name in ["ns/user", "ns/mnt", "ns/pid", "ns/net"] {
        let own = fs::read_link(proc(inside, name)).unwrap();
        let outside = fs::read_link(proc(daemon.pid(), name)).unwrap();
        assert_ne!(own, outside, "{name}");
    }
}

#[test]
fn the_guests_root_may_be_the_user() {
    let place = Place::new();
    let (uid, gid) = user();
    let daemon = place.start(&[
        &format!("--uid-map=:0:{uid}:1:"),
        &format!("--gid-map=,0,{gid},1,"),
    ]);
    let (_vmm, mut client) = place.mount();
    let inside = daemon.serving_pid();
    assert_eq!(map_of(inside, "uid_map"), [[0, uid, 1]]);
    assert_eq!(map_of(inside, "gid_map"), [[0, gid, 1]]);
    assert_capabilities(inside, USUAL);
    mkdir_as(&mut client, (0, 0), "roots").unwrap();
    assert_eq!(place.owner("roots"), (uid, gid));
    assert_eq!(client.walk("roots").unwrap().attr.uid, 0);
    assert_eq!(mkdir_as(&mut client, (1000, 0), "others"), Err(libc::EPERM));
}

#[test]
fn more_ids_are_had_through_newuidmap() {
    if !is_root("more_ids_are_had_through_newuidmap") {
        return;
    }
    let place = Place::new();
    let (uid, gid) = user();
    let arguments = [
        &format!("--uid-map=:0:{uid}:1:"),
        "--uid-map=:1:100000:65536:",
        &format!("--gid-map=:0:{gid}:1:"),
        "--gid-map=:1:100000:65536:",
    ];
    let daemon = Place::wait_for(place.with_more_ids("", &arguments));
    let (_vmm, mut client) = place.mount();
    let inside = daemon.serving_pid();
    assert_eq!(
        map_of(inside, "uid_map"),
        [[0, uid, 1], [1, 100_000, 65536]]
    );
    assert_capabilities(inside, USUAL);
    assert_every_thread_is_locked(inside);

    mkdir_as(&mut client, (0, 0), "roots").unwrap();
    assert_eq!(place.owner("roots"), (uid, gid));
    client.setattr(ROOT, &mode(0o777)).unwrap();
    mkdir_as(&mut client, (1000, 2000), "theirs").unwrap();
    assert_eq!(place.owner("theirs"), (100_999, 101_999));
    let node = client.walk("theirs").unwrap();
    assert_eq!((node.attr.uid, node.attr.gid), (1000, 2000));
    let owner = SetAttr {
        uid: Some(1),
        gid: Some(1),
        ..SetAttr::default()
    };
    client.setattr(node.nodeid, &owner).unwrap();
    assert_eq!(place.owner("theirs"), (100_000, 100_000));

    // Ids that the namespace does not have, a group besides included: the
    // request fails, and the next one is served as ever.
    assert_eq!(mkdir_as(&mut client, (70_000, 0), "x"), Err(libc::EPERM));
    assert_eq!(mkdir_as(&mut client, (1000, 70_000), "x"), Err(libc::EPERM));
    (client.uid, client.gid) = (1000, 1000);
    for (group, expected) in [(70_000, Err(libc::EPERM)), (2000, Ok(()))] {
        let body = Encoder::new().u32(0o755).u32(0).name("grouped");
        let request = Request::new(op::MKDIR, ROOT, body);
        let answer = client.call(&request.extensions(groups_extension(&[group])));
        assert_eq!(answer.map(drop), expected, "{group}");
    }
    (client.uid, client.gid) = (0, 0);
    client.mkdir(ROOT, "last", 0o755, 0).unwrap();
    assert_eq!(place.owner("last"), (uid, gid));
}

fn mode(mode: u32) -> SetAttr {
    SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    }
}

/// A namespace without a user 0: the daemon has capabilities and is not root.
#[test]
fn a_user_of_the_guest_does_not_get_the_daemons_capabilities() {
    if !is_root("a_user_of_the_guest_does_not_get_the_daemons_capabilities") {
        return;
    }
    let place = Place::new();
    let (uid, gid) = user();
    let arguments = [
        &format!("--uid-map=:{uid}:{uid}:1:"),
        "--uid-map=:1000:100000:1000:",
        &format!("--gid-map=:{gid}:{gid}:1:"),
        "--gid-map=:1000:100000:1000:",
    ];
    let daemon = Place::wait_for(place.with_more_ids("", &arguments));
    let (_vmm, mut client) = place.mount();
    // The guest's kernel decides who may make something where, but CAP_FSETID is not
    // the user's: a set-gid bit does not stay for who is not in the group.
    client.setattr(ROOT, &mode(0o2755)).unwrap();
    (client.uid, client.gid) = (1000, 1000);
    let body = Encoder::new().u32(libc::S_IFREG | 0o2775);
    let body = body.u32(0).u32(0).u32(0).name("x");
    client.call(&Request::new(op::MKNOD, ROOT, body)).unwrap();
    (client.uid, client.gid) = (0, 0);
    let made = fs::metadata(place.path("share/x")).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid()), (0o775, 100_000));
    client.setattr(ROOT, &mode(0o755)).unwrap();
    mkdir_as(&mut client, (uid, gid), "mine").unwrap();
    assert_capabilities(daemon.serving_pid(), USUAL);
    client.setattr(ROOT, &mode(0o777)).unwrap();
    mkdir_as(&mut client, (1000, 1000), "theirs").unwrap();
    assert_eq!(place.owner("theirs"), (100_000, 100_000));
    assert_capabilities(daemon.serving_pid(), USUAL);
}

#[test]
fn ids_that_are_not_the_users_are_refused_with_the_reason() {
    let place = Place::new();
    let line = place.refusal(place.command(&["--uid-map=:0:1:1:"]));
    for part in [
        "sandbox: couldn't setup id mappings: newuidmap ended with",
        "not allowed",
        "/etc/subuid",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let gid = user().1 + 1;
    let line = place.refusal(place.command(&[&format!("--gid-map=:0:{gid}:1:")]));
    assert!(line.contains("newgidmap ended with"), "{line}");
    assert!(line.contains("/etc/subgid"), "{line}");
}

#[test]
fn where_the_user_has_no_ids_of_others_that_is_named() {
    if !is_root("where_the_user_has_no_ids_of_others_that_is_named") {
        return;
    }
    for are_there in [true, false] {
        let place = Place::new();
        let command = place.with_more_ids("", &["--uid-map=:0:100000:2:"]);
        for file in ["etc/subuid", "etc/subgid"] {
            if are_there {
                fs::write(place.path(file), "").unwrap();
            } else {
                fs::remove_file(place.path(file)).unwrap();
            }
        }
        let line = place.refusal(command);
        for part in [
            "newuidmap ended with",
            "takes what /etc/subuid allows this user",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

#[test]
fn a_hard_limit_that_is_too_low_is_named() {
    let place = Place::new();
    let mut command = place.user_command("sh");
    let script = "ulimit -n 500 && exec ./virtiofsd \"$@\"";
    command
        .args(["-c", script, "sh"])
        .args(place.arguments(&[]));
    let line = place.refusal(command);
    for part in [
        "Maximum number of file descriptors too small: Limit is 500",
        "raise --rlimit-nofile, or the hard limit of whoever starts the daemon",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn a_folder_for_the_socket_that_is_closed_is_named() {
    let place = Place::new();
    let closed = fs::Permissions::from_mode(0o555);
    fs::set_permissions(place.path("run"), closed).unwrap();
    let line = place.refusal(place.command(&[]));
    for part in [
        "run/socket",
        "Permission denied",
        "the daemon's user may not write there; give it the directory",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let check = place.command(&["--check"]).output().unwrap();
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(
        said.contains("may not write to the directory of run/socket"),
        "{said}"
    );
}

/// Root's socket is closed to the user, until the user's group may connect.
#[test]
fn a_front_end_of_another_user_needs_the_group() {
    if !is_root("a_front_end_of_another_user_needs_the_group") {
        return;
    }
    let group = nix::unistd::Group::from_gid(user().1.into());
    let group = format!("--socket-group={}", group.unwrap().unwrap().name);
    for (options, expected) in [(&[][..], "Permission denied"), (&[group.as_str()], "")] {
        let place = Place::new();
        let mut command = place.command(options);
        command.uid(0).gid(0);
        let mut daemon = Place::wait_for(command);
        let connect = place
            .user_command("socat")
            .args(["-u", "/dev/null"])
            .arg("UNIX-CONNECT:run/socket")
            .output();
        let connect = connect.expect("tests/prepare installs socat");
        let said = String::from_utf8_lossy(&connect.stderr);
        assert_eq!(connect.status.success(), expected.is_empty(), "{said}");
        assert!(said.contains(expected), "{said}");
        if expected.is_empty() {
            assert!(daemon.wait().success());
            place.assert_clean();
        }
    }
}

#[test]
fn a_missing_newuidmap_is_named() {
    let place = Place::new();
    let mut command = place.command(&["--uid-map=:0:100000:2:"]);
    command.env("PATH", "/nowhere");
    let line = place.refusal(command);
    for part in [
        "--uid-map needs the program newuidmap",
        "package uidmap",
        &format!("--uid-map=:0:{}:1:", user().0),
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn signals_end_both_processes_and_nothing_is_left() {
    for signal in [Signal::TERM, Signal::HUP] {
        let place = Place::new();
        let mut daemon = place.start(&[]);
        let (_vmm, _client) = place.mount();
        let pid = |number: u32| Pid::from_raw(number.cast_signed()).unwrap();
        let inside = pidfd_open(pid(daemon.serving_pid()), PidfdFlags::empty()).unwrap();
        kill_process(pid(daemon.pid()), signal).unwrap();
        assert_eq!(daemon.wait().code(), Some(1));
        assert!(wait_readable(&inside, PATIENCE));
        place.assert_clean();
    }
}

#[test]
fn the_process_inside_ends_with_the_one_outside() {
    for root_inside in [false, true] {
        let place = Place::new();
        let (uid, gid) = user();
        let maps = [
            format!("--uid-map=:0:{uid}:1:"),
            format!("--gid-map=:0:{gid}:1:"),
        ];
        let maps: Vec<_> = maps.iter().map(String::as_str).collect();
        let daemon = place.start(if root_inside { &maps } else { &[] });
        let pid = |number: u32| Pid::from_raw(number.cast_signed()).unwrap();
        let inside = pidfd_open(pid(daemon.serving_pid()), PidfdFlags::empty()).unwrap();
        kill_process(pid(daemon.pid()), Signal::KILL).unwrap();
        assert!(wait_readable(&inside, PATIENCE), "it goes on");
    }
}

// What is refused

#[test]
fn chroot_is_for_root_and_id_maps_for_namespaces_of_others() {
    let place = Place::new();
    let line = place.refusal(place.command(&["--sandbox=chroot"]));
    assert!(
        line.contains("--sandbox=chroot can be used by root only"),
        "{line}"
    );
    for sandbox in ["--sandbox=none", "--sandbox=chroot"] {
        let line = place.refusal(place.command(&[sandbox, "--gid-map=:0:1:1:"]));
        assert!(
            line.contains("only be used by an unprivileged user"),
            "{line}"
        );
    }
    if geteuid().is_root() {
        let mut command = place.command(&["--uid-map=:0:1:1:"]);
        command.uid(0).gid(0);
        let line = place.refusal(command);
        assert!(
            line.contains("only be used by an unprivileged user"),
            "{line}"
        );
    }
}

// In a user namespace that somebody else made

#[test]
fn as_root_of_a_namespace_of_unshare_the_guests_root_is_the_user() {
    let place = Place::new();
    let mut command = place.user_command("unshare");
    command
        .args(["-r", "./virtiofsd"])
        .args(place.arguments(&[]));
    let daemon = Place::wait_for(command);
    let (_vmm, mut client) = place.mount();
    mkdir_as(&mut client, (0, 0), "roots").unwrap();
    assert_eq!(place.owner("roots"), user());
    assert_eq!(mkdir_as(&mut client, (1000, 0), "others"), Err(libc::EPERM));
    assert_capabilities(daemon.serving_pid(), USUAL);
}

#[test]
fn as_root_of_a_namespace_with_many_ids_the_guest_has_its_users() {
    if !is_root("as_root_of_a_namespace_with_many_ids_the_guest_has_its_users") {
        return;
    }
    for sandbox in ["namespace", "chroot", "none"] {
        let place = Place::new();
        let command =
            place.with_more_ids("unshare -r --map-auto", &["--sandbox", sandbox, "--xattr"]);
        let daemon = Place::wait_for(command);
        let (_vmm, mut client) = place.mount();
        mkdir_as(&mut client, (0, 0), "roots").unwrap();
        assert_eq!(place.owner("roots"), user());
        client.setattr(ROOT, &mode(0o777)).unwrap();
        mkdir_as(&mut client, (1000, 1000), "theirs").unwrap();
        assert_eq!(place.owner("theirs"), (100_999, 100_999), "{sandbox}");
        assert_eq!(mkdir_as(&mut client, (70_000, 0), "x"), Err(libc::EPERM));
        assert_capabilities(daemon.serving_pid(), USUAL);
        let groups = of_all_threads(daemon.serving_pid(), "Groups");
        assert!(groups.iter().all(String::is_empty), "{groups:?}");
    }
}

// Without a sandbox

#[test]
fn without_a_sandbox_the_daemon_is_its_user() {
    let place = Place::new();
    let (uid, gid) = user();
    let mut daemon = place.start(&["--sandbox=none", "--xattr", "--thread-pool-size=2"]);
    let (vmm, mut client) = place.mount();
    mkdir_as(&mut client, (uid, gid), "mine").unwrap();
    assert_eq!(place.owner("mine"), (uid, gid));
    let node = client.walk("mine").unwrap().nodeid;
    client.setxattr(node, "user.x", b"1", 0, false).unwrap();
    assert_eq!(mkdir_as(&mut client, (0, 0), "roots"), Err(libc::EPERM));
    assert_eq!(
        mkdir_as(&mut client, (uid + 1, gid), "others"),
        Err(libc::EPERM)
    );
    let device = libc::S_IFCHR | 0o666;
    (client.uid, client.gid) = (uid, gid);
    assert_eq!(
        client.mknod(ROOT, "null", device, 0x103, 0).err(),
        Some(libc::EPERM)
    );
    assert_capabilities(daemon.pid(), 0);
    assert_every_thread_is_locked(daemon.pid());
    // Other processes of the user cannot look into it.
    let ls = place
        .user_command("ls")
        .arg(proc(daemon.pid(), "fd"))
        .output();
    assert!(!ls.unwrap().status.success());
    drop((client, vmm));
    assert!(daemon.wait().success());
    place.assert_clean();
}

// Where namespaces are forbidden

mod container {
    //! A command under a filter of system calls like that of a container runtime.
    #![allow(unsafe_code)]

    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    /// The kernel says EPERM to namespaces and mounts, and to unshare altogether.
    pub(super) fn confine(command: &mut Command) {
        let namespaces = [
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWNS,
            libc::CLONE_NEWNET,
        ];
        let with = |flag: i32| {
            let flag = u64::try_from(flag).unwrap();
            let is_set = SeccompCmpOp::MaskedEq(flag);
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, is_set, flag);
            SeccompRule::new(vec![condition.unwrap()]).unwrap()
        };
        let always = [
            libc::SYS_unshare,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_pivot_root,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
        ];
        let mut rules: std::collections::BTreeMap<_, _> =
            always.into_iter().map(|call| (call, Vec::new())).collect();
        rules.insert(libc::SYS_clone, namespaces.map(with).to_vec());
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap()),
            TargetArch::try_from(std::env::consts::ARCH).unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        let apply = move || {
            seccompiler::apply_filter(&program).map_err(|_| std::io::Error::from_raw_os_error(1))
        };
        // SAFETY: the filter was built before; to install it takes two calls to
        // the kernel and no memory.
        unsafe { command.pre_exec(apply) };
    }
}

#[test]
fn in_a_container_without_namespaces_the_user_has_no_sandbox() {
    let place = Place::new();
    let mut command = place.command(&[]);
    container::confine(&mut command);
    let line = place.refusal(command);
    for part in [
        "cannot make a process in a new user namespace for the sandbox",
        "container runtimes usually forbid it",
        "user.max_user_namespaces",
        "--sandbox=none",
        "Operation not permitted",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }

    // Threads cannot have umasks of their own there.
    let mut command = place.command(&["--sandbox=none", "--posix-acl"]);
    container::confine(&mut command);
    let line = place.refusal(command);
    assert!(
        line.contains("--posix-acl needs threads that have umasks"),
        "{line}"
    );

    for pool in ["--thread-pool-size=0", "--thread-pool-size=3"] {
        let place = Place::new();
        let (uid, gid) = user();
        let mut command = place.command(&["--sandbox=none", "--xattr", pool]);
        container::confine(&mut command);
        let mut daemon = Place::wait_for(command);
        let (vmm, mut client) = place.mount();
        (client.uid, client.gid) = (uid, gid);
        let (file, open) = client.create(ROOT, "file", libc::O_RDWR, 0o640).unwrap();
        client.write(file.nodeid, open.fh, 0, b"content").unwrap();
        client
            .setxattr(file.nodeid, "user.x", b"1", 0, false)
            .unwrap();
        assert_eq!(client.getxattr(file.nodeid, "user.x", 10).unwrap(), b"1");
        assert_eq!(fs::read(place.path("share/file")).unwrap(), b"content");
        assert_every_thread_is_locked(daemon.pid());
        drop((client, vmm));
        assert!(daemon.wait().success());
        place.assert_clean();
    }
}

#[test]
fn in_a_container_without_namespaces_root_has_chroot() {
    if !is_root("in_a_container_without_namespaces_root_has_chroot") {
        return;
    }
    let place = Place::new();
    let as_root = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.uid(0).gid(0);
        container::confine(&mut command);
        command
    };
    let line = place.refusal(as_root(&[]));
    for part in [
        "cannot make a process in a new pid namespace for the sandbox",
        "container runtimes usually forbid it",
        "--sandbox=chroot",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    for sandbox in ["--sandbox=chroot", "--sandbox=none"] {
        let mut daemon = Place::wait_for(as_root(&[sandbox, "--xattr"]));
        let (vmm, mut client) = place.mount();
        let name = sandbox.trim_start_matches('-');
        client.setattr(ROOT, &mode(0o777)).unwrap();
        mkdir_as(&mut client, (1234, 2345), name).unwrap();
        assert_eq!(place.owner(name), (1234, 2345));
        let node = client.walk(name).unwrap().nodeid;
        client.setxattr(node, "user.x", b"1", 0, false).unwrap();
        drop((client, vmm));
        assert!(daemon.wait().success());
        place.assert_clean();
    }
}

#[test]
fn where_the_host_allows_no_user_namespaces_that_is_named() {
    if !is_root("where_the_host_allows_no_user_namespaces_that_is_named") {
        return;
    }
    let place = Place::new();
    // Each namespace has its own limit for those inside it.
    let mut command = place.with_more_ids(
        "unshare -r --map-auto sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && \
         chmod 777 run && exec setpriv --reuid=1000 --regid=1000 --clear-groups \"$@\"' sh",
        &[],
    );
    command.env_remove("RUST_LOG");
    let line = place.refusal(command);
    for part in [
        "cannot make a process in a new user namespace for the sandbox",
        "user.max_user_namespaces",
        "No space left on device",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn a_million_files_are_within_reach_of_few_descriptors() {
    const FILES: usize = 1_000_000;
    const FOLDERS: usize = 100;
    let place = Place::new();
    let share = TempDir::with_prefix_in("virtiofsd-share-", "/dev/shm").unwrap();
    let (uid, gid) = user();
    chown(share.path(), Some(uid), Some(gid)).unwrap();
    for folder in 0..FOLDERS {
        let folder = share.path().join(format!("d{folder}"));
        fs::create_dir(&folder).unwrap();
        for file in 0..FILES / FOLDERS {
            let (cwd, file) = (rustix::fs::CWD, folder.join(format!("f{file}")));
            let (kind, mode) = (
                rustix::fs::FileType::RegularFile,
                rustix::fs::Mode::from_raw_mode(0o666),
            );
            rustix::fs::mknodat(cwd, &file, kind, mode, 0).unwrap();
            chown(file, Some(uid), Some(gid)).unwrap();
        }
        chown(&folder, Some(uid), Some(gid)).unwrap();
    }
    let shared_dir = format!("--shared-dir={}", share.path().display());
    let daemon = place.start(&["--sandbox=none", "--rlimit-nofile=4096", &shared_dir]);
    let (vmm, mut client) = place.mount();
    let mut known = Vec::with_capacity(FILES);
    for folder in 0..FOLDERS {
        let folder = client.lookup(ROOT, format!("d{folder}")).unwrap().nodeid;
        let fh = client.opendir(folder).unwrap().fh;
        let entries = client.read_whole_dir(folder, fh, 128 << 10, true).unwrap();
        client.releasedir(folder, fh).unwrap();
        for found in entries {
            if let Some(entry) = found.entry.filter(|entry| entry.nodeid != 0) {
                known.push((folder, found.name, entry.nodeid));
            }
        }
    }
    assert_eq!(known.len(), FILES);
    for (folder, name, node) in known.iter().step_by(FILES / 500) {
        let name = str::from_utf8(name).unwrap();
        let fh = client.open(*node, libc::O_RDWR).unwrap().fh;
        assert_eq!(
            client.write(*node, fh, 0, name.as_bytes()),
            Ok(name.len() as u32)
        );
        assert_eq!(client.read(*node, fh, 0, 100).unwrap(), name.as_bytes());
        client.release(*node, fh).unwrap();
        client.rename((*folder, name), (ROOT, "moved")).unwrap();
        client.getattr(*node).unwrap();
        client.unlink(ROOT, "moved").unwrap();
    }
    drop((vmm, client));
    assert!(Daemon::wait(&mut { daemon }).success());
}

#[test]
fn a_file_that_can_only_be_written_is_written_without_the_guests_cache() {
    let place = Place::new();
    let file = place.path("share/file");
    fs::write(&file, "text").unwrap();
    let (uid, gid) = user();
    chown(&file, Some(uid), Some(gid)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o200)).unwrap();
    let map = format!("--translate-uid=map:0:{uid}:1");
    let mut daemon = place.start(&["--sandbox=none", "--writeback", &map]);
    let (vmm, mut client) = place.mount();
    let node = client.lookup(ROOT, "file").unwrap().nodeid;
    assert_eq!(client.open(node, libc::O_RDWR), Err(libc::EACCES));
    let open = client.open(node, libc::O_WRONLY).unwrap();
    assert_ne!(open.flags & FOPEN_DIRECT_IO, 0);
    assert_eq!(client.write(node, open.fh, 1, b"EX"), Ok(2));
    drop((vmm, client));
    daemon.wait();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"tEXt");
}

#[test]
fn a_file_that_may_not_be_opened_again_is_locked_by_one_process_at_a_time() {
    let place = Place::new();
    let (uid, gid) = user();
    chown(place.path("share"), Some(uid), Some(gid)).unwrap();
    let uids = format!("--translate-uid=map:0:{uid}:1");
    let gids = format!("--translate-gid=map:0:{gid}:1");
    let mut daemon = place.start(&["--sandbox=none", "--posix-lock", &uids, &gids]);
    let (vmm, mut client) = place.mount();
    let (entry, open) = client.create(ROOT, "file", libc::O_RDWR, 0o400).unwrap();
    let (node, fh) = (entry.nodeid, open.fh);
    let lock = |owner: u64, kind: i32| Lock {
        owner,
        start: 0,
        end: 9,
        kind,
        pid: 7,
        flags: 0,
    };
    let (mine, others) = (lock(1, libc::F_WRLCK), lock(2, libc::F_WRLCK));
    client.setlk(node, fh, &mine).unwrap();
    assert_eq!(client.setlk(node, fh, &others), Err(libc::ENOLCK));
    let found = client.getlk(node, fh, &others).unwrap();
    assert_eq!(
        (found.kind, found.start, found.end, found.pid),
        (libc::F_WRLCK, 0, 9, 7)
    );
    // It ends with the process, although the file stays open.
    client.flush_owner(node, fh, 1).unwrap();
    client.setlk(node, fh, &others).unwrap();
    client.setlk(node, fh, &lock(2, libc::F_UNLCK)).unwrap();
    client.release(node, fh).unwrap();
    drop((vmm, client));
    daemon.wait();
}
