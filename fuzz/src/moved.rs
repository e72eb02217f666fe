//! A daemon that a guest is moved to: whatever the stream says, what it then holds
//! lies in the share.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{CWD, Mode, OFlags};
use tempfile::TempDir;
use virtiofsd::config::{Config, FindBy, InodeFileHandles, MigrationConfig, WhenLost};
use virtiofsd::fs::{Migrate, Session as _};
use virtiofsd::migration::Migration;
use virtiofsd::passthrough::{Passthrough, identify};
use virtiofsd::process::capabilities::{self, Kept};
use virtiofsd::sys::file_handle::{FileHandle, name_to_handle};

/// In a stream the handle of a real file, whose bytes differ from run to run, is
/// written as one of kind 1 (which is 2 on the wire) with 8 bytes, all the same.
const STAND_IN_KIND: u8 = 2;
const STAND_IN_BYTES: usize = 8;

/// The byte of the first stand-in; the next is one more.
const FIRST_STAND_IN: u8 = 0xe0;

/// A share and a daemon without a session.
pub struct Target {
    _dir: TempDir,
    /// Device and inode of everything in the share.
    inside: HashSet<(u64, u64)>,
    /// What stand-ins stand for, inside of the share and outside.
    real: Vec<FileHandle>,
    files: Arc<Passthrough>,
    /// Each way to find files again.
    migrations: [Migration; 2],
}

impl Target {
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("virtiofsd-fuzz-").unwrap();
        let (share, outside) = (dir.path().join("share"), dir.path().join("outside"));
        for folder in [&share, &outside, &share.join("dir")] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(outside.join("secret"), "secret").unwrap();
        for file in ["file", "dir/inner", "name"] {
            fs::write(share.join(file), "text").unwrap();
        }
        symlink("../outside", share.join("link")).unwrap();
        let inside = [".", "dir", "file", "dir/inner", "name", "link"].map(|path| share.join(path));
        let beside = [
            dir.path().to_owned(),
            outside.clone(),
            outside.join("secret"),
        ];
        let above = dir.path().ancestors().skip(1).map(Path::to_owned);
        let real = inside.iter().take(5).cloned().chain(beside).chain(above);
        // Where file handles cannot be had there is nothing to stand for.
        let real = real
            .filter_map(|path| Some(name_to_handle(File::open(path).ok()?, c"").ok()?.0))
            .collect();
        let inside = inside.map(|path| {
            let found = fs::symlink_metadata(path).unwrap();
            (found.dev(), found.ino())
        });
        // The rights that the daemon has, to open file handles too.
        let kept = Kept::with(&[], &[]).unwrap().with_file_handles();
        capabilities::reduce(kept).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc_self_fd = rustix::fs::openat(CWD, "/proc/self/fd", flags, Mode::empty()).unwrap();
        let config = Config {
            announce_submounts: true,
            writeback: true,
            inode_file_handles: InodeFileHandles::Prefer,
            ..Config::default()
        };
        let files = Arc::new(Passthrough::new(&share, proc_self_fd, config, 200).unwrap());
        let migrations = [FindBy::Path, FindBy::Handle].map(|find_by| {
            let config = MigrationConfig {
                find_by,
                when_lost: WhenLost::GuestError,
                ..MigrationConfig::default()
            };
            Migration::new(Arc::clone(&files), config)
        });
        Self {
            _dir: dir,
            inside: inside.into(),
            real,
            migrations,
            files,
        }
    }

    /// The stream with real handles in place of their stand-ins.
    fn with_real_handles(&self, stream: &[u8]) -> Vec<u8> {
        let stand_in = |at: &[u8]| {
            let (front, rest) = at.split_at_checked(2)?;
            let bytes = rest.get(..STAND_IN_BYTES)?;
            let is_one = front == [STAND_IN_KIND, STAND_IN_BYTES as u8];
            let first = *bytes.first()?;
            let all_same = is_one && bytes.iter().all(|byte| *byte == first);
            let number = first.checked_sub(FIRST_STAND_IN).filter(|_| all_same)?;
            self.real.get(usize::from(number))
        };
        let (mut real, mut at) = (Vec::with_capacity(stream.len()), 0);
        while let Some(byte) = stream.get(at) {
            let Some(handle) = stand_in(&stream[at..]) else {
                real.push(*byte);
                at += 1;
                continue;
            };
            let kind = 2 * handle.kind();
            real.extend([(kind & 0x7f) as u8 | 0x80, (kind >> 7) as u8]);
            real.push(handle.bytes().len() as u8);
            real.extend(handle.bytes());
            at += 2 + STAND_IN_BYTES;
        }
        real
    }

    /// Takes a guest over in each way, looks at what it holds, and saves it again.
    pub fn load(&self, stream: &[u8]) {
        let stream = self.with_real_handles(stream);
        for migration in &self.migrations {
            self.load_by(migration, &stream);
        }
    }

    fn load_by(&self, migration: &Migration, stream: &[u8]) {
        let go_on = AtomicBool::new(false);
        if migration.load(stream, &go_on).is_ok() {
            for (id, _) in self.files.held_nodes() {
                let Ok(node) = self.files.held_node(id) else {
                    continue;
                };
                let key = identify(&node).unwrap().key;
                let device = rustix::fs::makedev((key.device >> 32) as u32, key.device as u32);
                let is_inside = self.inside.contains(&(device, key.ino));
                assert!(is_inside, "inode {} of {device} is held", key.ino);
            }
            let saved = migration.save(&go_on).unwrap();
            migration.load(&saved, &go_on).unwrap();
        }
        self.files.stop();
    }
}
