//! The host side of virtio-fs: a vhost-user back end that answers the FUSE
//! requests of a guest kernel by calling the host's file system.
//!
//! Modules, from the bottom up; each uses only those above it in this list:
//! `id` and `sys` (numbers, system calls), `fuse` and `guest` (bytes of the
//! protocol, guest memory), `fs` (the seam), `server` and `passthrough`
//! (protocol side, host side), `device` (queues).

pub mod config;
pub mod device;
pub mod fs;
pub mod fuse;
pub mod guest;
pub mod id;
pub mod passthrough;
pub mod server;
pub mod sys;
