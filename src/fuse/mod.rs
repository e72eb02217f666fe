//! The FUSE protocol as bytes: wire structs, the table of operations, decoding
//! of requests and packing of replies.
//!
//! Nothing here does I/O or knows where the bytes come from. Decoding is pure
//! and total: any byte string gives an [`op::Op`] or a [`malformed::Malformed`].

pub mod abi;
pub mod cursor;
pub mod decode;
pub mod dirent;
pub mod extensions;
pub mod flags;
pub mod init;
pub mod malformed;
pub mod name;
pub mod op;
pub mod opcode;

/// The only major version of the protocol that exists.
pub const MAJOR_VERSION: u32 = 7;

/// The newest minor version whose features are used (`ALLOW_IDMAP`).
pub const MINOR_VERSION: u32 = 41;

/// The oldest minor version that is served; older guests are refused at INIT.
pub const OLDEST_MINOR_VERSION: u32 = 27;

/// The longest name of a directory entry in bytes: `FUSE_NAME_MAX` of the guest's
/// kernel, more than that of any file system. How much less the host's takes is its
/// own to say: 255 bytes, or 255 UTF-16 units, which are up to 765 bytes.
pub const NAME_MAX: usize = 1024;

/// The longest target of a symbolic link in bytes, its NUL included (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;

/// The largest value of an extended attribute in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_SIZE_MAX: usize = 65536;
