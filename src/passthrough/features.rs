//! What INIT wants of a guest and insists on.
//!
//! Some features are asked for by an option, and the guest's kernel may lack them. Each is
//! a set of bits of INIT that is of use as a whole only. Where the guest
//! does not offer all of them none is taken; whether that is a reason not to
//! serve it at all is the operator's choice.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use crate::config::{CachePolicy, Config, Wanted};
use crate::fs::Result;
use crate::fuse::flags::init as features;

/// Access control lists: the guest enforces and caches them, and leaves the umask
/// to the host, since a directory's default list goes before it.
const POSIX_ACL: u64 = features::POSIX_ACL | features::DONT_MASK | features::SETXATTR_EXT;

struct Optional {
    /// As the operator writes it.
    option: &'static str,
    wanted: Wanted,
    bits: u64,
    /// The guest's kernel that has it.
    since: &'static str,
}

fn all(config: &Config) -> [Optional; 3] {
    [
        Optional {
            option: "--posix-acl",
            wanted: config.posix_acl,
            bits: POSIX_ACL,
            since: "5.11, built with FUSE_FS and FS_POSIX_ACL",
        },
        Optional {
            option: "--security-label",
            wanted: config.security_label,
            bits: features::SECURITY_CTX,
            since: "5.17",
        },
        Optional {
            option: "--killpriv-v2",
            wanted: if config.killpriv_v2 {
                Wanted::IfOffered
            } else {
                Wanted::No
            },
            bits: features::HANDLE_KILLPRIV_V2,
            since: "5.11",
        },
    ]
}

/// The bits that are wanted of a guest that offers these.
pub(super) fn wanted(config: &Config, offered: u64) -> u64 {
    let when = |wanted: bool, feature| if wanted { feature } else { 0 };
    let readdirplus = config.readdirplus && config.cache != CachePolicy::Never;
    features::ASYNC_READ
        | features::ATOMIC_O_TRUNC
        | features::BIG_WRITES
        | features::AUTO_INVAL_DATA
        | features::ASYNC_DIO
        | features::PARALLEL_DIROPS
        | features::MAX_PAGES
        | features::INIT_EXT
        | features::CREATE_SUPP_GROUP
        | features::ALLOW_IDMAP
        | when(
            readdirplus,
            features::DO_READDIRPLUS | features::READDIRPLUS_AUTO,
        )
        | when(config.posix_lock, features::POSIX_LOCKS)
        | when(config.flock, features::FLOCK_LOCKS)
        // A link's target never changes.
        | when(
            config.cache != CachePolicy::Never,
            features::CACHE_SYMLINKS,
        )
        | when(config.no_opendir, features::NO_OPENDIR)
        | when(config.writeback, features::WRITEBACK_CACHE)
        | when(config.announce_submounts, features::SUBMOUNTS)
        | when(config.allow_mmap, features::DIRECT_IO_ALLOW_MMAP)
        | to_ask_for(config, offered)
}

/// The optional bits to ask a guest for that offers these.
fn to_ask_for(config: &Config, offered: u64) -> u64 {
    all(config)
        .iter()
        .filter(|optional| {
            optional.wanted != Wanted::No && offered & optional.bits == optional.bits
        })
        .fold(0, |bits, optional| bits | optional.bits)
}

/// Says which of the features that were asked for the guest does not have.
///
/// # Errors
/// `EPROTO` when the operator insists on one of them.
pub(super) fn check(config: &Config, agreed: u64) -> Result<()> {
    // The guest may ask as often as it likes; each option is told of once.
    static TOLD: AtomicU64 = AtomicU64::new(0);
    for optional in all(config) {
        let Optional {
            option,
            wanted,
            bits,
            since,
        } = optional;
        if wanted == Wanted::No || agreed & bits == bits {
            continue;
        }
        let is_news = TOLD.fetch_or(bits, Ordering::Relaxed) & bits != bits;
        if wanted == Wanted::Always {
            if is_news {
                log::error!(
                    "the guest does not support what {option} needs, so it cannot mount: its \
                     kernel has to be Linux {since}; or start with {option}=auto"
                );
            }
            return Err(Errno::PROTO);
        }
        if is_news {
            log::warn!("the guest does not support {option}, which goes on without effect");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(posix_acl: Wanted) -> Config {
        Config {
            posix_acl,
            ..Config::default()
        }
    }

    #[test]
    fn a_feature_is_asked_for_as_a_whole_or_not_at_all() {
        for wanted in [Wanted::IfOffered, Wanted::Always] {
            let config = config(wanted);
            assert_eq!(to_ask_for(&config, u64::MAX), POSIX_ACL);
            for bit in [
                features::POSIX_ACL,
                features::DONT_MASK,
                features::SETXATTR_EXT,
            ] {
                assert_eq!(to_ask_for(&config, u64::MAX - bit), 0);
            }
        }
        assert_eq!(to_ask_for(&config(Wanted::No), u64::MAX), 0);
    }

    #[test]
    fn a_guest_is_refused_only_where_the_operator_insists() {
        assert_eq!(check(&config(Wanted::Always), 0), Err(Errno::PROTO));
        assert_eq!(check(&config(Wanted::Always), POSIX_ACL), Ok(()));
        assert_eq!(check(&config(Wanted::IfOffered), 0), Ok(()));
        assert_eq!(check(&config(Wanted::No), 0), Ok(()));
    }
}
