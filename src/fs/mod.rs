//! What a file system has to offer to be served: the seam between the protocol
//! side (`server`) and the host side (`passthrough`).

use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::io::Errno;

use crate::fuse::abi::{Attr, FileLock, StatfsOut, StatxOut};
use crate::fuse::dirent::DirPacker;
use crate::fuse::name::Name;
use crate::fuse::op::{
    Caller, CopyFileRangeArgs, CreateArgs, FallocateArgs, IoctlArgs, LockArgs, LockOwner,
    MkdirArgs, MknodArgs, OpenArgs, ReadArgs, RenameArgs, SetattrArgs, SetxattrArgs, StatxArgs,
    SymlinkArgs, TmpfileArgs, WriteArgs,
};
use crate::guest::buffers::{Readable, Writable};
use crate::id::{HandleId, NodeId};

/// What an operation gives: its result or the errno that the guest hears.
pub type Result<T> = std::result::Result<T, Errno>;

/// What the thread that serves a request may wait for.
///
/// What has to wait, and so returns [`Failure::MustWait`] to a thread that may not:
///
/// * SYNCFS, FALLOCATE and COPY_FILE_RANGE always, FSYNC and FSYNCDIR unless the file
///   system is in memory (the last column of the table in `fuse::opcode`);
/// * a READ of what is not in the host's page cache, tried with `RWF_NOWAIT`;
/// * a WRITE that is synchronous, direct or larger than 1 MiB, or to a file where one took
///   more than 2 ms a moment ago: the host makes writers wait whose disk does not keep up;
/// * everything but FORGET on a remote file system (FUSE, NFS, CIFS, 9p and the like, by
///   `statfs(2)`), except a READ that it can answer from its cache. The LOOKUP of its
///   mount point is recognised by the number of the mount, which the kernel gives without
///   asking the server;
/// * an OPEN, or a SETATTR of the size, of a file of which a process of the host has a
///   lease, tried with `O_NONBLOCK`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Patience {
    /// Nothing: other requests are behind this one.
    Nothing,
    /// Disks and servers, for as long as it takes.
    Storage,
    /// The same, and the locks of others, which may be for ever.
    Locks,
    /// Like `Storage`, but the lock threads are exhausted: SETLKW fails with `ENOLCK`.
    StorageOnly,
}

/// What a request has to wait for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wait {
    /// A disk of this machine.
    ForDisk,
    /// A server, which may take its time.
    ForServer,
    /// The lock of another, who may keep it.
    ForLock,
}

/// Whether SETLK or SETLKW, which waits until the lock is free.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Locking {
    /// Now or never.
    Try,
    /// SETLKW; the number of the request, by which it may be interrupted.
    Wait(u64),
}

/// Why an operation that may have to wait gives no result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The guest hears this errno.
    Errno(Errno),
    /// It has to wait longer than it may. Nothing has changed; it is to be tried
    /// again where it may wait.
    MustWait(Wait),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// What an operation gives that may have to wait.
pub type Waiting<T> = std::result::Result<T, Failure>;

/// Attributes and for how long the guest may trust them.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// The attributes.
    pub attr: Attr,
    /// For how long they hold.
    pub timeout: Duration,
}

/// A name that was found or made; the guest holds one lookup more of its node.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// Its attributes.
    pub attributes: Attributes,
    /// For how long the name leads there.
    pub timeout: Duration,
}

/// A file or directory that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Its handle.
    pub handle: HandleId,
    /// Bits of [`crate::fuse::flags::open`].
    pub flags: u32,
}

/// How much of the host a guest holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Files and directories that it knows, the root included.
    pub inodes: usize,
    /// Files and directories that it has open.
    pub handles: usize,
    /// Descriptors that it causes to be held.
    pub descriptors: usize,
    /// How many of them it may.
    pub descriptor_limit: usize,
}

/// A file system that is served: all of its operations, by the wing that they belong to.
///
/// Every method may be called from several threads at once. Errors are those of
/// the host's call; beside them `ESTALE` stands for a node that the guest does
/// not hold and `EBADF` for a handle that is not one of the node. A method has the name
/// that the operation has in the protocol (`linux/fuse.h`).
pub trait FileSystem:
    Session
    + Lookup
    + Names
    + Attrs
    + Xattrs
    + Files
    + Data
    + Directories
    + Ioctl
    + Locks
    + Send
    + Sync
    + 'static
{
}

/// The session of a guest, from INIT to DESTROY, and what the server asks about nodes.
pub trait Session {
    /// The features that this file system wants of a guest that offers these
    /// (bits of `fuse::flags::init`).
    fn wanted_features(&self, offered: u64) -> u64;

    /// For how long the guest may trust that a name does not exist, which
    /// `lookup` says with `ENOENT`; zero for not at all.
    fn negative_timeout(&self) -> Duration {
        Duration::ZERO
    }

    /// A session begins with these features; what an earlier one held is dropped.
    ///
    /// # Errors
    /// `EPROTO` where one is missing that the operator insists on: then no session
    /// begins.
    fn start(&self, features: u64) -> Result<()>;

    /// The session is over: every node but the root and every handle is dropped.
    fn stop(&self);

    /// How much of the host the guest holds.
    fn usage(&self) -> Usage {
        Usage::default()
    }

    /// Whether the kernel holds pages of the guest's memory for a request that is
    /// being served, as for direct I/O: it reads or writes them even where they are
    /// mapped no more.
    fn pins_memory(&self) -> bool {
        false
    }

    /// Where a node is, as the daemon sees it, for the log.
    fn path_of(&self, _node: NodeId) -> Option<PathBuf> {
        None
    }

    /// Whether operations on a node are known to take long, because its files are
    /// on a server.
    fn is_slow(&self, node: NodeId) -> bool;

    /// Whether a node's file system is known to have no disk.
    fn is_in_memory(&self, node: NodeId) -> bool;
}

/// Nodes that come and go.
pub trait Lookup {
    /// LOOKUP: the node behind a name; the guest holds one lookup more of it.
    fn lookup(&self, parent: NodeId, name: Name<'_>, patience: Patience) -> Waiting<Entry>;

    /// FORGET: the guest holds `count` lookups fewer. Counts beyond what it holds are
    /// harmless.
    fn forget(&self, node: NodeId, count: u64);
}

/// Names, and what they lead to.
pub trait Names {
    /// MKDIR.
    fn mkdir(&self, who: &Caller, parent: NodeId, args: &MkdirArgs<'_>) -> Result<Entry>;

    /// MKNOD: a file, fifo, socket or device.
    fn mknod(&self, who: &Caller, parent: NodeId, args: &MknodArgs<'_>) -> Result<Entry>;

    /// SYMLINK.
    fn symlink(&self, who: &Caller, parent: NodeId, args: &SymlinkArgs<'_>) -> Result<Entry>;

    /// LINK: another name for a node.
    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// UNLINK.
    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// RMDIR.
    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// RENAME and RENAME2.
    fn rename(&self, parent: NodeId, args: &RenameArgs<'_>) -> Result<()>;

    /// READLINK: the target of a symbolic link.
    fn readlink(&self, node: NodeId) -> Result<Vec<u8>>;
}

/// Attributes.
pub trait Attrs {
    /// GETATTR.
    fn getattr(&self, node: NodeId, handle: Option<HandleId>) -> Result<Attributes>;

    /// SETATTR: each change by the call that a local process would use.
    fn setattr(
        &self,
        who: &Caller,
        node: NodeId,
        args: &SetattrArgs,
        patience: Patience,
    ) -> Waiting<Attributes>;

    /// STATX: of the attributes that are asked for, those that the host has.
    fn statx(&self, node: NodeId, args: &StatxArgs) -> Result<StatxOut>;

    /// ACCESS: whether the caller may do what the bits of `mask` say (`access(2)`).
    fn access(&self, who: &Caller, node: NodeId, mask: u32) -> Result<()>;

    /// STATFS, of the file system that the node is on.
    fn statfs(&self, node: NodeId) -> Result<StatfsOut>;
}

/// Extended attributes.
pub trait Xattrs {
    /// SETXATTR.
    fn setxattr(&self, node: NodeId, args: &SetxattrArgs<'_>) -> Result<()>;

    /// GETXATTR: the value, at most `size` bytes of it.
    fn getxattr(&self, node: NodeId, name: &CStr, size: u32) -> Result<Vec<u8>>;

    /// GETXATTR with a size of 0: how long the value is.
    fn getxattr_len(&self, node: NodeId, name: &CStr) -> Result<u32>;

    /// LISTXATTR: the names, each with a NUL behind it, at most `size` bytes of them.
    fn listxattr(&self, node: NodeId, size: u32) -> Result<Vec<u8>>;

    /// LISTXATTR with a size of 0: how long the list is.
    fn listxattr_len(&self, node: NodeId) -> Result<u32>;

    /// REMOVEXATTR.
    fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()>;
}

/// Files that are opened and closed.
pub trait Files {
    /// OPEN.
    fn open(
        &self,
        who: &Caller,
        node: NodeId,
        args: OpenArgs,
        patience: Patience,
    ) -> Waiting<Opened>;

    /// CREATE: creates a file, or opens the one that is there.
    fn create(
        &self,
        who: &Caller,
        parent: NodeId,
        args: &CreateArgs<'_>,
        patience: Patience,
    ) -> Waiting<(Entry, Opened)>;

    /// TMPFILE: creates a file without a name, which LINK may give it later.
    fn tmpfile(
        &self,
        who: &Caller,
        parent: NodeId,
        args: &TmpfileArgs<'_>,
    ) -> Result<(Entry, Opened)>;

    /// RELEASE: closes a file; a lock of `flock(2)` ends if `unlocks` says so.
    fn release(&self, node: NodeId, handle: HandleId, unlocks: bool) -> Result<()>;

    /// FLUSH: a process closed the file; the record locks of its owner end.
    fn flush(&self, node: NodeId, handle: HandleId, owner: LockOwner) -> Result<()>;
}

/// Data of open files.
pub trait Data {
    /// READ: as much as there is room for in `into`.
    fn read(
        &self,
        node: NodeId,
        args: &ReadArgs,
        into: &mut Writable<'_>,
        patience: Patience,
    ) -> Waiting<()>;

    /// WRITE: all of `from`. Returns the number of bytes written.
    fn write(
        &self,
        node: NodeId,
        args: &WriteArgs,
        from: &mut Readable<'_>,
        patience: Patience,
    ) -> Waiting<u32>;

    /// FSYNC, or with `data_only` as `fdatasync(2)`.
    fn fsync(&self, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;

    /// LSEEK: the guest asks for holes and data only, but any position is harmless.
    fn lseek(&self, node: NodeId, handle: HandleId, offset: u64, whence: u32) -> Result<u64>;

    /// FALLOCATE.
    fn fallocate(&self, who: &Caller, node: NodeId, args: &FallocateArgs) -> Result<()>;

    /// COPY_FILE_RANGE. Returns the number of bytes copied.
    fn copy_file_range(&self, who: &Caller, node: NodeId, args: &CopyFileRangeArgs) -> Result<u32>;

    /// SYNCFS, of the file system that the node is on and those mounted below the share.
    fn syncfs(&self, node: NodeId) -> Result<()>;
}

/// Open directories.
pub trait Directories {
    /// OPENDIR.
    fn opendir(&self, node: NodeId, flags: u32) -> Result<Opened>;

    /// READDIR and READDIRPLUS: packs entries until there is no room for the next one;
    /// looks each up where the reply has attributes.
    fn readdir(&self, node: NodeId, args: &ReadArgs, into: &mut DirPacker<'_>) -> Result<()>;

    /// RELEASEDIR.
    fn releasedir(&self, node: NodeId, handle: HandleId) -> Result<()>;

    /// FSYNCDIR, or with `data_only` as `fdatasync(2)`.
    fn fsyncdir(&self, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;
}

/// Commands to open files.
pub trait Ioctl {
    /// IOCTL. Returns what the command reads, at most as much as there is room for.
    fn ioctl(&self, node: NodeId, args: &IoctlArgs<'_>) -> Result<Vec<u8>>;
}

/// Locks of `fcntl(2)` and `flock(2)`.
pub trait Locks {
    /// GETLK: the first lock that conflicts with the one asked about.
    fn getlk(&self, node: NodeId, args: &LockArgs) -> Result<FileLock>;

    /// SETLK and SETLKW: takes a lock, changes it or gives it back.
    fn setlk(
        &self,
        node: NodeId,
        args: &LockArgs,
        locking: Locking,
        patience: Patience,
    ) -> Waiting<()>;

    /// INTERRUPT: has the request of this number give up waiting for a lock (`EINTR`).
    fn interrupt(&self, request: u64);

    /// Has all requests give up waiting for locks (`EAGAIN`). Returns when they have.
    fn interrupt_all(&self);
}

impl Entry {
    /// The entry as it lies on the wire.
    pub fn to_wire(&self) -> crate::fuse::abi::EntryOut {
        crate::fuse::abi::EntryOut {
            nodeid: self.node.0,
            generation: 0,
            entry_valid: self.timeout.as_secs(),
            entry_valid_nsec: self.timeout.subsec_nanos(),
            attr_valid: self.attributes.timeout.as_secs(),
            attr_valid_nsec: self.attributes.timeout.subsec_nanos(),
            attr: self.attributes.attr,
        }
    }
}

impl Attributes {
    /// The attributes as they lie on the wire.
    pub fn to_wire(&self) -> crate::fuse::abi::AttrOut {
        crate::fuse::abi::AttrOut {
            attr_valid: self.timeout.as_secs(),
            attr_valid_nsec: self.timeout.subsec_nanos(),
            dummy: 0,
            attr: self.attr,
        }
    }
}

impl Opened {
    /// The handle as it lies on the wire.
    pub fn to_wire(&self) -> crate::fuse::abi::OpenOut {
        crate::fuse::abi::OpenOut {
            fh: self.handle.0,
            open_flags: self.flags,
            backing_id: 0,
        }
    }
}

/// The state of a file system, sessions included, as something that can go on
/// in another daemon.
pub trait Migrate: Send + Sync + 'static {
    /// The front end began to log what is written to memory: a save is near.
    /// Returns at once; what takes time is done beside serving.
    fn prepare(&self);

    /// No save is near any more.
    fn cancel(&self);

    /// Collects the state; nothing is served meanwhile. `stop` is set when the
    /// result is of no use any more.
    ///
    /// # Errors
    /// A sentence for the operator. Serving can go on as if nothing had happened.
    fn save(&self, stop: &AtomicBool) -> anyhow::Result<Vec<u8>>;

    /// Restores a state in place of what is there; gives the features that its
    /// session has (bits of `fuse::flags::init`).
    ///
    /// # Errors
    /// A sentence for the operator; there is no session then.
    fn load(&self, state: &[u8], stop: &AtomicBool) -> anyhow::Result<u64>;
}
