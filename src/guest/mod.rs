//! Guest memory as the kernel's I/O calls want it, and the rings in it.
//!
//! The guest writes to this memory while we look at it, so a Rust reference to
//! it never exists: there are raw vectors that live no longer than the guard of
//! the memory map, and bytes that were copied out once before anyone parses
//! them. Every write marks its pages for live migration where that was asked.
#![allow(unsafe_code)]

pub mod buffers;
pub mod ring;

use std::sync::atomic::{AtomicBool, Ordering};

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// The memory map of the guest: regions with a dirty log that may be absent.
pub type GuestMemory = GuestMemoryMmap<BitmapMmapRegion>;

/// Has no core dump contain this memory, whatever becomes of the dumpable flag of the
/// process, which `setresuid(2)` sets to what the host's `fs.suid_dumpable` says.
///
/// # Errors
/// Those of `madvise(2)`.
pub fn keep_out_of_dumps(map: &GuestMemory) -> std::io::Result<()> {
    for region in map.iter() {
        // SAFETY: the region is mapped by this map, and the advice changes nothing
        // but what a dump has in it.
        let result =
            unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTDUMP) };
        if result == -1 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The guest's memory together with whether writes into it are to be logged.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'m> {
    map: &'m GuestMemory,
    /// Read after each write: a write that ends after the front end switched
    /// logging on is in the log.
    logging: &'m AtomicBool,
}

impl<'m> Memory<'m> {
    /// Joins a memory map and the switch of its log.
    pub fn new(map: &'m GuestMemory, logging: &'m AtomicBool) -> Self {
        Self { map, logging }
    }

    /// The region that has an address.
    fn region_of(&self, address: u64) -> Option<Region> {
        let address = vm_memory::GuestAddress(address);
        let region = self.map.find_region(address)?;
        Some(Region {
            start: region.start_addr().0,
            len: region.len(),
            host: region.as_ptr(),
        })
    }

    /// Records that `len` bytes at host address `start` have changed.
    fn mark_dirty(&self, start: *const u8, len: usize) {
        if len == 0 || !self.logging.load(Ordering::Acquire) {
            return;
        }
        for region in self.map.iter() {
            let offset = (start as usize).wrapping_sub(region.as_ptr() as usize);
            if offset < region.size() {
                region.bitmap().mark_dirty(offset, len);
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
