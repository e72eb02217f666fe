//! What the fuzzers run, one function per target: each takes any bytes, and
//! panics where the daemon does not keep what it promises to a hostile guest.
//!
//! `tests/fuzz_corpus.rs` of the daemon runs the same functions over the inputs
//! that are kept in `fuzz/corpus`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod input;
mod moved;
mod world;

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use virtiofsd::cli;
use virtiofsd::fuse::abi::InHeader;
use virtiofsd::fuse::decode::decode as decode_request;
use virtiofsd::fuse::opcode::Opcode;

use input::Input;
use moved::Target;
use world::World;

/// The most requests of one input.
const MOST_REQUESTS: usize = 64;

/// Decoding is total: any body of any operation gives a request or an error.
pub fn decode(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let opcode = input.choice(Opcode::ALL);
    let header = InHeader {
        total_extlen: u16::from(input.byte()),
        ..InHeader::default()
    };
    let body = input.rest();
    for features in [0, u64::MAX] {
        let _ = decode_request(opcode, &header, body, features);
    }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

/// A guest mounts a small tree, sends requests that are nearly right, and goes.
pub fn server(bytes: &[u8]) {
    session(bytes, World::request);
}

/// As [`server`], but the guest also writes what it likes into its rings.
pub fn ring(bytes: &[u8]) {
    session(bytes, World::raw_chain);
}

/// A guest that mounts, sends by `send` until the input ends, and goes.
fn session(bytes: &[u8], send: fn(&mut World, &mut Input<'_>)) {
    WORLD.with_borrow_mut(|world| {
        let mut input = Input::new(bytes);
        world.mount();
        for _ in 0..MOST_REQUESTS {
            if input.is_empty() {
                break;
            }
            send(world, &mut input);
        }
        world.unmount();
    });
}

thread_local! {
    static TARGET: Target = Target::new();
}

/// Takes over a guest whose state the source has sent.
pub fn migration(bytes: &[u8]) {
    TARGET.with(|target| target.load(bytes));
}

/// Parses a list of rules as the operator would give it.
pub fn xattr_map(bytes: &[u8]) {
    parse_option("--xattrmap", bytes);
}

/// Parses an id map and an id translation as the operator would give them.
pub fn id_map(bytes: &[u8]) {
    for option in ["--uid-map", "--translate-uid"] {
        parse_option(option, bytes);
    }
}

fn parse_option(option: &str, value: &[u8]) {
    // The kernel ends an argument at its first NUL.
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut argument = OsString::from(option);
    argument.push("=");
    argument.push(OsStr::from_bytes(value));
    let arguments = [
        "virtiofsd".into(),
        "--shared-dir=/".into(),
        "--socket-path=socket".into(),
        argument,
    ];
    let _ = cli::parse(arguments, None);
}
