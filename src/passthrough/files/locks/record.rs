//! What owners hold, byte by byte, as the host has granted it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::fuse::op::{LockKind, LockOwner, LockRange};
use crate::id::{HandleId, NodeId};
use crate::passthrough::inodes::fd_budget::GuestFd;
use crate::sys::record_lock::RecordLock;

/// All bytes that there are and will be.
pub(super) const WHOLE_FILE: LockRange = LockRange {
    start: 0,
    end: i64::MAX as u64,
};

impl LockRange {
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

pub(super) fn conflict(one: LockKind, other: LockKind) -> bool {
    one == LockKind::Exclusive || other == LockKind::Exclusive
}

/// A lock as the host takes it; no kind unlocks.
pub(super) fn to_host(range: LockRange, kind: Option<LockKind>) -> RecordLock {
    let len = match range.end {
        end if end >= WHOLE_FILE.end => 0,
        end => end.saturating_sub(range.start).saturating_add(1),
    };
    let kind = match kind {
        Some(LockKind::Shared) => libc::F_RDLCK,
        Some(LockKind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    RecordLock {
        kind: kind as i16,
        start: range.start.cast_signed(),
        len: len.cast_signed(),
    }
}

/// A lock as the host tells it.
pub(super) fn from_host(found: RecordLock) -> (LockRange, LockKind) {
    let start = found.start.cast_unsigned();
    let end = match found.len {
        0 => WHOLE_FILE.end,
        len => start.saturating_add(len.cast_unsigned()).saturating_sub(1),
    };
    let kind = if i32::from(found.kind) == libc::F_RDLCK {
        LockKind::Shared
    } else {
        LockKind::Exclusive
    };
    (LockRange { start, end }, kind)
}

/// What one owner has locked of one file.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) file: Arc<GuestFd>,
    /// It is the handle's own open file, which may not be opened again.
    pub(super) is_handles: bool,
    pub(super) is_writable: bool,
    /// The process that locked last, as the guest numbers it.
    pub(super) pid: u32,
    /// The handles that it locked by.
    pub(super) handles: HashSet<HandleId>,
    /// Ranges that do not overlap.
    pub(super) ranges: Vec<(LockRange, LockKind)>,
}

impl Held {
    /// Records that a range was locked, or unlocked.
    pub(super) fn record(&mut self, range: LockRange, kind: Option<LockKind>) {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 2);
        for &(old, old_kind) in &self.ranges {
            if !old.overlaps(range) {
                ranges.push((old, old_kind));
                continue;
            }
            if old.start < range.start {
                let end = range.start - 1;
                ranges.push((LockRange { end, ..old }, old_kind));
            }
            if old.end > range.end {
                let start = range.end + 1;
                ranges.push((LockRange { start, ..old }, old_kind));
            }
        }
        if let Some(kind) = kind {
            let mut range = range;
            // One range where the host has one: neighbours of the same kind join.
            ranges.retain(|&(old, old_kind)| {
                let meets = old.end.checked_add(1) == Some(range.start)
                    || range.end.checked_add(1) == Some(old.start);
                if meets && old_kind == kind {
                    range.start = range.start.min(old.start);
                    range.end = range.end.max(old.end);
                }
                !(meets && old_kind == kind)
            });
            ranges.push((range, kind));
        }
        self.ranges = ranges;
    }

    pub(super) fn conflicts(&self, range: LockRange, kind: LockKind) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|(held, held_kind)| held.overlaps(range) && conflict(*held_kind, kind))
    }
}

/// Record locks by file and owner.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) held: BTreeMap<(NodeId, LockOwner), Held>,
    /// Ranges of all of them.
    pub(super) ranges: usize,
}

impl Table {
    /// All that is locked of a file.
    pub(super) fn of_node(&self, node: NodeId) -> impl Iterator<Item = (LockOwner, &Held)> {
        let all = (node, LockOwner(0))..=(node, LockOwner(u64::MAX));
        let of_node = self.held.range(all);
        of_node.map(|((_, owner), held)| (*owner, held))
    }

    /// The owners in the way of a lock.
    pub(super) fn holders(&self, wish: &Wish) -> impl Iterator<Item = LockOwner> {
        self.of_node(wish.node)
            .filter(|(owner, held)| *owner != wish.owner && held.conflicts(wish.range, wish.kind))
            .map(|(owner, _)| owner)
    }

    /// Takes out what an owner has of a file.
    pub(super) fn remove(&mut self, node: NodeId, owner: LockOwner) -> Option<Held> {
        let held = self.held.remove(&(node, owner))?;
        self.ranges -= held.ranges.len();
        Some(held)
    }
}

/// A record lock that somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) node: NodeId,
    pub(super) owner: LockOwner,
    pub(super) range: LockRange,
    pub(super) kind: LockKind,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passthrough::inodes::fd_budget::FdBudget;

    fn range(start: u64, end: u64) -> LockRange {
        LockRange { start, end }
    }

    fn held() -> Held {
        let file = std::fs::File::open("/dev/null").unwrap();
        Held {
            file: Arc::new(
                FdBudget::new(1)
                    .reserve(|| false)
                    .unwrap()
                    .hold(file.into()),
            ),
            is_handles: false,
            is_writable: false,
            pid: 1,
            handles: HashSet::new(),
            ranges: Vec::new(),
        }
    }

    /// The kind of each of the first bytes, and of the last one.
    fn bytes(held: &Held) -> Vec<Option<LockKind>> {
        let at = |byte: u64| {
            let mut found = held.ranges.iter();
            let found = found.find(|(range, _)| (range.start..=range.end).contains(&byte));
            found.map(|(_, kind)| *kind)
        };
        (0..32).chain([WHOLE_FILE.end]).map(at).collect()
    }

    #[test]
    fn the_record_of_ranges_is_right_for_each_byte() {
        let mut held = held();
        let mut model = [None; 33];
        let mut state: u64 = 1;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..5000 {
            let start = random(32);
            let end = match random(4) {
                0 => WHOLE_FILE.end,
                _ => start + random(32 - start),
            };
            let kinds = [None, Some(LockKind::Shared), Some(LockKind::Exclusive)];
            let kind = kinds[random(3) as usize];
            held.record(range(start, end), kind);
            for (byte, place) in (0..32).chain([WHOLE_FILE.end]).zip(&mut model) {
                if (start..=end).contains(&byte) {
                    *place = kind;
                }
            }
            assert_eq!(bytes(&held), model);
            assert!(held.ranges.len() <= 33, "neighbours join");
        }
    }

    #[test]
    fn ranges_survive_the_way_to_the_host_and_back() {
        for (start, end) in [(0, 0), (5, 9), (7, WHOLE_FILE.end), (0, WHOLE_FILE.end - 1)] {
            let wanted = to_host(range(start, end), Some(LockKind::Exclusive));
            assert_eq!(from_host(wanted), (range(start, end), LockKind::Exclusive));
        }
        assert_eq!(to_host(WHOLE_FILE, None).len, 0);
    }
}
