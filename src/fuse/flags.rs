//! The bit sets of the FUSE protocol, each as a module of constants.
//!
//! Values are those of `include/uapi/linux/fuse.h`.

/// Bits of INIT: `flags` in the low 32 bits, `flags2` in the high ones.
pub mod init {
    /// Several reads of a file may be under way at once.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// Record locks (`fcntl(2)`) are ours.
    pub const POSIX_LOCKS: u64 = 1 << 1;
    /// `O_TRUNC` is left to OPEN and CREATE.
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// Writes of more than 4 KiB.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The umask is left to us: modes come as the program gave them.
    pub const DONT_MASK: u64 = 1 << 6;
    /// Locks of whole files (`flock(2)`) are ours.
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    /// Cached pages are dropped when the size or mtime changed on the host.
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// READDIRPLUS is there.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// The guest may choose READDIR where it wants no attributes.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Direct I/O may be asynchronous.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// The guest gathers writes in its page cache.
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    /// LOOKUP and READDIR of one directory may be under way at once.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// The guest enforces access control lists, which it gets as extended
    /// attributes.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// `max_pages` of the reply is valid.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// The guest may keep the targets of symbolic links.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// OPENDIR may answer `ENOSYS`: the guest then opens no directory, and reads them
    /// with handle 0.
    pub const NO_OPENDIR: u64 = 1 << 24;
    /// Mount points carry [`super::attr::SUBMOUNT`].
    pub const SUBMOUNTS: u64 = 1 << 27;
    /// Set-id bits and capabilities of a file that changes are dropped by us,
    /// where a request says so.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// SETXATTR has flags of its own (`super::setxattr`).
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// `flags2` is valid, and the request is 64 bytes long.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Creating requests carry the security label of what they make.
    pub const SECURITY_CTX: u64 = 1 << 32;
    /// Creating requests carry the supplementary group that matters.
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    /// Files with `DIRECT_IO` may be mapped shared.
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// The guest may mount with its ids mapped: only requests that make
    /// something carry the caller's ids then.
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// Bits of `fuse_attr.flags`.
pub mod attr {
    /// The inode is the root of another mount.
    pub const SUBMOUNT: u32 = 1 << 0;
}

/// Bits of `fuse_getattr_in.getattr_flags`.
pub mod getattr {
    /// `fh` is valid.
    pub const FH: u32 = 1 << 0;
}

/// Bits of `fuse_statx_in` and `fuse_statx_out`: those of `statx(2)`.
pub mod statx {
    /// Whether caches are asked or not (`AT_STATX_SYNC_TYPE`).
    pub const SYNC_TYPE: u32 = 0x6000;
    /// What is in `fuse_attr`, too (`STATX_BASIC_STATS`).
    pub const BASIC_STATS: u32 = 0x7ff;
    /// `btime` (`STATX_BTIME`).
    pub const BTIME: u32 = 0x800;
}

/// Bits of `fuse_setattr_in.valid`.
pub mod setattr {
    /// `mode` is set.
    pub const MODE: u32 = 1 << 0;
    /// `uid` is set.
    pub const UID: u32 = 1 << 1;
    /// `gid` is set.
    pub const GID: u32 = 1 << 2;
    /// `size` is set.
    pub const SIZE: u32 = 1 << 3;
    /// `atime` is set.
    pub const ATIME: u32 = 1 << 4;
    /// `mtime` is set.
    pub const MTIME: u32 = 1 << 5;
    /// `fh` is valid.
    pub const FH: u32 = 1 << 6;
    /// The access time becomes the host's present time.
    pub const ATIME_NOW: u32 = 1 << 7;
    /// The modification time becomes the host's present time.
    pub const MTIME_NOW: u32 = 1 << 8;
    /// The caller may not keep set-id bits: the host drops them.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Bits of `fuse_open_in.open_flags` and `fuse_create_in.open_flags`.
pub mod open_in {
    /// The caller may not keep set-id bits of a file that it cuts.
    pub const KILL_SUIDGID: u32 = 1 << 0;
}

/// Bits of `fuse_open_out.open_flags`.
pub mod open {
    /// The guest's page cache is not used.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// What the guest has cached of the file stays.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// The guest may cache the directory's entries.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// The guest need not tell when a descriptor is closed.
    pub const NOFLUSH: u32 = 1 << 5;
}

/// Bits of `fuse_write_in.write_flags`.
pub mod write {
    /// The guest's page cache writes back; the handle is a guess.
    pub const CACHE: u32 = 1 << 0;
    /// The writer may not keep set-id bits: the host drops them.
    pub const KILL_SUIDGID: u32 = 1 << 2;
}

/// Bits of `fuse_setxattr_in.setxattr_flags`.
pub mod setxattr {
    /// The caller may not keep set-group-id where it sets the access list.
    pub const ACL_KILL_SGID: u32 = 1 << 0;
}

/// Bits of `fuse_lk_in.lk_flags`.
pub mod lock {
    /// `flock(2)` instead of a record lock.
    pub const FLOCK: u32 = 1 << 0;
}

/// Bits of `fuse_release_in.release_flags`.
pub mod release {
    /// The file was locked with `flock(2)`, which ends now.
    pub const FLOCK_UNLOCK: u32 = 1 << 1;
}

/// Bits of `fuse_fsync_in.fsync_flags`.
pub mod fsync {
    /// Only the data, as `fdatasync(2)`.
    pub const DATA_ONLY: u32 = 1 << 0;
}
