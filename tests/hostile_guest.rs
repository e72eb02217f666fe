//! A guest that means harm, by its rings and its memory: the daemon answers what
//! can be answered, gives up on a broken ring with one line in its log, and goes
//! on serving everything else. `hostile_requests.rs` has malformed requests.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::every_operation::{getattr_root, still_serves};
use common::frontend::{
    Buffer, Config, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, F_INDIRECT, LOW_MEMORY,
    Queue, REQUEST, Vmm,
};
use common::fuse_client::{Client, RawReply, ReplySize, Request, read_in};
use common::memory::VMM_BASE;
use common::session::Session;
use common::table::{Table, errno_name};
use common::wire::{Encoder, OUT_HEADER, OutHeader, ROOT, op};
use common::{PATIENCE, Random, wait_event};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

// ---- corrupted rings

const NOWHERE: u64 = 0xdead_0000_0000;

/// A valid GETATTR in guest memory, as two descriptors.
fn valid_pair(session: &mut Session) -> (Descriptor, Descriptor) {
    let memory = session.vmm.memory.clone();
    let request = Request::new(op::GETATTR, ROOT, Encoder::new().u64(0).u64(0));
    let (_, bytes) = session.client.encode(&request);
    let (input, output) = (memory.alloc(4096), memory.alloc(4096));
    memory.write(input, &bytes);
    let input = Descriptor {
        addr: input,
        len: u32::try_from(bytes.len()).unwrap(),
        flags: DESC_NEXT,
        next: 1,
    };
    let output = Descriptor {
        addr: output,
        len: 4096,
        flags: DESC_WRITE,
        next: 0,
    };
    (input, output)
}

/// What one corruption does to the ring of a queue.
type Corrupt = fn(&mut Queue, Descriptor, Descriptor);

fn offer(queue: &mut Queue, head: u16) {
    queue.put_avail(head);
    queue.publish();
}

/// Damage of the available ring itself: nothing can be answered.
const RING: &[(&str, Corrupt)] = &[
    ("an available index one too far", |queue, _, _| {
        queue.set_avail_index(queue.next_avail().wrapping_add(queue.size).wrapping_add(1));
    }),
    ("an available index far off", |queue, _, _| {
        queue.set_avail_index(queue.next_avail().wrapping_add(0x8000));
    }),
    ("an available index that went back", |queue, _, _| {
        queue.set_avail_index(queue.next_avail().wrapping_sub(1));
    }),
    ("a head out of range", |queue, _, _| {
        let size = queue.size;
        offer(queue, size);
    }),
    ("a head far out of range", |queue, _, _| {
        offer(queue, 0xffff)
    }),
];

/// Damage of one chain: the queue stops, or the chain comes back unanswered.
const CHAIN: &[(&str, Corrupt)] = &[
    ("a descriptor that follows itself", |queue, input, _| {
        queue.write_descriptor(0, Descriptor { next: 0, ..input });
        offer(queue, 0);
    }),
    ("a loop of two", |queue, input, output| {
        queue.write_descriptor(0, input);
        queue.write_descriptor(
            1,
            Descriptor {
                flags: DESC_NEXT | DESC_WRITE,
                next: 0,
                ..output
            },
        );
        offer(queue, 0);
    }),
    ("a next descriptor out of range", |queue, input, _| {
        let next = queue.size;
        queue.write_descriptor(0, Descriptor { next, ..input });
        offer(queue, 0);
    }),
    ("a request outside of memory", |queue, input, output| {
        queue.write_descriptor(
            0,
            Descriptor {
                addr: NOWHERE,
                ..input
            },
        );
        queue.write_descriptor(1, output);
        offer(queue, 0);
    }),
    ("a reply outside of memory", |queue, input, output| {
        queue.write_descriptor(0, input);
        queue.write_descriptor(
            1,
            Descriptor {
                addr: NOWHERE,
                ..output
            },
        );
        offer(queue, 0);
    }),
    (
        "a reply whose end is outside of memory",
        |queue, input, output| {
            queue.write_descriptor(0, input);
            let header = Descriptor {
                len: 16,
                flags: DESC_NEXT | DESC_WRITE,
                next: 2,
                ..output
            };
            queue.write_descriptor(1, header);
            let rest = Descriptor {
                addr: NOWHERE,
                len: output.len - 16,
                ..output
            };
            queue.write_descriptor(2, rest);
            offer(queue, 0);
        },
    ),
    (
        "a buffer beyond the end of a region",
        |queue, input, output| {
            queue.write_descriptor(0, input);
            queue.write_descriptor(
                1,
                Descriptor {
                    addr: LOW_MEMORY + (64 << 20) - 8,
                    ..output
                },
            );
            offer(queue, 0);
        },
    ),
    (
        "a buffer beyond the end of the address space",
        |queue, input, output| {
            queue.write_descriptor(0, input);
            queue.write_descriptor(
                1,
                Descriptor {
                    addr: u64::MAX - 8,
                    ..output
                },
            );
            offer(queue, 0);
        },
    ),
    ("a buffer of 4 GiB", |queue, input, output| {
        queue.write_descriptor(
            0,
            Descriptor {
                len: u32::MAX,
                ..input
            },
        );
        queue.write_descriptor(
            1,
            Descriptor {
                len: u32::MAX,
                ..output
            },
        );
        offer(queue, 0);
    }),
    ("a request behind the reply", |queue, input, output| {
        queue.write_descriptor(
            0,
            Descriptor {
                flags: DESC_NEXT | DESC_WRITE,
                next: 1,
                ..output
            },
        );
        queue.write_descriptor(1, Descriptor { flags: 0, ..input });
        offer(queue, 0);
    }),
    ("an indirect table outside of memory", |queue, _, _| {
        indirect(queue, NOWHERE, 32, 0);
    }),
    (
        "an indirect table at an odd address",
        |queue, input, output| {
            let table = queue.memory.alloc(4096) + 1;
            queue.memory.write(table, &input.to_bytes());
            queue.memory.write(table + 16, &output.to_bytes());
            indirect(queue, table, 32, 0);
        },
    ),
    ("a request at an odd address", |queue, input, output| {
        let bytes = queue.memory.read_vec(input.addr, input.len as usize);
        let addr = input.addr + 4000 + 1;
        queue.memory.write(addr, &bytes);
        queue.write_descriptor(0, Descriptor { addr, ..input });
        queue.write_descriptor(1, output);
        offer(queue, 0);
    }),
    ("an indirect table of a broken length", |queue, input, _| {
        indirect(queue, input.addr, 33, 0);
    }),
    ("an indirect table of no length", |queue, input, _| {
        indirect(queue, input.addr, 0, 0);
    }),
    ("an indirect table of 64 MiB", |queue, _, _| {
        indirect(queue, LOW_MEMORY, 64 << 20, 0);
    }),
    ("an indirect table with a loop", |queue, input, _| {
        let table = queue.memory.alloc(4096);
        let looped = Descriptor { next: 0, ..input };
        queue.memory.write(table, &looped.to_bytes());
        indirect(queue, table, 16, 0);
    }),
    (
        "an indirect table whose chain leaves it",
        |queue, input, _| {
            let table = queue.memory.alloc(4096);
            let outside = Descriptor { next: 5, ..input };
            queue.memory.write(table, &outside.to_bytes());
            indirect(queue, table, 16, 0);
        },
    ),
    (
        "an indirect table in an indirect table",
        |queue, input, _| {
            let table = queue.memory.alloc(4096);
            let nested = Descriptor {
                flags: DESC_INDIRECT,
                len: 16,
                ..input
            };
            queue.memory.write(table, &nested.to_bytes());
            indirect(queue, table, 16, 0);
        },
    ),
    (
        "an indirect table that is also chained",
        |queue, input, output| {
            let table = queue.memory.alloc(4096);
            queue
                .memory
                .write(table, &Descriptor { flags: 0, ..input }.to_bytes());
            queue.write_descriptor(1, output);
            indirect(queue, table, 16, DESC_NEXT);
        },
    ),
    ("no buffer with any byte", |queue, input, _| {
        queue.write_descriptor(
            0,
            Descriptor {
                len: 0,
                flags: 0,
                ..input
            },
        );
        offer(queue, 0);
    }),
];

fn indirect(queue: &mut Queue, addr: u64, len: u32, flags: u16) {
    let descriptor = Descriptor {
        addr,
        len,
        flags: DESC_INDIRECT | flags,
        next: 1,
    };
    queue.write_descriptor(0, descriptor);
    offer(queue, 0);
}

/// A guest with a second request queue to be broken.
fn with_victim(args: &[&str], config: &Config) -> (Session, Client) {
    let mut session =
        Session::with_config(&[args, &["--num-request-queues", "2"]].concat(), config);
    let mut victim = Client::new(session.vmm.start_queue(2));
    victim.getattr(ROOT).unwrap();
    (session, victim)
}

/// The event by which the front end hears of a broken ring of queue 2.
fn error_event(session: &Session) -> EventFd {
    let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
    session.vmm.vhost.set_vring_err(2, &event).unwrap();
    event
}

/// The guest restarts its broken queue, and all is well.
fn restart(session: &mut Session, victim: &Client) {
    session.vmm.stop_queue(&victim.queue);
    let mut anew = Client::new(session.vmm.start_queue(2));
    for _ in 0..10 {
        anew.getattr(ROOT).unwrap();
    }
}

/// What came of damage, once the queue was stopped: why it broke, or its answer.
fn outcome(complaints: &[String], queue: &Queue, reply: u64, before: u16) -> String {
    if let [line] = complaints {
        let (_, why) = line.split_once("resets the device: ").expect(line);
        return format!("the queue stops: {why}");
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
    let slot = u64::from(before % queue.size);
    let len = queue.region().read_u32(queue.used + 8 + 8 * slot);
    if len == 0 {
        return "none".to_owned();
    }
    let header = queue.memory.read_vec(reply, OUT_HEADER);
    match OutHeader::decode(&header).error {
        0 => "done".to_owned(),
        error => errno_name(-error),
    }
}

#[test]
fn a_broken_ring_stops_alone_and_is_logged_once() {
    let mut table = Table::new("rings", &["damage of the ring", "outcome"]);
    for args in [&[][..], &["--thread-pool-size", "2"]] {
        for (what, corrupt) in RING {
            let (mut session, mut victim) = with_victim(args, &Config::default());
            let (input, output) = valid_pair(&mut session);
            let error = error_event(&session);
            let before = session.daemon.complaints().len();
            corrupt(&mut victim.queue, input, output);
            victim.queue.kick();
            assert!(wait_event(&error, PATIENCE), "{what}: no error event");
            session.daemon.expect_complaint_after(before);
            for _ in 0..10 {
                victim.queue.kick();
                session.client.getattr(ROOT).unwrap();
            }
            restart(&mut session, &victim);
            let complaints = session.finish().complaints().split_off(before);
            assert_eq!(complaints.len(), 1, "{what}: {complaints:#?}");
            assert_eq!(error.read().unwrap(), 1, "{what}: error events");
            table.note(
                what,
                "outcome",
                outcome(&complaints, &victim.queue, output.addr, 0),
            );
        }
    }
    table.check();
}

#[test]
fn a_broken_chain_harms_nobody_else() {
    let mut table = Table::new("chains", &["damage of a chain", "outcome"]);
    for args in [&[][..], &["--thread-pool-size", "2"]] {
        for (what, corrupt) in CHAIN {
            let (mut session, mut victim) = with_victim(args, &Config::default());
            let (input, output) = valid_pair(&mut session);
            let before = session.daemon.complaints().len();
            let error = error_event(&session);
            let used = victim.queue.used_index();
            corrupt(&mut victim.queue, input, output);
            victim.queue.ask_for_call_after(0);
            victim.queue.kick();
            let deadline = Instant::now() + PATIENCE;
            while victim.queue.used_index() == used && session.daemon.complaints().len() == before {
                assert!(
                    Instant::now() < deadline,
                    "{what}: neither answered nor logged"
                );
                victim.queue.call_comes(Duration::from_millis(1));
            }
            for _ in 0..10 {
                victim.queue.kick();
                session.client.getattr(ROOT).unwrap();
            }
            // Stopping waits for what is being served.
            session.vmm.stop_queue(&victim.queue);
            let answered = victim.queue.used_index().wrapping_sub(used);
            let mut anew = Client::new(session.vmm.start_queue(2));
            anew.getattr(ROOT).unwrap();
            let mut complaints = session.finish().complaints().split_off(before);
            // Said once, of a request that is answered.
            complaints.retain(|line| !line.contains("a buffer that is not in shared memory"));
            let signalled = error.read().unwrap_or(0) as usize;
            assert_eq!(signalled, complaints.len(), "{what}: error events");
            let expected = u16::from(complaints.is_empty());
            assert_eq!(answered, expected, "{what}: answers");
            table.note(
                what,
                "outcome",
                outcome(&complaints, &victim.queue, output.addr, used),
            );
        }
    }
    table.check();
}

/// A ring of queue 2 that lies where there is nothing but what the guest left.
fn elsewhere(session: &Session, random: &mut Random) -> VringConfigData {
    let place = session.vmm.memory.alloc(64 << 10);
    let junk: Vec<u8> = (0..64 << 10).map(|_| random.next() as u8).collect();
    session.vmm.memory.write(place, &junk);
    let at = VMM_BASE + place;
    VringConfigData {
        queue_max_size: 128,
        queue_size: 128,
        flags: 0,
        desc_table_addr: at,
        avail_ring_addr: at + (16 << 10),
        used_ring_addr: at + (32 << 10),
        log_addr: None,
    }
}

#[test]
fn a_ring_that_is_moved_while_it_is_served_harms_nobody_else() {
    const ROUNDS: usize = 30;
    for args in [&[][..], &["--thread-pool-size", "2"]] {
        let (mut session, mut victim) = with_victim(args, &Config::default());
        session.put("f", vec![7; 1 << 16]);
        let f = session.client.walk("f").unwrap().nodeid;
        let fh = session.client.open(f, libc::O_RDONLY).unwrap().fh;
        let mut random = Random(0x5eed_0001);
        let before = session.daemon.complaints().len();
        for _ in 0..ROUNDS {
            for _ in 0..20 {
                victim.start(&Request::new(op::READ, f, read_in(fh, 0, 4096)).space(4096));
            }
            victim.submit();
            let place = elsewhere(&session, &mut random);
            session.vmm.vhost.set_vring_addr(2, &place).unwrap();
            for _ in 0..10 {
                victim.queue.kick();
                session.client.getattr(ROOT).unwrap();
            }
            session.vmm.stop_queue(&victim.queue);
            victim = Client::new(session.vmm.start_queue(2));
            victim.getattr(ROOT).unwrap();
        }
        let complaints = session.finish().complaints().split_off(before);
        assert!(complaints.len() <= ROUNDS, "{complaints:#?}");
    }
}

#[test]
fn queues_are_started_stopped_and_enabled_in_any_order() {
    for args in [&[][..], &["--thread-pool-size", "2"]] {
        let (mut session, mut victim) = with_victim(args, &Config::default());
        let mut random = Random(0x5eed_0002);
        let request = || Request::new(op::GETATTR, ROOT, Encoder::new().u64(0).u64(0));
        for _ in 0..400 {
            let queue = &victim.queue;
            let vhost = &mut session.vmm.vhost;
            match random.below(8) {
                0 => vhost.set_vring_enable(2, false).unwrap(),
                1 => vhost.set_vring_enable(2, true).unwrap(),
                2 => drop(vhost.get_vring_base(2).unwrap()),
                3 => vhost.set_vring_kick(2, &queue.kick).unwrap(),
                4 => vhost.set_vring_call(2, &queue.call).unwrap(),
                5 => vhost.set_vring_base(2, queue.last_used()).unwrap(),
                6 => queue.kick.write(1).unwrap(),
                _ => {
                    if victim.in_flight() < 40 {
                        victim.start(&request());
                        victim.submit();
                    }
                }
            }
            session.client.getattr(ROOT).unwrap();
        }
        restart(&mut session, &victim);
        session.finish();
    }
}

#[test]
fn a_flood_of_kicks_harms_nobody() {
    for args in [&[][..], &["--thread-pool-size", "2"]] {
        let (mut session, mut victim) = with_victim(args, &Config::default());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (kick, stop) = (&victim.queue.kick, &stop);
            let flood = scope.spawn(move || {
                let mut kicks = 0;
                while !stop.load(Ordering::Relaxed) {
                    kick.write(1).unwrap();
                    kicks += 1;
                }
                kicks
            });
            for _ in 0..2000 {
                session.client.getattr(ROOT).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            assert!(flood.join().unwrap() > 0);
        });
        victim.getattr(ROOT).unwrap();
        let lines = session.finish().log().len();
        assert!(lines < 10, "{lines} lines in the log");
    }
}

#[test]
fn an_indirect_table_that_was_not_negotiated_harms_nobody() {
    let (mut session, mut victim) = with_victim(&[], &Config::default().without(F_INDIRECT));
    let (input, output) = valid_pair(&mut session);
    let table = session.vmm.memory.alloc(4096);
    session.vmm.memory.write(table, &input.to_bytes());
    session.vmm.memory.write(table + 16, &output.to_bytes());
    indirect(&mut victim.queue, table, 32, 0);
    victim.queue.kick();
    session.client.getattr(ROOT).unwrap();
    restart(&mut session, &victim);
    session.finish();
}

#[test]
fn a_broken_ring_is_well_after_a_reset_of_the_device() {
    let (mut session, mut victim) = with_victim(&[], &Config::default());
    let before = session.daemon.complaints().len();
    let size = victim.queue.size;
    offer(&mut victim.queue, size + 3);
    victim.queue.kick();
    session.daemon.expect_complaint_after(before);
    for queue in [&session.hiprio, &session.client.queue, &victim.queue] {
        session.vmm.stop_queue(queue);
    }
    session.vmm.vhost.reset_device().unwrap();
    session
        .vmm
        .vhost
        .set_features(session.vmm.features)
        .unwrap();
    session.client = Client::new(session.vmm.start_queue(REQUEST));
    let mut second = Client::new(session.vmm.start_queue(2));
    session.client.init();
    second.getattr(ROOT).unwrap();
    session.finish();
}

/// A guest that resets its device each time gets a line for each queue that it breaks:
/// as fast as it can, that would be thousands in a second.
#[test]
fn a_guest_that_breaks_its_queue_again_and_again_fills_no_log() {
    const TIMES: usize = 500;
    let (mut session, mut victim) = with_victim(&[], &Config::default());
    let error = error_event(&session);
    let begun = Instant::now();
    for _ in 0..TIMES {
        let size = victim.queue.size;
        offer(&mut victim.queue, size);
        victim.queue.kick();
        assert!(wait_event(&error, PATIENCE));
        error.read().unwrap();
        session.vmm.stop_queue(&victim.queue);
        victim = Client::new(session.vmm.start_queue(2));
    }
    victim.getattr(ROOT).unwrap();
    drop(victim);
    let allowed = 100 + 10 * (begun.elapsed().as_secs() as usize + 1);
    let log = session.finish().log();
    let lines = log.iter().filter(|line| line.contains("is stopped until"));
    let left_out = log
        .iter()
        .filter_map(|line| line.split_once(" messages were suppressed by the rate limit"))
        .map(|(line, _)| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap());
    let (lines, left_out) = (lines.count(), left_out.sum::<usize>());
    assert!(lines <= allowed, "{lines} lines, {allowed} allowed");
    assert_eq!(lines + left_out, TIMES, "each is in the log or counted");
}

#[test]
fn answers_never_land_in_the_request() {
    // The same page for reading and for writing.
    let mut session = Session::new(&[]);
    let (mut input, mut output) = valid_pair(&mut session);
    output.addr = input.addr;
    input.next = 1;
    let queue = &mut session.client.queue;
    queue.write_descriptor(0, input);
    queue.write_descriptor(1, output);
    let before = queue.used_index();
    offer(queue, 0);
    queue.kick();
    queue.ask_for_call_after(0);
    while queue.used_index() == before {
        assert!(queue.call_comes(common::PATIENCE));
        queue.drain_calls();
    }
    let reply = session.vmm.memory.read_vec(input.addr, OUT_HEADER);
    assert_eq!(OutHeader::decode(&reply).error, 0);
}

#[test]
fn requests_changed_while_they_are_served_are_survived() {
    let mut session = Session::new(&[]);
    session.put("f", vec![7; 1 << 16]);
    let f = session.client.walk("f").unwrap().nodeid;
    let fh = session.client.open(f, libc::O_RDWR).unwrap().fh;
    let memory = session.vmm.memory.clone();
    let request = Request::new(op::READ, f, read_in(fh, 0, 4096));
    let (_, valid) = session.client.encode(&request);
    let (place, room) = (memory.alloc(4096), memory.alloc(1 << 16));
    memory.write(place, &valid);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(99);
            while !stop.load(Ordering::Relaxed) {
                let index = random.below(valid.len() as u64);
                memory.write(place + index, &[random.next() as u8]);
                memory.write(place + index, &valid[index as usize..=index as usize]);
            }
        });
        let queue = &mut session.client.queue;
        let buffer = |gpa, len, writable| Buffer { gpa, len, writable };
        for _ in 0..5000 {
            let buffers = [
                buffer(place, valid.len() as u32, false),
                buffer(room, 1 << 16, true),
            ];
            queue.add(&buffers, None);
            queue.submit();
            let used = queue.wait();
            assert!(used.len <= 1 << 16);
            queue.release(used.head);
        }
        stop.store(true, Ordering::Relaxed);
    });
    still_serves(&mut session);
    session.finish();
}

#[test]
fn a_removed_region_under_a_running_queue_harms_nobody() {
    const PLUGGED: u64 = 0x2_0000_0000;
    let (mut session, mut victim) = with_victim(&[], &Config::default());
    session.vmm.hot_add(PLUGGED, 16 << 20);
    session.put("f", vec![7; 1 << 20]);
    let f = session.client.walk("f").unwrap().nodeid;
    let fh = session.client.open(f, libc::O_RDONLY).unwrap().fh;
    victim.region = Some(PLUGGED);
    for _ in 0..8 {
        victim.start(&Request::new(op::READ, f, read_in(fh, 0, 1 << 20)).space(1 << 20));
    }
    victim.submit();
    // Some requests are served, some find their memory gone.
    session.vmm.hot_remove(PLUGGED);
    for _ in 0..10 {
        session.client.getattr(ROOT).unwrap();
    }
    restart(&mut session, &victim);
    session.finish();
}

#[test]
fn nothing_is_answered_without_a_kick_or_a_request() {
    let mut session = Session::new(&[]);
    for _ in 0..5 {
        session.client.queue.kick();
    }
    session.vmm.stop_queue(&session.client.queue);
    assert_eq!(
        session.client.queue.used_index(),
        session.client.queue.last_used()
    );
    session.client = Client::new(session.vmm.start_queue(REQUEST));
    getattr_root(&mut session, "empty kicks");
    session.finish();
}

#[test]
fn replies_are_checked_by_these_tests() {
    // The checks themselves: a reply that lies does not pass.
    let reply = |len: u32, error: i32, unique: u64, body: &[u8]| {
        let header = Encoder::new()
            .u32(len)
            .u32(error.cast_unsigned())
            .u64(unique);
        let bytes = header.bytes(body).0;
        RawReply {
            used_len: u32::try_from(bytes.len()).unwrap(),
            bytes,
        }
    };
    let caught = |raw: RawReply, size| std::panic::catch_unwind(|| raw.check(7, size)).is_err();
    assert!(!caught(reply(16, -2, 7, &[]), ReplySize::Exact(8)));
    assert!(!caught(reply(24, 0, 7, &[0; 8]), ReplySize::Exact(8)));
    assert!(caught(reply(16, 0, 7, &[]), ReplySize::Exact(8)));
    assert!(caught(reply(24, 0, 8, &[0; 8]), ReplySize::Exact(8)));
    assert!(caught(reply(20, 0, 7, &[0; 8]), ReplySize::Exact(8)));
    assert!(caught(reply(24, -2, 7, &[0; 8]), ReplySize::Exact(8)));
    assert!(caught(reply(16, 5, 7, &[]), ReplySize::Exact(8)));
    assert!(caught(reply(16, -5000, 7, &[]), ReplySize::Exact(8)));
    assert!(caught(reply(16, 0, 7, &[]), ReplySize::None));
}

#[test]
fn a_chain_that_repeats_its_memory_keeps_no_thread_for_long() {
    let mut session = Session::new(&["--num-request-queues", "2"]);
    let memory = session.vmm.memory.clone();
    let start = memory.alloc(4096);
    let (piece, pieces) = (1 << 20, 200);
    let header = Encoder::new()
        .u32(pieces * piece + 48)
        .u32(op::BATCH_FORGET)
        .u64(9)
        .u64(0)
        .bytes(&[0; 16])
        .u32(u32::MAX)
        .u32(0);
    memory.write(start, &header.0);
    let buffer = |len| Buffer {
        gpa: start,
        len,
        writable: false,
    };
    let mut chain = vec![buffer(48)];
    chain.extend((0..pieces).map(|_| Buffer {
        gpa: LOW_MEMORY,
        len: piece,
        writable: false,
    }));
    let table = memory.alloc(4096);
    let before = session.daemon.complaints().len();
    session.hiprio.add(&chain, Some(table));
    session.hiprio.submit();
    let line = session.daemon.expect_complaint_after(before);
    assert!(line.contains("queue 0 is stopped"), "{line}");
    session.client.getattr(ROOT).unwrap();
    session.finish();
}

/// A daemon whose parent may limit it, and which nobody listens to any more.
fn daemon_unheard(folder: &std::path::Path, limits: &str) -> std::process::Child {
    use std::io::{BufRead, BufReader};
    let share = folder.join("share");
    fs::create_dir(&share).unwrap();
    let mut child = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!("{limits} exec \"$@\""))
        .arg("sh")
        .arg(common::daemon::default_binary())
        .args(["--sandbox=none", "--seccomp=none", "--socket-path"])
        .arg(folder.join("socket"))
        .arg("--shared-dir")
        .arg(share)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("Waiting") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    child
}

#[test]
fn a_guest_is_served_though_nobody_reads_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = daemon_unheard(folder.path(), "");
    let mut vmm = Vmm::connect(&folder.path().join("socket"), &Config::default());
    let mut client = Client::new(vmm.start_queue(REQUEST));
    // A guest that does not know submounts is worth a warning.
    client.init_with(7, 31, 1).unwrap();
    client.getattr(ROOT).unwrap();
    drop((client, vmm));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_file_that_is_too_large_for_the_host_is_an_error_and_no_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = daemon_unheard(folder.path(), "ulimit -f 100;");
    let mut vmm = Vmm::connect(&folder.path().join("socket"), &Config::default());
    let mut client = Client::new(vmm.start_queue(REQUEST));
    client.init();
    let (file, open) = client.create(ROOT, "f", libc::O_RDWR, 0o644).unwrap();
    let beyond = client.write(file.nodeid, open.fh, 1 << 30, b"x");
    assert_eq!(beyond.err(), Some(libc::EFBIG));
    client.write(file.nodeid, open.fh, 0, b"x").unwrap();
    drop((client, vmm));
    assert!(child.wait().unwrap().success());
}
