//! A file system on a disk of the host's whose writers wait until the test says so.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const IMAGE_BYTES: u64 = 16 << 20;

/// An ext4 on a loop device; dropping it lets go of whoever waits and unmounts it.
pub struct FrozenFs {
    mount_point: PathBuf,
    _image: TempDir,
}

impl FrozenFs {
    /// Mounts it at a folder that is there; needs root.
    pub fn mount(mount_point: &Path) -> Self {
        let image = TempDir::with_prefix("virtiofsd-image-").unwrap();
        let file = image.path().join("image");
        File::create(&file).unwrap().set_len(IMAGE_BYTES).unwrap();
        let (file, at) = (file.display(), mount_point.display());
        run(&format!(
            "mkfs.ext4 -q -F {file} && mount -o loop {file} {at}"
        ));
        Self {
            mount_point: mount_point.into(),
            _image: image,
        }
    }

    /// From now on, what changes it waits.
    pub fn freeze(&self) {
        run(&format!("fsfreeze --freeze {}", self.mount_point.display()));
    }

    /// Nobody waits any more.
    pub fn thaw(&self) {
        run(&format!(
            "fsfreeze --unfreeze {}",
            self.mount_point.display()
        ));
    }
}

impl Drop for FrozenFs {
    fn drop(&mut self) {
        let at = self.mount_point.display();
        // It may not be frozen.
        run(&format!(
            "fsfreeze --unfreeze {at} 2>/dev/null; umount -l {at}"
        ));
    }
}

/// A command that must succeed.
fn run(command: &str) {
    let output = Command::new("sh")
        .args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin; {command}")])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
}
