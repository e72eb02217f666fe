//! The filter of system calls: it is on every thread, every operation gets
//! through it, and what the daemon never needs does not.
//!
//! The other tests run their daemons under `--seccomp trap`, so each of them
//! also shows that what it does is in the lists.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]
#![cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use common::fuse_client::{Lock, Request, SetAttr};
use common::session::Session;
use common::wire::{ENTRY_OUT, Encoder, ROOT, op};
use virtiofsd::fuse::opcode::Opcode;
use virtiofsd::process::seccomp::{self, Action};

/// One system call by its number. The arguments of all calls below are wrong
/// or harmless: a filter that lets them through gives an error, not a deed.
mod raw {
    #![allow(unsafe_code)]

    pub(super) fn call(number: i64, arguments: [i64; 5]) -> i64 {
        let [a, b, c, d, e] = arguments;
        // SAFETY: none of the calls of this test is given a valid pointer, or
        // maps over memory that is in use.
        unsafe { libc::syscall(number, a, b, c, d, e) }
    }
}

const CALL: &str = "VIRTIOFSD_TEST_SYSTEM_CALL";
const ACTION: &str = "VIRTIOFSD_TEST_SECCOMP_ACTION";

/// Calls that must not get through, with arguments.
fn forbidden() -> BTreeMap<&'static str, (i64, [i64; 5])> {
    let none = [0; 5];
    let executable = i64::from(libc::PROT_READ | libc::PROT_EXEC);
    let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let inet = [
        i64::from(libc::AF_INET),
        i64::from(libc::SOCK_STREAM),
        0,
        0,
        0,
    ];
    let unix = [
        i64::from(libc::AF_UNIX),
        i64::from(libc::SOCK_DGRAM),
        0,
        0,
        0,
    ];
    [
        ("execve", (libc::SYS_execve, none)),
        ("execveat", (libc::SYS_execveat, none)),
        (
            "ptrace",
            (
                libc::SYS_ptrace,
                [i64::from(libc::PTRACE_PEEKDATA), 0, 0, 0, 0],
            ),
        ),
        ("process_vm_readv", (libc::SYS_process_vm_readv, none)),
        ("pidfd_getfd", (libc::SYS_pidfd_getfd, [-1, -1, 0, 0, 0])),
        ("mount", (libc::SYS_mount, none)),
        ("umount2", (libc::SYS_umount2, none)),
        ("move_mount", (libc::SYS_move_mount, [-1, 0, -1, 0, 0])),
        ("open_tree", (libc::SYS_open_tree, [-1, 0, 0, 0, 0])),
        ("pivot_root", (libc::SYS_pivot_root, none)),
        ("chroot", (libc::SYS_chroot, none)),
        ("setns", (libc::SYS_setns, [-1, 0, 0, 0, 0])),
        (
            "unshare of a namespace",
            (
                libc::SYS_unshare,
                [i64::from(libc::CLONE_NEWUTS), 0, 0, 0, 0],
            ),
        ),
        (
            "unshare of more",
            (
                libc::SYS_unshare,
                [i64::from(libc::CLONE_FS | libc::CLONE_FILES), 0, 0, 0, 0],
            ),
        ),
        (
            "clone of a process",
            (libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0, 0, 0]),
        ),
        (
            "clone of a thread with a namespace",
            (
                libc::SYS_clone,
                [
                    i64::from(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_NEWNET),
                    0,
                    0,
                    0,
                    0,
                ],
            ),
        ),
        ("bpf", (libc::SYS_bpf, [-1, 0, 0, 0, 0])),
        ("perf_event_open", (libc::SYS_perf_event_open, none)),
        ("userfaultfd", (libc::SYS_userfaultfd, none)),
        ("keyctl", (libc::SYS_keyctl, [-1, 0, 0, 0, 0])),
        ("add_key", (libc::SYS_add_key, none)),
        ("io_uring_setup", (libc::SYS_io_uring_setup, none)),
        ("kexec_load", (libc::SYS_kexec_load, none)),
        ("init_module", (libc::SYS_init_module, none)),
        ("reboot", (libc::SYS_reboot, none)),
        ("swapon", (libc::SYS_swapon, none)),
        ("socket of the network", (libc::SYS_socket, inet)),
        ("socket of this machine", (libc::SYS_socket, unix)),
        ("connect", (libc::SYS_connect, [-1, 0, 0, 0, 0])),
        ("bind", (libc::SYS_bind, [-1, 0, 0, 0, 0])),
        (
            "sendto with an address",
            (libc::SYS_sendto, [-1, 0, 0, 0, 1]),
        ),
        (
            "executable mmap",
            (libc::SYS_mmap, [0, 4096, executable, private, -1]),
        ),
        (
            "executable mprotect",
            (libc::SYS_mprotect, [0, 4096, executable, 0, 0]),
        ),
        ("memfd_create", (libc::SYS_memfd_create, none)),
        (
            "prctl of anything else",
            (
                libc::SYS_prctl,
                [i64::from(libc::PR_GET_DUMPABLE), 0, 0, 0, 0],
            ),
        ),
        (
            "prlimit64 that sets",
            (libc::SYS_prlimit64, [0, 0, 1, 0, 0]),
        ),
        (
            "ioctl of anything else",
            (libc::SYS_ioctl, [-1, libc::TIOCSTI as i64, 0, 0, 0]),
        ),
        ("tgkill of init", (libc::SYS_tgkill, [1, 1, 0, 0, 0])),
        ("kill of everyone", (libc::SYS_kill, [-1, 0, 0, 0, 0])),
        (
            "kexec_file_load",
            (libc::SYS_kexec_file_load, [-1, -1, 0, 0, 0]),
        ),
        ("finit_module", (libc::SYS_finit_module, [-1, 0, 0, 0, 0])),
        ("delete_module", (libc::SYS_delete_module, none)),
        ("mount_setattr", (libc::SYS_mount_setattr, [-1, 0, 0, 0, 0])),
        ("fsopen", (libc::SYS_fsopen, none)),
        ("fsmount", (libc::SYS_fsmount, [-1, 0, 0, 0, 0])),
        ("fspick", (libc::SYS_fspick, [-1, 0, 0, 0, 0])),
        (
            "io_uring_enter",
            (libc::SYS_io_uring_enter, [-1, 0, 0, 0, 0]),
        ),
        (
            "io_uring_register",
            (libc::SYS_io_uring_register, [-1, 0, 0, 0, 0]),
        ),
        ("io_setup", (libc::SYS_io_setup, none)),
        ("pidfd_open", (libc::SYS_pidfd_open, [-1, 0, 0, 0, 0])),
        (
            "pidfd_send_signal",
            (libc::SYS_pidfd_send_signal, [-1, 0, 0, 0, 0]),
        ),
        ("process_vm_writev", (libc::SYS_process_vm_writev, none)),
        (
            "process_madvise",
            (libc::SYS_process_madvise, [-1, 0, 0, 0, 0]),
        ),
        ("request_key", (libc::SYS_request_key, none)),
        ("seccomp", (libc::SYS_seccomp, [-1, 0, 0, 0, 0])),
        (
            "personality",
            (libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0]),
        ),
        ("quotactl", (libc::SYS_quotactl, [-1, 0, 0, 0, 0])),
        ("acct", (libc::SYS_acct, [1, 0, 0, 0, 0])),
        ("sethostname", (libc::SYS_sethostname, [0, -1, 0, 0, 0])),
        ("clock_settime", (libc::SYS_clock_settime, [-1, 0, 0, 0, 0])),
        ("settimeofday", (libc::SYS_settimeofday, [1, 1, 0, 0, 0])),
        ("swapoff", (libc::SYS_swapoff, none)),
        ("chdir", (libc::SYS_chdir, none)),
        ("setsid", (libc::SYS_setsid, none)),
        ("fanotify_init", (libc::SYS_fanotify_init, [-1, 0, 0, 0, 0])),
        ("fanotify_mark", (libc::SYS_fanotify_mark, [-1, 0, 0, 0, 0])),
        ("socketpair", (libc::SYS_socketpair, none)),
        ("listen", (libc::SYS_listen, [-1, 0, 0, 0, 0])),
        (
            "pkey_mprotect",
            (libc::SYS_pkey_mprotect, [0, 4096, executable, 0, 0]),
        ),
        ("remap_file_pages", (libc::SYS_remap_file_pages, none)),
        ("shmat", (libc::SYS_shmat, [-1, 0, 0, 0, 0])),
    ]
    .into()
}

/// Runs [`one_call_under_the_filter`] in a process of its own.
fn try_call(name: &str, action: &str) -> ExitStatus {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "one_call_under_the_filter", "--test-threads=1"])
        .env(CALL, name)
        .env(ACTION, action)
        .output()
        .unwrap()
        .status
}

/// Without the variables, as in an ordinary run, it does nothing; the tests
/// below start it with them.
#[test]
fn one_call_under_the_filter() {
    let (Ok(name), Ok(action)) = (env::var(CALL), env::var(ACTION)) else {
        return;
    };
    let (number, arguments) = forbidden()
        .remove(name.as_str())
        .unwrap_or((libc::SYS_getpid, [0; 5]));
    seccomp::install(match action.as_str() {
        "kill" => Action::Kill,
        "trap" => Action::Trap,
        _ => Action::Log,
    })
    .unwrap();
    raw::call(number, arguments);
}

#[test]
fn a_call_that_is_never_needed_ends_the_process() {
    for name in forbidden().keys() {
        let status = try_call(name, "kill");
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}: {status}");
    }
    assert!(
        try_call("getpid", "kill").success(),
        "the filter lets through what is listed"
    );
}

#[test]
fn with_trap_the_process_gets_the_signal() {
    let status = try_call("execve", "trap");
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{status}");
}

#[test]
fn with_log_nothing_is_kept_from_the_process() {
    for name in ["execve", "bpf", "executable mmap"] {
        let status = try_call(name, "log");
        assert!(status.success(), "{name}: {status}");
    }
}

/// A line of the status of every thread, by the thread's name.
fn of_all_threads(pid: u32, field: &str) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| {
            let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let value = |field: &str| {
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix(field))
                    .unwrap();
                line.trim().to_owned()
            };
            (value("Name:"), value(&format!("{field}:")))
        })
        .collect()
}

#[test]
fn the_filter_is_on_every_thread_and_privileges_cannot_grow() {
    for pool in ["--thread-pool-size=0", "--thread-pool-size=3"] {
        let session = Session::new(&["--seccomp=kill", pool]);
        let pid = session.daemon.pid();
        let filters = of_all_threads(pid, "Seccomp");
        assert!(filters.len() >= 3, "{filters:?}");
        assert!(filters.iter().all(|(_, mode)| mode == "2"), "{filters:?}");
        let pinned = of_all_threads(pid, "NoNewPrivs");
        assert!(pinned.iter().all(|(_, set)| set == "1"), "{pinned:?}");
        session.finish();
    }
}

#[test]
fn without_a_filter_there_is_none() {
    let session = Session::new(&["--seccomp=none"]);
    let filters = of_all_threads(session.daemon.pid(), "Seccomp");
    assert!(filters.iter().all(|(_, mode)| mode == "0"), "{filters:?}");
    session.finish();
}

/// Sends each operation of the table once; gives the numbers of those that were
/// answered without an error.
fn every_operation(session: &mut Session) -> BTreeSet<u32> {
    session.put("text", "some text");
    let c = &mut session.client;
    let mut served = BTreeSet::from([op::INIT]);
    let mut note = |number: u32, answer: Result<(), i32>| {
        answer.unwrap_or_else(|errno| panic!("operation {number}: {errno}"));
        served.insert(number);
    };
    let file = c.lookup(ROOT, "text").unwrap().nodeid;
    note(op::LOOKUP, Ok(()));
    note(op::GETATTR, c.getattr(file).map(drop));
    let all = SetAttr {
        mode: Some(0o640),
        uid: Some(0),
        gid: Some(0),
        size: Some(5000),
        mtime: Some((1, 0)),
        ..SetAttr::default()
    };
    note(op::SETATTR, c.setattr(file, &all).map(drop));
    let link = c.symlink(ROOT, "link", "text").unwrap().nodeid;
    note(op::SYMLINK, Ok(()));
    note(op::READLINK, c.readlink(link).map(drop));
    note(
        op::MKNOD,
        c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o600, 0, 0).map(drop),
    );
    (c.uid, c.gid) = (1234, 1234);
    let folder = c.mkdir(ROOT, "folder", 0o755, 0).unwrap().nodeid;
    (c.uid, c.gid) = (0, 0);
    note(op::MKDIR, Ok(()));
    note(op::LINK, c.link(file, folder, "twin").map(drop));
    note(op::RENAME, c.rename((ROOT, "fifo"), (ROOT, "pipe")));
    note(
        op::RENAME2,
        c.rename2((ROOT, "pipe"), (ROOT, "link"), libc::RENAME_EXCHANGE),
    );
    note(op::UNLINK, c.unlink(ROOT, "pipe"));

    let (made, open) = c.create(ROOT, "made", libc::O_RDWR, 0o600).unwrap();
    note(op::CREATE, Ok(()));
    let (node, fh) = (made.nodeid, open.fh);
    note(op::WRITE, c.write(node, fh, 0, b"content").map(drop));
    note(op::READ, c.read(node, fh, 0, 100).map(drop));
    note(op::FLUSH, c.flush(node, fh));
    note(op::FSYNC, c.fsync(node, fh, 0));
    note(op::FALLOCATE, c.fallocate(node, fh, 0, 100, 0));
    note(op::LSEEK, c.lseek(node, fh, 0, 4).map(drop));
    let opened = c.open(file, libc::O_RDWR).unwrap().fh;
    note(op::OPEN, Ok(()));
    let copied = c.copy_file_range((node, fh, 0), (file, opened, 0), 7, 0);
    note(op::COPY_FILE_RANGE, copied.map(drop));
    let lock = Lock {
        owner: 1,
        start: 0,
        end: 10,
        kind: libc::F_WRLCK,
        pid: 1,
        flags: 0,
    };
    note(op::GETLK, c.getlk(node, fh, &lock).map(drop));
    note(op::SETLK, c.setlk(node, fh, &lock));
    let waiting = c.start_setlkw(node, fh, &Lock { owner: 2, ..lock });
    c.interrupt(waiting);
    note(op::INTERRUPT, Ok(()));
    let unlock = Lock {
        kind: libc::F_UNLCK,
        ..lock
    };
    c.setlk(node, fh, &unlock).unwrap();
    // Interrupted, or the lock was free already.
    let waited = c.wait_for(waiting).map(drop);
    note(
        op::SETLKW,
        if waited == Err(libc::EINTR) {
            Ok(())
        } else {
            waited
        },
    );
    // FS_IOC_GETFLAGS, which not every file system has.
    let body = Encoder::new()
        .u64(fh)
        .u32(0)
        .u32(0x8008_6601)
        .u64(0)
        .u32(0)
        .u32(4);
    let flags = c.call(&Request::new(op::IOCTL, node, body).space(20));
    note(
        op::IOCTL,
        if flags == Err(libc::ENOTTY) {
            Ok(())
        } else {
            flags.map(drop)
        },
    );
    note(op::RELEASE, c.release(node, fh));
    let body = Encoder::new().u32((libc::O_RDWR | libc::O_TMPFILE).cast_unsigned());
    let body = body.u32(libc::S_IFREG | 0o600).u32(0).u32(0).name("/");
    let nameless = c.call(&Request::new(op::TMPFILE, ROOT, body).space(ENTRY_OUT + 16));
    note(op::TMPFILE, nameless.map(drop));
    let body = Encoder::new().u32(0).u32(0).u64(0).u32(0).u32(0x7ff);
    let status = c.call(&Request::new(op::STATX, node, body).space(288));
    note(op::STATX, status.map(drop));

    note(op::SETXATTR, c.setxattr(file, "user.x", b"1", 0, false));
    note(op::GETXATTR, c.getxattr(file, "user.x", 10).map(drop));
    note(op::LISTXATTR, c.listxattr(file, 100).map(drop));
    note(op::REMOVEXATTR, c.removexattr(file, "user.x"));
    note(op::ACCESS, c.access(file, 4));
    note(op::STATFS, c.statfs(ROOT).map(drop));
    note(op::SYNCFS, c.syncfs(ROOT));
    let stream = c.opendir(folder).unwrap().fh;
    note(op::OPENDIR, Ok(()));
    note(op::READDIR, c.readdir(folder, stream, 0, 4096).map(drop));
    note(
        op::READDIRPLUS,
        c.readdirplus(folder, stream, 0, 4096).map(drop),
    );
    note(op::FSYNCDIR, c.fsyncdir(folder, stream, 0));
    note(op::RELEASEDIR, c.releasedir(folder, stream));
    c.unlink(folder, "twin").unwrap();
    note(op::RMDIR, c.rmdir(ROOT, "folder"));
    c.forget(link, 1);
    note(op::FORGET, Ok(()));
    c.batch_forget(&[(folder, 1), (node, 1)]);
    note(op::BATCH_FORGET, Ok(()));
    note(op::DESTROY, c.destroy());
    served
}

#[test]
fn every_operation_gets_through_the_filter_in_every_sandbox() {
    if !rustix::process::geteuid().is_root() {
        println!("every_operation_gets_through_the_filter skips itself: it needs root");
        return;
    }
    let table: BTreeSet<_> = Opcode::ALL.iter().map(|&opcode| opcode as u32).collect();
    for sandbox in ["none", "chroot", "namespace"] {
        for pool in [&[][..], &["--thread-pool-size=2"]] {
            for handles in ["prefer", "never"] {
                let handles = format!("--inode-file-handles={handles}");
                let args = [
                    "--sandbox",
                    sandbox,
                    "--xattr",
                    "--posix-lock",
                    "--flock",
                    &handles,
                ];
                let mut session = Session::new(&[&args, pool].concat());
                let served = every_operation(&mut session);
                let missing: Vec<_> = table.difference(&served).collect();
                assert!(missing.is_empty(), "not sent, so not shown: {missing:?}");
                session.finish();
            }
        }
    }
}
