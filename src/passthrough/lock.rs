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

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::Passthrough;
use super::fd_budget::GuestFd;
use super::file_systems::Kind;
use super::handles::Handle;
use crate::fs::{Failure, Locking, Patience, Result, Wait, Waiting};
use crate::fuse::abi::FileLock;
use crate::fuse::flags::init;
use crate::fuse::op::{LockArgs, LockKind, LockOwner, LockRange};
use crate::id::{HandleId, NodeId};
use crate::sys::lock::{
    RecordLock, conflicting_record_lock, set_record_lock, wait_for_record_lock,
};
use crate::sys::locks::{lock, wait_for};
use crate::sys::thread::Thread;

/// The most ranges that all owners may hold: each is memory of the host's kernel.
const MAX_RANGES: usize = 1 << 16;

/// INTERRUPTs of requests that do not wait yet that are remembered.
const MAX_EARLY_INTERRUPTS: usize = 16;

/// How long it is waited for an interrupted thread before it is interrupted again:
/// the first signal may have come before its call.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(1);

/// All bytes that there are and will be.
const WHOLE_FILE: LockRange = LockRange {
    start: 0,
    end: i64::MAX as u64,
};

impl LockRange {
    fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

fn conflict(one: LockKind, other: LockKind) -> bool {
    one == LockKind::Exclusive || other == LockKind::Exclusive
}

/// A lock as the host takes it; no kind unlocks.
fn to_host(range: LockRange, kind: Option<LockKind>) -> RecordLock {
    let len = match range.end {
        end if end >= WHOLE_FILE.end => 0,
        end => end.saturating_sub(range.start).saturating_add(1),
    };
    let kind = match kind {
        Some(LockKind::Shared) => libc::F_RDLCK,
        Some(LockKind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    RecordLock {
        kind: kind as i16,
        start: range.start.cast_signed(),
        len: len.cast_signed(),
    }
}

/// A lock as the host tells it.
fn from_host(found: RecordLock) -> (LockRange, LockKind) {
    let start = found.start.cast_unsigned();
    let end = match found.len {
        0 => WHOLE_FILE.end,
        len => start.saturating_add(len.cast_unsigned()).saturating_sub(1),
    };
    let kind = if i32::from(found.kind) == libc::F_RDLCK {
        LockKind::Shared
    } else {
        LockKind::Exclusive
    };
    (LockRange { start, end }, kind)
}

/// What one owner has locked of one file.
#[derive(Debug)]
struct Held {
    file: Arc<GuestFd>,
    is_writable: bool,
    /// The process that locked last, as the guest numbers it.
    pid: u32,
    /// The handles that it locked by.
    handles: HashSet<HandleId>,
    /// Ranges that do not overlap.
    ranges: Vec<(LockRange, LockKind)>,
}

impl Held {
    /// Records that a range was locked, or unlocked.
    fn record(&mut self, range: LockRange, kind: Option<LockKind>) {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 2);
        for &(old, old_kind) in &self.ranges {
            if !old.overlaps(range) {
                ranges.push((old, old_kind));
                continue;
            }
            if old.start < range.start {
                let end = range.start - 1;
                ranges.push((LockRange { end, ..old }, old_kind));
            }
            if old.end > range.end {
                let start = range.end + 1;
                ranges.push((LockRange { start, ..old }, old_kind));
            }
        }
        if let Some(kind) = kind {
            let mut range = range;
            // One range where the host has one: neighbours of the same kind join.
            ranges.retain(|&(old, old_kind)| {
                let meets = old.end.checked_add(1) == Some(range.start)
                    || range.end.checked_add(1) == Some(old.start);
                if meets && old_kind == kind {
                    range.start = range.start.min(old.start);
                    range.end = range.end.max(old.end);
                }
                !(meets && old_kind == kind)
            });
            ranges.push((range, kind));
        }
        self.ranges = ranges;
    }

    fn conflicts(&self, range: LockRange, kind: LockKind) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|(held, held_kind)| held.overlaps(range) && conflict(*held_kind, kind))
    }
}

/// Record locks by file and owner.
#[derive(Debug, Default)]
struct Table {
    held: BTreeMap<(NodeId, LockOwner), Held>,
    /// Ranges of all of them.
    ranges: usize,
}

impl Table {
    /// All that is locked of a file.
    fn of_node(&self, node: NodeId) -> impl Iterator<Item = (LockOwner, &Held)> {
        let all = (node, LockOwner(0))..=(node, LockOwner(u64::MAX));
        let of_node = self.held.range(all);
        of_node.map(|((_, owner), held)| (*owner, held))
    }

    /// The owners in the way of a lock.
    fn holders(&self, wish: &Wish) -> impl Iterator<Item = LockOwner> {
        self.of_node(wish.node)
            .filter(|(owner, held)| *owner != wish.owner && held.conflicts(wish.range, wish.kind))
            .map(|(owner, _)| owner)
    }

    /// Takes out what an owner has of a file.
    fn remove(&mut self, node: NodeId, owner: LockOwner) -> Option<Held> {
        let held = self.held.remove(&(node, owner))?;
        self.ranges -= held.ranges.len();
        Some(held)
    }
}

/// A record lock that somebody waits for.
#[derive(Clone, Copy, Debug)]
struct Wish {
    node: NodeId,
    owner: LockOwner,
    range: LockRange,
    kind: LockKind,
}

/// A request that waits for a lock.
#[derive(Debug)]
struct Waiter {
    request: u64,
    thread: Thread,
    /// A record lock; nothing is known of who holds locks of `flock(2)`.
    wish: Option<Wish>,
    /// What it is to say when it is interrupted.
    interrupted: Option<Errno>,
}

#[derive(Debug, Default)]
struct Waiters {
    now: Vec<Waiter>,
    /// Requests that were interrupted before they waited.
    early: VecDeque<u64>,
}

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
    /// was quicker to note.
    fn enter(
        &self,
        node: NodeId,
        args: &LockArgs,
        file: GuestFd,
        is_writable: bool,
    ) -> Arc<GuestFd> {
        let mut table = lock(&self.table);
        let held = table
            .held
            .entry((node, args.owner))
            .or_insert_with(|| Held {
                file: Arc::new(file),
                is_writable,
                pid: args.pid,
                handles: HashSet::new(),
                ranges: Vec::new(),
            });
        held.handles.insert(args.handle);
        let file = Arc::clone(&held.file);
        self.entries.store(table.held.len(), Ordering::Relaxed);
        file
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

    /// Waits by `call`, which is made again when it is interrupted by nobody of
    /// ours.
    ///
    /// # Errors
    /// `EDEADLK` where owners would wait for each other in a circle; `EINTR` and
    /// `EAGAIN` when the request is interrupted; those of the call.
    fn wait(&self, request: u64, wish: Option<Wish>, call: impl Fn() -> Result<()>) -> Result<()> {
        self.begin(request, wish)?;
        let result = loop {
            if let Some(errno) = self.interrupted(request) {
                break Err(errno);
            }
            match call() {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        self.finish(request);
        result
    }

    /// Enters a request into those that wait.
    fn begin(&self, request: u64, wish: Option<Wish>) -> Result<()> {
        let mut waiters = lock(&self.waiters);
        if let Some(at) = waiters.early.iter().position(|early| *early == request) {
            waiters.early.remove(at);
            return Err(Errno::INTR);
        }
        if wish.is_some_and(|wish| self.closes_a_circle(&waiters.now, &wish)) {
            return Err(Errno::DEADLK);
        }
        waiters.now.push(Waiter {
            request,
            thread: Thread::current(),
            wish,
            interrupted: None,
        });
        Ok(())
    }

    /// Whether somebody in the way waits, maybe by way of others, for the one who
    /// is about to wait.
    fn closes_a_circle(&self, waiters: &[Waiter], wish: &Wish) -> bool {
        let table = lock(&self.table);
        let mut seen = HashSet::new();
        let mut next: Vec<LockOwner> = table.holders(wish).collect();
        while let Some(owner) = next.pop() {
            if owner == wish.owner {
                return true;
            }
            if seen.insert(owner) {
                let wishes = waiters.iter().filter_map(|waiter| waiter.wish.as_ref());
                let of_owner = wishes.filter(|wish| wish.owner == owner);
                next.extend(of_owner.flat_map(|wish| table.holders(wish)));
            }
        }
        false
    }

    /// What a request that waits is to say instead.
    fn interrupted(&self, request: u64) -> Option<Errno> {
        let waiters = lock(&self.waiters);
        let mine = Thread::current();
        let waiter = waiters
            .now
            .iter()
            .find(|waiter| waiter.request == request && waiter.thread == mine);
        waiter.and_then(|waiter| waiter.interrupted)
    }

    /// Takes a request out of those that wait.
    fn finish(&self, request: u64) {
        let mine = Thread::current();
        let mut waiters = lock(&self.waiters);
        waiters
            .now
            .retain(|waiter| waiter.request != request || waiter.thread != mine);
        drop(waiters);
        self.one_less_waits.notify_all();
    }

    /// Has a request give up waiting.
    pub fn interrupt(&self, request: u64) {
        let mut waiters = lock(&self.waiters);
        if !waiters.now.iter().any(|waiter| waiter.request == request) {
            if waiters.early.len() == MAX_EARLY_INTERRUPTS {
                waiters.early.pop_front();
            }
            waiters.early.push_back(request);
            return;
        }
        drop(waiters);
        self.interrupt_those(Errno::INTR, |waiter| waiter.request == request);
    }

    /// Has all give up waiting that wait now.
    pub fn interrupt_all(&self) {
        self.interrupt_those(Errno::AGAIN, |_| true);
    }

    /// Interrupts the chosen until they have heard it.
    fn interrupt_those(&self, errno: Errno, chosen: impl Fn(&Waiter) -> bool) {
        let mut waiters = lock(&self.waiters);
        for waiter in waiters.now.iter_mut().filter(|waiter| chosen(waiter)) {
            waiter.interrupted.get_or_insert(errno);
        }
        loop {
            // Under the lock: who is listed has not gone on to other work.
            let mut left = false;
            for waiter in waiters.now.iter().filter(|waiter| chosen(waiter)) {
                if waiter.interrupted.is_some() {
                    waiter.thread.interrupt();
                    left = true;
                }
            }
            if !left {
                return;
            }
            waiters = wait_for(&self.one_less_waits, waiters, INTERRUPT_AGAIN).0;
        }
    }
}

/// Ends the locks of an owner that is out of the table.
fn let_go(held: Held) {
    // A thread that waits keeps the file open.
    if Arc::strong_count(&held.file) > 1 {
        let everything = to_host(WHOLE_FILE, None);
        if let Err(errno) = set_record_lock(held.file.as_fd(), everything) {
            log::debug!("locks of a closed file were not ended: {errno}");
        }
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

    /// GETLK.
    pub(super) fn find_lock(&self, node: NodeId, args: &LockArgs) -> Result<FileLock> {
        self.keeps_locks(args)?;
        let handle = self.handles.file(node, args.handle)?;
        let Some(kind) = args.kind.filter(|_| !args.is_flock) else {
            return Err(Errno::INVAL);
        };
        // Through the owner's own file, with which its own locks do not conflict.
        let wanted = to_host(args.range, Some(kind));
        let found = match self.locks.file_of(node, args.owner) {
            Some((file, _)) => conflicting_record_lock(file.as_fd(), wanted)?,
            None => conflicting_record_lock(handle.as_fd(), wanted)?,
        };
        Ok(match found {
            Some(found) => self.locks.describe(node, args.owner, found),
            None => FileLock {
                start: args.range.start,
                end: args.range.end,
                kind: libc::F_UNLCK as u32,
                pid: 0,
            },
        })
    }

    /// SETLK and SETLKW.
    pub(super) fn change_lock(
        &self,
        node: NodeId,
        args: &LockArgs,
        locking: Locking,
        patience: Patience,
    ) -> Waiting<()> {
        self.keeps_locks(args)?;
        let handle = self.handles.file(node, args.handle)?;
        if patience == Patience::Nothing && handle.kind() == Kind::Served {
            return Err(Failure::MustWait(Wait::ForStorage));
        }
        if args.is_flock {
            self.change_flock(&handle, args, locking, patience)
        } else {
            self.change_record_lock(node, &handle, args, locking, patience)
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
                Ok(self.locks.wait(request, None, call)?)
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
        let Some(kind) = args.kind else {
            let Some((file, _)) = self.locks.file_of(node, args.owner) else {
                return Ok(());
            };
            set_record_lock(file.as_fd(), to_host(args.range, None))?;
            self.locks.record(node, args);
            return Ok(());
        };
        if lock(&self.locks.table).ranges >= MAX_RANGES {
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
                self.locks.wait(request, Some(wish), call)?;
            }
            result => result?,
        }
        if !self.locks.record(node, args) {
            // Another thread of the process closed the file meanwhile.
            set_record_lock(file.as_fd(), to_host(args.range, None))?;
            return Err(Errno::BADF.into());
        }
        Ok(())
    }

    /// The file by which an owner locks: as writable as the handle that it asks
    /// with.
    fn lock_file(&self, node: NodeId, handle: &Handle, args: &LockArgs) -> Result<Arc<GuestFd>> {
        match self.locks.file_of(node, args.owner) {
            Some((file, is_writable)) if is_writable || !handle.is_writable() => Ok(file),
            Some(_) => self.make_writable(node, handle, args),
            None => {
                let (file, is_writable) = self.open_lock_file(handle)?;
                Ok(self.locks.enter(node, args, file, is_writable))
            }
        }
    }

    fn open_lock_file(&self, handle: &Handle) -> Result<(GuestFd, bool)> {
        let place = self.place().map_err(|_| Errno::NOLCK)?;
        let is_writable = handle.is_writable();
        let file = if is_writable {
            // A file that may be written and not read still takes exclusive locks.
            self.reopen(handle.as_fd(), OFlags::RDWR)
                .or_else(|_| self.reopen(handle.as_fd(), OFlags::WRONLY))
        } else {
            self.reopen(handle.as_fd(), OFlags::RDONLY)
        }?;
        Ok((place.hold(file), is_writable))
    }

    /// Goes over to a file that takes exclusive locks. The owner has shared ones
    /// only, which it may have by both files for a moment.
    fn make_writable(
        &self,
        node: NodeId,
        handle: &Handle,
        args: &LockArgs,
    ) -> Result<Arc<GuestFd>> {
        let (file, is_writable) = self.open_lock_file(handle)?;
        let file = Arc::new(file);
        let ranges = match lock(&self.locks.table).held.get(&(node, args.owner)) {
            Some(held) => held.ranges.clone(),
            None => return Err(Errno::BADF),
        };
        for (range, kind) in ranges {
            set_record_lock(file.as_fd(), to_host(range, Some(kind)))?;
        }
        let mut table = lock(&self.locks.table);
        let held = table.held.get_mut(&(node, args.owner)).ok_or(Errno::BADF)?;
        let old = std::mem::replace(&mut held.file, Arc::clone(&file));
        held.is_writable = is_writable;
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

#[cfg(test)]
mod tests {
    use super::super::fd_budget::FdBudget;
    use super::*;

    fn range(start: u64, end: u64) -> LockRange {
        LockRange { start, end }
    }

    fn held() -> Held {
        let file = std::fs::File::open("/dev/null").unwrap();
        Held {
            file: Arc::new(
                FdBudget::new(1)
                    .reserve(|| false)
                    .unwrap()
                    .hold(file.into()),
            ),
            is_writable: false,
            pid: 1,
            handles: HashSet::new(),
            ranges: Vec::new(),
        }
    }

    /// The kind of each of the first bytes, and of the last one.
    fn bytes(held: &Held) -> Vec<Option<LockKind>> {
        let at = |byte: u64| {
            let mut found = held.ranges.iter();
            let found = found.find(|(range, _)| (range.start..=range.end).contains(&byte));
            found.map(|(_, kind)| *kind)
        };
        (0..32).chain([WHOLE_FILE.end]).map(at).collect()
    }

    #[test]
    fn the_record_of_ranges_is_right_for_each_byte() {
        let mut held = held();
        let mut model = [None; 33];
        let mut state: u64 = 1;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..5000 {
            let start = random(32);
            let end = match random(4) {
                0 => WHOLE_FILE.end,
                _ => start + random(32 - start),
            };
            let kinds = [None, Some(LockKind::Shared), Some(LockKind::Exclusive)];
            let kind = kinds[random(3) as usize];
            held.record(range(start, end), kind);
            for (byte, place) in (0..32).chain([WHOLE_FILE.end]).zip(&mut model) {
                if (start..=end).contains(&byte) {
                    *place = kind;
                }
            }
            assert_eq!(bytes(&held), model);
            assert!(held.ranges.len() <= 33, "neighbours join");
        }
    }

    #[test]
    fn ranges_survive_the_way_to_the_host_and_back() {
        for (start, end) in [(0, 0), (5, 9), (7, WHOLE_FILE.end), (0, WHOLE_FILE.end - 1)] {
            let wanted = to_host(range(start, end), Some(LockKind::Exclusive));
            assert_eq!(from_host(wanted), (range(start, end), LockKind::Exclusive));
        }
        assert_eq!(to_host(WHOLE_FILE, None).len, 0);
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered_of_interrupts() {
        let locks = Locks::default();
        for request in 0..100 {
            locks.interrupt(request);
        }
        assert_eq!(lock(&locks.waiters).early.len(), MAX_EARLY_INTERRUPTS);
        assert_eq!(locks.wait(99, None, || Ok(())), Err(Errno::INTR));
        assert_eq!(locks.wait(99, None, || Ok(())), Ok(()));
        assert_eq!(locks.wait(1, None, || Ok(())), Ok(()));
    }
}
