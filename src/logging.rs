//! Where log lines go and how they look: standard error or syslog.
//!
//! The lines that launchers wait for carry the target `virtiofsd`, so that
//! they stay the same wherever in the code they are written.
//!
//! A guest or a front end that repeats what is worth a line cannot fill the log: all
//! lines together are limited, and so are, apart from them, those for launchers. Not
//! limited are the line that says why the daemon ends, and what is only for a
//! developer's eyes (debug and trace). No line keeps a thread waiting for whoever
//! reads the log, and none has control characters.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use env_logger::{Target, WriteStyle};
use log::{Level, LevelFilter, Log, Metadata, Record};
use syslog::{BasicLogger, Facility, Formatter3164, LoggerBackend};

use crate::sys::stderr::NeverWaits;
use crate::sys::sync::lock;

/// The target of lines that launchers wait for, and of the last one.
pub const MILESTONE: &str = "virtiofsd";

/// Lines that may come at once.
const LINES_AT_ONCE: u32 = 100;

/// In what time another line may come.
const TIME_PER_LINE: Duration = Duration::from_millis(100);

/// Sends the log to standard error or, with `to_syslog`, to the syslog of the
/// machine; standard error takes over, with a warning, where there is none.
///
/// On standard error the environment variable `RUST_LOG` replaces `level`.
pub fn init(level: LevelFilter, to_syslog: bool) {
    if !to_syslog {
        init_stderr(level);
    } else if let Err(error) = init_syslog(level) {
        init_stderr(level);
        log::warn!("cannot log to syslog, logging to standard error instead: {error:#}");
    }
}

fn init_stderr(level: LevelFilter) {
    let mut builder = env_logger::Builder::new();
    builder.target(Target::Pipe(Box::new(NeverWaits::new(std::io::stderr()))));
    builder.write_style(stderr_style());
    builder.filter_level(level);
    if let Ok(filters) = std::env::var(env_logger::DEFAULT_FILTER_ENV) {
        builder.parse_filters(&filters);
    }
    let logger = builder.build();
    let level = logger.filter();
    // Fails only where a logger is in place already, which then stays.
    if log::set_boxed_logger(Box::new(Limited::new(logger))).is_ok() {
        log::set_max_level(level);
    }
}

/// Colours for a terminal, unless its user wants none (<https://no-color.org>).
fn stderr_style() -> WriteStyle {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if std::io::stderr().is_terminal() && !is_set("NO_COLOR") && !is_dumb {
        WriteStyle::Always
    } else {
        WriteStyle::Never
    }
}

fn init_syslog(level: LevelFilter) -> anyhow::Result<()> {
    let format = Formatter3164 {
        facility: Facility::LOG_USER,
        hostname: None,
        process: env!("CARGO_PKG_NAME").to_owned(),
        pid: std::process::id(),
    };
    let logger = syslog::unix(format).context("no syslog socket")?;
    // A syslog that reads no more keeps no thread that serves a guest waiting.
    match &logger.backend {
        LoggerBackend::Unix(socket) => socket.set_nonblocking(true),
        LoggerBackend::UnixStream(stream) => stream.get_ref().set_nonblocking(true),
        _ => Ok(()),
    }
    .context("cannot keep the syslog from blocking")?;
    let logger = Limited::new(BasicLogger::new(logger));
    log::set_boxed_logger(Box::new(logger)).map_err(|error| anyhow!(error))?;
    log::set_max_level(level);
    Ok(())
}

/// A logger that is not given more lines than may be.
struct Limited<L> {
    to: L,
    allowance: Mutex<Allowance>,
    /// For lines that launchers wait for, so that no others use up their share.
    milestones: Mutex<Allowance>,
}

impl<L: Log> Limited<L> {
    fn new(to: L) -> Self {
        Self {
            to,
            allowance: Mutex::new(Allowance::new(Instant::now())),
            milestones: Mutex::new(Allowance::new(Instant::now())),
        }
    }

    fn log_at(&self, record: &Record<'_>, now: Instant) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if record.level() > Level::Info {
            return self.write(record);
        }
        let left_out = {
            let is_milestone = record.target() == MILESTONE;
            let mut allowance = lock(if is_milestone {
                &self.milestones
            } else {
                &self.allowance
            });
            // The last line of a daemon says why it ends.
            let is_last = is_milestone && record.level() == Level::Error;
            if !is_last && !allowance.take(now) {
                return;
            }
            let left_out = std::mem::take(&mut allowance.left_out);
            drop(allowance);
            // No other line may come any more that could tell.
            let others = if is_milestone {
                std::mem::take(&mut lock(&self.allowance).left_out)
            } else {
                0
            };
            left_out + others
        };
        if left_out > 0 {
            self.to.log(
                &Record::builder()
                    .level(Level::Warn)
                    .target(module_path!())
                    .args(format_args!(
                        "{left_out} messages were suppressed by the rate limit"
                    ))
                    .build(),
            );
        }
        self.write(record);
    }

    /// Names that a guest chose may be part of a line: none of their bytes reaches a
    /// terminal as a command, or begins a line of its own.
    fn write(&self, record: &Record<'_>) {
        match record.args().as_str() {
            Some(text) if !text.contains(char::is_control) => self.to.log(record),
            _ => self.to.log(
                &Record::builder()
                    .metadata(record.metadata().clone())
                    .module_path(record.module_path())
                    .file(record.file())
                    .line(record.line())
                    .args(format_args!("{}", escaped(&record.args().to_string())))
                    .build(),
            ),
        }
    }
}

/// The text with its control characters as `\n`, `\u{1b}` and the like.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if character.is_control() {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped.into()
}

impl<L: Log> Log for Limited<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.to.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.log_at(record, Instant::now());
    }

    fn flush(&self) {
        self.to.flush();
    }
}

/// How many lines may come.
struct Allowance {
    /// Lines that may come now, as of `counted`.
    lines: u32,
    counted: Instant,
    /// Lines that could not come since the last one that could.
    left_out: u64,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            lines: LINES_AT_ONCE,
            counted: now,
            left_out: 0,
        }
    }

    /// Takes one line, if one may come.
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted);
        let more = passed.as_nanos() / TIME_PER_LINE.as_nanos();
        match u32::try_from(more) {
            Ok(more) if more < LINES_AT_ONCE - self.lines => {
                self.lines += more;
                self.counted += TIME_PER_LINE * more;
            }
            _ => {
                self.lines = LINES_AT_ONCE;
                self.counted = now;
            }
        }
        match self.lines.checked_sub(1) {
            Some(left) => self.lines = left,
            None => {
                self.left_out += 1;
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the lines that it is given.
    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl Log for Kept {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.level() < Level::Trace
        }

        fn log(&self, record: &Record<'_>) {
            lock(&self.0).push(record.args().to_string());
        }

        fn flush(&self) {}
    }

    struct Test {
        logger: Limited<Kept>,
        now: Instant,
    }

    impl Test {
        fn new() -> Self {
            let logger = Limited::new(Kept::default());
            let now = lock(&logger.allowance).counted;
            Self { logger, now }
        }

        fn log(&self, level: Level, target: &str, times: usize) {
            for _ in 0..times {
                let record = Record::builder()
                    .level(level)
                    .target(target)
                    .args(format_args!("line"))
                    .build();
                self.logger.log_at(&record, self.now);
            }
        }

        /// Lines that came since the last call.
        fn lines(&self) -> Vec<String> {
            std::mem::take(&mut *lock(&self.logger.to.0))
        }
    }

    #[test]
    fn a_hundred_lines_may_come_at_once_and_ten_in_a_second() {
        let mut test = Test::new();
        test.log(Level::Info, "any", 1000);
        assert_eq!(test.lines(), ["line"; 100]);
        test.now += Duration::from_millis(99);
        test.log(Level::Error, "any", 1);
        assert!(test.lines().is_empty());
        for _ in 0..3 {
            test.now += Duration::from_secs(1);
            test.log(Level::Warn, "any", 1000);
            let lines = test.lines();
            assert_eq!(lines.len(), 11, "{lines:?}");
            assert_eq!(lines[1..], ["line"; 10]);
        }
        test.now += Duration::from_secs(3600);
        test.log(Level::Warn, "any", 1000);
        assert_eq!(test.lines().len(), 101);
    }

    #[test]
    fn what_was_left_out_is_counted_with_the_next_line() {
        let mut test = Test::new();
        test.log(Level::Warn, "any", 107);
        test.lines();
        test.now += TIME_PER_LINE;
        test.log(Level::Warn, "any", 1);
        let notice = "7 messages were suppressed by the rate limit";
        assert_eq!(test.lines(), [notice, "line"]);
    }

    #[test]
    fn the_last_line_and_what_a_developer_asked_for_are_not_limited() {
        let test = Test::new();
        test.log(Level::Info, MILESTONE, 103);
        assert_eq!(test.lines().len(), 100);
        test.log(Level::Debug, "any", 500);
        assert_eq!(test.lines().len(), 500);
        test.log(Level::Error, MILESTONE, 1);
        let lines = test.lines();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].starts_with("3 messages were suppressed"),
            "{lines:?}"
        );
    }

    #[test]
    fn other_lines_leave_room_for_those_that_launchers_wait_for() {
        let test = Test::new();
        test.log(Level::Warn, "any", 1000);
        test.lines();
        test.log(Level::Info, MILESTONE, 1);
        let notice = "900 messages were suppressed by the rate limit";
        assert_eq!(test.lines(), [notice, "line"]);
    }

    #[test]
    fn control_characters_are_escaped() {
        let test = Test::new();
        let name = "a\nb\u{1b}[31mc\u{9b}\td\u{e9}\u{3042}\\n";
        test.logger.log(
            &Record::builder()
                .level(Level::Warn)
                .args(format_args!("on {name}"))
                .build(),
        );
        assert_eq!(
            test.lines(),
            ["on a\\nb\\u{1b}[31mc\\u{9b}\\td\u{e9}\u{3042}\\n"]
        );
    }
}
