//! Which file it is: what tells it from others, also from those that had its inode
//! number before or get it later.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};

use crate::fs::Result;
use crate::fuse::abi::Attr;
use crate::passthrough::stat::from_statx;
use crate::sys::clock::{Nanoseconds, last_tick};
use crate::sys::shared_fd::SharedFd;

/// Where a file lies on the host; while it exists no other file has the same.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct InodeKey {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number.
    pub ino: u64,
    /// The mount through which it was reached.
    pub mount: u64,
}

impl InodeKey {
    /// Where a file lies, by its status, which has the mount in it.
    pub fn of(stat: &Statx) -> Self {
        Self {
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            ino: stat.stx_ino,
            mount: stat.stx_mnt_id,
        }
    }
}

/// What tells a file from others, also from those that have had its inode
/// number before or get it later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Where it lies.
    pub key: InodeKey,
    /// Its type.
    pub kind: FileType,
    /// When it was made, in nanoseconds of the host's clock, where the file
    /// system knows.
    pub born: Option<i64>,
}

impl Identity {
    /// Whether this is the same file, as far as these facts can tell; it may
    /// have been reached through another mount.
    pub fn is_same_file(&self, other: &Self) -> bool {
        let place = |of: &Self| (of.key.device, of.key.ino, of.kind);
        place(self) == place(other)
            && (self.born == other.born || self.born.is_none() || other.born.is_none())
    }
}

/// The most between two ticks of the host's clock.
const TICK: Duration = Duration::from_millis(10);

/// Two files of one number have different birth times if this long lies
/// between them.
pub(in crate::passthrough) const BIRTHS_DIFFER: Duration = TICK.saturating_mul(2);

/// Minimum age at which a birth time identifies a file; includes one tick of the coarse
/// clock.
pub(in crate::passthrough) const SETTLED_AFTER: Duration = BIRTHS_DIFFER.saturating_add(TICK);

/// A file as the host shows it.
pub(in crate::passthrough) struct Found {
    pub(in crate::passthrough) identity: Identity,
    /// With the ids of the host.
    pub(in crate::passthrough) attr: Attr,
    /// When the host was asked: later than this the file existed.
    pub(in crate::passthrough) asked: Nanoseconds,
}

/// What tells a file from others, by its status.
fn identity_of(stat: &Statx) -> Identity {
    let has_birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    let nanoseconds = i64::from(stat.stx_btime.tv_nsec);
    let born = stat.stx_btime.tv_sec.checked_mul(1_000_000_000);
    Identity {
        key: InodeKey::of(stat),
        kind: FileType::from_raw_mode(stat.stx_mode.into()),
        born: born
            .and_then(|born| born.checked_add(nanoseconds))
            .filter(|_| has_birth),
    }
}

impl Found {
    fn new(stat: &Statx, asked: Nanoseconds) -> Self {
        Self {
            identity: identity_of(stat),
            attr: from_statx(stat),
            asked,
        }
    }
}

/// What is asked of the host about a file: what a reply needs and its identity.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::MNT_ID)
    .union(StatxFlags::BTIME);

/// Identifies an open file.
///
/// # Errors
/// Those of `statx(2)`.
pub(in crate::passthrough) fn identify(fd: BorrowedFd<'_>) -> Result<Found> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let asked = last_tick();
    Ok(Found::new(
        &rustix::fs::statx(fd, c"", flags, WANTED)?,
        asked,
    ))
}

/// Identifies a name without opening it.
///
/// # Errors
/// Those of `statx(2)`.
pub(in crate::passthrough) fn identify_name(parent: impl AsFd, name: &CStr) -> Result<Found> {
    identify_with(parent, name, AtFlags::empty())
}

/// The same, but a server is asked and the host's kernel does not answer from its
/// cache.
///
/// # Errors
/// Those of `statx(2)`.
pub(in crate::passthrough) fn identify_name_now(parent: impl AsFd, name: &CStr) -> Result<Found> {
    identify_with(parent, name, AtFlags::STATX_FORCE_SYNC)
}

/// The same, but no server is asked: where the name leads to one the kernel answers
/// from what it remembers.
///
/// # Errors
/// Those of `statx(2)`.
pub(in crate::passthrough) fn identify_name_at_hand(
    parent: impl AsFd,
    name: &CStr,
) -> Result<Found> {
    identify_with(parent, name, AtFlags::STATX_DONT_SYNC)
}

fn identify_with(parent: impl AsFd, name: &CStr, more: AtFlags) -> Result<Found> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | more;
    let asked = last_tick();
    let stat = rustix::fs::statx(parent, name, flags, WANTED)?;
    Ok(Found::new(&stat, asked))
}

/// Opens the path of a name.
///
/// # Errors
/// Those of `open(2)`.
pub(in crate::passthrough) fn open_path(parent: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Whether what is open is the file that was found under a name.
///
/// While it is open nothing else gets its number, and what differs is what the
/// host has changed about it since. A server may give the number to others, but
/// then it does not have the old file any more when it is asked for it.
pub(in crate::passthrough) fn is_open_file(path: &SharedFd, found: &Identity) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(path, c"", flags, WANTED).is_ok_and(|open| identity_of(&open) == *found)
}
