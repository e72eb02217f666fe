//! The nodes that the guest holds, found by their number and by what they are
//! on the host, with exact look-up counts.
//!
//! A count only ever changes under the lock of the shard that its key is in, so
//! a look-up and a forget of one node never miss each other, whatever queue
//! they come from. Lock order: a shard of `by_key`, then a shard of `by_id`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use foldhash::fast::RandomState;
use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::fd_budget::GuestFd;
use crate::id::NodeId;
use crate::sys::locks::{lock, read, write};

/// Shards of each map: queues that work on different nodes seldom meet.
const SHARDS: usize = 64;

/// What a file is on the host, while it is held: no other file has the same.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct InodeKey {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number.
    pub ino: u64,
    /// The mount through which it was reached.
    pub mount: u64,
}

impl InodeKey {
    /// What a file is, by its status, which has the mount in it.
    pub fn of(stat: &Statx) -> Self {
        Self {
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            ino: stat.stx_ino,
            mount: stat.stx_mnt_id,
        }
    }
}

/// A node that the guest holds: an `O_PATH` descriptor and how often it was
/// looked up.
#[derive(Debug)]
pub struct Inode {
    id: NodeId,
    key: InodeKey,
    kind: FileType,
    fd: GuestFd,
    /// Changed only under the lock of the key's shard.
    lookups: AtomicU64,
}

impl Inode {
    /// The number that the guest knows it by.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What it is on the host.
    pub fn key(&self) -> InodeKey {
        self.key
    }

    /// Its file type, which never changes.
    pub fn kind(&self) -> FileType {
        self.kind
    }

    /// Its descriptor; everybody but `Node` gets it through one.
    pub(super) fn path(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

type ByKey = HashMap<InodeKey, Arc<Inode>, RandomState>;
type ById = HashMap<NodeId, Arc<Inode>, RandomState>;

/// All nodes of a session.
#[derive(Debug)]
pub struct InodeStore {
    hasher: RandomState,
    by_key: Vec<Mutex<ByKey>>,
    by_id: Vec<RwLock<ById>>,
    next_id: AtomicU64,
    root: Arc<Inode>,
}

impl InodeStore {
    /// A store that holds the root, which is never forgotten.
    pub fn new(root_key: InodeKey, root_kind: FileType, root_fd: GuestFd) -> Self {
        let hasher = RandomState::default();
        let root = Arc::new(Inode {
            id: NodeId::ROOT,
            key: root_key,
            kind: root_kind,
            fd: root_fd,
            lookups: AtomicU64::new(1),
        });
        let store = Self {
            by_key: (0..SHARDS)
                .map(|_| Mutex::new(ByKey::with_hasher(hasher.clone())))
                .collect(),
            by_id: (0..SHARDS)
                .map(|_| RwLock::new(ById::with_hasher(hasher.clone())))
                .collect(),
            hasher,
            next_id: AtomicU64::new(NodeId::ROOT.0 + 1),
            root: Arc::clone(&root),
        };
        store
            .key_shard(&root_key)
            .insert(root_key, Arc::clone(&root));
        store.publish(root);
        store
    }

    /// How many nodes there are, the root included.
    pub fn count(&self) -> usize {
        // The root is in none of the shards.
        1 + self
            .by_id
            .iter()
            .map(|shard| read(shard).len())
            .sum::<usize>()
    }

    /// The node of a number; `None` if the guest does not hold it.
    pub fn get(&self, id: NodeId) -> Option<Arc<Inode>> {
        if id == NodeId::ROOT {
            return Some(Arc::clone(&self.root));
        }
        read(self.id_shard(id)).get(&id).cloned()
    }

    /// Counts one look-up of a node that is held already; gives its number.
    pub fn acquire(&self, key: &InodeKey) -> Option<NodeId> {
        let shard = self.key_shard(key);
        let inode = shard.get(key)?;
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        Some(inode.id)
    }

    /// Counts one look-up of a node that was just opened; gives its number.
    ///
    /// If another thread was first, its node is counted and `fd` is closed.
    pub fn insert(&self, key: InodeKey, kind: FileType, fd: GuestFd) -> NodeId {
        let mut shard = self.key_shard(&key);
        if let Some(inode) = shard.get(&key) {
            inode.lookups.fetch_add(1, Ordering::Relaxed);
            let id = inode.id;
            // The descriptor is closed without the lock.
            drop(shard);
            return id;
        }
        let id = NodeId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let inode = Arc::new(Inode {
            id,
            key,
            kind,
            fd,
            lookups: AtomicU64::new(1),
        });
        shard.insert(key, Arc::clone(&inode));
        self.publish(inode);
        id
    }

    /// The node that is a file, without counting.
    pub fn find(&self, key: &InodeKey) -> Option<NodeId> {
        self.key_shard(key).get(key).map(|inode| inode.id)
    }

    /// Every node with its look-ups.
    pub fn all(&self) -> Vec<(NodeId, u64)> {
        let mut all = Vec::new();
        for shard in &self.by_key {
            let of_shard = lock(shard);
            all.extend(
                of_shard
                    .values()
                    .map(|inode| (inode.id, inode.lookups.load(Ordering::Relaxed))),
            );
        }
        all
    }

    /// The next number to be given.
    pub fn next_id(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    /// Gives no number below `next` from now on.
    pub fn give_from(&self, next: u64) {
        self.next_id.fetch_max(next, Ordering::Relaxed);
    }

    /// Holds a node under the number and with the look-ups that the guest knows.
    ///
    /// # Errors
    /// `EEXIST` when the file is held under another number, or the number is in
    /// use.
    pub fn restore(
        &self,
        id: NodeId,
        lookups: u64,
        key: InodeKey,
        kind: FileType,
        fd: GuestFd,
    ) -> Result<(), Errno> {
        if self.get(id).is_some() {
            return Err(Errno::EXIST);
        }
        match self.key_shard(&key).entry(key) {
            Entry::Occupied(_) => Err(Errno::EXIST),
            Entry::Vacant(place) => {
                let inode = Arc::new(Inode {
                    id,
                    key,
                    kind,
                    fd,
                    lookups: AtomicU64::new(lookups),
                });
                place.insert(Arc::clone(&inode));
                self.publish(inode);
                self.give_from(id.0 + 1);
                Ok(())
            }
        }
    }

    /// Counts `count` look-ups fewer. The root stays, and a count beyond what
    /// the guest holds is as good as the right one.
    pub fn forget(&self, id: NodeId, count: u64) {
        if id == NodeId::ROOT {
            return;
        }
        let Some(inode) = self.get(id) else {
            log::debug!("the guest forgot node {}, which it does not hold", id.0);
            return;
        };
        let mut shard = self.key_shard(&inode.key);
        // Another forget may have removed it since, and a look-up may have put
        // a new node in its place.
        if !shard
            .get(&inode.key)
            .is_some_and(|held| Arc::ptr_eq(held, &inode))
        {
            return;
        }
        let held = inode.lookups.load(Ordering::Relaxed);
        if count > held {
            log::debug!(
                "the guest forgot {count} look-ups of node {}, but holds {held}",
                id.0
            );
        }
        inode
            .lookups
            .store(held.saturating_sub(count), Ordering::Relaxed);
        if held <= count {
            let by_key = shard.remove(&inode.key);
            let by_id = write(self.id_shard(id)).remove(&id);
            // The descriptor is closed without the locks.
            drop(shard);
            drop((by_key, by_id));
        }
    }

    /// Drops every node but the root.
    pub fn clear(&self) {
        for shard in &self.by_id {
            let dropped = std::mem::take(&mut *write(shard));
            for inode in dropped.into_values() {
                let mut by_key = self.key_shard(&inode.key);
                if by_key
                    .get(&inode.key)
                    .is_some_and(|held| Arc::ptr_eq(held, &inode))
                {
                    let removed = by_key.remove(&inode.key);
                    // The descriptor is closed without the lock.
                    drop(by_key);
                    drop(removed);
                }
            }
        }
    }

    fn publish(&self, inode: Arc<Inode>) {
        if inode.id != NodeId::ROOT {
            write(self.id_shard(inode.id)).insert(inode.id, inode);
        }
    }

    #[allow(clippy::indexing_slicing)] // There are SHARDS shards, and the index is below.
    fn key_shard(&self, key: &InodeKey) -> MutexGuard<'_, ByKey> {
        // The high bits choose the shard: the map itself uses the low ones.
        let hash = self.hasher.hash_one(key);
        lock(&self.by_key[(hash >> 32) as usize % SHARDS])
    }

    #[allow(clippy::indexing_slicing)] // There are SHARDS shards, and the index is below.
    fn id_shard(&self, id: NodeId) -> &RwLock<ById> {
        &self.by_id[id.0 as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::super::fd_budget::FdBudget;
    use super::*;

    /// Nodes held, the root included.
    fn len(store: &InodeStore) -> usize {
        store.by_key.iter().map(|shard| lock(shard).len()).sum()
    }

    fn fd() -> GuestFd {
        let file = std::fs::File::open("/dev/null").unwrap();
        FdBudget::new(1).reserve().unwrap().hold(file.into())
    }

    fn key(ino: u64) -> InodeKey {
        InodeKey {
            device: 1,
            ino,
            mount: 1,
        }
    }

    fn store() -> InodeStore {
        InodeStore::new(key(1), FileType::Directory, fd())
    }

    fn insert(store: &InodeStore, ino: u64) -> NodeId {
        store.insert(key(ino), FileType::RegularFile, fd())
    }

    #[test]
    fn a_node_lives_as_long_as_its_look_ups() {
        let store = store();
        let id = insert(&store, 7);
        assert_eq!(store.acquire(&key(7)), Some(id));
        assert_eq!(insert(&store, 7), id);
        store.forget(id, 2);
        assert!(store.get(id).is_some());
        store.forget(id, 1);
        assert!(store.get(id).is_none());
        assert_eq!(store.acquire(&key(7)), None);
        assert_eq!(len(&store), 1);
    }

    #[test]
    fn a_number_is_never_given_twice() {
        let store = store();
        let first = insert(&store, 7);
        store.forget(first, 1);
        assert_ne!(insert(&store, 7), first);
        store.clear();
        assert!(insert(&store, 7) > first);
    }

    #[test]
    fn forget_below_zero_and_of_the_root_and_of_strangers_is_harmless() {
        let store = store();
        let id = insert(&store, 7);
        store.forget(id, u64::MAX);
        store.forget(id, 1);
        store.forget(NodeId::ROOT, u64::MAX);
        store.forget(NodeId(12345), 1);
        assert!(store.get(NodeId::ROOT).is_some());
        assert_eq!(store.acquire(&key(1)), Some(NodeId::ROOT));
        assert_eq!(len(&store), 1);
    }

    #[test]
    fn clear_keeps_the_root_only() {
        let store = store();
        let ids: Vec<_> = (2..200).map(|ino| insert(&store, ino)).collect();
        store.clear();
        assert!(ids.iter().all(|id| store.get(*id).is_none()));
        assert_eq!(store.acquire(&key(1)), Some(NodeId::ROOT));
        assert_eq!(len(&store), 1);
    }

    #[test]
    fn counts_are_exact_when_threads_look_up_and_forget() {
        let store = store();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2000 {
                        let ino = 2 + round % 5;
                        let id = store
                            .acquire(&key(ino))
                            .unwrap_or_else(|| insert(&store, ino));
                        assert!(store.get(id).is_some(), "a held node is there");
                        store.forget(id, 1);
                    }
                });
            }
        });
        assert_eq!(len(&store), 1);
    }
}
