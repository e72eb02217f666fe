//! The inputs that the fuzzers have found worth keeping, run once each
//! (`doc/testing.md`).
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../fuzz/src/lib.rs"]
mod harness;

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The descriptors of the process are counted, so one target runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a target over its inputs; a panic names the one that it came from.
fn replay(name: &str, target: fn(&[u8])) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        println!("{}", path.display());
        target(&input);
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}

#[test]
fn decode() {
    replay("decode", harness::decode);
}

#[test]
fn server() {
    replay("server", harness::server);
}

#[test]
fn ring() {
    replay("ring", harness::ring);
}

#[test]
fn xattr_map() {
    replay("xattr_map", harness::xattr_map);
}

#[test]
fn id_map() {
    replay("id_map", harness::id_map);
}

#[test]
fn migration() {
    replay("migration", harness::migration);
}
