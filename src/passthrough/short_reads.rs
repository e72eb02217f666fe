//! Whether a read that came short has found the end of the file.
//!
//! A short READ is the end of the file to the guest, so it must not come from
//! an error in the middle. On a local file system the kernel gives out whole
//! blocks of its page cache until the file ends or a block cannot be read: a
//! read that stops within a block has met the end, one that stops between
//! blocks has to ask again. Other file systems may stop anywhere.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::RwLock;

use crate::sys::locks::{read, write};

/// No local file system has smaller blocks.
const BLOCK_BYTES: u64 = 512;

/// File systems of which the above is true: ext2 to ext4, XFS, F2FS
/// (`statfs(2)`, `f_type`).
const LOCAL: [u64; 3] = [0xef53, 0x5846_5342, 0xf2f5_2010];

/// What is known of the file systems of this session, by device number.
#[derive(Debug, Default)]
pub struct FileSystems {
    is_local: RwLock<HashMap<u64, bool>>,
}

impl FileSystems {
    /// Whether the file system of a device is local; `fd` is a file on it.
    ///
    /// Without a block device the answer is no: such a number soon means
    /// another file system after an unmount, and what was learned is a lie.
    pub fn is_local(&self, device: u64, fd: BorrowedFd<'_>) -> bool {
        if device >> 32 == 0 {
            return false;
        }
        if let Some(known) = read(&self.is_local).get(&device) {
            return *known;
        }
        let found = rustix::fs::fstatfs(fd);
        let is_local = found.is_ok_and(|status| LOCAL.contains(&(status.f_type as u64)));
        write(&self.is_local).insert(device, is_local);
        is_local
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
        let systems = FileSystems::default();
        assert!(!systems.is_local(5, file.as_fd()));
        assert!(
            !systems.is_local(8 << 32 | 1, file.as_fd()),
            "procfs is not in the list"
        );
    }
}
