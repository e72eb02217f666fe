//! Directories that the guest reads without opening them.
//!
//! Where it need not open them (`NO_OPENDIR`), each READDIR says by the node and a
//! cookie where to go on. The streams that were read last stay open, so that a
//! listing of many requests opens its directory once, and nothing is fetched twice.

use std::sync::Mutex;

use crate::id::NodeId;
use crate::passthrough::files::handles::Handle;
use crate::sys::sync::lock;

/// Listings that are under way at a time in most work on a tree.
const MAX_LISTINGS: usize = 32;

/// Open directories, the last one used at the end, and the cookie where each goes
/// on.
#[derive(Debug, Default)]
pub struct Listings(Mutex<Vec<(Handle, u64)>>);

impl Listings {
    /// A stream of this directory that goes on at this cookie. One that begins
    /// shows what is there now, and never comes from here.
    pub fn take(&self, node: NodeId, cookie: u64) -> Option<Handle> {
        if cookie == 0 {
            return None;
        }
        let mut listings = lock(&self.0);
        let is_it = |(handle, next): &(Handle, u64)| handle.node() == node && *next == cookie;
        let place = listings.iter().rposition(is_it)?;
        Some(listings.remove(place).0)
    }

    /// Keeps a stream for the request that goes on.
    pub fn keep(&self, handle: Handle, cookie: u64) {
        let mut listings = lock(&self.0);
        let oldest = (listings.len() == MAX_LISTINGS).then(|| listings.remove(0));
        listings.push((handle, cookie));
        drop(listings);
        // Closed without the lock.
        drop(oldest);
    }

    /// Closes the stream that was not used for longest; `false` if there is none.
    pub fn close_one(&self) -> bool {
        let mut listings = lock(&self.0);
        let oldest = (!listings.is_empty()).then(|| listings.remove(0));
        drop(listings);
        oldest.is_some()
    }

    /// Closes the streams of a directory.
    pub fn remove(&self, node: NodeId) {
        let mut listings = lock(&self.0);
        let of_node = |listing: &mut (Handle, u64)| listing.0.node() == node;
        let removed: Vec<_> = listings.extract_if(.., of_node).collect();
        drop(listings);
        drop(removed);
    }

    /// Closes all.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *lock(&self.0));
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passthrough::inodes::fd_budget::FdBudget;

    fn directory(node: u64) -> Handle {
        let file = std::fs::File::open("/").unwrap();
        let place = FdBudget::new(1).reserve(|| false).unwrap();
        Handle::directory(NodeId(node), place.hold(file.into()))
    }

    #[test]
    fn a_stream_is_found_by_its_node_and_where_it_goes_on() {
        let listings = Listings::default();
        listings.keep(directory(5), 100);
        assert!(listings.take(NodeId(5), 99).is_none());
        assert!(listings.take(NodeId(6), 100).is_none());
        assert!(listings.take(NodeId(5), 100).is_some());
        assert!(listings.take(NodeId(5), 100).is_none());
    }

    #[test]
    fn a_listing_that_begins_reads_anew() {
        let listings = Listings::default();
        listings.keep(directory(5), 0);
        assert!(listings.take(NodeId(5), 0).is_none());
    }

    #[test]
    fn only_the_last_ones_are_kept() {
        let listings = Listings::default();
        for node in 0..=MAX_LISTINGS as u64 {
            listings.keep(directory(node), 1);
        }
        assert!(listings.take(NodeId(0), 1).is_none());
        assert!(listings.close_one());
        assert!(listings.take(NodeId(1), 1).is_none());
        listings.remove(NodeId(2));
        assert!(listings.take(NodeId(2), 1).is_none());
        assert!(listings.take(NodeId(3), 1).is_some());
        listings.clear();
        assert!(!listings.close_one());
    }
}
