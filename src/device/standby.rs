//! The second thread of a request queue, which serves it while the first one
//! waits for a disk.
//!
//! To hand a request to another thread costs two switches of threads, which is
//! more than most of what waits for a disk takes. So the first thread waits
//! itself where it has nothing else to do, and lends the queue: the standby
//! listens to the queue's kicks meanwhile. That costs two system calls, and the
//! standby is woken only if there is a request.

use std::sync::{OnceLock, Weak};

use super::vring::{Events, Vring};

/// The standbys of a device, by their queues.
#[derive(Default)]
pub(super) struct Standbys {
    /// The library's threads hold the device in turn.
    events: OnceLock<Vec<Weak<dyn Events>>>,
}

/// A queue whose kicks go to its standby, until this is dropped.
pub(super) struct Lent(Vring);

impl Standbys {
    /// Names what the threads wait with.
    pub(super) fn set(&self, events: Vec<Weak<dyn Events>>) {
        // There are none but these.
        let _ = self.events.set(events);
    }

    /// Lends a queue to standby number `index`, whose thread will hear of `event`
    /// at each kick; `None` if that cannot be.
    pub(super) fn lend(&self, index: usize, vring: &Vring, event: u64) -> Option<Lent> {
        let events = self.events.get()?.get(index)?.upgrade()?;
        vring.lend(events, event).then(|| Lent(vring.clone()))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.take_back();
    }
}
