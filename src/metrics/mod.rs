//! What the daemon counts of its work, for whoever watches it.
//!
//! Each serving thread counts in a block of its own, which no other thread
//! writes; a reader adds the blocks up. What can be asked at any time, such as the
//! number of inodes, is not counted but asked ([`Gauge`]) when somebody reads.
//! Without `--metrics-socket` and `--slow-request-ms` no clock is read and nothing
//! is counted: [`Watch::begin`] is then one comparison.

mod block;
pub mod http;
mod text;

use std::cell::OnceCell;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::fuse::opcode::Opcode;
use crate::sys::sync::lock;
use block::Block;

/// Slow requests that are logged in each [`WINDOW`].
const SLOW_LINES: u32 = 10;

/// For how long [`SLOW_LINES`] are enough.
const WINDOW: Duration = Duration::from_secs(1);

/// A number that is asked for when somebody reads.
#[derive(Clone, Debug)]
pub struct Gauge {
    /// The name behind `virtiofsd_`, in words of `a-z_`.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// The number of the queue, for one of several.
    pub queue: Option<usize>,
    /// Its value now.
    pub value: u64,
}

impl Gauge {
    /// A number of which there is one.
    pub fn new(name: &'static str, help: &'static str, value: usize) -> Self {
        Self {
            name,
            help,
            queue: None,
            value: value as u64,
        }
    }
}

/// Who has numbers to be asked for.
pub trait Gauges: Send + Sync {
    /// The numbers as they are now.
    fn gauges(&self) -> Vec<Gauge>;
}

/// What was counted, and whom to ask for the rest.
#[derive(Default)]
pub struct Metrics {
    /// The blocks of the threads that run.
    threads: Mutex<Vec<Arc<Block>>>,
    /// The sum of those that have ended.
    ended: Block,
    sources: Mutex<Vec<Weak<dyn Gauges>>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Asks `source`, as long as it is there, whenever somebody reads.
    pub fn ask(&self, source: Weak<dyn Gauges>) {
        let mut sources = lock(&self.sources);
        sources.retain(|source| source.strong_count() > 0);
        sources.push(source);
    }

    fn gauges(&self) -> Vec<Gauge> {
        let sources: Vec<_> = lock(&self.sources)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let mut gauges: Vec<_> = sources.iter().flat_map(|source| source.gauges()).collect();
        let threads = lock(&self.threads);
        let busy = threads.iter().filter(|block| block.is_busy()).count();
        gauges.push(Gauge::new(
            "serving_threads",
            "Threads that have served requests and may serve more.",
            threads.len(),
        ));
        gauges.push(Gauge::new(
            "requests_in_service",
            "Requests that a thread is at work on.",
            busy,
        ));
        gauges
    }

    /// The sum over all threads, those that have ended included.
    fn total(&self) -> Block {
        let total = Block::default();
        let threads = lock(&self.threads);
        total.add(&self.ended);
        threads.iter().for_each(|block| total.add(block));
        total
    }

    /// One line for the log.
    pub fn summary(&self) -> String {
        let mut line = String::new();
        for gauge in self.gauges() {
            let name = gauge.name.replace('_', " ");
            let queue = gauge.queue.map(|queue| format!(" of queue {queue}"));
            let _ = write!(
                line,
                "{name}{}: {}, ",
                queue.unwrap_or_default(),
                gauge.value
            );
        }
        let total = self.total();
        let mut counts: Vec<_> = total
            .operations()
            .map(|(op, of)| (of.count(), op))
            .collect();
        counts.retain(|(count, _)| *count > 0);
        counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let sum: u64 = counts.iter().map(|(count, _)| count).sum();
        let _ = write!(line, "requests: {sum}");
        for (count, op) in counts {
            let _ = write!(line, ", {}: {count}", name_of(op));
        }
        line
    }

    /// The block of the calling thread. There is one `Metrics` for a process.
    fn of_this_thread<T>(self: &Arc<Self>, with: impl FnOnce(&Block) -> T) -> T {
        thread_local! {
            static MINE: OnceCell<Mine> = const { OnceCell::new() };
        }
        MINE.with(|mine| with(&mine.get_or_init(|| Mine::new(Arc::clone(self))).block))
    }
}

/// The block of a thread; its sum stays when the thread ends.
struct Mine {
    block: Arc<Block>,
    metrics: Arc<Metrics>,
}

impl Mine {
    fn new(metrics: Arc<Metrics>) -> Self {
        let block = Arc::<Block>::default();
        lock(&metrics.threads).push(Arc::clone(&block));
        Self { block, metrics }
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        let mut threads = lock(&self.metrics.threads);
        self.metrics.ended.add(&self.block);
        threads.retain(|block| !Arc::ptr_eq(block, &self.block));
    }
}

/// How an operation is written in the metrics and in the log.
fn name_of(opcode: Opcode) -> String {
    format!("{opcode:?}").to_lowercase()
}

/// One request, when it is done.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// What it asked for; `None` where that is not served.
    pub opcode: Option<Opcode>,
    /// The error number that the guest got.
    pub error: Option<i32>,
    /// Bytes of the request, as it says itself.
    pub request_bytes: u32,
    /// Bytes of the reply.
    pub reply_bytes: u32,
}

/// What is to be seen of each request.
#[derive(Debug, Default)]
pub struct Watch {
    metrics: Option<Arc<Metrics>>,
    slow: Option<Slow>,
}

/// Which requests are slow, and how many were logged.
#[derive(Debug)]
struct Slow {
    least: Duration,
    started: OnceLock<Instant>,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    number: u64,
    lines: u32,
    left_out: u32,
}

impl Watch {
    /// Counts in `metrics`, and logs what takes `slow` or longer.
    pub fn new(metrics: Option<Arc<Metrics>>, slow: Option<Duration>) -> Self {
        Self {
            metrics,
            slow: slow.map(|least| Slow {
                least,
                started: OnceLock::new(),
                window: Mutex::default(),
            }),
        }
    }

    /// A request is about to be served. Gives the time where that is of use.
    pub fn begin(&self) -> Option<Instant> {
        if self.metrics.is_none() && self.slow.is_none() {
            return None;
        }
        if let Some(metrics) = &self.metrics {
            metrics.of_this_thread(|block| block.set_busy(true));
        }
        Some(Instant::now())
    }

    /// The request was given back without being served.
    pub fn give_back(&self, begun: Option<Instant>) {
        if let Some(metrics) = self.metrics.as_ref().filter(|_| begun.is_some()) {
            metrics.of_this_thread(|block| block.set_busy(false));
        }
    }

    /// The request that began at `begun` is done; `path` gives that of its file.
    pub fn end(&self, begun: Instant, done: Done, path: impl FnOnce() -> Option<PathBuf>) {
        let time = begun.elapsed();
        if let Some(metrics) = &self.metrics {
            metrics.of_this_thread(|block| {
                block.record(&done, time);
                block.set_busy(false);
            });
        }
        if let Some(slow) = self.slow.as_ref().filter(|slow| time >= slow.least) {
            slow.report(begun, time, done, path);
        }
    }
}

impl Slow {
    fn report(
        &self,
        begun: Instant,
        time: Duration,
        done: Done,
        path: impl FnOnce() -> Option<PathBuf>,
    ) {
        let started = *self.started.get_or_init(|| begun);
        let now = (begun + time).saturating_duration_since(started);
        let number = now.as_secs() / WINDOW.as_secs().max(1);
        let left_out = {
            let mut window = lock(&self.window);
            if window.number != number {
                window.number = number;
                window.lines = 0;
            }
            if window.lines == SLOW_LINES {
                window.left_out += 1;
                return;
            }
            window.lines += 1;
            std::mem::take(&mut window.left_out)
        };
        let operation = done.opcode.map_or_else(|| "unknown".to_owned(), name_of);
        let place = path().map_or_else(String::new, |path| format!(" on {}", path.display()));
        let result = done.error.map_or_else(String::new, |error| {
            format!(" ({})", Errno::from_raw_os_error(error))
        });
        let before = match left_out {
            0 => String::new(),
            number => format!("; {number} more before it are not in the log"),
        };
        log::warn!("slow request: {operation}{place} took {time:.1?}{result}{before}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(error: Option<i32>) -> Done {
        Done {
            opcode: Some(Opcode::Lookup),
            error,
            request_bytes: 50,
            reply_bytes: 144,
        }
    }

    #[test]
    fn what_threads_counted_stays_when_they_end() {
        let metrics = Arc::<Metrics>::default();
        let watch = Watch::new(Some(Arc::clone(&metrics)), None);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let begun = watch.begin().unwrap();
                    watch.end(begun, lookup(None), || None);
                    let begun = watch.begin().unwrap();
                    watch.end(begun, lookup(Some(2)), || None);
                });
            }
        });
        let total = metrics.total();
        let (_, lookups) = total
            .operations()
            .find(|(op, _)| *op == Opcode::Lookup)
            .unwrap();
        assert_eq!(lookups.count(), 6);
        let summary = metrics.summary();
        assert!(summary.ends_with("requests: 6, lookup: 6"), "{summary}");
        assert!(summary.contains("requests in service: 0"), "{summary}");
    }

    #[test]
    fn nothing_is_timed_that_nobody_watches() {
        assert!(Watch::default().begin().is_none());
        assert!(Watch::new(None, Some(WINDOW)).begin().is_some());
    }

    #[test]
    fn a_source_that_is_gone_is_not_asked() {
        struct One;
        impl Gauges for One {
            fn gauges(&self) -> Vec<Gauge> {
                vec![Gauge::new("ones", "Ones.", 1)]
            }
        }
        let metrics = Metrics::default();
        let source: Arc<dyn Gauges> = Arc::new(One);
        metrics.ask(Arc::downgrade(&source));
        assert!(metrics.summary().contains("ones: 1"));
        drop(source);
        assert!(!metrics.summary().contains("ones"));
    }
}
