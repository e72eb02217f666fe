//! `preadv2(2)` and `pwritev2(2)` on raw vectors: the memory belongs to the
//! guest, so no Rust reference to it may exist.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Flag of `pwritev2(2)`: append to the end of the file, whatever the offset.
pub const RWF_APPEND: i32 = libc::RWF_APPEND;

/// Flag of `pwritev2(2)`: as if the file were open with `O_DSYNC`.
pub const RWF_DSYNC: i32 = libc::RWF_DSYNC;

/// Flag of `pwritev2(2)`: as if the file were open with `O_SYNC`.
pub const RWF_SYNC: i32 = libc::RWF_SYNC;

/// Flag of `preadv2(2)`: `EAGAIN` instead of waiting for a disk; `EOPNOTSUPP`
/// where the file system cannot tell.
pub const RWF_NOWAIT: i32 = libc::RWF_NOWAIT;

/// The most vectors that one call takes (`UIO_MAXIOV`).
pub const IOV_MAX: usize = 1024;

/// Reads from `file` at `offset` into the vectors; gives the bytes read.
///
/// # Errors
/// Those of `preadv2(2)`, `EINTR` excepted: the call is repeated.
///
/// # Safety
/// Every vector must name memory that is mapped writable during the call and of
/// which no Rust reference exists.
pub unsafe fn preadv2(
    file: BorrowedFd<'_>,
    vectors: &[libc::iovec],
    offset: u64,
    flags: i32,
) -> Result<usize, Errno> {
    let count = vectors.len().min(IOV_MAX) as i32;
    repeat(|| {
        // SAFETY: the kernel writes through the vectors only, which the caller
        // vouches for; the slice itself is valid for `count` entries.
        unsafe {
            libc::preadv2(
                file.as_raw_fd(),
                vectors.as_ptr(),
                count,
                offset.cast_signed(),
                flags,
            )
        }
    })
}

/// Writes the vectors to `file` at `offset`; gives the bytes written.
///
/// # Errors
/// Those of `pwritev2(2)`, `EINTR` excepted: the call is repeated.
///
/// # Safety
/// Every vector must name memory that is mapped readable during the call.
pub unsafe fn pwritev2(
    file: BorrowedFd<'_>,
    vectors: &[libc::iovec],
    offset: u64,
    flags: i32,
) -> Result<usize, Errno> {
    let count = vectors.len().min(IOV_MAX) as i32;
    repeat(|| {
        // SAFETY: the kernel only reads through the vectors, which the caller
        // vouches for; the slice itself is valid for `count` entries.
        unsafe {
            libc::pwritev2(
                file.as_raw_fd(),
                vectors.as_ptr(),
                count,
                offset.cast_signed(),
                flags,
            )
        }
    })
}

/// Calls until it is not interrupted; the errno is read before anything else can
/// change it.
fn repeat(mut call: impl FnMut() -> isize) -> Result<usize, Errno> {
    loop {
        let Ok(n) = usize::try_from(call()) else {
            let error = std::io::Error::last_os_error();
            match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
                Errno::INTR => continue,
                errno => return Err(errno),
            }
        };
        return Ok(n);
    }
}
