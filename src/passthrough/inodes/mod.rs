//! Which file it is, and how the daemon keeps hold of it: inodes, the descriptors and file
//! handles that hold them, mounts, and finding a file again whose descriptor was closed.
//!
//! [`Inodes`] owns all of that. It knows neither requests nor the guest's users.

pub(in crate::passthrough) mod directory_cache;
pub(in crate::passthrough) mod fd_budget;
pub(in crate::passthrough) mod file_systems;
pub(in crate::passthrough) mod find;
pub(in crate::passthrough) mod identity;
pub(in crate::passthrough) mod inode;
pub(in crate::passthrough) mod look_up;
pub(in crate::passthrough) mod mounts;
pub(in crate::passthrough) mod store;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::config::InodeFileHandles;
use crate::fs::Result;
use crate::id::NodeId;
use crate::sys::cpath::FdName;
use directory_cache::RecentDirectories;
use fd_budget::FdBudget;
use mounts::Mounts;
use store::InodeStore;

/// The inodes that the guest holds, and all that is held on the host for them.
#[derive(Debug)]
pub(in crate::passthrough) struct Inodes {
    pub(in crate::passthrough) store: InodeStore,
    pub(in crate::passthrough) mounts: Mounts,
    /// Directories that are held by handles and were used lately.
    pub(in crate::passthrough) recent: RecentDirectories,
    pub(in crate::passthrough) budget: Arc<FdBudget>,
    /// `/proc/self/fd`, through which a descriptor is opened again.
    pub(in crate::passthrough) proc_self_fd: OwnedFd,
    /// Whether inodes are held by file handles.
    pub(in crate::passthrough) handles: InodeFileHandles,
    pub(in crate::passthrough) open_files: Arc<dyn OpenFiles>,
}

/// What the guest has open, as far as it helps to keep hold of inodes.
pub(in crate::passthrough) trait OpenFiles:
    fmt::Debug + Send + Sync
{
    /// A copy of a descriptor that the guest has open of an inode.
    fn descriptor_of(&self, id: NodeId) -> Option<OwnedFd>;

    /// Closes a descriptor that is not needed; `false` if there is none.
    fn close_spare(&self) -> bool;
}

impl Inodes {
    /// Opens a file again, with other flags, by its descriptor.
    ///
    /// The caller has made sure that this is a regular file or a directory, or
    /// opens with `O_PATH`: opening anything else would act on a device.
    pub(in crate::passthrough) fn reopen(
        &self,
        fd: BorrowedFd<'_>,
        flags: OFlags,
    ) -> Result<OwnedFd> {
        let name = FdName::of(fd);
        let flags = (flags | OFlags::CLOEXEC) - OFlags::NOFOLLOW;
        rustix::fs::openat(self.proc_self_fd(), name.as_c_str(), flags, Mode::empty())
    }

    /// `/proc/self/fd`, in which the name of a descriptor is its number.
    pub(in crate::passthrough) fn proc_self_fd(&self) -> BorrowedFd<'_> {
        self.proc_self_fd.as_fd()
    }

    /// Lets go of everything but the root.
    pub(in crate::passthrough) fn clear(&self) {
        self.store.clear();
        self.recent.clear();
    }
}
