//! Measures daemons against each other, through the tests' own front end.
//!
//! ```text
//! cargo bench --bench compare -- [OPTIONS] DAEMON [OTHER_DAEMON]
//! ```
//!
//! Each case is a workload at a depth on a number of queues, with a setting of
//! the daemon. It is run on the daemons in turn, round after round, with a fresh
//! process each time; what is printed are medians, how far the rounds lie from
//! them, and the medians of the ratios within the rounds.
//!
//! - `plan` says which cases there are.
//! - `workload` is the table of workloads; `requests` and `tree` are what they
//!   are made of, `share` what lies in the shared directory, `floor` the same
//!   operations without a daemon.
//! - `driver` keeps the queues full and takes the times, `counters` asks the
//!   kernel what the daemon used.
//! - `report` makes the tables and the JSON, `chart` the pictures.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod chart;
#[path = "../../tests/common/mod.rs"]
mod common;
mod counters;
mod driver;
mod floor;
mod plan;
mod report;
mod requests;
mod share;
mod tree;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use tempfile::TempDir;

use common::daemon::Daemon;
use driver::Sample;
use plan::{Case, Plan};
use report::Outcome;

/// Compares virtio-fs daemons by what they do per second and per processor
/// time.
#[derive(Debug, Parser)]
struct Options {
    /// Daemon binaries; ratios are those of the first to each other
    #[arg(required = true)]
    daemons: Vec<PathBuf>,

    /// The default settings only, at depth 1 and 32, in a few minutes
    #[arg(long)]
    quick: bool,

    /// Rounds of every case [default: 5; quick: 3]
    #[arg(long)]
    rounds: Option<usize>,

    /// Measured time of a case in a round [default: 0.4; quick: 0.15]
    #[arg(long)]
    seconds_per_case: Option<f64>,

    #[command(flatten)]
    plan: Plan,

    /// Where to make the shared directory; the system's temporary directory by default
    #[arg(long)]
    dir: Option<PathBuf>,

    /// Where to put results.md, results.json and the charts
    #[arg(long)]
    output: Option<PathBuf>,

    /// More arguments for all daemons, separated by spaces
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    daemon_args: String,

    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 })
    }

    fn time(&self) -> Duration {
        let seconds = self.seconds_per_case;
        Duration::from_secs_f64(seconds.unwrap_or(if self.quick { 0.15 } else { 0.4 }))
    }
}

fn main() {
    let options = Options::parse();
    let share = match &options.dir {
        Some(dir) => TempDir::with_prefix_in("virtiofsd-bench-", dir),
        None => TempDir::with_prefix("virtiofsd-bench-"),
    };
    let share = share.expect("cannot make the shared directory");

    let mut markdown = String::new();
    let mut say = |text: &str| {
        println!("{text}");
        markdown += text;
        markdown += "\n";
    };
    say(&report::legend(&options.daemons));
    let mut outcomes: Vec<Outcome> = Vec::new();
    for case in options.plan.cases(options.quick) {
        if case.needs_xattrs() && !share::has_xattrs(share.path()) {
            continue;
        }
        let setting = &case.setting.name;
        let is_first = outcomes
            .last()
            .is_none_or(|last| last.case.setting.name != *setting);
        if is_first {
            say(&report::head(setting, options.daemons.len()));
        }
        let outcome = measure(&options, share.path(), case);
        say(&report::row(&outcome));
        outcomes.push(outcome);
    }
    if let Some(output) = &options.output {
        write_files(&options, output, &markdown, &outcomes);
    }
}

fn write_files(options: &Options, output: &Path, markdown: &str, outcomes: &[Outcome]) {
    fs::create_dir_all(output).expect("cannot make the directory of --output");
    let write = |name: &str, text: &str| {
        fs::write(output.join(name), text).expect("cannot write the results");
    };
    write("results.md", markdown);
    write("results.json", &report::json(&options.daemons, outcomes));
    let first = outcomes.first().map(|outcome| outcome.case.setting.clone());
    let end = outcomes
        .iter()
        .position(|outcome| Some(&outcome.case.setting) != first.as_ref());
    let outcomes = &outcomes[..end.unwrap_or(outcomes.len())];
    if options.daemons.len() > 1 {
        let title = "CPU time per operation, A to B: less is better";
        let chart = chart::ratios(title, outcomes, |sample| Some(sample.cpu_us_per_op));
        write("cpu.svg", &chart);
        let title = "Operations per second, A to B: more is better";
        let chart = chart::ratios(title, outcomes, |sample| Some(sample.ops_per_second));
        write("throughput.svg", &chart);
    }
}

fn measure(options: &Options, share: &Path, case: Case) -> Outcome {
    (case.workload.prepare)(share);
    let rounds = (0..options.rounds()).map(|round| run_round(options, share, &case, round));
    Outcome {
        rounds: rounds.collect(),
        floor_us: floor::measure(case.workload, share, options.time()),
        case,
    }
}

/// One sample of each daemon, in an order that changes from round to round.
fn run_round(options: &Options, share: &Path, case: &Case, round: usize) -> Vec<Option<Sample>> {
    let count = options.daemons.len();
    let mut samples = vec![None; count];
    for turn in 0..count {
        let index = (turn + round) % count;
        let binary = &options.daemons[index];
        samples[index] = start(options, binary, share, case)
            .map(|daemon| driver::measure(&daemon, case, options.time()));
        // Once is enough: this figure is steady.
        if let (0, Some(sample)) = (round, &mut samples[index]) {
            sample.calls_per_op = start(options, binary, share, case)
                .and_then(|daemon| driver::count_calls(&daemon, case, options.time() / 2));
        }
    }
    samples
}

/// `None` if the daemon has not as many queues.
fn start(options: &Options, binary: &Path, share: &Path, case: &Case) -> Option<Daemon> {
    let queues = case.queues.to_string();
    let mut args: Vec<&str> = case.setting.args.iter().map(String::as_str).collect();
    args.extend(case.workload.args);
    args.extend(options.daemon_args.split_whitespace());
    if knows_option(binary, "--num-request-queues") {
        args.extend(["--num-request-queues", &queues]);
    } else if case.queues > 1 {
        return None;
    }
    Some(Daemon::start_binary(binary, share, &args))
}

fn knows_option(binary: &Path, option: &str) -> bool {
    let help = Command::new(binary)
        .arg("--help")
        .output()
        .expect("cannot run a daemon");
    String::from_utf8_lossy(&help.stdout).contains(option)
}
