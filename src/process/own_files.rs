//! The files that this process has put beside its socket, and their removal.
//!
//! A file is only removed while the name still leads to the very file that was
//! made here: each one is held open, so that its inode number cannot be used
//! again for somebody else's. Names are resolved in the directory as it was at
//! the start, whatever becomes of the path, the working directory or the root.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, statat, unlinkat};
use rustix::io::Errno;

/// The list of our files, shared with the thread that waits for signals.
#[derive(Clone, Debug, Default)]
pub struct OwnFiles(Arc<Mutex<Vec<OwnFile>>>);

/// One file of ours.
#[derive(Debug)]
struct OwnFile {
    directory: Arc<OwnedFd>,
    name: OsString,
    /// Keeps the inode, and for a pid file the lock.
    file: OwnedFd,
}

impl OwnFiles {
    /// Locks the list while a file is made, so that a signal that arrives in
    /// between finds the file in the list.
    pub fn lock(&self) -> OwnFilesGuard<'_> {
        OwnFilesGuard(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes every file of the list that is still ours, the last made first.
    pub fn remove_all(&self) {
        self.lock().remove_all();
    }

    /// Leaves the files to another process that has the same list, and closes
    /// what leads to them.
    pub fn leave(&self) {
        self.lock().0.clear();
    }
}

/// The locked list.
#[derive(Debug)]
pub struct OwnFilesGuard<'a>(MutexGuard<'a, Vec<OwnFile>>);

impl OwnFilesGuard<'_> {
    /// Adds the file `name` in `directory`, open as `file`.
    pub fn add(&mut self, directory: &Arc<OwnedFd>, name: &OsStr, file: OwnedFd) {
        self.0.push(OwnFile {
            directory: Arc::clone(directory),
            name: name.to_owned(),
            file,
        });
    }

    /// Adds the file `name` in `directory`, whatever kind it is.
    ///
    /// # Errors
    /// Those of `openat(2)`.
    pub fn add_by_name(&mut self, directory: &Arc<OwnedFd>, name: &OsStr) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(directory, name, flags, Mode::empty())?;
        self.add(directory, name, file);
        Ok(())
    }

    /// Removes every file of the list that is still ours, the last made first.
    pub fn remove_all(&mut self) {
        while let Some(own) = self.0.pop() {
            if let Err(error) = own.remove() {
                log::warn!("cannot remove {}: {error}", own.name.display());
            }
        }
    }
}

impl OwnFile {
    fn remove(&self) -> Result<(), Errno> {
        match same_file(&self.file, &self.directory, &self.name) {
            Ok(true) => unlinkat(&self.directory, &self.name, AtFlags::empty()),
            Ok(false) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether `name` in `directory` leads to the open `file`.
///
/// # Errors
/// Those of `fstatat(2)`, `ENOENT` among them.
pub(super) fn same_file(
    file: impl AsFd,
    directory: impl AsFd,
    name: &OsStr,
) -> Result<bool, Errno> {
    let open = fstat(file)?;
    let named = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((open.st_dev, open.st_ino) == (named.st_dev, named.st_ino))
}

/// Removes our files when it goes out of scope, on success and on failure.
#[derive(Debug)]
pub struct RemoveOnExit(pub OwnFiles);

impl Drop for RemoveOnExit {
    fn drop(&mut self) {
        self.0.remove_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_with(name: &str) -> (tempfile::TempDir, Arc<OwnedFd>) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(name), "").unwrap();
        let fd = std::fs::File::open(directory.path()).unwrap().into();
        (directory, Arc::new(fd))
    }

    #[test]
    fn our_file_is_removed_at_the_end_of_the_scope() {
        let (directory, fd) = directory_with("socket");
        let files = OwnFiles::default();
        let guard = RemoveOnExit(files.clone());
        files.lock().add_by_name(&fd, OsStr::new("socket")).unwrap();
        drop(guard);
        assert!(!directory.path().join("socket").exists());
    }

    #[test]
    fn a_file_that_took_the_name_since_is_left_alone() {
        let (directory, fd) = directory_with("socket");
        let files = OwnFiles::default();
        files.lock().add_by_name(&fd, OsStr::new("socket")).unwrap();
        std::fs::remove_file(directory.path().join("socket")).unwrap();
        std::fs::write(directory.path().join("socket"), "another's").unwrap();
        files.remove_all();
        assert_eq!(
            std::fs::read_to_string(directory.path().join("socket")).unwrap(),
            "another's"
        );
    }

    #[test]
    fn the_directory_may_be_renamed_meanwhile() {
        let outer = tempfile::tempdir().unwrap();
        let before = outer.path().join("before");
        let after = outer.path().join("after");
        std::fs::create_dir(&before).unwrap();
        std::fs::write(before.join("socket"), "").unwrap();
        let fd = Arc::new(OwnedFd::from(std::fs::File::open(&before).unwrap()));
        let files = OwnFiles::default();
        files.lock().add_by_name(&fd, OsStr::new("socket")).unwrap();
        std::fs::rename(&before, &after).unwrap();
        files.remove_all();
        assert!(!after.join("socket").exists());
    }
}
