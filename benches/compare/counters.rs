//! What the host's kernel counts of a daemon: processor time, context switches,
//! memory, system calls.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::common::daemon::Daemon;

/// Figures that only ever grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counters {
    pub(crate) cpu_ns: u64,
    pub(crate) context_switches: u64,
}

impl Counters {
    pub(crate) fn of(daemon: &Daemon) -> Self {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.serving_pid())).unwrap();
        let statuses = tasks.filter_map(|task| {
            // A thread may end between the listing and the reading.
            fs::read_to_string(task.unwrap().path().join("status")).ok()
        });
        Self {
            cpu_ns: daemon.cpu_time_ns(),
            context_switches: statuses.map(|status| switches(&status)).sum(),
        }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns - before.cpu_ns,
            context_switches: self
                .context_switches
                .saturating_sub(before.context_switches),
        }
    }
}

fn switches(status: &str) -> u64 {
    let lines = status
        .lines()
        .filter(|line| line.contains("ctxt_switches:"));
    lines
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .map(|number| number.parse::<u64>().unwrap())
        .sum()
}

/// `perf stat` that counts the system calls of a process.
#[derive(Debug)]
pub(crate) struct CallCounter {
    perf: Child,
    control: File,
    answers: File,
    _dir: TempDir,
}

impl CallCounter {
    /// `None` where there is no `perf`, or it may not count.
    pub(crate) fn start(daemon: &Daemon) -> Option<Self> {
        let dir = TempDir::with_prefix("virtiofsd-perf-").unwrap();
        let fifo = |name: &str| {
            let path = dir.path().join(name);
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from(0o600), 0).unwrap();
            // Open for both, so that nobody waits for the other side.
            let file = OpenOptions::new().read(true).write(true).open(&path);
            (file.unwrap(), path)
        };
        let ((control, control_path), (answers, answers_path)) = (fifo("control"), fifo("answers"));
        let control_option = format!("fifo:{},{}", control_path.display(), answers_path.display());
        let perf = Command::new("perf")
            .args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-D", "-1"])
            .args(["--control", &control_option, "-p"])
            .arg(daemon.serving_pid().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let mut counter = Self {
            perf,
            control,
            answers,
            _dir: dir,
        };
        counter.say("enable\n").then_some(counter)
    }

    /// The system calls since the start.
    pub(crate) fn stop(mut self) -> Option<u64> {
        self.say("disable\n");
        kill_process(Pid::from_child(&self.perf), Signal::INT).ok()?;
        let output = self.perf.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines()
            .find(|line| line.contains("sys_enter"))
            .and_then(|line| line.split(',').next())
            .and_then(|number| number.parse().ok())
    }

    /// Gives a command and waits until it is carried out.
    fn say(&mut self, command: &str) -> bool {
        self.control.write_all(command.as_bytes()).unwrap();
        let has_answer = crate::common::wait_readable(&self.answers, crate::common::PATIENCE);
        has_answer && self.answers.read(&mut [0; 16]).is_ok()
    }
}

/// The middle of some values; the mean of both where there are two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some(f64::midpoint(sorted[low], sorted[high]))
}
