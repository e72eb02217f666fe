//! What the daemon is locked into, and what it takes along.
//!
//! In each sandbox the shared directory is the root, so no path leads out of
//! it. The one thing of the outside that the daemon needs is the list of its
//! own descriptors, `/proc/self/fd`, to open a file again; of that it holds a
//! descriptor, through which only numbers are ever looked up.
//!
//! The kernel lets an ordinary user have namespaces of its own inside a user
//! namespace of its own, and so that is what it gets.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, geteuid, pivot_root};
use rustix::thread::UnshareFlags;

use super::user_namespace::{IdRange, NamespaceIds};
use crate::sys::process::enter_new;

/// What most often is behind a refusal, to root.
const REMEDY: &str = "container runtimes usually forbid it: give the container CAP_SYS_ADMIN and \
                      a seccomp profile that allows it, or start with --sandbox=chroot, or with \
                      --sandbox=none where the container is barrier enough";

/// And to others.
const USERS_REMEDY: &str = "container runtimes usually forbid it, and so may the settings \
                            user.max_user_namespaces, kernel.unprivileged_userns_clone and \
                            kernel.apparmor_restrict_unprivileged_userns of the host: allow it \
                            there, or start with --sandbox=none where the rights of the user \
                            are barrier enough";

/// Why ids of a namespace are refused.
pub const NO_ID_MAPS: &str = "--uid-map and --gid-map can only be used by an unprivileged user \
                              with --sandbox=namespace; ids are translated with --translate-uid \
                              and --translate-gid elsewhere";

/// What to lock the daemon into.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Sandbox {
    /// Mount, pid and network namespaces of its own, with the shared directory
    /// as the only mount; for others than root with a user namespace that has
    /// these ids.
    Namespace(Option<NamespaceIds>),
    /// The shared directory as the root.
    Chroot,
}

/// What the daemon serves with, wherever it is.
#[derive(Debug)]
pub struct Inside {
    /// The path of the shared directory.
    pub root: PathBuf,
    /// `/proc/self/fd` of the serving process.
    pub proc_self_fd: OwnedFd,
}

impl Inside {
    /// No sandbox: the directory is where it is.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn nothing(shared_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            root: shared_dir.to_owned(),
            proc_self_fd: open_proc_self_fd()?,
        })
    }
}

impl Sandbox {
    /// Namespaces, with these users and groups where somebody else than root
    /// enters them.
    ///
    /// # Errors
    /// When root gives ids, which it could not use.
    pub fn namespace(users: Vec<IdRange>, groups: Vec<IdRange>) -> anyhow::Result<Self> {
        if !geteuid().is_root() {
            return Ok(Self::Namespace(Some(NamespaceIds::new(users, groups))));
        }
        if !users.is_empty() || !groups.is_empty() {
            bail!(NO_ID_MAPS);
        }
        Ok(Self::Namespace(None))
    }

    /// The shared directory as root.
    ///
    /// # Errors
    /// When this user cannot have it, whatever the machine.
    pub fn chroot() -> anyhow::Result<Self> {
        if !geteuid().is_root() {
            bail!(
                "--sandbox=chroot can be used by root only; start as root, or with \
                 --sandbox=namespace"
            );
        }
        Ok(Self::Chroot)
    }

    /// The namespaces that the process must be started in.
    pub fn namespaces_at_birth(&self) -> UnshareFlags {
        match self {
            Self::Namespace(None) => UnshareFlags::NEWPID,
            Self::Namespace(Some(_)) => UnshareFlags::NEWPID | UnshareFlags::NEWUSER,
            Self::Chroot => UnshareFlags::empty(),
        }
    }

    /// The ids of the user namespace, if there is to be one.
    pub fn ids(&self) -> Option<&NamespaceIds> {
        match self {
            Self::Namespace(ids) => ids.as_ref(),
            Self::Chroot => None,
        }
    }

    /// What may help where the kernel refuses a step.
    pub fn remedy(&self) -> &'static str {
        if self.ids().is_some() {
            USERS_REMEDY
        } else {
            REMEDY
        }
    }

    /// Locks the calling process in; it was started in
    /// [`Sandbox::namespaces_at_birth`] and has one thread.
    ///
    /// # Errors
    /// The step that failed, and what may help.
    pub fn enter(&self, shared_dir: &Path) -> anyhow::Result<Inside> {
        let proc_self_fd = match self {
            Self::Namespace(_) => enter_namespaces(shared_dir, self.remedy()),
            Self::Chroot => enter_chroot(shared_dir),
        }
        .context("cannot enter the sandbox")?;
        chdir("/").context("cannot enter the sandbox: cannot go to its root")?;
        Ok(Inside {
            root: "/".into(),
            proc_self_fd,
        })
    }
}

fn enter_chroot(shared_dir: &Path) -> anyhow::Result<OwnedFd> {
    let proc_self_fd = open_proc_self_fd()?;
    chdir(shared_dir).with_context(|| cannot_go_to(shared_dir))?;
    chroot(".").context(
        "cannot make the shared directory the root; where a container forbids it, give it \
         CAP_SYS_CHROOT, or start with --sandbox=none",
    )?;
    Ok(proc_self_fd)
}

fn enter_namespaces(shared_dir: &Path, remedy: &str) -> anyhow::Result<OwnedFd> {
    enter_new(UnshareFlags::NEWNS | UnshareFlags::NEWNET)
        .with_context(|| format!("cannot make a mount and a network namespace; {remedy}"))?;
    // What is done here must not be seen outside; what is mounted outside,
    // below the shared directory, is still to be seen here.
    let from_outside = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", from_outside)
        .with_context(|| format!("cannot keep mounts to this namespace; {remedy}"))?;
    chdir(shared_dir).with_context(|| cannot_go_to(shared_dir))?;
    let share = detached_copy(c".", OpenTreeFlags::AT_RECURSIVE)
        .context("cannot copy the mount of the shared directory; this needs Linux 5.2")?;

    // A mount of its own, attached nowhere: `..` leads nowhere from there, so it
    // is no matter that this /proc shows processes outside. A new one would be
    // refused in containers that hide parts of theirs.
    let proc_self_fd = detached_copy(c"/proc/self/fd", OpenTreeFlags::empty())
        .context("cannot take /proc/self/fd along; is /proc mounted?")?;

    // Any directory does to attach the copy, and this one is there.
    move_mount(
        &share,
        c"",
        CWD,
        c"/proc",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .context("cannot attach the copy of the shared directory")?;
    fchdir(&share).context("cannot go to the copy of the shared directory")?;
    // With the same place for both, the old root comes to lie on the new one,
    // and no directory for it is needed in the share.
    pivot_root(c".", c".").with_context(|| {
        format!(
            "cannot make the shared directory the root; a root file system in memory, as early \
             at boot, cannot be replaced: there, start with --sandbox=chroot; {remedy}"
        )
    })?;
    unmount(c".", UnmountFlags::DETACH).context("cannot let go of the old root")?;
    Ok(proc_self_fd)
}

fn cannot_go_to(shared_dir: &Path) -> String {
    format!("cannot go to the shared directory {}", shared_dir.display())
}

fn detached_copy(path: &std::ffi::CStr, more: OpenTreeFlags) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | more;
    open_tree(CWD, path, flags)
}

fn open_proc_self_fd() -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, c"/proc/self/fd", flags, Mode::empty())
        .context("cannot open /proc/self/fd; is /proc mounted?")
}
