//! A decoded request: which operation, with arguments that have been checked.

use std::ffi::CStr;

use super::abi;
use super::extensions::Extensions;
use super::name::Name;
use crate::id::{HandleId, NodeId};

/// Whose request it is, and on which inode.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The file-system uid of the calling process, as the guest numbers it.
    pub uid: u32,
    /// Its file-system gid.
    pub gid: u32,
}

/// The uid in requests that make nothing, once `ALLOW_IDMAP` was agreed on
/// (`FUSE_INVALID_UIDGID`).
const NO_UID: u32 = u32::MAX;

impl Caller {
    /// What becomes of set-id bits of a file that the caller changes, where the
    /// request does not say: root as a rule has the right to keep them.
    pub fn set_id(&self) -> SetId {
        match self.uid {
            0 => SetId::Keep,
            NO_UID => SetId::Unknown,
            _ => SetId::Drop,
        }
    }
}

/// A time that SETATTR sets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetTime {
    /// Stays as it is.
    Omit,
    /// Becomes the host's present time.
    Now,
    /// Becomes this time: seconds and nanoseconds.
    At(i64, u32),
}

/// Whether a file that changes may keep its set-id bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetId {
    /// It may: the caller has the right to, or does not say.
    Keep,
    /// The caller has no right to.
    Drop,
    /// It is not known who the caller is.
    Unknown,
}

impl SetId {
    /// What a flag says that is set when the bits have to go.
    pub fn dropped_if(dropped: bool) -> Self {
        if dropped { Self::Drop } else { Self::Keep }
    }
}

/// What SETATTR changes; `None` stays as it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SetattrArgs {
    /// An open file to act on.
    pub handle: Option<HandleId>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: SetTime,
    /// Modification time.
    pub mtime: SetTime,
    /// What becomes of set-id bits when the length changes; the host itself drops
    /// them when the owner does.
    pub set_id: SetId,
}

impl SetattrArgs {
    /// Whether the request changes nothing that it names.
    pub fn sets_nothing(&self) -> bool {
        (self.mode, self.uid, self.gid, self.size) == (None, None, None, None)
            && (self.atime, self.mtime) == (SetTime::Omit, SetTime::Omit)
    }

    /// Whether this is how a guest that writes back sends the times that it has kept
    /// for a file which it does not have open.
    pub fn writes_back_times(&self) -> bool {
        (self.mode, self.uid, self.gid, self.size) == (None, None, None, None)
            && self.handle.is_none()
            && self.atime == SetTime::Omit
            && matches!(self.mtime, SetTime::At(..))
    }
}

/// Arguments of MKNOD.
#[derive(Clone, Copy, Debug)]
pub struct MknodArgs<'a> {
    /// The new name.
    pub name: Name<'a>,
    /// File type and permission bits.
    pub mode: u32,
    /// The device, in the kernel's encoding (`new_encode_dev`).
    pub rdev: u32,
    /// The caller's umask; applied already unless `DONT_MASK` was agreed on.
    pub umask: u32,
    /// Extensions of the request.
    pub extensions: Extensions<'a>,
}

/// Arguments of MKDIR.
#[derive(Clone, Copy, Debug)]
pub struct MkdirArgs<'a> {
    /// The new name.
    pub name: Name<'a>,
    /// Permission bits.
    pub mode: u32,
    /// As in [`MknodArgs`].
    pub umask: u32,
    /// Extensions of the request.
    pub extensions: Extensions<'a>,
}

/// Arguments of SYMLINK.
#[derive(Clone, Copy, Debug)]
pub struct SymlinkArgs<'a> {
    /// The new name.
    pub name: Name<'a>,
    /// What the link says; any bytes.
    pub target: &'a CStr,
    /// Extensions of the request.
    pub extensions: Extensions<'a>,
}

/// Arguments of RENAME and RENAME2.
#[derive(Clone, Copy, Debug)]
pub struct RenameArgs<'a> {
    /// The old name.
    pub name: Name<'a>,
    /// The directory that gets the new name.
    pub new_parent: NodeId,
    /// The new name.
    pub new_name: Name<'a>,
    /// Flags of `renameat2(2)`.
    pub flags: u32,
}

/// Arguments of OPEN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OpenArgs {
    /// Flags of `open(2)`.
    pub flags: u32,
    /// What becomes of set-id bits when the file is cut.
    pub set_id: SetId,
}

/// Arguments of CREATE.
#[derive(Clone, Copy, Debug)]
pub struct CreateArgs<'a> {
    /// The new name.
    pub name: Name<'a>,
    /// How the file is opened, be it new or not.
    pub open: OpenArgs,
    /// Permission bits.
    pub mode: u32,
    /// As in [`MknodArgs`].
    pub umask: u32,
    /// Extensions of the request.
    pub extensions: Extensions<'a>,
}

/// Arguments of TMPFILE: CREATE without a name.
#[derive(Clone, Copy, Debug)]
pub struct TmpfileArgs<'a> {
    /// Flags of `open(2)`.
    pub flags: u32,
    /// Permission bits.
    pub mode: u32,
    /// As in [`MknodArgs`].
    pub umask: u32,
    /// Extensions of the request.
    pub extensions: Extensions<'a>,
}

/// Arguments of IOCTL.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IoctlArgs<'a> {
    /// The open file or directory.
    pub handle: HandleId,
    /// The number of the command.
    pub command: u32,
    /// The argument, where the command reads it.
    pub input: &'a [u8],
    /// How long the argument may be that the command gives back.
    pub out_size: u32,
}

/// Arguments of STATX.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StatxArgs {
    /// An open file to ask.
    pub handle: Option<HandleId>,
    /// Whether the host's caches will do: `AT_STATX_*` of `statx(2)`.
    pub sync: u32,
    /// Which attributes: `STATX_*` of `statx(2)`.
    pub mask: u32,
}

/// Arguments of READ, READDIR and READDIRPLUS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReadArgs {
    /// The open file or directory stream.
    pub handle: HandleId,
    /// Where to begin: at most `i64::MAX` for READ, any cookie for READDIR.
    pub offset: u64,
    /// How many bytes of reply, its header not counted.
    pub size: u32,
}

/// Arguments of WRITE; the data itself is still in guest memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WriteArgs {
    /// The open file.
    pub handle: HandleId,
    /// Where to begin, at most `i64::MAX`.
    pub offset: u64,
    /// How many bytes.
    pub size: u32,
    /// Flags of [`super::flags::write`].
    pub write_flags: u32,
    /// The flags of `open(2)` that the guest's file has now.
    pub flags: u32,
}

/// Arguments of SETXATTR.
#[derive(Clone, Copy, Debug)]
pub struct SetxattrArgs<'a> {
    /// The attribute; any bytes.
    pub name: &'a CStr,
    /// Its value.
    pub value: &'a [u8],
    /// Flags of `setxattr(2)`.
    pub flags: u32,
    /// What becomes of set-group-id when the access list is set.
    pub set_id: SetId,
}

/// Who holds a lock: a process of the guest, or one of its open files.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LockOwner(pub u64);

/// How a range is locked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LockKind {
    /// Others may have it, too.
    Shared,
    /// Nobody else may have it.
    Exclusive,
}

/// A range of bytes, both ends included: `start <= end <= i64::MAX`. The largest
/// end means all bytes that there are and will be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LockRange {
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
}

/// Arguments of GETLK, SETLK and SETLKW.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LockArgs {
    /// The open file.
    pub handle: HandleId,
    /// Who asks.
    pub owner: LockOwner,
    /// Which bytes.
    pub range: LockRange,
    /// How; `None` to unlock.
    pub kind: Option<LockKind>,
    /// The process that asks, as the guest numbers it.
    pub pid: u32,
    /// Whether it is `flock(2)` that asks, for the whole file.
    pub is_flock: bool,
}

/// Arguments of FALLOCATE; offset and length are at most `i64::MAX`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FallocateArgs {
    /// The open file.
    pub handle: HandleId,
    /// Where to begin.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Mode of `fallocate(2)`.
    pub mode: u32,
}

/// Arguments of COPY_FILE_RANGE; offsets are at most `i64::MAX`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CopyFileRangeArgs {
    /// The open file to read.
    pub handle_in: HandleId,
    /// Where to begin reading.
    pub offset_in: u64,
    /// The inode to write.
    pub node_out: NodeId,
    /// The open file to write.
    pub handle_out: HandleId,
    /// Where to begin writing.
    pub offset_out: u64,
    /// How many bytes.
    pub length: u64,
    /// Flags of `copy_file_range(2)`: none exists.
    pub flags: u64,
}

/// What the guest offers at INIT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InitArgs {
    /// Major version of the guest.
    pub major: u32,
    /// Minor version of the guest.
    pub minor: u32,
    /// The read-ahead that the guest wants, in bytes.
    pub max_readahead: u32,
    /// Bits of [`super::flags::init`].
    pub flags: u64,
}

/// A decoded request.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Op<'a> {
    Lookup {
        name: Name<'a>,
    },
    Forget {
        count: u64,
    },
    /// `count` times [`abi::ForgetOne`] are still in guest memory.
    BatchForget {
        count: u32,
    },
    Getattr {
        handle: Option<HandleId>,
    },
    Setattr(SetattrArgs),
    Readlink,
    Symlink(SymlinkArgs<'a>),
    Mknod(MknodArgs<'a>),
    Mkdir(MkdirArgs<'a>),
    Unlink {
        name: Name<'a>,
    },
    Rmdir {
        name: Name<'a>,
    },
    Rename(RenameArgs<'a>),
    Link {
        node: NodeId,
        name: Name<'a>,
    },
    Open(OpenArgs),
    Read(ReadArgs),
    Write(WriteArgs),
    Statfs,
    Release {
        handle: HandleId,
        /// Whether a lock of `flock(2)` ends with it.
        unlocks: bool,
    },
    Fsync {
        handle: HandleId,
        data_only: bool,
    },
    Setxattr(SetxattrArgs<'a>),
    Getxattr {
        name: &'a CStr,
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a CStr,
    },
    Flush {
        handle: HandleId,
        /// Whose record locks end with it.
        owner: LockOwner,
    },
    Getlk(LockArgs),
    Setlk(LockArgs),
    Setlkw(LockArgs),
    Init(InitArgs),
    Opendir {
        flags: u32,
    },
    Readdir(ReadArgs),
    Readdirplus(ReadArgs),
    Releasedir {
        handle: HandleId,
    },
    Fsyncdir {
        handle: HandleId,
        data_only: bool,
    },
    Access {
        mask: u32,
    },
    Create(CreateArgs<'a>),
    Tmpfile(TmpfileArgs<'a>),
    Ioctl(IoctlArgs<'a>),
    Statx(StatxArgs),
    Interrupt {
        unique: u64,
    },
    Destroy,
    Fallocate(FallocateArgs),
    Lseek {
        handle: HandleId,
        offset: u64,
        whence: u32,
    },
    CopyFileRange(CopyFileRangeArgs),
    Syncfs,
}

impl Caller {
    /// The caller that a request header names.
    pub fn of(header: &abi::InHeader) -> Self {
        Self {
            uid: header.uid,
            gid: header.gid,
        }
    }
}
