//! Opening and creating files, and what the guest may cache of them.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::config::CachePolicy;
use crate::fs::{
    self, Attrs as _, Entry, Failure, Files as _, Lookup as _, Opened, Patience, Result, Wait,
    Waiting,
};
use crate::fuse::flags::{self, init};
use crate::fuse::op::{Caller, CreateArgs, LockOwner, OpenArgs, TmpfileArgs};
use crate::id::{HandleId, NodeId};
use crate::passthrough::Passthrough;
use crate::passthrough::files::handles::Handle;
use crate::passthrough::inodes::fd_budget::Place;
use crate::passthrough::inodes::identity::{Found, identify, identify_name};
use crate::passthrough::inodes::inode::Node;

/// The flags of the guest's `open(2)` that reach the host; `O_APPEND` does not:
/// each WRITE says whether it appends.
const PASSED_ON: OFlags = OFlags::ACCMODE
    .union(OFlags::TRUNC)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC)
    .union(OFlags::DIRECT)
    .union(OFlags::NOATIME)
    .union(OFlags::LARGEFILE);

/// What the guest may cache of an open file and of an open directory.
pub(in crate::passthrough) fn cache_flags(policy: CachePolicy) -> (u32, u32) {
    use flags::open::{CACHE_DIR, DIRECT_IO, KEEP_CACHE};
    match policy {
        CachePolicy::Never => (DIRECT_IO, 0),
        CachePolicy::Metadata => (DIRECT_IO, KEEP_CACHE | CACHE_DIR),
        CachePolicy::Auto => (0, 0),
        CachePolicy::Always => (KEEP_CACHE, KEEP_CACHE | CACHE_DIR),
    }
}

impl fs::Files for Passthrough {
    /// OPEN: where nobody may wait, if no process of the host has to give up a lease
    /// first (`fcntl(2)`, F_SETLEASE).
    fn open(
        &self,
        who: &Caller,
        node: NodeId,
        args: OpenArgs,
        patience: Patience,
    ) -> Waiting<Opened> {
        let inode = self.inodes.inode(node)?;
        // Only a regular file is opened by content: a device, fifo or socket of
        // the guest's making must not become one of the host's.
        match inode.kind() {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            FileType::Symlink => return Err(Errno::LOOP.into()),
            _ => return Err(Errno::PERM.into()),
        }
        let place = self.inodes.place()?;
        let flags = self.host_flags(args.flags);
        let append = OFlags::from_bits_retain(args.flags).contains(OFlags::APPEND);
        let write_only = OFlags::from_bits_retain(args.flags) & OFlags::ACCMODE == OFlags::WRONLY;
        let open = |open: &dyn Fn(OFlags) -> Result<OwnedFd>| {
            let with = |flags| Ok((open(flags | unless_it_may_wait(patience))?, flags));
            match with(flags) {
                // A file to which can only be appended (`chattr +a`) opens no other way.
                Err(Errno::PERM) if append => with(flags | OFlags::APPEND),
                // One that this user may write but not read is not read, then.
                Err(Errno::ACCESS) if write_only => {
                    with((flags - OFlags::ACCMODE) | OFlags::WRONLY)
                }
                opened => opened,
            }
        };
        let opened = if flags.contains(OFlags::TRUNC) {
            let node = self.inodes.node(node)?;
            let _as_opener =
                self.drop_privileges_of(node.as_fd(), self.set_id_of_truncation(who, args))?;
            open(&|flags| self.inodes.reopen(node.as_fd(), flags))
        } else {
            open(&|flags| self.inodes.open(&inode, flags))
        };
        let (file, flags) = opened.map_err(|errno| must_wait_for_lease(errno, patience))?;
        let kind = inode.mount().kind();
        Ok(self.opened_file(Handle::file(node, place.hold(file), kind, flags)))
    }

    /// CREATE: makes the file as the guest's user, or opens the one that is
    /// there.
    fn create(
        &self,
        who: &Caller,
        parent: NodeId,
        args: &CreateArgs<'_>,
        patience: Patience,
    ) -> Waiting<(Entry, Opened)> {
        let parent = self.inodes.node(parent)?;
        let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = (self.host_flags(args.open.flags) - OFlags::TRUNC) | exclusive;
        let mode = Mode::from_raw_mode(args.mode & 0o7777);
        let place = self.inodes.place()?;
        let create = |name: &CStr, flags| {
            let _as_guest = self.users.act_as(who, &args.extensions)?;
            let _masked = self.masked_by(args.umask)?;
            rustix::fs::openat(&parent, name, flags, mode)
        };
        let name = args.name.as_c_str();
        let created = match self.label_of(&args.extensions)? {
            None => create(name, flags),
            Some(label) => self.make_labelled_file(&parent, name, &label, flags, create),
        };
        match created {
            Ok(file) => Ok(self.enter_created(&parent, args, (file, flags), place)?),
            Err(Errno::EXIST) if args.open.flags & OFlags::EXCL.bits() == 0 => {
                drop(place);
                self.open_existing(who, &parent, args, patience)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// TMPFILE: makes a file without a name as the guest's user.
    fn tmpfile(
        &self,
        who: &Caller,
        parent: NodeId,
        args: &TmpfileArgs<'_>,
    ) -> Result<(Entry, Opened)> {
        let parent = self.inodes.node(parent)?;
        // With O_EXCL it never gets a name.
        let kept = OFlags::from_bits_retain(args.flags) & OFlags::EXCL;
        let unnamed = OFlags::TMPFILE | OFlags::CLOEXEC | kept;
        let flags = (self.host_flags(args.flags) - OFlags::TRUNC) | unnamed;
        let mode = Mode::from_raw_mode(args.mode & 0o7777);
        let place = self.inodes.place()?;
        let file = {
            let _as_guest = self.users.act_as(who, &args.extensions)?;
            let _masked = self.masked_by(args.umask)?;
            rustix::fs::openat(&parent, c".", flags, mode)?
        };
        if let Some(label) = self.label_of(&args.extensions)? {
            self.set_label(file.as_fd(), &label)?;
        }
        let found = identify(file.as_fd())?;
        let path = || self.inodes.reopen(file.as_fd(), OFlags::PATH);
        let node = self
            .inodes
            .enter_open_file(&parent, None, (file.as_fd(), &found), path)?;
        Ok(self.enter(&parent, (node, &found), (file, flags), place))
    }

    fn release(&self, node: NodeId, handle: HandleId, unlocks: bool) -> Result<()> {
        self.files.locks.end_handle(node, handle);
        if unlocks {
            // A request that waits by this handle would keep the file open.
            let file = self.files.handles.file(node, handle)?;
            rustix::fs::flock(file.as_fd(), FlockOperation::Unlock)?;
        }
        self.files.handles.remove(node, handle)
    }

    /// Closing a copy makes the host report what it has kept back.
    fn flush(&self, node: NodeId, handle: HandleId, owner: LockOwner) -> Result<()> {
        let flushed =
            self.files.handles.file(node, handle).and_then(|file| {
                crate::sys::close(rustix::io::fcntl_dupfd_cloexec(file.as_fd(), 0)?)
            });
        self.files.locks.end_owner(node, owner);
        flushed
    }
}

impl Passthrough {
    /// The flags with which the host opens a file for the guest.
    fn host_flags(&self, guest: u32) -> OFlags {
        let mut flags = OFlags::from_bits_retain(guest) & PASSED_ON;
        // The guest's page cache reads what it writes a part of, and knows by
        // itself where the end is.
        if self.has(init::WRITEBACK_CACHE) && flags & OFlags::ACCMODE == OFlags::WRONLY {
            flags = (flags - OFlags::ACCMODE) | OFlags::RDWR;
        }
        if !self.config.allow_direct_io {
            flags -= OFlags::DIRECT;
        }
        if !self.config.preserve_noatime {
            flags -= OFlags::NOATIME;
        }
        flags
    }

    /// Whether the guest reads and writes the file past its page cache, so that each
    /// WRITE is one of a program's. The page cache writes whole pages at offsets of
    /// its own, which a file that is only appended to cannot take, and with writeback
    /// reads what it writes a part of.
    pub(in crate::passthrough) fn is_uncached(&self, handle: &Handle) -> bool {
        cache_flags(self.config.cache).0 & flags::open::DIRECT_IO != 0
            || handle.appends()
            || (handle.is_write_only() && self.has(init::WRITEBACK_CACHE))
    }

    fn opened_file(&self, handle: Handle) -> Opened {
        let mut flags = if self.is_uncached(&handle) {
            flags::open::DIRECT_IO
        } else {
            cache_flags(self.config.cache).0
        };
        // FLUSH is also what ends the record locks of a process that closes.
        if !handle.needs_flush() && !self.has(init::POSIX_LOCKS) {
            flags |= flags::open::NOFLUSH;
        }
        Opened {
            handle: self.files.handles.insert(handle),
            flags,
        }
    }

    /// Makes a node and a handle of a file that was just created.
    fn enter_created(
        &self,
        parent: &Node,
        args: &CreateArgs<'_>,
        (file, flags): (OwnedFd, OFlags),
        place: Place,
    ) -> Result<(Entry, Opened)> {
        let name = args.name.as_c_str();
        let entered = identify(file.as_fd()).and_then(|found| {
            let made = (file.as_fd(), &found);
            let path = || self.path_of_created(parent, name, &args.extensions, made);
            let node = self
                .inodes
                .enter_open_file(parent, Some(name), made, path)?;
            Ok((found, node))
        });
        let (found, node) = match entered {
            Ok(entered) => entered,
            Err(errno) => {
                remove_created(parent, name, file.as_fd());
                return Err(errno);
            }
        };
        self.tracking
            .tell(|tracker| tracker.found(node, parent.id(), name));
        Ok(self.enter(parent, (node, &found), (file, flags), place))
    }

    /// What the guest hears of a node and its file, which is open.
    fn enter(
        &self,
        parent: &Node,
        (node, found): (NodeId, &Found),
        (file, flags): (OwnedFd, OFlags),
        place: Place,
    ) -> (Entry, Opened) {
        // It is on the mount of its directory.
        let kind = parent.mount().kind();
        let opened = self.opened_file(Handle::file(node, place.hold(file), kind, flags));
        (self.entry(node, found), opened)
    }

    /// Opens a file that another was quicker to create.
    fn open_existing(
        &self,
        who: &Caller,
        parent: &Node,
        args: &CreateArgs<'_>,
        patience: Patience,
    ) -> Waiting<(Entry, Opened)> {
        let entry = self.look_up_beneath(parent, args.name.as_c_str())?;
        match self.open(who, entry.node, args.open, patience) {
            Ok(opened) => {
                // Opening may have cut it.
                let attributes = self.getattr(entry.node, None).unwrap_or(entry.attributes);
                Ok((
                    Entry {
                        attributes,
                        ..entry
                    },
                    opened,
                ))
            }
            Err(failure) => {
                // The guest never hears of the lookup.
                self.forget(entry.node, 1);
                Err(failure)
            }
        }
    }
}

/// The flag with which an open file is not waited for that others have a lease of.
pub(in crate::passthrough) fn unless_it_may_wait(patience: Patience) -> OFlags {
    match patience {
        Patience::Nothing => OFlags::NONBLOCK,
        Patience::Storage | Patience::Locks | Patience::StorageOnly => OFlags::empty(),
    }
}

/// What to make of an error of opening with [`unless_it_may_wait`].
pub(in crate::passthrough) fn must_wait_for_lease(errno: Errno, patience: Patience) -> Failure {
    match (errno, patience) {
        (Errno::AGAIN, Patience::Nothing) => Failure::MustWait(Wait::ForDisk),
        _ => errno.into(),
    }
}

/// Leaves nothing behind of a file that the guest never hears of. What somebody
/// else has put in its place stays.
fn remove_created(parent: &Node, name: &CStr, file: BorrowedFd<'_>) {
    let is_it = || -> Result<bool> {
        let (named, made) = (identify_name(parent, name)?, identify(file)?);
        Ok(named.identity == made.identity)
    };
    if is_it() == Ok(true)
        && let Err(errno) = rustix::fs::unlinkat(parent, name, AtFlags::empty())
    {
        log::debug!("a file that could not be entered was not removed: {errno}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_cache_policies() {
        // Direct I/O is bit 0, keep the cache bit 1, cache the directory bit 3.
        assert_eq!(cache_flags(CachePolicy::Never), (1, 0));
        assert_eq!(cache_flags(CachePolicy::Metadata), (1, 2 | 8));
        assert_eq!(cache_flags(CachePolicy::Auto), (0, 0));
        assert_eq!(cache_flags(CachePolicy::Always), (2, 2 | 8));
    }
}
