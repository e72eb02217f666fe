//! Who the guest's users are on the host: translation of ids, through the whole
//! daemon.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use rustix::process::{getegid, geteuid};

use common::fuse_client::{Answer, Client, Request, SetAttr, groups_extension};
use common::session::Session;
use common::wire::{Encoder, Entry, ROOT, op};

/// Acting as other users takes root.
fn is_root(test: &str) -> bool {
    if !geteuid().is_root() {
        println!("{test} skips itself: it needs root");
        return false;
    }
    true
}

/// `MKDIR` by `(uid, gid)`, who is in a `group` besides.
fn mkdir_as(client: &mut Client, ids: (u32, u32), group: Option<u32>, name: &str) -> Answer<Entry> {
    (client.uid, client.gid) = ids;
    let body = Encoder::new().u32(0o755).u32(0).name(name);
    let mut request = Request::new(op::MKDIR, ROOT, body);
    if let Some(group) = group {
        request = request.extensions(groups_extension(&[group]));
    }
    let answer = client.call(&request);
    (client.uid, client.gid) = (0, 0);
    Ok(Entry::decode(&answer?))
}

fn set_owner(uid: Option<u32>, gid: Option<u32>) -> SetAttr {
    SetAttr {
        uid,
        gid,
        ..SetAttr::default()
    }
}

#[test]
fn ids_are_translated_in_every_operation_that_has_some() {
    if !is_root("ids_are_translated_in_every_operation_that_has_some") {
        return;
    }
    let args = [
        "--translate-uid=map:1000:5000:10",
        "--translate-gid=map:2000:6000:10",
        "--xattr",
    ];
    let mut session = Session::new(&args);
    // What the host has made.
    session.put("hosts", "");
    chown(session.path("hosts"), Some(5001), Some(6001)).unwrap();
    session.put("other", "");
    chown(session.path("other"), Some(1001), Some(9)).unwrap();
    let owner_on_host = |session: &Session, name: &str| {
        let stat = session.stat(name);
        (stat.uid(), stat.gid())
    };

    // LOOKUP, GETATTR, READDIRPLUS; an id that is in no range is itself.
    let hosts = session.client.walk("hosts").unwrap();
    assert_eq!((hosts.attr.uid, hosts.attr.gid), (1001, 2001));
    let attr = session.client.getattr(hosts.nodeid).unwrap().attr;
    assert_eq!((attr.uid, attr.gid), (1001, 2001));
    let other = session.client.walk("other").unwrap();
    assert_eq!((other.attr.uid, other.attr.gid), (1001, 9));
    let folder = session.client.opendir(ROOT).unwrap();
    let listed = session
        .client
        .readdirplus(ROOT, folder.fh, 0, 4096)
        .unwrap();
    let listed = listed.iter().find(|entry| entry.name == b"hosts").unwrap();
    let attr = listed.entry.unwrap().attr;
    assert_eq!((attr.uid, attr.gid), (1001, 2001));

    // MKDIR, MKNOD, SYMLINK, CREATE.
    let c = &mut session.client;
    (c.uid, c.gid) = (1002, 2002);
    for (name, made) in [
        ("folder", c.mkdir(ROOT, "folder", 0o755, 0).unwrap()),
        (
            "node",
            c.mknod(ROOT, "node", libc::S_IFREG | 0o600, 0, 0).unwrap(),
        ),
        ("link", c.symlink(ROOT, "link", "target").unwrap()),
        (
            "file",
            c.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap().0,
        ),
    ] {
        assert_eq!((made.attr.uid, made.attr.gid), (1002, 2002), "{name}");
    }
    (c.uid, c.gid) = (0, 0);
    for name in ["folder", "node", "link", "file"] {
        assert_eq!(owner_on_host(&session, name), (5002, 6002), "{name}");
    }

    // SETATTR, one at a time and both.
    let c = &mut session.client;
    let file = c.walk("file").unwrap().nodeid;
    let attr = c.setattr(file, &set_owner(Some(1003), None)).unwrap().attr;
    assert_eq!((attr.uid, attr.gid), (1003, 2002));
    let attr = c.setattr(file, &set_owner(None, Some(2003))).unwrap().attr;
    assert_eq!((attr.uid, attr.gid), (1003, 2003));
    assert_eq!(owner_on_host(&session, "file"), (5003, 6003));
    let c = &mut session.client;
    c.setattr(file, &set_owner(Some(7), Some(2999))).unwrap();
    assert_eq!(owner_on_host(&session, "file"), (7, 2999));
    let refused = session
        .client
        .setattr(file, &set_owner(Some(u32::MAX), None));
    assert_eq!(refused.err(), Some(libc::EINVAL));
    session.finish();
}

#[test]
fn supplementary_groups_are_translated() {
    if !is_root("supplementary_groups_are_translated") {
        return;
    }
    let mut session = Session::new(&["--translate-gid=guest:50:6050:1"]);
    // A set-gid bit stays for members of the directory's group, and for nobody else.
    chown(session.path(""), Some(0), Some(6050)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o2770);
    fs::set_permissions(session.path(""), mode).unwrap();
    for (group, kept) in [(Some(50), 0o2000), (None, 0), (Some(6051), 0)] {
        let c = &mut session.client;
        let name = format!("{group:?}");
        (c.uid, c.gid) = (1234, 2345);
        let mode = libc::S_IFREG | 0o2775;
        let body = Encoder::new().u32(mode).u32(0).u32(0).u32(0).name(&name);
        let mut request = Request::new(op::MKNOD, ROOT, body);
        if let Some(group) = group {
            request = request.extensions(groups_extension(&[group]));
        }
        c.call(&request).unwrap();
        assert_eq!(session.perm(&name), 0o775 | kept, "{group:?}");
    }
    session.finish();
}

#[test]
fn what_the_guests_kernel_allowed_is_not_judged_again() {
    if !is_root("what_the_guests_kernel_allowed_is_not_judged_again") {
        return;
    }
    // As a process with CAP_DAC_OVERRIDE, or root of a user namespace in the guest.
    let mut session = Session::new(&[]);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(session.path(""), mode).unwrap();
    for group in [None, Some(1001)] {
        let name = format!("{group:?}");
        mkdir_as(&mut session.client, (1000, 1000), group, &name).unwrap();
        let made = session.stat(&name);
        assert_eq!((made.uid(), made.gid()), (1000, 1000));
    }
    let c = &mut session.client;
    (c.uid, c.gid) = (1000, 1000);
    c.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    session.finish();
}

#[test]
fn all_of_a_range_may_become_one_user() {
    if !is_root("all_of_a_range_may_become_one_user") {
        return;
    }
    let args = [
        "--translate-uid=squash-guest:0:4242:65536",
        "--translate-uid=squash-host:0:7:65536",
        "--translate-gid=squash-guest:0:4343:65536",
    ];
    let mut session = Session::new(&args);
    for (ids, name) in [((0, 0), "root"), ((1000, 100), "user")] {
        let made = mkdir_as(&mut session.client, ids, None, name).unwrap();
        assert_eq!((made.attr.uid, made.attr.gid), (7, 4343));
        let stat = session.stat(name);
        assert_eq!((stat.uid(), stat.gid()), (4242, 4343));
    }
    session.finish();
}

#[test]
fn a_forbidden_user_makes_and_gets_nothing() {
    if !is_root("a_forbidden_user_makes_and_gets_nothing") {
        return;
    }
    let args = [
        "--translate-uid=forbid-guest:1000:10",
        "--translate-gid=forbid-guest:2000:10",
    ];
    let mut session = Session::new(&args);
    let c = &mut session.client;
    let refused = Some(libc::EPERM);
    for (ids, group) in [
        ((1000, 0), None),
        ((1009, 0), None),
        ((0, 2000), None),
        ((1234, 2345), Some(2009)),
    ] {
        let answer = mkdir_as(c, ids, group, "folder");
        assert_eq!(answer.err(), refused, "{ids:?} {group:?}");
    }
    mkdir_as(c, (1010, 1999), Some(1999), "allowed").unwrap();
    let node = c.walk("allowed").unwrap().nodeid;
    assert_eq!(c.setattr(node, &set_owner(Some(1005), None)).err(), refused);
    assert_eq!(c.setattr(node, &set_owner(None, Some(2005))).err(), refused);
    // The owner is not set where the group may not be.
    let both = set_owner(Some(7), Some(2005));
    assert_eq!(c.setattr(node, &both).err(), refused);
    assert_eq!(session.stat("allowed").uid(), 1010);
    assert!(!session.exists("folder"));
    session.finish();
}

#[test]
fn a_daemon_of_an_ordinary_user_may_show_its_ids_as_others() {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let args = [
        format!("--translate-uid=map:4000:{uid}:1"),
        format!("--translate-gid=map:4000:{gid}:1"),
    ];
    let mut session = Session::new(&[&args[0], &args[1]]);
    let c = &mut session.client;
    let made = mkdir_as(c, (4000, 4000), None, "folder").unwrap();
    assert_eq!((made.attr.uid, made.attr.gid), (4000, 4000));
    let stat = session.stat("folder");
    assert_eq!((stat.uid(), stat.gid()), (uid, gid));
    session.finish();
}
