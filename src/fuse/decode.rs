//! From the bytes of a request to an [`Op`]: pure and total.

use super::XATTR_SIZE_MAX;
use super::abi;
use super::cursor::Cursor;
use super::extensions::{Extensions, decode_extensions};
use super::flags;
use super::malformed::Malformed;
use super::op::{
    CopyFileRangeArgs, CreateArgs, FallocateArgs, InitArgs, IoctlArgs, LockArgs, LockKind,
    LockOwner, LockRange, MkdirArgs, MknodArgs, Op, OpenArgs, ReadArgs, RenameArgs, SetId, SetTime,
    SetattrArgs, SetxattrArgs, StatxArgs, SymlinkArgs, TmpfileArgs, WriteArgs,
};
use super::opcode::Opcode;
use crate::id::{HandleId, NodeId};

/// Decodes the body of a request.
///
/// `body` is what follows the header: all of it, or for an operation with a
/// payload the struct in front of the data. `features` are the bits that INIT
/// agreed on.
///
/// # Errors
/// [`Malformed`] when the bytes contradict the protocol.
pub fn decode<'a>(
    opcode: Opcode,
    header: &abi::InHeader,
    body: &'a [u8],
    features: u64,
) -> Result<Op<'a>, Malformed> {
    let (body, extensions) = split_extensions(header, body)?;
    let mut cursor = Cursor::new(body);
    Ok(match opcode {
        Opcode::Lookup => Op::Lookup {
            name: cursor.take_name()?,
        },
        Opcode::Forget => Op::Forget {
            count: cursor.take::<abi::ForgetIn>()?.nlookup,
        },
        Opcode::BatchForget => Op::BatchForget {
            count: cursor.take::<abi::BatchForgetIn>()?.count,
        },
        Opcode::Getattr => Op::Getattr {
            handle: getattr_handle(cursor.take()?),
        },
        Opcode::Setattr => Op::Setattr(setattr(&cursor.take()?)?),
        Opcode::Readlink => Op::Readlink,
        Opcode::Symlink => Op::Symlink(SymlinkArgs {
            name: cursor.take_name()?,
            target: cursor.take_c_str()?,
            extensions: extensions_of(&mut cursor, extensions, features)?,
        }),
        Opcode::Mknod => {
            let args: abi::MknodIn = cursor.take()?;
            let name = cursor.take_name()?;
            let extensions = extensions_of(&mut cursor, extensions, features)?;
            Op::Mknod(MknodArgs {
                name,
                mode: args.mode,
                rdev: args.rdev,
                umask: args.umask,
                extensions,
            })
        }
        Opcode::Mkdir => {
            let args: abi::MkdirIn = cursor.take()?;
            let name = cursor.take_name()?;
            let extensions = extensions_of(&mut cursor, extensions, features)?;
            Op::Mkdir(MkdirArgs {
                name,
                mode: args.mode,
                umask: args.umask,
                extensions,
            })
        }
        Opcode::Unlink => Op::Unlink {
            name: cursor.take_name()?,
        },
        Opcode::Rmdir => Op::Rmdir {
            name: cursor.take_name()?,
        },
        Opcode::Rename => {
            let args: abi::RenameIn = cursor.take()?;
            rename(&mut cursor, args.newdir, 0)?
        }
        Opcode::Rename2 => {
            let args: abi::Rename2In = cursor.take()?;
            rename(&mut cursor, args.newdir, args.flags)?
        }
        Opcode::Link => {
            let args: abi::LinkIn = cursor.take()?;
            Op::Link {
                node: NodeId(args.oldnodeid),
                name: cursor.take_name()?,
            }
        }
        Opcode::Open => {
            let args: abi::OpenIn = cursor.take()?;
            Op::Open(open(args.flags, args.open_flags))
        }
        Opcode::Opendir => Op::Opendir {
            flags: cursor.take::<abi::OpenIn>()?.flags,
        },
        Opcode::Read => {
            let args = read(&cursor.take()?);
            check_range(args.offset, u64::from(args.size))?;
            Op::Read(args)
        }
        Opcode::Readdir => Op::Readdir(read(&cursor.take()?)),
        Opcode::Readdirplus => Op::Readdirplus(read(&cursor.take()?)),
        Opcode::Write => Op::Write(write(&cursor.take()?)?),
        Opcode::Statfs => Op::Statfs,
        Opcode::Release => {
            let args: abi::ReleaseIn = cursor.take()?;
            Op::Release {
                handle: HandleId(args.fh),
                unlocks: args.release_flags & flags::release::FLOCK_UNLOCK != 0,
            }
        }
        Opcode::Releasedir => Op::Releasedir {
            handle: HandleId(cursor.take::<abi::ReleaseIn>()?.fh),
        },
        Opcode::Fsync => {
            let (handle, data_only) = fsync(&cursor.take()?);
            Op::Fsync { handle, data_only }
        }
        Opcode::Fsyncdir => {
            let (handle, data_only) = fsync(&cursor.take()?);
            Op::Fsyncdir { handle, data_only }
        }
        Opcode::Setxattr => Op::Setxattr(setxattr(&mut cursor, features)?),
        Opcode::Getxattr => {
            let args: abi::GetxattrIn = cursor.take()?;
            Op::Getxattr {
                name: cursor.take_c_str()?,
                size: args.size,
            }
        }
        Opcode::Listxattr => Op::Listxattr {
            size: cursor.take::<abi::GetxattrIn>()?.size,
        },
        Opcode::Removexattr => Op::Removexattr {
            name: cursor.take_c_str()?,
        },
        Opcode::Flush => {
            let args: abi::FlushIn = cursor.take()?;
            Op::Flush {
                handle: HandleId(args.fh),
                owner: LockOwner(args.lock_owner),
            }
        }
        Opcode::Getlk => Op::Getlk(lock(&cursor.take()?)?),
        Opcode::Setlk => Op::Setlk(lock(&cursor.take()?)?),
        Opcode::Setlkw => Op::Setlkw(lock(&cursor.take()?)?),
        Opcode::Init => Op::Init(init(&mut cursor)?),
        Opcode::Access => Op::Access {
            mask: cursor.take::<abi::AccessIn>()?.mask,
        },
        Opcode::Create => {
            let args: abi::CreateIn = cursor.take()?;
            let name = cursor.take_name()?;
            let extensions = extensions_of(&mut cursor, extensions, features)?;
            Op::Create(CreateArgs {
                name,
                open: open(args.flags, args.open_flags),
                mode: args.mode,
                umask: args.umask,
                extensions,
            })
        }
        Opcode::Tmpfile => {
            let args: abi::CreateIn = cursor.take()?;
            // A name that means nothing: Linux sends a slash.
            cursor.take_c_str()?;
            Op::Tmpfile(TmpfileArgs {
                flags: args.flags,
                mode: args.mode,
                umask: args.umask,
                extensions: decode_extensions(extensions)?,
            })
        }
        Opcode::Ioctl => {
            let args: abi::IoctlIn = cursor.take()?;
            Op::Ioctl(IoctlArgs {
                handle: HandleId(args.fh),
                command: args.cmd,
                input: cursor.take_bytes(args.in_size as usize)?,
                out_size: args.out_size,
            })
        }
        Opcode::Statx => Op::Statx(statx(&cursor.take()?)?),
        Opcode::Interrupt => Op::Interrupt {
            unique: cursor.take::<abi::InterruptIn>()?.unique,
        },
        Opcode::Destroy => Op::Destroy,
        Opcode::Fallocate => Op::Fallocate(fallocate(&cursor.take()?)?),
        Opcode::Lseek => {
            let args: abi::LseekIn = cursor.take()?;
            Op::Lseek {
                handle: HandleId(args.fh),
                offset: args.offset,
                whence: args.whence,
            }
        }
        Opcode::CopyFileRange => Op::CopyFileRange(copy_file_range(&cursor.take()?)?),
        Opcode::Syncfs => Op::Syncfs,
    })
}

/// Cuts the extensions off the end of a body.
fn split_extensions<'a>(
    header: &abi::InHeader,
    body: &'a [u8],
) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let extension_len = usize::from(header.total_extlen) * 8;
    let middle = body
        .len()
        .checked_sub(extension_len)
        .ok_or(Malformed::Short)?;
    body.split_at_checked(middle).ok_or(Malformed::Short)
}

/// Reads the extensions of a request that makes something.
///
/// Linux before 6.3 does not say how long they are: the only one that it knows,
/// the security context, lies behind the names without further notice.
fn extensions_of<'a>(
    cursor: &mut Cursor<'a>,
    extensions: &'a [u8],
    features: u64,
) -> Result<Extensions<'a>, Malformed> {
    if extensions.is_empty() && features & flags::init::SECURITY_CTX != 0 {
        return decode_extensions(cursor.take_rest());
    }
    decode_extensions(extensions)
}

/// The host counts offsets in a signed number: one that does not fit is refused.
fn check_range(offset: u64, length: u64) -> Result<(), Malformed> {
    match offset.checked_add(length) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(Malformed::BadRange),
    }
}

fn getattr_handle(args: abi::GetattrIn) -> Option<HandleId> {
    (args.getattr_flags & flags::getattr::FH != 0).then_some(HandleId(args.fh))
}

fn setattr(args: &abi::SetattrIn) -> Result<SetattrArgs, Malformed> {
    use flags::setattr as bits;
    let given = |bit| args.valid & bit != 0;
    if given(bits::SIZE) {
        check_range(args.size, 0)?;
    }
    let time = |set, now, seconds: u64, nanoseconds: u32| {
        if given(now) {
            SetTime::Now
        } else if given(set) {
            SetTime::At(seconds.cast_signed(), nanoseconds)
        } else {
            SetTime::Omit
        }
    };
    Ok(SetattrArgs {
        handle: given(bits::FH).then_some(HandleId(args.fh)),
        mode: given(bits::MODE).then_some(args.mode),
        uid: given(bits::UID).then_some(args.uid),
        gid: given(bits::GID).then_some(args.gid),
        size: given(bits::SIZE).then_some(args.size),
        atime: time(bits::ATIME, bits::ATIME_NOW, args.atime, args.atimensec),
        mtime: time(bits::MTIME, bits::MTIME_NOW, args.mtime, args.mtimensec),
        set_id: SetId::dropped_if(given(bits::KILL_SUIDGID)),
    })
}

fn open(flags: u32, open_flags: u32) -> OpenArgs {
    OpenArgs {
        flags,
        set_id: SetId::dropped_if(open_flags & flags::open_in::KILL_SUIDGID != 0),
    }
}

fn rename<'a>(cursor: &mut Cursor<'a>, new_parent: u64, flags: u32) -> Result<Op<'a>, Malformed> {
    Ok(Op::Rename(RenameArgs {
        name: cursor.take_name()?,
        new_parent: NodeId(new_parent),
        new_name: cursor.take_name()?,
        flags,
    }))
}

fn read(args: &abi::ReadIn) -> ReadArgs {
    ReadArgs {
        handle: HandleId(args.fh),
        offset: args.offset,
        size: args.size,
    }
}

fn write(args: &abi::WriteIn) -> Result<WriteArgs, Malformed> {
    check_range(args.offset, u64::from(args.size))?;
    Ok(WriteArgs {
        handle: HandleId(args.fh),
        offset: args.offset,
        size: args.size,
        write_flags: args.write_flags,
        flags: args.flags,
    })
}

fn fsync(args: &abi::FsyncIn) -> (HandleId, bool) {
    (
        HandleId(args.fh),
        args.fsync_flags & flags::fsync::DATA_ONLY != 0,
    )
}

fn setxattr<'a>(cursor: &mut Cursor<'a>, features: u64) -> Result<SetxattrArgs<'a>, Malformed> {
    let args: abi::SetxattrIn = cursor.take()?;
    let more = if features & flags::init::SETXATTR_EXT != 0 {
        cursor.take()?
    } else {
        abi::SetxattrInExt::default()
    };
    if args.size as usize > XATTR_SIZE_MAX {
        return Err(Malformed::ValueTooLong);
    }
    let name = cursor.take_c_str()?;
    let value = cursor.take_bytes(args.size as usize)?;
    Ok(SetxattrArgs {
        name,
        value,
        flags: args.flags,
        set_id: SetId::dropped_if(more.setxattr_flags & flags::setxattr::ACL_KILL_SGID != 0),
    })
}

fn init(cursor: &mut Cursor<'_>) -> Result<InitArgs, Malformed> {
    let args: abi::InitIn = cursor.take()?;
    let mut bits = u64::from(args.flags);
    // An older guest sends no second word; one that says it does must send it.
    if bits & flags::init::INIT_EXT != 0 {
        bits |= u64::from(cursor.take::<abi::InitInExt>()?.flags2) << 32;
    }
    Ok(InitArgs {
        major: args.major,
        minor: args.minor,
        max_readahead: args.max_readahead,
        flags: bits,
    })
}

fn statx(args: &abi::StatxIn) -> Result<StatxArgs, Malformed> {
    if args.sx_flags & !flags::statx::SYNC_TYPE != 0 {
        return Err(Malformed::BadFlags);
    }
    Ok(StatxArgs {
        handle: (args.getattr_flags & flags::getattr::FH != 0).then_some(HandleId(args.fh)),
        sync: args.sx_flags,
        mask: args.sx_mask,
    })
}

fn lock(args: &abi::LkIn) -> Result<LockArgs, Malformed> {
    let lock = args.lk;
    check_range(lock.end, 0)?;
    if lock.start > lock.end {
        return Err(Malformed::BadRange);
    }
    let kind = match lock.kind.cast_signed() {
        libc::F_RDLCK => Some(LockKind::Shared),
        libc::F_WRLCK => Some(LockKind::Exclusive),
        libc::F_UNLCK => None,
        _ => return Err(Malformed::BadLock),
    };
    Ok(LockArgs {
        handle: HandleId(args.fh),
        owner: LockOwner(args.owner),
        range: LockRange {
            start: lock.start,
            end: lock.end,
        },
        kind,
        pid: lock.pid,
        is_flock: args.lk_flags & flags::lock::FLOCK != 0,
    })
}

fn fallocate(args: &abi::FallocateIn) -> Result<FallocateArgs, Malformed> {
    // A range that ends beyond the largest offset is the host's to refuse (EFBIG).
    check_range(args.offset, 0)?;
    check_range(args.length, 0)?;
    Ok(FallocateArgs {
        handle: HandleId(args.fh),
        offset: args.offset,
        length: args.length,
        mode: args.mode,
    })
}

fn copy_file_range(args: &abi::CopyFileRangeIn) -> Result<CopyFileRangeArgs, Malformed> {
    check_range(args.off_in, 0)?;
    check_range(args.off_out, 0)?;
    Ok(CopyFileRangeArgs {
        handle_in: HandleId(args.fh_in),
        offset_in: args.off_in,
        node_out: NodeId(args.nodeid_out),
        handle_out: HandleId(args.fh_out),
        offset_out: args.off_out,
        length: args.len,
        flags: args.flags,
    })
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn header() -> abi::InHeader {
        abi::InHeader::default()
    }

    /// The shortest valid body of each operation.
    fn shortest_body(opcode: Opcode) -> Vec<u8> {
        let zeros = |len| vec![0; len];
        let with_names = |len, names: &[u8]| [&zeros(len), names].concat();
        match opcode {
            Opcode::Lookup | Opcode::Unlink | Opcode::Rmdir | Opcode::Removexattr => {
                b"n\0".to_vec()
            }
            Opcode::Symlink => b"n\0t\0".to_vec(),
            Opcode::Rename => with_names(8, b"a\0b\0"),
            Opcode::Rename2 => with_names(16, b"a\0b\0"),
            Opcode::Mkdir | Opcode::Link | Opcode::Setxattr | Opcode::Getxattr => {
                with_names(8, b"n\0")
            }
            Opcode::Tmpfile => with_names(16, b"/\0"),
            Opcode::Ioctl => zeros(32),
            Opcode::Statx => zeros(24),
            Opcode::Mknod | Opcode::Create => with_names(16, b"n\0"),
            Opcode::Forget | Opcode::BatchForget | Opcode::Listxattr | Opcode::Access => zeros(8),
            Opcode::Open | Opcode::Opendir | Opcode::Interrupt => zeros(8),
            Opcode::Getattr | Opcode::Fsync | Opcode::Fsyncdir | Opcode::Init => zeros(16),
            Opcode::Release | Opcode::Releasedir | Opcode::Flush | Opcode::Lseek => zeros(24),
            Opcode::Fallocate => zeros(32),
            Opcode::Getlk | Opcode::Setlk | Opcode::Setlkw => zeros(48),
            Opcode::Read | Opcode::Readdir | Opcode::Readdirplus | Opcode::Write => zeros(40),
            Opcode::CopyFileRange => zeros(56),
            Opcode::Setattr => zeros(88),
            Opcode::Readlink | Opcode::Statfs | Opcode::Destroy | Opcode::Syncfs => zeros(0),
        }
    }

    #[test]
    fn the_shortest_valid_body_decodes_and_every_prefix_is_refused() {
        for opcode in Opcode::ALL {
            let body = shortest_body(*opcode);
            assert!(decode(*opcode, &header(), &body, 0).is_ok(), "{opcode:?}");
            for len in 0..body.len() {
                let cut = decode(*opcode, &header(), &body[..len], 0);
                assert!(cut.is_err(), "{opcode:?} cut to {len}");
            }
        }
    }

    #[test]
    fn extensions_longer_than_the_body_are_refused() {
        for opcode in Opcode::ALL {
            let body = shortest_body(*opcode);
            let header = abi::InHeader {
                total_extlen: u16::MAX,
                ..header()
            };
            assert_eq!(
                decode(*opcode, &header, &body, 0).err(),
                Some(Malformed::Short),
                "{opcode:?}"
            );
        }
    }

    #[test]
    fn offsets_that_no_file_has_are_refused() {
        for (offset, size, good) in [
            (i64::MAX as u64, 0, true),
            (i64::MAX as u64, 1, false),
            (1 << 63, 0, false),
            (u64::MAX, u32::MAX, false),
        ] {
            let args = abi::ReadIn {
                offset,
                size,
                ..Default::default()
            };
            let read = decode(Opcode::Read, &header(), args.as_bytes(), 0);
            assert_eq!(read.is_ok(), good, "read {offset} {size}");
            let args = abi::WriteIn {
                offset,
                size,
                ..Default::default()
            };
            let write = decode(Opcode::Write, &header(), args.as_bytes(), 0);
            assert_eq!(write.is_ok(), good, "write {offset} {size}");
        }
    }

    #[test]
    fn an_argument_of_ioctl_must_be_there() {
        for (in_size, good) in [(0, true), (4, true), (5, false), (u32::MAX, false)] {
            let args = abi::IoctlIn {
                in_size,
                ..Default::default()
            };
            let body = [args.as_bytes(), &[7; 4]].concat();
            let decoded = decode(Opcode::Ioctl, &header(), &body, 0);
            assert_eq!(decoded.is_ok(), good, "{in_size}");
        }
    }

    #[test]
    fn a_lock_has_a_kind_and_a_range_that_there_are() {
        for (start, end, kind, good) in [
            (0, i64::MAX as u64, 0, true),
            (5, 5, 1, true),
            (0, 0, 2, true),
            (1, 0, 1, false),
            (0, 1 << 63, 1, false),
            (0, 0, 3, false),
            (0, 0, u32::MAX, false),
        ] {
            let lk = abi::FileLock {
                start,
                end,
                kind,
                pid: 1,
            };
            let args = abi::LkIn {
                lk,
                ..Default::default()
            };
            let decoded = decode(Opcode::Setlk, &header(), args.as_bytes(), 0);
            assert_eq!(decoded.is_ok(), good, "{args:?}");
        }
    }

    #[test]
    fn a_value_may_have_64_kib_and_must_be_there() {
        let body = |size: u32, len: usize| {
            let args = abi::SetxattrIn { size, flags: 0 };
            [args.as_bytes(), b"user.x\0", &vec![7; len]].concat()
        };
        let longest = body(65536, 65536);
        assert!(decode(Opcode::Setxattr, &header(), &longest, 0).is_ok());
        let too_long = body(65537, 65537);
        assert_eq!(
            decode(Opcode::Setxattr, &header(), &too_long, 0).err(),
            Some(Malformed::ValueTooLong)
        );
        let missing = body(10, 9);
        assert_eq!(
            decode(Opcode::Setxattr, &header(), &missing, 0).err(),
            Some(Malformed::Short)
        );
    }

    #[test]
    fn setxattr_reads_flags_of_its_own_only_where_they_were_agreed_on() {
        let extended = flags::init::SETXATTR_EXT;
        let short = abi::SetxattrIn { size: 1, flags: 2 };
        let more = abi::SetxattrInExt {
            setxattr_flags: flags::setxattr::ACL_KILL_SGID,
            padding: 0,
        };
        let short_body = [short.as_bytes(), b"n\0v"].concat();
        let long_body = [short.as_bytes(), more.as_bytes(), b"n\0v"].concat();
        for (body, features, set_id) in [
            (&short_body, 0, SetId::Keep),
            (&long_body, extended, SetId::Drop),
        ] {
            let Ok(Op::Setxattr(args)) = decode(Opcode::Setxattr, &header(), body, features) else {
                panic!()
            };
            assert_eq!((args.name, args.value, args.flags), (c"n", &b"v"[..], 2));
            assert_eq!(args.set_id, set_id);
        }
        for len in 0..long_body.len() {
            let cut = decode(Opcode::Setxattr, &header(), &long_body[..len], extended);
            assert!(cut.is_err(), "{len}");
        }
    }

    #[test]
    fn init_reads_the_second_word_only_where_the_guest_says_it_is_there() {
        let short = abi::InitIn {
            major: 7,
            minor: 31,
            max_readahead: 1,
            flags: 1,
        };
        let Ok(Op::Init(args)) = decode(Opcode::Init, &header(), short.as_bytes(), 0) else {
            panic!()
        };
        assert_eq!(args.flags, 1);
        let long = abi::InitIn {
            flags: 1 << 30,
            ..short
        };
        assert!(decode(Opcode::Init, &header(), long.as_bytes(), 0).is_err());
        let extra = abi::InitInExt {
            flags2: 4,
            unused: [0; 11],
        };
        let body = [long.as_bytes(), extra.as_bytes()].concat();
        let Ok(Op::Init(args)) = decode(Opcode::Init, &header(), &body, 0) else {
            panic!()
        };
        assert_eq!(args.flags, 1 << 30 | 4 << 32);
    }

    #[test]
    fn now_wins_over_a_given_time() {
        use flags::setattr as bits;
        let args = abi::SetattrIn {
            valid: bits::ATIME | bits::ATIME_NOW | bits::MTIME,
            atime: 5,
            mtime: u64::MAX,
            mtimensec: 9,
            ..Default::default()
        };
        let args = setattr(&args).unwrap();
        assert_eq!((args.atime, args.mtime), (SetTime::Now, SetTime::At(-1, 9)));
    }
}
