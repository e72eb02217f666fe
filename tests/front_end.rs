//! A front end that breaks the vhost-user protocol: what it asks for is refused,
//! or the daemon ends with one line that says why; it never panics, hangs, or
//! keeps what it was sent.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use common::PATIENCE;
use common::daemon::Daemon;
use common::table::Table;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

// Numbers of requests (vhost-user).
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_LOG_BASE: u32 = 6;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;
const SET_DEVICE_STATE_FD: u32 = 42;
/// One more than any request that exists.
const BEYOND: u32 = 100;

/// Names of the requests from 1 on.
const NAMES: [&str; 43] = [
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "RESET_OWNER",
    "SET_MEM_TABLE",
    "SET_LOG_BASE",
    "SET_LOG_FD",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "SET_VRING_ENABLE",
    "SEND_RARP",
    "NET_SET_MTU",
    "SET_BACKEND_REQ_FD",
    "IOTLB_MSG",
    "SET_VRING_ENDIAN",
    "GET_CONFIG",
    "SET_CONFIG",
    "CREATE_CRYPTO_SESSION",
    "CLOSE_CRYPTO_SESSION",
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "GPU_SET_SOCKET",
    "RESET_DEVICE",
    "VRING_KICK",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "REM_MEM_REG",
    "SET_STATUS",
    "GET_STATUS",
    "GET_SHARED_OBJECT",
    "SET_DEVICE_STATE_FD",
    "CHECK_DEVICE_STATE",
];

fn name_of(code: u32) -> String {
    let name = (code as usize)
        .checked_sub(1)
        .and_then(|index| NAMES.get(index));
    name.map_or_else(|| format!("number {code}"), |name| (*name).to_owned())
}

/// The version of the protocol, in the flags of each message.
const VERSION: u32 = 1;
/// Marks a reply.
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// A daemon and a connection that may say anything.
struct Raw {
    daemon: Daemon,
    stream: UnixStream,
    _dir: TempDir,
}

/// A message with the descriptors that go along.
struct Message {
    code: u32,
    flags: u32,
    /// What the header says of the body, if not the truth.
    stated: Option<u32>,
    body: Vec<u8>,
    files: Vec<OwnedFd>,
}

fn message(code: u32, body: &[u8]) -> Message {
    Message {
        code,
        flags: VERSION,
        stated: None,
        body: body.to_vec(),
        files: Vec::new(),
    }
}

impl Message {
    fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    fn stated(mut self, size: u32) -> Self {
        self.stated = Some(size);
        self
    }

    fn files(mut self, files: Vec<OwnedFd>) -> Self {
        self.files = files;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let size = self.stated.unwrap_or(self.body.len() as u32);
        let header = words(&[self.code, self.flags, size]);
        [header, self.body.clone()].concat()
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn folder() -> OwnedFd {
    File::open("/").unwrap().into()
}

/// Memory that can be mapped.
fn memory(len: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, len).unwrap();
    file
}

/// The body of SET_MEM_TABLE: the number of regions, then guest address, size,
/// address in the front end and offset in the file of each.
fn regions_body(count: u32, regions: &[[u64; 4]]) -> Vec<u8> {
    let regions: Vec<u64> = regions.iter().flatten().copied().collect();
    [words(&[count, 0]), longs(&regions)].concat()
}

impl Raw {
    fn connect() -> Self {
        let dir = TempDir::new().unwrap();
        let daemon = Daemon::start(dir.path(), &[]);
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        daemon.expect_log("Client connected");
        Self {
            daemon,
            stream,
            _dir: dir,
        }
    }

    /// With everything negotiated that is on offer, acknowledgements included.
    fn negotiated() -> Self {
        let mut raw = Self::connect();
        raw.send(&message(SET_OWNER, &[]));
        let features = raw.ask(GET_FEATURES).unwrap();
        let protocol = raw.ask(GET_PROTOCOL_FEATURES).unwrap();
        raw.send(&message(SET_PROTOCOL_FEATURES, &longs(&[protocol])));
        raw.send(&message(SET_FEATURES, &longs(&[features])));
        assert!(raw.ask(GET_FEATURES).is_some());
        raw
    }

    /// Sends a message; whether the daemon still listens is no matter.
    fn send(&mut self, message: &Message) {
        let bytes = message.bytes();
        let files: Vec<_> = message.files.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); 1024];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
        }
        let slices = [IoSlice::new(&bytes)];
        let _ = sendmsg(&self.stream, &slices, &mut ancillary, SendFlags::NOSIGNAL);
    }

    /// Asks for a number; `None` when the daemon is gone.
    fn ask(&mut self, code: u32) -> Option<u64> {
        self.send(&message(code, &[]));
        loop {
            let mut header = [0; 12];
            self.stream.read_exact(&mut header).ok()?;
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
            let mut body = vec![0; word(8) as usize];
            self.stream.read_exact(&mut body).ok()?;
            // Replies to what was sent before come first.
            if word(0) == code {
                return Some(u64::from_ne_bytes(body[..8].try_into().unwrap()));
            }
        }
    }

    /// The daemon either serves on, with as many descriptors as before, or ends
    /// with status 1 and one line that says why; tells which.
    fn assert_sane(mut self, open_before: usize, what: &str) -> &'static str {
        let outcome = if self.ask(GET_FEATURES).is_some() {
            let open = self.daemon.open_fds();
            assert!(
                open <= open_before,
                "{what}: {open} descriptors instead of {open_before}"
            );
            drop(self.stream);
            let status = self.daemon.wait();
            assert!(status.success(), "{what}: {status}");
            SERVED
        } else {
            let status = self.daemon.wait();
            assert_eq!(status.code(), Some(1), "{what}: {status}");
            let errors = self.daemon.log_count(" ERROR virtiofsd] ");
            assert_eq!(errors, 1, "{what}: {:#?}", self.daemon.log());
            ENDED
        };
        assert_eq!(self.daemon.log_count("panicked"), 0, "{what}");
        outcome
    }
}

/// The daemon went on, whether it took the message or refused it.
const SERVED: &str = "serves on";
/// With status 1 and one line that says why.
const ENDED: &str = "ends";

/// Sends one message to a daemon that has everything negotiated; tells what it did.
fn check(what: &str, message: &Message) -> &'static str {
    let mut raw = Raw::negotiated();
    let open = raw.daemon.open_fds();
    raw.send(message);
    raw.assert_sane(open, what)
}

#[test]
fn requests_that_do_not_exist_are_refused() {
    const NONE: &str = "without a body";
    const BODY: &str = "with 40 bytes";
    let mut table = Table::new("front-end-unknown", &["request", NONE, BODY]);
    for code in [0, 4, 7, 17, 39, 44, BEYOND, u32::MAX] {
        let name = name_of(code);
        table.note(&name, NONE, check(&name, &message(code, &[])));
        let with_body = check(&format!("{name} with a body"), &message(code, &[1; 40]));
        table.note(&name, BODY, with_body);
    }
    table.check();
}

#[test]
fn headers_that_lie_are_refused() {
    let mut table = Table::new("front-end-headers", &["header", "outcome"]);
    for flags in [0, 2, 3, VERSION | REPLY, u32::MAX] {
        let what = format!("flags {flags:#x}");
        let message = message(GET_FEATURES, &[]).flags(flags);
        table.note(&what, "outcome", check(&what, &message));
    }
    for size in [1, 8, 0x1000, 0x1001, 1 << 31, u32::MAX] {
        let lie = message(GET_FEATURES, &[0; 16]).stated(size);
        let mut raw = Raw::negotiated();
        raw.send(&lie);
        // Where more was promised the daemon waits for it: nothing more comes.
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let status = raw.daemon.wait();
        assert!(matches!(status.code(), Some(0 | 1)), "{size}: {status}");
        assert_eq!(raw.daemon.log_count("panicked"), 0, "{size}");
        let outcome = match status.code() {
            Some(0) => "as if it had gone away",
            _ => ENDED,
        };
        table.note(&format!("a body of {size} stated"), "outcome", outcome);
    }
    table.check();
}

#[test]
fn bodies_of_the_wrong_length_are_refused() {
    let lengths = [
        ("0", 0),
        ("1", 1),
        ("7", 7),
        ("9", 9),
        ("39", 39),
        ("200", 200),
    ];
    let mut columns = vec!["request with so many bytes"];
    columns.extend(lengths.map(|(column, _)| column));
    let mut table = Table::new("front-end-lengths", &columns);
    for code in (1..=43).filter(|code| !matches!(code, 4 | 7 | 17)) {
        for (column, len) in lengths {
            let name = name_of(code);
            let message = message(code, &vec![0; len]).flags(VERSION | NEED_REPLY);
            let outcome = check(&format!("{name} with {len} bytes"), &message);
            table.note(&name, column, outcome);
        }
    }
    table.check();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let counts = [("1", 1), ("3", 3), ("8", 8), ("40", 40)];
    let mut columns = vec!["request with so many descriptors too many"];
    columns.extend(counts.map(|(column, _)| column));
    let mut table = Table::new("front-end-descriptors", &columns);
    for code in [GET_FEATURES, SET_FEATURES, SET_VRING_NUM, SET_VRING_ENABLE] {
        for (column, count) in counts {
            let name = name_of(code);
            let files = (0..count).map(|_| null()).collect();
            let body = longs(&[0]);
            let body = if code == GET_FEATURES { &[][..] } else { &body };
            let outcome = check(
                &format!("{name} with {count} descriptors"),
                &message(code, body).files(files),
            );
            table.note(&name, column, outcome);
        }
    }
    table.check();
}

#[test]
fn events_of_the_wrong_number_or_kind_are_refused() {
    const BEYOND_LAST: &str = "for a queue beyond the last";
    let columns = [
        "request with",
        "no event",
        "two events",
        "a directory",
        "a device",
        "memory",
        BEYOND_LAST,
    ];
    let mut table = Table::new("front-end-events", &columns);
    for code in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        let name = name_of(code);
        for (kind, files) in [
            ("no event", vec![]),
            ("two events", vec![event(), event()]),
            ("a directory", vec![folder()]),
            ("a device", vec![null()]),
            ("memory", vec![memory(4096)]),
        ] {
            let mut raw = Raw::negotiated();
            // A queue may keep what it was given.
            let open = raw.daemon.open_fds() + 1;
            raw.send(&message(code, &longs(&[1])).files(files));
            let outcome = raw.assert_sane(open, &format!("{name} with {kind}"));
            table.note(&name, kind, outcome);
        }
        for index in [2, 3, 63, 255] {
            let files = vec![event()];
            let message = message(code, &longs(&[index + 63])).files(files);
            table.note(&name, BEYOND_LAST, check(&name, &message));
        }
    }
    table.check();
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let page = 4096;
    let whole = [0, 16 * page, 0x7000_0000, 0];
    // What it is, the number of regions stated, the regions, the memory.
    type Case = (&'static str, u32, Vec<[u64; 4]>, Vec<OwnedFd>);
    let cases: [Case; 14] = [
        ("no region", 0, vec![], vec![]),
        ("a region without memory", 1, vec![whole], vec![]),
        (
            "more memory than regions",
            1,
            vec![whole],
            vec![memory(16 * page), memory(page)],
        ),
        (
            "fewer regions than stated",
            2,
            vec![whole],
            vec![memory(16 * page)],
        ),
        (
            "countless regions",
            u32::MAX,
            vec![whole],
            vec![memory(16 * page)],
        ),
        ("an empty region", 1, vec![[0, 0, 0, 0]], vec![memory(page)]),
        (
            "beyond the last address",
            1,
            vec![[u64::MAX - page, 16 * page, 0, 0]],
            vec![memory(16 * page)],
        ),
        (
            "wrapping in the front end",
            1,
            vec![[0, 16 * page, u64::MAX - page, 0]],
            vec![memory(16 * page)],
        ),
        (
            "an offset that wraps",
            1,
            vec![[0, 16 * page, 0, u64::MAX - page]],
            vec![memory(16 * page)],
        ),
        (
            "an odd offset",
            1,
            vec![[0, 16 * page, 0, 1]],
            vec![memory(32 * page)],
        ),
        (
            "larger than there is memory",
            1,
            vec![[0, 1 << 46, 0, 0]],
            vec![memory(page)],
        ),
        ("a directory", 1, vec![whole], vec![folder()]),
        ("a device", 1, vec![whole], vec![null()]),
        (
            "two at one place",
            2,
            vec![whole, whole],
            vec![memory(16 * page), memory(16 * page)],
        ),
    ];
    let mut table = Table::new("front-end-memory", &["memory", "outcome"]);
    for (what, count, regions, files) in cases {
        let mut raw = Raw::negotiated();
        // What was good about it may be mapped, which holds no descriptor twice.
        let open = raw.daemon.open_fds() + files.len();
        raw.send(&message(SET_MEM_TABLE, &regions_body(count, &regions)).files(files));
        table.note(what, "outcome", raw.assert_sane(open, what));
    }
    let one = |region: [u64; 4]| [words(&[0, 0]), longs(&region)].concat();
    let gone = message(REM_MEM_REG, &one(whole));
    let with_memory = message(REM_MEM_REG, &one(whole)).files(vec![memory(page)]);
    for (what, message) in [
        (
            "a region more without memory",
            message(ADD_MEM_REG, &one(whole)),
        ),
        ("a region that is not there goes", gone),
        (
            "a region that is not there goes with a descriptor",
            with_memory,
        ),
    ] {
        table.note(what, "outcome", check(what, &message));
    }
    table.check();
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let mut table = Table::new("front-end-queues", &["queue", "outcome"]);
    for size in [0, 3, 1023, 2048, 1 << 15, 1 << 16, u32::MAX] {
        let what = format!("size {size}");
        let message = message(SET_VRING_NUM, &words(&[1, size]));
        table.note(&what, "outcome", check(&what, &message));
    }
    for index in [62, 64, 1000, u32::MAX] {
        for code in [
            SET_VRING_NUM,
            SET_VRING_BASE,
            GET_VRING_BASE,
            SET_VRING_ENABLE,
        ] {
            let what = format!("{} for queue {index}", name_of(code));
            let message = message(code, &words(&[index, 1]));
            table.note(&what, "outcome", check(&what, &message));
        }
    }
    for (what, addresses) in [
        ("nowhere", [0xdead_0000, 0xdead_1000, 0xdead_2000, 0]),
        ("misaligned", [1, 1, 1, 0]),
        ("at the end", [u64::MAX, u64::MAX, u64::MAX, u64::MAX]),
    ] {
        let body = [words(&[1, 0]), longs(&addresses)].concat();
        let what = format!("a ring {what}");
        let outcome = check(&what, &message(SET_VRING_ADDR, &body));
        table.note(&what, "outcome", outcome);
    }
    table.check();
}

/// Such memory has no descriptor, so the front end shares none.
#[test]
fn a_guest_whose_memory_is_not_shared_is_told_apart() {
    let mut raw = Raw::negotiated();
    let addresses = [0x7f00_0000_0000u64, 0x7f00_0000_1000, 0x7f00_0000_2000, 0];
    let body = [words(&[1, 0]), longs(&addresses)].concat();
    raw.send(&message(SET_VRING_ADDR, &body));
    assert_eq!(raw.daemon.wait().code(), Some(1));
    raw.daemon.expect_log(
        "Waiting for daemon failed: HandleRequest(InvalidParam); most often the guest's memory \
         is not shared",
    );
}

#[test]
fn what_comes_before_its_time_is_refused_or_harmless() {
    let before = [
        message(SET_VRING_ENABLE, &words(&[1, 1])),
        message(SET_VRING_NUM, &words(&[1, 128])),
        message(
            SET_VRING_ADDR,
            &[words(&[1, 0]), longs(&[0, 0, 0, 0])].concat(),
        ),
        message(SET_VRING_KICK, &longs(&[1])).files(vec![event()]),
        message(GET_VRING_BASE, &words(&[1, 0])),
        message(SET_FEATURES, &longs(&[u64::MAX])),
        message(SET_PROTOCOL_FEATURES, &longs(&[u64::MAX])),
        message(SET_LOG_BASE, &longs(&[4096, 0])).files(vec![memory(4096)]),
        message(GET_CONFIG, &words(&[0, 40, 0])),
        message(SET_DEVICE_STATE_FD, &words(&[7, 7])).files(vec![null()]),
    ];
    let mut table = Table::new("front-end-order", &["the first message", "outcome"]);
    for first in before {
        let mut raw = Raw::connect();
        let open = raw.daemon.open_fds() + first.files.len();
        raw.send(&first);
        let name = name_of(first.code);
        table.note(&name, "outcome", raw.assert_sane(open, &name));
    }
    table.check();
}

#[test]
fn a_message_with_more_descriptors_than_there_may_be_is_refused() {
    let files = (0..40).map(|_| null()).collect();
    let outcome = check(
        "40 descriptors",
        &message(SET_VRING_KICK, &longs(&[1])).files(files),
    );
    assert_eq!(outcome, ENDED);
}

#[test]
fn a_kick_without_a_ring_harms_nobody() {
    let mut raw = Raw::negotiated();
    let kick = event();
    let copy = kick.try_clone().unwrap();
    raw.send(&message(SET_VRING_KICK, &longs(&[1])).files(vec![copy]));
    raw.send(&message(SET_VRING_ENABLE, &words(&[1, 1])));
    for _ in 0..1000 {
        rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
    }
    assert!(raw.ask(GET_FEATURES).is_some());
    drop(raw.stream);
    assert!(raw.daemon.wait().success());
}

#[test]
fn a_front_end_that_stalls_within_a_message_can_be_left() {
    let whole = message(SET_FEATURES, &longs(&[0])).bytes();
    for len in 1..whole.len() {
        let mut raw = Raw::negotiated();
        raw.stream.write_all(&whole[..len]).unwrap();
        assert!(raw.daemon.is_running(), "{len}");
        // It goes away: nothing is wrong with that, wherever it was.
        drop(raw.stream);
        let status = raw.daemon.wait();
        assert!(matches!(status.code(), Some(0 | 1)), "{len}: {status}");
        assert_eq!(raw.daemon.log_count("panicked"), 0, "{len}");
    }
}

#[test]
fn a_stalled_front_end_does_not_keep_the_operator_from_stopping_it() {
    let mut raw = Raw::negotiated();
    raw.stream
        .write_all(&message(SET_FEATURES, &longs(&[0])).bytes()[..13])
        .unwrap();
    let pid = rustix::process::Pid::from_raw(raw.daemon.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = raw.daemon.wait();
    assert!(!status.success(), "{status}");
}
