//! Guest memory: regions of shared memory at guest physical addresses.
//!
//! Every access goes through `vm-memory`'s volatile slices, since the daemon
//! writes to the same pages at the same time. An address that is in no region
//! is a mistake of the test and panics.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, RwLock};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Where the front end pretends to have mapped guest address 0. Far from any
/// guest address, so that mixing the two kinds of address is noticed.
pub const VMM_BASE: u64 = 0x7e00_0000_0000;

/// One range of guest memory.
#[derive(Debug)]
pub struct Region {
    pub gpa: u64,
    pub size: u64,
    file: File,
    map: MmapRegion,
}

impl Region {
    pub fn new(gpa: u64, size: u64) -> Self {
        let file: File = memfd_create("guest-memory", MemfdFlags::CLOEXEC)
            .unwrap()
            .into();
        ftruncate(&file, size).unwrap();
        let backing = FileOffset::new(file.try_clone().unwrap(), 0);
        let map = MmapRegion::from_file(backing, usize::try_from(size).unwrap()).unwrap();
        Self {
            gpa,
            size,
            file,
            map,
        }
    }

    /// Takes the end of the memory away, or gives it back.
    pub fn truncate(&self, size: u64) {
        ftruncate(&self.file, size).unwrap();
    }

    fn contains(&self, gpa: u64, len: u64) -> bool {
        gpa >= self.gpa && gpa - self.gpa + len <= self.size
    }

    /// `len` bytes at guest address `gpa`.
    pub fn slice(&self, gpa: u64, len: usize) -> VolatileSlice<'_> {
        let offset = usize::try_from(gpa - self.gpa).unwrap();
        self.map.get_slice(offset, len).unwrap()
    }

    /// How the front end describes the region to the daemon.
    pub fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.gpa,
            memory_size: self.size,
            userspace_addr: VMM_BASE + self.gpa,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn load_u16(&self, gpa: u64, order: Ordering) -> u16 {
        u16::from_le(self.slice(gpa, 2).load(0, order).unwrap())
    }

    pub fn store_u16(&self, gpa: u64, value: u16, order: Ordering) {
        self.slice(gpa, 2).store(value.to_le(), 0, order).unwrap();
    }

    pub fn read_u32(&self, gpa: u64) -> u32 {
        u32::from_le(self.slice(gpa, 4).load(0, Ordering::Relaxed).unwrap())
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.slice(gpa, bytes.len()).copy_from(bytes);
    }

    pub fn read(&self, gpa: u64, bytes: &mut [u8]) {
        self.slice(gpa, bytes.len()).copy_to(bytes);
    }
}

/// All regions of a guest, and a small allocator over them. Clones are the
/// same memory.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    regions: RwLock<Vec<Arc<Region>>>,
    space: Mutex<Space>,
}

/// Bump allocation at the end of a region, and lists of freed blocks by size.
#[derive(Debug, Default)]
struct Space {
    next: HashMap<u64, u64>,
    freed: HashMap<(u64, u64), Vec<u64>>,
}

impl GuestMemory {
    pub fn new(ranges: &[(u64, u64)]) -> Self {
        let memory = Self::default();
        for &(gpa, size) in ranges {
            memory.add(gpa, size);
        }
        memory
    }

    /// Creates a region; telling the daemon is the front end's part.
    pub fn add(&self, gpa: u64, size: u64) -> Arc<Region> {
        let region = Arc::new(Region::new(gpa, size));
        self.0.regions.write().unwrap().push(region.clone());
        region
    }

    /// Takes a region out.
    pub fn remove(&self, gpa: u64) -> Arc<Region> {
        let mut regions = self.0.regions.write().unwrap();
        let index = regions.iter().position(|r| r.gpa == gpa).unwrap();
        self.0.space.lock().unwrap().next.remove(&gpa);
        regions.remove(index)
    }

    pub fn regions(&self) -> Vec<Arc<Region>> {
        self.0.regions.read().unwrap().clone()
    }

    /// The region that holds all of `len` bytes at `gpa`.
    pub fn region_of(&self, gpa: u64, len: usize) -> Arc<Region> {
        let regions = self.0.regions.read().unwrap();
        let found = regions.iter().find(|r| r.contains(gpa, len as u64));
        found
            .unwrap_or_else(|| panic!("no memory at {gpa:#x}"))
            .clone()
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.region_of(gpa, bytes.len()).write(gpa, bytes);
    }

    pub fn read(&self, gpa: u64, bytes: &mut [u8]) {
        self.region_of(gpa, bytes.len()).read(gpa, bytes);
    }

    pub fn read_vec(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(gpa, &mut bytes);
        bytes
    }

    /// `len` bytes in the first region, whole pages for anything as large.
    pub fn alloc(&self, len: u64) -> u64 {
        let first = self.0.regions.read().unwrap()[0].gpa;
        self.alloc_in(first, len)
    }

    /// `len` bytes in the region at `region_gpa`.
    pub fn alloc_in(&self, region_gpa: u64, len: u64) -> u64 {
        let size = block_size(len);
        let region = self.region_of(region_gpa, 1);
        let mut space = self.0.space.lock().unwrap();
        if let Some(gpa) = space.freed.get_mut(&(region_gpa, size)).and_then(Vec::pop) {
            return gpa;
        }
        let next = space.next.entry(region_gpa).or_insert(region_gpa);
        let gpa = next.next_multiple_of(size.min(4096));
        assert!(region.contains(gpa, size), "guest memory is full");
        *next = gpa + size;
        gpa
    }

    /// Gives back what [`Self::alloc`] or [`Self::alloc_in`] gave.
    pub fn free(&self, gpa: u64, len: u64) {
        let region = self.region_of(gpa, 1).gpa;
        let mut space = self.0.space.lock().unwrap();
        space
            .freed
            .entry((region, block_size(len)))
            .or_default()
            .push(gpa);
    }
}

fn block_size(len: u64) -> u64 {
    if len <= 4096 {
        len.max(64).next_power_of_two()
    } else {
        len.next_multiple_of(4096)
    }
}
