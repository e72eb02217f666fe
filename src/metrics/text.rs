//! The text format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use rustix::io::Errno;

use super::block::{BUCKETS, Counts};
use super::{Gauge, Metrics, name_of};

impl Metrics {
    /// Everything, as a scraper reads it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        head(&mut text, "info", "gauge", "The daemon that answers.");
        let version = env!("CARGO_PKG_VERSION");
        line(&mut text, "info", &format!("version=\"{version}\""), 1);
        put_gauges(&mut text, self.gauges());

        let total = self.total();
        let mut operations: Vec<(String, &Counts)> = total
            .operations()
            .map(|(op, counts)| (name_of(op), counts))
            .collect();
        operations.extend(total.unknown().map(|counts| ("unknown".to_owned(), counts)));
        // What never happened is left out: most guests use a third of it.
        operations.retain(|(_, counts)| counts.count() > 0);
        put_latency(&mut text, &operations);
        put_errors(&mut text, &operations);
        let what = "Bytes of the requests, data to be written included.";
        head(&mut text, "request_bytes_total", "counter", what);
        for (name, counts) in &operations {
            line(
                &mut text,
                "request_bytes_total",
                &of(name),
                counts.bytes().0,
            );
        }
        let what = "Bytes of the replies, data that was read included.";
        head(&mut text, "reply_bytes_total", "counter", what);
        for (name, counts) in &operations {
            line(&mut text, "reply_bytes_total", &of(name), counts.bytes().1);
        }
        text
    }
}

fn put_gauges(text: &mut String, mut gauges: Vec<Gauge>) {
    gauges.sort_by_key(|gauge| (gauge.name, gauge.queue));
    let mut last = "";
    for gauge in gauges {
        if gauge.name != last {
            head(text, gauge.name, "gauge", gauge.help);
            last = gauge.name;
        }
        let labels = gauge.queue.map(|queue| format!("queue=\"{queue}\""));
        line(text, gauge.name, &labels.unwrap_or_default(), gauge.value);
    }
}

fn put_latency(text: &mut String, operations: &[(String, &Counts)]) {
    let what = "Time from taking a request to its reply.";
    head(text, "request_duration_seconds", "histogram", what);
    for (name, counts) in operations {
        let mut sum = 0;
        for (number, count) in counts.buckets().enumerate() {
            sum += count;
            let bound = match number {
                BUCKETS => "+Inf".to_owned(),
                _ => format!("{}", (1_u64 << number) as f64 / 1e6),
            };
            let labels = format!("{},le=\"{bound}\"", of(name));
            line(text, "request_duration_seconds_bucket", &labels, sum);
        }
        let time = counts.time().as_secs_f64();
        line(text, "request_duration_seconds_sum", &of(name), time);
        line(text, "request_duration_seconds_count", &of(name), sum);
    }
}

fn put_errors(text: &mut String, operations: &[(String, &Counts)]) {
    let what = "Requests that failed, by the error that the guest got.";
    head(text, "request_errors_total", "counter", what);
    for (name, counts) in operations {
        for (errno, count) in counts.errors() {
            // As in `Os { code: 2, .. }`, but by its name: ENOENT.
            let errno = errno_name(Errno::from_raw_os_error(errno));
            let labels = format!("{},errno=\"{errno}\"", of(name));
            line(text, "request_errors_total", &labels, count);
        }
    }
}

fn errno_name(errno: Errno) -> String {
    NAMES.iter().find(|(known, _)| *known == errno).map_or_else(
        || errno.raw_os_error().to_string(),
        |(_, name)| (*name).to_owned(),
    )
}

/// The errors that a guest meets; another one is shown by its number.
const NAMES: &[(Errno, &str)] = &[
    (Errno::ACCESS, "EACCES"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::BADF, "EBADF"),
    (Errno::BUSY, "EBUSY"),
    (Errno::DQUOT, "EDQUOT"),
    (Errno::EXIST, "EEXIST"),
    (Errno::FBIG, "EFBIG"),
    (Errno::INTR, "EINTR"),
    (Errno::INVAL, "EINVAL"),
    (Errno::IO, "EIO"),
    (Errno::ISDIR, "EISDIR"),
    (Errno::LOOP, "ELOOP"),
    (Errno::MFILE, "EMFILE"),
    (Errno::MLINK, "EMLINK"),
    (Errno::NAMETOOLONG, "ENAMETOOLONG"),
    (Errno::NFILE, "ENFILE"),
    (Errno::NODATA, "ENODATA"),
    (Errno::NODEV, "ENODEV"),
    (Errno::NOENT, "ENOENT"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::NOSYS, "ENOSYS"),
    (Errno::NOTDIR, "ENOTDIR"),
    (Errno::NOTEMPTY, "ENOTEMPTY"),
    (Errno::NOTSUP, "EOPNOTSUPP"),
    (Errno::NOTTY, "ENOTTY"),
    (Errno::NXIO, "ENXIO"),
    (Errno::OVERFLOW, "EOVERFLOW"),
    (Errno::PERM, "EPERM"),
    (Errno::PROTO, "EPROTO"),
    (Errno::RANGE, "ERANGE"),
    (Errno::ROFS, "EROFS"),
    (Errno::STALE, "ESTALE"),
    (Errno::TXTBSY, "ETXTBSY"),
    (Errno::TOOBIG, "E2BIG"),
    (Errno::XDEV, "EXDEV"),
];

fn of(operation: &str) -> String {
    format!("operation=\"{operation}\"")
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP virtiofsd_{name} {help}");
    let _ = writeln!(text, "# TYPE virtiofsd_{name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let (open, close) = if labels.is_empty() {
        ("", "")
    } else {
        ("{", "}")
    };
    let _ = writeln!(text, "virtiofsd_{name}{open}{labels}{close} {value}");
}
