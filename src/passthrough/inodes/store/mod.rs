//! The inodes that the guest holds, found by their number and by where they lie
//! on the host, with exact lookup counts.
//!
//! All there is to know of an inode lies in one slot of 64 bytes, and its handle
//! and name in a heap of bytes beside it; the two maps have only the index of
//! the slot. Slots lie densely: the last one fills the place of one that is
//! removed, so the memory of a shard shrinks with what it holds.
//!
//! A shard is chosen by the key. The number that an inode gets names its shard,
//! so that either way takes one lock. A count goes down only under the shard's
//! lock for writing and up only under it for reading or writing, so a lookup
//! and a forget of one inode never miss each other, whatever queue they come
//! from. No lock is held while another shard's is taken.

mod descriptors;
mod parents;
mod shard;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::CStr;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};

use foldhash::fast::RandomState;
use rustix::io::Errno;

use crate::id::NodeId;
use crate::passthrough::inodes::fd_budget::FdBudget;
use crate::passthrough::inodes::identity::{Identity, InodeKey};
use crate::passthrough::inodes::inode::Inode;
use crate::passthrough::inodes::mounts::Mount;
use crate::sys::file_handle::FileHandle;
use crate::sys::sync::{read, write};
pub use descriptors::{NewPath, PathRoom};
use shard::Shard;
use slot::{Slot, UNBORN, flag};

/// Shards: queues that work on different inodes seldom meet.
const SHARDS: u64 = 64;

/// Numbers below are never given out: they would be the root's or nobody's.
const FIRST_ROUND: u64 = 1;

/// Inodes deeper than this below one that is open are not found again.
pub const MAX_DEPTH: usize = 4096;

/// Numbers that are brought along have to leave room for new ones.
const MAX_SAVED_ID: u64 = 1 << 62;

/// An inode that is to be held.
#[derive(Debug)]
pub struct NewInode<'a> {
    /// What tells it from others.
    pub identity: Identity,
    /// Whether a file of the same number and birth time is this one for sure.
    pub settled: bool,
    /// The mount that it is on.
    pub mount: Arc<Mount>,
    /// Its handle, where its file system makes some.
    pub handle: Option<FileHandle>,
    /// An `O_PATH` descriptor, which may have to be looked at before it is used.
    pub path: Option<NewPath<'a>>,
    /// The directory and the name in which it was found.
    pub place: Option<(NodeId, &'a CStr)>,
}

/// What the store knows of a file that was found by name.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // It is never kept.
pub enum Match {
    /// It is held; its lookup is counted.
    Counted(NodeId),
    /// An inode in its place is held; whether it is the same file is not certain.
    Unsure(Inode),
    /// It is not held.
    Stranger,
}

/// All inodes of a session.
#[derive(Debug)]
pub struct InodeStore {
    hasher: RandomState,
    shards: Vec<RwLock<Shard>>,
    root: Inode,
    /// Numbers of other daemons, which do not name our shards, and the shards that
    /// their inodes are in. A number names the map that it is in.
    elsewhere: Vec<RwLock<HashMap<u64, u64, RandomState>>>,
    has_elsewhere: AtomicBool,
    /// New numbers are above this one.
    floor: AtomicU64,
    budget: Arc<FdBudget>,
    /// Descriptors that are kept, and how many may be.
    open: AtomicUsize,
    max_open: usize,
    /// Whether an inode may be without a descriptor that it needs.
    may_be_closed: AtomicBool,
    /// The shard where the next descriptor to close is looked for.
    next_shard: AtomicU64,
    /// Held while an inode gets another place; before any lock of a shard.
    placing: Mutex<()>,
    /// Inodes whose names are being changed by the guest; no other lock is taken
    /// while this one is held.
    moving: Mutex<Vec<NodeId>>,
    one_less_moves: Condvar,
    /// How often the guest has begun to change names of inodes that are found by them.
    moves: AtomicU64,
}

impl InodeStore {
    /// A store that holds the root, which is never forgotten, and keeps at most
    /// `max_open` descriptors of the budget.
    pub fn new(root: Inode, budget: Arc<FdBudget>, max_open: usize) -> Self {
        Self {
            hasher: RandomState::default(),
            shards: (0..SHARDS).map(|_| Default::default()).collect(),
            root,
            elsewhere: (0..SHARDS).map(|_| Default::default()).collect(),
            has_elsewhere: AtomicBool::new(false),
            floor: AtomicU64::new(0),
            budget,
            open: AtomicUsize::new(0),
            max_open,
            may_be_closed: AtomicBool::new(false),
            next_shard: AtomicU64::new(0),
            placing: Mutex::new(()),
            moving: Mutex::default(),
            one_less_moves: Condvar::new(),
            moves: AtomicU64::new(0),
        }
    }

    /// Whether the guest holds an inode.
    pub fn is_held(&self, id: NodeId) -> bool {
        if id == NodeId::ROOT {
            return true;
        }
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id);
        slot.is_some_and(Slot::is_held)
    }

    /// The inode of a number; `None` if the guest does not hold it.
    pub fn get(&self, id: NodeId) -> Option<Inode> {
        if id == NodeId::ROOT {
            return Some(self.root.clone());
        }
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id)?;
        slot.is_held().then(|| shard.inode(slot))
    }

    /// The inode was seen to be this file, and no other file can ever be this.
    pub fn set_settled(&self, id: NodeId, found: &Identity) {
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id);
        if let Some(slot) = slot.filter(|slot| slot.identity() == *found) {
            slot.set(flag::SETTLED);
        }
    }

    /// What an inode is, if no other file can ever be this.
    pub fn settled(&self, id: NodeId) -> Option<Identity> {
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id)?;
        slot.has(flag::SETTLED).then(|| slot.identity())
    }

    /// The number of the inode that is held in this place on the host.
    pub fn find(&self, key: &InodeKey) -> Option<NodeId> {
        if *key == self.root.key() {
            return Some(NodeId::ROOT);
        }
        let (hash, shard) = self.key_shard(key);
        let shard = read(shard);
        let slot = shard.slot(shard.find_key(hash, key)?)?;
        Some(NodeId(slot.id))
    }

    /// Counts one lookup of a file that was found, if it is held for sure.
    pub fn acquire(&self, found: &Identity, place: Option<(NodeId, &CStr)>) -> Match {
        if found.key == self.root.key() {
            return Match::Counted(NodeId::ROOT);
        }
        let (hash, shard) = self.key_shard(&found.key);
        let shard = read(shard);
        let Some(slot) = shard
            .find_key(hash, &found.key)
            .and_then(|index| shard.slot(index))
        else {
            return Match::Stranger;
        };
        // While it is open, no other file gets its number; but on a server.
        let is_open =
            slot.path.is_some() && !slot.has(flag::UNVERIFIED) && !slot.mount.kind().is_served();
        if slot.identity() != *found || !(slot.has(flag::SETTLED) || is_open) {
            return Match::Unsure(shard.inode(slot));
        }
        slot.lookups.fetch_add(1, Ordering::Relaxed);
        let id = NodeId(slot.id);
        let moved = place.filter(|(parent, name)| !shard.has_place(slot, *parent, name));
        drop(shard);
        if let Some((parent, name)) = moved {
            self.set_place(id, parent, name);
        }
        Match::Counted(id)
    }

    /// Counts one lookup of an inode that turned out to be the file that was
    /// found; `false` if it was forgotten meanwhile.
    pub fn confirm(
        &self,
        id: NodeId,
        found: &Identity,
        settled: bool,
        place: Option<(NodeId, &CStr)>,
    ) -> bool {
        if id == NodeId::ROOT {
            return true;
        }
        {
            let shard = read(self.shard_of(id));
            let Some(slot) = shard.by_id(&self.hasher, id) else {
                return false;
            };
            if slot.has(flag::REPLACED) {
                return false;
            }
            slot.lookups.fetch_add(1, Ordering::Relaxed);
            slot.born
                .store(found.born.unwrap_or(UNBORN), Ordering::Relaxed);
            if settled {
                slot.set(flag::SETTLED);
            }
            if place.is_none_or(|(parent, name)| shard.has_place(slot, parent, name)) {
                return true;
            }
        }
        if let Some((parent, name)) = place {
            self.set_place(id, parent, name);
        }
        true
    }

    /// Another file has the place of this one on the host.
    pub fn replaced(&self, id: NodeId) {
        let mut shard = write(self.shard_of(id));
        if let Some(index) = shard.find_id(&self.hasher, id) {
            shard.detach(&self.hasher, index);
        }
    }

    /// Counts one lookup of a file that was not held; gives its number.
    ///
    /// If another thread was first, its inode is counted.
    ///
    /// # Errors
    /// `ENOMEM` beyond what anybody can hold.
    pub fn insert(&self, new: NewInode<'_>) -> Result<NodeId, Errno> {
        self.insert_as(new, None)
    }

    /// Holds an inode that a daemon before us has given a number and counted.
    ///
    /// # Errors
    /// `EEXIST` where the number or the file is held already, `EINVAL` for a
    /// number that no daemon gives out.
    pub fn insert_saved(&self, id: NodeId, lookups: u64, new: NewInode<'_>) -> Result<(), Errno> {
        if id.0 == 0 || id == NodeId::ROOT || id.0 > MAX_SAVED_ID {
            return Err(Errno::INVAL);
        }
        self.floor.fetch_max(id.0, Ordering::Relaxed);
        self.insert_as(new, Some((id, lookups))).map(drop)
    }

    fn insert_as(&self, new: NewInode<'_>, saved: Option<(NodeId, u64)>) -> Result<NodeId, Errno> {
        let key = new.identity.key;
        let (hash, lock) = self.key_shard(&key);
        // The directory stays for as long as something was found in it.
        let place = new.place.filter(|(parent, _)| self.add_child(*parent));
        let undo = || {
            if let Some((parent, _)) = place {
                self.remove_child(parent);
            }
        };
        if let Some((id, _)) = saved
            && let Err(errno) = self.claim_number(id, hash)
        {
            undo();
            return Err(errno);
        }
        // A server may give a new file the number of one that is held, and nothing
        // tells them apart that can be compared. What was just made is no old file.
        let is_new = new.mount.kind().is_served()
            && new.identity.born.is_none()
            && new.path.as_ref().is_some_and(|path| path.verified);
        let mut shard = write(lock);
        if let Some(index) = shard.find_key(hash, &key)
            && let Some(slot) = shard.slot(index)
        {
            let same = !is_new
                && match (&new.handle, shard.handle(slot)) {
                    (Some(new), Some(held)) => *new == held,
                    _ => slot.identity() == new.identity,
                };
            let id = NodeId(slot.id);
            if same && saved.is_none() {
                slot.lookups.fetch_add(1, Ordering::Relaxed);
                if new.settled {
                    slot.set(flag::SETTLED);
                }
                drop(shard);
                undo();
                if let Some(path) = new.path {
                    self.keep_path(id, path);
                }
                return Ok(id);
            }
            if saved.is_some() {
                drop(shard);
                undo();
                return Err(Errno::EXIST);
            }
            shard.detach(&self.hasher, index);
        }
        let (id, lookups) = saved.unwrap_or_else(|| {
            let floor = self.floor.load(Ordering::Relaxed) / SHARDS + FIRST_ROUND;
            shard.rounds = shard.rounds.max(floor);
            let id = NodeId(shard.rounds * SHARDS + hash_shard(hash));
            shard.rounds += 1;
            (id, 1)
        });
        if new.handle.is_none() && new.path.is_none() {
            self.may_be_closed.store(true, Ordering::Relaxed);
        }
        let inserted = shard.hold(&self.hasher, hash, id, lookups, &new, place);
        if inserted.is_ok()
            && let Some(path) = new.path
        {
            let verified = path.verified;
            shard.set_path(&self.hasher, id, path.fd, verified);
            path.room.fill();
        } else {
            drop(shard);
        }
        if let Err(errno) = inserted {
            undo();
            return Err(errno);
        }
        Ok(id)
    }

    /// Notes in which shard a number of another daemon is.
    fn claim_number(&self, id: NodeId, hash: u64) -> Result<(), Errno> {
        if self.whereabouts(id).is_some() {
            return Err(Errno::EXIST);
        }
        if id.0 % SHARDS != hash_shard(hash) {
            write(self.elsewhere(id)).insert(id.0, hash_shard(hash));
            self.has_elsewhere.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Counts `count` lookups fewer; gives whether the inode is gone. The root
    /// stays, and a count beyond what the guest holds is as good as the right one.
    pub fn forget(&self, id: NodeId, count: u64) -> bool {
        if id == NodeId::ROOT {
            return false;
        }
        let mut shard = write(self.shard_of(id));
        let index = shard.find_id(&self.hasher, id);
        let slot = index
            .and_then(|index| shard.slot(index))
            .filter(|slot| slot.is_held());
        let (Some(index), Some(slot)) = (index, slot) else {
            drop(shard);
            log::debug!("the guest forgot node {}, which it does not hold", id.0);
            return false;
        };
        let held = slot.lookups.load(Ordering::Relaxed);
        slot.lookups
            .store(held.saturating_sub(count), Ordering::Relaxed);
        let removed = if slot.is_unused() {
            shard.remove(&self.hasher, index)
        } else {
            None
        };
        // All shards shrink at about the same time.
        let all_shrink = std::mem::take(&mut shard.has_shrunk) && id.0.is_multiple_of(SHARDS);
        drop(shard);
        if all_shrink {
            crate::sys::give_back_free_memory();
        }
        if count > held {
            log::debug!(
                "the guest forgot {count} lookups of node {}, but holds {held}",
                id.0
            );
        }
        if let Some(slot) = removed {
            self.bury(slot);
        }
        held <= count
    }

    fn leave_elsewhere(&self, id: NodeId) {
        if self.has_elsewhere.load(Ordering::Relaxed) {
            let mut elsewhere = write(self.elsewhere(id));
            elsewhere.remove(&id.0);
            if elsewhere.capacity() > 256 && elsewhere.len() < elsewhere.capacity() / 4 {
                elsewhere.shrink_to_fit();
            }
        }
    }

    /// The inode opens by another handle than it was held by.
    pub fn set_handle(&self, id: NodeId, handle: &FileHandle) {
        let mut shard = write(self.shard_of(id));
        if let Some(index) = shard.find_id(&self.hasher, id)
            && let Some(slot) = shard.slot(index)
        {
            let name = shard.name(slot).to_vec();
            shard.set_bytes(index, Some(handle), &name);
        }
    }

    /// Drops every inode but the root.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = write(shard);
            let rounds = shard.rounds;
            let dropped = std::mem::take(&mut *shard);
            // Numbers are not given twice, whatever session they were of.
            shard.rounds = rounds;
            drop(shard);
            let open = dropped.slots.iter().filter(|slot| slot.path.is_some());
            for _ in open {
                self.give_room_back();
            }
        }
        for elsewhere in &self.elsewhere {
            let dropped = std::mem::take(&mut *write(elsewhere));
            drop(dropped);
        }
    }

    /// Every inode that the guest holds, the root included, with its lookups.
    pub fn all(&self) -> Vec<(NodeId, u64)> {
        let mut all = vec![(NodeId::ROOT, 1)];
        for shard in &self.shards {
            let shard = read(shard);
            let held = shard.slots.iter().filter(|slot| slot.is_held());
            all.extend(held.map(|slot| (NodeId(slot.id), slot.lookups.load(Ordering::Relaxed))));
        }
        all
    }

    /// How many inodes there are, the root and those on the way of others included.
    pub fn count(&self) -> usize {
        let slots = self.shards.iter().map(|shard| read(shard).slots.len());
        1 + slots.sum::<usize>()
    }

    /// Gives no number below `next` from now on.
    pub fn give_from(&self, next: u64) {
        let last = next.saturating_sub(1).min(MAX_SAVED_ID);
        self.floor.fetch_max(last, Ordering::Relaxed);
    }

    /// A number above all that were given out.
    pub fn next_id(&self) -> u64 {
        let rounds = self.shards.iter().map(|shard| read(shard).rounds).max();
        let own = rounds.unwrap_or(0).max(FIRST_ROUND) * SHARDS;
        own.max(self.floor.load(Ordering::Relaxed) + 1)
    }

    fn key_shard(&self, key: &InodeKey) -> (u64, &RwLock<Shard>) {
        let hash = self.hasher.hash_one(key);
        (hash, self.shard(hash_shard(hash)))
    }

    fn shard_of(&self, id: NodeId) -> &RwLock<Shard> {
        let elsewhere = self.has_elsewhere.load(Ordering::Relaxed);
        let noted = elsewhere.then(|| read(self.elsewhere(id)).get(&id.0).copied());
        self.shard(noted.flatten().unwrap_or(id.0))
    }

    #[allow(clippy::indexing_slicing)] // There are SHARDS maps, and the index is below.
    fn elsewhere(&self, id: NodeId) -> &RwLock<HashMap<u64, u64, RandomState>> {
        &self.elsewhere[(id.0 % SHARDS) as usize]
    }

    #[allow(clippy::indexing_slicing)] // There are SHARDS shards, and the index is below.
    fn shard(&self, number: u64) -> &RwLock<Shard> {
        &self.shards[(number % SHARDS) as usize]
    }
}

/// The shard that a hash of a key means: the maps use the other bits.
fn hash_shard(hash: u64) -> u64 {
    (hash >> 32) % SHARDS
}
