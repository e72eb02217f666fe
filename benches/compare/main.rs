//! Measures daemons against each other, through the tests' own front end.
//!
//! ```text
//! cargo bench --bench compare -- [OPTIONS] DAEMON [OTHER_DAEMON]
//! ```
//!
//! Each case is a workload at a depth on a number of queues. It is run on the
//! daemons in turn, round after round, with a fresh process each time; what is
//! printed are medians, and the medians of the ratios within the rounds.
//!
//! - `workload` says which requests a workload is made of.
//! - `driver` keeps the queues full and takes the times.
//! - `report` makes the table.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod driver;
mod report;
mod workload;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use tempfile::TempDir;

use common::daemon::Daemon;
use driver::Sample;
use report::Row;
use workload::{WORKLOADS, Workload};

/// Compares virtio-fs daemons by what they do per second and per processor
/// time.
#[derive(Debug, Parser)]
struct Options {
    /// Daemon binaries; ratios are those of the first to each other
    #[arg(required = true)]
    daemons: Vec<PathBuf>,

    /// Rounds of every case
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Measured time of a case in a round
    #[arg(long, default_value_t = 0.5)]
    seconds_per_case: f64,

    /// Only workloads whose name contains one of these words
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,

    /// Requests kept in flight on each queue
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    depth: Vec<usize>,

    /// Numbers of request queues
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    queues: Vec<usize>,

    /// Where to make the shared directory; the system's temporary directory by default
    #[arg(long)]
    dir: Option<PathBuf>,

    /// More arguments for all daemons, separated by spaces
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    daemon_args: String,

    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) workload: &'static Workload,
    pub(crate) depth: usize,
    pub(crate) queues: usize,
}

fn main() {
    let options = Options::parse();
    let share = match &options.dir {
        Some(dir) => TempDir::with_prefix_in("virtiofsd-bench-", dir),
        None => TempDir::with_prefix("virtiofsd-bench-"),
    };
    let share = share.expect("cannot make the shared directory");
    workload::fill(share.path());

    report::print_head(&options.daemons);
    for case in cases(&options) {
        let rounds =
            (0..options.rounds).map(|round| run_round(&options, share.path(), case, round));
        Row::new(case, &rounds.collect::<Vec<_>>()).print();
    }
}

fn cases(options: &Options) -> Vec<Case> {
    let is_wanted = |workload: &&Workload| {
        options.only.is_empty() || options.only.iter().any(|word| workload.name.contains(word))
    };
    let mut cases = Vec::new();
    for workload in WORKLOADS.iter().filter(is_wanted) {
        for &queues in &options.queues {
            for &depth in &options.depth {
                cases.push(Case {
                    workload,
                    depth,
                    queues,
                });
            }
        }
    }
    cases
}

/// One sample of each daemon, in an order that changes from round to round.
fn run_round(options: &Options, share: &Path, case: Case, round: usize) -> Vec<Option<Sample>> {
    let count = options.daemons.len();
    let mut samples = vec![None; count];
    for turn in 0..count {
        let index = (turn + round) % count;
        samples[index] = run(options, &options.daemons[index], share, case);
    }
    samples
}

/// `None` if the daemon has not as many queues.
fn run(options: &Options, binary: &Path, share: &Path, case: Case) -> Option<Sample> {
    let queues = case.queues.to_string();
    let mut args: Vec<&str> = options.daemon_args.split_whitespace().collect();
    if knows_option(binary, "--num-request-queues") {
        args.extend(["--num-request-queues", &queues]);
    } else if case.queues > 1 {
        return None;
    }
    let daemon = Daemon::start_binary(binary, share, &args);
    let time = Duration::from_secs_f64(options.seconds_per_case);
    Some(driver::measure(&daemon, case, time))
}

fn knows_option(binary: &Path, option: &str) -> bool {
    let help = Command::new(binary)
        .arg("--help")
        .output()
        .expect("cannot run a daemon");
    String::from_utf8_lossy(&help.stdout).contains(option)
}
