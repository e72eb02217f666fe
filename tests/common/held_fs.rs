//! A file system of the host's, over FUSE, whose reads are answered when the
//! test says so, or always take the same time.
//!
//! It has one file, `file`, of [`FILE_BYTES`] bytes of [`CONTENT`]. Everything
//! but READ is answered at once.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::PATIENCE;
use super::wire::{Encoder, ROOT, op};

pub const FILE_BYTES: u64 = 1 << 20;
pub const CONTENT: u8 = 0x5c;

const FILE: u64 = 2;
const FOPEN_DIRECT_IO: u32 = 1;

/// A mounted file system; dropping it unmounts it and lets go of whoever waits.
pub struct HeldFs {
    mount_point: PathBuf,
    device: Arc<File>,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    /// Number and size of each read, or other request, that waits.
    waiting: Vec<(u64, u32)>,
    most_at_once: usize,
    /// Reads are answered at once.
    released: bool,
    /// Reads are answered by themselves, so long after they came.
    delayed: Option<(Duration, mpsc::Sender<Delayed>)>,
}

/// A read, and when it is to be answered.
#[derive(Debug)]
struct Delayed {
    due: Instant,
    unique: u64,
    size: u32,
}

impl HeldFs {
    /// Mounts it at a folder that is there; needs root.
    pub fn mount(mount_point: &Path) -> Self {
        Self::mount_with(mount_point, None)
    }

    /// The same with reads that take so long each, however many there are at once.
    pub fn mount_slow(mount_point: &Path, delay: Duration) -> Self {
        Self::mount_with(mount_point, Some(delay))
    }

    /// The same, but once `file` is there, nothing is answered until [`Self::release`].
    pub fn mount_until(mount_point: &Path, file: &Path) -> Self {
        Self::mount_as(mount_point, None, Some(file.into()))
    }

    fn mount_with(mount_point: &Path, delay: Option<Duration>) -> Self {
        Self::mount_as(mount_point, delay, None)
    }

    fn mount_as(mount_point: &Path, delay: Option<Duration>, until: Option<PathBuf>) -> Self {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = Arc::new(device.unwrap());
        let fd = device.as_raw_fd();
        let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other\0");
        let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("held", mount_point, "fuse", flags, data).unwrap();
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        state.0.lock().unwrap().delayed = delay.map(|delay| {
            let (sender, reads) = mpsc::channel::<Delayed>();
            let device = Arc::clone(&device);
            // All wait for the same time, so the first to come is the first due.
            thread::spawn(move || {
                for read in reads {
                    thread::sleep(read.due.saturating_duration_since(Instant::now()));
                    answer_read(&device, read.unique, read.size);
                }
            });
            (delay, sender)
        });
        let server = (device.clone(), state.clone());
        thread::spawn(move || serve(&server.0, &server.1, until.as_deref()));
        Self {
            mount_point: mount_point.into(),
            device,
            state,
        }
    }

    /// Waits until so many reads wait at once.
    pub fn wait_for_reads(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.0.lock().unwrap();
        while state.waiting.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} reads", state.waiting.len());
            state = self.state.1.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Answers the reads that wait, and from now on all at once.
    pub fn release(&self) {
        let mut state = self.state.0.lock().unwrap();
        state.released = true;
        for (unique, size) in std::mem::take(&mut state.waiting) {
            if size == 0 {
                // No read: nobody knows any more what it was.
                answer(&self.device, unique, -libc::EIO, &[]);
            } else {
                answer_read(&self.device, unique, size);
            }
        }
    }

    /// How many reads waited at once at most.
    pub fn most_at_once(&self) -> usize {
        self.state.0.lock().unwrap().most_at_once
    }
}

impl Drop for HeldFs {
    fn drop(&mut self) {
        self.release();
        let _ = unmount(&self.mount_point, UnmountFlags::DETACH);
    }
}

/// Answers requests until the file system is unmounted.
fn serve(device: &File, state: &(Mutex<State>, Condvar), until: Option<&Path>) {
    let mut buffer = vec![0; (1 << 20) + 4096];
    while let Ok(len) = (&*device).read(&mut buffer) {
        let request = &buffer[..len];
        let u32_at = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (opcode, unique, node) = (u32_at(4), u64_at(8), u64_at(16));
        if until.is_some_and(Path::exists) {
            let mut guard = state.0.lock().unwrap();
            if !guard.released {
                guard.waiting.push((unique, 0));
                state.1.notify_all();
                continue;
            }
        }
        let body = match opcode {
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => continue,
            op::INIT => Encoder::new()
                .u32(7)
                .u32(31)
                .u32(0)
                .u32(0)
                .u16(64)
                .u16(64)
                .u32(1 << 20)
                .u32(1)
                .bytes(&[0; 36]),
            op::LOOKUP if &request[40..] == b"file\0" => Encoder::new()
                .u64(FILE)
                .u64(0)
                .u64(3600)
                .u64(3600)
                .u64(0)
                .bytes(&attr(FILE)),
            op::LOOKUP => {
                answer(device, unique, -libc::ENOENT, &[]);
                continue;
            }
            op::GETATTR => Encoder::new().u64(3600).u64(0).bytes(&attr(node)),
            op::OPEN | op::OPENDIR => Encoder::new().u64(0).u32(FOPEN_DIRECT_IO).u32(0),
            op::STATFS => Encoder::new().bytes(&[0; 80]),
            op::RELEASE | op::RELEASEDIR | op::FLUSH | op::ACCESS | op::FSYNC => Encoder::new(),
            op::READ => {
                let (size, mut guard) = (u32_at(56), state.0.lock().unwrap());
                if guard.released {
                    answer_read(device, unique, size);
                } else if let Some((delay, reads)) = &guard.delayed {
                    let due = Instant::now() + *delay;
                    // Fails only when nobody waits for it any more.
                    let _ = reads.send(Delayed { due, unique, size });
                } else {
                    guard.waiting.push((unique, size));
                    guard.most_at_once = guard.most_at_once.max(guard.waiting.len());
                    state.1.notify_all();
                }
                continue;
            }
            _ => {
                answer(device, unique, -libc::ENOSYS, &[]);
                continue;
            }
        };
        answer(device, unique, 0, &body.0);
    }
}

fn attr(node: u64) -> Vec<u8> {
    let (size, mode) = match node {
        ROOT => (0, 0o40755),
        _ => (FILE_BYTES, 0o100_644),
    };
    let times = [0; 36];
    let encoder = Encoder::new().u64(node).u64(size).u64(0).bytes(&times);
    let encoder = encoder.u32(mode).u32(1).u32(0).u32(0).u32(0);
    encoder.u32(4096).u32(0).0
}

fn answer_read(device: &File, unique: u64, size: u32) {
    answer(device, unique, 0, &vec![CONTENT; size as usize]);
}

/// A request that was given up meanwhile is not there any more.
fn answer(mut device: &File, unique: u64, error: i32, body: &[u8]) {
    let len = u32::try_from(16 + body.len()).unwrap();
    let reply = Encoder::new()
        .u32(len)
        .u32(error.cast_unsigned())
        .u64(unique);
    let _ = device.write(&reply.bytes(body).0);
}
