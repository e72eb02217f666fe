//! File systems of the host, made and mounted for one test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{program}, which tests/prepare installs: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// A mount, for as long as this lives.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn new(args: &[&str], at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        run("mount", &[args, &[at.to_str().unwrap()]].concat());
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = self.0.to_str().unwrap();
        let _ = Command::new("umount").args(["-l", path]).status();
    }
}

/// A file system of the host, of a kind with options for its `mkfs`. What was
/// mounted last is unmounted first.
pub struct HostFs {
    pub at: PathBuf,
    mounts: Vec<Mounted>,
    _dir: TempDir,
}

impl Drop for HostFs {
    fn drop(&mut self) {
        while self.mounts.pop().is_some() {}
    }
}

impl HostFs {
    pub fn new(kind: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "only root can mount: run this test as root"
        );
        let dir = TempDir::with_prefix("virtiofsd-fs-").unwrap();
        let at = dir.path().join("mount");
        let mut mounts = Vec::new();
        match kind {
            "tmpfs" => mounts.push(Mounted::new(&["-t", "tmpfs", "share"], &at)),
            "overlay" => {
                // The upper directory needs a file system that can be one.
                let below = dir.path().join("below");
                mounts.push(Mounted::new(&["-t", "tmpfs", "below"], &below));
                for name in ["lower", "upper", "work"] {
                    fs::create_dir(below.join(name)).unwrap();
                }
                fs::write(below.join("lower/below"), "from below").unwrap();
                let below = below.display();
                let options =
                    format!("lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work");
                mounts.push(Mounted::new(&["-t", "overlay", "o", "-o", &options], &at));
            }
            "fuse" => {
                let source = dir.path().join("source");
                fs::create_dir(&source).unwrap();
                fs::create_dir(&at).unwrap();
                run("bindfs", &[source.to_str().unwrap(), at.to_str().unwrap()]);
                mounts.push(Mounted(at.clone()));
            }
            "mergerfs" => {
                let branches = ["one", "two"].map(|name| dir.path().join(name));
                for branch in &branches {
                    fs::create_dir(branch).unwrap();
                }
                fs::create_dir(&at).unwrap();
                let branches = branches.map(|branch| branch.to_str().unwrap().to_owned());
                run("mergerfs", &[&*branches.join(":"), at.to_str().unwrap()]);
                mounts.push(Mounted(at.clone()));
            }
            "ntfs" => {
                let image = dir.path().join("image");
                File::create(&image).unwrap().set_len(64 << 20).unwrap();
                let image = image.to_str().unwrap();
                run("mkntfs", &["-q", "-F", image]);
                fs::create_dir(&at).unwrap();
                run("ntfs-3g", &[image, at.to_str().unwrap()]);
                mounts.push(Mounted(at.clone()));
            }
            _ => {
                let image = dir.path().join("image");
                File::create(&image).unwrap().set_len(512 << 20).unwrap();
                let image = image.to_str().unwrap();
                let mut words = kind.split(' ');
                let make = format!("mkfs.{}", words.next().unwrap());
                let options: Vec<_> = words.collect();
                run(&make, &[&options[..], &["-q", image]].concat());
                mounts.push(Mounted::new(&["-o", "loop", image], &at));
            }
        }
        Self {
            at,
            mounts,
            _dir: dir,
        }
    }

    pub fn share(&self) -> TempDir {
        TempDir::with_prefix_in("share-", &self.at).unwrap()
    }

    /// Mounts it anew: the kernel has forgotten every name and file of it. Only a
    /// file system on a disk outlives that.
    pub fn mount_again(&mut self) {
        self.mounts.clear();
        let image = self._dir.path().join("image");
        let mount = Mounted::new(&["-o", "loop", image.to_str().unwrap()], &self.at);
        self.mounts.push(mount);
    }
}
