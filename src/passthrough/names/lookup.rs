//! LOOKUP and FORGET, and what the guest hears of a node.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::fs::{self, Attributes, Entry, Patience, Result, Waiting};
use crate::fuse::flags;
use crate::fuse::flags::init;
use crate::fuse::name::Name;
use crate::id::NodeId;
use crate::passthrough::Passthrough;
use crate::passthrough::inodes::identity::{Found, InodeKey, identify};
use crate::passthrough::inodes::inode::Node;
use crate::passthrough::inodes::look_up::Interest;

impl fs::Lookup for Passthrough {
    fn lookup(&self, parent: NodeId, name: Name<'_>, patience: Patience) -> Waiting<Entry> {
        let (parent, name) = (self.inodes.node(parent)?, name.as_c_str());
        match patience {
            Patience::Nothing => self.look_up_at_hand(&parent, name, Interest::Asked),
            _ => Ok(self.look_up_beneath(&parent, name)?),
        }
    }

    fn forget(&self, node: NodeId, count: u64) {
        if self.inodes.store.forget(node, count) {
            // Who puts it there now finds it forgotten, and takes it out again.
            self.inodes.recent.remove(node);
            if self.has(init::NO_OPENDIR) {
                self.files.listings.remove(node);
            }
            self.files
                .locks
                .end_forgotten(node, || self.inodes.store.get(node).is_none());
            self.tracking.tell(|tracker| {
                if self.inodes.store.get(node).is_none() {
                    tracker.forgotten(node);
                }
            });
        }
    }
}

impl Passthrough {
    /// Finds a name in a directory and counts a lookup of its node.
    pub(in crate::passthrough) fn look_up_beneath(
        &self,
        parent: &Node,
        name: &CStr,
    ) -> Result<Entry> {
        let found = self.inodes.look_up(parent, name, Interest::Asked)?;
        Ok(self.found(parent, name, found))
    }

    /// The same without waiting for a server that the name leads to from a directory
    /// that is on none.
    pub(in crate::passthrough) fn look_up_at_hand(
        &self,
        parent: &Node,
        name: &CStr,
        interest: Interest,
    ) -> Waiting<Entry> {
        let found = self.inodes.look_up_at_hand(parent, name, interest)?;
        Ok(self.found(parent, name, found))
    }

    fn found(&self, parent: &Node, name: &CStr, (node, found): (NodeId, Found)) -> Entry {
        self.tracking
            .tell(|tracker| tracker.found(node, parent.id(), name));
        self.entry_beneath(parent, node, &found)
    }

    /// What the guest hears of a directory's entry: it is marked where it is
    /// another mount, or a subvolume with numbers of its own.
    fn entry_beneath(&self, parent: &Node, node: NodeId, found: &Found) -> Entry {
        let mut entry = self.entry(node, found);
        let file_system = |key: InodeKey| (key.device, key.mount);
        if found.identity.kind == FileType::Directory
            && file_system(found.identity.key) != file_system(parent.key())
            && self.has(flags::init::SUBMOUNTS)
        {
            entry.attributes.attr.flags |= flags::attr::SUBMOUNT;
        }
        entry
    }

    /// What the guest hears of a node.
    pub(in crate::passthrough) fn entry(&self, node: NodeId, found: &Found) -> Entry {
        Entry {
            node,
            attributes: self.attributes_of(found),
            timeout: self.timeout(),
        }
    }

    /// The attributes of a file.
    pub(in crate::passthrough) fn attributes_of(&self, found: &Found) -> Attributes {
        Attributes {
            attr: self.users.ids.guest_attr(found.attr),
            timeout: self.timeout(),
        }
    }

    /// Counts one lookup more of a node that the guest holds.
    ///
    /// # Errors
    /// Those of `statx(2)`; `ESTALE` where the guest does not hold the node any
    /// more.
    pub(in crate::passthrough) fn acquire_again(&self, node: &Node) -> Result<Entry> {
        let found = identify(node.as_fd())?;
        if self
            .inodes
            .store
            .confirm(node.id(), &found.identity, false, None)
        {
            Ok(self.entry(node.id(), &found))
        } else {
            Err(Errno::STALE)
        }
    }
}
