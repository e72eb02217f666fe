//! Relieving a queue's thread that blocks where nobody could know.
//!
//! Most operations that block are known to block, and start on a thread that may. The
//! rest cannot be known: whether the host has frozen the file system, which blocks every
//! change of it; whether a disk has to spin up for a directory; whether an NFS server has
//! to recall a delegation first. The queue's thread blocks there, and would delay the
//! requests behind. So one thread, which never touches a file, samples the queues while
//! they are served. If a queue's thread is in the same request as in the last sample, it
//! is relieved, and the queue's standby serves the queue. While any thread is stuck like
//! that, requests that change something go to helpers at once, so that the standby does
//! not follow it. A thread that knows that it is about to block says so
//! (`sys::long_wait`), and is relieved at once.
//!
//! A sample takes a few microseconds. But on two busy processors any thread that wakes
//! up, of whatever process, costs more: 670 samples per second took 15 % of the throughput
//! of cached reads at depth 32, 50 per second nothing that can be measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::shift::InRequest;
use crate::sys::sync::{lock, wait_for};

/// Interval between two samples: a thread is relieved after one to two of them.
const LOOK: Duration = Duration::from_millis(20);

/// Samples without any work after which sampling pauses until there is work.
const LAST_LOOKS: u32 = 3;

/// The queues that are sampled.
pub(super) trait Queues: Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// The request that the server of a queue is in, and whether it is about to wait.
    fn in_request(&self, queue: usize) -> Option<(InRequest, bool)>;

    /// Whether any queue is served.
    fn any_is_served(&self) -> bool;

    /// Has another thread serve a queue whose server is in this request.
    fn relieve(&self, queue: usize, request: InRequest);
}

/// The thread that looks, and how it is woken.
#[derive(Default)]
pub(super) struct Relief {
    is_asleep: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    has_ended: bool,
    /// Somebody is about to wait.
    is_urgent: bool,
}

impl Relief {
    /// Somebody begins to serve a queue, which shows by now.
    pub(super) fn work_begins(&self) {
        if self.is_asleep.load(Ordering::Relaxed) {
            let _guard = lock(&self.state);
            self.is_asleep.store(false, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    /// Somebody is about to wait, which shows by now.
    pub(super) fn is_urgent(&self) {
        lock(&self.state).is_urgent = true;
        self.is_asleep.store(false, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Starts the thread; `this` is what `queues` have of it.
    ///
    /// # Errors
    /// Those of `pthread_create(3)`.
    pub(super) fn start<Q: Queues + 'static>(
        &self,
        queues: Weak<Q>,
        this: fn(&Q) -> &Self,
    ) -> std::io::Result<()> {
        let thread = thread::Builder::new()
            .name("relief".to_owned())
            .spawn(move || {
                let mut seen = Seen::default();
                while let Some(queues) = queues.upgrade()
                    && this(&queues).wait(&mut seen, &queues)
                {
                    seen.look(&*queues);
                }
            })?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        lock(&self.state).has_ended = true;
        self.wake.notify_one();
        if let Some(thread) = lock(&self.thread).take() {
            // It cannot have failed.
            let _ = thread.join();
        }
    }

    /// Waits until it is time for the next look; `false` at the end.
    fn wait(&self, seen: &mut Seen, queues: &Arc<impl Queues>) -> bool {
        let mut state = lock(&self.state);
        if seen.without_work > LAST_LOOKS {
            self.is_asleep.store(true, Ordering::Relaxed);
            drop(state);
            // Whoever begins after this look finds it asleep.
            let is_needed = queues.any_is_served();
            state = lock(&self.state);
            if is_needed {
                self.is_asleep.store(false, Ordering::Relaxed);
            }
            while self.is_asleep.load(Ordering::Relaxed) && !state.has_ended && !state.is_urgent {
                (state, _) = wait_for(&self.wake, state, Duration::from_secs(3600));
            }
            seen.without_work = 0;
        }
        if !state.has_ended && !state.is_urgent {
            (state, _) = wait_for(&self.wake, state, LOOK);
        }
        state.is_urgent = false;
        !state.has_ended
    }
}

/// What was seen.
#[derive(Default)]
struct Seen {
    /// The requests that the servers of the queues were in.
    last: Vec<Option<InRequest>>,
    /// Looks without any work.
    without_work: u32,
}

impl Seen {
    fn look(&mut self, queues: &impl Queues) {
        self.last.resize(queues.count(), None);
        for (queue, last) in self.last.iter_mut().enumerate() {
            let now = queues.in_request(queue);
            if let Some((request, is_urgent)) = now
                && (is_urgent || *last == Some(request))
            {
                queues.relieve(queue, request);
            }
            *last = now.map(|(request, _)| request);
        }
        self.without_work = if queues.any_is_served() {
            0
        } else {
            self.without_work + 1
        };
    }
}
