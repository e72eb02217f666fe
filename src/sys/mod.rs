//! System calls that the libraries in use do not offer in the shape needed.
//!
//! Together with `guest` the only place where `unsafe` may stand.

pub mod adopt_fd;
