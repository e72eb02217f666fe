//! What the operator settled about the shared tree, as plain data.

use std::fmt;
use std::sync::Arc;
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

/// Whether inodes are held by file handles.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum InodeFileHandles {
    /// No: by descriptors.
    #[default]
    Never,
    /// Yes, where the file system has some.
    Prefer,
    /// Yes; a file system that has none is not served.
    Mandatory,
}

/// The settings of the file system.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// How far the guest may trust its cache.
    pub cache: CachePolicy,
    /// For how long the guest may trust that a name does not exist.
    pub negative_timeout: Duration,
    /// Whether the guest may list directories without opening them.
    pub no_opendir: bool,
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
    /// The rules about their names, the first that fits first; every name meets
    /// one. `None` leaves the names alone.
    pub xattr_map: Option<Arc<[XattrRule]>>,
    /// Whether access control lists are served.
    pub posix_acl: Wanted,
    /// Whether what is made gets the guest's security label.
    pub security_label: Wanted,
    /// Whether the host drops set-id bits and capabilities of files that change,
    /// so that the guest need not look for them.
    pub killpriv_v2: bool,
    /// Whether record locks (`fcntl(2)`) are locks of the host.
    pub posix_lock: bool,
    /// Whether locks of whole files (`flock(2)`) are locks of the host.
    pub flock: bool,
    /// Whether `O_NOATIME` of the guest reaches the host.
    pub preserve_noatime: bool,
    /// Whether mounts below the shared directory are mounts in the guest.
    pub announce_submounts: bool,
    /// Whether inodes are held by file handles.
    pub inode_file_handles: InodeFileHandles,
    /// What becomes of user ids between guest and host.
    pub translate_uid: Vec<Translation>,
    /// The same for group ids.
    pub translate_gid: Vec<Translation>,
}

/// What becomes of a range of ids between guest and host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Translation {
    /// `count` guest ids from `from` on become host ids from `to` on.
    Guest(Range),
    /// `count` host ids become guest ids.
    Host(Range),
    /// Both ways; `from` is the guest's.
    Map(Range),
    /// `count` guest ids all become the host id `to`.
    SquashGuest(Range),
    /// `count` host ids all become the guest id `to`.
    SquashHost(Range),
    /// `count` guest ids from `from` on may not be used.
    ForbidGuest {
        /// The first of them.
        from: u32,
        /// How many.
        count: u32,
    },
}

/// `count` ids from `from` on, and where they lead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// The first source id.
    pub from: u32,
    /// The first, or only, target id.
    pub to: u32,
    /// How many source ids.
    pub count: u32,
}

/// As it stands on the command line.
impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, Range { from, to, count }) = match *self {
            Self::Guest(range) => ("guest", range),
            Self::Host(range) => ("host", range),
            Self::Map(range) => ("map", range),
            Self::SquashGuest(range) => ("squash-guest", range),
            Self::SquashHost(range) => ("squash-host", range),
            Self::ForbidGuest { from, count } => return write!(f, "forbid-guest:{from}:{count}"),
        };
        write!(f, "{kind}:{from}:{to}:{count}")
    }
}

/// Whether the guest is to have a feature that its kernel may lack.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Wanted {
    /// It is not offered.
    #[default]
    No,
    /// It is used where the guest has it.
    IfOffered,
    /// A guest without it cannot mount.
    Always,
}

/// One rule about the names of extended attributes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct XattrRule {
    /// What the rule does.
    pub kind: XattrRuleKind,
    /// Whose names it looks at.
    pub scope: XattrScope,
    /// The beginning of the guest's names that it is about.
    pub key: Vec<u8>,
    /// The beginning of the host's names that it is about.
    pub prepend: Vec<u8>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XattrRuleKind {
    /// Puts `prepend` in front for the host, takes it away for the guest.
    Prefix,
    /// Passes the name on as it is.
    Ok,
    /// Refuses or hides the name.
    Bad,
    /// Says that such names are not supported, or hides them.
    Unsupported,
}

/// Whose names a rule looks at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XattrScope {
    /// Those that the guest sends.
    Client,
    /// Those that the host lists.
    Server,
    /// Both.
    All,
}

impl XattrRule {
    /// Whether it looks at names that the guest sends.
    pub fn is_for_guest(&self) -> bool {
        self.scope != XattrScope::Server
    }

    /// Whether it looks at names that the host lists.
    pub fn is_for_host(&self) -> bool {
        self.scope != XattrScope::Client
    }
}

/// How the other side of a migration finds the guest's files again.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum FindBy {
    /// By their paths.
    #[default]
    Path,
    /// By their file handles.
    Handle,
}

/// What happens to files that are not found again.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WhenLost {
    /// The migration fails.
    #[default]
    Abort,
    /// The guest meets an error when it uses them.
    GuestError,
}

/// The settings of migration.
#[derive(Clone, Debug, Default)]
pub struct MigrationConfig {
    /// How the files are found again.
    pub find_by: FindBy,
    /// What happens to those that are not.
    pub when_lost: WhenLost,
    /// Whether the other side is to compare file handles.
    pub verify_handles: bool,
    /// Whether each path is looked at once more at the end.
    pub confirm_paths: bool,
    /// Whether this side opens files for reading only.
    pub read_only: bool,
}
