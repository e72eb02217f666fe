//! The daemon under real guest kernels: `tests/vm/run` boots each case of
//! `tests/vm/cases` in a virtual machine, and what the guest did is checked
//! again from the host's side. `VIRTIOFSD` names another daemon to test.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

#[path = "common/pairs.rs"]
mod pairs;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use tempfile::TempDir;

use pairs::all_pairs;

const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// One virtual machine at a time: each keeps two processors busy.
static MACHINE: Mutex<()> = Mutex::new(());

fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vm")
        .join(name)
}

fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        let status = Command::new(tool("prepare")).stdin(Stdio::null()).status();
        assert!(status.unwrap().success(), "tests/vm/prepare failed");
    });
}

/// A machine yet to be booted.
struct Guest(Command);

impl Guest {
    fn new(kernel: &str) -> Self {
        prepare();
        let mut run = Command::new(tool("run"));
        run.args(["--kernel", kernel]).stdin(Stdio::null());
        if std::env::var_os("VIRTIOFSD").is_none() {
            run.env("VIRTIOFSD", env!("CARGO_BIN_EXE_virtiofsd"));
        }
        Self(run)
    }

    /// More options for `tests/vm/run`.
    fn options(mut self, options: &[&str]) -> Self {
        self.0.args(options);
        self
    }

    /// More options for the daemon.
    fn daemon(mut self, options: &[&str]) -> Self {
        for option in options {
            self.0.args(["--daemon", option]);
        }
        self
    }

    /// Runs a command in the guest.
    fn run(mut self, share: &Path, command: &[&str]) -> Output {
        let _turn = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let output = self.0.arg(share).args(command).output().unwrap();
        println!("{:?}: {:.1?}", self.0, start.elapsed());
        output
    }

    /// Runs a case, which must succeed, and returns what it printed.
    fn case(mut self, share: &Path, name: &str, arguments: &[&str]) -> String {
        self.0.arg("--script").arg(tool("cases").join(name));
        let output = self.run(share, arguments);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{name} in the guest: {}\n--- its output:\n{stdout}\n--- its errors:\n{stderr}",
            output.status,
        );
        stdout.into_owned()
    }
}

/// A directory to share, on the disk that the build is on.
fn new_share() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs a shell script on the host, which must succeed, and returns its output.
fn host(folder: &Path, script: &str) -> String {
    let output = Command::new("bash")
        .args(["-e", "-u", "-o", "pipefail", "-c", script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "on the host: {script}\n{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn output_and_exit_code_come_back_exactly() {
    let share = new_share();
    let bytes = (0..=u8::MAX).collect::<Vec<_>>().repeat(1000);
    fs::write(share.path().join("bytes"), &bytes).unwrap();
    let script = "cat bytes bytes; printf 'no\\0end' >&2; exit 42";
    let output = Guest::new("6.1").run(share.path(), &["bash", "-c", script]);
    assert_eq!(output.status.code(), Some(42));
    assert!(output.stdout == bytes.repeat(2));
    assert_eq!(output.stderr, b"no\0end");
}

#[test]
fn arguments_reach_the_guest_exactly() {
    let share = new_share();
    let odd = ["", "a b", "*", "$HOME", "-n", "new\nline", "\"'\\"];
    let command = [&["printf", "[%s]"], &odd[..]].concat();
    let output = Guest::new("6.12").run(share.path(), &command);
    assert_eq!(output.status.code(), Some(0));
    let expected: String = odd.iter().map(|argument| format!("[{argument}]")).collect();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn what_never_ends_is_stopped() {
    let share = new_share();
    let output = Guest::new("6.1")
        .options(&["--timeout", "5"])
        .run(share.path(), &["sleep", "1000"]);
    assert_eq!(output.status.code(), Some(124));
}

#[test]
fn a_guest_that_panics_is_a_failure() {
    let share = new_share();
    let crash = "echo c >/proc/sysrq-trigger; sleep 1000";
    let output = Guest::new("6.1").run(share.path(), &["bash", "-c", crash]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Kernel panic"));
}

#[test]
fn a_daemon_that_fails_is_a_failure() {
    let share = new_share();
    let output = Guest::new("6.1")
        .daemon(&["--no-such-option"])
        .run(share.path(), &["true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--no-such-option"));
}

/// The case `basic.sh`, then the host's look at what it left.
fn basic(kernel: &str, daemon: &[&str], mmap: &str, xattr: &str) {
    let share = new_share();
    let from_host = share.path().join("from-host");
    fs::write(&from_host, "hello guest\n").unwrap();
    fs::set_permissions(&from_host, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("from-host", share.path().join("host-link")).unwrap();

    Guest::new(kernel)
        .daemon(daemon)
        .case(share.path(), "basic.sh", &[mmap, xattr]);

    let kept = share.path().join("kept");
    let stat = |name: &str| fs::symlink_metadata(kept.join(name)).unwrap();
    let sum = fs::read_to_string(kept.join("big.sha256")).unwrap();
    assert_eq!(host(&kept, "sha256sum <big"), sum);
    assert_eq!(fs::read_to_string(kept.join("hard")).unwrap(), "a\nmore\n");
    assert_eq!(stat("hard").nlink(), 2);
    assert_eq!(stat("hard").ino(), stat("moved/sub/c").ino());
    assert_eq!(
        fs::read_link(kept.join("symlink")).unwrap(),
        Path::new("moved/sub/c")
    );
    assert_eq!(
        fs::read_link(kept.join("dangling")).unwrap(),
        Path::new("no-such-file")
    );
    assert!(stat("fifo").file_type().is_fifo());
    assert!(stat("device").file_type().is_char_device());
    assert_eq!(stat("device").rdev(), rustix::fs::makedev(1, 3));
    assert!(!kept.join("doomed").exists());
    let file = stat("file");
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777),
        (1234, 5678, 0o751)
    );
    assert_eq!(
        (file.mtime(), file.mtime_nsec()),
        (981_173_106, 789_012_345)
    );
    let user = stat("sticky/of-user");
    assert_eq!((user.uid(), user.gid()), (1000, 1001));
    assert_eq!(stat("sticky/of-root").uid(), 0);
    assert_eq!(stat("shared/file").gid(), 4321);
    assert_eq!(stat("shared/dir").mode() & 0o7777, 0o2750);
    assert_eq!(stat("allocated").len(), 200_000);
}

#[test]
fn basic_operations_with_cache_auto() {
    for kernel in KERNELS {
        basic(kernel, &["--cache=auto", "--xattr"], "mmap", "xattr");
    }
}

#[test]
fn basic_operations_with_cache_always() {
    for kernel in KERNELS {
        basic(kernel, &["--cache=always"], "mmap", "no-xattr");
    }
}

#[test]
fn basic_operations_with_cache_metadata() {
    basic("6.1", &["--cache=metadata"], "no-mmap", "no-xattr");
    basic(
        "6.12",
        &["--cache=metadata", "--allow-mmap", "--xattr"],
        "mmap",
        "xattr",
    );
}

#[test]
fn basic_operations_with_cache_never() {
    basic("6.1", &["--cache=never", "--xattr"], "no-mmap", "xattr");
    basic(
        "6.12",
        &["--cache=never", "--allow-mmap"],
        "mmap",
        "no-xattr",
    );
}

#[test]
fn basic_operations_with_writeback() {
    for kernel in KERNELS {
        basic(kernel, &["--writeback", "--xattr"], "mmap", "xattr");
    }
}

/// The case `privileges.sh`, then the host's look at what it left.
fn privileges(kernel: &str, daemon: &[&str]) {
    let share = new_share();
    let capability = "user.guest.security.capability";
    Guest::new(kernel)
        .daemon(&["--posix-acl"])
        .daemon(daemon)
        .case(share.path(), "privileges.sh", &[]);
    let stat = |name: &str| fs::symlink_metadata(share.path().join(name)).unwrap();
    assert_eq!(stat("lent").mode() & 0o7777, 0o2755);
    assert_eq!(
        (stat("lists/file").uid(), stat("plain/file").uid()),
        (1000, 0)
    );
    let mut value = [0; 2000];
    let name = if daemon.iter().any(|option| option.contains("xattrmap")) {
        "user.guest.user.long"
    } else {
        "user.long"
    };
    let len = rustix::fs::getxattr(share.path().join("f"), name, value.as_mut_slice());
    assert_eq!(len, Ok(value.len()));
    assert!(value.starts_with(b"0000") && value.ends_with(b"7"));
    let left = rustix::fs::getxattr(share.path().join("f"), capability, value.as_mut_slice());
    assert!(left.is_err());
}

#[test]
fn privileges_that_the_guest_drops() {
    privileges("6.1", &["--cache=auto"]);
    privileges("6.12", &["--writeback"]);
}

#[test]
fn privileges_that_the_daemon_drops() {
    privileges("6.1", &["--killpriv-v2", "--writeback"]);
    privileges("6.12", &["--killpriv-v2", "--cache=auto"]);
}

#[test]
fn privileges_that_have_another_name_on_the_host() {
    let map = "--xattrmap=:ok:all:system.posix_acl_:system.posix_acl_: :map::user.guest.:";
    privileges("6.12", &["--killpriv-v2", map]);
}

#[test]
fn a_tree_survives_being_copied_out_and_in() {
    for kernel in KERNELS {
        let share = new_share();
        // 2,500 files, as many links, in 97 directories; lengths from 1 to 10,007.
        host(
            share.path(),
            "mkdir in && cd in && head -c 25017500 /dev/urandom | split -a 4 -b 10007 - part- &&
             for name in part-*; do
                 dir=${name%?}; mkdir -p $dir/deep; mv $name $dir/deep/;
                 truncate -s -$((RANDOM % 9000)) $dir/deep/$name; ln -s $name $dir/deep/$name.link;
             done",
        );
        let seen = Guest::new(kernel).case(share.path(), "copy.sh", &[]);
        let sums = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
        assert!(seen.lines().count() >= 2_500);
        assert!(
            seen == host(&share.path().join("in"), sums),
            "read otherwise by the guest"
        );
        assert!(
            seen == host(&share.path().join("out"), sums),
            "written otherwise by the guest"
        );
        host(share.path(), "diff -r in out");
    }
}

#[test]
fn git_clones_commits_and_pushes() {
    for kernel in KERNELS {
        let share = new_share();
        let environment = "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
             export GIT_AUTHOR_NAME=host GIT_AUTHOR_EMAIL=host@example.org
             export GIT_COMMITTER_NAME=host GIT_COMMITTER_EMAIL=host@example.org\n";
        let make = "git init -q -b main work && cd work
             for commit in {1..10}; do
                 for file in {1..200}; do echo \"$commit $((file * RANDOM))\" >>file-$file; done
                 git add . && git commit -q -m \"commit $commit\"
             done
             cd .. && git clone -q --bare work origin.git && rm -rf work";
        host(share.path(), &format!("{environment}{make}"));
        let made = Guest::new(kernel).case(share.path(), "git.sh", &[]);
        let check = "git --git-dir=origin.git fsck --full --strict --no-dangling
             git -C clone fsck --full --strict --no-dangling
             git -C clone status --porcelain
             git --git-dir=origin.git rev-parse main";
        assert_eq!(host(share.path(), &format!("{environment}{check}")), made);
    }
}

/// Four virtual CPUs write at once over this many request queues.
fn parallel(kernel: &str, queues: &str) {
    let share = new_share();
    Guest::new(kernel)
        .options(&["--cpus", "4", "--queues", queues])
        .case(share.path(), "parallel.sh", &["4", queues]);
    let lines = host(share.path(), "sort -u lines | wc -l; wc -l <lines");
    assert_eq!(lines, "80\n80\n");
    assert_eq!(
        fs::read_dir(share.path().join("names")).unwrap().count(),
        80
    );
    let regions = fs::read(share.path().join("regions")).unwrap();
    assert_eq!(regions.len(), 80 * 4096);
    for (block, writer) in regions.chunks(4096).zip((b'0'..b'8').cycle()) {
        assert!(block.iter().all(|byte| *byte == writer));
    }
}

/// The host's part of `local.sh`: locks that the guest meets, and one that meets
/// the guest's.
fn hold_locks(share: &Path, is_over: &AtomicBool) {
    let open = |name: &str| {
        let mut options = fs::File::options();
        let options = options.create(true).truncate(false).read(true).write(true);
        options.open(share.join(name)).unwrap()
    };
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    let (record, whole, wait) = (open("record"), open("whole"), open("wait"));
    fcntl_lock(&record, exclusive).unwrap();
    flock(&whole, exclusive).unwrap();
    fcntl_lock(&wait, exclusive).unwrap();
    let inode = format!(":{} ", wait.metadata().unwrap().ino());
    let is_waited_for = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let mut waits = locks.lines().filter(|line| line.contains("->"));
        waits.any(|line| line.contains(&inode))
    };
    let until = |condition: &dyn Fn() -> bool| {
        while !condition() && !is_over.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    };
    until(&is_waited_for);
    fcntl_lock(&wait, FlockOperation::Unlock).unwrap();
    until(&|| share.join("mine-is-locked").exists());
    if is_over.load(Ordering::Relaxed) {
        return;
    }
    let mine = open("mine");
    assert_eq!(fcntl_lock(&mine, exclusive), Err(Errno::AGAIN));
    assert_eq!(flock(&mine, exclusive), Err(Errno::AGAIN));
    fs::write(share.join("mine-was-met"), "").unwrap();
    until(&|| false);
}

#[test]
fn what_a_local_file_system_does() {
    for (kernel, arguments) in [("6.1", &[][..]), ("6.12", &["idmap"])] {
        let share = new_share();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let host = scope.spawn(|| hold_locks(share.path(), &is_over));
            let guest = scope.spawn(|| {
                let options = ["--posix-lock", "--flock", "--modcaps=+linux_immutable"];
                let guest = Guest::new(kernel).daemon(&options);
                guest.case(share.path(), "local.sh", arguments)
            });
            let printed = guest.join();
            is_over.store(true, Ordering::Relaxed);
            host.join().unwrap();
            assert_eq!(printed.unwrap(), "done\n");
        });
        assert_eq!(fs::read(share.path().join("named")).unwrap(), b"text\n");
    }
}

#[test]
fn parallel_writers_over_one_queue() {
    parallel("6.1", "1");
}

#[test]
fn parallel_writers_over_four_queues() {
    parallel("6.12", "4");
}

#[test]
fn what_the_guest_syncs_the_daemon_is_asked_to_sync() {
    let (share, logs) = (new_share(), new_share());
    Guest::new("6.12")
        .options(&["--logs", logs.path().to_str().unwrap()])
        .daemon(&["--log-level=trace"])
        .case(share.path(), "sync.sh", &[]);
    let log = fs::read_to_string(logs.path().join("daemon.log")).unwrap();
    let count = |opcode: u32| log.matches(&format!(" opcode: {opcode},")).count();
    const FSYNC: u32 = 20;
    const FSYNCDIR: u32 = 30;
    const SYNCFS: u32 = 50;
    // The third is the write to a file that was opened with O_SYNC.
    assert_eq!((count(FSYNC), count(FSYNCDIR)), (3, 1));
    assert!(count(SYNCFS) >= 2);
}

#[test]
fn what_programs_append_goes_to_the_end_of_the_file() {
    for cache in ["never", "metadata"] {
        let share = new_share();
        host(
            share.path(),
            "echo first >log; cp log appended; chattr +a appended",
        );
        let at = |name: &str| share.path().join(name);
        let options = [&*format!("--cache={cache}"), "--writeback"];
        let guest = Guest::new("6.12").daemon(&options);
        let printed = std::thread::scope(|scope| {
            scope.spawn(|| {
                let begun = Instant::now();
                while !at("ready").exists() && begun.elapsed() < Duration::from_secs(300) {
                    std::thread::sleep(Duration::from_millis(50));
                }
                host(share.path(), "echo from the host >>log; touch go");
            });
            guest.case(share.path(), "append.sh", &[])
        });
        host(share.path(), "chattr -a appended");
        assert_eq!(printed, "first\nsecond\nthird\n", "{cache}");
        assert_eq!(fs::read_to_string(at("appended")).unwrap(), printed);
        let log = fs::read_to_string(at("log")).unwrap();
        let expected = "first\nfrom the guest\nfrom the host\nfrom the guest again\n";
        assert_eq!(log, expected, "{cache}");
    }
}

/// Runs a script on the host, and in a guest with the host changing what it asks for:
/// both must see the same. Gives the lines that differ.
fn differences(kernel: &str, options: &[&str]) -> String {
    let (here, share, out) = (new_share(), new_share(), new_share());
    let script = tool("cases").join("differential.sh");
    // The guest keeps names and attributes for a day then.
    let keeps = ["--cache=always", "--cache=metadata"]
        .iter()
        .any(|keeping| options.contains(keeping));
    let changes = if keeps { "no" } else { "yes" };
    let expected = host(
        here.path(),
        &format!("bash {} local {changes}", script.display()),
    );
    let is_over = AtomicBool::new(false);
    let printed = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 1;
            while !is_over.load(Ordering::Relaxed) {
                let ask = share.path().join(format!(".ask.{number}"));
                if let Ok(command) = fs::read_to_string(&ask) {
                    host(share.path(), &command);
                    fs::write(share.path().join(format!(".done.{number}")), "").unwrap();
                    number += 1;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let guest = Guest::new(kernel).daemon(options);
        let printed = guest.case(share.path(), "differential.sh", &["guest", changes]);
        is_over.store(true, Ordering::Relaxed);
        printed
    });
    let at = |name: &str| out.path().join(name);
    fs::write(at("expected"), expected).unwrap();
    fs::write(at("printed"), printed).unwrap();
    host(out.path(), "diff expected printed || true")
}

#[test]
fn programs_see_the_same_as_on_the_host() {
    let all = std::env::var_os("VIRTIOFSD_ALL_PAIRS").is_some();
    let sets = if all {
        all_pairs()
    } else {
        vec![
            vec![],
            vec!["--cache=always", "--writeback", "--xattr", "--posix-acl"],
        ]
    };
    let mut found = String::new();
    for options in sets {
        for kernel in if all { &["6.1", "6.12"][..] } else { &["6.12"] } {
            let differences = differences(kernel, &options);
            if !differences.is_empty() {
                found += &format!("{kernel} {options:?}:\n{differences}\n");
            }
        }
    }
    assert!(found.is_empty(), "{found}");
}

#[test]
fn directories_are_listed_without_being_opened() {
    for kernel in KERNELS {
        let (share, logs) = (new_share(), new_share());
        host(share.path(), "mkdir folder && touch folder/file-{1..2000}");
        let seen = Guest::new(kernel)
            .options(&["--logs", logs.path().to_str().unwrap()])
            .daemon(&[
                "--readonly",
                "--cache=always",
                "--no-opendir",
                "--log-level=trace",
            ])
            .case(share.path(), "readonly.sh", &[]);
        let on_host = host(share.path(), "ls -f folder | LC_ALL=C sort");
        let sorted = |names: &str| {
            let mut names: Vec<_> = names.lines().map(str::to_owned).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(&seen), sorted(&on_host));
        let log = fs::read_to_string(logs.path().join("daemon.log")).unwrap();
        let count = |opcode: u32| log.matches(&format!(" opcode: {opcode},")).count();
        const READDIR: u32 = 28;
        const RELEASEDIR: u32 = 29;
        const OPENDIR: u32 = 27;
        const READDIRPLUS: u32 = 44;
        // The first answer is enough for all; the second listing asks for nothing.
        assert_eq!((count(OPENDIR), count(RELEASEDIR)), (1, 0), "{kernel}");
        let reads = count(READDIR) + count(READDIRPLUS);
        assert!((1..=30).contains(&reads), "{kernel}: {reads}");
    }
}

#[test]
fn a_directory_of_100_000_files() {
    let share = new_share();
    host(
        share.path(),
        "mkdir from-host && cd from-host && seq -f 'file-%.0f' 100000 | xargs touch",
    );
    for kernel in KERNELS {
        Guest::new(kernel).case(share.path(), "many.sh", &["100000", "10000"]);
        let count = "find from-guest -name 'file-*' -type f | sort -u | wc -l; rm -r from-guest";
        assert_eq!(host(share.path(), count), "10000\n");
    }
}

#[test]
fn the_share_is_the_guests_root() {
    prepare();
    let cache = std::env::var_os("VIRTIOFSD_TEST_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm"),
        PathBuf::from,
    );
    let share = new_share();
    host(
        share.path(),
        &format!("cp -a '{}' root", cache.join("root/tree").display()),
    );
    let root = share.path().join("root");
    for kernel in KERNELS {
        let seen = Guest::new(kernel)
            .options(&["--root-on-share"])
            .case(&root, "root.sh", &[]);
        let sums = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
        assert!(
            seen == host(&root.join("usr/bin"), sums),
            "read otherwise by the guest"
        );
        let kept = fs::read_to_string(root.join("root/kept")).unwrap();
        assert_eq!(kept, "made by the guest\n");
        host(
            &root,
            "cmp bin/true usr/local/bin/copied && rm root/kept usr/local/bin/copied",
        );
    }
}
