//! The vring as the library keeps it, but for a few things: a kick that is not
//! there is no error, nor is one that cannot be read; a kick that takes the place of
//! another one is listened to; the event by which the front end is to hear of a broken
//! ring can be signalled; a new call event is signalled at once; and a size that no
//! ring can have is refused.
//!
//! The library's thread waits for kicks and then reads the one that came. When
//! the front end has stopped the queue and started it again in between, the kick
//! is another one, and nothing is in it yet. To the library that is an error, and
//! its thread ends without a word: the queue would never be served again.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost_user_backend::{
    VhostUserBackend, VringEpollHandler, VringMutex, VringState, VringStateGuard,
    VringStateMutGuard, VringT,
};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;

use super::MAX_QUEUE_SIZE;
use crate::guest::GuestMemory;
use crate::sys::adopt_fd::adopt_fd;
use crate::sys::sync::lock;

type Map = GuestMemoryAtomic<GuestMemory>;

/// One vring of the device; clones are the same one.
#[derive(Clone)]
pub struct Vring {
    library: VringMutex<Map>,
    own: Arc<Own>,
}

/// What is kept beside the library's part.
#[derive(Default)]
struct Own {
    /// Signalled when the guest has broken the ring; the library would keep it where
    /// nobody gets at it.
    error_event: Mutex<Option<File>>,
    /// Set while there is no kick that can be heard.
    is_deaf: AtomicBool,
    /// Set while the front end has asked for a size that no ring can have.
    has_bad_size: AtomicBool,
    place: OnceLock<Place>,
    /// Who else listens to its kicks, if somebody does.
    lent_to: Mutex<Option<Listener>>,
}

/// A thread that listens to the kicks of a vring whose own thread waits.
struct Listener {
    events: Arc<dyn Events>,
    /// What it hears of a kick.
    event: u64,
}

/// Which queue it is, and whose thread serves it.
struct Place {
    index: usize,
    events: Weak<dyn Events>,
    /// What that thread hears of a kick that the library does not listen to.
    kicked: u64,
}

/// What a thread of the library waits with.
pub(super) trait Events: Send + Sync {
    /// Has it wait for a kick too, in this way, as event number `event`.
    fn add(&self, kick: RawFd, how: EventSet, event: u64) -> io::Result<()>;

    /// Has it wait for a kick no more, whoever had it do so.
    fn remove(&self, kick: RawFd, event: u64);
}

impl<T: VhostUserBackend> Events for VringEpollHandler<T>
where
    Self: Send + Sync,
{
    fn add(&self, kick: RawFd, how: EventSet, event: u64) -> io::Result<()> {
        self.register_listener(kick, how, event)
    }

    fn remove(&self, kick: RawFd, event: u64) {
        let _ = self.unregister_listener(kick, EventSet::IN, event);
    }
}

/// A thread hears of each kick once, even if it does not read it.
fn by_edge() -> EventSet {
    EventSet::IN | EventSet::EDGE_TRIGGERED
}

thread_local! {
    /// The vrings that this thread has made and nobody has asked for.
    static MADE: RefCell<Vec<Vring>> = const { RefCell::new(Vec::new()) };
}

impl Vring {
    /// The vrings that this thread has made since the last time, in the order of
    /// their queues: the library makes them, and gives none out.
    pub(super) fn take_made() -> Vec<Self> {
        MADE.take()
    }

    /// Says which queue it is and what its thread waits with, which hears event
    /// number `kicked` when there is a kick that it has to read itself.
    pub(super) fn set_place(&self, index: usize, events: Weak<dyn Events>, kicked: u64) {
        let place = Place {
            index,
            events,
            kicked,
        };
        // There is none but this.
        let _ = self.own.place.set(place);
    }

    /// Whether the front end has started it and not stopped it since.
    pub(super) fn is_started(&self) -> bool {
        self.library.get_ref().get_queue().ready()
    }

    /// Whether the front end has asked for a size that no ring can have.
    pub(super) fn has_bad_size(&self) -> bool {
        self.own.has_bad_size.load(Ordering::Relaxed)
    }

    /// Has whoever listens look at the ring.
    pub(super) fn kick(&self) {
        let kick = self
            .library
            .get_ref()
            .get_kick()
            .as_ref()
            .and_then(|kick| kick.try_clone().ok());
        if let Some(kick) = kick.and_then(|kick| adopt_fd(kick.into_raw_fd()).ok()) {
            // One that is full is heard as well.
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
    }

    /// Has another thread listen to its kicks too, those that the front end will set as
    /// well; `false` where there is none, or where one does already.
    ///
    /// By edge: should the front end set another kick meanwhile, the one before stays
    /// until the front end closes it, and must not keep the thread busy.
    pub(super) fn lend(&self, events: Arc<dyn Events>, event: u64) -> bool {
        let mut lent_to = lock(&self.own.lent_to);
        let Some(kick) = self.kick_number().filter(|_| lent_to.is_none()) else {
            return false;
        };
        let is_heard = events.add(kick, by_edge(), event).is_ok();
        *lent_to = is_heard.then_some(Listener { events, event });
        is_heard
    }

    /// No other thread listens to its kicks any more.
    pub(super) fn take_back(&self) {
        let lent_to = lock(&self.own.lent_to).take();
        // Under the vring's lock, so that the number still is that of the kick.
        let state = self.library.get_ref();
        if let (Some(listener), Some(kick)) = (lent_to, state.get_kick().as_ref()) {
            listener.events.remove(kick.as_raw_fd(), listener.event);
        }
    }

    fn kick_number(&self) -> Option<RawFd> {
        let state = self.library.get_ref();
        state.get_kick().as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Has the queue's thread wait for the kick, or not.
    fn listen(&self, state: &VringState<Map>, is_wanted: bool) -> io::Result<()> {
        if let Some(kick) = state.get_kick().as_ref().map(AsRawFd::as_raw_fd)
            && let Some(place) = self.own.place.get()
            && let Some(events) = place.events.upgrade()
        {
            if is_wanted {
                return events.add(kick, EventSet::IN, place.kicked);
            }
            events.remove(kick, place.kicked);
        }
        Ok(())
    }

    /// The queue's thread cannot hear the kick: it stops to listen, which would keep
    /// it busy, and says so.
    fn be_deaf(&self, why: &io::Error) {
        let _ = self.listen(&self.library.get_ref(), false);
        if self.own.is_deaf.swap(true, Ordering::Relaxed) {
            return;
        }
        self.signal_error();
        let index = self.own.place.get().map_or(0, |place| place.index);
        log::error!(
            "queue {index} hears of no more requests: its kick event cannot be read ({why}); \
             the front end has to send one that can"
        );
    }

    /// Tells the front end that the ring is broken, if it wants to know.
    pub(super) fn signal_error(&self) {
        if let Some(mut event) = lock(&self.own.error_event).as_ref() {
            // Where the counter is full the front end has yet to hear of the last one.
            let _ = event.write(&1u64.to_ne_bytes());
        }
    }
}

/// Reading or writing an event that may wait would wait with the vring locked. Only a
/// descriptor that is none cannot be asked not to.
fn never_wait(event: Option<&File>) {
    if let Some(file) = event
        && let Ok(flags) = fcntl_getfl(file)
        && !flags.contains(OFlags::NONBLOCK)
    {
        let _ = fcntl_setfl(file, flags | OFlags::NONBLOCK);
    }
}

impl<'a> VringStateGuard<'a, Map> for Vring {
    type G = MutexGuard<'a, VringState<Map>>;
}

impl<'a> VringStateMutGuard<'a, Map> for Vring {
    type G = MutexGuard<'a, VringState<Map>>;
}

impl VringT<Map> for Vring {
    fn new(memory: Map, max_queue_size: u16) -> Result<Self, QueueError> {
        let vring = Self {
            library: VringMutex::new(memory, max_queue_size)?,
            own: Arc::default(),
        };
        MADE.with_borrow_mut(|made| made.push(vring.clone()));
        Ok(vring)
    }

    /// The library listens to the kick of a ring that starts, and to no other one. One
    /// that takes its place while the ring runs would not be heard, and the one before,
    /// which the front end may keep, would keep the thread busy.
    fn set_kick(&self, file: Option<File>) {
        never_wait(file.as_ref());
        let lent_to = lock(&self.own.lent_to);
        let _ = self.listen(&self.library.get_ref(), false);
        if let (Some(listener), Some(kick)) = (lent_to.as_ref(), self.kick_number()) {
            listener.events.remove(kick, listener.event);
        }
        self.library.set_kick(file);
        if let (Some(listener), Some(kick)) = (lent_to.as_ref(), self.kick_number())
            && let Err(error) = listener.events.add(kick, by_edge(), listener.event)
        {
            log::debug!("a thread cannot listen to the kicks of a queue: {error}");
        }
        drop(lent_to);
        self.own.is_deaf.store(false, Ordering::Relaxed);
        let state = self.library.get_ref();
        if !state.get_queue().ready() || !state.is_enabled() {
            return;
        }
        let listening = self.listen(&state, true);
        drop(state);
        match listening {
            // What the guest has kicked for by the one before is looked for.
            Ok(()) => self.kick(),
            Err(error) => self.be_deaf(&error),
        }
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.library.read_kick() {
            // Looking at a queue for nothing does no harm.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(self.library.get_ref().is_enabled())
            }
            Err(error) => {
                self.be_deaf(&error);
                Ok(false)
            }
            result => result,
        }
    }

    fn set_err(&self, file: Option<File>) {
        never_wait(file.as_ref());
        *lock(&self.own.error_event) = file;
    }

    // Everything else is the library's.

    fn get_ref(&self) -> MutexGuard<'_, VringState<Map>> {
        self.library.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Map>> {
        self.library.get_mut()
    }

    fn add_used(&self, head: u16, len: u32) -> Result<(), QueueError> {
        self.library.add_used(head, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.library.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.library.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.library.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.library.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.library.set_enabled(enabled);
    }

    fn set_queue_info(
        &self,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), QueueError> {
        if self.has_bad_size() {
            return Err(QueueError::InvalidMaxSize);
        }
        self.library.set_queue_info(descriptors, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.library.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.library.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.library.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.library.queue_used_idx()
    }

    fn set_queue_size(&self, entries: u16) {
        // The library would keep the size from before, without a word.
        let is_bad = !entries.is_power_of_two();
        self.own.has_bad_size.store(is_bad, Ordering::Relaxed);
        if is_bad {
            log::error!(
                "the front end asks for a queue of {entries} entries; it has to be a power of \
                 two, at most {MAX_QUEUE_SIZE}"
            );
            return;
        }
        self.library.set_queue_size(entries);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.library.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.library.set_queue_ready(ready);
    }

    /// A front end may have looked at the previous call event for the last time just
    /// before we signalled that: QEMU up to 10.1 does so when it unmasks an
    /// interrupt, and the guest would wait for ever. One signal too many does no harm.
    fn set_call(&self, file: Option<File>) {
        never_wait(file.as_ref());
        self.library.set_call(file);
        let state = self.library.get_ref();
        if state.get_queue().ready() {
            let _ = state.signal_used_queue();
        }
    }
}
