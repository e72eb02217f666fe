//! A descriptor that several own, in four bytes.
//!
//! A million of them are held for a guest's inodes, where an `Arc` would take
//! 32 bytes each. The kernel gives out the smallest free number, so numbers are
//! dense: the owners are counted in a table that the number is the index of.
#![allow(unsafe_code)]

use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use rustix::io::Errno;

/// Counts that are allocated together.
const CHUNK: usize = 1 << 14;

/// Together they reach far beyond any limit of open descriptors in use.
const CHUNKS: usize = 1 << 10;

/// Owners of each descriptor, by its number.
static OWNERS: [OnceLock<Box<[AtomicU32]>>; CHUNKS] = [const { OnceLock::new() }; CHUNKS];

fn owners(number: u32) -> Option<&'static AtomicU32> {
    let number = number as usize;
    OWNERS
        .get(number / CHUNK)?
        .get_or_init(|| (0..CHUNK).map(|_| AtomicU32::new(0)).collect())
        .get(number % CHUNK)
}

/// A descriptor that is closed when its last owner drops it. Two are equal if
/// they are owners of the same one.
#[derive(Debug, Eq, PartialEq)]
pub struct SharedFd {
    /// The number and one: a missing one takes no room.
    number: NonZeroU32,
}

impl SharedFd {
    /// Makes a descriptor one that can be shared.
    ///
    /// # Errors
    /// `EMFILE` where the number is beyond the table of owners.
    pub fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let raw = fd.as_raw_fd().cast_unsigned();
        let number = NonZeroU32::new(raw.wrapping_add(1)).ok_or(Errno::BADF)?;
        owners(raw)
            .ok_or(Errno::MFILE)?
            .fetch_add(1, Ordering::Relaxed);
        // Its last owner closes it.
        std::mem::forget(fd);
        Ok(Self { number })
    }

    fn raw(&self) -> RawFd {
        (self.number.get() - 1).cast_signed()
    }

    fn owners(&self) -> &'static AtomicU32 {
        // Checked when it was made.
        owners(self.number.get() - 1).unwrap_or_else(|| std::process::abort())
    }
}

impl Clone for SharedFd {
    fn clone(&self) -> Self {
        self.owners().fetch_add(1, Ordering::Relaxed);
        Self {
            number: self.number,
        }
    }
}

impl AsFd for SharedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open while it has an owner, and this
        // one lives for as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.raw()) }
    }
}

impl Drop for SharedFd {
    fn drop(&mut self) {
        if self.owners().fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: `new` took the descriptor from its owner, and the count
            // says that nobody else has it now.
            drop(unsafe { OwnedFd::from_raw_fd(self.raw()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_owner_closes_it() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let first = SharedFd::new(writer.into()).unwrap();
        let second = first.clone();
        rustix::io::write(&first, b"a").unwrap();
        drop(first);
        rustix::io::write(&second, b"b").unwrap();
        drop(second);
        // The end of the pipe: no writer is left.
        let all = std::io::read_to_string(&mut reader).unwrap();
        assert_eq!(all, "ab");
    }

    #[test]
    fn a_missing_one_takes_no_room() {
        assert_eq!(size_of::<Option<SharedFd>>(), 4);
    }
}
