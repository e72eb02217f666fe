//! What a change does to the privileges that a file gives to who runs it.
//!
//! The host drops set-id bits when someone without CAP_FSETID changes the file,
//! and `security.capability` when anyone does. The daemon has that capability,
//! so it gives it up for the call where the guest's user would not have it; and
//! a file's capabilities that have another name on the host (`--xattrmap`) are
//! no capabilities to the host, so they are dropped here.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat};
use rustix::io::Errno;

use crate::fs::Result;
use crate::fuse::flags::init as features;
use crate::fuse::op::{Caller, OpenArgs, SetId};
use crate::passthrough::Passthrough;
use crate::passthrough::attributes::xattr_map::XattrMap;
use crate::passthrough::inodes::inode::Node;
use crate::passthrough::users::credentials::{AsGuest, WithoutFsetid};
use crate::sys::cpath::FdName;

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;
const GROUP_EXECUTES: u32 = 0o010;

/// The thread writes as someone who may not keep set-id bits.
pub(in crate::passthrough) type AsWriter<'a> = (Option<AsGuest<'a>>, WithoutFsetid<'a>);

/// What the guest's kernel calls the capabilities of a file.
const CAPABILITY: &CStr = c"security.capability";

/// What the host calls them, where it is something else.
pub(in crate::passthrough) fn renamed_capability(names: &XattrMap) -> Option<CString> {
    let host = names.to_host(CAPABILITY).ok()?;
    (*host != *CAPABILITY).then(|| host.into_owned())
}

impl Passthrough {
    /// To be called before the content of a file changes; the change happens
    /// while the guard lives.
    ///
    /// # Errors
    /// When the privileges cannot be dropped: the change must not happen then.
    pub(in crate::passthrough) fn drop_privileges_of(
        &self,
        file: BorrowedFd<'_>,
        set_id: SetId,
    ) -> Result<Option<AsWriter<'_>>> {
        self.drop_renamed_capability(file)?;
        if set_id == SetId::Keep || !self.users.credentials.may_keep_set_id() {
            return Ok(None);
        }
        // Looking first is cheaper than changing the thread's capabilities
        // twice, and few files have such bits.
        let stat = rustix::fs::fstat(file)?;
        let left = without_set_id_bits(stat.st_mode);
        if left == stat.st_mode || (set_id == SetId::Unknown && only_root_may_write(&stat)) {
            return Ok(None);
        }
        // A set-group-id bit that is to stay goes when a stranger writes.
        let in_group = if left & SET_GROUP_ID != 0 {
            self.users
                .credentials
                .inside_of(Gid::from_raw(stat.st_gid))?
        } else {
            None
        };
        Ok(Some((in_group, self.users.credentials.without_fsetid()?)))
    }

    /// SETATTR that sets nothing. So a guest's kernel that leaves set-id bits to the
    /// daemon announces that it is about to change a file for a process that may not
    /// keep them. The change itself would drop them, too, but the reply to it has
    /// no attributes: for as long as it trusts those that it has, the guest would
    /// go on to run the changed file with the old privileges.
    ///
    /// # Errors
    /// Those of `chmod(2)`.
    pub(in crate::passthrough) fn drop_set_id_bits(
        &self,
        node: &Node,
        set_id: SetId,
    ) -> Result<()> {
        if node.kind() != FileType::RegularFile || set_id == SetId::Keep {
            return Ok(());
        }
        let stat = rustix::fs::fstat(node)?;
        let left = without_set_id_bits(stat.st_mode);
        if left == stat.st_mode || (set_id == SetId::Unknown && only_root_may_write(&stat)) {
            return Ok(());
        }
        let name = FdName::of(node.as_fd());
        let mode = Mode::from_raw_mode(left & 0o7777);
        rustix::fs::chmodat(
            self.inodes.proc_self_fd(),
            name.as_c_str(),
            mode,
            AtFlags::empty(),
        )
    }

    /// What becomes of set-id bits of a file that is truncated when it is opened. A guest
    /// that clears them itself does not do so here: it leaves the truncation to us.
    pub(in crate::passthrough) fn set_id_of_truncation(
        &self,
        who: &Caller,
        args: OpenArgs,
    ) -> SetId {
        if self.has(features::HANDLE_KILLPRIV_V2) {
            args.set_id
        } else {
            who.set_id()
        }
    }

    /// What becomes of set-id bits where the request has no flag for it.
    pub(in crate::passthrough) fn set_id_without_flag(&self, who: &Caller) -> SetId {
        match who.set_id() {
            // Who does not name the caller is new enough to have done it itself.
            SetId::Unknown if !self.has(features::HANDLE_KILLPRIV_V2) => SetId::Keep,
            set_id => set_id,
        }
    }

    /// Drops the capabilities of a file if the host does not know them as such.
    ///
    /// # Errors
    /// When they are there and stay.
    pub(in crate::passthrough) fn drop_renamed_capability(
        &self,
        file: BorrowedFd<'_>,
    ) -> Result<()> {
        let Some(name) = &self.xattrs.renamed_capability else {
            return Ok(());
        };
        self.with_xattr_path(file, |path| match rustix::fs::removexattr(path, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
            // It may be forbidden to remove what is not there.
            Err(errno) => match rustix::fs::getxattr_query(path, name) {
                Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
                _ => Err(errno),
            },
        })
    }
}

/// What the host leaves of a mode: set-group-id without the right to execute means
/// something else, and stays.
fn without_set_id_bits(mode: u32) -> u32 {
    match mode & GROUP_EXECUTES {
        0 => mode & !SET_USER_ID,
        _ => mode & !(SET_USER_ID | SET_GROUP_ID),
    }
}

/// Whether nobody but root can have opened a file for writing. A list that lets
/// somebody else do so shows in the group's bits.
fn only_root_may_write(stat: &Stat) -> bool {
    stat.st_uid == 0 && stat.st_mode & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{XattrRule, XattrRuleKind, XattrScope};

    fn renamed(kind: XattrRuleKind, key: &[u8], prepend: &[u8]) -> Option<CString> {
        let rule = XattrRule {
            kind,
            scope: XattrScope::All,
            key: key.to_vec(),
            prepend: prepend.to_vec(),
        };
        renamed_capability(&XattrMap::new(Some([rule].into())))
    }

    #[test]
    fn set_group_id_stays_where_nobody_executes_by_it() {
        for (mode, left) in [
            (0o106_777, 0o100_777),
            (0o106_767, 0o102_767),
            (0o102_710, 0o100_710),
            (0o101_644, 0o101_644),
        ] {
            assert_eq!(without_set_id_bits(mode), left, "{mode:o}");
        }
    }

    #[test]
    fn capabilities_are_dropped_here_only_where_they_have_another_name() {
        assert_eq!(renamed_capability(&XattrMap::new(None)), None);
        assert_eq!(renamed(XattrRuleKind::Ok, b"", b""), None);
        assert_eq!(renamed(XattrRuleKind::Bad, b"", b""), None);
        assert_eq!(renamed(XattrRuleKind::Prefix, b"", b""), None);
        assert_eq!(
            renamed(XattrRuleKind::Prefix, b"security.", b"user.v.").as_deref(),
            Some(c"user.v.security.capability")
        );
    }
}
