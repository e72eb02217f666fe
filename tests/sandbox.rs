//! What the running daemon can and cannot do, and what it sees, by what the
//! kernel says of its processes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;

use rustix::process::geteuid;

use common::session::Session;

/// What the usual command line leaves to a daemon that is root.
const USUAL: u64 = 0x8800_00db;

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
        assert_capabilities(session.daemon.pid(), USUAL);
        let groups = of_all_threads(session.daemon.pid(), "Groups");
        assert!(groups.iter().all(String::is_empty), "{groups:?}");
        session.finish();
    }
}

#[test]
fn a_request_as_an_ordinary_user_gives_back_what_it_had() {
    if !is_root("a_request_as_an_ordinary_user_gives_back_what_it_had") {
        return;
    }
    let mut session = Session::new(&[]);
    (session.client.uid, session.client.gid) = (1234, 2345);
    session.client.mkdir(1, "theirs", 0o755, 0).unwrap();
    assert_capabilities(session.daemon.pid(), USUAL);
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
    assert_capabilities(session.daemon.pid(), USUAL & !(1 << 27) | 1 << 2);
    session.finish();
}

#[test]
fn new_privileges_are_forbidden_even_without_a_filter() {
    let session = Session::new(&["--seccomp=none"]);
    let found = of_all_threads(session.daemon.pid(), "NoNewPrivs");
    assert!(found.iter().all(|set| set == "1"), "{found:?}");
    session.finish();
}
