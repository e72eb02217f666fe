//! Telling a migration where nodes are and what changes.
//!
//! While none is prepared, this is one relaxed load of a flag for each operation
//! that finds, moves or removes a name.

use std::ffi::CStr;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use crate::id::NodeId;
use crate::sys::sync::{read, write};

/// What wants to know about names.
///
/// It is told after the fact, by the thread that made the change: whoever looks
/// at the host after this was set sees the change or is told of it.
pub trait Tracker: Debug + Send + Sync {
    /// A lookup of `name` in `parent` led to a node.
    fn found(&self, node: NodeId, parent: NodeId, name: &CStr);

    /// `name` in `parent` was removed, or leads to something else.
    fn changed(&self, parent: NodeId, name: &CStr);

    /// The guest does not hold a node any more.
    fn forgotten(&self, node: NodeId);
}

/// Who is told, if anybody.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    is_on: AtomicBool,
    tracker: RwLock<Option<Arc<dyn Tracker>>>,
}

impl Tracking {
    /// Tells `tracker` from now on.
    pub(super) fn set(&self, tracker: Option<Arc<dyn Tracker>>) {
        let mut current = write(&self.tracker);
        // A flag that is a little late on another core does no harm: the next
        // thing is to start a thread, which takes longer.
        self.is_on.store(tracker.is_some(), Ordering::Release);
        *current = tracker;
    }

    /// Tells the tracker, if there is one.
    pub(super) fn tell(&self, what: impl FnOnce(&dyn Tracker)) {
        if self.is_on.load(Ordering::Relaxed) {
            self.tell_now(what);
        }
    }

    #[cold]
    fn tell_now(&self, what: impl FnOnce(&dyn Tracker)) {
        if let Some(tracker) = &*read(&self.tracker) {
            what(&**tracker);
        }
    }
}
