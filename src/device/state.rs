//! Moving the device's state through a pipe that the front end hands over.
//!
//! A thread of its own collects and writes, or reads and restores, so that the
//! front end is answered meanwhile; it is joined when the front end asks for the
//! result. By then nothing is left to wait for: whatever would still have to
//! wait for the front end fails instead of blocking both for ever.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::sys::sync::lock;

/// The most bytes of a state: some ten million inodes.
const MAX_STATE_BYTES: usize = 1 << 30;

/// How long the other end of the pipe may still be open when the front end asks for
/// the result: a program that it is just starting may have a copy.
const GRACE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// The transfer that is under way, if there is one.
#[derive(Default)]
pub(super) struct StateTransfer {
    running: Mutex<Option<Transfer>>,
}

struct Transfer {
    thread: JoinHandle<bool>,
    stop: Arc<Stop>,
}

/// How a transfer is told to end.
struct Stop {
    /// Readable once the front end waits for the result.
    asked: OwnedFd,
    /// Set when the result is of no use any more.
    cancelled: AtomicBool,
}

impl StateTransfer {
    /// Collects the state and writes it, on another thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn save(
        &self,
        pipe: File,
        collect: impl FnOnce(&AtomicBool) -> anyhow::Result<Vec<u8>> + Send + 'static,
    ) -> io::Result<()> {
        self.start("save", move |stop| {
            let state = collect(&stop.cancelled)?;
            write_all(pipe, &state, stop)?;
            log::info!("the state was saved: {} bytes", state.len());
            Ok(())
        })
    }

    /// Reads the state and restores it, on another thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn load(
        &self,
        pipe: File,
        restore: impl FnOnce(&[u8], &AtomicBool) -> anyhow::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        self.start("load", move |stop| {
            let state = read_all(pipe, stop)?;
            restore(&state, &stop.cancelled)?;
            log::info!("the state was loaded: {} bytes", state.len());
            Ok(())
        })
    }

    /// Waits for the end of the transfer.
    ///
    /// # Errors
    /// When it failed, which was logged, and when there is none.
    pub(super) fn check(&self) -> io::Result<()> {
        let Some(transfer) = lock(&self.running).take() else {
            let text = "the front end asked for a result, but no state transfer is running";
            log::error!("{text}");
            return Err(io::Error::other(text));
        };
        transfer.stop.ask();
        match transfer.thread.join() {
            Ok(true) => Ok(()),
            _ => Err(io::Error::other("the state transfer failed")),
        }
    }

    /// Ends a transfer whose result nobody will ask for.
    pub(super) fn cancel(&self) {
        if let Some(transfer) = lock(&self.running).take() {
            transfer.stop.cancelled.store(true, Ordering::Relaxed);
            transfer.stop.ask();
            // Its outcome was logged.
            let _ = transfer.thread.join();
        }
    }

    fn start(
        &self,
        what: &'static str,
        work: impl FnOnce(&Stop) -> anyhow::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        self.cancel();
        let stop = Arc::new(Stop {
            asked: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            cancelled: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&stop);
        let thread =
            thread::Builder::new()
                .name(format!("state-{what}"))
                .spawn(move || match work(&theirs) {
                    Ok(()) => true,
                    Err(error) => {
                        log::error!("cannot {what} the state: {error:#}");
                        false
                    }
                })?;
        *lock(&self.running) = Some(Transfer { thread, stop });
        Ok(())
    }
}

impl Stop {
    fn ask(&self) {
        // The counter cannot be full.
        let _ = rustix::io::write(&self.asked, &1u64.to_ne_bytes());
    }

    /// Waits until the pipe can be read from or written to: not for long once the
    /// front end asks for the result.
    fn wait(&self, pipe: &File, until: PollFlags) -> anyhow::Result<()> {
        let mut fds = [
            PollFd::new(pipe, until),
            PollFd::new(&self.asked, PollFlags::IN),
        ];
        poll_again(&mut fds, None)?;
        let [ready, _] = fds.map(|fd| fd.revents());
        if !ready.is_empty() {
            return Ok(());
        }
        if self.cancelled.load(Ordering::Relaxed) {
            bail!("it was cancelled");
        }
        let mut fds = [PollFd::new(pipe, until)];
        if poll_again(&mut fds, Some(&GRACE))? {
            return Ok(());
        }
        bail!("the front end asks for the result, but the transfer has not ended")
    }
}

/// Waits for one of these; `false` when the time is over.
fn poll_again(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> anyhow::Result<bool> {
    loop {
        match poll(fds, timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the front end"),
        }
    }
}

/// Lets a full or empty pipe say so instead of blocking.
fn never_block(pipe: &File) -> anyhow::Result<()> {
    let flags = rustix::fs::fcntl_getfl(pipe).context("cannot use the front end's descriptor")?;
    rustix::fs::fcntl_setfl(pipe.as_fd(), flags | OFlags::NONBLOCK)
        .context("cannot use the front end's descriptor")
}

fn write_all(mut pipe: File, mut bytes: &[u8], stop: &Stop) -> anyhow::Result<()> {
    never_block(&pipe)?;
    while !bytes.is_empty() {
        match pipe.write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stop.wait(&pipe, PollFlags::OUT)?;
            }
            Err(error) => {
                return Err(error).context("cannot write to the front end");
            }
        }
    }
    Ok(())
}

fn read_all(mut pipe: File, stop: &Stop) -> anyhow::Result<Vec<u8>> {
    never_block(&pipe)?;
    let mut state = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match pipe.read(&mut chunk) {
            Ok(0) => return Ok(state),
            Ok(read) => {
                state.extend_from_slice(chunk.get(..read).unwrap_or_default());
                if state.len() > MAX_STATE_BYTES {
                    bail!("it is longer than {MAX_STATE_BYTES} bytes");
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stop.wait(&pipe, PollFlags::IN)?;
            }
            Err(error) => return Err(error).context("cannot read from the front end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
    }

    fn state(len: usize) -> Vec<u8> {
        (0..len).map(|at| at as u8).collect()
    }

    #[test]
    fn a_state_larger_than_a_pipe_gets_through_both_ways() {
        let (mut reader, writer) = pipe();
        let (saving, loading) = (StateTransfer::default(), StateTransfer::default());
        saving.save(writer, |_| Ok(state(1 << 20))).unwrap();
        let mut saved = Vec::new();
        reader.read_to_end(&mut saved).unwrap();
        saving.check().unwrap();
        assert!(saved == state(1 << 20));

        let (reader, mut writer) = pipe();
        let (sender, receiver) = channel();
        loading
            .load(reader, move |bytes, _| Ok(sender.send(bytes.to_vec())?))
            .unwrap();
        writer.write_all(&saved).unwrap();
        drop(writer);
        loading.check().unwrap();
        assert!(receiver.recv().unwrap() == saved);
    }

    #[test]
    fn a_reader_that_went_away_fails_the_check() {
        let (reader, writer) = pipe();
        let transfer = StateTransfer::default();
        drop(reader);
        transfer.save(writer, |_| Ok(state(10))).unwrap();
        assert!(transfer.check().is_err());
    }

    #[test]
    fn a_check_before_the_end_of_the_pipe_fails_instead_of_blocking() {
        let transfer = StateTransfer::default();
        let (_reader, writer) = pipe();
        transfer.save(writer, |_| Ok(state(1 << 20))).unwrap();
        assert!(transfer.check().is_err());
        let (reader, _writer) = pipe();
        transfer.load(reader, |_, _| Ok(())).unwrap();
        assert!(transfer.check().is_err());
    }

    #[test]
    fn an_end_that_is_closed_a_little_late_is_waited_for() {
        let transfer = StateTransfer::default();
        let (reader, writer) = pipe();
        let (sender, receiver) = channel();
        transfer
            .load(reader, move |bytes, _| Ok(sender.send(bytes.len())?))
            .unwrap();
        let late = writer.try_clone().unwrap();
        drop(writer);
        thread::scope(|scope| {
            let checked = scope.spawn(|| transfer.check());
            // It asks meanwhile, or is about to.
            drop(late);
            checked.join().unwrap().unwrap();
        });
        assert_eq!(receiver.recv().unwrap(), 0);
    }

    #[test]
    fn a_check_without_a_transfer_fails_and_so_does_a_second_one() {
        let transfer = StateTransfer::default();
        assert!(transfer.check().is_err());
        let (_reader, writer) = pipe();
        transfer.save(writer, |_| Ok(state(10))).unwrap();
        assert!(transfer.check().is_ok());
        assert!(transfer.check().is_err());
    }

    #[test]
    fn what_fails_to_collect_or_restore_fails_the_check() {
        let transfer = StateTransfer::default();
        let (_reader, writer) = pipe();
        transfer.save(writer, |_| bail!("no")).unwrap();
        assert!(transfer.check().is_err());
        let (reader, writer) = pipe();
        drop(writer);
        transfer.load(reader, |_, _| bail!("no")).unwrap();
        assert!(transfer.check().is_err());
    }

    #[test]
    fn a_transfer_that_is_replaced_is_told_so() {
        let transfer = StateTransfer::default();
        let (_reader, writer) = pipe();
        transfer
            .save(writer, |cancelled| {
                while !cancelled.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                bail!("cancelled")
            })
            .unwrap();
        let (_reader, writer) = pipe();
        transfer.save(writer, |_| Ok(state(10))).unwrap();
        transfer.check().unwrap();
    }
}
