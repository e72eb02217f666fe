//! What is left of root's rights once the daemon serves.
//!
//! Only what the guest's users may be able to do to files stays, whatever the
//! daemon was started with; every other set is empty. That holds for root, for
//! the first process of a user namespace, and for a user that was given some.

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// What the daemon keeps as root: owners, modes and device nodes of files, and
/// the identity of the guest's users.
const USUAL: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// What `--modcaps` and the rest of the command line make of the usual set.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    all: CapabilitySet,
    /// Those that the operator asked for by name.
    asked: CapabilitySet,
}

impl Kept {
    /// What the process outside of the sandbox needs for the files beside the
    /// socket, which may be in somebody else's directory.
    pub const TO_REMOVE_FILES: Self = Self {
        all: CapabilitySet::DAC_OVERRIDE,
        asked: CapabilitySet::empty(),
    };

    /// The usual ones, and those in `add`, without those in `remove`; names
    /// are in capitals and without `CAP_`.
    ///
    /// # Errors
    /// When a name is not that of a capability.
    pub fn with(add: &[String], remove: &[String]) -> anyhow::Result<Self> {
        let remove = named(remove)?;
        let asked = named(add)?.difference(remove);
        let all = USUAL.union(asked).difference(remove);
        Ok(Self { all, asked })
    }

    /// These and what opening files by their handles takes.
    #[must_use]
    pub fn with_file_handles(self) -> Self {
        Self {
            all: self.all.union(CapabilitySet::DAC_READ_SEARCH),
            ..self
        }
    }
}

fn named(names: &[String]) -> anyhow::Result<CapabilitySet> {
    names.iter().try_fold(
        CapabilitySet::empty(),
        |set, name| match CapabilitySet::from_name(name) {
            Some(one) => Ok(set.union(one)),
            None => bail!(
                "--modcaps: there is no capability '{}'; an example is sys_admin, see \
                     capabilities(7)",
                name.to_lowercase()
            ),
        },
    )
}

/// Gives up, for the calling thread and those that it starts, what is not
/// needed, and the chance to get it back.
///
/// # Errors
/// When the kernel refuses, or does not have what the operator asked for.
pub fn reduce(kept: Kept) -> anyhow::Result<()> {
    // This also holds for who is not root: nothing is ever started.
    set_no_new_privs(true).context("cannot forbid new privileges")?;
    // Another process of this user may not look into the daemon's memory or
    // descriptors. The daemon's own access to /proc/self/fd does not depend on it.
    // Acting as a user of the guest may change it (`fs.suid_dumpable`), so no core
    // file is written in any case; one that goes to a program (core(5)) has none of
    // the guest's memory.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).context("cannot forbid core files")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("cannot protect the memory of this process")?;
    let before = capabilities(None).context("cannot read the capabilities of this process")?;
    if before.permitted.is_empty() && !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let missing = kept.asked.difference(before.permitted);
    if !missing.is_empty() {
        bail!(
            "--modcaps: this process was not given {}; give it to whoever starts the daemon, or \
             leave it out",
            list(missing)
        );
    }
    reduce_bounding_set(kept.all)?;
    match clear_ambient_capability_set() {
        // Kernels without this set refuse so.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno).context("cannot clear the ambient capabilities"),
    }
    let kept = kept.all.intersection(before.permitted);
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).context("cannot drop capabilities")
}

fn reduce_bounding_set(kept: CapabilitySet) -> anyhow::Result<()> {
    let surplus = (0..u64::BITS)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        // The kernel tells those that it does not know by an error.
        .take_while(|one| capability_is_in_bounding_set(*one).is_ok())
        .filter(|one| !kept.contains(*one));
    for one in surplus {
        if !capability_is_in_bounding_set(one).unwrap_or(false) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // It matters to programs that are started only, and the daemon
            // starts none.
            Err(Errno::PERM) => {
                log::debug!("without CAP_SETPCAP the bounding set stays as it is");
                return Ok(());
            }
            Err(errno) => {
                return Err(errno)
                    .with_context(|| format!("cannot drop {} from the bounding set", list(one)));
            }
        }
    }
    Ok(())
}

fn list(set: CapabilitySet) -> String {
    let names: Vec<_> = set
        .iter_names()
        .map(|(name, _)| name.to_lowercase())
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(add: &[&str], remove: &[&str]) -> anyhow::Result<CapabilitySet> {
        let own = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        Kept::with(&own(add), &own(remove)).map(|kept| kept.all)
    }

    #[test]
    fn the_usual_set_is_the_one_that_is_promised() {
        assert_eq!(kept(&[], &[]).unwrap().bits(), 0x8800_00db);
    }

    #[test]
    fn file_handles_take_one_more() {
        let usual = Kept::with(&[], &[]).unwrap();
        assert_eq!(usual.with_file_handles().all.bits(), 0x8800_00df);
    }

    #[test]
    fn names_add_and_remove() {
        let set = kept(&["SYS_ADMIN", "CHECKPOINT_RESTORE"], &["CHOWN", "NET_RAW"]).unwrap();
        assert_eq!(set.bits(), 0x8800_00da | 1 << 21 | 1 << 40);
        let error = kept(&["CAP_CHOWN"], &[]).unwrap_err().to_string();
        assert!(error.contains("no capability 'cap_chown'"), "{error}");
        assert!(kept(&[], &["BOGUS"]).is_err());
    }
}
