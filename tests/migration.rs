//! Moving a guest from daemon to daemon, over a real socket: everything that it
//! holds must be there on the other side.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostTransferStateDirection as Direction;
use vhost::vhost_user::message::VhostTransferStatePhase;
use virtiofsd::sys::file_handle::name_to_handle;

use common::daemon::{Daemon, default_binary};
use common::frontend::{Config, REQUEST, Vmm};
use common::fuse_client::Client;
use common::host_fs::HostFs;
use common::machine::Machine;
use common::references;
use common::wire::{Entry, ROOT};

fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("{test} skips itself: it needs root");
    }
    is_root
}

/// What lets a daemon open files by their handles; it takes root.
const MAY_OPEN_HANDLES: &str = "--modcaps=+dac_read_search";

fn share() -> TempDir {
    TempDir::with_prefix("virtiofsd-share-").unwrap()
}

/// A tree with one of everything.
fn furnish(share: &Path) {
    let at = |path: &str| share.join(path);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir(at("many")).unwrap();
    for number in 0..300 {
        fs::write(at(&format!("many/{number:03}")), "").unwrap();
    }
    fs::write(at("a/b/file"), "inside a/b").unwrap();
    fs::write(at("top"), "at the top").unwrap();
    fs::hard_link(at("top"), at("a/other-name")).unwrap();
    symlink("top", at("link")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        at("fifo"),
        rustix::fs::Mode::from_raw_mode(0o644),
    )
    .unwrap();
}

/// What a guest holds of such a tree.
struct Held {
    directory: Entry,
    inner: Entry,
    file: Entry,
    top: Entry,
    link: Entry,
    fifo: Entry,
    many: Entry,
    file_handle: u64,
    top_handle: u64,
    many_handle: u64,
    /// Names read before, and the position.
    read: Vec<String>,
    position: u64,
}

impl Held {
    /// Looks everything up and opens it.
    fn by(client: &mut Client) -> Self {
        let directory = client.lookup(ROOT, "a").unwrap();
        let inner = client.lookup(directory.nodeid, "b").unwrap();
        let file = client.lookup(inner.nodeid, "file").unwrap();
        for _ in 0..4 {
            client.lookup(inner.nodeid, "file").unwrap();
        }
        let top = client.lookup(ROOT, "top").unwrap();
        let link = client.lookup(ROOT, "link").unwrap();
        let fifo = client.lookup(ROOT, "fifo").unwrap();
        let many = client.lookup(ROOT, "many").unwrap();
        let file_handle = client.open(file.nodeid, libc::O_RDWR).unwrap().fh;
        let top_handle = client.open(top.nodeid, libc::O_RDONLY).unwrap().fh;
        let many_handle = client.opendir(many.nodeid).unwrap().fh;
        let some = client.readdir(many.nodeid, many_handle, 0, 1000).unwrap();
        let read = some.iter().map(|entry| entry.name().to_owned()).collect();
        Self {
            directory,
            inner,
            file,
            top,
            link,
            fifo,
            many,
            file_handle,
            top_handle,
            many_handle,
            read,
            position: some.last().unwrap().off,
        }
    }

    /// Everything is as it was, and goes on.
    fn check(&mut self, client: &mut Client) {
        for entry in [
            &self.directory,
            &self.inner,
            &self.file,
            &self.top,
            &self.link,
            &self.fifo,
            &self.many,
        ] {
            let attr = client.getattr(entry.nodeid).unwrap().attr;
            assert_eq!((attr.ino, attr.mode), (entry.attr.ino, entry.attr.mode));
        }
        let (file, handle) = (self.file.nodeid, self.file_handle);
        assert_eq!(client.read(file, handle, 0, 100).unwrap(), b"inside a/b");
        assert_eq!(client.write(file, handle, 3, b"IDE"), Ok(3));
        assert_eq!(client.read(file, handle, 0, 100).unwrap(), b"insIDE a/b");
        assert_eq!(client.write(file, handle, 3, b"ide"), Ok(3));
        let (top, handle) = (self.top.nodeid, self.top_handle);
        assert_eq!(client.read(top, handle, 0, 100).unwrap(), b"at the top");
        assert_eq!(client.write(top, handle, 0, b"x"), Err(libc::EBADF));
        assert_eq!(client.readlink(self.link.nodeid).unwrap(), b"top");
        // A name that is known leads to the same node.
        let again = client.lookup(ROOT, "top").unwrap();
        assert_eq!(again.nodeid, top);
        client.forget(top, 1);
        let other = client.lookup(self.directory.nodeid, "other-name").unwrap();
        assert_eq!(other.nodeid, top);
        client.forget(top, 1);
        // The directory goes on at the cookie, each name once.
        let (node, handle) = (self.many.nodeid, self.many_handle);
        let mut names = self.read.clone();
        let mut position = self.position;
        loop {
            let part = client.readdir(node, handle, position, 1000).unwrap();
            let Some(last) = part.last() else { break };
            position = last.off;
            names.extend(part.iter().map(|entry| entry.name().to_owned()));
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 302);
    }

    /// The counts are exact: the last forget, and no other, lets go of a node.
    fn forget(&self, client: &mut Client) {
        client.release(self.file.nodeid, self.file_handle).unwrap();
        client.forget(self.file.nodeid, 4);
        assert!(client.getattr(self.file.nodeid).is_ok());
        client.forget(self.file.nodeid, 1);
        assert!(client.getattr(self.file.nodeid).is_err());
        // Its directory was counted for the stream, not for the guest.
        client.forget(self.inner.nodeid, 1);
        assert!(client.getattr(self.inner.nodeid).is_err());
        assert!(client.getattr(self.directory.nodeid).is_ok());
    }
}

/// What the daemon complained about, the machine's limits aside.
fn complaints(machine: Machine) -> Vec<String> {
    let mut complaints = machine.finish().complaints();
    complaints.retain(|line| !line.contains("open file descriptors"));
    complaints
}

// ---- the round trip

#[test]
fn a_guest_goes_on_where_it_was_several_times() {
    let share = share();
    furnish(share.path());
    for args in [
        &["--migration-mode=file-handles", MAY_OPEN_HANDLES][..],
        &[],
        &["--migration-verify-handles", "--migration-confirm-paths"],
        &["--thread-pool-size=2", "--cache=always"],
    ] {
        if args.contains(&MAY_OPEN_HANDLES) && !is_root("a part") {
            continue;
        }
        let start = || Daemon::start(share.path(), args);
        let mut machine = Machine::boot(start());
        let mut held = Held::by(&mut machine.client);
        for _ in 0..3 {
            machine = machine.migrate(start());
            held.check(&mut machine.client);
        }
        held.forget(&mut machine.client);
        assert_eq!(complaints(machine), [""; 0]);
    }
}

#[test]
fn paths_lead_to_a_copy_of_the_tree() {
    let (from, to) = (share(), share());
    furnish(from.path());
    furnish(to.path());
    let mut machine = Machine::boot(Daemon::start(from.path(), &[]));
    let held = Held::by(&mut machine.client);
    let mut machine = machine.migrate(Daemon::start(to.path(), &[]));
    let client = &mut machine.client;
    let ino = client.getattr(held.file.nodeid).unwrap().attr.ino;
    assert_eq!(ino, fs::metadata(to.path().join("a/b/file")).unwrap().ino());
    client
        .write(held.file.nodeid, held.file_handle, 0, b"THERE")
        .unwrap();
    let read = |share: &TempDir| fs::read_to_string(share.path().join("a/b/file")).unwrap();
    assert_eq!(read(&to), "THEREe a/b");
    assert_eq!(read(&from), "inside a/b");
    machine.finish();
}

#[test]
fn handles_do_not_lead_to_a_copy_of_the_tree() {
    if !is_root("handles_do_not_lead_to_a_copy_of_the_tree") {
        return;
    }
    let (from, to) = (share(), share());
    furnish(from.path());
    furnish(to.path());
    for (args, expected) in [
        (&["--migration-verify-handles"][..], "is not the one that"),
        (
            &["--migration-mode=file-handles", MAY_OPEN_HANDLES],
            "leads to no file below the shared directory",
        ),
    ] {
        let mut machine = Machine::boot(Daemon::start(from.path(), args));
        Held::by(&mut machine.client);
        let (state, _) = machine.save();
        let other = Daemon::start(to.path(), args);
        let mut vmm = Vmm::connect(other.socket(), &Config::default());
        assert!(!vmm.load_state(&state.unwrap()));
        other.expect_log(expected);
    }
}

#[test]
fn what_changes_during_the_preparation_is_followed() {
    let share = share();
    furnish(share.path());
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let held = Held::by(&mut machine.client);
    let client = &mut machine.client;
    let _log = machine.vmm.set_logging(true);
    // The preparation may be anywhere meanwhile.
    client.rename((ROOT, "a"), (ROOT, "moved")).unwrap();
    let sub = client.mkdir(ROOT, "sub", 0o755, 0).unwrap();
    client
        .rename((held.inner.nodeid, "file"), (sub.nodeid, "file"))
        .unwrap();
    let (made, open) = client
        .create(sub.nodeid, "made", libc::O_RDWR, 0o644)
        .unwrap();
    client.write(made.nodeid, open.fh, 0, b"new").unwrap();
    client.rename((sub.nodeid, "made"), (ROOT, "made")).unwrap();
    client.rename2((ROOT, "link"), (ROOT, "fifo"), 2).unwrap();
    client.unlink(ROOT, "top").unwrap();
    let short_lived = client.mkdir(ROOT, "short-lived", 0o755, 0).unwrap();
    client.rmdir(ROOT, "short-lived").unwrap();
    client.forget(short_lived.nodeid, 1);
    let (state, bases) = machine.save();
    let mut machine = machine.restore(&state.unwrap(), bases, Daemon::start(share.path(), &[]));
    let client = &mut machine.client;
    let read = |client: &mut Client, node, handle| client.read(node, handle, 0, 20).unwrap();
    assert_eq!(
        read(client, held.file.nodeid, held.file_handle),
        b"inside a/b"
    );
    assert_eq!(
        read(client, held.top.nodeid, held.top_handle),
        b"at the top"
    );
    assert_eq!(read(client, made.nodeid, open.fh), b"new");
    assert_eq!(client.readlink(held.link.nodeid).unwrap(), b"top");
    assert!(client.getattr(held.inner.nodeid).is_ok());
    assert_eq!(
        client.lookup(ROOT, "moved").unwrap().nodeid,
        held.directory.nodeid
    );
    assert_eq!(
        client.lookup(ROOT, "fifo").unwrap().nodeid,
        held.link.nodeid
    );
    assert_eq!(
        client.lookup(sub.nodeid, "file").unwrap().nodeid,
        held.file.nodeid
    );
    machine.finish();
}

#[test]
fn a_directory_that_the_guest_has_forgotten_is_only_a_way() {
    let share = share();
    furnish(share.path());
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let held = Held::by(&mut machine.client);
    machine.client.forget(held.inner.nodeid, 1);
    machine.client.forget(held.directory.nodeid, 1);
    let mut machine = machine.migrate(Daemon::start(share.path(), &[]));
    let client = &mut machine.client;
    assert!(client.getattr(held.file.nodeid).is_ok());
    for gone in [held.inner.nodeid, held.directory.nodeid] {
        assert!(client.getattr(gone).is_err());
    }
    let fresh = client.lookup(ROOT, "a").unwrap().nodeid;
    assert!(fresh > held.many.nodeid, "numbers are not given twice");
    assert_eq!(client.walk("a/b/file").unwrap().nodeid, held.file.nodeid);
    machine.finish();
}

#[test]
fn a_file_without_a_name_and_one_without_a_utf8_name_move_by_handle() {
    if !is_root("a_file_without_a_name_and_one_without_a_utf8_name_move_by_handle") {
        return;
    }
    let share = share();
    // Nothing shows where a removed file was: the target has to trust the stream.
    let args = [MAY_OPEN_HANDLES, "--migration-mode=file-handles"];
    let start = || Daemon::start(share.path(), &args);
    let strange = OsStr::from_bytes(b"\xff\xfe");
    fs::create_dir(share.path().join(strange)).unwrap();
    fs::write(share.path().join(strange).join("inside"), "inside").unwrap();
    let mut machine = Machine::boot(start());
    let client = &mut machine.client;
    let directory = client.lookup(ROOT, strange).unwrap();
    let inside = client.lookup(directory.nodeid, "inside").unwrap();
    let (file, open) = client.create(ROOT, "gone", libc::O_RDWR, 0o644).unwrap();
    client
        .write(file.nodeid, open.fh, 0, b"still here")
        .unwrap();
    client.unlink(ROOT, "gone").unwrap();
    let mut machine = machine.migrate(start());
    let client = &mut machine.client;
    let read = client.read(file.nodeid, open.fh, 0, 20).unwrap();
    assert_eq!(read, b"still here");
    client.write(file.nodeid, open.fh, 6, b"there").unwrap();
    assert_eq!(client.getattr(file.nodeid).unwrap().attr.size, 11);
    let inside_open = client.open(inside.nodeid, libc::O_RDONLY).unwrap();
    let read = client.read(inside.nodeid, inside_open.fh, 0, 20).unwrap();
    assert_eq!(read, b"inside");
    assert_eq!(
        client.lookup(ROOT, strange).unwrap().nodeid,
        directory.nodeid
    );
    assert_eq!(complaints(machine), [""; 0]);
}

#[test]
fn a_file_whose_other_name_was_removed_and_a_path_too_long_to_show_are_searched() {
    let share = share();
    furnish(share.path());
    let long = "d".repeat(250);
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let client = &mut machine.client;
    let top = client.lookup(ROOT, "top").unwrap();
    let mut parent = ROOT;
    for _ in 0..20 {
        parent = client.mkdir(parent, &long, 0o755, 0).unwrap().nodeid;
    }
    let (deep, open) = client.create(parent, "deep", libc::O_RDWR, 0o644).unwrap();
    client.write(deep.nodeid, open.fh, 0, b"deep").unwrap();
    // The kernel shows the name by which it was found, which is gone.
    client.unlink(ROOT, "top").unwrap();
    for prepared in [false, true] {
        let _log = prepared.then(|| machine.vmm.set_logging(true));
        let (state, bases) = machine.save();
        let daemon = Daemon::start(share.path(), &[]);
        machine = machine.restore(&state.unwrap(), bases, daemon);
        let client = &mut machine.client;
        assert_eq!(client.getattr(top.nodeid).unwrap().attr.nlink, 1);
        assert_eq!(client.read(deep.nodeid, open.fh, 0, 9).unwrap(), b"deep");
    }
    machine.finish();
}

#[test]
fn a_removed_file_that_nobody_has_open_is_left_behind() {
    let share = share();
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let client = &mut machine.client;
    let (file, open) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    client.release(file.nodeid, open.fh).unwrap();
    client.unlink(ROOT, "file").unwrap();
    let directory = client.mkdir(ROOT, "directory", 0o755, 0).unwrap();
    client.rmdir(ROOT, "directory").unwrap();
    let mut machine = machine.migrate(Daemon::start(share.path(), &[]));
    let client = &mut machine.client;
    for gone in [file.nodeid, directory.nodeid] {
        assert_eq!(client.getattr(gone), Err(libc::ESTALE));
        client.forget(gone, 1);
    }
    assert!(client.mkdir(ROOT, "new", 0o755, 0).unwrap().nodeid > directory.nodeid);
    assert_eq!(complaints(machine), [""; 0]);
}

// ---- what may be settled, and what may be lost

#[test]
fn the_other_side_has_to_be_able_to_do_what_the_guest_relies_on() {
    let share = share();
    for (ours, theirs, option) in [
        (&["--writeback"][..], &[][..], "--writeback"),
        (&[], &["--no-announce-submounts"], "--announce-submounts"),
    ] {
        let mut machine = Machine::boot(Daemon::start(share.path(), ours));
        let (state, bases) = machine.save();
        let state = state.unwrap();
        let other = Daemon::start(share.path(), theirs);
        let mut vmm = Vmm::connect(other.socket(), &Config::default());
        assert!(!vmm.load_state(&state));
        other.expect_log(&format!("the guest relies on {option}"));
        drop(vmm);
        // More than was settled is no obstacle, and is off.
        let machine = machine.restore(
            &state,
            bases,
            Daemon::start(share.path(), &["--writeback", "--allow-mmap"]),
        );
        machine.finish();
    }
}

const NO_OPENDIR: [&str; 3] = ["--readonly", "--cache=always", "--no-opendir"];
/// The same options as far as the reference has them.
const READ_ONLY: [&str; 2] = ["--readonly", "--cache=always"];

#[test]
fn a_guest_that_opens_no_directories_lists_on() {
    let share = share();
    furnish(share.path());
    let mut machine = Machine::boot(Daemon::start(share.path(), &NO_OPENDIR));
    let many = machine.client.walk("many").unwrap().nodeid;
    let mut seen = machine.client.readdir(many, 0, 0, 4096).unwrap();
    let mut machine = machine.migrate(Daemon::start(share.path(), &NO_OPENDIR));
    loop {
        let offset = seen.last().map_or(0, |entry| entry.off);
        let part = machine.client.readdir(many, 0, offset, 4096).unwrap();
        if part.is_empty() {
            break;
        }
        seen.extend(part);
    }
    assert_eq!(seen.len(), 302);
    assert_eq!(machine.client.opendir(many).err(), Some(libc::ENOSYS));
    // Who opens directories may not take it over.
    let (state, bases) = machine.save();
    let state = state.unwrap();
    let mut others = vec![Daemon::start(share.path(), &["--readonly"])];
    let references = references().into_iter();
    let references = references.map(|(_, binary)| binary);
    others.extend(references.map(|binary| Daemon::start_binary(&binary, share.path(), &READ_ONLY)));
    for other in &others {
        let mut vmm = Vmm::connect(other.socket(), &Config::default());
        assert!(!vmm.load_state(&state));
    }
    others[0].expect_log("the guest relies on --no-opendir");
    machine.resume(bases);
    machine.client.readdir(many, 0, 0, 4096).unwrap();
    machine.finish();
}

#[test]
fn a_guest_that_has_opened_directories_goes_on_opening_them() {
    let share = share();
    furnish(share.path());
    let mut machine = Machine::boot(Daemon::start(share.path(), &["--readonly"]));
    let many = machine.client.walk("many").unwrap().nodeid;
    let fh = machine.client.opendir(many).unwrap().fh;
    let mut machine = machine.migrate(Daemon::start(share.path(), &NO_OPENDIR));
    let listed = machine.client.read_whole_dir(many, fh, 4096, false);
    assert_eq!(listed.unwrap().len(), 302);
    machine.client.opendir(ROOT).unwrap();
    machine.finish();
}

#[test]
fn a_file_that_is_lost_aborts_or_is_an_error_for_the_guest() {
    let (from, to) = (share(), share());
    furnish(from.path());
    furnish(to.path());
    fs::remove_dir_all(to.path().join("a")).unwrap();
    // A descriptor shows the name that the guest has used, a handle any of them.
    let args = &["--inode-file-handles=never"];
    let mut machine = Machine::boot(Daemon::start(from.path(), args));
    let held = Held::by(&mut machine.client);
    let (state, bases) = machine.save();
    let state = state.unwrap();

    let strict = Daemon::start(to.path(), &["--migration-on-error=abort"]);
    let mut vmm = Vmm::connect(strict.socket(), &Config::default());
    assert!(!vmm.load_state(&state));
    let line = strict.expect_log("cannot load the state");
    assert!(line.contains("--migration-on-error=guest-error"), "{line}");
    assert!(line.contains("at \"a\""), "{line}");
    drop(vmm);

    let lenient = Daemon::start(to.path(), &["--migration-on-error=guest-error"]);
    let mut machine = machine.restore(&state, bases, lenient);
    machine.daemon.expect_log("3 inodes could not be found");
    let client = &mut machine.client;
    assert!(client.getattr(held.file.nodeid).is_err());
    let read = client.read(held.file.nodeid, held.file_handle, 0, 10);
    assert!(read.is_err());
    client
        .release(held.file.nodeid, held.file_handle)
        .unwrap_err();
    client.forget(held.file.nodeid, 5);
    let read = client.read(held.top.nodeid, held.top_handle, 0, 20);
    assert_eq!(read.unwrap(), b"at the top");
    // What is there again later is another node.
    let made = client.mkdir(ROOT, "a", 0o755, 0).unwrap();
    assert!(made.nodeid > held.many.nodeid);
    // What was lost stays lost, and is no obstacle to moving on.
    let again = Daemon::start(to.path(), &["--migration-on-error=abort"]);
    let mut machine = machine.migrate(again);
    assert!(machine.client.getattr(held.file.nodeid).is_err());
    assert!(machine.client.getattr(made.nodeid).is_ok());
    machine.finish();
}

#[test]
fn a_file_that_was_replaced_is_found_out_by_its_handle() {
    let share = share();
    furnish(share.path());
    let args = &["--migration-verify-handles"];
    let mut machine = Machine::boot(Daemon::start(share.path(), args));
    let held = Held::by(&mut machine.client);
    let (state, bases) = machine.save();
    let state = state.unwrap();
    let file = share.path().join("a/b/file");
    fs::rename(&file, share.path().join("elsewhere")).unwrap();
    fs::write(&file, "an impostor").unwrap();
    let strict = Daemon::start(share.path(), args);
    let mut vmm = Vmm::connect(strict.socket(), &Config::default());
    assert!(!vmm.load_state(&state));
    strict.expect_log("its file handle differs");
    drop(vmm);
    let lenient = Daemon::start(share.path(), &["--migration-on-error=guest-error"]);
    let mut machine = machine.restore(&state, bases, lenient);
    assert!(machine.client.getattr(held.file.nodeid).is_err());
    assert!(machine.client.getattr(held.top.nodeid).is_ok());
    machine.finish();
}

#[test]
fn a_path_that_the_host_changed_is_confirmed_or_believed() {
    for (confirm, is_found) in [(Some("--migration-confirm-paths"), true), (None, false)] {
        let share = share();
        furnish(share.path());
        let args: Vec<_> = ["--inode-file-handles=never"]
            .into_iter()
            .chain(confirm)
            .collect();
        let args = &args;
        let mut machine = Machine::boot(Daemon::start(share.path(), args));
        let held = Held::by(&mut machine.client);
        let _log = machine.vmm.set_logging(true);
        // With a second save everything is known that there is to know.
        let (_, bases) = machine.save();
        fs::rename(share.path().join("top"), share.path().join("moved")).unwrap();
        machine.resume(bases);
        let (state, bases) = machine.save();
        let options = &["--migration-on-error=guest-error"];
        let other = Daemon::start(share.path(), options);
        let mut machine = machine.restore(&state.unwrap(), bases, other);
        assert_eq!(machine.client.getattr(held.top.nodeid).is_ok(), is_found);
        machine.finish();
    }
}

// ---- what may go wrong

#[test]
fn a_source_goes_on_after_a_migration_that_failed() {
    let share = share();
    furnish(share.path());
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let mut held = Held::by(&mut machine.client);
    let fds = machine.daemon.open_fds();
    for attempt in 0..4 {
        let _log = machine.vmm.set_logging(true);
        let bases = (
            machine.vmm.stop_queue(&machine.hiprio),
            machine.vmm.stop_queue(&machine.client.queue),
        );
        let (reader, writer) = std::io::pipe().unwrap();
        match attempt {
            // The other side went away.
            0 => {
                drop(reader);
                machine.vmm.start_transfer(Direction::SAVE, writer.into());
                assert!(machine.vmm.vhost.check_device_state().is_err());
                machine.daemon.expect_log("cannot save the state");
            }
            // Nobody asks for the result; logging is turned off.
            1 => machine.vmm.start_transfer(Direction::SAVE, writer.into()),
            // Another one begins before.
            2 => {
                machine.vmm.start_transfer(Direction::SAVE, writer.into());
                assert!(machine.vmm.save_state().is_some());
            }
            // Somebody asks twice.
            _ => {
                assert!(machine.vmm.save_state().is_some());
                assert!(machine.vmm.vhost.check_device_state().is_err());
            }
        }
        machine.vmm.set_logging(false);
        machine.resume(bases);
        held.check(&mut machine.client);
    }
    let mut machine = machine.migrate(Daemon::start(share.path(), &[]));
    held.check(&mut machine.client);
    let after = machine.daemon.open_fds();
    assert!(after <= fds + 2, "{after} descriptors, {fds} before");
    machine.finish();
}

#[test]
fn streams_that_are_cut_or_bent_are_refused_and_nothing_breaks() {
    let share = share();
    furnish(share.path());
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let mut held = Held::by(&mut machine.client);
    let (state, bases) = machine.save();
    let state = state.unwrap();
    let other = Daemon::start(share.path(), &[]);
    let memory = machine.vmm.memory.clone();
    let mut vmm = Vmm::take_over(other.socket(), &Config::default(), memory);
    for len in [0, 1, 2, 10, state.len() / 2, state.len() - 1] {
        assert!(!vmm.load_state(&state[..len]), "cut to {len}");
    }
    assert!(!vmm.load_state(&[&state[..], b"more"].concat()));
    let absurd = [&[1][..], &[0xff; 9], &[1]].concat();
    assert!(!vmm.load_state(&absurd));
    let mut seed = 88172645463325252u64;
    for _ in 0..300 {
        let mut bent = state.clone();
        for _ in 0..3 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let at = seed as usize % bent.len();
            bent[at] ^= 1 << (seed >> 60 & 7);
        }
        // It may even be a good one.
        vmm.load_state(&bent);
    }
    drop(vmm);
    drop(other);
    // The same daemon takes a good one after a bad one.
    let other = Daemon::start(share.path(), &[]);
    let mut vmm = Vmm::connect(other.socket(), &Config::default());
    assert!(!vmm.load_state(&state[1..]));
    other.expect_log("cannot load the state");
    drop(vmm);
    let mut machine = machine.restore(&state, bases, Daemon::start(share.path(), &[]));
    held.check(&mut machine.client);
    machine.finish();
}

#[test]
fn a_stream_never_leads_out_of_the_share() {
    let outside = share();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::create_dir(outside.path().join("share")).unwrap();
    let inside = outside.path().join("share");
    symlink("..", inside.join("up")).unwrap();
    let path = |parent: u8, name: &str| {
        let mut bytes = vec![1, parent, name.len() as u8];
        bytes.extend(name.bytes());
        bytes
    };
    let full = |name: &str| {
        let mut bytes = vec![3, name.len() as u8];
        bytes.extend(name.bytes());
        bytes
    };
    for (location, expected) in [
        (path(1, ".."), "no name"),
        (path(1, "../secret"), "no name"),
        (path(1, "up/secret"), "no name"),
        (full("../secret"), "leaves the shared directory"),
        (full("/etc/passwd"), "not relative"),
        (full("up/secret"), "Not a directory"),
    ] {
        // The root and one more inode, nothing open, nothing settled.
        let front = [1, 2, 1, 3, 0, 0, 2, 1];
        let back = [0, 3, 0, 0, 0, 0, 0, 0, 0];
        let stream = [&front[..], &location, &back].concat();
        let daemon = Daemon::start(&inside, &[]);
        let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
        assert!(!vmm.load_state(&stream));
        daemon.expect_log(expected);
    }
}

/// A stream with one inode, number 2, that is held by the handle of this file.
fn stream_with_handle_of(path: &Path) -> Vec<u8> {
    let (handle, _) = name_to_handle(fs::File::open(path).unwrap(), c"").unwrap();
    // The root and one more inode, nothing open, nothing settled; the mount 7 is that
    // of the shared directory.
    let kind = 2 * handle.kind();
    let kind = [(kind & 0x7f) as u8 | 0x80, (kind >> 7) as u8];
    let bytes = handle.bytes();
    let front = [1, 2, 1, 3, 0, 0, 2, 1, 4, 7];
    let length = [bytes.len() as u8];
    let back = [0, 3, 0, 0, 0, 0, 0, 0, 1, 7, 1, b'.'];
    [&front[..], &kind, &length, bytes, &back].concat()
}

#[test]
fn a_file_handle_never_leads_out_of_the_share() {
    if !is_root("a_file_handle_never_leads_out_of_the_share") {
        return;
    }
    for kind in ["ext4", "xfs", "tmpfs"] {
        let mut host = HostFs::new(kind);
        let at = |path: &str| host.at.join(path);
        fs::create_dir_all(at("parent/share/dir")).unwrap();
        fs::create_dir_all(at("parent/neighbour/share")).unwrap();
        let outside = [
            "",
            "parent",
            "parent/neighbour",
            "parent/neighbour/share",
            "known",
            "parent/unknown",
            "parent/neighbour/share/unknown",
        ];
        let inside = [
            "parent/share/dir",
            "parent/share/known",
            "parent/share/dir/unknown",
            "parent/share/linked",
        ];
        for file in outside.iter().chain(&inside).skip(4) {
            if !at(file).exists() {
                fs::write(at(file), "text").unwrap();
            }
        }
        fs::hard_link(at("parent/share/linked"), at("parent/linked")).unwrap();
        let streams = |paths: &[&'static str]| -> Vec<(&'static str, Vec<u8>)> {
            let stream = |path: &&'static str| (*path, stream_with_handle_of(&at(path)));
            paths.iter().map(stream).collect()
        };
        let (outside, inside) = (streams(&outside), streams(&inside));
        if kind != "tmpfs" {
            // The kernel forgets all paths, and then learns some.
            host.mount_again();
        }
        let at = |path: &str| host.at.join(path);
        fs::metadata(at("known")).unwrap();
        fs::metadata(at("parent/share/known")).unwrap();
        // One name is elsewhere, and the kernel knows only that.
        fs::metadata(at("parent/linked")).unwrap();

        for sandbox in ["namespace", "chroot", "none"] {
            for mode in ["find-paths", "file-handles"] {
                let sandbox = format!("--sandbox={sandbox}");
                let mode = format!("--migration-mode={mode}");
                let args = [&*sandbox, &mode, "--migration-on-error=guest-error"];
                let loaded = |stream: &[u8]| {
                    let daemon = Daemon::start(&at("parent/share"), &args);
                    let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
                    assert!(vmm.load_state(stream), "{:#?}", daemon.log());
                    let mut client = Client::new(vmm.start_queue(REQUEST));
                    client.getattr(2).map(|out| out.attr.ino)
                };
                for (path, stream) in &outside {
                    let found = loaded(stream);
                    assert_eq!(found, Err(libc::ESTALE), "{kind}, {args:?}: {path:?}");
                }
                for (path, stream) in &inside {
                    let ino = fs::metadata(at(path)).unwrap().ino();
                    assert_eq!(loaded(stream), Ok(ino), "{kind}, {args:?}: {path:?}");
                }
                // A removed file has no place, so only the operator can vouch for it.
                let removed = at("parent/share/removed");
                let open = fs::File::create(&removed).unwrap();
                let stream = stream_with_handle_of(&removed);
                fs::remove_file(&removed).unwrap();
                let expected = match &*mode {
                    "--migration-mode=file-handles" => Ok(open.metadata().unwrap().ino()),
                    _ => Err(libc::ESTALE),
                };
                assert_eq!(loaded(&stream), expected, "{kind}, {args:?}");
            }
        }
    }
}

#[test]
fn names_of_more_than_255_bytes_move() {
    if !is_root("names_of_more_than_255_bytes_move") {
        return;
    }
    let host = HostFs::new("ntfs");
    let share = host.share();
    let [directory, file] = [86, 255].map(|count| "\u{3042}".repeat(count));
    fs::create_dir(share.path().join(&directory)).unwrap();
    fs::write(share.path().join(&directory).join(&file), "text").unwrap();
    for holding in ["--inode-file-handles=never", "--inode-file-handles=prefer"] {
        let start = || Daemon::start(share.path(), &[holding]);
        let mut machine = Machine::boot(start());
        let client = &mut machine.client;
        let node = client.walk(&format!("{directory}/{file}")).unwrap().nodeid;
        let open = client.open(node, libc::O_RDONLY).unwrap().fh;
        let mut machine = machine.migrate(start());
        let client = &mut machine.client;
        assert_eq!(client.read(node, open, 0, 100).unwrap(), b"text");
        client.getattr(node).unwrap();
        machine.finish();
    }
}

#[test]
fn a_file_that_may_not_be_opened_again_does_not_keep_the_others_back() {
    if !is_root("a_file_that_may_not_be_opened_again_does_not_keep_the_others_back") {
        return;
    }
    let share = share();
    let log = share.path().join("log");
    fs::write(&log, "first\n").unwrap();
    fs::write(share.path().join("other"), "other").unwrap();
    let chattr = |flag: &str| {
        let status = Command::new("chattr").arg(flag).arg(&log).status();
        assert!(status.unwrap().success());
    };
    chattr("+a");
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let client = &mut machine.client;
    let log_node = client.lookup(ROOT, "log").unwrap().nodeid;
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let log_open = client.open(log_node, flags).unwrap().fh;
    let other = client.lookup(ROOT, "other").unwrap().nodeid;
    let other_open = client.open(other, libc::O_RDWR).unwrap().fh;
    let mut machine = machine.migrate(Daemon::start(share.path(), &[]));
    let client = &mut machine.client;
    let appended = client.write_flags(log_node, log_open, 0, b"more\n", 0, libc::O_APPEND);
    assert_eq!(appended, Ok(5));
    assert_eq!(client.write(log_node, log_open, 0, b"x"), Err(libc::EPERM));

    // Now this one may not be written at all.
    chattr("-a");
    chattr("+i");
    let mut machine = machine.migrate(Daemon::start(share.path(), &[]));
    chattr("-i");
    let client = &mut machine.client;
    let appended = client.write_flags(log_node, log_open, 0, b"more\n", 0, libc::O_APPEND);
    assert_eq!(appended, Err(libc::EBADF));
    assert_eq!(client.read(other, other_open, 0, 9).unwrap(), b"other");
    assert_eq!(fs::read(&log).unwrap(), b"first\nmore\n");
    machine
        .daemon
        .expect_log("1 of the guest's open files may not be opened again");
    machine.finish();
}

#[test]
fn a_state_is_loaded_only_while_all_queues_are_stopped() {
    let share = share();
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let client = &mut machine.client;
    let made = client.mkdir(ROOT, "dir", 0o755, 0).unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let phase = VhostTransferStatePhase::STOPPED;
    let answer = machine
        .vmm
        .vhost
        .set_device_state_fd(Direction::LOAD, phase, reader.into());
    assert!(answer.is_err());
    machine.daemon.expect_log("loads a state while queue");
    let left = machine.client.getattr(made.nodeid).unwrap();
    assert_eq!(left.attr.ino, made.attr.ino, "the session goes on");
    drop(machine);

    // One that was started and never had a request is running as well.
    let daemon = Daemon::start(share.path(), &[]);
    let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
    let _queue = vmm.start_queue(REQUEST);
    let (reader, _writer) = std::io::pipe().unwrap();
    let answer = vmm
        .vhost
        .set_device_state_fd(Direction::LOAD, phase, reader.into());
    assert!(answer.is_err());
}

#[test]
fn no_session_begins_while_a_state_is_loaded() {
    let share = share();
    let daemon = Daemon::start(share.path(), &[]);
    let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
    let (reader, writer) = std::io::pipe().unwrap();
    vmm.start_transfer(Direction::LOAD, reader.into());
    let mut client = Client::new(vmm.start_queue(REQUEST));
    assert_eq!(client.init_with(7, 39, 0).err(), Some(libc::EIO));
    assert_eq!(client.getattr(ROOT).err(), Some(libc::EIO));
    drop(writer);
    assert!(vmm.vhost.check_device_state().is_err(), "it was empty");
    client.init();
    client.getattr(ROOT).unwrap();
}

#[test]
fn nothing_is_waited_for_that_does_not_come() {
    let share = share();
    let daemon = Daemon::start(share.path(), &[]);
    let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
    let (reader, mut writer) = std::io::pipe().unwrap();
    vmm.start_transfer(Direction::LOAD, reader.into());
    writer.write_all(&[1, 0]).unwrap();
    // The pipe is still open: the answer must come all the same.
    assert!(vmm.vhost.check_device_state().is_err());
    daemon.expect_log("the transfer has not ended");
}

// ---- snapshots, reset

#[test]
fn a_snapshot_in_a_file_is_restored_without_a_dirty_log() {
    let share = share();
    furnish(share.path());
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let mut held = Held::by(&mut machine.client);
    let bases = (
        machine.vmm.stop_queue(&machine.hiprio),
        machine.vmm.stop_queue(&machine.client.queue),
    );
    let file = share.path().with_extension("snapshot");
    let snapshot = fs::File::create(&file).unwrap();
    machine.vmm.start_transfer(Direction::SAVE, snapshot.into());
    machine.vmm.vhost.check_device_state().unwrap();
    machine.daemon.expect_log("nothing was prepared");

    let memory = machine.vmm.memory.clone();
    let Machine {
        client,
        hiprio,
        daemon,
        vmm,
    } = machine;
    drop((vmm, daemon));
    let daemon = Daemon::start(share.path(), &[]);
    let mut vmm = Vmm::take_over(daemon.socket(), &Config::default(), memory);
    let snapshot = fs::File::open(&file).unwrap();
    vmm.start_transfer(Direction::LOAD, snapshot.into());
    vmm.vhost.check_device_state().unwrap();
    fs::remove_file(&file).unwrap();
    let mut machine = Machine {
        client,
        hiprio,
        vmm,
        daemon,
    };
    machine.resume(bases);
    held.check(&mut machine.client);
    machine.finish();
}

#[test]
fn a_guest_that_has_not_mounted_yet_mounts_on_the_other_side() {
    let share = share();
    furnish(share.path());
    let daemon = Daemon::start(share.path(), &[]);
    let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
    let state = vmm.save_state().unwrap();
    let other = Daemon::start(share.path(), &[]);
    let mut vmm = Vmm::connect(other.socket(), &Config::default());
    assert!(vmm.load_state(&state));
    let mut client = Client::new(vmm.start_queue(REQUEST));
    client.init();
    assert!(client.walk("a/b/file").is_ok());
}

#[test]
fn a_reset_after_an_incoming_migration_drops_everything() {
    let share = share();
    furnish(share.path());
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let held = Held::by(&mut machine.client);
    let mut machine = machine.migrate(Daemon::start(share.path(), &[]));
    machine.vmm.stop_queue(&machine.hiprio);
    let base = machine.vmm.stop_queue(&machine.client.queue);
    machine.vmm.vhost.reset_device().unwrap();
    machine
        .vmm
        .vhost
        .set_features(machine.vmm.features)
        .unwrap();
    machine.vmm.resume_queue(&machine.client.queue, base);
    machine.client.init();
    assert!(machine.client.getattr(held.file.nodeid).is_err());
    assert!(machine.client.walk("a/b/file").unwrap().nodeid > held.many.nodeid);
    machine.finish();
}

// ---- size

const FILES: usize = 100_000;
const OPEN: usize = 10_000;

/// One such guest at a time: a time is measured, and each keeps two processors busy.
static LARGE: Mutex<()> = Mutex::new(());

/// Rounds in which the shortest pause of each daemon is looked for.
const ROUNDS: usize = 2;

/// A tree with many files.
fn many() -> TempDir {
    let share = share();
    for directory in 0..FILES / 1000 {
        let directory = share.path().join(format!("d{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..1000 {
            let file = directory.join(format!("f{file}"));
            rustix::fs::mknodat(
                rustix::fs::CWD,
                file,
                rustix::fs::FileType::RegularFile,
                rustix::fs::Mode::from_raw_mode(0o644),
                0,
            )
            .unwrap();
        }
    }
    share
}

/// Looks up all of them and opens some; gives the inode number of each node, and
/// nodes with their handles.
fn hold_many(client: &mut Client) -> (HashMap<u64, u64>, Vec<(u64, u64)>) {
    let mut inodes = HashMap::new();
    for directory in 0..FILES / 1000 {
        let directory = client.lookup(ROOT, format!("d{directory}")).unwrap().nodeid;
        let handle = client.opendir(directory).unwrap().fh;
        for entry in client
            .read_whole_dir(directory, handle, 1 << 17, true)
            .unwrap()
        {
            if let Some(entry) = entry.entry.filter(|entry| entry.nodeid != 0) {
                inodes.insert(entry.nodeid, entry.attr.ino);
            }
        }
        client.releasedir(directory, handle).unwrap();
    }
    assert_eq!(inodes.len(), FILES);
    let open: Vec<(u64, u64)> = inodes
        .keys()
        .take(OPEN)
        .map(|node| (*node, client.open(*node, libc::O_RDWR).unwrap().fh))
        .collect();
    (inodes, open)
}

#[test]
fn a_hundred_thousand_inodes_and_ten_thousand_open_files() {
    let _turn = LARGE.lock().unwrap_or_else(PoisonError::into_inner);
    let share = many();
    let mut machine = Machine::boot(Daemon::start(share.path(), &[]));
    let (inodes, open) = hold_many(&mut machine.client);
    let _log = machine.vmm.set_logging(true);
    let (state, bases) = machine.save();
    let state = state.unwrap();
    let mut machine = machine.restore(&state, bases, Daemon::start(share.path(), &[]));
    let client = &mut machine.client;
    for (node, ino) in inodes.iter().step_by(7) {
        assert_eq!(client.getattr(*node).unwrap().attr.ino, *ino);
    }
    for (node, handle) in open.iter().step_by(7) {
        assert_eq!(client.write(*node, *handle, 0, b"x"), Ok(1));
    }
    machine.finish();
}

/// Time that a process has spent on processors, in ticks of 10 ms, those of threads
/// that have ended included.
fn ticks(daemon: &Daemon) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.serving_pid())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<_> = fields.split(' ').collect();
    // User and system time, fields 14 and 15 of proc_pid_stat(5).
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// How long a guest with much to hold has to stand still for it, from the stop of
/// its queues to the end of loading; and what of that both daemons work.
fn pause(start: impl Fn() -> Daemon) -> (u64, Duration) {
    let mut machine = Machine::boot(start());
    hold_many(&mut machine.client);
    let _log = machine.vmm.set_logging(true);
    // The guest works on while its move is prepared.
    for _ in 0..100_000 {
        machine.client.getattr(ROOT).unwrap();
    }
    let target = start();
    let before = ticks(&machine.daemon) + ticks(&target);
    let begin = Instant::now();
    let (state, _) = machine.save();
    let state = state.expect("a state");
    let memory = machine.vmm.memory.clone();
    let mut vmm = Vmm::take_over(target.socket(), &Config::default(), memory);
    assert!(vmm.load_state(&state), "log: {:#?}", target.log());
    let elapsed = begin.elapsed();
    (ticks(&machine.daemon) + ticks(&target) - before, elapsed)
}

#[test]
fn the_guest_stands_still_for_less_time_than_with_the_reference() {
    if !is_root("the_guest_stands_still_for_less_time_than_with_the_reference") {
        // By descriptors alone the reference cannot hold so many.
        return;
    }
    let _turn = LARGE.lock().unwrap_or_else(PoisonError::into_inner);
    let share = many();
    let (_, reference) = references().remove(0);
    let mut pauses = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        pauses.0.push(pause(|| Daemon::start(share.path(), &[])));
        let theirs = || Daemon::start_binary(&reference, share.path(), &[]);
        pauses.1.push(pause(theirs));
    }
    println!("{FILES} inodes, {OPEN} of them open: {pauses:?}");
    // Compared by the daemons' own work, which other programs do not make longer;
    // a debug build works twice as long.
    let is_debug = default_binary().iter().any(|part| part == "debug");
    assert!(
        is_debug || pauses.0.iter().min() < pauses.1.iter().min(),
        "{pauses:?}"
    );
}

// ---- the daemon that this one takes the place of

#[test]
fn a_guest_moves_from_the_reference_and_back() {
    for (version, reference) in references() {
        let share = share();
        furnish(share.path());
        for args in [
            &[][..],
            &["--migration-mode=file-handles", MAY_OPEN_HANDLES],
            &["--migration-verify-handles", "--migration-confirm-paths"],
            &["--inode-file-handles=never", "--writeback"],
        ] {
            println!("{version} {args:?}");
            let ours = || Daemon::start(share.path(), args);
            let theirs = || Daemon::start_binary(&reference, share.path(), args);
            let mut machine = Machine::boot(theirs());
            let mut held = Held::by(&mut machine.client);
            for _ in 0..2 {
                machine = machine.migrate(ours());
                held.check(&mut machine.client);
                machine = machine.migrate(theirs());
                held.check(&mut machine.client);
            }
            machine = machine.migrate(ours());
            held.check(&mut machine.client);
            held.forget(&mut machine.client);
            machine.finish();
        }
    }
}

/// Streams that reference daemons wrote of a furnished tree, after
/// [`Held::by`]; `tests/data/README.md` says how they are made.
const GOLDEN: [(&str, &[&str]); 3] = [
    ("paths", &[]),
    ("verified", &["--migration-verify-handles"]),
    ("handles", &["--migration-mode=file-handles"]),
];

fn golden_file(version: &str, name: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    data.join(format!("stream-{version}-{name}"))
}

#[test]
fn streams_that_references_wrote_load() {
    if std::env::var_os("VIRTIOFSD_WRITE_STREAMS").is_some() {
        write_golden_streams();
    }
    for version in ["1.13.3", "1.14.0"] {
        for (name, _) in GOLDEN {
            let stream = fs::read(golden_file(version, name)).unwrap();
            let share = share();
            furnish(share.path());
            let daemon = Daemon::start(share.path(), &["--migration-on-error=guest-error"]);
            let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
            let loads = vmm.load_state(&stream);
            if name == "verified" {
                // The tree is another one, which is always an error.
                assert!(!loads, "{version} {name}");
                daemon.expect_log("is not the one that the source shares");
                continue;
            }
            assert!(loads, "{version} {name}: {:#?}", daemon.log());
            if name == "handles" {
                daemon.expect_log("3 inodes could not be found");
                continue;
            }
            // The numbers that reference daemons gave, in the order of lookups.
            let mut client = Client::new(vmm.start_queue(REQUEST));
            assert_eq!(client.read(4, 0, 0, 20).unwrap(), b"inside a/b");
            assert_eq!(client.read(5, 1, 0, 20).unwrap(), b"at the top");
            assert_eq!(client.readlink(6).unwrap(), b"top");
            assert_eq!(client.walk("a/b/file").unwrap().nodeid, 4);
            let names = client.read_whole_dir(8, 2, 4096, false).unwrap();
            assert_eq!(names.len(), 302);
            client.forget(4, 5);
            assert!(client.getattr(4).is_ok());
            client.forget(4, 1);
            assert!(client.getattr(4).is_err());
        }
    }
}

fn write_golden_streams() {
    for (version, reference) in references() {
        for (name, args) in GOLDEN {
            let share = share();
            furnish(share.path());
            let daemon = Daemon::start_binary(&reference, share.path(), args);
            let mut machine = Machine::boot(daemon);
            Held::by(&mut machine.client);
            let _log = machine.vmm.set_logging(true);
            let (stream, _) = machine.save();
            fs::write(golden_file(&version, name), stream.unwrap()).unwrap();
        }
    }
}
