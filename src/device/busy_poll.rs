//! Polling a queue for a while before its thread sleeps (`--poll-us`).
//!
//! To be woken costs a system call, a switch of threads and, in a real guest,
//! an exit of the virtual machine; a request that comes while the thread still
//! polls costs none of these. Polling is worth its processor time only while
//! requests follow each other closely, so it goes by what it would have brought:
//! after a gap that was too long it is left out, until a gap is short again.

use std::time::{Duration, Instant};

/// Looks at the ring between two looks at the clock.
const LOOKS: usize = 16;

/// Whether and for how long one queue is polled.
#[derive(Debug, Default)]
pub(super) struct BusyPoll {
    /// How long at most; nothing is ever polled with zero.
    most: Duration,
    /// Whether the last gap was short enough.
    is_worth_it: bool,
    /// Since when there was nothing to do.
    idle_since: Option<Instant>,
}

impl BusyPoll {
    /// Polls for at most `most`.
    pub(super) fn new(most: Duration) -> Self {
        Self {
            most,
            ..Self::default()
        }
    }

    /// Whether anything is ever polled.
    pub(super) fn is_wanted(&self) -> bool {
        !self.most.is_zero()
    }

    /// Polls until `has_come` or the time is up; gives whether it has come.
    pub(super) fn poll(&mut self, has_come: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        self.idle_since = Some(start);
        if !self.is_worth_it {
            return false;
        }
        while start.elapsed() < self.most {
            for _ in 0..LOOKS {
                if has_come() {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }

    /// The thread was woken: the gap says whether the next is to be polled through.
    pub(super) fn woken(&mut self) {
        if let Some(since) = self.idle_since.take() {
            self.is_worth_it = since.elapsed() < self.most;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// How often it looks when nothing comes.
    fn looks(poll: &mut BusyPoll) -> usize {
        let looks = Cell::new(0);
        let nothing = || {
            looks.set(looks.get() + 1);
            false
        };
        assert!(!poll.poll(nothing));
        looks.get()
    }

    #[test]
    fn without_a_time_nothing_is_polled() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        assert!(!poll.is_wanted());
        for _ in 0..2 {
            assert_eq!(looks(&mut poll), 0);
            poll.woken();
        }
    }

    #[test]
    fn a_short_gap_turns_it_on_and_a_long_one_off() {
        let mut poll = BusyPoll::new(HOUR);
        assert_eq!(looks(&mut poll), 0, "nothing is known yet");
        poll.woken();
        assert!(poll.poll(|| true), "the gap was shorter than an hour");
        poll.most = Duration::from_millis(1);
        assert!(looks(&mut poll) > 0);
        poll.woken();
        assert_eq!(looks(&mut poll), 0, "the gap was longer");
    }

    #[test]
    fn what_comes_while_it_polls_is_seen() {
        let mut poll = BusyPoll::new(HOUR);
        poll.poll(|| false);
        poll.woken();
        let looks = Cell::new(0);
        assert!(poll.poll(|| {
            looks.set(looks.get() + 1);
            looks.get() == 100
        }));
    }
}
