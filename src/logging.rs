//! Where log lines go and how they look: standard error or syslog.
//!
//! The lines that launchers wait for carry the target `virtiofsd`, so that
//! they stay the same wherever in the code they are written.

use anyhow::{Context, anyhow};
use log::LevelFilter;
use syslog::{BasicLogger, Facility, Formatter3164};

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
    builder.filter_level(level);
    if let Ok(filters) = std::env::var(env_logger::DEFAULT_FILTER_ENV) {
        builder.parse_filters(&filters);
    }
    // Fails only where a logger is in place already, which then stays.
    let _ = builder.try_init();
}

fn init_syslog(level: LevelFilter) -> anyhow::Result<()> {
    let format = Formatter3164 {
        facility: Facility::LOG_USER,
        hostname: None,
        process: env!("CARGO_PKG_NAME").to_owned(),
        pid: std::process::id(),
    };
    let logger = syslog::unix(format).context("no syslog socket")?;
    log::set_boxed_logger(Box::new(BasicLogger::new(logger))).map_err(|error| anyhow!(error))?;
    log::set_max_level(level);
    Ok(())
}
