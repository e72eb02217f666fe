//! Locks of the guest's processes, as locks of the host: they conflict with
//! those of the host's processes and of other guests.
//!
//! A record lock belongs to an owner, which is a process in the guest. The host
//! knows its owner as an open file description: one for each owner and file,
//! with the locks of `fcntl(2)` that belong to descriptions. It is closed, and
//! the locks are gone, when the owner closes the file (FLUSH), when the last
//! handle by which it locked is released, and at the end of the session. A lock
//! of `flock(2)` belongs to the guest's open file, which is a description of the
//! host already.
//!
//! What each owner holds is recorded here as well: the host tells neither who
//! it is that is in the way nor that owners wait for each other in a circle. The
//! record follows the host's answer, so two threads of one process that lock and
//! unlock the same bytes at once may leave it behind the truth; nothing but those
//! two answers depends on it.

mod record;
mod waiting;

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use crate::fs::{self, Failure, Locking, Patience, Result, Wait, Waiting};
use crate::fuse::abi::FileLock;
use crate::fuse::flags::init;
use crate::fuse::op::{LockArgs, LockKind, LockOwner, LockRange};
use crate::id::{HandleId, NodeId};
use crate::passthrough::Passthrough;
use crate::passthrough::files::handles::Handle;
use crate::passthrough::inodes::fd_budget::GuestFd;
use crate::sys::record_lock::{
    RecordLock, conflicting_record_lock, set_record_lock, wait_for_record_lock,
};
use crate::sys::sync::lock;
use record::{Held, Table, WHOLE_FILE, Wish, conflict, from_host, to_host};
use waiting::Waiters;

/// The most ranges that all owners may hold: each is memory of the host's kernel.
const MAX_RANGES: usize = 1 << 16;

/// All locks of a session.
///
/// Lock order: `waiters`, then `table`; neither is held across a call to the host.
#[derive(Debug, Default)]
pub struct Locks {
    table: Mutex<Table>,
    /// Entries of the table, so that nobody looks who need not.
    entries: AtomicUsize,
    waiters: Mutex<Waiters>,
    one_less_waits: Condvar,
}

impl Locks {
    /// What an owner has of a file.
    fn file_of(&self, node: NodeId, owner: LockOwner) -> Option<(Arc<GuestFd>, bool)> {
        let table = lock(&self.table);
        let held = table.held.get(&(node, owner))?;
        Some((Arc::clone(&held.file), held.is_writable))
    }

    /// Notes the file that an owner locks by; gives the one that another thread
    /// was quicker to note. `None` where it is the handle's own and another owner
    /// locks by such a one: to the host the two would be one.
    fn enter(&self, node: NodeId, args: &LockArgs, opened: Opened) -> Option<Arc<GuestFd>> {
        let Opened {
            file,
            is_writable,
            is_handles,
        } = opened;
        let mut table = lock(&self.table);
        let is_others = |(owner, held): (LockOwner, &Held)| owner != args.owner && held.is_handles;
        if is_handles && table.of_node(node).any(is_others) {
            return None;
        }
        let held = table
            .held
            .entry((node, args.owner))
            .or_insert_with(|| Held {
                file: Arc::new(file),
                is_handles,
                is_writable,
                pid: args.pid,
                handles: HashSet::new(),
                ranges: Vec::new(),
            });
        held.handles.insert(args.handle);
        let file = Arc::clone(&held.file);
        self.entries.store(table.held.len(), Ordering::Relaxed);
        Some(file)
    }

    /// What another owner has locked by a handle's own file, and is in the way: the
    /// host does not tell it from the one who asks.
    fn in_the_way(&self, node: NodeId, args: &LockArgs, kind: LockKind) -> Option<FileLock> {
        let table = lock(&self.table);
        let mut others = table
            .of_node(node)
            .filter(|(owner, held)| *owner != args.owner && held.is_handles);
        others.find_map(|(_, held)| {
            let meets = |(range, held): &&(LockRange, LockKind)| {
                range.overlaps(args.range) && conflict(*held, kind)
            };
            let (range, kind) = *held.ranges.iter().find(meets)?;
            Some(FileLock {
                start: range.start,
                end: range.end,
                kind: to_host(range, Some(kind)).kind as u32,
                pid: held.pid,
            })
        })
    }

    /// Notes what the host has granted; false if the owner has closed the file
    /// meanwhile.
    fn record(&self, node: NodeId, args: &LockArgs) -> bool {
        let mut table = lock(&self.table);
        let Table { held, ranges } = &mut *table;
        let Some(held) = held.get_mut(&(node, args.owner)) else {
            return false;
        };
        held.pid = args.pid;
        held.handles.insert(args.handle);
        let before = held.ranges.len();
        held.record(args.range, args.kind);
        *ranges = *ranges - before + held.ranges.len();
        true
    }

    /// Forgets an owner that has no lock and is not about to get one: it was refused
    /// the only one that it asked for, and keeps no descriptor.
    fn drop_unused(&self, node: NodeId, owner: LockOwner) {
        self.end(node, |other, held| {
            other == owner && held.ranges.is_empty() && Arc::strong_count(&held.file) == 1
        });
    }

    /// Ends the locks of those of a file's owners that `ends` chooses.
    fn end(&self, node: NodeId, ends: impl Fn(LockOwner, &Held) -> bool) {
        if self.entries.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut table = lock(&self.table);
        let chosen = table
            .of_node(node)
            .filter(|(owner, held)| ends(*owner, held));
        let chosen: Vec<_> = chosen.map(|(owner, _)| owner).collect();
        let ended = chosen.iter().filter_map(|owner| table.remove(node, *owner));
        let ended: Vec<_> = ended.collect();
        self.entries.store(table.held.len(), Ordering::Relaxed);
        drop(table);
        for held in ended {
            let_go(held);
        }
    }

    /// An owner closed a file.
    pub fn end_owner(&self, node: NodeId, owner: LockOwner) {
        self.end(node, |other, _| other == owner);
    }

    /// A handle is released. Locks that are left of it belong to the open file
    /// itself (`F_OFD_SETLK` in the guest), for which there is no FLUSH.
    pub fn end_handle(&self, node: NodeId, handle: HandleId) {
        self.end(node, |_, held| held.handles.contains(&handle));
    }

    /// Ends the locks of a node if it is not held any more.
    pub fn end_forgotten(&self, node: NodeId, is_forgotten: impl FnOnce() -> bool) {
        if self.entries.load(Ordering::Relaxed) > 0 && is_forgotten() {
            self.end(node, |_, _| true);
        }
    }

    /// The session is over.
    pub fn clear(&self) {
        self.interrupt_all();
        let ended = std::mem::take(&mut *lock(&self.table));
        self.entries.store(0, Ordering::Relaxed);
        ended.held.into_values().for_each(let_go);
    }

    /// The lock that is in the way, with the process that holds it where it is one
    /// of this guest.
    fn describe(&self, node: NodeId, asking: LockOwner, found: RecordLock) -> FileLock {
        let (range, kind) = from_host(found);
        let table = lock(&self.table);
        let pid = table
            .of_node(node)
            .find(|(owner, held)| *owner != asking && held.ranges.contains(&(range, kind)))
            .map_or(0, |(_, held)| held.pid);
        FileLock {
            start: range.start,
            end: range.end,
            kind: found.kind as u32,
            pid,
        }
    }
}

/// A file that was opened to lock it.
struct Opened {
    file: GuestFd,
    is_writable: bool,
    /// It is the handle's own open file.
    is_handles: bool,
}

/// Ends the locks of an owner that is out of the table.
fn let_go(held: Held) {
    // A thread that waits keeps the file open, and so does the handle whose it is.
    if held.is_handles || Arc::strong_count(&held.file) > 1 {
        let everything = to_host(WHOLE_FILE, None);
        if let Err(errno) = set_record_lock(held.file.as_fd(), everything) {
            log::debug!("locks of a closed file were not ended: {errno}");
        }
    }
}

impl fs::Locks for Passthrough {
    fn getlk(&self, node: NodeId, args: &LockArgs) -> Result<FileLock> {
        self.keeps_locks(args)?;
        let handle = self.files.handles.file(node, args.handle)?;
        let Some(kind) = args.kind.filter(|_| !args.is_flock) else {
            return Err(Errno::INVAL);
        };
        // Through the owner's own file, with which its own locks do not conflict.
        if let Some(found) = self.files.locks.in_the_way(node, args, kind) {
            return Ok(found);
        }
        let wanted = to_host(args.range, Some(kind));
        let found = match self.files.locks.file_of(node, args.owner) {
            Some((file, _)) => conflicting_record_lock(file.as_fd(), wanted)?,
            None => conflicting_record_lock(handle.as_fd(), wanted)?,
        };
        Ok(match found {
            Some(found) => self.files.locks.describe(node, args.owner, found),
            None => FileLock {
                start: args.range.start,
                end: args.range.end,
                kind: libc::F_UNLCK as u32,
                pid: 0,
            },
        })
    }

    fn setlk(
        &self,
        node: NodeId,
        args: &LockArgs,
        locking: Locking,
        patience: Patience,
    ) -> Waiting<()> {
        self.keeps_locks(args)?;
        let handle = self.files.handles.file(node, args.handle)?;
        if patience == Patience::Nothing && handle.kind().is_served() {
            return Err(Failure::MustWait(Wait::ForServer));
        }
        if args.is_flock {
            self.change_flock(&handle, args, locking, patience)
        } else {
            self.change_record_lock(node, &handle, args, locking, patience)
        }
    }

    fn interrupt(&self, request: u64) {
        self.files.locks.interrupt(request);
    }

    fn interrupt_all(&self) {
        self.files.locks.interrupt_all();
    }
}

impl Passthrough {
    /// Whether locks of this kind are ours to keep; otherwise they are the guest
    /// kernel's.
    fn keeps_locks(&self, args: &LockArgs) -> Result<()> {
        let feature = if args.is_flock {
            init::FLOCK_LOCKS
        } else {
            init::POSIX_LOCKS
        };
        if self.has(feature) {
            Ok(())
        } else {
            Err(Errno::NOSYS)
        }
    }

    fn change_flock(
        &self,
        handle: &Handle,
        args: &LockArgs,
        locking: Locking,
        patience: Patience,
    ) -> Waiting<()> {
        let (now, waiting) = match args.kind {
            None => (FlockOperation::Unlock, FlockOperation::Unlock),
            Some(LockKind::Shared) => (
                FlockOperation::NonBlockingLockShared,
                FlockOperation::LockShared,
            ),
            Some(LockKind::Exclusive) => (
                FlockOperation::NonBlockingLockExclusive,
                FlockOperation::LockExclusive,
            ),
        };
        match rustix::fs::flock(handle.as_fd(), now) {
            Err(Errno::AGAIN) => {
                let request = may_wait(locking, patience)?;
                let call = || rustix::fs::flock(handle.as_fd(), waiting);
                Ok(self.files.locks.wait(request, None, call)?)
            }
            result => Ok(result?),
        }
    }

    fn change_record_lock(
        &self,
        node: NodeId,
        handle: &Handle,
        args: &LockArgs,
        locking: Locking,
        patience: Patience,
    ) -> Waiting<()> {
        let changed = self.try_record_lock(node, handle, args, locking, patience);
        if let Err(Failure::Errno(_)) = changed {
            self.files.locks.drop_unused(node, args.owner);
        }
        changed
    }

    fn try_record_lock(
        &self,
        node: NodeId,
        handle: &Handle,
        args: &LockArgs,
        locking: Locking,
        patience: Patience,
    ) -> Waiting<()> {
        let Some(kind) = args.kind else {
            let Some((file, _)) = self.files.locks.file_of(node, args.owner) else {
                return Ok(());
            };
            set_record_lock(file.as_fd(), to_host(args.range, None))?;
            self.files.locks.record(node, args);
            return Ok(());
        };
        if lock(&self.files.locks.table).ranges >= MAX_RANGES {
            return Err(Errno::NOLCK.into());
        }
        let file = self.lock_file(node, handle, args)?;
        let wanted = to_host(args.range, Some(kind));
        match set_record_lock(file.as_fd(), wanted) {
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let request = may_wait(locking, patience)?;
                let wish = Wish {
                    node,
                    owner: args.owner,
                    range: args.range,
                    kind,
                };
                let call = || wait_for_record_lock(file.as_fd(), wanted);
                self.files.locks.wait(request, Some(wish), call)?;
            }
            result => result?,
        }
        if !self.files.locks.record(node, args) {
            // Another thread of the process closed the file meanwhile.
            set_record_lock(file.as_fd(), to_host(args.range, None))?;
            return Err(Errno::BADF.into());
        }
        Ok(())
    }

    /// The file by which an owner locks: as writable as the handle that it asks
    /// with.
    fn lock_file(&self, node: NodeId, handle: &Handle, args: &LockArgs) -> Result<Arc<GuestFd>> {
        match self.files.locks.file_of(node, args.owner) {
            Some((file, is_writable)) if is_writable || !handle.is_writable() => Ok(file),
            Some(_) => self.make_writable(node, handle, args),
            None => {
                let opened = self.open_lock_file(handle)?;
                self.files
                    .locks
                    .enter(node, args, opened)
                    .ok_or(Errno::NOLCK)
            }
        }
    }

    fn open_lock_file(&self, handle: &Handle) -> Result<Opened> {
        let place = self.inodes.place().map_err(|_| Errno::NOLCK)?;
        let is_writable = handle.is_writable();
        let file = if is_writable {
            // A file that may be written and not read still takes exclusive locks.
            self.inodes
                .reopen(handle.as_fd(), OFlags::RDWR)
                .or_else(|_| self.inodes.reopen(handle.as_fd(), OFlags::WRONLY))
        } else {
            self.inodes.reopen(handle.as_fd(), OFlags::RDONLY)
        };
        let (file, is_handles) = match file {
            // Its mode forbids an ordinary user's daemon to open it again.
            Err(Errno::ACCESS | Errno::PERM) => {
                (rustix::io::fcntl_dupfd_cloexec(handle.as_fd(), 0)?, true)
            }
            file => (file?, false),
        };
        Ok(Opened {
            file: place.hold(file),
            is_writable,
            is_handles,
        })
    }

    /// Goes over to a file that takes exclusive locks. The owner has shared ones
    /// only, which it may have by both files for a moment.
    fn make_writable(
        &self,
        node: NodeId,
        handle: &Handle,
        args: &LockArgs,
    ) -> Result<Arc<GuestFd>> {
        let Opened {
            file,
            is_writable,
            is_handles,
        } = self.open_lock_file(handle)?;
        let file = Arc::new(file);
        let ranges = match lock(&self.files.locks.table).held.get(&(node, args.owner)) {
            Some(held) => held.ranges.clone(),
            None => return Err(Errno::BADF),
        };
        for (range, kind) in ranges {
            set_record_lock(file.as_fd(), to_host(range, Some(kind)))?;
        }
        let mut table = lock(&self.files.locks.table);
        let held = table.held.get_mut(&(node, args.owner)).ok_or(Errno::BADF)?;
        let old = std::mem::replace(&mut held.file, Arc::clone(&file));
        held.is_writable = is_writable;
        held.is_handles = is_handles;
        // The old one is closed without the lock.
        drop(table);
        drop(old);
        Ok(file)
    }
}

/// The number of a request that has to wait for a lock, and may.
fn may_wait(locking: Locking, patience: Patience) -> Waiting<u64> {
    match (locking, patience) {
        (Locking::Try, _) => Err(Errno::AGAIN.into()),
        (Locking::Wait(request), Patience::Locks) => Ok(request),
        (Locking::Wait(_), Patience::StorageOnly) => Err(Errno::NOLCK.into()),
        (Locking::Wait(_), _) => Err(Failure::MustWait(Wait::ForLock)),
    }
}
