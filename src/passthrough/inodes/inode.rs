//! What an inode is, how it is held, and an inode with a descriptor for the
//! time of one call.

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::FileType;

use crate::id::NodeId;
use crate::passthrough::inodes::identity::{Identity, InodeKey};
use crate::passthrough::inodes::mounts::Mount;
use crate::sys::file_handle::FileHandle;
use crate::sys::shared_fd::SharedFd;

/// By what an inode is held.
#[derive(Clone, Debug)]
pub enum Held {
    /// An `O_PATH` descriptor.
    Path(SharedFd),
    /// An `O_PATH` descriptor of what had the inode's name a moment after it was
    /// identified: whether it is the inode is not known yet.
    Unverified(SharedFd),
    /// A file handle.
    Handle(FileHandle),
    /// Its directory and name only.
    Name,
}

/// What is known of an inode that the guest holds.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number towards the guest.
    pub(in crate::passthrough) id: NodeId,
    /// What tells it from others.
    pub(in crate::passthrough) identity: Identity,
    /// The mount that it is on.
    pub(in crate::passthrough) mount: Arc<Mount>,
    /// By what it is held.
    pub(in crate::passthrough) held: Held,
}

impl Inode {
    /// The number that the guest knows it by.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where it lies on the host.
    pub fn key(&self) -> InodeKey {
        self.identity.key
    }

    /// Its file type, which never changes.
    pub fn kind(&self) -> FileType {
        self.identity.kind
    }

    /// The mount that it is on.
    pub fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }
}

/// An inode that the guest holds, with an `O_PATH` descriptor that is good for
/// as long as this value lives, however the inode is held meanwhile.
///
/// It belongs to one call: nothing keeps it longer, since its descriptor may be
/// one that was opened for the call.
#[derive(Debug)]
pub struct Node {
    inode: Inode,
    path: SharedFd,
}

impl Node {
    /// An inode and a descriptor of it.
    pub fn new(inode: Inode, path: SharedFd) -> Self {
        Self { inode, path }
    }

    /// The descriptor, for the store to keep.
    pub(in crate::passthrough) fn path(&self) -> SharedFd {
        self.path.clone()
    }
}

impl Deref for Node {
    type Target = Inode;

    fn deref(&self) -> &Inode {
        &self.inode
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.path.as_fd()
    }
}
