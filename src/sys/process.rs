//! Making a process, which may be the first of a new pid namespace.
#![allow(unsafe_code)]

use rustix::fs::stat;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Which side of [`fork_into`] this is.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// The one that called, with the other's number.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Makes a copy of this process in new `namespaces`.
///
/// # Errors
/// `EDEADLK` when this process has more than one thread: only one of them
/// would be in the copy, and locks of the others would stay locked there. And
/// those of `clone(2)`.
pub fn fork_into(namespaces: UnshareFlags) -> Result<Side, Errno> {
    // The two links of any directory, and one for each thread.
    if stat("/proc/self/task")?.st_nlink != 3 {
        return Err(Errno::DEADLK);
    }
    // Otherwise a parent that ignores it loses the child's status.
    // SAFETY: no handler is installed, so no code runs that was not before.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    let flags = i64::from(namespaces.bits()) | i64::from(libc::SIGCHLD);
    let (first, second) = if cfg!(target_arch = "s390x") {
        (0, flags)
    } else {
        (flags, 0)
    };
    // fork(2) cannot make namespaces, and clone3(2) is what containers forbid.
    // SAFETY: without CLONE_VM the new process gets a copy of all memory, and
    // no stack or pointer is given. There is no other thread whose state the
    // copy would lack.
    let pid = unsafe { libc::syscall(libc::SYS_clone, first, second, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Side::Child),
        Ok(pid) if pid > 0 => Ok(Side::Parent(Pid::from_raw(pid).ok_or(Errno::CHILD)?)),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN)),
    }
}

/// Moves this process into new `namespaces`; not for those that take
/// descriptors or memory away from other threads.
///
/// # Errors
/// Those of `unshare(2)`.
pub fn enter_new(namespaces: UnshareFlags) -> Result<(), Errno> {
    let allowed = UnshareFlags::NEWNS | UnshareFlags::NEWNET;
    // SAFETY: after the mask nothing is left that concerns descriptors or
    // memory; names are resolved elsewhere, which is no matter of memory.
    unsafe { rustix::thread::unshare_unsafe(namespaces & allowed) }
}
