//! Operations on names: looking up, creating, removing, moving.

pub(in crate::passthrough) mod entries;
pub(in crate::passthrough) mod label;
pub(in crate::passthrough) mod lookup;
