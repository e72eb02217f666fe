//! The tables in Markdown, and the raw figures as JSON.

use std::fmt::Write;

use crate::Case;
use crate::counters::median;
use crate::driver::Sample;
use crate::single::Figure;

/// One figure of a sample; not every sample has every one.
pub(crate) type Metric = fn(&Sample) -> Option<f64>;

/// A group of columns: a value of each daemon.
struct Column {
    title: &'static str,
    json: &'static str,
    metric: Metric,
    /// Digits behind the point.
    digits: usize,
    /// Whether there is a column for the ratio of the first daemon to others.
    has_ratio: bool,
}

const COLUMNS: &[Column] = &[
    column(
        "op/s",
        "ops_per_second",
        |s| Some(s.ops_per_second),
        0,
        true,
    ),
    column("p50 µs", "p50_us", |s| Some(s.p50_us), 1, true),
    column("p99 µs", "p99_us", |s| Some(s.p99_us), 1, false),
    column(
        "CPU µs/op",
        "cpu_us_per_op",
        |s| Some(s.cpu_us_per_op),
        2,
        true,
    ),
    column(
        "system calls/op",
        "calls_per_op",
        |s| s.calls_per_op,
        2,
        false,
    ),
    column(
        "context switches/op",
        "switches_per_op",
        |s| Some(s.switches_per_op),
        2,
        false,
    ),
    column("RSS MiB", "rss_mib", |s| Some(s.rss_mib), 1, false),
];

const fn column(
    title: &'static str,
    json: &'static str,
    metric: Metric,
    digits: usize,
    has_ratio: bool,
) -> Column {
    Column {
        title,
        json,
        metric,
        digits,
        has_ratio,
    }
}

/// A case with everything that was measured of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) case: Case,
    /// Microseconds for one operation without a daemon.
    pub(crate) floor_us: f64,
    /// For each round, a sample of each daemon that can do it.
    pub(crate) rounds: Vec<Vec<Option<Sample>>>,
    /// Of each daemon, why it failed if it did.
    pub(crate) failures: Vec<Option<String>>,
}

impl Outcome {
    pub(crate) fn values(&self, daemon: usize, metric: Metric) -> Vec<f64> {
        let samples = self
            .rounds
            .iter()
            .filter_map(|round| round[daemon].as_ref());
        samples.filter_map(metric).collect()
    }

    /// Of the first daemon to another one, in each round.
    pub(crate) fn ratios(&self, other: usize, metric: Metric) -> Vec<f64> {
        let ratio = |round: &Vec<Option<Sample>>| {
            Some(metric(round[0].as_ref()?)? / metric(round[other].as_ref()?)?)
        };
        self.rounds.iter().filter_map(ratio).collect()
    }

    /// One line of the table.
    pub(crate) fn row(&self) -> String {
        let Case {
            workload,
            queues,
            depth,
            ..
        } = &self.case;
        let mut line = format!("| {} | {queues} | {depth} |", workload.name);
        for column in COLUMNS {
            for (daemon, failure) in self.failures.iter().enumerate() {
                line += &match failure {
                    Some(_) => " failed |".to_owned(),
                    None => cell(&self.values(daemon, column.metric), column.digits),
                };
            }
            for other in (1..self.failures.len()).filter(|_| column.has_ratio) {
                line += &cell(&self.ratios(other, column.metric), 2);
            }
        }
        line + &format!(" {:.2} |", self.floor_us)
    }

    /// What is to be said of daemons that failed.
    pub(crate) fn notes(&self) -> Vec<String> {
        let Case {
            workload,
            queues,
            depth,
            ..
        } = &self.case;
        let daemons = ('A'..).zip(&self.failures);
        let notes = daemons.filter_map(|(letter, failure)| {
            let failure = failure.as_ref()?;
            let name = workload.name;
            Some(format!(
                "{letter} failed at {name}, queues {queues}, depth {depth}: {failure}"
            ))
        });
        notes.collect()
    }

    fn json(&self) -> String {
        let Case {
            workload,
            setting,
            queues,
            depth,
        } = &self.case;
        let mut text = format!(
            "{{\"workload\": {:?}, \"setting\": {:?}, \"queues\": {queues}, \"depth\": {depth}, \
             \"floor_us\": {:.4}",
            workload.name, setting.name, self.floor_us
        );
        let failed: Vec<_> = self.failures.iter().map(Option::is_some).collect();
        write!(text, ", \"failed\": {failed:?}").unwrap();
        for column in COLUMNS {
            let lists: Vec<_> = (0..self.failures.len())
                .map(|daemon| format!("{:?}", self.values(daemon, column.metric)))
                .collect();
            write!(text, ", {:?}: [{}]", column.json, lists.join(", ")).unwrap();
        }
        text + "}"
    }
}

/// Begins the table of a setting.
pub(crate) fn head(setting: &str, daemons: usize) -> String {
    let mut head = "| workload | queues | depth |".to_owned();
    for column in COLUMNS {
        for letter in ('A'..).take(daemons) {
            write!(head, " {} {letter} |", column.title).unwrap();
        }
        for letter in ('A'..).take(daemons).skip(1).filter(|_| column.has_ratio) {
            write!(head, " A/{letter} |").unwrap();
        }
    }
    head += " floor µs |";
    let columns = head.matches('|').count() - 1;
    format!(
        "\n### {setting}\n\n{head}\n|---|{}",
        "---:|".repeat(columns - 1)
    )
}

/// A table for each setting, with notes below it.
pub(crate) fn tables(outcomes: &[Outcome], daemons: usize) -> String {
    let is_same = |a: &Outcome, b: &Outcome| a.case.setting == b.case.setting;
    let table = |outcomes: &[Outcome]| {
        let setting = &outcomes[0].case.setting.name;
        let rows: Vec<_> = outcomes.iter().map(Outcome::row).collect();
        let notes = outcomes.iter().flat_map(Outcome::notes);
        let notes: String = notes.map(|note| format!("\n* {note}\n")).collect();
        format!("{}\n{}\n{notes}", head(setting, daemons), rows.join("\n"))
    };
    outcomes.chunk_by(is_same).map(table).collect()
}

/// All figures of all rounds; each list has one list for each daemon.
pub(crate) fn json(about: &str, outcomes: &[Outcome], figures: &[Figure]) -> String {
    let cases: Vec<_> = outcomes.iter().map(Outcome::json).collect();
    let figure = |figure: &Figure| {
        let floor = figure
            .floor
            .map_or("null".to_owned(), |floor| floor.to_string());
        format!(
            "{{\"figure\": {:?}, \"floor\": {floor}, \"values\": {:?}}}",
            figure.name, figure.daemons
        )
    };
    let figures: Vec<_> = figures.iter().map(figure).collect();
    format!(
        "{{\"about\": {about:?},\n\"cases\": [\n{}\n],\n\"figures\": [\n{}\n]}}\n",
        cases.join(",\n"),
        figures.join(",\n")
    )
}

/// The table of figures that are no workload; nothing where there are none.
pub(crate) fn figures(figures: &[Figure]) -> String {
    let [first, ..] = figures else {
        return String::new();
    };
    let letters: Vec<_> = ('A'..).take(first.daemons.len()).collect();
    let mut text = "\n### single figures\n\n| |".to_owned();
    for letter in &letters {
        write!(text, " {letter} |").unwrap();
    }
    write!(
        text,
        " floor |\n|---|{}\n",
        "---:|".repeat(letters.len() + 1)
    )
    .unwrap();
    for Figure {
        name,
        daemons,
        floor,
    } in figures
    {
        let cells: String = daemons.iter().map(|values| cell(values, 2)).collect();
        let floor = cell(floor.as_slice(), 2);
        writeln!(text, "| {name} |{cells}{floor}").unwrap();
    }
    text
}

/// The median, and how far the values lie from it in percent.
fn cell(values: &[f64], digits: usize) -> String {
    let Some(median) = median(values) else {
        return " n/a |".to_owned();
    };
    let far = values.iter().map(|value| (value - median).abs());
    let far = far.fold(0.0, f64::max);
    if values.len() < 2 || median == 0.0 {
        return format!(" {median:.digits$} |");
    }
    format!(" {median:.digits$} ±{:.0}% |", far / median * 100.0)
}
