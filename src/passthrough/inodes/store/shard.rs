//! The inodes that share a lock: their slots, lying densely, and the maps that
//! find them.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use rustix::io::Errno;

use crate::id::NodeId;
use crate::passthrough::inodes::identity::InodeKey;
use crate::passthrough::inodes::inode::{Held, Inode};
use crate::passthrough::inodes::store::NewInode;
use crate::passthrough::inodes::store::slot::{Bytes, HandleBytes, Shape, Slot, UNBORN, flag};
use crate::sys::file_handle::FileHandle;
use crate::sys::shared_fd::SharedFd;

/// Inodes whose keys have something in common.
#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) slots: Vec<Slot>,
    pub(super) by_id: HashTable<u32>,
    pub(super) by_key: HashTable<u32>,
    pub(super) bytes: Bytes,
    /// Inodes with a descriptor that may be closed, those first that were not
    /// used for longest. Some have none any more.
    pub(super) open: VecDeque<u64>,
    /// How many numbers it has given out.
    pub(super) rounds: u64,
    /// Whether it has become a good deal smaller.
    pub(super) has_shrunk: bool,
}

impl Shard {
    pub(super) fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index as usize)
    }

    pub(super) fn find_id(&self, hasher: &RandomState, id: NodeId) -> Option<u32> {
        let is_it = |index: &u32| self.slot(*index).is_some_and(|slot| slot.id == id.0);
        self.by_id.find(hasher.hash_one(id.0), is_it).copied()
    }

    pub(super) fn by_id(&self, hasher: &RandomState, id: NodeId) -> Option<&Slot> {
        self.slot(self.find_id(hasher, id)?)
    }

    pub(super) fn by_id_mut(&mut self, hasher: &RandomState, id: NodeId) -> Option<&mut Slot> {
        let index = self.find_id(hasher, id)?;
        self.slots.get_mut(index as usize)
    }

    pub(super) fn find_key(&self, hash: u64, key: &InodeKey) -> Option<u32> {
        let is_it = |index: &u32| self.slot(*index).is_some_and(|slot| slot.key() == *key);
        self.by_key.find(hash, is_it).copied()
    }

    pub(super) fn handle(&self, slot: &Slot) -> Option<FileHandle> {
        let (kind, bytes) = self
            .bytes
            .get(slot.bytes_at as usize, usize::from(slot.handle_len))
            .split_first()?;
        FileHandle::new(i32::from(*kind), bytes)
    }

    pub(super) fn name(&self, slot: &Slot) -> &[u8] {
        let at = slot.bytes_at as usize + usize::from(slot.handle_len);
        self.bytes.get(at, slot.shape.name_len())
    }

    /// Whether it is known to be found there.
    pub(super) fn has_place(&self, slot: &Slot, parent: NodeId, name: &CStr) -> bool {
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

    pub(super) fn inode(&self, slot: &Slot) -> Inode {
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
    pub(super) fn detach(&mut self, hasher: &RandomState, index: u32) {
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

    pub(super) fn remove(&mut self, hasher: &RandomState, index: u32) -> Option<Slot> {
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
        self.bytes.dead += usize::from(slot.handle_len) + slot.shape.name_len();
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
            let handle_len = usize::from(slot.handle_len);
            let handle = old.get(at, handle_len);
            let name = old.get(at + handle_len, slot.shape.name_len());
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
    pub(super) fn set_bytes(
        &mut self,
        index: u32,
        handle: Option<&FileHandle>,
        name: &[u8],
    ) -> Option<()> {
        let slot = self.slots.get_mut(index as usize)?;
        let shape = Shape::new(slot.shape.kind(), name.len())?;
        let handle = HandleBytes::of(handle);
        let at = self.bytes.add([handle.kind, handle.rest, name])?;
        self.bytes.dead += usize::from(slot.handle_len) + slot.shape.name_len();
        slot.bytes_at = at;
        slot.handle_len = handle.len();
        slot.shape = shape;
        self.compact_bytes();
        Some(())
    }

    pub(super) fn hold(
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
        let shape = Shape::new(new.identity.kind, name.len()).ok_or(Errno::NAMETOOLONG)?;
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
            flags: AtomicU8::new(if new.settled { flag::SETTLED } else { 0 }),
            shape,
        };
        self.push(hasher, hash, slot)
    }

    pub(super) fn set_path(
        &mut self,
        hasher: &RandomState,
        id: NodeId,
        fd: SharedFd,
        verified: bool,
    ) {
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
