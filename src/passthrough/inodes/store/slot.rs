//! What is known of one inode: a slot, and its handle and name in a heap of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

use rustix::fs::FileType;

use crate::passthrough::inodes::identity::{Identity, InodeKey};
use crate::passthrough::inodes::mounts::Mount;
use crate::sys::file_handle::FileHandle;
use crate::sys::shared_fd::SharedFd;

/// What stands for "not known" in [`Slot::born`].
pub(super) const UNBORN: i64 = i64::MIN;

/// Bits of [`Slot::flags`].
pub(super) mod flag {
    /// Used since its descriptor was last looked at for closing; without one,
    /// found by its name.
    pub const USED: u8 = 1;
    /// A file of the same number and birth time is this one for sure.
    pub const SETTLED: u8 = 2;
    /// Another file has this one's place on the host: not in `by_key`.
    pub const REPLACED: u8 = 4;
    /// The descriptor cannot be found again by name, and so stays open.
    pub const PINNED: u8 = 8;
    /// The descriptor may be of another file.
    pub const UNVERIFIED: u8 = 16;
    /// Not to be found any more; only a lookup can change that.
    pub const LOST: u8 = 32;
}

/// All there is to know of one inode.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: u64,
    pub(super) ino: u64,
    pub(super) lookups: AtomicU64,
    /// Nanoseconds, or `UNBORN`. It can change: a file of an overlay gets the
    /// time of its copy.
    pub(super) born: AtomicI64,
    pub(super) mount: Arc<Mount>,
    /// The directory in which it was last looked up; 0 where that is not known.
    pub(super) parent: u64,
    /// Where its handle and name begin in the shard's heap of bytes.
    pub(super) bytes_at: u32,
    /// Slots that have this one as their parent.
    pub(super) children: AtomicU32,
    pub(super) path: Option<SharedFd>,
    /// The bytes of the handle, with one in front for its kind; 0 for none.
    pub(super) handle_len: u8,
    pub(super) flags: AtomicU8,
    pub(super) shape: Shape,
}

/// The type of a file and the length of its name, in two bytes: the bits of the
/// type as in a mode, and the length in the twelve below.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape(u16);

impl Shape {
    /// The bits of a mode that are not its type.
    const LEN: u16 = 0o7777;

    /// `None` where the name is longer than any.
    pub(super) fn new(kind: FileType, name_len: usize) -> Option<Self> {
        let name_len = u16::try_from(name_len)
            .ok()
            .filter(|len| *len <= Self::LEN)?;
        Some(Self(kind.as_raw_mode() as u16 & !Self::LEN | name_len))
    }

    pub(super) fn kind(self) -> FileType {
        FileType::from_raw_mode(u32::from(self.0 & !Self::LEN))
    }

    pub(super) fn name_len(self) -> usize {
        usize::from(self.0 & Self::LEN)
    }
}

impl Slot {
    pub(super) fn has(&self, flags: u8) -> bool {
        self.flags.load(Ordering::Relaxed) & flags != 0
    }

    pub(super) fn set(&self, flags: u8) {
        // Most are set already, and reading costs other threads nothing.
        if self.flags.load(Ordering::Relaxed) & flags != flags {
            self.flags.fetch_or(flags, Ordering::Relaxed);
        }
    }

    pub(super) fn unset(&self, flags: u8) {
        self.flags.fetch_and(!flags, Ordering::Relaxed);
    }

    pub(super) fn key(&self) -> InodeKey {
        InodeKey {
            device: self.mount.device(),
            ino: self.ino,
            mount: self.mount.id(),
        }
    }

    pub(super) fn identity(&self) -> Identity {
        let born = self.born.load(Ordering::Relaxed);
        Identity {
            key: self.key(),
            kind: self.shape.kind(),
            born: (born != UNBORN).then_some(born),
        }
    }

    /// Whether the guest holds it, and it is not only on another's way.
    pub(super) fn is_held(&self) -> bool {
        self.lookups.load(Ordering::Relaxed) != 0
    }

    pub(super) fn is_unused(&self) -> bool {
        !self.is_held() && self.children.load(Ordering::Relaxed) == 0
    }
}

/// Handles and names, one behind the other; those that are given up are left
/// behind until they are a quarter of all.
#[derive(Debug, Default)]
pub(super) struct Bytes {
    pub(super) all: Vec<u8>,
    pub(super) dead: usize,
}

impl Bytes {
    /// Adds what belongs together; gives where it begins.
    pub(super) fn add(&mut self, parts: [&[u8]; 3]) -> Option<u32> {
        let at = u32::try_from(self.all.len()).ok()?;
        let len = parts.iter().map(|part| part.len()).sum();
        if self.all.capacity() - self.all.len() < len {
            self.all.reserve_exact(len + self.all.len() / 8);
        }
        for part in parts {
            self.all.extend_from_slice(part);
        }
        Some(at)
    }

    pub(super) fn get(&self, at: usize, len: usize) -> &[u8] {
        self.all.get(at..at + len).unwrap_or_default()
    }
}

/// A handle as it lies in the heap of bytes.
pub(super) struct HandleBytes<'a> {
    pub(super) kind: &'a [u8],
    pub(super) rest: &'a [u8],
}

impl<'a> HandleBytes<'a> {
    pub(super) fn of(handle: Option<&'a FileHandle>) -> Self {
        Self {
            kind: handle.map_or(&[], FileHandle::kind_byte),
            rest: handle.map_or(&[], FileHandle::bytes),
        }
    }

    pub(super) fn len(&self) -> u8 {
        (self.kind.len() + self.rest.len()) as u8
    }
}
