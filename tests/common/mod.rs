//! The other side of the socket: a virtual machine without a virtual machine.
//!
//! - [`daemon`] starts and watches a daemon binary.
//! - [`memory`] is the guest's memory, in shared memory files.
//! - [`frontend`] is the vhost-user front end and its split virtqueues.
//! - [`frozen_fs`] is a disk of the host that waits for the test.
//! - [`host_fs`] is any file system of the host, for one test.
//! - [`held_fs`] is a file system of the host that waits for the test.
//! - [`machine`] is a guest that moves from daemon to daemon.
//! - [`trace`] is what a daemon asked of the kernel.
//! - [`session`] is all of these together, for tests of single operations.
//! - [`every_operation`] is one valid request of each operation.
//! - [`table`] keeps the tables of `doc/hostile-guest.md` true.
//! - [`wire`] is an independent definition of the FUSE wire format.
//! - [`fuse_client`] sends requests and checks every reply.
//!
//! Nothing here uses the daemon's own code, so that a mistake there cannot
//! hide behind the same mistake here.

// Each test crate uses a part of this module.
#![allow(dead_code, unreachable_pub, unused_imports)]
// This is test code: a surprise ends the test with its place and its value.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

pub mod daemon;
pub mod every_operation;
pub mod frontend;
pub mod frozen_fs;
pub mod fuse_client;
pub mod held_fs;
pub mod host_fs;
pub mod lease;
pub mod machine;
pub mod memory;
pub mod pairs;
pub mod session;
pub mod table;
pub mod trace;
pub mod wire;

mod event {
    //! The unsafe lines: `vhost` wants an `EventFd`, and that one cannot be borrowed as
    //! a descriptor, or be made of another one.
    #![allow(unsafe_code)]

    use std::fs::File;
    use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};

    use vmm_sys_util::eventfd::EventFd;

    pub(super) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `event`, which the result
        // borrows.
        unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
    }

    pub(super) fn pass_off(file: File) -> EventFd {
        // SAFETY: the descriptor is that of the file, which gives it up.
        unsafe { EventFd::from_raw_fd(file.into_raw_fd()) }
    }
}

/// Has a file pass as an event.
pub fn as_event(file: std::fs::File) -> EventFd {
    event::pass_off(file)
}

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

/// Numbers that are the same in each run (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One of several.
    pub fn choice<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// How long anything that must happen may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `event` was signalled, at most `timeout`; tells whether it was.
pub fn wait_event(event: &EventFd, timeout: Duration) -> bool {
    wait_readable(event::borrow(event), timeout)
}

/// Waits until `fd` is readable, at most `timeout`; tells whether it is.
pub fn wait_readable(fd: impl AsFd, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// Where tests keep what is slow to make.
pub fn cache() -> PathBuf {
    let cache = std::env::var_os("VIRTIOFSD_TEST_CACHE").map(PathBuf::from);
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    cache.unwrap_or_else(|| repository.join("target/vm"))
}

/// The daemons whose guests move here and back, by their version.
pub fn references() -> Vec<(String, PathBuf)> {
    let make = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/references");
    let made = Command::new(make).stdin(Stdio::null()).status();
    assert!(made.unwrap().success(), "tests/vm/references failed");
    let mut found: Vec<_> = std::fs::read_dir(cache().join("references"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let version = entry.file_name().into_string().unwrap();
            (version, entry.path().join("bin/virtiofsd"))
        })
        .collect();
    found.sort();
    found
}

/// Waits until a file is old enough to be known by its birth time.
pub fn wait_until_old(file: &Path) {
    let born = std::fs::symlink_metadata(file).unwrap().created().unwrap();
    while born.elapsed().unwrap_or_default() < Duration::from_millis(50) {
        std::thread::yield_now();
    }
}
