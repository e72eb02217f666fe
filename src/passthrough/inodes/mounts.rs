//! The mounts that inodes are on, and a descriptor of each through which file
//! handles are opened.
//!
//! A mount is known for as long as an inode on it is, and held by a descriptor; it
//! is closed with the last one, so that the host can unmount what the guest has
//! left.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::config::InodeFileHandles;
use crate::fs::Result;
use crate::passthrough::inodes::file_systems::Kind;
use crate::passthrough::inodes::identity::{
    BIRTHS_DIFFER, Found, Identity, InodeKey, identify, identify_name, identify_name_at_hand,
};
use crate::sys::clock::Nanoseconds;
use crate::sys::cpath::FdName;
use crate::sys::file_handle::{name_to_handle, open_by_handle};
use crate::sys::sync::lock;

/// File systems where the time of a file's birth is the host's own and never
/// changes: ext2 to ext4, XFS, F2FS, Btrfs, tmpfs (`statfs(2)`, `f_type`).
const TRUE_BIRTH: [u64; 5] = [0xef53, 0x5846_5342, 0xf2f5_2010, 0x9123_683e, 0x0102_1994];

/// FUSE itself: its handles are good only for as long as the host's kernel
/// remembers the inode.
const FUSE: u64 = 0x6573_5546;

/// A mount, or a subvolume, which has a device number of its own on the mount
/// that it shares with others.
#[derive(Debug)]
pub struct Mount {
    device: u64,
    id: u64,
    kind: Kind,
    knows_birth: bool,
    handles: Option<Arc<OwnedFd>>,
    /// Something on it, where handles are not opened through it: while one of the
    /// two is open the host gives its numbers to no other mount. Only a subvolume's
    /// may be given to another on the same mount, which differs in nothing that is
    /// known here; its inodes have birth times and handles.
    pin: Option<Pin>,
}

/// What holds a mount.
#[derive(Debug)]
enum Pin {
    /// A directory or file that is open for reading.
    Open(OwnedFd),
    /// Its path, where it may not be read.
    Path { _path: OwnedFd },
}

impl Mount {
    /// Whether from now on a file of this number and birth time is this one
    /// for sure. It existed after we asked, so that another one with its number
    /// is born later; and it was born so long before that "later" shows.
    pub(in crate::passthrough) fn is_settled(&self, found: &Found) -> bool {
        let is_older = |born| {
            born < found
                .asked
                .saturating_sub(BIRTHS_DIFFER.as_nanos() as Nanoseconds)
        };
        self.knows_birth() && found.identity.born.is_some_and(is_older)
    }

    /// Identifies a name in a directory of this mount. Where a mount of a server lies
    /// over the name, and this file system needs none, nobody is asked.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub(in crate::passthrough) fn identify_name(
        &self,
        parent: impl AsFd,
        name: &CStr,
    ) -> Result<Found> {
        if self.is_local() {
            identify_name_at_hand(parent, name)
        } else {
            identify_name(parent, name)
        }
    }

    /// A mount of a file system of `statfs(2)`'s type `file_system`; file handles
    /// are opened through `handles`, if it has any.
    pub fn new(device: u64, id: u64, file_system: u64, handles: Option<Arc<OwnedFd>>) -> Self {
        Self {
            device,
            id,
            kind: Kind::of(device, file_system),
            knows_birth: TRUE_BIRTH.contains(&file_system),
            handles,
            pin: None,
        }
    }

    fn pinned_by(self, pin: Pin) -> Self {
        Self {
            pin: Some(pin),
            ..self
        }
    }

    /// Something on it that is open for more than its path, if it may be: `syncfs(2)`
    /// by it hears of every error since the mount became known, also of one that
    /// somebody else has heard of first.
    pub fn open_file(&self) -> Option<BorrowedFd<'_>> {
        match &self.pin {
            Some(Pin::Open(file)) => Some(file.as_fd()),
            Some(Pin::Path { .. }) => None,
            None => self.handles(),
        }
    }

    /// Whether the host may keep back what was written and another host, which sees
    /// the same files, does not have it yet.
    pub fn keeps_back(&self) -> bool {
        match self.kind {
            Kind::Served | Kind::Nfs => true,
            Kind::Other => !self.knows_birth,
            Kind::Local | Kind::Memory => false,
        }
    }

    /// Device number of the file system.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// The kernel's number of the mount.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// A descriptor through which file handles are opened, if inodes on this
    /// mount are held by them.
    pub fn handles(&self) -> Option<BorrowedFd<'_>> {
        self.handles.as_deref().map(AsFd::as_fd)
    }

    /// What matters about its file system.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether all that is known of its files is known to this host: to ask for it
    /// never means to ask a server.
    pub fn is_local(&self) -> bool {
        self.knows_birth
    }

    /// Whether a file's birth time can be taken for a fact.
    pub fn knows_birth(&self) -> bool {
        self.knows_birth
    }
}

/// The mounts of a session.
#[derive(Debug)]
pub struct Mounts {
    wanted: InodeFileHandles,
    known: Mutex<HashMap<(u64, u64), Weak<Mount>>>,
    /// Devices of which the log says that they have no file handles.
    without_handles: Mutex<HashSet<u64>>,
    /// Whether one of them is on a server: usually none is, and nothing has to be
    /// looked up.
    any_served: AtomicBool,
}

impl Mounts {
    /// No mounts, whose inodes are going to be held so.
    pub fn new(wanted: InodeFileHandles) -> Self {
        Self {
            wanted,
            known: Mutex::default(),
            without_handles: Mutex::default(),
            any_served: AtomicBool::new(false),
        }
    }

    /// A mount that some inode is on.
    pub fn find(&self, device: u64, id: u64) -> Option<Arc<Mount>> {
        lock(&self.known).get(&(device, id))?.upgrade()
    }

    /// Makes the mount known that a file is on; `proc_self_fd` is
    /// `/proc/self/fd`.
    ///
    /// # Errors
    /// Those of the calls that look at it; where it has no file handles and must
    /// have some, that of `name_to_handle_at(2)` or `open_by_handle_at(2)`.
    pub fn open(&self, file: OwnedFd, proc_self_fd: &OwnedFd) -> Result<Arc<Mount>> {
        let found = identify(file.as_fd())?.identity;
        let kind = rustix::fs::fstatfs(&file)?.f_type as u64;
        let handles = self
            .try_handles(&found, kind, &file, proc_self_fd)
            .or_else(|errno| self.without_handles(&found, &file, proc_self_fd, errno))?;
        let InodeKey { device, mount, .. } = found.key;
        let has_handles = handles.is_some();
        let mount = Mount::new(device, mount, kind, handles);
        if has_handles {
            return Ok(self.add(mount));
        }
        let name = FdName::of(file.as_fd());
        let open = |flags: OFlags| {
            let flags = flags | OFlags::CLOEXEC;
            rustix::fs::openat(proc_self_fd, name.as_c_str(), flags, Mode::empty())
        };
        let is_opened = matches!(found.kind, FileType::Directory | FileType::RegularFile);
        let opened = is_opened.then(|| open(OFlags::RDONLY | OFlags::NONBLOCK));
        let pin = match opened {
            Some(Ok(file)) => Pin::Open(file),
            _ => Pin::Path {
                _path: open(OFlags::PATH)?,
            },
        };
        Ok(self.add(mount.pinned_by(pin)))
    }

    /// The mounts that inodes are on.
    pub fn all(&self) -> Vec<Arc<Mount>> {
        lock(&self.known)
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// A descriptor through which the handles of a mount are opened, having
    /// tried it; `None` where they are not wanted.
    fn try_handles(
        &self,
        found: &Identity,
        kind: u64,
        file: &OwnedFd,
        proc_self_fd: &OwnedFd,
    ) -> Result<Option<Arc<OwnedFd>>> {
        match self.wanted {
            InodeFileHandles::Never => return Ok(None),
            InodeFileHandles::Prefer if kind == FUSE => return Err(Errno::OPNOTSUPP),
            InodeFileHandles::Prefer | InodeFileHandles::Mandatory => {}
        }
        if let Some(handles) = self.handles_of(found.key.mount) {
            return Ok(Some(handles));
        }
        let (handle, _) = name_to_handle(file, c"")?;
        // It has to be open for more than its path. What is found first on a
        // mount is its root.
        let flags = match found.kind {
            FileType::Directory => OFlags::DIRECTORY,
            FileType::RegularFile => OFlags::NONBLOCK,
            _ => return Err(Errno::OPNOTSUPP),
        };
        let name = FdName::of(file.as_fd());
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        let through = rustix::fs::openat(proc_self_fd, name.as_c_str(), flags, Mode::empty())?;
        open_by_handle(&through, &handle, OFlags::PATH | OFlags::NOFOLLOW)?;
        Ok(Some(Arc::new(through)))
    }

    /// Goes on without handles on this mount, unless that is forbidden.
    fn without_handles(
        &self,
        found: &Identity,
        file: &OwnedFd,
        proc_self_fd: &OwnedFd,
        errno: Errno,
    ) -> Result<Option<Arc<OwnedFd>>> {
        let mandatory = self.wanted == InodeFileHandles::Mandatory;
        if lock(&self.without_handles).insert(found.key.device) {
            let path = path_name(file, proc_self_fd);
            if mandatory {
                log::error!(
                    "the file system at {path} has no file handles ({errno}), which \
                     --inode-file-handles=mandatory asks for: it is not served"
                );
            } else {
                log::warn!(
                    "the file system at {path} has no file handles ({errno}): its inodes are \
                     held by descriptors"
                );
            }
        }
        if mandatory { Err(errno) } else { Ok(None) }
    }

    /// Whether any of them is on a server.
    pub fn any_is_served(&self) -> bool {
        self.any_served.load(Ordering::Relaxed)
    }

    /// The descriptor of a mount that has others of its subvolumes on it.
    fn handles_of(&self, id: u64) -> Option<Arc<OwnedFd>> {
        let known = lock(&self.known);
        let mut mounts = known.values().filter_map(Weak::upgrade);
        mounts.find(|mount| mount.id == id)?.handles.clone()
    }

    /// Makes a mount known, unless another thread was first.
    fn add(&self, mount: Mount) -> Arc<Mount> {
        if mount.kind.is_served() {
            self.any_served.store(true, Ordering::Relaxed);
        }
        let mut known = lock(&self.known);
        let key = (mount.device, mount.id);
        if let Some(first) = known.get(&key).and_then(Weak::upgrade) {
            return first;
        }
        known.retain(|_, mount| mount.strong_count() > 0);
        let mount = Arc::new(mount);
        known.insert(key, Arc::downgrade(&mount));
        mount
    }
}

/// Where an open file lies, for the log.
fn path_name(file: &OwnedFd, proc_self_fd: &OwnedFd) -> String {
    let name = FdName::of(file.as_fd());
    rustix::fs::readlinkat(proc_self_fd, name.as_c_str(), Vec::new()).map_or_else(
        |_| "an unknown place".to_owned(),
        |path| path.to_string_lossy().into_owned(),
    )
}

/// Whether file handles can be used where the shared directory is: whether its
/// file system has some and this process may open them.
///
/// # Errors
/// That of the call that failed.
pub fn try_file_handles(shared_dir: &std::path::Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(shared_dir, flags, Mode::empty())?;
    let (handle, _) = name_to_handle(&root, c"")?;
    open_by_handle(&root, &handle, OFlags::PATH).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Arc<OwnedFd> {
        Arc::new(std::fs::File::open("/").unwrap().into())
    }

    #[test]
    fn a_mount_and_its_descriptor_live_as_long_as_its_inodes() {
        let mounts = Mounts::new(InodeFileHandles::Prefer);
        let fd = open();
        let first = mounts.add(Mount::new(1, 7, 0, Some(Arc::clone(&fd))));
        let again = mounts.add(Mount::new(1, 7, 0, Some(open())));
        assert!(Arc::ptr_eq(&first, &again));
        let shared = mounts.handles_of(7);
        let subvolume = mounts.add(Mount::new(2, 7, 0, shared));
        assert!(!Arc::ptr_eq(&first, &subvolume));
        assert_eq!(Arc::strong_count(&fd), 3);
        drop((first, again));
        assert!(mounts.find(1, 7).is_none());
        assert!(mounts.find(2, 7).is_some());
        drop(subvolume);
        assert_eq!(Arc::strong_count(&fd), 1);
        assert!(mounts.handles_of(7).is_none());
    }
}
