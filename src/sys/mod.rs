//! System calls that the libraries in use do not offer in the shape needed.
//!
//! Together with `guest` the only place where `unsafe` may stand.

pub mod adopt_fd;
pub mod allocator;
pub mod clock;
pub mod cpath;
pub mod file_handle;
pub mod ioctl;
pub mod long_wait;
pub mod process;
pub mod record_lock;
pub mod shared_fd;
pub mod stderr;
pub mod sync;
pub mod thread;
pub mod vectored;

use std::os::fd::{IntoRawFd, OwnedFd};

use rustix::io::Errno;

/// Closes a descriptor and says what `close(2)` says, which a drop keeps to
/// itself.
///
/// # Errors
/// Those of `close(2)`; the descriptor is gone all the same.
#[allow(unsafe_code)]
pub fn close(fd: OwnedFd) -> Result<(), Errno> {
    // SAFETY: the descriptor was owned, and its owner has just given it up.
    unsafe { rustix::io::try_close(fd.into_raw_fd()) }
}

/// Has a write beyond the limit of file sizes (`RLIMIT_FSIZE`) fail with `EFBIG`
/// instead of ending the process with `SIGXFSZ`.
#[allow(unsafe_code)]
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN installs no handler, so nothing of ours runs in one.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Has memory that is freed in large pieces go back to the system at once,
/// whatever pieces were freed before: the maps of a million inodes do not stay.
#[allow(unsafe_code)]
pub fn give_back_large_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: this sets a number of the allocator, which it reads under its own
    // lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}

/// Gives memory back to the system that was freed in small pieces. Threads that
/// need some meanwhile may have to wait for a few milliseconds.
#[allow(unsafe_code)]
pub fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator gives back what nobody uses, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A piece of memory from this size on is a mapping of its own.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: std::ffi::c_int = 64 << 10;
