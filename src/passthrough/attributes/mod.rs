//! Attributes and extended attributes.

pub(in crate::passthrough) mod attr;
pub(in crate::passthrough) mod xattr;
pub(in crate::passthrough) mod xattr_map;

use std::ffi::CString;

use xattr_map::XattrMap;

/// What the host calls the guest's extended attributes.
#[derive(Debug)]
pub(in crate::passthrough) struct Xattrs {
    pub(in crate::passthrough) names: XattrMap,
    /// What the host calls the capabilities of a file, where it does not take
    /// them for what they are.
    pub(in crate::passthrough) renamed_capability: Option<CString>,
}
