//! Every FUSE operation and its errors, seen from the guest and from the host.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::process::geteuid;

use common::frontend::Config;
use common::fuse_client::{Answer, Client, Request, SetAttr, groups_extension, read_in, write_in};
use common::session::Session;
use common::wire::{
    Dirent, Encoder, Entry, FATTR_ATIME_NOW, FATTR_MTIME_NOW, FSYNC_FDATASYNC, ROOT, dirents, init,
    op,
};

/// Chosen by the daemon for a node that the guest does not have.
const NO_SUCH_NODE: [i32; 3] = [libc::ESTALE, libc::ENOENT, libc::EBADF];

const NOBODY_HAS: u64 = 0xdead_beef;

#[track_caller]
fn assert_unknown<T: std::fmt::Debug>(answer: Answer<T>) {
    let errno = answer.unwrap_err();
    assert!(
        NO_SUCH_NODE.contains(&errno),
        "errno {errno} for an unknown node"
    );
}

/// Changing the user of a request needs a daemon that is root.
fn is_root(test: &str) -> bool {
    if !geteuid().is_root() {
        println!("{test} skips itself: it needs root");
        return false;
    }
    true
}

fn as_user<T>(client: &mut Client, uid: u32, gid: u32, act: impl FnOnce(&mut Client) -> T) -> T {
    let old = (client.uid, client.gid);
    (client.uid, client.gid) = (uid, gid);
    let result = act(client);
    (client.uid, client.gid) = old;
    result
}

// ---- INIT and DESTROY

#[test]
fn init_takes_what_it_uses_and_nothing_that_was_not_offered() {
    let mut session = Session::before_init(&[], &Config::default());
    let out = session.client.init();
    assert_eq!(out.major, 7);
    assert!((27..=41).contains(&out.minor), "minor {}", out.minor);
    assert_eq!(out.flags & !init::LINUX, 0, "flags that were not offered");
    let always = init::ASYNC_READ
        | init::BIG_WRITES
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES
        | init::DO_READDIRPLUS
        | init::READDIRPLUS_AUTO
        | init::SUBMOUNTS;
    assert!(out.has(always), "missing {:#x}", always & !out.flags);
    let only_by_option = init::WRITEBACK_CACHE
        | init::POSIX_ACL
        | init::HANDLE_KILLPRIV_V2
        | init::SECURITY_CTX
        | init::DIRECT_IO_ALLOW_MMAP;
    assert_eq!(out.flags & only_by_option, 0);
    let never =
        init::POSIX_LOCKS | init::FLOCK_LOCKS | init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT;
    assert_eq!(out.flags & never, 0);
    assert!(out.max_write >= 1 << 20);
    assert!(out.max_pages >= 256);
    assert_eq!(out.time_gran, 1);
    session.finish();
}

#[test]
fn init_offers_only_what_an_old_guest_knows() {
    for (minor, flags) in [
        (27, 0),
        (31, init::MAX_PAGES),
        (36, init::INIT_EXT),
        (38, 0),
        (99, init::LINUX),
    ] {
        let mut session = Session::before_init(&[], &Config::default());
        let out = session.client.init_with(7, minor, flags).unwrap();
        assert_eq!(out.flags & !flags, 0, "guest minor {minor}");
        session.put("f", "x");
        session.client.walk("f").unwrap();
        session.finish();
    }
}

#[test]
fn init_from_another_major_is_answered_with_ours() {
    let mut session = Session::before_init(&[], &Config::default());
    let out = session.client.init_with(8, 0, init::LINUX).unwrap();
    assert_eq!(out.major, 7);
    // The guest tries again with that.
    session.client.init();
    session.client.getattr(ROOT).unwrap();
    session.finish();
}

#[test]
fn init_from_a_guest_that_is_too_old_is_refused() {
    for (major, minor) in [(6, 0), (7, 26)] {
        let mut session = Session::before_init(&[], &Config::default());
        let answer = session.client.init_with(major, minor, 0);
        assert_eq!(answer.unwrap_err(), libc::EPROTO);
        session.client.init();
        session.finish();
    }
}

#[test]
fn destroy_ends_the_session_and_the_next_init_starts_one() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let fds = session.daemon.open_fds();
    let entry = session.client.walk("f").unwrap();
    let open = session.client.open(entry.nodeid, libc::O_RDONLY).unwrap();
    session.client.destroy().unwrap();
    session.client.init();
    assert!(session.client.read(entry.nodeid, open.fh, 0, 4).is_err());
    let entry = session.client.walk("f").unwrap();
    session.client.forget(entry.nodeid, 1);
    assert!(
        session.daemon.open_fds() <= fds + 1,
        "descriptors of the old session are closed"
    );
    session.finish();
}

// ---- LOOKUP and FORGET

#[test]
fn lookup_gives_the_attributes_of_the_host() {
    let mut session = Session::new(&[]);
    session.put("f", vec![7; 5000]);
    fs::set_permissions(session.path("f"), fs::Permissions::from_mode(0o4751)).unwrap();
    let entry = session.client.lookup(ROOT, "f").unwrap();
    let host = session.stat("f");
    assert!(entry.nodeid > ROOT);
    assert_eq!(entry.attr.ino, host.ino());
    assert_eq!(entry.attr.size, 5000);
    assert_eq!(entry.attr.blocks, host.blocks());
    assert_eq!(entry.attr.mode, host.mode());
    assert_eq!(u64::from(entry.attr.nlink), host.nlink());
    // Whoever runs the test is the guest's root.
    assert_eq!((entry.attr.uid, entry.attr.gid), (0, 0));
    assert_eq!(u64::from(entry.attr.blksize), host.blksize());
    assert_eq!(entry.attr.mtime, host.mtime().cast_unsigned());
    assert_eq!(i64::from(entry.attr.mtimensec), host.mtime_nsec());
    assert_eq!(i64::from(entry.attr.ctimensec), host.ctime_nsec());
    assert_eq!(entry.attr.flags, 0);
    // The defaults of --cache=auto.
    assert_eq!((entry.entry_valid, entry.attr_valid), (1, 1));
    assert_eq!((entry.entry_valid_nsec, entry.attr_valid_nsec), (0, 0));
    session.finish();
}

#[test]
fn lookup_of_nothing_is_enoent_and_below_a_file_enotdir() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    assert_eq!(session.client.lookup(ROOT, "missing"), Err(libc::ENOENT));
    let file = session.client.lookup(ROOT, "f").unwrap();
    assert_eq!(session.client.lookup(file.nodeid, "x"), Err(libc::ENOTDIR));
    session.finish();
}

#[test]
fn one_file_is_one_node_by_all_its_names() {
    let mut session = Session::new(&[]);
    session.put("a", "");
    fs::create_dir(session.path("d")).unwrap();
    fs::hard_link(session.path("a"), session.path("d/b")).unwrap();
    let a = session.client.walk("a").unwrap();
    let b = session.client.walk("d/b").unwrap();
    assert_eq!((a.nodeid, a.generation), (b.nodeid, b.generation));
    assert_eq!(b.attr.nlink, 2);
    session.finish();
}

#[test]
fn names_are_bytes() {
    let mut session = Session::new(&[]);
    let name = OsStr::from_bytes(b"\xff\xfe caf\xe9 \n\t*");
    session.put("x", "");
    fs::rename(session.path("x"), session.path(name)).unwrap();
    session.client.lookup(ROOT, name).unwrap();
    let longest = "n".repeat(255);
    session.put(&longest, "");
    session.client.lookup(ROOT, &longest).unwrap();
    session.finish();
}

#[test]
fn a_link_is_looked_up_as_itself() {
    let mut session = Session::new(&[]);
    symlink("/etc/passwd", session.path("link")).unwrap();
    symlink("nowhere", session.path("dangling")).unwrap();
    for (name, target) in [("link", "/etc/passwd"), ("dangling", "nowhere")] {
        let entry = session.client.lookup(ROOT, name).unwrap();
        assert_eq!(entry.attr.kind(), libc::S_IFLNK);
        assert_eq!(
            session.client.readlink(entry.nodeid).unwrap(),
            target.as_bytes()
        );
        assert!(session.client.open(entry.nodeid, libc::O_RDONLY).is_err());
        assert!(session.client.opendir(entry.nodeid).is_err());
        assert_eq!(session.client.lookup(entry.nodeid, "x"), Err(libc::ENOTDIR));
    }
    session.finish();
}

#[test]
fn a_node_lives_as_long_as_its_lookups_are_not_forgotten() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    let client = &mut session.client;
    let node = client.lookup(ROOT, "f").unwrap().nodeid;
    client.lookup(ROOT, "f").unwrap();
    client.lookup(ROOT, "f").unwrap();
    client.forget(node, 2);
    client.getattr(node).unwrap();
    client.forget(node, 1);
    assert_unknown(client.getattr(node));
    let again = client.lookup(ROOT, "f").unwrap();
    client.getattr(again.nodeid).unwrap();
    session.finish();
}

#[test]
fn every_new_name_counts_as_one_lookup() {
    let mut session = Session::new(&[]);
    let client = &mut session.client;
    let mut nodes = vec![
        client.mkdir(ROOT, "d", 0o755, 0).unwrap(),
        client
            .mknod(ROOT, "n", libc::S_IFREG | 0o644, 0, 0)
            .unwrap(),
        client.symlink(ROOT, "s", "target").unwrap(),
    ];
    let (entry, open) = client.create(ROOT, "c", libc::O_RDWR, 0o644).unwrap();
    client.release(entry.nodeid, open.fh).unwrap();
    nodes.push(entry);
    for entry in &nodes {
        client.getattr(entry.nodeid).unwrap();
        client.forget(entry.nodeid, 1);
        assert_unknown(client.getattr(entry.nodeid));
    }
    // LINK counts for the node it was given.
    let node = client.lookup(ROOT, "c").unwrap().nodeid;
    assert_eq!(client.link(node, ROOT, "c2").unwrap().nodeid, node);
    client.forget(node, 1);
    client.getattr(node).unwrap();
    client.forget(node, 1);
    assert_unknown(client.getattr(node));
    session.finish();
}

#[test]
fn forgetting_too_much_harms_nobody() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    session.put("g", "");
    let client = &mut session.client;
    let f = client.lookup(ROOT, "f").unwrap().nodeid;
    let g = client.lookup(ROOT, "g").unwrap().nodeid;
    client.forget(f, u64::MAX);
    client.forget(f, 1);
    client.forget(ROOT, 1);
    client.forget(ROOT, u64::MAX);
    client.forget(0, 1);
    client.forget(NOBODY_HAS, 1);
    client.batch_forget(&[(ROOT, 5), (f, 7), (0, 0), (NOBODY_HAS, u64::MAX)]);
    client.batch_forget(&[]);
    client.getattr(ROOT).unwrap();
    client.getattr(g).unwrap();
    client.lookup(ROOT, "f").unwrap();
    session.finish();
}

#[test]
fn batch_forget_forgets_each_of_its_nodes() {
    let mut session = Session::new(&[]);
    let fds = session.daemon.open_fds();
    let names: Vec<_> = (0..300).map(|index| format!("f{index}")).collect();
    for name in &names {
        session.put(name, "");
    }
    let client = &mut session.client;
    let nodes: Vec<_> = names
        .iter()
        .map(|name| client.lookup(ROOT, name).unwrap().nodeid)
        .collect();
    let counted: Vec<_> = nodes.iter().map(|&node| (node, 1)).collect();
    client.batch_forget(&counted);
    for &node in &nodes {
        assert_unknown(client.getattr(node));
    }
    session.daemon.expect_open_fds(fds);
    session.finish();
}

#[test]
fn an_open_file_outlives_its_name_and_its_lookups() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let client = &mut session.client;
    let entry = client.lookup(ROOT, "f").unwrap();
    let open = client.open(entry.nodeid, libc::O_RDWR).unwrap();
    client.unlink(ROOT, "f").unwrap();
    assert_eq!(client.getattr(entry.nodeid).unwrap().attr.nlink, 0);
    assert_eq!(
        client.getattr_fh(entry.nodeid, open.fh).unwrap().attr.nlink,
        0
    );
    assert_eq!(client.read(entry.nodeid, open.fh, 0, 10).unwrap(), b"text");
    assert_eq!(client.write(entry.nodeid, open.fh, 4, b" more"), Ok(5));
    assert_eq!(
        client.read(entry.nodeid, open.fh, 0, 10).unwrap(),
        b"text more"
    );
    client.release(entry.nodeid, open.fh).unwrap();
    client.forget(entry.nodeid, 1);
    assert_eq!(client.lookup(ROOT, "f"), Err(libc::ENOENT));
    session.finish();
}

// ---- names that are none

/// Each operation that takes a name, given `name`.
fn name_operations(client: &mut Client, node: u64, name: &[u8]) -> Vec<(&'static str, Answer<()>)> {
    let named = |encoder: Encoder| encoder.bytes(name).bytes(&[0]);
    let e = Encoder::new;
    let requests = [
        ("LOOKUP", Request::new(op::LOOKUP, ROOT, named(e()))),
        (
            "MKDIR",
            Request::new(op::MKDIR, ROOT, named(e().u32(0o755).u32(0))),
        ),
        (
            "MKNOD",
            Request::new(
                op::MKNOD,
                ROOT,
                named(e().u32(libc::S_IFREG | 0o644).u32(0).u64(0)),
            ),
        ),
        (
            "SYMLINK",
            Request::new(op::SYMLINK, ROOT, named(e()).name("target")),
        ),
        (
            "CREATE",
            Request::new(
                op::CREATE,
                ROOT,
                named(e().u32(libc::O_RDWR as u32).u32(0o644).u64(0)),
            ),
        ),
        ("LINK", Request::new(op::LINK, ROOT, named(e().u64(node)))),
        ("UNLINK", Request::new(op::UNLINK, ROOT, named(e()))),
        ("RMDIR", Request::new(op::RMDIR, ROOT, named(e()))),
        (
            "RENAME from",
            Request::new(op::RENAME, ROOT, named(e().u64(ROOT)).name("new")),
        ),
        (
            "RENAME to",
            Request::new(op::RENAME, ROOT, named(e().u64(ROOT).name("f"))),
        ),
        (
            "RENAME2 from",
            Request::new(op::RENAME2, ROOT, named(e().u64(ROOT).u64(0)).name("new")),
        ),
        (
            "RENAME2 to",
            Request::new(op::RENAME2, ROOT, named(e().u64(ROOT).u64(0).name("f"))),
        ),
    ];
    let mut answer = |request: &Request| client.call(request).map(drop);
    requests
        .iter()
        .map(|(name, request)| (*name, answer(request)))
        .collect()
}

#[test]
fn names_that_are_no_names_are_refused_everywhere() {
    let mut session = Session::new(&[]);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "").unwrap();
    fs::create_dir(session.path("sub")).unwrap();
    session.put("f", "");
    let node = session.client.walk("f").unwrap().nodeid;
    let up = format!(
        "../{}/secret",
        outside.path().file_name().unwrap().to_str().unwrap()
    );
    let absolute = outside.path().join("new");
    let bad: Vec<&[u8]> = vec![
        b"",
        b".",
        b"..",
        b"/",
        b"a/b",
        b"sub/x",
        b"x/",
        b"/x",
        b"../x",
        up.as_bytes(),
        absolute.as_os_str().as_bytes(),
    ];
    for name in bad {
        for (operation, answer) in name_operations(&mut session.client, node, name) {
            let what = format!("{operation} of {:?}: {answer:?}", OsStr::from_bytes(name));
            if operation == "LOOKUP" && (name == b"." || name == b"..") {
                // For a guest that exports the file system; never above the root.
                assert!(matches!(answer, Ok(()) | Err(libc::EINVAL)), "{what}");
            } else {
                assert_eq!(answer, Err(libc::EINVAL), "{what}");
            }
        }
    }
    for name in [vec![b'n'; 256], vec![b'n'; 4000], vec![b'n'; 5000]] {
        for (operation, answer) in name_operations(&mut session.client, node, &name) {
            assert_eq!(
                answer,
                Err(libc::ENAMETOOLONG),
                "{operation} of {} bytes",
                name.len()
            );
        }
    }
    let listing = |path| {
        let names = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names.collect::<BTreeSet<_>>()
    };
    assert_eq!(
        listing(session.path("")),
        ["f", "sub"].map(OsString::from).into()
    );
    assert_eq!(listing(session.path("sub")), BTreeSet::new());
    assert_eq!(
        listing(outside.path().into()),
        ["secret"].map(OsString::from).into()
    );
    session.finish();
}

#[test]
fn dot_dot_never_leads_above_the_root() {
    let mut session = Session::new(&[]);
    let root = session.client.getattr(ROOT).unwrap().attr;
    for name in [".", ".."] {
        if let Ok(entry) = session.client.lookup(ROOT, name) {
            assert_eq!(entry.nodeid, ROOT);
            assert_eq!(entry.attr.ino, root.ino);
        }
    }
    let dir = session.client.opendir(ROOT).unwrap();
    for plus in [false, true] {
        let all = session
            .client
            .read_whole_dir(ROOT, dir.fh, 4096, plus)
            .unwrap();
        for dirent in all
            .iter()
            .filter(|dirent| dirent.name() == ".." || dirent.name() == ".")
        {
            // No look at what the host has above.
            assert!(dirent.entry.is_none_or(|entry| entry.nodeid == 0));
        }
    }
    session.finish();
}

#[test]
fn names_without_an_end_are_refused() {
    let mut session = Session::new(&[]);
    let e = Encoder::new;
    for request in [
        Request::new(op::LOOKUP, ROOT, e().bytes(b"abc")),
        Request::new(op::LOOKUP, ROOT, e()),
        Request::new(op::MKDIR, ROOT, e().u64(0o755).bytes(b"abc")),
        Request::new(op::SYMLINK, ROOT, e().name("abc").bytes(b"target")),
        Request::new(op::SYMLINK, ROOT, e().name("abc")),
        Request::new(op::UNLINK, ROOT, e().bytes(b"abc")),
        Request::new(op::RENAME, ROOT, e().u64(ROOT).name("a").bytes(b"b")),
        Request::new(op::RENAME, ROOT, e().u64(ROOT).name("a")),
    ] {
        assert_eq!(
            session.client.call(&request),
            Err(libc::EINVAL),
            "{request:?}"
        );
    }
    assert_eq!(fs::read_dir(session.path("")).unwrap().count(), 0);
    session.finish();
}

// ---- unknown nodes and handles

#[test]
fn unknown_nodes_are_refused_everywhere() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    let f = session.client.walk("f").unwrap().nodeid;
    for node in [0, NOBODY_HAS, u64::MAX] {
        let c = &mut session.client;
        assert_unknown(c.lookup(node, "f"));
        assert_unknown(c.getattr(node));
        assert_unknown(c.setattr(
            node,
            &SetAttr {
                mode: Some(0o600),
                ..SetAttr::default()
            },
        ));
        assert_unknown(c.readlink(node));
        assert_unknown(c.symlink(node, "a", "b"));
        assert_unknown(c.mknod(node, "a", libc::S_IFREG | 0o600, 0, 0));
        assert_unknown(c.mkdir(node, "a", 0o700, 0));
        assert_unknown(c.unlink(node, "f"));
        assert_unknown(c.rmdir(node, "f"));
        assert_unknown(c.rename((node, "f"), (ROOT, "g")));
        assert_unknown(c.rename((ROOT, "f"), (node, "g")));
        assert_unknown(c.rename2((node, "f"), (ROOT, "g"), 0));
        assert_unknown(c.link(node, ROOT, "g"));
        assert_unknown(c.link(f, node, "g"));
        assert_unknown(c.open(node, libc::O_RDONLY));
        assert_unknown(c.opendir(node));
        assert_unknown(c.create(node, "a", libc::O_RDWR, 0o600));
        assert_unknown(c.access(node, 0));
        assert_unknown(c.statfs(node));
        assert_unknown(c.syncfs(node));
    }
    session.finish();
}

/// Each operation that takes a handle.
fn handle_operations(c: &mut Client, node: u64, fh: u64) -> Vec<(&'static str, Answer<()>)> {
    let size = SetAttr {
        fh: Some(fh),
        size: Some(0),
        ..SetAttr::default()
    };
    vec![
        ("READ", c.read(node, fh, 0, 10).map(drop)),
        ("WRITE", c.write(node, fh, 0, b"x").map(drop)),
        ("FLUSH", c.flush(node, fh)),
        ("FSYNC", c.fsync(node, fh, 0)),
        ("GETATTR", c.getattr_fh(node, fh).map(drop)),
        ("SETATTR", c.setattr(node, &size).map(drop)),
        (
            "LSEEK",
            c.lseek(node, fh, 0, libc::SEEK_DATA as u32).map(drop),
        ),
        ("FALLOCATE", c.fallocate(node, fh, 0, 100, 0)),
        (
            "COPY_FILE_RANGE",
            c.copy_file_range((node, fh, 0), (node, fh, 50), 1, 0)
                .map(drop),
        ),
        ("READDIR", c.readdir(node, fh, 0, 4096).map(drop)),
        ("READDIRPLUS", c.readdirplus(node, fh, 0, 4096).map(drop)),
        ("FSYNCDIR", c.fsyncdir(node, fh, 0)),
        ("RELEASE", c.release(node, fh)),
        ("RELEASEDIR", c.releasedir(node, fh)),
    ]
}

#[test]
fn unknown_handles_are_refused_everywhere() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let node = session.client.walk("f").unwrap().nodeid;
    for fh in [0x1234_5678, u64::MAX] {
        for (operation, answer) in handle_operations(&mut session.client, node, fh) {
            assert_eq!(answer, Err(libc::EBADF), "{operation} with handle {fh:#x}");
        }
    }
    assert_eq!(session.get("f"), b"text");
    session.finish();
}

#[test]
fn a_handle_of_another_node_is_refused_everywhere() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    session.put("g", "other");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let g = c.walk("g").unwrap().nodeid;
    let open = c.open(f, libc::O_RDWR).unwrap();
    for (operation, answer) in handle_operations(c, g, open.fh) {
        assert_eq!(answer, Err(libc::EBADF), "{operation}");
    }
    let dir = c.opendir(ROOT).unwrap();
    for (operation, answer) in handle_operations(c, f, dir.fh) {
        assert_eq!(answer, Err(libc::EBADF), "{operation}");
    }
    // Both handles still work where they belong.
    assert_eq!(c.read(f, open.fh, 0, 10).unwrap(), b"text");
    assert_eq!(c.readdir(ROOT, dir.fh, 0, 4096).unwrap().len(), 4);
    session.finish();
}

#[test]
fn a_handle_is_gone_after_its_release() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let open = c.open(f, libc::O_RDONLY).unwrap();
    c.release(f, open.fh).unwrap();
    assert_eq!(c.release(f, open.fh), Err(libc::EBADF));
    assert_eq!(c.read(f, open.fh, 0, 1), Err(libc::EBADF));
    let dir = c.opendir(ROOT).unwrap();
    c.releasedir(ROOT, dir.fh).unwrap();
    assert_eq!(c.readdir(ROOT, dir.fh, 0, 4096), Err(libc::EBADF));
    session.finish();
}

#[test]
fn opening_and_releasing_leaves_no_descriptor() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let f = session.client.walk("f").unwrap().nodeid;
    let fds = session.daemon.open_fds();
    for _ in 0..100 {
        let open = session.client.open(f, libc::O_RDWR).unwrap();
        session.client.release(f, open.fh).unwrap();
        let dir = session.client.opendir(ROOT).unwrap();
        session.client.releasedir(ROOT, dir.fh).unwrap();
        session.client.lookup(ROOT, "missing").unwrap_err();
        session.client.mkdir(ROOT, "f", 0o755, 0).unwrap_err();
        session
            .client
            .create(ROOT, "f", libc::O_EXCL | libc::O_RDWR, 0o644)
            .unwrap_err();
    }
    session.daemon.expect_open_fds(fds);
    session.finish();
}

// ---- making and removing

#[test]
fn creates_each_kind_of_file() {
    let mut session = Session::new(&[]);
    let c = &mut session.client;
    c.mkdir(ROOT, "dir", 0o750, 0).unwrap();
    c.mknod(ROOT, "file", libc::S_IFREG | 0o640, 0, 0).unwrap();
    c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o600, 0, 0).unwrap();
    c.mknod(ROOT, "socket", libc::S_IFSOCK | 0o600, 0, 0)
        .unwrap();
    let link = c.symlink(ROOT, "link", "../any/where").unwrap();
    assert_eq!(c.readlink(link.nodeid).unwrap(), b"../any/where");
    assert!(session.stat("dir").is_dir());
    assert_eq!(session.perm("dir"), 0o750);
    assert!(session.stat("file").is_file());
    assert_eq!(session.perm("file"), 0o640);
    assert!(session.stat("fifo").file_type().is_fifo());
    assert!(session.stat("socket").file_type().is_socket());
    assert_eq!(
        fs::read_link(session.path("link")).unwrap(),
        OsStr::new("../any/where")
    );
    if is_root("part of creates_each_kind_of_file") {
        let null = libc::makedev(1, 3);
        // The guest's encoding: minor 0-7, major 8-19.
        let entry = session
            .client
            .mknod(ROOT, "null", libc::S_IFCHR | 0o666, 1 << 8 | 3, 0)
            .unwrap();
        assert_eq!(session.stat("null").rdev(), null);
        assert_eq!(entry.attr.rdev, 1 << 8 | 3);
        let high = session.client.mknod(
            ROOT,
            "high",
            libc::S_IFBLK | 0o600,
            259 << 8 | 0x0010_0005,
            0,
        );
        assert_eq!(session.stat("high").rdev(), libc::makedev(259, 0x105));
        assert_eq!(high.unwrap().attr.rdev, 259 << 8 | 0x0010_0005);
    }
    session.finish();
}

#[test]
fn a_name_that_exists_is_not_made_again() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    assert_eq!(c.mkdir(ROOT, "f", 0o755, 0), Err(libc::EEXIST));
    assert_eq!(
        c.mknod(ROOT, "f", libc::S_IFREG | 0o644, 0, 0),
        Err(libc::EEXIST)
    );
    assert_eq!(c.symlink(ROOT, "f", "x"), Err(libc::EEXIST));
    assert_eq!(c.link(f, ROOT, "f"), Err(libc::EEXIST));
    assert_eq!(
        c.create(ROOT, "f", libc::O_RDWR | libc::O_EXCL, 0o644),
        Err(libc::EEXIST)
    );
    assert_eq!(c.mkdir(f, "x", 0o755, 0), Err(libc::ENOTDIR));
    assert_eq!(session.get("f"), b"text");
    session.finish();
}

#[test]
fn create_of_an_existing_file_opens_it() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let c = &mut session.client;
    let known = c.walk("f").unwrap();
    let (entry, open) = c.create(ROOT, "f", libc::O_RDWR, 0o600).unwrap();
    assert_eq!(entry.nodeid, known.nodeid);
    assert_eq!(c.read(entry.nodeid, open.fh, 0, 10).unwrap(), b"text");
    let (entry, open) = c
        .create(ROOT, "f", libc::O_RDWR | libc::O_TRUNC, 0o600)
        .unwrap();
    assert_eq!(entry.attr.size, 0);
    assert_eq!(c.read(entry.nodeid, open.fh, 0, 10).unwrap(), b"");
    session.finish();
}

#[test]
fn create_does_not_open_what_is_not_a_file() {
    let mut session = Session::new(&[]);
    fs::create_dir(session.path("d")).unwrap();
    symlink("/etc/passwd", session.path("link")).unwrap();
    let c = &mut session.client;
    c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o600, 0, 0).unwrap();
    for flags in [libc::O_RDWR, libc::O_RDONLY, libc::O_WRONLY] {
        assert!(c.create(ROOT, "d", flags, 0o600).is_err());
        assert!(c.create(ROOT, "link", flags, 0o600).is_err());
        assert!(c.create(ROOT, "fifo", flags, 0o600).is_err());
    }
    session.finish();
}

#[test]
fn new_files_belong_to_the_user_of_the_request() {
    if !is_root("new_files_belong_to_the_user_of_the_request") {
        return;
    }
    for args in [&[][..], &["--thread-pool-size", "2"]] {
        let mut session = Session::new(args);
        let c = &mut session.client;
        for (uid, gid, prefix) in [
            (1000, 1000, "user"),
            (0, 0, "root"),
            (1000, 2000, "group"),
            (0, 3000, "rootgroup"),
        ] {
            as_user(c, uid, gid, |c| {
                let (entry, open) = c
                    .create(ROOT, &format!("{prefix}-create"), libc::O_RDWR, 0o644)
                    .unwrap();
                assert_eq!((entry.attr.uid, entry.attr.gid), (uid, gid), "{prefix}");
                assert_eq!(c.write(entry.nodeid, open.fh, 0, b"x"), Ok(1));
                c.mkdir(ROOT, &format!("{prefix}-mkdir"), 0o755, 0).unwrap();
                c.mknod(
                    ROOT,
                    &format!("{prefix}-mknod"),
                    libc::S_IFREG | 0o644,
                    0,
                    0,
                )
                .unwrap();
                c.symlink(ROOT, &format!("{prefix}-symlink"), "x").unwrap();
            });
        }
        for (uid, gid, prefix) in [
            (1000, 1000, "user"),
            (0, 0, "root"),
            (1000, 2000, "group"),
            (0, 3000, "rootgroup"),
        ] {
            for kind in ["create", "mkdir", "mknod", "symlink"] {
                let host = session.stat(&format!("{prefix}-{kind}"));
                assert_eq!((host.uid(), host.gid()), (uid, gid), "{prefix}-{kind}");
            }
        }
        session.finish();
    }
}

#[test]
fn the_mode_is_the_guests_and_not_masked_by_the_host() {
    let mut session = Session::new(&[]);
    let c = &mut session.client;
    c.create_masked(ROOT, "open", libc::O_RDWR, 0o777, 0)
        .unwrap();
    c.mkdir(ROOT, "opendir", 0o777, 0).unwrap();
    c.mknod(ROOT, "opennode", libc::S_IFREG | 0o666, 0, 0)
        .unwrap();
    // A Linux guest has taken the mask off the mode and sends it as well.
    c.create_masked(ROOT, "masked", libc::O_RDWR, 0o640, 0o027)
        .unwrap();
    c.mkdir(ROOT, "maskeddir", 0o750, 0o027).unwrap();
    for (name, mode) in [
        ("open", 0o777),
        ("opendir", 0o777),
        ("opennode", 0o666),
        ("masked", 0o640),
        ("maskeddir", 0o750),
    ] {
        assert_eq!(session.perm(name), mode, "{name}");
    }
    session.finish();
}

#[test]
fn set_gid_folders_pass_on_their_group() {
    if !is_root("set_gid_folders_pass_on_their_group") {
        return;
    }
    let mut session = Session::new(&[]);
    fs::create_dir(session.path("team")).unwrap();
    std::os::unix::fs::chown(session.path("team"), Some(0), Some(2000)).unwrap();
    fs::set_permissions(session.path("team"), fs::Permissions::from_mode(0o2777)).unwrap();
    let c = &mut session.client;
    let team = c.walk("team").unwrap().nodeid;
    as_user(c, 1000, 1000, |c| {
        c.create(team, "file", libc::O_RDWR, 0o644).unwrap();
        c.mkdir(team, "dir", 0o755, 0).unwrap();
        c.create(team, "sgid", libc::O_RDWR, 0o2755).unwrap();
        c.mknod(team, "sgidnode", libc::S_IFREG | 0o2755, 0, 0)
            .unwrap();
    });
    for name in ["team/file", "team/dir", "team/sgid", "team/sgidnode"] {
        let host = session.stat(name);
        assert_eq!((host.uid(), host.gid()), (1000, 2000), "{name}");
    }
    assert_eq!(session.perm("team/file"), 0o644);
    assert_eq!(session.perm("team/dir"), 0o2755);
    // The user is not in the group, so may not lend it to a program.
    assert_eq!(session.perm("team/sgid"), 0o755);
    assert_eq!(session.perm("team/sgidnode"), 0o755);
    session.finish();
}

#[test]
fn a_member_of_a_set_gid_folders_group_may_lend_it() {
    if !is_root("a_member_of_a_set_gid_folders_group_may_lend_it") {
        return;
    }
    for args in [&[][..], &["--posix-acl"]] {
        let mut session = Session::new(args);
        fs::create_dir(session.path("team")).unwrap();
        std::os::unix::fs::chown(session.path("team"), Some(0), Some(3000)).unwrap();
        fs::set_permissions(session.path("team"), fs::Permissions::from_mode(0o2777)).unwrap();
        let c = &mut session.client;
        let team = c.walk("team").unwrap().nodeid;
        let make = |name: &str, groups: &[u32]| {
            let mode = libc::S_IFREG | 0o2775;
            let body = Encoder::new().u32(mode).u32(0).u32(0).u32(0).name(name);
            Request::new(op::MKNOD, team, body).extensions(groups_extension(groups))
        };
        // Members come last and first: neither leaves anything to the next one.
        for (name, uid, groups, perm) in [
            ("member", 1000, &[3000][..], 0o2775),
            ("stranger", 1000, &[4000], 0o775),
            ("nobody", 1000, &[], 0o775),
            ("root", 0, &[], 0o2775),
            ("another", 1001, &[], 0o775),
        ] {
            let c = &mut session.client;
            as_user(c, uid, uid, |c| c.call(&make(name, groups)).unwrap());
            let host = session.stat(&format!("team/{name}"));
            assert_eq!((host.uid(), host.gid()), (uid, 3000), "{name}");
            assert_eq!(session.perm(&format!("team/{name}")), perm, "{name}");
        }
        session.finish();
    }
}

#[test]
fn special_bits_of_new_folders_stay() {
    let mut session = Session::new(&[]);
    session.client.mkdir(ROOT, "tmp", 0o1777, 0).unwrap();
    assert_eq!(session.perm("tmp"), 0o1777);
    session.finish();
}

#[test]
fn supplementary_groups_of_a_request_are_used_and_not_kept() {
    if !is_root("supplementary_groups_of_a_request_are_used_and_not_kept") {
        return;
    }
    let mut session = Session::new(&[]);
    if !session.init.unwrap().has(init::CREATE_SUPP_GROUP) {
        println!("skips itself: the daemon does not take supplementary groups");
        return;
    }
    fs::create_dir(session.path("team")).unwrap();
    std::os::unix::fs::chown(session.path("team"), Some(0), Some(3000)).unwrap();
    fs::set_permissions(session.path("team"), fs::Permissions::from_mode(0o2770)).unwrap();
    let c = &mut session.client;
    let team = c.walk("team").unwrap().nodeid;
    // A set-gid bit stays for who is in the directory's group.
    let mknod = |name: &str, groups: &[u32]| {
        let mode = libc::S_IFREG | 0o2775;
        let body = Encoder::new().u32(mode).u32(0).u32(0).u32(0).name(name);
        Request::new(op::MKNOD, team, body).extensions(groups_extension(groups))
    };
    as_user(c, 1000, 1000, |c| {
        c.call(&mknod("member", &[3000])).unwrap();
        c.call(&mknod("stranger", &[4000])).unwrap();
        c.call(&mknod("again", &[3000])).unwrap();
        c.call(&mknod("another", &[4000])).unwrap();
    });
    // A request of root with groups must not leave them to the next one.
    c.call(&mknod("root", &[3000])).unwrap();
    as_user(c, 1000, 1000, |c| {
        c.call(&mknod("last", &[4000])).unwrap();
    });
    for (name, expected) in [
        ("member", 0o2775),
        ("stranger", 0o775),
        ("again", 0o2775),
        ("another", 0o775),
        ("root", 0o2775),
        ("last", 0o775),
    ] {
        assert_eq!(session.perm(&format!("team/{name}")), expected, "{name}");
    }
    session.finish();
}

#[test]
fn unlink_and_rmdir_remove_and_complain() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    fs::create_dir_all(session.path("full/sub")).unwrap();
    let c = &mut session.client;
    assert_eq!(c.unlink(ROOT, "missing"), Err(libc::ENOENT));
    assert_eq!(c.rmdir(ROOT, "missing"), Err(libc::ENOENT));
    assert_eq!(c.unlink(ROOT, "full"), Err(libc::EISDIR));
    assert_eq!(c.rmdir(ROOT, "f"), Err(libc::ENOTDIR));
    assert_eq!(c.rmdir(ROOT, "full"), Err(libc::ENOTEMPTY));
    let full = c.walk("full").unwrap().nodeid;
    c.rmdir(full, "sub").unwrap();
    c.rmdir(ROOT, "full").unwrap();
    c.unlink(ROOT, "f").unwrap();
    assert!(!session.exists("f"));
    assert!(!session.exists("full"));
    session.finish();
}

#[test]
fn rename_moves_replaces_and_complains() {
    let mut session = Session::new(&[]);
    session.put("a", "A");
    session.put("b", "B");
    fs::create_dir_all(session.path("d/sub")).unwrap();
    fs::create_dir(session.path("empty")).unwrap();
    let c = &mut session.client;
    let d = c.walk("d").unwrap().nodeid;
    let sub = c.walk("d/sub").unwrap().nodeid;
    let a = c.walk("a").unwrap().nodeid;
    assert_eq!(c.rename((ROOT, "missing"), (ROOT, "x")), Err(libc::ENOENT));
    assert_eq!(c.rename((ROOT, "d"), (sub, "x")), Err(libc::EINVAL));
    assert_eq!(c.rename((ROOT, "a"), (ROOT, "d")), Err(libc::EISDIR));
    assert_eq!(c.rename((ROOT, "d"), (ROOT, "a")), Err(libc::ENOTDIR));
    assert_eq!(c.rename((ROOT, "empty"), (ROOT, "d")), Err(libc::ENOTEMPTY));
    c.rename((ROOT, "a"), (ROOT, "b")).unwrap();
    c.rename((ROOT, "b"), (d, "moved")).unwrap();
    assert_eq!(c.walk("d/moved").unwrap().nodeid, a);
    assert_eq!(session.get("d/moved"), b"A");
    assert!(!session.exists("a") && !session.exists("b"));
    // The node of a folder stays good when the folder moves.
    let c = &mut session.client;
    c.rename((ROOT, "d"), (ROOT, "e")).unwrap();
    c.create(sub, "deep", libc::O_RDWR, 0o600).unwrap();
    assert!(session.exists("e/sub/deep"));
    session.finish();
}

#[test]
fn rename2_knows_its_flags() {
    const NOREPLACE: u32 = 1;
    const EXCHANGE: u32 = 2;
    let mut session = Session::new(&[]);
    session.put("a", "A");
    session.put("b", "B");
    let c = &mut session.client;
    assert_eq!(
        c.rename2((ROOT, "a"), (ROOT, "b"), NOREPLACE),
        Err(libc::EEXIST)
    );
    c.rename2((ROOT, "a"), (ROOT, "b"), EXCHANGE).unwrap();
    assert_eq!(
        (&session.get("a")[..], &session.get("b")[..]),
        (&b"B"[..], &b"A"[..])
    );
    let c = &mut session.client;
    c.rename2((ROOT, "a"), (ROOT, "c"), NOREPLACE).unwrap();
    c.rename2((ROOT, "c"), (ROOT, "b"), 0).unwrap();
    assert_eq!(session.get("b"), b"B");
    let c = &mut session.client;
    assert_eq!(
        c.rename2((ROOT, "b"), (ROOT, "c"), NOREPLACE | EXCHANGE),
        Err(libc::EINVAL)
    );
    assert_eq!(c.rename2((ROOT, "b"), (ROOT, "c"), 0x80), Err(libc::EINVAL));
    assert_eq!(
        c.rename2((ROOT, "b"), (ROOT, "c"), EXCHANGE),
        Err(libc::ENOENT)
    );
    session.finish();
}

#[test]
fn link_adds_a_name() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    fs::create_dir(session.path("d")).unwrap();
    symlink("target", session.path("s")).unwrap();
    let c = &mut session.client;
    let f = c.walk("f").unwrap();
    let d = c.walk("d").unwrap().nodeid;
    let s = c.walk("s").unwrap().nodeid;
    let entry = c.link(f.nodeid, d, "g").unwrap();
    assert_eq!(entry.nodeid, f.nodeid);
    assert_eq!(entry.attr.nlink, 2);
    // A link to a link is a link to the link.
    c.link(s, d, "s2").unwrap();
    assert!(session.stat("d/s2").is_symlink());
    assert_eq!(session.stat("d/g").ino(), session.stat("f").ino());
    assert_eq!(session.client.link(d, ROOT, "dirlink"), Err(libc::EPERM));
    session.finish();
}

// ---- attributes

#[test]
fn setattr_changes_what_it_names_and_nothing_else() {
    let mut session = Session::new(&[]);
    session.put("f", "0123456789");
    let c = &mut session.client;
    let f = c.walk("f").unwrap();
    let nothing = SetAttr::default();
    let out = c.setattr(f.nodeid, &nothing).unwrap();
    assert_eq!(out.attr.mode, f.attr.mode);

    let out = c
        .setattr(
            f.nodeid,
            &SetAttr {
                mode: Some(0o100_612),
                ..nothing
            },
        )
        .unwrap();
    assert_eq!(out.attr.perm(), 0o612);
    let out = c
        .setattr(
            f.nodeid,
            &SetAttr {
                size: Some(4),
                ..nothing
            },
        )
        .unwrap();
    assert_eq!(out.attr.size, 4);
    let out = c
        .setattr(
            f.nodeid,
            &SetAttr {
                size: Some(1 << 20),
                ..nothing
            },
        )
        .unwrap();
    assert_eq!(out.attr.size, 1 << 20);
    let times = SetAttr {
        atime: Some((1_000_000, 7)),
        mtime: Some((2_000_000, 999_999_999)),
        ..nothing
    };
    let attr = c.setattr(f.nodeid, &times).unwrap().attr;
    assert_eq!((attr.atime, attr.atimensec), (1_000_000, 7));
    assert_eq!((attr.mtime, attr.mtimensec), (2_000_000, 999_999_999));
    assert_eq!(attr.size, 1 << 20);
    let now = SetAttr {
        valid: 1 << 4 | FATTR_ATIME_NOW,
        ..nothing
    };
    let attr = c.setattr(f.nodeid, &now).unwrap().attr;
    assert!(attr.atime > 1_700_000_000, "now");
    assert_eq!(attr.mtime, 2_000_000);
    let now = SetAttr {
        valid: 1 << 5 | FATTR_MTIME_NOW,
        ..nothing
    };
    assert!(c.setattr(f.nodeid, &now).unwrap().attr.mtime > 1_700_000_000);
    assert_eq!(session.perm("f"), 0o612);
    assert_eq!(&session.get("f")[..5], b"0123\0");
    session.finish();
}

#[test]
fn setattr_works_by_handle_on_a_file_without_a_name() {
    let mut session = Session::new(&[]);
    session.put("f", "0123456789");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let open = c.open(f, libc::O_RDWR).unwrap();
    c.unlink(ROOT, "f").unwrap();
    for fh in [Some(open.fh), None] {
        let all = SetAttr {
            fh,
            mode: Some(0o600),
            size: Some(3),
            atime: Some((5, 0)),
            mtime: Some((6, 0)),
            ..SetAttr::default()
        };
        let attr = c.setattr(f, &all).unwrap().attr;
        assert_eq!(
            (attr.perm(), attr.size, attr.atime, attr.mtime),
            (0o600, 3, 5, 6)
        );
    }
    session.finish();
}

#[test]
fn setattr_changes_owner_and_group() {
    if !is_root("setattr_changes_owner_and_group") {
        return;
    }
    let mut session = Session::new(&[]);
    session.put("f", "");
    symlink("f", session.path("s")).unwrap();
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let s = c.walk("s").unwrap().nodeid;
    c.setattr(
        f,
        &SetAttr {
            uid: Some(1000),
            ..SetAttr::default()
        },
    )
    .unwrap();
    let attr = c
        .setattr(
            f,
            &SetAttr {
                gid: Some(2000),
                ..SetAttr::default()
            },
        )
        .unwrap()
        .attr;
    assert_eq!((attr.uid, attr.gid), (1000, 2000));
    c.setattr(
        s,
        &SetAttr {
            uid: Some(3000),
            gid: Some(3000),
            ..SetAttr::default()
        },
    )
    .unwrap();
    assert_eq!(
        (session.stat("f").uid(), session.stat("f").gid()),
        (1000, 2000)
    );
    assert_eq!(session.stat("s").uid(), 3000);
    session.finish();
}

#[test]
fn setattr_refuses_nonsense() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let nothing = SetAttr::default();
    assert_eq!(
        c.setattr(
            f,
            &SetAttr {
                size: Some(u64::MAX),
                ..nothing
            }
        ),
        Err(libc::EINVAL)
    );
    assert_eq!(
        c.setattr(
            f,
            &SetAttr {
                size: Some(1 << 63),
                ..nothing
            }
        ),
        Err(libc::EINVAL)
    );
    assert_eq!(
        c.setattr(
            f,
            &SetAttr {
                mtime: Some((0, 1_000_000_000)),
                ..nothing
            }
        ),
        Err(libc::EINVAL)
    );
    // Nanoseconds that mean "now" and "leave it" to utimensat(2).
    assert_eq!(
        c.setattr(
            f,
            &SetAttr {
                mtime: Some((0, 0x3fff_ffff)),
                ..nothing
            }
        ),
        Err(libc::EINVAL)
    );
    assert!(
        c.setattr(
            ROOT,
            &SetAttr {
                size: Some(0),
                ..nothing
            }
        )
        .is_err()
    );
    assert_eq!(session.get("f"), b"text");
    session.finish();
}

#[test]
fn times_before_1970_come_back() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    let f = session.client.walk("f").unwrap().nodeid;
    let before = (-5i64).cast_unsigned();
    let set = SetAttr {
        mtime: Some((before, 500)),
        ..SetAttr::default()
    };
    let attr = session.client.setattr(f, &set).unwrap().attr;
    assert_eq!((attr.mtime, attr.mtimensec), (before, 500));
    assert_eq!(session.stat("f").mtime(), -5);
    session.finish();
}

#[test]
fn the_mode_of_a_link_is_not_changed() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    symlink("f", session.path("s")).unwrap();
    let before = session.perm("f");
    let s = session.client.walk("s").unwrap().nodeid;
    let mode = SetAttr {
        mode: Some(0o123),
        ..SetAttr::default()
    };
    session.client.setattr(s, &mode).unwrap_err();
    assert_eq!(session.perm("f"), before);
    // Its times are its own.
    let times = SetAttr {
        mtime: Some((77, 0)),
        ..SetAttr::default()
    };
    session.client.setattr(s, &times).unwrap();
    assert_eq!(session.stat("s").mtime(), 77);
    assert_ne!(session.stat("f").mtime(), 77);
    session.finish();
}

#[test]
fn access_judges_as_the_user_of_the_request() {
    if !is_root("access_judges_as_the_user_of_the_request") {
        return;
    }
    let mut session = Session::new(&[]);
    session.put("f", "");
    fs::set_permissions(session.path("f"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(session.path("f"), Some(1000), Some(2000)).unwrap();
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let (r, w, x) = (4, 2, 1);
    for (uid, gid, mask, expected) in [
        (0, 0, 0, Ok(())),
        (0, 0, r | w, Ok(())),
        (0, 0, x, Err(libc::EACCES)),
        (1000, 1000, r | w, Ok(())),
        (1000, 1000, x, Err(libc::EACCES)),
        (1001, 2000, r, Ok(())),
        (1001, 2000, w, Err(libc::EACCES)),
        (1001, 1001, r, Err(libc::EACCES)),
        (1001, 1001, 0, Ok(())),
    ] {
        let answer = as_user(c, uid, gid, |c| c.access(f, mask));
        assert_eq!(answer, expected, "{uid}:{gid} wants {mask}");
    }
    session.finish();
}

#[test]
fn statfs_is_that_of_the_host() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    let f = session.client.walk("f").unwrap().nodeid;
    for node in [ROOT, f] {
        let guest = session.client.statfs(node).unwrap();
        let host = rustix::fs::statvfs(session.path("")).unwrap();
        assert_eq!(guest.blocks, host.f_blocks);
        assert_eq!(guest.files, host.f_files);
        assert_eq!(u64::from(guest.bsize), host.f_bsize);
        assert_eq!(u64::from(guest.frsize), host.f_frsize);
        assert_eq!(u64::from(guest.namelen), host.f_namemax);
        assert!(guest.bfree > 0 && guest.bavail <= guest.bfree);
    }
    session.finish();
}

// ---- files

#[test]
fn reads_and_writes_at_any_offset() {
    let mut session = Session::new(&[]);
    session.put("f", "0123456789");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let fh = c.open(f, libc::O_RDWR).unwrap().fh;
    assert_eq!(c.read(f, fh, 3, 4).unwrap(), b"3456");
    assert_eq!(c.read(f, fh, 8, 100).unwrap(), b"89");
    assert_eq!(c.read(f, fh, 10, 100).unwrap(), b"");
    assert_eq!(c.read(f, fh, 1 << 40, 100).unwrap(), b"");
    assert_eq!(c.read(f, fh, 0, 0).unwrap(), b"");
    assert_eq!(c.write(f, fh, 3, b"abc"), Ok(3));
    assert_eq!(c.write(f, fh, 12, b"end"), Ok(3));
    assert_eq!(c.write(f, fh, 0, b""), Ok(0));
    assert_eq!(session.get("f"), b"012abc6789\0\0end");
    session.finish();
}

#[test]
fn offsets_beyond_any_file_are_refused() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let fh = c.open(f, libc::O_RDWR).unwrap().fh;
    for offset in [1 << 63, u64::MAX, u64::MAX - 10] {
        assert_eq!(c.read(f, fh, offset, 10), Err(libc::EINVAL), "{offset:#x}");
        assert_eq!(
            c.write(f, fh, offset, b"x"),
            Err(libc::EINVAL),
            "{offset:#x}"
        );
        assert!(c.fallocate(f, fh, offset, 10, 0).is_err());
        assert!(c.fallocate(f, fh, 0, offset, 0).is_err());
        assert!(c.lseek(f, fh, offset, libc::SEEK_DATA as u32).is_err());
        assert!(
            c.copy_file_range((f, fh, offset), (f, fh, 0), 1, 0)
                .is_err()
        );
        assert!(
            c.copy_file_range((f, fh, 0), (f, fh, offset), 1, 0)
                .is_err()
        );
    }
    let largest = i64::MAX.cast_unsigned();
    assert!(matches!(
        c.write(f, fh, largest, b"x"),
        Err(libc::EFBIG | libc::EINVAL)
    ));
    assert_eq!(session.get("f"), b"text");
    session.finish();
}

#[test]
fn a_handle_does_only_what_it_was_opened_for() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let read_only = c.open(f, libc::O_RDONLY).unwrap().fh;
    let write_only = c.open(f, libc::O_WRONLY).unwrap().fh;
    assert_eq!(c.write(f, read_only, 0, b"x"), Err(libc::EBADF));
    assert_eq!(c.read(f, write_only, 0, 1), Err(libc::EBADF));
    assert_eq!(c.read(f, read_only, 0, 4).unwrap(), b"text");
    assert_eq!(c.write(f, write_only, 0, b"T"), Ok(1));
    session.finish();
}

#[test]
fn a_write_takes_as_many_bytes_as_it_says() {
    let mut session = Session::new(&[]);
    let c = &mut session.client;
    let (entry, open) = c.create(ROOT, "f", libc::O_RDWR, 0o600).unwrap();
    let body = write_in(open.fh, 0, 10, 0, 0).bytes(&[b'x'; 5000]);
    let answer = c.call(&Request::new(op::WRITE, entry.nodeid, body));
    match answer {
        Ok(reply) => assert_eq!(reply[..4], 10u32.to_le_bytes()),
        Err(errno) => assert_eq!(errno, libc::EINVAL),
    }
    assert!(
        session.get("f").len() <= 10,
        "{} bytes",
        session.get("f").len()
    );
    // And it cannot say more than there is.
    let c = &mut session.client;
    let body = write_in(open.fh, 0, 5000, 0, 0).bytes(b"0123456789");
    let answer = c.call(&Request::new(op::WRITE, entry.nodeid, body));
    assert_eq!(answer.map(drop), Err(libc::EINVAL));
    assert!(session.get("f").len() <= 10);
    session.finish();
}

#[test]
fn a_read_gives_no_more_than_it_was_asked_for() {
    let mut session = Session::new(&[]);
    session.put("f", vec![b'x'; 10_000]);
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let fh = c.open(f, libc::O_RDONLY).unwrap().fh;
    let request = |size| Request::new(op::READ, f, read_in(fh, 0, size));
    assert_eq!(c.call(&request(10).space(8192)).unwrap().len(), 10);
    // Nor more than there is room for.
    match c.call(&request(8192).space(100)) {
        Ok(data) => assert_eq!(data.len(), 100),
        Err(errno) => assert_eq!(errno, libc::EINVAL),
    }
    match c.call(&request(u32::MAX).space(4096)) {
        Ok(data) => assert!(data.len() <= 4096),
        Err(errno) => assert!([libc::EINVAL, libc::ENOMEM].contains(&errno), "{errno}"),
    }
    session.finish();
}

#[test]
fn appending_writes_go_to_the_end() {
    let mut session = Session::new(&[]);
    session.put("f", "one");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let fh = c.open(f, flags).unwrap().fh;
    // The guest's idea of the size is old.
    assert_eq!(c.write_flags(f, fh, 0, b" two", 0, flags), Ok(4));
    session.put("f", "one two and a half");
    let c = &mut session.client;
    assert_eq!(c.write_flags(f, fh, 7, b" three", 0, flags), Ok(6));
    assert_eq!(session.get("f"), b"one two and a half three");
    let c = &mut session.client;
    let (entry, open) = c.create(ROOT, "g", flags, 0o600).unwrap();
    assert_eq!(
        c.write_flags(entry.nodeid, open.fh, 0, b"a", 0, flags),
        Ok(1)
    );
    assert_eq!(
        c.write_flags(entry.nodeid, open.fh, 0, b"b", 0, flags),
        Ok(1)
    );
    assert_eq!(session.get("g"), b"ab");
    session.finish();
}

#[test]
fn open_truncates_when_told() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    c.open(f, libc::O_RDWR | libc::O_TRUNC).unwrap();
    assert_eq!(session.get("f"), b"");
    session.finish();
}

#[test]
fn only_files_are_opened_and_only_folders_are_listed() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    fs::create_dir(session.path("d")).unwrap();
    let _listener = UnixListener::bind(session.path("socket")).unwrap();
    let c = &mut session.client;
    c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o666, 0, 0).unwrap();
    if is_root("part of only_files_are_opened") {
        c.mknod(ROOT, "null", libc::S_IFCHR | 0o666, 1 << 8 | 3, 0)
            .unwrap();
        c.mknod(ROOT, "loop", libc::S_IFBLK | 0o666, 7 << 8, 0)
            .unwrap();
    }
    for name in ["fifo", "socket", "null", "loop"] {
        let Ok(entry) = c.walk(name) else { continue };
        for flags in [
            libc::O_RDONLY,
            libc::O_WRONLY,
            libc::O_RDWR,
            libc::O_RDWR | libc::O_NONBLOCK,
        ] {
            assert!(
                c.open(entry.nodeid, flags).is_err(),
                "{name} with {flags:#o}"
            );
        }
        assert!(c.opendir(entry.nodeid).is_err());
    }
    let f = c.walk("f").unwrap().nodeid;
    let d = c.walk("d").unwrap().nodeid;
    assert_eq!(c.opendir(f), Err(libc::ENOTDIR));
    assert_eq!(c.open(d, libc::O_WRONLY), Err(libc::EISDIR));
    session.finish();
}

#[test]
fn strange_open_flags_do_no_harm() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    fs::create_dir(session.path("d")).unwrap();
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let d = c.walk("d").unwrap().nodeid;
    for flags in [
        libc::O_CREAT,
        libc::O_CREAT | libc::O_EXCL,
        libc::O_PATH,
        libc::O_TMPFILE,
        libc::O_ASYNC,
        libc::O_NOFOLLOW,
        libc::O_CLOEXEC,
        libc::O_NOCTTY,
        -1,
        i32::MAX,
        0o3,
    ] {
        for node in [f, d] {
            if let Ok(open) = c.open(node, flags) {
                let _ = c.read(node, open.fh, 0, 4);
                c.release(node, open.fh).unwrap();
            }
        }
        let _ = c.create(ROOT, "g", flags, 0o600);
    }
    c.getattr(ROOT).unwrap();
    assert_eq!(fs::read_dir(session.path("d")).unwrap().count(), 0);
    session.finish();
}

#[test]
fn flush_fsync_and_syncfs_succeed() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let fh = c.open(f, libc::O_RDWR).unwrap().fh;
    c.write(f, fh, 0, b"x").unwrap();
    c.flush(f, fh).unwrap();
    c.flush(f, fh).unwrap();
    c.fsync(f, fh, 0).unwrap();
    c.fsync(f, fh, FSYNC_FDATASYNC).unwrap();
    let dir = c.opendir(ROOT).unwrap().fh;
    c.fsyncdir(ROOT, dir, 0).unwrap();
    c.fsyncdir(ROOT, dir, FSYNC_FDATASYNC).unwrap();
    c.syncfs(ROOT).unwrap();
    c.syncfs(f).unwrap();
    session.finish();
}

#[test]
fn lseek_finds_data_and_holes() {
    let mut session = Session::new(&[]);
    let c = &mut session.client;
    let (entry, open) = c.create(ROOT, "f", libc::O_RDWR, 0o600).unwrap();
    let (f, fh) = (entry.nodeid, open.fh);
    c.write(f, fh, 1 << 20, &[1; 4096]).unwrap();
    c.setattr(
        f,
        &SetAttr {
            size: Some(4 << 20),
            ..SetAttr::default()
        },
    )
    .unwrap();
    let (data, hole) = (libc::SEEK_DATA as u32, libc::SEEK_HOLE as u32);
    assert_eq!(c.lseek(f, fh, 0, data), Ok(1 << 20));
    assert_eq!(c.lseek(f, fh, 0, hole), Ok(0));
    assert_eq!(c.lseek(f, fh, 1 << 20, hole), Ok((1 << 20) + 4096));
    assert_eq!(c.lseek(f, fh, 2 << 20, data), Err(libc::ENXIO));
    assert_eq!(c.lseek(f, fh, 5 << 20, hole), Err(libc::ENXIO));
    assert_eq!(c.lseek(f, fh, 0, 77), Err(libc::EINVAL));
    session.finish();
}

#[test]
fn fallocate_reserves_and_punches() {
    const KEEP_SIZE: u32 = 1;
    const PUNCH_HOLE: u32 = 2;
    let mut session = Session::new(&[]);
    session.put("f", vec![b'x'; 16384]);
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let fh = c.open(f, libc::O_RDWR).unwrap().fh;
    c.fallocate(f, fh, 0, 1 << 20, KEEP_SIZE).unwrap();
    assert_eq!(c.getattr(f).unwrap().attr.size, 16384);
    assert!(c.getattr(f).unwrap().attr.blocks >= 2048);
    c.fallocate(f, fh, 0, 1 << 20, 0).unwrap();
    assert_eq!(c.getattr(f).unwrap().attr.size, 1 << 20);
    c.fallocate(f, fh, 4096, 4096, PUNCH_HOLE | KEEP_SIZE)
        .unwrap();
    assert_eq!(c.read(f, fh, 4094, 4).unwrap(), b"xx\0\0");
    assert_eq!(c.fallocate(f, fh, 0, 0, 0), Err(libc::EINVAL));
    assert!(c.fallocate(f, fh, 0, 4096, 0x8000).is_err());
    let read_only = c.open(f, libc::O_RDONLY).unwrap().fh;
    assert_eq!(c.fallocate(f, read_only, 0, 4096, 0), Err(libc::EBADF));
    session.finish();
}

#[test]
fn copy_file_range_copies_on_the_host() {
    let mut session = Session::new(&[]);
    session.put("from", "0123456789");
    session.put("to", "abcdefghij");
    let c = &mut session.client;
    let from = c.walk("from").unwrap().nodeid;
    let to = c.walk("to").unwrap().nodeid;
    let from_fh = c.open(from, libc::O_RDONLY).unwrap().fh;
    let to_fh = c.open(to, libc::O_RDWR).unwrap().fh;
    assert_eq!(
        c.copy_file_range((from, from_fh, 2), (to, to_fh, 4), 3, 0),
        Ok(3)
    );
    assert_eq!(session.get("to"), b"abcd234hij");
    let c = &mut session.client;
    assert_eq!(
        c.copy_file_range((from, from_fh, 8), (to, to_fh, 10), 100, 0),
        Ok(2)
    );
    assert_eq!(
        c.copy_file_range((from, from_fh, 50), (to, to_fh, 0), 1, 0),
        Ok(0)
    );
    assert_eq!(
        c.copy_file_range((to, to_fh, 0), (from, from_fh, 0), 1, 0),
        Err(libc::EBADF)
    );
    assert_eq!(
        c.copy_file_range((from, from_fh, 0), (to, to_fh, 0), 1, 77),
        Err(libc::EINVAL)
    );
    assert_eq!(
        c.copy_file_range((from, to_fh, 0), (to, to_fh, 0), 1, 0),
        Err(libc::EBADF)
    );
    assert_eq!(
        c.copy_file_range((from, from_fh, 0), (to, 999, 0), 1, 0),
        Err(libc::EBADF)
    );
    assert_eq!(session.get("to"), b"abcd234hij89");
    session.finish();
}

// ---- folders

#[test]
fn readdir_lists_every_entry_with_its_type() {
    let mut session = Session::new(&[]);
    session.put("file", "");
    fs::create_dir(session.path("dir")).unwrap();
    symlink("x", session.path("link")).unwrap();
    let share = session.path("");
    let c = &mut session.client;
    c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o600, 0, 0).unwrap();
    let fh = c.opendir(ROOT).unwrap().fh;
    for plus in [false, true] {
        let all = c.read_whole_dir(ROOT, fh, 4096, plus).unwrap();
        let found: BTreeMap<_, _> = all.iter().map(|dirent| (dirent.name(), dirent)).collect();
        let kind = |name: &str| u32::from(found[name].kind as u8);
        for (name, expected) in [
            (".", libc::DT_DIR),
            ("..", libc::DT_DIR),
            ("file", libc::DT_REG),
            ("dir", libc::DT_DIR),
            ("link", libc::DT_LNK),
            ("fifo", libc::DT_FIFO),
        ] {
            assert_eq!(kind(name), u32::from(expected), "{name}");
        }
        assert_eq!(found.len(), 6);
        for name in ["file", "dir", "link", "fifo"] {
            let host = fs::symlink_metadata(share.join(name)).unwrap();
            assert_eq!(found[name].ino, host.ino(), "{name}");
            if let Some(entry) = found[name].entry {
                assert_eq!(entry.attr.ino, host.ino());
                assert_eq!(entry.attr.mode, host.mode());
                assert_eq!(c.walk(name).unwrap().nodeid, entry.nodeid);
            }
        }
    }
    session.finish();
}

/// Ten thousand names of many lengths.
fn fill(session: &Session) -> BTreeSet<String> {
    fs::create_dir(session.path("big")).unwrap();
    let names = (0..10_000).map(|index| format!("{index}-{}", "n".repeat(index % 200)));
    names
        .inspect(|name| session.put(&format!("big/{name}"), ""))
        .collect()
}

fn names_of(all: &[Dirent]) -> BTreeSet<String> {
    let names = all.iter().map(|dirent| dirent.name().to_owned());
    let set: BTreeSet<_> = names.filter(|name| name != "." && name != "..").collect();
    assert_eq!(set.len() + 2, all.len(), "an entry came twice");
    set
}

#[test]
fn large_folders_are_listed_whole_with_any_buffer() {
    let mut session = Session::new(&[]);
    let expected = fill(&session);
    let fds = session.daemon.open_fds();
    let c = &mut session.client;
    let big = c.walk("big").unwrap().nodeid;
    for size in [512, 4096, 10_000, 1 << 20] {
        let fh = c.opendir(big).unwrap().fh;
        let all = c.read_whole_dir(big, fh, size, false).unwrap();
        assert!(names_of(&all) == expected, "READDIR with {size} bytes");
        c.releasedir(big, fh).unwrap();
        let fh = c.opendir(big).unwrap().fh;
        let all = c.read_whole_dir(big, fh, size, true).unwrap();
        assert!(names_of(&all) == expected, "READDIRPLUS with {size} bytes");
        c.releasedir(big, fh).unwrap();
        let nodes: Vec<_> = all
            .iter()
            .map(|dirent| dirent.entry.unwrap().nodeid)
            .collect();
        let counted: Vec<_> = nodes
            .iter()
            .filter(|&&node| node != 0)
            .map(|&node| (node, 1))
            .collect();
        assert_eq!(counted.len(), expected.len(), "entries with a node");
        for part in counted.chunks(200) {
            c.batch_forget(part);
        }
        assert_unknown(c.getattr(counted[17].0));
    }
    c.forget(big, 1);
    session.daemon.expect_open_fds(fds);
    session.finish();
}

#[test]
fn a_listing_can_be_taken_up_anywhere() {
    let mut session = Session::new(&[]);
    fill(&session);
    let c = &mut session.client;
    let big = c.walk("big").unwrap().nodeid;
    let fh = c.opendir(big).unwrap().fh;
    let all = c.read_whole_dir(big, fh, 1 << 16, false).unwrap();
    let other = c.opendir(big).unwrap().fh;
    // To and fro, with this handle and with another one.
    for index in [0, 5000, 1, 9000, 3, all.len() - 2, 17] {
        for handle in [fh, other] {
            let part = c.readdir(big, handle, all[index].off, 8192).unwrap();
            assert_eq!(
                part[..5.min(part.len())],
                all[index + 1..][..5.min(part.len())]
            );
            assert_eq!(c.readdir(big, handle, 0, 8192).unwrap()[..5], all[..5]);
        }
    }
    let end = all.last().unwrap().off;
    assert_eq!(c.readdir(big, fh, end, 8192).unwrap(), []);
    session.finish();
}

#[test]
fn an_entry_that_is_new_is_seen_after_rewinding() {
    let mut session = Session::new(&[]);
    session.put("a", "");
    let fh = session.client.opendir(ROOT).unwrap().fh;
    assert_eq!(
        session
            .client
            .read_whole_dir(ROOT, fh, 4096, false)
            .unwrap()
            .len(),
        3
    );
    session.put("b", "");
    assert_eq!(
        session
            .client
            .read_whole_dir(ROOT, fh, 4096, false)
            .unwrap()
            .len(),
        4
    );
    session.finish();
}

#[test]
fn a_folder_that_is_removed_lists_nothing() {
    let mut session = Session::new(&[]);
    fs::create_dir(session.path("d")).unwrap();
    let c = &mut session.client;
    let d = c.walk("d").unwrap().nodeid;
    let fh = c.opendir(d).unwrap().fh;
    c.rmdir(ROOT, "d").unwrap();
    for plus in [false, true] {
        match c.read_whole_dir(d, fh, 4096, plus) {
            Ok(all) => assert!(
                all.iter().all(|dirent| dirent.name().starts_with('.')),
                "{all:?}"
            ),
            Err(errno) => assert_eq!(errno, libc::ENOENT),
        }
    }
    assert_eq!(c.mkdir(d, "x", 0o755, 0), Err(libc::ENOENT));
    session.finish();
}

#[test]
fn an_entry_that_does_not_fit_is_not_counted() {
    // Each inode that is held is a descriptor that can be counted.
    let mut session = Session::new(&["--inode-file-handles=never"]);
    fs::create_dir(session.path("d")).unwrap();
    for index in 0..20 {
        session.put(&format!("d/{index:03}"), "");
    }
    let c = &mut session.client;
    let d = c.walk("d").unwrap().nodeid;
    let fds = session.daemon.open_fds();
    // One entry is 128 + 24 + 8 bytes; these sizes leave room for part of one.
    for size in [170, 200, 300, 330, 479, 481, 700] {
        let fh = c.opendir(d).unwrap().fh;
        let mut offset = 0;
        loop {
            let part = c.readdirplus(d, fh, offset, size).unwrap();
            let Some(last) = part.last() else { break };
            offset = last.off;
            for entry in part
                .iter()
                .filter_map(|dirent| dirent.entry)
                .filter(|entry| entry.nodeid != 0)
            {
                c.forget(entry.nodeid, 1);
                assert_unknown(c.getattr(entry.nodeid));
            }
        }
        c.releasedir(d, fh).unwrap();
        session.daemon.expect_open_fds(fds);
    }
    session.finish();
}

#[test]
fn tiny_reply_rooms_are_no_trouble() {
    let mut session = Session::new(&[]);
    session.put("a-name-of-some-length", "text");
    let c = &mut session.client;
    let f = c.walk("a-name-of-some-length").unwrap().nodeid;
    let fh = c.open(f, libc::O_RDONLY).unwrap().fh;
    let dir = c.opendir(ROOT).unwrap().fh;
    for (opcode, node, handle) in [
        (op::READ, f, fh),
        (op::READDIR, ROOT, dir),
        (op::READDIRPLUS, ROOT, dir),
    ] {
        for size in [0, 1, 4, 16, 24, 31, 1000] {
            for room in (0..60).chain(150..180) {
                let request = Request::new(opcode, node, read_in(handle, 0, size));
                let (unique, bytes) = c.encode(&request);
                let raw = c.call_bytes(&bytes, room);
                if raw.used_len == 0 {
                    assert!(room < 16, "no answer in a room of {room}");
                    continue;
                }
                match raw.check(unique, common::fuse_client::ReplySize::AtMost) {
                    Ok(body) => {
                        assert!(
                            body.len() <= size as usize,
                            "{} bytes for {size}",
                            body.len()
                        );
                        if opcode != op::READ {
                            dirents(&body, opcode == op::READDIRPLUS);
                        }
                    }
                    Err(errno) => assert_eq!(errno, libc::EINVAL, "room {room}, size {size}"),
                }
            }
        }
    }
    session.finish();
}

// ---- the rest

#[test]
fn operations_that_are_not_there_say_so() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let fh = c.open(f, libc::O_RDWR).unwrap().fh;
    let body = || Encoder::new().u64(fh).bytes(&[0; 80]);
    for opcode in [
        0,
        7,
        19,
        op::BMAP,
        op::POLL,
        op::SETUPMAPPING,
        op::REMOVEMAPPING,
        53,
        60,
        1000,
        4096,
        u32::MAX,
    ] {
        let answer = c.call(&Request::new(opcode, f, body()).space(100));
        assert_eq!(answer.map(drop), Err(libc::ENOSYS), "operation {opcode}");
    }
    session.finish();
}

#[test]
fn interrupt_is_not_answered() {
    let mut session = Session::new(&[]);
    let c = &mut session.client;
    let request = Request::new(op::INTERRUPT, 0, Encoder::new().u64(4));
    c.call(&request).unwrap();
    c.getattr(ROOT).unwrap();
    session.finish();
}

#[test]
fn the_hosts_changes_are_seen() {
    let mut session = Session::new(&[]);
    session.put("f", "old");
    let f: Entry = session.client.walk("f").unwrap();
    session.put("f", "newer");
    assert_eq!(session.client.getattr(f.nodeid).unwrap().attr.size, 5);
    fs::remove_file(session.path("f")).unwrap();
    assert_eq!(session.client.lookup(ROOT, "f"), Err(libc::ENOENT));
    fs::rename(session.path(""), session.path("").with_extension("moved")).unwrap();
    // The share is a folder, not a name.
    session
        .client
        .create(ROOT, "g", libc::O_RDWR, 0o600)
        .unwrap();
    let moved = session.path("").with_extension("moved");
    assert!(moved.join("g").exists());
    let gone = fs::rename(&moved, session.path(""));
    assert!(gone.is_ok() || gone.unwrap_err().kind() == ErrorKind::NotFound);
    session.finish();
}

#[test]
fn a_name_with_all_bytes_comes_back_the_same() {
    let mut session = Session::new(&[]);
    let bytes: Vec<u8> = (1..=255).filter(|&byte| byte != b'/').collect();
    let (first, second) = bytes.split_at(127);
    let fh = session.client.opendir(ROOT).unwrap().fh;
    for part in [first, second] {
        let name = OsString::from_vec(part.to_vec());
        let body = Encoder::new().u32(0o755).u32(0).name(&name);
        session
            .client
            .call(&Request::new(op::MKDIR, ROOT, body))
            .unwrap();
        assert!(session.path(&name).is_dir());
        let all = session.client.read_whole_dir(ROOT, fh, 4096, true).unwrap();
        assert!(all.iter().any(|dirent| dirent.name == part));
    }
    session.finish();
}

#[test]
fn a_seek_that_is_refused_loses_no_entry() {
    let mut session = Session::new(&[]);
    for index in 0..200 {
        session.put(&format!("file{index:03}"), "");
    }
    let c = &mut session.client;
    let fh = c.opendir(ROOT).unwrap().fh;
    let first = c.readdirplus(ROOT, fh, 0, 4096).unwrap();
    let mut seen = first.len();
    let mut offset = first.last().unwrap().off;
    assert_eq!(c.readdir(ROOT, fh, 1 << 63, 1024).err(), Some(libc::EINVAL));
    loop {
        let part = c.readdirplus(ROOT, fh, offset, 4096).unwrap();
        let Some(last) = part.last() else { break };
        offset = last.off;
        seen += part.len();
    }
    assert_eq!(seen, 202);
    session.finish();
}

#[test]
fn a_writer_that_may_not_keep_them_drops_set_id_bits() {
    use common::wire::WRITE_KILL_SUIDGID;
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let set_id = fs::Permissions::from_mode(0o6777);
    fs::set_permissions(session.path("f"), set_id).unwrap();
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let fh = c.open(f, libc::O_RDWR).unwrap().fh;
    c.write(f, fh, 0, b"x").unwrap();
    if geteuid().is_root() {
        assert_eq!(session.perm("f"), 0o6777);
    }
    let c = &mut session.client;
    c.write_flags(f, fh, 0, b"x", WRITE_KILL_SUIDGID, libc::O_RDWR)
        .unwrap();
    assert_eq!(session.perm("f"), 0o777);
    // The right is back for the next request.
    if geteuid().is_root() {
        let set_id = fs::Permissions::from_mode(0o6777);
        fs::set_permissions(session.path("f"), set_id).unwrap();
        session.client.write(f, fh, 0, b"x").unwrap();
        assert_eq!(session.perm("f"), 0o6777);
    }
    session.finish();
}

#[test]
fn a_reply_in_more_pieces_than_one_call_fills_is_filled() {
    let mut session = Session::new(&[]);
    let content: Vec<u8> = (0..300_000u32).map(|byte| byte as u8).collect();
    session.put("file", &content);
    let client = &mut session.client;
    let node = client.lookup(ROOT, "file").unwrap().nodeid;
    let open = client.open(node, libc::O_RDONLY).unwrap();
    client.split = common::fuse_client::Split::Pieces(1000, 100);
    client.queue.use_indirect = true;
    // 1500 pieces, and one for the header.
    let read = client.read(node, open.fh, 0, 150_000).unwrap();
    assert_eq!(read.len(), 150_000);
    assert!(read == content[..150_000]);
    let read = client.read(node, open.fh, 200_000, 150_000).unwrap();
    assert!(read == content[200_000..]);
    session.finish();
}
