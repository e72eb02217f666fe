//! The daemon or its front end is killed while requests are under way: what was
//! acknowledged is there, nothing is half done, and a new daemon starts on the
//! same paths.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use common::Random;
use common::daemon::{Daemon, default_binary};
use common::frontend::{Config, REQUEST, Vmm};
use common::fuse_client::{Client, Request, write_in};
use common::wire::{Encoder, OUT_HEADER, OutHeader, ROOT, op};

const FILES: usize = 12;
const ROUNDS: u64 = 20;

/// What a file holds after its round.
fn content(round: u64, file: usize) -> Vec<u8> {
    vec![(round * 16 + file as u64) as u8; 40_000]
}

/// Whose end it is.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Daemon,
    FrontEnd,
}

/// Writes, syncs and renames in one burst, and kills in the middle of it; gives
/// what was acknowledged: operation and file.
fn interrupted_round(
    daemon: &mut Daemon,
    round: u64,
    moment: u64,
    victim: Victim,
) -> HashSet<(u32, usize)> {
    let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
    let mut client = Client::new(vmm.start_queue(REQUEST));
    client.init();
    let opened: Vec<_> = (0..FILES)
        .map(|file| {
            let name = format!("{round}-{file}.new");
            let (entry, open) = client.create(ROOT, &name, libc::O_RDWR, 0o600).unwrap();
            (entry.nodeid, open.fh)
        })
        .collect();
    let mut asked = HashMap::new();
    for (file, &(node, fh)) in opened.iter().enumerate() {
        let data = content(round, file);
        let head = write_in(fh, 0, data.len() as u32, 0, libc::O_RDWR);
        let names = Encoder::new()
            .u64(ROOT)
            .name(format!("{round}-{file}.new"))
            .name(format!("{round}-{file}"));
        for request in [
            Request::new(op::WRITE, node, head.bytes(&data)),
            Request::new(op::FSYNC, node, Encoder::new().u64(fh).u64(0)),
            Request::new(op::RENAME, ROOT, names),
        ] {
            asked.insert(client.start(&request), (request.opcode, file));
        }
    }
    client.submit();
    let mut acknowledged = HashSet::new();
    let mut note = |unique: u64, bytes: &[u8]| {
        assert_eq!(OutHeader::decode(&bytes[..OUT_HEADER]).error, 0);
        acknowledged.insert(asked[&unique]);
    };
    for _ in 0..moment {
        let (unique, raw, _) = client.finish_raw();
        note(unique, &raw.bytes);
    }
    match victim {
        Victim::Daemon => {
            let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
            assert!(!daemon.wait().success());
        }
        Victim::FrontEnd => {
            // The kernel closes what a killed process had, and no more.
            drop(vmm);
            assert!(daemon.wait().success());
        }
    }
    while let Some((unique, raw, _)) = client.poll_raw() {
        note(unique, &raw.bytes);
    }
    acknowledged
}

fn check(share: &Path, round: u64, acknowledged: &HashSet<(u32, usize)>) {
    for file in 0..FILES {
        let (old, new) = (
            share.join(format!("{round}-{file}.new")),
            share.join(format!("{round}-{file}")),
        );
        let is_renamed = new.exists();
        assert!(
            old.exists() != is_renamed,
            "{round}-{file}: two names or none"
        );
        assert!(
            is_renamed || !acknowledged.contains(&(op::RENAME, file)),
            "{round}-{file}: an acknowledged rename is lost"
        );
        if acknowledged.contains(&(op::WRITE, file)) {
            let there = fs::read(if is_renamed { &new } else { &old }).unwrap();
            assert!(
                there == content(round, file),
                "{round}-{file}: data is lost"
            );
        }
    }
}

fn kill(args: &[&str], victim: Victim) {
    let dir = TempDir::new().unwrap();
    let (share, socket) = (dir.path().join("share"), dir.path().join("socket"));
    fs::create_dir(&share).unwrap();
    let mut random = Random(0x5eed);
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        // The same paths each time, whatever the last one has left.
        let mut daemon = Daemon::start_on(&default_binary(), &socket, &share, args);
        let moment = random.below(3 * FILES as u64);
        let done = interrupted_round(&mut daemon, round, moment, victim);
        check(&share, round, &done);
        acknowledged += done.len();
    }
    assert!(acknowledged > 0, "nothing was ever acknowledged");
}

#[test]
fn what_a_killed_daemon_has_acknowledged_is_there() {
    kill(&[], Victim::Daemon);
}

#[test]
fn what_a_killed_daemon_with_a_thread_pool_has_acknowledged_is_there() {
    kill(&["--thread-pool-size=4"], Victim::Daemon);
}

#[test]
fn what_was_acknowledged_to_a_killed_front_end_is_there() {
    kill(&[], Victim::FrontEnd);
}
