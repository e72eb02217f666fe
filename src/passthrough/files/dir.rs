//! Directory streams.
//!
//! The cookie of an entry is the host's own, so it means the same after a
//! restart of the stream and whatever others create and remove meanwhile. The
//! host's entries are fetched in large pieces; what a reply has no room for
//! waits in the stream for the next one, unless the guest seeks.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use crate::fs::{self, Opened, Result};
use crate::fuse::abi::{Attr, EntryOut};
use crate::fuse::dirent::{DirEntry, DirPacker};
use crate::fuse::flags::init;
use crate::fuse::op::ReadArgs;
use crate::id::{HandleId, NodeId};
use crate::passthrough::Passthrough;
use crate::passthrough::files::data::sync;
use crate::passthrough::files::handles::Handle;
use crate::passthrough::files::open::cache_flags;
use crate::passthrough::inodes::inode::Node;
use crate::passthrough::inodes::look_up::Interest;
use crate::sys::sync::lock;

/// Bytes that are fetched from the host at most in one call.
const FETCH_BYTES: usize = 32 << 10;

/// Bytes that are fetched at least, so that the longest name fits.
const MIN_FETCH_BYTES: usize = 2 << 10;

/// Bytes that all streams together may keep fetched ahead; beyond that a stream
/// goes back and fetches again, so that a guest cannot fill memory by leaving
/// directories open half read.
const MAX_AHEAD_BYTES: usize = 16 << 20;

/// Bytes that all streams together keep fetched ahead.
static AHEAD_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The position of an open directory and entries that were fetched ahead.
#[derive(Debug)]
pub(in crate::passthrough) struct DirStream {
    /// The cookie at which the guest is expected to go on; `None` where the
    /// host's position is not known.
    expected: Option<u64>,
    /// Entries from there on: number, cookie, length of the name, type, name.
    ahead: Vec<u8>,
    /// How much of `ahead` was given out.
    given: usize,
    /// What this stream has added to `AHEAD_BYTES`.
    counted: usize,
}

impl DirStream {
    /// The stream of a directory that was just opened.
    pub(in crate::passthrough) fn new() -> Self {
        Self {
            expected: Some(0),
            ahead: Vec::new(),
            given: 0,
            counted: 0,
        }
    }
}

impl Drop for DirStream {
    fn drop(&mut self) {
        AHEAD_BYTES.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// A reply with room for a name of this many bytes is worth another call.
const WORTH_A_FETCH: usize = 64;

/// Bytes in front of a name in `DirStream::ahead`.
const AHEAD_FIXED: usize = 19;

impl DirStream {
    /// The next entry that was fetched ahead, and the bytes that it takes.
    fn peek(&self) -> Option<(DirEntry<'_>, &std::ffi::CStr, usize)> {
        let (fixed, rest) = self
            .ahead
            .get(self.given..)?
            .split_at_checked(AHEAD_FIXED)?;
        let (ino, fixed) = fixed.split_first_chunk::<8>()?;
        let (next, fixed) = fixed.split_first_chunk::<8>()?;
        let (name_len, fixed) = fixed.split_first_chunk::<2>()?;
        let [kind] = fixed else { return None };
        let name_len = usize::from(u16::from_ne_bytes(*name_len));
        let name = std::ffi::CStr::from_bytes_with_nul(rest.get(..=name_len)?).ok()?;
        let entry = DirEntry {
            ino: u64::from_ne_bytes(*ino),
            next: u64::from_ne_bytes(*next),
            kind: *kind,
            name: name.to_bytes(),
        };
        Some((entry, name, AHEAD_FIXED + name_len + 1))
    }

    /// Goes to a cookie: nowhere, where the guest reads on.
    fn seek(&mut self, fd: BorrowedFd<'_>, offset: u64) -> Result<()> {
        if self.expected != Some(offset) {
            // A seek that the host refuses leaves the stream as it is.
            rustix::fs::seek(fd, SeekFrom::Start(offset))?;
            self.forget_ahead();
            self.expected = Some(offset);
        }
        Ok(())
    }

    fn forget_ahead(&mut self) {
        self.ahead = Vec::new();
        self.given = 0;
    }

    /// Fetches entries; gives whether there were any.
    fn fetch(&mut self, fd: BorrowedFd<'_>, bytes: usize) -> Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); FETCH_BYTES];
        let len = bytes.clamp(MIN_FETCH_BYTES, FETCH_BYTES);
        let mut entries = RawDir::new(fd, buffer.get_mut(..len).unwrap_or_default());
        self.ahead.clear();
        self.given = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            // One call gives at most `FETCH_BYTES`.
            let name_len = u16::try_from(name.len() - 1).map_err(|_| Errno::OVERFLOW)?;
            self.ahead.extend_from_slice(&entry.ino().to_ne_bytes());
            self.ahead
                .extend_from_slice(&entry.next_entry_cookie().to_ne_bytes());
            self.ahead.extend_from_slice(&name_len.to_ne_bytes());
            self.ahead.push(kind_number(entry.file_type()));
            self.ahead.extend_from_slice(name);
            // One call to the host only.
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(!self.ahead.is_empty())
    }

    /// Keeps what was fetched ahead for the next reply, or lets go of it: where
    /// it was given out, and where all streams keep too much.
    fn settle(&mut self) {
        let left = self.ahead.len().saturating_sub(self.given);
        if left == 0 {
            self.forget_ahead();
        }
        let others = AHEAD_BYTES.fetch_sub(self.counted, Ordering::Relaxed) - self.counted;
        self.counted = self.ahead.capacity();
        if others + self.counted > MAX_AHEAD_BYTES {
            // The host is behind what was given out: the next reply seeks.
            self.forget_ahead();
            self.counted = 0;
            self.expected = None;
        }
        AHEAD_BYTES.fetch_add(self.counted, Ordering::Relaxed);
    }
}

/// `DT_*` of `readdir(3)`: the file type's bits of the mode, shifted down.
fn kind_number(kind: FileType) -> u8 {
    match kind {
        FileType::Unknown => 0,
        kind => (kind.as_raw_mode() >> 12) as u8,
    }
}

impl fs::Directories for Passthrough {
    fn opendir(&self, node: NodeId, _flags: u32) -> Result<Opened> {
        if self.has(init::NO_OPENDIR) {
            return Err(Errno::NOSYS);
        }
        let inode = self.inodes.inode(node)?;
        if inode.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let place = self.place()?;
        let directory = self
            .inodes
            .open(&inode, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let handle = self
            .handles
            .insert(Handle::directory(node, place.hold(directory)));
        Ok(Opened {
            handle,
            flags: cache_flags(self.config.cache).1,
        })
    }

    fn readdir(&self, node: NodeId, args: &ReadArgs, into: &mut DirPacker<'_>) -> Result<()> {
        let inode = self.node(node)?;
        if !self.is_unopened(args.handle) {
            let handle = self.handles.directory(node, args.handle)?;
            return self.read_on(&inode, &handle, args.offset, into).map(drop);
        }
        let handle = match self.listings.take(node, args.offset) {
            Some(handle) => handle,
            None => self.open_unopened(&inode)?,
        };
        match self.read_on(&inode, &handle, args.offset, into)? {
            Some(next) if !into.is_empty() => self.listings.keep(handle, next),
            // The guest is at the end.
            _ => {}
        }
        Ok(())
    }

    fn releasedir(&self, node: NodeId, handle: HandleId) -> Result<()> {
        self.handles.remove(node, handle)
    }

    fn fsyncdir(&self, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        sync(self.directory_of(node, handle)?.as_fd(), data_only)
    }
}

impl Passthrough {
    /// Packs entries from a cookie on; gives where the stream goes on, if that is
    /// known.
    fn read_on(
        &self,
        directory: &Node,
        handle: &Handle,
        offset: u64,
        into: &mut DirPacker<'_>,
    ) -> Result<Option<u64>> {
        let mut stream = lock(handle.stream().ok_or(Errno::BADF)?);
        stream.seek(handle.as_fd(), offset)?;
        let filled = self.fill(directory, &mut stream, handle.as_fd(), into);
        stream.settle();
        filled.map(|()| stream.expected)
    }

    /// Whether a handle stands for a directory that the guest has not opened.
    fn is_unopened(&self, handle: HandleId) -> bool {
        handle == HandleId(0) && self.has(init::NO_OPENDIR)
    }

    /// Opens a directory that the guest reads without opening it.
    fn open_unopened(&self, directory: &Node) -> Result<Handle> {
        if directory.kind() != FileType::Directory {
            return Err(Errno::BADF);
        }
        let place = self.place()?;
        let fd = self
            .inodes
            .reopen(directory.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Handle::directory(directory.id(), place.hold(fd)))
    }

    /// A directory for work that has no position, whether the guest has opened it
    /// or need not.
    pub(in crate::passthrough) fn directory_of(
        &self,
        node: NodeId,
        handle: HandleId,
    ) -> Result<Arc<Handle>> {
        if self.is_unopened(handle) {
            return self.open_unopened(&self.node(node)?).map(Arc::new);
        }
        self.handles.directory(node, handle)
    }

    /// Packs entries from the stream's position on.
    fn fill(
        &self,
        directory: &Node,
        stream: &mut DirStream,
        fd: BorrowedFd<'_>,
        into: &mut DirPacker<'_>,
    ) -> Result<()> {
        loop {
            while let Some((entry, name, taken)) = stream.peek() {
                if !into.has_room(entry.name.len()) {
                    return full(into);
                }
                let next = entry.next;
                self.pack(directory, entry, name, into);
                stream.expected = Some(next);
                stream.given += taken;
            }
            // A reply that is all but full is not worth another call.
            if !into.is_empty() && !into.has_room(WORTH_A_FETCH) {
                return Ok(());
            }
            match stream.fetch(fd, into.limit()) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                // Entries that were packed are counted as looked up, so they
                // must reach the guest; its next reading meets the error.
                Err(_) if !into.is_empty() => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Packs one entry. A look-up that fails makes an entry without attributes:
    /// the guest then asks by itself, and the other entries are not lost.
    fn pack(
        &self,
        directory: &Node,
        mut entry: DirEntry<'_>,
        name: &std::ffi::CStr,
        into: &mut DirPacker<'_>,
    ) {
        let is_dots = matches!(entry.name, b"." | b"..");
        // What is above the shared directory is none of the guest's business.
        if is_dots && directory.id() == NodeId::ROOT {
            entry.ino = directory.key().ino;
        }
        if into.with_attributes() && !is_dots {
            match self.look_up_at_hand(directory, name, Interest::Listed) {
                Ok(found) => return into.push(entry, &found.to_wire()),
                Err(errno) => log::debug!("an entry of a directory was not looked up: {errno:?}"),
            }
        }
        let attr = Attr {
            ino: entry.ino,
            mode: u32::from(entry.kind) << 12,
            ..Attr::default()
        };
        into.push(
            entry,
            &EntryOut {
                attr,
                ..EntryOut::default()
            },
        );
    }
}

/// What to say when an entry has no room: nothing where others had, `EINVAL` as
/// `getdents(2)` where the reply is too small for even one.
fn full(into: &DirPacker<'_>) -> Result<()> {
    if into.is_empty() {
        Err(Errno::INVAL)
    } else {
        Ok(())
    }
}
