//! From a path to the node it is a name in.
//!
//! A path only says where to look: a place is believed once the name in the
//! directory leads to the very file, so neither a path that is out of date nor one
//! that the kernel made up does harm.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};

use crate::fs::Result as FsResult;
use crate::id::NodeId;
use crate::passthrough::{InodeKey, Node, Passthrough, identify, leads_to};

use super::places::Place;

/// A directory that the guest does not hold, but paths of others need.
#[derive(Debug)]
pub struct Extra {
    /// Its number, which the guest does not know.
    pub id: NodeId,
    /// Where it is.
    pub place: Place,
    /// Itself.
    pub fd: OwnedFd,
}

/// Whether a directory that the guest does not hold may be part of a place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Extras {
    /// It gets a number.
    Made,
    /// Then the place stays unknown for now.
    None,
}

/// Finds places by paths.
#[derive(Debug)]
pub struct Locator<'a> {
    fs: &'a Passthrough,
    /// The shared directory as the kernel shows it, without a slash at the end.
    root: Vec<u8>,
    extras_are: Extras,
    extras: HashMap<NodeId, Extra>,
    next_extra: u64,
    /// The nodes that the guest holds: others may be known, but not to it.
    held: HashSet<NodeId>,
    /// Directories by their path below the root.
    directories: HashMap<Vec<u8>, NodeId>,
}

/// A directory on the way, open.
#[allow(clippy::large_enum_variant)] // It is never kept.
enum Directory<'a> {
    Held(Node),
    Extra(BorrowedFd<'a>),
}

impl AsFd for Directory<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(node) => node.as_fd(),
            Self::Extra(fd) => *fd,
        }
    }
}

impl<'a> Locator<'a> {
    /// Finds places in a tree.
    ///
    /// # Errors
    /// When the path of the shared directory is not shown.
    pub fn new(fs: &'a Passthrough, extras_are: Extras) -> FsResult<Self> {
        let mut root = fs.shown_path(fs.held_node(NodeId::ROOT)?.as_fd())?;
        if root == b"/" {
            root.clear();
        }
        Ok(Self {
            fs,
            root,
            extras_are,
            extras: HashMap::new(),
            next_extra: fs.next_numbers().0,
            held: fs.held_nodes().into_iter().map(|(id, _)| id).collect(),
            directories: HashMap::from([(Vec::new(), NodeId::ROOT)]),
        })
    }

    /// The place of a node, by the path that the kernel shows for it.
    pub fn by_shown_path(&mut self, node: &Node) -> Option<Place> {
        let path = self.below_root(node.as_fd())?;
        self.by_path(&path, &node.key())
    }

    /// The path of an open file below the root, as the kernel shows it.
    pub fn below_root(&self, fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
        let path = self.fs.shown_path(fd).ok()?;
        let below = path.strip_prefix(&*self.root)?;
        match below.split_first() {
            None => Some(Vec::new()),
            Some((b'/', below)) => Some(below.to_vec()),
            Some(_) => None,
        }
    }

    /// The place of the file that a path below the root may lead to.
    pub fn by_path(&mut self, path: &[u8], key: &InodeKey) -> Option<Place> {
        let (directory, name) = split(path);
        let parent = self.directory(directory)?;
        let is_there = leads_to(self.open(parent)?, name, key);
        if !is_there {
            // What was known of the way may be out of date.
            self.directories.retain(|known, _| known.is_empty());
            return None;
        }
        Some(Place {
            parent,
            name: name.into(),
        })
    }

    /// Whether the guest holds a node.
    pub fn is_held(&self, id: NodeId) -> bool {
        self.held.contains(&id)
    }

    /// Whether a number is one that the stream can name.
    pub fn is_known(&self, id: NodeId) -> bool {
        self.held.contains(&id) || self.extras.contains_key(&id)
    }

    /// Whether a place still leads to its node.
    pub fn is_right(&self, place: &Place, key: &InodeKey) -> bool {
        if !self.is_known(place.parent) {
            return false;
        }
        let directory = self.open(place.parent);
        directory.is_some_and(|directory| leads_to(directory, &place.name, key))
    }

    /// The directories that were numbered, and the next number that is free.
    pub fn into_extras(self) -> (Vec<Extra>, u64) {
        (self.extras.into_values().collect(), self.next_extra)
    }

    /// The number of the directory at a path below the root.
    fn directory(&mut self, path: &[u8]) -> Option<NodeId> {
        if let Some(known) = self.directories.get(path) {
            return Some(*known);
        }
        // From the longest part of the path that is known.
        let mut at = path.len();
        let mut parent = loop {
            let (shorter, _) = split(path.get(..at)?);
            at = shorter.len();
            if let Some(known) = self.directories.get(shorter) {
                break *known;
            }
        };
        while at < path.len() {
            let start = if at == 0 { 0 } else { at + 1 };
            let rest = path.get(start..)?;
            let len = rest.iter().position(|byte| *byte == b'/');
            let name = rest.get(..len.unwrap_or(rest.len()))?;
            at = start + name.len();
            parent = self.step(parent, name)?;
            self.directories.insert(path.get(..at)?.to_vec(), parent);
        }
        Some(parent)
    }

    /// The number of a directory in another.
    fn step(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = self.open(parent)?;
        let fd = rustix::fs::openat(&directory, name, flags, Mode::empty()).ok()?;
        drop(directory);
        let found = identify(&fd).ok()?;
        if found.kind != FileType::Directory {
            return None;
        }
        if let Some(held) = self.fs.node_of(&found.key)
            && self.held.contains(&held)
        {
            return Some(held);
        }
        if self.extras_are == Extras::None {
            return None;
        }
        let id = NodeId(self.next_extra);
        self.next_extra += 1;
        let place = Place {
            parent,
            name: name.into(),
        };
        self.extras.insert(id, Extra { id, place, fd });
        Some(id)
    }

    fn open(&self, id: NodeId) -> Option<Directory<'_>> {
        match self.extras.get(&id) {
            Some(extra) => Some(Directory::Extra(extra.fd.as_fd())),
            None => self.fs.held_node(id).ok().map(Directory::Held),
        }
    }
}

/// The directory and the last name of a path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}
