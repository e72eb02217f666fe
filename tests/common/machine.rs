//! A guest that moves from daemon to daemon, over one folder or two.

use super::daemon::Daemon;
use super::frontend::{Config, HIPRIO, Queue, REQUEST, Vmm};
use super::fuse_client::Client;

/// A guest and the daemon that serves it now.
pub struct Machine {
    pub client: Client,
    pub hiprio: Queue,
    pub vmm: Vmm,
    pub daemon: Daemon,
}

impl Machine {
    /// A guest that has just mounted what `daemon` shares.
    pub fn boot(daemon: Daemon) -> Self {
        let mut vmm = Vmm::connect(daemon.socket(), &Config::default());
        let hiprio = vmm.start_queue(HIPRIO);
        let mut client = Client::new(vmm.start_queue(REQUEST));
        client.init();
        Self {
            client,
            hiprio,
            vmm,
            daemon,
        }
    }

    /// Stops the queues and takes the state; the guest is stopped then.
    pub fn save(&mut self) -> (Option<Vec<u8>>, Bases) {
        let bases = (
            self.vmm.stop_queue(&self.hiprio),
            self.vmm.stop_queue(&self.client.queue),
        );
        (self.vmm.save_state(), bases)
    }

    /// Lets the guest go on where it is.
    pub fn resume(&mut self, bases: Bases) {
        self.vmm.resume_queue(&self.hiprio, bases.0);
        self.vmm.resume_queue(&self.client.queue, bases.1);
    }

    /// Gives a saved guest to another daemon; the first one ends in peace.
    pub fn restore(self, state: &[u8], bases: Bases, daemon: Daemon) -> Self {
        let memory = self.vmm.memory.clone();
        let mut vmm = Vmm::take_over(daemon.socket(), &Config::default(), memory);
        assert!(vmm.load_state(state), "log: {:#?}", daemon.log());
        let Self {
            client,
            hiprio,
            vmm: old_vmm,
            daemon: mut old,
        } = self;
        drop(old_vmm);
        assert!(old.wait().success(), "{:#?}", old.log());
        let mut moved = Self {
            client,
            hiprio,
            vmm,
            daemon,
        };
        moved.resume(bases);
        moved
    }

    /// Moves the guest to another daemon, as a live migration does.
    pub fn migrate(mut self, daemon: Daemon) -> Self {
        let _log = self.vmm.set_logging(true);
        let (state, bases) = self.save();
        let state = state.unwrap_or_else(|| panic!("log: {:#?}", self.daemon.log()));
        self.restore(&state, bases, daemon)
    }

    /// The guest goes; the daemon must end in peace. Its log is complete then.
    pub fn finish(self) -> Daemon {
        let Self {
            client,
            vmm,
            mut daemon,
            ..
        } = self;
        drop((client, vmm));
        let status = daemon.wait();
        assert!(status.success(), "{status}; {:#?}", daemon.log());
        daemon
    }
}

/// Where the queues were stopped: the high-priority one and the other.
pub type Bases = (u16, u16);
