//! What a guest can take of the host is bounded, however much it asks for: the table
//! in `doc/security.md` has the bounds, and the tests of those that are not here.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::PATIENCE;
use common::frontend::Config;
use common::fuse_client::{Client, Request, read_in, write_in};
use common::session::Session;
use common::wire::{Encoder, OutHeader, ROOT, op};

/// Ranges that may be locked.
const LOCKED_RANGES: usize = 65_536;

/// Sends requests, as many at once as fit; gives the errno of each, 0 for none.
fn send_all(client: &mut Client, requests: impl IntoIterator<Item = Request>) -> Vec<i32> {
    let mut errors = Vec::new();
    let mut take = |client: &mut Client| {
        let (_, raw, _) = client.finish_raw();
        errors.push(-OutHeader::decode(&raw.bytes[..16]).error);
    };
    for request in requests {
        if client.queue.free_descriptors() < 2 {
            take(client);
        }
        client.start(&request);
        client.submit();
    }
    while client.in_flight() > 0 {
        take(client);
    }
    errors
}

/// SETLK of one byte, exclusively.
fn lock_byte(node: u64, fh: u64, byte: u64) -> Request {
    let range = Encoder::new().u64(fh).u64(1).u64(byte).u64(byte);
    Request::new(
        op::SETLK,
        node,
        range.u32(libc::F_WRLCK as u32).u32(1).u64(0),
    )
}

#[test]
fn a_guest_locks_so_many_ranges_and_no_more() {
    const FILES: usize = 64;
    let mut session = Session::new(&["--posix-lock"]);
    let client = &mut session.client;
    let files: Vec<_> = (0..FILES)
        .map(|n| {
            let name = format!("f{n}");
            let (entry, open) = client.create(ROOT, &name, libc::O_RDWR, 0o600).unwrap();
            (entry.nodeid, open.fh)
        })
        .collect();
    // No two bytes are neighbours, which would be one range.
    let each = (LOCKED_RANGES / FILES) as u64;
    for &(node, fh) in &files {
        let errors = send_all(client, (0..each).map(|n| lock_byte(node, fh, 2 * n)));
        assert!(errors.iter().all(|error| *error == 0), "{errors:?}");
    }
    let (node, fh) = files[0];
    let beyond = lock_byte(node, fh, 2 * each);
    assert_eq!(client.call(&beyond), Err(libc::ENOLCK));
    client.flush_owner(files[1].0, files[1].1, 1).unwrap();
    client.call(&beyond).unwrap();
    session.finish();
}

#[test]
fn folders_that_are_left_half_read_take_little_memory() {
    const STREAMS: usize = 1200;
    // More than a mebibyte of names.
    const FILES: usize = 5000;
    let mut session = Session::new(&[]);
    fs::create_dir(session.path("d")).unwrap();
    let end = "x".repeat(230);
    for n in 0..FILES {
        session.put(&format!("d/{n} {end}"), "");
    }
    let client = &mut session.client;
    let folder = client.walk("d").unwrap().nodeid;
    let before = session.daemon.rss();
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        let fh = client.opendir(folder).unwrap().fh;
        // The first reply, of which the host has given much more.
        assert!(!client.readdir(folder, fh, 0, 4096).unwrap().is_empty());
        open.push(fh);
    }
    let grown = session.daemon.rss().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more in use");
    // All of them go on where they were.
    for fh in open.into_iter().step_by(100) {
        let all = client.read_whole_dir(folder, fh, 1 << 16, false).unwrap();
        assert_eq!(all.len(), FILES + 2);
        client.releasedir(folder, fh).unwrap();
    }
    // However much is asked for at once, a reply has no more than a mebibyte.
    let fh = client.opendir(folder).unwrap().fh;
    let much = Request::new(op::READDIR, folder, read_in(fh, 0, 8 << 20)).space(8 << 20);
    let reply = client.call(&much).unwrap();
    assert!(
        (1 << 19..=1 << 20).contains(&reply.len()),
        "{}",
        reply.len()
    );
    session.finish();
}

#[test]
fn a_copy_is_of_so_much_at_once() {
    let mut session = Session::new(&[]);
    session.put("from", "");
    let from = fs::File::options().write(true).open(session.path("from"));
    from.unwrap().set_len(100 << 20).unwrap();
    let client = &mut session.client;
    let from = client.walk("from").unwrap().nodeid;
    let from_fh = client.open(from, libc::O_RDONLY).unwrap().fh;
    let (to, open) = client.create(ROOT, "to", libc::O_RDWR, 0o600).unwrap();
    let copied = client.copy_file_range((from, from_fh, 0), (to.nodeid, open.fh, 0), 100 << 20, 0);
    assert_eq!(copied, Ok(64 << 20));
    session.finish();
}

fn threads(session: &Session) -> usize {
    let tasks = format!("/proc/{}/task", session.daemon.serving_pid());
    fs::read_dir(tasks).unwrap().count()
}

/// Takes whatever one queue can get, and lets go of nothing.
fn take_everything(client: &mut Client, folder: u64, queue: usize) {
    for round in 0..40 {
        let requests = (0..25).flat_map(|n| {
            let e = Encoder::new;
            let number = (round * 25 + n) % 500;
            [
                Request::new(op::LOOKUP, folder, e().name(format!("f{number}"))),
                Request::new(op::OPENDIR, folder, e().u64(0)),
                Request::new(op::READDIRPLUS, folder, read_in(n, 0, 4096)).space(4096),
                Request::new(
                    op::CREATE,
                    ROOT,
                    e().u32((libc::O_RDWR | libc::O_CREAT) as u32)
                        .u32(0o600)
                        .u64(0)
                        .name(format!("q{queue}-{number}")),
                ),
                lock_byte(2, n, 2 * n),
                Request::new(
                    op::WRITE,
                    2,
                    write_in(n, 0, 4096, 0, libc::O_RDWR).bytes(&[7; 4096]),
                ),
                Request::new(op::FSYNC, 2, e().u64(n).u64(0)),
                Request::new(
                    op::SETXATTR,
                    folder,
                    e().u32(1000).u32(0).name("user.x").bytes(&[7; 1000]),
                ),
                Request::new(op::LISTXATTR, folder, e().u32(65536).u32(0)).space(65536),
            ]
        });
        send_all(client, requests);
    }
}

#[test]
fn a_guest_that_takes_what_it_can_gets_so_much_and_no_more() {
    // 634 of these are the daemon's own.
    const DESCRIPTORS: usize = 800;
    // Two for each queue, those that wait for disks, and a few more.
    const THREADS: usize = 2 * 5 + 64 + 8;
    let limit = format!("--rlimit-nofile={DESCRIPTORS}");
    let args = [&limit, "--num-request-queues=4", "--xattr", "--posix-lock"];
    let mut session = Session::with_config(&args, &Config::default());
    fs::create_dir(session.path("d")).unwrap();
    for n in 0..500 {
        session.put(&format!("d/f{n}"), "text");
    }
    let folder = session.client.walk("d").unwrap().nodeid;
    let mut clients: Vec<_> = (2..=4)
        .map(|index| Client::new(session.vmm.start_queue(index)))
        .collect();
    let before = session.daemon.rss();
    let Session { client, daemon, .. } = &mut session;
    thread::scope(|scope| {
        for (queue, client) in clients.iter_mut().chain([client]).enumerate() {
            scope.spawn(move || take_everything(client, folder, queue));
        }
    });
    let open = daemon.open_fds();
    assert!(open <= DESCRIPTORS, "{open} descriptors");
    let grown = daemon.rss().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more in use");
    let running = threads(&session);
    assert!(running <= THREADS, "{running} threads");
    // It has all that it may, and still is served.
    let refused = session.client.create(ROOT, "more", libc::O_RDWR, 0o600);
    assert_eq!(refused.err(), Some(libc::ENFILE));
    session.client.getattr(ROOT).unwrap();
    let lines = session.finish().log().len();
    assert!(lines < 20, "{lines} lines in the log");
}

#[test]
fn a_flood_on_one_queue_does_not_starve_another() {
    let config = Config {
        queue_size: 512,
        ..Config::default()
    };
    for args in [&[][..], &["--thread-pool-size=2"]] {
        let args = [args, &["--num-request-queues=2"]].concat();
        let mut session = Session::with_config(&args, &config);
        let mut other = Client::new(session.vmm.start_queue(2));
        let (entry, open) = session
            .client
            .create(ROOT, "f", libc::O_RDWR, 0o600)
            .unwrap();
        let node = entry.nodeid;
        session
            .client
            .write(node, open.fh, 0, &[7; 1 << 17])
            .unwrap();
        let stop = AtomicBool::new(false);
        let (begin, has_begun) = mpsc::channel();
        let mut slowest = Duration::ZERO;
        thread::scope(|scope| {
            let (flooding, stop) = (&mut session.client, &stop);
            scope.spawn(move || {
                let read = Request::new(op::READ, node, read_in(open.fh, 0, 1 << 17));
                let read = read.space(1 << 17);
                let sync = Request::new(op::FSYNC, node, Encoder::new().u64(open.fh).u64(0));
                let until = Instant::now() + 2 * PATIENCE;
                while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                    while flooding.in_flight() < 120 {
                        flooding.start(&read);
                        flooding.start(&sync);
                    }
                    flooding.submit();
                    flooding.finish().1.unwrap();
                    let _ = begin.send(());
                }
                while flooding.in_flight() > 0 {
                    flooding.finish().1.unwrap();
                }
            });
            has_begun.recv_timeout(PATIENCE).unwrap();
            for _ in 0..200 {
                let begun = Instant::now();
                other.getattr(ROOT).unwrap();
                slowest = slowest.max(begun.elapsed());
            }
            stop.store(true, Ordering::Relaxed);
        });
        println!("{args:?}: the slowest of 200 took {slowest:.1?}");
        assert!(slowest < PATIENCE / 10, "{slowest:?}");
        session.finish();
    }
}
