//! The process that stays outside of the sandbox.
//!
//! It is the one that was started: its number is in the pid file, it gets the
//! signals, and its status is the daemon's. It holds the directory of the socket,
//! which the process inside must not, and so it removes the files at the end.
//! If it is killed, the kernel ends the process inside.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::process::{
    Gid, Pid, Uid, WaitOptions, WaitStatus, kill_process, set_parent_process_death_signal, waitpid,
};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use signal_hook::low_level::{emulate_default_handler, exit};

use super::capabilities::{self, Kept};
use super::own_files::OwnFiles;
use super::sandbox::Sandbox;
use super::service::Manager;
use super::user_namespace::NamespaceIds;
use crate::sys::process::{Side, fork_into};

/// How long the process inside may take to end.
const TIME_TO_END: Duration = Duration::from_secs(3);

/// Who the calling process is after [`split`].
#[derive(Debug)]
pub enum Process {
    /// The one that was started.
    Outside(Child),
    /// The one that is to serve.
    Inside(Outside),
}

/// The process that is to serve, as the other one sees it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// From which it tells that it is ready.
    channel: UnixStream,
}

/// The process that was started, as the one that is to serve sees it.
#[derive(Debug)]
pub struct Outside(UnixStream);

impl Outside {
    /// Has it tell the service manager that connections are taken.
    pub fn tell_ready(mut self) {
        // Without it the kernel ends this process.
        let _ = self.0.write_all(&[0]);
    }
}

/// Makes a second process, which is to enter the sandbox.
///
/// # Errors
/// When there cannot be one; the text says what may help.
pub fn split(sandbox: &Sandbox) -> anyhow::Result<Process> {
    let (mut ours, mut theirs) =
        UnixStream::pair().context("cannot make a pair of sockets for the sandbox")?;
    let side = fork_into(sandbox.namespaces_at_birth()).with_context(|| {
        let kind = if sandbox.ids().is_some() {
            "user"
        } else {
            "pid"
        };
        format!(
            "cannot make a process in a new {kind} namespace for the sandbox; {}",
            sandbox.remedy()
        )
    })?;
    match side {
        Side::Child => {
            drop(ours);
            if let Some(ids) = sandbox.ids() {
                take_ids(ids, &mut theirs)?;
            }
            Ok(Process::Inside(follow_to_the_end(theirs)?))
        }
        Side::Parent(pid) => {
            drop(theirs);
            if let Some(ids) = sandbox.ids() {
                ids.set_for(pid)
                    .context("sandbox: couldn't setup id mappings")?;
                // Its end is met in `watch`, whenever it comes.
                let _ = ours.write_all(&[0]);
            }
            let _ = ours.read_exact(&mut [0]);
            Ok(Process::Outside(Child { pid, channel: ours }))
        }
    }
}

/// Waits until the process outside has set the ids of this one's namespace, and
/// becomes root if there is one.
fn take_ids(ids: &NamespaceIds, outside: &mut UnixStream) -> anyhow::Result<()> {
    if outside.read_exact(&mut [0]).is_err() {
        // The other process says why.
        std::process::exit(1);
    }
    if ids.have_root() {
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
            .context("sandbox: cannot become the group 0 of the namespace")?;
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
            .context("sandbox: cannot become the user 0 of the namespace")?;
    }
    Ok(())
}

/// Has the kernel end this process when its parent is gone.
fn follow_to_the_end(mut parent: UnixStream) -> anyhow::Result<Outside> {
    // Whatever may be going on: there is nothing to be tidied up in here. Not
    // before the user is changed, which would make the kernel forget it.
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot set the parent-death signal")?;
    // It may have ended before that line.
    parent
        .write_all(&[0])
        .context("the process outside of the sandbox is gone")?;
    Ok(Outside(parent))
}

impl Child {
    /// Waits for the end of the process inside, passes signals on to it,
    /// removes `files` and keeps `manager` informed. Signals that end the daemon
    /// are held back already.
    ///
    /// # Errors
    /// When this process cannot give up its rights, or wait.
    pub fn watch(self, files: &OwnFiles, manager: &Manager) -> anyhow::Result<ExitCode> {
        capabilities::reduce(Kept::TO_REMOVE_FILES)?;
        let signals: SigSet = [
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGUSR1,
            Signal::SIGCHLD,
        ]
        .into_iter()
        .collect();
        signals.thread_block().context("cannot hold signals back")?;
        let is_ready = Arc::<AtomicBool>::default();
        pass_on_ready(self.channel, manager.clone(), Arc::clone(&is_ready))?;
        let mut interrupted = false;
        let mut killed = false;
        let status = loop {
            if let Some(status) = ended(self.pid)? {
                break status;
            }
            match signals.wait().context("cannot wait for signals")? {
                Signal::SIGCHLD => {}
                Signal::SIGUSR1 => pass_on(self.pid, rustix::process::Signal::USR1)?,
                signal => {
                    interrupted |= signal == Signal::SIGINT;
                    manager.is_stopping();
                    files.remove_all();
                    end_without_it_after(TIME_TO_END, interrupted)?;
                    if is_ready.load(Ordering::Acquire) {
                        pass_on(self.pid, rustix::process::Signal::TERM)?;
                    } else {
                        // It holds signals back until it is, and may wait for a
                        // remote file system. There is nothing to be tidied up.
                        killed = true;
                        pass_on(self.pid, rustix::process::Signal::KILL)?;
                    }
                }
            }
        };
        manager.is_stopping();
        files.remove_all();
        if interrupted {
            as_if_not_caught();
        }
        if killed {
            return Ok(ExitCode::FAILURE);
        }
        Ok(exit_code(status))
    }
}

/// Ends this process after a while, whatever becomes of the one inside: that cannot
/// end before a file system answers for which one of its threads waits in the kernel.
/// It does nothing any more then, and is gone as soon as the kernel lets it.
fn end_without_it_after(time: Duration, interrupted: bool) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("end".to_owned())
        .spawn(move || {
            thread::sleep(time);
            log::warn!(
                "the process in the sandbox waits for a file system of this machine that does \
                 not answer; it ends as soon as that does"
            );
            if interrupted {
                as_if_not_caught();
            }
            exit(1);
        })
        .context("cannot start the thread that ends the daemon")?;
    Ok(())
}

/// Ends this process as SIGINT does where nobody catches it. Returns only if that
/// failed.
fn as_if_not_caught() {
    let _ = SigSet::from(Signal::SIGINT).thread_unblock();
    let _ = emulate_default_handler(Signal::SIGINT as i32);
}

/// Tells the manager when the process inside says that it is ready. On a thread,
/// because this process waits for signals.
fn pass_on_ready(
    mut channel: UnixStream,
    manager: Manager,
    is_ready: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("ready".to_owned())
        .spawn(move || {
            // The end of the process inside is met elsewhere.
            if channel.read_exact(&mut [0]).is_ok() {
                is_ready.store(true, Ordering::Release);
                manager.is_ready();
            }
        })
        .context("cannot start the thread that waits for the process in the sandbox")?;
    Ok(())
}

fn ended(pid: Pid) -> anyhow::Result<Option<WaitStatus>> {
    loop {
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(found) => return Ok(found.map(|(_, status)| status)),
            Err(Errno::INTR) => {}
            Err(error) => bail!("cannot wait for the process in the sandbox: {error}"),
        }
    }
}

/// SIGTERM stands for all that end the process: which it was is no matter inside.
fn pass_on(pid: Pid, signal: rustix::process::Signal) -> anyhow::Result<()> {
    match kill_process(pid, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot signal the process in the sandbox"),
    }
}

/// The status of the process inside; that of one that a signal ended is the
/// signal's number, negated.
fn exit_code(status: WaitStatus) -> ExitCode {
    if let Some(code) = status.exit_status() {
        return ExitCode::from(code.to_le_bytes()[0]);
    }
    let signal = status.terminating_signal().unwrap_or_default();
    let why = if signal == libc::SIGSYS {
        ": it made a system call that --seccomp forbids, which is a fault worth reporting"
    } else {
        ""
    };
    log::error!(target: "virtiofsd", "the process in the sandbox was ended by signal {signal}{why}");
    ExitCode::from(signal.wrapping_neg().to_le_bytes()[0])
}
