//! Mapping the guest's memory again and revoking the previous mapping.
//!
//! A thread may be stuck in a system call with addresses of guest memory: a write to a
//! frozen disk, a read from an unreachable server. When the front end stops the queue,
//! the guest may use that memory for something else. After the mapping is revoked such a
//! call fails with `EFAULT`: it writes nothing into the file that is not the request's,
//! and nothing into the guest's memory.
//!
//! Pages that the kernel has pinned, as for direct I/O, it still reads and writes.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryLoadGuard,
    GuestMemoryRegion, GuestRegionMmap,
};

use super::{Admission, GuestMemory, Mapped, Memory, RegionLog, log_of, watch};

/// Upper bound for a copy into or out of guest memory that has begun, preemption included.
const GRACE: Duration = Duration::from_millis(10);

/// The memory that a front end shares.
#[derive(Debug)]
pub struct SharedMemory {
    map: GuestMemoryAtomic<GuestMemory>,
    admission: Admission,
    /// Whether the front end wants to know which pages are written to.
    logging: AtomicBool,
    /// Odd while the memory is mapped once more, which counts two.
    renewals: AtomicU64,
}

/// The memory as it is mapped for as long as this lives, or until it is mapped once
/// more.
pub struct View<'m> {
    shared: &'m SharedMemory,
    map: GuestMemoryLoadGuard<GuestMemory>,
    renewals: u64,
}

impl View<'_> {
    /// The memory.
    #[inline]
    pub fn memory(&self) -> Memory<'_> {
        Memory(self)
    }

    pub(super) fn map(&self) -> &GuestMemory {
        &self.map
    }

    #[inline]
    pub(super) fn is_logged(&self) -> bool {
        self.shared.is_logged()
    }

    /// Whether the memory was mapped once more, and this mapping is taken away.
    #[inline]
    pub fn is_stale(&self) -> bool {
        self.shared.renewals.load(Ordering::Acquire) != self.renewals
    }
}

impl SharedMemory {
    /// This memory, for as long as there is no other.
    pub fn of(map: GuestMemory) -> Self {
        Self::new(GuestMemoryAtomic::new(map))
    }

    /// What the library keeps in `map`.
    pub fn new(map: GuestMemoryAtomic<GuestMemory>) -> Self {
        Self {
            map,
            admission: Admission::default(),
            logging: AtomicBool::new(false),
            renewals: AtomicU64::new(0),
        }
    }

    /// The map.
    pub fn map(&self) -> GuestMemoryLoadGuard<GuestMemory> {
        self.map.memory()
    }

    /// The memory as it is now.
    pub fn view(&self) -> View<'_> {
        loop {
            let renewals = self.renewals.load(Ordering::Acquire);
            let map = self.map.memory();
            if renewals.is_multiple_of(2) && self.renewals.load(Ordering::Acquire) == renewals {
                return View {
                    shared: self,
                    map,
                    renewals,
                };
            }
            thread::yield_now();
        }
    }

    /// Whether the front end wants to know which pages are written to.
    #[inline]
    pub fn is_logged(&self) -> bool {
        self.logging.load(Ordering::Acquire)
    }

    /// Says whether it does; gives whether it did.
    pub fn set_logged(&self, is_logged: bool) -> bool {
        self.logging.swap(is_logged, Ordering::AcqRel)
    }

    /// Checks a new map and makes it ready for use.
    ///
    /// # Errors
    /// Those of [`Admission::admit`].
    pub fn admit(&self, map: &GuestMemory) -> io::Result<()> {
        self.admission.admit(map)
    }

    /// Maps the memory once more, and takes the mapping before away. Between the two
    /// `wait_for_rings` has to wait for who is using a ring by the mapping before.
    ///
    /// # Errors
    /// Those of `mmap(2)`, and when some of the memory is of no file: then nothing was
    /// taken away.
    pub fn renew(&self, wait_for_rings: impl FnOnce()) -> io::Result<()> {
        let old = self.map.memory();
        let new = map_again(&old)?;
        self.admission.admit(&new)?;
        let Ok(map) = self.map.lock() else {
            return Err(io::Error::other("the memory map is being changed"));
        };
        self.renewals.fetch_add(1, Ordering::AcqRel);
        map.replace(new);
        self.renewals.fetch_add(1, Ordering::AcqRel);
        wait_for_rings();
        // Nobody begins to copy any more, see `Memory::is_stale`. A page that was
        // touched after this would be an empty one, to system calls too.
        thread::sleep(GRACE);
        revoke(&old)
    }
}

/// Maps the same memory at other addresses.
fn map_again(map: &GuestMemory) -> io::Result<GuestMemory> {
    let regions = map
        .iter()
        .map(region_again)
        .collect::<io::Result<Vec<_>>>()?;
    GuestMemory::from_regions(regions).map_err(io::Error::other)
}

fn region_again(region: &Mapped) -> io::Result<Mapped> {
    let file = region
        .file_offset()
        .ok_or_else(|| io::Error::other("memory of no file cannot be mapped again"))?;
    let log = RegionLog::default();
    log.inherit(log_of(region));
    let mapped = MmapRegionBuilder::new_with_bitmap(region.size(), log)
        .with_file_offset(file.clone())
        .with_mmap_prot(region.prot())
        .with_mmap_flags(region.flags())
        .build()
        .map_err(io::Error::other)?;
    GuestRegionMmap::new(mapped, region.start_addr())
        .ok_or_else(|| io::Error::other("a region ends behind the last address"))
}

/// Takes a mapping away: system calls get `EFAULT` for it, and our own code finds empty
/// pages.
fn revoke(map: &GuestMemory) -> io::Result<()> {
    for region in map.iter() {
        if !watch(region).revoke() {
            return Err(io::Error::other("too many regions of memory are in use"));
        }
        // SAFETY: the range is that of the region, which unmaps whatever is there when
        // it is dropped; whoever has addresses in it is ready for them to fault, as the
        // handler of `lost_memory` gives a page then.
        let mapped = unsafe {
            libc::mmap(
                region.as_ptr().cast(),
                region.size(),
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};

    use vm_memory::{Bytes, FileOffset, GuestAddress};

    use super::super::lost_memory::{memory_is_lost, replaced_pages, survive_lost_memory};
    use super::*;

    const LEN: usize = 2 << 20;

    fn memory(file: &File) -> GuestMemory {
        file.set_len(LEN as u64).unwrap();
        let place = FileOffset::new(file.try_clone().unwrap(), 0);
        GuestMemory::from_ranges_with_files([(GuestAddress(0x1000), LEN, Some(place))]).unwrap()
    }

    #[test]
    fn a_system_call_gets_an_error_and_others_find_empty_pages() {
        survive_lost_memory().unwrap();
        let file = tempfile::tempfile().unwrap();
        let shared = SharedMemory::new(GuestMemoryAtomic::new(memory(&file)));
        let (view, old) = (shared.view(), shared.map());
        let at = GuestAddress(0x3000);
        old.write_slice(b"text", at).unwrap();
        assert!(!view.is_stale() && !view.memory().is_stale());
        let mut is_waited_for = false;
        shared.renew(|| is_waited_for = true).unwrap();
        assert!(is_waited_for && view.is_stale() && view.memory().is_stale());
        assert!(!shared.view().is_stale());
        let new = shared.map();
        let address = old.get_host_address(at).unwrap().cast_const();
        let mut data = tempfile::tempfile().unwrap();
        // SAFETY: the kernel copies from an address where nothing is mapped.
        let n = unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&data), address.cast(), 4) };
        assert_eq!(n, -1);
        assert_eq!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EFAULT)
        );
        let mut text = [0; 4];
        new.read_slice(&mut text, at).unwrap();
        assert_eq!(&text, b"text");
        let before = replaced_pages();
        old.read_slice(&mut text, at).unwrap();
        assert_eq!(text, [0; 4]);
        old.write_slice(b"lost", at).unwrap();
        assert!(replaced_pages() > before);
        assert!(!memory_is_lost());
        new.read_slice(&mut text, at).unwrap();
        assert_eq!(&text, b"text");
        data.write_all(b"x").unwrap();
        data.seek(SeekFrom::Start(0)).unwrap();
        let mut all = Vec::new();
        data.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"x");
    }
}
