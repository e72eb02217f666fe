//! What a migration asks of the tree: what the guest holds, where that is, and
//! to hold the same again in another process.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::fs::Result;
use crate::id::{HandleId, NodeId};
use crate::passthrough::Passthrough;
use crate::passthrough::files::handles::Handle;
use crate::passthrough::inodes::identity::InodeKey;
use crate::passthrough::inodes::inode::Node;
use crate::passthrough::tracker::Tracker;
use crate::sys::cpath::FdName;

/// A file as the host has it now.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// What it is.
    pub key: InodeKey,
    /// Its file type.
    pub kind: FileType,
    /// How many names it has.
    pub names: u32,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug)]
pub struct OpenHandle {
    /// Its number.
    pub id: HandleId,
    /// Its node.
    pub node: NodeId,
    /// The flags that it is open with.
    pub flags: OFlags,
}

/// Identifies an open file.
///
/// # Errors
/// Those of `statx(2)`.
pub fn identify(fd: impl AsFd) -> Result<Identity> {
    identify_at(fd, c"")
}

/// Identifies a name in a directory, not following a link.
///
/// # Errors
/// Those of `statx(2)`.
pub fn identify_at(directory: impl AsFd, name: impl rustix::path::Arg) -> Result<Identity> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::NLINK | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(directory, name, flags, wanted)?;
    Ok(Identity {
        key: InodeKey::of(&stat),
        kind: FileType::from_raw_mode(stat.stx_mode.into()),
        names: stat.stx_nlink,
    })
}

impl Passthrough {
    /// Tells `tracker` of names that are found, changed and forgotten.
    pub fn track(&self, tracker: Option<Arc<dyn Tracker>>) {
        self.tracking.set(tracker);
    }

    /// Every node that the guest holds, the root included, and its lookups.
    pub fn held_nodes(&self) -> Vec<(NodeId, u64)> {
        self.inodes.store.all()
    }

    /// A node that the guest holds, with a descriptor for the time of one call.
    ///
    /// # Errors
    /// `ESTALE` if the guest does not hold it; and those of opening it.
    pub fn held_node(&self, id: NodeId) -> Result<Node> {
        self.inodes.node(id)
    }

    /// The node that is this file, if the guest holds it.
    pub fn node_of(&self, key: &InodeKey) -> Option<NodeId> {
        let node = self.inodes.store.find(key)?;
        self.inodes.store.get(node).map(|inode| inode.id())
    }

    /// The path of an open file as `proc(5)` shows it, which may be out of date,
    /// end in words of the kernel's, or be none at all.
    ///
    /// # Errors
    /// Those of `readlinkat(2)`.
    pub fn shown_path(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
        let name = FdName::of(fd);
        let buffer = Vec::with_capacity(256);
        let path = rustix::fs::readlinkat(self.inodes.proc_self_fd(), name.as_c_str(), buffer)?;
        Ok(path.into_bytes())
    }

    /// Opens a directory for listing, or a file or directory to say which mount
    /// is meant; nothing else, since that could act on a device.
    ///
    /// # Errors
    /// `EPERM` for anything else; and those of `openat(2)`.
    pub fn open_again(&self, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
        match identify(fd)?.kind {
            FileType::RegularFile | FileType::Directory => self.inodes.reopen(fd, OFlags::RDONLY),
            _ => Err(Errno::PERM),
        }
    }

    /// Everything that the guest has open.
    ///
    /// # Errors
    /// Those of `fcntl(2)`.
    pub fn open_handles(&self) -> Result<Vec<OpenHandle>> {
        let all = self.files.handles.all().into_iter();
        all.map(|(id, handle)| {
            Ok(OpenHandle {
                id,
                node: handle.node(),
                flags: rustix::fs::fcntl_getfl(handle.as_fd())?,
            })
        })
        .collect()
    }

    /// The next numbers of a node and of a handle.
    pub fn next_numbers(&self) -> (u64, u64) {
        (self.inodes.store.next_id(), self.files.handles.next_id())
    }

    /// What INIT settled: bits of `fuse::flags::init`.
    pub fn agreed_features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    /// Holds a file for the guest under a number of its own; `place` is the
    /// directory and the name in which it was found, if that is known.
    ///
    /// # Errors
    /// `EEXIST` when it is held under another number already, `ENFILE` when the
    /// guest has as many descriptors as it may.
    pub fn restore_node(
        &self,
        id: NodeId,
        lookups: u64,
        fd: OwnedFd,
        place: Option<(NodeId, &CStr)>,
    ) -> Result<()> {
        // The root has a number of its own, and no other.
        if identify(&fd)?.key == self.inodes.inode(NodeId::ROOT)?.key() {
            return Err(Errno::EXIST);
        }
        self.inodes.hold_saved(id, lookups, fd, place)
    }

    /// Opens a node for the guest under a number of its own.
    ///
    /// # Errors
    /// Those of OPEN and OPENDIR.
    pub fn restore_handle(&self, saved: &OpenHandle) -> Result<()> {
        let node = self.inodes.inode(saved.node)?;
        let place = self.inodes.place()?;
        let handle = match node.kind() {
            FileType::Directory => {
                let fd = self
                    .inodes
                    .open(&node, OFlags::RDONLY | OFlags::DIRECTORY)?;
                Handle::directory(saved.node, place.hold(fd))
            }
            FileType::RegularFile => {
                let mut flags = saved.flags;
                let fd = match self.inodes.open(&node, flags) {
                    // It can only be appended to, and so it was open on the other side.
                    Err(Errno::PERM) if flags & OFlags::ACCMODE != OFlags::RDONLY => {
                        flags |= OFlags::APPEND;
                        self.inodes.open(&node, flags)?
                    }
                    opened => opened?,
                };
                let kind = node.mount().kind();
                Handle::file(saved.node, place.hold(fd), kind, flags)
            }
            _ => return Err(Errno::PERM),
        };
        self.files.handles.restore(saved.id, handle);
        Ok(())
    }

    /// Goes on with a session: numbers are given from these on, and INIT settled
    /// these features.
    pub fn restore_session(&self, next_node: u64, next_handle: u64, features: u64) {
        self.inodes.store.give_from(next_node);
        self.files.handles.give_from(next_handle);
        self.features.store(features, Ordering::Relaxed);
    }
}

/// Whether a name leads to a file.
pub fn leads_to(directory: impl AsFd, name: &[u8], key: &InodeKey) -> bool {
    identify_at(directory, name).is_ok_and(|found| found.key == *key)
}
