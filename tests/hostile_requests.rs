//! A guest that means harm, by its requests: each gets the right errno or a used
//! entry without an answer, and the next valid one is served. What comes of each
//! kind of damage is in the tables of `doc/hostile-guest.md`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;

use common::Random;
use common::every_operation::{
    Things, getattr_root, lock_in, name_of, one_of_each, still_serves, things,
};
use common::frontend::Config;
use common::fuse_client::{RawReply, ReplySize, Request, SetAttr, Split, read_in, reply_size};
use common::fuse_client::{release_in, write_in};
use common::session::Session;
use common::table::{Table, errno_name};
use common::wire::{Encoder, FATTR_FH, FATTR_SIZE, GETATTR_FH, IN_HEADER, OUT_HEADER};
use common::wire::{OutHeader, ROOT, op};

/// What came of a request.
fn outcome(raw: &RawReply) -> String {
    if raw.used_len == 0 {
        return "none".to_owned();
    }
    match OutHeader::decode(&raw.bytes[..OUT_HEADER]).error {
        0 => "done".to_owned(),
        error => errno_name(-error),
    }
}

/// Sends a request as it is; gives what came of it.
fn send(session: &mut Session, request: &Request) -> String {
    let (unique, bytes) = session.client.encode(request);
    let raw = session.client.call_bytes(&bytes, OUT_HEADER + 4096);
    raw.assert_sane(unique, &format!("{request:x?}"));
    outcome(&raw)
}

/// Writes a number into the body of a request.
fn with(request: &Request, at: usize, value: u64, len: usize) -> Request {
    let mut request = request.clone();
    request.body[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    request
}

fn begins_or_ends_a_session(request: &Request) -> bool {
    matches!(request.opcode, op::INIT | op::DESTROY)
}

/// Each mode of serving is to give the same table.
fn in_each_mode(observe: impl Fn(&mut Session) -> Table) {
    let mut first: Option<Table> = None;
    for more in [&[][..], &["--thread-pool-size", "2"]] {
        let args = [&["--xattr", "--posix-lock"], more].concat();
        let mut session = Session::new(&args);
        let table = observe(&mut session);
        still_serves(&mut session);
        session.finish();
        match &first {
            None => first = Some(table),
            Some(first) => first.assert_like(&table),
        }
    }
    first.unwrap().check();
}

#[test]
fn every_truncated_request_is_survived() {
    in_each_mode(|session| {
        const HEADER: &str = "within the header";
        const BODY: &str = "behind it";
        const LIES: &str = "behind it, with the length of the whole";
        let mut table = Table::new("cut", &["operation", HEADER, BODY, LIES]);
        let things = things(session);
        for request in one_of_each(&things) {
            let (unique, whole) = session.client.encode(&request);
            for len in 0..=whole.len() {
                for honest in [true, false] {
                    let mut bytes = whole[..len].to_vec();
                    if honest && len >= 4 {
                        bytes[..4].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
                    }
                    let name = name_of(request.opcode);
                    let what = format!("the first {len} bytes of {name} of {}", whole.len());
                    let raw = session.client.call_bytes(&bytes, OUT_HEADER + 4096);
                    raw.assert_sane(unique, &what);
                    if len < whole.len() {
                        let column = match (len < IN_HEADER, honest) {
                            (true, _) => HEADER,
                            (false, true) => BODY,
                            (false, false) => LIES,
                        };
                        table.note(name, column, outcome(&raw));
                    }
                    if begins_or_ends_a_session(&request) {
                        session.client.init();
                    } else {
                        getattr_root(session, &what);
                    }
                }
            }
        }
        table
    });
}

#[test]
fn lengths_that_lie_are_survived() {
    in_each_mode(|session| {
        const LESS: &str = "0, 1 or 39 bytes";
        const MORE: &str = "more than there is";
        let mut table = Table::new("lengths", &["operation", LESS, MORE]);
        let things = things(session);
        for request in one_of_each(&things) {
            let (unique, whole) = session.client.encode(&request);
            let len = u32::try_from(whole.len()).unwrap();
            let more = [len + 1, len + 8, len + 4096, 1 << 20, 1 << 31, u32::MAX];
            for lie in [0, 1, 39, 40, len - 1].into_iter().chain(more) {
                let mut bytes = whole.clone();
                bytes[..4].copy_from_slice(&lie.to_le_bytes());
                let raw = session.client.call_bytes(&bytes, OUT_HEADER + 4096);
                let name = name_of(request.opcode);
                raw.assert_sane(unique, &format!("{name} with length {lie}"));
                if lie < 40 || lie > len {
                    table.note(name, if lie < 40 { LESS } else { MORE }, outcome(&raw));
                }
                if begins_or_ends_a_session(&request) {
                    session.client.init();
                }
            }
        }
        table
    });
}

/// Names in a folder of the share.
fn names_in(session: &Session, folder: &str) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(session.path(folder)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn every_room_for_a_reply_is_survived() {
    in_each_mode(|session| {
        const NONE: &str = "0 to 15 bytes";
        const LITTLE: &str = "16 bytes or more, but not enough";
        let mut table = Table::new("room", &["operation", NONE, LITTLE]);
        let things = things(session);
        for request in one_of_each(&things) {
            let name = name_of(request.opcode);
            let needs = match reply_size(request.opcode) {
                ReplySize::Exact(size) => OUT_HEADER + size,
                ReplySize::AtMost | ReplySize::None => 0,
            };
            let before = (names_in(session, ""), names_in(session, "dir"));
            for room in (0..180).chain([4096]) {
                if room == OUT_HEADER {
                    let after = (names_in(session, ""), names_in(session, "dir"));
                    assert_eq!(after, before, "{name} was carried out without room");
                }
                let (unique, bytes) = session.client.encode(&request);
                let raw = session.client.call_bytes(&bytes, room);
                raw.assert_sane(unique, &format!("{name} with room for {room}"));
                assert!(raw.used_len as usize <= room);
                if room < OUT_HEADER {
                    table.note(name, NONE, outcome(&raw));
                } else if room < needs {
                    table.note(name, LITTLE, outcome(&raw));
                }
            }
            if begins_or_ends_a_session(&request) {
                session.client.init();
            }
        }
        table
    });
}

#[test]
fn numbers_that_were_never_given_out_are_refused() {
    in_each_mode(|session| {
        const NODE: &str = "node that there is not";
        const OTHER: &str = "second node that there is not";
        const NEVER: &str = "handle that there is not";
        const FOREIGN: &str = "of another inode";
        const KIND: &str = "of the other kind";
        const BACK: &str = "given back";
        let columns = ["operation", NODE, OTHER, NEVER, FOREIGN, KIND, BACK];
        let mut table = Table::new("numbers", &columns);
        let t = things(session);
        session.put("other", "");
        let c = &mut session.client;
        let other = c.walk("other").unwrap().nodeid;
        let foreign = c.open(other, libc::O_RDWR).unwrap().fh;
        let released = c.open(t.file, libc::O_RDWR).unwrap().fh;
        c.release(t.file, released).unwrap();
        let forgotten = c.mkdir(ROOT, "forgotten", 0o755, 0).unwrap().nodeid;
        c.rmdir(ROOT, "forgotten").unwrap();
        c.forget(forgotten, 1);
        for request in one_of_each(&t) {
            let name = name_of(request.opcode);
            if begins_or_ends_a_session(&request) || request.opcode == 999 {
                continue;
            }
            let unknown = [0, 0xdead_beef, forgotten, u64::MAX];
            for node in unknown {
                let mut request = request.clone();
                request.nodeid = node;
                table.note(name, NODE, send(session, &request));
            }
            let second = match request.opcode {
                op::LINK | op::RENAME | op::RENAME2 => Some(0),
                op::COPY_FILE_RANGE => Some(16),
                _ => None,
            };
            for node in second.iter().flat_map(|_| unknown) {
                let request = with(&request, second.unwrap(), node, 8);
                table.note(name, OTHER, send(session, &request));
            }
            let (by_handle, places): (Request, &[usize]) = match request.opcode {
                op::GETATTR | op::STATX => (with(&request, 0, GETATTR_FH.into(), 4), &[8]),
                op::SETATTR => (with(&request, 0, (FATTR_FH | FATTR_SIZE).into(), 4), &[8]),
                op::COPY_FILE_RANGE => (request, &[0, 24]),
                op::READ | op::WRITE | op::READDIR | op::READDIRPLUS | op::FLUSH => (request, &[0]),
                op::FSYNC | op::FSYNCDIR | op::RELEASE | op::RELEASEDIR => (request, &[0]),
                op::LSEEK | op::FALLOCATE | op::IOCTL => (request, &[0]),
                op::GETLK | op::SETLK | op::SETLKW => (request, &[0]),
                _ => continue,
            };
            let of_folder = by_handle.nodeid == t.dir;
            let other_kind = if of_folder { t.file_fh } else { t.dir_fh };
            for &at in places {
                for (column, handle) in [
                    (NEVER, 0x1234_5678),
                    (NEVER, u64::MAX),
                    (FOREIGN, foreign),
                    (KIND, other_kind),
                    (BACK, released),
                ] {
                    let request = with(&by_handle, at, handle, 8);
                    table.note(name, column, send(session, &request));
                }
            }
        }
        // All that is open still is.
        let c = &mut session.client;
        c.read(t.file, t.file_fh, 0, 1).unwrap();
        c.read(other, foreign, 0, 1).unwrap();
        c.readdir(t.dir, t.dir_fh, 0, 4096).unwrap();
        table
    });
}

/// Requests that name something, each name in its turn.
fn naming(t: &Things, name: &[u8]) -> Vec<(&'static str, Request)> {
    let e = Encoder::new;
    let request = |opcode, body: Encoder| (name_of(opcode), Request::new(opcode, t.dir, body));
    let mut requests = vec![
        request(op::LOOKUP, e().bytes(name)),
        request(op::MKDIR, e().u64(0o755).bytes(name)),
        request(
            op::MKNOD,
            e().u32(libc::S_IFREG | 0o644).u32(0).u64(0).bytes(name),
        ),
        request(op::UNLINK, e().bytes(name)),
        request(op::RMDIR, e().bytes(name)),
        request(op::LINK, e().u64(t.file).bytes(name)),
        request(
            op::CREATE,
            e().u32(libc::O_RDWR as u32).u32(0o644).u64(0).bytes(name),
        ),
        request(op::RENAME, e().u64(t.dir).name("old").bytes(name)),
        request(op::RENAME2, e().u64(t.dir).u64(0).name("old").bytes(name)),
    ];
    // What follows a name without an end is taken for more of it.
    if name.ends_with(&[0]) {
        requests.extend([
            request(op::SYMLINK, e().bytes(name).name("target")),
            request(op::RENAME, e().u64(t.dir).bytes(name).name("new")),
            request(op::RENAME2, e().u64(t.dir).u64(0).bytes(name).name("new")),
        ]);
    } else {
        requests.push(request(op::SYMLINK, e().bytes(name)));
        requests.push(request(op::SYMLINK, e().name("new").bytes(name)));
    }
    requests
}

#[test]
fn names_that_are_none_are_refused() {
    in_each_mode(|session| {
        const EMPTY: &str = "empty";
        const DOTS: &str = "`.` and `..`";
        const SLASH: &str = "with a `/`";
        const LONG: &str = "256 bytes or more";
        const ENDLESS: &str = "without a NUL";
        let columns = ["operation", EMPTY, DOTS, SLASH, LONG, ENDLESS];
        let mut table = Table::new("names", &columns);
        let t = things(session);
        fs::write(session.path("dir/old"), "").unwrap();
        let before = names_in(session, "dir");
        let long = |len| [&vec![b'n'; len][..], &[0]].concat();
        let cases: [(&str, Vec<Vec<u8>>); 5] = [
            (EMPTY, vec![b"\0".to_vec()]),
            (DOTS, vec![b".\0".to_vec(), b"..\0".to_vec()]),
            (
                SLASH,
                ["/\0", "a/b\0", "a/\0", "/a\0", "../a\0", "/etc/passwd\0"]
                    .map(|name| name.as_bytes().to_vec())
                    .to_vec(),
            ),
            (LONG, [256, 300, 4096, 100_000].map(long).to_vec()),
            (ENDLESS, vec![b"name".to_vec(), vec![b'n'; 300]]),
        ];
        for (column, names) in cases {
            for name in names {
                for (operation, request) in naming(&t, &name) {
                    table.note(operation, column, send(session, &request));
                }
            }
        }
        assert_eq!(names_in(session, "dir"), before);
        table
    });
}

#[test]
fn requests_out_of_their_order_are_refused() {
    const BEFORE: &str = "before INIT";
    const AFTER: &str = "after DESTROY";
    let mut table = Table::new("order", &["operation", BEFORE, AFTER]);
    for column in [BEFORE, AFTER] {
        let mut session = Session::before_init(&["--xattr", "--posix-lock"], &Config::default());
        // Numbers from a session that is over, or was never there.
        let mut t = Things {
            file: 2,
            file_fh: 0,
            dir: 3,
            dir_fh: 1,
            link: 4,
        };
        if column == AFTER {
            session.client.init();
            t = things(&mut session);
            session.client.destroy().unwrap();
        }
        for request in one_of_each(&t) {
            table.note(
                name_of(request.opcode),
                column,
                send(&mut session, &request),
            );
            if request.opcode == op::INIT {
                // A second one begins a session anew; the numbers of the first are gone.
                assert_eq!(send(&mut session, &request), "done");
                assert_eq!(session.client.getattr(t.file).err(), Some(libc::ESTALE));
            }
        }
        still_serves(&mut session);
        session.finish();
    }
    table.check();
}

/// A field of a request.
struct Field {
    name: &'static str,
    request: Request,
    at: usize,
    len: usize,
}

fn field(name: &'static str, request: Request, at: usize, len: usize) -> Field {
    Field {
        name,
        request,
        at,
        len,
    }
}

#[test]
fn numbers_at_their_edges_do_no_harm() {
    in_each_mode(|session| {
        let edges: [(&str, u64); 11] = [
            ("0", 0),
            ("1", 1),
            ("4095", 4095),
            ("4096", 4096),
            ("2^20", 1 << 20),
            ("2^31", 1 << 31),
            ("2^32-1", (1 << 32) - 1),
            ("2^32", 1 << 32),
            ("2^63-1", (1 << 63) - 1),
            ("2^63", 1 << 63),
            ("2^64-1", u64::MAX),
        ];
        let mut columns = vec!["field"];
        columns.extend(edges.map(|(name, _)| name));
        let mut table = Table::new("edges", &columns);
        let t = things(session);
        session.put("target", "");
        let target = session.client.walk("target").unwrap().nodeid;
        let target_fh = session.client.open(target, libc::O_RDWR).unwrap().fh;
        let e = Encoder::new;
        let read = || Request::new(op::READ, t.file, read_in(t.file_fh, 0, 100));
        let list = |opcode| Request::new(opcode, t.dir, read_in(t.dir_fh, 0, 4096));
        let write = || {
            let head = write_in(t.file_fh, 0, 20, 0, 0);
            Request::new(op::WRITE, t.file, head.bytes(&[b'w'; 20]))
        };
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let punch = e().u64(t.file_fh).u64(0).u64(100).u32(punch as u32).u32(0);
        let punch = || Request::new(op::FALLOCATE, t.file, punch.clone());
        let copy = e().u64(t.file_fh).u64(0).u64(target).u64(target_fh);
        let copy = copy.u64(0).u64(10).u64(0);
        let copy = || Request::new(op::COPY_FILE_RANGE, t.file, copy.clone());
        let seek = e().u64(t.file_fh).u64(0).u64(libc::SEEK_HOLE as u64);
        let lock = || Request::new(op::GETLK, t.file, lock_in(t.file_fh));
        let value = e().u32(5).u32(0).name("user.x").bytes(b"value");
        let fields = [
            field("READ offset", read(), 8, 8),
            field("READ size", read(), 16, 4),
            field("WRITE offset", write(), 8, 8),
            field("WRITE size", write(), 16, 4),
            field("READDIR size", list(op::READDIR), 16, 4),
            field("READDIRPLUS size", list(op::READDIRPLUS), 16, 4),
            field("LSEEK offset", Request::new(op::LSEEK, t.file, seek), 8, 8),
            field("FALLOCATE offset", punch(), 8, 8),
            field("COPY_FILE_RANGE offset of the source", copy(), 8, 8),
            field("COPY_FILE_RANGE length", copy(), 40, 8),
            field("GETLK start", lock(), 16, 8),
            field("GETLK end", lock(), 24, 8),
            field(
                "SETXATTR size",
                Request::new(op::SETXATTR, t.file, value),
                0,
                4,
            ),
            field(
                "GETXATTR size",
                Request::new(op::GETXATTR, t.file, e().u64(100).name("user.none")),
                0,
                4,
            ),
            field(
                "LISTXATTR size",
                Request::new(op::LISTXATTR, t.file, e().u64(100)),
                0,
                4,
            ),
            field(
                "FORGET count",
                Request::new(op::FORGET, t.link, e().u64(0)),
                0,
                8,
            ),
            field(
                "BATCH_FORGET count",
                Request::new(op::BATCH_FORGET, 0, e().u64(0).u64(t.link).u64(1)),
                0,
                4,
            ),
        ];
        let file = fs::File::options().write(true).open(session.path("file"));
        let file = file.unwrap();
        for field in fields {
            for (column, edge) in edges {
                if field.len == 4 && u32::try_from(edge).is_err() {
                    continue;
                }
                file.set_len(100).unwrap();
                let request = with(&field.request, field.at, edge, field.len);
                table.note(field.name, column, send(session, &request));
            }
        }
        table
    });
}

#[test]
fn flags_that_there_are_not_do_no_harm() {
    in_each_mode(|session| {
        const OUTCOME: &str = "answer";
        let mut table = Table::new("flags", &["flags with bits 30 and 31", OUTCOME]);
        let t = things(session);
        session.put("target", "");
        let target = session.client.walk("target").unwrap().nodeid;
        let target_fh = session.client.open(target, libc::O_RDWR).unwrap().fh;
        let e = Encoder::new;
        let set = e().u32(0).u32(0).bytes(&[0; 80]);
        let copy = e().u64(t.file_fh).u64(0).u64(target).u64(target_fh);
        let fsync = |fh: u64| e().u64(fh).u64(0);
        let lock = lock_in(t.file_fh);
        let named = e().u64(t.dir).u64(0).name("missing").name("new");
        let value = e().u32(1).u32(0).name("user.x").bytes(b"v");
        let reserve = e().u64(t.file_fh).u64(0).u64(100).u64(0);
        let seek = e().u64(t.file_fh).u64(0).u64(0);
        let fields = [
            field(
                "GETATTR",
                Request::new(op::GETATTR, t.file, e().u64(0).u64(0)),
                0,
                4,
            ),
            field(
                "SETATTR valid",
                Request::new(op::SETATTR, t.file, set),
                0,
                4,
            ),
            field(
                "OPEN open flags",
                Request::new(op::OPEN, t.file, e().u64(0)),
                4,
                4,
            ),
            field(
                "OPENDIR open flags",
                Request::new(op::OPENDIR, t.dir, e().u64(0)),
                4,
                4,
            ),
            field(
                "READ",
                Request::new(op::READ, t.file, read_in(t.file_fh, 0, 9)),
                20,
                4,
            ),
            field(
                "WRITE",
                Request::new(
                    op::WRITE,
                    t.file,
                    write_in(t.file_fh, 0, 1, 0, 0).bytes(b"x"),
                ),
                20,
                4,
            ),
            field(
                "RELEASE",
                Request::new(op::RELEASE, t.file, release_in(77)),
                12,
                4,
            ),
            field(
                "FSYNC",
                Request::new(op::FSYNC, t.file, fsync(t.file_fh)),
                8,
                4,
            ),
            field(
                "FSYNCDIR",
                Request::new(op::FSYNCDIR, t.dir, fsync(t.dir_fh)),
                8,
                4,
            ),
            field("SETXATTR", Request::new(op::SETXATTR, t.file, value), 4, 4),
            field(
                "ACCESS mask",
                Request::new(op::ACCESS, t.file, e().u64(4)),
                0,
                4,
            ),
            field("RENAME2", Request::new(op::RENAME2, t.dir, named), 8, 4),
            field("LSEEK whence", Request::new(op::LSEEK, t.file, seek), 16, 4),
            field(
                "FALLOCATE mode",
                Request::new(op::FALLOCATE, t.file, reserve),
                24,
                4,
            ),
            field(
                "COPY_FILE_RANGE",
                Request::new(op::COPY_FILE_RANGE, t.file, copy.u64(0).u64(1).u64(0)),
                48,
                8,
            ),
            field(
                "GETLK",
                Request::new(op::GETLK, t.file, lock.clone()),
                40,
                4,
            ),
            field("GETLK type", Request::new(op::GETLK, t.file, lock), 32, 4),
            field(
                "STATX of caches",
                Request::new(op::STATX, t.file, e().u64(0).u64(0).u32(0).u32(0xfff)),
                16,
                4,
            ),
            field(
                "IOCTL command",
                Request::new(op::IOCTL, t.file, e().u64(t.file_fh).u64(0).u64(0).u64(0)),
                12,
                4,
            ),
        ];
        for field in fields {
            for bits in [1u32 << 30, 1 << 31, 3 << 30] {
                let old =
                    u32::from_le_bytes(field.request.body[field.at..][..4].try_into().unwrap());
                let request = with(&field.request, field.at, u64::from(old | bits), field.len);
                table.note(field.name, OUTCOME, send(session, &request));
            }
        }
        table
    });
}

#[test]
fn extensions_that_lie_are_survived() {
    in_each_mode(|session| {
        const RIGHT: &str = "as long as the header says";
        const WRONG: &str = "the header says less or more";
        let e = Encoder::new;
        let cases = [
            ("none", e()),
            ("nothing but zeros", e().u64(0)),
            ("groups of no bytes", e().u32(0).u32(32)),
            ("groups of less than their header", e().u32(7).u32(32)),
            ("groups of their header only", e().u32(8).u32(32)),
            ("groups of 4 GiB", e().u32(u32::MAX).u32(32)),
            (
                "4294967295 groups in 16 bytes",
                e().u32(16).u32(32).u32(u32::MAX).u32(1),
            ),
            ("no group", e().u32(16).u32(32).u32(0).u32(0)),
            (
                "two groups",
                e().u32(24).u32(32).u32(2).u32(5).u32(6).u32(0),
            ),
            ("4294967295 labels", e().u32(16).u32(1).u32(u32::MAX).u32(0)),
            (
                "more labels than may be",
                e().u32(16).u32(32).u32(31).u32(0),
            ),
            (
                "labels that are not there",
                e().u32(16).u32(4).u32(0).u32(0),
            ),
            ("an unknown type", e().u32(16).u32(99).u64(0)),
            ("2 GiB of labels", e().u32(1 << 31).u32(1)),
        ];
        let mut table = Table::new("extensions", &["extension of MKDIR", RIGHT, WRONG]);
        for (index, (what, extension)) in cases.into_iter().enumerate() {
            let words = extension.0.len() / 8;
            for total in [words, 0, 1, 2, 0x7fff, 0xffff] {
                let name = format!("d{index}-{total}");
                let body = e().u64(0o755).name(&name);
                let request = Request::new(op::MKDIR, ROOT, body);
                let (unique, mut bytes) = session.client.encode(&request);
                bytes.extend(&extension.0);
                let len = u32::try_from(bytes.len()).unwrap();
                bytes[..4].copy_from_slice(&len.to_le_bytes());
                bytes[36..38].copy_from_slice(&u16::try_from(total).unwrap().to_le_bytes());
                let raw = session.client.call_bytes(&bytes, OUT_HEADER + 128);
                raw.assert_sane(unique, what);
                let column = if total == words { RIGHT } else { WRONG };
                table.note(what, column, outcome(&raw));
                // All or nothing.
                let is_there = session.exists(&name);
                assert_eq!(is_there, outcome(&raw) == "done", "{what}, {total}");
                if is_there {
                    fs::remove_dir(session.path(&name)).unwrap();
                }
            }
        }
        table
    });
}

fn modes() -> [&'static [&'static str]; 2] {
    [&["--xattr"], &["--xattr", "--thread-pool-size", "2"]]
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
