//! Worker threads for requests that the queues' own threads must not wait for.
//!
//! A thread starts when there is work and no idle one, and ends after a while without
//! work: a daemon whose requests never block has none, and an idle daemon has no timer.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::workspace::Workspace;
use crate::fs::Patience;
use crate::sys::sync::{lock, wait_for};

/// Work for a thread, which lends its buffers and says what it may wait for.
pub(super) type Job = Box<dyn FnOnce(&mut Workspace, Patience) + Send>;

/// What becomes of work when all threads are busy and there may be no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Overflow {
    /// It waits for a thread.
    Waits,
    /// It is given back.
    IsRefused,
}

/// How long a thread stays without work.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(5);

/// A bounded number of threads with one list of work.
pub(super) struct Helpers {
    kind: HelperKind,
    /// The working directory of each.
    directory: OwnedFd,
    state: Mutex<State>,
    work: Condvar,
}

/// What sort of threads these are.
#[derive(Clone, Copy, Debug)]
pub(super) struct HelperKind {
    /// The name of each thread.
    pub(super) name: &'static str,
    /// How many there may be.
    pub(super) most: usize,
    /// How long one stays without work.
    pub(super) idle_time: Duration,
    /// What each may wait for.
    pub(super) patience: Patience,
    /// What becomes of more work than there are threads.
    pub(super) overflow: Overflow,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for work, or were woken and have not taken it yet.
    idle: usize,
}

impl Helpers {
    /// No threads yet.
    pub(super) fn new(kind: HelperKind, directory: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            kind,
            directory,
            state: Mutex::default(),
            work: Condvar::new(),
        })
    }

    /// Has a thread do the job, or where all are busy the next one that is free.
    ///
    /// # Errors
    /// Gives the job back when there is no thread for it: because none can be
    /// started, or as [`Overflow`] says.
    pub(super) fn run(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        let refuses = self.kind.overflow == Overflow::IsRefused;
        let mut state = lock(&self.state);
        if state.jobs.len() < state.idle {
            state.jobs.push_back(job);
            drop(state);
            self.work.notify_one();
            return Ok(());
        }
        if state.threads == self.kind.most && refuses {
            return Err(job);
        }
        state.jobs.push_back(job);
        if state.threads == self.kind.most {
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        let this = Arc::clone(self);
        let started = thread::Builder::new()
            .name(self.kind.name.to_owned())
            .spawn(move || this.work());
        let Err(error) = started else { return Ok(()) };
        log::debug!("cannot start a thread: {error}");
        let mut state = lock(&self.state);
        state.threads -= 1;
        match state.jobs.pop_back() {
            Some(job) if state.threads == 0 || refuses => Err(job),
            job => {
                state.jobs.extend(job);
                Ok(())
            }
        }
    }

    /// The life of a thread.
    fn work(&self) {
        super::settle(&self.directory);
        let mut workspace = Workspace::default();
        while let Some(job) = self.next() {
            job(&mut workspace, self.kind.patience);
        }
    }

    /// The next job; `None` when the thread is to end.
    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let timed_out;
            (state, timed_out) = wait_for(&self.work, state, self.kind.idle_time);
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::channel;

    use super::*;

    fn helpers(most: usize, idle_time: Duration) -> Arc<Helpers> {
        let directory = std::fs::File::open("/").unwrap();
        let kind = HelperKind {
            name: "test",
            most,
            idle_time,
            patience: Patience::Storage,
            overflow: Overflow::Waits,
        };
        Helpers::new(kind, directory.into())
    }

    #[test]
    fn as_many_jobs_as_there_may_be_threads_wait_for_each_other() {
        let helpers = helpers(4, IDLE_TIME);
        let all = Arc::new(Barrier::new(5));
        for _ in 0..4 {
            let all = Arc::clone(&all);
            assert!(helpers.run(Box::new(move |_, _| _ = all.wait())).is_ok());
        }
        all.wait();
        assert_eq!(lock(&helpers.state).threads, 4);
    }

    #[test]
    fn what_is_beyond_the_bound_waits_and_is_done() {
        let helpers = helpers(2, IDLE_TIME);
        let (sender, receiver) = channel();
        for number in 0..100 {
            let sender = sender.clone();
            let job = Box::new(move |_: &mut Workspace, _| sender.send(number).unwrap());
            assert!(helpers.run(job).is_ok());
        }
        let mut done: Vec<i32> = receiver.iter().take(100).collect();
        done.sort_unstable();
        assert!(done.into_iter().eq(0..100));
        assert!(lock(&helpers.state).threads <= 2);
    }

    #[test]
    fn threads_without_work_end_and_others_start_when_there_is_some() {
        let helpers = helpers(3, Duration::from_millis(1));
        for _ in 0..3 {
            let (sender, receiver) = channel();
            let job = Box::new(move |_: &mut Workspace, _| sender.send(()).unwrap());
            assert!(helpers.run(job).is_ok());
            receiver.recv().unwrap();
            while lock(&helpers.state).threads > 0 {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn where_work_is_refused_it_comes_back_when_all_are_busy() {
        let waiting = helpers(1, IDLE_TIME);
        let kind = HelperKind {
            overflow: Overflow::IsRefused,
            ..waiting.kind
        };
        let helpers = Helpers::new(kind, std::fs::File::open("/").unwrap().into());
        let both = Arc::new(Barrier::new(2));
        let busy = Arc::clone(&both);
        assert!(helpers.run(Box::new(move |_, _| _ = busy.wait())).is_ok());
        assert!(helpers.run(Box::new(|_, _| ())).is_err());
        both.wait();
    }
}
