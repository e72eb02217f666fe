//! A daemon process: start, wait for its log and its end, measure.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};
use tempfile::TempDir;

use super::{PATIENCE, wait_readable};

/// What it logs when its socket takes connections.
pub const WAITING: &str = "Waiting for vhost-user socket connection";

/// The daemon under test: `$VIRTIOFSD`, or the one cargo just built.
pub fn default_binary() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_virtiofsd");
    env::var_os("VIRTIOFSD")
        .unwrap_or_else(|| built.into())
        .into()
}

/// Copies the daemon to a place that others may reach.
pub fn copy_binary(to: &Path) {
    // By a program: a process that another test starts meanwhile would have the
    // file open for writing for a moment, and then it cannot be executed.
    let copied = Command::new("cp").arg(default_binary()).arg(to).status();
    assert!(copied.unwrap().success());
}

/// Arguments that every daemon of a test crate gets.
const CRATE_ARGS: &[&str] = match env!("CARGO_CRATE_NAME").as_bytes() {
    b"operations_in_pool" => &["--thread-pool-size", "4"],
    _ => &[],
};

/// A running daemon. Dropping it kills the process.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: Arc<Log>,
    log_reader: Option<JoinHandle<()>>,
    // The folder of the socket.
    _dir: Option<TempDir>,
}

impl Daemon {
    /// Starts the default binary over `shared`, see [`Self::start_on`].
    pub fn start(shared: &Path, args: &[&str]) -> Self {
        Self::start_binary(&default_binary(), shared, &[CRATE_ARGS, args].concat())
    }

    /// Starts `binary` over `shared`, see [`Self::start_on`].
    pub fn start_binary(binary: &Path, shared: &Path, args: &[&str]) -> Self {
        let dir = TempDir::with_prefix("virtiofsd-test-").unwrap();
        let socket = dir.path().join("fs.sock");
        let mut daemon = Self::start_on(binary, &socket, shared, args);
        daemon._dir = Some(dir);
        daemon
    }

    /// Starts `binary` with its socket at `socket`, without a sandbox unless
    /// `$VIRTIOFSD_TEST_SANDBOX` names one; a system call that its filter does
    /// not know ends it with SIGSYS.
    pub fn start_on(binary: &Path, socket: &Path, shared: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.arg("--socket-path").arg(socket);
        command.arg("--shared-dir").arg(shared);
        let sandbox = env::var("VIRTIOFSD_TEST_SANDBOX");
        command.args([
            "--sandbox",
            sandbox.as_deref().unwrap_or("none"),
            "--seccomp",
            "trap",
        ]);
        command.args(args);
        let is_settled = |arg: &&str| arg.contains("translate") || arg.contains("posix-acl");
        if !geteuid().is_root() && !args.iter().any(is_settled) {
            // The guest's root is whoever runs the test.
            let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
            command.arg(format!("--translate-uid=map:0:{uid}:1"));
            command.arg(format!("--translate-gid=map:0:{gid}:1"));
        }
        let mut daemon = Self::spawn(command);
        daemon.socket = socket.into();
        daemon.expect_log(WAITING);
        daemon
    }

    /// Runs any command line and collects its log; waits for nothing.
    pub fn spawn(command: Command) -> Self {
        Self::spawn_with_stdin(command, Stdio::null())
    }

    /// The same with a standard input.
    pub fn spawn_with_stdin(mut command: Command, stdin: impl Into<Stdio>) -> Self {
        command.stdin(stdin).stderr(Stdio::piped());
        command.env_remove("RUST_LOG");
        let name = command.get_program().to_owned();
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name:?}: {error}"));
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().unwrap();
        let log_reader = Some(Log::collect(log.clone(), stderr));
        Self {
            child,
            socket: PathBuf::new(),
            log,
            log_reader,
            _dir: None,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that serves: the one in the sandbox, if there is one.
    pub fn serving_pid(&self) -> u32 {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let child = children.unwrap_or_default();
        child.trim().parse().unwrap_or(pid)
    }

    /// The lines logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.state.lock().unwrap().lines.clone()
    }

    /// The lines logged so far that contain `text`.
    pub fn log_count(&self, text: &str) -> usize {
        self.log().iter().filter(|line| line.contains(text)).count()
    }

    /// Warnings and errors logged so far.
    pub fn complaints(&self) -> Vec<String> {
        self.log()
            .into_iter()
            .filter(|line| is_complaint(line))
            .collect()
    }

    /// Waits for a line that contains `text`.
    pub fn expect_log(&self, text: &str) -> String {
        let first = |lines: &[String]| lines.iter().find(|line| line.contains(text)).cloned();
        match self.log.wait_for(first) {
            Some(line) => line,
            None => panic!(
                "the daemon never logged {text:?}; it logged {:#?}",
                self.log()
            ),
        }
    }

    /// Waits for so many lines that contain `text`.
    pub fn expect_log_count(&self, text: &str, count: usize) {
        let all = |lines: &[String]| {
            let found = lines.iter().filter(|line| line.contains(text)).count();
            (found >= count).then_some(())
        };
        if self.log.wait_for(all).is_none() {
            panic!("{text:?} was not logged {count} times: {:#?}", self.log());
        }
    }

    /// Waits until it takes connections; false if it ends instead.
    pub fn starts(&self) -> bool {
        let first = |lines: &[String]| lines.iter().find(|line| line.contains(WAITING)).cloned();
        self.log.wait_for(first).is_some()
    }

    /// Waits for one more warning or error than `seen`; gives the new one.
    pub fn expect_complaint_after(&self, seen: usize) -> String {
        let nth = |lines: &[String]| {
            lines
                .iter()
                .filter(|line| is_complaint(line))
                .nth(seen)
                .cloned()
        };
        let found = self.log.wait_for(nth);
        found.unwrap_or_else(|| panic!("the daemon never complained; it logged {:#?}", self.log()))
    }

    /// Waits for the process to end by itself, and for the end of its log.
    pub fn wait(&mut self) -> ExitStatus {
        if self.child.try_wait().unwrap().is_none() {
            let pid = Pid::from_child(&self.child);
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            assert!(
                wait_readable(&pidfd, PATIENCE),
                "the daemon does not end; it logged {:#?}",
                self.log()
            );
        }
        let status = self.child.wait().unwrap();
        if let Some(reader) = self.log_reader.take() {
            reader.join().unwrap();
        }
        status
    }

    /// Has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Nanoseconds on a processor, all threads, children included.
    pub fn cpu_time_ns(&self) -> u64 {
        process_cpu_time_ns(self.pid())
    }

    /// Bytes of memory in use.
    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// Waits until no more than `most` descriptors are open: what a thread used for
    /// a request it closes behind the answer.
    #[track_caller]
    pub fn expect_open_fds(&self, most: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let open = self.open_fds();
            if open <= most {
                return;
            }
            assert!(Instant::now() < deadline, "{open} descriptors, not {most}");
            thread::yield_now();
        }
    }

    /// Number of open descriptors; 0 where the kernel does not show them, as it
    /// does to root only.
    pub fn open_fds(&self) -> usize {
        if !geteuid().is_root() {
            return 0;
        }
        fs::read_dir(self.proc("fd")).unwrap().count()
    }

    fn proc(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.serving_pid()).into()
    }
}

fn is_complaint(line: &str) -> bool {
    line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("panicked")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Failing means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("log of daemon {}: {:#?}", self.pid(), self.log());
        }
    }
}

/// Run time of every thread of a process and of its children, by the
/// scheduler's own clock.
fn process_cpu_time_ns(pid: u32) -> u64 {
    let mut sum = 0;
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    for task in tasks {
        let task = task.unwrap().path();
        sum += first_number(&task.join("schedstat"));
        let children = fs::read_to_string(task.join("children")).unwrap_or_default();
        let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        sum += children.map(process_cpu_time_ns).sum::<u64>();
    }
    sum
}

// A thread may end between the listing and the reading.
fn first_number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .next()
        .map_or(0, |word| word.parse().unwrap())
}

/// The lines of a daemon's standard error, as they come.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn collect(log: Arc<Self>, stderr: ChildStderr) -> JoinHandle<()> {
        thread::spawn(move || {
            let mut reader = BufReader::new(stderr);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                log.state.lock().unwrap().lines.push(text);
                log.changed.notify_all();
                line.clear();
            }
            log.state.lock().unwrap().ended = true;
            log.changed.notify_all();
        })
    }

    fn wait_for<T>(&self, find: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(found) = find(&state.lines) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

/// A command line's parts, for [`Daemon::spawn`].
pub fn command(binary: &Path, args: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(binary);
    command.args(args);
    command
}
