//! The stream of an open directory.
//!
//! The cookie of an entry is the host's own, so it means the same after a
//! restart of the stream and whatever others create and remove meanwhile. The
//! host's entries are fetched in large pieces; what a reply has no room for
//! waits in the stream for the next one, unless the guest seeks.

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FileType, RawDir, SeekFrom};
use rustix::io::Errno;

use crate::fs::Result;
use crate::fuse::dirent::DirEntry;

/// Bytes that are fetched from the host at most in one call.
const FETCH_BYTES: usize = 32 << 10;

/// Bytes that are fetched at least, so that the longest name fits.
const MIN_FETCH_BYTES: usize = 2 << 10;

/// Bytes that all streams together may keep fetched ahead; beyond that a stream
/// goes back and fetches again, so that a guest cannot fill memory by leaving
/// directories open half read.
const MAX_AHEAD_BYTES: usize = 16 << 20;

/// Bytes that all streams together keep fetched ahead.
static AHEAD_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The position of an open directory and entries that were fetched ahead.
#[derive(Debug)]
pub(in crate::passthrough) struct DirStream {
    /// The cookie at which the guest is expected to go on; `None` where the
    /// host's position is not known.
    pub(in crate::passthrough) expected: Option<u64>,
    /// Entries from there on: number, cookie, length of the name, type, name.
    ahead: Vec<u8>,
    /// How much of `ahead` was given out.
    pub(in crate::passthrough) given: usize,
    /// What this stream has added to `AHEAD_BYTES`.
    counted: usize,
}

impl DirStream {
    /// The stream of a directory that was just opened.
    pub(in crate::passthrough) fn new() -> Self {
        Self {
            expected: Some(0),
            ahead: Vec::new(),
            given: 0,
            counted: 0,
        }
    }
}

impl Drop for DirStream {
    fn drop(&mut self) {
        AHEAD_BYTES.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// Bytes in front of a name in `DirStream::ahead`.
const AHEAD_FIXED: usize = 19;

impl DirStream {
    /// The next entry that was fetched ahead, and the bytes that it takes.
    pub(in crate::passthrough) fn peek(&self) -> Option<(DirEntry<'_>, &std::ffi::CStr, usize)> {
        let (fixed, rest) = self
            .ahead
            .get(self.given..)?
            .split_at_checked(AHEAD_FIXED)?;
        let (ino, fixed) = fixed.split_first_chunk::<8>()?;
        let (next, fixed) = fixed.split_first_chunk::<8>()?;
        let (name_len, fixed) = fixed.split_first_chunk::<2>()?;
        let [kind] = fixed else { return None };
        let name_len = usize::from(u16::from_ne_bytes(*name_len));
        let name = std::ffi::CStr::from_bytes_with_nul(rest.get(..=name_len)?).ok()?;
        let entry = DirEntry {
            ino: u64::from_ne_bytes(*ino),
            next: u64::from_ne_bytes(*next),
            kind: *kind,
            name: name.to_bytes(),
        };
        Some((entry, name, AHEAD_FIXED + name_len + 1))
    }

    /// Goes to a cookie: nowhere, where the guest reads on.
    pub(in crate::passthrough) fn seek(&mut self, fd: BorrowedFd<'_>, offset: u64) -> Result<()> {
        if self.expected != Some(offset) {
            // A seek that the host refuses leaves the stream as it is.
            rustix::fs::seek(fd, SeekFrom::Start(offset))?;
            self.forget_ahead();
            self.expected = Some(offset);
        }
        Ok(())
    }

    fn forget_ahead(&mut self) {
        self.ahead = Vec::new();
        self.given = 0;
    }

    /// Fetches entries; gives whether there were any.
    pub(in crate::passthrough) fn fetch(
        &mut self,
        fd: BorrowedFd<'_>,
        bytes: usize,
    ) -> Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); FETCH_BYTES];
        let len = bytes.clamp(MIN_FETCH_BYTES, FETCH_BYTES);
        let mut entries = RawDir::new(fd, buffer.get_mut(..len).unwrap_or_default());
        self.ahead.clear();
        self.given = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            // One call gives at most `FETCH_BYTES`.
            let name_len = u16::try_from(name.len() - 1).map_err(|_| Errno::OVERFLOW)?;
            self.ahead.extend_from_slice(&entry.ino().to_ne_bytes());
            self.ahead
                .extend_from_slice(&entry.next_entry_cookie().to_ne_bytes());
            self.ahead.extend_from_slice(&name_len.to_ne_bytes());
            self.ahead.push(kind_number(entry.file_type()));
            self.ahead.extend_from_slice(name);
            // One call to the host only.
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(!self.ahead.is_empty())
    }

    /// Keeps what was fetched ahead for the next reply, or lets go of it: where
    /// it was given out, and where all streams keep too much.
    pub(in crate::passthrough) fn settle(&mut self) {
        let left = self.ahead.len().saturating_sub(self.given);
        if left == 0 {
            self.forget_ahead();
        }
        let others = AHEAD_BYTES.fetch_sub(self.counted, Ordering::Relaxed) - self.counted;
        self.counted = self.ahead.capacity();
        if others + self.counted > MAX_AHEAD_BYTES {
            // The host is behind what was given out: the next reply seeks.
            self.forget_ahead();
            self.counted = 0;
            self.expected = None;
        }
        AHEAD_BYTES.fetch_add(self.counted, Ordering::Relaxed);
    }
}

/// `DT_*` of `readdir(3)`: the file type's bits of the mode, shifted down.
fn kind_number(kind: FileType) -> u8 {
    match kind {
        FileType::Unknown => 0,
        kind => (kind.as_raw_mode() >> 12) as u8,
    }
}
