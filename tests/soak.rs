//! A guest that does everything, right and wrong, for a long time on several
//! queues at once: nothing fails that should not, and nothing piles up.
//!
//! `VIRTIOFSD_SOAK_REQUESTS` sets how many requests that is, or
//! `VIRTIOFSD_SOAK_SECONDS` for how long; `VIRTIOFSD_SOAK_GROWTH_KIB` how much more
//! memory may be in use at the end, which is a lot where valgrind or a sanitizer has
//! its own. `--nocapture` shows what was measured.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::Random;
use common::frontend::Config;
use common::fuse_client::{Client, ReplySize, Request, SetAttr, read_in, write_in};
use common::session::Session;
use common::wire::{Encoder, Entry, OUT_HEADER, ROOT, op};

const REQUESTS: u64 = 1_000_000;
const QUEUES: usize = 4;
const GROWTH_KIB: u64 = 2048;

/// Requests that a burst puts into the ring before it waits.
const BURST: u64 = 32;

/// Names that all queues fight for.
const NAMES: [&str; 12] = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "i",
    "j",
    "name with spaces",
    "\u{e4}\u{f6}\u{fc}",
];

/// Numbers at which sums and checks stumble.
const EDGES: [u64; 12] = [
    0,
    1,
    4095,
    4096,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    (1 << 63) - 4096,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX,
];

/// What all queues know of.
#[derive(Default)]
struct Known {
    nodes: Mutex<Vec<u64>>,
    /// Node, handle, whether it is a directory.
    handles: Mutex<Vec<(u64, u64, bool)>>,
}

/// One queue's part.
struct Walker<'a> {
    client: &'a mut Client,
    random: Random,
    known: &'a Known,
    /// Look-ups of each node that came over this queue.
    lookups: HashMap<u64, u64>,
    sent: u64,
}

impl Walker<'_> {
    fn name(&mut self) -> &'static str {
        self.random.choice(&NAMES)
    }

    /// Mostly a node that is or was there.
    fn node(&mut self) -> u64 {
        let known = self.known.nodes.lock().unwrap();
        match self.random.below(20) {
            0 => self.random.choice(&EDGES),
            1..=5 => ROOT,
            _ if known.is_empty() => ROOT,
            _ => self.random.choice(&known),
        }
    }

    /// Mostly a handle that is or was open.
    fn handle(&mut self) -> (u64, u64, bool) {
        let known = self.known.handles.lock().unwrap();
        if known.is_empty() || self.random.below(20) == 0 {
            return (ROOT, self.random.choice(&EDGES), false);
        }
        self.random.choice(&known)
    }

    /// Mostly an offset in the first few pages.
    fn offset(&mut self) -> u64 {
        match self.random.below(8) {
            0 => self.random.choice(&EDGES),
            _ => self.random.below(16384),
        }
    }

    fn entered(&mut self, entry: Result<Entry, i32>) {
        if let Ok(entry) = entry {
            *self.lookups.entry(entry.nodeid).or_default() += 1;
            let mut known = self.known.nodes.lock().unwrap();
            if known.len() < 200 {
                known.push(entry.nodeid);
            } else {
                let index = self.random.below(200) as usize;
                known[index] = entry.nodeid;
            }
        }
    }

    fn opened(&self, node: u64, handle: u64, is_directory: bool) {
        let mut known = self.known.handles.lock().unwrap();
        known.push((node, handle, is_directory));
    }

    /// One valid operation of a kind that changes what is known.
    fn step(&mut self) {
        self.sent += 1;
        self.client.uid = self.random.choice(&[0, 0, 1000]);
        self.client.gid = self.client.uid;
        let (parent, name) = (self.node(), self.name());
        match self.random.below(22) {
            0..=4 => {
                let entry = self.client.lookup(parent, name);
                self.entered(entry);
            }
            5 | 6 => {
                let created = self.client.create(parent, name, libc::O_RDWR, 0o666);
                if let Ok((entry, open)) = created {
                    self.opened(entry.nodeid, open.fh, false);
                    self.entered(Ok(entry));
                }
            }
            7 => {
                let entry = self.client.mkdir(parent, name, 0o777, 0);
                self.entered(entry);
            }
            8 => {
                let entry = self.client.symlink(parent, name, "../../etc/passwd");
                self.entered(entry);
            }
            9 => {
                let kind = self
                    .random
                    .choice(&[libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK]);
                let entry = self.client.mknod(parent, name, kind | 0o666, 0, 0);
                self.entered(entry);
            }
            10 => {
                let node = self.node();
                let entry = self.client.link(node, parent, name);
                self.entered(entry);
            }
            11 | 12 => {
                let _ = self.client.unlink(parent, name);
            }
            13 => {
                let _ = self.client.rmdir(parent, name);
            }
            14 => {
                let to = (self.node(), self.name());
                let flags = self.random.choice(&[0, 0, 1, 2, 7]);
                {
                    let _ = self.client.rename2((parent, name), to, flags);
                };
            }
            15 => {
                if let Ok(open) = self.client.open(parent, libc::O_RDWR) {
                    self.opened(parent, open.fh, false);
                }
            }
            16 => {
                if let Ok(open) = self.client.opendir(parent) {
                    self.opened(parent, open.fh, true);
                }
            }
            17 => {
                let (node, fh, _) = self.handle();
                if let Ok(entries) = self.client.readdirplus(node, fh, 0, 4096) {
                    for entry in entries.into_iter().filter_map(|found| found.entry) {
                        if entry.nodeid != 0 {
                            self.entered(Ok(entry));
                        }
                    }
                }
            }
            18 => {
                let set = SetAttr {
                    size: Some(self.offset()),
                    mode: Some(self.random.next() as u32),
                    ..SetAttr::default()
                };
                {
                    let _ = self.client.setattr(parent, &set);
                };
            }
            19 => {
                {
                    let _ = self
                        .client
                        .setxattr(parent, "user.soak", b"value", 0, false);
                };
            }
            // As many are closed as were opened, and the oldest is forgotten.
            20 => self.close_one(),
            _ => self.forget_one(),
        }
        while self.known.handles.lock().unwrap().len() > 150 {
            self.close_one();
        }
    }

    fn close_one(&mut self) {
        let mut known = self.known.handles.lock().unwrap();
        if known.is_empty() {
            return;
        }
        let index = self.random.below(known.len() as u64) as usize;
        let (node, fh, is_directory) = known.swap_remove(index);
        drop(known);
        self.sent += 1;
        if is_directory {
            self.client.releasedir(node, fh).unwrap();
        } else {
            self.client.release(node, fh).unwrap();
        }
    }

    fn forget_one(&mut self) {
        if let Some(&node) = self.lookups.keys().next() {
            let count = self.lookups.remove(&node).unwrap();
            self.client.forget(node, count);
        }
    }

    /// Many requests that change nothing that is known, some of them nonsense.
    fn burst(&mut self) {
        let mut numbers = Vec::new();
        for _ in 0..BURST {
            self.sent += 1;
            let (node, fh, _) = self.handle();
            let offset = self.offset();
            let e = Encoder::new;
            let mut request = match self.random.below(9) {
                0 => Request::new(op::READ, node, read_in(fh, offset, 4096)).space(4096),
                1 => {
                    let size = self.random.below(3000) as u32;
                    let head = write_in(fh, offset.min(1 << 20), size, 0, libc::O_RDWR);
                    Request::new(op::WRITE, node, head.bytes(&vec![7; size as usize]))
                }
                2 => Request::new(op::STATFS, node, e()),
                3 => Request::new(op::READLINK, self.node(), e()).space(4096),
                4 => Request::new(op::LISTXATTR, node, e().u32(4096).u32(0)).space(4096),
                5 => Request::new(op::READDIR, node, read_in(fh, offset, 4096)).space(4096),
                6 => Request::new(op::LSEEK, node, e().u64(fh).u64(offset).u64(3)),
                7 => Request::new(op::FLUSH, node, e().u64(fh).u64(0).u64(9)),
                _ => Request::new(op::GETATTR, self.node(), e().u64(0).u64(0)),
            };
            let spoiled = self.random.below(4) == 0;
            if spoiled {
                self.spoil(&mut request);
            }
            let (unique, mut bytes) = self.client.encode(&request);
            if spoiled && self.random.below(3) == 0 {
                bytes.truncate(self.random.below(bytes.len() as u64 + 1) as usize);
            }
            let room = OUT_HEADER + request.space;
            let room = match spoiled {
                true => self.random.below(room as u64 + 1) as usize,
                false => room,
            };
            // A chain has at least one buffer.
            if bytes.is_empty() && room == 0 {
                bytes.push(0);
            }
            numbers.push((unique, format!("{request:x?}")));
            self.client
                .start_bytes(unique, bytes, room, ReplySize::AtMost);
        }
        self.client.submit();
        for _ in 0..BURST {
            let (unique, raw, _) = self.client.finish_raw();
            let what = numbers
                .iter()
                .find(|(number, _)| *number == unique)
                .unwrap();
            raw.assert_sane(unique, &what.1);
        }
    }

    /// Makes a request one that no honest guest sends.
    fn spoil(&mut self, request: &mut Request) {
        match self.random.below(4) {
            0 => {
                let len = request.body.len();
                if len > 0 {
                    let index = self.random.below(len as u64) as usize;
                    request.body[index] = self.random.next() as u8;
                }
            }
            1 => {
                let words = request.body.len() as u64 / 8;
                if words > 0 {
                    let at = 8 * self.random.below(words) as usize;
                    let edge = self.random.choice(&EDGES);
                    request.body[at..at + 8].copy_from_slice(&edge.to_le_bytes());
                }
            }
            2 => {
                // What has an effect that outlives it is not among these.
                let opcodes = [0, 7, 19, 37, 41, 49, 60, 4096, u32::MAX];
                request.opcode = self.random.choice(&opcodes);
            }
            _ => request.nodeid = self.random.choice(&EDGES),
        }
    }

    /// Lets go of everything that this queue looked up.
    fn forget_all(&mut self) {
        while !self.lookups.is_empty() {
            self.forget_one();
        }
    }
}

/// When it has been enough.
#[derive(Clone, Copy)]
enum Until {
    Sent(u64),
    Passed(Duration),
}

/// What the environment says, if it does.
fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap())
}

impl Until {
    fn from_environment() -> Self {
        match number("VIRTIOFSD_SOAK_SECONDS") {
            Some(seconds) => Self::Passed(Duration::from_secs(seconds)),
            None => Self::Sent(number("VIRTIOFSD_SOAK_REQUESTS").unwrap_or(REQUESTS)),
        }
    }

    /// A tenth of it.
    fn tenth(self) -> Self {
        match self {
            Self::Sent(requests) => Self::Sent(requests / 10),
            Self::Passed(time) => Self::Passed(time / 10),
        }
    }

    fn is_over(self, sent: u64, begun: Instant) -> bool {
        match self {
            Self::Sent(requests) => sent >= requests,
            Self::Passed(time) => begun.elapsed() >= time,
        }
    }
}

/// Sends requests over all queues, and lets go of everything at the end; gives how
/// many they were.
fn walk(clients: &mut [&mut Client], known: &Known, until: Until, seed: u64) -> u64 {
    let done = AtomicU64::new(0);
    let begun = Instant::now();
    thread::scope(|scope| {
        for (index, client) in clients.iter_mut().enumerate() {
            let done = &done;
            scope.spawn(move || {
                let mut walker = Walker {
                    client,
                    random: Random(seed + index as u64),
                    known,
                    lookups: HashMap::new(),
                    sent: 0,
                };
                while !until.is_over(done.load(Ordering::Relaxed), begun) {
                    for _ in 0..4 {
                        walker.step();
                    }
                    walker.burst();
                    done.fetch_add(std::mem::take(&mut walker.sent), Ordering::Relaxed);
                }
                walker.forget_all();
            });
        }
    });
    let handles = std::mem::take(&mut *known.handles.lock().unwrap());
    for (node, fh, is_directory) in handles {
        match is_directory {
            true => clients[0].releasedir(node, fh).unwrap(),
            false => clients[0].release(node, fh).unwrap(),
        }
    }
    known.nodes.lock().unwrap().clear();
    done.into_inner()
}

#[test]
fn a_million_requests_leave_nothing_behind() {
    let until = Until::from_environment();
    let args = ["--num-request-queues=4", "--xattr"];
    let mut session = Session::with_config(&args, &Config::default());
    let mut others: Vec<_> = (2..=QUEUES)
        .map(|index| Client::new(session.vmm.start_queue(index)))
        .collect();
    let known = Known::default();
    let Session { client, daemon, .. } = &mut session;
    let mut clients: Vec<_> = others.iter_mut().collect();
    clients.push(client);
    // What is kept for later requests is there after these.
    walk(&mut clients, &known, until.tenth(), 1);
    let (open, rss) = (daemon.open_fds(), daemon.rss());
    let complaints = daemon.complaints();
    let begun = Instant::now();
    let sent = walk(&mut clients, &known, until, 1 << 32);
    let time = begun.elapsed();
    daemon.expect_open_fds(open);
    let rss_after = daemon.rss();
    println!(
        "{sent} requests in {time:.1?}; descriptors {open}, then {}; resident memory {} KiB, \
         then {} KiB",
        daemon.open_fds(),
        rss / 1024,
        rss_after / 1024
    );
    let grown = rss_after.saturating_sub(rss);
    let allowed = number("VIRTIOFSD_SOAK_GROWTH_KIB").unwrap_or(GROWTH_KIB);
    assert!(grown < allowed << 10, "{grown} bytes more in use");
    assert_eq!(daemon.complaints(), complaints);
    drop(clients);
    assert!(others.iter().all(Client::is_idle));
    session.client.getattr(ROOT).unwrap();
    session.finish();
}
