//! Locks of open file descriptions (`F_OFD_SETLK` of `fcntl(2)`).
//!
//! They conflict with the record locks of processes and with each other, and
//! they are gone when the description is closed.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// A range of bytes and how it is locked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecordLock {
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: i16,
    /// The first byte.
    pub start: i64,
    /// How many bytes; 0 for all there are and will be.
    pub len: i64,
}

impl RecordLock {
    fn to_c(self) -> libc::flock {
        // SAFETY: all fields are integers, of which 0 is a value.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = self.kind;
        lock.l_whence = libc::SEEK_SET as i16;
        lock.l_start = self.start;
        lock.l_len = self.len;
        lock
    }
}

/// Locks or unlocks, or says `EAGAIN` where another description holds a lock
/// that conflicts.
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn set_record_lock(file: BorrowedFd<'_>, lock: RecordLock) -> Result<(), Errno> {
    call(file, libc::F_OFD_SETLK, &mut lock.to_c())
}

/// Locks, and waits for as long as another description holds a lock that
/// conflicts.
///
/// # Errors
/// Those of `fcntl(2)`: `EINTR` when the thread gets a signal.
pub fn wait_for_record_lock(file: BorrowedFd<'_>, lock: RecordLock) -> Result<(), Errno> {
    call(file, libc::F_OFD_SETLKW, &mut lock.to_c())
}

/// The first lock of another description that conflicts with this one.
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn conflicting_record_lock(
    file: BorrowedFd<'_>,
    lock: RecordLock,
) -> Result<Option<RecordLock>, Errno> {
    let mut found = lock.to_c();
    call(file, libc::F_OFD_GETLK, &mut found)?;
    let kind = found.l_type;
    Ok((kind != libc::F_UNLCK as i16).then_some(RecordLock {
        kind,
        start: found.l_start,
        len: found.l_len,
    }))
}

fn call(file: BorrowedFd<'_>, command: i32, lock: &mut libc::flock) -> Result<(), Errno> {
    // SAFETY: the commands in use take a pointer to one `flock`, which this is.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if result == -1 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    const WRITE: i16 = libc::F_WRLCK as i16;
    const READ: i16 = libc::F_RDLCK as i16;

    fn lock(kind: i16, start: i64, len: i64) -> RecordLock {
        RecordLock { kind, start, len }
    }

    #[test]
    fn two_descriptions_of_one_process_conflict() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).open(file.path()).unwrap()
        };
        let (first, second) = (open(), open());
        let held = lock(WRITE, 10, 10);
        assert_eq!(set_record_lock(first.as_fd(), held), Ok(()));
        let refused = set_record_lock(second.as_fd(), lock(READ, 19, 1));
        assert_eq!(refused, Err(Errno::AGAIN));
        let found = conflicting_record_lock(second.as_fd(), lock(READ, 0, 0));
        assert_eq!(found, Ok(Some(held)));
        assert_eq!(
            conflicting_record_lock(first.as_fd(), lock(WRITE, 0, 0)),
            Ok(None)
        );
        drop(first);
        assert_eq!(set_record_lock(second.as_fd(), lock(READ, 19, 1)), Ok(()));
    }
}
