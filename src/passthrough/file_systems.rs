//! What is known of the file systems of the host: how they read, and whether
//! they wait for somebody.
//!
//! A short READ is the end of the file to the guest, so it must not come from
//! an error in the middle. On a local file system the kernel gives out whole
//! blocks of its page cache until the file ends or a block cannot be read: a
//! read that stops within a block has met the end, one that stops between
//! blocks has to ask again. Other file systems may stop anywhere.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::locks::{read, write};

/// No local file system has smaller blocks.
const BLOCK_BYTES: u64 = 512;

/// File systems of which the above is true: ext2 to ext4, XFS, F2FS
/// (`statfs(2)`, `f_type`).
const LOCAL: [u64; 3] = [0xef53, 0x5846_5342, 0xf2f5_2010];

/// File systems that are nothing but memory: tmpfs, ramfs.
const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// File systems that ask a server for nearly everything, and wait for its answer:
/// FUSE (virtio-fs included), NFS, CIFS and SMB, 9p, Ceph, AFS, Coda, Lustre,
/// OCFS2, GFS2.
const SERVED: [u64; 11] = [
    0x6573_5546,
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x7375_7245,
    0x0bd0_0bd0,
    0x7461_636f,
    0x0116_1970,
];

/// What matters here about a file system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// On a disk of this machine; a read stops within a block at the end only.
    Local,
    /// In memory: nothing waits.
    Memory,
    /// On a server: everything may wait.
    Served,
    /// Nothing is known.
    Other,
}

impl Kind {
    fn of(device: u64, fd: BorrowedFd<'_>) -> Self {
        let found = rustix::fs::fstatfs(fd).map_or(0, |status| status.f_type as u64);
        if MEMORY.contains(&found) {
            Self::Memory
        } else if SERVED.contains(&found) {
            Self::Served
        } else if LOCAL.contains(&found) && has_block_device(device) {
            Self::Local
        } else {
            Self::Other
        }
    }
}

/// A file system without one may share its number with another one later, when
/// it was unmounted.
fn has_block_device(device: u64) -> bool {
    device >> 32 != 0
}

/// What is known of the file systems of this session, by device number.
#[derive(Debug, Default)]
pub struct FileSystems {
    kinds: RwLock<HashMap<u64, Kind>>,
    /// Whether one of them is `Served`: usually none is, and nothing has to be
    /// looked up.
    any_served: AtomicBool,
}

impl FileSystems {
    /// The kind of the file system of a device; `fd` is a file on it.
    pub fn kind(&self, device: u64, fd: BorrowedFd<'_>) -> Kind {
        match self.known(device) {
            Some(kind) => kind,
            None => self.meet(device, fd),
        }
    }

    /// The guest has come to a file system, maybe a new one with a number that
    /// an older one had.
    pub fn meet(&self, device: u64, fd: BorrowedFd<'_>) -> Kind {
        let kind = Kind::of(device, fd);
        if kind == Kind::Served {
            self.any_served.store(true, Ordering::Relaxed);
        }
        if self.known(device) != Some(kind) {
            write(&self.kinds).insert(device, kind);
        }
        kind
    }

    /// Whether any of them is on a server.
    pub fn any_is_served(&self) -> bool {
        self.any_served.load(Ordering::Relaxed)
    }

    /// Whether the file system of a device is known to be on a server.
    pub fn is_served(&self, device: u64) -> bool {
        self.known(device) == Some(Kind::Served)
    }

    fn known(&self, device: u64) -> Option<Kind> {
        read(&self.kinds).get(&device).copied()
    }
}

/// Whether a short read that stopped at this offset has met the end of a file on
/// a local file system.
pub fn stopped_within_block(end: u64) -> bool {
    !end.is_multiple_of(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_a_stop_within_a_block_is_an_end() {
        for (end, expected) in [
            (0, false),
            (1, true),
            (511, true),
            (512, false),
            (4097, true),
        ] {
            assert_eq!(stopped_within_block(end), expected, "{end}");
        }
    }

    #[test]
    fn a_file_system_without_a_block_device_is_not_trusted() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        for device in [5, 8 << 32 | 1] {
            let systems = FileSystems::default();
            assert_eq!(systems.kind(device, file.as_fd()), Kind::Other);
            assert!(!systems.any_is_served());
        }
    }

    #[test]
    fn a_number_that_means_another_file_system_now_is_learned_again() {
        let systems = FileSystems::default();
        let (memory, other) = (
            std::fs::File::open("/dev/shm").unwrap(),
            std::fs::File::open("/proc").unwrap(),
        );
        assert_eq!(systems.kind(5, memory.as_fd()), Kind::Memory);
        assert_eq!(systems.kind(5, other.as_fd()), Kind::Memory);
        assert_eq!(systems.meet(5, other.as_fd()), Kind::Other);
        assert_eq!(systems.kind(5, memory.as_fd()), Kind::Other);
    }
}
