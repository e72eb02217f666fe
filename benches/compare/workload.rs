//! What can be measured: the table of workloads.

use std::path::Path;

use crate::common::fuse_client::Client;
use crate::step::{Direct, Host, Kind, Slot, Step, Workload};
use crate::{floor, requests, share, tree};

const fn cycle(
    name: &'static str,
    steps: fn(&mut Client, Slot) -> Vec<Step>,
    direct: fn(&Path) -> Direct,
) -> Workload {
    Workload {
        name,
        prepare: share::prepare,
        steps,
        direct,
        kind: Kind::Cycle,
        host: Host::Usual,
        args: &[],
    }
}

/// Reads or writes of one size: `transfer!(read, "name", 4096, share::random)` is
/// `cycle("name", ...)` with `requests::read` and `floor::read`, both with this size
/// and order.
macro_rules! transfer {
    ($operation:ident, $name:literal, $size:expr, $order:expr) => {
        cycle(
            $name,
            |client, slot| requests::$operation(client, slot, $size, $order),
            |share| floor::$operation(share, $size, $order),
        )
    };
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// All of them, in the order of the report.
pub(crate) const WORKLOADS: &[Workload] = &[
    cycle("getattr", requests::getattr, floor::getattr),
    cycle("lookup known", requests::lookup_known, floor::lookup),
    cycle("lookup new", requests::lookup_new, floor::lookup_new),
    cycle("lookup missing", requests::lookup_missing, floor::missing),
    cycle("open+read4k+release", requests::open_read, floor::open_read),
    cycle(
        "create+write4k+release+unlink",
        requests::create_write_unlink,
        floor::create_write_unlink,
    ),
    cycle("mkdir+rmdir", requests::mkdir_rmdir, floor::mkdir_rmdir),
    cycle("rename", requests::rename, floor::rename),
    cycle(
        "symlink+readlink+unlink",
        requests::symlink_readlink,
        floor::symlink_readlink,
    ),
    cycle("setattr", requests::setattr, floor::setattr),
    Workload {
        args: &["--xattr"],
        ..cycle(
            "getxattr hit",
            |client, slot| requests::getxattr(client, slot, share::XATTR, 0),
            |share| floor::getxattr(share, share::XATTR),
        )
    },
    Workload {
        args: &["--xattr"],
        ..cycle(
            "getxattr miss",
            |client, slot| requests::getxattr(client, slot, "user.none", libc::ENODATA),
            |share| floor::getxattr(share, "user.none"),
        )
    },
    cycle("statfs", requests::statfs, floor::statfs),
    cycle("readdir entry", requests::readdir, floor::readdir),
    cycle(
        "readdirplus entry",
        requests::readdirplus,
        floor::readdirplus,
    ),
    transfer!(read, "read 4k sequential", 4 * KIB, share::sequential),
    transfer!(read, "read 4k random", 4 * KIB, share::random),
    transfer!(read, "read 128k sequential", 128 * KIB, share::sequential),
    transfer!(read, "read 128k random", 128 * KIB, share::random),
    transfer!(read, "read 1M sequential", MIB, share::sequential),
    transfer!(read, "read 1M random", MIB, share::random),
    transfer!(write, "write 4k sequential", 4 * KIB, share::sequential),
    transfer!(write, "write 4k random", 4 * KIB, share::random),
    transfer!(write, "write 128k sequential", 128 * KIB, share::sequential),
    transfer!(write, "write 128k random", 128 * KIB, share::random),
    transfer!(write, "write 1M sequential", MIB, share::sequential),
    transfer!(write, "write 1M random", MIB, share::random),
    cycle("fsync", requests::fsync, floor::fsync),
    Workload {
        kind: Kind::Mixed(1 + requests::WRITERS),
        ..cycle(
            "attributes beside 64M writes+fsync",
            requests::getattr_beside_writes,
            floor::getattr,
        )
    },
    Workload {
        host: Host::Slow,
        ..cycle(
            "read 4k from a slow host",
            requests::read_slow,
            floor::read_slow,
        )
    },
    Workload {
        name: "git status, 50,000 files",
        prepare: tree::prepare_walk,
        steps: tree::walk,
        direct: tree::walk_direct,
        kind: Kind::Once,
        host: Host::Usual,
        args: &[],
    },
    Workload {
        name: "unpack and remove 20,000 files",
        prepare: share::prepare,
        steps: tree::unpack_and_remove,
        direct: tree::unpack_and_remove_direct,
        kind: Kind::Once,
        host: Host::Usual,
        args: &[],
    },
];
