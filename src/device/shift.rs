//! Which thread serves a queue, and which of its chains it is serving.
//!
//! One thread at a time has the shift: it takes chains from the ring and serves them in
//! order. If it stays in one request for too long, the shift is taken over for another
//! thread, and the request becomes one in flight.
//!
//! ```text
//!             begin               request_begins            about_to_wait
//!   Nobody ----------> Between <------------------> InRequest ----------> AboutToWait
//!      ^                  |        request_ends         |                      |
//!      +------- end ------+                             +------- take_over ----+
//!      |                                                           |
//!      +--------------------------------------------------- ChangesHands
//! ```
//!
//! The state is one word, so that a request costs its thread one store and one
//! compare-and-exchange. By the latter a thread learns that its shift was taken over
//! before it replies. (With a mutex instead, GETATTR took 5 % more processor time.)

use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::sys::sync::{lock, wait_for};

/// The most chains that a thread takes at once.
pub(super) const BATCH: usize = 1 << PLACE_BITS;

const STATE_BITS: u32 = 3;
const PLACE_BITS: u32 = 6;
/// Two samples of the word, 20 ms apart, must not see the same count for two requests.
const COUNT_BITS: u32 = 14;

const PLACE_SHIFT: u32 = STATE_BITS;
const COUNT_SHIFT: u32 = PLACE_SHIFT + PLACE_BITS;
/// 41 bits are left for the number of the shift, which are used up after 25 days of one
/// shift per microsecond.
const NUMBER_SHIFT: u32 = COUNT_SHIFT + COUNT_BITS;

/// Nobody has the shift.
const NOBODY: u64 = 0;
/// A thread has it, and is in no request.
const BETWEEN: u64 = 1;
/// A thread has it, and is in a request.
const IN_REQUEST: u64 = 2;
/// The same, and it is about to wait there.
const ABOUT_TO_WAIT: u64 = 3;
/// It is being taken from a thread.
const CHANGES_HANDS: u64 = 4;

const STATE_MASK: u64 = (1 << STATE_BITS) - 1;

/// The shift of one queue.
pub(super) struct Shift {
    word: AtomicU64,
    /// The chains of the thread that has it.
    chains: [AtomicU16; BATCH],
    taken: AtomicUsize,
    /// Chains that were taken by a thread before, and not begun.
    left: Mutex<Vec<u16>>,
    /// Threads that wait for the end; checked because `notify_all` costs a system call.
    waiting: AtomicUsize,
    ends_lock: Mutex<()>,
    ends: Condvar,
}

/// The right to serve a queue.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn {
    number: u64,
    count: u64,
    place: u64,
}

/// A request that a thread is in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct InRequest(u64);

impl Turn {
    /// The number of the shift.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn word(&self, state: u64) -> u64 {
        let count = self.count & ((1 << COUNT_BITS) - 1);
        self.number << NUMBER_SHIFT | count << COUNT_SHIFT | self.place << PLACE_SHIFT | state
    }
}

impl Shift {
    /// Nobody has it.
    pub(super) fn new() -> Self {
        Self {
            word: AtomicU64::new(NOBODY),
            chains: [const { AtomicU16::new(0) }; BATCH],
            taken: AtomicUsize::new(0),
            left: Mutex::default(),
            waiting: AtomicUsize::new(0),
            ends_lock: Mutex::default(),
            ends: Condvar::new(),
        }
    }

    /// Begins a shift, after waiting for the end of the current one.
    pub(super) fn begin(&self) -> Turn {
        loop {
            if let Some(turn) = self.try_begin() {
                return turn;
            }
            self.wait_for_end(Duration::from_secs(1));
        }
    }

    /// Begins a shift if there is none.
    pub(super) fn try_begin(&self) -> Option<Turn> {
        let word = self.word.load(Ordering::Relaxed);
        let turn = Turn {
            number: (word >> NUMBER_SHIFT).wrapping_add(1),
            count: 0,
            place: 0,
        };
        (word & STATE_MASK == NOBODY && self.change(word, turn.word(BETWEEN))).then_some(turn)
    }

    /// Ends a shift whose thread is in no request.
    pub(super) fn end(&self, turn: Turn) {
        self.set(turn.word(NOBODY));
    }

    /// Waits until nobody has it, or for some time.
    pub(super) fn wait_for_end(&self, most: Duration) {
        let guard = lock(&self.ends_lock);
        // Whoever ends it after the next line sees this.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if self.word.load(Ordering::SeqCst) & STATE_MASK != NOBODY {
            let _ = wait_for(&self.ends, guard, most);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn set(&self, ended: u64) {
        self.word.store(ended, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&self.ends_lock);
            self.ends.notify_all();
        }
    }

    fn change(&self, from: u64, to: u64) -> bool {
        self.word
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Says which chains the thread will serve, at most [`BATCH`].
    pub(super) fn set_chains(&self, _turn: &Turn, heads: &[u16]) {
        for (chain, head) in self.chains.iter().zip(heads) {
            chain.store(*head, Ordering::Relaxed);
        }
        self.taken.store(heads.len(), Ordering::Relaxed);
    }

    /// The thread begins with its chain number `place`.
    pub(super) fn request_begins(&self, turn: &mut Turn, place: usize) {
        turn.count = turn.count.wrapping_add(1);
        turn.place = place as u64;
        // Nobody else changes the word of a thread that is between two requests.
        self.word.store(turn.word(IN_REQUEST), Ordering::Release);
    }

    /// The thread has done what it can for the request; `false` where its shift was
    /// taken over meanwhile.
    #[must_use]
    pub(super) fn request_ends(&self, turn: &Turn) -> bool {
        let between = turn.word(BETWEEN);
        self.change(turn.word(IN_REQUEST), between)
            || self.change(turn.word(ABOUT_TO_WAIT), between)
    }

    /// The request that a thread is in, and whether it is about to wait there.
    pub(super) fn in_request(&self) -> Option<(InRequest, bool)> {
        let word = self.word.load(Ordering::Acquire);
        let request = InRequest(word & !STATE_MASK);
        match word & STATE_MASK {
            IN_REQUEST => Some((request, false)),
            ABOUT_TO_WAIT => Some((request, true)),
            _ => None,
        }
    }

    /// Whether a thread has it.
    pub(super) fn is_held(&self) -> bool {
        self.word.load(Ordering::SeqCst) & STATE_MASK != NOBODY
    }

    /// The thread that is in a request is about to wait; `false` where none is.
    pub(super) fn about_to_wait(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word & STATE_MASK == IN_REQUEST && self.change(word, word & !STATE_MASK | ABOUT_TO_WAIT)
    }

    /// Takes the shift from the thread if it is still in this request: the next thread to
    /// ask for it gets it. Before that, `hand_over` receives the number of the shift and
    /// the head of the request's chain.
    pub(super) fn take_over(&self, request: InRequest, hand_over: impl FnOnce(u64, u16)) -> bool {
        let changes = request.0 | CHANGES_HANDS;
        if !self.change(request.0 | IN_REQUEST, changes)
            && !self.change(request.0 | ABOUT_TO_WAIT, changes)
        {
            return false;
        }
        let place = (request.0 >> PLACE_SHIFT) as usize % BATCH;
        let taken = self.taken.load(Ordering::Relaxed);
        let mut heads = self.chains.iter().take(taken).skip(place);
        let head = heads.next().map_or(0, |head| head.load(Ordering::Relaxed));
        lock(&self.left).extend(heads.map(|head| head.load(Ordering::Relaxed)));
        hand_over(request.0 >> NUMBER_SHIFT, head);
        self.set(request.0 | NOBODY);
        true
    }

    /// The thread leaves chains that it has taken and not begun.
    pub(super) fn leave(&self, heads: &[u16]) {
        lock(&self.left).extend_from_slice(heads);
    }

    /// Moves chains that were left into `heads`, at most [`BATCH`]; returns `false` if
    /// there are none.
    pub(super) fn take_left(&self, heads: &mut Vec<u16>) -> bool {
        let mut left = lock(&self.left);
        let count = left.len().min(BATCH);
        heads.extend(left.drain(..count));
        count > 0
    }

    /// Drops the chains that were left and returns their number.
    pub(super) fn drop_left(&self) -> u16 {
        let mut left = lock(&self.left);
        let count = left.len() as u16;
        left.clear();
        count
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn one_thread_at_a_time_has_the_shift() {
        let shift = Shift::new();
        let turn = shift.begin();
        assert!(shift.is_held());
        assert!(shift.try_begin().is_none());
        shift.end(turn);
        assert!(!shift.is_held());
        let again = shift.try_begin().unwrap();
        shift.end(again);
    }

    #[test]
    fn only_a_thread_in_that_request_is_relieved() {
        let shift = Shift::new();
        let mut turn = shift.begin();
        assert_eq!(shift.in_request(), None);
        assert!(!shift.about_to_wait());
        shift.set_chains(&turn, &[7, 8, 9]);
        shift.request_begins(&mut turn, 0);
        let (first, is_urgent) = shift.in_request().unwrap();
        assert!(!is_urgent);
        assert!(shift.request_ends(&turn));
        assert!(!shift.take_over(first, |_, _| panic!("it is over")));
        shift.request_begins(&mut turn, 1);
        assert!(!shift.take_over(first, |_, _| panic!("this is the second")));
        assert!(shift.about_to_wait());
        let (second, is_urgent) = shift.in_request().unwrap();
        assert!(is_urgent);
        let mut got = None;
        assert!(shift.take_over(second, |number, head| got = Some((number, head))));
        assert_eq!(got, Some((turn.number(), 8)));
        assert!(!shift.request_ends(&turn));
        let mut heads = Vec::new();
        assert!(shift.take_left(&mut heads));
        assert_eq!(heads, [9]);
        assert!(!shift.take_left(&mut heads));
        let next = shift.try_begin().unwrap();
        assert!(!shift.request_ends(&turn), "it is another one's");
        shift.end(next);
    }

    #[test]
    fn requests_at_the_same_place_are_told_apart() {
        let shift = Shift::new();
        let mut turn = shift.begin();
        shift.set_chains(&turn, &[1]);
        let mut seen = Vec::new();
        for _ in 0..1000 {
            shift.request_begins(&mut turn, 0);
            seen.push(shift.in_request().unwrap().0.0);
            assert!(shift.request_ends(&turn));
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
        shift.end(turn);
    }

    /// Each chain is served by exactly one: by a thread that ended its request, or by
    /// the one that took the shift over.
    #[test]
    fn no_chain_is_lost_and_none_is_served_twice() {
        const CHAINS: u16 = 20_000;
        let shift = Shift::new();
        let served: Vec<AtomicUsize> = (0..CHAINS).map(|_| AtomicUsize::new(0)).collect();
        let next = AtomicU16::new(0);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    if let Some((request, _)) = shift.in_request() {
                        shift.take_over(request, |_, head| {
                            served[usize::from(head)].fetch_add(1, Ordering::Relaxed);
                        });
                    }
                    thread::yield_now();
                }
            });
            let servers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        'shifts: loop {
                            let mut turn = shift.begin();
                            let mut heads = Vec::new();
                            if !shift.take_left(&mut heads) {
                                // Under the shift, as from a ring.
                                let start = next.load(Ordering::Relaxed);
                                heads.extend(start..(start + 5).min(CHAINS));
                                next.store(start + heads.len() as u16, Ordering::Relaxed);
                            }
                            if heads.is_empty() {
                                shift.end(turn);
                                return;
                            }
                            shift.set_chains(&turn, &heads);
                            for (place, head) in heads.iter().enumerate() {
                                shift.request_begins(&mut turn, place);
                                if place == 2 {
                                    thread::yield_now();
                                }
                                if !shift.request_ends(&turn) {
                                    continue 'shifts;
                                }
                                served[usize::from(*head)].fetch_add(1, Ordering::Relaxed);
                            }
                            shift.end(turn);
                        }
                    })
                })
                .collect();
            for server in servers {
                server.join().unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        // What a server that was relieved had left is taken by the others.
        assert!(served.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    }
}
