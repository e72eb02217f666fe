//! Extended attributes, as bytes.
//!
//! The calls take a path and no descriptor serves them all, so they go by the
//! descriptor's name in `/proc/self/fd`, which is the working directory of
//! every thread that serves.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Gid, XattrFlags};
use rustix::io::Errno;

use super::Passthrough;
use super::credentials::{AsGuest, WithoutFsetid};
use super::xattr_map::XattrMap;
use crate::fs::Result;
use crate::fuse::XATTR_SIZE_MAX;
use crate::fuse::flags::init as features;
use crate::fuse::op::{SetId, SetxattrArgs};
use crate::id::NodeId;
use crate::sys::cpath::FdName;

/// The bytes of the longest list of names (`XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65536;

/// The access control list of a file.
const ACCESS_LIST: &CStr = c"system.posix_acl_access";

/// The list that what is made in a folder gets.
const DEFAULT_LIST: &CStr = c"system.posix_acl_default";

/// Tells the operator of rules that keep access control lists from the host.
pub(super) fn warn_about_renamed_lists(names: &XattrMap) {
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

impl Passthrough {
    /// Calls with the path of a node, if extended attributes are served.
    fn with_xattr_target<T>(
        &self,
        node: NodeId,
        call: impl FnOnce(&CStr) -> Result<T>,
    ) -> Result<T> {
        if !self.config.xattr {
            return Err(Errno::NOSYS);
        }
        let node = self.node(node)?;
        self.with_xattr_path(node.as_fd(), call)
    }

    /// Calls with the path of a file that is open, with `O_PATH` or otherwise.
    pub(super) fn with_xattr_path<T>(
        &self,
        fd: BorrowedFd<'_>,
        call: impl FnOnce(&CStr) -> Result<T>,
    ) -> Result<T> {
        crate::sys::thread::settle_in(&self.proc_self_fd)?;
        call(FdName::of(fd).as_c_str())
    }

    /// Access control lists are not there where the guest's kernel would not
    /// enforce them.
    fn is_hidden(&self, name: &[u8]) -> bool {
        let is_list = name == ACCESS_LIST.to_bytes() || name == DEFAULT_LIST.to_bytes();
        is_list && !self.has(features::POSIX_ACL)
    }

    /// What the host calls an attribute of the guest.
    pub(super) fn host_name<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>> {
        if self.is_hidden(name.to_bytes()) {
            return Err(Errno::NOTSUP);
        }
        let host = self.xattr_names.to_host(name)?;
        if self.is_hidden(host.to_bytes()) {
            return Err(Errno::NOTSUP);
        }
        Ok(host)
    }

    /// As [`Self::host_name`], for reading: what may not be reached is not there.
    fn host_name_to_read<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>> {
        self.host_name(name).map_err(|errno| match errno {
            Errno::PERM => Errno::NODATA,
            errno => errno,
        })
    }

    /// SETXATTR.
    pub(super) fn set_xattr(&self, node: NodeId, args: &SetxattrArgs<'_>) -> Result<()> {
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

    /// Makes the thread one that cannot keep set-group-id when it sets an access
    /// control list: without the capability, and not in the file's group. The rest
    /// of its rights stay.
    fn without_set_group_id(
        &self,
        path: &CStr,
    ) -> Result<(Option<AsGuest<'_>>, WithoutFsetid<'_>)> {
        // A daemon without the capability cannot keep it in any group but its own.
        let outside = if self.credentials.may_keep_set_id() {
            let gid = Gid::from_raw(rustix::fs::stat(path)?.st_gid);
            self.credentials.outside_of(gid)?
        } else {
            None
        };
        Ok((outside, self.credentials.without_fsetid()?))
    }

    /// GETXATTR.
    pub(super) fn get_xattr(&self, node: NodeId, name: &CStr, size: u32) -> Result<Vec<u8>> {
        self.with_xattr_target(node, |path| {
            let name = self.host_name_to_read(name)?;
            let mut value = vec![0; (size as usize).min(XATTR_SIZE_MAX)];
            let len = rustix::fs::getxattr(path, &*name, value.as_mut_slice())?;
            value.truncate(len);
            Ok(value)
        })
    }

    /// GETXATTR with a size of 0.
    pub(super) fn get_xattr_len(&self, node: NodeId, name: &CStr) -> Result<u32> {
        self.with_xattr_target(node, |path| {
            let name = self.host_name_to_read(name)?;
            Ok(rustix::fs::getxattr_query(path, &*name)? as u32)
        })
    }

    /// LISTXATTR.
    pub(super) fn list_xattrs(&self, node: NodeId, size: u32) -> Result<Vec<u8>> {
        let list = self.visible_xattrs(node)?;
        if list.len() > size as usize {
            Err(Errno::RANGE)
        } else {
            Ok(list)
        }
    }

    /// LISTXATTR with a size of 0.
    pub(super) fn list_xattrs_len(&self, node: NodeId) -> Result<u32> {
        Ok(self.visible_xattrs(node)?.len() as u32)
    }

    /// The names as the guest may see them, each with a NUL behind it; of a list
    /// that is hidden nothing is left.
    fn visible_xattrs(&self, node: NodeId) -> Result<Vec<u8>> {
        self.with_xattr_target(node, |path| {
            let mut list = vec![0; XATTR_LIST_MAX];
            let len = rustix::fs::listxattr(path, list.as_mut_slice())?;
            list.truncate(len);
            Ok(list
                .split_inclusive(|byte| *byte == 0)
                .filter_map(|name| self.guest_name(name))
                .flatten()
                .copied()
                .collect())
        })
    }

    /// What the guest calls an attribute of the host, if it may see it; both end
    /// with NUL.
    fn guest_name<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let bare = |name: &'n [u8]| name.strip_suffix(b"\0").unwrap_or(name);
        let guest = self.xattr_names.to_guest(name)?;
        let is_nameless = bare(guest).is_empty();
        (!is_nameless && !self.is_hidden(bare(name)) && !self.is_hidden(bare(guest)))
            .then_some(guest)
    }

    /// REMOVEXATTR.
    pub(super) fn remove_xattr(&self, node: NodeId, name: &CStr) -> Result<()> {
        self.with_xattr_target(node, |path| {
            let name = self.host_name(name)?;
            rustix::fs::removexattr(path, &*name)
        })
    }
}
