//! From the parsed command line to serving, in the order that safety needs.
//!
//! 1. A passed descriptor is adopted before anything else opens one.
//! 2. Everything that can be checked is checked while nothing exists yet.
//! 3. The pid file and the socket are made, and removed however it ends.
//! 4. A second process enters the sandbox; the first one stays outside, waits,
//!    and removes the files.
//! 5. Rights are given up: groups, capabilities, and system calls at last. No
//!    thread is started before it has no more than it needs.

mod check;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustix::io::Errno;

use crate::cli::{self, Options, Seccomp, Settings, SocketChoice, Tag};
use crate::config::{Config, InodeFileHandles};
use crate::device::{self, Access, DeviceOptions, PoolMaker, Threads, WatchOptions};
use crate::logging;
use crate::metrics::{self, Metrics};
use crate::migration::Migration;
use crate::passthrough::{IdMaps, Passthrough, try_file_handles};
use crate::process::capabilities::{self, Kept};
use crate::process::limits::{self, Needs};
use crate::process::own_files::{OwnFiles, RemoveOnExit};
use crate::process::parent::{self, Process};
use crate::process::sandbox::{Inside, NO_ID_MAPS, Sandbox};
use crate::process::seccomp;
use crate::process::service::Manager;
use crate::process::signals::Held;
use crate::process::socket::{SocketPlace, adopt_listener};
use crate::process::user_namespace::IdRange;
use crate::sys;
use crate::sys::adopt_fd::adopt_the_rest;

/// What management software is told that this program can do.
const CAPABILITIES: &str = r#"{
  "type": "fs",
  "features": [
    "migrate-precopy",
    "posix-acl-negotiation-mode",
    "security-label-negotiation-mode",
    "separate-options"
  ]
}
"#;

/// Does what the command line asks for, until the front end goes away; gives
/// the status to exit with.
///
/// # Errors
/// One error that tells the operator what went wrong, not yet logged.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    if options.print_capabilities {
        std::io::stdout()
            .write_all(CAPABILITIES.as_bytes())
            .context("cannot print the capabilities")?;
        return Ok(ExitCode::SUCCESS);
    }
    let adopted = options.fd.map(adopt_listener);
    // What else the parent left open is no business of the process inside.
    let inherited = adopt_the_rest(options.fd);
    sys::allocator::keep_from_files();
    let pool_maker = PoolMaker::new();
    logging::init(options.effective_log_level(), options.syslog);
    if options.check {
        return check::run(&options, adopted);
    }

    let mut settings = options.settings()?;
    let mut kept = Kept::with(&settings.modcaps.add, &settings.modcaps.remove)?;
    check_shared_dir(&settings.shared_dir)?;
    options.warn_about_deprecated();
    // Made when it is needed; here it only has to be possible.
    IdMaps::new(&settings.config)?;
    let sandbox = sandbox(&settings)?;
    // The socket's path is looked at before the limit is changed, and made
    // after it: a limit that is too low leaves nothing behind.
    let socket = match &settings.socket {
        SocketChoice::Fd(_) => None,
        SocketChoice::Path { path, group } => {
            Some(SocketPlace::find("--socket-path", path, group.as_deref())?)
        }
    };
    let metrics_socket = match &settings.metrics_socket {
        None => None,
        Some(path) => Some(SocketPlace::find("--metrics-socket", path, None)?),
    };
    let adopted = adopted.transpose()?;
    let guest_descriptors = limits::limit_open_files(settings.rlimit_nofile, needs(&settings))?;

    // Without a sandbox this is the last that may wait for a remote file system
    // before signals are heard again, so they are not held back yet.
    let wanted = settings.config.inode_file_handles != InodeFileHandles::Never;
    let tried = (sandbox.is_none() && wanted).then(|| try_file_handles(&settings.shared_dir));
    let mut manager = Manager::from_environment();
    let signals = Held::hold()?;
    let remove_on_exit = RemoveOnExit(OwnFiles::default());
    let listener = match (adopted, socket) {
        (Some(listener), _) => listener,
        (None, Some(place)) => place.listen(&remove_on_exit.0)?,
        (None, None) => bail!("no socket to listen on: give --socket-path or --fd"),
    };

    let metrics_listener = metrics_socket
        .map(|place| place.listen_privately(&remove_on_exit.0))
        .transpose()?;

    let (inside, is_ready): (_, Box<dyn FnOnce()>) = match sandbox {
        None => {
            let manager = manager.clone();
            let is_ready = move || manager.is_ready();
            (Inside::nothing(&settings.shared_dir)?, Box::new(is_ready))
        }
        Some(sandbox) => match parent::split(&sandbox)? {
            Process::Outside(child) => {
                // Whoever connects when the process inside is gone is refused.
                drop((listener, metrics_listener));
                return child.watch(&remove_on_exit.0, &manager);
            }
            Process::Inside(outside) => {
                remove_on_exit.0.leave();
                drop(inherited);
                manager = Manager::default();
                let inside = sandbox.enter(&settings.shared_dir)?;
                (inside, Box::new(move || outside.tell_ready()))
            }
        },
    };
    let try_handles = || tried.unwrap_or_else(|| try_file_handles(&inside.root));
    let has_handles = uses_file_handles(&mut settings.config, try_handles)?;
    if has_handles {
        kept = kept.with_file_handles();
    }
    drop_supplementary_groups()?;
    capabilities::reduce(kept)?;
    let metrics = Arc::<Metrics>::default();
    let report = {
        let metrics = Arc::clone(&metrics);
        move || log::info!(target: "virtiofsd", "{}", metrics.summary())
    };
    signals.remove_files_on_signal(remove_on_exit.0.clone(), manager.clone(), report)?;
    if let Some(listener) = metrics_listener {
        metrics::http::serve(listener, Arc::clone(&metrics))?;
    }
    let result = serve(
        listener,
        inside,
        &settings,
        guest_descriptors,
        metrics,
        pool_maker,
        is_ready,
    );
    manager.is_stopping();
    result.map(|()| ExitCode::SUCCESS)
}

fn needs(settings: &Settings) -> Needs {
    Needs {
        thread_pool_size: settings.thread_pool_size.unwrap_or(0),
        request_queues: settings.num_request_queues,
    }
}

fn sandbox(settings: &Settings) -> anyhow::Result<Option<Sandbox>> {
    let ranges = |maps: &[cli::IdMap]| -> Vec<IdRange> {
        let range = |map: &cli::IdMap| IdRange {
            inside: map.inside,
            outside: map.outside,
            count: map.count,
        };
        maps.iter().map(range).collect()
    };
    let (users, groups) = (ranges(&settings.uid_map), ranges(&settings.gid_map));
    match settings.sandbox {
        cli::Sandbox::Namespace => Sandbox::namespace(users, groups).map(Some),
        _ if !users.is_empty() || !groups.is_empty() => bail!(NO_ID_MAPS),
        cli::Sandbox::Chroot => Sandbox::chroot().map(Some),
        cli::Sandbox::None => Ok(None),
    }
}

fn check_shared_dir(path: &Path) -> anyhow::Result<()> {
    if path.as_os_str().is_empty() {
        bail!("the path of the shared directory is empty; name one with --shared-dir");
    }
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => bail!("{shown} is not a directory; only a directory can be shared"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("{shown} does not exist; make it, or name another directory with --shared-dir")
        }
        Err(error) => Err(error).with_context(|| format!("cannot look at {shown}")),
    }
}

/// Whether inodes are going to be held by file handles: whether that is wanted
/// and works for the shared directory.
fn uses_file_handles(
    config: &mut Config,
    try_handles: impl FnOnce() -> Result<(), Errno>,
) -> anyhow::Result<bool> {
    if config.inode_file_handles == InodeFileHandles::Never {
        return Ok(false);
    }
    let Err(errno) = try_handles() else {
        return Ok(true);
    };
    if config.inode_file_handles == InodeFileHandles::Mandatory {
        return Err(errno).context(
            "--inode-file-handles=mandatory: the shared directory cannot be opened by its file \
             handle, which takes a file system that has some and the capability \
             dac_read_search; use prefer",
        );
    }
    // Nobody who is not root expects it.
    let level = if rustix::process::geteuid().is_root() {
        log::Level::Warn
    } else {
        log::Level::Info
    };
    log::log!(
        level,
        "file handles cannot be used here ({errno}): inodes are held by descriptors"
    );
    config.inode_file_handles = InodeFileHandles::Never;
    Ok(false)
}

/// Serves one front end until it disconnects, or one after the other.
fn serve(
    listener: UnixListener,
    inside: Inside,
    settings: &Settings,
    guest_descriptors: usize,
    metrics: Arc<Metrics>,
    pool_maker: PoolMaker,
    is_ready: impl FnOnce(),
) -> anyhow::Result<()> {
    sys::ignore_file_size_signal();
    sys::give_back_large_memory();
    let files = Arc::new(Passthrough::new(
        &inside.root,
        inside.proc_self_fd,
        settings.config.clone(),
        guest_descriptors,
    )?);
    let migration = Migration::new(Arc::clone(&files), settings.migration.clone());
    let thread_directory = files
        .proc_self_fd()
        .try_clone_to_owned()
        .context("cannot copy the descriptor of /proc/self/fd")?;
    let options = DeviceOptions {
        tag: settings.tag.as_ref().map(Tag::padded),
        request_queues: settings.num_request_queues,
        threads: threads(settings.thread_pool_size),
        metrics,
        watch: WatchOptions {
            count: settings.metrics_socket.is_some(),
            slow: settings.slow_request,
        },
        polled_for: settings.polled_for,
        keep_listening: settings.keep_listening,
        access: if settings.readonly {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        },
    };
    filter_system_calls(settings.seccomp)?;
    device::serve(
        listener,
        files,
        Arc::new(migration),
        &options,
        pool_maker,
        thread_directory,
        is_ready,
    )
}

/// What `--thread-pool-size` means.
fn threads(pool_size: Option<usize>) -> Threads {
    match pool_size {
        None => Threads::OwnAndHelpers,
        Some(0) => Threads::Own,
        Some(size) => Threads::Pool(size),
    }
}

/// From here on every thread, those to come included, is under the filter.
fn filter_system_calls(choice: Seccomp) -> anyhow::Result<()> {
    match choice {
        Seccomp::None => Ok(()),
        Seccomp::Kill => seccomp::install(seccomp::Action::Kill),
        Seccomp::Log => seccomp::install(seccomp::Action::Log),
        Seccomp::Trap => seccomp::install(seccomp::Action::Trap),
    }
}

/// A guest's user must not get what the groups of root's login can do. All
/// threads inherit this, so none may serve before.
fn drop_supplementary_groups() -> anyhow::Result<()> {
    match rustix::thread::set_thread_groups(&[]) {
        // An ordinary user keeps its groups, also in a user namespace where
        // setting them is denied, and so is taking on others for a request.
        Err(Errno::PERM) => Ok(()),
        result => result.context("cannot drop the supplementary groups"),
    }
}
