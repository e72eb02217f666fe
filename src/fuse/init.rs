//! Negotiation at INIT as a pure function: what the guest offers and what the
//! operator wants give what is spoken.

use super::abi::InitOut;
use super::flags::init as bits;
use super::op::InitArgs;
use super::{MAJOR_VERSION, MINOR_VERSION};

/// The most bytes in one READ or WRITE. The guest takes less where its queue is
/// short or its kernel has a limit of its own (1 MiB unless configured).
pub const MAX_TRANSFER_BYTES: u32 = 4 << 20;

/// The page size that `max_pages` counts in.
const PAGE_BYTES: u32 = 4096;

/// Requests that the guest may have under way in the background: the queue is
/// the real limit.
const MAX_BACKGROUND: u16 = u16::MAX;

/// How INIT is answered.
#[derive(Clone, Copy, Debug)]
pub enum Negotiation {
    /// The guest speaks a newer major version: it hears ours and asks again.
    AskAgain(InitOut),
    /// Both sides speak these features (bits of [`super::flags::init`]).
    Agreed(InitOut, u64),
    /// The guest is older than what is served.
    TooOld,
}

/// Settles the features: those that are `wanted` and offered.
pub fn negotiate(offer: &InitArgs, wanted: u64) -> Negotiation {
    let version = InitOut {
        major: MAJOR_VERSION,
        minor: MINOR_VERSION,
        ..InitOut::default()
    };
    if offer.major > MAJOR_VERSION {
        return Negotiation::AskAgain(version);
    }
    if offer.major < MAJOR_VERSION || offer.minor < super::OLDEST_MINOR_VERSION {
        return Negotiation::TooOld;
    }
    let mut agreed = wanted & offer.flags;
    // The high word is only read by a guest that knows of it.
    if agreed & bits::INIT_EXT == 0 {
        agreed &= u64::from(u32::MAX);
    }
    let reply = InitOut {
        max_readahead: offer.max_readahead,
        flags: agreed as u32,
        flags2: (agreed >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_TRANSFER_BYTES,
        time_gran: 1,
        max_pages: (MAX_TRANSFER_BYTES / PAGE_BYTES) as u16,
        ..version
    };
    Negotiation::Agreed(reply, agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(major: u32, minor: u32, flags: u64) -> InitArgs {
        InitArgs {
            major,
            minor,
            max_readahead: 131072,
            flags,
        }
    }

    #[test]
    fn a_newer_major_version_hears_ours_and_nothing_else() {
        let Negotiation::AskAgain(reply) = negotiate(&offer(8, 0, u64::MAX), u64::MAX) else {
            panic!()
        };
        assert_eq!(
            (reply.major, reply.minor, reply.flags),
            (7, MINOR_VERSION, 0)
        );
    }

    #[test]
    fn guests_before_7_27_are_refused() {
        assert!(matches!(
            negotiate(&offer(7, 26, 0), 0),
            Negotiation::TooOld
        ));
        assert!(matches!(
            negotiate(&offer(6, 99, 0), 0),
            Negotiation::TooOld
        ));
        assert!(matches!(
            negotiate(&offer(7, 27, 0), 0),
            Negotiation::Agreed(..)
        ));
    }

    #[test]
    fn only_what_both_sides_know_is_agreed() {
        let wanted = bits::MAX_PAGES | bits::INIT_EXT | bits::CREATE_SUPP_GROUP;
        let Negotiation::Agreed(reply, agreed) = negotiate(
            &offer(7, 38, bits::INIT_EXT | bits::CREATE_SUPP_GROUP | 1),
            wanted,
        ) else {
            panic!()
        };
        assert_eq!(agreed, bits::INIT_EXT | bits::CREATE_SUPP_GROUP);
        assert_eq!((reply.flags, reply.flags2), (1 << 30, 1 << 2));
    }

    #[test]
    fn without_init_ext_the_high_word_stays_empty() {
        let Negotiation::Agreed(reply, agreed) = negotiate(
            &offer(7, 35, bits::CREATE_SUPP_GROUP | bits::MAX_PAGES),
            u64::MAX,
        ) else {
            panic!()
        };
        assert_eq!(agreed, bits::MAX_PAGES);
        assert_eq!(reply.flags2, 0);
    }
}
