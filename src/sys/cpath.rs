//! Names for system calls that are made without allocating: that of a descriptor
//! inside `/proc/self/fd`, a formatted integer and nothing else, so that no name
//! of the guest's can get into it; and a copy of a directory entry's.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for the digits of any descriptor and a NUL.
const CAPACITY: usize = 12;

/// A descriptor's number as a C string, without allocating.
#[derive(Clone, Copy, Debug)]
pub struct FdName {
    text: [u8; CAPACITY],
    start: usize,
}

impl FdName {
    /// Names `fd`.
    pub fn of(fd: BorrowedFd<'_>) -> Self {
        let mut text = [0; CAPACITY];
        let mut rest = fd.as_raw_fd().unsigned_abs();
        let mut start = CAPACITY - 1;
        for (position, place) in text.iter_mut().enumerate().rev().skip(1) {
            *place = b'0' + (rest % 10) as u8;
            start = position;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        Self { text, start }
    }

    /// The name for a system call.
    pub fn as_c_str(&self) -> &CStr {
        self.text
            .get(self.start..)
            .and_then(|text| CStr::from_bytes_with_nul(text).ok())
            .unwrap_or(c"")
    }
}

/// The most bytes of a directory entry's name, on any file system.
const NAME_MAX: usize = 1024;

/// The most bytes of a name that takes no memory of its own: with room for the longest
/// in each copy, to clear and to move it took 12 % of the instructions of a GETATTR.
const SHORT_NAME: usize = 255;

/// A copy of the name of a directory entry.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // It lives on the stack of one call.
pub enum NameCopy {
    /// With zeros behind it, and its length.
    Short([u8; SHORT_NAME + 1], usize),
    /// One that only a few file systems have.
    Long(Box<CStr>),
}

impl NameCopy {
    /// Copies a name without a NUL; `None` where it is longer than any.
    pub fn of(name: &[u8]) -> Option<Self> {
        let mut text = [0; SHORT_NAME + 1];
        let len = name.len();
        if let Some(room) = text.get_mut(..len).filter(|_| len <= SHORT_NAME) {
            room.copy_from_slice(name);
            return Some(Self::Short(text, len));
        }
        let name = (len <= NAME_MAX).then(|| CString::new(name))?;
        Some(Self::Long(name.ok()?.into_boxed_c_str()))
    }

    /// The name for a system call.
    pub fn as_c_str(&self) -> &CStr {
        match self {
            Self::Short(text, len) => text
                .get(..=*len)
                .and_then(|text| CStr::from_bytes_with_nul(text).ok())
                .unwrap_or(c""),
            Self::Long(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_name_is_the_number() {
        let first = std::fs::File::open("/").unwrap();
        let high = rustix::io::fcntl_dupfd_cloexec(&first, 1000).unwrap();
        for fd in [
            std::os::fd::AsFd::as_fd(&first),
            std::os::fd::AsFd::as_fd(&high),
        ] {
            let expected = fd.as_raw_fd().to_string();
            assert_eq!(FdName::of(fd).as_c_str().to_str().unwrap(), expected);
        }
    }

    #[test]
    fn a_copy_is_the_name() {
        for len in [1, SHORT_NAME, SHORT_NAME + 1, NAME_MAX] {
            let name = "n".repeat(len);
            let copy = NameCopy::of(name.as_bytes()).unwrap();
            assert_eq!(copy.as_c_str().to_bytes(), name.as_bytes());
        }
        assert!(NameCopy::of(&[b'n'; NAME_MAX + 1]).is_none());
    }
}
