//! The measured loop: keeps the queues filled to their depth for a while.
//!
//! All requests lie ready in guest memory, each with its own table of indirect
//! descriptors. Sending one is a write to the slot's descriptor and to the
//! available ring; nothing is allocated while the clock runs. The driver waits
//! for calls as a guest does and never spins.

use std::io;
use std::panic::resume_unwind;
use std::sync::Barrier;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::Case;
use crate::common::daemon::Daemon;
use crate::common::frontend::{
    Config, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, HIPRIO, LOW_MEMORY, Queue, REQUEST,
    Vmm,
};
use crate::common::fuse_client::Client;
use crate::common::memory::GuestMemory;
use crate::common::wire::{Decoder, ENTRY_OUT, IN_HEADER, InHeader, OUT_HEADER};
use crate::counters::{CallCounter, Counters};
use crate::step;
use crate::step::{Feed, Kind, Reply, Step, Value};

/// Guests hand over data in pages of this size.
const PAGE: usize = 4096;

/// What one run of a case gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) ops_per_second: f64,
    /// Of one operation, or of one request where that does several.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cpu_us_per_op: f64,
    pub(crate) switches_per_op: f64,
    pub(crate) rss_mib: f64,
    /// Not counted in every run: it slows the daemon.
    pub(crate) calls_per_op: Option<f64>,
}

/// Runs a case on a daemon that waits for its guest.
pub(crate) fn measure(daemon: &Daemon, case: &Case, time: Duration) -> Sample {
    let mut guest = Guest::new(daemon, case);
    if case.workload.kind != Kind::Once {
        // A short run first, so that caches and clocks are warm.
        guest.run(time / 5);
    }
    let before = Counters::of(daemon);
    let elapsed = guest.run(time);
    let used = Counters::of(daemon).since(before);

    let rss_mib = daemon.rss() as f64 / f64::from(1 << 20);
    let operations = guest.operations() as f64;
    let mut latencies = guest.latencies();
    latencies.sort_unstable();
    let percentile = |part: f64| {
        let index = (latencies.len() - 1) as f64 * part;
        f64::from(latencies[index as usize]) / 1e3
    };
    Sample {
        ops_per_second: operations / elapsed.as_secs_f64(),
        p50_us: percentile(0.50),
        p99_us: percentile(0.99),
        cpu_us_per_op: used.cpu_ns as f64 / 1e3 / operations,
        switches_per_op: used.context_switches as f64 / operations,
        rss_mib,
        calls_per_op: None,
    }
}

/// System calls of the daemon for each operation of a case, if they can be
/// counted here.
pub(crate) fn count_calls(daemon: &Daemon, case: &Case, time: Duration) -> Option<f64> {
    let mut guest = Guest::new(daemon, case);
    let counter = CallCounter::start(daemon)?;
    guest.run(time);
    let calls = counter.stop()?;
    Some(calls as f64 / guest.operations() as f64)
}

/// A guest that has mounted the file system and has its requests ready.
struct Guest {
    lanes: Vec<Lane>,
    _hiprio: Queue,
    _vmm: Vmm,
}

impl Guest {
    fn new(daemon: &Daemon, case: &Case) -> Self {
        let config = Config {
            regions: vec![(LOW_MEMORY, 512 << 20)],
            queue_size: 1024,
            ..Config::default()
        };
        let mut vmm = Vmm::connect(daemon.socket(), &config);
        let hiprio = vmm.start_queue(HIPRIO);
        let mut lanes = Vec::new();
        for index in 0..case.queues {
            let mut client = Client::new(vmm.start_queue(REQUEST + index));
            if index == 0 {
                client.init();
            }
            lanes.push(Lane::new(client, case, index * case.depth));
        }
        Self {
            lanes,
            _hiprio: hiprio,
            _vmm: vmm,
        }
    }

    /// Runs all lanes at once, each on a thread; gives the time that the last
    /// one took.
    fn run(&mut self, time: Duration) -> Duration {
        let ready = Barrier::new(self.lanes.len());
        thread::scope(|scope| {
            let start = |lane| scope.spawn(|| run_lane(lane, &ready, time));
            let lanes: Vec<_> = self.lanes.iter_mut().map(start).collect();
            let join = |lane: ScopedJoinHandle<'_, Duration>| {
                // What surprised a lane is told as it is.
                lane.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            lanes.into_iter().map(join).max().unwrap()
        })
    }

    fn operations(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.operations).sum()
    }

    fn latencies(self) -> Vec<u32> {
        let lanes = self.lanes.into_iter();
        lanes.flat_map(|lane| lane.latencies).collect()
    }
}

fn run_lane(lane: &mut Lane, ready: &Barrier, time: Duration) -> Duration {
    ready.wait();
    lane.run(time)
}

/// One queue with all that is in flight on it.
struct Lane {
    queue: Queue,
    kind: Kind,
    slots: Vec<Slot>,
    operations: u64,
    latencies: Vec<u32>,
}

/// One of the requests in flight; its cycle of steps.
struct Slot {
    steps: Vec<Placed>,
    current: usize,
    /// Where the reply is written, and where data are.
    reply: u64,
    data: u64,
    /// When the operation under way began.
    started: Instant,
}

/// A step in guest memory.
struct Placed {
    opcode: u32,
    request: u64,
    descriptor: Descriptor,
    has_reply: bool,
    errno: i32,
    weight: u64,
    feeds: Vec<Feed>,
}

impl Lane {
    fn new(mut client: Client, case: &Case, first_slot: usize) -> Self {
        let mut slots = Vec::new();
        for slot in 0..case.depth {
            let slot = step::Slot {
                number: first_slot + slot,
                of: case.depth * case.queues,
            };
            let steps = (case.workload.steps)(&mut client, slot);
            slots.push(Slot::new(&client.queue.memory, &steps));
        }
        let latencies = Vec::with_capacity(4 << 20);
        Self {
            queue: client.queue,
            kind: case.workload.kind,
            slots,
            operations: 0,
            latencies,
        }
    }

    fn run(&mut self, time: Duration) -> Duration {
        self.operations = 0;
        self.latencies.clear();
        let start = Instant::now();
        let deadline = start + time;
        for head in 0..self.slots.len() {
            self.slots[head].started = start;
            self.offer(head);
        }
        let mut in_flight = self.slots.len();
        loop {
            self.queue.submit();
            self.queue.wait_for_call();
            let now = Instant::now();
            while let Some(used) = self.queue.pop() {
                let head = usize::from(used.head);
                let at_end = self.complete(head, used.len, now);
                // An operation that was begun is brought to its end.
                let is_done = match self.kind {
                    Kind::Once => self.slots[head].current == 0,
                    Kind::Cycle | Kind::Mixed(_) => now >= deadline && at_end,
                };
                if is_done {
                    in_flight -= 1;
                } else {
                    self.offer(head);
                }
            }
            if in_flight == 0 {
                return start.elapsed();
            }
        }
    }

    fn offer(&mut self, head: usize) {
        let slot = &self.slots[head];
        let head = u16::try_from(head).unwrap();
        self.queue
            .write_descriptor(head, slot.steps[slot.current].descriptor);
        self.queue.add_again(head);
    }

    /// Takes the reply and goes to the next step; tells whether that begins an
    /// operation.
    fn complete(&mut self, head: usize, used_len: u32, now: Instant) -> bool {
        let slot = &mut self.slots[head];
        let step = &slot.steps[slot.current];
        let memory = self.queue.region();
        if step.has_reply {
            let errno = -memory.read_u32(slot.reply + 4).cast_signed();
            if errno != step.errno {
                let opcode = step.opcode;
                let [is, not] = [errno, step.errno].map(io::Error::from_raw_os_error);
                panic!("the answer to opcode {opcode} is {is}, not {not}");
            }
        } else {
            assert_eq!(used_len, 0, "operation {}", step.opcode);
        }
        for feed in &step.feeds {
            let mut value = [0; 8];
            match feed.value {
                Value::At(offset) => memory.read(slot.reply + offset as u64, &mut value),
                Value::LastCookie => {
                    let mut bytes = vec![0; used_len as usize - OUT_HEADER];
                    memory.read(slot.data, &mut bytes);
                    value = last_cookie(&bytes).to_le_bytes();
                }
            }
            memory.write(slot.steps[feed.step].request + feed.to as u64, &value);
        }
        let weight = step.weight;
        let is_last = slot.current + 1 == slot.steps.len();
        slot.current = if is_last { 0 } else { slot.current + 1 };
        if weight > 0 || self.kind == Kind::Once {
            let latency = now.duration_since(slot.started).as_nanos();
            self.operations += weight;
            self.latencies
                .push(u32::try_from(latency).unwrap_or(u32::MAX));
            slot.started = now;
        }
        weight > 0 || is_last
    }
}

/// The cookie of the last entry of a READDIRPLUS reply.
fn last_cookie(mut entries: &[u8]) -> u64 {
    let mut cookie = 0;
    while !entries.is_empty() {
        let mut fields = Decoder(&entries[ENTRY_OUT + 8..]);
        cookie = fields.u64();
        let name = fields.u32() as usize;
        entries = &entries[(ENTRY_OUT + 24 + name).next_multiple_of(8)..];
    }
    cookie
}

impl Slot {
    fn new(memory: &GuestMemory, steps: &[Step]) -> Self {
        let pages = |step: &Step| match step.reply {
            Reply::Data(size) => size.max(step.payload),
            _ => step.payload,
        };
        let largest = steps.iter().map(pages).max().unwrap_or(0);
        let data = memory.alloc(largest.next_multiple_of(PAGE).max(PAGE) as u64);
        let reply = memory.alloc(PAGE as u64);
        let steps = steps
            .iter()
            .map(|step| Placed::new(memory, step, reply, data))
            .collect();
        Self {
            steps,
            current: 0,
            reply,
            data,
            started: Instant::now(),
        }
    }
}

impl Placed {
    fn new(memory: &GuestMemory, step: &Step, reply: u64, data: u64) -> Self {
        let len = IN_HEADER + step.body.len() + step.payload;
        let header = InHeader {
            len: u32::try_from(len).unwrap(),
            opcode: step.opcode,
            unique: 2,
            nodeid: step.nodeid,
            uid: step.uid,
            gid: step.uid,
            ..InHeader::default()
        };
        let bytes = [header.encode(), step.body.clone()].concat();
        let request = memory.alloc(bytes.len() as u64);
        memory.write(request, &bytes);

        // As Linux cuts a request: header, arguments, pages.
        let mut table = Table::default();
        table.push(request, IN_HEADER, 0);
        table.push(request + IN_HEADER as u64, step.body.len(), 0);
        table.push_pages(data, step.payload, 0);
        if step.reply != Reply::None {
            table.push(reply, OUT_HEADER, DESC_WRITE);
        }
        match step.reply {
            Reply::None => {}
            Reply::Small(size) => table.push(reply + OUT_HEADER as u64, size, DESC_WRITE),
            Reply::Data(size) => table.push_pages(data, size, DESC_WRITE),
        }
        Self {
            opcode: step.opcode,
            request,
            descriptor: table.place(memory),
            has_reply: step.reply != Reply::None,
            errno: step.errno,
            weight: step.weight,
            feeds: step.feeds.clone(),
        }
    }
}

/// An indirect table under construction.
#[derive(Default)]
struct Table(Vec<Descriptor>);

impl Table {
    fn push(&mut self, addr: u64, len: usize, flags: u16) {
        if len > 0 {
            let next = u16::try_from(self.0.len() + 1).unwrap();
            let len = u32::try_from(len).unwrap();
            self.0.push(Descriptor {
                addr,
                len,
                flags: flags | DESC_NEXT,
                next,
            });
        }
    }

    fn push_pages(&mut self, mut addr: u64, mut len: usize, flags: u16) {
        while len > 0 {
            let part = len.min(PAGE);
            self.push(addr, part, flags);
            addr += part as u64;
            len -= part;
        }
    }

    /// The descriptor that stands for the table in the ring.
    fn place(mut self, memory: &GuestMemory) -> Descriptor {
        if let Some(last) = self.0.last_mut() {
            last.flags &= !DESC_NEXT;
            last.next = 0;
        }
        let bytes: Vec<u8> = self
            .0
            .iter()
            .flat_map(|descriptor| descriptor.to_bytes())
            .collect();
        let addr = memory.alloc(bytes.len() as u64);
        memory.write(addr, &bytes);
        Descriptor {
            addr,
            len: u32::try_from(bytes.len()).unwrap(),
            flags: DESC_INDIRECT,
            next: 0,
        }
    }
}
