//! Requests in flight: handed to another thread than their queue's, or begun by a thread
//! whose shift was taken over.
//!
//! Each has a ticket. The thread that has served it gives the ticket back under the
//! vring's lock and only then replies. So a request that was failed, because its queue had
//! to stop, is not answered a second time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::sys::sync::{lock, wait_for};

/// The requests of one queue.
#[derive(Default)]
pub(super) struct InFlight {
    table: Mutex<Table>,
    none: Condvar,
    /// How often all of them were given up.
    epoch: AtomicU32,
}

#[derive(Default)]
struct Table {
    /// The heads of their chains.
    heads: Vec<Option<u16>>,
    free: Vec<u32>,
    count: usize,
    /// Whether a thread waits for the end of all; checked because `notify_all` costs a
    /// system call.
    is_awaited: bool,
}

/// One request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ticket {
    index: u32,
    epoch: u32,
}

impl InFlight {
    /// Adds a request.
    pub(super) fn add(&self, head: u16) -> Ticket {
        self.add_to(&mut lock(&self.table), head)
    }

    /// Adds a request to at most `most` others. Returns its ticket and the number of the
    /// others; `None` where there are more.
    pub(super) fn add_bounded(&self, head: u16, most: usize) -> Option<(Ticket, usize)> {
        let mut table = lock(&self.table);
        let others = table.count;
        (others <= most).then(|| (self.add_to(&mut table, head), others))
    }

    fn add_to(&self, table: &mut Table, head: u16) -> Ticket {
        table.count += 1;
        let index = match table.free.pop() {
            Some(index) => index,
            None => {
                table.heads.push(None);
                table.heads.len() as u32 - 1
            }
        };
        if let Some(slot) = table.heads.get_mut(index as usize) {
            *slot = Some(head);
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        Ticket { index, epoch }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        lock(&self.table).count
    }

    /// Whether the request was given up.
    pub(super) fn is_given_up(&self, ticket: Ticket) -> bool {
        self.epoch.load(Ordering::Relaxed) != ticket.epoch
    }

    /// Takes a request out; `false` if it was given up.
    #[must_use]
    pub(super) fn remove(&self, ticket: Ticket) -> bool {
        let mut table = lock(&self.table);
        if self.is_given_up(ticket) {
            return false;
        }
        if let Some(slot) = table.heads.get_mut(ticket.index as usize) {
            *slot = None;
        }
        table.free.push(ticket.index);
        table.count -= 1;
        if table.count == 0 && table.is_awaited {
            self.none.notify_all();
        }
        true
    }

    /// Gives all of them up and returns the heads of their chains.
    pub(super) fn give_up(&self) -> Vec<u16> {
        let mut table = lock(&self.table);
        self.epoch.fetch_add(1, Ordering::Relaxed);
        table.free.clear();
        table.count = 0;
        table.heads.drain(..).flatten().collect()
    }

    /// Waits until there are none, or for some time.
    pub(super) fn wait(&self, most: Duration) {
        let mut table = lock(&self.table);
        if table.count > 0 {
            table.is_awaited = true;
            (table, _) = wait_for(&self.none, table, most);
            table.is_awaited = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_is_not_removed_by_its_ticket() {
        let requests = InFlight::default();
        let (first, others) = requests.add_bounded(7, 2).unwrap();
        assert_eq!(others, 0);
        let (second, others) = requests.add_bounded(8, 2).unwrap();
        assert_eq!(others, 1);
        assert!(requests.remove(first));
        assert!(!requests.is_given_up(second));
        assert_eq!(requests.give_up(), [8]);
        assert_eq!(requests.count(), 0);
        let (third, _) = requests.add_bounded(8, 2).unwrap();
        assert!(requests.is_given_up(second) && !requests.is_given_up(third));
        assert!(!requests.remove(second), "it is another request");
        assert_eq!(requests.count(), 1);
        assert!(requests.remove(third));
        assert_eq!(requests.count(), 0);
    }

    #[test]
    fn there_is_a_bound() {
        let requests = InFlight::default();
        let tickets = [(); 3].map(|()| requests.add_bounded(1, 2).unwrap().0);
        assert!(requests.add_bounded(1, 2).is_none());
        assert!(tickets.into_iter().all(|ticket| requests.remove(ticket)));
        assert!(requests.add_bounded(1, 2).is_some());
    }
}
