//! What the front end asks of the device: features, memory, state, and the
//! events of its queues.

use std::fs::File;
use std::io;
use std::iter::repeat_n;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::executor::{ThreadPool, ThreadPoolBuilder};
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::config_space::{self, TAG_BYTES};
use super::helpers::{HelperKind, Helpers, IDLE_TIME, Overflow};
use super::in_flight::Ticket;
use super::queue::{Common, Queue};
use super::relief::{Queues, Relief};
use super::shift::InRequest;
use super::standby::{Lent, Standbys};
use super::state::StateTransfer;
use super::vring::{Events, Vring};
use super::workspace::{WORKSPACE, Workspace};
use super::{MAX_HELPERS, MAX_LOCK_WAITS, MAX_QUEUE_SIZE, MAX_REQUEST_QUEUES, settle};
use crate::fs::{FileSystem, Migrate, Patience, Wait};
use crate::guest::{GuestMemory, RegionLog, SharedMemory, forget_writes, misses_a_write};
use crate::metrics::{Gauge, Gauges, Metrics};
use crate::server::{Access, Server};
use crate::sys;
use crate::sys::long_wait;
use crate::sys::sync::lock;

/// How the device is set up.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// The tag, padded with NUL, for the configuration space; without one there
    /// is none.
    pub tag: Option<[u8; TAG_BYTES]>,
    /// Request queues: 1 to [`MAX_REQUEST_QUEUES`].
    pub request_queues: usize,
    /// Which threads serve requests.
    pub threads: Threads,
    /// Where numbers about the device are to be had.
    pub metrics: Arc<Metrics>,
    /// What is to be seen of each request.
    pub watch: WatchOptions,
    /// For how long at most a queue is polled before its thread sleeps.
    pub polled_for: Duration,
    /// Whether another front end is served after one that disconnected.
    pub keep_listening: bool,
    /// Whether the guest may change the tree.
    pub access: Access,
}

/// What is to be seen of each request.
#[derive(Clone, Copy, Debug, Default)]
pub struct WatchOptions {
    /// Whether requests are counted.
    pub count: bool,
    /// Requests that take so long are logged.
    pub slow: Option<Duration>,
}

/// Which threads serve requests. Who waits for a lock has a thread of its own in
/// any case: the one who is to unlock may be behind it in the queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Threads {
    /// Each queue's own, one request after the other.
    Own,
    /// Each queue's own, but what has to wait waits on others that start on
    /// demand.
    OwnAndHelpers,
    /// A pool of so many, out of order.
    Pool(usize),
}

/// A virtio-fs device over a file system.
pub struct Device<F: FileSystem> {
    common: Arc<Common<F>>,
    queues: Vec<Arc<Queue>>,
    /// Of the request queues, where those wait for nothing.
    standbys: Standbys,
    serving: Arc<Serving>,
    config_space: Option<Vec<u8>>,
    /// The way to ask the front end for something, which is never done; QEMU
    /// complains when it is closed.
    to_front_end: Mutex<Option<Backend>>,
    /// Numbers of the descriptors that the library waits for its end on.
    exit_events: Mutex<Vec<RawFd>>,
    migrate: Arc<dyn Migrate>,
    transfer: StateTransfer,
    /// When a queue last waited for as long as it may.
    gave_up: Mutex<Option<Instant>>,
    /// The working directory of every thread that serves.
    thread_directory: OwnedFd,
}

/// The threads that serve, for one connection after the other.
pub(super) struct Serving {
    first: First,
    storage_helpers: Arc<Helpers>,
    server_helpers: Arc<Helpers>,
    lock_helpers: Arc<Helpers>,
}

/// Who takes up a request.
enum First {
    /// The queue's own thread, which may wait so.
    Own(Patience),
    Pool(ThreadPool),
}

const STORAGE_HELPERS: HelperKind = HelperKind {
    name: "helper",
    most: MAX_HELPERS,
    idle_time: IDLE_TIME,
    patience: Patience::Storage,
    overflow: Overflow::Waits,
};

const SERVER_HELPERS: HelperKind = HelperKind {
    name: "server wait",
    ..STORAGE_HELPERS
};

const LOCK_HELPERS: HelperKind = HelperKind {
    name: "lock wait",
    most: MAX_LOCK_WAITS,
    idle_time: IDLE_TIME,
    patience: Patience::Locks,
    overflow: Overflow::IsRefused,
};

/// The longest time that a stopping queue waits for its requests. A snapshot freezes a
/// file system for less.
const LONGEST_DRAIN: Duration = Duration::from_secs(5);

/// The same shortly after another queue of the device has waited that long.
const SHORT_DRAIN: Duration = Duration::from_millis(100);

/// The time within which all queues of a device are stopped.
const ONE_STOP: Duration = Duration::from_secs(10);

impl Serving {
    /// Every thread that serves gets `directory` as its working directory, and
    /// where it may a file-system context of its own; that this is possible is
    /// tried here, on the calling thread.
    ///
    /// # Errors
    /// When threads cannot be set up so.
    pub(super) fn new(
        threads: Threads,
        maker: PoolMaker,
        directory: &OwnedFd,
    ) -> anyhow::Result<Self> {
        sys::thread::settle_in(directory).context("cannot give a thread its working directory")?;
        let copy = || directory.try_clone().context("cannot copy a descriptor");
        Ok(Self {
            first: match threads {
                Threads::Own => First::Own(Patience::Storage),
                Threads::OwnAndHelpers => First::Own(Patience::Nothing),
                Threads::Pool(threads) => {
                    First::Pool(start_pool(maker, threads, directory.as_fd())?)
                }
            },
            storage_helpers: Helpers::new(STORAGE_HELPERS, copy()?),
            server_helpers: Helpers::new(SERVER_HELPERS, copy()?),
            lock_helpers: Helpers::new(LOCK_HELPERS, copy()?),
        })
    }
}

impl<F: FileSystem> Device<F> {
    /// A device whose memory the front end has yet to send.
    ///
    /// # Errors
    /// When a descriptor cannot be copied.
    pub(super) fn new(
        server: Arc<Server<F>>,
        serving: Arc<Serving>,
        migrate: Arc<dyn Migrate>,
        options: &DeviceOptions,
        memory: GuestMemoryAtomic<GuestMemory>,
        thread_directory: &OwnedFd,
    ) -> anyhow::Result<Self> {
        let request_queues = options.request_queues.clamp(1, MAX_REQUEST_QUEUES);
        let others = match options.threads {
            Threads::Own => 0,
            Threads::OwnAndHelpers => 2 * MAX_HELPERS + 1,
            Threads::Pool(threads) => threads,
        };
        let others = others + MAX_LOCK_WAITS;
        Ok(Self {
            common: Arc::new(Common {
                server,
                memory: SharedMemory::new(memory),
                storage_helpers: Arc::clone(&serving.storage_helpers),
                server_helpers: Arc::clone(&serving.server_helpers),
                lock_helpers: Arc::clone(&serving.lock_helpers),
                relief: Relief::default(),
            }),
            queues: (0..=request_queues)
                .map(|index| Arc::new(Queue::new(index, others, options.polled_for)))
                .collect(),
            standbys: Standbys::default(),
            serving,
            config_space: options
                .tag
                .as_ref()
                .map(|tag| config_space::bytes(tag, request_queues as u32)),
            to_front_end: Mutex::default(),
            exit_events: Mutex::default(),
            migrate,
            transfer: StateTransfer::default(),
            gave_up: Mutex::default(),
            thread_directory: thread_directory
                .try_clone()
                .context("cannot copy a descriptor")?,
        })
    }

    /// Ends the session of a front end that will not come back. The queues'
    /// threads have ended; requests on other threads are waited for.
    pub(super) fn front_end_is_gone(&self) {
        self.common.relief.stop();
        self.acked_features(0);
        self.reset_device();
        for number in lock(&self.exit_events).drain(..) {
            // The library gives up the descriptor and never closes it.
            drop(sys::adopt_fd::adopt_fd(number));
        }
    }

    /// Names the library's threads and its vrings.
    pub(super) fn set_threads(
        &self,
        threads: &[Arc<VringEpollHandler<Arc<Self>>>],
        vrings: Vec<Vring>,
    ) {
        for (index, ((queue, vring), events)) in
            self.queues.iter().zip(vrings).zip(threads).enumerate()
        {
            vring.set_place(index, events_of(events), self.kicked());
            queue.set_vring(vring);
        }
        let standbys = threads.iter().skip(self.queues.len());
        self.standbys.set(standbys.map(events_of).collect());
    }

    /// Has threads looked after that are in one request for too long, where others can
    /// go on.
    ///
    /// # Errors
    /// Those of `pthread_create(3)`.
    pub(super) fn start_relief(self: &Arc<Self>) -> io::Result<()> {
        if self.standbys() == 0 {
            return Ok(());
        }
        let this = Arc::downgrade(self);
        self.common
            .relief
            .start(this, |device| &device.common.relief)
    }

    /// How many request queues have a standby.
    fn standbys(&self) -> usize {
        match self.serving.first {
            First::Own(Patience::Nothing) => self.queues.len() - 1,
            _ => 0,
        }
    }

    /// The number of the event that a thread hears of when there is a kick that the
    /// library does not read.
    fn kicked(&self) -> u64 {
        // The numbers up to that of the queues are the library's.
        self.queues.len() as u64 + 1
    }

    /// Has the standby of a queue listen to its kicks.
    fn lend(&self, index: usize, vring: &Vring) -> Option<Lent> {
        // Queue 0 has none.
        let standby = index.checked_sub(1)?;
        self.standbys.lend(standby, vring, self.kicked())
    }

    /// Serves what is available in one queue, on its own thread.
    fn serve_own(&self, index: usize, vring: &Vring) {
        if let Some(queue) = self.queues.get(index) {
            self.serve(queue, vring, || self.lend(index, vring));
        }
    }

    /// Serves what is available in a queue that was lent to its standby.
    fn serve_lent(&self, standby: usize) {
        if let Some(queue) = self.queues.get(standby + 1)
            && let Some(vring) = queue.vring()
            && matches!(vring.read_kick(), Ok(true))
        {
            self.serve(queue, vring, || None);
        }
    }

    /// Serves what is available in one queue.
    fn serve(&self, queue: &Arc<Queue>, vring: &Vring, lend: impl Fn() -> Option<Lent>) {
        let common = &self.common;
        match &self.serving.first {
            First::Own(patience) => {
                if *patience == Patience::Nothing {
                    long_wait::set_hook(|| {
                        let (queue, common) = (Arc::clone(queue), Arc::clone(common));
                        Box::new(move || queue.is_about_to_wait(&common.relief))
                    });
                }
                let elsewhere = |ticket, head, wait| {
                    hand_off(common, (queue, vring), ticket, head, wait);
                };
                queue.serve(common, vring, *patience, elsewhere, lend);
            }
            First::Pool(pool) => queue.distribute(common, vring, |ticket, head| {
                let job = job(common, (queue, vring), ticket, head);
                pool.spawn_ok(async move {
                    WORKSPACE.with_borrow_mut(|workspace| job(workspace, Patience::Storage));
                });
            }),
        }
    }

    /// Waits for the end of what a queue, which is stopped, still serves.
    fn drain(&self, queue: &Queue) {
        // The queues are stopped one after the other, and what keeps one keeps them all.
        let gave_up = *lock(&self.gave_up);
        let most = match gave_up {
            Some(then) if then.elapsed() < ONE_STOP => SHORT_DRAIN,
            _ => LONGEST_DRAIN,
        };
        let begun = Instant::now();
        let renew_memory = || {
            self.common.memory.renew(|| {
                for vring in self.queues.iter().filter_map(|queue| queue.vring()) {
                    drop(vring.get_mut());
                }
            })
        };
        let interrupt = || self.common.server.interrupt_waits();
        queue.drain(&self.common, most, interrupt, renew_memory);
        queue.mend();
        if begun.elapsed() > most {
            *lock(&self.gave_up) = Some(Instant::now());
        }
    }
}

/// A session is being taken over, until this is dropped.
struct Loading<F: FileSystem>(Arc<Server<F>>);

impl<F: FileSystem> Drop for Loading<F> {
    fn drop(&mut self) {
        self.0.end_load();
    }
}

impl<F: FileSystem> Queues for Device<F> {
    fn count(&self) -> usize {
        self.queues.len()
    }

    fn in_request(&self, queue: usize) -> Option<(InRequest, bool)> {
        self.queues.get(queue)?.in_request()
    }

    fn any_is_served(&self) -> bool {
        self.queues.iter().any(|queue| queue.is_served())
    }

    fn relieve(&self, index: usize, request: InRequest) {
        let Some((queue, vring)) = self
            .queues
            .get(index)
            .and_then(|queue| Some((queue, queue.vring()?)))
        else {
            return;
        };
        if !queue.relieve(&self.common, request, self.lend(index, vring)) {
            return;
        }
        log::debug!("queue {index}: its thread is in one request for long, another goes on");
        vring.kick();
    }
}

/// What a thread of the library waits with.
fn events_of<F: FileSystem>(events: &Arc<VringEpollHandler<Arc<Device<F>>>>) -> Weak<dyn Events> {
    Arc::<VringEpollHandler<Arc<Device<F>>>>::downgrade(events)
}

/// What the front end may not do, said to the operator.
fn refused(text: &str) -> io::Error {
    log::error!("{text}");
    io::Error::other(text)
}

/// Has a request that is in flight served by a thread that may wait so.
fn hand_off<F: FileSystem>(
    common: &Arc<Common<F>>,
    of: (&Arc<Queue>, &Vring),
    ticket: Ticket,
    head: u16,
    wait: Wait,
) {
    let helpers = match wait {
        Wait::ForDisk => &common.storage_helpers,
        Wait::ForServer => &common.server_helpers,
        Wait::ForLock => &common.lock_helpers,
    };
    // Without a thread it is done here; but not a wait for a lock.
    if let Err(job) = helpers.run(Box::new(job(common, of, ticket, head))) {
        job(&mut Workspace::default(), Patience::StorageOnly);
    }
}

/// The serving of a request that is in flight, for whichever thread.
fn job<F: FileSystem>(
    common: &Arc<Common<F>>,
    (queue, vring): (&Arc<Queue>, &Vring),
    ticket: Ticket,
    head: u16,
) -> impl FnOnce(&mut Workspace, Patience) + Send + use<F> {
    let common = Arc::clone(common);
    let queue = Arc::clone(queue);
    let vring = vring.clone();
    move |workspace, patience| {
        let of = (&vring, ticket, head);
        if let Some(wait) = queue.serve_one(&common, of, workspace, patience) {
            hand_off(&common, (&queue, &vring), ticket, head, wait);
        }
    }
}

/// The maker of a pool of threads.
///
/// It counts the processors when it is made, which reads files: to be made before
/// a sandbox is entered, in which their paths lead into the share.
pub struct PoolMaker(ThreadPoolBuilder);

impl PoolMaker {
    /// A maker whose number of threads is yet to be settled.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(ThreadPoolBuilder::new())
    }
}

/// Starts the threads of the pool and waits until each is set up.
fn start_pool(
    mut maker: PoolMaker,
    threads: usize,
    directory: std::os::fd::BorrowedFd<'_>,
) -> anyhow::Result<ThreadPool> {
    let directory = directory
        .try_clone_to_owned()
        .context("cannot copy a descriptor")?;
    maker
        .0
        .pool_size(threads)
        .name_prefix("pool-")
        .after_start(move |_| settle(&directory))
        .create()
        .context("cannot start the threads of --thread-pool-size")
}

impl<F: FileSystem> Gauges for Device<F> {
    fn gauges(&self) -> Vec<Gauge> {
        let queues = self.queues.iter().enumerate();
        queues
            .filter_map(|(number, queue)| {
                Some(Gauge {
                    name: "queue_depth",
                    help: "Requests that were taken from the queue and not handed back yet.",
                    queue: Some(number),
                    value: u64::from(queue.depth()?),
                })
            })
            .collect()
    }
}

impl<F: FileSystem> VhostUserBackend for Device<F> {
    type Bitmap = RegionLog;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.queues.len()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | VhostUserVirtioFeatures::LOG_ALL.bits()
    }

    fn acked_features(&self, features: u64) {
        let logging = features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        let was_logging = self.common.memory.set_logged(logging);
        match (was_logging, logging) {
            (false, true) => self.migrate.prepare(),
            (true, false) => {
                forget_writes(&self.common.memory.map());
                self.migrate.cancel();
            }
            _ => {}
        }
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::DEVICE_STATE
            | VhostUserProtocolFeatures::RESET_DEVICE;
        if self.config_space.is_some() {
            features |= VhostUserProtocolFeatures::CONFIG;
        }
        features
    }

    fn reset_device(&self) {
        self.transfer.cancel();
        for queue in &self.queues {
            self.drain(queue);
        }
        self.common.server.end_session();
        log::debug!("the front end reset the device");
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The library keeps it with each vring, where it is read.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let (start, end) = (offset as usize, offset.saturating_add(size) as usize);
        let space = self.config_space.as_deref().unwrap_or_default();
        space.get(start..end).unwrap_or_default().to_vec()
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemory>) -> io::Result<()> {
        // The library swaps the map inside the object that we hold as well.
        self.common.memory.admit(&memory.memory())
    }

    fn set_backend_req_fd(&self, backend: Backend) {
        *lock(&self.to_front_end) = Some(backend);
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // A standby has no queue of its own.
        let own = (0..self.queues.len()).map(|index| 1 << index);
        own.chain(repeat_n(0, self.standbys())).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::CLOEXEC).ok()?;
        lock(&self.exit_events).push(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        if let Some(queue) = self.queues.get(index as usize) {
            self.drain(queue);
        }
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        // There is one thread per queue, with the same number; then come standbys.
        settle(&self.thread_directory);
        match (thread.checked_sub(self.queues.len()), vrings.first()) {
            (Some(standby), _) => self.serve_lent(standby),
            (None, Some(vring)) => {
                if u64::from(event) != self.kicked() || matches!(vring.read_kick(), Ok(true)) {
                    self.serve_own(thread, vring);
                }
            }
            (None, None) => {}
        }
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<Option<File>> {
        // There is one phase only: the queues are stopped.
        let migrate = Arc::clone(&self.migrate);
        match direction {
            VhostTransferStateDirection::SAVE => {
                let logging = self.common.memory.is_logged();
                if logging && misses_a_write(&self.common.memory.map()) {
                    return Err(refused(
                        "the guest's memory was written to where the front end's dirty log is \
                         not; start the migration again",
                    ));
                }
                self.transfer.save(file, move |stop| migrate.save(stop))?;
            }
            VhostTransferStateDirection::LOAD => {
                if let Some(queue) = self.queues.iter().position(|queue| queue.is_started()) {
                    return Err(refused(&format!(
                        "the front end loads a state while queue {queue} is running; it has to \
                         stop all of them first"
                    )));
                }
                let server = Arc::clone(&self.common.server);
                server.begin_load();
                let loading = Loading(Arc::clone(&server));
                self.transfer.load(file, move |state, stop| {
                    let _loading = loading;
                    server.resume_session(migrate.load(state, stop)?);
                    Ok(())
                })?;
            }
        }
        Ok(None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        self.transfer.check()
    }
}
