//! Making, moving and removing names.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use crate::fs::{self, Entry, Result};
use crate::fuse::extensions::Extensions;
use crate::fuse::name::Name;
use crate::fuse::op::{Caller, MkdirArgs, MknodArgs, RenameArgs, SymlinkArgs};
use crate::id::NodeId;
use crate::passthrough::Passthrough;
use crate::passthrough::inodes::identity::{identify, open_path};
use crate::passthrough::inodes::inode::Node;
use crate::passthrough::inodes::store::NewPath;
use crate::passthrough::stat::decode_device;
use crate::sys::cpath::FdName;
use crate::sys::shared_fd::SharedFd;

/// What every request says that makes something.
struct New<'a> {
    name: Name<'a>,
    umask: u32,
    extensions: Extensions<'a>,
}

impl fs::Names for Passthrough {
    fn mkdir(&self, who: &Caller, parent: NodeId, args: &MkdirArgs<'_>) -> Result<Entry> {
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

    fn mknod(&self, who: &Caller, parent: NodeId, args: &MknodArgs<'_>) -> Result<Entry> {
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

    fn symlink(&self, who: &Caller, parent: NodeId, args: &SymlinkArgs<'_>) -> Result<Entry> {
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
    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let inode = self.inodes.node(node)?;
        let parent = self.inodes.node(parent)?;
        // Through /proc, since linking a descriptor itself takes a capability.
        rustix::fs::linkat(
            self.inodes.proc_self_fd(),
            FdName::of(inode.as_fd()).as_c_str(),
            &parent,
            name.as_c_str(),
            AtFlags::SYMLINK_FOLLOW,
        )?;
        // What was made without a name has one now.
        self.inodes
            .store
            .set_place(inode.id(), parent.id(), name.as_c_str());
        match self.acquire_again(&inode) {
            // Forgotten by another queue meanwhile.
            Err(Errno::STALE) => self.look_up_beneath(&parent, name.as_c_str()),
            entry => entry,
        }
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.remove(parent, name, rustix::fs::AtFlags::empty())
    }

    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.remove(parent, name, rustix::fs::AtFlags::REMOVEDIR)
    }

    fn rename(&self, parent: NodeId, args: &RenameArgs<'_>) -> Result<()> {
        let (from, to) = (
            self.inodes.node(parent)?,
            self.inodes.node(args.new_parent)?,
        );
        let (name, new_name) = (args.name.as_c_str(), args.new_name.as_c_str());
        let flags = RenameFlags::from_bits_retain(args.flags);
        let moved = self.inodes.about_to_move(&from, name);
        let (exchanged, replaced) = if flags.contains(RenameFlags::EXCHANGE) {
            (self.inodes.about_to_move(&to, new_name), None)
        } else {
            (None, self.inodes.about_to_unlink(&to, new_name))
        };
        let other = exchanged.or_else(|| replaced.as_ref().map(|(node, _)| node.id()));
        let moving = self.inodes.store.begin_move([moved, other]);
        let lost = self.rename_on_host((&from, name), (&to, new_name), flags)?;
        if let Some(moved) = moved {
            self.inodes.store.set_place(moved, to.id(), new_name);
        }
        if let Some(exchanged) = exchanged {
            self.inodes.store.set_place(exchanged, from.id(), name);
        }
        if let Some((replaced, room)) = replaced {
            self.inodes
                .keep_in_reach((&replaced, room), (args.new_parent, new_name));
        }
        if let Some(lost) = lost {
            self.keep_nameless(lost);
        }
        drop(moving);
        self.tracking.tell(|tracker| {
            tracker.changed(parent, name);
            tracker.changed(args.new_parent, new_name);
        });
        Ok(())
    }

    fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let inode = self.inodes.node(node)?;
        if inode.kind() != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        Ok(rustix::fs::readlinkat(&inode, c"", Vec::new())?.into_bytes())
    }
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
        let parent = self.inodes.node(parent)?;
        let name = new.name.as_c_str();
        let make = |name: &CStr| {
            let _as_guest = self.users.act_as(who, &new.extensions)?;
            let _masked = self.masked_by(new.umask)?;
            call(&parent, name)
        };
        match self.label_of(&new.extensions)? {
            None => make(name)?,
            Some(label) => self.make_labelled(&parent, name, &label, make)?,
        }
        self.look_up_beneath(&parent, name)
    }

    /// UNLINK and RMDIR.
    pub(in crate::passthrough) fn remove(
        &self,
        parent: NodeId,
        name: Name<'_>,
        flags: AtFlags,
    ) -> Result<()> {
        let parent_node = self.inodes.node(parent)?;
        let unlinked = self.inodes.about_to_unlink(&parent_node, name.as_c_str());
        let id = unlinked.as_ref().map(|(node, _)| node.id());
        let moving = self.inodes.store.begin_move([id, None]);
        rustix::fs::unlinkat(&parent_node, name.as_c_str(), flags)?;
        if let Some((unlinked, room)) = unlinked {
            self.inodes
                .keep_in_reach((&unlinked, room), (parent, name.as_c_str()));
        }
        drop(moving);
        self.tracking
            .tell(|tracker| tracker.changed(parent, name.as_c_str()));
        Ok(())
    }

    /// Renames on the host. Gives what has lost its name by that, open, where it is held
    /// by a handle: that leads nowhere once the last name is gone, and a program of the
    /// guest that has just looked it up could not open it any more.
    fn rename_on_host(
        &self,
        (from, name): (&Node, &CStr),
        (to, new_name): (&Node, &CStr),
        flags: RenameFlags,
    ) -> Result<Option<OwnedFd>> {
        let rename = |flags| rustix::fs::renameat_with(from, name, to, new_name, flags);
        if !flags.is_empty() || to.mount().handles().is_none() {
            return rename(flags).map(|()| None);
        }
        // Most often there is nothing to replace.
        match rename(RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {
                let replaced = open_path(to, new_name).ok();
                rename(flags).map(|()| replaced)
            }
            Err(Errno::INVAL) => rename(flags).map(|()| None),
            renamed => renamed.map(|()| None),
        }
    }

    /// Keeps what has no name any more until the guest forgets it, if it holds it.
    fn keep_nameless(&self, file: OwnedFd) {
        let Ok(found) = identify(file.as_fd()) else {
            return;
        };
        // The one that is held by this number may be another file, from before.
        if found.attr.nlink == 0
            && found.identity.born.is_some()
            && let Some(id) = self.inodes.store.find(&found.identity.key)
            && self
                .inodes
                .store
                .get(id)
                .is_some_and(|inode| inode.identity == found.identity)
            && let Some(room) = self.inodes.path_room()
            && let Ok(fd) = SharedFd::new(file)
        {
            let path = NewPath {
                fd,
                verified: true,
                room,
            };
            self.inodes.store.keep_path(id, path);
        }
    }
}
