//! The structs of the FUSE protocol as they lie on the wire.
//!
//! Layout follows `include/uapi/linux/fuse.h`; every size is asserted. Fields
//! are in the byte order of the host, which is that of the guest.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Declares one wire struct: plain layout, all fields public, size asserted.
///
/// `wire! { /// doc  Name: 8 { /// doc  a: u32, b: u32 } }` expands to a
/// `#[repr(C)]` struct with the zerocopy derives and a constant assertion.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident : $size:literal {
        $($(#[$field_doc:meta])* $field:ident : $type:ty),* $(,)?
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* #[allow(missing_docs)] pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

wire! {
    /// `fuse_in_header`: in front of every request.
    InHeader: 40 {
        /// Length of the whole request in bytes, this header included.
        len: u32,
        opcode: u32,
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        /// Length of the extensions at the end, in units of 8 bytes.
        total_extlen: u16,
        padding: u16,
    }
    /// `fuse_out_header`: in front of every reply.
    OutHeader: 16 {
        /// Length of the whole reply in bytes, this header included.
        len: u32,
        /// Zero or a negated errno.
        error: i32,
        unique: u64,
    }
    /// `fuse_attr`: the attributes of an inode.
    Attr: 88 {
        ino: u64,
        size: u64,
        /// In units of 512 bytes.
        blocks: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        flags: u32,
    }
    /// `fuse_entry_out`: answer to LOOKUP and to all that makes an entry.
    EntryOut: 128 {
        nodeid: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nsec: u32,
        attr_valid_nsec: u32,
        attr: Attr,
    }
    /// `fuse_forget_in`.
    ForgetIn: 8 { nlookup: u64 }
    /// `fuse_batch_forget_in`: `count` times [`ForgetOne`] follow.
    BatchForgetIn: 8 { count: u32, dummy: u32 }
    /// `fuse_forget_one`.
    ForgetOne: 16 { nodeid: u64, nlookup: u64 }
    /// `fuse_getattr_in`.
    GetattrIn: 16 { getattr_flags: u32, dummy: u32, fh: u64 }
    /// `fuse_attr_out`.
    AttrOut: 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// `fuse_setattr_in`.
    SetattrIn: 88 {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }
    /// `fuse_mknod_in`.
    MknodIn: 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `fuse_mkdir_in`.
    MkdirIn: 8 { mode: u32, umask: u32 }
    /// `fuse_rename_in`.
    RenameIn: 8 { newdir: u64 }
    /// `fuse_rename2_in`.
    Rename2In: 16 { newdir: u64, flags: u32, padding: u32 }
    /// `fuse_link_in`.
    LinkIn: 8 { oldnodeid: u64 }
    /// `fuse_open_in`: OPEN and OPENDIR.
    OpenIn: 8 { flags: u32, open_flags: u32 }
    /// `fuse_create_in`.
    CreateIn: 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// `fuse_open_out`.
    OpenOut: 16 { fh: u64, open_flags: u32, backing_id: i32 }
    /// `fuse_release_in`: RELEASE and RELEASEDIR.
    ReleaseIn: 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `fuse_flush_in`.
    FlushIn: 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// `fuse_file_lock`: a range of bytes, `end` included, and its lock.
    FileLock: 24 { start: u64, end: u64, kind: u32, pid: u32 }
    /// `fuse_lk_in`: GETLK, SETLK and SETLKW.
    LkIn: 48 { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }
    /// `fuse_read_in`: READ, READDIR and READDIRPLUS.
    ReadIn: 40 {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    /// `fuse_write_in`: the data follows.
    WriteIn: 40 {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    /// `fuse_write_out`: also the answer to COPY_FILE_RANGE.
    WriteOut: 8 { size: u32, padding: u32 }
    /// `fuse_statfs_out`.
    StatfsOut: 80 {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }
    /// `fuse_fsync_in`: FSYNC and FSYNCDIR.
    FsyncIn: 16 { fh: u64, fsync_flags: u32, padding: u32 }
    /// `fuse_setxattr_in` as it was before `SETXATTR_EXT`.
    SetxattrIn: 8 { size: u32, flags: u32 }
    /// The part of `fuse_setxattr_in` that follows with `SETXATTR_EXT`.
    SetxattrInExt: 8 { setxattr_flags: u32, padding: u32 }
    /// `fuse_getxattr_in`: GETXATTR and LISTXATTR.
    GetxattrIn: 8 { size: u32, padding: u32 }
    /// `fuse_getxattr_out`.
    GetxattrOut: 8 { size: u32, padding: u32 }
    /// `fuse_access_in`.
    AccessIn: 8 { mask: u32, padding: u32 }
    /// The part of `fuse_init_in` that every guest sends.
    InitIn: 16 { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// The part of `fuse_init_in` that follows with `INIT_EXT`.
    InitInExt: 48 { flags2: u32, unused: [u32; 11] }
    /// `fuse_init_out`.
    InitOut: 64 {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        max_stack_depth: u32,
        request_timeout: u16,
        unused: [u16; 11],
    }
    /// `fuse_interrupt_in`.
    InterruptIn: 8 { unique: u64 }
    /// `fuse_ioctl_in`: the argument follows, `in_size` bytes of it.
    IoctlIn: 32 {
        fh: u64,
        flags: u32,
        cmd: u32,
        arg: u64,
        in_size: u32,
        out_size: u32,
    }
    /// `fuse_ioctl_out`: the argument as it is then follows.
    IoctlOut: 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// `fuse_statx_in`.
    StatxIn: 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    /// `fuse_sx_time`.
    StatxTime: 16 { seconds: i64, nanoseconds: u32, reserved: i32 }
    /// `fuse_statx_out` with its `fuse_statx`.
    StatxOut: 288 {
        attr_valid: u64,
        attr_valid_nsec: u32,
        flags: u32,
        spare: [u64; 2],
        /// Which of the following fields are valid.
        mask: u32,
        blksize: u32,
        attributes: u64,
        nlink: u32,
        uid: u32,
        gid: u32,
        mode: u16,
        spare0: u16,
        ino: u64,
        size: u64,
        blocks: u64,
        attributes_mask: u64,
        atime: StatxTime,
        btime: StatxTime,
        ctime: StatxTime,
        mtime: StatxTime,
        rdev_major: u32,
        rdev_minor: u32,
        dev_major: u32,
        dev_minor: u32,
        spare2: [u64; 14],
    }
    /// `fuse_lseek_in`.
    LseekIn: 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `fuse_lseek_out`.
    LseekOut: 8 { offset: u64 }
    /// `fuse_fallocate_in`.
    FallocateIn: 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// `fuse_copy_file_range_in`.
    CopyFileRangeIn: 56 {
        fh_in: u64,
        off_in: u64,
        nodeid_out: u64,
        fh_out: u64,
        off_out: u64,
        len: u64,
        flags: u64,
    }
    /// `fuse_syncfs_in`.
    SyncfsIn: 8 { padding: u64 }
    /// The fixed part of `fuse_dirent`; the name follows, padded to 8 bytes.
    Dirent: 24 { ino: u64, off: u64, namelen: u32, kind: u32 }
    /// `fuse_ext_header`: in front of each extension.
    ExtHeader: 8 { size: u32, kind: u32 }
    /// `fuse_secctx`: a name, its NUL and `size` bytes of label follow.
    SecurityContext: 8 { size: u32, padding: u32 }
}
