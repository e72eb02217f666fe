//! Guest memory as the kernel's I/O calls want it, and the rings in it.
//!
//! The guest writes to this memory while we look at it, so a Rust reference to
//! it never exists: there are raw vectors that live no longer than the guard of
//! the memory map, and bytes that were copied out once before anyone parses
//! them. Every write marks its pages for live migration where that was asked.
#![allow(unsafe_code)]

mod bounce;
pub mod buffers;
mod dirty_log;
mod lost_memory;
mod renewal;
pub mod ring;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

pub use dirty_log::RegionLog;
pub use lost_memory::{memory_is_lost, replaced_pages, survive_lost_memory};
pub use renewal::{SharedMemory, View};

use crate::sys::sync::lock;
use lost_memory::Watched;

/// The memory map of the guest: regions with a dirty log that may be absent.
pub type GuestMemory = GuestMemoryMmap<RegionLog>;

/// The most regions of a map: what the library offers to the front end. Each costs a
/// descriptor, and there is a reserve for so many.
pub const MAX_REGIONS: usize = 509;

/// What the front end's maps have in common, one after the other.
#[derive(Debug, Default)]
pub struct Admission {
    /// A region of the last map that had any.
    last: Mutex<Option<RegionLog>>,
}

impl Admission {
    /// Checks a new map and makes it ready for use: what it has is in the dirty log,
    /// if there is one, and in no core dump.
    ///
    /// # Errors
    /// When it has too many regions, one that is longer than its file, or one that the
    /// log has no room for.
    pub fn admit(&self, map: &GuestMemory) -> io::Result<()> {
        let mut last = lock(&self.last);
        if map.num_regions() > MAX_REGIONS {
            return Err(io::Error::other(format!(
                "the front end sends more than {MAX_REGIONS} regions of memory; give the \
                 machine fewer"
            )));
        }
        for region in map.iter() {
            must_be_in_its_file(region)?;
            keep_out_of_dumps(region)?;
            if let Some(last) = &*last {
                log_of(region).follow(last, region)?;
            }
        }
        if let Some(region) = map.iter().next() {
            *last = Some(log_of(region).clone());
        }
        lost_memory::set_lost(map.iter().any(|region| log_of(region).is_lost()));
        Ok(())
    }
}

type Mapped = <GuestMemory as GuestMemoryBackend>::R;

/// The log of a region itself, where the trait's method gives a part.
fn log_of(region: &Mapped) -> &RegionLog {
    let mapped: &MmapRegion<RegionLog> = region;
    mapped.bitmap()
}

/// Refuses a region that ends behind its file: touching it is a SIGBUS. What is no
/// regular file, a device, does not say how large it is.
fn must_be_in_its_file(region: &Mapped) -> io::Result<()> {
    let Some(place) = region.file_offset() else {
        return Ok(());
    };
    let file = place.file().metadata()?;
    let end = place.start().saturating_add(region.len());
    if file.is_file() && file.size() < end {
        return Err(io::Error::other(format!(
            "the front end sends memory of {end} bytes whose file has {}; make the file as \
             large as the memory",
            file.size()
        )));
    }
    Ok(())
}

/// Has no core dump contain this memory, whatever becomes of the dumpable flag of the
/// process, which `setresuid(2)` sets to what the host's `fs.suid_dumpable` says.
fn keep_out_of_dumps(region: &Mapped) -> io::Result<()> {
    // SAFETY: the region is mapped, and the advice changes nothing but what a dump
    // has in it.
    let result =
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTDUMP) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has lost pages of a region be replaced.
fn watch(region: &Mapped) -> &Watched {
    log_of(region).watch(|| Watched::new(region.as_ptr(), region.size(), page_size(region)))
}

/// The size of the pages of a region.
fn page_size(region: &Mapped) -> usize {
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    region
        .file_offset()
        .and_then(|place| rustix::fs::fstatfs(place.file()).ok())
        .filter(|fs| fs.f_type as u64 == HUGETLBFS_MAGIC)
        .map_or(0, |fs| fs.f_bsize as usize)
}

/// Whether a write is missing in the front end's log.
pub fn misses_a_write(map: &GuestMemory) -> bool {
    map.iter().any(|region| log_of(region).misses_a_write())
}

/// The front end wants to know no more what is written.
pub fn forget_writes(map: &GuestMemory) {
    for region in map.iter() {
        log_of(region).forget();
    }
}

/// The guest's memory for as long as its mapping is held; small, since much of what is
/// made for a request has one.
#[derive(Clone, Copy)]
pub struct Memory<'m>(&'m View<'m>);

impl Memory<'_> {
    /// Whether it is being taken away: then it is not to be touched any more.
    #[inline]
    pub fn is_stale(&self) -> bool {
        self.0.is_stale()
    }

    /// The region that has an address.
    fn region_of(&self, address: u64) -> Option<Region> {
        let address = vm_memory::GuestAddress(address);
        let region = self.0.map().find_region(address)?;
        watch(region);
        Some(Region {
            start: region.start_addr().0,
            len: region.len(),
            host: region.as_ptr(),
        })
    }

    /// Records that `len` bytes at host address `start` have changed.
    #[inline]
    fn mark_dirty(&self, start: *const u8, len: usize) {
        // Asked after each write: one that ends after the front end switched logging on
        // is in the log.
        if self.0.is_logged() {
            self.note(start, len);
        }
    }

    #[cold]
    fn note(&self, start: *const u8, len: usize) {
        if len == 0 {
            return;
        }
        for region in self.0.map().iter() {
            let offset = (start as usize).wrapping_sub(region.as_ptr() as usize);
            if offset < region.size() {
                log_of(region).note(offset, len);
            }
        }
    }
}

/// A range of guest memory that lies without a gap in our address space too.
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    len: u64,
    host: *mut u8,
}

impl Region {
    /// No memory at all.
    const NONE: Self = Self {
        start: 0,
        len: 0,
        host: std::ptr::null_mut(),
    };

    /// Where `len` bytes at guest address `address` lie in our address space,
    /// and how many of them are in this region; `None` where the first is not.
    fn locate(&self, address: u64, len: usize) -> Option<Piece> {
        let offset = address.wrapping_sub(self.start);
        if offset >= self.len {
            return None;
        }
        // A region is mapped, so its offsets fit.
        Some(Piece {
            start: self.host.wrapping_add(offset as usize),
            len: len.min((self.len - offset) as usize),
            is_first: offset == 0,
        })
    }
}

/// A piece of guest memory in our address space.
#[derive(Clone, Copy)]
struct Piece {
    start: *mut u8,
    len: usize,
    /// Whether nothing of its region lies in front of it.
    is_first: bool,
}
