//! A guest's memory with one ring in it, a served directory, and something
//! beside that directory that no guest may see or touch.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use tempfile::TempDir;
use virtiofsd::config::{CachePolicy, Config, Wanted};
use virtiofsd::fs::Patience;
use virtiofsd::fuse::opcode::{Answer, Opcode};
use virtiofsd::guest::buffers::Spans;
use virtiofsd::guest::ring::{Ring, RingLayout, Used};
use virtiofsd::guest::{GuestMemory, SharedMemory};
use virtiofsd::metrics::Watch;
use virtiofsd::passthrough::Passthrough;
use virtiofsd::process::capabilities::{self, Kept};
use virtiofsd::server::{Access, Scratch, Server};
use vm_memory::{Bytes, GuestAddress};

use super::input::Input;

const HEADER: usize = 40;
const OUT_HEADER: usize = 16;

const LAYOUT: RingLayout = RingLayout {
    size: 16,
    descriptors: 0x1000,
    available: 0x2000,
    used: 0x3000,
    event_idx: true,
};
/// Where indirect tables lie.
const INDIRECT: u64 = 0x4000;
/// Where requests lie, and where their replies go.
const REQUEST: u64 = 0x1_0000;
const REPLY: u64 = 0x4_f000;
/// Two regions that touch within the room for replies, with nothing behind.
const REGIONS: [(u64, usize); 2] = [(0, 0x5_0000), (0x5_0000, 0x1_0000)];
const REPLY_ROOM: usize = 0x2000;

/// What guest memory holds where no reply was written.
const POISON: u8 = 0xa5;
/// The content of the file that no guest may see.
const SECRET: &[u8] = b"this is none of the guest's business";

/// Descriptors of the process may come to more than at the first look by this
/// many: what the library opens once.
const SLACK: usize = 8;

/// Everything that one fuzzing thread needs.
pub struct World {
    _dir: TempDir,
    share: PathBuf,
    outside: PathBuf,
    outside_changed: (i64, i64),
    server: Server<Passthrough>,
    memory: GuestMemory,
    shared: SharedMemory,
    scratch: Scratch,
    spans: Spans,
    nodes: Vec<u64>,
    handles: Vec<u64>,
    unique: u64,
    mounts: usize,
    open_at_first: usize,
}

/// One request before it is put into guest memory.
struct Request {
    opcode: u32,
    node: u64,
    uid: u32,
    body: Vec<u8>,
    extension_units: u16,
    /// What the header says instead of the true length.
    stated_len: Option<u32>,
    room: usize,
}

impl World {
    /// A new tree, served without a session.
    pub fn new() -> Self {
        let parent = if std::path::Path::new("/dev/shm").is_dir() {
            "/dev/shm".into()
        } else {
            std::env::temp_dir()
        };
        let dir = TempDir::with_prefix_in("virtiofsd-fuzz-", parent).unwrap();
        let (share, outside) = (dir.path().join("share"), dir.path().join("outside"));
        for folder in [&share, &outside] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(outside.join("secret"), SECRET).unwrap();
        // No more rights than the daemon has.
        capabilities::reduce(Kept::with(&[], &[]).unwrap()).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc_self_fd = rustix::fs::openat(CWD, "/proc/self/fd", flags, Mode::empty()).unwrap();
        let config = Config {
            cache: CachePolicy::Auto,
            readdirplus: true,
            xattr: true,
            announce_submounts: true,
            allow_mmap: true,
            posix_acl: Wanted::IfOffered,
            security_label: Wanted::IfOffered,
            killpriv_v2: true,
            ..Config::default()
        };
        let files = Passthrough::new(&share, proc_self_fd, config, 200).unwrap();
        let ranges = REGIONS.map(|(start, len)| (GuestAddress(start), len));
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let mut world = Self {
            _dir: dir,
            share,
            outside_changed: changed(&outside),
            outside,
            server: Server::new(Arc::new(files), Access::ReadWrite, Watch::default()),
            shared: SharedMemory::of(memory.clone()),
            memory,
            scratch: Scratch::default(),
            spans: Spans::default(),
            nodes: Vec::new(),
            handles: Vec::new(),
            unique: 0,
            mounts: 0,
            open_at_first: 0,
        };
        world.mount();
        world.unmount();
        world.open_at_first = open_descriptors();
        world
    }

    /// Makes the tree anew and begins a session in which the guest knows the
    /// root, a file, a folder, a link and a fifo, and has two of them open.
    pub fn mount(&mut self) {
        for entry in fs::read_dir(&self.share).unwrap() {
            let path = entry.unwrap().path();
            let removed = match fs::symlink_metadata(&path).unwrap().is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.unwrap();
        }
        fs::write(self.share.join("file"), [7; 5000]).unwrap();
        fs::create_dir(self.share.join("dir")).unwrap();
        fs::write(self.share.join("dir/inner"), "inner").unwrap();
        symlink("../outside/secret", self.share.join("link")).unwrap();
        let fifo = self.share.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();

        self.nodes = vec![1];
        self.handles = vec![0];
        let init = [
            7u32,
            41,
            1 << 17,
            u32::MAX,
            u32::MAX,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        let init: Vec<u8> = init.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.send(Opcode::Init as u32, 1, init);
        for name in ["file", "dir", "link", "fifo"] {
            self.send(Opcode::Lookup as u32, 1, [name.as_bytes(), b"\0"].concat());
        }
        let read_write = 2u64.to_ne_bytes().to_vec();
        if let [_, file, dir, ..] = self.nodes[..] {
            self.send(Opcode::Open as u32, file, read_write);
            self.send(Opcode::Opendir as u32, dir, vec![0; 8]);
        }
    }

    /// Ends the session and looks at what no guest may change.
    pub fn unmount(&mut self) {
        self.server.end_session();
        assert_eq!(changed(&self.outside), self.outside_changed, "an escape");
        self.mounts += 1;
        if self.open_at_first != 0 && self.mounts.is_multiple_of(500) {
            let open = open_descriptors();
            assert!(open <= self.open_at_first + SLACK, "{open} descriptors");
        }
    }

    /// Sends a request that is right as far as this module knows.
    fn send(&mut self, opcode: u32, node: u64, body: Vec<u8>) {
        let request = Request {
            opcode,
            node,
            uid: 0,
            body,
            extension_units: 0,
            stated_len: None,
            room: REPLY_ROOM,
        };
        let len = self.put(&request);
        self.chain(len, request.room);
        self.serve(&request);
    }

    /// Sends a request that the fuzzer has chosen the parts of.
    pub fn request(&mut self, input: &mut Input<'_>) {
        let request = self.chosen(input);
        let len = self.put(&request);
        self.chain(len, request.room);
        self.serve(&request);
    }

    /// Sends a request with a chain, or a whole ring, of the fuzzer's making.
    pub fn raw_chain(&mut self, input: &mut Input<'_>) {
        let request = self.chosen(input);
        let len = self.put(&request);
        self.chain(len, request.room);
        for _ in 0..input.byte() % 8 {
            let entry = u64::from(input.byte() % 32);
            let table = input.choice(&[LAYOUT.descriptors, INDIRECT]);
            let address = match input.byte() % 6 {
                0 => REQUEST + u64::from(input.byte()),
                1 => REPLY + u64::from(input.byte()),
                2 => INDIRECT + u64::from(input.byte()),
                3 => 0x5_0000 - u64::from(input.byte()),
                4 => 0x6_0000 - u64::from(input.byte()),
                _ => input.number(),
            };
            let len = match input.byte() % 3 {
                0 => u32::from(input.byte()),
                1 => u32::from(input.byte()) * 16,
                _ => u32::from_le_bytes(input.bytes()),
            };
            let flags = u16::from(input.byte() % 8);
            let next = u16::from(input.byte() % 20);
            self.descriptor(table, entry, (address, len, flags, next));
        }
        self.serve_unchecked();
    }

    fn chosen(&mut self, input: &mut Input<'_>) -> Request {
        let opcode = input.choice(Opcode::ALL);
        let number = match input.byte() {
            255 => u32::from_le_bytes(input.bytes()),
            _ => opcode as u32,
        };
        let node = match input.byte() {
            255 => input.number(),
            index => self.nodes[usize::from(index) % self.nodes.len()],
        };
        let handle = match input.byte() {
            255 => input.number(),
            index => self.handles[usize::from(index) % self.handles.len()],
        };
        let mut body = input.some().to_vec();
        // Where operations have their handle, or a second node.
        for at in [0, 8, 24] {
            let value = if at == 24 { node } else { handle };
            if input.byte().is_multiple_of(2)
                && let Some(place) = body.get_mut(at..at + 8)
            {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
        for _ in 0..input.byte() % 4 {
            let name: &[u8] = match input.byte() % 12 {
                0 => b"file",
                1 => b"dir",
                2 => b"link",
                3 => b"fifo",
                4 => b"inner",
                5 => b"..",
                6 => b"../outside/secret",
                7 => b"/etc/passwd",
                8 => b"user.name",
                9 => b"security.capability",
                10 => b"new",
                _ => input.some(),
            };
            body.extend_from_slice(name);
            body.push(0);
        }
        let extensions = usize::from(input.byte() % 8);
        body.extend_from_slice(input.slice(extensions * 8));
        let stated_len = input
            .byte()
            .is_multiple_of(16)
            .then(|| u32::from_le_bytes(input.bytes()));
        let room = match input.byte() {
            small @ 0..=47 => usize::from(small),
            _ => REPLY_ROOM,
        };
        Request {
            opcode: number,
            node,
            uid: input.choice(&[0, 0, 1000, u32::MAX]),
            body,
            extension_units: extensions as u16,
            stated_len,
            room,
        }
    }

    /// Writes a request into guest memory; gives its length.
    fn put(&mut self, request: &Request) -> usize {
        self.unique += 1;
        let len = HEADER + request.body.len();
        let stated = request.stated_len.unwrap_or(len as u32);
        let mut bytes = Vec::with_capacity(len);
        for word in [stated, request.opcode] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [self.unique, request.node] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [request.uid, request.uid, 1] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&request.extension_units.to_ne_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&request.body);
        self.write(REQUEST, &bytes);
        len
    }

    /// Makes the plain chain: the request, then the room for the reply.
    fn chain(&mut self, len: usize, room: usize) {
        let writable = 2;
        let next = if room > 0 { 1 } else { 0 };
        self.descriptor(LAYOUT.descriptors, 0, (REQUEST, len as u32, next, 1));
        self.descriptor(LAYOUT.descriptors, 1, (REPLY, room as u32, writable, 0));
    }

    fn descriptor(&self, table: u64, index: u64, parts: (u64, u32, u16, u16)) {
        let (address, len, flags, next) = parts;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table + index * 16, &bytes);
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    /// Serves the chain at descriptor 0; gives the bytes written, if it is one.
    fn handle(&mut self) -> Option<usize> {
        let view = self.shared.view();
        let ring = Ring::new(view.memory(), &LAYOUT).unwrap();
        // What has to wait is handled anew where it may.
        let mut handle = |patience| {
            let (readable, writable) = ring.gather(0, &mut self.spans).ok()?;
            let (server, scratch) = (&self.server, &mut self.scratch);
            server.handle(scratch, readable, writable, patience).ok()
        };
        let len = handle(Patience::Nothing).or_else(|| handle(Patience::Storage))?;
        ring.publish(ring.used_index(), Used { head: 0, len });
        Some(len as usize)
    }

    /// Serves a chain of which nothing is known.
    fn serve_unchecked(&mut self) {
        let _ = self.handle();
        self.no_secret(REPLY, REPLY_ROOM);
    }

    /// Serves the plain chain, checks the reply, and learns from it.
    fn serve(&mut self, request: &Request) {
        let poison = vec![POISON; request.room + 64];
        self.write(REPLY, &poison);
        let len = self.handle().expect("the chain is right");
        assert!(len <= request.room, "a reply of {len} bytes");
        let mut reply = vec![0; request.room + 64];
        self.memory
            .read_slice(&mut reply, GuestAddress(REPLY))
            .unwrap();
        let (reply, beyond) = reply.split_at(len);
        let answered =
            Opcode::from_wire(request.opcode).is_none_or(|opcode| opcode.answer() != Answer::Never);
        assert!(answered || len == 0, "an answer to what has none");
        // A read that fails half way has written into its room already.
        let is_read = request.opcode == Opcode::Read as u32;
        assert!(
            is_read || beyond.iter().all(|byte| *byte == POISON),
            "bytes beyond the reply"
        );
        if len == 0 {
            return;
        }
        assert!(len >= OUT_HEADER, "a reply of {len} bytes");
        let word = |at: usize| u32::from_ne_bytes(reply[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(reply[at..at + 8].try_into().unwrap());
        assert_eq!(word(0) as usize, len, "length in the header");
        let error = word(4).cast_signed();
        assert!((-4095..=0).contains(&error), "error {error}");
        assert!(error == 0 || len == OUT_HEADER, "an error with a body");
        assert_eq!(long(8), self.unique, "number of the reply");
        assert!(
            !reply.windows(SECRET.len()).any(|window| window == SECRET),
            "the secret"
        );
        if error != 0 {
            return;
        }
        match Opcode::from_wire(request.opcode) {
            Some(
                Opcode::Lookup
                | Opcode::Mknod
                | Opcode::Mkdir
                | Opcode::Symlink
                | Opcode::Link
                | Opcode::Create,
            ) => self.learn_node(long(OUT_HEADER)),
            Some(Opcode::Open | Opcode::Opendir) => self.handles.push(long(OUT_HEADER)),
            _ => {}
        }
        if request.opcode == Opcode::Create as u32 {
            self.handles.push(long(OUT_HEADER + 128));
        }
    }

    fn learn_node(&mut self, node: u64) {
        assert_ne!(node, 0, "an entry without a node");
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
    }

    fn no_secret(&self, address: u64, len: usize) {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        let found = bytes.windows(SECRET.len()).any(|window| window == SECRET);
        assert!(!found, "the secret");
    }
}

/// When a folder and the file in it changed last.
fn changed(folder: &std::path::Path) -> (i64, i64) {
    let ctime = |path: &std::path::Path| {
        let status = fs::symlink_metadata(path).unwrap();
        status.ctime() * 1_000_000_000 + status.ctime_nsec()
    };
    (ctime(folder), ctime(&folder.join("secret")))
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
