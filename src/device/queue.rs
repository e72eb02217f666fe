//! Serving one queue: take chains, let the server answer, hand them back,
//! notify the guest.
//!
//! The queue's indexes change only under the vring's own lock, which is never
//! held while a request is served. One thread at a time has the shift: it takes
//! chains and serves them one by one, and whoever stops the queue waits for the end
//! of it. A thread that is in one request for too long is relieved: another one has
//! the next shift, and the request counts as one that is served beside the queue,
//! which are waited for as well.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use vhost_user_backend::{VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};

use super::busy_poll::BusyPoll;
use super::helpers::Helpers;
use super::relief::Relief;
use super::vring::Vring;
use crate::fs::{FileSystem, Patience, Wait};
use crate::guest::buffers::{Readable, Spans, Writable};
use crate::guest::ring::{Ring, RingError, RingLayout, Used};
use crate::guest::{GuestMemory, Memory, memory_is_lost};
use crate::server::{MustWait, Scratch, Server};
use crate::sys::locks::{lock, wait_for};

/// How long a queue that is to stop is waited for before requests that wait for
/// locks are looked for again.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(10);

/// After so long the operator is told what a queue that is to stop waits for.
const LONG_STOP: Duration = Duration::from_secs(2);

/// How long the end of a shift is waited for at once.
const A_WHILE: Duration = Duration::from_secs(1);

/// No request was ever heard, and nothing said of that.
static SILENCE: AtomicBool = AtomicBool::new(true);

/// QEMU 7.2 kicks each queue twice by itself when it starts the device.
const OWN_KICKS: u8 = 2;

/// Chains that are taken at once.
const BATCH: u16 = 64;

/// Buffers of one serving thread.
#[derive(Default)]
pub(super) struct Workspace {
    spans: Spans,
    scratch: Scratch,
    heads: Vec<u16>,
}

thread_local! {
    /// The buffers of a thread that serves.
    pub(super) static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// What all queues of a device have in common.
pub(super) struct Common<F> {
    pub(super) server: Arc<Server<F>>,
    pub(super) memory: GuestMemoryAtomic<GuestMemory>,
    /// Whether the front end wants to know which pages are written to.
    pub(super) logging: AtomicBool,
    /// Threads that wait for disks.
    pub(super) storage_helpers: Arc<Helpers>,
    /// Threads that wait for servers.
    pub(super) server_helpers: Arc<Helpers>,
    /// Threads that wait for locks.
    pub(super) lock_helpers: Arc<Helpers>,
    /// Who looks after threads that are in one request for too long.
    pub(super) relief: Relief,
}

/// Who serves a queue.
#[derive(Default)]
struct Shift {
    /// The number of the shift; 0 while there is none.
    now: u64,
    /// That of the last one.
    last: u64,
    /// Chains that were taken and not begun.
    heads: VecDeque<u16>,
    /// How many requests were begun in all shifts.
    begun: u64,
    is_in_request: bool,
    /// The server is about to wait, or waits.
    is_urgent: bool,
    /// Threads that wait for the end of it; to tell nobody is a system call too.
    waiting: usize,
    /// What was lent for those who were relieved and are not back, by their shifts.
    relieved: Vec<(u64, Box<dyn Send>)>,
}

/// What a thread does next in its shift.
enum Next {
    /// It serves this chain.
    Serve(u16),
    /// There are no more chains.
    Nothing,
    /// It was relieved, and has nothing to do with the queue any more.
    IsRelieved,
}

/// A request that a thread is in: its shift, and which of all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct InRequest {
    shift: u64,
    number: u64,
}

/// The two sides of a chain.
type Sides<'a> = (Readable<'a>, Writable<'a>);

/// What became of a chain.
enum Served {
    /// It was handed back, or handed to another thread.
    Here,
    /// This thread is to wait for it, and has counted it.
    IsToWait(u16),
    /// The same as the first, but the thread was relieved meanwhile.
    AfterRelief,
}

/// One queue of the device.
pub(super) struct Queue {
    index: usize,
    shift: Mutex<Shift>,
    shift_ends: Condvar,
    /// Used in a shift.
    poll: Mutex<BusyPoll>,
    /// Whether it is polled at all.
    polls: bool,
    /// Set when the guest broke the ring; nothing is served until it is reset.
    broken: AtomicBool,
    /// Set while somebody waits for the end of what is being served.
    stopping: AtomicBool,
    /// Requests that are served beside the queue or will be.
    elsewhere: Mutex<Elsewhere>,
    /// Where its indexes are.
    vring: OnceLock<Vring>,
    /// Kicks for which there was nothing since it was started.
    idle_kicks: AtomicU8,
    /// How many such threads there may be.
    threads_elsewhere: usize,
    none_elsewhere: Condvar,
}

/// What is served beside a queue.
#[derive(Default)]
struct Elsewhere {
    requests: usize,
    /// Somebody waits for their end; to tell nobody is a system call too.
    is_awaited: bool,
}

/// What can be asked of a vring in one go, under its lock.
struct Taken {
    layout: RingLayout,
    next_available: u16,
}

/// What is done about a ring with nothing in it.
#[derive(Clone, Copy, Eq, PartialEq)]
enum WhenEmpty {
    /// The guest is asked to kick.
    AskForKick,
    /// Nothing.
    StayQuiet,
}

impl Queue {
    /// Queue number `index`; at most `threads_elsewhere` threads serve requests
    /// besides its own.
    /// Before its thread sleeps it polls the ring for at most `polled_for`.
    pub(super) fn new(index: usize, threads_elsewhere: usize, polled_for: Duration) -> Self {
        let poll = BusyPoll::new(polled_for);
        Self {
            index,
            shift: Mutex::default(),
            shift_ends: Condvar::new(),
            polls: poll.is_wanted(),
            poll: Mutex::new(poll),
            broken: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            elsewhere: Mutex::default(),
            vring: OnceLock::new(),
            idle_kicks: AtomicU8::new(0),
            threads_elsewhere,
            none_elsewhere: Condvar::new(),
        }
    }

    /// Says where its indexes are.
    pub(super) fn set_vring(&self, vring: Vring) {
        // There is none but this.
        let _ = self.vring.set(vring);
    }

    /// Its vring, once the library has made it.
    pub(super) fn vring(&self) -> Option<&Vring> {
        self.vring.get()
    }

    /// Whether the front end has started it, and not stopped it since.
    pub(super) fn is_started(&self) -> bool {
        self.vring.get().is_some_and(Vring::is_started)
    }

    /// Requests that were taken and not handed back yet.
    pub(super) fn depth(&self) -> Option<u16> {
        let state = self.vring.get()?.get_ref();
        let queue = state.get_queue();
        Some(queue.next_avail().wrapping_sub(queue.next_used()))
    }

    /// Waits until no request of this queue is being served. The vring is
    /// stopped already, so no new one is taken; those that were taken but not
    /// begun are given back, and those that wait for locks give up, which
    /// `interrupt_waits` sees to.
    pub(super) fn drain(&self, interrupt_waits: impl Fn()) {
        self.stopping.store(true, Ordering::Release);
        let mut shift = lock(&self.shift);
        while shift.now != 0 {
            shift = self.await_end(shift);
        }
        let left = shift.heads.len() as u16;
        shift.heads.clear();
        self.stopping.store(false, Ordering::Release);
        drop(shift);
        if let Some(vring) = self.vring() {
            // They stay available for whoever goes on.
            let mut state = vring.get_mut();
            let queue = state.get_queue_mut();
            queue.set_next_avail(queue.next_avail().wrapping_sub(left));
        }
        let begun = Instant::now();
        let mut is_said = false;
        while lock(&self.elsewhere).requests > 0 {
            if !is_said && begun.elapsed() > LONG_STOP {
                is_said = true;
                log::warn!(
                    "queue {} is to stop and waits for {} requests whose file system does not \
                     answer; thaw it, or unmount it by force",
                    self.index,
                    lock(&self.elsewhere).requests
                );
            }
            interrupt_waits();
            let mut elsewhere = lock(&self.elsewhere);
            if elsewhere.requests > 0 {
                elsewhere.is_awaited = true;
                // One that was on its way to wait is met the next time.
                (elsewhere, _) = wait_for(&self.none_elsewhere, elsewhere, INTERRUPT_AGAIN);
                elsewhere.is_awaited = false;
            }
        }
    }

    /// The queue was stopped: what the guest did to it is forgotten.
    pub(super) fn mend(&self) {
        self.broken.store(false, Ordering::Release);
        self.idle_kicks.store(0, Ordering::Relaxed);
    }

    /// Counts a kick of a guest that was never heard, for which there was no
    /// request. Where QEMU's memory has a file but is private (`share=off`), the
    /// guest's requests are in a copy that we never see.
    fn count_idle_kick(&self) {
        let kicks = self.idle_kicks.load(Ordering::Relaxed).saturating_add(1);
        self.idle_kicks.store(kicks, Ordering::Relaxed);
        if kicks > OWN_KICKS && SILENCE.swap(false, Ordering::Relaxed) {
            log::warn!(
                "the guest says that queue {} has a request, but there is none; if its mount \
                 hangs, its memory is not shared: give QEMU's memory backend share=on",
                self.index
            );
        }
    }

    /// Stops serving the queue and says why, once, to the operator and to the front
    /// end.
    fn give_up(&self, vring: &Vring, why: RingError) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            vring.signal_error();
            log::error!(
                "queue {} is stopped until the guest resets the device: {why}",
                self.index
            );
        }
    }

    /// Begins a shift, at the end of the one that there is.
    fn begin_shift(&self, relief: &Relief) -> u64 {
        let mut shift = lock(&self.shift);
        while shift.now != 0 {
            shift = self.await_end(shift);
        }
        let number = shift.begin();
        drop(shift);
        relief.work_begins();
        number
    }

    fn await_end<'a>(&self, mut shift: MutexGuard<'a, Shift>) -> MutexGuard<'a, Shift> {
        shift.waiting += 1;
        (shift, _) = wait_for(&self.shift_ends, shift, A_WHILE);
        shift.waiting -= 1;
        shift
    }

    /// Begins a shift if there is none.
    fn try_begin_shift(&self) -> Option<u64> {
        let mut shift = lock(&self.shift);
        (shift.now == 0).then(|| shift.begin())
    }

    /// Ends a shift, unless its thread was relieved.
    fn end_shift(&self, number: u64) {
        let mut shift = lock(&self.shift);
        if shift.now == number {
            self.end(&mut shift);
        }
    }

    fn end(&self, shift: &mut Shift) {
        shift.now = 0;
        shift.is_in_request = false;
        shift.is_urgent = false;
        if shift.waiting > 0 {
            self.shift_ends.notify_all();
        }
    }

    /// The request that the thread is in that has the shift, and whether it is about to
    /// wait there.
    pub(super) fn in_request(&self) -> Option<(InRequest, bool)> {
        let shift = lock(&self.shift);
        let request = InRequest {
            shift: shift.now,
            number: shift.begun,
        };
        shift.is_in_request.then_some((request, shift.is_urgent))
    }

    /// Whether a thread has the shift.
    pub(super) fn is_served(&self) -> bool {
        lock(&self.shift).now != 0
    }

    /// The thread that has the shift is about to wait.
    pub(super) fn is_about_to_wait(&self, relief: &Relief) {
        let mut shift = lock(&self.shift);
        if shift.is_in_request {
            shift.is_urgent = true;
            drop(shift);
            relief.is_urgent();
        }
    }

    /// Relieves the thread that has the shift, if it is in this request still: the
    /// next to look at the queue has the next shift. What was `lent` is kept until the
    /// thread is back.
    pub(super) fn relieve(&self, request: InRequest, lent: impl Send + 'static) -> bool {
        let mut shift = lock(&self.shift);
        let is_it = (shift.now, shift.begun) == (request.shift, request.number);
        if !shift.is_in_request || !is_it {
            return false;
        }
        lock(&self.elsewhere).requests += 1;
        let number = shift.now;
        shift.relieved.push((number, Box::new(lent)));
        self.end(&mut shift);
        true
    }

    /// A thread that was relieved is back.
    fn is_back(&self, number: u64) {
        let mut shift = lock(&self.shift);
        let place = shift.relieved.iter().position(|(of, _)| *of == number);
        let lent = place.map(|place| shift.relieved.swap_remove(place));
        drop(shift);
        // Which takes other locks.
        drop(lent);
    }

    /// The chains that a thread which was relieved has taken and not begun, if there are
    /// any and the queue runs.
    fn inherited(&self, vring: &Vring) -> Option<Taken> {
        if lock(&self.shift).heads.is_empty() || self.broken.load(Ordering::Acquire) {
            return None;
        }
        let state = vring.get_ref();
        let queue = state.get_queue();
        (state.is_enabled() && queue.ready()).then(|| Taken {
            layout: layout(&state),
            next_available: queue.next_avail(),
        })
    }

    /// The next chain of those that were taken, to which `more` were added.
    fn next(&self, number: u64, more: &mut Vec<u16>) -> Next {
        let mut shift = lock(&self.shift);
        if shift.now != number {
            return Next::IsRelieved;
        }
        shift.heads.extend(more.drain(..));
        shift.is_in_request = false;
        shift.is_urgent = false;
        if self.stopping.load(Ordering::Acquire) {
            return Next::Nothing;
        }
        match shift.heads.pop_front() {
            None => Next::Nothing,
            Some(head) => {
                shift.begun += 1;
                shift.is_in_request = true;
                Next::Serve(head)
            }
        }
    }

    /// Counts the request of this shift as one that another thread will serve; gives
    /// how many there were, and whether no other chain was taken. `None` where its
    /// thread was relieved: then it is counted.
    fn hand_over(&self, number: u64, size: u16) -> Result<Option<(usize, bool)>, RingError> {
        let mut shift = lock(&self.shift);
        if shift.now != number {
            return Ok(None);
        }
        let others = self.count_elsewhere(1, size)?;
        shift.is_in_request = false;
        Ok(Some((others, shift.heads.is_empty())))
    }

    /// Serves everything that is available, on this thread. What needs more than
    /// `patience` is handed to `elsewhere`, which has it served by
    /// [`Queue::serve_one`] on another thread; or if it waits for a disk and is the
    /// only request that there is, this thread waits itself, with the queue lent
    /// for as long as what `lend` gives is kept.
    pub(super) fn serve<F: FileSystem, L>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        patience: Patience,
        elsewhere: impl Fn(u16, Wait),
        lend: impl Fn() -> Option<L>,
    ) {
        let mut shift = self.begin_shift(&device.relief);
        if self.polls {
            lock(&self.poll).woken();
        }
        loop {
            let waits_here = WORKSPACE.with_borrow_mut(|workspace| {
                self.serve_shift(shift, device, vring, patience, &elsewhere, workspace)
            });
            let Some(head) = waits_here else { return };
            let Some(again) = self.wait_for_disk(device, vring, head, &elsewhere, &lend) else {
                return;
            };
            shift = again;
        }
    }

    /// Serves until there is nothing more, and ends the shift; gives the chain that
    /// this thread is to wait for itself, if there is one.
    fn serve_shift<F: FileSystem>(
        &self,
        shift: u64,
        device: &Common<F>,
        vring: &Vring,
        patience: Patience,
        elsewhere: &impl Fn(u16, Wait),
        workspace: &mut Workspace,
    ) -> Option<u16> {
        // Those that the one before had taken come first.
        let mut inherited = self.inherited(vring);
        while let Some(taken) = inherited
            .take()
            .or_else(|| self.take_or_poll(device, vring, &mut workspace.heads))
        {
            // The map must not be older than the chains: memory that the front
            // end has just added may hold their buffers.
            let map = device.memory.memory();
            let memory = Memory::new(&map, &device.logging);
            let is_alone = workspace.heads.len() == 1;
            let served = self.serve_batch(
                shift,
                memory,
                (vring, &taken),
                workspace,
                |ring, head, sides, scratch| {
                    let (request, reply) = sides;
                    match device.server.handle(scratch, request, reply, patience) {
                        Ok(len) => {
                            hand_back(vring, ring, Used { head, len });
                            Ok(Served::Here)
                        }
                        Err(MustWait(wait)) => {
                            let counted = self.hand_over(shift, taken.layout.size)?;
                            match counted {
                                Some((0, true)) if wait == Wait::ForDisk && is_alone => {
                                    return Ok(Served::IsToWait(head));
                                }
                                _ => elsewhere(head, wait),
                            }
                            Ok(match counted {
                                Some(_) => Served::Here,
                                None => Served::AfterRelief,
                            })
                        }
                    }
                },
            );
            drop(map);
            match served {
                Served::Here => {}
                Served::IsToWait(head) => {
                    if self.has_more(device, vring) {
                        elsewhere(head, Wait::ForDisk);
                        continue;
                    }
                    self.end_shift(shift);
                    return Some(head);
                }
                Served::AfterRelief => {
                    device.server.is_back();
                    self.is_back(shift);
                    return None;
                }
            }
            if self.broken.load(Ordering::Acquire) || self.stopping.load(Ordering::Acquire) {
                break;
            }
        }
        self.end_shift(shift);
        None
    }

    /// Whether there is a request that was not taken; if not, the guest is asked to
    /// kick for the next one.
    fn has_more<F>(&self, device: &Common<F>, vring: &Vring) -> bool {
        let state = vring.get_ref();
        let map = device.memory.memory();
        let memory = Memory::new(&map, &device.logging);
        Ring::new(memory, &layout(&state))
            .is_ok_and(|ring| ring.ask_for_kick(state.get_queue().next_avail()))
    }

    /// Serves a chain that was counted as served elsewhere, on the queue's own
    /// thread, which no longer serves the queue. Gives the right to serve it back,
    /// unless the standby has it: that one looks at the ring once more.
    fn wait_for_disk<F: FileSystem, L>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        head: u16,
        elsewhere: impl Fn(u16, Wait),
        lend: impl Fn() -> Option<L>,
    ) -> Option<u64> {
        let Some(lent) = lend() else {
            elsewhere(head, Wait::ForDisk);
            return Some(self.begin_shift(&device.relief));
        };
        let mut lent = Some(lent);
        let mut shift = None;
        // Before the guest hears of it and sends the next request, that one must
        // have stopped to be the standby's.
        let take_back = |ring: &Ring<'_>| {
            lent.take();
            shift = self.try_begin_shift();
            if shift.is_some() {
                ring.withdraw_kick(vring.get_ref().get_queue().next_avail());
            }
        };
        let wait = WORKSPACE.with_borrow_mut(|workspace| {
            self.serve_counted(device, vring, head, workspace, Patience::Storage, take_back)
        });
        // A chain that the guest broke was not even begun.
        drop(lent);
        match wait {
            None => self.count_back(),
            Some(wait) => elsewhere(head, wait),
        }
        if shift.is_some() {
            device.relief.work_begins();
        }
        shift
    }

    /// Takes what is available and hands each chain to `elsewhere`, which has it
    /// served by [`Queue::serve_one`] on another thread.
    pub(super) fn distribute<F>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        mut elsewhere: impl FnMut(u16),
    ) {
        let shift = self.begin_shift(&device.relief);
        if self.polls {
            lock(&self.poll).woken();
        }
        WORKSPACE.with_borrow_mut(|workspace| {
            let heads = &mut workspace.heads;
            while let Some(taken) = self.take_or_poll(device, vring, heads) {
                if let Err(why) = self.count_elsewhere(heads.len(), taken.layout.size) {
                    self.give_up(vring, why);
                    break;
                }
                heads.drain(..).for_each(&mut elsewhere);
            }
        });
        self.end_shift(shift);
    }

    /// Counts requests that another thread will serve; gives how many there were.
    ///
    /// A guest that makes a chain available again before it was used would have
    /// us queue without end. An honest one may be ahead by what each thread has
    /// handed back but not yet counted.
    fn count_elsewhere(&self, more: usize, queue_size: u16) -> Result<usize, RingError> {
        let mut elsewhere = lock(&self.elsewhere);
        let others = elsewhere.requests;
        if others + more > usize::from(queue_size) + self.threads_elsewhere {
            return Err(RingError::AvailableIndex);
        }
        elsewhere.requests += more;
        Ok(others)
    }

    /// Serves one chain that was counted as served elsewhere, on such a thread;
    /// gives what it has to wait for beyond the thread's `patience`. Then it is
    /// still counted, and to be served again.
    pub(super) fn serve_one<F: FileSystem>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        head: u16,
        workspace: &mut Workspace,
        patience: Patience,
    ) -> Option<Wait> {
        let wait = self.serve_counted(device, vring, head, workspace, patience, |_| ());
        if wait.is_none() {
            self.count_back();
        }
        wait
    }

    /// The same, but it stays counted; `is_done` is called before the guest hears
    /// of it.
    fn serve_counted<F: FileSystem>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        head: u16,
        workspace: &mut Workspace,
        patience: Patience,
        is_done: impl FnOnce(&Ring<'_>),
    ) -> Option<Wait> {
        let map = device.memory.memory();
        let memory = Memory::new(&map, &device.logging);
        let Workspace { spans, scratch, .. } = workspace;
        let layout = layout(&vring.get_ref());
        let outcome = Ring::new(memory, &layout).and_then(|ring| {
            let (request, reply) = ring.gather(head, spans)?;
            let handled = device.server.handle(scratch, request, reply, patience);
            is_done(&ring);
            match handled {
                Ok(len) => hand_back(vring, &ring, Used { head, len }),
                Err(MustWait(wait)) => return Ok(Some(wait)),
            }
            Ok(None)
        });
        outcome.unwrap_or_else(|why| {
            self.give_up(vring, why);
            None
        })
    }

    /// One that was counted as served elsewhere is done.
    fn count_back(&self) {
        let mut elsewhere = lock(&self.elsewhere);
        elsewhere.requests -= 1;
        if elsewhere.requests == 0 && elsewhere.is_awaited {
            self.none_elsewhere.notify_all();
        }
    }

    /// Takes the next chains, for which the ring may be polled for a while;
    /// `None` when the thread is to wait for a kick.
    fn take_or_poll<F>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        heads: &mut Vec<u16>,
    ) -> Option<Taken> {
        if !self.polls {
            return self.take(device, vring, heads, WhenEmpty::AskForKick);
        }
        if let Some(taken) = self.take(device, vring, heads, WhenEmpty::StayQuiet) {
            return Some(taken);
        }
        self.poll(device, vring, &mut lock(&self.poll));
        self.take(device, vring, heads, WhenEmpty::AskForKick)
    }

    /// Polls the ring without any lock until a request comes, the queue is to
    /// stop, or it has taken long enough. The guest still believes that it need
    /// not kick.
    fn poll<F>(&self, device: &Common<F>, vring: &Vring, poll: &mut BusyPoll) {
        let (layout, next_available) = {
            let state = vring.get_ref();
            (layout(&state), state.get_queue().next_avail())
        };
        let map = device.memory.memory();
        let memory = Memory::new(&map, &device.logging);
        if let Ok(ring) = Ring::new(memory, &layout) {
            poll.poll(|| {
                ring.has_available(next_available) || self.stopping.load(Ordering::Acquire)
            });
        }
    }

    /// Takes the next chains into `heads`; `None` when there are none and that
    /// was dealt with as `when_empty` says, or when the queue is stopped or
    /// broken. A guest that was asked to kick does so for the next chain.
    fn take<F>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        heads: &mut Vec<u16>,
        when_empty: WhenEmpty,
    ) -> Option<Taken> {
        heads.clear();
        if self.broken.load(Ordering::Acquire) {
            return None;
        }
        if vring.has_bad_size() {
            self.give_up(vring, RingError::Size);
            return None;
        }
        if memory_is_lost() {
            self.give_up(vring, RingError::MemoryIsLost);
            return None;
        }
        let mut state = vring.get_mut();
        if !state.is_enabled() || !state.get_queue().ready() {
            return None;
        }
        let layout = layout(&state);
        let map = device.memory.memory();
        let taken = Ring::new(Memory::new(&map, &device.logging), &layout).and_then(|ring| {
            let mut next_available = state.get_queue().next_avail();
            loop {
                next_available = ring.take(next_available, BATCH, heads)?;
                if !heads.is_empty() {
                    ring.suppress_kicks();
                    return Ok(Some(Taken {
                        layout,
                        next_available,
                    }));
                }
                if when_empty == WhenEmpty::StayQuiet || !ring.ask_for_kick(next_available) {
                    return Ok(None);
                }
            }
        });
        match taken {
            Ok(None) => {
                drop(state);
                if when_empty == WhenEmpty::AskForKick
                    && self.index > 0
                    && SILENCE.load(Ordering::Relaxed)
                {
                    self.count_idle_kick();
                }
                None
            }
            Ok(Some(taken)) => {
                if SILENCE.load(Ordering::Relaxed) {
                    SILENCE.store(false, Ordering::Relaxed);
                }
                state.get_queue_mut().set_next_avail(taken.next_available);
                Some(taken)
            }
            Err(why) => {
                drop(state);
                self.give_up(vring, why);
                None
            }
        }
    }

    /// Serves chains in order, those in `workspace.heads` last, until there are no more
    /// or the queue is to stop. One that breaks the ring ends it, too.
    fn serve_batch(
        &self,
        shift: u64,
        memory: Memory<'_>,
        (vring, taken): (&Vring, &Taken),
        workspace: &mut Workspace,
        serve: impl Fn(&Ring<'_>, u16, Sides<'_>, &mut Scratch) -> Result<Served, RingError>,
    ) -> Served {
        let Workspace {
            spans,
            scratch,
            heads,
        } = workspace;
        let outcome = Ring::new(memory, &taken.layout).and_then(|ring| {
            loop {
                match self.next(shift, heads) {
                    Next::Serve(head) => {
                        let served = serve(&ring, head, ring.gather(head, spans)?, scratch)?;
                        if !matches!(served, Served::Here) {
                            return Ok(served);
                        }
                    }
                    Next::Nothing => return Ok(Served::Here),
                    Next::IsRelieved => {
                        self.count_back();
                        return Ok(Served::AfterRelief);
                    }
                }
            }
        });
        outcome.unwrap_or_else(|why| {
            self.give_up(vring, why);
            self.abandon(shift)
        })
    }

    /// The ring is broken: what was taken of it is dropped.
    fn abandon(&self, number: u64) -> Served {
        let mut shift = lock(&self.shift);
        shift.heads.clear();
        if shift.now == number {
            return Served::Here;
        }
        drop(shift);
        self.count_back();
        Served::AfterRelief
    }
}

impl Shift {
    fn begin(&mut self) -> u64 {
        self.last += 1;
        self.now = self.last;
        self.now
    }
}

/// Hands a finished request back and notifies the guest if it waits for that.
///
/// Each is handed back at once: a guest that is awake goes on while the rest of
/// the batch is served and asks for no notification, and one that sleeps is woken
/// by the first. With whole batches the two sides take turns, which measured half
/// the throughput of 4 KiB reads at depth 16 (groups of 4 and 8: no gain).
fn hand_back(vring: &Vring, ring: &Ring<'_>, done: Used) {
    let mut state = vring.get_mut();
    let queue = state.get_queue_mut();
    // Not the queue's own copy: the library may set that behind our back when
    // the front end sends the addresses of a running ring again.
    let old = ring.used_index();
    let new = ring.publish(old, done);
    queue.set_next_used(new);
    if ring.wants_notification(old, new)
        && let Err(error) = state.signal_used_queue()
        // A full event: the front end has yet to hear of the last one.
        && error.kind() != ErrorKind::WouldBlock
    {
        log::error!("cannot notify the guest: {error}");
    }
}

/// Where the queue lies now.
fn layout(state: &VringState<GuestMemoryAtomic<GuestMemory>>) -> RingLayout {
    let queue = state.get_queue();
    RingLayout {
        size: queue.size(),
        descriptors: queue.desc_table(),
        available: queue.avail_ring(),
        used: queue.used_ring(),
        event_idx: queue.event_idx_enabled(),
    }
}
