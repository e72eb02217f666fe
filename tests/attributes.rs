//! Extended attributes and what hangs on them, by the options that change it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use common::frontend::Config;
use common::fuse_client::{Answer, Client, Request, SetAttr, groups_extension, label_extension};
use common::session::Session;
use common::wire::{
    ENTRY_OUT, Encoder, Entry, FATTR_KILL_SUIDGID, OPEN_KILL_SUIDGID, ROOT, SETXATTR_ACL_KILL_SGID,
    WRITE_KILL_SUIDGID, init, op,
};

// ---- helpers

/// An extended attribute as the host has it; links are not followed.
fn host_value(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1 << 16];
    let len = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(len);
    Some(value)
}

fn set_on_host(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Names that the guest sees, in order.
fn names(client: &mut Client, node: u64) -> Vec<String> {
    let list = client.listxattr(node, 1 << 16).unwrap();
    assert_eq!(client.listxattr_size(node), Ok(list.len() as u32));
    let mut names = common::wire::xattr_names(&list);
    names.sort();
    names
}

/// What guests may call attributes that the host keeps as `user.guest.*`.
const ALL_BELOW_USER_GUEST: &str = "--xattrmap=:map::user.guest.:";

/// Changing the user of a request, and most attributes, need a daemon that is
/// root.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skips itself: it needs root");
    }
    root
}

// ---- any file, any size, any name

#[test]
fn attributes_of_every_kind_of_file() {
    // What begins with `user.` is for files and folders only.
    if !is_root() {
        return;
    }
    let mut session = Session::new(&["--xattr", "--modcaps=+sys_admin"]);
    session.put("file", "");
    fs::create_dir(session.path("folder")).unwrap();
    std::os::unix::fs::symlink("file", session.path("link")).unwrap();
    let _socket = UnixListener::bind(session.path("socket")).unwrap();
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, session.path("fifo"), FileType::Fifo, mode, 0).unwrap();
    for name in ["file", "folder", "link", "socket", "fifo"] {
        let c = &mut session.client;
        let node = c.walk(name).unwrap().nodeid;
        c.setxattr(node, "trusted.x", name.as_bytes(), 0, false)
            .unwrap();
        assert_eq!(c.getxattr(node, "trusted.x", 100).unwrap(), name.as_bytes());
        assert_eq!(c.getxattr_size(node, "trusted.x"), Ok(name.len() as u32));
        assert_eq!(names(c, node), ["trusted.x"]);
        assert_eq!(
            host_value(&session.path(name), "trusted.x").unwrap(),
            name.as_bytes()
        );
        let c = &mut session.client;
        c.removexattr(node, "trusted.x").unwrap();
        assert_eq!(c.getxattr(node, "trusted.x", 100), Err(libc::ENODATA));
        assert_eq!(names(c, node), [""; 0]);
    }
    session.finish();
}

#[test]
fn values_of_every_size_come_back_or_get_the_hosts_answer() {
    let mut session = Session::new(&["--xattr"]);
    session.put("f", "");
    session.put("on-host", "");
    let on_host = session.path("on-host");
    let f = session.client.walk("f").unwrap().nodeid;
    for size in [0, 1, 255, 1000, 4000, 4096, 16384, 65535, 65536] {
        let value = vec![b'v'; size];
        let host = rustix::fs::setxattr(&on_host, "user.x", &value, XattrFlags::empty());
        let c = &mut session.client;
        let guest = c.setxattr(f, "user.x", &value, 0, false);
        let host = host.map_err(rustix::io::Errno::raw_os_error);
        assert_eq!(guest, host, "{size}");
        if guest.is_ok() {
            let size = u32::try_from(size).unwrap();
            assert_eq!(c.getxattr_size(f, "user.x"), Ok(size));
            assert_eq!(c.getxattr(f, "user.x", 65536).unwrap(), value);
            if size > 1 {
                assert_eq!(c.getxattr(f, "user.x", size - 1), Err(libc::ERANGE));
            }
        }
    }
    let too_long = vec![b'v'; 65537];
    let refused = session.client.setxattr(f, "user.x", &too_long, 0, false);
    assert_eq!(refused, Err(libc::E2BIG));
    session.finish();
}

// ---- the map

#[test]
fn a_map_renames_in_both_directions() {
    let mut session = Session::new(&[ALL_BELOW_USER_GUEST]);
    session.put("f", "");
    set_on_host(&session.path("f"), "user.of-the-host", b"hidden");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    for name in ["security.capability", "trusted.x", "user.x", "user.guest.x"] {
        c.setxattr(f, name, name.as_bytes(), 0, false).unwrap();
        assert_eq!(c.getxattr(f, name, 100).unwrap(), name.as_bytes());
    }
    assert_eq!(
        names(c, f),
        ["security.capability", "trusted.x", "user.guest.x", "user.x"]
    );
    assert_eq!(c.getxattr(f, "user.of-the-host", 100), Err(libc::ENODATA));
    c.removexattr(f, "user.guest.x").unwrap();
    assert_eq!(c.getxattr(f, "user.guest.x", 100), Err(libc::ENODATA));
    let path = session.path("f");
    assert_eq!(
        host_value(&path, "user.guest.trusted.x").unwrap(),
        b"trusted.x"
    );
    assert_eq!(host_value(&path, "user.guest.user.guest.x"), None);
    assert_eq!(host_value(&path, "user.of-the-host").unwrap(), b"hidden");
    session.finish();
}

#[test]
fn rules_refuse_hide_and_rename_by_scope() {
    let map = "--xattrmap=:prefix:all:trusted.:user.v.: /bad/client/user.secret./x/ \
               ,bad,server,,user.hidden, :unsupported:client:user.odd:: :ok:all:::";
    let mut session = Session::new(&[map]);
    session.put("f", "");
    let path = session.path("f");
    for name in ["user.hidden", "user.secret.x", "user.plain"] {
        set_on_host(&path, name, b"v");
    }
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    c.setxattr(f, "trusted.x", b"v", 0, false).unwrap();
    assert_eq!(
        c.setxattr(f, "user.secret.y", b"v", 0, false),
        Err(libc::EPERM)
    );
    assert_eq!(c.getxattr(f, "user.secret.x", 9), Err(libc::ENODATA));
    assert_eq!(c.getxattr_size(f, "user.secret.x"), Err(libc::ENODATA));
    assert_eq!(c.removexattr(f, "user.secret.x"), Err(libc::EPERM));
    assert_eq!(
        c.setxattr(f, "user.odd", b"v", 0, false),
        Err(libc::ENOTSUP)
    );
    assert_eq!(c.getxattr(f, "user.odd", 9), Err(libc::ENOTSUP));
    assert_eq!(c.removexattr(f, "user.odd"), Err(libc::ENOTSUP));
    assert_eq!(c.getxattr(f, "user.hidden", 9).unwrap(), b"v");
    assert_eq!(names(c, f), ["trusted.x", "user.plain", "user.secret.x"]);
    assert_eq!(host_value(&path, "user.v.trusted.x").unwrap(), b"v");
    assert_eq!(host_value(&path, "user.secret.y"), None);
    session.finish();
}

#[test]
fn a_renamed_attribute_is_not_reached_by_the_hosts_name() {
    // With the rule that guards it, and without.
    for map in [
        "--xattrmap=:map:security.:user.v.:",
        "--xattrmap=:prefix:all:security.:user.v.: :ok:all:::",
    ] {
        let mut session = Session::new(&[map]);
        session.put("f", "");
        let c = &mut session.client;
        let f = c.walk("f").unwrap().nodeid;
        c.setxattr(f, "security.capability", b"of root", 0, false)
            .unwrap();
        let direct = "user.v.security.capability";
        assert_eq!(c.setxattr(f, direct, b"forged", 0, false), Err(libc::EPERM));
        assert_eq!(c.getxattr(f, direct, 100), Err(libc::ENODATA));
        assert_eq!(c.removexattr(f, direct), Err(libc::EPERM));
        assert_eq!(
            c.getxattr(f, "security.capability", 100).unwrap(),
            b"of root"
        );
        assert_eq!(names(c, f), ["security.capability"]);
        session.finish();
    }
}

#[test]
fn a_list_that_is_hidden_is_empty() {
    let mut session = Session::new(&["--xattrmap=:bad:all:::"]);
    session.put("f", "");
    set_on_host(&session.path("f"), "user.x", b"v");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    assert_eq!(c.listxattr_size(f), Ok(0));
    assert_eq!(c.listxattr(f, 100).unwrap(), b"");
    assert_eq!(c.listxattr(f, 1).unwrap(), b"");
    session.finish();
}

#[test]
fn a_map_and_its_names_are_bytes() {
    let mut session = Session::new(&["--xattrmap=:map:user.€:user.v€.:"]);
    session.put("f", "");
    let path = session.path("f");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    c.setxattr(f, "user.€x", b"v", 0, false).unwrap();
    let odd = OsStr::from_bytes(b"user.\xff\xfe");
    c.setxattr(f, odd, b"w", 0, false).unwrap();
    assert_eq!(c.getxattr(f, odd, 9).unwrap(), b"w");
    assert_eq!(host_value(&path, "user.v€.user.€x").unwrap(), b"v");
    session.finish();
}

// ---- privileges of a file that changes

/// CAP_NET_ADMIN, permitted and effective, as `setcap` writes it.
const SOME_CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A way to change the file `f`, which is open besides.
type Change = fn(&mut Client, u64, u64);

/// A change with a name and all that it needs.
type Named<'a> = (&'a str, &'a dyn Fn(&mut Client));

/// What a user without privileges does, as the guest's kernel sends it when it
/// leaves set-id bits to the daemon.
const CHANGES: &[(&str, Change)] = &[
    ("write", |c, f, fh| {
        let flags = WRITE_KILL_SUIDGID;
        c.write_flags(f, fh, 0, b"x", flags, libc::O_RDWR).unwrap();
    }),
    ("truncate", |c, f, _| {
        let size = SetAttr {
            size: Some(1),
            valid: FATTR_KILL_SUIDGID,
            ..SetAttr::default()
        };
        c.setattr(f, &size).unwrap();
    }),
    ("ftruncate", |c, f, fh| {
        let size = SetAttr {
            size: Some(1),
            fh: Some(fh),
            valid: FATTR_KILL_SUIDGID,
            ..SetAttr::default()
        };
        c.setattr(f, &size).unwrap();
    }),
    ("chown", |c, f, _| {
        let gid = SetAttr {
            gid: Some(1001),
            valid: FATTR_KILL_SUIDGID,
            ..SetAttr::default()
        };
        c.setattr(f, &gid).unwrap();
    }),
    ("fallocate", |c, f, fh| {
        c.fallocate(f, fh, 0, 10_000, 0).unwrap();
    }),
    ("punch a hole", |c, f, fh| {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        c.fallocate(f, fh, 0, 4096, mode.cast_unsigned()).unwrap();
    }),
    ("copy_file_range", |c, f, fh| {
        let from = c.lookup(ROOT, "other").unwrap().nodeid;
        let from_fh = c.open(from, libc::O_RDONLY).unwrap().fh;
        c.copy_file_range((from, from_fh, 0), (f, fh, 0), 4, 0)
            .unwrap();
    }),
    ("open with O_TRUNC", |c, f, _| {
        let flags = libc::O_WRONLY | libc::O_TRUNC;
        c.open_with(f, flags, OPEN_KILL_SUIDGID).unwrap();
    }),
    ("create of what is there with O_TRUNC", |c, _, _| {
        let flags = libc::O_RDWR | libc::O_TRUNC;
        c.create_with(ROOT, "f", flags, 0o600, OPEN_KILL_SUIDGID)
            .unwrap();
    }),
];

/// A session with the files `f` and `other`, both of uid 1000.
fn session_with_files(args: &[&str]) -> Session {
    let session = Session::new(args);
    for name in ["f", "other"] {
        session.put(name, "some text");
        std::os::unix::fs::chown(session.path(name), Some(1000), Some(1000)).unwrap();
    }
    session
}

/// Gives the file `f` set-id bits and capabilities.
fn give_privileges(session: &Session, attribute: &str) {
    let path = session.path("f");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    set_on_host(&path, attribute, &SOME_CAPABILITY);
}

#[test]
fn a_file_that_a_user_changes_loses_its_privileges() {
    if !is_root() {
        return;
    }
    let renamed = "user.guest.security.capability";
    for (args, attribute) in [
        (&["--killpriv-v2", "--xattr"][..], "security.capability"),
        (
            &["--killpriv-v2", "--xattr", "--writeback"],
            "security.capability",
        ),
        (&["--killpriv-v2", ALL_BELOW_USER_GUEST], renamed),
    ] {
        let mut session = session_with_files(args);
        assert!(session.init.unwrap().has(init::HANDLE_KILLPRIV_V2));
        let c = &mut session.client;
        let f = c.lookup(ROOT, "f").unwrap().nodeid;
        let fh = c.open(f, libc::O_RDWR).unwrap().fh;
        (c.uid, c.gid) = (1000, 1000);
        for (what, change) in CHANGES {
            give_privileges(&session, attribute);
            change(&mut session.client, f, fh);
            assert_eq!(session.perm("f"), 0o777, "{what} with {args:?}");
            let left = host_value(&session.path("f"), attribute);
            assert_eq!(left, None, "{what} with {args:?}");
        }
        session.finish();
    }
}

#[test]
fn set_group_id_without_execution_is_no_privilege() {
    if !is_root() {
        return;
    }
    for (mode, left) in [(0o2767, 0o2767), (0o6767, 0o2767), (0o6710, 0o710)] {
        let mut session = session_with_files(&["--killpriv-v2"]);
        let path = session.path("f");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let c = &mut session.client;
        let f = c.lookup(ROOT, "f").unwrap().nodeid;
        let fh = c.open(f, libc::O_RDWR).unwrap().fh;
        (c.uid, c.gid) = (1000, 1000);
        c.write_flags(f, fh, 0, b"x", WRITE_KILL_SUIDGID, libc::O_RDWR)
            .unwrap();
        assert_eq!(session.perm("f"), left, "{mode:o}");
        // The daemon is itself again.
        let c = &mut session.client;
        (c.uid, c.gid) = (0, 0);
        assert_eq!(c.mkdir(ROOT, "d", 0o755, 0).unwrap().attr.gid, 0);
        session.finish();
    }
}

#[test]
fn a_file_that_root_changes_keeps_its_set_id_bits_only() {
    if !is_root() {
        return;
    }
    for (args, attribute) in [
        (&["--xattr"][..], "security.capability"),
        (&["--xattr", "--killpriv-v2"], "security.capability"),
        (&[ALL_BELOW_USER_GUEST], "user.guest.security.capability"),
    ] {
        let mut session = session_with_files(args);
        let c = &mut session.client;
        let f = c.lookup(ROOT, "f").unwrap().nodeid;
        let fh = c.open(f, libc::O_RDWR).unwrap().fh;
        let other = c.lookup(ROOT, "other").unwrap().nodeid;
        let other_fh = c.open(other, libc::O_RDONLY).unwrap().fh;
        let size = SetAttr {
            size: Some(1),
            ..SetAttr::default()
        };
        let changes: [Named<'_>; 5] = [
            ("write", &|c| {
                c.write(f, fh, 0, b"x").unwrap();
            }),
            ("truncate", &|c| {
                c.setattr(f, &size).unwrap();
            }),
            ("fallocate", &|c| c.fallocate(f, fh, 0, 10_000, 0).unwrap()),
            ("copy", &|c| {
                let to = (f, fh, 0);
                c.copy_file_range((other, other_fh, 0), to, 4, 0).unwrap();
            }),
            ("cut", &|c| {
                c.open(f, libc::O_WRONLY | libc::O_TRUNC).unwrap();
            }),
        ];
        for (what, change) in changes {
            give_privileges(&session, attribute);
            change(&mut session.client);
            assert_eq!(session.perm("f"), 0o6777, "{what} with {args:?}");
            let left = host_value(&session.path("f"), attribute);
            assert_eq!(left, None, "{what} with {args:?}");
        }
        session.finish();
    }
}

#[test]
fn a_change_of_owner_drops_set_id_bits_unless_the_guest_sets_them_again() {
    if !is_root() {
        return;
    }
    let mut session = session_with_files(&["--xattr"]);
    let f = session.client.lookup(ROOT, "f").unwrap().nodeid;
    give_privileges(&session, "security.capability");
    let owner = SetAttr {
        uid: Some(1001),
        ..SetAttr::default()
    };
    session.client.setattr(f, &owner).unwrap();
    assert_eq!(session.perm("f"), 0o777);
    let attribute = host_value(&session.path("f"), "security.capability");
    assert_eq!(attribute, None);
    let owner_and_mode = SetAttr {
        uid: Some(1000),
        mode: Some(0o4711),
        ..SetAttr::default()
    };
    session.client.setattr(f, &owner_and_mode).unwrap();
    assert_eq!(session.perm("f"), 0o4711);
    session.finish();
}

#[test]
fn a_guest_that_drops_set_id_bits_itself_leaves_those_of_a_cut_file_to_the_daemon() {
    if !is_root() {
        return;
    }
    let mut session = session_with_files(&[]);
    assert!(!session.init.unwrap().has(init::HANDLE_KILLPRIV_V2));
    let f = session.client.lookup(ROOT, "f").unwrap().nodeid;
    for (uid, left) in [(0, 0o6777), (1000, 0o777)] {
        give_privileges(&session, "security.capability");
        let c = &mut session.client;
        (c.uid, c.gid) = (uid, uid);
        c.open(f, libc::O_WRONLY | libc::O_TRUNC).unwrap();
        assert_eq!(session.perm("f"), left, "uid {uid}");
        // Opening alone changes nothing.
        give_privileges(&session, "security.capability");
        session.client.open(f, libc::O_WRONLY).unwrap();
        assert_eq!(session.perm("f"), 0o6777);
    }
    session.finish();
}

#[test]
fn a_caller_who_is_not_named_is_taken_for_who_may_write() {
    if !is_root() {
        return;
    }
    // From 6.12 on the kernel names those only that make something.
    const NOBODY: u32 = u32::MAX;
    for (killpriv, flags) in [(&[][..], 0), (&["--killpriv-v2"], OPEN_KILL_SUIDGID)] {
        for (owner, mode, left_if_cut) in [
            (0, 0o6755, if flags == 0 { 0o6755 } else { 0o755 }),
            (0, 0o6775, 0o775),
            (1000, 0o6755, 0o755),
        ] {
            let mut session = session_with_files(killpriv);
            let path = session.path("f");
            std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
            let c = &mut session.client;
            let f = c.lookup(ROOT, "f").unwrap().nodeid;
            let fh = c.open(f, libc::O_RDWR).unwrap().fh;
            (c.uid, c.gid) = (NOBODY, NOBODY);
            let set_id = || fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            set_id();
            c.open_with(f, libc::O_WRONLY | libc::O_TRUNC, flags)
                .unwrap();
            assert_eq!(session.perm("f"), left_if_cut, "{killpriv:?} {mode:o}");
            set_id();
            session.client.fallocate(f, fh, 0, 10_000, 0).unwrap();
            // Without the option the guest has dropped them before it asked.
            let only_roots = owner == 0 && mode & 0o022 == 0;
            let left = if flags == 0 || only_roots {
                mode
            } else {
                mode & 0o777
            };
            assert_eq!(session.perm("f"), left, "{killpriv:?} {mode:o}");
            session.finish();
        }
    }
}

#[test]
fn a_change_that_is_announced_takes_set_id_bits_from_the_guests_view() {
    if !is_root() {
        return;
    }
    let announced = SetAttr::default();
    for (args, uid, owner, mode, left) in [
        (&["--killpriv-v2"][..], 1000, 1000, 0o6777, 0o777),
        // Nobody executes by the group: the bit means something else.
        (&["--killpriv-v2"], 1000, 1000, 0o6767, 0o2767),
        (&["--killpriv-v2"], 0, 1000, 0o6777, 0o6777),
        (&["--killpriv-v2"], u32::MAX, 1000, 0o6777, 0o777),
        (&["--killpriv-v2"], u32::MAX, 0, 0o6755, 0o6755),
        (&[], 1000, 1000, 0o6777, 0o6777),
    ] {
        let mut session = session_with_files(args);
        let path = session.path("f");
        std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let c = &mut session.client;
        let f = c.lookup(ROOT, "f").unwrap().nodeid;
        (c.uid, c.gid) = (uid, uid);
        let seen = c.setattr(f, &announced).unwrap().attr;
        assert_eq!(seen.perm(), left, "{args:?} {uid} {owner} {mode:o}");
        assert_eq!(session.perm("f"), left);
        session.finish();
    }
}

#[test]
fn capabilities_out_of_the_daemons_reach_are_out_of_the_guests() {
    if !is_root() {
        return;
    }
    // Without CAP_SYS_ADMIN such names can neither be read nor removed.
    let map = "--xattrmap=:prefix:all:security.:trusted.: :ok:all:::";
    let mut session = session_with_files(&[map]);
    let host_name = "trusted.security.capability";
    set_on_host(&session.path("f"), host_name, &SOME_CAPABILITY);
    let c = &mut session.client;
    let f = c.lookup(ROOT, "f").unwrap().nodeid;
    assert_eq!(
        c.getxattr(f, "security.capability", 100),
        Err(libc::ENODATA)
    );
    let fh = c.open(f, libc::O_RDWR).unwrap().fh;
    assert_eq!(c.write(f, fh, 0, b"x"), Ok(1));
    session.finish();
}

// ---- access control lists

const ACCESS_LIST: &str = "system.posix_acl_access";
const DEFAULT_LIST: &str = "system.posix_acl_default";
const LISTS: u64 = init::POSIX_ACL | init::DONT_MASK | init::SETXATTR_EXT;

// Tags of entries.
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A list as the kernel has it: version 2, then tag, permissions and id of each
/// entry; those about no one in particular have an id of all ones.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        let id = if matches!(*tag, USER | GROUP) {
            *id
        } else {
            u32::MAX
        };
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// `rwx` for the owner, and for one more user as far as the mask goes.
fn list_with_user(uid: u32, mask: u16) -> Vec<u8> {
    list(&[
        (USER_OBJ, 7, 0),
        (USER, 7, uid),
        (GROUP_OBJ, 5, 0),
        (MASK, mask, 0),
        (OTHER, 0, 0),
    ])
}

#[test]
fn access_control_lists_are_the_hosts() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(&["--posix-acl"]);
    assert!(session.init.unwrap().has(LISTS));
    session.put("f", "");
    let path = session.path("f");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let value = list_with_user(1000, 6);
    c.setxattr(f, ACCESS_LIST, &value, 0, true).unwrap();
    assert_eq!(host_value(&path, ACCESS_LIST).unwrap(), value);
    assert_eq!(c.getxattr(f, ACCESS_LIST, 100).unwrap(), value);
    assert_eq!(names(c, f), [ACCESS_LIST]);
    // The mask is the mode's group.
    assert_eq!(c.getattr(f).unwrap().attr.perm(), 0o760);
    let mode = SetAttr {
        mode: Some(0o740),
        ..SetAttr::default()
    };
    c.setattr(f, &mode).unwrap();
    assert_eq!(
        c.getxattr(f, ACCESS_LIST, 100).unwrap(),
        list_with_user(1000, 4)
    );
    assert_eq!(
        c.setxattr(f, DEFAULT_LIST, &value, 0, true),
        Err(libc::EACCES),
        "a file has none"
    );
    c.removexattr(f, ACCESS_LIST).unwrap();
    assert_eq!(c.getxattr(f, ACCESS_LIST, 100), Err(libc::ENODATA));
    session.finish();
}

#[test]
fn a_default_list_goes_before_the_umask() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(&["--posix-acl"]);
    for folder in ["with", "without"] {
        fs::create_dir(session.path(folder)).unwrap();
        fs::set_permissions(session.path(folder), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let default = list_with_user(2000, 7);
    set_on_host(&session.path("with"), DEFAULT_LIST, &default);
    for (folder, dir_mode, file_mode) in [("with", 0o770, 0o660), ("without", 0o700, 0o600)] {
        for uid in [0, 1000] {
            let c = &mut session.client;
            let parent = c.walk(folder).unwrap().nodeid;
            (c.uid, c.gid) = (uid, uid);
            let [file, dir, fifo] = ["file", "dir", "fifo"].map(|kind| format!("{kind}{uid}"));
            c.create_masked(parent, &file, libc::O_RDWR, 0o666, 0o077)
                .unwrap();
            let made = c.mkdir(parent, &dir, 0o777, 0o077).unwrap();
            assert_eq!(made.attr.perm(), dir_mode, "{folder} {uid}");
            c.mknod(parent, &fifo, libc::S_IFIFO | 0o666, 0, 0o077)
                .unwrap();
            let at = |name: &str| format!("{folder}/{name}");
            assert_eq!(session.perm(&at(&file)), file_mode, "{folder} {uid}");
            assert_eq!(session.perm(&at(&fifo)), file_mode, "{folder} {uid}");
            assert_eq!(session.perm(&at(&dir)), dir_mode, "{folder} {uid}");
            let inherited = host_value(&session.path(at(&dir)), DEFAULT_LIST);
            assert_eq!(inherited.is_some(), folder == "with");
            // The umask of one request is not that of the next.
            let c = &mut session.client;
            let open = c.mkdir(parent, &format!("open{uid}"), 0o777, 0).unwrap();
            let expected = if folder == "with" { 0o770 } else { 0o777 };
            assert_eq!(open.attr.perm(), expected);
            (c.uid, c.gid) = (0, 0);
        }
    }
    session.finish();
}

#[test]
fn without_lists_the_umask_is_the_guests_business() {
    let mut session = Session::new(&["--xattr"]);
    let c = &mut session.client;
    assert_eq!(session.init.unwrap().flags & LISTS, 0);
    let made = c.mkdir(ROOT, "d", 0o777, 0o077).unwrap();
    assert_eq!(made.attr.perm(), 0o777);
    session.finish();
}

#[test]
fn set_group_id_goes_with_a_list_where_the_guest_says_so() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(&["--posix-acl"]);
    let value = list_with_user(2000, 7);
    // Group 0 is the daemon's own.
    for gid in [0, 5000] {
        for (flags, left) in [(SETXATTR_ACL_KILL_SGID, 0o770), (0, 0o2770)] {
            session.put("f", "");
            let path = session.path("f");
            std::os::unix::fs::chown(&path, Some(1000), Some(gid)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
            let c = &mut session.client;
            let f = c.walk("f").unwrap().nodeid;
            // Kernels that know of mapped mounts do not say who it is.
            (c.uid, c.gid) = (u32::MAX, u32::MAX);
            c.setxattr_with(f, ACCESS_LIST, &value, flags).unwrap();
            (c.uid, c.gid) = (0, 0);
            assert_eq!(session.perm("f"), left, "group {gid}, flags {flags}");
            // The daemon is itself again.
            let c = &mut session.client;
            c.mkdir(ROOT, "d", 0o755, 0).unwrap();
            assert_eq!(c.lookup(ROOT, "d").unwrap().attr.gid, 0);
            c.rmdir(ROOT, "d").unwrap();
        }
    }
    session.finish();
}

#[test]
fn a_list_that_grants_a_group_lets_its_members_create() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(&["--posix-acl"]);
    fs::create_dir(session.path("d")).unwrap();
    fs::set_permissions(session.path("d"), fs::Permissions::from_mode(0o700)).unwrap();
    let granted = list(&[
        (USER_OBJ, 7, 0),
        (GROUP_OBJ, 0, 0),
        (GROUP, 7, 3000),
        (MASK, 7, 0),
        (OTHER, 0, 0),
    ]);
    set_on_host(&session.path("d"), ACCESS_LIST, &granted);
    let c = &mut session.client;
    let d = c.walk("d").unwrap().nodeid;
    // The guest names the folder's own group only, and has checked the list.
    (c.uid, c.gid) = (1000, 1000);
    let (entry, _) = c.create(d, "f", libc::O_RDWR, 0o600).unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 1000));
    session.finish();
}

#[test]
fn a_guest_without_lists_cannot_mount_where_they_are_insisted_on() {
    for missing in [init::POSIX_ACL, init::DONT_MASK, init::SETXATTR_EXT] {
        let mut session = Session::before_init(&["--posix-acl=always"], &Config::default());
        for _ in 0..3 {
            let answer = session.client.init_with(7, 39, init::LINUX & !missing);
            assert_eq!(answer.unwrap_err(), libc::EPROTO);
            assert_eq!(session.client.getattr(ROOT).unwrap_err(), libc::EIO);
        }
        assert!(session.client.init().has(LISTS));
        session.client.getattr(ROOT).unwrap();
        let daemon = session.finish();
        let said = "the guest does not support what --posix-acl needs, so it cannot mount: \
                    its kernel has to be Linux";
        assert_eq!(daemon.log_count(said), 1, "{:#?}", daemon.log());
        assert_eq!(daemon.log_count("or start with --posix-acl=auto"), 1);
        assert_eq!(daemon.log_count("--posix-acl"), 1);
    }
}

#[test]
fn a_guest_without_lists_goes_without_where_they_are_wished_for() {
    let mut session = Session::before_init(&["--posix-acl=auto"], &Config::default());
    session.put("f", "");
    let offered = init::LINUX & !init::DONT_MASK;
    let out = session.client.init_with(7, 39, offered).unwrap();
    assert_eq!(out.flags & LISTS, 0);
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    let value = list_with_user(1000, 7);
    assert_eq!(
        c.setxattr(f, ACCESS_LIST, &value, 0, false),
        Err(libc::ENOTSUP)
    );
    assert!(c.init().has(LISTS), "the next guest has them");
    let daemon = session.finish();
    assert_eq!(
        daemon.log_count("the guest does not support --posix-acl"),
        1
    );
}

#[test]
fn names_that_only_begin_like_a_list_are_ordinary() {
    let mut session = Session::new(&["--xattrmap=:map:system.:user.v.:"]);
    session.put("f", "");
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    for name in ["system.posix_acl", "system.posix_acl_acces", "system.p"] {
        assert_eq!(c.setxattr(f, name, b"v", 0, false), Ok(()), "{name}");
    }
    for name in [ACCESS_LIST, DEFAULT_LIST] {
        assert_eq!(c.setxattr(f, name, b"v", 0, false), Err(libc::ENOTSUP));
        assert_eq!(c.getxattr(f, name, 9), Err(libc::ENOTSUP));
        assert_eq!(c.removexattr(f, name), Err(libc::ENOTSUP));
    }
    session.finish();
}

#[test]
fn lists_are_hidden_where_the_guest_does_not_enforce_them() {
    if !is_root() {
        return;
    }
    // The second one would give them another name.
    for option in ["--xattr", "--xattrmap=:prefix:all:x.:system.: :ok:all:::"] {
        let mut session = Session::new(&[option]);
        session.put("f", "");
        set_on_host(&session.path("f"), ACCESS_LIST, &list_with_user(1000, 7));
        set_on_host(&session.path("f"), "user.x", b"v");
        let c = &mut session.client;
        let f = c.walk("f").unwrap().nodeid;
        assert_eq!(names(c, f), ["user.x"]);
        for name in [ACCESS_LIST, "x.posix_acl_access"] {
            let answer = c.getxattr(f, name, 100);
            assert!(answer.is_err(), "{name}: {answer:?}");
        }
        session.finish();
    }
}

#[test]
fn rules_that_keep_lists_from_the_host_are_warned_about() {
    for (map, warnings) in [
        ("--xattrmap=:map::user.v.:", 2),
        ("--xattrmap=:map:trusted.:user.v.:", 0),
    ] {
        let session = Session::new(&["--posix-acl", map]);
        let daemon = session.finish();
        assert_eq!(daemon.log_count("from the host"), warnings);
    }
}

// ---- security labels

/// What the label of the tests is called; the host has no use for it.
const LABEL: &str = "security.of-the-guest";

const LABELS: &[&str] = &["--security-label", "--modcaps=+sys_admin"];

/// What can be made, with the length of the body in front of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Create,
    Folder,
    Link,
    Fifo,
    Socket,
    Device,
    File,
}

const KINDS: [Kind; 7] = [
    Kind::Create,
    Kind::Folder,
    Kind::Link,
    Kind::Fifo,
    Kind::Socket,
    Kind::Device,
    Kind::File,
];

/// A request that makes something with mode 0666 (0777 for a folder).
fn making(kind: Kind, parent: u64, name: &str, umask: u32) -> Request {
    let node = |mode: u32, rdev| {
        let body = Encoder::new().u32(mode | 0o666).u32(rdev).u32(umask).u32(0);
        Request::new(op::MKNOD, parent, body.name(name))
    };
    match kind {
        Kind::Create => {
            let flags = (libc::O_CREAT | libc::O_EXCL | libc::O_RDWR).cast_unsigned();
            let body = Encoder::new().u32(flags).u32(0o666).u32(umask).u32(0);
            Request::new(op::CREATE, parent, body.name(name))
        }
        Kind::Folder => {
            let body = Encoder::new().u32(0o777).u32(umask).name(name);
            Request::new(op::MKDIR, parent, body)
        }
        Kind::Link => {
            let body = Encoder::new().name(name).name("target");
            Request::new(op::SYMLINK, parent, body)
        }
        Kind::Fifo => node(libc::S_IFIFO, 0),
        Kind::Socket => node(libc::S_IFSOCK, 0),
        Kind::Device => node(libc::S_IFCHR, 0x103),
        Kind::File => node(libc::S_IFREG, 0),
    }
}

/// Who may make such things.
fn maker(kind: Kind) -> u32 {
    if kind == Kind::Device { 0 } else { 1000 }
}

fn make(client: &mut Client, request: &Request) -> Answer<Entry> {
    let body = client.call(request)?;
    Ok(Entry::decode(&body[..ENTRY_OUT]))
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn everything_is_made_with_its_label() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(LABELS);
    assert!(session.init.unwrap().has(init::SECURITY_CTX));
    for kind in KINDS {
        let name = format!("{kind:?}");
        let request = making(kind, ROOT, &name, 0o022);
        let request = request.extensions(label_extension(LABEL, name.as_bytes()));
        let c = &mut session.client;
        (c.uid, c.gid) = (maker(kind), 1001);
        let entry = make(c, &request).unwrap();
        (c.uid, c.gid) = (0, 0);
        let owner = (entry.attr.uid, entry.attr.gid);
        assert_eq!(owner, (maker(kind), 1001), "{kind:?}");
        assert_eq!(c.lookup(ROOT, &name).unwrap().nodeid, entry.nodeid);
        assert_eq!(
            c.getxattr(entry.nodeid, LABEL, 100).unwrap(),
            name.as_bytes()
        );
        let path = session.path(&name);
        assert_eq!(host_value(&path, LABEL).unwrap(), name.as_bytes());
        assert_eq!(session.stat(&name).ino(), entry.attr.ino);
    }
    assert_eq!(names_in(&session.path("")).len(), KINDS.len());
    session.finish();
}

#[test]
fn a_label_changes_nothing_else_of_what_is_made() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(&[LABELS, &["--posix-acl"]].concat());
    for folder in ["plain", "set-gid", "listed"] {
        fs::create_dir(session.path(folder)).unwrap();
        std::os::unix::fs::chown(session.path(folder), None, Some(5000)).unwrap();
        fs::set_permissions(session.path(folder), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let set_gid = fs::Permissions::from_mode(0o2777);
    fs::set_permissions(session.path("set-gid"), set_gid).unwrap();
    let default = list_with_user(2000, 7);
    set_on_host(&session.path("listed"), DEFAULT_LIST, &default);
    for folder in ["plain", "set-gid", "listed"] {
        let parent = session.client.walk(folder).unwrap().nodeid;
        for kind in KINDS {
            let c = &mut session.client;
            (c.uid, c.gid) = (maker(kind), 1001);
            let bare = make(c, &making(kind, parent, "bare", 0o027)).unwrap();
            let request = making(kind, parent, "labelled", 0o027);
            let labelled = make(c, &request.extensions(label_extension(LABEL, b"v"))).unwrap();
            let parts = |entry: &Entry| {
                let attr = entry.attr;
                (attr.mode, attr.uid, attr.gid, attr.nlink, attr.rdev)
            };
            assert_eq!(parts(&labelled), parts(&bare), "{folder} {kind:?}");
            let paths = ["bare", "labelled"].map(|name| session.path(format!("{folder}/{name}")));
            for list in [ACCESS_LIST, DEFAULT_LIST] {
                let lists = paths.each_ref().map(|path| host_value(path, list));
                assert_eq!(lists[0], lists[1], "{folder} {kind:?}");
            }
            let c = &mut session.client;
            (c.uid, c.gid) = (0, 0);
            for name in ["bare", "labelled"] {
                match kind {
                    Kind::Folder => c.rmdir(parent, name).unwrap(),
                    _ => c.unlink(parent, name).unwrap(),
                }
            }
        }
    }
    session.finish();
}

#[test]
fn nobody_finds_a_name_without_its_label() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(LABELS);
    let folder = session.path("");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::Acquire) {
                for name in names_in(&folder) {
                    if !name.starts_with(".virtiofsd-") {
                        seen += 1;
                        let label = host_value(&folder.join(&name), LABEL);
                        assert!(label.is_some(), "{name} has no label");
                        // Each is looked at once, when it is new.
                        let _ = fs::remove_file(folder.join(&name));
                        let _ = fs::remove_dir(folder.join(&name));
                    }
                }
            }
            seen
        });
        for n in 0..50 {
            for kind in KINDS {
                let request = making(kind, ROOT, &format!("{kind:?}{n}"), 0);
                let request = request.extensions(label_extension(LABEL, b"v"));
                // Whether it is still there when it is looked up is chance.
                let _ = make(&mut session.client, &request);
            }
        }
        done.store(true, Ordering::Release);
        assert!(watcher.join().unwrap() > 0);
    });
    session.finish();
}

#[test]
fn what_cannot_be_labelled_is_not_made() {
    if !is_root() {
        return;
    }
    let map = "--xattrmap=:bad:client:security.secret::                :unsupported:client:security.odd:: :ok:all:::";
    let mut session = Session::new(&[LABELS, &[map]].concat());
    let long = format!("security.{}", "x".repeat(300));
    for (name, label, errno) in [
        ("security.secret", &b"v"[..], libc::EPERM),
        ("security.odd", b"v", libc::ENOTSUP),
        ("no-such-namespace.x", b"v", libc::ENOTSUP),
        (&long, b"v", libc::ERANGE),
        ("security.capability", b"no capability", libc::EINVAL),
    ] {
        for kind in KINDS {
            let fds = session.daemon.open_fds();
            let request = making(kind, ROOT, "x", 0).extensions(label_extension(name, label));
            let refused = make(&mut session.client, &request);
            assert_eq!(refused.unwrap_err(), errno, "{kind:?} with {name}");
            assert_eq!(names_in(&session.path("")), [""; 0], "{kind:?} with {name}");
            session.daemon.expect_open_fds(fds);
        }
    }
    // The next request is not in anyone else's name.
    let made = session.client.mkdir(ROOT, "d", 0o755, 0).unwrap();
    assert_eq!((made.attr.uid, made.attr.gid), (0, 0));
    session.finish();
}

#[test]
fn a_name_that_exists_keeps_its_label() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(LABELS);
    session.put("x", "text");
    set_on_host(&session.path("x"), LABEL, b"first");
    for kind in KINDS {
        let request = making(kind, ROOT, "x", 0).extensions(label_extension(LABEL, b"second"));
        let refused = make(&mut session.client, &request);
        assert_eq!(refused.unwrap_err(), libc::EEXIST, "{kind:?}");
    }
    // Without O_EXCL it is opened.
    let flags = (libc::O_CREAT | libc::O_RDONLY).cast_unsigned();
    let body = Encoder::new().u32(flags).u32(0o600).u32(0).u32(0).name("x");
    let request = Request::new(op::CREATE, ROOT, body);
    let request = request.extensions(label_extension(LABEL, b"second"));
    let opened = make(&mut session.client, &request).unwrap();
    assert_eq!(opened.attr.ino, session.stat("x").ino());
    assert_eq!(host_value(&session.path("x"), LABEL).unwrap(), b"first");
    assert_eq!(names_in(&session.path("")), ["x"]);
    session.finish();
}

#[test]
fn labelled_things_leave_no_descriptor() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(LABELS);
    let fds = session.daemon.open_fds();
    for n in 0..50 {
        for kind in KINDS {
            let request = making(kind, ROOT, &format!("{kind:?}{n}"), 0);
            let request = request.extensions(label_extension(LABEL, b"v"));
            let c = &mut session.client;
            let body = c.call(&request).unwrap();
            let node = Entry::decode(&body[..ENTRY_OUT]).nodeid;
            if kind == Kind::Create {
                let fh = u64::from_le_bytes(body[ENTRY_OUT..ENTRY_OUT + 8].try_into().unwrap());
                c.release(node, fh).unwrap();
            }
            c.forget(node, 1);
        }
    }
    // An answer comes after all that was asked before.
    session.client.getattr(ROOT).unwrap();
    session.daemon.expect_open_fds(fds);
    session.finish();
}

#[test]
fn a_labelled_file_is_opened_as_it_was_asked_for() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(LABELS);
    for (access, reads, writes) in [
        (libc::O_RDONLY, true, false),
        (libc::O_WRONLY, false, true),
        (libc::O_RDWR, true, true),
    ] {
        let name = format!("f{access}");
        let flags = (libc::O_CREAT | access).cast_unsigned();
        // Its mode allows nothing, which the one who makes it does not feel.
        let body = Encoder::new().u32(flags).u32(0).u32(0).u32(0).name(&name);
        let request = Request::new(op::CREATE, ROOT, body);
        let request = request.extensions(label_extension(LABEL, b"v"));
        let c = &mut session.client;
        (c.uid, c.gid) = (1000, 1000);
        let body = c.call(&request).unwrap();
        (c.uid, c.gid) = (0, 0);
        let node = Entry::decode(&body[..ENTRY_OUT]).nodeid;
        let fh = u64::from_le_bytes(body[ENTRY_OUT..ENTRY_OUT + 8].try_into().unwrap());
        let refused = Err(libc::EBADF);
        let written = c.write(node, fh, 0, b"text");
        assert_eq!(written, if writes { Ok(4) } else { refused });
        let read = c.read(node, fh, 0, 4).map(drop);
        assert_eq!(read, if reads { Ok(()) } else { Err(libc::EBADF) });
        assert_eq!(session.perm(&name), 0);
    }
    session.finish();
}

#[test]
fn a_label_goes_through_the_map_and_beside_a_group() {
    if !is_root() {
        return;
    }
    let map = "--xattrmap=:map:security.:user.guest.:";
    let mut session = Session::new(&["--security-label=auto", map]);
    fs::create_dir(session.path("d")).unwrap();
    std::os::unix::fs::chown(session.path("d"), None, Some(3000)).unwrap();
    fs::set_permissions(session.path("d"), fs::Permissions::from_mode(0o770)).unwrap();
    let c = &mut session.client;
    let d = c.walk("d").unwrap().nodeid;
    (c.uid, c.gid) = (1000, 1000);
    let label = label_extension("security.x", b"v");
    let group = groups_extension(&[3000]);
    for (name, extensions) in [
        ("a", [label.clone(), group.clone()].concat()),
        ("b", [group, label].concat()),
    ] {
        let request = making(Kind::Create, d, name, 0).extensions(extensions);
        make(c, &request).unwrap();
    }
    for name in ["d/a", "d/b"] {
        let label = host_value(&session.path(name), "user.guest.security.x");
        assert_eq!(label.unwrap(), b"v");
    }
    session.finish();
}

#[test]
fn kernels_before_6_3_send_the_label_without_saying_so() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(LABELS);
    for kind in KINDS {
        let name = format!("{kind:?}");
        let mut request = making(kind, ROOT, &name, 0);
        request.body.extend(label_extension(LABEL, b"v"));
        make(&mut session.client, &request).unwrap();
        assert_eq!(host_value(&session.path(&name), LABEL).unwrap(), b"v");
        // What says that there is none.
        let mut request = making(kind, ROOT, &format!("{name}-bare"), 0);
        request.body.extend([8, 0, 0, 0, 0, 0, 0, 0]);
        make(&mut session.client, &request).unwrap();
        let mut request = making(kind, ROOT, "nonsense", 0);
        request.body.extend([1, 2, 3]);
        assert_eq!(
            make(&mut session.client, &request).unwrap_err(),
            libc::EINVAL
        );
    }
    assert_eq!(names_in(&session.path("")).len(), 2 * KINDS.len());
    session.finish();
}

#[test]
fn a_file_without_a_name_has_its_label_when_it_gets_one() {
    if !is_root() {
        return;
    }
    let mut session = Session::new(LABELS);
    let request = |label| {
        let flags = (libc::O_TMPFILE | libc::O_RDWR).cast_unsigned();
        let body = Encoder::new().u32(flags).u32(0o100_600).u32(0).u32(0);
        let request = Request::new(op::TMPFILE, ROOT, body.name("/"));
        let request = request.space(ENTRY_OUT + 16);
        request.extensions(label_extension(label, b"v"))
    };
    let c = &mut session.client;
    let node = make(c, &request(LABEL)).unwrap().nodeid;
    assert_eq!(c.getxattr(node, LABEL, 9).unwrap(), b"v");
    c.link(node, ROOT, "named").unwrap();
    let refused = make(c, &request("no-such-namespace.x"));
    assert_eq!(refused.unwrap_err(), libc::ENOTSUP);
    assert_eq!(host_value(&session.path("named"), LABEL).unwrap(), b"v");
    assert_eq!(names_in(&session.path("")), ["named"]);
    session.finish();
}

#[test]
fn labels_that_nobody_asked_for_are_not_stored() {
    let mut session = Session::new(&["--xattr"]);
    assert!(!session.init.unwrap().has(init::SECURITY_CTX));
    let request = making(Kind::Folder, ROOT, "d", 0).extensions(label_extension("user.x", b"v"));
    make(&mut session.client, &request).unwrap();
    assert_eq!(host_value(&session.path("d"), "user.x"), None);
    session.finish();
    let mut session = Session::before_init(&["--security-label"], &Config::default());
    let offered = init::LINUX & !init::SECURITY_CTX;
    let refused = session.client.init_with(7, 39, offered);
    assert_eq!(refused.unwrap_err(), libc::EPROTO);
    session.finish();
    let mut session = Session::before_init(&["--security-label=auto"], &Config::default());
    session.client.init_with(7, 39, offered).unwrap();
    assert_eq!(session.finish().log_count("--security-label"), 1);
}
