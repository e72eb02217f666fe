//! `--check`: the start without a start. Every step is tried as far as it leaves
//! nothing behind, and what came of it is printed; the steps after a failed one are
//! tried as well, so that everything that is missing is known at once.

use std::fmt::Display;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::{Options, Settings, SocketChoice};
use crate::passthrough::{IdMaps, Passthrough, try_file_handles};
use crate::process::capabilities::{self, Kept};
use crate::process::limits;
use crate::process::own_files::OwnFiles;
use crate::process::parent::{self, Process};
use crate::process::sandbox::Inside;
use crate::process::service::Manager;
use crate::process::socket::SocketPlace;
use crate::sys;

/// What was found so far.
struct Report {
    is_complete: bool,
}

impl Report {
    /// Prints one line, and gives the result if it is good.
    fn step<T>(&mut self, what: &str, result: anyhow::Result<T>) -> Option<T> {
        match result {
            Ok(found) => {
                println!("ok: {what}");
                Some(found)
            }
            Err(error) => {
                println!("missing: {what}: {error:#}");
                self.is_complete = false;
                None
            }
        }
    }

    fn code(&self) -> ExitCode {
        if self.is_complete {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Tries the start with these options; `adopted` is the passed socket.
pub(super) fn run(
    options: &Options,
    adopted: Option<anyhow::Result<UnixListener>>,
) -> anyhow::Result<ExitCode> {
    let mut report = Report { is_complete: true };
    let Some(settings) = report.step("options", options.settings()) else {
        return Ok(report.code());
    };
    let shared_dir = report.step(
        &of("shared directory", settings.shared_dir.display()),
        super::check_shared_dir(&settings.shared_dir),
    );
    let kept = report.step(
        "capabilities by name",
        Kept::with(&settings.modcaps.add, &settings.modcaps.remove),
    );
    report.step("translation of ids", IdMaps::new(&settings.config));
    match &settings.socket {
        SocketChoice::Fd(number) => {
            let passed = adopted.unwrap_or_else(|| Err(anyhow::anyhow!("none was passed")));
            report.step(&of("passed socket", number), passed);
        }
        SocketChoice::Path { path, group } => {
            let place = SocketPlace::find("--socket-path", path, group.as_deref());
            let free = place.and_then(|place| place.is_free());
            report.step(&of("socket", path.display()), free);
        }
    }
    if let Some(path) = &settings.metrics_socket {
        let place = SocketPlace::find("--metrics-socket", path, None);
        let free = place.and_then(|place| place.nobody_answers());
        report.step(&of("socket for metrics", path.display()), free);
    }
    let limit = limits::limit_open_files(settings.rlimit_nofile, super::needs(&settings));
    let what = match &limit {
        Ok(number) => format!("descriptors, {number} of them for the guest"),
        Err(_) => "descriptors".to_owned(),
    };
    let descriptors = report.step(&what, limit);
    let sandbox = report.step("choice of the sandbox", super::sandbox(&settings));

    let (Some(()), Some(kept), Some(descriptors), Some(sandbox)) =
        (shared_dir, kept, descriptors, sandbox)
    else {
        return Ok(report.code());
    };
    let Some(sandbox) = sandbox else {
        let inside = Inside::nothing(&settings.shared_dir);
        return Ok(check_inside(report, inside, &settings, kept, descriptors));
    };
    let code = report.code();
    match parent::split(&sandbox) {
        Err(error) => {
            report.step::<()>("process for the sandbox", Err(error));
            Ok(report.code())
        }
        Ok(Process::Inside(_)) => {
            let inside = sandbox.enter(&settings.shared_dir);
            Ok(check_inside(report, inside, &settings, kept, descriptors))
        }
        Ok(Process::Outside(child)) => {
            let inside = child.watch(&OwnFiles::default(), &Manager::default())?;
            Ok(if code == ExitCode::SUCCESS {
                inside
            } else {
                code
            })
        }
    }
}

/// The steps that are taken where the daemon serves.
fn check_inside(
    mut report: Report,
    inside: anyhow::Result<Inside>,
    settings: &Settings,
    kept: Kept,
    descriptors: usize,
) -> ExitCode {
    let Some(inside) = report.step("sandbox", inside) else {
        return report.code();
    };
    let mut config = settings.config.clone();
    let handles = super::uses_file_handles(&mut config, || try_file_handles(&inside.root));
    let kept = match report.step("file handles", handles) {
        Some(true) => kept.with_file_handles(),
        _ => kept,
    };
    let rights = super::drop_supplementary_groups().and_then(|()| capabilities::reduce(kept));
    report.step("rights", rights);
    let directory = inside.proc_self_fd.try_clone();
    let tree = Passthrough::new(&inside.root, inside.proc_self_fd, config, descriptors);
    report.step("tree", tree);
    // At last, since relative paths lead elsewhere afterwards.
    let threads = directory
        .map_err(anyhow::Error::from)
        .and_then(|directory| Ok(sys::thread::settle_in(directory)?))
        .context("a thread cannot go to the list of its descriptors");
    report.step("threads", threads);
    let filter = super::filter_system_calls(settings.seccomp);
    report.step("filter of system calls", filter);
    report.code()
}

fn of(what: &str, which: impl Display) -> String {
    format!("{what} {which}")
}
