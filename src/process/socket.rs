//! The listening socket and its pid file, or a socket passed by the parent.
//!
//! A path is looked at in two steps, so that nothing is made before everything
//! else about the command line is known to be right: [`SocketPlace::find`]
//! only looks, [`SocketPlace::listen`] makes the pid file, whose lock says
//! that the socket's name is ours, and then the socket.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, accessat, chownat, flock,
    fstat, ftruncate, openat, statat, unlinkat,
};
use rustix::io::{Errno, pread};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};
use rustix::process::umask;

use super::own_files::{OwnFiles, OwnFilesGuard, same_file};
use crate::sys::adopt_fd::adopt_fd;

/// One front end is served, so one may wait.
const BACKLOG: i32 = 1;

/// How long a process that ends is waited for.
const TIME_TO_END: Duration = Duration::from_secs(1);

/// More bytes than any number of a process has.
const MAX_PID_FILE_BYTES: usize = 32;

/// What `sun_path` holds besides the terminating NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Takes over descriptor `number`, which must be a listening stream socket.
///
/// To be called before anything else opens a descriptor, see [`adopt_fd`].
///
/// # Errors
/// When it is not open, or not such a socket; the text says which.
pub fn adopt_listener(number: RawFd) -> anyhow::Result<UnixListener> {
    let fd = adopt_fd(number)
        .map_err(std::io::Error::from)
        .with_context(|| format!("--fd {number}: no such descriptor was passed to this process"))?;
    check_listener(&fd).with_context(|| {
        format!("--fd {number}: a Unix stream socket that already listens is needed")
    })?;
    let listener = UnixListener::from(fd);
    // The parent may have polled it; this daemon waits in accept.
    listener
        .set_nonblocking(false)
        .context("cannot wait on the socket passed with --fd")?;
    Ok(listener)
}

fn check_listener(fd: &OwnedFd) -> anyhow::Result<()> {
    let mode = fstat(fd)?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::Socket {
        bail!("this is not a socket");
    }
    if sockopt::socket_domain(fd)? != AddressFamily::UNIX {
        bail!("this is not a Unix socket");
    }
    if sockopt::socket_type(fd)? != SocketType::STREAM {
        bail!("this is not a stream socket");
    }
    if !sockopt::socket_acceptconn(fd)? {
        bail!("this socket does not listen");
    }
    Ok(())
}

/// Where the socket is to be, and for whom.
#[derive(Debug)]
pub struct SocketPlace {
    /// The option that names it, for the operator.
    option: &'static str,
    path: PathBuf,
    address: SocketAddrUnix,
    directory: Arc<OwnedFd>,
    name: OsString,
    group: Option<Group>,
}

#[derive(Debug)]
struct Group {
    name: String,
    gid: Gid,
}

impl SocketPlace {
    /// Looks at `path`, which `option` names, and resolves the group's name, and
    /// changes nothing.
    ///
    /// # Errors
    /// When no socket can be made there; the text says why.
    pub fn find(option: &'static str, path: &Path, group: Option<&str>) -> anyhow::Result<Self> {
        let Some(name) = path.file_name() else {
            bail!("{option} {}: a file name is needed", path.display());
        };
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH_BYTES {
            bail!(
                "{option} {}: {length} bytes are too long for a socket, which may have \
                 {MAX_SOCKET_PATH_BYTES}; use a shorter or a relative path",
                path.display()
            );
        }
        let directory = open_directory_of(option, path)?;
        let place = Self {
            option,
            path: path.to_owned(),
            address: SocketAddrUnix::new(path)
                .with_context(|| format!("{option} cannot be used"))?,
            directory: Arc::new(directory),
            name: name.to_owned(),
            group: group.map(Group::find).transpose()?,
        };
        place.may_be_replaced()?;
        Ok(place)
    }

    /// Makes the pid file and the socket, both recorded in `files`.
    ///
    /// # Errors
    /// When either cannot be made; what was made is then in `files`.
    pub fn listen(&self, files: &OwnFiles) -> anyhow::Result<UnixListener> {
        let mut files = files.lock();
        // The bits that stay for the group are those of the socket alone: the
        // pid file is made with a mode of its own that has none.
        let for_group = if self.group.is_some() {
            Mode::RWXG
        } else {
            Mode::empty()
        };
        let previous = umask((Mode::RWXG | Mode::RWXO) - for_group);
        let listener = self
            .make_pid_file(&mut files)
            .and_then(|()| self.make_socket(&mut files));
        umask(previous);
        listener
    }

    /// Refuses where another daemon uses the place; changes nothing. A daemon that
    /// starts at this very moment may take the question for another daemon.
    ///
    /// # Errors
    /// When it is in use, cannot be looked at, or cannot be made.
    pub fn is_free(&self) -> anyhow::Result<()> {
        let write = Access::WRITE_OK | Access::EXEC_OK;
        if accessat(&self.directory, c".", write, AtFlags::EACCESS) == Err(Errno::ACCESS) {
            bail!(
                "the daemon's user may not write to the directory of {}; give it the directory, or \
                 choose another {}",
                self.path.display(),
                self.option
            );
        }
        let mut name = self.name.clone();
        name.push(".pid");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let lock = match openat(&self.directory, &name, flags, Mode::empty()) {
            Ok(file) => {
                check_pid_file(&file).context("the pid file beside it cannot be replaced")?;
                flock(file, FlockOperation::NonBlockingLockShared)
            }
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        };
        match lock {
            Ok(()) => Ok(()),
            Err(Errno::AGAIN) => bail!(
                "another daemon uses this socket; stop it, or choose another {}",
                self.option
            ),
            Err(error) => Err(error).context("cannot look at the pid file beside it"),
        }
    }

    /// Refuses where another process answers at the place. One that is about to end is
    /// waited for: what is inside of a sandbox outlives the process outside by a
    /// moment, and may be the daemon that this one takes the place of.
    ///
    /// # Errors
    /// When there is one.
    pub fn nobody_answers(&self) -> anyhow::Result<()> {
        let until = Instant::now() + TIME_TO_END;
        loop {
            let socket = socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                // Its queue may be full, and nobody there to empty it.
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )
            .context("cannot make a socket")?;
            match connect(&socket, &self.address) {
                Ok(()) if hangs_up(&socket, until)? => {}
                // Of another kind, it is in use all the same.
                Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => bail!(
                    "{} {}: another process uses this socket; choose another path",
                    self.option,
                    self.path.display()
                ),
                Err(_) => return Ok(()),
            }
        }
    }

    /// Makes a socket that nobody but the owner may use, without a pid file.
    ///
    /// # Errors
    /// When it cannot be made, or somebody answers there.
    pub fn listen_privately(&self, files: &OwnFiles) -> anyhow::Result<UnixListener> {
        self.nobody_answers()?;
        let mut files = files.lock();
        let previous = umask(Mode::XUSR | Mode::RWXG | Mode::RWXO);
        let listener = self.make_socket(&mut files);
        umask(previous);
        listener
    }

    fn make_pid_file(&self, files: &mut OwnFilesGuard<'_>) -> anyhow::Result<()> {
        let mut name = self.name.clone();
        name.push(".pid");
        let shown = self.path.with_file_name(&name);
        let failed = || format!("Error creating pid file '{}'", shown.display());

        let lock = loop {
            match lock_pid_file(&self.directory, &name) {
                Ok(Some(lock)) => break lock,
                Ok(None) => {}
                Err(Errno::AGAIN) => {
                    return Err(anyhow!(
                        "{}: {}: another daemon uses this socket; stop it, or choose \
                         another --socket-path",
                        failed(),
                        std::io::Error::from(Errno::AGAIN)
                    ));
                }
                Err(Errno::ACCESS) => {
                    return Err(anyhow!(
                        "{}: {}: the daemon's user may not write there; give it the directory, \
                         or choose another",
                        failed(),
                        std::io::Error::from(Errno::ACCESS)
                    ));
                }
                Err(error) => return Err(std::io::Error::from(error)).with_context(failed),
            }
        };
        check_pid_file(&lock).with_context(failed)?;
        // It is ours from the lock on, whoever made it.
        let mut file = std::fs::File::from(lock.try_clone().with_context(failed)?);
        files.add(&self.directory, &name, lock);
        ftruncate(&file, 0)
            .map_err(std::io::Error::from)
            .with_context(failed)?;
        writeln!(file, "{}", std::process::id()).with_context(failed)
    }

    fn make_socket(&self, files: &mut OwnFilesGuard<'_>) -> anyhow::Result<UnixListener> {
        let shown = self.path.display();
        let failed = || format!("cannot make the socket {shown}");
        if self.may_be_replaced()? {
            unlinkat(&self.directory, &self.name, AtFlags::empty())
                .map_err(std::io::Error::from)
                .with_context(|| format!("cannot remove what is at {shown}"))?;
        }
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(std::io::Error::from)
            .with_context(failed)?;
        bind(&socket, &self.address)
            .map_err(std::io::Error::from)
            .with_context(failed)?;
        files
            .add_by_name(&self.directory, &self.name)
            .map_err(std::io::Error::from)
            .with_context(failed)?;
        if let Some(group) = &self.group {
            self.give_to(group)?;
        }
        // Nobody can connect before this line, so nobody could while the
        // socket still had the group of this process.
        listen(&socket, BACKLOG)
            .map_err(std::io::Error::from)
            .with_context(failed)?;
        Ok(UnixListener::from(socket))
    }

    fn give_to(&self, group: &Group) -> anyhow::Result<()> {
        let gid = Some(group.gid);
        chownat(
            &self.directory,
            &self.name,
            None,
            gid,
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(std::io::Error::from)
        .with_context(|| {
            format!(
                "cannot give the socket to the group '{}'; run the daemon as root or as a \
                     member of that group",
                group.name
            )
        })
    }

    /// Whether there is a file at the path that the socket takes the place of:
    /// what an earlier daemon left, or an empty file that holds the name.
    ///
    /// # Errors
    /// When something else is there, which is nobody's to remove.
    fn may_be_replaced(&self) -> anyhow::Result<bool> {
        let stat = match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => {
                return Err(std::io::Error::from(error))
                    .with_context(|| format!("cannot look at {}", self.path.display()));
            }
        };
        let found = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => return Ok(true),
            FileType::RegularFile if stat.st_size == 0 => return Ok(true),
            FileType::RegularFile => "a file with content",
            FileType::Directory => "a directory",
            FileType::Symlink => "a symbolic link",
            _ => "a special file",
        };
        bail!(
            "{} {}: there is {found}, which is not replaced; remove it, or choose another path",
            self.option,
            self.path.display()
        );
    }
}

impl Group {
    fn find(name: &str) -> anyhow::Result<Self> {
        let failed = || {
            "Couldn't resolve the group name specified for the socket path: \
             --socket-group takes the name of a group of this machine"
        };
        match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(Self {
                name: name.to_owned(),
                gid: Gid::from_raw(group.gid.as_raw()),
            }),
            Ok(None) => Err(anyhow!("no group '{name}'")).with_context(failed),
            Err(error) => Err(std::io::Error::from(error)).with_context(failed),
        }
    }
}

/// Whether the other side closes the connection in time.
fn hangs_up(socket: &OwnedFd, until: Instant) -> anyhow::Result<bool> {
    let left = until.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let closed = poll(&mut fds, Some(&left.try_into()?)).context("cannot wait on a socket")?;
    Ok(closed > 0 && !left.is_zero())
}

/// Refuses a pid file that is something else as well, which is not to be emptied: a
/// second name of another file, or a file with other content.
fn check_pid_file(file: &OwnedFd) -> anyhow::Result<()> {
    let links = fstat(file)?.st_nlink;
    if links > 1 {
        bail!("this file has {links} names; remove this one, or choose another --socket-path");
    }
    let mut content = [0; MAX_PID_FILE_BYTES];
    let length = pread(file, &mut content, 0)?;
    let content = content.get(..length).unwrap_or_default();
    let is_pid = |byte: &u8| byte.is_ascii_digit() || byte.is_ascii_whitespace();
    if length == MAX_PID_FILE_BYTES || !content.iter().all(is_pid) {
        bail!(
            "there is more than the number of a process in this file; remove it, or choose \
             another --socket-path"
        );
    }
    Ok(())
}

fn open_directory_of(option: &str, path: &Path) -> anyhow::Result<OwnedFd> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, directory, flags, Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(Errno::NOENT | Errno::NOTDIR) => bail!(
            "{} does not exist or is not a directory; make it, or choose another {option}",
            directory.display()
        ),
        Err(error) => Err(std::io::Error::from(error)).with_context(|| {
            format!(
                "{option}: cannot open the directory {}",
                directory.display()
            )
        }),
    }
}

/// Opens and locks the pid file; `None` where the file lost its name before it
/// was locked, because its owner was just ending.
fn lock_pid_file(directory: impl AsFd, name: &OsStr) -> Result<Option<OwnedFd>, Errno> {
    // Not blocking: a named pipe in its place would hang the daemon.
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = openat(&directory, name, flags, Mode::RUSR | Mode::WUSR)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    match same_file(&file, &directory, name) {
        Ok(true) => Ok(Some(file)),
        Ok(false) | Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn refusal(path: &Path) -> String {
        format!(
            "{:#}",
            SocketPlace::find("--socket-path", path, None).unwrap_err()
        )
    }

    #[test]
    fn only_a_socket_or_an_empty_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(
            !SocketPlace::find("--socket-path", &path, None)
                .unwrap()
                .may_be_replaced()
                .unwrap()
        );

        std::fs::write(&path, "").unwrap();
        assert!(
            SocketPlace::find("--socket-path", &path, None)
                .unwrap()
                .may_be_replaced()
                .unwrap()
        );
        std::fs::write(&path, "x").unwrap();
        assert!(refusal(&path).contains("a file with content"));
        std::fs::remove_file(&path).unwrap();

        let _listener = UnixListener::bind(&path).unwrap();
        assert!(
            SocketPlace::find("--socket-path", &path, None)
                .unwrap()
                .may_be_replaced()
                .unwrap()
        );

        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(refusal(&link).contains("a symbolic link"));
        assert!(refusal(directory.path()).contains("a directory"));
        assert!(refusal(Path::new("/dev/null")).contains("a special file"));
    }

    #[test]
    fn a_path_that_cannot_hold_a_socket_is_refused() {
        assert!(refusal(Path::new("/")).contains("a file name is needed"));
        assert!(refusal(Path::new("")).contains("a file name is needed"));
        assert!(refusal(Path::new("/nowhere/at/all")).starts_with("/nowhere/at does not exist or"));
        assert!(refusal(Path::new(&"a".repeat(108))).contains("108 bytes"));
    }

    #[test]
    fn a_pid_file_is_locked_once_and_replaces_a_stale_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let pid_file = directory.path().join("socket.pid");
        std::fs::write(&pid_file, "1234567890\n").unwrap();

        let files = OwnFiles::default();
        let place = SocketPlace::find("--socket-path", &path, None).unwrap();
        place.make_pid_file(&mut files.lock()).unwrap();
        let content = std::fs::read_to_string(&pid_file).unwrap();
        assert_eq!(content, format!("{}\n", std::process::id()));

        let others = OwnFiles::default();
        let error = place
            .make_pid_file(&mut others.lock())
            .unwrap_err()
            .to_string();
        let expected = format!(
            "Error creating pid file '{}': Resource temporarily unavailable (os error 11)",
            pid_file.display()
        );
        assert!(error.starts_with(&expected), "{error}");
        others.remove_all();
        assert!(pid_file.exists());

        files.remove_all();
        assert!(!pid_file.exists());
    }

    #[test]
    fn a_pid_file_that_is_no_file_of_ours_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        symlink(&target, directory.path().join("socket.pid")).unwrap();
        let place =
            SocketPlace::find("--socket-path", &directory.path().join("socket"), None).unwrap();
        assert!(
            place
                .make_pid_file(&mut OwnFiles::default().lock())
                .is_err()
        );
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn a_pid_file_that_is_something_else_as_well_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let (other, pid_file) = (
            directory.path().join("other"),
            directory.path().join("socket.pid"),
        );
        let place =
            SocketPlace::find("--socket-path", &directory.path().join("socket"), None).unwrap();
        let refusal = || {
            let files = OwnFiles::default();
            let error = place.make_pid_file(&mut files.lock()).unwrap_err();
            files.remove_all();
            let checked = format!("{:#}", place.is_free().unwrap_err());
            assert!(checked.starts_with("the pid file beside it"), "{checked}");
            format!("{error:#}")
        };
        std::fs::write(&other, "123\n").unwrap();
        std::fs::hard_link(&other, &pid_file).unwrap();
        assert!(refusal().contains("this file has 2 names"));
        std::fs::remove_file(&other).unwrap();
        for precious in ["precious", "1 of them", &"1".repeat(MAX_PID_FILE_BYTES)] {
            std::fs::write(&pid_file, precious).unwrap();
            assert!(refusal().contains("more than the number of a process"));
            assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), precious);
        }
    }

    #[test]
    fn a_full_queue_of_connections_is_an_answer_and_one_that_ends_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let place = SocketPlace::find("--metrics-socket", &path, None).unwrap();
        place.nobody_answers().unwrap();

        let files = OwnFiles::default();
        let listener = place.make_socket(&mut files.lock()).unwrap();
        // Nobody accepts.
        let mut waiting = Vec::new();
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            match connect(&socket, &place.address) {
                Ok(()) => waiting.push(socket),
                Err(errno) => break assert_eq!(errno, Errno::AGAIN),
            }
        }
        let refused = || format!("{:#}", place.nobody_answers().unwrap_err());
        assert!(refused().contains("another process uses this socket"));
        drop(waiting);
        while listener.set_nonblocking(true).is_ok() && listener.accept().is_ok() {}

        // One connects, and the other side ends only then.
        let ends = std::thread::spawn(move || {
            listener.set_nonblocking(false).unwrap();
            drop(listener.accept().unwrap());
        });
        place.nobody_answers().unwrap();
        ends.join().unwrap();
    }
}
