//! The host side of virtio-fs: a vhost-user back end that answers the FUSE
//! requests of a guest kernel by calling the host's file system.
//!
//! Modules, from the bottom up; each uses only those before it in this list:
//! `id`, `sys` and `config` (numbers, system calls, settings), `fuse` and
//! `guest` (bytes of the protocol, guest memory), `metrics` (what is counted), `fs` (the seam), `server` and
//! `passthrough` (protocol side, host side), `device` and `process` (queues;
//! sockets, limits, signals), `cli`, `logging` and `app` (start-up).

pub mod app;
pub mod cli;
pub mod config;
pub mod device;
pub mod fs;
pub mod fuse;
pub mod guest;
pub mod id;
pub mod logging;
pub mod metrics;
pub mod migration;
pub mod passthrough;
pub mod process;
pub mod server;
pub mod sys;
