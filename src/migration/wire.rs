//! The bytes of a migration stream: version 1 and 2 of virtiofsd's state, in
//! postcard, as virtiofsd 1.13 and 1.14 write and read them, and a version 3 that
//! they refuse.
//!
//! The order of the fields and of the variants is the format. Nothing that was
//! decoded here is to be trusted: [`super::saved`] checks it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The most inodes, and the most handles, of one stream.
const MAX_ENTRIES: usize = 1 << 24;

/// The most mounts of one stream: as many as a mount namespace has had for long
/// (`fs.mount-max` allows 100,000), and few enough to take no memory to speak of.
const MAX_MOUNTS: usize = 1 << 14;

/// A whole stream.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub enum State<'a> {
    /// What older daemons write.
    #[serde(borrow)]
    V1(StateV1<'a>),
    /// What is written today.
    #[serde(borrow)]
    V2(StateV2<'a>),
    /// What is written of a guest that relies on more than version 2 can say: no
    /// daemon may take it that does not know of that.
    #[serde(borrow)]
    V3(StateV3<'a>),
}

/// Version 1.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct StateV1<'a> {
    #[serde(borrow, deserialize_with = "bounded")]
    pub inodes: Vec<Inode<'a>>,
    pub next_inode: u64,
    #[serde(deserialize_with = "bounded")]
    pub handles: Vec<Handle>,
    pub next_handle: u64,
    pub negotiated: Negotiated,
}

/// Version 2.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct StateV2<'a> {
    #[serde(borrow)]
    pub v1: StateV1<'a>,
    /// For each `mnt_id` of a file handle a path on that mount, relative to the
    /// shared directory.
    #[serde(borrow, deserialize_with = "few_mounts")]
    pub mount_paths: BTreeMap<u64, Cow<'a, str>>,
}

/// Version 3.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct StateV3<'a> {
    #[serde(borrow)]
    pub v2: StateV2<'a>,
    /// Whether the guest reads directories without opening them.
    pub no_opendir: bool,
}

/// What INIT settled.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Negotiated {
    pub writeback: bool,
    pub announce_submounts: bool,
    pub posix_acl: bool,
    pub sup_group_extension: bool,
}

/// One inode that the guest holds, or that another one's path needs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Inode<'a> {
    pub id: u64,
    /// Look-ups of the guest, and one for each inode whose parent this is.
    pub refcount: u64,
    #[serde(borrow)]
    pub location: Location<'a>,
    #[serde(borrow)]
    pub file_handle: Option<FileHandle<'a>>,
}

/// How an inode is found again.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Location<'a> {
    /// The shared directory.
    RootNode,
    /// A name in another inode.
    Path {
        parent: u64,
        #[serde(borrow)]
        filename: Cow<'a, str>,
    },
    /// It could not be located.
    Invalid,
    /// A path below the shared directory.
    FullPath {
        #[serde(borrow)]
        filename: Cow<'a, str>,
    },
    /// A file handle.
    FileHandle {
        #[serde(borrow)]
        handle: FileHandle<'a>,
    },
}

/// What `name_to_handle_at(2)` gives.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FileHandle<'a> {
    pub mnt_id: u64,
    pub handle_type: i32,
    #[serde(borrow)]
    pub handle: Cow<'a, [u8]>,
}

/// An open file or directory.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Handle {
    pub id: u64,
    pub inode: u64,
    pub source: HandleSource,
}

/// How a handle is made again.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum HandleSource {
    /// By opening its inode with these flags of `open(2)`.
    OpenInode { flags: i32 },
}

impl<'a> State<'a> {
    /// All versions as the newest one.
    pub fn into_v3(self) -> StateV3<'a> {
        let v2 = match self {
            Self::V1(v1) => StateV2 {
                v1,
                mount_paths: BTreeMap::new(),
            },
            Self::V2(v2) => v2,
            Self::V3(v3) => return v3,
        };
        StateV3 {
            v2,
            no_opendir: false,
        }
    }
}

/// The bytes of a state.
///
/// # Errors
/// None that is known: memory is the only limit.
pub fn encode(state: &State<'_>) -> postcard::Result<Vec<u8>> {
    postcard::to_allocvec(state)
}

/// The state in `bytes`, which must end with it.
///
/// # Errors
/// When it is cut, ill-formed, followed by something, or has too many entries.
pub fn decode(bytes: &[u8]) -> postcard::Result<State<'_>> {
    match postcard::take_from_bytes(bytes)? {
        (state, []) => Ok(state),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

/// Decodes a map of at most [`MAX_MOUNTS`], for the same reason.
fn few_mounts<'de, D>(deserializer: D) -> Result<BTreeMap<u64, Cow<'de, str>>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = BTreeMap<u64, Cow<'de, str>>;

        fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(text, "at most {MAX_MOUNTS} mounts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut decoded = BTreeMap::new();
            while let Some((mount, path)) = entries.next_entry::<u64, &str>()? {
                if decoded.len() == MAX_MOUNTS {
                    return Err(A::Error::custom("too many mounts"));
                }
                decoded.insert(mount, Cow::Borrowed(path));
            }
            Ok(decoded)
        }
    }

    deserializer.deserialize_map(Few)
}

/// Decodes a sequence of at most [`MAX_ENTRIES`]: an element may take far fewer
/// bytes in the stream than in memory.
fn bounded<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Bounded<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
        type Value = Vec<T>;

        fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(text, "at most {MAX_ENTRIES} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
            let mut decoded = Vec::new();
            while let Some(entry) = entries.next_element()? {
                if decoded.len() == MAX_ENTRIES {
                    return Err(A::Error::custom("too many entries"));
                }
                decoded.push(entry);
            }
            Ok(decoded)
        }
    }

    deserializer.deserialize_seq(Bounded(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::super::arbitrary::{Random, state};
    use super::*;

    /// One of everything, and its bytes written out by hand.
    fn golden() -> (State<'static>, Vec<u8>) {
        let handle = |mnt_id, handle_type, bytes: &'static [u8]| FileHandle {
            mnt_id,
            handle_type,
            handle: bytes.into(),
        };
        let inode = |id, refcount, location, file_handle| Inode {
            id,
            refcount,
            location,
            file_handle,
        };
        let v1 = StateV1 {
            inodes: vec![
                inode(1, 3, Location::RootNode, None),
                inode(
                    300,
                    2,
                    Location::Path {
                        parent: 1,
                        filename: "ab".into(),
                    },
                    Some(handle(7, -1, &[9, 8])),
                ),
                inode(3, 1, Location::Invalid, None),
                inode(
                    4,
                    1,
                    Location::FullPath {
                        filename: "a/b".into(),
                    },
                    None,
                ),
                inode(
                    5,
                    1,
                    Location::FileHandle {
                        handle: handle(36, 129, &[0xff]),
                    },
                    None,
                ),
            ],
            next_inode: 301,
            handles: vec![Handle {
                id: 0,
                inode: 300,
                source: HandleSource::OpenInode { flags: 0o100002 },
            }],
            next_handle: 1,
            negotiated: Negotiated {
                announce_submounts: true,
                sup_group_extension: true,
                ..Negotiated::default()
            },
        };
        let state = State::V2(StateV2 {
            v1,
            mount_paths: BTreeMap::from([(36, ".".into())]),
        });
        let bytes = [
            &[1u8][..],                          // version 2
            &[5],                                // inodes
            &[1, 3, 0, 0],                       // root
            &[0xac, 2, 2, 1, 1, 2, b'a', b'b'],  // 300: "ab" in 1
            &[1, 7, 1, 2, 9, 8],                 // and its handle
            &[3, 1, 2, 0],                       // invalid
            &[4, 1, 3, 3, b'a', b'/', b'b', 0],  // full path
            &[5, 1, 4, 36, 0x82, 2, 1, 0xff, 0], // by handle; 129 in zigzag is 258
            &[0xad, 2],                          // next inode
            &[1, 0, 0xac, 2, 0, 0x84, 0x80, 4],  // one handle; 32770 in zigzag is 65540
            &[1],                                // next handle
            &[0, 1, 0, 1],                       // negotiated
            &[1, 36, 1, b'.'],                   // mount paths
        ]
        .concat();
        (state, bytes)
    }

    #[test]
    fn every_kind_of_entry_has_its_bytes() {
        let (state, bytes) = golden();
        assert_eq!(encode(&state).unwrap(), bytes);
        assert_eq!(decode(&bytes).unwrap(), state);
    }

    #[test]
    fn version_1_lacks_the_mount_paths() {
        let (State::V2(v2), bytes) = golden() else {
            panic!()
        };
        let (end, mount_paths) = (bytes.len() - 4, v2.mount_paths.len());
        assert_eq!(mount_paths, 1);
        let bytes = [&[0], &bytes[1..end]].concat();
        let state = State::V1(v2.v1);
        assert_eq!(encode(&state).unwrap(), bytes);
        assert_eq!(decode(&bytes).unwrap(), state);
    }

    #[test]
    fn version_3_adds_what_older_daemons_must_not_miss() {
        let (State::V2(v2), bytes) = golden() else {
            panic!()
        };
        let bytes = [&[2], &bytes[1..], &[1]].concat();
        let state = State::V3(StateV3 {
            v2,
            no_opendir: true,
        });
        assert_eq!(encode(&state).unwrap(), bytes);
        assert_eq!(decode(&bytes).unwrap(), state);
    }

    #[test]
    fn what_is_cut_or_too_long_or_of_another_version_is_an_error() {
        let (_, bytes) = golden();
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "cut to {end}");
        }
        assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
        assert!(decode(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_stream_has_no_more_mounts_than_a_host() {
        let with = |mounts: usize| {
            let mount_paths = (0..mounts as u64).map(|mount| (mount, "".into())).collect();
            let state = State::V2(StateV2 {
                mount_paths,
                ..StateV2::default()
            });
            let bytes = encode(&state).unwrap();
            decode(&bytes).is_ok()
        };
        assert!(with(MAX_MOUNTS));
        assert!(!with(MAX_MOUNTS + 1));
    }

    #[test]
    fn lengths_that_lie_are_errors_and_take_no_memory() {
        let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        // As the number of inodes, of handles, of mount paths, and as the length
        // of a name and of a file handle.
        for front in [
            &[1][..],
            &[1, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[1, 1, 2, 1, 1, 1],
            &[1, 1, 2, 1, 4, 0, 0],
        ] {
            assert!(decode(&[front, &huge].concat()).is_err());
        }
    }

    #[test]
    fn whatever_is_written_reads_the_same() {
        let mut random = Random::new(1);
        for _ in 0..500 {
            let state = state(&mut random);
            let bytes = encode(&state).unwrap();
            assert_eq!(decode(&bytes).unwrap(), state);
        }
    }
}
