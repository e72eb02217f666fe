//! Who acts: the guest's users on the host, and what they may not keep.

pub(in crate::passthrough) mod credentials;
pub(in crate::passthrough) mod id_map;
pub(in crate::passthrough) mod privileges;

use crate::fs::Result;
use crate::fuse::extensions::Extensions;
use crate::fuse::op::Caller;
use credentials::{AsGuest, Credentials};
use id_map::IdMaps;

/// The users of the guest, as the host knows them.
#[derive(Debug)]
pub(in crate::passthrough) struct Users {
    pub(in crate::passthrough) credentials: Credentials,
    pub(in crate::passthrough) ids: IdMaps,
}

impl Users {
    /// Makes the calling thread act as the guest's user until the guard drops.
    pub(in crate::passthrough) fn act_as(
        &self,
        who: &Caller,
        extensions: &Extensions<'_>,
    ) -> Result<AsGuest<'_>> {
        let who = self.ids.host_ids(who)?;
        let group = extensions.supplementary_group;
        let group = group.map(|group| self.ids.host_gid(group)).transpose()?;
        self.credentials.assume(who, group)
    }
}
