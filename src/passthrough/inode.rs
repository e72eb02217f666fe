//! A node for the time of one call: what is known of it, and a descriptor.

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::inode_store::Inode;

/// A node that the guest holds, with an `O_PATH` descriptor that is good for as
/// long as this value lives, however the node is held meanwhile.
///
/// It belongs to one call: nothing keeps it longer, since its descriptor may be
/// one that was opened for the call.
#[derive(Debug)]
pub struct Node {
    inode: Arc<Inode>,
}

impl Node {
    /// The node of an inode that holds a descriptor.
    pub fn of(inode: Arc<Inode>) -> Self {
        Self { inode }
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
        self.inode.path()
    }
}
