//! A daemon over a folder of its own, with a guest that has mounted it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::daemon::Daemon;
use super::frontend::{Config, HIPRIO, Queue, REQUEST, Vmm};
use super::fuse_client::Client;
use super::wire::InitOut;

/// Everything that a test of one operation needs.
pub struct Session {
    pub client: Client,
    pub init: Option<InitOut>,
    pub vmm: Vmm,
    pub hiprio: Queue,
    pub daemon: Daemon,
    dir: TempDir,
}

impl Session {
    /// Options of the daemon; a current Linux guest has mounted it.
    pub fn new(args: &[&str]) -> Self {
        Self::with_config(args, &Config::default())
    }

    pub fn with_config(args: &[&str], config: &Config) -> Self {
        let mut session = Self::before_init(args, config);
        session.init = Some(session.client.init());
        session
    }

    /// Over a folder that is there already.
    pub fn over(dir: TempDir, args: &[&str]) -> Self {
        let mut session = Self::over_before_init(dir, args, &Config::default());
        session.init = Some(session.client.init());
        session
    }

    /// Queues run, but INIT was not sent.
    pub fn before_init(args: &[&str], config: &Config) -> Self {
        let dir = TempDir::with_prefix("virtiofsd-share-").unwrap();
        Self::over_before_init(dir, args, config)
    }

    fn over_before_init(dir: TempDir, args: &[&str], config: &Config) -> Self {
        // Everyone may do everything, so that a request as an ordinary user
        // fails for its own reason only.
        let everyone = fs::Permissions::from_mode(0o777);
        if let Err(error) = fs::set_permissions(dir.path(), everyone) {
            assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
        }
        let daemon = Daemon::start(dir.path(), args);
        let mut vmm = Vmm::connect(daemon.socket(), config);
        let hiprio = vmm.start_queue(HIPRIO);
        let client = Client::new(vmm.start_queue(REQUEST));
        // The listener is closed by then: tests count descriptors.
        if !args.iter().any(|arg| arg.starts_with("--log-level")) {
            daemon.expect_log("Client connected");
        }
        Self {
            client,
            init: None,
            vmm,
            hiprio,
            daemon,
            dir,
        }
    }

    /// A place in the shared folder, as the host sees it.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// Makes a file in the shared folder.
    pub fn put(&self, relative: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(relative), content).unwrap();
    }

    /// Content of a file in the shared folder.
    pub fn get(&self, relative: &str) -> Vec<u8> {
        fs::read(self.path(relative)).unwrap()
    }

    /// Status of a file in the shared folder; links are not followed.
    pub fn stat(&self, relative: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(relative)).unwrap()
    }

    /// Permission bits of a file in the shared folder.
    pub fn perm(&self, relative: &str) -> u32 {
        self.stat(relative).mode() & 0o7777
    }

    pub fn exists(&self, relative: &str) -> bool {
        fs::symlink_metadata(self.path(relative)).is_ok()
    }

    /// The guest goes; the daemon must end in peace. Its log is complete then.
    pub fn finish(self) -> Daemon {
        let Self {
            client,
            vmm,
            mut daemon,
            ..
        } = self;
        drop((client, vmm));
        let status = daemon.wait();
        assert!(status.success(), "{status}; {:#?}", daemon.log());
        daemon
    }
}
