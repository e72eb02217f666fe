//! A cap on the descriptors that are held for the guest, so that the daemon
//! keeps some for itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::io::Errno;

/// Descriptors that may be held beyond a budget: the daemon's own reserve has room for
/// them.
const MAX_BEYOND: usize = 32;

/// How many descriptors the guest may still cause to be held.
#[derive(Debug)]
pub struct FdBudget {
    left: AtomicUsize,
    /// Those that are held beyond it. They are the last to be given back.
    beyond: AtomicUsize,
    total: usize,
    reported: AtomicBool,
}

impl FdBudget {
    /// A budget of `total` descriptors.
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(total),
            beyond: AtomicUsize::new(0),
            total,
            reported: AtomicBool::new(false),
        })
    }

    /// How many descriptors are held, and how many may be.
    pub fn usage(&self) -> (usize, usize) {
        let left = self.left.load(Ordering::Relaxed);
        let beyond = self.beyond.load(Ordering::Relaxed);
        (self.total.saturating_sub(left) + beyond, self.total)
    }

    /// Takes a place for one descriptor, before it is opened; where none is
    /// left, tries to have another descriptor closed for it.
    ///
    /// # Errors
    /// `ENFILE` when there is none; said once in the log.
    pub fn reserve(self: &Arc<Self>, close_one: impl Fn() -> bool) -> Result<Place, Errno> {
        while !self.take() {
            if close_one() {
                continue;
            }
            if !self.reported.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "the guest holds all {} descriptors that it may; raise --rlimit-nofile",
                    self.total
                );
            }
            return Err(Errno::NFILE);
        }
        Ok(Place {
            budget: Arc::clone(self),
        })
    }

    /// Takes a place that [`FdBudget::give_back`] gives back, if one is left.
    #[must_use]
    pub fn take(&self) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    }

    /// The same beyond the budget, for what would be lost otherwise; not without end.
    #[must_use]
    pub fn take_beyond(&self) -> bool {
        let one_more = |beyond| (beyond < MAX_BEYOND).then_some(beyond + 1);
        self.beyond
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }

    /// Gives a place back that was taken.
    pub fn give_back(&self) {
        let one_more = |left| (left < self.total).then_some(left + 1);
        let given = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if given.is_err() {
            self.beyond.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A place for one descriptor; given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct Place {
    budget: Arc<FdBudget>,
}

impl Place {
    /// Fills the place.
    pub fn hold(self, fd: OwnedFd) -> GuestFd {
        GuestFd { fd, _place: self }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.budget.give_back();
    }
}

/// A descriptor that is held for the guest.
#[derive(Debug)]
pub struct GuestFd {
    // Closed before its place is given back: fields drop in this order.
    fd: OwnedFd,
    _place: Place,
}

impl AsFd for GuestFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_budget_says_enfile_until_a_place_is_free() {
        let budget = FdBudget::new(2);
        let first = budget.reserve(|| false).unwrap();
        let second = budget
            .reserve(|| false)
            .unwrap()
            .hold(std::fs::File::open("/").unwrap().into());
        assert_eq!(budget.reserve(|| false).unwrap_err(), Errno::NFILE);
        drop(second);
        let third = budget.reserve(|| false).unwrap();
        assert_eq!(budget.reserve(|| false).unwrap_err(), Errno::NFILE);
        drop((first, third));
        assert!(budget.reserve(|| false).is_ok());
    }

    #[test]
    fn so_many_are_held_beyond_it_and_no_more() {
        let budget = FdBudget::new(1);
        assert!(budget.take());
        let beyond = (0..1000).take_while(|_| budget.take_beyond()).count();
        assert_eq!(beyond, MAX_BEYOND);
        assert_eq!(budget.usage(), (1 + beyond, 1));
        budget.give_back();
        assert!(budget.take(), "the budget itself is as it was");
        for _ in 0..=beyond {
            budget.give_back();
        }
        assert_eq!(budget.usage(), (0, 1));
        assert!(budget.take_beyond());
    }

    #[test]
    fn a_place_is_made_where_one_can_be() {
        let budget = FdBudget::new(1);
        assert!(budget.take());
        let made = budget.reserve(|| {
            budget.give_back();
            true
        });
        assert!(made.is_ok());
    }
}
