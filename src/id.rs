//! Numbers that name things, as types that cannot be swapped.

/// Names an inode towards the guest: the `nodeid` of FUSE.
///
/// A number is never given out twice within a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The shared directory itself (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

/// Names an open file or directory stream towards the guest: the `fh` of FUSE.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct HandleId(pub u64);
