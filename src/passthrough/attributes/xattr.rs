//! Extended attributes, as bytes.
//!
//! The calls take a path and no descriptor serves them all, so they go by the
//! descriptor's name in `/proc/self/fd`, which is the working directory of
//! every thread that serves. That name costs more than all the rest, so what has
//! to be opened for the call anyway is opened for reading, where it may be.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, Gid, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::fs::{self, Result};
use crate::fuse::XATTR_SIZE_MAX;
use crate::fuse::flags::init as features;
use crate::fuse::op::{SetId, SetxattrArgs};
use crate::id::NodeId;
use crate::passthrough::Passthrough;
use crate::passthrough::attributes::xattr_map::XattrMap;
use crate::passthrough::inodes::inode::Held;
use crate::passthrough::users::credentials::{AsGuest, WithoutFsetid};
use crate::sys::cpath::FdName;
use crate::sys::file_handle::open_by_handle;
use crate::sys::shared_fd::SharedFd;

/// The bytes of the longest list of names (`XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65536;

/// The access control list of a file.
const ACCESS_LIST: &CStr = c"system.posix_acl_access";

/// The list that what is made in a directory gets.
const DEFAULT_LIST: &CStr = c"system.posix_acl_default";

/// Tells the operator of rules that keep access control lists from the host.
pub(in crate::passthrough) fn warn_about_renamed_lists(names: &XattrMap) {
    for list in [ACCESS_LIST, DEFAULT_LIST] {
        if names.to_host(list).ok().as_deref() != Some(list) {
            log::warn!(
                "--xattrmap keeps {} from the host, which then neither enforces nor inherits \
                 it; begin the rules with :ok:all:system.posix_acl_:system.posix_acl_:",
                list.to_string_lossy()
            );
        }
    }
}

/// A node whose attributes are read.
enum Source {
    /// Opened for reading.
    Open(OwnedFd),
    /// Known by a descriptor of its path; the thread has settled in.
    Path(SharedFd),
}

impl Source {
    fn get(&self, name: &CStr, most: usize) -> Result<Vec<u8>> {
        let mut value = Vec::with_capacity(most);
        let room = spare_capacity(&mut value);
        match self {
            Self::Open(file) => rustix::fs::fgetxattr(file, name, room),
            Self::Path(path) => {
                rustix::fs::getxattr(FdName::of(path.as_fd()).as_c_str(), name, room)
            }
        }?;
        Ok(value)
    }

    fn get_len(&self, name: &CStr) -> Result<usize> {
        match self {
            Self::Open(file) => rustix::fs::fgetxattr_query(file, name),
            Self::Path(path) => {
                rustix::fs::getxattr_query(FdName::of(path.as_fd()).as_c_str(), name)
            }
        }
    }

    fn list(&self) -> Result<Vec<u8>> {
        let mut list = Vec::with_capacity(XATTR_LIST_MAX);
        let room = spare_capacity(&mut list);
        match self {
            Self::Open(file) => rustix::fs::flistxattr(file, room),
            Self::Path(path) => rustix::fs::listxattr(FdName::of(path.as_fd()).as_c_str(), room),
        }?;
        Ok(list)
    }
}

impl fs::Xattrs for Passthrough {
    fn setxattr(&self, node: NodeId, args: &SetxattrArgs<'_>) -> Result<()> {
        let flags = XattrFlags::from_bits_retain(args.flags);
        self.with_xattr_target(node, |path| {
            let name = self.host_name(args.name)?;
            let _as_caller = if args.set_id == SetId::Drop && *name == *ACCESS_LIST {
                Some(self.without_set_group_id(path)?)
            } else {
                None
            };
            rustix::fs::setxattr(path, &*name, args.value, flags)
        })
    }

    fn getxattr(&self, node: NodeId, name: &CStr, size: u32) -> Result<Vec<u8>> {
        let name = self.readable_name(name)?;
        let most = (size as usize).min(XATTR_SIZE_MAX);
        self.xattr_source(node)?.get(&name, most)
    }

    /// GETXATTR with a size of 0.
    fn getxattr_len(&self, node: NodeId, name: &CStr) -> Result<u32> {
        let name = self.readable_name(name)?;
        Ok(self.xattr_source(node)?.get_len(&name)? as u32)
    }

    fn listxattr(&self, node: NodeId, size: u32) -> Result<Vec<u8>> {
        let list = self.visible_xattrs(node)?;
        if list.len() > size as usize {
            Err(Errno::RANGE)
        } else {
            Ok(list)
        }
    }

    /// LISTXATTR with a size of 0.
    fn listxattr_len(&self, node: NodeId) -> Result<u32> {
        Ok(self.visible_xattrs(node)?.len() as u32)
    }

    fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()> {
        self.with_xattr_target(node, |path| {
            let name = self.host_name(name)?;
            rustix::fs::removexattr(path, &*name)
        })
    }
}

impl Passthrough {
    fn check_xattrs_are_served(&self) -> Result<()> {
        self.config.xattr.then_some(()).ok_or(Errno::NOSYS)
    }

    /// A node to read attributes from, if they are served.
    fn xattr_source(&self, node: NodeId) -> Result<Source> {
        self.check_xattrs_are_served()?;
        let inode = self.inodes.inode(node)?;
        // On a server, opening is a request of its own.
        if let (Held::Handle(handle), Some(mount)) = (&inode.held, inode.mount().handles())
            && inode.kind() == FileType::RegularFile
            && !inode.mount().kind().is_served()
            && let Ok(file) = open_by_handle(mount, handle, OFlags::RDONLY | OFlags::NONBLOCK)
        {
            return Ok(Source::Open(file));
        }
        crate::sys::thread::settle_in(self.inodes.proc_self_fd())?;
        Ok(Source::Path(self.inodes.node(node)?.path()))
    }

    /// Calls with the path of a node, if extended attributes are served.
    fn with_xattr_target<T>(
        &self,
        node: NodeId,
        call: impl FnOnce(&CStr) -> Result<T>,
    ) -> Result<T> {
        self.check_xattrs_are_served()?;
        let node = self.inodes.node(node)?;
        self.with_xattr_path(node.as_fd(), call)
    }

    /// Calls with the path of a file that is open, with `O_PATH` or otherwise.
    pub(in crate::passthrough) fn with_xattr_path<T>(
        &self,
        fd: BorrowedFd<'_>,
        call: impl FnOnce(&CStr) -> Result<T>,
    ) -> Result<T> {
        crate::sys::thread::settle_in(self.inodes.proc_self_fd())?;
        call(FdName::of(fd).as_c_str())
    }

    /// Access control lists are not there where the guest's kernel would not
    /// enforce them.
    fn is_hidden(&self, name: &[u8]) -> bool {
        let is_list = name == ACCESS_LIST.to_bytes() || name == DEFAULT_LIST.to_bytes();
        is_list && !self.has(features::POSIX_ACL)
    }

    /// What the host calls an attribute of the guest.
    pub(in crate::passthrough) fn host_name<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>> {
        if self.is_hidden(name.to_bytes()) {
            return Err(Errno::NOTSUP);
        }
        let host = self.xattrs.names.to_host(name)?;
        if self.is_hidden(host.to_bytes()) {
            return Err(Errno::NOTSUP);
        }
        Ok(host)
    }

    /// As [`Self::host_name`], for reading: what may not be reached is not there.
    fn readable_name<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>> {
        self.check_xattrs_are_served()?;
        self.host_name(name).map_err(|errno| match errno {
            Errno::PERM => Errno::NODATA,
            errno => errno,
        })
    }

    /// Makes the thread one that cannot keep set-group-id when it sets an access
    /// control list: without the capability, and not in the file's group. The rest
    /// of its rights stay.
    fn without_set_group_id(
        &self,
        path: &CStr,
    ) -> Result<(Option<AsGuest<'_>>, WithoutFsetid<'_>)> {
        // A daemon without the capability cannot keep it in any group but its own.
        let outside = if self.users.credentials.may_keep_set_id() {
            let gid = Gid::from_raw(rustix::fs::stat(path)?.st_gid);
            self.users.credentials.outside_of(gid)?
        } else {
            None
        };
        Ok((outside, self.users.credentials.without_fsetid()?))
    }

    /// The names as the guest may see them, each with a NUL behind it; of a list
    /// that is hidden nothing is left.
    fn visible_xattrs(&self, node: NodeId) -> Result<Vec<u8>> {
        let list = self.xattr_source(node)?.list()?;
        let names = list.split_inclusive(|byte| *byte == 0);
        let visible = names.filter_map(|name| self.guest_name(name));
        Ok(visible.flatten().copied().collect())
    }

    /// What the guest calls an attribute of the host, if it may see it; both end
    /// with NUL.
    fn guest_name<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let bare = |name: &'n [u8]| name.strip_suffix(b"\0").unwrap_or(name);
        let guest = self.xattrs.names.to_guest(name)?;
        let is_nameless = bare(guest).is_empty();
        (!is_nameless && !self.is_hidden(bare(name)) && !self.is_hidden(bare(guest)))
            .then_some(guest)
    }
}
