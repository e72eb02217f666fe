//! From a name to an inode.
//!
//! A name is asked for its identity first, by one `statx(2)`: for an inode that
//! the guest holds that is all, unless the file is so young that its number and
//! birth time do not prove yet that it is the one that is held. Only then,
//! and for new inodes, more is asked: the file handle, or a descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::config::InodeFileHandles;
use crate::fs::{Failure, Result, Wait, Waiting};
use crate::id::NodeId;
use crate::passthrough::inodes::Inodes;
use crate::passthrough::inodes::identity::{
    Found, Identity, InodeKey, identify, identify_name, identify_name_at_hand, is_open_file,
    open_path,
};
use crate::passthrough::inodes::inode::{Held, Inode, Node};
use crate::passthrough::inodes::mounts::Mount;
use crate::passthrough::inodes::store::{Match, NewInode, NewPath};
use crate::sys::file_handle::{FileHandle, name_to_handle};
use crate::sys::shared_fd::SharedFd;

/// What the guest is going to do with what it looks up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::passthrough) enum Interest {
    /// It has asked for this name.
    Asked,
    /// It reads a directory, and may never use most of the entries.
    Listed,
}

impl Inodes {
    /// Finds a name in a directory and counts a lookup of its inode.
    pub(in crate::passthrough) fn look_up(
        &self,
        parent: &Node,
        name: &CStr,
        interest: Interest,
    ) -> Result<(NodeId, Found)> {
        let moves = self.store.moves();
        let found = identify_name(parent, name)?;
        self.count_found(parent, name, (found, moves), interest)
    }

    /// The same without waiting for a server that the name leads to from a directory
    /// that is on none: it may be gone, and to see that there is a mount nobody has to
    /// ask it.
    pub(in crate::passthrough) fn look_up_at_hand(
        &self,
        parent: &Node,
        name: &CStr,
        interest: Interest,
    ) -> Waiting<(NodeId, Found)> {
        let mount = parent.mount();
        if mount.kind().is_served() || !(mount.is_local() || self.mounts.any_is_served()) {
            return Ok(self.look_up(parent, name, interest)?);
        }
        let moves = self.store.moves();
        let found = identify_name_at_hand(parent, name)?;
        let key = found.identity.key;
        let is_local = if (key.device, key.mount) == (mount.device(), mount.id()) {
            mount.is_local()
        } else {
            let known = self.mounts.find(key.device, key.mount);
            if known.as_ref().is_none_or(|known| known.kind().is_served()) {
                return Err(Failure::MustWait(Wait::ForServer));
            }
            known.is_some_and(|known| known.is_local())
        };
        if !is_local {
            // What the kernel remembers may be old.
            return Ok(self.look_up(parent, name, interest)?);
        }
        Ok(self.count_found(parent, name, (found, moves), interest)?)
    }

    /// Counts a lookup of the node of what was found after so many moves.
    fn count_found(
        &self,
        parent: &Node,
        name: &CStr,
        (found, moves): (Found, u64),
        interest: Interest,
    ) -> Result<(NodeId, Found)> {
        match self.count_look_up(parent, name, &found, moves)? {
            Some(node) => Ok((node, found)),
            None => self.hold(parent, name, found, interest),
        }
    }

    /// Counts a lookup of a file that was found, if the guest holds it.
    fn count_look_up(
        &self,
        parent: &Node,
        name: &CStr,
        found: &Found,
        moves: u64,
    ) -> Result<Option<NodeId>> {
        // One that the guest has moved meanwhile has noted where it is now.
        let place = (self.store.moves() == moves).then_some((parent.id(), name));
        let held = match self.store.acquire(&found.identity, place) {
            Match::Counted(node) => return Ok(Some(node)),
            Match::Stranger => return Ok(None),
            Match::Unsure(held) => held,
        };
        if !self.is_it(&held, found, parent, name)? {
            self.store.replaced(held.id());
            return Ok(None);
        }
        let settled = held.mount().is_settled(found);
        let counted = self
            .store
            .confirm(held.id(), &found.identity, settled, place);
        Ok(counted.then(|| held.id()))
    }

    /// Whether a file that was found is the one that is held in its place.
    fn is_it(&self, held: &Inode, found: &Found, parent: &Node, name: &CStr) -> Result<bool> {
        match &held.held {
            Held::Handle(handle) => {
                let now = name_to_handle(parent, name)?;
                let is_same_kind = held.kind() == found.identity.kind;
                Ok(is_same_kind && now == (*handle, found.identity.key.mount))
            }
            Held::Path(path) => Ok(is_open_file(path, &found.identity)),
            Held::Unverified(path) => {
                let is_it = is_open_file(path, &found.identity);
                self.store.set_verified(held.id(), path, is_it);
                Ok(is_it)
            }
            Held::Name => Ok(held.identity.is_same_file(&found.identity)),
        }
    }

    /// Holds a file that was found in a directory.
    fn hold(
        &self,
        parent: &Node,
        name: &CStr,
        found: Found,
        interest: Interest,
    ) -> Result<(NodeId, Found)> {
        let key = found.identity.key;
        let mount = self.mount_of(&found.identity, parent, || open_path(parent, name))?;
        let place = Some((parent.id(), name));
        let settled = mount.is_settled(&found);
        if mount.handles().is_some() {
            // Too young to be told from one that gets its number and name next.
            if !settled {
                return self.enter_opened(parent, name);
            }
            match name_to_handle(parent, name) {
                Ok((handle, id)) if id == key.mount && handle.names_inode(key.ino) => {
                    // The handle is of something that has this number. It is of
                    // the file that was found if that is still there: it would
                    // have had to go for another one to have its number.
                    let again = identify_name(parent, name)?;
                    if again.identity != found.identity {
                        return self.enter_opened(parent, name);
                    }
                    let new = NewInode {
                        identity: again.identity,
                        settled,
                        mount,
                        handle: Some(handle),
                        path: None,
                        place,
                    };
                    return Ok((self.store.insert(new)?, again));
                }
                Ok(_) => return self.enter_opened(parent, name),
                Err(Errno::OPNOTSUPP | Errno::OVERFLOW)
                    if self.handles != InodeFileHandles::Mandatory => {}
                Err(errno) => return Err(errno),
            }
        }
        // Who only lists a large directory must not cost others their places;
        // but what cannot be told from a later file has to stay open.
        let room = match interest {
            Interest::Listed if settled => self.store.path_room(),
            _ => self.path_room(),
        };
        let path = room
            .map(|room| {
                Ok(NewPath {
                    fd: SharedFd::new(open_path(parent, name)?)?,
                    verified: false,
                    room,
                })
            })
            .transpose()
            .or_else(|errno| match errno {
                // The host is short of descriptors; the name will do.
                Errno::MFILE | Errno::NFILE => Ok(None),
                errno => Err(errno),
            })?;
        let new = NewInode {
            identity: found.identity,
            settled,
            mount,
            handle: None,
            path,
            place,
        };
        Ok((self.store.insert(new)?, found))
    }

    /// Holds a file by its handle where a handle does not show whose it is: the
    /// file is opened, and all is asked of what was opened.
    fn enter_opened(&self, parent: &Node, name: &CStr) -> Result<(NodeId, Found)> {
        let path = open_path(parent, name)?;
        let found = identify(path.as_fd())?;
        let again = || self.reopen(path.as_fd(), OFlags::PATH);
        let file = (path.as_fd(), &found);
        let node = self.enter_open_file(parent, Some(name), file, again)?;
        Ok((node, found))
    }

    /// Holds a file that is open, and is found in this directory if it has a
    /// name; `path` opens its path.
    pub(in crate::passthrough) fn enter_open_file(
        &self,
        parent: &Node,
        name: Option<&CStr>,
        (file, found): (BorrowedFd<'_>, &Found),
        path: impl Fn() -> Result<OwnedFd>,
    ) -> Result<NodeId> {
        let mount = self.mount_of(&found.identity, parent, &path)?;
        let handle = self.handle_of(&mount, file)?;
        let path = match self.path_room().filter(|_| handle.is_none()) {
            Some(room) => Some(NewPath {
                fd: SharedFd::new(path()?)?,
                verified: true,
                room,
            }),
            None => None,
        };
        self.store.insert(NewInode {
            identity: found.identity,
            settled: mount.is_settled(found),
            mount,
            handle,
            path,
            place: name.map(|name| (parent.id(), name)),
        })
    }

    /// Holds a file that is open under the number and with the lookups that the
    /// guest knows.
    ///
    /// # Errors
    /// `EEXIST` when the file is held under another number, or the number is in
    /// use; `ENFILE` when no descriptor is left for it.
    pub(in crate::passthrough) fn hold_saved(
        &self,
        id: NodeId,
        lookups: u64,
        file: OwnedFd,
        place: Option<(NodeId, &CStr)>,
    ) -> Result<()> {
        let found = identify(file.as_fd())?;
        let InodeKey { device, mount, .. } = found.identity.key;
        let mount = match self.mounts.find(device, mount) {
            Some(mount) => mount,
            None => {
                let copy = rustix::io::fcntl_dupfd_cloexec(&file, 0)?;
                self.mounts.open(copy, &self.proc_self_fd)?
            }
        };
        let handle = self.handle_of(&mount, file.as_fd())?;
        let path = if handle.is_none() {
            Some(NewPath {
                fd: SharedFd::new(self.reopen(file.as_fd(), OFlags::PATH)?)?,
                verified: true,
                room: self.path_room().ok_or(Errno::NFILE)?,
            })
        } else {
            None
        };
        let new = NewInode {
            identity: found.identity,
            settled: mount.is_settled(&found),
            mount,
            handle,
            path,
            place,
        };
        self.store.insert_saved(id, lookups, new)
    }

    /// The handle of an open file, if files of its mount are held by handles.
    fn handle_of(&self, mount: &Mount, file: BorrowedFd<'_>) -> Result<Option<FileHandle>> {
        if mount.handles().is_none() {
            return Ok(None);
        }
        match name_to_handle(file, c"") {
            Ok((handle, _)) => Ok(Some(handle)),
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW)
                if self.handles != InodeFileHandles::Mandatory =>
            {
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    /// The mount of a file that was found in a directory; `open` opens its path,
    /// for a mount that is not known yet.
    fn mount_of(
        &self,
        file: &Identity,
        parent: &Inode,
        open: impl FnOnce() -> Result<OwnedFd>,
    ) -> Result<Arc<Mount>> {
        let mount = parent.mount();
        if (file.key.device, file.key.mount) == (mount.device(), mount.id()) {
            return Ok(Arc::clone(mount));
        }
        if let Some(mount) = self.mounts.find(file.key.device, file.key.mount) {
            return Ok(mount);
        }
        let mount = self.mounts.open(open()?, &self.proc_self_fd)?;
        if (file.key.device, file.key.mount) != (mount.device(), mount.id()) {
            // Something else has its name by now: the guest asks again.
            return Err(Errno::STALE);
        }
        Ok(mount)
    }
}
