//! The virtio-fs device as a vhost-user back end.
//!
//! Queue 0 is the high-priority queue, the others are request queues (virtio
//! 1.2, 5.11.2). Each queue has a thread of its own.

mod backend;
mod config_space;
mod daemon;
mod queue;

pub use crate::server::Access;
pub use backend::{Device, DeviceOptions};
pub use config_space::TAG_BYTES;
pub use daemon::serve;

/// The most request queues: with the high-priority queue and the front end's
/// limit of 64 bits for queue masks there is room for no more.
pub const MAX_REQUEST_QUEUES: usize = 62;

/// The largest size of a queue that is offered.
pub const MAX_QUEUE_SIZE: usize = 1024;
