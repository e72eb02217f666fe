//! What a signal does: the files beside the socket go, then the process.
//!
//! SIGTERM and SIGHUP end with status 1, SIGINT as if it had not been caught.
//! SIGUSR1 has the daemon say in its log what it has done so far. SIGPIPE is
//! ignored, which the Rust runtime sees to before `main`.
//!
//! The thread that waits for them has the rights of the thread that starts it,
//! so it is started when the daemon has given up what it does not need. Until
//! then signals are [`Held`], so that none comes between a file and the one
//! who removes it.

use std::thread;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, exit};

use super::own_files::OwnFiles;
use super::service::Manager;

/// The signals that end the daemon wait.
#[derive(Debug)]
#[must_use]
pub struct Held(SigSet);

impl Held {
    /// Makes the signals wait that arrive from here on.
    ///
    /// # Errors
    /// Those of `pthread_sigmask(3)`.
    pub fn hold() -> anyhow::Result<Self> {
        let signals: SigSet = [
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGUSR1,
        ]
        .into_iter()
        .collect();
        signals.thread_block().context("cannot hold signals back")?;
        Ok(Self(signals))
    }

    /// Starts the thread that waits for the signals, and lets them come;
    /// `manager` is told of the end, and SIGUSR1 calls `report`.
    ///
    /// # Errors
    /// When the handlers or the thread cannot be set up.
    pub fn remove_files_on_signal(
        self,
        files: OwnFiles,
        manager: Manager,
        report: impl Fn() + Send + 'static,
    ) -> anyhow::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGHUP, SIGINT, SIGUSR1])
            .context("cannot set up signal handling")?;
        // One that waited is noted now, for the thread to find.
        self.0
            .thread_unblock()
            .context("cannot let signals through")?;
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    if signal == SIGUSR1 {
                        report();
                        continue;
                    }
                    manager.is_stopping();
                    end(&files, signal);
                }
            })
            .context("cannot start the thread that waits for signals")?;
        Ok(())
    }
}

fn end(files: &OwnFiles, signal: i32) {
    // The lock is kept until the process is gone: nothing is made any more.
    let mut files = files.lock();
    files.remove_all();
    // The first process of a pid namespace cannot end itself like that.
    if signal == SIGINT && std::process::id() != 1 {
        // Returns only if it failed.
        let _ = emulate_default_handler(signal);
    }
    exit(1);
}
