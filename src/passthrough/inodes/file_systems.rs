//! What is known of the file systems of the host: how they read, and whether
//! they wait for somebody.
//!
//! A short READ is the end of the file to the guest, so it must not come from
//! an error in the middle. On a local file system the kernel gives out whole
//! blocks of its page cache until the file ends or a block cannot be read: a
//! read that stops within a block has met the end, one that stops between
//! blocks has to ask again. Other file systems may stop anywhere.

/// No local file system has smaller blocks.
const BLOCK_BYTES: u64 = 512;

/// File systems of which the above is true: ext2 to ext4, XFS, F2FS
/// (`statfs(2)`, `f_type`).
const LOCAL: [u64; 3] = [0xef53, 0x5846_5342, 0xf2f5_2010];

/// File systems that are nothing but memory: tmpfs, ramfs.
const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// File systems that ask a server for nearly everything, and wait for its answer:
/// FUSE (virtio-fs included), CIFS and SMB, 9p, Ceph, AFS, Coda, Lustre, OCFS2, GFS2.
const SERVED: [u64; 10] = [
    0x6573_5546,
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

/// Another one.
const NFS: u64 = 0x6969;

/// What matters here about a file system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// On a disk of this machine; a read stops within a block at the end only.
    Local,
    /// In memory: nothing waits.
    Memory,
    /// On a server: everything may wait.
    Served,
    /// The same, but data goes through the host's page cache, but for direct I/O.
    Nfs,
    /// Nothing is known.
    Other,
}

impl Kind {
    /// That of a file system whose type is `found` in `statfs(2)`.
    pub fn of(device: u64, found: u64) -> Self {
        if MEMORY.contains(&found) {
            Self::Memory
        } else if SERVED.contains(&found) {
            Self::Served
        } else if found == NFS {
            Self::Nfs
        } else if LOCAL.contains(&found) && has_block_device(device) {
            Self::Local
        } else {
            Self::Other
        }
    }

    /// Whether it is on a server.
    pub fn is_served(self) -> bool {
        matches!(self, Self::Served | Self::Nfs)
    }
}

/// A file system without one may share its number with another one later, when
/// it was unmounted.
fn has_block_device(device: u64) -> bool {
    device >> 32 != 0
}

/// Whether a short read that stopped at this offset has met the end of a file on
/// a local file system.
pub fn stopped_within_block(end: u64) -> bool {
    !end.is_multiple_of(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
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
        for (device, found, expected) in [
            (8 << 32 | 1, 0xef53, Kind::Local),
            (5, 0xef53, Kind::Other),
            (8 << 32 | 1, 0x9123_683e, Kind::Other),
            (5, 0x0102_1994, Kind::Memory),
            (5, 0x6969, Kind::Nfs),
            (5, 0x6573_5546, Kind::Served),
        ] {
            assert_eq!(Kind::of(device, found), expected, "{found:x}");
        }
    }
}
