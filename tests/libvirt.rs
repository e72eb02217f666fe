//! The daemon under libvirt: Debian's libvirt defines and starts a virtual machine
//! that has directories shared through it; the guest mounts them, works, and shuts
//! down.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::geteuid;
use tempfile::TempDir;

/// One machine at a time: each keeps two processors busy.
static MACHINE: Mutex<()> = Mutex::new(());

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn daemon() -> String {
    std::env::var("VIRTIOFSD").unwrap_or_else(|_| env!("CARGO_BIN_EXE_virtiofsd").to_owned())
}

/// A `<filesystem>` with what is in it besides source and target.
fn filesystem(dir: &Path, tag: &str, inner: &str) -> String {
    format!(
        "<filesystem type='mount' accessmode='passthrough'>{inner}\
         <source dir='{}'/><target dir='{tag}'/></filesystem>",
        dir.display()
    )
}

/// The `<filesystem>` of the README, with the places of this test.
fn of_the_readme(dir: &Path, binary: &str) -> String {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, from) = readme.split_once("    <filesystem ").unwrap();
    let (inner, _) = from.split_once("</filesystem>").unwrap();
    let inner = inner
        .replace("/usr/local/libexec/virtiofsd", binary)
        .replace("/srv/share", dir.to_str().unwrap());
    format!("<filesystem {inner}</filesystem>")
}

/// What a machine left behind.
struct Run {
    stdout: String,
    logs: TempDir,
}

/// Boots a machine that runs `script`, which must succeed.
fn boot(filesystems: &str, descriptors: Option<&Path>, script: &str) -> Run {
    let _turn = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let prepared = Command::new(repository().join("tests/prepare")).status();
    assert!(prepared.unwrap().success());
    let logs = tempfile::tempdir().unwrap();
    let mut run = Command::new(repository().join("tests/libvirt/run"));
    run.arg(logs.path()).arg(filesystems);
    run.args(["bash", "-euc", script]).stdin(Stdio::null());
    if let Some(descriptors) = descriptors {
        run.env("VHOST_USER_DESCRIPTORS", descriptors);
    }
    let output = run.output().unwrap();
    let run = Run {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        logs,
    };
    assert!(
        output.status.success(),
        "{}: {}{}\n{}",
        output.status,
        run.stdout,
        String::from_utf8_lossy(&output.stderr),
        run.all_logs()
    );
    run
}

impl Run {
    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.logs.path().join(name)).unwrap()
    }

    fn all_logs(&self) -> String {
        let files = fs::read_dir(self.logs.path()).unwrap();
        files
            .map(|file| {
                let path = file.unwrap().path();
                let text = fs::read_to_string(&path).unwrap_or_default();
                format!("--- {}\n{text}", path.display())
            })
            .collect()
    }

    /// Asserts that the daemon of share number `number` served a guest to its end
    /// and had nothing to complain about, nor QEMU about it.
    fn ended_well(&self, number: usize) {
        let log = self.log(&format!("virtiofsd-test-fs{number}-virtiofsd.log"));
        // What libvirt 9.0 gives it is of the old kind, and the limit is the
        // machine's.
        let complaint = log.lines().find(|line| {
            (line.contains(" WARN ") || line.contains(" ERROR "))
                && !line.contains("-o is deprecated")
                && !line.contains("open file descriptors")
        });
        assert_eq!(complaint, None, "{log}");
        assert!(
            log.trim_end()
                .ends_with("Client disconnected, shutting down"),
            "{log}"
        );
        let qemu = self.log("virtiofsd-test.log");
        let (_, said) = qemu.split_once("-msg timestamp=on").unwrap();
        assert!(said.contains("reason=shutdown"), "{said}");
        for complaint in ["vhost", "nexpected", "rror"] {
            assert!(!said.contains(complaint), "{said}");
        }
        let libvirt = self.log("libvirtd.log");
        let complaint = libvirt.lines().find(|line| {
            line.contains("error") && (line.contains("virtiofs") || line.contains("vhost"))
        });
        assert_eq!(complaint, None);
    }
}

fn is_root() -> bool {
    if !geteuid().is_root() {
        println!("skips itself: only root can start a libvirt");
        return false;
    }
    true
}

#[test]
fn two_shares_with_every_element_that_libvirt_has() {
    if !is_root() {
        return;
    }
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(first.path().join("from-host"), "hello guest\n").unwrap();
    let binary = daemon();
    let every_element = format!(
        "<driver type='virtiofs' queue='1024'/><binary path='{binary}' xattr='on'>\
         <cache mode='always'/><sandbox mode='chroot'/><lock posix='on' flock='on'/>\
         <thread_pool size='4'/></binary>"
    );
    let filesystems =
        of_the_readme(first.path(), &binary) + &filesystem(second.path(), "second", &every_element);
    let run = boot(
        &filesystems,
        None,
        "cat from-host
         mkdir /tmp/second
         mount -t virtiofs second /tmp/second
         touch /tmp/second/file
         setfattr -n user.note -v yes /tmp/second/file
         flock /tmp/second/file true
         echo hello host >/tmp/second/from-guest
         umount /tmp/second",
    );
    assert_eq!(run.stdout, "hello guest\n");
    let written = fs::read_to_string(second.path().join("from-guest")).unwrap();
    assert_eq!(written, "hello host\n");
    run.ended_well(0);
    run.ended_well(1);
}

#[test]
fn libvirt_finds_the_daemon_by_its_descriptor() {
    if !is_root() {
        return;
    }
    let (share, descriptors) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = fs::read_to_string(repository().join("packaging/50-virtiofsd.json.in")).unwrap();
    let text = text.replace("@BINARY@", &daemon());
    fs::write(descriptors.path().join("50-virtiofsd.json"), text).unwrap();
    let filesystem = filesystem(share.path(), "share", "<driver type='virtiofs'/>");
    let script = "echo hello host >from-guest";
    let run = boot(&filesystem, Some(descriptors.path()), script);
    assert!(share.path().join("from-guest").exists());
    run.ended_well(0);
}
