//! The daemon's side of vhost-user and of the virtqueues, over a real socket.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use common::daemon::Daemon;
use common::frontend::{Config, F_EVENT_IDX, F_INDIRECT, HIPRIO, REQUEST, Vmm};
use common::fuse_client::Client;
use common::wire::ROOT;

#[test]
fn bring_up() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "hello").unwrap();
    let mut daemon = Daemon::start(dir.path(), &[]);
    let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
    let _hiprio = vmm.start_queue(HIPRIO);
    let queue = vmm.start_queue(REQUEST);
    let mut client = Client::new(queue);
    println!("{:?}", client.init());
    let entry = client.lookup(ROOT, "a").unwrap();
    let open = client.open(entry.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(entry.nodeid, open.fh, 0, 100).unwrap(), b"hello");
    drop(client);
    drop(vmm);
    assert!(daemon.wait().success());
    println!("{:#?}", daemon.log());
}
