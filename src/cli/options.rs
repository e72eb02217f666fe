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

    /// Mount tag, 1 to 36 bytes; without it the front end supplies one.
    #[arg(long, value_parser = parse_tag, help_heading = "Share and socket")]
    pub tag: Option<Tag>,

    /// Socket to create for the front end; the process id is written to PATH.pid.
    #[arg(long, value_name = "PATH", help_heading = "Share and socket")]
    pub socket_path: Option<PathBuf>,

    /// Allow the members of this group to connect.
    #[arg(long, value_name = "GROUP", help_heading = "Share and socket")]
    #[arg(conflicts_with_all = ["fd", "print_capabilities"])]
    pub socket_group: Option<String>,

    /// Use this open descriptor of a listening socket; without it and --socket-path
    /// the one that the service manager passed.
    #[arg(long, value_name = "NUMBER", help_heading = "Share and socket")]
    #[arg(value_parser = clap::value_parser!(RawFd).range(0..))]
    #[arg(conflicts_with_all = ["socket", "socket_path"])]
    pub fd: Option<RawFd>,

    /// Keep running after a front end disconnects and serve the next one.
    #[arg(long, help_heading = "Share and socket")]
    pub keep_listening: bool,

    /// What the guest may cache.
    #[arg(long, value_name = "POLICY", help_heading = "Cache and speed")]
    #[arg(value_enum, ignore_case = true, default_value = "auto")]
    pub cache: CacheChoice,

    /// Cache failed lookups in the guest for this many seconds; files created on the host
    /// meanwhile stay invisible until then.
    #[arg(long, value_name = "SECONDS", help_heading = "Cache and speed")]
    #[arg(default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub negative_timeout: u32,

    /// Enable the guest's writeback cache; safe if only this guest changes the
    /// files.
    #[arg(long, help_heading = "Cache and speed")]
    pub writeback: bool,

    /// Pass O_DIRECT of the guest's programs to the host.
    #[arg(long, help_heading = "Cache and speed")]
    pub allow_direct_io: bool,

    /// Allow shared mappings with the cache policies never and metadata; safe if
    /// only this guest changes the files.
    #[arg(long, help_heading = "Cache and speed")]
    pub allow_mmap: bool,

    /// Send directory entries without attributes.
    #[arg(long, help_heading = "Cache and speed")]
    pub no_readdirplus: bool,

    /// Let the guest list directories without opening them; requires --readonly and
    /// --cache=always. Listing a cached tree takes a third to a half of the time.
    /// Such a guest can only be migrated to daemons with this option.
    #[arg(long, help_heading = "Cache and speed")]
    pub no_opendir: bool,

    /// Number of request queues, 1 to 62, each with its own thread
    /// [default: one for each CPU].
    #[arg(long, value_name = "N", help_heading = "Cache and speed")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=62))]
    pub num_request_queues: Option<u8>,

    /// Number of threads that serve the requests of all queues; with 0 each
    /// queue's thread serves its queue in order [default: each queue's thread
    /// serves its queue, and up to 128 more serve requests that block].
    #[arg(long, value_name = "N", help_heading = "Cache and speed")]
    pub thread_pool_size: Option<usize>,

    /// Poll a queue for up to N microseconds before its thread sleeps: requests
    /// that follow each other closely are answered in about half the time, at the
    /// cost of the processor time of polling. Polling pauses while requests
    /// arrive further apart than that.
    #[arg(long, value_name = "N", help_heading = "Cache and speed")]
    #[arg(default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub poll_us: u32,

    /// Whether to hold inodes by file handles, whose number unlike that of
    /// descriptors is not limited.
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

    /// Serve POSIX access control lists; MODE defaults to always; implies
    /// --xattr.
    #[arg(long, value_name = "MODE", help_heading = "Files and attributes")]
    #[arg(num_args = 0..=1, require_equals = true, value_enum)]
    #[arg(default_value = "never", default_missing_value = "always")]
    pub posix_acl: Negotiation,

    /// Set the security label that the guest gives to a new file before the file
    /// becomes visible; MODE defaults to always; implies --xattr.
    #[arg(long, value_name = "MODE", help_heading = "Files and attributes")]
    #[arg(num_args = 0..=1, require_equals = true, value_enum)]
    #[arg(default_value = "never", default_missing_value = "always")]
    pub security_label: Negotiation,

    /// Show mounts below the share as mounts in the guest; the default.
    #[arg(long, help_heading = "Files and attributes")]
    #[arg(overrides_with = "no_announce_submounts")]
    pub announce_submounts: bool,

    /// Show mounts below the share as plain directories.
    #[arg(long, help_heading = "Files and attributes")]
    #[arg(overrides_with = "announce_submounts")]
    pub no_announce_submounts: bool,

    /// Clear set-id bits and capabilities of modified files on the host instead
    /// of in the guest.
    #[arg(long, help_heading = "Files and attributes")]
    #[arg(overrides_with = "no_killpriv_v2")]
    pub killpriv_v2: bool,

    /// Clear them in the guest; the default.
    #[arg(long, help_heading = "Files and attributes")]
    #[arg(overrides_with = "killpriv_v2")]
    pub no_killpriv_v2: bool,

    /// Apply the guest's POSIX record locks (fcntl) on the host, so that they
    /// conflict with those of host processes and other guests.
    #[arg(long, help_heading = "Files and attributes")]
    pub posix_lock: bool,

    /// The same for its locks on whole files (flock).
    #[arg(long, help_heading = "Files and attributes")]
    pub flock: bool,

    /// Pass O_NOATIME of the guest's programs to the host; fails for files that
    /// the daemon does not own, unless it is privileged.
    #[arg(long, help_heading = "Files and attributes")]
    pub preserve_noatime: bool,

    /// Refuse all changes by the guest.
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

    /// How the daemon is confined.
    #[arg(long, value_name = "MODE", help_heading = "Identity and isolation")]
    #[arg(value_enum, ignore_case = true, default_value = "namespace")]
    pub sandbox: Sandbox,

    /// User id mapping of the namespace, :INSIDE:OUTSIDE:COUNT:; may be repeated;
    /// for callers other than root.
    #[arg(long, value_name = "RANGE", help_heading = "Identity and isolation")]
    #[arg(value_parser = parse_id_map, action = ArgAction::Append)]
    pub uid_map: Vec<IdMap>,

    /// The same for group ids.
    #[arg(long, value_name = "RANGE", help_heading = "Identity and isolation")]
    #[arg(value_parser = parse_id_map, action = ArgAction::Append)]
    pub gid_map: Vec<IdMap>,

    /// Action for system calls outside the allow list.
    #[arg(long, value_name = "ACTION", help_heading = "Identity and isolation")]
    #[arg(value_enum, default_value = "kill")]
    pub seccomp: Seccomp,

    /// Capabilities to keep or drop in addition to the default set, such as
    /// +sys_admin:-chown.
    #[arg(long, value_name = "LIST", help_heading = "Identity and isolation")]
    pub modcaps: Option<String>,

    /// Limit of open descriptors; 0 keeps the current limit [default: 1000000,
    /// or what the kernel allows if that is less].
    #[arg(long, value_name = "N", help_heading = "Limits and logging")]
    pub rlimit_nofile: Option<u64>,

    /// Log level: error, warn, info, debug, trace or off.
    #[arg(long, value_name = "LEVEL", help_heading = "Limits and logging")]
    #[arg(value_parser = super::values::parse_log_level, default_value = "info")]
    pub log_level: LevelFilter,

    /// Log to the syslog instead of standard error.
    #[arg(long, help_heading = "Limits and logging")]
    pub syslog: bool,

    /// Serve Prometheus metrics over HTTP on this Unix socket (mode 0600).
    #[arg(long, value_name = "PATH", help_heading = "Limits and logging")]
    pub metrics_socket: Option<PathBuf>,

    /// Log each request that takes N milliseconds or more.
    #[arg(long, value_name = "N", help_heading = "Limits and logging")]
    pub slow_request_ms: Option<u32>,

    /// Dry run: check whether the daemon could start and report what is missing;
    /// creates nothing, and exits with status 1 if something is missing.
    #[arg(long, help_heading = "Limits and logging")]
    pub check: bool,

    /// Print the supported features as JSON for management software, and exit.
    #[arg(long, help_heading = "Limits and logging")]
    pub print_capabilities: bool,

    /// How the target of a migration finds the guest's files
    /// [default: find-paths].
    #[arg(long, value_name = "MODE", help_heading = "Migration")]
    #[arg(value_enum)]
    pub migration_mode: Option<MigrationMode>,

    /// What the target of a migration does about a file that it does not find
    /// [default: abort].
    #[arg(long, value_name = "ACTION", help_heading = "Migration")]
    #[arg(value_enum)]
    pub migration_on_error: Option<MigrationOnError>,

    /// With find-paths, for a directory that both sides have mounted: accept a
    /// file only if it is the same inode.
    #[arg(long, help_heading = "Migration")]
    pub migration_verify_handles: bool,

    /// With find-paths: verify that each path still leads to its file just
    /// before the target takes over.
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
    /// By descriptors.
    Never,
    /// By handles where the file system has them, by descriptors elsewhere.
    Prefer,
    /// By handles; the daemon refuses to start where there are none.
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
    /// Offered; guests that do not support it go without.
    Auto,
    /// Required: guests that do not support it cannot mount.
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
    /// In its own namespaces, with nothing but the shared directory.
    Namespace,
    /// With the shared directory as its root directory; for root only.
    Chroot,
    /// Not at all: it has access to everything that its user has access to.
    None,
}

/// `--seccomp`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Seccomp {
    /// No filter: they are carried out.
    None,
    /// End the process.
    Kill,
    /// Log them and carry them out.
    Log,
    /// Send SIGSYS to the process.
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
    /// The guest gets an error when it uses the file.
    GuestError,
}
