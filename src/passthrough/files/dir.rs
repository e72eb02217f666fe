//! Operations on open directories.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::fs::{self, Opened, Result};
use crate::fuse::abi::{Attr, EntryOut};
use crate::fuse::dirent::{DirEntry, DirPacker};
use crate::fuse::flags::init;
use crate::fuse::op::ReadArgs;
use crate::id::{HandleId, NodeId};
use crate::passthrough::Passthrough;
use crate::passthrough::files::data::sync;
use crate::passthrough::files::dir_stream::DirStream;
use crate::passthrough::files::handles::Handle;
use crate::passthrough::files::open::cache_flags;
use crate::passthrough::inodes::inode::Node;
use crate::passthrough::inodes::look_up::Interest;
use crate::sys::sync::lock;

/// A reply with room for a name of this many bytes is worth another call.
const WORTH_A_FETCH: usize = 64;

impl fs::Directories for Passthrough {
    fn opendir(&self, node: NodeId, _flags: u32) -> Result<Opened> {
        if self.has(init::NO_OPENDIR) {
            return Err(Errno::NOSYS);
        }
        let inode = self.inodes.inode(node)?;
        if inode.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let place = self.inodes.place()?;
        let directory = self
            .inodes
            .open(&inode, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let handle = self
            .files
            .handles
            .insert(Handle::directory(node, place.hold(directory)));
        Ok(Opened {
            handle,
            flags: cache_flags(self.config.cache).1,
        })
    }

    fn readdir(&self, node: NodeId, args: &ReadArgs, into: &mut DirPacker<'_>) -> Result<()> {
        let inode = self.inodes.node(node)?;
        if !self.is_unopened(args.handle) {
            let handle = self.files.handles.directory(node, args.handle)?;
            return self.read_on(&inode, &handle, args.offset, into).map(drop);
        }
        let handle = match self.files.listings.take(node, args.offset) {
            Some(handle) => handle,
            None => self.open_unopened(&inode)?,
        };
        match self.read_on(&inode, &handle, args.offset, into)? {
            Some(next) if !into.is_empty() => self.files.listings.keep(handle, next),
            // The guest is at the end.
            _ => {}
        }
        Ok(())
    }

    fn releasedir(&self, node: NodeId, handle: HandleId) -> Result<()> {
        self.files.handles.remove(node, handle)
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
        let place = self.inodes.place()?;
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
            return self.open_unopened(&self.inodes.node(node)?).map(Arc::new);
        }
        self.files.handles.directory(node, handle)
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

    /// Packs one entry. A lookup that fails makes an entry without attributes:
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
