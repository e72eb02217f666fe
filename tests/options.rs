//! What the options of the daemon change for the guest.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::frontend::Config;
use common::fuse_client::{Answer, SetAttr};
use common::session::Session;
use common::wait_until_old;
use common::wire::{
    Dirent, FOPEN_CACHE_DIR, FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, ROOT, WRITE_CACHE,
    init, xattr_names,
};

const DAY: u64 = 86_400;

// ---- cache policy

#[test]
fn the_cache_policy_decides_time_outs_and_open_flags() {
    let both = FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR;
    for (args, seconds, file_flags, dir_flags) in [
        (&[][..], 1, 0, 0),
        (&["--cache", "auto"], 1, 0, 0),
        (&["--cache=ALWAYS"], DAY, FOPEN_KEEP_CACHE, both),
        (&["--cache", "metadata"], DAY, FOPEN_DIRECT_IO, both),
        (&["--cache", "never"], 0, FOPEN_DIRECT_IO, 0),
    ] {
        let mut session = Session::new(args);
        session.put("f", "text");
        let c = &mut session.client;
        let entry = c.lookup(ROOT, "f").unwrap();
        assert_eq!(
            (entry.entry_valid, entry.attr_valid),
            (seconds, seconds),
            "{args:?}"
        );
        assert_eq!((entry.entry_valid_nsec, entry.attr_valid_nsec), (0, 0));
        assert_eq!(c.getattr(entry.nodeid).unwrap().valid, seconds);
        let mode = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        assert_eq!(c.setattr(entry.nodeid, &mode).unwrap().valid, seconds);
        assert_eq!(c.mkdir(ROOT, "d", 0o755, 0).unwrap().entry_valid, seconds);
        assert_eq!(
            c.open(entry.nodeid, libc::O_RDWR).unwrap().flags & !FOPEN_NOFLUSH,
            file_flags,
            "{args:?}"
        );
        let (created, open) = c.create(ROOT, "new", libc::O_RDWR, 0o600).unwrap();
        assert_eq!(
            (created.entry_valid, open.flags & !FOPEN_NOFLUSH),
            (seconds, file_flags),
            "{args:?}"
        );
        let dir = c.opendir(ROOT).unwrap();
        assert_eq!(dir.flags, dir_flags, "{args:?}");
        let plus = session.init.unwrap().has(init::DO_READDIRPLUS);
        assert_eq!(plus, !args.contains(&"never"), "{args:?}");
        if plus {
            for dirent in session.client.readdirplus(ROOT, dir.fh, 0, 4096).unwrap() {
                let entry = dirent.entry.unwrap();
                if entry.nodeid != 0 {
                    assert_eq!((entry.entry_valid, entry.attr_valid), (seconds, seconds));
                }
            }
        }
        session.finish();
    }
}

#[test]
fn readdirplus_can_be_switched_off() {
    let session = Session::new(&["--no-readdirplus"]);
    let out = session.init.unwrap();
    assert_eq!(
        out.flags & (init::DO_READDIRPLUS | init::READDIRPLUS_AUTO),
        0
    );
    session.finish();
}

#[test]
fn shared_mappings_need_an_option() {
    for (args, expected) in [
        (&["--cache=never"][..], false),
        (&["--cache=never", "--allow-mmap"], true),
    ] {
        let session = Session::new(args);
        assert_eq!(
            session.init.unwrap().has(init::DIRECT_IO_ALLOW_MMAP),
            expected,
            "{args:?}"
        );
        session.finish();
    }
}

// ---- fewer round trips

#[test]
fn that_a_name_is_missing_may_be_remembered_if_asked_for() {
    for (args, expected) in [
        (&[][..], Err(libc::ENOENT)),
        (&["--negative-timeout=0"], Err(libc::ENOENT)),
        (&["--negative-timeout=5"], Ok((0, 5, 0))),
        (&["--negative-timeout=5", "--readonly"], Ok((0, 5, 0))),
    ] {
        let mut session = Session::new(args);
        let c = &mut session.client;
        let found = c.lookup(ROOT, "none");
        let found = found.map(|entry| (entry.nodeid, entry.entry_valid, entry.attr_valid));
        assert_eq!(found, expected, "{args:?}");
        // What is no missing name is an error as before.
        assert_eq!(c.lookup(4711, "none").unwrap_err(), libc::ESTALE);
        assert_eq!(
            c.lookup(ROOT, "n".repeat(256)).unwrap_err(),
            libc::ENAMETOOLONG
        );
        if args.contains(&"--readonly") {
            let created = c.create(ROOT, "none", libc::O_RDWR, 0o600);
            assert_eq!(created.unwrap_err(), libc::EROFS);
        } else {
            c.create(ROOT, "none", libc::O_RDWR, 0o600).unwrap();
            assert_ne!(c.lookup(ROOT, "none").unwrap().nodeid, 0);
        }
        session.finish();
    }
}

#[test]
fn targets_of_links_may_be_kept_unless_nothing_may() {
    for (args, expected) in [(&[][..], true), (&["--cache=never"], false)] {
        let session = Session::new(args);
        let kept = session.init.unwrap().has(init::CACHE_SYMLINKS);
        assert_eq!(kept, expected, "{args:?}");
        session.finish();
    }
}

#[test]
fn a_file_that_was_only_read_needs_no_flush_unless_locks_end_with_it() {
    for (args, expected) in [(&[][..], FOPEN_NOFLUSH), (&["--posix-lock"], 0)] {
        let mut session = Session::new(args);
        session.put("f", "text");
        let c = &mut session.client;
        let f = c.walk("f").unwrap().nodeid;
        let open = c.open(f, libc::O_RDONLY).unwrap();
        assert_eq!(open.flags & FOPEN_NOFLUSH, expected, "{args:?}");
        // A guest that flushes all the same is served.
        c.flush(f, open.fh).unwrap();
        session.finish();
    }
}

// ---- writeback

#[test]
fn writeback_reads_what_the_guest_opened_for_writing_only() {
    let mut session = Session::new(&["--writeback"]);
    assert!(session.init.unwrap().has(init::WRITEBACK_CACHE));
    session.put("f", "text");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let open = c.open(f, libc::O_WRONLY).unwrap();
    assert_eq!(c.read(f, open.fh, 0, 4).unwrap(), b"text");
    let (entry, open) = c.create(ROOT, "g", libc::O_WRONLY, 0o600).unwrap();
    c.write_cached(entry.nodeid, open.fh, 0, b"new").unwrap();
    assert_eq!(c.read(entry.nodeid, open.fh, 0, 4).unwrap(), b"new");
    session.finish();
}

#[test]
fn writeback_may_stamp_a_file_that_was_just_removed() {
    for mode in ["never", "prefer"] {
        let option = format!("--inode-file-handles={mode}");
        let mut session = Session::new(&["--writeback", &option]);
        session.put("f", "text");
        let c = &mut session.client;
        let f = c.walk("f").unwrap().nodeid;
        c.unlink(ROOT, "f").unwrap();
        let times = SetAttr {
            mtime: Some((1000, 0)),
            ..SetAttr::default()
        };
        let stamped = c.setattr(f, &times).unwrap();
        assert_eq!(stamped.attr.mode & libc::S_IFMT, libc::S_IFREG, "{mode}");
        c.forget(f, 1);
        assert!(c.setattr(f, &times).is_err(), "{mode}");
        session.finish();
    }
}

#[test]
fn writeback_writes_where_the_guests_cache_says() {
    let mut session = Session::new(&["--writeback"]);
    session.put("f", "0123456789");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let open = c.open(f, libc::O_WRONLY | libc::O_APPEND).unwrap();
    // The guest has found the end itself.
    assert_eq!(c.write_cached(f, open.fh, 2, b"ab"), Ok(2));
    assert_eq!(session.get("f"), b"01ab456789");
    session.finish();
}

/// A file to which can only be appended, for as long as this lives.
struct AppendOnly(std::path::PathBuf);

impl AppendOnly {
    fn new(path: std::path::PathBuf) -> Self {
        run(
            "chattr",
            &["+a", path.to_str().unwrap()],
            &std::env::temp_dir(),
        );
        Self(path)
    }
}

impl Drop for AppendOnly {
    fn drop(&mut self) {
        let path = self.0.to_str().unwrap();
        run("chattr", &["-a", path], &std::env::temp_dir());
    }
}

#[test]
fn a_file_that_can_only_be_appended_to_is_never_written_by_the_guests_cache() {
    if !rustix::process::geteuid().is_root() {
        return println!("skips itself: chattr +a takes root");
    }
    for policy in ["never", "metadata", "auto", "always"] {
        for more in [&[][..], &["--writeback"], &["--allow-mmap"]] {
            let cache = format!("--cache={policy}");
            let mut session = Session::new(&[&[&*cache], more].concat());
            session.put("log", "first\n");
            let _only = AppendOnly::new(session.path("log"));
            let c = &mut session.client;
            let f = c.walk("log").unwrap().nodeid;
            assert_eq!(c.open(f, libc::O_RDWR), Err(libc::EPERM));
            for access in [libc::O_WRONLY, libc::O_RDWR] {
                let open = c.open(f, access | libc::O_APPEND).unwrap();
                let flags = open.flags & (FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE);
                assert_eq!(flags, FOPEN_DIRECT_IO, "{policy}, {more:?}");
                // Pages of the guest's cache would be appended, wherever they belong.
                for flags in [0, libc::O_APPEND] {
                    let page = c.write_flags(f, open.fh, 0, b"page", WRITE_CACHE, flags);
                    assert_eq!(page, Err(libc::EPERM));
                }
                assert_eq!(c.write(f, open.fh, 0, b"else"), Err(libc::EPERM));
                let appended = c.write_flags(f, open.fh, 2, b"more\n", 0, libc::O_APPEND);
                assert_eq!(appended, Ok(5));
                c.release(f, open.fh).unwrap();
            }
            assert_eq!(session.get("log"), b"first\nmore\nmore\n");
            session.finish();
        }
    }
}

#[test]
fn an_append_of_a_program_goes_to_the_end_that_the_host_knows() {
    for (policy, more, at_end) in [
        ("never", &["--writeback"][..], true),
        ("metadata", &["--writeback"], true),
        ("never", &[], true),
        ("auto", &[], true),
        ("always", &[], true),
        // The guest may hold what it has not written yet before this.
        ("auto", &["--writeback"], false),
        ("always", &["--writeback"], false),
    ] {
        let cache = format!("--cache={policy}");
        let mut session = Session::new(&[&[&*cache], more].concat());
        session.put("log", "AA");
        let c = &mut session.client;
        let f = c.walk("log").unwrap().nodeid;
        let open = c.open(f, libc::O_WRONLY | libc::O_APPEND).unwrap();
        // Others have appended, which the guest has not heard of.
        session.put("log", "AAHHHH");
        let c = &mut session.client;
        let written = c.write_flags(f, open.fh, 2, b"CC", 0, libc::O_APPEND);
        assert_eq!(written, Ok(2));
        let expected: &[u8] = if at_end { b"AAHHHHCC" } else { b"AACCHH" };
        assert_eq!(session.get("log"), expected, "{policy}, {more:?}");
        session.finish();
    }
}

#[test]
fn without_writeback_the_guest_does_not_cache_writes() {
    let session = Session::new(&[]);
    assert!(!session.init.unwrap().has(init::WRITEBACK_CACHE));
    session.finish();
}

// ---- open flags that are taken off

/// The kernel shows the daemon's descriptors to root only.
fn shows_descriptors() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skips itself: it looks at descriptors, which takes root");
    }
    is_root
}

/// Open flags of the daemon's descriptors for a file, save O_PATH ones.
fn host_flags(session: &Session, name: &str) -> Vec<i32> {
    let pid = session.daemon.serving_pid();
    let target = fs::metadata(session.path(name)).unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        // Its path may be another one inside a sandbox.
        let same = |file: fs::Metadata| (file.dev(), file.ino()) == (target.dev(), target.ino());
        if fs::metadata(entry.path()).is_ok_and(same) {
            let number = entry.file_name().into_string().unwrap();
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
            let line = info
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))
                .unwrap();
            let flags = i32::from_str_radix(line.trim(), 8).unwrap();
            if flags & libc::O_PATH == 0 {
                found.push(flags);
            }
        }
    }
    found
}

fn flags_after_open(args: &[&str], flags: i32) -> i32 {
    let mut session = Session::new(args);
    session.put("f", "text");
    let f = session.client.walk("f").unwrap().nodeid;
    session.client.open(f, flags).unwrap();
    let found = host_flags(&session, "f");
    assert_eq!(found.len(), 1, "{found:?}");
    session.finish();
    found[0]
}

#[test]
fn direct_io_on_the_host_needs_an_option() {
    if !shows_descriptors() {
        return;
    }
    let flags = libc::O_RDWR | libc::O_DIRECT;
    assert_eq!(flags_after_open(&[], flags) & libc::O_DIRECT, 0);
    assert_ne!(
        flags_after_open(&["--allow-direct-io"], flags) & libc::O_DIRECT,
        0
    );
}

#[test]
fn the_guests_cache_may_write_parts_of_blocks_through_a_direct_handle() {
    for options in [
        &["--allow-direct-io"][..],
        &["--allow-direct-io", "--writeback"],
    ] {
        let mut session = Session::new(options);
        session.put("f", "0123456789");
        let c = &mut session.client;
        let f = c.walk("f").unwrap().nodeid;
        let open = c.open(f, libc::O_WRONLY | libc::O_DIRECT).unwrap();
        assert_eq!(c.write_cached(f, open.fh, 3, b"abc"), Ok(3));
        assert_eq!(session.get("f"), b"012abc6789");
        session.finish();
    }
}

#[test]
fn access_times_are_kept_with_an_option_only() {
    if !shows_descriptors() {
        return;
    }
    let flags = libc::O_RDONLY | libc::O_NOATIME;
    assert_eq!(flags_after_open(&[], flags) & libc::O_NOATIME, 0);
    assert_ne!(
        flags_after_open(&["--preserve-noatime"], flags) & libc::O_NOATIME,
        0
    );
}

#[test]
fn descriptors_are_closed_on_exec_and_never_follow() {
    if !shows_descriptors() {
        return;
    }
    let flags = flags_after_open(&[], libc::O_RDWR);
    assert_ne!(flags & libc::O_CLOEXEC, 0);
}

// ---- extended attributes

#[test]
fn without_xattr_there_are_no_extended_attributes() {
    let mut session = Session::new(&[]);
    session.put("f", "");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    assert_eq!(c.setxattr(f, "user.x", b"v", 0, false), Err(libc::ENOSYS));
    assert_eq!(c.getxattr(f, "user.x", 100), Err(libc::ENOSYS));
    assert_eq!(c.listxattr(f, 100), Err(libc::ENOSYS));
    assert_eq!(c.removexattr(f, "user.x"), Err(libc::ENOSYS));
    session.finish();
}

#[test]
fn extended_attributes_of_files_and_folders() {
    let mut session = Session::new(&["--xattr"]);
    let extended = session.init.unwrap().has(init::SETXATTR_EXT);
    session.put("f", "");
    fs::create_dir(session.path("d")).unwrap();
    for name in ["f", "d"] {
        let path = session.path(name);
        let c = &mut session.client;
        let node = c.walk(name).unwrap().nodeid;
        let value = vec![b'v'; 1000];
        match c.setxattr(node, "user.big", &value, 0, extended) {
            Err(libc::ENOTSUP) => {
                println!("skips itself: no extended attributes on this file system");
                return;
            }
            answer => answer.unwrap(),
        }
        c.setxattr(node, "user.empty", b"", 0, extended).unwrap();
        assert_eq!(c.getxattr_size(node, "user.big"), Ok(1000));
        assert_eq!(c.getxattr(node, "user.big", 1000).unwrap(), value);
        assert_eq!(c.getxattr(node, "user.big", 2000).unwrap(), value);
        assert_eq!(c.getxattr(node, "user.big", 999), Err(libc::ERANGE));
        assert_eq!(c.getxattr(node, "user.empty", 10).unwrap(), b"");
        assert_eq!(c.getxattr_size(node, "user.empty"), Ok(0));
        assert_eq!(c.getxattr(node, "user.none", 10), Err(libc::ENODATA));
        let names = xattr_names(&c.listxattr(node, 1000).unwrap());
        assert!(names.contains(&"user.big".into()) && names.contains(&"user.empty".into()));
        let size = c.listxattr_size(node).unwrap();
        assert_eq!(c.listxattr(node, size).unwrap().len(), size as usize);
        assert_eq!(c.listxattr(node, size - 1), Err(libc::ERANGE));
        let mut host = [0; 2000];
        let len = rustix::fs::getxattr(&path, "user.big", &mut host).unwrap();
        assert_eq!(host[..len], value);
        const CREATE: u32 = 1;
        const REPLACE: u32 = 2;
        assert_eq!(
            c.setxattr(node, "user.big", b"v", CREATE, extended),
            Err(libc::EEXIST)
        );
        assert_eq!(
            c.setxattr(node, "user.new", b"v", REPLACE, extended),
            Err(libc::ENODATA)
        );
        c.setxattr(node, "user.big", b"small", REPLACE, extended)
            .unwrap();
        assert_eq!(c.getxattr(node, "user.big", 100).unwrap(), b"small");
        c.removexattr(node, "user.big").unwrap();
        assert_eq!(c.removexattr(node, "user.big"), Err(libc::ENODATA));
        assert_eq!(c.getxattr(node, "user.big", 100), Err(libc::ENODATA));
    }
    session.finish();
}

#[test]
fn extended_attribute_requests_with_nonsense_are_refused() {
    let mut session = Session::new(&["--xattr"]);
    let extended = session.init.unwrap().has(init::SETXATTR_EXT);
    session.put("f", "");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let refused = |answer: Answer<()>| {
        let errno = answer.unwrap_err();
        assert_ne!(errno, libc::ENOSYS);
        assert_ne!(errno, libc::EIO);
    };
    refused(c.setxattr(f, "", b"v", 0, extended));
    refused(c.setxattr(f, "nonamespace", b"v", 0, extended));
    refused(c.setxattr(f, format!("user.{}", "n".repeat(300)), b"v", 0, extended));
    refused(c.setxattr(f, "user.x", &vec![0; 70_000], 0, extended));
    refused(c.setxattr(f, "user.x", b"v", 77, extended));
    refused(c.getxattr(f, "", 10).map(drop));
    refused(c.removexattr(f, ""));
    // Without ACLs these are out of reach.
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        assert_eq!(
            c.setxattr(f, name, &[2, 0, 0, 0], 0, extended),
            Err(libc::ENOTSUP)
        );
    }
    session.finish();
}

#[test]
fn attributes_of_a_link_are_its_own() {
    if !rustix::process::geteuid().is_root() {
        println!("skips itself: it needs root");
        return;
    }
    let mut session = Session::new(&["--xattr"]);
    let extended = session.init.unwrap().has(init::SETXATTR_EXT);
    session.put("f", "");
    std::os::unix::fs::symlink("f", session.path("s")).unwrap();
    let c = &mut session.client;
    let s = c.walk("s").unwrap().nodeid;
    assert_eq!(c.setxattr(s, "user.x", b"v", 0, extended), Err(libc::EPERM));
    match c.setxattr(s, "trusted.x", b"link", 0, extended) {
        Err(libc::ENOTSUP | libc::EPERM) => println!("no trusted attributes here"),
        answer => {
            answer.unwrap();
            assert_eq!(c.getxattr(s, "trusted.x", 10).unwrap(), b"link");
            let f = c.walk("f").unwrap().nodeid;
            assert_eq!(c.getxattr(f, "trusted.x", 10), Err(libc::ENODATA));
        }
    }
    session.finish();
}

#[test]
fn attribute_names_are_bytes() {
    use common::fuse_client::Request;
    use common::wire::{Encoder, op};
    let mut session = Session::new(&["--xattr"]);
    session.put("f", "");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let set = Encoder::new().u32(1).u32(0).bytes(b"user.\xff\xfe\0v");
    match c.call(&Request::new(op::SETXATTR, f, set)) {
        Err(libc::ENOTSUP) => {}
        answer => {
            answer.unwrap();
            let names = c.listxattr(f, 1000).unwrap();
            assert!(names.windows(8).any(|name| name == b"user.\xff\xfe\0"));
        }
    }
    session.finish();
}

// ---- a share that is only read

/// Names, content, modes and times of modification of all below a folder.
fn state(folder: &std::path::Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = if stat.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        lines.push(format!(
            "{path:?} {:o} {} {:?} {content:?}",
            stat.mode(),
            stat.nlink(),
            stat.modified().unwrap()
        ));
    }
    lines.sort();
    lines
}

#[test]
fn a_share_that_is_only_read_answers_erofs_to_every_change() {
    let mut session = Session::new(&["--readonly", "--xattr", "--writeback"]);
    session.put("file", "content");
    session.put("other", "");
    fs::create_dir(session.path("folder")).unwrap();
    std::os::unix::fs::symlink("file", session.path("link")).unwrap();
    let before = state(&session.path(""));
    let refused = Some(libc::EROFS);

    let c = &mut session.client;
    let file = c.walk("file").unwrap().nodeid;
    let other = c.walk("other").unwrap().nodeid;
    let open = c.open(file, libc::O_RDONLY).unwrap();
    let (fh, name) = (open.fh, "file");
    let times = SetAttr {
        mtime: Some((1, 0)),
        ..SetAttr::default()
    };
    for changed in [
        c.setattr(file, &times).err(),
        c.setattr(file, &SetAttr::default()).err(),
        c.symlink(ROOT, "new", "file").err(),
        c.mknod(ROOT, "new", libc::S_IFREG | 0o600, 0, 0).err(),
        c.mkdir(ROOT, "new", 0o755, 0).err(),
        c.mkdir(ROOT, "folder", 0o755, 0).err(),
        c.unlink(ROOT, name).err(),
        c.unlink(ROOT, "nothing").err(),
        c.rmdir(ROOT, "folder").err(),
        c.rename((ROOT, name), (ROOT, "new")).err(),
        c.rename2((ROOT, name), (ROOT, "other"), libc::RENAME_EXCHANGE)
            .err(),
        c.link(file, ROOT, "new").err(),
        c.write(file, fh, 0, b"x").err(),
        c.write_cached(file, fh, 0, b"x").err(),
        c.write(file, 12345, 0, b"x").err(),
        c.fallocate(file, fh, 0, 10, 0).err(),
        c.copy_file_range((file, fh, 0), (other, fh, 0), 3, 0).err(),
        c.setxattr(file, "user.x", b"1", 0, false).err(),
        c.removexattr(file, "user.x").err(),
        c.open(file, libc::O_WRONLY).err(),
        c.open(file, libc::O_RDWR | libc::O_TRUNC).err(),
        c.open(12345, libc::O_RDWR).err(),
        c.create(ROOT, "new", libc::O_RDONLY, 0o600).err(),
        c.create(ROOT, "new", libc::O_RDWR, 0o600).err(),
        c.create(ROOT, name, libc::O_RDWR, 0o600).err(),
        c.create(ROOT, name, libc::O_RDONLY | libc::O_EXCL, 0o600)
            .err(),
        c.access(file, 2).err(),
        c.access(file, 7).err(),
    ] {
        assert_eq!(changed, refused);
    }
    let cutting = c.open(file, libc::O_RDONLY | libc::O_TRUNC);
    assert_eq!(cutting.err(), Some(libc::EINVAL));
    assert_eq!(state(&session.path("")), before);
    session.finish();
}

#[test]
fn a_share_that_is_only_read_is_read_as_ever() {
    let mut session = Session::new(&["--readonly", "--xattr"]);
    session.put("file", "content");
    std::os::unix::fs::symlink("file", session.path("link")).unwrap();
    let c = &mut session.client;
    let file = c.walk("file").unwrap().nodeid;
    let link = c.walk("link").unwrap().nodeid;
    assert_eq!(c.readlink(link).unwrap(), b"file");
    c.access(file, 4).unwrap();
    c.statfs(ROOT).unwrap();
    let (entry, open) = c.create(ROOT, "file", libc::O_RDONLY, 0o600).unwrap();
    assert_eq!(entry.nodeid, file);
    assert_eq!(c.read(file, open.fh, 0, 100).unwrap(), b"content");
    c.fsync(file, open.fh, 0).unwrap();
    c.flush(file, open.fh).unwrap();
    c.release(file, open.fh).unwrap();
    assert_eq!(c.listxattr_size(file).unwrap(), 0);
    let folder = c.opendir(ROOT).unwrap();
    assert!(!c.readdirplus(ROOT, folder.fh, 0, 4096).unwrap().is_empty());
    c.syncfs(ROOT).unwrap();
    // An open that fails leaves no lookup behind.
    let failed = c.create(ROOT, "link", libc::O_RDONLY, 0o600);
    assert_eq!(failed.err(), Some(libc::ELOOP));
    session.finish();
}

// ---- directories that need not be opened

const NO_OPENDIR: [&str; 3] = ["--readonly", "--cache=always", "--no-opendir"];

/// Names of a folder with so many files, in the order in which the host lists them.
fn fill(session: &Session, folder: &str, count: usize) -> Vec<String> {
    fs::create_dir(session.path(folder)).unwrap();
    for number in 0..count {
        session.put(&format!("{folder}/file-{number}"), "");
    }
    let listed = fs::read_dir(session.path(folder)).unwrap();
    let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

fn names(entries: &[Dirent]) -> Vec<&str> {
    let names = entries.iter().map(Dirent::name);
    names.filter(|name| !matches!(*name, "." | "..")).collect()
}

#[test]
fn a_guest_lists_directories_without_opening_them() {
    for more in [&[][..], &["--inode-file-handles=never"]] {
        let mut session = Session::new(&[&NO_OPENDIR, more].concat());
        let on_host = fill(&session, "folder", 2000);
        session.put("file", "text");
        let c = &mut session.client;
        assert_ne!(session.init.unwrap().flags & init::NO_OPENDIR_SUPPORT, 0);
        let folder = c.walk("folder").unwrap().nodeid;
        let file = c.walk("file").unwrap().nodeid;
        for node in [ROOT, folder] {
            assert_eq!(c.opendir(node).err(), Some(libc::ENOSYS));
        }
        c.fsyncdir(folder, 0, 0).unwrap();
        for plus in [false, true] {
            let whole = c.read_whole_dir(folder, 0, 4096, plus).unwrap();
            assert_eq!(names(&whole), on_host);
            // From anywhere, as after seekdir(3).
            for from in [1500, 3, 700] {
                let part = c.readdir(folder, 0, whole[from].off, 4096).unwrap();
                let expected = &whole[from + 1..from + 1 + part.len()];
                assert_eq!(names(&part), names(expected));
            }
        }
        // A handle is not a matter of chance, nor is a file a directory.
        assert_eq!(c.readdir(folder, 7, 0, 4096).err(), Some(libc::EBADF));
        assert_eq!(c.readdir(file, 0, 0, 4096).err(), Some(libc::EBADF));
        assert_eq!(c.fsyncdir(file, 0, 0).err(), Some(libc::EBADF));
        // What was left half read is closed at the latest when it is forgotten.
        let open = session.daemon.open_fds();
        c.forget(folder, 1);
        session.daemon.expect_open_fds(open.saturating_sub(3));
        session.finish();
    }
}

#[test]
fn many_listings_of_unopened_directories_go_on_side_by_side() {
    let mut session = Session::new(&NO_OPENDIR);
    let folders: Vec<_> = (0..50).map(|number| format!("folder-{number}")).collect();
    let on_host: Vec<_> = folders
        .iter()
        .map(|folder| fill(&session, folder, 100))
        .collect();
    let c = &mut session.client;
    let nodes: Vec<_> = folders
        .iter()
        .map(|folder| c.walk(folder).unwrap().nodeid)
        .collect();
    // Each is listed twice at the same time.
    let mut listings = vec![Vec::<Dirent>::new(); 2 * nodes.len()];
    let mut at_end = vec![false; listings.len()];
    while at_end.contains(&false) {
        for (index, listing) in listings.iter_mut().enumerate() {
            let offset = listing.last().map_or(0, |entry| entry.off);
            let node = nodes[index % nodes.len()];
            let part = c.readdir(node, 0, offset, 1024).unwrap();
            at_end[index] = part.is_empty();
            listing.extend(part);
        }
    }
    for (index, listing) in listings.iter().enumerate() {
        assert_eq!(names(listing), on_host[index % nodes.len()]);
    }
    session.finish();
}

#[test]
fn a_guest_that_opens_directories_needs_their_handles() {
    for (args, offered) in [
        (&["--readonly"][..], init::LINUX),
        (&["--readonly", "--cache=always"], init::LINUX),
        (&NO_OPENDIR, init::LINUX - init::NO_OPENDIR_SUPPORT),
    ] {
        let mut session = Session::before_init(args, &Config::default());
        let c = &mut session.client;
        let agreed = c.init_with(7, 39, offered).unwrap();
        assert_eq!(agreed.flags & init::NO_OPENDIR_SUPPORT, 0, "{args:?}");
        assert_eq!(c.readdir(ROOT, 0, 0, 4096).err(), Some(libc::EBADF));
        assert_eq!(c.fsyncdir(ROOT, 0, 0).err(), Some(libc::EBADF));
        let fh = c.opendir(ROOT).unwrap().fh;
        c.readdir(ROOT, fh, 0, 4096).unwrap();
        c.releasedir(ROOT, fh).unwrap();
        session.finish();
    }
}

// ---- limits

#[test]
fn a_guest_that_opens_all_descriptors_gets_enfile_until_it_closes_some() {
    // 610 are the daemon's own; the share itself takes one of the others, and
    // directories that are held by handles, as those of root are, and were used
    // lately another one.
    for (handles, open) in [("never", 8..=9), ("prefer", 7..=9)] {
        let handles = format!("--inode-file-handles={handles}");
        let args = ["--rlimit-nofile=620", "--num-request-queues=1", &handles];
        let mut session = Session::new(&args);
        for n in 0..20 {
            session.put(&format!("f{n}"), "text");
        }
        let c = &mut session.client;
        // Inodes need none: there are more than descriptors.
        let nodes: Vec<_> = (0..20)
            .map(|n| c.walk(&format!("f{n}")).unwrap().nodeid)
            .collect();
        let files: Vec<_> = nodes
            .iter()
            .map(|node| (*node, c.open(*node, libc::O_RDONLY)))
            .take_while(|(_, opened)| opened.is_ok())
            .map(|(node, opened)| (node, opened.unwrap().fh))
            .collect();
        // Without file handles the inodes may keep one of them.
        assert!(open.contains(&files.len()), "{}", files.len());
        let refused = Some(libc::ENFILE);
        assert_eq!(c.open(nodes[19], libc::O_RDONLY).err(), refused);
        assert_eq!(c.opendir(ROOT).err(), refused);
        assert_eq!(c.create(ROOT, "x", libc::O_RDWR, 0o600).err(), refused);
        // All else goes on working.
        c.mkdir(ROOT, "d", 0o755, 0).unwrap();
        for node in &nodes {
            c.getattr(*node).unwrap();
        }
        c.release(files[5].0, files[5].1).unwrap();
        c.open(nodes[19], libc::O_RDONLY).unwrap();
        assert!(session.exists("d") && !session.exists("x"));
        let daemon = session.finish();
        let told = daemon
            .log()
            .iter()
            .filter(|line| line.contains("--rlimit-nofile"))
            .count();
        assert_eq!(
            told,
            2,
            "once at start, once when it happened: {:#?}",
            daemon.log()
        );
    }
}

/// A session that keeps few descriptors of inodes, and files which the guest may
/// look up so that those of others are closed.
fn session_of_few_descriptors() -> Session {
    let args = [
        "--rlimit-nofile=620",
        "--num-request-queues=1",
        "--inode-file-handles=never",
    ];
    let session = Session::new(&args);
    for n in 0..40 {
        session.put(&format!("other{n}"), "");
    }
    session
}

/// Looks up so many others that the descriptors of those before are closed, which
/// those of files that were just made are not.
fn look_up_others(session: &mut Session) {
    session.put("last", "");
    wait_until_old(&session.path("last"));
    for n in 0..40 {
        session.client.walk(&format!("other{n}")).unwrap();
    }
}

#[test]
fn a_file_that_was_lost_is_there_again_once_it_is_looked_up() {
    let mut session = session_of_few_descriptors();
    fs::create_dir(session.path("away")).unwrap();
    session.put("f", "text");
    let f = session.client.walk("f").unwrap().nodeid;
    look_up_others(&mut session);
    fs::rename(session.path("f"), session.path("away/f")).unwrap();
    assert_eq!(session.client.getattr(f).err(), Some(libc::ESTALE));
    fs::rename(session.path("away/f"), session.path("f")).unwrap();
    assert_eq!(session.client.walk("f").unwrap().nodeid, f);
    assert_eq!(session.client.getattr(f).unwrap().attr.size, 4);
    session.finish();
}

#[test]
fn what_lies_in_a_lost_folder_is_there_again_with_it() {
    let mut session = session_of_few_descriptors();
    fs::create_dir_all(session.path("folder/inner")).unwrap();
    fs::create_dir(session.path("away")).unwrap();
    session.put("folder/inner/f", "text");
    let f = session.client.walk("folder/inner/f").unwrap().nodeid;
    let folder = session.client.walk("folder").unwrap().nodeid;
    look_up_others(&mut session);
    fs::rename(session.path("folder"), session.path("away/folder")).unwrap();
    for _ in 0..2 {
        assert_eq!(session.client.getattr(f).err(), Some(libc::ESTALE));
    }
    let away = session.client.walk("away").unwrap().nodeid;
    let moved = session.client.lookup(away, "folder").unwrap().nodeid;
    assert_eq!(moved, folder);
    assert_eq!(session.client.getattr(f).unwrap().attr.size, 4);
    session.finish();
}

#[test]
fn a_file_that_loses_the_name_by_which_it_is_known_is_found_by_the_guest() {
    for replaced in [false, true] {
        let mut session = session_of_few_descriptors();
        for folder in ["a", "b"] {
            fs::create_dir(session.path(folder)).unwrap();
        }
        session.put("a/f", "text");
        session.put("new", "");
        fs::hard_link(session.path("a/f"), session.path("b/f")).unwrap();
        let f = session.client.walk("a/f").unwrap().nodeid;
        let b = session.client.walk("b").unwrap().nodeid;
        assert_eq!(session.client.lookup(b, "f").unwrap().nodeid, f);
        look_up_others(&mut session);
        let c = &mut session.client;
        if replaced {
            c.rename((ROOT, "new"), (b, "f")).unwrap();
        } else {
            c.unlink(b, "f").unwrap();
        }
        let attr = c.getattr(f).map(|out| (out.attr.size, out.attr.nlink));
        assert_eq!(attr, Ok((4, 1)), "replaced: {replaced}");
        session.finish();
    }
}

// ---- mounts below the share

/// A tmpfs on a folder, for as long as this lives.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn on(folder: std::path::PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        run("mount", &["-t", "tmpfs", "none"], &folder);
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["-l"], &self.0);
    }
}

fn run(program: &str, args: &[&str], folder: &std::path::Path) {
    let status = std::process::Command::new(program)
        .args(args)
        .arg(folder)
        .status()
        .unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

#[test]
fn a_mount_is_announced_unless_told_otherwise() {
    if !rustix::process::geteuid().is_root() {
        println!("skips itself: it needs root");
        return;
    }
    if std::env::var("VIRTIOFSD_TEST_SANDBOX").is_ok_and(|sandbox| sandbox == "namespace") {
        println!("skips itself: tests/sandbox.rs mounts so that it reaches the namespace");
        return;
    }
    for (args, expected) in [
        (&[][..], 1),
        (&["--no-announce-submounts"], 0),
        (&["--announce-submounts"], 1),
    ] {
        let mut session = Session::new(args);
        let mounted = Mounted::on(session.path("m"));
        fs::create_dir(session.path("m/below")).unwrap();
        fs::create_dir(session.path("d")).unwrap();
        let c = &mut session.client;
        let m = c.walk("m").unwrap();
        assert_eq!(m.attr.flags & 1, expected, "{args:?}");
        assert_eq!(c.walk("m/below").unwrap().attr.flags & 1, 0);
        assert_eq!(c.walk("d").unwrap().attr.flags & 1, 0);
        assert_eq!(
            c.getattr(ROOT).unwrap().attr.flags & 1,
            0,
            "the share is no mount of its own"
        );
        session.finish();
        drop(mounted);
    }
}
