//! The service manager: the socket that it passed, and what it is told.
//!
//! Both are the manager's environment variables (`sd_listen_fds(3)`,
//! `sd_notify(3)`); a daemon that was started by hand has neither and says
//! nothing. The way to the manager is opened before the sandbox is entered and
//! system calls are filtered: what is left is to send on a connected socket.

use std::ffi::OsStr;
use std::io;
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;

/// The number of the first socket that a service manager passes.
const FIRST_PASSED: RawFd = 3;

/// The socket that the service manager passed to this process, if any.
pub fn passed_socket() -> Option<RawFd> {
    let number = |name| -> Option<u32> { std::env::var(name).ok()?.parse().ok() };
    // The variables may be those of a parent that had sockets of its own.
    let is_ours = number("LISTEN_PID")? == std::process::id();
    (is_ours && number("LISTEN_FDS")? > 0).then_some(FIRST_PASSED)
}

/// The service manager that waits for word of the daemon; may be nobody.
#[derive(Clone, Debug, Default)]
pub struct Manager(Option<Arc<UnixDatagram>>);

impl Manager {
    /// Whoever the environment names.
    pub fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return Self::default();
        };
        match connect(&name) {
            Ok(socket) => Self(Some(Arc::new(socket))),
            Err(error) => {
                log::warn!(
                    "the service manager at NOTIFY_SOCKET={} is not told when the daemon is \
                     ready: {error}",
                    name.display()
                );
                Self::default()
            }
        }
    }

    /// Connections are taken from here on.
    pub fn is_ready(&self) {
        self.tell("READY=1");
    }

    /// The daemon is about to end.
    pub fn is_stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, state: &str) {
        // One that does not listen any more has nothing to do with the guest.
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(state.as_bytes())
        {
            log::warn!("cannot tell the service manager {state}: {error}");
        }
    }
}

/// A path, or with `@` in front a name without a file.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("only sockets of this machine can be used")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read must not keep the daemon from serving.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_by_path_and_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("virtiofsd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (manager, name) in [
            (by_path, path.into_os_string()),
            (by_name, format!("@{name}").into()),
        ] {
            let told = Manager(Some(Arc::new(connect(&name).unwrap())));
            told.is_ready();
            told.is_stopping();
            for expected in ["READY=1", "STOPPING=1"] {
                let mut bytes = [0; 32];
                let length = manager.recv(&mut bytes).unwrap();
                assert_eq!(bytes[..length], *expected.as_bytes());
            }
        }
    }

    #[test]
    fn a_manager_elsewhere_is_refused_and_one_that_is_gone_is_no_harm() {
        assert!(connect(OsStr::new("vsock:2:1234")).is_err());
        assert!(connect(OsStr::new("/nowhere/at/all")).is_err());
        Manager::default().is_ready();
    }
}
