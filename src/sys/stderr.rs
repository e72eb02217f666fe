//! Standard error that keeps no thread waiting.
//!
//! A launcher may stop reading the pipe that it gave us, often once the socket is
//! there. A thread that serves a guest must not stop with it, at any level of the
//! log: a line for which there is no room is dropped, and counted in front of the
//! next one that there is room for.

use std::io::{self, Write};
use std::os::fd::AsFd;

use libc::PIPE_BUF;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// What marks a line that was cut off because it was too long.
const CUT_OFF: &[u8] = b" [...]\n";

/// Writes each line whole or not at all to `W`, which may be a pipe, a terminal, a
/// socket or a file.
#[derive(Debug)]
pub struct NeverWaits<W> {
    to: W,
    /// Lines that were dropped since the last one that was written.
    dropped: u64,
}

impl<W: Write + AsFd> NeverWaits<W> {
    /// A writer to `to` that has dropped nothing yet.
    pub fn new(to: W) -> Self {
        Self { to, dropped: 0 }
    }

    /// Whether `PIPE_BUF` bytes can be written without waiting, `pipe(7)`.
    ///
    /// The file's flags are not changed for that: it is also the launcher's, whose
    /// other programs would meet `EAGAIN`.
    fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(&self.to, PollFlags::OUT)];
        // Without a reader the write fails at once.
        poll(&mut fds, Some(&AT_ONCE)) != Ok(0)
    }
}

impl<W: Write + AsFd> Write for NeverWaits<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.has_room() {
            self.dropped += 1;
            return Ok(line.len());
        }
        let mut text = Vec::new();
        if self.dropped > 0 {
            let dropped = self.dropped;
            let _ = writeln!(
                text,
                "virtiofsd: {dropped} messages were dropped because the reader was too slow"
            );
        }
        text.extend_from_slice(line);
        if text.len() > PIPE_BUF {
            text.truncate(PIPE_BUF - CUT_OFF.len());
            text.extend_from_slice(CUT_OFF);
        }
        self.to.write_all(&text)?;
        self.dropped = 0;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes one line that has no form of the log's, if there is room for it.
pub fn write_plain_line(line: &[u8]) {
    // Nobody may be there to read it.
    let _ = NeverWaits::new(io::stderr()).write_all(line);
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_for_a_full_pipe_are_dropped_and_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = NeverWaits::new(writer);
        let (done, is_done) = channel();
        std::thread::spawn(move || {
            for _ in 0..10_000 {
                log.write_all(&[b"x".repeat(99).as_slice(), b"\n"].concat())
                    .unwrap();
            }
            done.send(log).unwrap();
        });
        // Far more than a pipe holds.
        let mut log = is_done.recv_timeout(Duration::from_secs(60)).unwrap();
        let mut written = vec![0; 1 << 20];
        let length = reader.read(&mut written).unwrap();
        assert_eq!(length % 100, 0, "only whole lines: {length}");
        let dropped = 10_000 - length / 100;

        log.write_all(b"next\n").unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let notice =
            format!("virtiofsd: {dropped} messages were dropped because the reader was too slow");
        assert_eq!(rest.lines().collect::<Vec<_>>(), [notice.as_str(), "next"]);
    }

    #[test]
    fn a_line_is_never_longer_than_what_a_pipe_takes_whole() {
        let (mut reader, writer) = io::pipe().unwrap();
        NeverWaits::new(writer)
            .write_all(&b"x".repeat(3 * PIPE_BUF))
            .unwrap();
        let mut written = Vec::new();
        reader.read_to_end(&mut written).unwrap();
        assert_eq!(written.len(), PIPE_BUF);
        assert!(written.ends_with(b"x [...]\n"));
    }
}
