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
//! - `workload` is the table of workloads, `step` what one is; `requests` and `tree`
//!   are what they are made of, `share` what lies in the shared directory, `floor` the same
//!   operations without a daemon.
//! - `driver` keeps the queues full and takes the times, `counters` asks the
//!   kernel what the daemon used.
//! - `single` are figures that are no workload.
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
mod single;
mod step;
mod tree;
mod workload;

use std::fs;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use clap::Parser;
use rustix::process::geteuid;
use tempfile::TempDir;

use chart::Chart;
use common::daemon::Daemon;
use driver::Sample;
use plan::{Case, Plan};
use report::Outcome;
use single::Figure;

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

    let about = about(&options, share.path());
    println!("{about}");
    let mut outcomes: Vec<Outcome> = Vec::new();
    for case in options.plan.cases(options.quick) {
        if case.needs_xattrs() && !share::has_xattrs(share.path())
            || case.needs_root() && !geteuid().is_root()
        {
            continue;
        }
        let setting = &case.setting;
        let is_first = outcomes
            .last()
            .is_none_or(|last| last.case.setting != *setting);
        if is_first {
            println!("{}", report::head(&setting.name, options.daemons.len()));
        }
        let outcome = measure(&options, share.path(), case);
        println!("{}", outcome.row());
        for note in outcome.notes() {
            eprintln!("{note}");
        }
        outcomes.push(outcome);
        // A run that is broken off leaves what it had.
        write_files(&options, &about, &outcomes, &[]);
    }
    let figures = single_figures(&options, share.path());
    println!("{}", report::figures(&figures));
    write_files(&options, &about, &outcomes, &figures);
}

fn single_figures(options: &Options, share: &Path) -> Vec<Figure> {
    let (daemons, mut figures) = (&options.daemons, Vec::new());
    if options.plan.wants("start") {
        figures.push(single::start(daemons, share));
    }
    if options.plan.wants("inode table") && !options.quick {
        let (rounds, time) = (options.rounds(), options.time());
        figures.extend(single::inode_tables(daemons, share, rounds, time));
    }
    figures
}

/// What was measured, when, where and how.
fn about(options: &Options, share: &Path) -> String {
    let ask = |program: &Path, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        let output = output.map_or(Vec::new(), |output| output.stdout);
        String::from_utf8_lossy(&output).trim().to_owned()
    };
    let daemons = &options.daemons;
    let mut names: Vec<_> = daemons
        .iter()
        .map(|path| ask(path, &["--version"]))
        .collect();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        let paths = daemons.iter().map(|path| path.display().to_string());
        names = paths.collect();
    }
    let names = ('A'..).zip(names);
    let names: String = names
        .map(|(letter, name)| format!("{letter}: {name}; "))
        .collect();
    let share = share.to_string_lossy();
    format!(
        "{names}{}, Linux {}, {} processors, {}, {} rounds of {} s",
        ask("date".as_ref(), &["-u", "+%F"]),
        ask("uname".as_ref(), &["-r"]),
        thread::available_parallelism().map_or(0, NonZero::get),
        ask("findmnt".as_ref(), &["-n", "-o", "FSTYPE", "-T", &share]),
        options.rounds(),
        options.time().as_secs_f64(),
    )
}

fn write_files(options: &Options, about: &str, outcomes: &[Outcome], figures: &[Figure]) {
    let Some(output) = &options.output else {
        return;
    };
    fs::create_dir_all(output).expect("cannot make the directory of --output");
    let write = |name: &str, text: &str| {
        fs::write(output.join(name), text).expect("cannot write the results");
    };
    let tables = report::tables(outcomes, options.daemons.len());
    let figures_table = report::figures(figures);
    write("results.md", &format!("{about}\n{tables}{figures_table}"));
    write("results.json", &report::json(about, outcomes, figures));
    let [first, ..] = outcomes else { return };
    let setting = &first.case.setting;
    let is_other = |outcome: &Outcome| outcome.case.setting != *setting;
    let end = outcomes.iter().position(is_other);
    let outcomes = &outcomes[..end.unwrap_or(outcomes.len())];
    if options.daemons.len() > 1 {
        let subtitle = &format!("{about}, {}", setting.name);
        let cpu = Chart {
            title: "CPU time per operation, A to B: less is better",
            subtitle,
            metric: |sample| Some(sample.cpu_us_per_op),
            less_is_better: true,
        };
        write("cpu.svg", &cpu.draw(outcomes));
        let throughput = Chart {
            title: "Operations per second, A to B: more is better",
            subtitle,
            metric: |sample| Some(sample.ops_per_second),
            less_is_better: false,
        };
        write("throughput.svg", &throughput.draw(outcomes));
    }
}

fn measure(options: &Options, share: &Path, case: Case) -> Outcome {
    (case.workload.prepare)(share);
    let _slow_host = case.needs_root().then(|| share::mount_slow(share));
    let mut failures = vec![None; options.daemons.len()];
    let rounds = (0..options.rounds())
        .map(|round| run_round(options, share, &case, round, &mut failures))
        .collect();
    Outcome {
        rounds,
        failures,
        floor_us: floor::measure(case.workload, share, options.time()),
        case,
    }
}

/// One sample of each daemon that has not failed, in an order that changes from
/// round to round.
fn run_round(
    options: &Options,
    share: &Path,
    case: &Case,
    round: usize,
    failures: &mut [Option<String>],
) -> Vec<Option<Sample>> {
    let count = options.daemons.len();
    let mut samples = vec![None; count];
    for turn in 0..count {
        let index = (turn + round) % count;
        if failures[index].is_some() {
            continue;
        }
        let binary = &options.daemons[index];
        let sample = || sample(options, binary, share, case, round == 0);
        match attempt(sample) {
            Ok(sample) => samples[index] = sample,
            Err(reason) => failures[index] = Some(reason),
        }
    }
    samples
}

fn sample(
    options: &Options,
    binary: &Path,
    share: &Path,
    case: &Case,
    is_first: bool,
) -> Option<Sample> {
    let time = options.time();
    let daemon = start(options, binary, share, case)?;
    let mut sample = driver::measure(&daemon, case, time);
    drop(daemon);
    // Once is enough: this figure is steady.
    if is_first {
        let daemon = start(options, binary, share, case)?;
        sample.calls_per_op = driver::count_calls(&daemon, case, time / 2);
    }
    Some(sample)
}

/// Takes a measurement, or says why a daemon failed: what it does wrong surprises
/// the driver, which panics.
fn attempt<T>(measurement: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(measurement)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref().copied());
        text.unwrap_or("the benchmark says no more").to_owned()
    })
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
