//! The inodes that the guest holds, found by their number and by where they lie
//! on the host, with exact look-up counts.
//!
//! All there is to know of an inode lies in one slot of 64 bytes, and its handle
//! and name in a heap of bytes beside it; the two maps have only the index of
//! the slot. Slots lie densely: the last one fills the place of one that is
//! removed, so the memory of a shard shrinks with what it holds.
//!
//! A shard is chosen by the key. The number that an inode gets names its shard,
//! so that either way takes one lock. A count goes down only under the shard's
//! lock for writing and up only under it for reading or writing, so a look-up
//! and a forget of one inode never miss each other, whatever queue they come
//! from. No lock is held while another shard's is taken.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::hash::BuildHasher;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::sync::{Arc, Mutex, RwLock};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::fd_budget::FdBudget;
use super::file_systems::Kind;
use super::inode::{Held, Identity, Inode, InodeKey};
use super::mount_fds::Mount;
use crate::id::NodeId;
use crate::sys::file_handle::FileHandle;
use crate::sys::locks::{lock, read, write};
use crate::sys::shared_fd::SharedFd;

/// Shards: queues that work on different inodes seldom meet.
const SHARDS: u64 = 64;

/// Numbers below are never given out: they would be the root's or nobody's.
const FIRST_ROUND: u64 = 1;

/// Numbers that are brought along have to leave room for new ones.
const MAX_SAVED_ID: u64 = 1 << 62;

/// Descriptors that are looked at under one lock, when one is to be closed.
const MAX_PASSED_OVER: usize = 64;

/// What stands for "not known" in [`Slot::born`].
const UNBORN: i64 = i64::MIN;

/// Bits of [`Slot::flags`].
mod flag {
    /// Used since its descriptor was last looked at for closing.
    pub const USED: u8 = 1;
    /// A file of the same number and time of birth is this one for sure.
    pub const SETTLED: u8 = 2;
    /// Another file has this one's place on the host: not in `by_key`.
    pub const REPLACED: u8 = 4;
    /// The descriptor cannot be found again by name, and so stays open.
    pub const PINNED: u8 = 8;
    /// The descriptor may be of another file.
    pub const UNVERIFIED: u8 = 16;
    /// Not to be found any more; only a look-up can change that.
    pub const LOST: u8 = 32;
}

/// All there is to know of one inode.
#[derive(Debug)]
struct Slot {
    id: u64,
    ino: u64,
    lookups: AtomicU64,
    /// Nanoseconds, or `UNBORN`. It can change: a file of an overlay gets the
    /// time of its copy.
    born: AtomicI64,
    mount: Arc<Mount>,
    /// The directory in which it was last looked up; 0 where that is not known.
    parent: u64,
    /// Where its handle and name begin in the shard's heap of bytes.
    bytes_at: u32,
    /// Slots that have this one as their parent.
    children: AtomicU32,
    path: Option<SharedFd>,
    /// The bytes of the handle, with one in front for its kind; 0 for none.
    handle_len: u8,
    name_len: u8,
    /// The file type's bits of the mode, shifted down.
    kind: u8,
    flags: AtomicU8,
}

impl Slot {
    fn has(&self, flags: u8) -> bool {
        self.flags.load(Ordering::Relaxed) & flags != 0
    }

    fn set(&self, flags: u8) {
        // Most are set already, and reading costs other threads nothing.
        if self.flags.load(Ordering::Relaxed) & flags != flags {
            self.flags.fetch_or(flags, Ordering::Relaxed);
        }
    }

    fn unset(&self, flags: u8) {
        self.flags.fetch_and(!flags, Ordering::Relaxed);
    }

    fn key(&self) -> InodeKey {
        InodeKey {
            device: self.mount.device(),
            ino: self.ino,
            mount: self.mount.id(),
        }
    }

    fn identity(&self) -> Identity {
        let born = self.born.load(Ordering::Relaxed);
        Identity {
            key: self.key(),
            kind: FileType::from_raw_mode(u32::from(self.kind) << 12),
            born: (born != UNBORN).then_some(born),
        }
    }

    /// Whether the guest holds it, and it is not only on another's way.
    fn is_held(&self) -> bool {
        self.lookups.load(Ordering::Relaxed) != 0
    }

    fn is_unused(&self) -> bool {
        !self.is_held() && self.children.load(Ordering::Relaxed) == 0
    }
}

/// Handles and names, one behind the other; those that are given up are left
/// behind until they are a quarter of all.
#[derive(Debug, Default)]
struct Bytes {
    all: Vec<u8>,
    dead: usize,
}

impl Bytes {
    /// Adds what belongs together; gives where it begins.
    fn add(&mut self, parts: [&[u8]; 3]) -> Option<u32> {
        let at = u32::try_from(self.all.len()).ok()?;
        let len = parts.iter().map(|part| part.len()).sum();
        if self.all.capacity() - self.all.len() < len {
            self.all.reserve_exact(len + self.all.len() / 8);
        }
        for part in parts {
            self.all.extend_from_slice(part);
        }
        Some(at)
    }

    fn get(&self, at: usize, len: u8) -> &[u8] {
        self.all.get(at..at + usize::from(len)).unwrap_or_default()
    }
}

/// Inodes whose keys have something in common.
#[derive(Debug, Default)]
struct Shard {
    slots: Vec<Slot>,
    by_id: HashTable<u32>,
    by_key: HashTable<u32>,
    bytes: Bytes,
    /// Inodes with a descriptor that may be closed, those first that were not
    /// used for longest. Some have none any more.
    open: VecDeque<u64>,
    /// How many numbers it has given out.
    rounds: u64,
    /// Whether it has become a good deal smaller.
    has_shrunk: bool,
}

impl Shard {
    fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index as usize)
    }

    fn find_id(&self, hasher: &RandomState, id: NodeId) -> Option<u32> {
        let is_it = |index: &u32| self.slot(*index).is_some_and(|slot| slot.id == id.0);
        self.by_id.find(hasher.hash_one(id.0), is_it).copied()
    }

    fn by_id(&self, hasher: &RandomState, id: NodeId) -> Option<&Slot> {
        self.slot(self.find_id(hasher, id)?)
    }

    fn by_id_mut(&mut self, hasher: &RandomState, id: NodeId) -> Option<&mut Slot> {
        let index = self.find_id(hasher, id)?;
        self.slots.get_mut(index as usize)
    }

    fn find_key(&self, hash: u64, key: &InodeKey) -> Option<u32> {
        let is_it = |index: &u32| self.slot(*index).is_some_and(|slot| slot.key() == *key);
        self.by_key.find(hash, is_it).copied()
    }

    fn handle(&self, slot: &Slot) -> Option<FileHandle> {
        let (kind, bytes) = self
            .bytes
            .get(slot.bytes_at as usize, slot.handle_len)
            .split_first()?;
        FileHandle::new(i32::from(*kind), bytes)
    }

    fn name(&self, slot: &Slot) -> &[u8] {
        let at = slot.bytes_at as usize + usize::from(slot.handle_len);
        self.bytes.get(at, slot.name_len)
    }

    /// Whether it is known to be found there.
    fn has_place(&self, slot: &Slot, parent: NodeId, name: &CStr) -> bool {
        slot.parent == parent.0 && self.name(slot) == name.to_bytes() && !slot.has(flag::LOST)
    }

    fn held(&self, slot: &Slot) -> Held {
        match &slot.path {
            Some(path) => {
                slot.set(flag::USED);
                if slot.has(flag::UNVERIFIED) {
                    Held::Unverified(path.clone())
                } else {
                    Held::Path(path.clone())
                }
            }
            None => self.handle(slot).map_or(Held::Name, Held::Handle),
        }
    }

    fn inode(&self, slot: &Slot) -> Inode {
        Inode {
            id: NodeId(slot.id),
            identity: slot.identity(),
            mount: Arc::clone(&slot.mount),
            held: self.held(slot),
        }
    }

    fn push(&mut self, hasher: &RandomState, key_hash: u64, slot: Slot) -> Result<(), Errno> {
        let index = u32::try_from(self.slots.len()).map_err(|_| Errno::NOMEM)?;
        let id_hash = hasher.hash_one(slot.id);
        if self.slots.len() == self.slots.capacity() {
            // By an eighth: doubling would cost as much as all else together.
            self.slots.reserve_exact(64 + self.slots.len() / 8);
        }
        self.slots.push(slot);
        let slots = &self.slots;
        let rehash = |index: &u32| {
            slots
                .get(*index as usize)
                .map_or(0, |slot| hasher.hash_one(slot.id))
        };
        self.by_id.insert_unique(id_hash, index, rehash);
        let rehash = |index: &u32| {
            slots
                .get(*index as usize)
                .map_or(0, |slot| hasher.hash_one(slot.key()))
        };
        self.by_key.insert_unique(key_hash, index, rehash);
        Ok(())
    }

    /// Lets another file have this one's place.
    fn detach(&mut self, hasher: &RandomState, index: u32) {
        if let Some(slot) = self.slot(index)
            && !slot.has(flag::REPLACED)
        {
            slot.set(flag::REPLACED);
            let hash = hasher.hash_one(slot.key());
            if let Ok(entry) = self.by_key.find_entry(hash, |other| *other == index) {
                entry.remove();
            }
        }
    }

    fn remove(&mut self, hasher: &RandomState, index: u32) -> Option<Slot> {
        self.detach(hasher, index);
        let id_hash = hasher.hash_one(self.slot(index)?.id);
        if let Ok(entry) = self.by_id.find_entry(id_hash, |other| *other == index) {
            entry.remove();
        }
        let last = u32::try_from(self.slots.len() - 1).ok()?;
        if let Some(moved) = self.slots.get(last as usize)
            && last != index
        {
            let hash = hasher.hash_one(moved.id);
            if let Some(place) = self.by_id.find_mut(hash, |other| *other == last) {
                *place = index;
            }
            if !moved.has(flag::REPLACED) {
                let hash = hasher.hash_one(moved.key());
                if let Some(place) = self.by_key.find_mut(hash, |other| *other == last) {
                    *place = index;
                }
            }
        }
        let slot = self.slots.swap_remove(index as usize);
        self.bytes.dead += usize::from(slot.handle_len) + usize::from(slot.name_len);
        self.give_back(hasher);
        Some(slot)
    }

    /// Gives memory back that was needed for many more inodes.
    fn give_back(&mut self, hasher: &RandomState) {
        self.compact_bytes();
        if self.slots.capacity() > 256 && self.slots.len() < self.slots.capacity() / 4 {
            let room = self.slots.len() + self.slots.len() / 2;
            self.slots.shrink_to(room);
            self.has_shrunk = true;
            let slots = &self.slots;
            self.by_id.shrink_to(room, |index| {
                slots
                    .get(*index as usize)
                    .map_or(0, |slot| hasher.hash_one(slot.id))
            });
            self.by_key.shrink_to(room, |index| {
                slots
                    .get(*index as usize)
                    .map_or(0, |slot| hasher.hash_one(slot.key()))
            });
        }
        self.tidy_open(hasher);
    }

    fn compact_bytes(&mut self) {
        if self.bytes.dead < 4096 || self.bytes.dead < self.bytes.all.len() / 4 {
            return;
        }
        let live = self.bytes.all.len().saturating_sub(self.bytes.dead);
        let old = std::mem::take(&mut self.bytes);
        self.bytes.all.reserve_exact(live + live / 8);
        for slot in &mut self.slots {
            let at = slot.bytes_at as usize;
            let handle = old.get(at, slot.handle_len);
            let name = old.get(at + usize::from(slot.handle_len), slot.name_len);
            // Less than before fits where all of it did.
            slot.bytes_at = self.bytes.add([handle, name, b""]).unwrap_or_default();
        }
    }

    /// Drops the numbers of inodes that have no descriptor any more, where they
    /// are most.
    fn tidy_open(&mut self, hasher: &RandomState) {
        if self.open.len() > 64 + 2 * self.slots.len() {
            let mut open = std::mem::take(&mut self.open);
            open.retain(|id| {
                self.by_id(hasher, NodeId(*id))
                    .is_some_and(|slot| slot.path.is_some() && !slot.has(flag::PINNED))
            });
            open.shrink_to_fit();
            self.open = open;
        }
    }

    /// Changes the handle and the name of a slot.
    fn set_bytes(&mut self, index: u32, handle: Option<&FileHandle>, name: &[u8]) -> Option<()> {
        let name_len = u8::try_from(name.len()).ok()?;
        let handle = HandleBytes::of(handle);
        let at = self.bytes.add([handle.kind, handle.rest, name])?;
        let slot = self.slots.get_mut(index as usize)?;
        self.bytes.dead += usize::from(slot.handle_len) + usize::from(slot.name_len);
        slot.bytes_at = at;
        slot.handle_len = handle.len();
        slot.name_len = name_len;
        self.compact_bytes();
        Some(())
    }
}

/// An inode that is to be held.
#[derive(Debug)]
pub struct NewInode<'a> {
    /// What tells it from others.
    pub identity: Identity,
    /// Whether a file of the same number and time of birth is this one for sure.
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
    fn fill(self) {
        std::mem::forget(self);
    }
}

impl Drop for PathRoom<'_> {
    fn drop(&mut self) {
        self.store.give_room_back();
    }
}

/// What the store knows of a file that was found by name.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // It is never kept.
pub enum Match {
    /// It is held; its look-up is counted.
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
    /// Numbers of other daemons, which do not name our shards.
    elsewhere: RwLock<HashMap<u64, u64, RandomState>>,
    has_elsewhere: AtomicBool,
    /// New numbers are above this one.
    floor: AtomicU64,
    budget: Arc<FdBudget>,
    /// Descriptors that are kept, and how many may be.
    open: AtomicUsize,
    max_open: usize,
    /// Whether an inode has ever been without a descriptor that it needs.
    has_closed: AtomicBool,
    /// The shard where the next descriptor to close is looked for.
    next_shard: AtomicU64,
    /// Held while an inode gets another place; before any lock of a shard.
    placing: Mutex<()>,
}

impl InodeStore {
    /// A store that holds the root, which is never forgotten, and keeps at most
    /// `max_open` descriptors of the budget.
    pub fn new(root: Inode, budget: Arc<FdBudget>, max_open: usize) -> Self {
        Self {
            hasher: RandomState::default(),
            shards: (0..SHARDS).map(|_| Default::default()).collect(),
            root,
            elsewhere: Default::default(),
            has_elsewhere: AtomicBool::new(false),
            floor: AtomicU64::new(0),
            budget,
            open: AtomicUsize::new(0),
            max_open,
            has_closed: AtomicBool::new(false),
            next_shard: AtomicU64::new(0),
            placing: Mutex::new(()),
        }
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

    /// An inode, also one that is only on the way of others, and where it was
    /// last found: in which directory and by which name.
    pub fn whereabouts(&self, id: NodeId) -> Option<(Inode, Option<(NodeId, CString)>)> {
        if id == NodeId::ROOT {
            return Some((self.root.clone(), None));
        }
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id)?;
        let place = (slot.parent != 0 && !slot.has(flag::LOST))
            .then(|| CString::new(shard.name(slot)).ok())
            .flatten()
            .map(|name| (NodeId(slot.parent), name));
        Some((shard.inode(slot), place))
    }

    /// What an inode is, if no other file can ever be this.
    pub fn settled(&self, id: NodeId) -> Option<Identity> {
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id)?;
        slot.has(flag::SETTLED).then(|| slot.identity())
    }

    /// What an inode is and where it was last found, if it is held by a handle,
    /// not a directory, and the only file that can ever be this.
    pub fn settled_place(&self, id: NodeId) -> Option<(Identity, NodeId, CString)> {
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id)?;
        let is_settled = slot.has(flag::SETTLED) && !slot.has(flag::LOST) && slot.parent != 0;
        let identity = slot.identity();
        if !is_settled || slot.path.is_some() || identity.kind == FileType::Directory {
            return None;
        }
        let name = CString::new(shard.name(slot)).ok()?;
        Some((identity, NodeId(slot.parent), name))
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

    /// Counts one look-up of a file that was found, if it is held for sure.
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
            slot.path.is_some() && !slot.has(flag::UNVERIFIED) && slot.mount.kind() != Kind::Served;
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

    /// Counts one look-up of an inode that turned out to be the file that was
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

    /// Counts one look-up of a file that was not held; gives its number.
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
        let mut shard = write(lock);
        if let Some(index) = shard.find_key(hash, &key)
            && let Some(slot) = shard.slot(index)
        {
            let same = match (&new.handle, shard.handle(slot)) {
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
            self.has_closed.store(true, Ordering::Relaxed);
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
            write(&self.elsewhere).insert(id.0, hash_shard(hash));
            self.has_elsewhere.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Counts `count` look-ups fewer; gives whether the inode is gone. The root
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
                "the guest forgot {count} look-ups of node {}, but holds {held}",
                id.0
            );
        }
        if let Some(slot) = removed {
            self.bury(slot);
        }
        held <= count
    }

    /// Lets go of what a slot held: its descriptor, its mount, and the
    /// directories that were kept for its sake. No lock is held meanwhile.
    fn bury(&self, mut slot: Slot) {
        loop {
            let parent = NodeId(slot.parent);
            self.leave_elsewhere(NodeId(slot.id));
            if slot.path.take().is_some() {
                self.give_room_back();
            }
            drop(slot);
            match self.take_unused_parent(parent) {
                Some(unused) => slot = unused,
                None => return,
            }
        }
    }

    /// Counts one child fewer; gives the slot if nothing needs it any more.
    fn take_unused_parent(&self, parent: NodeId) -> Option<Slot> {
        if parent.0 == 0 || parent == NodeId::ROOT {
            return None;
        }
        {
            let shard = read(self.shard_of(parent));
            let slot = shard.by_id(&self.hasher, parent)?;
            let left = slot.children.fetch_sub(1, Ordering::Relaxed) - 1;
            if left > 0 || slot.is_held() {
                return None;
            }
        }
        let mut shard = write(self.shard_of(parent));
        let index = shard.find_id(&self.hasher, parent)?;
        if !shard.slot(index)?.is_unused() {
            return None;
        }
        shard.remove(&self.hasher, index)
    }

    fn add_child(&self, parent: NodeId) -> bool {
        if parent == NodeId::ROOT {
            return true;
        }
        let shard = read(self.shard_of(parent));
        let slot = shard.by_id(&self.hasher, parent);
        slot.is_some_and(|slot| {
            slot.children.fetch_add(1, Ordering::Relaxed);
            true
        })
    }

    fn remove_child(&self, parent: NodeId) {
        if let Some(slot) = self.take_unused_parent(parent) {
            self.bury(slot);
        }
    }

    fn leave_elsewhere(&self, id: NodeId) {
        if self.has_elsewhere.load(Ordering::Relaxed) {
            write(&self.elsewhere).remove(&id.0);
        }
    }

    /// The inode is now found by this name in this directory.
    pub fn set_place(&self, id: NodeId, parent: NodeId, name: &CStr) {
        if id == NodeId::ROOT || id == parent || !self.add_child(parent) {
            return;
        }
        // One at a time, so that no two directories are put into each other.
        let placing = lock(&self.placing);
        self.break_ring(id, parent);
        let left = self.replace_place(id, parent, Some(name));
        drop(placing);
        self.remove_child(left.unwrap_or(parent));
    }

    /// Changes the place of an inode, for which its directory has been counted;
    /// gives the directory that it was in, which is not needed for it any more.
    fn replace_place(&self, id: NodeId, parent: NodeId, name: Option<&CStr>) -> Option<NodeId> {
        let mut shard = write(self.shard_of(id));
        let index = shard.find_id(&self.hasher, id)?;
        let slot = shard.slots.get_mut(index as usize)?;
        let old = NodeId(std::mem::replace(&mut slot.parent, parent.0));
        let may_close = slot.path.is_some() && slot.has(flag::PINNED) && name.is_some();
        slot.unset(flag::PINNED | flag::LOST);
        let handle = shard.slot(index).and_then(|slot| shard.handle(slot));
        let name = name.map_or(b"".as_slice(), CStr::to_bytes);
        shard.set_bytes(index, handle.as_ref(), name);
        if may_close {
            shard.open.push_back(id.0);
        }
        Some(old)
    }

    /// Sees to it that a directory can be put into another one. Where that one
    /// seems to lie within it, the host has moved something since it was looked
    /// up: what seems to lie in the directory itself is nowhere then, until it is
    /// looked up again. Otherwise the two would keep each other for ever.
    fn break_ring(&self, id: NodeId, parent: NodeId) {
        let mut at = parent;
        while at.0 != 0 && at != NodeId::ROOT {
            let above = {
                let shard = read(self.shard_of(at));
                let slot = shard.by_id(&self.hasher, at);
                NodeId(slot.map_or(0, |slot| slot.parent))
            };
            if above == id {
                if let Some(left) = self.replace_place(at, NodeId(0), None) {
                    self.remove_child(left);
                }
                return;
            }
            at = above;
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

    /// The inode was looked for in vain in this place, unless it has got another
    /// one meanwhile.
    pub fn set_lost(&self, id: NodeId, parent: NodeId, name: &CStr) {
        let shard = read(self.shard_of(id));
        if let Some(slot) = shard.by_id(&self.hasher, id)
            && shard.has_place(slot, parent, name)
        {
            slot.set(flag::LOST);
        }
    }

    /// Room for one more descriptor, if there is some.
    pub fn path_room(&self) -> Option<PathRoom<'_>> {
        let one_more = |open| (open < self.max_open).then_some(open + 1);
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        if !self.budget.take() {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(PathRoom { store: self })
    }

    fn give_room_back(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.budget.give_back();
    }

    /// Whether inodes may be held by their names only.
    pub fn has_closed_paths(&self) -> bool {
        self.has_closed.load(Ordering::Relaxed)
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
        self.has_closed.store(true, Ordering::Relaxed);
        let path = shard.by_id_mut(&self.hasher, id).and_then(|slot| {
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

    /// The descriptor stays open: by name the inode would not be found again.
    pub fn pin_path(&self, id: NodeId) {
        if let Some(slot) = read(self.shard_of(id)).by_id(&self.hasher, id) {
            slot.set(flag::PINNED);
        }
    }

    /// The descriptor stays open for now.
    pub fn postpone(&self, id: NodeId) {
        write(self.shard_of(id)).open.push_back(id.0);
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
        write(&self.elsewhere).clear();
    }

    /// Every inode that the guest holds, the root included, with its look-ups.
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
        let noted = elsewhere.then(|| read(&self.elsewhere).get(&id.0).copied());
        self.shard(noted.flatten().unwrap_or(id.0))
    }

    #[allow(clippy::indexing_slicing)] // There are SHARDS shards, and the index is below.
    fn shard(&self, number: u64) -> &RwLock<Shard> {
        &self.shards[(number % SHARDS) as usize]
    }
}

impl Shard {
    fn hold(
        &mut self,
        hasher: &RandomState,
        hash: u64,
        id: NodeId,
        lookups: u64,
        new: &NewInode<'_>,
        place: Option<(NodeId, &CStr)>,
    ) -> Result<(), Errno> {
        let handle = HandleBytes::of(new.handle.as_ref());
        let name = place.map_or(b"".as_slice(), |(_, name)| name.to_bytes());
        let name_len = u8::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        let slot = Slot {
            id: id.0,
            ino: new.identity.key.ino,
            lookups: AtomicU64::new(lookups),
            born: AtomicI64::new(new.identity.born.unwrap_or(UNBORN)),
            mount: Arc::clone(&new.mount),
            parent: place.map_or(0, |(parent, _)| parent.0),
            bytes_at: self
                .bytes
                .add([handle.kind, handle.rest, name])
                .ok_or(Errno::NOMEM)?,
            children: AtomicU32::new(0),
            path: None,
            handle_len: handle.len(),
            name_len,
            kind: (new.identity.kind.as_raw_mode() >> 12) as u8,
            flags: AtomicU8::new(if new.settled { flag::SETTLED } else { 0 }),
        };
        self.push(hasher, hash, slot)
    }

    fn set_path(&mut self, hasher: &RandomState, id: NodeId, fd: SharedFd, verified: bool) {
        let Some(slot) = self.by_id_mut(hasher, id) else {
            return;
        };
        slot.path = Some(fd);
        slot.unset(flag::PINNED | flag::LOST);
        if verified {
            slot.unset(flag::UNVERIFIED);
        } else {
            slot.set(flag::UNVERIFIED);
        }
        // Without a name it could not be opened again.
        if slot.parent == 0 {
            slot.set(flag::PINNED);
        } else {
            self.open.push_back(id.0);
            self.tidy_open(hasher);
        }
    }
}

/// The shard that a hash of a key means: the maps use the other bits.
fn hash_shard(hash: u64) -> u64 {
    (hash >> 32) % SHARDS
}

/// A handle as it lies in the heap of bytes.
struct HandleBytes<'a> {
    kind: &'a [u8],
    rest: &'a [u8],
}

impl<'a> HandleBytes<'a> {
    fn of(handle: Option<&'a FileHandle>) -> Self {
        Self {
            kind: handle.map_or(&[], FileHandle::kind_byte),
            rest: handle.map_or(&[], FileHandle::bytes),
        }
    }

    fn len(&self) -> u8 {
        (self.kind.len() + self.rest.len()) as u8
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::*;

    const DIR: FileType = FileType::Directory;
    const FILE: FileType = FileType::RegularFile;

    fn mount() -> Arc<Mount> {
        Arc::new(Mount::new(1, 1, 0, None))
    }

    fn identity(ino: u64, born: i64) -> Identity {
        Identity {
            key: InodeKey {
                device: 1,
                ino,
                mount: 1,
            },
            kind: if ino < 100 { DIR } else { FILE },
            born: Some(born),
        }
    }

    fn path() -> SharedFd {
        SharedFd::new(std::fs::File::open("/dev/null").unwrap().into()).unwrap()
    }

    fn store_of(paths: usize) -> InodeStore {
        let root = Inode {
            id: NodeId::ROOT,
            identity: identity(1, 1),
            mount: mount(),
            held: Held::Path(path()),
        };
        InodeStore::new(root, FdBudget::new(paths), paths)
    }

    fn store() -> InodeStore {
        store_of(0)
    }

    fn new(mount: &Arc<Mount>, ino: u64) -> NewInode<'static> {
        NewInode {
            identity: identity(ino, 1),
            settled: true,
            mount: Arc::clone(mount),
            handle: FileHandle::new(1, &ino.to_ne_bytes()),
            path: None,
            place: Some((NodeId::ROOT, c"name")),
        }
    }

    fn insert(store: &InodeStore, ino: u64) -> NodeId {
        store.insert(new(store.root.mount(), ino)).unwrap()
    }

    fn acquire(store: &InodeStore, ino: u64) -> Option<NodeId> {
        match store.acquire(&identity(ino, 1), None) {
            Match::Counted(id) => Some(id),
            Match::Stranger => None,
            Match::Unsure(inode) => panic!("{inode:?}"),
        }
    }

    /// Inodes in the store, those on the way of others included.
    fn len(store: &InodeStore) -> usize {
        store.count() - 1
    }

    #[test]
    fn a_slot_has_64_bytes() {
        assert_eq!(size_of::<Slot>(), 64);
    }

    #[test]
    fn a_node_lives_as_long_as_its_look_ups() {
        let store = store();
        let id = insert(&store, 700);
        assert_eq!(acquire(&store, 700), Some(id));
        assert_eq!(insert(&store, 700), id);
        assert!(!store.forget(id, 2));
        assert!(store.get(id).is_some());
        assert!(store.forget(id, 1));
        assert!(store.get(id).is_none());
        assert_eq!(acquire(&store, 700), None);
        assert_eq!(len(&store), 0);
    }

    #[test]
    fn a_number_is_never_given_twice() {
        let store = store();
        let first = insert(&store, 700);
        store.forget(first, 1);
        let second = insert(&store, 700);
        store.clear();
        let third = insert(&store, 700);
        assert!(first < second && second < third);
    }

    #[test]
    fn forget_below_zero_and_of_the_root_and_of_strangers_is_harmless() {
        let store = store();
        let id = insert(&store, 700);
        store.forget(id, u64::MAX);
        store.forget(id, 1);
        store.forget(NodeId::ROOT, u64::MAX);
        store.forget(NodeId(12345), 1);
        store.forget(NodeId(0), 1);
        assert!(store.get(NodeId::ROOT).is_some());
        assert_eq!(acquire(&store, 1), Some(NodeId::ROOT));
        assert_eq!(len(&store), 0);
    }

    #[test]
    fn a_directory_is_kept_for_what_was_found_in_it() {
        let store = store();
        let inner = |ino, parent| {
            let new = NewInode {
                place: Some((parent, c"name")),
                ..new(store.root.mount(), ino)
            };
            store.insert(new).unwrap()
        };
        let outer = insert(&store, 10);
        let middle = inner(11, outer);
        let leaf = inner(700, middle);
        store.forget(outer, 1);
        store.forget(middle, 1);
        assert!(store.get(middle).is_none(), "the guest does not hold it");
        let (_, place) = store.whereabouts(leaf).unwrap();
        assert_eq!(place, Some((middle, c"name".to_owned())));
        assert!(store.whereabouts(outer).is_some());
        // A look-up brings it back as what it was.
        assert_eq!(acquire(&store, 11), Some(middle));
        store.forget(middle, 1);
        // Elsewhere the leaf needs them no more.
        store.set_place(leaf, NodeId::ROOT, c"other");
        assert!(store.whereabouts(outer).is_none());
        assert!(store.whereabouts(middle).is_none());
        assert_eq!(len(&store), 1);
        store.forget(leaf, 1);
        assert_eq!(len(&store), 0);
    }

    #[test]
    fn directories_that_seem_to_lie_in_each_other_keep_nobody() {
        let store = store();
        let [a, b, c] = [10, 11, 12].map(|ino| insert(&store, ino));
        store.set_place(b, a, c"b");
        store.set_place(c, b, c"c");
        store.set_place(a, c, c"a");
        assert_eq!(store.whereabouts(a).unwrap().1, Some((c, c"a".to_owned())));
        assert_eq!(store.whereabouts(b).unwrap().1, None);
        for id in [a, b, c] {
            store.forget(id, 1);
        }
        assert_eq!(len(&store), 0);
    }

    #[test]
    fn a_file_with_the_number_of_another_is_another_node() {
        let store = store();
        let old = insert(&store, 700);
        let found = identity(700, 2);
        assert!(matches!(store.acquire(&found, None), Match::Unsure(held) if held.id() == old));
        let newer = NewInode {
            identity: found,
            handle: FileHandle::new(1, b"other"),
            ..new(store.root.mount(), 700)
        };
        let id = store.insert(newer).unwrap();
        assert_ne!(id, old);
        assert!(store.get(old).is_some(), "the guest still holds it");
        assert!(matches!(store.acquire(&found, None), Match::Counted(held) if held == id));
        store.forget(old, 1);
        assert!(matches!(store.acquire(&found, None), Match::Counted(held) if held == id));
    }

    #[test]
    fn a_young_file_is_not_taken_for_another_on_sight() {
        let store = store();
        let young = NewInode {
            settled: false,
            ..new(store.root.mount(), 700)
        };
        let id = store.insert(young).unwrap();
        let found = identity(700, 1);
        assert!(matches!(store.acquire(&found, None), Match::Unsure(_)));
        assert!(store.confirm(id, &found, true, None));
        assert_eq!(acquire(&store, 700), Some(id));
        store.forget(id, 2);
        assert!(store.get(id).is_some());
    }

    #[test]
    fn only_the_descriptor_that_was_looked_at_is_verified() {
        let store = store_of(1);
        let open = || NewPath {
            fd: path(),
            verified: false,
            room: store.path_room().unwrap(),
        };
        let held = |id| store.get(id).unwrap().held;
        let id = insert(&store, 700);
        store.keep_path(id, open());
        let Held::Unverified(first) = held(id) else {
            panic!("{:?}", held(id));
        };
        store.close_path(id, &identity(700, 1), true);
        store.keep_path(id, open());
        store.set_verified(id, &first, true);
        store.set_verified(id, &first, false);
        let Held::Unverified(second) = held(id) else {
            panic!("{:?}", held(id));
        };
        store.set_verified(id, &second, true);
        assert!(matches!(held(id), Held::Path(path) if path == second));
    }

    #[test]
    fn what_was_lost_is_found_by_the_next_look_up() {
        let store = store();
        let id = insert(&store, 700);
        let is_lost = || store.whereabouts(id).unwrap().1.is_none();
        let found = identity(700, 1);
        let place = Some((NodeId::ROOT, c"name"));
        store.set_lost(id, NodeId::ROOT, c"another");
        assert!(!is_lost());
        store.set_lost(id, NodeId::ROOT, c"name");
        assert!(is_lost());
        assert!(matches!(store.acquire(&found, place), Match::Counted(_)));
        assert!(!is_lost());
        store.set_lost(id, NodeId::ROOT, c"name");
        assert!(store.confirm(id, &found, true, place));
        assert!(!is_lost());
    }

    #[test]
    fn what_was_not_used_for_longest_is_closed_first() {
        let store = store_of(3);
        let open = |ino| {
            let new = NewInode {
                handle: None,
                path: Some(NewPath {
                    fd: path(),
                    verified: true,
                    room: store.path_room().unwrap(),
                }),
                ..new(store.root.mount(), ino)
            };
            store.insert(new).unwrap()
        };
        let ids = [700, 701, 702].map(open);
        assert!(store.path_room().is_none());
        store.get(ids[0]);
        store.get(ids[1]);
        let first = store.next_to_close().unwrap();
        assert_eq!(first, ids[2]);
        store.close_path(first, &identity(702, 1), true);
        assert!(matches!(store.get(first).unwrap().held, Held::Name));
        assert!(store.path_room().is_some());
        // Used once, they get a second chance only.
        assert!(store.next_to_close().is_some());
        assert!(store.next_to_close().is_some());
        assert!(store.next_to_close().is_none());
        store.forget(ids[0], 1);
        store.clear();
        let rooms: Vec<_> = (0..3).map(|_| store.path_room().unwrap()).collect();
        assert!(store.path_room().is_none());
        drop(rooms);
    }

    #[test]
    fn numbers_of_another_daemon_are_kept_and_not_given_out() {
        let store = store();
        let mount = store.root.mount();
        for ino in 700..900 {
            let id = NodeId(ino - 690);
            store.insert_saved(id, 3, new(mount, ino)).unwrap();
        }
        let again = store.insert_saved(NodeId(10), 1, new(mount, 1000));
        assert_eq!(again, Err(Errno::EXIST));
        let again = store.insert_saved(NodeId(5000), 1, new(mount, 700));
        assert_eq!(again, Err(Errno::EXIST));
        for id in [0, 1, u64::MAX] {
            let refused = store.insert_saved(NodeId(id), 1, new(mount, 1000));
            assert_eq!(refused, Err(Errno::INVAL));
        }
        assert_eq!(acquire(&store, 700), Some(NodeId(10)));
        assert!(insert(&store, 1000).0 > 209);
        let last = insert(&store, 1001).0;
        assert!(store.next_id() > last);
        for (id, lookups) in store.all() {
            if (10..210).contains(&id.0) {
                assert_eq!(lookups, 3 + u64::from(id.0 == 10));
            }
        }
        let (_, place) = store.whereabouts(NodeId(11)).unwrap();
        assert_eq!(place, Some((NodeId::ROOT, c"name".to_owned())));
        for id in 10..210 {
            store.forget(NodeId(id), 4);
            assert!(store.get(NodeId(id)).is_none());
        }
        assert_eq!(len(&store), 2);
    }

    /// Bytes of the heap that the inodes take.
    fn heap(store: &InodeStore) -> usize {
        let of = |shard: &Shard| {
            shard.slots.capacity() * size_of::<Slot>()
                + shard.by_id.allocation_size()
                + shard.by_key.allocation_size()
                + shard.bytes.all.capacity()
                + shard.open.capacity() * size_of::<u64>()
        };
        store.shards.iter().map(|shard| of(&read(shard))).sum()
    }

    #[test]
    fn memory() {
        const MILLION: usize = 1_000_000;
        let fd = path();
        for (by_handle, limit) in [(true, 160), (false, 120)] {
            let store = store_of(MILLION);
            let name_of = |n: usize| CString::new(format!("f{n:06}")).unwrap();
            let ids: Vec<_> = (0..MILLION)
                .map(|n| {
                    let new = new(store.root.mount(), 700 + n as u64);
                    let path = || NewPath {
                        fd: fd.clone(),
                        verified: true,
                        room: store.path_room().unwrap(),
                    };
                    let new = NewInode {
                        handle: new.handle.filter(|_| by_handle),
                        path: (!by_handle).then(path),
                        place: Some((NodeId::ROOT, &name_of(n))),
                        ..new
                    };
                    store.insert(new).unwrap()
                })
                .collect();
            // The owners of descriptors are counted in four bytes for each.
            let owners = if by_handle { 0 } else { 4 };
            let each = heap(&store) / MILLION + owners;
            println!("{each} bytes for each inode, by handle: {by_handle}");
            assert!(each <= limit, "{each} bytes, by handle: {by_handle}");
            // One of a thousand stays, wherever it lies.
            for (n, id) in ids.iter().enumerate() {
                if n % 1000 != 0 {
                    assert!(store.forget(*id, 1));
                }
            }
            assert!(heap(&store) < 2 << 20, "{}", heap(&store));
            for id in ids.iter().step_by(1000) {
                assert!(store.get(*id).is_some());
                store.forget(*id, 1);
            }
            assert_eq!(len(&store), 0);
        }
    }

    /// A generator of numbers that are the same in every run.
    struct Shuffle(u64);

    impl Shuffle {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (self.0 >> 33) % limit
        }
    }

    /// What the guest holds, as simply as it can be said.
    #[derive(Default)]
    struct Model {
        counts: HashMap<u64, (NodeId, u64)>,
        ever: HashMap<NodeId, u64>,
    }

    #[test]
    fn a_shuffled_history_gives_what_the_model_gives() {
        for seed in 0..20 {
            let store = store();
            let mut shuffle = Shuffle(seed);
            let mut model = Model::default();
            for _ in 0..5000 {
                let ino = 700 + shuffle.below(300);
                let count = 1 + shuffle.below(3);
                let held = model.counts.get(&ino).copied();
                match shuffle.below(6) {
                    0..3 => {
                        let id = acquire(&store, ino).unwrap_or_else(|| insert(&store, ino));
                        match held {
                            Some((expected, _)) => assert_eq!(id, expected),
                            None => {
                                // One that was kept as a directory of others comes
                                // back as what it was.
                                let before = model.ever.insert(id, ino);
                                assert!(before.is_none_or(|before| before == ino));
                            }
                        }
                        model.counts.entry(ino).or_insert((id, 0)).1 += 1;
                    }
                    3 => {
                        let parent = model.counts.values().next().map(|(id, _)| *id);
                        if let (Some((id, _)), Some(parent)) = (held, parent) {
                            store.set_place(id, parent, c"elsewhere");
                        }
                    }
                    _ => {
                        if let Some((id, held)) = held {
                            store.forget(id, count);
                            if held <= count {
                                model.counts.remove(&ino);
                            } else if let Some(entry) = model.counts.get_mut(&ino) {
                                entry.1 -= count;
                            }
                        }
                    }
                }
            }
            let held: HashMap<_, _> = model.counts.values().copied().collect();
            let mut seen: HashMap<_, _> = store.all().into_iter().collect();
            seen.remove(&NodeId::ROOT);
            assert_eq!(seen, held, "seed {seed}");
            // Whatever was put into what, nothing keeps anything else.
            for (id, count) in held {
                store.forget(id, count);
            }
            assert_eq!(len(&store), 0, "seed {seed}");
        }
    }

    #[test]
    fn counts_are_exact_when_threads_look_up_and_forget() {
        let store = store();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2000 {
                        let ino = 700 + round % 5;
                        let id = acquire(&store, ino).unwrap_or_else(|| insert(&store, ino));
                        assert!(store.get(id).is_some(), "a held node is there");
                        store.forget(id, 1);
                    }
                });
            }
        });
        assert_eq!(len(&store), 0);
    }
}
