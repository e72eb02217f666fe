//! How many descriptors the process may open, and how many of them the guest
//! may cause to be held.

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit that is asked for where the operator names none.
const DEFAULT_LIMIT: u64 = 1_000_000;

/// Below this many descriptors for the guest there is a warning.
const FEW_FOR_GUEST: u64 = 128;

/// One descriptor for each memory region that the front end may share.
const MEMORY_SLOTS: u64 = 509;

/// The daemon's own files, sockets and mounts, the first request queue, and one
/// that each of the threads that wait for disks may have open for a moment. Those that
/// wait for servers, which are few, have theirs among the memory slots that are free.
const OWN_FILES: u64 = 100;

/// Kick, call and error event of one more queue, and for each of its two threads
/// two ends each of the exit and the enabling event, and the epoll instance.
const FDS_PER_QUEUE: u64 = 13;

/// What the daemon itself needs descriptors for.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Threads of the pool, 0 without one.
    pub thread_pool_size: usize,
    /// Request queues on offer.
    pub request_queues: usize,
}

impl Needs {
    /// Under this limit the daemon does not start.
    fn minimum(self) -> u64 {
        let threads = u64::try_from(self.thread_pool_size)
            .unwrap_or(u64::MAX)
            .max(1);
        threads.saturating_add(MEMORY_SLOTS + OWN_FILES)
    }

    /// What is kept away from the guest: the minimum, and what queues beyond
    /// the first take when the guest uses them.
    fn reserve(self) -> u64 {
        let more_queues = u64::try_from(self.request_queues.saturating_sub(1)).unwrap_or(u64::MAX);
        self.minimum()
            .saturating_add(more_queues.saturating_mul(FDS_PER_QUEUE))
    }
}

/// Sets the limit of open files as `--rlimit-nofile` says, and returns how
/// many descriptors the guest may cause to be held.
///
/// # Errors
/// When the limit cannot be set, or leaves too little for the daemon.
pub fn limit_open_files(requested: Option<u64>, needs: Needs) -> anyhow::Result<usize> {
    let limit = match requested {
        Some(0) => current_limit(),
        Some(limit) => set_explicitly(limit)?,
        None => raise_to_default()?,
    };
    budget(limit, needs)
}

fn current_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn set_explicitly(limit: u64) -> anyhow::Result<u64> {
    let most = most_per_process()?;
    if limit > most {
        bail!(
            "Error increasing number of open files: It cannot be increased above {most}; lower \
             --rlimit-nofile, or raise fs.nr_open with sysctl(8)"
        );
    }
    set(limit).map_err(std::io::Error::from).with_context(|| {
        format!(
            "Error increasing number of open files: Failed to set the limit to {limit} \
             (a lower --rlimit-nofile, or 0 to leave the limit alone, needs no privilege)"
        )
    })?;
    Ok(limit)
}

fn raise_to_default() -> anyhow::Result<u64> {
    let before = getrlimit(Resource::Nofile);
    let soft = before.current.unwrap_or(u64::MAX);
    if soft >= DEFAULT_LIMIT {
        return Ok(soft);
    }
    let wanted = most_per_process()?.min(DEFAULT_LIMIT);
    if set(wanted).is_ok() {
        return Ok(wanted);
    }
    let hard = before.maximum.unwrap_or(wanted);
    log::warn!(
        "Failure when trying to set the limit to {wanted}, \
         the hard limit ({hard}) of open file descriptors is used instead."
    );
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(hard),
            maximum: before.maximum,
        },
    )
    .map_err(std::io::Error::from)
    .context("cannot raise the limit of open files to the hard limit")?;
    Ok(hard)
}

fn set(limit: u64) -> Result<(), Errno> {
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        },
    )
}

fn most_per_process() -> anyhow::Result<u64> {
    const PATH: &str = "/proc/sys/fs/nr_open";
    let text = std::fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("cannot understand {PATH}"))
}

fn budget(limit: u64, needs: Needs) -> anyhow::Result<usize> {
    let minimum = needs.minimum();
    if limit < minimum {
        bail!(
            "Maximum number of file descriptors too small: \
             Limit is {limit}, must be at least {minimum}; raise --rlimit-nofile, or the hard \
             limit of whoever starts the daemon"
        );
    }
    let left = limit.saturating_sub(needs.reserve());
    if left < FEW_FOR_GUEST {
        log::warn!(
            "only {left} file descriptors are left for the guest out of {limit}; \
             raise --rlimit-nofile"
        );
    }
    Ok(usize::try_from(left).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn needs(thread_pool_size: usize, request_queues: usize) -> Needs {
        Needs {
            thread_pool_size,
            request_queues,
        }
    }

    #[test]
    fn the_guest_gets_what_the_daemon_does_not_need() {
        assert_eq!(budget(20_000, needs(0, 1)).unwrap(), 19_390);
        assert_eq!(budget(20_000, needs(1, 1)).unwrap(), 19_390);
        assert_eq!(budget(20_000, needs(8, 1)).unwrap(), 19_383);
        assert_eq!(budget(20_000, needs(0, 3)).unwrap(), 19_364);
    }

    #[test]
    fn a_limit_below_the_minimum_is_refused_with_both_numbers() {
        let text = budget(609, needs(0, 1)).unwrap_err().to_string();
        assert!(
            text.contains("Limit is 609, must be at least 610; raise"),
            "{text}"
        );
        assert_eq!(budget(610, needs(0, 62)).unwrap(), 0);
        assert!(budget(u64::MAX, needs(usize::MAX, 62)).is_ok());
        assert!(budget(1_000_000, needs(usize::MAX, 1)).is_err());
    }

    #[test]
    fn a_limit_above_what_the_kernel_allows_names_it() {
        let most = most_per_process().unwrap();
        let text = set_explicitly(most + 1).unwrap_err().to_string();
        assert!(
            text.contains(&format!("cannot be increased above {most}; lower")),
            "{text}"
        );
    }
}
