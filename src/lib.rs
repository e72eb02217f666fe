//! The host side of virtio-fs: a vhost-user back end that answers the FUSE
//! requests of a guest kernel by calling the host's file system.

pub mod app;
pub mod cli;
pub mod config;
pub mod logging;
pub mod process;
pub mod sys;
