//! The host side: a directory tree of the host, served as it is.
//!
//! A node that the guest holds is a file handle, an `O_PATH` descriptor or a name in
//! another node (`inodes`). Names are only ever resolved one at a time beneath a
//! descriptor, so a path that the guest could redirect does not exist. What runs on behalf of a guest's user is done as
//! that user (`credentials`); the guest's own kernel has checked permissions
//! before it asks.

mod attributes;
mod features;
mod files;
mod inodes;
mod migrate;
mod names;
mod stat;
mod tracker;
mod users;

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{CWD, Mode, OFlags, readlinkat};

use crate::config::{Config, InodeFileHandles, Wanted};
use crate::fs::{self, Result, Usage};
use crate::fuse::flags::init;
use crate::id::NodeId;
use crate::sys::cpath::FdName;
use crate::sys::shared_fd::SharedFd;
use crate::sys::thread::{self, Masked};
use attributes::xattr_map::XattrMap;
use attributes::{Xattrs, xattr};
use files::Files;
use inodes::Inodes;
use inodes::directory_cache::RecentDirectories;
use inodes::fd_budget::FdBudget;
use inodes::file_systems::Kind;
use inodes::identity;
use inodes::inode::Held;
use inodes::mounts::Mounts;
use inodes::store::InodeStore;
use tracker::Tracking;
use users::credentials::Credentials;
use users::{Users, privileges};

pub use inodes::identity::InodeKey;
pub use inodes::inode::{Inode, Node};
pub use inodes::mounts::try_file_handles;
pub use migrate::{Identity, OpenHandle, identify, identify_at, leads_to};
pub use tracker::Tracker;
pub use users::id_map::IdMaps;

/// A directory tree of the host.
#[derive(Debug)]
pub struct Passthrough {
    config: Config,
    users: Users,
    inodes: Inodes,
    files: Arc<Files>,
    xattrs: Xattrs,
    /// What INIT settled: bits of `fuse::flags::init`.
    features: AtomicU64,
    /// Who is told of names while a migration is prepared.
    tracking: Tracking,
}

impl Passthrough {
    /// Serves the tree below `shared_dir`, holding at most `fd_budget`
    /// descriptors for the guest. `proc_self_fd` is `/proc/self/fd` of this
    /// process, wherever that may be.
    ///
    /// Sets the umask of the process to 0: the guest's kernel applies the mask
    /// of the process that creates something.
    ///
    /// # Errors
    /// When the directory cannot be opened, or ids cannot be translated so.
    pub fn new(
        shared_dir: &Path,
        proc_self_fd: OwnedFd,
        config: Config,
        fd_budget: usize,
    ) -> anyhow::Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, shared_dir, flags | OFlags::DIRECTORY, Mode::empty())
            .with_context(|| {
                format!("cannot open the shared directory {}", shared_dir.display())
            })?;
        let credentials =
            Credentials::current().context("cannot read the credentials of this process")?;
        let found = identity::identify(root.as_fd()).with_context(|| {
            format!(
                "cannot read the attributes of the shared directory {}",
                shared_dir.display()
            )
        })?;
        let ids = IdMaps::new(&config)?;
        if config.posix_lock || config.flock {
            crate::sys::thread::allow_interrupts();
        }
        let shares = Shares::of(fd_budget, config.inode_file_handles);
        let budget = FdBudget::new(shares.guest);
        let mounts = Mounts::new(config.inode_file_handles);
        let mount = rustix::io::fcntl_dupfd_cloexec(&root, 0)
            .and_then(|copy| mounts.open(copy, &proc_self_fd))
            .context("cannot tell what file system the shared directory is on")?;
        let root = Inode {
            id: NodeId::ROOT,
            identity: found.identity,
            mount,
            held: Held::Path(SharedFd::new(root).context("too many descriptors are open")?),
        };
        rustix::process::umask(Mode::empty());
        let xattr_names = XattrMap::new(config.xattr_map.clone());
        if config.posix_acl != Wanted::No {
            crate::sys::thread::settle_in_alone(&proc_self_fd).context(
                "--posix-acl needs threads that have umasks of their own; let the container's \
                 seccomp profile allow unshare(CLONE_FS), or leave the option out",
            )?;
            xattr::warn_about_renamed_lists(&xattr_names);
        }
        let handles = config.inode_file_handles;
        let files = Arc::new(Files::new());
        Ok(Self {
            xattrs: Xattrs {
                renamed_capability: privileges::renamed_capability(&xattr_names),
                names: xattr_names,
            },
            config,
            users: Users { credentials, ids },
            inodes: Inodes {
                store: InodeStore::new(root, Arc::clone(&budget), shares.paths),
                mounts,
                recent: RecentDirectories::new(shares.recent),
                budget,
                proc_self_fd,
                handles,
                open_files: files.clone(),
            },
            files,
            features: AtomicU64::new(0),
            tracking: Tracking::default(),
        })
    }

    /// `/proc/self/fd`, which a serving thread makes its working directory.
    pub fn proc_self_fd(&self) -> BorrowedFd<'_> {
        self.inodes.proc_self_fd()
    }

    /// Applies the umask of a process in the guest until the guard drops, if the
    /// guest leaves that to us: the host does not apply it below a directory that has
    /// a default access control list.
    fn masked_by(&self, umask: u32) -> Result<Option<Masked>> {
        let umask = Mode::from_raw_mode(umask & 0o777);
        if umask.is_empty() || !self.has(init::DONT_MASK) {
            return Ok(None);
        }
        thread::mask(self.inodes.proc_self_fd(), umask).map(Some)
    }

    /// Whether INIT settled a feature.
    fn has(&self, feature: u64) -> bool {
        self.features.load(Ordering::Relaxed) & feature != 0
    }

    /// For how long the guest may trust names and attributes.
    fn timeout(&self) -> Duration {
        self.config.cache.timeout()
    }
}

/// How many descriptors may be held for what.
#[derive(Debug)]
struct Shares {
    /// For the guest's open files, and for inodes.
    guest: usize,
    /// For inodes that are held by descriptors, at most.
    paths: usize,
    /// For directories that are held by handles and were used lately.
    recent: usize,
}

impl Shares {
    fn of(total: usize, handles: InodeFileHandles) -> Self {
        let recent = match handles {
            InodeFileHandles::Never => 0,
            InodeFileHandles::Prefer | InodeFileHandles::Mandatory => (total / 8).min(MAX_RECENT),
        };
        // One is for the root.
        let guest = total.saturating_sub(recent + 1);
        Self {
            guest,
            paths: guest - guest / 4,
            recent,
        }
    }
}

/// Covers the directories that are in use at once in typical tree walks.
const MAX_RECENT: usize = 256;

impl fs::FileSystem for Passthrough {}

impl fs::Session for Passthrough {
    fn wanted_features(&self, offered: u64) -> u64 {
        features::wanted(&self.config, offered)
    }

    fn negative_timeout(&self) -> Duration {
        self.config.negative_timeout
    }

    fn start(&self, agreed: u64) -> Result<()> {
        features::check(&self.config, agreed)?;
        if self.config.announce_submounts && agreed & init::SUBMOUNTS == 0 {
            // This line has no log prefix: management software knows it so.
            // Once is enough.
            static WARNED: Once = Once::new();
            WARNED.call_once(|| {
                crate::sys::stderr::write_plain_line(
                    b"Warning: Cannot announce submounts, client does not support it\n",
                );
            });
        }
        self.features.store(agreed, Ordering::Relaxed);
        Ok(())
    }

    fn stop(&self) {
        self.files.clear();
        self.inodes.clear();
        self.features.store(0, Ordering::Relaxed);
    }

    fn usage(&self) -> Usage {
        let (descriptors, descriptor_limit) = self.inodes.budget.usage();
        Usage {
            inodes: self.inodes.store.count(),
            handles: self.files.handles.count(),
            descriptors,
            descriptor_limit,
        }
    }

    fn path_of(&self, node: NodeId) -> Option<PathBuf> {
        let node = self.inodes.node(node).ok()?;
        let name = FdName::of(node.as_fd());
        let path = readlinkat(self.inodes.proc_self_fd(), name.as_c_str(), Vec::new()).ok()?;
        Some(OsString::from_vec(path.into_bytes()).into())
    }

    fn pins_memory(&self) -> bool {
        self.files.direct_io.load(Ordering::Relaxed) > 0
    }

    fn is_slow(&self, node: NodeId) -> bool {
        self.inodes.mounts.any_is_served()
            && self
                .inodes
                .inode(node)
                .is_ok_and(|inode| inode.mount().kind().is_served())
    }

    fn is_in_memory(&self, node: NodeId) -> bool {
        self.inodes
            .inode(node)
            .is_ok_and(|inode| inode.mount().kind() == Kind::Memory)
    }
}
