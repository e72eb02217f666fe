//! The vring as the library keeps it, but for one thing: a kick that is not
//! there is no error.
//!
//! The library's thread waits for kicks and then reads the one that came. When
//! the front end has stopped the queue and started it again in between, the kick
//! is another one, and nothing is in it yet. To the library that is an error, and
//! its thread ends without a word: the queue would never be served again.

use std::fs::File;
use std::io;
use std::sync::MutexGuard;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::GuestMemoryAtomic;

use crate::guest::GuestMemory;

type Map = GuestMemoryAtomic<GuestMemory>;

/// One vring of the device; clones are the same one.
#[derive(Clone)]
pub struct Vring(VringMutex<Map>);

impl<'a> VringStateGuard<'a, Map> for Vring {
    type G = MutexGuard<'a, VringState<Map>>;
}

impl<'a> VringStateMutGuard<'a, Map> for Vring {
    type G = MutexGuard<'a, VringState<Map>>;
}

impl VringT<Map> for Vring {
    fn new(memory: Map, max_queue_size: u16) -> Result<Self, QueueError> {
        VringMutex::new(memory, max_queue_size).map(Self)
    }

    fn set_kick(&self, file: Option<File>) {
        // Reading one that may wait would wait with the vring locked. Only a
        // descriptor that is none cannot be asked not to.
        if let Some(file) = &file
            && let Ok(flags) = fcntl_getfl(file)
            && !flags.contains(OFlags::NONBLOCK)
        {
            let _ = fcntl_setfl(file, flags | OFlags::NONBLOCK);
        }
        self.0.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            // Looking at a queue for nothing does no harm.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(self.0.get_ref().is_enabled())
            }
            result => result,
        }
    }

    // Everything else is the library's.

    fn get_ref(&self) -> MutexGuard<'_, VringState<Map>> {
        self.0.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Map>> {
        self.0.get_mut()
    }

    fn add_used(&self, head: u16, len: u32) -> Result<(), QueueError> {
        self.0.add_used(head, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(
        &self,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), QueueError> {
        self.0.set_queue_info(descriptors, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.0.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, entries: u16) {
        self.0.set_queue_size(entries);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }

    fn set_call(&self, file: Option<File>) {
        self.0.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}
