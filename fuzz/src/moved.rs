//! A daemon that a guest is moved to: whatever the stream says, what it then holds
//! lies in the share.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{CWD, Mode, OFlags};
use tempfile::TempDir;
use virtiofsd::config::{Config, MigrationConfig, WhenLost};
use virtiofsd::fs::{FileSystem, Migrate};
use virtiofsd::migration::Migration;
use virtiofsd::passthrough::Passthrough;
use virtiofsd::process::capabilities::{self, Kept};

/// A share and a daemon without a session.
pub struct Target {
    _dir: TempDir,
    share: PathBuf,
    files: Arc<Passthrough>,
    migration: Migration,
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
        // No more rights than the daemon has.
        capabilities::reduce(Kept::with(&[], &[]).unwrap()).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc_self_fd = rustix::fs::openat(CWD, "/proc/self/fd", flags, Mode::empty()).unwrap();
        let config = Config {
            announce_submounts: true,
            writeback: true,
            ..Config::default()
        };
        let files = Arc::new(Passthrough::new(&share, proc_self_fd, config, 200).unwrap());
        let config = MigrationConfig {
            when_lost: WhenLost::GuestError,
            ..MigrationConfig::default()
        };
        Self {
            _dir: dir,
            share,
            migration: Migration::new(Arc::clone(&files), config),
            files,
        }
    }

    /// Takes a guest over, looks at what it holds, and saves it again.
    pub fn load(&self, stream: &[u8]) {
        let go_on = AtomicBool::new(false);
        if self.migration.load(stream, &go_on).is_ok() {
            for (id, _) in self.files.held_nodes() {
                let Ok(node) = self.files.held_node(id) else {
                    continue;
                };
                let fd = node.as_fd().as_raw_fd();
                let path = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
                assert!(path.starts_with(&self.share), "{} is held", path.display());
            }
            let saved = self.migration.save(&go_on).unwrap();
            self.migration.load(&saved, &go_on).unwrap();
        }
        self.files.stop();
    }
}
