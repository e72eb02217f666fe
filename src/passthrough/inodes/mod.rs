//! Which file is it, and how do we keep hold of it: inodes, the descriptors and handles
//! that hold them, mounts, and how a file is found again whose descriptor was closed.

pub(in crate::passthrough) mod directory_cache;
pub(in crate::passthrough) mod fd_budget;
pub(in crate::passthrough) mod file_systems;
pub(in crate::passthrough) mod find;
pub(in crate::passthrough) mod identity;
pub(in crate::passthrough) mod inode;
pub(in crate::passthrough) mod mounts;
pub(in crate::passthrough) mod store;
