//! Locks of the guest's processes among each other, with other guests and with
//! the host's processes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;

use common::PATIENCE;
use common::frontend::Config;
use common::fuse_client::{Client, Lock, Request};
use common::session::Session;
use common::wire::{Encoder, LK_FLOCK, RELEASE_FLOCK_UNLOCK, ROOT, init, op};

const SHARED: i32 = libc::F_RDLCK;
const EXCLUSIVE: i32 = libc::F_WRLCK;
const UNLOCK: i32 = libc::F_UNLCK;
const END: u64 = i64::MAX as u64;

const LOCKS: &[&str] = &["--posix-lock", "--flock"];

/// The most requests that wait for locks at once.
const MAX_WAITS: usize = 256;

fn lock(owner: u64, kind: i32, start: u64, end: u64) -> Lock {
    Lock {
        owner,
        start,
        end,
        kind,
        pid: 1000 + owner as u32,
        flags: 0,
    }
}

fn whole(owner: u64, kind: i32) -> Lock {
    lock(owner, kind, 0, END)
}

fn of_flock(kind: i32) -> Lock {
    Lock {
        flags: LK_FLOCK,
        ..whole(7, kind)
    }
}

/// A guest with a file `f`, and the file's node.
fn session(args: &[&str]) -> (Session, u64) {
    let mut session = Session::new(&[LOCKS, args].concat());
    session.put("f", "0123456789");
    let node = session.client.walk("f").unwrap().nodeid;
    (session, node)
}

fn open(client: &mut Client, node: u64) -> u64 {
    client.open(node, libc::O_RDWR).unwrap().fh
}

fn release(client: &mut Client, node: u64, fh: u64, flags: u32) {
    let body = Encoder::new().u64(fh).u32(0).u32(flags).u64(7);
    client.call(&Request::new(op::RELEASE, node, body)).unwrap();
}

fn on_host(session: &Session) -> File {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .open(session.path("f"))
        .unwrap()
}

/// Requests that the host's kernel has wait for locks of this file.
fn blocked(path: &Path) -> usize {
    let inode = format!(":{} ", fs::metadata(path).unwrap().ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let waits = |line: &&str| line.contains("->") && line.contains(&inode);
    locks.lines().filter(waits).count()
}

fn wait_until_blocked(path: &Path, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while blocked(path) < count {
        assert!(Instant::now() < deadline, "{} of {count}", blocked(path));
        thread::yield_now();
    }
}

#[test]
fn without_the_options_locks_are_the_guests_own() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let locks = init::POSIX_LOCKS | init::FLOCK_LOCKS;
    assert_eq!(session.init.unwrap().flags & locks, 0);
    let node = session.client.walk("f").unwrap().nodeid;
    let fh = open(&mut session.client, node);
    let client = &mut session.client;
    for lock in [whole(1, EXCLUSIVE), of_flock(EXCLUSIVE)] {
        assert_eq!(client.setlk(node, fh, &lock), Err(libc::ENOSYS));
        assert_eq!(client.getlk(node, fh, &lock), Err(libc::ENOSYS));
        let waiting = client.start_setlkw(node, fh, &lock);
        assert_eq!(client.wait_for(waiting), Err(libc::ENOSYS));
    }
    session.finish();
    for (option, flag) in [
        ("--posix-lock", init::POSIX_LOCKS),
        ("--flock", init::FLOCK_LOCKS),
    ] {
        let session = Session::new(&[option]);
        assert_eq!(session.init.unwrap().flags & locks, flag);
        session.finish();
    }
}

#[test]
fn owners_meet_where_their_ranges_do() {
    let (mut session, node) = session(&[]);
    let client = &mut session.client;
    let fh = open(client, node);
    client.setlk(node, fh, &lock(1, EXCLUSIVE, 10, 19)).unwrap();
    client.setlk(node, fh, &lock(1, EXCLUSIVE, 20, 29)).unwrap();
    client.setlk(node, fh, &lock(1, UNLOCK, 15, 17)).unwrap();
    for (start, end, free) in [
        (0, 9, true),
        (9, 10, false),
        (14, 14, false),
        (15, 17, true),
        (16, 18, false),
        (29, END, false),
        (30, END, true),
    ] {
        for kind in [SHARED, EXCLUSIVE] {
            let answer = client.setlk(node, fh, &lock(2, kind, start, end));
            let expected = if free { Ok(()) } else { Err(libc::EAGAIN) };
            assert_eq!(answer, expected, "{start} to {end}");
            client.setlk(node, fh, &whole(2, UNLOCK)).unwrap();
        }
    }
    // Its own locks are in nobody's way; they change their kind.
    client.setlk(node, fh, &lock(1, SHARED, 0, END)).unwrap();
    client.setlk(node, fh, &lock(2, SHARED, 5, 5)).unwrap();
    let refused = client.setlk(node, fh, &lock(1, EXCLUSIVE, 0, 9));
    assert_eq!(refused, Err(libc::EAGAIN));
    session.finish();
}

#[test]
fn what_is_in_the_way_is_told_with_its_process() {
    let (mut session, node) = session(&[]);
    let client = &mut session.client;
    let fh = open(client, node);
    let none = client.getlk(node, fh, &lock(2, EXCLUSIVE, 0, 99)).unwrap();
    assert_eq!(none.kind, UNLOCK);
    client.setlk(node, fh, &lock(1, EXCLUSIVE, 10, 14)).unwrap();
    client.setlk(node, fh, &lock(1, EXCLUSIVE, 15, 19)).unwrap();
    let found = client.getlk(node, fh, &lock(2, SHARED, 0, END)).unwrap();
    assert_eq!((found.start, found.end), (10, 19));
    assert_eq!((found.kind, found.pid), (EXCLUSIVE, 1001));
    let own = client.getlk(node, fh, &lock(1, EXCLUSIVE, 0, END)).unwrap();
    assert_eq!(own.kind, UNLOCK);
    session.finish();
}

#[test]
fn processes_of_the_host_and_other_guests_are_met() {
    let (mut session, node) = session(&[]);
    let fh = open(&mut session.client, node);
    let file = on_host(&session);
    let shared_dir = session.path("").to_str().unwrap().to_owned();
    let mut other = Session::new(&[LOCKS, &["--shared-dir", &shared_dir]].concat());
    let other_node = other.client.walk("f").unwrap().nodeid;
    let other_fh = open(&mut other.client, other_node);

    session
        .client
        .setlk(node, fh, &whole(1, EXCLUSIVE))
        .unwrap();
    let refused = fcntl_lock(&file, FlockOperation::NonBlockingLockShared);
    assert_eq!(refused, Err(Errno::AGAIN));
    let answer = other.client.setlk(other_node, other_fh, &whole(1, SHARED));
    assert_eq!(answer, Err(libc::EAGAIN));
    session.client.setlk(node, fh, &whole(1, UNLOCK)).unwrap();

    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    let answer = session.client.setlk(node, fh, &whole(1, SHARED));
    assert_eq!(answer, Err(libc::EAGAIN));
    let found = session.client.getlk(node, fh, &whole(1, SHARED)).unwrap();
    assert_eq!(
        (found.kind, found.pid),
        (EXCLUSIVE, 0),
        "no pid of the host"
    );
    let waiting = session.client.start_setlkw(node, fh, &whole(1, SHARED));
    wait_until_blocked(&session.path("f"), 1);
    fcntl_lock(&file, FlockOperation::Unlock).unwrap();
    session.client.wait_for(waiting).unwrap();
    other.finish();
    session.finish();
}

#[test]
fn who_waits_holds_nobody_up() {
    for args in [
        &[][..],
        &["--thread-pool-size=0"],
        &["--thread-pool-size=2"],
    ] {
        let (mut session, node) = session(args);
        let path = session.path("f");
        let client = &mut session.client;
        let fh = open(client, node);
        client.setlk(node, fh, &whole(1, EXCLUSIVE)).unwrap();
        let waiting: Vec<_> = (2..10)
            .map(|owner| client.start_setlkw(node, fh, &whole(owner, SHARED)))
            .collect();
        wait_until_blocked(&path, waiting.len());
        client.getattr(ROOT).unwrap();
        client.fsync(node, fh, 0).unwrap();
        client.setlk(node, fh, &whole(1, UNLOCK)).unwrap();
        for unique in waiting {
            client.wait_for(unique).unwrap();
        }
        session.finish();
    }
}

#[test]
fn an_owner_that_is_refused_keeps_no_descriptor() {
    let (mut session, node) = session(&[]);
    let fh = open(&mut session.client, node);
    let client = &mut session.client;
    client.setlk(node, fh, &whole(1, EXCLUSIVE)).unwrap();
    let before = session.daemon.open_fds();
    for owner in 2..300 {
        let refused = session.client.setlk(node, fh, &whole(owner, SHARED));
        assert_eq!(refused, Err(libc::EAGAIN));
    }
    session.daemon.expect_open_fds(before);
    // One of them that has a lock already keeps it.
    let client = &mut session.client;
    client.setlk(node, fh, &whole(1, UNLOCK)).unwrap();
    client.setlk(node, fh, &lock(2, EXCLUSIVE, 0, 9)).unwrap();
    client.setlk(node, fh, &lock(3, EXCLUSIVE, 10, 19)).unwrap();
    let refused = client.setlk(node, fh, &lock(2, EXCLUSIVE, 10, 19));
    assert_eq!(refused, Err(libc::EAGAIN));
    let refused = client.setlk(node, fh, &lock(3, EXCLUSIVE, 0, 0));
    assert_eq!(refused, Err(libc::EAGAIN));
    session.finish();
}

#[test]
fn locks_end_with_whatever_ends_their_owner() {
    let (mut session, node) = session(&[]);
    let client = &mut session.client;
    let fh = open(client, node);
    let (mine, theirs) = (whole(1, EXCLUSIVE), whole(2, EXCLUSIVE));
    let is_free = |client: &mut Client, fh: u64| {
        client.setlk(node, fh, &theirs).unwrap();
        client.setlk(node, fh, &whole(2, UNLOCK)).unwrap();
    };
    client.setlk(node, fh, &mine).unwrap();
    // Another process closes its copy.
    client.flush_owner(node, fh, 3).unwrap();
    assert_eq!(client.setlk(node, fh, &theirs), Err(libc::EAGAIN));
    client.flush_owner(node, fh, 1).unwrap();
    is_free(client, fh);
    // The open file itself was the owner: nothing but its end is heard of.
    let second = open(client, node);
    client.setlk(node, second, &mine).unwrap();
    assert_eq!(client.setlk(node, fh, &theirs), Err(libc::EAGAIN));
    release(client, node, second, 0);
    is_free(client, fh);
    // The guest goes without a word.
    client.setlk(node, fh, &mine).unwrap();
    let file = on_host(&session);
    let client = &mut session.client;
    client.destroy().unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    fcntl_lock(&file, FlockOperation::Unlock).unwrap();
    client.init();
    let node = client.walk("f").unwrap().nodeid;
    let fh = open(client, node);
    client.setlk(node, fh, &mine).unwrap();
    session.finish();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn a_process_that_closes_a_file_while_it_waits_lets_go_of_all() {
    let (mut session, node) = session(&[]);
    let path = session.path("f");
    let client = &mut session.client;
    let fh = open(client, node);
    client.setlk(node, fh, &lock(1, EXCLUSIVE, 0, 9)).unwrap();
    client.setlk(node, fh, &lock(2, EXCLUSIVE, 10, 19)).unwrap();
    let waiting = client.start_setlkw(node, fh, &lock(1, EXCLUSIVE, 10, 19));
    wait_until_blocked(&path, 1);
    client.flush_owner(node, fh, 1).unwrap();
    client.setlk(node, fh, &lock(3, EXCLUSIVE, 0, 9)).unwrap();
    client.setlk(node, fh, &whole(2, UNLOCK)).unwrap();
    assert_eq!(client.wait_for(waiting), Err(libc::EBADF));
    client.setlk(node, fh, &lock(3, EXCLUSIVE, 0, 19)).unwrap();
    session.finish();
}

#[test]
fn an_interrupt_ends_the_wait_whenever_it_comes() {
    let (mut session, node) = session(&[]);
    let path = session.path("f");
    let client = &mut session.client;
    let fh = open(client, node);
    client.setlk(node, fh, &whole(1, EXCLUSIVE)).unwrap();
    let waiting = client.start_setlkw(node, fh, &whole(2, SHARED));
    let other = client.start_setlkw(node, fh, &whole(3, SHARED));
    wait_until_blocked(&path, 2);
    client.interrupt(waiting);
    assert_eq!(client.wait_for(waiting), Err(libc::EINTR));
    // At once, and before: both orders of the two.
    for _ in 0..50 {
        let waiting = client.start_setlkw(node, fh, &whole(2, SHARED));
        client.interrupt(waiting);
        assert_eq!(client.wait_for(waiting), Err(libc::EINTR));
    }
    client.interrupt(waiting);
    client.interrupt(12345);
    client.setlk(node, fh, &whole(1, UNLOCK)).unwrap();
    client.wait_for(other).unwrap();
    session.finish();
}

#[test]
fn so_many_interrupts_are_remembered_for_requests_that_do_not_wait_yet() {
    const REMEMBERED: u64 = 16;
    let (mut session, node) = session(LOCKS);
    let path = session.path("f");
    let client = &mut session.client;
    let fh = open(client, node);
    client.setlk(node, fh, &whole(1, EXCLUSIVE)).unwrap();
    // Numbers of requests that are yet to come.
    let nothing = Request::new(op::FORGET, 0, Encoder::new());
    let first = client.encode(&nothing).0 + 2000;
    for n in 0..=REMEMBERED {
        client.interrupt(first + 2 * n);
    }
    while client.encode(&nothing).0 + 2 < first {}
    let waits = client.start_setlkw(node, fh, &whole(2, EXCLUSIVE));
    assert_eq!(waits, first, "the first of them, which is forgotten");
    wait_until_blocked(&path, 1);
    let interrupted = client.start_setlkw(node, fh, &whole(3, EXCLUSIVE));
    assert_eq!(client.wait_for(interrupted), Err(libc::EINTR));
    client.interrupt(waits);
    assert_eq!(client.wait_for(waits), Err(libc::EINTR));
    session.finish();
}

#[test]
fn a_circle_of_owners_is_a_deadlock() {
    let (mut session, node) = session(&[]);
    session.put("g", "text");
    let paths = (session.path("f"), session.path("g"));
    let client = &mut session.client;
    let other = client.walk("g").unwrap().nodeid;
    let (f, g) = (open(client, node), open(client, other));
    client.setlk(node, f, &lock(1, EXCLUSIVE, 0, 0)).unwrap();
    client.setlk(other, g, &lock(2, EXCLUSIVE, 0, 0)).unwrap();
    client.setlk(node, f, &lock(3, EXCLUSIVE, 5, 5)).unwrap();
    // 1 waits for 2, and 2 for 3; 3 must not wait for 1.
    let first = client.start_setlkw(other, g, &lock(1, SHARED, 0, 9));
    wait_until_blocked(&paths.1, 1);
    let second = client.start_setlkw(node, f, &lock(2, SHARED, 5, 9));
    wait_until_blocked(&paths.0, 1);
    let third = client.start_setlkw(node, f, &lock(3, EXCLUSIVE, 0, 0));
    assert_eq!(client.wait_for(third), Err(libc::EDEADLK));
    // Without a circle it waits.
    let fourth = client.start_setlkw(node, f, &lock(4, EXCLUSIVE, 0, 0));
    wait_until_blocked(&paths.0, 2);
    client.flush_owner(node, f, 3).unwrap();
    client.wait_for(second).unwrap();
    client.flush_owner(other, g, 2).unwrap();
    client.wait_for(first).unwrap();
    client.flush_owner(node, f, 1).unwrap();
    client.wait_for(fourth).unwrap();
    session.finish();
}

#[test]
fn a_queue_that_is_stopped_does_not_wait_for_locks() {
    let (mut session, node) = session(&[]);
    let path = session.path("f");
    let file = on_host(&session);
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    let fh = open(&mut session.client, node);
    let started: Vec<_> = (0..20)
        .map(|owner| {
            let wish = whole(owner, EXCLUSIVE);
            session.client.start_setlkw(node, fh, &wish)
        })
        .collect();
    // Some wait by then, others are on their way.
    wait_until_blocked(&path, 1);
    let next = session.vmm.stop_queue(&session.client.queue);
    // What was not taken yet stays in the ring.
    let left = session.client.queue.next_avail().wrapping_sub(next);
    for _ in usize::from(left)..started.len() {
        let (unique, raw, size) = session.client.poll_raw().expect("an answer");
        assert_eq!(raw.check(unique, size), Err(libc::EAGAIN));
    }
    session.finish();
}

#[test]
fn more_waits_than_may_be_are_refused_and_others_are_served() {
    let config = Config {
        queue_size: 512,
        ..Config::default()
    };
    let mut session = Session::with_config(LOCKS, &config);
    session.put("f", "text");
    let path = session.path("f");
    let client = &mut session.client;
    let node = client.walk("f").unwrap().nodeid;
    let fh = open(client, node);
    client.setlk(node, fh, &whole(1, EXCLUSIVE)).unwrap();
    let mut waiting = Vec::new();
    for owner in 2..2 + MAX_WAITS as u64 {
        waiting.push(client.start_setlkw(node, fh, &whole(owner, SHARED)));
    }
    wait_until_blocked(&path, MAX_WAITS);
    let refused = client.start_setlkw(node, fh, &whole(9999, SHARED));
    assert_eq!(client.wait_for(refused), Err(libc::ENOLCK));
    client.fsync(node, fh, 0).unwrap();
    client.setlk(node, fh, &whole(1, UNLOCK)).unwrap();
    for unique in waiting {
        client.wait_for(unique).unwrap();
    }
    session.finish();
}

#[test]
fn shared_locks_stay_when_a_process_comes_to_write() {
    let (mut session, node) = session(&[]);
    let client = &mut session.client;
    let reader = client.open(node, libc::O_RDONLY).unwrap().fh;
    let writer = open(client, node);
    client.setlk(node, reader, &lock(1, SHARED, 0, 9)).unwrap();
    let by_reader = client.setlk(node, reader, &lock(1, EXCLUSIVE, 20, 29));
    assert_eq!(by_reader, Err(libc::EBADF));
    client
        .setlk(node, writer, &lock(1, EXCLUSIVE, 20, 29))
        .unwrap();
    let refused = client.setlk(node, writer, &lock(2, EXCLUSIVE, 0, 0));
    assert_eq!(refused, Err(libc::EAGAIN));
    let refused = client.setlk(node, writer, &lock(2, SHARED, 29, 29));
    assert_eq!(refused, Err(libc::EAGAIN));
    client
        .setlk(node, writer, &lock(1, EXCLUSIVE, 0, 9))
        .unwrap();
    session.finish();
}

#[test]
fn flock_is_a_lock_of_the_open_file() {
    let (mut session, node) = session(&[]);
    let path = session.path("f");
    let file = on_host(&session);
    let client = &mut session.client;
    let (first, second) = (open(client, node), open(client, node));
    client.setlk(node, first, &of_flock(SHARED)).unwrap();
    client.setlk(node, second, &of_flock(SHARED)).unwrap();
    let refused = client.setlk(node, second, &of_flock(EXCLUSIVE));
    assert_eq!(refused, Err(libc::EAGAIN));
    client.setlk(node, second, &of_flock(UNLOCK)).unwrap();
    client.setlk(node, first, &of_flock(EXCLUSIVE)).unwrap();
    let refused = flock(&file, FlockOperation::NonBlockingLockShared);
    assert_eq!(refused, Err(Errno::AGAIN));
    // Record locks are another kind.
    client.setlk(node, second, &whole(1, EXCLUSIVE)).unwrap();
    let waiting = client.start_setlkw(node, second, &of_flock(EXCLUSIVE));
    wait_until_blocked(&path, 1);
    release(client, node, first, RELEASE_FLOCK_UNLOCK);
    client.wait_for(waiting).unwrap();
    // Who waits is interrupted, and its file can be released meanwhile.
    let third = open(client, node);
    let waiting = client.start_setlkw(node, third, &of_flock(SHARED));
    wait_until_blocked(&path, 1);
    client.interrupt(waiting);
    assert_eq!(client.wait_for(waiting), Err(libc::EINTR));
    release(client, node, third, RELEASE_FLOCK_UNLOCK);
    release(client, node, second, RELEASE_FLOCK_UNLOCK);
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    session.finish();
}
