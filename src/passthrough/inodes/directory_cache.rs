//! Descriptors of directories that were used lately, so that most lookups need
//! not open their directory by its handle first.
//!
//! Only directories: an open file would keep its data on the disk after it was
//! removed, and leave a hidden remainder on a network file system.

use std::sync::RwLock;

use crate::id::NodeId;
use crate::sys::shared_fd::SharedFd;
use crate::sys::sync::{read, write};

/// One directory in each place; a place is chosen by the inode's number.
#[derive(Debug)]
pub struct RecentDirectories {
    places: Vec<RwLock<Option<(NodeId, SharedFd)>>>,
}

impl RecentDirectories {
    /// Keeps at most so many.
    pub fn new(places: usize) -> Self {
        Self {
            places: (0..places).map(|_| RwLock::new(None)).collect(),
        }
    }

    /// The descriptor of a directory, if it is there.
    pub fn get(&self, id: NodeId) -> Option<SharedFd> {
        match &*read(self.place(id)?) {
            Some((held, path)) if *held == id => Some(path.clone()),
            _ => None,
        }
    }

    /// Keeps a directory until another one needs its place.
    pub fn put(&self, id: NodeId, path: &SharedFd) {
        if let Some(place) = self.place(id) {
            let old = write(place).replace((id, path.clone()));
            // Closed without the lock.
            drop(old);
        }
    }

    /// Lets go of a directory.
    pub fn remove(&self, id: NodeId) {
        if let Some(place) = self.place(id) {
            let is_there = matches!(&*read(place), Some((held, _)) if *held == id);
            if is_there {
                let old = write(place).take_if(|(held, _)| *held == id);
                drop(old);
            }
        }
    }

    /// Lets go of all.
    pub fn clear(&self) {
        for place in &self.places {
            let old = write(place).take();
            drop(old);
        }
    }

    fn place(&self, id: NodeId) -> Option<&RwLock<Option<(NodeId, SharedFd)>>> {
        // Numbers of one shard are far apart: the multiplier mixes their bits.
        let mixed = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.places.get(mixed as usize % self.places.len().max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> SharedFd {
        SharedFd::new(std::fs::File::open("/").unwrap().into()).unwrap()
    }

    #[test]
    fn a_directory_stays_until_its_place_is_needed() {
        let recent = RecentDirectories::new(1);
        recent.put(NodeId(5), &path());
        assert!(recent.get(NodeId(5)).is_some());
        assert!(recent.get(NodeId(6)).is_none());
        recent.remove(NodeId(6));
        assert!(recent.get(NodeId(5)).is_some());
        recent.put(NodeId(6), &path());
        assert!(recent.get(NodeId(5)).is_none());
        recent.remove(NodeId(6));
        assert!(recent.get(NodeId(6)).is_none());
    }

    #[test]
    fn without_places_nothing_is_kept() {
        let recent = RecentDirectories::new(0);
        recent.put(NodeId(5), &path());
        assert!(recent.get(NodeId(5)).is_none());
        recent.clear();
    }
}
