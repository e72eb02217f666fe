//! How the bytes of a request contradict the protocol.

use rustix::io::Errno;

/// Why a request cannot be understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// The body ends before its last field, or a string has no NUL.
    Short,
    /// A name that cannot be one of a directory entry.
    BadName,
    /// A name of more than [`NAME_MAX`](super::NAME_MAX) bytes.
    NameTooLong,
    /// An extension whose sizes contradict each other.
    BadExtension,
    /// An offset or length that no file can have.
    BadRange,
    /// Flags of `statx(2)` that are not about caches.
    BadFlags,
    /// A lock of a kind that does not exist.
    BadLock,
    /// An attribute value of more than 64 KiB.
    ValueTooLong,
}

impl From<Malformed> for Errno {
    fn from(why: Malformed) -> Self {
        match why {
            Malformed::NameTooLong => Self::NAMETOOLONG,
            Malformed::ValueTooLong => Self::TOOBIG,
            _ => Self::INVAL,
        }
    }
}
