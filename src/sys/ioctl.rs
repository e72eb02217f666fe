//! The few commands of `ioctl(2)` that are about inodes, not about devices.
//!
//! Numbers are made as `asm-generic/ioctl.h` does, which holds for the machines
//! that the daemon is built for.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

const READ: u32 = 2;
const WRITE: u32 = 1;

const fn number(direction: u32, kind: u8, command: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | command
}

/// Bytes of `struct fsxattr`.
pub const FSXATTR_BYTES: usize = 28;

/// Bytes of `struct fsverity_digest` without the digest.
pub const VERITY_HEADER_BYTES: usize = 4;

/// Bytes of the longest digest.
pub const VERITY_DIGEST_BYTES: usize = 64;

/// Reads the flags that `lsattr(1)` shows (`FS_IOC_GETFLAGS`): 4 bytes, whatever
/// the number says.
pub const GET_FLAGS: u32 = number(READ, b'f', 1, size_of::<usize>());

/// Sets these flags (`FS_IOC_SETFLAGS`).
pub const SET_FLAGS: u32 = number(WRITE, b'f', 2, size_of::<usize>());

/// Reads the generation of the inode (`FS_IOC_GETVERSION`): 4 bytes as well.
pub const GET_VERSION: u32 = number(READ, b'v', 1, size_of::<usize>());

/// Reads flags and project (`FS_IOC_FSGETXATTR`).
pub const GET_XFLAGS: u32 = number(READ, b'X', 31, FSXATTR_BYTES);

/// Sets flags and project (`FS_IOC_FSSETXATTR`).
pub const SET_XFLAGS: u32 = number(WRITE, b'X', 32, FSXATTR_BYTES);

/// Reads the digest of a file under fs-verity (`FS_IOC_MEASURE_VERITY`).
pub const MEASURE_VERITY: u32 = number(READ | WRITE, b'f', 134, VERITY_HEADER_BYTES);

/// A command with its argument, which is read and written.
#[derive(Clone, Copy, Debug)]
pub enum InodeCommand {
    /// [`GET_FLAGS`].
    GetFlags([u8; 4]),
    /// [`SET_FLAGS`].
    SetFlags([u8; 4]),
    /// [`GET_VERSION`].
    GetVersion([u8; 4]),
    /// [`GET_XFLAGS`].
    GetXflags([u8; FSXATTR_BYTES]),
    /// [`SET_XFLAGS`].
    SetXflags([u8; FSXATTR_BYTES]),
    /// [`MEASURE_VERITY`]: the header has room for a digest of the length that it
    /// says, which is at most that of the longest one.
    MeasureVerity([u8; VERITY_HEADER_BYTES + VERITY_DIGEST_BYTES]),
}

impl InodeCommand {
    /// Carries the command out; gives the argument as the host leaves it.
    ///
    /// # Errors
    /// Those of `ioctl(2)`: `ENOTTY` where the file system does not know it.
    pub fn call(mut self, file: BorrowedFd<'_>) -> Result<Self, Errno> {
        let (number, argument) = match &mut self {
            Self::GetFlags(bytes) => (GET_FLAGS, bytes.as_mut_slice()),
            Self::SetFlags(bytes) => (SET_FLAGS, bytes.as_mut_slice()),
            Self::GetVersion(bytes) => (GET_VERSION, bytes.as_mut_slice()),
            Self::GetXflags(bytes) => (GET_XFLAGS, bytes.as_mut_slice()),
            Self::SetXflags(bytes) => (SET_XFLAGS, bytes.as_mut_slice()),
            Self::MeasureVerity(bytes) => {
                let room = u16::from_ne_bytes([bytes[2], bytes[3]]);
                if usize::from(room) > VERITY_DIGEST_BYTES {
                    return Err(Errno::INVAL);
                }
                (MEASURE_VERITY, bytes.as_mut_slice())
            }
        };
        // A file system of its own making may go by the number's size.
        let mut room = [0_u8; 128];
        let (front, _) = room.split_at_mut(argument.len());
        front.copy_from_slice(argument);
        // SAFETY: each command reads and writes at most its argument, of the size
        // of the kernel's struct, or of the size that the number says; the digest
        // is no longer than its header says. All that is within the 128 bytes.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), number.into(), room.as_mut_ptr()) };
        if result == -1 {
            let error = std::io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        let (front, _) = room.split_at(argument.len());
        argument.copy_from_slice(front);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernel() {
        assert_eq!(u64::from(GET_FLAGS), 0x8008_6601);
        assert_eq!(u64::from(SET_FLAGS), 0x4008_6602);
        assert_eq!(u64::from(GET_VERSION), 0x8008_7601);
        assert_eq!(u64::from(GET_XFLAGS), 0x801c_581f);
        assert_eq!(u64::from(SET_XFLAGS), 0x401c_5820);
        assert_eq!(u64::from(MEASURE_VERITY), 0xc004_6686);
    }

    #[test]
    fn the_flags_are_those_that_the_library_reads() {
        let file = tempfile::tempfile().unwrap();
        let expected = rustix::fs::ioctl_getflags(&file).map(|flags| flags.bits());
        let found = InodeCommand::GetFlags([0; 4]).call(file.as_fd());
        let found = found.map(|found| match found {
            InodeCommand::GetFlags(bytes) => u32::from_ne_bytes(bytes),
            other => panic!("{other:?}"),
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_digest_longer_than_the_longest_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let mut argument = [0; 68];
        argument[2..4].copy_from_slice(&65_u16.to_ne_bytes());
        let refused = InodeCommand::MeasureVerity(argument).call(file.as_fd());
        assert_eq!(refused.unwrap_err(), Errno::INVAL);
    }
}
