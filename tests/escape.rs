//! Ways out of the shared directory, tried by a guest that owns its kernel and
//! partly by somebody who moves things about on the host at the same time.
//!
//! Each is tried in each sandbox. `strace` writes down the daemon's system calls,
//! and afterwards each of them is looked at: no path has more than one
//! component, no link is followed but those of the daemon's own list of
//! descriptors, and no descriptor leads out of the share. The table in
//! `doc/security.md` has the results.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{getegid, geteuid};
use tempfile::TempDir;

use common::daemon::{Daemon, WAITING, copy_binary};
use common::frontend::{Config, HIPRIO, REQUEST, Vmm};
use common::fuse_client::{Client, Request, SetAttr, read_in, release_in, write_in};
use common::trace::{Call, Trace, described, traced};
use common::wire::{Encoder, ROOT, op};

/// In the name of everything that is outside of the share.
const MARKER: &str = "OUTSIDE";

/// What the daemon is locked into, and as whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Namespace,
    Chroot,
    None,
    /// Namespaces of an ordinary user, who is the guest's root.
    User,
}

/// Those that whoever runs the tests may try.
fn modes() -> &'static [Mode] {
    if geteuid().is_root() {
        &[Mode::Namespace, Mode::Chroot, Mode::None, Mode::User]
    } else {
        &[Mode::User, Mode::None]
    }
}

/// A guest that has mounted a share, and the folder around it:
///
/// ```text
/// OUTSIDE-secret  OUTSIDE/secret  share/  run/  trace/  virtiofsd
/// ```
struct Guest {
    mode: Mode,
    client: Client,
    vmm: Vmm,
    daemon: Daemon,
    place: Place,
}

struct Place {
    folder: TempDir,
    socket: &'static str,
    /// Whose the share is.
    owner: (u32, u32),
}

impl Place {
    fn new(mode: Mode) -> Self {
        let folder = TempDir::with_prefix("virtiofsd-escape-").unwrap();
        let owner = match mode {
            Mode::User if geteuid().is_root() => (65534, 65534),
            _ => (geteuid().as_raw(), getegid().as_raw()),
        };
        let place = Self {
            folder,
            socket: "run/socket",
            owner,
        };
        // That a secret stays one is not to be the work of its mode.
        let open_to_all = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open_to_all(place.folder.path(), 0o777);
        for name in ["OUTSIDE", "share", "run", "trace"] {
            fs::create_dir(place.path(name)).unwrap();
            open_to_all(&place.path(name), 0o777);
        }
        for name in ["OUTSIDE-secret", "OUTSIDE/secret"] {
            fs::write(place.path(name), "secret").unwrap();
            open_to_all(&place.path(name), 0o666);
        }
        copy_binary(&place.path("virtiofsd"));
        place.give_to_owner("share");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A place in the share.
    fn share(&self, name: &str) -> PathBuf {
        self.path("share").join(name)
    }

    fn give_to_owner(&self, name: &str) {
        lchown(self.path(name), Some(self.owner.0), Some(self.owner.1)).unwrap();
    }

    fn put(&self, name: &str, content: &str) {
        fs::write(self.share(name), content).unwrap();
        self.give_to_owner(&format!("share/{name}"));
    }

    fn folder(&self, name: &str) {
        fs::create_dir(self.share(name)).unwrap();
        self.give_to_owner(&format!("share/{name}"));
    }

    fn link(&self, name: &str, target: impl AsRef<Path>) {
        symlink(target, self.share(name)).unwrap();
        self.give_to_owner(&format!("share/{name}"));
    }

    /// Names, kinds and content of all outside of the share.
    fn outside(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for folder in ["", "OUTSIDE"] {
            for entry in fs::read_dir(self.path(folder)).unwrap() {
                let path = entry.unwrap().path();
                let stat = fs::symlink_metadata(&path).unwrap();
                let content = if stat.is_file() && stat.size() < 1000 {
                    fs::read(&path).unwrap()
                } else {
                    Vec::new()
                };
                all.insert(format!(
                    "{path:?} {:o} {} {} {content:?}",
                    stat.mode(),
                    stat.uid(),
                    if stat.is_dir() { 0 } else { stat.nlink() }
                ));
            }
        }
        all
    }
}

impl Guest {
    /// Starts the daemon under `strace` and mounts.
    fn new(mode: Mode, place: Place, more: &[&str]) -> Self {
        let text = |text: &str| text.to_owned();
        let (uid, gid) = place.owner;
        let mut line = Vec::new();
        if mode == Mode::User && geteuid().is_root() {
            line.extend([
                text("setpriv"),
                format!("--reuid={uid}"),
                format!("--regid={gid}"),
                text("--clear-groups"),
            ]);
        }
        // A test that fails kills strace, and that is to be the end of all.
        line.extend(["setpriv", "--pdeathsig=KILL", "./virtiofsd"].map(text));
        line.extend(["--shared-dir=share", "--socket-path", place.socket].map(text));
        line.extend(["--xattr", "--seccomp=trap", "--num-request-queues=1"].map(text));
        line.push(text(match mode {
            Mode::Namespace | Mode::User => "--sandbox=namespace",
            Mode::Chroot => "--sandbox=chroot",
            Mode::None => "--sandbox=none",
        }));
        if mode == Mode::User {
            line.extend([
                format!("--uid-map=:0:{uid}:1:"),
                format!("--gid-map=:0:{gid}:1:"),
            ]);
        }
        line.extend(more.iter().map(|&argument| text(argument)));

        let mut command = traced(&place.path("trace/thread"), &line);
        command.current_dir(place.folder.path());
        let daemon = Daemon::spawn(command);
        daemon.expect_log(WAITING);
        let mut vmm = Vmm::connect(&place.path(place.socket), &Config::default());
        vmm.start_queue(HIPRIO);
        let mut client = Client::new(vmm.start_queue(REQUEST));
        client.init();
        if mode == Mode::None && !geteuid().is_root() {
            (client.uid, client.gid) = place.owner;
        }
        Self {
            mode,
            client,
            vmm,
            daemon,
            place,
        }
    }

    /// The guest goes; the daemon must end in peace. Gives what it has done.
    fn end(self) -> (Place, Trace) {
        let Self {
            mode,
            client,
            vmm,
            mut daemon,
            place,
        } = self;
        drop((client, vmm));
        let status = daemon.wait();
        assert!(status.success(), "{mode:?}: {status}; {:#?}", daemon.log());
        let trace = Trace::read(&place.path("trace"));
        assert!(trace.calls().len() > 1, "{mode:?}: nothing was traced");
        (place, trace)
    }
}

/// Runs an attempt in each sandbox and looks at what it came to.
fn in_each_sandbox(
    more: &[&str],
    prepare: impl Fn(&Place),
    attempt: impl Fn(&mut Client, &Place, Mode),
) {
    for &mode in modes() {
        let place = Place::new(mode);
        prepare(&place);
        let before = place.outside();
        let mut guest = Guest::new(mode, place, more);
        attempt(&mut guest.client, &guest.place, guest.mode);
        let (place, trace) = guest.end();
        assert_eq!(
            place.outside(),
            before,
            "{mode:?}: something outside changed"
        );
        assert_inside(&place, mode, &trace);
    }
}

// What the trace must look like

/// Where a call has its descriptors of folders and its paths.
fn paths_of(call: &Call) -> Vec<(Option<&str>, &str)> {
    let at = |folder: usize, path: usize| (Some(call.argument(folder)), call.argument(path));
    match call.name.as_str() {
        "openat" | "openat2" | "statx" | "newfstatat" | "fstatat64" | "readlinkat" | "mkdirat"
        | "mknodat" | "unlinkat" | "fchmodat" | "fchmodat2" | "fchownat" | "utimensat"
        | "faccessat" | "faccessat2" | "name_to_handle_at" | "open_tree" => vec![at(0, 1)],
        "symlinkat" => vec![at(1, 2)],
        "linkat" | "renameat" | "renameat2" => vec![at(0, 1), at(2, 3)],
        "getxattr" | "setxattr" | "listxattr" | "removexattr" | "lgetxattr" | "lsetxattr"
        | "llistxattr" | "lremovexattr" => vec![(None, call.argument(0))],
        // By descriptor only.
        "fstat" | "fstatfs" | "fchmod" | "fchown" | "ftruncate" | "fchdir" | "fgetxattr"
        | "fsetxattr" | "flistxattr" | "fremovexattr" | "open_by_handle_at" => Vec::new(),
        other => panic!("a call that the daemon is not known to make: {other} {call:?}"),
    }
}

/// Calls that never follow a link at the end of a path.
fn never_follows(call: &Call) -> bool {
    let says = |flag: &str| {
        call.arguments
            .iter()
            .any(|argument| argument.contains(flag))
    };
    match call.name.as_str() {
        "readlinkat" | "mkdirat" | "mknodat" | "unlinkat" | "symlinkat" | "renameat"
        | "renameat2" => true,
        "linkat" => !says("AT_SYMLINK_FOLLOW"),
        "name_to_handle_at" => !says("AT_SYMLINK_FOLLOW"),
        "openat" | "openat2" => says("O_NOFOLLOW"),
        _ => says("AT_SYMLINK_NOFOLLOW"),
    }
}

/// A path is nothing, the number of a descriptor in the daemon's own list, or
/// one name that is not followed.
fn assert_one_step(place: &Place, call: &Call) {
    for (folder, path) in paths_of(call) {
        if path == "NULL" || path == "\"\"" {
            continue;
        }
        let name = path
            .strip_prefix('"')
            .and_then(|path| path.strip_suffix('"'));
        let name = name.unwrap_or_else(|| panic!("{call:?}"));
        let leads_to = folder.and_then(described);
        // The daemon's own files, at its end.
        if leads_to == place.path("run").to_str() && name.starts_with("socket") {
            continue;
        }
        assert!(
            !name.contains('/') && name != "." && name != "..",
            "{call:?}"
        );
        let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
        let Some(folder) = folder else {
            // Relative to the working directory, which is the list.
            assert!(is_number, "{call:?}");
            continue;
        };
        assert!(!folder.starts_with("AT_FDCWD"), "{call:?}");
        // The new name of a link is not followed, whatever the flags say.
        if call.name == "linkat" && path == call.argument(3) {
            continue;
        }
        // A mount of its own has no path to be shown, and neither has a share
        // that is the root.
        let is_list = leads_to.is_none_or(|path| {
            let list = path
                .strip_prefix("/proc/")
                .and_then(|rest| rest.strip_suffix("/fd"));
            path == "/" || list.is_some_and(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        });
        assert!(never_follows(call) || (is_number && is_list), "{call:?}");
    }
}

/// What a new descriptor leads to is in the share.
fn assert_leads_inside(place: &Place, mode: Mode, call: &Call) {
    let Some(path) = call.made() else { return };
    assert!(!path.contains(MARKER), "{mode:?}: {call:?}");
    let share = place.path("share");
    let inside = match mode {
        // Seen from outside the sandbox.
        Mode::Chroot | Mode::None => Path::new(path).starts_with(&share),
        Mode::Namespace | Mode::User => {
            // There the share is the root, and none of its names is one of the
            // host's root.
            let top = path.split('/').nth(1).unwrap_or_default();
            top.is_empty() || !Path::new("/").join(top).exists()
        }
    };
    assert!(inside, "{mode:?}: {call:?}");
}

fn assert_inside(place: &Place, mode: Mode, trace: &Trace) {
    if !geteuid().is_root() {
        // The kernel shows the memory and the descriptors of the daemon to root
        // only, and so strace does not know the paths.
        return;
    }
    for call in trace.calls() {
        assert_one_step(place, call);
        assert_leads_inside(place, mode, call);
    }
}

/// The descriptors that were opened for content, by what they lead to.
fn opened_for_content(trace: &Trace) -> Vec<&str> {
    let opens = trace
        .calls()
        .iter()
        .filter(|call| call.name.starts_with("openat"));
    let by_content = opens.filter(|call| !call.argument(2).contains("O_PATH"));
    by_content.filter_map(Call::made).collect()
}

// Names

#[test]
fn a_name_is_one_component() {
    let prepare = |place: &Place| {
        place.put("file", "content");
        place.folder("folder");
    };
    in_each_sandbox(&[], prepare, |c, place, mode| {
        let file = c.lookup(ROOT, "file").unwrap().nodeid;
        let folder = c.lookup(ROOT, "folder").unwrap().nodeid;
        let absolute = place.path("OUTSIDE-new");
        let secret = place.path("OUTSIDE-secret");
        let names = [
            "",
            ".",
            "..",
            "/",
            "../OUTSIDE-secret",
            "../OUTSIDE-new",
            "folder/../../OUTSIDE-secret",
            "folder/x",
            "folder/",
            "./x",
            "//x",
            absolute.to_str().unwrap(),
            secret.to_str().unwrap(),
            "/proc/self/root",
            &"n".repeat(256),
            &"n".repeat(1025),
        ];
        for name in names {
            let expected = if name.len() > 255 {
                libc::ENAMETOOLONG
            } else {
                libc::EINVAL
            };
            // Asked for on the root itself, the dots may only mean the root.
            match c.lookup(ROOT, name) {
                Ok(found) => assert!(matches!(name, "." | "..") && found.nodeid == ROOT),
                Err(errno) => assert!([libc::EINVAL, expected].contains(&errno), "{name}"),
            }
            for (operation, refused) in [
                ("mkdir", c.mkdir(ROOT, name, 0o755, 0).err()),
                (
                    "mknod",
                    c.mknod(ROOT, name, libc::S_IFREG | 0o600, 0, 0).err(),
                ),
                ("symlink", c.symlink(ROOT, name, "target").err()),
                ("create", c.create(ROOT, name, libc::O_RDWR, 0o600).err()),
                ("link", c.link(file, ROOT, name).err()),
                ("unlink", c.unlink(ROOT, name).err()),
                ("rmdir", c.rmdir(ROOT, name).err()),
                ("rename from", c.rename((ROOT, name), (ROOT, "new")).err()),
                ("rename to", c.rename((ROOT, "file"), (ROOT, name)).err()),
                (
                    "rename2 from",
                    c.rename2((folder, name), (ROOT, "new"), 0).err(),
                ),
                (
                    "rename2 to",
                    c.rename2((ROOT, "file"), (folder, name), 0).err(),
                ),
            ] {
                let refused = refused.unwrap_or_else(|| panic!("{mode:?}: {operation} {name}"));
                assert!(
                    [libc::EINVAL, expected].contains(&refused),
                    "{operation} {name}"
                );
            }
        }
        // Bytes behind the NUL are no part of the name.
        for opcode in [op::LOOKUP, op::UNLINK, op::RMDIR] {
            let body = Encoder::new().bytes(b"nothing\0/../../OUTSIDE-secret\0");
            let refused = c.call(&Request::new(opcode, ROOT, body)).err().unwrap();
            assert!([libc::ENOENT, libc::EINVAL].contains(&refused), "{refused}");
            // And a name without an end is none.
            let body = Encoder::new().bytes(b"file");
            let refused = c.call(&Request::new(opcode, ROOT, body)).err();
            assert_eq!(refused, Some(libc::EINVAL));
        }
    });
}

#[test]
fn a_share_has_no_way_up() {
    in_each_sandbox(
        &[],
        |place| place.folder("folder"),
        |c, place, mode| {
            let folder = c.lookup(ROOT, "folder").unwrap().nodeid;
            // From below the root the dots may lead to it and no further.
            if let Ok(up) = c.lookup(folder, "..") {
                assert_eq!(up.nodeid, ROOT);
            }
            // What a listing says about the folder above is about the share itself.
            let stream = c.opendir(ROOT).unwrap().fh;
            let share = fs::metadata(place.path("share")).unwrap();
            for entry in c.readdirplus(ROOT, stream, 0, 4096).unwrap() {
                if entry.name == b".." {
                    assert_eq!(entry.ino, share.ino(), "{mode:?}");
                    assert_eq!(entry.entry.unwrap().nodeid, 0, "{mode:?}");
                }
            }
        },
    );
}

// Links

/// Targets that would lead out if anybody followed them.
fn targets(place: &Place) -> Vec<String> {
    let secret = place.path("OUTSIDE-secret").to_str().unwrap().to_owned();
    let mut targets: Vec<_> = [
        "../OUTSIDE-secret",
        "../OUTSIDE",
        "folder/../../OUTSIDE-secret",
        "/etc/passwd",
        "/proc/self/root",
        "/proc/self/cwd",
        "/proc/self/mem",
        "/proc/self/fd/0",
        "/proc/1/root",
        "/dev/null",
        "..",
        "/",
    ]
    .map(str::to_owned)
    .into();
    targets.push(secret);
    targets
}

#[test]
fn a_link_is_read_and_never_followed() {
    in_each_sandbox(
        &[],
        |place| place.folder("folder"),
        |c, place, mode| {
            for (number, target) in targets(place).into_iter().enumerate() {
                let name = &format!("link{number}");
                // One that the guest has made, and one of the host.
                let node = if number % 2 == 0 {
                    c.symlink(ROOT, name, &target).unwrap().nodeid
                } else {
                    place.link(name, &target);
                    c.lookup(ROOT, name).unwrap().nodeid
                };
                assert_eq!(c.readlink(node).unwrap(), target.as_bytes());
                let kind = c.getattr(node).unwrap().attr.mode & libc::S_IFMT;
                assert_eq!(kind, libc::S_IFLNK, "{mode:?}: {target}");
                for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_RDWR | libc::O_TRUNC] {
                    assert_eq!(c.open(node, flags).err(), Some(libc::ELOOP), "{target}");
                    let created = c.create(ROOT, name, flags, 0o600);
                    assert_eq!(created.err(), Some(libc::ELOOP), "{target}");
                }
                assert_eq!(c.opendir(node).err(), Some(libc::ENOTDIR));
                assert_eq!(c.lookup(node, "secret").err(), Some(libc::ENOTDIR));
                assert_eq!(c.mkdir(node, "new", 0o755, 0).err(), Some(libc::ENOTDIR));
                assert_eq!(c.unlink(node, "secret").err(), Some(libc::ENOTDIR));
                let created = c.create(node, "new", libc::O_RDWR, 0o600);
                assert_eq!(created.err(), Some(libc::ENOTDIR));
                let cut = SetAttr {
                    size: Some(0),
                    ..SetAttr::default()
                };
                assert_eq!(c.setattr(node, &cut).err(), Some(libc::EINVAL));
                // These have no meaning for a link, or change the link itself.
                let opened = SetAttr {
                    mode: Some(0o4777),
                    ..SetAttr::default()
                };
                let _ = c.setattr(node, &opened);
                c.setattr(
                    node,
                    &SetAttr {
                        mtime: Some((1, 0)),
                        ..SetAttr::default()
                    },
                )
                .unwrap();
                c.setxattr(node, "user.x", b"1", 0, false).unwrap_err();
                c.getxattr(node, "user.x", 10).unwrap_err();
                let _ = c.listxattr(node, 100);
                // Another name of the link, not of what it leads to.
                let twin = c.link(node, ROOT, &format!("twin{number}")).unwrap();
                assert_eq!(twin.attr.mode & libc::S_IFMT, libc::S_IFLNK, "{target}");
                let _ = c.statfs(node);
                let _ = c.syncfs(node);
                c.access(node, 4).unwrap();
            }
        },
    );
}

#[test]
fn names_that_are_numbers_are_files_of_the_share() {
    let prepare = |place: &Place| {
        for number in 0..30 {
            place.put(&number.to_string(), &format!("file {number}"));
        }
        place.link("self", "/proc/self");
    };
    in_each_sandbox(&[], prepare, |c, _, _| {
        for number in 0..30 {
            let node = c.lookup(ROOT, number.to_string()).unwrap().nodeid;
            let open = c.open(node, libc::O_RDONLY).unwrap().fh;
            let content = format!("file {number}");
            assert_eq!(c.read(node, open, 0, 100).unwrap(), content.as_bytes());
            c.setxattr(node, "user.number", content.as_bytes(), 0, false)
                .unwrap();
            assert_eq!(
                c.getxattr(node, "user.number", 100).unwrap(),
                content.as_bytes()
            );
            assert_eq!(
                c.link(node, ROOT, &format!("l{number}")).unwrap().nodeid,
                node
            );
        }
        // The list of descriptors is no part of the share.
        assert_eq!(c.lookup(ROOT, "proc").err(), Some(libc::ENOENT));
        assert_eq!(c.walk("self/fd").err(), Some(libc::ENOTDIR));
    });
}

// Races with somebody on the host

/// Exchanges two names until it is dropped.
struct Swapping<'scope> {
    stop: &'scope AtomicBool,
}

impl Drop for Swapping<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs `attempt` while two names in the share are exchanged all the time.
fn while_swapping(place: &Place, names: [&str; 2], attempt: impl FnOnce()) {
    let [a, b] = names.map(|name| place.share(name));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        // Also when the attempt panics.
        let _swapping = Swapping { stop: &stop };
        attempt();
    });
}

/// How often a race is run in each sandbox.
const ROUNDS: u32 = 250;

#[test]
fn a_folder_that_becomes_a_link_while_it_is_walked_leads_nowhere() {
    let prepare = |place: &Place| {
        place.folder("walked");
        place.folder("walked/below");
        place.put("walked/below/file", "inside");
        place.put("walked/secret", "inside");
        place.link("link", "../OUTSIDE");
    };
    in_each_sandbox(&[], prepare, |c, place, mode| {
        let (mut folders, mut links) = (0, 0);
        while_swapping(place, ["walked", "link"], || {
            for round in 0..ROUNDS {
                let Ok(walked) = c.lookup(ROOT, "walked") else {
                    continue;
                };
                match walked.attr.mode & libc::S_IFMT {
                    libc::S_IFDIR => folders += 1,
                    libc::S_IFLNK => links += 1,
                    kind => panic!("{kind:o}"),
                }
                if let Ok(secret) = c.lookup(walked.nodeid, "secret") {
                    let open = c.open(secret.nodeid, libc::O_RDWR).unwrap().fh;
                    let content = c.read(secret.nodeid, open, 0, 100).unwrap();
                    assert_eq!(content, b"inside", "{mode:?}");
                    c.release(secret.nodeid, open).unwrap();
                }
                let _ = c.walk("walked/below/file");
                let _ = c.create(walked.nodeid, &format!("new{round}"), libc::O_RDWR, 0o600);
                let _ = c.mkdir(walked.nodeid, &format!("folder{round}"), 0o755, 0);
                let _ = c.symlink(walked.nodeid, &format!("link{round}"), "x");
                let _ = c.rename((walked.nodeid, &format!("new{round}")), (ROOT, "moved"));
                let _ = c.unlink(walked.nodeid, &format!("link{round}"));
                if let Ok(stream) = c.opendir(walked.nodeid) {
                    let listed = c.readdirplus(walked.nodeid, stream.fh, 0, 4096);
                    listed.unwrap();
                    c.releasedir(walked.nodeid, stream.fh).unwrap();
                }
                c.forget(walked.nodeid, 1);
            }
        });
        assert!(
            folders > 0 && links > 0,
            "{mode:?}: {folders} {links}: no race"
        );
    });
}

#[test]
fn a_file_that_becomes_a_link_while_it_is_opened_stays_in_the_share() {
    let prepare = |place: &Place| {
        place.put("file", "inside");
        place.link("link", place.path("OUTSIDE-secret"));
    };
    in_each_sandbox(&[], prepare, |c, place, mode| {
        let mut opened = 0;
        while_swapping(place, ["file", "link"], || {
            for _ in 0..ROUNDS {
                let Ok(found) = c.lookup(ROOT, "file") else {
                    continue;
                };
                let node = found.nodeid;
                if let Ok(open) = c.open(node, libc::O_RDWR) {
                    opened += 1;
                    assert_eq!(c.read(node, open.fh, 0, 100).unwrap(), b"inside");
                    c.release(node, open.fh).unwrap();
                }
                if let Ok((entry, open)) = c.create(ROOT, "file", libc::O_RDWR, 0o600) {
                    let content = c.read(entry.nodeid, open.fh, 0, 100).unwrap();
                    assert_eq!(content, b"inside", "{mode:?}");
                    c.write(entry.nodeid, open.fh, 0, b"inside").unwrap();
                    c.release(entry.nodeid, open.fh).unwrap();
                }
                let owner = SetAttr {
                    mode: Some(0o600),
                    mtime: Some((1, 1)),
                    ..SetAttr::default()
                };
                let _ = c.setattr(node, &owner);
                let _ = c.setxattr(node, "user.x", b"1", 0, false);
                let _ = c.link(node, ROOT, "twin");
                let _ = c.unlink(ROOT, "twin");
                let _ = c.access(node, 2);
                c.forget(node, 1);
            }
        });
        assert!(opened > 0, "{mode:?}: the file was never there");
    });
}

#[test]
fn a_file_that_becomes_a_fifo_while_it_is_opened_blocks_nobody() {
    let prepare = |place: &Place| place.put("file", "inside");
    in_each_sandbox(&[], prepare, |c, place, _| {
        c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o666, 0, 0).unwrap();
        while_swapping(place, ["file", "fifo"], || {
            for _ in 0..ROUNDS {
                if let Ok(found) = c.lookup(ROOT, "file") {
                    let flags = [libc::O_RDONLY, libc::O_WRONLY];
                    for flags in flags {
                        if let Ok(open) = c.open(found.nodeid, flags) {
                            c.release(found.nodeid, open.fh).unwrap();
                        }
                    }
                    c.forget(found.nodeid, 1);
                }
                if let Ok((entry, open)) = c.create(ROOT, "file", libc::O_WRONLY, 0o600) {
                    c.release(entry.nodeid, open.fh).unwrap();
                }
            }
        });
    });
}

#[test]
fn a_folder_that_is_moved_out_has_nothing_above_or_beside_it() {
    for &mode in modes() {
        let place = Place::new(mode);
        place.folder("a");
        place.folder("a/moved");
        place.put("a/moved/file", "inside");
        let mut guest = Guest::new(mode, place, &[]);
        let c = &mut guest.client;
        let place = &guest.place;
        let moved = c.walk("a/moved").unwrap().nodeid;
        let stream = c.opendir(moved).unwrap().fh;
        // What is held stays what it is; it is only somewhere else now.
        fs::rename(place.share("a/moved"), place.path("OUTSIDE/moved")).unwrap();
        let file = c.lookup(moved, "file").unwrap().nodeid;
        let open = c.open(file, libc::O_RDONLY).unwrap().fh;
        assert_eq!(c.read(file, open, 0, 100).unwrap(), b"inside");
        for name in ["..", "../secret", "../../OUTSIDE-secret"] {
            match c.lookup(moved, name) {
                Ok(up) => assert_eq!(up.nodeid, ROOT, "{mode:?}: {name}"),
                Err(errno) => {
                    assert!([libc::EINVAL, libc::ESTALE, libc::ENOENT].contains(&errno));
                }
            }
        }
        let share = fs::metadata(place.path("share")).unwrap();
        let outside = fs::metadata(place.path("OUTSIDE")).unwrap();
        for entry in c.readdirplus(moved, stream, 0, 4096).unwrap() {
            if entry.name == b".." {
                // The number alone is no way there.
                assert_eq!(entry.entry.unwrap().nodeid, 0);
                assert!([share.ino(), outside.ino()].contains(&entry.ino));
            }
        }
        assert_eq!(c.walk("a/moved").err(), Some(libc::ENOENT));
        let (place, trace) = guest.end();
        for call in trace.calls().iter().filter(|_| geteuid().is_root()) {
            assert_one_step(&place, call);
            // What was moved is what may be seen, and nothing else.
            let made = call.made().unwrap_or_default();
            let name = made.rsplit_once(MARKER).map(|(_, name)| name);
            assert!(
                name.is_none_or(|name| name.starts_with("/moved")),
                "{mode:?}: {call:?}"
            );
        }
    }
}

// Special files

#[test]
fn devices_fifos_and_sockets_are_made_and_never_opened() {
    for &mode in modes() {
        let mut guest = Guest::new(mode, Place::new(mode), &[]);
        let c = &mut guest.client;
        let mut made = 0;
        for (name, kind, device) in [
            ("fifo", libc::S_IFIFO, 0),
            ("socket", libc::S_IFSOCK, 0),
            ("null", libc::S_IFCHR, 0x103),
            ("mem", libc::S_IFCHR, 0x101),
            ("disk", libc::S_IFBLK, 0x800),
            ("loop", libc::S_IFBLK, 0x700),
        ] {
            let node = match c.mknod(ROOT, name, kind | 0o666, device, 0) {
                Ok(entry) => entry.nodeid,
                // Not for an ordinary user.
                Err(errno) => {
                    assert_eq!(errno, libc::EPERM, "{mode:?}: {name}");
                    continue;
                }
            };
            made += 1;
            let on_host = fs::symlink_metadata(guest.place.share(name)).unwrap();
            assert!(!on_host.is_file());
            for flags in [
                libc::O_RDONLY,
                libc::O_WRONLY,
                libc::O_RDWR | libc::O_NONBLOCK,
                libc::O_RDONLY | libc::O_TRUNC,
                libc::O_PATH,
            ] {
                assert_eq!(
                    c.open(node, flags).err(),
                    Some(libc::EPERM),
                    "{mode:?}: {name}"
                );
                let created = c.create(ROOT, name, flags, 0o600);
                assert_eq!(created.err(), Some(libc::EPERM), "{mode:?}: {name}");
            }
            assert_eq!(c.opendir(node).err(), Some(libc::ENOTDIR));
            let cut = SetAttr {
                size: Some(0),
                ..SetAttr::default()
            };
            assert_eq!(c.setattr(node, &cut).err(), Some(libc::EINVAL));
            assert_eq!(c.syncfs(node).err(), Some(libc::EINVAL));
            // Its attributes are a file's like any other's.
            let mode_of = SetAttr {
                mode: Some(0o600),
                ..SetAttr::default()
            };
            c.setattr(node, &mode_of).unwrap();
        }
        assert!(made >= 2);
        let (place, trace) = guest.end();
        assert_inside(&place, mode, &trace);
        for path in opened_for_content(&trace) {
            let name = path.rsplit('/').next().unwrap();
            let kind = fs::symlink_metadata(place.share(name));
            let special = kind.is_ok_and(|stat| {
                let kind = stat.file_type();
                kind.is_fifo()
                    || kind.is_socket()
                    || kind.is_char_device()
                    || kind.is_block_device()
            });
            assert!(!special, "{mode:?}: {path}");
        }
    }
}

// Numbers

#[test]
fn stale_and_foreign_numbers_are_refused() {
    let prepare = |place: &Place| {
        place.put("file", "content");
        place.put("other", "content");
        place.folder("folder");
    };
    in_each_sandbox(&[], prepare, |c, _, mode| {
        let file = c.lookup(ROOT, "file").unwrap().nodeid;
        let other = c.lookup(ROOT, "other").unwrap().nodeid;
        let folder = c.lookup(ROOT, "folder").unwrap().nodeid;
        let open = c.open(file, libc::O_RDWR).unwrap().fh;
        let stream = c.opendir(folder).unwrap().fh;
        let released = c.open(file, libc::O_RDWR).unwrap().fh;
        c.release(file, released).unwrap();
        let forgotten = c.lookup(ROOT, "other").unwrap().nodeid;
        c.forget(other, 2);

        for node in [0, forgotten, folder + 1000, 1 << 32, 1 << 63, u64::MAX] {
            let stale = Some(libc::ESTALE);
            for refused in [
                c.getattr(node).err(),
                c.lookup(node, "file").err(),
                c.open(node, libc::O_RDONLY).err(),
                c.opendir(node).err(),
                c.readlink(node).err(),
                c.mkdir(node, "new", 0o755, 0).err(),
                c.create(node, "new", libc::O_RDWR, 0o600).err(),
                c.unlink(node, "file").err(),
                c.link(node, ROOT, "new").err(),
                c.link(file, node, "new").err(),
                c.rename((node, "file"), (ROOT, "new")).err(),
                c.rename((ROOT, "file"), (node, "new")).err(),
                c.setattr(node, &SetAttr::default()).err(),
                c.statfs(node).err(),
                c.access(node, 0).err(),
                c.listxattr(node, 100).err(),
            ] {
                assert_eq!(refused, stale, "{mode:?}: {node:#x}");
            }
        }
        // Not only a number of a handle, but one of the node, of its kind, and
        // not yet given back.
        for (node, handle) in [
            (file, released),
            (file, stream),
            (folder, open),
            (file, open + 1000),
            (file, u64::MAX),
            (ROOT, open),
        ] {
            let bad = Some(libc::EBADF);
            let read = Request::new(op::READ, node, read_in(handle, 0, 100)).space(100);
            let write = write_in(handle, 0, 1, 0, 0).bytes(b"x");
            for request in [
                read,
                Request::new(op::WRITE, node, write),
                Request::new(op::FLUSH, node, Encoder::new().u64(handle).u64(0).u64(0)),
                Request::new(op::FSYNC, node, Encoder::new().u64(handle).u64(0)),
            ] {
                let refused = c.call(&request).err();
                assert_eq!(refused, bad, "{mode:?}: {} {node} {handle}", request.opcode);
            }
            let refused = c.fallocate(node, handle, 0, 10, 0).err();
            assert_eq!(refused, bad, "{mode:?}: {node} {handle}");
        }
        let released = Request::new(op::RELEASE, file, release_in(released));
        assert_eq!(c.call(&released).err(), Some(libc::EBADF));
        // Forgotten more often than it was looked up, the root included.
        c.forget(folder, u64::MAX);
        c.forget(ROOT, u64::MAX);
        c.forget(ROOT, u64::MAX);
        assert_eq!(c.getattr(folder).err(), Some(libc::ESTALE));
        c.getattr(ROOT).unwrap();
        assert_eq!(c.read(file, open, 0, 100).unwrap(), b"content");
    });
}

// What libraries do

#[test]
fn libraries_read_nothing_that_a_guest_has_put_where_they_look() {
    // Where the daemon's C library and runtime look for the number of processors
    // and the like: inside, these paths lead into the share.
    const PLACES: [&str; 4] = [
        "proc/self/cgroup",
        "proc/sys/vm/overcommit_memory",
        "sys/devices/system/cpu/online",
        "etc/localtime",
    ];
    let prepare = |place: &Place| {
        for path in PLACES {
            let mut folder = String::new();
            for name in Path::new(path).parent().unwrap() {
                folder = format!("{folder}{}/", name.to_str().unwrap());
                if !place.share(&folder).exists() {
                    place.folder(&folder);
                }
            }
            // Whoever opens it waits for ever.
            let done = Command::new("mkfifo").arg(place.share(path)).status();
            assert!(done.unwrap().success());
        }
    };
    for &mode in modes() {
        for more in [&["--thread-pool-size=12"][..], &[]] {
            let place = Place::new(mode);
            prepare(&place);
            let mut guest = Guest::new(mode, place, more);
            let c = &mut guest.client;
            for round in 0..20 {
                let name = &format!("file{round}");
                let (file, open) = c.create(ROOT, name, libc::O_RDWR, 0o600).unwrap();
                c.write(file.nodeid, open.fh, 0, &vec![1; 300_000]).unwrap();
                let stream = c.opendir(ROOT).unwrap().fh;
                c.readdirplus(ROOT, stream, 0, 65536).unwrap();
                c.setxattr(file.nodeid, "user.x", &[1; 2000], 0, false)
                    .unwrap();
            }
            let (place, trace) = guest.end();
            for call in trace.calls().iter().filter(|_| geteuid().is_root()) {
                assert_one_step(&place, call);
            }
        }
    }
}

// What the operator and the host do

/// A mount on a folder, for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn on(folder: PathBuf, arguments: &[&str]) -> Self {
        let mut command = Command::new("mount");
        let done = command.args(arguments).arg(&folder).status().unwrap();
        assert!(done.success(), "mount {arguments:?} {folder:?}");
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(done.unwrap().success() || thread::panicking());
    }
}

#[test]
fn a_mount_that_goes_away_takes_nothing_with_it() {
    if !geteuid().is_root() {
        println!("a_mount_that_goes_away_takes_nothing_with_it skips itself: it needs root");
        return;
    }
    for &mode in modes() {
        let place = Place::new(mode);
        let share = place.share("");
        // What is unmounted later has to reach the namespace of the daemon.
        let _shared = Mounted::on(
            share.clone(),
            &["--bind", "--make-shared", share.to_str().unwrap()],
        );
        place.folder("mounted");
        let mounted = Mounted::on(place.share("mounted"), &["-t", "tmpfs", "none"]);
        place.give_to_owner("share/mounted");
        place.put("mounted/file", "on the mount");
        let mut guest = Guest::new(mode, place, &[]);
        let c = &mut guest.client;
        let above = c.walk("mounted").unwrap().nodeid;
        let file = c.lookup(above, "file").unwrap().nodeid;
        let open = c.open(file, libc::O_RDWR).unwrap().fh;
        let stream = c.opendir(above).unwrap().fh;

        drop(mounted);
        // The name leads to what was beneath, which has nothing.
        let beneath = c.walk("mounted").unwrap().nodeid;
        assert_ne!(beneath, above, "{mode:?}");
        assert_eq!(c.lookup(beneath, "file").err(), Some(libc::ENOENT));
        // What is held goes on, and leads nowhere else.
        assert_eq!(c.read(file, open, 0, 100).unwrap(), b"on the mount");
        c.write(file, open, 0, b"ON").unwrap();
        assert_eq!(c.lookup(above, "file").unwrap().nodeid, file);
        c.readdirplus(above, stream, 0, 4096).unwrap();
        if let Ok(up) = c.lookup(above, "..") {
            assert_eq!(up.nodeid, ROOT, "{mode:?}");
        }
        assert_eq!(
            c.rename((above, "file"), (ROOT, "file")).err(),
            Some(libc::EXDEV)
        );
        assert_eq!(c.link(file, ROOT, "file").err(), Some(libc::EXDEV));

        let (place, trace) = guest.end();
        for call in trace.calls() {
            assert_one_step(&place, call);
            assert!(
                !call.made().unwrap_or_default().contains(MARKER),
                "{call:?}"
            );
        }
    }
}

#[test]
fn the_socket_and_the_pid_file_lead_the_daemon_nowhere() {
    for &mode in modes() {
        let mut place = Place::new(mode);
        // A folly of the operator: the guest has them in its hands.
        place.socket = "share/socket";
        let before = place.outside();
        let mut guest = Guest::new(mode, place, &[]);
        let c = &mut guest.client;
        let socket = c.walk("socket").unwrap();
        assert_eq!(socket.attr.mode & libc::S_IFMT, libc::S_IFSOCK);
        let refused = c.open(socket.nodeid, libc::O_RDWR).err();
        assert_eq!(refused, Some(libc::EPERM), "{mode:?}");
        let pid_file = c.walk("socket.pid").unwrap().nodeid;
        let open = c.open(pid_file, libc::O_RDWR).unwrap().fh;
        c.write(pid_file, open, 0, b"1\n").unwrap();

        // Something else gets their names before the daemon removes them.
        let secret = guest.place.path("OUTSIDE-secret");
        c.rename((ROOT, "socket.pid"), (ROOT, "old.pid")).unwrap();
        c.symlink(ROOT, "socket.pid", secret.to_str().unwrap())
            .unwrap();
        c.unlink(ROOT, "socket").unwrap();
        c.create(ROOT, "socket", libc::O_RDWR, 0o600).unwrap();
        let (place, trace) = guest.end();
        assert_inside(&place, mode, &trace);
        assert_eq!(place.outside(), before, "{mode:?}");
        for name in ["socket", "socket.pid", "old.pid"] {
            let left = fs::symlink_metadata(place.share(name));
            assert!(left.is_ok(), "{mode:?}: {name} is gone");
        }
    }
}

#[test]
fn nothing_is_opened_for_writing_in_a_share_that_is_only_read() {
    let prepare = |place: &Place| place.put("file", "content");
    for &mode in modes() {
        let place = Place::new(mode);
        prepare(&place);
        let mut guest = Guest::new(mode, place, &["--readonly"]);
        let c = &mut guest.client;
        let file = c.walk("file").unwrap().nodeid;
        let open = c.open(file, libc::O_RDONLY).unwrap().fh;
        let cut = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        let cut_open = SetAttr {
            fh: Some(open),
            ..cut
        };
        for refused in [
            c.write(file, open, 0, b"x").err(),
            c.write_cached(file, open, 0, b"x").err(),
            c.open(file, libc::O_RDWR).err(),
            c.open(file, libc::O_WRONLY | libc::O_TRUNC).err(),
            c.open(file, 3).err(),
            c.create(ROOT, "file", libc::O_RDWR | libc::O_TRUNC, 0o600)
                .err(),
            c.create(ROOT, "new", libc::O_RDONLY, 0o600).err(),
            c.setattr(file, &cut).err(),
            c.setattr(file, &cut_open).err(),
            c.fallocate(file, open, 0, 100, 0).err(),
            c.copy_file_range((file, open, 0), (file, open, 3), 3, 0)
                .err(),
            c.link(file, ROOT, "new").err(),
            c.rename((ROOT, "file"), (ROOT, "new")).err(),
            c.unlink(ROOT, "file").err(),
            c.setxattr(file, "user.x", b"1", 0, false).err(),
        ] {
            assert_eq!(refused, Some(libc::EROFS), "{mode:?}");
        }
        assert_eq!(c.read(file, open, 0, 100).unwrap(), b"content");
        let (place, trace) = guest.end();
        assert_inside(&place, mode, &trace);
        assert_eq!(fs::read(place.share("file")).unwrap(), b"content");
        for call in trace
            .calls()
            .iter()
            .filter(|call| call.name.starts_with("openat"))
        {
            let flags = call.argument(2);
            let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_ACCMODE"];
            assert!(!writes.iter().any(|flag| flags.contains(flag)), "{call:?}");
        }
    }
}

// What the daemon holds

/// What each descriptor of a process leads to, by its number.
fn descriptors(pid: &str) -> Vec<(u32, String)> {
    let list = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let one = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        // The descriptor of this list is gone by then.
        let path = fs::read_link(entry.path()).ok()?;
        Some((number, path.to_str()?.to_owned()))
    };
    list.filter_map(|entry| one(entry.unwrap())).collect()
}

#[test]
fn the_descriptors_of_the_daemon_are_of_the_kinds_that_are_documented() {
    if !geteuid().is_root() {
        println!("the descriptors of the daemon are shown to root only");
        return;
    }
    for &mode in modes() {
        let place = Place::new(mode);
        place.put("file", "content");
        place.folder("folder");
        let mut guest = Guest::new(mode, place, &[]);
        let c = &mut guest.client;
        let file = c.walk("file").unwrap().nodeid;
        let folder = c.walk("folder").unwrap().nodeid;
        c.open(file, libc::O_RDWR).unwrap();
        c.opendir(folder).unwrap();

        let pid = fs::read_to_string(guest.place.path("run/socket.pid")).unwrap();
        let outside = pid.trim();
        // What whoever runs the tests has passed on stays open outside: it may
        // be a lock.
        let passed_on: Vec<_> = descriptors("self")
            .into_iter()
            .map(|(_, path)| path)
            .filter(|path| path.starts_with("/dev/") || path.starts_with("pipe:"))
            .collect();
        let children = fs::read_to_string(format!("/proc/{outside}/task/{outside}/children"));
        let children = children.unwrap();
        let share = guest.place.path("share");
        let run = guest.place.path("run");
        let anonymous = |path: &str| {
            ["socket:[", "anon_inode:[eventfd]", "anon_inode:[eventpoll]"]
                .iter()
                .any(|kind| path.starts_with(kind))
        };
        let serving = if mode == Mode::None {
            outside
        } else {
            for (number, path) in descriptors(outside) {
                let own_files = Path::new(&path).starts_with(&run);
                assert!(
                    number < 3 || anonymous(&path) || own_files || passed_on.contains(&path),
                    "{mode:?}: outside: {number} is {path}"
                );
            }
            children.trim()
        };
        for (number, path) in descriptors(serving) {
            // Input, output and log; the front end, queues and signals; the
            // guest's memory; the list of descriptors; what the guest holds.
            let in_share = match mode {
                Mode::Chroot | Mode::None => Path::new(&path).starts_with(&share),
                Mode::Namespace | Mode::User => ["/", "/file", "/folder"].contains(&path.as_str()),
            };
            let is_list = path == format!("/proc/{serving}/fd");
            let memory = path.starts_with("/memfd:");
            let is_locked_in = mode != Mode::None;
            let own_files = Path::new(&path).starts_with(&run) || passed_on.contains(&path);
            let own_files = own_files && !is_locked_in;
            assert!(
                number < 3 || anonymous(&path) || in_share || is_list || memory || own_files,
                "{mode:?}: {number} is {path}"
            );
        }
        guest.end();
    }
}
