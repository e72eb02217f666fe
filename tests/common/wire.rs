//! The FUSE wire format, written down from `include/uapi/linux/fuse.h` a
//! second time: little-endian encoders and decoders, no structs in memory.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;

pub const ROOT: u64 = 1;

pub const IN_HEADER: usize = 40;
pub const OUT_HEADER: usize = 16;

/// Operation numbers.
#[allow(missing_docs)]
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// INIT flags; those above bit 31 travel in `flags2`.
#[allow(missing_docs)]
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const HANDLE_KILLPRIV: u64 = 1 << 19;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const ABORT_ERROR: u64 = 1 << 21;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const MAP_ALIGNMENT: u64 = 1 << 26;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const SECURITY_CTX: u64 = 1 << 32;
    pub const HAS_INODE_DAX: u64 = 1 << 33;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;

    /// What a Linux 6.x guest offers over virtio-fs.
    pub const LINUX: u64 = ASYNC_READ
        | POSIX_LOCKS
        | ATOMIC_O_TRUNC
        | EXPORT_SUPPORT
        | BIG_WRITES
        | DONT_MASK
        | FLOCK_LOCKS
        | HAS_IOCTL_DIR
        | AUTO_INVAL_DATA
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | ASYNC_DIO
        | WRITEBACK_CACHE
        | NO_OPEN_SUPPORT
        | PARALLEL_DIROPS
        | HANDLE_KILLPRIV
        | POSIX_ACL
        | ABORT_ERROR
        | MAX_PAGES
        | CACHE_SYMLINKS
        | NO_OPENDIR_SUPPORT
        | EXPLICIT_INVAL_DATA
        | SUBMOUNTS
        | HANDLE_KILLPRIV_V2
        | SETXATTR_EXT
        | INIT_EXT
        | SECURITY_CTX
        | CREATE_SUPP_GROUP
        | HAS_EXPIRE_ONLY
        | DIRECT_IO_ALLOW_MMAP;
}

// SETATTR: which fields are meant.
pub const FATTR_MODE: u32 = 1 << 0;
pub const FATTR_UID: u32 = 1 << 1;
pub const FATTR_GID: u32 = 1 << 2;
pub const FATTR_SIZE: u32 = 1 << 3;
pub const FATTR_ATIME: u32 = 1 << 4;
pub const FATTR_MTIME: u32 = 1 << 5;
pub const FATTR_FH: u32 = 1 << 6;
pub const FATTR_ATIME_NOW: u32 = 1 << 7;
pub const FATTR_MTIME_NOW: u32 = 1 << 8;
pub const FATTR_KILL_SUIDGID: u32 = 1 << 11;

// Requests to SETXATTR with SETXATTR_EXT.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;

// Requests to OPEN and CREATE.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;

// Replies to OPEN.
pub const FOPEN_DIRECT_IO: u32 = 1 << 0;
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
pub const FOPEN_CACHE_DIR: u32 = 1 << 3;
pub const FOPEN_NOFLUSH: u32 = 1 << 5;

pub const GETATTR_FH: u32 = 1 << 0;
pub const WRITE_CACHE: u32 = 1 << 0;
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
pub const RELEASE_FLUSH: u32 = 1 << 0;

pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
pub const LK_FLOCK: u32 = 1 << 0;

/// Extension type of supplementary groups.
pub const EXT_GROUPS: u32 = 32;

/// Builds the body of a request, field after field.
#[derive(Clone, Debug, Default)]
pub struct Encoder(pub Vec<u8>);

impl Encoder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// A name with its NUL.
    pub fn name(self, name: impl AsRef<OsStr>) -> Self {
        self.bytes(name.as_ref().as_bytes()).bytes(&[0])
    }
}

/// Takes a reply apart, field after field.
#[derive(Debug)]
pub struct Decoder<'a>(pub &'a [u8]);

impl<'a> Decoder<'a> {
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes(2).try_into().unwrap())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap())
    }
}

/// The fixed part of every request.
#[derive(Clone, Copy, Debug, Default)]
pub struct InHeader {
    pub len: u32,
    pub opcode: u32,
    pub unique: u64,
    pub nodeid: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    /// In units of 8 bytes.
    pub total_extlen: u16,
}

impl InHeader {
    pub fn encode(&self) -> Vec<u8> {
        let encoder = Encoder::new()
            .u32(self.len)
            .u32(self.opcode)
            .u64(self.unique);
        let encoder = encoder
            .u64(self.nodeid)
            .u32(self.uid)
            .u32(self.gid)
            .u32(self.pid);
        encoder.u16(self.total_extlen).u16(0).0
    }
}

/// The fixed part of every reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutHeader {
    pub len: u32,
    pub error: i32,
    pub unique: u64,
}

impl OutHeader {
    pub fn decode(bytes: &[u8]) -> Self {
        let mut decoder = Decoder(bytes);
        Self {
            len: decoder.u32(),
            error: decoder.u32().cast_signed(),
            unique: decoder.u64(),
        }
    }
}

/// `struct fuse_attr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: u64,
    pub mtime: u64,
    pub ctime: u64,
    pub atimensec: u32,
    pub mtimensec: u32,
    pub ctimensec: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
    pub flags: u32,
}

impl Attr {
    fn decode(d: &mut Decoder<'_>) -> Self {
        Self {
            ino: d.u64(),
            size: d.u64(),
            blocks: d.u64(),
            atime: d.u64(),
            mtime: d.u64(),
            ctime: d.u64(),
            atimensec: d.u32(),
            mtimensec: d.u32(),
            ctimensec: d.u32(),
            mode: d.u32(),
            nlink: d.u32(),
            uid: d.u32(),
            gid: d.u32(),
            rdev: d.u32(),
            blksize: d.u32(),
            flags: d.u32(),
        }
    }

    /// Type bits of the mode.
    pub fn kind(&self) -> u32 {
        self.mode & 0o170_000
    }

    /// Permission bits of the mode, set-id and sticky included.
    pub fn perm(&self) -> u32 {
        self.mode & 0o7777
    }
}

/// `struct fuse_attr_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttrOut {
    pub valid: u64,
    pub valid_nsec: u32,
    pub attr: Attr,
}

impl AttrOut {
    pub fn decode(bytes: &[u8]) -> Self {
        let mut d = Decoder(bytes);
        let (valid, valid_nsec) = (d.u64(), d.u32());
        assert_eq!(d.u32(), 0, "padding of the reply");
        Self {
            valid,
            valid_nsec,
            attr: Attr::decode(&mut d),
        }
    }
}

/// `struct fuse_entry_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub nodeid: u64,
    pub generation: u64,
    pub entry_valid: u64,
    pub attr_valid: u64,
    pub entry_valid_nsec: u32,
    pub attr_valid_nsec: u32,
    pub attr: Attr,
}

pub const ENTRY_OUT: usize = 128;

impl Entry {
    pub fn decode(bytes: &[u8]) -> Self {
        let mut d = Decoder(bytes);
        Self {
            nodeid: d.u64(),
            generation: d.u64(),
            entry_valid: d.u64(),
            attr_valid: d.u64(),
            entry_valid_nsec: d.u32(),
            attr_valid_nsec: d.u32(),
            attr: Attr::decode(&mut d),
        }
    }
}

/// `struct fuse_open_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOut {
    pub fh: u64,
    pub flags: u32,
}

impl OpenOut {
    pub fn decode(bytes: &[u8]) -> Self {
        let mut d = Decoder(bytes);
        let out = Self {
            fh: d.u64(),
            flags: d.u32(),
        };
        assert_eq!(d.u32(), 0, "padding of the reply");
        out
    }
}

/// `struct fuse_kstatfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

impl Statfs {
    pub fn decode(bytes: &[u8]) -> Self {
        let mut d = Decoder(bytes);
        let out = Self {
            blocks: d.u64(),
            bfree: d.u64(),
            bavail: d.u64(),
            files: d.u64(),
            ffree: d.u64(),
            bsize: d.u32(),
            namelen: d.u32(),
            frsize: d.u32(),
        };
        assert!(d.0.iter().all(|&byte| byte == 0), "spare fields of STATFS");
        out
    }
}

/// `struct fuse_init_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitOut {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    /// Both words.
    pub flags: u64,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write: u32,
    pub time_gran: u32,
    pub max_pages: u16,
    pub map_alignment: u16,
}

impl InitOut {
    pub fn decode(bytes: &[u8]) -> Self {
        let mut padded = bytes.to_vec();
        padded.resize(64, 0);
        let mut d = Decoder(&padded);
        let (major, minor, max_readahead, flags) = (d.u32(), d.u32(), d.u32(), d.u32());
        let out = Self {
            major,
            minor,
            max_readahead,
            flags: flags.into(),
            max_background: d.u16(),
            congestion_threshold: d.u16(),
            max_write: d.u32(),
            time_gran: d.u32(),
            max_pages: d.u16(),
            map_alignment: d.u16(),
        };
        let flags2 = u64::from(d.u32());
        assert!(
            d.0[8..].iter().all(|&byte| byte == 0),
            "unused fields of INIT"
        );
        Self {
            flags: out.flags | flags2 << 32,
            ..out
        }
    }

    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag == flag
    }
}

/// One entry of READDIR, or with attributes, of READDIRPLUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    pub ino: u64,
    pub off: u64,
    /// `DT_...`.
    pub kind: u32,
    pub name: Vec<u8>,
    pub entry: Option<Entry>,
}

impl Dirent {
    pub fn name(&self) -> &str {
        std::str::from_utf8(&self.name).unwrap()
    }
}

/// All entries of a READDIR (or READDIRPLUS) reply. Padding must be zero.
pub fn dirents(mut bytes: &[u8], plus: bool) -> Vec<Dirent> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let mut d = Decoder(bytes);
        let entry = plus.then(|| Entry::decode(d.bytes(ENTRY_OUT)));
        let (ino, off, namelen, kind) = (d.u64(), d.u64(), d.u32() as usize, d.u32());
        assert!((1..=1024).contains(&namelen), "name of {namelen} bytes");
        let name = d.bytes(namelen).to_vec();
        let padding = d.bytes(namelen.next_multiple_of(8) - namelen);
        assert!(
            padding.iter().all(|&byte| byte == 0),
            "padding after a name"
        );
        bytes = d.0;
        entries.push(Dirent {
            ino,
            off,
            kind,
            name,
            entry,
        });
    }
    entries
}

/// The names in a LISTXATTR reply.
pub fn xattr_names(mut bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while !bytes.is_empty() {
        let name = CStr::from_bytes_until_nul(bytes).unwrap();
        bytes = &bytes[name.count_bytes() + 1..];
        names.push(name.to_str().unwrap().to_owned());
    }
    names
}
