//! The buffers that a serving thread keeps from one request to the next.

use std::cell::RefCell;

use crate::guest::buffers::Spans;
use crate::server::Scratch;

/// Buffers of one serving thread.
#[derive(Default)]
pub(super) struct Workspace {
    pub(super) spans: Spans,
    pub(super) scratch: Scratch,
    /// Chains that were taken from a ring.
    pub(super) heads: Vec<u16>,
}

thread_local! {
    /// The buffers of a thread that serves.
    pub(super) static WORKSPACE: RefCell<Workspace> = RefCell::default();
}
