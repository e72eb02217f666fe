//! From a name to a node.
//!
//! A name is asked for its identity first: one call where the guest holds the
//! node already. Only a new one is opened, and then identified by what was
//! opened, since the name may mean another file by then.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::Passthrough;
use super::attr;
use super::fd_budget::Place;
use super::inode::Node;
use super::inode_store::InodeKey;
use crate::fs::{Attributes, Entry, Result};
use crate::fuse::abi::Attr;
use crate::fuse::cursor::Name;
use crate::fuse::flags;
use crate::id::NodeId;

/// A file as the host shows it.
pub(super) struct Found {
    pub(super) key: InodeKey,
    pub(super) kind: FileType,
    /// With the ids of the host.
    pub(super) attr: Attr,
}

impl From<Statx> for Found {
    fn from(stat: Statx) -> Self {
        Self {
            key: InodeKey::of(&stat),
            kind: FileType::from_raw_mode(stat.stx_mode.into()),
            attr: attr::from_statx(&stat),
        }
    }
}

/// What is asked of the host about a file: what a reply needs and its identity.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);

/// Identifies an open file.
///
/// # Errors
/// Those of `statx(2)`.
pub(super) fn identify(fd: BorrowedFd<'_>) -> Result<Found> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::statx(fd, c"", flags, WANTED)?.into())
}

/// Identifies a name without opening it.
fn identify_name(parent: &Node, name: &CStr) -> Result<Found> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(parent, name, flags, WANTED)?.into())
}

impl Passthrough {
    /// LOOKUP.
    pub(super) fn look_up(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.look_up_beneath(&self.node(parent)?, name.as_c_str())
    }

    /// Finds a name in a directory and counts a look-up of its node.
    pub(super) fn look_up_beneath(&self, parent: &Node, name: &CStr) -> Result<Entry> {
        let found = identify_name(parent, name)?;
        match self.inodes.acquire(&found.key) {
            Some(node) => {
                self.tracking
                    .tell(|tracker| tracker.found(node, parent.id(), name));
                Ok(self.entry_beneath(parent, node, &found))
            }
            None => self.look_up_new(parent, name, self.budget.reserve()?),
        }
    }

    /// As [`Passthrough::look_up_beneath`], for a name that is probably new.
    pub(super) fn look_up_new(&self, parent: &Node, name: &CStr, place: Place) -> Result<Entry> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let found = identify(fd.as_fd())?;
        if found.key.device != parent.key().device {
            self.file_systems.meet(found.key.device, fd.as_fd());
        }
        let node = self.inodes.insert(found.key, found.kind, place.hold(fd));
        self.tracking
            .tell(|tracker| tracker.found(node, parent.id(), name));
        Ok(self.entry_beneath(parent, node, &found))
    }

    /// What the guest hears of a directory's entry: it is marked where it is
    /// another mount, or a subvolume with numbers of its own.
    fn entry_beneath(&self, parent: &Node, node: NodeId, found: &Found) -> Entry {
        let mut entry = self.entry(node, found);
        let file_system = |key: InodeKey| (key.device, key.mount);
        if found.kind == FileType::Directory
            && file_system(found.key) != file_system(parent.key())
            && self.has(flags::init::SUBMOUNTS)
        {
            entry.attributes.attr.flags |= flags::attr::SUBMOUNT;
        }
        entry
    }

    /// What the guest hears of a node.
    pub(super) fn entry(&self, node: NodeId, found: &Found) -> Entry {
        Entry {
            node,
            attributes: self.attributes_of(found),
            timeout: self.timeout(),
        }
    }

    /// The attributes of a file.
    pub(super) fn attributes_of(&self, found: &Found) -> Attributes {
        Attributes {
            attr: self.ids.guest_attr(found.attr),
            timeout: self.timeout(),
        }
    }

    /// Counts a look-up of a node that is open at `fd`, however it was reached.
    ///
    /// # Errors
    /// Those of `statx(2)`; `ESTALE` where the guest does not hold the node any
    /// more.
    pub(super) fn acquire_open(&self, fd: impl AsFd) -> Result<Entry> {
        let found = identify(fd.as_fd())?;
        let node = self.inodes.acquire(&found.key).ok_or(Errno::STALE)?;
        Ok(self.entry(node, &found))
    }
}
