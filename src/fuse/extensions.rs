//! The extensions behind the body of a creating request.
//!
//! `fuse_in_header.total_extlen` says how many units of 8 bytes they take. Each
//! begins with `fuse_ext_header`, whose size counts itself and its padding.

use super::abi::ExtHeader;
use super::cursor::Cursor;
use super::decode::Malformed;

/// `FUSE_EXT_GROUPS`: supplementary groups of the caller.
const EXT_GROUPS: u32 = 32;

/// What the extensions of a request say.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Extensions {
    /// The supplementary group that gives the caller access to the directory;
    /// the guest names it only where there is one and it is needed.
    pub supplementary_group: Option<u32>,
}

/// Reads the extensions of a request; kinds that are not known are passed over.
///
/// # Errors
/// `Malformed` when a size lies.
pub fn decode_extensions(bytes: &[u8]) -> Result<Extensions, Malformed> {
    let mut cursor = Cursor::new(bytes);
    let mut found = Extensions::default();
    while !cursor.is_empty() {
        let header: ExtHeader = cursor.take()?;
        let body_len = (header.size as usize)
            .checked_sub(size_of::<ExtHeader>())
            .ok_or(Malformed::BadExtension)?;
        let mut body = Cursor::new(cursor.take_bytes(body_len)?);
        if header.kind == EXT_GROUPS {
            // The kernel sends one group or none, and no more is asked for.
            found.supplementary_group = match body.take::<u32>()? {
                0 => None,
                1 => Some(body.take()?),
                _ => return Err(Malformed::BadExtension),
            };
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group_extension(size: u32, count: u32, group: u32) -> Vec<u8> {
        [size, EXT_GROUPS, count, group]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect()
    }

    #[test]
    fn one_group_is_read() {
        let found = decode_extensions(&group_extension(16, 1, 1000)).unwrap();
        assert_eq!(found.supplementary_group, Some(1000));
    }

    #[test]
    fn a_list_of_no_group_is_none() {
        for bytes in [group_extension(16, 0, 0), Vec::new()] {
            let found = decode_extensions(&bytes).unwrap();
            assert_eq!(found.supplementary_group, None);
        }
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        for size in [0, 1, 7, 17, 24, u32::MAX] {
            assert!(
                decode_extensions(&group_extension(size, 1, 1000)).is_err(),
                "{size}"
            );
        }
        assert!(decode_extensions(&group_extension(16, 2, 1000)).is_err());
        assert!(decode_extensions(&group_extension(16, u32::MAX, 1000)).is_err());
        let whole = group_extension(16, 1, 1000);
        for len in 1..whole.len() {
            assert!(decode_extensions(&whole[..len]).is_err(), "{len}");
        }
    }
}
