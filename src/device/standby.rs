//! The standby of a request queue: a second thread, which serves it while the first one
//! waits for a disk.
//!
//! Handing a request to another thread costs two context switches, often more than the
//! disk access itself. So where a request waits for a disk, is the last of its batch and
//! has none behind it in the ring, the queue's thread waits itself and lends the queue:
//!
//! 1. the request becomes one in flight, and the guest is asked to kick for the next one;
//!    if that is there already, the request is handed to a helper;
//! 2. the shift ends;
//! 3. the kick's eventfd is added to what the standby waits with, which wakes it if the
//!    guest has kicked by then;
//! 4. the request is served, with `Patience::Storage`;
//! 5. the eventfd is taken away from the standby;
//! 6. the shift is begun again, and the request for a kick withdrawn, unless the standby
//!    has the shift;
//! 7. the request is handed back. The thread serves on if it has the shift; otherwise the
//!    standby does, which asks for a kick when it has finished.
//!
//! That is two system calls, and the standby is woken only if there is a request. It
//! hands everything that waits to helpers. No kick is lost: the thread that read it begins
//! the next shift and checks the ring. It may find nothing to do, or the ring stopped.
//!
//! What waits for a remote file system is always handed over: it may take long, and a
//! thread of the library that waits keeps the daemon from ending.

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
