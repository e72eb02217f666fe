//! The state of a tree that is being served, on its way to another daemon.
//!
//! - `wire` is the stream as bytes, `saved` a stream that has been checked.
//! - `places` remembers where nodes are while a migration is prepared; `locate`
//!   and `walk` find out.
//! - `save` makes a stream of what the guest holds, `load` holds it again.

#[cfg(test)]
mod arbitrary;
mod load;
mod locate;
mod places;
mod save;
mod saved;
mod walk;
mod wire;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::Context;

use crate::config::MigrationConfig;
use crate::fs::Migrate;
use crate::passthrough::Passthrough;
use crate::sys::sync::lock;
use places::Places;

/// Moves the state of one tree.
#[derive(Debug)]
pub struct Migration {
    fs: Arc<Passthrough>,
    config: MigrationConfig,
    /// What is collected while the guest is still being served.
    prepared: Mutex<Option<Preparation>>,
}

#[derive(Debug)]
struct Preparation {
    places: Arc<Places>,
    thread: Option<JoinHandle<()>>,
}

impl Migration {
    /// Moves the state of `fs`.
    pub fn new(fs: Arc<Passthrough>, config: MigrationConfig) -> Self {
        Self {
            fs,
            config,
            prepared: Mutex::new(None),
        }
    }
}

impl Migrate for Migration {
    fn prepare(&self) {
        self.cancel();
        let places = Arc::new(Places::default());
        self.fs.track(Some(places.clone()));
        let (fs, theirs) = (Arc::clone(&self.fs), Arc::clone(&places));
        let thread = thread::Builder::new()
            .name("prepare".to_owned())
            .spawn(move || save::prepare(&fs, &theirs));
        if let Err(error) = &thread {
            log::warn!("a migration is not prepared, and will take longer: {error}");
        }
        *lock(&self.prepared) = Some(Preparation {
            places,
            thread: thread.ok(),
        });
        log::debug!("a migration is being prepared");
    }

    fn cancel(&self) {
        if let Some(prepared) = lock(&self.prepared).take() {
            self.fs.track(None);
            prepared.places.stop();
            finish(prepared.thread);
            log::debug!("no migration is being prepared any more");
        }
    }

    fn save(&self, stop: &AtomicBool) -> anyhow::Result<Vec<u8>> {
        self.fs.flush_to_other_hosts().context(
            "what was written cannot be made known to other hosts, so the target might read \
             old data",
        )?;
        let prepared = lock(&self.prepared)
            .as_mut()
            .map(|prepared| (Arc::clone(&prepared.places), prepared.thread.take()));
        let Some((places, thread)) = prepared else {
            log::warn!(
                "the dirty log was never turned on, so nothing was prepared: \
                 saving the state takes longer"
            );
            return save::save(&self.fs, &self.config, &Places::default(), stop);
        };
        // What it has not done yet would have to be done anyway.
        finish(thread);
        save::save(&self.fs, &self.config, &places, stop)
    }

    fn load(&self, state: &[u8], stop: &AtomicBool) -> anyhow::Result<u64> {
        load::load(&self.fs, &self.config, state, stop)
    }
}

/// Waits for a thread. It never panics; if it did, nothing would be lost but time.
fn finish(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread {
        let _ = thread.join();
    }
}
