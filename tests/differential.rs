//! The same operations on a directory of the host and, through the daemon, on another
//! one beside it, in random order, with changes by the host in between: both must give
//! the same results and the same trees, on every file system and with every pair of
//! options.
//!
//! `VIRTIOFSD_DIFFERENTIAL_STEPS` sets how many operations there are in each run, and
//! `VIRTIOFSD_DIFFERENTIAL_SEED` with which number they begin; a failure says which
//! operations led to it. As an ordinary user it runs on the file system of the temporary
//! directory only. It only uses options that virtiofsd 1.13.3 has, so that `VIRTIOFSD`
//! may name that one.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, XattrFlags};
use tempfile::TempDir;

use common::Random;
use common::fuse_client::{Client, SetAttr};
use common::host_fs::HostFs;
use common::pairs::{OPTIONS, all_pairs};
use common::session::Session;
use common::wire::ROOT;
use common::wire::init::SETXATTR_EXT;

const STEPS: u64 = 250;

/// A result as both sides can say it.
type Outcome = Result<String, i32>;

/// What is done by a path; `usize` is the number of an open file.
#[derive(Clone, Debug)]
enum Op {
    Create(String, i32, u32),
    Mkdir(String, u32),
    Rmdir(String),
    Unlink(String),
    Symlink(String, &'static str),
    Readlink(String),
    Link(String, String),
    Rename(String, String, u32),
    Chmod(String, u32),
    Truncate(String, u64),
    Stat(String),
    List(String),
    SetXattr(String, &'static str, &'static str, u32),
    GetXattr(String, &'static str),
    RemoveXattr(String, &'static str),
    ListXattr(String),
    Write(usize, u64, usize),
    Read(usize, u64, u32),
    Resize(usize, u64),
    Fallocate(usize, u64, u64, u32),
    Copy(usize, u64, usize, u64, u64),
    Sync(usize),
    StatOpen(usize),
    Close(usize),
}

/// A file that both sides have open.
struct Open {
    local: File,
    node: u64,
    fh: u64,
    appends: bool,
}

struct World {
    session: Session,
    mirror: TempDir,
    files: Vec<Open>,
    history: Vec<String>,
    /// Whether the guest may ask for attributes.
    xattr: bool,
    /// Nodes that were looked up for the last operation.
    found: Vec<u64>,
}

const NAMES: [&str; 7] = ["a", "b", "c", "dir", "other", "name with space", "\u{e4}"];
const XATTRS: [&str; 3] = ["user.a", "user.b", "user.long"];
const SIZES: [u64; 7] = [0, 1, 10, 4095, 4096, 10_000, 70_000];

fn path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let names: Vec<_> = (0..depth).map(|_| random.choice(&NAMES)).collect();
    names.join("/")
}

fn size(random: &mut Random) -> u64 {
    random.choice(&SIZES)
}

impl World {
    fn any_op(&self, random: &mut Random) -> Op {
        let p = path(random);
        let open = self.files.len();
        if open > 0 && random.below(2) == 0 {
            let file = usize::try_from(random.below(open as u64)).unwrap();
            let other = usize::try_from(random.below(open as u64)).unwrap();
            let keep = FallocateFlags::KEEP_SIZE;
            let modes = [
                FallocateFlags::empty(),
                keep,
                keep | FallocateFlags::PUNCH_HOLE,
                FallocateFlags::ZERO_RANGE,
            ];
            return match random.below(10) {
                0..=2 => Op::Write(
                    file,
                    size(random),
                    1 + usize::try_from(size(random)).unwrap() % 20_000,
                ),
                3 | 4 => Op::Read(file, size(random), u32::try_from(size(random)).unwrap()),
                5 => Op::Resize(file, size(random)),
                6 => Op::Fallocate(
                    file,
                    size(random),
                    1 + size(random),
                    modes[usize::try_from(random.below(4)).unwrap()].bits(),
                ),
                7 => Op::Copy(file, size(random), other, size(random), size(random)),
                8 => Op::StatOpen(file),
                _ if random.below(2) == 0 => Op::Sync(file),
                _ => Op::Close(file),
            };
        }
        let name = random.choice(&XATTRS);
        match random.below(24) {
            0..=4 => {
                let flags = random.choice(&[0, libc::O_EXCL, libc::O_TRUNC, libc::O_APPEND]);
                let access = random.choice(&[libc::O_RDWR, libc::O_RDWR, libc::O_RDONLY]);
                let flags = if access == libc::O_RDONLY {
                    flags & libc::O_EXCL
                } else {
                    flags
                };
                Op::Create(p, flags | access, random.choice(&[0o644, 0o600, 0o400]))
            }
            5..=7 => Op::Mkdir(p, random.choice(&[0o755, 0o700, 0o1777])),
            8 => Op::Rmdir(p),
            9 | 10 => Op::Unlink(p),
            11 => Op::Symlink(p, random.choice(&["a", "dir/b", "/nowhere", ".."])),
            12 => Op::Readlink(p),
            13 => Op::Link(p, path(random)),
            14..=16 => Op::Rename(p, path(random), random.choice(&[0, 0, 1, 2])),
            17 => Op::Chmod(p, random.choice(&[0o644, 0o755, 0o600, 0o1777])),
            18 => Op::Truncate(p, size(random)),
            19 | 20 => Op::Stat(p),
            21 => Op::List(p),
            _ if !self.xattr => Op::Stat(p),
            _ => match random.below(4) {
                0 => Op::SetXattr(
                    p,
                    name,
                    random.choice(&["", "value", "another value"]),
                    u32::try_from(random.below(3)).unwrap(),
                ),
                1 => Op::GetXattr(p, name),
                2 => Op::RemoveXattr(p, name),
                _ => Op::ListXattr(p),
            },
        }
    }

    /// Whether the guest's kernel would get as far as the last name of a path.
    fn can_be_reached(&self, path: &str) -> bool {
        let place = self.mirror.path().join(path);
        fs::symlink_metadata(place.parent().unwrap()).is_ok_and(|parent| parent.is_dir())
            && !self.has_link(path)
    }

    fn has_link(&self, path: &str) -> bool {
        let mut at = self.mirror.path().to_owned();
        let names: Vec<_> = path.split('/').collect();
        names[..names.len() - 1].iter().any(|name| {
            at.push(name);
            fs::symlink_metadata(&at).is_ok_and(|found| found.is_symlink())
        })
    }

    /// The directory of a path, and its name.
    fn place<'p>(&mut self, path: &'p str) -> Result<(u64, &'p str), i32> {
        match path.rsplit_once('/') {
            Some((parent, name)) => Ok((self.node(parent)?, name)),
            None => Ok((ROOT, path)),
        }
    }

    fn node(&mut self, path: &str) -> Result<u64, i32> {
        let mut at = ROOT;
        for name in path.split('/') {
            at = self.client().lookup(at, name)?.nodeid;
            self.found.push(at);
        }
        Ok(at)
    }

    fn client(&mut self) -> &mut Client {
        &mut self.session.client
    }

    /// By the guest.
    fn remote(&mut self, op: &Op) -> Outcome {
        let done = |()| String::new();
        match op {
            Op::Create(path, flags, mode) => {
                let (parent, name) = self.place(path)?;
                let (entry, open) = self.client().create(parent, name, *flags, *mode)?;
                self.found.push(entry.nodeid);
                // Another lookup of its own, for as long as it is open.
                let again = self.client().lookup(parent, name)?;
                assert_eq!(again.nodeid, entry.nodeid);
                self.files.last_mut().unwrap().node = entry.nodeid;
                self.files.last_mut().unwrap().fh = open.fh;
                Ok(String::new())
            }
            Op::Mkdir(path, mode) => {
                let (parent, name) = self.place(path)?;
                let entry = self.client().mkdir(parent, name, *mode, 0)?;
                self.found.push(entry.nodeid);
                Ok(String::new())
            }
            Op::Rmdir(path) => {
                let (parent, name) = self.place(path)?;
                self.client().rmdir(parent, name).map(done)
            }
            Op::Unlink(path) => {
                let (parent, name) = self.place(path)?;
                self.client().unlink(parent, name).map(done)
            }
            Op::Symlink(path, target) => {
                let (parent, name) = self.place(path)?;
                let entry = self.client().symlink(parent, name, target)?;
                self.found.push(entry.nodeid);
                Ok(String::new())
            }
            Op::Readlink(path) => {
                let node = self.node(path)?;
                let target = self.client().readlink(node)?;
                Ok(String::from_utf8(target).unwrap())
            }
            Op::Link(from, to) => {
                let node = self.node(from)?;
                let (parent, name) = self.place(to)?;
                let entry = self.client().link(node, parent, name)?;
                self.found.push(entry.nodeid);
                Ok(String::new())
            }
            Op::Rename(from, to, flags) => {
                let (from, to) = (self.place(from)?, self.place(to)?);
                if *flags == 0 {
                    return self.client().rename(from, to).map(done);
                }
                self.client().rename2(from, to, *flags).map(done)
            }
            Op::Chmod(path, mode) => {
                let node = self.node(path)?;
                let set = SetAttr {
                    mode: Some(*mode),
                    ..SetAttr::default()
                };
                self.client().setattr(node, &set).map(|_| String::new())
            }
            Op::Truncate(path, size) => {
                let node = self.node(path)?;
                let set = SetAttr {
                    size: Some(*size),
                    ..SetAttr::default()
                };
                self.client().setattr(node, &set).map(|_| String::new())
            }
            Op::Stat(path) => {
                let (parent, name) = self.place(path)?;
                let entry = self.client().lookup(parent, name)?;
                self.found.push(entry.nodeid);
                let again = self.client().getattr(entry.nodeid)?.attr;
                let shape = |attr: &common::wire::Attr| shape(attr.mode, attr.nlink, attr.size);
                assert_eq!(shape(&entry.attr), shape(&again));
                Ok(shape(&again))
            }
            Op::List(path) => {
                let node = self.node(path)?;
                let plus = self.history.len().is_multiple_of(2);
                let c = self.client();
                let fh = c.opendir(node)?.fh;
                let entries = c.read_whole_dir(node, fh, 4096, plus)?;
                c.releasedir(node, fh)?;
                for entry in &entries {
                    if let Some(found) = entry.entry.filter(|found| found.nodeid != 0) {
                        self.found.push(found.nodeid);
                    }
                }
                let mut names: Vec<_> = entries.iter().map(|e| e.name().to_owned()).collect();
                names.retain(|name| !matches!(&**name, "." | ".."));
                names.retain(|name| !is_hidden(OsStr::new(name)));
                names.sort();
                Ok(names.join("|"))
            }
            Op::SetXattr(path, name, value, flags) => {
                let node = self.node(path)?;
                let agreed = self.session.init.as_ref().unwrap().flags;
                let extended = agreed & SETXATTR_EXT != 0;
                let set = self
                    .client()
                    .setxattr(node, name, value.as_bytes(), *flags, extended);
                set.map(done)
            }
            Op::GetXattr(path, name) => {
                let node = self.node(path)?;
                let value = self.client().getxattr(node, name, 100)?;
                Ok(String::from_utf8(value).unwrap())
            }
            Op::RemoveXattr(path, name) => {
                let node = self.node(path)?;
                self.client().removexattr(node, name).map(done)
            }
            Op::ListXattr(path) => {
                let node = self.node(path)?;
                let names = self.client().listxattr(node, 4096)?;
                Ok(users(&names))
            }
            Op::Write(file, offset, len) => {
                let Open {
                    node, fh, appends, ..
                } = self.files[*file];
                // Where the guest believes the end to be; the mirror was not written yet.
                let end = self.files[*file].local.metadata().unwrap().len();
                let data = vec![b'w'; *len];
                let c = &mut self.session.client;
                let written = if appends {
                    c.write_flags(node, fh, end, &data, 0, libc::O_APPEND)
                } else {
                    c.write(node, fh, *offset, &data)
                };
                written.map(|n| n.to_string())
            }
            Op::Read(file, offset, size) => {
                let Open { node, fh, .. } = self.files[*file];
                let data = self.client().read(node, fh, *offset, *size)?;
                Ok(sum(&data))
            }
            Op::Resize(file, size) => {
                let Open { node, fh, .. } = self.files[*file];
                let set = SetAttr {
                    fh: Some(fh),
                    size: Some(*size),
                    ..SetAttr::default()
                };
                self.client().setattr(node, &set).map(|_| String::new())
            }
            Op::Fallocate(file, offset, len, mode) => {
                let Open { node, fh, .. } = self.files[*file];
                let done_so = self.client().fallocate(node, fh, *offset, *len, *mode);
                done_so.map(done)
            }
            Op::Copy(from, at, to, to_at, len) => {
                let (from, to) = (&self.files[*from], &self.files[*to]);
                let (from, to) = ((from.node, from.fh, *at), (to.node, to.fh, *to_at));
                let copied = self.client().copy_file_range(from, to, *len, 0);
                copied.map(|n| n.to_string())
            }
            Op::Sync(file) => {
                let Open { node, fh, .. } = self.files[*file];
                self.client().fsync(node, fh, 0).map(done)
            }
            Op::StatOpen(file) => {
                let Open { node, fh, .. } = self.files[*file];
                let attr = self.client().getattr_fh(node, fh)?.attr;
                Ok(shape(attr.mode, attr.nlink, attr.size))
            }
            Op::Close(file) => {
                let Open { node, fh, .. } = self.files[*file];
                self.client().release(node, fh)?;
                self.client().forget(node, 1);
                Ok(String::new())
            }
        }
    }

    /// By the host, in the mirror.
    fn local(&mut self, op: &Op) -> Outcome {
        let base = self.mirror.path().to_owned();
        let at = |path: &str| base.join(path);
        match op {
            Op::Create(path, flags, mode) => {
                let flags = OFlags::from_bits_retain(flags.cast_unsigned());
                let flags = flags | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::open(at(path), flags, Mode::from_raw_mode(*mode));
                self.files.push(Open {
                    local: File::from(file.map_err(rustix::io::Errno::raw_os_error)?),
                    node: 0,
                    fh: 0,
                    appends: flags.contains(OFlags::APPEND),
                });
                Ok(String::new())
            }
            Op::Write(file, offset, len) => {
                let Open { local, appends, .. } = &self.files[*file];
                let data = vec![b'w'; *len];
                let written = if *appends {
                    std::io::Write::write(&mut &*local, &data)
                } else {
                    local.write_at(&data, *offset)
                };
                errno(written).map(|n| n.to_string())
            }
            Op::Read(file, offset, size) => {
                let local = &self.files[*file].local;
                let mut data = vec![0; *size as usize];
                let mut len = 0;
                while len < data.len() {
                    let n = errno(local.read_at(&mut data[len..], *offset + len as u64))?;
                    if n == 0 {
                        break;
                    }
                    len += n;
                }
                Ok(sum(&data[..len]))
            }
            Op::Resize(file, size) => {
                let local = &self.files[*file].local;
                errno(local.set_len(*size)).map(|()| String::new())
            }
            Op::Fallocate(file, offset, len, mode) => {
                let local = &self.files[*file].local;
                let mode = FallocateFlags::from_bits_retain(*mode);
                let done = rustix::fs::fallocate(local, mode, *offset, *len);
                raw(done).map(|()| String::new())
            }
            Op::Copy(from, from_at, to, to_at, len) => {
                let (from, to) = (&self.files[*from].local, &self.files[*to].local);
                let (mut from_at, mut to_at) = (*from_at, *to_at);
                let len = usize::try_from(*len).unwrap();
                let (a, b) = (Some(&mut from_at), Some(&mut to_at));
                raw(rustix::fs::copy_file_range(from, a, to, b, len)).map(|n| n.to_string())
            }
            Op::Sync(file) => errno(self.files[*file].local.sync_all()).map(|()| String::new()),
            Op::StatOpen(file) => {
                let found = errno(self.files[*file].local.metadata())?;
                Ok(shape(
                    found.mode(),
                    u32::try_from(found.nlink()).unwrap(),
                    found.len(),
                ))
            }
            Op::Close(_) => Ok(String::new()),
            _ => by_path(&base, op),
        }
    }

    /// One operation on both sides.
    fn step(&mut self, random: &mut Random) {
        let op = self.any_op(random);
        let paths = match &op {
            Op::Link(from, to) | Op::Rename(from, to, _) => vec![from, to],
            Op::Create(path, ..)
            | Op::Mkdir(path, _)
            | Op::Rmdir(path)
            | Op::Unlink(path)
            | Op::Symlink(path, _)
            | Op::Readlink(path)
            | Op::Chmod(path, _)
            | Op::Truncate(path, _)
            | Op::Stat(path)
            | Op::List(path)
            | Op::SetXattr(path, ..)
            | Op::GetXattr(path, _)
            | Op::RemoveXattr(path, _)
            | Op::ListXattr(path) => vec![path],
            _ => vec![],
        };
        if !paths.iter().all(|path| self.can_be_reached(path)) {
            return;
        }
        let is_link = |path: &String| {
            let found = fs::symlink_metadata(self.mirror.path().join(path));
            found.is_ok_and(|found| found.is_symlink())
        };
        // What the guest's kernel follows, or answers itself.
        let follows = match &op {
            Op::Chmod(path, _) | Op::Truncate(path, _) | Op::List(path) | Op::Create(path, ..) => {
                is_link(path)
            }
            Op::SetXattr(path, ..)
            | Op::GetXattr(path, _)
            | Op::RemoveXattr(path, _)
            | Op::ListXattr(path) => is_link(path),
            _ => false,
        };
        // Nor does it copy to a file that is open for appending, or read what is no link.
        // The names of one file are several files to the host's kernel on file systems
        // that go by paths, each with a cache of its own.
        let refuses = match &op {
            Op::Copy(_, _, to, ..) => self.files[*to].appends,
            Op::Readlink(path) => self.mirror.path().join(path).exists() && !is_link(path),
            Op::Link(..) => SERVED.get(),
            _ => false,
        };
        if follows || refuses {
            return;
        }
        // Sometimes it is the host that does it, in both trees.
        let is_by_path = !paths.is_empty() && !matches!(op, Op::Create(..));
        let by_host = is_by_path && random.below(5) == 0;
        self.history.push(format!(
            "{op:?}{}",
            if by_host { " by the host" } else { "" }
        ));
        let open = self.files.len();
        let (here, there) = if by_host {
            let share = self.session.path("");
            (by_path(self.mirror.path(), &op), by_path(&share, &op))
        } else if matches!(op, Op::Create(..)) {
            // The place for both is made by the first.
            let here = self.local(&op);
            if here.is_err() {
                self.files.push(Open {
                    local: File::open("/dev/null").unwrap(),
                    node: 0,
                    fh: 0,
                    appends: false,
                });
            }
            let there = self.remote(&op);
            if here.is_err() || there.is_err() {
                self.files.truncate(open);
            }
            (here, there)
        } else {
            let there = self.remote(&op);
            (self.local(&op), there)
        };
        assert_eq!(there, here, "{}", self.told());
        if let Op::Close(file) = op {
            self.files.swap_remove(file);
        }
        if random.below(2) == 0 {
            for node in std::mem::take(&mut self.found) {
                if node != ROOT {
                    self.client().forget(node, 1);
                }
            }
        }
    }

    fn told(&self) -> String {
        let from = self.history.len().saturating_sub(40);
        format!(
            "{}: ...\n{}",
            self.history[0],
            self.history[from..].join("\n")
        )
    }

    fn compare(&self, relative: &Path) {
        let (here, there) = (
            self.mirror.path().join(relative),
            self.session.path(relative),
        );
        let (a, b) = (
            fs::symlink_metadata(&here).unwrap(),
            fs::symlink_metadata(&there).unwrap(),
        );
        let shape = |of: &fs::Metadata| shape(of.mode(), of.nlink() as u32, of.len());
        let told = || format!("{}: {}", relative.display(), self.told());
        if !relative.as_os_str().is_empty() {
            assert_eq!(shape(&b), shape(&a), "{}", told());
        }
        if a.is_file() {
            assert!(
                fs::read(&here).unwrap() == fs::read(&there).unwrap(),
                "{}",
                told()
            );
        } else if a.is_symlink() {
            let (a, b) = (
                fs::read_link(&here).unwrap(),
                fs::read_link(&there).unwrap(),
            );
            assert_eq!(a, b, "{}", told());
        } else if a.is_dir() {
            // An ordinary user needs the right to look into it.
            for at in [&here, &there] {
                fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
            }
            let names = |at: &Path| {
                let mut names: Vec<_> = fs::read_dir(at)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name())
                    .filter(|name| !is_hidden(name))
                    .collect();
                names.sort();
                names
            };
            let found = names(&here);
            assert_eq!(names(&there), found, "{}", told());
            for name in found {
                self.compare(&relative.join(name));
            }
        }
    }
}

/// What needs no open file, by the host in any tree.
fn by_path(base: &Path, op: &Op) -> Outcome {
    let at = |path: &str| base.join(path);
    let done = |()| String::new();
    match op {
        Op::Mkdir(path, mode) => {
            raw(rustix::fs::mkdir(at(path), Mode::from_raw_mode(*mode))).map(done)
        }
        Op::Rmdir(path) => raw(rustix::fs::rmdir(at(path))).map(done),
        Op::Unlink(path) => raw(rustix::fs::unlink(at(path))).map(done),
        Op::Symlink(path, target) => raw(rustix::fs::symlink(*target, at(path))).map(done),
        Op::Readlink(path) => raw(rustix::fs::readlink(at(path), Vec::new()))
            .map(|target| target.into_string().unwrap()),
        Op::Link(from, to) => raw(rustix::fs::linkat(
            CWD,
            at(from),
            CWD,
            at(to),
            AtFlags::empty(),
        ))
        .map(done),
        Op::Rename(from, to, flags) => {
            let flags = RenameFlags::from_bits_retain(*flags);
            raw(rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags)).map(done)
        }
        Op::Chmod(path, mode) => {
            raw(rustix::fs::chmod(at(path), Mode::from_raw_mode(*mode))).map(done)
        }
        Op::Truncate(path, size) => {
            let path = at(path);
            if errno(fs::symlink_metadata(&path))?.is_dir() {
                return Err(libc::EISDIR);
            }
            let file = File::options().write(true).open(path);
            errno(file.and_then(|file| file.set_len(*size))).map(done)
        }
        Op::Stat(path) => {
            let found = errno(fs::symlink_metadata(at(path)))?;
            let nlink = u32::try_from(found.nlink()).unwrap();
            Ok(shape(found.mode(), nlink, found.len()))
        }
        Op::List(path) => {
            let mut names = Vec::new();
            for entry in errno(fs::read_dir(at(path)))? {
                let name = errno(entry)?.file_name();
                if !is_hidden(&name) {
                    names.push(name.into_string().unwrap());
                }
            }
            names.sort();
            Ok(names.join("|"))
        }
        Op::SetXattr(path, name, value, flags) => {
            let flags = XattrFlags::from_bits_retain(*flags);
            let set = rustix::fs::lsetxattr(at(path), *name, value.as_bytes(), flags);
            raw(set).map(done)
        }
        Op::GetXattr(path, name) => {
            let mut value = vec![0; 100];
            let len = raw(rustix::fs::lgetxattr(at(path), *name, &mut value))?;
            Ok(String::from_utf8_lossy(&value[..len]).into_owned())
        }
        Op::RemoveXattr(path, name) => raw(rustix::fs::lremovexattr(at(path), *name)).map(done),
        Op::ListXattr(path) => {
            let mut names = vec![0; 4096];
            let len = raw(rustix::fs::llistxattr(at(path), &mut names))?;
            Ok(users(&names[..len]))
        }
        _ => panic!("{op:?} is not by path"),
    }
}

thread_local! {
    /// Whether the file system is one of FUSE: the host's kernel remembers how many names
    /// a file had, and what was removed while it was open has another name.
    static SERVED: Cell<bool> = const { Cell::new(false) };
}

/// A name that is only there because something is open.
fn is_hidden(name: &OsStr) -> bool {
    SERVED.get() && name.as_bytes().starts_with(b".fuse_hidden")
}

/// What is compared of a file: type, mode, links, and length where that says something.
fn shape(mode: u32, links: u32, len: u64) -> String {
    let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
    let links = if SERVED.get() { 0 } else { links };
    let (links, len) = if is_dir { (0, 0) } else { (links, len) };
    format!("{mode:o} {links} {len}")
}

fn sum(data: &[u8]) -> String {
    let sum = data
        .iter()
        .fold(7u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
    format!("{} bytes, {sum:x}", data.len())
}

/// The names of attributes that are the test's.
fn users(names: &[u8]) -> String {
    let mut names: Vec<_> = names
        .split(|byte| *byte == 0)
        .map(|name| OsStr::from_bytes(name).to_str().unwrap())
        .filter(|name| name.starts_with("user."))
        .collect();
    names.sort_unstable();
    names.join("|")
}

fn raw<T>(result: rustix::io::Result<T>) -> Result<T, i32> {
    result.map_err(rustix::io::Errno::raw_os_error)
}

fn errno<T>(result: std::io::Result<T>) -> Result<T, i32> {
    result.map_err(|error| error.raw_os_error().unwrap())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// One run with these options on this file system.
fn run(at: Option<&HostFs>, args: &[&str], seed: u64) {
    rustix::process::umask(Mode::empty());
    let dir = || match at {
        Some(host) => host.share(),
        None => TempDir::with_prefix("virtiofsd-share-").unwrap(),
    };
    let mut world = World {
        mirror: dir(),
        session: Session::over(dir(), args),
        files: Vec::new(),
        history: vec![format!("{args:?}, seed {seed}")],
        xattr: args
            .iter()
            .any(|arg| matches!(*arg, "--xattr" | "--posix-acl")),
        found: Vec::new(),
    };
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed + 1));
    for _ in 0..number("VIRTIOFSD_DIFFERENTIAL_STEPS", STEPS) {
        world.step(&mut random);
    }
    world.compare(&PathBuf::new());
    let World { session, files, .. } = world;
    drop(files);
    session.finish();
}

fn on(kind: &str) {
    let first = number("VIRTIOFSD_DIFFERENTIAL_SEED", 0);
    if !rustix::process::geteuid().is_root() {
        if kind == "ext4" {
            for (seed, args) in [&["--sandbox=none"][..], &["--sandbox=none", "--xattr"]]
                .iter()
                .enumerate()
            {
                run(None, args, first + seed as u64);
            }
        }
        return;
    }
    SERVED.set(matches!(kind, "fuse" | "mergerfs" | "ntfs"));
    let host = HostFs::new(kind);
    for (seed, args) in all_pairs().iter().enumerate() {
        // Access control lists and file handles are not to be had everywhere.
        let has_all = matches!(kind, "ext4" | "xfs" | "btrfs" | "tmpfs");
        let args: Vec<_> = args
            .iter()
            .copied()
            .filter(|arg| has_all || *arg != "--posix-acl")
            .collect();
        run(Some(&host), &args, first + seed as u64);
    }
}

#[test]
fn ext4_through_the_daemon_is_ext4() {
    on("ext4");
}

#[test]
fn xfs_through_the_daemon_is_xfs() {
    on("xfs");
}

#[test]
fn btrfs_through_the_daemon_is_btrfs() {
    on("btrfs");
}

#[test]
fn tmpfs_through_the_daemon_is_tmpfs() {
    on("tmpfs");
}

#[test]
fn overlay_through_the_daemon_is_overlay() {
    on("overlay");
}

#[test]
fn bindfs_through_the_daemon_is_bindfs() {
    on("fuse");
}

#[test]
fn mergerfs_through_the_daemon_is_mergerfs() {
    on("mergerfs");
}

#[test]
fn ntfs_through_the_daemon_is_ntfs() {
    on("ntfs");
}

#[test]
fn each_pair_of_settings_is_in_a_run() {
    let sets = all_pairs();
    for (a, settings) in OPTIONS.iter().enumerate() {
        for others in OPTIONS.iter().skip(a + 1) {
            for x in *settings {
                for y in *others {
                    let has = |set: &Vec<&str>, of: &[&str], word: &str| match word {
                        "" => !of.iter().any(|other| set.contains(other)),
                        word => set.contains(&word),
                    };
                    let met = |set: &&Vec<&str>| has(set, settings, x) && has(set, others, y);
                    assert!(sets.iter().any(|set| met(&set)), "{x:?} and {y:?}");
                }
            }
        }
    }
    assert!(sets.len() < 25, "{}", sets.len());
}
