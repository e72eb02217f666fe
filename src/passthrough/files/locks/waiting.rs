//! Requests that wait for a lock: which they are, how one is told to give up, and
//! when they would wait for each other for ever.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rustix::io::Errno;

use crate::fs::Result;
use crate::fuse::op::LockOwner;
use crate::passthrough::files::locks::Locks;
use crate::passthrough::files::locks::record::Wish;
use crate::sys::sync::{lock, wait_for};
use crate::sys::thread::Thread;

/// INTERRUPTs of requests that do not wait yet that are remembered.
const MAX_EARLY_INTERRUPTS: usize = 16;

/// How long it is waited for an interrupted thread before it is interrupted again:
/// the first signal may have come before its call.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(1);

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
pub(super) struct Waiters {
    now: Vec<Waiter>,
    /// Requests that were interrupted before they waited.
    early: VecDeque<u64>,
}

impl Locks {
    /// Waits by `call`, which is made again when it is interrupted by nobody of
    /// ours.
    ///
    /// # Errors
    /// `EDEADLK` where owners would wait for each other in a circle; `EINTR` and
    /// `EAGAIN` when the request is interrupted; those of the call.
    pub(super) fn wait(
        &self,
        request: u64,
        wish: Option<Wish>,
        call: impl Fn() -> Result<()>,
    ) -> Result<()> {
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
        let mut wishes = HashMap::<LockOwner, Vec<&Wish>>::new();
        for wish in waiters.iter().filter_map(|waiter| waiter.wish.as_ref()) {
            wishes.entry(wish.owner).or_default().push(wish);
        }
        let table = lock(&self.table);
        // Of thousands of owners that hold a lock few wait, and each is looked at once.
        let mut next: Vec<&Wish> = vec![wish];
        while let Some(wanted) = next.pop() {
            for owner in table.holders(wanted) {
                if owner == wish.owner {
                    return true;
                }
                next.extend(wishes.remove(&owner).unwrap_or_default());
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

#[cfg(test)]
mod tests {
    use super::*;

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
