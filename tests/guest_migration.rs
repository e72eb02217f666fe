//! A real guest that moves from QEMU to QEMU while it works in the share, from
//! daemon to daemon, the reference's included. `tests/vm/cases/migrate.pl` is
//! what it does and how it checks; here it is moved about.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, inotify};
use tempfile::TempDir;

use common::daemon::{Daemon, default_binary};
use common::{cache, references, wait_readable};

/// How long a step may take; the guest is emulated, and others may be at work.
const PATIENCE: Duration = Duration::from_secs(120);

/// One guest at a time: each keeps two processors busy.
static MACHINE: Mutex<()> = Mutex::new(());

/// Rounds that the guest is to have done between two moves.
const ROUNDS: u64 = 5;

fn tool(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm");
    tests.join(name)
}

fn prepare() {
    for name in ["prepare", "newer-qemu"] {
        let status = Command::new(tool(name)).stdin(Stdio::null()).status();
        assert!(status.unwrap().success(), "tests/vm/{name} failed");
    }
}

/// A QEMU with a daemon of its own.
struct Machine {
    qemu: Child,
    monitor: Monitor,
    daemon: Daemon,
    /// Its sockets, console and the guest's output.
    dir: TempDir,
}

/// The machine protocol of QEMU (QMP).
struct Monitor {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    /// What came before the answer to a command.
    earlier: VecDeque<String>,
}

impl Machine {
    /// Starts one; `incoming` waits for a guest instead of booting.
    fn start(daemon: Daemon, job: &Path, incoming: bool) -> Self {
        let dir = TempDir::with_prefix("virtiofsd-qemu-").unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let images = cache().join("kernel-6.12");
        let job_len = fs::metadata(job).unwrap().len();
        let mut qemu = Command::new(cache().join("newer-qemu/run"));
        let mut add = |argument: &str, value: &str| {
            qemu.args([argument, value]);
        };
        add("-machine", "q35");
        add("-accel", "tcg,thread=multi");
        add("-cpu", "max,la57=off");
        add("-m", "320");
        let memory = "memory-backend-memfd,id=memory,size=320M,share=on";
        add("-object", memory);
        add("-numa", "node,memdev=memory");
        add("-display", "none");
        add("-kernel", &images.join("vmlinuz").display().to_string());
        let initramfs = images.join("initramfs.cpio");
        add("-initrd", &initramfs.display().to_string());
        let append = "console=ttyS0 panic=-1 mitigations=off tsc=reliable \
                      random.trust_cpu=on quiet guest.root=disk";
        add("-append", &format!("{append} guest.job={job_len}"));
        add("-serial", &format!("file:{}", at("console.log")));
        let socket = daemon.socket().display();
        add("-chardev", &format!("socket,id=fs,path={socket}"));
        let share = "vhost-user-fs-pci,chardev=fs,tag=share,queue-size=1024";
        add("-device", share);
        let image = cache().join("root/image");
        let drive = "if=none,id=root,format=raw,readonly=on";
        add("-drive", &format!("{drive},file={}", image.display()));
        add("-device", "virtio-blk-pci,drive=root");
        add("-device", "virtio-serial-pci");
        for name in ["result", "stdout", "stderr", "job"] {
            let back = match name {
                // A guest that comes in has read its job.
                "job" if incoming => "null,id=job".to_owned(),
                "job" => format!("pipe,id=job,path={}", at("job")),
                _ => format!("file,id={name},path={}", at(name)),
            };
            add("-chardev", &back);
            add(
                "-device",
                &format!("virtserialport,chardev={name},name={name}"),
            );
        }
        let listener = UnixListener::bind(at("qmp")).unwrap();
        add("-qmp", &format!("unix:{}", at("qmp")));
        if incoming {
            add("-incoming", "defer");
        } else {
            for end in ["job.in", "job.out"] {
                let mode = Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(CWD, at(end), FileType::Fifo, mode, 0).unwrap();
            }
        }
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        let log = File::create(dir.path().join("qemu.log")).unwrap();
        let qemu = qemu.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        if !incoming {
            fs::write(dir.path().join("job.in"), fs::read(job).unwrap()).unwrap();
        }
        let mut monitor = Monitor::accept(&listener);
        if incoming {
            monitor.migrate("migrate-incoming", &at("incoming"));
        }
        Self {
            qemu,
            monitor,
            daemon,
            dir,
        }
    }

    /// Moves the guest to a new QEMU with `daemon`.
    fn migrate(mut self, daemon: Daemon, job: &Path) -> Self {
        let mut target = Self::start(daemon, job, true);
        let begin = Instant::now();
        self.monitor.migrate("migrate", &target.incoming());
        if let Err(event) = self.monitor.wait_for_migration() {
            self.fail(&event);
        }
        if target.monitor.wait_for_migration().is_err() {
            target.fail("the incoming side failed");
        }
        println!("moved in {:.1?}", begin.elapsed());
        self.monitor.command(r#"{"execute":"quit"}"#);
        assert!(self.qemu.wait().unwrap().success());
        assert!(self.daemon.wait().success(), "{:#?}", self.daemon.log());
        target
    }

    /// Begins to move the guest to a new QEMU with `daemon` and then does not.
    fn migrate_and_cancel(&mut self, daemon: Daemon, job: &Path) {
        let mut target = Self::start(daemon, job, true);
        let slow = r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":4096}}"#;
        self.monitor.command(slow);
        self.monitor.migrate("migrate", &target.incoming());
        self.monitor.command(r#"{"execute":"migrate_cancel"}"#);
        assert!(self.monitor.wait_for_migration().is_err());
        let fast = slow.replace("4096", "1000000000");
        self.monitor.command(&fast);
        target.qemu.kill().unwrap();
        target.qemu.wait().unwrap();
    }

    /// Where it waits for a guest.
    fn incoming(&self) -> String {
        self.dir.path().join("incoming").display().to_string()
    }

    /// The guest is done; gives what it printed.
    fn finish(mut self) -> String {
        let status = self.qemu.wait().unwrap();
        let output = |name: &str| {
            let bytes = fs::read(self.dir.path().join(name)).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        if !status.success() || output("result") != "exit 0\n" {
            self.fail(&output("stderr"));
        }
        output("stdout")
    }

    fn fail(&self, why: &str) -> ! {
        let console = fs::read(self.dir.path().join("console.log")).unwrap();
        let qemu = fs::read_to_string(self.dir.path().join("qemu.log")).unwrap();
        panic!(
            "{why}\n--- qemu: {qemu}\n--- console: {}\n--- daemon: {:#?}",
            String::from_utf8_lossy(&console),
            self.daemon.log()
        );
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Failing means that it has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Monitor {
    fn accept(listener: &UnixListener) -> Self {
        assert!(wait_readable(listener, PATIENCE), "QEMU does not start");
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut monitor = Self {
            stream,
            lines,
            earlier: VecDeque::new(),
        };
        monitor.command(r#"{"execute":"qmp_capabilities"}"#);
        let events = r#"{"execute":"migrate-set-capabilities","arguments":
            {"capabilities":[{"capability":"events","state":true}]}}"#;
        monitor.command(events);
        monitor
    }

    fn command(&mut self, json: &str) {
        self.stream.write_all(json.as_bytes()).unwrap();
        loop {
            let line = self.line();
            if line.contains("\"return\"") {
                return;
            }
            assert!(!line.contains("\"error\""), "{json}: {line}");
            self.earlier.push_back(line);
        }
    }

    fn migrate(&mut self, command: &str, socket: &str) {
        self.earlier.clear();
        let uri = format!(r#"{{"uri":"unix:{socket}"}}"#);
        let json = format!(r#"{{"execute":"{command}","arguments":{uri}}}"#);
        self.command(&json);
    }

    /// Waits for the end of a migration; an error is how it ended otherwise.
    fn wait_for_migration(&mut self) -> Result<(), String> {
        loop {
            let line = self.earlier.pop_front().unwrap_or_else(|| self.line());
            let ends = |end| line.contains(&format!("\"status\": \"{end}\""));
            if ends("completed") {
                return Ok(());
            }
            if ends("failed") || ends("cancelled") {
                return Err(line);
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).unwrap();
        assert!(read > 0, "QEMU went away");
        line
    }
}

/// Tells of files that are made in a folder.
struct Made(rustix::fd::OwnedFd);

impl Made {
    fn watch(folder: &Path) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).unwrap();
        let made = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, folder, made).unwrap();
        Self(fd)
    }

    /// Waits until there is something new.
    fn wait(&self) {
        assert!(wait_readable(&self.0, PATIENCE), "nothing was made");
        let mut buffer = [0; 4096];
        while rustix::io::read(&self.0, &mut buffer).is_ok() {}
    }
}

/// A guest that works in a folder.
struct Work {
    share: TempDir,
    job: PathBuf,
    _job_dir: TempDir,
}

impl Work {
    fn new(arguments: &[&str]) -> Self {
        let share = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let dir = TempDir::with_prefix("virtiofsd-job-").unwrap();
        let put = |name: &str, content: &[u8]| fs::write(dir.path().join(name), content).unwrap();
        put("init", &fs::read(tool("guest/init")).unwrap());
        put("script", &fs::read(tool("cases/migrate.pl")).unwrap());
        let command = [&["perl", "/run/job/script"], arguments].concat();
        let command: String = command.iter().map(|word| format!("{word}\0")).collect();
        put("command", command.as_bytes());
        put(
            "settings",
            b"root=disk\ninteractive=\nmount_options=rw\nterm=dumb\nrows=\ncolumns=\n",
        );
        let job = dir.path().join("job.tar");
        let status = Command::new("tar")
            .args(["--create", "--owner=0", "--group=0", "--mode=a+rx", "-C"])
            .arg(dir.path())
            .arg("-f")
            .arg(&job)
            .args(["init", "script", "command", "settings"])
            .status();
        assert!(status.unwrap().success());
        Self {
            share,
            job,
            _job_dir: dir,
        }
    }

    /// Waits until the guest has done some more rounds.
    fn go_on(&self) {
        let made = Made::watch(self.share.path());
        let progress = self.share.path().join("progress");
        let rounds = || -> u64 {
            let text = fs::read_to_string(&progress).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let until = rounds() + ROUNDS;
        while rounds() < until {
            made.wait();
        }
    }

    /// The guest comes to its end; gives what it printed.
    fn stop(self, machine: Machine) -> String {
        fs::write(self.share.path().join("stop"), "").unwrap();
        machine.finish()
    }

    fn daemon(&self, binary: &Path, args: &[&str]) -> Daemon {
        Daemon::start_binary(binary, self.share.path(), args)
    }

    /// Moves a guest along a way of daemons, from the first one on.
    fn travel(self, way: &[(PathBuf, Vec<&str>)]) {
        let mut way = way.iter().map(|(binary, args)| self.daemon(binary, args));
        let mut machine = Machine::start(way.next().unwrap(), &self.job, false);
        self.go_on();
        for daemon in way {
            machine = machine.migrate(daemon, &self.job);
            self.go_on();
        }
        println!("{}", self.stop(machine));
    }
}

#[test]
fn a_guest_at_work_moves_between_daemons_of_ours() {
    let _turn = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    prepare();
    let work = Work::new(&["nameless"]);
    let binary = default_binary();
    let args = [
        "--sandbox=namespace",
        "--modcaps=+dac_read_search",
        // A removed file is among what the guest has open.
        "--migration-mode=file-handles",
    ];
    let start = || work.daemon(&binary, &args);
    let mut machine = Machine::start(start(), &work.job, false);
    work.go_on();
    machine.migrate_and_cancel(start(), &work.job);
    work.go_on();
    for _ in 0..2 {
        machine = machine.migrate(start(), &work.job);
        work.go_on();
    }
    println!("{}", work.stop(machine));
}

#[test]
fn a_guest_at_work_moves_from_the_reference_and_back() {
    let _turn = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    prepare();
    let references = references();
    let theirs = |version: &str| {
        let found = references.iter().find(|(name, _)| name == version);
        found.unwrap().1.clone()
    };
    let ours = default_binary();
    // The reference loses files that were removed until the guest forgets them.
    let paths = vec![
        "--migration-confirm-paths",
        "--migration-on-error=guest-error",
    ];
    Work::new(&[]).travel(&[
        (theirs("1.13.3"), paths.clone()),
        (ours.clone(), paths.clone()),
        (theirs("1.14.0"), paths.clone()),
        (ours.clone(), paths),
    ]);
    let handles = vec!["--migration-mode=file-handles"];
    let ours_too = vec![
        "--migration-mode=file-handles",
        "--modcaps=+dac_read_search",
    ];
    Work::new(&["nameless"]).travel(&[
        (theirs("1.14.0"), handles.clone()),
        (ours.clone(), ours_too.clone()),
        (theirs("1.13.3"), handles),
        (ours, ours_too),
    ]);
}
