//! The second thread of a request queue, which serves it while the first one
//! waits for a disk.
//!
//! To hand a request to another thread costs two switches of threads, which is
//! more than most of what waits for a disk takes. So the first thread waits
//! itself where it has nothing else to do, and lends the queue: the standby
//! listens to the queue's kicks meanwhile. That costs two system calls, and the
//! standby is woken only if there is a request.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, OnceLock, Weak};

use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringT};
use vmm_sys_util::epoll::EventSet;

use super::vring::Vring;

/// What a thread of the library waits with.
type Events<T> = VringEpollHandler<T>;

/// The standbys of a device, by their queues.
pub(super) struct Standbys<T: VhostUserBackend> {
    /// The library's threads hold the device in turn.
    events: OnceLock<Vec<Weak<Events<T>>>>,
}

/// A queue whose kicks go to its standby, until this is dropped.
pub(super) struct Lent<T: VhostUserBackend> {
    events: Arc<Events<T>>,
    vring: Vring,
    kick: RawFd,
    event: u64,
}

impl<T: VhostUserBackend> Default for Standbys<T> {
    fn default() -> Self {
        Self {
            events: OnceLock::new(),
        }
    }
}

impl<T: VhostUserBackend> Standbys<T> {
    /// Names the threads.
    pub(super) fn set(&self, threads: &[Arc<Events<T>>]) {
        let events = threads.iter().map(Arc::downgrade).collect();
        // There are none but these.
        let _ = self.events.set(events);
    }

    /// Lends a queue to standby number `index`, whose thread will hear of `event`
    /// at each kick; `None` if that cannot be.
    pub(super) fn lend(&self, index: usize, vring: &Vring, event: u64) -> Option<Lent<T>> {
        let events = self.events.get()?.get(index)?.upgrade()?;
        let state = vring.get_ref();
        let kick = state.get_kick().as_ref()?.as_raw_fd();
        // By edge: should the front end set another kick meanwhile, this one stays
        // until the front end closes it, and must not keep the thread busy.
        let each_kick = EventSet::IN | EventSet::EDGE_TRIGGERED;
        events.register_listener(kick, each_kick, event).ok()?;
        drop(state);
        Some(Lent {
            events,
            vring: vring.clone(),
            kick,
            event,
        })
    }
}

impl<T: VhostUserBackend> Drop for Lent<T> {
    fn drop(&mut self) {
        // Under the lock, so that the number still is that of the kick.
        let state = self.vring.get_ref();
        if state.get_kick().as_ref().map(AsRawFd::as_raw_fd) == Some(self.kick) {
            let _ = self
                .events
                .unregister_listener(self.kick, EventSet::IN, self.event);
        }
    }
}
