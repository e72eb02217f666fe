//! One connection of a front end, from the first message to the last.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::anyhow;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;

use super::{Device, DeviceOptions};
use crate::fs::FileSystem;
use crate::guest::GuestMemory;
use crate::server::Server;

/// The target of log lines that management software waits for.
const MILESTONE: &str = "virtiofsd";

/// Serves the file system to the first front end that connects, until it
/// disconnects.
///
/// `thread_directory` becomes the working directory of every serving thread;
/// `is_ready` is called when a connection can be served.
///
/// # Errors
/// When the device cannot be set up, and when the front end breaks the protocol.
pub fn serve(
    listener: UnixListener,
    file_system: impl FileSystem,
    options: &DeviceOptions,
    thread_directory: OwnedFd,
    is_ready: impl FnOnce(),
) -> anyhow::Result<()> {
    let memory = GuestMemoryAtomic::new(GuestMemory::new());
    let server = Server::new(file_system, options.access);
    let device = Arc::new(Device::new(
        server,
        options,
        memory.clone(),
        thread_directory,
    )?);
    let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), device, memory)
        .map_err(|error| anyhow!("cannot start the threads of the queues: {error}"))?;
    let mut listener = Listener::from(listener);
    log::info!(target: MILESTONE, "Waiting for vhost-user socket connection...");
    is_ready();
    daemon
        .start(&mut listener)
        .map_err(|error| anyhow!("cannot accept a front end's connection: {error}"))?;
    // A second front end is refused rather than kept waiting for ever.
    drop(listener);
    log::info!(target: MILESTONE, "Client connected, servicing requests");
    match daemon.wait() {
        Ok(())
        | Err(DaemonError::HandleRequest(
            ProtocolError::Disconnected | ProtocolError::PartialMessage,
        )) => {
            log::info!(target: MILESTONE, "Client disconnected, shutting down");
            Ok(())
        }
        // The exact words are what management software looks for.
        Err(error) => Err(anyhow!(
            "Waiting for daemon failed: {error:?}{}",
            remedy(&error)
        )),
    }
}

/// What usually is behind an error of the protocol.
fn remedy(error: &DaemonError) -> &'static str {
    match error {
        DaemonError::HandleRequest(ProtocolError::InvalidParam) => {
            "; most often the guest's memory is not shared: give QEMU a \
             memory-backend-memfd with share=on that the machine or its NUMA node uses"
        }
        _ => "",
    }
}
