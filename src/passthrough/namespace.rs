//! Making, moving and removing names.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::Passthrough;
use super::attr::decode_device;
use super::inode::Node;
use crate::fs::{Entry, Result};
use crate::fuse::cursor::Name;
use crate::fuse::extensions::Extensions;
use crate::fuse::op::{Caller, MkdirArgs, MknodArgs, RenameArgs, SymlinkArgs};
use crate::id::NodeId;
use crate::sys::cpath::FdName;

/// What every request says that makes something.
struct New<'a> {
    name: Name<'a>,
    umask: u32,
    extensions: Extensions<'a>,
}

impl Passthrough {
    /// Makes something in a directory as the guest's user and looks it up.
    fn make(
        &self,
        who: &Caller,
        parent: NodeId,
        new: &New<'_>,
        call: impl FnOnce(&Node, &CStr) -> Result<()>,
    ) -> Result<Entry> {
        let parent = self.node(parent)?;
        let name = new.name.as_c_str();
        let make = |name: &CStr| {
            let _as_guest = self.act_as(who, &new.extensions)?;
            let _masked = self.masked_by(new.umask)?;
            call(&parent, name)
        };
        match self.label_of(&new.extensions)? {
            None => make(name)?,
            Some(label) => self.make_labelled(&parent, name, &label, make)?,
        }
        self.look_up_beneath(&parent, name)
    }

    /// MKDIR.
    pub(super) fn make_directory(
        &self,
        who: &Caller,
        parent: NodeId,
        args: &MkdirArgs<'_>,
    ) -> Result<Entry> {
        let mode = Mode::from_raw_mode(args.mode & 0o7777);
        let new = New {
            name: args.name,
            umask: args.umask,
            extensions: args.extensions,
        };
        self.make(who, parent, &new, |parent, name| {
            rustix::fs::mkdirat(parent, name, mode)
        })
    }

    /// MKNOD.
    pub(super) fn make_node(
        &self,
        who: &Caller,
        parent: NodeId,
        args: &MknodArgs<'_>,
    ) -> Result<Entry> {
        let kind = FileType::from_raw_mode(args.mode);
        if matches!(
            kind,
            FileType::Unknown | FileType::Directory | FileType::Symlink
        ) {
            return Err(Errno::INVAL);
        }
        let mode = Mode::from_raw_mode(args.mode & 0o7777);
        let (major, minor) = decode_device(args.rdev);
        let new = New {
            name: args.name,
            umask: args.umask,
            extensions: args.extensions,
        };
        self.make(who, parent, &new, |parent, name| {
            rustix::fs::mknodat(parent, name, kind, mode, rustix::fs::makedev(major, minor))
        })
    }

    /// SYMLINK.
    pub(super) fn make_symlink(
        &self,
        who: &Caller,
        parent: NodeId,
        args: &SymlinkArgs<'_>,
    ) -> Result<Entry> {
        let new = New {
            name: args.name,
            umask: 0,
            extensions: args.extensions,
        };
        self.make(who, parent, &new, |parent, name| {
            rustix::fs::symlinkat(args.target, parent, name)
        })
    }

    /// LINK: another name for a node that the guest holds.
    pub(super) fn make_link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let inode = self.node(node)?;
        let parent = self.node(parent)?;
        // Through /proc, since linking a descriptor itself takes a capability.
        rustix::fs::linkat(
            &self.proc_self_fd,
            FdName::of(inode.as_fd()).as_c_str(),
            &parent,
            name.as_c_str(),
            AtFlags::SYMLINK_FOLLOW,
        )?;
        // What was made without a name has one now.
        self.inodes
            .set_place(inode.id(), parent.id(), name.as_c_str());
        match self.acquire_again(&inode) {
            // Forgotten by another queue meanwhile.
            Err(Errno::STALE) => self.look_up_beneath(&parent, name.as_c_str()),
            entry => entry,
        }
    }

    /// UNLINK and RMDIR.
    pub(super) fn remove(&self, parent: NodeId, name: Name<'_>, flags: AtFlags) -> Result<()> {
        let parent_node = self.node(parent)?;
        let unlinked = self.about_to_unlink(&parent_node, name.as_c_str());
        let id = unlinked.as_ref().map(|node| node.id());
        let moving = self.inodes.begin_move([id, None]);
        rustix::fs::unlinkat(&parent_node, name.as_c_str(), flags)?;
        if let Some(unlinked) = unlinked {
            self.keep_in_reach(&unlinked);
        }
        drop(moving);
        self.tracking
            .tell(|tracker| tracker.changed(parent, name.as_c_str()));
        Ok(())
    }

    /// RENAME and RENAME2.
    pub(super) fn move_entry(&self, parent: NodeId, args: &RenameArgs<'_>) -> Result<()> {
        let (from, to) = (self.node(parent)?, self.node(args.new_parent)?);
        let (name, new_name) = (args.name.as_c_str(), args.new_name.as_c_str());
        let flags = RenameFlags::from_bits_retain(args.flags);
        let moved = self.about_to_move(&from, name);
        let (exchanged, replaced) = if flags.contains(RenameFlags::EXCHANGE) {
            (self.about_to_move(&to, new_name), None)
        } else {
            (None, self.about_to_unlink(&to, new_name))
        };
        let other = exchanged.or_else(|| replaced.as_ref().map(|node| node.id()));
        let moving = self.inodes.begin_move([moved, other]);
        rustix::fs::renameat_with(&from, name, &to, new_name, flags)?;
        if let Some(moved) = moved {
            self.inodes.set_place(moved, to.id(), new_name);
        }
        if let Some(exchanged) = exchanged {
            self.inodes.set_place(exchanged, from.id(), name);
        }
        if let Some(replaced) = replaced {
            self.keep_in_reach(&replaced);
        }
        drop(moving);
        self.tracking.tell(|tracker| {
            tracker.changed(parent, name);
            tracker.changed(args.new_parent, new_name);
        });
        Ok(())
    }

    /// READLINK.
    pub(super) fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        let inode = self.node(node)?;
        if inode.kind() != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        Ok(rustix::fs::readlinkat(&inode, c"", Vec::new())?.into_bytes())
    }
}
