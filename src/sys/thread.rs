//! What belongs to one thread only: its file-system context.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::os::fd::AsFd;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Gives the calling thread a umask and a working directory of its own.
///
/// # Errors
/// Those of `unshare(2)`: `EPERM` where a container's seccomp filter forbids it.
pub fn unshare_fs() -> Result<(), Errno> {
    // SAFETY: CLONE_FS takes no descriptor or memory away from anyone; it only
    // stops this thread from sharing its umask and working directory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
}

/// The calling thread has a umask for as long as this lives; all others and it
/// itself have none otherwise.
#[derive(Debug)]
#[must_use]
pub struct Masked(());

/// Gives the calling thread, and no other, a umask until the guard drops. It
/// settles in `directory` first (see [`settle_in`]).
///
/// # Errors
/// Those of [`settle_in`].
pub fn mask(directory: impl AsFd, umask: Mode) -> Result<Masked, Errno> {
    settle_in(directory)?;
    rustix::process::umask(umask);
    Ok(Masked(()))
}

impl Drop for Masked {
    fn drop(&mut self) {
        rustix::process::umask(Mode::empty());
    }
}

thread_local! {
    static PREPARED: Cell<bool> = const { Cell::new(false) };
}

/// Makes `directory` the working directory of this thread alone, once.
///
/// # Errors
/// Those of `unshare(2)` and `fchdir(2)`.
pub fn settle_in(directory: impl AsFd) -> Result<(), Errno> {
    if PREPARED.get() {
        return Ok(());
    }
    unshare_fs()?;
    rustix::process::fchdir(directory)?;
    PREPARED.set(true);
    Ok(())
}
