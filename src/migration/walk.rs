//! Looking for files in the whole shared directory, where the kernel shows no
//! path that leads to them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Dir, FileType, Mode, OFlags};

use crate::id::NodeId;
use crate::passthrough::{InodeKey, Passthrough, identify_at};

/// Directories open at once, which the daemon's own descriptors have to be enough
/// for; what is below them is not looked through.
const MAX_DEPTH: usize = 80;

/// Gives the path below the root of each file in `wanted` that has one, to
/// `found`. Stops when all are found, or when `stop` is set.
pub fn walk(
    fs: &Passthrough,
    mut wanted: HashMap<InodeKey, NodeId>,
    stop: &AtomicBool,
    mut found: impl FnMut(NodeId, &[u8]),
) {
    let root = fs
        .held_node(NodeId::ROOT)
        .and_then(|root| fs.open_again(root.as_fd()));
    let Some(root) = root.ok().and_then(list) else {
        return;
    };
    let mut path = Vec::new();
    // Each directory that is open, and the length of the path in front of it.
    let mut open = vec![(root, 0)];
    loop {
        let may_go_down = open.len() < MAX_DEPTH;
        let Some((directory, path_len)) = open.last_mut() else {
            return;
        };
        if wanted.is_empty() || stop.load(Ordering::Relaxed) {
            return;
        }
        path.truncate(*path_len);
        let Some(Ok(entry)) = directory.read() else {
            open.pop();
            continue;
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(fd) = directory.fd() else { continue };
        let Ok(identity) = identify_at(fd, name) else {
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        if let Some(node) = wanted.remove(&identity.key) {
            found(node, &path);
        }
        if identity.kind == FileType::Directory && may_go_down {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = rustix::fs::openat(fd, name, flags, Mode::empty());
            if let Some(below) = below.ok().and_then(list) {
                open.push((below, path.len()));
            }
        }
    }
}

fn list(directory: OwnedFd) -> Option<Dir> {
    Dir::new(directory).ok()
}
