//! Translation of user and group ids between guest and host.
//!
//! An id of the guest is a `u32`, as the protocol has it; an id that the daemon
//! acts with on the host is a [`Uid`] or a [`Gid`]. Each way is a table of ranges
//! no two of which overlap, so an id has one meaning and is found by binary
//! search. What is in no range stays as it is.

use anyhow::bail;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::config::{Config, Range, Translation};
use crate::fuse::abi::Attr;
use crate::fuse::op::Caller;

/// The translation of both kinds of ids.
#[derive(Clone, Debug, Default)]
pub struct IdMaps {
    uids: IdMap,
    gids: IdMap,
}

/// A user and a group of the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HostIds {
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
}

impl IdMaps {
    /// What the operator asked for.
    ///
    /// # Errors
    /// When an id would have two meanings, or a range goes beyond the last id.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            uids: IdMap::new("--translate-uid", &config.translate_uid)?,
            gids: IdMap::new("--translate-gid", &config.translate_gid)?,
        })
    }

    /// The user of the host that a user of the guest is.
    ///
    /// # Errors
    /// `EPERM` for an id that may not be used, `EINVAL` for one that is nobody's.
    pub fn host_uid(&self, guest: u32) -> Result<Uid, Errno> {
        self.uids.host_id(guest).map(Uid::from_raw)
    }

    /// The group of the host that a group of the guest is.
    ///
    /// # Errors
    /// As [`IdMaps::host_uid`].
    pub fn host_gid(&self, guest: u32) -> Result<Gid, Errno> {
        self.gids.host_id(guest).map(Gid::from_raw)
    }

    /// Who the caller is on the host.
    ///
    /// # Errors
    /// As [`IdMaps::host_uid`].
    pub fn host_ids(&self, who: &Caller) -> Result<HostIds, Errno> {
        Ok(HostIds {
            uid: self.host_uid(who.uid)?,
            gid: self.host_gid(who.gid)?,
        })
    }

    /// Attributes with the host's ids, as the guest is to see them.
    pub fn guest_attr(&self, host: Attr) -> Attr {
        Attr {
            uid: self.uids.guest_id(host.uid),
            gid: self.gids.guest_id(host.gid),
            ..host
        }
    }
}

/// The translation of one kind of ids.
#[derive(Clone, Debug, Default)]
struct IdMap {
    to_host: Table,
    to_guest: Table,
}

impl IdMap {
    fn new(option: &str, entries: &[Translation]) -> anyhow::Result<Self> {
        let mut to_host = Vec::new();
        let mut to_guest = Vec::new();
        for &entry in entries {
            let shifted =
                |Range { from, to, count }| Row::new(from, count, Target::From(to), entry);
            let squashed =
                |Range { from, to, count }| Row::new(from, count, Target::One(to), entry);
            let turned = |Range { from, to, count }| Range {
                from: to,
                to: from,
                count,
            };
            match entry {
                Translation::Guest(range) => to_host.push(shifted(range)),
                Translation::Host(range) => to_guest.push(shifted(range)),
                Translation::Map(range) => {
                    to_host.push(shifted(range));
                    to_guest.push(shifted(turned(range)));
                }
                Translation::SquashGuest(range) => to_host.push(squashed(range)),
                Translation::SquashHost(range) => to_guest.push(squashed(range)),
                Translation::ForbidGuest { from, count } => {
                    to_host.push(Row::new(from, count, Target::Nobody, entry));
                }
            }
        }
        Ok(Self {
            to_host: Table::new(option, "guest", to_host)?,
            to_guest: Table::new(option, "host", to_guest)?,
        })
    }

    fn host_id(&self, guest: u32) -> Result<u32, Errno> {
        match self.to_host.find(guest) {
            // The id that means "no change" to the kernel is nobody's.
            Some(u32::MAX) => Err(Errno::INVAL),
            Some(host) => Ok(host),
            None => Err(Errno::PERM),
        }
    }

    /// Nothing of the host is kept from the guest.
    fn guest_id(&self, host: u32) -> u32 {
        self.to_guest.find(host).unwrap_or(host)
    }
}

/// What becomes of the ids of a range.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// The first one becomes this id, the second one the next, and so on.
    From(u32),
    /// All become this one.
    One(u32),
    /// They may not be used.
    Nobody,
}

/// `count` ids from `first` on.
#[derive(Clone, Copy, Debug)]
struct Row {
    first: u32,
    count: u32,
    target: Target,
    /// As the operator has put it.
    origin: Translation,
}

impl Row {
    fn new(first: u32, count: u32, target: Target, origin: Translation) -> Self {
        Self {
            first,
            count,
            target,
            origin,
        }
    }

    /// The first id behind the range.
    fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    fn fits(&self) -> bool {
        let targets = match self.target {
            Target::From(to) => u64::from(to) + u64::from(self.count),
            Target::One(_) | Target::Nobody => 0,
        };
        self.end().max(targets) <= 1 << u32::BITS
    }
}

/// One way: ranges in ascending order that do not overlap.
#[derive(Clone, Debug, Default)]
struct Table(Vec<Row>);

impl Table {
    fn new(option: &str, side: &str, mut rows: Vec<Row>) -> anyhow::Result<Self> {
        if let Some(row) = rows.iter().find(|row| !row.fits()) {
            bail!(
                "{option}: {} goes beyond the last id, {}",
                row.origin,
                u32::MAX
            );
        }
        // A range of no ids says nothing.
        rows.retain(|row| row.count > 0);
        rows.sort_by_key(|row| row.first);
        let pairs = rows.iter().zip(rows.iter().skip(1));
        for (row, next) in pairs {
            if row.end() > u64::from(next.first) {
                bail!(
                    "{option}: {} and {} overlap: each says what becomes of the {side}'s id {}",
                    row.origin,
                    next.origin,
                    next.first
                );
            }
        }
        Ok(Self(rows))
    }

    /// What becomes of an id; `None` where it may not be used.
    fn find(&self, id: u32) -> Option<u32> {
        let before = self.0.partition_point(|row| row.first <= id);
        let Some(row) = before.checked_sub(1).and_then(|last| self.0.get(last)) else {
            return Some(id);
        };
        let distance = id - row.first;
        if distance >= row.count {
            return Some(id);
        }
        match row.target {
            // That it fits was checked when the table was made.
            Target::From(to) => Some(to.wrapping_add(distance)),
            Target::One(to) => Some(to),
            Target::Nobody => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: u32, to: u32, count: u32) -> Range {
        Range { from, to, count }
    }

    fn map(entries: &[Translation]) -> IdMap {
        IdMap::new("--translate-uid", entries).unwrap()
    }

    fn refusal(entries: &[Translation]) -> String {
        let refused = IdMap::new("--translate-uid", entries);
        refused.unwrap_err().to_string()
    }

    #[test]
    fn without_ranges_an_id_is_itself() {
        let map = map(&[]);
        for id in [0, 1, 1000, u32::MAX - 1] {
            assert_eq!(map.host_id(id), Ok(id));
            assert_eq!(map.guest_id(id), id);
        }
        assert_eq!(map.host_id(u32::MAX), Err(Errno::INVAL));
    }

    #[test]
    fn each_kind_of_range_has_its_direction() {
        let guest = map(&[Translation::Guest(range(0, 1000, 10))]);
        assert_eq!((guest.host_id(9), guest.guest_id(1009)), (Ok(1009), 1009));
        assert_eq!((guest.host_id(10), guest.guest_id(0)), (Ok(10), 0));

        let host = map(&[Translation::Host(range(1000, 0, 10))]);
        assert_eq!((host.guest_id(1009), host.host_id(9)), (9, Ok(9)));

        let both = map(&[Translation::Map(range(0, 1000, 10))]);
        assert_eq!((both.host_id(9), both.guest_id(1009)), (Ok(1009), 9));

        let squash = map(&[
            Translation::SquashGuest(range(0, 65534, 1000)),
            Translation::SquashHost(range(500, 7, 10)),
        ]);
        assert_eq!(squash.host_id(999), Ok(65534));
        assert_eq!((squash.guest_id(509), squash.guest_id(510)), (7, 510));

        let forbid = map(&[Translation::ForbidGuest { from: 5, count: 2 }]);
        assert_eq!(forbid.host_id(5), Err(Errno::PERM));
        assert_eq!(forbid.host_id(6), Err(Errno::PERM));
        assert_eq!((forbid.host_id(4), forbid.host_id(7)), (Ok(4), Ok(7)));
        assert_eq!(forbid.guest_id(5), 5);
    }

    #[test]
    fn ranges_that_overlap_are_both_named() {
        let text = refusal(&[
            Translation::Map(range(0, 1000, 10)),
            Translation::ForbidGuest { from: 9, count: 2 },
        ]);
        assert_eq!(
            text,
            "--translate-uid: map:0:1000:10 and forbid-guest:9:2 overlap: \
             each says what becomes of the guest's id 9"
        );
        let text = refusal(&[
            Translation::SquashHost(range(1009, 3, 1)),
            Translation::Map(range(0, 1000, 10)),
        ]);
        assert_eq!(
            text,
            "--translate-uid: map:0:1000:10 and squash-host:1009:3:1 overlap: \
             each says what becomes of the host's id 1009"
        );
        // Side by side, in different directions, or with the same targets.
        map(&[
            Translation::Guest(range(10, 5, 10)),
            Translation::Guest(range(0, 5, 10)),
            Translation::Host(range(5, 0, 10)),
            Translation::Guest(range(15, 0, 0)),
        ]);
    }

    #[test]
    fn a_range_ends_at_the_last_id() {
        let last = u32::MAX;
        map(&[Translation::Map(range(0, 1, last))]);
        map(&[Translation::SquashGuest(range(0, last, last))]);
        for beyond in [
            Translation::Guest(range(last, 0, 2)),
            Translation::Guest(range(0, last, 2)),
            Translation::ForbidGuest {
                from: 2,
                count: last,
            },
        ] {
            let text = refusal(&[beyond]);
            assert!(text.contains("goes beyond the last id"), "{text}");
        }
        // An id that would mean "no change" to the kernel.
        let map = map(&[Translation::Guest(range(0, last - 1, 2))]);
        assert_eq!(map.host_id(0), Ok(last - 1));
        assert_eq!(map.host_id(1), Err(Errno::INVAL));
    }

    /// Numbers that look random and are the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u32) -> u32 {
            // splitmix64
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = self.0;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((x ^ (x >> 31)) % u64::from(limit)) as u32
        }

        fn translation(&mut self) -> Translation {
            let range = range(self.below(64), self.below(64), self.below(12));
            match self.below(6) {
                0 => Translation::Guest(range),
                1 => Translation::Host(range),
                2 => Translation::Map(range),
                3 => Translation::SquashGuest(range),
                4 => Translation::SquashHost(range),
                _ => Translation::ForbidGuest {
                    from: range.from,
                    count: range.count,
                },
            }
        }
    }

    /// All that the entries say of an id, one by one: `(to host, to guest)`.
    fn said(entries: &[Translation], id: u32) -> (Vec<Option<u32>>, Vec<Option<u32>>) {
        let (mut host, mut guest) = (Vec::new(), Vec::new());
        let within = |from: u32, count: u32| (from..from + count).contains(&id);
        for entry in entries {
            match *entry {
                Translation::Guest(r) if within(r.from, r.count) => {
                    host.push(Some(r.to + (id - r.from)));
                }
                Translation::Host(r) if within(r.from, r.count) => {
                    guest.push(Some(r.to + (id - r.from)));
                }
                Translation::Map(r) => {
                    if within(r.from, r.count) {
                        host.push(Some(r.to + (id - r.from)));
                    }
                    if within(r.to, r.count) {
                        guest.push(Some(r.from + (id - r.to)));
                    }
                }
                Translation::SquashGuest(r) if within(r.from, r.count) => host.push(Some(r.to)),
                Translation::SquashHost(r) if within(r.from, r.count) => guest.push(Some(r.to)),
                Translation::ForbidGuest { from, count } if within(from, count) => host.push(None),
                _ => {}
            }
        }
        (host, guest)
    }

    #[test]
    fn a_table_says_what_its_ranges_say_one_by_one() {
        let mut numbers = Numbers(1);
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..5000 {
            let entries: Vec<_> = (0..numbers.below(6))
                .map(|_| numbers.translation())
                .collect();
            let said: Vec<_> = (0..100).map(|id| said(&entries, id)).collect();
            let ambiguous = said
                .iter()
                .any(|(host, guest)| host.len().max(guest.len()) > 1);
            let Ok(map) = IdMap::new("--translate-uid", &entries) else {
                assert!(ambiguous, "{entries:?}");
                refused += 1;
                continue;
            };
            assert!(!ambiguous, "{entries:?}");
            accepted += 1;
            for (id, (host, guest)) in (0..).zip(said) {
                let host = host.first().copied().unwrap_or(Some(id));
                assert_eq!(
                    map.host_id(id),
                    host.ok_or(Errno::PERM),
                    "{id}: {entries:?}"
                );
                let guest = guest.first().copied().flatten().unwrap_or(id);
                assert_eq!(map.guest_id(id), guest, "{id}: {entries:?}");
            }
        }
        assert!(accepted > 1000 && refused > 1000, "{accepted} {refused}");
    }

    #[test]
    fn a_map_there_and_back_is_where_it_was() {
        let mut numbers = Numbers(2);
        for _ in 0..1000 {
            let r = range(
                numbers.below(1 << 31),
                numbers.below(1 << 31),
                1 + numbers.below(1 << 30),
            );
            let map = map(&[Translation::Map(r)]);
            for at in [0, numbers.below(r.count), r.count - 1] {
                let host = map.host_id(r.from + at).unwrap();
                assert_eq!(host, r.to + at);
                assert_eq!(map.guest_id(host), r.from + at);
            }
        }
    }
}
