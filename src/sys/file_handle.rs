//! File handles: the bytes by which a file system finds one of its files again,
//! without a name and without anything being held open.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// No handle is longer (`MAX_HANDLE_SZ`).
pub const MAX_BYTES: usize = 128;

/// A handle as the kernel lays it out (`struct file_handle`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Raw {
    len: u32,
    kind: c_int,
    bytes: [u8; MAX_BYTES],
}

/// The handle of a file, which means something together with its mount only.
#[derive(Clone, Copy)]
pub struct FileHandle {
    kind: u8,
    len: u8,
    bytes: [u8; MAX_BYTES],
}

impl FileHandle {
    /// A handle of these parts; `None` where no file system makes such a one.
    pub fn new(kind: i32, bytes: &[u8]) -> Option<Self> {
        let mut handle = Self {
            kind: u8::try_from(kind).ok()?,
            len: u8::try_from(bytes.len()).ok()?,
            bytes: [0; MAX_BYTES],
        };
        handle.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(handle)
    }

    /// What the file system calls this kind of handle (`handle_type`).
    pub fn kind(&self) -> i32 {
        self.kind.into()
    }

    /// The same as one byte, which is all that there ever is of it.
    pub fn kind_byte(&self) -> &[u8] {
        std::slice::from_ref(&self.kind)
    }

    /// The bytes that belong to the file system.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }

    /// Whether one of the 32-bit words of the handle is the (lower half of the)
    /// inode number, as with ext4, XFS, Btrfs and tmpfs.
    pub fn names_inode(&self, ino: u64) -> bool {
        let wanted = (ino as u32).to_ne_bytes();
        self.bytes().chunks_exact(4).any(|word| word == wanted)
    }
}

impl PartialEq for FileHandle {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.bytes() == other.bytes()
    }
}

impl Eq for FileHandle {}

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileHandle({}, {:02x?})", self.kind, self.bytes())
    }
}

/// The handle of a name in a directory, not following a link, or of `directory`
/// itself for an empty name; and the number of the mount that it is on.
///
/// # Errors
/// Those of `name_to_handle_at(2)`; `EOPNOTSUPP` also where the handle is of no
/// known shape.
pub fn name_to_handle(directory: impl AsFd, name: &CStr) -> Result<(FileHandle, u64), Errno> {
    let mut raw = Raw {
        len: MAX_BYTES as u32,
        kind: 0,
        bytes: [0; MAX_BYTES],
    };
    let mut mount: c_int = 0;
    let flags = if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        0
    };
    // SAFETY: `name` is a C string; the kernel writes at most `len` bytes of the
    // handle, for which `Raw` has room, and one int.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            directory.as_fd().as_raw_fd(),
            name.as_ptr(),
            &raw mut raw,
            &raw mut mount,
            flags,
        )
    };
    if result < 0 {
        return Err(last_error());
    }
    let bytes = raw.bytes.get(..raw.len as usize).ok_or(Errno::OPNOTSUPP)?;
    let handle = FileHandle::new(raw.kind, bytes).ok_or(Errno::OPNOTSUPP)?;
    Ok((handle, mount.cast_unsigned().into()))
}

/// Opens the file of a handle; `mount` is any file or directory on its mount
/// that is open for more than its path.
///
/// # Errors
/// Those of `open_by_handle_at(2)`: `ESTALE` when there is no such file any more.
pub fn open_by_handle(
    mount: impl AsFd,
    handle: &FileHandle,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let mut raw = Raw {
        len: handle.len.into(),
        kind: handle.kind.into(),
        bytes: handle.bytes,
    };
    let flags = (flags | OFlags::CLOEXEC).bits();
    // SAFETY: the kernel reads the handle, `len` bytes of which are there.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_fd().as_raw_fd(),
            &raw mut raw,
            flags,
        )
    };
    match c_int::try_from(fd) {
        // SAFETY: the kernel has just given this descriptor to nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_error()),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_the_same_by_name_and_by_descriptor_and_names_its_inode() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "1").unwrap();
        std::fs::write(dir.path().join("b"), "2").unwrap();
        let directory = std::fs::File::open(dir.path()).unwrap();
        let a = std::fs::File::open(dir.path().join("a")).unwrap();
        let (by_name, mount) = name_to_handle(&directory, c"a").unwrap();
        assert_eq!(name_to_handle(&a, c"").unwrap(), (by_name, mount));
        let (other, _) = name_to_handle(&directory, c"b").unwrap();
        assert_ne!(by_name, other);
        assert!(by_name.names_inode(a.metadata().unwrap().ino()));
        assert_eq!(
            name_to_handle(&directory, c"none").unwrap_err(),
            Errno::NOENT
        );
        // Opening takes a privilege.
        match open_by_handle(&directory, &by_name, OFlags::RDONLY) {
            Ok(opened) => {
                let found = std::fs::File::from(opened).metadata().unwrap();
                assert_eq!(found.ino(), a.metadata().unwrap().ino());
                std::fs::remove_file(dir.path().join("a")).unwrap();
                drop(a);
                let gone = open_by_handle(&directory, &by_name, OFlags::RDONLY);
                assert_eq!(gone.unwrap_err(), Errno::STALE);
            }
            Err(errno) => assert_eq!(errno, Errno::PERM),
        }
    }

    #[test]
    fn parts_that_are_too_large_make_no_handle() {
        assert!(FileHandle::new(1, &[0; MAX_BYTES]).is_some());
        assert!(FileHandle::new(1, &[0; MAX_BYTES + 1]).is_none());
        assert!(FileHandle::new(256, &[]).is_none());
        assert!(FileHandle::new(-1, &[]).is_none());
    }
}
