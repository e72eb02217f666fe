//! Who acts: the guest's users on the host, and what they may not keep.

pub(in crate::passthrough) mod credentials;
pub(in crate::passthrough) mod id_map;
pub(in crate::passthrough) mod privileges;
