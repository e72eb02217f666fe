//! A vhost-user front end with the driver's side of split virtqueues.
//!
//! [`Vmm`] is the control connection, [`Queue`] one virtqueue. A queue is a
//! value of its own, so that each thread of a test can drive one. All ring
//! fields can also be written one by one, as a hostile guest does.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{
    VhostTransferStateDirection as Direction, VhostTransferStatePhase, VhostUserConfigFlags,
    VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::memory::{GuestMemory, Region, VMM_BASE};
use super::{PATIENCE, wait_event};

// Feature bits (virtio 1.2, 6; vhost-user).
pub const F_LOG_ALL: u64 = 1 << 26;
pub const F_INDIRECT: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_PROTOCOL: u64 = 1 << 30;
pub const F_VERSION_1: u64 = 1 << 32;

// Descriptor flags (virtio 1.2, 2.7.5).
pub const DESC_NEXT: u16 = 1;
pub const DESC_WRITE: u16 = 2;
pub const DESC_INDIRECT: u16 = 4;

/// The high-priority queue of a virtio-fs device.
pub const HIPRIO: usize = 0;
/// The first request queue.
pub const REQUEST: usize = 1;

/// Start of the first region of a default guest.
pub const LOW_MEMORY: u64 = 0x10_0000;
/// Start of the second one.
pub const HIGH_MEMORY: u64 = 0x1_0000_0000;

/// What the front end asks for.
#[derive(Clone, Debug)]
pub struct Config {
    /// Virtio features to take of those offered.
    pub features: u64,
    /// vhost-user features to take of those offered.
    pub protocol: Protocol,
    /// Guest memory: address and size of each region.
    pub regions: Vec<(u64, u64)>,
    pub queue_size: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            features: F_INDIRECT | F_EVENT_IDX | F_PROTOCOL | F_VERSION_1,
            protocol: Protocol::all() - Protocol::CONFIG,
            regions: vec![(LOW_MEMORY, 64 << 20), (HIGH_MEMORY, 16 << 20)],
            queue_size: 128,
        }
    }
}

impl Config {
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }

    pub fn with(mut self, features: u64) -> Self {
        self.features |= features;
        self
    }
}

/// The control connection and the guest's memory.
pub struct Vmm {
    pub vhost: Frontend,
    pub memory: GuestMemory,
    /// Features negotiated.
    pub features: u64,
    pub protocol: Protocol,
    pub queue_num: u64,
    queue_size: u16,
}

impl Vmm {
    /// Connects, negotiates, and hands over the memory.
    pub fn connect(socket: &Path, config: &Config) -> Self {
        let mut vmm = Self::negotiate(socket, config);
        vmm.memory = GuestMemory::new(&config.regions);
        vmm.set_mem_table();
        vmm
    }

    /// Connects for a guest that ran elsewhere until now.
    pub fn take_over(socket: &Path, config: &Config, memory: GuestMemory) -> Self {
        let mut vmm = Self::negotiate(socket, config);
        vmm.memory = memory;
        vmm.set_mem_table();
        vmm
    }

    /// Connects and negotiates.
    pub fn negotiate(socket: &Path, config: &Config) -> Self {
        let mut vhost = connect(socket);
        vhost.set_owner().unwrap();
        let offered = vhost.get_features().unwrap();
        let protocol = vhost.get_protocol_features().unwrap() & config.protocol;
        vhost.set_protocol_features(protocol).unwrap();
        if protocol.contains(Protocol::REPLY_ACK) {
            vhost.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let queue_num = vhost.get_queue_num().unwrap();
        let features = offered & config.features;
        vhost.set_features(features).unwrap();
        let memory = GuestMemory::default();
        Self {
            vhost,
            memory,
            features,
            protocol,
            queue_num,
            queue_size: config.queue_size,
        }
    }

    /// Tells the daemon about all regions at once.
    pub fn set_mem_table(&self) {
        let regions = self.memory.regions();
        let infos: Vec<_> = regions.iter().map(|region| region.info()).collect();
        self.vhost.set_mem_table(&infos).unwrap();
    }

    /// Plugs a new region into the running guest.
    pub fn hot_add(&mut self, gpa: u64, size: u64) {
        let region = self.memory.add(gpa, size);
        self.vhost.add_mem_region(&region.info()).unwrap();
    }

    /// Unplugs a region of the running guest.
    pub fn hot_remove(&mut self, gpa: u64) {
        let region = self.memory.remove(gpa);
        self.vhost.remove_mem_region(&region.info()).unwrap();
    }

    /// Makes a virtqueue in guest memory and starts it.
    pub fn start_queue(&mut self, index: usize) -> Queue {
        let event_idx = self.features & F_EVENT_IDX != 0;
        let mut queue = Queue::new(self.memory.clone(), index, self.queue_size, event_idx);
        queue.use_indirect = self.features & F_INDIRECT != 0;
        self.resume_queue(&queue, 0);
        queue
    }

    /// Starts a queue that is in guest memory already at `base`.
    pub fn resume_queue(&mut self, queue: &Queue, base: u16) {
        let index = queue.index;
        self.vhost.set_vring_num(index, queue.size).unwrap();
        self.vhost.set_vring_addr(index, &queue.layout()).unwrap();
        self.vhost.set_vring_base(index, base).unwrap();
        self.vhost.set_vring_call(index, &queue.call).unwrap();
        self.vhost.set_vring_kick(index, &queue.kick).unwrap();
        if self.features & F_PROTOCOL != 0 {
            self.vhost.set_vring_enable(index, true).unwrap();
        }
    }

    /// Stops a queue; its index in the available ring comes back.
    pub fn stop_queue(&mut self, queue: &Queue) -> u16 {
        let base = self.vhost.get_vring_base(queue.index).unwrap();
        u16::try_from(base).unwrap()
    }

    /// Has the daemon log which pages it writes to, or not any more.
    pub fn set_logging(&mut self, is_on: bool) -> Option<DirtyLog> {
        let end = self.memory.regions().iter().map(|r| r.gpa + r.size).max();
        let log = is_on.then(|| DirtyLog::start(self, end.unwrap()));
        let logging = if is_on { F_LOG_ALL } else { 0 };
        self.vhost.set_features(self.features | logging).unwrap();
        log
    }

    /// Takes the device's state, as a front end does after it has stopped the
    /// queues; none if the daemon says that it failed.
    pub fn save_state(&mut self) -> Option<Vec<u8>> {
        let (mut reader, writer) = std::io::pipe().unwrap();
        self.start_transfer(Direction::SAVE, writer.into());
        let mut state = Vec::new();
        reader.read_to_end(&mut state).unwrap();
        self.vhost.check_device_state().is_ok().then_some(state)
    }

    /// Gives the device a state; false if the daemon says that it failed.
    pub fn load_state(&mut self, state: &[u8]) -> bool {
        let (reader, mut writer) = std::io::pipe().unwrap();
        self.start_transfer(Direction::LOAD, reader.into());
        // A daemon that has had enough closes its end.
        let _ = writer.write_all(state);
        drop(writer);
        self.vhost.check_device_state().is_ok()
    }

    /// Hands over one end of a pipe, or a file.
    pub fn start_transfer(&mut self, direction: Direction, fd: OwnedFd) {
        let phase = VhostTransferStatePhase::STOPPED;
        let answer = self.vhost.set_device_state_fd(direction, phase, fd);
        assert!(
            answer.unwrap().is_none(),
            "the daemon uses what it is given"
        );
    }

    /// Reads `len` bytes of the device's configuration space.
    pub fn config_space(&mut self, offset: u32, len: u32) -> Vec<u8> {
        let buffer = vec![0; len as usize];
        let flags = VhostUserConfigFlags::empty();
        self.vhost
            .get_config(offset, len, flags, &buffer)
            .unwrap()
            .1
    }
}

/// The shared bitmap of dirty pages.
pub struct DirtyLog(File, usize);

impl DirtyLog {
    pub fn start(vmm: &Vmm, end: u64) -> Self {
        let size = (end / 4096).div_ceil(8);
        let file: File = memfd_create("dirty-log", MemfdFlags::CLOEXEC)
            .unwrap()
            .into();
        ftruncate(&file, size).unwrap();
        let region = VhostUserDirtyLogRegion {
            mmap_size: size,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        vmm.vhost.set_log_base(0, Some(region)).unwrap();
        Self(file, usize::try_from(size).unwrap())
    }

    pub fn pages(&self) -> HashSet<u64> {
        let mut bitmap = vec![0; self.1];
        self.0.read_exact_at(&mut bitmap, 0).unwrap();
        let is_set = |page: &u64| bitmap[(page / 8) as usize] & (1 << (page % 8)) != 0;
        (0..self.1 as u64 * 8).filter(is_set).collect()
    }

    /// Takes the memory of the log away.
    pub fn truncate(&self) {
        ftruncate(&self.0, 0).unwrap();
    }

    pub fn clear(&self) {
        self.0.write_all_at(&vec![0; self.1], 0).unwrap();
    }
}

/// The control connection only. A daemon that does not answer fails the test.
pub fn connect(socket: &Path) -> Frontend {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // More than any device has: the daemon is to refuse what is too much.
    Frontend::from_stream(stream, 0x100)
}

/// One buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub gpa: u64,
    pub len: u32,
    /// The device writes to it.
    pub writable: bool,
}

/// A descriptor as it is in guest memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A used entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    pub len: u32,
}

/// The driver's side of one split virtqueue.
#[derive(Debug)]
pub struct Queue {
    pub index: usize,
    pub size: u16,
    pub memory: GuestMemory,
    /// Put each request in an indirect table.
    pub use_indirect: bool,
    pub kick: EventFd,
    pub call: EventFd,
    /// Kicks given, and kicks that the device did not want.
    pub kicks: u64,
    pub kicks_spared: u64,
    event_idx: bool,
    // All of the ring is in one region.
    region: Arc<Region>,
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
    // What the driver knows of its own, whatever the device writes.
    next_avail: u16,
    published: u16,
    last_used: u16,
    free: Vec<u16>,
    chain_next: Vec<Option<u16>>,
    in_flight: Vec<bool>,
}

impl Queue {
    pub fn new(memory: GuestMemory, index: usize, size: u16, event_idx: bool) -> Self {
        let entries = u64::from(size);
        // Each part on pages of its own, so that the dirty log can tell.
        let descriptors = memory.alloc(entries.max(256) * 16);
        let avail = memory.alloc((6 + 2 * entries).max(4096));
        let used = memory.alloc((6 + 8 * entries).max(4096));
        let region = memory.region_of(descriptors, 1);
        region.write(avail, &vec![0; 6 + 2 * usize::from(size)]);
        region.write(used, &vec![0; 6 + 8 * usize::from(size)]);
        Self {
            index,
            size,
            memory,
            use_indirect: false,
            kick: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap(),
            kicks: 0,
            kicks_spared: 0,
            event_idx,
            region,
            descriptors,
            avail,
            used,
            next_avail: 0,
            published: 0,
            last_used: 0,
            free: (0..size).rev().collect(),
            chain_next: vec![None; size.into()],
            in_flight: vec![false; size.into()],
        }
    }

    fn layout(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: VMM_BASE + self.descriptors,
            used_ring_addr: VMM_BASE + self.used,
            avail_ring_addr: VMM_BASE + self.avail,
            log_addr: None,
        }
    }

    /// Descriptors that no request uses.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Available index as the driver counts it.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Used index up to which entries were taken.
    pub fn last_used(&self) -> u16 {
        self.last_used
    }

    // ---- adding requests

    /// Puts one request in the ring; [`Self::publish`] shows it to the device.
    /// `table` is guest memory for the indirect table, 16 bytes a buffer.
    pub fn add(&mut self, buffers: &[Buffer], table: Option<u64>) -> u16 {
        let head = match table {
            Some(table) => self.add_indirect(buffers, table),
            None => self.add_direct(buffers),
        };
        assert!(
            !self.in_flight[usize::from(head)],
            "descriptor {head} was free"
        );
        self.in_flight[usize::from(head)] = true;
        self.put_avail(head);
        head
    }

    /// Offers a request again whose descriptors are still in place.
    pub fn add_again(&mut self, head: u16) {
        self.in_flight[usize::from(head)] = true;
        self.put_avail(head);
    }

    fn add_direct(&mut self, buffers: &[Buffer]) -> u16 {
        assert!(buffers.len() <= self.free.len(), "the queue is full");
        let mut next = None;
        for buffer in buffers.iter().rev() {
            let index = self.free.pop().unwrap();
            let descriptor = chained(buffer, next);
            self.write_descriptor(index, descriptor);
            self.chain_next[usize::from(index)] = next;
            next = Some(index);
        }
        next.expect("a request has a buffer")
    }

    fn add_indirect(&mut self, buffers: &[Buffer], table: u64) -> u16 {
        let head = self.free.pop().expect("the queue is full");
        for (index, buffer) in (0..).zip(buffers) {
            let is_last = usize::from(index) + 1 == buffers.len();
            let descriptor = chained(buffer, (!is_last).then_some(index + 1));
            self.memory
                .write(table + 16 * u64::from(index), &descriptor.to_bytes());
        }
        let len = u32::try_from(16 * buffers.len()).unwrap();
        let descriptor = Descriptor {
            addr: table,
            len,
            flags: DESC_INDIRECT,
            next: 0,
        };
        self.write_descriptor(head, descriptor);
        self.chain_next[usize::from(head)] = None;
        head
    }

    /// Lets the device see everything that was added.
    pub fn publish(&mut self) {
        self.region
            .store_u16(self.avail + 2, self.next_avail, Ordering::Release);
    }

    /// Publishes, and kicks if the device asked for it.
    pub fn submit(&mut self) {
        let old = self.published;
        self.publish();
        self.published = self.next_avail;
        // The device's wish is read after it can see the new index.
        fence(Ordering::SeqCst);
        if self.device_wants_kick(old) {
            self.kick();
        } else {
            self.kicks_spared += 1;
        }
    }

    /// Kicks whether asked or not.
    pub fn kick(&mut self) {
        self.kicks += 1;
        self.kick.write(1).unwrap();
    }

    fn device_wants_kick(&self, old: u16) -> bool {
        if self.event_idx {
            let event = self.region.load_u16(self.avail_event(), Ordering::Relaxed);
            let new = self.next_avail;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.region.load_u16(self.used, Ordering::Relaxed) & 1 == 0
        }
    }

    // ---- taking results

    /// The next used entry, if there is one.
    pub fn pop(&mut self) -> Option<Used> {
        let index = self.used_index();
        if index == self.last_used {
            return None;
        }
        let ahead = index.wrapping_sub(self.last_used);
        assert!(ahead <= self.size, "used index {index} is {ahead} ahead");
        let slot = u64::from(self.last_used % self.size);
        let id = self.region.read_u32(self.used + 4 + 8 * slot);
        let len = self.region.read_u32(self.used + 8 + 8 * slot);
        let head = u16::try_from(id).unwrap_or(u16::MAX);
        let was_in_flight = self.in_flight.get_mut(usize::from(head));
        let was_in_flight = was_in_flight.unwrap_or_else(|| panic!("used id {id}"));
        assert!(*was_in_flight, "descriptor {head} came back twice");
        *was_in_flight = false;
        self.last_used = self.last_used.wrapping_add(1);
        Some(Used { head, len })
    }

    /// Makes the descriptors of an answered request free again.
    pub fn release(&mut self, head: u16) {
        let mut next = Some(head);
        while let Some(index) = next {
            self.free.push(index);
            next = self.chain_next[usize::from(index)].take();
        }
    }

    /// Waits for a used entry, by the call event.
    pub fn wait(&mut self) -> Used {
        if let Some(used) = self.pop() {
            return used;
        }
        self.wait_for_call();
        self.pop().expect("the call came before the used entry")
    }

    /// Asks for a call at the next used entry and waits until there is one.
    pub fn wait_for_call(&mut self) {
        self.wait_for_call_after(0);
    }

    /// The same for the used entry after `skipped` others. Without the event
    /// index the device calls for each, so more than one call may be needed.
    pub fn wait_for_call_after(&mut self, skipped: u16) {
        self.ask_for_call_after(skipped);
        while self.used_index().wrapping_sub(self.last_used) <= skipped {
            if !wait_event(&self.call, PATIENCE) {
                let now = self.used_index().wrapping_sub(self.last_used);
                if now > skipped {
                    panic!("queue {}: {now} used entries, but no call", self.index);
                }
                panic!("queue {}: no answer and no call", self.index);
            }
            // Another thread may not take it: the queue is ours.
            self.call.read().unwrap();
        }
        self.ask_for_no_call();
    }

    /// Waits for a call event only; tells whether it came.
    pub fn call_comes(&self, timeout: Duration) -> bool {
        wait_event(&self.call, timeout)
    }

    /// Takes back whatever calls have come.
    pub fn drain_calls(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    /// Sets the wish to be called at the next used entry but `skipped`.
    pub fn ask_for_call_after(&mut self, skipped: u16) {
        if self.event_idx {
            let event = self.last_used.wrapping_add(skipped);
            self.region
                .store_u16(self.used_event(), event, Ordering::Relaxed);
        } else {
            self.region.store_u16(self.avail, 0, Ordering::Relaxed);
        }
        // The used index is read after the device can see the wish.
        fence(Ordering::SeqCst);
    }

    /// Takes the wish back. With the event index that is a no-op: the index
    /// asked for lies behind, so nothing matches it for 65,535 entries.
    pub fn ask_for_no_call(&mut self) {
        if !self.event_idx {
            self.region.store_u16(self.avail, 1, Ordering::Relaxed);
        }
    }

    // ---- raw access

    /// The region that holds the ring.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The used index that the device wrote.
    pub fn used_index(&self) -> u16 {
        self.region.load_u16(self.used + 2, Ordering::Acquire)
    }

    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let gpa = self.descriptors + 16 * u64::from(index);
        self.region.write(gpa, &descriptor.to_bytes());
    }

    /// Writes the next entry of the available ring, whatever it means.
    pub fn put_avail(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.region
            .store_u16(self.avail + 4 + 2 * slot, head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Writes the available index, whatever was added.
    pub fn set_avail_index(&self, index: u16) {
        self.region
            .store_u16(self.avail + 2, index, Ordering::Release);
    }

    fn used_event(&self) -> u64 {
        self.avail + 4 + 2 * u64::from(self.size)
    }

    fn avail_event(&self) -> u64 {
        self.used + 4 + 8 * u64::from(self.size)
    }

    /// The descriptors of the control events, to see that they are distinct.
    pub fn event_fds(&self) -> (i32, i32) {
        (self.kick.as_raw_fd(), self.call.as_raw_fd())
    }
}

fn chained(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    let mut flags = if buffer.writable { DESC_WRITE } else { 0 };
    if next.is_some() {
        flags |= DESC_NEXT;
    }
    Descriptor {
        addr: buffer.gpa,
        len: buffer.len,
        flags,
        next: next.unwrap_or(0),
    }
}
