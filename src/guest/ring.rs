//! A split virtqueue in guest memory (virtio 1.2, 2.7).
//!
//! A [`Ring`] is a view for one batch: it holds where the three parts lie in
//! our address space while the memory map is held. Indexes are not kept here
//! but with the queue. Everything the guest says is checked when it is read;
//! what breaks the rules of the ring is a [`RingError`], after which the queue
//! is not touched any more.

use std::cell::Cell;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::buffers::{Readable, Spans, Writable};
use super::{Memory, Piece, Region};

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

const DESCRIPTOR_BYTES: usize = 16;
const USED_ELEMENT_BYTES: usize = 8;

/// The longest chain that is followed: what a queue of the largest size in use
/// (1024) can hold and some more, since older kernels chain indirect
/// descriptors beyond their queue's size.
const MAX_CHAIN: usize = 4096;

/// The most bytes of one chain: a guest that aliases its pages could otherwise
/// keep a thread busy for seconds with one request. INIT grants 4 MiB, and a
/// million nodes are forgotten in 16.
const MAX_CHAIN_BYTES: u64 = 32 << 20;

/// How the guest broke the rules of a ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RingError {
    /// The ring itself is not in guest memory, or misaligned.
    RingOutsideMemory,
    /// The available index ran ahead of what the queue can hold.
    AvailableIndex,
    /// A descriptor index at or beyond the size of its table.
    DescriptorIndex,
    /// A chain that does not end.
    ChainTooLong,
    /// An indirect table that is empty, nested, of an odd length or outside memory.
    IndirectTable,
    /// A readable buffer behind a writable one.
    ReadableBehindWritable,
    /// Buffers of more than 32 MiB.
    ChainTooLarge,
    /// Not a size that a ring can have.
    Size,
    /// The memory of the front end's went away.
    MemoryIsLost,
}

impl std::fmt::Display for RingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RingOutsideMemory => "the ring is not in shared guest memory",
            Self::AvailableIndex => "the available index is ahead of the queue's size",
            Self::DescriptorIndex => "a descriptor index is out of range",
            Self::ChainTooLong => "a descriptor chain does not end",
            Self::IndirectTable => "an indirect descriptor table is invalid",
            Self::ReadableBehindWritable => "a readable buffer follows a writable one",
            Self::Size => "its size is no power of two",
            Self::MemoryIsLost => {
                "the guest's memory can no longer be read: the file behind it was truncated, \
                 or the host has no page for it"
            }
            Self::ChainTooLarge => "a descriptor chain is larger than 32 MiB",
        })
    }
}

/// Where a queue lies in guest memory, and how it was negotiated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RingLayout {
    /// Entries; a power of two.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Whether `VIRTIO_F_RING_EVENT_IDX` was negotiated.
    pub event_idx: bool,
}

/// A request that is finished: the head of its chain and the bytes of its reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Used {
    /// The head of the chain.
    pub head: u16,
    /// Bytes written into its buffers.
    pub len: u32,
}

/// A view of one queue for as long as the memory map is held.
pub struct Ring<'m> {
    memory: Memory<'m>,
    /// Where the last piece of memory was found, and the next one most often is.
    region: Cell<Region>,
    size: u16,
    event_idx: bool,
    descriptors: *const u8,
    available: *const u8,
    used: *mut u8,
}

/// A descriptor, copied out of guest memory.
#[derive(Clone, Copy)]
#[repr(C)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A table of descriptors: the ring's own or an indirect one.
#[derive(Clone, Copy)]
struct Table {
    start: *const u8,
    entries: usize,
}

impl Table {
    /// Copies a descriptor out.
    fn get(self, index: u16) -> Result<Descriptor, RingError> {
        let index = usize::from(index);
        if index >= self.entries {
            return Err(RingError::DescriptorIndex);
        }
        let at = self.start.wrapping_add(index * DESCRIPTOR_BYTES);
        // SAFETY: `entries` descriptors lie at `start` in mapped memory. The
        // guest may write meanwhile; any 16 bytes are a valid `Descriptor`.
        Ok(unsafe { at.cast::<Descriptor>().read_unaligned() })
    }
}

impl<'m> Ring<'m> {
    /// Finds the parts of a queue.
    ///
    /// # Errors
    /// [`RingError::RingOutsideMemory`].
    pub fn new(memory: Memory<'m>, layout: &RingLayout) -> Result<Self, RingError> {
        let size = usize::from(layout.size);
        let region = Cell::new(Region::NONE);
        let part = |address: u64, len: usize, alignment: usize| match locate(
            memory, &region, address, len,
        ) {
            Some(part) if part.len == len && part.start.align_offset(alignment) == 0 => {
                Ok(part.start)
            }
            _ => Err(RingError::RingOutsideMemory),
        };
        Ok(Self {
            memory,
            size: layout.size,
            event_idx: layout.event_idx,
            descriptors: part(layout.descriptors, size * DESCRIPTOR_BYTES, 16)?,
            available: part(layout.available, 6 + 2 * size, 2)?,
            used: part(layout.used, 6 + USED_ELEMENT_BYTES * size, 4)?,
            region,
        })
    }

    /// Whether its memory is being taken away.
    pub fn is_stale(&self) -> bool {
        self.memory.is_stale()
    }

    /// A 16-bit field of the available ring.
    fn available_field(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass even offsets within the available ring, which is
        // mapped and 2-aligned for 'm; guest and device share it as atomics.
        unsafe { AtomicU16::from_ptr(self.available.wrapping_add(offset).cast_mut().cast()) }
    }

    /// A 16-bit field of the used ring.
    fn used_field(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass even offsets within the used ring, which is
        // mapped and 4-aligned for 'm; guest and device share it as atomics.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(offset).cast()) }
    }

    /// Appends to `heads` the chains that are available from `next_available`
    /// on, at most `most` of them; gives the next index.
    ///
    /// # Errors
    /// [`RingError::AvailableIndex`], [`RingError::DescriptorIndex`].
    pub fn take(
        &self,
        next_available: u16,
        most: u16,
        heads: &mut Vec<u16>,
    ) -> Result<u16, RingError> {
        let index = u16::from_le(self.available_field(2).load(Ordering::Acquire));
        let waiting = index.wrapping_sub(next_available);
        if waiting > self.size {
            return Err(RingError::AvailableIndex);
        }
        let end = next_available.wrapping_add(waiting.min(most));
        let mut next = next_available;
        while next != end {
            let slot = usize::from(next % self.size);
            let head = u16::from_le(self.available_field(4 + 2 * slot).load(Ordering::Relaxed));
            if head >= self.size {
                return Err(RingError::DescriptorIndex);
            }
            heads.push(head);
            next = next.wrapping_add(1);
        }
        Ok(end)
    }

    /// Whether there is a chain from `next_available` on.
    pub fn has_available(&self, next_available: u16) -> bool {
        u16::from_le(self.available_field(2).load(Ordering::Acquire)) != next_available
    }

    /// Follows the chain that begins at `head` and gives its two sides.
    ///
    /// # Errors
    /// [`RingError`] for everything that breaks the rules of a chain.
    pub fn gather<'a>(
        &'a self,
        head: u16,
        spans: &'a mut Spans,
    ) -> Result<(Readable<'a>, Writable<'a>), RingError> {
        spans.clear();
        let mut table = Table {
            start: self.descriptors,
            entries: usize::from(self.size),
        };
        let mut is_indirect = false;
        let mut index = head;
        let mut left = table.entries;
        let mut total: u64 = 0;
        // The side of which a buffer was out of reach: what follows on it is not
        // taken, so that what was before still lies in front.
        let mut cut = None;
        loop {
            left = left.checked_sub(1).ok_or(RingError::ChainTooLong)?;
            let descriptor = table.get(index)?;
            let flags = u16::from_le(descriptor.flags);
            let len = u32::from_le(descriptor.len);
            let address = u64::from_le(descriptor.address);
            if flags & DESC_F_INDIRECT != 0 {
                if is_indirect || flags & DESC_F_NEXT != 0 {
                    return Err(RingError::IndirectTable);
                }
                table = self.indirect_table(address, len as usize)?;
                (is_indirect, index, left) = (true, 0, table.entries.min(MAX_CHAIN));
                continue;
            }
            total += u64::from(len);
            if total > MAX_CHAIN_BYTES {
                return Err(RingError::ChainTooLarge);
            }
            let writable = flags & DESC_F_WRITE != 0;
            if !writable && spans.has_writable() {
                return Err(RingError::ReadableBehindWritable);
            }
            if cut != Some(writable) && !self.gather_buffer(address, len as usize, writable, spans)
            {
                spans.cut();
                cut = Some(writable);
            }
            if flags & DESC_F_NEXT == 0 {
                return Ok(spans.split(self.memory));
            }
            index = u16::from_le(descriptor.next);
        }
    }

    /// Finds an indirect table (virtio 1.2, 2.7.5.3).
    fn indirect_table(&self, address: u64, len: usize) -> Result<Table, RingError> {
        if len == 0 || !len.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(RingError::IndirectTable);
        }
        match locate(self.memory, &self.region, address, len) {
            Some(table) if table.len == len => Ok(Table {
                start: table.start,
                entries: len / DESCRIPTOR_BYTES,
            }),
            _ => Err(RingError::IndirectTable),
        }
    }

    /// Adds one buffer, in pieces where it crosses from one region to the next; `false`
    /// where it, or its end, is not in guest memory.
    fn gather_buffer(
        &self,
        mut address: u64,
        mut len: usize,
        writable: bool,
        spans: &mut Spans,
    ) -> bool {
        while len > 0 {
            let Some(piece) = locate(self.memory, &self.region, address, len) else {
                return false;
            };
            // SAFETY: the piece was found in the memory of this ring, which is
            // what `gather` then makes the request's buffers for.
            unsafe { spans.push(writable, piece) };
            len -= piece.len;
            let Some(next) = address.checked_add(piece.len as u64) else {
                return false;
            };
            address = next;
        }
        true
    }

    /// The used index as it was last published.
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.used_field(2).load(Ordering::Relaxed))
    }

    /// Hands a finished request back: the entry, then the index. Gives the next
    /// used index.
    pub fn publish(&self, next_used: u16, done: Used) -> u16 {
        let slot = usize::from(next_used % self.size);
        let at = self.used.wrapping_add(4 + USED_ELEMENT_BYTES * slot);
        let element = [u32::from(done.head).to_le(), done.len.to_le()];
        // SAFETY: the slot lies in the used ring, which is mapped and
        // 4-aligned; the guest reads it only once the index passed it.
        unsafe { at.cast::<[u32; 2]>().write(element) };
        self.memory.mark_dirty(at, USED_ELEMENT_BYTES);
        let next = next_used.wrapping_add(1);
        self.used_field(2).store(next.to_le(), Ordering::Release);
        self.memory.mark_dirty(self.used.wrapping_add(2), 2);
        next
    }

    /// Whether the guest wants to hear that the used index went from `old` to
    /// `new` (virtio 1.2, 2.7.7.2 and 2.7.10).
    pub fn wants_notification(&self, old: u16, new: u16) -> bool {
        // The index must be out before the guest's wish is read, or both sides
        // could wait for each other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let offset = 4 + 2 * usize::from(self.size);
            let event = u16::from_le(self.available_field(offset).load(Ordering::Relaxed));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags = u16::from_le(self.available_field(0).load(Ordering::Relaxed));
            flags & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Tells the guest that kicks are not needed while the queue is served.
    pub fn suppress_kicks(&self) {
        // With EVENT_IDX they are suppressed by leaving the event index behind.
        if !self.event_idx {
            self.used_field(0)
                .store(USED_F_NO_NOTIFY.to_le(), Ordering::Relaxed);
            self.memory.mark_dirty(self.used, 2);
        }
    }

    /// Takes the wish for a kick at the next request back.
    pub fn withdraw_kick(&self, next_available: u16) {
        self.suppress_kicks();
        if self.event_idx {
            self.set_kick_event(next_available.wrapping_sub(1));
        }
    }

    /// Says which request the guest is to kick for.
    fn set_kick_event(&self, index: u16) {
        let offset = 4 + USED_ELEMENT_BYTES * usize::from(self.size);
        self.used_field(offset)
            .store(index.to_le(), Ordering::Relaxed);
        self.memory.mark_dirty(self.used.wrapping_add(offset), 2);
    }

    /// Asks for a kick at the next request; gives whether one is there already.
    pub fn ask_for_kick(&self, next_available: u16) -> bool {
        if self.event_idx {
            self.set_kick_event(next_available);
        } else {
            self.used_field(0).store(0, Ordering::Relaxed);
            self.memory.mark_dirty(self.used, 2);
        }
        // The wish must be out before the index is read again, or a request in
        // between would never be heard of.
        fence(Ordering::SeqCst);
        self.has_available(next_available)
    }
}

/// Finds `len` bytes, or as many as there are in a row, in the region `last`
/// that something was found in, or in another one, which then is the last.
#[inline]
fn locate(memory: Memory<'_>, last: &Cell<Region>, address: u64, len: usize) -> Option<Piece> {
    match last.get().locate(address, len) {
        None => locate_elsewhere(memory, last, address, len),
        piece => piece,
    }
}

#[cold]
fn locate_elsewhere(
    memory: Memory<'_>,
    last: &Cell<Region>,
    address: u64,
    len: usize,
) -> Option<Piece> {
    let region = memory.region_of(address)?;
    last.set(region);
    region.locate(address, len)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::{GuestMemory, SharedMemory, View};
    use super::*;

    const SIZE: u16 = 8;
    const LAYOUT: RingLayout = RingLayout {
        size: SIZE,
        descriptors: 0x1000,
        available: 0x2000,
        used: 0x3000,
        event_idx: true,
    };
    const INDIRECT: u64 = 0x4000;
    const DATA: u64 = 0x8000;
    const MEMORY_END: u64 = 0x10000;

    struct Guest {
        map: GuestMemory,
        view: View<'static>,
    }

    impl Guest {
        fn new() -> Self {
            // Two regions that touch, so that a buffer may lie across them.
            let ranges = [
                (GuestAddress(0), 0xc000),
                (GuestAddress(0xc000), (MEMORY_END - 0xc000) as usize),
            ];
            let map = GuestMemory::from_ranges(&ranges).unwrap();
            let shared = Box::leak(Box::new(SharedMemory::of(map.clone())));
            Self {
                map,
                view: shared.view(),
            }
        }

        fn ring(&self) -> Ring<'_> {
            Ring::new(self.view.memory(), &LAYOUT).unwrap()
        }

        fn put(&self, address: u64, value: u16) {
            self.map.write_obj(value, GuestAddress(address)).unwrap();
        }

        fn get(&self, address: u64) -> u16 {
            self.map.read_obj(GuestAddress(address)).unwrap()
        }

        fn descriptor(
            &self,
            table: u64,
            index: u64,
            address: u64,
            len: u32,
            flags: u16,
            next: u16,
        ) {
            let at = table + index * 16;
            self.map.write_obj(address, GuestAddress(at)).unwrap();
            self.map.write_obj(len, GuestAddress(at + 8)).unwrap();
            self.map.write_obj(flags, GuestAddress(at + 12)).unwrap();
            self.map.write_obj(next, GuestAddress(at + 14)).unwrap();
        }

        /// Follows the chain at descriptor 0; gives the lengths of its sides.
        fn gather(&self) -> Result<(usize, usize), RingError> {
            let mut spans = Spans::default();
            let ring = self.ring();
            ring.gather(0, &mut spans)
                .map(|(readable, writable)| (readable.len(), writable.len()))
        }

        fn is_cut(&self) -> bool {
            let mut spans = Spans::default();
            self.ring().gather(0, &mut spans).unwrap().0.is_cut()
        }
    }

    #[test]
    fn a_chain_has_a_readable_and_a_writable_side() {
        let guest = Guest::new();
        guest.descriptor(0x1000, 0, DATA, 40, DESC_F_NEXT, 3);
        guest.descriptor(0x1000, 3, DATA + 64, 7, DESC_F_NEXT, 1);
        guest.descriptor(0x1000, 1, DATA + 128, 16, DESC_F_WRITE, 0);
        assert_eq!(guest.gather(), Ok((47, 16)));
    }

    #[test]
    fn an_indirect_table_may_be_longer_than_the_queue() {
        let guest = Guest::new();
        guest.descriptor(0x1000, 0, INDIRECT, 20 * 16, DESC_F_INDIRECT, 0);
        for n in 0..20 {
            let flags = if n < 19 {
                DESC_F_NEXT | DESC_F_WRITE
            } else {
                DESC_F_WRITE
            };
            guest.descriptor(INDIRECT, n, DATA, 10, flags, n as u16 + 1);
        }
        assert_eq!(guest.gather(), Ok((0, 200)));
    }

    #[test]
    fn a_buffer_may_cross_into_the_next_region_but_not_leave_memory() {
        let guest = Guest::new();
        guest.descriptor(0x1000, 0, 0xbff0, 0x20, 0, 0);
        assert_eq!(guest.gather(), Ok((0x20, 0)));
        assert!(!guest.is_cut());
        guest.descriptor(0x1000, 0, MEMORY_END - 4, 5, 0, 0);
        assert_eq!(guest.gather(), Ok((4, 0)));
        assert!(guest.is_cut());
        guest.descriptor(0x1000, 0, u64::MAX - 3, 100, 0, 0);
        assert_eq!(guest.gather(), Ok((0, 0)));
        assert!(guest.is_cut());
    }

    #[test]
    fn what_breaks_the_rules_of_a_chain_is_an_error() {
        use RingError::*;
        let indirect = DESC_F_INDIRECT;
        let next = DESC_F_NEXT;
        let write = DESC_F_WRITE;
        // (descriptor 0, descriptor 1, first indirect one, expected)
        type Raw = (u64, u32, u16, u16);
        let end: Raw = (DATA, 1, 0, 0);
        let cases: [(Raw, Raw, Raw, RingError); 11] = [
            ((DATA, 1, next, 0), end, end, ChainTooLong),
            ((DATA, 1, next, 1), (DATA, 1, next, 0), end, ChainTooLong),
            ((DATA, 1, next, SIZE), end, end, DescriptorIndex),
            ((DATA, 1, next, u16::MAX), end, end, DescriptorIndex),
            ((DATA, 1, write | next, 1), end, end, ReadableBehindWritable),
            ((INDIRECT, 0, indirect, 0), end, end, IndirectTable),
            ((INDIRECT, 17, indirect, 0), end, end, IndirectTable),
            ((MEMORY_END - 16, 32, indirect, 0), end, end, IndirectTable),
            ((INDIRECT, 16, indirect | next, 1), end, end, IndirectTable),
            (
                (INDIRECT, 16, indirect, 0),
                end,
                (INDIRECT, 16, indirect, 0),
                IndirectTable,
            ),
            (
                (INDIRECT, 16, indirect, 0),
                end,
                (DATA, 1, next, 1),
                ChainTooLong,
            ),
        ];
        for (number, (first, second, inner, expected)) in cases.into_iter().enumerate() {
            let guest = Guest::new();
            guest.descriptor(0x1000, 0, first.0, first.1, first.2, first.3);
            guest.descriptor(0x1000, 1, second.0, second.1, second.2, second.3);
            guest.descriptor(INDIRECT, 0, inner.0, inner.1, inner.2, inner.3);
            assert_eq!(guest.gather(), Err(expected), "case {number}");
        }
    }

    #[test]
    fn an_available_index_beyond_the_queue_is_an_error() {
        let guest = Guest::new();
        let mut heads = Vec::new();
        guest.put(0x2002, SIZE + 1);
        assert_eq!(
            guest.ring().take(0, 64, &mut heads),
            Err(RingError::AvailableIndex)
        );
        guest.put(0x2002, u16::MAX);
        assert_eq!(
            guest.ring().take(0, 64, &mut heads),
            Err(RingError::AvailableIndex)
        );
        guest.put(0x2002, 1);
        guest.put(0x2004, SIZE);
        assert_eq!(
            guest.ring().take(0, 64, &mut heads),
            Err(RingError::DescriptorIndex)
        );
    }

    #[test]
    fn indexes_wrap_around() {
        let guest = Guest::new();
        let mut heads = Vec::new();
        guest.put(0x2002, 1);
        for slot in 0..8 {
            guest.put(0x2004 + 2 * slot, slot as u16);
        }
        assert_eq!(guest.ring().take(u16::MAX - 1, 64, &mut heads), Ok(1));
        assert_eq!(heads, [6, 7, 0]);
        let next = heads.iter().fold(u16::MAX - 1, |next, head| {
            let done = Used {
                head: *head,
                len: 5,
            };
            guest.ring().publish(next, done)
        });
        assert_eq!(next, 1);
        assert_eq!(guest.get(0x3002), 1);
        assert_eq!(
            (guest.get(0x3004 + 8 * 6), guest.get(0x3004 + 8 * 6 + 4)),
            (6, 5)
        );
    }

    #[test]
    fn the_guest_is_notified_when_its_event_was_passed() {
        let guest = Guest::new();
        let used_event = 0x2004 + 2 * u64::from(SIZE);
        for (event, old, new, expected) in [
            (0, 0, 1, true),
            (1, 0, 1, false),
            (1, 0, 2, true),
            (5, 0, 3, false),
            (65535, 65534, 0, true),
        ] {
            guest.put(used_event, event);
            assert_eq!(
                guest.ring().wants_notification(old, new),
                expected,
                "{event} {old} {new}"
            );
        }
    }

    #[test]
    fn asking_for_a_kick_tells_of_requests_that_came_meanwhile() {
        let guest = Guest::new();
        guest.put(0x2002, 3);
        assert!(guest.ring().ask_for_kick(2));
        assert!(!guest.ring().ask_for_kick(3));
        assert_eq!(guest.get(0x3004 + 8 * u64::from(SIZE)), 3);
    }

    #[test]
    fn a_wish_for_a_kick_that_is_taken_back_is_behind_the_next_request() {
        let guest = Guest::new();
        for next in [3, 0] {
            guest.ring().ask_for_kick(next);
            guest.ring().withdraw_kick(next);
            let event = guest.get(0x3004 + 8 * u64::from(SIZE));
            assert_eq!(event, next.wrapping_sub(1));
        }
    }

    #[test]
    fn a_ring_outside_memory_is_refused() {
        let guest = Guest::new();
        let memory = guest.view.memory();
        for layout in [
            RingLayout {
                descriptors: MEMORY_END,
                ..LAYOUT
            },
            RingLayout {
                available: MEMORY_END - 4,
                ..LAYOUT
            },
            RingLayout {
                used: u64::MAX - 1,
                ..LAYOUT
            },
            RingLayout {
                used: 0x3001,
                ..LAYOUT
            },
        ] {
            assert!(Ring::new(memory, &layout).is_err(), "{layout:?}");
        }
    }
}
