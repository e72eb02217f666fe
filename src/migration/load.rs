//! From a checked stream to what the guest holds.
//!
//! Names are resolved one at a time beneath what was opened before, without
//! following a link, so nothing that the stream says leads out of the shared
//! directory. A file handle could lead anywhere on its file system: it is believed
//! only once a name below the shared directory was found to lead to the same file,
//! and what the guest then gets is what that name leads to. A removed file has no
//! name that could prove it, so one is taken only where the operator trusts the
//! stream with that (`--migration-mode=file-handles`).

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::locate::{Extras, Locator};
use super::saved::{Place, Saved, SavedNode};
use super::walk::walk;
use super::wire::{self, FileHandle, Negotiated};
use crate::config::{FindBy, MigrationConfig, WhenLost};
use crate::fs::Session as _;
use crate::fuse::flags::init as features;
use crate::id::NodeId;
use crate::passthrough::{Node, OpenHandle, Passthrough, identify};
use crate::sys::file_handle::{self, name_to_handle, open_by_handle};

/// Of so many lost nodes the log tells the paths.
const MOST_DESCRIBED: usize = 10;

/// How names are opened that only mark a place.
const PATH_ONLY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is being restored, and what that needs.
struct Restore<'a> {
    fs: &'a Passthrough,
    saved: &'a Saved<'a>,
    locator: Locator<'a>,
    /// Nodes that only others' paths need.
    extras: HashMap<NodeId, OwnedFd>,
    /// The directory that was last looked into.
    last_parent: Option<(NodeId, Node)>,
    /// A descriptor on each mount of the source.
    mounts: HashMap<u64, Result<OwnedFd, Errno>>,
    /// Where the files of handles are, of which the kernel shows no path. They are
    /// looked for when the first is met, all at once.
    walked: Option<HashMap<NodeId, Vec<u8>>>,
    removed: Removed,
    stop: &'a AtomicBool,
}

/// Whether a removed file may be held by its handle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Removed {
    Allowed,
    Refused,
}

/// Restores a stream in place of what is there; gives the features of its
/// session.
///
/// # Errors
/// A sentence for the operator; nothing is held then.
pub fn load(
    fs: &Passthrough,
    config: &MigrationConfig,
    stream: &[u8],
    stop: &AtomicBool,
) -> anyhow::Result<u64> {
    let state = wire::decode(stream)
        .map_err(|error| anyhow!("the stream is no state of a virtiofsd: {error}"))?
        .into_v3();
    let saved = Saved::check(&state.v2).context("the stream contradicts itself")?;
    let wanted = fs.wanted_features(u64::MAX);
    let features = agreed_features(wanted, saved.negotiated, state.no_opendir)?;
    fs.stop();
    if let Err(error) = restore(fs, config, &saved, stop) {
        fs.stop();
        return Err(error);
    }
    fs.restore_session(saved.next_node, saved.next_handle, features);
    Ok(features)
}

/// What is settled together with access control lists.
const ACCESS_LISTS: u64 = features::POSIX_ACL | features::DONT_MASK | features::SETXATTR_EXT;

/// The features that the source has settled with the guest, as far as they matter
/// here.
fn agreed_features(wanted: u64, negotiated: Negotiated, no_opendir: bool) -> anyhow::Result<u64> {
    let mut agreed = wanted;
    for (settled, feature, option) in [
        (
            negotiated.writeback,
            features::WRITEBACK_CACHE,
            "--writeback",
        ),
        (
            negotiated.announce_submounts,
            features::SUBMOUNTS,
            "--announce-submounts",
        ),
        (negotiated.posix_acl, ACCESS_LISTS, "--posix-acl"),
        (no_opendir, features::NO_OPENDIR, "--no-opendir"),
    ] {
        ensure!(
            !settled || wanted & feature != 0,
            "the guest relies on {option}, with which the source was started; \
             start this side with it"
        );
        if !settled {
            agreed &= !feature;
        }
    }
    if !negotiated.sup_group_extension {
        agreed &= !features::CREATE_SUPP_GROUP;
    }
    Ok(agreed)
}

fn restore(
    fs: &Passthrough,
    config: &MigrationConfig,
    saved: &Saved<'_>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut restore = Restore {
        fs,
        saved,
        locator: Locator::new(fs, Extras::None)
            .context("cannot read the path of the shared directory in /proc/self/fd")?,
        extras: HashMap::new(),
        last_parent: None,
        mounts: HashMap::new(),
        walked: None,
        removed: match config.find_by {
            FindBy::Handle => Removed::Allowed,
            _ => Removed::Refused,
        },
        stop,
    };
    restore.check_root()?;
    let open: HashSet<NodeId> = saved.handles.iter().map(|handle| handle.node).collect();
    let mut lost = 0;
    for node in &saved.nodes {
        if stop.load(Ordering::Relaxed) {
            bail!("it was cancelled");
        }
        let Err(error) = restore.node(node) else {
            continue;
        };
        // It was removed before or meanwhile, and nobody has it open: the guest has
        // only to forget it.
        let is_gone = matches!(node.place, Place::ByHandle(_))
            && error.downcast_ref() == Some(&Errno::STALE)
            && !open.contains(&node.id);
        if is_gone {
            continue;
        }
        // To describe one takes a look at all of them.
        let describe = || format!("cannot find {} again", restore.describe(node));
        if config.when_lost == WhenLost::Abort {
            return Err(error.context(describe()).context(
                "a file of the guest is lost; start with \
                 --migration-on-error=guest-error to go on without it",
            ));
        }
        if lost < MOST_DESCRIBED {
            log::debug!("{:#}", error.context(describe()));
        }
        lost += 1;
    }
    restore.handles(config)?;
    if lost > 0 {
        log::warn!("{lost} inodes could not be found; the guest will get errors for them");
    }
    Ok(())
}

impl Restore<'_> {
    /// Whether the shared directory is the source's, if that is to be looked at.
    fn check_root(&self) -> anyhow::Result<()> {
        let Some(expected) = &self.saved.root_handle else {
            return Ok(());
        };
        let root = self.fs.held_node(NodeId::ROOT)?;
        is_same(root.as_fd(), expected)
            .context("the shared directory is not the one that the source shares")
    }

    /// Finds one node and holds it.
    fn node(&mut self, node: &SavedNode<'_>) -> anyhow::Result<()> {
        let fd = self.open(node)?;
        if let Some(expected) = &node.handle {
            is_same(fd.as_fd(), expected)?;
        }
        if node.lookups == 0 {
            self.extras.insert(node.id, fd);
            return Ok(());
        }
        let place = match &node.place {
            Place::In { parent, name } => Some((*parent, CString::new(*name)?)),
            _ => None,
        };
        let place = place.as_ref().map(|(parent, name)| (*parent, &**name));
        match self.fs.restore_node(node.id, node.lookups, fd, place) {
            Err(Errno::EXIST) => bail!("another of the guest's inodes is the same file"),
            result => Ok(result?),
        }
    }

    fn open(&mut self, node: &SavedNode<'_>) -> anyhow::Result<OwnedFd> {
        match &node.place {
            Place::In { parent, name } => self.open_in(*parent, name),
            Place::Below(path) => self.open_below(path.as_bytes()),
            Place::ByHandle(handle) => self.open_proven(node.id, handle),
            Place::Lost => bail!("the source could not tell where it is"),
        }
    }

    fn open_in(&mut self, parent: NodeId, name: &str) -> anyhow::Result<OwnedFd> {
        if let Some(extra) = self.extras.get(&parent) {
            return Ok(rustix::fs::openat(extra, name, PATH_ONLY, Mode::empty())?);
        }
        let parent = match &self.last_parent {
            Some((id, node)) if *id == parent => node,
            _ => {
                let node = self.fs.held_node(parent);
                let node = node.map_err(|_| anyhow!("its directory was not found"))?;
                &self.last_parent.insert((parent, node)).1
            }
        };
        Ok(rustix::fs::openat(parent, name, PATH_ONLY, Mode::empty())?)
    }

    fn open_below(&self, path: &[u8]) -> anyhow::Result<OwnedFd> {
        let mut at = self
            .fs
            .held_node(NodeId::ROOT)?
            .as_fd()
            .try_clone_to_owned()?;
        for name in path.split(|byte| *byte == b'/') {
            if name.is_empty() {
                continue;
            }
            at = rustix::fs::openat(&at, name, PATH_ONLY, Mode::empty())?;
        }
        Ok(at)
    }

    /// Opens the file of a handle by a name below the shared directory, or refuses it.
    fn open_proven(&mut self, id: NodeId, handle: &FileHandle<'_>) -> anyhow::Result<OwnedFd> {
        let fd = self.open_by_handle(handle)?;
        let found = identify(&fd)?;
        if found.names == 0 {
            ensure!(
                self.removed == Removed::Allowed,
                anyhow!(Errno::STALE).context(
                    "it was removed, so nothing shows that it was below the shared directory; \
                     start with --migration-mode=file-handles to trust the stream with that"
                )
            );
            return Ok(fd);
        }
        let is_it = |below: &OwnedFd| {
            let is_same_file = identify(below).is_ok_and(|below| below.key == found.key);
            is_same_file && is_same(below.as_fd(), handle).is_ok()
        };
        let shown = self.locator.below_root(fd.as_fd());
        if let Some(below) = shown
            .and_then(|path| self.open_below(&path).ok())
            .filter(is_it)
        {
            return Ok(below);
        }
        if self.walked.is_none() {
            self.walked = Some(self.look_for_all()?);
        }
        let walked = self.walked.as_ref().and_then(|walked| walked.get(&id));
        walked
            .and_then(|path| self.open_below(path).ok())
            .filter(is_it)
            .context("its file handle leads to no file below the shared directory")
    }

    /// Walks through the shared directory for the files of handles of which the
    /// kernel shows no path, which it does not for what nobody has looked up yet.
    fn look_for_all(&mut self) -> anyhow::Result<HashMap<NodeId, Vec<u8>>> {
        let saved = self.saved;
        let mut wanted = HashMap::new();
        for node in &saved.nodes {
            if let Place::ByHandle(handle) = &node.place
                && let Ok(found) = self
                    .open_by_handle(handle)
                    .and_then(|fd| Ok(identify(&fd)?))
                && found.names > 0
            {
                wanted.insert(found.key, node.id);
            }
        }
        let mut walked = HashMap::new();
        walk(self.fs, wanted, self.stop, |id, path| {
            walked.insert(id, path.to_vec());
        });
        if self.stop.load(Ordering::Relaxed) {
            bail!("it was cancelled");
        }
        Ok(walked)
    }

    /// Opens the file of a handle, which may lie outside of the shared directory.
    fn open_by_handle(&mut self, handle: &FileHandle<'_>) -> anyhow::Result<OwnedFd> {
        if !self.mounts.contains_key(&handle.mnt_id) {
            let mount = self.open_mount(handle.mnt_id);
            self.mounts.insert(handle.mnt_id, mount);
        }
        let mount = match self.mounts.get(&handle.mnt_id) {
            Some(Ok(mount)) => mount,
            _ => bail!("the mount {} was not found", handle.mnt_id),
        };
        let inner = file_handle::FileHandle::new(handle.handle_type, &handle.handle)
            .context("the file handle is of an unknown kind")?;
        match open_by_handle(mount, &inner, PATH_ONLY) {
            Err(Errno::PERM) => bail!(
                "this side must not open file handles; \
                 let it keep the capability dac_read_search"
            ),
            result => Ok(result?),
        }
    }

    /// Something on a mount of the source, open for more than its path.
    fn open_mount(&self, mount: u64) -> Result<OwnedFd, Errno> {
        let path = self.saved.mount_paths.get(&mount).ok_or(Errno::NOENT)?;
        let place = self.open_below(path.as_bytes()).map_err(|_| Errno::NOENT)?;
        self.fs.open_again(place.as_fd())
    }

    /// Opens what the guest has open.
    fn handles(&self, config: &MigrationConfig) -> anyhow::Result<()> {
        let refused = match config.read_only {
            true => OFlags::ACCMODE,
            false => OFlags::empty(),
        };
        let mut refused_again = 0;
        for handle in &self.saved.handles {
            let open = OpenHandle {
                id: handle.id,
                node: handle.node,
                flags: handle.flags - refused,
            };
            if let Err(errno) = self.fs.restore_handle(&open) {
                let error = anyhow!(errno).context(format!(
                    "cannot open inode {} again for handle {}",
                    handle.node.0, handle.id.0
                ));
                // Its owner has taken the right away since it was opened, which no
                // option can give back: the rest of the guest is worth more.
                if matches!(errno, Errno::ACCESS | Errno::PERM) {
                    refused_again += 1;
                    log::debug!("{error:#}");
                    continue;
                }
                if config.when_lost == WhenLost::Abort {
                    return Err(error);
                }
                log::debug!("{error:#}");
            }
        }
        if refused_again > 0 {
            log::warn!(
                "{refused_again} of the guest's open files may not be opened again: it gets an \
                 error (EBADF) where it uses them"
            );
        }
        Ok(())
    }

    /// A node for the operator: its path, as far as the stream tells.
    fn describe(&self, node: &SavedNode<'_>) -> String {
        let by_id: HashMap<NodeId, &SavedNode<'_>> = self
            .saved
            .nodes
            .iter()
            .map(|node| (node.id, node))
            .collect();
        let mut names = Vec::new();
        let mut at = Some(node);
        while let Some(node) = at {
            at = match &node.place {
                Place::In { parent, name } => {
                    names.push((*name).to_owned());
                    by_id.get(parent).copied()
                }
                Place::Below(path) => {
                    names.push(path.clone());
                    None
                }
                Place::ByHandle(_) | Place::Lost => {
                    names.push("...".to_owned());
                    None
                }
            };
        }
        names.reverse();
        format!("inode {} at {:?}", node.id.0, names.join("/"))
    }
}

/// Whether a file is the one of a handle, mount aside.
fn is_same(fd: BorrowedFd<'_>, expected: &FileHandle<'_>) -> anyhow::Result<()> {
    let (handle, _) = name_to_handle(fd, c"")
        .context("its file handle is to be compared, but the file system gives none")?;
    let is_same = handle.kind() == expected.handle_type && handle.bytes() == &*expected.handle;
    ensure!(is_same, "it is another file: its file handle differs");
    Ok(())
}
