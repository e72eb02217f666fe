//! Open files and directories: their handles, their data, and locks.

pub(in crate::passthrough) mod data;
pub(in crate::passthrough) mod dir;
pub(in crate::passthrough) mod dir_stream;
pub(in crate::passthrough) mod handles;
pub(in crate::passthrough) mod ioctl;
pub(in crate::passthrough) mod listings;
pub(in crate::passthrough) mod locks;
pub(in crate::passthrough) mod open;
