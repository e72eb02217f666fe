//! The descriptors that inodes are held by: how many there may be, and which one
//! is closed when another needs its place.

use std::ffi::CStr;
use std::sync::atomic::Ordering;

use crate::id::NodeId;
use crate::passthrough::inodes::identity::Identity;
use crate::passthrough::inodes::store::slot::{UNBORN, flag};
use crate::passthrough::inodes::store::{InodeStore, SHARDS};
use crate::sys::shared_fd::SharedFd;
use crate::sys::sync::{read, write};

/// Descriptors that are looked at under one lock, when one is to be closed.
const MAX_PASSED_OVER: usize = 64;

/// A descriptor for the store to keep, and the place that it takes.
#[derive(Debug)]
pub struct NewPath<'a> {
    /// The descriptor.
    pub fd: SharedFd,
    /// Whether it is known to be the inode's.
    pub verified: bool,
    /// Its place.
    pub room: PathRoom<'a>,
}

/// Room for one descriptor in the store; given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct PathRoom<'a> {
    store: &'a InodeStore,
}

impl PathRoom<'_> {
    /// The descriptor is in the store, which gives the room back with it.
    pub(super) fn fill(self) {
        std::mem::forget(self);
    }
}

impl Drop for PathRoom<'_> {
    fn drop(&mut self) {
        self.store.give_room_back();
    }
}

impl InodeStore {
    /// Room for one more descriptor, if there is some.
    pub fn path_room(&self) -> Option<PathRoom<'_>> {
        let one_more = |open| (open < self.max_open).then_some(open + 1);
        let open = self
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        // Long before any is closed: by then whoever has read that none will be
        // is through with its work.
        if open >= self.max_open / 2 && !self.has_closed_paths() {
            self.may_be_closed.store(true, Ordering::Relaxed);
        }
        if !self.budget.take() {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(PathRoom { store: self })
    }

    /// Room beyond what there is, for an inode that would be lost without a descriptor;
    /// not without end.
    pub fn path_room_beyond(&self) -> Option<PathRoom<'_>> {
        self.open.fetch_add(1, Ordering::Relaxed);
        if self.budget.take_beyond() {
            return Some(PathRoom { store: self });
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        None
    }

    pub(super) fn give_room_back(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.budget.give_back();
    }

    /// Whether inodes may be held by their names only, now or while a request
    /// lasts.
    pub fn has_closed_paths(&self) -> bool {
        self.may_be_closed.load(Ordering::Relaxed)
    }

    /// Keeps a descriptor of an inode, unless it has one.
    pub fn keep_path(&self, id: NodeId, path: NewPath<'_>) {
        if id == NodeId::ROOT {
            return;
        }
        let mut shard = write(self.shard_of(id));
        let wanted = shard
            .by_id(&self.hasher, id)
            .is_some_and(|slot| slot.path.is_none());
        if wanted {
            shard.set_path(&self.hasher, id, path.fd, path.verified);
            path.room.fill();
        } else {
            drop(shard);
        }
    }

    /// A descriptor turned out to be of this inode, or of another. It counts only
    /// while this very descriptor is kept.
    pub fn set_verified(&self, id: NodeId, path: &SharedFd, is_the_inode: bool) {
        let mut shard = write(self.shard_of(id));
        let Some(slot) = shard.by_id_mut(&self.hasher, id) else {
            return;
        };
        if !slot.has(flag::UNVERIFIED) || slot.path.as_ref() != Some(path) {
            return;
        }
        slot.unset(flag::UNVERIFIED);
        let wrong = if is_the_inode { None } else { slot.path.take() };
        drop(shard);
        if wrong.is_some() {
            self.give_room_back();
        }
    }

    /// Notes that an inode was found by its name; gives whether it was before,
    /// since it has no descriptor.
    pub fn note_found(&self, id: NodeId) -> bool {
        let shard = read(self.shard_of(id));
        shard.by_id(&self.hasher, id).is_some_and(|slot| {
            let before = slot.has(flag::USED);
            slot.set(flag::USED);
            before
        })
    }

    /// An inode with a descriptor that was not used for long. The caller closes
    /// it, or says why not.
    pub fn next_to_close(&self) -> Option<NodeId> {
        // Those that were used since are passed over the first time.
        (0..4 * SHARDS).find_map(|_| {
            let at = self.next_shard.fetch_add(1, Ordering::Relaxed);
            let mut shard = write(self.shard(at));
            for _ in 0..shard.open.len().min(MAX_PASSED_OVER) {
                let id = NodeId(shard.open.pop_front()?);
                let Some(slot) = shard.by_id(&self.hasher, id) else {
                    continue;
                };
                if slot.path.is_none() || slot.has(flag::PINNED) {
                    continue;
                }
                if !slot.has(flag::USED) {
                    return Some(id);
                }
                slot.unset(flag::USED);
                shard.open.push_back(id.0);
            }
            None
        })
    }

    /// Closes the descriptor of an inode that can be found again: it is the one
    /// of this identity for sure, if `settled`.
    pub fn close_path(&self, id: NodeId, found: &Identity, settled: bool) {
        let mut shard = write(self.shard_of(id));
        self.may_be_closed.store(true, Ordering::Relaxed);
        // It may have lost its name since it was looked at.
        let slot = shard.by_id_mut(&self.hasher, id);
        let path = slot
            .filter(|slot| !slot.has(flag::PINNED))
            .and_then(|slot| {
                slot.born
                    .store(found.born.unwrap_or(UNBORN), Ordering::Relaxed);
                if settled {
                    slot.set(flag::SETTLED);
                }
                slot.unset(flag::UNVERIFIED);
                slot.path.take()
            });
        drop(shard);
        if path.is_some() {
            self.give_room_back();
        }
    }

    /// A descriptor leads nowhere any more, if this one is kept.
    pub fn drop_path(&self, id: NodeId, path: &SharedFd) {
        let mut shard = write(self.shard_of(id));
        let dropped = shard
            .by_id_mut(&self.hasher, id)
            .filter(|slot| slot.path.as_ref() == Some(path))
            .and_then(|slot| slot.path.take());
        drop(shard);
        if dropped.is_some() {
            self.may_be_closed.store(true, Ordering::Relaxed);
            drop(dropped);
            self.give_room_back();
        }
    }

    /// The descriptor stays open: by name the inode would not be found again.
    pub fn pin_path(&self, id: NodeId) {
        if let Some(slot) = read(self.shard_of(id)).by_id(&self.hasher, id) {
            slot.set(flag::PINNED);
        }
    }

    /// The name in this directory is gone: where it is the one by which an inode was to
    /// be found, its descriptor stays open until it is found by another.
    pub fn pin_path_at(&self, id: NodeId, parent: NodeId, name: &CStr) {
        let shard = read(self.shard_of(id));
        if let Some(slot) = shard.by_id(&self.hasher, id)
            && shard.has_place(slot, parent, name)
        {
            slot.set(flag::PINNED);
        }
    }

    /// The descriptor stays open for now.
    pub fn postpone(&self, id: NodeId) {
        write(self.shard_of(id)).open.push_back(id.0);
    }
}
