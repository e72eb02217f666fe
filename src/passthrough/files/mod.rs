//! Open files and directories: their handles, their data, and locks.

pub(in crate::passthrough) mod data;
pub(in crate::passthrough) mod dir;
pub(in crate::passthrough) mod dir_stream;
pub(in crate::passthrough) mod handles;
pub(in crate::passthrough) mod ioctl;
pub(in crate::passthrough) mod listings;
pub(in crate::passthrough) mod locks;
pub(in crate::passthrough) mod open;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicUsize;

use crate::id::NodeId;
use crate::passthrough::inodes::OpenFiles;
use handles::Handles;
use listings::Listings;
use locks::Locks;

/// What the guest has open, and its locks.
#[derive(Debug)]
pub(in crate::passthrough) struct Files {
    pub(in crate::passthrough) handles: Handles,
    /// Directories that are read without being opened.
    pub(in crate::passthrough) listings: Listings,
    pub(in crate::passthrough) locks: Locks,
    /// Reads and writes for which the kernel holds pages of the guest's memory.
    pub(in crate::passthrough) direct_io: AtomicUsize,
}

impl Files {
    /// Nothing is open.
    pub(in crate::passthrough) fn new() -> Self {
        Self {
            handles: Handles::new(),
            listings: Listings::default(),
            locks: Locks::default(),
            direct_io: AtomicUsize::new(0),
        }
    }

    /// Closes everything, and ends all locks.
    pub(in crate::passthrough) fn clear(&self) {
        self.handles.clear();
        self.listings.clear();
        self.locks.clear();
    }
}

impl OpenFiles for Files {
    fn descriptor_of(&self, id: NodeId) -> Option<OwnedFd> {
        self.handles.some_of(id)?.as_fd().try_clone_to_owned().ok()
    }

    fn close_spare(&self) -> bool {
        self.listings.close_one()
    }
}
