//! From what the guest holds to a stream.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow, bail};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::locate::{Extras, Locator};
use super::places::{Place, Places};
use super::saved::Saved;
use super::walk::walk;
use super::wire::{
    self, FileHandle, Handle, HandleSource, Inode, Location, Negotiated, State, StateV1, StateV2,
    StateV3,
};
use crate::config::{FindBy, MigrationConfig};
use crate::fuse::flags::init as features;
use crate::id::NodeId;
use crate::passthrough::{InodeKey, Node, OpenHandle, Passthrough, identify};
use crate::sys::file_handle::name_to_handle;

/// A node on its way into the stream.
struct Collected {
    id: NodeId,
    /// Look-ups of the guest.
    lookups: u64,
    place: Option<Place>,
    by_handle: Option<FileHandle<'static>>,
    to_compare: Option<FileHandle<'static>>,
}

/// What was seen of a node.
enum Seen {
    /// Where it is, or that it is only open.
    Found,
    /// That it is somewhere, under a name that is not known.
    Missing(InodeKey),
    /// That it was removed, and that nobody has it open: the guest is about to
    /// forget it, and hears that it is stale if it asks for it all the same.
    Gone,
}

/// What the collector works with.
struct Collector<'a> {
    fs: &'a Passthrough,
    config: &'a MigrationConfig,
    locator: Locator<'a>,
    /// Nodes that the guest has open.
    open: HashSet<NodeId>,
    /// A path below the root on each mount that a handle names.
    mount_paths: BTreeMap<u64, Option<String>>,
}

/// Looks for places of all nodes that have none yet, until told to stop.
pub fn prepare(fs: &Passthrough, places: &Places) {
    let Ok(mut locator) = Locator::new(fs, Extras::None) else {
        return;
    };
    let mut missing = HashMap::new();
    for (id, _) in fs.held_nodes() {
        if places.stopped().load(Ordering::Relaxed) {
            return;
        }
        if id == NodeId::ROOT || places.knows(id) {
            continue;
        }
        let Ok(node) = fs.held_node(id) else { continue };
        match locator.by_shown_path(&node) {
            Some(place) => places.keep(id, place.parent, &place.name),
            None if has_name(&node) => {
                missing.insert(node.key(), id);
            }
            None => {}
        }
    }
    walk(fs, missing.clone(), places.stopped(), |id, path| {
        let Ok(node) = fs.held_node(id) else { return };
        if let Some(place) = locator.by_path(path, &node.key()) {
            places.keep(id, place.parent, &place.name);
        }
    });
}

/// Makes a stream of everything that the guest holds.
///
/// # Errors
/// A sentence for the operator.
pub fn save(
    fs: &Passthrough,
    config: &MigrationConfig,
    places: &Places,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<u8>> {
    let locator = Locator::new(fs, Extras::Made)
        .context("cannot read the path of the shared directory in /proc/self/fd")?;
    let handles = fs
        .open_handles()
        .context("cannot read the flags of open files")?;
    let mut collector = Collector {
        fs,
        config,
        locator,
        open: handles.iter().map(|handle| handle.node).collect(),
        mount_paths: BTreeMap::new(),
    };
    let mut nodes = collector.nodes(places, stop)?;
    let root_to_compare = match config.verify_handles {
        true => Some(collector.handle_to_compare(&fs.held_node(NodeId::ROOT)?)?),
        false => None,
    };
    let mount_paths = collector.mount_paths.into_iter();
    let mount_paths = mount_paths.filter_map(|(mount, path)| Some((mount, Cow::from(path?))));
    let (extras, next_inode) = collector.locator.into_extras();
    for extra in extras {
        let node = Collected {
            id: extra.id,
            lookups: 0,
            place: Some(extra.place),
            by_handle: None,
            to_compare: None,
        };
        nodes.push(node);
    }
    let lost = nodes
        .iter()
        .filter(|node| node.place.is_none() && node.by_handle.is_none())
        .count();
    if lost > 0 {
        log::warn!(
            "{lost} of the guest's {} inodes have no path that the other side could find",
            nodes.len()
        );
    }
    let state = StateV2 {
        v1: StateV1 {
            inodes: inodes(&nodes, root_to_compare),
            next_inode,
            handles: wire_handles(handles, &nodes),
            next_handle: fs.next_numbers().1,
            negotiated: negotiated(fs.agreed_features()),
        },
        mount_paths: mount_paths.collect(),
    };
    // The host may have moved directories into each other meanwhile.
    Saved::check(&state).context("the shared directory was changed by others")?;
    log::info!(
        "saving {} inodes and {} open files",
        state.v1.inodes.len(),
        state.v1.handles.len()
    );
    let no_opendir = fs.agreed_features() & features::NO_OPENDIR != 0;
    let state = if no_opendir {
        State::V3(StateV3 {
            v2: state,
            no_opendir,
        })
    } else {
        State::V2(state)
    };
    wire::encode(&state).map_err(|error| anyhow!("cannot write the stream: {error}"))
}

impl Collector<'_> {
    fn nodes(&mut self, places: &Places, stop: &AtomicBool) -> anyhow::Result<Vec<Collected>> {
        let held = self.fs.held_nodes();
        let mut gone = HashSet::new();
        let mut nodes = Vec::with_capacity(held.len());
        let mut missing = HashMap::new();
        for (id, lookups) in held {
            if stop.load(Ordering::Relaxed) {
                bail!("it was cancelled");
            }
            if id == NodeId::ROOT {
                continue;
            }
            let mut collected = Collected {
                id,
                lookups,
                place: None,
                by_handle: None,
                to_compare: None,
            };
            let known = places.get(id);
            let needs_node = self.config.find_by == FindBy::Handle
                || self.config.verify_handles
                || self.config.confirm_paths;
            match known {
                Some((place, false)) if !needs_node && self.locator.is_held(place.parent) => {
                    collected.place = Some(place);
                }
                known => {
                    let known = known.map(|(place, _)| place);
                    match self.look_at(&mut collected, known)? {
                        Seen::Found => {}
                        Seen::Missing(key) => {
                            missing.insert(key, (nodes.len(), id));
                        }
                        Seen::Gone => {
                            gone.insert(id);
                            continue;
                        }
                    }
                }
            }
            nodes.push(collected);
        }
        self.find_missing(missing, &mut nodes, stop);
        for node in &mut nodes {
            // What is inside of something that is gone has to be elsewhere.
            node.place = node.place.take().filter(|place| {
                self.locator.is_known(place.parent) && !gone.contains(&place.parent)
            });
            self.prefer_name_in_utf8(node);
        }
        Ok(nodes)
    }

    /// Locates one node.
    fn look_at(&mut self, collected: &mut Collected, known: Option<Place>) -> anyhow::Result<Seen> {
        let is_open = self.open.contains(&collected.id);
        let gone = match is_open {
            true => Seen::Found,
            false => Seen::Gone,
        };
        let node = match self.fs.held_node(collected.id) {
            Ok(node) => node,
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::IO)) => {
                return Err(errno).context("cannot open an inode of the guest");
            }
            Err(_) => return Ok(gone),
        };
        if self.config.find_by == FindBy::Handle {
            if !is_open && !has_name(&node) {
                return Ok(gone);
            }
            collected.by_handle = self.by_handle(&node);
            if collected.by_handle.is_some() {
                return Ok(Seen::Found);
            }
        }
        if self.config.verify_handles {
            collected.to_compare = Some(self.handle_to_compare(&node)?);
        }
        let known = known.filter(|place| self.locator.is_right(place, &node.key()));
        collected.place = known.or_else(|| self.locator.by_shown_path(&node));
        Ok(match collected.place {
            Some(_) => Seen::Found,
            None if has_name(&node) => Seen::Missing(node.key()),
            None => gone,
        })
    }

    fn find_missing(
        &mut self,
        missing: HashMap<InodeKey, (usize, NodeId)>,
        nodes: &mut [Collected],
        stop: &AtomicBool,
    ) {
        if missing.is_empty() {
            return;
        }
        log::debug!("looking for {} inodes in the whole tree", missing.len());
        let places: HashMap<NodeId, (usize, InodeKey)> = missing
            .iter()
            .map(|(key, (index, id))| (*id, (*index, *key)))
            .collect();
        let wanted = missing.into_iter().map(|(key, (_, id))| (key, id));
        let locator = &mut self.locator;
        walk(self.fs, wanted.collect(), stop, |id, path| {
            let Some((index, key)) = places.get(&id) else {
                return;
            };
            if let Some(node) = nodes.get_mut(*index) {
                node.place = locator.by_path(path, key);
            }
        });
    }

    /// A name that the stream cannot express, and a file without a name, are
    /// found by handle where there are any.
    fn prefer_name_in_utf8(&mut self, node: &mut Collected) {
        let is_fine = |place: &Place| str::from_utf8(&place.name).is_ok();
        if node.by_handle.is_some() || node.place.as_ref().is_some_and(is_fine) {
            return;
        }
        node.place = None;
        if let Ok(held) = self.fs.held_node(node.id) {
            node.by_handle = self.by_handle(&held);
        }
    }

    /// The handle of a node, if its mount has a path.
    fn by_handle(&mut self, node: &Node) -> Option<FileHandle<'static>> {
        let (handle, mnt_id) = name_to_handle(node, c"").ok()?;
        if !self.mount_paths.contains_key(&mnt_id) {
            let path = self.mount_path(node, mnt_id);
            self.mount_paths.insert(mnt_id, path);
        }
        self.mount_paths.get(&mnt_id)?.as_ref()?;
        Some(owned(&handle, mnt_id))
    }

    /// A path below the root of something on a mount that a node is on.
    fn mount_path(&self, node: &Node, mnt_id: u64) -> Option<String> {
        let is_on_mount = |id: NodeId| {
            let node = self.fs.held_node(id);
            node.is_ok_and(|node| node.key().mount == mnt_id)
        };
        if is_on_mount(NodeId::ROOT) {
            return Some(".".to_owned());
        }
        let mut path = self.locator.below_root(node.as_fd())?;
        // The directory is there even where the file has no name any more.
        if node.kind() != FileType::Directory {
            let slash = path.iter().rposition(|byte| *byte == b'/')?;
            path.truncate(slash);
        }
        String::from_utf8(path).ok()
    }

    fn handle_to_compare(&self, node: &Node) -> anyhow::Result<FileHandle<'static>> {
        let (handle, mnt_id) = name_to_handle(node, c"").context(
            "the file system gives no file handles; \
             start without --migration-verify-handles",
        )?;
        Ok(owned(&handle, mnt_id))
    }
}

fn owned(handle: &crate::sys::file_handle::FileHandle, mnt_id: u64) -> FileHandle<'static> {
    FileHandle {
        mnt_id,
        handle_type: handle.kind(),
        handle: handle.bytes().to_vec().into(),
    }
}

/// Whether a file is still somewhere in its file system.
fn has_name(node: &Node) -> bool {
    identify(node).is_ok_and(|found| found.names > 0)
}

/// The inodes of the stream: each is counted once more for each one inside.
fn inodes<'a>(nodes: &'a [Collected], root_handle: Option<FileHandle<'a>>) -> Vec<Inode<'a>> {
    let mut inside: HashMap<NodeId, u64> = HashMap::new();
    for place in nodes.iter().filter_map(|node| node.place.as_ref()) {
        *inside.entry(place.parent).or_default() += 1;
    }
    let children = |id: NodeId| inside.get(&id).copied().unwrap_or(0);
    let root = Inode {
        id: NodeId::ROOT.0,
        // The root is never forgotten.
        refcount: 2 + children(NodeId::ROOT),
        location: Location::RootNode,
        file_handle: root_handle,
    };
    let others = nodes.iter().map(|node| Inode {
        id: node.id.0,
        refcount: node.lookups.saturating_add(children(node.id)),
        location: location(node),
        file_handle: node.to_compare.clone(),
    });
    std::iter::once(root).chain(others).collect()
}

fn location(node: &Collected) -> Location<'_> {
    if let Some(handle) = &node.by_handle {
        return Location::FileHandle {
            handle: handle.clone(),
        };
    }
    let name = node.place.as_ref().and_then(|place| {
        let name = str::from_utf8(&place.name).ok()?;
        Some((place.parent, name))
    });
    name.map_or(Location::Invalid, |(parent, name)| Location::Path {
        parent: parent.0,
        filename: name.into(),
    })
}

/// The handles of the stream. One whose node the guest has forgotten, which no
/// honest guest does, is of no use to it.
fn wire_handles(mut open: Vec<OpenHandle>, nodes: &[Collected]) -> Vec<Handle> {
    let mut held: HashSet<NodeId> = nodes.iter().map(|node| node.id).collect();
    held.insert(NodeId::ROOT);
    open.retain(|open| held.contains(&open.node));
    let handle = |open: &OpenHandle| Handle {
        id: open.id.0,
        inode: open.node.0,
        source: HandleSource::OpenInode {
            flags: open.flags.bits().cast_signed(),
        },
    };
    open.iter().map(handle).collect()
}

fn negotiated(agreed: u64) -> Negotiated {
    let has = |feature| agreed & feature != 0;
    Negotiated {
        writeback: has(features::WRITEBACK_CACHE),
        announce_submounts: has(features::SUBMOUNTS),
        posix_acl: has(features::POSIX_ACL),
        sup_group_extension: has(features::CREATE_SUPP_GROUP),
    }
}
