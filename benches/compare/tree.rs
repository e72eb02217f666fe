//! Trees that are worked through once: a walk as `git status` does it, and a
//! tree that an ordinary user unpacks and removes again.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, Mode, OFlags, RawDir, StatxFlags, Timespec, Timestamps, UTIME_OMIT, fstat, mkdirat,
    openat, statx, unlinkat, utimensat,
};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use crate::common::fuse_client::{Client, read_in, release_in};
use crate::common::wire::{ENTRY_OUT, Encoder, OUT_HEADER, ROOT, op};
use crate::requests::{
    step_create, step_forget, step_lookup, step_mkdir, step_release, step_rmdir, step_unlink,
    step_utimes, step_write,
};
use crate::step::Direct;
use crate::step::{FH, NODEID, Reply, Slot, Step};

const WALK_DIRS: usize = 500;
const UNPACK_DIRS: usize = 200;
const FILES_PER_DIR: usize = 100;
/// A whole directory fits.
const READDIR_BYTES: usize = 32 << 10;
const FILE_BYTES: usize = 2048;
/// Who unpacks.
const USER: u32 = 1000;

fn file_name(index: usize) -> String {
    format!("file-{index:03}")
}

pub(crate) fn c_name(name: &str) -> CString {
    CString::new(name).unwrap()
}

/// The directories that one slot works through: those with its number, counted in slots.
fn dirs_of(slot: Slot, prefix: &str, count: usize) -> impl Iterator<Item = String> {
    (slot.number..count)
        .step_by(slot.of)
        .map(move |index| format!("{prefix}-{index:03}"))
}

/// OPENDIR, the whole directory, RELEASEDIR, as the steps from `first` on. Each
/// has yet to hear which directory.
fn read_whole_directory(first: usize) -> [Step; 4] {
    let size = u32::try_from(READDIR_BYTES).unwrap();
    let read = || {
        let body = read_in(0, 0, size);
        Step::new(op::READDIRPLUS, 0, body, Reply::Data(READDIR_BYTES)).part()
    };
    let fh = OUT_HEADER;
    let opendir = Step::new(op::OPENDIR, 0, Encoder::new().u64(0), Reply::Small(16));
    [
        opendir.part().feeds(&[
            (fh, first + 1, FH),
            (fh, first + 2, FH),
            (fh, first + 3, FH),
        ]),
        read().continued_by(first + 2),
        read(),
        Step::new(op::RELEASEDIR, 0, release_in(0), Reply::Small(0)).part(),
    ]
}

pub(crate) fn prepare_walk(share: &Path) {
    for index in 0..WALK_DIRS {
        let dir = share.join(format!("walk-{index:03}"));
        if fs::create_dir(&dir).is_err() {
            return;
        }
        for index in 0..FILES_PER_DIR {
            File::create(dir.join(file_name(index))).unwrap();
        }
    }
}

/// Every file is asked for by its name, then the directory is listed for files
/// that should not be there.
pub(crate) fn walk(_: &mut Client, slot: Slot) -> Vec<Step> {
    let mut steps = Vec::new();
    for dir in dirs_of(slot, "walk", WALK_DIRS) {
        let first = steps.len();
        let end = first + 1 + FILES_PER_DIR + 4;
        let feeds: Vec<_> = (first + 1..end)
            .map(|step| (OUT_HEADER, step, NODEID))
            .collect();
        steps.push(step_lookup(ROOT, &dir).part().feeds(&feeds));
        steps.extend((0..FILES_PER_DIR).map(|index| step_lookup(0, &file_name(index))));
        steps.extend(read_whole_directory(steps.len()));
    }
    steps
}

pub(crate) fn walk_direct(share: &Path) -> Direct {
    let root = open_dir(share);
    let names: Vec<_> = (0..FILES_PER_DIR)
        .map(|index| c_name(&file_name(index)))
        .collect();
    Box::new(move || {
        for index in 0..WALK_DIRS {
            let dir = c_name(&format!("walk-{index:03}"));
            let dir = openat(&root, &dir, dir_flags(), Mode::empty()).unwrap();
            for name in &names {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                statx(&dir, name, flags, StatxFlags::BASIC_STATS).unwrap();
            }
            list(&dir);
        }
        (WALK_DIRS * FILES_PER_DIR) as u64
    })
}

/// As `tar` does it: each file is looked for, made, written, dated and closed.
/// Then the directory is listed and everything is removed.
pub(crate) fn unpack_and_remove(_: &mut Client, slot: Slot) -> Vec<Step> {
    let mut steps = Vec::new();
    for dir in dirs_of(slot, "unpacked", UNPACK_DIRS) {
        unpack_directory(&mut steps, &dir);
    }
    steps.into_iter().map(|step| step.of_user(USER)).collect()
}

fn unpack_directory(steps: &mut Vec<Step>, dir: &str) {
    const PER_FILE: usize = 6;
    let first = steps.len();
    let listing = first + 2 + PER_FILE * FILES_PER_DIR;
    let removal = listing + 4;
    let end = removal + 2 * FILES_PER_DIR;

    // Everything that names the directory hears its number from MKDIR.
    let files = (0..FILES_PER_DIR).map(|index| first + 2 + PER_FILE * index);
    let in_dir = files.flat_map(|step| [step, step + 1]);
    let unlinks = (0..FILES_PER_DIR).map(|index| removal + 2 * index);
    let users = in_dir.chain(listing..removal).chain(unlinks);
    let feeds: Vec<_> = users
        .chain([end + 1])
        .map(|step| (OUT_HEADER, step, NODEID))
        .collect();
    steps.push(step_lookup(ROOT, dir).part().fails(libc::ENOENT));
    steps.push(step_mkdir(ROOT, dir).part().feeds(&feeds));

    for index in 0..FILES_PER_DIR {
        let name = file_name(index);
        let create = steps.len() + 1;
        let (node, fh) = (OUT_HEADER, OUT_HEADER + ENTRY_OUT);
        let feeds = [
            (node, create + 1, NODEID),
            (fh, create + 1, FH),
            (node, create + 2, NODEID),
            (node, create + 3, NODEID),
            (fh, create + 3, FH),
            (node, create + 4, NODEID),
            (fh, create + 4, FH),
            (node, removal + 2 * index + 1, NODEID),
        ];
        let flush = Encoder::new().u64(0).u64(0).u64(0);
        steps.extend([
            step_lookup(0, &name).part().fails(libc::ENOENT),
            step_create(0, &name).part().feeds(&feeds),
            step_write(0, 0, 0, FILE_BYTES).part(),
            step_utimes(0).part(),
            Step::new(op::FLUSH, 0, flush, Reply::Small(0)).part(),
            step_release(0, 0).part(),
        ]);
    }
    steps.extend(read_whole_directory(listing));
    for index in 0..FILES_PER_DIR {
        steps.push(step_unlink(0, &file_name(index)));
        // Made once and listed once.
        steps.push(step_forget(2).part());
    }
    steps.push(step_rmdir(ROOT, dir).part());
    steps.push(step_forget(1).part());
    assert_eq!(steps.len(), end + 2);
}

pub(crate) fn unpack_and_remove_direct(share: &Path) -> Direct {
    let root = open_dir(share);
    let names: Vec<_> = (0..FILES_PER_DIR)
        .map(|index| c_name(&file_name(index)))
        .collect();
    Box::new(move || {
        let as_user = rustix::process::geteuid().is_root();
        if as_user {
            become_thread(USER);
        }
        for index in 0..UNPACK_DIRS {
            let name = c_name(&format!("direct-{index:03}"));
            mkdirat(&root, &name, Mode::from(0o755)).unwrap();
            let dir = openat(&root, &name, dir_flags(), Mode::empty()).unwrap();
            names.iter().for_each(|name| unpack(&dir, name));
            list(&dir);
            for name in &names {
                unlinkat(&dir, name, AtFlags::empty()).unwrap();
            }
            unlinkat(&root, &name, AtFlags::REMOVEDIR).unwrap();
        }
        if as_user {
            become_thread(0);
        }
        (UNPACK_DIRS * FILES_PER_DIR) as u64
    })
}

fn unpack(dir: &OwnedFd, name: &CString) {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    statx(dir, name, flags, StatxFlags::BASIC_STATS).unwrap_err();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::from(0o644)).unwrap();
    rustix::io::pwrite(&file, &[b'u'; FILE_BYTES], 0).unwrap();
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
    utimensat(&file, c"", &times, AtFlags::EMPTY_PATH).unwrap();
    fstat(&file).unwrap();
}

/// The file system sees the calling thread as this user.
fn become_thread(id: u32) {
    if id == 0 {
        set_thread_res_uid(None, Uid::from_raw(id), None).unwrap();
        set_thread_res_gid(None, Gid::from_raw(id), None).unwrap();
    } else {
        set_thread_res_gid(None, Gid::from_raw(id), None).unwrap();
        set_thread_res_uid(None, Uid::from_raw(id), None).unwrap();
    }
}

fn dir_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

pub(crate) fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, dir_flags(), Mode::empty()).unwrap()
}

/// Reads a directory from its beginning; gives how many entries it has.
pub(crate) fn list(dir: &OwnedFd) -> u64 {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0)).unwrap();
    let mut buffer = Vec::with_capacity(READDIR_BYTES);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut count = 0;
    while let Some(entry) = entries.next() {
        entry.unwrap();
        count += 1;
    }
    count
}
