//! Replies tell the guest nothing but what it asked for: no byte that nobody wrote,
//! no path of the host, no address in the daemon, no number of what is not shared.
//!
//! That nothing beyond a reply is written is looked at with every request of every
//! test (`common/fuse_client.rs`).
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use common::every_operation::{name_of, one_of_each, things};
use common::fuse_client::{POISON, Request, read_in};
use common::session::Session;
use common::wire::{Encoder, OUT_HEADER, ROOT, op};

/// Addresses that mean something in the daemon.
fn addresses(session: &Session) -> Vec<Range<u64>> {
    let maps = format!("/proc/{}/maps", session.daemon.serving_pid());
    let maps = fs::read_to_string(maps).unwrap();
    let ranges = maps.lines().map(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        number(start)..number(end)
    });
    // The shadow of a sanitizer is terabytes, and its addresses are common numbers.
    ranges
        .filter(|range| range.end - range.start < 1 << 40)
        .collect()
}

/// Texts that are the host's affair.
fn secrets(session: &Session) -> Vec<String> {
    let share = session.path("");
    let socket = session.daemon.socket().parent().unwrap();
    let names = [share.as_path(), socket].map(|path| path.file_name().unwrap());
    let names = names.map(|name| name.to_str().unwrap().to_owned());
    [&names[..], &["/proc/".to_owned(), "virtiofsd".to_owned()]].concat()
}

/// Looks at every byte of a reply.
fn assert_tells_nothing(session: &Session, what: &str, reply: &[u8]) {
    let is_unwritten = |window: &[u8]| window.iter().all(|byte| *byte == POISON);
    assert!(
        !reply.windows(4).any(is_unwritten),
        "{what}: bytes that nobody wrote: {reply:x?}"
    );
    for secret in secrets(session) {
        let is_told = reply
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!is_told, "{what}: {secret:?} is told");
    }
    let addresses = addresses(session);
    for word in reply.as_chunks().0 {
        let word = u64::from_le_bytes(*word);
        assert!(
            !addresses.iter().any(|range| range.contains(&word)),
            "{what}: {word:#x} is an address of the daemon"
        );
    }
}

#[test]
fn no_reply_tells_more_than_was_asked_for() {
    for more in [&[][..], &["--thread-pool-size=2"]] {
        let args = [&["--xattr", "--posix-lock"], more].concat();
        let mut session = Session::new(&args);
        let t = things(&mut session);
        let mut answered = BTreeSet::new();
        // Twice: the second time much of it fails, or meets buffers that were used.
        for _ in 0..2 {
            for request in one_of_each(&t) {
                let (unique, bytes) = session.client.encode(&request);
                let raw = session.client.call_bytes(&bytes, OUT_HEADER + 4096);
                let name = name_of(request.opcode);
                raw.assert_sane(unique, name);
                assert_tells_nothing(&session, name, &raw.bytes);
                if raw.bytes.len() > OUT_HEADER {
                    answered.insert(request.opcode);
                }
            }
            // DESTROY and INIT came last: the numbers are others now.
            session.client.walk("file").unwrap();
        }
        let with_a_body = [
            op::LOOKUP,
            op::GETATTR,
            op::READLINK,
            op::MKDIR,
            op::OPEN,
            op::READ,
            op::STATFS,
            op::GETXATTR,
            op::LISTXATTR,
            op::READDIR,
            op::READDIRPLUS,
            op::CREATE,
            op::GETLK,
            op::STATX,
            op::LSEEK,
            op::INIT,
        ];
        for opcode in with_a_body {
            let name = name_of(opcode);
            assert!(answered.contains(&opcode), "{name} was never answered");
        }
        session.finish();
    }
}

#[test]
fn names_and_data_of_all_lengths_leave_no_gap_that_nobody_wrote() {
    let mut session = Session::new(&["--xattr"]);
    fs::create_dir(session.path("d")).unwrap();
    for len in 1..=64 {
        session.put(&format!("d/{}", "n".repeat(len)), vec![7; len]);
    }
    let c = &mut session.client;
    let folder = c.walk("d").unwrap().nodeid;
    let fh = c.opendir(folder).unwrap().fh;
    let mut replies = Vec::new();
    for opcode in [op::READDIR, op::READDIRPLUS] {
        for size in (200..4096).step_by(61).chain([1 << 16]) {
            let request = Request::new(opcode, folder, read_in(fh, 0, size));
            let (_, bytes) = c.encode(&request);
            let raw = c.call_bytes(&bytes, OUT_HEADER + size as usize);
            replies.push((format!("{} of {size}", name_of(opcode)), raw.bytes));
        }
    }
    for len in [1, 13, 64] {
        let file = c.lookup(folder, "n".repeat(len)).unwrap().nodeid;
        let fh = c.open(file, libc::O_RDONLY).unwrap().fh;
        // Beyond the end there is nothing, not even zeros.
        let request = Request::new(op::READ, file, read_in(fh, 0, 4096));
        let (_, bytes) = c.encode(&request);
        let raw = c.call_bytes(&bytes, OUT_HEADER + 4096);
        assert_eq!(raw.bytes.len(), OUT_HEADER + len);
        replies.push((format!("READ of {len}"), raw.bytes));
    }
    for (what, reply) in replies {
        assert_tells_nothing(&session, &what, &reply);
    }
    session.finish();
}

/// The file that the share's folder lies in is nobody's business, and neither is the
/// number of the host's file system.
#[test]
fn numbers_are_those_of_the_share_only() {
    let mut session = Session::new(&[]);
    let share = session.stat("");
    let above = fs::metadata(session.path("").parent().unwrap()).unwrap();
    let c = &mut session.client;
    let fh = c.opendir(ROOT).unwrap().fh;
    for plus in [false, true] {
        let listed = c.read_whole_dir(ROOT, fh, 4096, plus).unwrap();
        let number = |name: &[u8]| listed.iter().find(|entry| entry.name == name).unwrap().ino;
        assert_eq!((number(b"."), number(b"..")), (share.ino(), share.ino()));
        assert_ne!(number(b".."), above.ino());
    }
    let body = Encoder::new().u64(0).u64(0).u32(0).u32(u32::MAX);
    let reply = c.call(&Request::new(op::STATX, ROOT, body)).unwrap();
    // Behind 32 bytes: statx of fuse.h, with the device's number near its end.
    let word = |at: usize| u32::from_le_bytes(reply[32 + at..][..4].try_into().unwrap());
    let device = (word(136), word(140));
    assert_eq!(device, (0, 0), "the number of the host's device is told");
    assert!(reply[32 + 144..].iter().all(|byte| *byte == 0));
    session.finish();
}
