//! The requests of every workload but the trees: small cycles that end where
//! they began.

use crate::common::fuse_client::{Client, Request, SetAttr, read_in, release_in, write_in};
use crate::common::wire::{ENTRY_OUT, Encoder, OUT_HEADER, ROOT, dirents, op};
use crate::share::{self, all_small, small};
use crate::step::{FH, NODEID, Reply, Slot, Step};

/// What a Linux guest up to 6.14 asks for at a time.
const READDIR_BYTES: u32 = 4096;

/// Slots that write, beside one that does not.
pub(crate) const WRITERS: usize = 16;

const ATTR_OUT: usize = 104;
const OPEN_OUT: usize = 16;

pub(crate) fn step_lookup(parent: u64, name: &str) -> Step {
    let body = Encoder::new().name(name);
    Step::new(op::LOOKUP, parent, body, Reply::Small(ENTRY_OUT))
}

pub(crate) fn step_unlink(parent: u64, name: &str) -> Step {
    let body = Encoder::new().name(name);
    Step::new(op::UNLINK, parent, body, Reply::Small(0))
}

pub(crate) fn step_mkdir(parent: u64, name: &str) -> Step {
    let body = Encoder::new().u32(0o755).u32(0o022).name(name);
    Step::new(op::MKDIR, parent, body, Reply::Small(ENTRY_OUT))
}

pub(crate) fn step_rmdir(parent: u64, name: &str) -> Step {
    let body = Encoder::new().name(name);
    Step::new(op::RMDIR, parent, body, Reply::Small(0))
}

pub(crate) fn step_create(parent: u64, name: &str) -> Step {
    let flags = (libc::O_CREAT | libc::O_EXCL | libc::O_RDWR).cast_unsigned();
    let body = Encoder::new().u32(flags).u32(0o644).u32(0o022).u32(0);
    Step::new(
        op::CREATE,
        parent,
        body.name(name),
        Reply::Small(ENTRY_OUT + OPEN_OUT),
    )
}

pub(crate) fn step_write(node: u64, fh: u64, offset: u64, size: usize) -> Step {
    let len = u32::try_from(size).unwrap();
    let body = write_in(fh, offset, len, 0, libc::O_RDWR);
    Step::new(op::WRITE, node, body, Reply::Small(8)).payload(size)
}

pub(crate) fn step_release(node: u64, fh: u64) -> Step {
    Step::new(op::RELEASE, node, release_in(fh), Reply::Small(0))
}

pub(crate) fn step_forget(count: u64) -> Step {
    Step::new(op::FORGET, 0, Encoder::new().u64(count), Reply::None)
}

pub(crate) fn step_utimes(node: u64) -> Step {
    let set = SetAttr {
        mtime: Some((1_000_000_000, 0)),
        ..SetAttr::default()
    };
    Step::new(op::SETATTR, node, set.encode(), Reply::Small(ATTR_OUT))
}

pub(crate) fn getattr(client: &mut Client, slot: Slot) -> Vec<Step> {
    let node = client.lookup(ROOT, small(slot.number)).unwrap().nodeid;
    let body = Encoder::new().u64(0).u64(0);
    vec![Step::new(op::GETATTR, node, body, Reply::Small(ATTR_OUT))]
}

pub(crate) fn lookup_known(client: &mut Client, _: Slot) -> Vec<Step> {
    all_small()
        .map(|name| {
            client.lookup(ROOT, &name).unwrap();
            step_lookup(ROOT, &name)
        })
        .collect()
}

/// Each slot has names of its own and forgets what it found.
pub(crate) fn lookup_new(client: &mut Client, slot: Slot) -> Vec<Step> {
    let dir = client.lookup(ROOT, "entries").unwrap().nodeid;
    let mut steps = Vec::new();
    for index in 0..16 {
        let name = format!("file-{:05}", slot.number * 16 + index);
        let forget = steps.len() + 1;
        steps.push(step_lookup(dir, &name).feeds(&[(OUT_HEADER, forget, NODEID)]));
        steps.push(step_forget(1).part());
    }
    steps
}

pub(crate) fn lookup_missing(_: &mut Client, _: Slot) -> Vec<Step> {
    vec![step_lookup(ROOT, "no-such-name").fails(libc::ENOENT)]
}

pub(crate) fn open_read(client: &mut Client, slot: Slot) -> Vec<Step> {
    let node = client.lookup(ROOT, small(slot.number)).unwrap().nodeid;
    let body = Encoder::new().u64(0);
    let open = Step::new(op::OPEN, node, body, Reply::Small(OPEN_OUT));
    let read = Step::new(op::READ, node, read_in(0, 0, 4096), Reply::Data(4096));
    let fh = OUT_HEADER;
    vec![
        open.part().feeds(&[(fh, 1, FH), (fh, 2, FH)]),
        read.part(),
        step_release(node, 0),
    ]
}

pub(crate) fn create_write_unlink(_: &mut Client, slot: Slot) -> Vec<Step> {
    let name = format!("created-{}", slot.number);
    let (node, fh) = (OUT_HEADER, OUT_HEADER + ENTRY_OUT);
    let feeds = [
        (node, 1, NODEID),
        (fh, 1, FH),
        (node, 2, NODEID),
        (fh, 2, FH),
        (node, 4, NODEID),
    ];
    vec![
        step_create(ROOT, &name).part().feeds(&feeds),
        step_write(0, 0, 0, 4096).part(),
        step_release(0, 0).part(),
        step_unlink(ROOT, &name),
        step_forget(1).part(),
    ]
}

pub(crate) fn mkdir_rmdir(_: &mut Client, slot: Slot) -> Vec<Step> {
    let name = format!("dir-{}", slot.number);
    vec![
        step_mkdir(ROOT, &name)
            .part()
            .feeds(&[(OUT_HEADER, 2, NODEID)]),
        step_rmdir(ROOT, &name),
        step_forget(1).part(),
    ]
}

/// There and back again.
pub(crate) fn rename(client: &mut Client, slot: Slot) -> Vec<Step> {
    let names = ["here", "there"].map(|word| format!("{word}-{}", slot.number));
    // From an earlier run, whichever name it ended with.
    for name in &names {
        let _ = client.unlink(ROOT, name);
    }
    client.mknod(ROOT, &names[0], 0o100_644, 0, 0).unwrap();
    let step = |from: &str, to: &str| {
        let body = Encoder::new().u64(ROOT).name(from).name(to);
        Step::new(op::RENAME, ROOT, body, Reply::Small(0))
    };
    vec![step(&names[0], &names[1]), step(&names[1], &names[0])]
}

pub(crate) fn symlink_readlink(_: &mut Client, slot: Slot) -> Vec<Step> {
    let name = format!("link-{}", slot.number);
    let body = Encoder::new().name(&name).name("small-0");
    let readlink = Step::new(op::READLINK, 0, Encoder::new(), Reply::Data(4096));
    vec![
        Step::new(op::SYMLINK, ROOT, body, Reply::Small(ENTRY_OUT))
            .part()
            .feeds(&[(OUT_HEADER, 1, NODEID), (OUT_HEADER, 3, NODEID)]),
        readlink.part(),
        step_unlink(ROOT, &name),
        step_forget(1).part(),
    ]
}

pub(crate) fn setattr(client: &mut Client, slot: Slot) -> Vec<Step> {
    let node = client.lookup(ROOT, small(slot.number)).unwrap().nodeid;
    vec![step_utimes(node)]
}

pub(crate) fn getxattr(client: &mut Client, slot: Slot, name: &str, errno: i32) -> Vec<Step> {
    let node = client.lookup(ROOT, small(slot.number)).unwrap().nodeid;
    let body = Encoder::new().u32(256).u32(0).name(name);
    vec![Step::new(op::GETXATTR, node, body, Reply::Small(256)).fails(errno)]
}

pub(crate) fn statfs(_: &mut Client, _: Slot) -> Vec<Step> {
    vec![Step::new(
        op::STATFS,
        ROOT,
        Encoder::new(),
        Reply::Small(80),
    )]
}

pub(crate) fn readdir(client: &mut Client, _: Slot) -> Vec<Step> {
    whole_directory(client, op::READDIR)
}

pub(crate) fn readdirplus(client: &mut Client, _: Slot) -> Vec<Step> {
    whole_directory(client, op::READDIRPLUS)
}

/// The whole directory, again and again, with a handle for each slot. The
/// first pass, here, makes the entries known; they are never forgotten.
fn whole_directory(client: &mut Client, opcode: u32) -> Vec<Step> {
    let node = client.lookup(ROOT, "entries").unwrap().nodeid;
    let fh = client.opendir(node).unwrap().fh;
    let mut steps = Vec::new();
    let mut offset = 0;
    loop {
        let body = read_in(fh, offset, READDIR_BYTES);
        let request = Request::new(opcode, node, body.clone()).space(READDIR_BYTES as usize);
        let bytes = client.call(&request).unwrap();
        let entries = dirents(&bytes, opcode == op::READDIRPLUS);
        let step = Step::new(opcode, node, body, Reply::Data(READDIR_BYTES as usize));
        steps.push(Step {
            weight: entries.len() as u64,
            ..step
        });
        match entries.last() {
            Some(last) => offset = last.off,
            None => return steps,
        }
    }
}

pub(crate) fn read(
    client: &mut Client,
    _: Slot,
    size: usize,
    offsets: fn(usize) -> Vec<u64>,
) -> Vec<Step> {
    read_file(client, "large", size, offsets(size))
}

pub(crate) fn read_slow(client: &mut Client, _: Slot) -> Vec<Step> {
    let (folder, file) = share::SLOW;
    read_file(client, &format!("{folder}/{file}"), 4096, vec![0, 4096])
}

fn read_file(client: &mut Client, path: &str, size: usize, offsets: Vec<u64>) -> Vec<Step> {
    let node = client.walk(path).unwrap().nodeid;
    let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
    let at = |offset| {
        let body = read_in(fh, offset, u32::try_from(size).unwrap());
        Step::new(op::READ, node, body, Reply::Data(size))
    };
    offsets.into_iter().map(at).collect()
}

pub(crate) fn write(
    client: &mut Client,
    slot: Slot,
    size: usize,
    offsets: fn(usize) -> Vec<u64>,
) -> Vec<Step> {
    let (node, fh) = written_file(client, slot);
    let at = |offset| step_write(node, fh, offset, size);
    offsets(size).into_iter().map(at).collect()
}

fn written_file(client: &mut Client, slot: Slot) -> (u64, u64) {
    let name = format!("written-{}", slot.number);
    let (entry, open) = client.create(ROOT, &name, libc::O_RDWR, 0o600).unwrap();
    (entry.nodeid, open.fh)
}

/// Of a file that has nothing to write: what the way there and back costs.
pub(crate) fn fsync(client: &mut Client, slot: Slot) -> Vec<Step> {
    let (node, fh) = written_file(client, slot);
    client.fsync(node, fh, 0).unwrap();
    vec![step_fsync(node, fh)]
}

fn step_fsync(node: u64, fh: u64) -> Step {
    let body = Encoder::new().u64(fh).u64(0);
    Step::new(op::FSYNC, node, body, Reply::Small(0))
}

/// The first slot asks for attributes and is measured. The others write 4 MiB
/// each, 64 together, to files of their own, and have it written to disk.
pub(crate) fn getattr_beside_writes(client: &mut Client, slot: Slot) -> Vec<Step> {
    if slot.number.is_multiple_of(1 + WRITERS) {
        return getattr(client, slot);
    }
    let (node, fh) = written_file(client, slot);
    let writes = (0..4).map(|index| step_write(node, fh, index << 20, 1 << 20).part());
    writes.chain([step_fsync(node, fh).part()]).collect()
}
