//! What a signal does: the files beside the socket go, then the process.
//!
//! SIGTERM and SIGHUP end with status 1, SIGINT as if it had not been caught.
//! SIGPIPE is ignored, which the Rust runtime sees to before `main`.

use std::thread;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, exit};

use super::own_files::OwnFiles;

/// Starts the thread that waits for the signals that end the daemon.
///
/// # Errors
/// When the handlers or the thread cannot be set up.
pub fn remove_files_on_signal(files: OwnFiles) -> anyhow::Result<()> {
    let mut signals =
        Signals::new([SIGTERM, SIGHUP, SIGINT]).context("cannot set up signal handling")?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                end(&files, signal);
            }
        })
        .context("cannot start the thread that waits for signals")?;
    Ok(())
}

fn end(files: &OwnFiles, signal: i32) {
    // The lock is kept until the process is gone: nothing is made any more.
    let mut files = files.lock();
    files.remove_all();
    if signal == SIGINT {
        // Returns only if it failed.
        let _ = emulate_default_handler(signal);
    }
    exit(1);
}
