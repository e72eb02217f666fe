//! The units under systemd itself: a front end that connects to the socket has the
//! daemon started, hardened as the unit says, and the next one as well.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

#[path = "../examples/generate.rs"]
#[allow(dead_code)]
mod generate;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::geteuid;

use common::daemon::default_binary;
use common::frontend::{Config, HIPRIO, REQUEST, Vmm};
use common::fuse_client::{Client, SetAttr};
use common::wire::ROOT;

/// A systemd; dropping it ends everything that it started.
struct Systemd(Child);

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest that mounts the share, works and goes.
fn guest(socket: &Path, name: &str) {
    let mut vmm = Vmm::connect(socket, &Config::default());
    vmm.start_queue(HIPRIO);
    let mut client = Client::new(vmm.start_queue(REQUEST));
    client.init();
    let node = client.lookup(ROOT, "from-host").unwrap().nodeid;
    let handle = client.open(node, libc::O_RDONLY).unwrap().fh;
    assert_eq!(client.read(node, handle, 0, 100).unwrap(), b"hello guest");
    // A device node and another owner take capabilities that the unit leaves.
    let node = client
        .mknod(ROOT, name, libc::S_IFCHR | 0o600, 0x0103, 0)
        .unwrap();
    let owner = SetAttr {
        uid: Some(1234),
        gid: Some(2345),
        ..SetAttr::default()
    };
    client.setattr(node.nodeid, &owner).unwrap();
}

#[test]
fn the_units_start_a_hardened_daemon_for_each_front_end() {
    if !geteuid().is_root() {
        println!("skips itself: only root can boot a systemd");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["share", "run"] {
        fs::create_dir(path(name)).unwrap();
    }
    for name in ["from", "to"] {
        mknodat(CWD, path(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
    }
    fs::write(path("share/from-host"), "hello guest").unwrap();
    generate::write_all(&path("pages")).unwrap();
    let child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/systemd/boot"))
        .args([folder.path(), &path("pages")])
        .env("VIRTIOFSD", default_binary())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut systemd = Systemd(child);
    // When it ends early, nobody else opens the pipe.
    let mut console = systemd.0.stderr.take().unwrap();
    let from = path("from");
    let watcher = thread::spawn(move || {
        let mut said = String::new();
        let _ = console.read_to_string(&mut said);
        let _ = fs::OpenOptions::new().write(true).open(from);
        said
    });
    if fs::read_to_string(path("from")).unwrap() != "ready\n" {
        let said = watcher.join().unwrap();
        let status = systemd.0.wait().unwrap();
        assert_eq!(status.code(), Some(77), "systemd did not boot: {said}");
        println!("skips itself: no cgroup file system can be mounted here");
        return;
    }

    guest(&path("run/data.sock"), "first");
    guest(&path("run/data.sock"), "second");
    for name in ["first", "second"] {
        let made = fs::symlink_metadata(path("share").join(name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (1234, 2345));
    }
    // Another share, by the commands of the README.
    let readme = include_str!("../README.md");
    let (_, service) = readme.split_once("### As a service").unwrap();
    let commands: Vec<_> = service
        .lines()
        .skip_while(|line| !line.starts_with("    "))
        .take_while(|line| line.starts_with("    "))
        .map(|line| line.trim().replace("data.", "more."))
        .collect();
    assert!(commands[2].starts_with("systemctl enable --now virtiofsd@more"));
    let ask = "until [[ $(systemctl is-active virtiofsd@data.service) == inactive ]]; do :; done
        systemctl show -p Result -p ExecMainStatus -p NRestarts virtiofsd@data.service
        systemctl is-active virtiofsd@data.socket\n";
    let more = "\nsystemctl is-active virtiofsd@more.socket | sed s/^/more:/";
    fs::write(path("to"), ask.to_owned() + &commands.join("\n") + more).unwrap();
    let said = fs::read_to_string(path("from")).unwrap();
    for line in [
        "Result=success",
        "ExecMainStatus=0",
        "active",
        "more:active",
    ] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
}
