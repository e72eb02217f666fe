//! Data of open files: straight between the file and guest memory.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::fs::{self, Failure, Patience, Result, Wait, Waiting};
use crate::fuse::flags::{init, write};
use crate::fuse::op::{Caller, CopyFileRangeArgs, FallocateArgs, ReadArgs, SetId, WriteArgs};
use crate::guest::buffers::{Readable, Writable};
use crate::id::{HandleId, NodeId};
use crate::passthrough::Passthrough;
use crate::passthrough::files::handles::Handle;
use crate::passthrough::inodes::file_systems::{Kind, stopped_within_block};
use crate::sys::vectored::{RWF_APPEND, RWF_DSYNC, RWF_NOWAIT, RWF_SYNC};

/// The most that one COPY_FILE_RANGE copies, so that it does not keep its queue
/// for long; the guest asks again for the rest.
const MAX_COPY_BYTES: u64 = 64 << 20;

/// The most that a thread writes whose queue waits for it. Handing a write to
/// another thread costs about 14 us of processor time; one of 1 MiB into the page
/// cache takes 30 to 100, so only what is larger is worth it.
const MAX_INLINE_WRITE_BYTES: u32 = 1 << 20;

/// Writes of this size and more are timed, to find out where the host makes
/// writers wait because its disk does not keep up.
const TIMED_WRITE_BYTES: u32 = 32 << 10;

/// A write that takes so long was made to wait.
const LONG_WRITE: Duration = Duration::from_millis(2);

/// `O_DSYNC`, which is one of the two bits of `O_SYNC`; rustix's constant is both.
const DSYNC: OFlags = OFlags::from_bits_retain(libc::O_DSYNC.cast_unsigned());

/// A read or write for which the kernel holds pages of the guest's memory.
struct Pinned<'a>(&'a AtomicUsize);

impl<'a> Pinned<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// FSYNC and FSYNCDIR.
///
/// # Errors
/// Those of `fsync(2)`.
pub(in crate::passthrough) fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    if data_only {
        rustix::fs::fdatasync(fd)
    } else {
        rustix::fs::fsync(fd)
    }
}

/// What a file has to be waited for.
fn must_wait(file: &Handle) -> Failure {
    Failure::MustWait(if file.kind().is_served() {
        Wait::ForServer
    } else {
        Wait::ForDisk
    })
}

/// Whether the kernel may hold pages of the guest for as long as the file's server
/// takes, so that a buffer takes their place (`guest::bounce`).
fn goes_by_buffer(file: &Handle) -> bool {
    match file.kind() {
        Kind::Served => true,
        Kind::Nfs => file.is_direct(),
        Kind::Local | Kind::Memory | Kind::Other => false,
    }
}

/// The flags with which a file is read by a thread that may not wait.
fn flags_of_impatient_read(file: &Handle) -> Waiting<i32> {
    if file.kind() == Kind::Memory {
        return Ok(0);
    }
    // A direct read waits for the disk even where it is told not to wait.
    if file.is_synchronous() || (file.refuses_nowait() && file.kind().is_served()) {
        return Err(must_wait(file));
    }
    Ok(if file.refuses_nowait() { 0 } else { RWF_NOWAIT })
}

/// Whether writing keeps a thread for long: because it ends on the disk or on a
/// server, because there is so much to copy, or because it was so a moment ago.
fn write_waits(file: &Handle, args: &WriteArgs) -> bool {
    let sync = (OFlags::DSYNC | OFlags::SYNC).bits();
    file.is_synchronous()
        || args.flags & sync != 0
        || file.kind().is_served()
        || args.size > MAX_INLINE_WRITE_BYTES
        || (args.size >= TIMED_WRITE_BYTES && file.expects_long_write())
}

impl fs::Data for Passthrough {
    /// READ: where nobody may wait, what is in the host's page cache.
    fn read(
        &self,
        node: NodeId,
        args: &ReadArgs,
        into: &mut Writable<'_>,
        patience: Patience,
    ) -> Waiting<()> {
        let file = self.files.handles.file(node, args.handle)?;
        let mut flags = match patience {
            Patience::Nothing => flags_of_impatient_read(&file)?,
            Patience::Storage | Patience::Locks | Patience::StorageOnly => 0,
        };
        let _pins = self.pins_if_direct(&file);
        let by_buffer = goes_by_buffer(&file);
        let mut offset = args.offset;
        // A short answer reads as the end of the file in the guest, so it may
        // not come from anything else: an error behind good data must be seen.
        while !into.is_empty() {
            let goes_on = into.takes_several_calls();
            let filled = if by_buffer {
                into.fill_by_buffer(file.as_fd(), offset, flags)
            } else {
                into.fill_from(file.as_fd(), offset, flags)
            };
            let n = match filled {
                Ok(n) => n,
                Err(Errno::AGAIN) if flags & RWF_NOWAIT != 0 => {
                    return Err(must_wait(&file));
                }
                Err(Errno::OPNOTSUPP) if flags & RWF_NOWAIT != 0 => {
                    file.note_nowait_refused();
                    flags = flags_of_impatient_read(&file)?;
                    continue;
                }
                Err(errno) => return Err(errno.into()),
            };
            offset += n as u64;
            let stopped = file.kind() == Kind::Local && stopped_within_block(offset);
            if n == 0 || (stopped && !goes_on) {
                break;
            }
        }
        Ok(())
    }

    fn write(
        &self,
        node: NodeId,
        args: &WriteArgs,
        from: &mut Readable<'_>,
        patience: Patience,
    ) -> Waiting<u32> {
        let file = self.files.handles.file(node, args.handle)?;
        let begun = (args.size >= TIMED_WRITE_BYTES).then(Instant::now);
        if patience == Patience::Nothing && write_waits(&file, args) {
            return Err(must_wait(&file));
        }
        let from_cache = args.write_flags & write::CACHE != 0;
        let flags = self.write_flags(&file, args)?;
        let set_id = SetId::dropped_if(args.write_flags & write::KILL_SUIDGID != 0);
        let _as_writer = self.drop_privileges_of(file.as_fd(), set_id)?;
        // The guest's page cache writes through any handle that it finds, and the
        // end of a file is seldom the end of a block.
        let buffered = if from_cache && file.is_direct() {
            Some(self.inodes.reopen(file.as_fd(), OFlags::WRONLY)?)
        } else {
            None
        };
        let _pins = self.pins_if_direct(&file);
        let by_buffer = goes_by_buffer(&file);
        let to = buffered.as_ref().map_or_else(|| file.as_fd(), AsFd::as_fd);
        let mut written = 0;
        while !from.is_empty() {
            let at = args.offset + u64::from(written);
            let result = if by_buffer {
                from.write_by_buffer(to, at, flags)
            } else {
                from.write_to(to, at, flags)
            };
            match result {
                Ok(0) if from_cache => return Err(Errno::IO.into()),
                Ok(0) => break,
                Ok(n) => written += n as u32,
                // The process that writes hears how much was written and asks
                // again; the page cache has nobody who would, so it must fail.
                Err(_) if written > 0 && !from_cache => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        if begun.is_some_and(|begun| begun.elapsed() > LONG_WRITE) {
            file.note_long_write();
        }
        Ok(written)
    }

    fn fsync(&self, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        sync(self.files.handles.file(node, handle)?.as_fd(), data_only)
    }

    /// LSEEK: asked for holes and data only, but any position is harmless.
    fn lseek(&self, node: NodeId, handle: HandleId, offset: u64, whence: u32) -> Result<u64> {
        let file = self.files.handles.file(node, handle)?;
        let signed = offset.cast_signed();
        let to = match whence.cast_signed() {
            libc::SEEK_SET => SeekFrom::Start(offset),
            libc::SEEK_CUR => SeekFrom::Current(signed),
            libc::SEEK_END => SeekFrom::End(signed),
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(file.as_fd(), to)
    }

    fn fallocate(&self, who: &Caller, node: NodeId, args: &FallocateArgs) -> Result<()> {
        let file = self.files.handles.file(node, args.handle)?;
        let mode = FallocateFlags::from_bits_retain(args.mode);
        let set_id = self.set_id_without_flag(who);
        let _as_caller = self.drop_privileges_of(file.as_fd(), set_id)?;
        rustix::fs::fallocate(file.as_fd(), mode, args.offset, args.length)
    }

    /// COPY_FILE_RANGE; gives the bytes copied.
    fn copy_file_range(&self, who: &Caller, node: NodeId, args: &CopyFileRangeArgs) -> Result<u32> {
        if args.flags != 0 {
            return Err(Errno::INVAL);
        }
        let from = self.files.handles.file(node, args.handle_in)?;
        let to = self.files.handles.file(args.node_out, args.handle_out)?;
        let (mut offset_in, mut offset_out) = (args.offset_in, args.offset_out);
        let length = args.length.min(MAX_COPY_BYTES) as usize;
        let set_id = self.set_id_without_flag(who);
        let _as_caller = self.drop_privileges_of(to.as_fd(), set_id)?;
        let copied = rustix::fs::copy_file_range(
            from.as_fd(),
            Some(&mut offset_in),
            to.as_fd(),
            Some(&mut offset_out),
            length,
        )?;
        Ok(copied as u32)
    }

    /// SYNCFS: everything of the file system that the node is on; and where the guest
    /// takes the whole share for one file system, of all that it has met.
    ///
    /// # Errors
    /// The first one; all are tried.
    fn syncfs(&self, node: NodeId) -> Result<()> {
        let inode = self.inodes.inode(node)?;
        if !matches!(inode.kind(), FileType::Directory | FileType::RegularFile) {
            return Err(Errno::INVAL);
        }
        let synced = match inode.mount().open_file() {
            Some(file) => rustix::fs::syncfs(file),
            None => rustix::fs::syncfs(self.inodes.open(&inode, OFlags::RDONLY)?),
        };
        if self.has(init::SUBMOUNTS) {
            return synced;
        }
        let others = self.inodes.mounts.all().into_iter();
        let others = others.filter(|mount| !Arc::ptr_eq(mount, inode.mount()));
        others
            .filter_map(|mount| mount.open_file().map(rustix::fs::syncfs))
            .fold(synced, Result::and)
    }
}

impl Passthrough {
    /// Counts a read or write for which the kernel holds pages of the guest's memory
    /// until it is done.
    fn pins_if_direct(&self, file: &Handle) -> Option<Pinned<'_>> {
        (file.is_direct() && !file.kind().is_served()).then(|| Pinned::new(&self.files.direct_io))
    }

    /// How the host is to write: what a program of the guest asked for, as far as the
    /// guest leaves that to us.
    ///
    /// # Errors
    /// `EPERM` for a file that can only be appended to, of what is no append.
    fn write_flags(&self, file: &Handle, args: &WriteArgs) -> Result<i32> {
        let from_cache = args.write_flags & write::CACHE != 0;
        let wanted = OFlags::from_bits_retain(args.flags);
        let appends = wanted.contains(OFlags::APPEND) && !from_cache;
        if file.appends() && !appends {
            return Err(Errno::PERM);
        }
        if from_cache {
            return Ok(0);
        }
        let mut flags = 0;
        // With writeback the guest knows by itself where a file ends that it caches,
        // and may hold what it has not written yet before that.
        if appends && (self.is_uncached(file) || !self.has(init::WRITEBACK_CACHE)) {
            flags |= RWF_APPEND;
        }
        // The guest sends no FSYNC of its own for a file that it does not cache.
        if wanted.contains(OFlags::SYNC) && !file.has(OFlags::SYNC) {
            flags |= RWF_SYNC;
        } else if wanted.contains(DSYNC) && !file.has(DSYNC) {
            flags |= RWF_DSYNC;
        }
        Ok(flags)
    }

    /// Has the host write out what it keeps back of files that another host may see.
    ///
    /// # Errors
    /// The first one; all are tried.
    pub fn flush_to_other_hosts(&self) -> Result<()> {
        let mounts = self.inodes.mounts.all().into_iter();
        let mounts = mounts.filter(|mount| mount.keeps_back());
        let synced = mounts
            .filter_map(|mount| mount.open_file().map(rustix::fs::syncfs))
            .fold(Ok(()), Result::and);
        // Those of a mount of which nothing may be read.
        let files = self.files.handles.all().into_iter();
        files
            .filter(|(_, file)| file.needs_flush())
            .map(|(_, file)| sync(file.as_fd(), false))
            .fold(synced, Result::and)
    }
}
