//! What a change does to the privileges that a file gives to who runs it.
//!
//! The host drops set-id bits when someone without CAP_FSETID changes the file,
//! and `security.capability` when anyone does. The daemon has that capability,
//! so it gives it up for the call where the guest's user would not have it; and
//! a file's capabilities that have another name on the host (`--xattrmap`) are
//! no capabilities to the host, so they are dropped here.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::Passthrough;
use super::credentials::WithoutFsetid;
use super::xattr_map::XattrMap;
use crate::fs::Result;
use crate::fuse::op::SetId;

/// Set-user-id and set-group-id.
const SET_ID_BITS: u32 = 0o6000;

/// What the guest's kernel calls the capabilities of a file.
const CAPABILITY: &std::ffi::CStr = c"security.capability";

/// What the host calls them, where it is something else.
pub(super) fn renamed_capability(names: &XattrMap) -> Option<CString> {
    let host = names.to_host(CAPABILITY).ok()?;
    (*host != *CAPABILITY).then(|| host.into_owned())
}

impl Passthrough {
    /// To be called before the content of a file changes; the change happens
    /// while the guard lives.
    ///
    /// # Errors
    /// When the privileges cannot be dropped: the change must not happen then.
    pub(super) fn drop_privileges_of(
        &self,
        file: BorrowedFd<'_>,
        set_id: SetId,
    ) -> Result<Option<WithoutFsetid<'_>>> {
        self.drop_renamed_capability(file)?;
        // Looking first is cheaper than changing the thread's capabilities
        // twice, and few files have such bits.
        if set_id == SetId::Drop
            && self.credentials.may_keep_set_id()
            && rustix::fs::fstat(file)?.st_mode & SET_ID_BITS != 0
        {
            return self.credentials.without_fsetid().map(Some);
        }
        Ok(None)
    }

    /// Drops the capabilities of a file if the host does not know them as such.
    ///
    /// # Errors
    /// When they are there and stay.
    pub(super) fn drop_renamed_capability(&self, file: BorrowedFd<'_>) -> Result<()> {
        let Some(name) = &self.renamed_capability else {
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
