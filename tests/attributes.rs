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
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use common::fuse_client::Client;
use common::session::Session;

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

// ---- any file, any size, any name

#[test]
fn attributes_of_every_kind_of_file() {
    // What begins with `user.` is for files and folders only.
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
