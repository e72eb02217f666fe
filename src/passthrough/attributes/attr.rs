//! Attributes of nodes and of the file systems they are on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT,
};
use rustix::io::Errno;

use crate::fs::{self, Attributes, Patience, Result, Waiting};
use crate::fuse::abi::{Attr, StatfsOut, StatxOut, StatxTime};
use crate::fuse::flags::{init as features, statx};
use crate::fuse::op::{Caller, SetTime, SetattrArgs, StatxArgs};
use crate::id::{HandleId, NodeId};
use crate::passthrough::Passthrough;
use crate::passthrough::files::handles::Handle;
use crate::passthrough::files::open::{must_wait_for_lease, unless_it_may_wait};
use crate::passthrough::inodes::identity::identify;
use crate::passthrough::inodes::inode::Node;
use crate::passthrough::stat::from_statx;
use crate::sys::cpath::FdName;

/// Permission bits, set-id and sticky included.
const PERMISSION_BITS: u32 = 0o7777;

/// Bits of the mask of `access(2)`.
const MAY_EXECUTE: u32 = 1;
const MAY_ALL: u32 = 7;

/// The attributes that were asked for and are there; all others are 0.
fn given(stat: &Statx, attr: &Attr, asked: StatxFlags, timeout: Duration) -> StatxOut {
    let there = StatxFlags::from_bits_retain(stat.stx_mask) & asked;
    let number = |flag, value: u64| if there.contains(flag) { value } else { 0 };
    let short = |flag, value: u32| if there.contains(flag) { value } else { 0 };
    let time = |flag, time: StatxTimestamp| StatxTime {
        seconds: number(flag, time.tv_sec.cast_unsigned()).cast_signed(),
        nanoseconds: short(flag, time.tv_nsec),
        reserved: 0,
    };
    let mode = short(StatxFlags::MODE, attr.mode & PERMISSION_BITS)
        | short(StatxFlags::TYPE, attr.mode & !PERMISSION_BITS);
    StatxOut {
        attr_valid: timeout.as_secs(),
        attr_valid_nsec: timeout.subsec_nanos(),
        mask: there.bits(),
        blksize: attr.blksize,
        nlink: short(StatxFlags::NLINK, attr.nlink),
        uid: short(StatxFlags::UID, attr.uid),
        gid: short(StatxFlags::GID, attr.gid),
        mode: mode as u16,
        ino: number(StatxFlags::INO, attr.ino),
        size: number(StatxFlags::SIZE, attr.size),
        blocks: number(StatxFlags::BLOCKS, attr.blocks),
        atime: time(StatxFlags::ATIME, stat.stx_atime),
        btime: time(StatxFlags::BTIME, stat.stx_btime),
        ctime: time(StatxFlags::CTIME, stat.stx_ctime),
        mtime: time(StatxFlags::MTIME, stat.stx_mtime),
        rdev_major: short(StatxFlags::TYPE, stat.stx_rdev_major),
        rdev_minor: short(StatxFlags::TYPE, stat.stx_rdev_minor),
        ..StatxOut::default()
    }
}

impl fs::Attrs for Passthrough {
    fn getattr(&self, node: NodeId, handle: Option<HandleId>) -> Result<Attributes> {
        // What is open tells it without being opened first.
        let found = match handle {
            Some(handle) => identify(self.files.handles.any(node, handle)?.as_fd())?,
            None => self.inodes.identify(node)?,
        };
        Ok(self.attributes_of(&found))
    }

    /// SETATTR: each change by the call that a local process would use.
    fn setattr(
        &self,
        who: &Caller,
        node: NodeId,
        args: &SetattrArgs,
        patience: Patience,
    ) -> Waiting<Attributes> {
        let inode = match self.inodes.node(node) {
            Err(Errno::STALE)
                if args.writes_back_times() && self.has(features::WRITEBACK_CACHE) =>
            {
                return Ok(self.of_a_removed_file(node)?);
            }
            inode => inode?,
        };
        args.handle
            .map_or(Ok(()), |handle| self.files.handles.check(node, handle))?;
        // Before anything changes: it may have to wait.
        let to_truncate = match args.size {
            Some(_) => Some(self.file_to_truncate(&inode, args, patience)?),
            None => None,
        };
        if args.sets_nothing() && self.has(features::HANDLE_KILLPRIV_V2) {
            self.drop_set_id_bits(&inode, who.set_id())?;
        }
        // The owner comes first: changing it drops the set-id bits, which the
        // mode of the same request may set.
        if args.uid.is_some() || args.gid.is_some() {
            if inode.kind() == FileType::RegularFile {
                self.drop_renamed_capability(inode.as_fd())?;
            }
            self.chown(&inode, args)?;
        }
        if let Some(mode) = args.mode {
            let name = FdName::of(inode.as_fd());
            let mode = Mode::from_raw_mode(mode & PERMISSION_BITS);
            rustix::fs::chmodat(
                self.inodes.proc_self_fd(),
                name.as_c_str(),
                mode,
                AtFlags::empty(),
            )?;
        }
        if let (Some(file), Some(size)) = (to_truncate, args.size) {
            let _as_caller = self.drop_privileges_of(file.as_fd(), args.set_id)?;
            rustix::fs::ftruncate(file.as_fd(), size)?;
        }
        if (args.atime, args.mtime) != (SetTime::Omit, SetTime::Omit) {
            let times = Timestamps {
                last_access: timespec(args.atime)?,
                last_modification: timespec(args.mtime)?,
            };
            rustix::fs::utimensat(&inode, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(self.attributes_of(&identify(inode.as_fd())?))
    }

    /// STATX: of the attributes that are asked for, those that the host has.
    fn statx(&self, node: NodeId, args: &StatxArgs) -> Result<StatxOut> {
        let inode = self.inodes.node(node)?;
        args.handle
            .map_or(Ok(()), |handle| self.files.handles.check(node, handle))?;
        let sync = AtFlags::from_bits_retain(args.sync);
        let asked = StatxFlags::from_bits_retain(args.mask & (statx::BASIC_STATS | statx::BTIME));
        let flags = sync | AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statx(&inode, c"", flags, asked)?;
        let found = self.users.ids.guest_attr(from_statx(&stat));
        Ok(given(&stat, &found, asked, self.timeout()))
    }

    /// ACCESS: only asked by a guest that leaves the checks to us.
    fn access(&self, who: &Caller, node: NodeId, mask: u32) -> Result<()> {
        let attr = identify(self.inodes.node(node)?.as_fd())?.attr;
        if mask & !MAY_ALL != 0 {
            return Err(Errno::INVAL);
        }
        let who = self.users.ids.host_ids(who)?;
        let shift = if who.uid.as_raw() == attr.uid {
            6
        } else if who.gid.as_raw() == attr.gid {
            3
        } else {
            0
        };
        let granted = if who.uid.is_root() {
            let is_directory = FileType::from_raw_mode(attr.mode) == FileType::Directory;
            let executable = is_directory || attr.mode & 0o111 != 0;
            if executable {
                MAY_ALL
            } else {
                MAY_ALL & !MAY_EXECUTE
            }
        } else {
            attr.mode >> shift & MAY_ALL
        };
        if mask & !granted == 0 {
            Ok(())
        } else {
            Err(Errno::ACCESS)
        }
    }

    fn statfs(&self, node: NodeId) -> Result<StatfsOut> {
        let status = rustix::fs::fstatvfs(&self.inodes.node(node)?)?;
        Ok(StatfsOut {
            blocks: status.f_blocks,
            bfree: status.f_bfree,
            bavail: status.f_bavail,
            files: status.f_files,
            ffree: status.f_ffree,
            bsize: status.f_bsize as u32,
            namelen: status.f_namemax as u32,
            frsize: status.f_frsize as u32,
            ..StatfsOut::default()
        })
    }
}

impl Passthrough {
    fn chown(&self, inode: &Node, args: &SetattrArgs) -> Result<()> {
        let uid = args
            .uid
            .map(|uid| self.users.ids.host_uid(uid))
            .transpose()?;
        let gid = args
            .gid
            .map(|gid| self.users.ids.host_gid(gid))
            .transpose()?;
        rustix::fs::chownat(inode, c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    /// The attributes of a file that the host has no more. The kernel of a guest that
    /// writes back stamps a file when it has removed its last name: an error would
    /// be told to whoever syncs next, and nobody can see the time.
    fn of_a_removed_file(&self, node: NodeId) -> Result<Attributes> {
        let inode = self.inodes.inode(node)?;
        let attr = Attr {
            ino: inode.key().ino,
            mode: inode.kind().as_raw_mode(),
            ..Attr::default()
        };
        Ok(Attributes {
            attr,
            timeout: Duration::ZERO,
        })
    }

    /// What the length is changed by: the guest's own handle where it names one.
    fn file_to_truncate(
        &self,
        inode: &Node,
        args: &SetattrArgs,
        patience: Patience,
    ) -> Waiting<ToTruncate> {
        if let Some(handle) = args.handle {
            return Ok(ToTruncate::Handle(
                self.files.handles.file(inode.id(), handle)?,
            ));
        }
        match inode.kind() {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        let flags = OFlags::WRONLY | unless_it_may_wait(patience);
        match self.inodes.reopen(inode.as_fd(), flags) {
            Ok(file) => Ok(ToTruncate::Opened(file)),
            Err(errno) => Err(must_wait_for_lease(errno, patience)),
        }
    }
}

/// A file whose length is going to be changed.
enum ToTruncate {
    /// By what the guest has opened.
    Handle(Arc<Handle>),
    /// By what was opened for that.
    Opened(OwnedFd),
}

impl AsFd for ToTruncate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Handle(handle) => handle.as_fd(),
            Self::Opened(file) => file.as_fd(),
        }
    }
}

fn timespec(time: SetTime) -> Result<Timespec> {
    Ok(match time {
        SetTime::Omit => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        SetTime::Now => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        // Beyond a second lie the kernel's own special values.
        SetTime::At(_, nanoseconds) if nanoseconds > 999_999_999 => return Err(Errno::INVAL),
        SetTime::At(seconds, nanoseconds) => Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_special_values_of_the_kernel_cannot_be_smuggled_in() {
        assert_eq!(
            timespec(SetTime::At(1, UTIME_OMIT as u32)).unwrap_err(),
            Errno::INVAL
        );
        assert_eq!(
            timespec(SetTime::At(1, UTIME_NOW as u32)).unwrap_err(),
            Errno::INVAL
        );
        assert!(timespec(SetTime::At(-1, 999_999_999)).is_ok());
    }
}
