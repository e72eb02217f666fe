//! The log of the pages that were written to, which live migration asks for (vhost-user,
//! "Migration").
//!
//! The front end sends one log for all memory, and later, while it is in use, may
//! send other memory: that has to be in the log too, and what was written to it
//! before it was.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

use vhost_user_backend::bitmap::{AtomicBitmapMmap, BitmapReplace, MemRegionBitmap, MmapLogReg};
use vm_memory::GuestMemoryRegion;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;

use super::lost_memory::{Watched, is_there};
use crate::sys::sync::lock;

/// Bytes for which there is a bit.
const PAGE: u64 = 4096;

/// The most writes that are kept for a log that is yet to come: those between two
/// messages of the front end.
const MAX_EARLY: usize = 4096;

/// The dirty log of one region; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct RegionLog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    log: Mutex<Log>,
    /// The memory of the region.
    memory: OnceLock<Watched>,
}

/// Where writes are noted.
#[derive(Debug, Default)]
struct Log {
    part: Option<LogPart>,
    /// Writes before there was a log: offset and length.
    early: Vec<(usize, usize)>,
    /// There were more.
    is_incomplete: bool,
}

/// The part of the front end's log that is about one region.
#[derive(Debug)]
pub struct LogPart {
    log: Arc<MmapLogReg>,
    start: u64,
    last_page: u64,
    /// That of the log.
    _memory: Watched,
}

impl LogPart {
    fn mark(&self, offset: usize, len: usize) {
        let Some(last) = (len as u64).checked_sub(1) else {
            return;
        };
        let first = self.start.saturating_add(offset as u64);
        let last = first.saturating_add(last) / PAGE;
        for page in first / PAGE..=last.min(self.last_page) {
            let (byte, bit) = ((page / 8) as usize, page % 8);
            self.log[byte].fetch_or(1 << bit, Ordering::Relaxed);
        }
    }
}

impl MemRegionBitmap for LogPart {
    fn new<R: GuestMemoryRegion>(region: &R, log: Arc<MmapLogReg>) -> io::Result<Self> {
        // That it fits is checked there; how large the log is, only the library knows.
        AtomicBitmapMmap::new(region, Arc::clone(&log))?;
        let start = region.start_addr().0;
        let last_page = start.saturating_add(region.len().saturating_sub(1)) / PAGE;
        let first: *const _ = &log[(start / PAGE / 8) as usize];
        let last: *const _ = &log[(last_page / 8) as usize];
        if !is_there(last) {
            return Err(io::Error::other(
                "the dirty log is larger than its file; the front end has to send one that is \
                 as large as it says",
            ));
        }
        let len = last as usize - first as usize + 1;
        Ok(Self {
            start,
            last_page,
            _memory: Watched::new(first.cast(), len, 0),
            log,
        })
    }
}

impl RegionLog {
    /// Notes that bytes of the region were written.
    pub(super) fn note(&self, offset: usize, len: usize) {
        let mut log = lock(&self.0.log);
        match &log.part {
            Some(part) => part.mark(offset, len),
            None if log.early.len() < MAX_EARLY => log.early.push((offset, len)),
            None => log.is_incomplete = true,
        }
    }

    /// Whether there is a log in which a write is missing.
    pub(super) fn misses_a_write(&self) -> bool {
        let log = lock(&self.0.log);
        log.part.is_some() && log.is_incomplete
    }

    /// Nobody wants to know any more what was written.
    pub(super) fn forget(&self) {
        let mut log = lock(&self.0.log);
        log.early = Vec::new();
        log.is_incomplete = false;
    }

    /// Logs a region in the log that another one has, if it has none.
    pub(super) fn follow<R: GuestMemoryRegion>(&self, other: &Self, region: &R) -> io::Result<()> {
        if lock(&self.0.log).part.is_some() {
            return Ok(());
        }
        let log = lock(&other.0.log)
            .part
            .as_ref()
            .map(|part| Arc::clone(&part.log));
        if let Some(log) = log {
            let part = LogPart::new(region, log)?;
            let mut own = lock(&self.0.log);
            for (offset, len) in std::mem::take(&mut own.early) {
                part.mark(offset, len);
            }
            own.part = Some(part);
        }
        Ok(())
    }

    /// Watches the memory of the region, from its first use on.
    pub(super) fn watch(&self, watched: impl FnOnce() -> Watched) -> &Watched {
        self.0.memory.get_or_init(watched)
    }

    /// Takes over what another one has noted for a log that is yet to come.
    pub(super) fn inherit(&self, other: &Self) {
        let (early, is_incomplete) = {
            let mut other = lock(&other.0.log);
            (std::mem::take(&mut other.early), other.is_incomplete)
        };
        let mut own = lock(&self.0.log);
        own.early = early;
        own.is_incomplete = is_incomplete;
    }

    /// Whether a page of the region was lost.
    pub(super) fn is_lost(&self) -> bool {
        self.0.memory.get().is_some_and(Watched::is_lost)
    }
}

impl BitmapReplace for RegionLog {
    type InnerBitmap = LogPart;

    fn replace(&self, part: LogPart) {
        // A new log is about what is written from here on.
        *lock(&self.0.log) = Log {
            part: Some(part),
            ..Log::default()
        };
    }
}

impl NewBitmap for RegionLog {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

/// What the library writes by itself: nothing, so far.
impl Bitmap for RegionLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(part) = &lock(&self.0.log).part {
            part.mark(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let log = lock(&self.0.log);
        log.part.as_ref().is_some_and(|part| {
            let page = part.start.saturating_add(offset as u64) / PAGE;
            let byte = part.log[(page.min(part.last_page) / 8) as usize].load(Ordering::Relaxed);
            page <= part.last_page && byte & 1 << (page % 8) != 0
        })
    }

    fn slice_at(&self, offset: usize) -> Slice {
        Slice {
            log: self.clone(),
            offset,
        }
    }
}

impl WithBitmapSlice<'_> for RegionLog {
    type S = Slice;
}

/// The log of a region from one of its bytes on.
#[derive(Clone, Debug)]
pub struct Slice {
    log: RegionLog,
    offset: usize,
}

impl Bitmap for Slice {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.log.mark_dirty(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log.dirty_at(self.offset.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            log: self.log.clone(),
            offset: self.offset.saturating_add(offset),
        }
    }
}

impl BitmapSlice for Slice {}

impl WithBitmapSlice<'_> for Slice {
    type S = Self;
}
