//! A FUSE client on a virtqueue that trusts no reply.
//!
//! Every request lies in guest memory between guard bytes, and so does the
//! room for its reply. When the request comes back, all of this is looked at:
//! nothing may have changed but the reply, as long as the used entry says and
//! as long as the reply's own header says, with the right number and a length
//! that fits the operation.

use std::collections::HashMap;
use std::ffi::OsStr;

use super::frontend::{Buffer, Queue, Used};
use super::memory::GuestMemory;
use super::wire::{
    AttrOut, Decoder, Dirent, ENTRY_OUT, EXT_GROUPS, Encoder, Entry, FATTR_FH, GETATTR_FH,
    IN_HEADER, InHeader, InitOut, OUT_HEADER, OpenOut, OutHeader, ROOT, Statfs, WRITE_CACHE,
    dirents, init, op,
};

/// The answer to a request: the reply's body, or a positive errno.
pub type Answer<T = Vec<u8>> = Result<T, i32>;

/// What guest memory holds where nothing was written.
pub const POISON: u8 = 0xa5;
/// Poisoned bytes around every buffer.
const GUARD: u64 = 32;

/// How a request and the room for its reply are cut into descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// One descriptor each way.
    Whole,
    /// Header and rest apart, as Linux does.
    Header,
    /// Pieces of these sizes, requests and replies.
    Pieces(usize, usize),
}

/// One request, not yet sent.
#[derive(Clone, Debug)]
pub struct Request {
    pub opcode: u32,
    pub nodeid: u64,
    pub body: Vec<u8>,
    /// Extensions behind the body; a multiple of 8 bytes.
    pub extensions: Vec<u8>,
    /// Room for the reply's body.
    pub space: usize,
}

impl Request {
    pub fn new(opcode: u32, nodeid: u64, body: Encoder) -> Self {
        let space = match reply_size(opcode) {
            ReplySize::Exact(size) => size,
            ReplySize::AtMost | ReplySize::None => 0,
        };
        Self {
            opcode,
            nodeid,
            body: body.0,
            extensions: Vec::new(),
            space,
        }
    }

    pub fn space(mut self, space: usize) -> Self {
        self.space = space;
        self
    }

    pub fn extensions(mut self, extensions: Vec<u8>) -> Self {
        self.extensions = extensions;
        self
    }
}

/// How long a reply's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplySize {
    Exact(usize),
    /// Anything that fits.
    AtMost,
    /// There is no reply, not even a header.
    None,
}

pub fn reply_size(opcode: u32) -> ReplySize {
    match opcode {
        op::LOOKUP | op::SYMLINK | op::MKNOD | op::MKDIR | op::LINK => ReplySize::Exact(ENTRY_OUT),
        op::GETATTR | op::SETATTR => ReplySize::Exact(104),
        op::OPEN | op::OPENDIR => ReplySize::Exact(16),
        op::CREATE => ReplySize::Exact(ENTRY_OUT + 16),
        op::WRITE | op::COPY_FILE_RANGE | op::LSEEK => ReplySize::Exact(8),
        op::STATFS => ReplySize::Exact(80),
        op::GETLK => ReplySize::Exact(24),
        op::TMPFILE => ReplySize::Exact(ENTRY_OUT + 16),
        op::STATX => ReplySize::Exact(288),
        op::IOCTL => ReplySize::AtMost,
        op::INIT | op::READLINK | op::READ | op::READDIR | op::READDIRPLUS => ReplySize::AtMost,
        op::GETXATTR | op::LISTXATTR => ReplySize::AtMost,
        op::FORGET | op::BATCH_FORGET | op::INTERRUPT => ReplySize::None,
        _ => ReplySize::Exact(0),
    }
}

/// What came back for a request, before anything is checked but the memory
/// around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    pub used_len: u32,
    /// The first `used_len` bytes of the room for the reply.
    pub bytes: Vec<u8>,
}

impl RawReply {
    /// A reply to what may be malformed: none at all, or a header that is right.
    #[track_caller]
    pub fn assert_sane(&self, unique: u64, what: &str) {
        if self.used_len == 0 {
            return;
        }
        let len = self.bytes.len();
        assert!(len >= OUT_HEADER, "{what}: {len} bytes");
        let header = OutHeader::decode(&self.bytes[..OUT_HEADER]);
        assert_eq!(header.len, self.used_len, "{what}: length");
        let error = header.error;
        assert!((-4095..=0).contains(&error), "{what}: error {error}");
        assert!(
            header.unique == unique || header.unique == 0,
            "{what}: number {:#x}",
            header.unique
        );
        assert!(
            error == 0 || len == OUT_HEADER,
            "{what}: an error with a body"
        );
    }

    /// Checks header and lengths and takes the reply apart.
    #[track_caller]
    pub fn check(&self, unique: u64, size: ReplySize) -> Answer {
        if size == ReplySize::None {
            assert_eq!(self.used_len, 0, "a reply to a request that has none");
            return Ok(Vec::new());
        }
        assert!(
            self.bytes.len() >= OUT_HEADER,
            "a reply of {} bytes",
            self.bytes.len()
        );
        let (header, body) = self.bytes.split_at(OUT_HEADER);
        let header = OutHeader::decode(header);
        assert_eq!(header.unique, unique, "number of the reply");
        assert_eq!(
            header.len, self.used_len,
            "length in the header and in the used entry"
        );
        assert!(
            (-4095..=0).contains(&header.error),
            "error {}",
            header.error
        );
        if header.error != 0 {
            assert_eq!(self.bytes.len(), OUT_HEADER, "an error with a body");
            return Err(-header.error);
        }
        if let ReplySize::Exact(size) = size {
            assert_eq!(body.len(), size, "length of the reply's body");
        }
        Ok(body.to_vec())
    }
}

/// Buffers in guest memory, each between guard bytes.
#[derive(Debug)]
struct Placed {
    block: u64,
    block_len: u64,
    pieces: Vec<(u64, u32)>,
}

impl Placed {
    fn new(memory: &GuestMemory, region: Option<u64>, sizes: &[usize]) -> Self {
        let total: usize = sizes.iter().sum();
        let block_len = total as u64 + GUARD * (sizes.len() as u64 + 1);
        let block = match region {
            Some(region) => memory.alloc_in(region, block_len),
            None => memory.alloc(block_len),
        };
        memory.write(block, &vec![POISON; usize::try_from(block_len).unwrap()]);
        let mut gpa = block + GUARD;
        let mut pieces = Vec::new();
        for &size in sizes {
            pieces.push((gpa, u32::try_from(size).unwrap()));
            gpa += size as u64 + GUARD;
        }
        Self {
            block,
            block_len,
            pieces,
        }
    }

    fn write(&self, memory: &GuestMemory, mut bytes: &[u8]) {
        for &(gpa, len) in &self.pieces {
            let (piece, rest) = bytes.split_at(len as usize);
            memory.write(gpa, piece);
            bytes = rest;
        }
        assert!(bytes.is_empty());
    }

    /// All bytes of the pieces, and whether all around them is as it was.
    fn read(&self, memory: &GuestMemory) -> Vec<u8> {
        let block = memory.read_vec(self.block, usize::try_from(self.block_len).unwrap());
        let mut bytes = Vec::new();
        let mut end = 0;
        for &(gpa, len) in &self.pieces {
            let start = usize::try_from(gpa - self.block).unwrap();
            assert!(
                is_poison(&block[end..start]),
                "bytes between the buffers were written"
            );
            end = start + len as usize;
            bytes.extend(&block[start..end]);
        }
        assert!(
            is_poison(&block[end..]),
            "bytes behind the buffers were written"
        );
        bytes
    }
}

fn is_poison(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == POISON)
}

/// Sizes of the descriptors for `len` bytes.
fn cut(len: usize, header: usize, piece: Option<usize>, split: Split) -> Vec<usize> {
    let mut sizes = Vec::new();
    match (split, piece) {
        (Split::Header, _) if len > header => sizes.extend([header, len - header]),
        (Split::Pieces(..), Some(piece)) => {
            let mut left = len;
            while left > 0 {
                let size = left.min(piece);
                sizes.push(size);
                left -= size;
            }
        }
        _ if len > 0 => sizes.push(len),
        _ => {}
    }
    sizes
}

/// A request that the daemon has.
#[derive(Debug)]
struct Pending {
    unique: u64,
    size: ReplySize,
    bytes: Vec<u8>,
    request: Placed,
    reply: Placed,
    table: Option<(u64, u64)>,
}

/// Sends requests on one queue, as one user.
#[derive(Debug)]
pub struct Client {
    pub queue: Queue,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub split: Split,
    /// Region for the buffers; the first one if none is given.
    pub region: Option<u64>,
    unique: u64,
    pending: HashMap<u16, Pending>,
    done: HashMap<u64, (RawReply, ReplySize)>,
}

impl Client {
    pub fn new(queue: Queue) -> Self {
        let unique = (queue.index as u64) << 48;
        Self {
            queue,
            uid: 0,
            gid: 0,
            pid: 4242,
            split: Split::Header,
            region: None,
            unique,
            pending: HashMap::new(),
            done: HashMap::new(),
        }
    }

    /// Where the buffers of all requests lie that are with the daemon, with their lengths.
    pub fn buffers(&self) -> Vec<(u64, usize)> {
        let pieces = |placed: &Placed| {
            let pieces = placed.pieces.iter();
            pieces
                .map(|&(gpa, len)| (gpa, len as usize))
                .collect::<Vec<_>>()
        };
        let pending = self.pending.values();
        pending
            .flat_map(|one| [pieces(&one.request), pieces(&one.reply)].concat())
            .collect()
    }

    /// Requests that are with the daemon.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Every descriptor is free again and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.queue.free_descriptors() == usize::from(self.queue.size)
    }

    // ---- sending and waiting

    /// The bytes of a request with a fresh number.
    pub fn encode(&mut self, request: &Request) -> (u64, Vec<u8>) {
        self.unique += 2;
        let len = IN_HEADER + request.body.len() + request.extensions.len();
        let header = InHeader {
            len: u32::try_from(len).unwrap(),
            opcode: request.opcode,
            unique: self.unique,
            nodeid: request.nodeid,
            uid: self.uid,
            gid: self.gid,
            pid: self.pid,
            total_extlen: u16::try_from(request.extensions.len() / 8).unwrap(),
        };
        let mut bytes = header.encode();
        bytes.extend(&request.body);
        bytes.extend(&request.extensions);
        (self.unique, bytes)
    }

    /// Puts a request in the ring; the device does not see it yet.
    pub fn start(&mut self, request: &Request) -> u64 {
        let (unique, bytes) = self.encode(request);
        let size = match (request.opcode, request.space) {
            (op::GETXATTR | op::LISTXATTR, 8) if bytes[IN_HEADER..IN_HEADER + 4] == [0; 4] => {
                ReplySize::Exact(8)
            }
            (opcode, _) => reply_size(opcode),
        };
        let room = match size {
            ReplySize::None => 0,
            _ => OUT_HEADER + request.space,
        };
        self.start_bytes(unique, bytes, room, size);
        unique
    }

    /// Puts any bytes in the ring as a request, with `room` bytes for a reply.
    pub fn start_bytes(&mut self, unique: u64, bytes: Vec<u8>, room: usize, size: ReplySize) {
        let (in_piece, out_piece) = match self.split {
            Split::Pieces(request, reply) => (Some(request), Some(reply)),
            _ => (None, None),
        };
        let memory = self.queue.memory.clone();
        let sizes = cut(bytes.len(), IN_HEADER, in_piece, self.split);
        let request = Placed::new(&memory, self.region, &sizes);
        request.write(&memory, &bytes);
        let sizes = cut(room, OUT_HEADER, out_piece, self.split);
        let reply = Placed::new(&memory, self.region, &sizes);

        let readable = request.pieces.iter().map(|&(gpa, len)| Buffer {
            gpa,
            len,
            writable: false,
        });
        let writable = reply.pieces.iter().map(|&(gpa, len)| Buffer {
            gpa,
            len,
            writable: true,
        });
        let buffers: Vec<_> = readable.chain(writable).collect();
        let table = self.queue.use_indirect.then(|| {
            let len = 16 * buffers.len() as u64;
            (memory.alloc(len), len)
        });
        let head = self.queue.add(&buffers, table.map(|(gpa, _)| gpa));
        let pending = Pending {
            unique,
            size,
            bytes,
            request,
            reply,
            table,
        };
        self.pending.insert(head, pending);
    }

    /// Shows everything that was started to the device.
    pub fn submit(&mut self) {
        self.queue.submit();
    }

    /// Waits for any answer; gives the request's number.
    pub fn finish_raw(&mut self) -> (u64, RawReply, ReplySize) {
        let used = self.queue.wait();
        self.take(used)
    }

    /// Takes an answer if there is one already.
    pub fn poll_raw(&mut self) -> Option<(u64, RawReply, ReplySize)> {
        let used = self.queue.pop()?;
        Some(self.take(used))
    }

    fn take(&mut self, used: Used) -> (u64, RawReply, ReplySize) {
        let pending = self
            .pending
            .remove(&used.head)
            .expect("used entry of a request");
        self.queue.release(used.head);
        let memory = self.queue.memory.clone();
        let request = pending.request.read(&memory);
        assert!(request == pending.bytes, "the daemon changed the request");
        let reply = pending.reply.read(&memory);
        let len = used.len as usize;
        assert!(
            len <= reply.len(),
            "used length {len} in a room of {}",
            reply.len()
        );
        let (bytes, rest) = reply.split_at(len);
        assert!(is_poison(rest), "bytes behind the reply were written");
        memory.free(pending.request.block, pending.request.block_len);
        memory.free(pending.reply.block, pending.reply.block_len);
        if let Some((gpa, len)) = pending.table {
            memory.free(gpa, len);
        }
        let raw = RawReply {
            used_len: used.len,
            bytes: bytes.to_vec(),
        };
        (pending.unique, raw, pending.size)
    }

    /// Waits for any answer and checks it.
    pub fn finish(&mut self) -> (u64, Answer) {
        let (unique, raw, size) = self.finish_raw();
        (unique, raw.check(unique, size))
    }

    /// Waits for the answer to one request; others are kept.
    pub fn wait_for(&mut self, unique: u64) -> Answer {
        loop {
            if let Some((raw, size)) = self.done.remove(&unique) {
                return raw.check(unique, size);
            }
            let (number, raw, size) = self.finish_raw();
            self.done.insert(number, (raw, size));
        }
    }

    /// One request and its answer.
    pub fn call(&mut self, request: &Request) -> Answer {
        let unique = self.start(request);
        self.submit();
        self.wait_for(unique)
    }

    /// Sends any bytes with `room` for a reply; gives back what came.
    pub fn call_bytes(&mut self, bytes: &[u8], room: usize) -> RawReply {
        self.start_bytes(0, bytes.to_vec(), room, ReplySize::AtMost);
        self.submit();
        loop {
            let (unique, raw, size) = self.finish_raw();
            if unique == 0 {
                return raw;
            }
            self.done.insert(unique, (raw, size));
        }
    }

    fn entry(&mut self, opcode: u32, nodeid: u64, body: Encoder) -> Answer<Entry> {
        let body = self.call(&Request::new(opcode, nodeid, body))?;
        Ok(Entry::decode(&body))
    }

    fn empty(&mut self, opcode: u32, nodeid: u64, body: Encoder) -> Answer<()> {
        self.call(&Request::new(opcode, nodeid, body)).map(drop)
    }

    // ---- session

    /// INIT as a current Linux guest sends it.
    pub fn init(&mut self) -> InitOut {
        self.init_with(7, 39, init::LINUX).unwrap()
    }

    pub fn init_with(&mut self, major: u32, minor: u32, flags: u64) -> Answer<InitOut> {
        let low = u32::try_from(flags & 0xffff_ffff).unwrap();
        let mut body = Encoder::new().u32(major).u32(minor).u32(0x2_0000).u32(low);
        if flags & init::INIT_EXT != 0 {
            body = body
                .u32(u32::try_from(flags >> 32).unwrap())
                .bytes(&[0; 44]);
        }
        let body = self.call(&Request::new(op::INIT, 0, body).space(64))?;
        Ok(InitOut::decode(&body))
    }

    pub fn destroy(&mut self) -> Answer<()> {
        self.empty(op::DESTROY, ROOT, Encoder::new())
    }

    // ---- names

    pub fn lookup(&mut self, parent: u64, name: impl AsRef<OsStr>) -> Answer<Entry> {
        self.entry(op::LOOKUP, parent, Encoder::new().name(name))
    }

    /// Looks up every part of a path below the root.
    pub fn walk(&mut self, path: &str) -> Answer<Entry> {
        let mut parts = path.split('/');
        let mut entry = self.lookup(ROOT, parts.next().unwrap())?;
        for part in parts {
            entry = self.lookup(entry.nodeid, part)?;
        }
        Ok(entry)
    }

    pub fn forget(&mut self, nodeid: u64, count: u64) {
        self.empty(op::FORGET, nodeid, Encoder::new().u64(count))
            .unwrap();
    }

    pub fn batch_forget(&mut self, nodes: &[(u64, u64)]) {
        let mut body = Encoder::new()
            .u32(u32::try_from(nodes.len()).unwrap())
            .u32(0);
        for &(nodeid, count) in nodes {
            body = body.u64(nodeid).u64(count);
        }
        self.empty(op::BATCH_FORGET, 0, body).unwrap();
    }

    pub fn mknod(
        &mut self,
        parent: u64,
        name: &str,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> Answer<Entry> {
        let body = Encoder::new()
            .u32(mode)
            .u32(rdev)
            .u32(umask)
            .u32(0)
            .name(name);
        self.entry(op::MKNOD, parent, body)
    }

    pub fn mkdir(&mut self, parent: u64, name: &str, mode: u32, umask: u32) -> Answer<Entry> {
        self.entry(
            op::MKDIR,
            parent,
            Encoder::new().u32(mode).u32(umask).name(name),
        )
    }

    pub fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Answer<Entry> {
        self.entry(op::SYMLINK, parent, Encoder::new().name(name).name(target))
    }

    pub fn link(&mut self, nodeid: u64, parent: u64, name: &str) -> Answer<Entry> {
        self.entry(op::LINK, parent, Encoder::new().u64(nodeid).name(name))
    }

    pub fn unlink(&mut self, parent: u64, name: &str) -> Answer<()> {
        self.empty(op::UNLINK, parent, Encoder::new().name(name))
    }

    pub fn rmdir(&mut self, parent: u64, name: &str) -> Answer<()> {
        self.empty(op::RMDIR, parent, Encoder::new().name(name))
    }

    pub fn rename(&mut self, from: (u64, &str), to: (u64, &str)) -> Answer<()> {
        let body = Encoder::new().u64(to.0).name(from.1).name(to.1);
        self.empty(op::RENAME, from.0, body)
    }

    pub fn rename2(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Answer<()> {
        let body = Encoder::new()
            .u64(to.0)
            .u32(flags)
            .u32(0)
            .name(from.1)
            .name(to.1);
        self.empty(op::RENAME2, from.0, body)
    }

    pub fn readlink(&mut self, nodeid: u64) -> Answer<Vec<u8>> {
        self.call(&Request::new(op::READLINK, nodeid, Encoder::new()).space(4096))
    }

    // ---- attributes

    pub fn getattr(&mut self, nodeid: u64) -> Answer<AttrOut> {
        self.getattr_args(nodeid, 0, 0)
    }

    pub fn getattr_fh(&mut self, nodeid: u64, fh: u64) -> Answer<AttrOut> {
        self.getattr_args(nodeid, GETATTR_FH, fh)
    }

    fn getattr_args(&mut self, nodeid: u64, flags: u32, fh: u64) -> Answer<AttrOut> {
        let body = Encoder::new().u32(flags).u32(0).u64(fh);
        let body = self.call(&Request::new(op::GETATTR, nodeid, body))?;
        Ok(AttrOut::decode(&body))
    }

    pub fn setattr(&mut self, nodeid: u64, set: &SetAttr) -> Answer<AttrOut> {
        let body = self.call(&Request::new(op::SETATTR, nodeid, set.encode()))?;
        Ok(AttrOut::decode(&body))
    }

    pub fn access(&mut self, nodeid: u64, mask: u32) -> Answer<()> {
        self.empty(op::ACCESS, nodeid, Encoder::new().u32(mask).u32(0))
    }

    pub fn statfs(&mut self, nodeid: u64) -> Answer<Statfs> {
        let body = self.call(&Request::new(op::STATFS, nodeid, Encoder::new()))?;
        Ok(Statfs::decode(&body))
    }

    // ---- files

    pub fn open(&mut self, nodeid: u64, flags: i32) -> Answer<OpenOut> {
        self.open_with(nodeid, flags, 0)
    }

    /// With flags of the request besides those of `open(2)`.
    pub fn open_with(&mut self, nodeid: u64, flags: i32, open_flags: u32) -> Answer<OpenOut> {
        let body = Encoder::new().u32(flags.cast_unsigned()).u32(open_flags);
        let body = self.call(&Request::new(op::OPEN, nodeid, body))?;
        Ok(OpenOut::decode(&body))
    }

    pub fn create(
        &mut self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
    ) -> Answer<(Entry, OpenOut)> {
        self.create_masked(parent, name, flags, mode, 0)
    }

    pub fn create_masked(
        &mut self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
        umask: u32,
    ) -> Answer<(Entry, OpenOut)> {
        let flags = (flags | libc::O_CREAT).cast_unsigned();
        let body = Encoder::new()
            .u32(flags)
            .u32(mode)
            .u32(umask)
            .u32(0)
            .name(name);
        let body = self.call(&Request::new(op::CREATE, parent, body))?;
        let (entry, open) = body.split_at(ENTRY_OUT);
        Ok((Entry::decode(entry), OpenOut::decode(open)))
    }

    /// With flags of the request besides those of `open(2)`.
    pub fn create_with(
        &mut self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
        open_flags: u32,
    ) -> Answer<(Entry, OpenOut)> {
        let flags = (flags | libc::O_CREAT).cast_unsigned();
        let body = Encoder::new()
            .u32(flags)
            .u32(mode)
            .u32(0)
            .u32(open_flags)
            .name(name);
        let body = self.call(&Request::new(op::CREATE, parent, body))?;
        let (entry, open) = body.split_at(ENTRY_OUT);
        Ok((Entry::decode(entry), OpenOut::decode(open)))
    }

    pub fn read(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Answer<Vec<u8>> {
        let request = Request::new(op::READ, nodeid, read_in(fh, offset, size));
        self.call(&request.space(size as usize))
    }

    pub fn write(&mut self, nodeid: u64, fh: u64, offset: u64, data: &[u8]) -> Answer<u32> {
        self.write_flags(nodeid, fh, offset, data, 0, 0)
    }

    /// A write with WRITE flags and the open flags of the guest's file.
    pub fn write_flags(
        &mut self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
        flags: u32,
        open_flags: i32,
    ) -> Answer<u32> {
        let body = write_in(
            fh,
            offset,
            u32::try_from(data.len()).unwrap(),
            flags,
            open_flags,
        );
        let body = self.call(&Request::new(op::WRITE, nodeid, body.bytes(data)))?;
        assert_eq!(body[4..], [0; 4], "padding of the reply");
        Ok(u32::from_le_bytes(body[..4].try_into().unwrap()))
    }

    /// A write that the guest's page cache does late.
    pub fn write_cached(&mut self, nodeid: u64, fh: u64, offset: u64, data: &[u8]) -> Answer<u32> {
        self.write_flags(nodeid, fh, offset, data, WRITE_CACHE, 0)
    }

    pub fn release(&mut self, nodeid: u64, fh: u64) -> Answer<()> {
        self.empty(op::RELEASE, nodeid, release_in(fh))
    }

    pub fn flush(&mut self, nodeid: u64, fh: u64) -> Answer<()> {
        self.empty(op::FLUSH, nodeid, Encoder::new().u64(fh).u64(0).u64(0))
    }

    /// FLUSH by a process that may have locks.
    pub fn flush_owner(&mut self, nodeid: u64, fh: u64, owner: u64) -> Answer<()> {
        self.empty(op::FLUSH, nodeid, Encoder::new().u64(fh).u64(0).u64(owner))
    }

    /// SETLK.
    pub fn setlk(&mut self, nodeid: u64, fh: u64, lock: &Lock) -> Answer<()> {
        self.empty(op::SETLK, nodeid, lock.encode(fh))
    }

    /// SETLKW that is not waited for: the number of the request.
    pub fn start_setlkw(&mut self, nodeid: u64, fh: u64, lock: &Lock) -> u64 {
        let unique = self.start(&Request::new(op::SETLKW, nodeid, lock.encode(fh)));
        self.submit();
        unique
    }

    /// GETLK: what is in the way; the owner is not told.
    pub fn getlk(&mut self, nodeid: u64, fh: u64, lock: &Lock) -> Answer<Lock> {
        let body = self.call(&Request::new(op::GETLK, nodeid, lock.encode(fh)))?;
        let mut d = Decoder(&body);
        Ok(Lock {
            owner: 0,
            start: d.u64(),
            end: d.u64(),
            kind: d.u32().cast_signed(),
            pid: d.u32(),
            flags: 0,
        })
    }

    pub fn interrupt(&mut self, unique: u64) {
        let body = Encoder::new().u64(unique);
        self.empty(op::INTERRUPT, 0, body).unwrap();
    }

    pub fn fsync(&mut self, nodeid: u64, fh: u64, flags: u32) -> Answer<()> {
        self.empty(op::FSYNC, nodeid, Encoder::new().u64(fh).u32(flags).u32(0))
    }

    pub fn lseek(&mut self, nodeid: u64, fh: u64, offset: u64, whence: u32) -> Answer<u64> {
        let body = Encoder::new().u64(fh).u64(offset).u32(whence).u32(0);
        let body = self.call(&Request::new(op::LSEEK, nodeid, body))?;
        Ok(u64::from_le_bytes(body[..8].try_into().unwrap()))
    }

    pub fn fallocate(
        &mut self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Answer<()> {
        let body = Encoder::new()
            .u64(fh)
            .u64(offset)
            .u64(length)
            .u32(mode)
            .u32(0);
        self.empty(op::FALLOCATE, nodeid, body)
    }

    /// `from` and `to`: node, handle and offset.
    pub fn copy_file_range(
        &mut self,
        from: (u64, u64, u64),
        to: (u64, u64, u64),
        len: u64,
        flags: u64,
    ) -> Answer<u32> {
        let body = Encoder::new()
            .u64(from.1)
            .u64(from.2)
            .u64(to.0)
            .u64(to.1)
            .u64(to.2);
        let body = body.u64(len).u64(flags);
        let body = self.call(&Request::new(op::COPY_FILE_RANGE, from.0, body))?;
        Ok(u32::from_le_bytes(body[..4].try_into().unwrap()))
    }

    pub fn syncfs(&mut self, nodeid: u64) -> Answer<()> {
        self.empty(op::SYNCFS, nodeid, Encoder::new().u64(0))
    }

    // ---- directories

    pub fn opendir(&mut self, nodeid: u64) -> Answer<OpenOut> {
        let body = Encoder::new().u32(libc::O_DIRECTORY.cast_unsigned()).u32(0);
        let body = self.call(&Request::new(op::OPENDIR, nodeid, body))?;
        Ok(OpenOut::decode(&body))
    }

    pub fn readdir(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Answer<Vec<Dirent>> {
        let request = Request::new(op::READDIR, nodeid, read_in(fh, offset, size));
        let body = self.call(&request.space(size as usize))?;
        Ok(dirents(&body, false))
    }

    pub fn readdirplus(
        &mut self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Answer<Vec<Dirent>> {
        let request = Request::new(op::READDIRPLUS, nodeid, read_in(fh, offset, size));
        let body = self.call(&request.space(size as usize))?;
        Ok(dirents(&body, true))
    }

    /// A whole directory, in replies of `size` bytes.
    pub fn read_whole_dir(
        &mut self,
        nodeid: u64,
        fh: u64,
        size: u32,
        plus: bool,
    ) -> Answer<Vec<Dirent>> {
        let mut all: Vec<Dirent> = Vec::new();
        loop {
            let offset = all.last().map_or(0, |entry| entry.off);
            let part = if plus {
                self.readdirplus(nodeid, fh, offset, size)?
            } else {
                self.readdir(nodeid, fh, offset, size)?
            };
            if part.is_empty() {
                return Ok(all);
            }
            all.extend(part);
        }
    }

    pub fn releasedir(&mut self, nodeid: u64, fh: u64) -> Answer<()> {
        self.empty(op::RELEASEDIR, nodeid, release_in(fh))
    }

    pub fn fsyncdir(&mut self, nodeid: u64, fh: u64, flags: u32) -> Answer<()> {
        self.empty(
            op::FSYNCDIR,
            nodeid,
            Encoder::new().u64(fh).u32(flags).u32(0),
        )
    }

    // ---- extended attributes

    /// With the layout of SETXATTR_EXT if `extended`.
    pub fn setxattr(
        &mut self,
        nodeid: u64,
        name: impl AsRef<OsStr>,
        value: &[u8],
        flags: u32,
        extended: bool,
    ) -> Answer<()> {
        let mut body = Encoder::new()
            .u32(u32::try_from(value.len()).unwrap())
            .u32(flags);
        if extended {
            body = body.u32(0).u32(0);
        }
        self.empty(op::SETXATTR, nodeid, body.name(name).bytes(value))
    }

    /// With the flags of SETXATTR_EXT.
    pub fn setxattr_with(
        &mut self,
        nodeid: u64,
        name: impl AsRef<OsStr>,
        value: &[u8],
        setxattr_flags: u32,
    ) -> Answer<()> {
        let body = Encoder::new()
            .u32(u32::try_from(value.len()).unwrap())
            .u32(0)
            .u32(setxattr_flags)
            .u32(0);
        self.empty(op::SETXATTR, nodeid, body.name(name).bytes(value))
    }

    /// The value, in a buffer of `size` bytes.
    pub fn getxattr(&mut self, nodeid: u64, name: impl AsRef<OsStr>, size: u32) -> Answer<Vec<u8>> {
        let body = Encoder::new().u32(size).u32(0).name(name);
        self.call(&Request::new(op::GETXATTR, nodeid, body).space(size as usize))
    }

    /// The length of the value.
    pub fn getxattr_size(&mut self, nodeid: u64, name: impl AsRef<OsStr>) -> Answer<u32> {
        let body = Encoder::new().u32(0).u32(0).name(name);
        let body = self.call(&Request::new(op::GETXATTR, nodeid, body).space(8))?;
        Ok(u32::from_le_bytes(body[..4].try_into().unwrap()))
    }

    pub fn listxattr(&mut self, nodeid: u64, size: u32) -> Answer<Vec<u8>> {
        let body = Encoder::new().u32(size).u32(0);
        self.call(&Request::new(op::LISTXATTR, nodeid, body).space(size as usize))
    }

    pub fn listxattr_size(&mut self, nodeid: u64) -> Answer<u32> {
        let body = Encoder::new().u32(0).u32(0);
        let body = self.call(&Request::new(op::LISTXATTR, nodeid, body).space(8))?;
        Ok(u32::from_le_bytes(body[..4].try_into().unwrap()))
    }

    pub fn removexattr(&mut self, nodeid: u64, name: impl AsRef<OsStr>) -> Answer<()> {
        self.empty(op::REMOVEXATTR, nodeid, Encoder::new().name(name))
    }
}

/// Arguments of GETLK, SETLK and SETLKW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    pub owner: u64,
    pub start: u64,
    pub end: u64,
    /// `F_RDLCK` and so on.
    pub kind: i32,
    pub pid: u32,
    pub flags: u32,
}

impl Lock {
    fn encode(&self, fh: u64) -> Encoder {
        Encoder::new()
            .u64(fh)
            .u64(self.owner)
            .u64(self.start)
            .u64(self.end)
            .u32(self.kind.cast_unsigned())
            .u32(self.pid)
            .u32(self.flags)
            .u32(0)
    }
}

/// Arguments of SETATTR; what is `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Bits besides those of the fields below.
    pub valid: u32,
    pub fh: Option<u64>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    /// Seconds and nanoseconds.
    pub atime: Option<(u64, u32)>,
    pub mtime: Option<(u64, u32)>,
}

impl SetAttr {
    pub fn encode(&self) -> Encoder {
        use super::wire as w;
        let fields = [
            (self.fh.is_some(), FATTR_FH),
            (self.mode.is_some(), w::FATTR_MODE),
            (self.uid.is_some(), w::FATTR_UID),
            (self.gid.is_some(), w::FATTR_GID),
            (self.size.is_some(), w::FATTR_SIZE),
            (self.atime.is_some(), w::FATTR_ATIME),
            (self.mtime.is_some(), w::FATTR_MTIME),
        ];
        let set = fields.iter().filter(|(is_set, _)| *is_set);
        let valid = set.fold(self.valid, |valid, (_, bit)| valid | bit);
        let (atime, mtime) = (
            self.atime.unwrap_or_default(),
            self.mtime.unwrap_or_default(),
        );
        Encoder::new()
            .u32(valid)
            .u32(0)
            .u64(self.fh.unwrap_or(0))
            .u64(self.size.unwrap_or(0))
            .u64(0)
            .u64(atime.0)
            .u64(mtime.0)
            .u64(0)
            .u32(atime.1)
            .u32(mtime.1)
            .u32(0)
            .u32(self.mode.unwrap_or(0))
            .u32(0)
            .u32(self.uid.unwrap_or(0))
            .u32(self.gid.unwrap_or(0))
            .u32(0)
    }
}

/// Body of READ, READDIR and READDIRPLUS.
pub fn read_in(fh: u64, offset: u64, size: u32) -> Encoder {
    Encoder::new()
        .u64(fh)
        .u64(offset)
        .u32(size)
        .u32(0)
        .u64(0)
        .u32(0)
        .u32(0)
}

/// Fixed part of the body of WRITE.
pub fn write_in(fh: u64, offset: u64, size: u32, flags: u32, open_flags: i32) -> Encoder {
    let body = Encoder::new()
        .u64(fh)
        .u64(offset)
        .u32(size)
        .u32(flags)
        .u64(0);
    body.u32(open_flags.cast_unsigned()).u32(0)
}

/// Body of RELEASE and RELEASEDIR.
pub fn release_in(fh: u64) -> Encoder {
    Encoder::new().u64(fh).u32(0).u32(0).u64(0)
}

/// The extension that gives a label to what a request makes.
pub fn label_extension(name: &str, label: &[u8]) -> Vec<u8> {
    let len = (8 + 8 + name.len() + 1 + label.len()).next_multiple_of(8);
    let head = Encoder::new().u32(u32::try_from(len).unwrap()).u32(1);
    let context = head.u32(u32::try_from(label.len()).unwrap()).u32(0);
    let mut encoder = context.name(name).bytes(label);
    encoder.0.resize(len, 0);
    encoder.0
}

/// The extension that names a supplementary group for a create request.
pub fn groups_extension(groups: &[u32]) -> Vec<u8> {
    let len = (12 + 4 * groups.len()).next_multiple_of(8);
    let head = Encoder::new()
        .u32(u32::try_from(len).unwrap())
        .u32(EXT_GROUPS);
    let mut encoder = head.u32(u32::try_from(groups.len()).unwrap());
    for &group in groups {
        encoder = encoder.u32(group);
    }
    encoder.0.resize(len, 0);
    encoder.0
}
