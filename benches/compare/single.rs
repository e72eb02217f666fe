//! Figures that are no workload: how long a start takes, and what a lookup costs
//! in a small table of inodes and in a large one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, StatxFlags, statx};
use tempfile::TempDir;

use crate::common::Random;
use crate::common::daemon::Daemon;
use crate::common::fuse_client::Client;
use crate::common::wire::ROOT;
use crate::plan::{Case, Setting};
use crate::requests::step_lookup;
use crate::step::Direct;
use crate::step::{Host, Kind, Slot, Step, Workload};
use crate::tree::{c_name, open_dir};
use crate::{attempt, driver};

const STARTS: usize = 50;
const DEPTH: usize = 32;
/// Names that each slot asks for, over and over.
const NAMES_PER_SLOT: usize = 2048;

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    /// All values of each daemon; none of one that failed.
    pub(crate) daemons: Vec<Vec<f64>>,
    /// Without a daemon.
    pub(crate) floor: Option<f64>,
}

/// From starting the program to when it says that it takes connections, in the
/// namespace sandbox; beside that a program that does nothing.
pub(crate) fn start(binaries: &[PathBuf], share: &Path) -> Figure {
    let once = |binary: &PathBuf| {
        let dir = TempDir::with_prefix("virtiofsd-bench-").unwrap();
        let socket = dir.path().join("fs.sock");
        let begun = Instant::now();
        let _daemon = Daemon::start_on(binary, &socket, share, &["--sandbox=namespace"]);
        begun.elapsed()
    };
    let nothing = || {
        let begun = Instant::now();
        std::process::Command::new("true").status().unwrap();
        begun.elapsed()
    };
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let mut daemons = vec![Vec::new(); binaries.len()];
    let mut floor = Vec::new();
    for _ in 0..STARTS {
        for (values, binary) in daemons.iter_mut().zip(binaries) {
            values.extend(attempt(|| milliseconds(once(binary))).ok());
        }
        floor.push(milliseconds(nothing()));
    }
    Figure {
        name: "from exec to listening, ms".to_owned(),
        daemons,
        floor: crate::counters::median(&floor),
    }
}

/// What a lookup costs where the daemon knows few names, and where it knows many;
/// then the ratio of the two, with what the host takes and without.
pub(crate) fn inode_tables(
    binaries: &[PathBuf],
    share: &Path,
    rounds: usize,
    time: Duration,
) -> Vec<Figure> {
    let mut figures: Vec<_> = [&FEW, &MANY]
        .map(|table| look_ups(table, binaries, share, rounds, time))
        .into();
    let [few, many] = &figures[..] else {
        return figures;
    };
    let growth = |less: f64, more: f64| {
        let grown = |(few, many): (&Vec<f64>, &Vec<f64>)| {
            let pairs = few.iter().zip(many);
            pairs
                .map(|(few, many)| (many - more) / (few - less))
                .collect()
        };
        few.daemons.iter().zip(&many.daemons).map(grown).collect()
    };
    let floors = (few.floor.unwrap_or(0.0), many.floor.unwrap_or(0.0));
    let grown = [
        Figure {
            name: "1,000,000 names to 1,000".to_owned(),
            daemons: growth(0.0, 0.0),
            floor: Some(floors.1 / floors.0),
        },
        Figure {
            name: "the same without the host's part".to_owned(),
            daemons: growth(floors.0, floors.1),
            floor: None,
        },
    ];
    figures.extend(grown);
    figures
}

const fn table(
    name: &'static str,
    prepare: fn(&Path),
    steps: fn(&mut Client, Slot) -> Vec<Step>,
    direct: fn(&Path) -> Direct,
) -> Workload {
    Workload {
        name,
        prepare,
        steps,
        direct,
        kind: Kind::Cycle,
        host: Host::Usual,
        args: &[],
    }
}

static FEW: Workload = table(
    "lookup among 1,000 names, CPU µs",
    |share| prepare(share, 1_000),
    |client, slot| steps(client, slot, 1_000),
    |share| direct(share, 1_000),
);

static MANY: Workload = table(
    "lookup among 1,000,000 names, CPU µs",
    |share| prepare(share, 1_000_000),
    |client, slot| steps(client, slot, 1_000_000),
    |share| direct(share, 1_000_000),
);

fn look_ups(
    workload: &'static Workload,
    binaries: &[PathBuf],
    share: &Path,
    rounds: usize,
    time: Duration,
) -> Figure {
    (workload.prepare)(share);
    let case = Case {
        workload,
        setting: Setting::default(),
        depth: DEPTH,
        queues: 1,
    };
    let mut daemons = vec![Vec::new(); binaries.len()];
    for _ in 0..rounds {
        for (values, binary) in daemons.iter_mut().zip(binaries) {
            let sample = || {
                let daemon = Daemon::start_binary(binary, share, &[]);
                driver::measure(&daemon, &case, time).cpu_us_per_op
            };
            values.extend(attempt(sample).ok());
        }
    }
    Figure {
        name: workload.name.to_owned(),
        daemons,
        floor: Some(host_time(&mut (workload.direct)(share), time)),
    }
}

/// Processor time of the host for one operation, in microseconds.
fn host_time(direct: &mut Direct, time: Duration) -> f64 {
    let run = |direct: &mut Direct, time| {
        let (start, before) = (Instant::now(), thread_time_ns());
        let mut operations = 0;
        while start.elapsed() < time {
            operations += direct();
        }
        (thread_time_ns() - before) as f64 / 1e3 / operations as f64
    };
    run(direct, time / 5);
    run(direct, time)
}

fn thread_time_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn folder(count: u64) -> String {
    format!("names-{count}")
}

fn name(index: u64) -> String {
    format!("name-{index:06}")
}

fn prepare(share: &Path, count: u64) {
    let folder = share.join(folder(count));
    fs::create_dir(&folder).unwrap();
    for index in 0..count {
        File::create(folder.join(name(index))).unwrap();
    }
}

/// The names that a slot asks for, the same ones each time.
fn random_names(slot: usize, count: u64) -> impl Iterator<Item = String> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (slot as u64 + 1) << 7);
    (0..NAMES_PER_SLOT).map(move |_| name(random.below(count)))
}

fn steps(client: &mut Client, slot: Slot, count: u64) -> Vec<Step> {
    let node = client.lookup(ROOT, folder(count)).unwrap().nodeid;
    if slot.number == 0 {
        // All names become known.
        let fh = client.opendir(node).unwrap().fh;
        let all = client.read_whole_dir(node, fh, 128 << 10, true).unwrap();
        assert!(all.len() as u64 >= count);
    }
    let names = random_names(slot.number, count);
    names.map(|name| step_lookup(node, &name)).collect()
}

fn direct(share: &Path, count: u64) -> Direct {
    let dir = open_dir(&share.join(folder(count)));
    let names: Vec<_> = (0..DEPTH)
        .flat_map(|slot| random_names(slot, count))
        .map(|name| c_name(&name))
        .collect();
    Box::new(move || {
        for name in &names {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            statx(&dir, name, flags, StatxFlags::BASIC_STATS).unwrap();
        }
        names.len() as u64
    })
}
