//! What surrounds the device: the socket and its files, limits, signals, and
//! the barriers: sandbox, capabilities, system calls.
//!
//! Order matters and is kept by `app`: a passed descriptor is adopted before
//! anything is opened, everything that can be checked is checked before the
//! pid file and the socket exist, and these are removed however it ends. The
//! sandbox is entered before rights are given up, which it needs; threads are
//! started after that, since rights belong to threads; the filter comes last.

pub mod capabilities;
pub mod limits;
pub mod own_files;
pub mod parent;
pub mod sandbox;
pub mod seccomp;
pub mod service;
pub mod signals;
pub mod socket;
pub mod user_namespace;
