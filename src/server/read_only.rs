//! The gate of a tree that is served read-only.
//!
//! It looks at decoded requests and knows no file: whatever would change the
//! tree is refused before the file system hears of it. What an operation does is
//! in the table of operations; only those whose arguments decide have a line
//! here, and one that is forgotten here is refused.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Server;
use crate::fs::{Entry, Failure, FileSystem, Opened, Patience, Result, Waiting};
use crate::fuse::op::{Caller, CreateArgs, Op};
use crate::fuse::opcode::{Effect, Opcode};
use crate::id::NodeId;

/// The bit of the mask of `access(2)` that asks for writing.
const MAY_WRITE: u32 = 2;

/// Where the argument of an `ioctl(2)` goes: bits of the command's number. One
/// that gives nothing back is there to change something.
const IOC_DIRECTION: u32 = 3 << 30;
const IOC_ONLY_IN: u32 = 1 << 30;

/// Whether the guest may change the tree.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Access {
    /// It may.
    #[default]
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// Lets a request pass that leaves the tree as it is.
///
/// # Errors
/// `EROFS` for every other one; `EINVAL` for cutting a file that is opened for
/// reading.
pub(super) fn check(opcode: Opcode, op: &Op<'_>) -> Result<()> {
    match opcode.effect() {
        Effect::Reads => Ok(()),
        Effect::Changes => Err(Errno::ROFS),
        Effect::ByArguments => match op {
            Op::Open(args) => check_open_flags(args.flags),
            Op::Create(args) if args.open.flags & OFlags::EXCL.bits() == 0 => {
                check_open_flags(args.open.flags)
            }
            Op::Access { mask } if mask & MAY_WRITE == 0 => Ok(()),
            Op::Ioctl(args) if args.command & IOC_DIRECTION != IOC_ONLY_IN => Ok(()),
            _ => Err(Errno::ROFS),
        },
    }
}

fn check_open_flags(flags: u32) -> Result<()> {
    let flags = OFlags::from_bits_retain(flags);
    if flags & OFlags::ACCMODE != OFlags::RDONLY {
        Err(Errno::ROFS)
    } else if flags.contains(OFlags::TRUNC) {
        Err(Errno::INVAL)
    } else {
        Ok(())
    }
}

impl<F: FileSystem> Server<F> {
    /// CREATE where nothing is created: opens what is there.
    pub(super) fn open_existing(
        &self,
        who: &Caller,
        parent: NodeId,
        args: &CreateArgs<'_>,
        patience: Patience,
    ) -> Waiting<(Entry, Opened)> {
        let entry = match self.fs.lookup(parent, args.name, patience) {
            Err(Failure::Errno(Errno::NOENT)) => return Err(Errno::ROFS.into()),
            found => found?,
        };
        match self.fs.open(who, entry.node, args.open, patience) {
            Ok(opened) => Ok((entry, opened)),
            Err(failure) => {
                // The guest never hears of the node.
                self.fs.forget(entry.node, 1);
                Err(failure)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::extensions::Extensions;
    use crate::fuse::name::Name;
    use crate::fuse::op::{OpenArgs, SetId};

    fn open_args(flags: OFlags) -> OpenArgs {
        OpenArgs {
            flags: flags.bits(),
            set_id: SetId::Keep,
        }
    }

    fn open(flags: OFlags) -> Result<()> {
        check(Opcode::Open, &Op::Open(open_args(flags)))
    }

    fn create(flags: OFlags) -> Result<()> {
        let args = CreateArgs {
            name: Name::new(c"name").unwrap(),
            open: open_args(flags),
            mode: 0o644,
            umask: 0,
            extensions: Extensions::default(),
        };
        check(Opcode::Create, &Op::Create(args))
    }

    #[test]
    fn files_are_opened_for_reading_only() {
        assert_eq!(open(OFlags::RDONLY | OFlags::DIRECT), Ok(()));
        for writing in [OFlags::WRONLY, OFlags::RDWR, OFlags::ACCMODE] {
            assert_eq!(open(writing), Err(Errno::ROFS));
            assert_eq!(open(writing | OFlags::TRUNC), Err(Errno::ROFS));
        }
        assert_eq!(open(OFlags::TRUNC), Err(Errno::INVAL));
    }

    #[test]
    fn creating_is_opening_unless_the_file_must_be_new() {
        assert_eq!(create(OFlags::CREATE), Ok(()));
        assert_eq!(create(OFlags::CREATE | OFlags::EXCL), Err(Errno::ROFS));
        assert_eq!(create(OFlags::CREATE | OFlags::RDWR), Err(Errno::ROFS));
        assert_eq!(create(OFlags::CREATE | OFlags::TRUNC), Err(Errno::INVAL));
    }

    #[test]
    fn asking_for_the_right_to_write_is_refused() {
        for mask in 0..8 {
            let refused = check(Opcode::Access, &Op::Access { mask }).is_err();
            assert_eq!(refused, mask & 2 != 0, "{mask}");
        }
    }

    #[test]
    fn flags_of_inodes_can_be_read() {
        // FS_IOC_GETFLAGS, FSGETXATTR, MEASURE_VERITY; FS_IOC_SETFLAGS, FSSETXATTR.
        for (command, allowed) in [
            (0x8008_6601, true),
            (0x801c_581f, true),
            (0xc004_6686, true),
            (0x4008_6602, false),
            (0x401c_5820, false),
        ] {
            let args = crate::fuse::op::IoctlArgs {
                handle: crate::id::HandleId(0),
                command,
                input: &[],
                out_size: 0,
            };
            let checked = check(Opcode::Ioctl, &Op::Ioctl(args));
            assert_eq!(checked.is_ok(), allowed, "{command:#x}");
        }
    }

    #[test]
    fn an_operation_without_a_line_here_is_refused() {
        let op = Op::Lseek {
            handle: crate::id::HandleId(0),
            offset: 0,
            whence: 0,
        };
        // A table that says "by arguments" for one that has none here.
        assert_eq!(check(Opcode::Create, &op), Err(Errno::ROFS));
    }
}
