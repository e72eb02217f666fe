//! One arm per operation: its arguments to the file system, its result to the
//! reply.

use std::sync::Once;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Access, Server};
use crate::fs::{Entry, Failure, FileSystem, Locking, Patience};
use crate::fuse::abi::{EntryOut, ForgetOne, GetxattrOut, InHeader, IoctlOut, LseekOut, WriteOut};
use crate::fuse::dirent::DirPacker;
use crate::fuse::init::{Negotiation, negotiate};
use crate::fuse::op::{Caller, InitArgs, Op, ReadArgs};
use crate::guest::buffers::{Readable, Writable};
use crate::id::NodeId;

/// The most bytes of one READDIR or READDIRPLUS reply.
const MAX_DIR_REPLY: usize = 1 << 20;

impl<F: FileSystem> Server<F> {
    /// Lets the file system work and writes what it gives behind the header.
    pub(super) fn dispatch(
        &self,
        header: &InHeader,
        op: Op<'_>,
        packed: &mut Vec<u8>,
        request: &mut Readable<'_>,
        reply: &mut Writable<'_>,
        patience: Patience,
    ) -> Result<(), Failure> {
        let fs = &self.fs;
        let node = NodeId(header.nodeid);
        let who = &Caller::of(header);
        let done = match op {
            Op::Lookup { name } => match fs.lookup(node, name, patience) {
                Err(Failure::Errno(Errno::NOENT)) if !fs.negative_timeout().is_zero() => {
                    put(reply, &missing(fs.negative_timeout()))
                }
                found => put_entry(reply, &found?),
            },
            Op::Forget { count } => {
                fs.forget(node, count);
                Ok(())
            }
            Op::BatchForget { count } => {
                self.batch_forget(count, request);
                Ok(())
            }
            Op::Getattr { handle } => put(reply, &fs.getattr(node, handle)?.to_wire()),
            Op::Setattr(args) => put(reply, &fs.setattr(who, node, &args, patience)?.to_wire()),
            Op::Readlink => put_bytes(reply, &fs.readlink(node)?),
            Op::Symlink(args) => put_entry(reply, &fs.symlink(who, node, &args)?),
            Op::Mknod(args) => put_entry(reply, &fs.mknod(who, node, &args)?),
            Op::Mkdir(args) => put_entry(reply, &fs.mkdir(who, node, &args)?),
            Op::Unlink { name } => fs.unlink(node, name),
            Op::Rmdir { name } => fs.rmdir(node, name),
            Op::Rename(args) => fs.rename(node, &args),
            Op::Link {
                node: existing,
                name,
            } => put_entry(reply, &fs.link(existing, node, name)?),
            Op::Open(args) => put(reply, &fs.open(who, node, args, patience)?.to_wire()),
            Op::Opendir { flags } => put(reply, &fs.opendir(node, flags)?.to_wire()),
            Op::Create(args) => {
                let (entry, opened) = match self.access {
                    Access::ReadWrite => fs.create(who, node, &args, patience)?,
                    Access::ReadOnly => self.open_existing(who, node, &args, patience)?,
                };
                put_entry(reply, &entry)?;
                put(reply, &opened.to_wire())
            }
            Op::Read(args) => {
                reply.limit(args.size as usize);
                return fs.read(node, &args, reply, patience);
            }
            Op::Write(args) => {
                if request.len() < args.size as usize {
                    return Err(Errno::INVAL.into());
                }
                request.limit(args.size as usize);
                let size = fs.write(node, &args, request, patience)?;
                put(reply, &WriteOut { size, padding: 0 })
            }
            Op::Statfs => put(reply, &fs.statfs(node)?),
            Op::Release { handle, unlocks } => fs.release(node, handle, unlocks),
            Op::Releasedir { handle } => fs.releasedir(node, handle),
            Op::Fsync { handle, data_only } => fs.fsync(node, handle, data_only),
            Op::Fsyncdir { handle, data_only } => fs.fsyncdir(node, handle, data_only),
            Op::Flush { handle, owner } => fs.flush(node, handle, owner),
            Op::Getlk(args) => put(reply, &fs.getlk(node, &args)?),
            Op::Setlk(args) => return fs.setlk(node, &args, Locking::Try, patience),
            Op::Setlkw(args) => {
                let locking = Locking::Wait(header.unique);
                return fs.setlk(node, &args, locking, patience);
            }
            Op::Setxattr(args) => fs.setxattr(node, &args),
            Op::Getxattr { name, size: 0 } => put_len(reply, fs.getxattr_len(node, name)?),
            Op::Getxattr { name, size } => put_bytes(reply, &fs.getxattr(node, name, size)?),
            Op::Listxattr { size: 0 } => put_len(reply, fs.listxattr_len(node)?),
            Op::Listxattr { size } => put_bytes(reply, &fs.listxattr(node, size)?),
            Op::Removexattr { name } => fs.removexattr(node, name),
            Op::Init(args) => self.init(&args, reply),
            Op::Readdir(args) => self.readdir(node, &args, false, packed, reply),
            Op::Readdirplus(args) => self.readdir(node, &args, true, packed, reply),
            Op::Access { mask } => fs.access(who, node, mask),
            Op::Tmpfile(args) => {
                let (entry, opened) = fs.tmpfile(who, node, &args)?;
                put_entry(reply, &entry)?;
                put(reply, &opened.to_wire())
            }
            Op::Statx(args) => put(reply, &fs.statx(node, &args)?),
            Op::Ioctl(args) => {
                let output = fs.ioctl(node, &args)?;
                put(reply, &IoctlOut::default())?;
                put_bytes(reply, &output)
            }
            Op::Interrupt { unique } => {
                // Only who waits for a lock can be interrupted; all else goes on.
                // Linux does not send this over virtio.
                fs.interrupt(unique);
                Ok(())
            }
            Op::Destroy => {
                self.end_session();
                Ok(())
            }
            Op::Fallocate(args) => fs.fallocate(who, node, &args),
            Op::Lseek {
                handle,
                offset,
                whence,
            } => {
                let offset = fs.lseek(node, handle, offset, whence)?;
                put(reply, &LseekOut { offset })
            }
            Op::CopyFileRange(args) => {
                let size = fs.copy_file_range(who, node, &args)?;
                put(reply, &WriteOut { size, padding: 0 })
            }
            Op::Syncfs => fs.syncfs(node),
        };
        Ok(done?)
    }

    /// Settles the features and begins a session.
    fn init(&self, args: &InitArgs, reply: &mut Writable<'_>) -> Result<(), Errno> {
        match negotiate(args, self.fs.wanted_features(args.flags)) {
            Negotiation::AskAgain(out) => put(reply, &out),
            Negotiation::TooOld => {
                static WARNED: Once = Once::new();
                WARNED.call_once(|| {
                    log::error!(
                        "the guest speaks FUSE {}.{}, but 7.27 is needed: \
                         use Linux 5.4 or newer",
                        args.major,
                        args.minor
                    );
                });
                Err(Errno::PROTO)
            }
            Negotiation::Agreed(out, features) => {
                log::debug!("the guest offers {args:?}, agreed on {features:#x}");
                // A guest that crashed and came back never said DESTROY, and
                // requests that DESTROY overtook may have left something.
                self.in_session.store(false, Ordering::Release);
                self.fs.stop();
                self.features.store(features, Ordering::Relaxed);
                self.fs.start(features)?;
                self.in_session.store(true, Ordering::Release);
                put(reply, &out)
            }
        }
    }

    /// Forgets node by node, as many as were promised and are there.
    fn batch_forget(&self, count: u32, request: &mut Readable<'_>) {
        let mut one = [0; size_of::<ForgetOne>()];
        for _ in 0..count {
            if request.copy_out(&mut one) < one.len() {
                break;
            }
            if let Ok(forget) = ForgetOne::read_from_bytes(&one) {
                self.fs.forget(NodeId(forget.nodeid), forget.nlookup);
            }
        }
    }

    /// Packs a reply of READDIR or, with attributes, of READDIRPLUS.
    fn readdir(
        &self,
        node: NodeId,
        args: &ReadArgs,
        with_attributes: bool,
        packed: &mut Vec<u8>,
        reply: &mut Writable<'_>,
    ) -> Result<(), Errno> {
        let limit = reply.len().min(args.size as usize).min(MAX_DIR_REPLY);
        let mut packer = DirPacker::new(packed, limit, with_attributes);
        self.fs.readdir(node, args, &mut packer)?;
        put_bytes(reply, packed)
    }
}

/// Writes a struct; `handle` made sure that there is room.
fn put(reply: &mut Writable<'_>, value: &(impl IntoBytes + Immutable)) -> Result<(), Errno> {
    put_bytes(reply, value.as_bytes())
}

/// The entry of a name that does not exist: it has no node, and the guest may
/// remember that for a while.
fn missing(timeout: Duration) -> EntryOut {
    EntryOut {
        entry_valid: timeout.as_secs(),
        entry_valid_nsec: timeout.subsec_nanos(),
        ..EntryOut::default()
    }
}

fn put_entry(reply: &mut Writable<'_>, entry: &Entry) -> Result<(), Errno> {
    put(reply, &entry.to_wire())
}

fn put_len(reply: &mut Writable<'_>, len: u32) -> Result<(), Errno> {
    put(
        reply,
        &GetxattrOut {
            size: len,
            padding: 0,
        },
    )
}

/// Writes bytes whole or not at all.
fn put_bytes(reply: &mut Writable<'_>, bytes: &[u8]) -> Result<(), Errno> {
    if bytes.len() > reply.len() {
        return Err(Errno::INVAL);
    }
    reply.copy_in(bytes);
    Ok(())
}
