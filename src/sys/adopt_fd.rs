//! Taking over a descriptor that the parent process passed by its number.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Takes ownership of the descriptor `number`, and keeps it from programs
/// that this process starts.
///
/// Call this before anything else opens a descriptor: the number comes from
/// the command line, and a number that was free when the process started must
/// not meet a descriptor that the daemon has opened for itself since.
///
/// # Errors
/// `EBADF` when no such descriptor is open.
pub fn adopt_fd(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_SETFD takes no pointer; on a number that is not open it only
    // reports EBADF.
    let done = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if done == -1 {
        return Err(Errno::BADF);
    }
    // SAFETY: the descriptor is open, as the call above has shown, and nobody
    // else in this process owns it, since nothing was opened before.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
