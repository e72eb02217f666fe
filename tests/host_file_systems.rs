//! What depends on the host's file system: space, quotas, what it cannot do, what
//! it shares between files, what reaches its disk. Each test makes its file system
//! on a loop device, so all of them need root; one that the kernel does not have is
//! left out.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use common::frontend::REQUEST;
use common::fuse_client::{Client, Request, SetAttr};
use common::host_fs::{HostFs, Mounted, run as run_program};
use common::session::Session;
use common::wait_until_old;
use common::wire::{Encoder, Entry, FSYNC_FDATASYNC, ROOT, op};

const MIB: u64 = 1 << 20;

/// A command that must succeed.
fn run(command: &str) {
    let output = Command::new("bash")
        .args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin; {command}")])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
}

/// A new file system, and a session over it.
struct Host {
    /// Ended before the file system is unmounted.
    session: Option<Session>,
    folder: PathBuf,
    image: TempDir,
}

/// Makes a file system and mounts it on a folder; `None` where that cannot be.
fn mount(kind: &str, size: u64, mkfs: &str, options: &str) -> Option<(TempDir, TempDir)> {
    if !rustix::process::geteuid().is_root() {
        println!("left out: making a file system takes root");
        return None;
    }
    let folder = TempDir::with_prefix("virtiofsd-share-").unwrap();
    let image = TempDir::with_prefix("virtiofsd-image-").unwrap();
    let (at, file) = (folder.path().display(), image.path().join("image"));
    let command = if kind == "tmpfs" {
        format!("mount -t tmpfs -o size={size},{options} none {at}")
    } else {
        File::create(&file).unwrap().set_len(size).unwrap();
        let file = file.display();
        let quiet = if kind == "ext4" { "-q -F" } else { "-q" };
        run(&format!("mkfs.{kind} {quiet} {mkfs} {file}"));
        format!("mount -t {kind} -o loop,{options} {file} {at}")
    };
    let mounted = Command::new("sh").args(["-c", &command]).output().unwrap();
    if !mounted.status.success() {
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        let is_known = known.split_whitespace().any(|word| word == kind);
        let errors = String::from_utf8_lossy(&mounted.stderr);
        assert!(
            !is_known || options.contains("quota"),
            "{command}: {errors}"
        );
        println!("left out: the kernel has no {kind} with {options}");
        return None;
    }
    Some((folder, image))
}

impl Host {
    /// With these options of the daemon.
    fn with(kind: &str, size: u64, mkfs: &str, options: &str, args: &[&str]) -> Option<Self> {
        let (folder, image) = mount(kind, size, mkfs, options)?;
        Some(Self {
            folder: folder.path().to_owned(),
            session: Some(Session::over(folder, args)),
            image,
        })
    }

    fn new(kind: &str, size: u64) -> Option<Self> {
        Self::with(kind, size, "", "defaults", &["--xattr"])
    }

    fn session(&mut self) -> &mut Session {
        self.session.as_mut().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Counters of the loop device: sectors written and flushes.
    fn written(&self) -> (u64, u64) {
        let file = self.image.path().join("image");
        let output = Command::new("losetup")
            .arg("-j")
            .arg(file)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let device = text.split(':').next().unwrap().trim_start_matches("/dev/");
        let stat = fs::read_to_string(format!("/sys/block/{device}/stat")).unwrap();
        let fields: Vec<u64> = stat
            .split_whitespace()
            .map(|field| field.parse().unwrap())
            .collect();
        (fields[6], fields[15])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            if thread::panicking() {
                drop(session);
            } else {
                session.finish();
            }
        }
        // The folder itself was the session's.
        run(&format!("umount -l {0}; rmdir {0}", self.folder.display()));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lost+found")
        .collect();
    names.sort();
    names
}

/// Writes until the host refuses; the error, and how much there is then.
fn write_until_refused(c: &mut Client, node: u64, fh: u64, limit: u64) -> (i32, u64) {
    let block = vec![7; MIB as usize / 8];
    let mut length = 0;
    loop {
        match c.write(node, fh, length, &block) {
            Ok(n) => length += u64::from(n),
            Err(errno) => return (errno, length),
        }
        assert!(length <= limit, "the host refuses nothing");
    }
}

// ---- What the host refuses

#[test]
fn a_full_file_system_is_enospc_and_leaves_nothing() {
    for (kind, size) in [("ext4", 16 * MIB), ("tmpfs", 8 * MIB), ("xfs", 300 * MIB)] {
        let Some(mut host) = Host::with(kind, size, "", "defaults", &["--xattr"]) else {
            continue;
        };
        let session = host.session();
        let c = &mut session.client;
        let (f, fh) = c.create(ROOT, "f", libc::O_RDWR, 0o600).unwrap();
        let (f, fh) = (f.nodeid, fh.fh);
        let (errno, length) = write_until_refused(c, f, fh, size);
        assert_eq!(errno, libc::ENOSPC, "{kind}");
        assert!(length > 0);
        assert_eq!(c.getattr(f).unwrap().attr.size, length);
        let fallocated = c.fallocate(f, fh, 0, 2 * size, 0);
        assert_eq!(fallocated, Err(libc::ENOSPC), "{kind}");
        let fds = session.daemon.open_fds();
        let c = &mut session.client;
        let (g, gh) = match c.create(ROOT, "g", libc::O_RDWR, 0o600) {
            Ok((g, open)) => (g.nodeid, open.fh),
            Err(errno) => {
                assert_eq!(errno, libc::ENOSPC);
                continue;
            }
        };
        let copied = c.copy_file_range((f, fh, 0), (g, gh, 0), 4 * MIB, 0);
        // XFS shares the blocks.
        assert!(kind == "xfs" || copied == Err(libc::ENOSPC), "{copied:?}");
        c.release(g, gh).unwrap();
        c.forget(g, 1);
        c.unlink(ROOT, "g").unwrap();
        assert_eq!(session.daemon.open_fds(), fds);
        // There is room again once something goes.
        let c = &mut session.client;
        let cut = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        c.setattr(f, &cut).unwrap();
        assert_eq!(c.write(f, fh, 0, &[7; 100_000]), Ok(100_000));
        assert_eq!(names(&host.folder), ["f"]);
    }
}

#[test]
fn a_file_system_without_inodes_is_enospc_and_leaves_nothing() {
    for (kind, mkfs, options) in [("ext4", "-N 16", "defaults"), ("tmpfs", "", "nr_inodes=6")] {
        let Some(mut host) = Host::with(kind, 16 * MIB, mkfs, options, &["--xattr"]) else {
            continue;
        };
        let folder = host.folder.clone();
        let session = host.session();
        let mut made = Vec::new();
        while let Ok(entry) = session
            .client
            .mkdir(ROOT, &format!("d{:02}", made.len()), 0o700, 0)
        {
            made.push(entry.nodeid);
        }
        let (before, fds) = (names(&folder), session.daemon.open_fds());
        let c = &mut session.client;
        assert_eq!(c.mkdir(ROOT, "x", 0o700, 0), Err(libc::ENOSPC), "{kind}");
        assert_eq!(c.symlink(ROOT, "x", "y"), Err(libc::ENOSPC));
        assert_eq!(
            c.mknod(ROOT, "x", libc::S_IFIFO | 0o600, 0, 0),
            Err(libc::ENOSPC)
        );
        assert_eq!(
            c.create(ROOT, "x", libc::O_RDWR, 0o600).unwrap_err(),
            libc::ENOSPC
        );
        assert_eq!(c.lookup(ROOT, "x"), Err(libc::ENOENT));
        assert_eq!(names(&folder), before);
        assert_eq!(session.daemon.open_fds(), fds);
        session.client.rmdir(ROOT, "d00").unwrap();
        session.client.forget(made[0], 1);
        session
            .client
            .create(ROOT, "x", libc::O_RDWR, 0o600)
            .unwrap();
    }
}

/// How a kind of file system is told to allow user 1234 1 MiB and 8 files.
const QUOTAS: [(&str, u64, &str, &str, &str); 2] = [
    (
        "ext4",
        32 * MIB,
        "-O quota -E quotatype=usrquota",
        "usrquota",
        "setquota -u 1234 0 1024 0 8 MOUNT",
    ),
    (
        "xfs",
        300 * MIB,
        "",
        "uquota",
        "xfs_quota -x -c 'limit -u bhard=1m ihard=8 1234' MOUNT",
    ),
];

#[test]
fn a_quota_of_a_user_that_is_used_up_is_edquot() {
    for (kind, size, mkfs, options, limit) in QUOTAS {
        let Some(mut host) = Host::with(kind, size, mkfs, options, &["--xattr"]) else {
            continue;
        };
        let folder = host.folder.clone();
        run(&limit.replace("MOUNT", &folder.display().to_string()));
        let c = &mut host.session().client;
        (c.uid, c.gid) = (1234, 1234);
        let (f, open) = c.create(ROOT, "f", libc::O_RDWR, 0o600).unwrap();
        let (errno, length) = write_until_refused(c, f.nodeid, open.fh, 2 * MIB);
        assert_eq!(errno, libc::EDQUOT, "{kind}");
        assert!(length >= MIB / 2);
        let fallocated = c.fallocate(f.nodeid, open.fh, 0, 4 * MIB, 0);
        assert_eq!(fallocated, Err(libc::EDQUOT));
        let mut made = 1;
        let errno = loop {
            match c.create(ROOT, &format!("made{made}"), libc::O_RDWR, 0o600) {
                Ok(_) => made += 1,
                Err(errno) => break errno,
            }
        };
        assert_eq!((errno, made), (libc::EDQUOT, 8), "{kind}");
        assert_eq!(c.mkdir(ROOT, "x", 0o700, 0), Err(libc::EDQUOT));
        assert_eq!(c.symlink(ROOT, "x", "y"), Err(libc::EDQUOT));
        assert_eq!(names(&folder).len(), 8);
        // Another user is not concerned.
        (c.uid, c.gid) = (1235, 1235);
        c.mkdir(ROOT, "x", 0o700, 0).unwrap();
    }
}

#[test]
fn a_quota_of_a_subvolume_that_is_used_up_is_edquot() {
    let Some(mut host) = Host::new("btrfs", 256 * MIB) else {
        return;
    };
    let at = host.folder.display().to_string();
    run(&format!(
        "btrfs quota enable {at} && btrfs qgroup limit 16M {at}"
    ));
    let c = &mut host.session().client;
    let (f, open) = c.create(ROOT, "f", libc::O_RDWR, 0o600).unwrap();
    let (errno, length) = write_until_refused(c, f.nodeid, open.fh, 32 * MIB);
    assert_eq!(errno, libc::EDQUOT);
    assert!(length >= 8 * MIB);
    let fallocated = c.fallocate(f.nodeid, open.fh, 0, 32 * MIB, 0);
    assert_eq!(fallocated, Err(libc::EDQUOT));
    assert_eq!(c.getattr(f.nodeid).unwrap().attr.size, length);
}

#[test]
fn a_file_system_that_is_mounted_read_only_is_erofs() {
    let Some((folder, image)) = mount("ext4", 16 * MIB, "", "defaults") else {
        return;
    };
    fs::write(folder.path().join("f"), "text").unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    let path = folder.path().to_owned();
    run(&format!("mount -o remount,ro {}", path.display()));
    let mut host = Host {
        folder: path.clone(),
        session: Some(Session::over(folder, &["--xattr"])),
        image,
    };
    let session = host.session();
    let fds = session.daemon.open_fds();
    let c = &mut session.client;
    let f = c.walk("f").unwrap().nodeid;
    const EROFS: i32 = libc::EROFS;
    assert_eq!(c.open(f, libc::O_RDWR).unwrap_err(), EROFS);
    assert_eq!(c.create(ROOT, "x", libc::O_RDWR, 0o600).unwrap_err(), EROFS);
    assert_eq!(c.mkdir(ROOT, "x", 0o700, 0), Err(EROFS));
    assert_eq!(c.symlink(ROOT, "x", "y"), Err(EROFS));
    assert_eq!(c.mknod(ROOT, "x", libc::S_IFIFO | 0o600, 0, 0), Err(EROFS));
    assert_eq!(c.link(f, ROOT, "x"), Err(EROFS));
    assert_eq!(c.unlink(ROOT, "f"), Err(EROFS));
    assert_eq!(c.rmdir(ROOT, "d"), Err(EROFS));
    assert_eq!(c.rename((ROOT, "f"), (ROOT, "x")), Err(EROFS));
    assert_eq!(c.setxattr(f, "user.x", b"y", 0, false), Err(EROFS));
    for change in [
        SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        },
        SetAttr {
            uid: Some(1),
            ..SetAttr::default()
        },
        SetAttr {
            size: Some(1),
            ..SetAttr::default()
        },
        SetAttr {
            mtime: Some((1, 1)),
            ..SetAttr::default()
        },
    ] {
        assert_eq!(c.setattr(f, &change).unwrap_err(), EROFS, "{change:?}");
    }
    let open = c.open(f, libc::O_RDONLY).unwrap();
    assert_eq!(c.read(f, open.fh, 0, 10).unwrap(), b"text");
    c.release(f, open.fh).unwrap();
    c.forget(f, 1);
    assert_eq!(session.daemon.open_fds(), fds, "nothing stays open");
}

#[test]
fn too_many_links_are_emlink() {
    let Some(mut host) = Host::new("ext4", 64 * MIB) else {
        return;
    };
    fs::write(host.path("f"), "").unwrap();
    fs::create_dir(host.path("links")).unwrap();
    for number in 1..65_000 {
        fs::hard_link(host.path("f"), host.path(&format!("links/{number}"))).unwrap();
    }
    let folder = host.folder.clone();
    let c = &mut host.session().client;
    let f = c.walk("f").unwrap();
    assert_eq!(f.attr.nlink, 65_000);
    assert_eq!(c.link(f.nodeid, ROOT, "one-more"), Err(libc::EMLINK));
    assert_eq!(c.getattr(f.nodeid).unwrap().attr.nlink, 65_000);
    assert_eq!(names(&folder), ["f", "links"]);
}

#[test]
fn lengths_are_limited_by_the_host_only() {
    let far = i64::MAX as u64 - 8192;
    for (kind, size, fits) in [
        ("ext4", 16 * MIB, false),
        ("xfs", 300 * MIB, true),
        ("btrfs", 128 * MIB, true),
    ] {
        let Some(mut host) = Host::new(kind, size) else {
            continue;
        };
        let c = &mut host.session().client;
        let (f, open) = c.create(ROOT, "f", libc::O_RDWR, 0o600).unwrap();
        let (f, fh) = (f.nodeid, open.fh);
        if fits {
            assert_eq!(c.write(f, fh, far, b"far away"), Ok(8), "{kind}");
            assert_eq!(c.getattr(f).unwrap().attr.size, far + 8);
            assert_eq!(c.read(f, fh, far - 2, 100).unwrap(), b"\0\0far away");
            let data = c.lseek(f, fh, 4096, libc::SEEK_DATA.cast_unsigned());
            assert!(data.unwrap() > far - 65_536, "{kind}");
        } else {
            assert_eq!(c.write(f, fh, far, b"far away"), Err(libc::EFBIG), "{kind}");
            let longer = SetAttr {
                size: Some(far),
                ..SetAttr::default()
            };
            assert_eq!(c.setattr(f, &longer).unwrap_err(), libc::EFBIG);
            assert_eq!(c.getattr(f).unwrap().attr.size, 0);
        }
    }
}

// ---- What the host can do

#[test]
fn every_mode_of_fallocate_reaches_the_host() {
    const KEEP_SIZE: u32 = 1;
    const PUNCH_HOLE: u32 = 2;
    const COLLAPSE_RANGE: u32 = 8;
    const ZERO_RANGE: u32 = 16;
    const INSERT_RANGE: u32 = 32;
    const UNSHARE_RANGE: u32 = 64;
    for (kind, size) in [
        ("ext4", 32 * MIB),
        ("xfs", 300 * MIB),
        ("btrfs", 128 * MIB),
        ("tmpfs", 32 * MIB),
    ] {
        for mode in [
            0,
            KEEP_SIZE,
            PUNCH_HOLE | KEEP_SIZE,
            COLLAPSE_RANGE,
            ZERO_RANGE,
            ZERO_RANGE | KEEP_SIZE,
            INSERT_RANGE,
            UNSHARE_RANGE,
            PUNCH_HOLE,
            1 << 20,
        ] {
            let Some(mut host) = Host::new(kind, size) else {
                continue;
            };
            // What the host makes of it, the guest gets too.
            let content: Vec<u8> = (0..4 * MIB).map(|at| (at / 4096) as u8 | 1).collect();
            let (ours, hosts) = (host.path("ours"), host.path("hosts"));
            fs::write(&ours, &content).unwrap();
            fs::write(&hosts, &content).unwrap();
            let file = File::options().write(true).open(&hosts).unwrap();
            let flags = rustix::fs::FallocateFlags::from_bits_retain(mode);
            let expected = rustix::fs::fallocate(&file, flags, MIB, MIB);
            let expected = expected.map_err(rustix::io::Errno::raw_os_error);
            let c = &mut host.session().client;
            let f = c.walk("ours").unwrap().nodeid;
            let open = c.open(f, libc::O_RDWR).unwrap();
            let answer = c.fallocate(f, open.fh, MIB, MIB, mode);
            assert_eq!(answer, expected, "{kind}, mode {mode:#x}");
            assert!(
                fs::read(&ours).unwrap() == fs::read(&hosts).unwrap(),
                "{kind}, mode {mode:#x}"
            );
        }
    }
}

#[test]
fn a_copy_shares_its_blocks_where_the_host_can() {
    for (kind, size) in [("xfs", 300 * MIB), ("btrfs", 256 * MIB)] {
        let Some(mut host) = Host::new(kind, size) else {
            continue;
        };
        let content: Vec<u8> = (0..32 * MIB).map(|at| (at / 4096) as u8).collect();
        fs::write(host.path("from"), &content).unwrap();
        let folder = host.folder.clone();
        let free = || {
            rustix::fs::syncfs(File::open(&folder).unwrap()).unwrap();
            let status = rustix::fs::statvfs(&folder).unwrap();
            status.f_bfree * status.f_frsize
        };
        let before = free();
        let c = &mut host.session().client;
        let from = c.walk("from").unwrap().nodeid;
        let from_open = c.open(from, libc::O_RDONLY).unwrap();
        let (to, to_open) = c.create(ROOT, "to", libc::O_RDWR, 0o600).unwrap();
        let copied = c.copy_file_range(
            (from, from_open.fh, 0),
            (to.nodeid, to_open.fh, 0),
            32 * MIB,
            0,
        );
        assert_eq!(copied, Ok(32 * MIB as u32));
        assert!(fs::read(folder.join("to")).unwrap() == content);
        let used = before.saturating_sub(free());
        assert!(used < 8 * MIB, "{kind}: the copy takes {used} bytes");
    }
}

#[test]
fn what_is_synced_is_on_the_disk() {
    let Some(mut host) = Host::new("ext4", 64 * MIB) else {
        return;
    };
    let data = vec![7; 4 * MIB as usize];
    let sectors = 4 * MIB / 512;
    let write = |session: &mut Session, name: &str| {
        let c = &mut session.client;
        let (f, open) = c.create(ROOT, name, libc::O_RDWR, 0o600).unwrap();
        for part in 0..4 {
            let data = &data[..MIB as usize];
            c.write(f.nodeid, open.fh, part * MIB, data).unwrap();
        }
        (f.nodeid, open.fh)
    };
    for name in [
        "fsync",
        "fdatasync",
        "syncfs of the root",
        "syncfs of a file",
    ] {
        let (f, fh) = write(host.session(), name);
        let before = host.written();
        let c = &mut host.session().client;
        match name {
            "fsync" => c.fsync(f, fh, 0),
            "fdatasync" => c.fsync(f, fh, FSYNC_FDATASYNC),
            "syncfs of the root" => c.syncfs(ROOT),
            _ => c.syncfs(f),
        }
        .unwrap();
        let after = host.written();
        assert!(
            after.0 >= before.0 + sectors,
            "{name}: {before:?} {after:?}"
        );
        assert!(
            after.1 > before.1,
            "{name}: the disk's cache was not flushed"
        );
    }

    // A new name is there once its folder is synced.
    let c = &mut host.session().client;
    let fh = c.opendir(ROOT).unwrap().fh;
    let d = c.mkdir(ROOT, "new", 0o700, 0).unwrap().nodeid;
    let before = host.written();
    host.session().client.fsyncdir(ROOT, fh, 0).unwrap();
    assert!(host.written().1 > before.1);
    assert_ne!(d, 0);

    // A file that was opened so needs no call of its own.
    let c = &mut host.session().client;
    let flags = libc::O_RDWR | libc::O_DSYNC;
    let (f, open) = c.create(ROOT, "dsync", flags, 0o600).unwrap();
    let before = host.written();
    let c = &mut host.session().client;
    c.write(f.nodeid, open.fh, 0, &data[..65_536]).unwrap();
    let after = host.written();
    assert!(after.0 >= before.0 + 128 && after.1 > before.1);
}

// ---- Large folders

#[test]
fn a_folder_of_100_000_is_listed_right_while_others_change_it() {
    const COUNT: usize = 100_000;
    for (kind, size, mkfs) in [
        ("ext4", 256 * MIB, "-N 120000"),
        ("xfs", 400 * MIB, ""),
        ("btrfs", 512 * MIB, ""),
        ("tmpfs", 512 * MIB, ""),
    ] {
        let Some(mut host) = Host::with(kind, size, mkfs, "defaults", &[]) else {
            continue;
        };
        let big = host.path("big");
        fs::create_dir(&big).unwrap();
        for number in 0..COUNT {
            File::create(big.join(format!("stay-{number}"))).unwrap();
        }
        let done = AtomicBool::new(false);
        let check = |all: Vec<String>, how: &str| {
            let mut times: BTreeMap<String, u32> = BTreeMap::new();
            for name in all.into_iter().filter(|name| name.starts_with("stay-")) {
                *times.entry(name).or_default() += 1;
            }
            let right = times.len() == COUNT && times.values().all(|times| *times == 1);
            if !right {
                done.store(true, Ordering::Relaxed);
            }
            assert!(right, "{kind}, {how}: {} names", times.len());
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut number = 0;
                while !done.load(Ordering::Relaxed) {
                    File::create(big.join(format!("come-{number}"))).unwrap();
                    if number >= 100 {
                        let old = big.join(format!("come-{}", number - 100));
                        fs::rename(&old, big.join("gone")).unwrap();
                        fs::remove_file(big.join("gone")).unwrap();
                    }
                    number += 1;
                }
            });
            let c = &mut host.session().client;
            let node = c.walk("big").unwrap().nodeid;
            let all_sizes = [1 << 15, 1 << 12, 1 << 17];
            let sizes = if kind == "ext4" {
                &all_sizes[..]
            } else {
                &all_sizes[..1]
            };
            for &bytes in sizes {
                let fh = c.opendir(node).unwrap().fh;
                let all = c.read_whole_dir(node, fh, bytes, false).unwrap();
                c.releasedir(node, fh).unwrap();
                let names = all.iter().map(|entry| entry.name().to_owned()).collect();
                check(names, &format!("{bytes} bytes"));
            }
            let (fh, mut offset, mut names) = (c.opendir(node).unwrap().fh, 0, Vec::new());
            loop {
                let part = c.readdirplus(node, fh, offset, 1 << 16).unwrap();
                let Some(last) = part.last() else { break };
                offset = last.off;
                names.extend(part.iter().map(|entry| entry.name().to_owned()));
                let nodes = part.iter().filter_map(|entry| entry.entry);
                let counted = nodes.filter(|entry| entry.nodeid != 0);
                let counted: Vec<_> = counted.map(|entry| (entry.nodeid, 1)).collect();
                c.batch_forget(&counted);
            }
            check(names, "READDIRPLUS");
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn dots_at_a_mount_stay_inside_of_it() {
    let Some(mut host) = Host::new("ext4", 32 * MIB) else {
        return;
    };
    let inner = host.path("inner");
    fs::create_dir(&inner).unwrap();
    run(&format!("mount -t tmpfs none {}", inner.display()));
    fs::create_dir(inner.join("sub")).unwrap();
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let expected = [
        ("", inode(&host.folder), inode(&host.folder)),
        ("inner", inode(&inner), inode(&inner)),
        ("inner/sub", inode(&inner.join("sub")), inode(&inner)),
    ];
    let c = &mut host.session().client;
    for (path, dot, dot_dot) in expected {
        let node = if path.is_empty() {
            ROOT
        } else {
            c.walk(path).unwrap().nodeid
        };
        for plus in [false, true] {
            let fh = c.opendir(node).unwrap().fh;
            let all = c.read_whole_dir(node, fh, 4096, plus).unwrap();
            let number = |name: &str| all.iter().find(|entry| entry.name() == name).unwrap().ino;
            assert_eq!((number("."), number("..")), (dot, dot_dot), "{path:?}");
            c.releasedir(node, fh).unwrap();
        }
    }
    run(&format!("umount -l {}", inner.display()));
}

// ---- What the host does while a file is looked up

/// The daemon's calls of one kind last, for as long as this lives.
struct Slow {
    strace: Child,
    /// It says more when threads end, and must be able to.
    _messages: BufReader<ChildStderr>,
    pid: u32,
    number: String,
}

impl Slow {
    fn calls(session: &Session, name: &str, number: i64) -> Self {
        Self::with(session, name, number, "delay_enter=1000000")
    }

    /// Beginning late, ending late, or failing as well: `inject` of `strace(1)`.
    fn with(session: &Session, name: &str, number: i64, inject: &str) -> Self {
        let pid = session.daemon.serving_pid();
        let mut strace = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", &format!("trace={name}")])
            .args(["-e", &format!("inject={name}:{inject}")])
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot run strace; tests/prepare installs it");
        let mut messages = BufReader::new(strace.stderr.take().unwrap());
        let mut said = String::new();
        messages.read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "{said}");
        Self {
            strace,
            _messages: messages,
            pid,
            number: number.to_string(),
        }
    }

    /// Waits until a thread is about to make the call.
    fn wait_for_call(&self) {
        loop {
            let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
            let calls = threads.filter_map(|thread| {
                fs::read_to_string(thread.unwrap().path().join("syscall")).ok()
            });
            let calls: Vec<_> = calls.collect();
            assert!(!calls.is_empty(), "the daemon has ended");
            let mut numbers = calls.iter().filter_map(|call| call.split(' ').next());
            if numbers.any(|number| number == self.number) {
                return;
            }
            thread::yield_now();
        }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.strace), Signal::INT);
        let _ = self.strace.wait();
    }
}

fn start_look_up(session: &mut Session, name: &str) -> u64 {
    let request = Request::new(op::LOOKUP, ROOT, Encoder::new().name(name));
    let asked = session.client.start(&request);
    session.client.submit();
    asked
}

/// The handle of the one must not be taken for the other's: a fifo would be opened
/// as a file, and so would a device.
#[test]
fn a_fifo_that_gets_the_number_of_a_file_while_that_is_looked_up_is_not_opened() {
    for is_old in [true, false] {
        let Some(mut host) = Host::new("ext4", 16 * MIB) else {
            return;
        };
        let file = host.path("f");
        fs::write(&file, "text").unwrap();
        let number = fs::metadata(&file).unwrap().ino();
        if is_old {
            wait_until_old(&file);
        }
        let session = host.session();
        let slow = Slow::calls(session, "name_to_handle_at", libc::SYS_name_to_handle_at);
        let asked = start_look_up(session, "f");
        slow.wait_for_call();
        fs::remove_file(&file).unwrap();
        run(&format!("mkfifo {}", file.display()));
        let gets_the_number = fs::symlink_metadata(&file).unwrap().ino() == number;
        assert!(gets_the_number || !is_old, "the host gives another number");
        let found = session.client.wait_for(asked);
        drop(slow);
        if let Ok(found) = found {
            let node = Entry::decode(&found).nodeid;
            let opened = session.client.open(node, libc::O_RDWR);
            assert!(opened.is_err(), "the daemon has opened a fifo");
        }
    }
}

/// What is beneath must not be taken for the mount.
#[test]
fn a_mount_that_goes_away_while_it_is_looked_up_is_looked_up_again() {
    let args = &["--inode-file-handles=never"];
    let Some(mut host) = Host::with("ext4", 16 * MIB, "", "defaults", args) else {
        return;
    };
    let inner = host.path("inner");
    fs::create_dir(&inner).unwrap();
    run(&format!("mount -t tmpfs none {}", inner.display()));
    let session = host.session();
    let slow = Slow::calls(session, "openat", libc::SYS_openat);
    let asked = start_look_up(session, "inner");
    slow.wait_for_call();
    run(&format!("umount -l {}", inner.display()));
    let found = session.client.wait_for(asked);
    drop(slow);
    assert_eq!(found.map(|entry| Entry::decode(&entry)), Err(libc::ESTALE));
    let found = session.client.walk("inner").unwrap();
    assert_eq!(found.attr.ino, fs::metadata(&inner).unwrap().ino());
    assert!(host.session().client.getattr(found.nodeid).is_ok());
}

/// Who made the file that the guest never hears of does not own its name.
#[test]
fn what_is_left_of_a_failed_create_is_removed_and_nothing_of_others() {
    // A call that strace lets fail has no number that a filter could allow.
    let args = ["--seccomp=none"];
    for is_replaced in [false, true] {
        let Some(mut host) = Host::with("ext4", 16 * MIB, "", "defaults", &args) else {
            return;
        };
        let (file, other) = (host.path("f"), host.path("other"));
        fs::write(&other, "another's").unwrap();
        let session = host.session();
        let call = "name_to_handle_at";
        let inject = "error=EIO:delay_enter=1000000";
        let slow = Slow::with(session, call, libc::SYS_name_to_handle_at, inject);
        let flags = libc::O_RDWR.cast_unsigned();
        let body = Encoder::new().u32(flags).u32(0o600).u32(0).u32(0).name("f");
        let asked = session.client.start(&Request::new(op::CREATE, ROOT, body));
        session.client.submit();
        // It is made, and about to be entered.
        while !file.exists() {
            thread::yield_now();
        }
        if is_replaced {
            fs::rename(&other, &file).unwrap();
        }
        let answer = session.client.wait_for(asked);
        drop(slow);
        assert_eq!(answer, Err(libc::EIO));
        assert_eq!(file.exists(), is_replaced);
        if is_replaced {
            assert_eq!(fs::read(&file).unwrap(), b"another's");
        }
    }
}

/// A queue besides the one of the session's client.
fn second_client(session: &mut Session) -> Client {
    Client::new(session.vmm.start_queue(REQUEST + 1))
}

const TWO_QUEUES: [&str; 2] = ["--num-request-queues=2", "--thread-pool-size=0"];

/// Between the host's rename and the daemon's note of it a file has no name that is
/// known.
#[test]
fn a_file_without_a_descriptor_is_found_while_the_guest_renames_it() {
    let mut args = TWO_QUEUES.to_vec();
    args.extend(["--inode-file-handles=never", "--rlimit-nofile=622"]);
    let Some(mut host) = Host::with("ext4", 16 * MIB, "", "defaults", &args) else {
        return;
    };
    let (old, new) = (host.path("from/f"), host.path("to/g"));
    for folder in ["from", "to"] {
        fs::create_dir(host.path(folder)).unwrap();
    }
    fs::write(&old, "text").unwrap();
    let others: Vec<_> = (0..40).map(|n| format!("other{n}")).collect();
    for other in &others {
        fs::write(host.path(other), "").unwrap();
    }
    wait_until_old(&host.path("other39"));
    let session = host.session();
    let mut second = second_client(session);
    let c = &mut session.client;
    let (from, to) = (c.walk("from").unwrap().nodeid, c.walk("to").unwrap().nodeid);
    let f = c.walk("from/f").unwrap().nodeid;
    // The guest may cause 12 descriptors to be open: that of the file is closed.
    for other in &others {
        c.lookup(ROOT, other).unwrap();
    }
    let slow = Slow::with(
        session,
        "renameat2",
        libc::SYS_renameat2,
        "delay_exit=1000000",
    );
    let body = Encoder::new().u64(to).name("f").name("g");
    let asked = session.client.start(&Request::new(op::RENAME, from, body));
    session.client.submit();
    while !new.exists() {
        thread::yield_now();
    }
    let attributes = second.getattr(f);
    let renamed = session.client.wait_for(asked);
    drop(slow);
    assert_eq!(renamed, Ok(Vec::new()));
    assert_eq!(attributes.map(|found| found.attr.size), Ok(4));
    assert!(!old.exists());
}

/// A folder that is opened for a request is not kept when another queue has had it
/// forgotten meanwhile.
#[test]
fn a_folder_that_is_forgotten_while_it_is_opened_does_not_stay_open() {
    let mut args = TWO_QUEUES.to_vec();
    args.push("--inode-file-handles=mandatory");
    let Some(mut host) = Host::with("ext4", 16 * MIB, "", "defaults", &args) else {
        return;
    };
    let folder = host.path("folder");
    fs::create_dir(&folder).unwrap();
    wait_until_old(&folder);
    let session = host.session();
    let mut second = second_client(session);
    second.getattr(ROOT).unwrap();
    let fds = session.daemon.open_fds();
    let node = session.client.lookup(ROOT, "folder").unwrap().nodeid;
    let call = "open_by_handle_at";
    let slow = Slow::calls(session, call, libc::SYS_open_by_handle_at);
    let request = Request::new(op::GETATTR, node, Encoder::new().u32(0).u32(0).u64(0));
    let asked = session.client.start(&request);
    session.client.submit();
    slow.wait_for_call();
    second.forget(node, 1);
    session.client.wait_for(asked).unwrap();
    drop(slow);
    session.daemon.expect_open_fds(fds);
}

#[test]
fn syncfs_tells_of_an_error_that_somebody_else_has_heard_of_first() {
    if !rustix::process::geteuid().is_root() {
        return println!("mounting a file system needs root: skips itself");
    }
    for holding in ["--inode-file-handles=never", "--inode-file-handles=prefer"] {
        let dir = tempfile::tempdir().unwrap();
        // A disk that has less room than it says.
        let (disk, at) = (dir.path().join("disk"), dir.path().join("at"));
        let _disk = Mounted::new(&["-t", "tmpfs", "-o", "size=24m", "disk"], &disk);
        let image = disk.join("image");
        fs::File::create(&image)
            .unwrap()
            .set_len(128 << 20)
            .unwrap();
        let image = image.to_str().unwrap();
        run_program("mkfs.ext4", &["-q", "-O", "^has_journal", image]);
        let _mounted = Mounted::new(&["-o", "loop", image], &at);
        let share = TempDir::with_prefix_in("share-", &at).unwrap();
        let mut session = Session::over(share, &[holding]);
        let c = &mut session.client;
        let (entry, open) = c.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
        for part in 0..64 {
            let data = vec![1; 1 << 20];
            c.write(entry.nodeid, open.fh, part << 20, &data).unwrap();
        }
        let synced = Command::new("sync").arg("-f").arg(&at).status().unwrap();
        assert!(!synced.success(), "{holding}: the host hears of it");
        assert!(session.client.syncfs(ROOT).is_err(), "{holding}");
        // Once is enough.
        session.client.syncfs(ROOT).unwrap();
    }
}

/// Names of NTFS, which counts UTF-16 units: the last two have more than 255 bytes.
fn names_of_any_length() -> [String; 5] {
    let wide = |count| "\u{3042}".repeat(count);
    ["a".into(), "n".repeat(255), wide(85), wide(86), wide(255)]
}

#[test]
fn names_of_more_than_255_bytes_are_served() {
    if !rustix::process::geteuid().is_root() {
        return println!("mounting a file system needs root: skips itself");
    }
    let host = HostFs::new("ntfs");
    for args in [
        &["--inode-file-handles=never", "--rlimit-nofile=760"][..],
        &[],
    ] {
        let mut session = Session::over(host.share(), args);
        let names = names_of_any_length();
        for name in &names {
            session.put(name, name);
        }
        let fd = session.client.opendir(ROOT).unwrap().fh;
        for (size, plus) in [(4096, false), (4096, true), (65536, false), (65536, true)] {
            let entries = session.client.read_whole_dir(ROOT, fd, size, plus).unwrap();
            let mut seen: Vec<_> = entries
                .iter()
                .map(|entry| entry.name().to_owned())
                .collect();
            seen.retain(|name| !matches!(&**name, "." | ".."));
            seen.sort();
            let mut expected = names.to_vec();
            expected.sort();
            assert_eq!(seen, expected, "{args:?}, {size} bytes");
        }
        for name in &names {
            let c = &mut session.client;
            let found = c.lookup(ROOT, name).unwrap();
            let open = c.open(found.nodeid, libc::O_RDWR).unwrap();
            let read = c.read(found.nodeid, open.fh, 0, 4096).unwrap();
            assert_eq!(read, name.as_bytes());
            c.release(found.nodeid, open.fh).unwrap();
            c.unlink(ROOT, name).unwrap();
            let (made, open) = c.create(ROOT, name, libc::O_RDWR, 0o600).unwrap();
            c.write(made.nodeid, open.fh, 0, b"made").unwrap();
            c.release(made.nodeid, open.fh).unwrap();
            let moved = format!("{}b", name.strip_suffix(['n', '\u{3042}']).unwrap_or(name));
            c.rename((ROOT, name), (ROOT, &moved)).unwrap();
            c.getattr(made.nodeid).unwrap();
            c.forget(made.nodeid, 1);
            assert_eq!(session.get(&moved), b"made");
        }
        // How long is too long is the host's to say, and nobody knows longer ones.
        for name in ["\u{3042}".repeat(256), "n".repeat(1024), "n".repeat(1025)] {
            let found = session.client.lookup(ROOT, &name).map(|entry| entry.nodeid);
            assert_eq!(found, Err(libc::ENAMETOOLONG), "{} bytes", name.len());
        }
        session.finish();
    }
}
