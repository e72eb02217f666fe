//! Taking over descriptors that the parent process passed, or left open.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Takes ownership of the descriptor `number`, and keeps it from programs
/// that this process starts.
///
/// For a number from the command line, call this before anything else opens a
/// descriptor: a number that was free when the process started must not meet a
/// descriptor that the daemon has opened for itself since. Otherwise the number
/// must be one whose owner has given it up without closing it.
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
    // else in this process owns it: nothing was opened before, or its owner
    // has given it up.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes ownership of all descriptors that are open, but the standard ones and
/// `but`, so that they can be closed where they have no business.
///
/// Call this before anything but `but` is opened. Where there is no /proc none
/// is found.
pub fn adopt_the_rest(but: Option<RawFd>) -> Vec<OwnedFd> {
    let Ok(list) = std::fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let numbers: Vec<RawFd> = list
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2 && Some(*number) != but)
        .collect();
    // The list itself was one of them, and is closed by now: EBADF.
    numbers
        .into_iter()
        .filter_map(|number| adopt_fd(number).ok())
        .collect()
}
