//! Making something together with its security label (`--security-label`).
//!
//! Nobody may find what was made without its label, and nothing may stay of what
//! could not be labelled. So a file is made without a name (`O_TMPFILE`), labelled,
//! and then linked into its directory. What cannot be made so (directories, links,
//! fifos, sockets, devices, and files where the file system has no `O_TMPFILE`) is
//! made under a name that cannot be guessed, labelled, and renamed, never over
//! something else. Either way it is made in its directory, by the guest's user and
//! with the umask, so that it inherits what it would have inherited.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::fs::Result;
use crate::fuse::extensions::Extensions;
use crate::fuse::flags::init as features;
use crate::passthrough::Passthrough;
use crate::passthrough::inodes::identity::Found;
use crate::passthrough::inodes::inode::Node;
use crate::sys::cpath::FdName;

/// A label as the host takes it.
#[derive(Clone, Debug)]
pub(in crate::passthrough) struct Label<'a> {
    name: Cow<'a, CStr>,
    value: &'a [u8],
}

impl Passthrough {
    /// The label that a request gives to what it makes.
    ///
    /// # Errors
    /// Those of `--xattrmap`, which has a say in its name.
    pub(in crate::passthrough) fn label_of<'a>(
        &self,
        extensions: &Extensions<'a>,
    ) -> Result<Option<Label<'a>>> {
        let context = extensions.security_context;
        let Some(context) = context.filter(|_| self.has(features::SECURITY_CTX)) else {
            return Ok(None);
        };
        Ok(Some(Label {
            name: self.host_name(context.name)?,
            value: context.label,
        }))
    }

    /// Labels what was just made and has no name yet that anybody knows.
    ///
    /// # Errors
    /// Those of `setxattr(2)`.
    pub(in crate::passthrough) fn set_label(
        &self,
        made: BorrowedFd<'_>,
        label: &Label<'_>,
    ) -> Result<()> {
        self.with_xattr_path(made, |path| {
            rustix::fs::setxattr(path, &*label.name, label.value, XattrFlags::empty())
        })
    }

    /// Makes something, by `make` under the name that this is given, labels it and
    /// gives it its name.
    ///
    /// # Errors
    /// That of the step that failed; nothing stays then.
    pub(in crate::passthrough) fn make_labelled<T>(
        &self,
        parent: &Node,
        name: &CStr,
        label: &Label<'_>,
        make: impl FnOnce(&CStr) -> Result<T>,
    ) -> Result<T> {
        let hidden = unguessable_name()?;
        let made = make(&hidden)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let named = rustix::fs::openat(parent, &*hidden, flags, Mode::empty())
            .and_then(|path| self.set_label(path.as_fd(), label))
            .and_then(|()| publish(parent.as_fd(), &hidden, name));
        named.map(|()| made).inspect_err(|_| {
            remove(parent.as_fd(), &hidden);
        })
    }

    /// Makes a file and opens it, as [`Self::make_labelled`], by a call of `open`
    /// with the name, the flags and as the user that it is to be made.
    ///
    /// # Errors
    /// That of the step that failed; nothing stays then.
    pub(in crate::passthrough) fn make_labelled_file(
        &self,
        parent: &Node,
        name: &CStr,
        label: &Label<'_>,
        flags: OFlags,
        open: impl Fn(&CStr, OFlags) -> Result<OwnedFd>,
    ) -> Result<OwnedFd> {
        let only_reads = flags & OFlags::ACCMODE == OFlags::RDONLY;
        let mut nameless = (flags - OFlags::CREATE - OFlags::EXCL) | OFlags::TMPFILE;
        if only_reads {
            nameless |= OFlags::RDWR;
        }
        let file = match open(c".", nameless) {
            Err(Errno::OPNOTSUPP) => {
                return self.make_labelled(parent, name, label, |hidden| open(hidden, flags));
            }
            file => file?,
        };
        self.set_label(file.as_fd(), label)?;
        let file = if only_reads {
            self.inodes
                .reopen(file.as_fd(), flags - OFlags::CREATE - OFlags::EXCL)?
        } else {
            file
        };
        // Through /proc, since linking a descriptor itself takes a capability.
        rustix::fs::linkat(
            self.inodes.proc_self_fd(),
            FdName::of(file.as_fd()).as_c_str(),
            parent,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?;
        Ok(file)
    }

    /// A path descriptor of a file that was just made as `name`.
    ///
    /// One that was made without a name never gets one by its own descriptor, so
    /// it is opened by its name, if that is still its name.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub(in crate::passthrough) fn path_of_created(
        &self,
        parent: &Node,
        name: &CStr,
        extensions: &Extensions<'_>,
        (file, found): (BorrowedFd<'_>, &Found),
    ) -> Result<OwnedFd> {
        if self.has(features::SECURITY_CTX) && extensions.security_context.is_some() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let named = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            if crate::passthrough::inodes::identity::identify(named.as_fd())?.identity
                == found.identity
            {
                return Ok(named);
            }
        }
        self.inodes.reopen(file, OFlags::PATH)
    }
}

/// A name for what must not be found yet.
fn unguessable_name() -> Result<CString> {
    let mut random = [0_u8; 16];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let name = format!(".virtiofsd-{:032x}", u128::from_ne_bytes(random));
    CString::new(name).map_err(|_| Errno::INVAL)
}

/// Gives what is called `hidden` its name, unless something has that already.
fn publish(parent: BorrowedFd<'_>, hidden: &CStr, name: &CStr) -> Result<()> {
    match rustix::fs::renameat_with(parent, hidden, parent, name, RenameFlags::NOREPLACE) {
        // The file system does not know the flag.
        Err(Errno::INVAL) => publish_in_steps(parent, hidden, name),
        done => done,
    }
}

/// The same with more calls: a link is never made over something else. A directory
/// has none; renamed, it could replace a directory that is empty and was not there a
/// moment ago, and nothing else.
fn publish_in_steps(parent: BorrowedFd<'_>, hidden: &CStr, name: &CStr) -> Result<()> {
    let kind_of = |name| -> Result<FileType> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    };
    if kind_of(hidden)? != FileType::Directory {
        rustix::fs::linkat(parent, hidden, parent, name, AtFlags::empty())?;
        return rustix::fs::unlinkat(parent, hidden, AtFlags::empty());
    }
    match kind_of(name) {
        Err(Errno::NOENT) => rustix::fs::renameat(parent, hidden, parent, name),
        Ok(_) => Err(Errno::EXIST),
        Err(errno) => Err(errno),
    }
}

/// Removes what did not get its name, whatever it is.
fn remove(parent: BorrowedFd<'_>, hidden: &CStr) {
    let removed = match rustix::fs::unlinkat(parent, hidden, AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(parent, hidden, AtFlags::REMOVEDIR),
        done => done,
    };
    if let Err(errno) = removed {
        let hidden = hidden.to_string_lossy();
        log::debug!("{hidden}, which could not be labelled, cannot be removed: {errno}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_name_is_new_each_time() {
        let names = [(); 3].map(|()| unguessable_name().unwrap());
        assert_ne!(names[0], names[1]);
        assert_ne!(names[1], names[2]);
        assert!(names.iter().all(|name| name.count_bytes() == 43));
    }

    #[test]
    fn what_gets_its_name_replaces_nothing() {
        type Publish = fn(BorrowedFd<'_>, &CStr, &CStr) -> Result<()>;
        for publish in [publish as Publish, publish_in_steps] {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let parent = fs::File::open(dir.path()).unwrap();
            for name in ["file", "taken-file"] {
                fs::write(at(name), "text").unwrap();
            }
            std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
            for name in ["directory", "taken-directory"] {
                fs::create_dir(at(name)).unwrap();
            }
            for taken in [c"taken-file", c"taken-directory"] {
                for hidden in [c"file", c"link", c"directory"] {
                    let refused = publish(parent.as_fd(), hidden, taken);
                    assert_eq!(refused, Err(Errno::EXIST), "{hidden:?} over {taken:?}");
                    remove(parent.as_fd(), c"no-such-name");
                }
            }
            for (hidden, name) in [
                (c"file", c"new-file"),
                (c"link", c"new-link"),
                (c"directory", c"new-directory"),
            ] {
                assert_eq!(publish(parent.as_fd(), hidden, name), Ok(()));
                let [hidden, name] = [hidden, name].map(|name| at(name.to_str().unwrap()));
                assert!(fs::symlink_metadata(hidden).is_err());
                assert!(fs::symlink_metadata(name).is_ok());
            }
            for name in [c"new-file", c"new-link", c"new-directory"] {
                remove(parent.as_fd(), name);
                assert!(fs::symlink_metadata(at(name.to_str().unwrap())).is_err());
            }
        }
    }
}
