//! What a workload is made of: the requests of each slot, and the same by system calls.

use std::path::Path;

use crate::common::fuse_client::Client;
use crate::common::wire::{Encoder, IN_HEADER};

/// Does one operation, or several; gives how many.
pub(crate) type Direct = Box<dyn FnMut() -> u64>;

/// One line of the table's first column.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// Makes what it needs in the shared directory, if that is not there yet.
    pub(crate) prepare: fn(share: &Path),
    /// The requests of one slot; what they need is looked up and opened with
    /// the client.
    pub(crate) steps: fn(client: &mut Client, slot: Slot) -> Vec<Step>,
    /// The same operations done by system calls.
    pub(crate) direct: fn(share: &Path) -> Direct,
    pub(crate) kind: Kind,
    pub(crate) host: Host,
    /// More arguments for the daemon.
    pub(crate) args: &'static [&'static str],
}

/// How the requests of a slot are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Over and over, until the time is up.
    Cycle,
    /// Over and over, with so many slots on one queue, whatever depth is asked
    /// for: they are not alike.
    Mixed(usize),
    /// Once: a tree is worked through by all slots together, and the time that
    /// this takes is what counts. The latencies are those of single requests.
    Once,
}

/// What the host's file system does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// What it does by itself, from its caches.
    Usual,
    /// `share::SLOW` is there, each read of which takes a while.
    Slow,
}

/// Which of the requests in flight this is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) number: usize,
    /// How many there are, on all queues together.
    pub(crate) of: usize,
}

/// One request of a slot.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) opcode: u32,
    pub(crate) nodeid: u64,
    pub(crate) uid: u32,
    /// What follows the header, without the payload.
    pub(crate) body: Vec<u8>,
    /// Bytes of data that follow the body, in pages.
    pub(crate) payload: usize,
    pub(crate) reply: Reply,
    /// The errno that is the right answer; 0 for none.
    pub(crate) errno: i32,
    /// Operations that are done when this request is; 0 in the middle of one.
    pub(crate) weight: u64,
    /// What later requests need of this one's reply.
    pub(crate) feeds: Vec<Feed>,
}

/// Room for a reply's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Not even a header.
    None,
    /// So many bytes behind the header.
    Small(usize),
    /// So many bytes in pages.
    Data(usize),
}

/// Eight bytes of a reply that are put into a request of the same slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed {
    pub(crate) value: Value,
    /// Index of the step, and offset in its request, header included.
    pub(crate) step: usize,
    pub(crate) to: usize,
}

/// Where in a reply the eight bytes are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    /// At an offset, header included.
    At(usize),
    /// The cookie of the last entry of a READDIRPLUS reply.
    LastCookie,
}

/// Where a request has its node.
pub(crate) const NODEID: usize = 16;
/// Where the requests with a handle have it.
pub(crate) const FH: usize = IN_HEADER;

impl Step {
    pub(crate) fn new(opcode: u32, nodeid: u64, body: Encoder, reply: Reply) -> Self {
        Self {
            opcode,
            nodeid,
            uid: 0,
            body: body.0,
            payload: 0,
            reply,
            errno: 0,
            weight: 1,
            feeds: Vec::new(),
        }
    }

    /// In the middle of an operation.
    pub(crate) fn part(self) -> Self {
        Self { weight: 0, ..self }
    }

    /// With so many bytes of data.
    pub(crate) fn payload(self, payload: usize) -> Self {
        Self { payload, ..self }
    }

    /// Fails, and that is right.
    pub(crate) fn fails(self, errno: i32) -> Self {
        Self { errno, ..self }
    }

    /// For the user of this number.
    pub(crate) fn of_user(self, uid: u32) -> Self {
        Self { uid, ..self }
    }

    /// Offset in the reply, step, offset in its request.
    pub(crate) fn feeds(mut self, feeds: &[(usize, usize, usize)]) -> Self {
        let feed = |&(from, step, to)| Feed {
            value: Value::At(from),
            step,
            to,
        };
        self.feeds.extend(feeds.iter().map(feed));
        self
    }

    /// The last cookie of this READDIRPLUS is where that step goes on.
    pub(crate) fn continued_by(mut self, step: usize) -> Self {
        self.feeds.push(Feed {
            value: Value::LastCookie,
            step,
            to: IN_HEADER + 8,
        });
        self
    }
}
