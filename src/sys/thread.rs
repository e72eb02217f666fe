//! What belongs to one thread only: its file-system context, and signals to it.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::os::fd::AsFd;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Gives the calling thread a umask and a working directory of its own.
///
/// # Errors
/// Those of `unshare(2)`: `EPERM` where a container's seccomp filter forbids it.
fn unshare_fs() -> Result<(), Errno> {
    // SAFETY: CLONE_FS takes no descriptor or memory away from anyone; it only
    // stops this thread from sharing its umask and working directory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
}

/// Whose the file-system context of a thread is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Context {
    /// Its own.
    Own,
    /// That of all threads, since this process may not have another one.
    Shared,
}

/// The calling thread has a umask for as long as this lives; all others and it
/// itself have none otherwise.
#[derive(Debug)]
#[must_use]
pub struct Masked(());

/// Gives the calling thread, and no other, a umask until the guard drops. It
/// settles in `directory` first (see [`settle_in`]).
///
/// # Errors
/// Those of [`settle_in_alone`].
pub fn mask(directory: impl AsFd, umask: Mode) -> Result<Masked, Errno> {
    settle_in_alone(directory)?;
    rustix::process::umask(umask);
    Ok(Masked(()))
}

impl Drop for Masked {
    fn drop(&mut self) {
        rustix::process::umask(Mode::empty());
    }
}

thread_local! {
    static CONTEXT: Cell<Option<Context>> = const { Cell::new(None) };
}

/// Makes `directory` the working directory of this thread, once: alone if it may
/// have one of its own, otherwise of all. It is the same one for all threads.
///
/// # Errors
/// Those of `unshare(2)`, but `EPERM`, and of `fchdir(2)`.
pub fn settle_in(directory: impl AsFd) -> Result<(), Errno> {
    settle(directory).map(drop)
}

/// The same for a thread that needs a context of its own.
///
/// # Errors
/// Those of `unshare(2)` and `fchdir(2)`; `EPERM` where a container's seccomp filter
/// forbids it.
pub fn settle_in_alone(directory: impl AsFd) -> Result<(), Errno> {
    match settle(directory)? {
        Context::Own => Ok(()),
        Context::Shared => Err(Errno::PERM),
    }
}

fn settle(directory: impl AsFd) -> Result<Context, Errno> {
    if let Some(context) = CONTEXT.get() {
        return Ok(context);
    }
    let context = match unshare_fs() {
        Ok(()) => Context::Own,
        Err(Errno::PERM) => Context::Shared,
        Err(errno) => return Err(errno),
    };
    rustix::process::fchdir(directory)?;
    CONTEXT.set(Some(context));
    Ok(context)
}

/// The signal with which a thread is interrupted: one that nobody else uses.
fn interrupting_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Has the signal of [`Thread::interrupt`] do nothing but interrupt a call.
pub fn allow_interrupts() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all fields are integers or pointers, of which 0 is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // No SA_RESTART: a call that waits returns EINTR.
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing, so it may run at any point, and nobody
    // else handles this signal.
    unsafe { libc::sigaction(interrupting_signal(), &action, std::ptr::null_mut()) };
}

/// A thread that can be interrupted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thread(rustix::thread::Pid);

impl Thread {
    /// The calling thread.
    pub fn current() -> Self {
        Self(rustix::thread::gettid())
    }

    /// Has a call in which the thread waits return `EINTR`; one that begins
    /// later is not touched. [`allow_interrupts`] was called before.
    pub fn interrupt(self) {
        let (process, thread) = (rustix::process::getpid(), self.0);
        // SAFETY: the signal has a handler that does nothing, and only threads of
        // this process are found under its number; one that is gone is none.
        unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                process.as_raw_nonzero().get(),
                thread.as_raw_nonzero().get(),
                interrupting_signal(),
            )
        };
    }
}
