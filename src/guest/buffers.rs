//! The buffers of one request: what the guest wrote, and where the reply goes.
//!
//! Both are lists of spans that only ever get shorter. What is promised to a
//! call is never more than what was asked for: the last span is cut to size.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::{Memory, Piece};
use crate::sys::vectored::{self, IOV_MAX};

/// A piece of guest memory, as the kernel takes it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Span(libc::iovec);

// SAFETY: a span is a number pair. It is only followed through `Readable` and
// `Writable`, whose lifetime keeps the mapping alive.
unsafe impl Send for Span {}

impl Span {
    const EMPTY: Self = Self(libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    });

    /// The address behind its last byte.
    fn end(&self) -> *mut u8 {
        self.0.iov_base.wrapping_byte_add(self.0.iov_len).cast()
    }

    fn advance(&mut self, n: usize) {
        self.0.iov_base = self.0.iov_base.wrapping_byte_add(n);
        self.0.iov_len -= n;
    }
}

/// Room for the spans of one request, kept from one request to the next so that
/// none is allocated on the way.
#[derive(Default)]
pub struct Spans {
    readable: Vec<Span>,
    writable: Vec<Span>,
    /// Whether a buffer is not in memory that the daemon can reach.
    is_cut: bool,
}

impl Spans {
    /// Forgets the spans of the last request.
    pub(super) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.is_cut = false;
    }

    /// A buffer is out of reach: what was pushed before it is all that there is of
    /// its side.
    pub(super) fn cut(&mut self) {
        self.is_cut = true;
    }

    /// Adds a piece of guest memory to one of the sides. Where it lies right
    /// behind the last one, the two become one: the kernel then has fewer
    /// vectors to look at. They are in the same region, since its memory reaches
    /// to the front of a piece that is not the first.
    ///
    /// # Safety
    /// It must be a piece of the memory that [`Spans::split`] is then called
    /// with, and not be empty.
    pub(super) unsafe fn push(&mut self, writable: bool, piece: Piece) {
        let side = if writable {
            &mut self.writable
        } else {
            &mut self.readable
        };
        match side.last_mut() {
            Some(last) if !piece.is_first && last.end() == piece.start => {
                last.0.iov_len += piece.len;
            }
            _ => side.push(Span(libc::iovec {
                iov_base: piece.start.cast(),
                iov_len: piece.len,
            })),
        }
    }

    /// Whether a reply buffer was added yet.
    pub(super) fn has_writable(&self) -> bool {
        !self.writable.is_empty()
    }

    /// The two sides of the request.
    pub(super) fn split<'a>(&'a mut self, memory: Memory<'a>) -> (Readable<'a>, Writable<'a>) {
        (
            Readable {
                list: List::new(&mut self.readable),
                is_cut: self.is_cut,
                memory,
            },
            Writable {
                list: List::new(&mut self.writable),
                memory,
                written: 0,
            },
        )
    }
}

/// Spans with their total length.
struct List<'a> {
    spans: &'a mut [Span],
    len: usize,
}

impl<'a> List<'a> {
    fn new(spans: &'a mut [Span]) -> Self {
        let len = spans.iter().map(|span| span.0.iov_len).sum();
        Self { spans, len }
    }

    /// Drops all but the first `n` bytes.
    fn limit(&mut self, n: usize) {
        let mut left = n;
        for span in self.spans.iter_mut() {
            span.0.iov_len = span.0.iov_len.min(left);
            left -= span.0.iov_len;
        }
        self.len = self.len.min(n);
    }

    /// Drops the first `n` bytes, and spans that are empty.
    fn advance(&mut self, n: usize) {
        self.len = self.len.saturating_sub(n);
        let mut left = n;
        let mut spans = std::mem::take(&mut self.spans);
        while let Some(span) = spans.first_mut() {
            let step = span.0.iov_len.min(left);
            span.advance(step);
            left -= step;
            if span.0.iov_len > 0 {
                break;
            }
            spans = spans.split_at_mut(1).1;
        }
        self.spans = spans;
    }

    /// The spans of one call, without the empty ones that `limit` left behind.
    fn vectors(&self) -> &[libc::iovec] {
        let used = self.spans.iter().position(|span| span.0.iov_len == 0);
        let count = used.unwrap_or(self.spans.len()).min(IOV_MAX);
        // SAFETY: `Span` is a transparent wrapper around `iovec`, and `count`
        // is at most the length of the slice.
        unsafe { std::slice::from_raw_parts(self.spans.as_ptr().cast(), count) }
    }
}

/// What the guest wrote: header, arguments and data of a request.
pub struct Readable<'a> {
    list: List<'a>,
    is_cut: bool,
    memory: Memory<'a>,
}

impl Readable<'_> {
    /// Whether part of the request, or of the room for its reply, is not in memory
    /// that the guest shares: then nothing of it may be carried out.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Whether the memory is being taken away: what was copied may be incomplete.
    pub fn is_stale(&self) -> bool {
        self.memory.is_stale()
    }

    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.list.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.list.len == 0
    }

    /// Drops all but the next `n` bytes.
    pub fn limit(&mut self, n: usize) {
        self.list.limit(n);
    }

    /// Copies the next bytes out of guest memory; gives how many there were.
    pub fn copy_out(&mut self, into: &mut [u8]) -> usize {
        let copied = self.copy_ahead(into);
        self.list.advance(copied);
        copied
    }

    /// Leaves bytes out.
    pub(super) fn skip(&mut self, n: usize) {
        self.list.advance(n);
    }

    /// Copies the next bytes, which stay the next ones; gives how many there were.
    pub(super) fn copy_ahead(&self, into: &mut [u8]) -> usize {
        let mut copied = 0;
        if self.memory.is_stale() {
            return 0;
        }
        for span in self.list.spans.iter() {
            let Some(room) = into.get_mut(copied..).filter(|room| !room.is_empty()) else {
                break;
            };
            let n = span.0.iov_len.min(room.len());
            // SAFETY: the span is mapped for as long as this request lives, and
            // `room` is ours and at least `n` bytes long. That the guest may
            // write meanwhile gives any bytes, which is all that is assumed.
            unsafe { std::ptr::copy_nonoverlapping(span.0.iov_base.cast(), room.as_mut_ptr(), n) };
            copied += n;
        }
        copied
    }

    /// Writes the next bytes to `file` at `offset` in one call, straight from
    /// guest memory; gives how many were written.
    ///
    /// # Errors
    /// Those of `pwritev2(2)`.
    pub fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        flags: i32,
    ) -> Result<usize, Errno> {
        // SAFETY: the spans are mapped for as long as this request lives.
        let n = unsafe { vectored::pwritev2(file, self.list.vectors(), offset, flags) }?;
        self.list.advance(n);
        Ok(n)
    }
}

/// Where the reply goes.
pub struct Writable<'a> {
    list: List<'a>,
    memory: Memory<'a>,
    written: usize,
}

impl<'a> Writable<'a> {
    /// Bytes of room that are left.
    pub fn len(&self) -> usize {
        self.list.len
    }

    /// Whether no room is left.
    pub fn is_empty(&self) -> bool {
        self.list.len == 0
    }

    /// Bytes written so far, what was reserved not counted.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Takes the first `N` bytes of room, to be written last; `None` where
    /// there is not so much.
    pub fn reserve<const N: usize>(&mut self) -> Option<Reserved<'a, N>> {
        let first = self.list.spans.first().filter(|_| self.list.len >= N)?;
        let place = if first.0.iov_len >= N {
            Place::Whole(*first)
        } else {
            let mut spans = [Span::EMPTY; N];
            let mut left = N;
            // Spans are never empty, so N bytes lie in at most N of them.
            for (ours, theirs) in spans.iter_mut().zip(self.list.spans.iter()) {
                *ours = *theirs;
                ours.0.iov_len = ours.0.iov_len.min(left);
                left -= ours.0.iov_len;
            }
            Place::Pieces(spans)
        };
        self.list.advance(N);
        Some(Reserved {
            place,
            memory: self.memory,
        })
    }

    /// Copies bytes into guest memory; gives how many there was room for.
    pub fn copy_in(&mut self, bytes: &[u8]) -> usize {
        let mut copied = 0;
        for span in self.list.spans.iter() {
            let Some(rest) = bytes.get(copied..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            copied += copy_to_span(span, rest, self.memory);
        }
        self.written += copied;
        self.list.advance(copied);
        copied
    }

    /// Whether the room is in more pieces than one [`Self::fill_from`] fills.
    pub fn takes_several_calls(&self) -> bool {
        self.list.spans.len() > IOV_MAX
    }

    /// Reads as much of `file` at `offset` as one call does, straight into guest
    /// memory; gives how many bytes came.
    ///
    /// # Errors
    /// Those of `preadv2(2)`.
    pub fn fill_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        flags: i32,
    ) -> Result<usize, Errno> {
        // SAFETY: the spans are mapped for as long as this request lives, and
        // nobody has a reference to guest memory.
        let n = unsafe { vectored::preadv2(file, self.list.vectors(), offset, flags) }?;
        let mut left = n;
        for span in self.list.spans.iter() {
            let filled = span.0.iov_len.min(left);
            if filled == 0 {
                break;
            }
            self.memory.mark_dirty(span.0.iov_base.cast(), filled);
            left -= filled;
        }
        self.written += n;
        self.list.advance(n);
        Ok(n)
    }

    /// Drops all but the next `n` bytes of room.
    pub fn limit(&mut self, n: usize) {
        self.list.limit(n);
    }
}

/// Room for `N` bytes in front of a reply, written when the reply is known.
pub struct Reserved<'a, const N: usize> {
    place: Place<N>,
    memory: Memory<'a>,
}

/// Where `N` bytes lie.
#[allow(clippy::large_enum_variant)] // It lives on the stack of one call.
enum Place<const N: usize> {
    /// At the beginning of this span, as honest guests have it.
    Whole(Span),
    /// All over these spans.
    Pieces([Span; N]),
}

impl<const N: usize> Reserved<'_, N> {
    /// Writes the bytes.
    pub fn write(self, bytes: &[u8; N]) {
        let spans = match &self.place {
            Place::Whole(span) => std::slice::from_ref(span),
            Place::Pieces(spans) => spans,
        };
        let mut copied = 0;
        for span in spans {
            let Some(rest) = bytes.get(copied..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            copied += copy_to_span(span, rest, self.memory);
        }
    }
}

/// Copies as much of `bytes` as the span holds.
fn copy_to_span(span: &Span, bytes: &[u8], memory: Memory<'_>) -> usize {
    let n = span.0.iov_len.min(bytes.len());
    if memory.is_stale() {
        return n;
    }
    // SAFETY: the span is mapped for as long as the request lives and holds at
    // least `n` bytes; `bytes` is ours. The guest may write there meanwhile,
    // which harms only itself.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), span.0.iov_base.cast(), n) };
    memory.mark_dirty(span.0.iov_base.cast(), n);
    n
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use vm_memory::{Bytes, GuestAddress};

    use super::super::{GuestMemory, SharedMemory};
    use super::*;

    const BASE: u64 = 0x1000;

    /// Runs `check` with the spans `(offset, len)` of a small guest.
    fn with_spans(
        readable: &[(u64, usize)],
        writable: &[(u64, usize)],
        check: impl FnOnce(Readable<'_>, Writable<'_>, &GuestMemory),
    ) {
        let map = GuestMemory::from_ranges(&[(GuestAddress(BASE), 0x4000)]).unwrap();
        let content: Vec<u8> = (0..0x4000).map(|n| n as u8).collect();
        map.write_slice(&content, GuestAddress(BASE)).unwrap();
        let shared = SharedMemory::of(map.clone());
        let view = shared.view();
        let memory = view.memory();
        let region = memory.region_of(BASE).unwrap();
        let mut spans = Spans::default();
        for (offset, len) in readable {
            let piece = region.locate(BASE + offset, *len).unwrap();
            // SAFETY: a piece of the memory that `split` is called with below.
            unsafe { spans.push(false, piece) };
        }
        for (offset, len) in writable {
            let piece = region.locate(BASE + offset, *len).unwrap();
            // SAFETY: a piece of the memory that `split` is called with below.
            unsafe { spans.push(true, piece) };
        }
        let (readable, writable) = spans.split(memory);
        check(readable, writable, &map);
    }

    #[test]
    fn bytes_come_out_in_order_across_spans() {
        with_spans(&[(0, 3), (16, 2), (32, 4)], &[], |mut readable, _, _| {
            let mut first = [0; 4];
            assert_eq!(readable.copy_out(&mut first), 4);
            assert_eq!(first, [0, 1, 2, 16]);
            let mut rest = [0xff; 9];
            assert_eq!(readable.copy_out(&mut rest), 5);
            assert_eq!(rest, [17, 32, 33, 34, 35, 0xff, 0xff, 0xff, 0xff]);
            assert!(readable.is_empty());
        });
    }

    #[test]
    fn a_write_never_touches_more_than_the_limit() {
        for limit in 0..12 {
            with_spans(&[(0, 4), (100, 4), (200, 4)], &[], |mut readable, _, _| {
                let file = tempfile::tempfile().unwrap();
                readable.limit(limit);
                let written = readable.write_to(file.as_fd(), 0, 0).unwrap();
                assert_eq!(
                    (written, file.metadata().unwrap().len()),
                    (limit, limit as u64)
                );
            });
        }
    }

    #[test]
    fn a_read_never_touches_more_than_the_limit() {
        for limit in 0..12 {
            with_spans(
                &[],
                &[(0, 4), (100, 4), (200, 4)],
                |_, mut writable, map| {
                    let mut file = tempfile::tempfile().unwrap();
                    file.write_all(&[0xee; 64]).unwrap();
                    writable.limit(limit);
                    assert_eq!(writable.fill_from(file.as_fd(), 0, 0).unwrap(), limit);
                    let mut content = vec![0; 0x4000];
                    map.read_slice(&mut content, GuestAddress(BASE)).unwrap();
                    assert_eq!(
                        content.iter().filter(|byte| **byte == 0xee).count() - 64,
                        limit
                    );
                },
            );
        }
    }

    #[test]
    fn the_reserved_front_is_written_last_and_in_its_place() {
        with_spans(
            &[],
            &[(0, 5), (64, 5), (128, 20)],
            |_, mut writable, map| {
                assert_eq!(writable.len(), 30);
                let mut front = [0; 16];
                let mut probe = [0; 2];
                map.read_slice(&mut probe, GuestAddress(BASE + 134))
                    .unwrap();
                let reserved = writable.reserve::<16>().unwrap();
                assert_eq!(writable.copy_in(&[0xbb; 64]), 14);
                reserved.write(&[0xaa; 16]);
                map.read_slice(&mut front[..6], GuestAddress(BASE + 128))
                    .unwrap();
                assert_eq!(front[..6], [0xaa; 6]);
                map.read_slice(&mut probe, GuestAddress(BASE + 134))
                    .unwrap();
                assert_eq!(probe, [0xbb; 2]);
            },
        );
    }

    #[test]
    fn a_reply_buffer_shorter_than_the_front_has_none() {
        for len in 1..16 {
            with_spans(&[], &[(0, len)], |_, mut writable, _| {
                assert!(writable.reserve::<16>().is_none());
            });
        }
    }

    #[test]
    fn neighbours_become_one_span_and_others_do_not() {
        with_spans(
            &[(0, 4), (4, 4), (9, 1)],
            &[(10, 6), (16, 3), (12, 1)],
            |readable, writable, _| {
                let lens = |list: &List<'_>| -> Vec<_> {
                    list.vectors().iter().map(|span| span.iov_len).collect()
                };
                assert_eq!(lens(&readable.list), [8, 1]);
                assert_eq!(lens(&writable.list), [9, 1]);
            },
        );
    }
}
