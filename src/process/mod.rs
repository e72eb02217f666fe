//! What surrounds the device: the socket and its files, limits, signals.
//!
//! Order matters and is kept by `app`: a passed descriptor is adopted before
//! anything is opened, everything that can be checked is checked before the
//! pid file and the socket exist, and these are removed however it ends.

pub mod capabilities;
pub mod limits;
pub mod own_files;
pub mod seccomp;
pub mod signals;
pub mod socket;
