//! What lies in the shared directory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{XattrFlags, setxattr};

use crate::common::held_fs::HeldFs;

const SMALL_FILES: usize = 16;
/// Files that are read at any place, and written to at any place.
const LARGE_FILE_BYTES: usize = 4 << 20;
const ENTRIES: usize = 10_000;
/// The attribute that files have.
pub(crate) const XATTR: &str = "user.hit";
/// Places in a large file that a slot goes to.
const MAX_PLACES: usize = 64;

/// The folder of a file system whose reads take [`SLOW_READ`], and its file.
pub(crate) const SLOW: (&str, &str) = ("slow", "file");
const SLOW_READ: Duration = Duration::from_millis(5);

/// One of the files of 4 KiB.
pub(crate) fn small(index: usize) -> String {
    format!("small-{}", index % SMALL_FILES)
}

/// All files of 4 KiB.
pub(crate) fn all_small() -> impl Iterator<Item = String> {
    (0..SMALL_FILES).map(small)
}

/// Makes everything but the trees.
pub(crate) fn prepare(share: &Path) {
    if share.join("large").exists() {
        return;
    }
    // Guest users other than root make files here.
    fs::set_permissions(share, Permissions::from_mode(0o777)).unwrap();
    for name in all_small() {
        let path = share.join(name);
        fs::write(&path, vec![b's'; 4096]).unwrap();
        // Where the file system has none, hits are misses on all sides.
        let _ = setxattr(&path, XATTR, b"value", XattrFlags::empty());
    }
    fs::create_dir(share.join("entries")).unwrap();
    for index in 0..ENTRIES {
        fs::write(share.join(format!("entries/file-{index:05}")), "").unwrap();
    }
    fs::write(share.join("large"), vec![b'l'; LARGE_FILE_BYTES]).unwrap();
}

/// Whether files here can have attributes of users.
pub(crate) fn has_xattrs(share: &Path) -> bool {
    prepare(share);
    let mut value = [0; 16];
    rustix::fs::getxattr(share.join(small(0)), XATTR, &mut value).is_ok()
}

/// The offsets of a large file from its beginning.
pub(crate) fn sequential(size: usize) -> Vec<u64> {
    let offsets = (0..LARGE_FILE_BYTES as u64).step_by(size);
    offsets.take(MAX_PLACES).collect()
}

/// Offsets all over a large file, the same ones each time.
pub(crate) fn random(size: usize) -> Vec<u64> {
    let places = (LARGE_FILE_BYTES / size) as u64;
    // A generator of full period over any power of two.
    let mut state: u64 = 0x9e37_79b9;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005);
        state = state.wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % places * size as u64
    };
    (0..MAX_PLACES).map(|_| next()).collect()
}

/// Mounts [`SLOW`]; needs root.
pub(crate) fn mount_slow(share: &Path) -> HeldFs {
    let folder = share.join(SLOW.0);
    fs::create_dir_all(&folder).unwrap();
    HeldFs::mount_slow(&folder, SLOW_READ)
}
