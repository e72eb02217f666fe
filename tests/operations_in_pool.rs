//! The tests of `operations.rs` once more, on a daemon that serves requests
//! with a pool of threads: see `Daemon::start`.

#[path = "operations.rs"]
mod operations;
