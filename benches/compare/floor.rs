//! The floor: the operations of a workload as direct system calls in one
//! thread, and one write to and one read from an eventfd with each. No daemon
//! can be faster on one queue without answering several requests at a time.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{
    AtFlags, Mode, OFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT, mkdirat, openat, statx,
    unlinkat, utimensat,
};

use crate::share::{self, small};
use crate::step::{Direct, Kind, Workload};
use crate::tree::{list, open_dir};

/// Microseconds for one operation of a workload.
pub(crate) fn measure(workload: &Workload, share: &Path, time: Duration) -> f64 {
    let mut direct = (workload.direct)(share);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let mut run = |time: Duration| {
        let start = Instant::now();
        let mut operations = 0;
        while operations == 0 || (workload.kind != Kind::Once && start.elapsed() < time) {
            let done = direct();
            for _ in 0..done {
                round_trip(&event);
            }
            operations += done;
        }
        start.elapsed().as_secs_f64() * 1e6 / operations as f64
    };
    run(time / 5);
    run(time)
}

fn round_trip(event: &OwnedFd) {
    rustix::io::write(event, &1_u64.to_ne_bytes()).unwrap();
    rustix::io::read(event, &mut [0; 8]).unwrap();
}

fn one(mut operation: impl FnMut() + 'static) -> Direct {
    Box::new(move || {
        operation();
        1
    })
}

fn open(share: &Path, name: &str, flags: OFlags) -> OwnedFd {
    let flags = flags | OFlags::CLOEXEC;
    rustix::fs::open(share.join(name), flags, Mode::from(0o600)).unwrap()
}

fn file(share: &Path) -> OwnedFd {
    open(share, &small(0), OFlags::PATH)
}

fn name(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn stat_fd(fd: &OwnedFd) {
    statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).unwrap();
}

pub(crate) fn getattr(share: &Path) -> Direct {
    let file = file(share);
    one(move || stat_fd(&file))
}

pub(crate) fn lookup(share: &Path) -> Direct {
    let (dir, name) = (open_dir(share), name(&small(0)));
    one(move || {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        statx(&dir, &name, flags, StatxFlags::BASIC_STATS).unwrap();
    })
}

/// With a descriptor kept: opened, looked at, closed when it is forgotten.
pub(crate) fn lookup_new(share: &Path) -> Direct {
    let (dir, name) = (open_dir(share), name(&small(0)));
    one(move || {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        stat_fd(&openat(&dir, &name, flags, Mode::empty()).unwrap());
    })
}

pub(crate) fn missing(share: &Path) -> Direct {
    let dir = open_dir(share);
    one(move || {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        statx(&dir, c"no-such-name", flags, StatxFlags::BASIC_STATS).unwrap_err();
    })
}

pub(crate) fn open_read(share: &Path) -> Direct {
    let (dir, name) = (open_dir(share), name(&small(0)));
    let mut buffer = [0; 4096];
    one(move || {
        let file = openat(&dir, &name, OFlags::CLOEXEC, Mode::empty()).unwrap();
        rustix::io::pread(&file, &mut buffer, 0).unwrap();
    })
}

pub(crate) fn create_write_unlink(share: &Path) -> Direct {
    let dir = open_dir(share);
    one(move || {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&dir, c"direct", flags, Mode::from(0o644)).unwrap();
        stat_fd(&file);
        rustix::io::pwrite(&file, &[b'd'; 4096], 0).unwrap();
        drop(file);
        unlinkat(&dir, c"direct", AtFlags::empty()).unwrap();
    })
}

pub(crate) fn mkdir_rmdir(share: &Path) -> Direct {
    let dir = open_dir(share);
    one(move || {
        mkdirat(&dir, c"direct-dir", Mode::from(0o755)).unwrap();
        statx(
            &dir,
            c"direct-dir",
            AtFlags::empty(),
            StatxFlags::BASIC_STATS,
        )
        .unwrap();
        unlinkat(&dir, c"direct-dir", AtFlags::REMOVEDIR).unwrap();
    })
}

pub(crate) fn rename(share: &Path) -> Direct {
    let dir = open_dir(share);
    open(share, "direct-here", OFlags::CREATE);
    let mut names = (c"direct-here", c"direct-there");
    one(move || {
        rustix::fs::renameat(&dir, names.0, &dir, names.1).unwrap();
        names = (names.1, names.0);
    })
}

pub(crate) fn symlink_readlink(share: &Path) -> Direct {
    let dir = open_dir(share);
    one(move || {
        let link = c"direct-link";
        rustix::fs::symlinkat(c"small-0", &dir, link).unwrap();
        statx(
            &dir,
            link,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::BASIC_STATS,
        )
        .unwrap();
        rustix::fs::readlinkat(&dir, link, Vec::new()).unwrap();
        unlinkat(&dir, link, AtFlags::empty()).unwrap();
    })
}

pub(crate) fn setattr(share: &Path) -> Direct {
    let file = file(share);
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 0,
        },
    };
    one(move || {
        utimensat(&file, c"", &times, AtFlags::EMPTY_PATH).unwrap();
        stat_fd(&file);
    })
}

pub(crate) fn getxattr(share: &Path, attribute: &'static str) -> Direct {
    let file = open(share, &small(0), OFlags::RDONLY);
    let mut value = [0; 256];
    one(move || {
        let _ = rustix::fs::fgetxattr(&file, attribute, &mut value);
    })
}

pub(crate) fn statfs(share: &Path) -> Direct {
    let dir = open_dir(share);
    one(move || {
        rustix::fs::fstatfs(&dir).unwrap();
    })
}

pub(crate) fn readdir(share: &Path) -> Direct {
    let dir = open_dir(&share.join("entries"));
    Box::new(move || list(&dir))
}

pub(crate) fn readdirplus(share: &Path) -> Direct {
    let path = share.join("entries");
    let dir = open_dir(&path);
    let entries = std::fs::read_dir(&path).unwrap();
    let names: Vec<_> = entries
        .map(|entry| name(entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    Box::new(move || {
        for name in &names {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            statx(&dir, name, flags, StatxFlags::BASIC_STATS).unwrap();
        }
        list(&dir)
    })
}

pub(crate) fn read(share: &Path, size: usize, offsets: fn(usize) -> Vec<u64>) -> Direct {
    let file = open(share, "large", OFlags::RDONLY);
    let mut offsets = offsets(size).into_iter().cycle();
    let mut buffer = vec![0; size];
    one(move || {
        let offset = offsets.next().unwrap();
        rustix::io::pread(&file, &mut buffer, offset).unwrap();
    })
}

pub(crate) fn read_slow(share: &Path) -> Direct {
    let (folder, name) = share::SLOW;
    let file = open(&share.join(folder), name, OFlags::RDONLY);
    one(move || {
        rustix::io::pread(&file, &mut [0; 4096], 0).unwrap();
    })
}

pub(crate) fn write(share: &Path, size: usize, offsets: fn(usize) -> Vec<u64>) -> Direct {
    let file = open(share, "direct-written", OFlags::RDWR | OFlags::CREATE);
    let mut offsets = offsets(size).into_iter().cycle();
    let buffer = vec![b'd'; size];
    one(move || {
        let offset = offsets.next().unwrap();
        rustix::io::pwrite(&file, &buffer, offset).unwrap();
    })
}

pub(crate) fn fsync(share: &Path) -> Direct {
    let file = open(share, "direct-written", OFlags::RDWR | OFlags::CREATE);
    one(move || rustix::fs::fsync(&file).unwrap())
}
