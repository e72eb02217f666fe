//! Which cases are run: a preset, or every combination of what is asked for.

use clap::Args;

use crate::step::{Host, Kind, Workload};
use crate::workload::WORKLOADS;

/// One line of a table.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) workload: &'static Workload,
    pub(crate) setting: Setting,
    /// Requests in flight on each queue.
    pub(crate) depth: usize,
    pub(crate) queues: usize,
}

impl Case {
    pub(crate) fn needs_xattrs(&self) -> bool {
        self.workload.args.contains(&"--xattr")
    }

    /// For mounting a file system.
    pub(crate) fn needs_root(&self) -> bool {
        self.workload.host == Host::Slow
    }
}

/// How a daemon is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
}

impl Setting {
    /// Of options with their values; none of them is the default.
    fn new(options: &[(&str, &str)]) -> Self {
        let args: Vec<_> = options
            .iter()
            .filter(|(_, value)| *value != DEFAULT)
            .map(|(option, value)| format!("{option}={value}"))
            .collect();
        let name = if args.is_empty() {
            "default options".to_owned()
        } else {
            args.join(" ")
        };
        Self { name, args }
    }
}

/// A value that stands for leaving the option out.
const DEFAULT: &str = "default";

const POOL: &str = "--thread-pool-size";
const CACHE: &str = "--cache";
const HANDLES: &str = "--inode-file-handles";

/// What to measure. With any of the last five, every combination of them is
/// measured; otherwise all depths with the default options, and one option at
/// a time changed.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plan {
    /// Only workloads whose name contains one of these words; "start" and "inode
    /// table" are the figures that are no workloads
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,

    /// Requests kept in flight on each queue
    #[arg(long, value_delimiter = ',')]
    depth: Vec<usize>,

    /// Numbers of request queues
    #[arg(long, value_delimiter = ',')]
    queues: Vec<usize>,

    /// Values of --thread-pool-size; "default" leaves the option out
    #[arg(long, value_delimiter = ',')]
    pool: Vec<String>,

    /// Values of --cache; "default" leaves the option out
    #[arg(long, value_delimiter = ',')]
    cache: Vec<String>,

    /// Values of --inode-file-handles; "default" leaves the option out
    #[arg(long, value_delimiter = ',')]
    file_handles: Vec<String>,
}

/// A part of the plan: depths and queues with one setting.
struct Part {
    /// Only workloads over such a host, if it matters.
    host: Option<Host>,
    setting: Setting,
    depths: Vec<usize>,
    queues: Vec<usize>,
}

impl Part {
    fn new(options: &[(&str, &str)], depths: &[usize], queues: &[usize]) -> Self {
        Self {
            host: None,
            setting: Setting::new(options),
            depths: depths.to_vec(),
            queues: queues.to_vec(),
        }
    }

    fn over(self, host: Host) -> Self {
        Self {
            host: Some(host),
            ..self
        }
    }
}

impl Plan {
    pub(crate) fn cases(&self, quick: bool) -> Vec<Case> {
        let parts = if self.is_explicit() {
            self.combinations()
        } else if quick {
            vec![Part::new(&[], &[1, 32], &[1]).over(Host::Usual)]
        } else {
            let usual = |options: &[_], depths: &[_], queues: &[_]| {
                Part::new(options, depths, queues).over(Host::Usual)
            };
            // Where a thread that waits for the host serves nobody else.
            let slow = |options: &[_]| Part::new(options, &[4], &[1, 2, 4]).over(Host::Slow);
            vec![
                usual(&[], &[1, 4, 32], &[1]),
                usual(&[], &[32], &[2, 4]),
                slow(&[]),
                slow(&[(POOL, "0")]),
                usual(&[(POOL, "4")], &[1, 32], &[1]),
                usual(&[(CACHE, "never")], &[1, 32], &[1]),
                usual(&[(HANDLES, "never")], &[1, 32], &[1]),
            ]
        };
        parts
            .iter()
            .flat_map(|part| self.cases_of(part, quick))
            .collect()
    }

    /// Whether a figure that is no workload is wanted: asked for by its name, or
    /// as one of all.
    pub(crate) fn wants(&self, name: &str) -> bool {
        match self.only.as_slice() {
            [] => !self.is_explicit(),
            only => only.iter().any(|word| name.contains(word.as_str())),
        }
    }

    fn is_explicit(&self) -> bool {
        let numbers = [&self.depth, &self.queues];
        let values = [&self.pool, &self.cache, &self.file_handles];
        numbers.iter().any(|list| !list.is_empty()) || values.iter().any(|list| !list.is_empty())
    }

    fn combinations(&self) -> Vec<Part> {
        let or_default = |values: &[String]| match values {
            [] => vec![DEFAULT.to_owned()],
            values => values.to_vec(),
        };
        let or = |values: &[usize], otherwise: &[usize]| match values {
            [] => otherwise.to_vec(),
            values => values.to_vec(),
        };
        let mut parts = Vec::new();
        for pool in &or_default(&self.pool) {
            for cache in &or_default(&self.cache) {
                for handles in &or_default(&self.file_handles) {
                    parts.push(Part::new(
                        &[(POOL, pool), (CACHE, cache), (HANDLES, handles)],
                        &or(&self.depth, &[1, 32]),
                        &or(&self.queues, &[1]),
                    ));
                }
            }
        }
        parts
    }

    fn cases_of(&self, part: &Part, quick: bool) -> Vec<Case> {
        let is_wanted = |workload: &&Workload| {
            let is_named = |word: &String| workload.name.contains(word);
            (self.only.is_empty() || self.only.iter().any(is_named))
                && part.host.is_none_or(|host| host == workload.host)
        };
        let mut cases = Vec::new();
        for workload in WORKLOADS.iter().filter(is_wanted) {
            let depths = match workload.kind {
                Kind::Mixed(slots) => vec![slots],
                Kind::Once if quick => part.depths.last().copied().into_iter().collect(),
                Kind::Once | Kind::Cycle => part.depths.clone(),
            };
            for &queues in &part.queues {
                for &depth in &depths {
                    cases.push(Case {
                        workload,
                        setting: part.setting.clone(),
                        depth,
                        queues,
                    });
                }
            }
        }
        cases
    }
}
