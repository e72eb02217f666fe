//! Open files and directory streams of the guest.
//!
//! A handle is only ever looked up together with its node: a guest that mixes
//! them up gets EBADF. Files need no lock, since all I/O names its offset; a
//! directory stream has a position and so is behind a mutex.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use foldhash::fast::RandomState;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::id::{HandleId, NodeId};
use crate::passthrough::files::dir_stream::DirStream;
use crate::passthrough::inodes::fd_budget::GuestFd;
use crate::passthrough::inodes::file_systems::Kind;
use crate::sys::sync::{read, write};

/// Shards of the map: queues that work on different files seldom meet.
const SHARDS: usize = 16;

/// After a write that took long, so many are expected to take as long.
const LONG_WRITES_IN_A_ROW: u32 = 32;

/// A file or directory that the guest has open.
#[derive(Debug)]
pub struct Handle {
    node: NodeId,
    fd: GuestFd,
    /// The file system, for a file.
    kind: Kind,
    /// Whether a file can be written.
    is_writable: bool,
    /// Whether reads and writes go to the disk itself.
    is_synchronous: bool,
    /// The flags that a file was opened with.
    flags: OFlags,
    /// Whether the host was seen to refuse `RWF_NOWAIT`.
    refuses_nowait: AtomicBool,
    /// How many of the next writes are expected to take long.
    long_writes: AtomicU32,
    /// The position, for a directory.
    stream: Option<Mutex<DirStream>>,
}

impl Handle {
    /// An open file, and the flags that it was opened with.
    pub fn file(node: NodeId, fd: GuestFd, kind: Kind, flags: OFlags) -> Self {
        Self {
            node,
            fd,
            kind,
            is_writable: flags & OFlags::ACCMODE != OFlags::RDONLY,
            is_synchronous: flags.intersects(OFlags::DIRECT | OFlags::DSYNC | OFlags::SYNC),
            flags,
            refuses_nowait: AtomicBool::new(false),
            long_writes: AtomicU32::new(0),
            stream: None,
        }
    }

    /// Whether closing it may bring what nothing else does: errors of writes that
    /// the host has kept back. Only files on a server and the like do so.
    pub fn needs_flush(&self) -> bool {
        self.is_writable && !matches!(self.kind, Kind::Local | Kind::Memory)
    }

    /// An open directory.
    pub fn directory(node: NodeId, fd: GuestFd) -> Self {
        Self {
            node,
            fd,
            kind: Kind::Other,
            is_writable: false,
            is_synchronous: false,
            flags: OFlags::empty(),
            refuses_nowait: AtomicBool::new(false),
            long_writes: AtomicU32::new(0),
            stream: Some(Mutex::new(DirStream::new())),
        }
    }

    /// The file system, for a file.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether a file can be written.
    pub fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Whether reads and writes go to the disk itself.
    pub fn is_synchronous(&self) -> bool {
        self.is_synchronous
    }

    /// Whether reads and writes have to be whole blocks (`O_DIRECT`).
    pub fn is_direct(&self) -> bool {
        self.flags.contains(OFlags::DIRECT)
    }

    /// Whether the host appends whatever is written by it, at any offset.
    pub fn appends(&self) -> bool {
        self.flags.contains(OFlags::APPEND)
    }

    /// Whether nothing can be read by it.
    pub fn is_write_only(&self) -> bool {
        self.flags & OFlags::ACCMODE == OFlags::WRONLY
    }

    /// Whether it was opened with all of these flags.
    pub fn has(&self, flags: OFlags) -> bool {
        self.flags.contains(flags)
    }

    /// Whether the host was seen to refuse `RWF_NOWAIT`.
    pub fn refuses_nowait(&self) -> bool {
        self.refuses_nowait.load(Ordering::Relaxed)
    }

    /// Whether the next write is expected to take long.
    pub fn expects_long_write(&self) -> bool {
        self.long_writes.load(Ordering::Relaxed) > 0
            && self
                .long_writes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
    }

    /// A write took long: so will the next ones.
    pub fn note_long_write(&self) {
        self.long_writes
            .store(LONG_WRITES_IN_A_ROW, Ordering::Relaxed);
    }

    /// The host refused `RWF_NOWAIT`.
    pub fn note_nowait_refused(&self) {
        self.refuses_nowait.store(true, Ordering::Relaxed);
    }

    /// What it is a handle of.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The position of a directory; `None` for a file.
    pub fn stream(&self) -> Option<&Mutex<DirStream>> {
        self.stream.as_ref()
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

type Shard = RwLock<HashMap<HandleId, Arc<Handle>, RandomState>>;

/// All handles of a session.
#[derive(Debug)]
pub struct Handles {
    shards: Vec<Shard>,
    next_id: AtomicU64,
}

impl Handles {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| read(shard).len()).sum()
    }

    /// No handles.
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            next_id: AtomicU64::new(0),
        }
    }

    /// Adds an open file or directory; its number is never given twice.
    pub fn insert(&self, handle: Handle) -> HandleId {
        let id = HandleId(self.next_id.fetch_add(1, Ordering::Relaxed));
        write(self.shard(id)).insert(id, Arc::new(handle));
        id
    }

    /// Adds an open file or directory under the number that the guest knows.
    pub fn restore(&self, id: HandleId, handle: Handle) {
        self.give_from(id.0.saturating_add(1));
        write(self.shard(id)).insert(id, Arc::new(handle));
    }

    /// All that are open.
    pub fn all(&self) -> Vec<(HandleId, Arc<Handle>)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let of_shard = read(shard);
            all.extend(
                of_shard
                    .iter()
                    .map(|(id, handle)| (*id, Arc::clone(handle))),
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

    /// An open file of this node.
    ///
    /// # Errors
    /// `EBADF` if it is none.
    pub fn file(&self, node: NodeId, id: HandleId) -> Result<Arc<Handle>, Errno> {
        self.get(node, id)
            .filter(|handle| handle.stream.is_none())
            .ok_or(Errno::BADF)
    }

    /// An open directory of this node, for work that has no position.
    ///
    /// # Errors
    /// `EBADF` if it is none.
    pub fn directory(&self, node: NodeId, id: HandleId) -> Result<Arc<Handle>, Errno> {
        self.get(node, id)
            .filter(|handle| handle.stream.is_some())
            .ok_or(Errno::BADF)
    }

    /// An open file or directory of this node.
    ///
    /// # Errors
    /// `EBADF` if it is none.
    pub fn any(&self, node: NodeId, id: HandleId) -> Result<Arc<Handle>, Errno> {
        self.get(node, id).ok_or(Errno::BADF)
    }

    /// Some handle of a node, for when nothing else leads to it: all handles are
    /// looked through.
    pub fn some_of(&self, node: NodeId) -> Option<Arc<Handle>> {
        self.shards.iter().find_map(|shard| {
            let shard = read(shard);
            shard.values().find(|handle| handle.node == node).cloned()
        })
    }

    /// Makes sure that this is a handle of this node.
    ///
    /// # Errors
    /// `EBADF` if it is none.
    pub fn check(&self, node: NodeId, id: HandleId) -> Result<(), Errno> {
        self.get(node, id).map(drop).ok_or(Errno::BADF)
    }

    /// Closes an open file or directory of this node.
    ///
    /// # Errors
    /// `EBADF` if it is none.
    pub fn remove(&self, node: NodeId, id: HandleId) -> Result<(), Errno> {
        self.check(node, id)?;
        let removed = write(self.shard(id)).remove(&id);
        removed.map(drop).ok_or(Errno::BADF)
    }

    /// Closes everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            let dropped = std::mem::take(&mut *write(shard));
            drop(dropped);
        }
    }

    fn get(&self, node: NodeId, id: HandleId) -> Option<Arc<Handle>> {
        read(self.shard(id))
            .get(&id)
            .filter(|handle| handle.node == node)
            .cloned()
    }

    #[allow(clippy::indexing_slicing)] // There are SHARDS shards, and the index is below.
    fn shard(&self, id: HandleId) -> &Shard {
        &self.shards[id.0 as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passthrough::inodes::fd_budget::FdBudget;

    fn fd() -> GuestFd {
        let file = std::fs::File::open("/dev/null").unwrap();
        FdBudget::new(1)
            .reserve(|| false)
            .unwrap()
            .hold(file.into())
    }

    fn file(node: u64) -> Handle {
        Handle::file(NodeId(node), fd(), Kind::Local, OFlags::RDONLY)
    }

    #[test]
    fn a_handle_is_known_only_with_its_node_and_kind() {
        let handles = Handles::new();
        let file = handles.insert(file(5));
        let dir = handles.insert(Handle::directory(NodeId(6), fd()));
        assert!(handles.file(NodeId(5), file).is_ok());
        assert!(handles.directory(NodeId(6), dir).is_ok());
        for (node, id) in [(6, file), (5, dir), (5, HandleId(99))] {
            assert_eq!(handles.file(NodeId(node), id).unwrap_err(), Errno::BADF);
            assert_eq!(handles.remove(NodeId(node), id).unwrap_err(), Errno::BADF);
        }
        assert_eq!(handles.directory(NodeId(5), file).unwrap_err(), Errno::BADF);
        assert_eq!(handles.file(NodeId(6), dir).unwrap_err(), Errno::BADF);
    }

    #[test]
    fn only_files_that_are_written_somewhere_else_need_a_flush() {
        for (kind, flags, expected) in [
            (Kind::Local, OFlags::RDWR, false),
            (Kind::Memory, OFlags::WRONLY, false),
            (Kind::Served, OFlags::WRONLY, true),
            (Kind::Other, OFlags::RDWR, true),
            (Kind::Served, OFlags::RDONLY, false),
        ] {
            let handle = Handle::file(NodeId(5), fd(), kind, flags);
            assert_eq!(handle.needs_flush(), expected, "{kind:?} {flags:?}");
        }
    }

    #[test]
    fn a_long_write_is_expected_to_be_followed_by_some() {
        let file = file(5);
        assert!(!file.expects_long_write());
        file.note_long_write();
        assert!((0..LONG_WRITES_IN_A_ROW).all(|_| file.expects_long_write()));
        assert!(!file.expects_long_write());
    }

    #[test]
    fn a_second_release_is_ebadf() {
        let handles = Handles::new();
        let id = handles.insert(file(5));
        assert_eq!(handles.remove(NodeId(5), id), Ok(()));
        assert_eq!(handles.remove(NodeId(5), id), Err(Errno::BADF));
    }
}
