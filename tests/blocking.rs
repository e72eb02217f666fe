//! A request that has to wait does not hold up its queue.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;

use rustix::fs::{Advice, fadvise, fsync};
use rustix::process::geteuid;

use common::fuse_client::{Request, read_in};
use common::held_fs::{CONTENT, HeldFs};
use common::session::Session;
use common::wire::{ROOT, op};

/// The most helper threads.
const MAX_HELPERS: usize = 64;

/// A guest whose share has a folder `held` where reads wait for the test.
struct Held {
    session: Session,
    fs: HeldFs,
    node: u64,
    fh: u64,
}

impl Held {
    fn new(args: &[&str]) -> Self {
        assert!(geteuid().is_root(), "mounting a file system needs root");
        let mut session = Session::new(args);
        fs::create_dir(session.path("held")).unwrap();
        let fs = HeldFs::mount(&session.path("held"));
        let node = session.client.walk("held/file").unwrap().nodeid;
        let fh = session.client.open(node, libc::O_RDONLY).unwrap().fh;
        Self {
            session,
            fs,
            node,
            fh,
        }
    }

    /// Starts reads, each of 4 KiB.
    fn start_reads(&mut self, count: u64) -> Vec<u64> {
        let requests = (0..count).map(|index| read_in(self.fh, index * 4096, 4096));
        let client = &mut self.session.client;
        let started = requests
            .map(|body| client.start(&Request::new(op::READ, self.node, body).space(4096)))
            .collect();
        client.submit();
        started
    }

    fn expect_answers(&mut self, reads: Vec<u64>) {
        for unique in reads {
            let data = self.session.client.wait_for(unique).unwrap();
            assert_eq!(data, [CONTENT; 4096]);
        }
    }

    /// Everything goes in an order in which nobody waits for ever.
    fn finish(self) {
        let Self { session, fs, .. } = self;
        fs.release();
        session.finish();
    }
}

#[test]
fn reads_of_a_slow_file_system_wait_together() {
    let mut held = Held::new(&[]);
    let reads = held.start_reads(32);
    held.fs.wait_for_reads(32);
    held.fs.release();
    held.expect_answers(reads);
    held.finish();
}

#[test]
fn others_are_answered_while_a_request_waits() {
    for args in [&[][..], &["--thread-pool-size=2"]] {
        let mut held = Held::new(args);
        held.session.put("f", "text");
        let reads = held.start_reads(1);
        held.fs.wait_for_reads(1);
        held.session.client.getattr(ROOT).unwrap();
        let entry = held.session.client.walk("f").unwrap();
        let open = held.session.client.open(entry.nodeid, libc::O_RDWR);
        let fh = open.unwrap().fh;
        let client = &mut held.session.client;
        assert_eq!(client.read(entry.nodeid, fh, 0, 10).unwrap(), b"text");
        client.fsync(entry.nodeid, fh, 0).unwrap();
        // The slow file system itself answers what it can.
        client.getattr(held.node).unwrap();
        held.fs.release();
        held.expect_answers(reads);
        held.finish();
    }
}

#[test]
fn more_requests_than_threads_wait_for_their_turn() {
    let mut held = Held::new(&[]);
    let reads = held.start_reads(100);
    held.fs.wait_for_reads(MAX_HELPERS);
    held.session.client.getattr(ROOT).unwrap();
    held.fs.release();
    held.expect_answers(reads);
    assert_eq!(held.fs.most_at_once(), MAX_HELPERS);
    held.finish();
}

#[test]
fn a_pool_of_0_threads_serves_one_after_the_other() {
    let mut held = Held::new(&["--thread-pool-size=0"]);
    let reads = held.start_reads(8);
    held.fs.wait_for_reads(1);
    held.fs.release();
    held.expect_answers(reads);
    assert_eq!(held.fs.most_at_once(), 1);
    held.finish();
}

#[test]
fn a_queue_is_stopped_when_nothing_of_it_waits_any_more() {
    let mut held = Held::new(&[]);
    let reads = held.start_reads(4);
    held.fs.wait_for_reads(4);
    std::thread::scope(|scope| {
        let (vmm, queue) = (&mut held.session.vmm, &held.session.client.queue);
        let stopped = scope.spawn(move || vmm.stop_queue(queue));
        held.fs.release();
        stopped.join().unwrap();
    });
    for _ in &reads {
        let (unique, raw, size) = held.session.client.poll_raw().expect("an answer");
        assert!(reads.contains(&unique));
        raw.check(unique, size).unwrap();
    }
    held.finish();
}

#[test]
fn what_is_not_in_the_page_cache_is_read_whole() {
    let mut session = Session::new(&[]);
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    session.put("f", &content);
    let file = fs::File::open(session.path("f")).unwrap();
    fsync(&file).unwrap();
    let entry = session.client.walk("f").unwrap();
    let fh = session
        .client
        .open(entry.nodeid, libc::O_RDONLY)
        .unwrap()
        .fh;
    for size in [1 << 20, 4096, 100_000] {
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let mut read = Vec::new();
        while read.len() < content.len() {
            let offset = read.len() as u64;
            let part = session.client.read(entry.nodeid, fh, offset, size).unwrap();
            assert_eq!(
                part.len(),
                (size as usize).min(content.len() - read.len()),
                "a short read in the middle"
            );
            read.extend(part);
        }
        assert!(read == content, "in pieces of {size}");
    }
    session.finish();
}

#[test]
fn large_and_synchronous_writes_arrive() {
    let mut session = Session::new(&["--allow-direct-io"]);
    for (name, flags) in [
        ("plain", 0),
        ("sync", libc::O_SYNC),
        ("direct", libc::O_DIRECT),
    ] {
        let flags = flags | libc::O_RDWR;
        let (entry, open) = session.client.create(ROOT, name, flags, 0o644).unwrap();
        let data: Vec<u8> = (0..2_097_152_u32).map(|n| (n / 3) as u8).collect();
        // A direct write needs aligned buffers, which the guest's are not here.
        match session.client.write(entry.nodeid, open.fh, 0, &data) {
            Ok(written) => assert_eq!(written, 2 << 20, "{name}"),
            Err(errno) => assert_eq!((name, errno), ("direct", libc::EINVAL)),
        }
        if name != "direct" {
            assert!(session.get(name) == data, "{name}");
        }
    }
    session.finish();
}

/// Names of the daemon's threads.
fn threads(session: &Session) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", session.daemon.serving_pid()));
    let names = tasks.unwrap().flatten();
    let names = names.map(|task| fs::read_to_string(task.path().join("comm")));
    names.flatten().map(|name| name.trim().to_owned()).collect()
}

#[test]
fn there_are_helpers_only_when_they_were_needed() {
    for (args, expected) in [(&[][..], true), (&["--thread-pool-size=0"], false)] {
        let mut session = Session::new(args);
        session.put("f", "text");
        let node = session.client.walk("f").unwrap().nodeid;
        let fh = session.client.open(node, libc::O_RDWR).unwrap().fh;
        // Whether the pages are there is the host's affair; it just wrote them.
        session.client.read(node, fh, 0, 4).unwrap();
        session.client.write(node, fh, 0, b"more").unwrap();
        let helpers = |session: &Session| threads(session).contains(&"helper".to_owned());
        assert!(!helpers(&session), "{:?}", threads(&session));
        session.client.fsync(node, fh, 0).unwrap();
        assert_eq!(helpers(&session), expected, "{:?}", threads(&session));
        session.finish();
    }
}
