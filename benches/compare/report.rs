//! The table: medians over the rounds, in Markdown.

use std::path::PathBuf;

use crate::Case;
use crate::driver::Sample;

type Metric = fn(&Sample) -> f64;

/// Columns: title, value, digits behind the point.
const METRICS: &[(&str, Metric, usize)] = &[
    ("op/s", |sample| sample.ops_per_second, 0),
    ("p50 µs", |sample| sample.p50_us, 1),
    ("p99 µs", |sample| sample.p99_us, 1),
    ("CPU µs/op", |sample| sample.cpu_us_per_op, 2),
];

/// Says which daemon is which, and begins the table.
pub(crate) fn print_head(daemons: &[PathBuf]) {
    for (letter, daemon) in ('A'..).zip(daemons) {
        println!("{letter}: {}", daemon.display());
    }
    println!();
    let mut head = "| workload | queues | depth |".to_owned();
    for (title, ..) in METRICS {
        for (letter, _) in ('A'..).zip(daemons) {
            head += &format!(" {title} {letter} |");
        }
        for (letter, _) in ('A'..).zip(daemons).skip(1) {
            head += &format!(" A/{letter} |");
        }
    }
    println!("{head}");
    let columns = head.matches('|').count() - 1;
    println!("|---|{}", "---:|".repeat(columns - 1));
}

/// One case with the samples of all rounds and daemons.
pub(crate) struct Row<'a> {
    case: Case,
    rounds: &'a [Vec<Option<Sample>>],
}

impl<'a> Row<'a> {
    pub(crate) fn new(case: Case, rounds: &'a [Vec<Option<Sample>>]) -> Self {
        Self { case, rounds }
    }

    pub(crate) fn print(&self) {
        let Case {
            workload,
            queues,
            depth,
        } = self.case;
        let mut line = format!("| {} | {queues} | {depth} |", workload.name);
        let daemons = self.rounds.first().map_or(0, Vec::len);
        for &(_, metric, digits) in METRICS {
            for daemon in 0..daemons {
                line += &cell(self.values(daemon, metric), digits);
            }
            for other in 1..daemons {
                line += &cell(self.ratios(other, metric), 2);
            }
        }
        println!("{line}");
    }

    fn values(&self, daemon: usize, metric: Metric) -> Vec<f64> {
        self.rounds
            .iter()
            .filter_map(|round| round[daemon].as_ref().map(metric))
            .collect()
    }

    /// Of the first daemon to another one, in each round.
    fn ratios(&self, other: usize, metric: Metric) -> Vec<f64> {
        let ratio = |round: &Vec<Option<Sample>>| {
            Some(metric(round[0].as_ref()?) / metric(round[other].as_ref()?))
        };
        self.rounds.iter().filter_map(ratio).collect()
    }
}

fn cell(mut values: Vec<f64>, digits: usize) -> String {
    if values.is_empty() {
        return " n/a |".to_owned();
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    };
    format!(" {median:.digits$} |")
}
