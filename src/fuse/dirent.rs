//! Packing directory entries into a reply: READDIR's alone, READDIRPLUS's
//! behind the attributes.

use zerocopy::IntoBytes;

use super::abi::{Dirent, EntryOut};

/// Entries start at multiples of this many bytes.
const ALIGNMENT: usize = 8;

/// One directory entry.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Inode number on the host.
    pub ino: u64,
    /// The cookie of the entry after this one.
    pub next: u64,
    /// `DT_*` of `readdir(3)`.
    pub kind: u8,
    /// The name without its NUL.
    pub name: &'a [u8],
}

/// Bytes that an entry takes, padding included.
pub fn packed_len(name_len: usize, with_attributes: bool) -> usize {
    let front = if with_attributes {
        size_of::<EntryOut>()
    } else {
        0
    };
    front + (size_of::<Dirent>() + name_len).next_multiple_of(ALIGNMENT)
}

/// The reply to READDIR or READDIRPLUS as it grows.
#[derive(Debug)]
pub struct DirPacker<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
    with_attributes: bool,
}

impl<'a> DirPacker<'a> {
    /// Packs at most `limit` bytes into `out`, which is emptied.
    pub fn new(out: &'a mut Vec<u8>, limit: usize, with_attributes: bool) -> Self {
        out.clear();
        Self {
            out,
            limit,
            with_attributes,
        }
    }

    /// The most bytes that the reply may have.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether each entry has attributes, and so is looked up: READDIRPLUS.
    pub fn with_attributes(&self) -> bool {
        self.with_attributes
    }

    /// Whether nothing was packed yet.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether there is room for an entry with a name of this many bytes.
    pub fn has_room(&self, name_len: usize) -> bool {
        packed_len(name_len, self.with_attributes) <= self.limit.saturating_sub(self.out.len())
    }

    /// Appends an entry. `attributes` are for READDIRPLUS; with a node id of 0
    /// they say that nothing was looked up.
    pub fn push(&mut self, entry: DirEntry<'_>, attributes: &EntryOut) {
        if self.with_attributes {
            self.out.extend_from_slice(attributes.as_bytes());
        }
        let fixed = Dirent {
            ino: entry.ino,
            off: entry.next,
            namelen: entry.name.len() as u32,
            kind: u32::from(entry.kind),
        };
        self.out.extend_from_slice(fixed.as_bytes());
        self.out.extend_from_slice(entry.name);
        self.out
            .resize(self.out.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_takes_what_was_promised() {
        for len in 1..=1024 {
            let name = vec![b'n'; len];
            let entry = DirEntry {
                ino: 1,
                next: 2,
                kind: 8,
                name: &name,
            };
            for with_attributes in [false, true] {
                let promised = packed_len(len, with_attributes);
                let mut out = Vec::new();
                let mut packer = DirPacker::new(&mut out, 2 * promised, with_attributes);
                for _ in 0..2 {
                    assert!(packer.has_room(len));
                    packer.push(entry, &EntryOut::default());
                }
                assert!(!packer.has_room(1));
                assert_eq!(out.len(), 2 * promised);
            }
        }
    }
}
