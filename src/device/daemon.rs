//! The connection of a front end, from the first message to the last, and the
//! next one, if there is to be one.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::anyhow;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;

use super::backend::{PoolMaker, Serving};
use super::vring::Vring;
use super::{Device, DeviceOptions};
use crate::fs::{FileSystem, Migrate};
use crate::guest::{GuestMemory, survive_lost_memory};
use crate::metrics::{Gauges, Watch};
use crate::server::Server;

/// The target of log lines that management software waits for.
const MILESTONE: &str = "virtiofsd";

/// Serves the file system to the first front end that connects, until it
/// disconnects; with `keep_listening` then to the next one, without end.
/// `migrate` is the same file system, for moving its state.
///
/// `pool_maker` makes the pool if there is to be one;
/// `thread_directory` becomes the working directory of every serving thread;
/// `is_ready` is called when the first connection can be served.
///
/// # Errors
/// When the device cannot be set up, and, unless more front ends may come, when
/// the front end breaks the protocol.
pub fn serve(
    listener: UnixListener,
    file_system: Arc<impl FileSystem>,
    migrate: Arc<dyn Migrate>,
    options: &DeviceOptions,
    pool_maker: PoolMaker,
    thread_directory: OwnedFd,
    is_ready: impl FnOnce(),
) -> anyhow::Result<()> {
    survive_lost_memory()?;
    let counted = options.watch.count.then(|| Arc::clone(&options.metrics));
    let watch = Watch::new(counted, options.watch.slow);
    let server = Arc::new(Server::new(file_system, options.access, watch));
    options.metrics.ask(as_source(&server));
    let serving = Arc::new(Serving::new(
        options.threads,
        pool_maker,
        &thread_directory,
    )?);
    let mut listener = Listener::from(listener);
    let mut is_ready = Some(is_ready);
    loop {
        let memory = GuestMemoryAtomic::new(GuestMemory::new());
        let device = Arc::new(Device::new(
            Arc::clone(&server),
            Arc::clone(&serving),
            Arc::clone(&migrate),
            options,
            memory.clone(),
            &thread_directory,
        )?);
        options.metrics.ask(as_source(&device));
        device.start_relief()?;
        let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), device.clone(), memory)
            .map_err(|error| anyhow!("cannot start the threads of the queues: {error}"))?;
        device.set_threads(&daemon.get_epoll_handlers(), Vring::take_made());
        log::info!(target: MILESTONE, "Waiting for vhost-user socket connection...");
        if let Some(is_ready) = is_ready.take() {
            is_ready();
        }
        daemon
            .start(&mut listener)
            .map_err(|error| anyhow!("cannot accept a front end's connection: {error}"))?;
        log::info!(target: MILESTONE, "Client connected, servicing requests");
        if !options.keep_listening {
            // A second front end is refused rather than kept waiting for ever.
            drop(listener);
            let end = daemon_end(daemon.wait());
            // Its threads are waited for, but not for ever: the process is to end.
            drop_within(daemon, LAST_WAIT);
            end?;
            log::info!(target: MILESTONE, "Client disconnected, shutting down");
            return Ok(());
        }
        match daemon_end(daemon.wait()) {
            Ok(()) => log::info!(target: MILESTONE, "Client disconnected"),
            Err(error) => log::error!("{error:#}"),
        }
        // This waits for the queues' threads: nothing new is taken any more.
        if let Some(dropped) = drop_within(daemon, LAST_WAIT) {
            log::warn!(
                "the next front end waits for requests of the last one, whose file system does \
                 not answer; thaw it, or unmount it by force"
            );
            // Its result is that it ends.
            let _ = dropped.join();
        }
        device.front_end_is_gone();
    }
}

/// How long the threads of a front end that is gone are waited for.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// Drops something, which waits for threads; gives the thread that does so where it
/// has not ended by then.
fn drop_within(what: impl Send + 'static, time: Duration) -> Option<JoinHandle<()>> {
    let (done, is_done) = mpsc::channel();
    let started = thread::Builder::new()
        .name("end".to_owned())
        .spawn(move || {
            drop(what);
            // Nobody may be waiting any more.
            let _ = done.send(());
        });
    match (started, is_done.recv_timeout(time)) {
        (Ok(thread), Err(RecvTimeoutError::Timeout)) => Some(thread),
        // Where no thread could be started it was dropped at once.
        _ => None,
    }
}

fn as_source<T: Gauges + 'static>(source: &Arc<T>) -> Weak<dyn Gauges> {
    let source: Weak<T> = Arc::downgrade(source);
    source
}

/// Sees a front end that went away as the end that it is.
fn daemon_end(result: Result<(), DaemonError>) -> anyhow::Result<()> {
    match result {
        Ok(())
        | Err(DaemonError::HandleRequest(
            ProtocolError::Disconnected | ProtocolError::PartialMessage,
        )) => Ok(()),
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
