//! The counters of one thread.
//!
//! Only the thread that owns a block writes it, so a counter is raised by a load
//! and a store; a reader may see one counter raised and the next one not yet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::Done;
use crate::fuse::opcode::Opcode;

/// Upper bounds of the buckets of latency: 1 microsecond and its doubles.
pub(super) const BUCKETS: usize = 25;

/// Error numbers below this one have a counter; Linux has 133.
const ERRORS: usize = 134;

/// One more than the highest number of an operation.
const OPERATIONS: usize = 53;

/// A counter that one thread writes.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, more: u64) {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before.wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was counted of one operation.
#[derive(Debug)]
pub(super) struct Counts {
    /// By latency; the last one has no upper bound.
    buckets: [Counter; BUCKETS + 1],
    nanoseconds: Counter,
    request_bytes: Counter,
    reply_bytes: Counter,
    errors: Vec<Counter>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| Counter::default()),
            nanoseconds: Counter::default(),
            request_bytes: Counter::default(),
            reply_bytes: Counter::default(),
            errors: (0..ERRORS).map(|_| Counter::default()).collect(),
        }
    }
}

impl Counts {
    /// Requests.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }

    /// Requests in each bucket.
    pub(super) fn buckets(&self) -> impl Iterator<Item = u64> {
        self.buckets.iter().map(Counter::get)
    }

    /// Time that the requests took together.
    pub(super) fn time(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.get())
    }

    /// Bytes of the requests and of the replies.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.request_bytes.get(), self.reply_bytes.get())
    }

    /// Error numbers that were met, and how often.
    pub(super) fn errors(&self) -> impl Iterator<Item = (i32, u64)> {
        let errors = self.errors.iter().map(Counter::get).enumerate();
        errors
            .filter(|(_, count)| *count > 0)
            .map(|(errno, count)| (errno as i32, count))
    }

    fn add(&self, other: &Self) {
        let ours = self.buckets.iter().chain(&self.errors);
        for (ours, other) in ours.zip(other.buckets.iter().chain(&other.errors)) {
            ours.add(other.get());
        }
        self.nanoseconds.add(other.nanoseconds.get());
        self.request_bytes.add(other.request_bytes.get());
        self.reply_bytes.add(other.reply_bytes.get());
    }
}

/// The counters of one thread.
#[derive(Debug)]
pub(super) struct Block {
    /// By number; 0 is none that is served.
    operations: Vec<Counts>,
    busy: AtomicBool,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            operations: (0..OPERATIONS).map(|_| Counts::default()).collect(),
            busy: AtomicBool::new(false),
        }
    }
}

impl Block {
    /// Counts a request.
    pub(super) fn record(&self, done: &Done, time: Duration) {
        let number = done.opcode.map_or(0, |opcode| opcode as usize);
        let Some(counts) = self.operations.get(number) else {
            return;
        };
        if let Some(bucket) = counts.buckets.get(bucket_of(time)) {
            bucket.add(1);
        }
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        counts.nanoseconds.add(nanoseconds);
        counts.request_bytes.add(u64::from(done.request_bytes));
        counts.reply_bytes.add(u64::from(done.reply_bytes));
        let errno = done.error.and_then(|errno| usize::try_from(errno).ok());
        if let Some(errors) = errno.and_then(|errno| counts.errors.get(errno)) {
            errors.add(1);
        }
    }

    /// The operations that are served, each with what was counted.
    pub(super) fn operations(&self) -> impl Iterator<Item = (Opcode, &Counts)> {
        let all = Opcode::ALL.iter().copied();
        all.filter_map(|op| Some((op, self.operations.get(op as usize)?)))
    }

    /// What was counted of requests for what is not served.
    pub(super) fn unknown(&self) -> Option<&Counts> {
        self.operations.first()
    }

    /// Whether the thread is at work on a request.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// The thread begins or ends a request.
    pub(super) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// Adds what another block has; not while somebody else writes this one.
    pub(super) fn add(&self, other: &Self) {
        for (ours, other) in self.operations.iter().zip(&other.operations) {
            ours.add(other);
        }
    }
}

/// The bucket whose upper bound is the first that is not less than `time`.
fn bucket_of(time: Duration) -> usize {
    let microseconds = time.as_nanos().div_ceil(1000).max(1);
    let bucket = microseconds.next_power_of_two().trailing_zeros() as usize;
    bucket.min(BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_counters() {
        let block = Block::default();
        assert_eq!(block.operations().count(), Opcode::ALL.len());
    }

    #[test]
    fn a_time_is_in_the_bucket_whose_bound_it_reaches() {
        for (nanoseconds, bucket) in [
            (0, 0),
            (1, 0),
            (1000, 0),
            (1001, 1),
            (2000, 1),
            (2001, 2),
            (16_777_216_000, 24),
            (16_777_216_001, 25),
            (u64::MAX, 25),
        ] {
            let time = Duration::from_nanos(nanoseconds);
            assert_eq!(bucket_of(time), bucket, "{nanoseconds}");
        }
    }

    #[test]
    fn blocks_add_up() {
        let done = Done {
            opcode: Some(Opcode::Read),
            error: Some(5),
            request_bytes: 80,
            reply_bytes: 16,
        };
        let (one, sum) = (Block::default(), Block::default());
        one.record(&done, Duration::from_micros(3));
        one.record(
            &Done {
                opcode: None,
                ..done
            },
            Duration::ZERO,
        );
        sum.add(&one);
        sum.add(&one);
        let (_, read) = sum
            .operations()
            .find(|(op, _)| *op == Opcode::Read)
            .unwrap();
        assert_eq!(read.count(), 2);
        assert_eq!(read.time(), Duration::from_micros(6));
        assert_eq!(read.bytes(), (160, 32));
        assert_eq!(read.errors().collect::<Vec<_>>(), [(5, 2)]);
        assert_eq!(read.buckets().nth(2), Some(2));
        assert_eq!(sum.unknown().unwrap().count(), 2);
    }
}
