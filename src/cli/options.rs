//! The options. Their doc comments are the text of `--help`.

use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Parser, ValueEnum, ValueHint};
use log::LevelFilter;

use super::values::{IdMap, Tag, parse_id_map, parse_tag, parse_translation, parse_xattr_map};
use crate::config::{CachePolicy, InodeFileHandles, Translation, Wanted, XattrRule};

/// How the start of the usage line reads.
const USAGE: &str = "virtiofsd --shared-dir <DIR> --socket-path <PATH> [OPTIONS]";

const EXAMPLES: &str = "\
Examples:
  Serve /srv/data to one virtual machine:
    virtiofsd --shared-dir /srv/data --socket-path /run/data.sock

  The front end's side of it, with QEMU:
    qemu-system-x86_64 ... -m 4G \\
      -object memory-backend-memfd,id=mem,size=4G,share=on \\
      -numa node,memdev=mem \\
      -chardev socket,id=fs,path=/run/data.sock \\
      -device vhost-user-fs-pci,chardev=fs,tag=data

  And in the guest:
    mount -t virtiofs data /mnt

  The guest alone uses the directory, so it may cache everything:
    virtiofsd --shared-dir /srv/data --socket-path /run/data.sock \\
      --cache=always --writeback

The environment variable RUST_LOG replaces --log-level on standard error.";

/// Share a directory of this host with a virtual machine over virtio-fs.
///
/// The daemon waits for one vhost-user front end, for instance QEMU, serves
/// it, and ends when it disconnects.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "virtiofsd",
    version,
    override_usage = USAGE,
    after_help = EXAMPLES,
    args_override_self = true,
    arg_required_else_help = true,
    max_term_width = 80
)]
pub struct Options {
    /// Directory to share.
    #[arg(long, value_name = "DIR", help_heading = "Share and socket")]
    #[arg(required_unless_present_any = ["compat", "print_capabilities"])]
    #[arg(value_hint = ValueHint::DirPath)]
    pub shared_dir: Option<PathBuf>,

    /// Name for the guest to mount by, 1 to 36 bytes; where it is missing the
    /// front end supplies one.
    #[arg(long, value_parser = parse_tag, help_heading = "Share and socket")]
    pub tag: Option<Tag>,

    /// Where to make the socket for the front end; its process id goes beside
    /// it, into PATH.pid.
    #[arg(long, value_name = "PATH", help_heading = "Share and socket")]
    pub socket_path: Option<PathBuf>,

    /// Let the members of this group connect, too.
    #[arg(long, value_name = "GROUP", help_heading = "Share and socket")]
    #[arg(conflicts_with_all = ["fd", "print_capabilities"])]
    pub socket_group: Option<String>,

    /// Use this open descriptor, a socket that listens already; without it and
    /// --socket-path the one that the service manager passed.
    #[arg(long, value_name = "NUMBER", help_heading = "Share and socket")]
    #[arg(value_parser = clap::value_parser!(RawFd).range(0..))]
    #[arg(conflicts_with_all = ["socket", "socket_path"])]
    pub fd: Option<RawFd>,

    /// Serve the next front end after one disconnects, until a signal ends the
    /// daemon.
    #[arg(long, help_heading = "Share and socket")]
    pub keep_listening: bool,

    /// What the guest may cache.
    #[arg(long, value_name = "POLICY", help_heading = "Cache and speed")]
    #[arg(value_enum, ignore_case = true, default_value = "auto")]
    pub cache: CacheChoice,

    /// Let the guest believe for N seconds that a name which it did not find
    /// does not exist; until then it does not see that the host makes it.
    #[arg(long, value_name = "SECONDS", help_heading = "Cache and speed")]
    #[arg(default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub negative_timeout: u32,

    /// Let the guest gather writes before it sends them; safe where it alone
    /// changes the files.
    #[arg(long, help_heading = "Cache and speed")]
    pub writeback: bool,

    /// Pass O_DIRECT of the guest's programs on to the host.
    #[arg(long, help_heading = "Cache and speed")]
    pub allow_direct_io: bool,

    /// Let the guest map files shared although the policy is never or
    /// metadata; safe where it alone changes the files.
    #[arg(long, help_heading = "Cache and speed")]
    pub allow_mmap: bool,

    /// Do not send attributes along with directory entries.
    #[arg(long, help_heading = "Cache and speed")]
    pub no_readdirplus: bool,

    /// Let the guest list directories without opening them, with --readonly and
    /// --cache=always: listing a tree that it has cached took a third to a half of the
    /// time. Such a guest can be migrated to daemons with this option only.
    #[arg(long, help_heading = "Cache and speed")]
    pub no_opendir: bool,

    /// Queues for requests, 1 to 62, each with a thread of its own
    /// [default: one for each CPU].
    #[arg(long, value_name = "N", help_heading = "Cache and speed")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=62))]
    pub num_request_queues: Option<u8>,

    /// Threads that serve the requests of all queues; with 0 each queue's
    /// thread serves its own, one after the other [default: each queue's
    /// thread, and up to 128 others for what has to wait].
    #[arg(long, value_name = "N", help_heading = "Cache and speed")]
    pub thread_pool_size: Option<usize>,

    /// Poll the queues for up to N microseconds after work before sleeping:
    /// requests that follow each other closely are answered in about half the
    /// time, for the processor time of polling. Left out by itself while
    /// requests come further apart.
    #[arg(long, value_name = "N", help_heading = "Cache and speed")]
    #[arg(default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub poll_us: u32,

    /// Whether inodes are held by file handles, which unlike descriptors are
    /// not limited in number.
    #[arg(long, value_name = "MODE", help_heading = "Cache and speed")]
    #[arg(require_equals = true, value_enum, default_value = "prefer")]
    pub inode_file_handles: FileHandles,

    /// Serve extended attributes.
    #[arg(long, help_heading = "Files and attributes")]
    pub xattr: bool,

    /// Rename or hide extended attributes by a list of rules, such as
    /// ":map::user.guest.:"; implies --xattr.
    #[arg(long, value_name = "RULES", help_heading = "Files and attributes")]
    #[arg(value_parser = bytes(parse_xattr_map))]
    pub xattrmap: Option<XattrMapRules>,

    /// Serve POSIX access control lists; without MODE it means always; implies
    /// --xattr.
    #[arg(long, value_name = "MODE", help_heading = "Files and attributes")]
    #[arg(num_args = 0..=1, require_equals = true, value_enum)]
    #[arg(default_value = "never", default_missing_value = "always")]
    pub posix_acl: Negotiation,

    /// Store the security label that the guest gives to a new file; without
    /// MODE it means always; implies --xattr.
    #[arg(long, value_name = "MODE", help_heading = "Files and attributes")]
    #[arg(num_args = 0..=1, require_equals = true, value_enum)]
    #[arg(default_value = "never", default_missing_value = "always")]
    pub security_label: Negotiation,

    /// Tell the guest which directories are mount points; the default.
    #[arg(long, help_heading = "Files and attributes")]
    #[arg(overrides_with = "no_announce_submounts")]
    pub announce_submounts: bool,

    /// Show mount points as plain directories.
    #[arg(long, help_heading = "Files and attributes")]
    #[arg(overrides_with = "announce_submounts")]
    pub no_announce_submounts: bool,

    /// Leave it to the host to drop set-id bits and capabilities when a file
    /// changes.
    #[arg(long, help_heading = "Files and attributes")]
    #[arg(overrides_with = "no_killpriv_v2")]
    pub killpriv_v2: bool,

    /// Leave that to the guest; the default.
    #[arg(long, help_heading = "Files and attributes")]
    #[arg(overrides_with = "killpriv_v2")]
    pub no_killpriv_v2: bool,

    /// Make the guest's record locks (fcntl) locks of the host, which other
    /// guests and the host's programs meet; otherwise they are the guest's own.
    #[arg(long, help_heading = "Files and attributes")]
    pub posix_lock: bool,

    /// The same for its locks of whole files (flock).
    #[arg(long, help_heading = "Files and attributes")]
    pub flock: bool,

    /// Pass O_NOATIME of the guest's programs on; fails for files that the
    /// daemon does not own, unless it is privileged.
    #[arg(long, help_heading = "Files and attributes")]
    pub preserve_noatime: bool,

    /// Refuse every change that the guest asks for.
    #[arg(long, help_heading = "Files and attributes")]
    pub readonly: bool,

    /// Translate user ids between guest and host: TYPE:FROM:TO:COUNT with
    /// TYPE guest, host, map, squash-guest or squash-host, or
    /// forbid-guest:FROM:COUNT; may be repeated.
    #[arg(long, value_name = "RANGE", help_heading = "Identity and isolation")]
    #[arg(value_parser = parse_translation, action = ArgAction::Append)]
    pub translate_uid: Vec<Translation>,

    /// The same for group ids.
    #[arg(long, value_name = "RANGE", help_heading = "Identity and isolation")]
    #[arg(value_parser = parse_translation, action = ArgAction::Append)]
    pub translate_gid: Vec<Translation>,

    /// What the daemon is locked into.
    #[arg(long, value_name = "MODE", help_heading = "Identity and isolation")]
    #[arg(value_enum, ignore_case = true, default_value = "namespace")]
    pub sandbox: Sandbox,

    /// User ids of the namespace, :INSIDE:OUTSIDE:COUNT:; may be repeated;
    /// for callers other than root.
    #[arg(long, value_name = "RANGE", help_heading = "Identity and isolation")]
    #[arg(value_parser = parse_id_map, action = ArgAction::Append)]
    pub uid_map: Vec<IdMap>,

    /// The same for group ids.
    #[arg(long, value_name = "RANGE", help_heading = "Identity and isolation")]
    #[arg(value_parser = parse_id_map, action = ArgAction::Append)]
    pub gid_map: Vec<IdMap>,

    /// What happens at a system call that the daemon never needs.
    #[arg(long, value_name = "ACTION", help_heading = "Identity and isolation")]
    #[arg(value_enum, default_value = "kill")]
    pub seccomp: Seccomp,

    /// Capabilities to keep or to drop besides the usual ones, such as
    /// +sys_admin:-chown.
    #[arg(long, value_name = "LIST", help_heading = "Identity and isolation")]
    pub modcaps: Option<String>,

    /// Limit of open descriptors; 0 leaves the limit alone [default: 1000000,
    /// or what the kernel allows where that is less].
    #[arg(long, value_name = "N", help_heading = "Limits and logging")]
    pub rlimit_nofile: Option<u64>,

    /// How much is logged: error, warn, info, debug, trace, or off for
    /// nothing.
    #[arg(long, value_name = "LEVEL", help_heading = "Limits and logging")]
    #[arg(value_parser = super::values::parse_log_level, default_value = "info")]
    pub log_level: LevelFilter,

    /// Log to the syslog instead of standard error.
    #[arg(long, help_heading = "Limits and logging")]
    pub syslog: bool,

    /// Count what is served, and give the numbers to Prometheus, by HTTP over
    /// this Unix socket, which is its owner's alone.
    #[arg(long, value_name = "PATH", help_heading = "Limits and logging")]
    pub metrics_socket: Option<PathBuf>,

    /// Log each request that takes so many milliseconds or more.
    #[arg(long, value_name = "N", help_heading = "Limits and logging")]
    pub slow_request_ms: Option<u32>,

    /// Try the start, say what would be used and what is missing, make nothing
    /// and end, with status 1 if something is missing.
    #[arg(long, help_heading = "Limits and logging")]
    pub check: bool,

    /// Print what this program can do, in JSON for management software.
    #[arg(long, help_heading = "Limits and logging")]
    pub print_capabilities: bool,

    /// How the other side of a migration finds the guest's files again
    /// [default: find-paths].
    #[arg(long, value_name = "MODE", help_heading = "Migration")]
    #[arg(value_enum)]
    pub migration_mode: Option<MigrationMode>,

    /// What to do about a file that was not found again [default: abort].
    #[arg(long, value_name = "ACTION", help_heading = "Migration")]
    #[arg(value_enum)]
    pub migration_on_error: Option<MigrationOnError>,

    /// With find-paths, for a directory that both sides see: accept a file
    /// only if it is the very same inode.
    #[arg(long, help_heading = "Migration")]
    pub migration_verify_handles: bool,

    /// With find-paths: look once more that each path still leads to its
    /// file, just before the other side takes over.
    #[arg(long, help_heading = "Migration")]
    pub migration_confirm_paths: bool,

    /// Use --socket-path instead.
    #[arg(long, value_name = "PATH", help_heading = "Deprecated")]
    pub socket: Option<PathBuf>,

    /// Comma-separated words of the daemon that came with QEMU, such as
    /// source=DIR,cache=auto; use the options above instead.
    #[arg(short = 'o', value_name = "WORDS", help_heading = "Deprecated")]
    #[arg(id = "compat", action = ArgAction::Append)]
    pub compat: Vec<String>,

    /// Use --log-level=debug instead.
    #[arg(short = 'd', help_heading = "Deprecated")]
    pub debug: bool,

    /// Does nothing: the daemon always stays in the foreground.
    #[arg(short = 'f', help_heading = "Deprecated")]
    pub foreground: bool,
}

/// A parser of a value that need not be text.
fn bytes<T: Clone + Send + Sync + 'static>(
    parse: fn(&[u8]) -> Result<T, String>,
) -> impl TypedValueParser<Value = T> {
    OsStringValueParser::new().try_map(move |value| parse(value.as_bytes()))
}

/// The rules of `--xattrmap`. A type of its own, since a plain `Vec` would
/// make clap collect one element for each time the option is given.
pub type XattrMapRules = std::sync::Arc<[XattrRule]>;

/// `--cache`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum CacheChoice {
    /// Names and attributes for a second, data while the file is open.
    Auto,
    /// Everything, for a day: only the guest may change the files.
    Always,
    /// Nothing.
    Never,
    /// Names and attributes for a day, no data.
    Metadata,
}

impl From<CacheChoice> for CachePolicy {
    fn from(choice: CacheChoice) -> Self {
        match choice {
            CacheChoice::Auto => Self::Auto,
            CacheChoice::Always => Self::Always,
            CacheChoice::Never => Self::Never,
            CacheChoice::Metadata => Self::Metadata,
        }
    }
}

/// `--inode-file-handles`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum FileHandles {
    /// By descriptor.
    Never,
    /// By handle where the file system has them, by descriptor elsewhere.
    Prefer,
    /// By handle; does not start where there are none.
    Mandatory,
    /// The old name of `Prefer`.
    #[value(hide = true)]
    Fallback,
}

impl From<FileHandles> for InodeFileHandles {
    fn from(choice: FileHandles) -> Self {
        match choice {
            FileHandles::Never => Self::Never,
            FileHandles::Prefer | FileHandles::Fallback => Self::Prefer,
            FileHandles::Mandatory => Self::Mandatory,
        }
    }
}

/// How much a feature is wanted that the guest may not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Negotiation {
    /// Not offered.
    Never,
    /// Offered, and done without where the guest has no use for it.
    Auto,
    /// Insisted on: a guest without it cannot mount.
    Always,
}

impl From<Negotiation> for Wanted {
    fn from(choice: Negotiation) -> Self {
        match choice {
            Negotiation::Never => Self::No,
            Negotiation::Auto => Self::IfOffered,
            Negotiation::Always => Self::Always,
        }
    }
}

/// `--sandbox`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Sandbox {
    /// Namespaces of its own, with nothing but the shared directory.
    Namespace,
    /// The shared directory as its root; for root only.
    Chroot,
    /// Nothing: it sees what its user may see.
    None,
}

/// `--seccomp`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Seccomp {
    /// It is carried out: there is no filter.
    None,
    /// The process ends.
    Kill,
    /// The kernel logs it and carries it out.
    Log,
    /// The process gets the signal SIGSYS.
    Trap,
}

/// `--migration-mode`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum MigrationMode {
    /// By their paths.
    FindPaths,
    /// By their file handles, on the same file system.
    FileHandles,
}

/// `--migration-on-error`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum MigrationOnError {
    /// The migration fails.
    Abort,
    /// The guest meets an error when it uses the file.
    GuestError,
}
