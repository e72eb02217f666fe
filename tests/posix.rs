//! What a program may expect of a file system, as a program sees it.
//!
//! Nothing here knows the daemon. The cases run in a folder of the machine that
//! runs them: `POSIX_DIR`, or a temporary one on the disk that the build is on.
//! `cargo test` runs them on the host and so shows that they are true of a local
//! file system; `tests/vm/posix` runs the same program in a guest, on the share and
//! on a local disk.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Timespec,
    Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::Errno;
use tempfile::TempDir;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A folder of the test's own.
fn folder() -> TempDir {
    let built = || PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let base = std::env::var_os("POSIX_DIR").map_or_else(built, PathBuf::from);
    TempDir::with_prefix_in("posix-", base).unwrap()
}

const BTRFS: i64 = 0x9123_683e;
const OVERLAYFS: i64 = 0x794c_7630;
const TMPFS: i64 = 0x0102_1994;

/// Whether a folder is on one of these file systems, which are known not to do
/// what a case is about.
fn is_on(dir: &TempDir, kinds: &[i64]) -> bool {
    let kind = rustix::fs::statfs(dir.path()).unwrap().f_type;
    #[allow(clippy::useless_conversion)] // The type depends on the machine.
    kinds.contains(&i64::from(kind))
}

/// Making devices and the like takes root; `cargo test` may run as anyone.
fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("{test} skips itself: it needs root");
    }
    root
}

fn create(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap()
}

/// A new file with bytes that differ from block to block.
fn filled(path: &Path, length: u64) -> File {
    let file = create(path);
    file.write_all_at(&pattern(length), 0).unwrap();
    file
}

fn pattern(length: u64) -> Vec<u8> {
    (0..length)
        .map(|at| (at / 512 + at) as u8 | 1)
        .collect::<Vec<_>>()
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn allocate(file: &File, mode: FallocateFlags, offset: u64, length: u64) -> rustix::io::Result<()> {
    rustix::fs::fallocate(file, mode, offset, length)
}

fn allocated(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap()
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

// ---- Holes and space

#[test]
fn what_was_never_written_is_a_hole() {
    let dir = folder();
    let file = create(&dir.path().join("f"));
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", 16 * MIB).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), 16 * MIB + 3);
    assert!(allocated(&file) < MIB, "{} bytes", allocated(&file));
    let bytes = content(&file);
    assert!(bytes.starts_with(b"begin") && bytes.ends_with(b"end"));
    assert!(bytes[5..16 * MIB as usize].iter().all(|byte| *byte == 0));
}

/// Data from 1 to 2 MiB in a file of 4 MiB.
fn with_holes(dir: &TempDir) -> File {
    let file = create(&dir.path().join("f"));
    file.set_len(4 * MIB).unwrap();
    file.write_all_at(&pattern(MIB), MIB).unwrap();
    file
}

fn assert_holes(file: &File) {
    let seek = |to| rustix::fs::seek(file, to);
    assert_eq!(seek(SeekFrom::Data(0)), Ok(MIB));
    assert_eq!(seek(SeekFrom::Data(MIB + 5)), Ok(MIB + 5));
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek(SeekFrom::Hole(MIB)), Ok(2 * MIB));
    assert_eq!(seek(SeekFrom::Hole(3 * MIB)), Ok(3 * MIB));
    assert_eq!(seek(SeekFrom::Data(2 * MIB)), Err(Errno::NXIO));
    assert_eq!(seek(SeekFrom::Data(4 * MIB)), Err(Errno::NXIO));
    assert_eq!(seek(SeekFrom::Hole(4 * MIB)), Err(Errno::NXIO));
    // The position is where the seek that succeeded last has put it.
    assert_eq!(seek(SeekFrom::Current(0)), Ok(3 * MIB));
}

#[test]
fn seeks_find_data_and_holes() {
    let dir = folder();
    let file = with_holes(&dir);
    file.sync_all().unwrap();
    assert_holes(&file);
}

#[test]
fn seeks_find_data_that_was_just_written() {
    let dir = folder();
    assert_holes(&with_holes(&dir));
}

#[test]
fn seek_hole_of_a_full_file_is_its_end() {
    let dir = folder();
    let file = filled(&dir.path().join("f"), 10_000);
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(10_000));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::End(0)), Ok(10_000));
}

#[test]
fn fallocate_reserves_and_makes_longer() {
    let dir = folder();
    let file = filled(&dir.path().join("f"), 1000);
    allocate(&file, FallocateFlags::empty(), 0, 2 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 * MIB);
    assert!(allocated(&file) >= 2 * MIB);
    let bytes = content(&file);
    assert_eq!(bytes[..1000], pattern(1000));
    assert!(bytes[1000..].iter().all(|byte| *byte == 0));
}

#[test]
fn fallocate_keep_size_reserves_beyond_the_end() {
    let dir = folder();
    let file = filled(&dir.path().join("f"), 1000);
    allocate(&file, FallocateFlags::KEEP_SIZE, 0, 2 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1000);
    assert!(allocated(&file) >= 2 * MIB);
    assert_eq!(content(&file), pattern(1000));
}

#[test]
fn fallocate_punch_hole_frees_and_zeroes() {
    let dir = folder();
    let file = filled(&dir.path().join("f"), 4 * MIB);
    file.sync_all().unwrap();
    let before = allocated(&file);
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    allocate(&file, mode, MIB + 100, 2 * MIB).unwrap();
    file.sync_all().unwrap();
    assert!(allocated(&file) + MIB < before);
    let mut expected = pattern(4 * MIB);
    expected[(MIB + 100) as usize..(3 * MIB + 100) as usize].fill(0);
    assert!(content(&file) == expected);
    // Without KEEP_SIZE it is not a mode at all.
    assert_eq!(
        allocate(&file, FallocateFlags::PUNCH_HOLE, 0, MIB),
        Err(Errno::OPNOTSUPP)
    );
}

#[test]
fn fallocate_zero_range_zeroes() {
    let dir = folder();
    if is_on(&dir, &[TMPFS]) {
        return;
    }
    let file = filled(&dir.path().join("f"), 100 * KIB);
    allocate(&file, FallocateFlags::ZERO_RANGE, 50 * KIB + 7, 100 * KIB).unwrap();
    let mut expected = pattern(100 * KIB);
    expected.resize((150 * KIB + 7) as usize, 0);
    expected[(50 * KIB + 7) as usize..].fill(0);
    assert!(content(&file) == expected);
    let keep = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    allocate(&file, keep, 0, MIB).unwrap();
    assert!(content(&file) == vec![0; (150 * KIB + 7) as usize]);
}

#[test]
fn fallocate_collapse_range_takes_out() {
    let dir = folder();
    if is_on(&dir, &[BTRFS, TMPFS]) {
        return;
    }
    let file = filled(&dir.path().join("f"), 4 * MIB);
    allocate(&file, FallocateFlags::COLLAPSE_RANGE, MIB, MIB).unwrap();
    let mut expected = pattern(4 * MIB);
    expected.drain(MIB as usize..2 * MIB as usize);
    assert!(content(&file) == expected);
}

#[test]
fn fallocate_insert_range_makes_room() {
    let dir = folder();
    if is_on(&dir, &[BTRFS, TMPFS]) {
        return;
    }
    let file = filled(&dir.path().join("f"), 4 * MIB);
    allocate(&file, FallocateFlags::INSERT_RANGE, MIB, MIB).unwrap();
    let mut expected = pattern(4 * MIB);
    let tail = expected.split_off(MIB as usize);
    expected.resize(2 * MIB as usize, 0);
    expected.extend(tail);
    assert!(content(&file) == expected);
}

#[test]
fn fallocate_refuses_nonsense() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 1000);
    let none = FallocateFlags::empty();
    assert_eq!(allocate(&file, none, 0, 0), Err(Errno::INVAL));
    assert_eq!(allocate(&file, none, i64::MAX as u64, 2), Err(Errno::FBIG));
    let reader = File::open(&path).unwrap();
    assert_eq!(allocate(&reader, none, 0, 10), Err(Errno::BADF));
    assert_eq!(content(&file), pattern(1000));
}

// ---- Copies within the file system

#[test]
fn copy_file_range_copies_any_part() {
    let dir = folder();
    let from = filled(&dir.path().join("from"), 3 * MIB);
    let to = create(&dir.path().join("to"));
    let (mut source, mut target) = (1234, 77);
    while source < 2 * MIB {
        let left = (2 * MIB - source) as usize;
        let copied =
            rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), left);
        assert!(copied.unwrap() > 0);
    }
    let mut expected = vec![0; 77];
    expected.extend(&pattern(3 * MIB)[1234..2 * MIB as usize]);
    assert!(content(&to) == expected);
}

#[test]
fn copy_file_range_sees_what_was_just_written() {
    let dir = folder();
    let from = create(&dir.path().join("from"));
    let to = create(&dir.path().join("to"));
    for round in 1..=20 {
        from.write_all_at(&[round; 100], u64::from(round) * 5000)
            .unwrap();
        to.write_all_at(&[0xff; 300], u64::from(round) * 5000 - 100)
            .unwrap();
        let (mut source, mut target) = (u64::from(round) * 5000, u64::from(round) * 5000);
        let copied =
            rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), 100);
        assert_eq!(copied, Ok(100));
        let mut seen = [0; 300];
        to.read_exact_at(&mut seen, u64::from(round) * 5000 - 100)
            .unwrap();
        let mut expected = [0xff; 300];
        expected[100..200].fill(round);
        assert_eq!(seen, expected);
    }
}

#[test]
fn copy_file_range_ends_with_the_source_and_refuses_overlap() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 10_000);
    let copy = |mut source, mut target, length| {
        rustix::fs::copy_file_range(&file, Some(&mut source), &file, Some(&mut target), length)
    };
    assert_eq!(copy(10_000, 20_000, 100), Ok(0));
    assert_eq!(copy(9_990, 20_000, 100), Ok(10));
    assert_eq!(copy(0, 5_000, 6_000), Err(Errno::INVAL));
    assert_eq!(copy(0, 5_000, 1_000), Ok(1_000));
    let reader = File::open(&path).unwrap();
    assert_eq!(
        rustix::fs::copy_file_range(&file, None, &reader, None, 10),
        Err(Errno::BADF)
    );
}

// ---- Names

#[test]
fn an_open_file_lives_without_a_name() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 5000);
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all_at(b"more", 5000).unwrap();
    file.set_len(9000).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .unwrap();
    rustix::fs::futimens(&file, &times(at(5, 6), at(7, 8))).unwrap();
    allocate(&file, FallocateFlags::empty(), 0, 20_000).unwrap();
    file.sync_all().unwrap();
    let stat = file.metadata().unwrap();
    assert_eq!((stat.len(), stat.mode() & 0o7777), (20_000, 0o600));
    let mut expected = pattern(5000);
    expected.extend(b"more");
    expected.resize(20_000, 0);
    assert!(content(&file) == expected);
    // The name can be given to another, and both go on.
    let other = filled(&path, 100);
    assert_eq!(content(&other), pattern(100));
    assert_ne!(other.metadata().unwrap().ino(), stat.ino());
    assert_eq!(file.metadata().unwrap().len(), 20_000);
}

#[test]
fn a_file_that_was_replaced_stays_readable() {
    let dir = folder();
    let old = filled(&dir.path().join("f"), 5000);
    fs::write(dir.path().join("new"), "new").unwrap();
    fs::rename(dir.path().join("new"), dir.path().join("f")).unwrap();
    assert!(content(&old) == pattern(5000));
    assert_eq!(old.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"new");
}

#[test]
fn an_open_folder_lives_without_a_name() {
    let dir = folder();
    let path = dir.path().join("d");
    fs::create_dir(&path).unwrap();
    let open = File::open(&path).unwrap();
    fs::remove_dir(&path).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    assert_eq!(
        rustix::fs::openat(
            &open,
            "f",
            OFlags::CREATE | OFlags::WRONLY,
            Mode::from_raw_mode(0o600)
        )
        .unwrap_err(),
        Errno::NOENT
    );
    assert_eq!(some_entries(open.as_fd(), 4096).err(), Some(Errno::NOENT));
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

#[test]
fn rename_noreplace_does_not_replace() {
    let dir = folder();
    let (a, b, c) = (
        dir.path().join("a"),
        dir.path().join("b"),
        dir.path().join("c"),
    );
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    assert_eq!(rename(&a, &b, RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(
        (fs::read(&a).unwrap(), fs::read(&b).unwrap()),
        (b"a".to_vec(), b"b".to_vec())
    );
    rename(&a, &c, RenameFlags::NOREPLACE).unwrap();
    assert!(!a.exists());
    assert_eq!(fs::read(&c).unwrap(), b"a");
}

#[test]
fn rename_exchange_exchanges_anything() {
    let dir = folder();
    let (file, sub) = (dir.path().join("file"), dir.path().join("sub"));
    fs::write(&file, "text").unwrap();
    fs::create_dir_all(sub.join("deep")).unwrap();
    fs::write(sub.join("deep/inner"), "inner").unwrap();
    rename(&file, &sub, RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(&sub).unwrap(), b"text");
    assert_eq!(fs::read(file.join("deep/inner")).unwrap(), b"inner");
    // Between two folders.
    rename(&sub, &file.join("deep/inner"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(&sub).unwrap(), b"inner");
    assert_eq!(fs::read(file.join("deep/inner")).unwrap(), b"text");
    let missing = dir.path().join("missing");
    assert_eq!(
        rename(&sub, &missing, RenameFlags::EXCHANGE),
        Err(Errno::NOENT)
    );
    let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
    assert_eq!(rename(&sub, &file, both), Err(Errno::INVAL));
}

#[test]
fn rename_whiteout_leaves_a_whiteout() {
    if !is_root("rename_whiteout_leaves_a_whiteout") {
        return;
    }
    let dir = folder();
    // Whiteouts are how overlayfs itself works.
    if is_on(&dir, &[OVERLAYFS]) {
        return;
    }
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, "a").unwrap();
    rename(&a, &b, RenameFlags::WHITEOUT).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"a");
    let whiteout = fs::symlink_metadata(&a).unwrap();
    assert!(whiteout.file_type().is_char_device());
    assert_eq!(whiteout.rdev(), 0);
    // Over another.
    rename(&b, &a, RenameFlags::WHITEOUT).unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"a");
    assert_eq!(fs::symlink_metadata(&b).unwrap().rdev(), 0);
}

#[test]
fn rename_obeys_the_kinds() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "").unwrap();
    fs::create_dir_all(path("dir/sub")).unwrap();
    fs::create_dir(path("empty")).unwrap();
    let none = RenameFlags::empty();
    assert_eq!(
        rename(&path("file"), &path("empty"), none),
        Err(Errno::ISDIR)
    );
    assert_eq!(
        rename(&path("dir"), &path("file"), none),
        Err(Errno::NOTDIR)
    );
    assert_eq!(
        rename(&path("dir"), &path("dir/sub/x"), none),
        Err(Errno::INVAL)
    );
    let over = rename(&path("empty"), &path("dir"), none);
    assert!(matches!(over, Err(Errno::NOTEMPTY | Errno::EXIST)));
    rename(&path("dir"), &path("empty"), none).unwrap();
    assert!(path("empty/sub").is_dir());
    // Two names of one file: nothing happens.
    fs::hard_link(path("file"), path("same")).unwrap();
    rename(&path("file"), &path("same"), none).unwrap();
    assert!(path("file").exists() && path("same").exists());
}

#[test]
fn hard_links_are_one_file() {
    let dir = folder();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, "one").unwrap();
    fs::hard_link(&a, &b).unwrap();
    let stat = |path: &Path| fs::symlink_metadata(path).unwrap();
    assert_eq!((stat(&a).nlink(), stat(&b).nlink()), (2, 2));
    assert_eq!(stat(&a).ino(), stat(&b).ino());
    OpenOptions::new()
        .append(true)
        .open(&b)
        .unwrap()
        .write_all(b"two")
        .unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"onetwo");
    fs::set_permissions(&b, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(stat(&a).mode() & 0o7777, 0o640);
    fs::remove_file(&a).unwrap();
    assert_eq!(stat(&b).nlink(), 1);
    assert_eq!(fs::read(&b).unwrap(), b"onetwo");
    // A link to a link, a link to a folder, a link over something.
    symlink("nowhere", &a).unwrap();
    fs::hard_link(&a, dir.path().join("c")).unwrap();
    assert_eq!(
        fs::read_link(dir.path().join("c")).unwrap(),
        Path::new("nowhere")
    );
    assert_eq!(
        errno(&fs::hard_link(dir.path(), dir.path().join("d")).unwrap_err()),
        Errno::PERM
    );
    assert_eq!(errno(&fs::hard_link(&a, &b).unwrap_err()), Errno::EXIST);
}

#[test]
fn names_are_255_bytes_of_any_kind() {
    let dir = folder();
    let at = |name: &[u8]| dir.path().join(OsStr::from_bytes(name));
    let mut made = BTreeSet::new();
    // Every byte there is, 100 at a time, then the longest of each.
    let bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    for name in bytes.chunks(100) {
        fs::write(at(name), "").unwrap();
        made.insert(name.to_vec());
    }
    for byte in [b'x', b' ', b'\n', b'-', 0x80, 0xff] {
        let longest = vec![byte; 255];
        fs::write(at(&longest), [byte]).unwrap();
        made.insert(longest.clone());
        let too_long = fs::write(at(&[byte; 256]), "").unwrap_err();
        assert_eq!(errno(&too_long), Errno::NAMETOOLONG);
        assert_eq!(fs::read(at(&longest)).unwrap(), [byte]);
    }
    for name in [&b"..."[..], b" ", b"\\", b"*", b".x", b"x."] {
        fs::create_dir(at(name)).unwrap();
        made.insert(name.to_vec());
    }
    let seen: BTreeSet<Vec<u8>> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    assert!(seen == made);
    // All other ways in which a name can be too long.
    let (long, ok) = (at(&[b'y'; 256]), at(&[b'x'; 255]));
    assert_eq!(
        errno(&fs::rename(&ok, &long).unwrap_err()),
        Errno::NAMETOOLONG
    );
    assert_eq!(
        errno(&fs::hard_link(&ok, &long).unwrap_err()),
        Errno::NAMETOOLONG
    );
    assert_eq!(errno(&symlink("x", &long).unwrap_err()), Errno::NAMETOOLONG);
    assert_eq!(errno(&fs::metadata(&long).unwrap_err()), Errno::NAMETOOLONG);
}

#[test]
fn symlinks_hold_any_target_and_loops_end() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    // XFS has a limit of its own.
    let mut longest = "t".repeat(4095);
    if let Err(error) = symlink(&longest, path("long")) {
        assert_eq!(errno(&error), Errno::NAMETOOLONG);
        longest.truncate(1023);
        symlink(&longest, path("long")).unwrap();
    }
    assert_eq!(fs::read_link(path("long")).unwrap(), Path::new(&longest));
    assert_eq!(
        fs::symlink_metadata(path("long")).unwrap().len(),
        longest.len() as u64
    );
    assert_eq!(errno(&symlink("", path("none")).unwrap_err()), Errno::NOENT);
    let too_long = symlink("t".repeat(4096), path("none")).unwrap_err();
    assert_eq!(errno(&too_long), Errno::NAMETOOLONG);

    symlink("b", path("a")).unwrap();
    symlink("a", path("b")).unwrap();
    symlink("self/x", path("self")).unwrap();
    for looped in ["a", "b", "self", "a/x"] {
        assert_eq!(errno(&File::open(path(looped)).unwrap_err()), Errno::LOOP);
        assert_eq!(errno(&fs::metadata(path(looped)).unwrap_err()), Errno::LOOP);
    }
    // 40 links in a row are followed, the 41st is not.
    fs::write(path("0"), "end").unwrap();
    for link in 1..=41 {
        symlink(format!("{}", link - 1), path(&link.to_string())).unwrap();
    }
    assert_eq!(fs::read(path("40")).unwrap(), b"end");
    assert_eq!(errno(&fs::read(path("41")).unwrap_err()), Errno::LOOP);
    let nofollow = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path("1"));
    assert_eq!(errno(&nofollow.unwrap_err()), Errno::LOOP);
}

// ---- Special files

#[test]
fn a_fifo_connects_two_processes() {
    let dir = folder();
    let path = dir.path().join("fifo");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let stat = fs::symlink_metadata(&path).unwrap();
    assert!(stat.file_type().is_fifo());
    thread::scope(|scope| {
        scope.spawn(|| fs::write(&path, pattern(200_000)).unwrap());
        assert!(fs::read(&path).unwrap() == pattern(200_000));
    });
    let nobody_reads = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(&path);
    assert_eq!(errno(&nobody_reads.unwrap_err()), Errno::NXIO);
}

#[test]
fn a_socket_connects_two_processes() {
    let dir = folder();
    // The whole path has to fit into a socket's address.
    let open = File::open(dir.path()).unwrap();
    let short = format!("/proc/self/fd/{}/socket", open.as_raw_fd());
    let listener = UnixListener::bind(&short).unwrap();
    assert!(
        fs::symlink_metadata(dir.path().join("socket"))
            .unwrap()
            .file_type()
            .is_socket()
    );
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = UnixStream::connect(&short).unwrap();
            stream.write_all(b"hello").unwrap();
        });
        let mut heard = String::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_string(&mut heard)
            .unwrap();
        assert_eq!(heard, "hello");
    });
    let opened = File::open(&short).unwrap_err();
    assert_eq!(errno(&opened), Errno::NXIO);
}

#[test]
fn device_nodes_are_those_of_this_machine() {
    if !is_root("device_nodes_are_those_of_this_machine") {
        return;
    }
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    let make = |name: &str, kind, major, minor| {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, path(name), kind, Mode::from_raw_mode(0o600), device).unwrap();
        let stat = fs::symlink_metadata(path(name)).unwrap();
        assert_eq!(stat.rdev(), device);
        assert_eq!(stat.mode() & 0o7777, 0o600);
        stat.file_type()
    };
    assert!(make("zero", FileType::CharacterDevice, 1, 5).is_char_device());
    assert!(make("large", FileType::CharacterDevice, 511, 0x3ffff).is_char_device());
    assert!(make("block", FileType::BlockDevice, 259, 300).is_block_device());
    let mut zeros = [1; 100];
    match File::open(path("zero")) {
        Ok(mut zero) => {
            zero.read_exact(&mut zeros).unwrap();
            assert_eq!(zeros, [0; 100]);
        }
        // Mounted with `nodev`.
        Err(error) => assert_eq!(errno(&error), Errno::ACCESS),
    }
    assert_eq!(errno(&File::open(path("large")).unwrap_err()), Errno::NXIO);
}

// ---- Far offsets

#[test]
fn offsets_reach_to_8_eib() {
    let dir = folder();
    let file = filled(&dir.path().join("f"), 1000);
    let end = i64::MAX as u64;
    let mut buffer = [0; 10];
    assert_eq!(file.read_at(&mut buffer, end - 10).unwrap(), 0);
    assert_eq!(
        rustix::fs::seek(&file, SeekFrom::Start(1 << 42)),
        Ok(1 << 42)
    );
    assert_eq!(errno(&file.write_at(b"x", end).unwrap_err()), Errno::INVAL);
    assert_eq!(
        rustix::fs::seek(&file, SeekFrom::Data(end)),
        Err(Errno::NXIO)
    );
    assert_eq!(
        rustix::io::pread(&file, &mut buffer, u64::MAX).unwrap_err(),
        Errno::INVAL
    );
    assert_eq!(
        rustix::fs::ftruncate(&file, u64::MAX).unwrap_err(),
        Errno::INVAL
    );
    assert_eq!(content(&file), pattern(1000));
}

#[test]
fn a_length_that_the_file_system_cannot_have_is_efbig() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 1000);
    // XFS and btrfs can, ext4 cannot.
    for length in [1 << 45, 1 << 50, i64::MAX as u64 - 4096] {
        match rustix::fs::ftruncate(&file, length) {
            Ok(()) => {
                assert_eq!(file.metadata().unwrap().len(), length);
                file.write_all_at(b"end", length - 3).unwrap();
                let mut seen = [0; 10];
                assert_eq!(file.read_at(&mut seen, length - 5).unwrap(), 5);
                assert_eq!(&seen[..5], b"\0\0end");
                assert_eq!(rustix::fs::seek(&file, SeekFrom::End(0)), Ok(length));
                file.set_len(1000).unwrap();
            }
            Err(errno) => assert_eq!(errno, Errno::FBIG),
        }
        assert_eq!(content(&file), pattern(1000));
    }
}

#[test]
fn a_write_that_the_file_system_cannot_hold_is_efbig_at_once() {
    let dir = folder();
    let file = filled(&dir.path().join("f"), 1000);
    for offset in [1 << 45, 1 << 50] {
        let written = file.write_at(b"x", offset);
        let synced = file.sync_all();
        // The file system is not to tell another test of it.
        let _ = rustix::fs::syncfs(&file);
        file.set_len(1000).unwrap();
        match written {
            Ok(n) => assert_eq!((n, synced.is_ok()), (1, true), "the write had succeeded"),
            Err(error) => assert_eq!(errno(&error), Errno::FBIG),
        }
        assert_eq!(content(&file), pattern(1000));
    }
}

// ---- Syncing

#[test]
fn everything_can_be_synced() {
    let dir = folder();
    let file = filled(&dir.path().join("f"), 100_000);
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    rustix::fs::syncfs(&file).unwrap();
    let open = File::open(dir.path()).unwrap();
    open.sync_all().unwrap();
    open.sync_data().unwrap();
    rustix::fs::syncfs(&open).unwrap();
    for flags in [OFlags::SYNC, OFlags::DSYNC] {
        let mut synced = OpenOptions::new()
            .write(true)
            .custom_flags(flags.bits() as i32)
            .open(dir.path().join("f"))
            .unwrap();
        synced.write_all(b"synced").unwrap();
    }
}

#[test]
fn the_limit_of_descriptors_is_emfile_and_leaves_nothing() {
    let dir = folder();
    // In a process of its own, since the limit is a process's.
    let script = "ulimit -n 20; exec 3<>a 4<>b 5<>c 6<>d 7<>e 8<>f; \
                  i=9; while (( i < 30 )); do eval \"exec $i>made-$i\" 2>/dev/null || break; \
                  i=$((i + 1)); done; echo $i";
    let output = std::process::Command::new("bash")
        .args(["-c", script])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let first_refused: u32 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap();
    assert!(first_refused <= 20);
    assert!(
        !dir.path()
            .join(format!("made-{}", first_refused + 1))
            .exists()
    );
}

// ---- Direct I/O

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Whole blocks at an address that suits every device.
struct Blocks {
    bytes: Vec<u8>,
    start: usize,
}

impl Blocks {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Self { bytes, start }
    }

    fn get(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + length]
    }
}

#[test]
fn direct_io_and_the_page_cache_agree() {
    let dir = folder();
    let path = dir.path().join("f");
    let cached = create(&path);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(&path);
    let direct = match opened {
        Ok(direct) => direct,
        // As tmpfs before Linux 6.6.
        Err(error) => return assert_eq!(errno(&error), Errno::INVAL),
    };
    let blocks = 256;
    let mut model = vec![0; blocks * 4096];
    cached.set_len(model.len() as u64).unwrap();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut buffer = Blocks::new(16 * 4096);
    for round in 0..600 {
        let first = numbers.below(blocks as u64) as usize;
        let count = (1 + numbers.below(16) as usize).min(blocks - first);
        let range = first * 4096..(first + count) * 4096;
        let bytes = buffer.get(range.len());
        match numbers.below(5) {
            0 => {
                bytes.fill(round as u8);
                direct.write_all_at(bytes, range.start as u64).unwrap();
                model[range].fill(round as u8);
            }
            1 => {
                bytes.fill(round as u8);
                cached
                    .write_all_at(&bytes[..count * 1000], range.start as u64 + 17)
                    .unwrap();
                model[range.start + 17..range.start + 17 + count * 1000].fill(round as u8);
            }
            2 => {
                direct.read_exact_at(bytes, range.start as u64).unwrap();
                assert!(bytes == &model[range], "direct, round {round}");
            }
            3 => {
                cached.read_exact_at(bytes, range.start as u64).unwrap();
                assert!(bytes == &model[range], "cached, round {round}");
            }
            _ => {
                let length = range.start as u64 + 100;
                cached.set_len(length).unwrap();
                cached.set_len(model.len() as u64).unwrap();
                model[length as usize..].fill(0);
            }
        }
    }
    // At the end of the file a read is short, not an error.
    cached.set_len(5000).unwrap();
    let n = direct.read_at(buffer.get(8192), 0).unwrap();
    assert_eq!(n, 5000);
    assert!(buffer.get(5000) == &model[..5000]);
}

// ---- Directories

struct Listed {
    name: Vec<u8>,
    ino: u64,
    kind: FileType,
    next: u64,
}

/// One call of `getdents64`.
fn some_entries(fd: BorrowedFd<'_>, buffer_bytes: usize) -> rustix::io::Result<Vec<Listed>> {
    let mut buffer = vec![MaybeUninit::uninit(); buffer_bytes];
    let mut raw = RawDir::new(fd, &mut buffer);
    let mut list = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        list.push(Listed {
            name: entry.file_name().to_bytes().to_vec(),
            ino: entry.ino(),
            kind: entry.file_type(),
            next: entry.next_entry_cookie(),
        });
        if raw.is_buffer_empty() {
            break;
        }
    }
    Ok(list)
}

/// All entries from here on.
fn entries(fd: BorrowedFd<'_>, buffer_bytes: usize) -> Vec<Listed> {
    let mut all = Vec::new();
    loop {
        let some = some_entries(fd, buffer_bytes).unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn fill(dir: &Path, prefix: &str, count: usize) {
    for number in 0..count {
        File::create(dir.join(format!("{prefix}{number:06}"))).unwrap();
    }
}

/// How large a large folder is: creating is slow where processors are emulated.
fn many() -> usize {
    let entries = std::env::var("POSIX_ENTRIES");
    entries.map_or(5_000, |entries| entries.parse().unwrap())
}

#[test]
fn dot_and_dot_dot_lead_where_they_say() {
    let dir = folder();
    let sub = dir.path().join("sub");
    fs::create_dir(&sub).unwrap();
    let listed = entries(File::open(&sub).unwrap().as_fd(), 4096);
    let ino = |name: &[u8]| listed.iter().find(|entry| entry.name == name).unwrap().ino;
    assert_eq!(listed.len(), 2);
    assert!(
        listed
            .iter()
            .all(|entry| matches!(entry.kind, FileType::Directory | FileType::Unknown))
    );
    assert_eq!(ino(b"."), fs::metadata(&sub).unwrap().ino());
    assert_eq!(ino(b".."), fs::metadata(dir.path()).unwrap().ino());
    assert_eq!(
        fs::metadata(sub.join(".")).unwrap().ino(),
        fs::metadata(&sub).unwrap().ino()
    );
    assert_eq!(
        fs::metadata(sub.join("..")).unwrap().ino(),
        fs::metadata(dir.path()).unwrap().ino()
    );
    // After a move `..` is the new parent.
    fs::create_dir(dir.path().join("other")).unwrap();
    let moved = dir.path().join("other/sub");
    fs::rename(&sub, &moved).unwrap();
    let listed = entries(File::open(&moved).unwrap().as_fd(), 4096);
    let above = listed.iter().find(|entry| entry.name == b"..").unwrap();
    assert_eq!(
        above.ino,
        fs::metadata(dir.path().join("other")).unwrap().ino()
    );
}

#[test]
fn the_kind_and_number_of_entries_are_right() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    File::create(path("file")).unwrap();
    fs::create_dir(path("dir")).unwrap();
    symlink("file", path("link")).unwrap();
    rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    for entry in entries(File::open(dir.path()).unwrap().as_fd(), 4096) {
        if entry.name.starts_with(b".") {
            continue;
        }
        let stat = fs::symlink_metadata(dir.path().join(OsStr::from_bytes(&entry.name))).unwrap();
        assert_eq!(entry.ino, stat.ino());
        assert_eq!(entry.kind, FileType::from_raw_mode(stat.mode()));
    }
}

#[test]
fn getdents_works_with_tiny_buffers() {
    let dir = folder();
    fill(dir.path(), "f", 300);
    let long = "n".repeat(255);
    File::create(dir.path().join(&long)).unwrap();
    // Room for one entry with the longest name and no more.
    for buffer_bytes in [280, 281, 300, 700] {
        let open = File::open(dir.path()).unwrap();
        let mut names: Vec<_> = entries(open.as_fd(), buffer_bytes)
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        assert_eq!(names.len(), 303);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 303);
    }
    let open = File::open(dir.path()).unwrap();
    // Too small for any entry: an error, and nothing is lost by it.
    assert_eq!(some_entries(open.as_fd(), 16).err(), Some(Errno::INVAL));
    assert_eq!(entries(open.as_fd(), 4096).len(), 303);
}

#[test]
fn a_position_means_the_same_while_others_change_the_folder() {
    let dir = folder();
    fill(dir.path(), "stay-", 1500);
    fill(dir.path(), "go-", 500);
    let open = File::open(dir.path()).unwrap();
    let listed = entries(open.as_fd(), 500);
    assert_eq!(listed.len(), 2002);
    for number in 0..500 {
        fs::remove_file(dir.path().join(format!("go-{number:06}"))).unwrap();
        File::create(dir.path().join(format!("come-{number:06}"))).unwrap();
    }
    // After the position of each entry comes the next one that has stayed.
    let mut numbers = Numbers(12345);
    for _ in 0..300 {
        let place = numbers.below(listed.len() as u64 - 1) as usize;
        let Some(expected) = listed[place + 1..]
            .iter()
            .find(|entry| entry.name.starts_with(b"stay-"))
        else {
            continue;
        };
        rustix::fs::seek(&open, SeekFrom::Start(listed[place].next)).unwrap();
        let found = loop {
            let some = some_entries(open.as_fd(), 400).unwrap();
            assert!(!some.is_empty(), "the end comes too early");
            let stayed = some
                .into_iter()
                .find(|entry| entry.name.starts_with(b"stay-"));
            if let Some(entry) = stayed {
                break entry;
            }
        };
        assert!(found.name == expected.name);
    }
    // `telldir` is where the next entry comes from.
    rustix::fs::seek(&open, SeekFrom::Start(0)).unwrap();
    let some = some_entries(open.as_fd(), 400).unwrap();
    assert_eq!(
        rustix::fs::seek(&open, SeekFrom::Current(0)),
        Ok(some.last().unwrap().next)
    );
}

#[test]
fn no_entry_is_lost_or_doubled_while_others_come_and_go() {
    let dir = folder();
    fill(dir.path(), "stay-", many());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..2 {
            let (done, path) = (&done, dir.path());
            scope.spawn(move || {
                let name = |number: u64| path.join(format!("churn-{writer}-{number}"));
                let mut number = 0;
                while !done.load(Ordering::Relaxed) {
                    File::create(name(number)).unwrap();
                    if number >= 50 {
                        fs::remove_file(name(number - 50)).unwrap();
                    }
                    if number % 3 == 0 {
                        fs::rename(name(number), path.join("moved")).unwrap();
                        fs::rename(path.join("moved"), name(number)).unwrap_or_default();
                        File::create(name(number)).unwrap();
                    }
                    number += 1;
                }
            });
        }
        let expected: BTreeSet<Vec<u8>> = (0..many())
            .map(|number| format!("stay-{number:06}").into_bytes())
            .collect();
        for buffer_bytes in [1 << 10, 32 << 10, 128 << 10] {
            let open = File::open(dir.path()).unwrap();
            let mut seen: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            for entry in entries(open.as_fd(), buffer_bytes) {
                *seen.entry(entry.name).or_default() += 1;
            }
            for name in &expected {
                let times = seen.get(name).copied();
                if times != Some(1) {
                    done.store(true, Ordering::Relaxed);
                    panic!("{} seen {times:?} times", String::from_utf8_lossy(name));
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_folder_that_is_emptied_while_it_is_listed_ends_up_empty() {
    let dir = folder();
    fill(dir.path(), "f", 2000);
    // As `rm -r` does it: list a part, remove it, list on.
    let open = File::open(dir.path()).unwrap();
    loop {
        let some = some_entries(open.as_fd(), 4096).unwrap();
        if some.is_empty() {
            break;
        }
        for entry in some.iter().filter(|entry| !entry.name.starts_with(b".")) {
            let name = CString::new(&entry.name[..]).unwrap();
            rustix::fs::unlinkat(&open, &name, AtFlags::empty()).unwrap();
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_link_count_of_a_folder_counts_its_folders() {
    let dir = folder();
    let nlink = || fs::metadata(dir.path()).unwrap().nlink();
    // btrfs counts nothing.
    if nlink() == 1 {
        return;
    }
    assert_eq!(nlink(), 2);
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::create_dir(dir.path().join("b")).unwrap();
    assert_eq!(nlink(), 4);
    fs::rename(dir.path().join("b"), dir.path().join("a/b")).unwrap();
    assert_eq!(nlink(), 3);
    fs::remove_dir(dir.path().join("a/b")).unwrap();
    fs::remove_dir(dir.path().join("a")).unwrap();
    assert_eq!(nlink(), 2);
}

#[test]
fn set_gid_folders_pass_on_group_and_bit() {
    if !is_root("set_gid_folders_pass_on_group_and_bit") {
        return;
    }
    let dir = folder();
    std::os::unix::fs::chown(dir.path(), None, Some(4321)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2777)).unwrap();
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir.path().join("d"))
        .unwrap();
    File::create(dir.path().join("f")).unwrap();
    let sub = fs::metadata(dir.path().join("d")).unwrap();
    assert_eq!((sub.gid(), sub.mode() & 0o7777), (4321, 0o2700));
    assert_eq!(fs::metadata(dir.path().join("f")).unwrap().gid(), 4321);
}

// ---- Timestamps

fn at(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    }
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_NOW,
};
const OMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_OMIT,
};

fn times(access: Timespec, modification: Timespec) -> Timestamps {
    Timestamps {
        last_access: access,
        last_modification: modification,
    }
}

fn atime(stat: &fs::Metadata) -> (i64, i64) {
    (stat.atime(), stat.atime_nsec())
}

fn mtime(stat: &fs::Metadata) -> (i64, i64) {
    (stat.mtime(), stat.mtime_nsec())
}

fn ctime(stat: &fs::Metadata) -> (i64, i64) {
    (stat.ctime(), stat.ctime_nsec())
}

/// Waits until both clocks that stamp files have gone on, this machine's and that
/// of whoever serves the file system, also from where the other one is.
fn tick(dir: &Path) {
    const TICK: Duration = Duration::from_millis(20);
    let probe = dir.join("probe-of-the-clock");
    let stamp = || {
        let _ = fs::remove_file(&probe);
        File::create(&probe).unwrap();
        fs::metadata(&probe).unwrap().modified().unwrap()
    };
    let later = SystemTime::now().max(stamp()) + TICK;
    while stamp() < later || SystemTime::now() < later {
        thread::yield_now();
    }
    fs::remove_file(&probe).unwrap();
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let dir = folder();
    let file = filled(&dir.path().join("f"), 10);
    symlink("f", dir.path().join("link")).unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    for (seconds, nanoseconds) in [
        (0, 0),
        (1, 1),
        (1_600_000_000, 123_456_789),
        (i64::from(i32::MAX), 999_999_999),
        (4_000_000_000, 999_999_999),
        (-1_000_000, 5),
    ] {
        let (access, modification) = (at(seconds, nanoseconds), at(seconds + 10, nanoseconds));
        let wanted = times(access, modification);
        rustix::fs::futimens(&file, &wanted).unwrap();
        for name in ["link", "d"] {
            let path = dir.path().join(name);
            rustix::fs::utimensat(CWD, &path, &wanted, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        for name in ["f", "link", "d"] {
            let stat = fs::symlink_metadata(dir.path().join(name)).unwrap();
            assert_eq!(atime(&stat), (seconds, nanoseconds), "{name}");
            assert_eq!(mtime(&stat), (seconds + 10, nanoseconds), "{name}");
        }
    }
}

#[test]
fn omitted_times_stay_and_now_is_now() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 10);
    let stat = || fs::metadata(&path).unwrap();
    rustix::fs::futimens(&file, &times(at(100, 1), at(200, 2))).unwrap();
    let before = stat();
    tick(dir.path());
    rustix::fs::futimens(&file, &times(OMIT, OMIT)).unwrap();
    assert_eq!(ctime(&stat()), ctime(&before), "nothing was asked for");
    rustix::fs::futimens(&file, &times(OMIT, at(300, 3))).unwrap();
    assert_eq!((atime(&stat()), mtime(&stat())), ((100, 1), (300, 3)));
    assert!(ctime(&stat()) > ctime(&before));
    rustix::fs::futimens(&file, &times(at(400, 4), OMIT)).unwrap();
    assert_eq!((atime(&stat()), mtime(&stat())), ((400, 4), (300, 3)));
    rustix::fs::futimens(&file, &times(NOW, OMIT)).unwrap();
    assert!(atime(&stat()) > ctime(&before));
    assert_eq!(mtime(&stat()), (300, 3));
    rustix::fs::futimens(&file, &times(NOW, NOW)).unwrap();
    assert!(mtime(&stat()) > ctime(&before));
    assert_eq!(
        rustix::fs::futimens(&file, &times(at(0, 1_000_000_000), OMIT)),
        Err(Errno::INVAL)
    );
}

#[test]
fn changes_stamp_what_they_change() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 10_000);
    fs::create_dir(dir.path().join("d")).unwrap();
    let stat = || fs::symlink_metadata(&path).unwrap();
    let assert_stamps = |what: &str, act: &dyn Fn(), modified: bool| {
        let before = stat();
        tick(dir.path());
        act();
        let after = stat();
        assert_eq!(mtime(&after) > mtime(&before), modified, "mtime: {what}");
        assert!(ctime(&after) > ctime(&before), "ctime: {what}");
    };
    assert_stamps("write", &|| file.write_all_at(b"x", 5).unwrap(), true);
    assert_stamps("longer", &|| file.set_len(20_000).unwrap(), true);
    assert_stamps("shorter", &|| file.set_len(5_000).unwrap(), true);
    assert_stamps(
        "open with O_TRUNC",
        &|| {
            File::create(&path).unwrap();
        },
        true,
    );
    assert_stamps(
        "fallocate",
        &|| allocate(&file, FallocateFlags::empty(), 0, 9000).unwrap(),
        true,
    );
    assert_stamps(
        "chmod",
        &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap(),
        false,
    );
    assert_stamps(
        "chown",
        &|| {
            std::os::unix::fs::chown(&path, None, Some(rustix::process::getegid().as_raw()))
                .unwrap()
        },
        false,
    );
    assert_stamps(
        "link",
        &|| fs::hard_link(&path, dir.path().join("d/second")).unwrap(),
        false,
    );
    assert_stamps(
        "unlink",
        &|| fs::remove_file(dir.path().join("d/second")).unwrap(),
        false,
    );
}

#[test]
fn a_folder_is_stamped_when_its_names_change() {
    let dir = folder();
    let inside = dir.path().join("d");
    fs::create_dir(&inside).unwrap();
    let assert_stamped = |what: &str, act: &dyn Fn()| {
        let before = fs::metadata(&inside).unwrap();
        tick(dir.path());
        act();
        let after = fs::metadata(&inside).unwrap();
        assert!(mtime(&after) > mtime(&before), "mtime: {what}");
        assert_eq!(mtime(&after), ctime(&after), "{what}");
    };
    assert_stamped("create", &|| drop(create(&inside.join("f"))));
    assert_stamped("mkdir", &|| fs::create_dir(inside.join("sub")).unwrap());
    assert_stamped("symlink", &|| symlink("x", inside.join("s")).unwrap());
    assert_stamped("link", &|| {
        fs::hard_link(inside.join("f"), inside.join("g")).unwrap();
    });
    assert_stamped("rename", &|| {
        fs::rename(inside.join("f"), inside.join("h")).unwrap();
    });
    assert_stamped("unlink", &|| fs::remove_file(inside.join("h")).unwrap());
    assert_stamped("rmdir", &|| fs::remove_dir(inside.join("sub")).unwrap());
}

#[test]
fn times_that_were_set_outlive_what_was_written_before() {
    let dir = folder();
    let path = dir.path().join("f");
    // As `cp -p`, `tar -x` and `rsync` do it.
    let file = filled(&path, 100_000);
    rustix::fs::futimens(&file, &times(at(1000, 1), at(2000, 2))).unwrap();
    assert_eq!(mtime(&fs::metadata(&path).unwrap()), (2000, 2));
    drop(file);
    assert_eq!(mtime(&fs::metadata(&path).unwrap()), (2000, 2));
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::syncfs(&file).unwrap();
    assert_eq!(mtime(&file.metadata().unwrap()), (2000, 2));
}

#[test]
fn the_time_of_a_write_does_not_change_later() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 10_000);
    tick(dir.path());
    file.write_all_at(b"again", 100).unwrap();
    let written = file.metadata().unwrap();
    tick(dir.path());
    file.sync_all().unwrap();
    let synced = file.metadata().unwrap();
    assert_eq!(mtime(&synced), mtime(&written));
    drop(file);
    tick(dir.path());
    let closed = fs::metadata(&path).unwrap();
    assert_eq!(mtime(&closed), mtime(&written));
    assert_eq!(ctime(&closed), ctime(&synced));
}

#[test]
fn reading_stamps_a_file_that_changed_since_it_was_read() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 10_000);
    rustix::fs::futimens(&file, &times(at(1000, 0), at(2000, 0))).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    assert!(file.metadata().unwrap().atime() > 2000, "relatime");
}

#[test]
fn listing_stamps_a_folder_that_changed_since_it_was_listed() {
    let dir = folder();
    let inside = dir.path().join("d");
    fs::create_dir(&inside).unwrap();
    File::create(inside.join("f")).unwrap();
    let wanted = times(at(1000, 0), at(2000, 0));
    rustix::fs::utimensat(CWD, &inside, &wanted, AtFlags::empty()).unwrap();
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 1);
    assert!(fs::metadata(&inside).unwrap().atime() > 2000, "relatime");
}

#[test]
fn a_read_with_o_noatime_leaves_no_stamp() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 10_000);
    rustix::fs::futimens(&file, &times(at(1000, 0), at(2000, 0))).unwrap();
    let mut quiet = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOATIME.bits() as i32)
        .open(&path)
        .unwrap();
    let mut bytes = Vec::new();
    quiet.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 10_000);
    assert_eq!(atime(&fs::metadata(&path).unwrap()), (1000, 0));
}

// ---- Odds and ends of open(2)

#[test]
fn append_goes_to_the_end_whoever_writes() {
    let dir = folder();
    let path = dir.path().join("f");
    let append = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap()
    };
    thread::scope(|scope| {
        for writer in 0..4 {
            let mut file = append();
            scope.spawn(move || {
                for _ in 0..100 {
                    file.write_all(format!("line of {writer}\n").as_bytes())
                        .unwrap();
                }
            });
        }
    });
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 400);
    for writer in 0..4 {
        let line = format!("line of {writer}");
        assert_eq!(text.lines().filter(|seen| *seen == line).count(), 100);
    }
}

#[test]
fn open_creates_exactly_once() {
    let dir = folder();
    for round in 0..20 {
        let path = dir.path().join(format!("f{round}"));
        let winners: usize = thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| File::create_new(&path).is_ok()))
                .collect();
            racers
                .into_iter()
                .map(|racer| usize::from(racer.join().unwrap()))
                .sum()
        });
        assert_eq!(winners, 1);
    }
}

#[test]
fn a_file_is_reachable_by_its_descriptor() {
    let dir = folder();
    let path = dir.path().join("f");
    let file = filled(&path, 100);
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let again = File::open(&name).unwrap();
    assert_eq!(content(&again), pattern(100));
    let linked = c_path(&dir.path().join("linked"));
    let name = CString::new(name).unwrap();
    let link = |from: &CStr| rustix::fs::linkat(CWD, from, CWD, &linked, AtFlags::SYMLINK_FOLLOW);
    link(&name).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 2);
}
