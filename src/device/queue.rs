//! Serving one queue: take chains, let the server answer, hand them back,
//! notify the guest.
//!
//! The queue's indexes change only under the vring's own lock, which is never
//! held while a request is served. `serving` is held by the queue's thread for
//! as long as it works, so that whoever stops the queue can wait for the end;
//! requests in the thread pool are counted for the same purpose.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};

use crate::fs::FileSystem;
use crate::guest::buffers::Spans;
use crate::guest::ring::{Ring, RingError, RingLayout, Used};
use crate::guest::{GuestMemory, Memory};
use crate::server::{Scratch, Server};
use crate::sys::locks::{lock, wait};

/// The vring as the library keeps it.
pub(super) type Vring = VringMutex<GuestMemoryAtomic<GuestMemory>>;

/// Chains that are taken at once.
const BATCH: u16 = 64;

/// Buffers of one serving thread.
#[derive(Default)]
pub(super) struct Workspace {
    spans: Spans,
    scratch: Scratch,
    heads: Vec<u16>,
}

/// One queue of the device.
pub(super) struct Queue {
    index: usize,
    /// Held by the queue's thread while it serves.
    serving: Mutex<Workspace>,
    /// Set when the guest broke the ring; nothing is served until it is reset.
    broken: AtomicBool,
    /// Set while somebody waits for the end of what is being served.
    stopping: AtomicBool,
    /// Requests that are in the thread pool.
    in_pool: Mutex<usize>,
    pool_is_empty: Condvar,
}

/// What can be asked of a vring in one go, under its lock.
struct Taken {
    layout: RingLayout,
    next_available: u16,
}

impl Queue {
    pub(super) fn new(index: usize) -> Self {
        Self {
            index,
            serving: Mutex::default(),
            broken: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            in_pool: Mutex::new(0),
            pool_is_empty: Condvar::new(),
        }
    }

    /// Waits until no request of this queue is being served. The vring is
    /// stopped already, so no new one is taken; those that were taken but not
    /// begun are given back.
    pub(super) fn drain(&self) {
        self.stopping.store(true, Ordering::Release);
        drop(lock(&self.serving));
        self.stopping.store(false, Ordering::Release);
        let mut in_pool = lock(&self.in_pool);
        while *in_pool > 0 {
            in_pool = wait(&self.pool_is_empty, in_pool);
        }
    }

    /// The queue was stopped: what the guest broke is forgotten.
    pub(super) fn mend(&self) {
        self.broken.store(false, Ordering::Release);
    }

    /// Stops serving the queue and says why, once.
    fn give_up(&self, why: RingError) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            log::error!(
                "queue {} is stopped until the guest resets the device: {why}",
                self.index
            );
        }
    }

    /// Serves everything that is available, on this thread.
    pub(super) fn serve<F: FileSystem>(
        &self,
        server: &Server<F>,
        vring: &Vring,
        memory: &GuestMemoryAtomic<GuestMemory>,
        logging: &AtomicBool,
    ) {
        let mut workspace = lock(&self.serving);
        while let Some(taken) = self.take(vring, memory, logging, &mut workspace.heads) {
            // The map must not be older than the chains: memory that the front
            // end has just added may hold their buffers.
            let map = memory.memory();
            let memory = Memory::new(&map, logging);
            let served = self.serve_batch(server, vring, memory, &taken, &mut workspace);
            let left = workspace.heads.len() - served;
            if self.broken.load(Ordering::Acquire) {
                return;
            }
            if left > 0 {
                // Stopped: they stay available for whoever goes on.
                let mut state = vring.get_mut();
                let queue = state.get_queue_mut();
                queue.set_next_avail(queue.next_avail().wrapping_sub(left as u16));
                return;
            }
        }
    }

    /// Takes what is available and hands each chain to `spawn`, which has it
    /// served by [`Queue::serve_one`] on one of `threads` other threads.
    pub(super) fn distribute(
        &self,
        vring: &Vring,
        memory: &GuestMemoryAtomic<GuestMemory>,
        logging: &AtomicBool,
        threads: usize,
        mut spawn: impl FnMut(u16),
    ) {
        let mut workspace = lock(&self.serving);
        while let Some(taken) = self.take(vring, memory, logging, &mut workspace.heads) {
            let mut in_pool = lock(&self.in_pool);
            // A guest that makes a chain available again before it was used
            // would have us queue without end. An honest one may be ahead by
            // what each thread has handed back but not yet counted.
            let waiting = *in_pool + workspace.heads.len();
            if waiting > usize::from(taken.layout.size) + threads {
                drop(in_pool);
                return self.give_up(RingError::AvailableIndex);
            }
            *in_pool = waiting;
            drop(in_pool);
            workspace.heads.iter().copied().for_each(&mut spawn);
        }
    }

    /// Serves one chain that [`Queue::distribute`] took.
    pub(super) fn serve_one<F: FileSystem>(
        &self,
        server: &Server<F>,
        vring: &Vring,
        map: &GuestMemory,
        logging: &AtomicBool,
        head: u16,
        workspace: &mut Workspace,
    ) {
        let memory = Memory::new(map, logging);
        let Workspace { spans, scratch, .. } = workspace;
        let layout = layout(&vring.get_ref());
        let outcome = Ring::new(memory, &layout).and_then(|ring| {
            let (request, reply) = ring.gather(head, spans)?;
            let len = server.handle(scratch, request, reply);
            hand_back(vring, &ring, Used { head, len });
            Ok(())
        });
        if let Err(why) = outcome {
            self.give_up(why);
        }
        let mut in_pool = lock(&self.in_pool);
        *in_pool -= 1;
        if *in_pool == 0 {
            self.pool_is_empty.notify_all();
        }
    }

    /// Takes the next chains into `heads`; `None` when there are none, the
    /// guest was asked to kick for the next one, and none came meanwhile; or
    /// when the queue is stopped or broken.
    fn take(
        &self,
        vring: &Vring,
        memory: &GuestMemoryAtomic<GuestMemory>,
        logging: &AtomicBool,
        heads: &mut Vec<u16>,
    ) -> Option<Taken> {
        heads.clear();
        if self.broken.load(Ordering::Acquire) {
            return None;
        }
        let mut state = vring.get_mut();
        if !state.is_enabled() || !state.get_queue().ready() {
            return None;
        }
        let layout = layout(&state);
        let map = memory.memory();
        let taken = Ring::new(Memory::new(&map, logging), &layout).and_then(|ring| {
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
                if !ring.ask_for_kick(next_available) {
                    return Ok(None);
                }
            }
        });
        match taken {
            Ok(taken) => {
                let taken = taken?;
                state.get_queue_mut().set_next_avail(taken.next_available);
                Some(taken)
            }
            Err(why) => {
                drop(state);
                self.give_up(why);
                None
            }
        }
    }

    /// Serves the chains in `workspace.heads`, in order; gives how many, which
    /// is fewer than all when the queue is to stop or the guest broke the ring.
    fn serve_batch<F: FileSystem>(
        &self,
        server: &Server<F>,
        vring: &Vring,
        memory: Memory<'_>,
        taken: &Taken,
        workspace: &mut Workspace,
    ) -> usize {
        let Workspace {
            spans,
            scratch,
            heads,
        } = workspace;
        let mut served = 0;
        let outcome = Ring::new(memory, &taken.layout).and_then(|ring| {
            for head in heads.iter().copied() {
                if self.stopping.load(Ordering::Acquire) {
                    break;
                }
                let (request, reply) = ring.gather(head, spans)?;
                let len = server.handle(scratch, request, reply);
                hand_back(vring, &ring, Used { head, len });
                served += 1;
            }
            Ok(())
        });
        if let Err(why) = outcome {
            self.give_up(why);
        }
        served
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
