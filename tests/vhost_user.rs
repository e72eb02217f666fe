//! The daemon's side of vhost-user and of the virtqueues, over a real socket.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use tempfile::TempDir;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use common::daemon::{Daemon, default_binary};
use common::frontend::{
    Config, DirtyLog, F_EVENT_IDX, F_INDIRECT, F_LOG_ALL, F_PROTOCOL, F_VERSION_1, HIGH_MEMORY,
    HIPRIO, LOW_MEMORY, Queue, REQUEST, Vmm, connect,
};
use common::fuse_client::{Client, Request, Split, read_in};
use common::session::Session;
use common::wire::{Encoder, ROOT, op};
use common::{PATIENCE, as_event, wait_event};

/// A third region, for plugging memory in and out.
const PLUGGED: u64 = 0x2_0000_0000;

/// Content in which every 8 bytes tell where they belong.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(u64::to_le_bytes).collect()
}

fn start(args: &[&str]) -> (TempDir, Daemon) {
    let dir = TempDir::with_prefix("virtiofsd-share-").unwrap();
    let daemon = Daemon::start(dir.path(), args);
    (dir, daemon)
}

/// Lets late calls for answers that were taken already come in: a queue that
/// is stopped has none under way.
fn settle(session: &mut Session) {
    let base = session.vmm.stop_queue(&session.client.queue);
    session.client.queue.drain_calls();
    session.vmm.resume_queue(&session.client.queue, base);
}

/// Spins until the device has used `count` entries since `queue` last looked.
fn wait_without_call(queue: &Queue, count: u16) {
    let deadline = Instant::now() + PATIENCE;
    while queue.used_index().wrapping_sub(queue.last_used()) < count {
        assert!(Instant::now() < deadline, "no answer");
        thread::yield_now();
    }
}

fn getattr_root() -> Request {
    Request::new(op::GETATTR, ROOT, Encoder::new().u32(0).u32(0).u64(0))
}

/// Creates, writes, reads, lists and removes: what must work however the
/// queues are set up.
fn exercise(client: &mut Client, name: &str) {
    let data = pattern(300_000);
    let (entry, open) = client.create(ROOT, name, libc::O_RDWR, 0o644).unwrap();
    assert_eq!(client.write(entry.nodeid, open.fh, 0, &data), Ok(300_000));
    assert!(client.read(entry.nodeid, open.fh, 0, 300_000).unwrap() == data);
    assert!(client.read(entry.nodeid, open.fh, 8000, 80).unwrap() == data[8000..8080]);
    client.release(entry.nodeid, open.fh).unwrap();
    let again = client.lookup(ROOT, name).unwrap();
    assert_eq!(again.nodeid, entry.nodeid);
    assert_eq!(again.attr.size, 300_000);
    let dir = client.opendir(ROOT).unwrap();
    let names = client.read_whole_dir(ROOT, dir.fh, 4096, false).unwrap();
    assert!(names.iter().any(|dirent| dirent.name() == name));
    client.releasedir(ROOT, dir.fh).unwrap();
    client.unlink(ROOT, name).unwrap();
    assert_eq!(client.lookup(ROOT, name), Err(libc::ENOENT));
    client.forget(entry.nodeid, 2);
}

// ---- negotiation

#[test]
fn offers_exactly_the_documented_features() {
    let (_dir, daemon) = start(&[]);
    let mut vhost = connect(daemon.socket());
    vhost.set_owner().unwrap();
    let features = vhost.get_features().unwrap();
    let expected = F_VERSION_1 | F_INDIRECT | F_EVENT_IDX | F_LOG_ALL | F_PROTOCOL;
    assert_eq!(features, expected, "{features:#x}, expected {expected:#x}");
    let protocol = vhost.get_protocol_features().unwrap();
    let expected = Protocol::MQ
        | Protocol::BACKEND_REQ
        | Protocol::BACKEND_SEND_FD
        | Protocol::REPLY_ACK
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::LOG_SHMFD
        | Protocol::DEVICE_STATE
        | Protocol::RESET_DEVICE;
    assert_eq!(protocol, expected);
}

#[test]
fn has_one_priority_queue_and_as_many_request_queues_as_told() {
    let cpus = thread::available_parallelism().unwrap().get().min(62) as u64;
    for (args, request_queues) in [
        (&[][..], cpus),
        (&["--num-request-queues", "1"], 1),
        (&["--num-request-queues=3"], 3),
        (&["--num-request-queues", "62"], 62),
    ] {
        let (_dir, daemon) = start(args);
        let vmm = Vmm::connect(daemon.socket(), &Config::default());
        assert_eq!(vmm.queue_num, request_queues + 1, "{args:?}");
    }
}

#[test]
fn config_space_has_tag_and_number_of_queues() {
    let (_dir, daemon) = start(&["--tag", "my share", "--num-request-queues", "3"]);
    let config = Config {
        protocol: Protocol::all(),
        ..Config::default()
    };
    let mut vmm = Vmm::connect(daemon.socket(), &config);
    assert!(vmm.protocol.contains(Protocol::CONFIG));
    let mut expected = b"my share".to_vec();
    expected.resize(36, 0);
    expected.extend(3u32.to_le_bytes());
    assert_eq!(vmm.config_space(0, 40), expected);
    // In parts as well.
    assert_eq!(vmm.config_space(36, 4), 3u32.to_le_bytes());
    assert_eq!(vmm.config_space(3, 5), b"share");
}

#[test]
fn a_tag_of_36_bytes_fills_its_field() {
    let tag = "t".repeat(36);
    let (_dir, daemon) = start(&["--tag", &tag]);
    let config = Config {
        protocol: Protocol::all(),
        ..Config::default()
    };
    let mut vmm = Vmm::connect(daemon.socket(), &config);
    assert_eq!(vmm.config_space(0, 36), tag.as_bytes());
}

#[test]
fn works_with_any_choice_of_ring_features() {
    for features in [0, F_INDIRECT, F_EVENT_IDX, F_INDIRECT | F_EVENT_IDX] {
        let config = Config::default()
            .without(F_INDIRECT | F_EVENT_IDX)
            .with(features);
        let mut session = Session::with_config(&[], &config);
        for split in [Split::Whole, Split::Header, Split::Pieces(4096, 4096)] {
            session.client.split = split;
            exercise(&mut session.client, "file");
        }
        assert!(session.client.is_idle());
        session.finish();
    }
}

#[test]
fn works_without_protocol_features() {
    let config = Config::default().without(F_PROTOCOL);
    let mut session = Session::with_config(&[], &config);
    exercise(&mut session.client, "file");
    session.finish();
}

#[test]
fn takes_a_channel_for_requests_of_its_own_as_qemu_sends_it() {
    let config = Config {
        protocol: Protocol::all(),
        ..Config::default()
    };
    let mut session = Session::with_config(&[], &config);
    let (ours, theirs) = UnixStream::pair().unwrap();
    session.vmm.vhost.set_backend_request_fd(&theirs).unwrap();
    exercise(&mut session.client, "file");
    drop((ours, theirs));
    exercise(&mut session.client, "again");
    session.finish();
}

#[test]
fn buffers_may_be_cut_at_any_byte() {
    let mut session = Session::new(&[]);
    session.put("f", pattern(800));
    let entry = session.client.lookup(ROOT, "f").unwrap();
    let open = session.client.open(entry.nodeid, libc::O_RDWR).unwrap();
    for (request, reply) in [(1, 1), (3, 7), (39, 15), (40, 16), (41, 17), (64, 33)] {
        session.client.split = Split::Pieces(request, reply);
        // At most 128 descriptors, direct or not, so small amounts.
        let size = 60;
        let data = session
            .client
            .read(entry.nodeid, open.fh, 16, size)
            .unwrap();
        assert_eq!(data, pattern(800)[16..76]);
        let written = session.client.write(entry.nodeid, open.fh, 100, b"abcde");
        assert_eq!(written, Ok(5), "pieces of {request} and {reply}");
        assert_eq!(
            &session.get("f")[99..106],
            &[&pattern(800)[99..100], b"abcde", &pattern(800)[105..106]].concat()
        );
        session.put("f", pattern(800));
    }
    session.finish();
}

#[test]
fn the_largest_write_that_init_allows_is_served_whole() {
    let mut session = Session::new(&[]);
    let size = session.init.unwrap().max_write;
    let data = pattern(size as usize);
    let (entry, open) = session
        .client
        .create(ROOT, "f", libc::O_RDWR, 0o600)
        .unwrap();
    assert_eq!(
        session.client.write(entry.nodeid, open.fh, 0, &data),
        Ok(size)
    );
    assert!(session.client.read(entry.nodeid, open.fh, 0, size).unwrap() == data);
    session.finish();
}

#[test]
fn reads_and_writes_of_a_mebibyte_are_served_whole() {
    let mut session = Session::new(&[]);
    let data = pattern(1 << 20);
    let (entry, open) = session
        .client
        .create(ROOT, "f", libc::O_RDWR, 0o600)
        .unwrap();
    for split in [Split::Whole, Split::Header, Split::Pieces(1 << 14, 1 << 14)] {
        session.client.split = split;
        assert_eq!(
            session.client.write(entry.nodeid, open.fh, 4096, &data),
            Ok(1 << 20)
        );
        assert!(
            session
                .client
                .read(entry.nodeid, open.fh, 4096, 1 << 20)
                .unwrap()
                == data
        );
        assert!(session.get("f")[4096..] == data);
    }
    session.finish();
}

// ---- notifications

#[test]
fn one_call_for_a_batch_when_asked_for_its_last_entry() {
    let mut session = Session::new(&[]);
    settle(&mut session);
    let client = &mut session.client;
    for _ in 0..8 {
        client.start(&getattr_root());
    }
    client.queue.ask_for_call_after(7);
    client.submit();
    assert!(client.queue.call_comes(PATIENCE));
    for _ in 0..8 {
        client
            .poll_raw()
            .expect("all are there when the call comes");
    }
    // The queue is drained before its base comes back: no call is under way.
    session.vmm.stop_queue(&client.queue);
    assert_eq!(client.queue.drain_calls(), 1, "number of calls");
    session.finish();
}

#[test]
fn no_call_when_none_is_asked_for() {
    for features in [0, F_EVENT_IDX] {
        let config = Config::default().without(F_EVENT_IDX).with(features);
        let mut session = Session::with_config(&[], &config);
        settle(&mut session);
        let queue = &mut session.client.queue;
        if features == F_EVENT_IDX {
            // An index that the next entries do not reach.
            queue.ask_for_call_after(1000);
        } else {
            queue.ask_for_no_call();
        }
        for _ in 0..20 {
            session.client.start(&getattr_root());
            session.client.submit();
            wait_without_call(&session.client.queue, 1);
            session.client.poll_raw().unwrap();
        }
        session.vmm.stop_queue(&session.client.queue);
        assert_eq!(
            session.client.queue.drain_calls(),
            0,
            "features {features:#x}"
        );
        session.finish();
    }
}

#[test]
fn no_call_is_ever_lost() {
    for (args, features) in [
        (&[][..], F_EVENT_IDX),
        (&[][..], 0),
        (&["--thread-pool-size", "3"], F_EVENT_IDX),
        (&["--poll-us=20"], F_EVENT_IDX),
        (&["--poll-us=1000"], 0),
        (&["--poll-us=1000", "--thread-pool-size=3"], F_EVENT_IDX),
    ] {
        let config = Config::default().without(F_EVENT_IDX).with(features);
        let mut session = Session::with_config(args, &config);
        let client = &mut session.client;
        let mut batch = 1;
        let mut sent = 0;
        // `finish` fails if an answer is there and no call came.
        while sent < 10_000 {
            for _ in 0..batch {
                client.start(&getattr_root());
            }
            client.submit();
            sent += batch;
            // Leave some in flight, so that batches meet.
            let leave = batch % 5;
            while client.in_flight() > leave {
                client.finish().1.unwrap();
            }
            batch = (batch * 7 + 3) % 23 + 1;
        }
        while client.in_flight() > 0 {
            client.finish().1.unwrap();
        }
        session.finish();
    }
}

#[test]
fn a_call_event_that_takes_the_place_of_another_is_signalled_at_once() {
    // QEMU looks at the old one for the last time before the daemon has switched.
    let mut session = Session::new(&[]);
    for _ in 0..3 {
        session.client.getattr(ROOT).unwrap();
        let new = EventFd::new(EFD_NONBLOCK).unwrap();
        let index = session.client.queue.index;
        session.vmm.vhost.set_vring_call(index, &new).unwrap();
        // Answered only when the serving threads see the new one.
        session.vmm.vhost.get_features().unwrap();
        assert!(wait_event(&new, PATIENCE), "the new event is not signalled");
        session.client.queue.call = new;
        session.client.queue.drain_calls();
    }
    session.finish();
}

#[test]
fn no_interrupt_is_lost_while_call_events_are_exchanged() {
    let mut session = Session::new(&[]);
    let index = session.client.queue.index;
    for round in 0..20_000 {
        let unique = session.client.start(&getattr_root());
        session.client.queue.ask_for_call_after(0);
        session.client.submit();
        if round % 2 == 0 {
            thread::yield_now();
        }
        // From here on nobody looks at the old one any more.
        let new = EventFd::new(EFD_NONBLOCK).unwrap();
        session.vmm.vhost.set_vring_call(index, &new).unwrap();
        let queue = &mut session.client.queue;
        queue.call = new;
        loop {
            assert!(queue.call_comes(PATIENCE), "round {round}");
            queue.drain_calls();
            if queue.used_index() != queue.last_used() {
                break;
            }
        }
        assert_eq!(session.client.finish_raw().0, unique);
    }
    session.finish();
}

#[test]
fn a_call_event_that_is_full_holds_nothing_up() {
    let mut session = Session::new(&["--keep-listening"]);
    // Not asked to say so where it is full.
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    let index = session.client.queue.index;
    session.vmm.vhost.set_vring_call(index, &full).unwrap();
    session.client.start(&getattr_root());
    session.client.queue.ask_for_call_after(0);
    session.client.submit();
    wait_without_call(&session.client.queue, 1);
    session.vmm.stop_queue(&session.client.queue);
    let Session {
        client,
        vmm,
        daemon,
        ..
    } = session;
    drop((client, vmm));
    daemon.expect_log("Client disconnected");
    assert_eq!(daemon.log_count("cannot notify the guest"), 0);
}

#[test]
fn kicks_are_not_wanted_while_the_daemon_works() {
    let mut session = Session::new(&[]);
    let client = &mut session.client;
    let (entry, open) = client.create(ROOT, "f", libc::O_RDWR, 0o600).unwrap();
    client
        .write(entry.nodeid, open.fh, 0, &pattern(1 << 20))
        .unwrap();
    let read = Request::new(op::READ, entry.nodeid, read_in(open.fh, 0, 1 << 20)).space(1 << 20);
    let deadline = Instant::now() + PATIENCE;
    while client.queue.kicks_spared == 0 {
        for _ in 0..4 {
            client.start(&read);
            client.submit();
        }
        while client.in_flight() > 0 {
            client.finish().1.unwrap();
        }
        assert!(
            Instant::now() < deadline,
            "a kick for every one of {} requests",
            client.queue.kicks
        );
    }
    session.finish();
}

/// It needs one again, and sleeps, when nothing more comes.
#[test]
fn a_queue_that_is_polled_needs_no_kick() {
    for args in [&[][..], &["--thread-pool-size=2"]] {
        let mut session = Session::new(&[args, &["--poll-us=50000"]].concat());
        let client = &mut session.client;
        let deadline = Instant::now() + PATIENCE;
        while client.queue.kicks_spared < 10 {
            client.getattr(ROOT).unwrap();
            assert!(Instant::now() < deadline, "a kick for every request");
        }
        let queue = &client.queue;
        let wish = queue.used + 4 + 8 * u64::from(queue.size);
        while queue.region().load_u16(wish, Ordering::Acquire) != queue.next_avail() {
            assert!(Instant::now() < deadline, "the queue is polled for ever");
            std::thread::yield_now();
        }
        client.getattr(ROOT).unwrap();
        session.finish();
    }
}

#[test]
fn a_queue_that_is_polled_can_be_stopped() {
    let mut session = Session::new(&["--poll-us=100000"]);
    for _ in 0..20 {
        for _ in 0..5 {
            session.client.getattr(ROOT).unwrap();
        }
        let base = session.vmm.stop_queue(&session.client.queue);
        assert_eq!(base, session.client.queue.next_avail());
        session.vmm.resume_queue(&session.client.queue, base);
    }
    session.client.getattr(ROOT).unwrap();
    session.finish();
}

/// A kick that the daemon was about to look at belongs to a queue that is no
/// more; the next one is served all the same, by the same thread.
#[test]
fn a_queue_outlives_being_stopped_and_started_amid_kicks() {
    let mut session = Session::new(&[]);
    for _ in 0..500 {
        for _ in 0..3 {
            session.client.queue.kick();
        }
        let base = session.vmm.stop_queue(&session.client.queue);
        session.client.queue.kick = EventFd::new(EFD_NONBLOCK).unwrap();
        session.vmm.resume_queue(&session.client.queue, base);
    }
    session.client.getattr(ROOT).unwrap();
    session.finish();
}

/// Descriptors that no kick can be read from.
fn unreadable() -> Vec<(&'static str, fs::File)> {
    let (closed, _) = std::io::pipe().unwrap();
    let memory: fs::File = memfd_create("kick", MemfdFlags::CLOEXEC).unwrap().into();
    vec![
        (
            "a closed pipe",
            fs::File::from(std::os::fd::OwnedFd::from(closed)),
        ),
        ("a regular file", memory),
        ("a directory", fs::File::open("/").unwrap()),
        ("/dev/null", fs::File::open("/dev/null").unwrap()),
    ]
}

#[test]
fn a_kick_that_cannot_be_read_stops_its_queue_only_until_there_is_another() {
    for (what, kick) in unreadable() {
        let mut session = Session::new(&["--num-request-queues=2"]);
        let mut victim = Client::new(session.vmm.start_queue(2));
        victim.getattr(ROOT).unwrap();
        let error = EventFd::new(EFD_NONBLOCK).unwrap();
        session.vmm.vhost.set_vring_err(2, &error).unwrap();
        let kick = as_event(kick);
        session.vmm.vhost.set_vring_kick(2, &kick).unwrap();
        // The old one is kicked: it is no longer listened to.
        victim.queue.kick();
        assert!(wait_event(&error, PATIENCE));
        session
            .daemon
            .expect_log("queue 2 hears of no more requests");
        session.client.getattr(ROOT).unwrap();
        let before = session.daemon.cpu_time_ns();
        for _ in 0..100 {
            session.client.getattr(ROOT).unwrap();
        }
        let spent = session.daemon.cpu_time_ns() - before;
        assert!(spent < 100_000_000, "{what}: {spent} ns for 100 requests");
        // A good one mends it, with what was asked for meanwhile.
        victim.start(&getattr_root());
        victim.submit();
        victim.queue.kick = EventFd::new(EFD_NONBLOCK).unwrap();
        session
            .vmm
            .vhost
            .set_vring_kick(2, &victim.queue.kick)
            .unwrap();
        victim.finish().1.unwrap();
        victim.getattr(ROOT).unwrap();
        let base = session.vmm.stop_queue(&victim.queue);
        session.vmm.resume_queue(&victim.queue, base);
        victim.getattr(ROOT).unwrap();
        assert_eq!(session.daemon.log_count("hears of no more"), 1, "{what}");
        session.finish();
    }
}

#[test]
fn a_queue_has_as_many_entries_as_a_ring_can_have() {
    for queue_size in [1, 2, 2048, 32768] {
        let config = Config {
            queue_size,
            ..Config::default()
        };
        let mut session = Session::with_config(&[], &config);
        exercise(&mut session.client, "f");
        session.finish();
    }
    for entries in [3, 1023] {
        let session = Session::new(&["--num-request-queues=2"]);
        let vhost = session.vmm.vhost.clone();
        vhost.set_vring_num(2, entries).unwrap();
        session
            .daemon
            .expect_log(&format!("a queue of {entries} entries"));
        let ring = vhost::VringConfigData {
            queue_max_size: 1024,
            queue_size: 1024,
            flags: 0,
            desc_table_addr: common::memory::VMM_BASE,
            used_ring_addr: common::memory::VMM_BASE + 0x10000,
            avail_ring_addr: common::memory::VMM_BASE + 0x20000,
            log_addr: None,
        };
        assert!(vhost.set_vring_addr(2, &ring).is_err(), "{entries}");
    }
}

// ---- several queues

#[test]
fn many_queues_are_served_at_once() {
    for args in [
        &["--num-request-queues", "4"][..],
        &["--num-request-queues=4", "--thread-pool-size=4"],
    ] {
        let mut session = Session::new(args);
        let mut clients: Vec<_> = (2..5)
            .map(|index| Client::new(session.vmm.start_queue(index)))
            .collect();
        thread::scope(|scope| {
            for (index, client) in clients.iter_mut().enumerate() {
                scope.spawn(move || {
                    for round in 0..30 {
                        exercise(client, &format!("file-{index}-{round}"));
                    }
                });
            }
            for round in 0..30 {
                exercise(&mut session.client, &format!("file-{round}"));
            }
        });
        assert!(clients.iter().all(Client::is_idle));
        session.finish();
    }
}

#[test]
fn a_busy_queue_does_not_hold_up_another() {
    let mut session = Session::new(&["--num-request-queues", "2"]);
    let mut second = Client::new(session.vmm.start_queue(2));
    let (entry, open) = session
        .client
        .create(ROOT, "f", libc::O_RDWR, 0o600)
        .unwrap();
    session
        .client
        .write(entry.nodeid, open.fh, 0, &pattern(1 << 20))
        .unwrap();
    let read = Request::new(op::READ, entry.nodeid, read_in(open.fh, 0, 1 << 20)).space(1 << 20);
    let mut overtaken = 0;
    for _ in 0..20 {
        for _ in 0..20 {
            session.client.start(&read);
        }
        session.client.submit();
        second.getattr(ROOT).unwrap();
        if session.client.queue.used_index() != session.client.queue.next_avail() {
            overtaken += 1;
        }
        while session.client.in_flight() > 0 {
            session.client.finish().1.unwrap();
        }
    }
    assert!(
        overtaken > 0,
        "the second queue always waited for the first"
    );
    session.finish();
}

#[test]
fn lookups_and_forgets_on_several_queues_count_exactly() {
    let mut session = Session::new(&["--num-request-queues", "2"]);
    for name in 0..4 {
        session.put(&format!("f{name}"), "");
    }
    let mut second = Client::new(session.vmm.start_queue(2));
    let fds = session.daemon.open_fds();
    // Both sides hold each node now and then, and at times neither does.
    let churn = |client: &mut Client| {
        let mut kept = Vec::new();
        for round in 0..1000 {
            for name in 0..4 {
                let node = client.lookup(ROOT, format!("f{name}")).unwrap().nodeid;
                client.getattr(node).unwrap();
                kept.push(node);
                if kept.len() > 2 {
                    let node = kept.swap_remove(round % kept.len());
                    client.forget(node, 1);
                }
            }
        }
        kept
    };
    let mut kept = thread::scope(|scope| {
        let other = scope.spawn(|| churn(&mut second));
        let mut kept = churn(&mut session.client);
        kept.extend(other.join().unwrap());
        kept
    });
    while let Some(node) = kept.pop() {
        session.client.getattr(node).unwrap();
        session.client.forget(node, 1);
        let is_last = !kept.contains(&node);
        assert_eq!(
            session.client.getattr(node).is_err(),
            is_last,
            "node {node}"
        );
    }
    assert_eq!(session.daemon.open_fds(), fds);
    session.finish();
}

#[test]
fn forgets_go_through_the_priority_queue() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    let entry = session.client.lookup(ROOT, "f").unwrap();
    let mut hiprio = Client::new(session.hiprio);
    hiprio.forget(entry.nodeid, 1);
    hiprio.batch_forget(&[(entry.nodeid, 1), (12345, 6)]);
    assert!(
        session.client.getattr(entry.nodeid).is_err(),
        "the node is forgotten"
    );
    assert!(session.client.lookup(ROOT, "f").is_ok());
}

// ---- memory

#[test]
fn memory_is_added_and_removed_while_running() {
    let mut session = Session::new(&["--num-request-queues", "2"]);
    let mut second = Client::new(session.vmm.start_queue(2));
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) || rounds < 3 {
                exercise(&mut second, "load");
                rounds += 1;
            }
        });
        for round in 0..20 {
            session.vmm.hot_add(PLUGGED, 4 << 20);
            session.client.region = Some(PLUGGED);
            exercise(&mut session.client, &format!("plugged-{round}"));
            session.client.region = None;
            session.vmm.hot_remove(PLUGGED);
            exercise(&mut session.client, "elsewhere");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        load.join().unwrap();
    });
    assert_eq!(
        session
            .daemon
            .complaints()
            .iter()
            .filter(|l| l.contains("ERROR"))
            .count(),
        0
    );
    session.finish();
}

#[test]
fn more_regions_than_are_offered_are_refused() {
    const OFFERED: u64 = 509;
    let mut session = Session::new(&[]);
    let held = session.vmm.memory.regions().len() as u64;
    for number in held..OFFERED {
        session.vmm.hot_add(PLUGGED + number * 4096, 4096);
    }
    session.client.region = Some(PLUGGED + (OFFERED - 1) * 4096);
    session.client.getattr(ROOT).unwrap();
    let one_more = session.vmm.memory.add(PLUGGED + OFFERED * 4096, 4096);
    assert!(session.vmm.vhost.add_mem_region(&one_more.info()).is_err());
    assert_eq!(session.daemon.wait().code(), Some(1));
    session
        .daemon
        .expect_log("sends more than 509 regions of memory");
}

#[test]
fn no_core_dump_has_memory_of_the_guest() {
    if !rustix::process::geteuid().is_root() {
        return println!("looking at the daemon's memory takes root: skips itself");
    }
    let mut session = Session::new(&[]);
    session.vmm.hot_add(PLUGGED, 1 << 20);
    // As a user: that resets the flag of the process.
    session.client.uid = 1000;
    let _ = session.client.mkdir(ROOT, "dir", 0o755, 0);
    let pid = session.daemon.serving_pid();
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"));
    let maps = maps.expect("looking at the daemon's memory takes root");
    let mut of_guest = 0;
    let mut is_guests = false;
    for line in maps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            assert!(!is_guests || flags.contains(" dd"), "{flags}");
        } else if line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            is_guests = line.contains("guest-memory");
            of_guest += usize::from(is_guests);
        }
    }
    assert!(of_guest >= 3, "{maps}");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<_> = core.unwrap().split_whitespace().skip(4).take(2).collect();
    assert_eq!(words, ["0", "0"]);
    session.finish();
}

#[test]
fn memory_that_was_removed_is_let_go() {
    let mut session = Session::new(&[]);
    let mapped = |session: &Session| {
        let maps =
            fs::read_to_string(format!("/proc/{}/maps", session.daemon.serving_pid())).unwrap();
        maps.lines()
            .filter(|line| line.contains("guest-memory"))
            .count()
    };
    let (maps, fds) = (mapped(&session), session.daemon.open_fds());
    for _ in 0..10 {
        session.vmm.hot_add(PLUGGED, 1 << 20);
        session.client.region = Some(PLUGGED);
        exercise(&mut session.client, "f");
        session.client.region = None;
        session.vmm.hot_remove(PLUGGED);
    }
    // The last request let go of the old memory when the next one was taken.
    exercise(&mut session.client, "f");
    assert_eq!(mapped(&session), maps);
    assert_eq!(session.daemon.open_fds(), fds);
    session.finish();
}

#[test]
fn the_memory_table_can_be_replaced() {
    let mut session = Session::new(&[]);
    for _ in 0..3 {
        session.vmm.memory.add(PLUGGED, 1 << 20);
        session.vmm.set_mem_table();
        session.client.region = Some(PLUGGED);
        exercise(&mut session.client, "f");
        session.client.region = Some(HIGH_MEMORY);
        session.vmm.memory.remove(PLUGGED);
        session.vmm.set_mem_table();
        exercise(&mut session.client, "f");
    }
    session.finish();
}

#[test]
fn every_page_that_was_written_is_in_the_dirty_log() {
    for args in [&[][..], &["--thread-pool-size", "2"]] {
        let mut session = Session::with_config(args, &Config::default().with(F_LOG_ALL));
        session.put("f", pattern(1 << 20));
        let client = &mut session.client;
        let entry = client.lookup(ROOT, "f").unwrap();
        let open = client.open(entry.nodeid, libc::O_RDONLY).unwrap();

        let log = DirtyLog::start(&session.vmm, HIGH_MEMORY + (16 << 20));
        assert_eq!(log.pages(), HashSet::new());
        // A reply in pieces, over both regions.
        for region in [LOW_MEMORY, HIGH_MEMORY] {
            for split in [Split::Header, Split::Pieces(40, 10_000)] {
                client.split = split;
                client.region = Some(region);
                let read = Request::new(op::READ, entry.nodeid, read_in(open.fh, 0, 1 << 20));
                log.clear();
                let before = snapshot(&session.vmm);
                client.call(&read.space(1 << 20)).unwrap();
                let changed = changed_pages(&session.vmm, &before);
                assert!(changed.len() > 256, "{} pages changed", changed.len());
                let used_page = client.queue.used / 4096;
                let logged = log.pages();
                assert!(logged.contains(&used_page), "the used ring");
                let missing: Vec<_> = changed.difference(&logged).collect();
                // The front end wrote requests and the available ring itself.
                let missing: Vec<_> = missing
                    .into_iter()
                    .filter(|page| !is_ours(client, **page, &session.vmm))
                    .collect();
                assert!(
                    missing.is_empty(),
                    "pages written but not logged: {missing:x?}"
                );
                // Logging may say too much, but not everything.
                assert!(logged.len() < 600, "{} pages logged", logged.len());
            }
        }
        // Errors and small replies too.
        log.clear();
        client.region = None;
        assert_eq!(client.lookup(ROOT, "missing"), Err(libc::ENOENT));
        assert!(log.pages().contains(&(client.queue.used / 4096)));
        assert!(log.pages().len() >= 2, "the reply and the used ring");
        session.finish();
    }
}

/// Has replies written to memory that is new, whose pages then have to be in the log.
fn assert_logged(session: &mut Session, log: &DirtyLog) {
    let client = &mut session.client;
    log.clear();
    client.region = Some(PLUGGED);
    client.getattr(ROOT).unwrap();
    client.region = None;
    let pages = log.pages();
    let plugged = (PLUGGED / 4096)..((PLUGGED + (1 << 20)) / 4096);
    assert!(
        pages.iter().any(|page| plugged.contains(page)),
        "{pages:x?}"
    );
    assert!(pages.contains(&(client.queue.used / 4096)), "{pages:x?}");
}

#[test]
fn memory_that_comes_while_the_log_is_on_is_in_the_log() {
    for args in [&[][..], &["--thread-pool-size", "2"]] {
        let mut session = Session::with_config(args, &Config::default().with(F_LOG_ALL));
        let log = DirtyLog::start(&session.vmm, PLUGGED + (16 << 20));
        session.vmm.hot_add(PLUGGED, 1 << 20);
        assert_logged(&mut session, &log);
        session.vmm.hot_remove(PLUGGED);
        session.vmm.memory.add(PLUGGED, 1 << 20);
        session.vmm.set_mem_table();
        assert_logged(&mut session, &log);
        // The same memory once more: all of it is new to the daemon.
        session.vmm.set_mem_table();
        assert_logged(&mut session, &log);
        session.finish();
    }
}

#[test]
fn memory_that_the_log_has_no_room_for_is_refused() {
    let mut session = Session::with_config(&[], &Config::default().with(F_LOG_ALL));
    let _log = DirtyLog::start(&session.vmm, HIGH_MEMORY + (16 << 20));
    let region = session.vmm.memory.add(PLUGGED, 1 << 20);
    assert!(session.vmm.vhost.add_mem_region(&region.info()).is_err());
    assert_eq!(session.daemon.wait().code(), Some(1));
}

/// Huge pages that are used up, a full tmpfs, a file that somebody truncates.
#[test]
fn memory_that_goes_away_ends_the_session_and_not_the_daemon() {
    let args = ["--keep-listening", "--num-request-queues=2"];
    let mut session = Session::with_config(&args, &Config::default().with(F_LOG_ALL));
    let error = EventFd::new(EFD_NONBLOCK).unwrap();
    session.vmm.vhost.set_vring_err(1, &error).unwrap();
    session.vmm.hot_add(PLUGGED, 1 << 20);
    session.client.region = Some(PLUGGED);
    session.client.getattr(ROOT).unwrap();
    session.client.start(&getattr_root());
    session.vmm.memory.region_of(PLUGGED, 1).truncate(0);
    session.client.submit();
    assert!(wait_event(&error, PATIENCE));
    session
        .daemon
        .expect_log("queue 1 is stopped until the guest resets the device: the guest's memory");
    let Session {
        client,
        vmm,
        daemon,
        hiprio,
        ..
    } = session;
    drop((client, vmm, hiprio));
    daemon.expect_log("Client disconnected");

    // The next one has memory of its own, and this time loses the log.
    let mut vmm = Vmm::connect(daemon.socket(), &Config::default().with(F_LOG_ALL));
    let mut client = Client::new(vmm.start_queue(1));
    client.init();
    let log = DirtyLog::start(&vmm, HIGH_MEMORY + (16 << 20));
    client.getattr(ROOT).unwrap();
    log.truncate();
    client.start(&getattr_root());
    client.submit();
    daemon.expect_log_count("is stopped until the guest resets the device", 2);
    drop((client, vmm));
    daemon.expect_log_count("Client disconnected", 2);

    let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
    let mut client = Client::new(vmm.start_queue(1));
    client.init();
    client.getattr(ROOT).unwrap();
}

#[test]
fn a_log_that_is_larger_than_its_file_is_refused() {
    let session = Session::new(&[]);
    let file: fs::File = memfd_create("dirty-log", MemfdFlags::CLOEXEC)
        .unwrap()
        .into();
    let region = VhostUserDirtyLogRegion {
        mmap_size: 1 << 20,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    assert!(session.vmm.vhost.set_log_base(0, Some(region)).is_err());
    session.daemon.expect_log("larger than its file");
}

/// A page with request bytes or ring parts that only the driver writes. These
/// lie on pages apart from everything the daemon writes, save for small
/// blocks, which share pages with small replies only.
fn is_ours(client: &Client, page: u64, vmm: &Vmm) -> bool {
    let queue = &client.queue;
    if page == queue.avail / 4096 || page == queue.descriptors / 4096 {
        return true;
    }
    // Only poison, or what the client itself put there: no page of READ data.
    let bytes = vmm.memory.read_vec(page * 4096, 4096);
    let words: Vec<_> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    let data = words
        .windows(2)
        .filter(|pair| pair[1] == pair[0].wrapping_add(1))
        .count();
    data < 16
}

/// All of guest memory.
fn snapshot(vmm: &Vmm) -> Vec<(u64, Vec<u8>)> {
    let regions = vmm.memory.regions();
    let read = |gpa, size| {
        (
            gpa,
            vmm.memory.read_vec(gpa, usize::try_from(size).unwrap()),
        )
    };
    regions
        .iter()
        .map(|region| read(region.gpa, region.size))
        .collect()
}

fn changed_pages(vmm: &Vmm, before: &[(u64, Vec<u8>)]) -> HashSet<u64> {
    let mut changed = HashSet::new();
    for ((gpa, old), (_, new)) in before.iter().zip(snapshot(vmm)) {
        for (index, (old, new)) in old.chunks(4096).zip(new.chunks(4096)).enumerate() {
            if old != new {
                changed.insert(gpa / 4096 + index as u64);
            }
        }
    }
    changed
}

// ---- life of queues and of the device

#[test]
fn a_queue_stopped_under_load_answers_what_it_took_exactly_once() {
    for args in [&[][..], &["--thread-pool-size", "4"]] {
        let mut session = Session::new(args);
        session.put("f", pattern(128 << 10));
        let client = &mut session.client;
        let entry = client.lookup(ROOT, "f").unwrap();
        let open = client.open(entry.nodeid, libc::O_RDONLY).unwrap();
        let read = Request::new(op::READ, entry.nodeid, read_in(open.fh, 0, 128 << 10));
        let read = read.space(128 << 10);
        // As many as the queue has room for: more than the daemon takes at once.
        let mut stopped_midway = 0;
        let in_pool = !args.is_empty();
        for round in 0..500 {
            // A pool takes all at once, so there is no middle.
            if round > 30 && (stopped_midway > 0 || in_pool) {
                break;
            }
            let mut waiting: HashSet<_> = (0..120).map(|_| client.start(&read)).collect();
            client.submit();
            if round % 2 == 1 {
                // The first one is answered: the daemon is at work.
                let (unique, answer) = client.finish();
                answer.unwrap();
                waiting.remove(&unique);
            }
            let base = session.vmm.stop_queue(&client.queue);
            // All that were taken are answered before the base comes back.
            assert_eq!(client.queue.used_index(), base, "taken and answered");
            while let Some((unique, raw, size)) = client.poll_raw() {
                raw.check(unique, size).unwrap();
                assert!(waiting.remove(&unique), "answered twice");
            }
            if !waiting.is_empty() {
                stopped_midway += 1;
            }
            session.vmm.resume_queue(&client.queue, base);
            client.queue.kick();
            while !waiting.is_empty() {
                let (unique, answer) = client.finish();
                answer.unwrap();
                assert!(waiting.remove(&unique), "answered twice");
            }
        }
        assert!(
            stopped_midway > 0 || in_pool,
            "no stop came in the middle of the work"
        );
        assert!(client.is_idle());
        session.finish();
    }
}

#[test]
fn a_disabled_queue_waits() {
    let mut session = Session::new(&[]);
    settle(&mut session);
    session.vmm.vhost.set_vring_enable(REQUEST, false).unwrap();
    let unique = session.client.start(&getattr_root());
    session.client.submit();
    assert!(!session.client.queue.call_comes(Duration::from_millis(50)));
    assert_eq!(
        session.client.queue.used_index(),
        session.client.queue.last_used()
    );
    session.vmm.vhost.set_vring_enable(REQUEST, true).unwrap();
    session.client.wait_for(unique).unwrap();
    session.finish();
}

#[test]
fn after_a_reset_the_guest_starts_anew() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    for _ in 0..3 {
        let entry = session.client.lookup(ROOT, "f").unwrap();
        let open = session.client.open(entry.nodeid, libc::O_RDONLY).unwrap();
        assert_eq!(
            session.client.read(entry.nodeid, open.fh, 0, 4),
            Ok(b"text".to_vec())
        );
        for queue in [&session.hiprio, &session.client.queue] {
            session.vmm.stop_queue(queue);
        }
        session.vmm.vhost.reset_device().unwrap();
        session
            .vmm
            .vhost
            .set_features(session.vmm.features)
            .unwrap();
        session.hiprio = session.vmm.start_queue(HIPRIO);
        session.client = Client::new(session.vmm.start_queue(REQUEST));
        session.client.init();
        let handles = session.client.read(entry.nodeid, open.fh, 0, 4);
        assert!(handles.is_err(), "handles of the guest before the reset");
    }
    session.finish();
}

#[test]
fn a_guest_that_reboots_without_reset_mounts_again() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    session.client.lookup(ROOT, "f").unwrap();
    session.vmm.stop_queue(&session.client.queue);
    session.client = Client::new(session.vmm.start_queue(REQUEST));
    session.client.init();
    exercise(&mut session.client, "g");
    session.finish();
}

#[test]
fn ends_in_peace_when_the_front_end_disconnects() {
    let mut session = Session::new(&[]);
    exercise(&mut session.client, "f");
    let Session {
        client,
        vmm,
        mut daemon,
        ..
    } = session;
    drop((client, vmm));
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(daemon.log_count("Client connected, servicing requests"), 1);
    assert_eq!(daemon.log_count("Client disconnected, shutting down"), 1);
}

#[test]
fn ends_in_peace_when_the_front_end_says_nothing() {
    let (_dir, mut daemon) = start(&[]);
    drop(UnixStream::connect(daemon.socket()).unwrap());
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(daemon.log_count("Client disconnected, shutting down"), 1);
}

#[test]
fn ends_in_peace_when_the_front_end_dies_with_requests_in_flight() {
    for args in [&[][..], &["--thread-pool-size", "4"]] {
        let mut session = Session::new(args);
        session.put("f", pattern(1 << 20));
        let entry = session.client.lookup(ROOT, "f").unwrap();
        let open = session.client.open(entry.nodeid, libc::O_RDONLY).unwrap();
        let read = Request::new(op::READ, entry.nodeid, read_in(open.fh, 0, 1 << 20));
        for _ in 0..16 {
            session.client.start(&read.clone().space(1 << 20));
        }
        session.client.submit();
        session.finish();
    }
}

#[test]
fn a_new_daemon_takes_the_place_of_the_old_one() {
    let place = TempDir::with_prefix("virtiofsd-test-").unwrap();
    let socket = place.path().join("fs.sock");
    let share = TempDir::with_prefix("virtiofsd-share-").unwrap();
    for _ in 0..3 {
        let mut daemon = Daemon::start_on(&default_binary(), &socket, share.path(), &[]);
        let mut vmm = Vmm::connect(&socket, &Config::default());
        let mut client = Client::new(vmm.start_queue(REQUEST));
        client.init();
        exercise(&mut client, "f");
        drop((client, vmm));
        assert!(daemon.wait().success());
    }
}

#[test]
fn a_killed_daemon_does_not_block_its_successor() {
    let place = TempDir::with_prefix("virtiofsd-test-").unwrap();
    let socket = place.path().join("fs.sock");
    let share = TempDir::with_prefix("virtiofsd-share-").unwrap();
    drop(Daemon::start_on(
        &default_binary(),
        &socket,
        share.path(),
        &[],
    ));
    let daemon = Daemon::start_on(&default_binary(), &socket, share.path(), &[]);
    let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
    let mut client = Client::new(vmm.start_queue(REQUEST));
    client.init();
    exercise(&mut client, "f");
}

/// A GETATTR of the root, the cheapest request.
fn getattr_request() -> Request {
    Request::new(op::GETATTR, ROOT, Encoder::new().u32(0).u32(0).u64(0))
}

/// A file of this many bytes, and a READ of all of it.
fn read_request(session: &mut Session, len: u32) -> Request {
    session.put("content", vec![7; len as usize]);
    let node = session.client.walk("content").unwrap().nodeid;
    let fh = session.client.open(node, libc::O_RDONLY).unwrap().fh;
    Request::new(op::READ, node, read_in(fh, 0, len)).space(len as usize)
}

#[test]
fn a_busy_queue_knows_memory_that_was_just_added() {
    for args in [&[][..], &["--thread-pool-size", "4"]] {
        let mut session = Session::new(args);
        let read = read_request(&mut session, 256 << 10);
        for _ in 0..20 {
            for _ in 0..60 {
                session.client.start(&read);
            }
            session.client.submit();
            session.vmm.hot_add(PLUGGED, 4 << 20);
            session.client.region = Some(PLUGGED);
            session.client.start(&getattr_request());
            session.client.submit();
            session.client.region = None;
            for _ in 0..61 {
                session.client.finish().1.unwrap();
            }
            session.vmm.hot_remove(PLUGGED);
        }
        session.finish();
    }
}

#[test]
fn addresses_sent_again_to_a_running_ring_lose_no_answer() {
    for args in [&[][..], &["--thread-pool-size", "4"]] {
        let mut session = Session::new(args);
        let read = read_request(&mut session, 64 << 10);
        let queue = &session.client.queue;
        let index = queue.index;
        let address = |part: u64| common::memory::VMM_BASE + part;
        let layout = vhost::VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: address(queue.descriptors),
            used_ring_addr: address(queue.used),
            avail_ring_addr: address(queue.avail),
            log_addr: None,
        };
        let vhost = session.vmm.vhost.clone();
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    vhost.set_vring_addr(index, &layout).unwrap();
                }
            });
            let mut waiting = 0;
            let mut answered = 0;
            let mut last = Instant::now();
            while answered < 40_000 && last.elapsed() < PATIENCE {
                while waiting < 30 {
                    session.client.start(&read);
                    waiting += 1;
                }
                session.client.submit();
                while session.client.poll_raw().is_some() {
                    waiting -= 1;
                    answered += 1;
                    last = Instant::now();
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(answered >= 40_000, "{waiting} lost after {answered}");
        });
    }
}

#[test]
fn stopping_a_queue_does_not_wait_for_what_was_not_begun() {
    let mut session = Session::new(&[]);
    let read = read_request(&mut session, 1 << 20);
    for _ in 0..60 {
        session.client.start(&read);
    }
    session.client.submit();
    let base = session.vmm.stop_queue(&session.client.queue);
    let used = session.client.queue.used_index();
    assert_eq!(
        used, base,
        "what was taken is answered, the rest is available"
    );
    session.finish();
}

/// What QEMU's memory backend without `share=on` looks like: the guest kicks, and
/// its requests are nowhere.
#[test]
fn a_guest_that_kicks_and_is_never_heard_is_told_of() {
    const SAID: &str = "give QEMU's memory backend share=on";
    let mut session = Session::before_init(&[], &Config::default());
    let deadline = Instant::now() + PATIENCE;
    while session.daemon.log_count(SAID) == 0 {
        assert!(Instant::now() < deadline, "{:#?}", session.daemon.log());
        session.client.queue.kick();
        std::thread::yield_now();
    }
    // It is no more than a guess.
    session.client.init();
    session.client.getattr(ROOT).unwrap();
    assert_eq!(session.finish().log_count(SAID), 1);

    let mut session = Session::new(&[]);
    for _ in 0..100 {
        session.client.queue.kick();
        session.client.getattr(ROOT).unwrap();
    }
    assert_eq!(session.finish().log_count(SAID), 0);
}
