//! A request that has to wait does not hold up its queue.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise, fsync};
use rustix::process::geteuid;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use common::PATIENCE;
use common::frontend::{Config, F_EVENT_IDX, HIGH_MEMORY};
use common::frozen_fs::FrozenFs;
use common::fuse_client::{Client, RawReply, ReplySize, Request, SetAttr, read_in, write_in};
use common::held_fs::{CONTENT, HeldFs};
use common::lease::Lease;
use common::session::Session;
use common::wire::{Encoder, ROOT, op};

/// The most helper threads.
const MAX_HELPERS: usize = 64;

/// A guest whose share has a folder `held` where reads wait for the test.
struct Held {
    /// Dropped first, so that nobody waits for it.
    fs: HeldFs,
    session: Session,
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
fn a_server_that_is_gone_takes_no_disk_along() {
    let mut held = Held::new(&["--num-request-queues=2"]);
    let mut other = Client::new(held.session.vmm.start_queue(2));
    let client = &mut held.session.client;
    let (entry, open) = client.create(ROOT, "f", libc::O_RDWR, 0o600).unwrap();
    let reads = held.start_reads(100);
    held.fs.wait_for_reads(MAX_HELPERS);
    for client in [&mut held.session.client, &mut other] {
        client.write(entry.nodeid, open.fh, 0, b"text").unwrap();
        client.fsync(entry.nodeid, open.fh, 0).unwrap();
    }
    held.fs.release();
    held.expect_answers(reads);
    drop(other);
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

/// Names of the daemon's threads, and whether each waits for a disk.
fn threads(session: &Session) -> Vec<(String, bool)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", session.daemon.serving_pid()));
    let stats = tasks.unwrap().flatten();
    let stats = stats.map(|task| fs::read_to_string(task.path().join("stat")));
    let threads = stats.flatten().map(|stat| {
        let (_, rest) = stat.split_once('(').unwrap();
        let (name, rest) = rest.rsplit_once(')').unwrap();
        (name.to_owned(), rest.trim_start().starts_with('D'))
    });
    threads.collect()
}

/// How many threads have this name.
fn threads_named(session: &Session, name: &str) -> usize {
    threads(session).iter().filter(|(n, _)| n == name).count()
}

#[test]
fn there_are_helpers_only_when_they_were_needed() {
    for (args, expected) in [(&[][..], 1), (&["--thread-pool-size=0"], 0)] {
        let mut session = Session::new(args);
        session.put("f", "text");
        let node = session.client.walk("f").unwrap().nodeid;
        let fh = session.client.open(node, libc::O_RDWR).unwrap().fh;
        // Whether the pages are there is the host's affair; it just wrote them.
        session.client.read(node, fh, 0, 4).unwrap();
        session.client.write(node, fh, 0, b"more").unwrap();
        session.client.fallocate(node, fh, 0, 4096, 0).unwrap();
        assert_eq!(threads_named(&session, "helper"), 0);
        // One behind which there is another is not waited for by the queue's thread.
        let client = &mut session.client;
        let waits = client.start(&fallocate_request(node, fh, 8192));
        let attributes = client.start(&getattr_request(ROOT));
        client.submit();
        client.wait_for(attributes).unwrap();
        client.wait_for(waits).unwrap();
        assert_eq!(threads_named(&session, "helper"), expected);
        session.finish();
    }
}

fn fallocate_request(node: u64, fh: u64, length: u64) -> Request {
    let body = Encoder::new().u64(fh).u64(0).u64(length);
    Request::new(op::FALLOCATE, node, body.u32(0).u32(0))
}

fn getattr_request(node: u64) -> Request {
    Request::new(op::GETATTR, node, Encoder::new().u64(0).u64(0))
}

/// A guest that has opened a file on a disk of the host's.
struct OnDisk {
    /// Dropped first, so that nobody waits for it.
    disk: FrozenFs,
    session: Session,
    node: u64,
    fh: u64,
    /// Bytes that were asked for.
    allocated: u64,
}

impl OnDisk {
    fn new(args: &[&str], config: &Config) -> Self {
        assert!(geteuid().is_root(), "mounting a file system needs root");
        let mut session = Session::with_config(args, config);
        fs::create_dir(session.path("disk")).unwrap();
        let disk = FrozenFs::mount(&session.path("disk"));
        session.put("disk/file", "text");
        let node = session.client.walk("disk/file").unwrap().nodeid;
        let fh = session.client.open(node, libc::O_RDWR).unwrap().fh;
        Self {
            session,
            disk,
            node,
            fh,
            allocated: 0,
        }
    }

    /// Starts what waits as long as the disk is frozen, and waits until so many
    /// threads wait.
    fn start_waiting(&mut self, waiting: usize) -> u64 {
        self.allocated += 4096;
        let request = fallocate_request(self.node, self.fh, self.allocated);
        let unique = self.session.client.start(&request);
        self.session.client.submit();
        let deadline = Instant::now() + PATIENCE;
        while threads(&self.session).iter().filter(|(_, d)| *d).count() < waiting {
            assert!(Instant::now() < deadline, "{:?}", threads(&self.session));
            std::thread::yield_now();
        }
        unique
    }

    fn finish(self) {
        let Self { session, disk, .. } = self;
        drop(disk);
        session.finish();
    }
}

#[test]
fn a_queue_is_served_while_its_thread_waits_for_a_disk() {
    for (args, config) in [
        (&[][..], Config::default()),
        (&[], Config::default().without(F_EVENT_IDX)),
        (&["--poll-us=100"], Config::default()),
    ] {
        let mut on_disk = OnDisk::new(args, &config);
        on_disk.session.put("f", "text");
        for _ in 0..3 {
            on_disk.disk.freeze();
            let first = on_disk.start_waiting(1);
            let waits = ("vring_worker".to_owned(), true);
            assert!(threads(&on_disk.session).contains(&waits));
            let client = &mut on_disk.session.client;
            for _ in 0..100 {
                client.getattr(ROOT).unwrap();
            }
            let node = client.walk("f").unwrap().nodeid;
            let fh = client.open(node, libc::O_RDWR).unwrap().fh;
            assert_eq!(client.read(node, fh, 0, 10).unwrap(), b"text");
            client.fsync(node, fh, 0).unwrap();
            // What waits beside it holds nothing up either.
            let second = on_disk.start_waiting(2);
            let client = &mut on_disk.session.client;
            for _ in 0..100 {
                client.getattr(ROOT).unwrap();
            }
            on_disk.disk.thaw();
            client.wait_for(first).unwrap();
            client.wait_for(second).unwrap();
            client.getattr(ROOT).unwrap();
        }
        on_disk.finish();
    }
}

#[test]
fn a_queue_whose_thread_waits_for_a_disk_is_stopped_and_goes_on() {
    let mut on_disk = OnDisk::new(&[], &Config::default());
    for _ in 0..3 {
        on_disk.disk.freeze();
        let waits = on_disk.start_waiting(1);
        let (node, fh) = (on_disk.node, on_disk.fh);
        let OnDisk { session, disk, .. } = &mut on_disk;
        session.client.getattr(ROOT).unwrap();
        let base = std::thread::scope(|scope| {
            let (vmm, queue) = (&mut session.vmm, &session.client.queue);
            let stopped = scope.spawn(move || vmm.stop_queue(queue));
            disk.thaw();
            stopped.join().unwrap()
        });
        let (unique, raw, size) = session.client.poll_raw().expect("an answer");
        assert_eq!(unique, waits);
        raw.check(unique, size).unwrap();
        session.vmm.resume_queue(&session.client.queue, base);
        session.client.getattr(ROOT).unwrap();
        session.client.fsync(node, fh, 0).unwrap();
    }
    on_disk.finish();
}

#[test]
fn a_device_whose_thread_waits_for_a_disk_is_reset() {
    let mut on_disk = OnDisk::new(&[], &Config::default());
    on_disk.disk.freeze();
    let waits = on_disk.start_waiting(1);
    let OnDisk { session, disk, .. } = &mut on_disk;
    std::thread::scope(|scope| {
        let vhost = &mut session.vmm.vhost;
        let reset = scope.spawn(move || vhost.reset_device());
        disk.thaw();
        reset.join().unwrap().unwrap();
    });
    let (unique, raw, size) = session.client.poll_raw().expect("an answer");
    assert_eq!(unique, waits);
    raw.check(unique, size).unwrap();
    on_disk.finish();
}

#[test]
fn a_front_end_may_leave_while_a_queue_waits_for_a_disk() {
    let mut on_disk = OnDisk::new(&[], &Config::default());
    on_disk.disk.freeze();
    on_disk.start_waiting(1);
    let OnDisk { session, disk, .. } = on_disk;
    std::thread::scope(|scope| {
        let finished = scope.spawn(move || session.finish());
        drop(disk);
        finished.join().unwrap();
    });
}

#[test]
fn a_queue_that_waits_often_leaves_nothing_behind() {
    let mut on_disk = OnDisk::new(&[], &Config::default());
    let OnDisk {
        session, node, fh, ..
    } = &mut on_disk;
    let count = |session: &Session, what: &str| {
        let of = format!("/proc/{}/{what}", session.daemon.serving_pid());
        fs::read_dir(of).unwrap().count()
    };
    let before = (count(session, "fd"), count(session, "task"));
    for _ in 0..500 {
        session.client.fsync(*node, *fh, 0).unwrap();
    }
    assert_eq!((count(session, "fd"), count(session, "task")), before);
    on_disk.finish();
}

/// Every order of an answer, the next request and its kick.
#[test]
fn no_request_is_forgotten_between_two_threads_of_a_queue() {
    const ROUNDS: u64 = 1000;
    for (args, config) in [
        (&[][..], Config::default()),
        (&[], Config::default().without(F_EVENT_IDX)),
        (&["--poll-us=20"], Config::default()),
    ] {
        let mut on_disk = OnDisk::new(args, &config);
        let (node, fh) = (on_disk.node, on_disk.fh);
        let client = &mut on_disk.session.client;
        for round in 0..ROUNDS {
            // There for the most part, so that it does not take long.
            let waits = client.start(&fallocate_request(node, fh, 4096 + round / 100));
            client.submit();
            // From at once to after the answer.
            for _ in 0..(round % 100) * 20 {
                std::hint::spin_loop();
            }
            let others = [(); 2].map(|()| {
                let unique = client.start(&getattr_request(ROOT));
                client.submit();
                unique
            });
            for unique in others {
                client.wait_for(unique).unwrap();
            }
            client.wait_for(waits).unwrap();
        }
        on_disk.finish();
    }
}

/// Far less than what is waited for here ever takes, and far more than an answer does
/// on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Starts a request that waits; others are answered meanwhile.
#[track_caller]
fn start_waiting_beside_others(client: &mut Client, request: &Request) -> u64 {
    let unique = client.start(request);
    client.submit();
    for _ in 0..20 {
        let begun = Instant::now();
        client.getattr(ROOT).unwrap();
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    }
    unique
}

fn open_request(node: u64, flags: i32) -> Request {
    Request::new(
        op::OPEN,
        node,
        Encoder::new().u32(flags.cast_unsigned()).u32(0),
    )
}

#[test]
fn a_lease_of_the_host_is_waited_for_beside_others() {
    if !geteuid().is_root() {
        return println!("taking a lease of any file needs root: skips itself");
    }
    let truncate = SetAttr {
        size: Some(2),
        ..SetAttr::default()
    };
    let create = |name: &str| {
        let flags = (libc::O_RDWR | libc::O_CREAT).cast_unsigned();
        let body = Encoder::new().u32(flags).u32(0o644).u32(0).u32(0);
        Request::new(op::CREATE, ROOT, body.name(name))
    };
    for args in [
        &[][..],
        &["--inode-file-handles=never"],
        &["--thread-pool-size=0"],
    ] {
        let mut session = Session::new(args);
        for case in 0..5 {
            let name = format!("file-{case}");
            session.put(&name, "text");
            let node = session.client.lookup(ROOT, &name).unwrap().nodeid;
            let request = match case {
                0 => open_request(node, libc::O_RDONLY),
                1 => open_request(node, libc::O_RDWR),
                2 => open_request(node, libc::O_RDWR | libc::O_TRUNC),
                3 => create(&name),
                _ => Request::new(op::SETATTR, node, truncate.encode()),
            };
            // Who only reads is let in beside a lease for reading.
            let mut lease = Lease::take(&session.path(&name), case != 1);
            let unique = if args.contains(&"--thread-pool-size=0") {
                // There one waits behind the other; but nothing fails.
                let unique = session.client.start(&request);
                session.client.submit();
                unique
            } else {
                start_waiting_beside_others(&mut session.client, &request)
            };
            lease.give_up();
            session.client.wait_for(unique).unwrap();
            let expected: &[u8] = match case {
                2 => b"",
                4 => b"te",
                _ => b"text",
            };
            assert_eq!(session.get(&name), expected, "{name}");
        }
        session.finish();
    }
}

/// Each operation that changes something, as a request on the frozen disk.
fn changes(client: &mut Client, node: u64, fh: u64, dir: u64) -> Vec<(&'static str, Request)> {
    let name = |name: &str| Encoder::new().name(name);
    let create = {
        let flags = (libc::O_RDWR | libc::O_CREAT).cast_unsigned();
        let body = Encoder::new().u32(flags).u32(0o644).u32(0).u32(0);
        Request::new(op::CREATE, dir, body.name("created"))
    };
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let size = SetAttr {
        size: Some(1),
        ..SetAttr::default()
    };
    client.mkdir(dir, "empty", 0o755, 0).unwrap();
    client
        .mknod(dir, "unlinked", libc::S_IFREG | 0o600, 0, 0)
        .unwrap();
    client
        .mknod(dir, "old", libc::S_IFREG | 0o600, 0, 0)
        .unwrap();
    let write = write_in(fh, 0, 4, 0, libc::O_RDWR).bytes(b"more");
    let mknod = Encoder::new()
        .u32(libc::S_IFREG | 0o600)
        .u32(0)
        .u32(0)
        .u32(0);
    let mkdir = Encoder::new().u32(0o755).u32(0);
    let rename = Encoder::new().u64(dir).name("old").name("new");
    let link = Encoder::new().u64(node).name("linked");
    let setxattr = Encoder::new().u32(1).u32(0).name("user.x").bytes(b"v");
    vec![
        ("CREATE", create),
        (
            "SETATTR of the mode",
            Request::new(op::SETATTR, node, mode.encode()),
        ),
        (
            "SETATTR of the size",
            Request::new(op::SETATTR, node, size.encode()),
        ),
        (
            "OPEN with O_TRUNC",
            open_request(node, libc::O_RDWR | libc::O_TRUNC),
        ),
        ("WRITE", Request::new(op::WRITE, node, write)),
        ("MKNOD", Request::new(op::MKNOD, dir, mknod.name("made"))),
        ("MKDIR", Request::new(op::MKDIR, dir, mkdir.name("dir"))),
        (
            "SYMLINK",
            Request::new(op::SYMLINK, dir, name("link").name("target")),
        ),
        ("UNLINK", Request::new(op::UNLINK, dir, name("unlinked"))),
        ("RMDIR", Request::new(op::RMDIR, dir, name("empty"))),
        ("RENAME", Request::new(op::RENAME, dir, rename)),
        ("LINK", Request::new(op::LINK, dir, link)),
        ("SETXATTR", Request::new(op::SETXATTR, node, setxattr)),
    ]
}

#[test]
fn a_frozen_disk_keeps_nobody_back_who_does_not_change_it() {
    for args in [
        &["--xattr"][..],
        &["--xattr", "--poll-us=50"],
        &["--xattr", "--num-request-queues=3"],
    ] {
        let mut on_disk = OnDisk::new(args, &Config::default());
        let (node, fh) = (on_disk.node, on_disk.fh);
        let OnDisk { session, disk, .. } = &mut on_disk;
        let client = &mut session.client;
        let dir = client.lookup(ROOT, "disk").unwrap().nodeid;
        let changes = changes(client, node, fh, dir);
        // One at a time, then all at once.
        for (what, request) in &changes {
            if matches!(*what, "UNLINK" | "RMDIR" | "RENAME" | "LINK") {
                continue;
            }
            disk.freeze();
            let unique = start_waiting_beside_others(client, request);
            disk.thaw();
            if let Err(errno) = client.wait_for(unique) {
                assert_eq!(errno, libc::EEXIST, "{what}");
            }
        }
        disk.freeze();
        let waiting: Vec<_> = changes
            .iter()
            .map(|(what, request)| (what, start_waiting_beside_others(client, request)))
            .collect();
        disk.thaw();
        for (what, unique) in waiting {
            if let Err(errno) = client.wait_for(unique) {
                assert_eq!(errno, libc::EEXIST, "{what}");
            }
        }
        client.getattr(ROOT).unwrap();
        on_disk.finish();
    }
}

/// A mount of a server that does not answer any more; the kernel gives up on it when
/// this is dropped.
fn mount_gone(session: &Session, dir: &tempfile::TempDir) -> HeldFs {
    fs::create_dir(session.path("held")).unwrap();
    let gone = dir.path().join("gone");
    let held = HeldFs::mount_until(&session.path("held"), &gone);
    // It has begun, and nothing of it is remembered.
    rustix::fs::statvfs(session.path("held")).unwrap();
    fs::write(&gone, "").unwrap();
    held
}

#[test]
fn the_operator_is_told_what_keeps_a_queue_from_stopping() {
    let mut on_disk = OnDisk::new(&[], &Config::default());
    on_disk.disk.freeze();
    on_disk.start_waiting(1);
    let OnDisk { session, disk, .. } = &mut on_disk;
    std::thread::scope(|scope| {
        let (vmm, queue) = (&mut session.vmm, &session.client.queue);
        let stopped = scope.spawn(move || vmm.stop_queue(queue));
        session
            .daemon
            .expect_log("queue 1 is stopping and waits for 1 requests");
        disk.thaw();
        stopped.join().unwrap();
    });
    on_disk.finish();
}

/// Far more than the daemon waits for a file system, and far less than the test would
/// if it waited without end.
const A_STOP: Duration = Duration::from_secs(15);

/// Stops queue 1, in time, and gives its index and what each request got.
#[track_caller]
fn stop_in_time(session: &mut Session) -> (u16, Vec<(u64, RawReply, ReplySize)>) {
    let begun = Instant::now();
    let base = session.vmm.stop_queue(&session.client.queue);
    assert!(begun.elapsed() < A_STOP, "{:?}", begun.elapsed());
    let mut answers = Vec::new();
    while let Some(answer) = session.client.poll_raw() {
        answers.push(answer);
    }
    (base, answers)
}

/// What a program of the guest's has in memory that was a request's before.
const OTHER: u8 = 0xee;

/// Overwrites the buffers of requests, as another program of the guest's would.
fn reuse(session: &Session, buffers: &[(u64, usize)]) {
    for &(gpa, len) in buffers {
        session.vmm.memory.write(gpa, &vec![OTHER; len]);
    }
}

#[track_caller]
fn assert_untouched(session: &Session, buffers: &[(u64, usize)]) {
    for &(gpa, len) in buffers {
        let bytes = session.vmm.memory.read_vec(gpa, len);
        assert!(
            bytes == vec![OTHER; len],
            "the guest's memory was written to"
        );
    }
}

/// Waits until no thread of the daemon is in this system call.
fn wait_until_none_is_in(session: &Session, call: libc::c_long) {
    let of = format!("/proc/{}/task", session.daemon.serving_pid());
    let prefix = format!("{call} ");
    let deadline = Instant::now() + PATIENCE;
    while fs::read_dir(&of).unwrap().flatten().any(|task| {
        let now = fs::read_to_string(task.path().join("syscall"));
        now.is_ok_and(|now| now.starts_with(&prefix))
    }) {
        assert!(Instant::now() < deadline, "{:?}", threads(session));
        std::thread::yield_now();
    }
}

#[track_caller]
fn assert_all_failed(answers: &[(u64, RawReply, ReplySize)], expected: &[u64]) {
    let mut failed: Vec<_> = answers.iter().map(|(unique, ..)| *unique).collect();
    failed.sort_unstable();
    assert_eq!(failed, expected);
    for (unique, raw, size) in answers {
        assert_eq!(raw.check(*unique, *size).unwrap_err(), libc::EIO);
    }
}

/// Waits until no thread of the daemon is in the disk any more.
fn wait_until_none_waits(session: &Session) {
    let deadline = Instant::now() + PATIENCE;
    while threads(session).iter().any(|(_, waits)| *waits) {
        assert!(Instant::now() < deadline, "{:?}", threads(session));
        std::thread::yield_now();
    }
}

#[test]
fn a_frozen_disk_keeps_no_queue_from_stopping_and_nothing_is_mixed_up() {
    for args in [
        &["--xattr"][..],
        &["--xattr", "--thread-pool-size=4"],
        &["--xattr", "--thread-pool-size=0"],
    ] {
        let mut on_disk = OnDisk::new(args, &Config::default());
        let (node, fh) = (on_disk.node, on_disk.fh);
        let OnDisk { session, disk, .. } = &mut on_disk;
        let dir = session.client.lookup(ROOT, "disk").unwrap().nodeid;
        let changes = changes(&mut session.client, node, fh, dir);
        let mut expected = Vec::new();
        disk.freeze();
        for (what, request) in &changes {
            // The file is to stay as it is.
            if matches!(*what, "SETATTR of the size" | "OPEN with O_TRUNC") {
                continue;
            }
            expected.push(if args.contains(&"--thread-pool-size=4") {
                let unique = session.client.start(request);
                session.client.submit();
                unique
            } else if args.contains(&"--thread-pool-size=0") {
                session.client.start(request)
            } else {
                start_waiting_beside_others(&mut session.client, request)
            });
        }
        session.client.submit();
        let buffers = session.client.buffers();
        let (base, answers) = stop_in_time(session);
        // What was not begun is there for whoever goes on with the queue.
        let left = session.client.queue.next_avail().wrapping_sub(base);
        let failed = expected.len() - usize::from(left);
        assert_all_failed(&answers, &expected[..failed]);
        assert_eq!(session.client.queue.last_used(), base);
        if args == ["--xattr"] {
            assert_eq!(left, 0);
        }
        reuse(session, &buffers);
        disk.thaw();
        wait_until_none_waits(session);
        assert_untouched(session, &buffers);
        assert_eq!(session.get("disk/file"), b"text");
        on_disk.finish();
    }
}

#[test]
fn a_guest_goes_on_beside_a_disk_that_stays_frozen() {
    let mut on_disk = OnDisk::new(&[], &Config::default());
    let (node, fh) = (on_disk.node, on_disk.fh);
    let OnDisk { session, disk, .. } = &mut on_disk;
    let write = write_in(fh, 0, 4, 0, libc::O_RDWR).bytes(b"more");
    let write = Request::new(op::WRITE, node, write);
    disk.freeze();
    let first = start_waiting_beside_others(&mut session.client, &write);
    let (base, answers) = stop_in_time(session);
    assert_all_failed(&answers, &[first]);
    // As after QEMU's `stop` and `cont`, with a kick of its own.
    session.vmm.resume_queue(&session.client.queue, base);
    session.client.queue.kick();
    session.client.getattr(ROOT).unwrap();
    let second = start_waiting_beside_others(&mut session.client, &write);
    // The device as a whole, as when the guest starts again.
    let begun = Instant::now();
    session.vmm.vhost.reset_device().unwrap();
    assert!(begun.elapsed() < A_STOP, "{:?}", begun.elapsed());
    let (unique, raw, size) = session.client.poll_raw().expect("an answer");
    assert_eq!(unique, second);
    assert_eq!(raw.check(unique, size).unwrap_err(), libc::EIO);
    session
        .vmm
        .vhost
        .set_features(session.vmm.features)
        .unwrap();
    let queue = session.vmm.start_queue(1);
    session.client = Client::new(queue);
    session.client.init();
    session.put("f", "text");
    let entry = session.client.walk("f").unwrap();
    let opened = session.client.open(entry.nodeid, libc::O_RDWR).unwrap();
    session
        .client
        .write(entry.nodeid, opened.fh, 0, b"more")
        .unwrap();
    assert_eq!(session.get("f"), b"more");
    disk.thaw();
    wait_until_none_waits(session);
    session.client.getattr(ROOT).unwrap();
    assert_eq!(session.get("disk/file"), b"text");
    on_disk.finish();
}

#[test]
fn a_server_that_is_gone_keeps_no_queue_from_stopping() {
    let mut held = Held::new(&["--num-request-queues=2"]);
    let mut other = Client::new(held.session.vmm.start_queue(2));
    other.region = Some(HIGH_MEMORY);
    let reads = held.start_reads(100);
    held.fs.wait_for_reads(MAX_HELPERS);
    let buffers = held.session.client.buffers();
    let (base, answers) = stop_in_time(&mut held.session);
    assert_all_failed(&answers, &reads);
    assert_eq!(held.session.client.queue.next_avail(), base);
    reuse(&held.session, &buffers);
    // The other queue goes on, in the same memory.
    other.getattr(ROOT).unwrap();
    held.fs.release();
    wait_until_none_is_in(&held.session, libc::SYS_preadv2);
    assert_untouched(&held.session, &buffers);
    let read = read_in(held.fh, 0, 4096);
    let read = other.call(&Request::new(op::READ, held.node, read).space(4096));
    assert_eq!(read.unwrap(), [CONTENT; 4096]);
    let Session { vmm, client, .. } = &mut held.session;
    vmm.resume_queue(&client.queue, base);
    client.queue.kick();
    client.getattr(ROOT).unwrap();
    drop(other);
    held.finish();
}

#[test]
fn a_mount_whose_server_is_gone_holds_up_nobody_in_its_parent() {
    assert!(geteuid().is_root(), "mounting a file system needs root");
    for args in [&[][..], &["--no-announce-submounts"]] {
        let mut session = Session::new(args);
        session.put("other", "text");
        let dir = tempfile::tempdir().unwrap();
        let held = mount_gone(&session, &dir);
        let client = &mut session.client;
        let look_up = Request::new(op::LOOKUP, ROOT, Encoder::new().name("held"));
        let first = start_waiting_beside_others(client, &look_up);
        // And once more: whoever waits is not the last one that there is.
        let second = start_waiting_beside_others(client, &look_up);
        let open = client.opendir(ROOT).unwrap().fh;
        let begun = Instant::now();
        let entries = client.read_whole_dir(ROOT, open, 4096, true).unwrap();
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        let mut names: Vec<_> = entries.iter().map(|entry| entry.name()).collect();
        names.sort_unstable();
        assert_eq!(names, [".", "..", "held", "other"]);
        client.lookup(ROOT, "other").unwrap();
        held.release();
        for unique in [first, second] {
            // With what the server has said, or with its error.
            let _ = client.wait_for(unique);
        }
        drop(held);
        session.finish();
    }
}

/// Without file handles a file that was just made keeps its descriptor until it can be
/// told from another one, which takes some milliseconds.
#[test]
fn who_waits_for_a_descriptor_keeps_nobody_back() {
    let mut held_back = Vec::new();
    for _ in 0..6 {
        let mut session = Session::new(&["--inode-file-handles=never", "--rlimit-nofile=760"]);
        let client = &mut session.client;
        for round in 0..12 {
            let made: Vec<_> = (0..20)
                .map(|number| {
                    let mknod = Encoder::new().u32(libc::S_IFREG | 0o600).u32(0).u32(0);
                    let mknod = mknod.u32(0).name(format!("{round}-{number}"));
                    client.start(&Request::new(op::MKNOD, ROOT, mknod))
                })
                .collect();
            let getattr = client.start(&getattr_request(ROOT));
            let begun = Instant::now();
            client.submit();
            client.wait_for(getattr).unwrap();
            if begun.elapsed() > Duration::from_millis(25) {
                held_back.push(begun.elapsed());
            }
            for made in made {
                client.wait_for(made).unwrap();
            }
        }
        session.finish();
    }
    // The machine itself may do so to a few.
    assert!(held_back.len() < 5, "{held_back:?}");
}
