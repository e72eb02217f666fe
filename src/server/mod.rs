//! The protocol side: from the buffers of one request to the bytes of its reply.
//!
//! [`Server::handle`] copies the request out of guest memory once, decodes it,
//! lets the file system work and puts the header in front of the reply. Whatever
//! the guest sends, the outcome is a reply, an errno, or a used length of 0; none
//! of them ends the serving of later requests.

mod dispatch;
mod read_only;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::fs::{Failure, FileSystem, Patience, Wait};
use crate::fuse::abi::{InHeader, OutHeader};
use crate::fuse::decode::decode;
use crate::fuse::opcode::{Answer, Body, Effect, Opcode, Waits};
use crate::fuse::{NAME_MAX, PATH_MAX, XATTR_SIZE_MAX};
use crate::guest::buffers::{Readable, Writable};
use crate::guest::{memory_is_lost, replaced_pages};
use crate::id::NodeId;
use crate::metrics::{Done, Gauge, Gauges, Watch};
pub use read_only::Access;

/// Bytes of the longest fixed struct, rounded up.
const MAX_FIXED_BODY: usize = 128;

/// Bytes of the longest body that is copied out: names, an attribute value or
/// a link's target, and extensions. What is longer is cut, which decoding finds
/// out where what was cut off is needed.
const MAX_BODY: usize = 2 * (NAME_MAX + 1) + PATH_MAX + 2 * XATTR_SIZE_MAX;

/// Buffers that a serving thread keeps from one request to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The body of the request.
    body: Vec<u8>,
    /// A reply that is packed before it is copied into guest memory.
    reply: Vec<u8>,
    /// Pages of guest memory that were replaced before the request was read.
    replaced: usize,
}

/// A request that has to wait longer than it may. Nothing was done; it is to be
/// handled again, from its first byte, where it may wait.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct MustWait(pub Wait);

/// Serves the requests of one device over a file system.
#[derive(Debug)]
pub struct Server<F> {
    fs: Arc<F>,
    access: Access,
    watch: Watch,
    /// Whether INIT was answered and DESTROY was not.
    in_session: AtomicBool,
    /// Set while the file system takes another session over: none begins.
    is_loading: AtomicBool,
    /// What that INIT agreed on.
    features: AtomicU64,
    /// Requests that wait where it could not be foreseen.
    stuck: AtomicUsize,
}

impl<F: FileSystem> Server<F> {
    /// A server without a session: the first request has to be INIT.
    pub fn new(fs: Arc<F>, access: Access, watch: Watch) -> Self {
        Self {
            fs,
            access,
            watch,
            in_session: AtomicBool::new(false),
            is_loading: AtomicBool::new(false),
            features: AtomicU64::new(0),
            stuck: AtomicUsize::new(0),
        }
    }

    /// Ends the session, if there is one: the device was reset.
    pub fn end_session(&self) {
        if self.in_session.swap(false, Ordering::AcqRel) {
            self.fs.stop();
        }
    }

    /// Has the requests that wait for locks give up; returns when they have.
    pub fn interrupt_waits(&self) {
        self.fs.interrupt_all();
    }

    /// Whether the kernel holds pages of the guest's memory for a request.
    pub fn pins_memory(&self) -> bool {
        self.fs.pins_memory()
    }

    /// Answers a request with an error without serving it; gives the bytes of the
    /// reply.
    pub fn fail(&self, mut request: Readable<'_>, mut reply: Writable<'_>, errno: Errno) -> u32 {
        let mut bytes = [0; size_of::<InHeader>()];
        if request.copy_out(&mut bytes) < bytes.len() {
            return 0;
        }
        let Ok(header) = InHeader::read_from_bytes(&bytes) else {
            return 0;
        };
        let answer = Opcode::from_wire(header.opcode).map(Opcode::answer);
        let bytes = out_header(&header, reply_len(0), -errno.raw_os_error());
        if answer == Some(Answer::Never) || reply.copy_in(&bytes) < bytes.len() {
            return 0;
        }
        reply_len(0)
    }

    /// Ends the session, and begins none until [`Server::end_load`]: the file system
    /// takes another one over, which no request may come between.
    pub fn begin_load(&self) {
        self.is_loading.store(true, Ordering::Release);
        self.end_session();
    }

    /// The file system has taken the session over, or could not.
    pub fn end_load(&self) {
        self.is_loading.store(false, Ordering::Release);
    }

    /// Goes on with a session that the file system has taken over, with the
    /// features that its INIT agreed on.
    pub fn resume_session(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
        self.in_session.store(true, Ordering::Release);
    }

    /// Serves one request; gives the bytes written into its reply buffers.
    ///
    /// # Errors
    /// [`MustWait`] for what `patience` does not reach to.
    pub fn handle(
        &self,
        scratch: &mut Scratch,
        mut request: Readable<'_>,
        mut reply: Writable<'_>,
        patience: Patience,
    ) -> Result<u32, MustWait> {
        scratch.replaced = replaced_pages();
        let mut bytes = [0; size_of::<InHeader>()];
        if request.copy_out(&mut bytes) < bytes.len() {
            if request.is_cut() {
                say_what_to_share();
            }
            log::debug!("a request of less than a header was dropped");
            return Ok(0);
        }
        let Ok(header) = InHeader::read_from_bytes(&bytes) else {
            return Ok(0);
        };
        if memory_is_lost() {
            return Ok(0);
        }
        let begun = self.watch.begin();
        let opcode = Opcode::from_wire(header.opcode);
        let answer = opcode.map_or(Answer::Bytes(0), Opcode::answer);
        let front = match answer {
            Answer::Never => None,
            _ => match reply.reserve::<{ size_of::<OutHeader>() }>() {
                Some(front) => Some(front),
                None => {
                    if request.is_cut() {
                        say_what_to_share();
                    }
                    log::debug!("request {header:?} has no room for a reply");
                    self.watch.give_back(begun);
                    return Ok(0);
                }
            },
        };
        let room = reply.len();
        let result = match (opcode, answer) {
            _ if request.is_cut() => {
                say_what_to_share();
                Err(Errno::FAULT.into())
            }
            (None, _) => Err(Errno::NOSYS.into()),
            (Some(_), Answer::Bytes(least)) if room < least => Err(Errno::INVAL.into()),
            (Some(opcode), _) => match self.wait_of(opcode, &header, patience) {
                Some(wait) => Err(Failure::MustWait(wait)),
                None => {
                    let sides = (&mut request, &mut reply);
                    self.serve(scratch, opcode, &header, sides, patience)
                }
            },
        };
        let (len, error) = match result {
            Ok(()) => (reply.written(), 0),
            Err(Failure::Errno(errno)) => (0, -errno.raw_os_error()),
            Err(Failure::MustWait(wait)) => {
                self.watch.give_back(begun);
                return Err(MustWait(wait));
            }
        };
        if let Some(begun) = begun {
            let done = Done {
                opcode,
                error: Some(error).filter(|error| *error != 0).map(|error| -error),
                request_bytes: header.len,
                reply_bytes: front.as_ref().map_or(0, |_| reply_len(len)),
            };
            let path = || self.fs.path_of(NodeId(header.nodeid));
            self.watch.end(begun, done, path);
        }
        let Some(front) = front else { return Ok(0) };
        log::trace!("{header:?} -> {len} bytes, error {error}");
        let len = reply_len(len);
        front.write(&out_header(&header, len, error));
        Ok(len)
    }

    /// What an operation has to wait for that cannot even be tried without waiting.
    fn wait_of(&self, opcode: Opcode, header: &InHeader, patience: Patience) -> Option<Wait> {
        if patience != Patience::Nothing {
            return None;
        }
        let node = NodeId(header.nodeid);
        // A file system that is frozen keeps back everybody who wants to change it.
        let may_be_stuck =
            opcode.effect() != Effect::Reads && self.stuck.load(Ordering::Relaxed) > 0;
        match opcode.waits() {
            Waits::No => None,
            Waits::Tried if !may_be_stuck => None,
            Waits::UnlessInMemory if self.fs.is_in_memory(node) => None,
            _ if self.fs.is_slow(node) => Some(Wait::ForServer),
            Waits::IfSlow if !may_be_stuck => None,
            _ => Some(Wait::ForDisk),
        }
    }

    /// A thread that was not to wait does: while it is not back, requests that change
    /// something wait beside their queues.
    pub fn is_stuck(&self) {
        self.stuck.fetch_add(1, Ordering::Relaxed);
    }

    /// It is back.
    pub fn is_back(&self) {
        self.stuck.fetch_sub(1, Ordering::Relaxed);
    }

    /// Copies the body out, decodes it and lets the file system work.
    fn serve(
        &self,
        scratch: &mut Scratch,
        opcode: Opcode,
        header: &InHeader,
        (request, reply): (&mut Readable<'_>, &mut Writable<'_>),
        patience: Patience,
    ) -> Result<(), Failure> {
        let stated = (header.len as usize)
            .checked_sub(size_of::<InHeader>())
            .filter(|len| *len <= request.len())
            .ok_or(Errno::INVAL)?;
        request.limit(stated);
        let body_len = match opcode.body() {
            Body::Fixed => stated.min(MAX_FIXED_BODY),
            Body::Names => stated.min(MAX_BODY),
            Body::Payload(fixed) => stated.min(fixed),
        };
        let Scratch {
            body,
            reply: packed,
            replaced,
        } = scratch;
        body.resize(body_len, 0);
        request.copy_out(body);
        if memory_is_lost() || replaced_pages() != *replaced || request.is_stale() {
            // Some of it may be of an empty page.
            return Err(Errno::FAULT.into());
        }
        let op = decode(opcode, header, body, self.features.load(Ordering::Relaxed))
            .map_err(Errno::from)?;
        if !self.in_session.load(Ordering::Acquire)
            && (opcode != Opcode::Init || self.is_loading.load(Ordering::Acquire))
        {
            return Err(Errno::IO.into());
        }
        if self.access == Access::ReadOnly {
            read_only::check(opcode, &op)?;
        }
        self.dispatch(header, op, packed, request, reply, patience)
    }
}

/// Tells the operator, once, why requests fail whose buffers are out of reach.
fn say_what_to_share() {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        log::warn!(
            "a request of the guest has a buffer that is not in shared memory, and gets an \
             error; give all of QEMU's memory backends share=on, those of memory that is \
             plugged in later too"
        );
    });
}

/// The header of a reply of `len` bytes, itself counted.
fn out_header(request: &InHeader, len: u32, error: i32) -> [u8; size_of::<OutHeader>()] {
    let mut bytes = [0; size_of::<OutHeader>()];
    bytes.copy_from_slice(
        OutHeader {
            len,
            error,
            unique: request.unique,
        }
        .as_bytes(),
    );
    bytes
}

/// Bytes of a reply with `len` bytes behind its header.
fn reply_len(len: usize) -> u32 {
    (size_of::<OutHeader>() + len) as u32
}

impl<F: FileSystem> Gauges for Server<F> {
    fn gauges(&self) -> Vec<Gauge> {
        let usage = self.fs.usage();
        vec![
            Gauge::new(
                "inodes",
                "Files and directories that the guest knows.",
                usage.inodes,
            ),
            Gauge::new(
                "handles",
                "Files and directories that the guest has open.",
                usage.handles,
            ),
            Gauge::new(
                "descriptors",
                "Descriptors that are held for the guest.",
                usage.descriptors,
            ),
            Gauge::new(
                "descriptors_limit",
                "Descriptors that may be held for the guest.",
                usage.descriptor_limit,
            ),
        ]
    }
}
