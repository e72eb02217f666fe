//! Where inodes were found last. A directory stays in the store for as long as
//! something was found in it, so that there is a way to each inode.

use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::FileType;

use crate::id::NodeId;
use crate::passthrough::inodes::identity::Identity;
use crate::passthrough::inodes::inode::Inode;
use crate::passthrough::inodes::store::slot::{Slot, flag};
use crate::passthrough::inodes::store::{InodeStore, MAX_DEPTH};
use crate::sys::cpath::NameCopy;
use crate::sys::sync::{lock, read, wait_for, write};

/// How long it is waited for a change before it is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Inodes whose names the guest is changing. Who looks for one of them in vain
/// waits until the change is noted, instead of taking it for lost.
#[derive(Debug)]
#[must_use]
pub struct Move<'a> {
    store: &'a InodeStore,
    inodes: [Option<NodeId>; 2],
}

impl Drop for Move<'_> {
    fn drop(&mut self) {
        let mut is_waited_for = false;
        for id in self.inodes.iter().flatten() {
            let mut moving = lock(&self.store.moving);
            if let Some(at) = moving.iter().position(|other| other == id) {
                moving.swap_remove(at);
                is_waited_for = true;
            }
        }
        if is_waited_for {
            self.store.one_less_moves.notify_all();
        }
    }
}

impl InodeStore {
    /// The names of these inodes are about to be changed on the host.
    pub fn begin_move(&self, inodes: [Option<NodeId>; 2]) -> Move<'_> {
        if inodes.iter().any(Option::is_some) {
            self.moves.fetch_add(1, Ordering::AcqRel);
            lock(&self.moving).extend(inodes.iter().flatten());
        }
        Move {
            store: self,
            inodes,
        }
    }

    /// How often such a change was begun: a name that was seen before may be gone.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    /// Whether an inode that was looked for in vain in this place is to be found
    /// in another way by now. If its name is being changed that is waited for,
    /// so nobody may ask who changes one.
    pub fn has_moved(&self, id: NodeId, parent: NodeId, name: &CStr) -> bool {
        let mut moving = lock(&self.moving);
        while moving.contains(&id) {
            moving = wait_for(&self.one_less_moves, moving, LOOK_AGAIN).0;
        }
        drop(moving);
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id);
        slot.is_some_and(|slot| slot.path.is_some() || !shard.has_place(slot, parent, name))
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

    /// What an inode is and where it was last found, if it is held by a handle,
    /// not a directory, and the only file that can ever be this.
    pub fn settled_place(&self, id: NodeId) -> Option<(Identity, NodeId, NameCopy)> {
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id)?;
        let is_settled = slot.has(flag::SETTLED) && !slot.has(flag::LOST) && slot.parent != 0;
        let identity = slot.identity();
        if !is_settled || slot.path.is_some() || identity.kind == FileType::Directory {
            return None;
        }
        let name = NameCopy::of(shard.name(slot))?;
        Some((identity, NodeId(slot.parent), name))
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
    ///
    /// Nothing lies within a file, and others wait while this takes its way up:
    /// what is too deep to be found again is nowhere as well.
    fn break_ring(&self, id: NodeId, parent: NodeId) {
        if !self.has_children(id) {
            return;
        }
        let mut at = parent;
        for depth in 0.. {
            if at.0 == 0 || at == NodeId::ROOT {
                return;
            }
            let above = {
                let shard = read(self.shard_of(at));
                let slot = shard.by_id(&self.hasher, at);
                NodeId(slot.map_or(0, |slot| slot.parent))
            };
            if above == id || depth == MAX_DEPTH {
                if let Some(left) = self.replace_place(at, NodeId(0), None) {
                    self.remove_child(left);
                }
                return;
            }
            at = above;
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

    fn has_children(&self, id: NodeId) -> bool {
        let shard = read(self.shard_of(id));
        let slot = shard.by_id(&self.hasher, id);
        slot.is_some_and(|slot| slot.children.load(Ordering::Relaxed) > 0)
    }

    pub(super) fn add_child(&self, parent: NodeId) -> bool {
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

    pub(super) fn remove_child(&self, parent: NodeId) {
        if let Some(slot) = self.take_unused_parent(parent) {
            self.bury(slot);
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

    /// Lets go of what a slot held: its descriptor, its mount, and the
    /// directories that were kept for its sake. No lock is held meanwhile.
    pub(super) fn bury(&self, mut slot: Slot) {
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
}
