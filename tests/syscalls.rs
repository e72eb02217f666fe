//! The budget of system calls: what each kind of request costs on the host.
//!
//! `strace` writes down every call of the daemon while requests are sent one
//! after the other. A line is in its file before the thread that called goes on,
//! so when a reply has come, the calls of its request are there. What wakes the
//! queue's thread and what wakes the guest is shared by all requests of a batch
//! and has a test of its own.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::process::{Child, ChildStderr, Command, Stdio};

use std::time::Instant;

use common::fuse_client::{Client, Request, SetAttr};
use common::host_fs::{HostFs, Mounted};
use common::session::Session;
use common::wait_until_old;
use common::wire::{Encoder, ROOT, op};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Requests of each kind that are traced.
const TIMES: u32 = 8;

/// The wish for the next kick, the kick, and the call to the guest.
const SHARED: [&str; 3] = ["epoll_wait", "read", "write"];

/// By what the daemon holds inodes, and what that costs.
struct Holding {
    option: &'static str,
    /// To hold a new one that has been there for some time, one that was just
    /// made, and one that is open.
    to_hold: &'static [&'static str],
    to_hold_made: &'static [&'static str],
    to_hold_open: &'static [&'static str],
    /// To make sure that one which is held has been found.
    to_recognize: &'static [&'static str],
    /// To act on one, and to let go of it.
    to_reach: &'static [&'static str],
    /// To open one.
    to_open: &'static str,
    /// To read one of its extended attributes, or the list of them.
    to_read_attribute: &'static [&'static str],
    to_list_attributes: &'static [&'static str],
}

const HOLDINGS: [Holding; 2] = [
    Holding {
        option: "--inode-file-handles=never",
        to_hold: &["openat"],
        to_hold_made: &["openat"],
        to_hold_open: &["openat"],
        to_recognize: &[],
        to_reach: &[],
        to_open: "openat",
        to_read_attribute: &["getxattr"],
        to_list_attributes: &["listxattr"],
    },
    Holding {
        option: "--inode-file-handles=prefer",
        to_hold: &["name_to_handle_at", "statx"],
        // Another could get its number at once, so it is opened meanwhile.
        to_hold_made: &["openat", "statx", "name_to_handle_at", "close"],
        to_hold_open: &["name_to_handle_at"],
        // Not where files have a birth time that is some time ago.
        to_recognize: &["name_to_handle_at"],
        to_reach: &["open_by_handle_at", "close"],
        to_open: "open_by_handle_at",
        to_read_attribute: &["open_by_handle_at", "fgetxattr", "close"],
        to_list_attributes: &["open_by_handle_at", "flistxattr", "close"],
    },
];

/// An `strace` of the daemon.
struct Trace {
    strace: Child,
    /// It says more when threads begin, and must be able to.
    _messages: BufReader<ChildStderr>,
    output: File,
    _dir: TempDir,
}

impl Trace {
    fn of(session: &Session) -> Self {
        let dir = TempDir::with_prefix("virtiofsd-trace-").unwrap();
        let path = dir.path().join("calls");
        let output = File::create_new(&path).unwrap();
        let mut strace = Command::new("strace")
            .args(["-f", "-o"])
            .arg(&path)
            .args(["-p", &session.daemon.serving_pid().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot run strace; tests/prepare installs it");
        let mut messages = BufReader::new(strace.stderr.take().unwrap());
        let mut said = String::new();
        messages.read_line(&mut said).unwrap();
        assert!(
            said.contains("attached"),
            "strace cannot trace the daemon, which takes root where \
             kernel.yama.ptrace_scope is not 0: {said}"
        );
        Self {
            strace,
            _messages: messages,
            output: File::open(path).inspect(|_| drop(output)).unwrap(),
            _dir: dir,
        }
    }

    /// What strace writes while `work` is done.
    fn text(&mut self, work: impl FnOnce()) -> String {
        self.output.seek(SeekFrom::End(0)).unwrap();
        work();
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        text
    }

    /// The calls that begin while `work` is done: number of the thread, name.
    fn calls(&mut self, work: impl FnOnce()) -> Vec<(u32, String)> {
        let text = self.text(work);
        // Number, name, arguments; or what a thread goes on with that was
        // interrupted by another's line. Debug builds look at each descriptor
        // before they close it.
        let begun = text.lines().filter(|line| !line.contains("F_GETFD"));
        let parts = begun.filter_map(|line| {
            let (thread, call) = line.split_once(' ')?;
            let (name, _) = call.trim_start().split_once('(')?;
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            is_name.then(|| (thread.parse().unwrap(), name.to_owned()))
        });
        parts.collect()
    }
}

/// How often each was called.
fn count(calls: &[(u32, String)]) -> BTreeMap<&str, u32> {
    let mut counts = BTreeMap::new();
    for (_, name) in calls {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

impl Drop for Trace {
    fn drop(&mut self) {
        // It leaves the daemon running.
        let _ = kill_process(Pid::from_child(&self.strace), Signal::INT);
        let _ = self.strace.wait();
    }
}

/// A session that is traced, with its budget.
struct Budget {
    trace: Trace,
    session: Session,
    over: Vec<String>,
}

impl Budget {
    fn new(args: &[&str]) -> Self {
        let session = Session::new(args);
        Self {
            trace: Trace::of(&session),
            session,
            over: Vec::new(),
        }
    }

    /// Sends requests of one kind, the first of them untraced, and compares what
    /// each may cost: names of calls, as often as they may be called.
    fn check(&mut self, kind: &str, allowed: &[&str], mut request: impl FnMut(&mut Client, u32)) {
        let client = &mut self.session.client;
        request(client, TIMES);
        let calls = self.trace.calls(|| {
            for number in 0..TIMES {
                request(client, number);
            }
        });
        let mut calls = count(&calls);
        calls.retain(|name, _| !SHARED.contains(name));
        let traced: u32 = calls.values().sum();
        assert!(traced >= TIMES, "{kind}: strace saw no more than {calls:?}");
        let mut left = calls.clone();
        for name in allowed {
            if let Some(count) = left.get_mut(*name) {
                *count = count.saturating_sub(TIMES);
            }
        }
        // Fewer than one for every second request are none of its doing: a
        // table that grows, or what other threads were at when tracing began.
        left.retain(|_, count| *count >= TIMES / 2);
        if !left.is_empty() {
            self.over.push(format!(
                "{kind}: {TIMES} of {allowed:?} allowed, there were {calls:?}"
            ));
        }
    }

    fn finish(self) {
        drop(self.trace);
        assert!(self.over.is_empty(), "{:#?}", self.over);
        self.session.finish();
    }
}

fn numbered(number: u32) -> String {
    format!("f{number}")
}

/// Files that the guest has not heard of.
fn put_files(session: &Session) {
    for number in 0..=TIMES {
        session.put(&numbered(number), vec![b'x'; 5000]);
    }
}

#[test]
fn looking_up_costs_what_it_must() {
    for by in HOLDINGS {
        let mut budget = Budget::new(&[by.option, "--xattr"]);
        put_files(&budget.session);
        wait_until_old(&budget.session.path(numbered(TIMES)));
        let allowed = [&["statx"], by.to_hold].concat();
        budget.check("LOOKUP, new", &allowed, |client, number| {
            client.lookup(ROOT, numbered(number)).unwrap();
        });
        budget.check("LOOKUP, known", &["statx"], |client, number| {
            client.lookup(ROOT, numbered(number)).unwrap();
        });
        budget.check("LOOKUP, missing", &["statx"], |client, _| {
            client.lookup(ROOT, "none").unwrap_err();
        });
        let node = budget.session.client.lookup(ROOT, "f0").unwrap().nodeid;
        let allowed = [&["statx"], by.to_reach].concat();
        budget.check("GETATTR", &allowed, |client, _| {
            client.getattr(node).unwrap();
        });
        // Once its birth time is long enough ago, its name is enough.
        let deadline = Instant::now() + common::PATIENCE;
        loop {
            let client = &mut budget.session.client;
            let calls = budget.trace.calls(|| {
                client.lookup(ROOT, "f0").unwrap();
            });
            if !count(&calls).contains_key("name_to_handle_at") {
                break;
            }
            assert!(Instant::now() < deadline, "a handle is asked for ever");
        }
        budget.check("GETATTR, known for sure", &["statx"], |client, _| {
            client.getattr(node).unwrap();
        });
        budget.check("GETATTR of a directory", &["statx"], |client, _| {
            client.getattr(ROOT).unwrap();
        });
        budget.check("STATFS", &["fstatfs"], |client, _| {
            client.statfs(ROOT).unwrap();
        });
        budget.check("GETXATTR", by.to_read_attribute, |client, _| {
            client.getxattr(node, "user.none", 100).unwrap_err();
        });
        budget.check("LISTXATTR", by.to_list_attributes, |client, _| {
            client.listxattr(node, 100).unwrap();
        });
        budget.finish();
    }
}

#[test]
fn reading_and_writing_cost_what_they_must() {
    for by in HOLDINGS {
        let mut budget = Budget::new(&[by.option]);
        put_files(&budget.session);
        let client = &mut budget.session.client;
        let node = client.lookup(ROOT, "f0").unwrap().nodeid;
        let fh = client.open(node, libc::O_RDWR).unwrap().fh;
        budget.check("READ", &["preadv2"], |client, _| {
            assert_eq!(client.read(node, fh, 0, 4096).unwrap().len(), 4096);
        });
        budget.check("WRITE", &["pwritev2"], |client, _| {
            client.write(node, fh, 0, &[b'y'; 4096]).unwrap();
        });
        // The queue's thread waits itself and lends its queue meanwhile.
        let allowed = ["fsync", "epoll_ctl", "epoll_ctl"];
        budget.check("FSYNC", &allowed, |client, _| {
            client.fsync(node, fh, 0).unwrap();
        });
        budget.check("GETATTR with handle", &["statx"], |client, _| {
            client.getattr_fh(node, fh).unwrap();
        });
        let allowed = [&["utimensat", "statx"], by.to_reach].concat();
        budget.check("SETATTR, times", &allowed, |client, _| {
            let set = SetAttr {
                mtime: Some((1, 0)),
                ..SetAttr::default()
            };
            client.setattr(node, &set).unwrap();
        });
        let allowed = [&["ftruncate", "statx"], by.to_reach].concat();
        budget.check("SETATTR, size", &allowed, |client, _| {
            let set = SetAttr {
                fh: Some(fh),
                size: Some(5000),
                ..SetAttr::default()
            };
            client.setattr(node, &set).unwrap();
        });
        let allowed = [by.to_open, "close"];
        budget.check("OPEN and RELEASE", &allowed, |client, _| {
            let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
            client.release(node, fh).unwrap();
        });
        budget.finish();
    }
}

/// At the end of a file the host is asked once where it is known to tell, and
/// once more where it is not (see `passthrough::files`).
#[test]
fn a_read_at_the_end_costs_no_more_than_one_call_more() {
    let mut budget = Budget::new(&["--inode-file-handles=never"]);
    put_files(&budget.session);
    let client = &mut budget.session.client;
    let node = client.lookup(ROOT, "f0").unwrap().nodeid;
    let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
    let allowed = &["preadv2", "preadv2"];
    budget.check("READ, short", allowed, |client, _| {
        assert_eq!(client.read(node, fh, 4096, 4096).unwrap().len(), 904);
    });
    budget.finish();
}

#[test]
fn changing_names_costs_what_it_must() {
    for by in HOLDINGS {
        let mut budget = Budget::new(&[by.option]);
        // The guest does not forget, so what is made may get the number of what
        // was removed, and has to be told from it.
        let new = [&["statx"], by.to_hold_made, by.to_recognize].concat();
        let allowed = [&["openat", "statx"], by.to_hold_open, by.to_recognize].concat();
        budget.check("CREATE", &allowed, |client, number| {
            client
                .create(ROOT, &numbered(number), libc::O_RDWR, 0o600)
                .unwrap();
        });
        budget.check("RENAME", &["renameat2"], |client, number| {
            let to = format!("{}-moved", numbered(number));
            client
                .rename((ROOT, &numbered(number)), (ROOT, &to))
                .unwrap();
        });
        budget.check("UNLINK", &["unlinkat"], |client, number| {
            let name = format!("{}-moved", numbered(number));
            client.unlink(ROOT, &name).unwrap();
        });
        let allowed = [&["mkdirat"][..], &new].concat();
        budget.check("MKDIR", &allowed, |client, number| {
            client.mkdir(ROOT, &numbered(number), 0o755, 0).unwrap();
        });
        budget.check("RMDIR", &["unlinkat"], |client, number| {
            let body = Encoder::new().name(numbered(number));
            client.call(&Request::new(op::RMDIR, ROOT, body)).unwrap();
        });
        let allowed = [&["symlinkat"][..], &new].concat();
        budget.check("SYMLINK", &allowed, |client, number| {
            client.symlink(ROOT, &numbered(number), "to").unwrap();
        });
        budget.finish();
    }
}

/// A guest's user is another user on the host for one call only.
#[test]
fn creating_as_a_user_costs_one_change_of_identity() {
    for by in HOLDINGS {
        assert!(
            rustix::process::geteuid().is_root(),
            "only root can act as others: run this test as root"
        );
        let mut budget = Budget::new(&[by.option]);
        budget.session.client.uid = 1000;
        budget.session.client.gid = 1000;
        let there_and_back = &["setresgid", "setresuid", "capset", "setresuid", "setresgid"];
        let allowed = [&["openat", "statx"], by.to_hold_open, there_and_back].concat();
        budget.check("CREATE as a user", &allowed, |client, number| {
            client
                .create(ROOT, &numbered(number), libc::O_RDWR, 0o600)
                .unwrap();
        });
        let allowed = [&["statx"], by.to_recognize].concat();
        budget.check("LOOKUP as a user", &allowed, |client, number| {
            client.lookup(ROOT, numbered(number)).unwrap();
        });
        budget.finish();
    }
}

#[test]
fn listing_costs_one_call_for_an_entry_that_is_known() {
    const ENTRIES: u32 = 300;
    let mut budget = Budget::new(&["--inode-file-handles=never"]);
    for number in 0..ENTRIES {
        budget.session.put(&numbered(number), "");
    }
    let client = &mut budget.session.client;
    let fh = client.opendir(ROOT).unwrap().fh;
    let mut list = |plus: bool| {
        let calls = budget.trace.calls(|| {
            let client = &mut budget.session.client;
            let entries = client.read_whole_dir(ROOT, fh, 4096, plus).unwrap();
            assert_eq!(entries.len() as u32, ENTRIES + 2);
        });
        let calls = count(&calls);
        let of = |name| calls.get(name).copied().unwrap_or(0);
        (of("statx"), of("openat"), of("getdents64"))
    };
    let (statx, openat, fetches) = list(true);
    assert!(
        statx <= 2 * ENTRIES && openat <= ENTRIES,
        "{statx} {openat}"
    );
    // Some more than the replies need, and the one that finds the end.
    let replies = (ENTRIES + 2) * 152 / 4096 + 2;
    assert!(
        fetches <= replies,
        "{fetches} fetches for {replies} replies"
    );
    // Files that have just been made are looked at once more.
    list(true);
    let (statx, openat, _) = list(true);
    assert!(statx <= ENTRIES && openat == 0, "{statx} {openat}");
    let (statx, openat, fetches) = list(false);
    assert_eq!((statx, openat), (0, 0));
    assert!(fetches <= 6, "{fetches} fetches for READDIR");
    budget.finish();
}

#[test]
fn a_batch_costs_one_kick_and_one_call() {
    const BATCH: u16 = 32;
    let mut budget = Budget::new(&["--inode-file-handles=never"]);
    budget.session.client.getattr(ROOT).unwrap();
    let calls = budget.trace.calls(|| {
        let client = &mut budget.session.client;
        let body = Encoder::new().u64(0).u64(0);
        for _ in 0..BATCH {
            client.start(&Request::new(op::GETATTR, ROOT, body.clone()));
        }
        client.queue.ask_for_call_after(BATCH - 1);
        client.submit();
        client.queue.wait_for_call_after(BATCH - 1);
    });
    let serving = calls.iter().find(|(_, name)| name == "statx").unwrap().0;
    let of_thread: Vec<_> = calls.into_iter().filter(|call| call.0 == serving).collect();
    let calls = count(&of_thread);
    assert_eq!(calls.get("statx"), Some(&u32::from(BATCH)), "{calls:?}");
    for name in SHARED {
        assert!(calls.get(name).is_none_or(|count| *count <= 1), "{calls:?}");
    }
    for _ in 0..BATCH {
        budget.session.client.finish().1.unwrap();
    }
    budget.finish();
}

/// What the options about privileges add, where they are on.
#[test]
fn privileges_cost_what_they_must() {
    use common::wire::WRITE_KILL_SUIDGID;
    assert!(
        rustix::process::geteuid().is_root(),
        "only root can act as others: run this test as root"
    );
    let mut budget = Budget::new(&[
        "--inode-file-handles=never",
        "--posix-acl",
        "--killpriv-v2",
        "--xattrmap=:ok:all:system.:system.: :map::user.guest.:",
    ]);
    put_files(&budget.session);
    let client = &mut budget.session.client;
    let node = client.lookup(ROOT, "f0").unwrap().nodeid;
    let fh = client.open(node, libc::O_RDWR).unwrap().fh;
    // The renamed capability, and the mode of who may not keep set-id bits.
    let allowed = &["removexattr", "fstat", "pwritev2"];
    budget.check("WRITE of a user", allowed, |client, _| {
        client
            .write_flags(node, fh, 0, b"x", WRITE_KILL_SUIDGID, libc::O_RDWR)
            .unwrap();
    });
    budget.check("GETXATTR", &["getxattr"], |client, _| {
        client.getxattr(node, "user.none", 100).unwrap_err();
    });
    let allowed = &["umask", "openat", "umask", "statx", "openat"];
    budget.check("CREATE with a umask", allowed, |client, number| {
        let name = format!("new{number}");
        client
            .create_masked(ROOT, &name, libc::O_RDWR, 0o666, 0o022)
            .unwrap();
    });
    let allowed = &["openat", "statx", "openat"];
    budget.check("CREATE without", allowed, |client, number| {
        let name = format!("plain{number}");
        client.create(ROOT, &name, libc::O_RDWR, 0o666).unwrap();
    });
    budget.finish();
}

#[test]
fn a_write_that_asks_for_it_is_synchronous() {
    const CACHE: u32 = 1;
    for policy in ["--cache=never", "--cache=metadata", "--cache=auto"] {
        let mut budget = Budget::new(&[policy, "--writeback"]);
        budget.session.put("file", "text");
        let client = &mut budget.session.client;
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        for (open, write, from_cache, expected) in [
            (0, libc::O_DSYNC, 0, "RWF_DSYNC"),
            (0, libc::O_SYNC, 0, "RWF_SYNC"),
            (libc::O_DSYNC, libc::O_SYNC, 0, "RWF_SYNC"),
            // The descriptor does it already, or the guest sends FSYNC.
            (libc::O_DSYNC, libc::O_DSYNC, 0, "0"),
            (libc::O_SYNC, libc::O_SYNC, 0, "0"),
            (0, libc::O_SYNC, CACHE, "0"),
            (0, 0, 0, "0"),
        ] {
            let handle = client.open(node, libc::O_RDWR | open).unwrap().fh;
            let text = budget.trace.text(|| {
                let written = client.write_flags(node, handle, 0, b"text", from_cache, write);
                assert_eq!(written, Ok(4));
            });
            let end = format!(", 0, {expected}");
            let calls: Vec<_> = text
                .lines()
                .filter(|line| line.contains("pwritev2("))
                .collect();
            assert_eq!(calls.len(), 1, "{text}");
            assert!(calls[0].contains(&end), "{open:#x}, {write:#x}: {calls:?}");
            client.release(node, handle).unwrap();
        }
    }
}

/// The results of `syncfs(2)` that strace has seen, and that nothing was opened.
fn synced(text: &str) -> usize {
    assert!(!text.contains("open"), "{text}");
    text.matches("syncfs(").count()
}

#[test]
fn syncfs_reaches_all_mounts_by_descriptors_that_were_open_before() {
    if !rustix::process::geteuid().is_root() {
        return println!("mounting a file system needs root: skips itself");
    }
    for holding in ["--inode-file-handles=never", "--inode-file-handles=prefer"] {
        // A guest that knows of the mount syncs it by itself.
        for (announced, expected) in [("--announce-submounts", 1), ("--no-announce-submounts", 2)] {
            let mut budget = Budget::new(&[holding, announced]);
            let below = budget.session.path("below");
            let _mounted = Mounted::new(&["-t", "tmpfs", "below"], &below);
            let client = &mut budget.session.client;
            client.lookup(ROOT, "below").unwrap();
            let text = budget.trace.text(|| client.syncfs(ROOT).unwrap());
            assert_eq!(synced(&text), expected, "{holding} {announced}: {text}");
        }
    }
}

#[test]
fn a_state_is_saved_once_other_hosts_can_read_what_was_written() {
    if !rustix::process::geteuid().is_root() {
        return println!("mounting a file system needs root: skips itself");
    }
    for (kind, expected) in [("fuse", 1), ("ext4", 0)] {
        let host = HostFs::new(kind);
        let mut session = Session::over(host.share(), &[]);
        let (entry, open) = session
            .client
            .create(ROOT, "file", libc::O_RDWR, 0o600)
            .unwrap();
        session
            .client
            .write(entry.nodeid, open.fh, 0, b"text")
            .unwrap();
        let mut trace = Trace::of(&session);
        session.vmm.stop_queue(&session.client.queue);
        session.vmm.stop_queue(&session.hiprio);
        let text = trace.text(|| assert!(session.vmm.save_state().is_some()));
        assert_eq!(text.matches("syncfs(").count(), expected, "{kind}: {text}");
    }
}
