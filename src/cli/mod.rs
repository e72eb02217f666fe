//! The command line: what it may say, and what it means.
//!
//! [`parse`] finds everything that is a usage error. [`Options::settings`]
//! then makes plain data of it, with the errors that belong into the log.

mod compat;
mod options;
mod values;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use log::LevelFilter;

pub use options::{
    CacheChoice, FileHandles, MigrationMode, MigrationOnError, Negotiation, Options, Sandbox,
    Seccomp, XattrMapRules,
};
pub use values::{IdMap, ModCaps, Tag};

use crate::config::{CachePolicy, Config, FindBy, MigrationConfig, WhenLost};

/// The most request queues that the device has.
const MAX_REQUEST_QUEUES: usize = 62;

/// What was settled on the command line.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory to share.
    pub shared_dir: PathBuf,
    /// Where the front end connects.
    pub socket: SocketChoice,
    /// The name in the device's configuration space, if it is to have one.
    pub tag: Option<Tag>,
    /// Request queues on offer, 1 to 62.
    pub num_request_queues: usize,
    /// `--thread-pool-size`, if given.
    pub thread_pool_size: Option<usize>,
    /// `--poll-us`.
    pub polled_for: Duration,
    /// `--keep-listening`.
    pub keep_listening: bool,
    /// `--rlimit-nofile`, if given.
    pub rlimit_nofile: Option<u64>,
    /// Whether the guest may change nothing.
    pub readonly: bool,
    /// `--metrics-socket`, if given.
    pub metrics_socket: Option<PathBuf>,
    /// `--slow-request-ms`, if given.
    pub slow_request: Option<Duration>,
    /// `--sandbox`.
    pub sandbox: Sandbox,
    /// Users of the sandbox's namespace, if they are given.
    pub uid_map: Vec<IdMap>,
    /// Groups of the sandbox's namespace.
    pub gid_map: Vec<IdMap>,
    /// `--seccomp`.
    pub seccomp: Seccomp,
    /// `--modcaps`.
    pub modcaps: ModCaps,
    /// What the file system is to do.
    pub config: Config,
    /// How its state is moved.
    pub migration: MigrationConfig,
}

/// Where the front end connects.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SocketChoice {
    /// At a socket that the daemon makes.
    Path {
        /// Where.
        path: PathBuf,
        /// The group that may connect, too.
        group: Option<String>,
    },
    /// At a socket that the parent process passed.
    Fd(RawFd),
}

/// Parses the command line, `-o` included; `passed` is the socket that a service
/// manager passed, for a command line that names none.
///
/// # Errors
/// A usage error, help or version, which `clap::Error::exit` prints and turns
/// into the exit status.
pub fn parse<I>(arguments: I, passed: Option<RawFd>) -> Result<Options, clap::Error>
where
    I: IntoIterator<Item: Into<OsString> + Clone>,
{
    let mut options = Options::try_parse_from(arguments)?;
    if options.socket_path.is_none() && options.socket.is_none() {
        // A group is for a socket that is made.
        options.fd = options
            .fd
            .or(passed.filter(|_| options.socket_group.is_none()));
        if options.fd.is_none() && !options.print_capabilities {
            return Err(socket_is_missing());
        }
    }
    let usage_error = |kind, text| Options::command().error(kind, text);
    compat::apply(&mut options).map_err(|text| usage_error(ErrorKind::InvalidValue, text))?;
    let translates = !options.translate_uid.is_empty() || !options.translate_gid.is_empty();
    if options.posix_acl != Negotiation::Never && translates {
        // The ids inside the lists would have to be translated, too.
        let text = "'--posix-acl' cannot be used with '--translate-uid' or '--translate-gid'";
        return Err(usage_error(ErrorKind::ArgumentConflict, text.to_owned()));
    }
    Ok(options)
}

/// As the parser says it, which knows nothing of passed sockets.
fn socket_is_missing() -> clap::Error {
    let command = command();
    let mut error = clap::Error::new(ErrorKind::MissingRequiredArgument).with_cmd(&command);
    let missing = ContextValue::Strings(vec!["--socket-path <PATH>".to_owned()]);
    error.insert(ContextKind::InvalidArg, missing);
    let usage = command.clone().render_usage();
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    error
}

/// The definitions of all options, for the manual page and the like.
pub fn command() -> clap::Command {
    Options::command()
}

impl Options {
    /// The level of the log, `-d` included.
    pub fn effective_log_level(&self) -> LevelFilter {
        if self.debug {
            LevelFilter::Debug
        } else {
            self.log_level
        }
    }

    /// Makes plain data of the options.
    ///
    /// # Errors
    /// When options do not go together in a way that is not a usage error.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let shared_dir = self
            .shared_dir
            .clone()
            .context("missing \"--shared-dir\" or \"-o source\" option")?;
        let modcaps = self.modcaps()?;
        self.check_migration()?;
        self.check_no_opendir()?;
        let num_request_queues = match self.num_request_queues {
            Some(number) => usize::from(number),
            None => thread::available_parallelism()
                .map_or(1, usize::from)
                .min(MAX_REQUEST_QUEUES),
        };
        Ok(Settings {
            shared_dir,
            socket: self.socket_choice()?,
            tag: self.tag.clone(),
            num_request_queues,
            thread_pool_size: self.thread_pool_size,
            polled_for: Duration::from_micros(self.poll_us.into()),
            keep_listening: self.keep_listening,
            rlimit_nofile: self.rlimit_nofile,
            readonly: self.readonly,
            metrics_socket: self.metrics_socket.clone(),
            slow_request: self
                .slow_request_ms
                .map(|number| Duration::from_millis(number.into())),
            sandbox: self.sandbox,
            uid_map: self.uid_map.clone(),
            gid_map: self.gid_map.clone(),
            seccomp: self.seccomp,
            modcaps,
            config: self.config(),
            migration: self.migration(),
        })
    }

    /// Warns about each option in use that has a better one.
    pub fn warn_about_deprecated(&self) {
        let warnings = [
            (
                self.socket_path.is_none() && self.socket.is_some(),
                "--socket",
                "use --socket-path",
            ),
            (self.foreground, "-f", "it has no effect, leave it out"),
            (self.debug, "-d", "use --log-level=debug"),
            (
                !self.compat.is_empty(),
                "-o",
                "use the separate options, such as --cache=auto",
            ),
            (
                self.inode_file_handles == FileHandles::Fallback,
                "--inode-file-handles=fallback",
                "use --inode-file-handles=prefer",
            ),
        ];
        for (_, option, instead) in warnings.into_iter().filter(|(used, ..)| *used) {
            log::warn!(target: "virtiofsd", "{option} is deprecated: {instead}");
        }
    }

    fn socket_choice(&self) -> anyhow::Result<SocketChoice> {
        if let Some(fd) = self.fd {
            return Ok(SocketChoice::Fd(fd));
        }
        let path = self.socket_path.clone().or_else(|| self.socket.clone());
        let path = path.context("missing \"--socket-path\" or \"--fd\" option")?;
        if self.metrics_socket.as_ref() == Some(&path) {
            bail!(
                "--metrics-socket: {} is where the front end connects; choose another path",
                path.display()
            );
        }
        Ok(SocketChoice::Path {
            path,
            group: self.socket_group.clone(),
        })
    }

    fn modcaps(&self) -> anyhow::Result<ModCaps> {
        let caps = match &self.modcaps {
            Some(list) => values::parse_modcaps(list)?,
            None => ModCaps::default(),
        };
        let drops_search = caps.remove.iter().any(|name| name == "DAC_READ_SEARCH");
        if drops_search && self.inode_file_handles != FileHandles::Never {
            bail!(
                "--modcaps: file handles need the capability dac_read_search; keep it, or start \
                 with --inode-file-handles=never"
            );
        }
        Ok(caps)
    }

    fn check_no_opendir(&self) -> anyhow::Result<()> {
        if self.no_opendir
            && !(self.readonly && CachePolicy::from(self.cache) == CachePolicy::Always)
        {
            bail!(
                "--no-opendir needs --readonly and --cache=always, with which the guest keeps \
                 what it has listed; give both, or leave it out"
            );
        }
        Ok(())
    }

    fn check_migration(&self) -> anyhow::Result<()> {
        if self.migration_mode != Some(MigrationMode::FileHandles) {
            return Ok(());
        }
        for (given, option) in [
            (self.migration_verify_handles, "--migration-verify-handles"),
            (self.migration_confirm_paths, "--migration-confirm-paths"),
        ] {
            if given {
                bail!(
                    "{option} is of no use with --migration-mode=file-handles, which always \
                     finds the same inodes; leave it out"
                );
            }
        }
        Ok(())
    }

    fn migration(&self) -> MigrationConfig {
        MigrationConfig {
            find_by: match self.migration_mode {
                None | Some(MigrationMode::FindPaths) => FindBy::Path,
                Some(MigrationMode::FileHandles) => FindBy::Handle,
            },
            when_lost: match self.migration_on_error {
                None | Some(MigrationOnError::Abort) => WhenLost::Abort,
                Some(MigrationOnError::GuestError) => WhenLost::GuestError,
            },
            verify_handles: self.migration_verify_handles,
            confirm_paths: self.migration_confirm_paths,
            read_only: self.readonly,
        }
    }

    fn config(&self) -> Config {
        let cache = CachePolicy::from(self.cache);
        let xattr_is_implied = self.xattrmap.is_some()
            || self.posix_acl != Negotiation::Never
            || self.security_label != Negotiation::Never;
        Config {
            cache,
            negative_timeout: Duration::from_secs(self.negative_timeout.into()),
            no_opendir: self.no_opendir,
            writeback: self.writeback,
            allow_direct_io: self.allow_direct_io,
            allow_mmap: self.allow_mmap,
            // Attributes that may not be kept are not worth sending along.
            readdirplus: !self.no_readdirplus && cache != CachePolicy::Never,
            xattr: self.xattr || xattr_is_implied,
            xattr_map: self.xattrmap.clone(),
            posix_acl: self.posix_acl.into(),
            security_label: self.security_label.into(),
            killpriv_v2: self.killpriv_v2,
            posix_lock: self.posix_lock,
            flock: self.flock,
            preserve_noatime: self.preserve_noatime,
            announce_submounts: !self.no_announce_submounts,
            inode_file_handles: self.inode_file_handles.into(),
            translate_uid: self.translate_uid.clone(),
            translate_gid: self.translate_gid.clone(),
        }
    }
}
