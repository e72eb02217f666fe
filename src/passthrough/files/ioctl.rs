//! `ioctl(2)`: what is about inodes, such as the flags of `chattr(1)`.
//!
//! Commands are told by their numbers, each with an argument of a fixed size;
//! everything else is `ENOTTY`, since nobody knows what a command does that is
//! not known here. Handles are of regular files and directories only, so none
//! reaches a device.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::fs::{self, Result};
use crate::fuse::op::IoctlArgs;
use crate::id::NodeId;
use crate::passthrough::Passthrough;
use crate::sys::ioctl::{
    FSXATTR_BYTES, GET_FLAGS, GET_VERSION, GET_XFLAGS, InodeCommand, MEASURE_VERITY, SET_FLAGS,
    SET_XFLAGS, VERITY_DIGEST_BYTES, VERITY_HEADER_BYTES,
};

/// The argument of a command that takes exactly so many bytes.
fn exactly<const N: usize>(input: &[u8]) -> Result<[u8; N]> {
    input.first_chunk().copied().ok_or(Errno::INVAL)
}

/// The header of a digest, with no more room than the longest one takes.
fn digest_header(input: &[u8]) -> Result<[u8; VERITY_HEADER_BYTES + VERITY_DIGEST_BYTES]> {
    let [_, _, low, high] = exactly::<VERITY_HEADER_BYTES>(input)?;
    let room = u16::from_ne_bytes([low, high]).min(VERITY_DIGEST_BYTES as u16);
    let mut argument = [0; VERITY_HEADER_BYTES + VERITY_DIGEST_BYTES];
    if let Some(place) = argument.get_mut(2..4) {
        place.copy_from_slice(&room.to_ne_bytes());
    }
    Ok(argument)
}

/// `FS_PROJINHERIT_FL`: what is made in a directory belongs to its project.
const PROJECT_INHERIT: u32 = 0x2000_0000;

/// `FS_XFLAG_PROJINHERIT`, the same in `struct fsxattr`.
const PROJECT_INHERIT_X: u32 = 0x200;

/// A word of a struct of the kernel's, by the offset of its first byte.
fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u32::from_ne_bytes(word.copied().unwrap_or_default())
}

/// Refuses a change of the project that a file belongs to, or hands on: a quota of
/// the host's is the host's to move files out of, as it is in a user namespace
/// (`FS_IOC_FSSETXATTR`, ioctl_fssetxattr(2)).
fn keeps_project(file: BorrowedFd<'_>, command: &InodeCommand) -> Result<()> {
    let is_same = match command {
        InodeCommand::SetFlags(wanted) => match InodeCommand::GetFlags([0; 4]).call(file)? {
            InodeCommand::GetFlags(now) => (word(wanted, 0) ^ word(&now, 0)) & PROJECT_INHERIT == 0,
            _ => false,
        },
        InodeCommand::SetXflags(wanted) => {
            match InodeCommand::GetXflags([0; FSXATTR_BYTES]).call(file)? {
                InodeCommand::GetXflags(now) => {
                    let inherit = (word(wanted, 0) ^ word(&now, 0)) & PROJECT_INHERIT_X;
                    inherit == 0 && word(wanted, PROJECT_AT) == word(&now, PROJECT_AT)
                }
                _ => false,
            }
        }
        _ => true,
    };
    if is_same { Ok(()) } else { Err(Errno::INVAL) }
}

/// Where `fsx_projid` is in `struct fsxattr`.
const PROJECT_AT: usize = 12;

fn carry_out(file: BorrowedFd<'_>, number: u32, input: &[u8]) -> Result<Vec<u8>> {
    let command = match number {
        GET_FLAGS => InodeCommand::GetFlags([0; 4]),
        SET_FLAGS => InodeCommand::SetFlags(exactly(input)?),
        GET_VERSION => InodeCommand::GetVersion([0; 4]),
        GET_XFLAGS => InodeCommand::GetXflags([0; FSXATTR_BYTES]),
        SET_XFLAGS => InodeCommand::SetXflags(exactly(input)?),
        MEASURE_VERITY => InodeCommand::MeasureVerity(digest_header(input)?),
        _ => return Err(Errno::NOTTY),
    };
    keeps_project(file, &command)?;
    Ok(match command.call(file)? {
        InodeCommand::SetFlags(_) | InodeCommand::SetXflags(_) => Vec::new(),
        InodeCommand::GetFlags(bytes) | InodeCommand::GetVersion(bytes) => bytes.to_vec(),
        InodeCommand::GetXflags(bytes) => bytes.to_vec(),
        InodeCommand::MeasureVerity(bytes) => {
            let [_, _, low, high, ..] = bytes;
            let len = VERITY_HEADER_BYTES + usize::from(u16::from_ne_bytes([low, high]));
            bytes.get(..len).ok_or(Errno::IO)?.to_vec()
        }
    })
}

impl fs::Ioctl for Passthrough {
    /// IOCTL; gives what the command reads.
    fn ioctl(&self, node: NodeId, args: &IoctlArgs<'_>) -> Result<Vec<u8>> {
        let file = self
            .files
            .handles
            .file(node, args.handle)
            .or_else(|_| self.directory_of(node, args.handle))?;
        let output = carry_out(file.as_fd(), args.command, args.input)?;
        if output.len() > args.out_size as usize {
            return Err(Errno::INVAL);
        }
        Ok(output)
    }
}
