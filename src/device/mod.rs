//! The virtio-fs device as a vhost-user back end.
//!
//! Queue 0 is the high-priority queue, the others are request queues (virtio
//! 1.2, 5.11.2). Each queue has a thread of its own, and each request queue a
//! second one for when that one waits.

mod backend;
mod busy_poll;
mod config_space;
mod daemon;
mod helpers;
mod in_flight;
mod queue;
mod relief;
mod shift;
mod standby;
mod state;
mod vring;
mod workspace;

pub use crate::server::Access;
pub use backend::{Device, DeviceOptions, PoolMaker, Threads, WatchOptions};
pub use config_space::TAG_BYTES;
pub use daemon::serve;

use std::os::fd::OwnedFd;

use crate::sys;

/// The most request queues: with the high-priority queue and the front end's
/// limit of 64 bits for queue masks there is room for no more.
pub const MAX_REQUEST_QUEUES: usize = 62;

/// The largest size of a queue: that of virtio (1.2, 2.7).
pub const MAX_QUEUE_SIZE: usize = 32768;

/// The most threads that wait for disks in the place of the queues' own threads, and
/// as many that wait for servers: one that is gone must not take the disks along. What
/// is beyond that waits for one of them.
const MAX_HELPERS: usize = 64;

/// The most requests that wait for locks at once, each on a thread of its own, so
/// that the threads for other work stay free; one more gets `ENOLCK`.
const MAX_LOCK_WAITS: usize = 256;

/// Gives a thread its file-system context; that it can be done was tried at
/// start, so a thread that cannot is a reason to stop.
fn settle(directory: &OwnedFd) {
    if let Err(errno) = sys::thread::settle_in(directory) {
        log::error!("cannot give a thread its own file-system context, stopping: {errno}");
        std::process::abort();
    }
}
