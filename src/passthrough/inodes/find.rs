//! From a node to the file: opening what is held, and finding again what is not
//! open.
//!
//! An inode is held by a handle, or by a descriptor, or only by the directory
//! and the name in which it was found last. A descriptor is closed, when others
//! need its place, only if the inode can be found again at that moment; and an
//! inode that is found by name is used only if it is the same file.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags, RawDir};
use rustix::io::Errno;

use crate::fs::Result;
use crate::id::NodeId;
use crate::passthrough::inodes::Inodes;
use crate::passthrough::inodes::fd_budget::Place;
use crate::passthrough::inodes::identity::{
    Found, Identity, SETTLED_AFTER, identify, identify_name_at_hand, identify_name_now,
    is_open_file, open_path,
};
use crate::passthrough::inodes::inode::{Held, Inode, Node};
use crate::passthrough::inodes::store::{MAX_DEPTH, NewPath, PathRoom};
use crate::sys::file_handle::{name_to_handle, open_by_handle};
use crate::sys::long_wait;
use crate::sys::shared_fd::SharedFd;

/// Maximum retries when the guest renames what is being searched for.
const MAX_LOOKS: usize = 8;

/// Entries of a directory that are looked through for a file that the host has
/// renamed there.
const MAX_SEARCHED: usize = 10_000;

/// Descriptors that are looked at to find one that can be closed.
const MAX_TRIES: usize = 64;

/// How many of them may be too young before the thread waits for one.
const MAX_YOUNG: usize = MAX_TRIES / 4;

/// Opens the path of what a handle is of.
const PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);

/// Why an inode is searched for by name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Purpose {
    /// For what the guest asks of it.
    Request,
    /// To see whether a descriptor can be closed. Another one is not closed for
    /// that, and nothing waited for: whoever waits may need it.
    Closing,
}

/// What to do where all descriptors are of files too young to be closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum IfYoung {
    Wait,
    GiveUp,
}

/// Whether a descriptor can be closed now.
enum Closing {
    /// Yes: this is what is found by its name, for sure or as far as known.
    Possible(Identity, bool),
    /// Not yet: another file could not be told from it.
    TooYoung,
    /// No: its name does not lead to it.
    NotByName,
}

/// Whether a descriptor of its path may be no more than its path on the host, and
/// lead nowhere once that name is gone: so it is with some file systems of FUSE.
fn goes_by_paths(inode: &Inode) -> bool {
    inode.id() != NodeId::ROOT && inode.mount().kind().is_served()
}

impl Inodes {
    /// An inode that the guest holds.
    ///
    /// # Errors
    /// `ESTALE` where the guest does not hold it.
    pub(in crate::passthrough) fn inode(&self, id: NodeId) -> Result<Inode> {
        self.store.get(id).ok_or(Errno::STALE)
    }

    /// An inode with a descriptor for the time of one call.
    ///
    /// # Errors
    /// `ESTALE` where the guest does not hold it, or the host has it no more.
    pub(in crate::passthrough) fn node(&self, id: NodeId) -> Result<Node> {
        let inode = self.inode(id)?;
        let path = self.path_of(&inode)?;
        Ok(Node::new(inode, path))
    }

    /// Opens an inode with these flags. The caller has made sure that it is a
    /// regular file or a directory: opening anything else would act on a device.
    ///
    /// # Errors
    /// Those of `open(2)`; `ESTALE` where the host has it no more.
    pub(in crate::passthrough) fn open(&self, inode: &Inode, flags: OFlags) -> Result<OwnedFd> {
        if let (Held::Handle(handle), Some(mount)) = (&inode.held, inode.mount().handles()) {
            match open_by_handle(mount, handle, flags) {
                Err(Errno::STALE) => {}
                result => return result,
            }
        }
        match self.reopen(self.path_of(inode)?.as_fd(), flags) {
            // What its path leads to is gone. Another file may have its number by now,
            // and nothing would tell them apart: the guest has to look it up again.
            Err(Errno::NOENT) if goes_by_paths(inode) => Err(Errno::STALE),
            result => result,
        }
    }

    /// A place for one descriptor of the guest's.
    ///
    /// # Errors
    /// `ENFILE` when there is none.
    pub(in crate::passthrough) fn place(&self) -> Result<Place> {
        self.budget.reserve(|| self.close_one(IfYoung::Wait))
    }

    /// Room for a descriptor of an inode, for which another one may be closed.
    pub(in crate::passthrough) fn path_room(&self) -> Option<PathRoom<'_>> {
        self.make_room(IfYoung::Wait)
    }

    fn make_room(&self, if_young: IfYoung) -> Option<PathRoom<'_>> {
        self.store
            .path_room()
            .or_else(|| self.close_one(if_young).then(|| self.store.path_room())?)
    }

    /// What the host shows of an inode. One that is held by a handle is not opened
    /// for that where its name leads to it for sure.
    pub(in crate::passthrough) fn identify(&self, id: NodeId) -> Result<Found> {
        if let Some(found) = self.identify_settled(id) {
            return Ok(found);
        }
        let node = self.node(id)?;
        let found = match identify(node.as_fd()) {
            Err(Errno::NOENT) if goes_by_paths(&node) => return Err(Errno::STALE),
            found => found?,
        };
        if node.mount().is_settled(&found) {
            // The next time the name is enough.
            self.store.set_settled(id, &found.identity);
        }
        Ok(found)
    }

    fn identify_settled(&self, id: NodeId) -> Option<Found> {
        let (identity, parent, name) = self.store.settled_place(id)?;
        let directory = match self.recent.get(parent) {
            Some(directory) => directory,
            None => self.path_at_hand(&self.store.get(parent)?)?,
        };
        // Only what is on a local file system is ever settled.
        let found = identify_name_at_hand(directory, name.as_c_str()).ok()?;
        (found.identity == identity).then_some(found)
    }

    /// An `O_PATH` descriptor of an inode.
    fn path_of(&self, inode: &Inode) -> Result<SharedFd> {
        match self.path_at_hand(inode) {
            Some(path) => Ok(path),
            None => self.find_again(inode.id()),
        }
    }

    /// An `O_PATH` descriptor of an inode, if it can be had without its name.
    fn path_at_hand(&self, inode: &Inode) -> Option<SharedFd> {
        match &inode.held {
            Held::Path(path) => Some(path.clone()),
            Held::Unverified(path) => {
                let found = identify(path.as_fd()).ok()?.identity;
                let is_it = found == inode.identity;
                self.store.set_verified(inode.id(), path, is_it);
                is_it.then(|| path.clone())
            }
            Held::Handle(handle) => {
                let is_directory = inode.kind() == FileType::Directory;
                if is_directory && let Some(path) = self.recent.get(inode.id()) {
                    return Some(path);
                }
                let path = open_by_handle(inode.mount().handles()?, handle, PATH).ok()?;
                let path = SharedFd::new(path).ok()?;
                if is_directory {
                    self.recent.put(inode.id(), &path);
                    // Another queue may have had it forgotten just before, and
                    // what is only on the way of others is not forgotten any more.
                    if !self.store.is_held(inode.id()) {
                        self.recent.remove(inode.id());
                    }
                }
                Some(path)
            }
            Held::Name => None,
        }
    }

    /// Finds an inode by name, or by what the guest has open of it.
    fn find_again(&self, id: NodeId) -> Result<SharedFd> {
        let mut errno = Errno::STALE;
        for _ in 0..MAX_LOOKS {
            match self.walk_to(id, Purpose::Request) {
                Ok(Some(path)) => return Ok(path),
                Ok(None) => {}
                Err(failed) => {
                    errno = failed;
                    break;
                }
            }
            // It may have got a descriptor.
            let (inode, _) = self.store.whereabouts(id).ok_or(Errno::STALE)?;
            if let Some(path) = self.path_at_hand(&inode) {
                return Ok(path);
            }
        }
        match self.open_files.descriptor_of(id) {
            Some(file) => SharedFd::new(self.reopen(file.as_fd(), OFlags::PATH)?),
            None => Err(errno),
        }
    }

    /// Goes from the nearest directory that is at hand down to an inode, by
    /// names, and keeps the descriptors of what it meets. Where that ends before,
    /// what is not in its place is lost: not what would be beneath it, which may
    /// be there again with it. `None` where the guest has moved something on the
    /// way meanwhile.
    ///
    /// It takes as many steps as there are directories between, at most
    /// `MAX_DEPTH`, and only the request itself waits for them: no lock is held.
    fn walk_to(&self, id: NodeId, purpose: Purpose) -> Result<Option<SharedFd>> {
        let mut way = Vec::new();
        let mut at = id;
        let mut path = loop {
            let (inode, place) = self.store.whereabouts(at).ok_or(Errno::STALE)?;
            if at != id
                && let Some(path) = self.path_at_hand(&inode)
            {
                break path;
            }
            let (parent, name) = place.ok_or(Errno::STALE)?;
            if way.len() == MAX_DEPTH {
                return Err(Errno::STALE);
            }
            way.push((inode, parent, name));
            at = parent;
        };
        for (inode, parent, name) in way.into_iter().rev() {
            let has_moved = || {
                let may_wait = purpose == Purpose::Request;
                may_wait && self.store.has_moved(inode.id(), parent, &name)
            };
            let next = match self.find_by_name(&path, &name, &inode) {
                Err(Errno::NOENT | Errno::STALE) if has_moved() => return Ok(None),
                Err(Errno::NOENT | Errno::STALE) => match self.search(&path, parent, &inode) {
                    Err(Errno::STALE) if has_moved() => return Ok(None),
                    Err(Errno::STALE) => {
                        log::debug!("node {} is not found any more", inode.id().0);
                        self.store.set_lost(inode.id(), parent, &name);
                        return Err(Errno::STALE);
                    }
                    found => found?,
                },
                result => result?,
            };
            path = SharedFd::new(next)?;
            self.keep(&inode, &path, purpose);
        }
        Ok(Some(path))
    }

    /// Opens the path of a name if it is this inode.
    fn find_by_name(&self, directory: &SharedFd, name: &CStr, inode: &Inode) -> Result<OwnedFd> {
        let path = open_path(directory, name)?;
        let found = identify(path.as_fd())?.identity;
        if !found.is_same_file(&inode.identity) {
            return Err(Errno::STALE);
        }
        // Where handles tell files apart for good they have the last word, but for
        // a file of whose number and birth time there can be no other.
        if let Held::Handle(held) = &inode.held
            && inode.mount().knows_birth()
            && self.store.settled(inode.id()) != Some(found)
            && name_to_handle(&path, c"")?.0 != *held
        {
            return Err(Errno::STALE);
        }
        Ok(path)
    }

    /// Keeps what was found again. What is found for the second time is in use, and
    /// another descriptor may be closed for it.
    fn keep(&self, inode: &Inode, path: &SharedFd, purpose: Purpose) {
        if let Held::Handle(held) = &inode.held {
            // A network file system may give the same file another handle.
            if let Ok((handle, _)) = name_to_handle(path, c"")
                && handle != *held
            {
                self.store.set_handle(inode.id(), &handle);
            }
            return;
        }
        let is_in_use = purpose == Purpose::Request && self.store.note_found(inode.id());
        let room = if is_in_use {
            self.make_room(IfYoung::GiveUp)
        } else {
            self.store.path_room()
        };
        if let Some(room) = room {
            let new = NewPath {
                fd: path.clone(),
                verified: true,
                room,
            };
            self.store.keep_path(inode.id(), new);
        }
    }

    /// Looks for an inode in the directory where it was, under another name.
    fn search(&self, directory: &SharedFd, parent: NodeId, inode: &Inode) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let open = self.reopen(directory.as_fd(), flags)?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(&open, buffer.spare_capacity_mut());
        let mut searched = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            searched += 1;
            if searched > MAX_SEARCHED {
                break;
            }
            let is_dots = matches!(entry.file_name().to_bytes(), b"." | b"..");
            if entry.ino() != inode.key().ino || is_dots {
                continue;
            }
            if let Ok(path) = self.find_by_name(directory, entry.file_name(), inode) {
                self.store.set_place(inode.id(), parent, entry.file_name());
                return Ok(path);
            }
        }
        Err(Errno::STALE)
    }

    /// Closes a descriptor that was not used for long; `false` if there is none
    /// that can be closed.
    fn close_one(&self, if_young: IfYoung) -> bool {
        self.open_files.close_spare() || self.close_path(if_young)
    }

    fn close_path(&self, if_young: IfYoung) -> bool {
        let mut too_young = 0;
        for _ in 0..MAX_TRIES {
            let Some(id) = self.store.next_to_close() else {
                return false;
            };
            match self.can_be_closed(id) {
                Closing::Possible(identity, settled) => {
                    self.store.close_path(id, &identity, settled);
                    return true;
                }
                Closing::TooYoung => {
                    self.store.postpone(id);
                    too_young += 1;
                    // Soon it can be closed, and till then the guest can wait.
                    if too_young == MAX_YOUNG {
                        match if_young {
                            IfYoung::Wait => {
                                long_wait::is_near();
                                std::thread::sleep(SETTLED_AFTER);
                            }
                            IfYoung::GiveUp => return false,
                        }
                    }
                }
                Closing::NotByName => self.store.pin_path(id),
            }
        }
        false
    }

    fn can_be_closed(&self, id: NodeId) -> Closing {
        let Some((inode, Some((parent, name)))) = self.store.whereabouts(id) else {
            return Closing::NotByName;
        };
        let (Held::Path(path) | Held::Unverified(path)) = &inode.held else {
            return Closing::NotByName;
        };
        let Some(directory) = self.directory(parent) else {
            return Closing::NotByName;
        };
        let Ok(found) = inode.mount().identify_name(&directory, &name) else {
            return Closing::NotByName;
        };
        let identity = found.identity;
        let is_known = identity == inode.identity && !inode.mount().kind().is_served();
        if !is_known && !is_open_file(path, &identity) {
            return Closing::NotByName;
        }
        let settled = inode.mount().is_settled(&found);
        if !settled && identity.born.is_some() && inode.mount().knows_birth() {
            return Closing::TooYoung;
        }
        Closing::Possible(identity, settled)
    }

    /// A directory, also one that is only on the way of others.
    fn directory(&self, id: NodeId) -> Option<SharedFd> {
        let (inode, _) = self.store.whereabouts(id)?;
        self.path_at_hand(&inode)
            .or_else(|| self.walk_to(id, Purpose::Closing).ok()?)
    }

    /// The inode that is about to be moved away from a name, where that name is
    /// needed to find it again.
    pub(in crate::passthrough) fn about_to_move(
        &self,
        parent: &Node,
        name: &CStr,
    ) -> Option<NodeId> {
        if parent.mount().handles().is_some() || !self.store.has_closed_paths() {
            return None;
        }
        let found = parent.mount().identify_name(parent, name).ok()?;
        self.store.find(&found.identity.key)
    }

    /// An inode with several names that is about to lose one. If it is not open
    /// and this is the name that it is known by, nothing else leads to it then:
    /// once the name is gone it is for [`Inodes::keep_in_reach`]. On a file
    /// system that goes by paths this is so even while it is open, and the number of
    /// its names may be an old one.
    ///
    /// Room for its descriptor is taken before: once the name is gone it would be lost
    /// without one.
    pub(in crate::passthrough) fn about_to_unlink(
        &self,
        parent: &Node,
        name: &CStr,
    ) -> Option<(Node, Option<PathRoom<'_>>)> {
        if parent.mount().handles().is_some() {
            return None;
        }
        let by_paths = parent.mount().kind().is_served();
        if !by_paths && !self.store.has_closed_paths() {
            return None;
        }
        let found: Found = if by_paths {
            identify_name_now(parent, name).ok()?
        } else {
            parent.mount().identify_name(parent, name).ok()?
        };
        if found.attr.nlink < 2 {
            return None;
        }
        let node = self.node(self.store.find(&found.identity.key)?).ok()?;
        let room = self.path_room().or_else(|| self.store.path_room_beyond());
        Some((node, room))
    }

    /// Keeps the descriptor of an inode that has lost a name, for which another
    /// one may be closed. A file system that goes by paths, as some of FUSE do,
    /// cannot reach it by the lost name: there another name in the same directory is
    /// searched for, at once, while no other file can have its number.
    pub(in crate::passthrough) fn keep_in_reach(
        &self,
        (node, room): (&Node, Option<PathRoom<'_>>),
        (parent, name): (NodeId, &CStr),
    ) {
        let path = node.path();
        let Ok(inode) = self.inode(node.id()) else {
            return;
        };
        let is_good = || is_open_file(&path, &inode.identity);
        match &inode.held {
            Held::Name if is_good() => {
                if let Some(room) = room {
                    let path = NewPath {
                        fd: path,
                        verified: true,
                        room,
                    };
                    self.store.keep_path(node.id(), path);
                }
            }
            Held::Path(held) if *held == path && inode.mount().kind().is_served() && !is_good() => {
                let Some((_, Some((parent, _)))) = self.store.whereabouts(node.id()) else {
                    return;
                };
                let other = self
                    .directory(parent)
                    .and_then(|directory| self.search(&directory, parent, &inode).ok());
                let Some(Ok(other)) = other.map(SharedFd::new) else {
                    return;
                };
                self.store.drop_path(node.id(), &path);
                if let Some(room) = room {
                    let path = NewPath {
                        fd: other,
                        verified: true,
                        room,
                    };
                    self.store.keep_path(node.id(), path);
                }
            }
            // Another thread may just have found that it can be closed.
            _ => self.store.pin_path_at(node.id(), parent, name),
        }
    }
}
