//! One valid request of each operation, to be damaged.

use std::fs;

use super::fuse_client::{Request, Split, read_in, release_in, write_in};
use super::session::Session;
use super::wire::{Encoder, ROOT, init, op};

/// A folder, a file with handle, a link: what requests are about.
pub struct Things {
    pub file: u64,
    pub file_fh: u64,
    pub dir: u64,
    pub dir_fh: u64,
    pub link: u64,
}

/// Body of GETLK, SETLK and SETLKW: ten bytes, exclusively.
pub fn lock_in(fh: u64) -> Encoder {
    let range = Encoder::new().u64(fh).u64(1).u64(0).u64(9);
    range.u32(libc::F_WRLCK as u32).u32(1).u64(0)
}

pub fn things(session: &mut Session) -> Things {
    session.put("file", "text");
    fs::create_dir(session.path("dir")).unwrap();
    std::os::unix::fs::symlink("target", session.path("link")).unwrap();
    let c = &mut session.client;
    let file = c.walk("file").unwrap().nodeid;
    let dir = c.walk("dir").unwrap().nodeid;
    let link = c.walk("link").unwrap().nodeid;
    let file_fh = c.open(file, libc::O_RDWR).unwrap().fh;
    let dir_fh = c.opendir(dir).unwrap().fh;
    Things {
        file,
        file_fh,
        dir,
        dir_fh,
        link,
    }
}

/// One valid request of each operation. INIT and DESTROY come last.
pub fn one_of_each(t: &Things) -> Vec<Request> {
    let e = Encoder::new;
    let dir_request = |opcode| Request::new(opcode, t.dir, read_in(t.dir_fh, 0, 4096)).space(4096);
    let flush = e().u64(t.file_fh).u64(0).u64(0);
    let fsync = |fh: u64| e().u64(fh).u64(0);
    let setattr = e().u32(1).u32(0).bytes(&[0; 60]).u32(0o644).bytes(&[0; 16]);
    let init_body = e()
        .u32(7)
        .u32(38)
        .u32(1 << 17)
        .u32((init::LINUX & 0xffff_ffff) as u32);
    let init_body = init_body.u32((init::LINUX >> 32) as u32).bytes(&[0; 44]);
    vec![
        Request::new(op::LOOKUP, ROOT, e().name("file")),
        Request::new(op::FORGET, t.file, e().u64(0)),
        Request::new(op::GETATTR, t.file, e().u64(0).u64(0)),
        Request::new(op::SETATTR, t.file, setattr),
        Request::new(op::READLINK, t.link, e()).space(100),
        Request::new(op::SYMLINK, t.dir, e().name("symlink").name("target")),
        Request::new(
            op::MKNOD,
            t.dir,
            e().u32(libc::S_IFREG | 0o644).u32(0).u64(0).name("mknod"),
        ),
        Request::new(op::MKDIR, t.dir, e().u64(0o755).name("mkdir")),
        Request::new(op::UNLINK, t.dir, e().name("mknod")),
        Request::new(op::RMDIR, t.dir, e().name("mkdir")),
        Request::new(
            op::RENAME,
            t.dir,
            e().u64(t.dir).name("symlink").name("renamed"),
        ),
        Request::new(op::LINK, t.dir, e().u64(t.file).name("linked")),
        Request::new(op::OPEN, t.file, e().u64(0)),
        Request::new(op::READ, t.file, read_in(t.file_fh, 0, 100)).space(100),
        Request::new(
            op::WRITE,
            t.file,
            write_in(t.file_fh, 0, 20, 0, 0).bytes(&[b'w'; 20]),
        ),
        Request::new(op::STATFS, ROOT, e()),
        Request::new(op::RELEASE, t.file, release_in(77)),
        Request::new(op::FSYNC, t.file, fsync(t.file_fh)),
        Request::new(
            op::SETXATTR,
            t.file,
            e().u32(5).u32(0).name("user.x").bytes(b"value"),
        ),
        Request::new(op::GETXATTR, t.file, e().u64(100).name("user.x")).space(100),
        Request::new(op::LISTXATTR, t.file, e().u64(100)).space(100),
        Request::new(op::REMOVEXATTR, t.file, e().name("user.x")),
        Request::new(op::FLUSH, t.file, flush),
        Request::new(op::OPENDIR, t.dir, e().u64(0)),
        dir_request(op::READDIR),
        dir_request(op::READDIRPLUS),
        Request::new(op::RELEASEDIR, t.dir, release_in(77)),
        Request::new(op::FSYNCDIR, t.dir, fsync(t.dir_fh)),
        Request::new(op::ACCESS, t.file, e().u64(4)),
        Request::new(
            op::CREATE,
            t.dir,
            e().u32(libc::O_RDWR as u32 | libc::O_CREAT as u32)
                .u32(0o644)
                .u64(0)
                .name("created"),
        ),
        Request::new(op::INTERRUPT, 0, e().u64(2)),
        Request::new(op::IOCTL, t.file, e().u64(t.file_fh).u64(0).u64(0).u64(0)).space(16),
        Request::new(
            op::IOCTL,
            t.file,
            e().u64(t.file_fh)
                .u32(0)
                .u32(0x4008_6602)
                .u64(0)
                .u32(4)
                .u32(0)
                .u32(0),
        )
        .space(16),
        Request::new(op::GETLK, t.file, lock_in(t.file_fh)),
        Request::new(op::SETLK, t.file, lock_in(t.file_fh)),
        Request::new(op::SETLKW, t.file, lock_in(t.file_fh)),
        Request::new(
            op::TMPFILE,
            t.dir,
            e().u32((libc::O_RDWR | libc::O_TMPFILE) as u32)
                .u32(0o644)
                .u64(0)
                .name("/"),
        ),
        Request::new(op::STATX, t.file, e().u64(0).u64(0).u32(0).u32(0xfff)),
        Request::new(
            op::BATCH_FORGET,
            0,
            e().u64(2).u64(t.file).u64(0).u64(t.dir).u64(0),
        ),
        Request::new(
            op::FALLOCATE,
            t.file,
            e().u64(t.file_fh).u64(0).u64(100).u64(0),
        ),
        Request::new(
            op::RENAME2,
            t.dir,
            e().u64(t.dir).u64(0).name("renamed").name("again"),
        ),
        Request::new(op::LSEEK, t.file, e().u64(t.file_fh).u64(0).u64(3)),
        Request::new(
            op::COPY_FILE_RANGE,
            t.file,
            e().u64(t.file_fh)
                .u64(0)
                .u64(t.file)
                .u64(t.file_fh)
                .u64(50)
                .u64(4)
                .u64(0),
        ),
        Request::new(op::SYNCFS, ROOT, e().u64(0)),
        Request::new(op::GETLK, t.file, e().u64(t.file_fh).bytes(&[0; 40])).space(24),
        Request::new(op::SETLK, t.file, e().u64(t.file_fh).bytes(&[0; 40])),
        Request::new(999, t.file, e().bytes(&[0; 40])),
        Request::new(op::DESTROY, ROOT, e()),
        Request::new(op::INIT, 0, init_body).space(64),
    ]
}

/// The daemon is well: a valid request is answered.
pub fn still_serves(session: &mut Session) {
    session.client.init();
    session.client.split = Split::Header;
    let name = "still-here";
    let (entry, open) = session
        .client
        .create(ROOT, name, libc::O_RDWR, 0o600)
        .unwrap();
    session
        .client
        .write(entry.nodeid, open.fh, 0, b"text")
        .unwrap();
    session.client.release(entry.nodeid, open.fh).unwrap();
    assert_eq!(session.get(name), b"text");
    session.client.unlink(ROOT, name).unwrap();
}

pub fn getattr_root(session: &mut Session, what: &str) {
    let answer = session.client.getattr(ROOT);
    assert!(answer.is_ok(), "GETATTR after {what}: {answer:?}");
}

/// The name of an operation.
pub fn name_of(opcode: u32) -> &'static str {
    match opcode {
        op::LOOKUP => "LOOKUP",
        op::FORGET => "FORGET",
        op::GETATTR => "GETATTR",
        op::SETATTR => "SETATTR",
        op::READLINK => "READLINK",
        op::SYMLINK => "SYMLINK",
        op::MKNOD => "MKNOD",
        op::MKDIR => "MKDIR",
        op::UNLINK => "UNLINK",
        op::RMDIR => "RMDIR",
        op::RENAME => "RENAME",
        op::LINK => "LINK",
        op::OPEN => "OPEN",
        op::READ => "READ",
        op::WRITE => "WRITE",
        op::STATFS => "STATFS",
        op::RELEASE => "RELEASE",
        op::FSYNC => "FSYNC",
        op::SETXATTR => "SETXATTR",
        op::GETXATTR => "GETXATTR",
        op::LISTXATTR => "LISTXATTR",
        op::REMOVEXATTR => "REMOVEXATTR",
        op::FLUSH => "FLUSH",
        op::INIT => "INIT",
        op::OPENDIR => "OPENDIR",
        op::READDIR => "READDIR",
        op::RELEASEDIR => "RELEASEDIR",
        op::FSYNCDIR => "FSYNCDIR",
        op::GETLK => "GETLK",
        op::SETLK => "SETLK",
        op::SETLKW => "SETLKW",
        op::ACCESS => "ACCESS",
        op::CREATE => "CREATE",
        op::INTERRUPT => "INTERRUPT",
        op::DESTROY => "DESTROY",
        op::IOCTL => "IOCTL",
        op::BATCH_FORGET => "BATCH_FORGET",
        op::FALLOCATE => "FALLOCATE",
        op::READDIRPLUS => "READDIRPLUS",
        op::RENAME2 => "RENAME2",
        op::LSEEK => "LSEEK",
        op::COPY_FILE_RANGE => "COPY_FILE_RANGE",
        op::SYNCFS => "SYNCFS",
        op::TMPFILE => "TMPFILE",
        op::STATX => "STATX",
        _ => "any other number",
    }
}
