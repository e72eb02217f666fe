//! A guest that means harm: malformed requests and corrupted rings. The daemon
//! answers what can be answered, gives up on a broken ring with one line in
//! its log, and goes on serving everything else.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::frontend::{
    Buffer, Config, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, F_INDIRECT, LOW_MEMORY,
    Queue, REQUEST, Vmm,
};
use common::fuse_client::{
    Client, RawReply, ReplySize, Request, SetAttr, Split, read_in, release_in, write_in,
};
use common::session::Session;
use common::wire::{Encoder, IN_HEADER, OUT_HEADER, OutHeader, ROOT, init, op};
use common::{PATIENCE, Random, wait_event};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A folder, a file with handle, a link: what requests are about.
struct Things {
    file: u64,
    file_fh: u64,
    dir: u64,
    dir_fh: u64,
    link: u64,
}

/// Body of GETLK, SETLK and SETLKW: ten bytes, exclusively.
fn lock_in(fh: u64) -> Encoder {
    let range = Encoder::new().u64(fh).u64(1).u64(0).u64(9);
    range.u32(libc::F_WRLCK as u32).u32(1).u64(0)
}

fn things(session: &mut Session) -> Things {
    session.put("file", "text");
    fs::create_dir(session.path("dir")).unwrap();
    std::os::unix::fs::symlink("target", session.path("link")).unwrap();
    let c = &mut session.client;
    let file = c.walk("file").unwrap().nodeid;
    let dir = c.walk("dir").unwrap().nodeid;
    let link = c.walk("link").unwrap().nodeid;
    let file_fh = c.open(file, libc::O_RDWR).unwrap().fh;
    let dir_fh = c.opendir(dir).unwrap().fh;
    Things {
        file,
        file_fh,
        dir,
        dir_fh,
        link,
    }
}

/// One valid request of each operation. INIT and DESTROY come last.
fn one_of_each(t: &Things) -> Vec<Request> {
    let e = Encoder::new;
    let dir_request = |opcode| Request::new(opcode, t.dir, read_in(t.dir_fh, 0, 4096)).space(4096);
    let flush = e().u64(t.file_fh).u64(0).u64(0);
    let fsync = |fh: u64| e().u64(fh).u64(0);
    let setattr = e().u32(1).u32(0).bytes(&[0; 64]).u32(0o644).bytes(&[0; 16]);
    let init_body = e()
        .u32(7)
        .u32(38)
        .u32(1 << 17)
        .u32((init::LINUX & 0xffff_ffff) as u32);
    let init_body = init_body.u32((init::LINUX >> 32) as u32).bytes(&[0; 44]);
    vec![
        Request::new(op::LOOKUP, ROOT, e().name("file")),
        Request::new(op::FORGET, t.file, e().u64(0)),
        Request::new(op::GETATTR, t.file, e().u64(0).u64(0)),
        Request::new(op::SETATTR, t.file, setattr),
        Request::new(op::READLINK, t.link, e()).space(100),
        Request::new(op::SYMLINK, t.dir, e().name("symlink").name("target")),
        Request::new(
            op::MKNOD,
            t.dir,
            e().u32(libc::S_IFREG | 0o644).u32(0).u64(0).name("mknod"),
        ),
        Request::new(op::MKDIR, t.dir, e().u64(0o755).name("mkdir")),
        Request::new(op::UNLINK, t.dir, e().name("mknod")),
        Request::new(op::RMDIR, t.dir, e().name("mkdir")),
        Request::new(
            op::RENAME,
            t.dir,
            e().u64(t.dir).name("symlink").name("renamed"),
        ),
        Request::new(op::LINK, t.dir, e().u64(t.file).name("linked")),
        Request::new(op::OPEN, t.file, e().u64(0)),
        Request::new(op::READ, t.file, read_in(t.file_fh, 0, 100)).space(100),
        Request::new(
            op::WRITE,
            t.file,
            write_in(t.file_fh, 0, 20, 0, 0).bytes(&[b'w'; 20]),
        ),
        Request::new(op::STATFS, ROOT, e()),
        Request::new(op::RELEASE, t.file, release_in(77)),
        Request::new(op::FSYNC, t.file, fsync(t.file_fh)),
        Request::new(
            op::SETXATTR,
            t.file,
            e().u32(5).u32(0).name("user.x").bytes(b"value"),
        ),
        Request::new(op::GETXATTR, t.file, e().u64(100).name("user.x")).space(100),
        Request::new(op::LISTXATTR, t.file, e().u64(100)).space(100),
        Request::new(op::REMOVEXATTR, t.file, e().name("user.x")),
        Request::new(op::FLUSH, t.file, flush),
        Request::new(op::OPENDIR, t.dir, e().u64(0)),
        dir_request(op::READDIR),
        dir_request(op::READDIRPLUS),
        Request::new(op::RELEASEDIR, t.dir, release_in(77)),
        Request::new(op::FSYNCDIR, t.dir, fsync(t.dir_fh)),
        Request::new(op::ACCESS, t.file, e().u64(4)),
        Request::new(
            op::CREATE,
            t.dir,
            e().u32(libc::O_RDWR as u32 | libc::O_CREAT as u32)
                .u32(0o644)
                .u64(0)
                .name("created"),
        ),
        Request::new(op::INTERRUPT, 0, e().u64(2)),
        Request::new(op::IOCTL, t.file, e().u64(t.file_fh).u64(0).u64(0).u64(0)).space(16),
        Request::new(
            op::IOCTL,
            t.file,
            e().u64(t.file_fh)
                .u32(0)
                .u32(0x4008_6602)
                .u64(0)
                .u32(4)
                .u32(0)
                .u32(0),
        )
        .space(16),
        Request::new(op::GETLK, t.file, lock_in(t.file_fh)),
        Request::new(op::SETLK, t.file, lock_in(t.file_fh)),
        Request::new(op::SETLKW, t.file, lock_in(t.file_fh)),
        Request::new(
            op::TMPFILE,
            t.dir,
            e().u32((libc::O_RDWR | libc::O_TMPFILE) as u32)
                .u32(0o644)
                .u64(0)
                .name("/"),
        ),
        Request::new(op::STATX, t.file, e().u64(0).u64(0).u32(0).u32(0xfff)),
        Request::new(
            op::BATCH_FORGET,
            0,
            e().u64(2).u64(t.file).u64(0).u64(t.dir).u64(0),
        ),
        Request::new(
            op::FALLOCATE,
            t.file,
            e().u64(t.file_fh).u64(0).u64(100).u64(0),
        ),
        Request::new(
            op::RENAME2,
            t.dir,
            e().u64(t.dir).u64(0).name("renamed").name("again"),
        ),
        Request::new(op::LSEEK, t.file, e().u64(t.file_fh).u64(0).u64(3)),
        Request::new(
            op::COPY_FILE_RANGE,
            t.file,
            e().u64(t.file_fh)
                .u64(0)
                .u64(t.file)
                .u64(t.file_fh)
                .u64(50)
                .u64(4)
                .u64(0),
        ),
        Request::new(op::SYNCFS, ROOT, e().u64(0)),
        Request::new(op::GETLK, t.file, e().u64(t.file_fh).bytes(&[0; 40])).space(24),
        Request::new(op::SETLK, t.file, e().u64(t.file_fh).bytes(&[0; 40])),
        Request::new(999, t.file, e().bytes(&[0; 40])),
        Request::new(op::DESTROY, ROOT, e()),
        Request::new(op::INIT, 0, init_body).space(64),
    ]
}

/// The daemon is well: a valid request is answered.
fn still_serves(session: &mut Session) {
    session.client.init();
    session.client.split = Split::Header;
    let name = "still-here";
    let (entry, open) = session
        .client
        .create(ROOT, name, libc::O_RDWR, 0o600)
        .unwrap();
    session
        .client
        .write(entry.nodeid, open.fh, 0, b"text")
        .unwrap();
    session.client.release(entry.nodeid, open.fh).unwrap();
    assert_eq!(session.get(name), b"text");
    session.client.unlink(ROOT, name).unwrap();
}

fn getattr_root(session: &mut Session, what: &str) {
    let answer = session.client.getattr(ROOT);
    assert!(answer.is_ok(), "GETATTR after {what}: {answer:?}");
}

fn modes() -> [&'static [&'static str]; 2] {
    [&["--xattr"], &["--xattr", "--thread-pool-size", "2"]]
}

// ---- malformed requests

#[test]
fn every_truncated_request_is_survived() {
    for args in modes() {
        let mut session = Session::new(args);
        let things = things(&mut session);
        for request in one_of_each(&things) {
            let (unique, whole) = session.client.encode(&request);
            for len in 0..=whole.len() {
                for honest in [true, false] {
                    let mut bytes = whole[..len].to_vec();
                    if honest && len >= 4 {
                        bytes[..4].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
                    }
                    let what = format!(
                        "the first {len} bytes of operation {} of {}",
                        request.opcode,
                        whole.len()
                    );
                    let raw = session.client.call_bytes(&bytes, OUT_HEADER + 4096);
                    raw.assert_sane(unique, &what);
                    if len < IN_HEADER {
                        let is_ok = raw.used_len > 0 && OutHeader::decode(&raw.bytes).error == 0;
                        assert!(!is_ok, "{what} was taken for a request");
                    }
                    if request.opcode == op::DESTROY || request.opcode == op::INIT {
                        session.client.init();
                    } else {
                        getattr_root(&mut session, &what);
                    }
                }
            }
        }
        still_serves(&mut session);
        session.finish();
    }
}

#[test]
fn lengths_that_lie_are_survived() {
    let mut session = Session::new(&["--xattr"]);
    let things = things(&mut session);
    for request in one_of_each(&things) {
        let (unique, whole) = session.client.encode(&request);
        let len = u32::try_from(whole.len()).unwrap();
        for lie in [
            0,
            1,
            39,
            40,
            len - 1,
            len + 1,
            len + 8,
            len + 4096,
            1 << 20,
            1 << 31,
            u32::MAX,
        ] {
            let mut bytes = whole.clone();
            bytes[..4].copy_from_slice(&lie.to_le_bytes());
            let raw = session.client.call_bytes(&bytes, OUT_HEADER + 4096);
            raw.assert_sane(
                unique,
                &format!("operation {} with length {lie}", request.opcode),
            );
        }
    }
    still_serves(&mut session);
    session.finish();
}

#[test]
fn every_room_for_a_reply_is_survived() {
    for args in modes() {
        let mut session = Session::new(args);
        let things = things(&mut session);
        for request in one_of_each(&things) {
            for room in (0..180).chain([4096]) {
                let (unique, bytes) = session.client.encode(&request);
                let raw = session.client.call_bytes(&bytes, room);
                raw.assert_sane(
                    unique,
                    &format!("operation {} with room for {room}", request.opcode),
                );
                assert!(raw.used_len as usize <= room);
            }
        }
        still_serves(&mut session);
        session.finish();
    }
}

#[test]
fn requests_in_single_bytes_are_understood() {
    let config = Config {
        queue_size: 1024,
        ..Config::default()
    };
    let mut session = Session::with_config(&["--xattr"], &config);
    let things = things(&mut session);
    for request in one_of_each(&things) {
        session.client.split = Split::Pieces(1, 1);
        let (unique, bytes) = session.client.encode(&request);
        let raw = session.client.call_bytes(&bytes, OUT_HEADER + 200);
        raw.assert_sane(unique, &format!("operation {}", request.opcode));
        let silent = [op::FORGET, op::BATCH_FORGET, op::INTERRUPT, op::DESTROY];
        assert!(raw.used_len > 0 || silent.contains(&request.opcode));
    }
    still_serves(&mut session);
    session.finish();
}

#[test]
fn random_bodies_are_survived() {
    for args in modes() {
        let mut session = Session::new(args);
        let t = things(&mut session);
        let mut random = Random(0x1234_5678_9abc_def1);
        let requests = one_of_each(&t);
        for round in 0..3000 {
            let mut request = requests[random.below(requests.len() as u64) as usize].clone();
            if request.opcode == op::INIT || request.opcode == op::DESTROY {
                continue;
            }
            request.nodeid =
                [ROOT, t.file, t.dir, t.link, 0, random.next()][random.below(6) as usize];
            match round % 3 {
                // Some bytes of the body are others.
                0 => {
                    for _ in 0..=random.below(4) {
                        let len = request.body.len().max(1) as u64;
                        let index = random.below(len) as usize;
                        if let Some(byte) = request.body.get_mut(index) {
                            *byte = random.next() as u8;
                        }
                    }
                }
                // A field has one of the values that sums stumble over.
                1 => {
                    let special = [
                        0,
                        1,
                        u64::MAX,
                        1 << 63,
                        i64::MAX as u64,
                        u64::from(u32::MAX),
                        1 << 31,
                    ];
                    let value = special[random.below(special.len() as u64) as usize];
                    let words = request.body.len() as u64 / 8;
                    if words > 0 {
                        let at = 8 * random.below(words) as usize;
                        request.body[at..at + 8].copy_from_slice(&value.to_le_bytes());
                    }
                }
                // All of it is.
                _ => {
                    let len = random.below(200);
                    request.body = (0..len).map(|_| random.next() as u8).collect();
                }
            }
            let (unique, bytes) = session.client.encode(&request);
            let raw = session
                .client
                .call_bytes(&bytes, OUT_HEADER + random.below(4096) as usize);
            raw.assert_sane(unique, &format!("{request:x?}"));
        }
        still_serves(&mut session);
        session.finish();
    }
}

#[test]
fn extensions_that_lie_are_survived() {
    let mut session = Session::new(&[]);
    let e = Encoder::new;
    for (index, extension) in [
        e(),
        e().u64(0),
        e().u32(8).u32(32),
        e().u32(7).u32(32),
        e().u32(0).u32(32),
        e().u32(u32::MAX).u32(32),
        e().u32(16).u32(32).u32(u32::MAX).u32(1),
        e().u32(16).u32(32).u32(1).u32(u32::MAX),
        e().u32(16).u32(32).u32(0).u32(0),
        e().u32(24).u32(32).u32(2).u32(5).u32(6).u32(0),
        e().u32(16).u32(1).u32(u32::MAX).u32(0),
        e().u32(16).u32(1).u32(4).u32(0),
        e().u32(16).u32(31).u32(0).u32(0),
        e().u32(16).u32(99).u64(0),
        e().u32(1 << 31).u32(1),
    ]
    .into_iter()
    .enumerate()
    {
        for total in [extension.0.len() / 8, 0, 1, 2, 0x7fff, 0xffff] {
            let request = Request::new(
                op::MKDIR,
                ROOT,
                e().u64(0o755).name(format!("d{index}-{total}")),
            );
            let (unique, mut bytes) = session.client.encode(&request);
            bytes.extend(&extension.0);
            let len = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            bytes[36..38].copy_from_slice(&u16::try_from(total).unwrap().to_le_bytes());
            let raw = session.client.call_bytes(&bytes, OUT_HEADER + 128);
            raw.assert_sane(unique, &format!("extension {index} of {total} words"));
        }
    }
    still_serves(&mut session);
    session.finish();
}

#[test]
fn forgets_of_more_than_is_sent_are_survived() {
    let mut session = Session::new(&[]);
    for count in [1, 2, 1000, u32::MAX] {
        let request = Request::new(
            op::BATCH_FORGET,
            0,
            Encoder::new().u32(count).u32(0).u64(ROOT),
        );
        let (unique, bytes) = session.client.encode(&request);
        for room in [0, OUT_HEADER] {
            let raw = session.client.call_bytes(&bytes, room);
            raw.assert_sane(unique, "BATCH_FORGET");
        }
    }
    still_serves(&mut session);
    session.finish();
}

#[test]
fn malformed_requests_are_not_logged_at_will() {
    let mut session = Session::new(&[]);
    for _ in 0..100 {
        session.client.call_bytes(&[0; 10], 100);
        session.client.call_bytes(&[0xff; 60], 100);
        session.client.call_bytes(&[], 100);
        session.client.lookup(ROOT, "a/b").unwrap_err();
    }
    getattr_root(&mut session, "nonsense");
    let lines = session.finish().log().len();
    assert!(lines < 20, "{lines} lines in the log");
}

#[test]
fn a_million_failures_cost_nothing() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    let f = session.client.walk("f").unwrap().nodeid;
    let fds = session.daemon.open_fds();
    let fail = |session: &mut Session, rounds| {
        for _ in 0..rounds {
            let c = &mut session.client;
            c.lookup(ROOT, "missing").unwrap_err();
            c.mkdir(ROOT, "f", 0o755, 0).unwrap_err();
            c.read(f, 12345, 0, 100).unwrap_err();
            c.create(f, "x", libc::O_RDWR, 0o644).unwrap_err();
            c.rename((ROOT, "missing"), (ROOT, "f")).unwrap_err();
            c.setattr(
                f,
                &SetAttr {
                    size: Some(u64::MAX),
                    ..SetAttr::default()
                },
            )
            .unwrap_err();
            c.call_bytes(&[1; 45], 20);
        }
    };
    fail(&mut session, 200);
    let rss = session.daemon.rss();
    fail(&mut session, 3000);
    let grown = session.daemon.rss().saturating_sub(rss);
    assert!(grown < 1 << 20, "{grown} bytes more in use");
    session.daemon.expect_open_fds(fds);
    session.finish();
}

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

#[test]
fn a_broken_ring_stops_alone_and_is_logged_once() {
    for args in [&[][..], &["--thread-pool-size", "2"]] {
        for (what, corrupt) in RING {
            let (mut session, mut victim) = with_victim(args, &Config::default());
            let (input, output) = valid_pair(&mut session);
            let error = error_event(&session);
            let before = session.daemon.complaints().len();
            corrupt(&mut victim.queue, input, output);
            victim.queue.kick();
            assert!(wait_event(&error, PATIENCE), "{what}: no error event");
            let line = session.daemon.expect_complaint_after(before);
            assert!(!line.contains("panicked"), "{line}");
            for _ in 0..10 {
                victim.queue.kick();
                session.client.getattr(ROOT).unwrap();
            }
            restart(&mut session, &victim);
            let complaints = session.finish().complaints().split_off(before);
            assert_eq!(complaints.len(), 1, "{what}: {complaints:#?}");
            assert_eq!(error.read().unwrap(), 1, "{what}: error events");
        }
    }
}

#[test]
fn a_broken_chain_harms_nobody_else() {
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
            let deadline = Instant::now() + common::PATIENCE;
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
            let complaints = session.finish().complaints().split_off(before);
            assert!(answered <= 1, "{what}: {answered} answers");
            assert!(complaints.len() <= 1, "{what}: {complaints:#?}");
            let signalled = error.read().unwrap_or(0) as usize;
            assert_eq!(signalled, complaints.len(), "{what}: error events");
        }
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
    use vhost::vhost_user::VhostUserFrontend;
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
        .filter_map(|line| line.split_once(" lines before this one are not in the log"))
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
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(99);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
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
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
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
