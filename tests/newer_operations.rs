//! Operations that only newer guests send: files without a name, birth times,
//! flags of inodes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, CWD, StatxFlags, ioctl_getflags};
use rustix::process::geteuid;

use common::fuse_client::{Answer, Client, Request, groups_extension, label_extension};
use common::host_fs::HostFs;
use common::session::Session;
use common::wire::{Decoder, ENTRY_OUT, Encoder, Entry, OpenOut, ROOT, op};

const RDWR_TMPFILE: i32 = libc::O_RDWR | libc::O_TMPFILE;

const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
const GET_VERSION: u32 = 0x8008_7601;
const GET_XFLAGS: u32 = 0x801c_581f;
const SET_XFLAGS: u32 = 0x401c_5820;
const MEASURE_VERITY: u32 = 0xc004_6686;

const NODUMP: u32 = 0x40;
const IMMUTABLE: u32 = 0x10;
const APPEND_ONLY: u32 = 0x20;

const BASIC: u32 = 0x7ff;
const BTIME: u32 = 0x800;

fn tmpfile_request(parent: u64, flags: i32, mode: u32) -> Request {
    let body = Encoder::new().u32(flags.cast_unsigned()).u32(mode);
    // Linux names it so.
    let body = body.u32(0).u32(0).name("/");
    Request::new(op::TMPFILE, parent, body).space(ENTRY_OUT + 16)
}

fn tmpfile(client: &mut Client, parent: u64, flags: i32, mode: u32) -> Answer<(Entry, OpenOut)> {
    let body = client.call(&tmpfile_request(parent, flags, mode))?;
    let (entry, open) = body.split_at(ENTRY_OUT);
    Ok((Entry::decode(entry), OpenOut::decode(open)))
}

/// An ioctl as Linux sends it; what comes back behind the fixed part.
fn ioctl(
    client: &mut Client,
    (node, fh): (u64, u64),
    command: u32,
    input: &[u8],
    out_size: u32,
) -> Answer {
    let body = Encoder::new().u64(fh).u32(0).u32(command).u64(0);
    let in_size = u32::try_from(input.len()).unwrap();
    let body = body.u32(in_size).u32(out_size).bytes(input);
    let request = Request::new(op::IOCTL, node, body).space(16 + out_size as usize);
    let reply = client.call(&request)?;
    assert_eq!(reply[..16], [0; 16], "nothing is to be retried");
    Ok(reply[16..].to_vec())
}

fn flags(client: &mut Client, file: (u64, u64)) -> Answer<u32> {
    let bytes = ioctl(client, file, GET_FLAGS, &[], 4)?;
    Ok(u32::from_ne_bytes(bytes.try_into().unwrap()))
}

fn set_flags(client: &mut Client, file: (u64, u64), flags: u32) -> Answer<()> {
    let bytes = ioctl(client, file, SET_FLAGS, &flags.to_ne_bytes(), 0)?;
    assert!(bytes.is_empty());
    Ok(())
}

fn open(client: &mut Client, node: u64, flags: i32) -> (u64, u64) {
    (node, client.open(node, flags).unwrap().fh)
}

// ---- TMPFILE

#[test]
fn a_file_without_a_name_works_and_goes_without_a_trace() {
    let mut session = Session::new(&[]);
    let client = &mut session.client;
    let (entry, opened) = tmpfile(client, ROOT, RDWR_TMPFILE, 0o100_640).unwrap();
    assert_eq!((entry.attr.mode, entry.attr.nlink), (0o100_640, 0));
    client.write(entry.nodeid, opened.fh, 0, b"text").unwrap();
    assert_eq!(
        client.read(entry.nodeid, opened.fh, 0, 10).unwrap(),
        b"text"
    );
    assert_eq!(client.getattr(entry.nodeid).unwrap().attr.size, 4);
    client.release(entry.nodeid, opened.fh).unwrap();
    client.forget(entry.nodeid, 1);
    let left = fs::read_dir(session.path("")).unwrap().count();
    assert_eq!(left, 0);
    session.finish();
}

#[test]
fn a_file_without_a_name_gets_one_by_link() {
    let mut session = Session::new(&[]);
    let client = &mut session.client;
    let (entry, opened) = tmpfile(client, ROOT, RDWR_TMPFILE, 0o100_600).unwrap();
    client.write(entry.nodeid, opened.fh, 0, b"text").unwrap();
    let linked = client.link(entry.nodeid, ROOT, "name").unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (entry.nodeid, 1));
    assert_eq!(client.lookup(ROOT, "name").unwrap().nodeid, entry.nodeid);
    assert_eq!(session.get("name"), b"text");
    // With O_EXCL it never does.
    let client = &mut session.client;
    let exclusive = RDWR_TMPFILE | libc::O_EXCL;
    let (entry, _) = tmpfile(client, ROOT, exclusive, 0o100_600).unwrap();
    let refused = client.link(entry.nodeid, ROOT, "other");
    assert_eq!(refused.unwrap_err(), libc::ENOENT);
    session.finish();
}

#[test]
fn a_file_without_a_name_belongs_to_who_makes_it() {
    assert!(geteuid().is_root(), "changing the user needs root");
    let mut session = Session::new(&[]);
    let client = &mut session.client;
    (client.uid, client.gid) = (1234, 2345);
    let request = tmpfile_request(ROOT, RDWR_TMPFILE, 0o100_600);
    let request = request.extensions(groups_extension(&[2345]));
    let body = client.call(&request).unwrap();
    let entry = Entry::decode(&body[..ENTRY_OUT]);
    assert_eq!((entry.attr.uid, entry.attr.gid), (1234, 2345));
    session.finish();
}

#[test]
fn a_file_without_a_name_has_its_label() {
    assert!(geteuid().is_root(), "security labels need root");
    let mut session = Session::new(&["--security-label", "--modcaps=+sys_admin"]);
    let client = &mut session.client;
    let request = tmpfile_request(ROOT, RDWR_TMPFILE, 0o100_600);
    let request = request.extensions(label_extension("security.test", b"label"));
    let body = client.call(&request).unwrap();
    let entry = Entry::decode(&body[..ENTRY_OUT]);
    client.link(entry.nodeid, ROOT, "name").unwrap();
    let value = client.getxattr(entry.nodeid, "security.test", 100);
    assert_eq!(value.unwrap(), b"label");
    session.finish();
}

#[test]
fn what_is_no_way_to_make_a_file_without_a_name_is_refused() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let client = &mut session.client;
    let file = client.walk("f").unwrap().nodeid;
    let to_read = libc::O_RDONLY | libc::O_TMPFILE;
    let refused = tmpfile(client, ROOT, to_read, 0o100_600);
    assert_eq!(refused.unwrap_err(), libc::EINVAL);
    let refused = tmpfile(client, file, RDWR_TMPFILE, 0o100_600);
    assert_eq!(refused.unwrap_err(), libc::ENOTDIR);
    session.finish();
    let mut session = Session::new(&["--readonly"]);
    let refused = tmpfile(&mut session.client, ROOT, RDWR_TMPFILE, 0o100_600);
    assert_eq!(refused.unwrap_err(), libc::EROFS);
    session.finish();
}

// ---- STATX

#[derive(Debug, Default, PartialEq)]
struct Status {
    mask: u32,
    nlink: u32,
    uid: u32,
    mode: u32,
    ino: u64,
    size: u64,
    /// Access, birth, change and modification: seconds and nanoseconds.
    times: [(u64, u32); 4],
}

fn statx(client: &mut Client, node: u64, flags: u32, mask: u32) -> Answer<Status> {
    let body = Encoder::new().u32(0).u32(0).u64(0).u32(flags).u32(mask);
    let reply = client.call(&Request::new(op::STATX, node, body).space(288))?;
    assert_eq!(reply.len(), 288);
    let mut d = Decoder(&reply[32..]);
    let mask = d.u32();
    d.u32();
    d.u64();
    let (nlink, uid, _gid) = (d.u32(), d.u32(), d.u32());
    let mode = u32::from(d.u16());
    d.u16();
    let (ino, size, _blocks, _) = (d.u64(), d.u64(), d.u64(), d.u64());
    let times = [(); 4].map(|()| {
        let time = (d.u64(), d.u32());
        assert_eq!(d.u32(), 0, "padding of a time");
        time
    });
    d.bytes(8);
    assert!(d.0.iter().all(|&byte| byte == 0), "device and spare fields");
    Ok(Status {
        mask,
        nlink,
        uid,
        mode,
        ino,
        size,
        times,
    })
}

#[test]
fn the_birth_of_a_file_is_told() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let asked = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let host = rustix::fs::statx(CWD, session.path("f"), AtFlags::empty(), asked).unwrap();
    let client = &mut session.client;
    let node = client.walk("f").unwrap().nodeid;
    let status = statx(client, node, 0, BASIC | BTIME).unwrap();
    assert_eq!(status.mask, host.stx_mask & (BASIC | BTIME));
    assert_eq!(status.mode, 0o100_644);
    assert_eq!((status.ino, status.size), (host.stx_ino, 4));
    let host_times = [
        host.stx_atime,
        host.stx_btime,
        host.stx_ctime,
        host.stx_mtime,
    ];
    let host_times = host_times.map(|time| (time.tv_sec.cast_unsigned(), time.tv_nsec));
    assert_eq!(status.times, host_times);
    session.finish();
}

#[test]
fn nothing_is_told_that_was_not_asked_for() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let client = &mut session.client;
    let node = client.walk("f").unwrap().nodeid;
    let nothing = statx(client, node, 0, 0).unwrap();
    assert_eq!(nothing, Status::default());
    let size = statx(client, node, 0, 0x200).unwrap();
    let expected = Status {
        mask: 0x200,
        size: 4,
        ..Status::default()
    };
    assert_eq!(size, expected);
    // Bits that nobody knows are not answered.
    let unknown = statx(client, node, 0, !(BASIC | BTIME)).unwrap();
    assert_eq!(unknown.mask, 0);
    statx(client, node, 0x2000, BASIC).unwrap();
    assert_eq!(statx(client, node, 0x100, BASIC), Err(libc::EINVAL));
    assert!(statx(client, 0xdead_beef, 0, BASIC).is_err());
    session.finish();
}

// ---- IOCTL

#[test]
fn flags_of_inodes_are_those_of_the_host() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    fs::create_dir(session.path("d")).unwrap();
    let client = &mut session.client;
    let node = client.walk("f").unwrap().nodeid;
    let file = open(client, node, libc::O_RDONLY);
    let on_host = File::open(session.path("f")).unwrap();
    let host_flags = || ioctl_getflags(&on_host).map(|flags| flags.bits());
    let Ok(before) = host_flags() else {
        let refused = flags(&mut session.client, file);
        assert_eq!(refused, Err(libc::ENOTTY), "a file system without flags");
        return;
    };
    let client = &mut session.client;
    assert_eq!(flags(client, file), Ok(before));
    set_flags(client, file, before | NODUMP).unwrap();
    assert_eq!(host_flags(), Ok(before | NODUMP));
    assert_eq!(flags(client, file), Ok(before | NODUMP));
    // The other form of the same, and back.
    let mut xflags = ioctl(client, file, GET_XFLAGS, &[], 28).unwrap();
    let word = u32::from_ne_bytes(xflags[..4].try_into().unwrap());
    assert_ne!(word & 0x80, 0, "FS_XFLAG_NODUMP");
    xflags[..4].copy_from_slice(&(word & !0x80).to_ne_bytes());
    ioctl(client, file, SET_XFLAGS, &xflags, 0).unwrap();
    assert_eq!(host_flags(), Ok(before));
    // Directories have flags, too.
    let node = client.walk("d").unwrap().nodeid;
    let directory = (node, client.opendir(node).unwrap().fh);
    let plain = flags(client, directory).unwrap();
    set_flags(client, directory, plain | NODUMP).unwrap();
    assert_eq!(flags(client, directory).unwrap() & NODUMP, NODUMP);
    // Generations are as they are.
    assert_eq!(ioctl(client, file, GET_VERSION, &[], 8).unwrap().len(), 4);
    session.finish();
}

#[test]
fn what_is_immutable_or_grows_only_stays_so() {
    assert!(geteuid().is_root(), "these flags are root's");
    let mut session = Session::new(&["--modcaps=+linux_immutable"]);
    for name in ["fixed", "log"] {
        session.put(name, "text");
    }
    let client = &mut session.client;
    let fixed = client.walk("fixed").unwrap().nodeid;
    let file = open(client, fixed, libc::O_RDONLY);
    let plain = flags(client, file).unwrap();
    set_flags(client, file, plain | IMMUTABLE).unwrap();
    let refused = client.open(fixed, libc::O_WRONLY);
    assert_eq!(refused.unwrap_err(), libc::EPERM);
    assert_eq!(client.unlink(ROOT, "fixed"), Err(libc::EPERM));
    set_flags(client, file, plain).unwrap();
    client.unlink(ROOT, "fixed").unwrap();

    let log = client.walk("log").unwrap().nodeid;
    let file = open(client, log, libc::O_RDONLY);
    let plain = flags(client, file).unwrap();
    set_flags(client, file, plain | APPEND_ONLY).unwrap();
    let refused = client.open(log, libc::O_WRONLY);
    assert_eq!(refused.unwrap_err(), libc::EPERM);
    let append = libc::O_WRONLY | libc::O_APPEND;
    let (_, fh) = open(client, log, append);
    let written = client.write_flags(log, fh, 4, b" more", 0, append);
    assert_eq!(written, Ok(5));
    set_flags(client, file, plain).unwrap();
    assert_eq!(session.get("log"), b"text more");
    session.finish();
    // Without the capability they are not the guest's to change.
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let client = &mut session.client;
    let node = client.walk("f").unwrap().nodeid;
    let file = open(client, node, libc::O_RDONLY);
    let immutable = flags(client, file).unwrap() | IMMUTABLE;
    assert_eq!(set_flags(client, file, immutable), Err(libc::EPERM));
    session.finish();
}

#[test]
fn a_file_that_is_not_measured_has_no_digest() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let client = &mut session.client;
    let node = client.walk("f").unwrap().nodeid;
    let file = open(client, node, libc::O_RDONLY);
    for room in [0_u16, 32, 64, u16::MAX] {
        let [low, high] = room.to_ne_bytes();
        let header = [0, 0, low, high];
        let refused = ioctl(client, file, MEASURE_VERITY, &header, 68).unwrap_err();
        let expected = [libc::ENODATA, libc::EOPNOTSUPP, libc::ENOTTY];
        assert!(expected.contains(&refused), "{refused}");
    }
    session.finish();
}

#[test]
fn commands_that_are_not_known_and_arguments_that_do_not_fit_are_refused() {
    let mut session = Session::new(&[]);
    session.put("f", "text");
    let client = &mut session.client;
    let node = client.walk("f").unwrap().nodeid;
    let file = open(client, node, libc::O_RDWR);
    // FIBMAP, FIONREAD, FS_IOC_FIEMAP, FICLONE, FITRIM, a random one.
    for command in [
        1,
        0x541b,
        0xc020_660b,
        0x4004_9409,
        0xc018_5879,
        0xdead_beef,
    ] {
        let refused = ioctl(client, file, command, &[0; 32], 64);
        assert_eq!(refused, Err(libc::ENOTTY), "{command:#x}");
    }
    for len in 0..4 {
        let refused = ioctl(client, file, SET_FLAGS, &vec![0; len], 0);
        assert_eq!(refused, Err(libc::EINVAL));
        let refused = ioctl(client, file, MEASURE_VERITY, &vec![0; len], 68);
        assert_eq!(refused, Err(libc::EINVAL));
    }
    let refused = ioctl(client, file, SET_XFLAGS, &[0; 27], 0);
    assert_eq!(refused, Err(libc::EINVAL));
    let on_host = File::open(session.path("f")).unwrap();
    if ioctl_getflags(&on_host).is_ok() {
        let refused = ioctl(&mut session.client, file, GET_FLAGS, &[], 3);
        assert_eq!(refused, Err(libc::EINVAL), "no room");
    }
    let client = &mut session.client;
    let unknown = (node, 0xdead_beef);
    assert_eq!(flags(client, unknown), Err(libc::EBADF));
    assert_eq!(session.stat("f").size(), 4);
    session.finish();
    let mut session = Session::new(&["--readonly"]);
    session.put("f", "text");
    let client = &mut session.client;
    let node = client.walk("f").unwrap().nodeid;
    let file = open(client, node, libc::O_RDONLY);
    assert_eq!(set_flags(client, file, NODUMP), Err(libc::EROFS));
    session.finish();
    // A directory that need not be opened has no handle.
    let mut session = Session::new(&["--readonly", "--cache=always", "--no-opendir"]);
    let on_host = File::open(session.path("")).unwrap();
    let host_flags = ioctl_getflags(&on_host).map(|flags| flags.bits());
    let seen = flags(&mut session.client, (ROOT, 0));
    assert_eq!(seen, host_flags.map_err(|errno| errno.raw_os_error()));
    session.finish();
}

#[test]
fn the_project_of_a_file_is_the_hosts() {
    const INHERIT: u32 = 0x2000_0000;
    const INHERIT_X: u32 = 0x200;
    if !rustix::process::geteuid().is_root() {
        return println!("mounting a file system needs root: skips itself");
    }
    for kind in ["ext4", "xfs"] {
        let host = HostFs::new(kind);
        let share = host.share();
        fs::create_dir(share.path().join("dir")).unwrap();
        fs::write(share.path().join("file"), "text").unwrap();
        let mut session = Session::over(share, &[]);
        let client = &mut session.client;
        let file = client.walk("file").unwrap().nodeid;
        let file = (file, client.open(file, libc::O_RDWR).unwrap().fh);
        let dir = client.walk("dir").unwrap().nodeid;
        let dir = (dir, client.opendir(dir).unwrap().fh);
        let root = (ROOT, client.opendir(ROOT).unwrap().fh);
        for node in [file, dir, root] {
            let before = ioctl(client, node, GET_XFLAGS, &[], 28).unwrap();
            let changed = |at: usize, bits: u32| {
                let mut changed = before.clone();
                for (byte, bit) in changed[at..].iter_mut().zip(bits.to_ne_bytes()) {
                    *byte ^= bit;
                }
                changed
            };
            for refused in [changed(12, 4711), changed(0, INHERIT_X)] {
                let refused = ioctl(client, node, SET_XFLAGS, &refused, 0);
                assert_eq!(refused, Err(libc::EINVAL), "{kind}");
            }
            let plain = flags(client, node).unwrap();
            assert_eq!(set_flags(client, node, plain ^ INHERIT), Err(libc::EINVAL));
            // What else these commands do is as before.
            ioctl(client, node, SET_XFLAGS, &changed(0, 0x80), 0).unwrap();
            set_flags(client, node, plain).unwrap();
            let after = ioctl(client, node, GET_XFLAGS, &[], 28).unwrap();
            assert_eq!(after, before, "{kind}");
        }
        session.finish();
    }
}
