//! Attributes and extended attributes.

pub(in crate::passthrough) mod attr;
pub(in crate::passthrough) mod xattr;
pub(in crate::passthrough) mod xattr_map;
