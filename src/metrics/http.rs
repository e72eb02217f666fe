//! The way out: one answer for each connection to a Unix socket, in as much of
//! HTTP as a scraper needs.
//!
//! The socket is its owner's alone. A connection that does not ask, or does not
//! read, is given up after a while, however busy it looks, since the next one waits
//! behind it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Metrics;

/// The most bytes of a request.
const MAX_REQUEST: usize = 8192;

/// How long one connection may keep the next one waiting.
const TIME_TO_ANSWER: Duration = Duration::from_secs(5);

/// How long the thread pauses where no connection can be taken for now.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Starts the thread that answers on `listener`.
///
/// # Errors
/// When there can be no thread.
pub fn serve(listener: UnixListener, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || answer_all(&listener, &metrics))
        .context("cannot start the thread of --metrics-socket")?;
    Ok(())
}

fn answer_all(listener: &UnixListener, metrics: &Metrics) {
    let mut is_short = false;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                is_short = false;
                if let Err(error) = answer(stream, metrics, Instant::now() + TIME_TO_ANSWER) {
                    log::debug!("a reader of the metrics got no answer: {error}");
                }
            }
            Err(error) if is_final(&error) => {
                log::error!("the metrics cannot be read any more: {error}");
                return;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                // Most often descriptors or memory are short, which will pass.
                if !is_short {
                    log::warn!("the metrics cannot be read for now: {error}");
                }
                is_short = true;
                let _ = poll(&mut [], Some(&PAUSE));
            }
        }
    }
}

/// Whether `accept(2)` will never succeed again: the fault is the socket's.
fn is_final(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP)
    )
}

fn answer(mut stream: UnixStream, metrics: &Metrics, until: Instant) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let request = read_request(&mut stream, until)?;
    let (status, body) = respond(&request, metrics);
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    write_all(&mut stream, head.as_bytes(), until)?;
    if !request.starts_with(b"HEAD ") {
        write_all(&mut stream, body.as_bytes(), until)?;
    }
    Ok(())
}

/// The status and the body for the request that begins with these bytes.
fn respond(request: &[u8], metrics: &Metrics) -> (&'static str, String) {
    let line = request
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next()) {
        (Some(b"GET" | b"HEAD"), Some(b"/metrics" | b"/")) => ("200 OK", metrics.text()),
        (Some(b"GET" | b"HEAD"), Some(_)) => {
            ("404 Not Found", "there is only /metrics\n".to_owned())
        }
        _ => (
            "405 Method Not Allowed",
            "only GET is answered\n".to_owned(),
        ),
    }
}

/// Reads up to the empty line.
fn read_request(stream: &mut UnixStream, until: Instant) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST {
            return Err(io::Error::other("the request is too long"));
        }
        wait(stream, PollFlags::IN, until)?;
        match stream.read(&mut part) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => request.extend(part.iter().take(length)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(request)
}

fn write_all(stream: &mut UnixStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(stream, PollFlags::OUT, until)?
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait(stream: &UnixStream, events: PollFlags, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    let left = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(stream, events)], Some(&left))? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(request: &[u8]) -> String {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(request).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = answer(ours, &Metrics::default(), Instant::now() + TIME_TO_ANSWER);
        // Closed with something unread, it is reset.
        io::read_to_string(theirs).unwrap_or_default()
    }

    #[test]
    fn a_scraper_gets_the_text_and_nobody_else_anything() {
        let answer = asked(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(body.starts_with("# HELP virtiofsd_info "), "{body}");

        let head = asked(b"HEAD / HTTP/1.0\r\n\r\n");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        assert!(asked(b"GET /else HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 404 "));
        assert!(asked(b"POST /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 405 "));
        for broken in [&b""[..], b"GET /metrics", &[b'x'; 2 * MAX_REQUEST]] {
            assert_eq!(asked(broken), "");
        }
    }

    #[test]
    fn a_reader_that_sends_byte_by_byte_is_given_up_in_time() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let slow = thread::spawn(move || {
            // Until nobody is there to read.
            while theirs.write_all(b"x").is_ok() {
                let pause = Timespec {
                    tv_sec: 0,
                    tv_nsec: 1_000_000,
                };
                let _ = poll(&mut [], Some(&pause));
            }
        });
        let begun = Instant::now();
        let until = begun + Duration::from_millis(300);
        let error = answer(ours, &Metrics::default(), until).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_millis(300));
        slow.join().unwrap();
    }

    #[test]
    fn a_shortage_is_not_the_end() {
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::NOBUFS,
            Errno::CONNABORTED,
        ] {
            assert!(!is_final(&errno.into()), "{errno}");
        }
        assert!(is_final(&Errno::BADF.into()));
    }
}
