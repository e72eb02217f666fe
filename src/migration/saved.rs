//! A saved state that has been checked: what a stream says, in a shape that
//! cannot hold what must not be.
//!
//! Every number is there once and below the next one to give; every name is one
//! name and every path stays below the shared directory; parents come before
//! their children, so there are no loops; lookups are those of the guest alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path};

use anyhow::{Context, bail, ensure};
use rustix::fs::OFlags;

use super::wire::{self, FileHandle, HandleSource, Location, Negotiated, StateV2};
use crate::fuse::{NAME_MAX, PATH_MAX};
use crate::id::{HandleId, NodeId};

/// Numbers from here on are no honest ones: counting on must not wrap.
const ABSURD: u64 = 1 << 62;

/// The most bytes of a file handle (`MAX_HANDLE_SZ`).
const MAX_HANDLE_BYTES: usize = 128;

/// The flags that a file is opened again with: none that makes, cuts or appends.
const KEPT_FLAGS: OFlags = OFlags::ACCMODE
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC)
    .union(OFlags::DIRECT)
    .union(OFlags::NOATIME)
    .union(OFlags::LARGEFILE);

/// A state that may be restored.
#[derive(Debug)]
pub struct Saved<'a> {
    /// The handle of the source's shared directory, if it is to be compared.
    pub root_handle: Option<FileHandle<'a>>,
    /// All nodes but the root; parents come first.
    pub nodes: Vec<SavedNode<'a>>,
    /// The next number of a node.
    pub next_node: u64,
    /// Open files and directories.
    pub handles: Vec<SavedHandle>,
    /// The next number of a handle.
    pub next_handle: u64,
    /// What INIT settled.
    pub negotiated: Negotiated,
    /// A path on each mount that a file handle names; empty for the root.
    pub mount_paths: BTreeMap<u64, String>,
}

/// A node.
#[derive(Debug)]
pub struct SavedNode<'a> {
    /// Its number.
    pub id: NodeId,
    /// The guest's lookups; 0 for one that only other nodes' paths need.
    pub lookups: u64,
    /// Where it is.
    pub place: Place<'a>,
    /// Its handle, if it is to be compared.
    pub handle: Option<FileHandle<'a>>,
}

/// Where a node is.
#[derive(Debug)]
pub enum Place<'a> {
    /// A name in another node.
    In {
        /// The node, which comes before.
        parent: NodeId,
        /// One name.
        name: &'a str,
    },
    /// A path below the shared directory; empty for that itself.
    Below(String),
    /// A file handle, whose mount has a path.
    ByHandle(FileHandle<'a>),
    /// The source did not know.
    Lost,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug)]
pub struct SavedHandle {
    /// Its number.
    pub id: HandleId,
    /// Its node.
    pub node: NodeId,
    /// The flags to open it with: none that makes, cuts or appends.
    pub flags: OFlags,
}

impl<'a> Saved<'a> {
    /// Checks what a stream says.
    ///
    /// # Errors
    /// With the number of the first entry that is wrong.
    pub fn check(state: &'a StateV2<'_>) -> anyhow::Result<Self> {
        let v1 = &state.v1;
        ensure!(
            v1.next_inode < ABSURD && v1.next_handle < ABSURD,
            "the next number to give is absurd"
        );
        let mut mount_paths = BTreeMap::new();
        for (mount, path) in &state.mount_paths {
            let path = below(path).with_context(|| format!("mount {mount} has a bad path"))?;
            mount_paths.insert(*mount, path);
        }
        let order = parents_first(&v1.inodes)?;
        let mut nodes = Vec::with_capacity(order.len());
        let mut root_handle = None;
        for Ordered { inode, children } in order {
            let checked = check_inode(inode, children, v1.next_inode, &mount_paths);
            match checked.with_context(|| format!("inode {}", inode.id))? {
                None => root_handle = inode.file_handle.as_ref().map(borrow_handle),
                Some(node) => nodes.push(node),
            }
        }
        ensure!(
            nodes.len() < v1.inodes.len(),
            "the root is not among the inodes"
        );
        Ok(Self {
            root_handle,
            handles: check_handles(v1)?,
            nodes,
            next_node: v1.next_inode,
            next_handle: v1.next_handle,
            negotiated: v1.negotiated,
            mount_paths,
        })
    }
}

/// An inode of the stream and how many others name it as their parent.
struct Ordered<'s, 'w> {
    inode: &'s wire::Inode<'w>,
    children: u64,
}

/// Puts parents before their children.
fn parents_first<'s, 'w>(inodes: &'s [wire::Inode<'w>]) -> anyhow::Result<Vec<Ordered<'s, 'w>>> {
    let mut by_id = HashMap::with_capacity(inodes.len());
    for inode in inodes {
        let known = by_id.insert(inode.id, inode).is_some();
        ensure!(!known, "inode {} is there twice", inode.id);
    }
    let mut children: HashMap<u64, Vec<&wire::Inode<'w>>> = HashMap::new();
    let mut order: Vec<Ordered<'s, 'w>> = Vec::with_capacity(inodes.len());
    let ordered = |inode| Ordered { inode, children: 0 };
    for inode in inodes {
        match &inode.location {
            Location::Path { parent, .. } => {
                let known = by_id.contains_key(parent);
                ensure!(
                    known,
                    "inode {} is in inode {parent}, which is not there",
                    inode.id
                );
                children.entry(*parent).or_default().push(inode);
            }
            _ => order.push(ordered(inode)),
        }
    }
    // Inodes of one directory stay together.
    let mut next = 0;
    while let Some(parent) = order.get_mut(next) {
        let inside = children.remove(&parent.inode.id).unwrap_or_default();
        parent.children = inside.len() as u64;
        order.extend(inside.into_iter().map(ordered));
        next += 1;
    }
    if let Some(parent) = children.keys().next() {
        bail!("inode {parent} is inside itself");
    }
    Ok(order)
}

/// Checks one inode; `None` for the root.
fn check_inode<'a>(
    inode: &'a wire::Inode<'_>,
    children: u64,
    next: u64,
    mount_paths: &BTreeMap<u64, String>,
) -> anyhow::Result<Option<SavedNode<'a>>> {
    let id = NodeId(inode.id);
    ensure!(
        inode.id != 0 && inode.id < next,
        "the number is not below the next one, {next}"
    );
    ensure!(
        (id == NodeId::ROOT) == (inode.location == Location::RootNode),
        "the root is number 1 and no other"
    );
    let handle = match &inode.file_handle {
        Some(handle) => Some(check_handle(handle)?),
        None => None,
    };
    let place = match &inode.location {
        Location::RootNode => return Ok(None),
        Location::Path { parent, filename } => Place::In {
            parent: NodeId(*parent),
            name: single_name(filename)?,
        },
        Location::FullPath { filename } => {
            let path = below(filename)?;
            // The guest knows that one by its own number.
            ensure!(!path.is_empty(), "it is the shared directory once more");
            Place::Below(path)
        }
        Location::FileHandle { handle } => {
            ensure!(
                mount_paths.contains_key(&handle.mnt_id),
                "its mount {} has no path",
                handle.mnt_id
            );
            Place::ByHandle(check_handle(handle)?)
        }
        Location::Invalid => Place::Lost,
    };
    ensure!(inode.refcount < ABSURD, "the count is absurd");
    let lookups = inode.refcount.checked_sub(children).with_context(|| {
        format!(
            "the count, {}, is below that of the inodes inside, {children}",
            inode.refcount
        )
    })?;
    Ok(Some(SavedNode {
        id,
        lookups,
        place,
        handle,
    }))
}

fn check_handle<'a>(handle: &'a FileHandle<'_>) -> anyhow::Result<FileHandle<'a>> {
    let len = handle.handle.len();
    ensure!(
        (1..=MAX_HANDLE_BYTES).contains(&len),
        "a file handle has {len} bytes"
    );
    Ok(borrow_handle(handle))
}

fn borrow_handle<'a>(handle: &'a FileHandle<'_>) -> FileHandle<'a> {
    FileHandle {
        handle: (&*handle.handle).into(),
        ..*handle
    }
}

/// One name, as the guest might look it up.
fn single_name(name: &str) -> anyhow::Result<&str> {
    let bad = matches!(name, "" | "." | "..") || name.contains(['/', '\0']);
    ensure!(!bad, "{name:?} is no name of a directory entry");
    ensure!(name.len() <= NAME_MAX, "its name has {} bytes", name.len());
    Ok(name)
}

/// A path that stays below the directory it starts in, without its dots.
fn below(path: &str) -> anyhow::Result<String> {
    ensure!(
        !path.is_empty() && path.len() <= PATH_MAX,
        "a path has {} bytes",
        path.len()
    );
    ensure!(!path.starts_with('/'), "the path {path:?} is not relative");
    let mut clean = String::with_capacity(path.len());
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => {
                if !clean.is_empty() {
                    clean.push('/');
                }
                clean.push_str(single_name(name.to_str().unwrap_or_default())?);
            }
            _ => bail!("the path {path:?} leaves the shared directory"),
        }
    }
    Ok(clean)
}

fn check_handles(state: &wire::StateV1<'_>) -> anyhow::Result<Vec<SavedHandle>> {
    let nodes: HashSet<u64> = state.inodes.iter().map(|inode| inode.id).collect();
    let mut ids = HashSet::with_capacity(state.handles.len());
    let mut handles = Vec::with_capacity(state.handles.len());
    for handle in &state.handles {
        let id = handle.id;
        ensure!(ids.insert(id), "handle {id} is there twice");
        ensure!(
            id < state.next_handle,
            "handle {id} is not below the next one, {}",
            state.next_handle
        );
        ensure!(
            nodes.contains(&handle.inode),
            "handle {id} is one of inode {}, which is not there",
            handle.inode
        );
        let HandleSource::OpenInode { flags } = handle.source;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        handles.push(SavedHandle {
            id: HandleId(id),
            node: NodeId(handle.inode),
            flags: flags & KEPT_FLAGS,
        });
    }
    Ok(handles)
}

#[cfg(test)]
mod tests {
    use super::super::arbitrary::{Random, state};
    use super::*;
    use wire::{Handle, Inode, StateV1};

    fn inode(id: u64, refcount: u64, location: Location<'static>) -> Inode<'static> {
        Inode {
            id,
            refcount,
            location,
            file_handle: None,
        }
    }

    fn path(parent: u64, name: &'static str) -> Location<'static> {
        Location::Path {
            parent,
            filename: name.into(),
        }
    }

    fn handle(id: u64, inode: u64, flags: i32) -> Handle {
        Handle {
            id,
            inode,
            source: HandleSource::OpenInode { flags },
        }
    }

    /// A root with `others`.
    fn with(others: Vec<Inode<'static>>) -> StateV2<'static> {
        let mut inodes = others;
        inodes.push(inode(1, 2, Location::RootNode));
        StateV2 {
            v1: StateV1 {
                inodes,
                next_inode: 100,
                next_handle: 100,
                ..StateV1::default()
            },
            ..StateV2::default()
        }
    }

    /// Checks that a state is refused with a text.
    fn refused(state: &StateV2<'_>, text: &str) {
        let error = format!("{:#}", Saved::check(state).unwrap_err());
        assert!(error.contains(text), "{error:?} does not say {text:?}");
    }

    #[test]
    fn parents_come_first_and_counts_are_the_guests() {
        let state = with(vec![
            inode(4, 1, path(3, "c")),
            inode(3, 3, path(2, "b")),
            inode(5, 7, path(3, "d")),
            inode(2, 1, path(1, "a")),
        ]);
        let saved = Saved::check(&state).unwrap();
        let mut seen = HashSet::from([NodeId::ROOT]);
        let mut lookups = BTreeMap::new();
        for node in &saved.nodes {
            let Place::In { parent, .. } = node.place else {
                panic!()
            };
            assert!(seen.contains(&parent));
            seen.insert(node.id);
            lookups.insert(node.id.0, node.lookups);
        }
        assert_eq!(lookups, BTreeMap::from([(2, 0), (3, 1), (4, 1), (5, 7)]));
    }

    #[test]
    fn loops_and_missing_parents_are_refused() {
        refused(&with(vec![inode(2, 2, path(2, "a"))]), "inside itself");
        refused(
            &with(vec![inode(2, 2, path(3, "a")), inode(3, 2, path(2, "b"))]),
            "inside itself",
        );
        refused(&with(vec![inode(2, 1, path(9, "a"))]), "not there");
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "/", "a\0b"] {
            refused(&with(vec![inode(2, 1, path(1, name))]), "no name");
        }
        let long: String = "n".repeat(1025);
        let mut state = with(vec![]);
        state.v1.inodes.push(Inode {
            location: Location::Path {
                parent: 1,
                filename: long.into(),
            },
            ..inode(2, 1, Location::Invalid)
        });
        refused(&state, "1025 bytes");
        for full in ["/etc", "../a", "a/../../b", "", ".", "./.", "a/b\0"] {
            let location = Location::FullPath {
                filename: full.into(),
            };
            assert!(
                Saved::check(&with(vec![inode(2, 1, location)])).is_err(),
                "{full}"
            );
        }
    }

    #[test]
    fn paths_lose_their_dots() {
        for (full, clean) in [(".", ""), ("a", "a"), ("./a//b/.", "a/b")] {
            assert_eq!(below(full).unwrap(), clean);
        }
    }

    #[test]
    fn numbers_are_unique_and_below_the_next() {
        let invalid = |id, count| inode(id, count, Location::Invalid);
        refused(&with(vec![invalid(2, 1), invalid(2, 1)]), "twice");
        refused(&with(vec![invalid(100, 1)]), "not below");
        refused(&with(vec![invalid(0, 1)]), "not below");
        refused(&with(vec![invalid(2, u64::MAX)]), "absurd");
        refused(
            &with(vec![invalid(2, 0), inode(3, 1, path(2, "a"))]),
            "below that of",
        );
        refused(&with(vec![inode(2, 1, Location::RootNode)]), "the root is");
        let mut state = with(vec![]);
        state.v1.inodes.clear();
        refused(&state, "not among");
        let mut state = with(vec![]);
        state.v1.next_inode = u64::MAX;
        refused(&state, "absurd");
    }

    #[test]
    fn handles_belong_to_nodes_and_harm_nothing() {
        let mut state = with(vec![]);
        state.v1.handles = vec![handle(0, 1, 0), handle(0, 1, 0)];
        refused(&state, "handle 0 is there twice");
        state.v1.handles = vec![handle(0, 7, 0)];
        refused(&state, "not there");
        state.v1.handles = vec![handle(100, 1, 0)];
        refused(&state, "not below");
        let asked = libc::O_RDWR | libc::O_TRUNC | libc::O_CREAT | libc::O_APPEND | libc::O_DSYNC;
        state.v1.handles = vec![handle(3, 1, asked)];
        let saved = Saved::check(&state).unwrap();
        let kept = (libc::O_RDWR | libc::O_DSYNC).cast_unsigned();
        assert_eq!(saved.handles[0].flags.bits(), kept);
    }

    #[test]
    fn file_handles_need_a_mount_and_a_size() {
        let by_handle = |bytes: &'static [u8]| Location::FileHandle {
            handle: FileHandle {
                mnt_id: 5,
                handle_type: 1,
                handle: bytes.into(),
            },
        };
        let mut state = with(vec![inode(2, 1, by_handle(&[1]))]);
        refused(&state, "mount 5 has no path");
        state.mount_paths.insert(5, "../..".into());
        refused(&state, "leaves");
        state.mount_paths.insert(5, ".".into());
        assert!(Saved::check(&state).is_ok());
        for bytes in [&[][..], &[0; 129]] {
            let mut state = with(vec![inode(2, 1, by_handle(bytes))]);
            state.mount_paths.insert(5, ".".into());
            refused(&state, "a file handle has");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = Random::new(7);
        for _ in 0..2000 {
            let mut bytes = wire::encode(&state(&mut random)).unwrap();
            for _ in 0..random.below(4) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next() as u8;
            }
            if let Ok(state) = wire::decode(&bytes) {
                let _ = Saved::check(&state.into_v3().v2);
            }
        }
    }
}
