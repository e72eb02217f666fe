//! The vring as the library keeps it, but for three things: a kick that is not
//! there is no error, the event by which the front end is to hear of a broken ring
//! can be signalled, and a new call event is signalled at once.
//!
//! The library's thread waits for kicks and then reads the one that came. When
//! the front end has stopped the queue and started it again in between, the kick
//! is another one, and nothing is in it yet. To the library that is an error, and
//! its thread ends without a word: the queue would never be served again.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::GuestMemoryAtomic;

use crate::guest::GuestMemory;
use crate::sys::locks::lock;

type Map = GuestMemoryAtomic<GuestMemory>;

/// One vring of the device; clones are the same one.
#[derive(Clone)]
pub struct Vring {
    library: VringMutex<Map>,
    /// Signalled when the guest has broken the ring; the library would keep it where
    /// nobody gets at it.
    error_event: Arc<Mutex<Option<File>>>,
}

impl Vring {
    /// Tells the front end that the ring is broken, if it wants to know.
    pub(super) fn signal_error(&self) {
        if let Some(mut event) = lock(&self.error_event).as_ref() {
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
        Ok(Self {
            library: VringMutex::new(memory, max_queue_size)?,
            error_event: Arc::default(),
        })
    }

    fn set_kick(&self, file: Option<File>) {
        never_wait(file.as_ref());
        self.library.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.library.read_kick() {
            // Looking at a queue for nothing does no harm.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(self.library.get_ref().is_enabled())
            }
            result => result,
        }
    }

    fn set_err(&self, file: Option<File>) {
        never_wait(file.as_ref());
        *lock(&self.error_event) = file;
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
