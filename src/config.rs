//! What the operator settled about the shared tree, as plain data.

use std::time::Duration;

/// How far the guest may trust what it has cached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CachePolicy {
    /// Nothing is cached.
    Never,
    /// Names and attributes are cached, data is not.
    Metadata,
    /// Names and attributes for a second, data until the file changes.
    #[default]
    Auto,
    /// Everything, for as long as the guest likes: it must own the tree.
    Always,
}

impl CachePolicy {
    /// For how long names and attributes hold.
    pub fn timeout(self) -> Duration {
        match self {
            Self::Never => Duration::ZERO,
            Self::Auto => Duration::from_secs(1),
            Self::Metadata | Self::Always => Duration::from_secs(86400),
        }
    }
}

/// The settings of the file system.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// How far the guest may trust its cache.
    pub cache: CachePolicy,
    /// Whether the guest may gather writes in its page cache.
    pub writeback: bool,
    /// Whether `O_DIRECT` of the guest reaches the host.
    pub allow_direct_io: bool,
    /// Whether files that bypass the guest's cache may be mapped shared.
    pub allow_mmap: bool,
    /// Whether READDIRPLUS is offered.
    pub readdirplus: bool,
    /// Whether extended attributes are served.
    pub xattr: bool,
    /// Whether `O_NOATIME` of the guest reaches the host.
    pub preserve_noatime: bool,
    /// Whether mounts below the shared directory are mounts in the guest.
    pub announce_submounts: bool,
}
