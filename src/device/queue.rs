//! Serving one queue: take chains, let the server answer, hand them back,
//! notify the guest.
//!
//! The queue's indexes change only under the vring's own lock, which is never
//! held while a request is served. Which thread serves is kept in `shift`, and what is
//! served beside the queue in `in_flight`.
//!
//! Stopping a queue (`GET_VRING_BASE`, device reset) waits for both; no new chains are
//! taken, since the library has marked the ring as stopped before. Chains that were taken
//! and not begun are given back to the ring. A chain has at most 32 MiB, and one
//! COPY_FILE_RANGE copies at most 64 MiB, so that the wait is short, unless a file system
//! does not respond: then the guest's memory is taken from the threads that are in a
//! system call with it (`guest::renewal`), and their requests fail with `EIO`.
//!
//! The memory map is loaded again for each batch, after the available index was read:
//! memory that the front end has just added may hold the buffers. The used index is read
//! from the ring when a request is handed back, because the library sets its own copy
//! when the front end sends the addresses of a running ring again, as QEMU does when it
//! switches dirty logging.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vhost_user_backend::{VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryAtomic;

use super::busy_poll::BusyPoll;
use super::helpers::Helpers;
use super::in_flight::{InFlight, Ticket};
use super::relief::Relief;
use super::shift::{BATCH, InRequest, Shift, Turn};
use super::vring::Vring;
use super::workspace::{WORKSPACE, Workspace};
use crate::fs::{FileSystem, Patience, Wait};
use crate::guest::buffers::Spans;
use crate::guest::ring::{Ring, RingError, RingLayout, Used};
use crate::guest::{GuestMemory, SharedMemory, View, memory_is_lost};
use crate::server::{MustWait, Server};
use crate::sys::sync::lock;

/// Interval at which a stopping queue interrupts requests that block on locks again.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(10);

/// Time after which the log says what a stopping queue waits for.
const LONG_STOP: Duration = Duration::from_secs(2);

/// True until the first request arrives or the warning about its absence is logged.
static SILENCE: AtomicBool = AtomicBool::new(true);

/// QEMU 7.2 kicks each queue twice by itself when it starts the device.
const OWN_KICKS: u8 = 2;

/// What all queues of a device have in common.
pub(super) struct Common<F> {
    pub(super) server: Arc<Server<F>>,
    pub(super) memory: SharedMemory,
    /// Threads that wait for disks.
    pub(super) storage_helpers: Arc<Helpers>,
    /// Threads that wait for servers.
    pub(super) server_helpers: Arc<Helpers>,
    /// Threads that wait for locks.
    pub(super) lock_helpers: Arc<Helpers>,
    /// Who looks after threads that are in one request for too long.
    pub(super) relief: Relief,
}

/// A request that this thread has to wait for itself.
struct WaitsHere {
    ticket: Ticket,
    head: u16,
}

/// What became of a chain.
enum Served {
    /// It was handed back, or handed to another thread.
    Here,
    /// This thread is to wait for it, and has counted it.
    IsToWait(WaitsHere),
    /// The same as the first, but the shift was taken over meanwhile.
    AfterRelief,
}

/// What was lent for a thread whose shift was taken over, until it is back.
struct Relieved {
    /// The number of its shift.
    shift: u64,
    /// Of the request that it is in.
    ticket: Ticket,
    _lent: Box<dyn Send>,
}

/// One queue of the device.
pub(super) struct Queue {
    index: usize,
    shift: Shift,
    /// Threads that are in a request and whose shift was taken over.
    relieved: Mutex<Vec<Relieved>>,
    /// Used in a shift.
    poll: Mutex<BusyPoll>,
    /// Whether it is polled at all.
    polls: bool,
    /// Set when the guest broke the ring; nothing is served until it is reset.
    broken: AtomicBool,
    /// Set while somebody waits for the end of what is being served.
    stopping: AtomicBool,
    /// Requests that are served beside the queue or will be.
    in_flight: InFlight,
    /// Where its indexes are.
    vring: OnceLock<Vring>,
    /// Kicks for which there was nothing since it was started.
    idle_kicks: AtomicU8,
    /// How many such threads there may be.
    threads_elsewhere: usize,
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
            shift: Shift::new(),
            relieved: Mutex::default(),
            polls: poll.is_wanted(),
            poll: Mutex::new(poll),
            broken: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            in_flight: InFlight::default(),
            vring: OnceLock::new(),
            idle_kicks: AtomicU8::new(0),
            threads_elsewhere,
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
    /// `interrupt_waits` sees to. After `most`, requests whose file system does not
    /// answer fail, once `renew_memory` has taken the guest's memory from them.
    pub(super) fn drain<F: FileSystem>(
        &self,
        device: &Common<F>,
        most: Duration,
        interrupt_waits: impl Fn(),
        renew_memory: impl Fn() -> std::io::Result<()>,
    ) {
        let begun = Instant::now();
        let mut is_said = false;
        let mut wait = |what: &dyn Fn(Duration)| {
            what(INTERRUPT_AGAIN);
            if !is_said && begun.elapsed() > LONG_STOP.min(most) {
                is_said = true;
                self.say_what_stops(most.saturating_sub(begun.elapsed()));
            }
            begun.elapsed() > most
        };
        self.stopping.store(true, Ordering::Release);
        while self.shift.is_held() {
            if wait(&|most| self.shift.wait_for_end(most))
                && let Some((request, _)) = self.shift.in_request()
            {
                // A thread that nobody else relieves.
                self.relieve(device, request, ());
            }
        }
        let left = self.shift.drop_left();
        self.stopping.store(false, Ordering::Release);
        let Some(vring) = self.vring() else { return };
        {
            // They stay available for whoever goes on.
            let mut state = vring.get_mut();
            let queue = state.get_queue_mut();
            queue.set_next_avail(queue.next_avail().wrapping_sub(left));
        }
        while self.in_flight.count() > 0 {
            interrupt_waits();
            // One that was on its way to wait is met the next time.
            if wait(&|most| self.in_flight.wait(most)) {
                self.give_requests_up(device, vring, &renew_memory);
            }
        }
        // Whoever has taken its ticket out tells the guest under this lock.
        drop(vring.get_mut());
    }

    fn say_what_stops(&self, left: Duration) {
        log::warn!(
            "queue {} is stopping and waits for {} requests whose file system does not respond; \
             thaw it or unmount it by force, or they fail with an I/O error in {} s",
            self.index,
            self.in_flight.count().max(1),
            left.as_secs_f32().ceil()
        );
    }

    /// Lets the requests fail that are in flight. What they are in may still happen on
    /// the host, but has no effect on the guest any more.
    fn give_requests_up<F: FileSystem>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        renew_memory: &impl Fn() -> std::io::Result<()>,
    ) {
        if device.server.pins_memory() {
            // The kernel has pages of the guest, whatever is mapped where.
            return;
        }
        if let Err(error) = renew_memory() {
            log::error!("cannot map the guest's memory once more: {error}");
            return;
        }
        let mut state = vring.get_mut();
        let heads = self.in_flight.give_up();
        log::warn!(
            "queue {}: {} requests whose file system does not respond failed with an I/O error, \
             because the front end stops the queue; the host may still carry them out",
            self.index,
            heads.len()
        );
        for head in heads {
            fail(device, &mut state, head);
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
                "queue {} was kicked but is empty; if the guest's mount hangs, its memory is not \
                 shared: give QEMU's memory backend share=on",
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
    fn begin_shift(&self, relief: &Relief) -> Turn {
        let turn = self.shift.begin();
        relief.work_begins();
        turn
    }

    /// The request that the thread is in that has the shift, and whether it is about to
    /// wait there.
    pub(super) fn in_request(&self) -> Option<(InRequest, bool)> {
        self.shift.in_request()
    }

    /// Whether a thread has the shift.
    pub(super) fn is_served(&self) -> bool {
        self.shift.is_held()
    }

    /// The thread that has the shift is about to wait.
    pub(super) fn is_about_to_wait(&self, relief: &Relief) {
        if self.shift.about_to_wait() {
            relief.is_urgent();
        }
    }

    /// Relieves the thread that has the shift, if it is in this request still: the
    /// next to look at the queue has the next shift. What was `lent` is kept until the
    /// thread is back.
    pub(super) fn relieve<F: FileSystem>(
        &self,
        device: &Common<F>,
        request: InRequest,
        lent: impl Send + 'static,
    ) -> bool {
        device.server.is_stuck();
        // A thread that finds that it was relieved waits for this.
        let mut relieved = lock(&self.relieved);
        let is_done = self.shift.take_over(request, |shift, head| {
            relieved.push(Relieved {
                shift,
                ticket: self.in_flight.add(head),
                _lent: Box::new(lent),
            });
        });
        if !is_done {
            device.server.is_back();
        }
        is_done
    }

    /// A thread that was relieved is back; gives the ticket of its request.
    fn is_back<F: FileSystem>(&self, device: &Common<F>, turn: &Turn) -> Option<Ticket> {
        device.server.is_back();
        let mut all = lock(&self.relieved);
        let index = all.iter().position(|one| one.shift == turn.number());
        let relieved = index.map(|index| all.swap_remove(index));
        // What was lent takes other locks when it is dropped.
        drop(all);
        relieved.map(|relieved| relieved.ticket)
    }

    /// Adds a request to those that another thread will serve; gives how many there
    /// were.
    ///
    /// A guest that makes a chain available again before it was used would have
    /// us queue without end. An honest one may be ahead by what each thread has
    /// handed back but not yet counted.
    fn add_in_flight(&self, head: u16, size: u16) -> Result<(Ticket, usize), RingError> {
        let most = usize::from(size) + self.threads_elsewhere;
        self.in_flight
            .add_bounded(head, most)
            .ok_or(RingError::AvailableIndex)
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
        elsewhere: impl Fn(Ticket, u16, Wait),
        lend: impl Fn() -> Option<L>,
    ) {
        let mut turn = self.begin_shift(&device.relief);
        if self.polls {
            lock(&self.poll).woken();
        }
        loop {
            let waits_here = WORKSPACE.with_borrow_mut(|workspace| {
                self.serve_shift(turn, device, vring, patience, &elsewhere, workspace)
            });
            let Some(waits) = waits_here else { return };
            let Some(again) = self.wait_for_disk(device, vring, &waits, &elsewhere, &lend) else {
                return;
            };
            turn = again;
        }
    }

    /// Serves until there is nothing more, and ends the shift; gives the chain that
    /// this thread is to wait for itself, if there is one.
    fn serve_shift<F: FileSystem>(
        &self,
        mut turn: Turn,
        device: &Common<F>,
        vring: &Vring,
        patience: Patience,
        elsewhere: &impl Fn(Ticket, u16, Wait),
        workspace: &mut Workspace,
    ) -> Option<WaitsHere> {
        while let Some(layout) = self
            .take_left(vring, &mut workspace.heads)
            .or_else(|| self.take_or_poll(device, vring, &mut workspace.heads))
        {
            self.shift.set_chains(&turn, &workspace.heads);
            let served = self.serve_chains(
                &mut turn,
                device,
                (vring, &layout),
                patience,
                elsewhere,
                workspace,
            );
            match served {
                Ok(Served::Here) => {}
                Ok(Served::IsToWait(waits)) => {
                    if self.has_more(device, vring) {
                        elsewhere(waits.ticket, waits.head, Wait::ForDisk);
                        continue;
                    }
                    self.shift.end(turn);
                    return Some(waits);
                }
                Ok(Served::AfterRelief) => return None,
                Err(why) => self.give_up(vring, why),
            }
            if self.broken.load(Ordering::Acquire) || self.stopping.load(Ordering::Acquire) {
                break;
            }
        }
        self.shift.end(turn);
        None
    }

    /// Serves the chains of `workspace.heads` in order, until the queue is to stop.
    fn serve_chains<F: FileSystem>(
        &self,
        turn: &mut Turn,
        device: &Common<F>,
        (vring, layout): (&Vring, &RingLayout),
        patience: Patience,
        elsewhere: &impl Fn(Ticket, u16, Wait),
        workspace: &mut Workspace,
    ) -> Result<Served, RingError> {
        let Workspace {
            spans,
            scratch,
            heads,
        } = workspace;
        // The map must not be older than the chains: memory that the front
        // end has just added may hold their buffers.
        let view = device.memory.view();
        let ring = Ring::new(view.memory(), layout)?;
        for (place, head) in heads.iter().copied().enumerate() {
            if self.stopping.load(Ordering::Acquire) || view.is_stale() {
                self.shift.leave(heads.get(place..).unwrap_or_default());
                break;
            }
            self.shift.request_begins(turn, place);
            let handled = ring
                .gather(head, spans)
                .map(|(request, reply)| device.server.handle(scratch, request, reply, patience));
            if !self.shift.request_ends(turn) {
                if let Some(ticket) = self.is_back(device, turn) {
                    let of = (vring, ticket, head);
                    if let Some(wait) = self.conclude(device, of, &view, &ring, handled) {
                        elsewhere(ticket, head, wait);
                    }
                }
                return Ok(Served::AfterRelief);
            }
            match handled {
                Ok(Ok(len)) => {
                    let done = Used { head, len };
                    hand_back(device, &mut vring.get_mut(), &view, &ring, done);
                }
                Ok(Err(MustWait(wait))) => {
                    let (ticket, others) = self.add_in_flight(head, layout.size)?;
                    let is_alone = others == 0 && heads.len() == 1;
                    if wait == Wait::ForDisk && is_alone {
                        return Ok(Served::IsToWait(WaitsHere { ticket, head }));
                    }
                    elsewhere(ticket, head, wait);
                }
                // What was read of it may be of an empty page.
                Err(_) if view.is_stale() => fail(device, &mut vring.get_mut(), head),
                Err(why) => return Err(why),
            }
        }
        Ok(Served::Here)
    }

    /// What becomes of a request in flight that was served, unless it was given up.
    /// Returns what it has to wait for if it was not: then it is in flight still.
    fn conclude<F: FileSystem>(
        &self,
        device: &Common<F>,
        (vring, ticket, head): (&Vring, Ticket, u16),
        view: &View<'_>,
        ring: &Ring<'_>,
        handled: Result<Result<u32, MustWait>, RingError>,
    ) -> Option<Wait> {
        match handled {
            Ok(Ok(len)) => {
                let mut state = vring.get_mut();
                if self.in_flight.remove(ticket) {
                    hand_back(device, &mut state, view, ring, Used { head, len });
                }
            }
            Ok(Err(MustWait(wait))) => return Some(wait),
            Err(why) => self.drop_broken(device, (vring, ticket, head), view, why),
        }
        None
    }

    /// A request in flight could not be read.
    fn drop_broken<F: FileSystem>(
        &self,
        device: &Common<F>,
        (vring, ticket, head): (&Vring, Ticket, u16),
        view: &View<'_>,
        why: RingError,
    ) {
        let mut state = vring.get_mut();
        if self.in_flight.remove(ticket) && view.is_stale() {
            fail(device, &mut state, head);
        } else if !view.is_stale() {
            drop(state);
            self.give_up(vring, why);
        }
    }

    /// The chains that a thread which was relieved has taken and not begun, if there are
    /// any and the queue runs.
    fn take_left(&self, vring: &Vring, heads: &mut Vec<u16>) -> Option<RingLayout> {
        heads.clear();
        if !self.shift.take_left(heads) {
            return None;
        }
        // Otherwise they were abandoned with the ring.
        if !self.broken.load(Ordering::Acquire) {
            let state = vring.get_ref();
            if state.is_enabled() && state.get_queue().ready() {
                return Some(layout(&state));
            }
            // They are given back.
            self.shift.leave(heads);
        }
        heads.clear();
        None
    }

    /// Whether there is a request that was not taken; if not, the guest is asked to
    /// kick for the next one.
    fn has_more<F>(&self, device: &Common<F>, vring: &Vring) -> bool {
        let state = vring.get_ref();
        let view = device.memory.view();
        Ring::new(view.memory(), &layout(&state))
            .is_ok_and(|ring| ring.ask_for_kick(state.get_queue().next_avail()))
    }

    /// Serves a request that is in flight on the queue's own thread, which no longer
    /// serves the queue. Gives the right to serve it back, unless the standby has it:
    /// that one looks at the ring once more.
    fn wait_for_disk<F: FileSystem, L>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        waits: &WaitsHere,
        elsewhere: impl Fn(Ticket, u16, Wait),
        lend: impl Fn() -> Option<L>,
    ) -> Option<Turn> {
        let &WaitsHere { ticket, head } = waits;
        let Some(lent) = lend() else {
            elsewhere(ticket, head, Wait::ForDisk);
            return Some(self.begin_shift(&device.relief));
        };
        let mut lent = Some(lent);
        let mut turn = None;
        // Before the guest hears of it and sends the next request, that one must
        // have stopped to be the standby's.
        let take_back = |ring: &Ring<'_>| {
            lent.take();
            turn = self.shift.try_begin();
            let state = vring.get_ref();
            if turn.is_some() && !ring.is_stale() {
                ring.withdraw_kick(state.get_queue().next_avail());
            }
        };
        let wait = WORKSPACE.with_borrow_mut(|workspace| {
            let of = (vring, ticket, head);
            self.serve_in_flight(device, of, workspace, Patience::Storage, take_back)
        });
        // A chain that the guest broke was not even begun.
        drop(lent);
        if let Some(wait) = wait {
            elsewhere(ticket, head, wait);
        }
        if turn.is_some() {
            device.relief.work_begins();
        }
        turn
    }

    /// Takes what is available and hands each chain to `elsewhere`, which has it
    /// served by [`Queue::serve_one`] on another thread.
    pub(super) fn distribute<F>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        mut elsewhere: impl FnMut(Ticket, u16),
    ) {
        let turn = self.begin_shift(&device.relief);
        if self.polls {
            lock(&self.poll).woken();
        }
        WORKSPACE.with_borrow_mut(|workspace| {
            let heads = &mut workspace.heads;
            while let Some(layout) = self.take_or_poll(device, vring, heads) {
                for head in heads.drain(..) {
                    match self.add_in_flight(head, layout.size) {
                        Ok((ticket, _)) => elsewhere(ticket, head),
                        Err(why) => {
                            self.give_up(vring, why);
                            break;
                        }
                    }
                }
            }
        });
        self.shift.end(turn);
    }

    /// Serves one request that is in flight; gives what it has to wait for beyond the
    /// thread's `patience`. Then it is in flight still, and to be served again.
    pub(super) fn serve_one<F: FileSystem>(
        &self,
        device: &Common<F>,
        of: (&Vring, Ticket, u16),
        workspace: &mut Workspace,
        patience: Patience,
    ) -> Option<Wait> {
        self.serve_in_flight(device, of, workspace, patience, |_| ())
    }

    /// The same; `is_done` is called before the guest hears of it.
    fn serve_in_flight<F: FileSystem>(
        &self,
        device: &Common<F>,
        (vring, ticket, head): (&Vring, Ticket, u16),
        workspace: &mut Workspace,
        patience: Patience,
        is_done: impl FnOnce(&Ring<'_>),
    ) -> Option<Wait> {
        if self.in_flight.is_given_up(ticket) {
            return None;
        }
        let view = device.memory.view();
        let Workspace { spans, scratch, .. } = workspace;
        let layout = layout(&vring.get_ref());
        let of = (vring, ticket, head);
        let ring = match Ring::new(view.memory(), &layout) {
            Ok(ring) => ring,
            Err(why) => {
                self.drop_broken(device, of, &view, why);
                return None;
            }
        };
        let handled = ring
            .gather(head, spans)
            .map(|(request, reply)| device.server.handle(scratch, request, reply, patience));
        if handled.is_ok() {
            is_done(&ring);
        }
        self.conclude(device, of, &view, &ring, handled)
    }

    /// Takes the next chains, for which the ring may be polled for a while;
    /// `None` when the thread is to wait for a kick.
    fn take_or_poll<F>(
        &self,
        device: &Common<F>,
        vring: &Vring,
        heads: &mut Vec<u16>,
    ) -> Option<RingLayout> {
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
        let view = device.memory.view();
        if let Ok(ring) = Ring::new(view.memory(), &layout) {
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
    ) -> Option<RingLayout> {
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
        let view = device.memory.view();
        let taken = Ring::new(view.memory(), &layout).and_then(|ring| {
            let mut next_available = state.get_queue().next_avail();
            loop {
                next_available = ring.take(next_available, BATCH as u16, heads)?;
                if !heads.is_empty() {
                    ring.suppress_kicks();
                    return Ok(Some(next_available));
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
            Ok(Some(next_available)) => {
                if SILENCE.load(Ordering::Relaxed) {
                    SILENCE.store(false, Ordering::Relaxed);
                }
                state.get_queue_mut().set_next_avail(next_available);
                Some(layout)
            }
            Err(why) => {
                drop(state);
                self.give_up(vring, why);
                None
            }
        }
    }
}

/// Hands a finished request back and notifies the guest if it waits for that.
///
/// Each is handed back at once: a guest that is awake goes on while the rest of
/// the batch is served and asks for no notification, and one that sleeps is woken
/// by the first. With whole batches the two sides take turns, which measured half
/// the throughput of 4 KiB reads at depth 16 (groups of 4 and 8: no gain).
fn hand_back<F: FileSystem>(
    device: &Common<F>,
    state: &mut State,
    view: &View<'_>,
    ring: &Ring<'_>,
    done: Used,
) {
    if view.is_stale() {
        // The reply went nowhere.
        fail(device, state, done.head);
    } else {
        publish(state, ring, done);
    }
}

/// Lets a request fail.
fn fail<F: FileSystem>(device: &Common<F>, state: &mut State, head: u16) {
    let view = device.memory.view();
    let mut spans = Spans::default();
    if let Ok(ring) = Ring::new(view.memory(), &layout(state))
        && let Ok((request, reply)) = ring.gather(head, &mut spans)
    {
        let len = device.server.fail(request, reply, Errno::IO);
        publish(state, &ring, Used { head, len });
    }
}

fn publish(state: &mut State, ring: &Ring<'_>, done: Used) {
    let queue = state.get_queue_mut();
    // Not the queue's own copy, see above.
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

type State = VringState<GuestMemoryAtomic<GuestMemory>>;

/// Where the queue lies now.
fn layout(state: &State) -> RingLayout {
    let queue = state.get_queue();
    RingLayout {
        size: queue.size(),
        descriptors: queue.desc_table(),
        available: queue.avail_ring(),
        used: queue.used_ring(),
        event_idx: queue.event_idx_enabled(),
    }
}
