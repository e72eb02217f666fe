//! Where nodes are: what was found while the guest was still being served.
//!
//! A place is a name in another node. Names that changed meanwhile are noted;
//! a place with such a name has to be looked at again before it is believed. So
//! nothing has to be undone, whatever order the threads come in.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::id::NodeId;
use crate::passthrough::Tracker;
use crate::sys::sync::lock;

/// Shards of the map: the threads of queues seldom meet.
const SHARDS: usize = 16;

/// Changed names that are remembered; beyond that all are looked at again.
const MAX_CHANGED: usize = 1 << 18;

/// A name in a node that the guest holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The directory.
    pub parent: NodeId,
    /// The name.
    pub name: Box<[u8]>,
}

/// Names that changed, by their directory.
#[derive(Debug, Default)]
struct Changed {
    names: HashMap<NodeId, HashSet<Box<[u8]>>>,
    count: usize,
    /// There were more than are remembered.
    is_full: bool,
}

/// What was found and what changed.
#[derive(Debug, Default)]
pub struct Places {
    found: [Mutex<HashMap<NodeId, Place>>; SHARDS],
    changed: Mutex<Changed>,
    /// Nobody needs this any more.
    stop: AtomicBool,
}

impl Places {
    /// Keeps the place of a node, unless one is known.
    pub fn keep(&self, node: NodeId, parent: NodeId, name: &[u8]) {
        if node == NodeId::ROOT {
            return;
        }
        lock(self.shard(node)).entry(node).or_insert_with(|| Place {
            parent,
            name: name.into(),
        });
    }

    /// Whether a place of this node is known.
    pub fn knows(&self, node: NodeId) -> bool {
        lock(self.shard(node)).contains_key(&node)
    }

    /// The place of a node, and whether its name has changed since.
    pub fn get(&self, node: NodeId) -> Option<(Place, bool)> {
        let place = lock(self.shard(node)).get(&node).cloned()?;
        let changed = lock(&self.changed);
        let has_changed = changed.is_full
            || changed
                .names
                .get(&place.parent)
                .is_some_and(|names| names.contains(&place.name));
        Some((place, has_changed))
    }

    /// Tells whoever collects to stop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// What is set when collecting is of no use any more.
    pub fn stopped(&self) -> &AtomicBool {
        &self.stop
    }

    #[allow(clippy::indexing_slicing)] // There are SHARDS shards, and the index is below.
    fn shard(&self, node: NodeId) -> &Mutex<HashMap<NodeId, Place>> {
        &self.found[node.0 as usize % SHARDS]
    }
}

impl Tracker for Places {
    fn found(&self, node: NodeId, parent: NodeId, name: &CStr) {
        self.keep(node, parent, name.to_bytes());
    }

    fn changed(&self, parent: NodeId, name: &CStr) {
        let mut changed = lock(&self.changed);
        if changed.is_full {
            return;
        }
        let names = changed.names.entry(parent).or_default();
        if !names.insert(name.to_bytes().into()) {
            return;
        }
        changed.count += 1;
        if changed.count > MAX_CHANGED {
            changed.is_full = true;
            changed.names = HashMap::new();
        }
    }

    fn forgotten(&self, node: NodeId) {
        lock(self.shard(node)).remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    #[test]
    fn the_first_place_stays_until_its_node_is_forgotten() {
        let places = Places::default();
        places.found(NODE, NodeId::ROOT, c"a");
        places.found(NODE, NodeId(3), c"b");
        let (place, has_changed) = places.get(NODE).unwrap();
        assert_eq!((place.parent, &*place.name), (NodeId::ROOT, &b"a"[..]));
        assert!(!has_changed);
        places.forgotten(NODE);
        assert!(!places.knows(NODE));
    }

    #[test]
    fn a_name_that_changed_before_or_after_is_not_believed() {
        let places = Places::default();
        places.changed(NodeId::ROOT, c"a");
        places.found(NODE, NodeId::ROOT, c"a");
        assert!(places.get(NODE).unwrap().1);
        places.found(NodeId(8), NodeId(7), c"a");
        assert!(!places.get(NodeId(8)).unwrap().1);
        places.changed(NodeId(7), c"a");
        assert!(places.get(NodeId(8)).unwrap().1);
    }

    #[test]
    fn too_many_changes_are_all_changes() {
        let places = Places::default();
        places.found(NODE, NodeId::ROOT, c"a");
        for number in 0..=MAX_CHANGED as u64 {
            places.changed(NodeId(number + 10), c"x");
        }
        assert!(places.get(NODE).unwrap().1);
        assert!(lock(&places.changed).names.is_empty());
    }
}
