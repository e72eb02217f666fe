//! The workloads: what is in the shared directory, and which requests each
//! slot sends over and over.

use std::fs;
use std::path::Path;

use crate::common::fuse_client::{Client, read_in, release_in, write_in};
use crate::common::wire::{ENTRY_OUT, Encoder, IN_HEADER, OUT_HEADER, ROOT, dirents, op};

/// One line of the table's first column.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// The requests of slot number `slot`; what they need is looked up and
    /// opened with the client.
    pub(crate) steps: fn(client: &mut Client, slot: usize) -> Vec<Step>,
}

/// One request of a cycle.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) opcode: u32,
    pub(crate) nodeid: u64,
    /// What follows the header, without the payload.
    pub(crate) body: Vec<u8>,
    /// Bytes of data that follow the body, in pages.
    pub(crate) payload: usize,
    pub(crate) reply: Reply,
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
    /// Offset in the reply, header included.
    pub(crate) from: usize,
    /// Index of the step, and offset in its request, header included.
    pub(crate) step: usize,
    pub(crate) to: usize,
}

/// Where a request has its node.
const NODEID: usize = 16;
/// Where the requests with a handle have it.
const FH: usize = IN_HEADER;

impl Step {
    fn new(opcode: u32, nodeid: u64, body: Encoder, reply: Reply) -> Self {
        Self {
            opcode,
            nodeid,
            body: body.0,
            payload: 0,
            reply,
            weight: 1,
            feeds: Vec::new(),
        }
    }

    /// In the middle of an operation.
    fn part(mut self) -> Self {
        self.weight = 0;
        self
    }

    fn feeds(mut self, feeds: &[(usize, usize, usize)]) -> Self {
        self.feeds = feeds
            .iter()
            .map(|&(from, step, to)| Feed { from, step, to })
            .collect();
        self
    }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    Workload {
        name: "getattr",
        steps: getattr,
    },
    Workload {
        name: "lookup",
        steps: lookup,
    },
    Workload {
        name: "open+read 4k+release",
        steps: open_read_release,
    },
    Workload {
        name: "read 4k",
        steps: |client, _| read(client, 4 << 10),
    },
    Workload {
        name: "read 128k",
        steps: |client, _| read(client, 128 << 10),
    },
    Workload {
        name: "read 1M",
        steps: |client, _| read(client, 1 << 20),
    },
    Workload {
        name: "write 4k",
        steps: |client, slot| write(client, slot, 4 << 10),
    },
    Workload {
        name: "write 128k",
        steps: |client, slot| write(client, slot, 128 << 10),
    },
    Workload {
        name: "write 1M",
        steps: |client, slot| write(client, slot, 1 << 20),
    },
    Workload {
        name: "create+write 4k+unlink",
        steps: create_write_unlink,
    },
    Workload {
        name: "readdirplus entry",
        steps: readdirplus,
    },
];

const SMALL_FILES: usize = 16;
const LARGE_FILE_BYTES: usize = 4 << 20;
const ENTRIES: usize = 10_000;
/// What a Linux guest up to 6.14 asks for at a time.
const READDIR_BYTES: u32 = 4096;

/// Makes everything that the workloads read.
pub(crate) fn fill(share: &Path) {
    for index in 0..SMALL_FILES {
        fs::write(share.join(format!("small-{index}")), vec![b's'; 4096]).unwrap();
    }
    fs::write(share.join("large"), vec![b'l'; LARGE_FILE_BYTES]).unwrap();
    fs::create_dir(share.join("entries")).unwrap();
    for index in 0..ENTRIES {
        fs::write(share.join(format!("entries/file-{index:05}")), "").unwrap();
    }
}

fn getattr(client: &mut Client, slot: usize) -> Vec<Step> {
    let node = client.lookup(ROOT, small(slot)).unwrap().nodeid;
    vec![Step::new(
        op::GETATTR,
        node,
        Encoder::new().u64(0).u64(0),
        Reply::Small(104),
    )]
}

fn lookup(client: &mut Client, _: usize) -> Vec<Step> {
    let one = |index| {
        client.lookup(ROOT, small(index)).unwrap();
        let body = Encoder::new().name(small(index));
        Step::new(op::LOOKUP, ROOT, body, Reply::Small(ENTRY_OUT))
    };
    (0..SMALL_FILES).map(one).collect()
}

fn open_read_release(client: &mut Client, slot: usize) -> Vec<Step> {
    let node = client.lookup(ROOT, small(slot)).unwrap().nodeid;
    let open = Step::new(op::OPEN, node, Encoder::new().u64(0), Reply::Small(16));
    let read = Step::new(op::READ, node, read_in(0, 0, 4096), Reply::Data(4096));
    let release = Step::new(op::RELEASE, node, release_in(0), Reply::Small(0));
    let fh = OUT_HEADER;
    vec![
        open.part().feeds(&[(fh, 1, FH), (fh, 2, FH)]),
        read.part(),
        release,
    ]
}

fn read(client: &mut Client, size: usize) -> Vec<Step> {
    let node = client.lookup(ROOT, "large").unwrap().nodeid;
    let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
    let at = |offset| {
        let body = read_in(fh, offset as u64, u32::try_from(size).unwrap());
        Step::new(op::READ, node, body, Reply::Data(size))
    };
    offsets(size).map(at).collect()
}

fn write(client: &mut Client, slot: usize, size: usize) -> Vec<Step> {
    let name = format!("written-{slot}");
    let (entry, open) = client.create(ROOT, &name, libc::O_RDWR, 0o600).unwrap();
    let at = |offset| {
        let body = write_in(
            open.fh,
            offset as u64,
            u32::try_from(size).unwrap(),
            0,
            libc::O_RDWR,
        );
        let step = Step::new(op::WRITE, entry.nodeid, body, Reply::Small(8));
        Step {
            payload: size,
            ..step
        }
    };
    offsets(size).map(at).collect()
}

/// All places of a large file, or as many as make a fair number of steps.
fn offsets(size: usize) -> impl Iterator<Item = usize> {
    (0..LARGE_FILE_BYTES).step_by(size).take(64)
}

fn create_write_unlink(_: &mut Client, slot: usize) -> Vec<Step> {
    let name = format!("created-{slot}");
    let flags = (libc::O_CREAT | libc::O_EXCL | libc::O_RDWR).cast_unsigned();
    let create = Encoder::new().u32(flags).u32(0o644).u64(0).name(&name);
    let write = write_in(0, 0, 4096, 0, libc::O_RDWR);
    let (node, fh) = (OUT_HEADER, OUT_HEADER + ENTRY_OUT);
    let feeds = [
        (node, 1, NODEID),
        (fh, 1, FH),
        (node, 2, NODEID),
        (fh, 2, FH),
        (node, 4, NODEID),
    ];
    vec![
        Step::new(op::CREATE, ROOT, create, Reply::Small(ENTRY_OUT + 16))
            .part()
            .feeds(&feeds),
        Step {
            payload: 4096,
            ..Step::new(op::WRITE, 0, write, Reply::Small(8)).part()
        },
        Step::new(op::RELEASE, 0, release_in(0), Reply::Small(0)).part(),
        Step::new(
            op::UNLINK,
            ROOT,
            Encoder::new().name(&name),
            Reply::Small(0),
        )
        .part(),
        Step::new(op::FORGET, 0, Encoder::new().u64(1), Reply::None),
    ]
}

/// The whole directory, again and again, with a handle for each slot. The
/// first pass, here, makes the entries known; they are never forgotten.
fn readdirplus(client: &mut Client, _: usize) -> Vec<Step> {
    let node = client.lookup(ROOT, "entries").unwrap().nodeid;
    let fh = client.opendir(node).unwrap().fh;
    let mut steps = Vec::new();
    let mut offset = 0;
    loop {
        let body = read_in(fh, offset, READDIR_BYTES);
        let mut step = Step::new(
            op::READDIRPLUS,
            node,
            body,
            Reply::Data(READDIR_BYTES as usize),
        );
        let request = crate::common::fuse_client::Request {
            opcode: step.opcode,
            nodeid: step.nodeid,
            body: step.body.clone(),
            extensions: Vec::new(),
            space: READDIR_BYTES as usize,
        };
        let entries = dirents(&client.call(&request).unwrap(), true);
        step.weight = entries.len() as u64;
        steps.push(step);
        match entries.last() {
            Some(last) => offset = last.off,
            None => return steps,
        }
    }
}

fn small(slot: usize) -> String {
    format!("small-{}", slot % SMALL_FILES)
}
