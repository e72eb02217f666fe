//! States at random, for tests.

use std::collections::BTreeMap;

use super::wire::{
    FileHandle, Handle, HandleSource, Inode, Location, Negotiated, State, StateV1, StateV2, StateV3,
};

/// A small generator (xorshift64*): the same seed, the same states.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 8) % limit
    }

    /// A number of any magnitude.
    fn number(&mut self) -> u64 {
        let bits = self.below(64);
        self.next() >> bits
    }

    fn text(&mut self) -> String {
        let len = self.below(6);
        let letters = ['a', '/', '.', 'ä', '\0', '☃'];
        (0..len)
            .map(|_| letters[self.below(letters.len() as u64) as usize])
            .collect()
    }

    fn file_handle(&mut self) -> FileHandle<'static> {
        let len = self.below(20);
        FileHandle {
            mnt_id: self.below(4),
            handle_type: self.number() as i32,
            handle: (0..len).map(|_| self.next() as u8).collect(),
        }
    }
}

/// Any state, most of them nonsense.
pub fn state(random: &mut Random) -> State<'static> {
    let inodes = (0..random.below(12))
        .map(|number| Inode {
            id: number + 1,
            refcount: random.number(),
            location: match random.below(5) {
                _ if number == 0 => Location::RootNode,
                0 => Location::RootNode,
                1 => Location::FullPath {
                    filename: random.text().into(),
                },
                2 => Location::Invalid,
                3 => Location::FileHandle {
                    handle: random.file_handle(),
                },
                _ => Location::Path {
                    parent: random.below(number + 2),
                    filename: random.text().into(),
                },
            },
            file_handle: (random.below(2) == 0).then(|| random.file_handle()),
        })
        .collect();
    let handles = (0..random.below(5))
        .map(|id| Handle {
            id,
            inode: random.below(14),
            source: HandleSource::OpenInode {
                flags: random.number() as i32,
            },
        })
        .collect();
    let v1 = StateV1 {
        inodes,
        next_inode: random.number(),
        handles,
        next_handle: random.number(),
        negotiated: Negotiated {
            writeback: random.below(2) == 0,
            announce_submounts: random.below(2) == 0,
            posix_acl: random.below(2) == 0,
            sup_group_extension: random.below(2) == 0,
        },
    };
    if random.below(4) == 0 {
        return State::V1(v1);
    }
    let mount_paths: BTreeMap<_, _> = (0..random.below(4))
        .map(|mount| (mount, random.text().into()))
        .collect();
    let v2 = StateV2 { v1, mount_paths };
    if random.below(4) == 0 {
        return State::V3(StateV3 {
            v2,
            no_opendir: random.below(2) == 0,
        });
    }
    State::V2(v2)
}
